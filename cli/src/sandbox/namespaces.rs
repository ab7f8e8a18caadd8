//! Entering the namespaces.

use std::fs;

use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::error::{Failure, Stage};
use super::inside::At;

/// Enters a mount and a network namespace, and for that a user namespace where the rights
/// are missing; `user_namespace` says so, also where it fails.
///
/// Nothing that is mounted from here on is seen by the host.
pub(super) fn enter(user_namespace: &mut bool) -> Result<(), Failure> {
    let entered = if privileged() { unshare(UnshareFlags::empty()) } else { Err(Errno::PERM) };
    // Root in a container may have the capability and still be refused (seccomp).
    if entered == Err(Errno::PERM) {
        *user_namespace = true;
        // Read before: in the new namespace they are the overflow ids until mapped.
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        unshare(UnshareFlags::NEWUSER).at(Stage::Unshare)?;
        // A gid may be mapped without CAP_SETGID outside only once setgroups(2) is denied.
        write("/proc/self/setgroups", "deny").at(Stage::IdMap)?;
        write("/proc/self/uid_map", &format!("{uid} {uid} 1")).at(Stage::IdMap)?;
        write("/proc/self/gid_map", &format!("{gid} {gid} 1")).at(Stage::IdMap)?;
    } else {
        entered.at(Stage::Unshare)?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).at(Stage::Propagation)
}

/// Root, and root's rights over namespaces. Another uid that holds these capabilities would
/// keep none of them at `execve`, so it is a user here.
fn privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

#[allow(unsafe_code, reason = "rustix marks unshare(2) unsafe for the descriptor table")]
fn unshare(more: UnshareFlags) -> Result<(), Errno> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | more;
    // SAFETY: the descriptor table, which the caller must not unshare unawares, stays shared.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn write(path: &str, text: &str) -> Result<(), Errno> {
    fs::write(path, text).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}
