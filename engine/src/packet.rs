//! An IP packet whose headers were proved to lie inside it.
//!
//! [`parse`] is the only door: what it lets through has a transport header that is
//! whole and a checksum that is right (or that the kernel vouches for), so the rest of
//! the engine reads fields without asking again. Everything else is a [`Dropped`] cause.

pub(crate) mod checksum;
pub(crate) mod fragment;
pub(crate) mod icmp;
pub(crate) mod reset;
pub(crate) mod rewrite;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Dropped;
use checksum::{fold, pseudo, sum};

/// IP protocol numbers (IANA).
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const ECHO_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

/// What the device says of a packet's checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Nothing: verify.
    #[default]
    Unknown,
    /// The kernel vouches for it, whether it filled the field or left that to us.
    Trusted,
}

/// What comes with a packet from the app side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// The state of the transport checksum.
    pub checksum: Checksum,
    /// Bytes of payload in each segment of a super-packet.
    pub segment: Option<u16>,
}

/// One parsed packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// The whole packet, without link padding.
    pub(crate) bytes: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// IPv4's don't-fragment bit; always set for IPv6.
    pub(crate) dont_fragment: bool,
    pub(crate) head: Head,
    /// It is a datagram that was put together of pieces; `bytes` are the last one's.
    pub(crate) in_pieces: bool,
    pub(crate) transport: Transport<'a>,
}

/// What of an IP header goes along on the way through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Type of service, traffic class: DSCP and ECN.
    pub(crate) class: u8,
    /// IPv6's flow label.
    pub(crate) label: u32,
    /// IPv4's identification.
    pub(crate) ident: u16,
    /// Time to live, hop limit.
    pub(crate) hops: u8,
    /// What [`Packet::dont_fragment`] is, for IPv4's bit.
    pub(crate) dont_fragment: bool,
}

