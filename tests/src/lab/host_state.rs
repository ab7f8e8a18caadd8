//! All of a host that a daemon may change, as text: two readings are equal byte for byte when
//! nothing is left behind.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::netns::Netns;

/// What the daemon may touch.
const QUESTIONS: &[&[&str]] = &[
    &["ip", "-o", "link", "show"],
    &["ip", "-o", "address", "show"],
    &["ip", "-4", "rule", "show"],
    &["ip", "-6", "rule", "show"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["nft", "list", "ruleset"],
];

const SYSCTLS: &[&str] = &[
    "net/ipv4/ip_forward",
    "net/ipv4/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv6/fwmark_reflect",
    "net/ipv6/conf/all/forwarding",
];

/// Reads the state of a namespace, once its addresses are no longer being tried out.
pub fn read(netns: &Netns) -> Result<String> {
    let began = Instant::now();
    while netns.output("ip", &["-6", "address", "show", "tentative"])?.contains("inet6") {
        ensure!(began.elapsed() < Duration::from_secs(5), "an address stays tentative");
        thread::sleep(Duration::from_millis(20));
    }
    let mut state = String::new();
    for question in QUESTIONS {
        let answer = netns.output(question[0], &question[1..])?;
        writeln!(state, "== {}\n{}", question.join(" "), lasting(&answer))?;
    }
    let sysctls = netns.run(|| -> Result<String> {
        let mut text = String::new();
        for name in SYSCTLS {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(name))
                .with_context(|| format!("sysctl {name}"))?;
            write!(text, "{name} = {value}")?;
        }
        let mut lines = Vec::new();
        for entry in std::fs::read_dir("/proc/thread-self/net/../../sys/net/ipv4/conf")
            .or_else(|_| std::fs::read_dir("/proc/sys/net/ipv4/conf"))?
        {
            let path = entry?.path();
            for name in
                ["rp_filter", "src_valid_mark", "arp_ignore", "accept_local", "route_localnet"]
            {
                let value = std::fs::read_to_string(path.join(name))?;
                let device = path.file_name().map(|n| n.to_string_lossy().into_owned());
                lines.push(format!("{}/{name} = {value}", device.unwrap_or_default()));
            }
        }
        lines.sort();
        text.extend(lines);
        Ok(text)
    })?;
    state.push_str(&sysctls);
    Ok(state)
}

/// Without what changes by itself: the time an address has left, a link's operational state.
fn lasting(answer: &str) -> String {
    answer
        .lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split(' ').collect();
            for name in ["expires", "state"] {
                while let Some(at) = words.iter().position(|word| *word == name) {
                    words.drain(at..(at + 2).min(words.len()));
                }
            }
            words.join(" ") + "\n"
        })
        .collect()
}
