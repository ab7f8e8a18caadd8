//! A connection towards the far side and what is known of its readiness.
//!
//! Bytes pass between the socket and the engine's rings in place: the system call runs
//! inside the closure that lends the ring.

mod sealed;

use engine::{Engine, Failure, FlowId, Instant};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::carrier::Carrier;
use super::error::failure;
use super::proxy::tls::Session;
use super::proxy::{self, ANSWER, Fault, Refusal, Talk};

/// One connection and its edges.
#[derive(Debug)]
pub(crate) struct Connection {
    id: FlowId,
    stream: Carrier,
    phase: Phase,
    /// To a proxy that wants TLS; lent while it is used.
    session: Option<Box<Session>>,
    /// An error or a hang-up was signalled.
    gone: bool,
    readable: bool,
    writable: bool,
    /// The far side's end, an error or urgent data was signalled: a short read does not say
    /// that there is no more.
    exhaust: bool,
    /// A write failed. What came before is still read.
    broken: Option<Failure>,
}

/// How far a connection has come.
#[derive(Debug)]
enum Phase {
    /// Towards the far side, or the proxy that is to be talked to then.
    Connecting(Option<Box<Talk>>),
    /// With the proxy.
    Talking(Box<Talk>),
    /// Bytes may move.
    Open,
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No more bytes now, or no room for them.
    Blocked,
    /// The turn is over, there may be more.
    More,
    /// The far side has ended its half; every byte before was handed over.
    Ended,
    /// The connection is gone.
    Failed(Failure),
}

impl Connection {
    pub(crate) fn new(
        id: FlowId,
        stream: Carrier,
        talk: Option<Box<Talk>>,
        session: Option<Box<Session>>,
    ) -> Self {
        Self {
            id,
            stream,
            phase: Phase::Connecting(talk),
            session,
            gone: false,
            readable: false,
            writable: false,
            exhaust: false,
            broken: None,
        }
    }

    pub(crate) fn id(&self) -> FlowId {
        self.id
    }

    /// Notes an event. `false`: the connection is not open yet, see [`Connection::open`].
    pub(crate) fn ready(&mut self, flags: EventFlags) -> bool {
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.gone |= gone;
        self.readable |= gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= gone || flags.contains(EventFlags::OUT);
        self.exhaust |= gone || flags.intersects(EventFlags::RDHUP | EventFlags::PRI);
        matches!(self.phase, Phase::Open)
    }

