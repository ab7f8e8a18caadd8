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
//! in turn help nobody. What could not be done, and a file that another daemon like us has, are
//! tried again after a second, then after twice as long each time, to a minute.

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
/// Where records lie: Debian's, openresolv's to 3.12, and from 3.13.
const RECORDS: [&str; 3] =
    ["/run/resolvconf/interface", "/run/resolvconf/interfaces", "/run/resolvconf/keys"];
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

/// What a name without a dot is completed with, beside what the host's own file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Domains that are tried before those of the file.
    pub first: Vec<String>,
    /// Domains that are tried behind them.
    pub last: Vec<String>,
}

/// A name that there isn't is tried in all of them. resolv.conf(5) knew six for a long time.
const MOST_SEARCHED: usize = 16;

impl Search {
    /// A file that has these domains, too.
    pub fn added_to(&self, conf: ResolvConf) -> ResolvConf {
        let own: Vec<String> = conf.search().into_iter().map(str::to_owned).collect();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        conf.with_search(&self.with(&own))
    }

    /// Together with those of a file: each once, and all of the file's.
    fn with<'s>(&'s self, own: &[&'s str]) -> Vec<&'s str> {
        let (mut all, mut room) = (Vec::<&str>::new(), MOST_SEARCHED.saturating_sub(own.len()));
        let is = |a: &str, b: &str| {
            a.trim_end_matches('.').eq_ignore_ascii_case(b.trim_end_matches('.'))
        };
        let ours = |domains: &'s [String]| domains.iter().map(|domain| (domain.as_str(), true));
        let theirs = own.iter().map(|domain| (*domain, false));
        for (domain, is_ours) in ours(&self.first).chain(theirs).chain(ours(&self.last)) {
            if all.iter().any(|known| is(known, domain)) || (is_ours && room == 0) {
                continue;
            }
            room -= usize::from(is_ours);
            all.push(domain);
        }
        all
    }
}

/// The text that names `ours`, with the search domains and options of what was `before`. Without
/// `trust-ad`: whether an answer was authenticated is not for us to vouch for.
pub fn text(ours: &[IpAddr], search: &Search, before: &ResolvConf) -> String {
    let mut conf = before.clone();
    for line in &mut conf.rest {
        let words = line.split_ascii_whitespace().filter(|word| *word != "trust-ad");
        *line = words.collect::<Vec<_>>().join(" ");
    }
    conf.rest.retain(|line| line != "options");
    search.added_to(conf).with_nameservers(ours)
}

/// Whose the file is, in its writer's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It is as we have written it.
    Ours,
    /// Another daemon like us has it, and runs: one file can't name both.
    Anothers,
    /// Anybody else's.
    Theirs,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Take the file this way, at once: nothing else is told until it is done. Where it can't be,
    /// [`Follow::failed`] has it told again later.
    Take(Way),
    /// Nothing ever again: the file is rewritten too often. It has been said in the log.
    Leave,
}

/// What is wanted of the file, now and whenever somebody rewrites it.
pub struct Follow {
    wanted: Wanted,
    root: PathBuf,
    bus: Option<String>,
    whose: TellWhose,
    inotify: Inotify,
    has_record: bool,
    /// Whether the file has named what our record does.
    named_us: bool,
    rewrites: Rewrites,
    /// Why it is to be looked at without having changed.
    fresh: Option<Fresh>,
    again: Again,
    /// Whether it was said that another daemon has it.
    shared: bool,
    left: bool,
}

type TellWhose = Box<dyn Fn(&[u8]) -> Whose + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fresh {
    /// It was never looked at, or somebody has moved it.
    Moved,
    /// It is time to try again.
    Again,
}

/// When to try again what could not be done.
#[derive(Debug)]
struct Again {
    at: Option<Instant>,
    wait: Duration,
}

impl Again {
    const FIRST: Duration = Duration::from_secs(1);
    const LAST: Duration = Duration::from_secs(60);
    const NEVER: Self = Self { at: None, wait: Self::FIRST };

