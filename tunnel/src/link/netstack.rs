//! The host of our own inside the tunnels of a shard: its connections and datagrams.
//!
//! # Theory of operation
//!
//! What this program itself asks through a tunnel must not depend on the routes of the kernel,
//! which may lead elsewhere a moment later. So its sockets are none of the kernel's: TCP is
//! smoltcp's (`stream`), UDP a header in front, and their packets go from here into the tunnel.
//!
//! ```text
//! client's task ─▶ Stream, Datagrams (line) ─▶ board, bell ─▶ turn ─▶ Below::send ─▶ tunnel
//!                                         ◀── waker ── turn ◀── arrive ◀── engine ◀── tunnel
//! ```
//!
//! A [`Netstack`] belongs to the shard's thread. It is a sans-IO state machine: [`Netstack::arrive`]
//! keeps what came, [`Netstack::turn`] takes the clients' words and what came, moves bytes and sends,
//! and [`Netstack::next_timer`] says when it wants another turn. What is beneath it, the
//! tunnels and the ports at their addresses, is [`Below`].
//!
//! A socket has the tunnel's address and a port that the kernel's generator chose and the engine
//! has kept from the flows (`engine::LinkPort`). It ends when the tunnel is gone or has another
//! address. A tunnel that is not usable opens no socket and sends no datagram; a connection
//! that stands waits for it.

mod line;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::{
    Arrived, Failure, Instant, Link, LinkId, LinkPort, Protocol, Unsent, Ways, fragment_udp,
    write_udp,
};
use hashbrown::HashMap;
use rustix::rand::{GetRandomFlags, getrandom};

pub(crate) use self::line::Board;
pub use self::line::{Datagrams, Stream};

use self::line::Line;
use self::stream::{Connection, Phase};
use crate::egress::error::IcmpError;

/// Bytes that came and wait for the turn; more is lost, as on any network.
const ARRIVED: usize = 4 << 20;
/// What is unacknowledged for so long ends a connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How long a connection whose client is gone may take to end.
const LINGER: Duration = Duration::from_secs(10);
/// How many of those there may be; the one that lingers longest goes first.
const LINGERING: usize = 256;
/// The first port that is taken (RFC 6056 3.2: all but the system's).
const FIRST: u16 = 1024;
/// Ports tried where one is taken.
const TRIES: usize = 64;

/// What is beneath: tunnels, and the ports at their addresses.
pub(crate) trait Below {
    /// What is known of the tunnels.
    fn ways(&self) -> &Arc<Ways>;
    /// Takes a port; `false`: somebody has it.
    fn reserve(&mut self, port: &LinkPort) -> bool;
    /// A port that may be taken, next to one that is not below `least`.
    fn own_port_near(&self, port: u16, least: u16) -> u16;
    /// Gives it back.
    fn release(&mut self, port: &LinkPort);
    /// Sends a whole packet.
    fn send(&mut self, link: LinkId, packet: &[u8]) -> Result<(), Unsent>;
}

/// The sockets of a shard.
pub(crate) struct Netstack {
    board: Arc<Board>,
    sockets: slab::Slab<Socket>,
    ports: HashMap<LinkPort, usize, foldhash::fast::RandomState>,
    arrived: VecDeque<(LinkPort, Arrived)>,
    /// Bytes in it.
    held: usize,
    /// What was known of the tunnels in the last turn.
    known: Arc<Ways>,
    /// Whose turn it is now; after a panic, whose fault it was.
    carried: Option<usize>,
    /// One datagram and its packet; kept for their allocations.
    datagram: Vec<u8>,
    packet: Vec<u8>,
}

struct Socket {
    line: Arc<Line>,
    port: LinkPort,
    near: SocketAddr,
    kind: Kind,
    due: Option<Instant>,
}

enum Kind {
    Stream(Box<Tcp>),
    Datagrams,
}

struct Tcp {
    connection: Connection,
    /// The first unacknowledged number, and since when it is that.
    progress: (Option<u32>, Instant),
    gone: Option<Instant>,
    /// What it ends with, where that is known.
    failure: Option<Failure>,
    opened: bool,
}

