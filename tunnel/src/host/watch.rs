//! When this host's addresses, devices and their settings change.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

use crate::rtnetlink;

/// Wakes when something has changed.
#[derive(Debug)]
pub struct Watch(OwnedFd);

/// What may have changed. What it is now is to be looked at anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// An address came or went.
    pub addresses: bool,
    /// A device came, went or is another now, or `rp_filter` has another value.
    pub links: bool,
}

impl Watch {
    /// Every change from now on, of this thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        let socket = rtnetlink::socket()?;
        let groups = LINK | IPV4_ADDRESS | IPV6_ADDRESS | IPV4_NETCONF;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Blocks until something has changed, or until nothing has for as long as `limit`. `None`:
    /// the other end of `stop` was closed.
    pub fn wait(&self, stop: impl AsFd, limit: Option<Duration>) -> Result<Option<Changed>, Errno> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            // A signal: as if the time were up.
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if fds[1].revents().is_empty() { self.drain().map(Some) } else { Ok(None) }
    }

    /// Everything that has come.
    fn drain(&self) -> Result<Changed, Errno> {
        let mut changed = Changed::default();
        let mut buffer = [0; HEADER];
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::net::recv(&self.0, &mut buffer, flags) {
                Ok(_) => changed.add(&buffer),
                // Changes were missed.
                Err(Errno::NOBUFS) => changed = Changed { addresses: true, links: true },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(changed),
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl Changed {
    /// Counts a notification by its header: the kernel sends one a datagram.
    fn add(&mut self, header: &[u8; HEADER]) {
        let kind = NetlinkBuffer::new(header).message_type();
        let is_address = matches!(kind, libc::RTM_NEWADDR | libc::RTM_DELADDR);
        self.addresses |= is_address;
        self.links |= !is_address;
    }
}

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// `RTMGRP_LINK`
const LINK: u32 = 0x1;
/// `RTMGRP_IPV4_IFADDR`
const IPV4_ADDRESS: u32 = 0x10;
/// `RTMGRP_IPV6_IFADDR`
const IPV6_ADDRESS: u32 = 0x100;
/// `RTNLGRP_IPV4_NETCONF`, 24, as a bit.
const IPV4_NETCONF: u32 = 1 << 23;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{run, within};

    #[test]
    fn each_kind_of_change_wakes() {
        within("", || {
            let watch = Watch::open().unwrap();
            let (stop, stopper) = std::io::pipe().unwrap();
            let soon = Some(Duration::from_secs(5));
            let pause = Some(Duration::from_millis(30));
            let (addresses, links) = (true, true);
            let cases = [
                ("ip address add 192.0.2.7/32 dev lo", Changed { addresses, links: false }),
                ("ip address add 2001:db8::7/128 dev lo", Changed { addresses, links: false }),
                ("ip link add d0 type bridge", Changed { addresses: false, links }),
                ("ip link set d0 name d1", Changed { addresses: false, links }),
                ("sysctl -qw net.ipv4.conf.d1.rp_filter=2", Changed { addresses: false, links }),
                ("sysctl -qw net.ipv4.conf.all.rp_filter=2", Changed { addresses: false, links }),
                ("ip link del d1", Changed { addresses: false, links }),
            ];
            for (line, expected) in cases {
                run(line);
                // What there is of it, and then nothing.
                let mut changed = watch.wait(&stop, soon).unwrap().unwrap();
                while let Some(more) = watch.wait(&stop, pause).unwrap()
                    && more != Changed::default()
                {
                    changed.addresses |= more.addresses;
                    changed.links |= more.links;
                }
                assert_eq!(changed, expected, "{line}");
            }
            drop(stopper);
            assert_eq!(watch.wait(&stop, soon).unwrap(), None);
        });
    }
}
