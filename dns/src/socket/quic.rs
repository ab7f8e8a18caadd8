//! quinn's view of [`Datagrams`], which also remembers what the kernel said of the far side:
//! of a failed connection quinn tells that it failed alone.

use std::fmt;
use std::future::Future as _;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::Datagrams;
use super::allowance::Allowance;

/// A socket for one QUIC endpoint, which has one peer.
pub(crate) struct QuicSocket {
    datagrams: Arc<dyn Datagrams>,
    peer: SocketAddr,
    allowance: Allowance,
    /// One task receives, so one wait is enough.
    waiting: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
    fault: Mutex<Option<io::Error>>,
}

impl QuicSocket {
    pub(crate) fn new(
        datagrams: Arc<dyn Datagrams>,
        peer: SocketAddr,
        allowance: Allowance,
    ) -> Self {
        Self { datagrams, peer, allowance, waiting: Mutex::default(), fault: Mutex::default() }
    }

    /// What the kernel said, once.
    pub(crate) fn take_fault(&self) -> Option<io::Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: &io::Error) {
        if let Some(errno) = error.raw_os_error() {
            let error = io::Error::from_raw_os_error(errno);
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }
}

impl fmt::Debug for QuicSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSocket").field("datagrams", &self.datagrams).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Pause(None))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.datagrams.try_send(transmit.contents);
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.note(error);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(wait) = waiting.as_mut() {
                let woken = ready!(wait.as_mut().poll(cx));
                *waiting = None;
                woken?;
            }
            self.allowance.left()?;
            match self.datagrams.try_recv(buffer) {
                Ok(len) => {
                    self.allowance.spend(len);
                    let addr = self.peer;
                    *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let datagrams = Arc::clone(&self.datagrams);
                    *waiting = Some(Box::pin(async move { datagrams.ready().await }));
                }
                Err(error) => {
                    self.note(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.datagrams.local_address()
    }
}

/// A send buffer that is full has room a moment later; to watch every socket for that would
/// wake its reader for each datagram sent.
#[derive(Debug)]
struct Pause(Option<Pin<Box<tokio::time::Sleep>>>);

impl UdpPoller for Pause {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        const PAUSE: Duration = Duration::from_millis(1);
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        ready!(sleep.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
