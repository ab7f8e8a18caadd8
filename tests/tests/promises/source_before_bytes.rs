//! Nothing leaves unjudged: a rule about the resolved source blocks before the
//! first byte, and the reports hold that source.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::tcp::echo;
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::capture::Capture;
use tests::lab::{Lab, Outcome, Way, Who, plan};
use tests::{require_root, require_tunneld};

const FLOWS: u64 = 1_000;

/// The first link's addresses may send nothing; the second's may.
const BY_SOURCE: &str = "block from 192.0.2.1 2001:db8:1::1\ndefault allow";

#[test]
fn a_thousand_flows_blocked_by_their_source_send_no_frame() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let tcp = TcpServer::start(&lab.server, 0, echo)?;
    // On the link itself: even the question where the address is would be seen.
    for (address, blocked_udp) in [(plan::NEAR4, "EHOSTUNREACH"), (plan::NEAR6, "EACCES")] {
        let udp = UdpServer::echo(&lab.server, address, 0)?;
        let (tcp_port, udp_port) = (tcp.port().to_string(), udp.port().to_string());
        let to = address.to_string();
        let capture = || Capture::start(&lab.server, "far0", move |frame| frame.seeks(address));

        // The control: one flow that is let through is seen, its question included.
        lab.host.ip("neighbour flush all\n")?;
        let control = capture()?;
        lab.exec("probe").args(["connect", &to, &tcp_port]).run()?.success()?;
        control.wait_for_one()?;
        ensure!(control.finish()?.matched >= 2, "{address}: question and SYN expected");
        if Way::of_this_run() == Way::Kernel {
            continue;
        }

        lab.host.ip("neighbour flush all\n")?;
        let blocked = capture()?;
        for (question, port, errno) in
            [("outcomes", &tcp_port, "ECONNREFUSED"), ("udp-outcomes", &udp_port, blocked_udp)]
        {
            let seen = lab
                .exec("probe")
                .policy(BY_SOURCE)
                .args([question, &to, port, &FLOWS.to_string()])
                .run()?
                .success()?;
            let answer = seen.json()?;
            ensure!(
                answer[errno] == FLOWS,
                "{question} {address}: {FLOWS} {errno} expected: {answer}"
            );
            let flows = seen.flows_to(address, port.parse()?)?;
            ensure!(
                flows.len() as u64 == FLOWS,
                "{question} {address}: {FLOWS} reports expected, {} seen",
                flows.len()
            );
            for flow in flows {
                blocked_by_source(&flow, address)?;
            }
        }
        let seen = blocked.finish()?;
        ensure!(seen.matched == 0, "{address}: frames left before the verdict: {seen:#?}");
    }
    Ok(())
}

fn blocked_by_source(flow: &Value, address: IpAddr) -> Result<()> {
    let source = if address.is_ipv4() { plan::HOST4 } else { plan::HOST6 };
    // Nothing was bound, so there is no port to tell.
    ensure!(
        flow["source"] == source.to_string()
            && flow["verdict"] == "block"
            && flow["reason"] == "policy"
            && flow["rule"] == "10-test.policy:2"
            && flow["egress"]["address"] == source.to_string()
            && flow["egress"]["device"] == "up0",
        "blocked by 10-test.policy:2 with source {source} on up0 expected: {flow:#}"
    );
    Ok(())
}

#[test]
fn a_source_rule_tells_the_links_apart() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    for who in Who::ALL {
        for (address, allowed) in [
            (plan::GOOD4, false),
            (plan::GOOD6, false),
            (plan::GOOD4_SECOND, true),
            (plan::GOOD6_SECOND, true),
        ] {
            let seen = lab
                .exec("probe")
                .who(who)
                .policy(BY_SOURCE)
                .args(["connect", &address.to_string(), &server.port().to_string()])
                .run()?
                .success()?;
            ensure!(seen.json()?["connected"] == allowed, "{who:?} {address}: {seen:#?}");
            let flow = seen.flow_to(address, server.port())?;
            if allowed {
                holds_the_truth(&seen, &flow, &server, address)?;
                ensure!(flow["egress"]["device"] == "up1", "{flow:#}");
            } else {
                blocked_by_source(&flow, address)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_device_rule_and_a_client_rule_hold() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    let cases = [
        ("block egress up1\ndefault allow", plan::GOOD4, true),
        ("block egress up1\ndefault allow", plan::GOOD4_SECOND, false),
        ("block egress 192.0.2.129\ndefault allow", plan::GOOD4_SECOND, false),
        ("allow client 198.18.0.0/15 2001:2::/48\ndefault block", plan::GOOD4, true),
        ("allow client 198.18.0.0/15 2001:2::/48\ndefault block", plan::GOOD6, true),
        ("block client 198.18.0.0/15\ndefault allow", plan::GOOD4, false),
        ("allow from 192.0.2.0/25 port 1-65535\ndefault block", plan::GOOD4, true),
        ("allow from 192.0.2.0/25\ndefault block", plan::GOOD4_SECOND, false),
    ];
    for (policy, address, allowed) in cases {
        let seen = lab
            .exec("probe")
            .policy(policy)
            .args(["connect", &address.to_string(), &server.port().to_string()])
            .run()?
            .success()?;
        ensure!(
            seen.json()?["connected"] == allowed,
            "`{policy}` to {address}: connected = {allowed} expected: {seen:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_report_holds_the_source_that_the_far_side_saw() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    for (address, device) in [(plan::GOOD4, "up0"), (plan::GOOD6_SECOND, "up1")] {
        let seen = lab
            .exec("probe")
            .args(["reset", &address.to_string(), &server.port().to_string()])
            .run()?
            .success()?;
        let flow = seen.flow_to(address, server.port())?;
        holds_the_truth(&seen, &flow, &server, address)?;
        ensure!(flow["egress"]["device"] == device, "{flow:#}");
        ensure!(flow["sent"] == 1 && flow["received"] == 1, "{flow:#}");
        ensure!(flow["reason"] == "app-reset", "{flow:#}");

        let udp = UdpServer::echo(&lab.server, address, 0)?;
        let seen = lab
            .exec("probe")
            .args(["udp", &address.to_string(), &udp.port().to_string()])
            .run()?
            .success()?;
        let flow = seen.flow_to(address, udp.port())?;
        let peers: Vec<String> = udp.peers().iter().map(ToString::to_string).collect();
        ensure!(
            peers.len() == 1 && flow["source"] == *peers[0],
            "the far side saw {peers:?}: {flow:#}"
        );
    }
    Ok(())
}

/// The report's source is the address and port that the server saw last.
fn holds_the_truth(
    seen: &Outcome,
    flow: &Value,
    server: &TcpServer,
    address: IpAddr,
) -> Result<()> {
    let sessions = server.sessions(server.accepted() as usize)?;
    let peer = sessions.last().context("a session")?.peer.to_string();
    ensure!(
        flow["source"] == *peer && flow["verdict"] == "allow" && flow["via"] == "direct",
        "{address}: the far side saw {peer}: {flow:#}\n{seen:#?}"
    );
    ensure!(flow["owner"]["uid"].is_u64(), "{address}: an owner expected: {flow:#}");
    Ok(())
}
