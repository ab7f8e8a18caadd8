//! Dante's danted(8), a SOCKS server of many processes: the only one at hand that carries
//! datagrams.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// A danted that listens at these addresses, connects from the device `external`, and lets
/// everybody do everything.
pub fn danted(
    netns: &Netns,
    files: &Scratch,
    internal: &[IpAddr],
    port: u16,
    external: &str,
) -> Result<Running> {
    let mut config = format!(
        "logoutput: stderr\nexternal: {external}\nclientmethod: none\nsocksmethod: none\n\
         user.privileged: root\nuser.unprivileged: root\n"
    );
    for address in internal {
        config += &format!("internal: {address} port = {port}\n");
    }
    for any in ["0.0.0.0/0", "::/0"] {
        config += &format!("client pass {{ from: {any} to: {any} }}\n");
        for other in ["0.0.0.0/0", "::/0"] {
            config += &format!("socks pass {{ from: {any} to: {other} }}\n");
        }
    }
    let path = files.write(&format!("danted-{port}.conf"), &config)?;
    let running = netns.command("/usr/sbin/danted").args(["-f".into(), path]).spawn()?;
    listens(running, netns, port)
}

/// A server, once it listens.
pub fn listens(mut running: Running, netns: &Netns, port: u16) -> Result<Running> {
    let limit = Instant::now() + Duration::from_secs(10);
    let there = |port: u16| -> Result<bool> {
        let listening = netns.output("ss", &["-Hltn", &format!("sport = :{port}")])?;
        Ok(!listening.trim().is_empty())
    };
    while !there(port)? {
        ensure!(!running.ended()? && Instant::now() < limit, "{}", running.stderr());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(running)
}
