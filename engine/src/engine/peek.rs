//! Looking at a connection's first bytes before its verdict.
//!
//! A flow's name is what the app asked for its destination with. Where no answer told of a name,
//! or several names lead to the address and give different results, and a name could change the
//! verdict or the way out, only the first bytes can tell (`sniff`). An app sends these once it
//! takes itself for connected. So here alone the SYN is answered before the far side has
//! answered:
//!
//! ```text
//! Held(Syn) ─ Output::Rings ─ Input::Lent ─ SYN-ACK ─ Held(Peeked) waits for bytes
//!    ─ a name, none, 16 KiB, 300 ms or the app's FIN ─ route, source, verdict, connect
//!    ─ Input::Joined ─ Stream, whose ring still holds every byte
//! ```
//!
//! Nothing leaves before the verdict here either. What fails after the SYN-ACK, the verdict or
//! the far side, reaches the app as a RST: there is no other word for it. A policy that asks for
//! no names never comes here.
//!
//! Packets into a tunnel pass as the app made them, which a connection that has begun here
//! can't. So a flow that a tunnel would carry without a name keeps it unknown, and one whose
//! name turns out to belong into a tunnel ends.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Engine, Output};
use crate::flow::{First, FlowId, Held, Opening, State, Waiting};
use crate::packet::icmp::Cause;
use crate::policy::{Judgement, Need, Policy, Routing, Verdict, choose};
use crate::sniff::{self, Sniffed};
use crate::stack::Phase;
use crate::ways::{WayKind, Ways};
use crate::{Fact, Facts, Failure, Instant, Name, Protocol, Reason, Rings, Sink, WayId};

/// How long the app may take for its first bytes. Who speaks second is delayed by as much.
const PATIENCE: Duration = Duration::from_millis(300);

/// What became of the question for a way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The way is the one before.
    Kept,
    /// It is another.
    Changed,
    /// It depends on the name.
    NeedsName,
}

impl Engine {
    /// Gives a new flow the name that was asked last for its destination; the other names that
    /// lead there, where they may matter.
    pub(super) fn name(&self, facts: &mut Facts, served: bool, now: Instant) -> Vec<Arc<Name>> {
        let peekable = facts.protocol == Protocol::Tcp && !served;
        let destination = facts.destination().ip();
        let Some((last, resolvers)) = self.names.of(destination, now) else {
            if !peekable {
                facts.name = Fact::Unknown;
            }
            return Vec::new();
        };
        let others = if peekable && self.edition.policy.needs_name() {
            self.names.others(destination, &last, now)
        } else {
            Vec::new()
        };
        facts.resolvers = resolvers;
        facts.name = Fact::Known(last);
        others
    }

    /// Asks for what it takes to answer a held SYN.
    pub(super) fn peek(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(held) = &mut flow.state else { return };
        held.waiting = Waiting::Rings;
        flow.opening.facts.name = Fact::Unasked;
        flow.opening.others = Vec::new();
        self.outputs.push_back(Output::Rings(id));
        self.arm(id);
    }

    /// Answers a held SYN, to see what comes.
    pub(super) fn lent(
        &mut self,
        id: FlowId,
        rings: Option<Rings>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if !self.waits_for(id, Waiting::Rings) {
            self.outputs.extend(rings.map(|rings| Output::Release(rings.id, 0)));
            return;
        }
        let Some(rings) = rings else {
            // Without its name there is no verdict.
            let cause = Cause::Failed(Failure::Exhausted);
            return self.refuse(id, cause, Reason::Limit, now, sink);
        };
        let Some(stream) = self.answer_syn(id, rings, now, sink) else { return };
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.state = State::Held(Held {
            first: First::Peeked(Box::new(stream)),
            waiting: Waiting::Bytes(now + PATIENCE),
        });
        flow.opening.peeked = true;
        self.tend_peeked(id, now, sink);
    }

    /// Takes a packet of the app's for a connection that the far side has not accepted.
    pub(super) fn peeked_packet(
        &mut self,
        id: FlowId,
        packet: &[u8],
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(Held { first: First::Peeked(stream), waiting }) = &mut flow.state else {
            return;
        };
        self.stack.segment(&mut stream.endpoint, packet, now, sink);
        let phase = stream.endpoint.phase();
        if phase == Phase::Closed {
            if matches!(waiting, Waiting::Egress(_)) {
                self.outputs.push_back(Output::Close(id));
            }
            return self.finish(id, Reason::AppReset, now);
        }
        if matches!(waiting, Waiting::Bytes(_)) {
            let name = match sniff::name(stream.endpoint.first_bytes(sniff::MOST)) {
                Sniffed::Name(name) => Some(Fact::Known(Arc::new(name))),
                Sniffed::Nothing => Some(Fact::Unknown),
                // The app says nothing more.
                Sniffed::More if phase != Phase::Opening && phase != Phase::Open => {
                    Some(Fact::Unknown)
                }
                Sniffed::More => None,
            };
            if let Some(name) = name {
                self.named(id, name, now, sink);
            }
        }
        self.tend_peeked(id, now, sink);
    }

