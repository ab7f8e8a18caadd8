//! Flows to the resolver inside; the service is played by hand.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::engine::Walk;
use crate::flow::State;
use crate::flow::table::Which;
use crate::policy::Verdict;
use crate::{ResolverService, Via};

const INSIDE: [u8; 4] = [198, 18, 0, 2];
const ELSEWHERE: [u8; 4] = [203, 0, 113, 9];

fn resolver(intercept: bool) -> Config {
    let resolver = ResolverService { addresses: vec![INSIDE.into()], intercept };
    let services = Services { resolver: Some(resolver), ..Services::default() };
    Config { services, ..config() }
}

/// An IPv4 packet from a client port to that host and port.
fn aimed_at(mut packet: Vec<u8>, port: u16, (host, to): ([u8; 4], u16)) -> Vec<u8> {
    packet[22..24].copy_from_slice(&to.to_be_bytes());
    aimed(packet, port, host)
}

fn question(port: u16, text: &[u8]) -> Vec<u8> {
    aimed_at(udp(false, text), port, (INSIDE, 53))
}

fn segment(port: u16, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    aimed_at(tcp(false, flags, sequence, acknowledgement, payload), port, (INSIDE, 53))
}

impl Bench {
    /// What went to the service since the last call.
    fn questions(&mut self) -> Vec<(FlowId, Vec<u8>)> {
        let of = |(way, payload): (Way, Vec<u8>)| match way {
            Way::Service(id) => (id, payload),
            other => panic!("{other:?}"),
        };
        self.wire.to_far.drain(..).map(of).collect()
    }

    fn answer(&mut self, id: FlowId, answer: &[u8]) {
        self.engine.handle_answer(id, answer, self.now, &mut self.wire);
        self.run();
    }

    /// Payloads of the datagrams for the app since the last call.
    fn answers(&mut self) -> Vec<Vec<u8>> {
        let packets = self.wire.to_app.drain(..);
        packets.inspect(|packet| assert_eq!(packet[9], UDP)).map(|p| p[28..].to_vec()).collect()
    }

    fn served(&mut self, port: u16) -> FlowId {
        self.packet(&segment(port, SYN, 1000, 0, b""));
        let at = self.outputs.iter().position(|output| matches!(output, Output::Serve(_)));
        let Output::Serve(id) = self.outputs.remove(at.expect("a service is asked for")) else {
            unreachable!()
        };
        id
    }
}

#[test]
fn which_flows_are_the_resolvers() {
    const PORT_53: (Option<u8>, u16) = (None, 53);
    let cases = [
        ("its address", INSIDE, PORT_53, [Some(Via::Dns), Some(Via::Dns)]),
        ("its address over TCP", INSIDE, (Some(TCP), 53), [Some(Via::Dns), Some(Via::Dns)]),
        ("another port of it", INSIDE, (None, 853), [Some(Via::Dns), Some(Via::Dns)]),
        ("an echo to it", INSIDE, (Some(ICMP), 0), [Some(Via::Dns), Some(Via::Dns)]),
        ("another address", [8, 8, 8, 8], PORT_53, [Some(Via::Direct), Some(Via::Dns)]),
        ("... over TCP", [8, 8, 8, 8], (Some(TCP), 53), [Some(Via::Direct), Some(Via::Dns)]),
        ("a loopback address", [127, 0, 0, 53], PORT_53, [None, Some(Via::Dns)]),
        ("a group", [224, 0, 0, 251], PORT_53, [Some(Via::Direct), Some(Via::Direct)]),
        ("another service", [8, 8, 8, 8], (None, 80), [Some(Via::Direct), Some(Via::Direct)]),
    ];
    for (name, host, (protocol, port), via) in cases {
        for (intercept, via) in [false, true].into_iter().zip(via) {
            let mut bench = Bench::new(resolver(intercept));
            let packet = match protocol {
                Some(TCP) => aimed_at(tcp(false, SYN, 1000, 0, b""), 1, (host, port)),
                Some(_) => aimed(echo(false, 1, 1), 1, host),
                None => aimed_at(udp(false, b"x"), 1, (host, port)),
            };
            let outcome = bench.packet(&packet);
            bench.input(Input::Shutdown);
            let reports = bench.outputs.iter().filter_map(|output| match output {
                Output::Report(report) => Some(report.via.clone()),
                _ => None,
            });
            let seen: Vec<Via> = reports.collect();
            assert_eq!(seen.last().cloned(), via, "{name}, intercept {intercept}");
            assert!(seen.iter().all(|it| Some(it) == via.as_ref()), "{name}");
            let want = via.as_ref().map_or(Outcome::Dropped(Dropped::Martian), |_| Outcome::Held);
            assert_eq!(outcome, want, "{name}");
        }
    }
}

