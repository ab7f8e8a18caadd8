//! The one state machine: packets and answers in, packets and requests out.
//!
//! # Contract
//!
//! * [`Engine::handle_packet`], [`Engine::handle`], [`Engine::handle_datagram`],
//!   [`Engine::handle_echo`] and [`Engine::handle_timeout`] take `now`, which never goes
//!   back. They never block and never read a clock. Packets for either side go to the
//!   [`Sink`] at once.
//! * After each of them, drain [`Engine::poll_output`] to `None`; a request is answered
//!   by [`Engine::handle`], at once or later.
//! * [`Engine::handle_link_packet`] takes what comes out of a tunnel; [`Engine::set_ways`] says
//!   which ways out there are and which of them are usable (`link`). Ports at a tunnel's address
//!   that are the driver's own are asked for ([`Engine::reserve`], `netstack`).
//! * [`Engine::handle_answer`], [`Engine::await_answer`] and [`Engine::close_question`] carry
//!   what the service says to datagrams that went to it ([`Way::Service`]).
//! * [`Engine::next_dirty`] names the flows whose bytes may move. For each: lend
//!   [`Engine::with_app_data`] to the far side's socket and [`Engine::with_room`] to its
//!   receive call, then [`Engine::settle`].
//! * [`Engine::poll_timeout`] may change after any of these calls.
//! * [`Engine::reload`] changes the policy; [`Engine::rejudge`], [`Engine::compare`],
//!   [`Engine::list`] and [`Engine::seek`] go over live flows in pieces (`walk`).
//! * [`Engine::learn`] comes before the app has the answer that it tells of (`names`).
//! * After a panic in any of them the flow to end is [`Engine::carried`] (`broken`).

mod broken;
mod chain;
mod contract;
mod datagram;
mod due;
mod judge;
mod limit;
mod link;
mod netstack;
mod own;
mod peek;
mod reload;
mod service;
mod stream;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tracing::debug;

use crate::dropped::{Counters, Dropped, Outcome};
use crate::flow::table::Table;
use crate::flow::{First, Flow, FlowId, Held, Key, MappingId, Opening, State, Waiting};
use crate::names::{Learned, Names};
use crate::nat::Nat;
use crate::packet::fragment::Reassembler;
use crate::packet::icmp::{self, Cause};
use crate::packet::{self, Packet, Received, Tcp, Transport, reset};
use crate::policy::Policy;
use crate::recent::Recent;
use crate::report::{Report, Stage};
use crate::stack::Stack;
use crate::timers::Timers;
use crate::ways::{LinkId, WayId, WayKind, Ways};
use crate::{
    Egress, Fact, Facts, Failure, Instant, Name, Owner, Protocol, Reason, ResolverSet, Via,
};

pub use contract::{
    Config, Datagram, Input, Meta, Output, Services, Sink, Unresolved, Unsent, Way,
};
pub use link::{LINK_ERROR, link_error};
pub use netstack::{Arrived, LinkPort, fragment_udp, write_udp};
pub use own::Own;
pub use reload::Cut;
pub use service::ResolverService;
pub use walk::{PIECE, Walk};

pub(crate) use reload::Edition;

use chain::Chain;
use due::is_armed;
use own::Whose;

/// A UDP mapping: RFC 4787's, with egress and way out as parts of its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MappingKey {
    client: SocketAddr,
    egress: Egress,
    /// The way out, the proxy there and its edition; `None`: direct. A link has no mappings.
    proxy: Option<(WayId, SocketAddr, u32)>,
    /// Set where the far address is not the one the app named: replies then belong to
    /// that destination alone.
    service: Option<SocketAddr>,
}

#[derive(Debug)]
struct Mapping {
    key: MappingKey,
    flows: usize,
}

