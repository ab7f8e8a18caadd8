//! dhclient.leases(5): what ISC's DHCP client was given, and until when.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lease {
    pub(super) interface: String,
    pub(super) servers: Vec<IpAddr>,
    /// Domains as they are written.
    pub(super) domains: Vec<String>,
    /// When it ends; `None`: never.
    pub(super) expires: Option<SystemTime>,
}

impl Lease {
    /// Whether it still holds.
    pub(super) fn holds(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }

    /// Whether it holds longer than another.
    pub(super) fn outlasts(&self, other: &Self) -> bool {
        match (self.expires, other.expires) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => own >= other,
        }
    }
}

/// Reads the leases of a file, in order: what stands later is newer. A lease cut off at the
/// beginning or the end of `text` is none.
pub(super) fn parse(text: &str) -> Vec<Lease> {
    let mut leases = Vec::new();
    let mut tokens = Tokens { rest: text };
    let mut statement: Vec<Token<'_>> = Vec::new();
    let mut depth = 0_usize;
    // The lease being read, and since when its IPv6 addresses are ours.
    let mut lease: Option<Lease> = None;
    let mut starts: Option<u64> = None;
    while let Some(token) = tokens.next() {
        match token {
            Token::Open => {
                if depth == 0 {
                    let begins = matches!(statement.first(), Some(Token::Word("lease" | "lease6")));
                    lease = begins.then(Lease::default);
                }
                depth += 1;
                statement.clear();
            }
            Token::Close => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    leases.extend(lease.take().filter(|lease| !lease.interface.is_empty()));
                }
                statement.clear();
            }
            Token::End => {
                if let Some(lease) = &mut lease {
                    read(&statement, lease, &mut starts);
                }
                statement.clear();
            }
            // No statement that means something here has as many words.
            Token::Word(_) | Token::Quoted(_) => {
                if statement.len() < 64 {
                    statement.push(token);
                }
            }
        }
    }
    leases
}

