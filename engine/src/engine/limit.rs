//! What gives way when there is no more room.

use crate::engine::{Engine, Output};
use crate::flow::table::Which;
use crate::flow::tcp::Stream;
use crate::flow::{First, FlowId, State, Waiting};
use crate::{Dropped, Instant, Protocol, Reason, Sink};

impl Engine {
    /// Makes room for one more flow. Flows that are not open give way among themselves
    /// first, so that a flood of SYNs to nobody costs no open connection its place.
    /// What asks the service by datagrams gives way among itself as well, the answered ones
    /// first: a program that asks from a new port each time ends nobody else's flow.
    pub(super) fn make_room(
        &mut self,
        protocol: Protocol,
        served: bool,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let asking = self.table.count(Which::Asking) + self.table.count(Which::Served);
        if served && protocol == Protocol::Udp && asking >= self.config.half_open {
            let lists = [Which::Served, Which::Asking];
            let oldest = lists.into_iter().find_map(|list| self.table.oldest(list));
            self.evict(oldest.ok_or(Dropped::Limit)?, Reason::Limit, now, sink);
        }
        if self.table.count(Which::HalfOpen) >= self.config.half_open {
            let oldest = self.table.oldest(Which::HalfOpen).ok_or(Dropped::Limit)?;
            self.evict(oldest, Reason::Limit, now, sink);
        }
        // Two at most: a limit that was lowered is reached without a pause in which thousands go.
        for _ in 0..2 {
            if self.table.len() < self.config.flows {
                break;
            }
            let lists = if self.table.count(Which::HalfOpen) > self.config.flows / 4 {
                [Which::HalfOpen, Which::Served, Which::Open, Which::Asking]
            } else {
                [Which::Served, Which::Open, Which::HalfOpen, Which::Asking]
            };
            let oldest = lists.into_iter().find_map(|list| self.table.oldest(list));
            self.evict(oldest.ok_or(Dropped::Limit)?, Reason::Limit, now, sink);
        }
        Ok(())
    }

    /// Ends the connection that was idle longest, to free its rings. Of flows that are not open
    /// only a peek has any, and [`Config::half_open`](crate::Config::half_open) bounds these.
    pub(super) fn evict_idle(&mut self, now: Instant, sink: &mut impl Sink) {
        if let Some(oldest) = self.table.oldest_stream() {
            self.evict(oldest, Reason::Limit, now, sink);
        }
    }

    /// Ends a flow in whatever state it is: TCP by a RST to both sides, since nothing else
    /// ends a `recv()`.
    pub(super) fn evict(&mut self, id: FlowId, reason: Reason, now: Instant, sink: &mut impl Sink) {
        self.carried = Some(id);
        let Some(flow) = self.table.get_mut(id) else { return };
        match &mut flow.state {
            State::Stream(stream) => {
                stream.endpoint.abort();
                self.stack.flush(&mut stream.endpoint, now, sink);
                self.outputs.push_back(hang_up(id, stream));
            }
            State::Held(held) => {
                if let First::Peeked(stream) = &mut held.first {
                    stream.endpoint.abort();
                    self.stack.flush(&mut stream.endpoint, now, sink);
                }
                if matches!(held.waiting, Waiting::Egress(None)) {
                    self.outputs.push_back(Output::Close(id));
                }
            }
            State::Echo { .. } => self.outputs.push_back(Output::Close(id)),
            // The app's own timer tells of silence.
            State::Link(crossing) if !crossing.is_over() && reason != Reason::TimedOut => {
                self.reset_both(id, sink);
            }
            State::Datagrams(_) | State::Link(_) | State::Questions { .. } | State::Answered(_) => {
            }
        }
        self.finish(id, reason, now);
    }
}

/// How the far side's socket of a connection ends that ends early. Once it has every byte of
/// the app's and the end behind them, the kernel may still owe some to the far side: only a
/// close lets it deliver them. Before, a close would pass a torn stream off as a whole one.
pub(super) fn hang_up(id: FlowId, stream: &Stream) -> Output {
    if stream.app_done { Output::Close(id) } else { Output::Reset(id) }
}
