//! The tunnels of a shard.
//!
//! A tunnel belongs to one shard. Packets into it are cut and sealed at once and wait for the
//! flush at the end of the turn; its sockets are watched by level, so that what a turn leaves
//! in them is there in the next.
//!
//! A panic inside a tunnel ends that tunnel and nothing else. At the end of the turn it is opened
//! anew, from what it was ([`Links::mend`]); one that goes on panicking stays closed.
//!
//! Whether a tunnel is usable may change where its timers run and where a session begins. It is
//! looked at there, and twice a second while somebody owes an answer: an idle tunnel costs
//! nothing.

use std::fmt;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use engine::{DeviceName, Failure, Instant, LinkId, Meta, Unsent, WayId};
use rustix::event::epoll;
use rustix::io::Errno;
use tracing::warn;

use crate::driver::request::Told;
use crate::egress::Tag;
use crate::link::wireguard::{
    Change, Coalesce, LinkError, LinkTotals, PeerHealth, Settings, State, Tunnel,
};

/// Tunnels by their numbers.
pub(crate) struct Links {
    all: Vec<Option<Tunnel>>,
    /// By the same numbers.
    seen: Vec<Seen>,
    told: Option<Told>,
    coalesce: Coalesce,
    /// When this turn began: packets into a tunnel are timed by it.
    pub(crate) now: Instant,
    /// Those that have panicked in this turn; what they were, if they can still tell.
    broken: Vec<(LinkId, DeviceName, Option<Settings>)>,
    /// When tunnels panicked, for a minute.
    lately: Vec<(Instant, LinkId)>,
}

/// How a tunnel was when it was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    usable: bool,
    /// Sessions that had begun.
    handshakes: u64,
    /// When to look again, whatever happens.
    again: Option<Instant>,
}

/// How often it is looked at a tunnel that owes an answer.
const LOOK: Duration = Duration::from_millis(500);

impl Links {
    pub(crate) fn new(coalesce: Coalesce) -> Self {
        Self {
            all: Vec::new(),
            seen: Vec::new(),
            told: None,
            coalesce,
            now: Instant::ZERO,
            broken: Vec::new(),
            lately: Vec::new(),
        }
    }

    /// Opens a tunnel, in the place of the one of that number. Where that fails, the one that was
    /// there stays.
    pub(crate) fn open(
        &mut self,
        epoll: impl AsFd,
        link: LinkId,
        settings: Settings,
    ) -> Result<(), LinkError> {
        let (at, now) = (place(link), self.now);
        if self.all.len() <= at {
            self.all.resize_with(at + 1, || None);
            self.seen.resize(at + 1, Seen::default());
        }
        let slot = &mut self.all[at];
        let port = settings.listen_port.filter(|&port| port != 0);
        let mut before = slot.as_mut().filter(|tunnel| Some(tunnel.port()) == port);
        if let Some(before) = &mut before {
            before.close_sockets();
        }
        let opened = Tunnel::open(settings, now)
            .and_then(|tunnel| watch(&epoll, link, &tunnel).map(|()| tunnel));
        match opened {
            Ok(mut tunnel) => {
                tunnel.set_coalesce(self.coalesce);
                *slot = Some(tunnel);
                self.look(link);
                Ok(())
            }
            Err(error) => {
                if let Some(before) = before {
                    // If it can't now, its timers go on trying.
                    let _ = before.rebind(now).and_then(|()| watch(&epoll, link, before));
                }
                Err(error)
            }
        }
    }

    /// Closes a tunnel: its sockets leave epoll with their descriptors.
    pub(crate) fn close(&mut self, link: LinkId) {
        self.take(link);
        self.look(link);
    }

    /// Takes a tunnel away, to be put back, or given to [`Links::broke`].
    pub(crate) fn take(&mut self, link: LinkId) -> Option<Tunnel> {
        self.all.get_mut(place(link))?.take()
    }

