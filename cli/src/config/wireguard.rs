//! `[[wireguard]]`: tunnels, each by a file of wg-quick(8) or by its keys inline.

use std::ops::Range;

use engine::{DeviceName, WayId, WayNames};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::names::{MOST_RESOLVERS, MOST_SERVERS, RESERVED};
use super::nearest::nearest;
use super::reader::{Reader, integer};
use super::{Config, Resolver, WireGuard};
use crate::wireguard::file::{self, File};
use crate::wireguard::value::{self, Wrong};
use crate::wireguard::{Draft, DraftPeer, Interface, conf};

type Value<'a> = Spanned<DeValue<'a>>;
type Table<'a> = Spanned<DeTable<'a>>;

/// `direct` is a way out too.
const MOST_TUNNELS: usize = WayId::MOST - 1;

const KEYS: [&str; 10] = [
    "name",
    "file",
    "private_key",
    "private_key_file",
    "addresses",
    "listen_port",
    "fwmark",
    "mtu",
    "dns",
    "peer",
];

const PEER_KEYS: [&str; 6] = [
    "public_key",
    "preshared_key",
    "preshared_key_file",
    "endpoint",
    "allowed_ips",
    "persistent_keepalive",
];

/// Words that a policy would not take for a tunnel's name in every place, beside those that no
/// resolver may have.
pub(super) const WORDS: [&str; 28] = [
    WayNames::DIRECT,
    "dns",
    "policy",
    "set",
    "route",
    "resolve",
    "allow",
    "block",
    "drop",
    "ask",
    "default",
    "expect",
    "tcp",
    "udp",
    "icmp",
    "from",
    "client",
    "egress",
    "to",
    "port",
    "via",
    "resolver",
    "user",
    "app",
    "cgroup",
    "protected",
    "id",
    "multicast",
];

/// One `[[wireguard]]`.
pub(super) fn tunnel(reader: &mut Reader<'_>, table: &Table<'_>, config: &mut Config) {
    let name = name(reader, table, config);
    let interface = match table.get_ref().get_key_value("file") {
        Some((_, file)) => of_file(reader, table, file),
        None => inline(reader, table),
    };
    unknown(reader, table.get_ref(), "wireguard", &KEYS);
    if config.wireguard.len() == MOST_TUNNELS {
        reader.fault(table.span(), format!("more than {MOST_TUNNELS} tunnels"), None);
    } else if let (Some(name), Some(interface)) = (name, interface) {
        config.wireguard.push(WireGuard { name, interface });
    }
}

/// A tunnel has a name of its own, and a resolver of that name where it has name servers. Who
/// else has one is known when everything was read.
pub(super) fn names(reader: &mut Reader<'_>, config: &mut Config) {
    let named = reader.take_tunnels();
    for (span, name) in named {
        if name == config.device.name {
            let help = Some("write another, for example \"wg0\"".to_owned());
            reader.fault(span, format!("`{name}` is the name of the TUN device"), help);
            continue;
        }
        if config.proxies.iter().any(|proxy| proxy.name == name) {
            reader.fault(span, format!("there is a proxy `{name}`, too"), None);
            continue;
        }
        let tunnel = config.wireguard.iter().find(|tunnel| tunnel.name.as_str() == name);
        let Some(tunnel) = tunnel.filter(|tunnel| !tunnel.interface.dns.is_empty()) else {
            continue;
        };
        let settings = dns::upstream::Settings {
            servers: tunnel.interface.dns.iter().map(|address| plain(*address)).collect(),
            ..dns::upstream::Settings::default()
        };
        let resolver = Resolver { via: Some(tunnel.name), name, settings };
        if config.resolvers.iter().any(|other| other.name == resolver.name) {
            let message = format!(
                "there is a resolver `{}`, which this tunnel's DNS would be",
                resolver.name
            );
            let help = "write another name, or leave its DNS out".to_owned();
            reader.fault(span, message, Some(help));
        } else if config.resolvers.len() == MOST_RESOLVERS {
            let message = format!("more than {MOST_RESOLVERS} resolvers, with those of tunnels");
            reader.fault(span, message, None);
        } else {
            config.resolvers.push(resolver);
        }
    }
}

fn plain(address: std::net::IpAddr) -> dns::server::Server {
    dns::server::Server::plain((address, 53).into())
}

fn name(reader: &mut Reader<'_>, table: &Table<'_>, config: &Config) -> Option<DeviceName> {
    let Some(value) = table.get_ref().get("name") else {
        let help = "for example name = \"wg0\"".to_owned();
        reader.fault(table.span(), "a tunnel needs `name`", Some(help));
        return None;
    };
    let text = reader.string(value)?;
    let name = tunnel_name(&text).map_err(|wrong| fault(reader, value.span(), wrong)).ok()?;
    if config.wireguard.iter().any(|tunnel| tunnel.name == name) {
        reader.fault(value.span(), format!("there is a tunnel `{text}` above"), None);
        return None;
    }
    reader.tunnel(value.span(), text);
    Some(name)
}

