//! Datagrams by way of SOCKS5 proxies (RFC 1928 7): danted(8), and a proxy of ours that does what
//! no honest one would.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::danted::{danted, danted_with_login};
use tests::endpoints::proxy::{Manner, Proxy};
use tests::endpoints::real_proxy::RealProxy;
use tests::endpoints::relay::Relay;
use tests::endpoints::{Dnsmasq, UdpServer};
use tests::lab::daemon::Daemon;
use tests::lab::exec::probe;
use tests::lab::scratch::Scratch;
use tests::lab::{Exec, Lab, Outcome, plan};
use tests::uplinks::within;
use tests::ways::{flow_from, office, proxies};
use tests::{require_root, require_tunneld};

/// Everything through the proxy `office`.
const ALL: &str = "route via office\ndefault allow";

/// Where the proxies listen.
const PROXY: IpAddr = plan::GOOD4;
/// Behind them.
const FAR: IpAddr = plan::GOOD4_SECOND;
const FAR6: IpAddr = plan::GOOD6_SECOND;

fn asks<'a>(lab: &'a Lab, url: &str, words: &[&str]) -> Exec<'a> {
    lab.exec("probe").config_of_owner(&office(url)).policy(ALL).args(words)
}

fn url(proxy: &Proxy) -> String {
    format!("socks5://{PROXY}:{}", proxy.port())
}

/// A counter of dropped replies.
fn dropped(seen: &Outcome, cause: &str) -> Result<u64> {
    let counters = seen.counters.as_ref().context("counters")?;
    counters["replies_dropped"][cause].as_u64().context("a counter")
}

#[test]
fn a_real_proxy_carries_datagrams_of_both_versions() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let _danted = danted(&lab.server, &files, &[PROXY, plan::GOOD6], 1080, "far1")?;
    for (proxy, source) in
        [(PROXY.to_string(), "192.0.2.1:"), (format!("[{}]", plan::GOOD6), "[2001:db8:1::1]:")]
    {
        let url = format!("socks5://{proxy}:1080");
        for far in [FAR, FAR6] {
            let echo = UdpServer::echo(&lab.server, far, 0)?;
            let (to, port) = (far.to_string(), echo.port().to_string());
            for size in ["1", "1400", "8000"] {
                let words = ["udp-echo", &to, &port, "20", size];
                let seen = asks(&lab, &url, &words).run()?.success()?;
                let answer = seen.json()?;
                ensure!(answer["answered"] == 20, "{url} {to} {size}: {answer} {seen:#?}");
                let flow = seen.flow_to(far, echo.port())?;
                ensure!(
                    flow["via"] == "office"
                        && flow["source"].as_str().is_some_and(|s| s.starts_with(source))
                        && flow["packets_sent"] == 20
                        && flow["packets_received"] == 20,
                    "{url}: {flow:#}"
                );
            }
            let words = ["udp-segments", &to, &port, "40", "1200"];
            let answer = asks(&lab, &url, &words).run()?.success()?.json()?;
            ensure!(answer["answered"] == 40 && answer["wrong"] == 0, "{url} {to}: {answer}");
            // From the proxy's address, not from ours.
            let from = if far.is_ipv4() { "192.0.2.130" } else { "2001:db8:2::2" };
            let from: IpAddr = from.parse()?;
            let peers = echo.peers();
            ensure!(peers.iter().all(|peer| peer.ip() == from), "{url} {to}: {peers:?}");
        }
    }
    Ok(())
}

#[test]
fn a_real_proxy_wants_a_login_for_datagrams_too() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let _danted = danted_with_login(&lab.server, &files, &[PROXY], 1080, "far1")?;
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    let (to, port) = (FAR.to_string(), echo.port().to_string());
    for (login, errno) in [
        ("alice:hunter2@", None),
        ("alice:hunter3@", Some("EHOSTUNREACH")),
        ("", Some("EHOSTUNREACH")),
    ] {
        let url = format!("socks5://{login}{PROXY}:1080");
        let seen = asks(&lab, &url, &["udp-errors", &to, &port]).run()?.success()?;
        let answer = seen.json()?;
        ensure!(answer["errno"].as_str() == errno, "{url}: {answer} {seen:#?}");
        ensure!(answer["answer"].is_string() == errno.is_none(), "{url}: {answer}");
        let flow = seen.flow_to(FAR, echo.port())?;
        ensure!(errno.is_none() || flow["reason"] == "proxy", "{url}: {flow:#}");
        ensure!(!format!("{seen:?}").contains("hunter"), "{url}: a password is told");
    }
    Ok(())
}

