//! The name in the first bytes of a TCP connection.
//!
//! # Theory of operation
//!
//! [`name`] is given all bytes that the app has sent so far, from the first on, and again when
//! there are more. It keeps nothing between two calls and says the same of the same bytes,
//! whatever the pieces were that they came in. Two protocols tell a name before the far side
//! has said anything: TLS (`tls`) and HTTP/1 (`http`). Their first bytes exclude each other. All
//! else is [`Sniffed::Nothing`], as early as it is seen: only what may still become one of the
//! two is worth waiting for.
//!
//! What is read here was written by the app, or by somebody who speaks through it. It is a
//! claim: nothing ties it to the destination (`docs/security.md`).

mod http;
mod tls;

use std::sync::Arc;

use crate::policy;
use crate::{Name, NameFrom};

/// The most bytes that are looked at: a TLS record (RFC 8446 5.1), and the least ring.
pub(crate) const MOST: usize = 16 * 1024;

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// The name is this.
    Name(Name),
    /// There is none, whatever follows.
    Nothing,
    /// It depends on what follows.
    More,
}

/// Reads the first bytes of a connection. At the latest with [`MOST`] of them it is known.
pub(crate) fn name(bytes: &[u8]) -> Sniffed {
    let full = bytes.len() >= MOST;
    let bytes = &bytes[..bytes.len().min(MOST)];
    let (found, from) = match bytes.first() {
        None => return Sniffed::More,
        Some(&tls::HANDSHAKE) => (tls::server_name(bytes), NameFrom::Sni),
        Some(_) => (http::host(bytes), NameFrom::Host),
    };
    match found {
        Found::Text(text) => {
            as_name(text).map_or(Sniffed::Nothing, |text| Sniffed::Name(Name { text, from }))
        }
        Found::More if !full => Sniffed::More,
        Found::More | Found::Nothing => Sniffed::Nothing,
    }
}

/// What one protocol's reader found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// What stands where the name should.
    Text(Vec<u8>),
    Nothing,
    More,
}

