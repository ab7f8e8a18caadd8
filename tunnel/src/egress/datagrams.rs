//! Datagram sockets: a mapping's UDP socket, a flow's echo socket.
//!
//! What a mapping sends waits for the end of the batch ([`run`](super::run)).
//!
//! Both are edge-triggered and read until they are empty or their turn is over; a socket
//! whose turn was cut short is read again in the next turn without a new edge.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use engine::{
    Datagram, Dropped, Egress, Engine, Failure, FlowId, Input, Instant, LinkId, MappingId, Unsent,
    Way, Ways,
};
use rustix::event::epoll;
use rustix::io::Errno;

use crate::device::{Device, MAX_PACKET};
use crate::egress::association::Association;
use crate::egress::echo::Echo;
use crate::egress::error::{EgressError, failure};
use crate::egress::message::SendError;
use crate::egress::pin::Pin;
use crate::egress::proxy::{PATIENCE, SUSPECT, Talk, relay, unreachable};
use crate::egress::relayed::Inside;
use crate::egress::run::{Run, Towards, UnsentRun};
use crate::egress::udp::Mapping;
use crate::egress::{Sockets, Tag};

/// Datagrams read from one socket before others have their turn.
const TURN: usize = 64;

/// What carries a mapping's datagrams.
#[derive(Debug)]
enum Outlet {
    Direct(Mapping),
    Proxied(Box<Association>),
}

/// The datagram sockets of a shard.
#[derive(Debug)]
pub(crate) struct Datagrams {
    mappings: Vec<Option<Outlet>>,
    /// Associations in the order in which they began, each with the end of its patience.
    talks: VecDeque<(Instant, MappingId)>,
    /// The same, each with the time from which a proxy that has answered nothing is to be left,
    /// and the association's serial.
    suspects: VecDeque<(Instant, MappingId, u32)>,
    /// Associations whose relay takes no datagrams any more.
    broken: Vec<(MappingId, Failure)>,
    next_serial: u32,
    echoes: Vec<Option<(FlowId, Echo)>>,
    /// Datagrams that leave at the end of the batch.
    run: Run,
    /// What did not leave since [`Sockets::next_unsent`] gave nothing.
    unsent: Vec<UnsentRun>,
    /// Sockets whose turn was cut short.
    waiting: VecDeque<Tag>,
    /// `Some` but while it is lent; a panic takes it along.
    buffer: Option<Box<[u8]>>,
}

impl Datagrams {
    pub(crate) fn new() -> Self {
        Self {
            mappings: Vec::new(),
            talks: VecDeque::new(),
            suspects: VecDeque::new(),
            broken: Vec::new(),
            next_serial: 0,
            echoes: Vec::new(),
            run: Run::new(),
            unsent: Vec::new(),
            waiting: VecDeque::new(),
            buffer: Some(buffer()),
        }
    }

    /// Sends a message of a mapping at once.
    fn send(
        &mut self,
        mapping: MappingId,
        far: SocketAddr,
        datagram: Datagram<'_>,
    ) -> Result<(), Unsent> {
        match self.outlet(mapping) {
            Some(outlet) => outlet.send(far, datagram),
            None => Err(Unsent::Full),
        }
    }

    /// Sends what waits.
    fn flush(&mut self) {
        let Self { run, mappings, .. } = self;
        let Some((Towards { mapping, far, dont_fragment }, payload, segment)) = run.waiting()
        else {
            return;
        };
        let why = match mappings.get_mut(mapping.slot()).and_then(Option::as_mut) {
            Some(outlet) => {
                let datagram = Datagram { payload, segment, dont_fragment, may_wait: false };
                outlet.send(far, datagram).err()
            }
            None => Some(Unsent::Full),
        };
        self.unsent.extend(self.run.clear(why));
    }

    /// When some proxy may have tried the patience of an association, or half of it.
    pub(super) fn next_talk(&self) -> Option<Instant> {
        let silent = self.talks.front().map(|(end, _)| *end);
        let suspect = self.suspects.front().map(|(at, ..)| *at);
        silent.into_iter().chain(suspect).min()
    }

    fn place(&mut self, mapping: MappingId) -> &mut Option<Outlet> {
        if self.mappings.len() <= mapping.slot() {
            self.mappings.resize_with(mapping.slot() + 1, || None);
        }
        &mut self.mappings[mapping.slot()]
    }

