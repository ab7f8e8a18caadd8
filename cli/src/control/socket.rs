//! The socket's file: where it is, whose it is, and whether somebody answers there already.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as listen_on, socket_with,
};
use tokio::net::UnixListener;
use tracing::warn;

use crate::error::{Refusal, code};

/// Where the socket is when nobody says otherwise.
pub(crate) const SOCKET: &str = "/run/tunneld/control.sock";

/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;

/// Binds the socket at `path`. Everybody may connect: who may what is judged by request, since
/// an admin need not be in the group, and anybody may end a flow of their own. Where there is
/// no `group` that may look, that is said. A file that a dead daemon left is replaced. Must be
/// called on a runtime.
///
/// # Errors
/// A daemon answers there; something else lies there; the system refuses.
pub(crate) fn listen(path: &Path, group: &str) -> Result<UnixListener, Refusal> {
    let refuse = |error: io::Error| {
        Refusal::new(code::FAILED, format!("control socket {}: {error}", path.display()))
    };
    clear(path)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(refuse)?;
    }
    if group_id(group).is_none() && !group.is_empty() {
        warn!(code = "control-group", "there is no group `{group}`: only root and admins may look");
    }
    bound(path).map_err(|errno| refuse(errno.into()))
}

fn bound(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // The umask took its part.
    rustix::fs::chmod(path, Mode::from_raw_mode(0o666))?;
    listen_on(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
        .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

/// Removes what a dead daemon left.
fn clear(path: &Path) -> Result<(), Refusal> {
    let refuse = |why: &dyn std::fmt::Display| {
        Refusal::new(code::FAILED, format!("control socket {}: {why}", path.display()))
    };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refuse(&error)),
    };
    if !kind.is_socket() {
        return Err(refuse(&"something that is no socket lies there")
            .help("move it away, or set `control.socket`"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| refuse(&error))
        }
        Ok(_) => Err(refuse(&"a daemon answers there").help("`tunneld status` asks it")),
        Err(error) => Err(refuse(&error)),
    }
}

/// Removes the file, where it is still this listener's.
pub(super) fn remove(listener: &UnixListener) {
    let Ok(address) = listener.local_addr() else { return };
    if let Some(path) = address.as_pathname() {
        // It may be gone already.
        let _ = fs::remove_file(path);
    }
}

/// The number of a group: from /etc/group, else from whatever the host asks.
pub(crate) fn group_id(group: &str) -> Option<u32> {
    let in_text = |text: &str| {
        let mut lines = text.lines().map(|line| line.split(':'));
        lines.find_map(|mut fields| {
            (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
        })
    };
    if group.is_empty() {
        return None;
    }
    in_text(&fs::read_to_string("/etc/group").unwrap_or_default()).or_else(|| {
        let asked = Command::new("getent")
            .args(["group", "--", group])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        in_text(&String::from_utf8_lossy(&asked.stdout))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_left_by_a_dead_daemon_is_replaced_and_nothing_else() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let directory = std::env::temp_dir().join(format!("tunneld-sock-{}", std::process::id()));
        let path = directory.join("below/control.sock");
        let first = listen(&path, "no-such-group-here").expect("a socket, and its directory");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let refused = listen(&path, "").expect_err("somebody answers").to_string();
        assert!(refused.ends_with("a daemon answers there"), "{refused}");
        drop(first);
        let second = listen(&path, "").expect("the old one was dead");
        remove(&second);
        assert!(!path.exists());
        fs::write(&path, "precious").expect("a file");
        assert!(listen(&path, "").is_err());
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        fs::remove_dir_all(&directory).expect("directory");
    }

    #[test]
    fn groups() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group-here"), None);
        assert_eq!(group_id(""), None);
    }
}
