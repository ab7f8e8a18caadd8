//! `tunneld run`: the daemon, which takes a whole host's packets.
//!
//! # Theory of operation
//!
//! Everything that can be refused is refused before the host is touched: rights, configuration,
//! policy, a second daemon, a foreign device. What a dead daemon left is undone. Then:
//!
//! ```text
//! queues of the TUN ─▶ engine and driver a queue, one thread each ─▶ control socket bound
//!   ─▶ changes of the host: each journaled, then made (tunnel::host)
//!   ─▶ the host's resolver led to us ─▶ READY=1
//!   ─▶ control, signals ∥ addresses and devices of the host followed ∥ its resolver followed
//! SIGTERM ─▶ shards end their flows ─▶ changes undone, the last one first
//! ```
//!
//! The shards run before the routes that lead to them are made, so no packet waits for a
//! reader. The main thread runs the control socket and all that is not a packet on one runtime.
//! Every thread of the second row and of what is followed ends the daemon if it ends unasked.

mod farewell;
mod follow;
mod shared;
mod takeover;
mod tracking;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use dns::discover;
use engine::policy::Policy;
use engine::{DeviceName, Own, Report, Services};
use ipnet::IpNet;
use rustix::process::geteuid;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{error, info, warn};
use tunnel::device::open_tun;
use tunnel::driver::{self, DriverError, Handle, Totals};
use tunnel::host::{self, Host, HostError};
use tunnel::owner::{Owners, open_diagnostics};

use crate::config::{self, Capture, Config, Queues};
use crate::control;
use crate::daemon::{self, Access, Daemon, Events, NotLoaded, Shard};
use crate::error::{Refusal, code};
use crate::names::{self, Names, Network};
use crate::policy_files;
use crate::report::Clock;
use crate::secrets;
use crate::shards::{Blueprint, raise_descriptors};
use crate::ways::{self, Wanted, WaysOut};
use farewell::{Farewell, Part};
use follow::Follower;
use shared::Shared;
use takeover::Takeover;
use tracking::Tracking;

/// Take this host's packets, until told to stop
///
/// Runs in the foreground and tells a service manager when it is ready. SIGHUP reloads,
/// SIGTERM ends it and puts everything back.
///
/// Exit: 0 ended by a signal, 2 the configuration is wrong, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

/// Where the configuration is looked for.
pub(crate) const CONFIG: &str = "/etc/tunneld/tunneld.toml";
/// Reports that may wait for those who watch.
const REPORTS: usize = 65_536;
/// What the control socket is still at when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);
/// Below as many cores one shard carries as much as two (`docs/performance.md`).
const CORES_FOR_TWO: usize = 4;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<u8> {
    if !geteuid().is_root() {
        return Err(Refusal::new(code::FAILED, "cannot run the daemon: it takes root")
            .help("`tunneld exec -- CMD` needs no root")
            .into());
    }
    let config = config::read_for_daemon(&args.config)?;
    if config.has_secrets() {
        secrets::keep();
    }
    // First of all: what a dead daemon left may keep this host from everything.
    let lock = directory(&config.control.socket).to_owned();
    let (mut host, undone) = Host::open(&lock).map_err(refuse)?;
    if !undone.is_empty() {
        info!(changes = undone.len(), "undid what an earlier daemon had left");
    }
    if config.dns.takeover != config::Takeover::Nobody {
        takeover::put_back(&mut host)?;
    }
    let takeover = Takeover::prepare(&config, host.directory())?;
    let policy =
        policy_files::load(&[policy_files::directory(&config)], config.named()?, code::FAILED)?;
    let policy = Arc::new(policy);
    let mut plan = plan(&config)?;
    host.refuse_foreign(&plan).map_err(refuse)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control socket")?;
    // From here on a signal is kept until somebody can put the host back.
    let signals = runtime.block_on(async { Signals::keep() })?;
    // Of threads, unasked or asked.
    let (farewells, mut ended) = unbounded_channel();
    let tracking = Tracking::decide(&mut plan, &farewells)?;
    let mark = Some(config.host.mark);
    let names = names::Waiting::new(&config, &policy, mark)?;
    let shards = Shards::start(&config, &policy, names.names(), &farewells)?;
    let follower = Follower::start(&plan, &shards.handles, &farewells)?;
    let wanted =
        Wanted::of(&config, &policy).map_err(|error| ways::refuse(&error, code::FAILED))?;
    let ways = WaysOut::start(
        ways::Parts {
            shards: shards.boxed(),
            names: names.names().clone(),
            mark: Some(plan.mark),
            events: Some(Arc::clone(&shards.events)),
            shown: shards.handles.first().cloned(),
        },
        Farewell::new(Part::Ways, &farewells),
    );
    let control = config.control.clone();
    let (on_host, orders) = unbounded_channel();
    let daemon = Arc::new(Daemon::new(daemon::Parts {
        shards: shards.seen_by_control(),
        policy,
        generation: 1,
        config_file: Some(args.config.clone()),
        access: Access::of(&config.control),
        config,
        events: Arc::clone(&shards.events),
        names: Some(names.names().clone()),
        ways: Some(ways.clone()),
        mark,
        tracking: tracking.state(),
        on_host: Some(on_host),
    }));

    let device = Some(plan.device.to_string());
    let found = discover::Settings::of_this_host(names.names().own(), device);
    let search = names.names().search();
    let events = Some(Arc::clone(&shards.events));
    names
        .start(
            shards.handles.clone(),
            Network::Followed(found),
            events,
            Farewell::new(Part::Names, &farewells),
        )
        .context("cannot start a thread")?;

    // Before anything is led to us.
    ways.open(wanted).map_err(|error| ways::refuse(&error, code::FAILED))?;
    let seen = host::Seen::look().map_err(refuse)?;
    let changes = host::changes(&plan, &seen);
    let listener = runtime.block_on(async { control::listen(&control.socket, &control.group) })?;
    if let Err(error) = host.apply(changes) {
        let _ = std::fs::remove_file(&control.socket);
        return Err(refuse(error));
    }
    let host = Shared::new(host);
    tracking.take(&host);
    follower.take(&host);
    let taken = takeover.start(&plan, &seen, &host, (orders, search), &farewells);
    let mut missing = None;
    let stop = async { missing = until_told(signals, &daemon, &mut ended).await };
    runtime.block_on(control::serve(listener, Arc::clone(&daemon), stop));
    notify(&[NotifyState::Stopping]);
    ways.hide();
    drop(taken);
    follower.end();
    tracking.end();
    let totals = shards.end();
    let restored = host.restore().map_err(refuse);
    // A policy that is being read holds nobody up.
    runtime.shutdown_timeout(GRACE);
    restored?;
    totals?;
    match missing {
        None => Ok(code::DONE),
        Some(part) => Err(Refusal::new(code::FAILED, part).into()),
    }
}

