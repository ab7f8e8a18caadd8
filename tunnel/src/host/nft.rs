//! nftables, by the program `nft`: each text is one transaction of the kernel's.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::io::Errno;

mod table;

pub(super) use table::{ruleset, tracking};

/// The table's name, in family `inet`.
pub(super) const TABLE: &str = "tunneld";

/// Why nft did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program `nft` is not installed")]
    Missing,
    /// It could not be started, or not be spoken to.
    #[error("`nft` cannot be run: {0}")]
    Run(Errno),
    /// It said no.
    #[error("nft: {0}")]
    Refused(Complaint),
}

/// The first line of what a program writes to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint(Box<str>);

impl Complaint {
    pub(super) fn new(line: &str) -> Self {
        Self(line.into())
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether nft understands `name` as a device name, or as the start of one where it ends in `*`.
pub fn is_pattern(name: &str) -> bool {
    let start = name.strip_suffix('*').unwrap_or(name);
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*' | b'/');
    !start.is_empty() && name.len() <= 15 && start.bytes().all(plain)
}

/// The text that removes the table, whether or not it is there. (`destroy` takes nft 1.0.7.)
pub(super) fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Whether there is a table of our name.
pub(super) fn exists() -> Result<bool, NftError> {
    match run(&["list", "tables", "inet"], "") {
        Ok(tables) => {
            Ok(tables.lines().any(|line| line.split_whitespace().eq(["table", "inet", TABLE])))
        }
        Err(error) => Err(error),
    }
}

/// All rules of this network namespace, without what is in their sets.
pub(super) fn rules() -> Result<String, NftError> {
    run(&["--terse", "--numeric", "list", "ruleset"], "")
}

/// Applies `text` as one transaction.
pub(super) fn apply(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let failed = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            return NftError::Missing;
        }
        NftError::Run(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    // The other two where a service has a short PATH.
    let mut started = Err(io::Error::from(io::ErrorKind::NotFound));
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        started = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the daemon, which puts the host back.
            .process_group(0)
            .spawn();
        if !matches!(&started, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    let mut child = started.map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all before it writes anything. Where it ends early, its word says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason");
    Err(NftError::Refused(Complaint(line.strip_prefix("Error: ").unwrap_or(line).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_table() {
        #[rustfmt::skip]
        let cases = [
            ("eth0", true), ("br-*", true), ("eth0.5", true), ("wg@x", true),
            ("", false), ("*", false), ("a*b", false), ("a\"", false), ("a b", false),
            ("a\\", false), ("sixteen-letters!", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_pattern(name), expected, "{name}");
        }
    }
}
