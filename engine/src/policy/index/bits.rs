//! Bit vectors of rows that share what they have in common.

use std::ops::Range;

use super::{DIMENSIONS, TooLarge};

/// Bytes of bit vectors in one dimension. Lists that overlap in a million different
/// ways would take more; no policy that a person or a program wrote did.
const LIMIT: usize = 1 << 30;

pub(super) type ClassId = u32;
pub(super) const EMPTY: ClassId = 0;

/// The chunk lists of the classes that must all hold, from where the AND stands.
pub(super) struct Heads<'i> {
    pub(super) lists: [&'i [Entry]; DIMENSIONS],
    pub(super) words: [&'i [u64]; DIMENSIONS],
    pub(super) len: usize,
}

impl Heads<'_> {
    /// The next chunk, from `next` on and before `end`, that all lists have. Without
    /// lists every chunk is common.
    #[inline]
    pub(super) fn common(&mut self, next: u32, end: u32) -> Option<u32> {
        let mut chunk = next;
        let mut at = 0;
        while at < self.len {
            let list = &mut self.lists[at];
            while list.first().is_some_and(|entry| entry.chunk < chunk) {
                *list = &list[1..];
            }
            let head = list.first()?.chunk;
            if head > chunk {
                chunk = head;
                at = 0;
            } else {
                at += 1;
            }
        }
        (chunk < end).then_some(chunk)
    }

    #[inline]
    pub(super) fn summary(&self, rows: usize) -> u64 {
        let all = ones(rows.div_ceil(64));
        self.lists[..self.len].iter().fold(all, |summary, list| summary & list[0].summary)
    }

    #[inline]
    pub(super) fn word(&self, word: u32, rows: usize) -> u64 {
        let all = ones(rows - (word as usize * 64).min(rows));
        let lists = self.lists[..self.len].iter().zip(&self.words);
        lists.fold(all, |common, (list, words)| common & list[0].word(words, word))
    }
}

/// The lowest `count` bits, at most 64.
fn ones(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The places of the bits that are set, lowest first.
pub(super) fn set_bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            place
        })
    })
}

/// Rows of a chunk: a summary word of 64 words.
pub(super) const CHUNK_ROWS: usize = 64 * 64;

/// Bit vectors that share what they have in common.
#[derive(Debug)]
pub(super) struct Bits {
    /// Chunk lists of all classes, one behind the other.
    pub(super) entries: Vec<Entry>,
    /// The words of all chunks that are not zero.
    pub(super) words: Vec<u64>,
    /// Where the chunk list of each class is.
    pub(super) classes: Vec<Range<u32>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) chunk: u32,
    pub(super) first_word: u32,
    /// Which of the 64 words are there.
    pub(super) summary: u64,
}

impl Entry {
    #[inline]
    pub(super) fn word(&self, words: &[u64], word: u32) -> u64 {
        if self.summary >> word & 1 == 0 {
            return 0;
        }
        let before = (self.summary & ((1 << word) - 1)).count_ones();
        words[(self.first_word + before) as usize]
    }
}

impl Default for Bits {
    fn default() -> Self {
        let empty = 0..0;
        Self { entries: Vec::new(), words: Vec::new(), classes: vec![empty] }
    }
}

impl Bits {
    pub(super) fn entries(&self, class: ClassId) -> &[Entry] {
        let range = &self.classes[class as usize];
        &self.entries[range.start as usize..range.end as usize]
    }

    pub(super) fn word(&self, class: ClassId, chunk: u32, word: u32) -> u64 {
        let entries = self.entries(class);
        let at = entries.binary_search_by_key(&chunk, |entry| entry.chunk);
        at.map_or(0, |at| entries[at].word(&self.words, word))
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>()
            + self.words.len() * 8
            + self.classes.len() * size_of::<Range<u32>>()
    }

    /// A new class: `base` with the bits of `rows` turned over. Chunks that no row
    /// touches are shared with `base`.
    pub(super) fn toggled(&mut self, base: ClassId, rows: &mut [u32]) -> Result<ClassId, TooLarge> {
        rows.sort_unstable();
        let position = |len: usize| u32::try_from(len).map_err(|_| TooLarge);
        let start = position(self.entries.len())?;
        let mut base = self.classes[base as usize].clone();
        for rows in rows.chunk_by(|a, b| a / CHUNK_ROWS as u32 == b / CHUNK_ROWS as u32) {
            let chunk = rows[0] / CHUNK_ROWS as u32;
            while base.start < base.end && self.entries[base.start as usize].chunk < chunk {
                self.entries.push(self.entries[base.start as usize]);
                base.start += 1;
            }
            let mut dense = [0; 64];
            let mut touched = 0;
            if base.start < base.end && self.entries[base.start as usize].chunk == chunk {
                let entry = self.entries[base.start as usize];
                touched = entry.summary;
                for (word, bits) in set_bits(touched).zip(&self.words[entry.first_word as usize..])
                {
                    dense[word] = *bits;
                }
                base.start += 1;
            }
            for row in rows {
                let word = row % CHUNK_ROWS as u32 / 64;
                touched |= 1 << word;
                dense[word as usize] ^= 1 << (row % 64);
            }
            let first_word = position(self.words.len())?;
            let mut summary = 0;
            for word in set_bits(touched).filter(|word| dense[*word] != 0) {
                summary |= 1 << word;
                self.words.push(dense[word]);
            }
            if summary != 0 {
                self.entries.push(Entry { chunk, first_word, summary });
            }
        }
        self.entries.extend_from_within(base.start as usize..base.end as usize);
        if self.heap_bytes() > LIMIT {
            return Err(TooLarge);
        }
        let class = position(self.classes.len())?;
        self.classes.push(start..position(self.entries.len())?);
        Ok(class)
    }
}
