//! resolv.conf(5).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use super::DEBOUNCE;
use crate::inotify::{Inotify, Place};

/// What a file says, as programs read it, now and whenever it changes, until the last receiver is
/// dropped. One that can't be read says nothing. Needs a tokio runtime with I/O and time.
pub fn follow(path: &Path) -> watch::Receiver<Arc<ResolvConf>> {
    let files = Inotify::new(vec![Place::File(path.to_owned())]);
    if let Err(error) = &files {
        warn!(
            code = "servers-unwatched",
            "changes of the network's servers are seen late: {error}"
        );
    }
    let (sender, receiver) = watch::channel(Arc::new(read(path)));
    tokio::spawn(keep(path.to_owned(), files.ok(), sender));
    receiver
}

async fn keep(path: PathBuf, mut files: Option<Inotify>, sender: watch::Sender<Arc<ResolvConf>>) {
    loop {
        let changed = async {
            match &mut files {
                Some(files) => files.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let watched = tokio::select! {
            () = sender.closed() => return,
            watched = changed => watched,
            () = tokio::time::sleep(SLOW) => true,
        };
        match &mut files {
            Some(files) if watched => files.settle(DEBOUNCE).await,
            Some(_) | None => files = None,
        }
        let now = read(&path);
        sender.send_if_modified(|known| {
            let is_new = **known != now;
            if is_new {
                *known = Arc::new(now);
            }
            is_new
        });
    }
}

fn read(path: &Path) -> ResolvConf {
    let bytes = std::fs::read(path).unwrap_or_default();
    ResolvConf::parse(&String::from_utf8_lossy(&bytes))
}

/// What isn't told is seen after that time.
const SLOW: Duration = Duration::from_secs(60);

/// A resolver configuration: what programs read from `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// The servers, in order.
    pub nameservers: Vec<IpAddr>,
    /// Every other line that means something: `search`, `domain`, `options`, `sortlist`.
    pub rest: Vec<String>,
}

impl ResolvConf {
    /// Reads resolv.conf(5): keywords start a line, `#` and `;` start comments, what is not
    /// understood is skipped. An IPv6 server with a zone (`fe80::1%eth0`) is skipped: a flow
    /// has no zone.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            match keyword(line) {
                Some(("nameserver", mut words)) => {
                    conf.nameservers.extend(words.next().and_then(|w| w.parse::<IpAddr>().ok()));
                }
                Some(("search" | "domain" | "options" | "sortlist", _)) => {
                    conf.rest.push(line.trim_end().to_owned());
                }
                Some(_) | None => {}
            }
        }
        conf
    }

    /// The domains that a name without dots is tried in: the last `search` or `domain` line.
    pub fn search(&self) -> Vec<&str> {
        let lines = self.rest.iter().rev().filter_map(|line| keyword(line));
        let mut last = lines.filter(|(word, _)| matches!(*word, "search" | "domain"));
        last.next().map_or_else(Vec::new, |(word, words)| {
            words.take(if word == "domain" { 1 } else { usize::MAX }).collect()
        })
    }

    /// The same configuration with these domains for a name without dots, and no others.
    #[must_use]
    pub fn with_search(mut self, domains: &[&str]) -> Self {
        if self.search() != domains {
            let is_other = |line: &String| {
                !keyword(line).is_some_and(|(word, _)| matches!(word, "search" | "domain"))
            };
            self.rest.retain(is_other);
            self.rest.insert(0, format!("search {}", domains.join(" ")));
        }
        self
    }

    /// The same configuration with `nameserver` as its only server.
    pub fn with_nameserver(&self, nameserver: IpAddr) -> String {
        self.with_nameservers(&[nameserver])
    }

    /// The same configuration with `nameservers` as its only servers, at most three (`MAXNS`).
    pub fn with_nameservers(&self, nameservers: &[IpAddr]) -> String {
        let lines = nameservers.iter().take(3).map(|server| format!("nameserver {server}\n"));
        let mut text: String = lines.collect();
        for line in &self.rest {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// The servers as they are written, zones and all.
pub(super) fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| match keyword(line) {
        Some(("nameserver", mut words)) => words.next(),
        Some(_) | None => None,
    })
}

/// A line's keyword, which starts it, and what follows.
fn keyword(line: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    if line.starts_with(char::is_whitespace) {
        return None;
    }
    let mut words = line.split_ascii_whitespace();
    words.next().map(|word| (word, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_c_library_reads_it() {
        for (name, text, servers, rest) in [
            ("empty", "", &[][..], &[][..]),
            ("one", "nameserver 192.0.2.53\n", &["192.0.2.53"], &[]),
            ("no newline at the end", "nameserver ::1", &["::1"], &[]),
            (
                "comments and options",
                "# made by hand\n; so\nsearch corp.example\noptions edns0 trust-ad \nnameserver 192.0.2.1 # c\n",
                &["192.0.2.1"],
                &["search corp.example", "options edns0 trust-ad"],
            ),
            (
                "what is not understood",
                "nameserver\nnameserver x\nnameserver fe80::1%eth0\nnameservers 192.0.2.9\n  nameserver 192.0.2.8\nnameserver\t192.0.2.2\n",
                &["192.0.2.2"],
                &[],
            ),
        ] {
            let conf = ResolvConf::parse(text);
            let servers: Vec<IpAddr> =
                servers.iter().map(|s| s.parse().expect("address")).collect();
            assert_eq!(conf.nameservers, servers, "{name}");
            assert_eq!(conf.rest, rest, "{name}");
        }
        for (name, text, search) in [
            ("none", "options ndots:2\n", &[][..]),
            ("several", "search a.example b.example\n", &["a.example", "b.example"]),
            ("the last one counts", "search a.example\ndomain b.example c\n", &["b.example"]),
        ] {
            assert_eq!(ResolvConf::parse(text).search(), search, "{name}");
        }
        let conf = ResolvConf::parse("search a.example\nnameserver 192.0.2.1\n");
        let inside = conf.with_nameserver("198.18.0.2".parse().expect("address"));
        assert_eq!(inside, "nameserver 198.18.0.2\nsearch a.example\n");
    }
}
