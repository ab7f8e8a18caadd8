//! Far sides: small servers on threads inside a namespace, ended when dropped.

pub mod dns;
pub mod dns_lies;
pub mod dns_quic;
pub mod dns_trust;
pub mod dns_unbound;
pub mod page;
pub mod pattern;
pub mod tcp;
pub mod udp;

pub use dns::DnsServer;
pub use dns_lies::{Lie, LyingServer};
pub use dns_quic::DoqServer;
pub use dns_trust::{Authority, Valid};
pub use dns_unbound::Unbound;
pub use tcp::{Session, TcpServer};
pub use udp::UdpServer;

use std::time::Duration;

/// How long a server thread sleeps in a system call before it looks whether it
/// should end.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long a connection may be silent before its thread gives up, so that no
/// thread outlives its test for long.
const SILENCE: Duration = Duration::from_secs(60);
