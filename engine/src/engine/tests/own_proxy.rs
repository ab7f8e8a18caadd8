//! Proxies at addresses of this host: their own flows, and chains that nobody sees.

use super::link::{office, routed, way};
use super::*;
use crate::engine::chain::LONGEST;
use crate::{Learned, ResolverSet, WayOut, Ways};

const FAR: [u8; 4] = [203, 0, 113, 9];

/// The address of the app's packets is the device's, so the flows are local.
fn own() -> Own {
    Own::Addresses { device: vec![client(false).ip()], host: vec![[192, 0, 2, 1].into()] }
}

/// Everything through a proxy at that address.
fn routed_to(own: Own, proxy: &str, text: &str) -> Bench {
    let config = Config { own, flows: 1000, half_open: 1000, reports: false, ..config() };
    let mut bench = Bench::with(config, routed(text));
    let mut ways = Ways::default();
    ways.set(way(3), WayOut { usable: true, leads: office(proxy, 0) });
    bench.engine.set_ways(Arc::new(ways));
    bench
}

fn syn(port: u16, to: [u8; 4]) -> Vec<u8> {
    aimed(tcp(false, SYN, 1000, 0, b""), port, to)
}

/// The flows that the proxy is asked for.
fn asked(bench: &mut Bench) -> Vec<FlowId> {
    let outputs = bench.outputs.drain(..);
    let id = |output| match output {
        Output::ConnectVia(id, ..) | Output::Associate(id, ..) => Some(id),
        _ => None,
    };
    outputs.filter_map(id).collect()
}

#[test]
fn a_proxy_of_this_host_leaves_directly_whatever_the_routes_are() {
    // No rule asks for an owner, and nobody wants reports.
    let owner =
        |client: SocketAddr| Some(Owner { uid: 0, cgroup: None, of_proxy: client.port() == 2000 });
    for (own, proxy, local) in [
        (own(), "127.0.0.1:1080", true),
        (own(), "[::1]:1080", true),
        (own(), "192.0.2.1:1080", true),
        (own(), "192.0.2.77:1080", false),
        (Own::Every, "127.0.0.1:1080", false),
    ] {
        let mut bench = routed_to(own, proxy, "route via office\nblock to 198.51.100.7 via direct");
        bench.owner = owner;
        bench.packet(&syn(2000, FAR));
        let directly = bench.outputs.iter().any(|it| matches!(it, Output::Connect(..)));
        assert_eq!(directly, local, "{proxy}");
        if !local {
            continue;
        }
        bench.packet(&syn(2001, FAR));
        assert_eq!(asked(&mut bench).len(), 1, "{proxy}: another process of that user");
        // It is judged all the same.
        bench.packet(&syn(2000, [198, 51, 100, 7]));
        let reset = bench.wire.to_app.pop().expect("an answer");
        assert_eq!(Segment::parse(&reset).flags, RST | ACK, "{proxy}");
        // A reload does not move it.
        let before = bench.engine.live();
        let (mut walk, mut cut) = (crate::Walk::default(), Vec::new());
        bench.engine.reload(Arc::new(routed("route via office")), 2);
        while !walk.is_over() {
            bench.engine.rejudge(&mut walk, &mut cut, bench.now, &mut bench.wire);
        }
        assert_eq!((cut.len(), bench.engine.live()), (0, before), "{proxy}");
    }
}

#[test]
fn addresses_of_this_host_may_come_later() {
    let mut bench = routed_to(own(), "192.0.2.5:1080", "route via office");
    assert!(!bench.engine.is_of_this_host([192, 0, 2, 5].into()));
    bench.engine.set_host_addresses(vec![[192, 0, 2, 5].into()]);
    assert!(bench.engine.is_of_this_host([192, 0, 2, 5].into()));
    bench.owner = |_| Some(Owner { uid: 0, cgroup: None, of_proxy: true });
    bench.packet(&syn(2000, FAR));
    assert!(bench.outputs.iter().any(|it| matches!(it, Output::Connect(..))));
}

