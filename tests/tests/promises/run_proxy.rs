//! Proxies as ways out of a whole host: new flows leave one that is down and take it again when it
//! is back, nothing goes another way than is written, and a reload touches only what it changes.
//! microsocks(1), danted(8) and tinyproxy(8) on the other side.

use std::io::Read as _;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::endpoints::proxy::{Manner, Proxy};
use tests::endpoints::real_proxy::RealProxy;
use tests::endpoints::tcp::echo;
use tests::endpoints::{Dnsmasq, TcpServer};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, plan};
use tests::tunnelled::Two;
use tests::uplinks::within;
use tests::ways::{self, PATIENCE, office, proxies, speak, way};
use tests::{require_root, require_tunneld};

/// Where the proxies listen.
const PROXY: IpAddr = plan::GOOD4;
/// Behind them, and reached without them too.
const FAR: IpAddr = plan::GOOD4_SECOND;

/// New flows take another way within that.
const FAILOVER: Duration = Duration::from_secs(5);
/// A proxy that is back is taken again within that: the pause between two probes is not longer
/// than it was away.
const RETURN: Duration = Duration::from_secs(10);

/// A connection of the host's, once it has echoed a byte.
fn connected(lab: &Lab, port: u16) -> Result<Result<TcpStream, i32>> {
    ways::connected(&lab.host, FAR, port)
}

#[test]
fn new_flows_leave_a_proxy_that_is_gone_and_take_it_again() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    for mut real in [
        RealProxy::microsocks(&lab.server, PROXY, &[]),
        RealProxy::danted(&lab.server, &files, &[PROXY], "far1")?,
        RealProxy::tinyproxy(&lab.server, &files, PROXY, "")?,
    ] {
        let name = real.name;
        real.start()?;
        let policy = "policy 1\nroute via office, direct\ndefault allow\n";
        let mut daemon = Daemon::start(&lab.host, policy, &office(&real.url))?;
        let connect = || connected(&lab, far.port());
        let first = connect()?.map_err(|errno| anyhow::anyhow!("{name}: errno {errno}"))?;
        ensure!(way(&daemon, &first)? == "office", "{name}");

        real.end()?;
        // Whoever finds it out sees what it is, and is the only one.
        let errno = connect()?.err();
        ensure!(errno == Some(libc::ENETUNREACH), "{name}: {errno:?}");
        let second = connect()?.map_err(|errno| anyhow::anyhow!("{name}: errno {errno}"))?;
        ensure!(way(&daemon, &second)? == "direct", "{name}");
        let told = proxies(&daemon)?;
        ensure!(
            told[0]["usable"] == false && told[0]["fault"] == "it cannot be reached: refused",
            "{name}: {told:#?}"
        );
        let metrics = daemon.verb(&["explain", "tcp", "any", "203.0.113.129:443"])?;
        ensure!(metrics.stdout.contains("direct"), "{name}: {metrics:?}");

        real.start()?;
        within(RETURN, name, || Ok(proxies(&daemon)?[0]["usable"] == true))?;
        let mut third = connect()?.map_err(|errno| anyhow::anyhow!("{name}: errno {errno}"))?;
        ensure!(way(&daemon, &third)? == "office", "{name}");
        // None has moved.
        let mut second = second;
        speak(&mut second)?;
        speak(&mut third)?;
        ensure!(way(&daemon, &second)? == "direct", "{name}");
        daemon.stop()?;
        real.end()?;
    }
    Ok(())
}

