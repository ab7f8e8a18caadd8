//! What two that know each other do.

use super::packet::{Spec, echo};
use super::*;
use crate::link::wireguard::{LinkDropped, PresharedKey};

fn kinds(messages: &[Vec<u8>]) -> Vec<(u8, usize)> {
    messages.iter().map(|message| (message[0], message.len())).collect()
}

/// Some of every kind, from 10.0.0.1 and fd00::1 to the other.
fn samples() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        for tcp in [true, false] {
            for length in [0, 1, 15, 500, 1360] {
                packets.push(Spec::new(source, destination, tcp).with(&vec![3; length]));
            }
        }
        packets.push(echo(source, destination, &[7; 56]));
    }
    packets
}

#[test]
fn packets_wait_for_the_handshake_and_arrive() {
    let (mut a, mut b) = two();
    let samples = samples();
    for packet in &samples {
        a.send(packet, now());
    }
    let first = a.messages();
    assert_eq!(kinds(&first), [(1, 148)], "one initiation, and nothing before it is answered");
    assert_eq!(b.take(&first[0], a.at, now()), <[Vec<u8>; 0]>::default());
    let answer = b.messages();
    assert_eq!(kinds(&answer), [(2, 92)]);
    a.take(&answer[0], b.at, now());
    let flushed = a.messages();
    assert_eq!(kinds(&flushed[..1]), [(4, 32)], "the empty packet that confirms");
    for (message, packet) in flushed[1..].iter().zip(&samples) {
        let padded = packet.len().next_multiple_of(16).min(1420);
        assert_eq!(message.len(), 32 + padded, "padded to sixteen");
    }
    let arrived: Vec<Vec<u8>> =
        flushed.iter().flat_map(|message| b.take(message, a.at, now())).collect();
    assert_eq!(arrived, samples);
    // And from now on at once, both ways.
    let packet = Spec::new("10.0.0.2", "10.0.0.1", true).with(b"answer");
    b.send(&packet, now());
    assert_eq!(settle(&mut a, &mut b, now()).0, [packet]);
    let (state_a, state_b) = (a.core.peers.states(), b.core.peers.states());
    assert!(state_a[0].last_handshake.is_some() && state_b[0].last_handshake.is_some());
    assert_eq!(state_a[0].sent, state_b[0].received);
    assert_eq!(state_b[0].sent, state_a[0].received);
    assert_eq!((a.core.totals.handshakes, b.core.totals.handshakes), (1, 1));
}

#[test]
fn the_queue_is_bounded() {
    let (mut a, mut b) = two();
    for at in 0..300_u16 {
        a.send(&echo("10.0.0.1", "10.0.0.2", &at.to_be_bytes()), now());
    }
    assert_eq!(a.core.totals.dropped(LinkDropped::QueueFull), 44);
    assert_eq!(settle(&mut a, &mut b, now()).1.len(), 256);
}

#[test]
fn a_responder_flushes_its_queue_too() {
    let (mut a, mut b) = two();
    let (to_b, to_a) = (echo("10.0.0.1", "10.0.0.2", b"a"), echo("10.0.0.2", "10.0.0.1", b"b"));
    // Both ask at the same time.
    a.send(&to_b, now());
    b.send(&to_a, now());
    let (at_a, at_b) = settle(&mut a, &mut b, now());
    assert_eq!((at_a, at_b), (vec![to_a], vec![to_b]));
}

#[test]
fn each_of_ten_thousand_packets_counts_once() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"first"), now());
    settle(&mut a, &mut b, now());
    let mut delivered = 0;
    for round in 0..100_u16 {
        for at in 0..100_u16 {
            a.send(&echo("10.0.0.1", "10.0.0.2", &(round * 100 + at).to_be_bytes()), now());
        }
        let messages = a.messages();
        assert_eq!(messages.len(), 100);
        for message in messages.iter().chain(&messages) {
            delivered += b.take(message, a.at, now()).len();
        }
    }
    assert_eq!(delivered, 10_000);
    assert_eq!(b.core.totals.dropped(LinkDropped::Replayed), 10_000);
}

#[test]
fn a_replayed_handshake_is_stale() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    let initiation = a.messages().remove(0);
    b.take(&initiation, a.at, now());
    let answer = b.messages().remove(0);
    b.take(&initiation, a.at, now());
    assert_eq!(b.messages().len(), 0);
    assert_eq!(b.core.totals.dropped(LinkDropped::StaleHandshake), 1);
    a.take(&answer, b.at, now());
    a.messages();
    a.take(&answer, b.at, now());
    assert_eq!(a.messages().len(), 0);
    assert_eq!(a.core.totals.dropped(LinkDropped::StaleHandshake), 1);
}

