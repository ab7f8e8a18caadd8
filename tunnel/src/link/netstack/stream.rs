//! One TCP connection of our own into a tunnel: the only file of this crate that names smoltcp.
//!
//! Each connection has an interface to itself. An interface holds nothing but addresses, which
//! any packet here fits, an MTU and a generator for initial sequence numbers; of its own it is
//! seeded by the kernel, so that no connection tells anything of another's (RFC 6528), and a
//! smaller MTU of the path is a new interface.

use std::net::SocketAddr;

use engine::Instant;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::HardwareAddress;

/// Bytes of each of a connection's buffers: with them its window, too.
const BUFFER: usize = 64 * 1024;
/// A path that takes less would be slower than one that loses it (RFC 791 3.1, RFC 8200 5).
const LEAST_V4: u16 = 576;
const LEAST_V6: u16 = 1280;

/// A connection.
pub(super) struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    v4: bool,
    mtu: u16,
    /// Of our half, once its SYN was sent.
    numbers: Option<Numbers>,
    /// The far side has reset it.
    reset: bool,
}

/// How far our half has come (RFC 9293 3.3.1).
#[derive(Debug, Clone, Copy)]
struct Numbers {
    /// The first one that the far side has not acknowledged.
    unacknowledged: u32,
    /// The one behind the last that was sent.
    next: u32,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The far side has not answered.
    Opening,
    /// Bytes may pass.
    Open,
    /// Both halves are done; what is repeated is still answered.
    Done,
    /// Over: by a reset, in silence, or in order.
    Closed,
}

impl Connection {
    /// Begins to open one. `seed` is from a CSPRNG. `None`: not between these addresses.
    pub(super) fn open(
        near: SocketAddr,
        far: SocketAddr,
        mtu: u16,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        // Questions and answers are whole when they are written.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // A tunnel leads over a network that others use too.
        socket.set_congestion_control(CongestionControl::Reno);
        let mut interface = interface(mtu, seed, now);
        socket.connect(interface.context(), far, near).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let v4 = far.is_ipv4();
        Some(Self { interface, sockets, handle, v4, mtu, numbers: None, reset: false })
    }

    /// Takes a packet from the far side, whose sums are right.
    pub(super) fn take(&mut self, packet: &[u8], now: Instant, emit: &mut dyn FnMut(&[u8])) {
        if self.phase() == Phase::Closed {
            return;
        }
        let numbers = &mut self.numbers;
        let mut port = Port { mtu: self.mtu, packet: Some(packet), emit, numbers };
        self.interface.poll_ingress_single(smol(now), &mut port, &mut self.sockets);
        let Some(segment) = Segment::of(packet) else { return };
        if segment.flags & ACK != 0
            && self.is_under_way(segment.acknowledgement)
            && let Some(numbers) = &mut self.numbers
        {
            numbers.unacknowledged = segment.acknowledgement;
        }
        self.reset |= segment.flags & RST != 0 && self.phase() == Phase::Closed;
    }

    /// Sends what is due.
    pub(super) fn flush(&mut self, now: Instant, emit: &mut dyn FnMut(&[u8])) {
        let numbers = &mut self.numbers;
        let mut port = Port { mtu: self.mtu, packet: None, emit, numbers };
        // The socket gives one packet a call.
        while self.interface.poll_egress(smol(now), &mut port, &mut self.sockets)
            != PollResult::None
        {}
    }

