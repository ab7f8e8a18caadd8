//! The host's own programs ask us for names, while the daemon runs.
//!
//! # Theory of operation
//!
//! What was asked for by name and isn't there refuses the start, or a reload. All else that goes
//! wrong is a warning, and tried again: names are then found as they were before, and flows are
//! judged all the same. One thread with a runtime of its own does it, because a change may wait
//! for other programs. It makes the changes of the host that a reload asks for, too:
//!
//! ```text
//! Prepare: is the way there? ─▶ routes to where we will answer ─▶ (the shards answer there)
//!   ─▶ Commit: the old way put back, the new one taken ─▶ routes to where we did removed
//!   or GiveUp: the new routes removed
//! ```

use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use dns::discover::ResolvConf;
use dns::takeover::resolved::{self, Hold, Link};
use dns::takeover::{
    self, Follow, KEPT, RECORD, RESOLV_CONF, TakeoverError, Todo, Wanted, Way, Whose,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tracing::{debug, info, warn};
use tunnel::host::{Begun, Change, Host, Ipv6, Plan, Seen, resolv_conf};

use crate::config::{self, Capture, Config};
use crate::daemon::{OnHost, Unled};
use crate::error::{Refusal, code};
use crate::names::Search;

use super::farewell::{Farewell, Part};
use super::shared::Shared;

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
    dns: config::Dns,
    capture: Capture,
    way: Option<Wish>,
}

/// A way that is there.
struct Wish {
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
    /// Looks whether it can be done.
    ///
    /// # Errors
    /// The way that is wanted is not there.
    pub(super) fn prepare(config: &Config, holder: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot watch the host's resolver")?;
        let (dns, capture) = (config.dns.clone(), config.device.capture.clone());
        let way = match runtime.block_on(wish(&dns, &capture, holder)) {
            Ok(way) => way,
            Err(error @ (TakeoverError::NoResolved | TakeoverError::NoResolvconf)) => {
                let refusal = Refusal::new(code::FAILED, error);
                return Err(error.help().into_iter().fold(refusal, Refusal::help).into());
            }
            Err(error @ TakeoverError::Watch(_)) => {
                not_taken(&error, error.help());
                None
            }
        };
        Ok(Self { runtime, dns, capture, way })
    }

