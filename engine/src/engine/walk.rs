//! Going over all flows while they live: listing them, finding one, ending one.
//!
//! A walk goes by place in the table, and a flow never changes its place. So a flow that lives
//! from a walk's start to its end is met exactly once, whatever comes and goes meanwhile; one
//! that comes or goes is met once or not at all. The caller keeps the [`Walk`] and lets packets
//! flow between its pieces.

use crate::engine::judge::reset_syn;
use crate::engine::{Engine, report};
use crate::flow::table::Table;
use crate::flow::{First, Flow, FlowId, Held, State, Waiting};
use crate::packet::icmp::Cause;
use crate::report::Stage;
use crate::{Instant, Reason, Report, Sink};

/// Flows that one piece of a walk meets: tens of microseconds for a list, a few milliseconds
/// where each is cut.
pub const PIECE: usize = 256;

/// How far a walk over an engine's flows has come. A new one starts at the beginning.
#[derive(Debug, Clone, Default)]
pub struct Walk {
    next: usize,
    over: bool,
}

impl Walk {
    /// Whether every flow was met.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The next flow. It counts as met at once, so that a walk goes on behind a flow that
    /// panicked.
    pub(super) fn step(&mut self, table: &Table) -> Option<FlowId> {
        let id = table.from(self.next);
        match id {
            Some(id) => self.next = id.slot() + 1,
            None => self.over = true,
        }
        id
    }
}

impl Engine {
    /// Adds the next piece of live flows to `flows`. A refused or dropped flow whose answer is
    /// remembered does not live.
    pub fn list(&self, walk: &mut Walk, now: Instant, flows: &mut Vec<Report>) {
        self.list_some(PIECE, walk, now, flows);
    }

    pub(super) fn list_some(
        &self,
        most: usize,
        walk: &mut Walk,
        now: Instant,
        flows: &mut Vec<Report>,
    ) {
        for _ in 0..most {
            let Some(id) = walk.step(&self.table) else { return };
            if let Some(flow) = self.table.get(id)
                && let Some(stage) = stage(flow)
            {
                flows.push(report(&self.ways, flow, stage, None, now));
            }
        }
    }

    /// The live flow with that [`Report::number`], if it is in the next piece.
    pub fn seek(&self, number: u64, walk: &mut Walk) -> Option<FlowId> {
        for _ in 0..PIECE {
            let id = walk.step(&self.table)?;
            let flow = self.table.get(id)?;
            if flow.opening.number == number && stage(flow).is_some() {
                return Some(id);
            }
        }
        None
    }

    /// Whether a flow's socket is known to be that user's.
    pub fn is_of(&self, id: FlowId, uid: u32) -> bool {
        let owner = self.table.get(id).and_then(|flow| flow.opening.facts.owner.known());
        owner.is_some_and(|owner| owner.uid == uid)
    }

    /// Ends a flow by order ([`Reason::Killed`]).
    pub fn kill(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        self.cut(id, Reason::Killed, false, now, sink);
    }

    /// Ends a live flow and tells the app, unless it is to be `silent`: TCP by a reset in any
    /// case, which also reaches the far side, datagrams and echo by ICMP. Its next packet is a
    /// new flow's first.
    pub(super) fn cut(
        &mut self,
        id: FlowId,
        reason: Reason,
        silent: bool,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.carried = Some(id);
        let Some(flow) = self.table.get(id) else { return };
        match &flow.state {
            State::Held(Held { first: First::Syn(syn, _), .. }) if !silent => reset_syn(syn, sink),
            // It ends as an open connection does.
            State::Held(Held { first: First::Peeked(_), .. }) => {}
            State::Held(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. }
                if !silent =>
            {
                self.tell_error(id, Cause::Blocked, sink);
            }
            State::Held(_)
            | State::Stream(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. }
            | State::Answered(_) => {}
        }
        self.evict(id, reason, now, sink);
    }
}

/// How far a live flow has come; `None`: it is over, and its answer is remembered.
pub(super) fn stage(flow: &Flow) -> Option<Stage> {
    match &flow.state {
        State::Held(held) => Some(match held.waiting {
            Waiting::Owner | Waiting::Source | Waiting::Rings | Waiting::Bytes(_) => Stage::Held,
            Waiting::Egress(_) => Stage::Connecting,
        }),
        State::Link(crossing) if crossing.is_opening() => Some(Stage::Connecting),
        State::Stream(_)
        | State::Datagrams(_)
        | State::Link(_)
        | State::Echo { .. }
        | State::Questions { .. } => Some(Stage::Open),
        State::Answered(_) => None,
    }
}
