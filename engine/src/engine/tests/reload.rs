//! What a reload does to flows of every kind and state.

use super::*;
use crate::engine::{Cut, Walk};
use crate::policy::Verdict;
use crate::{Protocol, Report};

const A: [u8; 4] = [203, 0, 113, 9];
const B: [u8; 4] = [198, 51, 100, 7];

impl Bench {
    /// Takes another policy and judges every live flow by it; those that were cut.
    pub(super) fn reload(&mut self, text: &str) -> Vec<Report> {
        let generation = self.engine.generation() + 1;
        self.engine.reload(Arc::new(policy(text)), generation);
        let (mut walk, mut cut) = (Walk::default(), Vec::new());
        while !walk.is_over() {
            self.engine.rejudge(&mut walk, &mut cut, self.now, &mut self.wire);
            self.run();
        }
        cut.into_iter().map(|cut| cut.flow).collect()
    }

    pub(super) fn list(&self) -> Vec<Report> {
        let (mut walk, mut flows) = (Walk::default(), Vec::new());
        while !walk.is_over() {
            self.engine.list(&mut walk, self.now, &mut flows);
        }
        flows
    }

    fn open_to(&mut self, port: u16, to: [u8; 4]) -> FlowId {
        self.packet(&aimed(tcp(false, SYN, 1000, 0, b""), port, to));
        let id = self.connect_asked();
        self.input(Input::Connected(id, 1, rings(u32::from(port))));
        let syn_ack = self.take_app().pop().expect("a SYN-ACK");
        let next = syn_ack.sequence.wrapping_add(1);
        self.packet(&aimed(tcp(false, ACK, 1001, next, b""), port, to));
        id
    }
}

/// Protocol and destination of each.
fn who(reports: &[Report]) -> Vec<(Protocol, IpAddr)> {
    let mut all: Vec<_> = reports.iter().map(|r| (r.protocol, r.destination.ip())).collect();
    all.sort();
    all
}

/// A connection, a UDP session and an echo sequence to each of two hosts, all open.
fn six_flows() -> Bench {
    six_flows_under("default allow")
}

fn six_flows_under(text: &str) -> Bench {
    let mut bench = Bench::with(config(), policy(text));
    for to in [A, B] {
        bench.open_to(2000, to);
        bench.packet(&aimed(udp(false, b"x"), 3000, to));
        bench.packet(&aimed(echo(false, 0, 1), 4000, to));
    }
    assert_eq!(bench.list().len(), 6);
    bench.wire.to_app.clear();
    bench.outputs.clear();
    bench
}

#[test]
fn exactly_those_whose_verdict_changed_are_cut() {
    use Protocol::{Icmp, Tcp, Udp};
    let all = |to| vec![(Icmp, IpAddr::from(to)), (Tcp, IpAddr::from(to)), (Udp, IpAddr::from(to))];
    for (name, text, cut) in [
        ("the same by another rule", "allow to 203.0.113.9 id r\ndefault allow", vec![]),
        ("a host is blocked", "block to 198.51.100.7 id r", all(B)),
        ("a protocol is blocked", "block udp id r", vec![(Udp, B.into()), (Udp, A.into())]),
        ("a port is blocked", "block tcp to 198.51.100.7 port 80 id r", vec![(Tcp, B.into())]),
        ("another egress only", "block egress eth1 id r", vec![]),
        ("the egress they have", "block to 203.0.113.9 egress eth0 id r", all(A)),
    ] {
        let mut bench = six_flows();
        let ended = bench.reload(text);
        assert_eq!(who(&ended), cut, "{name}");
        for report in &ended {
            assert_eq!(report.reason, Some(Reason::PolicyChanged), "{name}");
            assert_eq!((report.verdict, report.generation), (Some(Verdict::Block), 2), "{name}");
            assert_eq!(report.rule.as_deref(), Some("r"), "{name}");
        }
        let told = bench.reasons();
        assert_eq!(told, vec![(Stage::Closed, Some(Reason::PolicyChanged)); cut.len()], "{name}");
        let live = bench.list();
        assert_eq!(live.len() + cut.len(), 6, "{name}");
        assert!(live.iter().all(|r| r.generation == 2 && r.verdict == Some(Verdict::Allow)));
    }
}

