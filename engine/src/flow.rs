//! A flow: a 5-tuple, its facts and its state.
//!
//! | state | what is kept | what may be done |
//! | --- | --- | --- |
//! | `Held` | the first packets; of a peek an endpoint and rings | ask for facts, connect, bind; nothing has left, nothing was answered but the SYN of a peek |
//! | `Stream` | a TCP endpoint and rings | move bytes both ways |
//! | `Datagrams` | the mapping | send and deliver datagrams |
//! | `Link` | the port at the link's address, a TCP tracker | pass packets into a tunnel and out of it |
//! | `Echo` | the last sequence number | send requests, deliver replies |
//! | `Questions` | how many answers are owed | ask the service, deliver answers |
//! | `Answered` | the saved SYN where it may be needed again | repeat the answer |

pub(crate) mod link;
pub(crate) mod table;
pub(crate) mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Edition;
use crate::packet::Head;
use crate::packet::icmp::Answer;
use crate::policy::{RuleId, Verdict};
use crate::{Facts, Instant, Name};

/// A flow's handle. A stale one misses instead of hitting a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub(crate) slot: u32,
    pub(crate) serial: u32,
}

impl FlowId {
    /// The place in the table: small, and used again after the flow has ended.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// As one number, for a file descriptor's tag.
    pub fn to_bits(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.slot)
    }

    /// The inverse of [`FlowId::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u32, serial: (bits >> 32) as u32 }
    }
}

/// A UDP mapping's handle: one socket, shared by the flows of one client port that leave
/// with the same address and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(pub(crate) u32);

impl MappingId {
    /// The inverse of [`MappingId::slot`].
    pub fn from_slot(slot: u32) -> Self {
        Self(slot)
    }

    /// The place in the table: small, and used again after the mapping was closed.
    pub fn slot(self) -> usize {
        self.0 as usize
    }
}

/// Memory the driver lends to a TCP flow, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RingId(pub u32);

/// A pair of rings. The engine has dropped both slices when it gives the number back.
#[derive(Debug)]
pub struct Rings {
    /// The pair's number.
    pub id: RingId,
    /// For bytes from the app to the far side.
    pub to_far: &'static mut [u8],
    /// For bytes from the far side to the app.
    pub to_app: &'static mut [u8],
}

/// The identity of a flow: what its packets carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) protocol: u8,
    pub(crate) client: [u8; 16],
    pub(crate) destination: [u8; 16],
    /// Client port (or echo identifier) and destination port.
    pub(crate) ports: (u16, u16),
}

impl Key {
    pub(crate) fn new(protocol: u8, client: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            protocol,
            client: octets(client.0),
            destination: octets(destination.0),
            ports: (client.1, destination.1),
        }
    }
}

pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// What a packet reads and writes, and the rest behind a pointer: a packet of one flow among
/// thousands finds nothing of its flow in a cache, so every line of it counts.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    pub(crate) state: State,
    pub(crate) opening: Box<Opening>,
    /// The last packet or byte of either side.
    pub(crate) active: Instant,
    /// When the flow's timer entry fires; `None`: there is none.
    pub(crate) armed: Option<Instant>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) packets_sent: u64,
    pub(crate) packets_received: u64,
    /// Waits in the list of flows to pump.
    pub(crate) dirty: bool,
}

impl Flow {
    /// The sequence number of the last echo request.
    pub(crate) fn echo_sequence(&self) -> u16 {
        use link::{Crossing, Life};
        match &self.state {
            State::Echo { sequence }
            | State::Link(Crossing { life: Life::Echo { sequence }, .. }) => *sequence,
            State::Held(Held { first: First::Echoes(saved), .. }) => {
                saved.last().map_or(0, |last| last.sequence)
            }
            State::Held(_)
            | State::Stream(_)
            | State::Link(_)
            | State::Datagrams(_)
            | State::Questions { .. }
            | State::Answered(_) => 0,
        }
    }
}

/// What is settled while the flow opens, and told when it ends.
#[derive(Debug)]
pub(crate) struct Opening {
    /// Counts the engine's flows, from 1: the number in reports.
    pub(crate) number: u64,
    pub(crate) facts: Facts,
    /// Where it really goes: the destination, or what stands for it.
    pub(crate) far: SocketAddr,
    /// The far side is the service: nothing leaves.
    pub(crate) served: bool,
    /// Some way out of the route was usable.
    pub(crate) has_way: bool,
    /// Which proxy of its way out's name carries it.
    pub(crate) proxy: Option<u32>,
    /// The generation of the policy that chose the way out; 0: none has.
    pub(crate) routed: u64,
    pub(crate) decision: Option<(Verdict, RuleId)>,
    /// The policy that judged it last, or that was in force when it came.
    pub(crate) edition: Arc<Edition>,
    pub(crate) egress_port: Option<u16>,
    pub(crate) opened: Instant,
    /// How often the route changed between verdict and connect.
    pub(crate) route_changes: u8,
    /// The app has bound its socket to an address of this host.
    pub(crate) bound: bool,
    /// The other names that lead to the destination now, where they may matter.
    pub(crate) others: Vec<Arc<Name>>,
    /// The SYN was answered before the verdict, to see the first bytes.
    pub(crate) peeked: bool,
    /// The rule that allowed it says so: no change of policy or path resets it.
    pub(crate) protected: bool,
    /// What allowed it, where the policy in force would not and it is protected.
    pub(crate) spared: Option<Box<Spared>>,
    /// Counted among those that wait for a proxy of this host (`engine/chain`).
    pub(crate) chained: bool,
}

