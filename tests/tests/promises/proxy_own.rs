//! Proxies on the very host that a daemon takes the packets of: what they connect to is not led to
//! them again, and where that can't be known the chain has an end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::endpoints::danted::{danted, listens};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::real_proxy::RealProxy;
use tests::endpoints::{Sshd, TcpServer, UdpServer};
use tests::lab::daemon::Daemon;
use tests::lab::exec::{built_tunneld, probe};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, plan};
use tests::ways::office;
use tests::{require_root, require_tunneld};

const FAR: IpAddr = plan::GOOD4_SECOND;
const FAR6: IpAddr = plan::GOOD6_SECOND;

/// Everything through the proxy `office`.
const ALL: &str = "policy 1\nroute to any via office\ndefault allow\n";

/// The last that is told of each flow while `act` runs.
fn flows(lab: &Lab, daemon: &Daemon, act: impl FnOnce() -> Result<()>) -> Result<Vec<Value>> {
    let watch = lab.host.command(built_tunneld()?).args(["--json", "watch", "--socket"]);
    let watch = watch.args([daemon.socket()]).limit(Duration::from_secs(60)).spawn()?;
    thread::sleep(Duration::from_millis(300));
    act()?;
    thread::sleep(Duration::from_millis(300));
    watch.signal(Signal::TERM)?;
    let mut flows = BTreeMap::new();
    for line in watch.wait()?.stdout.lines() {
        let flow: Value = serde_json::from_str(line)?;
        if flow["event"] == "flow" {
            flows.insert(flow["id"].to_string(), flow);
        }
    }
    Ok(flows.into_values().collect())
}

/// How many flows of that protocol to that address took which way.
fn ways(flows: &[Value], protocol: &str, to: IpAddr) -> Vec<String> {
    let to = if to.is_ipv4() { format!("{to}:") } else { format!("[{to}]:") };
    let is_it = |flow: &&Value| {
        flow["protocol"] == protocol
            && flow["destination"].as_str().is_some_and(|it| it.starts_with(&to))
    };
    let via = |flow: &Value| flow["via"].as_str().unwrap_or_default().to_owned();
    let mut ways: Vec<_> = flows.iter().filter(is_it).map(via).collect();
    ways.sort();
    ways
}

/// Whether the last one of a flow's ways is direct and those before it through the proxy: one, or
/// where the proxy's processes hand their sockets to each other and the machine is slow a few,
/// since one that is on its way is waited for no longer than milliseconds.
fn is_once_direct(ways: &[String], handed: bool) -> bool {
    let [direct, proxied @ ..] = ways else { return false };
    direct == "direct"
        && (1..=if handed { 8 } else { 1 }).contains(&proxied.len())
        && proxied.iter().all(|via| via == "office")
}

fn microsocks(lab: &Lab) -> Result<RealProxy<'_>> {
    RealProxy::microsocks(&lab.host, IpAddr::from([127, 0, 0, 1]), &[]).started()
}

fn curl(lab: &Lab, to: IpAddr) -> Result<tests::lab::command::Finished> {
    let to = if to.is_ipv4() { format!("http://{to}/") } else { format!("http://[{to}]/") };
    lab.host.command("curl").args(["-sS", "--max-time", "20", &to]).run()
}

