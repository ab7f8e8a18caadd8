//! unbound(8) with the zone of a company, over UDP and TCP, and with a certificate
//! over TLS and HTTPS as well. Its log says what it was asked.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::dns_trust::Signed;
use crate::lab::scratch::Scratch;
use crate::lab::{Netns, Running};

/// A running server: ports 53, 853 and 443 of one address.
///
/// | name | has |
/// | --- | --- |
/// | `www.corp.example` | A 10.1.2.3, AAAA fd00::3 |
/// | `alias.corp.example` | CNAME of it |
/// | `big.corp.example` | 20 TXT records: more than fits into a datagram |
/// | `odd.corp.example` | a record of TYPE65280 |
/// | `dns.corp.example` | A or AAAA: the server itself |
/// | `refused.example` | REFUSED |
#[derive(Debug)]
pub struct Unbound {
    running: Running,
    netns: Netns,
    address: IpAddr,
    marks: AtomicU32,
    _files: Scratch,
}

impl Unbound {
    /// Starts one. It needs a second for its threads and its certificate.
    pub fn start(netns: &Netns, address: IpAddr, signed: Option<&Signed>) -> Result<Self> {
        Self::with(netns, address, signed, "")
    }

    /// The same, with more lines of its `server:` section.
    pub fn with(
        netns: &Netns,
        address: IpAddr,
        signed: Option<&Signed>,
        more: &str,
    ) -> Result<Self> {
        let files = Scratch::new()?;
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        let mut text = format!(
            "server:\n directory: \"\"\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n\
             \x20do-daemonize: no\n use-syslog: no\n logfile: \"\"\n log-queries: yes\n\
             \x20verbosity: 1\n module-config: iterator\n interface: {address}\n\
             \x20access-control: 0.0.0.0/0 allow\n access-control: ::/0 allow\n\
             \x20so-reuseport: no\n outgoing-range: 64\n num-queries-per-thread: 4096\n{more}\n\
             \x20local-zone: \"corp.example.\" static\n\
             \x20local-data: \"www.corp.example. 300 A 10.1.2.3\"\n\
             \x20local-data: \"www.corp.example. 300 AAAA fd00::3\"\n\
             \x20local-data: \"alias.corp.example. 300 CNAME www.corp.example.\"\n\
             \x20local-data: \"dns.corp.example. 300 {kind} {address}\"\n\
             \x20local-data: 'odd.corp.example. 300 TYPE65280 \\# 4 0a000001'\n\
             \x20local-zone: \"refused.example.\" always_refuse\n"
        );
        for number in 0..20 {
            let pad = "x".repeat(180);
            text += &format!(" local-data: 'big.corp.example. 300 TXT \"{number}-{pad}\"'\n");
        }
        if let Some(signed) = signed {
            let (certificate, key) = signed.write(&files, "server")?;
            text += &format!(
                " interface: {address}@853\n interface: {address}@443\n tls-port: 853\n\
                 \x20https-port: 443\n http-endpoint: \"/dns-query\"\n\
                 \x20tls-service-pem: \"{certificate}\"\n tls-service-key: \"{key}\"\n"
            );
        }
        text += "remote-control:\n control-enable: no\n";
        let config = files.write("unbound.conf", &text)?.display().to_string();
        let unbound = netns.command("unbound").args(["-d", "-c", &config]);
        let mut running = unbound.limit(Duration::from_secs(120)).spawn()?;
        let limit = Instant::now() + Duration::from_secs(10);
        while !running.stderr().contains("start of service") {
            ensure!(!running.ended()? && Instant::now() < limit, "unbound: {}", running.stderr());
            thread::sleep(Duration::from_millis(5));
        }
        let (netns, marks) = (netns.clone(), AtomicU32::new(0));
        Ok(Self { running, netns, address, marks, _files: files })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it was asked so far: `NAME. TYPE IN`, lower case.
    ///
    /// # Errors
    /// It does not answer.
    pub fn log(&self) -> Result<Vec<String>> {
        // What comes before a question of ours in the log is all that came before it.
        let label = format!("mark{}", self.marks.fetch_add(1, Ordering::Relaxed));
        let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8];
        query.extend(label.as_bytes());
        query.extend(b"\x04corp\x07example\x00\x00\x01\x00\x01");
        let address = self.address;
        self.netns.run(|| {
            let socket = UdpSocket::bind((address, 0))?;
            socket.send_to(&query, (address, 53))
        })?;
        let mark = format!("{label}.corp.example. ");
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let questions = self.questions();
            if questions.iter().any(|question| question.starts_with(&mark)) {
                let ours = |question: &String| question.starts_with("mark");
                return Ok(questions.into_iter().filter(|question| !ours(question)).collect());
            }
            ensure!(Instant::now() < limit, "unbound is deaf: {}", self.running.stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn questions(&self) -> Vec<String> {
        let text = self.running.stderr();
        text.lines().filter_map(question).map(|(_, question)| question).collect()
    }

    /// Who has asked for a name, each time.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clients(&self, name: &str) -> Result<Vec<IpAddr>> {
        // All that came before is written by then.
        self.log()?;
        let (text, name) = (self.running.stderr(), format!("{name}. "));
        let questions = text.lines().filter_map(question);
        Ok(questions.filter(|(_, asked)| asked.starts_with(&name)).map(|(ip, _)| ip).collect())
    }

    /// How often it was asked for a name.
    ///
    /// # Errors
    /// It does not answer.
    pub fn asked(&self, name: &str) -> Result<usize> {
        let name = format!("{name}. ");
        Ok(self.log()?.iter().filter(|line| line.starts_with(&name)).count())
    }
}

/// A line of its log: `[time] unbound[pid:thread] info: CLIENT NAME TYPE IN`.
fn question(line: &str) -> Option<(IpAddr, String)> {
    let (_, rest) = line.split_once(" info: ")?;
    let (client, question) = rest.split_once(' ')?;
    Some((client.parse().ok()?, question.to_ascii_lowercase()))
}
