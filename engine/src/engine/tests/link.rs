//! Flows that pass into a tunnel: what leaves, what comes back, and when they end.

mod ends;
mod model;
mod netstack;
mod pieces;

use super::*;
use crate::engine::Walk;
use crate::packet::checksum::{fold, sum};
use crate::packet::{Checksum, Packet, Transport, parse};
use crate::{Leads, Link, Proxy, WayId, WayKind, WayNames, WayOut, Ways};

struct Host;

impl crate::policy::Environment for Host {
    fn uid(&self, _: &str) -> Option<u32> {
        None
    }

    fn read(&self, _: &str, _: &str) -> Result<String, crate::policy::ReadError> {
        Err(crate::policy::ReadError::Missing)
    }

    fn ways(&self) -> WayNames {
        use WayKind::{Link, Proxy};
        let ways = [("wg0", Link), ("wg1", Link), ("office", Proxy)];
        WayNames::default().configured(ways).expect("few")
    }

    fn secret(&self) -> u128 {
        0
    }
}

pub(super) fn routed(text: &str) -> Policy {
    let default = if text.contains("default") { "" } else { "default allow" };
    let text = format!("policy 1\n{text}\n{default}\n");
    let source = Source { name: "test.policy".to_owned(), text };
    Policy::load(&[source], &Host).expect("a sound policy").0
}

pub(super) fn way(number: u8) -> WayId {
    WayId::new(number).expect("few")
}

fn wg(number: u8) -> LinkId {
    LinkId::of(way(number))
}

const MTU: u16 = 1420;

fn link(number: u8) -> Link {
    Link {
        device: DeviceName::new(&format!("wg{}", number - 1)).expect("a name"),
        addresses: [false, true].map(|v6| address(number, v6).into()).into(),
        mtu: MTU,
        underlay: DeviceName::new("eth0"),
    }
}

fn address(number: u8, v6: bool) -> IpAddr {
    if v6 {
        std::net::Ipv6Addr::new(0xfd00, 9, u16::from(number), 0, 0, 0, 0, 2).into()
    } else {
        [10, 9, number, 2].into()
    }
}

/// What is there, and which of it is usable.
fn ways(usable: [bool; 3]) -> Ways {
    let mut ways = Ways::default();
    for number in [1, 2] {
        let leads = Leads::Link(link(number));
        ways.set(way(number), WayOut { usable: usable[usize::from(number) - 1], leads });
    }
    ways.set(way(3), WayOut { usable: usable[2], leads: office("192.0.2.77:1080", 0) });
    ways
}

pub(super) fn office(address: &str, edition: u32) -> Leads {
    Leads::Proxy(Proxy { address: address.parse().expect("an address"), behind: None, edition })
}

pub(super) fn linked(text: &str) -> Bench {
    linked_with(config(), text)
}

fn linked_with(config: Config, text: &str) -> Bench {
    let mut bench = Bench::with(config, routed(text));
    bench.engine.set_ways(Arc::new(ways([true; 3])));
    bench
}

fn our(v6: bool) -> IpAddr {
    address(1, v6)
}

impl Sent {
    /// As the tunnel sends it: its checksum completed.
    fn packet(&self) -> Vec<u8> {
        let mut packet = [&self.headers[..], &self.payload].concat();
        if self.meta.partial_checksum {
            let start = if packet[0] >> 4 == 4 { 20 } else { 40 };
            let protocol = packet[if start == 20 { 9 } else { 6 }];
            let at = start + if protocol == TCP { 16 } else { 6 };
            let checksum = match finish(sum(&packet[start..])) {
                0 if protocol == UDP => 0xffff,
                sum => sum,
            };
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }
}

impl Bench {
    /// The packets that went into the first tunnel, each checked as its receiver would.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let sent: Vec<_> = self.wire.to_link.drain(..).collect();
        let packets: Vec<_> = sent.iter().map(Sent::packet).collect();
        for (packet, sent) in packets.iter().zip(&sent) {
            let parsed = parse(packet, Checksum::Unknown).expect("a packet whose sums are right");
            let own = sent.link.way().number();
            assert_eq!(parsed.source, address(own, parsed.source.is_ipv6()));
        }
        packets
    }

    fn only_sent(&mut self) -> Vec<u8> {
        let [packet] = self.sent().try_into().expect("one packet");
        packet
    }

