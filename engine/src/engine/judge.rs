//! From a held flow to its verdict: owner, then source, then the policy, then the socket.

use std::sync::Arc;

use crate::engine::{Engine, MappingKey, Output, Unresolved, write_icmp, write_reset};
use crate::flow::{
    ANSWERED_IDLE, Answered, DROPPED_SYN, FAILED, First, FlowId, Held, REPEAT_AFTER, State, Waiting,
};
use crate::packet::icmp::{self, Answer, Cause};
use crate::packet::{self, Checksum, Transport};
use crate::policy::{Judgement, Need, Verdict};
use crate::report::Stage;
use crate::{Egress, Fact, Instant, Owner, Protocol, Reason, Sink, Via};

/// A route that changes more often between verdict and connect is no ground for one.
const ROUTE_CHANGES: u8 = 3;

impl Engine {
    /// Asks for the next fact of a held flow.
    pub(super) fn ask(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let wants_owner = self.config.reports || self.edition.policy.needs_owner();
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(held) = &mut flow.state else { return };
        flow.active = now;
        if wants_owner && flow.opening.facts.local && flow.opening.facts.owner == Fact::Unasked {
            held.waiting = Waiting::Owner;
            self.outputs.push_back(Output::Owner(
                id,
                flow.opening.facts.protocol,
                flow.opening.facts.client(),
                flow.opening.facts.destination(),
            ));
        } else if flow.opening.facts.egress != Fact::Unasked {
            return self.decide(id, now, sink);
        } else {
            held.waiting = Waiting::Source;
            self.outputs.push_back(Output::Source(
                id,
                flow.opening.facts.protocol,
                flow.opening.far,
                flow.opening.bound(),
            ));
        }
        self.arm(id);
    }

    pub(super) fn owner_answered(
        &mut self,
        id: FlowId,
        owner: Option<Owner>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if !self.waits_for(id, Waiting::Owner) {
            return;
        }
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.opening.facts.owner = owner.map_or(Fact::Unknown, Fact::Known);
        if flow.opening.facts.egress == Fact::Unasked {
            self.ask(id, now, sink);
        } else {
            self.decide(id, now, sink);
        }
    }

    pub(super) fn source_answered(
        &mut self,
        id: FlowId,
        egress: Egress,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if !self.waits_for(id, Waiting::Source) {
            return;
        }
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.opening.facts.egress = Fact::Known(egress);
        self.decide(id, now, sink);
    }

    pub(super) fn source_failed(
        &mut self,
        id: FlowId,
        unresolved: Unresolved,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        // Before a socket is opened the route is looked at again.
        let asked = |held: &Held| matches!(held.waiting, Waiting::Source | Waiting::Egress(_));
        if !matches!(&flow.state, State::Held(held) if asked(held)) {
            return;
        }
        flow.opening.facts.egress = Fact::Unknown;
        flow.opening.decision = None;
        match unresolved {
            Unresolved::NoRoute(failure) => {
                self.refuse(id, Cause::Failed(failure), Reason::Unreachable, now, sink);
            }
            Unresolved::LookupFailed => {
                self.refuse(id, Cause::Blocked, Reason::SourceUnresolved, now, sink);
            }
        }
    }

    /// The route moved between the verdict and the connect: the verdict was about
    /// something else.
    pub(super) fn source_changed(
        &mut self,
        id: FlowId,
        egress: Egress,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(held) = &mut flow.state else { return };
        let Waiting::Egress(mapping) = held.waiting else { return };
        held.waiting = Waiting::Source;
        flow.opening.decision = None;
        flow.opening.facts.egress = Fact::Known(egress);
        flow.opening.route_changes += 1;
        let too_often = flow.opening.route_changes >= ROUTE_CHANGES;
        if let Some(mapping) = mapping {
            self.leave_mapping(mapping);
        }
        if too_often {
            self.refuse(id, Cause::Blocked, Reason::SourceUnresolved, now, sink);
        } else {
            self.decide(id, now, sink);
        }
    }

    /// Judges a held flow whose source is known, or that has none, and starts what follows.
    fn decide(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let decision = loop {
            let Some(flow) = self.table.get_mut(id) else { return };
            match self.edition.policy.judge(&flow.opening.facts) {
                Judgement::Decided(decision) => {
                    flow.opening.decision = Some((decision.verdict, decision.rule));
                    if !Arc::ptr_eq(&flow.opening.edition, &self.edition) {
                        flow.opening.edition = Arc::clone(&self.edition);
                    }
                    self.hits[self.edition.policy.position(decision.rule)] += 1;
                    break decision;
                }
                Judgement::Needs(Need::Owner) if flow.opening.facts.local => {
                    if let State::Held(held) = &mut flow.state {
                        held.waiting = Waiting::Owner;
                    }
                    self.outputs.push_back(Output::Owner(
                        id,
                        flow.opening.facts.protocol,
                        flow.opening.facts.client(),
                        flow.opening.facts.destination(),
                    ));
                    self.arm(id);
                    return;
                }
                Judgement::Needs(Need::Owner) => flow.opening.facts.owner = Fact::Unknown,
                Judgement::Needs(Need::Source) => flow.opening.facts.egress = Fact::Unknown,
            }
        };
        match decision.verdict {
            Verdict::Allow => self.allow(id, now, sink),
            Verdict::Block => self.refuse(id, Cause::Blocked, Reason::Policy, now, sink),
            Verdict::Drop => self.drop_silently(id, Reason::Policy, now),
        }
    }

