//! Packets of a tunnel: what is too long for it, what is in pieces, and whose address each has. The
//! far end is Debian's wireguard-go.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use socket2::SockRef;
use tests::endpoints::tcp::{self, sink, source};
use tests::endpoints::wireguard::hex;
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::daemon::Daemon;
use tests::lab::{Netns, link};
use tests::uplinks::{FAR4, FAR6, Talk, Uplinks, far};
use tests::{require_root, require_tunneld};

const ROUTED: &str = "policy 1\nroute via wg0\ndefault allow\n";
const MTU: u16 = 1300;
const MIB: u64 = 1 << 20;

fn probe(netns: &Netns, words: &[&str]) -> Result<Value> {
    let done = netns.command(tests::lab::exec::probe()).args(words).run()?;
    ensure!(done.code() == 0, "{words:?}: {done:?}");
    Ok(serde_json::from_str(&done.stdout)?)
}

/// Bytes of the headers of a TCP segment without options.
fn headers(v6: bool) -> u16 {
    if v6 { 60 } else { 40 }
}

/// A megabyte each way, every byte of it.
fn carries(near: &Netns, to: &str, [down, up]: [u16; 2]) -> Result<()> {
    let seen = probe(near, &["download", to, &down.to_string()])?;
    ensure!(seen["received"] == MIB, "{seen:#}");
    let seen = probe(near, &["upload", to, &up.to_string(), &MIB.to_string()])?;
    ensure!(seen["counted"] == MIB && seen["errno"].is_null(), "{seen:#}");
    Ok(())
}