#[test]
fn the_resolvers_address_has_one_open_port() {
    for (name, packet, want) in [
        ("UDP", aimed_at(udp(false, b"x"), 1, (INSIDE, 853)), (ICMP, 3, 3)),
        ("echo", aimed(echo(false, 1, 1), 1, INSIDE), (ICMP, 3, 1)),
        ("TCP", aimed_at(tcp(false, SYN, 1000, 0, b""), 1, (INSIDE, 853)), (TCP, 0, 0)),
    ] {
        let mut bench = Bench::new(resolver(false));
        bench.packet(&packet);
        let [told] = bench.wire.to_app.clone().try_into().expect("one answer");
        if want.0 == TCP {
            assert_eq!(Segment::parse(&told).flags, RST | ACK, "{name}");
        } else {
            assert_eq!((told[9], told[20], told[21]), want, "{name}");
        }
        assert!(bench.wire.to_far.is_empty(), "{name}");
        let [Output::Report(report)] = &bench.outputs[..] else { panic!("{:?}", bench.outputs) };
        let refused = matches!(report.reason, Some(Reason::Refused | Reason::Unreachable));
        assert!(refused && report.packets_sent == 1 && report.egress.is_none(), "{name}");
    }
}

#[test]
fn a_question_is_answered_without_a_socket() {
    for reports in [true, false] {
        let mut bench = Bench::new(Config { reports, ..resolver(false) });
        assert_eq!(bench.packet(&question(1, b"one")), Outcome::Held);
        assert_eq!(bench.packet(&question(1, b"two")), Outcome::ToEgress);
        let questions = bench.questions();
        let [(id, one), (same, two)] = &questions[..] else { panic!("{questions:?}") };
        assert_eq!((id, &one[..], &two[..]), (same, &b"one"[..], &b"two"[..]));
        let ends = bench.engine.ends(*id).expect("it lives");
        assert_eq!(ends, (address("198.18.0.1:1"), address("198.18.0.2:53")));
        bench.answer(*id, b"to two");
        let packet = bench.wire.to_app[0].clone();
        let from_to = [&INSIDE[..], &[198, 18, 0, 1], &[0, 53, 0, 1]].concat();
        assert_eq!([&packet[12..20], &packet[20..24]].concat(), from_to);
        assert_eq!(bench.answers(), [b"to two"]);
        bench.input(Input::Shutdown);
        assert!(bench.outputs.iter().all(|output| matches!(output, Output::Report(_))));
        if !reports {
            continue;
        }
        let Some(Output::Report(last)) = bench.outputs.last() else { panic!("a report") };
        assert_eq!((last.via.clone(), last.egress, last.egress_port), (Via::Dns, None, None));
        assert_eq!((last.sent, last.received), (6, 6));
        assert_eq!((last.packets_sent, last.packets_received), (2, 1));
        assert_eq!((last.verdict, last.stage), (Some(Verdict::Allow), Stage::Closed));
    }
}

