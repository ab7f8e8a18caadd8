//! The address and device a flow would leave with, asked of the kernel.
//!
//! # Theory of operation
//!
//! `RTM_GETROUTE` runs the very lookup that `connect()` would run, with the rules, tables and
//! marks of this network namespace, and sends nothing: no packet, no ARP. The answer tells
//! the device and the preferred source, or the kernel's own errno. One blocking exchange a
//! flow on the shard's own socket (`netlink`).
//!
//! Two traps. A query that names a device makes IPv4 pretend that every destination is on
//! that device's link when no route exists, so a route is looked up (and looked up again
//! before `connect()`) without the device, and the two answers compared. An IPv6 link-local
//! destination means nothing without a device, and the kernel would take the first link it
//! finds: it is refused here.
//!
//! The device's name is asked for with every lookup: an index outlives a rename, and the
//! ioctl costs less than a cache that could be stale.
//!
//! A route that somebody has led into the TUN itself is none: a flow that left by it would
//! come out of it as another flow, and so on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::{DeviceName, Egress, Failure, Protocol};
use netlink_packet_core::NlasIterator;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name_inlined;
use rustix::net::{AddressFamily as SocketFamily, SocketFlags, SocketType, socket_with};

use crate::egress::error::failure;
use crate::egress::pin::is_scoped;
use crate::netlink::{Requests, Unanswered};

/// A route lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Where the flow goes.
    pub destination: IpAddr,
    /// The address it must leave with, where the app or the policy chose one.
    pub source: Option<IpAddr>,
    /// The device it must leave through. See the module: no route is needed then.
    pub device: Option<u32>,
    /// The transport, which rules (`ip rule ipproto`) may look at.
    pub protocol: Protocol,
    /// The destination port, which rules may look at; 0 for echo.
    pub destination_port: u16,
    /// Whose traffic it is (`ip rule uidrange`); `None`: this process's.
    pub uid: Option<u32>,
    /// The mark its socket will have.
    pub mark: Option<u32>,
}

/// What the kernel would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteAnswer {
    /// The address and device the flow would leave with.
    pub egress: Egress,
    /// The index of that device.
    pub device_index: u32,
    /// The router that it goes to; `None`: the destination is on the device's link.
    pub gateway: Option<IpAddr>,
    /// What kind of destination it is.
    pub kind: RouteKind,
    /// The path's MTU where it is less than the device's: learnt from ICMP, or set on the route.
    pub mtu: Option<u32>,
}

impl RouteAnswer {
    /// The index of the device to bind a socket to; 0: none. What goes to an address of this
    /// host passes loopback, but counts as come in by the device that has the address: a socket
    /// that is bound to loopback would never see the answer. Such packets leave this host by no
    /// device.
    pub(crate) fn bound_device(&self, destination: IpAddr) -> u32 {
        let scoped = matches!(destination, IpAddr::V6(v6) if is_scoped(v6));
        let elsewhere = self.kind == RouteKind::Local && !destination.is_loopback() && !scoped;
        if elsewhere { 0 } else { self.device_index }
    }
}

/// What a destination is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Another host, or this host's own network.
    Unicast,
    /// This host itself.
    Local,
    /// All hosts of a link.
    Broadcast,
    /// A group.
    Multicast,
}

/// Why there is no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The kernel's answer to the lookup: no route, or one that says no.
    #[error("no route: {0}")]
    NoRoute(Errno),
    /// A link-local destination and no device.
    #[error("an IPv6 link-local destination needs a device")]
    NeedsDevice,
    /// The device the route leads to has no address of this IP version (yet).
    #[error("the route's device has no address to send from")]
    NoSource,
    /// The route leads into the TUN that the flow came out of.
    #[error("the route leads into the TUN itself")]
    OwnDevice,
    /// The device went away between the lookup and the question for its name.
    #[error("the route's device is gone")]
    DeviceGone,
    /// The kernel did not answer.
    #[error("the kernel did not answer")]
    Silent,
    /// The netlink socket failed.
    #[error("cannot ask the kernel: {0}")]
    Socket(Errno),
    /// The answer makes no sense.
    #[error("the kernel's answer cannot be read")]
    Garbled,
}

impl LookupError {
    /// What the app is to see.
    pub fn failure(&self) -> Failure {
        match self {
            // Where a `throw` route leads when no rule follows.
            Self::NoRoute(Errno::AGAIN) => Failure::NetUnreachable,
            Self::NoRoute(errno) => failure(*errno, 0),
            Self::NeedsDevice | Self::NoSource | Self::OwnDevice | Self::DeviceGone => {
                Failure::NetUnreachable
            }
            Self::Silent | Self::Socket(_) | Self::Garbled => Failure::Exhausted,
        }
    }
}