#[test]
fn what_is_too_long_for_the_tunnel_is_told_or_cut() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let there = &up.first.end.netns;
    let config = up.config_with(&["wg0"], &format!("mtu = {MTU}"), false);
    let mut daemon = Daemon::start(up.near(), ROUTED, &config)?;
    // It says which segments it may send.
    let told = TcpServer::start(there, 0, |stream| {
        let mss = SockRef::from(&*stream).tcp_mss()?;
        write!(stream, "{mss}")?;
        Ok(0)
    })?;
    let (down, other) =
        (TcpServer::start(there, 0, source(MIB))?, TcpServer::start(there, 0, sink)?);
    for v6 in [false, true] {
        let to = far(v6).to_string();
        // With timestamps in each.
        let most = u32::from(MTU - headers(v6) - 12);
        let address = SocketAddr::new(far(v6), told.port());
        let theirs = up.near().run(|| -> Result<(String, u32)> {
            let mut stream = std::net::TcpStream::connect(address)?;
            let theirs = std::io::read_to_string(&mut stream)?;
            Ok((theirs, SockRef::from(&stream).tcp_mss()?))
        })?;
        ensure!(theirs == (most.to_string(), most), "v6 {v6}: {theirs:?}, not {most}");
        carries(up.near(), &to, [down.port(), other.port()])?;

        // Not to be cut: the app is told, and its host remembers.
        let ping = |size: &str| {
            let args = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", size, &to];
            up.near().command("ping").args(args).run()
        };
        let fits = MTU - if v6 { 48 } else { 28 };
        ensure!(ping(&fits.to_string())?.code() == 0, "v6 {v6}: {fits}");
        let done = ping(&(fits + 1).to_string())?;
        let said = format!("{}{}", done.stdout, done.stderr);
        let mtu = MTU.to_string();
        ensure!(done.code() == 1 && said.contains("mtu") && said.contains(&mtu), "{said}");
        let again = ping(&(fits + 1).to_string())?;
        ensure!(again.code() == 1, "v6 {v6}: {again:?}");

        // In pieces, which are put together and cut anew, both ways.
        let udp = UdpServer::echo(there, far(v6), 0)?;
        for size in ["1272", "1400", "4000", "20000"] {
            let seen = probe(up.near(), &["udp-echo", &to, &udp.port().to_string(), "20", size])?;
            ensure!(seen["answered"] == 20 && seen["wrong"] == 0, "v6 {v6}, {size}: {seen:#}");
        }
        let args = ["-n", "-c", "20", "-i", "0.01", "-W", "2", "-s", "4000", &to];
        let done = up.near().command("ping").args(args).run()?;
        ensure!(done.stdout.contains(" 0% packet loss"), "v6 {v6}: {done:?}");
    }
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_flow_leaves_with_the_address_whose_network_it_goes_to() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let (there, theirs) = (&up.first.end.netns, up.first.theirs()?);
    let key = hex(up.near.key.public().as_bytes());
    theirs.set(&format!("public_key={key}\nallowed_ip=10.7.0.1/32\nallowed_ip=fd07::1/128"))?;
    let device = theirs.device();
    there.ip(&format!(
        "addr add 10.7.0.2/24 dev {device}\naddr add fd07::2/64 dev {device} nodad\n"
    ))?;
    let server = TcpServer::start(there, 0, tcp::echo)?;
    let own = "\"10.0.0.1/32\", \"fd00::1/128\"";
    let more = format!("{own}, \"10.7.0.1/24\", \"fd07::1/64\"");
    let config = up.config(&["wg0"]).replace(own, &more);
    let mut daemon = Daemon::start(up.near(), ROUTED, &config)?;
    for (number, (to, from)) in
        [(FAR4, "10.0.0.1"), ("10.7.0.2", "10.7.0.1"), (FAR6, "fd00::1"), ("fd07::2", "fd07::1")]
            .into_iter()
            .enumerate()
    {
        Talk::open(up.near(), to.parse()?, server.port())?.speak()?;
        let session = server.sessions(number + 1)?.pop();
        let peer = session.context("a session")?.peer.ip();
        ensure!(peer == from.parse::<IpAddr>()?, "to {to} from {peer}");
        let told = daemon.json(&["explain", "tcp", "any", to])?;
        ensure!(told[0]["source"] == *from, "{told:#?}");
    }
    // What leaves an address that stays goes on, what leaves one that goes ends.
    let mut kept = Talk::open(up.near(), FAR4.parse()?, server.port())?;
    let mut cut = Talk::open(up.near(), "10.7.0.2".parse()?, server.port())?;
    daemon.configure(&up.config(&["wg0"]))?;
    let done = daemon.verb(&["reload"])?;
    ensure!(done.code() == 0, "{done:?}");
    kept.speak()?;
    ensure!(cut.speak().is_err());
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_narrow_path_behind_the_far_end_is_told_to_the_app() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let there = &up.first.end.netns;
    // A host behind a link that takes less than the tunnel.
    let behind = Netns::new("behind")?;
    link(there, "b0", &behind, "u0", 1280)?;
    there.ip("addr add 10.7.0.1/24 dev b0\naddr add fd07::1/64 dev b0 nodad\n")?;
    behind.ip("addr add 10.7.0.2/24 dev u0\naddr add fd07::2/64 dev u0 nodad\n\
         route add default via 10.7.0.1\nroute add default via fd07::1\n")?;
    for family in ["ipv4", "ipv6"] {
        there.sysctl(&format!("net/{family}/conf/all/forwarding"), "1")?;
    }
    let down = TcpServer::start(&behind, 0, source(MIB))?;
    let other = TcpServer::start(&behind, 0, sink)?;
    let mut daemon = Daemon::start(up.near(), ROUTED, &up.config(&["wg0"]))?;
    for to in ["10.7.0.2", "fd07::2"] {
        let ping = |size: &str| {
            let args = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", size, to];
            up.near().command("ping").args(args).run()
        };
        let done = ping("1300")?;
        let said = format!("{}{}", done.stdout, done.stderr);
        ensure!(done.code() == 1 && said.contains("mtu") && said.contains("1280"), "{said}");
        carries(up.near(), to, [down.port(), other.port()])?;
        // The host has learned it from what came through the tunnel.
        let route = up.near().output("ip", &["route", "get", to])?;
        ensure!(route.contains("mtu 1280"), "{to}: {route}");
    }
    daemon.stop()?;
    Ok(())
}
