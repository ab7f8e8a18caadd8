//! When a flow's state may have to change without anything happening, and what becomes of it
//! then.

use std::time::Duration;

use crate::engine::{Engine, Output, Sink, Unresolved};
use crate::flow::link::{Crossing, Life};
use crate::flow::table::Table;
use crate::flow::{First, Flow, FlowId, Held, REPEAT_AFTER, State, Waiting};
use crate::{Fact, Instant, Reason};

impl Engine {
    /// Arms the flow's timer where its next deadline is earlier than the armed one.
    pub(super) fn arm(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let at = deadline(flow);
        if flow.armed.is_none_or(|armed| at < armed) {
            flow.armed = Some(at);
            self.timers.arm(at, id);
            let table = &self.table;
            self.timers.compact(table.len(), |at, id| is_armed(table, at, id));
        }
    }

    pub(super) fn flow_timeout(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let due = deadline(flow) <= now;
        match &mut flow.state {
            State::Stream(stream) => {
                if stream.stack_at.is_some_and(|at| at <= now) {
                    self.settle(id, now, sink);
                } else if now.since(flow.active) >= stream.idle() {
                    if stream.end_idle() {
                        flow.active = now;
                        self.settle(id, now, sink);
                    } else {
                        self.evict(id, Reason::Idle, now, sink);
                    }
                } else if due {
                    if stream.is_worth_a_trim() {
                        self.outputs.push_back(Output::Trim(stream.rings));
                    }
                    stream.moved = 0;
                }
            }
            State::Answered(answered) if answered.repeats > 0 && due => {
                answered.repeats -= 1;
                answered.until = now + REPEAT_AFTER[1];
                self.answer_again(id, now, sink);
            }
            State::Link(crossing) if due => {
                let reason = match &crossing.life {
                    Life::Tcp(tracker) => tracker.silence(),
                    Life::Udp | Life::Echo { .. } => Reason::Idle,
                };
                self.evict(id, reason, now, sink);
            }
            State::Answered(_)
            | State::Datagrams(_)
            | State::Echo { .. }
            | State::Questions { .. }
                if due =>
            {
                self.evict(id, Reason::Idle, now, sink);
            }
            State::Held(Held { first: First::Peeked(stream), .. })
                if stream.stack_at.is_some_and(|at| at <= now) =>
            {
                self.tend_peeked(id, now, sink);
            }
            State::Held(held) if due => match held.waiting {
                Waiting::Owner => self.owner_answered(id, None, now, sink),
                Waiting::Rings => self.lent(id, None, now, sink),
                Waiting::Bytes(_) => self.named(id, Fact::Unknown, now, sink),
                Waiting::Source => {
                    self.source_failed(id, Unresolved::LookupFailed, now, sink);
                }
                Waiting::Egress(_) => self.evict(id, Reason::TimedOut, now, sink),
            },
            State::Held(_)
            | State::Answered(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. } => {}
        }
    }
}

/// Whether a timer's entry is its flow's live one.
pub(super) fn is_armed(table: &Table, at: Instant, id: FlowId) -> bool {
    table.get(id).is_some_and(|flow| flow.armed == Some(at))
}

/// When a flow's state may have to change without anything happening.
fn deadline(flow: &Flow) -> Instant {
    use crate::flow::{
        AWAITED_IDLE, DNS_IDLE, ECHO_IDLE, LOOKUP, QUESTIONS_IDLE, TRIM_AFTER, UDP_IDLE,
        UDP_UNANSWERED,
    };
    /// The kernel gives up a connect after `tcp_syn_retries`, 127 s by default; a host may
    /// be more patient.
    const CONNECT: Duration = Duration::from_secs(300);
    match &flow.state {
        State::Held(held) => {
            let waits = match held.waiting {
                Waiting::Owner | Waiting::Source | Waiting::Rings => flow.active + LOOKUP,
                Waiting::Bytes(until) => until,
                Waiting::Egress(_) => flow.active + CONNECT,
            };
            match &held.first {
                First::Peeked(stream) => stream.stack_at.map_or(waits, |at| at.min(waits)),
                First::Syn(..) | First::Datagrams(_) | First::Echoes(_) => waits,
            }
        }
        State::Stream(stream) => {
            let trim = if stream.moved > 0 { TRIM_AFTER } else { Duration::MAX };
            let idle = flow.active + stream.idle().min(trim);
            stream.stack_at.map_or(idle, |at| at.min(idle))
        }
        State::Link(Crossing { life: Life::Tcp(tracker), .. }) => flow.active + tracker.idle(),
        State::Datagrams(_) | State::Link(Crossing { life: Life::Udp, .. }) => {
            flow.active
                + match (flow.received, flow.key.ports.1) {
                    (0, _) => UDP_UNANSWERED,
                    (_, 53) => DNS_IDLE,
                    _ => UDP_IDLE,
                }
        }
        State::Echo { .. } | State::Link(Crossing { life: Life::Echo { .. }, .. }) => {
            flow.active + ECHO_IDLE
        }
        State::Questions { awaited: 0 } => flow.active + QUESTIONS_IDLE,
        State::Questions { .. } => flow.active + AWAITED_IDLE,
        State::Answered(answered) => answered.until,
    }
}
