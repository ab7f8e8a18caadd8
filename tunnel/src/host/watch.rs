//! When this host's addresses, devices and their settings change.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use engine::DeviceName;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

use super::nft;
use crate::rtnetlink::{self, Rtnetlink};

/// Wakes when something has changed.
#[derive(Debug)]
pub struct Watch {
    network: OwnedFd,
    /// `None`: the kernel has no nftables, or doesn't tell.
    tables: Option<OwnedFd>,
    /// The routing table that is ours.
    table: u32,
    /// The index of the TUN.
    device: u32,
}

/// What may have changed. What it is now is to be looked at anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// An address came or went.
    pub addresses: bool,
    /// A device came, went or is another now, or one of its settings has another value that the
    /// kernel tells of: `rp_filter` is the one of ours.
    pub links: bool,
    /// An address, a rule, a route of our table, or something of our nftables table was removed,
    /// or of that changed.
    pub removed: bool,
    /// Something was taken out of a set of our nftables table.
    pub emptied: bool,
    /// A route into the TUN came in another table than ours.
    pub led: bool,
    /// The indices of devices that went. One of them may be back.
    pub went: Vec<u32>,
}

impl Watch {
    /// Every change from now on, of this thread's network namespace. `table` is the routing table
    /// that is ours, `device` the TUN.
    pub fn open(table: u32, device: DeviceName) -> Result<Self, Errno> {
        let network = rtnetlink::socket()?;
        let addresses = IPV4_ADDRESS | IPV6_ADDRESS;
        let routing = IPV4_ROUTE | IPV6_ROUTE | IPV4_RULE | IPV6_RULE;
        let groups = LINK | addresses | routing | IPV4_NETCONF;
        rustix::net::bind(&network, &SocketAddrNetlink::new(0, groups))?;
        let device = Rtnetlink::open()?.index(device.as_str())?;
        Ok(Self { network, tables: nft::watch().ok(), table, device })
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
        let mut buffer = [0; LONGEST];
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::net::recv(&self.network, &mut buffer, flags) {
                Ok((read, _)) => self.add(&buffer[..read], &mut changed),
                // Changes were missed.
                Err(Errno::NOBUFS) => changed.merge(Changed::all()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        let Some(tables) = &self.tables else { return Ok(changed) };
        let missed = nft::Touched { table: true, sets: false };
        while let Some(touched) = nft::receive(tables, missed, nft::touches)? {
            changed.removed |= touched.table;
            changed.emptied |= touched.sets;
        }
        Ok(changed)
    }

    /// Counts a notification: the kernel sends one a datagram.
    fn add(&self, datagram: &[u8], changed: &mut Changed) {
        let Some(start) = datagram.first_chunk::<HEADER>() else { return };
        let kind = NetlinkBuffer::new(start).message_type();
        match kind {
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                changed.addresses = true;
                changed.removed |= kind == libc::RTM_DELADDR;
            }
            libc::RTM_DELRULE => changed.removed = true,
            // In the header is room for the numbers of tables that there were once.
            libc::RTM_DELROUTE => {
                let table = u8::try_from(self.table).unwrap_or(libc::RT_TABLE_COMPAT);
                changed.removed |= start[MESSAGE + 4] == table;
            }
            libc::RTM_NEWROUTE => changed.led |= self.leads_astray(start, datagram),
            libc::RTM_NEWRULE => {}
            _ => {
                changed.links = true;
                // One that leaves a bridge is told of as well, by that family.
                if kind == libc::RTM_DELLINK
                    && i32::from(start[MESSAGE]) == libc::AF_UNSPEC
                    && let Some(index) = start[MESSAGE + 4..].first_chunk()
                {
                    changed.went.push(u32::from_ne_bytes(*index));
                }
            }
        }
    }

    /// Whether a new route may lead into the TUN and isn't ours: a look tells. The kernel's own,
    /// by which an address is this host's, are no such.
    fn leads_astray(&self, start: &[u8; HEADER], datagram: &[u8]) -> bool {
        if start[MESSAGE + 5] == libc::RTPROT_KERNEL {
            return false;
        }
        let (mut table, mut leads) = (u32::from(start[MESSAGE + 4]), false);
        // Of a long one, which has many ways, the beginning is read: it leads to several devices.
        let attributes = NlasIterator::new(datagram.get(MESSAGE + ROUTE..).unwrap_or_default());
        for attribute in attributes.map_while(Result::ok) {
            let number = attribute.value().first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            match attribute.kind() {
                libc::RTA_TABLE => table = number.unwrap_or(table),
                libc::RTA_OIF => leads |= number == Some(self.device),
                libc::RTA_MULTIPATH => leads = true,
                _ => {}
            }
        }
        leads && table != self.table
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
    /// All that there is to be looked at. What was taken out of a set shows no more.
    pub fn all() -> Self {
        let went = Vec::new();
        Self { addresses: true, links: true, removed: true, emptied: false, led: true, went }
    }

    /// Counts what comes later in.
    pub fn merge(&mut self, later: Self) {
        self.addresses |= later.addresses;
        self.links |= later.links;
        self.removed |= later.removed;
        self.emptied |= later.emptied;
        self.led |= later.led;
        self.went.extend(later.went);
    }
}

/// `struct nlmsghdr`.
const MESSAGE: usize = 16;
/// With what is looked at of `struct ifinfomsg` and `struct rtmsg`.
const HEADER: usize = MESSAGE + 8;
/// `struct rtmsg`.
const ROUTE: usize = 12;
/// A route with one way has under 200 bytes.
const LONGEST: usize = 512;

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
            run("ip tuntap add t0 mode tun");
            run("ip link set lo up");
            run("ip link set t0 up");
            run("ip link add v2 type veth peer name v3");
            run("ip link set v2 up");
            run("nft add set inet tunneld s { type inet_service ; }");
            run("nft add element inet tunneld s { 7 , 8 }");
            run("nft add set inet other s { type inet_service ; }");
            run("nft add element inet other s { 7 }");
            let watch = Watch::open(29_806, DeviceName::new("t0").unwrap()).unwrap();
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
                ("ip route add table 29806 198.51.101.0/24 dev t0", none),
                ("ip route add 198.51.101.0/24 dev v2", none),
                ("ip route add table 300 198.51.101.0/24 dev t0", "led"),
                ("ip route add 198.51.102.0/24 dev t0", "led"),
                ("ip -6 route add 2001:db8:a::/64 dev t0", "led"),
                ("ip route add 198.51.103.0/24 nexthop dev v2 nexthop dev t0", "led"),
                ("ip route del 198.51.102.0/24", none),
                ("ip address add 192.0.2.9/32 dev t0", addresses),
                ("ip route flush table 29806", "removed"),
                ("ip route flush table 7", none),
                ("ip -6 route flush table 29806", "removed"),
                ("nft add rule inet tunneld a drop", none),
                ("nft add element inet tunneld s { 9 }", none),
                ("nft delete element inet tunneld s { 7 }", "emptied"),
                ("nft flush set inet tunneld s", "emptied"),
                ("nft flush set inet other s", none),
                ("nft add table inet tunneld { flags dormant ; }", "removed"),
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
                    (changed.emptied, "emptied"),
                    (changed.led, "led"),
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
