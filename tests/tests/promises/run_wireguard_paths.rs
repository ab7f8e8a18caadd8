//! A tunnel outlives the path beneath it: peers that move, uplinks that change, a NAT that
//! forgets, names that lead elsewhere, a host that was suspended. The far ends are Debian's
//! wireguard-go.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;
use tests::endpoints::wireguard::{End, PORT, WireguardGo, everything, hex, interface};
use tests::endpoints::{Dnsmasq, TcpServer, UdpServer, tcp};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::lab::{Netns, link, skipped};
use tests::uplinks::{FAR4, OTHER4, Talk, Uplinks, far, tunnels, within};
use tests::{require_root, require_tunneld};
use tunnel::link::wireguard::PeerSettings;

const ROUTED: &str = "policy 1\nroute via wg0\ndefault allow\n";
/// What is told follows what has happened by less.
const SOON: Duration = Duration::from_secs(5);

fn wg0(daemon: &Daemon) -> Result<Value> {
    tunnels(daemon)?.into_iter().next().context("a tunnel")
}

/// Where our end believes its only peer to be.
fn believed(daemon: &Daemon) -> Result<SocketAddr> {
    let told = wg0(daemon)?;
    Ok(told["peers"][0]["endpoint"].as_str().context("an endpoint")?.parse()?)
}

/// Where the far end believes ours to be.
fn seen_by(theirs: &WireguardGo) -> Result<SocketAddr> {
    let told = theirs.get()?;
    let endpoint = told.lines().find_map(|line| line.strip_prefix("endpoint="));
    Ok(endpoint.with_context(|| format!("it knows us: {told}"))?.parse()?)
}

/// Has the far end send a packet at once, to the place `to` where that is given.
fn greet(theirs: &WireguardGo, near: &End, to: Option<SocketAddr>) -> Result<()> {
    let key = hex(near.key.public().as_bytes());
    let to = to.map(|to| format!("endpoint={to}\n")).unwrap_or_default();
    for seconds in [0, 25] {
        theirs.set(&format!(
            "public_key={key}\nupdate_only=true\n{to}persistent_keepalive_interval={seconds}"
        ))?;
    }
    Ok(())
}

fn ping(netns: &Netns, to: &str) -> Result<bool> {
    Ok(netns.command("ping").args(["-n", "-c", "1", "-W", "1", to]).run()?.code() == 0)
}

