//! The nftables table: marks by which connections from outside keep their path.
//!
//! # Theory of operation
//!
//! Captured is what has no mark of ours. So that a host stays reachable, what comes in from
//! outside for this host gets the mark in `prerouting`, and its answers get it by these ways:
//!
//! - TCP: a socket has the mark of the SYN that opened it (`tcp_fwmark_accept`). Connections that
//!   are older than the table are listed in `accepted4` and `accepted6`.
//! - What answers without a socket (RST, echo reply, ICMP error): `fwmark_reflect`.
//! - UDP: `input` writes down who asked which port, unless an own socket with our mark is asked,
//!   and `output` marks what goes back there. A server on a wildcard socket answers from the
//!   address that the kernel chooses, which is the TUN's: the address that it was asked at
//!   is put back. nft before 1.0.7 has room for 16 bytes of a key beside an IPv6 address,
//!   so that IPv6 remembers one address for a client, whatever its ports.
//!
//! This is all where nobody else uses conntrack, which costs every packet; the table has two forms.
//! The other one, for a host with stateful rules or NAT, or that forwards for others, adds:
//!
//! - `prerouting` marks the conntrack entry of a connection to an address of this host (also one
//!   that is rewritten to a container's later); whatever follows takes its mark from there. Of
//!   TCP only a SYN counts as a first packet: a segment out of the middle may belong to an own
//!   connection that is older than the table.
//! - `tracked` marks the entry of what leaves with our mark, and the other way round.
//! - `postrouting`: what is forwarded into the TUN keeps its client's address: a chain before all
//!   others rewrites the source to what it is, and conntrack rewrites a source only once.
//!
//! For what conntrack would know by itself there are two more sets without it: `protocols4` and 6
//! of who speaks anything but TCP, UDP and ICMP to us, and `marked4` and 6 of TCP connections
//! to a server whose socket has somebody else's mark, which the kernel leaves as it is. Until
//! conntrack is used nothing is forwarded into the TUN.
//!
//! A table becomes one of the other form by one transaction, in which its sets keep what is in
//! them. `output` goes on reading the two that nobody fills any more: conntrack makes its entries
//! for what was open before out of the middle, or made them when somebody else began to use
//! it, and then without a mark. The first answer that a set knows marks the entry.
//!
//! `rp_filter` is off, so the same check is made here, after the marks and with ours: what the
//! routes behind our rules say is what counts. A packet from outside to the TUN's own
//! address is nobody's.
//!
//! What is left without a mark is forwarded into the TUN, and gets the mark that says so: see
//! the rules of policy routing.
//!
//! Nothing else is dropped; every chain ends in `accept`, which leaves other tables their say.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::super::plan::Plan;
use super::super::seen::{ReversePath, Seen};
use super::{TABLE, is_pattern};

/// The table's text for a plan, in the form that the plan asks for, in place of any that is there.
pub(in super::super) fn ruleset(plan: &Plan, seen: &Seen) -> String {
    let form = if plan.tracks { Form::Tracked } else { Form::Untracked };
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{}", table(plan, seen, form))
}

/// The text of a table that uses conntrack, in place of one that does not. What that one's sets
/// hold stays.
pub(in super::super) fn tracking(plan: &Plan, seen: &Seen) -> String {
    format!(
        "add table inet {TABLE}\nflush table inet {TABLE}\n{}",
        table(plan, seen, Form::Switched)
    )
}

/// Whether the table uses conntrack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Untracked,
    Tracked,
    /// It does, and has not from the start.
    Switched,
}

impl Form {
    fn tracks(self) -> bool {
        match self {
            Self::Untracked => false,
            Self::Tracked | Self::Switched => true,
        }
    }

    /// Whether there is something in the sets that stand in for conntrack.
    fn has_stand_ins(self) -> bool {
        match self {
            Self::Untracked | Self::Switched => true,
            Self::Tracked => false,
        }
    }
}

