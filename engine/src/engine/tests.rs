//! Packet scripts against a whole engine; the far side and the host are played by hand.
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for one output among all")]

mod any_bytes;
mod cost;
mod limits;
mod link;
mod live;
mod model;
mod named;
mod own_proxy;
mod panics;
mod peek;
mod proxied;
mod reload;
mod service;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::packet::checksum::{finish, pseudo, sum};
use crate::packet::{ECHO_HEADER, ICMP, ICMPV6, TCP, UDP, be16, be32, ip_header, write_ip};
use crate::policy::{NoEnvironment, Policy, Source};
use crate::share::Share;
use crate::{
    Arrived, Config, Counters, Datagram, DeviceName, Dropped, Egress, Engine, Failure, FlowId,
    Input, Instant, LinkId, LinkPort, MappingId, Meta, Outcome, Output, Own, Owner, Reason,
    Received, RingId, Rings, Services, Sink, Stage, Unresolved, Unsent, Way,
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

#[derive(Default)]
struct Wire {
    to_app: Vec<Vec<u8>>,
    to_far: Vec<(Way, Vec<u8>)>,
    /// Of each of these, whether it may not be fragmented.
    kept_whole: Vec<bool>,
    refuse: Option<Unsent>,
    to_link: Vec<Sent>,
    refuse_link: Option<Unsent>,
    to_netstack: Vec<(LinkPort, Arrived)>,
}

/// A packet into a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    link: LinkId,
    headers: Vec<u8>,
    payload: Vec<u8>,
    meta: Meta,
}

impl Sink for Wire {
    fn to_app(&mut self, max: usize, _: Meta, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut packet = vec![0; max];
        let length = write(&mut packet);
        packet.truncate(length);
        self.to_app.push(packet);
    }

    fn to_far(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent> {
        match self.refuse {
            Some(unsent) => Err(unsent),
            None => {
                self.to_far.push((way, datagram.payload.to_vec()));
                self.kept_whole.push(datagram.dont_fragment);
                Ok(())
            }
        }
    }

    fn to_link(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
    ) -> Result<(), Unsent> {
        if let Some(unsent) = self.refuse_link {
            return Err(unsent);
        }
        let (headers, payload) = (headers.to_vec(), payload.to_vec());
        self.to_link.push(Sent { link, headers, payload, meta });
        Ok(())
    }

    fn to_netstack(&mut self, port: LinkPort, arrived: Arrived) {
        self.to_netstack.push((port, arrived));
    }
}

struct Bench {
    engine: Engine,
    wire: Wire,
    now: Instant,
    outputs: Vec<Output>,
    /// Whose socket has that client address.
    owner: fn(SocketAddr) -> Option<Owner>,
}

fn config() -> Config {
    Config {
        mtu: 1500,
        offload: false,
        udp_offload: false,
        flows: 64,
        half_open: 16,
        own: Own::Every,
        reports: true,
        services: Services::default(),
        share: Share::WHOLE,
        seed: 7,
    }
}

fn egress() -> Egress {
    Egress {
        address: IpAddr::from([192, 0, 2, 1]),
        device: DeviceName::new("eth0").expect("a name"),
    }
}

fn rings(id: u32) -> Rings {
    // Every page there, as in a ring that has been used: not what a first touch costs.
    let ring = || Box::leak(vec![1u8; 16 * 1024].into_boxed_slice());
    Rings { id: RingId(id), to_far: ring(), to_app: ring() }
}

impl Bench {
    fn new(config: Config) -> Self {
        Self::with(config, Policy::allow_all())
    }

    fn with(config: Config, policy: Policy) -> Self {
        Self {
            engine: Engine::new(config, Arc::new(policy), Instant::ZERO),
            wire: Wire::default(),
            now: Instant::ZERO,
            outputs: Vec::new(),
            owner: |_| None,
        }
    }

    /// Feeds a packet, answers owner and source as a host with one uplink would.
    fn packet(&mut self, packet: &[u8]) -> Outcome {
        let outcome =
            self.engine.handle_packet(packet, Received::default(), self.now, &mut self.wire);
        self.run();
        outcome
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(input, self.now, &mut self.wire);
        self.run();
    }

