//! Others who do WireGuard in user space, as server and as client: boringtun-cli and gotatun.
//! `tests/run --long` installs them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::tcp::{sink, source};
use tests::endpoints::wireguard::{End, WireguardGo, ends, everything, interface};
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::daemon::Daemon;
use tests::lab::{Netns, skipped};
use tests::uplinks::{FAR4, FAR6, tunnels, within};
use tests::{require_root, require_tunneld};
use tunnel::link::wireguard::{PeerSettings, PresharedKey};

const MIB: u64 = 1 << 20;
const OUR_PORT: u16 = 51_830;

/// Where a peer was installed.
fn installed(name: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = workspace.join("target/peers/bin").join(name);
    path.exists().then_some(path)
}

/// Who begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Begins {
    We,
    They,
}

/// Both IP versions inside, all three protocols, and the same again after their new session.
fn understand_each_other(
    program: &Path,
    args: &[&str],
    begins: Begins,
    outer_v6: bool,
) -> Result<()> {
    let (near, far) = ends()?;
    far.netns.ip(&format!("addr add {FAR4}/32 dev lo\naddr add {FAR6}/128 dev lo nodad\n"))?;
    let shared = PresharedKey::from_bytes(&[9; 32]);
    let (to_them, to_us) = match begins {
        Begins::We => (Some(far.outer(outer_v6)), None),
        Begins::They => (None, Some(SocketAddr::new(near.outer(outer_v6).ip(), OUR_PORT))),
    };
    // Who is to begin knows where we are, and is never silent.
    let us = PeerSettings { keepalive: to_us.map(|_| 1), ..near.peer(to_us, shared.clone()) };
    let us = [us];
    let start = || WireguardGo::start_other(&far, &us, program.as_os_str(), args);
    let theirs = start()?;
    let peer = everything(far.peer(to_them, shared));
    let config = interface("wg0", &near, &format!("listen_port = {OUR_PORT}"), &[peer]);
    let mut daemon =
        Daemon::start(&near.netns, "policy 1\nroute via wg0\ndefault allow\n", &config)?;
    if begins == Begins::They {
        within(Duration::from_secs(10), "they begin", || Ok(handshakes(&daemon)? > 0))?;
    }
    carries(&near, &far.netns)?;
    let first = handshakes(&daemon)?;
    ensure!(first >= 1, "{:#?}", tunnels(&daemon)?);
    // A new process of theirs: whoever began before begins again.
    drop(theirs);
    let _theirs = start()?;
    within(Duration::from_secs(30), "a new session", || {
        let ping = near.netns.command("ping").args(["-n", "-c", "1", "-W", "1", FAR4]).run()?;
        Ok(ping.code() == 0 && handshakes(&daemon)? > first)
    })?;
    carries(&near, &far.netns)?;
    let told = tunnels(&daemon)?;
    for cause in ["forged", "malformed", "inner-malformed", "not-allowed", "replayed"] {
        ensure!(told[0]["dropped"][cause] == 0, "{cause}: {told:#?}");
    }
    daemon.stop()?;
    Ok(())
}

fn handshakes(daemon: &Daemon) -> Result<u64> {
    tunnels(daemon)?[0]["handshakes"].as_u64().context("a count")
}

fn carries(near: &End, far: &Netns) -> Result<()> {
    let probe = |words: &[&str]| -> Result<Value> {
        let done = near.netns.command(tests::lab::exec::probe()).args(words).run()?;
        ensure!(done.code() == 0, "{words:?}: {done:?}");
        Ok(serde_json::from_str(&done.stdout)?)
    };
    for to in [FAR4, FAR6] {
        let (down, up) =
            (TcpServer::start(far, 0, source(4 * MIB))?, TcpServer::start(far, 0, sink)?);
        let seen = probe(&["download", to, &down.port().to_string()])?;
        ensure!(seen["received"] == 4 * MIB, "{to}: {seen:#}");
        let length = (4 * MIB).to_string();
        let seen = probe(&["upload", to, &up.port().to_string(), &length])?;
        ensure!(seen["counted"] == 4 * MIB, "{to}: {seen:#}");
        let udp = UdpServer::echo(far, to.parse()?, 0)?;
        for size in ["0", "1", "15", "16", "1372", "4000"] {
            let seen = probe(&["udp-echo", to, &udp.port().to_string(), "20", size])?;
            ensure!(seen["answered"] == 20 && seen["wrong"] == 0, "{to}, {size}: {seen:#}");
        }
        near.ping(to.parse()?, &["-c", "200", "-i", "0.002", "-s", "1300"])?;
    }
    Ok(())
}

fn all(name: &str, args: &[&str]) -> Result<()> {
    let Some(program) = installed(name) else {
        skipped(name, "it is not installed: tests/run --long does");
        return Ok(());
    };
    for (begins, outer_v6) in [(Begins::We, false), (Begins::They, true)] {
        understand_each_other(&program, args, begins, outer_v6)
            .with_context(|| format!("{name}, {begins:?} begin, outer v6 {outer_v6}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "talks to boringtun-cli, which tests/run --long installs"]
fn boringtun_and_we_understand_each_other() -> Result<()> {
    require_root!();
    require_tunneld!();
    all("boringtun-cli", &["-f", "--disable-drop-privileges"])
}

#[test]
#[ignore = "talks to gotatun, which tests/run --long installs"]
fn gotatun_and_we_understand_each_other() -> Result<()> {
    require_root!();
    require_tunneld!();
    all("gotatun", &["-f", "--disable-drop-privileges"])
}
