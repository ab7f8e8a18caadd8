//! `tunneld run` through WireGuard: a whole host, two tunnels with failover between them, and
//! reloads that touch only what they change. The far ends are Debian's wireguard-go.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::wireguard::{base64, everything, interface};
use tests::endpoints::{TcpServer, UdpServer, tcp};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::lab::host_state;
use tests::uplinks::{FAR4, Talk, Uplinks, far, tunnels, within};
use tests::{require_root, require_tunneld};

/// The way out that a new connection takes, by the server that has it.
fn taken(up: &Uplinks, servers: &[&TcpServer; 2]) -> Result<Option<usize>> {
    let before = servers.map(TcpServer::accepted);
    let to = SocketAddr::new(far(false), servers[0].port());
    let limit = Duration::from_millis(800);
    let Ok(mut stream) = up.near().run(|| TcpStream::connect_timeout(&to, limit)) else {
        return Ok(None);
    };
    // Answered, it was accepted.
    stream.set_read_timeout(Some(limit))?;
    if stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).is_err() {
        return Ok(None);
    }
    let after = servers.map(TcpServer::accepted);
    Ok((0..2).find(|&at| after[at] > before[at]))
}

#[test]
fn a_whole_host_goes_through_a_tunnel_and_is_put_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let before = host_state::read(up.near())?;
    let server = TcpServer::start(&up.first.end.netns, 0, page)?;
    let config = up.config(&["wg0"]);
    let mut daemon = Daemon::start(up.near(), "policy 1\nroute via wg0\ndefault allow\n", &config)?;
    let stray = Capture::start(
        &up.first.end.netns,
        "u0",
        |frame| matches!(frame, Frame::Ip { destination, .. } if [far(false), far(true)].contains(destination)),
    )?;
    for v6 in [false, true] {
        let url = format!("http://{}/", SocketAddr::new(far(v6), server.port()));
        let curl = ["-sS", "--max-time", "10", "-g", &url];
        let done = up.near().command("curl").args(curl).run()?;
        ensure!(done.stdout == PAGE, "{url}: {done:?}");
        let to = far(v6).to_string();
        let flood = ["-n", "-f", "-c", "500", "-s", "1200", "-W", "3", &to];
        let done = up.near().command("ping").args(flood).run()?;
        ensure!(done.stdout.contains(" 0% packet loss"), "{to}: {done:?}");
        let udp = UdpServer::echo(&up.first.end.netns, far(v6), 0)?;
        let args = ["udp", &to, &udp.port().to_string()];
        let done = up.near().command(tests::lab::exec::probe()).args(args).run()?;
        ensure!(done.code() == 0 && udp.received() == 1, "{to}: {done:?}");
        let inside = up.near.inner(v6);
        ensure!(udp.peers().iter().all(|peer| peer.ip() == inside), "{:?}", udp.peers());
    }
    let told = tunnels(&daemon)?;
    ensure!(
        told.len() == 1
            && told[0]["name"] == "wg0"
            && told[0]["usable"] == true
            && told[0]["underlay"] == "up2"
            && told[0]["mtu"] == 1440
            && told[0]["peers"][0]["handshake_age"].is_u64()
            && told[0]["dropped"]["forged"] == 0,
        "{told:#?}"
    );
    let explained = daemon.json(&["explain", "tcp", "any", "203.0.113.9:443"])?;
    ensure!(
        explained[0]["via"] == "wg0"
            && explained[0]["source"] == "10.0.0.1"
            && explained[0]["egress"]["device"] == "wg0"
            && explained[0]["egress"]["underlay"] == "up2",
        "{explained:#?}"
    );
    let stray = stray.finish()?;
    ensure!(stray.matched == 0, "beside the tunnel: {stray:#?}");
    daemon.stop()?;
    let after = host_state::read(up.near())?;
    ensure!(before == after, "the host is another:\n{before}\n{after}");
    Ok(())
}

#[test]
fn heavy_when_a_peer_is_gone_new_flows_take_the_next_way_out_and_come_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut up = Uplinks::new()?;
    // One address and port for both.
    let one = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    let servers = [&one, &other];
    let config = up.config(&["wg0", "wg1"]);
    let policy = "policy 1\nroute via wg0, wg1\ndefault allow\n";
    let mut daemon = Daemon::start(up.near(), policy, &config)?;
    ensure!(taken(&up, &servers)? == Some(0), "the first way out");
    let stray = Capture::start(
        &up.first.end.netns,
        "u0",
        |frame| matches!(frame, Frame::Ip { destination, .. } if *destination == far(false)),
    )?;

    up.first.theirs = None;
    let took = within(FAILOVER, "the second way out", || Ok(taken(&up, &servers)? == Some(1)))?;
    println!("new flows took the second way out after {took:?}");
    ensure!(tunnels(&daemon)?[0]["usable"] == false, "{:#?}", tunnels(&daemon)?);

    up.first.start(&up.near)?;
    let took = within(Duration::from_secs(30), "the first way out again", || {
        Ok(taken(&up, &servers)? == Some(0))
    })?;
    println!("... and the first one again after {took:?}");
    ensure!(stray.finish()?.matched == 0, "a packet left beside the tunnels");
    daemon.stop()?;
    Ok(())
}

