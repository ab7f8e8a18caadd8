//! What can be changed on a host, and what has to be for a plan.
//!
//! # Theory of operation
//!
//! [`changes`] is pure: a plan and what was seen of the host give a list, in the order in which
//! it is applied. The order is what keeps a live host reachable: first the settings and the
//! packet marks by which connections from outside keep their path, then the device, then the
//! table of captured destinations, and last the rule that leads there, which is the moment of
//! capture. Undone in reverse, the host is uncaptured first.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use engine::DeviceName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::plan::{Capture, Plan};
use super::seen::{Ipv6, Seen};
use super::{links, nft};

/// One change of a host. Each is journaled, applied and undone on its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// A value of `/proc/sys/net/{key}`.
    Sysctl {
        /// The path below `/proc/sys/net/`.
        key: String,
        /// Ours.
        value: String,
        /// What is put back.
        before: String,
    },
    /// No check of sources against the routes (`rp_filter`) on one device, whatever it is called by
    /// then.
    ReversePath {
        /// The device.
        device: Device,
        /// What is put back.
        before: String,
    },
    /// The same for devices that appear later, which take the value of `default` over.
    LaterReversePath {
        /// What is put back: to `default`, and to every device that appeared with ours.
        before: String,
        /// The indices of those that were there already.
        known: Vec<u32>,
    },
    /// The nftables table `inet tunneld`.
    NftTable {
        /// Its text.
        ruleset: String,
        /// The text of one that tracks connections, which keeps what the sets of this one hold:
        /// see [`Host::track`](super::Host::track). `None`: it does already.
        tracking: Option<String>,
    },
    /// The table's sets of connections that are older than it, filled with what the kernel
    /// knows at that moment.
    Accepted,
    /// The device's MTU and queue, no link-local address, and up.
    Link {
        /// The TUN.
        device: Device,
        /// Its MTU.
        mtu: u16,
        /// Whether it has IPv6.
        ipv6: bool,
    },
    /// An address of the device.
    Address {
        /// The TUN.
        device: Device,
        /// The address and its prefix, for which no route is made.
        #[serde(with = "text")]
        address: IpNet,
    },
    /// A route.
    Route {
        /// Its table.
        table: u32,
        /// Its destination.
        #[serde(with = "text")]
        to: IpNet,
        /// What becomes of the packet.
        via: Via,
        /// The lower the better.
        metric: u32,
    },
    /// A rule of policy routing.
    Rule(Rule),
    /// `/etc/resolv.conf`.
    ResolvConf {
        /// Where it is.
        path: PathBuf,
        /// Where what was there is meanwhile, on the same file system.
        kept: PathBuf,
        /// Ours.
        text: String,
        /// The directory of the lock of whoever takes it ([`Host::directory`](super::Host::directory)).
        #[serde(default)]
        holder: PathBuf,
    },
    /// A record of the program `resolvconf`.
    ResolvconfRecord {
        /// Its name.
        record: String,
        /// A resolv.conf(5).
        text: String,
    },
}

impl Change {
    /// Whether it gives a setting a value.
    pub(super) fn is_setting(&self) -> bool {
        matches!(
            self,
            Self::Sysctl { .. } | Self::ReversePath { .. } | Self::LaterReversePath { .. }
        )
    }

    /// Whether both give a value to one thing, so that the later one alone is to be undone.
    pub(super) fn sets_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sysctl { key, .. }, Self::Sysctl { key: other, .. }) => key == other,
            (Self::ReversePath { device, .. }, Self::ReversePath { device: other, .. }) => {
                device.index == other.index
            }
            (Self::LaterReversePath { .. }, Self::LaterReversePath { .. })
            | (Self::NftTable { .. }, Self::NftTable { .. }) => true,
            (Self::ResolvConf { path, .. }, Self::ResolvConf { path: other, .. }) => path == other,
            (
                Self::ResolvconfRecord { record, .. },
                Self::ResolvconfRecord { record: other, .. },
            ) => record == other,
            _ => false,
        }
    }
}

