//! The pure core of tunneld: packets in, effects out; time is an argument.
//!
//! [`Engine`] is one shard's state machine; its module documents the contract. It parses
//! what comes from the app side, holds a new flow until its facts are known, asks
//! [`policy::Policy`], and only then lets the driver open a socket. What the far side
//! answers comes back through the same door. No system call, no clock, no thread.
#![forbid(unsafe_code)]

mod cast;
#[cfg(test)]
mod cpu_time;
mod dropped;
mod engine;
mod facts;
mod failure;
mod flow;
mod names;
mod nat;
mod packet;
pub mod policy;
mod recent;
mod report;
mod resolvers;
mod share;
mod sniff;
mod stack;
mod time;
mod timers;
mod ways;

pub use dropped::{Counters, Dropped, Outcome};
pub use engine::{
    Arrived, Config, Cut, Datagram, Engine, Input, LINK_ERROR, LinkPort, Meta, Output, Own, PIECE,
    ResolverService, Services, Sink, Unresolved, Unsent, Walk, Way, fragment_udp, link_error,
    write_udp,
};
pub use facts::{DeviceName, Egress, Fact, Facts, Name, NameFrom, Owner, Protocol};
pub use failure::Failure;
pub use flow::{FlowId, MappingId, RingId, Rings};
pub use names::{GRACE, Learned};
pub use packet::{Checksum, Received};
pub use report::{Reason, Report, Stage, Via};
pub use resolvers::{ResolverId, ResolverSet, Resolvers, TooManyResolvers};
pub use share::Share;
pub use time::Instant;
pub use ways::{Leads, Link, LinkId, Proxy, TooManyWays, WayId, WayKind, WayNames, WayOut, Ways};
