//! Configurations that are nearly right: each is read or has faults with a place, and nothing
//! makes the reader panic.

use proptest::prelude::*;

use super::tunnels::tunnel;
use super::*;

/// Whole tables, each good.
fn corpus() -> Vec<String> {
    let documented =
        documentation().split("```toml\n").nth(1).and_then(|it| it.split("```").next());
    vec![
        documented.expect("a block").to_owned(),
        tunnel(
            "listen_port = 51820\nfwmark = \"0xca6c\"\nmtu = 1400\ndns = [\"10.0.0.1\", \"a.example\"]",
        ),
        "[[proxy]]\nname = \"office\"\nurl = \"socks5://a:b@192.0.2.10\"\n".to_owned(),
        "[[resolver]]\nname = \"corp\"\nservers = [\"10.0.0.1\", \"tls://10.0.0.2#a.example\"]\n\
         via = \"direct\"\n[dns]\naddress = [\"198.18.0.9\"]\nintercept = \"all\"\nupstream = \
         [\"192.0.2.53\"]\n"
            .to_owned(),
    ]
}

/// What stands in place of a piece.
const PIECES: [&str; 30] = [
    "",
    "\n",
    "\r",
    "\0",
    " ",
    "=",
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    ".",
    "#",
    "-1",
    "0",
    "99999999999999999999",
    "1e9",
    "true",
    "nan",
    "1979-05-27",
    "é",
    "\u{2028}",
    "[dns]\n",
    "name = ",
    "10.0.0.1/8",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_spoilt_text_makes_it_panic(
        file in any::<prop::sample::Index>(),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..16_usize, prop::sample::select(&PIECES[..])),
            0..6,
        ),
    ) {
        let corpus = corpus();
        let mut text = file.get(&corpus).clone();
        for (at, length, piece) in edits {
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((at + length).min(text.len()));
            text.replace_range(at..end, piece);
        }
        let (_, faults) = look(Path::new("t.toml"), &text);
        let lines = text.split('\n').count();
        for fault in &faults.faults {
            prop_assert!((1..=lines).contains(&fault.line) && fault.column > 0, "{faults}");
            let Excerpt { text, start, end } = &fault.excerpt;
            prop_assert!(text.get(*start..*end).is_some(), "{faults}");
        }
        prop_assert_eq!(read(&text).is_ok(), faults.faults.iter().all(is_for_a_daemon), "{}", text);
    }
}

/// What only a daemon refuses.
fn is_for_a_daemon(fault: &Fault) -> bool {
    ["`guard.mode` is not written", "which is led to us", "a proxy on this host"]
        .iter()
        .any(|part| fault.message.contains(part))
}
