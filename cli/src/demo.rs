//! `tunneld demo`: the filter at work on loopback endpoints, in seconds.
//!
//! A web server and a closed port live on this host's loopback. Real programs run through
//! `tunneld exec` under a policy that is printed first; then comes what each saw, what the
//! server saw, and the rule behind it, read from the reports like any other program would.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::error::{Refusal, code};

/// Addresses inside that stand for this host's loopback.
const OPEN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
const BLOCKED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 20);
const BY_SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 30);

pub(crate) fn run(json: bool) -> anyhow::Result<u8> {
    let began = Instant::now();
    let web = Web::start().context("cannot listen on loopback")?;
    let closed = closed_port().context("cannot find a free port")?;
    let directory = Scratch::new()?;
    let policy = directory.path.join("demo.policy");
    let text = policy_text(web.port, closed);
    std::fs::write(&policy, &text).context("cannot write the demo's policy")?;
    if !json {
        println!("The policy:\n");
        for line in text.lines() {
            println!("    {line}");
        }
        println!();
    }
    let client = Client::find()?;
    let mut right = true;
    for step in steps(web.port, closed) {
        let before = web.seen.load(Ordering::Relaxed);
        let shown = step.run(&client, &policy, &directory.path)?;
        let reached = web.seen.load(Ordering::Relaxed) - before;
        right &= shown.verdict() == step.verdict && reached == step.reaches;
        if json {
            println!(
                "{}",
                json!({
                    "event": "demo", "step": step.title, "command": shown.command,
                    "exit": shown.exit, "connections_seen": reached, "flow": shown.flow,
                })
            );
        } else {
            step.print(&shown, reached);
        }
    }
    if !right {
        let what = "the demo did not show what it should";
        return Err(Refusal::new(code::FAILED, what)
            .help("run it again with RUST_LOG=debug and report what you see")
            .into());
    }
    if !json {
        println!("Done in {:.1} s.", began.elapsed().as_secs_f32());
    }
    Ok(code::DONE)
}

fn policy_text(web: u16, closed: u16) -> String {
    format!(
        "policy 1\n\
         block from 127.0.0.0/8 to {BY_SOURCE} id by-source\n\
         allow tcp to {OPEN} port {web} {closed} id web\n\
         block to {BLOCKED} id forbidden\n\
         default block\n\
         expect allow tcp 127.0.0.1 to {OPEN} port {web}\n\
         expect block tcp any to {BLOCKED} port {web}\n"
    )
}

/// One thing to see.
struct Step {
    title: &'static str,
    to: SocketAddr,
    verdict: &'static str,
    /// Connections that the server must have seen.
    reaches: usize,
}

fn steps(web: u16, closed: u16) -> [Step; 4] {
    let to = |address: Ipv4Addr, port| SocketAddr::from((address, port));
    [
        Step { title: "An allowed page", to: to(OPEN, web), verdict: "allow", reaches: 1 },
        Step {
            title: "An allowed port where nobody listens: the truth comes back at once",
            to: to(OPEN, closed),
            verdict: "allow",
            reaches: 0,
        },
        Step {
            title: "A forbidden destination: refused before any byte leaves",
            to: to(BLOCKED, web),
            verdict: "block",
            reaches: 0,
        },
        Step {
            title: "A rule about the source: the address the far side would see",
            to: to(BY_SOURCE, web),
            verdict: "block",
            reaches: 0,
        },
    ]
}

struct Shown {
    command: String,
    exit: i32,
    said: String,
    took: Duration,
    flow: Value,
}

impl Shown {
    fn verdict(&self) -> &str {
        self.flow["verdict"].as_str().unwrap_or("none")
    }
}