#[test]
fn what_a_protected_rule_allowed_stays() {
    let told = |bench: &Bench| -> Vec<_> {
        let of = |r: Report| (r.verdict, r.rule.unwrap_or_default(), r.generation);
        let mut told: Vec<_> = bench.list().into_iter().map(of).collect();
        told.dedup();
        told
    };
    let by = |rule: &str, generation| vec![(Some(Verdict::Allow), rule.to_owned(), generation)];
    let mut bench = six_flows_under("allow to 203.0.113.9 protected id call");
    for text in ["default block", "drop id no"] {
        let (walk, mut compared) = (&mut Walk::default(), Vec::new());
        let would = |flow: Report, _, _| compared.push(flow.destination.ip());
        bench.engine.compare(&policy(text), None, None, walk, bench.now, would);
        compared.dedup();
        let cut = bench.reload(text);
        assert_eq!(compared, if cut.is_empty() { vec![] } else { vec![IpAddr::from(B)] }, "{text}");
        assert!(cut.iter().all(|report| report.destination.ip() == IpAddr::from(B)), "{text}");
        assert_eq!(bench.list().len(), 3, "{text}");
        assert_eq!(told(&bench), by("call", 1), "of the rule that allowed it");
    }
    // It still is what it was.
    let opened = bench.engine.flows_opened();
    assert_eq!(bench.packet(&aimed(udp(false, b"x"), 3000, A)), Outcome::ToEgress);
    assert_eq!(bench.packet(&aimed(echo(false, 0, 2), 4000, A)), Outcome::ToEgress);
    assert_eq!(bench.engine.flows_opened(), opened);
    // Another rule allows it, which need not protect it again.
    assert!(bench.reload("allow id other\ndefault block").is_empty());
    assert_eq!(told(&bench), by("other", 4));
    assert!(bench.reload("default block").is_empty());
    assert_eq!(told(&bench), by("other", 4));
    // An order ends it, and what comes then is a new flow.
    let (walk, now) = (&mut Walk::default(), bench.now);
    let number = bench.list()[0].number;
    let id = bench.engine.seek(number, walk).expect("the first");
    bench.engine.kill(id, now, &mut bench.wire);
    bench.run();
    assert_eq!(bench.list().len(), 2);
}

#[test]
fn a_reload_may_protect_what_is_there() {
    let mut bench = six_flows();
    assert!(bench.reload("allow to 203.0.113.9 protected").is_empty());
    assert_eq!(who(&bench.reload("default block")).len(), 3);
    assert!(bench.list().iter().all(|flow| flow.destination.ip() == IpAddr::from(A)));
    // What waits for the far side has its verdict too.
    let mut bench = Bench::with(config(), policy("allow protected id call"));
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let id = bench.connect_asked();
    assert!(bench.reload("default block").is_empty());
    bench.input(Input::Connected(id, 1, rings(1)));
    assert_eq!(bench.take_app().len(), 1, "a SYN-ACK");
    assert_eq!((bench.list()[0].stage, bench.list()[0].generation), (Stage::Open, 1));
    // A new one is the new policy's.
    bench.packet(&aimed(tcp(false, SYN, 1000, 0, b""), 2001, A));
    assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(Reason::Policy))));
}

#[test]
fn each_kind_is_cut_in_its_own_way() {
    for (verdict, icmp) in [("block", true), ("drop", false)] {
        let mut bench = six_flows();
        bench.reload(&format!("{verdict} to 198.51.100.7"));
        let packets = std::mem::take(&mut bench.wire.to_app);
        let of = |protocol: u8| packets.iter().filter(|p| p[9] == protocol).collect::<Vec<_>>();
        let [reset] = of(TCP).try_into().expect("one segment");
        assert_eq!(Segment::parse(reset).flags & RST, RST, "{verdict}");
        let errors = of(ICMP);
        assert_eq!(errors.len(), if icmp { 2 } else { 0 }, "{verdict}");
        for error in &errors {
            assert_eq!((error[20], error[21]), (3, 13), "administratively prohibited");
            assert_eq!(error[12..16], B, "from whom it was sent to");
            // The quote names the app's socket: UDP by its port, echo by its identifier.
            let (protocol, at) = (error[28 + 9], if error[28 + 9] == UDP { 48 } else { 52 });
            assert_eq!(be16(error, at), if protocol == UDP { 3000 } else { 4000 });
        }
        let count =
            |wanted: fn(&Output) -> bool| bench.outputs.iter().filter(|o| wanted(o)).count();
        assert_eq!(count(|o| matches!(o, Output::Reset(_))), 1, "the far side's RST");
        assert_eq!(count(|o| matches!(o, Output::Release(RingId(2000), _))), 1);
        assert_eq!(count(|o| matches!(o, Output::Close(_))), 1, "the echo's socket");
        // The other host's flow has the same egress, so it shares the mapping.
        assert_eq!(count(|o| matches!(o, Output::Unbind(_))), 0);
        // The next packet is a new flow's first.
        let opened = bench.engine.flows_opened();
        bench.packet(&aimed(udp(false, b"x"), 3000, B));
        assert_eq!(bench.engine.flows_opened(), opened + 1, "{verdict}");
        bench.reload("block udp");
        assert!(bench.outputs.iter().any(|o| matches!(o, Output::Unbind(_))), "the last one left");
    }
}

