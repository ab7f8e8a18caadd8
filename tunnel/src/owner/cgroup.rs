//! From a cgroup's id to its path.
//!
//! # Theory of operation
//!
//! The id is the inode number of the cgroup's directory. Opening a file by such a number takes
//! a capability, so the tree is walked and remembered instead: ids are never used again for
//! another cgroup, and a directory cannot be moved. An id that is not remembered means a new
//! cgroup, so the tree is walked anew, but at most once a second: till then the path is
//! unknown, and a rule about it does not hold.
//!
//! Reading a directory yields names and inode numbers at once; nothing is opened but
//! directories. What is gone from the tree is forgotten by the walk.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// The paths of the cgroups of this host.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    paths: HashMap<u64, Arc<str>, foldhash::fast::RandomState>,
    walked: Option<Instant>,
}

impl Cgroups {
    /// The path of a cgroup, from the root `/`.
    pub(super) fn path(&mut self, id: u64) -> Option<Arc<str>> {
        if let Some(path) = self.paths.get(&id) {
            return Some(Arc::clone(path));
        }
        if self.walked.is_some_and(|walked| walked.elapsed() < PAUSE) {
            return None;
        }
        self.walk();
        self.paths.get(&id).cloned()
    }

    fn walk(&mut self) {
        self.walked = Some(Instant::now());
        self.paths.clear();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(mount) = mounts.lines().find_map(Mount::parse) else {
            return;
        };
        let Ok(root) = fs::metadata(&mount.point) else {
            return;
        };
        self.paths.insert(root.ino(), mount.root.as_str().into());
        let prefix = mount.root.trim_end_matches('/').to_owned();
        let mut open = vec![(mount.point, prefix)];
        while let Some((directory, prefix)) = open.pop() {
            self.read(&directory, &prefix, &mut open);
            if self.paths.len() >= LIMIT {
                tracing::debug!(LIMIT, "more cgroups than are remembered");
                return;
            }
        }
    }

    /// Remembers the children of one directory and puts them on the list of what to read.
    fn read(&mut self, directory: &Path, prefix: &str, open: &mut Vec<(PathBuf, String)>) {
        // One that vanished meanwhile has no children.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            // systemd escapes what is not ASCII; what nobody can write no rule can name.
            let Some(name) = name.to_str() else { continue };
            let path = format!("{prefix}/{name}");
            self.paths.insert(entry.ino(), path.as_str().into());
            open.push((entry.path(), path));
        }
    }

    #[cfg(test)]
    pub(super) fn walk_now(&mut self) -> usize {
        self.walk();
        self.paths.len()
    }
}

/// Where the cgroup tree is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The cgroup that is mounted there: `/` but for a container's.
    root: String,
}

impl Mount {
    /// Reads a line of `mountinfo`; `None` where it is another file system's.
    fn parse(line: &str) -> Option<Self> {
        // ID parent major:minor root point options [optional …] - type source options
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Self { point: unescape(point).into(), root: unescape(root) })
    }
}

/// Undoes the kernel's `\040` for what would break the line.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How long a walk's result stands.
const PAUSE: Duration = Duration::from_secs(1);
/// Cgroups that are remembered, at about 150 bytes each; a busy host has a few hundred.
const LIMIT: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table() {
        let mount =
            |point: &str, root: &str| Some(Mount { point: point.into(), root: root.into() });
        #[rustfmt::skip]
        let cases = [
            ("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate", mount("/sys/fs/cgroup", "/")),
            ("30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", mount("/sys/fs/cgroup/unified", "/")),
            ("30 23 0:26 /a.slice/b /mnt/with\\040space rw a:1 b:2 - cgroup2 none rw", mount("/mnt/with space", "/a.slice/b")),
            ("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
            ("30 23 0:26 / /mnt rw - ext4 /dev/cgroup2 rw", None),
            ("30 23 0:26 - cgroup2 x rw", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(Mount::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn unescape_table() {
        let cases = [
            ("plain", "plain"),
            ("a\\040b\\134c", "a b\\c"),
            ("\\0", "\\0"),
            ("\\477", "\\477"),
            ("\\", "\\"),
        ];
        for (field, expected) in cases {
            assert_eq!(unescape(field), expected);
        }
    }

    #[test]
    fn an_unknown_id_is_walked_for_once_a_second() {
        let mut cgroups = Cgroups::default();
        assert_eq!(cgroups.path(u64::MAX), None);
        let walked = cgroups.walked;
        assert!(walked.is_some());
        assert_eq!(cgroups.path(u64::MAX), None);
        assert_eq!(cgroups.walked, walked);
    }
}