#[test]
fn replies_follow_a_peer_that_moves() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let server = TcpServer::start(&up.first.end.netns, 0, tcp::echo)?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &up.config(&["wg0"]))?;
    let mut talk = Talk::open(up.near(), far(false), server.port())?;
    talk.speak()?;
    let there = &up.first.end.netns;
    let (theirs, ours) = (up.first.theirs()?, wg0(&daemon)?["listen_port"].clone());
    let ours = u16::try_from(ours.as_u64().context("a port")?)?;
    for (what, ip, port, away, near) in [
        (
            "another address",
            "addr del 192.0.2.2/24 dev u0\naddr add 192.0.2.22/24 dev u0\n",
            PORT,
            "192.0.2.22",
            None,
        ),
        ("another port", "", 4500, "192.0.2.22", None),
        (
            "the other IP version",
            "addr del 192.0.2.22/24 dev u0\n",
            4500,
            "2001:db8:2::2",
            Some("2001:db8:2::1"),
        ),
    ] {
        there.ip(ip)?;
        theirs.set(&format!("listen_port={port}"))?;
        let near = near.map(|address| anyhow::Ok(SocketAddr::new(address.parse()?, ours)));
        greet(theirs, &up.near, near.transpose()?)?;
        let away = SocketAddr::new(away.parse()?, port);
        within(SOON, what, || Ok(believed(&daemon)? == away))?;
        talk.speak().context(what)?;
        ensure!(ping(up.near(), FAR4)?, "{what}");
    }
    // Nobody else's word moves a peer.
    let stranger = there.run(|| UdpSocket::bind("[2001:db8:2::2]:4501"))?;
    let before = wg0(&daemon)?["dropped"]["malformed"].as_u64();
    stranger.send_to(&[4; 64], ("2001:db8:2::1", ours))?;
    within(SOON, "it came", || Ok(wg0(&daemon)?["dropped"]["malformed"].as_u64() > before))?;
    ensure!(believed(&daemon)?.port() == 4500);
    talk.speak()?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn another_address_of_ours_or_another_uplink_is_told_to_the_peer() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    // The far end is at an address behind two cables.
    let there = &up.first.end.netns;
    link(up.near(), "up4", there, "u1", 1400)?;
    up.near()
        .ip("addr add 192.0.4.1/24 dev up4\nroute add 203.0.113.200/32 via 192.0.2.2 dev up2\n")?;
    there.ip("addr add 192.0.4.2/24 dev u1\naddr add 203.0.113.200/32 dev lo\n")?;
    let server = TcpServer::start(there, 0, tcp::echo)?;
    let peer = SocketAddr::new("203.0.113.200".parse()?, PORT);
    let peer = everything(up.first.end.peer(Some(peer), None));
    let mut daemon = Daemon::start(up.near(), ROUTED, &interface("wg0", &up.near, "", &[peer]))?;
    let mut talk = Talk::open(up.near(), far(false), server.port())?;
    talk.speak()?;
    let theirs = up.first.theirs()?;
    let first = seen_by(theirs)?;
    ensure!(first.ip() == "192.0.2.1".parse::<IpAddr>()?, "{first}");

    for (what, ip, ours, device, mtu) in [
        (
            "another address",
            "addr del 192.0.2.1/24 dev up2\naddr add 192.0.2.7/24 dev up2\n\
             route replace 203.0.113.200/32 via 192.0.2.2 dev up2\n",
            "192.0.2.7",
            "up2",
            1440,
        ),
        (
            "another uplink",
            "route replace 203.0.113.200/32 via 192.0.4.2 dev up4\nlink set up2 down\n",
            "192.0.4.1",
            "up4",
            1340,
        ),
    ] {
        up.near().ip(ip)?;
        let now = SocketAddr::new(ours.parse()?, first.port());
        // Without a packet of the app's: the peer could not reach us otherwise.
        within(SOON, what, || Ok(seen_by(theirs)? == now))?;
        talk.speak().context(what)?;
        ensure!(ping(up.near(), FAR4)?, "{what}");
        within(SOON, what, || {
            let told = wg0(&daemon)?;
            Ok(told["underlay"] == *device && told["mtu"] == mtu && told["usable"] == true)
        })?;
    }
    daemon.stop()?;
    Ok(())
}

#[test]
fn an_uplink_that_comes_late_brings_the_handshake() -> Result<()> {
    require_root!();
    require_tunneld!();
    for by_name in [false, true] {
        let up = Uplinks::new()?;
        let _names = names(&up, &["192.0.2.2"])?;
        up.near().ip("link set up2 down\n")?;
        let config = if by_name { named(&up) } else { up.config(&["wg0"]) };
        let mut daemon = Daemon::start(up.near(), ROUTED, &config)?;
        // Nobody can be there, and whoever asks is told so.
        ensure!(!ping(up.near(), FAR4)?);
        within(SOON, "not usable", || Ok(wg0(&daemon)?["usable"] == false))?;
        // Long enough that it is not asked again all the time.
        sleep(Duration::from_secs(2));
        up.near().ip("link set up2 up\n")?;
        let took = within(SOON, "usable", || Ok(wg0(&daemon)?["usable"] == true))?;
        println!("by name {by_name}: usable {took:?} after the uplink came");
        ensure!(ping(up.near(), FAR4)?);
        ensure!(wg0(&daemon)?["handshakes"].as_u64() >= Some(1));
        daemon.stop()?;
    }
    Ok(())
}

