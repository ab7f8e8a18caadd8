//! A socket's two ends on two threads: what a client reads and writes, and what the shard does.
//!
//! # Theory of operation
//!
//! A [`Line`] has a queue of bytes each way, bounded, under a lock that either side holds for a
//! copy and no longer. A full queue is the back-pressure: the client's write waits, and what the
//! far side sends stays in the stack, whose window closes. A client that has changed something
//! puts its line on the shard's [`Board`], at most once until the shard has looked, and rings
//! its bell; the shard wakes the client's task. So nothing that is said to the other side can find
//! a full queue, and the board is never longer than there are sockets.
//!
//! A datagram in a queue is led by its length. One that finds no room is lost, as on any network.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use engine::{Failure, LinkId, Protocol};

use crate::driver::Bell;

/// Bytes that wait in one direction of one socket.
const QUEUE: usize = 64 * 1024;
/// Sockets of each kind that clients may have at once.
const MOST: usize = 1024;

/// Where clients leave word for a shard.
#[derive(Debug)]
pub(crate) struct Board {
    lines: Mutex<Vec<Arc<Line>>>,
    bell: Arc<Bell>,
    streams: Arc<AtomicUsize>,
    datagrams: Arc<AtomicUsize>,
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) link: LinkId,
    pub(crate) protocol: Protocol,
    pub(crate) far: SocketAddr,
    board: Weak<Board>,
    state: Mutex<State>,
}

/// What both sides know of a socket.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// It is on the board.
    told: bool,
    /// Its place in the shard's netstack, once it has been there.
    pub(crate) place: Option<usize>,
    /// The near end, once it is open.
    pub(crate) near: Option<SocketAddr>,
    /// The socket is no more: in order, or for that reason.
    pub(crate) over: Option<Option<Failure>>,
    /// What is known of the far side of datagrams, to be told once.
    pub(crate) fault: Option<Failure>,
    pub(crate) to_far: Queue,
    pub(crate) from_far: Queue,
    /// The client writes no more.
    pub(crate) ended: bool,
    /// The client is gone.
    pub(crate) gone: bool,
    /// ... and wants the far side to see a reset.
    pub(crate) aborted: bool,
    /// The far side sends no more.
    pub(crate) far_ended: bool,
    /// The shard has more than there was room for.
    pub(crate) starved: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Bytes under way, at most [`QUEUE`].
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<u8>);

/// A seat among the clients' sockets, given back when it is dropped.
#[derive(Debug)]
struct Seat(Arc<AtomicUsize>);

/// The client's end of a TCP connection through a tunnel.
///
/// Dropped, it is closed in the way of a socket: what was written is still sent, and what was not
/// read makes it a reset.
#[derive(Debug)]
pub struct Stream {
    line: Arc<Line>,
    _seat: Seat,
}

/// The client's end of a UDP socket with one far side, through a tunnel.
#[derive(Debug)]
pub struct Datagrams {
    line: Arc<Line>,
    _seat: Seat,
}

impl Board {
    pub(crate) fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            lines: Mutex::default(),
            bell,
            streams: Arc::default(),
            datagrams: Arc::default(),
        })
    }

    /// A connection, which begins to be opened.
    pub(crate) fn connect(
        self: &Arc<Self>,
        link: LinkId,
        far: SocketAddr,
    ) -> Result<Stream, Failure> {
        let _seat = Seat::take(&self.streams)?;
        Ok(Stream { line: self.open(link, Protocol::Tcp, far), _seat })
    }

    /// A UDP socket.
    pub(crate) fn bind(
        self: &Arc<Self>,
        link: LinkId,
        far: SocketAddr,
    ) -> Result<Datagrams, Failure> {
        let _seat = Seat::take(&self.datagrams)?;
        Ok(Datagrams { line: self.open(link, Protocol::Udp, far), _seat })
    }

    fn open(self: &Arc<Self>, link: LinkId, protocol: Protocol, far: SocketAddr) -> Arc<Line> {
        let board = Arc::downgrade(self);
        let line = Arc::new(Line { link, protocol, far, board, state: Mutex::default() });
        line.tell(&mut line.state());
        line
    }

    /// Takes the lines that clients have changed since the last time.
    pub(crate) fn take(&self) -> Vec<Arc<Line>> {
        std::mem::take(&mut *self.lines())
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Nobody will look at them any more.
        for line in self.take() {
            line.end(&mut line.state(), Some(Failure::NetUnreachable));
        }
    }
}

