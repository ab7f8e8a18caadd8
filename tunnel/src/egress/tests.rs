//! How long proxies may take, on a clock of the tests' own.

use std::net::{IpAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use engine::{DeviceName, MappingId, WayId};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use super::proxy::{Proxy, Speaks, Standing, Target};
use super::*;
use crate::device::Memory;
use crate::driver::Bell;
use crate::link::netstack::Board;

const ZERO: Instant = Instant::ZERO;
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    sockets: Sockets<Memory>,
    epoll: OwnedFd,
    /// Takes connections, and never says anything.
    listener: TcpListener,
    pin: Pin,
    _app: Box<dyn std::any::Any>,
}

fn bench() -> Bench {
    let (device, app) = Memory::pair(true).unwrap();
    let bell = Arc::new(Bell::new().unwrap());
    let sockets = Sockets::new(device, false, Netstack::new(Board::new(bell)));
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = Some(IpAddr::from([127, 0, 0, 1]));
    let pin = Pin { source, device: Some(1), mark: None };
    Bench { sockets, epoll, listener, pin, _app: Box::new(app) }
}

impl Bench {
    fn proxy(&self, speaks: Speaks) -> (Arc<Proxy>, Receiver<Fault>) {
        let (sender, told) = channel();
        let standing = Standing::new(move |fault| sender.send(fault).unwrap());
        let address = self.listener.local_addr().unwrap();
        let name = "office".into();
        let (behind, login, tls) = (None, None, None);
        (Arc::new(Proxy { name, address, behind, speaks, login, tls, standing }), told)
    }

    /// What the next event is about.
    fn event(&self) -> (Tag, epoll::EventFlags) {
        let mut events = Vec::with_capacity(1);
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        let room = rustix::buffer::spare_capacity(&mut events);
        assert_eq!(epoll::wait(&self.epoll, room, Some(&timeout)), Ok(1));
        (Tag::from_data(events[0].data), events[0].flags)
    }
}

fn target() -> Target {
    Target { address: "203.0.113.9:443".parse().unwrap(), name: None }
}

#[test]
fn a_proxy_that_takes_a_request_and_says_nothing_is_doubted() {
    let mut bench = bench();
    let (proxy, told) = bench.proxy(Speaks::Http);
    let id = FlowId::from_bits(0);
    let talk = Talk::new(&proxy, target());
    bench.sockets.connect_via(&bench.epoll, id, talk, &bench.pin, ZERO).unwrap();
    let (tag, flags) = bench.event();
    assert_eq!(tag, Tag::Stream(id));
    let stream = bench.sockets.stream(id).unwrap();
    stream.ready(flags);
    assert!(stream.open().is_none() && !stream.awaits_proxy(), "it has the request");
    assert_eq!(bench.sockets.suspect_talk(ZERO + SUSPECT), None);
    assert_eq!(bench.sockets.silent_talk(ZERO + (PATIENCE - SECOND)), None);
    assert!(told.try_recv().is_err());
    assert_eq!(bench.sockets.silent_talk(ZERO + PATIENCE), None, "the far side may take longer");
    assert_eq!(told.try_recv(), Ok(Fault::Mute));
    assert_eq!(bench.sockets.next_talk(), None);
}

#[test]
fn a_probe_of_one_that_is_doubted_wants_an_answer() {
    for (fault, seen) in [(Fault::Mute, Err(Fault::Mute)), (Fault::Silent, Ok(()))] {
        let mut bench = bench();
        let (proxy, _told) = bench.proxy(Speaks::Http);
        let (sender, answered) = channel();
        let answer = Box::new(move |seen| sender.send(seen).unwrap());
        let talk = Talk::probe(&proxy, fault);
        bench.sockets.probe(&bench.epoll, talk, &bench.pin, answer, ZERO);
        let (Tag::Probe(number), flags) = bench.event() else { panic!("a probe") };
        bench.sockets.probes.ready(number, flags);
        if seen.is_err() {
            bench.sockets.probes.end(ZERO + SUSPECT);
            assert!(answered.try_recv().is_err(), "{fault}: it is connected");
            bench.sockets.probes.end(ZERO + PATIENCE);
        }
        assert_eq!(answered.try_recv(), Ok(seen), "{fault}");
        assert_eq!(bench.sockets.probes.next_end(), None);
    }
}

#[test]
fn an_association_leaves_a_proxy_as_a_connection_does() {
    let mut bench = bench();
    let (proxy, told) = bench.proxy(Speaks::Socks5);
    let (mapping, other) = (MappingId::from_slot(0), MappingId::from_slot(1));
    let egress =
        Egress { address: IpAddr::from([127, 0, 0, 1]), device: DeviceName::new("lo").unwrap() };
    let mut begin = |mapping, at| {
        let talk = Talk::associate(&proxy).unwrap();
        let (epoll, pin) = (&bench.epoll, &bench.pin);
        bench.sockets.begin_association(epoll, mapping, talk, egress, pin, at).unwrap();
    };
    begin(mapping, ZERO);
    begin(other, ZERO + SECOND);
    let sockets = &mut bench.sockets;
    assert_eq!(sockets.next_talk(), Some(ZERO + SUSPECT));
    assert_eq!(sockets.suspect_association(ZERO + (SUSPECT - SECOND)), None);
    // Nobody has looked whether it has answered.
    assert_eq!(sockets.suspect_association(ZERO + SUSPECT), Some(mapping));
    assert_eq!(sockets.suspect_association(ZERO + SUSPECT), None, "once");
    sockets.association(mapping).unwrap().give_up();
    assert_eq!(told.try_recv(), Ok(Fault::Silent));
    let down = [(WayId::new(1).unwrap(), proxy)].into_iter().collect::<proxy::Proxies>();
    assert_eq!(down.down().count(), 1, "new flows leave it");
    // It is connected, and says nothing: that is no suspect any more, but silent.
    let association = sockets.association(other).unwrap();
    association.ready(epoll::EventFlags::OUT);
    assert_eq!(sockets.suspect_association(ZERO + SECOND + SUSPECT), None);
    assert_eq!(sockets.silent_association(ZERO + PATIENCE), Some(mapping));
    assert_eq!(sockets.silent_association(ZERO + PATIENCE), None);
    assert_eq!(sockets.silent_association(ZERO + PATIENCE + SECOND), Some(other));
    assert_eq!(sockets.next_talk(), None);
    // Its place is another's by now.
    sockets.take_association(mapping);
    let mut bench = bench;
    let (proxy, _told) = bench.proxy(Speaks::Socks5);
    let talk = || Talk::associate(&proxy).unwrap();
    let (epoll, pin) = (&bench.epoll, &bench.pin);
    bench.sockets.begin_association(epoll, mapping, talk(), egress, pin, ZERO).unwrap();
    bench.sockets.take_association(mapping);
    bench.sockets.begin_association(epoll, mapping, talk(), egress, pin, ZERO + SECOND).unwrap();
    assert_eq!(bench.sockets.suspect_association(ZERO + SUSPECT), None);
    assert_eq!(bench.sockets.suspect_association(ZERO + SUSPECT + SECOND), Some(mapping));
}
