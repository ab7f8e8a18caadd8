//! `tunneld exec` as a builder: program, policy, user; and what came of it.
//!
//! With `TUNNELD_TEST_WAY=kernel` the program runs in the namespace itself,
//! without tunneld. That proves the lab, the endpoints and the expectations on
//! the kernel's own path: a promise that tunneld makes about "the truth" must
//! hold there too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::command::{Finished, NOBODY, Program, Running, Tun, Who};
use super::netns::Netns;
use super::scratch::Scratch;

/// How a program's packets leave the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Through `tunneld exec`.
    Tunneld,
    /// By the kernel alone: the control.
    Kernel,
}

impl Way {
    /// What `TUNNELD_TEST_WAY` says; tunneld where it says nothing.
    pub fn of_this_run() -> Self {
        match std::env::var("TUNNELD_TEST_WAY").as_deref() {
            Ok("kernel") => Self::Kernel,
            Ok("tunneld") | Err(_) => Self::Tunneld,
            Ok(other) => panic!("TUNNELD_TEST_WAY is `{other}`, not `kernel` or `tunneld`"),
        }
    }
}

/// The tunneld under test: `TUNNELD_BIN`, else the one built beside the tests.
pub fn tunneld() -> PathBuf {
    std::env::var_os("TUNNELD_BIN").map_or_else(|| beside("tunneld"), PathBuf::from)
}

/// [`tunneld`], which must be there.
pub fn built_tunneld() -> Result<PathBuf> {
    let tunneld = tunneld();
    ensure!(
        tunneld.exists(),
        "{} is not built: cargo build --profile ci --workspace, or set TUNNELD_BIN",
        tunneld.display()
    );
    Ok(tunneld)
}

/// The probe, the program of many small questions (`src/bin/probe`).
pub fn probe() -> PathBuf {
    beside("probe")
}

/// How long what is promised within that time may take the program under test. It is promised of a
/// release, and measured of it (`docs/performance.md`); of the build for tests no more than the
/// packet path is optimised.
pub fn promised(time: Duration) -> Duration {
    let released = tunneld().components().any(|c| c.as_os_str() == "release");
    time * if released { 1 } else { 4 }
}

/// A binary in the directory of this build: TARGET/PROFILE, whose `deps` the
/// running test is in.
fn beside(name: &str) -> PathBuf {
    built_in().join(name)
}

/// The directory of this build: TARGET/PROFILE.
pub(super) fn built_in() -> PathBuf {
    let test = std::env::current_exe().expect("/proc is mounted");
    let profile = test
        .ancestors()
        .find(|directory| directory.join("deps").is_dir())
        .expect("a test lies in TARGET/PROFILE/deps");
    profile.to_owned()
}

/// A program about to run through `tunneld exec`.
#[derive(Debug)]
pub struct Exec<'a> {
    netns: &'a Netns,
    way: Way,
    who: Who,
    program: String,
    args: Vec<String>,
    options: Vec<String>,
    policy: Option<String>,
    config: Option<String>,
    config_mode: u32,
    env: Vec<(String, String)>,
    input: String,
    tun: Tun,
    preparation: Option<String>,
    limit: Duration,
}

