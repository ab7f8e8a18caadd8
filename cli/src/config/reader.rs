//! Walks through a parsed file: each key goes to its reader, each fault gets its place.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::fault::{Excerpt, Fault};
use super::keys::{KEYS, LISTS, ReadEntry};
use super::nearest::nearest;
use super::{Config, Takeover, names, secret, wireguard};
use crate::wireguard::file;

/// Where systemd-resolved answers (systemd-resolved.service(8)).
const RESOLVED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The uid of a user, by name.
pub(crate) type Uid<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// Reads one file.
pub(super) struct Reader<'a> {
    text: &'a str,
    /// What relative paths are relative to.
    directory: &'a Path,
    uid: Uid<'a>,
    /// A daemon reads it, which wants more to be written.
    daemon: bool,
    faults: Vec<Fault>,
    /// Where each server's address stands, to be held against our own.
    servers: Vec<(Range<usize>, IpAddr)>,
    /// Where the name of a way out stands, to be held against the tunnels.
    vias: Vec<(Range<usize>, String)>,
    /// Where the name of each tunnel stands.
    tunnels: Vec<(Range<usize>, String)>,
    /// Where the first secret stands.
    secret: Option<Range<usize>>,
    /// The file that is read, where it is one.
    file: Option<&'a Path>,
    /// It is no TOML.
    broken: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, directory: &'a Path, uid: Uid<'a>) -> Self {
        Self {
            text,
            directory,
            uid,
            daemon: false,
            faults: Vec::new(),
            servers: Vec::new(),
            vias: Vec::new(),
            tunnels: Vec::new(),
            secret: None,
            file: None,
            broken: false,
        }
    }

    /// The same, of a file, which others may not read where it holds a secret.
    pub(super) fn of_file(self, file: &'a Path) -> Self {
        Self { file: Some(file), ..self }
    }

    /// The same for a daemon.
    pub(super) fn of_daemon(self) -> Self {
        Self { daemon: true, ..self }
    }

    /// Reads everything; a key that has a fault keeps its default.
    pub(super) fn read(mut self) -> (Config, Vec<Fault>) {
        let mut config = Config::default();
        match DeTable::parse(self.text) {
            Ok(root) => {
                self.root(root.get_ref(), &mut config);
                self.servers_that_are_us(&config);
                wireguard::names(&mut self, &mut config);
                names::ways_beneath(&mut self, &config);
                self.secrets_are_kept();
            }
            Err(error) => {
                self.broken = true;
                self.fault(error.span().unwrap_or(0..0), error.message(), None);
            }
        }
        // What the configuration itself says first.
        self.faults.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        (config, self.faults)
    }

    fn root(&mut self, root: &DeTable<'_>, config: &mut Config) {
        for (table, value) in root {
            let name = table.get_ref().as_ref();
            if let Some(list) = LISTS.iter().find(|list| list.name == name) {
                match list.read.filter(|_| list.honoured) {
                    Some(read) => self.entries(name, value, read, config),
                    None => {
                        self.fault(
                            table.span(),
                            format!("`[[{name}]]`: not in this version"),
                            None,
                        );
                    }
                }
                continue;
            }
            if !KEYS.iter().any(|key| key.table == name) {
                let tables =
                    KEYS.iter().map(|key| key.table).chain(LISTS.iter().map(|list| list.name));
                let help = nearest(name, tables);
                self.fault(table.span(), format!("unknown table `{name}`"), help);
                continue;
            }
            let DeValue::Table(keys) = value.get_ref() else {
                let help = format!("write `[{name}]` and its keys below");
                self.fault(value.span(), format!("`{name}` is a table"), Some(help));
                continue;
            };
            for (key, value) in keys {
                self.key(name, key, value, config);
            }
        }
        if self.daemon {
            self.want_guard_mode(root);
        }
    }

    /// How a daemon guards must be written: the interface's default is `closed`, which this
    /// build can't keep, and a daemon must not start as if it did.
    fn want_guard_mode(&mut self, root: &DeTable<'_>) {
        let guard = root.get_key_value("guard");
        // Where it is no table that was said.
        let keys = guard.map(|(_, guard)| guard.get_ref().as_table());
        if !keys.is_some_and(|keys| keys.is_none_or(|keys| keys.contains_key("mode"))) {
            let span = guard.map_or(0..0, |(table, _)| table.span());
            let message =
                "`guard.mode` is not written: its default, `closed`, is not in this version";
            self.fault(span, message, Some("write mode = \"open\" below [guard]".to_owned()));
        }
    }

    fn entries(
        &mut self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        read: ReadEntry,
        config: &mut Config,
    ) {
        let mut tables = Vec::new();
        if let DeValue::Array(items) = value.get_ref() {
            for item in items {
                if let DeValue::Table(table) = item.get_ref() {
                    tables.push(Spanned::new(item.span(), table.clone()));
                }
            }
            if tables.len() == items.len() {
                tables.iter().for_each(|table| read(self, table, config));
                return;
            }
        }
        let help = format!("write `[[{name}]]` and its keys below");
        self.fault(value.span(), format!("`{name}` is a list of tables"), Some(help));
    }

    /// Notes where a server's address stands.
    pub(super) fn server(&mut self, span: Range<usize>, address: IpAddr) {
        self.servers.push((span, address));
    }

    /// A resolver that asks itself would never answer, nor one that asks who is led to us.
    fn servers_that_are_us(&mut self, config: &Config) {
        let led_here = self.daemon && config.dns.takeover != Takeover::Nobody;
        for (span, address) in std::mem::take(&mut self.servers) {
            let address = address.to_canonical();
            if config.dns.addresses.contains(&address) {
                let help = "tunneld itself answers there: a server behind it is wanted".to_owned();
                self.fault(span, format!("`{address}` is in `dns.address`"), Some(help));
            } else if config.device.addresses.iter().any(|own| own.addr() == address) {
                let help = "nobody else is there: a server behind it is wanted".to_owned();
                self.fault(span, format!("`{address}` is in `device.addresses`"), Some(help));
            } else if led_here && RESOLVED.contains(&address) {
                let help = "name the servers behind it, or write takeover = \"none\"".to_owned();
                let message = format!("at `{address}` is systemd-resolved, which is led to us");
                self.fault(span, message, Some(help));
            }
        }
    }

    /// Notes where the name of a way out stands.
    pub(super) fn via(&mut self, span: Range<usize>, name: String) {
        self.vias.push((span, name));
    }

    pub(super) fn take_vias(&mut self) -> Vec<(Range<usize>, String)> {
        std::mem::take(&mut self.vias)
    }

    /// Notes where the name of a tunnel stands.
    pub(super) fn tunnel(&mut self, span: Range<usize>, name: String) {
        self.tunnels.push((span, name));
    }

    pub(super) fn take_tunnels(&mut self) -> Vec<(Range<usize>, String)> {
        std::mem::take(&mut self.tunnels)
    }

    /// Notes that a secret stands in the configuration itself.
    pub(super) fn secret(&mut self, span: Range<usize>) {
        self.secret.get_or_insert(span);
    }

    /// A file that holds a secret is its owner's alone.
    fn secrets_are_kept(&mut self) {
        let Some(span) = self.secret.take() else { return };
        let Some(file) = self.file else { return };
        // Where there is no such file the text came from elsewhere.
        let Ok(metadata) = file.metadata() else { return };
        let mode = metadata.mode() & 0o777;
        if file::is_open(mode) {
            let message =
                format!("others may read this secret: the mode of the file is {mode:03o}");
            let help = format!("chmod 600 {}", file.display());
            self.fault(span, message, Some(help));
        }
    }

    /// Takes the faults of another file.
    pub(super) fn faults_of(&mut self, file: &Path, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter();
        self.faults.extend(faults.map(|fault| Fault { file: Some(file.to_owned()), ..fault }));
    }

    fn key(
        &mut self,
        table: &str,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        config: &mut Config,
    ) {
        let name = key.get_ref().as_ref();
        let Some(known) = KEYS.iter().find(|k| k.table == table && k.name == name) else {
            let keys = KEYS.iter().filter(|k| k.table == table).map(|k| k.name);
            let help = nearest(name, keys);
            self.fault(key.span(), format!("unknown key `{table}.{name}`"), help);
            return;
        };
        match known.read.filter(|_| known.honoured) {
            Some(read) => read(self, value, config),
            None => {
                self.fault(key.span(), format!("`{table}.{name}`: not in this version"), None);
            }
        }
    }

    pub(super) fn string(&mut self, value: &Spanned<DeValue<'_>>) -> Option<String> {
        if let DeValue::String(text) = value.get_ref() {
            return Some(text.to_string());
        }
        self.fault(value.span(), "a string in quotes is wanted", None);
        None
    }

    pub(super) fn integer(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        range: RangeInclusive<i64>,
    ) -> Option<i64> {
        let number = integer(value.get_ref()).filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.fault(value.span(), format!("a number from {least} to {most} is wanted"), None);
        }
        number
    }

    pub(super) fn boolean(&mut self, value: &Spanned<DeValue<'_>>) -> Option<bool> {
        if let DeValue::Boolean(boolean) = value.get_ref() {
            return Some(*boolean);
        }
        self.fault(value.span(), "true or false is wanted", None);
        None
    }

    /// A list of `what`, for example `example`.
    pub(super) fn list<'v, 't>(
        &mut self,
        value: &'v Spanned<DeValue<'t>>,
        what: &str,
        example: &str,
    ) -> Option<&'v DeArray<'t>> {
        if let DeValue::Array(items) = value.get_ref() {
            return Some(items);
        }
        let help = format!("for example {example}");
        self.fault(value.span(), format!("a list of {what} is wanted"), Some(help));
        None
    }

    /// A path, made relative to where the file lies.
    pub(super) fn path(&mut self, value: &Spanned<DeValue<'_>>) -> Option<PathBuf> {
        let text = self.string(value)?;
        if text.is_empty() || text.contains('\0') {
            self.fault(value.span(), "not a path", None);
            return None;
        }
        Some(self.directory.join(text))
    }

    /// One of the words of the interface, of which this build honours `now` alone.
    pub(super) fn only(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        key: &str,
        now: &str,
        later: &[&str],
    ) -> bool {
        let Some(text) = self.string(value) else { return false };
        if text == now {
            return true;
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        if later.contains(&&*text) {
            let help = format!("write {name} = \"{now}\"");
            let message = format!("`{key} = \"{text}\"`: not in this version");
            self.fault(value.span(), message, Some(help));
        } else {
            let mut words = format!("`{now}`");
            for word in later {
                words.push_str(&format!(" or `{word}`"));
            }
            self.fault(value.span(), format!("{words} is wanted"), None);
        }
        false
    }

    pub(super) fn uid(&self, user: &str) -> Option<u32> {
        (self.uid)(user)
    }

    pub(super) fn fault(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let number = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let line = self.text.lines().nth(number).unwrap_or_default();
        let shown =
            if self.broken { secret::broken_line(self.text, line) } else { secret::line(line) };
        self.faults.push(Fault {
            file: None,
            line: number + 1,
            column,
            message: secret::masked(&message.into()).into_owned(),
            help: help.map(|help| secret::masked(&help).into_owned()),
            excerpt: Excerpt::new(line, &shown, column),
        });
    }
}

/// The number that a value is, if it is one.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let DeValue::Integer(number) = value else { return None };
    i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}