/// A device, as it was when the change was made: another one of its name isn't meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    #[serde(with = "name")]
    pub name: DeviceName,
    /// Its index.
    pub index: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Into a device.
    Device {
        /// The TUN.
        device: Device,
        /// The address that this host's own packets have then.
        source: Option<IpAddr>,
    },
    /// Nowhere: the app's call fails at once.
    Unreachable,
    /// Back to the rules behind the one that led here.
    Throw,
}

/// A rule of policy routing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// The IP version whose packets it sees.
    pub family: Family,
    /// Its place among the rules.
    pub priority: u32,
    /// Which packets it takes.
    pub takes: Takes,
    /// What becomes of them.
    pub then: Then,
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which packets a rule takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Takes {
    /// Every one.
    All,
    /// Those with the mark.
    Marked {
        /// The value within the mask.
        value: u32,
        /// The bits that count.
        mask: u32,
    },
    /// Those without it.
    Unmarked {
        /// The value within the mask.
        value: u32,
        /// The bits that count.
        mask: u32,
    },
    /// Those that came in by this device.
    From(#[serde(with = "name")] DeviceName),
    /// This host's own that may leave by this device alone, mostly for their socket being bound
    /// to it.
    BoundTo(#[serde(with = "name")] DeviceName),
    /// This host's own.
    Own,
    /// This host's own of one TCP connection.
    Connection {
        /// This host's end.
        here: SocketAddr,
        /// The other.
        there: SocketAddr,
    },
    /// This host's own with the mark.
    OwnMarked {
        /// The value within the mask.
        value: u32,
        /// The bits that count.
        mask: u32,
    },
}

/// What becomes of the packets that a rule takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// They are looked up in this table.
    Lookup(u32),
    /// They go on at the rule of this priority.
    Goto(u32),
    /// Nothing: a place to go on at.
    Nop,
}

/// The changes that take a host from what was `seen` of it to `plan`, in order.
///
/// The device must be among what was seen.
pub fn changes(plan: &Plan, seen: &Seen) -> Vec<Change> {
    let captures = plan.capture != Capture::Nothing;
    let mut changes = Vec::new();
    if captures {
        changes.extend(sysctls(seen));
        changes.extend(links::reverse_paths(seen));
        changes.push(Change::NftTable {
            ruleset: nft::ruleset(plan, seen),
            tracking: (!plan.tracks).then(|| nft::tracking(plan, seen)),
        });
        changes.push(Change::Accepted);
    }
    let device = Device { name: plan.device, index: seen.index(plan.device).unwrap_or(0) };
    let ipv6 = seen.ipv6 == Ipv6::Usable;
    changes.push(Change::Link { device, mtu: plan.mtu, ipv6 });
    changes.extend(
        plan.addresses
            .iter()
            .filter(|address| ipv6 || address.addr().is_ipv4())
            .map(|&address| Change::Address { device, address }),
    );
    let families = families(seen);
    changes.extend(all_routes(plan, seen));
    for &family in families {
        changes.extend(rules(plan, family, seen));
    }
    changes
}

/// The IP versions that this host has rules and routes of.
pub(super) fn families(seen: &Seen) -> &'static [Family] {
    match seen.ipv6 {
        Ipv6::Absent => &[Family::V4],
        Ipv6::Disabled | Ipv6::Usable => &[Family::V4, Family::V6],
    }
}

/// The settings without which this host would be deaf to connections from outside, as far as they
/// have another value. Those of a device are [`links`]'.
pub(super) fn sysctls(seen: &Seen) -> Vec<Change> {
    // A mark on a connection's first packet is its socket's too, and an answer without a socket
    // (RST, echo reply, ICMP error) has the mark of what it answers. `src_valid_mark`: a
    // source is looked up with the packet's mark.
    const WANTED: [(&str, &str); 5] = [
        ("ipv4/conf/all/src_valid_mark", "1"),
        ("ipv4/tcp_fwmark_accept", "1"),
        ("ipv4/fwmark_reflect", "1"),
        ("ipv6/fwmark_reflect", "1"),
        ("ipv4/conf/all/rp_filter", links::UNCHECKED),
    ];
    WANTED
        .into_iter()
        .filter_map(|(key, value)| {
            let before = seen.settings.get(key)?.clone();
            let (key, value) = (key.to_owned(), value.to_owned());
            (before != value).then_some(Change::Sysctl { key, value, before })
        })
        .collect()
}

