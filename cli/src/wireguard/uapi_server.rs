//! The socket on which `wg` asks for a tunnel: `/var/run/wireguard/NAME.sock`.
//!
//! Only root may connect: the socket is 0600 in a directory of root's own. A connection is read up to
//! an empty line, which ends a request, and may bring several. What holds keys is wiped; a
//! request, the connections and the time that each may take are bounded.
//!
//! A change is made in parts ([`Change::parts`]), so that the packets of others never wait for a long
//! one; the first part that fails ends it.
//!
//! [`Change::parts`]: tunnel::link::wireguard::Change::parts

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::LinkId;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};
use tunnel::driver::request::{Answer, LinkFailure, LinkOrder, Request};
use tunnel::driver::{Handle, Unasked};
use tunnel::link::wireguard::LinkError;
use zeroize::Zeroizing;

use super::uapi::{self, Operation};

/// Where `wg` looks.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// A tunnel's socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: another one in its place is not ours to remove.
    file: (u64, u64),
}

impl Listener {
    /// Binds the socket of the tunnel `name` in `directory` ([`DIRECTORY`]), which is made where it
    /// is missing. What a dead process left is replaced. Must be called on a runtime.
    ///
    /// # Errors
    /// Others may write to the directory, somebody answers there, something else lies there, or
    /// the system refuses.
    pub fn bind(directory: &Path, name: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let metadata = fs::metadata(directory)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            let why = format!("others may write to {}", directory.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, why));
        }
        let path = directory.join(format!("{name}.sock"));
        clear(&path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        // Nobody can connect before it listens.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600))?;
        rustix::net::listen(&socket, BACKLOG)?;
        let metadata = fs::symlink_metadata(&path)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self { listener, path, file: (metadata.dev(), metadata.ino()) })
    }
}