#[test]
fn a_super_datagram_reaches_the_service_whole_with_its_step() {
    struct Steps(Vec<Option<u16>>);
    impl Sink for Steps {
        fn to_app(&mut self, _: usize, _: Meta, _: impl FnOnce(&mut [u8]) -> usize) {}

        fn to_far(&mut self, _: Way, datagram: Datagram<'_>) -> Result<(), Unsent> {
            self.0.push(datagram.segment);
            Ok(())
        }

        fn to_link(&mut self, _: LinkId, _: &[u8], _: &[u8], _: Meta) -> Result<(), Unsent> {
            Ok(())
        }
    }
    let mut bench = Bench::new(Config { reports: false, ..resolver(false) });
    let mut steps = Steps(Vec::new());
    let received = Received { segment: Some(20), ..Received::default() };
    for _ in 0..2 {
        bench.engine.handle_packet(&question(1, &[7; 50]), received, bench.now, &mut steps);
    }
    assert_eq!(steps.0, [Some(20), Some(20)], "the one that was held, and the next");
}

#[test]
fn the_verdict_comes_first_and_knows_no_source() {
    let user = |_| Some(Owner { uid: 1000, cgroup: None, of_proxy: false });
    for (rules, verdict) in [
        ("block to 198.18.0.2", Verdict::Block),
        ("block udp port 53", Verdict::Block),
        ("drop user 1000", Verdict::Drop),
        ("block user 1001", Verdict::Allow),
        // What a flow would leave with is not known, whatever a clause says of it.
        ("block from 192.0.2.1", Verdict::Allow),
        ("block from not 192.0.2.1", Verdict::Allow),
        ("block egress eth0", Verdict::Allow),
        ("block egress not eth0", Verdict::Allow),
        ("block client 198.18.0.0/24", Verdict::Block),
    ] {
        let mut bench = Bench::with(resolver(false), policy(rules));
        bench.owner = user;
        bench.packet(&question(1, b"x"));
        bench.packet(&question(1, b"x"));
        let questions = bench.questions().len();
        let told = bench.wire.to_app.len();
        let want = match verdict {
            Verdict::Allow => (2, 0),
            Verdict::Block => (0, 2),
            Verdict::Drop => (0, 0),
        };
        assert_eq!((questions, told), want, "{rules}");
        for packet in &bench.wire.to_app {
            assert_eq!((packet[9], packet[20], packet[21]), (ICMP, 3, 13), "{rules}");
        }
        let Some(Output::Report(report)) = bench.outputs.first() else { panic!("a report") };
        assert_eq!(
            (report.verdict, report.via.clone(), report.egress),
            (Some(verdict), Via::Dns, None)
        );
    }
    // A forwarded flow's source is its client.
    let forwarded = Own::Addresses { device: Vec::new(), host: Vec::new() };
    let own = Config { own: forwarded, ..resolver(false) };
    let mut bench = Bench::with(own, policy("block from 198.18.0.1"));
    bench.packet(&question(1, b"x"));
    assert!(bench.questions().is_empty());
}

#[test]
fn what_is_answered_stays_a_moment_and_what_is_owed_a_little_longer() {
    let seconds = Duration::from_secs;
    for (name, later, answered, ends) in [
        ("answered at once", false, true, 5),
        ("no answer at all", false, false, 5),
        ("owed for ever", true, false, 10),
        ("answered later", true, true, 7),
    ] {
        let mut bench = Bench::new(resolver(false));
        bench.packet(&question(1, b"x"));
        let (id, _) = bench.questions().remove(0);
        if later {
            bench.engine.await_answer(id, bench.now);
            bench.wait(seconds(2));
        }
        if answered {
            bench.answer(id, b"y");
            bench.engine.close_question(id, bench.now);
        }
        let left = seconds(ends).saturating_sub(bench.now.since(Instant::ZERO));
        bench.wait(left - Duration::from_millis(1));
        assert_eq!(bench.engine.flows(), 1, "{name}");
        bench.wait(Duration::from_millis(1));
        assert_eq!(bench.engine.flows(), 0, "{name}");
        assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(Reason::Idle))), "{name}");
        assert_eq!(bench.engine.poll_timeout(), None, "{name}: nobody wakes for it");
        // What comes now is too late.
        bench.wire.to_app.clear();
        bench.answer(id, b"z");
        bench.engine.close_question(id, bench.now);
        assert!(bench.wire.to_app.is_empty(), "{name}");
        let dropped = bench.engine.counters().replies_dropped[Dropped::Unsolicited as usize];
        assert_eq!(dropped, 1, "{name}");
    }
}

