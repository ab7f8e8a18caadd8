//! The only file of this crate that names smoltcp.
//!
//! One `Interface` serves all flows: with an IP medium and no fragmentation it holds no
//! state of any socket. Each open TCP flow has a `SocketSet` of one, chosen by our own
//! table, so a packet's cost does not grow with the number of flows.
//!
//! With offloads the stack is told of an MTU of 65,535 and hands over super-packets of up
//! to that size; the kernel cuts them by the segment size that goes along (the app's MSS,
//! at most what the device's MTU allows), and the SYN-ACK's MSS option, which smoltcp
//! derives from the pretended MTU, is rewritten to the true one. (smoltcp 0.14 would do
//! the former itself for IPv4, but loses IPv6 super-packets.) Checksums are left to the
//! kernel.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, SegmentationCapabilities, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::HardwareAddress;

use crate::{Instant, Meta, Sink};

/// The largest IP packet (RFC 791, RFC 8200 without jumbograms).
const LARGEST: usize = 65_535;
/// The segment size assumed where a SYN carries no MSS option (RFC 9293 3.7.1).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1_220;
/// Below this a peer asks for absurdly many segments; the kernel's own floor is 48
/// (`TCP_MIN_SND_MSS`).
const LEAST_MSS: u16 = 48;

/// The TCP stack of one shard.
pub(crate) struct Stack {
    interface: Interface,
    capabilities: DeviceCapabilities,
    mtu: u16,
    offload: bool,
}

/// One TCP endpoint towards the app.
pub(crate) struct Endpoint {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The largest segment towards the app, in bytes of payload.
    segment: u16,
}

/// Where the app's half of a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// SYN-ACK sent, or not yet.
    Opening,
    /// The app may still send.
    Open,
    /// The app has sent its FIN; this side's half may be open.
    AppDone,
    /// Both halves are done in order; only the last ACK may be owed.
    Done,
    /// Closed: by a RST, or after the last ACK.
    Closed,
}

impl Stack {
    pub(crate) fn new(mtu: u16, offload: bool, seed: u64, now: Instant) -> Self {
        let capabilities = capabilities(mtu, offload);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut port =
            Port { capabilities: &capabilities, packet: None, sink: &mut Nowhere, segment: 0, mtu };
        let mut interface = Interface::new(config, &mut port, smol(now));
        // The app may address anybody; which flow answers is our table's business.
        interface.set_any_ip(true);
        Self { interface, capabilities, mtu, offload }
    }

    /// Opens an endpoint for a saved SYN, whose far side has answered. The SYN-ACK leaves
    /// with the next [`Stack::flush`].
    pub(crate) fn accept(
        &mut self,
        syn: &Syn<'_>,
        to_far: &'static mut [u8],
        to_app: &'static mut [u8],
        now: Instant,
        sink: &mut impl Sink,
    ) -> Endpoint {
        let v4 = syn.client.is_ipv4();
        let mut socket = Socket::new(SocketBuffer::new(to_far), SocketBuffer::new(to_app));
        // A TUN write runs the app's receive at once: waiting for company only adds time.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // Nothing is lost, and there is no queue, on the way to the app.
        socket.set_congestion_control(CongestionControl::None);
        // The port was taken from a parsed SYN to a port that is not 0.
        let _ = socket.listen(syn.port);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let offered = syn.mss.unwrap_or(if v4 { DEFAULT_MSS_V4 } else { DEFAULT_MSS_V6 });
        let segment = offered.max(LEAST_MSS).min(self.local_mss(v4));
        let mut endpoint = Endpoint { sockets, handle, segment };
        self.segment(&mut endpoint, syn.packet, now, sink);
        endpoint
    }

    /// Takes one packet of the app's into the endpoint.
    pub(crate) fn segment(
        &mut self,
        endpoint: &mut Endpoint,
        packet: &[u8],
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let mut port = Port {
            capabilities: &self.capabilities,
            packet: Some(packet),
            sink,
            segment: if self.offload { endpoint.segment } else { 0 },
            mtu: self.mtu,
        };
        self.interface.poll_ingress_single(smol(now), &mut port, &mut endpoint.sockets);
    }

