//! What becomes of flows when their tunnel changes, or dies: a change reaches exactly what it is
//! about. And what each peer of a tunnel may carry. The far ends are Debian's wireguard-go.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::SockRef;
use tests::endpoints::wireguard::{End, everything, hex, interface};
use tests::endpoints::{TcpServer, UdpServer, tcp};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::uplinks::{FAR4, OTHER4, Talk, Uplinks, far, tunnels, within};
use tests::{require_root, require_tunneld};
use tunnel::link::wireguard::{PeerSettings, PrivateKey};

const SOON: Duration = Duration::from_secs(5);

/// The hosts behind the tunnels, each by its own.
fn each_by_its_own() -> String {
    format!("policy 1\nroute to {OTHER4} via wg1\nroute via wg0\ndefault allow\n")
}

/// Writes another configuration and reloads: the answer.
fn reload(daemon: &Daemon, config: &str) -> Result<Value> {
    daemon.configure(config)?;
    let done = daemon.verb(&["--json", "reload"])?;
    ensure!(done.code() == 0, "{done:?}");
    serde_json::from_str(&done.stdout).context("an object")
}

/// A connection to a server that answers, and which of both has it.
fn accepted(up: &Uplinks, servers: &[&TcpServer; 2], to: &str) -> Result<usize> {
    let before = servers.map(TcpServer::accepted);
    Talk::open(up.near(), to.parse()?, servers[0].port())?.speak()?;
    let after = servers.map(TcpServer::accepted);
    (0..2).find(|&at| after[at] > before[at]).context("it was accepted")
}

/// The far end knows the near one by this key and address alone.
fn introduce(up: &Uplinks, key: &PrivateKey, allowed: &str) -> Result<()> {
    let key = hex(key.public().as_bytes());
    up.first.theirs()?.set(&format!("replace_peers=true\npublic_key={key}\nallowed_ip={allowed}"))
}

