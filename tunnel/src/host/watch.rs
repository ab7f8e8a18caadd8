//! When this host's addresses, devices and their settings change.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

use super::nft;
use crate::rtnetlink;

/// Wakes when something has changed.
#[derive(Debug)]
pub struct Watch {
    network: OwnedFd,
    /// `None`: the kernel has no nftables, or doesn't tell.
    tables: Option<OwnedFd>,
    /// The routing table that is ours.
    table: u32,
}

/// What may have changed. What it is now is to be looked at anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// An address came or went.
    pub addresses: bool,
    /// A device came, went or is another now, or one of its settings has another value that the
    /// kernel tells of: `rp_filter` is the one of ours.
    pub links: bool,
    /// An address, a rule, a route of our table, or something of our nftables table was removed.
    pub removed: bool,
    /// The indices of devices that went. One of them may be back.
    pub went: Vec<u32>,
}

impl Watch {
    /// Every change from now on, of this thread's network namespace. `table` is the routing table
    /// that is ours.
    pub fn open(table: u32) -> Result<Self, Errno> {
        let network = rtnetlink::socket()?;
        let addresses = IPV4_ADDRESS | IPV6_ADDRESS;
        let routing = IPV4_ROUTE | IPV6_ROUTE | IPV4_RULE | IPV6_RULE;
        let groups = LINK | addresses | routing | IPV4_NETCONF;
        rustix::net::bind(&network, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { network, tables: nft::watch().ok(), table })
    }

    /// Blocks until something has changed, or until nothing has for as long as `limit`. `None`:
    /// the other end of `stop` was closed.
    pub fn wait(&self, stop: impl AsFd, limit: Option<Duration>) -> Result<Option<Changed>, Errno> {
        let limit = limit.map(timespec);
        let sockets = [stop.as_fd(), self.network.as_fd()].into_iter();
        let sockets = sockets.chain(self.tables.as_ref().map(AsFd::as_fd));
        let mut fds: Vec<_> =
            sockets.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, limit.as_ref()) {
            // A signal: as if the time were up.
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if fds[0].revents().is_empty() { self.drain().map(Some) } else { Ok(None) }
    }

