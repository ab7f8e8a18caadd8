//! One function for each key: from the value in the file to the typed one.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeValue;

use super::reader::{Reader, integer};
use super::{Capture, Config, GuardMode, Queues};

/// A key's value, and where it stands.
type Value<'a> = Spanned<DeValue<'a>>;

/// unix(7): `sun_path` has 108 bytes, the last of them the end.
const SOCKET_PATH: usize = 107;

pub(super) fn device_name(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(text) = reader.string(value) else { return };
    if is_device_name(&text) {
        config.device.name = text;
    } else {
        let help = "1 to 15 bytes without `/`, `:`, `%` and white space";
        reader.fault(value.span(), "not a device name", Some(help.to_owned()));
    }
}

pub(super) fn addresses(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(items) = reader.list(value, "addresses", "[\"198.18.0.1/32\"]") else { return };
    let addresses = &mut config.device.addresses;
    addresses.clear();
    for item in items {
        let Some(text) = reader.string(item) else { continue };
        match prefix(&text).filter(|net| usable(net.addr())) {
            Some(net) if addresses.iter().any(|a| a.addr().is_ipv4() == net.addr().is_ipv4()) => {
                reader.fault(item.span(), "one address of each IP version", None);
            }
            Some(net) => addresses.push(net),
            None => reader.fault(item.span(), "not an address that a device can have", None),
        }
    }
    if items.is_empty() {
        reader.fault(value.span(), "at least one address is needed", None);
    }
}

pub(super) fn mtu(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    // RFC 8200 5: IPv6 needs 1,280 bytes; 65,535 is an IPv4 packet's limit.
    if let Some(bytes) = reader.integer(value, 1_280..=65_535) {
        config.device.mtu = bytes as u16;
    }
}

pub(super) fn queues(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    const MOST: i64 = 64;
    if let DeValue::String(text) = value.get_ref()
        && text == "auto"
    {
        config.device.queues = Queues::Auto;
        return;
    }
    match integer(value.get_ref()).filter(|count| (1..=MOST).contains(count)) {
        Some(count) => config.device.queues = Queues::Count(count as usize),
        None => {
            let message = format!("\"auto\" or a number from 1 to {MOST} is wanted");
            reader.fault(value.span(), message, None);
        }
    }
}

pub(super) fn capture(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    const WANTED: &str = "\"all\", \"none\" or a list of prefixes is wanted";
    if let DeValue::String(text) = value.get_ref() {
        match &**text {
            "all" => config.device.capture = Capture::All,
            "none" => config.device.capture = Capture::Nothing,
            _ => reader.fault(value.span(), WANTED, None),
        }
        return;
    }
    let DeValue::Array(items) = value.get_ref() else {
        let help = "for example [\"10.0.0.0/8\", \"fd00::/8\"]".to_owned();
        reader.fault(value.span(), WANTED, Some(help));
        return;
    };
    if items.is_empty() {
        let help = "write capture = \"none\"".to_owned();
        reader.fault(value.span(), "at least one prefix is needed", Some(help));
    }
    let mut prefixes: Vec<IpNet> = Vec::new();
    for item in items {
        let Some(text) = reader.string(item) else { continue };
        match prefix(&text) {
            None => {
                let help = "for example \"10.0.0.0/8\"".to_owned();
                reader.fault(item.span(), "not a prefix", Some(help));
            }
            Some(net) if net != net.trunc() => {
                let bits = net.prefix_len();
                let message = format!("`{text}` has bits set beyond its first {bits}");
                let help = format!("write \"{}\"", net.trunc());
                reader.fault(item.span(), message, Some(help));
            }
            Some(net) if prefixes.contains(&net) => {
                reader.fault(item.span(), format!("`{net}` is given twice"), None);
            }
            Some(net) => prefixes.push(net),
        }
    }
    config.device.capture = Capture::Prefixes(prefixes);
}

pub(super) fn forward(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if let Some(forward) = reader.boolean(value) {
        config.device.forward = forward;
    }
}

pub(super) fn mark(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(text) = reader.string(value) else { return };
    let parsed = text.split_once('/').and_then(|(mark, mask)| Some((word(mark)?, word(mask)?)));
    match parsed {
        None => {
            let help = "write a mark and its mask, for example \"0x74000000/0xff000000\"";
            reader.fault(value.span(), "not a mark", Some(help.to_owned()));
        }
        // Packets without a mark would pass for ours.
        Some((0, _)) => reader.fault(value.span(), "a mark is not 0", None),
        Some((mark, mask)) if mark & !mask != 0 => {
            let help = format!("write \"{:#010x}/{mask:#010x}\" or a wider mask", mark & mask);
            let help = if mark & mask == 0 { "write a wider mask".to_owned() } else { help };
            let message = format!("the mark {mark:#010x} has bits beyond its mask {mask:#010x}");
            reader.fault(value.span(), message, Some(help));
        }
        Some((mark, mask)) => {
            config.host.mark = mark;
            config.host.mask = mask;
        }
    }
}

pub(super) fn table(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(table) = reader.integer(value, 1..=i64::from(u32::MAX)) else { return };
    // linux/rtnetlink.h: RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL.
    if (253..=255).contains(&table) {
        let help = "the default is 29806".to_owned();
        reader.fault(value.span(), format!("the table {table} is the kernel's own"), Some(help));
    } else {
        config.host.table = table as u32;
    }
}

