//! An interface as far as it was read: each part where it stands, until the whole is known.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tunnel::link::wireguard::{PresharedKey, PrivateKey, PublicKey};

use super::value::{Dns, Wrong};
use super::{Endpoint, Interface, Peer};

/// What was read of an interface; `P` is a place in what was read.
#[derive(Debug)]
pub(crate) struct Draft<P> {
    pub(crate) key: Option<PrivateKey>,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) listen_port: Option<u16>,
    pub(crate) fwmark: Option<u32>,
    pub(crate) mtu: Option<(P, u16)>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) peers: Vec<DraftPeer<P>>,
}

/// What was read of a peer.
#[derive(Debug)]
pub(crate) struct DraftPeer<P> {
    pub(crate) key: Option<(P, PublicKey)>,
    pub(crate) preshared: Option<PresharedKey>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) allowed: Vec<(P, IpNet)>,
    pub(crate) keepalive: Option<u16>,
}

impl<P> Default for Draft<P> {
    fn default() -> Self {
        Self {
            key: None,
            addresses: Vec::new(),
            listen_port: None,
            fwmark: None,
            mtu: None,
            dns: Vec::new(),
            search: Vec::new(),
            peers: Vec::new(),
        }
    }
}

impl<P> Default for DraftPeer<P> {
    fn default() -> Self {
        Self { key: None, preshared: None, endpoint: None, allowed: Vec::new(), keepalive: None }
    }
}

impl<P: Clone> Draft<P> {
    /// Takes an address of the interface. One that it has already is not wanted twice.
    pub(crate) fn address(&mut self, address: IpNet) {
        if !self.addresses.iter().any(|other| other.addr() == address.addr()) {
            self.addresses.push(address);
        }
    }

    /// Takes an item of `DNS`; what was there before is not wanted twice.
    pub(crate) fn dns(&mut self, item: Dns) {
        match item {
            Dns::Server(address) if !self.dns.contains(&address) => self.dns.push(address),
            Dns::Search(domain) if !self.search.contains(&domain) => self.search.push(domain),
            Dns::Server(_) | Dns::Search(_) => {}
        }
    }

    /// The interface, and what must not stand together in it. `None`: its key is missing.
    pub(crate) fn finish(self) -> (Option<Interface>, Vec<(P, Wrong)>) {
        let mut wrong = Vec::new();
        if let Some((place, mtu)) = &self.mtu
            && *mtu < 1280
            && self.addresses.iter().any(|net| net.addr().is_ipv6())
        {
            // RFC 8200 5
            let message = "IPv6 needs packets of 1280 bytes";
            let help = "write 1280 or more, or leave the IPv6 address out";
            wrong.push((place.clone(), Wrong::new(message).help(help)));
        }
        let own = self.key.as_ref().map(PrivateKey::public);
        let mut keys = HashSet::new();
        let mut owners = HashMap::new();
        let mut peers = Vec::with_capacity(self.peers.len());
        for (number, peer) in self.peers.into_iter().enumerate() {
            let mut allowed = Vec::with_capacity(peer.allowed.len());
            for (place, net) in peer.allowed {
                match owners.insert(net, number) {
                    None => allowed.push(net),
                    Some(other) if other == number => {}
                    // The kernel gives it to the peer that names it last, and says nothing.
                    Some(_) => {
                        let message = format!("`{net}` is another peer's");
                        let help = "leave it with one of the two";
                        wrong.push((place, Wrong::new(message).help(help)));
                    }
                }
            }
            let Some((place, key)) = peer.key else { continue };
            if !keys.insert(key) {
                let help = "write all of a peer's keys below one heading";
                wrong.push((place, Wrong::new("a peer has this key already").help(help)));
            } else if own == Some(key) {
                let message = "that is this interface's own public key";
                let help = "write the peer's";
                wrong.push((place, Wrong::new(message).help(help)));
            }
            let DraftPeer { preshared, endpoint, keepalive, .. } = peer;
            peers.push(Peer { key, preshared, endpoint, allowed, keepalive });
        }
        let Self { addresses, listen_port, fwmark, dns, search, .. } = self;
        let mtu = self.mtu.map(|(_, mtu)| mtu);
        let interface = self.key.map(|key| Interface {
            key,
            addresses,
            listen_port,
            fwmark,
            mtu,
            dns,
            search,
            peers,
        });
        (interface, wrong)
    }
}