/// A peer's death is known within 5 s; a connection that was tried before takes 0.8 s to fail.
const FAILOVER: Duration = Duration::from_millis(5_900);

#[test]
fn a_reload_opens_and_closes_tunnels_and_cuts_what_was_in_them() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let server = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    let through = |way: &str| format!("policy 1\nroute via {way}\ndefault allow\n");
    let direct = "policy 1\ndefault allow\n";
    let mut daemon = Daemon::start(up.near(), direct, "")?;
    let connect = || Talk::open(up.near(), far(false), 7007);
    let reload = |tunnels: &[&str], policy: &str| -> Result<Value> {
        daemon.files().write("policy.d/test.policy", policy)?;
        daemon.configure(&up.config(tunnels))?;
        let done = daemon.verb(&["--json", "reload"])?;
        ensure!(done.code() == 0, "{done:?}");
        serde_json::from_str(&done.stdout).context("an object")
    };

    let opened = reload(&["wg0"], &through("wg0"))?;
    ensure!(opened["cut"] == serde_json::json!([]), "{opened:#}");
    let mut first = connect()?;
    first.speak()?;
    ensure!(server.accepted() == 1);
    // Another tunnel is no business of a flow in the first.
    let added = reload(&["wg0", "wg1"], &through("wg0, wg1"))?;
    ensure!(added["cut"] == serde_json::json!([]), "{added:#}");
    first.speak()?;
    let names: Vec<_> = tunnels(&daemon)?.iter().map(|told| told["name"].clone()).collect();
    ensure!(names == ["wg0", "wg1"], "{names:?}");
    // A policy that names what the configuration lacks changes nothing.
    daemon.files().write("policy.d/test.policy", &through("wg7"))?;
    ensure!(daemon.verb(&["reload"])?.code() == 1);
    first.speak()?;
    // Without the first tunnel its flow ends, and a new one takes the second.
    let gone = reload(&["wg1"], &through("wg1"))?;
    let cut = gone["cut"].as_array().context("a list")?;
    ensure!(
        cut.len() == 1 && cut[0]["flow"]["via"] == "wg0" && cut[0]["flow"]["state"] == "closed",
        "{gone:#}"
    );
    let error = first.0.read(&mut [0; 8]).err().map(|error| error.kind());
    ensure!(error == Some(std::io::ErrorKind::ConnectionReset), "{error:?}");
    let mut second = connect()?;
    second.speak()?;
    ensure!((server.accepted(), other.accepted()) == (1, 1));
    let names: Vec<_> = tunnels(&daemon)?.iter().map(|told| told["name"].clone()).collect();
    ensure!(names == ["wg1"], "{names:?}");
    daemon.stop()?;
    Ok(())
}

#[test]
fn wg_shows_and_changes_a_tunnel_while_the_daemon_runs() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    // The directory of control sockets is one for all namespaces.
    let name = format!("wgd{}", std::process::id() % 1_000_000);
    let peer = everything(up.first.end.peer(Some(up.first.outer(false)), None));
    let key = base64(peer.key.as_bytes());
    let config = interface(&name, &up.near, "", &[peer]);
    let policy = format!("policy 1\nroute via {name}\ndefault allow\n");
    let mut daemon = Daemon::start(up.near(), &policy, &config)?;
    let ping = || up.near().command("ping").args(["-n", "-c", "1", "-W", "3", FAR4]).run();
    ensure!(ping()?.code() == 0);
    let wg = |args: &[&str]| up.near().command("wg").args(args).run();
    let shown = wg(&["show", &name])?;
    ensure!(shown.stdout.contains(&key) && shown.stdout.contains("latest handshake"), "{shown:?}");
    // Without the prefix nothing is behind the peer.
    ensure!(wg(&["set", &name, "peer", &key, "allowed-ips", "10.0.0.2/32"])?.code() == 0);
    ensure!(ping()?.code() != 0);
    // A reload that says what it said before leaves that alone.
    ensure!(daemon.verb(&["reload"])?.code() == 0);
    ensure!(ping()?.code() != 0);
    let socket = std::path::PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
    ensure!(socket.exists());
    daemon.stop()?;
    ensure!(!socket.exists(), "the socket stays");
    Ok(())
}

/// A session's key is 120 s old at most when a new one is begun (WireGuard's paper, 6.1), and
/// nothing is lost meanwhile. In virtual time `-p tunnel` has the rest of it.
#[test]
#[ignore = "takes two minutes: the age at which a key is renewed"]
fn keys_are_renewed_by_the_clock() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let policy = "policy 1\nroute via wg0\ndefault allow\n";
    let mut daemon = Daemon::start(up.near(), policy, &up.config(&["wg0"]))?;
    let ping = ["-n", "-q", "-i", "0.5", "-c", "260", "-W", "3", FAR4];
    let done = up.near().command("ping").args(ping).limit(Duration::from_secs(150)).run()?;
    ensure!(done.stdout.contains(" 0% packet loss"), "{done:?}");
    let age = tunnels(&daemon)?[0]["peers"][0]["handshake_age"].as_u64().context("a session")?;
    ensure!(age < 30, "the session is {age} s old after 130 s");
    daemon.stop()?;
    Ok(())
}
