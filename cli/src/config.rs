//! `tunneld.toml`: from text to a checked value, all errors at once.
//!
//! Every key of the stable interface is known here. One whose function this build lacks
//! is an error, never a setting without effect.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What `exec` honours of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) device: Device,
    pub(crate) limits: Limits,
    /// Where policies are read from when no `--policy` is given.
    pub(crate) policy: Option<PathBuf>,
}

/// The TUN device inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpNet>,
    /// Bytes.
    pub(crate) mtu: u16,
}

/// What a daemon may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) flows: usize,
    /// Bytes of rings.
    pub(crate) memory: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device: Device {
                name: "tunneld0".to_owned(),
                // Benchmarking ranges: a unique local address would lose to IPv4 when
                // addresses are sorted (RFC 6724).
                addresses: vec![
                    IpNet::new_assert(IpAddr::from([198, 18, 0, 1]), 32),
                    IpNet::new_assert(IpAddr::from([0x2001, 2, 0, 0x756e, 0, 0, 0, 1]), 128),
                ],
                mtu: 1500,
            },
            limits: Limits { flows: 65_536, memory: 512 << 20 },
            policy: None,
        }
    }
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// All faults of a file.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) file: PathBuf,
    pub(crate) faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let (start, end) = if i == 0 { ("", "") } else { ("\nerror: ", "") };
            let file = self.file.display();
            write!(f, "{start}{file}:{}:{}: {}{end}", fault.line, fault.column, fault.message)?;
            if let Some(help) = &fault.help {
                write!(f, "\nhelp: {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A key of the stable interface.
struct Key {
    table: &'static str,
    name: &'static str,
    honoured: bool,
}

const fn now(table: &'static str, name: &'static str) -> Key {
    Key { table, name, honoured: true }
}

const fn later(table: &'static str, name: &'static str) -> Key {
    Key { table, name, honoured: false }
}

const KEYS: &[Key] = &[
    now("device", "name"),
    now("device", "addresses"),
    now("device", "mtu"),
    later("device", "queues"),
    later("device", "capture"),
    later("device", "forward"),
    later("host", "mark"),
    later("host", "table"),
    later("host", "priority"),
    now("policy", "directory"),
    later("dns", "address"),
    later("dns", "intercept"),
    later("dns", "takeover"),
    later("dns", "upstream"),
    later("dns", "cache"),
    later("udp", "filtering"),
    later("guard", "mode"),
    later("guard", "lan"),
    later("guard", "inbound"),
    later("guard", "local"),
    later("path", "hold"),
    now("limits", "flows"),
    now("limits", "memory"),
    later("sandbox", "required"),
    later("control", "socket"),
    later("control", "group"),
    later("control", "admins"),
    later("control", "metrics"),
    later("control", "web"),
];

/// Tables that stand in double brackets; none is honoured yet.
const LISTS: &[&str] = &["wireguard", "proxy", "resolver"];

/// Reads a configuration. Relative paths in it are relative to its directory.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Config, Faults> {
    let mut reader = Reader { text, faults: Vec::new() };
    let mut config = Config::default();
    match DeTable::parse(text) {
        Ok(root) => reader.root(root.get_ref(), &mut config),
        Err(error) => {
            reader.fault(error.span().unwrap_or(0..0), error.message(), None);
        }
    }
    if !reader.faults.is_empty() {
        return Err(Faults { file: file.to_owned(), faults: reader.faults });
    }
    if let (Some(policy), Some(directory)) = (&mut config.policy, file.parent()) {
        *policy = directory.join(&policy);
    }
    Ok(config)
}

struct Reader<'a> {
    text: &'a str,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn root(&mut self, root: &DeTable<'_>, config: &mut Config) {
        for (table, value) in root {
            let name = table.get_ref().as_ref();
            if LISTS.contains(&name) {
                self.fault(table.span(), format!("`[[{name}]]`: not in this version"), None);
                continue;
            }
            if !KEYS.iter().any(|key| key.table == name) {
                let tables = KEYS.iter().map(|key| key.table).chain(LISTS.iter().copied());
                let help = nearest(name, tables);
                self.fault(table.span(), format!("unknown table `{name}`"), help);
                continue;
            }
            let DeValue::Table(keys) = value.get_ref() else {
                let help = Some(format!("write `[{name}]` and its keys below"));
                self.fault(value.span(), format!("`{name}` is a table"), help);
                continue;
            };
            for (key, value) in keys {
                self.key(name, key, value, config);
            }
        }
    }

    fn key(
        &mut self,
        table: &str,
        key: &Spanned<toml::de::DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        config: &mut Config,
    ) {
        let name = key.get_ref().as_ref();
        let known = KEYS.iter().find(|k| k.table == table && k.name == name);
        match known {
            None => {
                let keys = KEYS.iter().filter(|k| k.table == table).map(|k| k.name);
                let help = nearest(name, keys);
                self.fault(key.span(), format!("unknown key `{table}.{name}`"), help);
            }
            Some(known) if !known.honoured => {
                self.fault(key.span(), format!("`{table}.{name}`: not in this version"), None);
            }
            Some(_) => match (table, name) {
                ("device", "name") => self.device_name(value, &mut config.device.name),
                ("device", "addresses") => self.addresses(value, &mut config.device.addresses),
                ("device", "mtu") => self.mtu(value, &mut config.device.mtu),
                ("policy", "directory") => {
                    config.policy = self.string(value).map(PathBuf::from);
                }
                ("limits", "flows") => self.flows(value, &mut config.limits.flows),
                ("limits", "memory") => self.memory(value, &mut config.limits.memory),
                _ => self.fault(key.span(), format!("`{table}.{name}`: not in this version"), None),
            },
        }
    }

    fn device_name(&mut self, value: &Spanned<DeValue<'_>>, name: &mut String) {
        let Some(text) = self.string(value) else { return };
        let fits = engine::DeviceName::new(&text).is_some()
            && !text.contains(['/', ':', '%'])
            && !text.contains(char::is_whitespace)
            && text != "."
            && text != "..";
        if fits {
            *name = text;
        } else {
            let help = "1 to 15 bytes without `/`, `:`, `%` and white space";
            self.fault(value.span(), "not a device name", Some(help.to_owned()));
        }
    }

    fn addresses(&mut self, value: &Spanned<DeValue<'_>>, addresses: &mut Vec<IpNet>) {
        let DeValue::Array(items) = value.get_ref() else {
            let help = "for example [\"198.18.0.1/32\"]".to_owned();
            self.fault(value.span(), "a list of addresses is wanted", Some(help));
            return;
        };
        addresses.clear();
        for item in items {
            let Some(text) = self.string(item) else { continue };
            let parsed = text
                .parse::<IpNet>()
                .ok()
                .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
                .filter(|net| usable(net.addr()));
            match parsed {
                Some(net)
                    if addresses.iter().any(|a| a.addr().is_ipv4() == net.addr().is_ipv4()) =>
                {
                    self.fault(item.span(), "one address of each IP version", None);
                }
                Some(net) => addresses.push(net),
                None => self.fault(item.span(), "not an address that a device can have", None),
            }
        }
        if items.is_empty() {
            self.fault(value.span(), "at least one address is needed", None);
        }
    }

    fn mtu(&mut self, value: &Spanned<DeValue<'_>>, mtu: &mut u16) {
        // RFC 8200 5: IPv6 needs 1,280 bytes; 65,535 is an IPv4 packet's limit.
        if let Some(bytes) = self.integer(value, 1_280..=65_535) {
            *mtu = bytes as u16;
        }
    }

    fn flows(&mut self, value: &Spanned<DeValue<'_>>, flows: &mut usize) {
        if let Some(count) = self.integer(value, 16..=4_194_304) {
            *flows = count as usize;
        }
    }

    fn memory(&mut self, value: &Spanned<DeValue<'_>>, memory: &mut usize) {
        let Some(text) = self.string(value) else { return };
        match bytes(&text) {
            Some(bytes) if bytes >= 4 << 20 => *memory = bytes,
            Some(_) => self.fault(value.span(), "at least 4MiB are needed", None),
            None => {
                let help = "a number and KiB, MiB or GiB, for example \"512MiB\"".to_owned();
                self.fault(value.span(), "not an amount of memory", Some(help));
            }
        }
    }

    fn string(&mut self, value: &Spanned<DeValue<'_>>) -> Option<String> {
        if let DeValue::String(text) = value.get_ref() {
            return Some(text.to_string());
        }
        self.fault(value.span(), "a string in quotes is wanted", None);
        None
    }

    fn integer(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let number = if let DeValue::Integer(number) = value.get_ref() {
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
        } else {
            None
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.fault(value.span(), format!("a number from {least} to {most} is wanted"), None);
        }
        number
    }

    fn fault(&mut self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        self.faults.push(Fault { line, column, message: message.into(), help });
    }
}

