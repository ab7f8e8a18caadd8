//! knotd(8): an authoritative server, which signs what it is told to. It counts what it was
//! asked, zone by zone.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// A zone.
#[derive(Debug, Clone, Copy)]
pub struct Zone<'a> {
    /// Its name, without the last dot.
    pub name: &'a str,
    /// Of its SOA record: the TTL, and MINIMUM, which negative answers hold (RFC 2308).
    pub soa_ttl: [u32; 2],
    /// Its records besides, in lines of a zone file.
    pub records: &'a str,
    /// Whether it is signed.
    pub signed: bool,
}

/// A running server on port 53 of one address.
#[derive(Debug)]
pub struct Knot {
    running: Running,
    netns: Netns,
    address: IpAddr,
    files: Scratch,
}

impl Knot {
    /// Starts one.
    pub fn start(netns: &Netns, address: IpAddr, zones: &[Zone<'_>]) -> Result<Self> {
        let files = Scratch::new()?;
        let directory = files.path().display();
        let mut config = format!(
            "server:\n    rundir: \"{directory}\"\n    listen: {address}@53\n    udp-workers: 1\n    tcp-workers: 1\n\
             \x20   background-workers: 1\n\
             control:\n    listen: \"{directory}/knot.sock\"\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{directory}\"\n    journal-db-max-size: 16M\n\
             \x20   kasp-db-max-size: 16M\n    timer-db-max-size: 1M\n\
             policy:\n  - id: lab\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n\
             mod-stats:\n  - id: lab\n    request-protocol: on\n\
             template:\n  - id: default\n    storage: \"{directory}\"\n    file: \"%s.zone\"\n\
             \x20   zonefile-load: whole\n    zonefile-sync: -1\n    journal-content: none\n\
             \x20   module: mod-stats/lab\n    dnssec-policy: lab\nzone:\n"
        );
        for Zone { name, soa_ttl: [ttl, minimum], records, signed } in zones {
            let signing = if *signed { "on" } else { "off" };
            // Writing to a string cannot fail.
            let _ = write!(config, "  - domain: {name}\n    dnssec-signing: {signing}\n");
            let text = format!(
                "$ORIGIN {name}.\n$TTL 300\n\
                 @ {ttl} SOA ns hostmaster 1 3600 900 86400 {minimum}\n@ NS ns\nns A {address}\n{records}\n"
            );
            files.write(&format!("{name}.zone"), &text)?;
        }
        let config = files.write("knot.conf", &config)?.display().to_string();
        let knotd = netns.command("knotd").args(["-c", &config]);
        let running = knotd.limit(Duration::from_secs(120)).spawn()?;
        let mut knot = Self { running, netns: netns.clone(), address, files };
        let limit = Instant::now() + Duration::from_secs(10);
        // It answers SERVFAIL until a zone is loaded and signed.
        for Zone { name, .. } in zones {
            while !knot.says(&["SOA", &format!("{name}.")])?.contains("hostmaster") {
                let log = knot.running.stderr();
                ensure!(!knot.running.ended()? && Instant::now() < limit, "knotd: {log}");
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(knot)
    }

    /// What it says to a question, its data alone.
    pub fn says(&self, question: &[&str]) -> Result<String> {
        let at = format!("@{}", self.address);
        let kdig = self.netns.command("kdig").args([&*at, "+short", "+timeout=1", "+retry=0"]);
        Ok(kdig.args(question).run()?.stdout)
    }

    /// The keys of a signed zone, as unbound takes them for a trust anchor of `owner`.
    pub fn trust_anchor(&self, zone: &str, owner: &str) -> Result<String> {
        let keys = self.says(&["DNSKEY", &format!("{zone}.")])?;
        let key = keys.lines().find(|key| key.starts_with("257 ")).context("no key")?;
        Ok(format!("{owner}. DNSKEY {key}"))
    }

    /// How often it was asked for names of a zone, this lab's own questions included.
    pub fn asked(&self, zone: &str) -> Result<u64> {
        let socket = self.files.join("knot.sock").display().to_string();
        let knotc = self.netns.command("knotc").args(["-s", &socket, "zone-stats"]);
        let done = knotc.args([&format!("{zone}."), "mod-stats.request-protocol"]).run()?;
        ensure!(done.code() == 0, "knotc: {done:?}");
        let counts = done.stdout.lines().filter_map(|line| line.rsplit(" = ").next());
        Ok(counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum())
    }
}
