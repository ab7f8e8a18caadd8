//! The text of the configuration and of the policy.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::plan::Plan;
use crate::wireguard::{Endpoint, Interface, encode};

/// Prefixes that stand in one line; more are a set.
const IN_LINE: usize = 4;
/// Prefixes of which the policy expects something.
const EXPECTED: usize = 8;

/// Addresses of nobody (RFC 5737, RFC 3849, RFC 9637), one of which is elsewhere.
const ELSEWHERE: [[&str; 3]; 2] =
    [["192.0.2.1", "198.51.100.1", "203.0.113.1"], ["2001:db8::1", "3fff::1", "2001:db8:ffff::1"]];

/// `tunneld.toml`.
pub(super) fn config(source: &str, plan: &Plan, interface: &Interface) -> Zeroizing<String> {
    let allowed = interface.peers.iter().map(|peer| peer.allowed.len()).sum::<usize>();
    let prefixes = interface.addresses.len() + allowed;
    // With room for all of it no copy of a key is left behind by growing.
    let room = 4_096 + 1_024 * interface.peers.len() + 128 * prefixes;
    let mut text = Zeroizing::new(String::with_capacity(room));
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("# Made of {} by `tunneld import`.\n", plain(source)));
    line(format_args!("[policy]\ndirectory = \"policy.d\"\n"));
    if let Some(capture) = capture(plan) {
        line(format_args!("# The rest of this host's traffic stays as it is.\n[device]"));
        line(format_args!("capture = {capture}\n"));
    }
    line(format_args!("[guard]\nmode = \"open\"\n"));
    line(format_args!("[[wireguard]]\nname = \"{}\"", plan.name));
    line(format_args!("private_key = \"{}\"", &*encode(interface.key.as_bytes())));
    line(format_args!("addresses = {}", list(&interface.addresses)));
    if let Some(port) = interface.listen_port {
        line(format_args!("listen_port = {port}"));
    }
    if let Some(mtu) = interface.mtu {
        line(format_args!("mtu = {mtu}"));
    }
    if !interface.dns.is_empty() {
        let servers = interface.dns.iter().map(ToString::to_string);
        let items: Vec<String> = servers.chain(interface.search.iter().cloned()).collect();
        line(format_args!("dns = {}", list(&items)));
    }
    for peer in &interface.peers {
        line(format_args!("\n[[wireguard.peer]]"));
        line(format_args!("public_key = \"{}\"", &*encode(peer.key.as_bytes())));
        if let Some(key) = &peer.preshared {
            line(format_args!("preshared_key = \"{}\"", &*encode(key.as_bytes())));
        }
        match &peer.endpoint {
            Some(Endpoint::Address(address)) => line(format_args!("endpoint = \"{address}\"")),
            Some(Endpoint::Name(name, port)) => {
                line(format_args!("endpoint = \"{name}:{port}\""));
            }
            None => {}
        }
        line(format_args!("allowed_ips = {}", list(&peer.allowed)));
        if let Some(seconds) = peer.keepalive {
            line(format_args!("persistent_keepalive = {seconds}"));
        }
    }
    text
}

/// The policy, in its canonical form.
pub(super) fn policy(source: &str, plan: &Plan) -> String {
    let Plan { name, routes, .. } = plan;
    let mut text = format!("# Made of {} by `tunneld import`.\npolicy 1\n", plain(source));
    let spaced = |nets: &[IpNet]| nets.iter().map(|net| format!(" {net}")).collect::<String>();
    if routes.is_empty() {
        text += &format!("# Nothing is led into {name}: write `route to PREFIX via {name}`.\n");
    } else if routes.len() <= IN_LINE {
        text += &format!("route to{} via {name}\n", spaced(routes));
    } else {
        text += &format!("set {name}-networks =");
        for net in routes {
            text += &format!(" \\\n    {net}");
        }
        text += &format!("\nroute to @{name}-networks via {name}\n");
    }
    if plan.names {
        text += &format!("resolve * using {name}\n");
    }
    if plan.kill_switch {
        text += "block to any via direct id kill-switch\n";
    }
    text += "default allow\n\n";
    for net in routes.iter().take(EXPECTED) {
        let to = within(net);
        text += &format!("expect allow tcp any to {to} port 443 via {name}\n");
    }
    for of_version in ELSEWHERE {
        let elsewhere = of_version.into_iter().find(|address| {
            let address = address.parse::<IpAddr>();
            address.is_ok_and(|address| !routes.iter().any(|net| net.contains(&address)))
        });
        if let Some(to) = elsewhere {
            let verdict = if plan.kill_switch { "block" } else { "allow" };
            text += &format!("expect {verdict} tcp any to {to} port 443 via direct\n");
        }
    }
    text
}

/// What of the host's traffic passes our device. `None`: all, which is the default.
fn capture(plan: &Plan) -> Option<String> {
    let all = plan.is_full(true) && plan.is_full(false);
    if all || plan.kill_switch {
        return None;
    }
    Some(if plan.routes.is_empty() { "\"none\"".to_owned() } else { list(&plan.routes) })
}

/// A list in TOML, in one line where it is short.
fn list(items: &[impl std::fmt::Display]) -> String {
    let quoted = items.iter().map(|item| format!("\"{item}\""));
    if items.len() <= IN_LINE {
        return format!("[{}]", quoted.collect::<Vec<_>>().join(", "));
    }
    let lines: String = quoted.map(|item| format!("    {item},\n")).collect();
    format!("[\n{lines}]")
}

/// An address of a prefix: of all, one that is nobody's.
fn within(net: &IpNet) -> IpAddr {
    let nobody = ELSEWHERE.as_flattened().iter().filter_map(|address| address.parse().ok());
    let mut nobody = nobody.filter(|address: &IpAddr| net.contains(address));
    let first = match net {
        IpNet::V4(_) => 0,
        // RFC 4291 2.6.1: the first one means its routers.
        IpNet::V6(net) => usize::from(net.prefix_len() < 127),
    };
    nobody.next().or_else(|| net.hosts().nth(first)).unwrap_or_else(|| net.addr())
}

/// A file's name as a comment may hold it.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || c == '\u{fffd}' { '?' } else { c }).collect()
}