#[test]
fn what_waits_for_the_far_side_is_refused_for_the_change() {
    for (verdict, answered) in [("block", 1), ("drop", 0)] {
        let mut bench = Bench::new(config());
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let id = bench.connect_asked();
        let cut = bench.reload(&format!("{verdict} tcp id no"));
        assert_eq!(cut.len(), 1, "{verdict}");
        let changed = (Stage::Closed, Some(Reason::PolicyChanged));
        assert_eq!((cut[0].stage, cut[0].reason), changed);
        assert_eq!(bench.reasons(), [changed], "told once");
        assert!(bench.outputs.iter().any(|o| matches!(o, Output::Close(f) if *f == id)));
        assert_eq!(bench.wire.to_app.len(), answered, "{verdict}");
        // The far side's answer comes too late.
        bench.input(Input::Connected(id, 1, rings(1)));
        assert!(bench.outputs.iter().any(|o| matches!(o, Output::Release(RingId(1), 0))));
        assert_eq!(bench.engine.live(), 0);
        bench.outputs.clear();
        // The app's own retransmission is judged by the next policy.
        let outcome = bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let silent = verdict == "drop";
        assert_eq!(outcome == Outcome::Dropped(Dropped::Policy), silent, "{verdict}");
        bench.reload("default allow");
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let again = bench.connect_asked();
        bench.input(Input::Connected(again, 1, rings(2)));
        assert_eq!(bench.list()[0].generation, 3);
    }
}

#[test]
fn what_waits_for_the_far_side_goes_on_under_the_same_verdict() {
    let mut bench = Bench::new(config());
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let id = bench.connect_asked();
    assert!(bench.reload("allow tcp id yes\ndefault block").is_empty());
    bench.input(Input::Connected(id, 1, rings(1)));
    let [flow] = bench.list().try_into().expect("one flow");
    assert_eq!((flow.stage, flow.rule.as_deref()), (Stage::Open, Some("yes")));
    assert_eq!(flow.generation, 2);
}

#[test]
fn what_is_not_judged_yet_is_judged_by_the_new_policy() {
    let mut bench = Bench::new(config());
    let syn = tcp(false, SYN, 1000, 0, b"");
    bench.engine.handle_packet(&syn, Received::default(), bench.now, &mut bench.wire);
    assert_eq!(bench.list()[0].stage, Stage::Held);
    bench.engine.reload(Arc::new(policy("block tcp id no")), 2);
    let (mut walk, mut cut) = (Walk::default(), Vec::new());
    bench.engine.rejudge(&mut walk, &mut cut, bench.now, &mut bench.wire);
    assert!(cut.is_empty() && bench.list().len() == 1, "it waits");
    bench.run();
    let [Output::Report(report)] = &bench.outputs[..] else { panic!("{:?}", bench.outputs) };
    assert_eq!((report.generation, report.rule.as_deref()), (2, Some("no")));
    assert_eq!(report.reason, Some(Reason::Policy));
}

#[test]
fn answers_of_a_verdict_are_forgotten_and_failures_are_not() {
    let mut bench = Bench::with(config(), policy("block udp port 80\nblock icmp"));
    bench.packet(&udp(false, b"x"));
    bench.packet(&echo(false, 5, 1));
    assert_eq!((bench.engine.flows(), bench.engine.live()), (2, 0));
    assert_eq!(bench.packet(&udp(false, b"x")), Outcome::ToApp);
    assert_eq!(bench.engine.flows_opened(), 2, "one report for a sender in a loop");
    assert!(bench.reload("default allow").is_empty());
    assert_eq!(bench.engine.flows(), 0);
    assert_eq!(bench.packet(&udp(false, b"x")), Outcome::Held);
    assert_eq!(bench.list().len(), 1);

    let mut bench = Bench::new(config());
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let id = bench.connect_asked();
    bench.input(Input::Failed(id, Failure::NetUnreachable));
    bench.reload("default allow");
    assert_eq!((bench.engine.flows(), bench.engine.live()), (1, 0), "to be told again");
    for _ in 0..3 {
        bench.wait(Duration::from_secs(1));
    }
    assert_eq!((bench.engine.flows(), bench.wire.to_app.len()), (0, 3));
}

