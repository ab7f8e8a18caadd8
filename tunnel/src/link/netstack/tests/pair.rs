//! The netstack and a far side: a TCP server that echoes, a UDP server that echoes, and the
//! network between them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::{DeviceName, Leads, Link, WayOut};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::HardwareAddress;

use super::super::*;
use super::link;
use crate::driver::Bell;

pub(super) const MTU: u16 = 1420;
pub(super) const PORT: u16 = 53;
pub(super) const ADDRESS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)),
];
pub(super) const FAR: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 20, 0, 53)), PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 0x53)), PORT),
];

pub(super) fn ways(usable: bool) -> Arc<Ways> {
    with_address(usable, Ipv4Addr::new(10, 9, 0, 2))
}

pub(super) fn moved() -> Arc<Ways> {
    with_address(true, Ipv4Addr::new(10, 9, 0, 3))
}

fn with_address(usable: bool, v4: Ipv4Addr) -> Arc<Ways> {
    let IpAddr::V6(v6) = ADDRESS[1] else { unreachable!("as written") };
    let leads = Leads::Link(Link {
        device: DeviceName::new("wg0").expect("a name"),
        addresses: [IpAddr::from(v4).into(), IpAddr::from(v6).into()].into(),
        mtu: MTU,
        underlay: None,
    });
    let mut ways = Ways::default();
    ways.set(link().way(), WayOut { usable, leads });
    Arc::new(ways)
}

/// What is beneath the netstack.
pub(super) struct World {
    pub(super) ways: Arc<Ways>,
    pub(super) taken: HashSet<LinkPort>,
    pub(super) out: Vec<Vec<u8>>,
    pub(super) refuse: Option<Unsent>,
}

impl Below for World {
    fn ways(&self) -> &Arc<Ways> {
        &self.ways
    }

    fn reserve(&mut self, port: &LinkPort) -> bool {
        self.taken.insert(*port)
    }

    fn own_port_near(&self, port: u16, _: u16) -> u16 {
        port
    }

    fn release(&mut self, port: &LinkPort) {
        assert!(self.taken.remove(port), "once");
    }

    fn send(&mut self, _: LinkId, packet: &[u8]) -> Result<(), Unsent> {
        self.refuse.map_or(Ok(()), Err)?;
        self.out.push(packet.to_vec());
        Ok(())
    }
}

/// Both ends and the network.
pub(super) struct Pair {
    pub(super) board: Arc<Board>,
    pub(super) netstack: Netstack,
    pub(super) below: World,
    pub(super) now: Instant,
    far: Far,
    /// Packets under way: when they are there, and whether to the far side.
    under_way: Vec<(Instant, bool, Vec<u8>)>,
    /// Of the network's misdeeds; `None`: there are none.
    random: Option<u64>,
    /// Answers every packet to the far side.
    pub(super) errors: Option<(u8, u8, u32)>,
    /// The longest packet that the path takes.
    pub(super) path: usize,
    /// Nothing arrives.
    pub(super) dead: bool,
    /// Bytes that the server sends without being asked.
    pub(super) pour: usize,
    pub(super) heard: Vec<u8>,
    /// The server echoes nothing.
    pub(super) mute: bool,
    /// The far side was sent a reset.
    pub(super) reset: bool,
    /// The longest packet that left.
    pub(super) longest: usize,
}

struct Far {
    interface: Interface,
    sockets: SocketSet<'static>,
    server: Option<SocketHandle>,
}

impl Pair {
    pub(super) fn new() -> Self {
        let board = Board::new(Arc::new(Bell::new().expect("a bell")));
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 5;
        let mut interface = Interface::new(config, &mut Wire::default(), SmolInstant::ZERO);
        interface.set_any_ip(true);
        Self {
            netstack: Netstack::new(Arc::clone(&board)),
            board,
            below: World { ways: ways(true), taken: HashSet::new(), out: Vec::new(), refuse: None },
            now: Instant::from_micros(1_000_000),
            far: Far { interface, sockets: SocketSet::new(Vec::new()), server: None },
            under_way: Vec::new(),
            random: None,
            errors: None,
            path: usize::MAX,
            dead: false,
            pour: 0,
            heard: Vec::new(),
            mute: false,
            reset: false,
            longest: 0,
        }
    }

    /// From now on the network loses, doubles and reorders.
    pub(super) fn bad(&mut self, seed: u64) {
        self.random = Some(seed);
    }

    pub(super) fn connect(&self, v6: bool) -> Stream {
        self.board.connect(link(), FAR[usize::from(v6)]).expect("a seat")
    }

    pub(super) fn bind(&self, v6: bool) -> Datagrams {
        self.board.bind(link(), FAR[usize::from(v6)]).expect("a seat")
    }

    pub(super) fn listen(&mut self, _v6: bool) {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.listen(PORT).expect("a port");
        self.far.server = Some(self.far.sockets.add(socket));
    }

    /// Another server in the place of the one before.
    pub(super) fn relisten(&mut self, v6: bool) {
        if let Some(handle) = self.far.server.take() {
            self.far.sockets.remove(handle);
        }
        self.listen(v6);
    }

    /// One turn of the netstack; what it sends is on its way.
    pub(super) fn turn(&mut self) {
        self.netstack.turn(&mut self.below, self.now);
        for packet in std::mem::take(&mut self.below.out) {
            self.longest = self.longest.max(packet.len());
            self.transmit(true, packet);
        }
    }

