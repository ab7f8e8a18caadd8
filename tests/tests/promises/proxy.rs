//! Proxies as ways out: a flow goes where its proxy connects it, and the app sees what became of
//! that as if it had gone there itself. microsocks(1), danted(8) and tinyproxy(8) on the other
//! side, and a proxy of ours that says what no honest one would.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::dns_trust::wants_certificates;
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::proxy::{Manner, Proxy};
use tests::endpoints::real_proxy::RealProxy;
use tests::endpoints::tcp::{echo, reset_after_one, sink, source};
use tests::endpoints::{Authority, Dnsmasq, TcpServer, Valid};
use tests::lab::capture::Capture;
use tests::lab::scratch::Scratch;
use tests::lab::{Exec, Lab, Outcome, plan};
use tests::ways::office;
use tests::{require_root, require_tunneld};

const MIB: u64 = 1 << 20;

/// Everything through the proxy `office`.
const ALL: &str = "route via office\ndefault allow";

/// Where the proxies listen.
const PROXY: IpAddr = plan::GOOD4;
/// Behind them.
const FAR: IpAddr = plan::GOOD4_SECOND;

fn asks<'a>(lab: &'a Lab, url: &str, words: &[&str]) -> Exec<'a> {
    lab.exec("probe").config_of_owner(&office(url)).policy(ALL).args(words)
}

/// The probe's answer about a connect, and the report of the flow.
fn connects(lab: &Lab, url: &str, to: IpAddr, port: u16) -> Result<(Value, Value)> {
    let (address, port_text) = (to.to_string(), port.to_string());
    let seen = asks(lab, url, &["connect", &address, &port_text, "20000"]).run()?.success()?;
    Ok((seen.json()?, seen.flow_to(to, port)?))
}

fn microsocks<'a>(lab: &'a Lab, login: &[&str]) -> Result<RealProxy<'a>> {
    RealProxy::microsocks(&lab.server, PROXY, login).started()
}

/// Each of the real ones.
fn real<'a>(lab: &'a Lab, files: &Scratch) -> Result<[RealProxy<'a>; 3]> {
    Ok([
        microsocks(lab, &[])?,
        RealProxy::danted(&lab.server, files, &[PROXY], "far1")?.started()?,
        RealProxy::tinyproxy(&lab.server, files, PROXY, "")?.started()?,
    ])
}

#[test]
fn real_proxies_carry_every_byte() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let proxies = real(&lab, &files)?;
    let web = TcpServer::start(&lab.server, 80, page)?;
    let (down, up) = (
        TcpServer::start(&lab.server, 0, source(32 * MIB))?,
        TcpServer::start(&lab.server, 0, sink)?,
    );
    for RealProxy { url, .. } in &proxies {
        let curl = lab.exec("curl").config_of_owner(&office(url)).policy(ALL);
        let curl = curl.args(["-sS", "--max-time", "20", &format!("http://{FAR}/")]);
        let seen = curl.run()?.success()?;
        ensure!(seen.stdout() == PAGE, "{url}: {seen:#?}");
        let flow = seen.flow_to(FAR, 80)?;
        ensure!(
            flow["via"] == "office"
                && flow["source"].as_str().is_some_and(|s| s.starts_with("192.0.2.1:"))
                && flow["egress"]["device"] == "up0"
                && flow["egress"]["address"] == "192.0.2.1",
            "{url}: the source is the address towards the proxy: {flow:#}"
        );
        let (far, port) = (FAR.to_string(), down.port().to_string());
        let seen = asks(&lab, url, &["download", &far, &port]).run()?.success()?;
        ensure!(seen.json()?["received"] == 32 * MIB, "{url}: {seen:#?}");
        // The end of one half microsocks and tinyproxy take for the end of both.
        if url.ends_with(":1081") {
            let (port, length) = (up.port().to_string(), (32 * MIB).to_string());
            let seen = asks(&lab, url, &["upload", &far, &port, &length]).run()?.success()?;
            ensure!(seen.json()?["counted"] == 32 * MIB, "{url}: {seen:#?}");
        }
    }
    ensure!(web.accepted() == proxies.len() as u64);
    Ok(())
}

