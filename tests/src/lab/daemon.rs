//! `tunneld run` on a host of the lab, and its verbs.
//!
//! The daemon's files lie in a directory of the test's own, so daemons of tests side by side
//! cannot meet; everything else it changes is the namespace's.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::command::{Finished, Program, Running};
use super::exec::built_tunneld;
use super::netns::Netns;
use super::scratch::Scratch;

/// A daemon that is to run on `netns`.
#[derive(Debug)]
pub struct Daemon {
    netns: Netns,
    files: Scratch,
    env: Vec<(&'static str, &'static str)>,
    running: Option<Running>,
}

impl Daemon {
    /// Writes its files. `config` are lines of tunneld.toml beside those that every test needs.
    /// Unless it names `takeover` the host's resolver is left alone: `/etc` is everybody's.
    pub fn new(netns: &Netns, policy: &str, config: &str) -> Result<Self> {
        let files = Scratch::new()?;
        files.write("policy.d/test.policy", policy)?;
        let daemon = Self { netns: netns.clone(), files, env: Vec::new(), running: None };
        daemon.configure(config)?;
        Ok(daemon)
    }

    /// Writes another configuration, as [`Daemon::new`] takes it, for a reload. With the variable
    /// `TUNNELD_LAB_QUEUES` set the whole lab runs with so many shards.
    pub fn configure(&self, config: &str) -> Result<()> {
        let mut config = config.to_owned();
        if let Ok(queues) = std::env::var("TUNNELD_LAB_QUEUES")
            && !config.contains("queues")
        {
            if config.contains("[device]\n") {
                config = config.replace("[device]\n", &format!("[device]\nqueues = {queues}\n"));
            } else {
                config = format!("{config}\n[device]\nqueues = {queues}\n");
            }
        }
        let own = "[control]\nsocket = \"run/control.sock\"\n\
                   [policy]\ndirectory = \"policy.d\"\n[guard]\nmode = \"open\"\n";
        // It may hold a key, which is nobody else's.
        self.files.write_secret("tunneld.toml", &format!("{}\n{own}", alone(&config)))?;
        Ok(())
    }

    /// [`Daemon::new`], started and ready.
    pub fn start(netns: &Netns, policy: &str, config: &str) -> Result<Self> {
        let mut daemon = Self::new(netns, policy, config)?;
        daemon.run()?;
        Ok(daemon)
    }

    /// Sets a variable of its environment, for when it is started.
    pub fn env(&mut self, name: &'static str, value: &'static str) {
        self.env.push((name, value));
    }

    /// Starts it and waits until it is ready.
    pub fn run(&mut self) -> Result<()> {
        self.running = Some(self.program()?.limit(Duration::from_secs(300)).spawn()?);
        let began = Instant::now();
        loop {
            let running = self.running.as_mut().context("it was started")?;
            if running.ended()? {
                let ended = self.running.take().context("it was started")?.wait()?;
                anyhow::bail!("the daemon ended: {ended:?}");
            }
            if self.verb(&["status"])?.code() == 0 {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "not ready: {}", running_text(self));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `tunneld run`, not yet started.
    pub fn program(&self) -> Result<Program> {
        let program = self.netns.command(built_tunneld()?).args(["run", "--config"]);
        let env = self.env.iter();
        Ok(env
            .fold(program, |program, (name, value)| program.env(name, value))
            .args([self.config()]))
    }

    /// The configuration's path.
    pub fn config(&self) -> PathBuf {
        self.files.join("tunneld.toml")
    }

    /// The control socket's path.
    pub fn socket(&self) -> PathBuf {
        self.files.join("run/control.sock")
    }

    /// The directory of its files.
    pub fn files(&self) -> &Scratch {
        &self.files
    }

    /// Runs a verb against it.
    pub fn verb(&self, args: &[&str]) -> Result<Finished> {
        self.program_of(args)?.run()
    }

    /// A verb against it, not yet started.
    pub fn program_of(&self, args: &[&str]) -> Result<Program> {
        let tunneld = self.netns.command(built_tunneld()?);
        Ok(tunneld.args(args).args(["--socket"]).args([self.socket()]))
    }

    /// The JSON objects that a verb prints.
    pub fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let done = self.verb(&[&["--json"], args].concat())?;
        ensure!(done.code() <= 1, "{args:?}: {done:?}");
        done.stdout
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("{args:?}: {line}")))
            .collect()
    }

    /// Asks for its status over the socket itself, without a process in between.
    pub fn status(&self) -> Result<()> {
        ask(&self.socket(), "/v1/status").map(drop)
    }

    /// Replaces its policy and reloads: what the verb said.
    pub fn reload(&self, policy: &str) -> Result<Finished> {
        self.files.write("policy.d/test.policy", policy)?;
        self.verb(&["reload"])
    }

    /// The same over the socket itself: no process's start is in the time that it takes.
    pub fn reload_at_once(&self, policy: &str) -> Result<String> {
        self.files.write("policy.d/test.policy", policy)?;
        exchange(&self.socket(), "POST /v1/reload")
    }

    /// What its policy, as it is on the disk now, would cut.
    pub fn diff(&self) -> Result<Finished> {
        self.verb(&["diff", &self.files.join("policy.d").to_string_lossy()])
    }

    /// Its process.
    pub fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the daemon was stopped")
    }

    /// Ends it as a service manager would: what it left with. Its counters must add up.
    pub fn stop(&mut self) -> Result<Finished> {
        let status = self.json(&["status"])?;
        super::counters::adds_up(status.first().context("a status")?)?;
        self.end(Signal::TERM)
    }

    /// Kills it: it puts nothing back.
    pub fn kill(&mut self) -> Result<Finished> {
        self.end(Signal::KILL)
    }

    /// Waits for it to end by itself.
    pub fn ended(&mut self) -> Result<Finished> {
        self.running.take().context("the daemon was stopped")?.wait()
    }

    fn end(&mut self, signal: Signal) -> Result<Finished> {
        let running = self.running.take().context("the daemon was stopped")?;
        running.signal(signal)?;
        running.wait()
    }
}

/// The configuration with `dns.takeover = "none"`, where it does not say otherwise.
fn alone(config: &str) -> String {
    if config.contains("takeover") {
        config.to_owned()
    } else if config.contains("[dns]\n") {
        config.replacen("[dns]\n", "[dns]\ntakeover = \"none\"\n", 1)
    } else {
        format!("{config}\n[dns]\ntakeover = \"none\"\n")
    }
}

/// Asks over a daemon's socket itself, from whatever thread: the whole answer.
pub fn ask(socket: &Path, path: &str) -> Result<String> {
    exchange(socket, &format!("GET {path}"))
}

fn exchange(socket: &Path, request: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{request} HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

fn running_text(daemon: &Daemon) -> String {
    daemon.running.as_ref().map(Running::stderr).unwrap_or_default()
}
