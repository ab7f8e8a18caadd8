//! Leads the host's own queries to us, and keeps it so.
//!
//! # Theory of operation
//!
//! Programs find their servers in two places: they ask systemd-resolved (by its stub at
//! 127.0.0.53, over D-Bus or nss-resolve), or they read `/etc/resolv.conf`. The first is told to
//! send everything to our link ([`resolved`]), the second has one line that names us. Who writes
//! that file decides how ([`choose`], pure):
//!
//! | `/etc/resolv.conf` is | way |
//! | --- | --- |
//! | resolved's stub, and resolved runs | nothing: resolved asks us |
//! | resolvconf's or openresolv's | a record of ours |
//! | anything else | replaced, the original kept |
//!
//! This crate changes no file: [`Follow`] says what is to be taken and when, again after somebody
//! else's rewrite, and its caller makes the journaled change. Whoever rewrites the file is
//! answered [`REWRITES`] times in a minute and then left alone: two programs that write one file
//! in turn help nobody.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tracing::warn;

use crate::bus;
use crate::discover::{DEBOUNCE, ResolvConf};
use crate::inotify::{Inotify, Place};

pub mod resolved;

/// What programs read.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where what was there is meanwhile.
pub const KEPT: &str = "/etc/resolv.pre-tunneld.conf";
/// The name of our record of resolvconf. Debian's has an order of names, and those of `tun` are
/// before every device's.
pub const RECORD: &str = "tun.tunneld";
/// How often in a minute a rewrite of the file is answered.
pub const REWRITES: usize = 5;

/// An absolute path below another root.
pub(crate) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// `dns.takeover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What fits the host.
    Auto,
    /// systemd-resolved alone.
    Resolved,
    /// resolvconf or openresolv alone.
    Resolvconf,
    /// The file alone.
    File,
    /// Nothing: programs ask us only where they are told to by other means.
    None,
}

/// How the file is made to name us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A record of resolvconf, which writes the file.
    Record,
    /// We write it.
    File,
}

/// Why the host's resolver can't be taken over as it was wanted. Displays as `WHAT: WHY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverError {
    /// resolved was wanted and isn't there.
    #[error("cannot take over systemd-resolved: it does not run")]
    NoResolved,
    /// resolvconf was wanted and isn't there.
    #[error(
        "cannot take over by resolvconf: there is no such program, or /run/resolvconf is missing"
    )]
    NoResolvconf,
    /// The file can't be watched.
    #[error("cannot watch {RESOLV_CONF}: {}", std::io::Error::from(*.0).kind())]
    Watch(Errno),
}

impl TakeoverError {
    /// What the user can do.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoResolved | Self::NoResolvconf => {
                Some("`dns.takeover = \"auto\"` takes what there is")
            }
            Self::Watch(_) => Some("raise fs.inotify.max_user_instances"),
        }
    }
}

/// What there is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether systemd-resolved runs.
    pub resolved: bool,
    /// Whether resolvconf or openresolv can be used.
    pub resolvconf: bool,
    /// Whose the file is.
    pub writer: Writer,
}

/// Whose `/etc/resolv.conf` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// systemd-resolved's, naming its stub.
    Stub,
    /// resolvconf's or openresolv's.
    Resolvconf,
    /// Anybody's: also systemd-resolved's that names the network's servers.
    Other,
}

impl Seen {
    /// Looks at the host below `root`, and at its bus.
    pub async fn look(root: &Path, bus: Option<&str>) -> Self {
        let path = below(root, RESOLV_CONF);
        let target = std::fs::canonicalize(&path).ok();
        // The root may be reached by a link itself.
        let root_itself = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let target = target.as_deref().and_then(|target| target.strip_prefix(&root_itself).ok());
        let text = std::fs::read(&path).unwrap_or_default();
        Self {
            resolved: resolved_runs(bus).await,
            resolvconf: has_resolvconf(root),
            writer: writer(target, &String::from_utf8_lossy(&text)),
        }
    }
}

async fn resolved_runs(address: Option<&str>) -> bool {
    let Ok(bus) = bus::connect(address).await else { return false };
    bus::owner(&bus, bus::RESOLVED).await.is_ok_and(|owner| owner.is_some())
}

/// Whose a file is by where it leads to (below `/`), and by what is in it.
fn writer(target: Option<&Path>, text: &str) -> Writer {
    let is_stub = |ip: &IpAddr| *ip == IpAddr::from([127, 0, 0, 53]);
    let nameservers = ResolvConf::parse(text).nameservers;
    let comments = text.lines().take_while(|line| line.starts_with('#') || line.is_empty());
    if !nameservers.is_empty() && nameservers.iter().all(is_stub) {
        Writer::Stub
    } else if target.is_some_and(|target| target.starts_with("run/resolvconf"))
        || comments.take(HEAD_LINES).any(|line| line.contains("Generated by resolvconf"))
    {
        Writer::Resolvconf
    } else {
        Writer::Other
    }
}

/// What a program says of itself stands at the top.
const HEAD_LINES: usize = 10;

/// Whether the program is there and used. systemd's `resolvconf` is resolvectl, which keeps no
/// records.
fn has_resolvconf(root: &Path) -> bool {
    let is_program = |directory: &str| {
        let program = root.join(directory).join("resolvconf");
        std::fs::canonicalize(program).is_ok_and(|real| !real.ends_with("resolvectl"))
    };
    root.join("run/resolvconf").is_dir()
        && ["usr/sbin", "sbin", "usr/bin", "usr/local/sbin"].iter().any(|d| is_program(d))
}

