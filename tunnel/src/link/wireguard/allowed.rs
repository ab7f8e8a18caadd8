//! Crypto-routing: which peer an inner address belongs to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use foldhash::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::peers::PeerId;

/// Every allowed address of every peer. The most specific prefix wins; a prefix belongs to
/// the peer that named it last.
#[derive(Default)]
pub(super) struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
    /// The same the other way round: a peer may be changed without a walk over all others.
    owned: HashMap<PeerId, BTreeSet<IpNet>>,
}

impl AllowedIps {
    pub(super) fn insert(&mut self, net: IpNet, peer: PeerId) {
        let net = net.trunc();
        let before = match net {
            IpNet::V4(net) => self.v4.insert(net, peer),
            IpNet::V6(net) => self.v6.insert(net, peer),
        };
        if let Some(before) = before.filter(|&before| before != peer) {
            self.disown(net, before);
        }
        self.owned.entry(peer).or_default().insert(net);
    }

    /// Takes `net` from `peer`, if it is its.
    pub(super) fn remove(&mut self, net: IpNet, peer: PeerId) {
        let net = net.trunc();
        if self.disown(net, peer) {
            self.unroute(net);
        }
    }

    /// Takes all from `peer`.
    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        for net in self.owned.remove(&peer).unwrap_or_default() {
            self.unroute(net);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whose `address` is.
    pub(super) fn route(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, &peer)| peer),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, &peer)| peer),
        }
    }

    /// The prefixes of `peer`, sorted.
    pub(super) fn of(&self, peer: PeerId) -> impl Iterator<Item = IpNet> {
        self.owned.get(&peer).into_iter().flatten().copied()
    }

    fn disown(&mut self, net: IpNet, peer: PeerId) -> bool {
        self.owned.get_mut(&peer).is_some_and(|nets| nets.remove(&net))
    }

    fn unroute(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => self.v4.remove(&net),
            IpNet::V6(net) => self.v6.remove(&net),
        };
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let owned: usize = self.owned.values().map(BTreeSet::len).sum();
        assert_eq!(owned, self.v4.len() + self.v6.len());
        owned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_most_specific_wins_and_the_last_to_name_owns() {
        let mut allowed = AllowedIps::default();
        for (text, peer) in [
            ("0.0.0.0/0", 1),
            ("10.0.0.0/8", 2),
            ("10.1.0.0/16", 3),
            ("10.1.2.3/32", 4),
            ("::/0", 1),
            ("2001:db8::/32", 2),
            ("2001:db8::1/128", 3),
        ] {
            allowed.insert(net(text), peer);
        }
        for (address, peer) in [
            ("192.0.2.1", 1),
            ("10.2.0.1", 2),
            ("10.1.9.9", 3),
            ("10.1.2.3", 4),
            ("2001:db9::", 1),
            ("2001:db8::2", 2),
            ("2001:db8::1", 3),
        ] {
            assert_eq!(allowed.route(address.parse().unwrap()), Some(peer), "{address}");
        }
        // The bits behind the prefix don't count, and the prefix moves.
        allowed.insert(net("10.1.77.77/16"), 5);
        assert_eq!(allowed.route("10.1.9.9".parse().unwrap()), Some(5));
        allowed.remove(net("10.1.0.0/16"), 3);
        assert_eq!(allowed.route("10.1.9.9".parse().unwrap()), Some(5), "not 3's to take");
        allowed.remove(net("10.1.0.0/16"), 5);
        assert_eq!(allowed.route("10.1.9.9".parse().unwrap()), Some(2));
        for peer in 1..=4 {
            allowed.remove_peer(peer);
        }
        assert_eq!(allowed.len(), 0);
        assert_eq!(allowed.route("10.1.2.3".parse().unwrap()), None);
    }
}
