//! The JSON Schema of `tunneld.toml`.
//!
//! The types here mirror the file and are never built: the reader proper finds all errors at
//! once and gives each its place, which a derived one doesn't. Tests hold this mirror to
//! [`KEYS`], to the defaults and to the documented example. A key of a later version is not
//! in it: an editor marks it as tunneld does.

#![expect(dead_code, reason = "described, never built")]

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::keys::{Change, KEYS, LISTS, User};

/// The configuration of tunneld. One file serves `tunneld run` and `tunneld exec`.
#[derive(JsonSchema)]
#[schemars(title = "tunneld.toml", deny_unknown_fields)]
struct File {
    device: Device,
    host: Host,
    policy: Policy,
    /// Tunnels of WireGuard.
    #[schemars(length(max = 63))]
    wireguard: Vec<WireGuard>,
    /// Proxies.
    #[schemars(length(max = 63))]
    proxy: Vec<Proxy>,
    /// Named servers that answer names.
    #[schemars(length(max = 63))]
    resolver: Vec<Resolver>,
    dns: Dns,
    udp: Udp,
    guard: Guard,
    limits: Limits,
    control: Control,
}

/// The TUN device.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Device {
    /// Name of the device, at most 15 bytes. Default: tunneld0.
    #[schemars(regex(pattern = r"^[^/:%\s]{1,15}$"), extend("default" = "tunneld0"))]
    name: String,
    /// Addresses of the device, at most one of each IP version. Default: one of each
    /// benchmarking range.
    #[schemars(length(min = 1, max = 2))]
    #[schemars(extend("default" = ["198.18.0.1/32", "2001:2:0:756e::1/128"]))]
    addresses: Vec<String>,
    /// Largest packet, in bytes. Default: 1500.
    #[schemars(range(min = 1_280, max = 65_535), extend("default" = 1500))]
    mtu: u16,
    /// Queues of the device, each with its own shard. Default: auto, which fits the host's
    /// CPUs.
    #[schemars(extend("default" = "auto"))]
    queues: Queues,
    /// Destinations that are led into the device. Default: all.
    #[schemars(extend("default" = "all"))]
    capture: Capture,
    /// Whether what this host forwards is captured like its own. Default: true.
    #[schemars(extend("default" = true))]
    forward: bool,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Queues {
    Word(Auto),
    Count(#[schemars(range(min = 1, max = 64))] u8),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Auto {
    Auto,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Capture {
    Word(CaptureWord),
    Prefixes(#[schemars(length(min = 1))] Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum CaptureWord {
    All,
    None,
}

/// What the routing of the host is changed with.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Host {
    /// Mark and mask of tunneld's own packets, hexadecimal or decimal; the mark is within the
    /// mask and not 0. Default: 0x74000000/0xff000000.
    #[schemars(regex(pattern = r"^(0x[0-9a-fA-F]+|[0-9]+)/(0x[0-9a-fA-F]+|[0-9]+)$"))]
    #[schemars(extend("default" = "0x74000000/0xff000000"))]
    mark: String,
    /// Number of the routing table that leads into the device. Default: 29806.
    #[schemars(range(min = 1), extend("not" = {"enum": [253, 254, 255]}, "default" = 29806))]
    #[schemars(extend("maximum" = 4_294_967_295_u32))]
    table: u32,
    /// Priority of the routing rules, before the main table's. Default: 100.
    #[schemars(range(min = 2, max = 32_764), extend("default" = 100))]
    priority: u32,
}

/// Where policies are.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Policy {
    /// Directory of *.policy files, relative to the configuration. Default: none with exec,
    /// which then allows everything; /etc/tunneld/policy.d with run.
    #[schemars(length(min = 1))]
    directory: String,
}

/// A tunnel of WireGuard: by a file of wg-quick, or by its keys here. Used by exec and run; a
/// reload takes a change.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct WireGuard {
    /// What policies call it, and the egress device of its flows. No default.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._+-]{1,15}$"))]
    name: String,
    /// File of wg-quick, relative to the configuration, which only its owner may read. Default:
    /// none, and the keys are here.
    #[schemars(length(min = 1))]
    file: String,
    /// Its private key, in base64. No default.
    #[schemars(regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    private_key: String,
    /// File of its private key alone, in its place. Default: none.
    #[schemars(length(min = 1))]
    private_key_file: String,
    /// Its own addresses, at most one of each IP version. No default.
    #[schemars(length(min = 1, max = 2))]
    addresses: Vec<String>,
    /// Its UDP port. Default: one that is free.
    listen_port: u16,
    /// Mark of its own packets: a number, or one in quotes as in "0xca6c", or "off". Default:
    /// host.mark.
    fwmark: Fwmark,
    /// Bytes of its longest packet. Default: what the path leaves.
    #[schemars(range(min = 576))]
    mtu: u16,
    /// Servers behind it, which make a resolver of its name, and search domains. Default: none.
    #[schemars(length(max = 16))]
    dns: Vec<String>,
    /// Its peers. Default: none.
    peer: Vec<Peer>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Fwmark {
    Number(u32),
    Word(#[schemars(regex(pattern = r"^(off|0x[0-9a-fA-F]+|[0-9]+)$"))] String),
}

/// A peer of a tunnel.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Peer {
    /// Its public key, in base64. No default.
    #[schemars(regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    public_key: String,
    /// The key that both share besides, in base64. Default: none.
    #[schemars(regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    preshared_key: String,
    /// File of that key alone, in its place. Default: none.
    #[schemars(length(min = 1))]
    preshared_key_file: String,
    /// Where it is: an address or a name, and a port. Default: where it speaks from.
    #[schemars(length(min = 1))]
    endpoint: String,
    /// Prefixes behind it. Default: none.
    allowed_ips: Vec<String>,
    /// Seconds of silence after which it gets an empty packet, or "off". Default: off.
    persistent_keepalive: Keepalive,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Keepalive {
    Seconds(u16),
    Word(Off),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Off {
    Off,
}

/// A proxy. Used by exec and run; a reload takes a change.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Proxy {
    /// What policies call it. No default.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._+-]{1,64}$"))]
    name: String,
    /// Its language, user and password, address or name, and port. No default.
    #[schemars(regex(pattern = r"^([sS][oO][cC][kK][sS]5|[hH][tT][tT][pP][sS]?)://"))]
    url: String,
    /// Which way it is reached: direct, or the name of a tunnel. Default: direct.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._+-]{1,64}$"), extend("default" = "direct"))]
    via: String,
    /// File of the only roots of its certificate, relative to the configuration. Default: the
    /// host's roots.
    #[schemars(length(min = 1))]
    ca: String,
    /// File with our certificate, its chain and its key, for a proxy that asks for one. Default:
    /// none.
    #[schemars(length(min = 1))]
    identity: String,
}

/// Named servers that answer names. Used by exec and run; a reload takes a change.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Resolver {
    /// What policies call it. No default.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._+-]{1,64}$"))]
    name: String,
    /// Its servers, in the order of asking: an address, or tls://, https://, quic://, tcp://. No
    /// default.
    #[schemars(length(min = 1, max = 16))]
    servers: Vec<String>,
    /// Which way they are reached: direct, or the name of a tunnel. Default: direct.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._+-]{1,64}$"), extend("default" = "direct"))]
    via: String,
    /// File of the only roots of its certificates, relative to the configuration. Default: the
    /// host's roots.
    #[schemars(length(min = 1))]
    ca: String,
    /// File with our certificate, its chain and its key, for servers that ask for one. Default:
    /// none.
    #[schemars(length(min = 1))]
    identity: String,
}

/// How names are answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Dns {
    /// Addresses inside at which names are answered. Default: one of each benchmarking range.
    #[schemars(length(min = 1), extend("default" = ["198.18.0.2", "2001:2:0:756e::2"]))]
    address: Vec<String>,
    /// Whether every captured port 53 is answered as well: none or all. Default: none; with exec
    /// always all.
    #[schemars(extend("default" = "none"))]
    intercept: Intercept,
    /// Who on this host is told that names are answered here. Default: auto, which is whoever is
    /// there.
    #[schemars(extend("default" = "auto"))]
    takeover: Takeover,
    /// The network's own servers. Default: auto, which is those that the network names.
    #[schemars(extend("default" = "auto"))]
    upstream: Upstream,
    /// Number of answers that are kept. Default: 10000.
    #[schemars(range(min = 0, max = 1_000_000), extend("default" = 10000))]
    cache: u32,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Intercept {
    None,
    All,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Takeover {
    Auto,
    Resolved,
    Resolvconf,
    File,
    None,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Upstream {
    Word(Auto),
    Servers(#[schemars(length(min = 1, max = 16))] Vec<String>),
}

/// How UDP is carried.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Udp {
    /// From which peers replies pass (RFC 4787): those to which something was allowed.
    /// Default: endpoint, the only value in this version.
    #[schemars(extend("default" = "endpoint"))]
    filtering: Filtering,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Filtering {
    Endpoint,
}

/// What becomes of packets that the engine has not judged.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Guard {
    /// Whether unjudged packets may leave. No default: run wants it written, and open is the
    /// only value in this version.
    mode: GuardMode,
    /// How the LAN is judged. Default: block, which is like the rest, the only value in this
    /// version.
    #[schemars(extend("default" = "block"))]
    lan: Lan,
    /// What becomes of replies to connections from outside. Default: allow, the only value;
    /// they keep their path.
    #[schemars(extend("default" = "allow"))]
    inbound: Inbound,
    /// Devices that are no uplinks: names; a * at the end stands for the rest. Default: those
    /// of common bridges and containers.
    #[schemars(inner(length(max = 15), regex(pattern = r"^[^*/:%\s]+\*?$")))]
    #[schemars(extend("default" = ["docker0", "br-*", "virbr*", "veth*", "lxcbr*"]))]
    local: Vec<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum GuardMode {
    Open,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Lan {
    Block,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Inbound {
    Allow,
}

/// What a daemon may use.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// Number of flows of every kind and state. Default: 65536.
    #[schemars(range(min = 16, max = 4_194_304), extend("default" = 65536))]
    flows: u32,
    /// Memory of the rings that carry TCP: bytes, or KiB, MiB, GiB; at least 4MiB. Default:
    /// 512MiB.
    #[schemars(regex(pattern = r"^[0-9]+\s*(B|KiB|MiB|GiB)?$"), extend("default" = "512MiB"))]
    memory: String,
}

/// Who may look at a daemon and command it, and where.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Control {
    /// Path of the control socket, relative to the configuration, at most 107 bytes. Default:
    /// /run/tunneld/control.sock.
    #[schemars(length(min = 1, max = 107))]
    #[schemars(extend("default" = "/run/tunneld/control.sock"))]
    socket: String,
    /// Group whose members may look. Default: tunneld.
    #[schemars(regex(pattern = r"^[^:,\s]+$"), extend("default" = "tunneld"))]
    group: String,
    /// Users that may act, beside root: names, or uids. Default: none.
    #[schemars(extend("default" = []))]
    admins: Vec<Admin>,
    /// Address to listen at for metrics, in a later version. Default: empty, which is off.
    #[schemars(length(max = 0), extend("default" = ""))]
    metrics: String,
    /// Address to listen at for the web page, in a later version. Default: empty, which is
    /// off.
    #[schemars(length(max = 0), extend("default" = ""))]
    web: String,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Admin {
    Name(String),
    Uid(#[schemars(range(min = 0), extend("maximum" = 4_294_967_294_u32))] u32),
}

/// The schema, draft 7: what editors of TOML read.
pub(crate) fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    tidy(&mut schema);
    for key in KEYS.iter().filter(|key| key.honoured) {
        let property = &mut schema["properties"][key.table]["properties"][key.name];
        let user = match key.user {
            User::Both => "Used by exec and run",
            User::Run => "Used by run",
        };
        let change = match key.change {
            Change::Live => "a reload takes a change.",
            Change::Restart => "a change needs a restart.",
        };
        let description = property["description"].as_str().unwrap_or_default();
        property["description"] = json!(format!("{description} {user}; {change}"));
    }
    leave_out_what_is_unused(&mut schema["properties"]);
    schema
}

/// A key that is read and does nothing yet is refused: it is not in the schema.
fn leave_out_what_is_unused(tables: &mut Value) {
    let Some(tables) = tables.as_object_mut() else { return };
    for list in LISTS.iter().filter(|list| !list.honoured) {
        tables.remove(list.name);
    }
    for key in KEYS.iter().filter(|key| !key.honoured) {
        let Some(table) = tables.get_mut(key.table) else { continue };
        let keys = table["properties"].as_object_mut();
        if keys.is_some_and(|keys| keys.remove(key.name).is_some() && keys.is_empty()) {
            tables.remove(key.table);
        }
    }
}

/// Takes out what the derived types say and the file doesn't, that anything is required, and
/// the line breaks of the descriptions.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("required");
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let below = object.get_mut("properties").and_then(Value::as_object_mut);
    below.into_iter().flat_map(|below| below.values_mut()).for_each(tidy);
}

#[cfg(test)]
mod tests;
