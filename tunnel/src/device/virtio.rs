//! The header that a TUN with `IFF_VNET_HDR` puts before every packet.
//!
//! # Theory of operation
//!
//! `struct virtio_net_hdr` is ten bytes in the host's byte order (TUN's legacy layout):
//!
//! ```text
//! 0      1         2        4         6           8            10
//! flags  gso_type  hdr_len  gso_size  csum_start  csum_offset  packet …
//! ```
//!
//! It carries two promises across the device. *Segmentation*: the packet is a super-packet
//! that stands for many of `gso_size` payload bytes each. *Checksum*: the transport checksum
//! is either still to be summed (`NEEDS_CSUM`; the field then holds the folded pseudo-header
//! sum), already verified (`DATA_VALID`), or unknown and to be verified by the reader.
//!
//! Both directions are pure functions over bytes. [`decode`] refuses what contradicts itself
//! instead of guessing, and [`encode`] derives every offset from the packet, so a header that
//! the kernel would answer with `EINVAL` is found here, with its cause.

/// Bytes of the header.
pub const HEADER: usize = 10;

/// How the kernel (or we) would split a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size, over either IP version.
    UdpL4,
}

/// A super-packet's split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What is split.
    pub kind: GsoKind,
    /// Payload bytes of each packet but the last.
    pub size: u16,
}

/// What is known about the transport checksum of a packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Not summed yet: the field holds the pseudo-header sum. The packet never left this host, so it is intact.
    Partial,
    /// The kernel verified it.
    Valid,
    /// Nobody verified it: the reader must.
    #[default]
    Unknown,
}

/// What came with a packet that was read from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxOffload {
    /// The split, where this is a super-packet.
    pub gso: Option<Gso>,
    /// The state of the transport checksum.
    pub checksum: Checksum,
}

/// What the engine says about a packet that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxOffload {
    /// Payload bytes a packet, where the packet may be longer than that. Needs `checksum_partial`.
    pub gso_size: Option<u16>,
    /// The checksum field holds the folded pseudo-header sum only.
    pub checksum_partial: bool,
}

/// A header that contradicts itself or the packet behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A segmentation that was never negotiated.
    #[error("the device announced segmentation type {0:#04x}, which was not asked for")]
    GsoType(u8),
    /// A super-packet without a segment size.
    #[error("the device announced a super-packet with segments of no bytes")]
    GsoSize,
    /// The checksum lies outside the packet.
    #[error("the device put the checksum outside the packet")]
    ChecksumRange,
}

/// A packet that cannot be described by a header as the engine asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Not a whole IPv4 or IPv6 header, or its lengths lie.
    #[error("not an IP packet")]
    NotIp,
    /// Offloads exist for TCP and UDP only.
    #[error("IP protocol {0} has no offload")]
    Protocol(u8),
    /// The transport header is cut off or its length lies.
    #[error("the transport header is not whole")]
    Transport,
    /// Segmentation without a checksum to complete, of segments of no bytes, or of more than 64 datagrams.
    #[error("a segmentation that no kernel accepts")]
    Segmentation,
}

/// Reads the header that stood before a packet of `packet_len` bytes.
///
/// `hdr_len` is a hint that the kernel fills with its own linear length; it is not looked at.
pub fn decode(header: &[u8; HEADER], packet_len: usize) -> Result<RxOffload, HeaderError> {
    let gso_size = field(header, 4);
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCP4 => Some(GsoKind::Tcp4),
        GSO_TCP6 => Some(GsoKind::Tcp6),
        GSO_UDP_L4 => Some(GsoKind::UdpL4),
        other => return Err(HeaderError::GsoType(other)),
    };
    let gso = match kind {
        None => None,
        Some(_) if gso_size == 0 => return Err(HeaderError::GsoSize),
        Some(kind) => Some(Gso { kind, size: gso_size }),
    };
    let checksum = if header[0] & NEEDS_CSUM != 0 {
        let end = usize::from(field(header, 6)) + usize::from(field(header, 8)) + 2;
        if end > packet_len {
            return Err(HeaderError::ChecksumRange);
        }
        Checksum::Partial
    } else if header[0] & DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::Unknown
    };
    Ok(RxOffload { gso, checksum })
}

