//! One WireGuard interface in user space.
//!
//! # Theory of operation
//!
//! A [`Tunnel`] is an interface: a static key, a UDP port for IPv4 and IPv6, and peers. It
//! belongs to one thread and has no lock. The thread hands it packets ([`Tunnel::send`]) and
//! flushes ([`Tunnel::flush`]); polls its sockets and lets it deliver what came
//! ([`Tunnel::receive`]); and calls [`Tunnel::timers`] when [`Tunnel::next_timer`] says so.
//! Nothing blocks: like a network, it drops what finds no room, and counts it by cause.
//!
//! Packets pass in batches both ways, which is what makes it fast:
//!
//! ```text
//!  super-packet → split → sealed side by side → one sendmsg (UDP_SEGMENT) a run
//!  recvmsg (UDP_GRO) → opened side by side → checked → coalesce → super-packet
//! ```
//!
//! The cryptography, the handshake and the sessions are boringtun's `noise::Tunn`. It reads
//! the clock itself (`CLOCK_BOOTTIME`, which counts a suspend); what goes by [`Instant`] here is
//! only when it is asked. The timestamp in its handshakes is the wall clock's when a peer was
//! added, and from there on counts up, so a step of the clock never takes it back. After a
//! restart, or for a peer that was removed and added, it begins from the wall clock anew: if that
//! has gone back meanwhile, the other side takes our handshakes for old ones until it has
//! caught up. Its own handshakes go on working.

mod allowed;
mod asleep;
mod clock;
mod coalesce;
mod control;
mod core;
mod dropped;
mod encoding;
mod header;
mod key;
mod outbox;
mod peers;
mod settings;
mod socket;
mod split;
#[cfg(test)]
mod tests;
mod wiped;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use engine::{DeviceName, Instant, Meta, Unsent};
use rustix::io::Errno;

use self::asleep::Asleep;
use self::coalesce::coalesce;
pub use self::coalesce::{Coalesce, Inner};
use self::core::Core;
pub use self::dropped::{LinkDropped, LinkTotals};
pub use self::key::{PresharedKey, PrivateKey, PublicKey};
pub use self::settings::{
    Change, PeerChange, PeerHealth, PeerSettings, PeerState, Settings, State,
};
use self::socket::{Inbox, Lost, Sockets};
use crate::host::Mark;

/// Why an interface could not be made, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No UDP socket.
    #[error("cannot open a UDP socket: {0}")]
    Socket(Errno),
    /// The port is taken, or may not be had.
    #[error("cannot bind UDP port {port}: {errno}")]
    Bind {
        /// The port that was asked for; 0: any.
        port: u16,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Marking takes `CAP_NET_ADMIN`.
    #[error("cannot mark the UDP socket: {0}")]
    Mark(Errno),
    /// No index for another peer.
    #[error("the kernel has no random bytes, or there are too many peers")]
    Random,
}

/// An interface.
pub struct Tunnel {
    name: DeviceName,
    core: Core,
    inbox: Inbox,
    /// `None`: they could not be opened anew after a change of path, which is tried again.
    sockets: Option<Sockets>,
    /// When, and how long after that the next time.
    reopen: Option<(Instant, Duration)>,
    port: u16,
    fwmark: Option<u32>,
    mark: Option<Mark>,
    asleep: Asleep,
    coalesce: Coalesce,
    /// Which socket is read first: a flood on one must not silence the other.
    v6_first: bool,
}

impl Tunnel {
    /// Binds the sockets, and greets peers that are to be kept alive.
    pub fn open(settings: Settings, now: Instant) -> Result<Self, LinkError> {
        let port = settings.listen_port.unwrap_or(0);
        let sockets = Sockets::open(port, composed(settings.fwmark, settings.mark))?;
        let mut tunnel = Self {
            name: settings.name,
            core: Core::new(settings.key, settings.mtu),
            inbox: Inbox::new(),
            port: sockets.port(),
            sockets: Some(sockets),
            reopen: None,
            fwmark: settings.fwmark,
            mark: settings.mark,
            asleep: Asleep::default(),
            coalesce: Coalesce::default(),
            v6_first: false,
        };
        let peers = settings.peers.into_iter().map(Into::into).collect();
        let now = tunnel.asleep.wake(now);
        tunnel.core.change(Change { peers, ..Change::default() }, now)?;
        tunnel.flush();
        Ok(tunnel)
    }

    /// What it is called.
    pub fn name(&self) -> DeviceName {
        self.name
    }

