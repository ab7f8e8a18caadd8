//! Flows whose name only their first bytes tell.

use super::*;
use crate::engine::Walk;
use crate::sniff::tests::sni;
use crate::{Learned, NameFrom, Report, ResolverId};

const TO: [u8; 4] = [203, 0, 113, 9];
const BLOCKS: &str = "block to *.bad.example id bad";

fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

fn learn(bench: &mut Bench, name: &str) {
    let addresses = vec![(IpAddr::from(TO), ResolverId::UPSTREAM.into())];
    let ttl = Duration::from_secs(60);
    bench.engine.learn(&[Learned { name: name.into(), addresses, ttl }], bench.now);
}

impl Bench {
    fn asks_for_rings(&mut self) -> Option<FlowId> {
        let at = self.outputs.iter().position(|output| matches!(output, Output::Rings(_)))?;
        match self.outputs.remove(at) {
            Output::Rings(id) => Some(id),
            _ => None,
        }
    }

    fn asks_to_connect(&self) -> bool {
        let connects = |o: &Output| matches!(o, Output::Connect(..) | Output::ConnectVia(..));
        self.outputs.iter().any(connects)
    }

    /// A SYN that is answered to see the first bytes; the flow and our next sequence number.
    fn peeked(&mut self) -> (FlowId, u32) {
        assert_eq!(self.packet(&tcp(false, SYN, 1000, 0, b"")), Outcome::Held);
        let id = self.asks_for_rings().expect("rings are asked for");
        assert!(self.wire.to_app.is_empty() && !self.asks_to_connect());
        self.input(Input::Lent(id, Some(rings(7))));
        let [syn_ack] = self.take_app().try_into().expect("one SYN-ACK");
        assert_eq!((syn_ack.flags, syn_ack.acknowledgement), (SYN | ACK, 1001));
        let next = syn_ack.sequence.wrapping_add(1);
        assert_eq!(self.packet(&tcp(false, ACK, 1001, next, b"")), Outcome::Held);
        assert!(!self.asks_to_connect(), "nothing leaves before the verdict");
        (id, next)
    }

    /// The app's first bytes.
    fn says(&mut self, next: u32, bytes: &[u8]) {
        let mut sequence = 1001_u32;
        for piece in bytes.chunks(1000) {
            self.packet(&tcp(false, ACK, sequence, next, piece));
            sequence += piece.len() as u32;
        }
    }

