//! What an interface is told, and what it tells of itself.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use engine::DeviceName;
use ipnet::IpNet;

use crate::host::Mark;

use super::key::{PresharedKey, PrivateKey, PublicKey};

/// A whole interface.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it is called.
    pub name: DeviceName,
    /// Its private key.
    pub key: PrivateKey,
    /// The UDP port, of IPv4 and IPv6; `None`: one of the kernel's choice.
    pub listen_port: Option<u16>,
    /// The mark of its sockets, as the user set it.
    pub fwmark: Option<u32>,
    /// The mark of all our own traffic, which its sockets have whatever the user sets: without it
    /// what they send would be captured. Of `fwmark` only bits outside the mask count.
    pub mark: Option<Mark>,
    /// Bytes of the longest inner packet.
    pub mtu: u16,
    /// Who may speak through it.
    pub peers: Vec<PeerSettings>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Its public key.
    pub key: PublicKey,
    /// The key shared with it besides.
    pub preshared: Option<PresharedKey>,
    /// Where it was last known; it may move.
    pub endpoint: Option<SocketAddr>,
    /// The inner addresses behind it.
    pub allowed: Vec<IpNet>,
    /// Seconds of silence after which it gets an empty packet.
    pub keepalive: Option<u16>,
}

impl PeerSettings {
    /// A peer of which only the key is known.
    pub fn new(key: PublicKey) -> Self {
        Self { key, preshared: None, endpoint: None, allowed: Vec::new(), keepalive: None }
    }
}

/// What is to be different in a live interface, with the meaning of the `set` operation of
/// WireGuard's cross-platform interface. `None` leaves a thing as it is.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// A new private key. Sessions of the old one end.
    pub key: Option<PrivateKey>,
    /// A new UDP port; 0: one of the kernel's choice.
    pub listen_port: Option<u16>,
    /// A new mark; `Some(None)` takes it away.
    pub fwmark: Option<Option<u32>>,
    /// Bytes of the longest inner packet from now on.
    pub mtu: Option<u16>,
    /// Removes every peer first.
    pub replace_peers: bool,
    /// Peers to add, to change or to remove, in order.
    pub peers: Vec<PeerChange>,
}

impl Change {
    /// The same in parts, to be made one after another, none of which takes long.
    pub fn parts(self) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut room = PART;
        let mut part = Self { peers: Vec::new(), ..self };
        for mut peer in self.peers {
            let mut rest = std::mem::take(&mut peer.allowed);
            loop {
                let more = rest.split_off(rest.len().min(room));
                room = room.saturating_sub(rest.len().max(1));
                let next = PeerChange { update_only: true, ..PeerChange::new(peer.key) };
                let mut first = std::mem::replace(&mut peer, next);
                first.allowed = rest;
                rest = more;
                part.peers.push(first);
                if room == 0 {
                    parts.push(std::mem::take(&mut part));
                    room = PART;
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
        if parts.is_empty() || !part.peers.is_empty() {
            parts.push(part);
        }
        parts
    }
}

/// Peers and allowed addresses of one part: about a millisecond.
const PART: usize = 1024;

/// What is to be different in a peer, which is made where it doesn't exist.
#[derive(Debug, Clone)]
pub struct PeerChange {
    /// Whose.
    pub key: PublicKey,
    /// Takes the peer away; nothing else is looked at.
    pub remove: bool,
    /// Does nothing where there is no such peer.
    pub update_only: bool,
    /// A new preshared key; `Some(None)` takes it away. The session ends.
    pub preshared: Option<Option<PresharedKey>>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds of silence before an empty packet; `Some(None)`: never.
    pub keepalive: Option<Option<u16>>,
    /// Takes all its allowed addresses away first.
    pub replace_allowed: bool,
    /// Addresses that are its from now on, whoever's they were.
    pub allowed: Vec<IpNet>,
    /// Addresses that are its no longer.
    pub disallowed: Vec<IpNet>,
}

impl PeerChange {
    /// A change of nothing.
    pub fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            preshared: None,
            endpoint: None,
            keepalive: None,
            replace_allowed: false,
            allowed: Vec::new(),
            disallowed: Vec::new(),
        }
    }
}

impl From<PeerSettings> for PeerChange {
    /// The change after which a peer is as these settings say.
    fn from(peer: PeerSettings) -> Self {
        Self {
            preshared: Some(peer.preshared),
            endpoint: peer.endpoint,
            keepalive: Some(peer.keepalive),
            replace_allowed: true,
            allowed: peer.allowed,
            ..Self::new(peer.key)
        }
    }
}

