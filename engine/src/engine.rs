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
mod datagram;
mod judge;
mod limit;
mod own;
mod reload;
mod service;
mod stream;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::dropped::{Counters, Dropped, Outcome};
use crate::flow::table::Table;
use crate::flow::{
    First, Flow, FlowId, Held, Key, MappingId, Opening, REPEAT_AFTER, RingId, Rings, State, Waiting,
};
use crate::names::{Learned, Names};
use crate::packet::fragment::Reassembler;
use crate::packet::icmp::{self, Cause};
use crate::packet::{self, Packet, Received, Tcp, Transport, reset};
use crate::policy::Policy;
use crate::report::{Report, Stage};
use crate::stack::Stack;
use crate::timers::Timers;
use crate::{Egress, Fact, Facts, Failure, Instant, Owner, Protocol, Reason, ResolverSet, Via};

pub use own::Own;
pub use service::ResolverService;
pub use walk::{PIECE, Walk};

pub(crate) use reload::Edition;

use own::Whose;

/// What an engine is built with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The device's MTU in bytes, at least 1,280.
    pub mtu: u16,
    /// Whether the device takes and gives super-packets and partial checksums.
    pub offload: bool,
    /// Whether it also takes super-datagrams.
    pub udp_offload: bool,
    /// Flows at once, of every kind and state.
    pub flows: usize,
    /// Of these, flows that are not open yet: each may hold a descriptor. As many may ask the
    /// resolver inside by datagrams.
    pub half_open: usize,
    /// Which flows are this host's own.
    pub own: Own,
    /// Whether to tell of flows ([`Output::Report`]).
    pub reports: bool,
    /// Destinations that stand for something else.
    pub services: Services,
    /// Seeds hashes and sequence numbers; from a CSPRNG.
    pub seed: u64,
}

impl Config {
    /// How many of so many flows may be half open: each may hold a descriptor, and they give
    /// way among themselves first.
    pub fn half_open(flows: usize) -> usize {
        (flows / 4).max(8)
    }
}

/// Destinations inside that stand for something else.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Where our own resolver answers; it goes before all else.
    pub resolver: Option<ResolverService>,
    /// Inside address → this host's loopback address.
    pub loopback: Vec<(IpAddr, IpAddr)>,
}

/// Where packets go at once. Static dispatch; the test twin is a `Vec`.
pub trait Sink {
    /// One packet of at most `max` bytes towards the app: `write` fills the buffer from
    /// its start and gives the packet's size.
    fn to_app(&mut self, max: usize, meta: Meta, write: impl FnOnce(&mut [u8]) -> usize);

    /// One datagram or echo request towards the far side.
    fn to_far(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent>;
}

/// What goes along with a packet to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Bytes of payload in each segment, for the kernel to cut; `None`: one packet.
    pub segment: Option<u16>,
    /// The transport checksum holds the pseudo-header's sum only; the kernel does the rest.
    pub partial_checksum: bool,
}

/// Which socket carries a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The socket of a mapping, to this address.
    Mapping(MappingId, SocketAddr),
    /// The echo socket of a flow, with this sequence number.
    Echo(FlowId, u16),
    /// No socket: the driver's service, which answers this flow.
    Service(FlowId),
}

/// A datagram's payload on its way to the far side.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// UDP or echo payload; several datagrams where `segment` is set.
    pub payload: &'a [u8],
    /// Bytes in each datagram but the last.
    pub segment: Option<u16>,
    /// The app forbids fragmentation.
    pub dont_fragment: bool,
}

/// Why a datagram did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The socket's buffer is full.
    Full,
    /// The local network refused.
    Failed(Failure),
}

/// What the driver tells the engine.
#[derive(Debug)]
pub enum Input {
    /// Answers [`Output::Owner`]; `None`: not known.
    Owner(FlowId, Option<Owner>),
    /// Answers [`Output::Source`]; as an error also instead of a connect, where the second
    /// look at the route found none.
    Source(FlowId, Result<Egress, Unresolved>),
    /// Instead of a connect: the route has changed since [`Input::Source`].
    SourceChanged(FlowId, Egress),
    /// The far side has accepted: the local port, 0 where there is none, and rings to carry
    /// bytes.
    Connected(FlowId, u16, Rings),
    /// Answers [`Output::Bind`] or [`Output::OpenEcho`]: the local port, 0 where there is none.
    Bound(FlowId, u16),
    /// A connect, bind or echo socket failed.
    Failed(FlowId, Failure),
    /// This host lets us open no echo socket.
    Unsupported(FlowId),
    /// The far side has ended its half of a TCP flow; every byte before was handed over.
    FarEnded(FlowId),
    /// The far side has reset a TCP flow, or the path to it failed.
    FarFailed(FlowId, Failure),
    /// An error came back for a datagram to that address.
    DatagramFailed(MappingId, SocketAddr, Failure),
    /// An error came back for an echo request.
    EchoFailed(FlowId, Failure),
    /// Carrying that flow failed inside this program.
    Broken(FlowId),
    /// Memory is short: end the connection that was idle longest.
    EvictIdle,
    /// End every flow.
    Shutdown,
}

