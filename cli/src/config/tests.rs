//! Tests of the configuration.

use super::keys::{Change, KEYS, Key, LISTS, User};
use super::*;

mod junk;
mod proxies;
mod resolvers;
mod tunnels;

/// A value that this build takes, other than the default where there is another.
fn value(key: &Key) -> &'static str {
    match (key.table, key.name) {
        ("device", "name") => "\"tun7\"",
        ("device", "addresses") => "[\"198.18.7.1/32\"]",
        ("device", "mtu") => "1400",
        ("device", "queues") => "4",
        ("device", "capture") => "[\"10.0.0.0/8\"]",
        ("device", "forward") => "false",
        ("host", "mark") => "\"0x1/0xf\"",
        ("host", "table") => "7",
        ("host", "priority") => "70",
        ("policy", "directory") => "\"policy.d\"",
        ("dns", "address") => "[\"198.18.7.2\"]",
        ("dns", "intercept") => "\"all\"",
        ("dns", "takeover") => "\"file\"",
        ("dns", "upstream") => "[\"192.0.2.53\"]",
        ("dns", "cache") => "7",
        ("guard", "mode") => "\"open\"",
        ("guard", "local") => "[\"vnet*\"]",
        ("limits", "flows") => "1000",
        ("limits", "memory") => "\"64MiB\"",
        ("control", "socket") => "\"run/sock\"",
        ("control", "group") => "\"staff\"",
        ("control", "admins") => "[\"alice\", 1001]",
        _ => only(key).unwrap_or("true"),
    }
}

/// The one value that may be written.
fn only(key: &Key) -> Option<&'static str> {
    match (key.table, key.name) {
        ("udp", "filtering") => Some("\"endpoint\""),
        ("guard", "lan") => Some("\"block\""),
        ("guard", "inbound") => Some("\"allow\""),
        ("control", "metrics" | "web") => Some("\"\""),
        _ => None,
    }
}

fn users(name: &str) -> Option<u32> {
    (name == "alice").then_some(1000)
}

fn read(text: &str) -> Result<Config, Faults> {
    parse_with(Path::new("/etc/t.toml"), text, &users)
}

fn words(text: &str) -> Result<Config, String> {
    let (config, faults) = Reader::new(text, Path::new("/etc"), &users).read();
    let file = PathBuf::from("t.toml");
    if faults.is_empty() { Ok(config) } else { Err(Faults { file, faults }.to_string()) }
}

fn documentation() -> &'static str {
    include_str!("../../../docs/configuration.md")
}

#[test]
fn every_key_is_honoured_or_refused() {
    for key in KEYS {
        let text = format!("[{}]\n{} = {}\n", key.table, key.name, value(key));
        match read(&text) {
            Ok(config) => {
                let name = format!("{}.{}", key.table, key.name);
                assert!(key.honoured, "{name} was accepted and ignored");
                // What has one value only is the same whether written or not.
                assert_eq!(config == Config::default(), only(key).is_some(), "{name}");
                if only(key).is_some() {
                    let other = format!("[{}]\n{} = \"other\"\n", key.table, key.name);
                    read(&other).expect_err(&other);
                }
            }
            Err(faults) => {
                assert!(!key.honoured, "{faults}");
                assert!(faults.to_string().contains("not in this version"), "{faults}");
                assert_eq!((faults.faults[0].line, faults.faults[0].column), (2, 1));
            }
        }
    }
    for list in LISTS {
        if list.honoured {
            continue;
        }
        let name = list.name;
        let faults = read(&format!("[[{name}]]\nname = \"x\"\n")).expect_err("refused");
        assert!(faults.to_string().contains("not in this version"), "{faults}");
    }
}

