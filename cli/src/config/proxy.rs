//! `[[proxy]]`: proxies, each by its URL.

use std::net::{IpAddr, SocketAddr};

use dns::tls::{ServerName, Trust};
use engine::WayId;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tunnel::egress::proxy::{Login, Speaks};

use super::names::{RESERVED, via};
use super::nearest::nearest;
use super::reader::Reader;
use super::wireguard::WORDS;
use super::{Config, Proxy};
use crate::wireguard::Endpoint;
use crate::wireguard::value::is_domain;

type Value<'a> = Spanned<DeValue<'a>>;

/// `direct` is a way out too.
const MOST_WAYS: usize = WayId::MOST - 1;

const KEYS: [&str; 5] = ["name", "url", "via", "ca", "identity"];

/// A proxy's languages by their schemes, and the ports that they mean.
const SCHEMES: [(&str, Speaks, u16); 3] =
    [("socks5", Speaks::Socks5, 1080), ("http", Speaks::Http, 80), ("https", Speaks::Http, 443)];

const EXAMPLE: &str = "for example \"socks5://192.0.2.10:1080\"";

/// One `[[proxy]]`.
pub(super) fn proxy(reader: &mut Reader<'_>, table: &Spanned<DeTable<'_>>, config: &mut Config) {
    let (mut name, mut url, mut behind) = (None, None, None);
    let mut trust = Trust::default();
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "name" => name = way_name(reader, value, config),
            "url" => url = read_url(reader, value),
            "via" => behind = via(reader, value),
            "ca" => trust.ca = reader.path(value),
            "identity" => trust.identity = reader.path(value),
            other => {
                let help = nearest(other, KEYS.into_iter());
                reader.fault(key.span(), format!("unknown key `proxy.{other}`"), help);
            }
        }
    }
    for (wanted, help) in [("name", "for example name = \"office\""), ("url", EXAMPLE)] {
        if !table.get_ref().keys().any(|key| key.get_ref() == wanted) {
            let message = format!("a proxy needs `{wanted}`");
            reader.fault(table.span(), message, Some(help.to_owned()));
        }
    }
    for (key, value) in table.get_ref() {
        let key = key.get_ref().as_ref();
        let plain = url.as_ref().is_some_and(|url: &Url| url.tls.is_none());
        if (key == "ca" || key == "identity") && plain {
            let help = "a proxy with a certificate is written https://";
            let message = format!("`{key}` means nothing: the proxy shows no certificate");
            reader.fault(value.span(), message, Some(help.to_owned()));
        }
    }
    if config.wireguard.len() + config.proxies.len() == MOST_WAYS {
        reader.fault(table.span(), format!("more than {MOST_WAYS} ways out"), None);
    } else if let (Some(name), Some(Url { speaks, place, login, tls })) = (name, url) {
        config.proxies.push(Proxy { name, speaks, place, via: behind, login, tls, trust });
    }
}

fn way_name(reader: &mut Reader<'_>, value: &Value<'_>, config: &Config) -> Option<String> {
    let name = reader.string(value)?;
    // As policies take it.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let help = "1 to 64 of the characters A-Z a-z 0-9 . _ + -".to_owned();
        reader.fault(value.span(), "not a name for a proxy", Some(help));
        return None;
    }
    if RESERVED.contains(&&*name) || WORDS.contains(&&*name) {
        reader.fault(value.span(), format!("`{name}` is a word of policies"), None);
        return None;
    }
    // A tunnel says itself that it has the name of a proxy: it may stand below.
    if config.proxies.iter().any(|proxy| proxy.name == name) {
        reader.fault(value.span(), format!("there is a proxy `{name}` above"), None);
        return None;
    }
    Some(name)
}

/// What a URL says of a proxy.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    speaks: Speaks,
    place: Endpoint,
    login: Option<Login>,
    /// Whom its certificate must name.
    tls: Option<ServerName<'static>>,
}

