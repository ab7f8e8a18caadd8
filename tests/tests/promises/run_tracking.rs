//! `tunneld run` on a host that doesn't track connections, until it does.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, Netns, host_state, link, plan, track_connections};
use tests::{require_root, require_tunneld};

/// Connections from outside, one of each kind, that go on for a while.
struct Visitors {
    /// By which the daemon knows a connection for one from outside.
    _listeners: Vec<TcpListener>,
    inside: TcpStream,
    outside: TcpStream,
    /// To servers whose sockets have a mark of somebody else's.
    marked: Vec<(TcpStream, TcpStream)>,
    udp: Vec<(UdpSocket, UdpSocket, SocketAddr)>,
    /// Without ports: client and server.
    raw: Vec<(Socket, Socket)>,
}

/// Somebody else's.
const MARK: u32 = 5;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Visitors {
    /// `protocol` is theirs alone: whoever listens for one hears all that is sent.
    fn come(lab: &Lab, protocol: i32) -> Result<Self> {
        let limit = Some(PATIENCE);
        let mut listeners = Vec::new();
        let (inside, outside) = connection(lab, plan::HOST4, 0, &mut listeners)?;
        let mut marked = Vec::new();
        let mut raw = Vec::new();
        for (host, peer) in [(plan::HOST4, plan::NEAR4), (plan::HOST6, plan::NEAR6)] {
            marked.push(connection(lab, host, MARK, &mut listeners)?);
            let server = lab.host.run(|| raw_socket(host, peer, protocol))?;
            let client = lab.server.run(|| raw_socket(peer, host, protocol))?;
            raw.push((client, server));
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
        let mut visitors = Self { _listeners: listeners, inside, outside, marked, udp, raw };
        visitors.speak()?;
        Ok(visitors)
    }

    fn speak(&mut self) -> Result<()> {
        let plain = [(&mut self.inside, &mut self.outside)];
        let marked = self.marked.iter_mut().map(|(inside, outside)| (inside, outside));
        for (inside, outside) in plain.into_iter().chain(marked) {
            let case = format!("{}", inside.local_addr()?);
            let mut byte = [0];
            outside.write_all(b"?")?;
            inside.read_exact(&mut byte).with_context(|| format!("a byte to {case}"))?;
            inside.write_all(b"!")?;
            outside.read_exact(&mut byte).with_context(|| format!("a byte from {case}"))?;
        }
        for (number, (client, server)) in self.raw.iter().enumerate() {
            for (from, mut to) in [(client, server), (server, client)] {
                from.send(b"a word")?;
                let heard = to.read(&mut [0; 64]);
                heard.with_context(|| format!("a protocol without ports, {number}"))?;
            }
        }
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

/// Of a server whose socket has `mark`.
fn connection(
    lab: &Lab,
    host: IpAddr,
    mark: u32,
    listeners: &mut Vec<TcpListener>,
) -> Result<(TcpStream, TcpStream)> {
    let listener = lab.host.run(|| -> std::io::Result<TcpListener> {
        let at = SocketAddr::new(host, 0);
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_mark(mark)?;
        socket.bind(&at.into())?;
        socket.listen(8)?;
        Ok(socket.into())
    })?;
    let to = listener.local_addr()?;
    let outside = lab.server.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    let (inside, _) = listener.accept()?;
    for stream in [&inside, &outside] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    listeners.push(listener);
    Ok((inside, outside))
}

fn raw_socket(here: IpAddr, there: IpAddr, protocol: i32) -> std::io::Result<Socket> {
    let address = |ip| SocketAddr::new(ip, 0);
    let domain = Domain::for_address(address(here));
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.bind(&address(here).into())?;
    socket.connect(&address(there).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
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
    let mut old = Visitors::come(&lab, 251)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    ensure!(!is_tracking(&daemon)?, "nobody tracks");
    let mut new = Visitors::come(&lab, 252).context("untracked")?;
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
        old.speak().context("meanwhile")?;
        new.speak().context("meanwhile")?;
    }
    let mut third = Visitors::come(&lab, 253).context("tracked")?;
    for visitors in [&mut old, &mut new, &mut third] {
        visitors.speak().context("tracked")?;
    }
    ensure!(curl(&lab.host, good)? == PAGE, "captured as before");
    daemon.kill()?;
    // A socket without our mark has no route then.
    for visitors in [&mut old, &mut new] {
        visitors.udp.clear();
        visitors.raw.clear();
        visitors.marked.clear();
    }
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

/// Told to end when it is about to change over, or while it does, it doesn't complain of a table
/// that is gone because it has removed it.
#[test]
fn it_ends_while_it_begins() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    // It waits for 200 ms, whether more comes.
    for delay in [0, 60, 120, 150, 180, 200, 220, 260, 320] {
        track_connections(&lab.host)?;
        thread::sleep(Duration::from_millis(delay));
        daemon.running()?.signal(Signal::TERM)?;
        let left = daemon.ended()?;
        ensure!(
            left.code() == 0 && !left.stderr.contains("tracking-failed"),
            "after {delay} ms: {left:?}"
        );
        nft(&lab.host, "delete table inet stateful\n")?;
        let after = host_state::read(&lab.host)?;
        ensure!(before == after, "after {delay} ms: {before}\n{after}");
        daemon.run()?;
        ensure!(!is_tracking(&daemon)?, "after {delay} ms");
    }
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
