//! The benchmark: what tunneld costs beside the kernel's own path.
//!
//! Every figure is the median of seven, tunneld and kernel in turn over
//! the same veth, so that what else the machine does falls on both. `cargo
//! bench -p tests --bench throughput [WORD…]` runs the rows whose name holds
//! one of the words; needs root. With `--run` behind the `--`, a daemon that has captured
//! the host is measured in turn with both; with `--run --tracked` the host tracks
//! connections besides.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::tcp::one_byte_and_close;
use tests::endpoints::{TcpServer, UdpServer};
use tests::figures::{Wanted, median, short};
use tests::lab::daemon::Daemon;
use tests::lab::exec::{Exec, Executing, built_tunneld, tunneld};
use tests::lab::process::Cost;
use tests::lab::{Lab, Outcome, Running, Way, plan, process, track_connections};

/// Readings of each side behind every median.
const TURNS: usize = 7;

/// Whose reading it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The kernel's own path.
    Kernel,
    /// Through `tunneld exec`.
    Exec,
    /// Through a daemon that has captured the host.
    Run,
}

impl Side {
    /// A host that is captured runs a program as any other.
    fn way(self) -> Way {
        match self {
            Self::Kernel | Self::Run => Way::Kernel,
            Self::Exec => Way::Tunneld,
        }
    }
}

/// One row of the table.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// One reading of one side.
    read: fn(&Bench, Side) -> Result<Reading>,
}

/// A figure, and tunneld's processor seconds for each GB (1e9 bytes) it carried.
#[derive(Clone, Copy)]
struct Reading {
    value: f64,
    seconds_per_gb: Option<f64>,
}

impl From<f64> for Reading {
    fn from(value: f64) -> Self {
        Self { value, seconds_per_gb: None }
    }
}

const ROWS: [Row; 11] = [
    Row {
        name: "TCP up, IPv4",
        unit: "Gbit/s",
        read: |bench, side| bench.tcp(side, "203.0.113.1", false),
    },
    Row {
        name: "TCP down, IPv4",
        unit: "Gbit/s",
        read: |bench, side| bench.tcp(side, "203.0.113.1", true),
    },
    Row {
        name: "TCP up, IPv6",
        unit: "Gbit/s",
        read: |bench, side| bench.tcp(side, "2001:db8:f1::1", false),
    },
    Row {
        name: "TCP down, IPv6",
        unit: "Gbit/s",
        read: |bench, side| bench.tcp(side, "2001:db8:f1::1", true),
    },
    Row {
        name: "connect + 1 byte, p50",
        unit: "µs",
        read: |bench, side| bench.latency(side, "p50"),
    },
    Row {
        name: "connect + 1 byte, p99",
        unit: "µs",
        read: |bench, side| bench.latency(side, "p99"),
    },
    Row {
        name: "new flows a second, 64 at once",
        unit: "1/s",
        read: |bench, side| bench.rate(side, 0),
    },
    Row {
        name: "the same after 100,000 flows",
        unit: "1/s",
        read: |bench, side| bench.rate(side, 100_000),
    },
    Row { name: "UDP, 64 B", unit: "packets/s", read: |bench, side| bench.udp(side, 64) },
    Row { name: "UDP, 1,400 B", unit: "packets/s", read: |bench, side| bench.udp(side, 1_400) },
    Row { name: "UDP echo of 1 datagram, p50 of 20,000", unit: "µs", read: Bench::udp_echo },
];

struct Bench {
    /// Whether tunneld's side is `run`.
    daemon: bool,
    lab: Lab,
    _iperf: Running,
    threaded: TcpServer,
    short: TcpServer,
    sink: UdpServer,
    echo: UdpServer,
    held: TcpServer,
}