    /// When [`Connection::flush`] has something to do by itself.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        Some(Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    pub(super) fn phase(&self) -> Phase {
        match self.socket().state() {
            State::SynSent | State::SynReceived | State::Listen => Phase::Opening,
            State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck => Phase::Open,
            State::TimeWait => Phase::Done,
            State::Closed => Phase::Closed,
        }
    }

    /// Whether the far side has reset it.
    pub(super) fn is_reset(&self) -> bool {
        self.reset
    }

    /// Whether the far side has ended its half, and every byte before was taken.
    pub(super) fn far_ended(&self) -> bool {
        let ended = match self.socket().state() {
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => true,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2 => false,
        };
        ended && self.unread() == 0
    }

    /// Bytes that came and nobody took.
    pub(super) fn unread(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Lends what came to `take`, which says how much it took.
    pub(super) fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let lend = |bytes: &mut [u8]| {
            let taken = take(bytes);
            (taken, taken)
        };
        self.socket_mut().recv(lend).unwrap_or(0)
    }

    /// Takes bytes to send; how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        self.socket_mut().send_slice(bytes).unwrap_or(0)
    }

    /// Ends our half behind what was written.
    pub(super) fn close(&mut self) {
        self.socket_mut().close();
    }

    /// The next [`Connection::flush`] sends a reset.
    pub(super) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Bytes that the far side has not acknowledged, or that were not sent.
    pub(super) fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// The first number that the far side has not acknowledged.
    pub(super) fn progress(&self) -> Option<u32> {
        self.numbers.map(|numbers| numbers.unacknowledged)
    }

    /// Whether a number may be of what is under way (RFC 5927 4.1).
    pub(super) fn is_under_way(&self, sequence: u32) -> bool {
        self.numbers.is_some_and(|Numbers { unacknowledged, next }| {
            sequence.wrapping_sub(unacknowledged) <= next.wrapping_sub(unacknowledged)
        })
    }

    /// The path takes less than the tunnel does. What is under way is sent again by its timer.
    pub(super) fn lower_mtu(&mut self, mtu: u16, seed: u64, now: Instant) {
        let mtu = mtu.max(if self.v4 { LEAST_V4 } else { LEAST_V6 });
        if mtu < self.mtu {
            self.mtu = mtu;
            self.interface = interface(mtu, seed, now);
        }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a packet without IP options says in its TCP header.
struct Segment {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    /// How many numbers it takes.
    length: u32,
}

impl Segment {
    fn of(packet: &[u8]) -> Option<Self> {
        let start = if packet.first()? >> 4 == 4 { 20 } else { 40 };
        let header = packet.get(start..start + 20)?;
        let word = |at: usize| header[at..at + 4].try_into().map(u32::from_be_bytes).ok();
        let flags = header[13];
        let data = packet.len().checked_sub(start + usize::from(header[12] >> 4) * 4)?;
        let extra = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let length = u32::try_from(data).ok()?.wrapping_add(extra);
        Some(Self { sequence: word(4)?, acknowledgement: word(8)?, flags, length })
    }
}

fn interface(mtu: u16, seed: u64, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut port = Port { mtu, packet: None, emit: &mut |_| {}, numbers: &mut None };
    let mut interface = Interface::new(config, &mut port, smol(now));
    // Which packets are ours was found by their ports.
    interface.set_any_ip(true);
    interface
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.micros()).unwrap_or(i64::MAX))
}

/// The device of one call: at most one packet in, any number out.
struct Port<'a> {
    mtu: u16,
    packet: Option<&'a [u8]>,
    emit: &'a mut dyn FnMut(&[u8]),
    numbers: &'a mut Option<Numbers>,
}

impl Device for Port<'_> {
    type RxToken<'t>
        = In<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Out<'t>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(In<'_>, Out<'_>)> {
        let packet = self.packet.take()?;
        Some((In(packet), Out { emit: self.emit, numbers: self.numbers }))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Out<'_>> {
        Some(Out { emit: self.emit, numbers: self.numbers })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        // The engine has verified what came.
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct In<'a>(&'a [u8]);

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Out<'a> {
    emit: &'a mut dyn FnMut(&[u8]),
    numbers: &'a mut Option<Numbers>,
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        if let Some(segment) = Segment::of(&packet).filter(|segment| segment.flags & RST == 0) {
            let end = segment.sequence.wrapping_add(segment.length);
            let first = Numbers { unacknowledged: segment.sequence, next: end };
            let numbers = self.numbers.get_or_insert(first);
            // Numbers wrap: the later one is less than half of them ahead.
            if end.wrapping_sub(numbers.next) < 1 << 31 {
                numbers.next = end;
            }
        }
        (self.emit)(&packet);
        result
    }
}
