//! A peer's death is known within five seconds, its return at once, and nothing else is taken
//! for a death. The peer is Debian's wireguard-go.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::endpoints::WireguardGo;
use tests::endpoints::wireguard::{End, ends};
use tests::endpoints::wireguard_pump::Pump;
use tests::lab::Running;
use tests::{require_root, require_tunneld};

/// The promise is five; the rest is what this machine takes to look.
const LIMIT: Duration = Duration::from_millis(5500);

/// Two ends that know each other, and a flow from ours.
fn start(outer_v6: bool) -> Result<(End, End, WireguardGo, Pump, Running)> {
    let (a, b) = ends()?;
    let theirs = WireguardGo::start(&b, &[a.peer(None, None)])?;
    let ours = Pump::start(&a, b.peer(Some(b.outer(outer_v6)), None))?;
    a.ping(b.inner(false), &["-c", "1"])?;
    let to = b.inner(false).to_string();
    let flow = a.netns.command("ping").args(["-n", "-i", "0.2", &to]).spawn()?;
    sleep(Duration::from_millis(500));
    Ok((a, b, theirs, ours, flow))
}

fn usable(ours: &Pump) -> bool {
    let health = ours.health();
    !health.is_empty() && health.iter().all(|peer| peer.usable())
}

/// How long until it is usable, or not.
fn until(ours: &Pump, wanted: bool) -> Result<Duration> {
    let began = Instant::now();
    while usable(ours) != wanted {
        ensure!(began.elapsed() < LIMIT, "usable {}: {:?}", !wanted, ours.health());
        sleep(Duration::from_millis(10));
    }
    Ok(began.elapsed())
}

#[test]
fn a_peer_that_is_killed_is_known_and_so_is_its_return() -> Result<()> {
    require_root!();
    require_tunneld!();
    for outer_v6 in [false, true] {
        let (a, b, theirs, ours, _flow) = start(outer_v6)?;
        ensure!(usable(&ours), "{:?}", ours.health());
        theirs.process().signal(Signal::KILL)?;
        println!("outer v6 {outer_v6}: known after {:?}", until(&ours, false)?);
        ensure!(ours.health()[0].refused, "its host says so: {:?}", ours.health());
        drop(theirs);
        let _theirs = WireguardGo::start(&b, &[a.peer(None, None)])?;
        sleep(Duration::from_secs(1));
        ours.probe();
        println!("back after {:?}", until(&ours, true)?);
        a.ping(b.inner(false), &["-c", "1"])?;
        ours.stop()?;
    }
    Ok(())
}

#[test]
fn a_host_that_falls_silent_is_known_and_so_is_its_return() -> Result<()> {
    require_root!();
    require_tunneld!();
    let (a, b, _theirs, ours, _flow) = start(false)?;
    let silence = "table inet silence { chain c { type filter hook input priority 0; drop; }; }\n";
    let done = b.netns.command("nft").args(["-f", "-"]).input(silence).run()?;
    ensure!(done.code() == 0, "{done:?}");
    println!("known after {:?}", until(&ours, false)?);
    ensure!(!ours.health()[0].refused, "{:?}", ours.health());
    let done = b.netns.command("nft").args(["delete", "table", "inet", "silence"]).run()?;
    ensure!(done.code() == 0, "{done:?}");
    sleep(Duration::from_secs(1));
    ours.probe();
    println!("back after {:?}", until(&ours, true)?);
    a.ping(b.inner(false), &["-c", "1"])?;
    ours.stop()?;
    Ok(())
}

#[test]
fn a_peer_that_is_idle_or_only_listens_is_not_taken_for_dead() -> Result<()> {
    require_root!();
    require_tunneld!();
    let (_a, b, _theirs, ours, flow) = start(false)?;
    b.netns.sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(14) {
        ensure!(usable(&ours), "one way, after {:?}: {:?}", began.elapsed(), ours.health());
        sleep(Duration::from_millis(20));
    }
    drop(flow);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        ensure!(usable(&ours), "idle, after {:?}: {:?}", began.elapsed(), ours.health());
        sleep(Duration::from_millis(20));
    }
    let totals = ours.stop()?;
    ensure!(totals.handshakes <= 5, "{totals:?}");
    Ok(())
}
