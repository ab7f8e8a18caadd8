//! Names of links to and from their indexes, in the network namespace where this was opened.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// Asks the kernel.
#[derive(Debug)]
pub(super) struct Links(OwnedFd);

impl Links {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).map(Self)
    }

    /// The index of a link, named or numbered.
    pub(super) fn index(&self, link: &str) -> Option<u32> {
        match link.parse() {
            Ok(index) => (index > 0).then_some(index),
            Err(_) => netdevice::name_to_index(&self.0, link).ok(),
        }
    }

    /// Whether there is a link of this index.
    pub(super) fn is_there(&self, index: u32) -> bool {
        netdevice::index_to_name_inlined(&self.0, index).is_ok()
    }
}
