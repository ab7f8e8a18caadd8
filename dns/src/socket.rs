//! Which way the sockets of a resolver leave.
//!
//! A [`Way`] opens them: the kernel's own routing past our capture ([`Direct`]), or whatever
//! its user makes of it. What is asked over UDP or QUIC needs [`Datagrams`], what is asked over
//! TCP, TLS or HTTPS a [`Stream`]; neither need be a socket of the kernel.
//!
//! A UDP socket here is connected: packets of others never reach it, and the kernel tells what
//! it has learned of the far side (ECONNREFUSED, EHOSTUNREACH). tokio's own UDP socket does not
//! wake for such an error in its poll functions, so this one waits for readable or error.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpSocket;

use crate::server::Device;

pub(crate) mod allowance;
pub(crate) mod provider;
pub(crate) mod quic;

/// A server's place: where a socket leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddr,
    /// The device behind which it is, whatever routing says.
    pub device: Option<Device>,
}

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Stream for T {}

/// Datagrams to and from one server, and from nobody else.
pub trait Datagrams: fmt::Debug + Send + Sync + 'static {
    /// Sends one.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room; else what is known of the far side
    /// or of the way to it.
    fn try_send(&self, datagram: &[u8]) -> io::Result<()>;

    /// Takes one, cut to `room`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; else what is known of the far side.
    fn try_recv(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Waits until [`try_recv`](Self::try_recv) has a datagram or an error. May be early.
    ///
    /// # Errors
    /// There is nothing to wait for any more.
    fn ready(&self) -> BoxFuture<'_, io::Result<()>>;

    /// The near end.
    ///
    /// # Errors
    /// The kernel's.
    fn local_address(&self) -> io::Result<SocketAddr>;
}

/// A way out for sockets. Its functions are called on a tokio runtime.
pub trait Way: fmt::Debug + Send + Sync + 'static {
    /// Connects to a server. The caller sets the time limit.
    ///
    /// # Errors
    /// With the kernel's errno, where the failure has one.
    fn connect_tcp(&self, target: Target) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Opens a socket to a server, with a source port that nobody can guess.
    ///
    /// # Errors
    /// With the kernel's errno, where the failure has one.
    fn bind_udp(&self, target: &Target) -> io::Result<Arc<dyn Datagrams>>;

    /// Whether it is a tunnel: private addresses from its servers are expected.
    fn is_tunnel(&self) -> bool;
}

/// The index of the uplink that leads to a server now, if a socket is to be bound to it.
pub type Uplink = Box<dyn Fn(&Target) -> Option<u32> + Send + Sync>;

/// The kernel's routing, past our own capture.
#[derive(Default)]
pub struct Direct {
    /// Of our own packets.
    mark: Option<u32>,
    uplink: Option<Uplink>,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("mark", &self.mark).finish_non_exhaustive()
    }
}

impl Direct {
    /// With the mark of our own packets, which needs CAP_NET_ADMIN.
    pub fn new(mark: Option<u32>) -> Self {
        Self { mark, uplink: None }
    }

    /// Binds each socket to the uplink that leads to its server when it is opened; one whose
    /// place names a device is asked there, whatever the uplink is. Whoever knows that it is
    /// another one by now resets the pool.
    pub fn bound(self, uplink: Uplink) -> Self {
        Self { uplink: Some(uplink), ..self }
    }

    /// A socket of the kernel that leaves this way, not yet connected.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&self, target: &Target, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(target.address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        let uplink = self.uplink.as_ref().and_then(|uplink| uplink(target));
        let index = match &target.device {
            Some(Device::Named(name)) => {
                socket.bind_device(Some(name.as_bytes()))?;
                None
            }
            Some(Device::Index(index)) => Some(*index),
            None => uplink,
        };
        if let Some(index) = index.and_then(NonZeroU32::new) {
            // SO_BINDTOIFINDEX, which is the same for both families.
            socket.bind_device_by_index_v4(Some(index))?;
        }
        Ok(socket)
    }
}

impl Way for Direct {
    fn connect_tcp(&self, target: Target) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let socket = self.open(&target, Type::STREAM, Protocol::TCP);
        Box::pin(async move {
            let socket = TcpSocket::from_std_stream(socket?.into());
            socket.set_nodelay(true)?;
            Ok(Box::new(socket.connect(target.address).await?) as Box<dyn Stream>)
        })
    }

    fn bind_udp(&self, target: &Target) -> io::Result<Arc<dyn Datagrams>> {
        let socket = self.open(target, Type::DGRAM, Protocol::UDP)?;
        // ip(7): without it only a closed port is told, not that no way leads to the host.
        if target.address.is_ipv4() {
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        // Connected without bind(2), it gets a port that the kernel's own CSPRNG chooses.
        socket.connect(&target.address.into())?;
        Ok(Arc::new(KernelDatagrams::new(socket.into())?))
    }

    fn is_tunnel(&self) -> bool {
        false
    }
}

/// A connected UDP socket of the kernel.
#[derive(Debug)]
pub struct KernelDatagrams(AsyncFd<UdpSocket>);

impl KernelDatagrams {
    const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

    /// Takes a connected socket that does not block.
    ///
    /// # Errors
    /// The runtime can't watch it.
    #[expect(deprecated, reason = "unsound for types that change their descriptor: this doesn't")]
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self(AsyncFd::with_interest(socket, Self::INTEREST)?))
    }
}

impl Datagrams for KernelDatagrams {
    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        self.0.get_ref().send(datagram).map(|_| ())
    }

    fn try_recv(&self, room: &mut [u8]) -> io::Result<usize> {
        // One after the other: of two interests at once tokio's `try_io` takes neither.
        match self.0.try_io(Interest::READABLE, |socket| socket.recv(room)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.try_io(Interest::ERROR, |socket| socket.recv(room))
            }
            done => done,
        }
    }

    fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.0.ready(Self::INTEREST).await.map(|_| ()) })
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn to(address: SocketAddr) -> Target {
        Target { address, device: None }
    }

    /// What tokio's poll functions miss.
    #[tokio::test]
    async fn a_refused_datagram_wakes_the_one_who_waits() {
        let started = Instant::now();
        let closed = UdpSocket::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
        let socket = Direct::default().bind_udp(&to(closed)).expect("a socket");
        socket.try_send(b"x").expect("sent");
        let mut room = [0; 16];
        let error = loop {
            match socket.try_recv(&mut room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(started.elapsed() < Duration::from_secs(5), "woken for nothing");
                    tokio::time::timeout(Duration::from_secs(5), socket.ready())
                        .await
                        .expect("woken")
                        .expect("watched");
                }
                Err(error) => break error,
                Ok(length) => panic!("{length} bytes of nobody"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn datagrams_pass_and_strangers_are_not_heard() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let stranger = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let direct = Direct::default();
        let socket = direct.bind_udp(&to(server.local_addr().expect("address"))).expect("a socket");
        let near = socket.local_address().expect("address");
        stranger.send_to(b"forged", near).expect("sent");
        server.send_to(b"true", near).expect("sent");
        socket.ready().await.expect("ready");
        let mut room = [0; 16];
        assert_eq!(socket.try_recv(&mut room).expect("one"), 4);
        assert_eq!(&room[..4], b"true");
        let none = socket.try_recv(&mut room).expect_err("the stranger's is not there");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_refused_connection_has_its_errno() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let refused = Direct::default().connect_tcp(to(address)).await;
        let Err(error) = refused else { panic!("connected to nobody") };
        assert_eq!(error.raw_os_error(), Some(111));
    }
}
