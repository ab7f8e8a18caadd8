//! `[dns]` and `[[resolver]]`: how names are answered, and by whom.

use std::net::IpAddr;

use dns::server::Server;
use dns::upstream::Settings;
use engine::{DeviceName, WayNames};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::nearest::nearest;
use super::reader::Reader;
use super::{Config, Resolver, Takeover};

type Value<'a> = Spanned<DeValue<'a>>;

/// The built-in one is the 64th.
pub(super) const MOST_RESOLVERS: usize = 63;
/// Each is asked in turn: nobody waits for more.
pub(super) const MOST_SERVERS: usize = 16;
/// About 1 KiB each.
const MOST_CACHED: i64 = 1_000_000;

/// The built-in resolver, and words that would be read as such behind `using` and in lists.
pub(super) const RESERVED: [&str; 12] = [
    "upstream", "none", "and", "or", "else", "using", "private", "not", "any", "unknown", "within",
    "file",
];

pub(super) fn address(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(items) = reader.list(value, "addresses", "[\"198.18.0.2\"]") else { return };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for item in items {
        let Some(text) = reader.string(item) else { continue };
        match text.parse::<IpAddr>() {
            Ok(address) if addresses.contains(&address) => {
                reader.fault(item.span(), format!("`{address}` is given twice"), None);
            }
            Ok(address)
                if !(address.is_unspecified()
                    || address.is_loopback()
                    || address.is_multicast()) =>
            {
                addresses.push(address);
            }
            Ok(_) | Err(_) => {
                let help = "an address of one host, for example \"198.18.0.2\"".to_owned();
                reader.fault(item.span(), "not an address to answer at", Some(help));
            }
        }
    }
    if items.is_empty() {
        reader.fault(value.span(), "at least one address is needed", None);
    }
    config.dns.addresses = addresses;
}

pub(super) fn intercept(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let words = [("none", false), ("all", true)];
    if let Some(intercept) = word(reader, value, &words) {
        config.dns.intercept = intercept;
    }
}

pub(super) fn takeover(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let words = [
        ("auto", Takeover::Auto),
        ("resolved", Takeover::Resolved),
        ("resolvconf", Takeover::Resolvconf),
        ("file", Takeover::File),
        ("none", Takeover::Nobody),
    ];
    if let Some(takeover) = word(reader, value, &words) {
        config.dns.takeover = takeover;
    }
}

pub(super) fn upstream(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if let DeValue::String(text) = value.get_ref()
        && text == "auto"
    {
        config.dns.upstream = None;
    } else if let DeValue::Array(items) = value.get_ref() {
        config.dns.upstream = Some(servers(reader, value, items));
    } else {
        let help = "for example [\"192.0.2.53\"]".to_owned();
        reader.fault(value.span(), "\"auto\" or a list of servers is wanted", Some(help));
    }
}

pub(super) fn cache(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if let Some(answers) = reader.integer(value, 0..=MOST_CACHED) {
        config.dns.cache = answers as usize;
    }
}

/// One `[[resolver]]`.
pub(super) fn resolver(reader: &mut Reader<'_>, table: &Spanned<DeTable<'_>>, config: &mut Config) {
    const KEYS: [&str; 5] = ["name", "servers", "via", "ca", "identity"];
    let mut name = None;
    let mut settings = Settings::default();
    let mut way = None;
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "name" => name = resolver_name(reader, value, config),
            "servers" => {
                let example = "[\"10.20.0.53\", \"tls://10.20.0.54#dns.corp.example\"]";
                if let Some(items) = reader.list(value, "servers", example) {
                    settings.servers = servers(reader, value, items);
                }
            }
            "via" => way = via(reader, value),
            "ca" => settings.trust.ca = reader.path(value),
            "identity" => settings.trust.identity = reader.path(value),
            other => {
                let help = nearest(other, KEYS.into_iter());
                reader.fault(key.span(), format!("unknown key `resolver.{other}`"), help);
            }
        }
    }
    for wanted in ["name", "servers"] {
        if !table.get_ref().keys().any(|key| key.get_ref() == wanted) {
            let help = match wanted {
                "name" => "for example name = \"corp\"",
                _ => "for example servers = [\"10.20.0.53\"]",
            };
            let message = format!("a resolver needs `{wanted}`");
            reader.fault(table.span(), message, Some(help.to_owned()));
        }
    }
    let encrypted = settings.servers.iter().any(|server| server.transport.is_encrypted());
    for (key, value) in table.get_ref() {
        let key = key.get_ref().as_ref();
        if (key == "ca" || key == "identity") && !encrypted && !settings.servers.is_empty() {
            let help = "a server with a certificate is written tls://, https:// or quic://";
            let message = format!("`{key}` means nothing: no server shows a certificate");
            reader.fault(value.span(), message, Some(help.to_owned()));
        }
    }
    if config.resolvers.len() == MOST_RESOLVERS {
        let message = format!("more than {MOST_RESOLVERS} resolvers");
        reader.fault(table.span(), message, None);
    } else if let Some(name) = name {
        config.resolvers.push(Resolver { name, settings, via: way });
    }
}

