//! `tunneld explain`: what a policy would do with a flow, and why.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use engine::policy::{
    self, AssumedSource, Decision, Explanation, Hypothesis, Outcome, Policy, RuleTried, Verdict,
};
use engine::{Protocol, ResolverSet};
use serde_json::{Value, json};

use crate::client::{Client, Target};
use crate::config::{self, Named};
use crate::daemon::{Asked, AskedProtocol};
use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::policy_files;
use crate::shown;

/// Say what a policy does with a flow, and why
///
/// Shows what a policy would do with a flow: the way out, every rule tried and why it
/// matches or not, the verdict, and the error that the app would get. No packet is sent.
/// Without --policy the daemon is asked: for the policy in force, and for the source that
/// the kernel would choose, and for the name that was asked for the address. Where DST is a
/// name alone, its address is unknown. With --policy and --config, the policy may name what
/// the configuration has: tunnels, proxies and resolvers.
///
/// Exit: 0 allowed, 1 blocked or dropped, 2 wrong usage, 3 the daemon does not run.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// tcp, udp or icmp
    #[arg(value_name = "PROTO", value_parser = protocol)]
    protocol: Protocol,
    /// The address the flow would leave this host with, or `any`
    #[arg(value_name = "SRC", value_parser = source)]
    source: AssumedSource,
    /// Where it goes, an address or a name; an IPv6 address with a port stands in brackets
    #[arg(value_name = "DST[:PORT]", value_parser = destination)]
    destination: Destination,
    /// The flow is forwarded for this client
    #[arg(long, value_name = "ADDR", value_parser = address)]
    client: Option<IpAddr>,
    /// The flow belongs to this user, a name or a uid
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The flow belongs to this program
    #[arg(long, value_name = "PATH")]
    app: Option<PathBuf>,
    /// A policy file, or a directory of *.policy files; may be given more than once
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    daemon: Target,
}

/// A destination and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Destination {
    host: Host,
    port: Option<u16>,
}

/// What is known of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(Arc<str>),
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// There is no such flow, or no policy to ask.
pub(crate) fn run(args: &ExplainArgs, json: bool) -> anyhow::Result<u8> {
    if args.app.is_some() {
        return Err(Refusal::new(code::USAGE, "`--app`: not in this version").into());
    }
    let uid = args.user.as_deref().map(uid).transpose()?;
    let flow = Hypothesis {
        protocol: args.protocol,
        source: args.source,
        destination: match &args.destination.host {
            Host::Address(address) => Some(*address),
            Host::Name(_) => None,
        },
        name: match &args.destination.host {
            Host::Address(_) => None,
            Host::Name(name) => Some(Arc::clone(name)),
        },
        others: Vec::new(),
        resolvers: ResolverSet::EMPTY,
        port: args.destination.port,
        client: args.client,
        uid,
        egress: None,
    };
    flow.check().map_err(|error| Refusal::new(code::USAGE, format!("explain: {error}")))?;
    let told = if args.policy.is_empty() { ask(args, &flow, json)? } else { alone(args, &flow)? };
    if json {
        diagnostics::line(&told);
    } else {
        diagnostics::line(text(&told).trim_end());
    }
    Ok(if told["verdict"] == Verdict::Allow.as_str() { code::DONE } else { code::FINDING })
}

/// By the policy of the command line.
fn alone(args: &ExplainArgs, flow: &Hypothesis) -> anyhow::Result<Value> {
    let config = args.daemon.config.as_deref().map(config::read).transpose()?;
    let named = config.map_or_else(|| Ok(Named::default()), |config| config.named())?;
    let policy = policy_files::load(&args.policy, named, code::FINDING)?;
    match policy.explain(flow) {
        Ok(told) => Ok(object(&policy, flow, &told)),
        Err(dependence) => {
            let said = |(address, decision): (IpAddr, Decision)| {
                let rule = policy.rule_name(decision.rule);
                format!("{} from {address} by {rule}", decision.verdict)
            };
            let (one, other) = (said(dependence.one), said(dependence.other));
            let what = format!("explain: the verdict depends on the source: {one}, {other}");
            Err(Refusal::new(code::FINDING, what).help("give an address as SRC").into())
        }
    }
}

