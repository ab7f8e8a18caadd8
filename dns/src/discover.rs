//! The network's own servers, as far as resolv.conf(5) tells them.

use std::net::IpAddr;

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
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if line.starts_with("nameserver") => {
                    conf.nameservers.extend(words.next().and_then(|w| w.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain" | "options" | "sortlist")
                    if !line.starts_with(char::is_whitespace) =>
                {
                    conf.rest.push(line.trim_end().to_owned());
                }
                Some(_) | None => {}
            }
        }
        conf
    }

    /// The same configuration with `nameserver` as its only server.
    pub fn with_nameserver(&self, nameserver: IpAddr) -> String {
        let mut text = format!("nameserver {nameserver}\n");
        for line in &self.rest {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
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
        let conf = ResolvConf::parse("search a.example\nnameserver 192.0.2.1\n");
        let inside = conf.with_nameserver("198.18.0.2".parse().expect("address"));
        assert_eq!(inside, "nameserver 198.18.0.2\nsearch a.example\n");
    }
}
