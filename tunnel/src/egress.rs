//! The far side's sockets of one shard, and the sink that the engine writes to.
//!
//! Streams are found by their flow's place in the engine's table, datagram sockets by
//! their mapping's. Readiness is edge-triggered: a flag is cleared by `EAGAIN`, or by a
//! short read or write with no end of stream and no urgent data seen before it, which only
//! a new edge ends.

pub mod echo;
pub mod error;
mod message;
pub mod pin;
pub mod tcp;
pub mod udp;

mod datagrams;
mod port;
mod queries;
mod stream;
mod tag;

pub(crate) use stream::{Connection, Progress};
pub(crate) use tag::Tag;

use std::net::SocketAddr;
use std::os::fd::AsFd;

use engine::{Egress, FlowId, Input};
use rustix::event::epoll;
use rustix::net::sockopt;

use crate::device::Device;
use pin::Pin;

/// Every socket of a shard, and its device.
#[derive(Debug)]
pub(crate) struct Sockets<D> {
    port: port::Port<D>,
    streams: Vec<Option<Connection>>,
    datagrams: datagrams::Datagrams,
    /// `None`: there is no service.
    queries: Option<queries::Queries>,
}

impl<D: Device> Sockets<D> {
    /// `serves`: whether somebody takes the datagrams to the service.
    pub(crate) fn new(device: D, serves: bool) -> Self {
        Self {
            port: port::Port::new(device),
            streams: Vec::new(),
            datagrams: datagrams::Datagrams::new(),
            queries: serves.then(queries::Queries::default),
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
        let stream = match tcp::connect(far, &pin) {
            Ok(stream) => stream,
            Err(error) => return Some(Input::Failed(id, error.failure(0))),
        };
        // Urgent data stops a read short of what there is, without a new edge for the rest.
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::PRI
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        // RFC 6093 6: in line, or the urgent byte would be missing from the stream.
        let added = sockopt::set_socket_oobinline(&stream, true)
            .and_then(|()| epoll::add(epoll, &stream, Tag::Stream(id).data(), flags));
        if let Err(errno) = added {
            return Some(Input::Failed(id, error::failure(errno, 0)));
        }
        if self.streams.len() <= id.slot() {
            self.streams.resize_with(id.slot() + 1, || None);
        }
        self.streams[id.slot()] = Some(Connection::new(id, stream));
        None
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
