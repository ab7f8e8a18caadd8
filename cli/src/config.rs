//! `tunneld.toml`: from text to a checked value, all errors at once.
//!
//! Every key of the stable interface is known here ([`keys`]). One whose function this build
//! lacks is an error, never a setting without effect; so is a value that asks for more than
//! this build does. One file serves `exec` and `run`: `exec` checks the keys of `run` and
//! does nothing with them.

mod fault;
mod keys;
mod names;
mod nearest;
mod proxy;
mod reader;
mod schema;
pub(crate) mod secret;
mod values;
mod wireguard;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use dns::tls::{ServerName, Trust};
use engine::policy::Policy;
use engine::{DeviceName, Resolvers, WayKind, WayNames};
use ipnet::IpNet;
use tunnel::egress::proxy::{Login, Speaks};
use zeroize::Zeroizing;

pub(crate) use self::fault::{Excerpt, Fault, Faults};
pub(crate) use self::nearest::nearest;
use self::reader::{Reader, Uid};
pub(crate) use self::schema::schema;
pub(crate) use self::wireguard::tunnel_name;
use crate::error::{Refusal, code};
use crate::wireguard::{Endpoint, Interface};

/// What a configuration says, with the defaults where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) device: Device,
    pub(crate) host: Host,
    /// Where policies are read from when no `--policy` is given.
    pub(crate) policy: Option<PathBuf>,
    /// Tunnels, in the order of the file.
    pub(crate) wireguard: Vec<WireGuard>,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) resolvers: Vec<Resolver>,
    pub(crate) dns: Dns,
    pub(crate) guard: Guard,
    pub(crate) limits: Limits,
    pub(crate) control: Control,
}

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireGuard {
    /// Unlike that of every other way out.
    pub(crate) name: DeviceName,
    pub(crate) interface: Interface,
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Unlike that of every other way out.
    pub(crate) name: String,
    pub(crate) speaks: Speaks,
    pub(crate) place: Endpoint,
    /// The tunnel that it is reached through; `None`: `direct`.
    pub(crate) via: Option<DeviceName>,
    pub(crate) login: Option<Login>,
    /// Over TLS: whom its certificate must name.
    pub(crate) tls: Option<ServerName<'static>>,
    pub(crate) trust: Trust,
}

/// Named servers that answer names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Unlike all others.
    pub(crate) name: String,
    /// At least one, and at least one that has an address.
    pub(crate) settings: dns::upstream::Settings,
    /// The tunnel through which they are asked; `None`: `direct`.
    pub(crate) via: Option<DeviceName>,
}

/// How names are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dns {
    /// Where, inside.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether every captured port 53 is answered as well.
    pub(crate) intercept: bool,
    /// How the host's resolver is led to us.
    pub(crate) takeover: Takeover,
    /// The network's own servers. `None`: those that the network names.
    pub(crate) upstream: Option<Vec<dns::server::Server>>,
    /// Answers that are kept.
    pub(crate) cache: usize,
}

/// Who on this host is told that names are answered by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// Whoever is there.
    Auto,
    /// systemd-resolved.
    Resolved,
    /// resolvconf(8).
    Resolvconf,
    /// `/etc/resolv.conf`.
    File,
    /// Nobody.
    Nobody,
}

/// The TUN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// At most one of each IP version.
    pub(crate) addresses: Vec<IpNet>,
    /// Bytes.
    pub(crate) mtu: u16,
    pub(crate) queues: Queues,
    pub(crate) capture: Capture,
    /// Whether what this host forwards is captured like its own.
    pub(crate) forward: bool,
}

/// Queues of the device, and so shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queues {
    /// As many as fit this host.
    Auto,
    /// 1 to 64.
    Count(usize),
}

/// Which destinations are led into the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Capture {
    /// All.
    All,
    /// Those in any of these prefixes, which are at least one.
    Prefixes(Vec<IpNet>),
    /// None.
    Nothing,
}

