//! The application sees the truth of TCP: the far side's own error within
//! milliseconds, no SYN-ACK before the far side's, ends and resets as they
//! were, every byte, and back-pressure.
//!
//! With `TUNNELD_TEST_WAY=kernel` all of it holds for the kernel's own path.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::endpoints::TcpServer;
use tests::endpoints::tcp::{answer_after_end, deaf, echo, reset_after_one, sink, source};
use tests::lab::capture::Capture;
use tests::lab::exec::Executing;
use tests::lab::frame::Frame;
use tests::lab::probe::{SOON, ask, ask_soon};
use tests::lab::{Lab, Way, Who, plan, process};
use tests::{require_root, require_tunneld};

const MIB: u64 = 1024;

fn text(address: IpAddr) -> String {
    address.to_string()
}

#[test]
fn connect_gives_the_error_of_the_far_side() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    let open = server.port();
    let cases = [
        ("connected", plan::GOOD4, open, ""),
        ("connected", plan::GOOD6, open, ""),
        ("refused", plan::GOOD4, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("refused", plan::GOOD6, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("refused on the link", plan::NEAR4, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("refused on the link", plan::NEAR6, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("net unreachable", plan::NET_UNREACHABLE4, 80, "ENETUNREACH"),
        ("net unreachable", plan::NET_UNREACHABLE6, 80, "ENETUNREACH"),
        ("host unreachable", plan::HOST_UNREACHABLE4, 80, "EHOSTUNREACH"),
        ("host unreachable", plan::HOST_UNREACHABLE6, 80, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED4, 80, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED6, 80, "EACCES"),
        ("no route", plan::UNROUTED4, 80, "ENETUNREACH"),
        ("no route", plan::UNROUTED6, 80, "ENETUNREACH"),
    ];
    let mut wrong = Vec::new();
    for who in Who::ALL {
        for (name, address, port, errno) in cases {
            let seen = ask_soon(&lab, who, &["connect", &text(address), &port.to_string()])?;
            let micros = seen["micros"].as_u64().unwrap_or(u64::MAX);
            if seen["errno"].as_str().unwrap_or("") != errno || micros > SOON {
                wrong.push(format!("{who:?} {name} {address}: `{errno}` expected, seen {seen}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn a_blocked_flow_is_refused_at_once() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    for who in Who::ALL {
        for address in [plan::GOOD4, plan::GOOD6] {
            let seen = lab
                .exec("probe")
                .who(who)
                .policy(&format!("block to {address}\ndefault allow"))
                .args(["connect", &text(address), &server.port().to_string()])
                .run()?
                .success()?;
            let answer = seen.json()?;
            ensure!(answer["errno"] == "ECONNREFUSED", "{who:?} {address}: {seen:#?}");
            ensure!(answer["micros"].as_u64() < Some(SOON), "{who:?} {address}: {answer}");
            let flow = seen.flow_to(address, server.port())?;
            ensure!(flow["verdict"] == "block" && flow["reason"] == "policy", "{flow:#}");
        }
    }
    ensure!(server.accepted() == 0, "a blocked flow arrived");
    Ok(())
}

#[test]
fn a_dropped_flow_is_silence() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    let seen = lab
        .exec("probe")
        .policy("drop to 203.0.113.1\ndefault allow")
        .args(["connect", "203.0.113.1", &server.port().to_string(), "1500"])
        .run()?
        .success()?;
    let answer = seen.json()?;
    ensure!(answer["connected"] == false && answer["errno"].is_null(), "{seen:#?}");
    ensure!(seen.flow_to(plan::GOOD4, server.port())?["verdict"] == "drop", "{seen:#?}");
    ensure!(server.accepted() == 0, "a dropped flow arrived");
    Ok(())
}

#[test]
fn a_black_hole_never_connects_and_is_one_flow() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    // Past the SYNs that a program repeats after one and after three seconds.
    const WAIT: &str = "3500";
    let mut runs = Vec::new();
    for address in [plan::SILENT4, plan::SILENT6] {
        let syns = Capture::start(&lab.server, "far0", move |frame| frame.is_syn_to(address, 80))?;
        let run = lab.exec("probe").args(["connect", &text(address), "80", WAIT]).spawn()?;
        runs.push((address, syns, run));
    }
    for (address, syns, run) in runs {
        let seen = run.wait()?.success()?;
        let answer = seen.json()?;
        ensure!(
            answer["connected"] == false && answer["errno"].is_null(),
            "{address}: neither connected nor an error expected: {seen:#?}"
        );
        let syns = syns.finish()?;
        ensure!(syns.matched >= 1, "{address}: no SYN went out");
        let mut ports: Vec<_> = syns
            .kept
            .iter()
            .filter_map(|frame| match frame {
                Frame::Ip { ports, .. } => *ports,
                Frame::Arp { .. } | Frame::Solicitation { .. } | Frame::Other => None,
            })
            .collect();
        ports.dedup();
        ensure!(ports.len() == 1, "{address}: one connection expected, seen {syns:#?}");
        if Way::of_this_run() == Way::Tunneld {
            let flow = seen.flow_to(address, 80)?;
            ensure!(flow["verdict"] == "allow", "{flow:#}");
        }
    }
    Ok(())
}

#[test]
fn either_side_may_end_its_half_first() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    const LENGTH: u64 = 300_000;
    let length = LENGTH.to_string();
    let after_end = TcpServer::start(&lab.server, 0, answer_after_end)?;
    let ends_first = TcpServer::start(&lab.server, 0, source(LENGTH))?;
    for (count, address) in [plan::GOOD4, plan::GOOD6].into_iter().enumerate() {
        let to = text(address);
        let port = after_end.port().to_string();
        let seen = ask(&lab, Who::Root, &["half-close", &to, &port, &length])?;
        ensure!(seen["received"] == LENGTH, "app ends first, {address}: {seen}");

        let port = ends_first.port().to_string();
        let seen = ask(&lab, Who::Root, &["send-after-end", &to, &port, &length])?;
        ensure!(seen["received"] == LENGTH && seen["errno"].is_null(), "{address}: {seen}");
        let session = &ends_first.sessions(count + 1)?[count];
        ensure!(
            session.received == LENGTH && session.error.is_none(),
            "far side ends first, {address}: all that the app still sent expected: {session:?}"
        );
    }
    Ok(())
}

#[test]
fn a_reset_is_a_reset_on_both_sides() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let echoing = TcpServer::start(&lab.server, 0, echo)?;
    let resetting = TcpServer::start(&lab.server, 0, reset_after_one)?;
    for (count, address) in [plan::GOOD4, plan::GOOD6].into_iter().enumerate() {
        let to = text(address);
        ask(&lab, Who::Root, &["reset", &to, &echoing.port().to_string()])?;
        let session = &echoing.sessions(count + 1)?[count];
        ensure!(
            session.error == Some(libc::ECONNRESET),
            "the app's reset at the far side, {address}: {session:?}"
        );
        let seen = ask(&lab, Who::Root, &["await-reset", &to, &resetting.port().to_string()])?;
        ensure!(seen["errno"] == "ECONNRESET", "the far side's reset, {address}: {seen}");
        ensure!(seen["micros"].as_u64() < Some(500_000), "{address}: {seen}");
    }
    Ok(())
}

#[test]
fn heavy_a_hundred_megabytes_each_way_arrive_as_they_were() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    const LENGTH: u64 = 100_000_000;
    let down = TcpServer::start(&lab.server, 0, source(LENGTH))?;
    let up = TcpServer::start(&lab.server, 0, sink)?;
    for address in [plan::GOOD4, plan::GOOD6] {
        let to = text(address);
        let seen = ask(&lab, Who::Root, &["download", &to, &down.port().to_string()])?;
        ensure!(seen["received"] == LENGTH, "down, {address}: {seen}");
        let words = ["upload", &to, &up.port().to_string(), &LENGTH.to_string()];
        let seen = ask(&lab, Who::Root, &words)?;
        ensure!(seen["counted"] == LENGTH, "up, {address}: {seen}");
    }
    Ok(())
}

#[test]
fn heavy_ten_thousand_downloads_all_end() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    const COUNT: u64 = 10_000;
    const LENGTH: u64 = 5_000;
    let server = TcpServer::start(&lab.server, 0, source(LENGTH))?;
    let seen = lab
        .exec("probe")
        .args(["downloads", "203.0.113.1", &server.port().to_string()])
        .args([COUNT, 32, LENGTH])
        .limit(Duration::from_secs(120))
        .run()?
        .success()?
        .json()?;
    ensure!(seen["complete"] == COUNT, "{COUNT} complete downloads expected: {seen:#}");
    let wrong: Vec<_> = server
        .sessions(COUNT as usize)?
        .into_iter()
        .filter(|session| session.error.is_some())
        .collect();
    ensure!(wrong.is_empty(), "the far side saw errors: {wrong:#?}");
    Ok(())
}

#[test]
fn heavy_a_slow_reader_slows_its_sender_and_takes_no_memory() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, source(200_000_000))?;
    let run = lab
        .exec("probe")
        .args(["slow-read", "203.0.113.1", &server.port().to_string(), "65536", "4"])
        .spawn()?;
    let growth = growth_while(&run, Duration::from_secs(4));
    run.wait()?.success()?;
    ensure!(growth < 16 * MIB, "tunneld grew by {growth} KiB while 200 MB waited");
    Ok(())
}

#[test]
fn heavy_a_deaf_far_side_stops_the_program() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, deaf(5))?;
    let run =
        lab.exec("probe").args(["push", "203.0.113.1", &server.port().to_string(), "4"]).spawn()?;
    let growth = growth_while(&run, Duration::from_secs(4));
    let seen = run.wait()?.success()?.json()?;
    ensure!(growth < 16 * MIB, "tunneld grew by {growth} KiB");
    // What three kernels' socket buffers and our rings can hold.
    let sent = seen["sent"].as_u64().unwrap_or(u64::MAX);
    ensure!(sent < 64_000_000, "the program was never stopped: {seen}");
    Ok(())
}

/// How much tunneld's memory grew, KiB, from its first reading on.
fn growth_while(run: &Executing, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut first = None;
    let mut most = 0;
    // Past its start, which is not what is measured.
    thread::sleep(Duration::from_millis(300));
    while Instant::now() < end {
        let now = process::cost(&run.tunneld_pids()).rss_kib;
        let first = *first.get_or_insert(now);
        most = most.max(now.saturating_sub(first));
        thread::sleep(Duration::from_millis(100));
    }
    most
}
