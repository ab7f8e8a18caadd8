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

/// What changed among the bytes that a checksum covers (RFC 1624).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Update(u64);

impl Update {
    /// Puts `new` in the place of `old`, which begins at an even offset of what is covered and
    /// is as long.
    pub(crate) fn replace(&mut self, old: &mut [u8], new: &[u8]) {
        for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
            self.0 += u64::from(!u16::from_be_bytes([old[0], old[1]]));
            self.0 += u64::from(u16::from_be_bytes([new[0], new[1]]));
        }
        old.copy_from_slice(new);
    }

    /// Notes a word that was replaced at that offset, which may be odd.
    pub(crate) fn word(&mut self, at: usize, old: u16, new: u16) {
        let swap = |word: u16| if at.is_multiple_of(2) { word } else { word.swap_bytes() };
        self.0 += u64::from(!swap(old)) + u64::from(swap(new));
    }

    /// Notes what another one has noted.
    pub(crate) fn add(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// Corrects a checksum.
    pub(crate) fn apply(self, field: &mut [u8]) {
        let before = u16::from_be_bytes([field[0], field[1]]);
        field.copy_from_slice(&finish(u64::from(!before) + self.0).to_be_bytes());
    }

    /// Corrects a sum that was not inverted.
    pub(crate) fn apply_partial(self, field: &mut [u8]) {
        let before = u16::from_be_bytes([field[0], field[1]]);
        field.copy_from_slice(&fold(u64::from(before) + self.0).to_be_bytes());
    }
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
