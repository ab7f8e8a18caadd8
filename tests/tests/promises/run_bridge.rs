//! Containers behind a bridge with a masquerade rule, as container engines make them: captured
//! with their own addresses, their published ports still reachable.
//!
//! ```text
//!   container 172.30.0.2 ── br0 172.30.0.1  host  up0 ── server
//! ```

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::daemon::Daemon;
use tests::lab::{Finished, Lab, Netns, host_state, link, plan};
use tests::{require_root, require_tunneld};

const RULES: &str = "\
table ip nat {
  chain prerouting { type nat hook prerouting priority dstnat;
    iifname != \"br0\" tcp dport 8080 dnat to 172.30.0.2:80
  }
  chain postrouting { type nat hook postrouting priority srcnat;
    ip saddr 172.30.0.0/24 oifname != \"br0\" masquerade
  }
}
";

#[test]
fn containers_keep_their_addresses_and_published_ports() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let container = Netns::new("container")?;
    lab.host.ip("link add br0 type bridge\naddr add 172.30.0.1/24 dev br0\nlink set br0 up\n")?;
    link(&lab.host, "veth1", &container, "eth0", plan::MTU)?;
    lab.host.ip("link set veth1 master br0\n")?;
    container.ip("addr add 172.30.0.2/24 dev eth0\nroute add default via 172.30.0.1\n")?;
    lab.host.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    let rules = lab.host.command("nft").args(["-f", "-"]).input(RULES).run()?;
    ensure!(rules.code() == 0, "{rules:?}");
    let server = TcpServer::start(&lab.server, 0, page)?;
    let published = TcpServer::start(&container, 80, page)?;
    let before = host_state::read(&lab.host)?;

    let policy = format!(
        "policy 1\nblock from 172.30.0.2 to {} id inner\nallow from 172.30.0.2 id container\n\
         default drop\n",
        plan::GOOD4_SECOND
    );
    let mut daemon = Daemon::start(&lab.host, &policy, "[limits]\nflows = 1000\n")?;
    let out = curl(&container, SocketAddr::new(plan::GOOD4, server.port()))?;
    ensure!(out.stdout == PAGE, "{out:?}");
    let blocked = curl(&container, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
    ensure!(blocked.code() == 7, "{blocked:?}");
    let rules = daemon.json(&["rules", "--hits"])?;
    for name in ["inner", "container"] {
        let rule = rules.iter().find(|rule| rule["rule"] == name).context(name)?;
        ensure!(rule["hits"].as_u64() == Some(1), "{rules:?}");
    }
    let inbound = curl(&lab.server, SocketAddr::new(plan::HOST4, 8080))?;
    ensure!(inbound.stdout == PAGE, "the published port: {inbound:?}");
    daemon.kill()?;
    let inbound = curl(&lab.server, SocketAddr::new(plan::HOST4, 8080))?;
    ensure!(inbound.stdout == PAGE, "the published port, daemon dead: {inbound:?}");
    daemon.run()?;
    daemon.stop()?;
    drop(published);
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "{before}\n{after}");
    Ok(())
}

/// `forward = false`: containers pass by as if there were no tunneld.
#[test]
fn forwarded_traffic_can_be_left_alone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let client = Netns::new("client")?;
    link(&lab.host, "down0", &client, "eth0", plan::MTU)?;
    lab.host.ip("addr add 10.9.0.1/24 dev down0\n")?;
    client.ip("addr add 10.9.0.2/24 dev eth0\nroute add default via 10.9.0.1\n")?;
    lab.server.ip("route add 10.9.0.0/24 via 192.0.2.1\n")?;
    lab.host.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let to = SocketAddr::new(plan::GOOD4, server.port());
    for (forward, expected) in [("true", 7), ("false", 0)] {
        let config = format!("[device]\nforward = {forward}\n");
        let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault block\n", &config)?;
        let done = curl(&client, to)?;
        ensure!(done.code() == expected, "forward = {forward}: {done:?}");
        let own = curl(&lab.host, to)?;
        ensure!(own.code() == 7, "own traffic is judged: {own:?}");
        daemon.stop()?;
    }
    Ok(())
}

fn curl(netns: &Netns, to: SocketAddr) -> Result<Finished> {
    netns.command("curl").args(["-sS", "--max-time", "5"]).args([format!("http://{to}/")]).run()
}