fn main() -> Result<()> {
    let Some(wanted) = Wanted::of_this_run("throughput") else { return Ok(()) };
    println!("tunneld: {}\n", built_tunneld()?.display());
    let (daemon, tracked) = (wanted.flag("--run"), wanted.flag("--tracked"));
    ensure!(daemon || !tracked, "`--tracked` goes with `--run`");
    let bench = Bench::new(daemon, tracked)?;
    let (run, line) = if daemon {
        (" `run` | ratio | CPU s/GB | of `exec` |", " --- | --- | --- | --- |")
    } else {
        ("", "")
    };
    println!("| median of {TURNS} | kernel | `exec` | ratio | CPU s/GB |{run}");
    println!("| --- | --- | --- | --- | --- |{line}");
    for row in ROWS.iter().filter(|row| wanted.row(row.name)) {
        bench.turns(row)?;
    }
    if bench.daemon && wanted.row("reload") {
        println!("\n| while it runs | |\n| --- | --- |");
        bench.reload()?;
    }
    if wanted.row("idle") {
        println!("\n| at rest | |\n| --- | --- |");
        bench.idle()?;
    }
    Ok(())
}

impl Bench {
    fn new(daemon: bool, tracked: bool) -> Result<Self> {
        let lab = Lab::new()?;
        // A far side with TIME-WAIT answers no second SYN from the same port for a while, and a
        // hundred thousand flows use all ports more than once.
        lab.server.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
        if tracked {
            // Conntrack sees the kernel's own path too.
            track_connections(&lab.host)?;
        }
        let iperf = lab
            .server
            .command("iperf3")
            .args(["-s", "--forceflush"])
            .limit(Duration::from_secs(3600))
            .spawn()?;
        iperf.wait_for("listening")?;
        let threaded = TcpServer::start(&lab.server, 0, one_byte_and_close)?;
        let short = TcpServer::start_inline(&lab.server, 0, one_byte_and_close)?;
        let sink = UdpServer::sink(&lab.server, plan::GOOD4, 0)?;
        let echo = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
        let held = TcpServer::hold(&lab.server, 0)?;
        Ok(Self { daemon, lab, _iperf: iperf, threaded, short, sink, echo, held })
    }

    /// The sides in turn, so that what else the machine does falls on all.
    fn turns(&self, row: &Row) -> Result<()> {
        let mut kernel = Vec::new();
        let mut exec = Vec::new();
        let mut run = Vec::new();
        for _ in 0..TURNS {
            kernel.push((row.read)(self, Side::Kernel)?);
            exec.push((row.read)(self, Side::Exec)?);
            if self.daemon {
                let mut daemon = self.start()?;
                run.push((row.read)(self, Side::Run)?);
                daemon.stop()?;
            }
        }
        let value = |readings: &[Reading]| median(readings.iter().map(|one| one.value).collect());
        print!("| {} | {} {} |", row.name, short(value(&kernel)), row.unit);
        for readings in [&exec, &run].into_iter().filter(|readings| !readings.is_empty()) {
            let ours = value(readings);
            print!(" {} | {:.2} |", short(ours), ours / value(&kernel));
            let seconds: Vec<f64> = readings.iter().filter_map(|one| one.seconds_per_gb).collect();
            let told = (!seconds.is_empty()).then(|| format!("{:.2}", median(seconds)));
            print!(" {} |", told.as_deref().unwrap_or("-"));
        }
        if self.daemon {
            // What the machine does from minute to minute falls on both of a turn.
            let ratios = run.iter().zip(&exec).map(|(run, exec)| run.value / exec.value);
            print!(" {:.2} |", median(ratios.collect()));
        }
        println!();
        Ok(())
    }

    fn start(&self) -> Result<Daemon> {
        Daemon::start(&self.lab.host, "policy 1\ndefault allow\n", "")
    }

