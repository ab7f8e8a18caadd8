//! A name that nobody asked for: the first bytes of a connection tell it, before anything has
//! left, and only where the policy asks for names.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::both::kdig;
use tests::endpoints::dns_trust::{Authority, Valid};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::{DnsServer, TcpServer};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Outcome, Running, plan};
use tests::{require_root, require_tunneld};

const BLOCKS: &str = "block to *.bad.example id bad\ndefault allow";
const NAMES: [&str; 2] = ["good.example", "www.bad.example"];
/// How long the first bytes are waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// A web server that speaks TLS, and what trusts it.
struct Tls {
    _server: TcpServer,
    _socat: Running,
    files: Scratch,
    at: SocketAddr,
}

impl Tls {
    fn start(lab: &Lab, port: u16) -> Result<Self> {
        let authority = Authority::new("the lab")?;
        let files = Scratch::new()?;
        let signed = authority.sign(&NAMES, Valid::Now)?;
        let (certificate, key) = signed.write(&files, "server")?;
        files.write("ca.pem", &authority.pem())?;
        let server = TcpServer::start(&lab.server, 0, page)?;
        let at = SocketAddr::new(plan::GOOD4, port);
        let listen = format!(
            "OPENSSL-LISTEN:{port},bind={},cert={certificate},key={key},verify=0,fork,reuseaddr",
            at.ip()
        );
        let behind = format!("TCP:{}:{}", plan::GOOD4, server.port());
        let socat = lab.server.command("socat").args(["-d", "-d", &listen, &behind]);
        let mut socat = socat.spawn()?;
        let limit = Instant::now() + Duration::from_secs(10);
        while !socat.stderr().contains("listening on") {
            ensure!(!socat.ended()? && Instant::now() < limit, "socat: {}", socat.stderr());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _server: server, _socat: socat, files, at })
    }

    /// curl(1) of a name at the server's address: no resolver is asked.
    fn get(&self, lab: &Lab, policy: &str, name: &str) -> Result<Outcome> {
        let port = self.at.port();
        lab.exec("curl")
            .policy(policy)
            .args(["-sS", "--max-time", "10", "--cacert"])
            .arg(self.files.join("ca.pem").display())
            .args(["--connect-to", &format!("{name}:{port}:{}", self.at)])
            .arg(format!("https://{name}:{port}/"))
            .run()
    }
}

fn to(address: IpAddr, port: u16) -> impl Fn(&Frame) -> bool + Send + 'static {
    move |frame| {
        matches!(
            *frame,
            Frame::Ip { destination, ports: Some((_, to)), .. } if destination == address && to == port
        )
    }
}

fn told(flow: &Value, name: Option<&str>, from: Option<&str>, verdict: &str) -> Result<()> {
    ensure!(
        flow["peeked"] == true
            && flow["name"].as_str() == name
            && flow["name_from"].as_str() == from
            && flow["verdict"] == verdict,
        "{name:?} from {from:?}, {verdict} expected: {flow:#}"
    );
    Ok(())
}

#[test]
fn a_server_name_is_judged_before_a_byte_leaves() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let tls = Tls::start(&lab, 4430)?;
    let (address, port) = (tls.at.ip(), tls.at.port());

    // The control: what is allowed is seen to leave, to the same address.
    let control = Capture::start(&lab.server, "far0", to(address, port))?;
    let seen = tls.get(&lab, BLOCKS, "good.example")?.success()?;
    ensure!(seen.stdout() == PAGE, "{seen:#?}");
    control.wait_for_one()?;
    control.finish()?;
    let flow = seen.flow_to(address, port)?;
    told(&flow, Some("good.example"), Some("sni"), "allow")?;
    ensure!(flow["reason"] != Value::Null && flow["rule"] == "default", "{flow:#}");

    let blocked = Capture::start(&lab.server, "far0", to(address, port))?;
    let seen = tls.get(&lab, BLOCKS, "www.bad.example")?;
    // TLS could not be set up: the app takes itself for connected, and is reset.
    ensure!(seen.finished.code() == 35, "{seen:#?}");
    let flow = seen.flow_to(address, port)?;
    told(&flow, Some("www.bad.example"), Some("sni"), "block")?;
    ensure!(flow["rule"] == "bad" && flow["reason"] == "policy", "{flow:#}");
    let captured = blocked.finish()?;
    ensure!(captured.matched == 0, "frames left before the verdict: {captured:#?}");
    Ok(())
}

