//! Many peers, and peers that come and go.

use std::time::Instant as Wall;

use super::packet::echo;
use super::*;
use crate::link::wireguard::LinkDropped;

#[test]
fn the_more_specific_peer_wins() {
    let (mut a, mut b, mut c) = (Side::new(1), Side::new(2), Side::new(3));
    let (to_b, to_c) = (peer(&b, &["10.0.0.0/8"]), peer(&c, &["10.0.5.0/24"]));
    a.change(vec![to_b, to_c], now());
    let to_a = |side: &Side| peer(side, &["10.9.9.9/32"]);
    let from_a = to_a(&a);
    b.change(vec![from_a.clone()], now());
    c.change(vec![from_a], now());
    for (destination, at_b, at_c) in [("10.0.4.1", 1, 0), ("10.0.5.1", 0, 1), ("10.0.6.1", 1, 0)] {
        a.send(&echo("10.9.9.9", destination, b"x"), now());
        let runs: Vec<SocketAddr> = a.core.outbox.runs().iter().map(|run| run.path.to).collect();
        let to = if at_b == 1 { b.at } else { c.at };
        assert!(runs.iter().all(|&at| at == to), "{destination}");
        let side = if at_b == 1 { &mut b } else { &mut c };
        assert_eq!(settle(&mut a, side, now()).1.len(), at_b + at_c, "{destination}");
    }
    // c may not use an address of b's.
    c.send(&echo("10.0.4.1", "10.9.9.9", b"stolen"), now());
    c.send(&echo("10.0.5.1", "10.9.9.9", b"own"), now());
    let arrived = settle(&mut c, &mut a, now()).1;
    assert_eq!(arrived, [echo("10.0.5.1", "10.9.9.9", b"own")]);
    assert_eq!(a.core.totals.dropped(LinkDropped::NotAllowed), 1);
    // The last one to name a prefix has it.
    let key = c.public();
    a.change(vec![PeerChange { allowed: allowed(&["10.0.0.0/8"]), ..PeerChange::new(key) }], now());
    let states = a.core.peers.states();
    assert_eq!(states[0].allowed, []);
    assert_eq!(states[1].allowed, allowed(&["10.0.0.0/8", "10.0.5.0/24"]));
}

#[test]
fn what_is_made_is_freed() {
    let (mut a, b) = two();
    let before = a.core.peers.sizes();
    let others: Vec<PublicKey> =
        (0..500).map(|_| PrivateKey::generate().unwrap().public()).collect();
    let add = |(at, &key): (usize, &PublicKey)| PeerChange {
        allowed: allowed(&[
            &format!("10.1.{}.{}/32", at / 250, at % 250),
            &format!("fd01::{at:x}/128"),
        ]),
        endpoint: Some("192.0.2.9:9".parse().unwrap()),
        ..PeerChange::new(key)
    };
    a.change(others.iter().enumerate().map(add).collect(), now());
    let [peers, keys, indices, nets] = before;
    assert_eq!(a.core.peers.sizes(), [peers + 500, keys + 500, indices + 500, nets + 1000]);
    for at in 0..500 {
        a.send(&echo("10.0.0.1", &format!("10.1.{}.{}", at / 250, at % 250), b"x"), now());
    }
    assert_eq!(a.messages().len(), 500);
    let remove = |&key: &PublicKey| PeerChange { remove: true, ..PeerChange::new(key) };
    a.change(others.iter().map(remove).collect(), now());
    assert_eq!(a.core.peers.sizes(), before);
    assert_eq!(a.core.totals.dropped(LinkDropped::GivenUp), 500, "what waited");
    a.core.change(Change { replace_peers: true, ..Change::default() }, now()).unwrap();
    assert_eq!(a.core.peers.sizes(), [0; 4]);
    assert_eq!(a.core.wake(), None);
    drop(b);
}

