//! What a running shard is asked from outside, and how it answers.
//!
//! A request waits in the shard's queue until the next turn of its loop. What takes long is
//! done in pieces of at most [`engine::PIECE`] flows a turn, between which packets flow. Every
//! request that has an answer is answered once; one whose shard ends first has its answer dropped, which the asker notices by
//! whatever the closure holds (a channel's sender).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use engine::policy::{Policy, Verdict};
use engine::{Counters, Report};

/// Called once with the answer, on the shard's thread: hand it on and return.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// A question or an order.
pub enum Request {
    /// From now on judge by this policy; live flows are judged again on their kept facts, and
    /// exactly those whose verdict changed are cut. Answered when the last flow was judged.
    Reload {
        /// The policy. The one before is freed by whoever lets go of it last, which takes a
        /// while for a large one: hold it until this is answered, when the shard has let go.
        policy: Arc<Policy>,
        /// Its number, greater than the one in force.
        generation: u64,
        /// The flows that were cut, as they ended. Another reload that comes before the last
        /// flow was judged takes over: this one is answered then, with what it cut.
        answer: Answer<Vec<Report>>,
    },
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
    /// What the shard is at.
    Status {
        /// At this moment.
        answer: Answer<Status>,
    },
    /// This host's addresses beside the device's are these now. New flows count by them.
    Own(Vec<IpAddr>),
    /// Other limits. What exceeds them now gives way as new flows come.
    Limits {
        /// Flows at once.
        flows: usize,
        /// Bytes of ring memory.
        memory: usize,
    },
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload { .. } => "Reload",
            Self::Compare { .. } => "Compare",
            Self::Flows { .. } => "Flows",
            Self::Kill { .. } => "Kill",
            Self::Hits { .. } => "Hits",
            Self::Status { .. } => "Status",
            Self::Own(_) => "Own",
            Self::Limits { .. } => "Limits",
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