/// By the daemon's, and with the kernel's choice of a source.
fn ask(args: &ExplainArgs, flow: &Hypothesis, json: bool) -> anyhow::Result<Value> {
    let asked = Asked {
        protocol: match flow.protocol {
            Protocol::Tcp => AskedProtocol::Tcp,
            Protocol::Udp => AskedProtocol::Udp,
            Protocol::Icmp => AskedProtocol::Icmp,
        },
        source: match flow.source {
            AssumedSource::Any | AssumedSource::Nothing => None,
            AssumedSource::Address(address) => Some(address),
        },
        destination: flow.destination,
        name: flow.name.as_deref().map(str::to_owned),
        port: flow.port,
        client: flow.client,
        uid: flow.uid,
    };
    let mut client = Client::connect("explain", &args.daemon, json).map_err(|error| match error
        .downcast::<Refusal>(
    ) {
        Ok(refusal) if refusal.code() == code::NO_DAEMON => {
            refusal.help("`--policy PATH` explains a policy without the daemon").into()
        }
        Ok(refusal) => refusal.into(),
        Err(error) => error,
    })?;
    client.post("/v1/explain", &serde_json::to_value(asked)?)
}

/// The object of `docs/json.md`.
pub(crate) fn object(policy: &Policy, flow: &Hypothesis, told: &Explanation) -> Value {
    let tried = |rule: &RuleTried| {
        let clauses = rule.clauses.iter();
        let clauses = clauses.map(|c| json!({ "text": c.text, "outcome": c.outcome.as_str() }));
        json!({
            "rule": rule.name, "file": rule.file, "line": rule.line, "text": rule.text,
            "matched": rule.matched, "clauses": clauses.collect::<Value>(),
        })
    };
    let egress = flow.egress.map(|egress| {
        json!({
            "address": egress.address, "port": null, "device": egress.device.as_str(),
            "underlay": null,
        })
    });
    // Where a name is known, the others don't matter.
    let others = flow.others.iter().filter(|_| flow.name.is_none());
    let names: Vec<&str> = others.map(|name| &**name).collect();
    json!({
        "event": "explain",
        "protocol": flow.protocol.to_string(),
        "client": flow.client,
        "source": address_of(flow),
        "egress": egress,
        "unresolved": null,
        "destination": destination_of(flow),
        "name": flow.name.as_deref(),
        "peek": told.peek,
        "names": names,
        "resolvers": policy.resolver_names(flow.resolvers).iter().map(|n| &**n).collect::<Vec<_>>(),
        "uid": flow.uid,
        "routes": told.routes.iter().map(tried).collect::<Value>(),
        "via": &*told.via,
        "rules": told.rules.iter().map(tried).collect::<Value>(),
        "verdict": told.verdict.as_str(),
        "rule": told.rule,
        "generation": null,
        "errno": told.error.and_then(|error| error.errno),
        "answer": told.error.map(|error| error.how),
    })
}

/// The same, to be read, in 80 columns.
fn text(told: &Value) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        out.push_str(&clipped(&format!("{label:<12}{value}")));
        out.push('\n');
    };
    let word = |key: &str| Some(shown::word(&told[key])).filter(|word| !word.is_empty());
    let or = |key: &str, other: &str| word(key).unwrap_or_else(|| other.to_owned());
    line("flow", &format!("{} to {}", or("protocol", ""), or("destination", "")));
    for label in ["name", "client", "uid"] {
        if let Some(value) = word(label) {
            line(label, &value);
        }
    }
    let resolvers = told["resolvers"].as_array().map_or(&[][..], Vec::as_slice);
    if !resolvers.is_empty() {
        let names: Vec<&str> = resolvers.iter().filter_map(Value::as_str).collect();
        line("learned", &format!("from {}", names.join(", ")));
    }
    if told["peek"] == true {
        line("name", "depends on the first bytes: SNI or Host, at most 300 ms");
        for name in told["names"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            line("", &format!("may be {name}"));
        }
        line("", "what follows holds where they tell of none");
    }
    let list = |key: &str| told[key].as_array().map_or(&[][..], Vec::as_slice);
    for route in list("routes") {
        line(if route["matched"] == true { "route" } else { "not route" }, &heading(route));
        why(route, &mut line);
    }
    let served = told["via"] == "dns";
    let way = if served { "none: answered inside (dns)".to_owned() } else { or("via", "") };
    line("way out", &way);
    match told["egress"]["device"].as_str() {
        None if served => line("source", &or("source", "none")),
        Some(device) => line("source", &format!("{} by {device}", or("source", "any"))),
        None => line("source", &or("source", "any")),
    }
    if let Some(why) = word("unresolved") {
        line("", &why);
    }
    for rule in list("rules") {
        line(if rule["matched"] == true { "match" } else { "no match" }, &heading(rule));
        why(rule, &mut line);
    }
    if list("rules").iter().all(|rule| rule["matched"] != true) {
        // Then all of them were tried.
        line("default", &format!("no rule matches ({} tried)", list("rules").len()));
    }
    let generation = word("generation").map(|g| format!(", generation {g}")).unwrap_or_default();
    line("verdict", &format!("{} by {}{generation}", or("verdict", ""), or("rule", "")));
    match word("answer") {
        None => line("app", "gets no error from the policy"),
        Some(how) => {
            line("app", &or("errno", "no error"));
            line("", &how);
        }
    }
    out
}