/// As the domains of a policy are: lower-case A-labels without the last dot. An IP address is
/// no name.
fn as_name(text: Vec<u8>) -> Option<Arc<str>> {
    policy::name(&String::from_utf8(text).ok()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello with these extensions, in records of at most so many bytes.
    pub(crate) fn hello(extensions: &[(u16, Vec<u8>)], record: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([9; 32]);
        body.extend([0, 4, 0x13, 0x01, 0x13, 0x02, 1, 0]);
        let mut all = Vec::new();
        for (kind, data) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend((data.len() as u16).to_be_bytes());
            all.extend(data);
        }
        body.extend((all.len() as u16).to_be_bytes());
        body.extend(all);
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        let records = message.chunks(record).flat_map(|piece| {
            let mut record = vec![22, 3, 1];
            record.extend((piece.len() as u16).to_be_bytes());
            record.extend(piece);
            record
        });
        records.collect()
    }

    /// The extension that names a server.
    pub(crate) fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
        let mut entry = vec![0];
        entry.extend((name.len() as u16).to_be_bytes());
        entry.extend(name);
        let mut data = (entry.len() as u16).to_be_bytes().to_vec();
        data.extend(entry);
        (0, data)
    }

    pub(crate) fn sni(name: &str) -> Vec<u8> {
        // As browsers do: something before, something large behind.
        hello(&[(0x2a2a, vec![]), server_name(name.as_bytes()), (51, vec![5; 1216])], 16_384)
    }

    fn found(text: &str, from: NameFrom) -> Sniffed {
        Sniffed::Name(Name { text: text.into(), from })
    }

    #[test]
    fn names_are_as_in_policies() {
        let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        let from_sni = |text| found(text, NameFrom::Sni);
        let from_host = |text| found(text, NameFrom::Host);
        for (what, bytes, want) in [
            ("sni", sni("www.example.com"), from_sni("www.example.com")),
            ("sni, upper case", sni("WWW.Example.COM"), from_sni("www.example.com")),
            ("sni, last dot", sni("www.example.com."), from_sni("www.example.com")),
            ("sni, one label", sni("localhost"), from_sni("localhost")),
            ("sni, an A-label", sni("xn--bcher-kva.example"), from_sni("xn--bcher-kva.example")),
            ("sni, not ASCII", sni("bücher.example"), Sniffed::Nothing),
            ("sni, IPv4", sni("192.0.2.1"), Sniffed::Nothing),
            ("sni, IPv6", sni("2001:db8::1"), Sniffed::Nothing),
            ("sni, a wildcard", sni("*.example.com"), Sniffed::Nothing),
            ("sni, empty", sni(""), Sniffed::Nothing),
            ("sni, a zero byte", sni("good.example\0.bad.example"), Sniffed::Nothing),
            ("host", request("www.example.com"), from_host("www.example.com")),
            ("host, a port", request("WWW.example.com.:8080"), from_host("www.example.com")),
            ("host, IPv4", request("192.0.2.1:80"), Sniffed::Nothing),
            ("host, IPv6", request("[2001:db8::1]:80"), Sniffed::Nothing),
            ("nothing yet", vec![], Sniffed::More),
            (
                "SSH, the client's line",
                b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec(),
                Sniffed::Nothing,
            ),
            ("PostgreSQL", vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], Sniffed::Nothing),
            ("HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Sniffed::Nothing),
            ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), Sniffed::Nothing),
            ("a TLS alert", vec![21, 3, 1, 0, 2, 1, 0], Sniffed::Nothing),
            ("SSL 2", vec![0x80, 0x2e, 1, 3, 1], Sniffed::Nothing),
        ] {
            assert_eq!(name(&bytes), want, "{what}");
        }
    }

    #[test]
    fn it_is_known_within_the_most_bytes() {
        for (what, byte) in [("a method", b'A'), ("a blank", b'\r'), ("TLS", 22), ("zero", 0)] {
            assert_eq!(name(&vec![byte; MOST]), Sniffed::Nothing, "{what}");
        }
        let mut long = b"GET / HTTP/1.1\r\nCookie: ".to_vec();
        long.resize(MOST - 1, b'x');
        assert_eq!(name(&long), Sniffed::More);
        long.push(b'x');
        assert_eq!(name(&long), Sniffed::Nothing);
        let large = hello(&[(21, vec![0; 17_000]), server_name(b"a.example")], 16_384);
        assert_eq!(name(&large), Sniffed::Nothing);
    }

    /// Bytes that once were found to break a reader somewhere, and mutations of good ones.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let good = prop::sample::select(vec![
            sni("www.example.com"),
            hello(&[server_name(b"www.example.com")], 7),
            b"GET http://u@www.example.com:80/ HTTP/1.1\r\nHost: other.example\r\n\r\n".to_vec(),
            b"CONNECT www.example.com:443 HTTP/1.1\r\n\r\n".to_vec(),
        ]);
        let mutated =
            (good, prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), any::<usize>())
                .prop_map(|(mut bytes, changes, cut)| {
                    for (at, byte) in changes {
                        let at = at % bytes.len();
                        bytes[at] = byte;
                    }
                    bytes.truncate(cut % (bytes.len() + 1));
                    bytes
                });
        let any = prop::collection::vec(any::<u8>(), 0..600);
        let tls = any.clone().prop_map(|rest| [&[22, 3, 1, 0, 200][..], &rest].concat());
        prop_oneof![4 => mutated, 1 => any, 2 => tls]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// No byte panics, and what was said once stays.
        #[test]
        fn more_bytes_never_change_an_answer(bytes in hostile()) {
            let mut said = Sniffed::More;
            for end in 0..=bytes.len() {
                let now = name(&bytes[..end]);
                if said != Sniffed::More {
                    prop_assert_eq!(&said, &now, "at byte {}", end);
                }
                said = now;
            }
            if let Sniffed::Name(name) = said {
                prop_assert_eq!(policy::name(&name.text).ok(), Some(name.text));
            }
        }
    }

    /// Inputs of the kinds that have broken readers of these two protocols.
    #[test]
    fn what_broke_others() {
        let head = hello(&[server_name(b"a.example")], 16_384);
        let with = |at: usize, bytes: &[u8]| {
            let mut copy = head.clone();
            copy[at..at + bytes.len()].copy_from_slice(bytes);
            copy
        };
        // Where the fields of `hello` begin.
        let (message, session, ciphers, extensions) = (6, 43, 76, 84);
        for (what, bytes) in [
            ("a record of no bytes", vec![22, 3, 1, 0, 0, 22, 3, 1, 0, 0]),
            ("a record that is too large", with(3, &[0x41, 0])),
            ("another version's record", with(1, &[2])),
            ("another message", with(5, &[2])),
            ("a message longer than is looked at", with(message, &[0xff, 0xff, 0xff])),
            ("a message shorter than its head", with(message, &[0, 0, 1])),
            ("a session longer than may be", with(session, &[33])),
            ("ciphers that go on", with(ciphers, &[0xff, 0xfe])),
            ("extensions that go on", with(extensions, &[0xff, 0xff])),
            ("an extension that goes on", with(extensions + 4, &[0xff, 0xff])),
            ("a list that goes on", with(extensions + 6, &[0xff, 0xff])),
            ("a name that goes on", with(extensions + 9, &[0xff, 0xff])),
            ("an empty list", hello(&[(0, vec![0, 0])], 16_384)),
            ("no list", hello(&[(0, vec![])], 16_384)),
            ("two of them", hello(&[server_name(b"a.example"), server_name(b"b.example")], 16_384)),
            ("another kind of name", hello(&[(0, vec![0, 4, 1, 0, 1, b'a'])], 16_384)),
            ("no server name", hello(&[(51, vec![1; 40])], 16_384)),
            ("no extensions", hello(&[], 16_384)),
            ("an alert in between", {
                let mut pieces = hello(&[server_name(b"a.example")], 50);
                pieces[55] = 21;
                pieces
            }),
            ("a method of blanks", b"   / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec()),
            ("no target", b"GET  HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec()),
            ("a version of its own", b"GET / HTTP/1.x\r\nHost: a.example\r\n\r\n".to_vec()),
            ("no host", b"GET / HTTP/1.0\r\nAccept: */*\r\n\r\n".to_vec()),
            ("a blank before the colon", b"GET / HTTP/1.1\r\nHost : a.example\r\n\r\n".to_vec()),
            ("a folded host", b"GET / HTTP/1.1\r\nHost:\r\n a.example\r\n\r\n".to_vec()),
            ("two hosts in one", b"GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n".to_vec()),
            ("a port that is none", b"GET / HTTP/1.1\r\nHost: a.example:80x\r\n\r\n".to_vec()),
            ("an empty authority", b"GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec()),
        ] {
            assert_eq!(name(&bytes), Sniffed::Nothing, "{what}");
        }
        assert!(matches!(name(&head), Sniffed::Name(_)), "the control");
    }
}