/// Why a source could not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The kernel's own answer for that destination: the app gets it.
    NoRoute(Failure),
    /// The question itself failed: nothing may leave.
    LookupFailed,
}

/// What the engine asks of the driver, and tells.
#[derive(Debug)]
pub enum Output {
    /// Whose is the socket behind this flow? Answer: [`Input::Owner`].
    Owner(FlowId, Protocol, SocketAddr, SocketAddr),
    /// Which local address and device would this flow leave with? The last address, here and
    /// below, is the one that the app bound its socket to: the route is looked up for it.
    /// Answer: [`Input::Source`].
    Source(FlowId, Protocol, SocketAddr, Option<IpAddr>),
    /// Connect to that address with that egress and no other, after looking at the route
    /// again. Answer: [`Input::Connected`], [`Input::SourceChanged`] or [`Input::Failed`].
    Connect(FlowId, SocketAddr, Egress, Option<IpAddr>),
    /// Open the mapping's socket unless it is open, after looking at the route again.
    /// Answer: [`Input::Bound`], [`Input::SourceChanged`] or [`Input::Failed`].
    Bind(FlowId, MappingId, SocketAddr, Egress, Option<IpAddr>),
    /// Open an echo socket, after looking at the route again. Answer: [`Input::Bound`],
    /// [`Input::SourceChanged`], [`Input::Failed`] or [`Input::Unsupported`].
    OpenEcho(FlowId, IpAddr, Egress, Option<IpAddr>),
    /// Be the far side of this connection. Answer: [`Input::Connected`] or [`Input::Failed`].
    Serve(FlowId),
    /// The app has ended its half and the far side has every byte: `shutdown(SHUT_WR)`.
    ShutdownFar(FlowId),
    /// Close the flow's socket.
    Close(FlowId),
    /// Close the flow's socket with a RST.
    Reset(FlowId),
    /// Close a mapping's socket.
    Unbind(MappingId),
    /// The flow of these rings is idle and both are empty: their memory may go.
    Trim(RingId),
    /// These rings are free again; nothing refers to them. At most so many bytes from the
    /// start of either were ever written to.
    Release(RingId, u64),
    /// A flow has opened or ended.
    Report(Box<Report>),
}

