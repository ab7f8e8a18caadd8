//! What a failed call or an ICMP message means to the app.
//!
//! # Theory of operation
//!
//! The kernel tells of a failure in two ways: as the errno of a call, and, for datagram
//! sockets with `IP_RECVERR`, as a record in the socket's error queue with the ICMP message
//! that arrived. Both become a [`Failure`], which the engine turns back into the packet that
//! gives the app's own socket the same errno. The two tables below are the only place where
//! that is decided.

use std::net::IpAddr;

use engine::Failure;
use rustix::io::Errno;

/// Why a socket towards the far side could not be made or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EgressError {
    /// An IPv4 destination in IPv6 clothes: it would pass IPv4 rules unjudged.
    #[error("an IPv4-mapped IPv6 destination is not carried")]
    Mapped,
    /// Source and destination are of different IP versions.
    #[error("source and destination are of different IP versions")]
    Versions,
    /// This host lets the user open no socket that carries echo requests.
    #[error("echo requests are not open to this user (net.ipv4.ping_group_range, or CAP_NET_RAW)")]
    EchoUnsupported,
    /// A call failed.
    #[error("{call}: {errno}")]
    Call {
        /// What was being done.
        call: Call,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl EgressError {
    /// What the app is to see. `mtu` is the path's, for the one failure that tells it.
    pub fn failure(&self, mtu: u16) -> Failure {
        match self {
            Self::Mapped | Self::Versions => Failure::NetUnreachable,
            Self::EchoUnsupported => Failure::Prohibited,
            Self::Call { errno, .. } => failure(*errno, mtu),
        }
    }
}

/// A step on the way to a connected socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `socket()`.
    Socket,
    /// A socket option that every supported kernel has.
    Option,
    /// `SO_MARK`.
    Mark,
    /// `SO_BINDTOIFINDEX`.
    Device,
    /// `bind()`.
    Bind,
    /// `connect()`.
    Connect,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Socket => "cannot open a socket",
            Self::Option => "cannot set a socket option",
            Self::Mark => "cannot mark the socket (CAP_NET_ADMIN)",
            Self::Device => "cannot bind the socket to its device",
            Self::Bind => "cannot bind the socket to its source address",
            Self::Connect => "cannot connect",
        })
    }
}

/// The failure behind an errno. `mtu` is the path's, where `errno` is `EMSGSIZE`.
pub fn failure(errno: Errno, mtu: u16) -> Failure {
    match errno {
        // `ENOPROTOOPT` is how a socket learns of "protocol unreachable".
        Errno::CONNREFUSED | Errno::NOPROTOOPT => Failure::Refused,
        Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE | Errno::NOTCONN => Failure::Reset,
        // `EINVAL` is the answer of a `blackhole` route and of a source that is no longer ours.
        Errno::NETUNREACH
        | Errno::NETDOWN
        | Errno::NODEV
        | Errno::NXIO
        | Errno::NONET
        | Errno::AFNOSUPPORT
        | Errno::INVAL => Failure::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::PROTO | Errno::OPNOTSUPP => {
            Failure::HostUnreachable
        }
        Errno::ACCESS | Errno::PERM => Failure::Prohibited,
        Errno::TIMEDOUT => Failure::TimedOut,
        Errno::MSGSIZE => Failure::TooBig { mtu },
        Errno::ADDRNOTAVAIL
        | Errno::ADDRINUSE
        | Errno::MFILE
        | Errno::NFILE
        | Errno::NOBUFS
        | Errno::NOMEM
        | Errno::AGAIN => Failure::Exhausted,
        // Whatever a later kernel invents: the far side was not reached.
        _ => Failure::HostUnreachable,
    }
}

/// The errno of a failure, for our own sockets that are none of the kernel's.
pub fn errno(failure: Failure) -> Errno {
    match failure {
        Failure::Refused => Errno::CONNREFUSED,
        Failure::Reset => Errno::CONNRESET,
        Failure::NetUnreachable => Errno::NETUNREACH,
        Failure::HostUnreachable => Errno::HOSTUNREACH,
        Failure::Prohibited => Errno::ACCESS,
        Failure::TimedOut => Errno::TIMEDOUT,
        Failure::TooBig { .. } => Errno::MSGSIZE,
        Failure::Exhausted => Errno::NOBUFS,
    }
}

