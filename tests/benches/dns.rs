//! The benchmark of names: what the split resolver costs beside others that forward.
//!
//! All forward to one server that answers everything, in turn and in one run; dnsperf asks
//! them. unbound (one thread), dnsmasq and, where it is installed, hickory-dns are asked
//! directly on loopback, tunneld through its TUN. `cargo bench -p tests --bench dns [WORD…]`
//! asks those whose name holds one of the words; needs root.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::endpoints::UdpServer;
use tests::endpoints::dns::any_name;
use tests::figures::{Wanted, median};
use tests::lab::daemon::Daemon;
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Running, plan, process};

/// Rounds behind every median.
const ROUNDS: usize = 3;
/// Names that a cache is warm with.
const WARM: u32 = 1_000;
/// Names that are asked once each: more than any cache here holds.
const COLD: u32 = 200_000;
/// How long a server is asked what it knows, in seconds.
const SECONDS: u32 = 4;
/// How much later the slow server answers.
const SLOW: Duration = Duration::from_millis(5);

fn main() -> Result<()> {
    let Some(wanted) = Wanted::of_this_run("dns") else { return Ok(()) };
    let bench = Bench::new()?;
    println!(
        "| median of {ROUNDS} | warm, 1/s | µs of CPU | p99 at half | miss, 1/s | µs of CPU | warm after | MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for kind in Kind::ALL.into_iter().filter(|kind| wanted.row(kind.name())) {
        let rounds: Vec<Reading> = (0..ROUNDS).map(|_| bench.read(kind)).collect::<Result<_>>()?;
        let of = |field: fn(&Reading) -> f64| median(rounds.iter().map(field).collect());
        println!(
            "| {} | {:.0} | {:.1} | {:.2} ms | {:.0} | {:.1} | {:.0} | {:.1} |",
            kind.name(),
            of(|r| r.warm),
            of(|r| r.warm_cpu),
            of(|r| r.half_p99),
            of(|r| r.miss),
            of(|r| r.miss_cpu),
            of(|r| r.warm_after),
            of(|r| r.mib),
        );
    }
    if wanted.row("tunneld") {
        println!("\n| tunneld | |\n| --- | --- |");
        bench.memory()?;
        bench.both()?;
        bench.dead()?;
    }
    Ok(())
}

/// Who forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unbound,
    Dnsmasq,
    Hickory,
    Tunneld,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Unbound, Self::Dnsmasq, Self::Hickory, Self::Tunneld];

    fn name(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::Hickory => "hickory-dns",
            Self::Tunneld => "tunneld, through the TUN",
        }
    }
}

struct Bench {
    lab: Lab,
    files: Scratch,
    /// Answer all names at once.
    _quick: [UdpServer; 2],
    /// Answers all names after [`SLOW`].
    _slow: UdpServer,
}

#[derive(Default)]
struct Reading {
    warm: f64,
    warm_cpu: f64,
    half_p99: f64,
    miss: f64,
    miss_cpu: f64,
    warm_after: f64,
    mib: f64,
}

/// A server that forwards, and where to ask it.
struct Peer {
    running: Forwarder,
    address: &'static str,
    port: u16,
}

enum Forwarder {
    Program(Running),
    Daemon(Daemon),
}

impl Peer {
    fn pid(&self) -> Result<u32> {
        Ok(match &self.running {
            Forwarder::Program(running) => running.pid(),
            Forwarder::Daemon(daemon) => daemon.running()?.pid(),
        })
    }

    fn end(self) -> Result<()> {
        match self.running {
            Forwarder::Program(running) => drop(running),
            Forwarder::Daemon(mut daemon) => drop(daemon.stop()?),
        }
        Ok(())
    }
}

/// What dnsperf says of one run.
struct Run {
    per_second: f64,
    /// Microseconds of the server's processor time for each query.
    cpu: f64,
    /// Sorted, in milliseconds; empty unless asked for.
    latencies: Vec<f64>,
}

