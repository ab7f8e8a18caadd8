//! The keys of the stable interface: which this build honours, who uses them, and whether a
//! running daemon takes a change.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::reader::Reader;
use super::{names, proxy, values, wireguard};

/// Reads a key's value into the configuration, or notes what is wrong with it.
pub(super) type Read = fn(&mut Reader<'_>, &Spanned<DeValue<'_>>, &mut Config);

/// A key of the stable interface.
pub(super) struct Key {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    /// `None`: its values mean nothing yet.
    pub(super) read: Option<Read>,
    /// Whether this build has its function; else to write it is an error.
    pub(super) honoured: bool,
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
    Key { table, name, read: Some(read), honoured: true, user: User::Both, change }
}

const fn run(table: &'static str, name: &'static str, change: Change, read: Read) -> Key {
    Key { table, name, read: Some(read), honoured: true, user: User::Run, change }
}

const fn later(table: &'static str, name: &'static str) -> Key {
    Key { table, name, read: None, honoured: false, user: User::Run, change: Change::Live }
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
    both("dns", "address", Change::Live, names::address),
    run("dns", "intercept", Change::Live, names::intercept),
    run("dns", "takeover", Change::Live, names::takeover),
    both("dns", "upstream", Change::Live, names::upstream),
    both("dns", "cache", Change::Live, names::cache),
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

/// A table that stands in double brackets, as often as wanted.
pub(super) struct List {
    pub(super) name: &'static str,
    /// `None`: its keys mean nothing yet.
    pub(super) read: Option<ReadEntry>,
    /// Whether this build has its function; else to write it is an error.
    pub(super) honoured: bool,
}

/// Reads one entry of a list into the configuration, or notes what is wrong with it.
pub(super) type ReadEntry = fn(&mut Reader<'_>, &Spanned<DeTable<'_>>, &mut Config);

/// All of them.
pub(super) const LISTS: &[List] = &[
    List { name: "wireguard", read: Some(wireguard::tunnel), honoured: true },
    List { name: "proxy", read: Some(proxy::proxy), honoured: true },
    List { name: "resolver", read: Some(names::resolver), honoured: true },
];
