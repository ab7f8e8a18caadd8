//! The keys of the stable interface: which this build honours, who uses them, and whether a
//! running daemon takes a change.

use toml::Spanned;
use toml::de::DeValue;

use super::Config;
use super::reader::Reader;
use super::values;

/// Reads a key's value into the configuration, or notes what is wrong with it.
pub(super) type Read = fn(&mut Reader<'_>, &Spanned<DeValue<'_>>, &mut Config);

/// A key of the stable interface.
pub(super) struct Key {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    /// `None`: this build lacks its function, and to write it is an error.
    pub(super) read: Option<Read>,
    pub(super) user: User,
    pub(super) change: Change,
}

/// Which verb does something with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// `exec` and `run`.
    Both,
    /// `run` alone: in a sandbox there is nothing that it could mean.
    Run,
}

/// What a change of a key needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A reload.
    Live,
    /// A restart; a reload that finds it changed is refused.
    Restart,
}

const fn both(table: &'static str, name: &'static str, change: Change, read: Read) -> Key {
    Key { table, name, read: Some(read), user: User::Both, change }
}

const fn run(table: &'static str, name: &'static str, change: Change, read: Read) -> Key {
    Key { table, name, read: Some(read), user: User::Run, change }
}

const fn later(table: &'static str, name: &'static str) -> Key {
    Key { table, name, read: None, user: User::Run, change: Change::Live }
}

/// All of them, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    both("device", "name", Change::Restart, values::device_name),
    both("device", "addresses", Change::Restart, values::addresses),
    both("device", "mtu", Change::Restart, values::mtu),
    run("device", "queues", Change::Restart, values::queues),
    run("device", "capture", Change::Restart, values::capture),
    run("device", "forward", Change::Restart, values::forward),
    run("host", "mark", Change::Restart, values::mark),
    run("host", "table", Change::Restart, values::table),
    run("host", "priority", Change::Restart, values::priority),
    both("policy", "directory", Change::Live, values::policy),
    later("dns", "address"),
    later("dns", "intercept"),
    later("dns", "takeover"),
    later("dns", "upstream"),
    later("dns", "cache"),
    both("udp", "filtering", Change::Live, values::filtering),
    run("guard", "mode", Change::Restart, values::guard_mode),
    run("guard", "lan", Change::Restart, values::lan),
    run("guard", "inbound", Change::Restart, values::inbound),
    run("guard", "local", Change::Restart, values::local),
    later("path", "hold"),
    both("limits", "flows", Change::Live, values::flows),
    both("limits", "memory", Change::Live, values::memory),
    later("sandbox", "required"),
    run("control", "socket", Change::Restart, values::socket),
    run("control", "group", Change::Restart, values::group),
    run("control", "admins", Change::Live, values::admins),
    run("control", "metrics", Change::Live, values::metrics),
    run("control", "web", Change::Live, values::web),
];

/// Tables that stand in double brackets; none is honoured yet.
pub(super) const LISTS: &[&str] = &["wireguard", "proxy", "resolver"];
