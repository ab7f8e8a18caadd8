//! One item of a list: address, prefix, domain, port, path, name.
//!
//! Pure functions from a word to a value or to an [`ItemError`] that says what is
//! wrong with it and what would be right. The files of sets use them as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::diagnostic::{code, quoted};
use super::rule::{AppItem, CgroupItem, Domain, Ports};
use crate::DeviceName;

/// Why a word is no item of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ItemError {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl ItemError {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Whether a word can only be meant as an address or a prefix: it has a colon or a
/// slash, or nothing but digits and dots.
pub(super) fn looks_like_address(word: &str) -> bool {
    word.contains([':', '/'])
        || (!word.is_empty() && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// An address, IPv4-mapped ones as IPv4.
pub(super) fn address(word: &str) -> Result<IpAddr, ItemError> {
    word.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_| {
        let error =
            ItemError::new(code::BAD_ADDRESS, format!("{} is not an IP address", quoted(word)));
        if word.contains('/') {
            error.help("one address stands here, not a prefix")
        } else {
            error.help("as in `192.0.2.1` or `2001:db8::1`")
        }
    })
}

/// An address or a prefix without host bits; a single address is its /32 or /128.
pub(super) fn prefix(word: &str) -> Result<IpNet, ItemError> {
    let Some((address_part, length_part)) = word.split_once('/') else {
        return word
            .parse::<IpAddr>()
            .map(|address| IpNet::from(address.to_canonical()))
            .map_err(|_| bad_prefix(word));
    };
    let address: IpAddr = address_part.parse().map_err(|_| bad_prefix(word))?;
    let digits = !length_part.is_empty() && length_part.bytes().all(|b| b.is_ascii_digit());
    let length: Option<u8> = if digits { length_part.parse().ok() } else { None };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length.filter(|length| *length <= longest) else {
        return Err(ItemError::new(
            code::BAD_ADDRESS,
            format!("{} is no prefix length", quoted(&format!("/{length_part}"))),
        )
        .help(format!("a number from 0 to {longest}, as in `{address}/{longest}`")));
    };
    let (address, length) = unmapped(address, length);
    let written = IpNet::new(address, length).map_err(|_| bad_prefix(word))?;
    let right = written.trunc();
    if right.addr() == written.addr() {
        return Ok(right);
    }
    Err(ItemError::new(
        code::HOST_BITS,
        format!("{} has bits set beyond its first {length}", quoted(word)),
    )
    .help(format!("write `{right}` for the prefix or `{address}` for the one address")))
}

/// The IPv4 prefix that a prefix within `::ffff:0:0/96` stands for.
fn unmapped(address: IpAddr, length: u8) -> (IpAddr, u8) {
    match (address, length.checked_sub(96)) {
        (IpAddr::V6(v6), Some(length)) => match v6.to_ipv4_mapped() {
            Some(v4) => (IpAddr::V4(v4), length),
            None => (address, length + 96),
        },
        (address, _) => (address, length),
    }
}

fn bad_prefix(word: &str) -> ItemError {
    let error = ItemError::new(
        code::BAD_ADDRESS,
        format!("{} is not an address or a prefix", quoted(word)),
    );
    match completed(word) {
        Some(right) => error.help(format!("did you mean `{right}`?")),
        None => error.help("as in `192.0.2.1`, `10.0.0.0/8`, `2001:db8::1` or `fd00::/8`"),
    }
}

/// `10/8` and `192.168/16`, as other tools write them.
fn completed(word: &str) -> Option<IpNet> {
    let (short, length) = word.split_once('/')?;
    let length: u8 = length.parse().ok().filter(|length| *length <= 32)?;
    let mut octets = [0; 4];
    let parts: Vec<&str> = short.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    for (octet, part) in octets.iter_mut().zip(parts) {
        *octet = part.parse().ok()?;
    }
    Some(IpNet::V4(Ipv4Net::new(Ipv4Addr::from(octets), length).ok()?.trunc()))
}

/// How a valid address or prefix is written in canonical form.
pub(super) fn canonical_prefix(word: &str) -> Option<String> {
    let net = prefix(word).ok()?;
    Some(if word.contains('/') { net.to_string() } else { net.addr().to_string() })
}

/// `224.0.0.0/4` and `ff00::/8`.
pub(super) fn multicast() -> [IpNet; 2] {
    [
        IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    ]
}

/// A domain, in lower case and without the last dot, or `*.` and a domain.
pub(super) fn domain(word: &str) -> Result<Domain, ItemError> {
    let (below, name) = domain_parts(word)?;
    Ok(Domain { below, name: name.to_ascii_lowercase().into() })
}

/// Whether `*.` stands before a domain, and the domain without the last dot.
pub(super) fn domain_parts(word: &str) -> Result<(bool, &str), ItemError> {
    let bad = |why: String| ItemError::new(code::BAD_DOMAIN, why);
    let (below, name) = match word.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, word),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if word == "*" {
        return Err(bad("`*` alone is no domain".into()).help("`any` is every address"));
    }
    if !name.is_ascii() {
        return Err(bad(format!("{} is not in ASCII", quoted(word)))
            .help("write its A-label, as in `xn--bcher-kva.example`"));
    }
    if name.contains('*') {
        return Err(bad(format!("`*` in the middle of {}", quoted(word)))
            .help("`*.example.com` is that name and all below it"));
    }
    // RFC 1035 2.3.4: 255 octets on the wire, which is 253 characters of text.
    if name.len() > 253 {
        return Err(bad("this domain is longer than 253 characters".into()));
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err(bad(format!(
                "a label of {} is {}",
                quoted(word),
                if label.is_empty() { "empty" } else { "longer than 63 characters" }
            )));
        }
        let stray = |b: u8| !(b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if let Some(stray) = label.bytes().find(|b| stray(*b)) {
            let stray = char::from(stray).to_string();
            return Err(bad(format!("{} in {}", quoted(&stray), quoted(word)))
                .help("a domain is letters, digits, `-` and `_` between dots"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(bad(format!("a label of {} begins or ends with `-`", quoted(word))));
        }
    }
    if name.rsplit('.').next().is_some_and(|top| top.bytes().all(|b| b.is_ascii_digit())) {
        return Err(bad(format!("{} ends in a number, as no domain does", quoted(word))));
    }
    Ok((below, name))
}

/// How a valid domain is written in canonical form.
pub(super) fn canonical_domain(domain: &Domain) -> String {
    format!("{}{}", if domain.below { "*." } else { "" }, domain.name)
}

/// A port or a range of ports.
pub(super) fn ports(word: &str) -> Result<Ports, ItemError> {
    let bad = |message: String| {
        ItemError::new(code::BAD_PORT, message)
            .help("a number from 0 to 65535, or a range as in `8000-8100`")
    };
    let number = |part: &str| -> Result<u16, ItemError> {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { part.parse().ok() } else { None };
        number.ok_or_else(|| bad(format!("{} is not a port", quoted(word))))
    };
    let (first, last) = match word.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(word)?, number(word)?),
    };
    if first > last {
        return Err(
            bad(format!("{} is empty", quoted(word))).help(format!("write `{last}-{first}`"))
        );
    }
    Ok(Ports { first, last })
}

