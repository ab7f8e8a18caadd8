//! Signals held for CMD and passed on to it.
//!
//! # Theory of operation
//!
//! The signals of [`PASSED`] are blocked before the fork and read from a signalfd, so none is
//! lost and none ends tunneld before CMD. SIGCHLD comes the same way and gets its default
//! disposition, without which the kernel would reap CMD itself.
//!
//! A signal that the terminal makes (Ctrl-C, Ctrl-\, Ctrl-Z, a new size) goes to the whole
//! foreground process group, so CMD has it already: it isn't passed on, which would make two
//! of one. The kernel marks it SI_KERNEL. SIGHUP is the exception: when the terminal goes
//! away the kernel tells the session leader alone, which tunneld may be.

#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Signal;

use super::process::last_errno;

/// The signals that people, shells and service managers send.
pub(super) const PASSED: [Signal; 9] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
    Signal::TSTP,
    Signal::CONT,
];

/// The held signals, and what they were before. Dropped, all is as it was.
pub(super) struct Signals {
    descriptor: OwnedFd,
    mask_before: libc::sigset_t,
    child_action_before: libc::sigaction,
}

/// A signal that was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) number: i32,
    /// Whether the kernel made it: the terminal's, and all of the group have it.
    pub(super) from_kernel: bool,
}

impl Arrived {
    /// The signal to pass on, if this is one.
    pub(super) fn passed_on(self) -> Option<Signal> {
        let signal = PASSED.into_iter().find(|signal| signal.as_raw() == self.number)?;
        (!self.from_kernel || signal == Signal::HUP).then_some(signal)
    }

    pub(super) fn is(self, signal: Signal) -> bool {
        self.number == signal.as_raw()
    }
}

impl Signals {
    /// Holds the signals from here on, in this thread and all that it starts.
    pub(super) fn hold() -> Result<Self, Errno> {
        let mask = set_of(PASSED.into_iter().chain([Signal::CHILD]));
        // SAFETY: `mask` is initialized; a descriptor of -1 asks for a new one.
        let raw =
            unsafe { libc::signalfd(-1, &raw const mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw == -1 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just made it, and nobody else has it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };

        let mut mask_before = MaybeUninit::uninit();
        // SAFETY: both sets are valid for the call, which fills the second where it succeeds.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const mask, mask_before.as_mut_ptr()) }
            == -1
        {
            return Err(last_errno());
        }
        // SAFETY: it succeeded.
        let mask_before = unsafe { mask_before.assume_init() };
        let child_action_before = set_action(libc::SIGCHLD, &default_action())?;
        Ok(Self { descriptor, mask_before, child_action_before })
    }

    /// The next that has arrived; `None`: no more for now.
    pub(super) fn next(&self) -> Result<Option<Arrived>, Errno> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::readv(&self.descriptor, &mut [IoSliceMut::new(&mut info)]) {
            Ok(length) if length == info.len() => {}
            Ok(_) => return Err(Errno::IO),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // SAFETY: plain integers, and as many bytes as the kernel has written.
        let info: libc::signalfd_siginfo = unsafe { mem::transmute(info) };
        Ok(Some(Arrived {
            number: info.ssi_signo.cast_signed(),
            from_kernel: info.ssi_code == libc::SI_KERNEL,
        }))
    }

    /// Gives CMD the mask and dispositions that tunneld was started with.
    pub(super) fn restore_for_command(self) -> Result<(), Errno> {
        // The runtime has set it to ignored before `main`, which `execve` would hand on.
        set_action(libc::SIGPIPE, &default_action())?;
        self.restore()
    }

    fn restore(&self) -> Result<(), Errno> {
        set_action(libc::SIGCHLD, &self.child_action_before)?;
        // SAFETY: the set is one that the kernel gave; no old set is asked for.
        match unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask_before, ptr::null_mut())
        } {
            -1 => Err(last_errno()),
            _ => Ok(()),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Fails only for arguments that are wrong, which these are not.
        let _ = self.restore();
    }
}

impl AsFd for Signals {
    /// Readable when [`Signals::next`] has one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

fn set_of(signals: impl Iterator<Item = Signal>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initializes the set that `sigaddset` then changes.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
        }
        set.assume_init()
    }
}

fn default_action() -> libc::sigaction {
    // SAFETY: all zeros are SIG_DFL, no flags, an empty mask and no restorer.
    unsafe { mem::zeroed() }
}

fn set_action(signal: i32, action: &libc::sigaction) -> Result<libc::sigaction, Errno> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: `action` is one that the kernel gave, or the default: no code of ours is to run.
    match unsafe { libc::sigaction(signal, action, before.as_mut_ptr()) } {
        -1 => Err(last_errno()),
        // SAFETY: the call succeeded and has filled it.
        _ => Ok(unsafe { before.assume_init() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminals_signals_are_not_passed_twice() {
        let cases = [
            ("kill -INT", Signal::INT, false, true),
            ("Ctrl-C", Signal::INT, true, false),
            ("Ctrl-\\", Signal::QUIT, true, false),
            ("Ctrl-Z", Signal::TSTP, true, false),
            ("a new window size", Signal::WINCH, true, false),
            ("a terminal that went away", Signal::HUP, true, true),
            ("systemctl stop", Signal::TERM, false, true),
            ("fg", Signal::CONT, false, true),
            ("the child's own", Signal::CHILD, true, false),
            ("not ours to pass on", Signal::PIPE, false, false),
        ];
        for (name, signal, from_kernel, passed) in cases {
            let arrived = Arrived { number: signal.as_raw(), from_kernel };
            assert_eq!(arrived.passed_on(), passed.then_some(signal), "{name}");
        }
    }
}