    /// After an event, until the connection is open: its local port, or why there is none.
    /// `None`: the proxy has not answered yet.
    pub(crate) fn open(&mut self) -> Option<Result<u16, Refusal>> {
        match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Open => None,
            Phase::Connecting(talk) => match (self.stream.opened(self.gone), talk) {
                (None, talk) => {
                    self.phase = Phase::Connecting(talk);
                    None
                }
                (Some(Err(failure)), None) => Some(Err(Refusal::Far(failure))),
                (Some(Err(failure)), Some(talk)) => {
                    let refusal = proxy::unreachable(failure);
                    talk.note(Err(refusal));
                    Some(Err(refusal))
                }
                (Some(Ok(())), None) => Some(self.local_port()),
                (Some(Ok(())), Some(talk)) => self.talk(talk),
            },
            Phase::Talking(talk) => self.talk(talk),
        }
    }

    /// Whether a proxy is still at its own part of the talk.
    pub(crate) fn awaits_proxy(&self) -> bool {
        match &self.phase {
            Phase::Connecting(talk) => talk.is_some(),
            Phase::Talking(talk) => {
                let handshaking = self.session.as_ref().is_some_and(|tls| tls.is_handshaking());
                handshaking || !talk.has_asked()
            }
            Phase::Open => false,
        }
    }

    /// Whether nobody has answered its connect.
    pub(crate) fn is_connecting(&self) -> bool {
        match &self.phase {
            Phase::Connecting(_) => true,
            Phase::Talking(_) | Phase::Open => false,
        }
    }

    /// Whether all is seen that a probe is to see.
    pub(crate) fn is_content(&self) -> bool {
        match &self.phase {
            Phase::Talking(talk) => talk.is_content() && !self.awaits_proxy(),
            Phase::Connecting(_) => false,
            Phase::Open => true,
        }
    }

    /// Whether it is a probe that waits for the proxy's answer.
    pub(crate) fn wants_answer(&self) -> bool {
        matches!(&self.phase, Phase::Talking(talk) if talk.wants_answer())
    }

    /// The proxy knows what it is to do, and has said nothing for long.
    pub(crate) fn doubt(&self) {
        if let Phase::Talking(talk) = &self.phase {
            talk.doubt();
        }
    }

    /// The proxy has not done its part in time.
    pub(crate) fn give_up(&self) -> Refusal {
        let refusal = Refusal::Proxy(Fault::Silent);
        match &self.phase {
            Phase::Connecting(Some(talk)) | Phase::Talking(talk) => talk.note(Err(refusal)),
            Phase::Connecting(None) | Phase::Open => {}
        }
        refusal
    }

    fn talk(&mut self, mut talk: Box<Talk>) -> Option<Result<u16, Refusal>> {
        let mut session = self.session.take();
        let talked = match &mut session {
            Some(session) => self.converse_sealed(session, &mut talk),
            None => self.converse(&mut talk),
        };
        self.session = session;
        match talked {
            Ok(true) => {
                talk.note(Ok(()));
                Some(self.local_port())
            }
            Ok(false) => {
                self.phase = Phase::Talking(talk);
                None
            }
            Err(refusal) => {
                talk.note(Err(refusal));
                Some(Err(refusal))
            }
        }
    }

    /// Talks on as far as it goes without waiting; whether the far side is connected.
    fn converse(&mut self, talk: &mut Talk) -> Result<bool, Refusal> {
        let connected = converse(&self.stream, talk, self.exhaust)?;
        if connected {
            // Of what is there already no edge tells again.
            (self.readable, self.writable) = (true, true);
        }
        Ok(connected)
    }

    fn local_port(&self) -> Result<u16, Refusal> {
        self.stream.port().ok_or(Refusal::Far(Failure::Reset))
    }

    /// Moves the app's bytes out; whether there are more to move at once.
    pub(crate) fn carry_out(&mut self, engine: &mut Engine, now: Instant, mut turn: usize) -> bool {
        if let Some(mut session) = self.session.take() {
            let more = self.carry_out_sealed(&mut session, engine, now, turn);
            self.session = Some(session);
            return more;
        }
        while self.writable {
            if turn == 0 {
                return true;
            }
            let stream = &self.stream;
            let written = engine.with_app_data(self.id, now, |data| {
                let lent = data.len().min(turn);
                match stream.write(&data[..lent]) {
                    Ok(written) => (written, Ok((written, lent))),
                    Err(errno) => (0, Err(errno)),
                }
            });
            match written {
                None => return false,
                Some(Ok((written, lent))) => {
                    turn -= written;
                    self.writable = written == lent || self.stream.has_no_edges();
                }
                Some(Err(Errno::INTR)) => {}
                Some(Err(Errno::AGAIN)) => self.writable = false,
                Some(Err(errno)) => {
                    self.writable = false;
                    self.readable = true;
                    self.exhaust = true;
                    self.broken = Some(failure(errno, 0));
                }
            }
        }
        false
    }

    /// Moves the far side's bytes in.
    pub(crate) fn carry_in(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        mut turn: usize,
    ) -> Progress {
        if let Some(mut session) = self.session.take() {
            let progress = self.carry_in_sealed(&mut session, engine, now, turn);
            self.session = Some(session);
            return progress;
        }
        while self.readable {
            if turn == 0 {
                return Progress::More;
            }
            let stream = &self.stream;
            let read = engine.with_room(self.id, now, |room| {
                let lent = room.len().min(turn);
                match stream.read(&mut room[..lent]) {
                    Ok(read) => (read, Ok((read, lent))),
                    Err(errno) => (0, Err(errno)),
                }
            });
            match read {
                // A program that only writes must learn of the reset, though what it does not
                // read leaves no room to reach it.
                None => return self.broken.map_or(Progress::Blocked, Progress::Failed),
                Some(Ok((0, _))) => {
                    self.readable = false;
                    return self.broken.map_or(Progress::Ended, Progress::Failed);
                }
                Some(Ok((read, lent))) => {
                    turn -= read;
                    // With an end seen there is no further edge: read until it shows.
                    self.readable = read == lent || self.exhaust || self.stream.has_no_edges();
                }
                Some(Err(Errno::INTR)) => {}
                Some(Err(Errno::AGAIN)) => self.readable = false,
                Some(Err(errno)) => {
                    self.readable = false;
                    return Progress::Failed(failure(errno, 0));
                }
            }
        }
        Progress::Blocked
    }

    pub(crate) fn shutdown(&mut self) {
        if let Some(session) = &mut self.session {
            return session.end(&self.stream);
        }
        self.stream.end();
    }

    pub(crate) fn reset(self) {
        self.stream.reset();
    }
}