fn resolver_name(reader: &mut Reader<'_>, value: &Value<'_>, config: &Config) -> Option<String> {
    let name = reader.string(value)?;
    // As policies take it.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let help = "1 to 64 of the characters A-Z a-z 0-9 . _ + -".to_owned();
        reader.fault(value.span(), "not a name for a resolver", Some(help));
        return None;
    }
    if RESERVED.contains(&&*name) {
        let help = (name == "upstream")
            .then(|| "the network's own servers: write them to `dns.upstream`".to_owned());
        reader.fault(value.span(), format!("`{name}` is a word of policies"), help);
        return None;
    }
    if config.resolvers.iter().any(|resolver| resolver.name == name) {
        reader.fault(value.span(), format!("there is a resolver `{name}` above"), None);
        return None;
    }
    Some(name)
}

/// Which way a resolver's servers, or a proxy, are reached.
pub(super) fn via(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<DeviceName> {
    let text = reader.string(value).filter(|text| text != WayNames::DIRECT)?;
    let tunnel = DeviceName::new(&text);
    reader.via(value.span(), text);
    tunnel
}

/// A resolver's way out, and a proxy's, is `direct` or a tunnel. All have to be known before that
/// is.
pub(super) fn ways_beneath(reader: &mut Reader<'_>, config: &Config) {
    for (span, name) in reader.take_vias() {
        let tunnels = config.wireguard.iter().map(|tunnel| tunnel.name.as_str());
        if !tunnels.clone().any(|tunnel| tunnel == name) {
            let help = nearest(&name, tunnels.chain([WayNames::DIRECT]));
            let help = help.unwrap_or_else(|| "write \"direct\" or a tunnel's name".to_owned());
            reader.fault(span, format!("there is no tunnel `{name}`"), Some(help));
        }
    }
}

fn servers(reader: &mut Reader<'_>, value: &Value<'_>, items: &DeArray<'_>) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for item in items {
        let Some(text) = reader.string(item) else { continue };
        match text.parse::<Server>() {
            Ok(server) if servers.contains(&server) => {
                reader.fault(item.span(), format!("`{server}` is given twice"), None);
            }
            Ok(server) => {
                if let Some(address) = server.address() {
                    reader.server(item.span(), address.ip());
                }
                servers.push(server);
            }
            Err(error) => reader.fault(item.span(), error.to_string(), Some(error.help())),
        }
    }
    if items.is_empty() {
        reader.fault(value.span(), "at least one server is needed", None);
    } else if items.len() > MOST_SERVERS {
        reader.fault(value.span(), format!("more than {MOST_SERVERS} servers"), None);
    } else if let Some(server) = servers.first()
        && servers.iter().all(|server| server.address().is_none())
    {
        let help = format!("write \"{server}#ADDRESS\", or a server with an address");
        let message = "no server has an address, and the others' names are asked of it";
        reader.fault(value.span(), message, Some(help));
    }
    servers
}

/// One of some words.
fn word<T: Copy>(reader: &mut Reader<'_>, value: &Value<'_>, words: &[(&str, T)]) -> Option<T> {
    let text = reader.string(value)?;
    if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
        return Some(*meant);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let help = nearest(&text, words.iter().map(|(word, _)| *word));
    reader.fault(value.span(), format!("{} is wanted", all.join(" or ")), help);
    None
}
