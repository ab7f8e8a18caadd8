//! Interfaces with sockets, over loopback.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;

use engine::{DeviceName, Meta};

use super::packet::{Spec, echo};
use super::*;
use crate::host::Mark;
use crate::link::wireguard::{
    Coalesce, LinkDropped, LinkError, PeerHealth, PeerSettings, Settings, Tunnel,
};
use crate::namespace;

const BOTH: Coalesce = Coalesce { tcp: true, udp: true };

fn settings(key: &PrivateKey, port: Option<u16>, peers: Vec<PeerSettings>) -> Settings {
    Settings {
        name: DeviceName::new("wg0").unwrap(),
        key: key.clone(),
        listen_port: port,
        fwmark: None,
        mark: None,
        mtu: 1420,
        peers,
    }
}

fn at(outer: &str, tunnel: &Tunnel) -> SocketAddr {
    SocketAddr::new(outer.parse().unwrap(), tunnel.state().listen_port)
}

/// Two interfaces, of which the first knows where the second is.
fn pair(outer: &str) -> (Tunnel, Tunnel) {
    let (key_a, key_b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let to_a = PeerSettings {
        allowed: allowed(&["10.0.0.1/32", "fd00::1/128"]),
        ..PeerSettings::new(key_a.public())
    };
    let mut b = Tunnel::open(settings(&key_b, None, vec![to_a]), now()).unwrap();
    let to_b = PeerSettings {
        allowed: allowed(&["10.0.0.2/32", "fd00::2/128"]),
        endpoint: Some(at(outer, &b)),
        ..PeerSettings::new(key_b.public())
    };
    let mut a = Tunnel::open(settings(&key_a, None, vec![to_b]), now()).unwrap();
    a.set_coalesce(BOTH);
    b.set_coalesce(BOTH);
    (a, b)
}

/// What came out: the whole packet's headers, the payload, the segment size.
type Came = Vec<(Vec<u8>, Vec<u8>, Option<u16>)>;

fn receive(tunnel: &mut Tunnel) -> Came {
    let mut came = Vec::new();
    while tunnel.receive(now(), 1 << 20, |inner| {
        came.push((inner.headers.to_vec(), inner.payload.concat(), inner.meta.segment));
    }) {}
    came
}

fn settle(a: &mut Tunnel, b: &mut Tunnel) -> (Came, Came) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        at_b.extend(receive(b));
        at_a.extend(receive(a));
    }
    (at_a, at_b)
}

fn send(tunnel: &mut Tunnel, packet: &[u8]) {
    tunnel.send(packet, &[], Meta::default(), now()).unwrap();
    tunnel.flush();
}

#[test]
fn super_packets_pass_whole() {
    for outer in ["127.0.0.1", "::1"] {
        let (mut a, mut b) = pair(outer);
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"hello"));
        assert_eq!(settle(&mut a, &mut b).1.len(), 1, "{outer}");
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            for tcp in [true, false] {
                let spec = Spec::new(source, destination, tcp);
                let payload: Vec<u8> = (0..40_000_u32).map(|at| (at / 100) as u8).collect();
                let whole = spec.with(&payload);
                let (headers, payload) = whole.split_at(spec.header());
                let before = (a.totals().sends, b.totals().receives);
                let meta = Meta { segment: Some(1300), partial_checksum: true };
                a.send(headers, payload, meta, now()).unwrap();
                a.flush();
                assert_eq!(a.totals().sends - before.0, 1, "31 messages in one call");
                let came = settle(&mut a, &mut b).1;
                assert_eq!(came.len(), 1, "{outer} {source} {tcp}");
                assert_eq!((&came[0].1[..], came[0].2), (payload, Some(1300)));
            }
        }
        let dropped: u64 = a.totals().dropped.iter().chain(&b.totals().dropped).sum();
        assert_eq!(dropped, 0, "{:?}", b.totals());
    }
}