    fn last_report(&self) -> &Report {
        let report = |output: &'_ Output| matches!(output, Output::Report(_));
        let last = self.outputs.iter().rfind(|output| report(output));
        match last {
            Some(Output::Report(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    fn was_reset(&mut self) -> bool {
        self.take_app().iter().any(|segment| segment.flags & RST != 0)
    }

    fn gave_back(&self) -> usize {
        let back = |o: &&Output| matches!(o, Output::Release(RingId(7), _));
        self.outputs.iter().filter(back).count()
    }
}

#[test]
fn the_first_bytes_choose_the_verdict() {
    for (what, rules, bytes, name, rule) in [
        ("SNI, blocked", BLOCKS, sni("x.bad.example"), Some("x.bad.example"), "bad"),
        ("SNI, allowed", BLOCKS, sni("good.example"), Some("good.example"), "default"),
        ("Host, blocked", BLOCKS, request("X.bad.example:80"), Some("x.bad.example"), "bad"),
        ("Host, allowed", BLOCKS, request("good.example"), Some("good.example"), "default"),
        ("an address", BLOCKS, request("203.0.113.9"), None, "default"),
        ("no known protocol", BLOCKS, vec![0, 0, 0, 8], None, "default"),
        ("dropped", "drop to bad.example id bad", sni("bad.example"), Some("bad.example"), "bad"),
        (
            "only what is named",
            "allow to good.example id good\nallow to 192.0.2.1\ndefault block",
            sni("other.example"),
            Some("other.example"),
            "default",
        ),
        ("without a name", "block to unknown-name id bad", vec![0], None, "bad"),
    ] {
        let mut bench = Bench::with(config(), policy(rules));
        let (id, next) = bench.peeked();
        bench.says(next, &bytes);
        let refused = rule == "bad" || (rules.contains("default block") && rule == "default");
        assert_eq!(bench.asks_to_connect(), !refused, "{what}");
        assert_eq!(bench.was_reset(), refused, "{what}");
        if !refused {
            let connecting = bench.connect_asked();
            assert_eq!(connecting, id);
            bench.input(Input::Joined(id, 5000));
            assert_eq!(read(&mut bench, id), bytes, "{what}: every byte is there");
        }
        assert_eq!(bench.gave_back(), usize::from(refused), "{what}");
        let report = bench.last_report();
        assert_eq!(report.name.as_ref().map(|name| &*name.text), name, "{what}");
        assert_eq!(report.rule.as_deref(), Some(rule), "{what}");
        assert!(report.peeked, "{what}");
        assert_eq!(report.reason, refused.then_some(Reason::Policy), "{what}");
        assert_eq!(bench.engine.live(), usize::from(!refused), "{what}");
    }
}

#[test]
fn a_peeked_connection_is_one_like_every_other() {
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    let hello = sni("good.example");
    let (first, rest) = hello.split_at(900);
    bench.packet(&tcp(false, ACK, 1001, next, first));
    assert!(!bench.asks_to_connect(), "half a ClientHello");
    let [flow] = bench.list().try_into().expect("one flow");
    assert_eq!((flow.stage, flow.verdict, flow.name), (Stage::Held, None, None));
    bench.packet(&tcp(false, ACK, 1901, next, rest));
    assert_eq!(bench.connect_asked(), id);
    let [flow] = bench.list().try_into().expect("one flow");
    assert_eq!(flow.name.map(|name| name.from), Some(NameFrom::Sni));
    assert_eq!(flow.stage, Stage::Connecting);
    // More comes before the far side has answered.
    let at = 1001 + hello.len() as u32;
    bench.packet(&tcp(false, ACK, at, next, b"early"));
    assert!(bench.engine.is_delivering(bench.now, Duration::ZERO));
    bench.take_app();
    bench.input(Input::Joined(id, 5000));
    assert_eq!(bench.last_report().stage, Stage::Open);
    assert_eq!(bench.last_report().egress_port, Some(5000));
    assert_eq!(read(&mut bench, id), [&hello[..], b"early"].concat());
    write(&mut bench, id, b"hello");
    assert!(bench.take_app().iter().any(|segment| segment.payload == b"hello"));
    bench.packet(&tcp(false, FIN | ACK, at + 5, next + 5, b""));
    assert!(bench.outputs.iter().any(|output| matches!(output, Output::ShutdownFar(_))));
    bench.input(Input::FarEnded(id));
    bench.packet(&tcp(false, ACK, at + 6, next + 6, b""));
    assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(Reason::AppClosed))));
    assert_eq!((bench.engine.flows(), bench.gave_back()), (0, 1));
}

/// Who waits for the far side's greeting waits 300 ms longer, and no more.
#[test]
fn who_speaks_second_is_not_waited_for() {
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    bench.wait(Duration::from_millis(299));
    assert!(!bench.asks_to_connect());
    bench.wait(Duration::from_millis(1));
    assert_eq!(bench.connect_asked(), id);
    bench.input(Input::Joined(id, 5000));
    assert_eq!((&bench.last_report().name, bench.last_report().peeked), (&None, true));
    write(&mut bench, id, b"220 mail.example\r\n");
    assert_eq!(bench.take_app().last().expect("a banner").payload, b"220 mail.example\r\n");
    // What it says then names nothing any more.
    bench.says(next, &request("x.bad.example"));
    assert_eq!(bench.list()[0].name, None);
    assert_eq!(read(&mut bench, id), request("x.bad.example"));
}

#[test]
fn what_never_becomes_a_name_is_not_waited_for() {
    let mut long = b"GET / HTTP/1.1\r\nCookie: ".to_vec();
    long.resize(crate::sniff::MOST, b'x');
    for (what, bytes) in [("16 KiB", long), ("another protocol", b"SSH-2.0-x\r\n".to_vec())] {
        let mut bench = Bench::with(config(), policy(BLOCKS));
        let (id, next) = bench.peeked();
        bench.says(next, &bytes);
        assert_eq!(bench.connect_asked(), id, "{what}");
    }
    // The app's end, before its request was whole.
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    bench.packet(&tcp(false, FIN | ACK, 1001, next, b"GET /"));
    assert_eq!(bench.connect_asked(), id);
    bench.input(Input::Joined(id, 1));
    assert_eq!(read(&mut bench, id), b"GET /");
    assert!(bench.outputs.iter().any(|output| matches!(output, Output::ShutdownFar(_))));
}

/// The far side's failure, when the app takes itself for connected.
#[test]
fn what_fails_behind_a_peek_is_a_reset() {
    for (failure, reason) in [
        (Failure::Refused, Reason::Refused),
        (Failure::NetUnreachable, Reason::Unreachable),
        (Failure::HostUnreachable, Reason::Unreachable),
        (Failure::TimedOut, Reason::TimedOut),
        (Failure::Exhausted, Reason::Limit),
    ] {
        let mut bench = Bench::with(config(), policy(BLOCKS));
        let (id, next) = bench.peeked();
        bench.says(next, &sni("good.example"));
        bench.connect_asked();
        bench.take_app();
        bench.input(Input::Failed(id, failure));
        assert!(bench.was_reset(), "{failure:?}");
        assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(reason))), "{failure:?}");
        assert_eq!((bench.engine.flows(), bench.gave_back()), (0, 1), "{failure:?}");
    }
}

