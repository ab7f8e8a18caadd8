//! Files of wg-quick(8), as people have them.
//!
//! ```text
//! [Interface]                      # headings and keys in any case
//! PrivateKey = …
//! Address = 10.0.0.2/32, fd00::2   # several lines, and lists
//! [Peer]
//! PublicKey = …
//! AllowedIPs = 0.0.0.0/0, ::/0
//! Endpoint = vpn.example:51820
//! ```
//!
//! Everything that is wrong is told at once. No line with a key is quoted, nor one that could
//! be: a line is shown where its key is known and takes no secret, others up to their `=`.
//!
//! What wg-quick does beside WireGuard, routes and commands, is no fault of a file and nothing
//! that we do. It is kept apart ([`Extra`]): a configuration refuses it, `import` says what
//! takes its place.

use std::borrow::Cow;

use super::value::{self, Wrong};
use super::{Draft, DraftPeer, Interface};
use crate::config::{Excerpt, Fault, nearest, secret};

/// More help nobody.
const MOST_FAULTS: usize = 100;

const INTERFACE: [&str; 12] = [
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];

const PEER: [&str; 5] =
    ["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];

/// Keys that may stand below one heading more than once.
const REPEATED: [&str; 7] =
    ["Address", "DNS", "AllowedIPs", "PreUp", "PostUp", "PreDown", "PostDown"];

/// What a file says.
#[derive(Debug)]
pub(crate) struct Conf {
    /// `None`: it has faults.
    pub(crate) interface: Option<Interface>,
    /// In the order of the file.
    pub(crate) extras: Vec<Extra>,
    /// In the order of the file.
    pub(crate) faults: Vec<Fault>,
}

/// Something that wg-quick does and we don't.
#[derive(Debug)]
pub(crate) struct Extra {
    pub(crate) what: What,
    /// It as a fault.
    pub(crate) fault: Fault,
}

/// What wg-quick would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// It runs a command.
    Hook { key: &'static str, command: String },
    /// It adds its routes to another table, or none.
    Table(String),
    /// It writes the file anew.
    SaveConfig,
}

/// Reads the text of a file.
pub(crate) fn read(text: &str) -> Conf {
    let mut parser = Parser::new(text);
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    while !rest.is_empty() && parser.faults.len() < MOST_FAULTS {
        let (line, below) = rest.split_once('\n').unwrap_or((rest, ""));
        parser.line(line);
        rest = below;
    }
    parser.finish()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Before the first heading.
    Nothing,
    Interface,
    Peer,
    Unknown,
}

/// A byte of the text.
type At = usize;

struct Parser<'t> {
    text: &'t str,
    section: Section,
    /// Where the interface's heading stands.
    interface: Option<At>,
    /// Where the last peer's heading stands.
    peer: At,
    draft: Draft<At>,
    /// Keys of the interface, and of the last peer, that were written.
    seen: [Vec<&'static str>; 2],
    extras: Vec<(At, What, Wrong)>,
    faults: Vec<(At, Wrong)>,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            section: Section::Nothing,
            interface: None,
            peer: 0,
            draft: Draft::default(),
            seen: [Vec::new(), Vec::new()],
            extras: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn line(&mut self, line: &'t str) {
        let said = line.split('#').next().unwrap_or(line).trim();
        if said.is_empty() {
            return;
        }
        if said.starts_with('[') {
            return self.heading(said);
        }
        let Some((key, value)) = said.split_once('=') else {
            let wrong = Wrong::new("neither a heading nor a key with its value");
            return self.fault(said, wrong.help("for example `Address = 10.0.0.2/32`"));
        };
        self.key(key.trim(), value.trim());
    }

    fn heading(&mut self, said: &'t str) {
        self.end_peer();
        let name = said.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = name.map(str::trim).unwrap_or_default();
        self.section = if name.eq_ignore_ascii_case("Interface") {
            let at = self.at(said);
            self.interface.get_or_insert(at);
            Section::Interface
        } else if name.eq_ignore_ascii_case("Peer") {
            self.peer = self.at(said);
            self.seen[1].clear();
            self.draft.peers.push(DraftPeer::default());
            Section::Peer
        } else {
            let help = nearest_of(name, &["Interface", "Peer"]);
            let help = help.unwrap_or_else(|| "`[Interface]` or `[Peer]` is wanted".to_owned());
            self.fault(said, Wrong::new("unknown heading").help(help));
            Section::Unknown
        };
    }

    fn key(&mut self, name: &'t str, value: &'t str) {
        let (keys, others, seen): (&[&str], &[&str], usize) = match self.section {
            Section::Interface => (&INTERFACE, &PEER, 0),
            Section::Peer => (&PEER, &INTERFACE, 1),
            Section::Unknown => return,
            Section::Nothing => {
                // Once is enough.
                self.section = Section::Unknown;
                let wrong = Wrong::new("a key before the first heading");
                return self.fault(name, wrong.help("`[Interface]` or `[Peer]` is wanted"));
            }
        };
        let known =
            |keys: &[&'static str]| keys.iter().copied().find(|key| key.eq_ignore_ascii_case(name));
        let Some(key) = known(keys) else {
            let wrong = if let Some(other) = known(others) {
                let heading = if seen == 0 { "[Peer]" } else { "[Interface]" };
                Wrong::new(format!("`{other}` stands below `{heading}`"))
            } else {
                let help = nearest_of(name, keys);
                let wrong = Wrong::new(match short(name) {
                    Some(name) => format!("unknown key `{name}`"),
                    None => "unknown key".to_owned(),
                });
                Wrong { help, ..wrong }
            };
            return self.fault(name, wrong);
        };
        if self.seen[seen].contains(&key) {
            if !REPEATED.contains(&key) {
                return self.fault(name, Wrong::new(format!("`{key}` is given twice")));
            }
        } else {
            self.seen[seen].push(key);
        }
        if value.is_empty() {
            // wg(8): an empty list is one.
            if key != "AllowedIPs" {
                self.fault(name, Wrong::new(format!("`{key}` has no value")));
            }
        } else if seen == 0 {
            self.of_interface(key, value);
        } else {
            self.of_peer(key, value);
        }
    }

    fn of_interface(&mut self, key: &'static str, value: &'t str) {
        match key {
            "PrivateKey" => self.draft.key = self.read(value, value::private_key),
            "ListenPort" => {
                self.draft.listen_port = self.read(value, value::listen_port).flatten();
            }
            "FwMark" => self.draft.fwmark = self.read(value, value::fwmark).flatten(),
            "MTU" => {
                let mtu = self.read(value, value::mtu);
                self.draft.mtu = mtu.map(|mtu| (self.at(value), mtu));
            }
            "Address" => {
                for item in words(value) {
                    let Some(net) = self.read(item, value::address) else { continue };
                    self.draft.address(net);
                }
            }
            "DNS" => {
                for item in words(value) {
                    if let Some(item) = self.read(item, value::dns) {
                        self.draft.dns(item);
                    }
                }
            }
            _ => self.of_wg_quick(key, value),
        }
    }

    /// What wg-quick alone would do.
    fn of_wg_quick(&mut self, key: &'static str, value: &'t str) {
        let (what, wrong) = match key {
            // Both are what there is without the key.
            "Table" if value.eq_ignore_ascii_case("auto") => return,
            "SaveConfig" if value.eq_ignore_ascii_case("false") => return,
            "Table" => (
                What::Table(value.to_owned()),
                Wrong::new("`Table` is refused: the kernel's routes lead nothing into this tunnel")
                    .help("leave it out: `route … via NAME` in the policy leads what shall go"),
            ),
            "SaveConfig" if value.eq_ignore_ascii_case("true") => (
                What::SaveConfig,
                Wrong::new("`SaveConfig` is refused: tunneld never writes to its configuration")
                    .help("leave it out"),
            ),
            "SaveConfig" => return self.fault(value, Wrong::new("true or false is wanted")),
            key => (
                What::Hook { key, command: value.to_owned() },
                Wrong::new(format!("`{key}` is refused: tunneld runs no commands"))
                    .help("leave it out: routes, name servers and a kill switch are the policy's"),
            ),
        };
        self.extras.push((self.at(value), what, wrong));
    }

    fn of_peer(&mut self, key: &'static str, value: &'t str) {
        let at = self.at(value);
        let mut peer = self.draft.peers.pop().unwrap_or_default();
        match key {
            "PublicKey" => {
                peer.key = self.read(value, value::public_key).map(|key| (at, key));
            }
            "PresharedKey" => peer.preshared = self.read(value, value::preshared_key).flatten(),
            "Endpoint" => peer.endpoint = self.read(value, value::endpoint),
            "PersistentKeepalive" => {
                peer.keepalive = self.read(value, value::keepalive).flatten();
            }
            _ => {
                for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    let net = self.read(item, value::allowed);
                    peer.allowed.extend(net.map(|net| (self.at(item), net)));
                }
            }
        }
        self.draft.peers.push(peer);
    }

    fn end_peer(&mut self) {
        if self.section == Section::Peer && !self.seen[1].contains(&"PublicKey") {
            self.faults.push((self.peer, Wrong::new("a peer needs `PublicKey`")));
        }
    }

    fn finish(mut self) -> Conf {
        let whole = self.faults.len() < MOST_FAULTS;
        if whole {
            self.end_peer();
        }
        match self.interface {
            _ if !whole => {}
            None => self.faults.push((0, Wrong::new("there is no `[Interface]`"))),
            Some(at) => {
                for key in ["PrivateKey", "Address"] {
                    if !self.seen[0].contains(&key) {
                        self.faults.push((at, Wrong::new(format!("`{key}` is missing"))));
                    }
                }
            }
        }
        let (interface, wrong) = std::mem::take(&mut self.draft).finish();
        self.faults.extend(wrong);
        self.faults.sort_by_key(|(at, _)| *at);
        let more = self.faults.len() >= MOST_FAULTS;
        self.faults.truncate(MOST_FAULTS);
        let text = self.text;
        let mut faults: Vec<Fault> =
            self.faults.into_iter().map(|(at, wrong)| fault(text, at, wrong)).collect();
        if let Some(last) = faults.last_mut().filter(|_| more) {
            last.help = Some("what else is wrong is not told".to_owned());
        }
        let extras = self.extras.into_iter().take(MOST_FAULTS);
        let extras = extras.map(|(at, what, wrong)| Extra { what, fault: fault(text, at, wrong) });
        let interface = interface.filter(|_| faults.is_empty());
        Conf { interface, extras: extras.collect(), faults }
    }

    /// A value, or a fault at its place.
    fn read<T>(&mut self, text: &'t str, read: fn(&str) -> Result<T, Wrong>) -> Option<T> {
        read(text).map_err(|wrong| self.fault(text, wrong)).ok()
    }

    fn fault(&mut self, part: &'t str, wrong: Wrong) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push((self.at(part), wrong));
        }
    }

    /// Where a part of the text stands.
    fn at(&self, part: &'t str) -> At {
        part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr())
    }
}