impl<'a> Exec<'a> {
    /// A program in a namespace that is a host.
    pub fn new(netns: &'a Netns, program: &str) -> Self {
        Self {
            netns,
            way: Way::of_this_run(),
            who: Who::Root,
            program: program.to_owned(),
            args: Vec::new(),
            options: Vec::new(),
            policy: None,
            config: None,
            config_mode: 0o644,
            env: Vec::new(),
            input: String::new(),
            tun: Tun::Open,
            preparation: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds an argument of the program.
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// Adds arguments of the program.
    pub fn args<S: ToString>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.to_string()));
        self
    }

    /// Adds an option of `tunneld exec` itself.
    pub fn option(mut self, words: &[&str]) -> Self {
        self.options.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// The policy, without its first line; by default everything is allowed.
    pub fn policy(mut self, rules: &str) -> Self {
        self.policy = Some(format!("policy 1\n{rules}\n"));
        self
    }

    /// The text of `tunneld.toml`.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// The same, in a file that nobody but its owner may read: it may hold a secret.
    pub fn config_of_owner(self, text: &str) -> Self {
        Self { config_mode: 0o600, ..self.config(text) }
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the program reads on standard input.
    pub fn input(mut self, input: &str) -> Self {
        self.input = input.to_owned();
        self
    }

    /// What [`Who::Nobody`] finds at /dev/net/tun.
    pub fn tun(mut self, tun: Tun) -> Self {
        self.tun = tun;
        self
    }

    /// Shell commands that make the host look different first: run as root in a
    /// mount namespace of their own, which tunneld then takes for the host's.
    /// For [`Who::Root`].
    pub fn prepare(mut self, script: &str) -> Self {
        self.preparation = Some(script.to_owned());
        self
    }

    /// Whose rights tunneld and the program have.
    pub fn who(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    /// Which way the packets go, whatever the run says.
    pub fn way(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Outcome> {
        self.spawn()?.wait()
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Executing> {
        self.start(false)
    }

    /// Starts it with its standard input open, for [`Running::close_input`].
    pub fn spawn_with_open_input(self) -> Result<Executing> {
        self.start(true)
    }

    fn start(self, open_input: bool) -> Result<Executing> {
        let scratch = Scratch::new()?;
        let report = scratch.join("report");
        let counters = scratch.join("counters");
        let (program, args) = self.command_line(&scratch, &report)?;
        let mut program = match &self.preparation {
            None => self.netns.command(program).args(args),
            Some(script) => self
                .netns
                .command("unshare")
                .args(["--mount", "--", "sh", "-ec"])
                .args([format!("{script}\nexec \"$@\""), "sh".to_owned()])
                .args([program])
                .args(args),
        };
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        if open_input {
            program = program.open_input();
        }
        let running = program
            .env("TUNNELD_COUNTERS", &counters)
            .env("PROBE", Program::staged(self.who, &probe()))
            .input(&self.input)
            .who(self.who)
            .tun(self.tun)
            .stage(&tunneld())
            .stage(&probe())
            .limit(self.limit)
            .spawn()?;
        Ok(Executing { running, scratch, report, counters })
    }

    /// The program to start and its arguments: tunneld's, or the command itself.
    fn command_line(&self, scratch: &Scratch, report: &Path) -> Result<(OsString, Vec<OsString>)> {
        let inner = if self.program == "probe" {
            Program::staged(self.who, &probe()).into_os_string()
        } else {
            OsString::from(&self.program)
        };
        let inner_args = self.args.iter().map(OsString::from);
        if self.way == Way::Kernel {
            return Ok((inner, inner_args.collect()));
        }
        let tunneld = built_tunneld()?;
        let mut args: Vec<OsString> = vec!["exec".into(), "--report".into(), report.into()];
        if let Some(policy) = &self.policy {
            scratch.write("policy/10-test.policy", policy)?;
            args.extend(["--policy".into(), scratch.join("policy").into_os_string()]);
        }
        if let Some(config) = &self.config {
            let path = scratch.write("tunneld.toml", config)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(self.config_mode))?;
            if self.who == Who::Nobody {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY))?;
            }
            args.extend(["--config".into(), path.into_os_string()]);
        }
        args.extend(self.options.iter().map(OsString::from));
        args.extend(["--".into(), inner]);
        args.extend(inner_args);
        Ok((Program::staged(self.who, &tunneld).into_os_string(), args))
    }
}

/// A running `tunneld exec`.
#[derive(Debug)]
pub struct Executing {
    /// The process that was started: tunneld, or the program by the kernel's way.
    pub running: Running,
    scratch: Scratch,
    report: PathBuf,
    counters: PathBuf,
}

impl Executing {
    /// The processes of tunneld, without the program's own.
    pub fn tunneld_pids(&self) -> Vec<u32> {
        super::process::tree(self.running.pid(), &tunneld())
    }

    /// The flows reported so far.
    pub fn flows(&self) -> Result<Vec<Value>> {
        last_of_each_flow(&lines(&self.report)?)
    }

    /// Waits for its end.
    pub fn wait(self) -> Result<Outcome> {
        let finished = self.running.wait()?;
        let report = lines(&self.report).with_context(|| format!("{finished:#?}"))?;
        let counters = match fs::read_to_string(&self.counters) {
            Ok(text) => Some(serde_json::from_str(&text).with_context(|| text.clone())?),
            Err(_) => None,
        };
        // In every run of the suite.
        counters.as_ref().map(super::counters::adds_up).transpose()?;
        drop(self.scratch);
        Ok(Outcome { finished, report, counters })
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Status and output.
    pub finished: Finished,
    /// Every line of `--report`.
    pub report: Vec<Value>,
    /// The engine's counters at the end.
    pub counters: Option<Value>,
}

impl Outcome {
    /// Demands exit code 0.
    pub fn success(self) -> Result<Self> {
        self.code(0)
    }

    /// Demands an exit code.
    pub fn code(self, expected: i32) -> Result<Self> {
        let seen = self.finished.code();
        ensure!(seen == expected, "exit code {expected} expected, {seen} seen: {self:#?}");
        Ok(self)
    }

    /// Standard output.
    pub fn stdout(&self) -> &str {
        &self.finished.stdout
    }

    /// Standard output as one JSON object: the probe's answer.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(self.stdout()).with_context(|| format!("not JSON: {self:#?}"))
    }

    /// The last state of every flow.
    pub fn flows(&self) -> Result<Vec<Value>> {
        last_of_each_flow(&self.report)
    }

    /// The last state of the flows to a destination.
    pub fn flows_to(&self, address: IpAddr, port: u16) -> Result<Vec<Value>> {
        let destination = std::net::SocketAddr::new(address, port).to_string();
        Ok(self.flows()?.into_iter().filter(|flow| flow["destination"] == *destination).collect())
    }

    /// The one flow to a destination.
    pub fn flow_to(&self, address: IpAddr, port: u16) -> Result<Value> {
        let mut flows = self.flows_to(address, port)?;
        ensure!(
            flows.len() == 1,
            "one flow to {address} port {port} expected, {} seen: {self:#?}",
            flows.len()
        );
        Ok(flows.remove(0))
    }
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("report line: {line}")))
        .collect()
}

fn last_of_each_flow(report: &[Value]) -> Result<Vec<Value>> {
    let mut flows = BTreeMap::new();
    for line in report.iter().filter(|line| line["event"] == "flow") {
        let id = line["id"].as_str().with_context(|| format!("a flow without id: {line}"))?;
        flows.insert(id.to_owned(), line.clone());
    }
    Ok(flows.into_values().collect())
}
