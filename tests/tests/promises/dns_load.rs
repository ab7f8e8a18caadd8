//! What names may cost, in figures that hold on any machine; `benches/dns.rs` has finer ones.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::endpoints::UdpServer;
use tests::endpoints::dns::any_name;
use tests::lab::daemon::Daemon;
use tests::lab::process::cost;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

/// An app that asks for addresses of names that there are.
struct App {
    socket: UdpSocket,
    id: u16,
}

impl App {
    fn new(lab: &Lab) -> Result<Self> {
        let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.set_read_timeout(Some(Duration::from_secs(6)))?;
        socket.connect("198.18.0.2:53")?;
        Ok(Self { socket, id: 0 })
    }

    fn send(&mut self, name: &str) -> Result<()> {
        self.id = self.id.wrapping_add(1);
        let mut query = self.id.to_be_bytes().to_vec();
        query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        self.socket.send(&query)?;
        Ok(())
    }

    fn receive(&self) -> Result<()> {
        let mut room = [0; 512];
        let length = self.socket.recv(&mut room).context("no answer")?;
        let (code, answers) = (room[3] & 15, room[7]);
        ensure!(length > 12 && code == 0 && answers == 1, "{:?}", &room[..length]);
        Ok(())
    }

    /// Asks, and has the answer in this time.
    fn ask(&mut self, name: &str) -> Result<Duration> {
        let asked = Instant::now();
        self.send(name)?;
        self.receive()?;
        Ok(asked.elapsed())
    }

    /// Asks for many, some of them at once.
    fn ask_all(&mut self, prefix: &str, count: usize) -> Result<()> {
        const AT_ONCE: usize = 64;
        for number in 0..count + AT_ONCE {
            if number < count {
                self.send(&format!("{prefix}{number}.example"))?;
            }
            if number >= AT_ONCE {
                self.receive()?;
            }
        }
        Ok(())
    }
}

fn daemon(lab: &Lab, config: &str, rules: &str) -> Result<Daemon> {
    Daemon::start(&lab.host, &format!("policy 1\n{rules}default allow\n"), config)
}

fn quantile(mut times: Vec<Duration>, q: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q).round() as usize]
}

/// Ten thousand may take 16 MiB.
#[test]
fn five_thousand_names_take_less_than_8_mib() -> Result<()> {
    require_root!();
    require_tunneld!();
    const NAMES: usize = 5_000;
    let lab = Lab::new()?;
    let server = UdpServer::start(&lab.server, plan::GOOD4, 53, any_name)?;
    // A few more than are counted: they lie in parts of the cache, of which one is full first.
    let config = format!("[dns]\nupstream = [\"{}\"]\ncache = 6000\n", plan::GOOD4);
    let daemon = daemon(&lab, &config, "")?;
    let pid = daemon.running()?.pid();
    let mut app = App::new(&lab)?;
    app.ask_all("first", 500)?;
    daemon.verb(&["dns", "flush"])?;
    let before = cost(&[pid]).rss_kib;
    app.ask_all("n", NAMES)?;
    let after = cost(&[pid]).rss_kib;
    ensure!(after < before + 8 * 1024, "{before} KiB, and then {after} KiB");
    // They are there.
    let asked = server.received();
    app.ask_all("n", 500)?;
    let again = server.received() - asked;
    ensure!(again < 50, "{again} were asked for again");
    Ok(())
}

#[test]
fn a_full_cache_slows_nothing_down() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _server = UdpServer::start(&lab.server, plan::GOOD4, 53, any_name)?;
    let config = format!("[dns]\nupstream = [\"{}\"]\ncache = 500\n", plan::GOOD4);
    let daemon = daemon(&lab, &config, "")?;
    let pid = daemon.running()?.pid();
    let mut app = App::new(&lab)?;
    // Processor time of 500 questions, in seconds: what is known, and what is new.
    let mut round = |new: &str| -> Result<[f64; 2]> {
        app.ask_all("warm", 100)?;
        let start = cost(&[pid]).cpu_seconds;
        for _ in 0..5 {
            app.ask_all("warm", 100)?;
        }
        let warm = cost(&[pid]).cpu_seconds;
        app.ask_all(new, 500)?;
        Ok([warm - start, cost(&[pid]).cpu_seconds - warm])
    };
    let empty = round("a")?;
    for fill in ["b", "c", "d"] {
        round(fill)?;
    }
    let full = round("e")?;
    for (what, empty, full) in [("known", empty[0], full[0]), ("new", empty[1], full[1])] {
        ensure!(full < 2.0 * empty + 0.1, "{what}: {empty} s, and with a full cache {full} s");
    }
    Ok(())
}

/// Once it is known that one of two servers is dead, the program's answers take what they take
/// with both.
#[test]
fn heavy_a_dead_server_of_two_holds_nobody_up() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _good = UdpServer::start(&lab.server, plan::GOOD4, 53, any_name)?;
    let _other = UdpServer::start(&lab.server, plan::NEAR4, 53, any_name)?;
    let refusing = format!("{}:{}", plan::NEAR4, plan::CLOSED_PORT);
    let mut healthy = Duration::ZERO;
    for first in [plan::NEAR4.to_string(), refusing, plan::SILENT4.to_string()] {
        let config = format!("[dns]\nupstream = [\"{first}\", \"{}\"]\n", plan::GOOD4);
        let mut daemon = daemon(&lab, &config, "")?;
        let mut app = App::new(&lab)?;
        let detected = app.ask("first.example")?;
        ensure!(detected < Duration::from_secs(2), "{first}: the first took {detected:?}");
        let mut times = Vec::new();
        for number in 0..150 {
            times.push(app.ask(&format!("n{number}.example"))?);
            thread::sleep(Duration::from_millis(3));
        }
        let p99 = quantile(times, 0.99);
        if healthy.is_zero() {
            healthy = p99;
        }
        let most = healthy * 3 / 2 + Duration::from_millis(50);
        ensure!(p99 < most, "{first}: p99 {p99:?}, of both {healthy:?}");
        daemon.stop()?;
    }
    Ok(())
}

/// `and` asks both at once: it takes as long as the slower one.
#[test]
fn heavy_an_and_takes_no_longer_than_the_slower_one() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let slow = |address| {
        UdpServer::start(&lab.server, address, 53, |query| {
            thread::sleep(Duration::from_millis(20));
            any_name(query)
        })
    };
    let _servers = (slow(plan::GOOD4)?, slow(plan::GOOD4_SECOND)?);
    let config = format!(
        "[dns]\nupstream = [\"{}\"]\n[[resolver]]\nname = \"b\"\nservers = [\"{}\"]\n",
        plan::GOOD4,
        plan::GOOD4_SECOND
    );
    let rules = "resolve *.one.example using b\nresolve *.both.example using upstream and b\n";
    let _daemon = daemon(&lab, &config, rules)?;
    let mut app = App::new(&lab)?;
    let (mut one, mut both) = (Vec::new(), Vec::new());
    for number in 0..40 {
        one.push(app.ask(&format!("n{number}.one.example"))?);
        both.push(app.ask(&format!("n{number}.both.example"))?);
    }
    let (one, both) = (quantile(one, 0.5), quantile(both, 0.5));
    ensure!(both < one + Duration::from_millis(5), "{both:?}, and one alone {one:?}");
    Ok(())
}
