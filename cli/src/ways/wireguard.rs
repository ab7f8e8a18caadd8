//! A WireGuard interface as a way out: what the tunnel and the engine are told of it, and what
//! changes from one configuration to the next.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use engine::{DeviceName, Egress, Leads, Link, LinkId, Protocol, WayOut};
use ipnet::IpNet;
use tokio::time::Instant;
use tunnel::host::Mark;
use tunnel::link::wireguard::{Change, PeerChange, PeerHealth, PeerSettings, PublicKey, Settings};
use tunnel::source::{LookupError, Query, Routes};

use super::endpoint::Endpoint;
use crate::wireguard::{self, Interface, Peer};

/// The MTU where no way to a peer is known: wg-quick's.
const MTU: u16 = 1420;
/// Less cannot carry IPv6 (RFC 8200 section 5); the outer packet is fragmented then.
const LEAST_MTU: u32 = 1280;
/// What is around an inner packet: outer IP header, UDP, WireGuard.
const fn overhead(v4: bool) -> u32 {
    if v4 { 60 } else { 80 }
}

/// A tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) link: LinkId,
    pub(super) device: DeviceName,
    /// As the configuration says it.
    pub(super) interface: Interface,
    /// Peers that it knows by their names.
    pub(super) endpoints: HashMap<PublicKey, Endpoint>,
    pub(super) path: Path,
    /// In the order in which the peers were added.
    pub(super) health: Vec<PeerHealth>,
    /// What the shards and whoever watches were told.
    pub(super) usable: bool,
}

/// How its own datagrams leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Path {
    /// Each peer's endpoint that is known, and the address and device towards it; `None`: it can't
    /// be reached.
    egress: Vec<(SocketAddr, Option<Egress>)>,
    /// What its packets leave room for.
    mtu: Option<u16>,
}

impl Tunnel {
    /// One that is not open.
    pub(super) fn new(
        link: LinkId,
        device: DeviceName,
        interface: Interface,
        now: Instant,
    ) -> Self {
        let endpoints =
            named(&interface).map(|(key, name, port)| (key, Endpoint::new(name, port, now)));
        Self {
            endpoints: endpoints.collect(),
            link,
            device,
            interface,
            path: Path::default(),
            health: Vec::new(),
            usable: false,
        }
    }

    /// What it is opened with.
    pub(super) fn settings(&self, mark: Option<Mark>) -> Settings {
        Settings {
            name: self.device,
            key: self.interface.key.clone(),
            listen_port: self.interface.listen_port,
            fwmark: self.interface.fwmark,
            mark,
            mtu: self.mtu(),
            peers: self.interface.peers.iter().map(settings).collect(),
        }
    }

    /// What the engine is told.
    pub(super) fn out(&self) -> WayOut {
        self.out_with(&self.interface)
    }

    /// The same with another configuration.
    pub(super) fn out_with(&self, interface: &Interface) -> WayOut {
        let link = Link {
            device: self.device,
            addresses: interface.addresses.as_slice().into(),
            mtu: interface.mtu.or(self.path.mtu).unwrap_or(MTU),
            underlay: self.underlay(),
        };
        WayOut { usable: self.usable, leads: Leads::Link(link) }
    }

    pub(super) fn mtu(&self) -> u16 {
        self.interface.mtu.or(self.path.mtu).unwrap_or(MTU)
    }

    /// The device that its own datagrams leave by, to the first peer that can be reached.
    pub(super) fn underlay(&self) -> Option<DeviceName> {
        let mut egress = self.path.egress.iter().filter_map(|(_, egress)| *egress);
        egress.next().map(|egress| egress.device)
    }

    /// Whether nothing speaks against some peer of it.
    pub(super) fn is_usable(&self) -> bool {
        PeerHealth::any_usable(&self.health)
    }

    /// Where its peers are believed to be.
    pub(super) fn places(&self) -> Vec<SocketAddr> {
        if self.health.is_empty() {
            let peers = self.interface.peers.iter();
            return peers.filter_map(|peer| settings(peer).endpoint).collect();
        }
        self.health.iter().filter_map(|peer| peer.endpoint).collect()
    }