impl Head {
    /// Writes a whole IP header for `length` bytes of `protocol`. `buffer` must hold it.
    pub(crate) fn write_whole(
        &self,
        buffer: &mut [u8],
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    ) {
        self.write(buffer, source, destination);
        if source.is_ipv4() {
            buffer[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            buffer[9] = protocol;
            let checksum = checksum::finish(sum(&buffer[..20]));
            buffer[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            buffer[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            buffer[6] = protocol;
        }
    }

    /// Writes an IP header without length, protocol and checksum. `buffer` must hold it.
    fn write(&self, buffer: &mut [u8], source: IpAddr, destination: IpAddr) {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                buffer[..20].fill(0);
                buffer[0] = 0x45;
                buffer[1] = self.class;
                buffer[4..6].copy_from_slice(&self.ident.to_be_bytes());
                buffer[6] = if self.dont_fragment { 0x40 } else { 0 };
                buffer[8] = self.hops;
                buffer[12..16].copy_from_slice(&source.octets());
                buffer[16..20].copy_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let first = 6 << 28 | u32::from(self.class) << 20 | self.label & 0xf_ffff;
                buffer[..4].copy_from_slice(&first.to_be_bytes());
                buffer[4..7].fill(0);
                buffer[7] = self.hops;
                buffer[8..24].copy_from_slice(&source.octets());
                buffer[24..40].copy_from_slice(&destination.octets());
            }
            // A flow's addresses are of one IP version.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
        }
    }
}

/// What an IP packet carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport<'a> {
    Tcp(Tcp<'a>),
    Udp(Udp<'a>),
    EchoRequest(Echo<'a>),
    /// Any other ICMP or ICMPv6 message.
    Icmp,
    /// A protocol that no flow exists for.
    Other,
    /// A piece of a datagram.
    Fragment(Fragment<'a>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Tcp<'a> {
    /// With its options.
    pub(crate) header: &'a [u8],
    /// Bytes after the header.
    pub(crate) payload: usize,
    /// These bytes, as far as they are at hand.
    pub(crate) data: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Echo<'a> {
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment<'a> {
    pub(crate) ident: u32,
    pub(crate) protocol: u8,
    /// Bytes from the start of the datagram's payload.
    pub(crate) start: usize,
    pub(crate) more: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Of a header that is whole.
    pub(crate) fn of(header: &'a [u8], data: &'a [u8]) -> Self {
        Self { header, payload: data.len(), data }
    }

    pub(crate) fn window(&self) -> u16 {
        be16(self.header, 14)
    }

    /// The window scale option (RFC 7323 2.2), at most 14.
    pub(crate) fn window_scale(&self) -> Option<u8> {
        let mut options = self.header.get(TCP_HEADER..)?;
        loop {
            match *options {
                [3, 3, shift, ..] => return Some(shift.min(14)),
                [1, ref rest @ ..] => options = rest,
                [0, ..] | [] | [_] => return None,
                [_, length, ..] => options = options.get(usize::from(length).max(2)..)?,
            }
        }
    }

    pub(crate) fn source_port(&self) -> u16 {
        be16(self.header, 0)
    }
    pub(crate) fn destination_port(&self) -> u16 {
        be16(self.header, 2)
    }
    pub(crate) fn sequence(&self) -> u32 {
        be32(self.header, 4)
    }
    pub(crate) fn acknowledgement(&self) -> u32 {
        be32(self.header, 8)
    }
    pub(crate) fn fin(&self) -> bool {
        self.header[13] & 0x01 != 0
    }
    pub(crate) fn syn(&self) -> bool {
        self.header[13] & 0x02 != 0
    }
    pub(crate) fn rst(&self) -> bool {
        self.header[13] & 0x04 != 0
    }
    pub(crate) fn ack(&self) -> bool {
        self.header[13] & 0x10 != 0
    }

    /// The MSS option, where the segment carries one (RFC 9293 3.2).
    pub(crate) fn mss(&self) -> Option<u16> {
        let mut options = self.header.get(TCP_HEADER..)?;
        loop {
            match *options {
                [2, 4, a, b, ..] => return Some(u16::from_be_bytes([a, b])),
                [1, ref rest @ ..] => options = rest,
                [0, ..] | [] | [_] => return None,
                [_, length, ..] => options = options.get(usize::from(length).max(2)..)?,
            }
        }
    }
}

/// The most that a length field says: of all of an IPv4 packet, of an IPv6 packet's payload.
pub(crate) const LARGEST: usize = 65_535;

/// The IP header of a packet that came out of a tunnel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hops: u8,
    /// Where the transport header begins.
    pub(crate) start: usize,
    /// Of a piece of a datagram: identification, offset in bytes and whether more follows.
    pub(crate) piece: Option<(u32, usize, bool)>,
}

impl Incoming {
    /// Parses the headers of a packet of `length` bytes; its payload need not be there.
    pub(crate) fn parse(headers: &[u8], length: usize) -> Result<Self, Dropped> {
        let (ip, next, upper) = match headers.first().map(|b| b >> 4) {
            Some(4) => parse_v4_headers(headers, Some(length))?,
            Some(6) => parse_v6_headers(headers, Some(length))?,
            Some(_) | None => return Err(Dropped::Malformed),
        };
        Ok(Self {
            source: ip.packet.source,
            destination: ip.packet.destination,
            protocol: next,
            hops: ip.packet.head.hops,
            start: headers.len() - upper.len(),
            piece: ip.fragment.map(|piece| (piece.ident, piece.start, piece.more)),
        })
    }
}

/// Parses one packet.
pub(crate) fn parse(bytes: &[u8], checksum: Checksum) -> Result<Packet<'_>, Dropped> {
    let packet = match bytes.first().map(|b| b >> 4) {
        Some(4) => parse_v4(bytes)?,
        Some(6) => parse_v6(bytes)?,
        Some(_) | None => return Err(Dropped::Malformed),
    };
    let (ip, protocol, upper) = packet;
    if let Some(fragment) = ip.fragment {
        return Ok(Packet {
            transport: Transport::Fragment(Fragment {
                ident: fragment.ident,
                protocol,
                start: fragment.start,
                more: fragment.more,
                payload: upper,
            }),
            ..ip.packet
        });
    }
    let transport = parse_transport(&ip.packet, protocol, upper, checksum)?;
    Ok(Packet { transport, ..ip.packet })
}

/// Parses what an IP header of `packet`'s addresses carries: for whole packets and for
/// datagrams put together again.
pub(crate) fn parse_transport<'a>(
    packet: &Packet<'_>,
    protocol: u8,
    upper: &'a [u8],
    checksum: Checksum,
) -> Result<Transport<'a>, Dropped> {
    let verify = |covered: &[u8], pseudo_sum: u64| {
        if checksum == Checksum::Unknown && fold(sum(covered) + pseudo_sum) != 0xffff {
            return Err(Dropped::Checksum);
        }
        Ok(())
    };
    let pseudo_sum = || pseudo(packet.source, packet.destination, protocol, upper.len());
    let v4 = packet.source.is_ipv4();
    match protocol {
        TCP => {
            let length = usize::from(*upper.get(12).ok_or(Dropped::Malformed)? >> 4) * 4;
            if length < TCP_HEADER || upper.len() < length {
                return Err(Dropped::Malformed);
            }
            verify(upper, pseudo_sum())?;
            Ok(Transport::Tcp(Tcp::of(&upper[..length], &upper[length..])))
        }
        UDP => {
            if upper.len() < UDP_HEADER {
                return Err(Dropped::Malformed);
            }
            // A super-datagram may exceed what the field can say; the IP length rules then.
            let length = usize::from(be16(upper, 4));
            let upper = match length {
                0 => upper,
                n if n < UDP_HEADER || n > upper.len() => return Err(Dropped::Malformed),
                n => &upper[..n],
            };
            match be16(upper, 6) {
                // RFC 768: no checksum; RFC 8200 8.1 forbids that over IPv6.
                0 if v4 => {}
                0 if checksum == Checksum::Unknown => return Err(Dropped::Checksum),
                _ => {
                    verify(upper, pseudo(packet.source, packet.destination, protocol, upper.len()))?
                }
            }
            Ok(Transport::Udp(Udp {
                source_port: be16(upper, 0),
                destination_port: be16(upper, 2),
                payload: &upper[UDP_HEADER..],
            }))
        }
        ICMP if v4 => {
            if upper.len() < ECHO_HEADER {
                return Err(Dropped::Malformed);
            }
            verify(upper, 0)?;
            Ok(echo_request(upper, 8))
        }
        ICMPV6 if !v4 => {
            if upper.len() < ECHO_HEADER {
                return Err(Dropped::Malformed);
            }
            verify(upper, pseudo_sum())?;
            Ok(echo_request(upper, 128))
        }
        _ => Ok(Transport::Other),
    }
}

fn echo_request(upper: &[u8], request: u8) -> Transport<'_> {
    if upper[0] != request || upper[1] != 0 {
        return Transport::Icmp;
    }
    Transport::EchoRequest(Echo {
        ident: be16(upper, 4),
        sequence: be16(upper, 6),
        payload: &upper[ECHO_HEADER..],
    })
}