#[test]
fn an_answer_that_no_packet_holds_is_dropped_and_counted() {
    let mut bench = Bench::new(resolver(false));
    bench.packet(&question(1, b"x"));
    let (id, _) = bench.questions().remove(0);
    bench.answer(id, &vec![7; 65_508]);
    assert!(bench.wire.to_app.is_empty());
    let counters = bench.engine.counters();
    assert_eq!(counters.replies_dropped[Dropped::Malformed as usize], 1);
    bench.answer(id, &vec![7; 65_507]);
    assert_eq!(bench.answers()[0].len(), 65_507);
}

#[test]
fn askers_give_way_among_themselves_the_answered_first() {
    // Of 64 flows 16 may ask.
    let mut bench = Bench::new(resolver(false));
    let (stays, _) = open(&mut bench, false);
    let mut owed = Vec::new();
    for port in 0..40u16 {
        bench.wait(Duration::from_millis(10));
        bench.packet(&question(2000 + port, b"x"));
        let (id, _) = bench.questions().remove(0);
        if port % 8 == 0 {
            bench.engine.await_answer(id, bench.now);
            owed.push(id);
        } else {
            bench.answer(id, b"y");
        }
        let count = |list| bench.engine.table.count(list);
        assert_eq!(count(Which::Asking), owed.len(), "none of them gave way");
        assert!(count(Which::Asking) + count(Which::Served) <= 16);
    }
    assert_eq!(bench.engine.flows(), 17);
    for id in &owed {
        bench.answer(*id, b"y");
        bench.engine.close_question(*id, bench.now);
    }
    assert_eq!(bench.engine.table.count(Which::Served), 16);
    // When all are owed an answer, the oldest goes.
    for port in 0..17 {
        bench.packet(&question(3000 + port, b"x"));
        let (id, _) = bench.questions().remove(0);
        bench.engine.await_answer(id, bench.now);
    }
    assert_eq!(bench.engine.table.count(Which::Asking), 16);
    // And a full table takes the answered ones first, the connection not at all.
    let mut bench = Bench::new(resolver(false));
    let _ = (stays, open(&mut bench, false));
    bench.packet(&question(1, b"x"));
    for port in 0..70u16 {
        bench.packet(&aimed(udp(false, b"x"), 4000 + port, ELSEWHERE));
        let gone = bench.engine.table.count(Which::Served) == 0;
        assert_eq!(gone, port >= 62, "the first to go");
        if gone {
            break;
        }
    }
    assert!(bench.list().iter().any(|report| report.client.port() == 40_000));
}

#[test]
fn a_connection_to_the_service_has_rings_and_no_socket() {
    let mut bench = Bench::new(resolver(false));
    let id = bench.served(1);
    assert!(bench.wire.to_app.is_empty(), "no SYN-ACK before the service took it");
    bench.input(Input::Connected(id, 0, rings(1)));
    let next = bench.take_app()[0].sequence.wrapping_add(1);
    bench.packet(&segment(1, ACK, 1001, next, b"question"));
    assert_eq!(read(&mut bench, id), b"question");
    write(&mut bench, id, b"answer");
    let [report] = bench.list().try_into().expect("one flow");
    assert_eq!((report.via, report.egress_port, report.stage), (Via::Dns, None, Stage::Open));
    bench.packet(&segment(1, ACK | FIN, 1009, next + 6, b""));
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::ShutdownFar(f) if *f == id)));
    bench.input(Input::FarEnded(id));
    bench.packet(&segment(1, ACK, 1010, next + 7, b""));
    assert_eq!(bench.engine.flows(), 0);
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::Close(f) if *f == id)));
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::Release(RingId(1), _))));
}

