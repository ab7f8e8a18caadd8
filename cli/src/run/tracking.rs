//! Whether this host's connections have to be tracked for us, now and later.
//!
//! Conntrack costs every packet, so it isn't switched on where nobody else has. Once somebody
//! does, or packets are forwarded, the table of the host is changed over, for as long as this
//! daemon runs.

use std::io::{PipeReader, PipeWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};
use tunnel::host::tracking::{Watch, needed};
use tunnel::host::{Capture, Host, Plan, stopped_within};

use super::farewell::{Farewell, Part};
use super::shared::Shared;

/// What is known of it.
pub(super) struct Tracking {
    state: Arc<AtomicBool>,
    /// The thread that waits for the time to switch. `None`: it is as it will be.
    waiting: Option<Waiting>,
}

struct Waiting {
    thread: JoinHandle<()>,
    host: SyncSender<Shared>,
    stop: PipeWriter,
}

impl Tracking {
    /// Decides for a plan.
    pub(super) fn decide(
        plan: &mut Plan,
        farewells: &UnboundedSender<Part>,
    ) -> anyhow::Result<Self> {
        plan.tracks = false;
        let state = Arc::<AtomicBool>::default();
        if plan.capture == Capture::Nothing {
            return Ok(Self { state, waiting: None });
        }
        // First of all: what changes from here on is told.
        let watch = Watch::open().map_err(|errno| {
            let code = "tracking-unwatched";
            warn!(code, "cannot tell when conntrack is needed, so it is used: {errno}");
        });
        plan.tracks = watch.is_err() || needed(plan);
        state.store(plan.tracks, Ordering::Relaxed);
        match watch {
            Ok(watch) if !plan.tracks => {
                let (plan, told) = (plan.clone(), Arc::clone(&state));
                let (host, hosts) = sync_channel(1);
                let (stopped, stop) = std::io::pipe().context("cannot watch nftables")?;
                let farewell = Farewell::new(Part::Tracking, farewells);
                let thread = thread::Builder::new()
                    .name("tracking".to_owned())
                    .spawn(move || {
                        follow(&plan, &watch, &hosts, &stopped, &told);
                        farewell.done();
                    })
                    .context("cannot start a thread")?;
                Ok(Self { state, waiting: Some(Waiting { thread, host, stop }) })
            }
            Ok(_) | Err(()) => Ok(Self { state, waiting: None }),
        }
    }

    /// Whether they are tracked.
    pub(super) fn state(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.state)
    }

    /// From now on there is a table to be changed over.
    pub(super) fn take(&self, host: &Shared) {
        if let Some(waiting) = &self.waiting {
            // There is room for one, and there is but one.
            let _ = waiting.host.send(host.clone());
        }
    }

    /// Waits for a switch that is being made; none is begun any more. To be called before the
    /// table goes.
    pub(super) fn end(self) {
        if let Some(Waiting { thread, host, stop }) = self.waiting {
            drop((host, stop));
            // Its fault has been said.
            let _ = thread.join();
        }
    }
}

/// Makes the switch when it is time.
fn follow(
    plan: &Plan,
    watch: &Watch,
    hosts: &Receiver<Shared>,
    stopped: &PipeReader,
    state: &AtomicBool,
) {
    // None comes where the start has failed.
    let Ok(host) = hosts.recv() else { return };
    loop {
        match watch.wait(stopped) {
            Ok(Some(())) if !needed(plan) => {}
            // Where it can't be told any more, it is time.
            Ok(Some(())) | Err(_) => break,
            Ok(None) => return,
        }
    }
    let (mut told, mut again) = (false, AGAIN);
    // Where it was put back nobody is to be served any more.
    while let Err(error) = host.with(Host::track).unwrap_or(Ok(())) {
        if !std::mem::replace(&mut told, true) {
            let code = "tracking-failed";
            warn!(code, "containers and translated addresses are not served yet: {error}");
        }
        if stopped_within(stopped, again) {
            return;
        }
        again = (2 * again).min(AT_MOST);
    }
    state.store(true, Ordering::Relaxed);
    info!("connections are tracked from now on");
}

/// After what may pass; twice as long each time.
const AGAIN: Duration = Duration::from_secs(1);
/// Each time takes a program.
const AT_MOST: Duration = Duration::from_secs(60);
