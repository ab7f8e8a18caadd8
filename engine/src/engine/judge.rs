//! From a held flow to its verdict: owner, way out, source, then the policy, then the socket.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::engine::chain::told;
use crate::engine::peek::{Choice, names_disagree, verdict_named, wants_peek, ways_named};
use crate::engine::{Engine, MappingKey, Output, Unresolved, write_icmp, write_reset};
use crate::flow::{
    ANSWERED_IDLE, Answered, DROPPED_SYN, FAILED, First, FlowId, Held, REPEAT_AFTER, State, Waiting,
};
use crate::packet::icmp::{self, Answer, Cause};
use crate::packet::{self, Checksum, Transport};
use crate::policy::{Judgement, Need, Routing, Verdict, choose};
use crate::report::Stage;
use crate::ways::{Leads, Link, LinkId, Proxy, WayId};
use crate::{Egress, Fact, Facts, Failure, Instant, Owner, Protocol, Reason, Sink};

/// A route that changes more often between verdict and connect is no ground for one.
const ROUTE_CHANGES: u8 = 3;

impl Engine {
    /// Asks for the next fact of a held flow.
    pub(super) fn ask(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let wants_owner =
            self.config.reports || self.edition.policy.needs_owner() || self.own_proxies;
        let Some(flow) = self.table.get_mut(id) else { return };
        if !matches!(flow.state, State::Held(_)) {
            return;
        }
        flow.active = now;
        let facts = &flow.opening.facts;
        if wants_owner && facts.local && facts.owner == Fact::Unasked {
            self.ask_owner(id);
        } else if facts.egress != Fact::Unasked {
            self.decide(id, now, sink);
        } else {
            self.find_source(id, now, sink);
        }
    }

    fn ask_owner(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(held) = &mut flow.state else { return };
        held.waiting = Waiting::Owner;
        let facts = &flow.opening.facts;
        let (client, destination) = (facts.client(), facts.destination());
        self.outputs.push_back(Output::Owner(id, facts.protocol, client, destination));
        self.arm(id);
    }

    /// Chooses the way out of a held flow, and asks with what it would leave by it.
    fn find_source(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        if self.choose_way(id) == Choice::NeedsName {
            return self.peek(id);
        }
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Held(held) = &mut flow.state else { return };
        let opening = &mut *flow.opening;
        let way = opening.facts.via.and_then(|way| self.ways.way(way));
        let (protocol, far, bound) = match way.map(|way| &way.leads) {
            Some(Leads::Direct) => (opening.facts.protocol, opening.far, opening.bound()),
            Some(Leads::Proxy(Proxy { address, behind: None, .. })) => {
                (Protocol::Tcp, *address, None)
            }
            Some(Leads::Proxy(Proxy { address, behind: Some(link), .. })) => {
                let leaves = self.ways.link(*link).and_then(|link| leaves_by(link, *address));
                return self.leave_by_link(id, leaves, now, sink);
            }
            Some(Leads::Link(link)) => {
                let leaves = leaves_by(link, opening.far);
                return self.leave_by_link(id, leaves, now, sink);
            }
            None => {
                opening.facts.egress = Fact::Unknown;
                return self.decide(id, now, sink);
            }
        };
        held.waiting = Waiting::Source;
        self.outputs.push_back(Output::Source(id, protocol, far, bound));
        self.arm(id);
    }

    /// Goes on with a held flow that leaves this host into a tunnel: no kernel is asked.
    fn leave_by_link(
        &mut self,
        id: FlowId,
        leaves: Option<Egress>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let egress = leaves.map(|leaves| self.egresses.share(leaves));
        let Some(flow) = self.table.get_mut(id) else { return };
        let opening = &mut *flow.opening;
        opening.facts.egress = egress.map_or(Fact::Unknown, Fact::Known);
        if leaves.is_some() || !opening.has_way {
            return self.decide(id, now, sink);
        }
        let cause = Cause::Failed(Failure::NetUnreachable);
        self.refuse(id, cause, Reason::Unreachable, now, sink);
    }

