//! Tunnels in the loop: what comes out of them, and what is ordered about them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::{LinkId, WayId};

use super::{Driver, Instant};
use crate::device::Device;
use crate::driver::request::{LinkFailure, LinkOrder};

/// Bytes taken out of a tunnel before others have their turn: what a batch of the device may
/// put into one.
const BUDGET: usize = 1024 * 1024;

impl<D: Device> Driver<D> {
    /// Takes what a tunnel received.
    pub(super) fn read_link(&mut self, number: u8, now: Instant) {
        let Some(link) = WayId::new(number).map(LinkId::of) else { return };
        // Lent to nobody but this: an answer to what it delivers goes to the app.
        let Some(mut tunnel) = self.sockets.links.take(link) else { return };
        // What is left makes the socket readable in the next turn.
        let received = AssertUnwindSafe(|| {
            tunnel.receive(now, BUDGET, |inner| {
                let (headers, payload) = (&mut *inner.headers, inner.payload);
                self.guard(now, |driver| {
                    let sockets = &mut driver.sockets;
                    let taken = driver
                        .engine
                        .handle_link_packet(link, headers, payload, inner.meta, now, sockets);
                    if let Some(meta) = taken {
                        driver.sockets.port.deliver(headers, payload, meta);
                    }
                });
            })
        });
        match catch_unwind(received) {
            Ok(_) => self.sockets.links.put(link, tunnel),
            Err(_) => self.sockets.links.broke(link, tunnel),
        }
        self.answer(now);
    }

    /// Carries out an order about a tunnel.
    pub(super) fn order(&mut self, order: LinkOrder) {
        let links = &mut self.sockets.links;
        match order {
            LinkOrder::Open { link, settings, answer } => {
                answer(links.open(&self.epoll, link, *settings));
            }
            LinkOrder::Close { link } => links.close(link),
            LinkOrder::Change { link, change, answer } => {
                let changed = links.change(&self.epoll, link, *change);
                answer(changed.map_or(Err(LinkFailure::NoSuchLink), |it| Ok(it?)));
            }
            LinkOrder::Rebind { link, answer } => {
                let rebound = links.rebind(&self.epoll, link);
                answer(rebound.map_or(Err(LinkFailure::NoSuchLink), |it| Ok(it?)));
            }
            LinkOrder::Release { link } => links.release(link),
            LinkOrder::Probe { link } => links.probe(link),
            LinkOrder::State { link, answer } => answer(links.state(link)),
            LinkOrder::Health { answer } => answer(links.health()),
            LinkOrder::Watch { told } => links.watch(told),
        }
    }
}