    /// Goes on with a flow whose first bytes are read, or did not come in time.
    pub(super) fn named(
        &mut self,
        id: FlowId,
        name: Fact<Arc<Name>>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.opening.facts.name = name;
        if flow.opening.facts.egress == Fact::Unasked {
            return self.ask(id, now, sink);
        }
        match self.choose_way(id) {
            Choice::Changed => self.ask_anew(id, now, sink),
            // With a name asked for, none is needed.
            Choice::Kept | Choice::NeedsName => self.ask(id, now, sink),
        }
    }

    /// Sends what is due to the app of a connection that the far side has not accepted.
    pub(super) fn tend_peeked(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(Held { first: First::Peeked(stream), .. }) = &mut flow.state else {
            return;
        };
        flow.packets_received += self.stack.flush(&mut stream.endpoint, now, sink);
        // An endpoint that wants to run at once has just run.
        let soon = now + Duration::from_millis(1);
        stream.stack_at = self.stack.poll_at(&stream.endpoint, now).map(|at| at.max(soon));
        self.arm(id);
    }

    /// The far side has accepted a connection whose SYN was answered before.
    pub(super) fn joined(&mut self, id: FlowId, port: u16, now: Instant, sink: &mut impl Sink) {
        let waits = |held: &Held| {
            matches!(held, Held { first: First::Peeked(_), waiting: Waiting::Egress(None) })
        };
        let flow = self.table.get_mut(id);
        let Some(flow) = flow.filter(|f| matches!(&f.state, State::Held(h) if waits(h))) else {
            self.outputs.push_back(Output::Close(id));
            return;
        };
        let empty = Held { first: First::Echoes(Vec::new()), waiting: Waiting::Egress(None) };
        let State::Held(Held { first: First::Peeked(stream), .. }) =
            std::mem::replace(&mut flow.state, State::Held(empty))
        else {
            return;
        };
        self.carry_stream(id, port, *stream, now, sink);
    }

    /// Whether a flow that is not open has rings already: it was peeked at.
    pub fn has_rings(&self, id: FlowId) -> bool {
        self.table.get(id).is_some_and(|flow| {
            matches!(&flow.state, State::Held(held) if matches!(held.first, First::Peeked(_)))
        })
    }

    /// Ends a connection that the far side has not accepted, with a RST to the app.
    pub(super) fn end_peeked(
        &mut self,
        id: FlowId,
        reason: Reason,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(Held { first: First::Peeked(stream), .. }) = &mut flow.state else {
            return;
        };
        stream.endpoint.abort();
        flow.packets_received += self.stack.flush(&mut stream.endpoint, now, sink);
        self.finish(id, reason, now);
    }
}

/// Whether to look at the first bytes of a flow whose name is needed.
pub(super) fn wants_peek(policy: &Policy, ways: &Ways, opening: &Opening) -> bool {
    let facts = &opening.facts;
    // Without a way out it fails whatever its name is.
    let fails = opening.served || !opening.has_way;
    if opening.peeked || fails || facts.protocol != Protocol::Tcp {
        return false;
    }
    let mut unnamed = facts.clone();
    unnamed.name = Fact::Unasked;
    // A flow that is refused in any case is refused by its SYN.
    if matches!(policy.foregone(&unnamed), Some(Verdict::Block | Verdict::Drop)) {
        return false;
    }
    // A tunnel takes packets, not bytes.
    unnamed.name = Fact::Unknown;
    let via = choose(ways_named(policy, &unnamed), |way| ways.is_usable(way)).0;
    !matches!(policy.ways().kind(via), Some(WayKind::Link))
}

/// Whether several names lead to a flow's destination, and which of them it is for makes a
/// difference.
pub(super) fn names_disagree<R: PartialEq>(
    opening: &Opening,
    result: impl Fn(&Facts) -> R,
) -> bool {
    if opening.others.is_empty() {
        return false;
    }
    let first = result(&opening.facts);
    opening.others.iter().any(|name| {
        let mut facts = opening.facts.clone();
        facts.name = Fact::Known(Arc::clone(name));
        result(&facts) != first
    })
}

/// By which ways a flow of a known name may leave, without asking anybody.
pub(super) fn ways_named<'p>(policy: &'p Policy, facts: &Facts) -> &'p [WayId] {
    let mut facts = facts.clone();
    loop {
        match policy.route(&facts) {
            Routing::Ways(ways) => return ways,
            Routing::Needs(need) => settle(&mut facts, need),
        }
    }
}

/// The verdict on a flow of a known name, without asking anybody.
pub(super) fn verdict_named(policy: &Policy, facts: &Facts) -> Verdict {
    let mut facts = facts.clone();
    loop {
        match policy.judge(&facts) {
            Judgement::Decided(decision) => return decision.verdict,
            Judgement::Needs(need) => settle(&mut facts, need),
        }
    }
}

fn settle(facts: &mut Facts, need: Need) {
    match need {
        Need::Owner => facts.owner = Fact::Unknown,
        Need::Source => facts.egress = Fact::Unknown,
        Need::Name => facts.name = Fact::Unknown,
    }
}