#[test]
fn a_reload_ends_the_datagrams_over_proxies_that_it_changes_alone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let [one, other] = [(); 2].map(|()| Proxy::start(&lab.server, 0, Manner::Honest(FAR)));
    let (one, other) = (one?, other?);
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    let policy = format!("policy 1\nroute to {FAR} via office\ndefault allow\n");
    let mut daemon = Daemon::start(&lab.host, &policy, &office(&url(&one)))?;
    let open = || -> Result<UdpSocket> {
        let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect((FAR, echo.port()))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let speak = |socket: &UdpSocket| -> std::io::Result<()> {
        socket.send(b"x")?;
        socket.recv(&mut [0; 8]).map(drop)
    };
    let live = |socket: &UdpSocket| flow_from(&daemon, socket.local_addr()?);
    let reload = |config: &str, policy: &str| -> Result<()> {
        daemon.configure(config)?;
        let done = daemon.reload(policy)?;
        ensure!(done.code() == 0, "{done:?}");
        Ok(())
    };
    let first = open()?;
    speak(&first)?;
    ensure!(live(&first)?.context("a flow")?["via"] == "office" && one.accepted() == 1);
    // What changes nothing of it ends nothing.
    let more = office(&url(&one)) + &office(&url(&other)).replace("office", "other");
    reload(&more, &policy)?;
    speak(&first)?;
    ensure!(one.accepted() == 1, "the same association");
    // Another proxy of that name: the app is told, and its next datagram goes there.
    reload(&office(&url(&other)), &policy)?;
    within(Duration::from_secs(5), "it ends", || Ok(live(&first)?.is_none()))?;
    let told = speak(&first).err().and_then(|error| error.raw_os_error());
    ensure!(told == Some(libc::EHOSTUNREACH), "{told:?}");
    speak(&first)?;
    ensure!((one.accepted(), other.accepted()) == (1, 1));
    // Gone, and its route with it.
    reload("", "policy 1\ndefault allow\n")?;
    let told = speak(&first).err().and_then(|error| error.raw_os_error());
    ensure!(told == Some(libc::EHOSTUNREACH), "{told:?}");
    speak(&first)?;
    ensure!(live(&first)?.context("a flow")?["via"] == "direct");
    ensure!((one.accepted(), other.accepted()) == (1, 1));
    daemon.stop()?;
    Ok(())
}

#[test]
fn datagrams_leave_a_proxy_that_has_vanished_within_five_seconds() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    let policy = "policy 1\nroute via office, direct\ndefault allow\n";
    let url = format!("socks5://{}:1080", plan::SILENT4);
    let mut daemon = Daemon::start(&lab.host, policy, &office(&url))?;
    let (to, port) = (FAR.to_string(), echo.port().to_string());
    let asks = || lab.host.command(probe()).args(["udp-errors", &to, &port]);
    let waits = asks().spawn()?;
    within(Duration::from_secs(5), "it is left", || Ok(proxies(&daemon)?[0]["usable"] == false))?;
    ensure!(proxies(&daemon)?[0]["fault"] == "it does not answer", "{:#?}", proxies(&daemon)?);
    let answer: Value = serde_json::from_str(&asks().run()?.stdout)?;
    ensure!(answer["answer"].is_string(), "by the next way: {answer}");
    drop(waits);
    daemon.stop()?;
    Ok(())
}

