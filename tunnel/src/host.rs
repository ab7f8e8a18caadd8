//! Everything that the daemon changes on a host: applied from a plan, journaled, and undone.
//!
//! # Theory of operation
//!
//! A [`Plan`] is what is wanted, [`Seen`] what there is; [`changes`] (pure) gives the list that
//! leads from one to the other, values of one closed enum, [`Change`]. A [`Host`] holds the lock
//! that keeps a second daemon out, writes each change into the journal before it makes it,
//! and undoes all in reverse. A daemon that was killed has left its journal; the next one to
//! open the same directory undoes it first.
//!
//! Undoing is idempotent and removes what is ours alone: a setting is put back where it still has
//! our value, a route, rule or address is removed exactly as it was added, and what is gone
//! already is fine. The TUN is the caller's: it is not persistent, and its addresses and routes
//! vanish with its last descriptor.
//!
//! A reload adds and undoes changes of its own: [`Host::lead`], [`Host::release`].
//!
//! The order of calls: [`Host::open`], [`Host::refuse_foreign`], open the TUN, [`Seen::look`],
//! [`changes`], [`Host::apply`]; then, whenever a [`Watch`] tells of changes, [`Host::follow`],
//! and [`Host::begin`] for what else there is to change; and at the end [`Host::restore`].
//!
//! All calls block, for milliseconds, and work in the network namespace of their thread.
//! [`Begun::make`] may wait for other programs.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CapabilitySet;
use tracing::{info, warn};

use crate::rtnetlink::Rtnetlink;

mod accepted;
pub mod addresses;
mod astray;
mod change;
mod child;
mod error;
mod follow;
mod journal;
mod kernel;
mod links;
mod nft;
mod plan;
mod reload;
pub mod resolv_conf;
mod resolvconf;
mod seen;
mod standing;
mod sysctl;
#[cfg(test)]
mod tests;
pub mod tracking;
mod watch;

pub use astray::Astray;
pub use change::{Change, Device, Family, Rule, Takes, Then, Via, changes};
pub use error::{HostError, Refusal, Unrestored};
pub use follow::{Followed, Lost};
pub use nft::{Complaint, NftError, is_pattern};
pub use plan::{Capture, Mark, Plan};
pub use resolvconf::ResolvconfError;
pub use seen::{Ipv6, Seen, SeenDevice};
pub use watch::{Changed, Paths, Watch, stopped_within};

use follow::Tries;
use journal::Journal;

/// The right to change this host, and what was changed. Dropped without [`restore`](Self::restore)
/// it leaves all as it is, journal included, as a crash does.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    journal: Option<Journal>,
    applied: Vec<Change>,
    /// Whether the journal names what is not applied any more.
    stale: bool,
    /// Whether it was said that it can't be written anew.
    cannot_rewrite: bool,
    tries: Tries,
    /// The nftables table as it was made.
    table: Option<nft::Standing>,
    /// Whether something was taken out of that table's sets, and not put back yet.
    emptied: bool,
    /// Routes of others that were told of.
    astray: Vec<Astray>,
    /// Held to the end: the last field is dropped last.
    lock: File,
}

impl Host {
    /// Takes the lock in `directory`, which is made where it is missing, and undoes what a dead
    /// daemon's journal there says. Tells what was undone.
    pub fn open(directory: &Path) -> Result<(Self, Vec<Change>), HostError> {
        let lock = lock(directory)?;
        // The same name whoever asks from wherever: others are to know whose a file is by it.
        let directory = &std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        let left_behind = journal::read(directory)?;
        let undone = undo_all(left_behind, directory, &lock)?;
        let host = Self {
            directory: directory.to_owned(),
            journal: None,
            applied: Vec::new(),
            stale: false,
            cannot_rewrite: false,
            tries: Tries::default(),
            table: None,
            emptied: false,
            astray: Vec::new(),
            lock,
        };
        Ok((host, undone))
    }

