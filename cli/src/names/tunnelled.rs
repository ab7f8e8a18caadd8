//! A resolver's way through a tunnel: sockets of the shard's own host inside it, which no route
//! of the kernel's leads elsewhere.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use dns::socket::{Datagrams, Stream, Target, Way};
use engine::{Failure, LinkId};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tunnel::driver::Handle;
use tunnel::egress::error::errno;
use tunnel::link::netstack;

/// The shard that has the tunnels, once it is there.
pub(super) type Shard = Arc<OnceLock<Handle>>;

/// Through one tunnel. Where it is not there, or not usable, everything fails at once.
#[derive(Debug)]
pub(super) struct Tunnelled {
    shard: Shard,
    link: LinkId,
}

impl Tunnelled {
    pub(super) fn new(shard: Shard, link: LinkId) -> Self {
        Self { shard, link }
    }

    fn shard(&self) -> Result<&Handle, Failure> {
        self.shard.get().ok_or(Failure::NetUnreachable)
    }

    fn connect(&self, target: &Target) -> Result<netstack::Stream, Failure> {
        self.shard()?.connect(self.link, target.address)
    }
}

impl Way for Tunnelled {
    fn connect_tcp(&self, target: Target) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let stream = self.connect(&target);
        Box::pin(async move {
            let stream = stream.map_err(told)?;
            poll_fn(|context| stream.poll_open(context)).await.map_err(told)?;
            Ok(Box::new(Connected(stream)) as Box<dyn Stream>)
        })
    }

    fn bind_udp(&self, target: &Target) -> io::Result<Arc<dyn Datagrams>> {
        let bound = self.shard().and_then(|shard| shard.bind(self.link, target.address));
        Ok(Arc::new(Bound(bound.map_err(told)?)))
    }

    fn is_tunnel(&self) -> bool {
        true
    }
}

/// With the errno that a socket of the kernel's would have.
fn told(failure: Failure) -> io::Error {
    errno(failure).into()
}

/// A connection as tokio sees it.
#[derive(Debug)]
struct Connected(netstack::Stream);

impl AsyncRead for Connected {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if room.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = self.0.poll_read(context, room.initialize_unfilled());
        let length = ready!(read).map_err(told)?;
        room.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, bytes).map_err(told)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end();
        Poll::Ready(Ok(()))
    }
}

/// A UDP socket as resolvers see it.
#[derive(Debug)]
struct Bound(netstack::Datagrams);

impl Datagrams for Bound {
    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.0.send(datagram).map_err(told)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn try_recv(&self, room: &mut [u8]) -> io::Result<usize> {
        self.0.receive(room).map_err(told)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(poll_fn(|context| self.0.poll_ready(context).map(Ok)))
    }

    fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        Ok(self.0.near())
    }
}