#[test]
fn a_flood_of_everything_arrives() {
    let (mut a, mut b) = pair("127.0.0.1");
    send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"hello"));
    settle(&mut a, &mut b);
    b.set_coalesce(Coalesce::default());
    let mut packets = Vec::new();
    for at in 0..600_u32 {
        let (source, destination) =
            if at % 2 == 0 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let payload = vec![at as u8; (at * 37 % 1300) as usize];
        packets.push(match at % 3 {
            0 => echo(source, destination, &payload),
            1 => Spec::new(source, destination, true).with(&payload),
            _ => Spec::new(source, destination, false).with(&payload),
        });
    }
    let mut came = Vec::new();
    for some in packets.chunks(20) {
        for packet in some {
            a.send(packet, &[], Meta::default(), now()).unwrap();
        }
        a.flush();
        came.extend(receive(&mut b).into_iter().map(|(packet, ..)| packet));
    }
    assert_eq!(came, packets);
    assert!(a.totals().sends < 100, "{}", a.totals().sends);
}

#[test]
fn the_answer_leaves_from_the_address_that_was_spoken_to() {
    let setup = "ip link set lo up
        ip addr add fd99::2/128 dev lo nodad
        ip addr add fd99::3/128 dev lo nodad";
    namespace::within(setup, || {
        namespace::await_local("fd99::3");
        for (outer, other) in [("127.0.0.2", "127.0.0.3"), ("fd99::2", "fd99::3")] {
            let (mut a, mut b) = pair(outer);
            send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
            settle(&mut a, &mut b);
            send(&mut b, &echo("10.0.0.2", "10.0.0.1", b"y"));
            assert_eq!(settle(&mut a, &mut b).0.len(), 1);
            let heard = |tunnel: &Tunnel| tunnel.state().peers[0].endpoint.unwrap().ip();
            assert_eq!(heard(&a), outer.parse::<IpAddr>().unwrap(), "not what the route says");
            // And from another one, once that was spoken to.
            let key = a.state().peers[0].key;
            let endpoint = Some(at(other, &b));
            let change = PeerChange { endpoint, ..PeerChange::new(key) };
            a.change(Change { peers: vec![change], ..Change::default() }, now()).unwrap();
            send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
            settle(&mut a, &mut b);
            send(&mut b, &echo("10.0.0.2", "10.0.0.1", b"y"));
            settle(&mut a, &mut b);
            assert_eq!(heard(&a), other.parse::<IpAddr>().unwrap());
        }
    });
}

#[test]
fn a_source_that_is_gone_is_forgotten() {
    // So that the other one is not at that address as well.
    let setup = "ip link set lo up\n ip addr add 192.0.2.7/32 dev lo\n\
        ip route replace local 192.0.2.7 dev lo table local src 127.0.0.1\n";
    namespace::within(setup, || {
        let (mut a, mut b) = pair("192.0.2.7");
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
        settle(&mut a, &mut b);
        namespace::run("ip addr del 192.0.2.7/32 dev lo");
        namespace::run("ip route del local 192.0.2.7 dev lo table local");
        send(&mut b, &echo("10.0.0.2", "10.0.0.1", b"y"));
        assert_eq!(settle(&mut a, &mut b).0.len(), 1, "{:?}", b.totals());
        assert_eq!(a.state().peers[0].endpoint.unwrap().ip().to_string(), "127.0.0.1");
    });
}

#[test]
fn a_path_that_takes_no_runs_gets_single_messages() {
    // The segments of a run may not be fragmented, single datagrams may.
    namespace::within("ip link set lo up mtu 1300", || {
        let (mut a, mut b) = pair("127.0.0.1");
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
        settle(&mut a, &mut b);
        let spec = Spec::new("10.0.0.1", "10.0.0.2", true);
        let whole = spec.with(&[5; 10_000]);
        let (headers, payload) = whole.split_at(spec.header());
        for _ in 0..2 {
            let meta = Meta { segment: Some(1380), partial_checksum: true };
            a.send(headers, payload, meta, now()).unwrap();
            a.flush();
            let came = settle(&mut a, &mut b).1;
            assert_eq!(came.iter().map(|(_, payload, _)| payload.len()).sum::<usize>(), 10_000);
        }
        assert_eq!(a.totals().dropped.iter().sum::<u64>(), 0);
    });
}