/// `FILE:LINE` and the rule.
fn heading(rule: &Value) -> String {
    let text = |key: &str| rule[key].as_str().unwrap_or_default();
    format!("{}:{} {}", text("file"), rule["line"], text("text"))
}

/// What kept a rule from matching.
fn why(rule: &Value, line: &mut impl FnMut(&str, &str)) {
    for clause in rule["clauses"].as_array().map_or(&[][..], Vec::as_slice) {
        let text = clause["text"].as_str().unwrap_or_default();
        if clause["outcome"] == Outcome::Fails.as_str() {
            line("", &format!("does not hold: {text}"));
        } else if clause["outcome"] == Outcome::Unknown.as_str() {
            line("", &format!("not known:     {text}"));
        }
    }
}

/// Cut at 80 columns: a rule may be as long as its author liked.
pub(crate) fn clipped(line: &str) -> String {
    const COLUMNS: usize = 80;
    match line.char_indices().nth(COLUMNS) {
        None => line.trim_end().to_owned(),
        Some(_) => line.chars().take(COLUMNS - 1).chain(std::iter::once('…')).collect(),
    }
}

/// The source, where it is given.
fn address_of(flow: &Hypothesis) -> Option<IpAddr> {
    match flow.source {
        AssumedSource::Any => flow.client.or_else(|| flow.egress.map(|e| e.address)),
        AssumedSource::Address(address) => Some(address),
        AssumedSource::Nothing => flow.client,
    }
}

/// The destination as it was asked for.
fn destination_of(flow: &Hypothesis) -> String {
    match (flow.destination, flow.port) {
        (Some(address), None) => address.to_string(),
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (None, port) => {
            let name = flow.name.as_deref().unwrap_or_default();
            port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
        }
    }
}

fn uid(user: &str) -> anyhow::Result<u32> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    policy_files::uid(user).ok_or_else(|| {
        Refusal::new(code::USAGE, format!("--user: this host has no user `{user}`")).into()
    })
}

fn protocol(word: &str) -> Result<Protocol, String> {
    match word {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        _ => Err("tcp, udp or icmp".to_owned()),
    }
}

fn address(word: &str) -> Result<IpAddr, String> {
    let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
    bare.parse::<IpAddr>().map(|a| a.to_canonical()).map_err(|_| "not an IP address".to_owned())
}

fn source(word: &str) -> Result<AssumedSource, String> {
    if word == "any" { Ok(AssumedSource::Any) } else { address(word).map(AssumedSource::Address) }
}

fn destination(word: &str) -> Result<Destination, String> {
    let alone = host(word).map(|host| Destination { host, port: None });
    let Some((name, port)) = word.rsplit_once(':').filter(|_| alone.is_err()) else {
        return alone;
    };
    let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    if name.contains(':') && !name.starts_with('[') {
        return Err(format!("an IPv6 address with a port stands in brackets: [{name}]:{port}"));
    }
    host(name).map(|host| Destination { host, port: Some(port) })
}

fn host(word: &str) -> Result<Host, String> {
    match address(word) {
        Ok(address) => Ok(Host::Address(address)),
        Err(_) => policy::name(word).map(Host::Name).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (word, want) in [
            ("192.0.2.1", Some(("192.0.2.1", None))),
            ("192.0.2.1:443", Some(("192.0.2.1", Some(443)))),
            ("2001:db8::1", Some(("2001:db8::1", None))),
            ("[2001:db8::1]", Some(("2001:db8::1", None))),
            ("[2001:db8::1]:443", Some(("2001:db8::1", Some(443)))),
            ("::ffff:192.0.2.1", Some(("192.0.2.1", None))),
            ("192.0.2.1:65536", None),
            ("192.0.2.1:", None),
            ("2001:db8:0:0:0:0:0:1:443", None),
            ("www.example.com:443", Some(("www.example.com", Some(443)))),
            ("WWW.example.com.", Some(("www.example.com", None))),
            ("localhost", Some(("localhost", None))),
            ("*.example.com", None),
            ("www.example.com:http", None),
            ("192.0.2.300", None),
            ("a b", None),
            ("", None),
            (":", None),
        ] {
            let want = want.map(|(word, port): (&str, _)| Destination {
                host: word.parse().map_or_else(|_| Host::Name(word.into()), Host::Address),
                port,
            });
            assert_eq!(destination(word).ok(), want, "{word}");
        }
    }

    #[test]
    fn long_rules_are_cut() {
        assert_eq!(clipped("short  "), "short");
        assert_eq!(clipped(&"é".repeat(200)).chars().count(), 80);
    }
}
