//! A server as it is written in the configuration: where it is, how it is asked, and whose
//! certificate it must show.
//!
//! ```text
//! 10.20.0.53            2001:db8::53            UDP, port 53; TCP for what UDP cuts short
//! 10.20.0.53:5353       [2001:db8::53]:5353     fe80::1%eth0: a link-local one and its device
//! udp://ADDRESS         tcp://ADDRESS           the same; TCP alone
//! tls://ADDRESS[:853]#NAME                      RFC 7858
//! quic://ADDRESS[:853]#NAME                     RFC 9250
//! https://ADDRESS[:443]/PATH#NAME               RFC 8484
//! https://NAME[:443]/PATH#ADDRESS               the same, the other way round
//! https://NAME[:443]/PATH                       its address is asked of the other servers
//! ```
//!
//! Without `#NAME` the certificate must hold the address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// How a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 1035 4.2.1, and TCP for answers that do not fit.
    Udp,
    /// RFC 7766.
    Tcp,
    /// RFC 7858.
    Tls,
    /// RFC 8484, over HTTP/2.
    Https,
    /// RFC 9250.
    Quic,
}

impl Transport {
    const ALL: [Self; 5] = [Self::Udp, Self::Tcp, Self::Tls, Self::Https, Self::Quic];

    /// The word in front of `://`, and in reports.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
            Self::Quic => "quic",
        }
    }

    /// The port where none is written.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https => 443,
        }
    }

    /// Whether the server proves itself by a certificate.
    pub fn is_encrypted(self) -> bool {
        match self {
            Self::Udp | Self::Tcp => false,
            Self::Tls | Self::Https | Self::Quic => true,
        }
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// At an address.
    Address(SocketAddr),
    /// At the addresses of a name, which the resolver's other servers know.
    Named {
        /// A host's name, lower case.
        host: Arc<str>,
        /// Its port.
        port: u16,
    },
}

/// A device behind which a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    /// Whichever has this name, as a configuration writes it.
    Named(Arc<str>),
    /// The one with this index, which stays when it is renamed.
    Index(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Index(index) => write!(f, "{index}"),
        }
    }
}

/// One server of a resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// How it is asked.
    pub transport: Transport,
    /// Where it is.
    pub endpoint: Endpoint,
    /// What its certificate must hold: a name, lower case, or an address.
    pub name: Option<Arc<str>>,
    /// Of an HTTPS server, from the slash on.
    pub path: Option<Arc<str>>,
    /// The device behind which it is, whatever routing says.
    pub device: Option<Device>,
}

impl Server {
    /// A server asked over UDP, and over TCP for answers that do not fit.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            transport: Transport::Udp,
            endpoint: Endpoint::Address(address),
            name: None,
            path: None,
            device: None,
        }
    }

    /// A server asked over TLS, as resolved and networks name them.
    pub fn tls(address: SocketAddr, name: Option<&str>) -> Self {
        Self {
            transport: Transport::Tls,
            name: Some(name.map_or_else(|| address.ip().to_string().into(), Into::into)),
            ..Self::plain(address)
        }
    }

    /// The same server, behind `device`.
    pub fn behind(self, device: Device) -> Self {
        Self { device: Some(device), ..self }
    }

    /// Its address, where it is known without asking.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.endpoint {
            Endpoint::Address(address) => Some(address),
            Endpoint::Named { .. } => None,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.transport != Transport::Udp {
            write!(f, "{}://", self.transport.scheme())?;
        }
        let port = match &self.endpoint {
            Endpoint::Address(address) => {
                match (address, &self.device) {
                    (SocketAddr::V6(v6), Some(device)) => write!(f, "[{}%{device}]", v6.ip())?,
                    (SocketAddr::V6(v6), None) => write!(f, "[{}]", v6.ip())?,
                    (SocketAddr::V4(v4), _) => write!(f, "{}", v4.ip())?,
                }
                address.port()
            }
            Endpoint::Named { host, port } => {
                f.write_str(host)?;
                *port
            }
        };
        if port != self.transport.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.path.as_deref().unwrap_or_default())?;
        let own = match &self.endpoint {
            Endpoint::Address(address) => address.ip().to_string(),
            Endpoint::Named { host, .. } => host.to_string(),
        };
        match &self.name {
            Some(name) if **name != *own => write!(f, "#{name}"),
            Some(_) | None => Ok(()),
        }
    }
}