#[test]
fn ports_change_and_sockets_are_made_anew() {
    let (mut a, mut b) = pair("127.0.0.1");
    send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
    settle(&mut a, &mut b);
    let (port, fds) = (b.state().listen_port, b.sockets().count());
    // Taken, with a socket of one of the two IP versions.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen_port = Some(taken.local_addr().unwrap().port());
    let refused = b.change(Change { listen_port, ..Change::default() }, now());
    assert!(matches!(refused, Err(LinkError::Bind { .. })), "{refused:?}");
    assert_eq!(b.state().listen_port, port, "as before");
    // The side that moves is heard from its new port at once where it sends.
    b.change(Change { listen_port: Some(0), ..Change::default() }, now()).unwrap();
    assert_ne!(b.state().listen_port, port);
    send(&mut b, &echo("10.0.0.2", "10.0.0.1", b"y"));
    assert_eq!(settle(&mut a, &mut b).0.len(), 1);
    assert_eq!(a.state().peers[0].endpoint.unwrap().port(), b.state().listen_port);
    let port = b.state().listen_port;
    b.rebind(now()).unwrap();
    assert_eq!((b.state().listen_port, b.sockets().count()), (port, fds));
    send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"z"));
    assert_eq!(settle(&mut a, &mut b).1.len(), 1);
}

#[test]
fn sockets_have_one_port_big_buffers_and_the_mark() {
    namespace::within("ip link set lo up", || {
        let key = PrivateKey::generate().unwrap();
        let mut given = settings(&key, Some(51_820), vec![]);
        given.mark = Some(Mark { value: 0x7400_0000, mask: 0xff00_0000 });
        let mut tunnel = Tunnel::open(given, now()).unwrap();
        let marks = |tunnel: &Tunnel| -> Vec<u32> {
            tunnel.sockets().map(|fd| socket2::SockRef::from(&fd).mark().unwrap()).collect()
        };
        assert_eq!(tunnel.sockets().count(), 2);
        assert_eq!(marks(&tunnel), [0x7400_0000; 2]);
        assert_eq!(tunnel.state().fwmark, None);
        // Whatever the user sets, ours stays: else the outer packets would be captured.
        for (set, marked) in [(9, 0x7400_0009), (0x5500_0001, 0x7400_0001), (0, 0x7400_0000)] {
            tunnel.change(Change { fwmark: Some(Some(set)), ..Change::default() }, now()).unwrap();
            assert_eq!((marks(&tunnel), tunnel.state().fwmark), (vec![marked; 2], Some(set)));
            tunnel.rebind(now()).unwrap();
            assert_eq!(marks(&tunnel), [marked; 2]);
        }
        tunnel.change(Change { fwmark: Some(None), ..Change::default() }, now()).unwrap();
        assert_eq!(marks(&tunnel), [0x7400_0000; 2]);
        for fd in tunnel.sockets() {
            assert_eq!(
                socket2::SockRef::from(&fd).local_addr().unwrap().as_socket().unwrap().port(),
                51_820
            );
            assert!(fd.as_raw_fd() > 2);
        }
    });
}

