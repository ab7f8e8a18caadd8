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
use tracing::{debug, error, info, warn};
use tunnel::driver::request::Request;
use tunnel::driver::{Handle, Unasked};
use tunnel::host::addresses::list;
use tunnel::host::{Astray, Changed, Host, Lost, Plan, Watch, stopped_within};

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
        let watch = Watch::open(plan.table, plan.device).context("cannot watch the host")?;
        let (stopped, stop) = std::io::pipe().context("cannot watch the host")?;
        let (host, hosts) = sync_channel(1);
        let following = Following {
            plan: plan.clone(),
            shards: shards.to_vec(),
            addresses: None,
            untold: Vec::new(),
            blind: false,
        };
        let mut farewell = Farewell::new(Part::Follower, farewells);
        let thread = thread::Builder::new()
            .name("follower".to_owned())
            .spawn(move || {
                if following.run(&hosts, &watch, &stopped) == Ended::DeviceLost {
                    farewell.of(Part::Device);
                }
                drop(farewell);
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

/// Why nothing is followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Told to, or by the end of who would tell.
    Stopped,
    /// Somebody has taken the TUN away, and nothing leads to us any more.
    DeviceLost,
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
    fn run(mut self, hosts: &Receiver<Shared>, watch: &Watch, stopped: &PipeReader) -> Ended {
        let Ok(host) = hosts.recv() else { return Ended::Stopped };
        // First of all: what has changed since it was looked at, before there was a watch.
        let mut due = Changed::all();
        let mut look_at = Instant::now();
        loop {
            if due.addresses {
                due.addresses = !self.tell();
            }
            let is_due = due.links || due.removed || due.emptied || due.led;
            if is_due || Instant::now() >= look_at {
                let changed = Changed { addresses: due.addresses, ..Changed::default() };
                let changed = std::mem::replace(&mut due, changed);
                match host.with(|host| self.follow(host, &changed)) {
                    Some(Ok(again)) => look_at = Instant::now() + again,
                    Some(Err(lost)) => {
                        error!(code = "device-lost", "nothing leads to us any more: {lost}");
                        return Ended::DeviceLost;
                    }
                    None => return Ended::Stopped,
                }
            }
            let left = look_at.saturating_duration_since(Instant::now());
            let left = if due.addresses { left.min(AGAIN) } else { left };
            // A new device comes with a dozen changes, which are one to us.
            thread::sleep(GATHER);
            match watch.wait(stopped, Some(left)) {
                Ok(Some(changed)) => due.merge(changed),
                Ok(None) => return Ended::Stopped,
                Err(errno) => {
                    self.cannot_see(&errno);
                    if stopped_within(stopped, AGAIN) {
                        return Ended::Stopped;
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
    fn follow(&mut self, host: &mut Host, changed: &Changed) -> Result<Duration, Lost> {
        let followed = match host.follow(&self.plan, changed) {
            Ok(followed) => followed,
            Err(error) => {
                self.cannot_see(&error);
                return Ok(AGAIN);
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
        for route in &followed.astray {
            let (device, Astray { to, table }) = (self.plan.device, route);
            warn!(
                code = "route-astray",
                "the route to {to} in table {table} leads into {device} itself: what goes there is \
                 unreachable; name its device: ip route replace {to} via ROUTER dev DEVICE"
            );
        }
        followed.lost.map_or(Ok(followed.again), Err)
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::path::Path;
    use std::process::Command;

    use engine::DeviceName;
    use rustix::process::geteuid;
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use tunnel::device::open_tun;
    use tunnel::host::{Capture, Seen, changes};

    use super::*;

    const SETTING: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

    fn setting() -> String {
        std::fs::read_to_string(SETTING).unwrap().trim().to_owned()
    }

    /// Runs `body` in a thread with a network of its own.
    fn on_a_host(body: impl FnOnce() + Send + 'static) {
        let mut other = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let network = format!("/proc/{}/ns/net", other.id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(&network).unwrap() == own {
            thread::sleep(Duration::from_millis(2));
        }
        let network = File::open(network).unwrap();
        let thread = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body();
        });
        let done = thread.join();
        other.kill().unwrap();
        other.wait().unwrap();
        done.unwrap();
    }

    /// The kernel doesn't tell of it.
    #[test]
    fn what_nobody_tells_of_is_looked_at_by_the_clock() {
        if !geteuid().is_root() {
            return eprintln!("skipped: a network namespace for one thread takes root");
        }
        on_a_host(|| {
            let name = format!("tunneld-clock-{}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            for (untold, is_put_right) in
                [(Duration::from_secs(60), false), (Duration::from_millis(100), true)]
            {
                looked_at(&directory, untold, is_put_right);
            }
            std::fs::remove_dir_all(directory).unwrap();
        });
    }

    fn looked_at(directory: &Path, untold: Duration, is_put_right: bool) {
        let (mut host, _) = Host::open(directory).unwrap();
        let tun = open_tun("clock0", false, false).unwrap();
        let plan = Plan {
            addresses: vec!["198.18.0.1/32".parse().unwrap()],
            capture: Capture::All,
            tracks: false,
            untold,
            ..Plan::new(DeviceName::new("clock0").unwrap())
        };
        let watch = Watch::open(plan.table, plan.device).unwrap();
        host.apply(changes(&plan, &Seen::look().unwrap())).unwrap();
        let host = Shared::new(host);
        let (stopped, stop) = std::io::pipe().unwrap();
        let (sender, hosts) = sync_channel(1);
        sender.send(host.clone()).unwrap();
        let following = Following {
            plan,
            shards: Vec::new(),
            addresses: None,
            untold: Vec::new(),
            blind: false,
        };
        let thread = thread::spawn(move || following.run(&hosts, &watch, &stopped));
        assert_eq!(setting(), "1");
        // The first look is over, and nothing that it is told of.
        thread::sleep(Duration::from_millis(500));
        std::fs::write(SETTING, "0").unwrap();
        let began = Instant::now();
        let enough = if is_put_right { 10_000 } else { 700 };
        while setting() == "0" && began.elapsed() < Duration::from_millis(enough) {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(setting() == "1", is_put_right, "a look every {untold:?}");
        drop(stop);
        assert_eq!(thread.join().unwrap(), Ended::Stopped);
        host.restore().unwrap();
        drop(tun);
    }
}
