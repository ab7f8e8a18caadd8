//! What a `protected` rule has allowed goes on through whatever a reload brings: another verdict,
//! another way out, another address of its tunnel. It ends by itself, by an order, or with the
//! tunnel that carries it.

use std::io::Read as _;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::proxy::{Manner, Proxy};
use tests::endpoints::tcp::echo;
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, plan};
use tests::tunnelled::Two;
use tests::ways::{connected, flow_from, office, speak, way};
use tests::{require_root, require_tunneld};

const FAR: std::net::IpAddr = plan::GOOD4_SECOND;

fn opened(connected: Result<TcpStream, i32>) -> Result<TcpStream> {
    connected.map_err(|errno| anyhow::anyhow!("errno {errno}"))
}

fn is_reset(mut stream: &TcpStream) -> bool {
    let error = stream.read(&mut [0; 8]).err().map(|error| error.kind());
    error == Some(std::io::ErrorKind::ConnectionReset)
}

/// What a reload of these files would cut, and then does: the clients of those flows.
fn reload(daemon: &Daemon, policy: &str) -> Result<Vec<String>> {
    daemon.files().write("policy.d/test.policy", policy)?;
    let mut all = Vec::new();
    for args in [&["reload", "--dry-run"][..], &["reload"]] {
        let told = daemon.json(args)?;
        let cut = told[0]["cut"].as_array().with_context(|| format!("{told:#?}"))?;
        let client = |cut: &Value| Some(cut["flow"]["client"].as_str()?.to_owned());
        all.push(cut.iter().filter_map(client).collect::<Vec<_>>());
    }
    ensure!(all[0] == all[1], "announced and done: {all:?}");
    Ok(all.remove(0))
}

#[test]
fn a_reload_cuts_no_protected_flow_and_protects_no_new_one() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let (tcp, other) =
        (TcpServer::start(&lab.server, 0, echo)?, TcpServer::start(&lab.server, 0, echo)?);
    let udp = UdpServer::echo(&lab.server, FAR, 0)?;
    let ports = format!("port {} {}", tcp.port(), udp.port());
    let calls = format!("policy 1\nallow to {FAR} {ports} protected id calls\ndefault allow\n");
    let mut daemon = Daemon::start(&lab.host, &calls, "")?;
    let connect = |port| connected(&lab.host, FAR, port);
    let (mut call, plain) = (opened(connect(tcp.port())?)?, opened(connect(other.port())?)?);
    let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect((FAR, udp.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let asks = || -> Result<()> {
        socket.send(b"x")?;
        socket.recv(&mut [0; 8]).context("no answer")?;
        Ok(())
    };
    asks()?;
    let told = |client| -> Result<(Value, Value, Value)> {
        let flow = flow_from(&daemon, client)?.context("it lives")?;
        Ok((flow["rule"].clone(), flow["verdict"].clone(), flow["generation"].clone()))
    };
    let first = (Value::from("calls"), Value::from("allow"), Value::from(1));
    ensure!(reload(&daemon, "policy 1\ndefault block\n")? == [plain.local_addr()?.to_string()]);
    ensure!(is_reset(&plain), "the control");
    for round in 0..2 {
        speak(&mut call).with_context(|| format!("round {round}"))?;
        asks()?;
        for client in [call.local_addr()?, socket.local_addr()?] {
            ensure!(told(client)? == first, "{:?}", told(client)?);
        }
        // New ones are the new policy's.
        ensure!(connect(tcp.port())?.err() == Some(libc::ECONNREFUSED));
        ensure!(reload(&daemon, "policy 1\nblock to any id none\ndefault drop\n")?.is_empty());
    }
    ensure!(reload(&daemon, "policy 1\nallow to any id all\ndefault block\n")?.is_empty());
    ensure!(told(call.local_addr()?)?.0 == "all");
    let flow = flow_from(&daemon, call.local_addr()?)?.context("it lives")?;
    let id = flow["id"].as_str().context("an id")?;
    ensure!(daemon.verb(&["flows", "--kill", id])?.code() == 0);
    ensure!(is_reset(&call), "an order ends it");
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_protected_flow_stays_with_its_way_out() -> Result<()> {
    require_root!();
    require_tunneld!();
    let two = Two::new()?;
    let far = TcpServer::start(&two.end.netns, 0, echo)?;
    let proxy = Proxy::start(&two.end.netns, 0, Manner::Honest(two.behind()))?;
    let by_proxy = office(&format!("http://{}:{}", two.end.outer(false).ip(), proxy.port()));
    let config = two.tunnel() + &by_proxy;
    let policy =
        |via: &str| format!("policy 1\nroute via {via}\nallow tcp protected\ndefault block\n");
    let mut daemon = Daemon::start(&two.near.netns, &policy("wg0"), &config)?;
    let mut tunnelled = opened(two.connect(far.port())?)?;
    ensure!(reload(&daemon, &policy("office"))?.is_empty());
    let mut proxied = opened(two.connect(far.port())?)?;
    let ways = |ours: [&TcpStream; 2]| -> Result<[String; 2]> {
        let [a, b] = ours.map(|stream| way(&daemon, stream));
        Ok([a?, b?])
    };
    // Another address of the tunnel, another proxy of that name, none at all.
    let other = config.replace("10.0.0.1/32", "10.0.0.7/32");
    ensure!(other != config);
    for (what, config, via) in [
        ("nothing", config.clone(), "office"),
        ("the tunnel's address", other.clone(), "office"),
        ("the proxy", other.replace("http:", "socks5:"), "office"),
        ("no proxy", two.tunnel().replace("10.0.0.1/32", "10.0.0.7/32"), "direct"),
    ] {
        daemon.configure(&config)?;
        ensure!(reload(&daemon, &policy(via))?.is_empty(), "{what}");
        for stream in [&mut tunnelled, &mut proxied] {
            speak(stream).context(what)?;
        }
        ensure!(ways([&tunnelled, &proxied])? == ["wg0", "office"], "{what}");
    }
    // Without the tunnel nothing is there to carry it.
    daemon.configure("")?;
    ensure!(reload(&daemon, &policy("direct"))? == [tunnelled.local_addr()?.to_string()]);
    ensure!(is_reset(&tunnelled));
    speak(&mut proxied)?;
    daemon.stop()?;
    Ok(())
}
