//! Messages on their way to the socket, in one flat buffer.
//!
//! Messages of one size to one place that follow each other make a run, which leaves by one
//! system call and which the kernel, or the card, cuts again (`UDP_SEGMENT`). The last message
//! of a run may be shorter. A handshake message is always alone: its size says what it is.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::peers::PeerId;

/// Where a message goes, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) to: SocketAddr,
    /// Our own address that the peer spoke to.
    pub(super) source: Option<IpAddr>,
    /// The outer header's type of service, or traffic class.
    pub(super) tos: u8,
}

/// Messages that leave together.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) bytes: Range<usize>,
    /// Bytes of each message but the last.
    pub(super) size: usize,
    pub(super) count: usize,
    pub(super) path: Path,
    /// Whose source address to forget where it is ours no longer.
    pub(super) peer: Option<PeerId>,
    ended: bool,
}

/// Sealed messages.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

impl Outbox {
    /// Room for one message; `None`: too much waits already.
    pub(super) fn slot(&mut self, length: usize) -> Option<&mut [u8]> {
        let end = self.used + length;
        if end > self.buffer.len() {
            if end > LIMIT {
                return None;
            }
            self.buffer.resize((end + end / 2).min(LIMIT), 0);
        }
        Some(&mut self.buffer[self.used..end])
    }

    /// Takes the first `length` bytes of the last [`slot`](Self::slot) as a data message.
    pub(super) fn commit(&mut self, length: usize, path: Path, peer: PeerId) {
        let end = self.used + length;
        if let Some(run) = self.runs.last_mut() {
            let joins = !run.ended
                && run.peer == Some(peer)
                && run.path == path
                && length <= run.size
                && run.count < SEGMENTS
                && end - run.bytes.start <= BYTES;
            if joins {
                run.bytes.end = end;
                run.count += 1;
                run.ended = length < run.size;
                self.used = end;
                return;
            }
        }
        self.push(length, path, Some(peer), false);
    }

    /// Takes it as a message that leaves alone.
    pub(super) fn commit_alone(&mut self, length: usize, path: Path, peer: Option<PeerId>) {
        self.push(length, path, peer, true);
    }

    fn push(&mut self, length: usize, path: Path, peer: Option<PeerId>, ended: bool) {
        let end = self.used + length;
        self.runs.push(Run { bytes: self.used..end, size: length, count: 1, path, peer, ended });
        self.used = end;
    }

    /// Whether it is time to send, for the processor's cache if for nothing else.
    pub(super) fn is_full(&self) -> bool {
        self.used >= FULL || self.runs.len() >= SEGMENTS
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

/// Messages in a run that every kernel cuts.
pub(super) const SEGMENTS: usize = 64;
/// The longest payload of UDP over IPv4.
const BYTES: usize = 65_507;
/// About one run of full messages.
const FULL: usize = 64 << 10;
/// A super-packet of tiny segments is many times its own size when sealed.
const LIMIT: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path { to: ([192, 0, 2, 1], port).into(), source: None, tos: 0 }
    }

    fn runs(outbox: &Outbox) -> Vec<(usize, usize, usize)> {
        outbox.runs().iter().map(|run| (run.size, run.count, run.bytes.len())).collect()
    }

    #[test]
    fn equal_messages_to_one_place_leave_together() {
        let mut outbox = Outbox::default();
        let mut put = |length, port, peer| {
            outbox.slot(length).unwrap();
            outbox.commit(length, path(port), peer);
        };
        put(100, 1, 1);
        put(100, 1, 1);
        put(60, 1, 1); // the shorter last one
        put(100, 1, 1);
        put(100, 2, 1); // elsewhere
        put(100, 2, 2); // another peer there
        put(200, 2, 2); // longer
        assert_eq!(
            runs(&outbox),
            [(100, 3, 260), (100, 1, 100), (100, 1, 100), (100, 1, 100), (200, 1, 200)]
        );
        outbox.clear();
        for _ in 0..65 {
            outbox.slot(100).unwrap();
            outbox.commit(100, path(1), 1);
        }
        assert_eq!(runs(&outbox), [(100, 64, 6400), (100, 1, 100)]);
        outbox.clear();
        for length in [148, 148] {
            outbox.slot(length).unwrap();
            outbox.commit_alone(length, path(1), Some(1));
        }
        outbox.slot(148).unwrap();
        outbox.commit(148, path(1), 1);
        assert_eq!(runs(&outbox), [(148, 1, 148); 3], "a handshake message is alone");
        outbox.clear();
        for _ in 0..8 {
            outbox.slot(9000).unwrap();
            outbox.commit(9000, path(1), 1);
        }
        assert_eq!(runs(&outbox), [(9000, 7, 63_000), (9000, 1, 9000)]);
        assert!(outbox.slot(LIMIT).is_none());
    }
}
