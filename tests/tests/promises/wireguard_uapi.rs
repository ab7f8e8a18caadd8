//! WireGuard's own interface: Debian's `wg` shows and changes a tunnel of a shard.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cli::wireguard::uapi_server::{DIRECTORY, Listener, serve};
use engine::policy::{NoEnvironment, Policy, Source};
use engine::{DeviceName, Engine, LinkId, Own, Services, Share, WayId};
use tests::endpoints::wireguard::{base64, hex};
use tests::lab::{Netns, Who};
use tests::{require_root, require_tunneld};
use tunnel::device::{Device as _, Tun, open_tun};
use tunnel::driver::request::{Answer, LinkOrder, Request};
use tunnel::driver::{Driver, Handle, Parts};
use tunnel::link::wireguard::{PrivateKey, PublicKey, Settings, State};
use tunnel::rings::Pool;
use tunnel::source::Routes;

/// A shard with one tunnel, and its socket.
struct Served {
    netns: Netns,
    name: String,
    handle: Handle,
    shard: JoinHandle<Result<()>>,
    runtime: tokio::runtime::Runtime,
    server: tokio::task::JoinHandle<()>,
    changes: Arc<AtomicUsize>,
    key: PrivateKey,
}

fn number() -> LinkId {
    LinkId::of(WayId::new(1).expect("a way"))
}

fn driver() -> Result<Driver<Tun>> {
    let sources =
        [Source { name: "all.policy".to_owned(), text: "policy 1\ndefault allow\n".to_owned() }];
    let (policy, _) =
        Policy::load(&sources, &NoEnvironment).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let device = Tun::adopt(open_tun("tunneld0", true, false)?)?;
    let config = engine::Config {
        mtu: 1500,
        offload: device.offload(),
        udp_offload: device.udp_offload(),
        flows: 100,
        half_open: 10,
        own: Own::Every,
        reports: false,
        services: Services::default(),
        share: Share::WHOLE,
        seed: 1,
    };
    Ok(Driver::new(Parts {
        engine: Engine::new(config, Arc::new(policy), engine::Instant::ZERO),
        device,
        routes: Routes::open()?,
        owners: None,
        rings: Pool::new(1 << 20),
        mark: None,
        service: None,
        shard: 0,
        reports: None,
    })?)
}

