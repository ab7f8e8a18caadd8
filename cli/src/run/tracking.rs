//! Whether this host's connections have to be tracked for us, now and later.
//!
//! Conntrack costs every packet, so it isn't switched on where nobody else has. Once somebody
//! does, or packets are forwarded, the table of the host is changed over, for as long as this
//! daemon runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tracing::{info, warn};
use tunnel::host::tracking::{Switch, Watch, needed};
use tunnel::host::{Capture, Plan};

/// What is known of it.
pub(super) struct Tracking {
    state: Arc<AtomicBool>,
    /// To the thread that waits for the time to switch. `None`: it is as it will be.
    switch: Option<SyncSender<Switch>>,
}

impl Tracking {
    /// Decides for a plan.
    pub(super) fn decide(plan: &mut Plan) -> anyhow::Result<Self> {
        plan.tracks = false;
        let state = Arc::<AtomicBool>::default();
        if plan.capture == Capture::Nothing {
            return Ok(Self { state, switch: None });
        }
        // First of all: what changes from here on is told.
        let watch = Watch::open().map_err(|errno| {
            let code = "tracking-unwatched";
            warn!(code, "cannot tell when conntrack is needed, so it is used: {errno}");
        });
        plan.tracks = watch.is_err() || needed(plan);
        state.store(plan.tracks, Ordering::Relaxed);
        let (switch, switches) = sync_channel(1);
        match watch {
            Ok(watch) if !plan.tracks => {
                let (plan, told) = (plan.clone(), Arc::clone(&state));
                thread::Builder::new()
                    .name("tracking".to_owned())
                    .spawn(move || follow(&plan, &watch, &switches, &told))
                    .context("cannot start a thread")?;
                Ok(Self { state, switch: Some(switch) })
            }
            Ok(_) | Err(()) => Ok(Self { state, switch: None }),
        }
    }

    /// Whether they are tracked.
    pub(super) fn state(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.state)
    }

    /// From now on there is a table to be changed over.
    pub(super) fn may_switch(&self, switch: Option<Switch>) {
        if let Some((thread, switch)) = self.switch.as_ref().zip(switch) {
            // There is room for one, and there is but one.
            let _ = thread.send(switch);
        }
    }
}

/// Makes the switch when it is time.
fn follow(plan: &Plan, watch: &Watch, switches: &Receiver<Switch>, state: &AtomicBool) {
    // None comes where the start has failed.
    let Ok(switch) = switches.recv() else { return };
    // Where it can't be told any more, it is time.
    while watch.wait().is_ok() && !needed(plan) {}
    let mut told = false;
    while let Err(error) = switch.make() {
        if !std::mem::replace(&mut told, true) {
            let code = "tracking-failed";
            warn!(code, "containers and translated addresses are not served yet: {error}");
        }
        thread::sleep(AGAIN);
    }
    state.store(true, Ordering::Relaxed);
    info!("connections are tracked from now on");
}

/// After what may pass.
const AGAIN: Duration = Duration::from_secs(1);
