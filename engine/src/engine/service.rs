//! Flows whose far side is the driver's service: our own resolver.
//!
//! Such a flow is judged like any other, but that nothing is asked of the routes: nothing
//! leaves, so there is neither egress nor, for a flow of this host's own, a source, and a
//! clause about these does not hold. It has no socket.
//!
//! Datagrams go to the service one by one ([`Way::Service`]). It answers in the same turn
//! ([`Engine::handle_answer`]) or says that it will ([`Engine::await_answer`]); such a
//! question is open until [`Engine::close_question`]. A connection has rings as every
//! connection, and the driver reads and writes them as the far side's socket would.

use std::net::{IpAddr, SocketAddr};

use crate::engine::datagram::{fits, write_udp};
use crate::engine::{Datagram, Engine, Output, Services, Way};
use crate::flow::{First, FlowId, Held, State, Waiting};
use crate::packet::icmp::Cause;
use crate::report::Stage;
use crate::{Dropped, Failure, Instant, Protocol, Reason, Sink};

/// The port of DNS.
const DNS: u16 = 53;

/// Where our own resolver answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolverService {
    /// Its addresses inside. It answers at port 53 and refuses every other.
    pub addresses: Vec<IpAddr>,
    /// Whether it answers at port 53 of every other address as well, but a group's.
    pub intercept: bool,
}

impl ResolverService {
    /// Whether a flow to that destination is the resolver's.
    pub fn takes(&self, destination: SocketAddr) -> bool {
        let ip = destination.ip();
        let every = self.intercept && destination.port() == DNS && !crate::cast::is_cast(ip);
        every || self.addresses.contains(&ip)
    }
}

impl Services {
    /// Where a destination leads and whether the service is there, or why nothing may go there.
    pub(super) fn far_of(&self, destination: SocketAddr) -> Result<(SocketAddr, bool), Dropped> {
        if self.resolver.as_ref().is_some_and(|resolver| resolver.takes(destination)) {
            return Ok((destination, true));
        }
        let ip = destination.ip();
        if let Some((_, loopback)) = self.loopback.iter().find(|(a, _)| *a == ip) {
            return Ok((SocketAddr::new(*loopback, destination.port()), false));
        }
        if ip.is_loopback() {
            return Err(Dropped::Martian);
        }
        Ok((destination, false))
    }
}

impl Engine {
    /// Has our own resolver answer at these places from now on. Live flows that would lead
    /// elsewhere by it end in the walk behind the next [`Engine::reload`].
    pub fn set_resolver(&mut self, resolver: ResolverService) {
        self.config.services.resolver = Some(resolver);
    }

    /// Opens an allowed flow to the service.
    pub(super) fn serve(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let protocol = flow.opening.facts.protocol;
        let listens = flow.opening.facts.destination().port() == DNS;
        match protocol {
            Protocol::Udp if listens => self.open_questions(id, now, sink),
            Protocol::Tcp if listens => {
                if let State::Held(held) = &mut flow.state {
                    held.waiting = Waiting::Egress(None);
                }
                self.outputs.push_back(Output::Serve(id));
                self.arm(id);
            }
            Protocol::Udp | Protocol::Tcp => {
                self.refuse(id, Cause::Failed(Failure::Refused), Reason::Refused, now, sink);
            }
            Protocol::Icmp => {
                let cause = Cause::Failed(Failure::HostUnreachable);
                self.refuse(id, cause, Reason::Unreachable, now, sink);
            }
        }
    }

    fn open_questions(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let open = State::Questions { awaited: 0 };
        let State::Held(Held { first, .. }) = std::mem::replace(&mut flow.state, open) else {
            return;
        };
        self.table.touch(id, now);
        self.tell(id, Stage::Open, None, now);
        if let First::Datagrams(saved) = first {
            for saved in &saved {
                let datagram = Datagram {
                    payload: &saved.payload,
                    segment: saved.segment,
                    dont_fragment: saved.dont_fragment,
                    may_wait: false,
                };
                self.send(id, Way::Service(id), datagram, sink);
            }
        }
        self.arm(id);
    }

    /// Client and destination of a flow, as its packets carry them.
    pub fn ends(&self, id: FlowId) -> Option<(SocketAddr, SocketAddr)> {
        let facts = &self.table.get(id)?.opening.facts;
        Some((facts.client(), facts.destination()))
    }

    /// Takes the service's answer to a datagram of a flow, at once or later. One that no
    /// packet can hold, or for a flow that is over, is dropped and counted.
    pub fn handle_answer(&mut self, id: FlowId, answer: &[u8], now: Instant, sink: &mut impl Sink) {
        self.carried = Some(id);
        let asks = |state: &State| matches!(state, State::Questions { .. });
        let Some(flow) = self.table.get_mut(id).filter(|flow| asks(&flow.state)) else {
            self.counters.replies_dropped[Dropped::Unsolicited as usize] += 1;
            return;
        };
        let (client, destination) = (flow.opening.facts.client(), flow.opening.facts.destination());
        if !fits(client, answer.len()) {
            self.counters.replies_dropped[Dropped::Malformed as usize] += 1;
            return;
        }
        flow.received += answer.len() as u64;
        flow.packets_received += 1;
        self.table.touch(id, now);
        write_udp(sink, destination, client, answer, None, self.config.offload);
    }

    /// Says that a question of a flow is answered later. The flow stays longer, and does not
    /// give way before those that ask nothing.
    pub fn await_answer(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Questions { awaited } = &mut flow.state else { return };
        *awaited = awaited.saturating_add(1);
        self.table.touch(id, now);
    }

    /// Says that nothing more comes to a question of [`Engine::await_answer`].
    pub fn close_question(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Questions { awaited } = &mut flow.state else { return };
        *awaited = awaited.saturating_sub(1);
        if *awaited == 0 {
            self.table.touch(id, now);
            self.arm(id);
        }
    }
}
