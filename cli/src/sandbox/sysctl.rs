//! Settings of the network namespace, under `/proc/sys/net`.
//!
//! # Theory of operation
//!
//! What `/proc/sys/net` shows is the network namespace of the process that opens a file there,
//! whoever mounted it and wherever, and CAP_NET_ADMIN over that namespace is all the right it
//! takes. Containers mount `/proc/sys` read-only; then a procfs of our own, mounted nowhere,
//! serves as well. A setting that has its value already is left alone, so that where neither
//! can be written only what is truly needed fails.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Both ways to the settings.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    own: Option<OwnedFd>,
}

impl Sysctls {
    /// Gives `net/{key}` a value.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        let path = format!("/proc/sys/net/{key}");
        let refusal = match write_at(CWD, &path, value) {
            Err(errno @ (Errno::ROFS | Errno::ACCESS)) => errno,
            written_or_failed => return written_or_failed,
        };
        let own = match self.own.take() {
            Some(own) => own,
            None => procfs().map_err(|_| refusal)?,
        };
        let written = write_at(&own, &format!("sys/net/{key}"), value);
        self.own = Some(own);
        written
    }
}

fn write_at(directory: impl rustix::fd::AsFd, path: &str, value: &str) -> Result<(), Errno> {
    let directory = directory.as_fd();
    let file =
        rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 64];
    let length = rustix::io::read(&file, &mut text[..])?;
    if text[..length].trim_ascii() == value.as_bytes() {
        return Ok(());
    }
    let file =
        rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

fn procfs() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}
