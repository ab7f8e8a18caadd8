//! Tests of the parser of wg-quick files.

use ipnet::IpNet;
use proptest::prelude::*;

use super::super::Endpoint;
use super::*;

/// Of tests, and of nothing else.
const PRIVATE: &str = "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=";
const PUBLIC: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
const OTHER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const SHARED: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

fn text(text: &str) -> String {
    let keys = [("PRIVATE", PRIVATE), ("PUBLIC", PUBLIC), ("OTHER", OTHER), ("SHARED", SHARED)];
    keys.into_iter().fold(text.to_owned(), |text, (name, key)| text.replace(name, key))
}

/// A file in which `lines` stand below `[Interface]`.
fn with(lines: &str) -> String {
    format!("[Interface]\nPrivateKey = PRIVATE\nAddress = 10.0.0.2\n{lines}\n")
}

/// A file in which `lines` stand below `[Peer]`.
fn with_peer(lines: &str) -> String {
    with(&format!("[Peer]\nPublicKey = PUBLIC\n{lines}"))
}

/// `LINE:COLUMN: MESSAGE`, and what stands under the message.
fn faults(conf: &Conf) -> Vec<String> {
    let refused = conf.extras.iter().map(|extra| &extra.fault);
    let faults = refused.chain(&conf.faults);
    faults.map(|f| format!("{}:{}: {}", f.line, f.column, f.message)).collect()
}

fn interface(lines: &str) -> Interface {
    let conf = read(&text(lines));
    assert_eq!(faults(&conf), Vec::<String>::new(), "{lines}");
    conf.interface.expect("no faults")
}

