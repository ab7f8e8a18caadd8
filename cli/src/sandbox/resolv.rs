//! What `/etc/resolv.conf` is inside.
//!
//! # Theory of operation
//!
//! On the host it may be a file, a symbolic link (to somewhere in `/run`, mostly), a dangling
//! one, or missing, and the host replaces it by rename at any time. Inside it is our file in
//! every case, and the host's is never written.
//!
//! **A user** can't write to `/etc`, so it is covered whole: a read-only overlay of a tmpfs
//! that holds our `resolv.conf` on top of the real `/etc`. An overlay looks names up in
//! the upper layer first, so what the host does with its own file has no effect, and all other
//! files stay the host's live ones. What was mounted below `/etc` (the `hosts` and `hostname`
//! of a container) is mounted again on top, since an overlay doesn't see it.
//!
//! **Root** installs packages. In an overlay everything that apt writes to `/etc` would be
//! gone at the end, while `/usr` and dpkg's database were changed for good: a broken package. So
//! `/etc` stays the real one and our file is mounted on the host's, where its link leads to. A
//! mount on a file goes away when another process replaces that file by rename; the
//! [`Keeper`](super::keeper::Keeper) mounts ours on the new one. In the moment between, and
//! where the host's file is removed for good, a program reads the host's servers or none; it
//! asks us all the same, since we get port 53 whatever the address. Only where the host has
//! no file to mount on (missing, dangling) root gets the overlay too, a writable one: then
//! what is written to `/etc` ends with CMD ([`Etc::Overlay`]).
//!
//! **Where the kernel refuses an overlay** (before 5.11 to users; a container with mounts on
//! files of its `/etc`) our file is mounted on the host's without a keeper, if there is one:
//! such a container has `resolv.conf` as a mount, which can't be renamed over.
//!
//! The file itself must be somewhere: on a tmpfs that is first mounted on `/etc` and then
//! covered by what `/etc` is to be. No other place is sure to exist.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use super::error::{Failure, Stage};
use super::inside::At;
use super::mounts::{self, Submounts};

/// The path.
pub(super) const PATH: &str = "/etc/resolv.conf";

/// Where what CMD writes to `/etc` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etc {
    /// To the host's, except `resolv.conf`.
    Host,
    /// Nowhere: `/etc` is covered. A user can't write there, what root writes ends with CMD.
    Overlay,
    /// To the host's, except `resolv.conf`, as far as a user may; the host's `resolv.conf`
    /// shows through once it is renamed.
    Bound,
}

impl Etc {
    pub(super) const ALL: [Self; 3] = [Self::Host, Self::Overlay, Self::Bound];

    /// How many descriptors are handed over for it.
    pub(super) fn descriptors(self) -> usize {
        match self {
            Self::Host => 2,
            Self::Overlay | Self::Bound => 0,
        }
    }
}

impl From<&Placed> for Etc {
    fn from(placed: &Placed) -> Self {
        match placed {
            Placed::Host { .. } => Self::Host,
            Placed::Overlay => Self::Overlay,
            Placed::Bound => Self::Bound,
        }
    }
}

/// What was done.
#[derive(Debug)]
pub(super) enum Placed {
    /// [`Etc::Host`], and what a keeper needs: the mount namespace and our file in it.
    Host { namespace: OwnedFd, file: OwnedFd },
    /// [`Etc::Overlay`].
    Overlay,
    /// [`Etc::Bound`].
    Bound,
}

/// The file that [`PATH`] leads to, if it leads to one.
pub(super) fn target() -> Option<PathBuf> {
    fs::canonicalize(PATH).ok().filter(|path| path.is_file())
}

/// Puts a file with `content` at [`PATH`].
pub(super) fn set_up(content: &[u8], user_namespace: bool) -> Result<Placed, Failure> {
    let etc = rustix::fs::open("/etc", PATH_DIRECTORY, Mode::empty()).at(Stage::ResolvConf)?;
    match (target(), user_namespace) {
        (Some(target), false) => host(&etc, content, &target).at(Stage::ResolvConf),
        (None, false) => overlay(&etc, content, true).at(Stage::Overlay),
        (target, true) => match (overlay(&etc, content, false), target) {
            (Err(_), Some(target)) => bound(content, &target).at(Stage::ResolvConf),
            (overlaid, _) => overlaid.at(Stage::Overlay),
        },
    }
}

const PATH_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn host(etc: &OwnedFd, content: &[u8], target: &Path) -> Result<Placed, Errno> {
    let whole = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(etc, ".", whole)?;
    stage(content)?;
    let file = rustix::fs::open(STAGED, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mounts::attach(&tree, Path::new("/etc"))?;
    mount_file(&file, target)?;
    let namespace =
        rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Placed::Host { namespace, file })
}

fn overlay(etc: &OwnedFd, content: &[u8], writable: bool) -> Result<Placed, Errno> {
    let submounts = Submounts::detach_copies("/etc", &[PathBuf::from(PATH)])?;
    stage(content)?;
    let lower = format!("/proc/self/fd/{}", etc.as_raw_fd());
    let options = if writable {
        make_directory("/etc/work")?;
        format!("lowerdir={lower},upperdir={TOP},workdir=/etc/work")
    } else {
        format!("lowerdir={TOP}:{lower}")
    };
    let mounted = mounts::overlay("/etc", &options)
        .and_then(|()| submounts.attach().inspect_err(|_| unmount()));
    if let Err(errno) = mounted {
        unmount();
        return Err(errno);
    }
    Ok(Placed::Overlay)
}

fn bound(content: &[u8], target: &Path) -> Result<Placed, Errno> {
    stage(content)?;
    let tree = rustix::mount::open_tree(
        CWD,
        STAGED,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    unmount();
    mounts::attach(tree?, target)?;
    Ok(Placed::Bound)
}

/// Mounts an open file on another, in the mount namespace of both.
pub(super) fn mount_file(file: impl AsFd, target: &Path) -> Result<(), Errno> {
    let source = format!("/proc/thread-self/fd/{}", file.as_fd().as_raw_fd());
    rustix::mount::mount_bind(source, target)
}

const TOP: &str = "/etc/top";
const STAGED: &str = "/etc/top/resolv.conf";

/// Covers `/etc` by a tmpfs with our file in it.
fn stage(content: &[u8]) -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tunneld", "/etc", "tmpfs", flags, Some(c"mode=0755"))?;
    let staged = write_staged(content);
    if staged.is_err() {
        unmount();
    }
    staged
}

fn write_staged(content: &[u8]) -> Result<(), Errno> {
    make_directory(TOP)?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(STAGED, create, Mode::RUSR | Mode::WUSR)?;
    // By hand, since the umask is CMD's to inherit.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    let mut rest = content;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

fn make_directory(path: &str) -> Result<(), Errno> {
    rustix::fs::mkdir(path, Mode::RWXU)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o755))
}

/// Takes the topmost mount off `/etc`; it is one of ours.
fn unmount() {
    let _ = rustix::mount::unmount("/etc", UnmountFlags::DETACH);
}