    /// What a far side sends back; whether it was for the app, and as what.
    fn arrives(&mut self, mut packet: Vec<u8>) -> Option<Vec<u8>> {
        let meta = Meta::default();
        let (now, wire) = (self.now, &mut self.wire);
        let taken = self.engine.handle_link_packet(wg(1), &mut packet, &[], meta, now, wire);
        self.run();
        assert!(taken.is_none_or(|taken| taken == meta));
        if taken.is_some() {
            parse(&packet, Checksum::Unknown).expect("its sums are right for the app as well");
        }
        taken.map(|_| packet)
    }

    fn unsolicited(&self) -> u64 {
        self.engine.counters().replies_dropped[Dropped::Unsolicited as usize]
    }

    fn last_reason(&self) -> Option<Reason> {
        self.reasons().last().and_then(|(_, reason)| *reason)
    }

    fn ports(&self) -> usize {
        self.engine.nat.len()
    }
}

/// A packet of the far side's to an address and port of the link.
fn reply(v6: bool, protocol: u8, upper: &mut [u8], to: IpAddr) -> Vec<u8> {
    between(server(v6).ip(), to, protocol, upper)
}

fn tcp_reply(v6: bool, flags: u8, sequence: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let ports = (server(v6).port(), client(v6).port());
    reply(v6, TCP, &mut segment(ports, flags, sequence, ack, payload), our(v6))
}

fn udp_reply(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0u8; 8];
    datagram[0..2].copy_from_slice(&server(v6).port().to_be_bytes());
    datagram[2..4].copy_from_slice(&port.to_be_bytes());
    datagram[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    datagram.extend(payload);
    reply(v6, UDP, &mut datagram, our(v6))
}

/// An ICMP error about a packet that went into the first tunnel, from a router on the way.
fn error(kind: u8, code: u8, rest: u32, quote: &[u8]) -> Vec<u8> {
    let v6 = quote[0] >> 4 == 6;
    let router: IpAddr =
        if v6 { "2001:db8:ffff::1" } else { "192.0.2.254" }.parse().expect("an address");
    let error = crate::packet::icmp::Error { kind, code, rest };
    let mut buffer = vec![0; 1500];
    let length = crate::packet::icmp::write_long(&mut buffer, router, our(v6), error, quote);
    buffer.truncate(length);
    buffer
}

fn tcp_of<'a>(packet: &'a Packet<'a>) -> &'a crate::packet::Tcp<'a> {
    let Transport::Tcp(tcp) = &packet.transport else { panic!("a TCP segment") };
    tcp
}

/// Opens a connection through the tunnel.
fn open_linked(bench: &mut Bench, v6: bool) {
    assert_eq!(bench.packet(&tcp(v6, SYN, 1000, 0, b"")), Outcome::Held);
    bench.only_sent();
    bench.arrives(tcp_reply(v6, SYN | ACK, 5000, 1001, b"")).expect("for the app");
    assert_eq!(bench.packet(&tcp(v6, ACK, 1001, 5001, b"")), Outcome::ToLink);
    bench.only_sent();
}

