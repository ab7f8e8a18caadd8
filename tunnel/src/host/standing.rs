//! What of the changes in force is still there.
//!
//! # Theory of operation
//!
//! Others remove things of ours without knowing of them: `nft flush ruleset` of a restarted
//! firewall, `ip rule flush`, a network manager that starts anew, `ip link set down`, by which
//! the kernel drops a device's routes, a rename, by which rules don't know a device any more. Then the host is no longer captured, or deaf to
//! connections from outside. So all changes in force are compared with what the kernel has, and
//! what is missing is made again in the order of the start, which never leads packets to where
//! nobody reads them. The journal has it already.
//!
//! What the kernel lists is reduced to the parts that ours have, by the function that reduces
//! ours. What others have added is left alone.

use std::collections::HashSet;

use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rustix::io::Errno;

use super::change::{Change, Device, Family, Via};
use super::kernel;
use super::nft;
use super::seen::{Seen, SeenDevice};
use crate::rtnetlink::Rtnetlink;

/// What the kernel has of what a plan makes.
#[derive(Debug, Default)]
pub(super) struct There {
    devices: Vec<SeenDevice>,
    addresses: HashSet<(u32, IpNet)>,
    routes: HashSet<Key>,
    rules: HashSet<Key>,
    /// Whether the nftables table is as it was made.
    table: bool,
    /// Whether it lists the connections that it did.
    accepted: bool,
}

/// A route or rule, as far as it matters.
type Key = Vec<Vec<u8>>;

impl There {
    /// Looks at what `applied` are of. `made` is the nftables table as it was made, `emptied`
    /// whether something was taken out of its sets since.
    pub(super) fn look(
        seen: &Seen,
        applied: &[Change],
        made: Option<&nft::Standing>,
        emptied: bool,
    ) -> Result<Self, Errno> {
        let mut there = Self { devices: seen.devices.clone(), ..Self::default() };
        let mut netlink = Rtnetlink::open()?;
        let any = |is: fn(&Change) -> bool| applied.iter().any(is);
        if any(|change| matches!(change, Change::Address { .. })) {
            let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
            there.addresses = netlink.list(&question)?.iter().filter_map(address).collect();
        }
        for (family, table) in tables(applied) {
            let routes = none_without(family, kernel::routes(&mut netlink, family, table))?;
            there.routes.extend(routes.iter().map(route));
        }
        for family in [Family::V4, Family::V6] {
            let is_it = |change: &Change| matches!(change, Change::Rule(of) if of.family == family);
            if applied.iter().any(is_it) {
                let rules = none_without(family, kernel::rules(&mut netlink, family))?;
                there.rules.extend(rules.iter().map(rule));
            }
        }
        if any(|change| matches!(change, Change::NftTable { .. })) {
            (there.table, there.accepted) = match nft::Standing::look() {
                Ok(now) => {
                    let is = |is: fn(&nft::Standing, Option<&nft::Standing>) -> bool| {
                        made.is_some_and(|made| is(made, now.as_ref()))
                    };
                    (is(nft::Standing::is_within), !emptied && is(nft::Standing::lists_within))
                }
                // Who may not ask may not make it either.
                Err(Errno::PERM) => (true, true),
                Err(errno) => return Err(errno),
            };
        }
        Ok(there)
    }

    /// What is missing, in the order of `applied`. Settings are another's business, and what hung
    /// on a device that is gone is nobody's.
    pub(super) fn missing(&self, applied: &[Change]) -> Vec<Change> {
        applied.iter().filter(|change| self.lacks(change)).cloned().collect()
    }

    fn lacks(&self, change: &Change) -> bool {
        match change {
            Change::NftTable { .. } => !self.table,
            // With the table they are made as well.
            Change::Accepted => self.table && !self.accepted,
            Change::Link { device, mtu, .. } => self.device(*device).is_some_and(|seen| {
                !seen.up || seen.mtu != u32::from(*mtu) || seen.name != device.name
            }),
            Change::Address { device, address } => {
                self.device(*device).is_some()
                    && !self.addresses.contains(&(device.index, *address))
            }
            Change::Route { table, to, via, metric } => {
                let is_possible = match via {
                    Via::Device { device, .. } => self.device(*device).is_some(),
                    Via::Unreachable | Via::Throw => true,
                };
                let message = kernel::route(*table, to, via, *metric);
                is_possible && !self.routes.contains(&route(&message))
            }
            Change::Rule(of) => !self.rules.contains(&rule(&kernel::rule(of))),
            // The first three are followed by `links`, the other two by who has begun them.
            Change::Sysctl { .. }
            | Change::ReversePath { .. }
            | Change::LaterReversePath { .. }
            | Change::ResolvConf { .. }
            | Change::ResolvconfRecord { .. } => false,
        }
    }

    fn device(&self, device: Device) -> Option<&SeenDevice> {
        self.devices.iter().find(|seen| seen.index == device.index)
    }
}

/// The routing tables that have routes of ours.
fn tables(applied: &[Change]) -> HashSet<(Family, u32)> {
    let table = |change: &Change| {
        let Change::Route { table, to, .. } = change else { return None };
        let family = if to.addr().is_ipv4() { Family::V4 } else { Family::V6 };
        Some((family, *table))
    };
    applied.iter().filter_map(table).collect()
}

/// A kernel without IPv6 has nothing of it.
fn none_without<T: Default>(family: Family, result: Result<T, Errno>) -> Result<T, Errno> {
    match (family, result) {
        (Family::V6, Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP)) => Ok(T::default()),
        (Family::V4 | Family::V6, result) => result,
    }
}

fn address(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    // On a point-to-point link `Address` is the peer's and `Local` ours.
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            local = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            other = Some(*address);
        }
    }
    let address = IpNet::new(local.or(other)?, message.header.prefix_len).ok()?;
    Some((message.header.index, address))
}

fn route(message: &RouteMessage) -> Key {
    let header = &message.header;
    // The kernel says of IPv6's unreachable ones that they lead into the loopback device.
    let leads = header.kind == RouteType::Unicast;
    let matters = |attribute: &&RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Table(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Destination(_)
                | RouteAttribute::PrefSource(_)
                | RouteAttribute::Gateway(_)
        ) || leads && matches!(attribute, RouteAttribute::Oif(_))
    };
    let head =
        [u8::from(header.address_family), header.destination_prefix_length, u8::from(header.kind)];
    key(&head, message.attributes.iter().filter(matters))
}

fn rule(message: &RuleMessage) -> Key {
    let header = &message.header;
    let looks_up = header.action == RuleAction::ToTable;
    let matters = |attribute: &&RuleAttribute| {
        // These the kernel has of every rule.
        !matches!(
            attribute,
            RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(_)
                | RuleAttribute::SuppressIfGroup(_)
                | RuleAttribute::Other(_)
        ) && (looks_up || !matches!(attribute, RuleAttribute::Table(_)))
    };
    let head = [
        u8::from(header.family),
        header.src_len,
        header.dst_len,
        u8::from(header.action),
        u8::from(header.flags.contains(RuleFlags::Invert)),
    ];
    key(&head, message.attributes.iter().filter(matters))
}

/// Whatever order the attributes are in.
fn key<'a, A: Nla + 'a>(head: &[u8], attributes: impl Iterator<Item = &'a A>) -> Key {
    let bytes = |attribute: &A| {
        let mut bytes = vec![0; attribute.value_len()];
        attribute.emit_value(&mut bytes);
        bytes.extend(attribute.kind().to_ne_bytes());
        bytes
    };
    let mut key: Key = attributes.map(bytes).collect();
    key.sort();
    key.push(head.to_vec());
    key
}