/// An ICMP or ICMPv6 message as the error queue of a socket tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// Whether it is an ICMPv6 message.
    pub v6: bool,
    /// The ICMP type.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
}

/// Where an entry of the error queue came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This host refused a send; the call said so as well.
    Local,
    /// A message from the network.
    Icmp(IcmpError),
    /// Neither: a transmit timestamp, a zero-copy completion, or what a later kernel adds.
    Other,
}

impl Origin {
    /// From `ee_origin`, `ee_type` and `ee_code` of `struct sock_extended_err`.
    pub fn new(origin: u8, kind: u8, code: u8) -> Self {
        match origin {
            ORIGIN_LOCAL => Self::Local,
            ORIGIN_ICMP => Self::Icmp(IcmpError { v6: false, kind, code }),
            ORIGIN_ICMP6 => Self::Icmp(IcmpError { v6: true, kind, code }),
            _ => Self::Other,
        }
    }
}

impl IcmpError {
    /// The failure behind the message; `None` where it is none (a source quench, a redirect).
    /// `info` is the MTU of "fragmentation needed" and "packet too big".
    pub fn failure(self, info: u32) -> Option<Failure> {
        let mtu = u16::try_from(info).unwrap_or(u16::MAX);
        match (self.v6, self.kind, self.code) {
            // RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1
            (false, 3, 0 | 6 | 9 | 11) => Some(Failure::NetUnreachable),
            (false, 3, 2 | 3) => Some(Failure::Refused),
            (false, 3, 4) => Some(Failure::TooBig { mtu }),
            (false, 3, 10 | 13 | 14 | 15) => Some(Failure::Prohibited),
            (false, 3, _) => Some(Failure::HostUnreachable),
            // Time exceeded and parameter problem: EHOSTUNREACH and EPROTO to a socket.
            (false, 11 | 12, _) => Some(Failure::HostUnreachable),
            // RFC 4443 3.1 to 3.4
            (true, 1, 0) => Some(Failure::NetUnreachable),
            (true, 1, 1 | 5 | 6) => Some(Failure::Prohibited),
            (true, 1, 4) => Some(Failure::Refused),
            (true, 1, _) => Some(Failure::HostUnreachable),
            (true, 2, _) => Some(Failure::TooBig { mtu }),
            // Parameter problem 1, an unknown next header, is how v6 says "protocol unreachable".
            (true, 4, 1) => Some(Failure::Refused),
            (true, 3 | 4, _) => Some(Failure::HostUnreachable),
            _ => None,
        }
    }
}

/// Whether `address` is IPv4 in IPv6 clothes (`::ffff:0:0/96`).
pub(super) fn is_mapped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    }
}