#[test]
fn a_name_that_is_known_is_sent_and_each_half_ends_for_itself() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _dns =
        Dnsmasq::start(&lab.server, plan::NEAR4, &["--address=/www.corp.example/203.0.113.129"])?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    let _web = TcpServer::start(&lab.server, 80, page)?;
    let echoing = TcpServer::start(&lab.server, 0, echo)?;
    let up = TcpServer::start(&lab.server, 0, sink)?;
    let resetting = TcpServer::start(&lab.server, 0, reset_after_one)?;
    for scheme in ["socks5", "http"] {
        let url = format!("{scheme}://{PROXY}:{}", proxy.port());
        let config = format!("{}[dns]\nupstream = [\"{}\"]\n", office(&url), plan::NEAR4);
        let curl = |to: &str| {
            let curl = lab.exec("curl").config_of_owner(&config).policy(ALL);
            curl.args(["-sS", "--max-time", "20", to]).run()?.success()
        };
        let seen = curl("http://www.corp.example/")?;
        ensure!(seen.stdout() == PAGE, "{url}: {seen:#?}");
        let asked = proxy.asked();
        ensure!(asked.last().is_some_and(|a| a == "www.corp.example:80"), "{url}: {asked:?}");
        let seen = curl(&format!("http://[{}]/", plan::GOOD6_SECOND))?;
        ensure!(seen.stdout() == PAGE, "{url}: {seen:#?}");
        let asked = proxy.asked();
        let want = format!("[{}]:80", plan::GOOD6_SECOND);
        ensure!(asked.last() == Some(&want), "{url}: {asked:?}");

        let (far, port) = (FAR.to_string(), echoing.port().to_string());
        let length = (4 * MIB).to_string();
        let seen = asks(&lab, &url, &["half-close", &far, &port, &length]).run()?.success()?;
        ensure!(seen.json()?["received"] == 4 * MIB, "{url}: {seen:#?}");
        let port = up.port().to_string();
        let seen = asks(&lab, &url, &["upload", &far, &port, &length]).run()?.success()?;
        ensure!(seen.json()?["counted"] == 4 * MIB, "{url}: {seen:#?}");
        let port = resetting.port().to_string();
        let seen = asks(&lab, &url, &["await-reset", &far, &port]).run()?;
        // The proxy ends what was reset as it can: the app sees an end in any case.
        ensure!(seen.flow_to(FAR, resetting.port())?["state"] == "closed", "{url}: {seen:#?}");
    }
    Ok(())
}

#[test]
fn the_app_sees_what_the_proxy_says() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let socks = |reply: u8| [&[5, reply, 0, 1][..], &[0; 6]].concat();
    let http = |status: u16| format!("HTTP/1.1 {status} No\r\n\r\n").into_bytes();
    const NET: &str = "ENETUNREACH";
    const HOST: &str = "EHOSTUNREACH";
    const REFUSED: &str = "ECONNREFUSED";
    #[rustfmt::skip]
    let cases = [
        ("socks5", Manner::Answers(socks(1)), NET, "proxy"),
        ("socks5", Manner::Answers(socks(2)), HOST, "proxy"),
        ("socks5", Manner::Answers(socks(3)), NET, "unreachable"),
        ("socks5", Manner::Answers(socks(4)), HOST, "unreachable"),
        ("socks5", Manner::Answers(socks(5)), REFUSED, "refused"),
        ("socks5", Manner::Dribbles(socks(5)), REFUSED, "refused"),
        ("socks5", Manner::Answers(socks(6)), HOST, "unreachable"),
        ("socks5", Manner::Answers(socks(7)), NET, "proxy"),
        ("socks5", Manner::Answers(socks(8)), NET, "proxy"),
        ("socks5", Manner::Answers(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), NET, "proxy"),
        ("socks5", Manner::AnswersAndEnds(socks(0)[..9].to_vec()), NET, "proxy"),
        ("http", Manner::Answers(http(403)), HOST, "proxy"),
        ("http", Manner::Answers(http(407)), HOST, "proxy"),
        ("http", Manner::Answers(http(502)), REFUSED, "refused"),
        ("http", Manner::Dribbles(http(504)), HOST, "unreachable"),
        ("http", Manner::Answers(http(500)), NET, "proxy"),
        ("http", Manner::Answers(b"220 smtp.example ESMTP\r\n".to_vec()), NET, "proxy"),
        ("http", Manner::Answers(vec![b'H'; 100_000]), NET, "proxy"),
        ("http", Manner::AnswersAndEnds(b"HTTP/1.1 200 OK\r\n".to_vec()), NET, "proxy"),
    ];
    for (scheme, manner, errno, reason) in cases {
        let proxy = Proxy::start(&lab.server, 0, manner.clone())?;
        let url = format!("{scheme}://{PROXY}:{}", proxy.port());
        let (answer, flow) = connects(&lab, &url, FAR, 443)?;
        let what = format!("{scheme} {manner:.40?}");
        ensure!(answer["errno"] == errno, "{what}: {errno} expected: {answer}");
        ensure!(flow["reason"] == reason && flow["verdict"] == "allow", "{what}: {flow:#}");
    }
    // A real one, of what really is behind it.
    let _running = microsocks(&lab, &[])?;
    let url = format!("socks5://{PROXY}:1080");
    for (to, port, errno) in [
        (FAR, plan::CLOSED_PORT, REFUSED),
        (plan::NET_UNREACHABLE4, 80, NET),
        (plan::HOST_UNREACHABLE4, 80, HOST),
    ] {
        let (answer, flow) = connects(&lab, &url, to, port)?;
        ensure!(answer["errno"] == errno, "{to}: {errno} expected: {answer} {flow:#}");
    }
    Ok(())
}

