//! What was changed, written down before it was.
//!
//! # Theory of operation
//!
//! The first line names the journal's format, and where what follows was done: the boot and the
//! network namespace. Changes do not outlive a boot, so a journal of another one has nothing to
//! undo; one of another namespace is to be undone there, and kept for that, unless that is gone and
//! all changes with it. A namespace is gone when no thread is in it, and no descriptor and no
//! mount holds it, as far as this process may look: into no container beside its own, and into no
//! process with more capabilities. So the journal is not removed then, but stays as `journal.gone`.
//!
//! Every further line is one change. A line is written with
//! one call before its change is made; a last line without its end was cut off by a crash, and
//! its change never made. Changes that were undone are taken off by putting another file in its
//! place.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::change::Change;
use super::error::HostError;

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Bytes of whole lines.
    length: u64,
    path: PathBuf,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// The format of this line and of all others.
    journal: u64,
    /// The boot.
    boot: String,
    /// The inode of the network namespace.
    namespace: u64,
}

/// Of any format to come this much can be read.
#[derive(Deserialize)]
struct Format {
    journal: u64,
}

/// The format that this version writes, and the latest it reads.
const FORMAT: u64 = 1;

/// The extension of one whose network namespace is gone.
const GONE: &str = "gone";

/// The extension of the file that takes the journal's place, till it does.
const NEXT: &str = "next";

impl Journal {
    /// Begins a journal; there must be none.
    pub(super) fn begin(directory: &Path) -> Result<Self, HostError> {
        let mut journal = Self::create(path(directory))?;
        journal.line(&Header::here())?;
        Ok(journal)
    }

    fn create(path: PathBuf) -> Result<Self, HostError> {
        let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
        match opened {
            Ok(file) => Ok(Self { file, length: 0, path }),
            Err(error) => Err(HostError::Journal(path, errno(&error))),
        }
    }

    /// Writes a change down.
    pub(super) fn note(&mut self, change: &Change) -> Result<(), HostError> {
        self.line(change)
    }

