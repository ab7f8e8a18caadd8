//! The two sides of a WireGuard link: namespaces with a cable between them, and Debian's
//! wireguard-go(8) at any of them.
//!
//! ```text
//!   End 1  u0  192.0.2.1/24    ──veth──  192.0.2.2/24    u0  End 2
//!              2001:db8::1/64            2001:db8::2/64
//!       device 10.0.0.1/24               10.0.0.2/24     device
//!              fd00::1/64                fd00::2/64
//! ```

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tunnel::link::wireguard::{PeerSettings, PresharedKey, PrivateKey};

use crate::lab::{Netns, Running, link};

/// Bytes of the longest inner packet.
pub const MTU: u16 = 1420;
/// The UDP port of each end.
pub const PORT: u16 = 51_820;

/// One end: a namespace with an outer and an inner address of each IP version.
#[derive(Debug)]
pub struct End {
    /// Where it is.
    pub netns: Netns,
    /// Its private key.
    pub key: PrivateKey,
    /// Last byte of every address.
    pub number: u8,
}

impl End {
    /// An end in a namespace of its own, with a new key and no cable.
    pub fn new(name: &'static str, number: u8) -> Result<Self> {
        Self::of(Netns::new(name)?, number)
    }

    /// An end in a namespace that is there.
    pub fn of(netns: Netns, number: u8) -> Result<Self> {
        let key = PrivateKey::generate().context("a key")?;
        Ok(Self { netns, key, number })
    }

    /// Where its messages go.
    pub fn outer(&self, v6: bool) -> SocketAddr {
        let n = self.number;
        let address = if v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, hexadecimal(n)).into()
        } else {
            IpAddr::from([192, 0, 2, n])
        };
        SocketAddr::new(address, PORT)
    }

    /// Its address inside.
    pub fn inner(&self, v6: bool) -> IpAddr {
        let n = self.number;
        if v6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, hexadecimal(n)).into()
        } else {
            Ipv4Addr::new(10, 0, 0, n).into()
        }
    }

    /// Gives its outer addresses to the end of a cable.
    pub fn plug(&self, device: &str) -> Result<()> {
        let n = self.number;
        self.netns.ip(&format!(
            "addr add 192.0.2.{n}/24 dev {device}\naddr add 2001:db8::{n}/64 dev {device} nodad\n"
        ))
    }

    /// Gives its inner addresses to a device, which comes up.
    pub fn addresses(&self, device: &str) -> Result<()> {
        let n = self.number;
        self.netns.ip(&format!(
            "addr add 10.0.0.{n}/24 dev {device}\n\
             addr add fd00::{n}/64 dev {device} nodad\n\
             link set {device} mtu {MTU} up\n"
        ))
    }

    /// As a peer of another end, which lets it have its inner addresses.
    pub fn peer(
        &self,
        endpoint: Option<SocketAddr>,
        preshared: Option<PresharedKey>,
    ) -> PeerSettings {
        PeerSettings {
            preshared,
            endpoint,
            allowed: [false, true].map(|v6| self.inner(v6).into()).to_vec(),
            ..PeerSettings::new(self.key.public())
        }
    }

    /// One answered ping a packet, or an error.
    pub fn ping(&self, to: IpAddr, args: &[&str]) -> Result<()> {
        let to = to.to_string();
        let ping = self.netns.command("ping").args(["-n", "-W", "3"]);
        let done = ping.args(args).args([&to]).run()?;
        ensure!(done.code() == 0, "{done:?}");
        ensure!(done.stdout.contains(" 0% packet loss"), "{}", done.stdout);
        Ok(())
    }
}

/// The group of an IPv6 address that is written with the digits of `n`.
fn hexadecimal(n: u8) -> u16 {
    u16::from_str_radix(&n.to_string(), 16).unwrap_or_default()
}

/// Ends 1 and 2 with a cable between them.
pub fn ends() -> Result<(End, End)> {
    let (a, b) = (End::new("ours", 1)?, End::new("theirs", 2)?);
    link(&a.netns, "u0", &b.netns, "u0", 1500)?;
    a.plug("u0")?;
    b.plug("u0")?;
    Ok((a, b))
}

/// A WireGuard in user space that is not ours; killed when dropped.
#[derive(Debug)]
pub struct WireguardGo {
    process: Running,
    device: String,
    socket: PathBuf,
}

impl WireguardGo {
    /// Starts Debian's wireguard-go at an end, on [`PORT`], with these peers; its device has the
    /// end's inner addresses.
    pub fn start(end: &End, peers: &[PeerSettings]) -> Result<Self> {
        Self::start_other(end, peers, "wireguard-go".as_ref(), &["-f"])
    }