/// What a set, a rule, a resolver or a way out may be called: it is shown in
/// reports, and no name can be taken for the `FILE:LINE` of another rule.
pub(super) fn name(word: &str) -> Result<&str, ItemError> {
    const LONGEST: usize = 64;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
    if word.is_empty() || word.len() > LONGEST || !word.chars().all(fits) {
        return Err(ItemError::new(code::BAD_NAME, format!("{} is not a name", quoted(word)))
            .help(format!("1 to {LONGEST} of the characters A-Z a-z 0-9 . _ + -")));
    }
    Ok(word)
}

/// A user's name as passwd(5) may hold it.
pub(super) fn user_name(word: &str) -> Result<&str, ItemError> {
    if word.is_empty() || word.len() > 256 || word.contains([':', '\n']) {
        return Err(ItemError::new(code::BAD_NAME, format!("{} is not a user", quoted(word)))
            .help("a name, a uid or `unknown`"));
    }
    Ok(word)
}

/// A network device.
pub(super) fn device(word: &str) -> Result<DeviceName, ItemError> {
    let valid = !matches!(word, "." | "..")
        && !word.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    valid.then(|| DeviceName::new(word)).flatten().ok_or_else(|| {
        ItemError::new(code::BAD_NAME, format!("{} is not a network device", quoted(word)))
            .help("an address, a prefix, a set, or a device name of at most 15 characters")
    })
}

