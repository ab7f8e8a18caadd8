//! `/etc/resolv.conf`, replaced, and put back.
//!
//! # Theory of operation
//!
//! What was there is kept beside it, as it was: a symbolic link stays one, and owner, mode and
//! attributes are its own, because it isn't copied but exchanged (`RENAME_EXCHANGE`) with ours in
//! one step. At every moment there is one of the two at the path, and whoever looks at both after
//! a crash or a loss of power can tell which is which: the first line of ours holds a sum of the
//! rest. What has been written there by somebody else meanwhile has no such line, or no such sum,
//! and is never touched. The line names the daemon as well, by the directory of its lock: daemons
//! with directories of their own may share one file (a container's is its host's), and it is of
//! the one that was first as long as that one lives. They take turns by a lock of the file's
//! directory.
//!
//! Where the file is a mount of its own, as in containers, no rename can replace it: its bytes are
//! kept, and ours are written over them with one call, with line ends behind where they are
//! fewer, which is cut off after.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::change::Change;
use super::error::Refusal;

/// What undoing has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Ours, or nothing: what was before is there again.
    Ours,
    /// Somebody else's, which stays.
    Theirs,
    /// Another daemon's that runs: what it has kept is its own as well.
    Anothers,
}

/// Whose a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Written by this daemon, and not changed since.
    Ours,
    /// The same of another one that is dead: whoever comes first may put it back, or take it.
    Orphaned,
    /// The same of another one that runs: the directory of its lock.
    Anothers(PathBuf),
    /// Anybody else's.
    Theirs,
}

/// Whose a file is to the daemon whose lock is in `holder`.
pub fn whose(bytes: &[u8], holder: &Path) -> Whose {
    match writer(bytes) {
        None => Whose::Theirs,
        Some(writer) if writer == holder => Whose::Ours,
        Some(writer) if super::is_locked(&writer) => Whose::Anothers(writer),
        Some(_) => Whose::Orphaned,
    }
}

/// The daemon that has written a file, which was not changed since.
fn writer(bytes: &[u8]) -> Option<PathBuf> {
    let (digits, rest) = bytes.strip_prefix(MARK.as_bytes())?.split_first_chunk::<16>()?;
    let sum = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    if sum != sum_of(rest) {
        return None;
    }
    let name = rest.strip_prefix(b") ")?;
    let mut name = serde_json::Deserializer::from_slice(name).into_iter::<PathBuf>();
    name.next()?.ok()
}

/// What a dead daemon has left at `path` although its journal is gone, as after a loss of power:
/// the change to be undone.
pub(super) fn left_behind(path: &Path, kept: &Path, holder: &Path) -> Option<Change> {
    let whose = std::fs::read(path).map_or(Whose::Theirs, |bytes| whose(&bytes, holder));
    let is_left = match whose {
        Whose::Ours | Whose::Orphaned => true,
        Whose::Anothers(_) => false,
        Whose::Theirs => exists(kept),
    };
    let (path, kept, holder) = (path.to_owned(), kept.to_owned(), holder.to_owned());
    is_left.then(|| Change::ResolvConf { path, kept, text: String::new(), holder })
}

/// Puts `text` at `path`, and what was there at `kept`. What is ours there is replaced, and what
/// is another daemon's is not.
pub(super) fn take(path: &Path, kept: &Path, text: &str, holder: &Path) -> Result<(), Refusal> {
    let _turn = turn(path)?;
    if let Ok(bytes) = std::fs::read(path)
        && let Whose::Anothers(other) = whose(&bytes, holder)
    {
        return Err(Refusal::Anothers(other));
    }
    let ours = marked(kept, text, holder);
    let beside = beside(path);
    write_new(&beside, ours.as_bytes())?;
    let taken = take_with(path, kept, &beside, &ours);
    // Nothing is there any more where all went well.
    let _ = std::fs::remove_file(&beside);
    Ok(taken?)
}

fn take_with(path: &Path, kept: &Path, beside: &Path, ours: &str) -> Result<(), Errno> {
    if is_marked_at(path) {
        return match rustix::fs::rename(beside, path) {
            Err(Errno::BUSY) => write_in_place(path, ours.as_bytes()),
            renamed => renamed,
        };
    }
    // Another file's original, if there is one, is past.
    rustix::fs::rename(beside, kept)?;
    match rustix::fs::renameat_with(CWD, kept, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // Nothing to keep.
        Err(Errno::NOENT) => {
            match rustix::fs::renameat_with(CWD, kept, CWD, path, RenameFlags::NOREPLACE) {
                // Somebody was faster.
                Err(Errno::EXIST) => {
                    rustix::fs::renameat_with(CWD, kept, CWD, path, RenameFlags::EXCHANGE)
                }
                renamed => renamed,
            }
        }
        Err(Errno::BUSY) => {
            copy(path, kept)?;
            write_in_place(path, ours.as_bytes())
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            write_new(beside, ours.as_bytes())?;
            take_without_exchange(path, kept, beside)
        }
        Err(errno) => {
            let _ = std::fs::remove_file(kept);
            Err(errno)
        }
    }
}