/// The header for `packet`, which is a whole IP packet. A packet no longer than one segment
/// gets no segmentation, whatever `offload.gso_size` says.
pub fn encode(packet: &[u8], offload: TxOffload) -> Result<[u8; HEADER], PacketError> {
    encode_start(packet, packet.len(), offload)
}

/// The same for a packet of `length` bytes that begins with `packet`: IP and transport headers
/// at least.
pub fn encode_start(
    packet: &[u8],
    length: usize,
    offload: TxOffload,
) -> Result<[u8; HEADER], PacketError> {
    let mut header = [0; HEADER];
    if !offload.checksum_partial {
        return match offload.gso_size {
            None => Ok(header),
            Some(_) => Err(PacketError::Segmentation),
        };
    }
    let transport = Transport::find(packet)?;
    header[0] = NEEDS_CSUM;
    set_field(&mut header, 6, transport.start);
    set_field(&mut header, 8, transport.checksum_offset);
    let Some(size) = offload.gso_size else {
        return Ok(header);
    };
    if size == 0 {
        return Err(PacketError::Segmentation);
    }
    let payload = length.checked_sub(transport.header_end).ok_or(PacketError::Transport)?;
    if payload <= usize::from(size) {
        return Ok(header);
    }
    if transport.gso_type == GSO_UDP_L4 && payload > usize::from(size) * MAX_DATAGRAMS {
        return Err(PacketError::Segmentation);
    }
    header[1] = transport.gso_type;
    set_field(
        &mut header,
        2,
        u16::try_from(transport.header_end).map_err(|_| PacketError::Transport)?,
    );
    set_field(&mut header, 4, size);
    Ok(header)
}

/// Where a packet's TCP or UDP header lies.
struct Transport {
    start: u16,
    header_end: usize,
    checksum_offset: u16,
    gso_type: u8,
}

impl Transport {
    fn find(packet: &[u8]) -> Result<Self, PacketError> {
        let (start, protocol, tcp_gso) = match packet.first().map(|b| b >> 4) {
            Some(4) if packet.len() >= 20 => {
                (usize::from(packet[0] & 0x0f) * 4, packet[9], GSO_TCP4)
            }
            // Extension headers never stand in what the engine writes.
            Some(6) if packet.len() >= 40 => (40, packet[6], GSO_TCP6),
            _ => return Err(PacketError::NotIp),
        };
        if start < 20 {
            return Err(PacketError::NotIp);
        }
        let (header, checksum_offset, gso_type) = match protocol {
            PROTOCOL_TCP => {
                let offset = packet.get(start + 12).ok_or(PacketError::Transport)?;
                let length = usize::from(offset >> 4) * 4;
                if length < 20 {
                    return Err(PacketError::Transport);
                }
                (length, 16, tcp_gso)
            }
            PROTOCOL_UDP => (8, 6, GSO_UDP_L4),
            other => return Err(PacketError::Protocol(other)),
        };
        if start + header > packet.len() {
            return Err(PacketError::Transport);
        }
        Ok(Self {
            start: start as u16, // at most 60
            header_end: start + header,
            checksum_offset,
            gso_type,
        })
    }
}

