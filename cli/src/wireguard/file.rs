//! Files that hold keys: read once, wiped, and nobody else's to read.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Bytes: twice what 130,000 prefixes of IPv6 take.
const MOST_BYTES: u64 = 16 << 20;

/// A file that was read.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) text: Zeroizing<String>,
    /// Its permissions.
    pub(crate) mode: u32,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    #[error("not a file")]
    NotAFile,
    #[error("longer than {most} MiB", most = MOST_BYTES >> 20)]
    TooLong,
}

/// Reads a file. What is no UTF-8 in it, such as a comment of another time, is no error yet.
///
/// # Errors
/// It is not there, no file, or too long.
pub(crate) fn read(path: &Path) -> Result<File, FileError> {
    // Else a pipe without a writer would hold us.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile);
    }
    // With room for all of it no copy is left behind by growing.
    let room = metadata.len().min(MOST_BYTES) as usize + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(FileError::TooLong);
    }
    let text = match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => {
            let bytes = Zeroizing::new(error.into_bytes());
            Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
    };
    Ok(File { text, mode: metadata.mode() & 0o777 })
}

/// Whether others than its owner may read or write a file of this mode.
pub(crate) fn is_open(mode: u32) -> bool {
    mode & 0o066 != 0
}
