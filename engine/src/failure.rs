//! Why a far side could not be reached, in the terms the app will see.

use std::fmt;

/// What the far side or the local network answered. The engine turns it into the
/// packet that gives the app's socket the same error (`docs/architecture.md`, errors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// `ECONNREFUSED`: RST, or ICMP port unreachable.
    Refused,
    /// `ECONNRESET` after the connection stood.
    Reset,
    /// `ENETUNREACH`, `ENETDOWN`, `ENODEV`: no usable route.
    NetUnreachable,
    /// `EHOSTUNREACH`: the host did not answer on its link, or a router said so.
    HostUnreachable,
    /// `EACCES`, `EPERM`: forbidden by a router or by this host's own rules.
    Prohibited,
    /// `ETIMEDOUT`: silence; the app's own timer tells it.
    TimedOut,
    /// `EMSGSIZE`: the path takes packets of at most this many bytes (IP header included).
    TooBig {
        /// The path's MTU in bytes.
        mtu: u16,
    },
    /// `EMFILE`, `ENOBUFS`, `EADDRNOTAVAIL`…: this host ran out of something.
    Exhausted,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::NetUnreachable => "network unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::Prohibited => "prohibited",
            Self::TimedOut => "timed out",
            Self::TooBig { .. } => "message too big",
            Self::Exhausted => "out of resources",
        })
    }
}
