//! A thread with files of its own: `/etc`, `/run` and the programs of a package that is not
//! installed, because installing it would change this host's own resolver.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::exec::built_in;
use super::netns::Netns;

/// Where `tests/run` has unpacked a Debian package: `TARGET/packages/NAME`.
pub fn package(name: &str) -> Option<PathBuf> {
    let path = built_in().parent()?.join("packages").join(name);
    path.is_dir().then_some(path)
}

/// Runs `work` on a thread in the namespace with an own copy of `/etc`, an empty `/run`, and a
/// package's files in their places. Whatever it starts sees the same.
pub fn with_own_files<T: Send>(
    netns: &Netns,
    package: Option<&Path>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    netns.run(|| {
        // SAFETY: unshare(2) takes no pointer; the thread is `run`'s own and ends behind `work`.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
            return Err(std::io::Error::last_os_error()).context("a new mount namespace");
        }
        let script = "set -e
            mount --make-rprivate /
            mount -t tmpfs lab /srv
            mkdir /srv/etc /srv/run
            cp -a /etc/. /srv/etc
            rm -f /srv/etc/resolv.conf
            mount --bind /srv/etc /etc
            mount --bind /srv/run /run
            [ -n \"$1\" ] || exit 0
            [ ! -d \"$1/etc\" ] || cp -a \"$1/etc/.\" /etc
            mkdir /srv/usr
            for part in \"$1\"/lib \"$1\"/sbin \"$1\"/bin; do
              [ ! -d \"$part\" ] || cp -a \"$part\" /srv/usr
            done
            [ ! -d \"$1/usr\" ] || cp -a \"$1/usr/.\" /srv/usr
            mount -t overlay lab -o lowerdir=/srv/usr:/usr /usr";
        let package = package.map_or_else(OsString::new, |path| path.as_os_str().to_owned());
        let done = Command::new("sh").args(["-c", script, "sh"]).arg(package).output()?;
        ensure!(done.status.success(), "own files: {}", String::from_utf8_lossy(&done.stderr));
        work()
    })
}

/// Runs a program on the calling thread's files, which must succeed: what it wrote.
pub fn run(program: &str, args: &[&str], input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .with_context(|| program.to_owned())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let done = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program} {args:?}: {} {errors}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