#[test]
fn a_host_is_judged_before_a_byte_leaves() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let port = server.port();
    for address in [plan::GOOD4, plan::GOOD6] {
        let get = |name: &str| {
            let at = SocketAddr::new(address, port);
            lab.exec("curl")
                .policy(BLOCKS)
                .args(["-sS", "--max-time", "10"])
                .args(["--connect-to", &format!("{name}:{port}:{at}")])
                .arg(format!("http://{name}:{port}/"))
                .run()
        };
        let seen = get("good.example")?.success()?;
        ensure!(seen.stdout() == PAGE, "{seen:#?}");
        told(&seen.flow_to(address, port)?, Some("good.example"), Some("host"), "allow")?;
        let capture = Capture::start(&lab.server, "far0", to(address, port))?;
        let seen = get("WWW.bad.example")?;
        ensure!(seen.finished.code() == 56, "a reset expected: {seen:#?}");
        told(&seen.flow_to(address, port)?, Some("www.bad.example"), Some("host"), "block")?;
        let captured = capture.finish()?;
        ensure!(captured.matched == 0, "frames left before the verdict: {captured:#?}");
    }
    Ok(())
}

/// Reads one line with bash alone, and says after how many milliseconds it was there.
const GREETED: &str = "before=$(date +%s%3N); exec 3<>/dev/tcp/$0/$1; read -r line <&3; \
                       echo $(($(date +%s%3N) - before)) $line";

#[test]
fn a_server_that_speaks_first_is_heard() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, |stream| {
        stream.write_all(b"220 mail.example ready\r\n")?;
        stream.read(&mut [0; 16]).map(|read| read as u64)
    })?;
    let greeted = |policy: &str| -> Result<(Outcome, Duration)> {
        let seen = lab
            .exec("bash")
            .policy(policy)
            .args(["-c", GREETED])
            .arg(plan::GOOD4)
            .arg(server.port())
            .run()?
            .success()?;
        let (millis, line) = seen.stdout().trim().split_once(' ').unwrap_or_default();
        ensure!(line == "220 mail.example ready", "{seen:#?}");
        let took = Duration::from_millis(millis.parse()?);
        Ok((seen, took))
    };
    let (seen, took) = greeted(BLOCKS)?;
    told(&seen.flow_to(plan::GOOD4, server.port())?, None, None, "allow")?;
    // Beside the wait there is the lab's round trip, and a shell on a busy machine.
    ensure!(took >= PATIENCE - Duration::from_millis(20), "greeted after {took:?}");
    ensure!(took < PATIENCE + Duration::from_millis(700), "greeted after {took:?}");
    // Without names in the policy nothing is waited for.
    let (seen, _) = greeted("block to 198.51.100.1\ndefault allow")?;
    let flow = seen.flow_to(plan::GOOD4, server.port())?;
    ensure!(flow["peeked"] == false, "{flow:#}");
    Ok(())
}

#[test]
fn without_names_in_the_policy_no_one_is_told_early() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let connect = |policy: &str| {
        lab.exec("probe")
            .policy(policy)
            .args(["connect", &plan::GOOD4.to_string(), &plan::CLOSED_PORT.to_string()])
            .run()
    };
    for (policy, why) in [
        ("default allow", "no names"),
        ("allow to good.example\ndefault allow", "no name changes the verdict"),
        ("block to *.bad.example port 443\ndefault allow", "another port's"),
    ] {
        let seen = connect(policy)?.success()?;
        ensure!(seen.json()?["errno"] == "ECONNREFUSED", "{why}: {seen:#?}");
        let flow = seen.flow_to(plan::GOOD4, plan::CLOSED_PORT)?;
        ensure!(flow["peeked"] == false && flow["reason"] == "refused", "{why}: {flow:#}");
    }
    // The one exception: the app was connected, and is reset.
    let seen = connect(BLOCKS)?.success()?;
    ensure!(seen.json()?["connected"] == true, "{seen:#?}");
    Ok(())
}