    /// The same of another program that is called and set up like it.
    pub fn start_other(
        end: &End,
        peers: &[PeerSettings],
        program: &OsStr,
        args: &[&str],
    ) -> Result<Self> {
        // The directory of control sockets is one for all namespaces.
        let device = format!("wgt{}x{}", std::process::id() % 1_000_000, end.number);
        let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
        let process = end
            .netns
            .command(program)
            .args(args)
            .args([&device])
            .env("LOG_LEVEL", "error")
            .limit(Duration::from_secs(120))
            .spawn()?;
        let theirs = Self { process, device, socket };
        let began = Instant::now();
        while let Err(error) = UnixStream::connect(&theirs.socket) {
            let stderr = theirs.process.stderr();
            ensure!(began.elapsed() < Duration::from_secs(5), "{error}: {stderr}");
            thread::sleep(Duration::from_millis(10));
        }
        let mut text = format!("private_key={}\nlisten_port={PORT}\n", hex(end.key.as_bytes()));
        peers.iter().for_each(|peer| text += &settings(peer));
        theirs.set(&text)?;
        end.addresses(&theirs.device)?;
        Ok(theirs)
    }

    /// What its device is called.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Its process, killed to make it a peer that is gone: its host goes on answering.
    pub fn process(&self) -> &Running {
        &self.process
    }

    /// Makes a change: lines of the `set` operation of WireGuard's interface.
    pub fn set(&self, lines: &str) -> Result<()> {
        let answer = self.ask(&format!("set=1\n{}\n\n", lines.trim_end()))?;
        ensure!(answer.contains("errno=0"), "{answer}");
        Ok(())
    }

    /// The answer to the `get` operation.
    pub fn get(&self) -> Result<String> {
        self.ask("get=1\n\n")
    }

    fn ask(&self, text: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(text.as_bytes())?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        // The last line is an empty one; the connection stays open.
        while !answer.ends_with(b"\n\n") {
            let length = stream.read(&mut piece)?;
            ensure!(length > 0, "an answer without end: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..length]);
        }
        Ok(String::from_utf8(answer)?)
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        // Killed, it leaves the socket.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A peer, as lines of the `set` operation.
fn settings(peer: &PeerSettings) -> String {
    let mut text = format!("public_key={}\n", hex(peer.key.as_bytes()));
    if let Some(key) = &peer.preshared {
        text += &format!("preshared_key={}\n", hex(key.as_bytes()));
    }
    if let Some(endpoint) = peer.endpoint {
        text += &format!("endpoint={endpoint}\n");
    }
    if let Some(seconds) = peer.keepalive {
        text += &format!("persistent_keepalive_interval={seconds}\n");
    }
    peer.allowed.iter().for_each(|net| text += &format!("allowed_ip={net}\n"));
    text
}

/// An interface of our program, as its configuration writes it.
pub fn interface(name: &str, end: &End, more: &str, peers: &[PeerSettings]) -> String {
    let n = end.number;
    let mut text = format!(
        "[[wireguard]]\nname = \"{name}\"\nprivate_key = \"{}\"\n\
         addresses = [\"10.0.0.{n}/32\", \"fd00::{n}/128\"]\n{more}\n",
        base64(end.key.as_bytes())
    );
    for peer in peers {
        let allowed: Vec<String> = peer.allowed.iter().map(|net| format!("\"{net}\"")).collect();
        text += &format!(
            "[[wireguard.peer]]\npublic_key = \"{}\"\nallowed_ips = [{}]\n",
            base64(peer.key.as_bytes()),
            allowed.join(", ")
        );
        if let Some(key) = &peer.preshared {
            text += &format!("preshared_key = \"{}\"\n", base64(key.as_bytes()));
        }
        if let Some(endpoint) = peer.endpoint {
            text += &format!("endpoint = \"{endpoint}\"\n");
        }
        if let Some(seconds) = peer.keepalive {
            text += &format!("persistent_keepalive = {seconds}\n");
        }
    }
    text
}

/// Everything, behind this peer.
pub fn everything(peer: PeerSettings) -> PeerSettings {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let all = all.map(|any| ipnet::IpNet::new_assert(any, 0));
    PeerSettings { allowed: all.to_vec(), ..peer }
}

/// Bytes as WireGuard's interface writes keys.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes as wg(8) and its files write keys.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |group: u32, at: usize| char::from(DIGITS[(group >> (18 - 6 * at)) as usize & 63]);
    let mut text = String::new();
    for bytes in bytes.chunks(3) {
        let octet = |at: usize| u32::from(bytes.get(at).copied().unwrap_or(0));
        let group = octet(0) << 16 | octet(1) << 8 | octet(2);
        (0..4).for_each(|at| text.push(if at <= bytes.len() { digit(group, at) } else { '=' }));
    }
    text
}