/// One statement of a lease.
fn read(statement: &[Token<'_>], lease: &mut Lease, starts: &mut Option<u64>) {
    let words: Vec<&str> = statement
        .iter()
        .filter_map(|token| match token {
            Token::Word(word) | Token::Quoted(word) => Some(*word),
            Token::Open | Token::Close | Token::End => None,
        })
        .collect();
    match words[..] {
        ["interface", name] => lease.interface = name.to_owned(),
        ["option", "domain-name-servers" | "dhcp6.name-servers", ref servers @ ..] => {
            lease.servers.extend(servers.iter().filter_map(|word| word.parse::<IpAddr>().ok()));
        }
        // Some servers put several into one.
        ["option", "domain-name" | "domain-search" | "dhcp6.domain-search", ref names @ ..] => {
            let names = names.iter().flat_map(|names| names.split_ascii_whitespace());
            lease.domains.extend(names.map(str::to_owned));
        }
        ["expire", "never"] => lease.expires = None,
        ["expire", "epoch", seconds] => lease.expires = seconds.parse().ok().and_then(at),
        ["expire", _weekday, date, time] => lease.expires = civil(date, time).and_then(at),
        ["starts", seconds] => *starts = seconds.parse().ok(),
        ["max-life", seconds] => {
            let life: Option<u64> = seconds.parse().ok();
            let ends = starts.zip(life).and_then(|(starts, life)| at(starts.checked_add(life)?));
            lease.expires = lease.expires.max(ends);
        }
        _ => {}
    }
}

fn at(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Seconds since 1970 of `2026/11/24` `22:05:09`, which is UTC.
fn civil(date: &str, time: &str) -> Option<u64> {
    fn three(text: &str, by: char) -> Option<[u64; 3]> {
        let mut parts = text.split(by).map(|part| part.parse().ok());
        let three = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(three)
    }
    let [year, month, day] = three(date, '/')?;
    let [hour, minute, second] = three(time, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years begin in March here, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    const UNTIL_1970: u64 = 719_468;
    Some((days.checked_sub(UNTIL_1970)?) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Quoted(&'a str),
    Open,
    Close,
    End,
}

/// Commas are as good as spaces, and `#` begins a comment.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            match self.rest.strip_prefix('#') {
                Some(comment) => {
                    self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
                }
                None => break,
            }
        }
        let first = self.rest.chars().next()?;
        let behind = &self.rest[first.len_utf8()..];
        let (token, rest) = match first {
            '{' => (Token::Open, behind),
            '}' => (Token::Close, behind),
            ';' => (Token::End, behind),
            '"' => {
                let (quoted, rest) = behind.split_once('"').unwrap_or((behind, ""));
                (Token::Quoted(quoted), rest)
            }
            _ => {
                let end = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '{' | '}' | '"');
                let (word, rest) =
                    self.rest.split_at(self.rest.find(end).unwrap_or(self.rest.len()));
                (Token::Word(word), rest)
            }
        };
        self.rest = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_as_dhclient_writes_them() {
        let both = r#"
            default-duid "\000\001";
            lease {
              interface "eth0";
              fixed-address 192.0.2.9;
              option subnet-mask 255.255.255.0;
              option domain-name-servers 192.0.2.53,192.0.2.54;
              option domain-name "corp.example lab.example";
              renew 2 2026/11/24 21:00:00;
              expire 2 2026/11/24 22:05:09;
            }
            lease6 {
              interface "eth0";
              ia-na 52:54:00:12 {
                starts 1795557909;
                iaaddr 2001:db8::9 { starts 1795557909; preferred-life 60; max-life 100; }
              }
              option dhcp6.name-servers 2001:db8::53;
              option dhcp6.domain-search "v6.example.";
            }"#;
        let epoch = "lease { interface \"eth1\"; option domain-name-servers 192.0.2.55; expire epoch 1795557909; # Tue\n}";
        #[rustfmt::skip]
        let cases = [
            ("empty", "", ""),
            ("IPv4 and IPv6", both, "eth0 192.0.2.53 192.0.2.54 corp.example lab.example 1795557909; eth0 2001:db8::53 v6.example. 1795558009"),
            ("an epoch", epoch, "eth1 192.0.2.55 1795557909"),
            ("for ever", "lease{interface \"e\";expire never;}", "e never"),
            ("no interface", "lease { option domain-name-servers 192.0.2.55; }", ""),
            ("cut off at the end", "lease { interface \"e\"; option domain-name-servers 192.0.2.5", ""),
            ("cut off at the beginning", "ers 192.0.2.1; } lease { interface \"e\"; }", "e never"),
            ("other statements", "server { interface \"e\"; } lease { interface \"f\"; }", "f never"),
            ("an open quote", "lease { interface \"e; }", ""),
            ("closed too often", "}}} lease { interface \"e\"; }", "e never"),
            ("a date that is none", "lease { interface \"e\"; expire 2 2026/13/24 22:05:09; }", "e never"),
        ];
        for (name, text, expected) in cases {
            let shown: Vec<String> = parse(text)
                .iter()
                .map(|lease| {
                    let mut words = vec![lease.interface.clone()];
                    words.extend(lease.servers.iter().map(IpAddr::to_string));
                    words.extend(lease.domains.iter().cloned());
                    words.push(lease.expires.map_or_else(
                        || "never".to_owned(),
                        |at| {
                            at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string()
                        },
                    ));
                    words.join(" ")
                })
                .collect();
            assert_eq!(shown.join("; "), expected, "{name}");
        }
    }

    #[test]
    fn dates() {
        for (date, time, seconds) in [
            ("1970/01/01", "00:00:00", Some(0)),
            ("2000/02/29", "12:00:00", Some(951_825_600)),
            ("2000/03/01", "00:00:00", Some(951_868_800)),
            ("2026/11/24", "22:05:09", Some(1_795_557_909)),
            ("2026/11", "22:05:09", None),
            ("2026/11/24/1", "22:05:09", None),
            ("1969/12/31", "22:05:09", None),
            ("2026/11/24", "24:00:00", None),
            ("-5/11/24", "20:00:00", None),
        ] {
            assert_eq!(civil(date, time), seconds, "{date} {time}");
        }
    }
}
