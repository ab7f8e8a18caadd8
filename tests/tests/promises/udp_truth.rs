//! The application sees the truth of UDP: datagrams as they were, errors by
//! name, one mapping for many peers.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use tests::endpoints::UdpServer;
use tests::lab::probe::{SOON, ask, ask_soon};
use tests::lab::{Lab, Who, plan};
use tests::{require_root, require_tunneld};

#[test]
fn datagrams_come_back_as_they_were() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        for address in [plan::GOOD4, plan::GOOD6] {
            let server = UdpServer::echo(&lab.server, address, 0)?;
            let (to, port) = (address.to_string(), server.port().to_string());
            // Empty, small, the largest of one packet, fragments, the largest of all.
            for size in [0, 1, 64, 1_452, 4_000, 65_000] {
                let seen = ask(&lab, who, &["udp-echo", &to, &port, "20", &size.to_string()])?;
                ensure!(seen["answered"] == 20, "{who:?} {address}, {size} bytes: {seen}");
            }
        }
    }
    Ok(())
}

#[test]
fn one_send_of_many_datagrams_is_many_datagrams() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for address in [plan::GOOD4, plan::GOOD6] {
        let server = UdpServer::echo(&lab.server, address, 0)?;
        let (to, port) = (address.to_string(), server.port().to_string());
        for (count, size) in [(10_u64, 1_200), (40, 1_400), (64, 200)] {
            let (counted, sized) = (count.to_string(), size.to_string());
            let words = ["udp-segments", &to, &port, &counted, &sized];
            let seen = ask(&lab, Who::Root, &words)?;
            ensure!(
                seen["answered"] == count && seen["wrong"] == 0,
                "{address}: {count} datagrams of {size} bytes expected: {seen}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_socket_that_asks_for_errors_gets_them() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let cases: [(&str, IpAddr, u16, &str); 10] = [
        ("refused", plan::GOOD4, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("refused", plan::GOOD6, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("net unreachable", plan::NET_UNREACHABLE4, 9_000, "ENETUNREACH"),
        ("net unreachable", plan::NET_UNREACHABLE6, 9_000, "ENETUNREACH"),
        ("host unreachable", plan::HOST_UNREACHABLE4, 9_000, "EHOSTUNREACH"),
        ("host unreachable", plan::HOST_UNREACHABLE6, 9_000, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED4, 9_000, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED6, 9_000, "EACCES"),
        ("no route", plan::UNROUTED4, 9_000, "ENETUNREACH"),
        ("no route", plan::UNROUTED6, 9_000, "ENETUNREACH"),
    ];
    check(&lab, "udp-errors", &cases)
}

#[test]
fn a_plain_socket_gets_what_a_plain_socket_can() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let cases: [(&str, IpAddr, u16, &str); 5] = [
        ("refused", plan::GOOD4, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("refused", plan::GOOD6, plan::CLOSED_PORT, "ECONNREFUSED"),
        ("prohibited", plan::PROHIBITED4, 9_000, "EHOSTUNREACH"),
        ("prohibited", plan::PROHIBITED6, 9_000, "EACCES"),
        ("no route", plan::UNROUTED4, 9_000, "ENETUNREACH"),
    ];
    check(&lab, "udp", &cases)
}

fn check(lab: &Lab, question: &str, cases: &[(&str, IpAddr, u16, &str)]) -> Result<()> {
    let mut wrong = Vec::new();
    for who in Who::ALL {
        for &(name, address, port, errno) in cases {
            let seen = ask_soon(lab, who, &[question, &address.to_string(), &port.to_string()])?;
            if seen["errno"] != errno || seen["micros"].as_u64() > Some(SOON) {
                wrong.push(format!("{who:?} {name} {address}: {errno} expected, seen {seen}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn silence_is_silence() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for address in [plan::SILENT4, plan::SILENT6] {
        let seen = ask(&lab, Who::Root, &["udp-errors", &address.to_string(), "9000", "500"])?;
        ensure!(seen["answer"].is_null() && seen["errno"].is_null(), "{address}: {seen}");
    }
    Ok(())
}

#[test]
fn a_blocked_datagram_is_told_and_a_dropped_one_is_not() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        for (address, errno) in [(plan::GOOD4, "EHOSTUNREACH"), (plan::GOOD6, "EACCES")] {
            let server = UdpServer::echo(&lab.server, address, 0)?;
            let (to, port) = (address.to_string(), server.port().to_string());
            for (verdict, errno) in [("block", Some(errno)), ("drop", None)] {
                let seen = lab
                    .exec("probe")
                    .who(who)
                    .policy(&format!("{verdict} udp to {address}\ndefault allow"))
                    .args(["udp", &to, &port, "500"])
                    .run()?
                    .success()?;
                let answer = seen.json()?;
                ensure!(
                    answer["errno"].as_str() == errno && answer["answer"].is_null(),
                    "{who:?} {verdict} {address}: {errno:?} expected: {seen:#?}"
                );
                ensure!(errno.is_none() || answer["micros"].as_u64() < Some(SOON), "{answer}");
                let flow = seen.flow_to(address, server.port())?;
                ensure!(flow["verdict"] == verdict, "{flow:#}");
            }
            ensure!(server.received() == 0, "{address}: a blocked datagram arrived");
        }
    }
    Ok(())
}

#[test]
fn one_socket_is_one_address_to_all_its_peers() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for (first, second) in [(plan::GOOD4, plan::NEAR4), (plan::GOOD6, plan::NEAR6)] {
        let one = UdpServer::echo(&lab.server, first, 0)?;
        let two = UdpServer::echo(&lab.server, second, 0)?;
        let seen = ask(
            &lab,
            Who::Root,
            &[
                "udp-mapping",
                &first.to_string(),
                &one.port().to_string(),
                &second.to_string(),
                &two.port().to_string(),
            ],
        )?;
        ensure!(
            one.peers().len() == 1 && one.peers() == two.peers(),
            "one address expected, {:?} and {:?} seen: {seen}",
            one.peers(),
            two.peers()
        );
    }
    Ok(())
}
