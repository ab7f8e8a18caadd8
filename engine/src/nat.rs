//! Which port of a link's own address stands for which flow.
//!
//! The far side of a flow sees the link's address and a port (or echo identifier) that belongs
//! to the flow alone as far as that far side is concerned. The client's own port is kept where
//! it is free and this shard's (RFC 4787 3.1, port preservation): two flows differ in port only where their far
//! sides are the same. An entry lives as long as its flow.
//!
//! Ports of our own connections through a link ([`Nat::reserve`]) are no flow's, and no flow is
//! given one towards the same far side.

use hashbrown::{HashMap, HashSet};

use crate::FlowId;
use crate::flow::Key;
use crate::share::Share;
use crate::ways::LinkId;

/// What a reply names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NatKey {
    pub(crate) link: LinkId,
    pub(crate) protocol: u8,
    pub(crate) far: [u8; 16],
    pub(crate) far_port: u16,
    /// The port or identifier at the link's address.
    pub(crate) port: u16,
}

impl NatKey {
    /// What replies to a flow of that key name.
    pub(crate) fn of(key: &Key, link: LinkId, port: u16) -> Self {
        let Key { protocol, destination, ports, .. } = *key;
        Self { link, protocol, far: destination, far_port: ports.1, port }
    }
}

#[derive(Debug)]
pub(crate) struct Nat {
    flows: HashMap<NatKey, FlowId, foldhash::fast::FixedState>,
    own: HashSet<NatKey, foldhash::fast::FixedState>,
    share: Share,
    random: u64,
}

/// Ports tried where the client's own is taken.
const TRIES: usize = 256;
/// The first port that is given away (RFC 6335 6: below are the system's).
const FIRST: u16 = 1024;

impl Nat {
    pub(crate) fn new(seed: u64, share: Share) -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(seed);
        let (flows, own) = (HashMap::with_hasher(hasher.clone()), HashSet::with_hasher(hasher));
        Self { flows, own, share, random: seed ^ 0x6e61_7470_6f72_7473 }
    }

    /// Takes the port of `wanted`, or another one, for a flow; `None`: none was found free.
    pub(crate) fn take(&mut self, wanted: NatKey, flow: FlowId) -> Option<u16> {
        let mut key = wanted;
        for _ in 0..TRIES {
            if self.share.other(key.port).is_none() && self.is_free(&key) {
                self.flows.insert(key, flow);
                return Some(key.port);
            }
            let ports = u64::from(u16::MAX - FIRST) + 1;
            let port = FIRST + (self.next_random() % ports) as u16;
            key.port = self.share.nearest(port, FIRST);
        }
        None
    }

    fn is_free(&self, key: &NatKey) -> bool {
        !self.flows.contains_key(key) && !self.own.contains(key)
    }

    /// Takes this very port for ourselves; `false`: it is taken, or another shard's.
    pub(crate) fn reserve(&mut self, key: NatKey) -> bool {
        self.share.other(key.port).is_none() && self.is_free(&key) && self.own.insert(key)
    }

    /// Gives back a port of ours.
    pub(crate) fn release(&mut self, key: &NatKey) {
        self.own.remove(key);
    }

    /// Whether a reply is for ourselves.
    pub(crate) fn is_own(&self, key: &NatKey) -> bool {
        self.own.contains(key)
    }

    /// The flow that a reply is for.
    pub(crate) fn find(&self, key: &NatKey) -> Option<FlowId> {
        self.flows.get(key).copied()
    }

    /// Frees a port.
    pub(crate) fn free(&mut self, key: &NatKey) {
        self.flows.remove(key);
    }

    /// How many ports are taken.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Splitmix64: not to be guessed without the seed by somebody who sees few of them.
    pub(crate) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::UDP;
    use crate::ways::WayId;

    fn key(far: u8, port: u16) -> NatKey {
        let link = LinkId::of(WayId::new(1).expect("few"));
        NatKey { link, protocol: UDP, far: [far; 16], far_port: 53, port }
    }

    #[test]
    fn a_port_is_kept_where_it_is_free() {
        let mut nat = Nat::new(7, Share::WHOLE);
        let flow = |n| FlowId::from_bits(n);
        assert_eq!(nat.take(key(1, 500), flow(1)), Some(500), "also one of the system's");
        assert_eq!(nat.take(key(2, 500), flow(2)), Some(500), "another far side");
        let other = nat.take(key(1, 500), flow(3)).expect("there are more");
        assert!(other != 500 && other >= FIRST);
        assert_eq!(nat.find(&key(1, other)), Some(flow(3)));
        assert_eq!(nat.find(&key(1, 500)), Some(flow(1)));
        assert_eq!(nat.find(&key(3, 500)), None);
        nat.free(&key(1, 500));
        assert_eq!((nat.find(&key(1, 500)), nat.len()), (None, 2));
    }

    #[test]
    fn a_port_of_ours_is_no_flows() {
        let mut nat = Nat::new(7, Share::WHOLE);
        let flow = FlowId::from_bits(1);
        assert!(nat.reserve(key(1, 5000)) && !nat.reserve(key(1, 5000)), "once");
        assert_ne!(nat.take(key(1, 5000), flow), Some(5000));
        assert_eq!(nat.take(key(2, 5000), flow), Some(5000), "towards another far side");
        assert!(!nat.reserve(key(2, 5000)), "a flow's is not ours");
        assert_eq!((nat.find(&key(1, 5000)), nat.is_own(&key(1, 5000))), (None, true));
        nat.release(&key(1, 5000));
        assert_eq!(nat.take(key(1, 5000), flow), Some(5000));
    }

    #[test]
    fn a_port_of_another_shard_is_not_given() {
        let share = Share::new(1, 3).expect("one of three");
        let mut nat = Nat::new(7, share);
        assert_eq!(nat.take(key(1, 1000), FlowId::from_bits(1)), Some(1000), "1000 % 3 is 1");
        for flow in 2..200 {
            let port = nat.take(key(1, 1001), FlowId::from_bits(flow)).expect("there are more");
            assert!(port % 3 == 1 && port >= FIRST, "{port}");
        }
        assert!(nat.reserve(key(1, 1003)) && !nat.reserve(key(1, 1004)));
    }

    #[test]
    fn ports_end() {
        let mut nat = Nat::new(7, Share::WHOLE);
        let taken =
            (0..200_000).filter(|n| nat.take(key(1, 4000), FlowId::from_bits(*n)).is_some());
        let taken = taken.count();
        assert!(taken > 60_000 && taken <= 64_512, "{taken}");
        assert_eq!(nat.len(), taken);
    }
}
