//! Forking, and becoming CMD.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::SpawnError;

/// Which of the two processes returned from [`fork`].
#[derive(Debug)]
pub(super) enum Side {
    /// The new one. It must not return to the code that the parent goes on with.
    Child {
        /// The parent.
        parent: Pid,
    },
    /// The old one.
    Parent(Forked),
}

/// The child. One that is never waited for is reaped by whoever inherits it from us.
#[derive(Debug)]
pub(super) struct Forked {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Forked {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What has happened to the child since the last call; `None`: nothing.
    pub(super) fn news(&self) -> Result<Option<News>, Errno> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
        })?;
        let Some(status) = status else { return Ok(None) };
        if let Some(signal) = status.stopping_signal() {
            return Ok(Some(News::Stopped(signal)));
        }
        if let Some(code) = status.exit_status() {
            return Ok(Some(News::Exited(code)));
        }
        Ok(status.terminating_signal().map(News::Killed))
    }
}

/// A change of a child's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
    /// A signal stopped it.
    Stopped(i32),
}

/// Fails where the process has a second thread: after a fork locks that it held would be
/// locked for ever.
pub(super) fn require_one_thread() -> Result<(), SpawnError> {
    let threads = fs::read_dir("/proc/self/task").map_err(|_| SpawnError::NoProc)?.count();
    if threads == 1 { Ok(()) } else { Err(SpawnError::Threads(threads)) }
}

/// Forks. The caller has made sure that there is one thread ([`require_one_thread`]).
pub(super) fn fork() -> Result<Side, Errno> {
    let parent = rustix::process::getpid();
    // SAFETY: with one thread no lock is held by anyone who won't be there after the fork, so
    // the child may go on as any program may.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(Side::Child { parent }),
        pid => {
            // A positive number: the branches above took the others.
            let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Side::Parent(Forked { pid, pidfd }))
        }
    }
}

/// Ends the calling process when the thread that forked it ends. `false`: it has ended
/// already.
pub(super) fn die_with(parent: Pid) -> Result<bool, Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(rustix::process::getppid() == Some(parent))
}

/// Ends the process without running what the parent has registered for its own end.
pub(super) fn quit(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// A command as `execvp` takes it.
#[derive(Debug)]
pub(super) struct Argv(Vec<CString>);

impl Argv {
    pub(super) fn new(words: &[OsString]) -> Result<Self, SpawnError> {
        if words.is_empty() {
            return Err(SpawnError::NoCommand);
        }
        words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| SpawnError::Nul)
    }

    /// Becomes the command: `PATH` is searched, and a file without a `#!` line is given to
    /// `sh`, as env(1) and every shell do. Returns only where that fails.
    pub(super) fn execute(&self) -> Errno {
        let mut pointers: Vec<*const libc::c_char> = self.0.iter().map(|w| w.as_ptr()).collect();
        pointers.push(ptr::null());
        // SAFETY: `pointers` is a null-terminated array of C strings that `self` owns.
        unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
        match last_errno() {
            // `execvp` says so of a directory in PATH that it may not look into, too.
            Errno::ACCESS if !self.is_found() => Errno::NOENT,
            errno => errno,
        }
    }

    fn is_found(&self) -> bool {
        let program = OsStr::from_bytes(self.0[0].as_bytes());
        if program.as_bytes().contains(&b'/') {
            return true;
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    }
}

/// What `execvp` searches where there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
