//! Headers of inner packets: where things lie, and the Internet checksum (RFC 1071).
//!
//! Sums are of 16-bit words as they lie in memory, so that no byte is swapped on the way;
//! [`word`] brings a number into that order and a folded sum is stored as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// Where the headers of a TCP segment or UDP datagram lie. IPv6 extension headers have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) v4: bool,
    pub(super) tcp: bool,
    /// Bytes of the IP header.
    pub(super) ip: usize,
    /// Bytes of both headers.
    pub(super) header: usize,
}

impl Layout {
    /// `None`: neither TCP nor UDP, a fragment, or not whole.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let (v4, ip, protocol) = match packet.first()? >> 4 {
            4 if packet.len() >= 20 => {
                // More fragments, or not the first one.
                if be16(packet, 6) & 0x3fff != 0 {
                    return None;
                }
                (true, usize::from(packet[0] & 0x0f) * 4, packet[9])
            }
            6 if packet.len() >= 40 => (false, 40, packet[6]),
            _ => return None,
        };
        let tcp = protocol == TCP;
        let transport = match protocol {
            TCP => usize::from(packet.get(ip + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let header = ip + transport;
        let whole = ip >= 20 && (!tcp || transport >= 20) && header <= packet.len();
        whole.then_some(Self { v4, tcp, ip, header })
    }

    /// Where the transport checksum lies.
    pub(super) fn checksum_at(self) -> usize {
        self.ip + if self.tcp { 16 } else { 6 }
    }

    /// The sum of the pseudo-header for `length` bytes of transport header and payload.
    pub(super) fn pseudo(self, packet: &[u8], length: usize) -> u64 {
        let addresses = if self.v4 { &packet[12..20] } else { &packet[8..40] };
        let protocol = if self.tcp { TCP } else { UDP };
        // No packet here is longer than its 16-bit length fields can say.
        sum(addresses) + word(u16::from(protocol)) + word(length as u16)
    }

    /// Writes the lengths of a packet of `total` bytes into its headers, and the sum of an
    /// IPv4 header.
    pub(super) fn set_lengths(self, packet: &mut [u8], total: usize) {
        if self.v4 {
            set_be16(packet, 2, total as u16);
            set_be16(packet, 10, 0);
            let folded = !fold(sum(&packet[..self.ip]));
            packet[10..12].copy_from_slice(&folded.to_ne_bytes());
        } else {
            set_be16(packet, 4, (total - 40) as u16);
        }
        if !self.tcp {
            set_be16(packet, self.ip + 4, (total - self.ip) as u16);
        }
    }

    /// Computes the transport checksum of a whole packet.
    pub(super) fn complete(self, packet: &mut [u8]) {
        let at = self.checksum_at();
        packet[at..at + 2].fill(0);
        let length = packet.len() - self.ip;
        let mut folded = !fold(sum(&packet[self.ip..]) + self.pseudo(packet, length));
        if folded == 0 && !self.tcp {
            folded = 0xffff; // RFC 768: zero says "none"
        }
        packet[at..at + 2].copy_from_slice(&folded.to_ne_bytes());
    }

    /// Whether the checksums of a whole packet are right. A UDP datagram without one has none.
    pub(super) fn verify(self, packet: &[u8]) -> bool {
        let at = self.checksum_at();
        if !self.tcp && packet[at..at + 2] == [0, 0] {
            return false;
        }
        let length = packet.len() - self.ip;
        (!self.v4 || fold(sum(&packet[..self.ip])) == 0xffff)
            && fold(sum(&packet[self.ip..]) + self.pseudo(packet, length)) == 0xffff
    }
}

/// The destination of an IP packet; `None` where it is none.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// The bits of explicit congestion notification (RFC 3168 5).
pub(super) fn ecn(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & 3,
        [_, second, ..] => second >> 4 & 3,
        _ => 0,
    }
}

/// Marks an inner packet whose outer one met congestion, where its ends understand that
/// (RFC 6040 4.2). `packet` holds a whole IP header.
pub(super) fn mark_congestion(packet: &mut [u8]) {
    if ecn(packet) == 0 {
        return;
    }
    if packet[0] >> 4 == 4 {
        let length = (usize::from(packet[0] & 0x0f) * 4).min(packet.len());
        packet[1] |= 3;
        set_be16(packet, 10, 0);
        let folded = !fold(sum(&packet[..length]));
        packet[10..12].copy_from_slice(&folded.to_ne_bytes());
    } else {
        packet[1] |= 0x30;
    }
}

/// The ones' complement sum of `bytes`, not folded.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    // Eight lanes that the compiler turns into vector additions.
    let mut lanes = [0_u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// A number as a word of a sum.
pub(super) fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// Folds a sum into 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn set_be16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn set_be32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::checksum;

    #[test]
    fn sums_are_those_of_the_plain_algorithm() {
        let bytes: Vec<u8> = (0..1500_u32).map(|i| (i * 7 + i / 256 * 13) as u8).collect();
        for length in (0..130).chain([1419, 1420, 1499, 1500]) {
            let folded = (!fold(sum(&bytes[..length]))).to_ne_bytes();
            assert_eq!(u16::from_be_bytes(folded), checksum(&bytes[..length], 0), "{length}");
        }
        assert_eq!(fold(word(0x1234)).to_ne_bytes(), [0x12, 0x34]);
    }

    #[test]
    fn congestion_is_marked_where_it_is_understood() {
        let v4 = |tos: u8| {
            let mut packet =
                vec![0x45, tos, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
            let folded = !fold(sum(&packet));
            packet[10..12].copy_from_slice(&folded.to_ne_bytes());
            packet
        };
        for (before, after) in [(0, 0), (1, 3), (2, 3), (3, 3), (0xb8, 0xb8), (0xba, 0xbb)] {
            let mut packet = v4(before);
            mark_congestion(&mut packet);
            assert_eq!(packet, v4(after), "{before:#x}");
        }
        let mut v6 = [0; 40];
        v6[0] = 0x60;
        v6[1] = 0x2f;
        mark_congestion(&mut v6);
        assert_eq!(v6[1], 0x3f);
    }
}
