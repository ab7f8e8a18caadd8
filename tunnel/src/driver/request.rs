//! What a running shard is asked from outside, and how it answers.
//!
//! A request waits in the shard's queue until the next turn of its loop; a reload waits in a
//! place of its own, which is never taken. What takes long is done in pieces of at most
//! [`engine::PIECE`] flows a turn, between which packets flow, and a shard takes few of that
//! kind at once. Every request that has an answer is answered once; one whose shard ends first
//! has its answer dropped, which the asker notices by whatever the closure holds (a channel's
//! sender).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use engine::policy::{Policy, Verdict};
use engine::{Counters, Learned, Report, ResolverSet};

/// Called once with the answer, on the shard's thread (for a reload that gave way to another
/// before it began, on the other's asker's): hand it on and return.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// A question or an order.
pub enum Request {
    /// From now on judge by another policy. Never [`Unasked::Busy`](super::Unasked::Busy).
    Reload(Reload),
    /// Which live flows would a [`Request::Reload`] cut? Nothing is changed.
    Compare {
        /// The policy to compare with.
        policy: Arc<Policy>,
        /// One entry a flow whose verdict would be another.
        answer: Answer<Vec<Changed>>,
    },
    /// Every live flow.
    Flows {
        /// In no order that means anything.
        answer: Answer<Vec<Report>>,
    },
    /// End a flow: TCP by RST to both sides.
    Kill {
        /// [`Report::number`].
        number: u64,
        /// Only if it is this user's; `None`: whoever's.
        of: Option<u32>,
        /// What became of it.
        answer: Answer<Killed>,
    },
    /// How often each rule decided, since the policy was loaded.
    Hits {
        /// By the rule's name, as in reports.
        answer: Answer<Hits>,
    },
    /// Which name would a flow to this address have, and which resolvers told of it?
    Name {
        /// The destination.
        address: IpAddr,
        /// `None`: nobody told.
        answer: Answer<Option<(Arc<str>, ResolverSet)>>,
    },
    /// What the shard is at.
    Status {
        /// At this moment.
        answer: Answer<Status>,
    },
    /// Names of addresses that answers told: flows that open from now on count by them.
    Learn {
        /// What was told.
        learned: Arc<[Learned]>,
        /// The shard has it.
        answer: Answer<()>,
    },
    /// This host's addresses beside the device's are these now. New flows count by them.
    Own(Vec<IpAddr>),
}

/// Another policy, and what a flow and all of them may use from then on.
///
/// The shard begins with it at the start of its next turn, and before whatever it is asked
/// after it. Live flows, those that came up to then too, are judged again on their kept facts,
/// and exactly those whose verdict changed are cut. Answered when the last flow was judged.
pub struct Reload {
    /// The policy. The one before is freed by whoever lets go of it last, which takes a
    /// while for a large one: hold it until this is answered, when the shard has let go.
    pub policy: Arc<Policy>,
    /// Its number, greater than the one in force.
    pub generation: u64,
    /// What exceeds them now gives way as new flows come.
    pub limits: Limits,
    /// The flows that were cut, as they ended. Another reload that comes before the last
    /// flow was judged takes over: this one is answered then, with what it cut.
    pub answer: Answer<Vec<Report>>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// What a shard may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows at once.
    pub flows: usize,
    /// Bytes of ring memory.
    pub memory: usize,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload(_) => "Reload",
            Self::Compare { .. } => "Compare",
            Self::Flows { .. } => "Flows",
            Self::Kill { .. } => "Kill",
            Self::Hits { .. } => "Hits",
            Self::Name { .. } => "Name",
            Self::Status { .. } => "Status",
            Self::Learn { .. } => "Learn",
            Self::Own(_) => "Own",
        })
    }
}

/// A live flow that another policy would judge otherwise.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The flow as it is now.
    pub flow: Report,
    /// What the other policy says.
    pub verdict: Verdict,
    /// By which rule.
    pub rule: String,
}

/// What became of an order to end a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// It has ended.
    Done,
    /// There is no such flow (any more).
    NoSuchFlow,
    /// It is another user's.
    NotYours,
}

/// How often each rule of the policy in force decided.
#[derive(Debug, Clone, Default)]
pub struct Hits {
    /// The generation they belong to.
    pub generation: u64,
    /// Name and count of every rule, the default last, in the order in which they are asked.
    pub rules: Vec<(String, u64)>,
}

/// A shard at one moment.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Of the policy that new flows are judged by.
    pub generation: u64,
    /// Live flows of every kind and state.
    pub flows: usize,
    /// Flows since the start.
    pub flows_opened: u64,
    /// Bytes of ring memory promised to flows.
    pub memory: usize,
    /// How packets ended.
    pub counters: Counters,
    /// Flows that were ended because carrying them panicked.
    pub panics: u64,
    /// Reports that found the channel full.
    pub reports_lost: u64,
    /// Segments of connections older than the capture, answered with RST.
    pub older: u64,
}