#[test]
fn one_association_a_client_port_whoever_it_talks_to() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Relays(FAR, Relay::Anywhere))?;
    let (first, second) =
        (UdpServer::echo(&lab.server, FAR, 0)?, UdpServer::echo(&lab.server, PROXY, 0)?);
    let [a, b] = [first.port().to_string(), second.port().to_string()];
    let words = ["udp-mapping", &FAR.to_string(), &a, &PROXY.to_string(), &b];
    let seen = asks(&lab, &url(&proxy), &words).run()?.success()?;
    let answered = [SocketAddr::new(FAR, first.port()), SocketAddr::new(PROXY, second.port())];
    let answered = answered.map(|it| it.to_string());
    ensure!(seen.json()?["answered"] == serde_json::json!(answered), "{seen:#?}");
    let ports =
        |server: &UdpServer| server.peers().iter().map(SocketAddr::port).collect::<Vec<_>>();
    ensure!(ports(&first) == ports(&second), "{:?} {:?}", first.peers(), second.peers());
    ensure!(proxy.accepted() == 1, "{:?}", proxy.asked());

    // The same port directly to one and by the proxy to the other.
    let policy = format!("route to {FAR} via office\ndefault allow");
    let seen = lab.exec("probe").config_of_owner(&office(&url(&proxy))).policy(&policy);
    let seen = seen.args(words).run()?.success()?;
    ensure!(seen.json()?["answered"] == serde_json::json!(answered), "{seen:#?}");
    ensure!(proxy.accepted() == 2);
    ensure!(second.peers().last().map(SocketAddr::ip) == Some(plan::HOST4), "{:?}", second.peers());
    for (to, port, via) in [(FAR, first.port(), "office"), (PROXY, second.port(), "direct")] {
        ensure!(seen.flow_to(to, port)?["via"] == via, "{seen:#?}");
    }
    Ok(())
}

#[test]
fn a_name_that_is_known_is_sent_and_whatever_then_answers_is_its() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    // The app has another address of that name than the proxy.
    let address = format!("--address=/www.corp.example/{}", plan::SILENT4);
    let _dns = Dnsmasq::start(&lab.server, plan::NEAR4, &[&address])?;
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    for relay in [Relay::Honest, Relay::Names] {
        let proxy = Proxy::start(&lab.server, 0, Manner::Relays(FAR, relay))?;
        let login = format!("socks5://alice:hunter2@{PROXY}:{}", proxy.port());
        let config = format!("{}[dns]\nupstream = [\"{}\"]\n", office(&login), plan::NEAR4);
        let (to, port) = (plan::SILENT4, echo.port());
        let script = format!(
            "getent ahostsv4 www.corp.example >&2 && exec \"$PROBE\" udp-echo {to} {port} 5 100"
        );
        let seen = lab.exec("sh").config_of_owner(&config).policy(ALL).args(["-c", &script]);
        let seen = seen.run()?.success()?;
        ensure!(seen.json()?["answered"] == 5, "{relay:?}: {seen:#?}");
        let asked = proxy.asked();
        let want = format!("udp www.corp.example:{port}");
        ensure!(asked == ["login alice".to_owned(), want], "{relay:?}: {asked:?}");
        let flow = seen.flow_to(to, port)?;
        ensure!(
            flow["name"] == "www.corp.example" && flow["packets_received"] == 5,
            "{relay:?}: {flow:#}"
        );
    }
    Ok(())
}

#[test]
fn the_app_sees_what_the_proxy_says_of_datagrams() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    const NET: &str = "ENETUNREACH";
    const HOST: &str = "EHOSTUNREACH";
    const REFUSED: &str = "ECONNREFUSED";
    let reply = |code: u8| [&[5, code, 0, 1][..], &[0; 6]].concat();
    let relay = |kind: &[u8]| [&[5, 0, 0][..], kind].concat();
    let ask = |url: &str| -> Result<(Value, Value)> {
        let seen = asks(&lab, url, &["udp", &FAR.to_string(), "7", "15000"]).run()?.success()?;
        Ok((seen.json()?, seen.flow_to(FAR, 7)?))
    };
    #[rustfmt::skip]
    let cases = [
        (Manner::Answers(reply(1)), NET, "proxy"),
        (Manner::Answers(reply(2)), HOST, "proxy"),
        (Manner::Answers(reply(3)), NET, "unreachable"),
        (Manner::Answers(reply(4)), HOST, "unreachable"),
        (Manner::Dribbles(reply(5)), REFUSED, "refused"),
        (Manner::Answers(reply(7)), NET, "proxy"),
        (Manner::Answers(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), NET, "proxy"),
        (Manner::AnswersAndEnds(relay(b"\x01\xcb\0\x71\x01\x10")), NET, "proxy"),
        // Relays where nothing can be sent: no port, a group, a name, and who is reached another
        // way than the proxy is.
        (Manner::Answers(relay(b"\x01\xcb\0\x71\x01\0\0")), NET, "proxy"),
        (Manner::Answers(relay(b"\x01\xe0\0\0\xfb\x10\0")), NET, "proxy"),
        (Manner::Answers(relay(b"\x03\x05relay\x10\0")), NET, "proxy"),
        (Manner::Answers(relay(b"\x01\x7f\0\0\x01\x10\0")), NET, "proxy"),
        (Manner::Answers(relay(b"\x01\xcb\0\x71\x81\x10\0")), NET, "proxy"),
        (Manner::Silent, NET, "proxy"),
    ];
    for (manner, errno, reason) in cases {
        let proxy = Proxy::start(&lab.server, 0, manner.clone())?;
        let (answer, flow) = ask(&url(&proxy))?;
        let what = format!("{manner:.60?}");
        ensure!(answer["errno"] == errno, "{what}: {errno} expected: {answer}");
        ensure!(flow["reason"] == reason && flow["verdict"] == "allow", "{what}: {flow:#}");
    }
    // A real one that can't, and none at all.
    let _microsocks = RealProxy::microsocks(&lab.server, PROXY, &[]).started()?;
    for (url, errno, reason) in [
        (format!("socks5://{PROXY}:1080"), NET, "proxy"),
        (format!("socks5://{PROXY}:{}", plan::CLOSED_PORT), NET, "proxy"),
        (format!("http://{PROXY}:1080"), HOST, "unsupported"),
    ] {
        let (answer, flow) = ask(&url)?;
        ensure!(answer["errno"] == errno && flow["reason"] == reason, "{url}: {answer} {flow:#}");
    }
    Ok(())
}

