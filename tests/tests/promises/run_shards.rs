//! Several shards behind one device: flows stay with their shard, and whatever is asked of the
//! daemon is asked of all.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::{TcpServer, UdpServer, tcp};
use tests::lab::daemon::Daemon;
use tests::lab::exec::probe as built_probe;
use tests::lab::{Lab, plan};
use tests::uplinks::{Talk, Uplinks, far};
use tests::{require_root, require_tunneld};

/// Of each kind.
const FLOWS: usize = 200;

#[test]
fn two_queues_carry_one_host() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let policy = |tcp: &str| {
        format!("policy 1\n{tcp} tcp id streams\nallow udp id datagrams\ndefault block\n")
    };
    let daemon = Daemon::start(&lab.host, &policy("allow"), "[device]\nqueues = 2\n")?;

    let to = SocketAddr::new(plan::GOOD4, server.port());
    let mut streams = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..FLOWS {
        let stream = lab.host.run(|| TcpStream::connect(to))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        streams.push(stream);
        let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect((plan::GOOD4, udp.port()))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        sockets.push(socket);
    }
    // Twice, so that an answer by the wrong queue would have moved flows by then.
    for _ in 0..2 {
        for (number, (stream, socket)) in streams.iter_mut().zip(&sockets).enumerate() {
            stream.write_all(b"t")?;
            stream.read_exact(&mut [0]).with_context(|| format!("TCP flow {number}"))?;
            socket.send(b"u")?;
            socket.recv(&mut [0; 8]).with_context(|| format!("UDP flow {number}"))?;
        }
    }
    let flows = daemon.json(&["flows"])?;
    let ids: BTreeSet<&str> = flows.iter().filter_map(|flow| flow["id"].as_str()).collect();
    ensure!(ids.len() == 2 * FLOWS, "{} flows are listed", ids.len());
    for shard in ["0-", "1-"] {
        let count = ids.iter().filter(|id| id.starts_with(shard)).count();
        ensure!(count > FLOWS / 4, "{count} flows on shard {shard}");
    }
    let id = ids.iter().find(|id| id.starts_with("1-")).context("a flow of shard 1")?;
    let killed = daemon.verb(&["flows", "--kill", id])?;
    ensure!(killed.code() == 0, "{killed:?}");

    let done = daemon.reload(&policy("block"))?;
    ensure!(done.code() == 0, "{done:?}");
    for stream in &mut streams {
        ensure!(stream.read(&mut [0]).is_err(), "a blocked flow of some shard lives");
    }
    let left = daemon.json(&["flows"])?;
    ensure!(left.iter().all(|flow| flow["protocol"] == "udp" && flow["generation"] == 2));
    Ok(())
}

