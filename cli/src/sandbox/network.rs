//! The network inside: loopback, the TUN and the routes into it.
//!
//! # Theory of operation
//!
//! Two devices. The TUN is opened after the namespace was entered (before, TUNSETIFF says
//! EPERM) and all its queues before it comes up, since attaching one later moves half of
//! the flows to other queues. Its default routes carry everything, multicast included.
//!
//! Nothing speaks unasked: no link-local address is made and no duplicate is looked for, so
//! there are no router solicitations, no neighbour discovery and no multicast reports, and
//! the IPv6 address is usable at once.
//!
//! Loopback's port 53 goes into the TUN by the rules of [`capture_loopback_dns`]; see the
//! module above for why. `route_localnet` lets 127.0.0.0/8 leave and enter by the TUN. The check
//! of an answer's source asks for the way back, ports included, and finds the same rules; a later
//! fragment has no ports, so `accept_local` lets in a source that the table `local` knows. Reverse
//! path filtering, which a new namespace takes from the host's first one, would want more than
//! either and is off.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkHeader,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleHeader, RuleMessage, RulePortRange,
};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, netlink};
use tunnel::device::OpenError;
use tunnel::rtnetlink::Rtnetlink;
use tunnel::source::{Query, RouteKind, Routes};

use super::Plan;
use super::error::{Failure, Stage};
use super::inside::At;
use super::sysctl::Sysctls;

/// What was opened inside.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) tun: Vec<OwnedFd>,
    pub(super) sock_diag: Vec<OwnedFd>,
}

/// Sets up the network of the namespace that this thread is in.
pub(super) fn set_up(plan: &Plan) -> Result<Devices, Failure> {
    let mut netlink = Rtnetlink::open().at(Stage::Network)?;
    netlink.change(set_link(LOOPBACK, Vec::new(), LinkFlags::Up)).at(Stage::Network)?;

    let name = plan.device.as_str();
    let several = plan.queues > 1;
    let tun = (0..plan.queues)
        .map(|_| tunnel::device::open_tun(name, plan.offload, several))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::from(&error))?;
    let index = netlink.index(name).at(Stage::Network)?;
    set_sysctls(plan).at(Stage::Sysctl)?;
    bring_up(&mut netlink, plan, index).at(Stage::Network)?;
    await_addresses(plan).at(Stage::Network)?;
    let sock_diag =
        (0..plan.queues).map(|_| sock_diag()).collect::<Result<_, _>>().at(Stage::Network)?;
    Ok(Devices { tun, sock_diag })
}

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Packets that wait for us when we don't keep up: what an Ethernet device holds (a TUN's own
/// default is 500, which one burst of small datagrams fills).
const QUEUE_PACKETS: u32 = 1000;

fn bring_up(netlink: &mut Rtnetlink, plan: &Plan, index: u32) -> Result<(), Errno> {
    let mut families = vec![AfSpecUnspec::Inet(vec![accept_loopback()])];
    if plan.ipv6 {
        let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        families.push(AfSpecUnspec::Inet6(vec![no_address]));
    }
    let attributes = vec![
        LinkAttribute::Mtu(plan.mtu),
        LinkAttribute::TxQueueLen(QUEUE_PACKETS),
        LinkAttribute::AfSpecUnspec(families),
    ];
    netlink.change(set_link(index, attributes, LinkFlags::empty()))?;
    netlink.change(set_link(index, Vec::new(), LinkFlags::Up))?;

    let usable = || plan.addresses.iter().filter(|a| plan.ipv6 || matches!(a, IpNet::V4(_)));
    for address in usable() {
        netlink.add(new_address(index, address))?;
    }
    let first_of = |v4: bool| usable().map(IpNet::addr).find(|a| a.is_ipv4() == v4);
    if let Some(source) = first_of(true) {
        netlink.add(default_route(index, source, MAIN))?;
        capture_loopback_dns(netlink, index, source)?;
    }
    if let Some(source) = first_of(false) {
        netlink.add(default_route(index, source, MAIN))?;
    }
    Ok(())
}

/// `route_localnet` and `accept_local` on, `rp_filter` off, as one attribute: by netlink and not
/// under `/proc/sys`, which containers mount read-only. (The crate's own type leaves zeros out.)
fn accept_loopback() -> AfSpecInet {
    /// `IFLA_INET_CONF` of linux/if_link.h, `IPV4_DEVCONF_*` of linux/ip.h.
    const INET_CONF: u16 = 1;
    const ROUTE_LOCALNET: u16 = 26;
    const ACCEPT_LOCAL: u16 = 23;
    const RP_FILTER: u16 = 8;
    const ATTRIBUTE_BYTES: u16 = 8;

    let mut settings = Vec::new();
    for (kind, value) in [(ROUTE_LOCALNET, 1_u32), (ACCEPT_LOCAL, 1), (RP_FILTER, 0)] {
        settings.extend_from_slice(&ATTRIBUTE_BYTES.to_ne_bytes());
        settings.extend_from_slice(&kind.to_ne_bytes());
        settings.extend_from_slice(&value.to_ne_bytes());
    }
    AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, settings))
}

const MAIN: u8 = RouteHeader::RT_TABLE_MAIN;
/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;
/// The table of one route, into the TUN, that the rules for port 53 lead to.
const DNS: u8 = 53;

