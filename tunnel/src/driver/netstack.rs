//! The host of our own inside the tunnels, in the loop: what is beneath it, and its turn.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::{Engine, Failure, Instant, LinkId, LinkPort, Meta, Unsent, Ways};

use super::{Driver, Handle};
use crate::device::Device;
use crate::egress::links::Links;
use crate::link::netstack::{Below, Datagrams, Stream};

/// The tunnels, and the engine that has the ports at their addresses.
struct Tunnels<'a> {
    engine: &'a mut Engine,
    links: &'a mut Links,
}

impl Below for Tunnels<'_> {
    fn ways(&self) -> &Arc<Ways> {
        self.engine.ways()
    }

    fn reserve(&mut self, port: &LinkPort) -> bool {
        self.engine.reserve(port)
    }

    fn own_port_near(&self, port: u16, least: u16) -> u16 {
        self.engine.own_port_near(port, least)
    }

    fn release(&mut self, port: &LinkPort) {
        self.engine.release(port);
    }

    fn send(&mut self, link: LinkId, packet: &[u8]) -> Result<(), Unsent> {
        self.links.send(link, packet, &[], Meta::default())
    }
}

impl<D: Device> Driver<D> {
    /// Has the netstack do what there is to do. What is known of tunnels changes by request alone,
    /// so that it is `asked` then. A panic ends the socket whose turn it was.
    pub(super) fn run_netstack(&mut self, asked: bool, now: Instant) {
        let due = self.sockets.netstack.next_timer().is_some_and(|at| at <= now);
        if !asked && !due {
            return;
        }
        let done = self.guard(now, |driver| {
            let (netstack, links) = (&mut driver.sockets.netstack, &mut driver.sockets.links);
            netstack.turn(&mut Tunnels { engine: &mut driver.engine, links }, now);
        });
        if done.is_none() {
            let (netstack, links) = (&mut self.sockets.netstack, &mut self.sockets.links);
            netstack.break_off(&mut Tunnels { engine: &mut self.engine, links });
        }
    }
}

impl Handle {
    /// Opens a connection of our own through a tunnel of this shard. Never blocks; whether the
    /// far side has answered is [`Stream::poll_open`]'s to say.
    ///
    /// # Errors
    /// The shard has ended, or there are too many already.
    pub fn connect(&self, link: LinkId, far: SocketAddr) -> Result<Stream, Failure> {
        self.board.upgrade().ok_or(Failure::NetUnreachable)?.connect(link, far)
    }

    /// Opens a UDP socket of our own with one far side through a tunnel of this shard. Never
    /// blocks; what stands against it is the first error of the socket.
    ///
    /// # Errors
    /// The shard has ended, or there are too many already.
    pub fn bind(&self, link: LinkId, far: SocketAddr) -> Result<Datagrams, Failure> {
        self.board.upgrade().ok_or(Failure::NetUnreachable)?.bind(link, far)
    }
}