/// What becomes of a socket after its turn.
enum Fate {
    Stays,
    Over(Option<Failure>),
}

impl Netstack {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self {
            board,
            sockets: slab::Slab::new(),
            ports: HashMap::default(),
            arrived: VecDeque::new(),
            held: 0,
            known: Arc::default(),
            carried: None,
            datagram: Vec::new(),
            packet: Vec::new(),
        }
    }

    /// Where connections and UDP sockets are opened.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Keeps what came for one of its ports until the next turn.
    pub(crate) fn arrive(&mut self, port: LinkPort, arrived: Arrived) {
        let bytes = size(&arrived);
        if self.held + bytes <= ARRIVED {
            self.held += bytes;
            self.arrived.push_back((port, arrived));
        }
    }

    /// When it wants a turn though nothing came and nobody said anything.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        if !self.arrived.is_empty() {
            return Some(Instant::ZERO);
        }
        self.sockets.iter().filter_map(|(_, socket)| socket.due).min()
    }

    /// Does all there is to do.
    pub(crate) fn turn(&mut self, below: &mut impl Below, now: Instant) {
        if !Arc::ptr_eq(&self.known, below.ways()) {
            self.known = Arc::clone(below.ways());
            self.leave_links(below, now);
        }
        let mut touched: Vec<usize> = Vec::new();
        for line in self.board.take() {
            let place = line.state().place;
            touched.extend(place.or_else(|| self.open(&line, below, now)));
        }
        while let Some((port, arrived)) = self.arrived.pop_front() {
            self.held -= size(&arrived);
            if let Some(&at) = self.ports.get(&port) {
                self.carried = Some(at);
                self.sockets[at].take(arrived, below, now);
                touched.push(at);
            }
        }
        let due = self.sockets.iter().filter(|(_, it)| it.due.is_some_and(|due| due <= now));
        touched.extend(due.map(|(at, _)| at));
        touched.sort_unstable();
        touched.dedup();
        for at in touched {
            self.carried = Some(at);
            let (datagram, packet) = (&mut self.datagram, &mut self.packet);
            let Some(socket) = self.sockets.get_mut(at) else { continue };
            if let Fate::Over(failure) = socket.turn(datagram, packet, below, now) {
                self.close(at, failure, below);
            }
        }
        self.carried = None;
        self.bound_lingering(below, now);
    }

    /// Ends the sockets whose tunnel is gone or has another address.
    fn leave_links(&mut self, below: &mut impl Below, now: Instant) {
        let mut left = Vec::new();
        for (at, socket) in &mut self.sockets {
            let link = self.known.link(socket.port.link);
            let link = link.filter(|it| it.has(socket.near.ip()));
            match (link, &mut socket.kind) {
                (None, _) => left.push(at),
                (Some(link), Kind::Stream(tcp)) => {
                    tcp.connection.lower_mtu(link.mtu, random().unwrap_or(0), now);
                }
                (Some(_), Kind::Datagrams) => {}
            }
        }
        for at in left {
            self.close(at, Some(Failure::NetUnreachable), below);
        }
    }

    /// After a panic in [`Netstack::turn`]: ends the socket whose turn it was.
    pub(crate) fn break_off(&mut self, below: &mut impl Below) {
        if let Some(at) = self.carried.take().filter(|&at| self.sockets.contains(at)) {
            self.close(at, Some(Failure::Reset), below);
        }
    }

    /// How many sockets there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Opens the socket of a line; `None`: it is over already, or can't be.
    fn open(&mut self, line: &Arc<Line>, below: &mut impl Below, now: Instant) -> Option<usize> {
        if line.state().over.is_some() {
            return None;
        }
        match self.try_open(line, below, now) {
            Ok(at) => Some(at),
            Err(failure) => {
                line.end(&mut line.state(), Some(failure));
                None
            }
        }
    }

    fn try_open(
        &mut self,
        line: &Arc<Line>,
        below: &mut impl Below,
        now: Instant,
    ) -> Result<usize, Failure> {
        let Line { link, protocol, far, .. } = **line;
        let there = usable(below.ways(), link).ok_or(Failure::NetUnreachable)?;
        let address = there.address(far.ip()).ok_or(Failure::NetUnreachable)?;
        if far.port() == 0 || far.ip().is_unspecified() || far.ip().is_multicast() {
            return Err(Failure::NetUnreachable);
        }
        let mtu = there.mtu;
        let port = take_port(link, protocol, far, below)?;
        let near = SocketAddr::new(address, port.port);
        let kind = match protocol {
            Protocol::Tcp => {
                let seed = random().ok_or(Failure::Exhausted);
                let opened = seed.and_then(|seed| {
                    let opened = Connection::open(near, far, mtu, seed, now);
                    opened.ok_or(Failure::NetUnreachable)
                });
                let connection = opened.inspect_err(|_| below.release(&port))?;
                Kind::Stream(Box::new(Tcp {
                    connection,
                    progress: (None, now),
                    gone: None,
                    failure: None,
                    opened: false,
                }))
            }
            Protocol::Udp | Protocol::Icmp => Kind::Datagrams,
        };
        let line = Arc::clone(line);
        let is_datagrams = matches!(kind, Kind::Datagrams);
        let entry = self.sockets.vacant_entry();
        let at = entry.key();
        {
            let mut state = line.state();
            state.place = Some(at);
            state.near = is_datagrams.then_some(near);
            if is_datagrams {
                state.wake();
            }
        }
        entry.insert(Socket { line, port, near, kind, due: None });
        self.ports.insert(port, at);
        Ok(at)
    }

    fn close(&mut self, at: usize, failure: Option<Failure>, below: &mut impl Below) {
        let Some(socket) = self.sockets.try_remove(at) else { return };
        self.ports.remove(&socket.port);
        below.release(&socket.port);
        let mut state = socket.line.state();
        state.place = None;
        socket.line.end(&mut state, failure);
    }

    /// Resets connections that nobody waits for where there are too many.
    fn bound_lingering(&mut self, below: &mut impl Below, now: Instant) {
        let gone = |(at, socket): (usize, &Socket)| match &socket.kind {
            Kind::Stream(tcp) => tcp.gone.map(|since| (since, at)),
            Kind::Datagrams => None,
        };
        if self.sockets.len() <= LINGERING {
            return;
        }
        let mut lingering: Vec<_> = self.sockets.iter().filter_map(gone).collect();
        lingering.sort_unstable();
        let excess = lingering.len().saturating_sub(LINGERING);
        for (_, at) in lingering.drain(..excess) {
            let socket = &mut self.sockets[at];
            if let Kind::Stream(tcp) = &mut socket.kind {
                tcp.connection.abort();
                tcp.flush(socket.port.link, below, now);
            }
            self.close(at, None, below);
        }
    }
}