#[test]
fn a_connection_passes_from_its_syn_to_its_end() {
    for v6 in [false, true] {
        let mut bench = linked("route via wg0");
        assert_eq!(bench.packet(&tcp(v6, SYN, 1000, 0, b"")), Outcome::Held);
        assert!(bench.wire.to_app.is_empty(), "no SYN-ACK but the far side's");
        let sent = bench.only_sent();
        let packet = parse(&sent, Checksum::Unknown).expect("whole");
        assert_eq!(packet.head.hops, 63);
        let most = MTU - if v6 { 60 } else { 40 };
        assert_eq!((tcp_of(&packet).syn(), tcp_of(&packet).mss()), (true, Some(most)));
        assert_eq!(packet.destination, server(v6).ip());
        assert_eq!(tcp_of(&packet).source_port(), client(v6).port(), "kept, as it is free");
        assert_eq!(bench.reasons(), [], "not open yet");
        let live = bench.list();
        assert_eq!(live[0].stage, Stage::Connecting);
        let got = bench.arrives(tcp_reply(v6, SYN | ACK, 5000, 1001, b"")).expect("for the app");
        let packet = parse(&got, Checksum::Unknown).expect("whole");
        assert_eq!((packet.source, packet.destination), (server(v6).ip(), client(v6).ip()));
        assert_eq!(tcp_of(&packet).mss(), Some(most), "the app's segments have to fit as well");
        assert_eq!(bench.reasons(), [(Stage::Open, None)]);
        for payload in [&b"question"[..], b"more"] {
            assert_eq!(bench.packet(&tcp(v6, ACK, 1001, 5001, payload)), Outcome::ToLink);
            assert!(bench.only_sent().ends_with(payload));
        }
        let got = bench.arrives(tcp_reply(v6, ACK, 5001, 1009, b"answer")).expect("for the app");
        assert!(got.ends_with(b"answer"));
        let report = bench.list().remove(0);
        assert_eq!((report.sent, report.received), (12, 6));
        assert_eq!((report.via.name(), report.underlay), ("wg0", DeviceName::new("eth0")));
        let egress = report.egress.expect("known");
        assert_eq!((egress.address, egress.device.as_str()), (our(v6), "wg0"));
        assert_eq!(report.egress_port, Some(client(v6).port()));
        let quiet = Duration::from_millis(250);
        assert!(bench.engine.is_delivering(bench.now, quiet));
        // Both halves end, the last ACK is repeated, and then the port is free.
        bench.packet(&tcp(v6, FIN | ACK, 1009, 5007, b""));
        bench.arrives(tcp_reply(v6, FIN | ACK, 5007, 1010, b"")).expect("for the app");
        bench.packet(&tcp(v6, ACK, 1010, 5008, b""));
        assert!(!bench.engine.is_delivering(bench.now, quiet));
        bench.wait(Duration::from_secs(9));
        assert_eq!(bench.packet(&tcp(v6, ACK, 1010, 5008, b"")), Outcome::ToLink);
        assert_eq!(bench.ports(), 1);
        bench.wait(Duration::from_secs(10));
        assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::AppClosed), 0));
        assert_eq!(bench.engine.flows(), 0);
    }
}

#[test]
fn nothing_leaves_that_a_rule_blocks() {
    for (rule, leaves) in [
        ("block via wg0", false),
        ("block egress wg0", false),
        ("block from 10.9.1.2", false),
        ("block egress 10.9.0.0/16", false),
        ("block from 192.0.2.1", true),
        ("block via direct", true),
        ("drop to 203.0.113.0/24", false),
        ("allow via wg0\ndefault block", true),
        ("allow via wg1\ndefault block", false),
    ] {
        let mut bench = linked(&format!("route via wg0\n{rule}"));
        for packet in [tcp(false, SYN, 1000, 0, b""), udp(false, b"x"), echo(false, 7, 1)] {
            bench.packet(&packet);
        }
        assert_eq!(bench.sent().len(), if leaves { 3 } else { 0 }, "{rule}");
        assert_eq!(bench.ports(), if leaves { 3 } else { 0 }, "{rule}");
        assert!(bench.wire.to_far.is_empty());
        assert!(!bench.outputs.iter().any(|o| matches!(o, Output::Connect(..))), "{rule}");
    }
}

#[test]
fn the_first_usable_way_is_taken_and_none_is_an_answer() {
    for (name, route, usable, sent, connects) in [
        ("the first", "wg0, wg1", [true, true, true], Some(1), false),
        ("failover", "wg0, wg1", [false, true, true], Some(2), false),
        ("direct where it is written", "wg0, direct", [false, true, true], None, true),
    ] {
        let mut bench = linked(&format!("route via {route}"));
        bench.engine.set_ways(Arc::new(ways(usable)));
        assert_eq!(bench.packet(&tcp(false, SYN, 1000, 0, b"")), Outcome::Held, "{name}");
        let link = bench.wire.to_link.first().map(|sent| sent.link.way().number());
        assert_eq!(link, sent, "{name}");
        let asked = bench.outputs.iter().any(|o| matches!(o, Output::Connect(..)));
        assert_eq!(asked, connects, "{name}");
    }
    for (rule, reason) in
        [("allow via wg0", Reason::NoWayOut), ("block via wg0 from 10.9.1.2", Reason::Policy)]
    {
        let mut bench = linked(&format!("route via wg0, wg1\n{rule}\ndefault drop"));
        bench.engine.set_ways(Arc::new(ways([false; 3])));
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        assert!(bench.wire.to_link.is_empty() && bench.wire.to_app.len() == 1, "{rule}");
        assert_eq!(bench.reasons(), [(Stage::Closed, Some(reason))]);
        if reason == Reason::NoWayOut {
            let answer = &bench.wire.to_app[0];
            assert_eq!((answer[9], answer[20], answer[21]), (ICMP, 3, 0), "net unreachable");
        }
    }
}