#[test]
fn what_a_proxy_of_this_host_connects_to_goes_directly() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let _web = TcpServer::start(&lab.server, 80, page)?;
    // One process of many threads, and many processes.
    let _microsocks = microsocks(&lab)?;
    let _danted = danted(&lab.host, &files, &[plan::HOST4], 1081, "up1")?;
    for (url, udp) in [
        ("socks5://127.0.0.1:1080".to_owned(), false),
        (format!("socks5://{}:1081", plan::HOST4), true),
    ] {
        let mut daemon = Daemon::start(&lab.host, ALL, &office(&url))?;
        let seen = flows(&lab, &daemon, || {
            for to in [FAR, FAR6] {
                let got = curl(&lab, to)?;
                ensure!(got.stdout == PAGE, "{url} {to}: {got:#?}");
            }
            Ok(())
        })?;
        for to in [FAR, FAR6] {
            ensure!(is_once_direct(&ways(&seen, "tcp", to), udp), "{url} {to}: {seen:#?}");
        }
        if udp {
            for to in [FAR, FAR6] {
                let echo = UdpServer::echo(&lab.server, to, 0)?;
                let seen = flows(&lab, &daemon, || {
                    let words = ["udp-echo", &to.to_string(), &echo.port().to_string(), "5", "900"];
                    let got = lab.host.command(probe()).args(words).run()?;
                    let answer: Value = serde_json::from_str(&got.stdout)?;
                    ensure!(answer["answered"] == 5, "{url} {to}: {got:#?}");
                    Ok(())
                })?;
                ensure!(is_once_direct(&ways(&seen, "udp", to), true), "{url} {to}: {seen:#?}");
            }
        }
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn an_ssh_client_is_a_proxy_of_this_host() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _web = TcpServer::start(&lab.server, 80, page)?;
    let sshd = Sshd::start(&lab.server, &[plan::NEAR4])?;
    // It listens once it is connected, so its own connection needs a route of its own.
    let policy = format!(
        "policy 1\nroute tcp to {} port 22 via direct\nroute to any via office\ndefault allow\n",
        plan::NEAR4
    );
    let mut daemon = Daemon::start(&lab.host, &policy, &office("socks5://127.0.0.1:1084"))?;
    let ssh = lab
        .host
        .command("ssh")
        .args(["-F", "none", "-N", "-D", "127.0.0.1:1084", "-i"])
        .args([sshd.key()])
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5"])
        .args([format!("root@{}", plan::NEAR4)])
        .limit(Duration::from_secs(120));
    let _ssh = listens(ssh.spawn()?, &lab.host, 1084)?;
    let seen = flows(&lab, &daemon, || {
        let got = curl(&lab, FAR)?;
        ensure!(got.stdout == PAGE, "{got:#?}");
        Ok(())
    })?;
    ensure!(ways(&seen, "tcp", FAR) == ["office"], "{seen:#?}");
    daemon.stop()?;
    Ok(())
}

/// The control: who listens passes it on to a proxy whose sockets are nobody's that is known.
#[test]
fn a_chain_that_nobody_sees_has_an_end() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let web = TcpServer::start(&lab.server, 80, page)?;
    let _microsocks = microsocks(&lab)?;
    let passing = lab
        .host
        .command("socat")
        .args(["TCP-LISTEN:1083,bind=127.0.0.1,fork,reuseaddr", "TCP:127.0.0.1:1080"]);
    let _passing = listens(passing.limit(Duration::from_secs(120)).spawn()?, &lab.host, 1083)?;
    let mut daemon = Daemon::start(&lab.host, ALL, &office("socks5://127.0.0.1:1083"))?;
    let began = Instant::now();
    let seen = flows(&lab, &daemon, || {
        let got = curl(&lab, FAR)?;
        ensure!(got.code() != 0, "it came through: {got:#?}");
        Ok(())
    })?;
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let count = |reason: &str| seen.iter().filter(|flow| flow["reason"] == reason).count();
    ensure!(count("loop") == 1 && web.accepted() == 0, "{seen:#?}");
    let all = ways(&seen, "tcp", FAR);
    ensure!(all.len() == 65 && all.iter().all(|via| via == "office"), "{}: {all:?}", all.len());
    // A route for the proxy's user, or as here for its destination, ends it.
    let policy = format!("policy 1\nroute to {FAR} via direct\ndefault allow\n");
    ensure!(daemon.reload(&policy)?.code() == 0);
    ensure!(curl(&lab, FAR)?.stdout == PAGE);
    daemon.stop()?;
    Ok(())
}
