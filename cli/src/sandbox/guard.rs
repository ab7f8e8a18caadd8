//! The process that takes CMD along when tunneld is killed.
//!
//! # Theory of operation
//!
//! CMD asks the kernel to be killed with tunneld ([`die_with`](super::process::die_with)), and
//! the kernel forgets the wish when CMD is a program with file capabilities or the set-uid bit
//! (ping, sudo; prctl(2)). So a third process waits for the two ends that there can be: CMD's,
//! on its pidfd, and tunneld's, on a pipe that tunneld alone holds open. It does nothing else,
//! takes no signal that can be blocked, and keeps nothing open that CMD's readers could wait
//! for.

#![allow(unsafe_code)]

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use super::process::{self, Forked, Side};

/// What keeps CMD alive. It is closed when tunneld ends, however that happens.
#[derive(Debug)]
pub(super) struct Lifeline {
    _open: OwnedFd,
}

/// Starts the process that ends `command` when the [`Lifeline`] is closed. Like
/// [`fork`](process::fork) to be called with one thread.
pub(super) fn start(command: &Forked) -> Result<Lifeline, Errno> {
    let (closed, open) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match process::fork()? {
        Side::Child { .. } => {
            drop(open);
            watch(command, &closed)
        }
        Side::Parent(_) => Ok(Lifeline { _open: open }),
    }
}

fn watch(command: &Forked, lifeline: &OwnedFd) -> ! {
    block_all_signals();
    close_all_but([command.pidfd().as_raw_fd(), lifeline.as_raw_fd()]);
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(command.pidfd(), PollFlags::IN),
            PollFd::from_borrowed_fd(lifeline.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut descriptors, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => process::quit(1),
        }
        if descriptors.iter().any(|d| !d.revents().is_empty()) {
            // Where CMD's end was the news, there is nobody to kill.
            let _ = rustix::process::pidfd_send_signal(command.pidfd(), Signal::KILL);
            process::quit(0);
        }
    }
}

fn block_all_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initializes the set; no old set is asked for.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}

fn close_all_but(kept: [RawFd; 2]) {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| !kept.contains(descriptor)) {
        // SAFETY: this process ends in `watch`, which uses the kept ones alone; what else the
        // copied memory owns is never used or dropped here. One of them was the directory's
        // own and is closed already.
        unsafe { libc::close(descriptor) };
    }
}