#[test]
fn a_proxy_that_is_not_there_or_silent_fails_the_flow_and_nothing_goes_another_way() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let silent = Proxy::start(&lab.server, 0, Manner::Silent)?;
    for (url, soon) in [
        (format!("socks5://{PROXY}:{}", plan::CLOSED_PORT), true),
        (format!("http://{}:80", plan::NET_UNREACHABLE4), true),
        (format!("socks5://{PROXY}:{}", silent.port()), false),
    ] {
        let (answer, flow) = connects(&lab, &url, FAR, far.port())?;
        let micros = answer["micros"].as_u64().context("a time")?;
        ensure!(answer["errno"] == "ENETUNREACH" && flow["reason"] == "proxy", "{url}: {flow:#}");
        ensure!(if soon { micros < 2_000_000 } else { micros > 9_000_000 }, "{url}: {answer}");
    }
    // One that no route leads to is not taken.
    let (answer, flow) = connects(&lab, &format!("http://{}", plan::UNROUTED4), FAR, far.port())?;
    ensure!(answer["errno"] == "ENETUNREACH" && flow["reason"] == "no-way-out", "{flow:#}");
    // The proxy would have to connect to itself.
    let (port, before) = (silent.port(), silent.accepted());
    let (answer, flow) = connects(&lab, &format!("socks5://{PROXY}:{port}"), PROXY, port)?;
    ensure!(answer["errno"] == "ENETUNREACH" && flow["reason"] == "loop", "{flow:#}");
    ensure!(silent.accepted() == before && far.accepted() == 0, "nothing has left");
    // Nothing else than TCP, and nothing beside the proxy.
    let url = format!("http://{PROXY}:{}", silent.port());
    let seen = asks(&lab, &url, &["udp", &FAR.to_string(), "7"]).run()?.success()?;
    ensure!(seen.flow_to(FAR, 7)?["reason"] == "unsupported", "{seen:#?}");
    Ok(())
}

#[test]
fn rules_about_source_and_egress_block_before_the_proxy_is_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let proxy = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    // On the link itself: even the question where the address is would be seen.
    let url = format!("socks5://{}:{}", plan::NEAR4, proxy.port());
    let run = |rule: &str| -> Result<Outcome> {
        let exec = lab.exec("probe").config_of_owner(&office(&url));
        exec.policy(&format!("route via office\n{rule}\ndefault allow"))
            .args(["connect", &FAR.to_string(), &far.port().to_string()])
            .run()?
            .success()
    };
    let capture = || Capture::start(&lab.server, "far0", |frame| frame.seeks(plan::NEAR4));
    for (rule, errno) in [
        ("block from 192.0.2.1", Some("ECONNREFUSED")),
        ("block egress up0", Some("ECONNREFUSED")),
        ("block via office", Some("ECONNREFUSED")),
        // The control.
        ("block egress up1", None),
    ] {
        lab.host.ip("neighbour flush all\n")?;
        let seen = capture()?;
        let outcome = run(rule)?;
        let answer = outcome.json()?;
        ensure!(answer["errno"].as_str() == errno, "{rule}: {answer}");
        if errno.is_none() {
            seen.wait_for_one()?;
            continue;
        }
        let frames = seen.finish()?;
        ensure!(frames.matched == 0, "{rule}: frames left before the verdict: {frames:#?}");
        let flow = outcome.flow_to(FAR, far.port())?;
        ensure!(
            flow["source"] == "192.0.2.1" && flow["via"] == "office" && flow["verdict"] == "block",
            "{rule}: {flow:#}"
        );
    }
    ensure!(proxy.accepted() == 1);
    Ok(())
}

