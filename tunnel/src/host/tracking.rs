//! Whether connections have to be tracked on this host, and when that may have changed.
//!
//! # Theory of operation
//!
//! Conntrack runs in a network namespace once any rule there needs it, and then looks at every
//! packet. Where nobody else wants it our table does without, see [`super::nft`]. It has to be
//! wanted where packets are forwarded into the TUN, and where others rewrite addresses.
//!
//! Whose rules need it is not to be asked of the kernel, but whether it runs is: an accepted
//! connection of the loopback device either has an entry or has none. That holds for
//! whoever switched it on, iptables and IPVS included. Rules that leave the loopback out by
//! `notrack` or a zone would deceive that, so the rules' text is looked at as well. What
//! cannot be told is taken for yes.
//!
//! When it changes nobody says; that rules or settings have changed is told. The old iptables
//! (`iptables-legacy`) and IPVS tell nothing: what they switch on is seen at the next such event.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use socket2::SockRef;

use super::Host;
use super::change::Change;
use super::error::HostError;
use super::nft;
use super::plan::Plan;
use super::watch::stopped_within;
use crate::rtnetlink;

/// Whether the table of `plan` has to track connections on this thread's network namespace,
/// as it is now. Blocks for milliseconds.
pub fn needed(plan: &Plan) -> bool {
    (plan.forward && forwards().unwrap_or(true)) || in_use().unwrap_or(true)
}