/// What the routing of this host is changed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// Of tunneld's own packets, within `mask` and not 0.
    pub(crate) mark: u32,
    pub(crate) mask: u32,
    /// The routing table.
    pub(crate) table: u32,
    /// Of the first routing rule.
    pub(crate) priority: u32,
}

/// What becomes of packets that the engine has not judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guard {
    /// `None` where the file does not say. The interface's default is `closed`, which this
    /// build can't keep: a daemon must not start as if it did.
    pub(crate) mode: Option<GuardMode>,
    /// Devices that are no uplinks: names, or their beginnings with a `*`.
    pub(crate) local: Vec<String>,
}

/// Whether unjudged packets may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuardMode {
    /// They may: what routing does not lead into the device, or leads past it when the daemon
    /// is gone, leaves.
    Open,
}

/// What a daemon may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) flows: usize,
    /// Bytes of rings.
    pub(crate) memory: usize,
}

/// Who may look at a daemon and command it, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// At most 107 bytes.
    pub(crate) socket: PathBuf,
    /// A group that may look. It need not exist.
    pub(crate) group: String,
    /// Uids that may act, beside root.
    pub(crate) admins: Vec<u32>,
}

/// What a policy may name beside what it says itself, each under its number for life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) resolvers: Resolvers,
    pub(crate) ways: WayNames,
}

impl Named {
    /// What a policy that is in force may name.
    pub(crate) fn of(policy: &Policy) -> Self {
        Self { resolvers: policy.resolvers().clone(), ways: policy.ways().clone() }
    }
}

impl Config {
    /// What a policy may name under a daemon that has had no other configuration.
    pub(crate) fn named(&self) -> anyhow::Result<Named> {
        self.named_after(&Named::default())
    }

    /// Whether keys or passwords are in memory with it.
    pub(crate) fn has_secrets(&self) -> bool {
        let identity = |resolver: &Resolver| resolver.settings.trust.identity.is_some();
        let secret = |proxy: &Proxy| proxy.login.is_some() || proxy.trust.identity.is_some();
        !self.wireguard.is_empty()
            || self.proxies.iter().any(secret)
            || self.resolvers.iter().any(identity)
    }

    /// The same under one that had another before.
    pub(crate) fn named_after(&self, before: &Named) -> anyhow::Result<Named> {
        let resolvers = self.resolvers.iter().map(|resolver| &*resolver.name);
        let tunnels = self.wireguard.iter().map(|tunnel| (tunnel.name.as_str(), WayKind::Link));
        let proxies = self.proxies.iter().map(|proxy| (&*proxy.name, WayKind::Proxy));
        Ok(Named {
            resolvers: before.resolvers.configured(resolvers)?,
            ways: before.ways.configured(tunnels.chain(proxies))?,
        })
    }
}

impl Default for Device {
    fn default() -> Self {
        Self {
            name: "tunneld0".to_owned(),
            // Benchmarking ranges: a unique local address would lose to IPv4 when addresses
            // are sorted (RFC 6724).
            addresses: vec![
                IpNet::new_assert(IpAddr::from([198, 18, 0, 1]), 32),
                IpNet::new_assert(IpAddr::from([0x2001, 2, 0, 0x756e, 0, 0, 0, 1]), 128),
            ],
            mtu: 1500,
            queues: Queues::Auto,
            capture: Capture::All,
            forward: true,
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self { mark: 0x7400_0000, mask: 0xff00_0000, table: 29_806, priority: 100 }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            addresses: vec![
                IpAddr::from([198, 18, 0, 2]),
                IpAddr::from([0x2001, 2, 0, 0x756e, 0, 0, 0, 2]),
            ],
            intercept: false,
            takeover: Takeover::Auto,
            upstream: None,
            cache: 10_000,
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        let local = ["docker0", "br-*", "virbr*", "veth*", "lxcbr*"];
        Self { mode: None, local: local.map(str::to_owned).into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 65_536, memory: 512 << 20 }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/tunneld/control.sock"),
            group: "tunneld".to_owned(),
            admins: Vec::new(),
        }
    }
}

