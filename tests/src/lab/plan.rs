//! The addresses of the lab: documentation prefixes (RFC 5737, RFC 3849), each
//! address with one fixed behaviour.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::void;

/// The links' MTU: the one that the Internet has.
pub const MTU: u32 = 1500;

/// The host's address on its first link, IPv4.
pub const HOST4: IpAddr = v4(192, 0, 2, 1);
/// The host's address on its first link, IPv6.
pub const HOST6: IpAddr = v6(1, 1);
/// The host's address on its second link, IPv4.
pub const HOST4_SECOND: IpAddr = v4(192, 0, 2, 129);
/// The host's address on its second link, IPv6.
pub const HOST6_SECOND: IpAddr = v6(2, 1);

/// A server on the first link itself (its address is asked for by ARP).
pub const NEAR4: IpAddr = v4(192, 0, 2, 2);
/// A server on the first link itself (its address is asked for by NDP).
pub const NEAR6: IpAddr = v6(1, 2);

/// A server behind the first link.
pub const GOOD4: IpAddr = v4(203, 0, 113, 1);
/// A server behind the first link.
pub const GOOD6: IpAddr = v6(0xf1, 1);
/// A server behind the second link.
pub const GOOD4_SECOND: IpAddr = v4(203, 0, 113, 129);
/// A server behind the second link.
pub const GOOD6_SECOND: IpAddr = v6(0xf2, 1);

/// Answers every packet with "network unreachable" (ICMP 3/0, ICMPv6 1/0).
pub const NET_UNREACHABLE4: IpAddr = v4(203, 0, 113, 11);
/// See [`NET_UNREACHABLE4`].
pub const NET_UNREACHABLE6: IpAddr = v6(0xf1, 0x11);
/// Answers every packet with "host unreachable" (ICMP 3/1, ICMPv6 1/3).
pub const HOST_UNREACHABLE4: IpAddr = v4(203, 0, 113, 12);
/// See [`HOST_UNREACHABLE4`].
pub const HOST_UNREACHABLE6: IpAddr = v6(0xf1, 0x12);
/// Answers every packet with "prohibited" (ICMP 3/13, ICMPv6 1/1).
pub const PROHIBITED4: IpAddr = v4(203, 0, 113, 13);
/// See [`PROHIBITED4`].
pub const PROHIBITED6: IpAddr = v6(0xf1, 0x13);
/// A black hole: packets arrive and nothing ever answers.
pub const SILENT4: IpAddr = v4(203, 0, 113, 20);
/// See [`SILENT4`].
pub const SILENT6: IpAddr = v6(0xf1, 0x20);

/// An address that `host` has no route to.
pub const UNROUTED4: IpAddr = v4(198, 51, 100, 77);
/// See [`UNROUTED4`].
pub const UNROUTED6: IpAddr = v6(0xdead, 1);

/// A port that nothing listens on.
pub const CLOSED_PORT: u16 = 9;

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// `2001:db8:NET::LAST`.
const fn v6(net: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last))
}

/// `ip -batch` lines for `host`.
pub(crate) fn host_addresses() -> String {
    format!(
        "address add {HOST4}/25 dev up0\n\
         address add {HOST6}/64 dev up0 nodad\n\
         address add {HOST4_SECOND}/25 dev up1\n\
         address add {HOST6_SECOND}/64 dev up1 nodad\n\
         route add 203.0.113.0/25 via {NEAR4}\n\
         route add 203.0.113.128/25 via 192.0.2.130\n\
         route add 2001:db8:f1::/64 via {NEAR6}\n\
         route add 2001:db8:f2::/64 via 2001:db8:2::2\n"
    )
}

/// `ip -batch` lines for `server`: the good addresses are its own, the others
/// lie behind the device of the void.
pub(crate) fn server_addresses() -> String {
    let mut lines = format!(
        "address add {NEAR4}/25 dev far0\n\
         address add {NEAR6}/64 dev far0 nodad\n\
         address add 192.0.2.130/25 dev far1\n\
         address add 2001:db8:2::2/64 dev far1 nodad\n\
         link set {void} up\n",
        void = void::DEVICE
    );
    for address in [GOOD4, GOOD4_SECOND] {
        lines += &format!("address add {address}/32 dev lo\n");
    }
    for address in [GOOD6, GOOD6_SECOND] {
        lines += &format!("address add {address}/128 dev lo nodad\n");
    }
    for prefix in ["203.0.113.0/25", "2001:db8:f1::/64"] {
        lines += &format!("route add {prefix} dev {}\n", void::DEVICE);
    }
    lines
}
