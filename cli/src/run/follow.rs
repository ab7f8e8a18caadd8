//! What of the host is followed while the daemon runs: its addresses, its devices, the settings that
//! are ours, and whether all that was made for us is still there.
//!
//! A flow whose client address is this host's is the host's own, not forwarded; addresses come
//! and go. So do devices, each of which needs its part of the host's changes. One thread watches
//! both, and has its part in the [`Host`] from the start's last change to the end's first.

use std::fmt::Display;
use std::io::{PipeReader, PipeWriter};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info, warn};
use tunnel::driver::request::Request;
use tunnel::driver::{Handle, Unasked};
use tunnel::host::addresses::list;
use tunnel::host::{Changed, Host, Plan, Watch, stopped_within};

use super::farewell::{Farewell, Part};
use super::shared::Shared;

/// All addresses of this host.
pub(super) fn addresses() -> anyhow::Result<Vec<IpAddr>> {
    list().context("cannot look at the host's addresses")
}

/// The thread that follows the host.
pub(super) struct Follower {
    thread: JoinHandle<()>,
    host: SyncSender<Shared>,
    stop: PipeWriter,
}

impl Follower {
    /// Watches from now on; what is seen is acted upon once there is a host.
    pub(super) fn start(
        plan: &Plan,
        shards: &[Handle],
        farewells: &UnboundedSender<Part>,
    ) -> anyhow::Result<Self> {
        let watch = Watch::open(plan.table).context("cannot watch the host")?;
        let (stopped, stop) = std::io::pipe().context("cannot watch the host")?;
        let (host, hosts) = sync_channel(1);
        let following = Following {
            plan: plan.clone(),
            shards: shards.to_vec(),
            addresses: None,
            untold: Vec::new(),
            blind: false,
        };
        let farewell = Farewell::new(Part::Follower, farewells);
        let thread = thread::Builder::new()
            .name("follower".to_owned())
            .spawn(move || {
                let _farewell = farewell;
                following.run(&hosts, &watch, &stopped);
            })
            .context("cannot start a thread")?;
        Ok(Self { thread, host, stop })
    }

    /// Hands the host over, all changes made.
    pub(super) fn take(&self, host: &Shared) {
        // Where the thread has ended by a fault the daemon is about to end.
        let _ = self.host.send(host.clone());
    }

    /// Stops following. Nothing is changed any more when this returns.
    pub(super) fn end(self) {
        drop((self.stop, self.host));
        // Its fault has been said.
        let _ = self.thread.join();
    }
}

struct Following {
    plan: Plan,
    shards: Vec<Handle>,
    /// What the shards know, or are to know.
    addresses: Option<Vec<IpAddr>>,
    /// The numbers of those that don't know yet.
    untold: Vec<usize>,
    /// Whether it was said that the host can't be looked at.
    blind: bool,
}

impl Following {
    fn run(mut self, hosts: &Receiver<Shared>, watch: &Watch, stopped: &PipeReader) {
        let Ok(host) = hosts.recv() else { return };
        // First of all: what has changed since it was looked at, before there was a watch.
        let mut due = Changed::all();
        let mut look_at = Instant::now();
        loop {
            if due.addresses {
                due.addresses = !self.tell();
            }
            if due.links || due.removed || Instant::now() >= look_at {
                let went = std::mem::take(&mut due.went);
                let Some(again) = host.with(|host| self.follow(host, &went)) else { return };
                look_at = Instant::now() + again;
                (due.links, due.removed) = (false, false);
            }
            let left = look_at.saturating_duration_since(Instant::now());
            let left = if due.addresses { left.min(AGAIN) } else { left };
            // A new device comes with a dozen changes, which are one to us.
            thread::sleep(GATHER);
            match watch.wait(stopped, Some(left)) {
                Ok(Some(changed)) => due.merge(changed),
                Ok(None) => return,
                Err(errno) => {
                    self.cannot_see(&errno);
                    if stopped_within(stopped, AGAIN) {
                        return;
                    }
                    due = Changed::all();
                }
            }
        }
    }

    /// Tells the shards of the host's addresses. `false`: not all of them know.
    fn tell(&mut self) -> bool {
        let addresses = match list() {
            Ok(addresses) => addresses,
            Err(errno) => {
                self.cannot_see(&errno);
                return false;
            }
        };
        self.blind = false;
        if self.addresses.as_ref() != Some(&addresses) {
            self.untold = (0..self.shards.len()).collect();
        }
        let shards = &self.shards;
        self.untold.retain(|&shard| {
            shards[shard].ask(Request::Own(addresses.clone())) == Err(Unasked::Busy)
        });
        self.addresses = Some(addresses);
        self.untold.is_empty()
    }

    /// Makes the changes that are due. Tells when to do so again, whatever happens.
    fn follow(&mut self, host: &mut Host, went: &[u32]) -> Duration {
        let followed = match host.follow(&self.plan, went) {
            Ok(followed) => followed,
            Err(error) => {
                self.cannot_see(&error);
                return AGAIN;
            }
        };
        self.blind = false;
        for change in &followed.made {
            debug!(%change, "made");
        }
        for change in &followed.undone {
            debug!(%change, "undone");
        }
        for error in &followed.failed {
            warn!(code = "device-unprepared", "{error}");
        }
        for change in &followed.contested {
            warn!(code = "setting-contested", "cannot {change}: something keeps changing it back");
        }
        if let Some(change) = followed.restored.first() {
            let changes = followed.restored.len();
            info!(changes, %change, "made again what something else had removed");
        }
        for error in &followed.unrestored {
            warn!(code = "host-unrestored", "something has removed what is ours: {error}");
        }
        for change in &followed.taken_away {
            warn!(code = "removal-contested", "cannot {change}: something keeps removing it");
        }
        followed.again
    }

    fn cannot_see(&mut self, why: &dyn Display) {
        if !std::mem::replace(&mut self.blind, true) {
            warn!(
                code = "host-unwatched",
                "the host's addresses and devices are not followed: {why}"
            );
        }
    }
}

/// After what may pass: a full queue, no descriptor left.
const AGAIN: Duration = Duration::from_secs(1);
/// Short to whoever waits for a new device, and long enough that a host whose containers come and
/// go is not looked at all the time (some ms with hundreds of devices).
const GATHER: Duration = Duration::from_millis(20);
