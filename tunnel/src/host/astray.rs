//! Routes of others that lead our own packets back into the TUN.
//!
//! Captured packets come by our own table; what the daemon sends about them passes that by, and
//! finds the routes that would be there without us. One of those that names the TUN, added by hand
//! or by a program that took its name from a lookup, leads nowhere: flows there are answered
//! "network unreachable" (`source`). It isn't ours to remove, so it is told of.

use std::net::IpAddr;

use engine::Protocol;
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rustix::io::Errno;

use super::change::Family;
use super::kernel;
use super::plan::Plan;
use crate::rtnetlink::Rtnetlink;
use crate::source::{Query, Routes};

/// A route of somebody else's into the TUN, which our own packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Astray {
    /// Its destination.
    pub to: IpNet,
    /// The number of its table; 254 is `main`.
    pub table: u32,
}

/// All of them. `device` is the index of the TUN.
pub(super) fn astray(plan: &Plan, device: u32) -> Result<Vec<Astray>, Errno> {
    let mut netlink = Rtnetlink::open()?;
    let mut routes = Routes::open().map_err(|_| Errno::NOBUFS)?;
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        let listed = match netlink.list(&question(family, device)) {
            // Without IPv6 there are none; without the device neither.
            Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::NODEV) => continue,
            listed => listed?,
        };
        let into = listed.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(route) = message else { return None };
            let theirs = route.header.kind == RouteType::Unicast
                && route.header.protocol != RouteProtocol::Kernel
                && leads_into(route, device);
            let astray = Astray { to: destination(route, family)?, table: table(route) };
            (theirs && astray.table != plan.table).then_some(astray)
        });
        // A table that only some packets are looked up in may not be for ours.
        found.extend(into.filter(|astray| {
            let query = Query {
                destination: within(astray.to),
                source: None,
                device: None,
                protocol: Protocol::Tcp,
                destination_port: 0,
                uid: None,
                mark: Some(plan.mark.value),
            };
            routes.lookup(query).is_ok_and(|answer| answer.device_index == device)
        }));
    }
    Ok(found)
}

fn question(family: Family, device: u32) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family.number();
    message.attributes = vec![RouteAttribute::Oif(device)];
    RouteNetlinkMessage::GetRoute(message)
}

/// A kernel that doesn't filter lists all of them.
fn leads_into(route: &RouteMessage, device: u32) -> bool {
    route.attributes.iter().any(|attribute| {
        if let RouteAttribute::MultiPath(ways) = attribute {
            ways.iter().any(|way| way.interface_index == device)
        } else {
            *attribute == RouteAttribute::Oif(device)
        }
    })
}

fn table(route: &RouteMessage) -> u32 {
    let whole = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None }
    });
    whole.unwrap_or_else(|| route.header.table.into())
}

fn destination(route: &RouteMessage, family: Family) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Destination(to) = attribute else { return None };
        if let RouteAddress::Inet(v4) = to {
            return Some(IpAddr::from(*v4));
        }
        if let RouteAddress::Inet6(v6) = to { Some(IpAddr::from(*v6)) } else { None }
    });
    let address = address.unwrap_or_else(|| kernel::unspecified(family));
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

/// An address that the route is for. The first one of a network may be another's.
fn within(to: IpNet) -> IpAddr {
    to.hosts().next().unwrap_or_else(|| to.addr())
}
