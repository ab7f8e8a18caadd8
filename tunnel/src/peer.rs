//! Who is at the other end of a Unix socket, as the kernel says.
//!
//! `SO_PEERCRED` tells the process, user and primary group at the time of the connect, and
//! `SO_PEERGROUPS` the supplementary groups. Neither can be forged. No safe wrapper of the
//! latter exists, so the call is made here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its groups, the primary one first.
    pub groups: Vec<u32>,
}

/// More groups than this the kernel gives nobody (`NGROUPS_MAX`).
const GROUPS: usize = 65_536;

/// Asks the kernel about a connected socket.
///
/// # Errors
/// It is no connected Unix socket.
pub fn of(socket: impl AsFd) -> io::Result<Peer> {
    let socket = socket.as_fd();
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    let mut groups = vec![credentials.gid.as_raw()];
    let mut supplementary: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let room = supplementary.len() * size_of::<libc::gid_t>();
        let mut bytes = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the pointer leads to `room` bytes of initialised integers that nothing else
        // borrows, `bytes` says as much, and the kernel writes whole integers, for which any
        // bit pattern is one. The descriptor is open while `socket` borrows it.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                supplementary.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        // What the kernel wrote, or would have.
        let count = bytes as usize / size_of::<libc::gid_t>();
        if answer == 0 {
            supplementary.truncate(count);
            groups.append(&mut supplementary);
            return Ok(Peer { uid: credentials.uid.as_raw(), groups });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count > GROUPS {
            return Err(error);
        }
        supplementary.resize(count.max(supplementary.len() + 1), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_end() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let peer = of(&one).expect("an answer");
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.groups[0], rustix::process::getegid().as_raw());
        let mut ours: Vec<u32> =
            rustix::process::getgroups().expect("groups").iter().map(|g| g.as_raw()).collect();
        let mut theirs = peer.groups[1..].to_vec();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(theirs, ours);
    }

    #[test]
    fn no_unix_socket() {
        let file = std::fs::File::open("/dev/null").expect("a file");
        assert!(of(&file).is_err());
    }
}