/// Sends what is for port 53 of a loopback address into the TUN.
///
/// The rule for the table `local` is the first, and no rule can be put before it: so it is
/// made again behind ours, and the first one removed.
fn capture_loopback_dns(netlink: &mut Rtnetlink, index: u32, source: IpAddr) -> Result<(), Errno> {
    netlink.add(default_route(index, source, DNS))?;
    for protocol in [IpProtocol::Udp, IpProtocol::Tcp] {
        let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let mut rule = lookup(DNS, 10);
        rule.header.dst_len = loopback.prefix_len();
        rule.attributes.extend([
            RuleAttribute::Destination(loopback.addr().into()),
            RuleAttribute::IpProtocol(protocol),
            RuleAttribute::DestinationPortRange(RulePortRange { start: 53, end: 53 }),
        ]);
        netlink.add(RouteNetlinkMessage::NewRule(rule))?;
    }
    netlink.add(RouteNetlinkMessage::NewRule(lookup(LOCAL, 20)))?;
    netlink.change(RouteNetlinkMessage::DelRule(lookup(LOCAL, 0)))
}

fn set_sysctls(plan: &Plan) -> Result<(), Errno> {
    let mut sysctls = Sysctls::default();
    // The stricter of this one and the device's counts.
    sysctls.set("ipv4/conf/all/rp_filter", "0")?;
    let disable_ipv6 = format!("ipv6/conf/{}/disable_ipv6", plan.device);
    if plan.ipv6 {
        sysctls.set(&disable_ipv6, "0")?;
    } else {
        // Without an address there is no IPv6 anyway, but for a link-local one.
        let _ = sysctls.set(&disable_ipv6, "1");
    }
    // This hop is memory and loses nothing: what the host's default paces or probes for (BBR
    // costs an upload a third of its throughput) happens again on the true path, where it
    // counts. Only speed is at stake.
    let _ = sysctls.set("ipv4/tcp_congestion_control", "reno");
    // A new namespace allows ping sockets to nobody; here they lead into the TUN like all
    // else. Without them ping(8) needs its file capability: no reason to fail.
    let gid = rustix::process::getegid().as_raw();
    let gids = if gid == 0 { "0\t2147483647".to_owned() } else { format!("{gid}\t{gid}") };
    if sysctls.set("ipv4/ping_group_range", &gids).is_err() {
        let _ = sysctls.set("ipv4/ping_group_range", &format!("{gid}\t{gid}"));
    }
    Ok(())
}

/// Waits until the kernel takes packets to our IPv6 addresses. It makes their local routes in a
/// worker some time after the address; until then replies are dropped and a first connect
/// would wait for its SYN to be sent again.
fn await_addresses(plan: &Plan) -> Result<(), Errno> {
    const TRIES: u32 = 1000;
    const PAUSE: Duration = Duration::from_millis(1);
    let v6 = plan.addresses.iter().map(IpNet::addr).filter(|a| plan.ipv6 && a.is_ipv6());
    for address in v6 {
        let mut routes = Routes::open().map_err(|_| Errno::NOBUFS)?;
        let query = Query {
            destination: address,
            source: None,
            device: None,
            protocol: engine::Protocol::Tcp,
            destination_port: 0,
            uid: None,
            mark: None,
        };
        let is_local = |routes: &mut Routes| {
            routes.lookup(query).is_ok_and(|answer| answer.kind == RouteKind::Local)
        };
        let mut tries = 0;
        while !is_local(&mut routes) {
            tries += 1;
            if tries == TRIES {
                return Err(Errno::TIMEDOUT);
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// A socket that answers for the sockets of this namespace, wherever it is used.
fn sock_diag() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
}

fn set_link(index: u32, attributes: Vec<LinkAttribute>, flags: LinkFlags) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader { index, flags, change_mask: flags, ..LinkHeader::default() };
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

fn new_address(index: u32, address: &IpNet) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(address.addr()),
        prefix_len: address.prefix_len(),
        scope: AddressScope::Universe,
        index,
        ..AddressHeader::default()
    };
    message.attributes = vec![
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Local(address.addr()),
        // The prefix is not on a link: there is no one else behind a TUN.
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, source: IpAddr, table: u8) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(source),
        table,
        protocol: RouteProtocol::Static,
        scope: if source.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let source = match source {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::PrefSource(source)];
    RouteNetlinkMessage::NewRoute(message)
}

fn lookup(table: u8, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: AddressFamily::Inet,
        table,
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = vec![RuleAttribute::Priority(priority)];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

impl From<&OpenError> for Failure {
    /// The errno that [`tunnel`] made the error from, so that it crosses the socket.
    fn from(error: &OpenError) -> Self {
        let (stage, errno) = match *error {
            OpenError::Missing => (Stage::TunOpen, Errno::NOENT),
            OpenError::NoDriver => (Stage::TunOpen, Errno::NODEV),
            OpenError::Closed => (Stage::TunOpen, Errno::ACCESS),
            OpenError::Open(errno) => (Stage::TunOpen, errno),
            OpenError::NotPermitted => (Stage::TunAttach, Errno::PERM),
            OpenError::Busy => (Stage::TunAttach, Errno::BUSY),
            OpenError::Unsupported | OpenError::Name => (Stage::TunAttach, Errno::INVAL),
            OpenError::Attach(errno) => (Stage::TunAttach, errno),
            OpenError::NotAttached | _ => (Stage::TunAttach, Errno::NOTTY),
        };
        Self { stage, errno }
    }
}
