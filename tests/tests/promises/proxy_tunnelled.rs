//! Proxies behind a tunnel: connections to them and their datagrams go through it alone, by a host
//! of our own inside it, whatever the routes of the kernel are. The far end of the tunnel is
//! Debian's wireguard-go; danted(8) and a proxy of ours are behind it.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::dns_trust::wants_certificates;
use tests::endpoints::proxy::{Manner, Proxy};
use tests::endpoints::real_proxy::RealProxy;
use tests::endpoints::relay::Relay;
use tests::endpoints::tcp::{echo, sink, source};
use tests::endpoints::{Authority, TcpServer, UdpServer, Valid};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::lab::plan;
use tests::lab::scratch::Scratch;
use tests::tunnelled::{BEHIND, Two};
use tests::uplinks::within;
use tests::ways::{PATIENCE, office, proxies, speak};
use tests::{require_root, require_tunneld};

const POLICY: &str = "policy 1\nroute via office\ndefault allow\n";

/// What the probe says in the near end's namespace.
fn probe(two: &Two, args: &[&str]) -> Result<Value> {
    let probe = two.near.netns.command(tests::lab::exec::probe()).args(args).run()?;
    ensure!(probe.code() == 0, "{args:?}: {probe:?}");
    serde_json::from_str(&probe.stdout).context("an object")
}

/// Frames on the cable that are for one of these, which nothing but the tunnel should lead to.
fn beside(two: &Two, those: Vec<IpAddr>) -> Result<Capture> {
    Capture::start(
        &two.end.netns,
        "u0",
        move |frame| matches!(frame, Frame::Ip { destination, .. } if those.contains(destination)),
    )
}

