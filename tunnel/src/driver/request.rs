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
use engine::{Counters, Cut, Learned, LinkId, Report, ResolverService, ResolverSet, WayId, Ways};

use crate::egress::proxy::{Fault, Proxies, Proxy};
use crate::link::wireguard::{Change, LinkError, LinkTotals, PeerHealth, Settings, State};

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
        /// Where our own resolver would answer; `None`: where it does.
        resolver: Option<ResolverService>,
        /// What would be known of each way out; `None`: what is.
        ways: Option<Arc<Ways>>,
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
    /// Which names lead to this address, and which resolvers told of it?
    Names {
        /// The destination.
        address: IpAddr,
        /// The one that a flow would have stands first.
        answer: Answer<(Vec<Arc<str>>, ResolverSet)>,
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
    /// What is known of each way out from now on. New flows choose by it; flows over a tunnel
    /// that is gone or has another address are ended, and those over a proxy that is another one.
    Ways {
        /// All of them.
        ways: Arc<Ways>,
        /// The proxies among them.
        proxies: Arc<Proxies>,
        /// It is in force, and the flows have ended.
        answer: Answer<()>,
    },
    /// Does that fault still speak against a proxy? It is asked for nothing.
    Probe {
        /// Whom.
        proxy: Arc<Proxy>,
        /// What it failed with.
        fault: Fault,
        /// Within some seconds. An error is what speaks against it now.
        answer: Answer<Result<(), Fault>>,
    },
    /// A tunnel is to be there, to change, or to be told of.
    Link(LinkOrder),
    /// This host's addresses beside the device's are these now. New flows count by them.
    Own(Vec<IpAddr>),
}

/// Another policy, and what a flow and all of them may use from then on.
///
/// The shard begins with it at the start of its next turn, and before whatever it is asked
/// after it. Live flows, those that came up to then too, are judged again on their kept facts,
/// and exactly those whose verdict or resolver changed are cut. Answered when the last flow was judged.
pub struct Reload {
    /// The policy. The one before is freed by whoever lets go of it last, which takes a
    /// while for a large one: hold it until this is answered, when the shard has let go.
    pub policy: Arc<Policy>,
    /// Its number, greater than the one in force.
    pub generation: u64,
    /// What exceeds them now gives way as new flows come.
    pub limits: Limits,
    /// Where our own resolver answers from then on; `None`: where it does. Flows that would lead
    /// elsewhere by it are cut, too.
    pub resolver: Option<ResolverService>,
    /// What is known of each way out from then on, and the proxies among them; `None`: what was
    /// known. Flows over a tunnel that is gone or has another address are cut, too, and those
    /// over a proxy that is another one.
    pub ways: Option<(Arc<Ways>, Arc<Proxies>)>,
    /// The flows that were cut, as they ended. Another reload that comes before the last
    /// flow was judged takes over: this one is answered then, with what it cut.
    pub answer: Answer<Vec<Cut>>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Called whenever the tunnel of that number has begun or ceased to be usable.
pub type Told = Box<dyn Fn(LinkId) + Send>;

/// An order about a tunnel, to the shard that has it: packets into it are that shard's alone.
pub enum LinkOrder {
    /// Open it, in the place of the one of that number.
    Open {
        /// Its number.
        link: LinkId,
        /// What it is to be.
        settings: Box<Settings>,
        /// It is there, and takes packets.
        answer: Answer<Result<(), LinkError>>,
    },
    /// Close it. Tell of it by [`Request::Ways`] before.
    Close {
        /// Its number.
        link: LinkId,
    },
    /// Change it.
    Change {
        /// Its number.
        link: LinkId,
        /// What is to be different.
        change: Box<Change>,
        /// It is.
        answer: Answer<Result<(), LinkFailure>>,
    },
    /// Open its sockets anew: the path has changed, or the host has slept.
    Rebind {
        /// Its number.
        link: LinkId,
        /// It has.
        answer: Answer<Result<(), LinkFailure>>,
    },
    /// Close its sockets: another tunnel is to have its port. What is sent into it is lost until
    /// it is told to open them anew.
    Release {
        /// Its number.
        link: LinkId,
    },
    /// Ask every peer of it for a new session. What comes of it shows in its health: where it
    /// was not usable, within a round trip that it is; else within 3 s that it is not.
    Probe {
        /// Its number. Where there is no such tunnel nothing happens.
        link: LinkId,
    },
    /// Tell what it is.
    State {
        /// Its number.
        link: LinkId,
        /// `None`: there is no such tunnel.
        answer: Answer<Option<(State, LinkTotals)>>,
    },
    /// Tell how the peers of all tunnels fare.
    Health {
        /// By the tunnels' numbers.
        answer: Answer<Vec<(LinkId, Vec<PeerHealth>)>>,
    },
    /// From now on say when a tunnel is no longer usable, or is again: [`LinkOrder::Health`]
    /// tells how then.
    Watch {
        /// Called on the shard's thread: hand it on and return.
        told: Told,
    },
}

impl fmt::Debug for LinkOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open { .. } => "Open",
            Self::Close { .. } => "Close",
            Self::Change { .. } => "Change",
            Self::Rebind { .. } => "Rebind",
            Self::Release { .. } => "Release",
            Self::Probe { .. } => "Probe",
            Self::State { .. } => "State",
            Self::Health { .. } => "Health",
            Self::Watch { .. } => "Watch",
        })
    }
}

/// Why an order about a tunnel was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkFailure {
    /// The shard has no tunnel of that number.
    #[error("there is no such tunnel")]
    NoSuchLink,
    /// The tunnel could not.
    #[error(transparent)]
    Link(#[from] LinkError),
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
            Self::Names { .. } => "Names",
            Self::Status { .. } => "Status",
            Self::Learn { .. } => "Learn",
            Self::Own(_) => "Own",
            Self::Ways { .. } => "Ways",
            Self::Probe { .. } => "Probe",
            Self::Link(_) => "Link",
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
    /// The way out that it would take, where that is another.
    pub moved: Option<WayId>,
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