/// The engine of one shard. See the module for the contract.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    edition: Arc<Edition>,
    /// How often each rule decided, the default last.
    hits: Vec<u64>,
    table: Table,
    mappings: slab::Slab<Mapping>,
    mapping_index: hashbrown::HashMap<MappingKey, MappingId, foldhash::fast::FixedState>,
    stack: Stack,
    reassembler: Reassembler,
    /// Of datagrams that come out of each tunnel: whoever is behind one has no part in another's.
    link_pieces: BTreeMap<LinkId, Reassembler>,
    nat: Nat,
    ways: Arc<Ways>,
    names: Names,
    owners: Recent<Owner>,
    egresses: Recent<Egress>,
    timers: Timers,
    outputs: VecDeque<Output>,
    dirty: VecDeque<FlowId>,
    flows_opened: u64,
    counters: Counters,
    carried: Option<FlowId>,
    /// Some way out leads to a proxy of this host.
    own_proxies: bool,
    /// Flows that wait for the answer of such a proxy.
    chains: hashbrown::HashMap<Chain, u32, foldhash::fast::FixedState>,
    /// Flows that are over and whose answer is remembered.
    answered: usize,
}

impl Engine {
    /// An engine without flows.
    pub fn new(config: Config, policy: Arc<Policy>, now: Instant) -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(config.seed);
        Self {
            stack: Stack::new(config.mtu, config.offload, config.seed, now),
            table: Table::new(config.seed),
            names: Names::new(config.seed),
            owners: Recent::new(),
            egresses: Recent::new(),
            nat: Nat::new(config.seed, config.share),
            ways: Arc::default(),
            link_pieces: BTreeMap::new(),
            config,
            hits: vec![0; policy.rules() + 1],
            edition: Arc::new(Edition { policy, generation: 1 }),
            mappings: slab::Slab::new(),
            mapping_index: hashbrown::HashMap::with_hasher(hasher.clone()),
            reassembler: Reassembler::default(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            dirty: VecDeque::new(),
            flows_opened: 0,
            counters: Counters::default(),
            carried: None,
            own_proxies: false,
            chains: hashbrown::HashMap::with_hasher(hasher),
            answered: 0,
        }
    }

    /// Takes one packet from the app side and says where it ended.
    pub fn handle_packet(
        &mut self,
        bytes: &[u8],
        received: Received,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        let outcome = match packet::parse(bytes, received.checksum) {
            Ok(packet) => self.route_packet(&packet, received.segment, now, sink),
            Err(cause) => Outcome::Dropped(cause),
        };
        self.counters.count(outcome);
        outcome
    }

    /// Takes the driver's answer or news.
    pub fn handle(&mut self, input: Input, now: Instant, sink: &mut impl Sink) {
        self.carried = input.flow();
        match input {
            Input::Owner(id, owner) => self.owner_answered(id, owner, now, sink),
            Input::Source(id, Ok(egress)) => self.source_answered(id, egress, now, sink),
            Input::Source(id, Err(unresolved)) => {
                self.source_failed(id, unresolved, now, sink);
            }
            Input::SourceChanged(id, egress) => self.source_changed(id, egress, now, sink),
            Input::Lent(id, rings) => self.lent(id, rings, now, sink),
            Input::Connected(id, port, rings) => self.connected(id, port, rings, now, sink),
            Input::Joined(id, port) => self.joined(id, port, now, sink),
            Input::Bound(id, port) => self.bound(id, port, now, sink),
            Input::Failed(id, failure) => {
                self.refuse(id, Cause::Failed(failure), reason_of(failure), now, sink);
            }
            Input::ProxyFailed(id, failure) => {
                self.refuse(id, Cause::Failed(failure), Reason::Proxy, now, sink);
            }
            Input::ProxyEnded(id, failure) => self.proxy_ended(id, failure, now, sink),
            Input::Unsupported(id) => {
                self.refuse(id, Cause::Unsupported, Reason::Unsupported, now, sink);
            }
            Input::FarEnded(id) => self.far_ended(id),
            Input::FarFailed(id, failure) => self.far_failed(id, failure, now),
            Input::Unsent(mapping, far, datagrams, bytes, why) => {
                self.unsent(mapping, far, datagrams, bytes, why, sink);
            }
            Input::DatagramFailed(mapping, far, failure) => {
                self.datagram_failed(mapping, far, failure, sink);
            }
            Input::EchoFailed(id, failure) => self.echo_failed(id, failure, sink),
            Input::Broken(id) => self.evict(id, Reason::Internal, now, sink),
            Input::EvictIdle => self.evict_idle(now, sink),
            Input::Shutdown => {
                for id in self.table.ids() {
                    self.evict(id, Reason::Shutdown, now, sink);
                }
            }
        }
    }