#[test]
fn a_link_carries_what_it_has_an_address_for() {
    let mut bench = linked("route via wg0");
    let mut ways = ways([true; 3]);
    let leads = Leads::Link(Link { addresses: [our(false).into()].into(), ..link(1) });
    ways.set(way(1), WayOut { usable: true, leads });
    bench.engine.set_ways(Arc::new(ways));
    bench.packet(&tcp(true, SYN, 1000, 0, b""));
    assert_eq!(bench.reasons(), [(Stage::Closed, Some(Reason::Unreachable))]);
    let answer = &bench.wire.to_app[0];
    assert_eq!((answer[6], answer[40], answer[41]), (ICMPV6, 1, 0), "no route");
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn proxies_are_asked_for_connections() {
    let mut bench = linked("route via office\nblock egress eth1");
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let asked = bench.outputs.iter().find_map(|output| match output {
        Output::ConnectVia(id, way, to, name, egress) => {
            Some((*id, *way, *to, name.clone(), *egress))
        }
        _ => None,
    });
    let (id, by, to, name, from) = asked.expect("the proxy is asked");
    assert_eq!((by, to, name, from), (way(3), server(false), None, egress()));
    bench.input(Input::Connected(id, 7, rings(1)));
    let [syn_ack] = bench.take_app().try_into().expect("one SYN-ACK");
    assert_eq!(syn_ack.flags, SYN | ACK);
    assert_eq!(bench.list()[0].via.name(), "office");
    bench.packet(&echo(false, 1, 1));
    assert_eq!(bench.last_reason(), Some(Reason::Unsupported));
    // What the proxy says, and what it fails at itself.
    for (failed, reason) in [
        (Input::Failed as fn(_, _) -> _, Reason::Unreachable),
        (Input::ProxyFailed as fn(_, _) -> _, Reason::Proxy),
    ] {
        let mut bench = linked("route via office");
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let asked = bench.outputs.iter().find_map(|output| match output {
            Output::ConnectVia(id, ..) => Some(*id),
            _ => None,
        });
        bench.input(failed(asked.expect("the proxy is asked"), Failure::HostUnreachable));
        assert_eq!(bench.last_reason(), Some(reason));
        let answer = &bench.wire.to_app[0];
        assert_eq!((answer[20], answer[21]), (3, 1), "host unreachable");
    }
    // It is never asked to connect to itself.
    let mut bench = linked("route via office");
    let mut ways = ways([true; 3]);
    ways.set(way(3), WayOut { usable: true, leads: office(&server(false).to_string(), 0) });
    bench.engine.set_ways(Arc::new(ways));
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    assert!(!bench.outputs.iter().any(|output| matches!(output, Output::ConnectVia(..))));
    assert_eq!(bench.last_reason(), Some(Reason::Loop));
    let answer = &bench.wire.to_app[0];
    assert_eq!((answer[20], answer[21]), (3, 0), "net unreachable");
}

#[test]
fn a_flow_to_a_proxy_behind_a_tunnel_leaves_with_the_tunnels_address() {
    for v6 in [false, true] {
        let behind = |link| {
            let (address, behind) = (server(v6), Some(link));
            let leads = Leads::Proxy(Proxy { address, behind, edition: 0 });
            let mut ways = ways([true; 3]);
            ways.set(way(3), WayOut { usable: true, leads });
            Arc::new(ways)
        };
        let text = format!("route via office\nblock from {} port 444", our(v6));
        let mut bench = linked(&text);
        bench.engine.set_ways(behind(wg(1)));
        // To another place than the proxy's own, over either version.
        bench.packet(&tcp(!v6, SYN, 1000, 0, b""));
        let asked = bench.outputs.iter().find_map(|output| match output {
            Output::ConnectVia(_, _, _, _, egress) => Some(*egress),
            _ => None,
        });
        let egress = asked.expect("the proxy is asked");
        assert_eq!((egress.address, egress.device), (our(v6), link(1).device));
        let listed = &bench.list()[0];
        assert_eq!(listed.via.name(), "office");
        assert_eq!(listed.underlay, link(1).underlay);
        // A tunnel that is not there has no address.
        bench = linked(&text);
        bench.engine.set_ways(behind(wg(9)));
        bench.packet(&tcp(!v6, SYN, 1000, 0, b""));
        assert_eq!(bench.last_reason(), Some(Reason::Unreachable));
    }
}

#[test]
fn flows_stay_with_a_proxy_until_it_is_another_one() {
    // Its address and whether new flows may take it are no business of those that are there.
    for (name, usable, leads, stays) in [
        ("as before", true, Some(office("192.0.2.77:1080", 0)), true),
        ("not usable", false, Some(office("192.0.2.77:1080", 0)), true),
        ("elsewhere", true, Some(office("192.0.2.78:1080", 0)), true),
        ("another", true, Some(office("192.0.2.77:1080", 1)), false),
        ("gone", true, None, false),
    ] {
        let mut after = Ways::default();
        if let Some(leads) = leads {
            after.set(way(3), WayOut { usable, leads });
        }
        for (open, by_reload) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut bench = linked("route via office");
            bench.packet(&tcp(false, SYN, 1000, 0, b""));
            let asked = bench.outputs.iter().find_map(|output| match output {
                Output::ConnectVia(id, ..) => Some(*id),
                _ => None,
            });
            let id = asked.expect("the proxy is asked");
            if open {
                bench.input(Input::Connected(id, 7, rings(1)));
            }
            let what = format!("{name}, open {open}, by a reload {by_reload}");
            let (policy, now) = (routed("route via office"), bench.now);
            let mut would = 0;
            bench.engine.compare(
                &policy,
                None,
                Some(&after),
                &mut Walk::default(),
                now,
                |_, _, _| {
                    would += 1;
                },
            );
            assert_eq!(would, i32::from(!stays), "{what}");
            bench.engine.set_ways(Arc::new(after.clone()));
            let (mut walk, mut cut, wire) = (Walk::default(), Vec::new(), &mut bench.wire);
            if by_reload {
                bench.engine.reload(Arc::new(policy), 2);
                bench.engine.rejudge(&mut walk, &mut cut, now, wire);
                assert_eq!(cut.len(), usize::from(!stays), "{what}");
            } else {
                bench.engine.leave_links(&mut walk, now, wire);
            }
            bench.run();
            let last = (!stays).then_some(Reason::PathChanged);
            assert_eq!(bench.last_reason(), last, "{what}");
        }
    }
}