/// The table's routes of both IP versions.
pub(super) fn all_routes(plan: &Plan, seen: &Seen) -> Vec<Change> {
    let device = Device { name: plan.device, index: seen.index(plan.device).unwrap_or(0) };
    let usable = |family| family == Family::V4 || seen.ipv6 == Ipv6::Usable;
    let of = |&family: &Family| routes(plan, family, device, usable(family));
    families(seen).iter().flat_map(of).collect()
}

/// The table's routes: for every captured prefix one into the device, and one that is left when
/// the device is gone. `usable`: the device takes this IP version.
fn routes(plan: &Plan, family: Family, device: Device, usable: bool) -> Vec<Change> {
    let v4 = family == Family::V4;
    let captured = plan.captured(v4);
    let table = plan.table;
    let mut routes: Vec<Change> = link_scoped(v4)
        .into_iter()
        .filter(|range| captured.iter().any(|prefix| prefix != range && prefix.contains(range)))
        .map(|to| Change::Route { table, to, via: Via::Throw, metric: METRIC })
        .collect();
    for &to in &captured {
        routes.push(Change::Route { table, to, via: Via::Unreachable, metric: LAST_METRIC });
    }
    let source = plan.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv4() == v4);
    for to in captured.into_iter().filter(|_| usable) {
        let via = Via::Device { device, source };
        routes.push(Change::Route { table, to, via, metric: METRIC });
    }
    routes
}

/// Destinations that mean something on one link only, and so nothing in the TUN. Whatever is
/// broadcast on a link by its own address is in the table `local` already.
fn link_scoped(v4: bool) -> Vec<IpNet> {
    use ipnet::{Ipv4Net, Ipv6Net};
    use std::net::{Ipv4Addr, Ipv6Addr};
    if v4 {
        vec![
            Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4).into(),
            Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32).into(),
        ]
    } else {
        vec![
            Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into(),
            Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into(),
        ]
    }
}

/// The rules, those that make exceptions first.
///
/// What comes out of the TUN is the engine's and goes on behind our rules as if we weren't there
/// (and not straight to the table `main`: this host may have rules of its own for it). `not` in
/// front of a rule turns all of it round, device and mark together, so that where only own
/// packets are captured the marked ones leave by a rule of their own.
///
/// A connection from outside that is older has a socket without a mark. Its segments get theirs
/// behind the route lookup, which finds no route when the device is gone; so that whoever is
/// logged in stays so, the first of them have a rule each.
///
/// What may leave by one device alone can't go into the TUN: it keeps the path that it would have
/// without us.
///
/// Forwarded packets into the TUN have a mark that only says so. An ICMP error that this host
/// itself sends about one has its mark, and must go back to where that came from.
pub(super) fn rules(plan: &Plan, family: Family, seen: &Seen) -> Vec<Change> {
    if plan.captured(family == Family::V4).is_empty() {
        return Vec::new();
    }
    let super::Mark { value, mask } = plan.mark;
    let (before, at, after) = priorities(plan);
    let rule = |priority, takes, then| Change::Rule(Rule { family, priority, takes, then });
    let mut rules = vec![
        rule(after, Takes::All, Then::Nop),
        rule(before, Takes::From(plan.device), Then::Goto(after)),
    ];
    let bound = links::bound_to(plan, seen);
    rules.extend(bound.map(|device| rule(before, Takes::BoundTo(device), Then::Goto(after))));
    let v4 = family == Family::V4;
    let connections = seen.accepted.iter().filter(|(here, _)| here.is_ipv4() == v4);
    rules.extend(
        connections.take(CONNECTIONS).map(|&(here, there)| {
            rule(before, Takes::Connection { here, there }, Then::Goto(after))
        }),
    );
    if plan.forward {
        if let Some(value) = plan.mark.forwarded() {
            rules.push(rule(before, Takes::OwnMarked { value, mask }, Then::Goto(after)));
        }
        rules.push(rule(at, Takes::Unmarked { value, mask }, Then::Lookup(plan.table)));
    } else {
        rules.push(rule(before, Takes::Marked { value, mask }, Then::Goto(after)));
        rules.push(rule(at, Takes::Own, Then::Lookup(plan.table)));
    }
    rules
}

