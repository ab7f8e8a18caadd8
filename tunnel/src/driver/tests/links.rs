//! Flows through a tunnel: two shards with memory devices, two WireGuard interfaces between
//! them over loopback, and real servers behind the second shard.

mod own;

use std::sync::atomic::AtomicBool;

use engine::policy::{Environment, ReadError};
use engine::{DeviceName, Leads, Link, LinkId, Meta, WayId, WayKind, WayNames, WayOut, Ways};

use super::*;
use crate::device::{Gso, GsoKind};
use crate::driver::request::{LinkFailure, LinkOrder};
use crate::link::wireguard::{Change, PeerSettings, PrivateKey, Settings, Tunnel, injected};

const INNER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const MTU: u16 = 1420;

struct Host;

impl Environment for Host {
    fn uid(&self, _: &str) -> Option<u32> {
        None
    }

    fn read(&self, _: &str, _: &str) -> Result<String, ReadError> {
        Err(ReadError::Missing)
    }

    fn ways(&self) -> WayNames {
        WayNames::default().configured([("wg0", WayKind::Link)]).unwrap()
    }

    fn secret(&self) -> u128 {
        0
    }
}

fn link() -> LinkId {
    LinkId::of(WayId::new(1).unwrap())
}

fn ways(usable: bool) -> Arc<Ways> {
    let leads = Leads::Link(Link {
        device: DeviceName::new("wg0").unwrap(),
        addresses: ["10.9.0.2/32", "fd00::2/128"].map(|net| net.parse().unwrap()).into(),
        mtu: MTU,
        underlay: DeviceName::new("lo"),
    });
    let mut ways = Ways::default();
    ways.set(WayId::new(1).unwrap(), WayOut { usable, leads });
    Arc::new(ways)
}

/// The far end of the tunnel: a shard whose app is the tunnel.
struct Exit {
    shard: Shard,
    /// Of its interface.
    peer: PeerSettings,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Exit {
    fn start(entry: &PrivateKey) -> Self {
        let shard = Shard::start("", Own::Every);
        let key = PrivateKey::generate().unwrap();
        let mut peer = PeerSettings::new(entry.public());
        peer.allowed = vec!["10.9.0.2/32".parse().unwrap()];
        let settings = Settings { name: DeviceName::new("exit").unwrap(), ..settings(&key, peer) };
        let mut tunnel = Tunnel::open(settings, Instant::ZERO).unwrap();
        let mut itself = PeerSettings::new(key.public());
        let port = tunnel.state().listen_port;
        itself.endpoint = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        itself.allowed = vec!["0.0.0.0/0".parse().unwrap()];
        let over = Arc::new(AtomicBool::new(false));
        let (app, ended) = (shard.app.clone(), Arc::clone(&over));
        let thread = spawn(move || {
            let began = std::time::Instant::now();
            while !ended.load(Ordering::Relaxed) {
                let now = Instant::from_micros(began.elapsed().as_micros() as u64);
                tunnel.receive(now, 1 << 20, |inner| {
                    app.send(inner.headers, RxOffload::default());
                });
                while let Some((packet, offload)) = app.receive() {
                    let headers = match (offload.checksum_partial, packet[9]) {
                        (false, _) => packet.len(),
                        (true, 6) => 20 + usize::from(packet[32] >> 4) * 4,
                        (true, _) => 28,
                    };
                    let (headers, payload) = packet.split_at(headers);
                    let meta = Meta {
                        segment: offload.gso_size,
                        partial_checksum: offload.checksum_partial,
                    };
                    let _ = tunnel.send(headers, payload, meta, now);
                }
                if tunnel.next_timer().is_some_and(|at| at <= now) {
                    tunnel.timers(now);
                }
                tunnel.flush();
                sleep(Duration::from_micros(200));
            }
        });
        Self { shard, peer: itself, over, thread }
    }

    fn stop(self) -> Vec<Report> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.shard.stop().1
    }
}

fn settings(key: &PrivateKey, peer: PeerSettings) -> Settings {
    Settings {
        name: DeviceName::new("wg0").unwrap(),
        key: key.clone(),
        listen_port: None,
        fwmark: None,
        mark: None,
        mtu: MTU,
        peers: vec![peer],
    }
}

fn linked(rules: &str) -> Arc<Policy> {
    let text = format!("policy 1\n{rules}\ndefault allow\n");
    let source = Source { name: "test.policy".to_owned(), text };
    Arc::new(Policy::load(&[source], &Host).unwrap().0)
}