/// What `explain` says of an address is what becomes of a flow to it: one name, two that agree,
/// two that don't.
#[test]
fn explain_tells_of_names_that_disagree() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let (at, port) = (plan::GOOD4, server.port());
    let names = ["good.example", "fine.example", "www.bad.example"];
    let _dns = DnsServer::start(&lab.server, at, &names.map(|name| (name, at)))?;
    let config = format!("[dns]\nupstream = [\"{at}\"]\n");
    let daemon = Daemon::start(&lab.host, &format!("policy 1\n{BLOCKS}\n"), &config)?;
    let explain = || -> Result<Value> {
        let told = daemon.json(&["explain", "tcp", "any", &format!("{at}:{port}")])?;
        Ok(told.into_iter().next().unwrap_or_default())
    };
    let asked = |name: &str| -> Result<()> {
        let seen = kdig(&lab, name)?;
        ensure!(seen.contains(&at.to_string()), "{seen}");
        Ok(())
    };
    asked("good.example")?;
    asked("fine.example")?;
    let told = explain()?;
    ensure!(told["peek"] == false && told["name"] == "fine.example", "they agree: {told:#}");
    ensure!(told["names"] == json!([]) && told["verdict"] == "allow", "{told:#}");
    asked("www.bad.example")?;
    let told = explain()?;
    ensure!(told["peek"] == true && told["name"].is_null(), "{told:#}");
    ensure!(told["names"] == json!(names) && told["verdict"] == "allow", "{told:#}");
    let text = daemon.verb(&["explain", "tcp", "any", &format!("{at}:{port}")])?.stdout;
    for line in ["depends on the first bytes", "may be good.example", "may be www.bad.example"] {
        ensure!(text.contains(line), "no `{line}` in {text}");
    }
    // And so it is.
    for (name, code) in [("good.example", 0), ("www.bad.example", 56)] {
        let to = format!("::{at}:");
        let url = format!("http://{name}:{port}/");
        let args = ["-sS", "--max-time", "10", "--connect-to", &to, &url];
        let seen = lab.host.command("curl").args(args).run()?;
        ensure!(seen.code() == code, "{name}: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_name_that_was_asked_for_is_not_looked_for() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let _dns = DnsServer::start(
        &lab.server,
        plan::GOOD4,
        &[("good.example", plan::GOOD4), ("www.bad.example", plan::GOOD4)],
    )?;
    let own = "mount -t tmpfs lab /srv; cp -a /etc/. /srv/; mount --move /srv /etc; \
               rm -f /etc/resolv.conf /etc/nsswitch.conf; \
               echo 'hosts: files dns' > /etc/nsswitch.conf; \
               echo 'nameserver 203.0.113.1' > /etc/resolv.conf";
    let get = |script: &str| {
        let script = script.replace("PORT", &server.port().to_string());
        lab.exec("sh").prepare(own).policy(BLOCKS).args(["-c", &script]).run()
    };
    let seen = get("curl -4sS --max-time 10 http://good.example:PORT/")?.success()?;
    let flow = seen.flow_to(plan::GOOD4, server.port())?;
    ensure!(flow["peeked"] == false && flow["name_from"] == "dns", "{flow:#}");
    // Two names lead to the address, and which of them it is makes a difference.
    for (asked_last, wanted) in [("good", "www.bad"), ("www.bad", "good")] {
        let script = format!(
            "getent ahostsv4 {wanted}.example; getent ahostsv4 {asked_last}.example; \
             curl -sS --max-time 10 --connect-to ::203.0.113.1: http://{wanted}.example:PORT/"
        );
        let seen = get(&script)?;
        let flow = seen.flow_to(plan::GOOD4, server.port())?;
        let verdict = if wanted == "good" { "allow" } else { "block" };
        told(&flow, Some(&format!("{wanted}.example")), Some("host"), verdict)?;
        ensure!(seen.stdout().contains(PAGE) == (wanted == "good"), "{seen:#?}");
    }
    Ok(())
}