    /// Whether `plan` can be carried out beside what is there: to be called before the TUN is
    /// opened. Changes nothing.
    pub fn refuse_foreign(&self, plan: &Plan) -> Result<(), HostError> {
        if let Some(number) = plan.local.iter().position(|pattern| !is_pattern(pattern)) {
            return Err(HostError::Pattern(number));
        }
        let Mark { value, mask } = plan.mark;
        if value == 0 || value & !mask != 0 {
            return Err(HostError::Mark);
        }
        let effective = rustix::thread::capabilities(None).map_err(HostError::Look)?.effective;
        if !effective.contains(CapabilitySet::NET_ADMIN) {
            return Err(HostError::NotPermitted);
        }
        let mut netlink = Rtnetlink::open().map_err(HostError::Look)?;
        if netlink.index(plan.device.as_str()).is_ok() {
            return Err(HostError::DeviceExists(plan.device));
        }
        if plan.capture == Capture::Nothing {
            return Ok(());
        }
        let (before, at, after) = change::priorities(plan);
        if !(2..32_765).contains(&at) {
            return Err(HostError::Priority(at));
        }
        if matches!(plan.table, 0 | 253..=255) {
            return Err(HostError::Table(plan.table));
        }
        for family in [Family::V4, Family::V6] {
            let priorities = [before, at, after];
            let rule = kernel::rule_at(&mut netlink, family, priorities);
            if let Some(priority) = rule.or_else(|errno| none_without(family, errno))? {
                return Err(HostError::ForeignRule { family, priority });
            }
            let table = plan.table;
            let routes = kernel::routes(&mut netlink, family, table);
            if !routes.or_else(|errno| none_without(family, errno))?.is_empty() {
                return Err(HostError::ForeignRoutes { family, table });
            }
        }
        match nft::exists() {
            Ok(true) => Err(HostError::ForeignTable),
            Ok(false) => Ok(()),
            Err(error) => Err(HostError::Nft(error)),
        }
    }

    /// Makes `changes` in order, each written down first. Where one fails all that this host has
    /// had applied is undone.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(), HostError> {
        for change in changes {
            if let Err(error) = self.note(&change) {
                self.journal = None;
                // Where something is left the journal's earlier lines say so to the next one.
                undo_all(std::mem::take(&mut self.applied), &self.directory, &self.lock)?;
                return Err(error);
            }
            let Err(why) = self.make(&change) else {
                self.applied.push(change);
                continue;
            };
            // What is there already isn't ours to remove; all else may be half done.
            let mut done = std::mem::take(&mut self.applied);
            if why != Refusal::Kernel(Errno::EXIST) {
                done.push(change.clone());
            }
            self.journal = None;
            let left = match undo_all(done, &self.directory, &self.lock) {
                Ok(_) => Vec::new(),
                Err(HostError::Restore { left, .. }) => left,
                Err(other) => return Err(other),
            };
            return Err(HostError::Apply { change: Box::new(change), why, left });
        }
        Ok(())
    }

    /// Begins one more change of a host whose plan is in force: it is written down, and from now
    /// on undone with the others, be it made, half made or not. Making it may take long and
    /// needs no [`Host`].
    pub fn begin(&mut self, change: Change) -> Result<Begun, HostError> {
        let lock = self.lock.try_clone().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            HostError::Directory(self.directory.clone(), errno)
        })?;
        self.note(&change)?;
        self.keep(change.clone());
        self.tidy();
        Ok(Begun { change, lock })
    }

    /// Puts back a resolv.conf whose journal is gone, as after a loss of power: files outlive a
    /// boot. To be called behind [`Host::open`], with the paths of [`Change::ResolvConf`].
    pub fn put_back_resolv_conf(
        &mut self,
        path: &Path,
        kept: &Path,
    ) -> Result<Option<Change>, HostError> {
        let Some(change) = resolv_conf::left_behind(path, kept, &self.directory) else {
            return Ok(None);
        };
        match undo(&change, &self.lock) {
            Ok(()) => Ok(Some(change)),
            Err(why) => {
                let left = vec![Unrestored { change, why }];
                Err(HostError::Restore { undone: Vec::new(), left })
            }
        }
    }

    /// Undoes all in reverse, goes on after a failure, and tells what was undone. Where something
    /// is left the journal stays for the next one to open it.
    pub fn restore(mut self) -> Result<Vec<Change>, HostError> {
        self.journal = None;
        undo_all(std::mem::take(&mut self.applied), &self.directory, &self.lock)
    }

    /// [`restore`](Self::restore) of a host at which a thread has panicked, between a change and
    /// its being counted it may be: the journal knows of each before it is made.
    pub fn restore_after_panic(mut self) -> Result<Vec<Change>, HostError> {
        self.journal = None;
        undo_all(journal::read(&self.directory)?, &self.directory, &self.lock)
    }

    /// Makes a change that is written down.
    fn make(&mut self, change: &Change) -> Result<(), Refusal> {
        do_it(change, &self.lock)?;
        if matches!(change, Change::NftTable { .. } | Change::Accepted) {
            self.emptied = false;
            // Where it can't be told it is made once more.
            self.table = nft::Standing::look().ok().flatten();
        }
        Ok(())
    }

    fn note(&mut self, change: &Change) -> Result<(), HostError> {
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(Journal::begin(&self.directory)?),
        };
        journal.note(change)
    }
}

