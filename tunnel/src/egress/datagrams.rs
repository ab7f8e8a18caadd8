//! Datagram sockets: a mapping's UDP socket, a flow's echo socket.
//!
//! Both are edge-triggered and read until they are empty or their turn is over; a socket
//! whose turn was cut short is read again in the next turn without a new edge.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use engine::{Datagram, Egress, Engine, FlowId, Input, Instant, MappingId, Unsent, Way};
use rustix::event::epoll;
use rustix::io::Errno;

use crate::device::{Device, MAX_PACKET};
use crate::egress::echo::Echo;
use crate::egress::error::{EgressError, failure};
use crate::egress::message::SendError;
use crate::egress::pin::Pin;
use crate::egress::udp::Mapping;
use crate::egress::{Sockets, Tag};

/// Datagrams read from one socket before others have their turn.
const TURN: usize = 64;

/// The datagram sockets of a shard.
#[derive(Debug)]
pub(crate) struct Datagrams {
    mappings: Vec<Option<Mapping>>,
    echoes: Vec<Option<(FlowId, Echo)>>,
    /// Sockets whose turn was cut short.
    waiting: VecDeque<Tag>,
    /// `Some` but while it is lent; a panic takes it along.
    buffer: Option<Box<[u8]>>,
}

impl Datagrams {
    pub(crate) fn new() -> Self {
        Self {
            mappings: Vec::new(),
            echoes: Vec::new(),
            waiting: VecDeque::new(),
            buffer: Some(buffer()),
        }
    }

    fn echo(&mut self, id: FlowId) -> Option<&mut Echo> {
        let (flow, echo) = self.echoes.get_mut(id.slot())?.as_mut()?;
        (*flow == id).then_some(echo)
    }
}

impl<D: Device> Sockets<D> {
    /// Opens a mapping's socket unless it is open, for the flow `id` that asked.
    #[expect(clippy::too_many_arguments, reason = "the engine's request and the route's answer")]
    pub(crate) fn bind(
        &mut self,
        epoll: impl AsFd,
        id: FlowId,
        mapping: MappingId,
        far: SocketAddr,
        egress: Egress,
        device: u32,
        mark: Option<u32>,
    ) -> Option<Input> {
        let mappings = &mut self.datagrams.mappings;
        if mappings.len() <= mapping.slot() {
            mappings.resize_with(mapping.slot() + 1, || None);
        }
        if mappings[mapping.slot()].is_none() {
            let pin = Pin { source: source(egress, far.ip()), device: Some(device), mark };
            let socket = match Mapping::open(far.ip(), &pin) {
                Ok(socket) => socket,
                Err(error) => return Some(Input::Failed(id, error.failure(0))),
            };
            let tag = Tag::Mapping(mapping.slot() as u32).data();
            if let Err(errno) = epoll::add(epoll, &socket, tag, edges()) {
                return Some(Input::Failed(id, failure(errno, 0)));
            }
            mappings[mapping.slot()] = Some(socket);
        }
        let port = mappings[mapping.slot()].as_ref().and_then(|m| m.local_addr().ok());
        Some(Input::Bound(id, port.map_or(0, |address| address.port())))
    }

    /// Closes a mapping's socket.
    pub(crate) fn unbind(&mut self, mapping: MappingId) {
        if let Some(socket) = self.datagrams.mappings.get_mut(mapping.slot()) {
            *socket = None;
        }
    }

    /// Opens a flow's echo socket.
    pub(crate) fn open_echo(
        &mut self,
        epoll: impl AsFd,
        id: FlowId,
        far: IpAddr,
        egress: Egress,
        device: u32,
        mark: Option<u32>,
    ) -> Option<Input> {
        let pin = Pin { source: source(egress, far), device: Some(device), mark };
        let echo = match Echo::open(far, &pin) {
            Ok(echo) => echo,
            Err(EgressError::EchoUnsupported) => return Some(Input::Unsupported(id)),
            Err(error) => return Some(Input::Failed(id, error.failure(0))),
        };
        if let Err(errno) = epoll::add(epoll, &echo, Tag::Echo(id).data(), edges()) {
            return Some(Input::Failed(id, failure(errno, 0)));
        }
        let echoes = &mut self.datagrams.echoes;
        if echoes.len() <= id.slot() {
            echoes.resize_with(id.slot() + 1, || None);
        }
        echoes[id.slot()] = Some((id, echo));
        Some(Input::Bound(id, 0))
    }

    pub(crate) fn close_echo(&mut self, id: FlowId) {
        if self.datagrams.echo(id).is_some() {
            self.datagrams.echoes[id.slot()] = None;
        }
    }