#[test]
fn sockets_that_could_not_be_opened_are_tried_again() {
    namespace::within("ip link set lo up", || {
        let (mut a, mut b) = pair("127.0.0.1");
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
        settle(&mut a, &mut b);
        let port = b.port();
        b.close_sockets();
        let taken = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        assert!(matches!(b.rebind(now()), Err(LinkError::Bind { .. })));
        assert_eq!((b.state().listen_port, b.settings().listen_port), (0, Some(port)));
        let first = b.next_timer().unwrap();
        assert!(first <= now() + SECOND);
        assert!(!b.timers(first), "the port is still taken");
        let second = b.next_timer().unwrap();
        assert_eq!(second, first + SECOND * 2, "with more and more patience");
        drop(taken);
        assert!(b.timers(second), "and then it has sockets");
        assert_eq!(b.state().listen_port, port);
        assert!(b.next_timer().is_none_or(|at| at > second));
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"y"));
        assert_eq!(settle(&mut a, &mut b).1.len(), 1);
        // A change to the port that it should have opens it as well.
        b.close_sockets();
        b.change(Change { listen_port: Some(port), ..Change::default() }, now()).unwrap();
        assert_eq!(b.state().listen_port, port);
    });
}

#[test]
fn a_peer_that_was_killed_is_known_at_once() {
    for outer in ["127.0.0.1", "::1"] {
        namespace::within("ip link set lo up", || {
            let (mut a, mut b) = pair(outer);
            send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
            settle(&mut a, &mut b);
            assert!(a.health(now())[0].usable(), "{outer}");
            let settings = b.settings();
            drop(b);
            let began = now();
            while a.health(now())[0].usable() {
                assert!(now().since(began) < SECOND * 3, "{outer}: {:?}", a.health(now()));
                send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"lost"));
                receive(&mut a);
                if a.next_timer().is_some_and(|at| at <= now()) {
                    a.timers(now());
                }
                std::thread::sleep(SECOND / 20);
            }
            let health = a.health(now())[0];
            assert!(health.refused && health.session, "{outer}: {health:?}");
            // It is back, and asked.
            let mut b = Tunnel::open(settings, now()).unwrap();
            a.probe(now() + SECOND);
            settle(&mut a, &mut b);
            assert!(a.health(now())[0].usable(), "{outer}: {:?}", a.health(now()));
            send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"y"));
            assert_eq!(settle(&mut a, &mut b).1.len(), 1, "{outer}");
        });
    }
}

#[test]
fn an_error_about_one_peer_costs_another_nothing() {
    namespace::within("ip link set lo up", || {
        let (mut a, mut b) = pair("127.0.0.1");
        send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"x"));
        settle(&mut a, &mut b);
        let nobody = PeerChange {
            endpoint: Some("127.0.0.1:9".parse().unwrap()),
            allowed: allowed(&["10.0.0.9/32"]),
            ..PeerChange::new(PrivateKey::generate().unwrap().public())
        };
        a.change(Change { peers: vec![nobody], ..Change::default() }, now()).unwrap();
        let mut came = 0;
        for _ in 0..50 {
            // The refusal of the first waits in the socket when the second is sent.
            a.probe(now() + SECOND);
            send(&mut a, &echo("10.0.0.1", "10.0.0.2", b"y"));
            came += settle(&mut a, &mut b).1.len();
        }
        assert_eq!(came, 50);
        assert_eq!(a.totals().dropped(LinkDropped::Refused), 0, "{:?}", a.totals());
        let health = a.health(now() + SECOND * 2);
        assert_eq!([health[0].usable(), health[1].usable()], [true, false], "{health:?}");
        assert!(PeerHealth::any_usable(&health));
        assert_eq!(a.state().peers[0].endpoint.unwrap().port(), b.port());
    });
}

#[test]
fn an_unknown_datagram_gets_no_answer() {
    let (_, mut b) = pair("127.0.0.1");
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = at("127.0.0.1", &b);
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1400), (9, 10), (0, 0)] {
        let mut datagram = vec![0x5a; length];
        if length >= 4 {
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        stranger.send_to(&datagram, to).unwrap();
    }
    assert_eq!(receive(&mut b).len(), 0);
    stranger.set_nonblocking(true).unwrap();
    assert!(stranger.recv(&mut [0; 64]).is_err());
    assert_eq!(b.totals().dropped.iter().sum::<u64>(), 7 - 1, "an empty one has no datagram");
    assert!(b.totals().dropped(LinkDropped::Malformed) >= 1);
    assert_eq!(b.totals().datagrams_out, 0);
}