#[test]
fn a_reload_changes_one_tunnel_and_leaves_the_flows_of_another() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut up = Uplinks::new()?;
    let server = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let _other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    // The second tunnel has what it has, whatever becomes of the first.
    let second = up.config(&["wg1"]);
    let first = |near: &End, far: &End, more: &str| -> String {
        let peer = everything(far.peer(Some(up.first.outer(false)), None));
        format!("{}{second}", interface("wg0", near, more, &[peer]))
    };
    let config = first(&up.near, &up.first.end, "");
    let mut daemon = Daemon::start(up.near(), &each_by_its_own(), &config)?;
    let mut kept = Talk::open(up.near(), far(false), 7007)?;
    let mut other = Talk::open(up.near(), OTHER4.parse()?, 7007)?;
    kept.speak()?;
    other.speak()?;
    let handshakes = || -> Result<[u64; 2]> {
        let told = tunnels(&daemon)?;
        let count = |at: usize| told[at]["handshakes"].as_u64().context("a count");
        Ok([count(0)?, count(1)?])
    };
    let before = handshakes()?;

    // Our key.
    let ours =
        End { netns: up.near().clone(), key: PrivateKey::generate().context("")?, ..up.near };
    introduce(&up, &ours.key, "10.0.0.0/24")?;
    let told = reload(&daemon, &first(&ours, &up.first.end, ""))?;
    ensure!(told["cut"] == json!([]), "{told:#}");
    kept.speak().context("our key")?;
    other.speak()?;
    let mut known = before;
    let mut new_session = |what: &str| -> Result<()> {
        let now = handshakes()?;
        ensure!(now[0] > known[0] && now[1] == known[1], "{what}: {known:?}, {now:?}");
        known = now;
        Ok(())
    };
    new_session("our key")?;

    // The peer's key: another peer.
    let key = PrivateKey::generate().context("")?;
    up.first.theirs()?.set(&format!("private_key={}", hex(key.as_bytes())))?;
    let theirs = End { netns: up.first.end.netns.clone(), key, ..up.first.end };
    let told = reload(&daemon, &first(&ours, &theirs, ""))?;
    ensure!(told["cut"] == json!([]), "{told:#}");
    kept.speak().context("another peer")?;
    other.speak()?;
    new_session("another peer")?;

    // The MTU: what is open goes on, and what is opened fits.
    let told = reload(&daemon, &first(&ours, &theirs, "mtu = 1300"))?;
    ensure!(told["cut"] == json!([]), "{told:#}");
    ensure!(tunnels(&daemon)?[0]["mtu"] == 1300 && tunnels(&daemon)?[1]["mtu"] == 1440);
    kept.speak().context("another MTU")?;
    other.speak()?;
    let fits = Talk::open(up.near(), far(false), 7007)?;
    let mss = SockRef::from(&fits.0).tcp_mss()?;
    ensure!(mss <= 1300 - 40, "{mss}");
    drop(fits);

    // Its address: its flows end, and new ones have the new address.
    introduce(&up, &ours.key, "10.0.0.9/32")?;
    let config = first(&ours, &theirs, "mtu = 1300").replacen("10.0.0.1/32", "10.0.0.9/32", 1);
    let told = reload(&daemon, &config)?;
    let cut = told["cut"].as_array().context("a list")?;
    let is_its =
        |cut: &Value| cut["flow"]["via"] == "wg0" && cut["flow"]["reason"] == "path-changed";
    ensure!(!cut.is_empty() && cut.iter().all(is_its), "{told:#}");
    let ended = kept.0.read(&mut [0; 8]).err().map(|error| error.kind());
    ensure!(ended == Some(ErrorKind::ConnectionReset), "{ended:?}");
    other.speak()?;
    Talk::open(up.near(), far(false), 7007)?.speak().context("another address")?;
    let now: IpAddr = "10.0.0.9".parse()?;
    within(SOON, "from the new address", || {
        Ok(server.sessions(0)?.iter().any(|session| session.peer.ip() == now))
    })?;
    ensure!(handshakes()?[1] == before[1], "the second tunnel had no part in it");
    up.first.theirs = None;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_new_tunnel_may_have_the_port_of_one_that_goes() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let servers =
        [&up.first, &up.second].map(|side| TcpServer::start(&side.end.netns, 7007, tcp::echo));
    let [one, other] = servers;
    let servers = [&one?, &other?];
    let with = |tunnel: &str, port: u16| {
        up.config_with(&[tunnel], &format!("listen_port = {port}"), false)
    };
    let policy = |via: &str| format!("policy 1\nroute via {via}\ndefault allow\n");
    let mut daemon = Daemon::start(up.near(), &policy("wg0"), &with("wg0", 51_830))?;
    ensure!(accepted(&up, &servers, FAR4)? == 0);
    // What can't be opened leaves everything as it is: a program has the port.
    let taken = up.near().run(|| UdpSocket::bind("0.0.0.0:51831"))?;
    let both = format!("{}{}", with("wg1", 51_830), with("wg0", 51_831).replace("wg0", "wg2"));
    daemon.files().write("policy.d/test.policy", &policy("wg1"))?;
    daemon.configure(&both)?;
    let refused = daemon.verb(&["reload"])?;
    ensure!(refused.code() == 5 && refused.stderr.contains("51831"), "{refused:?}");
    let told = tunnels(&daemon)?;
    ensure!(
        told.len() == 1 && told[0]["name"] == "wg0" && told[0]["listen_port"] == 51_830,
        "{told:#?}"
    );
    ensure!(accepted(&up, &servers, FAR4)? == 0, "as before");
    drop(taken);
    // And now in its place.
    reload(&daemon, &with("wg1", 51_830))?;
    let told = tunnels(&daemon)?;
    ensure!(
        told.len() == 1 && told[0]["name"] == "wg1" && told[0]["listen_port"] == 51_830,
        "{told:#?}"
    );
    ensure!(accepted(&up, &servers, FAR4)? == 1);
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_flow_whose_way_is_another_is_told_as_moved() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let _one = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let _other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    let config = up.config(&["wg0", "wg1"]);
    let through = |way: &str| format!("policy 1\nroute via {way}\ndefault allow\n");
    let mut daemon = Daemon::start(up.near(), &through("wg0"), &config)?;
    let mut talk = Talk::open(up.near(), far(false), 7007)?;
    talk.speak()?;
    let is_moved = |told: &Value, way: &str| {
        let flow = &told["moved"][0]["flow"];
        told["moved"].as_array().is_some_and(|moved| moved.len() == 1)
            && told["cut"].as_array().is_some_and(|cut| cut.len() == 1)
            && flow["id"] == told["cut"][0]["flow"]["id"]
            && flow["via"] == "wg0"
            && told["moved"][0]["via"] == *way
    };
    daemon.files().write("policy.d/test.policy", &through("wg1"))?;
    let directory = daemon.files().join("policy.d").display().to_string();
    for args in [["diff", &directory], ["reload", "--dry-run"]] {
        let told = daemon.json(&args)?;
        ensure!(is_moved(&told[0], "wg1"), "{args:?}: {told:#?}");
        talk.speak()?;
    }
    let told = daemon.json(&["reload"])?;
    ensure!(is_moved(&told[0], "wg1"), "{told:#?}");
    let ended = talk.0.read(&mut [0; 8]).err().map(|error| error.kind());
    ensure!(ended == Some(ErrorKind::ConnectionReset), "{ended:?}");
    // Blocked, it is cut and moves nowhere.
    Talk::open(up.near(), far(false), 7007)?.speak()?;
    let mut talk = Talk::open(up.near(), far(false), 7007)?;
    talk.speak()?;
    daemon.files().write("policy.d/test.policy", "policy 1\nroute via wg0\ndefault block\n")?;
    let told = daemon.json(&["reload"])?;
    let cut = told[0]["cut"].as_array().context("a list")?;
    ensure!(!cut.is_empty() && told[0]["moved"] == json!([]), "{told:#?}");
    daemon.stop()?;
    Ok(())
}

