//! The nftables table: marks by which connections from outside keep their path.
//!
//! # Theory of operation
//!
//! Captured is what has no mark of ours. So that a host stays reachable, what belongs to a
//! connection from outside gets the mark:
//!
//! - `prerouting`: the first packet of a connection to an address of this host (also one that is
//!   rewritten to a container's later) marks its conntrack entry and itself; whatever follows takes
//!   its mark from the entry. Of TCP only a SYN counts as a first packet: a segment out of the
//!   middle may belong to an own connection that is older than the table. Accepted connections
//!   that are older are listed by address in `accepted4` and `accepted6`.
//! - `output`: answers take the entry's mark and are routed again. What has our mark already is
//!   the engine's own, and marks the entry: replies then find their way by the uplink's rules.
//! - `answer`: a UDP server on a wildcard socket answers from the address that the kernel
//!   chooses, which is the TUN's. Where the question came from outside, the address that it
//!   was asked at is put back before conntrack looks. IPv4 only: nft before 1.0.7 fails an
//!   assertion on a map from packets to IPv6 addresses.
//!
//! `rp_filter` is off, so the same check is made here, after the marks and with ours: what the
//! routes behind our rules say is what counts. A packet from outside to the TUN's own
//! address is nobody's.
//!
//! What is forwarded into the TUN keeps its client's address: a `postrouting` chain before all
//! others rewrites the source to what it is, and conntrack rewrites a source only once.
//!
//! What is left without a mark is forwarded into the TUN, and gets the mark that says so: see
//! the rules of policy routing.
//!
//! Nothing else is dropped; every chain ends in `accept`, which leaves other tables their say.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use rustix::io::Errno;

use super::plan::Plan;
use super::seen::{ReversePath, Seen};

/// The table's name, in family `inet`.
pub(super) const TABLE: &str = "tunneld";

/// Why nft did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program `nft` is not installed")]
    Missing,
    /// It could not be started, or not be spoken to.
    #[error("`nft` cannot be run: {0}")]
    Run(Errno),
    /// It said no.
    #[error("nft: {0}")]
    Refused(Complaint),
}

/// The first line of what nft writes to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint(Box<str>);

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The table's text for a plan.
pub(super) fn ruleset(plan: &Plan, seen: &Seen) -> String {
    let (value, mask, rest) = (plan.mark.value, plan.mark.mask, !plan.mark.mask);
    let ours = format!("& {mask:#010x} == {value:#010x}");
    let set_ct = format!("ct mark set ct mark & {rest:#010x} | {value:#010x}");
    let set_meta = format!("meta mark set meta mark & {rest:#010x} | {value:#010x}");
    let tun = format!("\"{}\"", plan.device);
    let own: [Vec<IpAddr>; 2] = [true, false]
        .map(|v4| plan.addresses.iter().map(IpNet::addr).filter(|a| a.is_ipv4() == v4).collect());

    let mut text = format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set accepted4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
  set accepted6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
  map asked4 {{
    type ipv4_addr . inet_service . inet_service : ipv4_addr
    flags dynamic,timeout; timeout {ASKED_SECONDS}s; size {ASKED};
  }}
"
    );
    let mut chain = |name: &str, head: &str, rules: &[String]| {
        let _ = writeln!(text, "  chain {name} {{");
        if !head.is_empty() {
            let _ = writeln!(text, "    type {head}; policy accept;");
        }
        for rule in rules {
            let _ = writeln!(text, "    {rule}");
        }
        text.push_str("  }\n");
    };

    // A chain stands before those that lead to it.
    let strict = ReversePath::Strict;
    let checks = source_checks(plan, seen, &[(strict, " . iif"), (ReversePath::Loose, "")]);
    if !checks.is_empty() {
        chain("source", "", &checks);
        chain(
            "source_as_ours",
            "",
            &[
                format!("meta mark set meta mark | {value:#010x}"),
                "jump source".to_owned(),
                format!("meta mark set meta mark & {rest:#010x}"),
            ],
        );
    }
    chain("inbound", "", &[set_ct.clone(), set_meta.clone()]);
    let local = names(plan.local.iter().map(String::as_str));
    let mut first = vec![
        "meta l4proto != tcp ct state new fib daddr type local goto inbound".to_owned(),
        "tcp flags & (fin|syn|rst|ack) == syn ct state new fib daddr type local goto inbound"
            .to_owned(),
        "ct direction original ct status dnat fib daddr type local goto inbound".to_owned(),
        "ip daddr . tcp dport . ip saddr . tcp sport @accepted4 goto inbound".to_owned(),
        "ip6 daddr . tcp dport . ip6 saddr . tcp sport @accepted6 goto inbound".to_owned(),
    ];
    if let Some(local) = &local {
        // To a machine behind a local bridge, from an uplink: a connection from outside as well.
        chain(
            "routed",
            "",
            &[
                format!("meta mark set meta mark | {value:#010x}"),
                format!("fib daddr . mark oifname {local} goto inbound"),
                format!("meta mark set meta mark & {rest:#010x}"),
            ],
        );
        first.push(format!(
            "iifname != {local} ct state new meta mark & {mask:#010x} == 0 jump routed"
        ));
    }
    chain("first", "", &first);

    let mut prerouting = vec![format!("iifname {{ \"lo\", {tun} }} accept")];
    for (protocol, addresses) in ["ip", "ip6"].into_iter().zip(&own) {
        if let Some(addresses) = list(addresses.iter()) {
            prerouting.push(format!("{protocol} daddr {addresses} drop"));
        }
    }
    prerouting.extend([
        format!("ct mark {ours} {set_meta}"),
        format!("meta mark & {mask:#010x} != {value:#010x} jump first"),
        format!(
            "meta mark {ours} ct direction original \
             update @asked4 {{ ip saddr . udp sport . udp dport : ip daddr }}"
        ),
    ]);
    if !checks.is_empty() {
        prerouting.extend([
            format!("{CHECKED} meta mark {ours} jump source"),
            format!("{CHECKED} meta mark & {mask:#010x} == 0 jump source_as_ours"),
        ]);
    }
    if let Some(forwarded) = plan.mark.forwarded().filter(|_| plan.forward) {
        prerouting.push(format!(
            "meta mark & {mask:#010x} == 0 meta mark set meta mark | {forwarded:#010x}"
        ));
    }
    chain("prerouting", "filter hook prerouting priority mangle", &prerouting);

    let mut answer = Vec::new();
    if let Some(addresses) = list(own[0].iter()) {
        answer.push(format!(
            "ip saddr {addresses} ip saddr set ip daddr . udp dport . udp sport map @asked4"
        ));
    }
    chain("answer", "filter hook output priority raw", &answer);
    // What is most, captured packets and our own, leaves first: this is run for each.
    let mut output = vec![format!("meta mark {ours} {set_ct} accept")];
    for (protocol, addresses) in ["ip", "ip6"].into_iter().zip(&own) {
        if let Some(addresses) = list(addresses.iter()) {
            output.push(format!("{protocol} saddr {addresses} accept"));
        }
    }
    output.extend([
        format!("ct mark {ours} {set_meta} accept"),
        "ip saddr . tcp sport . ip daddr . tcp dport @accepted4 goto inbound".to_owned(),
        "ip6 saddr . tcp sport . ip6 daddr . tcp dport @accepted6 goto inbound".to_owned(),
    ]);
    chain("output", "route hook output priority mangle", &output);
    chain(
        "postrouting",
        "nat hook postrouting priority srcnat - 1",
        &[
            format!("oifname {tun} snat ip to ip saddr"),
            format!("oifname {tun} snat ip6 to ip6 saddr"),
        ],
    );
    text.push_str("}\n");
    text
}

