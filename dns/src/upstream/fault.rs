//! Why a question has no answer.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;

use hickory_net::NetError;
use rustix::io::Errno;
use smallvec::SmallVec;
use thiserror::Error;

use crate::server::Server;
use crate::tls::CertificateFault;

/// Why one server gave no answer.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Fault {
    /// It was asked and said nothing in time.
    #[error("timed out")]
    TimedOut,
    /// The kernel says that nobody listens there, that no way leads there, and the like.
    #[error("{}", Shown(*.0))]
    Kernel(Errno),
    /// The connection ended before the answer.
    #[error("the connection was closed")]
    Closed,
    /// It is not who it must be. No query was sent.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// TLS failed otherwise: versions, or it does not want us.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// HTTP says something other than a DNS answer.
    #[error("no DNS answer over HTTP")]
    Http,
    /// What came is no DNS message, or answers another question.
    #[error("not an answer")]
    Garbage,
    /// Answers of somebody else came for it, too many to go on.
    #[error("forged answers")]
    Forged,
    /// Its own name has no address at the resolver's other servers.
    #[error("its name has no address at the resolver's other servers")]
    NoAddress,
    /// Too many questions are open.
    #[error("too many open questions")]
    Busy,
}

impl Fault {
    /// A word for it, for reports: it stays the same.
    pub fn word(&self) -> &'static str {
        match self {
            Self::TimedOut => "timed-out",
            Self::Kernel(Errno::CONNREFUSED) => "refused",
            Self::Kernel(Errno::NETUNREACH) => "net-unreachable",
            Self::Kernel(Errno::HOSTUNREACH) => "host-unreachable",
            Self::Kernel(_) => "kernel",
            Self::Closed => "closed",
            Self::Certificate(CertificateFault::Expired) => "certificate-expired",
            Self::Certificate(CertificateFault::NotYetValid) => "certificate-not-yet-valid",
            Self::Certificate(CertificateFault::UnknownIssuer) => "certificate-unknown-issuer",
            Self::Certificate(CertificateFault::WrongName) => "certificate-wrong-name",
            Self::Certificate(CertificateFault::Revoked) => "certificate-revoked",
            Self::Certificate(CertificateFault::BadSignature) => "certificate-bad-signature",
            Self::Certificate(CertificateFault::Unusable) => "certificate-unusable",
            Self::Tls(_) => "tls",
            Self::Http => "http",
            Self::Garbage => "garbage",
            Self::Forged => "forged",
            Self::NoAddress => "no-address",
            Self::Busy => "busy",
        }
    }
}

/// An errno in the words of the others.
struct Shown(Errno);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Errno::CONNREFUSED => f.write_str("refused"),
            Errno::NETUNREACH => f.write_str("network unreachable"),
            Errno::HOSTUNREACH => f.write_str("host unreachable"),
            errno => fmt::Display::fmt(&errno, f),
        }
    }
}

impl From<&io::Error> for Fault {
    fn from(error: &io::Error) -> Self {
        if let Some(errno) = Errno::from_io_error(error) {
            return match errno {
                Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => Self::Closed,
                Errno::TIMEDOUT => Self::TimedOut,
                errno => Self::Kernel(errno),
            };
        }
        let mut inner = error.get_ref().map(|error| error as &(dyn std::error::Error + 'static));
        while let Some(error) = inner {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Self::from(tls);
            }
            inner = error.source();
        }
        if error.kind() == io::ErrorKind::TimedOut { Self::TimedOut } else { Self::Closed }
    }
}

impl From<&rustls::Error> for Fault {
    fn from(error: &rustls::Error) -> Self {
        if let rustls::Error::InvalidCertificate(error) = error {
            return Self::Certificate(error.clone().into());
        }
        Self::Tls(error.clone())
    }
}

impl From<&NetError> for Fault {
    fn from(error: &NetError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "another crate's, and it grows")]
        match error {
            NetError::Io(error) => Self::from(&**error),
            NetError::Timeout => Self::TimedOut,
            NetError::Busy => Self::Busy,
            NetError::RustlsError(error) => Self::from(error),
            NetError::Proto(_) | NetError::QuicMessageIdNot0(_) => Self::Garbage,
            NetError::Msg(_) | NetError::RequestTooLarge | NetError::ParseInt(_) => Self::Http,
            NetError::H2(error) => match error.source().and_then(|e| e.downcast_ref()) {
                Some(error) => Self::from(error as &io::Error),
                None => Self::Closed,
            },
            NetError::QuinnConnection(quinn::ConnectionError::TimedOut) => Self::TimedOut,
            _ => Self::Closed,
        }
    }
}

/// One server that was asked in vain.
#[derive(Debug, Clone, PartialEq)]
pub struct Try {
    /// Which.
    pub server: Arc<Server>,
    /// Why.
    pub fault: Fault,
}

/// No server of a resolver has answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Each server that was asked, once, with the last of its faults. Empty: there is none.
    pub tries: SmallVec<[Try; 2]>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Try { server, fault }) in self.tries.iter().enumerate() {
            let start = if i == 0 { "" } else { "; " };
            write!(f, "{start}{server}: {fault}")?;
        }
        if self.tries.is_empty() { f.write_str("no server") } else { Ok(()) }
    }
}

impl std::error::Error for Failure {}