/// A shard whose flows go through a tunnel to another.
fn through(rules: &str) -> (Shard, Exit) {
    let key = PrivateKey::generate().unwrap();
    let exit = Exit::start(&key);
    let shard = Shard::start("", Own::Every);
    let settings = Box::new(settings(&key, exit.peer.clone()));
    let opened =
        shard.get(|answer| Request::Link(LinkOrder::Open { link: link(), settings, answer }));
    assert_eq!(opened, Ok(()));
    shard.get(|answer| Request::Ways { ways: ways(true), proxies: Arc::default(), answer });
    let (policy, limits) = (linked(rules), LIMITS);
    shard.get(|answer| {
        Request::Reload(Reload {
            policy,
            generation: 2,
            limits,
            resolver: None,
            ways: None,
            answer,
        })
    });
    (shard, exit)
}

#[test]
fn connections_and_datagrams_pass_through_a_tunnel() {
    namespace::within(SETUP, || {
        let (mut shard, exit) = through("route to 192.0.2.0/24 via wg0\nblock via direct");
        let (server, accepts, ends) = tcp_server(A);
        let mut connection = Connection::open(&mut shard, 40_001, server);
        connection.echo(&mut shard);
        connection.echo(&mut shard);
        assert!(accepts.recv_timeout(PATIENCE).is_ok());
        shard.echo(10_000, udp_server(B));
        let flows = shard.flows();
        assert_eq!(flows.len(), 2);
        for flow in &flows {
            assert_eq!((flow.via.name(), flow.stage), ("wg0", Stage::Open));
            let egress = flow.egress.unwrap();
            assert_eq!((egress.address, egress.device.as_str()), (INNER.into(), "wg0"));
            assert_eq!(flow.underlay, DeviceName::new("lo"));
            assert!(flow.sent > 0 && flow.received > 0, "{flow:?}");
        }
        let health = shard.get(|answer| Request::Link(LinkOrder::Health { answer }));
        assert!(health[0].0 == link() && health[0].1[0].session, "{health:?}");
        let state = shard.get(|answer| Request::Link(LinkOrder::State { link: link(), answer }));
        assert!(state.unwrap().0.peers[0].received > 0);
        // Refused is the far side's word.
        let refused = SocketAddrV4::new(A, 9);
        let other = Connection::syn(&shard, SocketAddrV4::new(TUN, 40_002), refused);
        other.is_reset(&mut shard);
        // And so is an end.
        connection.segment(&shard, FIN | ACK, b"");
        while connection.receive(&mut shard).0 & FIN == 0 {}
        assert!(ends.recv_timeout(PATIENCE).unwrap().is_ok());
        let (totals, reports) = shard.stop();
        assert!(totals.engine.to_link > 5 && totals.panics == 0);
        assert_eq!((totals.engine.to_egress, totals.device_errors), (0, 0));
        let reasons: Vec<_> = reports.iter().filter_map(|report| report.reason).collect();
        assert!(reasons.contains(&Reason::Refused), "{reasons:?}");
        let seen = exit.stop();
        assert!(seen.iter().all(|flow| flow.client.ip() == INNER), "translated");
    });
}

