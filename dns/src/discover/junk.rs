//! Whatever others leave in their files: nothing of it makes a reader panic, and no server or
//! domain comes of it that is none.

use std::time::SystemTime;

use proptest::prelude::*;

use super::links::Links;
use super::server::Named;
use super::{Domain, ResolvConf, dhclient, networkd, resolv_conf, server};

/// Files as they are.
const CORPUS: [&str; 5] = [
    "# made by hand\nnameserver 192.0.2.1\nnameserver fe80::1%lo\nsearch corp.example a.example\n\
     options edns0 ndots:2\n",
    "ADMIN_STATE=configured\nDNS=192.0.2.53#dns.example [fe80::1%1]:53 2001:db8::53\n\
     DOMAINS=corp.example\nROUTE_DOMAINS=lab.example .\nDNS_DEFAULT_ROUTE=no\nDNS_OVER_TLS=yes\n",
    "ADDRESS=192.0.2.9\nROUTER=192.0.2.1\nDNS=192.0.2.53 192.0.2.54\nDOMAINNAME=corp.example\n\
     DOMAIN_SEARCH_LIST=a.example b.example\n",
    "lease {\n  interface \"lo\";\n  fixed-address 192.0.2.9;\n  option domain-name-servers \
     192.0.2.53,192.0.2.54;\n  option domain-name \"corp.example\";\n  option domain-search \
     \"a.example.\", \"b.example.\";\n  expire 4 2038/01/19 03:14:07;\n}\n",
    "default-duid \"\\000\\001\";\nlease6 {\n  interface \"lo\";\n  ia-na 00:00:00:01 {\n    starts \
     1700000000;\n    iaaddr 2001:db8::9 {\n      max-life 600;\n    }\n  }\n  option \
     dhcp6.name-servers 2001:db8::53,fe80::53;\n  option dhcp6.domain-search \"corp.example.\";\n}\n",
];

/// What stands in place of a piece of a file.
const PIECES: [&str; 28] = [
    "",
    "\n",
    "\r\n",
    "\0",
    " ",
    "=",
    "\"",
    "\\",
    ";",
    "{",
    "}",
    "#",
    "%",
    "%lo",
    "~",
    ".",
    "..",
    ",",
    ":",
    "[",
    "]",
    "é",
    "\u{2028}",
    "dns+tls://",
    "nameserver ",
    "DNS=",
    "lease {",
    "99999999999999999999",
];

/// One of the files with pieces of it replaced.
fn spoilt() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0..20_usize, prop::sample::select(&PIECES[..]));
    let edits = prop::collection::vec(edit, 0..8);
    (prop::sample::select(&CORPUS[..]), edits).prop_map(|(file, edits)| {
        let mut text = file.to_owned();
        for (at, length, piece) in edits {
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((at + length).min(text.len()));
            text.replace_range(at..end, piece);
        }
        text
    })
}

fn is_sound(servers: &[Named], domains: &[Domain], text: &str) {
    for named in servers {
        assert!(named.address.port() > 0, "{named:?}: {text:?}");
        assert!(named.name.as_deref() != Some(""), "{named:?}: {text:?}");
    }
    for domain in domains {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        assert!(domain.name.len() <= 253 && domain.name.bytes().all(plain), "{domain:?}");
        assert!(!domain.name.is_empty() || domain.route_only, "{domain:?}: {text:?}");
    }
}

fn all_readers(text: &str) {
    let links = Links::open().expect("netlink");
    let heard = networkd::parse(text, 1, &links);
    is_sound(&heard.servers, &heard.domains, text);
    for lease in dhclient::parse(text) {
        assert!(!lease.interface.is_empty(), "{text:?}");
        lease.holds(SystemTime::now());
        let domains: Vec<_> = lease.domains.iter().filter_map(|d| server::domain(d)).collect();
        is_sound(&[], &domains, text);
    }
    let words = resolv_conf::nameservers(text);
    let servers: Vec<_> = words.filter_map(|word| server::parse(word, Some(1), &links)).collect();
    is_sound(&servers, &[], text);
    let conf = ResolvConf::parse(text);
    // What is written of it is read as it is.
    let again = ResolvConf::parse(&conf.with_nameservers(&conf.nameservers));
    assert_eq!(again.nameservers, &conf.nameservers[..conf.nameservers.len().min(3)], "{text:?}");
    assert_eq!((again.search(), &again.rest), (conf.search(), &conf.rest), "{text:?}");
}

#[test]
fn files_as_they_are() {
    CORPUS.iter().for_each(|text| all_readers(text));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_spoilt_file_makes_a_reader_panic(text in spoilt()) {
        all_readers(&text);
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in any::<String>()) {
        all_readers(&text);
    }
}