    fn exec(&self, program: &str, side: Side) -> Exec<'_> {
        self.lab.exec(program).way(side.way())
    }

    /// The processes of tunneld behind a program.
    fn pids(&self, run: &Executing, side: Side) -> Vec<u32> {
        match side {
            Side::Kernel => Vec::new(),
            Side::Exec => run.tunneld_pids(),
            Side::Run => process::tree(std::process::id(), &tunneld()),
        }
    }

    fn probe(&self, side: Side, words: &[String]) -> Result<Value> {
        self.exec("probe", side).args(words).run()?.success()?.json()
    }

    /// One flow of two seconds, after half a second that is not counted.
    fn tcp(&self, side: Side, to: &str, down: bool) -> Result<Reading> {
        let mut args = vec!["-c", to, "-J", "-t", "2", "-O", "0.5"];
        args.extend(down.then_some("-R"));
        let run = self.exec("iperf3", side).args(args).spawn()?;
        let before = process::cost(&self.pids(&run, side)).cpu_seconds;
        let (outcome, cost) = self.outcome_and_cost(run, side)?;
        let cpu_seconds = cost.cpu_seconds - before;
        let report = outcome.json()?;
        let received = &report["end"]["sum_received"];
        let value = received["bits_per_second"].as_f64().with_context(|| report.to_string())? / 1e9;
        // All bytes, also those of the half second: the processor time is of both.
        let bytes: f64 = report["intervals"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|interval| interval["sum"]["bytes"].as_f64())
            .sum();
        let seconds_per_gb =
            (side != Side::Kernel && bytes > 0.0).then(|| cpu_seconds / (bytes / 1e9));
        Ok(Reading { value, seconds_per_gb })
    }

    fn latency(&self, side: Side, which: &str) -> Result<Reading> {
        let words = ["latency", "203.0.113.1", &self.threaded.port().to_string(), "2000"];
        let seen = self.probe(side, &words.map(str::to_owned))?;
        Ok(seen[which].as_f64().with_context(|| seen.to_string())?.into())
    }

    /// `before` flows first, in the same run.
    fn rate(&self, side: Side, before: u64) -> Result<Reading> {
        let one =
            |count: u64| format!("\"$PROBE\" rate 203.0.113.1 {} {count} 64", self.short.port());
        let script =
            if before == 0 { one(5_000) } else { format!("{}; {}", one(before), one(5_000)) };
        let seen = self
            .exec("sh", side)
            .args(["-c", &script])
            .limit(Duration::from_secs(300))
            .run()?
            .success()?;
        let last: Value = serde_json::from_str(seen.stdout().lines().last().unwrap_or(""))?;
        ensure!(last["failed"] == 0, "{seen:#?}");
        Ok(last["per_second"].as_f64().context("per_second")?.into())
    }

    /// Datagrams that arrive in two seconds of sending as fast as can be.
    fn udp(&self, side: Side, size: u64) -> Result<Reading> {
        let before = self.sink.received();
        let words =
            ["udp-flood", "203.0.113.1", &self.sink.port().to_string(), &size.to_string(), "2"];
        let seen = self.probe(side, &words.map(str::to_owned))?;
        thread::sleep(Duration::from_millis(200));
        let seconds = seen["seconds"].as_f64().context("seconds")?;
        Ok(((self.sink.received() - before) as f64 / seconds).into())
    }

    fn udp_echo(&self, side: Side) -> Result<Reading> {
        let words = ["udp-latency", "203.0.113.1", &self.echo.port().to_string(), "20000"];
        let seen = self.probe(side, &words.map(str::to_owned))?;
        Ok(seen["p50"].as_f64().with_context(|| seen.to_string())?.into())
    }

    /// Waits for a run and tells what tunneld had cost by its end.
    fn outcome_and_cost(&self, mut run: Executing, side: Side) -> Result<(Outcome, Cost)> {
        // The processes are gone with the run: the last reading before its end is the cost.
        let mut cost = Cost::default();
        while !run.running.ended()? {
            let pids = self.pids(&run, side);
            let now = process::cost(&pids);
            if now.cpu_seconds >= cost.cpu_seconds {
                cost = now;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok((run.wait()?.success()?, cost))
    }

    fn wakeups(&self, run: &Executing, side: Side) -> f64 {
        const SECONDS: u64 = 5;
        let before = process::cost(&self.pids(run, side)).wakeups;
        thread::sleep(Duration::from_secs(SECONDS));
        let after = process::cost(&self.pids(run, side)).wakeups;
        after.saturating_sub(before) as f64 / SECONDS as f64
    }

    /// A large policy is put in force under 10,000 live flows: how long the verb takes, its
    /// process included, and how long another flow waits meanwhile; then `status` while flows
    /// come and go.
    fn reload(&self) -> Result<()> {
        const FLOWS: u64 = 10_000;
        const RULES: u32 = 100_000;
        let side = Side::Run;
        let mut daemon = self.start()?;
        let idle = self
            .exec("probe", side)
            .args(["idle", "203.0.113.1"])
            .args([u64::from(self.held.port()), FLOWS, 60])
            .limit(Duration::from_secs(120))
            .spawn()?;
        idle.running.wait_for("open")?;
        let socket = self.lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect((plan::GOOD4, self.echo.port()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let pinger = thread::spawn({
            let stop = Arc::clone(&stop);
            move || -> Result<Duration> {
                let mut slowest = Duration::ZERO;
                while !stop.load(Ordering::Acquire) {
                    let began = Instant::now();
                    socket.send(b"ping")?;
                    socket.recv(&mut [0; 8])?;
                    slowest = slowest.max(began.elapsed());
                    thread::sleep(Duration::from_micros(200));
                }
                Ok(slowest)
            }
        });
        let mut times = Vec::new();
        for port in 1..=5 {
            let mut policy = "policy 1\n".to_owned();
            for rule in 0..RULES {
                let [a, b, c, _] = rule.wrapping_mul(2_654_435_761).to_be_bytes();
                writeln!(policy, "block tcp to 10.{a}.{b}.{c} port {port}")?;
            }
            policy += "default allow\n";
            daemon.files().write("policy.d/test.policy", &policy)?;
            let began = Instant::now();
            let done = daemon.verb(&["reload"])?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            ensure!(done.code() == 0, "{done:?}");
        }
        stop.store(true, Ordering::Release);
        let slowest = pinger.join().map_err(|_| anyhow::anyhow!("the pinger panicked"))??;
        println!("| reload of {RULES} rules, {FLOWS} flows live | {:.0} ms |", median(times));
        println!(
            "| longest wait of another flow meanwhile | {:.1} ms |",
            slowest.as_secs_f64() * 1e3
        );
        drop(idle);

        let mut load = self
            .exec("probe", side)
            .args(["rate", "203.0.113.1"])
            .args([u64::from(self.short.port()), 24_000, 32])
            .spawn()?;
        let mut times = Vec::new();
        while !load.running.ended()? {
            let began = Instant::now();
            daemon.status()?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let p99 = times[times.len() * 99 / 100];
        println!(
            "| `status` over the socket while 24,000 flows come and go, p99 of {} | {p99:.1} ms |",
            times.len()
        );
        daemon.stop()?;
        Ok(())
    }

    /// What 9,900 flows with nothing to do cost.
    fn idle(&self) -> Result<()> {
        const FLOWS: u64 = 9_900;
        let side = if self.daemon { Side::Run } else { Side::Exec };
        let _daemon = self.daemon.then(|| self.start()).transpose()?;
        let empty = self.exec("sh", side).args(["-c", "echo up; sleep 60"]).spawn()?;
        empty.running.wait_for("up")?;
        let base = process::cost(&self.pids(&empty, side));
        println!("| tunneld without a flow | {:.1} MiB |", base.rss_kib as f64 / 1024.0);
        println!("| wake-ups a second without a flow | {:.1} |", self.wakeups(&empty, side));
        drop(empty);

        let run = self
            .exec("probe", side)
            .args(["idle", "203.0.113.1"])
            .args([u64::from(self.held.port()), FLOWS, 60])
            .limit(Duration::from_secs(120))
            .spawn()?;
        run.running.wait_for("open")?;
        // Past the flows' own timers of the start.
        thread::sleep(Duration::from_secs(2));
        let full = process::cost(&self.pids(&run, side));
        let each = full.rss_kib.saturating_sub(base.rss_kib) as f64 / FLOWS as f64;
        println!("| {FLOWS} idle flows, each | {each:.1} KiB |");
        println!("| wake-ups a second with them | {:.1} |", self.wakeups(&run, side));
        Ok(())
    }
}