/// Statements and expressions of this plan's.
struct Words {
    /// Behind `meta mark` or the like: it is ours.
    ours: String,
    /// Behind `meta mark` or the like: it isn't.
    not_ours: String,
    /// Marks the packet.
    mark: String,
    /// Marks the conntrack entry.
    mark_entry: String,
    /// The TUN's addresses, for every IP version that it has any of.
    own: Vec<(&'static Version, String)>,
}

/// An IP version, as far as the text knows more than one.
struct Version {
    /// The header.
    ip: &'static str,
    /// Behind a set's name.
    number: &'static str,
    /// The key of who asked, as its question comes in; which of its parts find its own address
    /// again.
    asks: &'static str,
    asks_at: &'static str,
    /// The same of an answer.
    answers: &'static str,
    answers_at: &'static str,
    /// The type of `asks_at`.
    at: &'static str,
}

const V4: Version = Version {
    ip: "ip",
    number: "4",
    asks: "ip saddr . udp sport . udp dport",
    asks_at: "ip saddr . udp sport . udp dport",
    answers: "ip daddr . udp dport . udp sport",
    answers_at: "ip daddr . udp dport . udp sport",
    at: "ipv4_addr . inet_service . inet_service",
};
const V6: Version = Version {
    ip: "ip6",
    number: "6",
    asks: "ip6 saddr . udp sport . udp dport",
    asks_at: "ip6 saddr",
    answers: "ip6 daddr . udp dport . udp sport",
    answers_at: "ip6 daddr",
    at: "ipv6_addr",
};

fn table(plan: &Plan, seen: &Seen, form: Form) -> String {
    let (value, mask, rest) = (plan.mark.value, plan.mark.mask, !plan.mark.mask);
    let own = |version: &'static Version| {
        let v4 = version.ip == V4.ip;
        let addresses = plan.addresses.iter().map(IpNet::addr).filter(|a| a.is_ipv4() == v4);
        list(addresses).map(|addresses| (version, addresses))
    };
    let words = Words {
        ours: format!("& {mask:#010x} == {value:#010x}"),
        not_ours: format!("& {mask:#010x} != {value:#010x}"),
        mark: format!("meta mark set meta mark & {rest:#010x} | {value:#010x}"),
        mark_entry: format!("ct mark set ct mark & {rest:#010x} | {value:#010x}"),
        own: [&V4, &V6].into_iter().filter_map(own).collect(),
    };
    let mut text = Text(format!("table inet {TABLE} {{\n"));
    for version in [&V4, &V6] {
        sets(&mut text, version, form);
    }
    prerouting(&mut text, plan, seen, &words, form.tracks());
    input(&mut text, &words, form.tracks());
    output(&mut text, &words, form);
    if form.tracks() {
        let Words { ours, mark, mark_entry, .. } = &words;
        // What is most, captured packets and our own, leaves first: this is run for each.
        let mut rules = vec![format!("meta mark {ours} {mark_entry} accept")];
        rules.extend(words.own.iter().map(|(v, own)| format!("{} saddr {own} accept", v.ip)));
        rules.push(format!("ct mark {ours} {mark}"));
        text.chain("tracked", "route hook output priority mangle", &rules);
        let tun = plan.device;
        text.chain(
            "postrouting",
            "nat hook postrouting priority srcnat - 1",
            &[
                format!("oifname \"{tun}\" snat ip to ip saddr"),
                format!("oifname \"{tun}\" snat ip6 to ip6 saddr"),
            ],
        );
    } else if plan.forward {
        // Nobody forwards yet. Whoever begins to may rewrite addresses before this table keeps
        // them: what is to be judged by another's address is not judged at all.
        let rule = format!("oifname \"{}\" drop", plan.device);
        text.chain("forward", "filter hook forward priority filter", &[rule]);
    }
    text.0.push_str("}\n");
    text.0
}

/// The text of a table.
struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string doesn't fail.
        let _ = writeln!(self.0, "  {line}");
    }

    /// A chain; with a `head` it is one of the kernel's hooks. A chain stands before those that
    /// lead to it.
    fn chain(&mut self, name: &str, head: &str, rules: &[String]) {
        self.line(format_args!("chain {name} {{"));
        if !head.is_empty() {
            self.line(format_args!("  type {head}; policy accept;"));
        }
        for rule in rules {
            self.line(format_args!("  {rule}"));
        }
        self.line(format_args!("}}"));
    }
}

