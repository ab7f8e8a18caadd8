//! Internet checksums (RFC 1071).

use std::net::IpAddr;

/// The ones' complement sum of `bytes`, not yet folded or inverted.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut total: u64 =
        words.by_ref().map(|w| u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]))).sum();
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    total
}

/// Folds a sum into 16 bits.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1).
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&s.octets()) + sum(&d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&s.octets()) + sum(&d.octets()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    };
    addresses + u64::from(protocol) + length as u64
}

/// The value for a checksum field over `sum`.
pub(crate) fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_rfc_1071() {
        for (name, bytes, want) in [
            ("empty", &[][..], 0u16),
            ("the RFC's example", &[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7], 0xddf2),
            ("odd length pads with zero", &[0x12, 0x34, 0x56], 0x6834),
            ("carry folds back", &[0xff, 0xff, 0x00, 0x02], 0x0002),
        ] {
            assert_eq!(fold(sum(bytes)), want, "{name}");
        }
    }
}