fn usable(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn bytes(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// The known word that differs least, where it differs little.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|k| (distance(word, k), k))
        .min()
        .filter(|(d, k)| *d <= 1 + k.len() / 3)
        .map(|(_, k)| format!("did you mean `{k}`?"))
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = if ca == *cb { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_honoured_or_refused() {
        let value = |key: &Key| match (key.table, key.name) {
            ("device", "name") => "\"tun7\"",
            ("device", "addresses") => "[\"198.18.7.1/32\"]",
            ("device", "mtu") => "1400",
            ("policy", "directory") => "\"policy.d\"",
            ("limits", "flows") => "1000",
            ("limits", "memory") => "\"64MiB\"",
            _ => "true",
        };
        for key in KEYS {
            let text = format!("[{}]\n{} = {}\n", key.table, key.name, value(key));
            match parse(Path::new("/etc/t.toml"), &text) {
                Ok(config) => {
                    assert!(key.honoured, "{}.{} was accepted and ignored", key.table, key.name);
                    assert_ne!(config, Config::default(), "{}.{}", key.table, key.name);
                }
                Err(faults) => {
                    assert!(!key.honoured, "{faults}");
                    assert!(faults.to_string().contains("not in this version"), "{faults}");
                    assert_eq!((faults.faults[0].line, faults.faults[0].column), (2, 1));
                }
            }
        }
        for list in LISTS {
            let faults = parse(Path::new("t.toml"), &format!("[[{list}]]\nname = \"x\"\n"));
            let faults = faults.expect_err("refused").to_string();
            assert!(faults.contains("not in this version"), "{faults}");
        }
    }

    /// The example of `docs/configuration.md` says the defaults.
    #[test]
    fn the_documented_configuration_is_true() {
        let docs = include_str!("../../docs/configuration.md");
        let block = docs.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let config = parse(Path::new("/etc/tunneld/tunneld.toml"), block.expect("a block"));
        let documented =
            Config { policy: Some(PathBuf::from("/etc/tunneld/policy.d")), ..Config::default() };
        assert_eq!(config.expect("no faults"), documented);
    }

    #[test]
    fn faults_have_a_place_and_help() {
        for (name, text, want) in [
            (
                "unknown table",
                "[devise]\n",
                "t.toml:1:2: unknown table `devise`\nhelp: did you mean `device`?",
            ),
            (
                "unknown key",
                "[device]\nmtuu = 1\n",
                "t.toml:2:1: unknown key `device.mtuu`\nhelp: did you mean `mtu`?",
            ),
            (
                "too small",
                "[device]\nmtu = 100\n",
                "t.toml:2:7: a number from 1280 to 65535 is wanted",
            ),
            ("no string", "[device]\nname = 3\n", "t.toml:2:8: a string in quotes is wanted"),
            (
                "bad name",
                "[device]\nname = \"a/b\"\n",
                "t.toml:2:8: not a device name\nhelp: 1 to 15 bytes without `/`, `:`, `%` and white space",
            ),
            (
                "bad amount",
                "[limits]\nmemory = \"lots\"\n",
                "t.toml:2:10: not an amount of memory\nhelp: a number and KiB, MiB or GiB, for example \"512MiB\"",
            ),
            (
                "two at once",
                "[device]\nmtu = 1\nname = 1\n",
                "t.toml:2:7: a number from 1280 to 65535 is wanted\nerror: t.toml:3:8: a string in quotes is wanted",
            ),
            (
                "loopback",
                "[device]\naddresses = [\"127.0.0.1\"]\n",
                "t.toml:2:14: not an address that a device can have",
            ),
        ] {
            let faults = parse(Path::new("t.toml"), text).expect_err(name);
            assert_eq!(faults.to_string(), want, "{name}");
        }
        assert!(parse(Path::new("t.toml"), "= 3").is_err());
    }
}
