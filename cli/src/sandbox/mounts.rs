//! Mounts over what leads out of the network namespace, and over what shows the host's.
//!
//! # Theory of operation
//!
//! A network namespace cuts IP and abstract Unix sockets. A Unix socket with a path crosses it,
//! and three programs answer names there for the whole host: systemd-resolved (also for the
//! NSS module `resolve`), nscd and avahi; a fourth, the system D-Bus, leads to the first and to
//! many others. The directory of each gets an empty one mounted on it, and the NSS modules
//! then go on to `dns`. A directory and not the socket: it stays when the daemon makes its
//! socket anew. A daemon that is first installed while CMD runs isn't covered.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::error::{Failure, Stage};
use super::inside::At;

/// Puts an empty directory over each in which a resolver of the host, or its D-Bus, listens.
///
/// With systemd-resolved `/etc/resolv.conf` leads into one of them: the file `kept` is there
/// afterwards, empty, for another to be mounted on.
pub(super) fn mask_sockets(kept: Option<&Path>) -> Result<(), Failure> {
    // /var/run is a symbolic link to /run, except where it is not.
    let directories: BTreeSet<PathBuf> = ["/run", "/var/run"]
        .iter()
        .flat_map(|run| MASKED.iter().map(move |name| Path::new(run).join(name)))
        .filter_map(|path| fs::canonicalize(path).ok())
        .filter(|path| path.is_dir())
        .collect();
    directories.iter().try_for_each(|path| mask(path, kept)).at(Stage::Sockets)
}

const MASKED: [&str; 4] = ["systemd/resolve", "nscd", "avahi-daemon", "dbus"];

fn mask(directory: &Path, kept: Option<&Path>) -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tunneld", directory, "tmpfs", flags, Some(c"mode=0755,size=4k"))?;
    if let Some(file) = kept.filter(|file| file.parent() == Some(directory)) {
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::open(file, create, Mode::from_raw_mode(0o644))?;
    }
    let read_only = flags | MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount_remount(directory, read_only, c"")
}

/// Shows this network namespace's devices in `/sys/class/net`: a sysfs belongs to the one in
/// which it was mounted. Where the kernel refuses (a container whose `/sys` is masked in part)
/// the names of the host's devices stay visible; nothing depends on it.
pub(super) fn fresh_sysfs() {
    let Ok(kept) = Submounts::detach_copies("/sys", &[]) else { return };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if rustix::mount::mount("sysfs", "/sys", "sysfs", flags, None::<&std::ffi::CStr>).is_err() {
        return;
    }
    if kept.attach().is_err() {
        // Better the host's names than a /sys without its cgroups.
        let _ = rustix::mount::unmount("/sys", UnmountFlags::DETACH);
    }
}

/// Copies of what is mounted below a directory, for when the directory itself is covered.
#[derive(Debug, Default)]
pub(super) struct Submounts(Vec<(PathBuf, OwnedFd)>);

impl Submounts {
    /// Copies of all mounts right below `directory`, each with what is mounted on it, but for
    /// those on the paths `except`.
    pub(super) fn detach_copies(directory: &str, except: &[PathBuf]) -> Result<Self, Errno> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        topmost(mount_points(&table), Path::new(directory))
            .into_iter()
            .filter(|path| !except.contains(path))
            .map(|path| Ok((path.clone(), rustix::mount::open_tree(CWD, &path, flags)?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Mounts them where they were.
    pub(super) fn attach(self) -> Result<(), Errno> {
        self.0.into_iter().try_for_each(|(path, tree)| attach(tree.as_fd(), &path))
    }
}

/// Mounts a detached mount on a path.
pub(super) fn attach(tree: impl AsFd, path: &Path) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The mount points below `directory` that are not below another of them.
fn topmost(mut points: Vec<PathBuf>, directory: &Path) -> Vec<PathBuf> {
    points.retain(|point| point.starts_with(directory) && point != directory);
    points.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for point in points {
        // Sorted, a directory comes right before what is below it.
        if kept.last().is_none_or(|last| !point.starts_with(last)) {
            kept.push(point);
        }
    }
    kept
}

/// The mount points of a mountinfo table (proc_pid_mountinfo(5)): the fifth field, in which
/// space, tab, newline and backslash are three octal digits.
fn mount_points(table: &str) -> Vec<PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|d| u8::from_str_radix(str::from_utf8(d).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            (&byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// Mounts an overlay on `path`.
pub(super) fn overlay(path: &str, options: &str) -> Result<(), Errno> {
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("tunneld", path, "overlay", MountFlags::empty(), Some(options.as_c_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_and_only_the_topmost_kept() {
        let table = "22 1 8:1 / / rw - ext4 /dev/vda rw\n\
                     30 22 0:5 / /etc/a\\040b rw shared:1 - tmpfs t rw\n\
                     31 30 0:6 / /etc/a\\040b/c rw - tmpfs t rw\n\
                     32 22 8:1 /x /etc/hosts rw - ext4 /dev/vda rw\n\
                     33 22 8:1 /x /etcetera rw - ext4 /dev/vda rw\n\
                     34 22 0:7 / /etc rw - tmpfs t rw\n\
                     35 22 0:7 / /etc/b\\134 rw - tmpfs t rw\n";
        let points = topmost(mount_points(table), Path::new("/etc"));
        let expected = ["/etc/a b", "/etc/b\\", "/etc/hosts"].map(PathBuf::from);
        assert_eq!(points, expected);
    }
}
