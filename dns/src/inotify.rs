//! Files and directories that are watched, whether they are there or not.
//!
//! # Theory of operation
//!
//! Files are replaced by renames, so their directories are watched, and of a directory that
//! isn't there the nearest one above it that is. A file is watched itself as well: where it is a
//! mount of its own, as in containers, its directory tells nothing of it. Whenever something
//! moved all watches are set again, which costs some system calls and can't miss a directory
//! that was made meanwhile.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::descriptor::ready;

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file, and where it is a symbolic link, what it leads to.
    File(PathBuf),
    /// All that is in a directory.
    Directory(PathBuf),
}

/// What counts of one watch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Counts {
    Everything,
    /// What happens to entries of these names.
    Names(Vec<OsString>),
}

/// Watches places.
#[derive(Debug)]
pub(crate) struct Inotify {
    fd: AsyncFd<OwnedFd>,
    places: Vec<Place>,
    watches: HashMap<i32, Counts>,
}

impl Inotify {
    /// Begins to watch.
    pub(crate) fn new(places: Vec<Place>) -> Result<Self, Errno> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let fd = ready(fd)?;
        let mut inotify = Self { fd, places, watches: HashMap::new() };
        inotify.watch_again()?;
        Ok(inotify)
    }

    /// Waits until something happened. Loses nothing when it is dropped.
    pub(crate) async fn changed(&mut self) -> Result<(), Errno> {
        loop {
            let mut ready = self.fd.readable().await.map_err(|_| Errno::IO)?;
            let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.fd.as_fd(), &mut buffer);
            let mut counts = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        let lost = event.events().intersects(ReadFlags::QUEUE_OVERFLOW);
                        counts |= lost || counted(self.watches.get(&event.wd()), &event);
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            ready.clear_ready();
            if counts {
                self.watch_again()?;
                return Ok(());
            }
        }
    }

    /// Waits until nothing has happened for `quiet`, but not for ever.
    pub(crate) async fn settle(&mut self, quiet: Duration) {
        let latest = Instant::now() + 10 * quiet;
        while Instant::now() < latest
            && tokio::time::timeout(quiet, self.changed()).await.is_ok_and(|c| c.is_ok())
        {}
    }

    /// Sets all watches for what is there now.
    fn watch_again(&mut self) -> Result<(), Errno> {
        let mut wanted: HashMap<PathBuf, Counts> = HashMap::new();
        for place in &self.places {
            match place {
                Place::File(path) => {
                    want_file(&mut wanted, path);
                    // Where it leads to; a link to nothing leads nowhere yet.
                    if let Ok(target) = std::fs::canonicalize(path)
                        && target != *path
                    {
                        want_file(&mut wanted, &target);
                    }
                }
                Place::Directory(path) if path.is_dir() => {
                    wanted.insert(path.clone(), Counts::Everything);
                }
                Place::Directory(path) => want_entry(&mut wanted, path),
            }
        }
        let mut watches: HashMap<i32, Counts> = HashMap::new();
        for (path, counts) in wanted {
            let watch = match inotify::add_watch(self.fd.as_fd(), &path, EVENTS) {
                Ok(watch) => watch,
                // Gone since: its directory tells.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => continue,
                Err(errno) => return Err(errno),
            };
            // Two paths may be one directory.
            match (watches.get_mut(&watch), counts) {
                (Some(Counts::Names(known)), Counts::Names(names)) => known.extend(names),
                (Some(known), Counts::Everything) => *known = Counts::Everything,
                (Some(Counts::Everything), Counts::Names(_)) => {}
                (None, counts) => drop(watches.insert(watch, counts)),
            }
        }
        for old in self.watches.keys().filter(|old| !watches.contains_key(old)) {
            // The kernel has removed it already where the directory went.
            let _ = inotify::remove_watch(self.fd.as_fd(), *old);
        }
        self.watches = watches;
        Ok(())
    }
}

fn want_file(wanted: &mut HashMap<PathBuf, Counts>, path: &Path) {
    if path.is_file() {
        wanted.insert(path.to_owned(), Counts::Everything);
    }
    want_entry(wanted, path);
}

/// Watches the nearest directory above `path` that is there for the next part of it.
fn want_entry(wanted: &mut HashMap<PathBuf, Counts>, path: &Path) {
    let mut below = path;
    while let (Some(above), Some(name)) = (below.parent(), below.file_name()) {
        if above.is_dir() {
            match wanted.entry(above.to_owned()).or_insert_with(|| Counts::Names(Vec::new())) {
                Counts::Names(names) => names.push(name.to_owned()),
                Counts::Everything => {}
            }
            return;
        }
        below = above;
    }
}

fn counted(counts: Option<&Counts>, event: &inotify::Event<'_>) -> bool {
    match counts {
        None => false,
        Some(Counts::Everything) => true,
        Some(Counts::Names(names)) => match event.file_name() {
            Some(name) => names.iter().any(|known| known == OsStr::from_bytes(name.to_bytes())),
            // The directory itself went.
            None => true,
        },
    }
}

const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn what_counts() {
        let scratch = Scratch::new();
        let root = scratch.path();
        let file = root.join("etc/resolv.conf");
        let directory = root.join("run/a/b");
        let places = vec![Place::File(file.clone()), Place::Directory(directory.clone())];
        let mut inotify = Inotify::new(places).unwrap();
        let other = root.join("etc/other");
        let target = root.join("target");
        let write = |path: &Path| std::fs::write(path, "x").unwrap();
        type Step<'a> = (&'a str, Box<dyn Fn() + 'a>, bool);
        let steps: [Step<'_>; 14] = [
            (
                "a directory above it",
                Box::new(|| std::fs::create_dir(root.join("etc")).unwrap()),
                true,
            ),
            ("the file", Box::new(|| write(&file)), true),
            ("another file", Box::new(|| write(&other)), false),
            ("a rename over it", Box::new(|| std::fs::rename(&other, &file).unwrap()), true),
            ("written in place", Box::new(|| write(&file)), true),
            ("removed", Box::new(|| std::fs::remove_file(&file).unwrap()), true),
            ("its target, which is nothing to us", Box::new(|| write(&target)), false),
            ("a link", Box::new(|| std::os::unix::fs::symlink("../target", &file).unwrap()), true),
            ("what the link leads to", Box::new(|| write(&target)), true),
            (
                "all of a path at once",
                Box::new(|| std::fs::create_dir_all(&directory).unwrap()),
                true,
            ),
            ("a file in it", Box::new(|| write(&directory.join("1"))), true),
            (
                "the directory goes",
                Box::new(|| std::fs::remove_dir_all(root.join("run")).unwrap()),
                true,
            ),
            ("and comes", Box::new(|| std::fs::create_dir_all(&directory).unwrap()), true),
            ("with a file", Box::new(|| write(&directory.join("2"))), true),
        ];
        for (name, what, told) in steps {
            what();
            let heard = tokio::time::timeout(Duration::from_millis(100), inotify.changed()).await;
            assert_eq!(heard.is_ok(), told, "{name}");
            // What is left of it.
            while tokio::time::timeout(Duration::from_millis(20), inotify.changed()).await.is_ok() {
            }
        }
    }
}