impl Step {
    fn run(&self, client: &Client, policy: &Path, directory: &Path) -> anyhow::Result<Shown> {
        let report = directory.join("report.json");
        let command = client.command(self.to);
        let program = std::env::current_exe().context("cannot find this program")?;
        let began = Instant::now();
        let output = Command::new(program)
            .arg("exec")
            .args([Path::new("--policy"), policy, Path::new("--report"), &report])
            .args([OPEN, BLOCKED, BY_SOURCE].map(|a| format!("--host-loopback={a}")))
            .arg("--")
            .args(&command)
            .stdin(Stdio::null())
            .output()
            .context("cannot run tunneld exec")?;
        let took = began.elapsed();
        let exit = output.status.code().unwrap_or(-1);
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if exit == i32::from(code::EXEC_FAILED) {
            // Its own words: they name the cause and what to do.
            let mut lines = said.lines().map(|line| line.trim().to_owned());
            let what = lines.next().unwrap_or_default();
            let refusal = Refusal::new(code::FAILED, what.trim_start_matches("error: "));
            return Err(match lines.find_map(|l| l.strip_prefix("help: ").map(str::to_owned)) {
                Some(help) => refusal.help(help).into(),
                None => refusal.into(),
            });
        }
        let said = if output.stdout.is_empty() {
            said
        } else {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let reports = std::fs::read_to_string(&report).unwrap_or_default();
        let flow = reports
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .rfind(|flow| flow["protocol"] == "tcp" && flow["state"] == "closed")
            .unwrap_or(Value::Null);
        Ok(Shown { command: command.join(" "), exit, said, took, flow })
    }

    fn print(&self, shown: &Shown, reached: usize) {
        let flow = |key: &str| shown.flow[key].as_str().unwrap_or("-").to_owned();
        println!("* {}", self.title);
        println!("    $ {}", shown.command);
        println!("      {}", shown.said.lines().next().unwrap_or(""));
        println!(
            "      exit {} after {} ms; the server saw {} connection{}",
            shown.exit,
            shown.took.as_millis(),
            reached,
            if reached == 1 { "" } else { "s" },
        );
        println!(
            "      verdict {} by rule {}, reason {}",
            flow("verdict"),
            flow("rule"),
            flow("reason")
        );
        println!(
            "      {} -> {}, source {}\n",
            flow("client"),
            flow("destination"),
            flow("source")
        );
    }
}

/// The program that fetches.
enum Client {
    Curl,
    Wget,
    Bash,
}

impl Client {
    fn find() -> anyhow::Result<Self> {
        [(Self::Curl, "curl"), (Self::Wget, "wget"), (Self::Bash, "bash")]
            .into_iter()
            .find(|(_, name)| is_in_path(name))
            .map(|(client, _)| client)
            .ok_or_else(|| {
                Refusal::new(code::FAILED, "the demo runs curl, wget or bash, and finds none")
                    .help("install one of them, for example: apt-get install curl")
                    .into()
            })
    }

    fn command(&self, to: SocketAddr) -> Vec<String> {
        let url = format!("http://{to}/");
        let words: &[&str] = match self {
            Self::Curl => &["curl", "-sS", "--max-time", "5", "--noproxy", "*", &url],
            Self::Wget => &["wget", "-q", "-O", "-", "-T", "5", "-t", "1", "--no-proxy", &url],
            Self::Bash => {
                let script = format!(
                    "exec 3<>/dev/tcp/{}/{} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n 1 <&3",
                    to.ip(),
                    to.port()
                );
                return vec!["bash".to_owned(), "-c".to_owned(), script];
            }
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}

fn is_in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// A web server of one page, that counts its visitors.
struct Web {
    port: u16,
    seen: Arc<AtomicUsize>,
}

impl Web {
    fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut stream) = stream {
                    // A visitor that hangs or leaves is none of the demo's business.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = stream.write_all(
                        b"HTTP/1.0 200 OK\r\nContent-Length: 22\r\n\r\nHello from loopback.\r\n",
                    );
                }
            }
        });
        Ok(Self { port, seen })
    }
}

/// A port on which nobody listens: one that was free a moment ago.
fn closed_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A directory of one's own, gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("tunneld-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