#[test]
fn a_proxy_behind_a_tunnel_is_reached_through_it_alone() -> Result<()> {
    const LENGTH: u64 = 4 << 20;
    require_root!();
    require_tunneld!();
    let mut two = Two::new()?;
    let far = TcpServer::start(&two.end.netns, 0, echo)?;
    let (down, up) = (
        TcpServer::start(&two.end.netns, 0, source(LENGTH))?,
        TcpServer::start(&two.end.netns, 0, sink)?,
    );
    let proxy = Proxy::start(&two.end.netns, 0, Manner::Honest(two.behind()))?;
    let (inside, behind) = (two.end.inner(false), two.behind());
    for scheme in ["socks5", "http"] {
        let url = format!("{scheme}://{}", SocketAddr::new(inside, proxy.port()));
        let config = two.tunnel() + &office(&url) + "via = \"wg0\"\n";
        let mut daemon = Daemon::start(&two.near.netns, POLICY, &config)?;
        let clear = beside(&two, vec![inside, behind])?;
        let before = proxy.accepted();
        let mut open = two.connect(far.port())?.map_err(|e| anyhow::anyhow!("{url}: {e}"))?;
        ensure!(proxy.accepted() == before + 1, "{url}");
        let flows = daemon.json(&["flows"])?;
        ensure!(
            flows[0]["via"] == "office"
                && flows[0]["egress"]["device"] == "wg0"
                && flows[0]["egress"]["address"] == "10.0.0.1"
                && flows[0]["egress"]["underlay"] == "u0"
                && flows[0]["source"].as_str().is_some_and(|s| s.starts_with("10.0.0.1:")),
            "{url}: {:#}",
            flows[0]
        );
        // Every byte, both ways, whatever becomes of the routes meanwhile.
        two.near.netns.ip(&format!("route add {inside}/32 dev u0\n"))?;
        let (from, to) = (down.port().to_string(), up.port().to_string());
        let seen = probe(&two, &["download", BEHIND, &from])?;
        ensure!(seen["received"] == LENGTH, "{url}: {seen}");
        let seen = probe(&two, &["upload", BEHIND, &to, &LENGTH.to_string()])?;
        ensure!(seen["counted"] == LENGTH, "{url}: {seen}");
        speak(&mut open)?;
        // Closed ports are the proxy's to tell of.
        let refused = two.connect(plan::CLOSED_PORT)?.err();
        ensure!(refused == Some(libc::ECONNREFUSED), "{url}: {refused:?}");
        // Down with its tunnel, and back with it.
        two.theirs = None;
        within(PATIENCE, "down with its tunnel", || {
            // What is sent into the tunnel finds its end.
            let _ = open.write(b"x");
            Ok(proxies(&daemon)?[0]["usable"] == false)
        })?;
        let fault = proxies(&daemon)?[0]["fault"].clone();
        ensure!(fault.is_string(), "{fault}");
        ensure!(two.connect(far.port())?.err() == Some(libc::ENETUNREACH), "no way out");
        two.start()?;
        within(Duration::from_secs(30), "back with its tunnel", || {
            Ok(proxies(&daemon)?[0]["usable"] == true)
        })?;
        ensure!(two.connect(far.port())?.is_ok(), "{url}");
        ensure!(clear.finish()?.matched == 0, "{url}: a packet left beside the tunnel");
        two.near.netns.ip(&format!("route del {inside}/32 dev u0\n"))?;
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn datagrams_go_through_the_tunnel_to_a_real_proxy_behind_it() -> Result<()> {
    require_root!();
    require_tunneld!();
    let two = Two::new()?;
    let files = Scratch::new()?;
    let inside = [false, true].map(|v6| two.end.inner(v6));
    let danted = RealProxy::danted(&two.end.netns, &files, &inside, BEHIND)?.started()?;
    let echo = UdpServer::echo(&two.end.netns, two.behind(), 0)?;
    let port = echo.port().to_string();
    for at in inside {
        let url = format!("socks5://{}", SocketAddr::new(at, danted.port()));
        let config = two.tunnel() + &office(&url) + "via = \"wg0\"\n";
        let mut daemon = Daemon::start(&two.near.netns, POLICY, &config)?;
        let clear = beside(&two, vec![at, two.behind()])?;
        // What the tunnel takes whole, and what goes through it in pieces once the app's host has
        // been told how long a packet may be.
        for size in ["1", "1200", "1400", "4000"] {
            within(PATIENCE, size, || {
                let answer = probe(&two, &["udp-echo", BEHIND, &port, "20", size])?;
                ensure!(answer["wrong"] == 0, "{url} {size}: {answer}");
                Ok(answer["answered"] == 20)
            })
            .with_context(|| url.clone())?;
        }
        let answer = probe(&two, &["udp-segments", BEHIND, &port, "40", "1200"])?;
        ensure!(answer["answered"] == 40 && answer["wrong"] == 0, "{url}: {answer}");
        let flows = daemon.json(&["flows"])?;
        let ours = two.near.inner(at.is_ipv6()).to_string();
        ensure!(
            flows.iter().all(|flow| flow["via"] == "office"
                && flow["egress"]["device"] == "wg0"
                && flow["egress"]["address"] == ours.as_str()
                && flow["egress"]["port"].as_u64() > Some(0)),
            "{url}: {flows:#?}"
        );
        ensure!(echo.peers().iter().all(|peer| peer.ip() == two.behind()), "{:?}", echo.peers());
        ensure!(clear.finish()?.matched == 0, "{url}: a packet left beside the tunnel");
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn a_proxy_behind_a_tunnel_ends_its_datagrams_and_leads_them_nowhere_else() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut two = Two::new()?;
    let echo = UdpServer::echo(&two.end.netns, two.behind(), 0)?;
    let port = echo.port().to_string();
    let (at, named) = (two.end.inner(false), two.behind());
    let outside = SocketAddr::new(two.end.outer(false).ip(), 4000);
    for (relay, answered) in [
        (Relay::Anywhere, true),
        (Relay::Lies, true),
        (Relay::Ends, true),
        (Relay::Closes, true),
        // Another address, which the near end has a way to beside the tunnel as well.
        (Relay::At(outside), true),
        // One of the other IP version: with another address of ours than was judged.
        (Relay::At(SocketAddr::new(two.end.inner(true), 4000)), false),
    ] {
        let proxy = Proxy::start(&two.end.netns, 0, Manner::Relays(named, relay))?;
        let url = format!("socks5://{}", SocketAddr::new(at, proxy.port()));
        let config = two.tunnel() + &office(&url) + "via = \"wg0\"\n";
        let mut daemon = Daemon::start(&two.near.netns, POLICY, &config)?;
        let clear = Capture::start(&two.end.netns, "u0", move |frame| {
            matches!(frame, Frame::Ip { ports: Some((_, 4000)), .. })
        })?;
        match relay {
            Relay::Ends | Relay::Closes => {
                let seen = probe(&two, &["udp-until", BEHIND, &port])?;
                let got = seen["answered"].as_u64().unwrap_or_default();
                ensure!((1..=2).contains(&got), "{relay:?}: {seen}");
                ensure!(seen["errno"] == "ENETUNREACH", "{relay:?}: {seen}");
            }
            Relay::At(_) if answered => {
                // Whoever is there is no proxy, and its silence is the app's to notice.
                let seen = probe(&two, &["udp", BEHIND, &port])?;
                ensure!(seen["answer"].is_null(), "{relay:?}: {seen}");
            }
            Relay::At(_) => {
                let seen = probe(&two, &["udp-errors", BEHIND, &port])?;
                ensure!(seen["errno"] == "ENETUNREACH", "{relay:?}: {seen}");
            }
            Relay::Honest | Relay::Anywhere | Relay::Names | Relay::Lies => {
                let seen = probe(&two, &["udp-echo", BEHIND, &port, "5", "100"])?;
                ensure!(seen["answered"] == 5, "{relay:?}: {seen}");
            }
        }
        ensure!(clear.finish()?.matched == 0, "{relay:?}: a datagram left beside the tunnel");
        daemon.stop()?;
    }
    // With the tunnel goes the association; the next datagram finds no way out.
    let proxy = Proxy::start(&two.end.netns, 0, Manner::Honest(named))?;
    let url = format!("socks5://{}", SocketAddr::new(at, proxy.port()));
    let config = two.tunnel() + &office(&url) + "via = \"wg0\"\n";
    let mut daemon = Daemon::start(&two.near.netns, POLICY, &config)?;
    let asks = ["udp-errors", BEHIND, &port];
    ensure!(probe(&two, &asks)?["answer"].is_string());
    two.theirs = None;
    within(PATIENCE, "down with its tunnel", || {
        let _ = probe(&two, &["udp-echo", BEHIND, &port, "1", "10"])?;
        Ok(proxies(&daemon)?[0]["usable"] == false)
    })?;
    let seen = probe(&two, &asks)?;
    ensure!(seen["errno"] == "ENETUNREACH", "{seen}");
    daemon.stop()?;
    Ok(())
}

#[test]
fn tls_to_a_proxy_behind_a_tunnel_trusts_whom_it_must() -> Result<()> {
    const LENGTH: u64 = 2 << 20;
    require_root!();
    require_tunneld!();
    let two = Two::new()?;
    let files = Scratch::new()?;
    let (ours, stranger) = (Authority::new("ours")?, Authority::new("a stranger")?);
    let path = |name: &str, text: &str, mode: u32| -> Result<String> {
        let path = files.write(name, text)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path.display().to_string())
    };
    let ca = path("ca.pem", &ours.pem(), 0o644)?;
    let other = path("other.pem", &stranger.pem(), 0o644)?;
    let client = ours.sign(&["client.corp.example"], Valid::Now)?;
    let client = path("client.pem", &client.whole(), 0o600)?;
    let proxy = Proxy::start(&two.end.netns, 0, Manner::Honest(two.behind()))?;
    let inside = two.end.inner(false);
    let (at, plain) = (SocketAddr::new(inside, 8443), SocketAddr::new(inside, proxy.port()));
    let signed = ours.sign(&["proxy.corp.example"], Valid::Now)?;
    let _tls = wants_certificates(&two.end.netns, at, plain, &signed, &ours)?;
    let (down, up) = (
        TcpServer::start(&two.end.netns, 0, source(LENGTH))?,
        TcpServer::start(&two.end.netns, 0, sink)?,
    );
    let (from, to, length) = (down.port().to_string(), up.port().to_string(), LENGTH.to_string());
    // A daemon for each: socat(1) takes no session of TLS up again that had a certificate.
    for (ca, asks) in [
        (&other, None),
        (&ca, Some((&["download", BEHIND, &from][..], "received"))),
        (&ca, Some((&["upload", BEHIND, &to, &length][..], "counted"))),
    ] {
        let url = format!("https://{at}#proxy.corp.example");
        let config = format!(
            "{}{}via = \"wg0\"\nca = \"{ca}\"\nidentity = \"{client}\"\n",
            two.tunnel(),
            office(&url)
        );
        let mut daemon = Daemon::start(&two.near.netns, POLICY, &config)?;
        let clear = beside(&two, vec![inside, two.behind()])?;
        match asks {
            Some((words, what)) => {
                let seen = probe(&two, words)?;
                ensure!(seen[what] == LENGTH, "{words:?}: {seen}");
            }
            None => {
                let connected = two.connect(down.port())?;
                ensure!(connected.as_ref().err() == Some(&libc::ENETUNREACH), "{connected:?}");
                ensure!(proxies(&daemon)?[0]["fault"] == "its certificate is not trusted");
                ensure!(proxy.asked().is_empty(), "{:?}", proxy.asked());
            }
        }
        ensure!(clear.finish()?.matched == 0, "a packet left beside the tunnel");
        daemon.stop()?;
    }
    Ok(())
}