impl Line {
    /// Locks the line. Neither side does anything but copy meanwhile.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard looks at it: from here on it may be told again.
    pub(crate) fn look(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.told = false;
        state
    }

    /// Ends the socket, from the shard's side.
    pub(crate) fn end(&self, state: &mut State, failure: Option<Failure>) {
        if state.over.is_none() {
            state.over = Some(failure);
        }
        state.to_far.0 = VecDeque::new();
        state.wake();
    }

    /// Leaves word for the shard.
    fn tell(self: &Arc<Self>, state: &mut State) {
        if state.told || state.over.is_some() {
            return;
        }
        let Some(board) = self.board.upgrade() else {
            return self.end(state, Some(Failure::NetUnreachable));
        };
        state.told = true;
        board.lines().push(Arc::clone(self));
        board.bell.ring();
    }

    fn leave(self: &Arc<Self>) {
        let mut state = self.state();
        state.gone = true;
        (state.reader, state.writer) = (None, None);
        self.tell(&mut state);
    }
}

impl State {
    /// Wakes the client's tasks: something is different.
    pub(crate) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn wait_to_read<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn wait_to_write<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.writer = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn room(&self) -> usize {
        QUEUE.saturating_sub(self.0.len())
    }

    /// Takes as much as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.0.extend(&bytes[..taken]);
        taken
    }

    /// The first bytes, in one slice.
    pub(crate) fn front(&self) -> &[u8] {
        self.0.as_slices().0
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
        if self.0.is_empty() {
            // An idle socket keeps no memory.
            self.0 = VecDeque::new();
        }
    }

    /// Copies the first bytes, which stay.
    fn peek(&self, room: &mut [u8]) -> usize {
        let length = room.len().min(self.0.len());
        room.iter_mut().zip(&self.0).for_each(|(to, from)| *to = *from);
        length
    }

    fn read(&mut self, room: &mut [u8]) -> usize {
        let mut read = 0;
        while read < room.len() && !self.is_empty() {
            let count = self.front().len().min(room.len() - read);
            room[read..read + count].copy_from_slice(&self.front()[..count]);
            self.consume(count);
            read += count;
        }
        read
    }

    /// `false`: there is no room for it.
    pub(crate) fn push(&mut self, datagram: &[u8]) -> bool {
        let Ok(length) = u16::try_from(datagram.len()) else { return false };
        let fits = self.room() >= datagram.len() + 2;
        if fits {
            self.0.extend(length.to_be_bytes());
            self.0.extend(datagram);
        }
        fits
    }

    /// Takes a datagram, cut to `room`; how long it is there.
    pub(crate) fn pop(&mut self, room: &mut [u8]) -> Option<usize> {
        let mut length = [0; 2];
        if self.read(&mut length) < 2 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(length));
        let taken = length.min(room.len());
        let read = self.read(&mut room[..taken]);
        self.consume(length - taken);
        Some(read)
    }
}

