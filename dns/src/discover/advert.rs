//! Servers in router advertisements (RFC 8106), as the kernel passes their options on.
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

use super::Provenance;
use super::belief::Heard;
use super::links::Links;
use super::server::{self, Named};
use crate::descriptor::ready;

/// What routers have said.
#[derive(Debug)]
pub(super) struct Adverts {
    socket: AsyncFd<OwnedFd>,
    known: Vec<Known>,
}

/// One server of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    link: u32,
    server: Ipv6Addr,
    /// `None`: never.
    until: Option<Instant>,
}

/// The options of one advertisement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Advert {
    link: u32,
    /// Each with its lifetime in seconds.
    servers: Vec<(Ipv6Addr, u32)>,
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
            let address = server::address(known.server.into(), 0, false, Some(known.link));
            let named = Named { address, tls: false, name: None };
            match heard.iter_mut().find(|heard| heard.link == Some(known.link)) {
                Some(heard) => heard.servers.push(named),
                None => heard.push(Heard {
                    from: Provenance::RouterAdvertisement { link: known.link },
                    link: Some(known.link),
                    servers: vec![named],
                    domains: Vec::new(),
                    default_route: true,
                }),
            }
        }
        (heard, self.known.iter().filter_map(|known| known.until).min())
    }
}

/// Takes an advertisement in: whether it changed which servers there are.
fn hear(known: &mut Vec<Known>, advert: &Advert, now: Instant) -> bool {
    let mut changed = false;
    for &(server, lifetime) in &advert.servers {
        let at = known.iter().position(|k| k.link == advert.link && k.server == server);
        // RFC 8106 section 5.1: a lifetime of all ones is infinity, one of zero ends it.
        let until = (lifetime != u32::MAX).then(|| now + Duration::from_secs(lifetime.into()));
        match at {
            Some(at) if lifetime == 0 => {
                known.remove(at);
                changed = true;
            }
            Some(at) => known[at].until = until,
            None if lifetime == 0 => {}
            None => {
                let of_link = known.iter().filter(|k| k.link == advert.link).count();
                if of_link < PER_LINK && known.len() < MOST {
                    known.push(Known { link: advert.link, server, until });
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
    let mut servers = Vec::new();
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
            servers.extend(addresses.iter().map(|octets| (Ipv6Addr::from(*octets), lifetime)));
        }
    }
    (link > 0 && !servers.is_empty()).then_some(Advert { link, servers })
}

/// `RTNLGRP_ND_USEROPT`
const GROUP: u32 = 20;
/// `RTM_NEWNDUSEROPT`
const NEW_OPTION: u16 = 68;
const AF_INET6: u8 = 10;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// The Recursive DNS Server option.
const RDNSS: u8 = 25;
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

    #[test]
    fn options_of_advertisements() {
        let one = rdnss(600, &["fe80::53"]);
        let two = rdnss(9, &["2001:db8::1", "2001:db8::2"]);
        let search = [31, 2, 0, 0, 0, 0, 0, 9, 1, b'a', 0, 0, 0, 0, 0, 0];
        #[rustfmt::skip]
        let cases = [
            ("one server", message(&one), "fe80::53/600"),
            ("two servers", message(&two), "2001:db8::1/9 2001:db8::2/9"),
            ("behind another option", message(&[&search[..], &one].concat()), "fe80::53/600"),
            ("no server", message(&search), ""),
            ("a length of nothing", message(&[&[RDNSS, 0, 0, 0][..], &one].concat()), ""),
            ("a length beyond the end", message(&[RDNSS, 3, 0, 0, 0, 0, 0, 9]), ""),
            ("too short for a server", message(&[RDNSS, 1, 0, 0, 0, 0, 0, 9]), ""),
            ("cut off", message(&one)[..40].to_vec(), ""),
            ("nothing", Vec::new(), ""),
        ];
        for (name, message, expected) in cases {
            let shown: Vec<String> = parse(&message)
                .map(|advert| advert.servers)
                .unwrap_or_default()
                .iter()
                .map(|(server, lifetime)| format!("{server}/{lifetime}"))
                .collect();
            assert_eq!(shown.join(" "), expected, "{name}");
        }
        // Any byte may be anything.
        let whole = message(&two);
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
            let servers = vec![("2001:db8::1".parse().unwrap(), lifetime)];
            let changed = hear(&mut known, &Advert { link: 3, servers }, start);
            (changed, known.first().map(|known| known.until))
        };
        let at = |seconds| Some(Some(start + Duration::from_secs(seconds)));
        assert_eq!(say(0), (false, None), "withdrawn and not known");
        assert_eq!(say(60), (true, at(60)));
        assert_eq!(say(90), (false, at(90)), "refreshed");
        assert_eq!(say(u32::MAX), (false, Some(None)), "for ever");
        assert_eq!(say(0), (true, None), "withdrawn");
        let servers = (0..100).map(|n| (Ipv6Addr::from(n), 60)).collect();
        assert!(hear(&mut known, &Advert { link: 3, servers }, start));
        assert_eq!(known.len(), PER_LINK);
    }
}