#[test]
fn what_comes_from_the_proxy_s_own_host_is_a_loop() {
    let mut bench = routed_to(own(), "10.0.0.7:1080", "route via office");
    let mut packet = syn(2000, FAR);
    packet[12..16].copy_from_slice(&[10, 0, 0, 7]);
    packet[10..12].fill(0);
    let header = finish(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    // The other sum was another client's.
    let trusted = Received { checksum: crate::Checksum::Trusted, segment: None };
    bench.engine.handle_packet(&packet, trusted, bench.now, &mut bench.wire);
    bench.run();
    assert!(asked(&mut bench).is_empty());
    let answer = bench.wire.to_app.pop().expect("an answer");
    assert_eq!((answer[9], answer[20], answer[21]), (ICMP, 3, 0), "net unreachable");
}

#[test]
fn a_chain_ends_where_too_many_wait_for_one_destination() {
    let fill = |bench: &mut Bench, packet: fn(u16, [u8; 4]) -> Vec<u8>| -> Vec<FlowId> {
        for port in 0..LONGEST as u16 {
            bench.packet(&packet(3000 + port, FAR));
        }
        asked(bench)
    };
    let udp_to = |port, to| aimed(udp(false, b"x"), port, to);
    for packet in [syn as fn(u16, [u8; 4]) -> Vec<u8>, udp_to] {
        let mut bench = routed_to(own(), "127.0.0.1:1080", "route via office");
        let waiting = fill(&mut bench, packet);
        assert_eq!(waiting.len(), LONGEST as usize);
        bench.packet(&packet(2000, FAR));
        let answer = bench.wire.to_app.pop().expect("the next is refused");
        assert_eq!((answer[9], answer[20]), (ICMP, 3));
        assert!(asked(&mut bench).is_empty());
        // Another destination is another chain.
        bench.packet(&packet(2000, [203, 0, 113, 10]));
        assert_eq!(asked(&mut bench).len(), 1);
        // Each that fails makes room for one.
        bench.input(Input::ProxyFailed(waiting[0], Failure::NetUnreachable));
        for (port, room) in [(2001, 1), (2002, 0)] {
            bench.packet(&packet(port, FAR));
            assert_eq!(asked(&mut bench).len(), room, "{port}");
        }
        // ... and all of them all of it.
        bench.input(Input::Shutdown);
        bench.outputs.clear();
        assert_eq!(fill(&mut bench, packet).len(), LONGEST as usize);
    }
    // What is answered waits no more.
    let mut bench = routed_to(own(), "127.0.0.1:1080", "route via office");
    for id in fill(&mut bench, syn) {
        bench.input(Input::Connected(id, 1, rings(id.slot() as u32)));
    }
    assert_eq!(fill(&mut bench, |port, to| syn(port + 1000, to)).len(), LONGEST as usize);
    // A proxy elsewhere has as many as it has.
    let mut bench = routed_to(own(), "192.0.2.77:1080", "route via office");
    fill(&mut bench, syn);
    bench.packet(&syn(2000, FAR));
    assert_eq!(asked(&mut bench).len(), 1);
}

#[test]
fn a_chain_goes_by_the_name_that_the_proxy_is_told() {
    let mut bench = routed_to(own(), "127.0.0.1:1080", "route via office");
    let all: Vec<[u8; 4]> = (1..=LONGEST as u8 + 1).map(|last| [203, 0, 113, last]).collect();
    let addresses = all.iter().map(|to| (IpAddr::from(*to), ResolverSet::EMPTY)).collect();
    let ttl = Duration::from_secs(60);
    bench.engine.learn(&[Learned { name: "a.example".into(), addresses, ttl }], bench.now);
    for to in all {
        bench.packet(&syn(2000, to));
    }
    assert_eq!(asked(&mut bench).len(), LONGEST as usize);
}
