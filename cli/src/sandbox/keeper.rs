//! Keeps our resolv.conf in place while the host replaces its own.
//!
//! # Theory of operation
//!
//! Only where root runs CMD in the host's real `/etc` (see [`resolv`](super::resolv)). A thread
//! enters CMD's mount namespace and watches the directory of `resolv.conf` and, if that is a
//! symbolic link, the directory it leads to. When one of the two names changes, the thread looks
//! whether the file that a program would open is still ours, and mounts ours on it if not. The
//! watch is set before the look, so no change falls between.

use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, inotify};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::resolv::{PATH, mount_file};

/// The mount namespace to keep it in, and our file there.
#[derive(Debug)]
pub(super) struct Keeper {
    namespace: OwnedFd,
    file: OwnedFd,
}

impl Keeper {
    /// `None` where nothing was handed over: then there is nothing to keep.
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let [namespace, file] = <[OwnedFd; 2]>::try_from(descriptors).ok()?;
        Some(Self { namespace, file })
    }

    /// Keeps it until tunneld ends.
    pub(super) fn start(self) {
        let started = thread::Builder::new().name("resolv.conf".to_owned()).spawn(move || {
            if let Err(errno) = self.keep() {
                tracing::debug!(%errno, "a renamed /etc/resolv.conf of the host will show inside");
            }
        });
        if let Err(error) = started {
            tracing::debug!(%error, "a renamed /etc/resolv.conf of the host will show inside");
        }
    }

    fn keep(&self) -> Result<(), Errno> {
        enter(&self.namespace)?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        loop {
            let names = follow(&watch)?;
            self.restore()?;
            wait(&watch, &names)?;
        }
    }

    fn restore(&self) -> Result<(), Errno> {
        // Missing or dangling: nothing to mount on, and the next change is seen too.
        let Ok(target) = fs::canonicalize(PATH) else { return Ok(()) };
        let ours = rustix::fs::statat(&self.file, "", AtFlags::EMPTY_PATH)?;
        match rustix::fs::stat(&target) {
            Ok(there) if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) => {
                match mount_file(&self.file, &target) {
                    // It has changed again, or is no file: looked at with the next change.
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                    mounted_or_failed => mounted_or_failed,
                }
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Moves this thread, and no other, into a mount namespace.
#[allow(unsafe_code, reason = "rustix marks unshare(2) unsafe for the descriptor table")]
fn enter(namespace: &OwnedFd) -> Result<(), Errno> {
    // A mount namespace is entered only by who shares root and working directory with nobody.
    // SAFETY: the descriptor table, which the caller must not unshare unawares, stays shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}

/// Watches the directories that a look at [`PATH`] goes through, and returns the names in them
/// that matter.
fn follow(watch: &OwnedFd) -> Result<Vec<PathBuf>, Errno> {
    let flags = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::ONLYDIR;
    let mut names = Vec::new();
    let mut path = PathBuf::from(PATH);
    for _ in 0..LINKS {
        let Some(directory) = path.parent() else { break };
        match inotify::add_watch(watch, directory, flags) {
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
        let target = fs::read_link(&path).map(|target| directory.join(target));
        names.extend(path.file_name().map(PathBuf::from));
        match target {
            Ok(target) => path = target,
            Err(_) => break,
        }
    }
    Ok(names)
}

/// As many links as the kernel follows.
const LINKS: usize = 40;

/// Waits until one of `names` has changed.
fn wait(watch: &OwnedFd, names: &[PathBuf]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut space);
    loop {
        match events.next() {
            Ok(event) => {
                let named =
                    event.file_name().map(|name| Path::new(OsStr::from_bytes(name.to_bytes())));
                if named.is_none_or(|name| names.iter().any(|n| n == name)) {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