struct Ip<'a> {
    packet: Packet<'a>,
    fragment: Option<Piece>,
}

struct Piece {
    ident: u32,
    start: usize,
    more: bool,
}

fn parse_v4(bytes: &[u8]) -> Result<(Ip<'_>, u8, &[u8]), Dropped> {
    parse_v4_headers(bytes, None)
}

/// `length`: the packet is so long, no more and no less, but only the start of it is here.
fn parse_v4_headers(bytes: &[u8], length: Option<usize>) -> Result<(Ip<'_>, u8, &[u8]), Dropped> {
    if bytes.len() < 20 {
        return Err(Dropped::Malformed);
    }
    let offset = usize::from(bytes[0] & 0x0f) * 4;
    let total = usize::from(be16(bytes, 2));
    let fits = length.map_or(bytes.len() >= total, |length| length == total);
    if offset < 20 || total < offset || bytes.len() < offset || !fits {
        return Err(Dropped::Malformed);
    }
    if fold(sum(&bytes[..offset])) != 0xffff {
        return Err(Dropped::Checksum);
    }
    let bytes = &bytes[..total.min(bytes.len())];
    let source = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    let destination = Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]);
    if source.is_loopback()
        || source.is_unspecified()
        || source.is_multicast()
        || source.is_broadcast()
        || destination.octets()[0] == 0
    {
        return Err(Dropped::Martian);
    }
    let flags = be16(bytes, 6);
    let start = usize::from(flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let fragment =
        (more || start != 0).then(|| Piece { ident: u32::from(be16(bytes, 4)), start, more });
    let packet = Packet {
        bytes,
        source: source.into(),
        destination: destination.into(),
        dont_fragment: flags & 0x4000 != 0,
        head: Head {
            class: bytes[1],
            label: 0,
            ident: be16(bytes, 4),
            hops: bytes[8],
            dont_fragment: flags & 0x4000 != 0,
        },
        in_pieces: false,
        transport: Transport::Icmp,
    };
    Ok((Ip { packet, fragment }, bytes[9], &bytes[offset..]))
}