/// Removes what a dead process left.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            // It may be gone already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Answers for the tunnel `link` of the shard that has it, until it is dropped. `changed` is called
/// after each change that was made, as a whole or in part.
pub async fn serve(
    listener: Listener,
    shard: Handle,
    link: LinkId,
    changed: impl Fn() + Send + Sync + 'static,
) {
    let tunnel = Arc::new(Tunnel { shard, link, changed: Box::new(changed) });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Who comes when all are taken waits in the socket's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.listener.accept().await {
            Ok((stream, _)) => {
                let tunnel = Arc::clone(&tunnel);
                tokio::spawn(async move {
                    if let Err(error) = tunnel.converse(stream).await {
                        debug!("a connection of wg: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(code = "wireguard-accept", "a connection of wg could not be taken: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whom the requests are for.
struct Tunnel {
    shard: Handle,
    link: LinkId,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Tunnel {
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut buffer = Buffer::default();
        while let Some(length) = timeout(IDLE, buffer.request(&mut stream)).await?? {
            // Without the empty line.
            let answer = self.answer(&buffer.bytes[..length - 1]).await;
            buffer.take(length);
            timeout(IDLE, stream.write_all(answer.as_bytes())).await??;
        }
        Ok(())
    }

    async fn answer(&self, request: &[u8]) -> Zeroizing<String> {
        let parsed = std::str::from_utf8(request).map_err(|_| uapi::Fault::Operation);
        let operation = match parsed.and_then(uapi::parse) {
            Ok(operation) => operation,
            Err(fault) => {
                debug!("a request of wg: {fault}");
                return Zeroizing::new(uapi::outcome(None, Some(fault.errno())));
            }
        };
        let link = self.link;
        let errno = match &operation {
            Operation::Get => {
                let state = self.ask(|answer| LinkOrder::State { link, answer }).await;
                match state.map(|state| state.ok_or(Errno::NODEV)) {
                    Ok(Ok((state, _))) => return uapi::answer(&state),
                    Ok(Err(errno)) | Err(errno) => Some(errno),
                }
            }
            Operation::Set(change) => self.change(change).await.err(),
        };
        Zeroizing::new(uapi::outcome(Some(&operation), errno))
    }

    async fn change(&self, change: &tunnel::link::wireguard::Change) -> Result<(), Errno> {
        let link = self.link;
        for (at, part) in change.clone().parts().into_iter().enumerate() {
            let order = |answer| LinkOrder::Change { link, change: Box::new(part.clone()), answer };
            let made = self.ask(order).await.and_then(|made| made.map_err(errno));
            if made.is_ok() || at > 0 {
                (self.changed)();
            }
            made?;
        }
        Ok(())
    }

    async fn ask<T: Send + 'static>(
        &self,
        order: impl Fn(Answer<T>) -> LinkOrder,
    ) -> Result<T, Errno> {
        let deadline = Instant::now() + BUSY;
        let receiver = loop {
            let (sender, receiver) = oneshot::channel();
            let answer: Answer<T> = Box::new(|answer| drop(sender.send(answer)));
            match self.shard.ask(Request::Link(order(answer))) {
                Ok(()) => break receiver,
                Err(Unasked::Busy) if Instant::now() < deadline => sleep(RETRY).await,
                Err(Unasked::Busy) => return Err(Errno::BUSY),
                Err(Unasked::Gone) => return Err(Errno::NODEV),
            }
        };
        match timeout(PATIENCE, receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Errno::NODEV),
            Err(_) => Err(Errno::TIMEDOUT),
        }
    }
}

fn errno(failure: LinkFailure) -> Errno {
    match failure {
        LinkFailure::NoSuchLink => Errno::NODEV,
        LinkFailure::Link(
            LinkError::Socket(errno) | LinkError::Mark(errno) | LinkError::Bind { errno, .. },
        ) => errno,
        LinkFailure::Link(LinkError::Random) => Errno::NOBUFS,
    }
}

/// What was read of a connection. Wherever it has lain is wiped.
#[derive(Default)]
struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
}

impl Buffer {
    /// Reads until there is a whole request; its length, with its empty line. `None`: the other side
    /// has nothing more to ask.
    async fn request(&mut self, stream: &mut UnixStream) -> io::Result<Option<usize>> {
        let mut looked = 0;
        loop {
            if let Some(at) = self.bytes[looked..].windows(2).position(|two| two == b"\n\n") {
                return Ok(Some(looked + at + 2));
            }
            looked = self.bytes.len().saturating_sub(1);
            if self.bytes.len() == REQUEST {
                return Err(ErrorKind::FileTooLarge.into());
            }
            self.make_room();
            let room = self.bytes.capacity().min(REQUEST) - self.bytes.len();
            let mut limited = (&mut *stream).take(room as u64);
            if limited.read_buf(&mut *self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Moves to a longer buffer when this one is full: a vector that grows leaves a copy.
    fn make_room(&mut self) {
        if self.bytes.len() == self.bytes.capacity() {
            let mut longer = Zeroizing::new(Vec::with_capacity((self.bytes.len() * 2).max(PIECE)));
            longer.extend_from_slice(&self.bytes);
            self.bytes = longer;
        }
    }

    /// The first `length` bytes are done with.
    fn take(&mut self, length: usize) {
        let rest = &self.bytes[length..];
        let mut bytes = Zeroizing::new(Vec::with_capacity(rest.len().max(PIECE)));
        bytes.extend_from_slice(rest);
        self.bytes = bytes;
    }
}

/// Connections at once.
const CONNECTIONS: usize = 8;
/// ... and that may wait to be taken.
const BACKLOG: i32 = 16;
/// Bytes of the longest request: 260,000 allowed addresses.
const REQUEST: usize = 16 << 20;
/// Bytes of a buffer to begin with.
const PIECE: usize = 4096;
/// How long a request may take to come, and an answer to be read.
const IDLE: Duration = Duration::from_secs(10);
/// How long a shard may take to answer, and how long to take a request.
const PATIENCE: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(2);
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
