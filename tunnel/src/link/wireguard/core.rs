//! The protocol of one interface without its sockets: packets in, messages out, and back.
//!
//! What is to leave lies in the outbox; what came is opened into one flat buffer. `Tunn` has
//! the handshake, the sessions and the timers of one peer; here is what joins the peers of an
//! interface: routes, indices, load, endpoints, and the bounds.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use engine::{Failure, Instant, Meta, Unsent};

use super::LinkError;
use super::dropped::{LinkDropped, LinkTotals};
use super::header;
use super::key::{PrivateKey, PublicKey, random};
use super::outbox::{Outbox, Path};
use super::peers::{Identity, Peer, PeerId, Peers};
use super::settings::{Change, PeerChange};
use super::socket::{Arrival, Inbox};
use super::split::{self, split};

/// Message types (WireGuard's paper, section 5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// Bytes of the longest message that isn't data: an initiation.
const LONGEST_HANDSHAKE: usize = 148;
/// What a data message adds: a header of 16 bytes and a tag of 16.
const OVERHEAD: usize = 32;
/// The type of service of handshakes: AF41, as other implementations have it.
const HANDSHAKE_TOS: u8 = 0x88;
/// Handshake messages a second from which on senders must prove their address. Every
/// initiation is counted twice: before its peer is known, and by the peer.
const LOAD: u64 = 200;
/// A peer is not probed again before this.
const PROBE_GAP: Duration = Duration::from_secs(1);

/// Packets that came, in one buffer.
pub(super) struct Opened {
    pub(super) buffer: Vec<u8>,
    pub(super) packets: Vec<Range<usize>>,
    used: usize,
}

impl Opened {
    fn new() -> Self {
        // Every plaintext is shorter than its message.
        Self { buffer: vec![0; Inbox::CAPACITY], packets: Vec::with_capacity(1024), used: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.packets.clear();
    }
}

/// An interface without sockets.
pub(super) struct Core {
    key: PrivateKey,
    public: PublicKey,
    identity: Identity,
    pub(super) peers: Peers,
    pub(super) outbox: Outbox,
    pub(super) opened: Opened,
    pub(super) totals: LinkTotals,
    scratch: Vec<u8>,
    mtu: usize,
    /// No peer needs a tick before this.
    wake: Option<Instant>,
}

impl Core {
    pub(super) fn new(key: PrivateKey, mtu: u16) -> Self {
        let public = key.public();
        Self {
            identity: identity(&key, public),
            key,
            public,
            peers: Peers::default(),
            outbox: Outbox::default(),
            opened: Opened::new(),
            totals: LinkTotals::default(),
            scratch: vec![0; split::SCRATCH],
            mtu: mtu.into(),
            wake: None,
        }
    }