fn sets(text: &mut Text, version: &Version, form: Form) {
    let Version { number, at, .. } = version;
    let address = format!("ipv{number}_addr");
    let connection = format!("{address} . inet_service . {address} . inet_service");
    let asked = format!("flags dynamic,timeout; timeout {ASKED_SECONDS}s; size {ASKED};");
    text.line(format_args!("set accepted{number} {{ type {connection}; }}"));
    text.line(format_args!(
        "set asked{number} {{ type {address} . inet_service . inet_service; {asked} }}"
    ));
    text.line(format_args!("map asked_at{number} {{ type {at} : {address}; {asked} }}"));
    if form.has_stand_ins() {
        text.line(format_args!(
            "set protocols{number} {{ type {address} . inet_proto; \
             flags dynamic,timeout; timeout {ASKED_SECONDS}s; size {FEW}; }}"
        ));
        text.line(format_args!(
            "set marked{number} {{ type {connection}; \
             flags dynamic,timeout; timeout {CONNECTION_DAYS}d; size {FEW}; }}"
        ));
    }
}

/// Marks of what comes in for this host, and the check of its source.
fn prerouting(text: &mut Text, plan: &Plan, seen: &Seen, words: &Words, tracks: bool) {
    let (value, mask, rest) = (plan.mark.value, plan.mark.mask, !plan.mark.mask);
    let Words { ours, not_ours, mark, mark_entry, own } = words;
    let strict = ReversePath::Strict;
    let checks = source_checks(plan, seen, &[(strict, " . iif"), (ReversePath::Loose, "")]);
    if !checks.is_empty() {
        text.chain("source", "", &checks);
        text.chain(
            "source_as_ours",
            "",
            &[
                format!("meta mark set meta mark | {value:#010x}"),
                "jump source".to_owned(),
                format!("meta mark set meta mark & {rest:#010x}"),
            ],
        );
    }

    let mut rules = vec![format!("iifname {{ \"lo\", \"{}\" }} accept", plan.device)];
    rules.extend(own.iter().map(|(version, own)| format!("{} daddr {own} drop", version.ip)));
    if tracks {
        text.chain("inbound", "", &[mark_entry.clone(), mark.clone()]);
        let mut first = vec![
            "meta l4proto != tcp ct state new fib daddr type local goto inbound".to_owned(),
            "tcp flags & (fin|syn|rst|ack) == syn ct state new fib daddr type local goto inbound"
                .to_owned(),
            "ct direction original ct status dnat fib daddr type local goto inbound".to_owned(),
            "ip daddr . tcp dport . ip saddr . tcp sport @accepted4 goto inbound".to_owned(),
            "ip6 daddr . tcp dport . ip6 saddr . tcp sport @accepted6 goto inbound".to_owned(),
        ];
        if let Some(local) = names(plan.local.iter().map(String::as_str)) {
            // To a machine behind a local bridge, from an uplink: a connection from outside as
            // well.
            text.chain(
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
        text.chain("first", "", &first);
        rules.push(format!("ct mark {ours} {mark}"));
        rules.push(format!("meta mark {not_ours} jump first"));
    } else {
        // An answer to an own connection that is older than the table gets the mark as well, and
        // its socket none: what that says next is captured, and answered with a reset.
        rules.push(format!("meta mark {not_ours} fib daddr type local {mark}"));
    }
    if !checks.is_empty() {
        rules.extend([
            format!("{CHECKED} meta mark {ours} jump source"),
            format!("{CHECKED} meta mark & {mask:#010x} == 0 jump source_as_ours"),
        ]);
    }
    if let Some(forwarded) = plan.mark.forwarded().filter(|_| plan.forward) {
        rules.push(format!(
            "meta mark & {mask:#010x} == 0 meta mark set meta mark | {forwarded:#010x}"
        ));
    }
    text.chain("prerouting", "filter hook prerouting priority mangle", &rules);
}

/// Who is to be answered: behind the route lookup, which has found the socket of most datagrams.
fn input(text: &mut Text, words: &Words, tracks: bool) {
    let not_ours = &words.not_ours;
    let mut asked = Vec::new();
    for Version { ip, number, asks, asks_at, .. } in [&V4, &V6] {
        // Updated alone, an element keeps the address that it had.
        asked.push(format!(
            "update @asked{number} {{ {asks} }} \
             delete @asked_at{number} {{ {asks_at} : {ip} daddr }} \
             update @asked_at{number} {{ {asks_at} : {ip} daddr }}"
        ));
    }
    text.chain("asked", "", &asked);

    let mut rules = Vec::new();
    if !tracks {
        rules.push(format!("{TCP_IN_THE_MIDDLE} accept"));
    }
    rules.push(format!("meta mark {not_ours} accept"));
    rules.push(format!("meta l4proto udp socket mark {not_ours} fib daddr type local goto asked"));
    if !tracks {
        let theirs = format!("meta l4proto tcp socket mark != 0 socket mark {not_ours}");
        let others = "meta l4proto != { tcp, udp, icmp, ipv6-icmp } fib daddr type local";
        for Version { ip, number, .. } in [&V4, &V6] {
            rules.push(format!(
                "{theirs} update @marked{number} \
                 {{ {ip} daddr . tcp dport . {ip} saddr . tcp sport }}"
            ));
            rules.push(format!(
                "{others} update @protocols{number} {{ {ip} saddr . meta l4proto }}"
            ));
        }
    }
    text.chain("input", "filter hook input priority mangle", &rules);
}

/// Marks of answers. A packet whose mark or source has changed here is routed again.
fn output(text: &mut Text, words: &Words, form: Form) {
    let Words { ours, mark, own, .. } = words;
    for version in [&V4, &V6] {
        let Version { ip, number, answers, answers_at, .. } = version;
        let mut rules = Vec::new();
        if let Some((_, own)) = own.iter().find(|(other, _)| other.ip == *ip) {
            rules.push(format!(
                "{ip} saddr {own} {ip} saddr set {answers_at} map @asked_at{number} \
                 update @asked_at{number} {{ {answers_at} : {ip} saddr }}"
            ));
            rules.push(format!("{ip} saddr {own} accept"));
        }
        rules.push(format!("update @asked{number} {{ {answers} }}"));
        rules.push(mark.clone());
        text.chain(&format!("answer{number}"), "", &rules);
    }

    // What is most, captured packets and our own, leaves first: this is run for each.
    let mut rules = vec![format!("meta mark {ours} accept")];
    for Version { number, answers, .. } in [&V4, &V6] {
        rules.push(format!("{answers} @asked{number} goto answer{number}"));
    }
    rules.extend(own.iter().map(|(version, own)| format!("{} saddr {own} accept", version.ip)));
    for Version { ip, number, .. } in [&V4, &V6] {
        let connection = format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport");
        rules.push(format!("{connection} @accepted{number} {mark} accept"));
        if form.has_stand_ins() {
            rules.push(format!(
                "meta mark != 0 {connection} @marked{number} {mark} \
                 update @marked{number} {{ {connection} }} accept"
            ));
            rules.push(format!(
                "{ip} daddr . meta l4proto @protocols{number} {mark} \
                 update @protocols{number} {{ {ip} daddr . meta l4proto }} accept"
            ));
        }
    }
    text.chain("output", "route hook output priority raw", &rules);
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

fn list<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> Option<String> {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    (!items.is_empty()).then(|| format!("{{ {} }}", items.join(", ")))
}

/// The kernel checks no source of IPv6, and none of what is sent to a group or to all.
const CHECKED: &str = "meta nfproto ipv4 fib daddr type { local, unicast }";
/// Of TCP what opens no connection.
const TCP_IN_THE_MIDDLE: &str = "tcp flags & (fin|syn|rst|ack) != syn";

/// How long a UDP server may think, as long as conntrack itself remembers a stream.
const ASKED_SECONDS: u32 = 120;
/// Clients that are remembered. Beyond, an answer goes into the TUN, unless conntrack knows better.
const ASKED: u32 = 65_536;
/// As long as conntrack remembers a connection that says nothing.
const CONNECTION_DAYS: u32 = 5;
/// Of what hardly any host has.
const FEW: u32 = 4096;