#[test]
fn datagrams_and_echo_pass_and_unsolicited_ones_do_not() {
    for v6 in [false, true] {
        let mut bench = linked("route via wg0");
        bench.packet(&udp(v6, b"question"));
        assert!(bench.only_sent().ends_with(b"question"));
        let got = bench.arrives(udp_reply(v6, client(v6).port(), b"answer")).expect("a reply");
        assert_eq!(got.len(), ip_header(our(v6)) + 8 + 6);
        for (name, packet) in [
            ("another port", udp_reply(v6, client(v6).port() + 1, b"x")),
            ("TCP", tcp_reply(v6, ACK, 1, 1, b"")),
        ] {
            let before = bench.unsolicited();
            assert_eq!(bench.arrives(packet), None, "{name}");
            assert_eq!(bench.unsolicited(), before + 1, "{name}");
        }
        bench.packet(&echo(v6, 77, 3));
        let sent = bench.only_sent();
        let start = ip_header(our(v6));
        assert_eq!(&sent[start + 4..start + 8], &[0, 77, 0, 3]);
        let (kind, protocol) = if v6 { (129, ICMPV6) } else { (0, ICMP) };
        let mut message = sent[start..].to_vec();
        message[0] = kind;
        let got = bench.arrives(reply(v6, protocol, &mut message, our(v6)));
        assert!(got.expect("a reply").ends_with(b"ping"));
        // Of a flow that is over.
        bench.wait(Duration::from_secs(181));
        assert_eq!((bench.engine.flows(), bench.ports()), (0, 0));
        assert_eq!(bench.arrives(udp_reply(v6, client(v6).port(), b"late")), None);
        assert!(bench.wire.to_app.is_empty());
    }
}

