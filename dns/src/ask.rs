//! What is asked of a resolver and what comes back: the seam between the plan and the
//! transports.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustix::io::Errno;
use thiserror::Error;

use crate::message::UDP_SIZE;
use crate::server::Transport;
use crate::tls::CertificateFault;
pub use crate::upstream::Reply;
use crate::upstream::{self, Fault};

/// How many resolvers there can be: one bit each in a [`ResolverSet`].
pub const MOST_RESOLVERS: u8 = 64;

/// Resolvers by bit: bit `n` is resolver `n`.
pub type ResolverSet = u64;

/// A named group of servers; below [`MOST_RESOLVERS`], 0 is `upstream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResolverId(pub u8);

impl ResolverId {
    /// The network's own servers.
    pub const UPSTREAM: Self = Self(0);

    /// The set of this resolver alone.
    pub const fn set(self) -> ResolverSet {
        1 << (self.0 % MOST_RESOLVERS)
    }
}

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By {
    /// The resolver that was asked.
    pub resolver: ResolverId,
    /// Its server that answered.
    pub server: SocketAddr,
    /// How that was asked.
    pub transport: Transport,
    /// From the question to its answer.
    pub took: Duration,
}

/// One question, class IN. Recursion is always desired, and AD is always set: the server
/// is to say whether it validated (RFC 6840 section 5.7). Id and 0x20 are the transport's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, in lower case.
    pub name: Name,
    /// The type, known or not.
    pub kind: RecordType,
    /// DNSSEC records are wanted (EDNS, RFC 3225).
    pub dnssec_ok: bool,
    /// The server is not to validate (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
}

impl Question {
    /// The query for a server, with id 0.
    pub fn query(&self) -> Message {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.authentic_data = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(Query::query(self.name.clone(), self.kind));
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_SIZE).set_dnssec_ok(self.dnssec_ok);
        message.set_edns(edns);
        message
    }
}

/// Why a resolver gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// No server answered in time.
    #[error("timed out")]
    TimedOut,
    /// ECONNREFUSED: nothing listens there.
    #[error("connection refused")]
    ConnectionRefused,
    /// ECONNRESET or the end of the stream before the answer.
    #[error("connection reset")]
    Reset,
    /// ENETUNREACH, EHOSTUNREACH and the like.
    #[error("unreachable")]
    Unreachable,
    /// EACCES, EPERM: forbidden on the way or by this host's own rules.
    #[error("prohibited")]
    Prohibited,
    /// The server's certificate was not trusted; no question was sent.
    #[error(transparent)]
    Certificate(CertificateFault),
    /// The TLS or QUIC handshake failed for another reason.
    #[error("handshake failed")]
    Handshake,
    /// An answer to another question, or none that can be read.
    #[error("malformed answer")]
    Malformed,
    /// A referral: this server does not recurse.
    #[error("not recursive")]
    NotRecursive,
    /// The server refuses or fails: SERVFAIL, REFUSED, FORMERR, NOTIMP and the rest that
    /// are neither NOERROR nor NXDOMAIN.
    #[error("server answered {0}")]
    Code(ResponseCode),
    /// The resolver has no server now.
    #[error("no servers")]
    NoServers,
    /// More questions in flight than the transport takes.
    #[error("too many questions in flight")]
    Busy,
}

/// The resolvers. A question goes to servers of the resolver that is named and to no other.
pub trait Upstreams: Send + Sync + 'static {
    /// Asks servers of `resolver` until one answers, all have failed or the time is over.
    /// Dropping the future gives the question up.
    fn ask(
        &self,
        resolver: ResolverId,
        question: &Question,
        within: Duration,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// Whether this resolver's way out is a tunnel.
    fn is_tunnel(&self, resolver: ResolverId) -> bool;
}

/// In a word: the fault of the first server that has one of its own. Silence is told where all
/// were silent.
impl From<&upstream::Failure> for Failure {
    fn from(failure: &upstream::Failure) -> Self {
        let faults = || failure.tries.iter().map(|tried| &tried.fault);
        let told = faults().find(|fault| **fault != Fault::TimedOut);
        match told.or_else(|| faults().next()) {
            None => Self::NoServers,
            Some(Fault::TimedOut) => Self::TimedOut,
            Some(Fault::Kernel(Errno::CONNREFUSED)) => Self::ConnectionRefused,
            Some(Fault::Kernel(Errno::ACCESS | Errno::PERM)) => Self::Prohibited,
            Some(Fault::Kernel(_) | Fault::NoAddress) => Self::Unreachable,
            Some(Fault::Closed) => Self::Reset,
            Some(Fault::Certificate(fault)) => Self::Certificate(*fault),
            Some(Fault::Tls(_)) => Self::Handshake,
            Some(Fault::Http | Fault::Garbage | Fault::Forged) => Self::Malformed,
            Some(Fault::Busy) => Self::Busy,
        }
    }
}
