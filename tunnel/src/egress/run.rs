//! Datagrams of one flow that leave as one message.
//!
//! # Theory of operation
//!
//! A datagram costs little to carry and much to send: of a flood three quarters of the shard's
//! time are `sendmsg()`. So equal datagrams of one mapping to one peer, as a batch of the device
//! brings them, wait for the batch's end and leave as one message with `UDP_SEGMENT`: on the wire
//! they are what they were. A shorter one ends the run, as the kernel wants it; so does a datagram
//! of another flow, so that none overtakes another. What fails is told once the batch is over.

use std::net::SocketAddr;

use engine::{MappingId, Unsent};

use crate::egress::udp::{MAX_BYTES, MAX_SEGMENTS};

/// Where a run leads, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Towards {
    pub(crate) mapping: MappingId,
    pub(crate) far: SocketAddr,
    pub(crate) dont_fragment: bool,
}

/// The datagrams that wait.
#[derive(Debug)]
pub(crate) struct Run {
    towards: Option<Towards>,
    /// Of every datagram but the last.
    size: usize,
    count: usize,
    /// The last one was as long as the others.
    open: bool,
    bytes: Vec<u8>,
}

/// A run that did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnsentRun {
    pub(crate) towards: Towards,
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    pub(crate) why: Unsent,
}

impl Run {
    pub(crate) fn new() -> Self {
        let bytes = Vec::with_capacity(MAX_BYTES);
        Self { towards: None, size: 0, count: 0, open: false, bytes }
    }

    /// Takes a datagram along, if it fits behind those that wait or nothing waits.
    pub(crate) fn takes(&mut self, towards: Towards, payload: &[u8]) -> bool {
        if payload.is_empty() || payload.len() > LONGEST {
            return false;
        }
        if self.towards.is_none() {
            (self.towards, self.size) = (Some(towards), payload.len());
        } else if !self.open
            || self.towards != Some(towards)
            || payload.len() > self.size
            || self.bytes.len() + payload.len() > MAX_BYTES
        {
            return false;
        }
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        self.open = payload.len() == self.size && self.count < MAX_SEGMENTS;
        true
    }

    /// What waits: where it leads, its bytes, and the size of each datagram where there are several.
    pub(crate) fn waiting(&self) -> Option<(Towards, &[u8], Option<u16>)> {
        let segment = (self.count > 1).then_some(self.size as u16); // at most LONGEST
        Some((self.towards?, &self.bytes, segment))
    }

    /// Forgets what waited; it comes back as what did not leave for that reason.
    pub(crate) fn clear(&mut self, why: Option<Unsent>) -> Option<UnsentRun> {
        let (datagrams, bytes) = (self.count as u64, self.bytes.len() as u64);
        self.bytes.clear();
        (self.count, self.open) = (0, false);
        let towards = self.towards.take()?;
        Some(UnsentRun { towards, datagrams, bytes, why: why? })
    }
}

/// Longer ones save nothing: no frame holds two.
const LONGEST: usize = 9_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn towards(slot: u32, far: &str, dont_fragment: bool) -> Towards {
        let mapping = MappingId::from_slot(slot);
        Towards { mapping, far: far.parse().unwrap(), dont_fragment }
    }

    #[test]
    fn equal_datagrams_of_one_flow_wait_together() {
        let one = towards(1, "192.0.2.1:7", true);
        #[rustfmt::skip]
        let cases = [
            ("equal", one, 100, true),
            ("shorter", one, 99, true),
            ("longer", one, 101, false),
            ("empty", one, 0, false),
            ("another peer", towards(1, "192.0.2.1:8", true), 100, false),
            ("another mapping", towards(2, "192.0.2.1:7", true), 100, false),
            ("may be fragmented", towards(1, "192.0.2.1:7", false), 100, false),
        ];
        for (name, other, length, expected) in cases {
            let mut run = Run::new();
            assert_eq!(run.waiting(), None);
            assert!(run.takes(one, &[1; 100]));
            assert_eq!(run.waiting(), Some((one, &[1; 100][..], None)));
            assert_eq!(run.takes(other, &vec![2; length]), expected, "{name}");
            let (_, bytes, segment) = run.waiting().unwrap();
            assert_eq!(segment, expected.then_some(100), "{name}");
            assert_eq!(bytes.len(), 100 + if expected { length } else { 0 }, "{name}");
            // Behind a shorter one nothing fits.
            assert_eq!(run.takes(one, &[3; 10]), length != 99, "{name}");
        }
        assert!(!Run::new().takes(one, &[0; LONGEST + 1]));
    }

    #[test]
    fn a_run_has_an_end() {
        let one = towards(1, "[2001:db8::1]:7", true);
        for (size, expected) in [(1, MAX_SEGMENTS), (1_400, 46), (LONGEST, 7)] {
            let mut run = Run::new();
            let mut count = 0;
            while run.takes(one, &vec![0; size]) {
                count += 1;
            }
            assert_eq!(count, expected, "{size}");
            let unsent = run.clear(Some(Unsent::Full)).unwrap();
            let (datagrams, bytes) = (count as u64, (count * size) as u64);
            assert_eq!(unsent, UnsentRun { towards: one, datagrams, bytes, why: Unsent::Full });
            assert_eq!(run.clear(Some(Unsent::Full)), None);
            assert!(run.takes(one, &[0]));
            assert_eq!(run.clear(None), None);
            assert_eq!(run.waiting(), None);
        }
    }
}