/// A network that hides the host behind one address of each uplink, and forgets what was silent
/// for two seconds.
fn hide(nat: &Netns) -> Result<()> {
    let rules = "table ip hide { chain out { type nat hook postrouting priority srcnat; \
                 oifname \"n*\" ip saddr 10.9.0.0/24 masquerade; }; }\n";
    let done = nat.command("nft").args(["-f", "-"]).input(rules).run()?;
    ensure!(done.code() == 0, "{done:?}");
    nat.sysctl("net/ipv4/ip_forward", "1")?;
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        nat.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "2")?;
    }
    Ok(())
}

#[test]
fn behind_a_nat_a_tunnel_that_is_kept_alive_can_be_reached() -> Result<()> {
    require_root!();
    require_tunneld!();
    let (near, nat) = (End::new("ours", 1)?, Netns::new("nat")?);
    link(&near.netns, "up0", &nat, "inside", 1500)?;
    near.netns.ip("addr add 10.9.0.1/24 dev up0\nroute add default via 10.9.0.254\n")?;
    nat.ip("addr add 10.9.0.254/24 dev inside\n")?;
    let (mut sides, mut config) = (Vec::new(), String::new());
    for (number, tunnel, behind, keepalive) in [(2, "wg0", FAR4, Some(1)), (3, "wg1", OTHER4, None)]
    {
        let end = End::new("far", number)?;
        let outer = format!("198.51.{number}.{number}");
        link(&nat, &format!("n{number}"), &end.netns, "u0", 1500)?;
        nat.ip(&format!("addr add 198.51.{number}.254/24 dev n{number}\n"))?;
        end.netns.ip(&format!("addr add {outer}/24 dev u0\naddr add {behind}/32 dev lo\n"))?;
        let theirs = WireguardGo::start(&end, &[near.peer(None, None)])?;
        let peer = everything(end.peer(Some(SocketAddr::new(outer.parse()?, PORT)), None));
        let peer = PeerSettings { keepalive, ..peer };
        config += &interface(tunnel, &near, "", &[peer]);
        sides.push((end, theirs, SocketAddr::new(behind.parse()?, 9000)));
    }
    hide(&nat)?;
    let policy = format!("policy 1\nroute to {OTHER4} via wg1\nroute via wg0\ndefault allow\n");
    let mut daemon = Daemon::start(&near.netns, &policy, &config)?;
    let mut flows = Vec::new();
    for (end, theirs, behind) in &sides {
        let server = end.netns.run(|| UdpSocket::bind(behind))?;
        let app = near.netns.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        for socket in [&server, &app] {
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        }
        app.send_to(b"hello", behind)?;
        let (_, client) = server.recv_from(&mut [0; 16])?;
        let seen = seen_by(theirs)?;
        ensure!(seen.ip().to_string().ends_with(".254"), "hidden, it is seen at {seen}");
        flows.push((server, app, client, behind));
    }
    // Longer than the network remembers.
    sleep(Duration::from_secs(4));
    let reached = |(server, app, client, _): &(UdpSocket, UdpSocket, _, _)| -> Result<bool> {
        server.send_to(b"late", *client)?;
        Ok(app.recv(&mut [0; 16]).is_ok_and(|length| length == 4))
    };
    ensure!(reached(&flows[0])?, "kept alive, it is reached");
    // The control: the other one is not, until it speaks.
    ensure!(!reached(&flows[1])?, "the network remembers");
    let (server, app, _, behind) = &flows[1];
    app.send_to(b"again", *behind)?;
    let (length, client) = server.recv_from(&mut [0; 16])?;
    ensure!(length == 5);
    server.send_to(b"late", client)?;
    ensure!(app.recv(&mut [0; 16])? == 4);
    daemon.stop()?;
    Ok(())
}

/// The configuration of `wg0`, whose peer is at a name; the server for names is the second end.
fn named(up: &Uplinks) -> String {
    let config = up.config(&["wg0"]);
    let config = config.replace("192.0.2.2:51820", "vpn.example:51820");
    format!("{config}[dns]\nupstream = [\"{}\"]\n", up.second.outer(false).ip())
}

