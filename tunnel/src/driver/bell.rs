//! The bell that wakes a shard from another thread.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// One eventfd; rung many times before the shard looks, it wakes it once.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    /// The shard is to look at its queues and has not begun to.
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, rung: AtomicBool::new(false) })
    }

    /// To be watched for reading.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Has the shard look at its queues and state once more. What was put there before is seen:
    /// whoever finds the flag set leaves it to a look that has not begun.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // A full counter wakes as well.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Begins to look.
    pub(super) fn heard(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
        self.rung.swap(false, Ordering::AcqRel);
    }
}