/// The signals that a daemon obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn keep() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Says that all is ready, and reloads when told, until a signal ends the daemon, or the end of a
/// thread, which is told: without a shard its part of the host's traffic would wait for nobody.
async fn until_told(
    mut signals: Signals,
    daemon: &Arc<Daemon>,
    ended: &mut UnboundedReceiver<Part>,
) -> Option<Part> {
    notify(&[NotifyState::Ready]);
    info!("ready");
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
            _ = signals.hang_up.recv() => {
                tokio::spawn(reload(Arc::clone(daemon)));
            }
            Some(part) = ended.recv() => {
                error!(code = part.code(), "{part}, and the daemon ends");
                return Some(part);
            }
        }
    }
}

/// SIGHUP. What it says goes to the log; the verb says it to who asked.
async fn reload(daemon: Arc<Daemon>) {
    let now = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading, now.unwrap_or(NotifyState::Ready)]);
    match daemon.reload().await {
        Ok(reloaded) => {
            info!(generation = reloaded.generation, cut = reloaded.cut.len(), "reloaded")
        }
        Err(error @ NotLoaded::Unconfirmed(_)) => {
            warn!(code = "reload-unconfirmed", "{error}");
        }
        Err(error) => {
            warn!(code = "reload-refused", "not reloaded, all is as it was: {error}");
            for told in error.diagnostics().iter().filter(|told| told.is_error()) {
                warn!(code = "reload-refused", "{told}");
            }
        }
    }
    notify(&[NotifyState::Ready]);
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(code = "notify-failed", "cannot tell the service manager: {error}");
    }
}

/// The threads that carry flows.
struct Shards {
    handles: Vec<Handle>,
    clocks: Vec<Clock>,
    threads: Vec<JoinHandle<Result<Totals, DriverError>>>,
    events: Arc<Events>,
}

impl Shards {
    fn start(
        config: &Config,
        policy: &Arc<Policy>,
        names: &Names,
        farewells: &UnboundedSender<Part>,
    ) -> anyhow::Result<Self> {
        let queues = open_queues(config)?;
        raise_descriptors();
        let (sender, receiver) = sync_channel(REPORTS);
        let blueprint = Blueprint {
            config,
            policy: Arc::clone(policy),
            own: Own::Addresses {
                device: config.device.addresses.iter().map(IpNet::addr).collect(),
                host: follow::addresses().context("cannot look at the host's addresses")?,
            },
            services: Services { resolver: Some(config.dns.service()), loopback: Vec::new() },
            names,
            mark: Some(config.host.mark),
            shards: queues.len(),
            reports: Some(sender),
        };
        let mut shards = Self {
            handles: Vec::new(),
            clocks: Vec::new(),
            threads: Vec::new(),
            events: Arc::default(),
        };
        let build = |(number, queue)| {
            let owners = open_diagnostics().and_then(Owners::new);
            blueprint.build(number, queue, owners.ok())
        };
        let mut drivers =
            queues.into_iter().enumerate().map(build).collect::<anyhow::Result<Vec<_>>>()?;
        driver::join(&mut drivers);
        for (number, driver) in drivers.into_iter().enumerate() {
            shards.handles.push(driver.handle());
            shards.clocks.push(Clock { epoch: SystemTime::now() - driver.epoch().elapsed() });
            let farewell = Farewell::new(Part::Shard(number), farewells);
            let thread = thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
                let _farewell = farewell;
                driver.run()
            });
            shards.threads.push(thread.context("cannot start a thread")?);
        }
        // Ends when the last shard has.
        let (clocks, events) = (shards.clocks.clone(), Arc::clone(&shards.events));
        let farewell = Farewell::new(Part::Events, farewells);
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || tell(&receiver, &clocks, &events, farewell))
            .context("cannot start a thread")?;
        Ok(shards)
    }

    fn boxed(&self) -> Vec<Box<dyn Shard>> {
        self.handles.iter().map(|handle| Box::new(handle.clone()) as Box<dyn Shard>).collect()
    }

    fn seen_by_control(&self) -> Vec<(Box<dyn Shard>, Clock)> {
        self.boxed().into_iter().zip(self.clocks.iter().copied()).collect()
    }

    /// Ends every flow and waits for that.
    fn end(self) -> anyhow::Result<()> {
        for handle in &self.handles {
            handle.stop();
        }
        // All of them, whatever one says.
        let ended: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        for ended in ended {
            ended.map_err(|_| anyhow::anyhow!("a shard's thread panicked"))??;
        }
        Ok(())
    }
}

