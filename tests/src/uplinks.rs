//! A host with two uplinks, each to a far end with WireGuard, and hosts behind both.
//!
//! ```text
//!        up2  192.0.2.1      ──veth──  192.0.2.2      u0  first
//!  ours       2001:db8:2::1            2001:db8:2::2
//!        up3  198.51.100.1   ──veth──  198.51.100.3   u0  second
//!             2001:db8:3::1            2001:db8:3::3
//! ```
//!
//! Behind each far end, at its `lo`, are [`FAR4`], [`FAR6`] and [`OTHER4`].

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::endpoints::wireguard::{End, PORT, WireguardGo, everything, interface};
use crate::lab::daemon::Daemon;
use crate::lab::{Netns, link};

/// A host behind both far ends.
pub const FAR4: &str = "203.0.113.9";
/// The same over IPv6.
pub const FAR6: &str = "2001:db8:f::9";
/// Another one.
pub const OTHER4: &str = "203.0.113.10";

/// [`FAR4`] or [`FAR6`].
pub fn far(v6: bool) -> IpAddr {
    if v6 { FAR6 } else { FAR4 }.parse().expect("an address")
}

/// The host and the far ends.
#[derive(Debug)]
pub struct Uplinks {
    /// The host: the near end of both tunnels.
    pub near: End,
    /// What `up2` leads to.
    pub first: Side,
    /// What `up3` leads to.
    pub second: Side,
}

/// A far end.
#[derive(Debug)]
pub struct Side {
    /// Where it is, and its key.
    pub end: End,
    /// Its WireGuard; `None`: it has been killed.
    pub theirs: Option<WireguardGo>,
    net: &'static str,
}

impl Uplinks {
    /// Builds it; both far ends run.
    pub fn new() -> Result<Self> {
        let near = End::new("ours", 1)?;
        let first = Side::new(&near, "first", 2, "192.0.2")?;
        let second = Side::new(&near, "second", 3, "198.51.100")?;
        Ok(Self { near, first, second })
    }

    /// `[[wireguard]]` of these tunnels: `wg0` to the first end, `wg1` to the second.
    pub fn config(&self, tunnels: &[&str]) -> String {
        self.config_with(tunnels, "", false)
    }

    /// The same with further lines for each, and over IPv6.
    pub fn config_with(&self, tunnels: &[&str], more: &str, outer_v6: bool) -> String {
        let all = [("wg0", &self.first), ("wg1", &self.second)];
        let wanted = all.into_iter().filter(|(name, _)| tunnels.contains(name));
        let text = wanted.map(|(name, side)| {
            let peer = everything(side.end.peer(Some(side.outer(outer_v6)), None));
            interface(name, &self.near, more, &[peer])
        });
        text.collect()
    }

    /// The host.
    pub fn near(&self) -> &Netns {
        &self.near.netns
    }
}

impl Side {
    fn new(near: &End, name: &'static str, number: u8, net: &'static str) -> Result<Self> {
        let end = End::new(name, number)?;
        let device = format!("up{number}");
        link(&near.netns, &device, &end.netns, "u0", 1500)?;
        near.netns.ip(&format!(
            "addr add {net}.1/24 dev {device}\n\
             addr add 2001:db8:{number}::1/64 dev {device} nodad\n"
        ))?;
        end.netns.ip(&format!(
            "addr add {net}.{number}/24 dev u0\n\
             addr add 2001:db8:{number}::{number}/64 dev u0 nodad\n\
             addr add {FAR4}/32 dev lo\naddr add {OTHER4}/32 dev lo\n\
             addr add {FAR6}/128 dev lo nodad\n"
        ))?;
        let mut side = Self { end, theirs: None, net };
        side.start(near)?;
        Ok(side)
    }

    /// Starts its WireGuard, which knows the near end by its key alone.
    pub fn start(&mut self, near: &End) -> Result<()> {
        self.theirs = Some(WireguardGo::start(&self.end, &[near.peer(None, None)])?);
        Ok(())
    }

    /// Its WireGuard, which runs.
    pub fn theirs(&self) -> Result<&WireguardGo> {
        self.theirs.as_ref().context("it was killed")
    }

    /// Where its WireGuard listens.
    pub fn outer(&self, v6: bool) -> SocketAddr {
        let (net, number) = (self.net, self.end.number);
        let address =
            if v6 { format!("2001:db8:{number}::{number}") } else { format!("{net}.{number}") };
        SocketAddr::new(address.parse().expect("an address"), PORT)
    }
}

/// A connection through a tunnel to a server that says everything twice.
#[derive(Debug)]
pub struct Talk(pub TcpStream);

impl Talk {
    /// Connects from a host.
    pub fn open(host: &Netns, to: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(to, port);
        let stream = host.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    /// Says something, and hears it again.
    pub fn speak(&mut self) -> Result<()> {
        self.0.write_all(b"hello")?;
        let mut answer = [0; 5];
        self.0.read_exact(&mut answer)?;
        ensure!(answer == *b"hello", "{answer:?}");
        Ok(())
    }
}

/// The objects of a daemon's tunnels.
pub fn tunnels(daemon: &Daemon) -> Result<Vec<Value>> {
    let status = daemon.json(&["status"])?;
    Ok(status[0]["tunnels"].as_array().context("tunnels")?.clone())
}

/// Waits until it is so: how long that took.
pub fn within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(began.elapsed())
}