/// Why a text is no server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServerError {
    /// It is empty or has white space.
    #[error("not a server")]
    Blank,
    /// What stands before `://` is no transport.
    #[error("unknown transport")]
    UnknownTransport {
        /// The one meant, probably.
        nearest: Option<Transport>,
    },
    /// There is a name where an address must be.
    #[error("a server's address is wanted, not a name")]
    NameForAddress {
        /// As it was written, with a word in place of the address.
        written: Box<str>,
    },
    /// What stands there is neither an address nor a host's name.
    #[error("not an address")]
    NoAddress,
    /// No server can have it.
    #[error("not an address that a server can have")]
    Unusable,
    /// A link-local address means nothing without a device.
    #[error("a link-local address needs its device")]
    NoDevice {
        /// The address.
        address: Ipv6Addr,
    },
    /// The port is no number from 1 to 65535.
    #[error("not a port")]
    NoPort,
    /// What stands behind `#` is neither a name nor an address.
    #[error("not the name of a server")]
    NoName,
    /// A name behind `#` means nothing without a certificate.
    #[error("a plain server has no certificate to show")]
    NameWithoutCertificate {
        /// The same server, over TLS.
        nearest: Box<str>,
    },
    /// An HTTPS server needs a path.
    #[error("an https server has a path")]
    NoPath {
        /// The same server with the usual one.
        nearest: Box<str>,
    },
    /// A path or a query where there can be none.
    #[error("no path belongs here")]
    Path {
        /// The same server without it.
        nearest: Box<str>,
    },
    /// HTTP has no way to write this host.
    #[error("an IPv6 address over https needs the server's name")]
    NoNameForIpv6,
}

