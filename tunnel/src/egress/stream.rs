//! A TCP socket towards the far side and what is known of its readiness.
//!
//! Bytes pass between the socket and the engine's rings in place: the system call runs
//! inside the closure that lends the ring.

use engine::{Engine, Failure, FlowId, Instant};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::error::failure;
use super::tcp::Stream;

/// One connection and its edges.
#[derive(Debug)]
pub(crate) struct Connection {
    id: FlowId,
    stream: Stream,
    connecting: bool,
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
    pub(crate) fn new(id: FlowId, stream: Stream) -> Self {
        Self {
            id,
            stream,
            connecting: true,
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

    /// Notes an event. `false`: the connect has an answer, see [`Connection::finish_connect`].
    pub(crate) fn ready(&mut self, flags: EventFlags) -> bool {
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.gone |= gone;
        self.readable |= gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= gone || flags.contains(EventFlags::OUT);
        self.exhaust |= gone || flags.intersects(EventFlags::RDHUP | EventFlags::PRI);
        !self.connecting
    }

    /// The local port, or why there is no connection.
    pub(crate) fn finish_connect(&mut self) -> Result<u16, Failure> {
        // Without an error event there is none to take.
        if self.gone
            && let Some(errno) = self.stream.take_error()
        {
            return Err(failure(errno, 0));
        }
        self.connecting = false;
        self.stream.local_addr().map(|a| a.port()).map_err(|_| Failure::Reset)
    }

    /// Moves the app's bytes out; whether there are more to move at once.
    pub(crate) fn carry_out(&mut self, engine: &mut Engine, now: Instant, mut turn: usize) -> bool {
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
                    self.writable = written == lent;
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
                    self.readable = read == lent || self.exhaust;
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

    pub(crate) fn shutdown(&self) {
        // Where it fails the connection is gone, which reading tells.
        let _ = self.stream.shutdown_write();
    }

    pub(crate) fn reset(self) {
        self.stream.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Memory;
    use crate::egress::Sockets;
    use engine::{DeviceName, Egress};
    use rustix::event::{Timespec, epoll};
    use rustix::net::{SendFlags, send};
    use std::net::{IpAddr, TcpListener};

    /// A read stops at the urgent byte, and what lies behind it makes no edge of its own.
    #[test]
    fn urgent_data_stops_no_reader_and_is_not_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (device, _app) = Memory::pair(true).unwrap();
        let mut sockets = Sockets::new(device, false);
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