/// A program's path; `*` at its end matches all that begins so.
pub(super) fn app(word: &str) -> Result<AppItem, ItemError> {
    let (path, prefix) = match word.strip_suffix('*') {
        Some(path) => (path, true),
        None => (word, false),
    };
    if !path.starts_with('/') {
        return Err(ItemError::new(
            code::BAD_PATH,
            format!("{} is not the path of a program", quoted(word)),
        )
        .help("an absolute path, as in `/usr/bin/curl` or `/opt/app/*`, or `unknown`"));
    }
    Ok(AppItem::Path { path: path.into(), prefix })
}

/// A path in the cgroup tree.
pub(super) fn cgroup(word: &str) -> Result<CgroupItem, ItemError> {
    let path = word.strip_suffix('/').unwrap_or(word);
    let bad = |part: &str| part.is_empty() || matches!(part, "." | "..");
    let inner = path.strip_prefix('/');
    let root = word == "/";
    if !root && inner.is_none_or(|inner| inner.split('/').any(bad)) {
        return Err(ItemError::new(
            code::BAD_PATH,
            format!("{} is not the path of a cgroup", quoted(word)),
        )
        .help("a path from the root, as in `/system.slice/sshd.service`, or `unknown`"));
    }
    Ok(CgroupItem::Path(path.into()))
}

/// A set's file: it must lie below the policy directory.
pub(super) fn set_file(word: &str) -> Result<&str, ItemError> {
    let bad = |message: &str| {
        ItemError::new(code::BAD_PATH, message)
            .help("a path below the directory of this policy, as in \"lists/ads.txt\"")
    };
    if word.is_empty() {
        return Err(bad("a file needs a path"));
    }
    if word.starts_with('/') {
        return Err(bad("an absolute path leads out of the policy directory"));
    }
    if word.split('/').any(|part| part == "..") {
        return Err(bad("`..` may lead out of the policy directory"));
    }
    Ok(word)
}

