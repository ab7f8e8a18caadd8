//! Proxies in the loop: connections to them, and what they answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::{
    Egress, Failure, FlowId, Input, Instant, Link, LinkId, MappingId, Protocol, WayId, Ways,
};
use rustix::event::epoll::EventFlags;

use super::{Asked, Driver};
use crate::device::Device;
use crate::driver::request::Answer;
use crate::egress::pin::Pin;
use crate::egress::proxy::{Fault, Proxies, Proxy, Refusal, Talk, Target, unreachable};
use crate::egress::{Step, Tag};

impl<D: Device> Driver<D> {
    /// From now on this is known of the ways out, and these are the proxies among them.
    /// Connections that are being opened go on with those they were begun with.
    pub(super) fn set_ways(&mut self, ways: Arc<Ways>, proxies: Arc<Proxies>) {
        self.sockets.follow_links(&ways);
        self.engine.set_ways(ways);
        self.proxies = proxies;
        self.leave_proxies();
        self.watch_own_proxies();
    }

    /// New flows take no proxy that a fault speaks against, from the moment at which any shard
    /// has found it: who watches over them may still say otherwise.
    pub(super) fn leave_proxies(&mut self) {
        let known = self.engine.ways();
        let down: Vec<WayId> = self.proxies.down().filter(|way| known.is_usable(*way)).collect();
        if !down.is_empty() {
            let mut ways = Ways::clone(known);
            down.into_iter().for_each(|way| ways.set_unusable(way));
            self.engine.set_ways(Arc::new(ways));
        }
    }

    /// Looks whether a fault still speaks against a proxy.
    pub(super) fn probe(
        &mut self,
        proxy: &Arc<Proxy>,
        fault: Fault,
        answer: Answer<Result<(), Fault>>,
        now: Instant,
    ) {
        let pin = match proxy.behind {
            Some(_) => Pin::default(),
            None => match self.routes.lookup(self.query(Protocol::Tcp, proxy.address, None)) {
                Ok(route) => Pin {
                    source: Some(route.egress.address),
                    device: Some(route.device_index),
                    mark: self.mark,
                },
                Err(error) => return answer(Err(Fault::Unreachable(error.failure()))),
            },
        };
        self.sockets.probe(&self.epoll, Talk::probe(proxy, fault), &pin, answer, now);
    }