    /// Runs what is due. Call at or after [`Engine::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut impl Sink) {
        self.reassembler.expire(now);
        self.link_pieces.values_mut().for_each(|pieces| pieces.expire(now));
        while let Some((at, id)) = self.timers.pop(now) {
            let Some(flow) = self.table.get_mut(id) else { continue };
            if flow.armed != Some(at) {
                continue;
            }
            flow.armed = None;
            self.carried = Some(id);
            self.flow_timeout(id, now, sink);
            self.arm(id);
        }
    }

    /// The next effect, in order.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Engine::handle_timeout`], and for whose sake.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<(Instant, &'static str)> {
        let table = &self.table;
        self.timers.prune(|at, id| is_armed(table, at, id));
        let flow = self.timers.next().map(|at| (at, "flow"));
        let fragments = self.reassembler.poll_timeout().map(|at| (at, "fragments"));
        let pieces = self.link_pieces.values().filter_map(Reassembler::poll_timeout).min();
        let pieces = pieces.map(|at| (at, "fragments"));
        [flow, fragments, pieces].into_iter().flatten().min()
    }

    /// The next flow whose bytes may move.
    #[must_use]
    pub fn next_dirty(&mut self) -> Option<FlowId> {
        loop {
            let id = self.dirty.pop_front()?;
            if let Some(flow) = self.table.get_mut(id) {
                flow.dirty = false;
                return Some(id);
            }
        }
    }

    /// Says that the far side's socket of `id` became ready.
    pub fn mark_dirty(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Whether [`Engine::next_dirty`] would name a flow.
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes what answers to the apps told, before an app has them. Flows that are there stay
    /// whose name they had.
    pub fn learn(&mut self, learned: &[Learned], now: Instant) {
        for answer in learned {
            self.names.learn(answer, now);
        }
    }

    /// Whether there is nothing to learn from an answer that is given again: each of its
    /// addresses still has this name, learned from the same resolvers.
    pub fn is_newest(&self, name: &str, addresses: &[(IpAddr, ResolverSet)], now: Instant) -> bool {
        self.names.is_newest(name, addresses, now)
    }

    /// The names that lead to this address, and the resolvers that it was learned from. The
    /// first is the one that a flow would have, unless others give it another verdict.
    pub fn names_of(&self, address: IpAddr, now: Instant) -> (Vec<Arc<str>>, ResolverSet) {
        let address = address.to_canonical();
        let Some((last, resolvers)) = self.names.of(address, now) else {
            return (Vec::new(), ResolverSet::EMPTY);
        };
        let others = self.names.others(address, &last, now);
        let names = [last].into_iter().chain(others).map(|name| Arc::clone(&name.text));
        (names.collect(), resolvers)
    }

    /// How many packets ended where.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts what came from the far side and is none of a flow's.
    pub fn drop_reply(&mut self, cause: Dropped) {
        self.counters.replies_dropped[cause as usize] += 1;
    }

    /// Whether the flow is still there, in whatever state.
    pub fn has_flow(&self, id: FlowId) -> bool {
        self.table.get(id).is_some()
    }

    /// Flows of every kind and state.
    pub fn flows(&self) -> usize {
        self.table.len()
    }

    /// Flows that are not over: what [`Engine::list`] lists.
    pub fn live(&self) -> usize {
        self.table.len() - self.answered
    }

    /// Flows since the start.
    pub fn flows_opened(&self) -> u64 {
        self.flows_opened
    }

    /// Addresses of this host beside the device's have come or gone: from now on these count.
    /// Flows that are there stay whose they were. Nothing changes under [`Own::Every`].
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        if let Own::Addresses { host, .. } = &mut self.config.own {
            *host = addresses;
        }
        self.find_own_proxies();
    }

    /// Changes [`Config::flows`], and [`Config::half_open`] with it. Flows beyond it give way
    /// as new ones come.
    pub fn set_limit(&mut self, flows: usize) {
        self.config.flows = flows;
        self.config.half_open = Config::half_open(flows);
    }

    fn route_packet(
        &mut self,
        packet: &Packet<'_>,
        segment: Option<u16>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Outcome {
        match packet.transport {
            Transport::Tcp(tcp) => self.tcp_packet(packet, &tcp, segment, now, sink),
            Transport::Udp(udp) => self.udp_packet(packet, &udp, segment, now, sink),
            Transport::EchoRequest(echo) => self.echo_packet(packet, &echo, now, sink),
            Transport::Icmp => Outcome::Dropped(Dropped::Icmp),
            Transport::Other => {
                if crate::cast::is_cast(packet.destination) {
                    return Outcome::Dropped(Dropped::Cast);
                }
                let error = icmp::protocol_unreachable(packet.source.is_ipv4());
                write_icmp(sink, packet.destination, packet.source, error, packet.bytes);
                Outcome::ToApp
            }
            Transport::Fragment(fragment) => {
                let whole = match self.reassembler.add(packet, &fragment, now) {
                    Ok(Some(whole)) => whole,
                    Ok(None) => return Outcome::Held,
                    Err(cause) => return Outcome::Dropped(cause),
                };
                let parsed = packet::parse_transport(
                    packet,
                    fragment.protocol,
                    &whole,
                    packet::Checksum::Unknown,
                );
                match parsed {
                    Ok(transport) => {
                        // Its bytes stay the last piece's, which an ICMP error can quote.
                        let head = packet::Head { dont_fragment: false, ..packet.head };
                        let packet = Packet {
                            dont_fragment: false,
                            head,
                            in_pieces: true,
                            transport,
                            ..*packet
                        };
                        // A TCP segment in fragments has no bytes the stack could parse
                        // again; kernels don't send them.
                        if matches!(transport, Transport::Tcp(_)) {
                            return Outcome::Dropped(Dropped::Fragment);
                        }
                        self.route_packet(&packet, None, now, sink)
                    }
                    Err(cause) => Outcome::Dropped(cause),
                }
            }
        }
    }

    fn facts(&self, protocol: Protocol, client: SocketAddr, destination: SocketAddr) -> Facts {
        let local = self.config.own.whose(client.ip()) != Whose::Forwarded;
        Facts::new(protocol, client, destination, local)
    }

    /// Opens a held flow for its first packet.
    fn open(
        &mut self,
        key: Key,
        mut facts: Facts,
        first: First,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let (far, served) = self.config.services.far_of(facts.destination())?;
        self.make_room(facts.protocol, served, now, sink)?;
        let others = self.name(&mut facts, served, now);
        self.flows_opened += 1;
        if served {
            // Nothing leaves: there is nothing that a route could tell.
            facts.egress = Fact::Unknown;
            facts.via = None;
        }
        let bound = self.config.own.whose(facts.client().ip()) == Whose::Host;
        let id = self.table.insert(Flow {
            key,
            state: State::Held(Held { first, waiting: Waiting::Source }),
            opening: Box::new(Opening {
                number: self.flows_opened,
                facts,
                far,
                served,
                has_way: true,
                proxy: None,
                routed: 0,
                decision: None,
                edition: Arc::clone(&self.edition),
                egress_port: None,
                opened: now,
                route_changes: 0,
                bound,
                others,
                peeked: false,
                protected: false,
                spared: None,
                chained: false,
            }),
            active: now,
            armed: None,
            sent: 0,
            received: 0,
            packets_sent: 1,
            packets_received: 0,
            dirty: false,
        });
        self.carried = Some(id);
        if let Some(flow) = self.table.get(id) {
            let (protocol, client) = (flow.opening.facts.protocol, flow.opening.facts.client());
            let destination = flow.opening.facts.destination();
            debug!(flow = flow.opening.number, %protocol, %client, %destination, "held");
        }
        self.ask(id, now, sink);
        Ok(())
    }

    /// Ends a flow: gives back what it holds and tells of it.
    fn finish(&mut self, id: FlowId, reason: Reason, now: Instant) {
        self.free_port(id);
        let Some(flow) = self.table.remove(id) else { return };
        self.end_chain(&flow.opening);
        debug!(flow = flow.opening.number, %reason, "ended");
        // An answered flow was reported when it was answered.
        if self.config.reports && !matches!(flow.state, State::Answered(_)) {
            let report = report(&self.ways, &flow, Stage::Closed, Some(reason), now);
            self.outputs.push_back(Output::Report(Box::new(report)));
        }
        match flow.state {
            State::Stream(stream) => {
                let rings = stream.rings;
                drop(stream);
                // In order to the end: every byte that was written to a ring was taken out.
                let in_order = matches!(reason, Reason::AppClosed | Reason::FarClosed);
                let touched = if in_order { flow.sent.max(flow.received) } else { u64::MAX };
                self.outputs.push_back(Output::Release(rings, touched));
            }
            State::Datagrams(mapping)
            | State::Held(Held { waiting: Waiting::Egress(Some(mapping)), .. }) => {
                self.leave_mapping(mapping);
            }
            State::Held(Held { first: First::Peeked(stream), .. }) => {
                let rings = stream.rings;
                drop(stream);
                self.outputs.push_back(Output::Release(rings, u64::MAX));
            }
            State::Answered(_) => self.answered -= 1,
            State::Held(_) | State::Link(_) | State::Echo { .. } | State::Questions { .. } => {}
        }
    }

    /// Tells of a flow that stays in the table.
    fn tell(&mut self, id: FlowId, stage: Stage, reason: Option<Reason>, now: Instant) {
        if self.config.reports
            && let Some(flow) = self.table.get(id)
        {
            let report = report(&self.ways, flow, stage, reason, now);
            self.outputs.push_back(Output::Report(Box::new(report)));
        }
    }
}

