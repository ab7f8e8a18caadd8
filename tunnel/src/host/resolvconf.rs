//! The program `resolvconf`: Debian's or openresolv's.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;
use tracing::warn;

use super::child;
use super::nft::Complaint;

/// Why resolvconf did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolvconfError {
    /// There is no such program.
    #[error("the program `resolvconf` is not installed")]
    Missing,
    /// It could not be started, not be spoken to, or did not end.
    #[error("`resolvconf` cannot be run: {}", super::error::reason(*.0))]
    Run(Errno),
    /// It said no.
    #[error("resolvconf: {0}")]
    Refused(Complaint),
}

/// Adds or replaces a record. openresolv then uses no other; Debian's program knows neither
/// metric nor exclusive use, and has its own order of names.
pub(super) fn add(record: &str, text: &str) -> Result<(), ResolvconfError> {
    effective(run(&["-a", record, "-m", "0", "-x"], text), || is_there(record))
}

/// Removes a record. One that isn't there is fine, and so is a program that isn't.
pub(super) fn remove(record: &str) -> Result<(), ResolvconfError> {
    if !is_there(record) {
        return Ok(());
    }
    match run(&["-d", record], "") {
        Err(ResolvconfError::Missing) => Ok(()),
        done => effective(done, || !is_there(record)),
    }
}

/// It says no as well where a program that it tells of the change has failed. What counts is
/// the record.
fn effective(
    done: Result<(), ResolvconfError>,
    is_done: impl FnOnce() -> bool,
) -> Result<(), ResolvconfError> {
    match done {
        Err(error @ ResolvconfError::Refused(_)) if is_done() => {
            warn!(code = "resolvconf-complains", "{error}");
            Ok(())
        }
        done => done,
    }
}

/// Where records lie: Debian's, openresolv's to 3.12, and from 3.13.
fn is_there(record: &str) -> bool {
    ["interface", "interfaces", "keys"]
        .iter()
        .any(|directory| Path::new("/run/resolvconf").join(directory).join(record).exists())
}

/// It runs other programs that tell servers of the change.
const PATIENCE: Duration = Duration::from_secs(15);

fn run(arguments: &[&str], input: &str) -> Result<(), ResolvconfError> {
    let started = child::start("resolvconf", |command| {
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(())
    });
    let mut child = started.map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A pipe takes this much at once. Where it ends early, its word says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child::end(&mut child, PATIENCE).map_err(|error| failed(&error))?;
    let Some(status) = ended else { return Err(ResolvconfError::Run(Errno::TIMEDOUT)) };
    if status.success() {
        return Ok(());
    }
    // What it started may hold the pipe still: what is in it now is what counts.
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take()
        && rustix::io::ioctl_fionbio(&stderr, true).is_ok()
    {
        let _ = stderr.take(4096).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason");
    Err(ResolvconfError::Refused(Complaint::new(line)))
}

fn failed(error: &io::Error) -> ResolvconfError {
    if error.kind() == io::ErrorKind::NotFound {
        return ResolvconfError::Missing;
    }
    ResolvconfError::Run(Errno::from_io_error(error).unwrap_or(Errno::IO))
}