#[test]
fn nobody_is_asked_for_what_only_the_new_policy_needs() {
    let root = |_| Some(Owner { uid: 0, cgroup: None, of_proxy: false });
    for (reports, text, cut) in [
        // Never asked: neither of the rules can hold.
        (false, "block user 0", 0),
        (false, "allow user 0\ndefault block", 1),
        // Always asked where somebody is told.
        (true, "block user 0", 1),
        (true, "allow user 0\ndefault block", 0),
    ] {
        let mut bench = Bench::new(Config { reports, ..config() });
        bench.owner = root;
        bench.packet(&udp(false, b"x"));
        assert_eq!(bench.reload(text).len(), cut, "{text}, reports {reports}");
        assert!(bench.engine.poll_output().is_none());
    }
}

/// Many UDP flows, by client port, half of them to either host.
fn crowd(flows: u16) -> Bench {
    let mut bench = Bench::new(Config { flows: 2000, half_open: 2000, ..config() });
    for port in 0..flows {
        bench.packet(&aimed(udp(false, b"x"), 1000 + port, if port % 2 == 0 { A } else { B }));
    }
    bench.outputs.clear();
    bench
}

#[test]
fn a_rule_has_its_name_by_the_policy_that_judged_last() {
    let mut bench = crowd(600);
    bench.reload("allow udp id second");
    bench.engine.reload(Arc::new(policy("allow icmp id other\nallow udp id third")), 3);
    let (mut walk, mut cut) = (Walk::default(), Vec::new());
    let mut pieces = 0;
    while !walk.is_over() {
        bench.engine.rejudge(&mut walk, &mut cut, bench.now, &mut bench.wire);
        pieces += 1;
        let counts = [2, 3].map(|generation| {
            let of = bench.list().into_iter().filter(|r| r.generation == generation);
            let name = if generation == 2 { "second" } else { "third" };
            of.inspect(|r| assert_eq!(r.rule.as_deref(), Some(name))).count()
        });
        assert_eq!(counts, [600 - (256 * pieces).min(600), (256 * pieces).min(600)]);
        // New flows are judged by the newest at once.
        if pieces == 1 {
            bench.packet(&aimed(udp(false, b"x"), 9000, A));
            assert_eq!(bench.list().last().map(|r| r.generation), Some(3));
            bench.packet(&aimed(udp(false, b"x"), 9000, A));
            bench.engine.kill(
                bench.engine.table.from(600).expect("it"),
                bench.now,
                &mut bench.wire,
            );
        }
    }
    assert_eq!((pieces, cut.len()), (3, 0));
}

#[test]
fn a_reload_that_comes_before_the_last_has_ended_takes_over() {
    let mut bench = crowd(600);
    let earlier = Arc::new(policy("block to 198.51.100.7 id b"));
    bench.engine.reload(Arc::clone(&earlier), 2);
    let (mut walk, mut first) = (Walk::default(), Vec::new());
    bench.engine.rejudge(&mut walk, &mut first, bench.now, &mut bench.wire);
    assert_eq!(first.len(), 128);
    let second = bench.reload("block to 203.0.113.9 id a");
    assert!(
        first.iter().all(|Cut { flow: r, .. }| (r.generation, r.rule.as_deref()) == (2, Some("b")))
    );
    assert!(second.iter().all(|r| (r.generation, r.rule.as_deref()) == (3, Some("a"))));
    assert_eq!(second.len(), 300, "all of the one host");
    assert_eq!(bench.list().len(), 600 - 128 - 300, "of the other what was not judged between");
    assert_eq!(Arc::strong_count(&earlier), 1, "no flow keeps it");
}