    /// Writes it anew with these changes alone.
    pub(super) fn rewrite(&mut self, changes: &[Change]) -> Result<(), HostError> {
        let path = self.path.with_extension(NEXT);
        remove_file(&path)?;
        let mut next = Self::create(path)?;
        next.line(&Header::here())?;
        for change in changes {
            next.line(change)?;
        }
        std::fs::rename(&next.path, &self.path)
            .map_err(|error| HostError::Journal(self.path.clone(), errno(&error)))?;
        (self.file, self.length) = (next.file, next.length);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), HostError> {
        // Neither type has what JSON lacks, a map with keys that are no text.
        let mut line = serde_json::to_vec(value)
            .map_err(|_| HostError::Journal(self.path.clone(), Errno::INVAL))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|error| {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(self.length);
            HostError::Journal(self.path.clone(), errno(&error))
        })?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// What a journal left behind holds and was not undone; empty where there is none.
pub(super) fn read(directory: &Path) -> Result<Vec<Change>, HostError> {
    let path = path(directory);
    match read_own(&path) {
        Ok(bytes) => match parse(&bytes, &Header::here(), &path)? {
            Left::Changes(changes) => Ok(changes),
            Left::Elsewhere(namespace) if lives(namespace) => {
                Err(HostError::JournalElsewhere(path))
            }
            Left::Elsewhere(_) => {
                let gone = path.with_extension(GONE);
                std::fs::rename(&path, &gone)
                    .map_err(|error| HostError::Journal(path, errno(&error)))?;
                info!(
                    "an earlier daemon's network namespace is gone: its journal is {}",
                    gone.display()
                );
                Ok(Vec::new())
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(HostError::Journal(path, errno(&error))),
    }
}

/// What root does by a file must have been written by root.
fn read_own(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(ErrorKind::PermissionDenied.into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes the journal, everything in it being undone.
pub(super) fn remove(directory: &Path) -> Result<(), HostError> {
    let path = path(directory);
    remove_file(&path.with_extension(NEXT))?;
    remove_file(&path)
}

fn remove_file(path: &Path) -> Result<(), HostError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(HostError::Journal(path.to_owned(), errno(&error)))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a journal holds.
#[derive(Debug)]
enum Left {
    /// Changes that were made here.
    Changes(Vec<Change>),
    /// Changes of another network namespace.
    Elsewhere(u64),
}

fn parse(bytes: &[u8], here: &Header, path: &Path) -> Result<Left, HostError> {
    let senseless = |line| HostError::JournalLine { path: path.to_owned(), line };
    // Behind the last line end is nothing, or what a crash left of a line.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    let Some(first) = lines.next() else {
        return Ok(Left::Changes(Vec::new()));
    };
    let Format { journal: format } = serde_json::from_slice(first).map_err(|_| senseless(1))?;
    if format > FORMAT {
        let path = path.to_owned();
        return Err(HostError::JournalFormat { path, format, known: FORMAT });
    }
    let header: Header = serde_json::from_slice(first).map_err(|_| senseless(1))?;
    if header.boot != here.boot {
        return Ok(Left::Changes(Vec::new()));
    }
    if header.namespace != here.namespace {
        return Ok(Left::Elsewhere(header.namespace));
    }
    let changes = lines
        .enumerate()
        .map(|(at, line)| serde_json::from_slice(line).map_err(|_| senseless(at + 2)));
    changes.collect::<Result<_, _>>().map(Left::Changes)
}

/// Whether anything that can be seen holds a network namespace.
fn lives(namespace: u64) -> bool {
    let name = format!("net:[{namespace}]");
    let is_it = |link: &Path| {
        std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == name.as_str())
    };
    let each = |directory: &Path, holds: &dyn Fn(&Path) -> bool| {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.flatten().any(|entry| holds(&entry.path()))
    };
    let mounted = |process: &Path| {
        let mounts = std::fs::read(process.join("mountinfo"));
        mounts.is_ok_and(|mounts| String::from_utf8_lossy(&mounts).contains(&name))
    };
    // What is no process has none of the three.
    each(Path::new("/proc"), &|process| {
        each(&process.join("task"), &|task| is_it(&task.join("ns/net")))
            || each(&process.join("fd"), &is_it)
            || mounted(process)
    })
}

impl Header {
    fn here() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
        Self { journal: FORMAT, boot: boot.trim_ascii().to_owned(), namespace }
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join("journal")
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_table() {
        let here = Header { journal: 1, boot: "b".to_owned(), namespace: 7 };
        let head = r#"{"journal":1,"boot":"b","namespace":7}"#;
        let change = r#"{"change":"sysctl","key":"ipv4/x","value":"1","before":"0"}"#;
        #[rustfmt::skip]
        let cases = [
            ("empty", String::new(), Ok(0)),
            ("half a header", head[..9].to_owned(), Ok(0)),
            ("a header", format!("{head}\n"), Ok(0)),
            ("two changes", format!("{head}\n{change}\n{change}\n"), Ok(2)),
            ("half a last line", format!("{head}\n{change}\n{}", &change[..20]), Ok(1)),
            ("a last line without its end", format!("{head}\n{change}\n{change}"), Ok(1)),
            ("half a line within", format!("{head}\n{}\n{change}\n", &change[..20]), Err("line 2")),
            ("another boot", format!("{}\n{change}\n", head.replace("\"b\"", "\"c\"")), Ok(0)),
            ("another namespace", format!("{}\n{change}\n", head.replace('7', "8")), Err("elsewhere")),
            ("a later format", "{\"journal\":2}\n{\"change\":\"magic\"}\n".to_owned(), Err("format is 2")),
            ("a change of no known kind", format!("{head}\n{{\"change\":\"magic\"}}\n"), Err("line 2")),
            ("no journal at all", "hello\nworld\n".to_owned(), Err("line 1")),
        ];
        for (name, text, expected) in cases {
            let parsed = parse(text.as_bytes(), &here, Path::new("j"));
            match (parsed, expected) {
                (Ok(Left::Changes(changes)), Ok(number)) => {
                    assert_eq!(changes.len(), number, "{name}")
                }
                (Ok(Left::Elsewhere(8)), Err("elsewhere")) => {}
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{name}: {error}");
                }
                (parsed, _) => panic!("{name}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn a_namespace_lives_while_something_holds_it() {
        assert!(lives(Header::here().namespace));
        assert!(!lives(1));
    }

    #[test]
    fn written_anew_it_goes_on() {
        let directory = std::env::temp_dir().join(format!("tunneld-anew-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let change = |key: &str| {
            let (key, value, before) = (key.to_owned(), "1".to_owned(), "0".to_owned());
            Change::Sysctl { key, value, before }
        };
        let [a, b, c] = ["a", "b", "c"].map(change);
        let mut journal = Journal::begin(&directory).unwrap();
        journal.note(&a).unwrap();
        // What a crash left of an earlier attempt.
        let next = path(&directory).with_extension(NEXT);
        std::fs::write(&next, "half").unwrap();
        journal.rewrite(std::slice::from_ref(&b)).unwrap();
        assert!(!next.exists());
        journal.note(&c).unwrap();
        assert_eq!(journal.length, std::fs::metadata(path(&directory)).unwrap().len());
        assert_eq!(read(&directory).unwrap(), [b, c]);
        std::fs::write(&next, "half").unwrap();
        remove(&directory).unwrap();
        // Neither of the two is left.
        std::fs::remove_dir(&directory).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A spoilt journal is refused or read; the changes before the spoilt line are what they were.
        #[test]
        fn no_bytes_make_it_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let here = Header { journal: 1, boot: "b".to_owned(), namespace: 7 };
            let change = r#"{"change":"sysctl","key":"ipv4/x","value":"1","before":"0"}"#;
            let text = format!("{{\"journal\":1,\"boot\":\"b\",\"namespace\":7}}\n{change}\n{change}\n");
            let mut bytes = text.into_bytes();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            match parse(&bytes, &here, Path::new("j")) {
                Ok(Left::Changes(changes)) => prop_assert!(changes.len() <= 2),
                Ok(Left::Elsewhere(namespace)) => prop_assert_ne!(namespace, 7),
                Err(error) => prop_assert!(error.to_string().contains('j')),
            }
        }
    }
}
