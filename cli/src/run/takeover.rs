//! The host's own programs ask us for names, while the daemon runs.
//!
//! What was asked for by name and isn't there refuses the start. All else that goes wrong is a
//! warning: names are then found as they were before, and flows are judged all the same. One
//! thread with a runtime of its own does it, because a change may wait for other programs.

use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use dns::discover::ResolvConf;
use dns::takeover::resolved::{self, Link};
use dns::takeover::{self, Follow, KEPT, RECORD, RESOLV_CONF, TakeoverError, Todo, Wanted, Way};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{info, warn};
use tunnel::host::{Change, Host, Ipv6, Plan, Seen, resolv_conf};

use crate::config::{self, Capture, Config};
use crate::error::{Refusal, code};

/// How long the start waits for the host's resolver: that is led to us afterwards as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts back what a daemon has left whose journal is lost.
///
/// # Errors
/// It can't be put back.
pub(super) fn put_back(host: &mut Host) -> anyhow::Result<()> {
    let put_back = host.put_back_resolv_conf(Path::new(RESOLV_CONF), Path::new(KEPT));
    if put_back.map_err(super::refuse)?.is_some() {
        info!("{RESOLV_CONF} is as it was before an earlier daemon");
    }
    Ok(())
}

/// What is to be done, looked at before anything is changed.
pub(super) struct Takeover {
    runtime: Runtime,
    follow: Follow,
    /// Whether systemd-resolved is to be told.
    hold: bool,
}

/// The thread that keeps it so; all but the file and the record is given back when dropped.
pub(super) struct Taken {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Takeover {
    /// `None`: nothing is wanted, or nothing leads to us.
    ///
    /// # Errors
    /// The way that is wanted is not there.
    pub(super) fn prepare(config: &Config) -> anyhow::Result<Option<Self>> {
        let wanted = wanted(config.dns.takeover);
        if wanted == Wanted::None || config.device.capture == Capture::Nothing {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot watch the host's resolver")?;
        let follow = Follow::new(wanted, Path::new("/"), None, resolv_conf::is_ours);
        match runtime.block_on(follow) {
            Ok((follow, hold)) => Ok(Some(Self { runtime, follow, hold })),
            Err(error @ (TakeoverError::NoResolved | TakeoverError::NoResolvconf)) => {
                let refusal = Refusal::new(code::FAILED, error);
                Err(error.help().into_iter().fold(refusal, Refusal::help).into())
            }
            Err(error @ TakeoverError::Watch(_)) => {
                not_taken(&error, error.help());
                Ok(None)
            }
        }
    }

    /// Leads the host's resolver to those of `ours` that the host can reach: names are answered
    /// there by now, and packets find their way. Returns when that is done, or has failed, or
    /// takes long.
    pub(super) fn start(
        self,
        plan: &Plan,
        ours: &[IpAddr],
        seen: &Seen,
        host: &Arc<Mutex<Host>>,
    ) -> Option<Taken> {
        let reached = |ip: &&IpAddr| ip.is_ipv4() || seen.ipv6 == Ipv6::Usable;
        let servers: Vec<IpAddr> = ours.iter().filter(reached).copied().collect();
        let device = seen.devices.iter().find(|device| device.name == plan.device);
        let (Some(device), false) = (device, servers.is_empty()) else {
            not_taken(&"this host has no IPv6, and `dns.address` names nothing else", None);
            return None;
        };
        let link = Link { index: device.index, servers };
        let (stop, stopped) = oneshot::channel();
        let (tried, first) = channel();
        let host = Arc::clone(host);
        let spawned = thread::Builder::new()
            .name("takeover".to_owned())
            .spawn(move || self.keep(link, &host, stopped, tried));
        match spawned {
            Ok(thread) => {
                // Whatever it was has been said.
                let _ = first.recv_timeout(PATIENCE);
                Some(Taken { stop: Some(stop), thread: Some(thread) })
            }
            Err(error) => {
                not_taken(&error, None);
                None
            }
        }
    }

    fn keep(
        self,
        link: Link,
        host: &Mutex<Host>,
        mut stopped: oneshot::Receiver<()>,
        tried: Sender<()>,
    ) {
        let Self { runtime, mut follow, hold } = self;
        runtime.block_on(async {
            let held = match hold {
                true => Some(resolved::hold(None, link.clone()).await),
                false => None,
            };
            if let Some(todo) = follow.now().await {
                take(todo, &link.servers, host);
            }
            drop(tried);
            loop {
                tokio::select! {
                    todo = follow.next() => take(todo, &link.servers, host),
                    // Told to, or by the end of who would tell.
                    _ = &mut stopped => break,
                }
            }
            if let Some(held) = held {
                held.release().await;
            }
        });
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its fault leaves nothing that the journal doesn't know.
            let _ = thread.join();
        }
    }
}

fn take(todo: Todo, ours: &[IpAddr], host: &Mutex<Host>) {
    let change = match todo {
        Todo::Take(way) => change(way, ours),
        Todo::Leave => return,
    };
    // Where the follower has ended by a fault, the journal is not ours to go on with.
    let Ok(mut host) = host.lock() else { return };
    match host.apply_live(change) {
        Ok(()) => info!("the host's programs ask us for names"),
        Err(error) => not_taken(&error, error.help()),
    }
}

fn change(way: Way, ours: &[IpAddr]) -> Change {
    match way {
        Way::File => {
            let before = std::fs::read(RESOLV_CONF).unwrap_or_default();
            let before = ResolvConf::parse(&String::from_utf8_lossy(&before));
            let text = takeover::text(ours, &before);
            Change::ResolvConf { path: RESOLV_CONF.into(), kept: KEPT.into(), text }
        }
        Way::Record => {
            let text = takeover::text(ours, &ResolvConf::default());
            Change::ResolvconfRecord { record: RECORD.to_owned(), text }
        }
    }
}

fn wanted(takeover: config::Takeover) -> Wanted {
    match takeover {
        config::Takeover::Auto => Wanted::Auto,
        config::Takeover::Resolved => Wanted::Resolved,
        config::Takeover::Resolvconf => Wanted::Resolvconf,
        config::Takeover::File => Wanted::File,
        config::Takeover::Nobody => Wanted::None,
    }
}

fn not_taken(why: &dyn std::fmt::Display, help: Option<&str>) {
    let help = help.map(|help| format!("; {help}")).unwrap_or_default();
    warn!(code = "resolver-not-taken", "the host's programs may not ask us for names: {why}{help}");
}