    /// What it would have to be opened with to be as it is.
    pub fn settings(&self) -> Settings {
        let state = self.state();
        Settings {
            name: self.name,
            key: state.key,
            listen_port: Some(self.port),
            fwmark: self.fwmark,
            mark: self.mark,
            mtu: self.core.mtu(),
            peers: state.peers.into_iter().map(PeerSettings::from).collect(),
        }
    }

    /// The UDP port that it has, or had before its sockets could not be opened again.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says which super-packets [`receive`](Self::receive) may deliver: those that the device
    /// takes. None, to begin with.
    pub fn set_coalesce(&mut self, coalesce: Coalesce) {
        self.coalesce = coalesce;
    }

    /// The sockets, to be polled for reading. Others after [`rebind`](Self::rebind) and after
    /// a change of the port.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().flat_map(Sockets::fds)
    }

    /// Sends one packet, or all that a super-packet stands for, to the peer whose its
    /// destination is. Messages leave with the next [`flush`](Self::flush), or before when
    /// there are many; without a session they wait for one.
    ///
    /// `headers` are those of IP and transport where `meta` says anything; else the packet may
    /// be cut in two anywhere behind its IP header. A transport checksum is computed where
    /// `meta` calls it partial, whatever stands there.
    pub fn send(
        &mut self,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
        now: Instant,
    ) -> Result<(), Unsent> {
        #[cfg(test)]
        injected::check(self.name, "send");
        let now = self.asleep.at(now);
        let result = self.core.send(headers, payload, meta, now);
        if self.core.outbox.is_full() {
            self.flush();
        }
        result
    }

    /// Sends every message that is ready. To be called after each batch of packets.
    pub fn flush(&mut self) {
        #[cfg(test)]
        injected::check(self.name, "flush");
        let Core { outbox, totals, peers, .. } = &mut self.core;
        if outbox.runs().is_empty() {
            return;
        }
        let mut refused = None;
        match &mut self.sockets {
            Some(sockets) => sockets.transmit(outbox, totals, |lost| match lost {
                Lost::Source(id) => {
                    if let Some(peer) = peers.get(id) {
                        peer.source = None;
                    }
                }
                Lost::Path(to) => refused = Some(to),
            }),
            None => {
                let count = outbox.runs().iter().map(|run| run.count as u64).sum();
                totals.drop_many(LinkDropped::Refused, count);
            }
        }
        outbox.clear();
        // It is asked whether it is there: with the next flush, which may fail as this one has.
        if let Some(to) = refused {
            self.core.refused(to, self.asleep.last());
        }
    }

    /// Receives about `budget` bytes at most and hands `deliver` what was inside. Answers to
    /// handshakes, and packets that waited for one, are sent. `true`: there may be more.
    pub fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        mut deliver: impl FnMut(&mut Inner<'_>),
    ) -> bool {
        #[cfg(test)]
        injected::check(self.name, "receive");
        let now = self.asleep.wake(now);
        let mut left = budget;
        let mut more = false;
        self.v6_first = !self.v6_first;
        for v6 in [self.v6_first, !self.v6_first] {
            loop {
                let Self { core, inbox, sockets: Some(sockets), .. } = self else { return false };
                if left == 0 {
                    more = true;
                    break;
                }
                core.totals.receives += 1;
                let Some(filled) = sockets.receive(v6, inbox) else {
                    let reports = std::iter::from_fn(|| sockets.unreachable());
                    reports.take(REPORTS).for_each(|to| core.refused(to, now));
                    self.flush();
                    break;
                };
                for arrival in &inbox.arrivals {
                    let message = &inbox.data[arrival.bytes.clone()];
                    left = left.saturating_sub(message.len().max(1));
                    for datagram in message.chunks(arrival.segment) {
                        core.open(datagram, arrival, now);
                    }
                }
                let opened = &mut core.opened;
                coalesce(&mut opened.buffer, &opened.packets, self.coalesce, &mut deliver);
                opened.clear();
                self.flush();
                if !filled {
                    break;
                }
            }
        }
        more
    }

    /// Does what time has come for: retries, new keys, keepalives, the end of old keys. `true`:
    /// [`sockets`](Self::sockets) are others, opened after that had failed before.
    pub fn timers(&mut self, now: Instant) -> bool {
        #[cfg(test)]
        injected::check(self.name, "timers");
        let now = self.asleep.wake(now);
        let due = self.reopen.filter(|&(at, _)| at <= now);
        let reopened = due.is_some_and(|(_, pause)| self.reopen(pause * 2, now).is_ok());
        self.core.timers(now);
        self.flush();
        reopened
    }

    /// When to call [`timers`](Self::timers); `None`: not before something is sent or comes.
    pub fn next_timer(&self) -> Option<Instant> {
        let due = self.core.wake().into_iter().chain(self.reopen.map(|(at, _)| at)).min();
        due.map(|at| self.asleep.told(at))
    }

    /// The interface as it is.
    pub fn state(&self) -> State {
        State {
            key: self.core.key().clone(),
            listen_port: self.sockets.as_ref().map_or(0, Sockets::port),
            fwmark: self.fwmark,
            peers: self.core.peers.states(),
        }
    }

    /// Makes a change. What concerns sockets is tried first; where that fails, nothing has
    /// changed. After a change of the port [`sockets`](Self::sockets) are others.
    pub fn change(&mut self, change: Change, now: Instant) -> Result<(), LinkError> {
        let now = self.asleep.wake(now);
        let fwmark = change.fwmark.unwrap_or(self.fwmark);
        let mark = composed(fwmark, self.mark);
        let closed = self.sockets.is_none();
        let other = |&port: &u16| port == 0 || port != self.port || closed;
        if let Some(port) = change.listen_port.filter(other) {
            let sockets = Sockets::open(port, mark)?;
            self.port = sockets.port();
            self.sockets = Some(sockets);
            self.reopen = None;
        } else if let Some(sockets) = self.sockets.as_ref().filter(|_| fwmark != self.fwmark) {
            sockets.set_mark(mark)?;
        }
        self.fwmark = fwmark;
        let result = self.core.change(change, now);
        self.flush();
        result
    }

    /// Opens the sockets anew on the same port, forgets which of our addresses peers spoke to,
    /// and tells peers with a session, or that should have one, where we are: after a change of paths, or a suspend.
    ///
    /// # Errors
    /// There is no socket. It is tried again, by [`timers`](Self::timers), until it succeeds.
    pub fn rebind(&mut self, now: Instant) -> Result<(), LinkError> {
        let now = self.asleep.wake(now);
        self.reopen(REOPEN, now)
    }

    fn reopen(&mut self, pause: Duration, now: Instant) -> Result<(), LinkError> {
        let pause = pause.min(REOPEN_AT_LEAST);
        self.sockets = None; // they hold the port
        self.reopen = Some((now + pause, pause));
        self.sockets = Some(Sockets::open(self.port, composed(self.fwmark, self.mark))?);
        self.reopen = None;
        self.core.moved(now);
        self.flush();
        Ok(())
    }

    /// Closes the sockets, so that another interface can have the port. They are opened again by
    /// [`rebind`](Self::rebind).
    pub fn close_sockets(&mut self) {
        self.sockets = None;
    }

    /// Asks every peer for a new session, so that it is found out who is there: of a way that was
    /// thought to be down when it no longer is, of another one before it is needed.
    pub fn probe(&mut self, now: Instant) {
        let now = self.asleep.wake(now);
        self.core.probe(now);
        self.flush();
    }

    /// How each peer fares. Of all of them, [`PeerHealth::any_usable`].
    pub fn health(&self, now: Instant) -> Vec<PeerHealth> {
        let now = self.asleep.at(now);
        self.core.peers.iter().map(|(_, peer)| peer.health(now)).collect()
    }

    /// What went through, and what was dropped.
    pub fn totals(&self) -> &LinkTotals {
        &self.core.totals
    }
}

/// The mark of the sockets: ours within its mask, and the user's beside it.
fn composed(fwmark: Option<u32>, mark: Option<Mark>) -> Option<u32> {
    match mark {
        Some(Mark { value, mask }) => Some((fwmark.unwrap_or(0) & !mask) | (value & mask)),
        None => fwmark,
    }
}

/// After that long sockets are opened once more that could not be, and then after twice that ...
const REOPEN: Duration = Duration::from_secs(1);
/// ... up to this.
const REOPEN_AT_LEAST: Duration = Duration::from_secs(60);
/// Reports of the network that are looked at in a turn.
const REPORTS: usize = 64;

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("name", &self.name)
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

/// Panics, for those who must live with them.
#[cfg(test)]
pub(crate) mod injected {
    use std::sync::Mutex;

    use engine::DeviceName;

    /// Which interface panics in which call, once.
    pub(crate) static AT: Mutex<Vec<(DeviceName, &str)>> = Mutex::new(Vec::new());

    pub(super) fn check(name: DeviceName, call: &str) {
        let mut at = AT.lock().unwrap();
        if let Some(index) = at.iter().position(|injected| *injected == (name, call)) {
            at.remove(index);
            drop(at);
            panic!("injected");
        }
    }
}