#[test]
fn two_clients_of_one_port_are_told_apart() {
    let other: IpAddr = IpAddr::from([198, 18, 0, 99]);
    let from = |mut packet: Vec<u8>, client: IpAddr| {
        let none = crate::packet::checksum::Update::default();
        let to = (client, 40_000);
        let end = crate::packet::rewrite::End::Source;
        crate::packet::rewrite::readdress(&mut packet, 20, UDP, end, to, false, none);
        packet
    };
    let mut bench = linked("route via wg0");
    bench.packet(&udp(false, b"one"));
    bench.packet(&from(udp(false, b"two"), other));
    let sent = bench.sent();
    let ports: Vec<u16> = sent.iter().map(|packet| be16(packet, 20)).collect();
    assert_eq!(ports[0], 40_000);
    assert_ne!(ports[1], 40_000);
    for (port, client) in [(ports[0], client(false).ip()), (ports[1], other)] {
        let got = bench.arrives(udp_reply(false, port, b"x")).expect("a reply");
        let packet = parse(&got, Checksum::Unknown).expect("whole");
        assert_eq!(packet.destination, client);
        let Transport::Udp(udp) = packet.transport else { panic!("a datagram") };
        assert_eq!(udp.destination_port, 40_000);
    }
    // The link's own address as client has the port of its choice as well.
    bench.packet(&from(udp(false, b"three"), our(false)));
    assert_ne!(be16(&bench.only_sent(), 20), 40_000);
    assert_eq!(bench.ports(), 3);
}

#[test]
fn super_packets_pass_uncut() {
    for (segment, fits) in [(1200, true), (1400, false)] {
        let mut bench = linked_with(Config { offload: true, ..config() }, "route via wg0");
        open_linked(&mut bench, false);
        let payload = vec![1; 10_000];
        let packet = tcp(false, ACK, 1001, 5001, &payload);
        let received = Received { segment: Some(segment), ..Received::default() };
        let (now, wire) = (bench.now, &mut bench.wire);
        let outcome = bench.engine.handle_packet(&packet, received, now, wire);
        if !fits {
            assert_eq!(outcome, Outcome::ToApp, "a segment is too long for the link");
            assert!(bench.wire.to_link.is_empty());
            continue;
        }
        assert_eq!(outcome, Outcome::ToLink);
        let sent = &bench.wire.to_link[0];
        assert_eq!(sent.meta, Meta { segment: Some(segment), partial_checksum: true });
        assert_eq!((sent.headers.len(), sent.payload.len()), (40, 10_000));
        // And back: one header, many payloads.
        let whole = tcp_reply(false, ACK, 5001, 11_001, &payload);
        let mut headers = whole[..40].to_vec();
        let covered = pseudo(server(false).ip(), our(false), TCP, whole.len() - 20);
        let partial = fold(covered);
        headers[36..38].copy_from_slice(&partial.to_be_bytes());
        let pieces: Vec<&[u8]> = whole[40..].chunks(1300).collect();
        let meta = Meta { segment: Some(1300), partial_checksum: true };
        let (now, wire) = (bench.now, &mut bench.wire);
        let taken = bench.engine.handle_link_packet(wg(1), &mut headers, &pieces, meta, now, wire);
        assert_eq!(taken, Some(meta));
        let covered = pseudo(server(false).ip(), client(false).ip(), TCP, whole.len() - 20);
        assert_eq!(be16(&headers, 36), fold(covered));
        assert_eq!(bench.list()[0].received, 10_000);
    }
}

