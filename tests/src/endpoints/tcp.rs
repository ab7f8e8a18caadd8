//! TCP servers: one listener for IPv4 and IPv6, a thread a connection, and for
//! each connection a record of how the far side saw it end.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockRef, Socket, Type};

use super::pattern::Pattern;
use super::{PATIENCE, SILENCE};
use crate::lab::Netns;

/// The seed of what [`source`] sends and [`sink`] demands.
pub const SEED: u64 = 0x7475_6e6e_656c_6400;

/// One connection, as its far side saw it.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who connected.
    pub peer: SocketAddr,
    /// Bytes received.
    pub received: u64,
    /// The error it ended with; none when it ended as its server meant it to.
    pub error: Option<i32>,
}

/// A listening server.
#[derive(Debug)]
pub struct TcpServer {
    port: u16,
    listener: Arc<Socket>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    sessions: Arc<Mutex<Vec<Session>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a server does with a connection: the bytes it received, or its error.
type Served = io::Result<u64>;

impl TcpServer {
    /// Listens on every address of the namespace; port 0 takes a free one.
    /// `serve` runs on a thread for each connection.
    pub fn start(
        netns: &Netns,
        port: u16,
        serve: impl Fn(&mut TcpStream) -> Served + Clone + Send + 'static,
    ) -> Result<Self> {
        Self::listen(netns, port, move |mut stream, peer, sessions| {
            let serve = serve.clone();
            thread::spawn(move || {
                let served = prepare(&stream).and_then(|()| serve(&mut stream));
                // The record stands before the connection ends: a client that saw the end finds it.
                record(&sessions, peer, &served);
            });
        })
    }

    /// Listens and serves every connection on the accepting thread itself, one
    /// after the other: for many short ones.
    pub fn start_inline(
        netns: &Netns,
        port: u16,
        serve: impl Fn(&mut TcpStream) -> Served + Send + 'static,
    ) -> Result<Self> {
        Self::listen(netns, port, move |mut stream, _, _| {
            // Counted by `accepted`; a list of a hundred thousand sessions helps nobody.
            let _ = serve(&mut stream);
        })
    }

    /// Listens and keeps every connection open without a thread of its own.
    pub fn hold(netns: &Netns, port: u16) -> Result<Self> {
        let mut held = Vec::new();
        Self::listen(netns, port, move |stream, _, _| held.push(stream))
    }

    fn listen(
        netns: &Netns,
        port: u16,
        mut take: impl FnMut(TcpStream, SocketAddr, Arc<Mutex<Vec<Session>>>) + Send + 'static,
    ) -> Result<Self> {
        let listener = Arc::new(
            netns.run(|| listener(port)).with_context(|| format!("listen on port {port}"))?,
        );
        let port = listener.local_addr()?.as_socket().map_or(0, |address| address.port());
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicU64::new(0));
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let accepting = TcpListener::from(listener.try_clone()?);
        let thread = thread::spawn({
            let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
            let sessions = Arc::clone(&sessions);
            move || {
                while !stop.load(Ordering::Acquire) {
                    match accepting.accept() {
                        Ok((stream, peer)) => {
                            accepted.fetch_add(1, Ordering::AcqRel);
                            take(stream, peer, Arc::clone(&sessions));
                        }
                        // The shutdown of `drop`, or a connection that was reset in the queue.
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            }
        });
        Ok(Self { port, listener, stop, accepted, sessions, thread: Some(thread) })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    /// Of these, those that have ended.
    pub fn ended(&self) -> usize {
        self.sessions.lock().expect("no holder panics").len()
    }

    /// Waits until `count` connections have ended and gives them all.
    pub fn sessions(&self, count: usize) -> Result<Vec<Session>> {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let sessions = self.sessions.lock().expect("no holder panics").clone();
            if sessions.len() >= count {
                return Ok(sessions);
            }
            ensure!(
                Instant::now() < limit,
                "{count} ended connections expected at the server, {} seen ({} accepted): {sessions:?}",
                sessions.len(),
                self.accepted()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes accept(2).
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listener(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))
}

fn record(sessions: &Mutex<Vec<Session>>, peer: SocketAddr, served: &Served) {
    let (received, error) = match served {
        Ok(received) => (*received, None),
        Err(error) => (0, Some(error.raw_os_error().unwrap_or(0))),
    };
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    sessions.lock().expect("no holder panics").push(Session { peer, received, error });
}

/// Sends back what comes until the other side ends, then ends too.
pub fn echo(stream: &mut TcpStream) -> Served {
    let mut reader = stream.try_clone()?;
    io::copy(&mut reader, stream)
}

/// Sends `length` bytes of the pattern and closes: the far side ends first.
pub fn source(length: u64) -> impl Fn(&mut TcpStream) -> Served + Clone + Send + 'static {
    move |stream| {
        send_pattern(stream, length)?;
        stream.shutdown(Shutdown::Write)?;
        // Until the other side has ended too: closing with bytes unread would be a reset.
        drain(stream)
    }
}

/// Takes bytes to the end, demands the pattern, then says how many came.
pub fn sink(stream: &mut TcpStream) -> Served {
    let received = receive_pattern(stream)?;
    writeln!(stream, "{received}")?;
    Ok(received)
}

/// Reads to the end of the other side, and only then sends everything back.
pub fn answer_after_end(stream: &mut TcpStream) -> Served {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// Reads one byte, says one, and closes with a reset.
pub fn reset_after_one(stream: &mut TcpStream) -> Served {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    // The answer must be on its way before the reset, which may overtake nothing but discards what is queued.
    thread::sleep(Duration::from_millis(50));
    SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
    Ok(1)
}

/// Says one byte and closes at once.
pub fn one_byte_and_close(stream: &mut TcpStream) -> Served {
    stream.write_all(b"!")?;
    Ok(0)
}

/// Reads nothing, for a while: the sender must feel it.
pub fn deaf(seconds: u64) -> impl Fn(&mut TcpStream) -> Served + Clone + Send + 'static {
    move |stream| {
        thread::sleep(Duration::from_secs(seconds));
        drain(stream)
    }
}

/// Reads until the other side ends or resets.
pub fn drain(stream: &mut TcpStream) -> Served {
    io::copy(stream, &mut io::sink())
}

/// Writes `length` bytes of the pattern.
pub fn send_pattern(stream: &mut impl Write, length: u64) -> io::Result<()> {
    let pattern = Pattern::new(SEED);
    let mut buffer = vec![0; 256 * 1024];
    let mut sent = 0;
    while sent < length {
        let size = usize::try_from(length - sent).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(sent, &mut buffer[..size]);
        stream.write_all(&buffer[..size])?;
        sent += size as u64;
    }
    Ok(())
}

/// Reads the pattern to the end; a byte that differs is an error of kind
/// `InvalidData` that names its place.
pub fn receive_pattern(stream: &mut impl Read) -> io::Result<u64> {
    let pattern = Pattern::new(SEED);
    let mut buffer = vec![0; 256 * 1024];
    let mut received = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(received);
        }
        pattern.check(received, &buffer[..length]).map_err(|differs| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{differs:?}"))
        })?;
        received += length as u64;
    }
}