/// Talks with a proxy as far as it goes without waiting; whether it has done what it was asked.
/// What has arrived is only looked at, so that what the far side sent is still in the socket
/// then. `exhaust`: the proxy has ended its half behind what has arrived.
pub(crate) fn converse(stream: &Carrier, talk: &mut Talk, exhaust: bool) -> Result<bool, Refusal> {
    let mut arrived = [0; ANSWER];
    loop {
        while !talk.to_send().is_empty() {
            match stream.write(talk.to_send()) {
                Ok(written) => talk.sent(written),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // What it said before it went may say why.
                Err(_) => break,
            }
        }
        let read = match stream.peek(&mut arrived) {
            Ok(0) => return Err(Refusal::Proxy(talk.ended())),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(false),
            Err(_) => return Err(Refusal::Proxy(talk.ended())),
        };
        let taken = talk.receive(&arrived[..read])?;
        if taken.bytes > 0 {
            // They are there.
            let _ = stream.read(&mut arrived[..taken.bytes]);
        }
        if taken.connected {
            return Ok(true);
        }
        if taken.bytes == 0 {
            let all = exhaust || stream.has_all();
            return if all { Err(Refusal::Proxy(talk.ended())) } else { Ok(false) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Memory;
    use crate::egress::Sockets;
    use crate::link::netstack::{Board, Netstack};
    use engine::{DeviceName, Egress};
    use rustix::event::{Timespec, epoll};
    use rustix::net::{SendFlags, send};
    use std::net::{IpAddr, TcpListener};

    /// A read stops at the urgent byte, and what lies behind it makes no edge of its own.
    #[test]
    fn urgent_data_stops_no_reader_and_is_not_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (device, _app) = Memory::pair(true).unwrap();
        let bell = std::sync::Arc::new(crate::driver::Bell::new().unwrap());
        let netstack = Netstack::new(Board::new(bell));
        let mut sockets = Sockets::new(device, false, netstack);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let id = FlowId::from_bits(0);
        let egress = Egress {
            address: IpAddr::from([127, 0, 0, 1]),
            device: DeviceName::new("lo").unwrap(),
        };
        let to = listener.local_addr().unwrap();
        assert!(sockets.connect(&epoll, id, to, egress, 1, None).is_none());
        let (far, _) = listener.accept().unwrap();
        send(&far, b"abc", SendFlags::empty()).unwrap();
        send(&far, b"d", SendFlags::OOB).unwrap();
        send(&far, b"efg", SendFlags::empty()).unwrap();
        let stream = sockets.stream(id).unwrap();
        let mut events = Vec::with_capacity(1);
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).unwrap();
        let flags = events[0].flags;
        stream.ready(flags);
        assert!(stream.exhaust, "{flags:?}");
        let mut all = Vec::new();
        let mut buf = [0; 16];
        while let Ok(read) = stream.stream.read(&mut buf) {
            assert!(read < buf.len(), "short");
            all.extend_from_slice(&buf[..read]);
        }
        assert_eq!(all, b"abcdefg");
    }
}