#[test]
fn changes_mean_what_they_mean_to_wg() {
    let (mut a, b) = two();
    let key = b.public();
    let other = PrivateKey::generate().unwrap().public();
    let change = |change: PeerChange| vec![change];
    // Nothing is made by an update, nothing of one's own key.
    a.change(change(PeerChange { update_only: true, ..PeerChange::new(other) }), now());
    let own = a.public();
    a.change(change(PeerChange::new(own)), now());
    a.change(change(PeerChange { remove: true, ..PeerChange::new(other) }), now());
    assert_eq!(a.core.peers.sizes()[0], 1);
    // What is not named stays.
    a.change(change(PeerChange { keepalive: Some(Some(9)), ..PeerChange::new(key) }), now());
    let state = &a.core.peers.states()[0];
    assert_eq!((state.keepalive, state.endpoint), (Some(9), Some(b.at)));
    assert_eq!(state.allowed, allowed(&["10.0.0.2/32", "fd00::2/128"]));
    // Addresses are added, taken, replaced.
    let more = PeerChange {
        allowed: allowed(&["10.3.0.7/16"]),
        disallowed: allowed(&["10.0.0.2/32"]),
        ..PeerChange::new(key)
    };
    a.change(change(more), now());
    assert_eq!(a.core.peers.states()[0].allowed, allowed(&["10.3.0.0/16", "fd00::2/128"]));
    let replaced = PeerChange {
        replace_allowed: true,
        allowed: allowed(&["10.4.0.0/16"]),
        keepalive: Some(Some(0)),
        ..PeerChange::new(key)
    };
    a.change(change(replaced), now());
    let state = &a.core.peers.states()[0];
    assert_eq!((state.allowed.clone(), state.keepalive), (allowed(&["10.4.0.0/16"]), None));
    // One's own new key is nobody's peer.
    let (mut c, d) = (Side::new(1), Side::new(2));
    let to_d = peer(&d, &["10.0.0.2/32"]);
    c.change(vec![to_d], now());
    c.core.change(Change { key: Some(d.key.clone()), ..Change::default() }, now()).unwrap();
    assert_eq!(c.core.peers.sizes(), [0; 4]);
}

#[test]
fn indices_are_random_and_unlike() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let (mut a, _) = two();
        a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
        let hello = a.messages().remove(0);
        assert!(seen.insert(hello[5..8].to_vec()), "24 bits of it, of 50");
    }
}

#[test]
fn a_hundred_and_thirty_thousand_allowed_addresses() {
    let (mut a, mut b) = two();
    let memory = resident();
    let began = Wall::now();
    let many = (0..65_000_u32).flat_map(|at| {
        let v4 = std::net::Ipv4Addr::from(0x0b00_0000 + at * 256);
        let v6 = std::net::Ipv6Addr::from((0xfd22_u128 << 112) + (u128::from(at) << 64));
        [IpNet::new(v4.into(), 24).unwrap(), IpNet::new(v6.into(), 64).unwrap()]
    });
    let key = b.public();
    a.change(vec![PeerChange { allowed: many.collect(), ..PeerChange::new(key) }], now());
    let added = began.elapsed();
    let memory = resident() - memory;
    assert_eq!(a.core.peers.sizes()[3], 130_002);
    a.send(&echo("10.0.0.1", "11.1.2.3", b"x"), now());
    assert_eq!(settle(&mut a, &mut b, now()).1.len(), 1);
    let began = Wall::now();
    let packet = echo("10.0.0.1", "11.77.2.3", b"x");
    for _ in 0..1000 {
        a.send(&packet, now());
    }
    let sent = began.elapsed() / 1000;
    a.messages();
    let began = Wall::now();
    a.change(vec![PeerChange { remove: true, ..PeerChange::new(key) }], now());
    let removed = began.elapsed();
    eprintln!(
        "130,000 allowed addresses: {memory} KiB, added {added:?}, sent {sent:?} a packet, removed {removed:?}"
    );
    assert_eq!(a.core.peers.sizes(), [0; 4]);
    // Generous: the point is that nothing is quadratic.
    assert!(added < SECOND * 60 && removed < SECOND * 60);
    assert!(sent < SECOND / 1000);
}

/// Memory of this process, KiB.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4
}