/// For file systems that can't exchange (NFS): a second name for what is there, then ours over
/// the first.
fn take_without_exchange(path: &Path, kept: &Path, beside: &Path) -> Result<(), Errno> {
    let _ = std::fs::remove_file(kept);
    match rustix::fs::linkat(CWD, path, CWD, kept, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(_) => copy(path, kept)?,
    }
    rustix::fs::rename(beside, path)
}

/// Puts back what is kept, where `path` is still ours.
pub(super) fn put_back(path: &Path, kept: &Path, holder: &Path) -> Result<Found, Refusal> {
    let _turn = turn(path)?;
    let _ = std::fs::remove_file(beside(path));
    let now = match std::fs::read(path) {
        Ok(bytes) => Some(bytes),
        // A link to what isn't there yet is somebody's.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !exists(path) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Vec::new()),
        Err(error) => return Err(errno(&error).into()),
    };
    match now.map(|bytes| whose(&bytes, holder)) {
        None | Some(Whose::Ours | Whose::Orphaned) => {}
        Some(Whose::Anothers(_)) => return Ok(Found::Anothers),
        Some(Whose::Theirs) => {
            // With nothing kept it was put back already.
            let found = if exists(kept) { Found::Theirs } else { Found::Ours };
            remove(kept)?;
            return Ok(found);
        }
    }
    // What was cut off between writing ours and exchanging it.
    if is_link(kept).is_none() || (is_link(kept) == Some(false) && is_marked_at(kept)) {
        remove(kept)?;
        remove(path)?;
        return Ok(Found::Ours);
    }
    match rustix::fs::rename(kept, path) {
        Ok(()) => Ok(Found::Ours),
        Err(Errno::BUSY) => {
            let bytes = std::fs::read(kept).map_err(|error| errno(&error))?;
            write_in_place(path, &bytes)?;
            remove(kept)?;
            Ok(Found::Ours)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Our text behind a line that says what it is, and whose.
fn marked(kept: &Path, text: &str, holder: &Path) -> String {
    // Quoted: a name may hold whatever a line may not.
    let holder = serde_json::Value::from(holder.to_string_lossy());
    let (kept, text) = (kept.display(), text.trim_end_matches('\n'));
    let rest = format!(") {holder}: the file before is {kept}, and is put back\n{text}\n");
    let sum = sum_of(rest.as_bytes());
    format!("{MARK}{sum:016x}{rest}")
}

/// Keeps other daemons away from the file, as long as what it gives lives. A file system that
/// knows no such locks has none.
fn turn(path: &Path) -> Result<Option<File>, Errno> {
    let Some(Ok(directory)) = path.parent().map(File::open) else { return Ok(None) };
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < TURN => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => return Err(Errno::BUSY),
            Ok(()) | Err(_) => return Ok(Some(directory)),
        }
    }
}

/// A turn takes milliseconds.
const TURN: Duration = Duration::from_secs(2);

/// FNV-1a, without line ends at the end: tells an edit from none, and is no seal.
fn sum_of(bytes: &[u8]) -> u64 {
    let bytes = bytes.trim_ascii_end();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const MARK: &str = "# written by tunneld (";

/// Makes a file, on the disk before it is anybody's.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Errno> {
    let written = (|| {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let options = OpenOptions::new().write(true).create_new(true).mode(0o644).to_owned();
        let mut file = options.open(path)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|error| errno(&error))
}

/// A copy of a file's bytes, whole or not there.
fn copy(path: &Path, kept: &Path) -> Result<(), Errno> {
    let bytes = std::fs::read(path).map_err(|error| errno(&error))?;
    let beside = beside(kept);
    write_new(&beside, &bytes)?;
    rustix::fs::rename(&beside, kept)
}

/// One call writes all, so that whoever reads sees the one or the other.
fn write_in_place(path: &Path, bytes: &[u8]) -> Result<(), Errno> {
    let written = (|| {
        let file: File = OpenOptions::new().write(true).open(path)?;
        let before = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut padded = bytes.to_vec();
        padded.resize(before.clamp(bytes.len(), MOST_BYTES.max(bytes.len())), b'\n');
        file.write_all_at(&padded, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    })();
    written.map_err(|error| errno(&error))
}

/// No resolv.conf is longer.
const MOST_BYTES: usize = 1 << 20;

/// The name under which a file is made before it is renamed.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tunneld-new");
    path.with_file_name(name)
}

fn is_marked_at(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| writer(&bytes).is_some())
}

/// Whether it is a symbolic link; `None`: it isn't there.
fn is_link(path: &Path) -> Option<bool> {
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.is_symlink())
}

