//! Deadlines of flows in one heap.
//!
//! A flow has at most one live entry: the earliest moment at which its state may have to
//! change. Activity that moves a deadline later does not touch the heap; the entry fires
//! early, the flow looks again and arms the rest. That keeps timers off the packet path.
//! An entry that an earlier one has overtaken, or whose flow is gone, is stale: it is dropped
//! when it comes first, and all of them are once they are the greater part of the heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::{FlowId, Instant};

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Instant, flow: FlowId) {
        self.heap.push(Reverse((at, flow)));
    }

    /// Drops the stale entries where they outnumber the at most `flows` live ones. An idle
    /// timer is hours long: without this each would outlive its flow by as much.
    pub(crate) fn compact(&mut self, flows: usize, live: impl Fn(Instant, FlowId) -> bool) {
        /// Not worth a pass below that.
        const SLACK: usize = 1024;
        if self.heap.len() > 2 * flows + SLACK {
            self.heap.retain(|Reverse((at, flow))| live(*at, *flow));
        }
    }

    /// The earliest entry, which may be stale.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes an entry that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Drops entries that no flow stands behind any more, so that the next one is real
    /// and nobody wakes for a flow that is gone.
    pub(crate) fn prune(&mut self, live: impl Fn(Instant, FlowId) -> bool) {
        while let Some(Reverse((at, flow))) = self.heap.peek() {
            if live(*at, *flow) {
                return;
            }
            self.heap.pop();
        }
    }
}