impl Served {
    fn start(number_of: u8) -> Result<Self> {
        let netns = Netns::new("uapi")?;
        let (started, handle) = channel();
        let shard = netns.spawn(move || -> Result<()> {
            let driver = driver()?;
            started.send(driver.handle())?;
            driver.run()?;
            Ok(())
        });
        let handle = handle.recv().context("the shard starts")?;
        let key = PrivateKey::generate().context("a key")?;
        let settings = Settings {
            name: DeviceName::new("wg0").context("a name")?,
            key: key.clone(),
            listen_port: None,
            fwmark: None,
            mark: None,
            mtu: 1420,
            peers: Vec::new(),
        };
        let settings = Box::new(settings);
        let link = number();
        ask(&handle, |answer| LinkOrder::Open { link, settings, answer })??;
        let name = format!("uapi{}x{number_of}", std::process::id() % 1_000_000);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build()?;
        let changes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&changes);
        let listener = runtime.block_on(async { Listener::bind(Path::new(DIRECTORY), &name) })?;
        let server = runtime.spawn(serve(listener, handle.clone(), link, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        Ok(Self { netns, name, handle, shard, runtime, server, changes, key })
    }

    fn socket(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{}.sock", self.name))
    }

    fn state(&self) -> Result<State> {
        let link = number();
        let state = ask(&self.handle, |answer| LinkOrder::State { link, answer })?;
        Ok(state.context("the tunnel")?.0)
    }

    /// What `wg` says. `input` is its standard input.
    fn wg(&self, args: &[&str], input: &str) -> Result<String> {
        let done = self.netns.command("wg").args(args).input(input).run()?;
        ensure!(done.code() == 0, "wg {args:?}: {done:?}");
        Ok(done.stdout)
    }

    fn raw(&self, text: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(text.as_bytes())?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn stop(self) -> Result<()> {
        let socket = self.socket();
        self.server.abort();
        // Its end drops the listener.
        let _ = self.runtime.block_on(self.server);
        ensure!(!socket.exists(), "the socket stays");
        self.handle.stop();
        self.shard.join().expect("the shard does not panic")
    }
}

fn ask<T: Send + 'static>(
    handle: &Handle,
    order: impl FnOnce(Answer<T>) -> LinkOrder,
) -> Result<T> {
    let (sender, receiver) = channel();
    let answer: Answer<T> = Box::new(move |answer| drop(sender.send(answer)));
    handle.ask(Request::Link(order(answer)))?;
    Ok(receiver.recv_timeout(Duration::from_secs(20))?)
}

#[test]
fn wg_shows_and_changes_a_tunnel() -> Result<()> {
    require_root!();
    require_tunneld!();
    let served = Served::start(1)?;
    let name = served.name.clone();
    let (first, second) =
        (PrivateKey::generate().context("")?, PrivateKey::generate().context("")?);
    let [first, second] = [first, second].map(|key| key.public());
    let [one, two] = [first, second].map(|key| base64(key.as_bytes()));
    let shared = base64(&[7; 32]);

    // set
    served.wg(
        &[
            "set",
            &name,
            "fwmark",
            "0x51",
            "peer",
            &one,
            "preshared-key",
            "/dev/stdin",
            "endpoint",
            "192.0.2.1:51820",
            "persistent-keepalive",
            "25",
            "allowed-ips",
            "10.0.0.0/24,fd00::/64",
            "peer",
            &two,
            "allowed-ips",
            "10.9.0.0/16",
        ],
        &format!("{shared}\n"),
    )?;
    let state = served.state()?;
    ensure!(state.fwmark == Some(0x51) && state.peers.len() == 2, "{state:?}");
    let peer = &state.peers[0];
    ensure!(peer.key == first && peer.keepalive == Some(25), "{peer:?}");
    ensure!(peer.preshared.as_ref().is_some_and(|key| *key.as_bytes() == [7; 32]));
    ensure!(peer.allowed.len() == 2 && peer.endpoint == Some("192.0.2.1:51820".parse()?));
    ensure!(served.changes.load(Ordering::Relaxed) == 1, "it is told of");

    // show, and all its parts
    let shown = served.wg(&["show", &name], "")?;
    for part in [
        &format!("interface: {name}"),
        &format!("public key: {}", base64(served.key.public().as_bytes())),
        &format!("listening port: {}", state.listen_port),
        "fwmark: 0x51",
        &format!("peer: {one}"),
        "preshared key: (hidden)",
        "endpoint: 192.0.2.1:51820",
        "allowed ips: 10.0.0.0/24, fd00::/64",
        "persistent keepalive: every 25 seconds",
        &format!("peer: {two}"),
    ] {
        ensure!(shown.contains(part), "no `{part}` in {shown}");
    }
    ensure!(served.wg(&["show", "interfaces"], "")?.contains(&name));
    let dumped = served.wg(&["show", &name, "dump"], "")?;
    ensure!(dumped.contains(&base64(served.key.as_bytes())), "the key of root's own");

    // showconf, and the same back: nothing changes; less of it, and the rest goes
    let conf = served.wg(&["showconf", &name], "")?;
    served.wg(&["syncconf", &name, "/dev/stdin"], &conf)?;
    let same = served.state()?;
    ensure!(same.peers.len() == 2 && same.listen_port == state.listen_port);
    ensure!(same.peers[0].preshared == state.peers[0].preshared);
    let at = conf.rfind("[Peer]").context("two peers")?;
    served.wg(&["syncconf", &name, "/dev/stdin"], &conf[..at])?;
    ensure!(served.state()?.peers.len() == 1);
    served.wg(&["setconf", &name, "/dev/stdin"], &conf)?;
    served.wg(&["addconf", &name, "/dev/stdin"], &conf[at..])?;
    ensure!(served.state()?.peers.len() == 2);

    // single changes
    served.wg(&["set", &name, "peer", &one, "remove"], "")?;
    served.wg(&["set", &name, "peer", &two, "allowed-ips", ""], "")?;
    let state = served.state()?;
    ensure!(state.peers.len() == 1 && state.peers[0].allowed.is_empty(), "{state:?}");
    let free = served.netns.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    let port = free.local_addr()?.port().to_string();
    let taken = served.netns.command("wg").args(["set", &name, "listen-port", &port]).run()?;
    ensure!(taken.code() != 0 && taken.stderr.contains("Address already in use"), "{taken:?}");
    drop(free);
    served.wg(&["set", &name, "listen-port", &port], "")?;
    let key = PrivateKey::generate().context("a key")?;
    served.wg(&["set", &name, "private-key", "/dev/stdin"], &base64(key.as_bytes()))?;
    let state = served.state()?;
    ensure!(state.key == key && state.listen_port.to_string() == port);
    let keyless =
        served.netns.command("wg").args(["set", &name, "private-key", "/dev/null"]).run()?;
    ensure!(keyless.code() != 0 && keyless.stderr.contains("not supported"), "{keyless:?}");
    served.stop()
}

#[test]
fn many_addresses_are_set_in_parts() -> Result<()> {
    require_root!();
    require_tunneld!();
    let served = Served::start(2)?;
    let key = PrivateKey::generate().context("a key")?.public();
    let mut text = format!("set=1\npublic_key={}\nreplace_allowed_ips=true\n", hex(key.as_bytes()));
    for at in 0..20_000_u32 {
        text += &format!("allowed_ip={}/32\n", std::net::Ipv4Addr::from(0x0a00_0000 + at));
    }
    // The shard goes on meanwhile.
    let asked = std::thread::scope(|scope| -> Result<Duration> {
        let setting = scope.spawn(|| served.raw(&format!("{text}\n")));
        let mut longest = Duration::ZERO;
        while !setting.is_finished() {
            let began = Instant::now();
            ask(&served.handle, |answer| LinkOrder::Health { answer })?;
            longest = longest.max(began.elapsed());
        }
        ensure!(setting.join().expect("no panic")? == "errno=0\n\n");
        Ok(longest)
    })?;
    println!("20,000 addresses: a turn took {asked:?} at most");
    ensure!(served.state()?.peers[0].allowed.len() == 20_000);
    ensure!(served.wg(&["show", &served.name, "allowed-ips"], "")?.len() > 200_000);
    served.stop()
}

#[test]
fn strangers_and_nonsense_are_refused() -> Result<()> {
    require_root!();
    require_tunneld!();
    let served = Served::start(3)?;
    let mode = |path: &Path| -> Result<u32> { Ok(path.metadata()?.permissions().mode() & 0o777) };
    ensure!(mode(&served.socket())? == 0o600);
    let wg = served.netns.command("wg").who(Who::Nobody).args(["show", &served.name]).run()?;
    ensure!(wg.code() != 0, "{wg:?}");
    let key = hex(PublicKey::from_bytes([9; 32]).as_bytes());
    for text in [
        "\n\n",
        "nonsense\n\n",
        "set=1\nlisten_port=99999\n\n",
        "set=1\nprivate_key=1\n\n",
        &format!("set=1\nlisten_port=0\npublic_key={key}\nallowed_ip=x\n\n"),
    ] {
        ensure!(served.raw(text)? == "errno=-22\n\n", "{text}");
    }
    ensure!(served.changes.load(Ordering::Relaxed) == 0, "half a request changes nothing");
    // Two requests on one connection, and silent ones that take no place for long.
    let two = served.raw("set=1\n\nget=1\n\n")?;
    ensure!(two.starts_with("errno=0\n\n"), "{two}");
    let silent: Vec<UnixStream> =
        (0..8).map(|_| UnixStream::connect(served.socket())).collect::<Result<_, _>>()?;
    let began = Instant::now();
    served.wg(&["show", &served.name], "")?;
    ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(silent);
    // Somebody answers there; what is left of a dead one is replaced; nothing else is.
    let directory = Path::new(DIRECTORY);
    let bind = |name: &str| served.runtime.block_on(async { Listener::bind(directory, name) });
    ensure!(bind(&served.name).is_err());
    let other = format!("{}o", served.name);
    let path = directory.join(format!("{other}.sock"));
    drop(std::os::unix::net::UnixListener::bind(&path)?);
    let listener = bind(&other)?;
    // Another file in its place is not its to remove.
    std::fs::remove_file(&path)?;
    std::fs::write(&path, "precious")?;
    drop(listener);
    ensure!(std::fs::read_to_string(&path)? == "precious" && bind(&other).is_err());
    std::fs::remove_file(&path)?;
    served.stop()
}
