//! A name with a dead IPv6 and a live IPv4 address: curl connects in under
//! 400 ms, as it does on the kernel's own path (RFC 8305).

use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use tests::endpoints::TcpServer;
use tests::endpoints::page::page;
use tests::lab::{Lab, Who, plan};
use tests::require_root;

#[test]
fn a_dead_ipv6_address_costs_little() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let dead: [(&str, IpAddr); 4] = [
        ("silent", plan::SILENT6),
        ("no route", plan::UNROUTED6),
        ("unreachable", plan::HOST_UNREACHABLE6),
        ("prohibited", plan::PROHIBITED6),
    ];
    for who in Who::ALL {
        for (name, address) in dead {
            let port = server.port();
            let seen = lab
                .exec("curl")
                .who(who)
                .args(["-sS", "--max-time", "10", "-o", "/dev/null"])
                .args(["-w", "%{time_connect} %{remote_ip}"])
                .arg("--resolve")
                .arg(format!("dual.example:{port}:[{address}],{}", plan::GOOD4))
                .arg(format!("http://dual.example:{port}/"))
                .run()?
                .success()?;
            let (time, to) = seen.stdout().split_once(' ').context("curl's -w")?;
            ensure!(to == plan::GOOD4.to_string(), "{who:?} {name}: {seen:#?}");
            let seconds: f64 = time.parse()?;
            ensure!(seconds < 0.4, "{who:?} {name}: connected after {seconds} s");
        }
    }
    Ok(())
}
