//! Datagrams in pieces, put together again within bounds.
//!
//! At most [`ENTRIES`] datagrams and [`BYTES`] wait at once, each for [`PATIENCE`]; the
//! oldest makes room for a new one. A piece that overlaps another drops the whole datagram
//! (RFC 5722 for IPv6, RFC 1858's attacks for IPv4).

use std::net::IpAddr;
use std::time::Duration;

use super::{Fragment, Packet};
use crate::{Dropped, Instant};

/// Datagrams at once.
const ENTRIES: usize = 64;
/// Payload bytes at once.
const BYTES: usize = 4 << 20;
/// RFC 791 suggests 15 s, RFC 8200 4.5 says 60 s, Linux waits 30 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest payload that a datagram's header can name.
const LARGEST: usize = 65_535;
/// Pieces of one datagram: 65,535 bytes over IPv6's least MTU are 54; smaller pieces are
/// an attack on the list.
const PIECES: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    /// In order of age.
    entries: Vec<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    id: Id,
    since: Instant,
    /// In order of their starts, never overlapping.
    pieces: Vec<(usize, Box<[u8]>)>,
    bytes: usize,
    /// The payload's length, once the last piece came.
    total: Option<usize>,
    /// A piece overlapped: the rest is refused until the entry expires.
    poisoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ident: u32,
}

impl Reassembler {
    /// Takes a piece; gives the datagram's payload when it was the missing one.
    pub(crate) fn add(
        &mut self,
        packet: &Packet<'_>,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<Option<Box<[u8]>>, Dropped> {
        let end = fragment.start + fragment.payload.len();
        let aligned = fragment.payload.len().is_multiple_of(8);
        if end > LARGEST || fragment.payload.is_empty() || fragment.more && !aligned {
            return Err(Dropped::Fragment);
        }
        self.expire(now);
        let id = Id {
            source: packet.source,
            destination: packet.destination,
            protocol: fragment.protocol,
            ident: fragment.ident,
        };
        let at = match self.entries.iter().position(|e| e.id == id) {
            Some(at) => at,
            None => {
                self.entries.push(Entry {
                    id,
                    since: now,
                    pieces: Vec::new(),
                    bytes: 0,
                    total: None,
                    poisoned: false,
                });
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[at];
        if let Err(cause) = entry.insert(fragment, end) {
            self.bytes -= entry.bytes;
            entry.poison();
            return Err(cause);
        }
        self.bytes += fragment.payload.len();
        if entry.total == Some(entry.bytes) {
            let entry = self.entries.remove(at);
            self.bytes -= entry.bytes;
            return Ok(Some(entry.pieces.into_iter().flat_map(|(_, p)| p).collect()));
        }
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let oldest = self.entries.remove(0);
            self.bytes -= oldest.bytes;
        }
        Ok(None)
    }

    /// Drops datagrams that have waited too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.entries.first().is_some_and(|e| now.since(e.since) >= PATIENCE) {
            let oldest = self.entries.remove(0);
            self.bytes -= oldest.bytes;
        }
    }

    /// When the oldest datagram has waited long enough.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.entries.first().map(|e| e.since + PATIENCE)
    }
}

impl Entry {
    fn insert(&mut self, fragment: &Fragment<'_>, end: usize) -> Result<(), Dropped> {
        if self.poisoned || self.pieces.len() >= PIECES {
            return Err(Dropped::Fragment);
        }
        let at = self.pieces.partition_point(|(start, _)| *start < fragment.start);
        let overlaps_before = at > 0 && {
            let (start, piece) = &self.pieces[at - 1];
            start + piece.len() > fragment.start
        };
        let overlaps_after = self.pieces.get(at).is_some_and(|(start, _)| *start < end);
        let past_total = self.total.is_some_and(|total| end > total || !fragment.more);
        let shrinks = !fragment.more
            && self.pieces.last().is_some_and(|(start, piece)| start + piece.len() > end);
        if overlaps_before || overlaps_after || past_total || shrinks {
            return Err(Dropped::Fragment);
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.bytes += fragment.payload.len();
        self.pieces.insert(at, (fragment.start, fragment.payload.into()));
        Ok(())
    }

    fn poison(&mut self) {
        self.poisoned = true;
        self.pieces = Vec::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Transport;

    fn piece<'a>(payload: &'a [u8], start: usize, more: bool) -> Fragment<'a> {
        Fragment { ident: 7, protocol: 17, start, more, payload }
    }

    fn packet() -> Packet<'static> {
        Packet {
            bytes: &[],
            source: IpAddr::from([192, 0, 2, 1]),
            destination: IpAddr::from([192, 0, 2, 2]),
            dont_fragment: false,
            head: crate::packet::Head::default(),
            in_pieces: false,
            transport: Transport::Icmp,
        }
    }

    #[test]
    fn pieces_in_any_order_make_the_datagram() {
        let data: Vec<u8> = (0..40).collect();
        let cut = [(0, 16, true), (16, 32, true), (32, 40, false)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut reassembler = Reassembler::default();
            let mut whole = None;
            for i in order {
                let (start, end, more) = cut[i];
                let got = reassembler
                    .add(&packet(), &piece(&data[start..end], start, more), Instant::ZERO)
                    .expect("no overlap");
                assert!(whole.is_none(), "{order:?}: whole too early");
                whole = got;
            }
            assert_eq!(whole.as_deref(), Some(&data[..]), "{order:?}");
            assert_eq!(reassembler.bytes, 0);
        }
    }

    #[test]
    fn what_is_refused() {
        let zero = [0u8; 64];
        for (name, pieces) in [
            ("overlap before", vec![(0, 16, true), (8, 24, true)]),
            ("overlap after", vec![(16, 32, true), (8, 24, true)]),
            ("the same twice", vec![(0, 16, true), (0, 16, true)]),
            ("past the end", vec![(8, 16, false), (16, 24, true)]),
            ("two ends", vec![(8, 16, false), (16, 24, false)]),
            ("the end before a piece", vec![(32, 40, true), (8, 16, false)]),
            ("not a multiple of eight", vec![(0, 15, true)]),
            ("empty", vec![(0, 0, true)]),
        ] {
            let mut reassembler = Reassembler::default();
            let last = pieces
                .iter()
                .map(|&(start, end, more)| {
                    let fragment = piece(&zero[start..end], start, more);
                    reassembler.add(&packet(), &fragment, Instant::ZERO)
                })
                .last();
            assert_eq!(last, Some(Err(Dropped::Fragment)), "{name}");
            assert_eq!(reassembler.bytes, 0, "{name}");
        }
    }

    #[test]
    fn waiting_is_bounded() {
        let mut reassembler = Reassembler::default();
        let zero = [0u8; 1024];
        for ident in 0..1000 {
            let fragment = Fragment { ident, ..piece(&zero, 0, true) };
            assert_eq!(reassembler.add(&packet(), &fragment, Instant::ZERO), Ok(None));
        }
        assert_eq!(reassembler.entries.len(), ENTRIES);
        reassembler.expire(Instant::ZERO + PATIENCE);
        assert_eq!((reassembler.entries.len(), reassembler.bytes), (0, 0));
    }
}