/// Whether resolved is to be held, and the way of the file.
pub fn choose(wanted: Wanted, seen: &Seen) -> Result<(bool, Option<Way>), TakeoverError> {
    match wanted {
        Wanted::None => Ok((false, None)),
        Wanted::File => Ok((false, Some(Way::File))),
        Wanted::Resolved if !seen.resolved => Err(TakeoverError::NoResolved),
        Wanted::Resolved => Ok((true, None)),
        Wanted::Resolvconf if !seen.resolvconf => Err(TakeoverError::NoResolvconf),
        Wanted::Resolvconf => Ok((false, Some(Way::Record))),
        // Held even where it doesn't run: it may come, and is told then.
        Wanted::Auto => Ok(match seen.writer {
            Writer::Stub if seen.resolved => (true, None),
            Writer::Resolvconf if seen.resolvconf => (true, Some(Way::Record)),
            Writer::Stub | Writer::Resolvconf | Writer::Other => (true, Some(Way::File)),
        }),
    }
}

/// The text that names `ours`, with the search domains and options of what was `before`. Without
/// `trust-ad`: whether an answer was authenticated is not for us to vouch for.
pub fn text(ours: &[IpAddr], before: &ResolvConf) -> String {
    let mut conf = before.clone();
    for line in &mut conf.rest {
        let words = line.split_ascii_whitespace().filter(|word| *word != "trust-ad");
        *line = words.collect::<Vec<_>>().join(" ");
    }
    conf.rest.retain(|line| line != "options");
    conf.with_nameservers(ours)
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Take the file this way, at once: nothing else is told until it is done.
    Take(Way),
    /// Nothing ever again: the file is rewritten too often. It has been said in the log.
    Leave,
}

/// What is wanted of the file, now and whenever somebody rewrites it.
#[derive(Debug)]
pub struct Follow {
    wanted: Wanted,
    root: PathBuf,
    bus: Option<String>,
    is_ours: fn(&[u8]) -> bool,
    inotify: Inotify,
    has_record: bool,
    rewrites: Rewrites,
    /// Whether it was never looked at.
    fresh: bool,
    left: bool,
}

impl Follow {
    /// Looks at the host, and begins to watch. The second says whether resolved is to be held.
    /// `is_ours` tells our file from another; `root` is `/` and `bus` is `None`, but in tests.
    /// Needs a tokio runtime with I/O and time.
    pub async fn new(
        wanted: Wanted,
        root: &Path,
        bus: Option<&str>,
        is_ours: fn(&[u8]) -> bool,
    ) -> Result<(Self, bool), TakeoverError> {
        let path = below(root, RESOLV_CONF);
        let inotify = Inotify::new(vec![Place::File(path)]).map_err(TakeoverError::Watch)?;
        let (hold, _) = choose(wanted, &Seen::look(root, bus).await)?;
        let follow = Self {
            wanted,
            root: root.to_owned(),
            bus: bus.map(str::to_owned),
            is_ours,
            inotify,
            has_record: false,
            rewrites: Rewrites::default(),
            fresh: true,
            left: false,
        };
        Ok((follow, hold))
    }

    /// What is to be done at once, if anything.
    pub async fn now(&mut self) -> Option<Todo> {
        let todo = self.look().await;
        self.fresh = false;
        todo
    }

    /// Waits until there is something to do: the first time for no time at all, then until the
    /// file isn't as it should be. May be dropped and called again.
    pub async fn next(&mut self) -> Todo {
        loop {
            if self.left {
                return std::future::pending().await;
            }
            if !self.fresh {
                if self.inotify.changed().await.is_err() {
                    return self.leave("it cannot be watched any more");
                }
                // Whoever writes comes to an end.
                self.fresh = true;
                self.inotify.settle(DEBOUNCE).await;
            }
            if let Some(todo) = self.now().await {
                return todo;
            }
        }
    }

    async fn look(&mut self) -> Option<Todo> {
        let path = below(&self.root, RESOLV_CONF);
        if std::fs::read(&path).is_ok_and(|bytes| (self.is_ours)(&bytes)) {
            return None;
        }
        let seen = Seen::look(&self.root, self.bus.as_deref()).await;
        // What was wanted by name and went, can't be had now, and that was said at the start.
        let way = choose(self.wanted, &seen).ok()?.1?;
        match way {
            Way::Record if self.has_record => None,
            Way::Record => {
                self.has_record = true;
                Some(Todo::Take(way))
            }
            Way::File if self.rewrites.again(Instant::now()) => Some(Todo::Take(way)),
            Way::File => Some(self.leave("somebody else keeps writing it")),
        }
    }

    fn leave(&mut self, why: &'static str) -> Todo {
        self.left = true;
        warn!(code = "resolv-conf-left", "{RESOLV_CONF} is left as it is: {why}");
        Todo::Leave
    }
}

/// When the file was taken lately.
#[derive(Debug, Default)]
struct Rewrites(VecDeque<Instant>);

impl Rewrites {
    /// Whether it may be taken once more: the first time, and [`REWRITES`] times a minute.
    fn again(&mut self, now: Instant) -> bool {
        const MINUTE: Duration = Duration::from_secs(60);
        self.0.retain(|then| now.saturating_duration_since(*then) < MINUTE);
        let may = self.0.len() <= REWRITES;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests;