impl ServerError {
    /// What to write instead.
    pub fn help(&self) -> String {
        match self {
            Self::Blank | Self::NoAddress => {
                "for example \"10.20.0.53\" or \"tls://10.20.0.54#dns.corp.example\"".to_owned()
            }
            Self::UnknownTransport { nearest: Some(nearest) } => {
                format!("did you mean `{}://`?", nearest.scheme())
            }
            Self::UnknownTransport { nearest: None } => {
                "udp://, tcp://, tls://, https:// or quic://".to_owned()
            }
            Self::NameForAddress { written } => {
                format!("write \"{written}\" with the server's address")
            }
            Self::Unusable => "an address of one host".to_owned(),
            Self::NoDevice { address } => format!("for example \"{address}%eth0\""),
            Self::NoPort => "a number from 1 to 65535".to_owned(),
            Self::NoName => "a host's name or an address".to_owned(),
            Self::NameWithoutCertificate { nearest } => format!("write \"{nearest}\" for TLS"),
            Self::NoPath { nearest } | Self::Path { nearest } => format!("write \"{nearest}\""),
            Self::NoNameForIpv6 => "write it behind the path: #dns.corp.example".to_owned(),
        }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(ServerError::Blank);
        }
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (transport(scheme)?, rest),
            None => (Transport::Udp, text),
        };
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (rest, None),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let written = Authority::parse(authority, transport)?;
        let fragment = fragment.map(Fragment::parse).transpose()?;
        let front = match text.contains("://") {
            true => format!("{}://", transport.scheme()),
            false => String::new(),
        };
        let hash = match &fragment {
            Some(fragment) => format!("#{fragment}"),
            None => String::new(),
        };

        if transport != Transport::Https && !path.is_empty() {
            let nearest = format!("{front}{authority}{hash}").into();
            return Err(ServerError::Path { nearest });
        }
        if transport == Transport::Https {
            if path.is_empty() {
                let nearest = format!("{front}{authority}/dns-query{hash}").into();
                return Err(ServerError::NoPath { nearest });
            }
            if let Some(end) = path.find(['?', '{']) {
                let nearest = format!("{front}{authority}{}{hash}", &path[..end]).into();
                return Err(ServerError::Path { nearest });
            }
        }
        let port = written.port;
        let (address, name) = match (written.host, fragment) {
            (Host::Address(address), None) => (address, None),
            (Host::Address(address), Some(name)) => {
                if !transport.is_encrypted() {
                    let nearest = format!("tls://{}{hash}", bracketed(address)).into();
                    return Err(ServerError::NameWithoutCertificate { nearest });
                }
                (address, Some(name.to_string()))
            }
            (Host::Name(host), Some(Fragment::Address(address)))
                if transport == Transport::Https =>
            {
                (address, Some(host))
            }
            (Host::Name(host), None) if transport == Transport::Https => {
                let host: Arc<str> = host.into();
                return Ok(Self {
                    transport,
                    endpoint: Endpoint::Named { host: Arc::clone(&host), port },
                    name: Some(host),
                    path: Some(path.into()),
                    device: None,
                });
            }
            (Host::Name(host), _) => {
                let written = match transport {
                    Transport::Udp | Transport::Tcp => format!("{front}ADDRESS"),
                    Transport::Tls | Transport::Quic => format!("{front}ADDRESS#{host}"),
                    Transport::Https => format!("{front}ADDRESS{path}#{host}"),
                };
                return Err(ServerError::NameForAddress { written: written.into() });
            }
        };
        let link_local = |v6: &Ipv6Addr| v6.segments()[0] & 0xffc0 == 0xfe80;
        match address {
            IpAddr::V4(v4) if v4.is_broadcast() => return Err(ServerError::Unusable),
            IpAddr::V6(v6) if link_local(&v6) && written.device.is_none() => {
                return Err(ServerError::NoDevice { address: v6 });
            }
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        if address.is_unspecified() || address.is_multicast() {
            return Err(ServerError::Unusable);
        }
        let name = match name {
            // An address in an authority stands in brackets, in a certificate it doesn't.
            None if transport == Transport::Https && address.is_ipv6() => {
                return Err(ServerError::NoNameForIpv6);
            }
            None => transport.is_encrypted().then(|| address.to_string()),
            Some(name) => Some(name),
        };
        Ok(Self {
            transport,
            endpoint: Endpoint::Address(SocketAddr::new(address, port)),
            name: name.map(Into::into),
            path: (transport == Transport::Https).then(|| path.into()),
            device: written.device.map(|name| Device::Named(name.into())),
        })
    }
}

fn transport(scheme: &str) -> Result<Transport, ServerError> {
    let lower = scheme.to_ascii_lowercase();
    if let Some(transport) = Transport::ALL.into_iter().find(|t| t.scheme() == lower) {
        return Ok(transport);
    }
    let nearest = match &*lower {
        "dot" | "dns+tls" | "tls+tcp" => Some(Transport::Tls),
        "doh" | "http" | "h2" | "h3" | "htps" | "httpss" => Some(Transport::Https),
        "doq" => Some(Transport::Quic),
        "dns" => Some(Transport::Udp),
        _ => Transport::ALL.into_iter().find(|t| lower.starts_with(&t.scheme()[..2])),
    };
    Err(ServerError::UnknownTransport { nearest })
}

enum Host {
    Address(IpAddr),
    Name(String),
}

struct Authority<'a> {
    host: Host,
    port: u16,
    device: Option<&'a str>,
}

