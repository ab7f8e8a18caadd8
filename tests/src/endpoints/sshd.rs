//! OpenSSH's sshd(8), with keys of its own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// sshd(8) wants its own path whole, to start itself anew for each login.
const SSHD: &str = "/usr/sbin/sshd";
/// Where it puts its unprivileged half.
const EMPTY: &str = "/run/sshd";
/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server that root may log in to with [`Sshd::key`].
#[derive(Debug)]
pub struct Sshd {
    files: Scratch,
    running: Running,
    _empty: Option<Empty>,
}

/// [`EMPTY`], made for a test; it goes with it.
#[derive(Debug)]
struct Empty;

impl Empty {
    /// `None`: it is there, and somebody else's.
    fn make() -> Result<Option<Self>> {
        match std::fs::create_dir(EMPTY) {
            Ok(()) => Ok(Some(Self)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error).context("a directory for sshd"),
        }
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(EMPTY);
    }
}

impl Sshd {
    /// Listens at port 22 of these addresses.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(netns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let files = Scratch::new()?;
        for key in ["host", "user"] {
            let made = netns
                .command("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .args([files.join(key)])
                .run()?;
            ensure!(made.code() == 0, "ssh-keygen: {made:?}");
        }
        // As the service's unit would.
        let empty = Empty::make()?;
        let mut config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             UsePAM no\nStrictModes no\nPidFile none\n",
            files.join("host").display(),
            files.join("user.pub").display(),
        );
        for address in addresses {
            config += &format!("ListenAddress {address}\n");
        }
        let config = files.write("sshd_config", &config)?;
        let running = netns
            .command(SSHD)
            .args(["-D", "-e", "-f"])
            .args([config])
            .limit(Duration::from_secs(120))
            .spawn()?;
        let server = Self { files, running, _empty: empty };
        let began = Instant::now();
        while server.running.stderr().matches("Server listening on").count() < addresses.len() {
            ensure!(began.elapsed() < PATIENCE, "sshd: {}", server.running.stderr());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// The key that it takes.
    pub fn key(&self) -> PathBuf {
        self.files.join("user")
    }
}