#[test]
fn whatever_ends_a_peek_gives_everything_back() {
    type End = fn(&mut Bench, FlowId, u32);
    let reset: End = |bench, _, at| {
        bench.packet(&tcp(false, RST, at, 0, b""));
    };
    let kill: End = |bench, id, _| {
        bench.engine.kill(id, bench.now, &mut bench.wire);
        bench.run();
    };
    let broken: End = |bench, id, _| bench.input(Input::Broken(id));
    let forgotten: End = |bench, id, _| {
        bench.engine.forget(id);
        bench.run();
    };
    let memory: End = |bench, _, _| bench.input(Input::EvictIdle);
    let flood: End = |bench, _, _| {
        for port in 100..116 {
            bench.now = bench.now + Duration::from_millis(1);
            bench.packet(&aimed(tcp(false, SYN, 1, 0, b""), port, TO));
        }
    };
    let shutdown: End = |bench, _, _| bench.input(Input::Shutdown);
    for (what, end, tells) in [
        ("the app's reset", reset, false),
        ("an order", kill, true),
        ("a failure inside", broken, true),
        ("a second one", forgotten, false),
        ("short memory", memory, true),
        ("a flood of SYNs", flood, true),
        ("the end of all", shutdown, true),
    ] {
        for connecting in [false, true] {
            let what = format!("{what}, connecting: {connecting}");
            let mut bench = Bench::with(config(), policy(BLOCKS));
            let (id, next) = bench.peeked();
            let mut at = 1001;
            if connecting {
                let bytes = request("a.example");
                bench.says(next, &bytes);
                bench.connect_asked();
                at += bytes.len() as u32;
            }
            bench.take_app();
            end(&mut bench, id, at);
            assert_eq!(bench.gave_back(), 1, "{what}");
            assert!(bench.engine.table.get(id).is_none(), "{what}");
            assert_eq!(bench.was_reset(), tells, "{what}");
            let closes = bench.outputs.iter().any(|o| matches!(o, Output::Close(it) if *it == id));
            assert_eq!(closes, connecting || what.starts_with("a second"), "{what}");
            // What comes late goes nowhere.
            bench.input(Input::Lent(id, Some(rings(8))));
            bench.input(Input::Joined(id, 1));
            let spare = |o: &Output| matches!(o, Output::Release(RingId(8), 0));
            assert!(bench.outputs.iter().any(spare), "{what}");
        }
    }
}

/// Without its name there is no verdict: nothing leaves.
#[test]
fn no_memory_for_a_peek_is_a_refusal() {
    for answered in [true, false] {
        let mut bench = Bench::with(config(), policy(BLOCKS));
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let id = bench.asks_for_rings().expect("a peek");
        if answered {
            bench.input(Input::Lent(id, None));
        } else {
            bench.wait(Duration::from_secs(1));
        }
        assert!(bench.was_reset() && !bench.asks_to_connect());
        assert_eq!(bench.reasons(), [(Stage::Closed, Some(Reason::Limit))]);
        assert!(!bench.last_report().peeked, "the app was told nothing");
    }
}

/// A driver that has taken rings all the same gets them back.
#[test]
fn spare_rings_are_given_back() {
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    bench.says(next, &sni("a.example"));
    bench.connect_asked();
    assert!(bench.engine.has_rings(id));
    bench.input(Input::Connected(id, 5000, rings(8)));
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::Release(RingId(8), 0))));
    assert_eq!(bench.last_report().stage, Stage::Open);
    assert_eq!(read(&mut bench, id), sni("a.example"));
    assert!(!bench.engine.has_rings(id), "it is open now");
}