impl<'a> Authority<'a> {
    fn parse(text: &'a str, transport: Transport) -> Result<Self, ServerError> {
        // An IPv6 address without brackets has no port.
        let bare = text.matches(':').count() > 1 && !text.starts_with('[');
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or(ServerError::NoAddress)?;
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(ServerError::NoAddress),
            }
        } else if bare {
            (text, None)
        } else {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        };
        let port = match port {
            None => transport.port(),
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port != 0).ok_or(ServerError::NoPort)?
            }
            Some(_) => return Err(ServerError::NoPort),
        };
        let (host, device) = match host.split_once('%') {
            // A bracket is what ends it.
            Some((host, device))
                if (1..16).contains(&device.len()) && !device.contains(['[', ']']) =>
            {
                (host, Some(device))
            }
            Some(_) => return Err(ServerError::NoAddress),
            None => (host, None),
        };
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) if device.is_some() => return Err(ServerError::NoAddress),
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) if is_host_name(host) && device.is_none() => {
                Host::Name(host.trim_end_matches('.').to_ascii_lowercase())
            }
            Err(_) => return Err(ServerError::NoAddress),
        };
        Ok(Self { host, port, device })
    }
}

enum Fragment {
    Address(IpAddr),
    Name(String),
}

impl Fragment {
    fn parse(text: &str) -> Result<Self, ServerError> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Address(address));
        }
        if is_host_name(text) {
            return Ok(Self::Name(text.trim_end_matches('.').to_ascii_lowercase()));
        }
        Err(ServerError::NoName)
    }
}

