//! Tunnels, and what nobody but their owner may see.

use super::*;

const PRIVATE: &str = "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=";
const PUBLIC: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
const OTHER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A tunnel of inline keys.
pub(super) fn tunnel(lines: &str) -> String {
    format!(
        "[[wireguard]]\nname = \"wg0\"\nprivate_key = \"{PRIVATE}\"\n\
         addresses = [\"10.0.0.2/24\"]\n{lines}\n"
    )
}

fn peer(lines: &str) -> String {
    tunnel(&format!("[[wireguard.peer]]\npublic_key = \"{PUBLIC}\"\n{lines}"))
}

/// A directory with files in it, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str, files: &[(&str, &str, u32)]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        for (name, text, mode) in files {
            let path = path.join(name);
            std::fs::write(&path, text).expect("a file");
            let mode = std::fs::Permissions::from_mode(*mode);
            std::fs::set_permissions(&path, mode).expect("a mode");
        }
        Self(path)
    }

    /// What `text` says in a file here.
    fn read(&self, text: &str) -> Result<Config, String> {
        let file = self.0.join("t.toml");
        let read = parse(&file, text);
        let shown = self.0.to_string_lossy().into_owned();
        read.map_err(|faults| faults.to_string().replace(&*shown, "DIR"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same interface, whether its keys stand here, in a file or in files.
#[test]
fn a_tunnel_of_a_file_is_one_of_keys() {
    let conf = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/24, fd00::2\nAddress = 10.1.0.2/16, 10.0.0.2\nListenPort = 51820\n\
         FwMark = 0xca6c\nMTU = 1400\nDNS = 10.0.0.1, corp.example\n[Peer]\nPublicKey = {PUBLIC}\n\
         PresharedKey = {OTHER}\nEndpoint = vpn.example:51820\nAllowedIPs = 0.0.0.0/0, ::/0\n\
         PersistentKeepalive = 25\n[Peer]\nPublicKey = {OTHER}\n"
    );
    let inline = |key: &str, shared: &str| {
        format!(
            "[[wireguard]]\nname = \"wg0\"\nprivate_key{key}\n\
             addresses = [\"10.0.0.2/24\", \"fd00::2\", \"10.1.0.2/16\"]\nlisten_port = 51820\n\
             fwmark = \"0xca6c\"\nmtu = 1400\ndns = [\"10.0.0.1\", \"corp.example\"]\n\
             [[wireguard.peer]]\npublic_key = \"{PUBLIC}\"\npreshared_key{shared}\n\
             endpoint = \"vpn.example:51820\"\nallowed_ips = [\"0.0.0.0/0\", \"::/0\"]\n\
             persistent_keepalive = 25\n[[wireguard.peer]]\npublic_key = \"{OTHER}\"\n\
             persistent_keepalive = \"off\"\n"
        )
    };
    let directory = Directory::new(
        "tunnels",
        &[
            ("wg0.conf", &conf, 0o600),
            ("key", PRIVATE, 0o400),
            ("shared", &format!("{OTHER}\n"), 0o600),
        ],
    );
    let file =
        directory.read("[[wireguard]]\nname = \"wg0\"\nfile = \"wg0.conf\"\n").expect("good");
    let here = inline(&format!(" = \"{PRIVATE}\""), &format!(" = \"{OTHER}\""));
    let here = directory.read(&here).expect("good");
    let files = directory.read(&inline("_file = \"key\"", "_file = \"shared\"")).expect("good");
    assert_eq!((&file, &file), (&here, &files));
    let [WireGuard { name, interface }] = &*file.wireguard else { panic!("one tunnel") };
    assert_eq!((name.as_str(), interface.fwmark, interface.mtu), ("wg0", Some(0xca6c), Some(1400)));
    assert_eq!((interface.peers.len(), interface.peers[0].keepalive), (2, Some(25)));
    assert_eq!(interface.addresses.len(), 3, "what stands there twice is one");
    // Its name servers are a resolver of its name, behind it.
    let [resolver] = &*file.resolvers else { panic!("one resolver") };
    assert_eq!((&*resolver.name, resolver.via), ("wg0", Some(*name)));
    assert_eq!(resolver.settings.servers[0].to_string(), "10.0.0.1");
    let named = file.named().expect("few");
    assert!(named.ways.id("wg0").is_some() && named.resolvers.id("wg0").is_some());
    assert_eq!(Config::default().needs_restart(&file), Vec::<&str>::new());
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let conf = format!("[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2\n");
    let directory = Directory::new(
        "open-keys",
        &[("wg0.conf", &conf, 0o640), ("key", PRIVATE, 0o604), ("t.toml", "", 0o644)],
    );
    for (name, text, want) in [
        (
            "a file",
            "[[wireguard]]\nname = \"wg0\"\nfile = \"wg0.conf\"\n".to_owned(),
            "DIR/t.toml:3:8: DIR/wg0.conf holds a key, and others may read it: its mode is 640\n\
             help: chmod 600 DIR/wg0.conf",
        ),
        (
            "a file of a key",
            "[[wireguard]]\nname = \"wg0\"\nprivate_key_file = \"key\"\naddresses = [\"10.0.0.2\"]\n".to_owned(),
            "DIR/t.toml:3:20: DIR/key holds a key, and others may read it: its mode is 604\n\
             help: chmod 600 DIR/key",
        ),
        (
            "the configuration",
            tunnel(""),
            "DIR/t.toml:3:15: others may read this secret: the mode of the file is 644\n\
             help: chmod 600 DIR/t.toml",
        ),
    ] {
        assert_eq!(directory.read(&text), Err(want.to_owned()), "{name}");
    }
}

#[test]
fn faults_of_tunnels_have_a_place_and_help() {
    let hooks = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2\nPostUp = true\nMTU = x\n"
    );
    let directory = Directory::new("bad-tunnels", &[("wg0.conf", &hooks, 0o600)]);
    let file = |lines: &str| format!("[[wireguard]]\nname = \"wg0\"\nfile = \"wg0.conf\"\n{lines}");
    let named = |name: &str| tunnel("").replace("wg0", name);
    let not_a_name = "not a name for a tunnel\nhelp: 1 to 15 of the characters A-Z a-z 0-9 . _ + -";
    for (name, text, want) in [
        (
            "nothing",
            "[[wireguard]]\n".to_owned(),
            "DIR/t.toml:1:1: a tunnel needs `name`\nhelp: for example name = \"wg0\"\n\
             error: DIR/t.toml:1:1: a tunnel needs `file`, or `private_key`\nhelp: for example file = \"wg0.conf\", a file of wg-quick(8)".to_owned(),
        ),
        (
            "what the file says",
            file("mtu = 1400\n"),
            "DIR/t.toml:4:1: `mtu` stands in the file\nhelp: write it there, or leave `file` out\n\
             error: DIR/wg0.conf:4:10: `PostUp` is refused: tunneld runs no commands\nhelp: leave it out: routes, name servers and a kill switch are the policy's\n\
             error: DIR/wg0.conf:5:7: a number of bytes from 576 to 65535 is wanted".to_owned(),
        ),
        (
            "no file",
            file("").replace("wg0.conf", "wg1.conf"),
            "DIR/t.toml:3:8: DIR/wg1.conf: No such file or directory (os error 2)".to_owned(),
        ),
        ("a directory", file("").replace("wg0.conf", "."), "DIR/t.toml:3:8: DIR/.: not a file".to_owned()),
        ("a long name", named("0123456789abcdef"), format!("DIR/t.toml:2:8: {not_a_name}")),
        ("no name", named("a b"), format!("DIR/t.toml:2:8: {not_a_name}")),
        ("a dot", named(".."), format!("DIR/t.toml:2:8: {not_a_name}")),
        ("direct", named("direct"), "DIR/t.toml:2:8: `direct` is a word of policies".to_owned()),
        ("a word", named("port"), "DIR/t.toml:2:8: `port` is a word of policies".to_owned()),
        (
            "the device",
            named("tunneld0"),
            "DIR/t.toml:2:8: `tunneld0` is the name of the TUN device\nhelp: write another, for example \"wg0\"".to_owned(),
        ),
        ("twice", tunnel("") + &tunnel(""), "DIR/t.toml:7:8: there is a tunnel `wg0` above".to_owned()),
        (
            "a resolver",
            tunnel("dns = [\"10.0.0.1\"]") + "[[resolver]]\nname = \"wg0\"\nservers = [\"10.0.0.1\"]\n",
            "DIR/t.toml:2:8: there is a resolver `wg0`, which this tunnel's DNS would be\nhelp: write another name, or leave its DNS out".to_owned(),
        ),
        (
            "a key",
            tunnel("allowed_ips = []"),
            "DIR/t.toml:5:1: unknown key `wireguard.allowed_ips`".to_owned(),
        ),
        (
            "a peer's key",
            peer("allowedips = []"),
            "DIR/t.toml:7:1: unknown key `wireguard.peer.allowedips`\nhelp: did you mean `allowed_ips`?".to_owned(),
        ),
        (
            "a key of both kinds",
            tunnel("private_key_file = \"x\""),
            "DIR/t.toml:5:1: `private_key` and `private_key_file` are both written\nhelp: leave one out".to_owned(),
        ),
        (
            "values",
            tunnel("listen_port = -1\nfwmark = \"x\"\nmtu = 100\ndns = [\"10.0.0.1\", 3, \"::\"]"),
            "DIR/t.toml:5:15: a port from 0 to 65535 is wanted\n\
             error: DIR/t.toml:6:10: not a mark\nhelp: a number, for example 0xca6c, or `off`\n\
             error: DIR/t.toml:7:7: a number of bytes from 576 to 65535 is wanted\n\
             error: DIR/t.toml:8:20: a string in quotes is wanted\n\
             error: DIR/t.toml:8:23: no server behind the tunnel can be at such an address".to_owned(),
        ),
        (
            "no address",
            tunnel("").replace("\"10.0.0.2/24\"", ""),
            "DIR/t.toml:4:13: at least one address is needed".to_owned(),
        ),
        (
            "a peer that is none",
            tunnel("peer = 3"),
            "DIR/t.toml:5:8: `peer` is a list of tables\nhelp: write `[[wireguard.peer]]` and its keys below".to_owned(),
        ),
        (
            "peers",
            peer("endpoint = \"a.example\"\nallowed_ips = [\"::/0\"]\n[[wireguard.peer]]\nallowed_ips = [\"::1/0\"]"),
            "DIR/t.toml:7:12: an endpoint needs a port\nhelp: for example `vpn.example:51820`, `192.0.2.1:51820` or `[2001:db8::1]:51820`\n\
             error: DIR/t.toml:9:1: a peer needs `public_key`\n\
             error: DIR/t.toml:10:16: `::/0` is another peer's\nhelp: leave it with one of the two".to_owned(),
        ),
        (
            "a way",
            tunnel("") + "[[resolver]]\nname = \"corp\"\nservers = [\"10.0.0.1\"]\nvia = \"wg1\"\n",
            "DIR/t.toml:9:7: there is no tunnel `wg1`\nhelp: did you mean `wg0`?".to_owned(),
        ),
    ] {
        assert_eq!(directory.read(&text), Err(want), "{name}");
    }
    let corp = "[[resolver]]\nname = \"corp\"\nservers = [\"10.0.0.1\"]\nvia = \"wg0\"\n";
    let config = directory.read(&(tunnel("") + corp)).expect("no faults");
    assert_eq!(config.resolvers[0].via, Some(config.wireguard[0].name));
    let many: String = (0..64).map(|i| named(&format!("w{i}"))).collect();
    let faults = directory.read(&many).expect_err("too many");
    assert_eq!(faults, "DIR/t.toml:316:1: more than 63 tunnels");
}

/// No fault shows a line with a secret.
#[test]
fn no_key_is_shown() {
    for (name, text) in [
        ("a bad key", tunnel("").replace("=\"\n", "x\"\n")),
        ("a fault on the same line", tunnel("").replace("private_key", "privat_key")),
        ("a key for a name", tunnel("").replace("wg0", PRIVATE)),
        ("a key for an address", tunnel("").replace("10.0.0.2/24", PRIVATE)),
        ("a key for a table", format!("[\"{PRIVATE}\"]\n")),
        ("a key for a key", tunnel(&format!("\"{PRIVATE}\" = 1"))),
        (
            "a key for a way",
            format!("[[resolver]]\nname = \"a\"\nservers = [\"10.0.0.1\"]\nvia = \"{PRIVATE}\"\n"),
        ),
        (
            "a key for a resolver",
            format!("[[resolver]]\nname = \"{PRIVATE}\"\nservers = [\"{PRIVATE}\"]\n"),
        ),
        ("no TOML", tunnel("x").replace("\"\naddr", "\naddr")),
        (
            "a key on a line of its own",
            tunnel("x").replace("private_key = ", "private_key = \"\"\"\n"),
        ),
    ] {
        let (_, faults) = look(Path::new("t.toml"), &text);
        assert!(!faults.faults.is_empty(), "{name}");
        let told = crate::diagnostics::Told::of_faults(&faults);
        let shown = format!("{faults}\n{told:?}");
        assert!(!shown.contains(&PRIVATE[..30]), "{name}: {shown}");
    }
}