impl Opening {
    /// The address that the app has bound its socket to, where a far side of its IP version
    /// can be reached from it.
    pub(crate) fn bound(&self) -> Option<IpAddr> {
        let client = self.facts.client().ip();
        (self.bound && client.is_ipv4() == self.far.is_ipv4()).then_some(client)
    }
}

/// The rule that a protected flow still lives by, though a reload has gone past it.
#[derive(Debug)]
pub(crate) struct Spared {
    pub(crate) rule: String,
    pub(crate) generation: u64,
}

#[derive(Debug)]
pub(crate) enum State {
    Held(Held),
    /// In place: behind a pointer it would be one more cache miss a packet.
    Stream(tcp::Stream),
    Datagrams(MappingId),
    /// Packets pass into a tunnel.
    Link(link::Crossing),
    Echo {
        /// Of the last request, for errors that name none.
        sequence: u16,
    },
    /// Datagrams to the service.
    Questions {
        /// Answers that the service said would come later.
        awaited: u32,
    },
    Answered(Answered),
}

/// Nothing has left, and nothing was answered yet but the SYN of a peek.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) first: First,
    pub(crate) waiting: Waiting,
}

/// What a held flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Owner,
    Source,
    /// Rings, to answer the SYN with.
    Rings,
    /// The app's first bytes, but no longer than until then.
    Bytes(Instant),
    /// The far side's answer to a connect, or a socket: that mapping's, for datagrams.
    Egress(Option<MappingId>),
}

/// The packets of a held flow.
#[derive(Debug)]
pub(crate) enum First {
    /// A SYN as it came, and its MSS option.
    Syn(Box<[u8]>, Option<u16>),
    /// What came after it was answered waits in the rings.
    Peeked(Box<tcp::Stream>),
    Datagrams(Vec<SavedDatagram>),
    Echoes(Vec<SavedEcho>),
}

#[derive(Debug)]
pub(crate) struct SavedDatagram {
    pub(crate) payload: Box<[u8]>,
    pub(crate) segment: Option<u16>,
    pub(crate) head: Head,
    pub(crate) dont_fragment: bool,
}

#[derive(Debug)]
pub(crate) struct SavedEcho {
    pub(crate) sequence: u16,
    pub(crate) payload: Box<[u8]>,
    pub(crate) head: Head,
    pub(crate) dont_fragment: bool,
}

/// The verdict or a failure is known and what the app may still send gets the same answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    /// The SYN to answer again.
    pub(crate) syn: Option<Box<[u8]>>,
    /// How many more times the answer is given unasked.
    pub(crate) repeats: u8,
    /// When it is forgotten, or given again.
    pub(crate) until: Instant,
    /// The verdict stands, so each packet prolongs the memory of it; a failure is
    /// forgotten on time, because the network may have healed.
    pub(crate) lasting: bool,
}

/// Datagrams that wait for a verdict: enough for a burst of fragments and a QUIC flight;
/// lookups take microseconds.
pub(crate) const HELD_DATAGRAMS: usize = 32;

/// A SYN that arrives while its app still holds the socket locked inside `connect()` makes
/// the kernel note an ICMP error instead of failing the call (`tcp_v4_err`, "sock owned by
/// user"), so the error is given again a moment later; a socket that has failed already
/// ignores it.
pub(crate) const REPEAT_AFTER: [Duration; 2] =
    [Duration::from_millis(2), Duration::from_millis(12)];

/// Idle TCP: RFC 5382 REQ-5 asks for at least 2 h 4 min.
pub(crate) const TCP_IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// TCP whose far side has ended its half: RFC 5382's transitory time-out.
pub(crate) const TCP_HALF_IDLE: Duration = Duration::from_secs(4 * 60);
/// After that much silence a connection's ring memory is given back.
pub(crate) const TRIM_AFTER: Duration = Duration::from_secs(10);
/// UDP with traffic both ways: RFC 4787 REQ-5 asks for at least 2 min.
pub(crate) const UDP_IDLE: Duration = Duration::from_secs(180);
/// UDP that was never answered.
pub(crate) const UDP_UNANSWERED: Duration = Duration::from_secs(30);
/// An answered DNS query's port is not used again.
pub(crate) const DNS_IDLE: Duration = Duration::from_secs(10);
/// Datagrams to the service, whose answers are all given: a resolver's retries come within
/// that time, and most clients take a new port for each question.
pub(crate) const QUESTIONS_IDLE: Duration = Duration::from_secs(5);
/// The same while an answer is owed, which the service gives sooner or never.
pub(crate) const AWAITED_IDLE: Duration = Duration::from_secs(10);
/// A connection to the service on which nothing moves (RFC 7766 6.2.3: a server closes idle
/// connections, after seconds).
pub(crate) const SERVED_IDLE: Duration = Duration::from_secs(30);
/// Echo: RFC 5508 REQ-1 asks for at least 60 s.
pub(crate) const ECHO_IDLE: Duration = Duration::from_secs(60);
/// How long a refused flow's answer is kept, so that a sender in a loop is one report.
pub(crate) const ANSWERED_IDLE: Duration = Duration::from_secs(30);
/// The same for a failure.
pub(crate) const FAILED: Duration = Duration::from_secs(1);
/// How long a dropped SYN is remembered: the app's own retries end after about 127 s
/// (Linux `tcp_syn_retries` = 6).
pub(crate) const DROPPED_SYN: Duration = Duration::from_secs(130);
/// A lookup that takes longer counts as unknown.
pub(crate) const LOOKUP: Duration = Duration::from_secs(1);