#[test]
fn preshared_keys_must_agree() {
    let key = |byte| PresharedKey::from_bytes(&[byte; 32]);
    for (name, at_a, at_b, agree) in [
        ("none", None, None, true),
        ("the same", key(1), key(1), true),
        ("different", key(1), key(2), false),
        ("one only", key(1), None, false),
    ] {
        let (mut a, mut b) = two();
        let (pa, pb) = (a.public(), b.public());
        a.change(vec![PeerChange { preshared: Some(at_a), ..PeerChange::new(pb) }], now());
        b.change(vec![PeerChange { preshared: Some(at_b), ..PeerChange::new(pa) }], now());
        a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
        let arrived = settle(&mut a, &mut b, now()).1.len();
        assert_eq!(arrived, usize::from(agree), "{name}");
        assert_eq!(a.core.totals.dropped(LinkDropped::BadHandshake), u64::from(!agree), "{name}");
    }
}

#[test]
fn a_new_key_needs_a_new_handshake() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"old"), now());
    settle(&mut a, &mut b, now());
    // b's key changes; a doesn't know yet.
    let key = PrivateKey::generate().unwrap();
    b.core.change(Change { key: Some(key.clone()), ..Change::default() }, now()).unwrap();
    b.key = key;
    a.send(&echo("10.0.0.1", "10.0.0.2", b"lost"), now());
    assert_eq!(settle(&mut a, &mut b, now()).1.len(), 0);
    // a learns of it.
    let to_b = peer(&b, &["10.0.0.2/32"]);
    a.core
        .change(Change { replace_peers: true, peers: vec![to_b], ..Change::default() }, now())
        .unwrap();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"new"), now());
    assert_eq!(settle(&mut a, &mut b, now()).1, [echo("10.0.0.1", "10.0.0.2", b"new")]);
    // And b sends with it.
    b.send(&echo("10.0.0.2", "10.0.0.1", b"back"), now());
    assert_eq!(settle(&mut a, &mut b, now()).0.len(), 1);
}

#[test]
fn a_peer_is_where_it_was_heard_last() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    let away: SocketAddr = "198.51.100.7:4500".parse().unwrap();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"from elsewhere"), now());
    let message = a.messages().remove(0);
    let mut forged = message.clone();
    forged[40] ^= 1;
    let elsewhere: SocketAddr = "203.0.113.1:1".parse().unwrap();
    b.take(&forged, elsewhere, now());
    assert_eq!(b.core.peers.states()[0].endpoint, Some(a.at), "what isn't authentic moves nobody");
    b.take(&message, away, now());
    assert_eq!(b.core.peers.states()[0].endpoint, Some(away));
    b.take(&message, elsewhere, now());
    assert_eq!(b.core.peers.states()[0].endpoint, Some(away), "nor does a replay");
    b.send(&echo("10.0.0.2", "10.0.0.1", b"y"), now());
    let path = b.core.outbox.runs()[0].path;
    assert_eq!((path.to, path.source), (away, Some(b.at.ip())), "from where it was spoken to");
}

#[test]
fn congestion_bits_go_through() {
    let (mut a, mut b) = two();
    let ect = Spec { tos: 2, ..Spec::new("10.0.0.1", "10.0.0.2", true) };
    a.send(&ect.with(b"x"), now());
    settle(&mut a, &mut b, now());
    a.send(&ect.with(b"x"), now());
    assert_eq!(a.core.outbox.runs()[0].path.tos, 2);
    let message = a.messages().remove(0);
    let arrival = Arrival { bytes: 0..0, segment: 1, from: a.at, to: None, tos: 3 };
    b.core.open(&message, &arrival, now());
    let marked = Spec { tos: 3, ..ect }.with(b"x");
    assert_eq!(b.core.opened.buffer[b.core.opened.packets[0].clone()], marked);
}

#[test]
fn what_cannot_be_sent_is_told() {
    use engine::{Failure, Meta, Unsent};
    let (mut a, b) = two();
    let homeless =
        PeerChange { allowed: allowed(&["10.9.0.0/16"]), ..PeerChange::new(Side::new(9).public()) };
    a.change(vec![homeless], now());
    drop(b);
    let long = Spec::new("10.0.0.1", "10.0.0.2", false).with(&[0; 1400]);
    let unreachable = Failure::HostUnreachable;
    for (name, packet, cause, failure) in [
        ("nobody's", echo("10.0.0.1", "10.8.0.1", b""), LinkDropped::NoPeer, unreachable),
        ("unknown place", echo("10.0.0.1", "10.9.0.1", b""), LinkDropped::NoEndpoint, unreachable),
        ("too long", long, LinkDropped::TooLong, Failure::TooBig { mtu: 1420 }),
        ("no packet", vec![0; 40], LinkDropped::Unparsable, unreachable),
        ("nothing", vec![], LinkDropped::Unparsable, unreachable),
    ] {
        let result = a.core.send(&packet, &[], Meta::default(), now());
        assert_eq!(result, Err(Unsent::Failed(failure)), "{name}");
        assert_eq!(a.core.totals.dropped(cause).min(1), 1, "{name}");
    }
    assert_eq!(a.messages().len(), 0);
}