    fn after(&mut self, now: Instant) {
        self.at = Some(now + self.wait);
        self.wait = (2 * self.wait).min(Self::LAST);
    }
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Follow {
    /// Looks at the host, and begins to watch. The second says whether resolved is to be held.
    /// `whose` tells our file from another; `root` is `/` and `bus` is `None`, but in tests.
    /// Needs a tokio runtime with I/O and time.
    pub async fn new(
        wanted: Wanted,
        root: &Path,
        bus: Option<&str>,
        whose: impl Fn(&[u8]) -> Whose + Send + 'static,
    ) -> Result<(Self, bool), TakeoverError> {
        let path = below(root, RESOLV_CONF);
        let inotify = Inotify::new(vec![Place::File(path)]).map_err(TakeoverError::Watch)?;
        let (hold, _) = choose(wanted, &Seen::look(root, bus).await)?;
        let follow = Self {
            wanted,
            root: root.to_owned(),
            bus: bus.map(str::to_owned),
            whose: Box::new(whose),
            inotify,
            has_record: false,
            named_us: false,
            rewrites: Rewrites::default(),
            fresh: Some(Fresh::Moved),
            again: Again::NEVER,
            shared: false,
            left: false,
        };
        Ok((follow, hold))
    }

    /// What is to be done at once, if anything.
    pub async fn now(&mut self) -> Option<Todo> {
        let todo = self.look(self.fresh == Some(Fresh::Again)).await;
        self.fresh = None;
        todo
    }

    /// Whether it was not left to whoever keeps writing it.
    pub fn goes_on(&self) -> bool {
        !self.left
    }

    /// Says that what was told last could not be done.
    pub fn failed(&mut self) {
        self.has_record = false;
        self.again.after(Instant::now());
    }

    /// Waits until there is something to do: the first time for no time at all, then until the
    /// file isn't as it should be. May be dropped and called again.
    pub async fn next(&mut self) -> Todo {
        loop {
            if self.left {
                return std::future::pending().await;
            }
            if self.fresh.is_none() {
                let again = self.again.at;
                let time = async {
                    match again {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = self.inotify.changed() => {
                        if changed.is_err() {
                            return self.leave("it cannot be watched any more");
                        }
                        self.fresh = Some(Fresh::Moved);
                    }
                    () = time => self.fresh = Some(Fresh::Again),
                }
            }
            if self.fresh == Some(Fresh::Moved) {
                // Whoever writes comes to an end.
                self.inotify.settle(DEBOUNCE).await;
            }
            if let Some(todo) = self.now().await {
                return todo;
            }
        }
    }

    /// `again`: nobody has changed anything, so nobody is answered.
    async fn look(&mut self, again: bool) -> Option<Todo> {
        let path = below(&self.root, RESOLV_CONF);
        self.again.at = None;
        match std::fs::read(&path).map_or(Whose::Theirs, |bytes| (self.whose)(&bytes)) {
            Whose::Ours => {
                (self.again, self.shared) = (Again::NEVER, false);
                return None;
            }
            // However it ends: it may be killed, and leave the file.
            Whose::Anothers if self.wanted != Wanted::Resolved && self.wanted != Wanted::None => {
                if !std::mem::replace(&mut self.shared, true) {
                    warn!(
                        code = "resolv-conf-shared",
                        "{RESOLV_CONF} is another tunneld's, and is left to it while it runs"
                    );
                }
                self.again.after(Instant::now());
                return None;
            }
            Whose::Anothers | Whose::Theirs => self.shared = false,
        }
        let seen = Seen::look(&self.root, self.bus.as_deref()).await;
        // What was wanted by name and went, can't be had now, and that was said at the start.
        let way = choose(self.wanted, &seen).ok()?.1?;
        match way {
            Way::Record if self.record_stands() => None,
            Way::Record | Way::File if again || self.rewrites.again(Instant::now()) => {
                self.has_record = way == Way::Record;
                Some(Todo::Take(way))
            }
            Way::Record | Way::File => Some(self.leave("somebody else keeps writing it")),
        }
    }

    /// Whether our record is there and counts. Where the file has never named us, a cache on this
    /// host stands before the records, and is told by resolvconf whom to ask.
    fn record_stands(&mut self) -> bool {
        let servers = |path: PathBuf| {
            let text = std::fs::read(path)?;
            std::io::Result::Ok(ResolvConf::parse(&String::from_utf8_lossy(&text)).nameservers)
        };
        let records = RECORDS.map(|directory| below(&self.root, directory).join(RECORD));
        let Some(record) = records.into_iter().find(|record| record.exists()) else {
            return false;
        };
        let ours = servers(record).unwrap_or_default();
        let named = servers(below(&self.root, RESOLV_CONF)).unwrap_or_default();
        let names_us = ours.iter().any(|ip| named.contains(ip));
        let stands = self.has_record && (names_us || !self.named_us);
        self.named_us |= names_us;
        stands
    }

    fn leave(&mut self, why: &'static str) -> Todo {
        self.left = true;
        warn!(code = "resolv-conf-left", "{RESOLV_CONF} is left as it is: {why}");
        Todo::Leave
    }
}

/// When something was taken lately.
#[derive(Debug, Default)]
pub(crate) struct Rewrites(VecDeque<Instant>);

impl Rewrites {
    /// Whether it may be taken once more: the first time, and [`REWRITES`] times a minute.
    pub(crate) fn again(&mut self, now: Instant) -> bool {
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
