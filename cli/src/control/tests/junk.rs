//! Requests that are nearly right: each has an answer that is one, and none is a fault of ours.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Requests that are, and what they carry.
const CORPUS: [(&str, &str, &str); 12] = [
    ("GET", "/v1/status", ""),
    ("GET", "/v1/flows?match=tcp%20to%2010.0.0.0/8%20port%20443", ""),
    ("DELETE", "/v1/flows/1-1", ""),
    ("GET", "/v1/rules?hits", ""),
    ("POST", "/v1/reload?dry_run", ""),
    ("POST", "/v1/diff", r#"{"sources":[{"name":"a","text":"policy 1\ndefault allow\n"}]}"#),
    (
        "POST",
        "/v1/diff",
        r#"{"sources":[{"name":"a","text":"policy 1\nset x = file \"f\"\ndefault allow\n"}],"files":[{"source":"a","path":"f","text":"10.0.0.0/8\n"}]}"#,
    ),
    (
        "POST",
        "/v1/explain",
        r#"{"protocol":"tcp","source":"192.0.2.1","destination":"192.0.2.9","port":443,"uid":0}"#,
    ),
    ("POST", "/v1/explain", r#"{"protocol":"icmp","name":"a.example","client":"::1"}"#),
    ("GET", "/v1/dns/servers", ""),
    ("GET", "/v1/openapi.json", ""),
    ("GET", "/metrics", ""),
];

/// What stands in place of a piece.
const PIECES: [&str; 26] = [
    "",
    "?",
    "&",
    "=",
    "%",
    "%00",
    "%FF",
    "%20",
    "/",
    "..",
    "-",
    "0",
    "99999999999999999999",
    "\"",
    "\\u0000",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "é",
    "policy 1",
    "match=",
    "::",
];

type Edit = (prop::sample::Index, usize, &'static str);

fn spoil(text: &str, edits: &[Edit]) -> String {
    let mut text = text.to_owned();
    for (at, length, piece) in edits {
        let at = text.floor_char_boundary(at.index(text.len() + 1));
        let end = text.ceil_char_boundary((at + length).min(text.len()));
        text.replace_range(at..end, piece);
    }
    text
}

#[test]
fn no_spoilt_request_is_a_fault_of_ours() {
    let served = Served::new("spoilt", Access::default());
    let edit = || (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(&PIECES[..]));
    let edits = || prop::collection::vec(edit(), 0..4);
    let whole = (prop::sample::select(&CORPUS[..]), edits(), edits());
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let done = TestRunner::new(config).run(&whole, |((method, path, body), on_path, on_body)| {
        let spoilt = request(method, &spoil(path, &on_path), &spoil(body, &on_body));
        let (status, answer) = served.send(spoilt.as_bytes());
        prop_assert!((200..500).contains(&status), "{status} {spoilt:?}: {answer}");
        if status >= 400 {
            let error: Value = serde_json::from_str(&answer).unwrap_or_default();
            let says = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
            prop_assert!(error["event"] == "error" && says("error") && says("help"), "{answer}");
        }
        Ok(())
    });
    done.unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(served.get("/v1/status").0, 200);
}
