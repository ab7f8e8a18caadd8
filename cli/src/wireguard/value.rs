//! The values of WireGuard's keys, from text to type, with wg(8)'s and wg-quick(8)'s meaning.
//!
//! What is wrong with a value is said without the value: it may be a key at the wrong place.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use tunnel::link::wireguard::{PresharedKey, PrivateKey, PublicKey};

use super::{Endpoint, key};

/// What is wrong with a value, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Wrong {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// An item of `DNS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dns {
    Server(IpAddr),
    /// A domain for names without a dot.
    Search(String),
}

/// Bytes of an interface's longest packet: RFC 791 has every host take 576, and no IP packet
/// has more than 65,535.
pub(crate) const MTU: std::ops::RangeInclusive<u16> = 576..=65_535;

pub(crate) fn private_key(text: &str) -> Result<PrivateKey, Wrong> {
    let bytes = key::decode(text).ok_or_else(no_key)?;
    if *bytes == [0; 32] {
        return Err(Wrong::new("a private key of zeroes is none").help("`wg genkey` makes one"));
    }
    Ok(PrivateKey::from_bytes(&bytes))
}

pub(crate) fn public_key(text: &str) -> Result<PublicKey, Wrong> {
    let bytes = key::decode(text).ok_or_else(no_key)?;
    if *bytes == [0; 32] {
        let help = "`wg pubkey` makes one of the peer's private key";
        return Err(Wrong::new("a public key of zeroes is none").help(help));
    }
    Ok(PublicKey::from_bytes(*bytes))
}

/// `None`: the key of zeroes, which stands for none.
pub(crate) fn preshared_key(text: &str) -> Result<Option<PresharedKey>, Wrong> {
    Ok(PresharedKey::from_bytes(&*key::decode(text).ok_or_else(no_key)?))
}

fn no_key() -> Wrong {
    Wrong::new("not a key").help("a key is 44 characters of base64, the last of them `=`")
}

/// An interface's own address, and the prefix that it is in.
pub(crate) fn address(text: &str) -> Result<IpNet, Wrong> {
    let wrong = || {
        Wrong::new("not an address that an interface can have")
            .help("an address, or an address and its prefix, for example `10.0.0.2/32`")
    };
    let net = network(text).ok_or_else(wrong)?;
    if is_of_one_host(net.addr()) { Ok(net) } else { Err(wrong()) }
}

/// A prefix behind a peer. Bits beyond its length are taken away, as wg(8) does.
pub(crate) fn allowed(text: &str) -> Result<IpNet, Wrong> {
    if text.starts_with(['+', '-']) {
        let help = "write the prefixes that are wanted, each without a sign";
        return Err(Wrong::new("adding and removing prefixes: not in this version").help(help));
    }
    let wrong = || Wrong::new("not a prefix").help("for example `10.0.0.0/8` or `::/0`");
    network(text).map(|net| net.trunc()).ok_or_else(wrong)
}

pub(crate) fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    const FORM: &str =
        "for example `vpn.example:51820`, `192.0.2.1:51820` or `[2001:db8::1]:51820`";
    let wrong = |message: &str| Err(Wrong::new(message).help(FORM));
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once("]:") else {
            return wrong("not an endpoint");
        };
        if address.contains('%') {
            let message = "an endpoint at a link-local address: not in this version";
            return Err(Wrong::new(message).help("write another address of the peer"));
        }
        let (Ok(address), Some(port)) = (address.parse(), port_of(port)) else {
            return wrong("not an endpoint");
        };
        let address = SocketAddr::V6(SocketAddrV6::new(address, port, 0, 0));
        return at(SocketAddr::new(address.ip().to_canonical(), port));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("an endpoint needs a port");
    };
    let Some(port) = port_of(port) else { return wrong("not a port of an endpoint") };
    if host.contains(':') {
        return wrong("an IPv6 address of an endpoint stands in brackets");
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return at(SocketAddr::new(address, port));
    }
    if !host.is_ascii() {
        let help = "write the name as DNS has it, which begins with `xn--`";
        return Err(Wrong::new("not a host's name").help(help));
    }
    if !is_domain(host) {
        return wrong("not an endpoint");
    }
    Ok(Endpoint::Name(host.to_ascii_lowercase(), port))
}

fn at(address: SocketAddr) -> Result<Endpoint, Wrong> {
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(Wrong::new("no peer can be at such an address"));
    }
    if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        let message = "an endpoint at a link-local address: not in this version";
        return Err(Wrong::new(message).help("write another address of the peer"));
    }
    Ok(Endpoint::Address(address))
}

/// `None`: a port of the kernel's choice.
pub(crate) fn listen_port(text: &str) -> Result<Option<u16>, Wrong> {
    let port = decimal(text).ok_or_else(|| Wrong::new("a port from 0 to 65535 is wanted"))?;
    Ok((port != 0).then_some(port))
}

/// `None`: no mark.
pub(crate) fn fwmark(text: &str) -> Result<Option<u32>, Wrong> {
    let mark = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        _ if text == "off" => Some(0),
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => decimal(text),
    };
    let wrong = || Wrong::new("not a mark").help("a number, for example 0xca6c, or `off`");
    let mark = mark.ok_or_else(wrong)?;
    Ok((mark != 0).then_some(mark))
}

/// Seconds; `None`: never.
pub(crate) fn keepalive(text: &str) -> Result<Option<u16>, Wrong> {
    let wrong = || Wrong::new("seconds from 0 to 65535, or `off`, are wanted");
    let seconds = if text == "off" { 0 } else { decimal(text).ok_or_else(wrong)? };
    Ok((seconds != 0).then_some(seconds))
}

/// Bytes.
pub(crate) fn mtu(text: &str) -> Result<u16, Wrong> {
    let (least, most) = (MTU.start(), MTU.end());
    let wrong = || Wrong::new(format!("a number of bytes from {least} to {most} is wanted"));
    decimal(text).filter(|bytes| MTU.contains(bytes)).ok_or_else(wrong)
}

/// What wg-quick(8) does not take for an address is a search domain.
pub(crate) fn dns(text: &str) -> Result<Dns, Wrong> {
    let meant_as_address =
        text.contains(':') || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if let Ok(address) = text.parse::<IpAddr>() {
        return if is_of_one_host(address) {
            Ok(Dns::Server(address.to_canonical()))
        } else {
            Err(Wrong::new("no server behind the tunnel can be at such an address"))
        };
    }
    if meant_as_address {
        return Err(Wrong::new("not an address"));
    }
    let domain = text.strip_suffix('.').unwrap_or(text);
    if is_domain(domain) {
        Ok(Dns::Search(domain.to_ascii_lowercase()))
    } else {
        Err(Wrong::new("neither an address nor a search domain"))
    }
}

/// An address alone is the prefix of it.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn is_of_one_host(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn port_of(text: &str) -> Option<u16> {
    decimal(text).filter(|port| *port != 0)
}

/// A number in digits alone: no sign, and not nothing.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// RFC 1123 2.1, and `_`, which some providers use. The last label is not a number: what looks
/// like an address is one, or nothing.
/// Whether it is the name of a host.
pub(crate) fn is_domain(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253
        && text.split('.').all(label)
        && !text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}