/// A change that is written down and to be made.
#[derive(Debug)]
#[must_use]
pub struct Begun {
    change: Change,
    lock: File,
}

impl Begun {
    /// Makes it. Blocks for as long as the programs that it takes.
    pub fn make(self) -> Result<(), HostError> {
        let Self { change, lock } = self;
        do_it(&change, &lock).map_err(|why| HostError::Apply {
            change: Box::new(change),
            why,
            left: Vec::new(),
        })
    }
}

/// A kernel without IPv6 has nothing of it.
fn none_without<T: Default>(family: Family, errno: Errno) -> Result<T, HostError> {
    match (family, errno) {
        (Family::V6, Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => Ok(T::default()),
        (Family::V4 | Family::V6, errno) => Err(HostError::Look(errno)),
    }
}

/// Undoes `changes` in reverse. The journal goes when nothing is left.
fn undo_all(changes: Vec<Change>, directory: &Path, lock: &File) -> Result<Vec<Change>, HostError> {
    let mut undone = Vec::new();
    let mut left = Vec::new();
    for change in changes.into_iter().rev() {
        match undo(&change, lock) {
            Ok(()) => undone.push(change),
            Err(why) => left.push(Unrestored { change, why }),
        }
    }
    if left.is_empty() {
        journal::remove(directory)?;
        Ok(undone)
    } else {
        Err(HostError::Restore { undone, left })
    }
}

/// The one function that changes the host. Programs that must not outlive the `lock` hold it.
fn do_it(change: &Change, lock: &File) -> Result<(), Refusal> {
    match change {
        Change::Sysctl { key, value, .. } => match sysctl::write(key, value) {
            // A device's, which went since we looked: a container's that has ended.
            Err(Errno::NOENT | Errno::NODEV) if key.contains("/conf/") => {}
            other => other?,
        },
        Change::ReversePath { device, .. } => links::uncheck(*device)?,
        Change::LaterReversePath { .. } => links::uncheck_later()?,
        Change::NftTable { ruleset, .. } => nft::apply(ruleset, lock)?,
        Change::Accepted => {
            let elements = accepted::elements(&accepted::accepted()?);
            if !elements.is_empty() {
                nft::apply(&elements, lock)?;
            }
        }
        Change::Link { device, mtu, ipv6 } => {
            kernel::bring_up(&mut Rtnetlink::open()?, *device, *mtu, *ipv6)?;
        }
        Change::Address { device, address } => {
            let message = kernel::address(*device, address);
            Rtnetlink::open()?.add(RouteNetlinkMessage::NewAddress(message))?;
        }
        Change::Route { table, to, via, metric } => {
            let message = kernel::route(*table, to, via, *metric);
            Rtnetlink::open()?.add(RouteNetlinkMessage::NewRoute(message))?;
        }
        Change::Rule(rule) => {
            let message = kernel::rule(rule);
            Rtnetlink::open()?.add(RouteNetlinkMessage::NewRule(message))?;
        }
        Change::ResolvConf { path, kept, text, holder } => {
            resolv_conf::take(path, kept, text, holder)?;
        }
        Change::ResolvconfRecord { record, text } => resolvconf::add(record, text)?,
    }
    Ok(())
}

/// The one function that puts it back.
fn undo(change: &Change, lock: &File) -> Result<(), Refusal> {
    match change {
        Change::Sysctl { key, value, before } => sysctl::put_back(key, value, before)?,
        Change::ReversePath { device, before } => links::put_back(*device, before)?,
        Change::LaterReversePath { before, known } => links::put_back_later(before, known)?,
        Change::NftTable { .. } => {
            nft::apply(&nft::removal(), lock)?;
            tracking::settle();
        }
        // They are in the table.
        Change::Accepted => {}
        Change::Link { device, .. } => {
            if let Some(mut netlink) = still_there(*device)? {
                gone_is_fine(kernel::bring_down(&mut netlink, *device))?;
            }
        }
        Change::Address { device, address } => {
            if let Some(mut netlink) = still_there(*device)? {
                let message = kernel::address(*device, address);
                gone_is_fine(netlink.change(RouteNetlinkMessage::DelAddress(message)))?;
            }
        }
        Change::Route { table, to, via, metric } => {
            let netlink = match via {
                Via::Device { device, .. } => still_there(*device)?,
                Via::Unreachable | Via::Throw => Some(Rtnetlink::open()?),
            };
            if let Some(mut netlink) = netlink {
                let message = kernel::route(*table, to, via, *metric);
                gone_is_fine(netlink.change(RouteNetlinkMessage::DelRoute(message)))?;
            }
        }
        Change::Rule(rule) => {
            let message = kernel::rule(rule);
            gone_is_fine(Rtnetlink::open()?.change(RouteNetlinkMessage::DelRule(message)))?;
        }
        Change::ResolvConf { path, kept, holder, .. } => {
            match resolv_conf::put_back(path, kept, holder)? {
                resolv_conf::Found::Ours => {}
                resolv_conf::Found::Anothers => {
                    info!("{} is another tunneld's by now", path.display())
                }
                resolv_conf::Found::Theirs => warn!(
                    code = "resolv-conf-theirs",
                    "{} has been written by somebody else, and stays as it is",
                    path.display()
                ),
            }
        }
        Change::ResolvconfRecord { record, .. } => resolvconf::remove(record)?,
    }
    Ok(())
}

/// A socket to ask with where the device that was meant is there.
fn still_there(device: Device) -> Result<Option<Rtnetlink>, Errno> {
    let netlink = Rtnetlink::open()?;
    match netlink.index(device.name.as_str()) {
        Ok(index) => Ok((index == device.index).then_some(netlink)),
        Err(Errno::NODEV | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whatever the kernel says of a thing that isn't there is as good as having removed it.
fn gone_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(
            Errno::NOENT
            | Errno::SRCH
            | Errno::NODEV
            | Errno::NXIO
            | Errno::ADDRNOTAVAIL
            | Errno::AFNOSUPPORT
            | Errno::OPNOTSUPP,
        ) => Ok(()),
        other => other,
    }
}

/// Takes the lock and writes our process into it.
fn lock(directory: &Path) -> Result<File, HostError> {
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        HostError::Directory(directory.to_owned(), errno)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
    let others = std::fs::metadata(directory).map_err(failed)?.mode() & 0o022;
    if others != 0 {
        return Err(HostError::OpenDirectory(directory.to_owned()));
    }
    // Who may read a file may lock it.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(directory.join("lock"))
        .map_err(failed)?;
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?;
    let began = Instant::now();
    while let Err(errno) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != Errno::WOULDBLOCK {
            return Err(failed(errno.into()));
        }
        let pid = holder(&mut file);
        if pid.is_some_and(is_alive) || began.elapsed() > LEFT_BEHIND {
            return Err(HostError::Running { pid });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The number is for people and the message above: not worth failing for.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether a daemon holds the lock in that directory.
fn is_locked(directory: &Path) -> bool {
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(directory.join("lock"));
    // Whoever begins meanwhile tries again.
    opened.is_ok_and(|lock| {
        let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
        locked == Err(Errno::WOULDBLOCK)
    })
}

/// Who has written itself into the lock.
fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.rewind().ok()?;
    lock.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}

/// What a dead daemon has started ends by then.
const LEFT_BEHIND: Duration = Duration::from_secs(2);