#[test]
fn an_idle_connection_to_the_service_is_ended_in_order() {
    for app_closes in [true, false] {
        let mut bench = Bench::new(resolver(false));
        let id = bench.served(1);
        bench.input(Input::Connected(id, 0, rings(1)));
        let next = bench.take_app()[0].sequence.wrapping_add(1);
        bench.packet(&segment(1, ACK, 1001, next, b"x"));
        read(&mut bench, id);
        bench.wire.to_app.clear();
        bench.wait(Duration::from_millis(29_999));
        assert!(bench.wire.to_app.is_empty(), "not yet");
        bench.wait(Duration::from_millis(1));
        let [fin] = bench.take_app().try_into().expect("a FIN");
        assert_eq!(fin.flags, FIN | ACK);
        if app_closes {
            bench.packet(&segment(1, ACK | FIN, 1002, next + 1, b""));
        } else {
            bench.packet(&segment(1, ACK, 1002, next + 1, b""));
            bench.wait(Duration::from_millis(9_999));
            assert_eq!(bench.engine.flows(), 1);
            bench.wait(Duration::from_millis(1));
            assert_eq!(bench.take_app().pop().expect("a reset").flags & RST, RST);
        }
        assert_eq!(bench.engine.flows(), 0, "the app closes: {app_closes}");
        assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(Reason::Idle))));
    }
}