fn read_url(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Url> {
    let text = reader.string(value)?;
    match url(&text) {
        Ok(url) => {
            if url.login.is_some() {
                reader.secret(value.span());
            }
            Some(url)
        }
        Err((message, help)) => {
            reader.fault(value.span(), message, help);
            None
        }
    }
}

/// A message, and help; of the URL itself they say nothing, as it may hold a password.
type Wrong = (String, Option<String>);

fn url(text: &str) -> Result<Url, Wrong> {
    let no_url = || ("not the URL of a proxy".to_owned(), Some(EXAMPLE.to_owned()));
    let (scheme, rest) = text.split_once("://").ok_or_else(no_url)?;
    let scheme = scheme.to_ascii_lowercase();
    let known = SCHEMES.iter().find(|(name, ..)| *name == scheme);
    let &(_, speaks, default_port) = known.ok_or_else(|| match &*scheme {
        "socks5h" => {
            let help = "write socks5: a name that is known is always sent to the proxy";
            ("unknown scheme".to_owned(), Some(help.to_owned()))
        }
        _ => {
            let help = "a proxy's URL begins with socks5://, http:// or https://";
            ("unknown scheme".to_owned(), Some(help.to_owned()))
        }
    })?;
    // As of a name server: behind it is the name that the certificate holds.
    let (rest, certified) = match rest.split_once('#') {
        Some((rest, name)) if scheme == "https" => (rest, Some(name)),
        Some(_) | None => (rest, None),
    };
    // RFC 3986 3.2: the authority ends here; a proxy has no path.
    let authority = match rest.split_once(['/', '?', '#']) {
        None => rest,
        Some((authority, "")) if rest.ends_with('/') => authority,
        Some(_) => return Err(("a proxy's URL ends with its port".to_owned(), None)),
    };
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(read_login(login)?), host),
        None => (None, authority),
    };
    let place = place(host, default_port).ok_or_else(no_url)?;
    let tls = match (&*scheme, certified) {
        ("https", Some(name)) => Some(ServerName::try_from(name.to_owned()).map_err(|_| {
            let help = "behind # stands the name in its certificate";
            ("not a name of a server".to_owned(), Some(help.to_owned()))
        })?),
        ("https", None) => match &place {
            Endpoint::Address(address) => Some(ServerName::from(address.ip())),
            Endpoint::Name(name, _) => {
                Some(ServerName::try_from(name.clone()).map_err(|_| no_url())?)
            }
        },
        _ => None,
    };
    Ok(Url { speaks, place, login, tls })
}

/// `USER:PASSWORD`, where what is no letter may be written as `%XX`.
fn read_login(text: &str) -> Result<Login, Wrong> {
    let (user, password) = text.split_once(':').ok_or_else(|| {
        let help = "for example \"socks5://user:password@192.0.2.10:1080\"";
        ("a user without a password".to_owned(), Some(help.to_owned()))
    })?;
    let wrong = || {
        let help = "write what is no letter, digit or one of -._~ as % and two hexadecimal digits";
        ("user or password is not readable".to_owned(), Some(help.to_owned()))
    };
    let user = decoded(user).ok_or_else(wrong)?;
    let password = decoded(password).ok_or_else(wrong)?;
    Login::new(user, password).map_err(|error| (error.to_string(), None))
}

/// RFC 3986 2.1
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|b| char::from(b).to_digit(16));
                (digits[0]? << 4 | digits[1]?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn place(host: &str, default_port: u16) -> Option<Endpoint> {
    if let Some(address) = address(host, default_port) {
        return Some(Endpoint::Address(address));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0)?),
        None => (host, default_port),
    };
    is_domain(name).then(|| Endpoint::Name(name.to_ascii_lowercase(), port))
}

