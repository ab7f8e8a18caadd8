//! `tunneld run` on a host that doesn't track connections, until it does.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, Netns, host_state, link, plan, track_connections};
use tests::{require_root, require_tunneld};

/// Connections from outside, one of each kind, that go on for a while.
struct Visitors {
    /// By which the daemon knows the connection for one from outside.
    _listener: TcpListener,
    inside: TcpStream,
    outside: TcpStream,
    udp: Vec<(UdpSocket, UdpSocket, SocketAddr)>,
}

impl Visitors {
    fn come(lab: &Lab) -> Result<Self> {
        let listener = lab.host.run(|| TcpListener::bind(SocketAddr::new(plan::HOST4, 0)))?;
        let to = listener.local_addr()?;
        let outside = lab.server.run(|| TcpStream::connect(to))?;
        let (inside, _) = listener.accept()?;
        let limit = Some(Duration::from_secs(5));
        for stream in [&inside, &outside] {
            stream.set_read_timeout(limit)?;
        }
        // Servers on wildcard sockets: nobody but us knows what address they were asked at.
        let mut udp = Vec::new();
        for (any, host) in [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), plan::HOST4),
            (Ipv6Addr::UNSPECIFIED.into(), plan::HOST6),
        ] {
            let server = lab.host.run(|| UdpSocket::bind((any, 0)))?;
            let client = lab.server.run(|| UdpSocket::bind((any, 0)))?;
            client.set_read_timeout(limit)?;
            server.set_read_timeout(limit)?;
            let to = SocketAddr::new(host, server.local_addr()?.port());
            udp.push((client, server, to));
        }
        let mut visitors = Self { _listener: listener, inside, outside, udp };
        visitors.speak()?;
        Ok(visitors)
    }

    fn speak(&mut self) -> Result<()> {
        let mut byte = [0];
        self.outside.write_all(b"?")?;
        self.inside.read_exact(&mut byte).context("a byte from outside")?;
        self.inside.write_all(b"!")?;
        self.outside.read_exact(&mut byte).context("a byte to the outside")?;
        for (client, server, to) in &self.udp {
            client.send_to(b"question", to)?;
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).context("a question")?;
            server.send_to(b"answer", from)?;
            let (_, from) = client.recv_from(&mut buffer).with_context(|| format!("from {to}"))?;
            ensure!(from == *to, "{from} answers for {to}");
        }
        Ok(())
    }
}

fn is_tracking(daemon: &Daemon) -> Result<bool> {
    let status = daemon.json(&["status"])?;
    status[0]["tracking"].as_bool().with_context(|| format!("{status:?}"))
}

/// Waits until the daemon says so.
fn until_tracking(daemon: &Daemon) -> Result<()> {
    let began = Instant::now();
    while !is_tracking(daemon)? {
        ensure!(began.elapsed() < Duration::from_secs(5), "not tracking");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn it_begins_when_somebody_else_does() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let good = SocketAddr::new(plan::GOOD4, server.port());
    let before = host_state::read(&lab.host)?;
    let mut old = Visitors::come(&lab)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    ensure!(!is_tracking(&daemon)?, "nobody tracks");
    let mut new = Visitors::come(&lab).context("untracked")?;
    // Rules that need no conntrack change nothing, and are no reason later on.
    nft(&lab.host, "table inet plain { chain c { accept; }\n }\n")?;
    thread::sleep(Duration::from_millis(600));
    ensure!(!is_tracking(&daemon)?, "a plain rule");
    for visitors in [&mut old, &mut new] {
        visitors.speak().context("still untracked")?;
    }
    track_connections(&lab.host)?;
    // All the while.
    while !is_tracking(&daemon)? {
        old.speak()?;
        new.speak()?;
    }
    let mut third = Visitors::come(&lab).context("tracked")?;
    for visitors in [&mut old, &mut new, &mut third] {
        visitors.speak().context("tracked")?;
    }
    ensure!(curl(&lab.host, good)? == PAGE, "captured as before");
    daemon.kill()?;
    // A UDP socket has no route then.
    old.udp.clear();
    new.udp.clear();
    old.speak().context("dead")?;
    new.speak().context("dead")?;
    daemon.run()?;
    ensure!(is_tracking(&daemon)?, "from the start");
    third.speak().context("after a restart")?;
    nft(&lab.host, "delete table inet stateful\ndelete table inet plain\n")?;
    daemon.stop()?;
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind: {before}\n{after}");

    // What it had itself is no reason to track again.
    daemon.run()?;
    ensure!(!is_tracking(&daemon)?, "nobody else tracks any more");
    daemon.stop()?;
    Ok(())
}

/// A container engine that is started while the daemon runs.
#[test]
fn it_begins_with_forwarding() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let container = Netns::new("container")?;
    let published = TcpServer::start(&container, 80, page)?;
    let policy = "policy 1\nallow from 172.30.0.2 id container\ndefault block\n";
    let mut daemon = Daemon::start(&lab.host, policy, "")?;
    ensure!(!is_tracking(&daemon)?, "nothing is forwarded");
    lab.host.ip("link add br0 type bridge\naddr add 172.30.0.1/24 dev br0\nlink set br0 up\n")?;
    link(&lab.host, "veth1", &container, "eth0", plan::MTU)?;
    lab.host.ip("link set veth1 master br0\n")?;
    container.ip("addr add 172.30.0.2/24 dev eth0\nroute add default via 172.30.0.1\n")?;
    lab.host.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    until_tracking(&daemon)?;
    nft(
        &lab.host,
        "table ip nat {
           chain pre {
             type nat hook prerouting priority dstnat;
             iifname != br0 tcp dport 8080 dnat to 172.30.0.2:80
           }
           chain post {
             type nat hook postrouting priority srcnat;
             ip saddr 172.30.0.0/24 oifname != br0 masquerade
           }
         }
         ",
    )?;
    let good = SocketAddr::new(plan::GOOD4, server.port());
    ensure!(curl(&container, good)? == PAGE, "the container's own address is allowed");
    ensure!(curl(&lab.server, SocketAddr::new(plan::HOST4, 8080))? == PAGE, "the published port");
    daemon.stop()?;
    drop(published);
    Ok(())
}

fn nft(netns: &Netns, text: &str) -> Result<()> {
    let done = netns.command("nft").args(["-f", "-"]).input(text).run()?;
    ensure!(done.code() == 0, "{text}: {done:?}");
    Ok(())
}

fn curl(netns: &Netns, to: SocketAddr) -> Result<String> {
    let done =
        netns.command("curl").args(["-sS", "--max-time", "5"]).args([format!("http://{to}/")]);
    Ok(done.run()?.stdout)
}