    pub(crate) fn put(&mut self, link: LinkId, tunnel: Tunnel) {
        if let Some(slot) = self.all.get_mut(place(link)) {
            *slot = Some(tunnel);
        }
        // A session that has begun is the only good news that a packet brings.
        let tunnel = self.all.get(place(link)).and_then(Option::as_ref);
        let begun = tunnel.map(|tunnel| tunnel.totals().handshakes);
        let seen = self.seen.get(place(link));
        if seen.is_some_and(|seen| !seen.usable || Some(seen.handshakes) != begun) {
            self.look(link);
        }
    }

    /// Notes that a tunnel has panicked: it may be anything now, and is used no more.
    pub(crate) fn broke(&mut self, link: LinkId, tunnel: Tunnel) {
        let name = tunnel.name();
        let settings = catch_unwind(AssertUnwindSafe(|| tunnel.settings())).ok();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(tunnel)));
        self.broken.push((link, name, settings));
    }

    /// Opens anew what has panicked in this turn; how often that was.
    pub(crate) fn mend(&mut self, epoll: impl AsFd) -> u64 {
        let broken = std::mem::take(&mut self.broken);
        let panics = broken.len() as u64;
        for (link, name, settings) in broken {
            self.lately.push((self.now, link));
            self.lately.retain(|(at, _)| self.now.since(*at) < LATELY);
            let often = self.lately.iter().filter(|(_, other)| *other == link).count();
            let reopened = settings.filter(|_| often < OFTEN).is_some_and(|settings| {
                let open = AssertUnwindSafe(|| self.open(&epoll, link, settings));
                catch_unwind(open).is_ok_and(|opened| opened.is_ok())
            });
            if reopened {
                warn!(code = "tunnel-panicked", tunnel = %name, "a tunnel failed and was opened anew");
            } else {
                warn!(code = "tunnel-closed", tunnel = %name, "a tunnel failed and is closed");
            }
        }
        panics
    }

    /// From now on says when a tunnel begins or ceases to be usable.
    pub(crate) fn watch(&mut self, told: Told) {
        self.told = Some(told);
    }

    /// Looks whether a tunnel is usable, and says so where that is new.
    fn look(&mut self, link: LinkId) {
        let (at, now) = (place(link), self.now);
        let tunnel = self.all.get(at).and_then(Option::as_ref);
        let Some(seen) = self.seen.get_mut(at) else { return };
        let before = seen.usable;
        *seen = tunnel.map_or_else(Seen::default, |tunnel| {
            let peers = tunnel.health(now);
            let owes = |peer: &PeerHealth| peer.unanswered.is_some() && peer.usable();
            Seen {
                usable: PeerHealth::any_usable(&peers),
                handshakes: tunnel.totals().handshakes,
                again: peers.iter().any(owes).then(|| now + LOOK),
            }
        });
        if seen.usable != before
            && let Some(told) = &self.told
        {
            told(link);
        }
    }

    fn of(&mut self, link: LinkId) -> Option<&mut Tunnel> {
        self.all.get_mut(place(link))?.as_mut()
    }

    /// Runs what may panic; `None`: there is no such tunnel, or no longer.
    fn guard<R>(&mut self, link: LinkId, body: impl FnOnce(&mut Tunnel) -> R) -> Option<R> {
        let tunnel = self.of(link)?;
        if let Ok(done) = catch_unwind(AssertUnwindSafe(|| body(tunnel))) {
            return Some(done);
        }
        let tunnel = self.take(link)?;
        self.broke(link, tunnel);
        None
    }

    /// Changes a tunnel; `None`: there is none of that number.
    pub(crate) fn change(
        &mut self,
        epoll: impl AsFd,
        link: LinkId,
        change: Change,
    ) -> Option<Result<(), LinkError>> {
        let now = self.now;
        self.guard(link, |tunnel| {
            tunnel.change(change, now).and_then(|()| watch(epoll, link, tunnel))
        })
        .inspect(|_| self.look(link))
    }

    /// Opens a tunnel's sockets anew: the path has changed.
    pub(crate) fn rebind(
        &mut self,
        epoll: impl AsFd,
        link: LinkId,
    ) -> Option<Result<(), LinkError>> {
        let now = self.now;
        self.guard(link, |tunnel| tunnel.rebind(now).and_then(|()| watch(epoll, link, tunnel)))
    }

    /// Closes a tunnel's sockets until [`Links::rebind`]: they leave epoll with their descriptors.
    pub(crate) fn release(&mut self, link: LinkId) {
        self.guard(link, Tunnel::close_sockets);
    }

    /// Asks every peer of a tunnel whether it is there.
    pub(crate) fn probe(&mut self, link: LinkId) {
        let now = self.now;
        self.guard(link, |tunnel| tunnel.probe(now));
    }

    pub(crate) fn state(&mut self, link: LinkId) -> Option<(State, LinkTotals)> {
        self.guard(link, |tunnel| (tunnel.state(), tunnel.totals().clone()))
    }

    /// How the peers of each tunnel fare.
    pub(crate) fn health(&self) -> Vec<(LinkId, Vec<PeerHealth>)> {
        let numbered = (0..).map_while(WayId::new).map(LinkId::of).zip(&self.all);
        let tunnels = numbered.filter_map(|(link, tunnel)| Some((link, tunnel.as_ref()?)));
        tunnels.map(|(link, tunnel)| (link, tunnel.health(self.now))).collect()
    }

    pub(crate) fn send(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
    ) -> Result<(), Unsent> {
        let now = self.now;
        let sent = self.guard(link, |tunnel| tunnel.send(headers, payload, meta, now));
        sent.unwrap_or(Err(Unsent::Failed(Failure::NetUnreachable)))
    }

    /// Sends what is ready: once a turn.
    pub(crate) fn flush(&mut self) {
        self.each(|_, tunnel| tunnel.flush());
    }

    /// When [`Links::run_timers`] has something to do.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let timers = self.all.iter().flatten().filter_map(Tunnel::next_timer);
        timers.chain(self.seen.iter().filter_map(|seen| seen.again)).min()
    }

    pub(crate) fn run_timers(&mut self, epoll: impl AsFd, now: Instant) {
        self.now = now;
        let mut looked = Vec::new();
        self.each(|link, tunnel| {
            let due = tunnel.next_timer().is_some_and(|at| at <= now);
            if due && tunnel.timers(now) {
                // What fails here for want of memory shows as a peer that is silent.
                let _ = watch(&epoll, link, tunnel);
            }
            if due {
                looked.push(link);
            }
        });
        let again = |seen: &Seen| seen.again.is_some_and(|at| at <= now);
        let numbered = (0..).map_while(WayId::new).map(LinkId::of).zip(&self.seen);
        looked.extend(numbered.filter(|(_, seen)| again(seen)).map(|(link, _)| link));
        for link in looked {
            self.look(link);
        }
    }

    fn each(&mut self, mut body: impl FnMut(LinkId, &mut Tunnel)) {
        for link in (0..).map_while(WayId::new).map(LinkId::of).take(self.all.len()) {
            self.guard(link, |tunnel| body(link, tunnel));
        }
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().flatten()).finish()
    }
}

