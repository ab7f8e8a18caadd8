//! Multicast and broadcast destinations.

use std::net::IpAddr;

/// Whether `address` is a group or the limited broadcast address. A subnet's own broadcast
/// address can't be told from a host's without its prefix; the kernel refuses it at send.
pub(crate) fn is_cast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}