    fn chance(&mut self, of: u64) -> bool {
        let Some(random) = &mut self.random else { return false };
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*random >> 33).is_multiple_of(of)
    }

    fn transmit(&mut self, to_far: bool, packet: Vec<u8>) {
        if self.dead || self.chance(12) {
            return;
        }
        let delay = if self.chance(6) { 60 } else { 20 };
        let at = self.now + Duration::from_millis(delay);
        if self.chance(15) {
            self.under_way.push((at + Duration::from_millis(7), to_far, packet.clone()));
        }
        self.under_way.push((at, to_far, packet));
    }

    /// Lets time pass to whatever is next, at most a second.
    pub(super) fn step(&mut self) {
        self.turn();
        self.run_far();
        let mut next: Vec<Instant> = self.under_way.iter().map(|(at, ..)| *at).collect();
        next.extend(self.netstack.next_timer());
        let far = self.far.interface.poll_at(smol(self.now), &self.far.sockets);
        next.extend(far.map(|at| Instant::from_micros(at.total_micros() as u64)));
        let next = next.into_iter().min().unwrap_or(self.now + Duration::from_secs(1));
        self.now =
            next.clamp(self.now + Duration::from_micros(100), self.now + Duration::from_secs(1));
        let now = self.now;
        let (mut there, under_way): (Vec<_>, Vec<_>) =
            self.under_way.drain(..).partition(|(at, ..)| *at <= now);
        self.under_way = under_way;
        there.sort_by_key(|(at, ..)| *at);
        for (_, to_far, packet) in there {
            if to_far { self.arrive_far(packet) } else { self.arrive_near(packet) }
        }
        self.turn();
    }

    /// Lets time pass until there is an answer, an hour of it at most.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let limit = self.now + Duration::from_secs(3600);
        while self.now < limit {
            if let Some(done) = done(self) {
                return done;
            }
            self.step();
        }
        panic!("{what}: not within an hour");
    }

    fn arrive_near(&mut self, packet: Vec<u8>) {
        let v4 = packet[0] >> 4 == 4;
        let start = if v4 { 20 } else { 40 };
        let be16 = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let protocol =
            if packet[if v4 { 9 } else { 6 }] == 6 { Protocol::Tcp } else { Protocol::Udp };
        let far = FAR[usize::from(!v4)];
        assert_eq!(be16(start), PORT);
        let port = LinkPort { link: link(), protocol, port: be16(start + 2), far };
        // As the engine does.
        if self.below.taken.contains(&port) {
            self.netstack.arrive(
                port,
                match protocol {
                    Protocol::Tcp => Arrived::Segment(packet),
                    Protocol::Udp | Protocol::Icmp => {
                        Arrived::Datagram(packet[start + 8..].to_vec())
                    }
                },
            );
        }
    }

    fn arrive_far(&mut self, mut packet: Vec<u8>) {
        let v4 = packet[0] >> 4 == 4;
        let start = if v4 { 20 } else { 40 };
        let be16 = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let tcp = packet[if v4 { 9 } else { 6 }] == 6;
        let too_long = (packet.len() > self.path).then_some(if v4 {
            (3, 4, self.path as u32)
        } else {
            (2, 0, self.path as u32)
        });
        if let Some((kind, code, rest)) = self.errors.or(too_long) {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let far = FAR[usize::from(!v4)];
            let port = LinkPort { link: link(), protocol, port: be16(start), far };
            let sequence = packet[start + 4..start + 8].try_into().map_or(0, u32::from_be_bytes);
            self.netstack.arrive(port, Arrived::Error { kind, code, rest, sequence });
            return;
        }
        if tcp {
            self.reset |= packet[start + 13] & 4 != 0;
            let mut wire = Wire { packet: Some(packet), out: Vec::new() };
            let now = smol(self.now);
            self.far.interface.poll_ingress_single(now, &mut wire, &mut self.far.sockets);
            wire.out.into_iter().for_each(|packet| self.transmit(false, packet));
        } else {
            let (near, far) = (be16(start), be16(start + 2));
            packet[start..start + 2].copy_from_slice(&far.to_be_bytes());
            packet[start + 2..start + 4].copy_from_slice(&near.to_be_bytes());
            self.transmit(false, packet);
        }
    }

    /// The server: it echoes, and ends when it was told so and all is sent.
    fn run_far(&mut self) {
        if let Some(handle) = self.far.server {
            let socket = self.far.sockets.get_mut::<Socket<'_>>(handle);
            let mut data = Vec::new();
            while socket.can_recv() && socket.send_capacity() - socket.send_queue() > data.len() {
                let room = socket.send_capacity() - socket.send_queue() - data.len();
                let read = socket.recv(|bytes| {
                    let taken = bytes.len().min(room);
                    (taken, bytes[..taken].to_vec())
                });
                data.extend(read.unwrap_or_default());
            }
            self.heard.extend(&data);
            if !data.is_empty() && !self.mute {
                assert_eq!(socket.send_slice(&data), Ok(data.len()));
            }
            if self.pour > 0 && socket.can_send() {
                let sent = socket.send_slice(&vec![1; self.pour.min(50_000)]);
                self.pour -= sent.unwrap_or(0);
            }
            if socket.state() == State::CloseWait && socket.recv_queue() == 0 {
                socket.close();
            }
        }
        let mut wire = Wire::default();
        self.far.interface.poll(smol(self.now), &mut wire, &mut self.far.sockets);
        wire.out.into_iter().for_each(|packet| self.transmit(false, packet));
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(now.micros() as i64)
}

#[derive(Default)]
struct Wire {
    packet: Option<Vec<u8>>,
    out: Vec<Vec<u8>>,
}

struct In(Vec<u8>);

struct Out<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Wire {
    type RxToken<'t> = In;
    type TxToken<'t> = Out<'t>;

    fn receive(&mut self, _: SmolInstant) -> Option<(In, Out<'_>)> {
        Some((In(self.packet.take()?), Out(&mut self.out)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Out<'_>> {
        Some(Out(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        // It verifies what comes: what we send has to be right.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
