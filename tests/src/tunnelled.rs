//! A host, and Debian's wireguard-go at the far end of its tunnel, with a host behind it.

use std::net::{IpAddr, TcpStream};

use anyhow::Result;

use crate::endpoints::wireguard::{End, WireguardGo, ends, everything, interface};
use crate::ways;

/// The host behind the tunnel.
pub const BEHIND: &str = "203.0.113.9";

/// Both.
#[derive(Debug)]
pub struct Two {
    /// The host, without WireGuard.
    pub near: End,
    /// The far end, and where [`BEHIND`] is.
    pub end: End,
    /// What runs there.
    pub theirs: Option<WireguardGo>,
}

impl Two {
    /// Starts the far end.
    ///
    /// # Errors
    /// Namespaces can't be made, or it does not start.
    pub fn new() -> Result<Self> {
        let (near, end) = ends()?;
        end.netns.ip(&format!("addr add {BEHIND}/32 dev lo\n"))?;
        let mut two = Self { near, end, theirs: None };
        two.start()?;
        Ok(two)
    }

    /// Starts the far end again.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&mut self) -> Result<()> {
        self.theirs = Some(WireguardGo::start(&self.end, &[self.near.peer(None, None)])?);
        Ok(())
    }

    /// Lines of tunneld.toml: the tunnel `wg0`, with all that there is behind it.
    pub fn tunnel(&self) -> String {
        let peer = everything(self.end.peer(Some(self.end.outer(false)), None));
        interface("wg0", &self.near, "", &[peer])
    }

    /// The address of the host behind the tunnel.
    pub fn behind(&self) -> IpAddr {
        IpAddr::from([203, 0, 113, 9])
    }

    /// A connection to it, once it has echoed a byte, or the errno that there is in its place.
    ///
    /// # Errors
    /// It is open and does not echo.
    pub fn connect(&self, port: u16) -> Result<Result<TcpStream, i32>> {
        ways::connected(&self.near.netns, self.behind(), port)
    }
}
