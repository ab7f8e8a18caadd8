//! What a hostile or a bad wire does to a tunnel of a running daemon: nothing that is seen. The
//! wire is a relay between our end and Debian's wireguard-go.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::tcp::{sink, source};
use tests::endpoints::wireguard::{End, WireguardGo, everything, interface};
use tests::endpoints::{Relay, TcpServer, UdpServer, Wire};
use tests::lab::daemon::Daemon;
use tests::uplinks::{FAR4, tunnels};
use tests::{require_root, require_tunneld};

const PACKETS: u32 = 10_000;
/// Sent before they are answered: twice as many find room in wireguard-go's socket.
const WINDOW: u32 = 16;

/// Our end with a daemon, a wire, and the far end.
struct Wired {
    daemon: Daemon,
    wire: Relay,
    near: End,
    far: End,
    _theirs: WireguardGo,
}

impl Wired {
    fn start(wire: Wire) -> Result<Self> {
        let (near, far) = (End::new("ours", 1)?, End::new("theirs", 2)?);
        let wire = Relay::start(&near, &far, wire)?;
        far.netns.ip(&format!("addr add {FAR4}/32 dev lo\n"))?;
        let theirs = WireguardGo::start(&far, &[near.peer(None, None)])?;
        let peer = everything(far.peer(Some(Relay::near_side()), None));
        let config = interface("wg0", &near, "", &[peer]);
        let policy = "policy 1\nroute via wg0\ndefault allow\n";
        let daemon = Daemon::start(&near.netns, policy, &config)?;
        Ok(Self { daemon, wire, near, far, _theirs: theirs })
    }

    fn told(&self) -> Result<Value> {
        tunnels(&self.daemon)?.into_iter().next().context("a tunnel")
    }

    fn dropped(&self, causes: &[&str]) -> Result<u64> {
        let told = self.told()?;
        let count = |cause: &&str| told["dropped"][*cause].as_u64().context("a count");
        causes.iter().map(count).sum()
    }

    /// Sends every number to an echo behind the far end: how often each came back.
    fn numbers(&self) -> Result<HashMap<u32, u32>> {
        let echo = UdpServer::echo(&self.far.netns, FAR4.parse()?, 0)?;
        let to = SocketAddr::new(FAR4.parse()?, echo.port());
        let socket = self.near.netns.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut came: HashMap<u32, u32> = HashMap::new();
        let (mut next, mut buffer) = (0, [0; 2_048]);
        let limit = Instant::now() + Duration::from_secs(40);
        while Instant::now() < limit {
            // The first one opens the flow: meanwhile few are kept.
            let window = if came.is_empty() { 1 } else { WINDOW };
            while next < PACKETS && next - (came.len() as u32) < window {
                socket.send(&packet(next))?;
                next += 1;
            }
            // Once all are back: until nothing more comes.
            let Ok(length) = socket.recv(&mut buffer) else { break };
            let number = u32::from_be_bytes(buffer[..4].try_into()?);
            ensure!(buffer[..length] == packet(number), "{number} is not what was sent");
            *came.entry(number).or_default() += 1;
        }
        ensure!(echo.received() == u64::from(PACKETS), "the far end has {}", echo.received());
        Ok(came)
    }
}

/// A number, and as many bytes behind it as it says.
fn packet(number: u32) -> Vec<u8> {
    let length = 4 + number as usize * 7 % 1_200;
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(length, number as u8);
    bytes
}

/// Each of them came back, and none twice.
fn each_once(came: &HashMap<u32, u32>) -> Result<()> {
    ensure!(came.len() == PACKETS as usize, "{} of {PACKETS} came back", came.len());
    let twice: Vec<_> = came.iter().filter(|(_, times)| **times != 1).take(5).collect();
    ensure!(twice.is_empty(), "more than once: {twice:?}");
    Ok(())
}

#[test]
fn of_ten_thousand_packets_that_come_twice_each_counts_once() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut wired = Wired::start(Wire::Twice)?;
    each_once(&wired.numbers()?)?;
    let replayed = wired.dropped(&["replayed"])?;
    ensure!(replayed >= u64::from(PACKETS), "{replayed} replayed: {:#}", wired.told()?);
    ensure!(wired.wire.data() >= 2 * u64::from(PACKETS), "the control: {:?}", wired.wire);
    wired.daemon.stop()?;
    Ok(())
}

#[test]
fn of_ten_thousand_flipped_bits_none_is_accepted() -> Result<()> {
    require_root!();
    require_tunneld!();
    let mut wired = Wired::start(Wire::Flipped)?;
    each_once(&wired.numbers()?)?;
    // By the field that the bit was in: type and zeroes, receiver, counter, the sealed packet.
    let refused = wired.dropped(&["malformed", "no-session", "replayed", "forged"])?;
    ensure!(refused >= u64::from(PACKETS), "{refused} refused: {:#}", wired.told()?);
    ensure!(wired.dropped(&["forged"])? > u64::from(PACKETS) / 2, "{:#}", wired.told()?);
    ensure!(wired.wire.tampered() >= 2 * u64::from(PACKETS), "the control: {:?}", wired.wire);
    wired.daemon.stop()?;
    Ok(())
}

#[test]
fn tcp_completes_over_a_wire_that_loses_and_delays() -> Result<()> {
    require_root!();
    require_tunneld!();
    const SIZE: u64 = 1 << 20;
    let delay = Duration::from_millis(10);
    let mut wired = Wired::start(Wire::Lossy { one_in: 50, delay })?;
    let down = TcpServer::start(&wired.far.netns, 0, source(SIZE))?;
    let up = TcpServer::start(&wired.far.netns, 0, sink)?;
    let ask = |words: &[&str]| -> Result<Value> {
        let probe = wired.near.netns.command(tests::lab::exec::probe());
        let done = probe.args(words).run()?;
        ensure!(done.code() == 0, "{done:?}");
        Ok(serde_json::from_str(&done.stdout)?)
    };
    let seen = ask(&["download", FAR4, &down.port().to_string()])?;
    ensure!(seen["received"] == SIZE && seen["errno"].is_null(), "{seen:#}");
    let seen = ask(&["upload", FAR4, &up.port().to_string(), &SIZE.to_string()])?;
    ensure!(seen["errno"].is_null(), "{seen:#}");
    let session = up.sessions(1)?.remove(0);
    ensure!(session.received == SIZE && session.error.is_none(), "{session:?}");
    ensure!(wired.wire.tampered() > 5, "the control: {:?}", wired.wire);
    wired.daemon.stop()?;
    Ok(())
}
