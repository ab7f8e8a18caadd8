//! The lab itself: each address of the plan behaves as the plan says, on the
//! kernel's own path, and a capture sees what crosses. What the promise tests
//! conclude stands on this.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use tests::endpoints::tcp::{echo, sink, source};
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::capture::Capture;
use tests::lab::{Lab, Way, Who, plan};
use tests::require_root;

#[test]
fn every_address_behaves_as_planned() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    let cases: [(&str, IpAddr, u16, &str); 14] = [
        ("good", plan::GOOD4, server.port(), ""),
        ("good", plan::GOOD6, server.port(), ""),
        ("near", plan::NEAR4, server.port(), ""),
        ("near", plan::NEAR6, server.port(), ""),
        ("second", plan::GOOD4_SECOND, server.port(), ""),
        ("second", plan::GOOD6_SECOND, server.port(), ""),
        ("closed port", plan::GOOD4, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("closed port", plan::GOOD6, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("no network", plan::NET_UNREACHABLE4, 80, "ENETUNREACH"),
        ("no network", plan::NET_UNREACHABLE6, 80, "ENETUNREACH"),
        ("no host", plan::HOST_UNREACHABLE4, 80, "EHOSTUNREACH"),
        ("no host", plan::HOST_UNREACHABLE6, 80, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED4, 80, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED6, 80, "EACCES"),
    ];
    for (name, address, port, errno) in cases {
        let seen = lab
            .exec("probe")
            .way(Way::Kernel)
            .arg("connect")
            .arg(address)
            .arg(port)
            .run()?
            .success()?
            .json()?;
        ensure!(
            seen["errno"].as_str().unwrap_or("") == errno,
            "{name} {address}: `{errno}` expected, seen {seen}"
        );
        ensure!(seen["micros"].as_u64() < Some(50_000), "{name} {address}: too slow: {seen}");
    }
    for address in [plan::SILENT4, plan::SILENT6] {
        let seen = lab
            .exec("probe")
            .way(Way::Kernel)
            .args(["connect", &address.to_string(), "80", "300"])
            .run()?
            .success()?
            .json()?;
        ensure!(seen["connected"] == false && seen["errno"].is_null(), "{address}: {seen}");
    }
    for address in [plan::UNROUTED4, plan::UNROUTED6] {
        let seen = lab
            .exec("probe")
            .way(Way::Kernel)
            .args(["connect", &address.to_string(), "80"])
            .run()?
            .success()?
            .json()?;
        ensure!(seen["errno"] == "ENETUNREACH", "{address}: {seen}");
    }
    Ok(())
}

#[test]
fn endpoints_carry_the_pattern() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let length = 3_000_000;
    let down = TcpServer::start(&lab.server, 0, source(length))?;
    let up = TcpServer::start(&lab.server, 0, sink)?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD6, 0)?;
    let ask =
        |words: &[&str]| lab.exec("probe").way(Way::Kernel).args(words).run()?.success()?.json();
    let seen = ask(&["download", "203.0.113.1", &down.port().to_string()])?;
    ensure!(seen["received"] == length, "{seen}");
    let seen = ask(&["upload", "2001:db8:f1::1", &up.port().to_string(), &length.to_string()])?;
    ensure!(seen["counted"] == length, "{seen}");
    ensure!(up.sessions(1)?[0].received == length);
    let seen = ask(&["udp-echo", "2001:db8:f1::1", &udp.port().to_string(), "100", "1200"])?;
    ensure!(seen["answered"] == 100, "{seen}");
    Ok(())
}

#[test]
fn a_capture_counts_the_frames_it_is_asked_for() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for address in [plan::NEAR4, plan::NEAR6] {
        let seeking = Capture::start(&lab.server, "far0", move |frame| frame.seeks(address))?;
        let elsewhere =
            Capture::start(&lab.server, "far0", |frame| frame.seeks(plan::GOOD4_SECOND))?;
        lab.exec("probe")
            .way(Way::Kernel)
            .args(["connect", &address.to_string(), "9"])
            .run()?
            .success()?;
        seeking.wait_for_one()?;
        let seen = seeking.finish()?;
        // The question where it is, and the SYN.
        ensure!(seen.matched >= 2, "{address}: {seen:#?}");
        ensure!(elsewhere.finish()?.matched == 0);
    }
    Ok(())
}

#[test]
fn an_unprivileged_program_finds_the_device_and_its_binary() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let seen = lab
        .exec("sh")
        .way(Way::Kernel)
        .who(Who::Nobody)
        .args(["-c", "id -u; id -G; : <>/dev/net/tun && echo open; grep CapEff /proc/self/status"])
        .run()?
        .success()?;
    ensure!(seen.stdout() == "65534\n65534\nopen\nCapEff:\t0000000000000000\n", "{seen:#?}");
    let seen = lab
        .exec("probe")
        .way(Way::Kernel)
        .who(Who::Nobody)
        .args(["connect", "203.0.113.1", "9"])
        .run()?
        .success()?
        .json()?;
    ensure!(seen["errno"] == "ECONNREFUSED", "{seen}");
    Ok(())
}