#[test]
fn an_idle_interface_has_no_timer() {
    let (mut a, mut b) = two();
    assert_eq!(a.core.wake(), None);
    let start = now();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), start);
    settle(&mut a, &mut b, start);
    b.send(&echo("10.0.0.2", "10.0.0.1", b"y"), start);
    settle(&mut a, &mut b, start);
    // The clock of `Tunn` stands still here: only who asks for a tick, and when, is looked at.
    let mut at = start;
    let mut wakes = 0;
    while let Some(wake) = a.core.wake() {
        assert!(wake > at, "no wake-up twice for one thing");
        (at, wakes) = (wake, wakes + 1);
        a.core.timers(at);
        assert!(wakes < 20);
    }
    assert!(at.since(start) < SECOND * 600);
}

#[test]
fn a_peer_that_is_kept_alive_is_greeted_at_once() {
    let (mut a, mut b) = two();
    let key = b.public();
    a.change(vec![PeerChange { keepalive: Some(Some(25)), ..PeerChange::new(key) }], now());
    assert_eq!(kinds(&a.messages()), [(1, 148)]);
    a.change(vec![PeerChange { remove: true, ..PeerChange::new(key) }], now());
    let to_b = PeerChange { keepalive: Some(Some(25)), ..peer(&b, &["10.0.0.2/32"]) };
    a.change(vec![to_b], now());
    let start = now();
    settle(&mut a, &mut b, start);
    assert!(a.core.peers.states()[0].last_handshake.is_some());
    // The wake-up for silence: an empty packet.
    let late = start + SECOND * 30;
    a.core.timers(late);
    let messages = a.messages();
    assert!(kinds(&messages).contains(&(4, 32)), "{:?}", kinds(&messages));
}

#[test]
fn a_probe_asks_everybody() {
    let (mut a, mut b) = two();
    for handshakes in 1..3 {
        let start = now();
        a.core.probe(start);
        let hello = a.messages();
        assert_eq!(kinds(&hello), [(1, 148)]);
        a.core.probe(start + SECOND / 2);
        assert_eq!(a.messages().len(), 0, "one at a time");
        a.core.probe(start + SECOND);
        let hello = a.messages();
        assert_eq!(kinds(&hello), [(1, 148)]);
        b.take(&hello[0], a.at, start);
        settle(&mut a, &mut b, start);
        assert_eq!(a.core.totals.handshakes, handshakes, "with a session too");
    }
}

fn health(side: &Side, now: Instant) -> crate::link::wireguard::PeerHealth {
    side.core.peers.iter().next().unwrap().1.health(now)
}

/// Every tenth of a second `a` does what is due, and at some of them sends; nobody answers. The
/// tenths at which it asked, and the first at which it was not usable.
fn silence(a: &mut Side, sends: &[u64]) -> (Vec<u64>, Option<u64>) {
    let start = now();
    let (mut asked, mut over) = (Vec::new(), None);
    for tenth in 0..100 {
        let at = start + SECOND / 10 * tenth as u32;
        if sends.contains(&tenth) {
            a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), at);
        }
        a.core.timers(at);
        asked.extend(a.messages().iter().filter(|message| message[0] == 1).map(|_| tenth));
        if over.is_none() && !health(a, at).usable() {
            over = Some(tenth);
        }
    }
    (asked, over)
}

#[test]
fn a_dead_peer_is_known_within_five_seconds() {
    for (name, session, sends, want) in [
        ("a flow", true, (0..100).collect::<Vec<_>>(), Some(46)),
        ("a connection that is opened", true, vec![0, 10, 30, 70], Some(46)),
        ("the same without a session", false, vec![0, 10, 30, 70], Some(25)),
        ("one message: nobody can tell", true, vec![0], None),
        ("nothing", true, vec![], None),
    ] {
        let (mut a, mut b) = two();
        if session {
            a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
            settle(&mut a, &mut b, now());
        }
        let (asked, over) = silence(&mut a, &sends);
        // The clocks of this test and of `Tunn` are not the same one.
        let near = |over: u64| want.is_some_and(|want| over.abs_diff(want) <= 3);
        assert!(over.map_or_else(|| want.is_none(), near), "{name}: {over:?}, asked {asked:?}");
        assert_eq!(asked.len(), if want.is_some() { 2 } else { 0 }, "{name}: {asked:?}");
        // Whatever authentic comes says that it is there again.
        if want.is_some() {
            b.core.probe(now());
            settle(&mut b, &mut a, now());
            assert!(health(&a, now()).usable(), "{name}");
        }
    }
}

