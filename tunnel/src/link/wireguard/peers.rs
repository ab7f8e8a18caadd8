//! The peers of an interface, found by key, by index and by inner address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use engine::Instant;
use foldhash::HashMap;
use slab::Slab;

use super::allowed::AllowedIps;
use super::clock::Clock;
use super::dropped::{LinkDropped, LinkTotals};
use super::key::{PresharedKey, PublicKey, random};
use super::outbox::Path;
use super::settings::{PeerHealth, PeerState};
use super::wiped::Wiped;

/// A peer's place in the table, as long as it lives.
pub(super) type PeerId = usize;

/// One peer.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    pub(super) tunn: Wiped<Tunn>,
    pub(super) clock: Clock,
    pub(super) endpoint: Option<SocketAddr>,
    /// Our address that it spoke to last.
    pub(super) source: Option<IpAddr>,
    pub(super) keepalive: Option<u16>,
    pub(super) preshared: Option<PresharedKey>,
    pub(super) last_handshake: Option<SystemTime>,
    /// The index of a session that we answered for and that nobody has used yet.
    pub(super) unconfirmed: Option<u32>,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Packets that wait in `tunn` for a session.
    pub(super) queued: usize,
    /// The upper 24 bits of the indices of its sessions.
    index: u32,
}

impl Peer {
    /// Where a message goes; `None`: nobody knows.
    pub(super) fn path(&self, tos: u8) -> Option<Path> {
        self.endpoint.map(|to| Path { to, source: self.source, tos })
    }

    /// Whether there are keys to send with.
    pub(super) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Notes that `tunn` was given a packet that it can't send yet.
    pub(super) fn queue(&mut self, totals: &mut LinkTotals) {
        if self.queued < QUEUE {
            self.queued += 1;
            totals.packets_out += 1;
        } else {
            totals.drop(LinkDropped::QueueFull);
        }
    }

    /// Notes that `tunn` has forgotten everything; `true`: also a handshake that was young.
    pub(super) fn expire(&mut self, totals: &mut LinkTotals, now: Instant) -> bool {
        totals.drop_many(LinkDropped::GivenUp, std::mem::take(&mut self.queued) as u64);
        self.unconfirmed = None;
        self.clock.expired(now)
    }

    pub(super) fn set_endpoint(&mut self, endpoint: SocketAddr, source: Option<IpAddr>) {
        self.source = source;
        if self.endpoint.replace(endpoint).is_none() {
            self.clock.set_keepalive(self.keepalive);
        }
    }

    /// Nobody is kept alive of whom it isn't known where it is.
    pub(super) fn set_keepalive(&mut self, seconds: Option<u16>) {
        self.keepalive = seconds.filter(|&seconds| seconds > 0);
        self.clock.set_keepalive(self.keepalive.filter(|_| self.endpoint.is_some()));
    }

    pub(super) fn health(&self, now: Instant) -> PeerHealth {
        PeerHealth {
            key: self.key,
            endpoint: self.endpoint,
            session: self.has_session(),
            handshake_age: self.clock.session_age(now),
            unanswered: self.clock.silence(now),
            refused: self.clock.is_refused(),
            gave_up: self.clock.gave_up(),
        }
    }
}

/// What a peer's `Tunn` is made of, besides the peer's own keys.
pub(super) struct Identity {
    pub(super) secret: x25519::StaticSecret,
    pub(super) limiter: Arc<RateLimiter>,
}

/// Every peer.
#[derive(Default)]
pub(super) struct Peers {
    slab: Slab<Peer>,
    by_key: HashMap<PublicKey, PeerId>,
    by_index: HashMap<u32, PeerId>,
    pub(super) allowed: AllowedIps,
}

impl Peers {
    /// Adds a peer that isn't there yet. `None`: the kernel has no random bytes.
    pub(super) fn add(
        &mut self,
        key: PublicKey,
        preshared: Option<PresharedKey>,
        identity: &Identity,
    ) -> Option<PeerId> {
        let index = self.free_index()?;
        let tunn = tunn(key, preshared.as_ref(), index, identity);
        let id = self.slab.insert(Peer {
            key,
            tunn,
            clock: Clock::default(),
            endpoint: None,
            source: None,
            keepalive: None,
            preshared,
            last_handshake: None,
            unconfirmed: None,
            received: 0,
            sent: 0,
            queued: 0,
            index,
        });
        self.by_key.insert(key, id);
        self.by_index.insert(index, id);
        Some(id)
    }

    /// Gives a peer another preshared key, and with it a new beginning: `Tunn` can't change its.
    pub(super) fn reset(
        &mut self,
        id: PeerId,
        preshared: Option<PresharedKey>,
        identity: &Identity,
        totals: &mut LinkTotals,
        now: Instant,
    ) -> Option<()> {
        let index = self.free_index()?;
        let peer = self.slab.get_mut(id)?;
        self.by_index.remove(&peer.index);
        self.by_index.insert(index, id);
        peer.index = index;
        peer.tunn = tunn(peer.key, preshared.as_ref(), index, identity);
        peer.preshared = preshared;
        peer.expire(totals, now);
        Some(())
    }

    pub(super) fn remove(&mut self, id: PeerId, totals: &mut LinkTotals) {
        let peer = self.slab.remove(id);
        totals.drop_many(LinkDropped::GivenUp, peer.queued as u64);
        self.by_key.remove(&peer.key);
        self.by_index.remove(&peer.index);
        self.allowed.remove_peer(id);
    }

    pub(super) fn clear(&mut self, totals: &mut LinkTotals) {
        self.allowed.clear();
        for id in self.ids() {
            self.remove(id, totals);
        }
    }

    pub(super) fn get(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slab.get_mut(id)
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Whose session a receiver index belongs to.
    pub(super) fn by_index(&self, receiver: u32) -> Option<PeerId> {
        self.by_index.get(&(receiver >> 8)).copied()
    }

    pub(super) fn ids(&self) -> Vec<PeerId> {
        self.slab.iter().map(|(id, _)| id).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.slab.iter()
    }

    pub(super) fn states(&self) -> Vec<PeerState> {
        let state = |(id, peer): (PeerId, &Peer)| PeerState {
            key: peer.key,
            preshared: peer.preshared.clone(),
            endpoint: peer.endpoint,
            allowed: self.allowed.of(id).collect(),
            keepalive: peer.keepalive,
            last_handshake: peer.last_handshake,
            received: peer.received,
            sent: peer.sent,
        };
        self.iter().map(state).collect()
    }

    /// 24 random bits that no living peer has.
    fn free_index(&self) -> Option<u32> {
        loop {
            let mut bytes = [0; 4];
            random(&mut bytes[1..])?;
            let index = u32::from_be_bytes(bytes);
            if !self.by_index.contains_key(&index) {
                return Some(index);
            }
            if self.by_index.len() >= MAX_PEERS {
                return None;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        [self.slab.len(), self.by_key.len(), self.by_index.len(), self.allowed.len()]
    }
}

fn tunn(
    key: PublicKey,
    preshared: Option<&PresharedKey>,
    index: u32,
    identity: &Identity,
) -> Wiped<Tunn> {
    Wiped::new(Tunn::new(
        identity.secret.clone(),
        key.point(),
        preshared.map(|key| *key.as_bytes()),
        // Kept by `Clock`: here it could not be changed, and ends when a handshake fails.
        None,
        index,
        Some(identity.limiter.clone()),
    ))
}

/// Packets that `Tunn` keeps while there is no session.
const QUEUE: usize = 256;
/// A random index is found at once as long as most are free.
const MAX_PEERS: usize = 1 << 23;
