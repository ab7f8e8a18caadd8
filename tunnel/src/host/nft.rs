//! nftables, by the program `nft`: each text is one transaction of the kernel's.

use std::fs::File;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;

use super::child::{self, Sheet};

mod standing;
mod table;

pub(super) use standing::{Standing, Touched, receive, touches, watch};
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
    /// It did not end by itself, and was killed.
    #[error("`nft` does not end")]
    Hangs,
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
    let tables = list(&["list", "tables", "inet"])?;
    Ok(tables.lines().any(|line| line.split_whitespace().eq(["table", "inet", TABLE])))
}

/// All rules of this network namespace, without what is in their sets.
pub(super) fn rules() -> Result<String, NftError> {
    list(&["--terse", "--numeric", "list", "ruleset"])
}

/// Applies `text` as one transaction. The program has `lock` open: one that outlives a killed
/// daemon by some milliseconds still changes the host, and holds the lock as long.
pub(super) fn apply(text: &str, lock: &File) -> Result<(), NftError> {
    // As its standard output, to which it writes nothing then: so no other program has it.
    run(&["-f", "-"], text, || lock.try_clone().map(Stdio::from))
}

/// What it says to a question.
fn list(arguments: &[&str]) -> Result<String, NftError> {
    let answer = Sheet::new("").map_err(failed)?;
    run(arguments, "", || answer.stdio())?;
    answer.text().map_err(failed)
}

fn run(
    arguments: &[&str],
    input: &str,
    output: impl Fn() -> io::Result<Stdio>,
) -> Result<(), NftError> {
    let (input, complaint) = (Sheet::new(input).map_err(failed)?, Sheet::new("").map_err(failed)?);
    let started = child::start("nft", |command| {
        command.args(arguments);
        command.stdin(input.stdio()?).stdout(output()?).stderr(complaint.stdio()?);
        Ok(())
    });
    let mut child = started.map_err(failed)?;
    let status = child::end(&mut child, PATIENCE).map_err(failed)?.ok_or(NftError::Hangs)?;
    if status.success() {
        return Ok(());
    }
    let said = complaint.text().map_err(failed)?;
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason");
    Err(NftError::Refused(Complaint(line.strip_prefix("Error: ").unwrap_or(line).into())))
}

fn failed(error: io::Error) -> NftError {
    if error.kind() == io::ErrorKind::NotFound {
        return NftError::Missing;
    }
    NftError::Run(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// It takes milliseconds, and seconds where its sets are large and the processors busy.
const PATIENCE: Duration = Duration::from_secs(10);

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
