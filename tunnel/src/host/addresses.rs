//! This host's addresses.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::io::Errno;

use crate::rtnetlink::Rtnetlink;

/// Every address of this thread's network namespace.
pub fn list() -> Result<Vec<IpAddr>, Errno> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let messages = Rtnetlink::open()?.list(&question)?;
    let mut addresses = Vec::new();
    for message in messages {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        // On a point-to-point link `Address` is the peer's and `Local` ours.
        let (mut local, mut other) = (None, None);
        for attribute in &message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                local = Some(*address);
            } else if let AddressAttribute::Address(address) = attribute {
                other = Some(*address);
            }
        }
        addresses.extend(local.or(other));
    }
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace;

    #[test]
    fn every_address_is_listed() {
        namespace::within("ip link set lo up\nip address add 192.0.2.7/32 dev lo", || {
            namespace::run("ip address add 2001:db8::7/128 dev lo nodad");
            let expected = ["127.0.0.1", "192.0.2.7", "::1", "2001:db8::7"];
            assert_eq!(list().unwrap(), expected.map(|address| address.parse::<IpAddr>().unwrap()));
        });
    }
}