#[test]
fn a_proxy_over_tls_is_who_its_certificate_says_and_takes_ours() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
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
    let behind = Proxy::start(&lab.server, 0, Manner::Honest(FAR))?;
    let (down, up) = (
        TcpServer::start(&lab.server, 0, source(8 * MIB))?,
        TcpServer::start(&lab.server, 0, sink)?,
    );
    let at = SocketAddr::new(PROXY, 8443);
    let signed = ours.sign(&["proxy.corp.example", "203.0.113.1"], Valid::Now)?;
    let (plain, host) = (SocketAddr::new(PROXY, behind.port()), PROXY.to_string());
    let _tls = wants_certificates(&lab.server, at, plain, &signed, &ours)?;
    let identity = format!("identity = \"{client}\"\n");
    let ask = |name: &str, ca: &str, identity: &str, words: &[&str]| {
        let config = format!("{}ca = \"{ca}\"\n{identity}", office(&format!("https://{at}{name}")));
        lab.exec("probe").config_of_owner(&config).policy(ALL).args(words).run()?.success()
    };
    let (far, port) = (FAR.to_string(), down.port().to_string());
    for (name, ca, identity, errno) in [
        ("#proxy.corp.example", &ca, &*identity, None),
        // The address itself is in the certificate.
        ("", &ca, &*identity, None),
        ("#other.corp.example", &ca, &*identity, Some("ENETUNREACH")),
        ("#proxy.corp.example", &other, &*identity, Some("ENETUNREACH")),
        ("#proxy.corp.example", &ca, "", Some("ENETUNREACH")),
    ] {
        let before = behind.asked().len();
        let words = ["connect", &far, &port, "20000"];
        let seen = ask(name, ca, identity, &words)?;
        let what = format!("{host} {name} {ca} {identity}");
        match errno {
            None => ensure!(seen.json()?["connected"] == true, "{what}: {seen:#?}"),
            Some(_) => {
                ensure!(seen.json()?["connected"] == false, "{what}: {seen:#?}");
                ensure!(seen.flow_to(FAR, down.port())?["reason"] == "proxy", "{what}: {seen:#?}");
                ensure!(seen.finished.stderr.contains("proxy-failed"), "{what}: {seen:#?}");
                ensure!(behind.asked().len() == before, "{what}: a request left: {seen:#?}");
            }
        }
    }
    let seen = ask("", &ca, &identity, &["download", &far, &port])?;
    ensure!(seen.json()?["received"] == 8 * MIB, "{seen:#?}");
    let (port, length) = (up.port().to_string(), (8 * MIB).to_string());
    let seen = ask("", &ca, &identity, &["upload", &far, &port, &length])?;
    ensure!(seen.json()?["counted"] == 8 * MIB, "{seen:#?}");
    Ok(())
}

#[test]
fn a_login_is_taken_or_not_and_never_told() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let files = Scratch::new()?;
    let far = TcpServer::start(&lab.server, 0, echo)?;
    let _socks = microsocks(&lab, &["-u", "alice", "-P", "hunter2@"])?;
    let login = "BasicAuth alice hunter2\n";
    let _http = RealProxy::tinyproxy(&lab.server, &files, PROXY, login)?.started()?;
    for (scheme, port, right) in
        [("socks5", 1080, "alice:hunter2%40@"), ("http", 1082, "alice:hunter2@")]
    {
        for (login, errno) in
            [(right, None), ("alice:hunter3@", Some("EHOSTUNREACH")), ("", Some("EHOSTUNREACH"))]
        {
            let url = format!("{scheme}://{login}{PROXY}:{port}");
            let (answer, flow) = connects(&lab, &url, FAR, far.port())?;
            ensure!(answer["errno"].as_str() == errno, "{url}: {answer}");
            ensure!(errno.is_none() || flow["reason"] == "proxy", "{url}: {flow:#}");
            ensure!(!flow.to_string().contains("hunter"), "{url}: {flow:#}");
        }
    }
    // A file that others may read, and one with a fault.
    let config = office(&format!("socks5://alice:hunter2@{PROXY}:1080"));
    let seen = lab.exec("true").config(&config).run()?.code(125)?;
    let stderr = &seen.finished.stderr;
    ensure!(stderr.contains("chmod 600"), "{stderr}");
    ensure!(!stderr.contains("hunter"), "{stderr}");
    let config = office(&format!("socks6://alice:hunter2@{PROXY}:1080"));
    let seen = lab.exec("true").config_of_owner(&config).run()?.code(125)?;
    ensure!(!seen.finished.stderr.contains("hunter"), "{seen:#?}");
    Ok(())
}