#[test]
fn the_hop_limit_counts() {
    for v6 in [false, true] {
        let mut bench = linked("route via wg0");
        let mut packet = udp(v6, b"probe");
        if v6 {
            packet[7] = 1;
        } else {
            packet[8] = 1;
            packet[10..12].fill(0);
            let checksum = finish(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        for _ in 0..2 {
            bench.packet(&packet);
            let answer = bench.wire.to_app.pop().expect("an answer");
            let parsed = parse(&answer, Checksum::Unknown).expect("whole");
            assert_eq!(parsed.source, our(v6), "the router");
            let start = ip_header(our(v6));
            assert_eq!((answer[start], answer[start + 1]), (if v6 { 3 } else { 11 }, 0));
            assert!(bench.wire.to_link.is_empty());
        }
    }
}

#[test]
fn errors_of_the_way_reach_the_app_translated() {
    for v6 in [false, true] {
        let start = ip_header(our(v6));
        let mut bench = linked("route via wg0");
        bench.packet(&udp(v6, b"question"));
        let sent = bench.only_sent();
        let refused = if v6 { (1, 4) } else { (3, 3) };
        let too_big = if v6 { (2, 0) } else { (3, 4) };
        for (name, (kind, code), rest) in
            [("port unreachable", refused, 0), ("too big", too_big, 1300)]
        {
            assert_eq!(bench.arrives(error(kind, code, rest, &sent)), None);
            let got = bench.wire.to_app.pop().expect(name);
            let packet = parse(&got, Checksum::Unknown).expect("its sums are right");
            assert_eq!(packet.destination, client(v6).ip(), "{name}");
            assert_eq!((got[start], got[start + 1], be32(&got, start + 4)), (kind, code, rest));
            let quoted = parse(&got[start + 8..], Checksum::Unknown).expect("as the app sent it");
            assert_eq!((quoted.source, quoted.destination), (client(v6).ip(), server(v6).ip()));
            let Transport::Udp(udp) = quoted.transport else { panic!("a datagram") };
            assert_eq!((udp.source_port, udp.payload), (client(v6).port(), &b"question"[..]));
        }
        // About nothing of ours, or cut short.
        let other = udp(v6, b"question");
        for (name, packet) in [
            ("another source", error(refused.0, refused.1, 0, &other)),
            ("no transport", error(refused.0, refused.1, 0, &sent[..start + 4])),
            ("an echo request", {
                let mut message = [128, 0, 0, 0, 0, 1, 0, 1];
                message[0] = if v6 { 128 } else { 8 };
                reply(v6, if v6 { ICMPV6 } else { ICMP }, &mut message, our(v6))
            }),
        ] {
            assert_eq!(bench.arrives(packet), None, "{name}");
            assert!(bench.wire.to_app.is_empty(), "{name}");
        }
        let mut corrupt = error(refused.0, refused.1, 0, &sent);
        corrupt[start + 20] ^= 1;
        assert_eq!(bench.arrives(corrupt), None);
        assert!(bench.wire.to_app.is_empty(), "a wrong sum");
        let mut bench = linked("route via wg0");
        open_linked(&mut bench, v6);
        bench.packet(&tcp(v6, ACK, 1001, 5001, b"data"));
        let sent = bench.only_sent();
        let mut stale = sent.clone();
        stale[start + 4..start + 8].copy_from_slice(&900u32.to_be_bytes());
        bench.arrives(error(too_big.0, too_big.1, 1300, &stale));
        assert!(bench.wire.to_app.is_empty(), "about no segment that is under way");
        // A router that quotes no more than eight bytes.
        bench.arrives(error(too_big.0, too_big.1, 1300, &sent[..start + 8]));
        assert_eq!(bench.wire.to_app.len(), 1);
        assert_eq!(bench.engine.live(), 1, "it stays");
        let mut bench = linked("route via wg0");
        bench.packet(&tcp(v6, SYN, 1000, 0, b""));
        let sent = bench.only_sent();
        bench.arrives(error(if v6 { 1 } else { 3 }, 0, 0, &sent));
        assert_eq!(bench.wire.to_app.len(), 1, "its connect() fails with it");
        assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::Unreachable), 0));
    }
}

#[test]
fn a_tunnel_that_takes_nothing_is_an_answer() {
    let host = Unsent::Failed(Failure::HostUnreachable);
    let mut bench = linked("route via wg0");
    bench.wire.refuse_link = Some(host);
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    assert_eq!(bench.reasons(), [(Stage::Closed, Some(Reason::Unreachable))]);
    let answer = &bench.wire.to_app[0];
    assert_eq!((answer[9], answer[20], answer[21], bench.ports()), (ICMP, 3, 1, 0));
    bench.wire.to_app.clear();
    bench.packet(&udp(false, b"x"));
    assert_eq!(bench.wire.to_app.len(), 1, "told, and the next may fare better");
    bench.wire.refuse_link = Some(Unsent::Full);
    let full = Outcome::Dropped(Dropped::EgressFull);
    assert_eq!(bench.packet(&udp(false, b"x")), full);
    bench.wire.refuse_link = None;
    assert_eq!(bench.packet(&udp(false, b"x")), Outcome::ToLink);
}

#[test]
fn a_new_connection_from_the_same_port() {
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.packet(&tcp(false, FIN | ACK, 1001, 5001, b""));
    bench.arrives(tcp_reply(false, FIN | ACK, 5001, 1002, b""));
    bench.packet(&tcp(false, ACK, 1002, 5002, b""));
    bench.sent();
    assert_eq!(bench.packet(&tcp(false, SYN, 90_000, 0, b"")), Outcome::Held);
    assert_eq!(Segment::parse(&bench.only_sent()).sequence, 90_000);
    assert_eq!((bench.engine.flows_opened(), bench.ports()), (2, 1));
    // Its SYN again, and another one's: both pass.
    for sequence in [90_000, 95_000] {
        assert_eq!(bench.packet(&tcp(false, SYN, sequence, 0, b"")), Outcome::ToLink);
    }
    bench.arrives(tcp_reply(false, SYN | ACK, 7000, 95_001, b"")).expect("for the app");
    assert_eq!(bench.list()[0].stage, Stage::Open);
}

