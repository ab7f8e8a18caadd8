//! What is known about a flow when it is judged.
//!
//! A fact is asked for only when the policy's answer depends on it, so each
//! one says whether it was asked yet. A flow keeps its facts for life: a
//! reload judges them again instead of asking the host a second time.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::{ResolverSet, WayId};

/// The transport that a policy can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// ICMP and ICMPv6 echo.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Something the engine may have to ask the host for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fact<T> {
    /// Nobody asked yet.
    #[default]
    Unasked,
    /// Asked, and there is no answer: a clause about it does not hold, negated or not.
    Unknown,
    /// The answer.
    Known(T),
}

impl<T> Fact<T> {
    /// The answer, where there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unasked | Self::Unknown => None,
        }
    }
}

impl<T> Fact<Arc<T>> {
    /// What came of asking.
    pub fn answered(answer: Option<T>) -> Self {
        answer.map_or(Self::Unknown, |value| Self::Known(Arc::new(value)))
    }
}

/// A network device's name, at most 15 bytes (`IFNAMSIZ` less the NUL).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceName([u8; 16]);

impl DeviceName {
    /// `None` where `name` is empty or longer than 15 bytes.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// The name without its padding.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..end]).unwrap_or("?")
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// The local address and device that a flow leaves this host with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Egress {
    /// The address the far side sees.
    pub address: IpAddr,
    /// The device the kernel sends it through.
    pub device: DeviceName,
}

/// Whose socket a local flow belongs to, as far as the kernel told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The socket's uid.
    pub uid: u32,
    /// The socket's cgroup (version 2) as a path from the root, `/` for the root itself.
    pub cgroup: Option<Arc<str>>,
    /// It is known to be of a proxy at an address of this host: such a flow goes directly,
    /// whatever the routes are, or it would be led to the proxy again.
    pub of_proxy: bool,
}

/// What a flow's destination is called, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Lower-case A-labels without the last dot.
    pub text: Arc<str>,
    /// Who says so.
    pub from: NameFrom,
}

impl Name {
    /// A name that an app asked for the destination with.
    pub fn asked(text: Arc<str>) -> Self {
        Self { text, from: NameFrom::Dns }
    }
}

/// Where a flow's name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameFrom {
    /// An answer that held the destination's address was given to that question.
    Dns,
    /// The server name of the flow's TLS ClientHello.
    Sni,
    /// The host that the flow's HTTP/1 request is for.
    Host,
}

impl NameFrom {
    /// The stable name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Sni => "sni",
            Self::Host => "host",
        }
    }
}

/// All that a verdict may depend on. What flows have in common is shared among them, and
/// addresses are kept as IPv6 with IPv4 mapped: the facts of 100,000 flows take under 10 MB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    client: [u8; 16],
    destination: [u8; 16],
    client_port: u16,
    destination_port: u16,
    /// The transport.
    pub protocol: Protocol,
    /// Whether the flow is this host's own (in `exec`: every flow).
    pub local: bool,
    /// Who owns the app's socket.
    pub owner: Fact<Arc<Owner>>,
    /// What the flow would leave with.
    pub egress: Fact<Arc<Egress>>,
    /// The way out that the routes chose; `None`: it does not leave.
    pub via: Option<WayId>,
    /// The name that the flow is for. Nobody asked where no answer told of one: only the
    /// flow's first bytes can (`engine/peek`).
    pub name: Fact<Arc<Name>>,
    /// The resolvers that the destination was learned from; none: it is unknown who told of it.
    pub resolvers: ResolverSet,
}

const _: () = assert!(size_of::<Facts>() <= 96, "facts of a flow grew");

impl Facts {
    /// The facts that the first packet tells, of a flow that leaves directly. IPv4-mapped
    /// addresses are read as IPv4.
    pub fn new(
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
        local: bool,
    ) -> Self {
        Self {
            client: mapped(client.ip()),
            destination: mapped(destination.ip()),
            client_port: client.port(),
            destination_port: destination.port(),
            protocol,
            local,
            owner: Fact::Unasked,
            egress: Fact::Unasked,
            via: Some(WayId::DIRECT),
            name: Fact::Unasked,
            resolvers: ResolverSet::EMPTY,
        }
    }

    /// The source of the app's packets.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(unmapped(self.client), self.client_port)
    }

    /// The destination as the app addressed it; port 0 for echo.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(unmapped(self.destination), self.destination_port)
    }

    /// Who the flow belongs to: a local flow's egress address, a forwarded flow's
    /// client address.
    pub fn source(&self) -> Fact<IpAddr> {
        if !self.local {
            return Fact::Known(self.client().ip());
        }
        match &self.egress {
            Fact::Unasked => Fact::Unasked,
            Fact::Unknown => Fact::Unknown,
            Fact::Known(egress) => Fact::Known(egress.address),
        }
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn unmapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}
