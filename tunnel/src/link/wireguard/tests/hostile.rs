//! What nobody has sent who may.

use boringtun::noise::{Tunn, TunnResult};
use proptest::prelude::*;

use super::packet::{Spec, echo};
use super::*;
use crate::link::wireguard::LinkDropped;

#[test]
fn no_flipped_bit_is_accepted() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"first"), now());
    let initiation = a.messages().remove(0);
    // The last 16 bytes count only under load.
    for bit in 0..(148 - 16) * 8 {
        let mut flipped = initiation.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        b.take(&flipped, a.at, now());
        assert_eq!(b.messages().len(), 0, "initiation, bit {bit}");
    }
    b.take(&initiation, a.at, now());
    let response = b.messages().remove(0);
    for bit in 0..(92 - 16) * 8 {
        let mut flipped = response.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        a.take(&flipped, b.at, now());
        assert_eq!(a.messages().len(), 0, "response, bit {bit}");
    }
    a.take(&response, b.at, now());
    settle(&mut a, &mut b, now());
    a.send(&echo("10.0.0.1", "10.0.0.2", &[9; 100]), now());
    let data = a.messages().remove(0);
    for bit in 0..data.len() * 8 {
        let mut flipped = data.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(b.take(&flipped, a.at, now()).len(), 0, "data, bit {bit}");
        assert_eq!(b.messages().len(), 0, "data, bit {bit}");
    }
    for length in 0..data.len() {
        assert_eq!(b.take(&data[..length], a.at, now()).len(), 0, "cut to {length}");
    }
    assert_eq!(b.take(&data, a.at, now()).len(), 1);
    let totals = &b.core.totals;
    assert_eq!(totals.datagrams_in, totals.dropped.iter().sum::<u64>() + 5 - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_datagram_is_a_counted_drop(
        kind in 0_u8..6,
        length in prop_oneof![0_usize..200, Just(148), Just(92), Just(64), 1400_usize..2000],
        mut bytes in prop::collection::vec(any::<u8>(), 2000),
        known in any::<bool>(),
    ) {
        let (mut a, mut b) = two();
        a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
        let hello = a.messages().remove(0);
        b.take(&hello, a.at, now());
        let answer = b.messages().remove(0);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        if known {
            // An index that exists.
            bytes[4..8].copy_from_slice(&answer[4..8]);
            bytes[8..12].copy_from_slice(&hello[4..8]);
        }
        let before: u64 = a.core.totals.dropped.iter().sum();
        let came = a.take(&bytes[..length], b.at, now());
        prop_assert!(came.is_empty());
        prop_assert_eq!(a.core.totals.dropped.iter().sum::<u64>(), before + 1);
        prop_assert!(a.messages().is_empty());
        prop_assert!(b.take(&bytes[..length], a.at, now()).is_empty());
        prop_assert!(b.messages().is_empty());
    }

    #[test]
    fn any_inner_packet_of_an_authentic_message(inner in prop::collection::vec(any::<u8>(), 0..200)) {
        let (mut a, mut b) = raw_session();
        let mut slot = vec![0; 2048];
        let TunnResult::WriteToNetwork(message) = a.encapsulate(&inner, &mut slot) else {
            panic!("a session");
        };
        let message = message.to_vec();
        let from = "192.0.2.1:1".parse().unwrap();
        for packet in b.take(&message, from, now()) {
            prop_assert!(packet.len() >= 20 && packet.len() <= inner.len());
        }
    }
}

/// A peer that says inside what it likes, and an interface that has a session with it.
fn raw_session() -> (Tunn, Side) {
    let (key, mut b) = (PrivateKey::generate().unwrap(), Side::new(2));
    let all =
        PeerChange { allowed: allowed(&["0.0.0.0/0", "::/0"]), ..PeerChange::new(key.public()) };
    b.change(vec![all], now());
    let mut a = Tunn::new(key.secret(), b.public().point(), None, None, 5, None);
    let mut slot = vec![0; 2048];
    let from = "192.0.2.1:1".parse().unwrap();
    let TunnResult::WriteToNetwork(hello) = a.format_handshake_initiation(&mut slot, false) else {
        panic!("an initiation");
    };
    let hello = hello.to_vec();
    b.take(&hello, from, now());
    let answer = b.messages().remove(0);
    let TunnResult::WriteToNetwork(confirm) = a.decapsulate(None, &answer, &mut slot) else {
        panic!("a session");
    };
    let confirm = confirm.to_vec();
    b.take(&confirm, from, now());
    (a, b)
}