/// A server for names, at the second end, that says where the peer is.
fn names(up: &Uplinks, records: &[&str]) -> Result<Dnsmasq> {
    let records = records.iter().map(|address| format!("--address=/vpn.example/{address}"));
    let args: Vec<String> = records.chain(["--local-ttl=1".to_owned()]).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Dnsmasq::start(&up.second.end.netns, up.second.outer(false).ip(), &args)
}

#[test]
fn a_peer_is_looked_for_where_its_name_leads_then() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut up = Uplinks::new()?;
    let before = names(&up, &["192.0.2.2"])?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &named(&up))?;
    ensure!(ping(up.near(), FAR4)?, "{:#}", wg0(&daemon)?);
    ensure!(wg0(&daemon)?["peers"][0]["name"] == "vpn.example", "{:#}", wg0(&daemon)?);
    ensure!(before.log().contains("query[a] vpn.example"), "{}", before.log());
    // The same peer, at another place.
    up.first.theirs = None;
    up.second.theirs = None;
    let second = &up.second.end;
    let moved = End { netns: second.netns.clone(), key: up.first.end.key.clone(), number: 2 };
    let _theirs = WireguardGo::start(&moved, &[up.near.peer(None, None)])?;
    drop(before);
    let after = names(&up, &["198.51.100.3"])?;
    let took = within(Duration::from_secs(20), "found", || ping(up.near(), FAR4))?;
    println!("found after {took:?}");
    ensure!(believed(&daemon)? == up.second.outer(false), "{:#}", wg0(&daemon)?);
    ensure!(after.log().contains("query[a] vpn.example"), "{}", after.log());
    daemon.stop()?;
    Ok(())
}

#[test]
fn of_several_addresses_of_a_name_the_next_one_is_tried() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    // Nobody is at the first.
    let _names = names(&up, &["2001:db8:2::99", "192.0.2.2"])?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &named(&up))?;
    ensure!(believed(&daemon)?.is_ipv6(), "{:#}", wg0(&daemon)?);
    let took = within(Duration::from_secs(15), "found", || ping(up.near(), FAR4))?;
    println!("found after {took:?}");
    ensure!(believed(&daemon)? == up.first.outer(false), "{:#}", wg0(&daemon)?);
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_tunnel_over_ipv6_carries_both() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let there = &up.first.end.netns;
    let server = TcpServer::start(there, 0, tcp::echo)?;
    let v4 = Capture::start(
        there,
        "u0",
        |frame| matches!(frame, Frame::Ip { source, .. } if source.is_ipv4()),
    )?;
    let v6 = Capture::start(
        there,
        "u0",
        |frame| matches!(frame, Frame::Ip { ports: Some((_, PORT)), destination, .. } if destination.is_ipv6()),
    )?;
    let config = up.config_with(&["wg0"], "", true);
    let mut daemon = Daemon::start(up.near(), ROUTED, &config)?;
    for inner_v6 in [false, true] {
        Talk::open(up.near(), far(inner_v6), server.port())?.speak()?;
        let udp = UdpServer::echo(there, far(inner_v6), 0)?;
        let (to, port) = (far(inner_v6).to_string(), udp.port().to_string());
        let args = ["udp-echo", &to, &port, "50", "1300"];
        let done = up.near().command(tests::lab::exec::probe()).args(args).run()?;
        ensure!(done.stdout.contains("\"answered\":50"), "{done:?}");
        let flood = ["-n", "-f", "-c", "200", "-s", "1300", "-W", "3", &to];
        let done = up.near().command("ping").args(flood).run()?;
        ensure!(done.stdout.contains(" 0% packet loss"), "{to}: {done:?}");
    }
    let told = wg0(&daemon)?;
    ensure!(told["mtu"] == 1420 && believed(&daemon)? == up.first.outer(true), "{told:#}");
    let (v4, v6) = (v4.finish()?, v6.finish()?);
    ensure!(v4.matched == 0 && v6.matched > 200, "{v4:#?}");
    daemon.stop()?;
    Ok(())
}