    /// Sends all that is due to the app and gives the number of packets.
    pub(crate) fn flush(
        &mut self,
        endpoint: &mut Endpoint,
        now: Instant,
        sink: &mut impl Sink,
    ) -> u64 {
        let mut port = Port {
            capabilities: &self.capabilities,
            packet: None,
            sink,
            segment: if self.offload { endpoint.segment } else { 0 },
            mtu: self.mtu,
        };
        let mut packets = 0;
        // The socket gives one packet a call.
        while self.interface.poll_egress(smol(now), &mut port, &mut endpoint.sockets)
            != PollResult::None
        {
            packets += 1;
        }
        packets
    }

    /// When the endpoint wants [`Stack::flush`] without being asked.
    pub(crate) fn poll_at(&mut self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        self.interface
            .poll_at(smol(now), &endpoint.sockets)
            .map(|at| Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    fn local_mss(&self, v4: bool) -> u16 {
        self.mtu - if v4 { 40 } else { 60 }
    }
}

/// A saved SYN.
#[derive(Debug)]
pub(crate) struct Syn<'a> {
    pub(crate) packet: &'a [u8],
    pub(crate) client: IpAddr,
    /// The destination port.
    pub(crate) port: u16,
    pub(crate) mss: Option<u16>,
}

impl Endpoint {
    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Lends what the app has sent, one contiguous slice; `take` says how much it took.
    /// `None` where there is nothing.
    pub(crate) fn app_data<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        if self.unread() == 0 {
            return None;
        }
        self.socket_mut().recv(|data| take(data)).ok()
    }

    /// What the app has sent, from its first byte on and at most so much of it, while nobody
    /// took any.
    pub(crate) fn first_bytes(&mut self, most: usize) -> &[u8] {
        if self.unread() == 0 {
            return &[];
        }
        self.socket_mut().peek(most).unwrap_or_default()
    }

    /// Lends room for what the far side sends, one contiguous slice. `None` where there
    /// is none, or the half is closed.
    pub(crate) fn room<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let socket = self.socket_mut();
        if !socket.can_send() {
            return None;
        }
        socket.send(fill).ok()
    }

    /// Bytes of the app's that nobody took yet.
    pub(crate) fn unread(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Bytes for the app that it has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// Ends this side's half after all bytes in the ring.
    pub(crate) fn close(&mut self) {
        self.socket_mut().close();
    }

    /// The next [`Stack::flush`] sends a RST.
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.socket().state() {
            State::SynSent | State::SynReceived => Phase::Opening,
            State::Established | State::FinWait1 | State::FinWait2 => Phase::Open,
            State::CloseWait | State::LastAck | State::Closing => Phase::AppDone,
            State::TimeWait => Phase::Done,
            // A RST in SYN-RECEIVED puts a listening socket back to Listen.
            State::Closed | State::Listen => Phase::Closed,
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("mtu", &self.mtu).field("offload", &self.offload).finish()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("phase", &self.phase())
            .field("segment", &self.segment)
            .finish()
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.micros()).unwrap_or(i64::MAX))
}

fn capabilities(mtu: u16, offload: bool) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    // Received checksums were verified when the packet was parsed.
    let mut checksum = ChecksumCapabilities::ignored();
    checksum.ipv4 = Checksum::Tx;
    if offload {
        capabilities.max_transmission_unit = LARGEST;
        let largest = NonZeroUsize::new(LARGEST);
        capabilities.segmentation = SegmentationCapabilities::default();
        capabilities.segmentation.tcpv4 = largest;
        capabilities.segmentation.tcpv6 = largest;
    } else {
        capabilities.max_transmission_unit = usize::from(mtu);
        checksum.tcp = Checksum::Tx;
    }
    capabilities.checksum = checksum;
    capabilities
}

