//! Datagrams by way of a proxy: its part of a mapping, and what becomes of flows without it.

use super::link::{linked, way};
use super::*;
use crate::{Learned, ResolverSet};

const A: [u8; 4] = [203, 0, 113, 9];
const B: [u8; 4] = [203, 0, 113, 10];
const OFFICE: &str = "route to 203.0.113.9 198.51.100.7 via office";

/// A datagram of a client port.
fn datagram(port: u16, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    aimed(udp(false, payload), port, to)
}

fn far(to: [u8; 4]) -> SocketAddr {
    (to, 80).into()
}

type Asked = (FlowId, MappingId, SocketAddr, Option<Arc<str>>);

/// What the proxy is asked to carry.
fn asked(bench: &mut Bench) -> Vec<Asked> {
    let outputs = std::mem::take(&mut bench.outputs);
    let associate = |output: Output| match output {
        Output::Associate(id, mapping, by, to, name, from) => {
            assert_eq!((by, from), (way(3), egress()));
            Some((id, mapping, to, name))
        }
        other => {
            bench.outputs.push(other);
            None
        }
    };
    outputs.into_iter().filter_map(associate).collect()
}

#[test]
fn what_waits_for_the_proxy_leaves_once_it_has_room() {
    let mut bench = linked(OFFICE);
    let addresses = vec![(A.into(), ResolverSet::EMPTY)];
    let learned = Learned { name: "a.example".into(), addresses, ttl: Duration::from_secs(60) };
    bench.engine.learn(&[learned], bench.now);
    for payload in [&b"one"[..], b"two"] {
        assert_eq!(bench.packet(&datagram(5000, A, payload)), Outcome::Held);
    }
    let [(id, mapping, to, name)] = asked(&mut bench).try_into().expect("one question");
    assert_eq!((to, name.as_deref()), (far(A), Some("a.example")));
    assert!(bench.wire.to_far.is_empty(), "nothing has left");
    bench.input(Input::Bound(id, 7));
    let way = Way::Mapping(mapping, far(A));
    let sent: Vec<_> = bench.wire.to_far.drain(..).collect();
    assert_eq!(sent, [(way, b"one".to_vec()), (way, b"two".to_vec())]);
    for (from, reaches) in [(far(A), true), (far(B), false), ((A, 81).into(), false)] {
        bench.wire.to_app.clear();
        assert_eq!(bench.engine.awaits(mapping, from), reaches);
        bench.engine.handle_datagram(mapping, from, b"r", None, bench.now, &mut bench.wire);
        assert_eq!(bench.wire.to_app.len(), usize::from(reaches), "{from}");
    }
}

#[test]
fn a_client_port_has_a_mapping_for_each_way() {
    let mut bench = linked(OFFICE);
    bench.packet(&datagram(5000, A, b"by the proxy"));
    bench.packet(&datagram(5000, B, b"directly"));
    let direct = bench.wire.to_far.pop().map(|(way, _)| way);
    bench.packet(&datagram(5000, [198, 51, 100, 7], b"by the proxy"));
    bench.packet(&datagram(5001, A, b"by the proxy"));
    let mappings: Vec<_> = asked(&mut bench).iter().map(|(_, mapping, ..)| *mapping).collect();
    let [first, second, other] = mappings[..] else { panic!("{mappings:?}") };
    assert!(first == second && first != other);
    assert!(
        !matches!(direct, Some(Way::Mapping(mapping, _)) if mapping == first || mapping == other)
    );
}

#[test]
fn without_the_proxy_the_app_is_told() {
    for (open, input, reason, code) in [
        (false, Input::ProxyFailed as fn(_, _) -> _, Reason::Proxy, 9),
        (false, Input::Failed, Reason::Unreachable, 9),
        (true, Input::ProxyEnded, Reason::Proxy, 9),
    ] {
        let mut bench = linked(OFFICE);
        bench.packet(&datagram(5000, A, b"x"));
        let [(id, mapping, ..)] = asked(&mut bench).try_into().expect("one question");
        if open {
            bench.input(Input::Bound(id, 7));
        }
        bench.input(input(id, Failure::NetUnreachable));
        assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(reason))));
        let answer = bench.wire.to_app.pop().expect("an error");
        assert_eq!((answer[9], answer[20], answer[21]), (ICMP, 3, code));
        assert!(bench.outputs.iter().any(|o| matches!(o, Output::Unbind(m) if *m == mapping)));
        // What is over stays over, whatever comes late.
        for late in [Input::Bound(id, 7), Input::ProxyEnded(id, Failure::Refused)] {
            bench.input(late);
        }
        assert!(bench.wire.to_app.is_empty());
        bench.wait(Duration::from_secs(2));
        bench.packet(&datagram(5000, A, b"again"));
        assert_eq!(asked(&mut bench).len(), 1, "the next datagram asks anew");
    }
    // A held flow is not ended by it.
    let mut bench = linked(OFFICE);
    bench.packet(&datagram(5000, A, b"x"));
    let [(id, ..)] = asked(&mut bench).try_into().expect("one question");
    bench.input(Input::ProxyEnded(id, Failure::NetUnreachable));
    assert_eq!(bench.engine.live(), 1);
}

#[test]
fn groups_are_not_for_a_proxy() {
    let mut bench = linked("route via office");
    bench.packet(&datagram(5000, [239, 1, 2, 3], b"x"));
    assert_eq!(bench.reasons().last(), Some(&(Stage::Closed, Some(Reason::Unsupported))));
    assert!(asked(&mut bench).is_empty() && bench.wire.to_app.is_empty());
}