impl fmt::Display for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// RFC 1123 2.1, and not an address with a slip: the last label is no number.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_asked() {
        for (text, transport, address, name, path) in [
            ("10.20.0.53", Transport::Udp, "10.20.0.53:53", None, None),
            ("10.20.0.53:5353", Transport::Udp, "10.20.0.53:5353", None, None),
            ("2001:db8::53", Transport::Udp, "[2001:db8::53]:53", None, None),
            ("[2001:db8::53]:53", Transport::Udp, "[2001:db8::53]:53", None, None),
            ("udp://10.0.0.1", Transport::Udp, "10.0.0.1:53", None, None),
            ("tcp://10.0.0.1:54", Transport::Tcp, "10.0.0.1:54", None, None),
            (
                "tls://10.20.0.54#DNS.Corp.Example.",
                Transport::Tls,
                "10.20.0.54:853",
                Some("dns.corp.example"),
                None,
            ),
            ("tls://10.20.0.54", Transport::Tls, "10.20.0.54:853", Some("10.20.0.54"), None),
            ("tls://[2001:db8::1]", Transport::Tls, "[2001:db8::1]:853", Some("2001:db8::1"), None),
            ("QUIC://10.0.0.1:8853#d", Transport::Quic, "10.0.0.1:8853", Some("d"), None),
            (
                "https://10.20.0.54/dns-query#dns.corp.example",
                Transport::Https,
                "10.20.0.54:443",
                Some("dns.corp.example"),
                Some("/dns-query"),
            ),
            (
                "https://dns.corp.example:8443/a/b#[2001:db8::54]",
                Transport::Https,
                "[2001:db8::54]:8443",
                Some("dns.corp.example"),
                Some("/a/b"),
            ),
            ("https://10.0.0.1/q", Transport::Https, "10.0.0.1:443", Some("10.0.0.1"), Some("/q")),
        ] {
            let server: Server = text.parse().expect(text);
            assert_eq!(server.transport, transport, "{text}");
            assert_eq!(server.address(), Some(address.parse().expect("address")), "{text}");
            assert_eq!(server.name.as_deref(), name, "{text}");
            assert_eq!(server.path.as_deref(), path, "{text}");
            let again: Server = server.to_string().parse().expect("what was shown");
            assert_eq!(again, server, "{text} is shown as {server}");
        }
        let server: Server = "https://dns.corp.example/dns-query".parse().expect("a name");
        let host = "dns.corp.example".into();
        assert_eq!(server.endpoint, Endpoint::Named { host, port: 443 });
        assert_eq!(server.to_string(), "https://dns.corp.example/dns-query");
        let server: Server = "fe80::1%eth0".parse().expect("link-local");
        assert_eq!(server.device, Some(Device::Named("eth0".into())));
        assert_eq!(server.to_string(), "[fe80::1%eth0]");
    }

    #[test]
    fn what_is_no_server_is_refused_with_the_nearest_one() {
        for (text, message, help) in [
            (
                "",
                "not a server",
                "for example \"10.20.0.53\" or \"tls://10.20.0.54#dns.corp.example\"",
            ),
            ("10.0.0.1 ", "not a server", "for example"),
            ("10.0.0", "not an address", "for example"),
            ("10.0.0.256", "not an address", "for example"),
            ("[2001:db8::1", "not an address", "for example"),
            ("10.0.0.1%eth0", "not an address", "for example"),
            ("10.0.0.1:0", "not a port", "a number from 1 to 65535"),
            ("10.0.0.1:+53", "not a port", "a number from 1 to 65535"),
            ("10.0.0.1:99999", "not a port", "a number from 1 to 65535"),
            ("dot://10.0.0.1", "unknown transport", "did you mean `tls://`?"),
            ("http://10.0.0.1/q", "unknown transport", "did you mean `https://`?"),
            (
                "gopher://10.0.0.1",
                "unknown transport",
                "udp://, tcp://, tls://, https:// or quic://",
            ),
            (
                "dns.corp.example",
                "a server's address is wanted, not a name",
                "write \"ADDRESS\" with",
            ),
            (
                "tls://dns.corp.example",
                "a server's address is wanted, not a name",
                "write \"tls://ADDRESS#dns.corp.example\" with the server's address",
            ),
            (
                "https://dns.corp.example/q#other.example",
                "a server's address is wanted, not a name",
                "write \"https://ADDRESS/q#dns.corp.example\" with the server's address",
            ),
            (
                "10.0.0.1#dns.corp.example",
                "a plain server has no certificate to show",
                "write \"tls://10.0.0.1#dns.corp.example\" for TLS",
            ),
            (
                "https://10.0.0.1#n.example",
                "an https server has a path",
                "write \"https://10.0.0.1/dns-query#n.example\"",
            ),
            ("tls://10.0.0.1/q#n", "no path belongs here", "write \"tls://10.0.0.1#n\""),
            (
                "https://10.0.0.1/dns-query{?dns}#n",
                "no path belongs here",
                "write \"https://10.0.0.1/dns-query#n\"",
            ),
            ("tls://10.0.0.1#a b", "not a server", "for example"),
            ("tls://10.0.0.1#a..b", "not the name of a server", "a host's name or an address"),
            ("0.0.0.0", "not an address that a server can have", "an address of one host"),
            ("224.0.0.1", "not an address that a server can have", "an address of one host"),
            ("255.255.255.255", "not an address that a server can have", "an address of one host"),
            ("fe80::1", "a link-local address needs its device", "for example \"fe80::1%eth0\""),
            (
                "https://[2001:db8::1]/q",
                "an IPv6 address over https needs the server's name",
                "write it behind the path: #dns.corp.example",
            ),
        ] {
            let error = text.parse::<Server>().expect_err(text);
            assert_eq!(error.to_string(), message, "{text}");
            assert!(error.help().starts_with(help), "{text}: {}", error.help());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// No heap of pieces makes it panic, and what is a server is written as it is read.
        #[test]
        fn what_is_shown_is_what_was_read(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "tls", "https", "quic", "tcp", "udp", "http", "://", ":", "/", "#", "%", "[", "]",
                    "?", " ", "\0", "é", "10.20.0.53", "::1", "2001:db8::53", "fe80::1", "eth0",
                    "dns.example", "dns-query", "853", "0", "65536", ".", "-", "255.255.255.255",
                ]),
                0..9,
            ),
        ) {
            let text = parts.concat();
            match text.parse::<Server>() {
                Ok(server) => {
                    let shown = server.to_string();
                    prop_assert_eq!(shown.parse::<Server>(), Ok(server), "{} of {}", shown, text);
                }
                Err(error) => {
                    let _ = (error.to_string(), error.help());
                }
            }
        }
    }
}