    fn allow(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        if flow.opening.via == Via::Dns {
            return self.serve(id, now, sink);
        }
        let (far, protocol) = (flow.opening.far, flow.opening.facts.protocol);
        let bound = flow.opening.bound();
        let Some(&egress) = flow.opening.facts.egress.known() else { return };
        let key = MappingKey {
            client: flow.opening.facts.client(),
            egress,
            service: (far != flow.opening.facts.destination())
                .then(|| flow.opening.facts.destination()),
        };
        let mapping = (protocol == Protocol::Udp).then(|| self.join_mapping(key));
        if let Some(flow) = self.table.get_mut(id)
            && let State::Held(held) = &mut flow.state
        {
            held.waiting = Waiting::Egress(mapping);
        }
        self.outputs.push_back(match (protocol, mapping) {
            (Protocol::Udp, Some(mapping)) => Output::Bind(id, mapping, far, egress, bound),
            (Protocol::Icmp, _) => Output::OpenEcho(id, far.ip(), egress, bound),
            (Protocol::Tcp | Protocol::Udp, _) => Output::Connect(id, far, egress, bound),
        });
        self.arm(id);
    }

    /// Ends a held flow with an answer to the app, and remembers it for what the app may
    /// still send.
    pub(super) fn refuse(
        &mut self,
        id: FlowId,
        cause: Cause,
        reason: Reason,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        if !matches!(flow.state, State::Held(_)) {
            return;
        }
        let destination = flow.opening.facts.destination().ip();
        let answer = if crate::cast::is_cast(destination) {
            Answer::Silence
        } else {
            icmp::answer(cause, flow.opening.facts.protocol, destination.is_ipv4())
        };
        let lasting = matches!(cause, Cause::Blocked | Cause::Unsupported);
        self.become_answered(id, answer, lasting, reason, now);
        self.answer_again(id, now, sink);
        let Some(flow) = self.table.get(id) else { return };
        let State::Answered(answered) = &flow.state else { return };
        let forgotten = match answer {
            // The app's socket is gone, or waits by itself: nothing comes that this entry
            // would answer.
            Answer::Reset => true,
            Answer::Silence => answered.syn.is_some(),
            Answer::Icmp(_) => false,
        };
        if forgotten {
            self.finish(id, reason, now);
        } else {
            self.arm(id);
        }
    }

    pub(super) fn drop_silently(&mut self, id: FlowId, reason: Reason, now: Instant) {
        self.become_answered(id, Answer::Silence, true, reason, now);
        self.arm(id);
    }

    fn become_answered(
        &mut self,
        id: FlowId,
        answer: Answer,
        lasting: bool,
        reason: Reason,
        now: Instant,
    ) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let forgotten =
            State::Answered(Answered { answer, syn: None, repeats: 0, until: now, lasting });
        let State::Held(Held { first, waiting }) = std::mem::replace(&mut flow.state, forgotten)
        else {
            return;
        };
        self.answered += 1;
        let State::Answered(answered) = &mut flow.state else { return };
        if let First::Syn(syn, _) = first {
            answered.syn = Some(syn);
            answered.repeats = if matches!(answer, Answer::Icmp(_)) { 2 } else { 0 };
            answered.until =
                now + if answer == Answer::Silence { DROPPED_SYN } else { REPEAT_AFTER[0] };
            answered.lasting = false;
        } else {
            answered.until = now + if lasting { ANSWERED_IDLE } else { FAILED };
        }
        if let Waiting::Egress(Some(mapping)) = waiting {
            self.leave_mapping(mapping);
        }
        self.tell(id, Stage::Closed, Some(reason), now);
    }

    /// Gives an answered flow's answer; `false` where that is silence.
    pub(super) fn answer_again(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) -> bool {
        let Some(flow) = self.table.get_mut(id) else { return false };
        let State::Answered(answered) = &mut flow.state else { return false };
        if answered.lasting {
            answered.until = now + ANSWERED_IDLE;
        }
        let (client, destination) = (flow.opening.facts.client(), flow.opening.facts.destination());
        match (answered.answer, &answered.syn) {
            (Answer::Silence, _) => return false,
            (Answer::Icmp(error), Some(syn)) => {
                write_icmp(sink, destination.ip(), client.ip(), error, syn);
            }
            (Answer::Icmp(error), None) => {
                let mut quote = [0; icmp::QUOTED];
                let length = if flow.opening.facts.protocol == Protocol::Udp {
                    icmp::quote_udp(
                        &mut quote,
                        (client.ip(), client.port()),
                        (destination.ip(), destination.port()),
                    )
                } else {
                    icmp::quote_echo(&mut quote, client.ip(), destination.ip(), client.port(), 0)
                };
                write_icmp(sink, destination.ip(), client.ip(), error, &quote[..length]);
            }
            (Answer::Reset, Some(syn)) => reset_syn(syn, sink),
            (Answer::Reset, None) => return false,
        }
        true
    }

    fn waits_for(&self, id: FlowId, waiting: Waiting) -> bool {
        self.table
            .get(id)
            .is_some_and(|flow| matches!(&flow.state, State::Held(held) if held.waiting == waiting))
    }
}

/// Answers a saved SYN with a reset.
pub(super) fn reset_syn(syn: &[u8], sink: &mut impl Sink) {
    if let Ok(packet) = packet::parse(syn, Checksum::Trusted)
        && let Transport::Tcp(segment) = packet.transport
    {
        write_reset(sink, &packet, &segment);
    }
}
