//! Resolvers, and where the host's names are asked.

use super::*;

#[test]
fn resolvers_and_dns_become_typed() {
    let text = "\
[[resolver]]
name = \"corp\"
servers = [\"10.20.0.53\", \"tls://10.20.0.54#dns.corp.example\", \"https://dns.corp.example/q\"]
via = \"direct\"
ca = \"corp-ca.pem\"
identity = \"/etc/keys/client.pem\"
[[resolver]]
name = \"lab\"
servers = [\"[2001:db8::53]:5353\"]
[dns]
address = [\"198.18.0.9\"]
intercept = \"all\"
takeover = \"file\"
upstream = [\"192.0.2.53\"]
cache = 0
";
    let config = words(text).expect("no faults");
    let [corp, lab] = &*config.resolvers else { panic!("{:?}", config.resolvers) };
    let shown: Vec<String> = corp.settings.servers.iter().map(ToString::to_string).collect();
    let servers = ["10.20.0.53", "tls://10.20.0.54#dns.corp.example", "https://dns.corp.example/q"];
    assert_eq!((&*corp.name, shown.as_slice()), ("corp", servers.map(str::to_owned).as_slice()));
    assert_eq!(corp.settings.trust.ca.as_deref(), Some(Path::new("/etc/corp-ca.pem")));
    assert_eq!(corp.settings.trust.identity.as_deref(), Some(Path::new("/etc/keys/client.pem")));
    assert_eq!(lab.settings.servers[0].to_string(), "[2001:db8::53]:5353");
    assert_eq!(lab.settings.trust, Trust::default());
    let upstream = vec!["192.0.2.53".parse().expect("a server")];
    let dns = Dns {
        addresses: vec![IpAddr::from([198, 18, 0, 9])],
        intercept: true,
        takeover: Takeover::File,
        upstream: Some(upstream),
        cache: 0,
    };
    assert_eq!(config.dns, dns);
    let auto = "[dns]\nupstream = \"auto\"\nintercept = \"none\"\ntakeover = \"auto\"\n";
    assert_eq!(words(auto), Ok(Config::default()));
}

#[test]
fn faults_of_resolvers_and_dns_have_a_place_and_help() {
    let one = |line: &str| {
        format!("[[resolver]]\nname = \"corp\"\nservers = [\"tls://10.0.0.1\"]\n{line}\n")
    };
    for (name, text, want) in [
        (
            "no keys",
            "[[resolver]]\n".to_owned(),
            "t.toml:1:1: a resolver needs `name`\nhelp: for example name = \"corp\"\n\
             error: t.toml:1:1: a resolver needs `servers`\nhelp: for example servers = [\"10.20.0.53\"]",
        ),
        (
            "no list",
            "resolver = 3\n".to_owned(),
            "t.toml:1:12: `resolver` is a list of tables\nhelp: write `[[resolver]]` and its keys below",
        ),
        (
            "a key",
            one("server = []"),
            "t.toml:4:1: unknown key `resolver.server`\nhelp: did you mean `servers`?",
        ),
        (
            "a way",
            one("via = \"wg0\""),
            "t.toml:4:7: there is no tunnel `wg0`\nhelp: write \"direct\" or a tunnel's name",
        ),
        (
            "twice",
            one("") + &one(""),
            "t.toml:6:8: there is a resolver `corp` above",
        ),
        (
            "the built-in one",
            "[[resolver]]\nname = \"upstream\"\nservers = [\"10.0.0.1\"]\n".to_owned(),
            "t.toml:2:8: `upstream` is a word of policies\nhelp: the network's own servers: write them to `dns.upstream`",
        ),
        (
            "an operator",
            "[[resolver]]\nname = \"else\"\nservers = [\"10.0.0.1\"]\n".to_owned(),
            "t.toml:2:8: `else` is a word of policies",
        ),
        (
            "no name",
            "[[resolver]]\nname = \"a b\"\nservers = [\"10.0.0.1\"]\n".to_owned(),
            "t.toml:2:8: not a name for a resolver\nhelp: 1 to 64 of the characters A-Z a-z 0-9 . _ + -",
        ),
        (
            "servers",
            "[[resolver]]\nname = \"x\"\nservers = [\"10.0.0.1\", \"10.0.0.1:53\", \"tls://dns.example\"]\n".to_owned(),
            "t.toml:3:24: `10.0.0.1` is given twice\n\
             error: t.toml:3:39: a server's address is wanted, not a name\nhelp: write \"tls://ADDRESS#dns.example\" with the server's address",
        ),
        (
            "names alone",
            "[[resolver]]\nname = \"x\"\nservers = [\"https://a.example/q\"]\n".to_owned(),
            "t.toml:3:11: no server has an address, and the others' names are asked of it\nhelp: write \"https://a.example/q#ADDRESS\", or a server with an address",
        ),
        (
            "no server",
            "[[resolver]]\nname = \"x\"\nservers = []\n".to_owned(),
            "t.toml:3:11: at least one server is needed",
        ),
        (
            "trust for nobody",
            "[[resolver]]\nname = \"x\"\nservers = [\"10.0.0.1\"]\nca = \"x.pem\"\n".to_owned(),
            "t.toml:4:6: `ca` means nothing: no server shows a certificate\nhelp: a server with a certificate is written tls://, https:// or quic://",
        ),
        (
            "ourselves",
            "[[resolver]]\nname = \"x\"\nservers = [\"198.18.0.2\"]\n".to_owned(),
            "t.toml:3:12: `198.18.0.2` is in `dns.address`\nhelp: tunneld itself answers there: a server behind it is wanted",
        ),
        (
            "ourselves, in other words",
            "[[resolver]]\nname = \"x\"\nservers = [\"tcp://198.18.0.2\", \"[::ffff:198.18.0.2]:53\", \"tls://[2001:2:0:756e::2]#a.example\"]\n"
                .to_owned(),
            "t.toml:3:12: `198.18.0.2` is in `dns.address`\nhelp: tunneld itself answers there: a server behind it is wanted\n\
             error: t.toml:3:32: `198.18.0.2` is in `dns.address`\nhelp: tunneld itself answers there: a server behind it is wanted\n\
             error: t.toml:3:58: `2001:2:0:756e::2` is in `dns.address`\nhelp: tunneld itself answers there: a server behind it is wanted",
        ),
        (
            "our device",
            "[dns]\nupstream = [\"198.18.0.1\"]\n".to_owned(),
            "t.toml:2:13: `198.18.0.1` is in `device.addresses`\nhelp: nobody else is there: a server behind it is wanted",
        ),
        (
            "addresses",
            "[dns]\naddress = [\"127.0.0.1\", \"192.0.2.1\", \"192.0.2.1\"]\n".to_owned(),
            "t.toml:2:12: not an address to answer at\nhelp: an address of one host, for example \"198.18.0.2\"\n\
             error: t.toml:2:38: `192.0.2.1` is given twice",
        ),
        (
            "intercept",
            "[dns]\nintercept = \"al\"\n".to_owned(),
            "t.toml:2:13: `none` or `all` is wanted\nhelp: did you mean `all`?",
        ),
        (
            "takeover",
            "[dns]\ntakeover = \"systemd\"\n".to_owned(),
            "t.toml:2:12: `auto` or `resolved` or `resolvconf` or `file` or `none` is wanted",
        ),
        (
            "upstream",
            "[dns]\nupstream = \"192.0.2.53\"\n".to_owned(),
            "t.toml:2:12: \"auto\" or a list of servers is wanted\nhelp: for example [\"192.0.2.53\"]",
        ),
        (
            "cache",
            "[dns]\ncache = -1\n".to_owned(),
            "t.toml:2:9: a number from 0 to 1000000 is wanted",
        ),
    ] {
        assert_eq!(words(&text), Err(want.to_owned()), "{name}");
    }
    let many: String = (0..64)
        .map(|i| format!("[[resolver]]\nname = \"r{i}\"\nservers = [\"10.0.0.1\"]\n"))
        .collect();
    assert_eq!(words(&many), Err("t.toml:190:1: more than 63 resolvers".to_owned()));
}

/// The rules of an IP version come with its first prefix.
#[test]
fn another_ip_version_to_answer_at_needs_a_restart_where_prefixes_are_captured() {
    let of = |capture: &str, address: &str| {
        let text = format!("[device]\ncapture = {capture}\n[dns]\naddress = [{address}]\n");
        read(&text).expect("a good value")
    };
    let (v4, v6) = ("\"198.18.7.2\"", "\"2001:2::7\"");
    for (name, capture, from, to, named) in [
        ("the same version", "[\"10.0.0.0/8\"]", v4, "\"198.18.7.3\"", false),
        ("another version", "[\"10.0.0.0/8\"]", v4, v6, true),
        ("of both something is captured", "[\"10.0.0.0/8\", \"fd00::/8\"]", v4, v6, false),
        ("all is captured", "\"all\"", v4, v6, false),
        ("nothing is", "\"none\"", v4, v6, false),
    ] {
        let (from, to) = (of(capture, from), of(capture, to));
        let want: &[&str] = if named { &["dns.address"] } else { &[] };
        assert_eq!(from.needs_restart(&to), want, "{name}");
        assert_eq!(to.needs_restart(&from), want, "{name}, back");
    }
}

/// A daemon that leads the host to itself asks nobody whom it leads.
#[test]
fn the_hosts_own_resolver_is_no_server() {
    let guard = "[guard]\nmode = \"open\"\n";
    let asks = "[[resolver]]\nname = \"x\"\nservers = [\"127.0.0.53\"]\n";
    let fault = "t.toml:7:12: at `127.0.0.53` is systemd-resolved, which is led to us\n\
                 help: name the servers behind it, or write takeover = \"none\"";
    for (takeover, led) in
        [("auto", true), ("resolved", true), ("resolvconf", true), ("file", true), ("none", false)]
    {
        let text = format!("{guard}[dns]\ntakeover = \"{takeover}\"\n{asks}");
        let (_, faults) = look(Path::new("t.toml"), &text);
        assert_eq!(faults.to_string(), if led { fault } else { "" }, "{takeover}");
        // `exec` leads nobody.
        assert!(read(&text).is_ok(), "{takeover}");
    }
}