    pub(super) fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn mtu(&self) -> u16 {
        self.mtu as u16 // it was one
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// Seals one packet, or all that a super-packet stands for, into the outbox.
    pub(super) fn send(
        &mut self,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
        now: Instant,
    ) -> Result<(), Unsent> {
        let result = self.seal_all(headers, payload, meta, now);
        result.map_err(|cause| {
            self.totals.drop(cause);
            // `EMSGSIZE` and `EHOSTUNREACH` are what other implementations let the app see.
            Unsent::Failed(if cause == LinkDropped::TooLong {
                Failure::TooBig { mtu: self.mtu as u16 }
            } else {
                Failure::HostUnreachable
            })
        })
    }

    fn seal_all(
        &mut self,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
        now: Instant,
    ) -> Result<(), LinkDropped> {
        let destination = header::destination(headers).ok_or(LinkDropped::Unparsable)?;
        let id = self.peers.allowed.route(destination).ok_or(LinkDropped::NoPeer)?;
        self.touch(id, now);
        let Self { peers, outbox, totals, scratch, mtu, .. } = self;
        let peer = peers.get(id).ok_or(LinkDropped::NoPeer)?;
        let path = peer.path(header::ecn(headers)).ok_or(LinkDropped::NoEndpoint)?;
        split(headers, payload, meta, *mtu, scratch, |packet| {
            seal(peer, id, packet, path, outbox, totals, now);
        })?;
        self.note_wake(id);
        Ok(())
    }

    /// Opens one datagram. An inner packet is appended to `opened`, an answer to the outbox.
    pub(super) fn open(&mut self, datagram: &[u8], arrival: &Arrival, now: Instant) {
        self.totals.datagrams_in += 1;
        // The type, and three bytes that are zero.
        let result = match (datagram.first_chunk::<4>(), datagram.len()) {
            (Some([DATA, 0, 0, 0]), OVERHEAD..) => self.open_data(datagram, arrival, now),
            (Some([INITIATION, 0, 0, 0]), LONGEST_HANDSHAKE) => {
                self.open_initiation(datagram, arrival, now)
            }
            (Some([RESPONSE, 0, 0, 0]), 92) => self.open_handshake(datagram, 8, arrival, now),
            (Some([COOKIE, 0, 0, 0]), 64) => self.open_handshake(datagram, 4, arrival, now),
            _ => Err(LinkDropped::Malformed),
        };
        if let Err(cause) = result {
            self.totals.drop(cause);
        }
    }

    fn open_data(
        &mut self,
        datagram: &[u8],
        arrival: &Arrival,
        now: Instant,
    ) -> Result<(), LinkDropped> {
        let receiver = le32(datagram, 4);
        let id = self.peers.by_index(receiver).ok_or(LinkDropped::NoSession)?;
        self.touch(id, now);
        let peer = self.peers.get(id).ok_or(LinkDropped::NoSession)?;
        let start = self.opened.used;
        let space = self.opened.buffer.get_mut(start..start + datagram.len());
        let space = space.ok_or(LinkDropped::Malformed)?;
        let inner = match peer.tunn.decapsulate(None, datagram, space) {
            TunnResult::WriteToTunnelV4(packet, source) => Some((packet.len(), IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => Some((packet.len(), IpAddr::V6(source))),
            TunnResult::Done => None,
            TunnResult::WriteToNetwork(_) => return Err(LinkDropped::Malformed),
            TunnResult::Err(error) => return Err(data_error(&error)),
        };
        heard(peer, datagram.len(), arrival, now, inner.is_some());
        if peer.unconfirmed == Some(receiver) {
            peer.unconfirmed = None;
            peer.last_handshake = Some(SystemTime::now());
            self.totals.handshakes += 1;
        }
        let waiting = peer.queued > 0;
        let result = inner.map_or(Ok(()), |(length, source)| {
            self.admit(id, start..start + length, source, arrival.tos)
        });
        if waiting {
            self.release(id, now);
        }
        self.note_wake(id);
        result
    }

    /// Lets an authentic inner packet in, if its source is that peer's.
    fn admit(
        &mut self,
        id: PeerId,
        range: Range<usize>,
        source: IpAddr,
        tos: u8,
    ) -> Result<(), LinkDropped> {
        // `Tunn` looked at the version and cut the padding off, but an IPv4 packet may say that
        // it is shorter than its own header.
        let packet = &mut self.opened.buffer[range.clone()];
        let header = match packet.first().map(|first| (first >> 4, first & 0x0f)) {
            Some((4, words)) => usize::from(words.max(5)) * 4,
            Some(_) | None => 40,
        };
        if packet.len() < header {
            return Err(LinkDropped::InnerMalformed);
        }
        if self.peers.allowed.route(source) != Some(id) {
            return Err(LinkDropped::NotAllowed);
        }
        if tos & 3 == 3 {
            header::mark_congestion(packet);
        }
        self.totals.packets_in += 1;
        self.opened.used = range.end;
        self.opened.packets.push(range);
        Ok(())
    }

    fn open_initiation(
        &mut self,
        datagram: &[u8],
        arrival: &Arrival,
        now: Instant,
    ) -> Result<(), LinkDropped> {
        let Identity { secret, limiter } = &self.identity;
        limiter.reset_count();
        let mut cookie = [0; LONGEST_HANDSHAKE];
        // Who doesn't know our public key gets no answer; who asks often has to prove the
        // address. Only then is it worth a key agreement to learn who asks.
        let asker = match limiter.verify_packet(Some(arrival.from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(init)) => {
                parse_handshake_anon(secret, &self.public.point(), &init)
                    .map_err(|_| LinkDropped::BadHandshake)?
            }
            Ok(_) => return Err(LinkDropped::Malformed),
            Err(TunnResult::WriteToNetwork(message)) => {
                let length = message.len();
                if let Some(slot) = self.outbox.slot(length) {
                    slot.copy_from_slice(&cookie[..length]);
                    self.outbox.commit_alone(length, back(arrival, 0), None);
                }
                return Err(LinkDropped::UnderLoad);
            }
            Err(_) => return Err(LinkDropped::Stranger),
        };
        let key = PublicKey::from_bytes(asker.peer_static_public);
        let id = self.peers.by_key(&key).ok_or(LinkDropped::UnknownPeer)?;
        self.open_from(id, datagram, arrival, now)
    }

    /// A response or cookie, whose receiver index is `at`.
    fn open_handshake(
        &mut self,
        datagram: &[u8],
        at: usize,
        arrival: &Arrival,
        now: Instant,
    ) -> Result<(), LinkDropped> {
        self.identity.limiter.reset_count();
        let id = self.peers.by_index(le32(datagram, at)).ok_or(LinkDropped::StaleHandshake)?;
        self.open_from(id, datagram, arrival, now)
    }

    /// A handshake message of, or to, a known peer.
    fn open_from(
        &mut self,
        id: PeerId,
        datagram: &[u8],
        arrival: &Arrival,
        now: Instant,
    ) -> Result<(), LinkDropped> {
        self.touch(id, now);
        let Self { peers, outbox, totals, .. } = self;
        let peer = peers.get(id).ok_or(LinkDropped::UnknownPeer)?;
        let Some(slot) = outbox.slot(LONGEST_HANDSHAKE) else {
            return Err(LinkDropped::SocketFull);
        };
        let (length, kind) = match peer.tunn.decapsulate(Some(arrival.from.ip()), datagram, slot) {
            TunnResult::WriteToNetwork(message) => (message.len(), message[0]),
            TunnResult::Err(error) => return Err(handshake_error(&error)),
            // A cookie was taken: the next initiation will have it.
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return Ok(()),
        };
        match kind {
            RESPONSE => {
                let index = le32(slot, 4);
                outbox.commit_alone(length, back(arrival, HANDSHAKE_TOS), Some(id));
                heard(peer, datagram.len(), arrival, now, false);
                peer.clock.established(now, false);
                peer.clock.sent(now, false);
                peer.sent += length as u64;
                peer.unconfirmed = Some(index);
            }
            DATA => {
                // Our initiation was answered; the empty packet confirms the session.
                heard(peer, datagram.len(), arrival, now, false);
                outbox.commit(length, back(arrival, 0), id);
                peer.clock.established(now, true);
                peer.clock.sent(now, false);
                peer.sent += length as u64;
                peer.last_handshake = Some(SystemTime::now());
                totals.handshakes += 1;
                self.release(id, now);
            }
            // A cookie, made by the peer's own check: the sender hasn't proved anything.
            _ => {
                outbox.commit_alone(length, back(arrival, 0), None);
                return Err(LinkDropped::UnderLoad);
            }
        }
        self.note_wake(id);
        Ok(())
    }

    /// Sends what waited for a session.
    fn release(&mut self, id: PeerId, now: Instant) {
        let Self { peers, outbox, mtu, .. } = self;
        let Some(peer) = peers.get(id) else { return };
        if !peer.has_session() {
            return;
        }
        let Some(path) = peer.path(0) else { return };
        while let Some(slot) = outbox.slot((*mtu + OVERHEAD).max(LONGEST_HANDSHAKE)) {
            let TunnResult::WriteToNetwork(message) = peer.tunn.decapsulate(None, &[], slot) else {
                break;
            };
            let length = message.len();
            outbox.commit(length, path, id);
            peer.clock.sent(now, length > OVERHEAD);
            peer.sent += length as u64;
        }
        peer.queued = 0;
    }

    /// Ticks every peer that needs it.
    pub(super) fn timers(&mut self, now: Instant) {
        if self.wake.is_none_or(|wake| wake > now) {
            return;
        }
        let due = |(id, peer): (PeerId, &Peer)| {
            peer.clock.due().is_some_and(|due| due <= now).then_some(id)
        };
        let due: Vec<PeerId> = self.peers.iter().filter_map(due).collect();
        for id in due {
            self.tick(id, now);
        }
        self.wake = self.peers.iter().filter_map(|(_, peer)| peer.clock.due()).min();
    }

    /// Lets every peer that has a session tell the other side where we are now.
    pub(super) fn moved(&mut self, now: Instant) {
        for id in self.peers.ids() {
            let Some(peer) = self.peers.get(id) else { continue };
            peer.source = None;
            if !peer.clock.active() {
                continue;
            }
            let silent = peer.clock.silence(now).is_some();
            self.tick(id, now);
            if silent {
                self.ask(id, now);
            } else {
                self.greet(id, now);
                self.note_wake(id);
            }
        }
    }

    /// Asks every peer whether it is there, session or not, if it wasn't asked just now.
    pub(super) fn probe(&mut self, now: Instant) {
        for id in self.peers.ids() {
            let Some(peer) = self.peers.get(id) else { continue };
            if peer.clock.asked_ago(now).is_none_or(|ago| ago >= PROBE_GAP) {
                self.ask(id, now);
            }
        }
    }

    /// The network says that nobody is at `endpoint`.
    pub(super) fn refused(&mut self, endpoint: SocketAddr, now: Instant) {
        for id in self.peers.ids() {
            let Some(peer) = self.peers.get(id) else { continue };
            if peer.endpoint == Some(endpoint) && peer.clock.refused() {
                self.ask(id, now);
            }
        }
    }

    /// Asks for a handshake, whatever else is under way: any peer that lives answers.
    fn ask(&mut self, id: PeerId, now: Instant) {
        self.touch(id, now);
        let Self { peers, outbox, .. } = self;
        let Some(peer) = peers.get(id) else { return };
        let Some(path) = peer.path(0) else { return };
        if let Some(slot) = outbox.slot(LONGEST_HANDSHAKE)
            && let TunnResult::WriteToNetwork(message) =
                peer.tunn.format_handshake_initiation(slot, true)
        {
            let length = message.len();
            commit_initiation(peer, id, length, path, outbox, now);
        }
        self.note_wake(id);
    }

    /// Sends an empty packet, or asks for a session to send it with.
    fn greet(&mut self, id: PeerId, now: Instant) {
        let Self { peers, outbox, totals, .. } = self;
        let Some(peer) = peers.get(id) else { return };
        let Some(path) = peer.path(0) else { return };
        // However it goes: silence is measured from here.
        peer.clock.sent(now, false);
        if peer.has_session() {
            seal(peer, id, &[], path, outbox, totals, now);
        } else if let Some(slot) = outbox.slot(LONGEST_HANDSHAKE)
            && let TunnResult::WriteToNetwork(message) =
                peer.tunn.format_handshake_initiation(slot, false)
        {
            let length = message.len();
            commit_initiation(peer, id, length, path, outbox, now);
        }
    }

    /// Ticks a peer to which something is about to happen, if its last tick is long ago.
    fn touch(&mut self, id: PeerId, now: Instant) {
        if self.peers.get(id).is_some_and(|peer| peer.clock.stale(now)) {
            self.tick(id, now);
        }
    }

    fn tick(&mut self, id: PeerId, now: Instant) {
        let Self { peers, outbox, totals, .. } = self;
        let Some(peer) = peers.get(id) else { return };
        let mut greet = peer.clock.wants_keepalive(now);
        peer.clock.ticked(now);
        let Some(slot) = outbox.slot(LONGEST_HANDSHAKE) else { return };
        let message = match peer.tunn.update_timers(slot) {
            TunnResult::WriteToNetwork(message) => Some((message.len(), message[0])),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                greet |= peer.expire(totals, now);
                None
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        };
        if let Some((length, kind)) = message {
            match peer.path(0) {
                Some(path) if kind == INITIATION => {
                    commit_initiation(peer, id, length, path, outbox, now);
                }
                Some(path) => {
                    outbox.commit(length, path, id);
                    peer.clock.sent(now, false);
                    peer.sent += length as u64;
                }
                None => {}
            }
        }
        let ask = peer.clock.wants_handshake(now);
        if greet {
            self.greet(id, now);
        }
        // It has been ticked: this is the end of it.
        if ask {
            self.ask(id, now);
        }
    }

    fn note_wake(&mut self, id: PeerId) {
        let due = self.peers.get(id).and_then(|peer| peer.clock.due());
        self.wake = match (self.wake, due) {
            (Some(wake), Some(due)) => Some(wake.min(due)),
            (wake, due) => wake.or(due),
        };
    }

    /// Makes a change, all but what concerns sockets.
    pub(super) fn change(&mut self, change: Change, now: Instant) -> Result<(), LinkError> {
        if let Some(mtu) = change.mtu {
            self.mtu = mtu.into();
        }
        if let Some(key) = change.key.filter(|key| *key != self.key) {
            self.set_key(key, now);
        }
        if let Some(mtu) = change.mtu {
            self.mtu = mtu.into();
        }
        if change.replace_peers {
            self.peers.clear(&mut self.totals);
        }
        for peer in change.peers {
            self.change_peer(peer, now)?;
        }
        self.wake = self.peers.iter().filter_map(|(_, peer)| peer.clock.due()).min();
        self.timers(now);
        Ok(())
    }

    fn set_key(&mut self, key: PrivateKey, now: Instant) {
        self.public = key.public();
        self.identity = identity(&key, self.public);
        self.key = key;
        if let Some(id) = self.peers.by_key(&self.public) {
            self.peers.remove(id, &mut self.totals);
        }
        for id in self.peers.ids() {
            let Self { peers, outbox, identity, public, .. } = self;
            let Some(peer) = peers.get(id) else { continue };
            let limiter = Some(identity.limiter.clone());
            peer.tunn.set_static_private(identity.secret.clone(), public.point(), limiter);
            peer.unconfirmed = None;
            if !peer.clock.active() {
                continue;
            }
            // What waits in the peer's queue goes on waiting, now for a session of the new key.
            if let Some(path) = peer.path(0)
                && let Some(slot) = outbox.slot(LONGEST_HANDSHAKE)
                && let TunnResult::WriteToNetwork(message) =
                    peer.tunn.format_handshake_initiation(slot, true)
            {
                let length = message.len();
                commit_initiation(peer, id, length, path, outbox, now);
            }
        }
    }

    fn change_peer(&mut self, change: PeerChange, now: Instant) -> Result<(), LinkError> {
        // A peer of one's own key would be a tunnel to oneself: it is passed over, as `wg` does.
        if change.key == self.public {
            return Ok(());
        }
        let known = self.peers.by_key(&change.key);
        if change.remove {
            if let Some(id) = known {
                self.peers.remove(id, &mut self.totals);
            }
            return Ok(());
        }
        let id = match known {
            Some(id) => {
                if let Some(preshared) = change.preshared
                    && self.peers.get(id).is_some_and(|peer| peer.preshared != preshared)
                {
                    let Self { peers, identity, totals, .. } = self;
                    peers.reset(id, preshared, identity, totals, now).ok_or(LinkError::Random)?;
                }
                id
            }
            None if change.update_only => return Ok(()),
            None => {
                let preshared = change.preshared.flatten();
                self.peers.add(change.key, preshared, &self.identity).ok_or(LinkError::Random)?
            }
        };
        if change.replace_allowed {
            self.peers.allowed.remove_peer(id);
        }
        for net in change.allowed {
            self.peers.allowed.insert(net, id);
        }
        for net in change.disallowed {
            self.peers.allowed.remove(net, id);
        }
        let Some(peer) = self.peers.get(id) else { return Ok(()) };
        if let Some(keepalive) = change.keepalive {
            peer.set_keepalive(keepalive);
        }
        if let Some(endpoint) = change.endpoint.filter(|&to| peer.endpoint != Some(to)) {
            peer.set_endpoint(endpoint, None);
            // Who was not found at the old place is looked for at the new one.
            if peer.clock.elsewhere() {
                self.ask(id, now);
            }
        }
        Ok(())
    }
}

/// Seals one padded packet, or queues it and asks for a session.
fn seal(
    peer: &mut Peer,
    id: PeerId,
    packet: &[u8],
    path: Path,
    outbox: &mut Outbox,
    totals: &mut LinkTotals,
    now: Instant,
) {
    let Some(slot) = outbox.slot((packet.len() + OVERHEAD).max(LONGEST_HANDSHAKE)) else {
        totals.drop(LinkDropped::SocketFull);
        return;
    };
    match peer.tunn.encapsulate(packet, slot) {
        TunnResult::WriteToNetwork(message) if message[0] == DATA => {
            let length = message.len();
            outbox.commit(length, path, id);
            peer.clock.sent(now, !packet.is_empty());
            peer.sent += length as u64;
            totals.packets_out += u64::from(!packet.is_empty());
        }
        TunnResult::WriteToNetwork(message) => {
            let length = message.len();
            peer.queue(totals);
            commit_initiation(peer, id, length, path, outbox, now);
        }
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => peer.queue(totals),
    }
}

fn commit_initiation(
    peer: &mut Peer,
    id: PeerId,
    length: usize,
    path: Path,
    outbox: &mut Outbox,
    now: Instant,
) {
    let mut jitter = [0];
    let _ = random(&mut jitter); // without it they are not spread, and nothing else
    outbox.commit_alone(length, Path { tos: HANDSHAKE_TOS, ..path }, Some(id));
    peer.clock.initiated(now, jitter[0]);
    peer.sent += length as u64;
}

/// Notes an authentic message: the peer is where it came from.
fn heard(peer: &mut Peer, length: usize, arrival: &Arrival, now: Instant, data: bool) {
    peer.received += length as u64;
    peer.set_endpoint(arrival.from, arrival.to);
    peer.clock.received(now, data);
}

fn back(arrival: &Arrival, tos: u8) -> Path {
    Path { to: arrival.from, source: arrival.to, tos }
}

fn identity(key: &PrivateKey, public: PublicKey) -> Identity {
    let limiter = Arc::new(RateLimiter::new(&public.point(), LOAD));
    Identity { secret: key.secret(), limiter }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "boringtun's causes, of which few can be")]
fn data_error(error: &WireGuardError) -> LinkDropped {
    match error {
        WireGuardError::InvalidAeadTag => LinkDropped::Forged,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => LinkDropped::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => LinkDropped::NoSession,
        // Said of what is inside alone: the message itself was looked at before.
        WireGuardError::InvalidPacket => LinkDropped::InnerMalformed,
        _ => LinkDropped::Malformed,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "boringtun's causes, of which few can be")]
fn handshake_error(error: &WireGuardError) -> LinkDropped {
    match error {
        WireGuardError::InvalidMac => LinkDropped::Stranger,
        WireGuardError::UnderLoad => LinkDropped::UnderLoad,
        WireGuardError::WrongTai64nTimestamp
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongIndex => LinkDropped::StaleHandshake,
        WireGuardError::WrongKey => LinkDropped::UnknownPeer,
        _ => LinkDropped::BadHandshake,
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
