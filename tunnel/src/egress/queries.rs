//! Datagrams on their way to the service.
//!
//! The engine hands one over in the middle of its work on a packet, when nobody can be asked;
//! they wait here until it is done. One packet is the most that gathers: a datagram, a
//! super-datagram's parts, or what a held flow had.

use engine::{Datagram, FlowId, Unsent};

/// Queries in the order in which they came, and their flows.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    bytes: Vec<u8>,
    /// Each one's flow, and where its bytes end.
    ends: Vec<(FlowId, usize)>,
    next: usize,
    taken: usize,
}

/// More bytes than that are not kept for.
const KEPT: usize = 64 * 1024;

impl Queries {
    /// Adds a datagram, or each part of a super-datagram.
    pub(crate) fn push(&mut self, id: FlowId, datagram: Datagram<'_>) -> Result<(), Unsent> {
        let Datagram { payload, segment, .. } = datagram;
        let step = segment.filter(|&step| step > 0).map_or(payload.len(), usize::from);
        for query in payload.chunks(step.max(1)) {
            self.bytes.extend_from_slice(query);
            self.ends.push((id, self.bytes.len()));
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.ends.len()
    }

    /// Takes the next query.
    pub(crate) fn next(&mut self, into: &mut Vec<u8>) -> Option<FlowId> {
        let &(id, end) = self.ends.get(self.next)?;
        into.clear();
        into.extend_from_slice(&self.bytes[self.taken..end]);
        self.next += 1;
        self.taken = end;
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.ends.clear();
            (self.next, self.taken) = (0, 0);
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_come_out_as_they_went_in() {
        let mut queries = Queries::default();
        let mut query = Vec::new();
        let (a, b) = (FlowId::from_bits(1), FlowId::from_bits(2));
        for _ in 0..2 {
            for (id, payload, segment) in [
                (a, &b"one"[..], None),
                (b, b"twotwot", Some(3)),
                (a, b"", None),
                (a, b"whole", Some(0)),
            ] {
                queries
                    .push(id, Datagram { payload, segment, dont_fragment: false, may_wait: false })
                    .unwrap();
            }
            let mut all = Vec::new();
            while let Some(id) = queries.next(&mut query) {
                all.push((id, query.clone()));
            }
            let want = [(a, "one"), (b, "two"), (b, "two"), (b, "t"), (a, "whole")];
            assert_eq!(all, want.map(|(id, text)| (id, text.as_bytes().to_vec())));
            assert!(queries.is_empty() && queries.bytes.is_empty());
        }
    }
}
