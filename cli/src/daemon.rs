//! What a running daemon knows and does: the policy in force, the shards that carry flows,
//! and who may say what.
//!
//! # Theory of operation
//!
//! The shards own the flows; nothing here is locked while packets move. A question is put into
//! the queue of each shard (`asking`) and its answers are awaited on the control runtime, for a
//! bounded time. What takes the processor long (compiling a policy, writing 100,000 flows as
//! JSON) runs on a thread of its own, so that `status` is answered meanwhile.
//!
//! A policy is changed in one place, [`Daemon::reload`], and by one at a time.

mod asking;
mod events;
mod explaining;
mod listing;
mod metrics;
mod on_host;
mod reload;
mod resolving;
mod select;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use engine::policy::Policy;
use tokio::sync::mpsc::UnboundedSender;
use tunnel::driver::request::Request;
use tunnel::driver::{Handle, Unasked};

use crate::config::{Config, Control};
use crate::control::group_id;
use crate::names::Names;
use crate::report::Clock;
use crate::ways::WaysOut;

pub(crate) use asking::{Unanswered, ask};
pub(crate) use events::{Events, publish};
pub(crate) use explaining::{Asked, AskedProtocol, Unexplained};
pub(crate) use listing::{FlowId, KillError, NoFlowId};
pub(crate) use metrics::OPENMETRICS;
pub(crate) use on_host::{OnHost, Unled};
pub(crate) use reload::{NotLoaded, Reloaded};
pub(crate) use resolving::{Inquiry, NotAsked};
pub(crate) use select::Selection;

/// One thread that carries flows.
pub(crate) trait Shard: Send + Sync {
    /// Puts a request into its queue. Never blocks.
    fn ask(&self, request: Request) -> Result<(), Unasked>;
}

impl Shard for Handle {
    fn ask(&self, request: Request) -> Result<(), Unasked> {
        Self::ask(self, request)
    }
}

/// What a daemon is joined from.
pub(crate) struct Parts {
    /// With the clock that the times in its reports are told by.
    pub(crate) shards: Vec<(Box<dyn Shard>, Clock)>,
    /// The policy that the shards began with.
    pub(crate) policy: Arc<Policy>,
    pub(crate) generation: u64,
    /// `None`: there was none, and the defaults hold.
    pub(crate) config_file: Option<PathBuf>,
    /// What it said at the start.
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) events: Arc<Events>,
    /// Who answers names; `None`: nobody.
    pub(crate) names: Option<Names>,
    /// Who has the ways out beside `direct`; `None`: there are none.
    pub(crate) ways: Option<WaysOut>,
    /// Of the daemon's own sockets.
    pub(crate) mark: Option<u32>,
    /// Whether this host's connections are tracked for it.
    pub(crate) tracking: Arc<AtomicBool>,
    /// Who changes the host's own resolver, and where it leads; `None`: nobody has to.
    pub(crate) on_host: Option<UnboundedSender<OnHost>>,
}

/// A running daemon, as its control socket and its signals see it.
pub(crate) struct Daemon {
    shards: Vec<(Box<dyn Shard>, Clock)>,
    in_force: RwLock<Arc<InForce>>,
    /// Held during a reload.
    reloading: tokio::sync::Mutex<()>,
    config_file: Option<PathBuf>,
    started: SystemTime,
    mark: Option<u32>,
    tracking: Arc<AtomicBool>,
    events: Arc<Events>,
    names: Option<Names>,
    ways: Option<WaysOut>,
    on_host: Option<UnboundedSender<OnHost>>,
}

/// What a reload replaces, all at once.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) policy: Arc<Policy>,
    pub(crate) generation: u64,
    /// Since when.
    pub(crate) loaded: SystemTime,
    pub(crate) config: Config,
    pub(crate) access: Access,
}

/// Who may look and who may act, beside root who may both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// The group whose members may look.
    pub(crate) group: Option<u32>,
    /// Users who may act.
    pub(crate) admins: Vec<u32>,
}

impl Access {
    /// What the configuration says. A group that does not exist lets nobody look.
    pub(crate) fn of(control: &Control) -> Self {
        Self { group: group_id(&control.group), admins: control.admins.clone() }
    }
}

impl Daemon {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            shards,
            policy,
            generation,
            config_file,
            config,
            access,
            events,
            names,
            ways,
            mark,
            tracking,
            on_host,
        } = parts;
        let started = SystemTime::now();
        Self {
            shards,
            in_force: RwLock::new(Arc::new(InForce {
                policy,
                generation,
                loaded: started,
                config,
                access,
            })),
            reloading: tokio::sync::Mutex::default(),
            config_file: config_file.map(absolute),
            started,
            mark,
            tracking,
            events,
            names,
            ways,
            on_host,
        }
    }

    /// What is in force at this moment.
    pub(crate) fn in_force(&self) -> Arc<InForce> {
        // Nobody panics while holding the lock; and what is behind it is always whole.
        Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where watchers listen.
    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn put_in_force(&self, new: InForce) {
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    }
}

/// The same path from the root, whoever asks from wherever. One that cannot be told stays as it
/// is.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
pub(crate) mod standin;
#[cfg(test)]
mod tests;