pub(super) fn priority(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    // ip-rule(8): 0 is `local`, 32,766 is `main`, before which our rules must stand.
    // One of ours stands before it, and one behind.
    if let Some(priority) = reader.integer(value, 2..=32_764) {
        config.host.priority = priority as u32;
    }
}

pub(super) fn policy(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if let Some(path) = reader.path(value) {
        config.policy = Some(path);
    }
}

pub(super) fn filtering(reader: &mut Reader<'_>, value: &Value<'_>, _: &mut Config) {
    reader.only(value, "udp.filtering", "endpoint", &["address-port", "none"]);
}

pub(super) fn guard_mode(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if reader.only(value, "guard.mode", "open", &["closed"]) {
        config.guard.mode = Some(GuardMode::Open);
    }
}

pub(super) fn lan(reader: &mut Reader<'_>, value: &Value<'_>, _: &mut Config) {
    if let DeValue::Array(_) = value.get_ref() {
        let help = "write lan = \"block\"".to_owned();
        let message = "prefixes in `guard.lan`: not in this version";
        reader.fault(value.span(), message, Some(help));
        return;
    }
    reader.only(value, "guard.lan", "block", &["allow"]);
}

pub(super) fn inbound(reader: &mut Reader<'_>, value: &Value<'_>, _: &mut Config) {
    reader.only(value, "guard.inbound", "allow", &[]);
}

pub(super) fn local(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(items) = reader.list(value, "devices", "[\"docker0\", \"br-*\"]") else { return };
    config.guard.local.clear();
    for item in items {
        let Some(text) = reader.string(item) else { continue };
        let name = text.strip_suffix('*').unwrap_or(&text);
        if text == "*" {
            let help = "name some, for example \"br-*\"".to_owned();
            reader.fault(item.span(), "every device would be local, none an uplink", Some(help));
        } else if text.len() > 15 || name.contains('*') || !is_device_name(name) {
            let help = "a device's name; a `*` at its end stands for the rest".to_owned();
            reader.fault(item.span(), "not a pattern of device names", Some(help));
        } else if config.guard.local.contains(&text) {
            reader.fault(item.span(), format!("`{text}` is given twice"), None);
        } else {
            config.guard.local.push(text);
        }
    }
}

pub(super) fn flows(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    if let Some(count) = reader.integer(value, 16..=4_194_304) {
        config.limits.flows = count as usize;
    }
}

pub(super) fn memory(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(text) = reader.string(value) else { return };
    match bytes(&text) {
        Some(bytes) if bytes >= 4 << 20 => config.limits.memory = bytes,
        Some(_) => reader.fault(value.span(), "at least 4MiB are needed", None),
        None => {
            let help = "a number and KiB, MiB or GiB, for example \"512MiB\"".to_owned();
            reader.fault(value.span(), "not an amount of memory", Some(help));
        }
    }
}

pub(super) fn socket(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(path) = reader.path(value) else { return };
    if path.as_os_str().as_bytes().len() > SOCKET_PATH {
        let message = format!("a socket's path has at most {SOCKET_PATH} bytes");
        reader.fault(value.span(), message, None);
    } else {
        config.control.socket = path;
    }
}

pub(super) fn group(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(text) = reader.string(value) else { return };
    let separates = |c: char| c == ':' || c == ',' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text.contains(separates) {
        reader.fault(value.span(), "not a group's name", None);
    } else {
        config.control.group = text;
    }
}

pub(super) fn admins(reader: &mut Reader<'_>, value: &Value<'_>, config: &mut Config) {
    let Some(items) = reader.list(value, "users", "[\"alice\", 1000]") else { return };
    config.control.admins.clear();
    for item in items {
        let uid = if let DeValue::String(name) = item.get_ref() {
            let uid = reader.uid(name);
            if uid.is_none() {
                let help = "a user's name in quotes, or a uid without".to_owned();
                reader.fault(item.span(), format!("there is no user `{name}`"), Some(help));
            }
            uid
        } else {
            // 4,294,967,295 is no uid: to the kernel it means `unchanged`.
            reader.integer(item, 0..=i64::from(u32::MAX) - 1).map(|uid| uid as u32)
        };
        if let Some(uid) = uid
            && !config.control.admins.contains(&uid)
        {
            config.control.admins.push(uid);
        }
    }
}

pub(super) fn metrics(reader: &mut Reader<'_>, value: &Value<'_>, _: &mut Config) {
    off(reader, value, "control.metrics");
}

pub(super) fn web(reader: &mut Reader<'_>, value: &Value<'_>, _: &mut Config) {
    off(reader, value, "control.web");
}

/// An address to listen at, which may be left empty and in this build must be.
fn off(reader: &mut Reader<'_>, value: &Value<'_>, key: &str) {
    let Some(text) = reader.string(value) else { return };
    if !text.is_empty() {
        let help = "write \"\"".to_owned();
        let message = format!("an address in `{key}`: not in this version");
        reader.fault(value.span(), message, Some(help));
    }
}

fn is_device_name(text: &str) -> bool {
    engine::DeviceName::new(text).is_some()
        && !text.contains(['/', ':', '%', '\0'])
        && !text.contains(char::is_whitespace)
        && text != "."
        && text != ".."
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn usable(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// 32 bits in hexadecimal or decimal, as ip-rule(8) takes them.
fn word(text: &str) -> Option<u32> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // A sign would be taken as well.
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then_some(())?;
    u32::from_str_radix(digits, radix).ok()
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
