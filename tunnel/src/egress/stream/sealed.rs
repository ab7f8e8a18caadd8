//! A connection whose bytes are TLS's: to a proxy that wants it.
//!
//! A short read of the socket says nothing here, so it is read until it has no more.

use std::io::ErrorKind;

use engine::{Engine, Failure, Instant};
use rustix::io::Errno;

use super::{Connection, Progress};
use crate::egress::error::failure;
use crate::egress::proxy::tls::{Brought, Session};
use crate::egress::proxy::{Fault, Refusal, Talk};

/// The end that a proxy has made. Before the handshake is over it knows nothing.
fn ended(session: &Session, talk: &Talk) -> Refusal {
    Refusal::Proxy(if session.is_handshaking() { Fault::Left } else { talk.ended() })
}

impl Connection {
    /// Talks on with the proxy as far as it goes without waiting; whether the far side is
    /// connected.
    pub(super) fn converse_sealed(
        &mut self,
        session: &mut Session,
        talk: &mut Talk,
    ) -> Result<bool, Refusal> {
        loop {
            // What is written before the handshake is over waits for it.
            let written = session.write(talk.to_send());
            talk.sent(written);
            let flushed = session.flush(&self.stream);
            match session.peek() {
                Ok(arrived) => {
                    let taken = talk.receive(arrived)?;
                    session.took(taken.bytes);
                    if taken.connected {
                        (self.readable, self.writable) = (true, true);
                        return Ok(true);
                    }
                    if taken.bytes > 0 {
                        continue;
                    }
                }
                Err(ErrorKind::WouldBlock) => {}
                Err(_) => return Err(ended(session, talk)),
            }
            match session.read_from(&self.stream) {
                Ok(Brought::Something) => {}
                // What it said before it went may say why.
                Ok(Brought::Nothing) if flushed.is_ok() => return Ok(false),
                Ok(Brought::Nothing | Brought::End) | Err(Fault::Left) => {
                    return Err(ended(session, talk));
                }
                Err(fault) => return Err(Refusal::Proxy(fault)),
            }
        }
    }

    /// Moves the app's bytes out; whether there are more to move at once.
    pub(super) fn carry_out_sealed(
        &mut self,
        session: &mut Session,
        engine: &mut Engine,
        now: Instant,
        mut turn: usize,
    ) -> bool {
        while self.writable {
            match session.flush(&self.stream) {
                Ok(true) => {}
                Ok(false) => {
                    self.writable = false;
                    return false;
                }
                Err(errno) => {
                    self.sealed_broken(errno);
                    return false;
                }
            }
            if turn == 0 {
                return true;
            }
            let written = engine.with_app_data(self.id, now, |data| {
                let written = session.write(&data[..data.len().min(turn)]);
                (written, written)
            });
            match written {
                None | Some(0) => return false,
                Some(written) => turn -= written,
            }
        }
        false
    }

    /// Moves the far side's bytes in.
    pub(super) fn carry_in_sealed(
        &mut self,
        session: &mut Session,
        engine: &mut Engine,
        now: Instant,
        mut turn: usize,
    ) -> Progress {
        loop {
            if turn == 0 {
                return Progress::More;
            }
            let read = engine.with_room(self.id, now, |room| {
                let lent = room.len().min(turn);
                match session.read(&mut room[..lent]) {
                    Ok(read) => (read, Ok(read)),
                    Err(kind) => (0, Err(kind)),
                }
            });
            match read {
                None => return self.broken.map_or(Progress::Blocked, Progress::Failed),
                Some(Ok(0)) => return self.broken.map_or(Progress::Ended, Progress::Failed),
                Some(Ok(read)) => turn -= read,
                Some(Err(ErrorKind::WouldBlock)) => {
                    if !self.readable {
                        return Progress::Blocked;
                    }
                    match session.read_from(&self.stream) {
                        // An end that was not announced shows at the next read.
                        Ok(Brought::Something | Brought::End) => {}
                        Ok(Brought::Nothing) => self.readable = false,
                        Err(_) => return self.sealed_reset(),
                    }
                }
                Some(Err(_)) => return self.sealed_reset(),
            }
        }
    }

    fn sealed_reset(&mut self) -> Progress {
        self.readable = false;
        Progress::Failed(self.broken.unwrap_or(Failure::Reset))
    }

    fn sealed_broken(&mut self, errno: Errno) {
        self.writable = false;
        self.readable = true;
        self.broken = Some(failure(errno, 0));
    }
}