#[test]
fn a_service_that_takes_no_connection_refuses_it() {
    let mut bench = Bench::new(resolver(false));
    let id = bench.served(1);
    bench.input(Input::Failed(id, Failure::Refused));
    assert_eq!(bench.take_app().pop().expect("a reset").flags, RST | ACK);
    assert_eq!(bench.engine.flows(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    /// A question from the `n`th port, and what the service makes of it.
    Question(u16, Manner),
    /// The `n`th open question is answered, or closed without an answer.
    Reply(usize, bool),
    /// Somebody ends the flow of the `n`th port.
    Kill(u16),
    /// Another policy comes.
    Reload(usize),
    /// So many flows are judged again.
    Judge(usize),
    /// Time passes, in milliseconds.
    Wait(u64),
}

#[derive(Debug, Clone, Copy)]
enum Manner {
    Answers,
    Later,
    Ignores,
    /// Its answer fits no packet.
    Overdoes,
}

const PORTS: u16 = 24;
const POLICIES: [&str; 4] = [
    "allow udp",
    "block udp to 198.18.0.2 user 1000",
    "drop client 198.18.0.1 user not 1000",
    "block from 192.0.2.1\nblock port 53 user unknown",
];

fn step() -> impl Strategy<Value = Step> {
    let manner = select(vec![
        Manner::Answers,
        Manner::Answers,
        Manner::Later,
        Manner::Later,
        Manner::Ignores,
        Manner::Overdoes,
    ]);
    prop_oneof![
        10 => (0..PORTS, manner).prop_map(|(port, manner)| Step::Question(port, manner)),
        5 => (0..64usize, any::<bool>()).prop_map(|(at, whole)| Step::Reply(at, whole)),
        1 => (0..PORTS).prop_map(Step::Kill),
        1 => (0..POLICIES.len()).prop_map(Step::Reload),
        2 => (1..9usize).prop_map(Step::Judge),
        3 => (1..4_000u64).prop_map(Step::Wait),
    ]
}

/// The questions of the service's flows as a plain map.
struct Model {
    bench: Bench,
    /// Open questions in the order in which they came.
    open: VecDeque<FlowId>,
    walk: Walk,
    packets: u64,
}

impl Model {
    fn step(&mut self, step: &Step) {
        let bench = &mut self.bench;
        match *step {
            Step::Question(port, manner) => {
                let outcome = bench.packet(&question(1000 + port, b"q"));
                self.packets += 1;
                let questions = bench.questions();
                let allowed = match outcome {
                    Outcome::ToEgress => true,
                    Outcome::Held => !questions.is_empty(),
                    Outcome::ToApp | Outcome::ToLink | Outcome::Dropped(_) => false,
                };
                assert_eq!(questions.len(), usize::from(allowed), "{outcome:?}");
                bench.wire.to_app.clear();
                for (id, _) in questions {
                    match manner {
                        Manner::Answers => {
                            bench.answer(id, b"answer");
                            assert_eq!(bench.answers(), [b"answer"]);
                        }
                        Manner::Later => {
                            bench.engine.await_answer(id, bench.now);
                            self.open.push_back(id);
                        }
                        Manner::Ignores => {}
                        Manner::Overdoes => {
                            bench.answer(id, &vec![0; 70_000]);
                            assert!(bench.answers().is_empty());
                        }
                    }
                }
            }
            Step::Reply(at, whole) => {
                if self.open.is_empty() {
                    return;
                }
                let id = self.open.remove(at % self.open.len()).expect("one of them");
                let lives = bench.engine.ends(id).is_some();
                bench.wire.to_app.clear();
                if whole {
                    bench.answer(id, b"late");
                    assert_eq!(bench.answers().len(), usize::from(lives));
                }
                bench.engine.close_question(id, bench.now);
            }
            Step::Kill(port) => {
                let of_port = |r: &crate::Report| r.client.port() == 1000 + port;
                let number = bench.list().into_iter().find(of_port).map(|report| report.number);
                let Some(number) = number else { return };
                let id = bench.engine.seek(number, &mut Walk::default()).expect("it lives");
                bench.engine.kill(id, bench.now, &mut bench.wire);
                bench.run();
            }
            Step::Reload(at) => {
                let generation = bench.engine.generation() + 1;
                bench.engine.reload(Arc::new(policy(POLICIES[at])), generation);
                self.walk = Walk::default();
            }
            Step::Judge(most) => {
                let (now, wire) = (bench.now, &mut bench.wire);
                bench.engine.rejudge_some(most, &mut self.walk, &mut Vec::new(), now, wire);
                bench.run();
            }
            Step::Wait(millis) => bench.wait(Duration::from_millis(millis)),
        }
        self.agree();
    }

    fn agree(&mut self) {
        let engine = &mut self.bench.engine;
        self.open.retain(|id| engine.ends(*id).is_some());
        let mut owed: BTreeMap<FlowId, u32> = BTreeMap::new();
        for id in &self.open {
            *owed.entry(*id).or_default() += 1;
        }
        let mut counts = [0; 3];
        for id in engine.table.ids() {
            match engine.table.get(id).expect("it lives").state {
                State::Questions { awaited } => {
                    assert_eq!(awaited, owed.remove(&id).unwrap_or(0));
                    counts[usize::from(awaited > 0)] += 1;
                }
                State::Answered(_) => counts[2] += 1,
                ref other => panic!("{other:?}"),
            }
        }
        assert!(owed.is_empty(), "a flow over which nobody waits: {owed:?}");
        let lists = [Which::Served, Which::Asking, Which::HalfOpen];
        assert_eq!(lists.map(|list| engine.table.count(list)), counts);
        assert!(counts[0] + counts[1] <= 16);
        assert_eq!(engine.live(), counts[0] + counts[1]);
        assert_eq!(total(engine.counters()), self.packets);
        assert_eq!(engine.counters().packets_in, self.packets);
        let told = self.bench.outputs.drain(..).all(|output| match output {
            Output::Report(report) => report.via == Via::Dns && report.egress.is_none(),
            _ => false,
        });
        assert!(told, "nothing is asked of the host");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn questions_and_answers_in_any_order(steps in prop::collection::vec(step(), 1..150)) {
        let mut bench = Bench::new(resolver(true));
        bench.owner = |client| {
            client.port().is_multiple_of(2).then_some(Owner { uid: 1000, cgroup: None, of_proxy: false })
        };
        let mut model = Model { bench, open: VecDeque::new(), walk: Walk::default(), packets: 0 };
        for step in &steps {
            model.step(step);
        }
        model.step(&Step::Wait(60_000));
        prop_assert_eq!(model.bench.engine.flows(), 0, "all of them are over");
        prop_assert_eq!(model.bench.engine.poll_timeout(), None);
    }
}

/// `cargo test --release -p engine -- --ignored --nocapture what_a_question_costs`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it reads the clock to measure")]
fn what_a_question_costs() {
    /// Counts, and copies as a device would.
    struct Counting(Vec<u8>, Option<FlowId>);
    impl Sink for Counting {
        fn to_app(&mut self, max: usize, _: Meta, write: impl FnOnce(&mut [u8]) -> usize) {
            write(&mut self.0[..max]);
        }

        fn to_far(&mut self, way: Way, _: Datagram<'_>) -> Result<(), Unsent> {
            if let Way::Service(id) = way {
                self.1 = Some(id);
            }
            Ok(())
        }

        fn to_link(&mut self, _: LinkId, _: &[u8], _: &[u8], _: Meta) -> Result<(), Unsent> {
            Ok(())
        }
    }
    const COUNT: u32 = 400_000;
    let trusted = Received { checksum: crate::Checksum::Trusted, segment: None };
    for (name, ports) in [("one flow", 1), ("a new flow each", u32::MAX)] {
        let base = resolver(false);
        let mut bench =
            Bench::new(Config { flows: 65_536, half_open: 16_384, offload: true, ..base });
        let mut sink = Counting(vec![0; 65_536], None);
        let mut packet = question(1, &[7; 40]);
        let began = std::time::Instant::now();
        for number in 0..COUNT {
            let port = number % ports;
            packet[20..22].copy_from_slice(&(port as u16).max(1).to_be_bytes());
            packet[14..16].copy_from_slice(&((port >> 16) as u16).to_be_bytes());
            bench.now = bench.now + Duration::from_micros(5);
            packet[10..12].fill(0);
            let checksum = finish(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            bench.engine.handle_packet(&packet, trusted, bench.now, &mut sink);
            while let Some(output) = bench.engine.poll_output() {
                if let Output::Owner(id, ..) = output {
                    bench.engine.handle(Input::Owner(id, None), bench.now, &mut sink);
                }
            }
            let id = sink.1.take().expect("it was asked");
            bench.engine.handle_answer(id, &packet[28..], bench.now, &mut sink);
            if bench.engine.poll_timeout().is_some_and(|(at, _)| at <= bench.now) {
                bench.engine.handle_timeout(bench.now, &mut sink);
            }
        }
        let nanos = began.elapsed().as_nanos() as f64 / f64::from(COUNT);
        println!("{name}: {nanos:.0} ns for a question and its answer");
    }
}

/// Where the resolver answers changes with a reload: what leads elsewhere by it ends, in silence
/// or by RST, and its next packet goes where it should.
#[test]
fn the_resolver_moves() {
    const ELSEWHERE_PORT: u16 = 53;
    let at = |host: [u8; 4], intercept| ResolverService { addresses: vec![host.into()], intercept };
    // A question to `host`, whose flow is the resolver's before and after, or is not.
    for (name, host, before, after, via) in [
        ("it stays", INSIDE, at(INSIDE, false), at(INSIDE, false), [Via::Dns, Via::Dns]),
        ("it goes", INSIDE, at(INSIDE, false), at(ELSEWHERE, false), [Via::Dns, Via::Direct]),
        ("it comes", ELSEWHERE, at(INSIDE, false), at(ELSEWHERE, false), [Via::Direct, Via::Dns]),
        ("all", ELSEWHERE, at(INSIDE, false), at(INSIDE, true), [Via::Direct, Via::Dns]),
        ("no longer all", ELSEWHERE, at(INSIDE, true), at(INSIDE, false), [Via::Dns, Via::Direct]),
        ("all as before", ELSEWHERE, at(INSIDE, true), at(ELSEWHERE, true), [Via::Dns, Via::Dns]),
    ] {
        let moves = via[0] != via[1];
        let services = Services { resolver: Some(before), ..Services::default() };
        let mut bench = Bench::new(Config { services, ..config() });
        let to = (host, ELSEWHERE_PORT);
        bench.packet(&aimed_at(udp(false, b"x"), 1, to));
        bench.packet(&aimed_at(tcp(false, SYN, 1000, 0, b""), 2, to));
        let connecting = bench.outputs.iter().find_map(|output| match output {
            Output::Serve(id) | Output::Connect(id, ..) => Some(*id),
            _ => None,
        });
        let id = connecting.expect("a connection");
        bench.input(Input::Connected(id, 1, rings(2)));
        let syn_ack = bench.take_app().pop().expect("a SYN-ACK");
        let next = syn_ack.sequence.wrapping_add(1);
        bench.packet(&aimed_at(tcp(false, ACK, 1001, next, b""), 2, to));
        // One that connects still.
        bench.packet(&aimed_at(tcp(false, SYN, 5000, 0, b""), 3, to));
        // And one of nobody's.
        bench.packet(&aimed_at(udp(false, b"x"), 4, ([192, 0, 2, 7], 80)));
        let vias =
            |bench: &Bench| -> Vec<Via> { bench.list().iter().map(|r| r.via.clone()).collect() };
        let first = || via[0].clone();
        assert_eq!(vias(&bench), [first(), first(), first(), Via::Direct], "{name}");
        bench.wire.to_app.clear();
        bench.wire.to_far.clear();
        bench.outputs.clear();

        // Asked first, nothing changes.
        let (mut walk, mut would) = (Walk::default(), 0);
        let same = policy("default allow");
        while !walk.is_over() {
            let count = |_, _, _| would += 1;
            bench.engine.compare(&same, Some(&after), None, &mut walk, bench.now, count);
        }
        assert_eq!((would, bench.engine.flows()), (if moves { 3 } else { 0 }, 4), "{name}");

        bench.engine.set_resolver(after);
        let cut = bench.reload("default allow");
        assert_eq!(cut.len(), would, "{name}");
        assert!(cut.iter().all(|r| r.reason == Some(Reason::PolicyChanged)), "{name}");
        let told = std::mem::take(&mut bench.wire.to_app);
        assert!(told.iter().all(|packet| packet[9] == TCP), "datagrams end in silence: {name}");
        let resets = told.iter().filter(|p| Segment::parse(p).flags & RST != 0).count();
        assert_eq!(resets, usize::from(moves), "{name}: the open one alone");
        bench.outputs.clear();

        // The next packets; the SYN comes again by itself.
        bench.packet(&aimed_at(udp(false, b"y"), 1, to));
        bench.packet(&aimed_at(tcp(false, SYN, 5000, 0, b""), 3, to));
        assert!(
            bench.list().iter().filter(|r| r.destination.port() == 53).all(|r| r.via == via[1])
        );
        let served = bench.wire.to_far.iter().any(|(way, _)| matches!(way, Way::Service(_)));
        assert_eq!(served, via[1] == Via::Dns, "{name}");
    }
}

/// A port of the resolver's address that was refused is not refused from memory when it is
/// somebody else's.
#[test]
fn what_was_refused_of_the_resolvers_address_is_forgotten_with_it() {
    let mut bench = Bench::new(resolver(false));
    let packet = aimed_at(udp(false, b"x"), 1, (INSIDE, 853));
    bench.packet(&packet);
    assert_eq!(bench.wire.to_app.len(), 1, "refused");
    let away = ResolverService { addresses: vec![ELSEWHERE.into()], intercept: false };
    bench.engine.set_resolver(away);
    assert!(bench.reload("default allow").is_empty(), "it was over");
    bench.wire.to_app.clear();
    bench.packet(&packet);
    assert!(bench.wire.to_app.is_empty());
    assert_eq!(bench.list().len(), 1);
}