impl Drop for Netstack {
    fn drop(&mut self) {
        for (_, socket) in &self.sockets {
            socket.line.end(&mut socket.line.state(), Some(Failure::NetUnreachable));
        }
    }
}

impl Socket {
    /// Takes what came for it.
    fn take(&mut self, arrived: Arrived, below: &mut impl Below, now: Instant) {
        match (&mut self.kind, arrived) {
            (Kind::Stream(tcp), Arrived::Segment(packet)) => {
                let link = self.port.link;
                let mut emit = |packet: &[u8]| {
                    // What is lost here is sent again.
                    let _ = below.send(link, packet);
                };
                tcp.connection.take(&packet, now, &mut emit);
            }
            (Kind::Datagrams, Arrived::Datagram(datagram)) => {
                let mut state = self.line.state();
                if state.from_far.push(&datagram) {
                    state.wake();
                }
            }
            (kind, Arrived::Error { kind: icmp, code, rest, sequence }) => {
                let error = IcmpError { v6: self.near.is_ipv6(), kind: icmp, code };
                let Some(failure) = error.failure(rest) else { return };
                match (kind, failure) {
                    // A datagram's own protocol finds out, as on any path that tells nothing.
                    (Kind::Datagrams, Failure::TooBig { .. }) => {}
                    (Kind::Datagrams, failure) => {
                        let mut state = self.line.state();
                        state.fault = Some(failure);
                        state.wake();
                    }
                    (Kind::Stream(tcp), failure) => tcp.fail(failure, sequence, now),
                }
            }
            // The engine gives no port anything of another protocol.
            (Kind::Stream(_), Arrived::Datagram(_)) | (Kind::Datagrams, Arrived::Segment(_)) => {}
        }
    }

