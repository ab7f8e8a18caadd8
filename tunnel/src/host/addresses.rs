//! This host's addresses, and when they change.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

use crate::rtnetlink::{self, Rtnetlink};

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

/// Wakes when an address comes or goes.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
}

impl Watch {
    /// Every change from now on, of this thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        let socket = rtnetlink::socket()?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, IPV4 | IPV6))?;
        Ok(Self { socket })
    }

    /// Blocks until something has changed. Several changes may be one.
    pub fn wait(&self) -> Result<(), Errno> {
        // What it says is not read: the list is asked for anew.
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut [0; 64], RecvFlags::TRUNC)
        });
        match received {
            // Changes were missed: one more reason to look.
            Ok(_) | Err(Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// `RTMGRP_IPV4_IFADDR`
const IPV4: u32 = 0x10;
/// `RTMGRP_IPV6_IFADDR`
const IPV6: u32 = 0x100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace;

    #[test]
    fn addresses_and_their_changes() {
        namespace::within("", || {
            let watch = Watch::open().unwrap();
            assert!(list().unwrap().iter().all(IpAddr::is_loopback));
            let added = std::process::Command::new("ip")
                .args(["address", "add", "192.0.2.7/32", "dev", "lo"])
                .status()
                .unwrap();
            assert!(added.success());
            watch.wait().unwrap();
            assert!(list().unwrap().contains(&IpAddr::from([192, 0, 2, 7])));
        });
    }
}