#[test]
fn any_bytes_out_of_a_tunnel_are_dropped_or_right() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let base = prop_oneof![
        Just(tcp_reply(false, ACK, 5001, 1001, b"answer")),
        Just(tcp_reply(true, ACK, 5001, 1001, b"answer")),
        Just(udp_reply(false, 40_000, b"answer")),
        Just(error(3, 3, 0, &udp(false, b"question"))),
        prop::collection::vec(any::<u8>(), 0..200),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let strategy = (base, changes, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let result = runner.run(&strategy, |(mut packet, changes, cut, end)| {
        let mut bench = linked("route via wg0");
        for v6 in [false, true] {
            open_linked(&mut bench, v6);
        }
        bench.packet(&udp(false, b"question"));
        for (at, byte) in changes {
            if !packet.is_empty() {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
        }
        packet.truncate(end.index(packet.len() + 1));
        let cut = cut.index(packet.len() + 1);
        let (headers, rest) = packet.split_at_mut(cut);
        let (now, wire) = (bench.now, &mut bench.wire);
        let meta = Meta::default();
        let taken = bench.engine.handle_link_packet(wg(1), headers, &[rest], meta, now, wire);
        bench.run();
        let replies: u64 = bench.engine.counters().replies_dropped.iter().sum();
        let to_app = bench.wire.to_app.len();
        let piece = !bench.engine.link_pieces.is_empty();
        prop_assert_eq!(
            u64::from(taken.is_some()) + replies + to_app as u64 + u64::from(piece && replies == 0),
            1
        );
        Ok(())
    });
    result.expect("every packet ends somewhere");
}

/// `cargo test --release -p engine -- --ignored --nocapture what_a_packet_through_a_tunnel_costs`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it reads the clock to measure")]
fn what_a_packet_through_a_tunnel_costs() {
    struct Counting(usize);
    impl Sink for Counting {
        fn to_app(&mut self, _: usize, _: Meta, _: impl FnOnce(&mut [u8]) -> usize) {}

        fn to_far(&mut self, _: Way, _: Datagram<'_>) -> Result<(), Unsent> {
            Ok(())
        }

        fn to_link(&mut self, _: LinkId, h: &[u8], p: &[u8], _: Meta) -> Result<(), Unsent> {
            self.0 += h.len() + p.len();
            Ok(())
        }
    }
    const COUNT: u32 = 1_000_000;
    for flows in [1_u16, 1_000, 20_000] {
        let base = Config { flows: 65_536, half_open: 65_536, offload: true, ..config() };
        let mut bench = linked_with(base, "route via wg0");
        let packets: Vec<_> = (0..flows)
            .map(|port| aimed(udp(false, &[7; 1200]), 2000 + port, [203, 0, 113, 9]))
            .collect();
        for packet in &packets {
            bench.packet(packet);
        }
        let mut replies: Vec<_> =
            (0..flows).map(|port| udp_reply(false, 2000 + port, &[7; 1200])).collect();
        bench.wire.to_link.clear();
        let trusted = Received { checksum: Checksum::Trusted, segment: None };
        let mut sink = Counting(0);
        let began = std::time::Instant::now();
        for at in 0..COUNT {
            let packet = &packets[at as usize % packets.len()];
            bench.engine.handle_packet(packet, trusted, bench.now, &mut sink);
        }
        let out = began.elapsed() / COUNT;
        assert_eq!(sink.0, COUNT as usize * 1228, "each left");
        let mut scratch = [0; 1228];
        let began = std::time::Instant::now();
        for at in 0..COUNT {
            let at = at as usize % replies.len();
            scratch.copy_from_slice(&replies[at]);
            let meta = Meta::default();
            let now = bench.now;
            let taken =
                bench.engine.handle_link_packet(wg(1), &mut scratch, &[], meta, now, &mut sink);
            assert!(taken.is_some());
        }
        let back = began.elapsed() / COUNT;
        replies.clear();
        println!("{flows} flows: {out:?} a packet in, {back:?} one out (with a copy of it)");
    }
}