    fn run(&mut self) {
        loop {
            while let Some(output) = self.engine.poll_output() {
                let input = match output {
                    Output::Owner(id, _, client, _) => Some(Input::Owner(id, (self.owner)(client))),
                    Output::Source(id, ..) => Some(Input::Source(id, Ok(egress()))),
                    Output::Bind(id, ..) | Output::OpenEcho(id, ..) => Some(Input::Bound(id, 9)),
                    other => {
                        self.outputs.push(other);
                        None
                    }
                };
                if let Some(input) = input {
                    self.engine.handle(input, self.now, &mut self.wire);
                }
            }
            let Some(id) = self.engine.next_dirty() else { return };
            self.engine.settle(id, self.now, &mut self.wire);
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.engine.handle_timeout(self.now, &mut self.wire);
        self.run();
    }

    fn connect_asked(&mut self) -> FlowId {
        let at = self.outputs.iter().position(|o| matches!(o, Output::Connect(..)));
        match self.outputs.remove(at.expect("a connect is asked for")) {
            Output::Connect(id, ..) => id,
            other => panic!("{other:?}"),
        }
    }

    fn reasons(&self) -> Vec<(Stage, Option<Reason>)> {
        let report = |output: &Output| match output {
            Output::Report(report) => Some((report.stage, report.reason)),
            _ => None,
        };
        self.outputs.iter().filter_map(report).collect()
    }

    fn take_app(&mut self) -> Vec<Segment> {
        self.wire.to_app.drain(..).map(|p| Segment::parse(&p)).collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: Vec<u8>,
}

impl Segment {
    fn parse(packet: &[u8]) -> Self {
        let start = if packet[0] >> 4 == 4 { 20 } else { 40 };
        assert_eq!(packet[if start == 20 { 9 } else { 6 }], TCP, "a TCP segment");
        let tcp = &packet[start..];
        let payload = tcp[usize::from(tcp[12] >> 4) * 4..].to_vec();
        Self {
            flags: tcp[13] & !0x08,
            sequence: be32(tcp, 4),
            acknowledgement: be32(tcp, 8),
            payload,
        }
    }
}

/// A policy of these rules; `default allow` unless they say otherwise.
fn policy(text: &str) -> Policy {
    let default = if text.contains("default") { "" } else { "default allow" };
    let text = format!("policy 1\n{text}\n{default}\n");
    let source = Source { name: "test.policy".to_owned(), text };
    Policy::load(&[source], &NoEnvironment).expect("a sound policy").0
}

/// An IPv4 packet of another client port (or echo identifier), to another host.
fn aimed(mut packet: Vec<u8>, port: u16, to: [u8; 4]) -> Vec<u8> {
    let protocol = packet[9];
    packet[16..20].copy_from_slice(&to);
    let (port_at, checksum_at) = match protocol {
        TCP => (20, 36),
        UDP => (20, 26),
        _ => (24, 22),
    };
    packet[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
    packet[10..12].fill(0);
    let header = finish(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet[checksum_at..checksum_at + 2].fill(0);
    let length = packet.len() - 20;
    let pseudo =
        if protocol == ICMP { 0 } else { pseudo(client(false).ip(), to.into(), protocol, length) };
    let checksum = finish(sum(&packet[20..]) + pseudo);
    packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn client(v6: bool) -> SocketAddr {
    address(if v6 { "[2001:2:0:756e::1]:40000" } else { "198.18.0.1:40000" })
}

fn server(v6: bool) -> SocketAddr {
    address(if v6 { "[2001:db8::9]:80" } else { "203.0.113.9:80" })
}

fn with_ip(v6: bool, protocol: u8, upper: &mut [u8]) -> Vec<u8> {
    between(client(v6).ip(), server(v6).ip(), protocol, upper)
}

/// A whole packet from one to the other.
fn between(from: IpAddr, to: IpAddr, protocol: u8, upper: &mut [u8]) -> Vec<u8> {
    let checksum_at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    };
    upper[checksum_at..checksum_at + 2].fill(0);
    let pseudo = if protocol == ICMP { 0 } else { pseudo(from, to, protocol, upper.len()) };
    let checksum = finish(sum(upper) + pseudo);
    upper[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    let start = ip_header(from);
    let mut packet = vec![0; start + upper.len()];
    write_ip(&mut packet, from, to, protocol, upper.len());
    packet[start..].copy_from_slice(upper);
    packet
}

fn tcp(v6: bool, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let ports = (client(v6).port(), server(v6).port());
    with_ip(v6, TCP, &mut segment(ports, flags, sequence, acknowledgement, payload))
}

/// A TCP segment, its checksum left out.
fn segment(
    ports: (u16, u16),
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![0u8; 20];
    header[0..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    header[13] = flags;
    header[14..16].copy_from_slice(&60_000u16.to_be_bytes());
    if flags & SYN != 0 {
        header.extend([2, 4, 5, 0xb4]);
    }
    header[12] = (header.len() as u8 / 4) << 4;
    header.extend(payload);
    header
}

fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0u8; 8];
    datagram[0..2].copy_from_slice(&client(v6).port().to_be_bytes());
    datagram[2..4].copy_from_slice(&server(v6).port().to_be_bytes());
    datagram[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    datagram.extend(payload);
    with_ip(v6, UDP, &mut datagram)
}

fn echo(v6: bool, ident: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![0u8; ECHO_HEADER];
    message[0] = if v6 { 128 } else { 8 };
    message[4..6].copy_from_slice(&ident.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message.extend(b"ping");
    with_ip(v6, if v6 { ICMPV6 } else { ICMP }, &mut message)
}

/// Opens a connection and gives its flow and our next sequence number.
fn open(bench: &mut Bench, v6: bool) -> (FlowId, u32) {
    assert_eq!(bench.packet(&tcp(v6, SYN, 1000, 0, b"")), Outcome::Held);
    assert!(bench.wire.to_app.is_empty(), "no SYN-ACK before the far side answered");
    let id = bench.connect_asked();
    bench.input(Input::Connected(id, 5000, rings(1)));
    let [syn_ack] = bench.take_app().try_into().expect("one SYN-ACK");
    assert_eq!((syn_ack.flags, syn_ack.acknowledgement), (SYN | ACK, 1001));
    let next = syn_ack.sequence.wrapping_add(1);
    assert_eq!(bench.packet(&tcp(v6, ACK, 1001, next, b"")), Outcome::ToEgress);
    (id, next)
}

fn read(bench: &mut Bench, id: FlowId) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(()) = bench.engine.with_app_data(id, bench.now, |data| {
        all.extend_from_slice(data);
        (data.len(), ())
    }) {}
    bench.engine.settle(id, bench.now, &mut bench.wire);
    bench.run();
    all
}

fn write(bench: &mut Bench, id: FlowId, data: &[u8]) {
    let taken = bench.engine.with_room(id, bench.now, |room| {
        room[..data.len()].copy_from_slice(data);
        (data.len(), ())
    });
    assert!(taken.is_some(), "there is room");
    bench.engine.settle(id, bench.now, &mut bench.wire);
    bench.run();
}

#[test]
fn bytes_move_both_ways_and_both_ends_close() {
    for v6 in [false, true] {
        let mut bench = Bench::new(config());
        let (id, next) = open(&mut bench, v6);
        bench.packet(&tcp(v6, ACK, 1001, next, b"question"));
        assert_eq!(read(&mut bench, id), b"question");
        bench.wire.to_app.clear();
        write(&mut bench, id, b"answer");
        let [segment] = bench.take_app().try_into().expect("one segment");
        assert_eq!(segment.payload, b"answer");
        // The app ends its half; the far side may still send.
        bench.packet(&tcp(v6, ACK | FIN, 1009, next + 6, b""));
        assert!(matches!(bench.outputs.last(), Some(Output::ShutdownFar(f)) if *f == id));
        bench.wire.to_app.clear();
        write(&mut bench, id, b"more");
        assert_eq!(bench.take_app()[0].payload, b"more");
        bench.input(Input::FarEnded(id));
        let fin = bench.take_app().pop().expect("a FIN");
        assert_eq!(fin.flags & FIN, FIN);
        bench.packet(&tcp(v6, ACK, 1010, next + 11, b""));
        assert_eq!(bench.engine.flows(), 0, "v6 {v6}");
        let released = bench.outputs.iter().any(|o| matches!(o, Output::Release(RingId(1), _)));
        assert!(released, "the rings are given back");
        assert_eq!(
            bench.reasons(),
            [(Stage::Open, None), (Stage::Closed, Some(Reason::AppClosed))]
        );
    }
}

#[test]
fn the_last_bytes_and_the_end_are_one_segment() {
    let mut bench = Bench::new(config());
    let (id, _) = open(&mut bench, false);
    bench.engine.with_room(id, bench.now, |room| {
        room[0] = b'x';
        (1, ())
    });
    bench.input(Input::FarEnded(id));
    let [segment] = bench.take_app().try_into().expect("one segment");
    assert_eq!((segment.flags & FIN, segment.payload.as_slice()), (FIN, &b"x"[..]));
}

#[test]
fn an_end_waits_for_the_bytes_before_it() {
    let mut bench = Bench::new(config());
    let (id, next) = open(&mut bench, false);
    bench.packet(&tcp(false, ACK | FIN, 1001, next, b"last words"));
    let shut = |bench: &Bench| bench.outputs.iter().any(|o| matches!(o, Output::ShutdownFar(_)));
    assert!(!shut(&bench), "the far side's socket has not taken the bytes yet");
    assert_eq!(read(&mut bench, id), b"last words");
    assert!(shut(&bench));
}

#[test]
fn failures_before_the_connection_reach_the_app() {
    for v6 in [false, true] {
        for (failure, want) in [
            (Failure::Refused, None),
            (Failure::NetUnreachable, Some(if v6 { (1, 0) } else { (3, 0) })),
            (Failure::HostUnreachable, Some(if v6 { (1, 3) } else { (3, 1) })),
            (Failure::Prohibited, Some(if v6 { (1, 1) } else { (3, 13) })),
        ] {
            let mut bench = Bench::new(config());
            bench.packet(&tcp(v6, SYN, 1000, 0, b""));
            let id = bench.connect_asked();
            bench.input(Input::Failed(id, failure));
            let packet = bench.wire.to_app.pop().expect("an answer");
            let start = if v6 { 40 } else { 20 };
            match want {
                None => {
                    let reset = Segment::parse(&packet);
                    assert_eq!((reset.flags, reset.acknowledgement), (RST | ACK, 1001));
                    assert_eq!(bench.engine.flows(), 0);
                }
                Some((kind, code)) => {
                    assert_eq!((packet[start], packet[start + 1]), (kind, code), "{failure}");
                    // Given again for a socket that was locked, then forgotten.
                    bench.wait(Duration::from_millis(2));
                    bench.wait(Duration::from_millis(12));
                    assert_eq!(bench.wire.to_app.len(), 2, "{failure}");
                    bench.wait(Duration::from_secs(1));
                    assert_eq!(bench.engine.flows(), 0);
                }
            }
        }
    }
}

#[test]
fn a_lookup_that_fails_lets_nothing_leave() {
    for (unresolved, reason) in [
        (Unresolved::NoRoute(Failure::NetUnreachable), Reason::Unreachable),
        (Unresolved::LookupFailed, Reason::SourceUnresolved),
    ] {
        let mut bench = Bench::new(Config { reports: false, ..config() });
        let packet = tcp(false, SYN, 1000, 0, b"");
        bench.engine.handle_packet(&packet, Received::default(), bench.now, &mut bench.wire);
        let Some(Output::Source(id, ..)) = bench.engine.poll_output() else {
            panic!("a source is asked for");
        };
        bench.input(Input::Source(id, Err(unresolved)));
        assert!(bench.outputs.is_empty(), "{reason}: {:?}", bench.outputs);
        assert_eq!(bench.wire.to_app.len(), 1, "{reason}: the app is told");
    }
}

#[test]
fn a_route_that_will_not_hold_is_no_ground_for_a_verdict() {
    let mut bench = Bench::new(config());
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    for change in 1..=3u8 {
        let id = bench.connect_asked();
        let moved = Egress { address: IpAddr::from([192, 0, 2, 1 + change]), ..egress() };
        bench.input(Input::SourceChanged(id, moved));
    }
    assert!(!bench.outputs.iter().any(|o| matches!(o, Output::Connect(..))));
    assert_eq!(bench.reasons(), [(Stage::Closed, Some(Reason::SourceUnresolved))]);
}

#[test]
fn the_second_look_at_the_route_may_fail_like_the_first() {
    for (unresolved, reason) in [
        (Unresolved::NoRoute(Failure::NetUnreachable), Reason::Unreachable),
        (Unresolved::LookupFailed, Reason::SourceUnresolved),
    ] {
        let mut bench = Bench::new(config());
        bench.packet(&tcp(false, SYN, 1000, 0, b""));
        let id = bench.connect_asked();
        bench.input(Input::Source(id, Err(unresolved)));
        let [Output::Report(report)] = &bench.outputs[..] else { panic!("one report") };
        assert_eq!((report.reason, report.verdict, report.egress), (Some(reason), None, None));
        assert_eq!(bench.wire.to_app.len(), 1, "{reason}: the app is told");
    }
}

#[test]
fn retransmitted_syns_are_one_flow() {
    let mut bench = Bench::new(config());
    for _ in 0..5 {
        assert_eq!(bench.packet(&tcp(false, SYN, 1000, 0, b"")), Outcome::Held);
    }
    assert_eq!(bench.engine.flows(), 1);
    bench.connect_asked();
    assert!(!bench.outputs.iter().any(|o| matches!(o, Output::Connect(..))), "one connect");
}

#[test]
fn resets_cross_as_resets() {
    let mut bench = Bench::new(config());
    let (id, next) = open(&mut bench, false);
    bench.packet(&tcp(false, RST, 1001, next, b""));
    assert!(bench.outputs.iter().any(|o| matches!(o, Output::Reset(f) if *f == id)));
    assert_eq!(bench.reasons()[1], (Stage::Closed, Some(Reason::AppReset)));

    let mut bench = Bench::new(config());
    let (id, next) = open(&mut bench, false);
    write(&mut bench, id, b"before the reset");
    bench.input(Input::FarFailed(id, Failure::Reset));
    let segments = bench.take_app();
    assert!(segments.iter().all(|s| s.flags & RST == 0), "bytes first: {segments:?}");
    bench.packet(&tcp(false, ACK, 1001, next + 16, b""));
    let reset = bench.take_app().pop().expect("a reset");
    assert_eq!(reset.flags & RST, RST);
    assert_eq!(bench.reasons()[1], (Stage::Closed, Some(Reason::FarReset)));
}

#[test]
fn an_early_end_cuts_only_what_is_not_whole() {
    for (name, flags, taken, cut) in [
        ("the app still sends", ACK, true, true),
        ("its last bytes are not with the far side's socket", ACK | FIN, false, true),
        ("all is passed on", ACK | FIN, true, false),
    ] {
        let mut bench = Bench::new(config());
        let (id, next) = open(&mut bench, false);
        bench.packet(&tcp(false, flags, 1001, next, b"last words"));
        if taken {
            read(&mut bench, id);
        }
        bench.input(Input::Shutdown);
        let end = bench.outputs.iter().find_map(|output| match output {
            Output::Reset(_) => Some(true),
            Output::Close(_) => Some(false),
            _ => None,
        });
        assert_eq!(end, Some(cut), "{name}");
    }
}

#[test]
fn the_last_syn_is_the_one_that_is_answered() {
    let mut bench = Bench::new(config());
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    bench.packet(&tcp(false, SYN, 7000, 0, b""));
    let id = bench.connect_asked();
    bench.input(Input::Connected(id, 5000, rings(1)));
    let [syn_ack] = bench.take_app().try_into().expect("one SYN-ACK");
    assert_eq!(syn_ack.acknowledgement, 7001);
}

#[test]
fn strangers_get_resets_and_resets_get_nothing() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.packet(&tcp(false, ACK, 1, 77, b"x")), Outcome::ToApp);
    let [reset] = bench.take_app().try_into().expect("one reset");
    assert_eq!((reset.flags, reset.sequence), (RST, 77));
    assert_eq!(bench.packet(&tcp(false, RST, 1, 0, b"")), Outcome::Dropped(Dropped::NoFlow));
    assert_eq!(bench.engine.flows(), 0);
}

#[test]
fn datagrams_share_a_mapping_and_only_known_peers_answer() {
    for v6 in [false, true] {
        let mut bench = Bench::new(config());
        assert_eq!(bench.packet(&udp(v6, b"one")), Outcome::Held);
        assert_eq!(bench.packet(&udp(v6, b"two")), Outcome::ToEgress);
        let sent: Vec<_> = bench.wire.to_far.iter().map(|(_, p)| p.as_slice()).collect();
        assert_eq!(sent, [b"one", b"two"]);
        let (Way::Mapping(mapping, far), _) = bench.wire.to_far[0] else { panic!("a mapping") };
        assert_eq!(far, server(v6));
        let stranger = SocketAddr::new(far.ip(), 81);
        for (from, packets) in [(far, 1), (stranger, 0)] {
            bench.engine.handle_datagram(mapping, from, b"r", None, bench.now, &mut bench.wire);
            assert_eq!(bench.wire.to_app.drain(..).count(), packets, "from {from}");
        }
        bench.wait(Duration::from_secs(200));
        assert!(matches!(bench.outputs.last(), Some(Output::Unbind(m)) if *m == mapping));
        assert_eq!(bench.engine.flows(), 0);
    }
}

#[test]
fn a_reply_that_no_packet_holds_is_dropped_and_counted() {
    let mut bench = Bench::new(Config { udp_offload: true, ..config() });
    bench.packet(&udp(false, b"one"));
    let (Way::Mapping(mapping, far), _) = bench.wire.to_far[0] else { panic!("a mapping") };
    let all = vec![7; 65_527];
    for (segment, packets) in [(None, 0), (Some(1000), 66)] {
        bench.engine.handle_datagram(mapping, far, &all, segment, bench.now, &mut bench.wire);
        assert_eq!(bench.wire.to_app.drain(..).count(), packets, "segment {segment:?}");
    }
    let dropped = bench.engine.counters().replies_dropped[Dropped::Malformed as usize];
    assert_eq!(dropped, 1);
}

#[test]
fn a_datagram_that_fails_tells_its_sender() {
    let mut bench = Bench::new(config());
    bench.packet(&udp(false, b"one"));
    bench.wire.refuse = Some(Unsent::Failed(Failure::TooBig { mtu: 1400 }));
    assert_eq!(bench.packet(&udp(false, b"two")), Outcome::ToApp);
    let icmp = bench.wire.to_app.pop().expect("an error");
    assert_eq!((icmp[20], icmp[21], be16(&icmp, 26)), (3, 4, 1400));
    // The quote names the app's own datagram.
    assert_eq!(be16(&icmp, 28 + 20), client(false).port());
}

#[test]
fn echo_keeps_its_identifier() {
    for v6 in [false, true] {
        let mut bench = Bench::new(config());
        assert_eq!(bench.packet(&echo(v6, 77, 1)), Outcome::Held);
        let (Way::Echo(id, 1), _) = bench.wire.to_far[0] else { panic!("an echo") };
        bench.engine.handle_echo(id, 1, b"ping", bench.now, &mut bench.wire);
        let reply = bench.wire.to_app.pop().expect("a reply");
        let start = if v6 { 40 } else { 20 };
        assert_eq!(reply[start], if v6 { 129 } else { 0 });
        assert_eq!((be16(&reply, start + 4), be16(&reply, start + 6)), (77, 1));
        bench.packet(&echo(v6, 77, 2));
        assert_eq!(bench.wire.kept_whole, [true, true], "held or not");
    }
}

#[test]
fn loopback_is_no_destination_but_for_what_stands_for_it() {
    let to = |destination: &str| {
        let mut bench = Bench::new(Config {
            services: Services {
                resolver: None,
                loopback: vec![(IpAddr::from([10, 0, 0, 7]), IpAddr::from([127, 0, 0, 1]))],
            },
            ..config()
        });
        let destination = address(destination);
        let mut packet = udp(false, b"x");
        if let IpAddr::V4(v4) = destination.ip() {
            packet[16..20].copy_from_slice(&v4.octets());
        }
        packet[22..24].copy_from_slice(&destination.port().to_be_bytes());
        packet[10..12].fill(0);
        let header = finish(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        packet[26..28].fill(0);
        bench.packet(&packet);
        bench.wire.to_far.first().map(|(way, _)| match way {
            Way::Mapping(_, far) => far.to_string(),
            Way::Echo(..) | Way::Service(_) => String::new(),
        })
    };
    for (destination, far) in [
        ("127.0.0.1:80", None),
        ("8.8.8.8:53", Some("8.8.8.8:53")),
        ("10.0.0.7:80", Some("127.0.0.1:80")),
        ("10.0.0.8:80", Some("10.0.0.8:80")),
    ] {
        assert_eq!(to(destination).as_deref(), far, "{destination}");
    }
}

fn total(counters: &Counters) -> u64 {
    counters.to_app + counters.to_egress + counters.held + counters.dropped.iter().sum::<u64>()
}