    fn outlet(&mut self, mapping: MappingId) -> Option<&mut Outlet> {
        self.mappings.get_mut(mapping.slot())?.as_mut()
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
        let place = self.datagrams.place(mapping);
        if place.is_none() {
            let pin = Pin { source: source(egress, far.ip()), device: Some(device), mark };
            let socket = match Mapping::open(far.ip(), &pin) {
                Ok(socket) => socket,
                Err(error) => return Some(Input::Failed(id, error.failure(0))),
            };
            let tag = Tag::Mapping(mapping.slot() as u32).data();
            if let Err(errno) = epoll::add(epoll, &socket, tag, edges()) {
                return Some(Input::Failed(id, failure(errno, 0)));
            }
            *place = Some(Outlet::Direct(socket));
        }
        let socket = place.as_ref().and_then(Outlet::socket);
        Some(Input::Bound(id, socket.map_or(0, port)))
    }

    /// The association of a mapping.
    pub(crate) fn association(&mut self, mapping: MappingId) -> Option<&mut Association> {
        match self.datagrams.outlet(mapping)? {
            Outlet::Proxied(association) => Some(association),
            Outlet::Direct(_) => None,
        }
    }

    /// Begins a mapping's association: connects to the proxy.
    pub(crate) fn begin_association(
        &mut self,
        epoll: impl AsFd,
        mapping: MappingId,
        talk: Talk,
        egress: Egress,
        pin: &Pin,
        now: Instant,
    ) -> Result<(), Failure> {
        let (serial, until) = (self.datagrams.next_serial, now + PATIENCE);
        self.datagrams.next_serial = (serial + 1) & Tag::LAST_SERIAL;
        let tag = Tag::Control(mapping.slot() as u32, serial);
        let control = match self.carrier(epoll, tag, talk.proxy(), pin) {
            Ok(control) => control,
            Err(failure) => {
                talk.note(Err(unreachable(failure)));
                return Err(failure);
            }
        };
        let association = Association::begin(talk, control, egress, serial, until);
        self.datagrams.talks.push_back((until, mapping));
        self.datagrams.suspects.push_back((now + SUSPECT, mapping, serial));
        *self.datagrams.place(mapping) = Some(Outlet::Proxied(Box::new(association)));
        Ok(())
    }

    /// Opens the socket to the relay of a mapping's proxy: its port, and who wait for it.
    pub(crate) fn open_relay(
        &mut self,
        epoll: impl AsFd,
        mapping: MappingId,
        relay: SocketAddr,
        device: u32,
        mark: Option<u32>,
    ) -> Result<(u16, Vec<FlowId>), Failure> {
        let Some(association) = self.association(mapping) else { return Ok((0, Vec::new())) };
        let source = Some(association.egress().address);
        let pin = Pin { source, device: Some(device), mark };
        let port = association.open(relay, &pin).map_err(|error| error.failure(0))?;
        let control = Tag::Control(mapping.slot() as u32, association.serial()).data();
        // Its end alone is of interest from here on.
        let ends = epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if let Some(fd) = association.control() {
            epoll::modify(&epoll, fd, control, ends).map_err(|errno| failure(errno, 0))?;
        }
        let tag = Tag::Mapping(mapping.slot() as u32).data();
        if let Some((socket, _)) = association.relay() {
            epoll::add(&epoll, socket, tag, edges()).map_err(|errno| failure(errno, 0))?;
        }
        Ok((port, association.members().to_vec()))
    }

    /// Opens the socket to the relay of a proxy that is behind a tunnel with that MTU. Whether it
    /// is open the shard learns by [`Sockets::opened_relay`].
    pub(crate) fn open_relay_inside(
        &mut self,
        mapping: MappingId,
        relay: SocketAddr,
        (link, mtu): (LinkId, u16),
    ) -> Result<(), Failure> {
        let socket = self.inside()?.bind(link, relay)?;
        let tag = Tag::Mapping(mapping.slot() as u32);
        let inside = Inside::new(socket, tag, &self.wakes, relay, mtu);
        if let Some(association) = self.association(mapping) {
            association.open_inside(inside, link);
        }
        Ok(())
    }

    /// The relay inside a tunnel that has just opened: its port, and who wait for it.
    pub(crate) fn opened_relay(&mut self, slot: u32) -> Option<(u16, Vec<FlowId>)> {
        let association = self.association(MappingId::from_slot(slot))?;
        let port = association.opened()?;
        Some((port, association.members().to_vec()))
    }