/// A flow at this moment. Its rule has its name from the policy that it was judged by last.
fn report(ways: &Ways, flow: &Flow, stage: Stage, reason: Option<Reason>, now: Instant) -> Report {
    let opening = &*flow.opening;
    let policy = &opening.edition.policy;
    let link = opening.facts.via.and_then(|way| ways.first_link(way));
    Report {
        number: opening.number,
        stage,
        protocol: opening.facts.protocol,
        client: opening.facts.client(),
        local: opening.facts.local,
        destination: opening.facts.destination(),
        via: via(opening, policy),
        name: opening.facts.name.known().map(|name| Name::clone(name)),
        peeked: opening.peeked,
        resolvers: policy.resolver_names(opening.facts.resolvers),
        egress: opening.facts.egress.known().map(|egress| **egress),
        underlay: link.and_then(|link| link.underlay),
        egress_port: opening.egress_port,
        owner: opening.facts.owner.known().map(|owner| Owner::clone(owner)),
        verdict: opening.decision.map(|(verdict, _)| verdict),
        rule: match &opening.spared {
            Some(spared) => Some(spared.rule.clone()),
            None => opening.decision.map(|(_, rule)| policy.rule_name(rule).to_owned()),
        },
        generation: opening.spared.as_ref().map_or(opening.edition.generation, |it| it.generation),
        sent: flow.sent,
        received: flow.received,
        packets_sent: flow.packets_sent,
        packets_received: flow.packets_received,
        opened: opening.opened,
        closed: (stage == Stage::Closed).then_some(now),
        reason,
    }
}