#[test]
fn an_answer_leaves_from_the_address_that_the_peer_spoke_to() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    up.near().ip("addr add 192.0.2.11/24 dev up2\n")?;
    // Our end does not know where the peer is: that one begins.
    let peer = everything(up.first.end.peer(None, None));
    let config = interface("wg0", &up.near, "listen_port = 51830", &[peer]);
    let mut daemon = Daemon::start(up.near(), ROUTED, &config)?;
    ensure!(!ping(up.near(), FAR4)?, "nobody knows where the peer is");
    let theirs = up.first.theirs()?;
    let usual = Capture::start(
        &up.first.end.netns,
        "u0",
        |frame| matches!(frame, Frame::Ip { source, ports: Some((51830, _)), .. } if source.to_string() == "192.0.2.1"),
    )?;
    greet(theirs, &up.near, Some("192.0.2.11:51830".parse()?))?;
    within(SOON, "a session", || ping(up.near(), FAR4))?;
    ensure!(seen_by(theirs)? == "192.0.2.11:51830".parse()?, "{}", theirs.get()?);
    let usual = usual.finish()?;
    ensure!(usual.matched == 0, "from the address of the route: {usual:#?}");
    // The control: without that address the route chooses, and the peer follows.
    up.near().ip("addr del 192.0.2.11/24 dev up2\n")?;
    within(SOON, "another address", || {
        ensure!(ping(up.near(), FAR4)?);
        Ok(seen_by(theirs)? == "192.0.2.1:51830".parse()?)
    })?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_daemon_that_stood_still_finds_its_way() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let server = TcpServer::start(&up.first.end.netns, 0, tcp::echo)?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &up.config(&["wg0"]))?;
    let mut talk = Talk::open(up.near(), far(false), server.port())?;
    talk.speak()?;
    daemon.running()?.signal(Signal::STOP)?;
    // Meanwhile the host is at another place.
    up.near().ip("addr del 192.0.2.1/24 dev up2\naddr add 192.0.2.7/24 dev up2\n")?;
    sleep(Duration::from_secs(2));
    daemon.running()?.signal(Signal::CONT)?;
    let theirs = up.first.theirs()?;
    let now: IpAddr = "192.0.2.7".parse()?;
    within(SOON, "told where we are", || Ok(seen_by(theirs)?.ip() == now))?;
    talk.speak()?;
    daemon.stop()?;
    Ok(())
}

/// The inodes of a process's sockets.
fn sockets(pid: u32) -> Result<Vec<String>> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("socket:")).collect())
}

/// What the kernel tells after a suspend is that the wall clock was set. Here it is set to what
/// it is.
#[test]
#[ignore = "sets the clock of this machine, by less than a millisecond"]
fn after_a_suspend_the_sockets_are_others() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let server = TcpServer::start(&up.first.end.netns, 0, tcp::echo)?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &up.config(&["wg0"]))?;
    let mut talk = Talk::open(up.near(), far(false), server.port())?;
    talk.speak()?;
    let theirs = up.first.theirs()?;
    let before = (sockets(daemon.running()?.pid())?, seen_by(theirs)?);
    if clock_settime(ClockId::Realtime, clock_gettime(ClockId::Realtime)).is_err() {
        skipped(module_path!(), "the clock may not be set");
        return Ok(());
    }
    within(SOON, "other sockets", || {
        let now = sockets(daemon.running()?.pid())?;
        Ok(now.iter().filter(|socket| !before.0.contains(socket)).count() >= 2)
    })?;
    talk.speak()?;
    ensure!(seen_by(theirs)? == before.1, "at the same place");
    ensure!(wg0(&daemon)?["usable"] == true);
    daemon.stop()?;
    Ok(())
}