impl Seat {
    fn take(of: &Arc<AtomicUsize>) -> Result<Self, Failure> {
        let one_more = |taken| (taken < MOST).then_some(taken + 1);
        of.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map(|_| Self(Arc::clone(of)))
            .map_err(|_| Failure::Exhausted)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Stream {
    /// Waits for the far side's answer.
    pub fn poll_open(&self, context: &Context<'_>) -> Poll<Result<(), Failure>> {
        let mut state = self.line.state();
        match (state.near, state.over) {
            (None, Some(Some(failure))) => Poll::Ready(Err(failure)),
            (Some(_), _) | (None, Some(None)) => Poll::Ready(Ok(())),
            (None, None) => state.wait_to_read(context),
        }
    }

    /// Reads into `room`, which isn't empty; 0: the far side has ended its half.
    pub fn poll_read(
        &self,
        context: &Context<'_>,
        room: &mut [u8],
    ) -> Poll<Result<usize, Failure>> {
        let mut state = self.line.state();
        let read = state.from_far.read(room);
        if read > 0 {
            if state.starved {
                state.starved = false;
                self.line.tell(&mut state);
            }
            return Poll::Ready(Ok(read));
        }
        match state.over {
            _ if state.far_ended => Poll::Ready(Ok(0)),
            Some(failure) => Poll::Ready(failure.map_or(Ok(0), Err)),
            None => state.wait_to_read(context),
        }
    }

    /// Writes some of `bytes`, at least one.
    pub fn poll_write(&self, context: &Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Failure>> {
        let mut state = self.line.state();
        if let Some(failure) = state.over {
            return Poll::Ready(Err(failure.unwrap_or(Failure::Reset)));
        }
        if state.ended {
            return Poll::Ready(Err(Failure::Reset));
        }
        match state.to_far.write(bytes) {
            0 if !bytes.is_empty() => state.wait_to_write(context),
            written => {
                self.line.tell(&mut state);
                Poll::Ready(Ok(written))
            }
        }
    }

    /// Copies into `room` what stays to be read. The task is woken when there is more, whatever
    /// there is already; 0: the far side has ended its half.
    pub(crate) fn poll_peek(
        &self,
        context: &Context<'_>,
        room: &mut [u8],
    ) -> Poll<Result<usize, Failure>> {
        let mut state = self.line.state();
        let seen = state.from_far.peek(room);
        match state.over {
            _ if seen > 0 => {
                state.reader = Some(context.waker().clone());
                Poll::Ready(Ok(seen))
            }
            _ if state.far_ended => Poll::Ready(Ok(0)),
            Some(failure) => Poll::Ready(failure.map_or(Ok(0), Err)),
            None => state.wait_to_read(context),
        }
    }

    /// Whether nothing will come behind what waits to be read.
    pub(crate) fn has_all(&self) -> bool {
        let state = self.line.state();
        state.far_ended || state.over.is_some()
    }

    /// The near end, once it is open.
    pub(crate) fn near(&self) -> Option<SocketAddr> {
        self.line.state().near
    }

    /// Closes it with a reset.
    pub(crate) fn abort(self) {
        self.line.state().aborted = true;
    }

    /// Whether nothing waits to be read.
    #[cfg(test)]
    pub(super) fn line_is_empty(&self) -> bool {
        self.line.state().from_far.is_empty()
    }

    /// Ends our half behind what was written.
    pub fn end(&self) {
        let mut state = self.line.state();
        if !state.ended {
            state.ended = true;
            self.line.tell(&mut state);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.line.leave();
    }
}

impl Datagrams {
    /// Sends one; `Ok(false)`: there is no room for it now. One that is too long for the tunnel
    /// goes in pieces.
    ///
    /// # Errors
    /// What is known of the far side, or of the way to it.
    pub fn send(&self, datagram: &[u8]) -> Result<bool, Failure> {
        let mut state = self.line.state();
        if let Some(failure) = state.known() {
            return Err(failure);
        }
        let sent = state.to_far.push(datagram);
        if sent {
            self.line.tell(&mut state);
        }
        Ok(sent)
    }

    /// Takes one, cut to `room`; `None`: there is none.
    ///
    /// # Errors
    /// What is known of the far side, or of the way to it.
    pub fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Failure> {
        let mut state = self.line.state();
        match state.from_far.pop(room) {
            None => state.known().map_or(Ok(None), Err),
            length => Ok(length),
        }
    }

    /// Waits until [`receive`](Self::receive) has a datagram or an error. One task at a time.
    pub fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.line.state();
        if !state.from_far.is_empty() || state.fault.is_some() || state.over.is_some() {
            return Poll::Ready(());
        }
        state.wait_to_read(context)
    }

    /// The near end; without address and port until the shard has opened it.
    pub fn near(&self) -> SocketAddr {
        self.line.state().near.unwrap_or_else(|| {
            let any: IpAddr = match self.line.far {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            SocketAddr::new(any, 0)
        })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.line.leave();
    }
}

impl State {
    /// What a call is to fail with: an error once, an end for ever.
    fn known(&mut self) -> Option<Failure> {
        let over = || self.over.map(|failure| failure.unwrap_or(Failure::NetUnreachable));
        self.fault.take().or_else(over)
    }
}