#[test]
fn super_packets_pass_both_ways() {
    namespace::within(SETUP, || {
        const SEGMENT: u16 = 1380;
        const BYTES: usize = 25 * SEGMENT as usize;
        let (mut shard, exit) = through("route via wg0");
        let (server, ..) = tcp_server(A);
        let mut connection = Connection::open(&mut shard, 40_001, server);
        let payload: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
        let mut tcp = 40_001_u16.to_be_bytes().to_vec();
        tcp.extend(server.port().to_be_bytes());
        tcp.extend(connection.sequence.to_be_bytes());
        tcp.extend(connection.acknowledgement.to_be_bytes());
        tcp.extend([5 << 4, ACK | PSH, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&payload);
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
        packet[2..4].copy_from_slice(&(20 + tcp.len() as u16).to_be_bytes());
        packet.extend(TUN.octets());
        packet.extend(server.ip().octets());
        let sum = namespace::checksum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        let gso = Some(Gso { kind: GsoKind::Tcp4, size: SEGMENT });
        shard.app.send(&packet, RxOffload { checksum: virtio::Checksum::Partial, gso });
        connection.sequence += BYTES as u32;
        let (mut all, mut joined) = (Vec::<u8>::new(), false);
        let began = std::time::Instant::now();
        while all.len() < BYTES && began.elapsed() < PATIENCE {
            let Some((packet, offload)) = shard.app.receive() else {
                sleep(Duration::from_micros(100));
                continue;
            };
            assert_eq!((packet[9], packet[16..20].to_vec()), (6, TUN.octets().to_vec()));
            joined |= offload.gso_size.is_some();
            let bytes = &packet[20 + usize::from(packet[32] >> 4) * 4..];
            // A server that waits for an acknowledgement sends its last bytes once more.
            let from = u32::from_be_bytes(packet[24..28].try_into().unwrap());
            let had = connection.acknowledgement.wrapping_sub(from) as usize;
            let new = bytes.get(had..).unwrap_or_default();
            connection.acknowledgement += new.len() as u32;
            all.extend(new);
            connection.segment(&shard, ACK, b"");
        }
        assert!(all == payload, "{} of {BYTES} bytes", all.len());
        assert!(joined, "segments that came together go to the device as one");
        let (totals, _) = shard.stop();
        assert_eq!((totals.device_errors, totals.panics), (0, 0));
        exit.stop();
    });
}

#[test]
fn a_tunnel_that_is_not_usable_or_not_there() {
    namespace::within(SETUP, || {
        let (mut shard, exit) = through("route via wg0");
        let (server, ..) = tcp_server(A);
        let mut stays = Connection::open(&mut shard, 40_001, server);
        stays.echo(&mut shard);
        // Not usable: what is open stays, what comes gets an answer.
        shard.get(|answer| Request::Ways { ways: ways(false), proxies: Arc::default(), answer });
        stays.echo(&mut shard);
        Connection::syn(&shard, SocketAddrV4::new(TUN, 40_002), server);
        let answer = shard.receive(40_002);
        assert_eq!((answer[9], answer[20], answer[21]), (1, 3, 0), "net unreachable");
        // New keys: nothing gets through to a peer that does not know them.
        let change = Change { key: PrivateKey::generate(), ..Change::default() };
        let change = Box::new(change);
        let changed =
            shard.get(|answer| Request::Link(LinkOrder::Change { link: link(), change, answer }));
        assert_eq!(changed, Ok(()));
        // Gone.
        shard.get(|answer| Request::Ways { ways: Arc::default(), proxies: Arc::default(), answer });
        stays.is_reset(&mut shard);
        shard.handle.ask(Request::Link(LinkOrder::Close { link: link() })).unwrap();
        let rebound = shard.get(|answer| Request::Link(LinkOrder::Rebind { link: link(), answer }));
        assert_eq!(rebound, Err(LinkFailure::NoSuchLink));
        Connection::syn(&shard, SocketAddrV4::new(TUN, 40_003), server);
        assert_eq!(shard.receive(40_003)[9], 1, "no way out any more");
        let (_, reports) = shard.stop();
        let reasons: Vec<_> = reports.iter().filter_map(|report| report.reason).collect();
        for reason in [Reason::NoWayOut, Reason::PathChanged] {
            assert!(reasons.contains(&reason), "{reason}: {reasons:?}");
        }
        exit.stop();
    });
}

#[test]
fn a_failure_in_one_flow_of_a_tunnel_ends_that_flow_alone() {
    namespace::within(SETUP, || {
        let key = PrivateKey::generate().unwrap();
        let exit = Exit::start(&key);
        // The device fails for the second packet of one client port.
        let mut shard = Shard::failing("", Own::Every, (40_002, 1, 1));
        let settings = Box::new(settings(&key, exit.peer.clone()));
        shard
            .get(|answer| Request::Link(LinkOrder::Open { link: link(), settings, answer }))
            .unwrap();
        shard.get(|answer| Request::Ways { ways: ways(true), proxies: Arc::default(), answer });
        let (policy, limits) = (linked("route via wg0"), LIMITS);
        shard.get(|answer| {
            Request::Reload(Reload {
                policy,
                generation: 2,
                limits,
                resolver: None,
                ways: None,
                answer,
            })
        });
        let (server, ..) = tcp_server(A);
        let mut good = Connection::open(&mut shard, 40_001, server);
        let bad = Connection::open(&mut shard, 40_002, server);
        bad.segment(&shard, ACK | PSH, b"x");
        bad.is_reset(&mut shard);
        good.echo(&mut shard);
        let (totals, reports) = shard.stop();
        assert_eq!(totals.panics, 1);
        let broken = reports.iter().filter(|r| r.reason == Some(Reason::Internal));
        assert_eq!(broken.map(|r| r.client.port()).collect::<Vec<_>>(), [40_002]);
        exit.stop();
    });
}

#[test]
fn a_failure_in_a_tunnel_ends_its_sessions_alone() {
    namespace::within(SETUP, || {
        let (mut shard, exit) = through("route to 192.0.2.2 via wg0");
        let (through_it, beside_it) = (udp_server(B), udp_server(A));
        shard.echo(10_000, through_it);
        injected::AT.lock().unwrap().push((DeviceName::new("wg0").unwrap(), "receive"));
        // The answer is what it fails over.
        shard.datagram(10_000, through_it, b"lost");
        let began = std::time::Instant::now();
        while shard.status().panics == 0 && began.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1));
        }
        shard.echo(10_001, beside_it);
        shard.echo(10_002, through_it);
        // It is the same one, and asked by whoever wants to know how it fares.
        shard.handle.ask(Request::Link(LinkOrder::Probe { link: link() })).unwrap();
        let health = shard.get(|answer| Request::Link(LinkOrder::Health { answer }));
        assert!(health[0].1[0].usable(), "{health:?}");
        assert_eq!(shard.stop().0.panics, 1);
        exit.stop();
    });
}