fn parse_v6(bytes: &[u8]) -> Result<(Ip<'_>, u8, &[u8]), Dropped> {
    parse_v6_headers(bytes, None)
}

/// `length` as for IPv4.
fn parse_v6_headers(bytes: &[u8], length: Option<usize>) -> Result<(Ip<'_>, u8, &[u8]), Dropped> {
    if bytes.len() < IPV6_HEADER {
        return Err(Dropped::Malformed);
    }
    let total = IPV6_HEADER + usize::from(be16(bytes, 4));
    let fits = length.map_or(bytes.len() >= total, |length| length == total);
    if !fits {
        return Err(Dropped::Malformed);
    }
    let bytes = &bytes[..total.min(bytes.len())];
    let (source, destination) = (v6_at(bytes, 8), v6_at(bytes, 24));
    if !is_v6_on_the_wire(source) || source.is_multicast() || !is_v6_on_the_wire(destination) {
        return Err(Dropped::Martian);
    }
    let mut offset = IPV6_HEADER;
    let mut next = bytes[6];
    let mut fragment = None;
    // RFC 8200 4.1: hop-by-hop 0, routing 43, fragment 44, destination options 60.
    // Each header is at least 8 bytes, so the walk ends with the packet.
    loop {
        match next {
            0 | 43 | 60 => {
                let header = bytes.get(offset..offset + 8).ok_or(Dropped::Malformed)?;
                next = header[0];
                offset += 8 + usize::from(header[1]) * 8;
            }
            44 => {
                let header = bytes.get(offset..offset + 8).ok_or(Dropped::Malformed)?;
                next = header[0];
                offset += 8;
                let field = be16(header, 2);
                let (start, more) = (usize::from(field & 0xfff8), field & 1 != 0);
                // RFC 6946: an atomic fragment is a whole datagram.
                if more || start != 0 {
                    fragment = Some(Piece { ident: be32(header, 4), start, more });
                    break;
                }
            }
            _ => break,
        }
    }
    let upper = bytes.get(offset..).ok_or(Dropped::Malformed)?;
    let packet = Packet {
        bytes,
        source: source.into(),
        destination: destination.into(),
        dont_fragment: true,
        head: Head {
            class: (be16(bytes, 0) >> 4) as u8,
            label: be32(bytes, 0) & 0xf_ffff,
            ident: 0,
            hops: bytes[7],
            dont_fragment: true,
        },
        in_pieces: false,
        transport: Transport::Icmp,
    };
    Ok((Ip { packet, fragment }, next, upper))
}

/// Whether an address may stand in a packet from the app side (RFC 6890, RFC 4291):
/// IPv4 inside IPv6 would reach an IPv4 host that no rule for IPv4 has seen.
fn is_v6_on_the_wire(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    !(address.is_loopback()
        || address.is_unspecified()
        || segments[..5] == [0; 5] && (segments[5] == 0xffff || segments[5] == 0))
}

/// Writes an IP header for `length` bytes of `protocol` and gives its size.
/// `buffer` must hold it.
pub(crate) fn write_ip(
    buffer: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> usize {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = &mut buffer[..20];
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            header[6] = 0x40;
            header[8] = 64;
            header[9] = protocol;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = checksum::finish(sum(header));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = &mut buffer[..IPV6_HEADER];
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header[6] = protocol;
            header[7] = 64;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            IPV6_HEADER
        }
        // A flow's two addresses come from one packet.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

/// Bytes of an IP header without options.
pub(crate) fn ip_header(address: IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { IPV6_HEADER }
}

fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    octets.into()
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
