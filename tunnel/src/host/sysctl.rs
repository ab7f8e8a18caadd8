//! Settings of the network namespace, under `/proc/sys/net`.
//!
//! A setting that is put back is compared first: what somebody else has set meanwhile stays.

use std::io::Write as _;

use rustix::io::Errno;

/// The value of `net/{key}`; `None` where there is no such setting.
pub(super) fn read(key: &str) -> Result<Option<String>, Errno> {
    match std::fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim_ascii().to_owned())),
        Err(error) => match errno(&error) {
            // ENODEV: a device's, and the device went while we looked.
            Errno::NOENT | Errno::NODEV => Ok(None),
            other => Err(other),
        },
    }
}

/// Gives `net/{key}` a value.
pub(super) fn write(key: &str, value: &str) -> Result<(), Errno> {
    // A journal's key leads nowhere else.
    if key.split('/').any(|part| part == "..") {
        return Err(Errno::INVAL);
    }
    // Neither made nor cut: a setting that is missing is an error.
    let mut file =
        std::fs::OpenOptions::new().write(true).open(path(key)).map_err(|error| errno(&error))?;
    file.write_all(value.as_bytes()).map_err(|error| errno(&error))
}

/// Puts `before` back where `net/{key}` still has `ours`.
pub(super) fn put_back(key: &str, ours: &str, before: &str) -> Result<(), Errno> {
    match read(key)? {
        Some(now) if now == ours => write(key, before),
        Some(_) | None => Ok(()),
    }
}

fn path(key: &str) -> String {
    format!("/proc/sys/net/{key}")
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
