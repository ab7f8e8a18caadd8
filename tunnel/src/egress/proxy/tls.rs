//! TLS towards a proxy, pumped by the shard between socket and rings.
//!
//! rustls does no input and output of its own. Its buffers are bounded: not more than a
//! record's worth of the app's bytes is taken before the last is with the kernel, and nothing
//! is read while the ring has no room. An end that the proxy's TLS did not announce may be
//! forged (RFC 8446 6.1): to the app it is a reset.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::{ANSWER, Fault};
use crate::egress::carrier::Carrier;

/// Bytes of the app that are taken at once: two records.
const TAKEN: usize = 32 * 1024;

/// Whom to trust at a proxy, and who it must be.
#[derive(Clone)]
pub struct Tls {
    /// Roots, and our own certificate.
    pub config: Arc<ClientConfig>,
    /// The name, or the address, that its certificate holds.
    pub name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One connection's TLS.
pub(crate) struct Session {
    tls: ClientConnection,
    /// What the proxy sent while it was talked to, and a flow's first bytes behind it.
    held: Vec<u8>,
    ending: Ending,
}

/// How far our own half's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    /// Announced, and still on its way into the socket.
    Announced,
    Ended,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brought {
    /// Perhaps bytes for the app, perhaps not.
    Something,
    /// The socket has no more now.
    Nothing,
    /// The other side has ended its connection.
    End,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ending", &self.ending).finish_non_exhaustive()
    }
}

impl Session {
    /// Begins.
    ///
    /// # Errors
    /// The cryptography refuses.
    pub(crate) fn new(tls: &Tls) -> Result<Self, Fault> {
        let mut tls = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone())
            .map_err(|_| Fault::Failed)?;
        tls.set_buffer_limit(Some(TAKEN));
        Ok(Self { tls, held: Vec::new(), ending: Ending::Open })
    }

    /// Whether it is not known yet who the proxy is.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Takes plain bytes to be sent; how many.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        // It fails only where its buffer is full, and says so by taking less.
        self.tls.writer().write(bytes).unwrap_or(0)
    }

    /// Sends what waits; whether all of it is with the kernel.
    pub(crate) fn flush(&mut self, stream: &Carrier) -> Result<bool, Errno> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Raw(stream)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        if self.ending == Ending::Announced {
            self.ending = Ending::Ended;
            stream.end();
        }
        Ok(true)
    }

    /// Announces the end of our half; it follows what waits.
    pub(crate) fn end(&mut self, stream: &Carrier) {
        if self.ending == Ending::Open {
            self.ending = Ending::Announced;
            self.tls.send_close_notify();
        }
        // Where it does not all fit now, the next flush goes on.
        let _ = self.flush(stream);
    }

    /// Reads from the socket once.
    ///
    /// # Errors
    /// It is not the proxy that is wanted, or no TLS.
    pub(crate) fn read_from(&mut self, stream: &Carrier) -> Result<Brought, Fault> {
        match self.tls.read_tls(&mut Raw(stream)) {
            Ok(0) => return Ok(Brought::End),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Brought::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Brought::Something),
            Err(_) => return Err(Fault::Left),
        }
        let processed = self.tls.process_new_packets();
        // An answer of the handshake, or the alert that says what is wrong.
        let flushed = self.flush(stream);
        match processed {
            Ok(_) => flushed.map(|_| Brought::Something).map_err(|_| Fault::Left),
            Err(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Err(Fault::Certificate)
            }
            // It wants a certificate of ours, or another one.
            Err(rustls::Error::AlertReceived(_)) => Err(Fault::Login),
            Err(_) => Err(Fault::Garbled),
        }
    }

    /// Plain bytes that have come. As of a socket: 0 is the announced end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, ErrorKind> {
        if self.held.is_empty() {
            return self.tls.reader().read(into).map_err(|error| error.kind());
        }
        let length = self.held.len().min(into.len());
        into[..length].copy_from_slice(&self.held[..length]);
        self.took(length);
        Ok(length)
    }

    /// All plain bytes that have come and were not taken, up to [`ANSWER`].
    pub(crate) fn peek(&mut self) -> Result<&[u8], ErrorKind> {
        let before = self.held.len();
        self.held.resize(ANSWER, 0);
        let read = match self.held.get_mut(before..) {
            Some(room) if !room.is_empty() => self.tls.reader().read(room),
            Some(_) | None => Ok(0),
        };
        self.held.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) if before < ANSWER => Err(ErrorKind::UnexpectedEof),
            Ok(_) => Ok(&self.held),
            Err(error) => Err(error.kind()),
        }
    }

    /// So many of the bytes that were looked at are done with.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.held.drain(..bytes.min(self.held.len()));
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }
}

/// The socket as rustls wants it.
struct Raw<'a>(&'a Carrier);

impl Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.read(into)?)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.write(bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
