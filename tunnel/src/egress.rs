//! The far side's sockets of one shard, and the sink that the engine writes to.
//!
//! Streams are found by their flow's place in the engine's table, datagram sockets by
//! their mapping's. Readiness is edge-triggered: a flag is cleared by `EAGAIN`, or by a
//! short read or write with no end of stream and no urgent data seen before it, which only
//! a new edge ends.

pub mod echo;
pub mod error;
pub(crate) mod message;
pub mod pin;
pub mod proxy;
pub mod tcp;
pub mod udp;

mod association;
pub(crate) mod carrier;
mod datagrams;
pub(crate) mod links;
mod port;
pub(crate) mod probes;
mod queries;
mod relayed;
pub(crate) mod run;
mod stream;
mod tag;

pub(crate) use association::Step;
pub(crate) use stream::{Connection, Progress};
pub(crate) use tag::Tag;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use engine::{Egress, Failure, FlowId, Input, Instant};
use rustix::event::epoll;
use rustix::net::sockopt;

use crate::device::Device;
use crate::driver::Bell;
use crate::driver::lanes::Away;
use crate::driver::request::Answer;
use crate::link::netstack::{Board, Netstack};
use crate::link::wireguard::Coalesce;
use carrier::{Carrier, Inside, Wakes};
use pin::Pin;
use proxy::tls::Session;
use proxy::{Fault, PATIENCE, SUSPECT, Talk};

/// Every socket of a shard, and its device.
#[derive(Debug)]
pub(crate) struct Sockets<D> {
    pub(crate) port: port::Port<D>,
    pub(crate) links: links::Links,
    pub(crate) netstack: Netstack,
    /// The host inside the tunnels where another shard has them.
    beside: Option<Weak<Board>>,
    /// The lanes to other shards.
    pub(crate) away: Away,
    streams: Vec<Option<Connection>>,
    /// Connects to proxies in the order in which they began, each with its end.
    talks: VecDeque<(Instant, FlowId)>,
    /// The same, each with the time from which a proxy that has answered nothing is to be left.
    suspects: VecDeque<(Instant, FlowId)>,
    pub(crate) probes: probes::Probes,
    /// Of connections through tunnels.
    pub(crate) wakes: Arc<Wakes>,
    datagrams: datagrams::Datagrams,
    /// `None`: there is no service.
    queries: Option<queries::Queries>,
}

impl<D: Device> Sockets<D> {
    /// `serves`: whether somebody takes the datagrams to the service.
    pub(crate) fn new(device: D, serves: bool, netstack: Netstack) -> Self {
        let coalesce = Coalesce { tcp: device.offload(), udp: device.udp_offload() };
        Self {
            port: port::Port::new(device),
            links: links::Links::new(coalesce),
            netstack,
            beside: None,
            away: Away::default(),
            streams: Vec::new(),
            talks: VecDeque::new(),
            suspects: VecDeque::new(),
            probes: probes::Probes::default(),
            wakes: Arc::default(),
            datagrams: datagrams::Datagrams::new(),
            queries: serves.then(queries::Queries::default),
        }
    }

    /// Has connections through tunnels opened by another shard, which wakes this one by `bell`.
    pub(crate) fn lives_beside(&mut self, board: Weak<Board>, bell: Arc<Bell>) {
        self.beside = Some(board);
        self.wakes = Arc::new(Wakes::rung_by(bell));
    }

    /// Where connections and UDP sockets inside tunnels are opened. An error: their shard has ended.
    fn inside(&self) -> Result<Arc<Board>, Failure> {
        match &self.beside {
            None => Ok(Arc::clone(self.netstack.board())),
            Some(board) => board.upgrade().ok_or(Failure::NetUnreachable),
        }
    }

    /// Whether [`Sockets::next_query`] would give one.
    pub(crate) fn has_queries(&self) -> bool {
        self.queries.as_ref().is_some_and(|queries| !queries.is_empty())
    }

    /// The next datagram to the service. It counts as given, whatever comes of it.
    pub(crate) fn next_query(&mut self, into: &mut Vec<u8>) -> Option<FlowId> {
        self.queries.as_mut()?.next(into)
    }

    pub(crate) fn device(&mut self) -> &mut D {
        &mut self.port.device
    }

    pub(crate) fn device_errors(&self) -> u64 {
        self.port.device_errors
    }

    /// Starts a connect. `None`: the answer comes as readiness.
    pub(crate) fn connect(
        &mut self,
        epoll: impl AsFd,
        id: FlowId,
        far: SocketAddr,
        egress: Egress,
        device: u32,
        mark: Option<u32>,
    ) -> Option<Input> {
        let pin = Pin { source: Some(egress.address), device: Some(device), mark };
        let begun = carried(epoll, Tag::Stream(id), far, &pin);
        match begun {
            Ok(carrier) => {
                self.keep(Connection::new(id, carrier, None, None));
                None
            }
            Err(failure) => Some(Input::Failed(id, failure)),
        }
    }

    /// Starts a connect to a proxy, and with it the talk. The answer comes as readiness, or not
    /// at all: see [`Sockets::silent_talk`].
    pub(crate) fn connect_via(
        &mut self,
        epoll: impl AsFd,
        id: FlowId,
        talk: Talk,
        pin: &Pin,
        now: Instant,
    ) -> Result<(), Failure> {
        let connection = self.call(epoll, id, Tag::Stream(id), talk, pin)?;
        self.keep(connection);
        self.talks.push_back((now + PATIENCE, id));
        self.suspects.push_back((now + SUSPECT, id));
        Ok(())
    }

