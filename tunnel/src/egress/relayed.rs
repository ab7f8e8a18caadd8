//! A socket towards a proxy's relay, where the proxy is behind a tunnel: one of our own host's
//! inside it, so that no route of the kernel's leads its datagrams elsewhere.
//!
//! It hears the relay alone, and joins no datagrams. One that is longer with its header than the
//! tunnel's MTU goes in pieces, or, where the app forbids that, not at all. Like all that is inside
//! a tunnel it makes no edges, and wakes by [`Wakes`] whoever has read it empty.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

use engine::Failure;

use super::Tag;
use super::carrier::{Sleeper, Wakes};
use super::message::SendError;
use crate::link::netstack::Datagrams;

/// The socket.
#[derive(Debug)]
pub(crate) struct Inside {
    socket: Datagrams,
    waker: Waker,
    v4: bool,
    /// Of the tunnel.
    mtu: u16,
    /// A datagram behind its header; kept for its allocation.
    whole: Vec<u8>,
}

impl Inside {
    /// One that is being opened, which wakes as that tag.
    pub(crate) fn new(
        socket: Datagrams,
        tag: Tag,
        wakes: &Arc<Wakes>,
        relay: SocketAddr,
        mtu: u16,
    ) -> Self {
        let waker = Sleeper::waker(tag, wakes);
        // It is to be woken.
        let _ = socket.poll_ready(&Context::from_waker(&waker));
        Self { socket, waker, v4: relay.is_ipv4(), mtu, whole: Vec::new() }
    }

    /// Our port, once it is open.
    pub(crate) fn port(&self) -> Option<u16> {
        Some(self.socket.near().port()).filter(|port| *port != 0)
    }

    /// Whether the relay is reached over IPv4.
    pub(crate) fn is_v4(&self) -> bool {
        self.v4
    }

    /// The tunnel has this MTU from now on.
    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    /// Sends each `segment` of the payload, or the whole, behind the header. `dont_fragment` as
    /// the app's packet had it.
    pub(crate) fn send(
        &mut self,
        header: &[u8],
        payload: &[u8],
        segment: Option<u16>,
        dont_fragment: bool,
    ) -> Result<(), SendError> {
        let size = segment.map_or(payload.len(), usize::from).max(1);
        let around = if self.v4 { 20 } else { 40 } + UDP_HEADER + header.len();
        if dont_fragment && around + size.min(payload.len()) > usize::from(self.mtu) {
            return Err(SendError::Failed(Failure::TooBig { mtu: self.mtu }));
        }
        let empty = payload.is_empty().then_some(payload);
        for datagram in payload.chunks(size).chain(empty) {
            self.whole.clear();
            self.whole.extend_from_slice(header);
            self.whole.extend_from_slice(datagram);
            match self.socket.send(&self.whole) {
                Ok(true) => {}
                Ok(false) => return Err(SendError::WouldBlock),
                Err(failure) => return Err(SendError::Failed(failure)),
            }
        }
        Ok(())
    }

    /// Takes the next datagram; `None`: there is none, and its tag wakes with the next.
    ///
    /// # Errors
    /// What is known of the relay, or of the way to it.
    pub(crate) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Failure> {
        loop {
            if let Some(length) = self.socket.receive(room)? {
                return Ok(Some(length));
            }
            if self.socket.poll_ready(&Context::from_waker(&self.waker)).is_pending() {
                return Ok(None);
            }
        }
    }
}

const UDP_HEADER: usize = 8;
