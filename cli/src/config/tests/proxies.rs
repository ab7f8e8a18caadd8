//! Proxies.

use super::tunnels::tunnel;
use super::*;

#[test]
fn proxies_are_read() {
    let office = "[[proxy]]\nname = \"office\"\nurl = \"socks5://a:b@192.0.2.10\"\n";
    let config = words(office).expect("good");
    let [proxy] = &*config.proxies else { panic!("one") };
    let place = Endpoint::Address("192.0.2.10:1080".parse().expect("an address"));
    assert_eq!((&*proxy.name, &proxy.place), ("office", &place));
    assert!(proxy.login.is_some() && !format!("{config:?}").contains("\"b\""));
    let named = config.named().expect("few");
    let id = named.ways.id("office").expect("a way out");
    assert_eq!(named.ways.kind(id), Some(WayKind::Proxy));
    assert!(Config::default().needs_restart(&config).is_empty(), "a reload takes it");
    for (text, want) in [
        (
            "[[proxy]]\n".to_owned(),
            "t.toml:1:1: a proxy needs `name`\nhelp: for example name = \"office\"\n\
             error: t.toml:1:1: a proxy needs `url`\nhelp: for example \"socks5://192.0.2.10:1080\"",
        ),
        (
            format!("{office}via = \"wg0\"\n"),
            "t.toml:4:7: there is no tunnel `wg0`\nhelp: write \"direct\" or a tunnel's name",
        ),
        (
            format!("{office}ca = \"ca.pem\"\n"),
            "t.toml:4:6: `ca` means nothing: the proxy shows no certificate\nhelp: a proxy with a certificate is written https://",
        ),
        (
            format!("{office}urll = 3\n"),
            "t.toml:4:1: unknown key `proxy.urll`\nhelp: did you mean `url`?",
        ),
        (format!("{office}{office}"), "t.toml:5:8: there is a proxy `office` above"),
        (tunnel("") + &office.replace("office", "wg0"), "t.toml:2:8: there is a proxy `wg0`, too"),
        (office.replace("office", "direct"), "t.toml:2:8: `direct` is a word of policies"),
        (
            office.replace("office", "a b"),
            "t.toml:2:8: not a name for a proxy\nhelp: 1 to 64 of the characters A-Z a-z 0-9 . _ + -",
        ),
    ] {
        let faults = words(&text).expect_err(&text);
        assert_eq!(faults, want, "{text}");
    }
    let behind = format!("{office}via = \"wg0\"\n{}", tunnel(""));
    assert_eq!(words(&behind).expect("good").proxies[0].via, DeviceName::new("wg0"));
    let here = "guard.mode = \"open\"\n".to_owned() + &office.replace("192.0.2.10", "127.0.0.1");
    assert!(words(&here).is_ok());
    let (_, faults) = look(Path::new("t.toml"), &here);
    assert_eq!(faults.to_string(), "", "a daemon takes one on its own host");
    let many: String = (0..64).map(|i| office.replace("office", &format!("p{i}"))).collect();
    let faults = words(&many).expect_err("too many");
    assert_eq!(faults, "t.toml:190:1: more than 63 ways out");
}