    /// Begins a probe of a proxy.
    pub(crate) fn probe(
        &mut self,
        epoll: impl AsFd,
        talk: Talk,
        pin: &Pin,
        answer: Answer<Result<(), Fault>>,
        now: Instant,
    ) {
        // It is nobody's flow, and carries nothing.
        let nobody = FlowId::from_bits(0);
        match self.call(epoll, nobody, self.probes.next_tag(), talk, pin) {
            Ok(connection) => self.probes.keep(connection, answer, now),
            Err(failure) => answer(probes::shown(Err(proxy::unreachable(failure)))),
        }
    }

    /// Begins a connection to a proxy, whose events come under that tag. What stands against it at
    /// once is noted.
    fn call(
        &mut self,
        epoll: impl AsFd,
        id: FlowId,
        tag: Tag,
        talk: Talk,
        pin: &Pin,
    ) -> Result<Connection, Failure> {
        let proxy = talk.proxy();
        let carrier = self.carrier(epoll, tag, proxy, pin);
        let session = match &proxy.tls {
            Some(tls) => Session::new(tls).map(|session| Some(Box::new(session))),
            None => Ok(None),
        };
        match carrier.and_then(|it| Ok((it, session.map_err(|_| Failure::Exhausted)?))) {
            Ok((carrier, session)) => {
                Ok(Connection::new(id, carrier, Some(Box::new(talk)), session))
            }
            Err(failure) => {
                talk.note(Err(proxy::unreachable(failure)));
                Err(failure)
            }
        }
    }

    /// Begins what carries a talk with a proxy, by the tunnel in front of it where there is one.
    fn carrier(
        &self,
        epoll: impl AsFd,
        tag: Tag,
        proxy: &proxy::Proxy,
        pin: &Pin,
    ) -> Result<Carrier, Failure> {
        match proxy.behind {
            None => carried(epoll, tag, proxy.address, pin),
            Some(link) => {
                let begun = self.inside()?.connect(link, proxy.address);
                begun.map(|stream| Carrier::Inside(Inside::new(stream, tag, &self.wakes)))
            }
        }
    }

    /// When [`Sockets::silent_talk`], [`Sockets::suspect_talk`] or one of their kind for
    /// associations may name one.
    pub(crate) fn next_talk(&self) -> Option<Instant> {
        let streams = [self.talks.front(), self.suspects.front()];
        let streams = streams.into_iter().flatten().map(|(at, _)| *at);
        streams.chain(self.datagrams.next_talk()).min()
    }

    /// The next flow whose proxy has not done its part in time. One that knows what it is to do
    /// may wait for the far side; it is doubted.
    pub(crate) fn silent_talk(&mut self, now: Instant) -> Option<FlowId> {
        while let Some(id) = due(&mut self.talks, now) {
            match self.stream(id) {
                Some(stream) if stream.awaits_proxy() => return Some(id),
                Some(stream) => stream.doubt(),
                None => {}
            }
        }
        None
    }

    /// The next flow whose proxy answers no connect, so that others are to leave it.
    pub(crate) fn suspect_talk(&mut self, now: Instant) -> Option<FlowId> {
        while let Some(id) = due(&mut self.suspects, now) {
            if self.stream(id).is_some_and(|stream| stream.is_connecting()) {
                return Some(id);
            }
        }
        None
    }

    fn keep(&mut self, connection: Connection) {
        let slot = connection.id().slot();
        if self.streams.len() <= slot {
            self.streams.resize_with(slot + 1, || None);
        }
        self.streams[slot] = Some(connection);
    }

    /// The stream of a flow.
    pub(crate) fn stream(&mut self, id: FlowId) -> Option<&mut Connection> {
        self.streams.get_mut(id.slot())?.as_mut().filter(|stream| stream.id() == id)
    }

    /// Ends our half of a stream.
    pub(crate) fn shutdown(&mut self, id: FlowId) {
        if let Some(stream) = self.stream(id) {
            stream.shutdown();
        }
    }

    /// Closes a flow's socket of either kind.
    pub(crate) fn close(&mut self, id: FlowId) {
        if self.stream(id).is_some() {
            self.streams[id.slot()] = None;
        } else {
            self.close_echo(id);
        }
    }

    /// Closes a stream with a RST.
    pub(crate) fn reset(&mut self, id: FlowId) {
        if self.stream(id).is_some()
            && let Some(stream) = self.streams[id.slot()].take()
        {
            stream.reset();
        }
    }
}

/// The next flow whose time has come.
fn due(queue: &mut VecDeque<(Instant, FlowId)>, now: Instant) -> Option<FlowId> {
    if queue.front()?.0 > now {
        return None;
    }
    queue.pop_front().map(|(_, id)| id)
}

/// Begins a connection of the kernel's, whose events come under that tag.
fn carried(epoll: impl AsFd, tag: Tag, to: SocketAddr, pin: &Pin) -> Result<Carrier, Failure> {
    let stream = tcp::connect(to, pin).map_err(|error| error.failure(0))?;
    // Urgent data stops a read short of what there is, without a new edge for the rest.
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::PRI
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    // RFC 6093 6: in line, or the urgent byte would be missing from the stream.
    let added = sockopt::set_socket_oobinline(&stream, true)
        .and_then(|()| epoll::add(epoll, &stream, tag.data(), flags));
    added.map_err(|errno| error::failure(errno, 0))?;
    Ok(Carrier::Kernel(stream))
}

#[cfg(test)]
mod tests;
