//! Debian's proxies, each of which can be ended and started again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::danted;
use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// A proxy that isn't running yet.
#[derive(Debug)]
pub struct RealProxy<'a> {
    /// Its program.
    pub name: &'static str,
    /// What leads to it, without a login.
    pub url: String,
    port: u16,
    args: Vec<String>,
    netns: &'a Netns,
    running: Option<Running>,
}

impl<'a> RealProxy<'a> {
    /// microsocks(1), with these arguments beside its place.
    pub fn microsocks(netns: &'a Netns, at: IpAddr, more: &[&str]) -> Self {
        let at = SocketAddr::new(at, 1080);
        let args = ["-i", &at.ip().to_string(), "-p", &at.port().to_string()].map(str::to_owned);
        let args = args.into_iter().chain(more.iter().map(|word| (*word).to_owned())).collect();
        Self { name: "microsocks", url: format!("socks5://{at}"), ..Self::of(netns, at, args) }
    }

    /// danted(8) at these addresses, which connects from the device or address `external`.
    ///
    /// # Errors
    /// Its configuration can't be written.
    pub fn danted(
        netns: &'a Netns,
        files: &Scratch,
        at: &[IpAddr],
        external: &str,
    ) -> Result<Self> {
        let first = SocketAddr::new(*at.first().context("an address")?, 1081);
        let config = danted::config(at, first.port(), external, "none");
        let config = files.write("danted.conf", &config)?;
        let args = vec!["-f".to_owned(), config.display().to_string()];
        let url = format!("socks5://{first}");
        Ok(Self { name: danted::PROGRAM, url, ..Self::of(netns, first, args) })
    }

    /// tinyproxy(8), with these lines beside its place.
    ///
    /// # Errors
    /// Its configuration can't be written.
    pub fn tinyproxy(netns: &'a Netns, files: &Scratch, at: IpAddr, more: &str) -> Result<Self> {
        let at = SocketAddr::new(at, 1082);
        let (ip, port) = (at.ip(), at.port());
        let text = format!("Port {port}\nListen {ip}\nTimeout 600\nMaxClients 100\n{more}");
        let config = files.write("tinyproxy.conf", &text)?;
        let args = vec!["-d".to_owned(), "-c".to_owned(), config.display().to_string()];
        Ok(Self { name: "tinyproxy", url: format!("http://{at}"), ..Self::of(netns, at, args) })
    }

    fn of(netns: &'a Netns, at: SocketAddr, args: Vec<String>) -> Self {
        Self { name: "", url: String::new(), port: at.port(), args, netns, running: None }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it; it listens then.
    ///
    /// # Errors
    /// It can't listen.
    pub fn start(&mut self) -> Result<()> {
        let program = self.netns.command(self.name).args(&self.args);
        let running = program.limit(Duration::from_secs(120)).spawn()?;
        self.running = Some(danted::listens(running, self.netns, self.port)?);
        Ok(())
    }

    /// The same, for who only wants it there.
    ///
    /// # Errors
    /// It can't listen.
    pub fn started(mut self) -> Result<Self> {
        self.start()?;
        Ok(self)
    }

    /// Ends it with all its processes: a connection to it is refused from then on.
    ///
    /// # Errors
    /// It does not run.
    pub fn end(&mut self) -> Result<()> {
        let running = self.running.take().context("it runs")?;
        running.signal(Signal::TERM)?;
        running.wait()?;
        Ok(())
    }

    /// The URL with a login, as it is written there.
    pub fn url_of(&self, login: &str) -> String {
        self.url.replace("//", &format!("//{login}@"))
    }
}