/// wg-quick(8) splits some values at white space as well.
fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty())
}

fn nearest_of(word: &str, known: &[&'static str]) -> Option<String> {
    nearest(short(word)?, known.iter().copied())
}

/// A word that is too short for a key, and like one of a configuration.
fn short(word: &str) -> Option<&str> {
    let fits = word.len() <= 24 && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    Some(word).filter(|word| fits && !word.is_empty())
}

fn fault(text: &str, at: At, wrong: Wrong) -> Fault {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let column = before.get(start..).unwrap_or_default().chars().count() + 1;
    let excerpt = Excerpt::new(line, &shown(line), column);
    let Wrong { message, help } = wrong;
    Fault { file: None, line: before.matches('\n').count() + 1, column, message, help, excerpt }
}

/// What may be shown of a line.
fn shown(line: &str) -> Cow<'_, str> {
    const NOTHING: Cow<'_, str> = Cow::Borrowed("…");
    let Some((key, _)) = line.split_once('=') else {
        return if line.trim_start().starts_with('[') { secret::masked(line) } else { NOTHING };
    };
    let name = key.trim();
    let keys = || INTERFACE.iter().chain(&PEER).filter(|key| !key.ends_with("Key"));
    if keys().any(|key| key.eq_ignore_ascii_case(name)) {
        secret::masked(line)
    } else if short(name).is_some() {
        format!("{key}= …").into()
    } else {
        NOTHING
    }
}

#[cfg(test)]
mod tests;
