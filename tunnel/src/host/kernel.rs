//! Links, addresses, routes and rules as the kernel wants them told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkHeader, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RulePortRange,
};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rustix::io::Errno;

use super::change::{Device, Family, Rule, Takes, Then, Via};
use crate::rtnetlink::Rtnetlink;

/// Packets that wait for us when we don't keep up: what an Ethernet device holds (a TUN's own
/// default is 500, which one burst of small datagrams fills).
const QUEUE_PACKETS: u32 = 1000;

/// Gives a device its name, MTU and queue and brings it up. No link-local address is made, so
/// nothing speaks on it unasked.
pub(super) fn bring_up(
    netlink: &mut Rtnetlink,
    device: Device,
    mtu: u16,
    ipv6: bool,
) -> Result<(), Errno> {
    if netlink.name(device.index)? != device.name.as_str() {
        rename(netlink, device)?;
    }
    let mut attributes =
        vec![LinkAttribute::Mtu(mtu.into()), LinkAttribute::TxQueueLen(QUEUE_PACKETS)];
    if ipv6 {
        let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let families = vec![AfSpecUnspec::Inet6(vec![no_address])];
        attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    netlink.change(link(device.index, attributes, LinkFlags::empty(), LinkFlags::empty()))?;
    netlink.change(link(device.index, Vec::new(), LinkFlags::Up, LinkFlags::Up))
}

/// Gives a device its name back.
fn rename(netlink: &mut Rtnetlink, device: Device) -> Result<(), Errno> {
    let name = vec![LinkAttribute::IfName(device.name.to_string())];
    let message = link(device.index, name, LinkFlags::empty(), LinkFlags::empty());
    match netlink.change(message.clone()) {
        // Before Linux 6.2 none is renamed that is up.
        Err(Errno::BUSY) => {
            bring_down(netlink, device)?;
            netlink.change(message)
        }
        done => done,
    }
}

/// Brings a device down.
pub(super) fn bring_down(netlink: &mut Rtnetlink, device: Device) -> Result<(), Errno> {
    netlink.change(link(device.index, Vec::new(), LinkFlags::empty(), LinkFlags::Up))
}

fn link(
    index: u32,
    attributes: Vec<LinkAttribute>,
    flags: LinkFlags,
    change_mask: LinkFlags,
) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader { index, flags, change_mask, ..LinkHeader::default() };
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

pub(super) fn address(device: Device, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(address),
        prefix_len: address.prefix_len(),
        scope: AddressScope::Universe,
        index: device.index,
        ..AddressHeader::default()
    };
    message.attributes = vec![
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Local(address.addr()),
        // The prefix is not on a link: there is no one else behind a TUN.
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    message
}

pub(super) fn route(table: u32, to: &IpNet, via: &Via, metric: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let kind = match via {
        Via::Device { .. } => RouteType::Unicast,
        Via::Unreachable => RouteType::Unreachable,
        Via::Throw => RouteType::Throw,
    };
    message.header = RouteHeader {
        address_family: family(to),
        destination_prefix_length: to.prefix_len(),
        // The attribute holds it whole.
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: RouteProtocol::Static,
        // Not of the link, though there is no router: the kernel looks for the device of a route
        // that somebody adds without one (`ip route add NET via ROUTER`) among those of a link
        // alone, and no router is behind ours.
        scope: RouteScope::Universe,
        kind,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Priority(metric)];
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(to.addr())));
    }
    if let Via::Device { device, source } = via {
        message.attributes.push(RouteAttribute::Oif(device.index));
        // On the hop into the TUN nothing is lost and memory is the link: an algorithm that
        // measures and paces (bbr) only slows it. The far hop has the host's own.
        let reno = RouteMetric::CcAlgo("reno".to_owned());
        message.attributes.push(RouteAttribute::Metrics(vec![reno]));
        if let Some(source) = source {
            message.attributes.push(RouteAttribute::PrefSource(route_address(*source)));
        }
    }
    message
}

