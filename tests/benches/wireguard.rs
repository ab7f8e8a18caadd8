//! The benchmark of tunnels: tunneld beside others that do WireGuard in user space.
//!
//! Every figure is the median of readings taken in turn, over one veth: the kernel's own path
//! without a tunnel, then through a tunnel with both ends of one kind. tunneld's near end is
//! `tunneld exec`; its far end is tunneld's interface behind a small pump, since what comes to
//! an end unasked is not tunneld's. `cargo bench -p tests --bench wireguard [WORD…]` runs the
//! rows whose name holds one of the words; needs root. A peer that is not installed
//! (`cargo install --root target/peers boringtun-cli`) is left out, and said.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::endpoints::wireguard::{End, MTU, base64};
use tests::endpoints::{Pump, UdpServer, WireguardGo};
use tests::figures::{Wanted, median, short};
use tests::lab::exec::{Exec, Executing, built_tunneld};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Running, Way, plan, process};

/// Readings behind every median.
const READINGS: usize = 5;

/// Who carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Tunneld,
    WireguardGo,
    Boringtun,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Kernel, Self::Tunneld, Self::WireguardGo, Self::Boringtun];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel, no tunnel",
            Self::Tunneld => "tunneld",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
        }
    }
}

/// A figure, and the processor seconds of the near end for each GB (1e9 bytes) it carried.
#[derive(Clone, Copy)]
struct Reading {
    value: f64,
    seconds_per_gb: Option<f64>,
}

type Read = fn(&Bench, Kind, &Near) -> Result<Reading>;

const ROWS: [(&str, &str, Read); 5] = [
    ("TCP up", "Gbit/s", |bench, kind, near| bench.tcp(kind, near, false)),
    ("TCP down", "Gbit/s", |bench, kind, near| bench.tcp(kind, near, true)),
    ("UDP, 1,350 B", "packets/s", |bench, kind, near| bench.udp(kind, near, 1_350)),
    ("UDP, 64 B", "packets/s", |bench, kind, near| bench.udp(kind, near, 64)),
    ("UDP echo of 1 datagram, p50 of 20,000", "µs", Bench::udp_echo),
];

struct Bench {
    lab: Lab,
    near: End,
    far: End,
    files: Scratch,
    boringtun: PathBuf,
    _iperf: Running,
    sink: UdpServer,
    echo: UdpServer,
}

/// The near end of a tunnel while one reading is taken.
enum Near {
    Kernel,
    /// `tunneld exec` makes it with the program; here is the far end.
    Exec(Pump),
    /// Near and far.
    Other([Box<WireguardGo>; 2]),
}

fn main() -> Result<()> {
    let Some(wanted) = Wanted::of_this_run("wireguard") else { return Ok(()) };
    println!("tunneld: {}\n", built_tunneld()?.display());
    let bench = Bench::new()?;
    println!("| median of {READINGS} | carried by | | of the kernel's | CPU s/GB |");
    println!("| --- | --- | --- | --- | --- |");
    for (name, unit, read) in ROWS.iter().filter(|(name, ..)| wanted.row(name)) {
        bench.row(name, unit, *read)?;
    }
    if wanted.row("idle") {
        bench.idle()?;
    }
    Ok(())
}

