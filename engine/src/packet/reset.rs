//! TCP resets for segments that no connection accepts (RFC 9293 3.5.2).

use super::checksum::{finish, pseudo, sum};
use super::{Packet, TCP, Tcp, ip_header, write_ip};

/// The longest reset: an IPv6 and a TCP header.
pub(crate) const LENGTH: usize = 60;

/// Writes the reset that answers `segment` and gives its size.
/// The caller never answers a reset (RFC 9293 3.5.2).
pub(crate) fn write(buffer: &mut [u8], packet: &Packet<'_>, segment: &Tcp<'_>) -> usize {
    let (sequence, acknowledgement, flags) = if segment.ack() {
        (segment.acknowledgement(), 0, 0x04)
    } else {
        let length = segment.payload as u32 + u32::from(segment.syn()) + u32::from(segment.fin());
        (0, segment.sequence().wrapping_add(length), 0x14)
    };
    let (source, destination) = (packet.destination, packet.source);
    let start = ip_header(source);
    write_ip(buffer, source, destination, TCP, 20);
    let header = &mut buffer[start..start + 20];
    header.fill(0);
    header[0..2].copy_from_slice(&segment.destination_port().to_be_bytes());
    header[2..4].copy_from_slice(&segment.source_port().to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    let checksum = finish(sum(header) + pseudo(source, destination, TCP, 20));
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    start + 20
}