pub(super) fn rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let mut attributes = vec![RuleAttribute::Priority(rule.priority)];
    let mut flags = RuleFlags::empty();
    let mut address_bits = 0;
    match &rule.takes {
        Takes::All => {}
        Takes::Marked { value, mask } => {
            attributes.extend([RuleAttribute::FwMark(*value), RuleAttribute::FwMask(*mask)]);
        }
        Takes::Unmarked { value, mask } => {
            attributes.extend([RuleAttribute::FwMark(*value), RuleAttribute::FwMask(*mask)]);
            flags = RuleFlags::Invert;
        }
        Takes::From(device) => attributes.push(RuleAttribute::Iifname(device.to_string())),
        Takes::BoundTo(device) => attributes.push(RuleAttribute::Oifname(device.to_string())),
        Takes::Own => attributes.push(RuleAttribute::Iifname("lo".to_owned())),
        Takes::Connection { here, there } => {
            address_bits = if here.is_ipv4() { 32 } else { 128 };
            let port =
                |address: &SocketAddr| RulePortRange { start: address.port(), end: address.port() };
            attributes.extend([
                RuleAttribute::Iifname("lo".to_owned()),
                RuleAttribute::Source(here.ip()),
                RuleAttribute::Destination(there.ip()),
                RuleAttribute::IpProtocol(IpProtocol::Tcp),
                RuleAttribute::SourcePortRange(port(here)),
                RuleAttribute::DestinationPortRange(port(there)),
            ]);
        }
        Takes::OwnMarked { value, mask } => {
            attributes.push(RuleAttribute::Iifname("lo".to_owned()));
            attributes.extend([RuleAttribute::FwMark(*value), RuleAttribute::FwMask(*mask)]);
        }
    }
    let action = match rule.then {
        Then::Lookup(table) => {
            attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Then::Goto(priority) => {
            attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
        Then::Nop => RuleAction::Nop,
    };
    message.header = RuleHeader {
        family: rule.family.number(),
        src_len: address_bits,
        dst_len: address_bits,
        action,
        flags,
        ..RuleHeader::default()
    };
    message.attributes = attributes;
    message
}

/// All rules.
pub(super) fn rules(netlink: &mut Rtnetlink, family: Family) -> Result<Vec<RuleMessage>, Errno> {
    let mut message = RuleMessage::default();
    message.header.family = family.number();
    let rules = netlink.list(&RouteNetlinkMessage::GetRule(message))?;
    Ok(rules
        .into_iter()
        .filter_map(
            |rule| if let RouteNetlinkMessage::NewRule(rule) = rule { Some(rule) } else { None },
        )
        .collect())
}

/// The routes of `table`.
pub(super) fn routes(
    netlink: &mut Rtnetlink,
    family: Family,
    table: u32,
) -> Result<Vec<RouteMessage>, Errno> {
    let mut message = RouteMessage::default();
    message.header.address_family = family.number();
    message.attributes = vec![RouteAttribute::Table(table)];
    let routes = match netlink.list(&RouteNetlinkMessage::GetRoute(message)) {
        // The table isn't there.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        listed => listed?,
    };
    Ok(routes
        .into_iter()
        .filter_map(|route| {
            if let RouteNetlinkMessage::NewRoute(route) = route { Some(route) } else { None }
        })
        // A kernel that doesn't filter lists all of them.
        .filter(|route| route.attributes.contains(&RouteAttribute::Table(table)))
        .collect())
}

/// Whether any rule has one of `priorities`, and which.
pub(super) fn rule_at(
    netlink: &mut Rtnetlink,
    family: Family,
    priorities: [u32; 3],
) -> Result<Option<u32>, Errno> {
    Ok(rules(netlink, family)?.iter().find_map(|rule| {
        rule.attributes.iter().find_map(|attribute| {
            let RuleAttribute::Priority(priority) = attribute else { return None };
            priorities.contains(priority).then_some(*priority)
        })
    }))
}

/// The address that stands for all of them.
pub(super) fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Family {
    pub(super) fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

fn family(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}