/// A name for a tunnel: what policies and wg-quick(8) both take, as a name and as a device.
pub(crate) fn tunnel_name(text: &str) -> Result<DeviceName, Wrong> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    let name = DeviceName::new(text).filter(|_| text.chars().all(fits));
    let Some(name) = name.filter(|_| text != "." && text != "..") else {
        let help = "1 to 15 of the characters A-Z a-z 0-9 . _ + -";
        return Err(Wrong::new("not a name for a tunnel").help(help));
    };
    if RESERVED.iter().chain(&WORDS).any(|word| *word == text) {
        return Err(Wrong::new(format!("`{text}` is a word of policies")));
    }
    Ok(name)
}

/// The interface of a file.
fn of_file(reader: &mut Reader<'_>, table: &Table<'_>, value: &Value<'_>) -> Option<Interface> {
    for (key, _) in table.get_ref() {
        let name = key.get_ref().as_ref();
        if !["name", "file"].contains(&name) && KEYS.contains(&name) {
            let help = "write it there, or leave `file` out".to_owned();
            reader.fault(key.span(), format!("`{name}` stands in the file"), Some(help));
        }
    }
    let path = reader.path(value)?;
    let File { text, mode } = read(reader, value.span(), &path)?;
    let conf = conf::read(&text);
    if file::is_open(mode) {
        open_to_others(reader, value.span(), &path, mode);
    }
    let refused = !conf.extras.is_empty();
    reader.faults_of(&path, conf.extras.into_iter().map(|extra| extra.fault));
    reader.faults_of(&path, conf.faults);
    if conf.interface.as_ref().is_some_and(|interface| interface.dns.len() > MOST_SERVERS) {
        reader.fault(value.span(), format!("more than {MOST_SERVERS} servers in its DNS"), None);
    }
    conf.interface.filter(|_| !refused)
}

