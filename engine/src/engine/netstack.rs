//! Ports of a link that are our own: what the driver's host inside a tunnel speaks from.
//!
//! The driver's own connections and datagrams through a tunnel share the tunnel's address with
//! the flows. So it asks for each port ([`Engine::reserve`]), and [`Nat`](crate::nat::Nat) gives
//! that port to no flow towards the same far side. What comes for it goes to
//! [`Sink::to_netstack`]: whole, in one piece, with new IP headers, its sums verified; an ICMP
//! error only where it quotes a packet from that port to that far side.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::engine::{Engine, Meta};
use crate::nat::NatKey;
use crate::packet::checksum::{finish, pseudo, sum};
use crate::packet::icmp::{self, Quoted};
use crate::packet::rewrite::Headers;
use crate::packet::{
    self, Checksum, Head, Incoming, LARGEST, TCP, Transport, UDP, UDP_HEADER, be16, ip_header,
    write_ip,
};
use crate::ways::LinkId;
use crate::{Dropped, Protocol, Sink};

/// A port at a link's own address, and the one far side that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkPort {
    /// The link.
    pub link: LinkId,
    /// TCP or UDP: for nothing else there are ports to reserve.
    pub protocol: Protocol,
    /// At the link's address.
    pub port: u16,
    /// The far side.
    pub far: SocketAddr,
}

/// What came for a port of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// A packet with one TCP segment, or with several that continue each other as one. Its sums
    /// are not to be looked at again.
    Segment(Vec<u8>),
    /// A datagram's payload.
    Datagram(Vec<u8>),
    /// An ICMP error about a packet from that port.
    Error {
        /// The ICMP type, of the far side's IP version.
        kind: u8,
        /// The ICMP code.
        code: u8,
        /// An MTU, where it says one.
        rest: u32,
        /// The sequence number of the TCP segment that it quotes.
        sequence: u32,
    },
}

impl LinkPort {
    fn key(&self) -> Option<NatKey> {
        let protocol = match self.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
            Protocol::Icmp => return None,
        };
        let Self { link, port, far, .. } = *self;
        let octets = crate::flow::octets(far.ip());
        Some(NatKey { link, protocol, far: octets, far_port: far.port(), port })
    }
}

impl Engine {
    /// Takes a port for the driver; `false`: it is taken, or another shard's.
    pub fn reserve(&mut self, port: &LinkPort) -> bool {
        port.key().is_some_and(|key| self.nat.reserve(key))
    }

    /// A port that [`Engine::reserve`] may take, next to one that is not below `least`.
    pub fn own_port_near(&self, port: u16, least: u16) -> u16 {
        self.config.share.nearest(port, least)
    }

    /// Gives a port of the driver's back.
    pub fn release(&mut self, port: &LinkPort) {
        if let Some(key) = port.key() {
            self.nat.release(&key);
        }
    }

    /// Hands on what came for a port of ours; an error: it is for nobody.
    pub(super) fn take_own(
        &self,
        link: LinkId,
        incoming: &Incoming,
        headers: &[u8],
        payload: &[&[u8]],
        meta: Meta,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let Incoming { source, destination, protocol, start, .. } = *incoming;
        let transport = headers.get(start..).filter(|it| it.len() >= UDP_HEADER);
        let transport = transport.ok_or(Dropped::Malformed)?;
        let far = SocketAddr::new(source, be16(transport, 0));
        let port = self.own_port(link, protocol, far, (destination, be16(transport, 2)))?;
        let upper = match payload {
            [] => Cow::Borrowed(transport),
            pieces => Cow::Owned([&[transport], pieces].concat().concat()),
        };
        let mut whole = vec![0; ip_header(source) + upper.len()];
        if whole.len() > LARGEST {
            return Err(Dropped::Malformed);
        }
        let start = write_ip(&mut whole, source, destination, protocol, upper.len());
        whole[start..].copy_from_slice(&upper);
        // A run was verified before it was joined.
        let sums = if meta.partial_checksum { Checksum::Trusted } else { Checksum::Unknown };
        match packet::parse(&whole, sums)?.transport {
            Transport::Tcp(_) => sink.to_netstack(port, Arrived::Segment(whole)),
            Transport::Udp(udp) => {
                let step = meta.segment.map_or(usize::MAX, |step| usize::from(step).max(1));
                if udp.payload.is_empty() {
                    sink.to_netstack(port, Arrived::Datagram(Vec::new()));
                }
                for datagram in udp.payload.chunks(step) {
                    sink.to_netstack(port, Arrived::Datagram(datagram.to_vec()));
                }
            }
            Transport::EchoRequest(_)
            | Transport::Icmp
            | Transport::Other
            | Transport::Fragment(_) => return Err(Dropped::Unsolicited),
        }
        Ok(())
    }

