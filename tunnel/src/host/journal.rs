//! What was changed, written down before it was.
//!
//! # Theory of operation
//!
//! The first line names the journal's format, and where what follows was done: the boot and the
//! network namespace. Changes do not outlive a boot, so a journal of another one has nothing to
//! undo; one of another namespace is to be undone there, and kept. Every further line is one change. A line is written with
//! one call before its change is made; a last line without its end was cut off by a crash, and
//! its change never made. Changes that were undone are taken off by putting another file in its
//! place.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

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
        Ok(bytes) => parse(&bytes, &Header::here(), &path),
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

fn parse(bytes: &[u8], here: &Header, path: &Path) -> Result<Vec<Change>, HostError> {
    let senseless = |line| HostError::JournalLine { path: path.to_owned(), line };
    // Behind the last line end is nothing, or what a crash left of a line.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    let Some(first) = lines.next() else {
        return Ok(Vec::new());
    };
    let Format { journal: format } = serde_json::from_slice(first).map_err(|_| senseless(1))?;
    if format > FORMAT {
        let path = path.to_owned();
        return Err(HostError::JournalFormat { path, format, known: FORMAT });
    }
    let header: Header = serde_json::from_slice(first).map_err(|_| senseless(1))?;
    if header.boot != here.boot {
        return Ok(Vec::new());
    }
    if header.namespace != here.namespace {
        return Err(HostError::JournalElsewhere(path.to_owned()));
    }
    lines
        .enumerate()
        .map(|(at, line)| serde_json::from_slice(line).map_err(|_| senseless(at + 2)))
        .collect()
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
            ("another namespace", format!("{}\n{change}\n", head.replace('7', "8")), Err("another network namespace")),
            ("a later format", "{\"journal\":2}\n{\"change\":\"magic\"}\n".to_owned(), Err("format is 2")),
            ("a change of no known kind", format!("{head}\n{{\"change\":\"magic\"}}\n"), Err("line 2")),
            ("no journal at all", "hello\nworld\n".to_owned(), Err("line 1")),
        ];
        for (name, text, expected) in cases {
            let parsed = parse(text.as_bytes(), &here, Path::new("j"));
            match (parsed, expected) {
                (Ok(changes), Ok(number)) => assert_eq!(changes.len(), number, "{name}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{name}: {error}");
                }
                (parsed, _) => panic!("{name}: {parsed:?}"),
            }
        }
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
}