fn field(header: &[u8; HEADER], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

fn set_field(header: &mut [u8; HEADER], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A mark beside the type: the super-packet carries CWR on its first segment.
const GSO_ECN: u8 = 0x80;

/// `UDP_MAX_SEGMENTS` of every kernel since 4.18 (128 since 6.9, but not before).
const MAX_DATAGRAMS: usize = 64;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(
        flags: u8,
        gso_type: u8,
        gso_size: u16,
        csum_start: u16,
        csum_offset: u16,
    ) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = flags;
        header[1] = gso_type;
        set_field(&mut header, 2, 54);
        set_field(&mut header, 4, gso_size);
        set_field(&mut header, 6, csum_start);
        set_field(&mut header, 8, csum_offset);
        header
    }

    #[test]
    fn decode_table() {
        let gso = |kind, size| Some(Gso { kind, size });
        #[rustfmt::skip]
        let cases = [
            ("plain", header(0, 0, 0, 0, 0), 60, Ok((None, Checksum::Unknown))),
            ("verified", header(2, 0, 0, 0, 0), 60, Ok((None, Checksum::Valid))),
            ("partial", header(1, 0, 0, 20, 16), 60, Ok((None, Checksum::Partial))),
            ("partial wins over valid", header(3, 0, 0, 20, 16), 60, Ok((None, Checksum::Partial))),
            ("tcp4", header(1, 1, 1448, 20, 16), 9000, Ok((gso(GsoKind::Tcp4, 1448), Checksum::Partial))),
            ("tcp4 with ECN", header(1, 0x81, 1448, 20, 16), 9000, Ok((gso(GsoKind::Tcp4, 1448), Checksum::Partial))),
            ("tcp6", header(1, 4, 1428, 40, 16), 9000, Ok((gso(GsoKind::Tcp6, 1428), Checksum::Partial))),
            ("udp", header(1, 5, 1200, 20, 6), 9000, Ok((gso(GsoKind::UdpL4, 1200), Checksum::Partial))),
            ("a size without a type means nothing", header(0, 0, 7, 0, 0), 60, Ok((None, Checksum::Unknown))),
            ("UFO was never asked for", header(1, 3, 1448, 20, 6), 9000, Err(HeaderError::GsoType(3))),
            ("UDP tunnel", header(1, 0x21, 1448, 20, 6), 9000, Err(HeaderError::GsoType(0x21))),
            ("no size", header(1, 1, 0, 20, 16), 9000, Err(HeaderError::GsoSize)),
            ("checksum ends at the packet's end", header(1, 0, 0, 20, 16), 38, Ok((None, Checksum::Partial))),
            ("checksum past the end", header(1, 0, 0, 20, 16), 37, Err(HeaderError::ChecksumRange)),
            ("offsets that would overflow 16 bits", header(1, 0, 0, 0xffff, 0xffff), 65_535, Err(HeaderError::ChecksumRange)),
            ("empty packet", header(1, 0, 0, 0, 0), 0, Err(HeaderError::ChecksumRange)),
        ];
        for (name, header, len, expected) in cases {
            let expected = expected.map(|(gso, checksum)| RxOffload { gso, checksum });
            assert_eq!(decode(&header, len), expected, "{name}");
        }
    }

    #[test]
    fn decode_takes_any_bytes() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut header = [0; HEADER];
            header[..8].copy_from_slice(&state.to_ne_bytes());
            header[8..].copy_from_slice(&(state >> 13).to_ne_bytes()[..2]);
            if let Ok(RxOffload { gso: Some(gso), .. }) = decode(&header, (state >> 40) as usize) {
                assert_ne!(gso.size, 0);
            }
        }
    }

    fn ipv4(options: usize, protocol: u8, transport: usize) -> Vec<u8> {
        let mut packet = vec![0; 20 + options + transport];
        packet[0] = 0x40 | ((20 + options) / 4) as u8;
        packet[9] = protocol;
        if protocol == PROTOCOL_TCP && transport > 12 {
            packet[20 + options + 12] = 8 << 4; // 32 bytes: with timestamps
        }
        packet
    }

    fn ipv6(protocol: u8, transport: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + transport];
        packet[0] = 0x60;
        packet[6] = protocol;
        if protocol == PROTOCOL_TCP && transport > 12 {
            packet[40 + 12] = 5 << 4;
        }
        packet
    }

    #[test]
    fn encode_table() {
        // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
        type Fields = (u8, u8, u16, u16, u16, u16);
        type Case = (&'static str, Vec<u8>, TxOffload, Result<Fields, PacketError>);
        let partial = |gso_size| TxOffload { gso_size, checksum_partial: true };
        #[rustfmt::skip]
        let cases: [Case; 20] = [
            ("nothing asked, not even an IP packet", vec![], TxOffload::default(), Ok((0, 0, 0, 0, 0, 0))),
            ("ICMP, nothing asked", ipv4(0, 1, 8), TxOffload::default(), Ok((0, 0, 0, 0, 0, 0))),
            ("tcp4 checksum", ipv4(0, 6, 32), partial(None), Ok((1, 0, 0, 0, 20, 16))),
            ("tcp4 with IP options", ipv4(8, 6, 32), partial(None), Ok((1, 0, 0, 0, 28, 16))),
            ("tcp4 segments", ipv4(0, 6, 32 + 2897), partial(Some(1448)), Ok((1, 1, 52, 1448, 20, 16))),
            ("tcp4 exactly one segment", ipv4(0, 6, 32 + 1448), partial(Some(1448)), Ok((1, 0, 0, 0, 20, 16))),
            ("tcp4 one byte more", ipv4(0, 6, 32 + 1449), partial(Some(1448)), Ok((1, 1, 52, 1448, 20, 16))),
            ("tcp6 checksum", ipv6(6, 20), partial(None), Ok((1, 0, 0, 0, 40, 16))),
            ("tcp6 segments", ipv6(6, 20 + 5000), partial(Some(1440)), Ok((1, 4, 60, 1440, 40, 16))),
            ("udp4 checksum", ipv4(0, 17, 8), partial(None), Ok((1, 0, 0, 0, 20, 6))),
            ("udp4 segments", ipv4(0, 17, 8 + 2401), partial(Some(1200)), Ok((1, 5, 28, 1200, 20, 6))),
            ("udp6 segments", ipv6(17, 8 + 64 * 1000), partial(Some(1000)), Ok((1, 5, 48, 1000, 40, 6))),
            ("65 datagrams", ipv6(17, 8 + 64 * 1000 + 1), partial(Some(1000)), Err(PacketError::Segmentation)),
            ("segments of nothing", ipv4(0, 6, 3000), partial(Some(0)), Err(PacketError::Segmentation)),
            ("empty", vec![], partial(None), Err(PacketError::NotIp)),
            ("one byte", vec![0x45], partial(None), Err(PacketError::NotIp)),
            ("header length of 16", { let mut p = ipv4(0, 6, 32); p[0] = 0x44; p }, partial(None), Err(PacketError::NotIp)),
            ("tcp cut off before its length", ipv4(0, 6, 12), partial(None), Err(PacketError::Transport)),
            ("tcp shorter than it says", ipv4(0, 6, 31), partial(None), Err(PacketError::Transport)),
            ("icmp has no offload", ipv4(0, 1, 8), partial(None), Err(PacketError::Protocol(1))),
        ];
        for (name, packet, offload, expected) in cases {
            let got = encode(&packet, offload)
                .map(|h| (h[0], h[1], field(&h, 2), field(&h, 4), field(&h, 6), field(&h, 8)));
            assert_eq!(got, expected, "{name}");
        }
        assert_eq!(
            encode(&ipv4(0, 6, 3000), TxOffload { gso_size: Some(1448), checksum_partial: false }),
            Err(PacketError::Segmentation),
            "segmentation of a finished checksum",
        );
    }

    #[test]
    fn encode_takes_any_bytes_and_decode_reads_it_back() {
        let mut state = 1_u64;
        for round in 0..20_000_usize {
            let packet: Vec<u8> = (0..round % 90)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let offload =
                TxOffload { gso_size: Some(1 + (state as u16 & 31)), checksum_partial: true };
            if let Ok(header) = encode(&packet, offload) {
                decode(&header, packet.len()).expect("what encode made");
            }
        }
    }
}