    pub(crate) fn send(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent> {
        let Datagram { payload, segment, dont_fragment } = datagram;
        let sent = match way {
            Way::Mapping(mapping, far) => {
                let socket = self.datagrams.mappings.get_mut(mapping.slot());
                match socket.and_then(Option::as_mut) {
                    Some(socket) => socket.send(far, payload, segment, dont_fragment),
                    None => return Err(Unsent::Full),
                }
            }
            Way::Echo(id, sequence) => match self.datagrams.echo(id) {
                Some(echo) => echo.send(sequence, payload, dont_fragment),
                None => return Err(Unsent::Full),
            },
            Way::Service(_) => return Err(Unsent::Full),
        };
        sent.map_err(|error| match error {
            SendError::WouldBlock => Unsent::Full,
            SendError::Failed(failure) => Unsent::Failed(failure),
        })
    }

    /// Reads what a ready socket has for one turn.
    pub(crate) fn datagrams_ready(&mut self, tag: Tag, engine: &mut Engine, now: Instant) {
        let mut buffer = self.datagrams.buffer.take().unwrap_or_else(buffer);
        let more = match tag {
            Tag::Mapping(slot) => self.read_mapping(slot, &mut buffer, engine, now),
            Tag::Echo(id) => self.read_echo(id, &mut buffer, engine, now),
            Tag::Device | Tag::Wake | Tag::Stream(_) => false,
        };
        self.datagrams.buffer = Some(buffer);
        if more {
            self.read_again(tag);
        }
    }

    /// Has a socket read in the next turn, without a new edge.
    pub(crate) fn read_again(&mut self, tag: Tag) {
        if !self.datagrams.waiting.contains(&tag) {
            self.datagrams.waiting.push_back(tag);
        }
    }

    /// The next socket whose turn was cut short. Each is given once a turn.
    pub(crate) fn next_waiting(&mut self) -> Option<Tag> {
        self.datagrams.waiting.pop_front()
    }

    /// How many sockets wait for another turn.
    pub(crate) fn waiting(&self) -> usize {
        self.datagrams.waiting.len()
    }

    fn read_mapping(
        &mut self,
        slot: u32,
        buffer: &mut [u8],
        engine: &mut Engine,
        now: Instant,
    ) -> bool {
        let mapping = MappingId::from_slot(slot);
        for _ in 0..TURN {
            let socket = self.datagrams.mappings.get(mapping.slot()).and_then(Option::as_ref);
            let Some(socket) = socket else { return false };
            match socket.recv(buffer) {
                Ok(received) => {
                    let (payload, segment) = (&buffer[..received.len], received.segment);
                    engine.handle_datagram(mapping, received.from, payload, segment, now, self);
                }
                Err(Errno::AGAIN) => {
                    while let Some(error) = self.mapping_error(mapping) {
                        let input =
                            Input::DatagramFailed(mapping, error.destination, error.failure);
                        engine.handle(input, now, self);
                    }
                    return false;
                }
                // A datagram that did not fit, or an error whose record tells more.
                Err(_) => {}
            }
        }
        true
    }

    fn mapping_error(&self, mapping: MappingId) -> Option<super::udp::UdpError> {
        self.datagrams.mappings.get(mapping.slot())?.as_ref()?.error()
    }

    fn read_echo(
        &mut self,
        id: FlowId,
        buffer: &mut [u8],
        engine: &mut Engine,
        now: Instant,
    ) -> bool {
        for _ in 0..TURN {
            let Some(echo) = self.datagrams.echo(id) else { return false };
            match echo.recv(buffer) {
                Ok((sequence, range)) => {
                    engine.handle_echo(id, sequence, &buffer[range], now, self);
                }
                Err(Errno::AGAIN) => {
                    while let Some(error) = self.datagrams.echo(id).and_then(|e| e.error()) {
                        engine.handle(Input::EchoFailed(id, error.failure), now, self);
                    }
                    return false;
                }
                Err(_) => {}
            }
        }
        true
    }
}

fn buffer() -> Box<[u8]> {
    vec![0; MAX_PACKET].into_boxed_slice()
}

fn edges() -> epoll::EventFlags {
    epoll::EventFlags::IN | epoll::EventFlags::ET
}

/// A service may be reached over the other IP version than its clients use.
fn source(egress: Egress, far: IpAddr) -> Option<IpAddr> {
    (egress.address.is_ipv4() == far.is_ipv4()).then_some(egress.address)
}