    /// Takes over another configuration: names that are as they were stay, with their addresses.
    pub(super) fn reconfigure(&mut self, interface: Interface, now: Instant) {
        let mut before = std::mem::take(&mut self.endpoints);
        let unchanged = |key: &PublicKey| {
            let of = |interface: &Interface| peer(interface, key).map(|peer| peer.endpoint.clone());
            of(&self.interface) == of(&interface)
        };
        let endpoints = named(&interface).map(|(key, name, port)| {
            let kept = before.remove(&key).filter(|_| unchanged(&key));
            (key, kept.unwrap_or_else(|| Endpoint::new(name, port, now)))
        });
        self.endpoints = endpoints.collect();
        self.interface = interface;
    }
}

impl Path {
    /// How datagrams to these places leave, as the kernel would have it.
    pub(super) fn to(places: &[SocketAddr], routes: &mut Routes, mark: Option<Mark>) -> Self {
        let mut path = Self::default();
        let mut longest: Option<u32> = None;
        for place in places {
            let Ok((egress, mtu)) = leaves(place, routes, mark) else {
                path.egress.push((*place, None));
                continue;
            };
            path.egress.push((*place, Some(egress)));
            let room = mtu.saturating_sub(overhead(place.is_ipv4())).max(LEAST_MTU);
            longest = Some(longest.map_or(room, |other| other.min(room)));
        }
        path.mtu = longest.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
        path
    }

    /// Whether it leads to these places.
    pub(super) fn is_to(&self, places: &[SocketAddr]) -> bool {
        self.egress.iter().map(|(place, _)| place).eq(places)
    }

    /// Whether datagrams to some place leave another way than before. A place that was not known
    /// before is none: who is there has spoken to the sockets that are.
    pub(super) fn leaves_otherwise(&self, before: &Self) -> bool {
        self.egress.iter().any(|(place, egress)| {
            before.egress.iter().any(|(other, was)| other == place && was != egress)
        })
    }
}

fn leaves(
    place: &SocketAddr,
    routes: &mut Routes,
    mark: Option<Mark>,
) -> Result<(Egress, u32), LookupError> {
    let answer = routes.lookup(Query {
        destination: place.ip(),
        source: None,
        device: None,
        protocol: Protocol::Udp,
        destination_port: place.port(),
        uid: None,
        mark: mark.map(|mark| mark.value),
    })?;
    let device = routes.device_mtu(answer.device_index)?;
    Ok((answer.egress, answer.mtu.map_or(device, |path| path.min(device))))
}

/// The peers that are known by name.
fn named(interface: &Interface) -> impl Iterator<Item = (PublicKey, &str, u16)> {
    interface.peers.iter().filter_map(|peer| match &peer.endpoint {
        Some(wireguard::Endpoint::Name(name, port)) => Some((peer.key, &**name, *port)),
        Some(wireguard::Endpoint::Address(_)) | None => None,
    })
}

fn peer<'i>(interface: &'i Interface, key: &PublicKey) -> Option<&'i Peer> {
    interface.peers.iter().find(|peer| peer.key == *key)
}

fn settings(peer: &Peer) -> PeerSettings {
    PeerSettings {
        key: peer.key,
        preshared: peer.preshared.clone(),
        endpoint: place(peer),
        allowed: peer.allowed.clone(),
        keepalive: peer.keepalive,
    }
}

/// Where a peer is, where the configuration says its address.
fn place(peer: &Peer) -> Option<SocketAddr> {
    match &peer.endpoint {
        Some(wireguard::Endpoint::Address(place)) => Some(*place),
        Some(wireguard::Endpoint::Name(..)) | None => None,
    }
}

/// What changes of the sockets, which may fail; `None`: nothing.
pub(super) fn socket_change(before: &Interface, after: &Interface) -> Option<Change> {
    let port = before.listen_port != after.listen_port;
    let fwmark = before.fwmark != after.fwmark;
    (port || fwmark).then(|| Change {
        listen_port: port.then(|| after.listen_port.unwrap_or(0)),
        fwmark: fwmark.then_some(after.fwmark),
        ..Change::default()
    })
}