impl Bench {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        lab.host.ip("link set lo up\n")?;
        let quick = [
            UdpServer::start(&lab.server, plan::GOOD4, 53, any_name)?,
            UdpServer::start(&lab.server, plan::NEAR4, 53, any_name)?,
        ];
        let slow = UdpServer::start(&lab.server, plan::GOOD4_SECOND, 53, |query| {
            thread::sleep(SLOW);
            any_name(query)
        })?;
        let files = Scratch::new()?;
        files.write("warm", &names("w", WARM))?;
        files.write("one", "w1.bench.example A\n")?;
        files.write("ten", &names("t", 10_000))?;
        Ok(Self { lab, files, _quick: quick, _slow: slow })
    }

    fn start(&self, kind: Kind) -> Result<Peer> {
        let program = |program: &str, args: &[&str], port| -> Result<Peer> {
            let running = self
                .lab
                .host
                .command(program)
                .args(args)
                .limit(Duration::from_secs(600))
                .spawn()?;
            Ok(Peer { running: Forwarder::Program(running), address: "127.0.0.1", port })
        };
        let peer = match kind {
            Kind::Unbound => {
                let file = self.files.write("unbound.conf", &unbound_conf(plan::GOOD4))?;
                program("unbound", &["-d", "-c", &file.to_string_lossy()], 5301)?
            }
            Kind::Dnsmasq => {
                let server = format!("--server={}", plan::GOOD4);
                let args = [
                    "-k",
                    "-C",
                    "/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--user=root",
                    "--port=5302",
                    "--listen-address=127.0.0.1",
                    "--bind-interfaces",
                    "--cache-size=10000",
                    "--dns-forward-max=1000",
                    &server,
                ];
                program("dnsmasq", &args, 5302)?
            }
            Kind::Hickory => {
                let file = self.files.write("hickory.toml", &hickory_conf(plan::GOOD4))?;
                let path = hickory();
                // Debian has no group `nobody`, and each query would be a line of its log.
                program(&path.to_string_lossy(), &["-q", "-c", &file.to_string_lossy()], 5303)?
            }
            Kind::Tunneld => {
                self.daemon(&format!("[dns]\nupstream = [\"{}\"]\n", plan::GOOD4), "")?
            }
        };
        self.wait(&peer)?;
        Ok(peer)
    }

    fn daemon(&self, config: &str, resolve: &str) -> Result<Peer> {
        let policy = format!("policy 1\n{resolve}default allow\n");
        // The host's own resolver is the machine's: it stays as it is.
        let config = if config.contains("[dns]\n") {
            config.replacen("[dns]\n", "[dns]\ntakeover = \"none\"\n", 1)
        } else {
            format!("{config}[dns]\ntakeover = \"none\"\n")
        };
        let daemon = Daemon::start(&self.lab.host, &policy, &config)?;
        let running = Forwarder::Daemon(daemon);
        Ok(Peer { running, address: "198.18.0.2", port: 53 })
    }

    fn wait(&self, peer: &Peer) -> Result<()> {
        for _ in 0..100 {
            let run = self.dnsperf(peer, "one", &["-n", "1", "-t", "1"]);
            if run.is_ok_and(|run| run.per_second > 0.0) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the server at port {} never answered", peer.port)
    }

    fn read(&self, kind: Kind) -> Result<Reading> {
        if kind == Kind::Hickory && !hickory().exists() {
            return Ok(Reading::default());
        }
        let seconds = SECONDS.to_string();
        // Each server is a new one, so these are new to it.
        self.files.write("cold", &names("c", COLD))?;
        let peer = self.start(kind)?;
        self.dnsperf(&peer, "warm", &["-n", "2"])?;
        let warm = self.dnsperf(&peer, "warm", &["-l", &seconds])?;
        let half = (warm.per_second / 2.0).max(1.0).round().to_string();
        let at_half = self.dnsperf(&peer, "warm", &["-l", &seconds, "-Q", &half, "-v"])?;
        // dnsmasq with a full cache falls to a thousand a second.
        let miss = self.dnsperf(&peer, "cold", &["-n", "1", "-l", "20"])?;
        self.dnsperf(&peer, "warm", &["-n", "2"])?;
        let after = self.dnsperf(&peer, "warm", &["-l", &seconds])?;
        let mib = process::cost(&[peer.pid()?]).rss_kib as f64 / 1024.0;
        peer.end()?;
        Ok(Reading {
            warm: warm.per_second,
            warm_cpu: warm.cpu,
            half_p99: quantile(&at_half.latencies, 0.99),
            miss: miss.per_second,
            miss_cpu: miss.cpu,
            warm_after: after.per_second,
            mib,
        })
    }

    /// What ten thousand names in the cache take.
    fn memory(&self) -> Result<()> {
        let peer = self.start(Kind::Tunneld)?;
        self.dnsperf(&peer, "warm", &["-l", "1"])?;
        let before = process::cost(&[peer.pid()?]).rss_kib;
        self.dnsperf(&peer, "ten", &["-n", "1"])?;
        let after = process::cost(&[peer.pid()?]).rss_kib;
        println!(
            "| 10,000 cached names | {:.1} MiB |",
            after.saturating_sub(before) as f64 / 1024.0
        );
        peer.end()
    }

    /// `A and B`: how much later than the slower of two servers.
    fn both(&self) -> Result<()> {
        let slow = format!("[\"{}\"]", plan::GOOD4_SECOND);
        let config = format!(
            "[dns]\nupstream = [\"{}\"]\n[[resolver]]\nname = \"b\"\nservers = {slow}\n",
            plan::GOOD4
        );
        let mut medians = Vec::new();
        for resolve in
            ["resolve *.bench.example using b\n", "resolve *.bench.example using upstream and b\n"]
        {
            self.files.write("both", &names(&format!("b{}x", medians.len()), 500))?;
            let peer = self.daemon(&config, resolve)?;
            self.wait(&peer)?;
            let run = self.dnsperf(&peer, "both", &["-n", "1", "-q", "1", "-v"])?;
            medians.push(quantile(&run.latencies, 0.5));
            peer.end()?;
        }
        let [one, both] = medians[..] else { anyhow::bail!("two medians") };
        println!("| the slower server alone, p50 | {one:.3} ms |");
        println!("| `A and B`, p50 | {both:.3} ms |");
        Ok(())
    }

    /// One of two servers is dead: refusing, or silent.
    fn dead(&self) -> Result<()> {
        for (what, first) in [
            ("both servers well", plan::NEAR4.to_string()),
            ("one refuses", format!("{}:{}", plan::NEAR4, plan::CLOSED_PORT)),
            ("one is silent", plan::SILENT4.to_string()),
        ] {
            let config = format!("[dns]\nupstream = [\"{first}\", \"{}\"]\n", plan::GOOD4);
            self.files.write("dead", &names(&format!("d{}x", what.len()), 20_000))?;
            let peer = self.daemon(&config, "")?;
            self.wait(&peer)?;
            let run = self.dnsperf(&peer, "dead", &["-n", "1", "-Q", "4000", "-v"])?;
            println!(
                "| misses, {what}: p50, p99, longest | {:.2} ms, {:.2} ms, {:.0} ms |",
                quantile(&run.latencies, 0.5),
                quantile(&run.latencies, 0.99),
                quantile(&run.latencies, 1.0),
            );
            peer.end()?;
        }
        Ok(())
    }

    fn dnsperf(&self, peer: &Peer, file: &str, args: &[&str]) -> Result<Run> {
        let pid = peer.pid()?;
        let before = process::cost(&[pid]).cpu_seconds;
        let done = self
            .lab
            .host
            .command("dnsperf")
            .args(["-s", peer.address, "-p", &peer.port.to_string(), "-c", "4"])
            .args(["-d", &self.files.join(file).to_string_lossy()])
            .args(args)
            .run()?;
        let cpu = process::cost(&[pid]).cpu_seconds - before;
        ensure!(done.code() == 0, "{done:?}");
        let figure = |name: &str| -> Result<f64> {
            let line = done.stdout.lines().find(|line| line.trim_start().starts_with(name));
            let word = line
                .and_then(|line| line.split(':').nth(1)?.split_whitespace().next()?.parse().ok());
            word.with_context(|| format!("no {name} in {}", done.stdout))
        };
        let completed = figure("Queries completed")?;
        // `> NOERROR w1.bench.example A 0.000123`
        let mut latencies: Vec<f64> = done
            .stdout
            .lines()
            .filter(|line| line.starts_with("> "))
            .filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok())
            .map(|seconds| seconds * 1e3)
            .collect();
        latencies.sort_by(f64::total_cmp);
        Ok(Run {
            per_second: figure("Queries per second")?,
            cpu: cpu * 1e6 / completed.max(1.0),
            latencies,
        })
    }
}