/// The interface of the keys here.
fn inline(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Interface> {
    let mut draft = Draft::default();
    let keys = table.get_ref();
    draft.key = key(reader, keys, "private_key", value::private_key);
    if !["private_key", "private_key_file"].iter().any(|key| keys.contains_key(*key)) {
        let help = "for example file = \"wg0.conf\", a file of wg-quick(8)".to_owned();
        reader.fault(table.span(), "a tunnel needs `file`, or `private_key`", Some(help));
    } else if !keys.contains_key("addresses") {
        let help = "for example addresses = [\"10.0.0.2/32\"]".to_owned();
        reader.fault(table.span(), "a tunnel needs `addresses`", Some(help));
    }
    if let Some(value) = keys.get("addresses") {
        addresses(reader, value, &mut draft);
    }
    if let Some(value) = keys.get("listen_port") {
        draft.listen_port = number(reader, value, value::listen_port).flatten();
    }
    if let Some(value) = keys.get("fwmark") {
        draft.fwmark = number(reader, value, value::fwmark).flatten();
    }
    if let Some(value) = keys.get("mtu") {
        let mtu = number(reader, value, value::mtu);
        draft.mtu = mtu.map(|mtu| (value.span(), mtu));
    }
    if let Some(value) = keys.get("dns") {
        servers(reader, value, &mut draft);
    }
    if let Some(value) = keys.get("peer") {
        peers(reader, value, &mut draft);
    }
    let (interface, wrong) = draft.finish();
    for (span, wrong) in wrong {
        fault(reader, span, wrong);
    }
    interface
}

fn addresses(reader: &mut Reader<'_>, value: &Value<'_>, draft: &mut Draft<Range<usize>>) {
    let Some(items) = reader.list(value, "addresses", "[\"10.0.0.2/32\"]") else { return };
    if items.is_empty() {
        reader.fault(value.span(), "at least one address is needed", None);
    }
    for item in items {
        if let Some(address) = text(reader, item, value::address) {
            draft.address(address);
        }
    }
}

fn servers(reader: &mut Reader<'_>, value: &Value<'_>, draft: &mut Draft<Range<usize>>) {
    let Some(items) = reader.list(value, "servers", "[\"10.0.0.1\"]") else { return };
    if items.len() > MOST_SERVERS {
        reader.fault(value.span(), format!("more than {MOST_SERVERS} servers"), None);
        return;
    }
    for item in items {
        if let Some(item) = text(reader, item, value::dns) {
            draft.dns(item);
        }
    }
}

fn peers(reader: &mut Reader<'_>, value: &Value<'_>, draft: &mut Draft<Range<usize>>) {
    let items = value.get_ref().as_array();
    let tables: Option<Vec<_>> = items.and_then(|items| {
        items.iter().map(|item| Some((item.span(), item.get_ref().as_table()?))).collect()
    });
    let Some(tables) = tables else {
        let help = "write `[[wireguard.peer]]` and its keys below".to_owned();
        reader.fault(value.span(), "`peer` is a list of tables", Some(help));
        return;
    };
    for (span, table) in tables {
        draft.peers.push(peer(reader, &span, table));
    }
}

fn peer(
    reader: &mut Reader<'_>,
    span: &Range<usize>,
    keys: &DeTable<'_>,
) -> DraftPeer<Range<usize>> {
    let mut peer = DraftPeer::default();
    match keys.get("public_key") {
        Some(value) => {
            peer.key = text(reader, value, value::public_key).map(|key| (value.span(), key));
        }
        None => reader.fault(span.clone(), "a peer needs `public_key`", None),
    }
    peer.preshared = key(reader, keys, "preshared_key", value::preshared_key).flatten();
    if let Some(value) = keys.get("endpoint") {
        peer.endpoint = text(reader, value, value::endpoint);
    }
    if let Some(value) = keys.get("allowed_ips")
        && let Some(items) = reader.list(value, "prefixes", "[\"0.0.0.0/0\", \"::/0\"]")
    {
        for item in items {
            let net = text(reader, item, value::allowed);
            peer.allowed.extend(net.map(|net| (item.span(), net)));
        }
    }
    if let Some(value) = keys.get("persistent_keepalive") {
        peer.keepalive = number(reader, value, value::keepalive).flatten();
    }
    unknown(reader, keys, "wireguard.peer", &PEER_KEYS);
    peer
}

/// A secret key: at `name`, or in the file at `name_file`.
fn key<T>(
    reader: &mut Reader<'_>,
    keys: &DeTable<'_>,
    name: &str,
    read_key: fn(&str) -> Result<T, Wrong>,
) -> Option<T> {
    let in_file = format!("{name}_file");
    let in_file = keys.get_key_value(&*in_file);
    let Some((_, value)) = keys.get_key_value(name) else {
        let (_, value) = in_file?;
        let path = reader.path(value)?;
        let File { text, mode } = read(reader, value.span(), &path)?;
        if file::is_open(mode) {
            open_to_others(reader, value.span(), &path, mode);
        }
        return read_key(text.trim()).map_err(|wrong| fault(reader, value.span(), wrong)).ok();
    };
    reader.secret(value.span());
    if let Some((key, _)) = in_file {
        let message = format!("`{name}` and `{}` are both written", key.get_ref());
        reader.fault(key.span(), message, Some("leave one out".to_owned()));
    }
    text(reader, value, read_key)
}

fn read(reader: &mut Reader<'_>, span: Range<usize>, path: &std::path::Path) -> Option<File> {
    file::read(path)
        .map_err(|error| reader.fault(span, format!("{}: {error}", path.display()), None))
        .ok()
}

fn open_to_others(reader: &mut Reader<'_>, span: Range<usize>, path: &std::path::Path, mode: u32) {
    let path = path.display();
    let message = format!("{path} holds a key, and others may read it: its mode is {mode:03o}");
    reader.fault(span, message, Some(format!("chmod 600 {path}")));
}

/// A value in quotes, which is read where it stands: it may be a key.
fn text<T>(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    read: fn(&str) -> Result<T, Wrong>,
) -> Option<T> {
    match value.get_ref() {
        DeValue::String(text) => {
            read(text).map_err(|wrong| fault(reader, value.span(), wrong)).ok()
        }
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => {
            reader.fault(value.span(), "a string in quotes is wanted", None);
            None
        }
    }
}

/// A number, or what else wg(8) takes in its place, in quotes.
fn number<T>(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    read: fn(&str) -> Result<T, Wrong>,
) -> Option<T> {
    let number = integer(value.get_ref()).map(|number| number.to_string());
    let text = match value.get_ref() {
        DeValue::String(text) => Some(&**text),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => number.as_deref(),
    };
    let read = read(text.unwrap_or_default());
    read.map_err(|wrong| fault(reader, value.span(), wrong)).ok()
}

fn unknown(reader: &mut Reader<'_>, keys: &DeTable<'_>, table: &str, known: &[&'static str]) {
    for (key, _) in keys {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            let help = nearest(name, known.iter().copied());
            reader.fault(key.span(), format!("unknown key `{table}.{name}`"), help);
        }
    }
}

fn fault(reader: &mut Reader<'_>, span: Range<usize>, wrong: Wrong) {
    reader.fault(span, wrong.message, wrong.help);
}