#[test]
fn what_no_honest_proxy_sends_is_dropped_and_counted() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Relays(FAR, Relay::Lies))?;
    let words = ["udp-echo", &FAR.to_string(), &echo.port().to_string(), "10", "64"];
    let seen = asks(&lab, &url(&proxy), &words).run()?.success()?;
    let answer = seen.json()?;
    ensure!(answer["answered"] == 10 && answer["wrong"] == 0, "{answer} {seen:#?}");
    for (cause, a_turn) in [("malformed", 7), ("fragment", 2), ("unsolicited", 3)] {
        ensure!(dropped(&seen, cause)? == 10 * a_turn, "{cause}: {:#?}", seen.counters);
    }
    Ok(())
}

#[test]
fn a_proxy_that_ends_its_part_ends_the_flow_and_the_next_datagram_asks_anew() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for (far, relay) in [(FAR, Relay::Ends), (FAR, Relay::Closes)] {
        let echo = UdpServer::echo(&lab.server, far, 0)?;
        let proxy = Proxy::start(&lab.server, 0, Manner::Relays(far, relay))?;
        let ask = format!("\"$PROBE\" udp-until {far} {}", echo.port());
        let script = format!("{ask}; {ask}");
        let seen = lab.exec("sh").config_of_owner(&office(&url(&proxy))).policy(ALL);
        let seen = seen.args(["-c", &script]).limit(Duration::from_secs(60)).run()?.success()?;
        for line in seen.stdout().lines() {
            let answer: Value = serde_json::from_str(line)?;
            // The second answer may have come after the next datagram.
            let answered = answer["answered"].as_u64().unwrap_or_default();
            ensure!(
                (1..=2).contains(&answered) && answer["errno"] == "ENETUNREACH",
                "{relay:?}: {answer} {seen:#?}"
            );
        }
        // A datagram that was on its way when the app was told has made one more of each.
        let flows = seen.flows_to(far, echo.port())?;
        let ended = flows.iter().filter(|flow| flow["reason"] == "proxy").count();
        ensure!(ended >= 2 && proxy.accepted() == flows.len() as u64, "{relay:?}: {flows:#?}");
    }
    Ok(())
}

#[test]
fn rules_block_datagrams_before_the_proxy_is_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let echo = UdpServer::echo(&lab.server, FAR, 0)?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    for (rule, errno) in [
        ("block udp from 192.0.2.1", Some("EHOSTUNREACH")),
        ("block udp egress up0", Some("EHOSTUNREACH")),
        ("block udp via office", Some("EHOSTUNREACH")),
        // The control.
        ("block udp egress up1", None),
    ] {
        let before = proxy.accepted();
        let seen = lab.exec("probe").config_of_owner(&office(&url(&proxy)));
        let seen = seen.policy(&format!("route via office\n{rule}\ndefault allow"));
        let words = ["udp", &FAR.to_string(), &echo.port().to_string()];
        let answer = seen.args(words).run()?.success()?.json()?;
        ensure!(answer["errno"].as_str() == errno, "{rule}: {answer}");
        let asked = proxy.accepted() - before;
        ensure!(asked == u64::from(errno.is_none()), "{rule}: asked {asked} times");
    }
    Ok(())
}
