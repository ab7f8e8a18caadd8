//! What is told about a flow: once when it opens, once when it ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::policy::Verdict;
use crate::{DeviceName, Egress, Instant, Name, Owner, Protocol};

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The far side ended it in order.
    FarClosed,
    /// The app ended it in order.
    AppClosed,
    /// The app sent a RST.
    AppReset,
    /// The far side sent a RST.
    FarReset,
    /// The far side refused.
    Refused,
    /// No route, or the network said so.
    Unreachable,
    /// Nobody answered.
    TimedOut,
    /// Nothing moved for too long.
    Idle,
    /// The verdict.
    Policy,
    /// Another policy came, whose verdict is another.
    PolicyChanged,
    /// The tunnel that carried it is gone, or has another address.
    PathChanged,
    /// No way out of its route was usable.
    NoWayOut,
    /// The proxy that was to carry it failed, or refused it by its own rules.
    Proxy,
    /// Its way out leads back to where it comes from.
    Loop,
    /// The source could not be resolved, or changed three times before the connect.
    SourceUnresolved,
    /// A kind of flow that this host can't carry.
    Unsupported,
    /// A flow or memory limit.
    Limit,
    /// Somebody ordered its end.
    Killed,
    /// A failure of this program in that flow alone.
    Internal,
    /// The engine stops.
    Shutdown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 20] = [
        Self::FarClosed,
        Self::AppClosed,
        Self::AppReset,
        Self::FarReset,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::Idle,
        Self::Policy,
        Self::PolicyChanged,
        Self::PathChanged,
        Self::NoWayOut,
        Self::Proxy,
        Self::Loop,
        Self::SourceUnresolved,
        Self::Unsupported,
        Self::Limit,
        Self::Internal,
        Self::Killed,
        Self::Shutdown,
    ];

    /// The stable name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::FarClosed => "far-closed",
            Self::AppClosed => "app-closed",
            Self::AppReset => "app-reset",
            Self::FarReset => "far-reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::Idle => "idle",
            Self::Policy => "policy",
            Self::PolicyChanged => "policy-changed",
            Self::PathChanged => "path-changed",
            Self::NoWayOut => "no-way-out",
            Self::Proxy => "proxy",
            Self::Loop => "loop",
            Self::SourceUnresolved => "source-unresolved",
            Self::Unsupported => "unsupported",
            Self::Limit | Self::Internal => "limit",
            Self::Killed => "killed",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its first packet waits for facts.
    Held,
    /// Allowed; the far side was asked.
    Connecting,
    /// Bytes may move.
    Open,
    /// Over, or never allowed.
    Closed,
}

/// By which way a flow leaves, or would have left.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Via {
    /// A socket of this host.
    Direct,
    /// It does not leave: its destination is the resolver inside.
    Dns,
    /// The tunnel of that name.
    Link(Arc<str>),
    /// The proxy of that name.
    Proxy(Arc<str>),
}

impl Via {
    /// The stable name in reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Dns => "dns",
            Self::Link(name) | Self::Proxy(name) => name,
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One flow at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Counts the flows of this engine, from 1.
    pub number: u64,
    /// How far it has come.
    pub stage: Stage,
    /// The transport.
    pub protocol: Protocol,
    /// The app's address as its packets carry it; for echo the port is the identifier.
    pub client: SocketAddr,
    /// Whether the flow is this host's own.
    pub local: bool,
    /// What the app asked for; port 0 for echo.
    pub destination: SocketAddr,
    /// By which way it leaves.
    pub via: Via,
    /// What the destination is called, where that is known.
    pub name: Option<Name>,
    /// The SYN-ACK was sent before the far side answered, to see the first bytes.
    pub peeked: bool,
    /// The names of the resolvers that the destination was learned from.
    pub resolvers: Vec<Arc<str>>,
    /// What it leaves with, or would have left with.
    pub egress: Option<Egress>,
    /// The device beneath, where it leaves by a tunnel.
    pub underlay: Option<DeviceName>,
    /// The local port at the egress, once there is a socket.
    pub egress_port: Option<u16>,
    /// Whose it is, where that was asked and known.
    pub owner: Option<Owner>,
    /// `None` where no verdict was reached.
    pub verdict: Option<Verdict>,
    /// The rule behind the verdict.
    pub rule: Option<String>,
    /// The generation of the policy that judged it.
    pub generation: u64,
    /// Payload bytes from the app that the far side's socket took.
    pub sent: u64,
    /// Payload bytes from the far side that were taken for the app.
    pub received: u64,
    /// Packets from the app (super-packets count once).
    pub packets_sent: u64,
    /// Packets to the app (super-packets count once).
    pub packets_received: u64,
    /// When the first packet came.
    pub opened: Instant,
    /// When it ended.
    pub closed: Option<Instant>,
    /// Why it ended.
    pub reason: Option<Reason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_documented() {
        let docs = include_str!("../../docs/json.md");
        for reason in Reason::ALL {
            let row = docs.lines().filter(|line| line.starts_with("| `"));
            let named = row.filter_map(|line| line.split('|').nth(1));
            let quoted = format!("`{reason}`");
            assert!(named.into_iter().any(|names| names.contains(&quoted)), "{reason}");
        }
    }
}