    /// Everything that has come.
    fn drain(&self) -> Result<Changed, Errno> {
        let mut changed = Changed::default();
        let mut buffer = [0; HEADER];
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::net::recv(&self.network, &mut buffer, flags) {
                Ok(_) => changed.add(&buffer, self.table),
                // Changes were missed.
                Err(Errno::NOBUFS) => {
                    (changed.addresses, changed.links, changed.removed) = (true, true, true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        let Some(tables) = &self.tables else { return Ok(changed) };
        while let Some(removed) = nft::receive(tables, nft::removes)? {
            changed.removed |= removed;
        }
        Ok(changed)
    }
}

/// Becomes readable when packets may leave another way: an address, device, route or rule has
/// changed.
#[derive(Debug)]
pub struct Paths(OwnedFd);

impl Paths {
    /// Every change from now on, of this thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        let socket = rtnetlink::socket()?;
        let routing = IPV4_ROUTE | IPV6_ROUTE | IPV4_RULE | IPV6_RULE;
        let groups = LINK | IPV4_ADDRESS | IPV6_ADDRESS | routing;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Takes everything that has come. Does not block.
    pub fn drain(&self) -> Result<(), Errno> {
        let mut buffer = [0; HEADER];
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::net::recv(&self.0, &mut buffer, flags) {
                // Changes that were missed are changes.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsRawFd for Paths {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits for `time`. `true`: the other end of `stop` was closed before.
pub fn stopped_within(stop: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(&stop, PollFlags::IN)];
    // A signal: as if the time were up.
    poll(&mut fds, Some(&timespec(time))).is_ok_and(|ready| ready > 0)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

impl Changed {
    /// All that there is to be looked at.
    pub fn all() -> Self {
        Self { addresses: true, links: true, removed: true, went: Vec::new() }
    }

    /// Counts what comes later in.
    pub fn merge(&mut self, later: Self) {
        self.addresses |= later.addresses;
        self.links |= later.links;
        self.removed |= later.removed;
        self.went.extend(later.went);
    }

    /// Counts a notification by its beginning: the kernel sends one a datagram.
    fn add(&mut self, start: &[u8; HEADER], table: u32) {
        let kind = NetlinkBuffer::new(start).message_type();
        match kind {
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                self.addresses = true;
                self.removed |= kind == libc::RTM_DELADDR;
            }
            libc::RTM_DELRULE => self.removed = true,
            // In the header is room for the numbers of tables that there were once.
            libc::RTM_DELROUTE => {
                let table = u8::try_from(table).unwrap_or(libc::RT_TABLE_COMPAT);
                self.removed |= start[MESSAGE + 4] == table;
            }
            libc::RTM_NEWRULE | libc::RTM_NEWROUTE => {}
            _ => {
                self.links = true;
                // One that leaves a bridge is told of as well, by that family.
                if kind == libc::RTM_DELLINK
                    && i32::from(start[MESSAGE]) == libc::AF_UNSPEC
                    && let Some(index) = start[MESSAGE + 4..].first_chunk()
                {
                    self.went.push(u32::from_ne_bytes(*index));
                }
            }
        }
    }
}

/// `struct nlmsghdr`.
const MESSAGE: usize = 16;
/// With what is looked at of `struct ifinfomsg` and `struct rtmsg`.
const HEADER: usize = MESSAGE + 8;

/// `RTMGRP_LINK`
const LINK: u32 = 0x1;
/// `RTMGRP_IPV4_IFADDR`
const IPV4_ADDRESS: u32 = 0x10;
/// `RTMGRP_IPV6_IFADDR`
const IPV6_ADDRESS: u32 = 0x100;
/// `RTMGRP_IPV4_ROUTE`
const IPV4_ROUTE: u32 = 0x40;
/// `RTMGRP_IPV6_ROUTE`
const IPV6_ROUTE: u32 = 0x400;
/// `RTMGRP_IPV4_RULE`
const IPV4_RULE: u32 = 0x80;
/// `RTNLGRP_IPV6_RULE`, 19, as a bit.
const IPV6_RULE: u32 = 1 << 18;
/// `RTNLGRP_IPV4_NETCONF`, 24, as a bit.
const IPV4_NETCONF: u32 = 1 << 23;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{run, within};

    #[test]
    fn each_kind_of_change_wakes() {
        within("", || {
            let (stop, stopper) = std::io::pipe().unwrap();
            let soon = Some(Duration::from_secs(5));
            let pause = Some(Duration::from_millis(30));
            run("nft add table inet tunneld");
            run("nft add chain inet tunneld a");
            run("nft add rule inet tunneld a accept");
            run("nft add table inet other");
            run("ip link add b0 type bridge");
            run("ip link add v0 type veth peer name v1");
            run("ip link set v0 master b0");
            run("ip route add table 29806 unreachable 192.0.2.0/24");
            run("ip route add table 7 unreachable 192.0.2.0/24");
            run("ip -6 route add table 29806 unreachable 2001:db8::/64");
            let watch = Watch::open(29_806).unwrap();
            let (none, addresses, links) = ("", "addresses", "links");
            #[rustfmt::skip]
            let cases = [
                ("ip address add 192.0.2.7/32 dev lo", addresses),
                ("ip address add 2001:db8::7/128 dev lo nodad", addresses),
                ("ip address del 192.0.2.7/32 dev lo", "addresses removed"),
                ("ip link add d0 type bridge", links),
                ("ip link set d0 name d1", links),
                ("sysctl -qw net.ipv4.conf.d1.rp_filter=2", links),
                ("sysctl -qw net.ipv4.conf.all.rp_filter=2", links),
                ("ip link del d1", "links, 1 went"),
                ("ip link set v0 nomaster", links),
                ("ip link del v0", "links, 2 went"),
                ("ip rule add pref 7 lookup 7", none),
                ("ip rule del pref 7", "removed"),
                ("ip -6 rule del pref 32766", "removed"),
                ("ip route add table 29806 unreachable 198.51.100.0/24", none),
                ("ip route flush table 29806", "removed"),
                ("ip route flush table 7", none),
                ("ip -6 route flush table 29806", "removed"),
                ("nft add rule inet tunneld a drop", none),
                ("nft flush chain inet tunneld a", "removed"),
                ("nft delete table inet other", none),
                ("nft flush ruleset", "removed"),
            ];
            for (line, expected) in cases {
                run(line);
                // What there is of it, and then nothing.
                let mut changed = watch.wait(&stop, soon).unwrap().unwrap();
                while let Some(more) = watch.wait(&stop, pause).unwrap()
                    && more != Changed::default()
                {
                    changed.merge(more);
                }
                let told = [
                    (changed.addresses, "addresses"),
                    (changed.links, "links"),
                    (changed.removed, "removed"),
                ];
                let told: Vec<_> =
                    told.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
                let mut told = told.join(" ");
                if !changed.went.is_empty() {
                    told += &format!(", {} went", changed.went.len());
                }
                assert_eq!(told, expected, "{line}");
            }
            let paths = Paths::open().unwrap();
            let readable = || {
                let mut fds = [PollFd::new(&paths.0, PollFlags::IN)];
                poll(&mut fds, soon.map(timespec).as_ref()).unwrap() > 0
            };
            for line in [
                "ip address add 192.0.2.8/32 dev lo",
                "ip route add unreachable 198.51.100.0/24",
                "ip route add unreachable 2001:db8:1::/64",
                "ip rule add pref 9 table 9",
                "ip -6 rule add pref 9 table 9",
            ] {
                run(line);
                assert!(readable(), "{line}");
                std::thread::sleep(Duration::from_millis(30));
                paths.drain().unwrap();
            }
            drop(stopper);
            assert_eq!(watch.wait(&stop, soon).unwrap(), None);
        });
    }
}