    fn turn(
        &mut self,
        datagram: &mut Vec<u8>,
        packet: &mut Vec<u8>,
        below: &mut impl Below,
        now: Instant,
    ) -> Fate {
        match &mut self.kind {
            Kind::Stream(tcp) => {
                tcp.pump(&self.line, self.near, now);
                tcp.flush(self.port.link, below, now);
                self.due = tcp.due(now);
                tcp.fate()
            }
            Kind::Datagrams => loop {
                datagram.resize(usize::from(u16::MAX), 0);
                let length = {
                    let mut state = self.line.look();
                    match state.to_far.pop(datagram) {
                        Some(length) => length,
                        None if state.gone => return Fate::Over(None),
                        None => return Fate::Stays,
                    }
                };
                let (link, far) = (self.port.link, self.port.far);
                let sent = send(link, (self.near, far), &datagram[..length], packet, below);
                if let Err(Unsent::Failed(failure)) = sent {
                    let mut state = self.line.state();
                    state.fault = Some(failure);
                    state.wake();
                }
            },
        }
    }
}

impl Tcp {
    /// Takes an ICMP error about a segment of that number.
    fn fail(&mut self, failure: Failure, sequence: u32, now: Instant) {
        if !self.connection.is_under_way(sequence) {
            return;
        }
        match failure {
            Failure::TooBig { mtu } => {
                self.connection.lower_mtu(mtu, random().unwrap_or(0), now);
            }
            Failure::Refused
            | Failure::Reset
            | Failure::NetUnreachable
            | Failure::HostUnreachable
            | Failure::Prohibited
            | Failure::TimedOut
            | Failure::Exhausted => {
                // RFC 5461 4.1: for good only while it is being opened.
                if self.connection.phase() == Phase::Opening {
                    self.failure = Some(failure);
                }
            }
        }
    }

    /// Moves bytes between client and stack, and the words of either to the other.
    fn pump(&mut self, line: &Line, near: SocketAddr, now: Instant) {
        let connection = &mut self.connection;
        if connection.progress() != self.progress.0 || connection.unacknowledged() == 0 {
            self.progress = (connection.progress(), now);
        } else if now.since(self.progress.1) >= UNACKNOWLEDGED && self.opened {
            connection.abort();
            self.failure = Some(Failure::TimedOut);
        }
        let mut state = line.look();
        let mut news = false;
        if !self.opened && matches!(connection.phase(), Phase::Open | Phase::Done) {
            self.opened = true;
            state.near = Some(near);
            news = true;
        }
        while connection.unread() > 0 {
            if state.from_far.room() == 0 {
                state.starved = true;
                break;
            }
            if connection.read(|bytes| state.from_far.write(bytes)) == 0 {
                break;
            }
            news = true;
        }
        while !state.to_far.is_empty() {
            let taken = connection.write(state.to_far.front());
            if taken == 0 {
                break;
            }
            state.to_far.consume(taken);
            news = true;
        }
        if connection.far_ended() && !state.far_ended {
            state.far_ended = true;
            news = true;
        }
        if state.gone {
            let since = *self.gone.get_or_insert(now);
            let unread = connection.unread() > 0 || !state.from_far.is_empty();
            let lingers = connection.phase() == Phase::Open && now.since(since) >= LINGER;
            if unread || lingers || state.aborted {
                connection.abort();
            }
        }
        if (state.ended || state.gone) && state.to_far.is_empty() && self.opened {
            connection.close();
        } else if state.gone && !self.opened {
            connection.abort();
        }
        if news {
            state.wake();
        }
    }