    /// Tells the sockets to relays inside tunnels what their tunnels carry now.
    pub(crate) fn follow_links(&mut self, ways: &Ways) {
        for outlet in self.datagrams.mappings.iter_mut().flatten() {
            if let Outlet::Proxied(association) = outlet {
                association.follow_link(ways);
            }
        }
    }

    /// Takes a mapping's association out: its connections are closed with it.
    pub(crate) fn take_association(&mut self, mapping: MappingId) -> Option<Association> {
        self.datagrams.flush();
        let place = self.datagrams.mappings.get_mut(mapping.slot())?;
        match place.take() {
            Some(Outlet::Proxied(association)) => Some(*association),
            other => {
                *place = other;
                None
            }
        }
    }

    /// The next association whose proxy has not done its part in time.
    pub(crate) fn silent_association(&mut self, now: Instant) -> Option<MappingId> {
        while self.datagrams.talks.front().is_some_and(|(end, _)| *end <= now) {
            let (end, mapping) = self.datagrams.talks.pop_front()?;
            if self.association(mapping).is_some_and(|it| it.until() == Some(end)) {
                return Some(mapping);
            }
        }
        None
    }

    /// The next association whose proxy answers no connect, so that others are to leave it.
    pub(crate) fn suspect_association(&mut self, now: Instant) -> Option<MappingId> {
        while self.datagrams.suspects.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, mapping, serial) = self.datagrams.suspects.pop_front()?;
            let it = self.association(mapping).filter(|it| it.serial() == serial);
            if it.is_some_and(|it| it.is_connecting()) {
                return Some(mapping);
            }
        }
        None
    }

    /// The next association whose relay takes no datagrams any more, and why.
    pub(crate) fn broken_relay(&mut self) -> Option<(MappingId, Failure)> {
        self.datagrams.broken.pop()
    }

    /// Closes a mapping's socket.
    pub(crate) fn unbind(&mut self, mapping: MappingId) {
        self.datagrams.flush();
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
        let Datagram { payload, segment, dont_fragment, may_wait } = datagram;
        match way {
            Way::Mapping(mapping, far) => {
                let may_wait = may_wait && segment.is_none();
                let towards = Towards { mapping, far, dont_fragment };
                if may_wait && self.datagrams.run.takes(towards, payload) {
                    return Ok(());
                }
                self.datagrams.flush();
                if may_wait && self.datagrams.run.takes(towards, payload) {
                    return Ok(());
                }
                self.datagrams.send(mapping, far, datagram)
            }
            Way::Echo(id, sequence) => match self.datagrams.echo(id) {
                Some(echo) => echo.send(sequence, payload, dont_fragment).map_err(unsent),
                None => Err(Unsent::Full),
            },
            Way::Service(_) => Err(Unsent::Full),
        }
    }

    /// Sends the datagrams that wait for the end of their batch.
    pub(crate) fn flush_datagrams(&mut self) {
        self.datagrams.flush();
    }

    /// What did not leave, though its [`send`](Self::send) said that it would.
    pub(crate) fn next_unsent(&mut self) -> Option<UnsentRun> {
        self.datagrams.unsent.pop()
    }

    /// Reads what a ready socket has for one turn.
    pub(crate) fn datagrams_ready(&mut self, tag: Tag, engine: &mut Engine, now: Instant) {
        let mut buffer = self.datagrams.buffer.take().unwrap_or_else(buffer);
        let more = match tag {
            Tag::Mapping(slot) => self.read_mapping(slot, &mut buffer, engine, now),
            Tag::Echo(id) => self.read_echo(id, &mut buffer, engine, now),
            Tag::Device
            | Tag::Wake
            | Tag::Stream(_)
            | Tag::Link(_)
            | Tag::Probe(_)
            | Tag::Control(..) => false,
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
            let Some(outlet) = self.datagrams.outlet(mapping) else { return false };
            let relay = match outlet {
                Outlet::Direct(_) => None,
                Outlet::Proxied(association) if association.is_inside() => {
                    return self.read_inside(mapping, buffer, engine, now);
                }
                Outlet::Proxied(association) => association.relay().map(|(_, relay)| relay),
            };
            let Some(socket) = outlet.socket() else { return false };
            match (socket.recv(buffer), relay) {
                (Ok(received), None) => {
                    let (payload, segment) = (&buffer[..received.len], received.segment);
                    engine.handle_datagram(mapping, received.from, payload, segment, now, self);
                }
                (Ok(received), Some(relay)) => {
                    let from = received.from;
                    // What came before the socket was the relay's alone.
                    if (from.ip(), from.port()) != (relay.ip(), relay.port()) {
                        engine.drop_reply(Dropped::Unsolicited);
                        continue;
                    }
                    let arrived = &mut buffer[..received.len];
                    self.unpack(mapping, arrived, received.segment, engine, now);
                }
                (Err(Errno::AGAIN), None) => {
                    while let Some(error) = self.mapping_error(mapping) {
                        let input =
                            Input::DatagramFailed(mapping, error.destination, error.failure);
                        engine.handle(input, now, self);
                    }
                    return false;
                }
                (Err(Errno::AGAIN), Some(_)) => {
                    while let Some(error) = self.mapping_error(mapping) {
                        // Whose datagram that was it does not say; what passes by itself the
                        // app notices by itself.
                        if error.failure == Failure::Refused {
                            self.datagrams.broken.push((mapping, error.failure));
                        }
                    }
                    return false;
                }
                // A datagram that did not fit, or an error whose record tells more.
                (Err(_), _) => {}
            }
        }
        true
    }

    /// The same for a relay inside a tunnel, which brings one datagram at a time.
    fn read_inside(
        &mut self,
        mapping: MappingId,
        buffer: &mut [u8],
        engine: &mut Engine,
        now: Instant,
    ) -> bool {
        for _ in 0..TURN {
            let association = self.association(mapping);
            let Some(inside) = association.and_then(|it| it.inside()) else { return false };
            match inside.receive(buffer) {
                Ok(Some(length)) => {
                    self.unpack(mapping, &mut buffer[..length], None, engine, now);
                }
                Ok(None) => return false,
                Err(failure) => {
                    self.datagrams.broken.push((mapping, failure));
                    return false;
                }
            }
        }
        true
    }

    /// Gives the engine what has come from a proxy's relay, without the headers.
    fn unpack(
        &mut self,
        mapping: MappingId,
        arrived: &mut [u8],
        segment: Option<u16>,
        engine: &mut Engine,
        now: Instant,
    ) {
        let step = segment.map_or(arrived.len(), usize::from);
        let mut rest = arrived;
        loop {
            let (taken, cause) = match relay::take(rest, step) {
                Err((cause, taken)) => (taken, Some(cause)),
                Ok(run) => {
                    let origin = relay::parse(&rest[..run.header]).map(|(origin, _)| origin);
                    let far = origin.ok().and_then(|origin| {
                        let awaits = |far| engine.awaits(mapping, far);
                        self.association(mapping)?.far_of(origin, awaits)
                    });
                    match far {
                        Some(far) => {
                            let payload = &rest[run.payload];
                            engine.handle_datagram(mapping, far, payload, run.segment, now, self);
                            (run.taken, None)
                        }
                        None => (run.taken, Some(Dropped::Unsolicited)),
                    }
                }
            };
            if let Some(cause) = cause {
                engine.drop_reply(cause);
            }
            rest = &mut rest[taken..];
            if rest.is_empty() {
                return;
            }
        }
    }

    fn mapping_error(&mut self, mapping: MappingId) -> Option<super::udp::UdpError> {
        self.datagrams.outlet(mapping)?.socket()?.error()
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

fn unsent(error: SendError) -> Unsent {
    match error {
        SendError::WouldBlock => Unsent::Full,
        SendError::Failed(failure) => Unsent::Failed(failure),
    }
}

impl Outlet {
    fn send(&mut self, far: SocketAddr, datagram: Datagram<'_>) -> Result<(), Unsent> {
        let Datagram { payload, segment, dont_fragment, may_wait: _ } = datagram;
        match self {
            Self::Direct(socket) => {
                socket.send(far, payload, segment, dont_fragment).map_err(unsent)
            }
            Self::Proxied(association) => association.send(far, datagram),
        }
    }

    /// The socket that datagrams leave by, once there is one.
    fn socket(&self) -> Option<&Mapping> {
        match self {
            Self::Direct(socket) => Some(socket),
            Self::Proxied(association) => association.relay().map(|(socket, _)| socket),
        }
    }
}

fn port(socket: &Mapping) -> u16 {
    socket.local_addr().map_or(0, |address| address.port())
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
