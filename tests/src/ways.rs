//! Connections over ways out, and what a daemon tells of them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::Netns;
use crate::lab::daemon::Daemon;

/// A connection is made or fails within that.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Lines of tunneld.toml: a proxy named `office` at this URL.
pub fn office(url: &str) -> String {
    format!("[[proxy]]\nname = \"office\"\nurl = \"{url}\"\n")
}

/// A connection from a host, once it has echoed a byte, or the errno that there is in its place.
pub fn connected(host: &Netns, to: IpAddr, port: u16) -> Result<Result<TcpStream, i32>> {
    let to = SocketAddr::new(to, port);
    let mut stream = match host.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error.raw_os_error().unwrap_or(0))),
    };
    speak(&mut stream)?;
    Ok(Ok(stream))
}

/// Has a byte echoed.
pub fn speak(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0]).context("no echo")
}

/// The way out of an open connection.
pub fn way(daemon: &Daemon, stream: &TcpStream) -> Result<String> {
    let flow = flow_from(daemon, stream.local_addr()?)?.context("a flow")?;
    Ok(flow["via"].as_str().context("a way out")?.to_owned())
}

/// The live flow of that client.
pub fn flow_from(daemon: &Daemon, client: SocketAddr) -> Result<Option<Value>> {
    let client = client.to_string();
    let flows = daemon.json(&["flows"])?;
    Ok(flows.into_iter().find(|flow| flow["client"] == client.as_str()))
}

/// The objects of a daemon's proxies.
pub fn proxies(daemon: &Daemon) -> Result<Vec<Value>> {
    let status = daemon.json(&["status"])?;
    Ok(status[0]["proxies"].as_array().context("proxies")?.clone())
}