#[test]
fn no_flow_keeps_a_policy_beyond_the_walk() {
    let mut bench = six_flows();
    let first = Arc::clone(bench.engine.policy());
    // Beside the open flows one that failed, one that connects and one that is held.
    bench.packet(&aimed(tcp(false, SYN, 1000, 0, b""), 5000, A));
    let id = bench.connect_asked();
    bench.input(Input::Failed(id, Failure::NetUnreachable));
    bench.packet(&aimed(tcp(false, SYN, 1000, 0, b""), 5001, A));
    let held = aimed(tcp(false, SYN, 1000, 0, b""), 5002, A);
    bench.engine.handle_packet(&held, Received::default(), bench.now, &mut bench.wire);
    assert_eq!((bench.engine.flows(), bench.engine.live()), (9, 8));
    bench.engine.reload(Arc::new(policy("allow id second")), 2);
    let (mut walk, mut cut) = (Walk::default(), Vec::new());
    bench.engine.rejudge(&mut walk, &mut cut, bench.now, &mut bench.wire);
    assert!(walk.is_over() && cut.is_empty());
    assert_eq!((bench.engine.flows(), bench.engine.live()), (9, 8));
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn a_comparison_tells_what_a_reload_would_do_and_does_nothing() {
    let mut bench = six_flows();
    let other = policy("block to 198.51.100.7 id b\nallow id same");
    let (mut walk, mut changed) = (Walk::default(), Vec::new());
    while !walk.is_over() {
        let add = |flow, decision, _| changed.push((flow, decision));
        bench.engine.compare(&other, None, None, &mut walk, bench.now, add);
    }
    let (flows, decisions): (Vec<Report>, Vec<_>) = changed.into_iter().unzip();
    assert!(
        decisions.iter().all(|d| d.verdict == Verdict::Block && other.rule_name(d.rule) == "b")
    );
    assert!(flows.iter().all(|r| r.generation == 1 && r.stage == Stage::Open));
    assert_eq!(bench.list().len(), 6);
    assert!(bench.wire.to_app.is_empty() && bench.outputs.is_empty());
    assert_eq!(who(&bench.reload("block to 198.51.100.7 id b\nallow id same")), who(&flows));
}

#[test]
fn hits_are_counted_by_rule_for_new_flows_since_the_policy_came() {
    let mut bench = Bench::with(config(), policy("allow udp to 203.0.113.9\nblock udp id no"));
    bench.packet(&aimed(udp(false, b"x"), 1, A));
    bench.packet(&aimed(udp(false, b"x"), 1, A));
    bench.packet(&aimed(udp(false, b"x"), 2, A));
    bench.packet(&aimed(udp(false, b"x"), 1, B));
    bench.packet(&aimed(echo(false, 1, 1), 1, B));
    assert_eq!(bench.engine.hits(), [2, 1, 1]);
    let names = [0, 1, 2].map(|at| bench.engine.policy().name_at(at).to_owned());
    assert_eq!(names, ["test.policy:2", "no", "default"]);
    bench.reload("allow udp");
    assert_eq!(bench.engine.hits(), [0, 0], "flows that were judged again are not new");
}

/// `cargo test --profile ci -p engine -- --ignored --nocapture judging_again`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it reads the clock to measure")]
fn judging_again_costs() {
    const FLOWS: u16 = 10_000;
    let rules = |verdict: &str| {
        let rule = |n: u32| {
            let [_, b, c, d] = n.to_be_bytes();
            format!("{verdict} tcp to 10.{b}.{c}.{d} port 443 id r{n}\n")
        };
        policy(&(0..100_000).map(rule).collect::<String>())
    };
    let mut bench = Bench::with(
        Config { flows: 20_000, half_open: 20_000, offload: true, ..config() },
        rules("allow"),
    );
    for flow in 0..FLOWS {
        let [high, low] = flow.to_be_bytes();
        let ring = || Box::leak(vec![0u8; 4096].into_boxed_slice());
        let syn = aimed(tcp(false, SYN, 1000, 0, b""), 1 + flow, [10, 0, high, low]);
        bench.packet(&syn);
        let id = bench.connect_asked();
        let rings = Rings { id: RingId(u32::from(flow)), to_far: ring(), to_app: ring() };
        bench.input(Input::Connected(id, 1, rings));
        bench.outputs.clear();
        bench.wire.to_app.clear();
    }
    let same = Arc::new(rules("allow"));
    let others = Arc::new(policy("default block"));
    for (name, policy, want) in [("none is cut", same, 0), ("all are cut", others, FLOWS)] {
        let began = std::time::Instant::now();
        bench.engine.reload(Arc::clone(&policy), bench.engine.generation() + 1);
        let swap = began.elapsed();
        let (mut walk, mut cut, mut longest) = (Walk::default(), Vec::new(), Duration::ZERO);
        while !walk.is_over() {
            let piece = std::time::Instant::now();
            bench.engine.rejudge(&mut walk, &mut cut, bench.now, &mut bench.wire);
            while bench.engine.poll_output().is_some() {}
            longest = longest.max(piece.elapsed());
        }
        println!(
            "{FLOWS} flows, 100,000 rules, {name}: {:?} in all, the swap {swap:?}, the longest piece {longest:?}",
            began.elapsed()
        );
        assert_eq!(cut.len(), usize::from(want), "{name}");
    }
}