/// What else changes; `None`: nothing. Whatever the configuration says as before stays as
/// it has become.
pub(super) fn change(before: &Interface, after: &Interface) -> Option<Change> {
    let key = (before.key != after.key).then(|| after.key.clone());
    let (had, has) = (allowed(before), allowed(after));
    let none = HashSet::new();
    let gone = before.peers.iter().filter(|old| peer(after, &old.key).is_none());
    let mut peers: Vec<PeerChange> =
        gone.map(|old| PeerChange { remove: true, ..PeerChange::new(old.key) }).collect();
    for new in &after.peers {
        let Some(old) = peer(before, &new.key) else {
            peers.push(settings(new).into());
            continue;
        };
        let (had, has) = (had.get(&new.key).unwrap_or(&none), has.get(&new.key).unwrap_or(&none));
        let change = PeerChange {
            preshared: (old.preshared != new.preshared).then(|| new.preshared.clone()),
            endpoint: place(new).filter(|_| old.endpoint != new.endpoint),
            keepalive: (old.keepalive != new.keepalive).then_some(new.keepalive),
            allowed: has.difference(had).copied().collect(),
            disallowed: had.difference(has).copied().collect(),
            ..PeerChange::new(new.key)
        };
        let changes = change.preshared.is_some()
            || change.endpoint.is_some()
            || change.keepalive.is_some()
            || !change.allowed.is_empty()
            || !change.disallowed.is_empty();
        if changes {
            peers.push(change);
        }
    }
    (key.is_some() || !peers.is_empty()).then(|| Change { key, peers, ..Change::default() })
}

/// What is each peer's: a prefix that several have is the last one's.
fn allowed(interface: &Interface) -> HashMap<PublicKey, HashSet<IpNet>> {
    let all = interface
        .peers
        .iter()
        .flat_map(|peer| peer.allowed.iter().map(|net| (net.trunc(), peer.key)));
    let owners: HashMap<IpNet, PublicKey> = all.collect();
    let mut allowed: HashMap<PublicKey, HashSet<IpNet>> = HashMap::new();
    for (net, key) in owners {
        allowed.entry(key).or_default().insert(net);
    }
    allowed
}

#[cfg(test)]
mod tests {
    use tunnel::link::wireguard::{PresharedKey, PrivateKey};

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn peer(number: u8, endpoint: &str, allowed: &[&str]) -> Peer {
        let endpoint = endpoint.parse().map(wireguard::Endpoint::Address);
        Peer {
            key: key(number),
            preshared: None,
            endpoint: endpoint.ok(),
            allowed: allowed.iter().map(|text| net(text)).collect(),
            keepalive: None,
        }
    }

    fn interface(peers: Vec<Peer>) -> Interface {
        Interface {
            key: PrivateKey::from_bytes(&[7; 32]),
            addresses: vec![net("10.0.0.2/32"), net("fd00::2/128")],
            listen_port: Some(51820),
            fwmark: None,
            mtu: None,
            dns: Vec::new(),
            search: Vec::new(),
            peers,
        }
    }

    /// What a change says, in words.
    fn said(change: Option<Change>) -> Vec<String> {
        let Some(change) = change else { return Vec::new() };
        let mut said = Vec::new();
        if change.key.is_some() {
            said.push("key".to_owned());
        }
        for peer in change.peers {
            let number = peer.key.as_bytes()[0];
            let mut words = vec![number.to_string()];
            if peer.remove {
                words.push("remove".to_owned());
            }
            words.extend(peer.preshared.map(|key| format!("preshared {}", key.is_some())));
            words.extend(peer.endpoint.map(|place| format!("at {place}")));
            words.extend(peer.keepalive.map(|seconds| format!("keepalive {seconds:?}")));
            words.extend(peer.allowed.iter().map(|net| format!("+{net}")));
            words.extend(peer.disallowed.iter().map(|net| format!("-{net}")));
            said.push(words.join(" "));
        }
        said
    }