impl Dns {
    /// Where names are answered, as the shards take it.
    pub(crate) fn service(&self) -> engine::ResolverService {
        engine::ResolverService { addresses: self.addresses.clone(), intercept: self.intercept }
    }
}

impl Config {
    /// Whether anything of IPv4, and anything of IPv6, is led into the device.
    fn captured(&self) -> [bool; 2] {
        let any = |v4| match &self.device.capture {
            Capture::All => true,
            Capture::Nothing => false,
            Capture::Prefixes(prefixes) => {
                let prefixes = prefixes.iter().map(IpNet::addr);
                prefixes.chain(self.dns.addresses.iter().copied()).any(|a| a.is_ipv4() == v4)
            }
        };
        [any(true), any(false)]
    }

    /// The keys that differ in `new` and that a running daemon can't take.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let (device, host, guard, control) = (&self.device, &self.host, &self.guard, &self.control);
        let captures = self.device.capture == new.device.capture;
        [
            ("device.name", device.name != new.device.name),
            ("device.addresses", device.addresses != new.device.addresses),
            ("device.mtu", device.mtu != new.device.mtu),
            ("device.queues", device.queues != new.device.queues),
            ("device.capture", device.capture != new.device.capture),
            ("device.forward", device.forward != new.device.forward),
            ("host.mark", (host.mark, host.mask) != (new.host.mark, new.host.mask)),
            ("host.table", host.table != new.host.table),
            ("host.priority", host.priority != new.host.priority),
            // Rules of an IP version come with the first prefix of it, and go with the last.
            ("dns.address", captures && self.captured() != new.captured()),
            ("guard.mode", guard.mode != new.guard.mode),
            ("guard.local", guard.local != new.guard.local),
            ("control.socket", control.socket != new.control.socket),
            ("control.group", control.group != new.control.group),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// Reads a file as [`parse`] does.
///
/// # Errors
/// It cannot be read, or it has faults.
pub(crate) fn read(file: &Path) -> anyhow::Result<Config> {
    refused(parse(file, &text_of(file)?))
}

/// Reads a file as [`look`] does.
///
/// # Errors
/// It cannot be read, or it has faults.
pub(crate) fn read_for_daemon(file: &Path) -> anyhow::Result<Config> {
    refused(whole(look(file, &text_of(file)?)))
}

/// The text of a configuration.
///
/// # Errors
/// It cannot be read.
pub(crate) fn text_of(file: &Path) -> Result<Zeroizing<String>, Refusal> {
    std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| Refusal::new(code::FAILED, format!("{}: {error}", file.display())))
}

fn refused(read: Result<Config, Faults>) -> anyhow::Result<Config> {
    Ok(read.map_err(|faults| Refusal::new(code::USAGE, faults))?)
}

/// Reads a configuration. Relative paths in it are relative to its directory; users are
/// looked up on this host.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Config, Faults> {
    parse_with(file, text, &crate::policy_files::uid)
}

fn parse_with(file: &Path, text: &str, uid: Uid<'_>) -> Result<Config, Faults> {
    whole(faults_of(file, Reader::new(text, directory(file), uid).of_file(file).read()))
}

/// Reads the configuration of a daemon, which must say more than another: see [`Guard::mode`].
/// A key with a fault keeps its default.
pub(crate) fn look(file: &Path, text: &str) -> (Config, Faults) {
    let uid = &crate::policy_files::uid;
    faults_of(file, Reader::new(text, directory(file), uid).of_file(file).of_daemon().read())
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or_else(|| Path::new(""))
}

fn faults_of(file: &Path, (config, faults): (Config, Vec<Fault>)) -> (Config, Faults) {
    (config, Faults { file: file.to_owned(), faults })
}

/// The configuration, where it has no fault.
pub(crate) fn whole((config, faults): (Config, Faults)) -> Result<Config, Faults> {
    if faults.faults.is_empty() { Ok(config) } else { Err(faults) }
}

#[cfg(test)]
mod tests;
