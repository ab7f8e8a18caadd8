//! A network namespace that lives as long as its descriptor.
//!
//! A thread of its own leaves the process's namespace, opens the new one and
//! ends; the descriptor keeps the namespace. No name under /run/netns, so a
//! killed test leaves nothing, and tests side by side cannot meet.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::command::Program;

/// One network namespace, loopback up.
#[derive(Clone, Debug)]
pub struct Netns {
    name: &'static str,
    file: Arc<File>,
}

impl Netns {
    /// A fresh namespace; `name` is for messages alone.
    pub fn new(name: &'static str) -> Result<Self> {
        let file = thread::spawn(|| -> io::Result<File> {
            // SAFETY: unshare(2) takes no pointer; CLONE_NEWNET changes this thread alone, which ends below.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .expect("the thread only makes two system calls")
        .context("a new network namespace")?;
        let netns = Self { name, file: Arc::new(file) };
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// The namespace that this process was started in.
    pub fn of_this_process() -> Result<Self> {
        let file = File::open("/proc/self/ns/net").context("/proc/self/ns/net")?;
        Ok(Self { name: "here", file: Arc::new(file) })
    }

    /// What `netns` takes in ip(8), for processes that can see this one.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread inside the namespace and waits for it. Sockets
    /// made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let netns = self.clone();
        thread::spawn(move || {
            netns.enter();
            work()
        })
    }

    /// Moves the calling thread here. Private: the thread must be one of ours.
    fn enter(&self) {
        enter(self.raw_fd()).unwrap_or_else(|error| panic!("setns to `{}`: {error}", self.name));
    }

    /// A program in this namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Program {
        Program::new(self, program)
    }

    /// Runs lines of `ip -batch`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Waits until the kernel takes packets for these IPv6 addresses: it adds an
    /// address's local route on a work queue, after the address is there.
    pub(crate) fn settle(&self, addresses: &[IpAddr]) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(5);
        loop {
            let table = self.output("ip", &["-6", "route", "show", "table", "local"])?;
            let missing =
                addresses.iter().find(|address| !table.contains(&format!("local {address} ")));
            let Some(missing) = missing else {
                return Ok(());
            };
            ensure!(Instant::now() < limit, "`{}` never took {missing}:\n{table}", self.name);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let done = self.command(program).args(args).input(input).run()?;
        ensure!(
            done.status.success(),
            "{program} {} in `{}`: {}\n{}\ninput:\n{input}",
            args.join(" "),
            self.name,
            done.status,
            done.stderr
        );
        Ok(())
    }

    /// What a program prints, which must succeed.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let done = self.command(program).args(args).run()?;
        ensure!(
            done.status.success(),
            "{program} {} in `{}`: {}\n{}",
            args.join(" "),
            self.name,
            done.status,
            done.stderr
        );
        Ok(done.stdout)
    }

    /// Sets a sysctl, named by its path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{path}"), value))
            .with_context(|| format!("sysctl {path} = {value} in `{}`", self.name))
    }

    /// No router solicitations, no addresses made from advertisements: a capture
    /// then holds what the test caused and nothing else.
    pub(crate) fn quiet_ipv6_autoconf(&self) -> Result<()> {
        for device in ["all", "default"] {
            self.sysctl(&format!("net/ipv6/conf/{device}/accept_ra"), "0")?;
            self.sysctl(&format!("net/ipv6/conf/{device}/router_solicitations"), "0")?;
        }
        Ok(())
    }
}

/// setns(2) for the calling thread. Async-signal-safe: `command` calls it
/// between fork and exec.
pub(crate) fn enter(netns: RawFd) -> io::Result<()> {
    // SAFETY: setns(2) takes no pointer; the caller holds the descriptor open.
    if unsafe { libc::setns(netns, libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