#[test]
fn a_change_is_live_or_named() {
    let old = Config::default();
    assert_eq!(old.needs_restart(&old), Vec::<&str>::new());
    for key in KEYS.iter().filter(|key| key.honoured) {
        let name = format!("{}.{}", key.table, key.name);
        let text = format!("[{}]\n{} = {}\n", key.table, key.name, value(key));
        let new = read(&text).expect("a good value");
        let named = match key.change {
            // It can't change.
            Change::Restart if only(key).is_some() => vec![],
            Change::Restart => vec![&*name],
            Change::Live => vec![],
        };
        assert_eq!(old.needs_restart(&new), named, "{name}");
        assert_eq!(new.needs_restart(&old), named, "{name}, back");
    }
}

#[test]
fn values_become_typed() {
    let text = "\
[device]
queues = 64
capture = [\"10.0.0.0/8\", \"2001:db8::/32\", \"192.0.2.1\"]
forward = false
[host]
mark = \"0x01000000/4278190080\"
table = 4294967295
priority = 32764
[guard]
mode = \"open\"
local = [\"wlan0\", \"br-*\"]
[control]
socket = \"sock\"
group = \"wheel\"
admins = [\"alice\", 7, 1000]
";
    let config = read(text).expect("no faults");
    let prefixes = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32"];
    let prefixes = prefixes.map(|prefix| prefix.parse().expect("a prefix"));
    assert_eq!(config.device.queues, Queues::Count(64));
    assert_eq!(config.device.capture, Capture::Prefixes(prefixes.into()));
    assert!(!config.device.forward);
    let host = Host { mark: 1 << 24, mask: 0xff << 24, table: u32::MAX, priority: 32_764 };
    assert_eq!(config.host, host);
    assert_eq!(config.guard.mode, Some(GuardMode::Open));
    assert_eq!(config.guard.local, ["wlan0", "br-*"]);
    assert_eq!(config.control.socket, Path::new("/etc/sock"));
    assert_eq!(config.control.group, "wheel");
    assert_eq!(config.control.admins, [1000, 7]);
    for (text, capture) in [("all", Capture::All), ("none", Capture::Nothing)] {
        let config = read(&format!("[device]\ncapture = \"{text}\"\n")).expect(text);
        assert_eq!(config.device.capture, capture);
    }
}

/// No daemon may seem to have a guard that it hasn't.
#[test]
fn the_guards_mode_must_be_written() {
    let fault = "`guard.mode` is not written: its default, `closed`, is not in this version\n\
                 help: write mode = \"open\" below [guard]";
    for (text, place) in [
        ("", Some("1:1")),
        ("[device]\nmtu = 1400\n", Some("1:1")),
        ("[device]\n[guard]\nlocal = []\n", Some("2:2")),
        ("[guard]\nmode = \"open\"\n", None),
    ] {
        let (config, faults) = look(Path::new("t.toml"), text);
        let want = place.map(|place| format!("t.toml:{place}: {fault}"));
        assert_eq!(faults.to_string(), want.unwrap_or_default(), "{text}");
        assert_eq!(config.guard.mode.is_some(), place.is_none());
        // Who runs no daemon needs none.
        assert_eq!(read(text).expect("no faults"), config);
    }
    // Said once.
    for text in ["[guard]\nmode = 3\n", "guard = 3\n", "=\n"] {
        assert_eq!(look(Path::new("t.toml"), text).1.faults.len(), 1, "{text}");
    }
}

/// The example of `docs/configuration.md` says the defaults, but for what has none.
#[test]
fn the_documented_configuration_is_true() {
    let block = documentation().split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let config = parse(Path::new("/etc/tunneld/tunneld.toml"), block.expect("a block"));
    let documented = Config {
        policy: Some(PathBuf::from("/etc/tunneld/policy.d")),
        guard: Guard { mode: Some(GuardMode::Open), ..Guard::default() },
        ..Config::default()
    };
    assert_eq!(config.expect("no faults"), documented);
    for key in KEYS.iter().filter(|key| key.honoured) {
        let line = format!("\n{} = ", key.name);
        let table = format!("[{}]\n", key.table);
        let below = block.and_then(|block| block.split(&*table).nth(1)).expect(key.table);
        let below = below.split("\n[").next().unwrap_or_default();
        assert!(format!("\n{below}").contains(&line), "{}.{} is shown", key.table, key.name);
    }
}

/// The table of `docs/configuration.md` says of each key who uses it and when it changes.
#[test]
fn the_documented_keys_are_true() {
    let rows: Vec<(&str, &str, &str)> = documentation()
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let key = cells.next()?.strip_suffix('`')?;
            cells.next()?;
            Some((key, cells.next()?, cells.next()?))
        })
        .filter(|(key, ..)| key.contains('.'))
        .collect();
    let keys: Vec<String> = KEYS
        .iter()
        .filter(|key| key.honoured)
        .map(|key| format!("{}.{}", key.table, key.name))
        .collect();
    let want: Vec<(&str, &str, &str)> = keys
        .iter()
        .zip(KEYS.iter().filter(|key| key.honoured))
        .map(|(name, key)| {
            let user = match key.user {
                User::Both => "exec, run",
                User::Run => "run",
            };
            let change = match key.change {
                Change::Live => "live",
                Change::Restart => "restart",
            };
            (&**name, user, change)
        })
        .collect();
    assert_eq!(rows, want);
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
        ("too small", "[device]\nmtu = 100\n", "t.toml:2:7: a number from 1280 to 65535 is wanted"),
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
            "in the file's order",
            "[host]\ntable = 0\n[device]\nmtu = 1\n",
            "t.toml:2:9: a number from 1 to 4294967295 is wanted\nerror: t.toml:4:7: a number from 1280 to 65535 is wanted",
        ),
        (
            "loopback",
            "[device]\naddresses = [\"127.0.0.1\"]\n",
            "t.toml:2:14: not an address that a device can have",
        ),
        (
            "no queue",
            "[device]\nqueues = 0\n",
            "t.toml:2:10: \"auto\" or a number from 1 to 64 is wanted",
        ),
        (
            "too many queues",
            "[device]\nqueues = 65\n",
            "t.toml:2:10: \"auto\" or a number from 1 to 64 is wanted",
        ),
        (
            "queues in quotes",
            "[device]\nqueues = \"4\"\n",
            "t.toml:2:10: \"auto\" or a number from 1 to 64 is wanted",
        ),
        (
            "capture of a word",
            "[device]\ncapture = \"some\"\n",
            "t.toml:2:11: \"all\", \"none\" or a list of prefixes is wanted",
        ),
        (
            "capture of nothing",
            "[device]\ncapture = []\n",
            "t.toml:2:11: at least one prefix is needed\nhelp: write capture = \"none\"",
        ),
        (
            "host bits and no prefix",
            "[device]\ncapture = [\"10.0.0.1/8\", \"lan\"]\n",
            "t.toml:2:12: `10.0.0.1/8` has bits set beyond its first 8\nhelp: write \"10.0.0.0/8\"\nerror: t.toml:2:26: not a prefix\nhelp: for example \"10.0.0.0/8\"",
        ),
        (
            "a prefix twice",
            "[device]\ncapture = [\"10.0.0.1\", \"10.0.0.1/32\"]\n",
            "t.toml:2:24: `10.0.0.1/32` is given twice",
        ),
        ("forward", "[device]\nforward = \"yes\"\n", "t.toml:2:11: true or false is wanted"),
        (
            "a mark without mask",
            "[host]\nmark = \"0x74000000\"\n",
            "t.toml:2:8: not a mark\nhelp: write a mark and its mask, for example \"0x74000000/0xff000000\"",
        ),
        (
            "a sign",
            "[host]\nmark = \"+1/0xff\"\n",
            "t.toml:2:8: not a mark\nhelp: write a mark and its mask, for example \"0x74000000/0xff000000\"",
        ),
        ("a mark of 0", "[host]\nmark = \"0/0xff\"\n", "t.toml:2:8: a mark is not 0"),
        (
            "a mark beyond its mask",
            "[host]\nmark = \"0x101/0xff\"\n",
            "t.toml:2:8: the mark 0x00000101 has bits beyond its mask 0x000000ff\nhelp: write \"0x00000001/0x000000ff\" or a wider mask",
        ),
        (
            "a mark outside its mask",
            "[host]\nmark = \"0x100/0xff\"\n",
            "t.toml:2:8: the mark 0x00000100 has bits beyond its mask 0x000000ff\nhelp: write a wider mask",
        ),
        (
            "the main table",
            "[host]\ntable = 254\n",
            "t.toml:2:9: the table 254 is the kernel's own\nhelp: the default is 29806",
        ),
        (
            "behind the main table",
            "[host]\npriority = 32766\n",
            "t.toml:2:12: a number from 2 to 32764 is wanted",
        ),
        (
            "the guard closed",
            "[guard]\nmode = \"closed\"\n",
            "t.toml:2:8: `guard.mode = \"closed\"`: not in this version\nhelp: write mode = \"open\"",
        ),
        (
            "the guard ajar",
            "[guard]\nmode = \"ajar\"\n",
            "t.toml:2:8: `open` or `closed` is wanted",
        ),
        (
            "the network around",
            "[guard]\nlan = \"allow\"\n",
            "t.toml:2:7: `guard.lan = \"allow\"`: not in this version\nhelp: write lan = \"block\"",
        ),
        (
            "some of the network around",
            "[guard]\nlan = [\"192.168.0.0/16\"]\n",
            "t.toml:2:7: prefixes in `guard.lan`: not in this version\nhelp: write lan = \"block\"",
        ),
        ("inbound", "[guard]\ninbound = \"block\"\n", "t.toml:2:11: `allow` is wanted"),
        (
            "patterns",
            "[guard]\nlocal = [\"*\", \"a*b\", \"\", \"br-0123456789ab*\", \"lo\", \"lo\"]\n",
            "t.toml:2:10: every device would be local, none an uplink\nhelp: name some, for example \"br-*\"\n\
             error: t.toml:2:15: not a pattern of device names\nhelp: a device's name; a `*` at its end stands for the rest\n\
             error: t.toml:2:22: not a pattern of device names\nhelp: a device's name; a `*` at its end stands for the rest\n\
             error: t.toml:2:26: not a pattern of device names\nhelp: a device's name; a `*` at its end stands for the rest\n\
             error: t.toml:2:52: `lo` is given twice",
        ),
        (
            "filtering of a later version",
            "[udp]\nfiltering = \"none\"\n",
            "t.toml:2:13: `udp.filtering = \"none\"`: not in this version\nhelp: write filtering = \"endpoint\"",
        ),
        ("no path", "[control]\nsocket = \"\"\n", "t.toml:2:10: not a path"),
        ("no group", "[control]\ngroup = \"a b\"\n", "t.toml:2:9: not a group's name"),
        (
            "users",
            "[control]\nadmins = [\"bob\", -1, 4294967295]\n",
            "t.toml:2:11: there is no user `bob`\nhelp: a user's name in quotes, or a uid without\n\
             error: t.toml:2:18: a number from 0 to 4294967294 is wanted\n\
             error: t.toml:2:22: a number from 0 to 4294967294 is wanted",
        ),
        (
            "metrics",
            "[control]\nmetrics = \"127.0.0.1:9586\"\n",
            "t.toml:2:11: an address in `control.metrics`: not in this version\nhelp: write \"\"",
        ),
    ] {
        let faults = parse_with(Path::new("t.toml"), text, &users).expect_err(name);
        assert_eq!(faults.to_string(), want, "{name}");
    }
    let long = format!("[control]\nsocket = \"/{}\"\n", "x".repeat(107));
    let faults = read(&long).expect_err("too long").to_string();
    assert_eq!(faults, "/etc/t.toml:2:10: a socket's path has at most 107 bytes");
    assert!(read("= 3").is_err());
}
