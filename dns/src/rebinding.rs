//! Which addresses in an answer would let a stranger's name reach this host or its network
//! (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is private, link-local, loopback or unspecified, which on Linux is
/// this host too. An IPv4 address inside an IPv6 one (mapped, RFC 4291 section 2.5.5.2;
/// NAT64's well-known prefix, RFC 6052) is judged as itself.
pub(crate) fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_near4(address),
        IpAddr::V6(address) => inner(address).map_or_else(
            || {
                let first = address.segments()[0];
                address.is_loopback()
                    || address.is_unspecified()
                    || first & 0xfe00 == 0xfc00 // RFC 4193
                    || first & 0xff80 == 0xfe80 // link-local and, by RFC 3879, site-local
            },
            is_near4,
        ),
    }
}

fn is_near4(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3).
    address.is_private()
        || address.is_link_local()
        || address.is_loopback()
        || address.octets()[0] == 0
}

fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_addresses() {
        for (address, expected) in [
            ("10.0.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.1", false),
            ("192.168.0.1", true),
            ("127.8.8.8", true),
            ("169.254.169.254", true),
            ("0.0.0.0", true),
            ("100.64.0.1", false),
            ("8.8.8.8", false),
            ("::", true),
            ("::1", true),
            ("fd00::1", true),
            ("fc00::1", true),
            ("fe80::1", true),
            ("fec0::1", true),
            ("ff02::1", false),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:8.8.8.8", false),
            ("64:ff9b::192.168.1.1", true),
            ("64:ff9b::8.8.8.8", false),
        ] {
            assert_eq!(is_near(address.parse().expect("address")), expected, "{address}");
        }
    }
}