const ORIGIN_LOCAL: u8 = libc::SO_EE_ORIGIN_LOCAL;
const ORIGIN_ICMP: u8 = libc::SO_EE_ORIGIN_ICMP;
const ORIGIN_ICMP6: u8 = libc::SO_EE_ORIGIN_ICMP6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_table() {
        #[rustfmt::skip]
        let cases = [
            (Errno::CONNREFUSED, Failure::Refused),
            (Errno::NOPROTOOPT, Failure::Refused),
            (Errno::CONNRESET, Failure::Reset),
            (Errno::PIPE, Failure::Reset),
            (Errno::NETUNREACH, Failure::NetUnreachable),
            (Errno::NETDOWN, Failure::NetUnreachable),
            (Errno::NODEV, Failure::NetUnreachable),
            (Errno::INVAL, Failure::NetUnreachable),
            (Errno::HOSTUNREACH, Failure::HostUnreachable),
            (Errno::HOSTDOWN, Failure::HostUnreachable),
            (Errno::ACCESS, Failure::Prohibited),
            (Errno::PERM, Failure::Prohibited),
            (Errno::TIMEDOUT, Failure::TimedOut),
            (Errno::MSGSIZE, Failure::TooBig { mtu: 1400 }),
            (Errno::ADDRNOTAVAIL, Failure::Exhausted),
            (Errno::ADDRINUSE, Failure::Exhausted),
            (Errno::MFILE, Failure::Exhausted),
            (Errno::NFILE, Failure::Exhausted),
            (Errno::NOBUFS, Failure::Exhausted),
            (Errno::NOMEM, Failure::Exhausted),
            (Errno::AGAIN, Failure::Exhausted),
            (Errno::XDEV, Failure::HostUnreachable),
        ];
        for (errno, expected) in cases {
            assert_eq!(failure(errno, 1400), expected, "{errno}");
            assert_eq!(failure(super::errno(expected), 1400), expected, "{expected:?}, and back");
        }
    }

    #[test]
    fn icmp_table() {
        #[rustfmt::skip]
        let cases = [
            ("4 net", (false, 3, 0), Some(Failure::NetUnreachable)),
            ("4 host", (false, 3, 1), Some(Failure::HostUnreachable)),
            ("4 protocol", (false, 3, 2), Some(Failure::Refused)),
            ("4 port", (false, 3, 3), Some(Failure::Refused)),
            ("4 frag needed", (false, 3, 4), Some(Failure::TooBig { mtu: 1300 })),
            ("4 source route", (false, 3, 5), Some(Failure::HostUnreachable)),
            ("4 net prohibited", (false, 3, 9), Some(Failure::NetUnreachable)),
            ("4 host prohibited", (false, 3, 10), Some(Failure::Prohibited)),
            ("4 filtered", (false, 3, 13), Some(Failure::Prohibited)),
            ("4 quench", (false, 4, 0), None),
            ("4 redirect", (false, 5, 1), None),
            ("4 ttl", (false, 11, 0), Some(Failure::HostUnreachable)),
            ("4 parameter", (false, 12, 0), Some(Failure::HostUnreachable)),
            ("6 net", (true, 1, 0), Some(Failure::NetUnreachable)),
            ("6 prohibited", (true, 1, 1), Some(Failure::Prohibited)),
            ("6 scope", (true, 1, 2), Some(Failure::HostUnreachable)),
            ("6 address", (true, 1, 3), Some(Failure::HostUnreachable)),
            ("6 port", (true, 1, 4), Some(Failure::Refused)),
            ("6 policy", (true, 1, 5), Some(Failure::Prohibited)),
            ("6 reject route", (true, 1, 6), Some(Failure::Prohibited)),
            ("6 too big", (true, 2, 0), Some(Failure::TooBig { mtu: 1300 })),
            ("6 hop limit", (true, 3, 0), Some(Failure::HostUnreachable)),
            ("6 next header", (true, 4, 1), Some(Failure::Refused)),
            ("6 informational", (true, 129, 0), None),
        ];
        for (name, (v6, kind, code), expected) in cases {
            assert_eq!(IcmpError { v6, kind, code }.failure(1300), expected, "{name}");
        }
        let absurd = IcmpError { v6: true, kind: 2, code: 0 };
        assert_eq!(absurd.failure(u32::MAX), Some(Failure::TooBig { mtu: u16::MAX }));
    }

    #[test]
    fn origin_table() {
        assert_eq!(Origin::new(1, 0, 0), Origin::Local);
        assert_eq!(Origin::new(2, 3, 1), Origin::Icmp(IcmpError { v6: false, kind: 3, code: 1 }));
        assert_eq!(Origin::new(3, 1, 4), Origin::Icmp(IcmpError { v6: true, kind: 1, code: 4 }));
        for other in [0, 4, 5, 6, 255] {
            assert_eq!(Origin::new(other, 3, 1), Origin::Other, "{other}");
        }
    }

    #[test]
    fn messages() {
        let error = EgressError::Call { call: Call::Device, errno: Errno::PERM };
        assert!(error.to_string().starts_with("cannot bind the socket to its device: "), "{error}");
        assert_eq!(error.failure(0), Failure::Prohibited);
    }
}