fn exists(path: &Path) -> bool {
    is_link(path).is_some()
}

fn remove(path: &Path) -> Result<(), Errno> {
    // A file system that can't be written says so first, whatever is there.
    if !exists(path) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(errno(&error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::namespace::{run, within};

    const OURS: &str = "nameserver 198.18.0.2\n";
    const THEIRS: &str = "nameserver 192.0.2.1\n";

    /// An `/etc` for one test; removed when dropped.
    struct Etc(PathBuf);

    impl Etc {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("tunneld-etc-{}-{number}", std::process::id());
            let etc = Self(std::env::temp_dir().join(name));
            std::fs::create_dir(&etc.0).unwrap();
            etc
        }

        fn path(&self) -> PathBuf {
            self.0.join("resolv.conf")
        }

        fn kept(&self) -> PathBuf {
            self.0.join("resolv.pre.conf")
        }

        /// The directory of a lock that nobody holds.
        fn holder(&self) -> PathBuf {
            self.0.join("run")
        }

        fn take_with(&self, text: &str) -> Result<(), Refusal> {
            take(&self.path(), &self.kept(), text, &self.holder())
        }

        fn take(&self) {
            self.take_with(OURS).unwrap();
            assert!(self.is_ours());
        }

        fn put_back(&self) -> Found {
            put_back(&self.path(), &self.kept(), &self.holder()).unwrap()
        }

        fn is_ours(&self) -> bool {
            is_marked_at(&self.path())
        }

        fn marked(&self) -> String {
            marked(&self.kept(), OURS, &self.holder())
        }

        /// All of it, by name: what it is, whose, and what is in it.
        fn state(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
            let mut state: Vec<String> = entries
                .map(|entry| {
                    let meta = entry.path().symlink_metadata().unwrap();
                    let content = match std::fs::read_link(entry.path()) {
                        Ok(target) => target.into_os_string().into_encoded_bytes(),
                        Err(_) => std::fs::read(entry.path()).unwrap(),
                    };
                    let (name, mode, inode) = (entry.file_name(), meta.mode(), meta.ino());
                    format!("{name:?} {mode:o} {inode} {content:?}")
                })
                .collect();
            state.sort();
            state
        }
    }

    impl Drop for Etc {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    type Before = fn(&Etc);

    const BEFORE: [(&str, Before); 5] = [
        ("nothing", |_| {}),
        ("a file", |etc| std::fs::write(etc.path(), THEIRS).unwrap()),
        ("a file of odd mode and bytes", |etc| {
            std::fs::write(etc.path(), b"nameserver 192.0.2.1 \xff\0\n").unwrap();
            std::fs::set_permissions(etc.path(), PermissionsExt::from_mode(0o604)).unwrap();
        }),
        ("a link", |etc| {
            std::fs::write(etc.0.join("stub.conf"), THEIRS).unwrap();
            symlink("stub.conf", etc.path()).unwrap();
        }),
        ("a link to nothing", |etc| symlink("../run/nowhere", etc.path()).unwrap()),
    ];

    #[test]
    fn taken_and_put_back() {
        for (name, before) in BEFORE {
            let etc = Etc::new();
            before(&etc);
            let state = etc.state();
            etc.take();
            assert!(!etc.path().is_symlink(), "{name}");
            assert_eq!(etc.path().metadata().unwrap().mode() & 0o7777, 0o644, "{name}");
            // Once more, with another text: the original stays kept.
            etc.take_with("nameserver 198.18.0.3\n").unwrap();
            assert!(
                std::fs::read_to_string(etc.path()).unwrap().contains("198.18.0.3\n"),
                "{name}"
            );
            assert_eq!(etc.put_back(), Found::Ours, "{name}");
            assert_eq!(etc.state(), state, "{name}");
            etc.put_back();
            assert_eq!(etc.state(), state, "{name}, twice");
        }
    }

    #[test]
    fn a_file_system_without_exchange() {
        for (name, before) in BEFORE {
            let etc = Etc::new();
            before(&etc);
            let state = etc.state();
            let new = beside(&etc.path());
            write_new(&new, etc.marked().as_bytes()).unwrap();
            take_without_exchange(&etc.path(), &etc.kept(), &new).unwrap();
            assert!(etc.is_ours(), "{name}");
            assert_eq!(etc.put_back(), Found::Ours, "{name}");
            assert_eq!(etc.state(), state, "{name}");
        }
    }

    #[test]
    fn what_others_write_stays() {
        type Writes = fn(&Etc);
        #[rustfmt::skip]
        let cases: [(&str, Writes); 5] = [
            ("another file", |etc| {
                std::fs::write(etc.0.join("new"), "nameserver 192.0.2.9\n").unwrap();
                std::fs::rename(etc.0.join("new"), etc.path()).unwrap();
            }),
            ("a line of ours", |etc| {
                let text = std::fs::read_to_string(etc.path()).unwrap();
                std::fs::write(etc.path(), text.replace("198.18.0.2", "192.0.2.9")).unwrap();
            }),
            ("a line more", |etc| {
                let text = std::fs::read_to_string(etc.path()).unwrap();
                std::fs::write(etc.path(), text + "options edns0\n").unwrap();
            }),
            ("nothing in it", |etc| std::fs::write(etc.path(), "").unwrap()),
            ("a link", |etc| {
                std::fs::remove_file(etc.path()).unwrap();
                symlink("../run/nowhere", etc.path()).unwrap();
            }),
        ];
        for (name, writes) in cases {
            let etc = Etc::new();
            std::fs::write(etc.path(), THEIRS).unwrap();
            etc.take();
            writes(&etc);
            assert!(!etc.is_ours(), "{name}");
            let mut state = etc.state();
            state.retain(|line| !line.contains("pre"));
            assert_eq!(etc.put_back(), Found::Theirs, "{name}");
            assert_eq!(etc.state(), state, "{name}");

            // Taken again, theirs is what is put back.
            etc.take();
            assert_eq!(etc.put_back(), Found::Ours, "{name}");
            assert_eq!(etc.state(), state, "{name}");
        }
        // Where it was removed, what was before is better than nothing.
        let etc = Etc::new();
        std::fs::write(etc.path(), THEIRS).unwrap();
        let state = etc.state();
        etc.take();
        std::fs::remove_file(etc.path()).unwrap();
        assert_eq!(etc.put_back(), Found::Ours);
        assert_eq!(etc.state(), state);
    }

    #[test]
    fn cut_off_at_any_step() {
        type Step = fn(&Etc);
        let new: Step = |etc| {
            write_new(&beside(&etc.path()), etc.marked().as_bytes()).unwrap();
        };
        let renamed: Step = |etc| rustix::fs::rename(beside(&etc.path()), etc.kept()).unwrap();
        let linked: Step = |etc| {
            let _ = rustix::fs::linkat(CWD, etc.path(), CWD, etc.kept(), AtFlags::empty());
        };
        for (before_name, before) in BEFORE {
            for (name, steps) in [
                ("before anything", &[][..]),
                ("ours beside it", &[new]),
                ("ours in the place of the original", &[new, renamed]),
                ("without exchange: two names", &[new, linked]),
            ] {
                let etc = Etc::new();
                before(&etc);
                let state = etc.state();
                steps.iter().for_each(|step| step(&etc));
                etc.put_back();
                assert_eq!(etc.state(), state, "{before_name}: {name}");
            }
        }
    }

    #[test]
    fn what_a_lost_journal_leaves() {
        let etc = Etc::new();
        let left = || left_behind(&etc.path(), &etc.kept(), &etc.holder()).is_some();
        assert!(!left(), "nothing");
        std::fs::write(etc.path(), THEIRS).unwrap();
        assert!(!left(), "theirs alone");
        etc.take();
        assert!(left(), "ours and theirs");
        std::fs::remove_file(etc.kept()).unwrap();
        assert!(left(), "ours alone");
        std::fs::write(etc.kept(), THEIRS).unwrap();
        std::fs::write(etc.path(), THEIRS).unwrap();
        assert!(left(), "what is kept for nobody");
        etc.put_back();
        assert!(!left());
    }

    #[test]
    fn who_has_written_it() {
        let holder = Path::new("/run/a \"quoted\"\n(name)");
        let ours = marked(Path::new("/etc/kept"), OURS, holder);
        assert!(ours.ends_with(OURS) && ours.lines().count() == 2, "{ours}");
        for (name, text, expected) in [
            ("ours", ours.clone(), true),
            ("line ends behind it", format!("{ours}\n\n"), true),
            ("no line end", ours.trim_end().to_owned(), true),
            ("a byte more", format!("{ours}x"), false),
            ("a byte before", format!(" {ours}"), false),
            ("another holder", ours.replace("quoted", "Quoted"), false),
            ("the mark alone", MARK.to_owned(), false),
            ("no sum", format!("{MARK}00): x\nnameserver 192.0.2.1\n"), false),
            ("a wrong sum", format!("{MARK}{:016x}) \"x\": x\nnameserver 192.0.2.1\n", 7), false),
            ("one line", ours.lines().next().unwrap_or_default().to_owned(), false),
            ("nothing", String::new(), false),
        ] {
            assert_eq!(writer(text.as_bytes()).as_deref(), expected.then_some(holder), "{name}");
        }
    }

    /// Daemons with locks of their own, and one file.
    #[test]
    fn two_daemons() {
        let etc = Etc::new();
        std::fs::write(etc.path(), THEIRS).unwrap();
        let before = etc.state();
        let other = etc.0.with_extension("other");
        let lock = super::super::lock(&other).unwrap();
        let (path, kept) = (etc.path(), etc.kept());
        take(&path, &kept, "nameserver 198.18.9.9\n", &other).unwrap();
        let taken = etc.state();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(whose(&bytes, &etc.holder()), Whose::Anothers(other.clone()));
        assert_eq!(whose(&bytes, &other), Whose::Ours);

        // While it lives, nobody else takes it or puts it back, and what it keeps is its own.
        assert_eq!(etc.take_with(OURS), Err(Refusal::Anothers(other.clone())));
        assert_eq!(left_behind(&path, &kept, &etc.holder()), None);
        assert_eq!(etc.put_back(), Found::Anothers);
        assert_eq!(etc.state(), taken);

        // It is killed: whoever comes takes its place, and the original stays the original.
        drop(lock);
        assert_eq!(whose(&bytes, &etc.holder()), Whose::Orphaned);
        assert!(left_behind(&path, &kept, &etc.holder()).is_some());
        etc.take();
        // And it comes back, with a journal that says that the file is its own.
        let own = super::super::lock(&etc.holder()).unwrap();
        assert_eq!(put_back(&path, &kept, &other).unwrap(), Found::Anothers);
        assert!(etc.is_ours());
        drop(own);
        std::fs::remove_dir_all(etc.holder()).unwrap();
        assert_eq!(etc.put_back(), Found::Ours);
        assert_eq!(etc.state(), before);
        std::fs::remove_dir_all(other).unwrap();
    }

    #[test]
    fn a_turn_comes_to_an_end() {
        let etc = Etc::new();
        let first = turn(&etc.path()).unwrap();
        assert!(first.is_some());
        assert_eq!(turn(&etc.path()).map(|_| ()), Err(Errno::BUSY));
        drop(first);
        assert!(turn(&etc.path()).is_ok());
    }

    /// As in a container, whose file is one of its host's.
    #[test]
    fn a_file_that_is_a_mount() {
        within("", || {
            for theirs in [THEIRS, "", &"# long\n".repeat(500)] {
                let (etc, host) = (Etc::new(), Etc::new());
                std::fs::write(host.path(), theirs).unwrap();
                std::fs::write(etc.path(), "").unwrap();
                run(&format!("mount --bind {} {}", host.path().display(), etc.path().display()));
                let state = etc.state();
                etc.take();
                assert!(is_marked_at(&host.path()), "the host sees it too");
                assert_eq!(std::fs::read_to_string(etc.kept()).unwrap(), theirs);
                etc.take_with("nameserver 198.18.0.3\n").unwrap();
                assert!(etc.is_ours());
                assert_eq!(etc.put_back(), Found::Ours);
                assert_eq!(etc.state(), state);

                etc.take();
                std::fs::write(host.path(), "nameserver 192.0.2.9\n").unwrap();
                assert_eq!(etc.put_back(), Found::Theirs);
                assert!(!etc.kept().exists());
                run(&format!("umount {}", etc.path().display()));
            }
            let (etc, host) = (Etc::new(), Etc::new());
            std::fs::write(host.path(), THEIRS).unwrap();
            run(&format!("mount --bind -o ro {} {}", host.0.display(), etc.0.display()));
            let refused = etc.take_with(OURS);
            assert_eq!(refused, Err(Refusal::Kernel(Errno::ROFS)));
            run(&format!("umount {}", etc.0.display()));
        });
    }
}