/// Tells whoever watches what flows do, until the last shard has ended.
fn tell(
    reports: &Receiver<(usize, Report)>,
    clocks: &[Clock],
    events: &Events,
    farewell: Farewell,
) {
    daemon::publish(reports, clocks, events);
    farewell.done();
}

/// All queues are attached before the device is up: a queue that came later would take over
/// half of the flows (the kernel hashes them anew).
fn open_queues(config: &Config) -> anyhow::Result<Vec<OwnedFd>> {
    let queues = match config.device.queues {
        Queues::Count(count) => count,
        Queues::Auto => {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            if cores < CORES_FOR_TWO { 1 } else { cores / 2 }
        }
    };
    (0..queues)
        .map(|_| {
            open_tun(&config.device.name, true, queues > 1).map_err(|error| {
                let what = format!("cannot open the device {}: {error}", config.device.name);
                let refusal = Refusal::new(code::FAILED, what);
                match error.help() {
                    Some(help) => refusal.help(help).into(),
                    None => refusal.into(),
                }
            })
        })
        .collect()
}

/// Where lock and journal are: beside the control socket, so that whoever finds one finds all.
pub(crate) fn directory(socket: &Path) -> &Path {
    socket.parent().unwrap_or_else(|| Path::new("/"))
}

fn plan(config: &Config) -> anyhow::Result<host::Plan> {
    Ok(host::Plan {
        device: DeviceName::new(&config.device.name).context("the device's name was checked")?,
        addresses: config.device.addresses.clone(),
        mtu: config.device.mtu,
        mark: host::Mark { value: config.host.mark, mask: config.host.mask },
        table: config.host.table,
        priority: config.host.priority,
        capture: capture(&config.device.capture, &config.dns.addresses),
        forward: config.device.forward,
        local: config.guard.local.clone(),
        tracks: true,
        untold: host::Plan::UNTOLD,
    })
}

/// What is led to us, where we answer at `ours`.
fn capture(capture: &Capture, ours: &[IpAddr]) -> host::Capture {
    match capture {
        Capture::All => host::Capture::All,
        Capture::Prefixes(prefixes) => {
            // Where we answer is in there, whatever else is.
            let ours = ours.iter().copied().map(IpNet::from);
            host::Capture::Prefixes(prefixes.iter().copied().chain(ours).collect())
        }
        Capture::Nothing => host::Capture::Nothing,
    }
}

pub(crate) fn refuse(error: HostError) -> anyhow::Error {
    let refusal = Refusal::new(code::FAILED, &error);
    match error.help() {
        Some(help) => refusal.help(help).into(),
        None => refusal.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::standin::flow;

    /// It ends with the last shard.
    #[test]
    fn who_tells_events_ends_with_the_last_shard() {
        let (told, mut ended) = unbounded_channel();
        let events = Arc::<Events>::default();
        let mut watch = events.watch();
        let (sender, reports) = sync_channel(8);
        let farewell = Farewell::new(Part::Events, &told);
        let (clocks, of_thread) = ([Clock { epoch: SystemTime::now() }], Arc::clone(&events));
        let thread = thread::spawn(move || tell(&reports, &clocks, &of_thread, farewell));
        sender.send((0, flow(7, 443))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let line = runtime.block_on(watch.next()).unwrap();
        assert!(line.contains("\"0-7\""), "{line}");
        assert!(ended.try_recv().is_err(), "it goes on");
        drop(sender);
        thread.join().unwrap();
        assert!(ended.try_recv().is_err(), "nobody misses it");
    }

    #[test]
    fn who_ends_by_a_fault_is_missed() {
        let (told, mut ended) = unbounded_channel();
        let farewell = Farewell::new(Part::Events, &told);
        let thread = thread::spawn(move || {
            let _farewell = farewell;
            std::panic::resume_unwind(Box::new("a fault"));
        });
        assert!(thread.join().is_err());
        assert_eq!(ended.try_recv().ok(), Some(Part::Events));
    }
}