    /// Lets the routes choose the way out of a held flow.
    pub(super) fn choose_way(&mut self, id: FlowId) -> Choice {
        let Some(flow) = self.table.get_mut(id) else { return Choice::Kept };
        let opening = &mut *flow.opening;
        let before = opening.facts.via;
        // What stands for a destination is on this host.
        if opening.served || opening.far != opening.facts.destination() {
            opening.routed = self.edition.generation;
            return Choice::Kept;
        }
        let policy = &self.edition.policy;
        let ways = loop {
            match policy.route(&opening.facts) {
                Routing::Ways(ways) => break ways,
                // Routes don't ask for a source.
                Routing::Needs(Need::Source) => opening.facts.egress = Fact::Unknown,
                // Who asked for the owner before has it; a forwarded flow has none.
                Routing::Needs(Need::Owner) => opening.facts.owner = Fact::Unknown,
                Routing::Needs(Need::Name) if wants_peek(policy, &self.ways, opening) => {
                    return Choice::NeedsName;
                }
                Routing::Needs(Need::Name) => opening.facts.name = Fact::Unknown,
            }
        };
        if names_disagree(opening, |facts| ways_named(policy, facts))
            && wants_peek(policy, &self.ways, opening)
        {
            return Choice::NeedsName;
        }
        opening.routed = self.edition.generation;
        let (way, usable) = choose(ways, |way| self.ways.is_usable(way));
        opening.facts.via = Some(way);
        opening.has_way = usable;
        if before == opening.facts.via { Choice::Kept } else { Choice::Changed }
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
        let owner = owner.map(|owner| self.owners.share(owner));
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
        flow.opening.facts.egress = Fact::Known(self.egresses.share(egress));
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
        if !flow.opening.has_way {
            // There is no way out in any case; the rules are asked all the same.
            return self.decide(id, now, sink);
        }
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
        flow.opening.facts.egress = Fact::Known(self.egresses.share(egress));
        flow.opening.route_changes += 1;
        let too_often = flow.opening.route_changes >= ROUTE_CHANGES;
        self.leave_chain(id);
        if let Some(mapping) = mapping {
            self.leave_mapping(mapping);
        }
        if too_often {
            self.refuse(id, Cause::Blocked, Reason::SourceUnresolved, now, sink);
        } else {
            self.decide(id, now, sink);
        }
    }

    /// Asks again for all that hangs on the way out, which is another now.
    pub(super) fn ask_anew(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.opening.facts.egress = Fact::Unasked;
        self.ask(id, now, sink);
    }

    /// Judges a held flow whose source is known, or that has none, and starts what follows.
    fn decide(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        // A reload has come since the way out was chosen.
        if self.table.get(id).is_some_and(|flow| flow.opening.routed != self.edition.generation) {
            match self.choose_way(id) {
                Choice::Kept => {}
                Choice::Changed => return self.ask_anew(id, now, sink),
                Choice::NeedsName => return self.peek(id),
            }
        }
        let decision = loop {
            let Some(flow) = self.table.get_mut(id) else { return };
            let policy = &self.edition.policy;
            match policy.judge(&flow.opening.facts) {
                Judgement::Decided(decision) => {
                    if names_disagree(&flow.opening, |facts| verdict_named(policy, facts))
                        && wants_peek(policy, &self.ways, &flow.opening)
                    {
                        return self.peek(id);
                    }
                    flow.opening.decision = Some((decision.verdict, decision.rule));
                    // Nothing of what the service is asked leaves: that has no path to keep.
                    flow.opening.protected = policy.protects(decision.rule) && !flow.opening.served;
                    flow.opening.spared = None;
                    if !Arc::ptr_eq(&flow.opening.edition, &self.edition) {
                        flow.opening.edition = Arc::clone(&self.edition);
                    }
                    self.hits[self.edition.policy.position(decision.rule)] += 1;
                    break decision;
                }
                Judgement::Needs(Need::Owner) if flow.opening.facts.local => {
                    return self.ask_owner(id);
                }
                Judgement::Needs(Need::Owner) => flow.opening.facts.owner = Fact::Unknown,
                Judgement::Needs(Need::Source) => flow.opening.facts.egress = Fact::Unknown,
                Judgement::Needs(Need::Name) if wants_peek(policy, &self.ways, &flow.opening) => {
                    return self.peek(id);
                }
                Judgement::Needs(Need::Name) => flow.opening.facts.name = Fact::Unknown,
            }
        };
        match decision.verdict {
            Verdict::Allow => self.allow(id, now, sink),
            Verdict::Block => self.refuse(id, Cause::Blocked, Reason::Policy, now, sink),
            Verdict::Drop => self.drop_silently(id, Reason::Policy, now, sink),
        }
    }