/// `2s`, `500ms` or `1m`, in milliseconds.
pub(super) fn duration_ms(word: &str) -> Result<u64, ItemError> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = word.split_at(digits);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    let number: Option<u64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(scale)).filter(|ms| *ms > 0).ok_or_else(|| {
        ItemError::new(code::BAD_DURATION, format!("{} is not a time", quoted(word)))
            .help("a number and `ms`, `s` or `m`, as in `2s`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let long = "1".repeat(100_000);
        for (word, want) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3/32")),
            ("2001:DB8::1", Ok("2001:db8::1/128")),
            ("::ffff:10.1.2.3", Ok("10.1.2.3/32")),
            ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
            ("::/0", Ok("::/0")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("10.0.0.1/8", Err(code::HOST_BITS)),
            ("fd00::1/8", Err(code::HOST_BITS)),
            ("::ffff:10.0.0.1/104", Err(code::HOST_BITS)),
            ("10.0.0.0/33", Err(code::BAD_ADDRESS)),
            ("10.0.0.0/+8", Err(code::BAD_ADDRESS)),
            ("10.0.0.0/", Err(code::BAD_ADDRESS)),
            ("10.0.0.300", Err(code::BAD_ADDRESS)),
            ("10/8", Err(code::BAD_ADDRESS)),
            ("10.0.0.0/255.0.0.0", Err(code::BAD_ADDRESS)),
            ("010.0.0.1", Err(code::BAD_ADDRESS)),
            ("1:2:3", Err(code::BAD_ADDRESS)),
            ("", Err(code::BAD_ADDRESS)),
            (&long, Err(code::BAD_ADDRESS)),
        ] {
            let got = prefix(word).map(|net| net.to_string());
            let got = got.as_deref().map_err(|error| error.code);
            assert_eq!(got, want, "{}", &word[..word.len().min(40)]);
        }
    }

    #[test]
    fn a_wrong_prefix_says_the_right_one() {
        for (word, want) in [
            ("10.0.0.1/8", "write `10.0.0.0/8` for the prefix or `10.0.0.1` for the one address"),
            ("10/8", "did you mean `10.0.0.0/8`?"),
            ("192.168/16", "did you mean `192.168.0.0/16`?"),
        ] {
            let error = prefix(word).expect_err(word);
            assert_eq!(error.help.as_deref(), Some(want));
        }
    }

    #[test]
    fn domains() {
        let label = "a".repeat(64);
        let long = "a.".repeat(200) + "example";
        for (word, want) in [
            ("Example.COM", Some((false, "example.com"))),
            ("example.com.", Some((false, "example.com"))),
            ("*.example.com", Some((true, "example.com"))),
            ("localhost", Some((false, "localhost"))),
            ("_dmarc.example.com", Some((false, "_dmarc.example.com"))),
            ("xn--bcher-kva.example", Some((false, "xn--bcher-kva.example"))),
            ("bücher.example", None),
            ("*", None),
            ("*.", None),
            ("a.*.b", None),
            ("a..b", None),
            (".a", None),
            ("-a.b", None),
            ("a b", None),
            ("10.0.0.300", None),
            (&label, None),
            (&long, None),
            ("", None),
        ] {
            let got = domain(word).ok();
            let got = got.as_ref().map(|d| (d.below, &*d.name));
            assert_eq!(got, want, "{}", &word[..word.len().min(40)]);
        }
    }

    #[test]
    fn ports_and_times() {
        for (word, want) in [
            ("443", Some((443, 443))),
            ("0", Some((0, 0))),
            ("8000-8100", Some((8000, 8100))),
            ("65536", None),
            ("+80", None),
            ("80-", None),
            ("-80", None),
            ("90-80", None),
            ("http", None),
        ] {
            assert_eq!(ports(word).ok().map(|p| (p.first, p.last)), want, "{word}");
        }
        for (word, want) in [
            ("2s", Some(2_000)),
            ("500ms", Some(500)),
            ("1m", Some(60_000)),
            ("0s", None),
            ("2", None),
            ("s", None),
            ("18446744073709551615m", None),
        ] {
            assert_eq!(duration_ms(word).ok(), want, "{word}");
        }
    }

    #[test]
    fn paths() {
        for (word, want) in [
            ("/", Some("")),
            ("/a.slice/b@1.service", Some("/a.slice/b@1.service")),
            ("/a/", Some("/a")),
            ("a", None),
            ("//", None),
            ("/a//b", None),
            ("/a/../b", None),
            ("", None),
        ] {
            let want = want.map(|path| CgroupItem::Path(path.into()));
            assert_eq!(cgroup(word).ok(), want, "{word}");
        }
        for (word, valid) in [
            ("lists/ads.txt", true),
            ("ads..txt", true),
            ("/etc/passwd", false),
            ("../ads.txt", false),
            ("lists/../../ads.txt", false),
            ("", false),
        ] {
            assert_eq!(set_file(word).is_ok(), valid, "{word}");
        }
    }
}