impl Bench {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        // The lab's link is between their outer addresses.
        let near = End::of(lab.host.clone(), 1)?;
        let far = End::of(lab.server.clone(), 2)?;
        let files = Scratch::new()?;
        let iperf = lab.server.command("iperf3").args(["-s", "--forceflush"]);
        let iperf = iperf.limit(Duration::from_secs(3600)).spawn()?;
        iperf.wait_for("listening")?;
        let any = "0.0.0.0".parse()?;
        let (sink, echo) =
            (UdpServer::sink(&lab.server, any, 0)?, UdpServer::echo(&lab.server, any, 0)?);
        let boringtun = Path::new("target/peers/bin/boringtun-cli");
        // Cargo runs a benchmark in its crate's directory.
        let boringtun = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(boringtun);
        Ok(Self { lab, near, far, files, boringtun, _iperf: iperf, sink, echo })
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let boringtun = self.boringtun.exists();
        Kind::ALL.into_iter().filter(move |kind| *kind != Kind::Boringtun || boringtun)
    }

    fn row(&self, name: &str, unit: &str, read: Read) -> Result<()> {
        let mut taken: Vec<(Kind, Vec<Reading>)> =
            self.kinds().map(|kind| (kind, Vec::new())).collect();
        for _ in 0..READINGS {
            for (kind, readings) in &mut taken {
                let near = self.tunnel(*kind)?;
                readings.push(read(self, *kind, &near).context(kind.name())?);
                if let Near::Exec(far) = near {
                    far.stop()?;
                }
            }
        }
        let mut of_kernel = None;
        for (kind, readings) in taken {
            let value = median(readings.iter().map(|reading| reading.value).collect());
            let seconds: Vec<f64> = readings.iter().filter_map(|r| r.seconds_per_gb).collect();
            let seconds =
                if seconds.is_empty() { "-".to_owned() } else { format!("{:.2}", median(seconds)) };
            let ratio = value / *of_kernel.get_or_insert(value);
            println!(
                "| {name} | {} | {} {unit} | {ratio:.2} | {seconds} |",
                kind.name(),
                short(value)
            );
        }
        if !self.boringtun.exists() {
            println!("| {name} | boringtun-cli | not installed | | |");
        }
        Ok(())
    }

    fn tunnel(&self, kind: Kind) -> Result<Near> {
        let (to_near, to_far) = (
            self.near.peer(Some(self.near.outer(false)), None),
            self.far.peer(Some(self.far.outer(false)), None),
        );
        let both = |program: &Path, args: &[&str]| -> Result<Near> {
            let far = WireguardGo::start_other(
                &self.far,
                std::slice::from_ref(&to_near),
                program.as_ref(),
                args,
            )?;
            let near = WireguardGo::start_other(
                &self.near,
                std::slice::from_ref(&to_far),
                program.as_ref(),
                args,
            )?;
            self.near.ping(self.far.inner(false), &["-c", "1"])?;
            Ok(Near::Other([near.into(), far.into()]))
        };
        match kind {
            Kind::Kernel => Ok(Near::Kernel),
            Kind::Tunneld => Ok(Near::Exec(Pump::start(&self.far, to_near)?)),
            Kind::WireguardGo => both(Path::new("wireguard-go"), &["-f"]),
            Kind::Boringtun => both(&self.boringtun, &["-f", "--disable-drop-privileges"]),
        }
    }

    /// A program by one way, and the address of the far end by that way.
    fn exec(&self, program: &str, near: &Near) -> Result<(Exec<'_>, String)> {
        let exec = self.lab.exec(program).limit(Duration::from_secs(120));
        let far = self.far.inner(false).to_string();
        Ok(match near {
            Near::Kernel => (exec.way(Way::Kernel), plan::NEAR4.to_string()),
            Near::Other(_) => (exec.way(Way::Kernel), far),
            Near::Exec(_) => (self.through_tunneld(exec)?, far),
        })
    }

    fn through_tunneld<'e>(&self, exec: Exec<'e>) -> Result<Exec<'e>> {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}/32\nMTU = {MTU}\n\n\
             [Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = {}/32\n",
            base64(self.near.key.as_bytes()),
            self.near.inner(false),
            base64(self.far.key.public().as_bytes()),
            self.far.outer(false),
            self.far.inner(false),
        );
        let file = self.files.write_secret("wg0.conf", &text)?;
        let config = format!("[[wireguard]]\nname = \"wg0\"\nfile = {:?}\n", file);
        let policy = format!("route to {} via wg0\ndefault allow", self.far.inner(false));
        Ok(exec.way(Way::Tunneld).config(&config).policy(&policy))
    }

    /// The near end's processes.
    fn pids(&self, near: &Near, run: &Executing) -> Vec<u32> {
        match near {
            Near::Kernel => Vec::new(),
            Near::Exec(_) => run.tunneld_pids(),
            Near::Other([near, _]) => vec![near.process().pid()],
        }
    }

    /// One flow of three seconds.
    fn tcp(&self, kind: Kind, near: &Near, down: bool) -> Result<Reading> {
        let (exec, far) = self.exec("iperf3", near)?;
        let run = exec.args(["-c", &far, "-J", "-t", "3"]).args(down.then_some("-R")).spawn()?;
        let before = process::cost(&self.pids(near, &run)).cpu_seconds;
        let (report, cpu_seconds) = self.outcome_and_cpu(near, run)?;
        let received = &report["end"]["sum_received"];
        let value = received["bits_per_second"].as_f64().with_context(|| report.to_string())? / 1e9;
        let bytes = received["bytes"].as_f64().context("no bytes")?;
        let seconds_per_gb = (kind != Kind::Kernel).then(|| (cpu_seconds - before) / (bytes / 1e9));
        Ok(Reading { value, seconds_per_gb })
    }

    /// Datagrams that arrive in two seconds of sending as fast as can be.
    fn udp(&self, _: Kind, near: &Near, size: u64) -> Result<Reading> {
        let (exec, far) = self.exec("probe", near)?;
        let before = self.sink.received();
        let seen = exec
            .args(["udp-flood", &far, &self.sink.port().to_string(), &size.to_string(), "2"])
            .run()?
            .success()?
            .json()?;
        thread::sleep(Duration::from_millis(200));
        let seconds = seen["seconds"].as_f64().context("seconds")?;
        let value = (self.sink.received() - before) as f64 / seconds;
        Ok(Reading { value, seconds_per_gb: None })
    }

    fn udp_echo(&self, _: Kind, near: &Near) -> Result<Reading> {
        let (exec, far) = self.exec("probe", near)?;
        let words = ["udp-latency", &far, &self.echo.port().to_string(), "20000"];
        let seen = exec.args(words).run()?.success()?.json()?;
        let value = seen["p50"].as_f64().with_context(|| seen.to_string())?;
        Ok(Reading { value, seconds_per_gb: None })
    }

    /// Waits for a run and tells what the near end had cost by its end.
    fn outcome_and_cpu(&self, near: &Near, mut run: Executing) -> Result<(Value, f64)> {
        let mut cpu_seconds: f64 = 0.0;
        while !run.running.ended()? {
            // The processes may be gone with the run: the last reading before its end counts.
            cpu_seconds = cpu_seconds.max(process::cost(&self.pids(near, &run)).cpu_seconds);
            thread::sleep(Duration::from_millis(50));
        }
        Ok((run.wait()?.success()?.json()?, cpu_seconds))
    }

    /// What a tunnel with a session and nothing to carry costs.
    fn idle(&self) -> Result<()> {
        const SECONDS: u64 = 30;
        println!("\n| an idle tunnel, {SECONDS} s | wake-ups a second |\n| --- | --- |");
        for kind in [Kind::Tunneld, Kind::WireguardGo] {
            let near = self.tunnel(kind)?;
            let (exec, far) = self.exec("sh", &near)?;
            let script = format!("ping -n -c 1 {far} >/dev/null && echo up; sleep 60");
            let run = exec.args(["-c", &script]).spawn()?;
            run.running.wait_for("up")?;
            thread::sleep(Duration::from_secs(2));
            let before = process::cost(&self.pids(&near, &run)).wakeups;
            thread::sleep(Duration::from_secs(SECONDS));
            let after = process::cost(&self.pids(&near, &run)).wakeups;
            let each = after.saturating_sub(before) as f64 / SECONDS as f64;
            println!("| {} | {each:.1} |", kind.name());
            drop(run);
            // It holds the far end's port.
            if let Near::Exec(far) = near {
                far.stop()?;
            }
        }
        Ok(())
    }
}