#[test]
fn the_more_specific_peer_carries_and_nobody_elses_address_comes_in() -> Result<()> {
    require_root!();
    require_tunneld!();
    let up = Uplinks::new()?;
    let one = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    let servers = [&one, &other];
    let first = everything(up.first.end.peer(Some(up.first.outer(false)), None));
    let second = PeerSettings {
        allowed: vec![format!("{FAR4}/32").parse()?],
        ..up.second.end.peer(Some(up.second.outer(false)), None)
    };
    let config = interface("wg0", &up.near, "", &[first, second]);
    let mut daemon = Daemon::start(up.near(), "policy 1\nroute via wg0\ndefault allow\n", &config)?;
    ensure!(accepted(&up, &servers, FAR4)? == 1, "the more specific");
    ensure!(accepted(&up, &servers, OTHER4)? == 0, "the other");
    // An answer that comes by another peer than the one who may send it is none.
    let udp = UdpServer::sink(&up.second.end.netns, far(false), 9000)?;
    let app = up.near().run(|| UdpSocket::bind("0.0.0.0:0"))?;
    app.set_read_timeout(Some(Duration::from_millis(300)))?;
    app.send_to(b"hello", (FAR4, 9000))?;
    within(SOON, "it came", || Ok(udp.received() == 1))?;
    let client = *udp.peers().first().context("a peer")?;
    let thief = up.first.end.netns.run(|| UdpSocket::bind((FAR4, 9000)))?;
    thief.send_to(b"stolen", client)?;
    within(SOON, "it is counted", || {
        Ok(tunnels(&daemon)?[0]["dropped"]["not-allowed"].as_u64() == Some(1))
    })?;
    ensure!(app.recv(&mut [0; 16]).is_err(), "it was let in");
    // The control: from the right one it is.
    drop(udp);
    let own = up.second.end.netns.run(|| UdpSocket::bind((FAR4, 9000)))?;
    own.send_to(b"own", client)?;
    ensure!(app.recv(&mut [0; 16])? == 3);
    daemon.stop()?;
    Ok(())
}

/// Bytes towards a host behind the tunnels, beside them.
fn to_far(frame: &Frame) -> bool {
    matches!(frame, Frame::Ip { destination, .. } if *destination == far(false))
}

#[test]
fn flows_of_a_dead_tunnel_end_by_their_own_patience_and_none_moves() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut up = Uplinks::new()?;
    let _one = TcpServer::start(&up.first.end.netns, 7007, tcp::echo)?;
    let other = TcpServer::start(&up.second.end.netns, 7007, tcp::echo)?;
    let both = "policy 1\nroute via wg0, wg1\ndefault allow\n";
    let mut daemon = Daemon::start(up.near(), both, &up.config(&["wg0", "wg1"]))?;
    let mut old = Talk::open(up.near(), far(false), 7007)?;
    old.speak()?;
    let patience = Duration::from_secs(3);
    SockRef::from(&old.0).set_tcp_user_timeout(Some(patience))?;
    old.0.set_read_timeout(Some(Duration::from_secs(30)))?;
    let beside = ["up2", "up3"].map(|device| Capture::start(up.near(), device, to_far));
    up.first.theirs = None;
    let began = Instant::now();
    old.0.write_all(b"hello?")?;
    // A new flow is wanted again and again, until one is carried.
    within(Duration::from_secs(7), "the second way out", || {
        let to = SocketAddr::new(far(false), 7007);
        let limit = Duration::from_millis(500);
        let opened = up.near().run(|| TcpStream::connect_timeout(&to, limit));
        Ok(opened.is_ok_and(|stream| Talk(stream).speak().is_ok()))
    })?;
    let ended = old.0.read(&mut [0; 8]).err().map(|error| error.kind());
    ensure!(ended == Some(ErrorKind::TimedOut), "{ended:?}");
    ensure!(began.elapsed() >= patience, "by its own clock: {:?}", began.elapsed());
    let ports: Vec<u16> = other.sessions(1)?.iter().map(|session| session.peer.port()).collect();
    ensure!(!ports.contains(&old.0.local_addr()?.port()), "it has moved: {ports:?}");

    // Without a way out a flow fails at once.
    let done = daemon.reload("policy 1\nroute via wg0\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    let began = Instant::now();
    let to = SocketAddr::new(far(false), 7007);
    let refused = up.near().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let refused = refused.err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::ENETUNREACH), "{refused:?}");
    ensure!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    for beside in beside {
        let beside = beside?.finish()?;
        ensure!(beside.matched == 0, "beside the tunnels: {beside:#?}");
    }
    daemon.stop()?;
    Ok(())
}