    fn allow(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        if flow.opening.served {
            return self.serve(id, now, sink);
        }
        if !flow.opening.has_way {
            let cause = Cause::Failed(Failure::NetUnreachable);
            return self.refuse(id, cause, Reason::NoWayOut, now, sink);
        }
        let via = flow.opening.facts.via.unwrap_or(WayId::DIRECT);
        flow.opening.proxy = self.ways.proxy(via).map(|proxy| proxy.edition);
        match self.ways.way(via).map(|way| &way.leads) {
            Some(Leads::Direct) => self.allow_direct(id),
            Some(Leads::Link(_)) => self.open_link(id, LinkId::of(via), now, sink),
            Some(Leads::Proxy(proxy)) if comes_back(&flow.opening.facts, proxy.address) => {
                let cause = Cause::Failed(Failure::NetUnreachable);
                self.refuse(id, cause, Reason::Loop, now, sink);
            }
            Some(&Leads::Proxy(proxy)) => self.allow_via(id, via, proxy, now, sink),
            // It went while the rules were asked.
            None => {
                let cause = Cause::Failed(Failure::NetUnreachable);
                self.refuse(id, cause, Reason::NoWayOut, now, sink);
            }
        }
    }

    /// Has a proxy connect, or carry datagrams.
    fn allow_via(
        &mut self,
        id: FlowId,
        via: WayId,
        proxy: Proxy,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(flow) = self.table.get(id) else { return };
        let facts = &flow.opening.facts;
        let Some(egress) = facts.egress.known().map(|egress| **egress) else { return };
        let (client, destination) = (facts.client(), facts.destination());
        let protocol = facts.protocol;
        let is_carried = match protocol {
            Protocol::Tcp => true,
            Protocol::Udp => !crate::cast::is_cast(destination.ip()),
            Protocol::Icmp => false,
        };
        if !is_carried {
            return self.refuse(id, Cause::Unsupported, Reason::Unsupported, now, sink);
        }
        let name = told(facts);
        if proxy.behind.is_none()
            && self.is_of_this_host(proxy.address.ip())
            && !self.join_chain(id)
        {
            let cause = Cause::Failed(Failure::NetUnreachable);
            return self.refuse(id, cause, Reason::Loop, now, sink);
        }
        let key = MappingKey {
            client,
            egress,
            proxy: Some((via, proxy.address, proxy.edition)),
            service: None,
        };
        let mapping = (protocol == Protocol::Udp).then(|| self.join_mapping(key));
        if let Some(flow) = self.table.get_mut(id)
            && let State::Held(held) = &mut flow.state
        {
            held.waiting = Waiting::Egress(mapping);
        }
        self.outputs.push_back(match mapping {
            None => Output::ConnectVia(id, via, destination, name, egress),
            Some(mapping) => Output::Associate(id, mapping, via, destination, name, egress),
        });
        self.arm(id);
    }

    fn allow_direct(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let (far, protocol) = (flow.opening.far, flow.opening.facts.protocol);
        let bound = flow.opening.bound();
        let egress = flow.opening.facts.egress.known().map(|egress| **egress);
        let Some(egress) = egress else { return };
        let key = MappingKey {
            client: flow.opening.facts.client(),
            egress,
            proxy: None,
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
        match &flow.state {
            // The app takes itself for connected.
            State::Held(Held { first: First::Peeked(_), .. }) => {
                return self.end_peeked(id, reason, now, sink);
            }
            State::Held(_) => {}
            State::Stream(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. }
            | State::Answered(_) => return,
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

    /// Ends a held flow without an answer. One whose SYN was answered can only be reset.
    pub(super) fn drop_silently(
        &mut self,
        id: FlowId,
        reason: Reason,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        if self.has_rings(id) {
            return self.end_peeked(id, reason, now, sink);
        }
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
        self.leave_chain(id);
        let Some(flow) = self.table.get_mut(id) else { return };
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

    pub(super) fn waits_for(&self, id: FlowId, waiting: Waiting) -> bool {
        self.table
            .get(id)
            .is_some_and(|flow| matches!(&flow.state, State::Held(held) if held.waiting == waiting))
    }
}

/// With what a packet to that address leaves into a tunnel; `None`: it carries no such packets.
fn leaves_by(link: &Link, to: SocketAddr) -> Option<Egress> {
    let address = link.address(to.ip())?;
    Some(Egress { address, device: link.device })
}

/// Whether a flow through that proxy would have it in its way twice: it is to connect to itself,
/// or to carry what comes from the host that it is on.
fn comes_back(facts: &Facts, proxy: SocketAddr) -> bool {
    proxy == facts.destination() || !facts.local && proxy.ip() == facts.client().ip()
}

/// Answers a saved SYN with a reset.
pub(super) fn reset_syn(syn: &[u8], sink: &mut impl Sink) {
    if let Ok(packet) = packet::parse(syn, Checksum::Trusted)
        && let Transport::Tcp(segment) = packet.transport
    {
        write_reset(sink, &packet, &segment);
    }
}