    #[test]
    fn only_what_the_configuration_changes_is_changed() {
        let one = || peer(1, "192.0.2.1:1", &["10.1.0.0/16"]);
        let two = || peer(2, "192.0.2.2:2", &["10.2.0.0/16"]);
        let before = interface(vec![one(), two()]);
        let psk = PresharedKey::from_bytes(&[3; 32]);
        #[rustfmt::skip]
        let cases: [(&str, Interface, &[&str]); 10] = [
            ("the same", interface(vec![one(), two()]), &[]),
            ("another order", interface(vec![two(), one()]), &[]),
            ("a key", Interface { key: PrivateKey::from_bytes(&[8; 32]), ..before.clone() }, &["key"]),
            ("one gone", interface(vec![two()]), &["1 remove"]),
            ("one more", interface(vec![one(), two(), peer(3, "192.0.2.3:3", &["10.3.0.0/16"])]),
                &["3 preshared false at 192.0.2.3:3 keepalive None +10.3.0.0/16"]),
            ("a preshared key", interface(vec![Peer { preshared: psk, ..one() }, two()]), &["1 preshared true"]),
            ("an endpoint", interface(vec![one(), peer(2, "[2001:db8::2]:2", &["10.2.0.0/16"])]),
                &["2 at [2001:db8::2]:2"]),
            ("a keepalive", interface(vec![Peer { keepalive: Some(25), ..one() }, two()]), &["1 keepalive Some(25)"]),
            ("a prefix goes over", interface(vec![peer(1, "192.0.2.1:1", &[]), peer(2, "192.0.2.2:2", &["10.1.0.0/16", "10.2.0.0/16"])]),
                &["1 -10.1.0.0/16", "2 +10.1.0.0/16"]),
            ("a prefix that the last one has", interface(vec![peer(1, "192.0.2.1:1", &["10.1.0.0/16", "10.2.3.4/16"]), two()]), &[]),
        ];
        for (name, after, expected) in cases {
            assert_eq!(said(change(&before, &after)), expected, "{name}");
            assert!(socket_change(&before, &after).is_none(), "{name}");
        }
        for (name, after, port, fwmark) in [
            ("a port", Interface { listen_port: Some(1), ..before.clone() }, Some(1), None),
            ("any port", Interface { listen_port: None, ..before.clone() }, Some(0), None),
            ("a mark", Interface { fwmark: Some(9), ..before.clone() }, None, Some(Some(9))),
        ] {
            let change = socket_change(&before, &after).expect(name);
            assert_eq!((change.listen_port, change.fwmark), (port, fwmark), "{name}");
            assert!(super::change(&before, &after).is_none(), "{name}");
        }
    }

    #[test]
    fn another_path_is_one_to_the_same_place() {
        let egress = |device: &str| Egress {
            address: "192.0.2.7".parse().expect("an address"),
            device: DeviceName::new(device).expect("a name"),
        };
        let path = |ways: &[(&str, Option<&str>)]| Path {
            egress: ways
                .iter()
                .map(|(place, device)| (place.parse().expect("a place"), device.map(egress)))
                .collect(),
            mtu: None,
        };
        let (here, there) = ("192.0.2.1:1", "192.0.2.2:1");
        for (name, before, after, otherwise) in [
            ("the same", path(&[(here, Some("a"))]), path(&[(here, Some("a"))]), false),
            ("another uplink", path(&[(here, Some("a"))]), path(&[(here, Some("b"))]), true),
            ("none", path(&[(here, Some("a"))]), path(&[(here, None)]), true),
            ("one at last", path(&[(here, None)]), path(&[(here, Some("a"))]), true),
            ("one that was not known", path(&[]), path(&[(here, Some("a"))]), false),
            ("it has moved", path(&[(here, Some("a"))]), path(&[(there, Some("b"))]), false),
            (
                "one of two",
                path(&[(here, Some("a")), (there, Some("a"))]),
                path(&[(here, Some("a")), (there, Some("b"))]),
                true,
            ),
        ] {
            assert_eq!(after.leaves_otherwise(&before), otherwise, "{name}");
        }
        assert!(path(&[(here, None)]).is_to(&[here.parse().expect("a place")]));
        assert!(!path(&[(here, None)]).is_to(&[]));
    }

    #[test]
    fn a_name_that_stays_keeps_what_is_known_of_it() {
        let name = |number, name: &str| Peer {
            endpoint: Some(wireguard::Endpoint::Name(name.to_owned(), 51820)),
            ..peer(number, "", &[])
        };
        let now = Instant::now();
        let device = DeviceName::new("wg0").expect("a name");
        let link = LinkId::of(engine::WayId::new(1).expect("a number"));
        let before = interface(vec![name(1, "a.example"), name(2, "b.example")]);
        let mut tunnel = Tunnel::new(link, device, before, now);
        tunnel.endpoints.values_mut().for_each(Endpoint::asked);
        let after =
            interface(vec![name(1, "a.example"), name(2, "c.example"), name(3, "d.example")]);
        tunnel.reconfigure(after, now);
        let due = |number| tunnel.endpoints[&key(number)].due().is_some();
        assert_eq!([due(1), due(2), due(3)], [false, true, true]);
        assert_eq!(tunnel.endpoints.len(), 3);
    }
}