#[test]
fn without_another_way_new_flows_fail_at_once_and_nothing_goes_beside_the_proxy() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let mut real = RealProxy::microsocks(&lab.server, PROXY, &["-u", "user", "-P", "secret"]);
    real.start()?;
    let policy = "policy 1\nroute via office\ndefault allow\n";
    let port = far.port();
    let beside = Capture::start(&lab.server, "far1", move |frame| frame.is_syn_to(FAR, port))?;
    // Another password: the proxy is there, and is none for us.
    let url = |password: &str| real.url.replace("//", &format!("//user:{password}@"));
    let mut daemon = Daemon::start(&lab.host, policy, &office(&url("other")))?;
    let watch = lab.host.command(tests::lab::exec::built_tunneld()?);
    let watch = watch.args(["watch", "--json", "--socket"]).args([daemon.socket()]).spawn()?;
    within(PATIENCE, "somebody watches", || Ok(daemon.json(&["status"])?[0]["watchers"] == 1))?;
    ensure!(connected(&lab, port)?.err() == Some(libc::EHOSTUNREACH), "the login is refused");
    within(PATIENCE, "no way out", || Ok(connected(&lab, port)?.err() == Some(libc::ENETUNREACH)))?;
    for _ in 0..3 {
        let began = Instant::now();
        ensure!(connected(&lab, port)?.err() == Some(libc::ENETUNREACH), "no way out");
        ensure!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    watch.wait_for("no-way-out")?;
    watch.wait_for("\"event\":\"proxy\"")?;
    let events = watch.stdout();
    let event = events.lines().find(|line| line.contains("\"event\":\"proxy\"")).context("one")?;
    let event: Value = serde_json::from_str(event)?;
    ensure!(
        event["what"] == "unusable"
            && event["name"] == "office"
            && event["fault"] == "it does not take the login",
        "{event:#}"
    );
    ensure!(!events.contains("other") && !daemon.running()?.stderr().contains("other"));
    ensure!(daemon.running()?.stderr().matches("proxy-failed").count() == 1);
    drop(watch);
    // The right one, by a reload: it is another proxy, and usable.
    daemon.configure(&office(&url("secret")))?;
    let done = daemon.verb(&["--json", "reload"])?;
    ensure!(done.code() == 0, "{done:?}");
    let open = connected(&lab, port)?.map_err(|errno| anyhow::anyhow!("errno {errno}"))?;
    ensure!(way(&daemon, &open)? == "office");
    ensure!(beside.finish()?.matched == 0, "a connection left beside the proxy");
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_proxy_that_has_vanished_is_left_within_five_seconds() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    let policy = "policy 1\nroute via office, direct\ndefault allow\n";
    // Its address is one that never answers; or it does, and then says nothing, as a slow one.
    let silent = Proxy::start(&lab.server, 0, Manner::Silent)?;
    for (url, errno, limit) in [
        (format!("socks5://{}:1080", plan::SILENT4), Some(libc::ENETUNREACH), FAILOVER),
        (format!("socks5://{PROXY}:{}", silent.port()), Some(libc::ENETUNREACH), PATIENCE),
        (format!("http://{PROXY}:{}", proxy.port()), None, FAILOVER),
    ] {
        let mut daemon = Daemon::start(&lab.host, policy, &office(&url))?;
        std::thread::scope(|scope| {
            // It waits for the proxy as long as a proxy may take.
            let waits = scope.spawn(|| connected(&lab, far.port()));
            if errno.is_some() {
                within(limit, &url, || Ok(proxies(&daemon)?[0]["usable"] == false))?;
                let open = connected(&lab, far.port())?;
                let open = open.map_err(|errno| anyhow::anyhow!("{url}: errno {errno}"))?;
                ensure!(way(&daemon, &open)? == "direct", "{url}");
            }
            let waited = waits.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            ensure!(waited.as_ref().err().copied() == errno, "{url}: {waited:?}");
            Ok(())
        })?;
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn a_proxy_that_no_route_names_is_not_probed() -> Result<()> {
    const PORT: u16 = 1085;
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let routed = "policy 1\nroute via office, direct\ndefault allow\n";
    let url = format!("socks5://{PROXY}:{PORT}");
    let mut daemon = Daemon::start(&lab.host, routed, &office(&url))?;
    ensure!(connected(&lab, far.port())?.err() == Some(libc::ENETUNREACH), "it finds that out");
    let done = daemon.reload("policy 1\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    // It is there from here on, and nobody looks: the probes were 0, 1, 3 and 7 s after it fell.
    let proxy = Proxy::start(&lab.server, PORT, Manner::Honest(FAR))?;
    std::thread::sleep(Duration::from_secs(4));
    ensure!(proxy.accepted() == 0 && proxies(&daemon)?[0]["usable"] == false);
    let done = daemon.reload(routed)?;
    ensure!(done.code() == 0, "{done:?}");
    within(FAILOVER, "a route names it", || Ok(proxies(&daemon)?[0]["usable"] == true))?;
    ensure!(proxy.accepted() == 1);
    daemon.stop()?;
    Ok(())
}

#[test]
fn where_no_route_leads_to_a_proxy_it_is_not_taken() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    let policy = "policy 1\nroute via office, direct\ndefault allow\n";
    let url = format!("http://{}:{}", plan::UNROUTED4, proxy.port());
    lab.server.ip(&format!("address add {}/32 dev lo\n", plan::UNROUTED4))?;
    let mut daemon = Daemon::start(&lab.host, policy, &office(&url))?;
    ensure!(proxies(&daemon)?[0]["fault"] == "no route leads to it", "{:#?}", proxies(&daemon)?);
    let open = connected(&lab, far.port())?.map_err(|errno| anyhow::anyhow!("errno {errno}"))?;
    ensure!(way(&daemon, &open)? == "direct");
    lab.host.ip(&format!("route add {} via {} dev up0\n", plan::UNROUTED4, plan::NEAR4))?;
    within(FAILOVER, "a route", || Ok(proxies(&daemon)?[0]["usable"] == true))?;
    let open = connected(&lab, far.port())?.map_err(|errno| anyhow::anyhow!("errno {errno}"))?;
    ensure!(way(&daemon, &open)? == "office");
    daemon.stop()?;
    Ok(())
}

#[test]
fn rules_block_before_any_byte_reaches_the_proxy() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    // On the link itself: even the question where the address is would be seen.
    let url = format!("socks5://{}:{}", plan::NEAR4, proxy.port());
    let policy = |rule: &str| format!("policy 1\nroute via office\n{rule}\ndefault allow\n");
    let mut daemon = Daemon::start(&lab.host, &policy("block from 192.0.2.1"), &office(&url))?;
    for (rule, blocks) in [
        ("block from 192.0.2.1", true),
        ("block egress up0", true),
        ("block via office", true),
        // The control.
        ("block egress up1", false),
    ] {
        let done = daemon.reload(&policy(rule))?;
        ensure!(done.code() == 0, "{done:?}");
        lab.host.ip("neighbour flush all\n")?;
        let seen = Capture::start(&lab.server, "far0", |frame| frame.seeks(plan::NEAR4))?;
        let answer = connected(&lab, far.port())?;
        if blocks {
            ensure!(answer.err() == Some(libc::ECONNREFUSED), "{rule}");
            let frames = seen.finish()?;
            ensure!(frames.matched == 0, "{rule}: frames left before the verdict: {frames:#?}");
        } else {
            ensure!(answer.is_ok(), "{rule}: {answer:?}");
            seen.wait_for_one()?;
        }
    }
    ensure!(proxy.accepted() == 1);
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_reload_adds_changes_and_removes_proxies_and_cuts_what_was_over_them_alone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let [one, other, third] = [(); 3].map(|()| Proxy::start(&lab.server, 0, Manner::Honest(FAR)));
    let (one, other, third) = (one?, other?, third?);
    let line = |name: &str, proxy: &Proxy| {
        let url = format!("http://{PROXY}:{}", proxy.port());
        office(&url).replace("office", name)
    };
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    let prepare = |config: &str, via: &str| -> Result<()> {
        let policy = format!("policy 1\nroute via {via}\ndefault allow\n");
        daemon.files().write("policy.d/test.policy", &policy)?;
        daemon.configure(config)
    };
    // What a reload would cut, and then does: the ways out of those flows.
    let reload = || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for args in [&["reload", "--dry-run"][..], &["reload"]] {
            let told = daemon.json(args)?;
            let cut = told[0]["cut"].as_array().with_context(|| format!("{told:#?}"))?;
            let via = |cut: &Value| Some(cut["flow"]["via"].as_str()?.to_owned());
            all.push(cut.iter().filter_map(via).collect::<Vec<_>>());
        }
        ensure!(all[0] == all[1], "announced and done: {all:?}");
        Ok(all.remove(0))
    };
    let connect = || -> Result<(TcpStream, String)> {
        let open = connected(&lab, far.port())?;
        let open = open.map_err(|errno| anyhow::anyhow!("errno {errno}"))?;
        let taken = way(&daemon, &open)?;
        Ok((open, taken))
    };
    let is_reset = |mut stream: TcpStream| {
        let error = stream.read(&mut [0; 8]).err().map(|error| error.kind());
        error == Some(std::io::ErrorKind::ConnectionReset)
    };

    prepare(&line("a", &one), "a")?;
    ensure!(reload()?.is_empty());
    let (mut first, taken) = connect()?;
    ensure!(taken == "a" && one.accepted() == 1);
    // Another proxy is no business of a flow over the first.
    prepare(&(line("a", &one) + &line("b", &other)), "a, b")?;
    ensure!(reload()?.is_empty());
    speak(&mut first)?;
    // What is wrong changes nothing.
    prepare(&(line("a", &third) + "[[proxy]]\nname = \"c\"\n"), "a")?;
    ensure!(daemon.verb(&["reload"])?.code() != 0);
    prepare(&line("b", &other), "a")?;
    ensure!(daemon.verb(&["reload"])?.code() != 0);
    let https = line("a", &third).replace("http:", "https:") + "ca = \"nowhere.pem\"\n";
    prepare(&https, "a")?;
    let done = daemon.verb(&["reload"])?;
    ensure!(done.code() != 0 && done.stderr.contains("nowhere.pem"), "{done:?}");
    speak(&mut first)?;
    let (again, taken) = connect()?;
    ensure!(taken == "a" && one.accepted() == 2 && third.accepted() == 0);
    drop(again);
    // Another address: another proxy of that name.
    prepare(&(line("a", &third) + &line("b", &other)), "a, b")?;
    within(PATIENCE, "one flow is left", || Ok(daemon.json(&["flows"])?.len() == 1))?;
    ensure!(reload()? == ["a"]);
    ensure!(is_reset(first));
    let (mut second, taken) = connect()?;
    ensure!(taken == "a" && third.accepted() == 1);
    // A flow over `b` stays where `a` goes.
    prepare(&(line("a", &third) + &line("b", &other)), "b, a")?;
    reload()?;
    ensure!(is_reset(second), "a way out that comes before");
    (second, _) = connect()?;
    ensure!(way(&daemon, &second)? == "b" && other.accepted() == 1);
    prepare(&line("b", &other), "b")?;
    ensure!(reload()?.is_empty());
    speak(&mut second)?;
    ensure!(proxies(&daemon)?.len() == 1, "{:#?}", proxies(&daemon)?);
    prepare("", "direct")?;
    ensure!(reload()? == ["b"]);
    ensure!(is_reset(second));
    let (_direct, taken) = connect()?;
    ensure!(taken == "direct" && proxies(&daemon)? == Vec::<Value>::new());
    ensure!(daemon.json(&["status"])?[0]["proxies"] == json!([]));
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_proxy_is_found_by_its_name_at_whichever_address_it_answers() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let mut real = RealProxy::microsocks(&lab.server, PROXY, &[]);
    real.start()?;
    let both = [PROXY, FAR].map(|at| format!("--host-record=proxy.example,{at}"));
    let both = both.each_ref().map(String::as_str);
    let _dns = Dnsmasq::start(&lab.server, plan::NEAR4, &both)?;
    let policy = "policy 1\nroute via office\ndefault allow\n";
    let config = format!(
        "{}[dns]\nupstream = [\"{}\"]\n",
        office("socks5://proxy.example:1080"),
        plan::NEAR4
    );
    let mut daemon = Daemon::start(&lab.host, policy, &config)?;
    let usable = || Ok(proxies(&daemon)?[0]["usable"] == true);
    within(PATIENCE, "the name is answered", usable)?;
    let open = || -> Result<bool> {
        let Ok(stream) = connected(&lab, far.port())? else { return Ok(false) };
        Ok(way(&daemon, &stream)? == "office")
    };
    within(FAILOVER, "the address that answers", open)?;
    let told = &proxies(&daemon)?[0];
    ensure!(
        told["host"] == "proxy.example" && told["address"] == format!("{PROXY}:1080"),
        "{told:#}"
    );
    // Back after it was gone from all of its addresses.
    real.end()?;
    ensure!(connected(&lab, far.port())?.is_err());
    within(FAILOVER, "it is gone", || Ok(proxies(&daemon)?[0]["usable"] == false))?;
    real.start()?;
    within(RETURN, "it is back", open)?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_tunnel_takes_over_from_a_proxy_that_is_gone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let two = Two::new()?;
    let far = TcpServer::start(&two.end.netns, 0, echo)?;
    let mut real = RealProxy::microsocks(&two.end.netns, two.end.outer(false).ip(), &[]);
    real.start()?;
    let config = two.tunnel() + &office(&real.url);
    let policy = "policy 1\nroute via office, wg0\ndefault allow\n";
    let mut daemon = Daemon::start(&two.near.netns, policy, &config)?;
    let taken = || -> Result<Option<String>> {
        let stream = two.connect(far.port())?.ok();
        stream.map(|stream| way(&daemon, &stream)).transpose()
    };
    ensure!(taken()?.as_deref() == Some("office"));
    real.end()?;
    ensure!(taken()?.is_none());
    ensure!(taken()?.as_deref() == Some("wg0"));
    real.start()?;
    within(RETURN, "the proxy again", || Ok(taken()?.as_deref() == Some("office")))?;
    daemon.stop()?;
    Ok(())
}