#[test]
fn no_name_is_asked_for_that_changes_nothing() {
    for (what, rules) in [
        ("no names in the policy", "block to 198.51.100.0/24\nblock from 192.0.2.9"),
        ("only resolve asks for names", "resolve *.corp.example using none"),
        ("the same verdict", "allow to good.example id good"),
        ("the same verdict without a match", "block to bad.example\ndefault block"),
        ("decided before", "allow to 203.0.113.9\nblock to bad.example"),
        ("another port's", "block tcp to bad.example port 443"),
        ("another protocol's", "block udp to bad.example"),
        ("another owner's", "block to bad.example user 1000"),
        ("another source's", "block to bad.example from 192.0.2.200"),
        ("refused in any case", "allow to good.example port 443\ndefault block"),
    ] {
        let mut bench = Bench::with(config(), policy(rules));
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        assert_eq!(bench.asks_for_rings(), None, "{what}");
        assert_eq!(bench.asks_to_connect(), !rules.contains("default block"), "{what}");
    }
    // Only TCP has first bytes.
    for packet in [udp(false, b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"), echo(false, 1, 1)] {
        let mut bench = Bench::with(config(), policy("block to not good.example"));
        bench.packet(&packet);
        assert_eq!(bench.asks_for_rings(), None);
        assert_eq!(bench.list()[0].stage, Stage::Open);
    }
    // The name is known.
    let mut bench = Bench::with(config(), policy(BLOCKS));
    learn(&mut bench, "good.example");
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    assert!(bench.asks_for_rings().is_none() && bench.asks_to_connect());
    // A policy that learns no names later: no peek, and the first failure is the far side's.
    let mut bench = Bench::new(config());
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let id = bench.connect_asked();
    bench.input(Input::Failed(id, Failure::Refused));
    assert!(bench.was_reset() && !bench.last_report().peeked);
}

#[test]
fn several_names_are_told_apart_where_they_differ() {
    let both = ["x.bad.example", "good.example"];
    for (what, rules, peeks) in [
        ("they differ", BLOCKS, true),
        ("they do not", "block to other.example", false),
        ("another port's", "block to bad.example port 1", false),
    ] {
        for last in [0, 1] {
            let mut bench = Bench::with(config(), policy(rules));
            learn(&mut bench, both[1 - last]);
            learn(&mut bench, both[last]);
            if !peeks {
                bench.packet(&tcp(false, SYN, 1000, 0, b""));
                assert_eq!(bench.asks_for_rings(), None, "{what}");
                let name = bench.list()[0].name.clone().expect("a name");
                assert_eq!((&*name.text, name.from), (both[last], NameFrom::Dns), "{what}");
                continue;
            }
            for (bytes, name, refused) in [
                (sni("good.example"), Some("good.example"), false),
                (sni("x.bad.example"), Some("x.bad.example"), true),
                (vec![0], None, false),
            ] {
                let (_, next) = bench.peeked();
                bench.says(next, &bytes);
                assert_eq!(bench.was_reset(), refused, "{what}");
                if !refused {
                    let id = bench.connect_asked();
                    bench.input(Input::Failed(id, Failure::Refused));
                }
                let report = bench.last_report();
                assert_eq!(report.name.as_ref().map(|name| &*name.text), name, "{what}");
                assert_eq!(report.resolvers.len(), 1, "the address was learned all the same");
                bench.outputs.clear();
                bench.take_app();
            }
            // Datagrams have the name that was asked last.
            bench.packet(&udp(false, b"x"));
            let name = bench.last_report().name.clone().expect("a name");
            assert_eq!(&*name.text, both[last], "{what}");
        }
    }
}

/// A route that asks for names: by a proxy, and by a tunnel, which takes no bytes.
#[test]
fn the_first_bytes_choose_the_way_out() {
    const CORP: &str = "x.corp.example";
    for (what, rules, name, want) in [
        ("a proxy", "route to *.corp.example via office", CORP, "proxy"),
        ("the other way", "route to *.corp.example via office", "a.example", "direct"),
        ("a tunnel", "route to *.corp.example via wg0", CORP, "reset"),
        ("beside the tunnel", "route to *.corp.example via wg0", "a.example", "direct"),
        ("by the way", "route to *.corp.example via office\nblock via office", CORP, "reset"),
    ] {
        let mut bench = link::linked(rules);
        let (_, next) = bench.peeked();
        assert!(bench.wire.to_link.is_empty(), "{what}");
        bench.says(next, &sni(name));
        let went = bench.outputs.iter().find_map(|output| match output {
            Output::Connect(..) => Some("direct"),
            Output::ConnectVia(_, _, to, name, _) => {
                assert_eq!(*to, server(false), "{what}");
                assert_eq!(*name, None, "{what}: a claim chooses no other host");
                Some("proxy")
            }
            _ => None,
        });
        let reset = bench.was_reset().then_some("reset");
        assert_eq!(went.or(reset), Some(want), "{what}");
        assert_eq!(went.is_some(), reset.is_none(), "{what}");
    }
    for (what, rules) in [
        ("a tunnel in any case", "route to any via wg0\nblock to *.bad.example"),
        ("tunnels in any case", "route to *.corp.example via wg1\nroute to any via wg0"),
        ("refused in any case", "route to *.corp.example via office\nblock tcp port 80"),
        ("the same way", "route to *.corp.example via direct"),
    ] {
        let mut bench = link::linked(rules);
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        assert_eq!(bench.asks_for_rings(), None, "{what}");
        let refused = rules.contains("block tcp");
        assert_eq!(bench.was_reset(), refused, "{what}");
        assert_eq!(bench.wire.to_link.len(), usize::from(rules.contains("any via")), "{what}");
    }
}

/// The policy in force when the bytes come is the one that judges.
#[test]
fn a_reload_during_a_peek() {
    for (what, rules, refused) in
        [("now blocked", "block to good.example", true), ("no names now", "", false)]
    {
        let mut bench = Bench::with(config(), policy(BLOCKS));
        let (id, next) = bench.peeked();
        assert_eq!(bench.reload(rules), [], "{what}");
        bench.says(next, &sni("good.example"));
        assert_eq!(bench.asks_to_connect(), !refused, "{what}");
        assert_eq!(bench.was_reset(), refused, "{what}");
        if refused {
            assert_eq!(bench.last_report().generation, 2, "{what}");
        } else {
            assert_eq!(bench.connect_asked(), id, "{what}");
            assert_eq!(bench.list()[0].generation, 2, "{what}");
        }
    }
    // And of one that connects.
    for verdict in ["block", "drop"] {
        let mut bench = Bench::with(config(), policy(BLOCKS));
        let (_, next) = bench.peeked();
        bench.says(next, &sni("good.example"));
        bench.connect_asked();
        bench.take_app();
        assert_eq!(bench.reload("block to bad.example"), []);
        assert!(!bench.was_reset());
        let cut = bench.reload(&format!("{verdict} to good.example"));
        assert_eq!(
            cut.iter().map(|cut| cut.reason).collect::<Vec<_>>(),
            [Some(Reason::PolicyChanged)]
        );
        assert!(bench.was_reset(), "{verdict}");
        assert_eq!((bench.gave_back(), bench.engine.flows()), (1, 0), "{verdict}");
        assert!(bench.outputs.iter().any(|output| matches!(output, Output::Close(_))));
    }
    // An open flow keeps its name.
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    bench.says(next, &sni("good.example"));
    bench.connect_asked();
    bench.input(Input::Joined(id, 1));
    let (mut walk, mut changed) = (Walk::default(), 0);
    let other = policy("block to good.example");
    bench.engine.compare(&other, None, None, &mut walk, bench.now, |_, _, _| changed += 1);
    assert_eq!(changed, 1);
    assert_eq!(bench.reload("block to good.example").len(), 1);
}

/// Every packet ends somewhere, and what a peek takes is counted once.
#[test]
fn the_counters_add_up() {
    let mut bench = Bench::with(config(), policy(BLOCKS));
    let (id, next) = bench.peeked();
    bench.says(next, &sni("good.example"));
    bench.connect_asked();
    bench.input(Input::Joined(id, 1));
    read(&mut bench, id);
    let counters = bench.engine.counters();
    assert_eq!(total(counters), bench.list()[0].packets_sent);
    assert_eq!(bench.list()[0].sent, sni("good.example").len() as u64);
}

/// A peer that answers nothing gets its SYN-ACK again, and the flow goes on without a name.
#[test]
fn a_silent_client_costs_no_more_than_its_time() {
    let mut bench = Bench::with(config(), policy(BLOCKS));
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let id = bench.asks_for_rings().expect("a peek");
    bench.input(Input::Lent(id, Some(rings(7))));
    bench.take_app();
    for _ in 0..10 {
        bench.wait(Duration::from_millis(300));
    }
    assert_eq!(bench.connect_asked(), id);
    let again = bench.take_app();
    assert!(!again.is_empty() && again.iter().all(|segment| segment.flags == SYN | ACK));
    bench.input(Input::Joined(id, 1));
    assert_eq!(bench.engine.live(), 1);
}