/// A UDP mapping: RFC 4787's, with the egress as a part of its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MappingKey {
    client: SocketAddr,
    egress: Egress,
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
    names: Names,
    timers: Timers,
    outputs: VecDeque<Output>,
    dirty: VecDeque<FlowId>,
    flows_opened: u64,
    counters: Counters,
    carried: Option<FlowId>,
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
            config,
            hits: vec![0; policy.rules() + 1],
            edition: Arc::new(Edition { policy, generation: 1 }),
            mappings: slab::Slab::new(),
            mapping_index: hashbrown::HashMap::with_hasher(hasher),
            reassembler: Reassembler::default(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            dirty: VecDeque::new(),
            flows_opened: 0,
            counters: Counters::default(),
            carried: None,
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
            Input::Connected(id, port, rings) => self.connected(id, port, rings, now, sink),
            Input::Bound(id, port) => self.bound(id, port, now, sink),
            Input::Failed(id, failure) => {
                self.refuse(id, Cause::Failed(failure), reason_of(failure), now, sink);
            }
            Input::Unsupported(id) => {
                self.refuse(id, Cause::Unsupported, Reason::Unsupported, now, sink);
            }
            Input::FarEnded(id) => self.far_ended(id),
            Input::FarFailed(id, failure) => self.far_failed(id, failure, now),
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
        [flow, fragments].into_iter().flatten().min()
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

    /// The name that a flow to this address would have, and the resolvers that the address
    /// was learned from.
    pub fn name_of(&self, address: IpAddr, now: Instant) -> Option<(Arc<str>, ResolverSet)> {
        self.names.of(address.to_canonical(), now)
    }

    /// How many packets ended where.
    pub fn counters(&self) -> &Counters {
        &self.counters
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
            Transport::Tcp(tcp) => self.tcp_packet(packet, &tcp, now, sink),
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
                        let packet = Packet { dont_fragment: false, transport, ..*packet };
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

    /// Where a destination leads and by which way, or why nothing may go there.
    fn far_of(&self, destination: SocketAddr) -> Result<(SocketAddr, Via), Dropped> {
        let services = &self.config.services;
        if services.resolver.as_ref().is_some_and(|resolver| resolver.takes(destination)) {
            return Ok((destination, Via::Dns));
        }
        let ip = destination.ip();
        if let Some((_, loopback)) = services.loopback.iter().find(|(a, _)| *a == ip) {
            return Ok((SocketAddr::new(*loopback, destination.port()), Via::Direct));
        }
        if ip.is_loopback() {
            return Err(Dropped::Martian);
        }
        Ok((destination, Via::Direct))
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
        let (far, via) = self.far_of(facts.destination())?;
        self.make_room(facts.protocol, via, now, sink)?;
        if let Some((name, resolvers)) = self.names.of(facts.destination().ip(), now) {
            (facts.name, facts.resolvers) = (Some(name), resolvers);
        }
        self.flows_opened += 1;
        if via == Via::Dns {
            // Nothing leaves: there is nothing that a route could tell.
            facts.egress = Fact::Unknown;
        }
        let bound = self.config.own.whose(facts.client().ip()) == Whose::Host;
        let id = self.table.insert(Flow {
            key,
            state: State::Held(Held { first, waiting: Waiting::Source }),
            opening: Box::new(Opening {
                number: self.flows_opened,
                facts,
                far,
                via,
                decision: None,
                edition: Arc::clone(&self.edition),
                egress_port: None,
                opened: now,
                route_changes: 0,
                bound,
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
        let Some(flow) = self.table.remove(id) else { return };
        debug!(flow = flow.opening.number, %reason, "ended");
        // An answered flow was reported when it was answered.
        if self.config.reports && !matches!(flow.state, State::Answered(_)) {
            let report = report(&flow, Stage::Closed, Some(reason), now);
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
            State::Answered(_) => self.answered -= 1,
            State::Held(_) | State::Echo { .. } | State::Questions { .. } => {}
        }
    }

    /// Tells of a flow that stays in the table.
    fn tell(&mut self, id: FlowId, stage: Stage, reason: Option<Reason>, now: Instant) {
        if self.config.reports
            && let Some(flow) = self.table.get(id)
        {
            let report = report(flow, stage, reason, now);
            self.outputs.push_back(Output::Report(Box::new(report)));
        }
    }

    /// Arms the flow's timer where its next deadline is earlier than the armed one.
    fn arm(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let at = deadline(flow);
        if flow.armed.is_none_or(|armed| at < armed) {
            flow.armed = Some(at);
            self.timers.arm(at, id);
            let table = &self.table;
            self.timers.compact(table.len(), |at, id| is_armed(table, at, id));
        }
    }

    fn flow_timeout(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
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
            State::Answered(_)
            | State::Datagrams(_)
            | State::Echo { .. }
            | State::Questions { .. }
                if due =>
            {
                self.evict(id, Reason::Idle, now, sink);
            }
            State::Held(held) if due => match held.waiting {
                Waiting::Owner => self.owner_answered(id, None, now, sink),
                Waiting::Source => {
                    self.source_failed(id, Unresolved::LookupFailed, now, sink);
                }
                Waiting::Egress(_) => self.evict(id, Reason::TimedOut, now, sink),
            },
            State::Held(_)
            | State::Answered(_)
            | State::Datagrams(_)
            | State::Echo { .. }
            | State::Questions { .. } => {}
        }
    }
}

/// A flow at this moment. Its rule has its name from the policy that it was judged by last.
fn report(flow: &Flow, stage: Stage, reason: Option<Reason>, now: Instant) -> Report {
    let opening = &*flow.opening;
    let policy = &opening.edition.policy;
    Report {
        number: opening.number,
        stage,
        protocol: opening.facts.protocol,
        client: opening.facts.client(),
        local: opening.facts.local,
        destination: opening.facts.destination(),
        via: opening.via,
        name: opening.facts.name.clone(),
        resolvers: policy.resolver_names(opening.facts.resolvers),
        egress: opening.facts.egress.known().copied(),
        egress_port: opening.egress_port,
        owner: opening.facts.owner.known().cloned(),
        verdict: opening.decision.map(|(verdict, _)| verdict),
        rule: opening.decision.map(|(_, rule)| policy.rule_name(rule).to_owned()),
        generation: opening.edition.generation,
        sent: flow.sent,
        received: flow.received,
        packets_sent: flow.packets_sent,
        packets_received: flow.packets_received,
        opened: opening.opened,
        closed: (stage == Stage::Closed).then_some(now),
        reason,
    }
}

/// Whether a timer's entry is its flow's live one.
fn is_armed(table: &Table, at: Instant, id: FlowId) -> bool {
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
        State::Held(held) => match held.waiting {
            Waiting::Owner | Waiting::Source => flow.active + LOOKUP,
            Waiting::Egress(_) => flow.active + CONNECT,
        },
        State::Stream(stream) => {
            let trim = if stream.moved > 0 { TRIM_AFTER } else { Duration::MAX };
            let idle = flow.active + stream.idle().min(trim);
            stream.stack_at.map_or(idle, |at| at.min(idle))
        }
        State::Datagrams(_) if flow.received == 0 => flow.active + UDP_UNANSWERED,
        State::Datagrams(_) if flow.key.ports.1 == 53 => flow.active + DNS_IDLE,
        State::Datagrams(_) => flow.active + UDP_IDLE,
        State::Echo { .. } => flow.active + ECHO_IDLE,
        State::Questions { awaited: 0 } => flow.active + QUESTIONS_IDLE,
        State::Questions { .. } => flow.active + AWAITED_IDLE,
        State::Answered(answered) => answered.until,
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