/// The three priorities that are ours.
pub(super) fn priorities(plan: &Plan) -> (u32, u32, u32) {
    let at = plan.priority;
    (at.saturating_sub(1), at, at.saturating_add(1))
}

/// Rules are looked at one after the other. A session or some have theirs, a busy server's
/// thousands don't.
const CONNECTIONS: usize = 32;

/// Of the routes that lead on.
const METRIC: u32 = 100;
/// Of the routes that say no when nothing else is left.
const LAST_METRIC: u32 = 200;

/// Values that are journaled as the text they are written as.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'a, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'a>,
    {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// Device names, likewise.
mod name {
    use engine::DeviceName;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(name: &DeviceName, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(name.as_str())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<DeviceName, D::Error> {
        let name = String::deserialize(from)?;
        DeviceName::new(&name).ok_or_else(|| de::Error::custom("no device name"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mark, SeenDevice};
    use super::*;

    fn seen(ipv6: Ipv6) -> Seen {
        let device = |name, index, port| {
            let name = DeviceName::new(name).unwrap();
            SeenDevice { name, index, port, up: true, mtu: 1500 }
        };
        let settings = [
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "2"),
            ("ipv4/conf/lo/rp_filter", "2"),
            ("ipv4/conf/eth0/rp_filter", "1"),
            ("ipv4/conf/all/src_valid_mark", "1"),
            ("ipv4/tcp_fwmark_accept", "0"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let accepted = vec![("192.0.2.1:22".parse().unwrap(), "192.0.2.2:4000".parse().unwrap())];
        let devices = vec![
            device("lo", 1, false),
            device("eth0", 2, false),
            device("veth1", 3, true),
            device("t0", 7, false),
        ];
        Seen { devices, settings, ipv6, accepted }
    }

    /// A change in short.
    fn short(change: &Change) -> String {
        match change {
            Change::Sysctl { key, value, before } => format!("{key} {before}>{value}"),
            Change::ReversePath { device, before } => format!("{} {before}>0", device.name),
            Change::LaterReversePath { before, known } => format!("later {before}>0 {known:?}"),
            Change::NftTable { .. } => "nft".to_owned(),
            Change::Accepted => "accepted".to_owned(),
            Change::Link { device, ipv6, .. } => format!("link {} {ipv6}", device.index),
            Change::Address { address, .. } => format!("address {address}"),
            Change::Route { to, via, .. } => match via {
                Via::Device { source, .. } => {
                    format!("{to} tun {}", source.map_or("-".to_owned(), |a| a.to_string()))
                }
                Via::Unreachable => format!("{to} unreachable"),
                Via::Throw => format!("{to} throw"),
            },
            Change::ResolvConf { .. } | Change::ResolvconfRecord { .. } => "resolver".to_owned(),
            Change::Rule(rule) => {
                let takes = match rule.takes {
                    Takes::All => "all",
                    Takes::Marked { .. } => "marked",
                    Takes::Unmarked { .. } => "unmarked",
                    Takes::From(_) => "tun",
                    Takes::BoundTo(device) => &format!("bound to {device}"),
                    Takes::Own => "own",
                    Takes::Connection { .. } => "connection",
                    Takes::OwnMarked { .. } => "about forwarded",
                };
                format!("{} {} {takes}", rule.family, rule.priority)
            }
        }
    }

    #[test]
    fn changes_table() {
        const SETTINGS: [&str; 5] =
            ["ipv4/tcp_fwmark_accept 0>1", "later 2>0 [1, 2, 3, 7]", "eth0 1>0", "nft", "accepted"];
        const V4_ALL: [&str; 4] = [
            "224.0.0.0/4 throw",
            "255.255.255.255/32 throw",
            "0.0.0.0/0 unreachable",
            "0.0.0.0/0 tun 198.18.0.1",
        ];
        const V6_ALL: [&str; 3] = ["fe80::/10 throw", "ff00::/8 throw", "::/0 unreachable"];
        const V4_RULES: [&str; 6] = [
            "IPv4 101 all",
            "IPv4 99 tun",
            "IPv4 99 bound to eth0",
            "IPv4 99 connection",
            "IPv4 99 about forwarded",
            "IPv4 100 unmarked",
        ];
        const V6_RULES: [&str; 5] = [
            "IPv6 101 all",
            "IPv6 99 tun",
            "IPv6 99 bound to eth0",
            "IPv6 99 about forwarded",
            "IPv6 100 unmarked",
        ];
        let all = Plan {
            addresses: vec!["198.18.0.1/32".parse().unwrap(), "2001:2::1/128".parse().unwrap()],
            capture: Capture::All,
            ..Plan::new(DeviceName::new("t0").unwrap())
        };
        let v4 = Capture::Prefixes(vec!["203.0.113.9/24".parse().unwrap()]);
        let one_bit = Mark { value: 1, mask: 1 };
        #[rustfmt::skip]
        let cases: [(&str, Plan, Ipv6, Vec<&[&str]>); 7] = [
            ("all", all.clone(), Ipv6::Usable, vec![
                &SETTINGS, &["link 7 true", "address 198.18.0.1/32", "address 2001:2::1/128"],
                &V4_ALL, &V6_ALL, &["::/0 tun 2001:2::1"], &V4_RULES, &V6_RULES,
            ]),
            ("all, IPv6 disabled", all.clone(), Ipv6::Disabled, vec![
                &SETTINGS, &["link 7 false", "address 198.18.0.1/32"],
                &V4_ALL, &V6_ALL, &V4_RULES, &V6_RULES,
            ]),
            ("all, no IPv6", all.clone(), Ipv6::Absent, vec![
                &SETTINGS, &["link 7 false", "address 198.18.0.1/32"], &V4_ALL, &V4_RULES,
            ]),
            ("own only", Plan { forward: false, ..all.clone() }, Ipv6::Absent, vec![
                &SETTINGS, &["link 7 false", "address 198.18.0.1/32"], &V4_ALL,
                &["IPv4 101 all", "IPv4 99 tun", "IPv4 99 bound to eth0", "IPv4 99 connection", "IPv4 99 marked", "IPv4 100 own"],
            ]),
            ("a mark of one bit", Plan { mark: one_bit, ..all.clone() }, Ipv6::Absent, vec![
                &SETTINGS, &["link 7 false", "address 198.18.0.1/32"], &V4_ALL,
                &["IPv4 101 all", "IPv4 99 tun", "IPv4 99 bound to eth0", "IPv4 99 connection", "IPv4 100 unmarked"],
            ]),
            ("a prefix of IPv4", Plan { capture: v4, ..all.clone() }, Ipv6::Usable, vec![
                &SETTINGS, &["link 7 true", "address 198.18.0.1/32", "address 2001:2::1/128"],
                &["203.0.113.0/24 unreachable", "203.0.113.0/24 tun 198.18.0.1"], &V4_RULES,
            ]),
            ("nothing", Plan { capture: Capture::Nothing, ..all }, Ipv6::Usable, vec![
                &["link 7 true", "address 198.18.0.1/32", "address 2001:2::1/128"],
            ]),
        ];
        for (name, plan, ipv6, expected) in cases {
            let changes: Vec<String> = changes(&plan, &seen(ipv6)).iter().map(short).collect();
            assert_eq!(changes, expected.concat(), "{name}");
        }
    }

    #[test]
    fn a_change_is_the_same_after_the_journal() {
        let plan = Plan {
            addresses: vec!["198.18.0.1/32".parse().unwrap()],
            capture: Capture::All,
            ..Plan::new(DeviceName::new("t0").unwrap())
        };
        for change in changes(&plan, &seen(Ipv6::Usable)) {
            let line = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<Change>(&line).unwrap(), change, "{line}");
        }
    }
}