#[test]
fn a_file_becomes_an_interface() {
    let interface = interface(
        "# Sent by the office\n\
         \u{20} [interface]   # the host\n\
         privatekey=PRIVATE\r\n\
         ADDRESS = 10.0.0.2/24, fd00::2/64\n\
         ListenPort = 51820\nFwMark = 0xca6c\nMTU = 1380\n\
         DNS = 10.0.0.1 fd00::1\n  dns = Corp.Example,10.0.0.1\n\
         Table = auto\nSaveConfig = false\n\
         \n[PEER]\nPublicKey\t=\tPUBLIC\nPresharedKey = SHARED # new\n\
         AllowedIPs = 10.0.0.7/8,, fd00::/8\nAllowedIPs = 192.0.2.1\nAllowedIPs =\n\
         Endpoint = VPN.example:51821\nPersistentKeepalive = 25\n\
         [ Peer ]\nPublicKey = OTHER\nEndpoint = [2001:db8::1]:1\nPersistentKeepalive = off",
    );
    let nets = |list: &[&str]| -> Vec<IpNet> {
        list.iter().map(|net| net.parse().expect("a prefix")).collect()
    };
    assert_eq!(interface.addresses, nets(&["10.0.0.2/24", "fd00::2/64"]));
    assert_eq!((interface.listen_port, interface.fwmark), (Some(51_820), Some(0xca6c)));
    assert_eq!(interface.mtu, Some(1380));
    let dns: Vec<String> = interface.dns.iter().map(ToString::to_string).collect();
    assert_eq!(
        (dns, interface.search),
        (vec!["10.0.0.1".into(), "fd00::1".into()], vec!["corp.example".into()])
    );
    let [first, second] = &*interface.peers else { panic!("two peers") };
    assert_eq!(first.key, value::public_key(PUBLIC).expect("a key"));
    assert_eq!(first.preshared, value::preshared_key(SHARED).expect("a key"));
    assert_eq!(first.allowed, nets(&["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]));
    assert_eq!(first.endpoint, Some(Endpoint::Name("vpn.example".to_owned(), 51_821)));
    assert_eq!((first.keepalive, second.keepalive), (Some(25), None));
    let address = "[2001:db8::1]:1".parse().expect("an address");
    assert_eq!(second.endpoint, Some(Endpoint::Address(address)));
    assert_eq!((second.allowed.len(), second.preshared.is_some()), (0, false));
}

#[test]
fn what_stands_for_nothing() {
    for (name, lines) in [
        ("a mark", "FwMark = off"),
        ("a mark of 0", "FwMark = 0x0"),
        ("a port", "ListenPort = 0"),
        ("no end", ""),
        ("a byte order mark", "#"),
    ] {
        let lines = if name == "a byte order mark" {
            format!("\u{feff}{}", with(lines))
        } else {
            with(lines)
        };
        let interface = interface(lines.trim_end());
        assert_eq!(
            (interface.listen_port, interface.fwmark, interface.mtu),
            (None, None, None),
            "{name}"
        );
    }
    let zeroes = with_peer("PresharedKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let interface = interface(&format!("{zeroes}\nPersistentKeepalive = 0"));
    assert_eq!(
        (interface.peers[0].preshared.is_some(), interface.peers[0].keepalive),
        (false, None)
    );
}

#[test]
fn faults_have_a_place() {
    for (name, lines, want) in [
        ("nothing", String::new(), &["1:1: there is no `[Interface]`"][..]),
        (
            "no keys",
            "[Interface]".into(),
            &["1:1: `PrivateKey` is missing", "1:1: `Address` is missing"],
        ),
        (
            "no heading",
            "MTU = 1400\nDNS = x\n[Interface]\nPrivateKey = PRIVATE\nAddress = 10.0.0.2".into(),
            &["1:1: a key before the first heading"],
        ),
        ("a heading", with("[Pear]\nMTU = x"), &["4:1: unknown heading"]),
        ("an open heading", with("[Peer"), &["4:1: unknown heading"]),
        ("no key", with("hello"), &["4:1: neither a heading nor a key with its value"]),
        ("an unknown key", with("MTUU = 1"), &["4:1: unknown key `MTUU`"]),
        ("a peer's", with("AllowedIPs = ::/0"), &["4:1: `AllowedIPs` stands below `[Peer]`"]),
        ("an interface's", with_peer("MTU = 1400"), &["6:1: `MTU` stands below `[Interface]`"]),
        ("twice", with("MTU = 1400\nmtu = 1400"), &["5:1: `MTU` is given twice"]),
        ("no value", with("  MTU ="), &["4:3: `MTU` has no value"]),
        ("a value of a comment", with("MTU = # 1400"), &["4:1: `MTU` has no value"]),
        (
            "addresses",
            with("Address = é, fd00::2/129, 127.0.0.1\nAddress = fd00::1, fd00::2"),
            &[
                "4:11: not an address that an interface can have",
                "4:14: not an address that an interface can have",
                "4:27: not an address that an interface can have",
            ],
        ),
        ("ports", with("ListenPort = 65536"), &["4:14: a port from 0 to 65535 is wanted"]),
        ("a sign", with("ListenPort = +1"), &["4:14: a port from 0 to 65535 is wanted"]),
        ("marks", with("FwMark = 0x"), &["4:10: not a mark"]),
        ("a sign in a mark", with("FwMark = 0x+1"), &["4:10: not a mark"]),
        ("small", with("MTU = 575"), &["4:7: a number of bytes from 576 to 65535 is wanted"]),
        (
            "small for IPv6",
            with("MTU = 1279\nAddress = fd00::1"),
            &["4:7: IPv6 needs packets of 1280 bytes"],
        ),
        (
            "DNS",
            with("DNS = 10.0.0.1 300.1.1.1 ::g a..b, 127.0.0.1"),
            &[
                "4:16: not an address",
                "4:26: not an address",
                "4:30: neither an address nor a search domain",
                "4:36: no server behind the tunnel can be at such an address",
            ],
        ),
        (
            "hooks",
            with(
                "PostUp = iptables -A x\nPreDown=y\nTable = off\nSaveConfig = TRUE\nSaveConfig = x",
            ),
            &[
                "4:10: `PostUp` is refused: tunneld runs no commands",
                "5:9: `PreDown` is refused: tunneld runs no commands",
                "6:9: `Table` is refused: the kernel's routes lead nothing into this tunnel",
                "7:14: `SaveConfig` is refused: tunneld never writes to its configuration",
                "8:1: `SaveConfig` is given twice",
            ],
        ),
        (
            "a peer without key",
            with("[Peer]\n[Peer]\nPublicKey = PUBLIC"),
            &["4:1: a peer needs `PublicKey`"],
        ),
        (
            "a peer twice",
            with_peer("[Peer]\nPublicKey = PUBLIC"),
            &["7:13: a peer has this key already"],
        ),
        (
            "a prefix of two",
            with_peer(
                "AllowedIPs = 10.1.0.0/16\n[Peer]\nPublicKey = OTHER\nAllowedIPs = 10.1.2.3/16",
            ),
            &["9:14: `10.1.0.0/16` is another peer's"],
        ),
        (
            "no prefix",
            with_peer("AllowedIPs = 10.0.0.0/33, 10.0.0.0/8 x, +::/0"),
            &[
                "6:14: not a prefix",
                "6:27: not a prefix",
                "6:41: adding and removing prefixes: not in this version",
            ],
        ),
        (
            "keepalive",
            with_peer("PersistentKeepalive = never"),
            &["6:23: seconds from 0 to 65535, or `off`, are wanted"],
        ),
        (
            "keys",
            with_peer(
                "PresharedKey = x\n[Peer]\nPublicKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            ),
            &["6:16: not a key", "8:13: a public key of zeroes is none"],
        ),
    ] {
        let conf = read(&text(&lines));
        assert_eq!(faults(&conf), want, "{name}");
        assert!(conf.interface.is_none() || conf.faults.is_empty(), "{name}");
    }
    let own = value::private_key(PRIVATE).expect("a key").public();
    let own = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, own.as_bytes());
    let conf = read(&text(&with(&format!("[Peer]\nPublicKey = {own}"))));
    assert_eq!(faults(&conf), ["5:13: that is this interface's own public key"]);
}

#[test]
fn endpoints() {
    for (written, want) in [
        ("192.0.2.1:51820", Ok("192.0.2.1:51820")),
        ("[2001:db8::1]:51820", Ok("[2001:db8::1]:51820")),
        ("[::ffff:192.0.2.1]:1", Ok("192.0.2.1:1")),
        ("Vpn-1.Example.:1", Err("not an endpoint")),
        ("vpn.example", Err("an endpoint needs a port")),
        ("vpn.example:0", Err("not a port of an endpoint")),
        ("vpn.example:http", Err("not a port of an endpoint")),
        ("2001:db8::1:51820", Err("an IPv6 address of an endpoint stands in brackets")),
        ("[2001:db8::1]", Err("not an endpoint")),
        ("[fe80::1%eth0]:1", Err("an endpoint at a link-local address: not in this version")),
        ("[fe80::1]:1", Err("an endpoint at a link-local address: not in this version")),
        ("0.0.0.0:1", Err("no peer can be at such an address")),
        ("300.1.1.1:1", Err("not an endpoint")),
        ("bücher.example:1", Err("not a host's name")),
        (":1", Err("not an endpoint")),
    ] {
        let read = value::endpoint(written);
        let read = read.as_ref().map(|endpoint| match endpoint {
            Endpoint::Address(address) => address.to_string(),
            Endpoint::Name(name, port) => format!("{name}:{port}"),
        });
        assert_eq!(read.as_deref().map_err(|wrong| &*wrong.message), want, "{written}");
    }
}

#[test]
fn a_line_with_a_key_is_not_shown() {
    for (name, lines, want) in [
        ("a key", with("").replace("PRIVATE", "PRIVATEx"), "PrivateKey = …"),
        ("a public key", with_peer("").replace("PUBLIC", "PUBLIC PRIVATE"), "PublicKey = …"),
        ("a key's misspelt name", with("PrivteKey = PRIVATE"), "PrivteKey = …"),
        ("a key for a name", with("PRIVATE"), "…"),
        ("a key for a name with spaces", with("PRIVATE ="), "…"),
        ("a key without its name", with("x PRIVATE"), "…"),
        ("a key for a heading", with("[PRIVATE]"), "…"),
        ("a key at the wrong place", with("MTU = PRIVATE"), "MTU = …="),
        ("a key in a comment", with("MTU = 1 # PRIVATE"), "MTU = 1 # …="),
        (
            "a key in a command",
            with("PostUp = wg set x private-key PRIVATE"),
            "PostUp = wg set x private-key …=",
        ),
    ] {
        let conf = read(&text(&lines));
        let all = conf.extras.iter().map(|extra| &extra.fault).chain(&conf.faults);
        let shown: Vec<&str> = all.map(|fault| &*fault.excerpt.text).collect();
        assert!(shown.contains(&want), "{name}: {shown:?}");
    }
}

#[test]
fn faults_end() {
    let conf = read(&"x\n".repeat(1_000_000));
    assert_eq!(conf.faults.len(), MOST_FAULTS);
    let last = conf.faults.last().and_then(|fault| fault.help.as_deref());
    assert_eq!(last, Some("what else is wrong is not told"));
}

#[test]
fn a_long_list_is_read_in_time() {
    let nets = |first: u32| (first..first + 130_000).map(std::net::Ipv4Addr::from);
    let list: Vec<String> = nets(0x0a00_0000).map(|address| address.to_string()).collect();
    let interface = interface(&with_peer(&format!("AllowedIPs = {}", list.join(", "))));
    assert_eq!(interface.peers[0].allowed.len(), 130_000);
}

fn is_silent(text: &str, keys: &[&str]) {
    let conf = read(text);
    let printed = format!("{conf:?}");
    for key in keys {
        // A command is kept for who may see it, and printed by nobody else.
        let commands = conf.extras.iter().any(|extra| format!("{:?}", extra.what).contains(key));
        assert!(commands || !printed.contains(&key[..32]), "{text:?}: {printed}");
    }
}

proptest! {
    /// No text makes it panic.
    #[test]
    fn any_text_is_read(text in "(\\PC|\n|\r|=|#|\\[|\\]|,){0,300}") {
        read(&text);
    }

    /// Nor one that is almost right; and no fault says a key.
    #[test]
    fn no_key_is_printed(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "[Interface]", "[Peer]", "[", "]", "PrivateKey", "PresharedKey", "PublicKey",
                "Address", "AllowedIPs", "Endpoint", "DNS", "MTU", "PostUp", "Table", "FwMark",
                "=", "=", "=", " ", ",", "#", "\n", "\n", "\n", "\r\n", "\t", "é", "\u{2028}", "\0",
                ":", "%", "0x", "off", "10.0.0.1/8", "::/0", "[::1]:1", "a.example:1",
                PRIVATE, PRIVATE, SHARED, SHARED,
            ]),
            0..60,
        )
    ) {
        is_silent(&parts.concat(), &[PRIVATE, SHARED]);
    }
}