/// The tunnel is the first shard's; the flows are everybody's.
#[test]
fn a_tunnel_carries_the_flows_of_all_shards() -> Result<()> {
    const SHARDS: usize = 3;
    const EACH: usize = 40;
    const LENGTH: u64 = 4 << 20;
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let there = &up.first.end.netns;
    let server = TcpServer::start(there, 0, tcp::echo)?;
    let (down, sink) =
        (TcpServer::start(there, 0, tcp::source(LENGTH))?, TcpServer::start(there, 0, tcp::sink)?);
    let config = up.config(&["wg0"]);
    let theirs =
        config.replace("\"0.0.0.0/0\", \"::/0\"", "\"203.0.113.0/24\", \"2001:db8:f::/64\"");
    ensure!(theirs != config, "{config}");
    let config = format!("{theirs}\n[device]\nqueues = {SHARDS}\n");
    let policy = |tcp: &str| format!("policy 1\nroute via wg0\n{tcp} tcp\ndefault allow\n");
    let mut daemon = Daemon::start(up.near(), &policy("allow"), &config)?;

    let mut talks = Vec::new();
    let mut sockets = Vec::new();
    for v6 in [false, true] {
        let udp = UdpServer::echo(there, far(v6), 0)?;
        for _ in 0..EACH {
            talks.push(Talk::open(up.near(), far(v6), server.port())?);
            let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
            let socket = up.near().run(|| UdpSocket::bind(any))?;
            socket.connect((far(v6), udp.port()))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            sockets.push(socket);
        }
        for _ in 0..2 {
            talks.iter_mut().try_for_each(Talk::speak)?;
            for (number, socket) in sockets.iter().enumerate().skip(sockets.len() - EACH) {
                // Also in pieces, which only the first shard puts together.
                for length in [1, 4000] {
                    socket.send(&vec![7; length])?;
                    let mut answer = vec![0; length + 1];
                    let got = socket.recv(&mut answer).with_context(|| format!("UDP {number}"))?;
                    ensure!(got == length && answer[..got].iter().all(|byte| *byte == 7));
                }
            }
        }
        let to = far(v6).to_string();
        for _ in 0..2 * SHARDS {
            // One each: after an answer ping waits no longer than two more would have taken.
            for _ in 0..3 {
                let done =
                    up.near().command("ping").args(["-n", "-c", "1", "-W", "3", &to]).run()?;
                ensure!(done.stdout.contains(" 0% packet loss"), "{done:?}");
            }
            let (from, into) = (down.port().to_string(), sink.port().to_string());
            let length = LENGTH.to_string();
            for words in [&["download", &to, &from][..], &["upload", &to, &into, &length]] {
                let done = up.near().command(built_probe()).args(words).run()?;
                let seen: Value = serde_json::from_str(&done.stdout).context("an object")?;
                let moved = if words[0] == "upload" { &seen["counted"] } else { &seen["received"] };
                ensure!(*moved == LENGTH, "{words:?}: {seen}");
            }
        }
    }
    let flows = daemon.json(&["flows", "--match", "tcp"])?;
    for shard in 0..SHARDS {
        let of = |flow: &&Value| {
            flow["id"].as_str().is_some_and(|id| id.starts_with(&format!("{shard}-")))
        };
        let theirs: Vec<&Value> = flows.iter().filter(of).collect();
        ensure!(theirs.len() > EACH / SHARDS / 4, "{} flows on shard {shard}", theirs.len());
        // What comes back says by its port whose it is.
        for flow in theirs {
            let port = flow["source"].as_str().and_then(|source| source.rsplit(':').next());
            let port: usize = port.and_then(|port| port.parse().ok()).context("a port")?;
            ensure!(port % SHARDS == shard, "{flow:#}");
        }
    }
    // Nobody at the other end takes this: the app is told at once, on whatever shard it is.
    for _ in 0..4 * SHARDS {
        let began = Instant::now();
        let refused = up.near().run(|| TcpStream::connect("100.64.0.1:80")).err();
        let errno = refused.and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::EHOSTUNREACH), "{errno:?}");
        ensure!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    let done = daemon.reload(&policy("block"))?;
    ensure!(done.code() == 0, "{done:?}");
    ensure!(talks.iter_mut().all(|talk| talk.speak().is_err()), "a blocked flow lives");
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["panics"] == 0, "{:#}", status[0]);
    daemon.stop()?;
    Ok(())
}

/// A server of the host's that is bound to no address answers from the one that it was asked at.
#[test]
fn a_udp_server_of_the_host_answers_from_the_address_it_was_asked_at() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let any: IpAddr = "0.0.0.0".parse()?;
    let server = UdpServer::echo(&lab.host, any, 0)?;
    let _daemon = Daemon::start(&lab.host, "policy 1\ndefault block\n", "")?;
    let client = lab.server.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    client.set_read_timeout(Some(Duration::from_secs(3)))?;
    client.connect((plan::HOST4, server.port()))?;
    for _ in 0..3 {
        client.send(b"asked")?;
        let length = client.recv(&mut [0; 16]).context("the answer")?;
        ensure!(length == 5);
    }
    Ok(())
}

/// An app that has bound itself to an address of the host leaves with that, and `from` sees it.
#[test]
fn an_address_that_an_app_chose_is_its_source() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    lab.host.ip("address add 192.0.2.77/25 dev up0\n")?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let policy = "policy 1\nallow from 192.0.2.77 id chosen\ndefault block\n";
    let daemon = Daemon::start(&lab.host, policy, "")?;
    let to = format!("http://{}:{}/", plan::GOOD4, server.port());
    let fetch = |address: &str| {
        lab.host
            .command("curl")
            .args(["-sS", "--http0.9", "--max-time", "2", "--interface", address, &to])
            .run()
    };
    // The echo server sends the request back.
    let chosen = fetch("192.0.2.77")?;
    ensure!(chosen.stdout.contains("GET /"), "{chosen:?}");
    ensure!(server.sessions(1)?[0].peer.ip().to_string() == "192.0.2.77");
    let other = fetch("192.0.2.1")?;
    ensure!(other.code() == 7, "{other:?}");
    // One that came after the start counts as this host's as well.
    lab.host.ip("address add 192.0.2.78/25 dev up0\n")?;
    daemon.reload("policy 1\nallow from 192.0.2.78 id later\ndefault block\n")?;
    let later = fetch("192.0.2.78")?;
    ensure!(later.stdout.contains("GET /"), "{later:?}");
    let flows = daemon.json(&["flows"])?;
    ensure!(flows.iter().all(|flow| flow["owner"]["uid"] == 0), "{flows:?}");
    Ok(())
}
