//! dnsmasq(8), as a forwarder or with records of its own. Its log says what it was asked and
//! what it asked.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::{Netns, Running};

/// A running server on port 53 of one address.
#[derive(Debug)]
pub struct Dnsmasq(Running);

impl Dnsmasq {
    /// Starts one with `args` besides.
    pub fn start(netns: &Netns, address: IpAddr, args: &[&str]) -> Result<Self> {
        let own = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
            "--log-queries",
        ];
        let listen = format!("--listen-address={address}");
        let mut running = netns.command("dnsmasq").args(own).args([listen]).args(args).spawn()?;
        let limit = Instant::now() + Duration::from_secs(10);
        while !running.stderr().contains("started") {
            ensure!(!running.ended()? && Instant::now() < limit, "dnsmasq: {}", running.stderr());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self(running))
    }

    /// Its log so far, lower case.
    pub fn log(&self) -> String {
        self.0.stderr().to_ascii_lowercase()
    }
}