/// What `rp_filter` would have checked, by device. A device that appears later takes what
/// `default` says.
fn source_checks(plan: &Plan, seen: &Seen, kinds: &[(ReversePath, &str)]) -> Vec<String> {
    let others = |name: &&str| *name != "lo" && *name != plan.device.as_str();
    let devices: Vec<&str> =
        seen.devices.iter().map(|device| device.name.as_str()).filter(others).collect();
    let later = seen.reverse_path("default");
    let mut checks = Vec::new();
    for &(kind, device) in kinds {
        let of_kind = names(devices.iter().copied().filter(|name| seen.reverse_path(name) == kind));
        if let Some(of_kind) = of_kind {
            checks.push(format!("iifname {of_kind} fib saddr . mark{device} oif missing drop"));
        }
        if later == kind {
            let known = names(devices.iter().copied())
                .map_or_else(String::new, |known| format!("iifname != {known} "));
            checks.push(format!("{known}fib saddr . mark{device} oif missing drop"));
        }
    }
    checks
}

/// A set of device names or patterns; `None` where it would be empty. What nft cannot be told of
/// is left out.
fn names<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    list(names.filter(|name| is_pattern(name)).map(|name| format!("\"{name}\"")))
}

/// Whether nft understands `name` as a device name, or as the start of one where it ends in `*`.
pub fn is_pattern(name: &str) -> bool {
    let start = name.strip_suffix('*').unwrap_or(name);
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*' | b'/');
    !start.is_empty() && name.len() <= 15 && start.bytes().all(plain)
}

fn list<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> Option<String> {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    (!items.is_empty()).then(|| format!("{{ {} }}", items.join(", ")))
}

/// The text that removes the table, whether or not it is there. (`destroy` takes nft 1.0.7.)
pub(super) fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Whether there is a table of our name.
pub(super) fn exists() -> Result<bool, NftError> {
    match run(&["list", "tables", "inet"], "") {
        Ok(tables) => {
            Ok(tables.lines().any(|line| line.split_whitespace().eq(["table", "inet", TABLE])))
        }
        Err(error) => Err(error),
    }
}

/// Applies `text` as one transaction.
pub(super) fn apply(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let failed = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            return NftError::Missing;
        }
        NftError::Run(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    // The other two where a service has a short PATH.
    let mut started = Err(io::Error::from(io::ErrorKind::NotFound));
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        started = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the daemon, which puts the host back.
            .process_group(0)
            .spawn();
        if !matches!(&started, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    let mut child = started.map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all before it writes anything. Where it ends early, its word says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason");
    Err(NftError::Refused(Complaint(line.strip_prefix("Error: ").unwrap_or(line).into())))
}

/// The kernel checks no source of IPv6, and none of what is sent to a group or to all.
const CHECKED: &str = "meta nfproto ipv4 fib daddr type { local, unicast }";

/// How long a UDP server may think, as long as conntrack itself remembers a stream.
const ASKED_SECONDS: u32 = 120;
/// Clients that are remembered. Beyond, an answer of a wildcard socket goes into the TUN.
const ASKED: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_table() {
        #[rustfmt::skip]
        let cases = [
            ("eth0", true), ("br-*", true), ("eth0.5", true), ("wg@x", true),
            ("", false), ("*", false), ("a*b", false), ("a\"", false), ("a b", false),
            ("a\\", false), ("sixteen-letters!", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_pattern(name), expected, "{name}");
        }
    }
}
