//! What carries a connection's bytes: a socket of the kernel's, or one of our own host's inside a
//! tunnel.
//!
//! Both are used without waiting, and say `EAGAIN` where they would have to. The readiness of a
//! socket is epoll's to tell; the other one says that it was woken ([`Wakes`]), and then it is used
//! until it says `EAGAIN`: it makes no edges.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use engine::Failure;
use rustix::io::Errno;

use super::error::{errno, failure};
use super::{Tag, tcp};
use crate::driver::Bell;
use crate::link::netstack;

/// A connection's bytes, both ways.
#[derive(Debug)]
pub(crate) enum Carrier {
    Kernel(tcp::Stream),
    Inside(Inside),
}

/// A connection through a tunnel.
#[derive(Debug)]
pub(crate) struct Inside {
    stream: netstack::Stream,
    waker: Waker,
}

/// The connections through tunnels that were woken.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    woken: Mutex<Vec<Tag>>,
    /// Rung where another thread wakes them.
    bell: Option<Arc<Bell>>,
}

/// One of them.
pub(crate) struct Sleeper {
    tag: Tag,
    wakes: Arc<Wakes>,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        let woken = &self.wakes.woken;
        woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.tag);
        if let Some(bell) = &self.wakes.bell {
            bell.ring();
        }
    }
}

impl Wakes {
    /// For what another shard wakes.
    pub(crate) fn rung_by(bell: Arc<Bell>) -> Self {
        Self { woken: Mutex::default(), bell: Some(bell) }
    }

    /// Takes those that were woken.
    pub(crate) fn take(&self) -> Vec<Tag> {
        std::mem::take(&mut self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sleeper {
    /// What wakes as that tag.
    pub(crate) fn waker(tag: Tag, wakes: &Arc<Wakes>) -> Waker {
        Waker::from(Arc::new(Self { tag, wakes: Arc::clone(wakes) }))
    }
}

impl Inside {
    /// A connection that is being opened, which wakes as that tag.
    pub(crate) fn new(stream: netstack::Stream, tag: Tag, wakes: &Arc<Wakes>) -> Self {
        let waker = Sleeper::waker(tag, wakes);
        // It is to be woken.
        let _ = stream.poll_open(&Context::from_waker(&waker));
        Self { stream, waker }
    }

    fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }
}

impl Carrier {
    /// How the connect went; `None`: nobody knows yet. `gone`: an error was signalled.
    pub(crate) fn opened(&self, gone: bool) -> Option<Result<(), Failure>> {
        match self {
            Self::Kernel(stream) => {
                // Without an error event there is none to take.
                let error = gone.then(|| stream.take_error()).flatten();
                Some(error.map_or(Ok(()), |errno| Err(failure(errno, 0))))
            }
            Self::Inside(inside) => match inside.stream.poll_open(&inside.context()) {
                Poll::Ready(opened) => Some(opened),
                Poll::Pending => None,
            },
        }
    }

    /// The kernel's socket.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Kernel(stream) => Some(stream.as_fd()),
            Self::Inside(_) => None,
        }
    }

    /// Has an end that is silent for a minute noticed. Where that can't be, the app notices.
    pub(crate) fn keep_alive(&self) {
        match self {
            Self::Kernel(stream) => {
                let _ = stream.keep_alive();
            }
            Self::Inside(_) => {}
        }
    }

    /// Our port, once it is open.
    pub(crate) fn port(&self) -> Option<u16> {
        let near: Option<SocketAddr> = match self {
            Self::Kernel(stream) => stream.local_addr().ok(),
            Self::Inside(inside) => inside.stream.near(),
        };
        near.map(|near| near.port())
    }

    /// Whether only `EAGAIN` says that there is no more, or no room, for now.
    pub(crate) fn has_no_edges(&self) -> bool {
        match self {
            Self::Kernel(_) => false,
            Self::Inside(_) => true,
        }
    }

    /// Whether nothing will come behind what waits to be read, where that is known.
    pub(crate) fn has_all(&self) -> bool {
        match self {
            Self::Kernel(_) => false,
            Self::Inside(inside) => inside.stream.has_all(),
        }
    }

    /// Whether an open connection has ended, or is gone, where epoll is not who tells.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Kernel(_) => false,
            Self::Inside(inside) => {
                // It is to be woken.
                let next = inside.stream.poll_peek(&inside.context(), &mut [0]);
                matches!(next, Poll::Ready(Ok(0) | Err(_))) || inside.stream.has_all()
            }
        }
    }

    /// Reads into `buf`. 0: the far side has ended its half.
    pub(crate) fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Kernel(stream) => stream.read(buf),
            Self::Inside(inside) => ready(inside.stream.poll_read(&inside.context(), buf)),
        }
    }

    /// Reads into `buf` what stays to be read.
    pub(crate) fn peek(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Kernel(stream) => stream.peek(buf),
            Self::Inside(inside) => ready(inside.stream.poll_peek(&inside.context(), buf)),
        }
    }

    /// Writes from `buf`, as much as fits.
    pub(crate) fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Kernel(stream) => stream.write(buf),
            Self::Inside(inside) => ready(inside.stream.poll_write(&inside.context(), buf)),
        }
    }

    /// Ends our half. Where it fails the connection is gone, which reading tells.
    pub(crate) fn end(&self) {
        match self {
            Self::Kernel(stream) => {
                let _ = stream.shutdown_write();
            }
            Self::Inside(inside) => inside.stream.end(),
        }
    }

    /// Cuts it.
    pub(crate) fn reset(self) {
        match self {
            Self::Kernel(stream) => stream.reset(),
            Self::Inside(inside) => inside.stream.abort(),
        }
    }
}

fn ready(poll: Poll<Result<usize, Failure>>) -> Result<usize, Errno> {
    match poll {
        Poll::Ready(done) => done.map_err(errno),
        Poll::Pending => Err(Errno::AGAIN),
    }
}
