//! CMD while it runs, seen from tunneld.
//!
//! # Theory of operation
//!
//! [`Child::wait`] sleeps on two descriptors: the signals held for CMD, and CMD's pidfd,
//! which is readable at its end. Stops: when job control stops CMD (Ctrl-Z, a read in the
//! background), tunneld stops itself, so that the shell sees its job stopped and takes the
//! terminal back; `fg` continues the group and thereby both. A SIGSTOP that somebody sends to
//! CMD alone leaves tunneld running: who sent it continues CMD, not tunneld. If a CMD that was
//! stopped so leaves the terminal without an owner (`suspend` in a shell), Ctrl-Z gives it
//! back.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::SpawnError;
use super::guard::Lifeline;
use super::process::{Forked, News};
use super::signals::{Arrived, Signals};

/// CMD.
#[derive(Debug)]
pub struct Child {
    process: Forked,
    signals: Signals,
    stopped: bool,
    _lifeline: Lifeline,
}

/// How CMD ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

impl Status {
    /// The code that a shell would give it: CMD's own, or 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            // Signals end at 64.
            Self::Signaled(signal) => 128 | signal,
        }
    }
}

impl Child {
    pub(super) fn new(process: Forked, signals: Signals, lifeline: Lifeline) -> Self {
        Self { process, signals, stopped: false, _lifeline: lifeline }
    }

    /// CMD's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for CMD's end and passes signals on until then. Afterwards they act on tunneld
    /// again: Ctrl-C ends what it may still be at.
    pub fn wait(mut self) -> Result<Status, SpawnError> {
        let status = self.supervise().map_err(SpawnError::Wait)?;
        // What came with CMD's end (one Ctrl-C for both) is not meant for what follows.
        while let Ok(Some(_)) = self.signals.next() {}
        Ok(status)
    }

    fn supervise(&mut self) -> Result<Status, Errno> {
        loop {
            let mut descriptors = [
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut descriptors, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            while let Some(arrived) = self.signals.next()? {
                self.heard(arrived)?;
            }
            if let Some(status) = self.look()? {
                return Ok(status);
            }
        }
    }

    fn heard(&mut self, arrived: Arrived) -> Result<(), Errno> {
        if let Some(signal) = arrived.passed_on() {
            match rustix::process::pidfd_send_signal(self.process.pidfd(), signal) {
                // It has just ended, or has become another user's: nothing that we could do.
                Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        if arrived.is(Signal::CONT) {
            self.stopped = false;
        } else if arrived.is(Signal::TSTP) && arrived.from_kernel && self.stopped {
            stop()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<Option<Status>, Errno> {
        while let Some(news) = self.process.news()? {
            match news {
                // The kernel keeps the low eight bits.
                News::Exited(code) => return Ok(Some(Status::Exited((code & 0xff) as u8))),
                News::Killed(signal) => return Ok(Some(Status::Signaled((signal & 0x7f) as u8))),
                News::Stopped(signal) => {
                    self.stopped = true;
                    let job_control = [Signal::TSTP, Signal::TTIN, Signal::TTOU];
                    if job_control.iter().any(|s| s.as_raw() == signal) {
                        stop()?;
                    }
                }
            }
        }
        Ok(None)
    }
}

impl AsFd for Child {
    /// CMD's pidfd: readable at its end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }
}

/// Stops this process until someone continues it.
fn stop() -> Result<(), Errno> {
    rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_what_a_shell_would_give() {
        let cases = [
            (Status::Exited(0), 0),
            (Status::Exited(255), 255),
            (Status::Signaled(15), 143),
            (Status::Signaled(9), 137),
            (Status::Signaled(64), 192),
        ];
        for (status, code) in cases {
            assert_eq!(status.exit_code(), code, "{status:?}");
        }
    }
}