#[test]
fn inner_packets_that_lie_are_dropped() {
    let (mut a, mut b) = raw_session();
    let from = "192.0.2.1:1".parse().unwrap();
    let good = Spec::new("10.0.0.1", "10.0.0.2", true).with(b"data");
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let mut slot = vec![0; 2048];
    for (name, packet, arrives) in [
        ("good", good.clone(), true),
        ("longer than it is", with(3, 200), false),
        ("shorter than its header", with(3, 10), false),
        ("no length", with(3, 0), false),
        ("a header longer than the packet", with(0, 0x4f), false),
        ("version 7", with(0, 0x75), false),
        ("cut", good[..19].to_vec(), false),
        ("one byte", vec![0x45], false),
    ] {
        let TunnResult::WriteToNetwork(message) = a.encapsulate(&packet, &mut slot) else {
            panic!("{name}");
        };
        let message = message.to_vec();
        let dropped = b.core.totals.dropped(LinkDropped::InnerMalformed);
        assert_eq!(b.take(&message, from, now()).len(), usize::from(arrives), "{name}");
        let now_dropped = b.core.totals.dropped(LinkDropped::InnerMalformed);
        assert_eq!(now_dropped - dropped, u64::from(!arrives), "{name}");
    }
}

#[test]
fn strangers_get_no_answer() {
    let (_, mut b) = two();
    let stranger = PrivateKey::generate().unwrap();
    let somebody = PrivateKey::generate().unwrap().public();
    let from = "203.0.113.5:1".parse().unwrap();
    for (name, target, cause) in [
        ("who knows us and is unknown", b.public(), LinkDropped::UnknownPeer),
        ("who doesn't know us", somebody, LinkDropped::Stranger),
    ] {
        let mut tunn = Tunn::new(stranger.secret(), target.point(), None, None, 1, None);
        let mut slot = [0; 148];
        tunn.format_handshake_initiation(&mut slot, false);
        b.take(&slot, from, now());
        assert_eq!(b.messages().len(), 0, "{name}");
        assert_eq!(b.core.totals.dropped(cause), 1, "{name}");
    }
}

#[test]
fn under_load_an_address_must_be_proved() {
    let (mut a, mut b) = two();
    let stranger = PrivateKey::generate().unwrap();
    let mut tunn = Tunn::new(stranger.secret(), b.public().point(), None, None, 1, None);
    let from: SocketAddr = "203.0.113.5:1".parse().unwrap();
    let mut slot = [0; 148];
    // Within the second that the count is kept for.
    for _ in 0..220 {
        tunn.format_handshake_initiation(&mut slot, true);
        b.take(&slot, from, now());
    }
    let answers = b.messages();
    assert!(
        !answers.is_empty() && answers.iter().all(|cookie| (cookie[0], cookie.len()) == (3, 64))
    );
    assert_eq!(answers.len() as u64, b.core.totals.dropped(LinkDropped::UnderLoad));
    // A peer gets a cookie as well, and with it gets through.
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    let hello = a.messages().remove(0);
    b.take(&hello, a.at, now());
    let cookie = b.messages();
    assert_eq!((cookie.len(), cookie[0][0]), (1, 3));
    assert!(a.take(&cookie[0], b.at, now()).is_empty());
    let again = {
        let peer = a.core.peers.get(0).unwrap();
        let mut slot = vec![0; 148];
        peer.tunn.format_handshake_initiation(&mut slot, true);
        slot
    };
    assert_ne!(again[132..], [0; 16], "it carries the cookie's proof");
    b.take(&again, a.at, now());
    assert_eq!(b.messages()[0][0], 2);
}