    /// Hands on an ICMP error about a packet from a port of ours.
    pub(super) fn take_own_error(
        &self,
        link: LinkId,
        quoted: &Quoted,
        head: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let far = SocketAddr::new(quoted.destination, quoted.far_port);
        let port = self.own_port(link, quoted.protocol, far, (quoted.source, quoted.port))?;
        let rest = icmp::rest(far.is_ipv4(), head);
        let sequence = quoted.sequence;
        sink.to_netstack(port, Arrived::Error { kind: head[0], code: head[1], rest, sequence });
        Ok(())
    }

    fn own_port(
        &self,
        link: LinkId,
        protocol: u8,
        far: SocketAddr,
        (address, port): (IpAddr, u16),
    ) -> Result<LinkPort, Dropped> {
        let protocol = match protocol {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return Err(Dropped::Unsolicited),
        };
        let own = self.ways.link(link).and_then(|link| link.address(far.ip()));
        let port = LinkPort { link, protocol, port, far };
        let is_own = port.key().is_some_and(|key| self.nat.is_own(&key));
        if is_own && own == Some(address) { Ok(port) } else { Err(Dropped::Unsolicited) }
    }
}

/// Cuts a datagram that is longer than `mtu` with its headers, and gives each piece to `emit`, a
/// packet of its own, until it returns `false`. The addresses are of one IP version.
pub fn fragment_udp(
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    (mtu, ident): (u16, u32),
    mut emit: impl FnMut(&[u8]) -> bool,
) {
    let (from, to) = ((from.ip(), from.port()), (to.ip(), to.port()));
    let head = Head { class: 0, label: 0, ident: 0, hops: 64, dont_fragment: false };
    let mut headers = Headers::udp(from, to, &head, payload.len());
    headers.complete(UDP, payload);
    let mut packet = Vec::new();
    headers.fragment(payload, usize::from(mtu), ident, |headers, piece| {
        packet.clear();
        packet.extend_from_slice(headers);
        packet.extend_from_slice(piece);
        emit(&packet)
    });
}

/// Writes a datagram with its headers into `packet`, in the place of what is there. It may not
/// be fragmented. `false`: it is longer than a packet can be, or the addresses are of two IP
/// versions.
pub fn write_udp(packet: &mut Vec<u8>, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> bool {
    let length = UDP_HEADER + payload.len();
    let start = ip_header(from.ip());
    if start + length > LARGEST || from.is_ipv4() != to.is_ipv4() {
        return false;
    }
    packet.clear();
    packet.resize(start + UDP_HEADER, 0);
    packet.extend_from_slice(payload);
    write_ip(packet, from.ip(), to.ip(), UDP, length);
    let upper = &mut packet[start..];
    upper[..2].copy_from_slice(&from.port().to_be_bytes());
    upper[2..4].copy_from_slice(&to.port().to_be_bytes());
    // It fits: a packet of that length does.
    upper[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    let checksum = match finish(sum(upper) + pseudo(from.ip(), to.ip(), UDP, length)) {
        // RFC 768: a sum of zero is sent as ones.
        0 => 0xffff,
        checksum => checksum,
    };
    upper[6..8].copy_from_slice(&checksum.to_be_bytes());
    true
}