/// An interface as it is: the answer to the `get` operation.
#[derive(Debug, Clone)]
pub struct State {
    /// The private key.
    pub key: PrivateKey,
    /// The UDP port; 0 where it has no socket.
    pub listen_port: u16,
    /// The mark that the user set.
    pub fwmark: Option<u32>,
    /// In the order in which they were added, as far as none was removed.
    pub peers: Vec<PeerState>,
}

/// A peer as it is.
#[derive(Debug, Clone)]
pub struct PeerState {
    /// Its public key.
    pub key: PublicKey,
    /// The key shared with it besides.
    pub preshared: Option<PresharedKey>,
    /// Where it was last heard, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Sorted.
    pub allowed: Vec<IpNet>,
    /// Seconds of silence after which it gets an empty packet.
    pub keepalive: Option<u16>,
    /// When the last session with it began.
    pub last_handshake: Option<SystemTime>,
    /// Bytes of its authentic messages.
    pub received: u64,
    /// Bytes of the messages to it.
    pub sent: u64,
}

impl From<PeerState> for PeerSettings {
    fn from(peer: PeerState) -> Self {
        let PeerState { key, preshared, endpoint, allowed, keepalive, .. } = peer;
        Self { key, preshared, endpoint, allowed, keepalive }
    }
}

/// How a peer fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHealth {
    /// Whose health.
    pub key: PublicKey,
    /// Where it is believed to be.
    pub endpoint: Option<SocketAddr>,
    /// There are keys to send with.
    pub session: bool,
    /// How long ago the last session began.
    pub handshake_age: Option<Duration>,
    /// For how long handshakes have gone unanswered, and nothing else authentic has come.
    pub unanswered: Option<Duration>,
    /// The network said meanwhile that nobody is there.
    pub refused: bool,
    /// The last handshake was given up: 90 seconds without an answer.
    pub gave_up: bool,
}

impl PeerHealth {
    /// Nothing speaks against sending to it: it is known where it is, and no handshake was tried
    /// in vain.
    ///
    /// False within 5 s of its death, as long as anything is sent to it: 2 s of data without an answer,
    /// 2.5 s of asking it; about 1 s where its host says that nobody is there.
    pub fn usable(&self) -> bool {
        let limit = if self.refused { REFUSED } else { SILENT };
        let silent = self.unanswered.is_some_and(|since| since >= limit);
        self.endpoint.is_some() && !self.gave_up && !silent
    }

    /// Whether an interface with these peers is usable: whether one of them is.
    pub fn any_usable(peers: &[Self]) -> bool {
        peers.iter().any(Self::usable)
    }
}

/// Two initiations, 1.25 s apart, and as long again for the answer to the second.
const SILENT: Duration = Duration::from_millis(2500);
/// The round trip that a peer has to give the lie to who says that it is not there.
const REFUSED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_parts_is_the_same_change() {
        let net = |at: u32| IpNet::from(std::net::IpAddr::from(at.to_be_bytes()));
        let peer = |key: u8, nets: std::ops::Range<u32>| PeerChange {
            replace_allowed: true,
            allowed: nets.map(net).collect(),
            disallowed: vec![net(9)],
            ..PeerChange::new(PublicKey::from_bytes([key; 32]))
        };
        for (name, peers, parts) in [
            ("no peer", vec![], 1),
            ("one", vec![peer(1, 0..3)], 1),
            ("just a part", vec![peer(1, 0..1024)], 1),
            ("one more", vec![peer(1, 0..1025)], 2),
            ("many peers", (0..200).map(|key| peer(key, 0..0)).collect(), 1),
            ("many of many", vec![peer(1, 0..1000), peer(2, 0..1000), peer(3, 0..2096)], 4),
        ] {
            let change = Change { replace_peers: true, mtu: Some(9), peers, ..Change::default() };
            let made = change.clone().parts();
            assert_eq!(made.len(), parts, "{name}");
            let heads: Vec<_> = made.iter().map(|part| (part.replace_peers, part.mtu)).collect();
            assert_eq!(heads[0], (true, Some(9)), "{name}");
            assert!(heads[1..].iter().all(|head| *head == (false, None)), "{name}");
            let mut joined: Vec<PeerChange> = Vec::new();
            for peer in made.into_iter().flat_map(|part| part.peers) {
                match joined.last_mut().filter(|last| last.key == peer.key) {
                    Some(last) => {
                        assert!(peer.update_only && !peer.replace_allowed, "{name}");
                        assert!(peer.disallowed.is_empty(), "{name}");
                        last.allowed.extend(peer.allowed);
                    }
                    None => joined.push(peer),
                }
            }
            let allowed = |peers: &[PeerChange]| -> Vec<Vec<IpNet>> {
                peers.iter().map(|peer| peer.allowed.clone()).collect()
            };
            assert_eq!(allowed(&joined), allowed(&change.peers), "{name}");
        }
    }
}
