//! The TCP connections that others have opened to this host before there were marks.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rustix::io::Errno;

use super::nft;
use crate::netlink;
use crate::owner::open_diagnostics;
use crate::source::LookupError;

/// A connection by its ends.
type Ends = (SocketAddr, SocketAddr);

/// Every connection whose local end is a listening socket's. Which side opened a connection is
/// not to be asked of the kernel; an own one from a port that a server listens on is taken for
/// another's, and is rare.
pub(super) fn accepted() -> Result<Vec<Ends>, Errno> {
    let socket = open_diagnostics()
        .map_err(|error| if let LookupError::Socket(errno) = error { errno } else { Errno::IO })?;
    let mut listening = HashSet::new();
    let mut connected = Vec::new();
    for (sequence, family) in [(1, libc::AF_INET), (2, libc::AF_INET6)] {
        let request = InetRequest {
            family: family as u8,
            protocol: libc::IPPROTO_TCP as u8,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all() - StateFlags::CLOSE - StateFlags::SYN_SENT,
            socket_id: match family {
                libc::AF_INET => SocketId::new_v4(),
                _ => SocketId::new_v6(),
            },
        };
        let dumped = netlink::dump(&socket, sequence, BY_FAMILY, &request, |_, message| {
            let Some(found) = parse(message) else { return };
            if found.listens {
                listening.insert(found.ends.0);
            } else {
                connected.push(found.ends);
            }
        });
        match dumped {
            Ok(_) => {}
            // No IPv6 here.
            Err(Errno::NOENT | Errno::OPNOTSUPP) if family == libc::AF_INET6 => {}
            Err(errno) => return Err(errno),
        }
    }
    let listens = |end: &SocketAddr| {
        let port = end.port();
        let any_v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        // An IPv6 wildcard may listen for IPv4 too.
        let any_v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        listening.contains(end)
            || listening.contains(&any_v6)
            || (end.is_ipv4() && listening.contains(&any_v4))
    };
    connected.retain(|(here, there)| {
        listens(here) && here.is_ipv4() == there.is_ipv4() && !here.ip().is_loopback()
    });
    connected.sort();
    connected.dedup();
    Ok(connected)
}

/// The text that adds `connections` to the table's sets; empty where there are none.
pub(super) fn elements(connections: &[Ends]) -> String {
    let mut text = String::new();
    for (set, v4) in [("accepted4", true), ("accepted6", false)] {
        let of_set: Vec<String> = connections
            .iter()
            .filter(|(here, _)| here.is_ipv4() == v4)
            .map(|(here, there)| {
                format!("{} . {} . {} . {}", here.ip(), here.port(), there.ip(), there.port())
            })
            .collect();
        if !of_set.is_empty() {
            let table = nft::TABLE;
            let _ = writeln!(text, "add element inet {table} {set} {{ {} }}", of_set.join(", "));
        }
    }
    text
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    ends: Ends,
    listens: bool,
}

/// Reads a `struct inet_diag_msg`.
fn parse(message: &[u8]) -> Option<Found> {
    let port = |at: usize| message.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b));
    let address = |at: usize| {
        let octets: &[u8; 16] = message.get(at..)?.first_chunk()?;
        match i32::from(message[0]) {
            libc::AF_INET => octets.first_chunk::<4>().map(|v4| IpAddr::from(*v4)),
            libc::AF_INET6 => Some(Ipv6Addr::from(*octets).to_canonical()),
            _ => None,
        }
    };
    let here = SocketAddr::new(address(8)?, port(4)?);
    let there = SocketAddr::new(address(24)?, port(6)?);
    Some(Found { ends: (here, there), listens: message.get(1) == Some(&LISTEN) })
}

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
/// `TCP_LISTEN`
const LISTEN: u8 = 10;
