//! Dante's danted(8), a SOCKS server of many processes: the only one at hand that carries
//! datagrams.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// Its program.
pub const PROGRAM: &str = "/usr/sbin/danted";

/// A danted that listens at these addresses, connects from the device `external`, and lets
/// everybody do everything.
pub fn danted(
    netns: &Netns,
    files: &Scratch,
    internal: &[IpAddr],
    port: u16,
    external: &str,
) -> Result<Running> {
    let config = config(internal, port, external, "none");
    let path = files.write(&format!("danted-{port}.conf"), &config)?;
    let running = netns.command(PROGRAM).args(["-f".into(), path]).spawn()?;
    listens(running, netns, port)
}

/// The same, which asks for the password of a user of its host. That host has one user beside
/// root, `alice`, whose password is `hunter2`: in a mount namespace of the program's own.
pub fn danted_with_login(
    netns: &Netns,
    files: &Scratch,
    internal: &[IpAddr],
    port: u16,
    external: &str,
) -> Result<Running> {
    /// crypt(3) of it, by SHA-512.
    const HASH: &str = "$6$tunneldlab$6CmDTITH.2egDQ7REAy2IpKTf2XZWCBD1EuZrJILmgMyEkcezOprEKRUNCkDtAeWRQ3crhyQb8Kh0znp7tO.v0";
    let passwd = "root:x:0:0::/root:/bin/sh\nalice:x:7001:7001::/:/bin/false\n";
    let passwd = files.write("passwd", passwd)?;
    let shadow = files.write("shadow", &format!("root:*:1::::::\nalice:{HASH}:1::::::\n"))?;
    let config = config(internal, port, external, "username");
    let config = files.write(&format!("danted-{port}.conf"), &config)?;
    let script = "mount --bind \"$1\" /etc/passwd && mount --bind \"$2\" /etc/shadow && \
                  exec \"$3\" -f \"$4\"";
    let inside = ["--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let running = netns
        .command("unshare")
        .args(inside)
        .args([passwd, shadow, PROGRAM.into(), config])
        .spawn()?;
    listens(running, netns, port)
}

/// A configuration that lets everybody who logs in by that method do everything.
pub fn config(internal: &[IpAddr], port: u16, external: &str, method: &str) -> String {
    let mut config = format!(
        "logoutput: stderr\nexternal: {external}\nclientmethod: none\nsocksmethod: {method}\n\
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
    config
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