    fn flush(&mut self, link: LinkId, below: &mut impl Below, now: Instant) {
        let mut failed = None;
        let mut emit = |packet: &[u8]| {
            if let Err(Unsent::Failed(failure)) = below.send(link, packet) {
                failed = Some(failure);
            }
        };
        self.connection.flush(now, &mut emit);
        // As a connect that fails at once.
        if !self.opened && self.failure.is_none() {
            self.failure = failed;
        }
    }

    fn due(&mut self, now: Instant) -> Option<Instant> {
        let stack = self.connection.due(now);
        let waits = self.opened && self.connection.unacknowledged() > 0;
        let stuck = waits.then(|| self.progress.1 + UNACKNOWLEDGED);
        let lingers = self.connection.phase() == Phase::Open;
        let gone = self.gone.filter(|_| lingers).map(|since| since + LINGER);
        [stack, stuck, gone].into_iter().flatten().min()
    }

    fn fate(&self) -> Fate {
        if let Some(failure) = self.failure {
            return Fate::Over(Some(failure));
        }
        // What came before the end is read first.
        let over = self.connection.phase() == Phase::Closed
            && (self.connection.unread() == 0 || self.gone.is_some());
        match (over, self.connection.is_reset()) {
            (false, _) => Fate::Stays,
            (true, true) if self.opened => Fate::Over(Some(Failure::Reset)),
            (true, true) => Fate::Over(Some(Failure::Refused)),
            (true, false) => Fate::Over(None),
        }
    }
}

/// Sends a datagram, in pieces where it is too long for the tunnel.
fn send(
    link: LinkId,
    (near, far): (SocketAddr, SocketAddr),
    datagram: &[u8],
    packet: &mut Vec<u8>,
    below: &mut impl Below,
) -> Result<(), Unsent> {
    let mtu = usable(below.ways(), link).ok_or(Unsent::Failed(Failure::NetUnreachable))?.mtu;
    if !write_udp(packet, near, far, datagram) {
        return Ok(());
    }
    if packet.len() <= usize::from(mtu) {
        return below.send(link, packet);
    }
    let (ident, mut sent) = (random().unwrap_or(0) as u32, Ok(()));
    fragment_udp(near, far, datagram, (mtu, ident), |piece| {
        sent = below.send(link, piece);
        sent.is_ok()
    });
    sent
}

/// A tunnel that may be used.
fn usable(ways: &Ways, link: LinkId) -> Option<&Link> {
    ways.link(link).filter(|_| ways.is_usable(link.way()))
}

/// A port that nobody has towards that far side, and nobody can guess.
fn take_port(
    link: LinkId,
    protocol: Protocol,
    far: SocketAddr,
    below: &mut impl Below,
) -> Result<LinkPort, Failure> {
    for _ in 0..TRIES {
        let random = random().ok_or(Failure::Exhausted)?;
        let port = FIRST + (random % u64::from(u16::MAX - FIRST + 1)) as u16;
        let port = below.own_port_near(port, FIRST);
        let port = LinkPort { link, protocol, port, far };
        if below.reserve(&port) {
            return Ok(port);
        }
    }
    Err(Failure::Exhausted)
}

/// From the kernel's generator.
fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    let length = getrandom(&mut bytes, GetRandomFlags::empty()).ok()?;
    (length == bytes.len()).then_some(u64::from_ne_bytes(bytes))
}

/// Bytes that it takes to keep.
fn size(arrived: &Arrived) -> usize {
    size_of::<(LinkPort, Arrived)>()
        + match arrived {
            Arrived::Segment(bytes) | Arrived::Datagram(bytes) => bytes.len(),
            Arrived::Error { .. } => 0,
        }
}

impl fmt::Debug for Netstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netstack").field("sockets", &self.sockets.len()).finish_non_exhaustive()
    }
}
