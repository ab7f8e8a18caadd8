//! Where every packet from the app side ends, and why some are dropped.

use std::fmt;

/// Why a packet was dropped. One variant a cause, each counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dropped {
    /// Shorter than its own headers say, or no IP version that exists.
    Malformed,
    /// An IP, TCP, UDP or ICMP checksum is wrong.
    Checksum,
    /// An address that can't be on this wire: loopback, unspecified, a multicast
    /// source, IPv4 inside IPv6 (RFC 6890).
    Martian,
    /// A TCP segment that belongs to no flow and may not be answered (a RST).
    NoFlow,
    /// The verdict is `drop`, or a held packet found no room.
    Policy,
    /// More packets wait for a verdict than a flow may hold.
    HeldFull,
    /// An ICMP message other than an echo request.
    Icmp,
    /// Multicast or broadcast where no flow may exist.
    Cast,
    /// The flow or memory limit is reached.
    Limit,
    /// A fragment that overlaps another, comes too late or finds no room.
    Fragment,
    /// The egress socket took no more datagrams.
    EgressFull,
    /// A reply from a peer to which nothing was allowed, or for a flow that is over.
    Unsolicited,
    /// The device refused the packet.
    Device,
}

impl Dropped {
    /// Every cause, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Checksum,
        Self::Martian,
        Self::NoFlow,
        Self::Policy,
        Self::HeldFull,
        Self::Icmp,
        Self::Cast,
        Self::Limit,
        Self::Fragment,
        Self::EgressFull,
        Self::Unsolicited,
        Self::Device,
    ];

    /// The cause's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Martian => "martian",
            Self::NoFlow => "no-flow",
            Self::Policy => "policy",
            Self::HeldFull => "held-full",
            Self::Icmp => "icmp",
            Self::Cast => "cast",
            Self::Limit => "limit",
            Self::Fragment => "fragment",
            Self::EgressFull => "egress-full",
            Self::Unsolicited => "unsolicited",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a packet from the app side ended. Exactly one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered: a RST or an ICMP message went back to the app.
    ToApp,
    /// Taken towards the far side: into a flow's stream or out as a datagram.
    ToEgress,
    /// Sent into a tunnel.
    ToLink,
    /// Kept until a verdict or a connect is known, or part of a fragmented datagram.
    Held,
    /// Gone, and counted by cause.
    Dropped(Dropped),
}

/// How many packets ended where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets from the app side; super-packets count once.
    pub packets_in: u64,
    /// [`Outcome::ToApp`].
    pub to_app: u64,
    /// Of these, resets for TCP segments that belong to no flow and open none: of
    /// connections older than the capture.
    pub older: u64,
    /// [`Outcome::ToEgress`].
    pub to_egress: u64,
    /// [`Outcome::ToLink`].
    pub to_link: u64,
    /// [`Outcome::Held`].
    pub held: u64,
    /// [`Outcome::Dropped`] by cause, in the order of [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// Replies of the far side that were dropped, by the same causes.
    pub replies_dropped: [u64; Dropped::ALL.len()],
}

impl Counters {
    pub(crate) fn count(&mut self, outcome: Outcome) {
        self.packets_in += 1;
        match outcome {
            Outcome::ToApp => self.to_app += 1,
            Outcome::ToEgress => self.to_egress += 1,
            Outcome::ToLink => self.to_link += 1,
            Outcome::Held => self.held += 1,
            Outcome::Dropped(cause) => self.dropped[cause as usize] += 1,
        }
    }
}