fn address(host: &str, default_port: u16) -> Option<SocketAddr> {
    let usable = |address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let address = match host.parse::<SocketAddr>() {
        Ok(address) => Some(address),
        Err(_) if host.starts_with('[') != bare.contains(':') => None,
        Err(_) => bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, default_port)),
    };
    let address = address.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
    address.filter(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_language_address_and_login() {
        let login = |user: &str, password: &str| Login::new(user.into(), password.into()).ok();
        #[rustfmt::skip]
        let cases = [
            ("socks5://192.0.2.10", Speaks::Socks5, "192.0.2.10:1080", None),
            ("SOCKS5://192.0.2.10:9050/", Speaks::Socks5, "192.0.2.10:9050", None),
            ("http://[2001:db8::1]:3128", Speaks::Http, "[2001:db8::1]:3128", None),
            ("http://[2001:db8::1]", Speaks::Http, "[2001:db8::1]:80", None),
            ("http://127.0.0.1:8080/", Speaks::Http, "127.0.0.1:8080", None),
            ("socks5://a:b@192.0.2.10:1", Speaks::Socks5, "192.0.2.10:1", login("a", "b")),
            ("socks5://a:b@c%40%3a%25@192.0.2.10:1", Speaks::Socks5, "192.0.2.10:1", login("a", "b@c@:%")),
        ];
        for (text, speaks, address, login) in cases {
            let place = Endpoint::Address(address.parse().expect("an address"));
            assert_eq!(url(text), Ok(Url { speaks, place, login, tls: None }), "{text}");
        }
        for (text, address, name) in [
            ("https://192.0.2.10", "192.0.2.10:443", "192.0.2.10"),
            ("https://192.0.2.10:8443#proxy.example", "192.0.2.10:8443", "proxy.example"),
            ("https://[2001:db8::1]/#proxy.example", "[2001:db8::1]:443", "proxy.example"),
        ] {
            let place = Endpoint::Address(address.parse().expect("an address"));
            let tls = Some(ServerName::try_from(name).expect("a name"));
            let want = Url { speaks: Speaks::Http, place, login: None, tls };
            assert_eq!(url(text), Ok(want), "{text}");
        }
        for (text, host, port, certified) in [
            ("socks5://Proxy.example:9050", "proxy.example", 9050, None),
            ("http://proxy", "proxy", 80, None),
            ("https://proxy.example", "proxy.example", 443, Some("proxy.example")),
            ("https://proxy.example:8443#a.example", "proxy.example", 8443, Some("a.example")),
        ] {
            let speaks = if text.starts_with("socks5") { Speaks::Socks5 } else { Speaks::Http };
            let place = Endpoint::Name(host.to_owned(), port);
            let tls = certified.map(|name| ServerName::try_from(name).expect("a name"));
            assert_eq!(url(text), Ok(Url { speaks, place, login: None, tls }), "{text}");
        }
        for (text, want) in [
            ("192.0.2.10:1080", "not the URL of a proxy"),
            ("socks5://", "not the URL of a proxy"),
            ("socks5://0.0.0.0:1", "not the URL of a proxy"),
            ("socks5://[192.0.2.1]:1", "not the URL of a proxy"),
            ("socks5://2001:db8::1", "not the URL of a proxy"),
            ("socks5://proxy.example:0", "not the URL of a proxy"),
            ("socks5://proxy..example", "not the URL of a proxy"),
            ("socks5://192.0.2.300", "not the URL of a proxy"),
            ("socks5://-a.example", "not the URL of a proxy"),
            ("socks5://b\u{fc}cher.example", "not the URL of a proxy"),
            ("https://192.0.2.10#a b", "not a name of a server"),
            ("http://192.0.2.10#proxy.example", "ends with its port"),
            ("socks4://192.0.2.10", "unknown scheme"),
            ("socks5h://192.0.2.10", "unknown scheme"),
            ("socks5://192.0.2.10/x", "ends with its port"),
            ("socks5://secret@192.0.2.10", "without a password"),
            ("socks5://secret:@192.0.2.10", "1 to 255"),
            ("socks5://secret:%zz@192.0.2.10", "not readable"),
            ("socks5://secret:%@192.0.2.10", "not readable"),
        ] {
            let (message, help) = url(text).expect_err(text);
            assert!(message.contains(want), "{text}: {message}");
            let said = message + &help.unwrap_or_default();
            assert!(!said.contains("secret"), "{text}: {said}");
        }
    }
}