impl From<Unanswered> for LookupError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Refused(errno) => Self::NoRoute(errno),
            Unanswered::Silent => Self::Silent,
            Unanswered::Socket(errno) => Self::Socket(errno),
            Unanswered::Garbled => Self::Garbled,
        }
    }
}

/// The routing of the network namespace it was opened in.
#[derive(Debug)]
pub struct Routes {
    requests: Requests,
    /// Kept for its allocation.
    message: RouteMessage,
    /// No flow leaves by it.
    own: Option<DeviceName>,
}

impl Routes {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> Result<Self, LookupError> {
        let socket = socket_with(
            SocketFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is protocol 0
        )
        .map_err(LookupError::Socket)?;
        Ok(Self {
            requests: Requests::new(socket).map_err(LookupError::Socket)?,
            message: RouteMessage::default(),
            own: None,
        })
    }

    /// The same, but for routes into `own`, the TUN whose packets these routes are for: who left by
    /// it would come out of it again.
    #[must_use]
    pub fn beside(self, own: DeviceName) -> Self {
        Self { own: Some(own), ..self }
    }

    /// Asks for one route. Blocks for about 1.5 µs.
    pub fn lookup(&mut self, query: Query) -> Result<RouteAnswer, LookupError> {
        if let (IpAddr::V6(v6), None) = (query.destination, query.device)
            && is_scoped(v6)
        {
            return Err(LookupError::NeedsDevice);
        }
        query.encode(&mut self.message);
        let answer = self.requests.ask(GET_ROUTE, &self.message, NEW_ROUTE)?;
        let route = Route::parse(answer).ok_or(LookupError::Garbled)?;
        let kind = route.kind(query.destination)?;
        let device = self.name(route.device)?;
        // Its own address is this host's like any other.
        if Some(device) == self.own && kind != RouteKind::Local {
            return Err(LookupError::OwnDevice);
        }
        let address = route
            .source
            .or(query.source)
            .filter(|source| !source.is_unspecified())
            .ok_or(LookupError::NoSource)?;
        Ok(RouteAnswer {
            egress: Egress { address, device },
            device_index: route.device,
            gateway: route.gateway,
            kind,
            mtu: route.mtu,
        })
    }

    /// Bytes of the longest packet that the device takes.
    pub fn device_mtu(&mut self, index: u32) -> Result<u32, LookupError> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answer = match self.requests.ask(libc::RTM_GETLINK, &question, libc::RTM_NEWLINK) {
            Err(Unanswered::Refused(Errno::NODEV)) => return Err(LookupError::DeviceGone),
            answer => answer?,
        };
        let attributes = answer.get(LINK_HEADER..).ok_or(LookupError::Garbled)?;
        let mut found = NlasIterator::new(attributes).filter_map(Result::ok);
        let mtu = found.find(|attribute| attribute.kind() == LINK_MTU);
        mtu.and_then(|attribute| number(attribute.value())).ok_or(LookupError::Garbled)
    }

    /// The name a device has now.
    pub fn name(&self, index: u32) -> Result<DeviceName, LookupError> {
        match index_to_name_inlined(self.requests.socket(), index) {
            Ok(name) => DeviceName::new(name.as_str()).ok_or(LookupError::Garbled),
            Err(Errno::NODEV | Errno::NXIO) => Err(LookupError::DeviceGone),
            Err(Errno::ILSEQ) => Err(LookupError::Garbled),
            Err(errno) => Err(LookupError::Socket(errno)),
        }
    }
}

impl Query {
    fn encode(&self, message: &mut RouteMessage) {
        let (family, length) = match self.destination {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header = RouteHeader {
            address_family: family,
            destination_prefix_length: length,
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        attributes.clear();
        attributes.push(RouteAttribute::Destination(route_address(self.destination)));
        if let Some(source) = self.source {
            message.header.source_prefix_length = length;
            attributes.push(RouteAttribute::Source(route_address(source)));
        }
        if let Some(device) = self.device {
            attributes.push(RouteAttribute::Oif(device));
        }
        if let Some(mark) = self.mark {
            attributes.push(RouteAttribute::Mark(mark));
        }
        if let Some(uid) = self.uid {
            attributes.push(RouteAttribute::Uid(uid));
        }
        let number = match (self.protocol, self.destination) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Icmp, IpAddr::V4(_)) => 1,
            (Protocol::Icmp, IpAddr::V6(_)) => 58,
        };
        attributes.push(RouteAttribute::IpProto(number));
        if self.destination_port != 0 {
            attributes.push(RouteAttribute::Dport(self.destination_port));
        }
    }
}