/// A tunnel that panics that often in [`LATELY`] stays closed.
const OFTEN: usize = 5;
const LATELY: Duration = Duration::from_secs(60);

fn place(link: LinkId) -> usize {
    usize::from(link.way().number())
}

/// Adds a tunnel's sockets to epoll, as far as they are not in it.
fn watch(epoll: impl AsFd, link: LinkId, tunnel: &Tunnel) -> Result<(), LinkError> {
    let epoll = epoll.as_fd();
    for socket in tunnel.sockets() {
        let data = Tag::Link(link.way().number()).data();
        match epoll::add(epoll, socket, data, epoll::EventFlags::IN) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(LinkError::Socket(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::fd::OwnedFd;

    use super::*;
    use crate::link::wireguard::{PeerSettings, PrivateKey, injected};

    fn number(number: u8) -> LinkId {
        LinkId::of(WayId::new(number).unwrap())
    }

    fn settings(name: &str, port: Option<u16>) -> Settings {
        let mut peer = PeerSettings::new(PrivateKey::generate().unwrap().public());
        peer.allowed = vec!["10.0.0.0/8".parse().unwrap()];
        peer.endpoint = Some("127.0.0.1:9".parse().unwrap());
        Settings {
            name: DeviceName::new(name).unwrap(),
            key: PrivateKey::generate().unwrap(),
            listen_port: port,
            fwmark: None,
            mark: None,
            mtu: 1420,
            peers: vec![peer],
        }
    }

    fn links() -> (Links, OwnedFd) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        (Links::new(Coalesce::default()), epoll)
    }

    fn port(links: &mut Links, number: LinkId) -> u16 {
        links.state(number).unwrap().0.listen_port
    }

    #[test]
    fn a_tunnel_that_cannot_be_opened_leaves_the_one_before() {
        let (mut links, epoll) = links();
        let one = number(1);
        let first = settings("wg0", None);
        links.open(&epoll, one, first.clone()).unwrap();
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().port();
        let before = port(&mut links, one);
        let refused = links.open(&epoll, one, settings("wg0", Some(taken)));
        assert!(matches!(refused, Err(LinkError::Bind { .. })));
        let (state, _) = links.state(one).unwrap();
        assert!(state.key == first.key && state.listen_port == before, "as it was");
        // The same port: the one before lets go of it.
        let second = settings("wg0", Some(before));
        links.open(&epoll, one, second.clone()).unwrap();
        let (state, _) = links.state(one).unwrap();
        assert!(state.key == second.key && state.listen_port == before);
    }

    #[test]
    fn a_port_is_let_go_and_had_back() {
        let (mut links, epoll) = links();
        let (one, two) = (number(1), number(2));
        links.open(&epoll, one, settings("wg0", None)).unwrap();
        let its = port(&mut links, one);
        let other = settings("wg1", Some(its));
        let refused = links.open(&epoll, two, other.clone());
        assert!(matches!(refused, Err(LinkError::Bind { .. })), "{refused:?}");
        links.release(one);
        links.open(&epoll, two, other).unwrap();
        assert_eq!((port(&mut links, one), port(&mut links, two)), (0, its));
        links.close(two);
        links.rebind(&epoll, one).unwrap().unwrap();
        assert_eq!(port(&mut links, one), its);
    }

    #[test]
    fn a_tunnel_that_panics_is_opened_anew_alone() {
        let packet = {
            let mut packet = vec![0; 20];
            packet[0] = 0x45;
            packet[3] = 20;
            packet[16] = 10;
            packet
        };
        for call in ["send", "flush", "timers"] {
            let (mut links, epoll) = links();
            let name = format!("wg-{call}");
            let (good, bad) = (number(1), number(2));
            links.open(&epoll, good, settings("wg-good", None)).unwrap();
            links.open(&epoll, bad, settings(&name, None)).unwrap();
            let (before, kept) = (port(&mut links, bad), links.state(bad).unwrap().0);
            for round in 1..=OFTEN {
                injected::AT.lock().unwrap().push((
                    DeviceName::new(&name).unwrap(),
                    match call {
                        "send" => "send",
                        "flush" => "flush",
                        _ => "timers",
                    },
                ));
                for link in [good, bad] {
                    let _ = links.send(link, &packet, &[], Meta::default());
                }
                links.flush();
                // Past the retry of what was just sent.
                links.run_timers(&epoll, Instant::ZERO + Duration::from_secs(6 * round as u64));
                assert_eq!(links.mend(&epoll), 1, "{call} {round}");
                assert!(links.state(good).unwrap().0.peers[0].sent > 0, "{call}");
                if round < OFTEN {
                    let (state, _) = links.state(bad).unwrap();
                    assert!(state.key == kept.key && state.listen_port == before, "{call}");
                    assert_eq!(state.peers[0].allowed, kept.peers[0].allowed, "{call}");
                } else {
                    assert!(links.state(bad).is_none(), "{call}: too often");
                }
            }
            assert_eq!(links.mend(&epoll), 0);
        }
    }
}