/// By which way a flow leaves, or would have left.
fn via(opening: &Opening, policy: &Policy) -> Via {
    let Some(way) = opening.facts.via else { return Via::Dns };
    let name = policy.ways().name(way).cloned().unwrap_or_default();
    match policy.ways().kind(way) {
        Some(WayKind::Link) => Via::Link(name),
        Some(WayKind::Proxy) => Via::Proxy(name),
        Some(WayKind::Direct) | None => Via::Direct,
    }
}

fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Refused | Failure::Reset => Reason::Refused,
        Failure::NetUnreachable | Failure::HostUnreachable | Failure::Prohibited => {
            Reason::Unreachable
        }
        Failure::TimedOut => Reason::TimedOut,
        Failure::TooBig { .. } => Reason::Unreachable,
        Failure::Exhausted => Reason::Limit,
    }
}

/// Writes an ICMP error about `quote` to the app, unless RFC 1122 3.2.2 forbids it: never
/// about multicast, broadcast or an ICMP error.
fn write_icmp(sink: &mut impl Sink, from: IpAddr, to: IpAddr, error: icmp::Error, quote: &[u8]) {
    sink.to_app(icmp::LENGTH, Meta::default(), |buffer| {
        icmp::write(buffer, from, to, error, quote)
    });
}

fn write_reset(sink: &mut impl Sink, packet: &Packet<'_>, segment: &Tcp<'_>) {
    sink.to_app(reset::LENGTH, Meta::default(), |buffer| reset::write(buffer, packet, segment));
}