/// Lines of dnsperf's input.
fn names(prefix: &str, count: u32) -> String {
    let mut lines = String::new();
    for number in 0..count {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{prefix}{number}.bench.example A");
    }
    lines
}

fn unbound_conf(server: IpAddr) -> String {
    format!(
        "server:
  num-threads: 1
  interface: 127.0.0.1@5301
  do-daemonize: no
  username: \"\"
  chroot: \"\"
  pidfile: \"\"
  use-syslog: no
  do-not-query-localhost: no
  module-config: \"iterator\"
  access-control: 127.0.0.0/8 allow
  do-ip6: no
  outgoing-range: 4096
  num-queries-per-thread: 2048
  msg-cache-size: 4m
  rrset-cache-size: 8m
remote-control:
  control-enable: no
forward-zone:
  name: \".\"
  forward-addr: {server}
"
    )
}

fn hickory_conf(server: IpAddr) -> String {
    format!(
        "user = \"root\"
group = \"root\"
listen_addrs_ipv4 = [\"127.0.0.1\"]
listen_port = 5303
[[zones]]
zone = \".\"
zone_type = \"External\"
[zones.stores]
type = \"forward\"
name_servers = [{{ ip = \"{server}\", trust_negative_responses = false, connections = [{{ protocol = {{ type = \"udp\" }} }}] }}]
"
    )
}

/// Where `cargo install --locked --root target/peers hickory-dns` puts it.
fn hickory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/bin/hickory-dns")
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
}
