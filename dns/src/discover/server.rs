//! A server as files and services write it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::Domain;
use super::links::Links;

/// A server as somebody has named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    pub(super) name: Option<String>,
}

/// Reads `192.0.2.53`, `192.0.2.53:5353`, `[2001:db8::53]:53`, `fe80::1%eth0`, each with or without
/// `#NAME`, and NetworkManager's `dns+udp://` and `dns+tls://` before it. `link` is the zone of a
/// link-local address that is written without. `None`: none of these, or a zone that isn't here.
pub(super) fn parse(word: &str, link: Option<u32>, links: &Links) -> Option<Named> {
    let (tls, rest) = if let Some(rest) = word.strip_prefix("dns+tls://") {
        (true, rest)
    } else {
        (false, word.strip_prefix("dns+udp://").unwrap_or(word))
    };
    let (rest, name) = match rest.split_once('#') {
        Some((rest, name)) => (rest, (!name.is_empty()).then(|| name.to_owned())),
        None => (rest, None),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, behind) = bracketed.split_once(']')?;
            (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
        }
        // An IPv6 address has more colons than one.
        None => match rest.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            Some(_) | None => (rest, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => 0,
    };
    let (host, zone) = match host.split_once('%') {
        Some((host, zone)) => (host, Some(links.index(zone)?)),
        None => (host, link),
    };
    Some(Named { address: address(host.parse().ok()?, port, tls, zone), tls, name })
}

/// Where a server is asked: port 0 stands for the transport's own, and `link` becomes the scope of
/// an address that needs one.
pub(super) fn address(ip: IpAddr, port: u16, tls: bool, link: Option<u32>) -> SocketAddr {
    let port = match port {
        0 if tls => 853,
        0 => 53,
        port => port,
    };
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            SocketAddrV6::new(v6, port, 0, link.unwrap_or(0)).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(ip.to_canonical(), port),
    }
}

/// A domain as it is written, `~` for one that leads only. `None`: no name of a domain.
pub(super) fn domain(word: &str) -> Option<Domain> {
    let (word, route_only) = match word.strip_prefix('~') {
        Some(word) => (word, true),
        None => (word, false),
    };
    let name = word.strip_suffix('.').unwrap_or(word).to_ascii_lowercase();
    let labels_fit = name.is_empty()
        || name.split('.').all(|label| (1..=63).contains(&label.len()) && is_plain(label));
    // The root completes nothing.
    let means_something = if name.is_empty() { route_only } else { name.len() <= 253 };
    (labels_fit && means_something).then_some(Domain { name, route_only })
}

fn is_plain(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_as_they_are_written() {
        let links = Links::open().unwrap();
        #[rustfmt::skip]
        let cases = [
            ("192.0.2.53", None, Some(("192.0.2.53:53", false, None))),
            ("192.0.2.53:5353", None, Some(("192.0.2.53:5353", false, None))),
            ("192.0.2.53#dns.example", None, Some(("192.0.2.53:53", false, Some("dns.example")))),
            ("2001:db8::53", None, Some(("[2001:db8::53]:53", false, None))),
            ("[2001:db8::53]:54#a.example", None, Some(("[2001:db8::53]:54", false, Some("a.example")))),
            ("[2001:db8::53]", None, Some(("[2001:db8::53]:53", false, None))),
            ("::ffff:192.0.2.53", None, Some(("192.0.2.53:53", false, None))),
            ("fe80::1%lo", None, Some(("[fe80::1%1]:53", false, None))),
            ("[fe80::1%1]:5353", None, Some(("[fe80::1%1]:5353", false, None))),
            ("fe80::1", Some(7), Some(("[fe80::1%7]:53", false, None))),
            ("fe80::1%nosuch0", None, None),
            ("dns+udp://192.0.2.53", None, Some(("192.0.2.53:53", false, None))),
            ("dns+tls://192.0.2.53#dns.example", None, Some(("192.0.2.53:853", true, Some("dns.example")))),
            ("dns+https://192.0.2.53/", None, None),
            ("192.0.2.53#", None, Some(("192.0.2.53:53", false, None))),
            ("192.0.2.53:", None, None),
            ("192.0.2.53:99999", None, None),
            ("[2001:db8::53", None, None),
            ("[2001:db8::53]x", None, None),
            ("dns.example", None, None),
            ("", None, None),
        ];
        for (word, link, expected) in cases {
            let expected = expected.map(|(address, tls, name)| Named {
                address: address.parse().unwrap(),
                tls,
                name: name.map(str::to_owned),
            });
            assert_eq!(parse(word, link, &links), expected, "{word}");
        }
    }

    #[test]
    fn domains_as_they_are_written() {
        for (word, expected) in [
            ("Corp.Example.", Some(("corp.example", false))),
            ("~corp.example", Some(("corp.example", true))),
            ("~.", Some(("", true))),
            (".", None),
            ("", None),
            ("a..b", None),
            ("a b", None),
            ("_tcp.example", Some(("_tcp.example", false))),
        ] {
            let expected =
                expected.map(|(name, route_only)| Domain { name: name.to_owned(), route_only });
            assert_eq!(domain(word), expected, "{word:?}");
        }
    }
}