/// Whether packets of others may be forwarded.
fn forwards() -> io::Result<bool> {
    for version in ["ipv4", "ipv6"] {
        let devices = match std::fs::read_dir(format!("/proc/sys/net/{version}/conf")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            devices => devices?,
        };
        for device in devices {
            // A device may go while we look.
            let value = std::fs::read_to_string(device?.path().join("forwarding"));
            if value.is_ok_and(|value| value.trim() != "0") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether somebody tracks connections already.
fn in_use() -> Result<bool, Untold> {
    if runs()? {
        return Ok(true);
    }
    for tables in ["ip_tables_names", "ip6_tables_names"] {
        // Missing where the kernel has none of the old iptables.
        let tables = std::fs::read_to_string(format!("/proc/thread-self/net/{tables}"));
        if tables.is_ok_and(|tables| tables.lines().any(|table| table == "raw")) {
            return Ok(true);
        }
    }
    Ok(mentions_tracking(&nft::rules()?))
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// No connection came about on the loopback device.
    #[error("{0}")]
    Loopback(#[from] io::Error),
    /// The rules can't be read.
    #[error("{0}")]
    Rules(#[from] nft::NftError),
}

/// Whether conntrack looks at packets of either IP version.
fn runs() -> io::Result<bool> {
    let v6 = match has_entry(Ipv6Addr::LOCALHOST.into()) {
        // No IPv6 here, or none on this device.
        Err(error)
            if [io::ErrorKind::AddrNotAvailable, io::ErrorKind::Unsupported]
                .contains(&error.kind())
                || error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            false
        }
        told => told?,
    };
    Ok(v6 || has_entry(Ipv4Addr::LOCALHOST.into())?)
}

/// Whether a connection to one of this host's own addresses has an entry.
fn has_entry(address: IpAddr) -> io::Result<bool> {
    let listener = TcpListener::bind((address, 0))?;
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    let client = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let (accepted, _) = listener.accept()?;
    let accepted = SockRef::from(&accepted);
    // Nothing rests in TIME-WAIT after it.
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    let found =
        if address.is_ipv4() { accepted.original_dst_v4() } else { accepted.original_dst_v6() };
    match found.map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) => Ok(true),
        // No entry; no conntrack in this kernel, or not loaded.
        Err((Some(libc::ENOENT | libc::ENOPROTOOPT), _)) => Ok(false),
        Err((_, error)) => Err(error),
    }
}

/// Whether rules speak of conntrack at all. A name that is one of the words errs to the safe side.
fn mentions_tracking(rules: &str) -> bool {
    let of_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    rules.split(|c| !of_word(c)).any(|word| ["ct", "notrack", "CT", "NOTRACK"].contains(&word))
}

/// Waits until conntrack has ended with a table that was removed: the kernel says so at once, and
/// lets go of it when nobody can be at it any more. A daemon that starts then must not take
/// it for somebody else's. Where others track as well it takes all of the time.
pub(super) fn settle() {
    let began = Instant::now();
    while began.elapsed() < SETTLED && runs().unwrap_or(false) {
        thread::sleep(Duration::from_millis(5));
    }
}

impl Host {
    /// Makes the table in force one that tracks connections; one that does already is left. There
    /// is no way back: what has an entry by then may need it.
    pub fn track(&mut self) -> Result<(), HostError> {
        let text = self.applied.iter().find_map(|change| {
            if let Change::NftTable { tracking, .. } = change { tracking.clone() } else { None }
        });
        let Some(ruleset) = text else { return Ok(()) };
        let stands = self.table_stands().map_err(HostError::Look)?;
        self.apply_live(Change::NftTable { ruleset, tracking: None })?;
        if stands { Ok(()) } else { self.apply_live(Change::Accepted) }
    }
}

/// Wakes when rules or settings change in a way by which tracking may be [`needed`] since.
#[derive(Debug)]
pub struct Watch {
    /// Changes of nftables' rules.
    rules: OwnedFd,
    /// Changes of devices' settings, forwarding among them.
    settings: OwnedFd,
}

impl Watch {
    /// Every change from now on, of this thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        let rules = nft::watch()?;
        let settings = rtnetlink::socket()?;
        rustix::net::bind(&settings, &SocketAddrNetlink::new(0, NETCONF))?;
        Ok(Self { rules, settings })
    }

    /// Blocks until something has changed, and a moment longer: whoever changes rules mostly
    /// changes several. `None`: the other end of `stop` was closed.
    pub fn wait(&self, stop: impl AsFd) -> Result<Option<()>, Errno> {
        loop {
            let fds = [self.rules.as_fd(), self.settings.as_fd(), stop.as_fd()];
            let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            if !fds[2].revents().is_empty() {
                return Ok(None);
            }
            if self.drain()? {
                if stopped_within(&stop, DEBOUNCE) {
                    return Ok(None);
                }
                self.drain()?;
                return Ok(Some(()));
            }
        }
    }

    /// Reads what has come: whether any of it matters.
    fn drain(&self) -> Result<bool, Errno> {
        let mut matters = false;
        while let Some(changed) = nft::receive(&self.rules, true, changes_rules)? {
            matters |= changed;
        }
        while let Some(changed) = nft::receive(&self.settings, true, |_| true)? {
            matters |= changed;
        }
        Ok(matters)
    }
}

/// Whether a datagram of nftables tells of a new table, chain, rule or flow table. What is
/// removed, and elements that come and go, switch nothing on.
fn changes_rules(mut datagram: &[u8]) -> bool {
    // `struct nlmsghdr`: a length of four bytes, a type of two.
    while let (Some(length), Some(kind)) =
        (datagram.first_chunk::<4>(), datagram.get(4..).and_then(<[u8]>::first_chunk::<2>))
    {
        let kind = u16::from_ne_bytes(*kind);
        if [NEW_TABLE, NEW_CHAIN, NEW_RULE, NEW_FLOW_TABLE].contains(&kind) {
            return true;
        }
        let length = (u32::from_ne_bytes(*length) as usize).max(16);
        let next = length.checked_next_multiple_of(4).and_then(|next| datagram.get(next..));
        datagram = next.unwrap_or_default();
    }
    false
}

/// For a connection that stays on the host.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between a change and the look at it.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// A grace period of the kernel's and more.
const SETTLED: Duration = Duration::from_millis(100);

/// `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF`, likewise.
const NETCONF: u32 = 1 << (24 - 1) | 1 << (25 - 1);
/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_NEWTABLE` and others.
const NEW_TABLE: u16 = 10 << 8;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const NEW_RULE: u16 = 10 << 8 | 6;
const NEW_FLOW_TABLE: u16 = 10 << 8 | 22;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{run, within};
    use engine::DeviceName;

    #[test]
    fn words_of_tracking_table() {
        #[rustfmt::skip]
        let cases = [
            ("no rule", "", false),
            ("a plain filter", "table inet f { chain i { tcp dport 22 accept } }", false),
            ("a state", "ct state established accept", true),
            ("a raw rule", "iif lo notrack", true),
            ("one of iptables'", "counter packets 0 bytes 0 xt target \"CT\"", true),
            ("a part of a word", "chain direct { } chain act-ct { } set ct_x { }", false),
        ];
        for (name, rules, expected) in cases {
            assert_eq!(mentions_tracking(rules), expected, "{name}");
        }
    }

    #[test]
    fn datagram_table() {
        let message = |kind: u16, body: usize| {
            let length = 16 + body as u32;
            let mut message = length.to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(16 + body.next_multiple_of(4), 0xff);
            message
        };
        let (generation, element) = (message(10 << 8 | 15, 4), message(10 << 8 | 12, 7));
        #[rustfmt::skip]
        let cases: [(&str, Vec<u8>, bool); 7] = [
            ("nothing", Vec::new(), false),
            ("cut off", vec![1, 2, 3, 4, 5], false),
            ("an element", [element.clone(), generation.clone()].concat(), false),
            ("a rule", message(NEW_RULE, 30), true),
            ("a chain after an element", [element, message(NEW_CHAIN, 0)].concat(), true),
            ("a length of zero", [vec![0; 16], message(NEW_TABLE, 0)].concat(), true),
            ("a length beyond", [vec![0xff; 16], message(NEW_TABLE, 0)].concat(), false),
        ];
        for (name, datagram, expected) in cases {
            assert_eq!(changes_rules(&datagram), expected, "{name}");
        }
        drop(generation);
    }

    #[test]
    fn who_tracks_is_told_and_when_it_changes() {
        within("", || {
            let mut plan = Plan::new(DeviceName::new("t0").unwrap());
            assert!(needed(&plan), "without a loopback device it can't be told");
            run("ip link set lo up");
            assert!(!needed(&plan));
            let watch = Watch::open().unwrap();
            let (stop, stopper) = io::pipe().unwrap();
            let changed = |line: &str, expected: bool| {
                run(line);
                watch.wait(&stop).unwrap().unwrap();
                assert_eq!(needed(&plan), expected, "{line}");
            };
            changed("nft add table ip t", false);
            changed("nft add chain ip t in { type filter hook input priority 0 ; }", false);
            changed("nft add rule ip t in ct state established accept", true);
            run("nft delete table ip t");
            settle();
            assert!(!runs().unwrap());
            changed("nft add table ip6 t", false);
            changed("nft add chain ip6 t post { type nat hook postrouting priority 100 ; }", false);
            changed("nft add rule ip6 t post masquerade", true);
            run("nft delete table ip6 t");
            settle();
            changed("nft add table inet t", false);
            changed("nft add chain inet t raw { type filter hook output priority -300 ; }", false);
            changed("nft add rule inet t raw oif lo notrack", true);
            run("nft delete table inet t");
            changed("sysctl -qw net.ipv4.conf.lo.forwarding=1", true);
            plan.forward = false;
            assert!(!needed(&plan), "what is forwarded passes by");
            run("sysctl -qw net.ipv4.conf.lo.forwarding=0");
            drop(stopper);
            assert_eq!(watch.wait(&stop).unwrap(), None, "told to stop, with a change to be told");
        });
    }
}
