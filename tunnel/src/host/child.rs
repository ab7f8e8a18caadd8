//! Programs that are run to change the host.

use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

/// Starts `program`, which `prepare` gives arguments and descriptors: also from where it lies where
/// a service has a short PATH.
pub(super) fn start(
    program: &str,
    prepare: impl Fn(&mut Command) -> io::Result<()>,
) -> io::Result<Child> {
    let mut started = Err(io::ErrorKind::NotFound.into());
    for directory in ["", "/usr/sbin/", "/sbin/"] {
        let mut command = Command::new(format!("{directory}{program}"));
        command.env("LC_ALL", "C");
        // Ctrl-C is for the daemon, which puts the host back.
        command.process_group(0);
        prepare(&mut command)?;
        started = command.spawn();
        if !matches!(&started, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    started
}

/// Waits for its end, and kills it where that takes longer than `patience`: `None`.
pub(super) fn end(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    // One that the kernel holds does not end by that, and nobody waits for it.
    let killed = Instant::now();
    while child.try_wait()?.is_none() && killed.elapsed() < KILLED {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

/// A file in memory, for a program's descriptors: unlike a pipe it makes neither side wait.
pub(super) struct Sheet(std::fs::File);

impl Sheet {
    /// One with `text`, to be read from its beginning.
    pub(super) fn new(text: &str) -> io::Result<Self> {
        let mut file =
            std::fs::File::from(rustix::fs::memfd_create("tunneld", MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(Self(file))
    }

    /// As a program's descriptor.
    pub(super) fn stdio(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }

    /// All that was written.
    pub(super) fn text(mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// For what was killed to be gone.
const KILLED: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_is_killed() {
        let cases = [("exit 3", Some(3)), ("sleep 60", None)];
        for (line, expected) in cases {
            let mut child = start("sh", |command| {
                command.args(["-c", line]);
                Ok(())
            })
            .unwrap();
            let ended =
                end(&mut child, Duration::from_millis(if line == "exit 3" { 10_000 } else { 100 }));
            assert_eq!(ended.unwrap().and_then(|status| status.code()), expected, "{line}");
            assert!(child.try_wait().unwrap().is_some(), "{line}");
        }
        assert_eq!(
            start("no-such-program", |_| Ok(())).err().unwrap().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_sheet_is_read_and_written() {
        let (question, answer) = (Sheet::new("a\nb\n").unwrap(), Sheet::new("").unwrap());
        let mut child = start("tac", |command| {
            command.stdin(question.stdio()?).stdout(answer.stdio()?);
            Ok(())
        })
        .unwrap();
        assert!(end(&mut child, Duration::from_secs(10)).unwrap().unwrap().success());
        assert_eq!(answer.text().unwrap(), "b\na\n");
    }
}
