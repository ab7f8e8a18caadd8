//! Servers and search domains in router advertisements (RFC 8106), as the kernel passes their
//! options on.
//!
//! The kernel tells of each advertisement as it comes and keeps nothing of these options, so what
//! is known is what was heard since this was opened, for as long as the option says.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;

use super::belief::Heard;
use super::links::Links;
use super::server::{self, Named};
use super::{Domain, Provenance};
use crate::descriptor::ready;
use crate::name::Text;

/// What routers have said.
#[derive(Debug)]
pub(super) struct Adverts {
    socket: AsyncFd<OwnedFd>,
    known: Vec<Known>,
}

/// One server or domain of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    link: u32,
    what: What,
    /// `None`: never.
    until: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Server(Ipv6Addr),
    /// Names are completed by it.
    Domain(Domain),
}

/// The options of one advertisement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Advert {
    link: u32,
    /// Each with its lifetime in seconds.
    says: Vec<(What, u32)>,
}

impl Adverts {
    /// Listens in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 1 << (GROUP - 1)))?;
        let socket = ready(socket)?;
        Ok(Self { socket, known: Vec::new() })
    }

    /// Waits until a router has said something new. Loses nothing when it is dropped.
    pub(super) async fn changed(&mut self) -> Result<(), Errno> {
        loop {
            let mut ready = self.socket.readable().await.map_err(|_| Errno::IO)?;
            let mut buffer = [0_u8; 8192];
            match recv(self.socket.as_fd(), &mut buffer, RecvFlags::empty()) {
                Ok((length, _)) => {
                    let changed = parse(&buffer[..length.min(8192)])
                        .is_some_and(|advert| hear(&mut self.known, &advert, Instant::now()));
                    if changed {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                // What was lost comes again.
                Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What holds now, and when that changes by itself.
    pub(super) fn heard(&mut self, links: &Links, now: Instant) -> (Vec<Heard>, Option<Instant>) {
        self.known.retain(|known| known.until.is_none_or(|until| until > now));
        self.known.retain(|known| links.is_there(known.link));
        let mut heard: Vec<Heard> = Vec::new();
        for known in &self.known {
            let at = heard.iter().position(|heard| heard.link == Some(known.link));
            let at = at.unwrap_or_else(|| {
                heard.push(Heard {
                    from: Provenance::RouterAdvertisement { link: known.link },
                    link: Some(known.link),
                    servers: Vec::new(),
                    domains: Vec::new(),
                    default_route: true,
                });
                heard.len() - 1
            });
            match &known.what {
                What::Server(ip) => {
                    let address = server::address((*ip).into(), 0, false, Some(known.link));
                    heard[at].servers.push(Named { address, tls: false, name: None });
                }
                What::Domain(domain) => heard[at].domains.push(domain.clone()),
            }
        }
        (heard, self.known.iter().filter_map(|known| known.until).min())
    }
}

/// Takes an advertisement in: whether it changed which servers and domains there are.
fn hear(known: &mut Vec<Known>, advert: &Advert, now: Instant) -> bool {
    let mut changed = false;
    for (what, lifetime) in &advert.says {
        let lifetime = *lifetime;
        let at = known.iter().position(|k| k.link == advert.link && k.what == *what);
        // RFC 8106 sections 5.1 and 5.2: a lifetime of all ones is infinity, one of zero ends it.
        let until = (lifetime != u32::MAX).then(|| now + Duration::from_secs(lifetime.into()));
        match at {
            Some(at) if lifetime == 0 => {
                known.remove(at);
                changed = true;
            }
            Some(at) => known[at].until = until,
            None if lifetime == 0 => {}
            None => {
                let kind = std::mem::discriminant(what);
                let is_alike =
                    |k: &&Known| k.link == advert.link && std::mem::discriminant(&k.what) == kind;
                if known.iter().filter(is_alike).count() < PER_LINK && known.len() < MOST {
                    known.push(Known { link: advert.link, what: what.clone(), until });
                    changed = true;
                }
            }
        }
    }
    changed
}

/// Reads an `RTM_NEWNDUSEROPT` message: a `struct nlmsghdr`, a `struct nduseroptmsg`, and the
/// advertisement's options (RFC 4861 section 4.6).
fn parse(message: &[u8]) -> Option<Advert> {
    let u16_at = |at: usize| message.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b));
    let u32_at = |at: usize| message.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
    let length = usize::try_from(u32_at(0)?).ok()?;
    let message_of_kernel = message.get(..length)?;
    let (family, icmp_type) = (*message.get(16)?, *message.get(24)?);
    if u16_at(4)? != NEW_OPTION || family != AF_INET6 || icmp_type != ROUTER_ADVERTISEMENT {
        return None;
    }
    let link = u32_at(20)?;
    let options_length = usize::from(u16_at(18)?);
    let mut options = message_of_kernel.get(32..)?.get(..options_length)?;
    let mut says = Vec::new();
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        if length == 0 || length > options.len() {
            break;
        }
        let (option, rest) = options.split_at(length);
        options = rest;
        // RFC 8106 section 5.1: an odd length of at least three.
        if kind == RDNSS && length >= 24 {
            let lifetime = option[4..].first_chunk().map(|b| u32::from_be_bytes(*b))?;
            let addresses = option[8..].as_chunks::<16>().0;
            let server = |octets: &[u8; 16]| (What::Server(Ipv6Addr::from(*octets)), lifetime);
            says.extend(addresses.iter().map(server));
        }
        // Section 5.2: an option of at least two units.
        if kind == DNSSL && length >= 16 {
            let lifetime = option[4..].first_chunk().map(|b| u32::from_be_bytes(*b))?;
            says.extend(domains(&option[8..]).map(|domain| (What::Domain(domain), lifetime)));
        }
    }
    (link > 0 && !says.is_empty()).then_some(Advert { link, says })
}

/// The names of a search list: each to its empty label, none compressed, zeros behind the last.
fn domains(mut list: &[u8]) -> impl Iterator<Item = Domain> {
    std::iter::from_fn(move || {
        let (text, length) = Text::read(list).filter(|(text, _)| !text.is_empty())?;
        list = &list[length..];
        Some(text)
    })
    // What no file could name is no domain here either.
    .filter_map(|text| server::domain(&text))
}

/// `RTNLGRP_ND_USEROPT`
const GROUP: u32 = 20;
/// `RTM_NEWNDUSEROPT`
const NEW_OPTION: u16 = 68;
const AF_INET6: u8 = 10;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// The Recursive DNS Server option.
const RDNSS: u8 = 25;
/// The DNS Search List option.
const DNSSL: u8 = 31;
/// RFC 8106 section 5.3.1 asks for at least three.
const PER_LINK: usize = 8;
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A message about `options` of link 3.
    fn message(options: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend((32 + options.len() as u32).to_ne_bytes());
        message.extend(NEW_OPTION.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([AF_INET6, 0]);
        message.extend((options.len() as u16).to_ne_bytes());
        message.extend(3_u32.to_ne_bytes());
        message.extend([ROUTER_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(options);
        message
    }

    fn rdnss(lifetime: u32, servers: &[&str]) -> Vec<u8> {
        let mut option = vec![RDNSS, 1 + 2 * servers.len() as u8, 0, 0];
        option.extend(lifetime.to_be_bytes());
        option.extend(servers.iter().flat_map(|s| s.parse::<Ipv6Addr>().unwrap().octets()));
        option
    }

    /// A search list, filled up to whole units.
    fn dnssl(lifetime: u32, names: &[u8]) -> Vec<u8> {
        let units = (8 + names.len()).div_ceil(8);
        let mut option = vec![DNSSL, units as u8, 0, 0];
        option.extend(lifetime.to_be_bytes());
        option.extend(names);
        option.resize(8 * units, 0);
        option
    }

    #[test]
    fn options_of_advertisements() {
        let one = rdnss(600, &["fe80::53"]);
        let two = rdnss(9, &["2001:db8::1", "2001:db8::2"]);
        let prefix = [3, 2, 0, 0, 0, 0, 0, 9, 1, b'a', 0, 0, 0, 0, 0, 0];
        let search = dnssl(9, b"\x04Corp\x07example\0\x01a\0");
        #[rustfmt::skip]
        let cases = [
            ("one server", message(&one), "fe80::53/600"),
            ("two servers", message(&two), "2001:db8::1/9 2001:db8::2/9"),
            ("behind another option", message(&[&prefix[..], &one].concat()), "fe80::53/600"),
            ("no server", message(&prefix), ""),
            ("domains", message(&search), "corp.example/9 a/9"),
            ("both", message(&[&search[..], &one].concat()), "corp.example/9 a/9 fe80::53/600"),
            ("the root", message(&dnssl(9, b"\0")), ""),
            ("a domain without its end", message(&dnssl(9, b"\x01a\0\x0bno.end.here")), "a/9"),
            ("a pointer", message(&dnssl(9, b"\xc0\x0c")), ""),
            ("no name of a domain", message(&dnssl(9, b"\x03a.b\0\x01\x07\0\x01c\0")), "c/9"),
            ("a length of nothing", message(&[&[RDNSS, 0, 0, 0][..], &one].concat()), ""),
            ("a length beyond the end", message(&[RDNSS, 3, 0, 0, 0, 0, 0, 9]), ""),
            ("too short for a server", message(&[RDNSS, 1, 0, 0, 0, 0, 0, 9]), ""),
            ("cut off", message(&one)[..40].to_vec(), ""),
            ("nothing", Vec::new(), ""),
        ];
        for (name, message, expected) in cases {
            let shown: Vec<String> = parse(&message)
                .map(|advert| advert.says)
                .unwrap_or_default()
                .iter()
                .map(|(what, lifetime)| match what {
                    What::Server(server) => format!("{server}/{lifetime}"),
                    What::Domain(domain) => format!("{}/{lifetime}", domain.name),
                })
                .collect();
            assert_eq!(shown.join(" "), expected, "{name}");
        }
        // Any byte may be anything.
        let whole = message(&[&two[..], &search].concat());
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                let _ = parse(&broken);
            }
        }
    }

    #[test]
    fn lifetimes() {
        let start = Instant::now();
        let mut known = Vec::new();
        let mut say = |lifetime| {
            let says = vec![(What::Server("2001:db8::1".parse().unwrap()), lifetime)];
            let changed = hear(&mut known, &Advert { link: 3, says }, start);
            (changed, known.first().map(|known| known.until))
        };
        let at = |seconds| Some(Some(start + Duration::from_secs(seconds)));
        assert_eq!(say(0), (false, None), "withdrawn and not known");
        assert_eq!(say(60), (true, at(60)));
        assert_eq!(say(90), (false, at(90)), "refreshed");
        assert_eq!(say(u32::MAX), (false, Some(None)), "for ever");
        assert_eq!(say(0), (true, None), "withdrawn");
        let says = (0..100).map(|n| (What::Server(Ipv6Addr::from(n)), 60)).collect();
        assert!(hear(&mut known, &Advert { link: 3, says }, start));
        assert_eq!(known.len(), PER_LINK);
        let domain = |n| What::Domain(server::domain(&format!("d{n}.example")).unwrap());
        let says = (0..100).map(|n| (domain(n), 60)).collect();
        assert!(hear(&mut known, &Advert { link: 3, says }, start));
        assert_eq!(known.len(), 2 * PER_LINK, "each kind has its part");
    }
}