/// The device of one call: at most one packet in, any number out.
struct Port<'a, S> {
    capabilities: &'a DeviceCapabilities,
    packet: Option<&'a [u8]>,
    sink: &'a mut S,
    /// Segment size of super-packets; 0 where offloads are off.
    segment: u16,
    mtu: u16,
}

impl<S: Sink> Device for Port<'_, S> {
    type RxToken<'t>
        = In<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Out<'t, S>
    where
        Self: 't;

    fn receive(&mut self, _: SmolInstant) -> Option<(In<'_>, Out<'_, S>)> {
        let packet = self.packet.take()?;
        let out = Out { sink: self.sink, segment: self.segment, mtu: self.mtu };
        Some((In(packet), out))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Out<'_, S>> {
        Some(Out { sink: self.sink, segment: self.segment, mtu: self.mtu })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

struct In<'a>(&'a [u8]);

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Out<'a, S> {
    sink: &'a mut S,
    segment: u16,
    mtu: u16,
}

impl<S: Sink> TxToken for Out<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let offload = self.segment != 0;
        let mut f = Some(f);
        let mut result = None;
        let meta = Meta {
            segment: (offload && length > usize::from(self.segment) + 40).then_some(self.segment),
            partial_checksum: offload,
        };
        let mtu = self.mtu;
        self.sink.to_app(length, meta, |buffer| {
            result = f.take().map(|f| f(&mut buffer[..length]));
            if offload {
                finish_for_offload(&mut buffer[..length], mtu);
            }
            length
        });
        // A sink that took nothing still owes the stack a place to write.
        match (result, f) {
            (Some(result), _) => result,
            (None, Some(f)) => f(&mut vec![0; length]),
            (None, None) => unreachable!("the closure ran and left no result"),
        }
    }
}

/// What smoltcp leaves undone when checksums are the device's: the pseudo-header's sum in
/// the checksum field, and the true MSS in a SYN-ACK.
fn finish_for_offload(packet: &mut [u8], mtu: u16) {
    use crate::packet::{TCP, be16, checksum, ip_header};
    let v4 = packet[0] >> 4 == 4;
    let (source, destination) = addresses(packet, v4);
    let start = ip_header(source);
    let length = packet.len() - start;
    let sum = checksum::fold(checksum::pseudo(source, destination, TCP, length));
    let tcp = &mut packet[start..];
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    const SYN: u8 = 0x02;
    if tcp[13] & SYN != 0 && tcp.len() >= 24 && tcp[20..22] == [2, 4] {
        let true_mss = mtu - if v4 { 40 } else { 60 };
        let mss = be16(tcp, 22).min(true_mss);
        tcp[22..24].copy_from_slice(&mss.to_be_bytes());
    }
}

fn addresses(packet: &[u8], v4: bool) -> (IpAddr, IpAddr) {
    if v4 {
        let at = |i: usize| IpAddr::from([packet[i], packet[i + 1], packet[i + 2], packet[i + 3]]);
        (at(12), at(16))
    } else {
        let at = |i: usize| {
            let mut octets = [0u8; 16];
            octets.copy_from_slice(&packet[i..i + 16]);
            IpAddr::from(octets)
        };
        (at(8), at(24))
    }
}

/// A sink for the moment before there is a device.
struct Nowhere;

impl Sink for Nowhere {
    fn to_app(&mut self, _: usize, _: Meta, _: impl FnOnce(&mut [u8]) -> usize) {}

    fn to_far(&mut self, _: crate::Way, _: crate::Datagram<'_>) -> Result<(), crate::Unsent> {
        Ok(())
    }

    fn to_link(
        &mut self,
        _: crate::LinkId,
        _: &[u8],
        _: &[u8],
        _: Meta,
    ) -> Result<(), crate::Unsent> {
        Ok(())
    }
}

/// How long a half-closed or reset connection may wait for the app to take its last bytes.
pub(crate) const LINGER: Duration = Duration::from_secs(10);
