//! Bytes whose every value follows from their place.
//!
//! A digest at the end says that something differs; a pattern says where, and
//! whether bytes were lost, doubled or moved.

/// The byte sequence of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
}

/// The first byte that was not what its place demands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Differs {
    /// Its offset from the start of the sequence.
    pub at: u64,
    /// The byte of the pattern.
    pub expected: u8,
    /// The byte that came.
    pub seen: u8,
}

impl Pattern {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Writes the bytes that begin at `offset`.
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        self.words(offset, buffer.len(), |at, word| {
            buffer[at..at + word.len()].copy_from_slice(word);
            true
        });
    }

    /// Compares bytes that should begin at `offset`.
    pub fn check(self, offset: u64, bytes: &[u8]) -> Result<(), Differs> {
        let mut differs = None;
        self.words(offset, bytes.len(), |at, word| {
            let seen = &bytes[at..at + word.len()];
            if seen == word {
                return true;
            }
            let place = word.iter().zip(seen).position(|(a, b)| a != b).unwrap_or(0);
            differs = Some(Differs {
                at: offset + (at + place) as u64,
                expected: word[place],
                seen: seen[place],
            });
            false
        });
        differs.map_or(Ok(()), Err)
    }

    /// Visits the sequence in pieces of at most eight bytes, while `visit` wants more.
    fn words(self, offset: u64, length: usize, mut visit: impl FnMut(usize, &[u8]) -> bool) {
        let mut at = 0;
        while at < length {
            let place = offset + at as u64;
            let skip = (place % 8) as usize;
            let take = (8 - skip).min(length - at);
            if !visit(at, &self.word(place / 8)[skip..skip + take]) {
                return;
            }
            at += take;
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014) at position `index`.
    fn word(self, index: u64) -> [u8; 8] {
        let mut z =
            self.seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_sequence_is_the_sequence() {
        let pattern = Pattern::new(7);
        let mut whole = [0; 100];
        pattern.fill(0, &mut whole);
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut piece = vec![0; end - start];
                pattern.fill(start as u64, &mut piece);
                assert_eq!(piece, whole[start..end]);
                assert_eq!(pattern.check(start as u64, &piece), Ok(()));
            }
        }
    }

    #[test]
    fn a_difference_has_a_place() {
        let pattern = Pattern::new(1);
        let mut bytes = [0; 64];
        pattern.fill(1_000, &mut bytes);
        bytes[37] ^= 1;
        let differs = pattern.check(1_000, &bytes).unwrap_err();
        assert_eq!(differs.at, 1_037);
        assert_eq!(differs.expected ^ 1, differs.seen);
    }
}