    /// Leads the host's resolver to those of our addresses that the host can reach: names are
    /// answered there by now, and packets find their way. Returns when that is done, or has
    /// failed, or takes long. From then on a reload's `orders` are done, and what completes short
    /// names is told to the host as it changes.
    pub(super) fn start(
        self,
        plan: &Plan,
        seen: &Seen,
        host: &Shared,
        (mut orders, mut search): (UnboundedReceiver<OnHost>, watch::Receiver<Search>),
        farewells: &UnboundedSender<Part>,
    ) -> Option<Taken> {
        let Self { runtime, dns, capture, way } = self;
        let device = seen.devices.iter().find(|device| device.name == plan.device);
        let mut keeper = Keeper {
            plan: plan.clone(),
            host: host.clone(),
            index: device.map_or(0, |device| device.index),
            ipv6: seen.ipv6 == Ipv6::Usable,
            capture,
            dns,
            servers: Vec::new(),
            search: search.borrow_and_update().clone(),
            follow: None,
            hold: None,
            way: None,
            untaken: None,
            next: None,
        };
        let (stop, mut stopped) = oneshot::channel();
        let (tried, first) = channel::<()>();
        let keep = async move {
            keeper.begin(way).await;
            drop(tried);
            loop {
                tokio::select! {
                    todo = next(&mut keeper.follow) => keeper.take(todo),
                    Some(order) = orders.recv() => keeper.obey(order).await,
                    Ok(()) = search.changed() => {
                        let search = search.borrow_and_update().clone();
                        keeper.complete_by(search).await;
                    }
                    // Told to, or by the end of who would tell.
                    _ = &mut stopped => break,
                }
            }
            keeper.end_hold().await;
        };
        let farewell = Farewell::new(Part::Takeover, farewells);
        let spawned = thread::Builder::new().name("takeover".to_owned()).spawn(move || {
            let _farewell = farewell;
            runtime.block_on(keep);
        });
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

/// The way to what is wanted; `None`: nothing is, or nothing leads to us.
async fn wish(
    dns: &config::Dns,
    capture: &Capture,
    holder: &Path,
) -> Result<Option<Wish>, TakeoverError> {
    let wanted = wanted(dns.takeover);
    if wanted == Wanted::None || *capture == Capture::Nothing {
        return Ok(None);
    }
    let holder = holder.to_owned();
    let whose = move |bytes: &[u8]| match resolv_conf::whose(bytes, &holder) {
        resolv_conf::Whose::Ours => Whose::Ours,
        resolv_conf::Whose::Anothers(_) => Whose::Anothers,
        // One of a dead daemon names nobody.
        resolv_conf::Whose::Orphaned | resolv_conf::Whose::Theirs => Whose::Theirs,
    };
    let (follow, hold) = Follow::new(wanted, Path::new("/"), None, whose).await?;
    Ok(Some(Wish { follow, hold }))
}

async fn next(follow: &mut Option<Follow>) -> Todo {
    match follow {
        Some(follow) => follow.next().await,
        None => std::future::pending().await,
    }
}

/// What is led to us, and how.
struct Keeper {
    plan: Plan,
    host: Shared,
    /// Of the TUN.
    index: u32,
    ipv6: bool,
    capture: Capture,
    /// In force.
    dns: config::Dns,
    /// Where programs are led.
    servers: Vec<IpAddr>,
    /// What completes their short names.
    search: Search,
    follow: Option<Follow>,
    hold: Option<Hold>,
    /// How the file was taken.
    way: Option<Way>,
    /// Why it could not be taken, as it was said last.
    untaken: Option<String>,
    /// What a reload is to bring.
    next: Option<Next>,
}

struct Next {
    dns: config::Dns,
    plan: Plan,
    way: Option<Wish>,
}

impl Keeper {
    /// Takes the way that is wanted.
    async fn begin(&mut self, way: Option<Wish>) {
        let reached = |ip: &&IpAddr| ip.is_ipv4() || self.ipv6;
        self.servers = self.dns.addresses.iter().filter(reached).copied().collect();
        let Some(Wish { follow, hold }) = way else { return self.end_hold().await };
        if self.index == 0 || self.servers.is_empty() {
            not_taken(&"this host has no IPv6, and `dns.address` names nothing else", None);
            self.give_back();
            return self.end_hold().await;
        }
        if hold {
            self.hold().await;
        } else {
            self.end_hold().await;
        }
        let follow = self.follow.insert(follow);
        if let Some(todo) = follow.now().await {
            self.take(todo);
        }
    }

    /// Tells systemd-resolved of us.
    async fn hold(&mut self) {
        let link = Link {
            index: self.index,
            servers: self.servers.clone(),
            // Those of the network it has from the network's own links.
            search: self.search.tunnels().map(str::to_owned).collect(),
        };
        // One that is dropped leaves all as it is: nobody else is asked in between.
        self.hold = None;
        self.hold = Some(resolved::hold(None, link).await);
    }

    /// Other domains complete short names from now on.
    async fn complete_by(&mut self, search: Search) {
        let before = std::mem::replace(&mut self.search, search);
        if self.hold.is_some() && !before.tunnels().eq(self.search.tunnels()) {
            self.hold().await;
        }
        // What is somebody else's at the moment is left to whoever follows it.
        let is_ours = |way: &Way| match way {
            Way::Record => true,
            Way::File => {
                let file = std::fs::read(RESOLV_CONF).unwrap_or_default();
                let whose = |host: &mut Host| resolv_conf::whose(&file, host.directory());
                self.host.with(whose) == Some(resolv_conf::Whose::Ours)
            }
        };
        let goes_on = self.follow.as_ref().is_some_and(Follow::goes_on);
        if let Some(way) = self.way.filter(is_ours).filter(|_| goes_on) {
            self.take(Todo::Take(way));
        }
    }

    async fn end_hold(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.release().await;
        }
    }

    fn take(&mut self, todo: Todo) {
        let Todo::Take(way) = todo else { return };
        // Where a thread has panicked at the host the daemon is about to end.
        let begin = |host: &mut Host| {
            let change = change(way, &self.servers, &self.search, host.directory());
            host.begin(change)
        };
        let Some(begun) = self.host.with(begin) else { return };
        // Other programs may take seconds, and the host's devices are followed meanwhile.
        match begun.and_then(Begun::make) {
            Ok(()) => {
                info!("the host's programs ask us for names");
                (self.way, self.untaken) = (Some(way), None);
            }
            Err(error) => {
                if let Some(follow) = &mut self.follow {
                    follow.failed();
                }
                let why = error.to_string();
                if self.untaken.as_ref() == Some(&why) {
                    debug!("again: {why}");
                } else {
                    not_taken(&why, error.help());
                    self.untaken = Some(why);
                }
            }
        }
    }

    async fn obey(&mut self, order: OnHost) {
        match order {
            OnHost::Prepare { dns, answer } => {
                let prepared = self.prepare(dns).await;
                if answer.send(prepared).is_err() {
                    // Whoever has given up does not go on.
                    self.give_up();
                }
            }
            OnHost::Commit { answer } => {
                if let Some(next) = self.next.take() {
                    self.commit(next).await;
                }
                let _ = answer.send(());
            }
            OnHost::GiveUp { answer } => {
                self.give_up();
                let _ = answer.send(());
            }
        }
    }

    /// The first half of a reload: what can go wrong, and what nobody notices.
    async fn prepare(&mut self, dns: config::Dns) -> Result<(), Unled> {
        // A reload that went no further.
        self.give_up();
        let holder = self.host.with(|host| host.directory().to_owned()).ok_or(Unled::Gone)?;
        let way = wish(&dns, &self.capture, &holder).await?;
        let capture = super::capture(&self.capture, &dns.addresses);
        let plan = Plan { capture, ..self.plan.clone() };
        self.host.with(|host| host.lead(&plan)).ok_or(Unled::Gone)??;
        self.next = Some(Next { dns, plan, way });
        Ok(())
    }

    /// Takes back what a reload was prepared by that is not to be.
    fn give_up(&mut self) {
        if let Some(next) = self.next.take() {
            self.lead_no_more(&next.plan, &self.plan.clone());
        }
    }

    /// The second half: names are answered where they are to be by now.
    async fn commit(&mut self, next: Next) {
        let before = std::mem::replace(&mut self.dns, next.dns);
        let plan = std::mem::replace(&mut self.plan, next.plan);
        if before.takeover != self.dns.takeover {
            self.give_back();
            self.begin(next.way).await;
        } else if before.addresses != self.dns.addresses {
            // The same way to another place: what follows it stays, and remembers.
            let follow = self.follow.take();
            let (hold, way) = (self.hold.is_some(), self.way);
            let wish = follow.or_else(|| next.way.map(|wish| wish.follow));
            self.begin(wish.map(|follow| Wish { follow, hold })).await;
            if let (Some(way), Some(_)) = (way, &self.follow) {
                self.take(Todo::Take(way));
            }
        }
        self.lead_no_more(&plan, &self.plan.clone());
    }

    /// Puts the file back, or the record.
    fn give_back(&mut self) {
        (self.follow, self.way, self.untaken) = (None, None, None);
        let is_it = |change: &Change| {
            matches!(change, Change::ResolvConf { .. } | Change::ResolvconfRecord { .. })
        };
        if let Some(Err(error)) = self.host.with(|host| host.release(is_it)) {
            not_taken(&error, error.help());
        }
    }

    fn lead_no_more(&self, before: &Plan, plan: &Plan) {
        let released = self.host.with(|host| host.lead_no_more(before, plan));
        if let Some(Err(error)) = released {
            warn!(code = "route-left", "where names were answered still leads to us: {error}");
        }
    }
}

fn change(way: Way, ours: &[IpAddr], search: &Search, holder: &Path) -> Change {
    match way {
        Way::File => {
            let read = |path| std::fs::read(path).unwrap_or_default();
            let now = read(RESOLV_CONF);
            let before = match resolv_conf::whose(&now, holder) {
                // Its domains are not all the host's.
                resolv_conf::Whose::Ours | resolv_conf::Whose::Orphaned => read(KEPT),
                resolv_conf::Whose::Anothers(_) | resolv_conf::Whose::Theirs => now,
            };
            let before = ResolvConf::parse(&String::from_utf8_lossy(&before));
            let text = takeover::text(ours, &search.around_the_hosts(), &before);
            let holder = holder.to_owned();
            Change::ResolvConf { path: RESOLV_CONF.into(), kept: KEPT.into(), text, holder }
        }
        Way::Record => {
            let text = takeover::text(ours, &search.around_the_hosts(), &ResolvConf::default());
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