/// A route as the kernel put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    kind: u8,
    device: u32,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
    error: Option<i32>,
}

impl Route {
    /// `None` where the bytes are no route.
    fn parse(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(ROUTE_HEADER)?;
        let kind = header[7];
        let mut route =
            Self { kind, device: 0, source: None, gateway: None, mtu: None, error: None };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.ok()?;
            let value = attribute.value();
            match attribute.kind() {
                OUTPUT_DEVICE => route.device = number(value)?,
                PREFERRED_SOURCE => route.source = Some(ip(value)?),
                GATEWAY => route.gateway = Some(ip(value)?),
                // A router of the other IP version, behind its address family.
                VIA => route.gateway = Some(ip(value.get(2..)?)?),
                METRICS => route.mtu = mtu(value)?,
                // The reason of a route that says no; 0 in one that doesn't.
                CACHE_INFO => {
                    let error = number(value.get(12..)?)?;
                    route.error = i32::try_from(error).ok().filter(|&error| error != 0);
                }
                _ => {}
            }
        }
        Some(route)
    }

    /// What the destination is, or the errno of a route that says no (which IPv6 returns
    /// as a route where IPv4 returns an error).
    fn kind(&self, destination: IpAddr) -> Result<RouteKind, LookupError> {
        if let Some(error) = self.error {
            let errno = Errno::from_raw_os_error(error.wrapping_abs());
            return Err(LookupError::NoRoute(errno));
        }
        match self.kind {
            TYPE_BLACKHOLE => Err(LookupError::NoRoute(Errno::INVAL)),
            TYPE_UNREACHABLE => Err(LookupError::NoRoute(Errno::HOSTUNREACH)),
            TYPE_PROHIBIT => Err(LookupError::NoRoute(Errno::ACCESS)),
            TYPE_THROW => Err(LookupError::NoRoute(Errno::NETUNREACH)),
            _ if self.device == 0 => Err(LookupError::Garbled),
            _ if destination.is_multicast() => Ok(RouteKind::Multicast),
            TYPE_LOCAL | TYPE_ANYCAST => Ok(RouteKind::Local),
            TYPE_BROADCAST => Ok(RouteKind::Broadcast),
            _ => Ok(RouteKind::Unicast),
        }
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// The MTU in a route's metrics. The outer `None` is for bytes that are no metrics.
fn mtu(metrics: &[u8]) -> Option<Option<u32>> {
    let mut mtu = None;
    for metric in NlasIterator::new(metrics) {
        let metric = metric.ok()?;
        if metric.kind() == METRIC_MTU {
            mtu = Some(number(metric.value())?);
        }
    }
    Some(mtu)
}

const NEW_ROUTE: u16 = libc::RTM_NEWROUTE;
const GET_ROUTE: u16 = libc::RTM_GETROUTE;

/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
const LINK_MTU: u16 = libc::IFLA_MTU;

/// `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

const OUTPUT_DEVICE: u16 = libc::RTA_OIF;
const PREFERRED_SOURCE: u16 = libc::RTA_PREFSRC;
const GATEWAY: u16 = libc::RTA_GATEWAY;
/// `RTA_VIA`
const VIA: u16 = 18;
const METRICS: u16 = libc::RTA_METRICS;
const CACHE_INFO: u16 = libc::RTA_CACHEINFO;
/// `RTAX_MTU`
const METRIC_MTU: u16 = 2;

const TYPE_LOCAL: u8 = libc::RTN_LOCAL;
const TYPE_BROADCAST: u8 = libc::RTN_BROADCAST;
const TYPE_ANYCAST: u8 = libc::RTN_ANYCAST;
const TYPE_BLACKHOLE: u8 = libc::RTN_BLACKHOLE;
const TYPE_UNREACHABLE: u8 = libc::RTN_UNREACHABLE;
const TYPE_PROHIBIT: u8 = libc::RTN_PROHIBIT;
const TYPE_THROW: u8 = libc::RTN_THROW;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace;

    fn query(destination: &str) -> Query {
        Query {
            destination: destination.parse().unwrap(),
            source: None,
            device: None,
            protocol: Protocol::Tcp,
            destination_port: 443,
            uid: None,
            mark: None,
        }
    }

    #[test]
    fn loopback() {
        let mut routes = Routes::open().unwrap();
        #[rustfmt::skip]
        let cases = [
            ("127.0.0.1", "127.0.0.1"),
            ("127.9.9.9", "127.0.0.1"),
            ("::1", "::1"),
        ];
        for (address, source) in cases {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                let answer = routes.lookup(Query { protocol, ..query(address) }).unwrap();
                assert_eq!(answer.egress.device.as_str(), "lo", "{address}");
                assert_eq!(answer.kind, RouteKind::Local, "{address}");
                assert_eq!(answer.egress.address, source.parse::<IpAddr>().unwrap());
            }
        }
    }

    /// What a namespace is made of, and what a lookup in it must say.
    const SETUP: &str = "
        ip link set lo up
        ip link add up0 type veth peer name far0
        ip link set up0 mtu 1400
        ip link set far0 up
        ip link set up0 up
        ip addr add 192.0.2.2/24 dev up0
        ip addr add 192.0.2.3/24 dev up0
        ip addr add 2001:db8::2/64 dev up0 nodad
        ip route add 198.51.100.0/24 via 192.0.2.1
        ip route add 198.51.100.128/25 via 192.0.2.1 mtu lock 1300
        ip route add 198.51.101.0/24 via inet6 2001:db8::1
        ip route add unreachable 203.0.113.0/26
        ip route add prohibit 203.0.113.64/26
        ip route add blackhole 203.0.113.128/26
        ip route add throw 203.0.113.192/26
        ip -6 route add 2001:db8:1::/48 via 2001:db8::1
        ip -6 route add unreachable 2001:db8:2::/48
        ip -6 route add prohibit 2001:db8:3::/48
        ip -6 route add blackhole 2001:db8:4::/48
        ip route add 198.18.0.0/16 via 192.0.2.1 table 7 src 192.0.2.3
        ip rule add fwmark 7 lookup 7
        ip rule add uidrange 0-0 ipproto udp dport 53 to 198.19.0.0/16 lookup 8
        ip route add 198.19.0.0/16 via 192.0.2.1 table 8
        ip route add 224.0.0.0/4 dev up0
    ";

    #[test]
    fn every_answer_of_a_namespace() {
        namespace::within(SETUP, || {
            namespace::await_local("2001:db8::2");
            let mut routes = Routes::open().unwrap();
            answers(&mut routes);
            refusals(&mut routes);
            beside_a_device();
            renames(&mut routes);
        });
    }

    fn beside_a_device() {
        let mut routes = Routes::open().unwrap().beside(DeviceName::new("up0").unwrap());
        for into in ["192.0.2.9", "198.51.100.1", "2001:db8:1::1", "192.0.2.255", "224.0.0.7"] {
            let refused = routes.lookup(query(into)).unwrap_err();
            assert_eq!(refused, LookupError::OwnDevice, "{into}");
            assert_eq!(refused.failure(), Failure::NetUnreachable);
        }
        for own in ["192.0.2.2", "2001:db8::2", "127.0.0.1"] {
            assert_eq!(routes.lookup(query(own)).unwrap().kind, RouteKind::Local, "{own}");
        }
    }

    fn answers(routes: &mut Routes) {
        let marked = Query { mark: Some(7), ..query("198.18.0.1") };
        let ruled = Query {
            uid: Some(0),
            protocol: Protocol::Udp,
            destination_port: 53,
            ..query("198.19.0.1")
        };
        let chosen = Query { source: Some("192.0.2.3".parse().unwrap()), ..query("198.51.100.1") };
        let up0 = routes.lookup(query("192.0.2.9")).unwrap().device_index;
        let linked = Query { device: Some(up0), ..query("fe80::9") };
        let group6 = Query { device: Some(up0), ..query("ff02::fb") };
        let unicast = RouteKind::Unicast;
        #[rustfmt::skip]
        let cases = [
            ("on link", query("192.0.2.9"), "192.0.2.2", "up0", unicast, None),
            ("by gateway", query("198.51.100.1"), "192.0.2.2", "up0", unicast, None),
            ("path MTU", query("198.51.100.200"), "192.0.2.2", "up0", unicast, Some(1300)),
            ("own address", query("192.0.2.2"), "192.0.2.2", "lo", RouteKind::Local, None),
            ("broadcast", query("192.0.2.255"), "192.0.2.2", "up0", RouteKind::Broadcast, None),
            ("chosen source", chosen, "192.0.2.3", "up0", unicast, None),
            ("by mark", marked, "192.0.2.3", "up0", unicast, None),
            ("by uid, protocol and port", ruled, "192.0.2.2", "up0", unicast, None),
            ("v6 on link", query("2001:db8::9"), "2001:db8::2", "up0", unicast, None),
            ("v6 by gateway", query("2001:db8:1::1"), "2001:db8::2", "up0", unicast, None),
            ("v6 own address", query("2001:db8::2"), "2001:db8::2", "lo", RouteKind::Local, None),
        ];
        for (name, query, address, device, kind, mtu) in cases {
            let answer = routes.lookup(query).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(answer.egress.address, address.parse::<IpAddr>().unwrap(), "{name}");
            assert_eq!(answer.egress.device.as_str(), device, "{name}");
            assert_eq!(answer.kind, kind, "{name}");
            let bound = if kind == RouteKind::Local { 0 } else { answer.device_index };
            assert_eq!(answer.bound_device(query.destination), bound, "{name}");
            assert_eq!(answer.mtu.filter(|_| answer.egress.address.is_ipv4()), mtu, "{name}");
        }
        for (to, gateway) in [
            ("192.0.2.9", None),
            ("198.51.100.1", Some("192.0.2.1")),
            ("198.51.101.1", Some("2001:db8::1")),
            ("2001:db8::9", None),
            ("2001:db8:1::1", Some("2001:db8::1")),
        ] {
            let answer = routes.lookup(query(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
            assert_eq!(answer.gateway, gateway.map(|ip| ip.parse().unwrap()), "{to}");
        }
        for (name, query, kind) in
            [("link-local", linked, unicast), ("v6 group", group6, RouteKind::Multicast)]
        {
            let answer = routes.lookup(query).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(answer.device_index, up0, "{name}");
            assert_eq!(answer.kind, kind, "{name}");
        }
        assert_eq!(routes.device_mtu(up0), Ok(1400));
        assert_eq!(routes.device_mtu(9999), Err(LookupError::DeviceGone));
    }

    fn refusals(routes: &mut Routes) {
        let foreign =
            Query { source: Some("192.0.2.77".parse().unwrap()), ..query("198.51.100.1") };
        let unruled = Query { uid: Some(0), ..query("198.19.0.1") };
        #[rustfmt::skip]
        let cases = [
            ("no route", query("198.18.0.1"), Failure::NetUnreachable),
            ("another protocol than the rule's", unruled, Failure::NetUnreachable),
            ("unreachable", query("203.0.113.1"), Failure::HostUnreachable),
            ("prohibit", query("203.0.113.65"), Failure::Prohibited),
            ("blackhole", query("203.0.113.129"), Failure::NetUnreachable),
            ("throw", query("203.0.113.193"), Failure::NetUnreachable),
            ("a source that is not ours", foreign, Failure::NetUnreachable),
            ("v6 no route", query("2001:db8:9::1"), Failure::NetUnreachable),
            ("v6 unreachable", query("2001:db8:2::1"), Failure::HostUnreachable),
            ("v6 prohibit", query("2001:db8:3::1"), Failure::Prohibited),
            ("v6 blackhole", query("2001:db8:4::1"), Failure::NetUnreachable),
            ("link-local without a device", query("fe80::1"), Failure::NetUnreachable),
            ("link multicast without a device", query("ff02::1"), Failure::NetUnreachable),
        ];
        for (name, query, expected) in cases {
            match routes.lookup(query) {
                Err(error) => assert_eq!(error.failure(), expected, "{name}: {error}"),
                Ok(answer) => panic!("{name}: {answer:?}"),
            }
        }
    }

    fn renames(routes: &mut Routes) {
        namespace::run("ip link set up0 name new0");
        let answer = routes.lookup(query("192.0.2.9")).unwrap();
        assert_eq!(answer.egress.device.as_str(), "new0");
        namespace::run("ip link del new0");
        assert_eq!(routes.name(answer.device_index), Err(LookupError::DeviceGone));
    }

    #[test]
    fn parse_takes_any_bytes() {
        let mut state = 3_u64;
        for round in 0..50_000_usize {
            let bytes: Vec<u8> = (0..round % 64)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // small numbers, so that lengths and types are often plausible
                    (state >> 60) as u8
                })
                .collect();
            if let Some(route) = Route::parse(&bytes) {
                let _ = route.kind(Ipv4Addr::LOCALHOST.into());
            }
        }
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_lookup() {
        let mut routes = Routes::open().unwrap();
        for address in ["127.0.0.1", "::1"] {
            let start = std::time::Instant::now();
            for _ in 0..100_000 {
                routes.lookup(query(address)).unwrap();
            }
            println!("{address}: {:?} a lookup", start.elapsed() / 100_000);
        }
        let start = std::time::Instant::now();
        for _ in 0..100_000 {
            routes.name(1).unwrap();
        }
        println!("name: {:?}", start.elapsed() / 100_000);
    }
}