    /// This host's addresses beside the device's are these from now on.
    pub(super) fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.engine.set_host_addresses(addresses);
        self.watch_own_proxies();
    }

    /// Has sockets of proxies that listen at this host's own addresses known.
    fn watch_own_proxies(&mut self) {
        let engine = &self.engine;
        let here = self.proxies.iter().filter(|it| engine.is_of_this_host(it.address.ip()));
        let listeners = here.map(|it| (Arc::clone(&it.name), it.address)).collect();
        if let Some(owners) = &mut self.owners {
            owners.watch(listeners);
        }
    }

    /// Connects to a way out's proxy, where the route to it still is the judged one.
    pub(super) fn connect_via(
        &mut self,
        id: FlowId,
        way: WayId,
        target: Target,
        egress: Egress,
        asked: Option<Asked>,
        now: Instant,
    ) -> Option<Input> {
        self.call_proxy((id, way), egress, asked, |driver, proxy, pin| {
            let talk = Talk::new(proxy, target);
            let begun = driver.sockets.connect_via(&driver.epoll, id, talk, pin, now);
            let refusal = unreachable(begun.err()?);
            driver.leave_proxies();
            Some(refused(id, refusal))
        })
    }

    /// Has a way out's proxy carry a mapping's datagrams, where the route to it still is the
    /// judged one.
    #[expect(clippy::too_many_arguments, reason = "the engine's request and the route's answer")]
    pub(super) fn associate(
        &mut self,
        id: FlowId,
        mapping: MappingId,
        way: WayId,
        target: Target,
        egress: Egress,
        asked: Option<Asked>,
        now: Instant,
    ) -> Option<Input> {
        self.call_proxy((id, way), egress, asked, |driver, proxy, pin| {
            if driver.sockets.association(mapping).is_none() {
                let Some(talk) = Talk::associate(proxy) else {
                    return Some(Input::Unsupported(id));
                };
                let (epoll, sockets) = (&driver.epoll, &mut driver.sockets);
                let begun = sockets.begin_association(epoll, mapping, talk, egress, pin, now);
                if let Err(failure) = begun {
                    driver.leave_proxies();
                    return Some(refused(id, unreachable(failure)));
                }
            }
            let Self { engine, sockets, .. } = driver;
            let association = sockets.association(mapping)?;
            association.join(id, target, engine);
            let port = association.port()?;
            Some(Input::Bound(id, port))
        })
    }

    /// Begins what a flow wants of its way out's proxy, with what pins a connection to that,
    /// where the route there still is the judged one.
    fn call_proxy(
        &mut self,
        (id, way): (FlowId, WayId),
        egress: Egress,
        asked: Option<Asked>,
        begin: impl FnOnce(&mut Self, &Arc<Proxy>, &Pin) -> Option<Input>,
    ) -> Option<Input> {
        let Some(proxy) = self.proxies.of(way).cloned() else {
            // It went while the rules were asked.
            return Some(Input::ProxyFailed(id, Failure::NetUnreachable));
        };
        if proxy.behind.is_some() {
            // The tunnel's own address is where it leaves, whatever the routes are.
            return begin(self, &proxy, &Pin::default());
        }
        let query = self.query(Protocol::Tcp, proxy.address, None);
        self.recheck(id, query, egress, asked, |driver, index| {
            let (source, device) = (Some(egress.address), Some(index));
            let pin = Pin { source, device, mark: driver.mark };
            begin(driver, &proxy, &pin)
        })
    }

    /// Goes on with the talk about a mapping's datagrams, or ends what it came to.
    pub(super) fn control_ready(
        &mut self,
        slot: u32,
        serial: u32,
        flags: EventFlags,
        now: Instant,
    ) {
        let mapping = MappingId::from_slot(slot);
        let association = self.sockets.association(mapping);
        let Some(association) = association.filter(|it| it.serial() == serial) else { return };
        match association.ready(flags) {
            Step::Waits => {}
            Step::Associated(relay, behind) => match self.open_relay(mapping, relay, behind) {
                Ok(opened) => self.bound(opened, now),
                Err(refusal) => self.end_association(mapping, refusal, now),
            },
            Step::Ended(refusal) => {
                // What came before the end comes before it.
                self.read_datagrams(Tag::Mapping(slot), now);
                self.end_association(mapping, refusal, now);
            }
        }
    }

    /// Opens the socket to a proxy's relay, which must be reached as the proxy is: its port and
    /// who wait for it, but for one inside a tunnel, which opens later.
    fn open_relay(
        &mut self,
        mapping: MappingId,
        relay: SocketAddr,
        behind: Option<LinkId>,
    ) -> Result<Option<(u16, Vec<FlowId>)>, Refusal> {
        let Some(association) = self.sockets.association(mapping) else { return Ok(None) };
        let egress = association.egress();
        if let Some(link) = behind {
            let there = self.engine.ways().link(link);
            let as_judged = |there: &&Link| there.address(relay.ip()) == Some(egress.address);
            let Some(there) = there.filter(as_judged) else {
                return Err(Refusal::Proxy(Fault::Relay));
            };
            let through = (link, there.mtu);
            let begun = self.sockets.open_relay_inside(mapping, relay, through);
            return begun.map(|()| None).map_err(unreachable);
        }
        let route = self.routes.lookup(self.query(Protocol::Udp, relay, None));
        let device = match route {
            Ok(answer) if answer.egress == egress => answer.bound_device(relay.ip()),
            Ok(_) | Err(_) => return Err(Refusal::Proxy(Fault::Relay)),
        };
        let opened = self.sockets.open_relay(&self.epoll, mapping, relay, device, self.mark);
        opened.map(Some).map_err(unreachable)
    }

    /// Tells flows that their datagrams may go.
    fn bound(&mut self, opened: Option<(u16, Vec<FlowId>)>, now: Instant) {
        let Some((port, waiting)) = opened else { return };
        for id in waiting {
            self.tell(Input::Bound(id, port), now);
        }
    }

    /// Ends associations whose relay takes no datagrams any more.
    pub(super) fn end_broken_relays(&mut self, now: Instant) {
        while let Some((mapping, failure)) = self.sockets.broken_relay() {
            self.end_association(mapping, Refusal::Proxy(Fault::Unreachable(failure)), now);
        }
    }

    /// The flows of an association are told, and their next datagrams make another one.
    fn end_association(&mut self, mapping: MappingId, refusal: Refusal, now: Instant) {
        self.leave_proxies();
        let Some(association) = self.sockets.take_association(mapping) else { return };
        let was_open = association.is_open();
        for &id in association.members() {
            let input = if was_open {
                Input::ProxyEnded(id, refusal.failure())
            } else {
                refused(id, refusal)
            };
            self.tell(input, now);
        }
    }

    /// Tells the engine, and does what it then asks for.
    fn tell(&mut self, input: Input, now: Instant) {
        self.guard(now, |driver| driver.engine.handle(input, now, &mut driver.sockets));
        self.answer(now);
    }

    /// Ends connects to proxies that have not done their part in time, and has new flows leave
    /// those that take long.
    pub(super) fn end_silent_talks(&mut self, now: Instant) {
        while let Some(id) = self.sockets.suspect_talk(now) {
            if let Some(stream) = self.sockets.stream(id) {
                stream.give_up();
            }
            self.leave_proxies();
        }
        while let Some(mapping) = self.sockets.suspect_association(now) {
            if let Some(association) = self.sockets.association(mapping) {
                association.give_up();
            }
            self.leave_proxies();
        }
        self.sockets.probes.end(now);
        while let Some(id) = self.sockets.silent_talk(now) {
            self.guard(now, |driver| {
                driver.engine.carry(Some(id));
                let Some(refusal) = driver.sockets.stream(id).map(|it| it.give_up()) else {
                    return;
                };
                driver.sockets.close(id);
                driver.engine.handle(refused(id, refusal), now, &mut driver.sockets);
            });
            self.answer(now);
        }
        while let Some(mapping) = self.sockets.silent_association(now) {
            let Some(refusal) = self.sockets.association(mapping).map(|it| it.give_up()) else {
                continue;
            };
            self.end_association(mapping, refusal, now);
        }
    }
}

impl<D: Device> Driver<D> {
    /// Goes on with the connections through tunnels that were woken.
    pub(super) fn take_wakes(&mut self, now: Instant) {
        for tag in self.sockets.wakes.take() {
            let flags = EventFlags::IN | EventFlags::OUT;
            match tag {
                Tag::Stream(id) => {
                    self.guard(now, |driver| driver.stream_ready(id, flags, now));
                    self.answer(now);
                }
                Tag::Probe(number) => self.sockets.probes.ready(number, flags),
                Tag::Control(slot, serial) => self.control_ready(slot, serial, flags, now),
                Tag::Mapping(slot) => {
                    let opened = self.sockets.opened_relay(slot);
                    self.bound(opened, now);
                    self.read_datagrams(tag, now);
                }
                Tag::Device | Tag::Wake | Tag::Echo(_) | Tag::Link(_) => {}
            }
        }
    }
}

/// What the engine is told where no connection came to be.
pub(super) fn refused(id: FlowId, refusal: Refusal) -> Input {
    match refusal {
        Refusal::Far(failure) => Input::Failed(id, failure),
        Refusal::Proxy(fault) => Input::ProxyFailed(id, fault.failure()),
    }
}