#[test]
fn a_peer_that_only_listens_is_healthy() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    let (start, mut arrived) = (now(), 0);
    for tenth in 0..300_u32 {
        let at = start + SECOND / 10 * tenth;
        a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), at);
        a.core.timers(at);
        b.core.timers(at);
        arrived += settle(&mut a, &mut b, at).1.len();
        assert!(health(&a, at).usable(), "after {tenth} tenths");
    }
    assert_eq!(arrived, 300);
    assert!(a.core.totals.handshakes <= 5, "{}", a.core.totals.handshakes);
}

#[test]
fn a_peer_that_has_moved_is_looked_for_there() {
    let (mut a, b) = two();
    let (_, over) = silence(&mut a, &[0, 10]);
    assert!(over.is_some());
    let to = |port: u16| PeerChange {
        endpoint: Some((b.at.ip(), port).into()),
        ..PeerChange::new(b.public())
    };
    a.change(vec![to(7)], now());
    assert_eq!(a.core.outbox.runs()[0].path.to.port(), 7);
    assert_eq!(kinds(&a.messages()), [(1, 148)], "at once");
    assert!(health(&a, now()).usable(), "nothing is known of that place");
}

#[test]
fn who_is_nowhere_is_kept_alive_from_when_it_is_known() {
    for by_change in [true, false] {
        let (mut a, mut b) = (Side::new(1), Side::new(2));
        let (to_b, to_a) = (peer(&b, &["10.0.0.2/32"]), peer(&a, &["10.0.0.1/32"]));
        let kept = PeerChange { keepalive: Some(Some(25)), endpoint: None, ..to_b.clone() };
        a.change(vec![kept], now());
        assert_eq!((a.messages().len(), a.core.wake()), (0, None), "nobody to greet");
        assert_eq!(a.core.peers.states()[0].keepalive, Some(25));
        if by_change {
            a.change(vec![PeerChange { allowed: vec![], ..to_b }], now());
            assert_eq!(kinds(&a.messages()), [(1, 148)]);
        } else {
            b.change(vec![to_a], now());
            b.send(&echo("10.0.0.2", "10.0.0.1", b"x"), now());
            settle(&mut a, &mut b, now());
        }
        assert!(a.core.wake().unwrap() <= now() + SECOND * 25, "{by_change}");
    }
}

#[test]
fn the_longest_packet_changes() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    let packet = Spec::new("10.0.0.1", "10.0.0.2", false).with(&[0; 1352]);
    a.core.change(Change { mtu: Some(1379), ..Change::default() }, now()).unwrap();
    let too_big = engine::Unsent::Failed(engine::Failure::TooBig { mtu: 1379 });
    let sent = a.core.send(&packet, &[], engine::Meta::default(), now());
    assert_eq!(sent, Err(too_big));
    a.core.change(Change { mtu: Some(1380), ..Change::default() }, now()).unwrap();
    a.send(&packet, now());
    assert_eq!(settle(&mut a, &mut b, now()).1.len(), 1);
}

#[test]
fn every_handshake_is_newer_than_the_one_before() {
    let (mut a, mut b) = two();
    let start = now();
    let mut last = Vec::new();
    for round in 0..50 {
        a.core.probe(start + SECOND * round);
        let hello = a.messages().remove(0);
        assert!(b.take(&hello, a.at, now()).is_empty());
        assert_eq!(kinds(&b.messages()), [(2, 92)], "taken for new: its TAI64N has grown");
        if !last.is_empty() {
            b.take(&last, a.at, now());
            assert_eq!(b.messages().len(), 0, "and the one before for old");
        }
        last = hello;
    }
    assert_eq!(b.core.totals.dropped(LinkDropped::StaleHandshake), 49);
}

#[test]
fn after_a_move_a_session_is_used_at_once() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    a.core.moved(now());
    let messages = a.messages();
    assert_eq!(kinds(&messages), [(4, 32)]);
    let away: SocketAddr = "198.51.100.7:4500".parse().unwrap();
    b.take(&messages[0], away, now());
    assert_eq!(b.core.peers.states()[0].endpoint, Some(away));
}
