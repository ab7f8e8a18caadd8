//! Far sides: small servers on threads inside a namespace, ended when dropped.

pub mod danted;
pub mod dns;
pub mod dns_dnsmasq;
pub mod dns_knot;
pub mod dns_lies;
pub mod dns_lies_http;
pub mod dns_lies_quic;
pub mod dns_lies_stream;
pub mod dns_quic;
pub mod dns_trust;
pub mod dns_unbound;
pub mod page;
pub mod pattern;
pub mod proxy;
pub mod real_proxy;
pub mod relay;
pub mod sshd;
pub mod tcp;
pub mod udp;
pub mod wireguard;
pub mod wireguard_pump;
pub mod wireguard_relay;

pub use dns::DnsServer;
pub use dns_dnsmasq::Dnsmasq;
pub use dns_knot::{Knot, Zone};
pub use dns_lies::{Lie, LyingServer};
pub use dns_lies_http::{HttpLie, lies_over_https};
pub use dns_lies_quic::{QuicLiar, QuicLie};
pub use dns_lies_stream::{StreamLie, lies_over, lies_over_tls};
pub use dns_quic::DoqServer;
pub use dns_trust::{Authority, Valid};
pub use dns_unbound::Unbound;
pub use sshd::Sshd;
pub use tcp::{Session, TcpServer};
pub use udp::UdpServer;
pub use wireguard::WireguardGo;
pub use wireguard_pump::Pump;
pub use wireguard_relay::{Relay, Wire};

use std::time::Duration;

/// How long a server thread sleeps in a system call before it looks whether it
/// should end.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long a connection may be silent before its thread gives up, so that no
/// thread outlives its test for long.
const SILENCE: Duration = Duration::from_secs(60);
