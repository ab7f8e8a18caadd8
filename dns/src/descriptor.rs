//! Descriptors that tokio waits for.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime.
#[expect(
    deprecated,
    reason = "what is to replace it is unsafe for types that may change their descriptor; this one never does"
)]
pub(crate) fn ready(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, Errno> {
    AsyncFd::new(fd).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
