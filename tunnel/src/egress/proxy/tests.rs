//! What is said to a proxy, and what is made of any answer.

use super::*;
use proptest::prelude::*;

fn proxy(speaks: Speaks, login: Option<(&str, &str)>) -> Arc<Proxy> {
    let login = login.map(|(user, password)| Login::new(user.into(), password.into()).unwrap());
    Arc::new(Proxy {
        name: "office".into(),
        address: "192.0.2.10:1080".parse().unwrap(),
        behind: None,
        speaks,
        login,
        tls: None,
        standing: Standing::default(),
    })
}

fn target(address: &str, name: Option<&str>) -> Target {
    Target { address: address.parse().unwrap(), name: name.map(Arc::from) }
}

fn drained(talk: &mut Talk) -> Vec<u8> {
    let out = talk.to_send().to_vec();
    talk.sent(out.len());
    out
}

const V4: &str = "203.0.113.9:443";
const V6: &str = "[2001:db8::9]:80";
const DONE: Taken = Taken { bytes: 10, connected: true };
const AWAITED: Taken = Taken { bytes: 0, connected: false };

#[test]
fn socks5_asks_by_name_or_address() {
    let long = "x".repeat(254);
    #[rustfmt::skip]
    let cases: [(&str, Option<&str>, &[u8]); 5] = [
        (V4, None, b"\x05\x01\x00\x01\xcb\x00\x71\x09\x01\xbb"),
        (V6, None, b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\0\x50"),
        (V6, Some("a.example"), b"\x05\x01\x00\x03\x09a.example\0\x50"),
        // What is no name for a proxy.
        (V4, Some("a b\r\n"), b"\x05\x01\x00\x01\xcb\x00\x71\x09\x01\xbb"),
        (V4, Some(&long), b"\x05\x01\x00\x01\xcb\x00\x71\x09\x01\xbb"),
    ];
    for (address, name, expected) in cases {
        let mut talk = Talk::new(&proxy(Speaks::Socks5, None), target(address, name));
        assert_eq!(drained(&mut talk), b"\x05\x01\x00", "{address} {name:?}");
        assert_eq!(talk.receive(b"\x05"), Ok(AWAITED));
        assert_eq!(talk.receive(b"\x05\x00"), Ok(Taken { bytes: 2, connected: false }));
        assert!(!talk.has_asked());
        assert_eq!(drained(&mut talk), expected, "{address} {name:?}");
        assert!(talk.has_asked());
        assert_eq!(talk.receive(b"\x05\x00\x00\x01\0\0\0\0\0\0the far side's"), Ok(DONE));
    }
}

#[test]
fn socks5_logs_in() {
    let begun = || {
        let proxy = proxy(Speaks::Socks5, Some(("user", "secret")));
        let mut talk = Talk::new(&proxy, target(V4, None));
        assert_eq!(drained(&mut talk), b"\x05\x02\x00\x02");
        talk
    };
    let mut talk = begun();
    assert!(talk.receive(b"\x05\x02").is_ok());
    assert_eq!(drained(&mut talk), b"\x01\x04user\x06secret");
    assert!(!talk.has_asked());
    assert!(talk.receive(b"\x01\x00").is_ok());
    assert_eq!(drained(&mut talk)[..4], *b"\x05\x01\x00\x01");
    // Not needed after all.
    let mut talk = begun();
    assert!(talk.receive(b"\x05\x00").is_ok());
    assert_eq!(drained(&mut talk)[..4], *b"\x05\x01\x00\x01");
    for (answers, fault) in [
        (&[&b"\x05\xff"[..]][..], Fault::Login),
        (&[b"\x05\x01"], Fault::Login),
        (&[b"\x04\x02"], Fault::Garbled),
        (&[b"\x05\x02", b"\x01\x01"], Fault::Login),
        (&[b"\x05\x02", b"\x05\x00"], Fault::Garbled),
    ] {
        let mut talk = begun();
        let all: Vec<_> = answers.iter().map(|answer| talk.receive(answer)).collect();
        assert_eq!(all.last(), Some(&Err(Refusal::Proxy(fault))), "{answers:?}");
    }
    // A password that nobody asked to have.
    let mut talk = Talk::new(&proxy(Speaks::Socks5, None), target(V4, None));
    assert_eq!(talk.receive(b"\x05\x02"), Err(Refusal::Proxy(Fault::Login)));
}

#[test]
fn socks5_replies() {
    let far = Refusal::Far;
    let own = Refusal::Proxy;
    #[rustfmt::skip]
    let cases: [(&[u8], Result<Taken, Refusal>); 16] = [
        (b"\x05\x01", Err(own(Fault::Failed))),
        (b"\x05\x02", Err(own(Fault::Forbidden))),
        (b"\x05\x03", Err(far(Failure::NetUnreachable))),
        (b"\x05\x04", Err(far(Failure::HostUnreachable))),
        (b"\x05\x05", Err(far(Failure::Refused))),
        (b"\x05\x06", Err(far(Failure::HostUnreachable))),
        (b"\x05\x07", Err(own(Fault::Incapable))),
        (b"\x05\x08", Err(own(Fault::Incapable))),
        (b"\x05\x09", Err(own(Fault::Failed))),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Err(own(Fault::Garbled))),
        (b"\x05\x00\x00\x02\0\0\0\0\0\0", Err(own(Fault::Garbled))),
        (b"\x05\x00\x00\x01\0\0\0\0\0", Ok(AWAITED)),
        (b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Ok(AWAITED)),
        (b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0+", Ok(Taken { bytes: 22, connected: true })),
        (b"\x05\x00\x00\x03\x03abc\0\0rest", Ok(DONE)),
        (b"\x05\x00\x00\x03\x03abc\0", Ok(AWAITED)),
    ];
    for (answer, expected) in cases {
        let mut talk = Talk::new(&proxy(Speaks::Socks5, None), target(V4, None));
        assert!(talk.receive(b"\x05\x00").is_ok());
        assert_eq!(talk.receive(answer), expected, "{answer:?}");
    }
}

#[test]
fn socks5_takes_datagrams_where_it_says() {
    let relay = |text: &str| Ok(text.parse().unwrap());
    let none = Err(Refusal::Proxy(Fault::Relay));
    #[rustfmt::skip]
    let cases: [(&[u8], Result<SocketAddr, Refusal>); 8] = [
        (b"\x05\x00\x00\x01\xcb\x00\x71\x09\x10\x00", relay("203.0.113.9:4096")),
        (b"\x05\x00\x00\x01\0\0\0\0\x10\x00", relay("192.0.2.10:4096")),
        (b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\x00", relay("192.0.2.10:4096")),
        (b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\xcb\x00\x71\x09\x10\x00", relay("203.0.113.9:4096")),
        (b"\x05\x00\x00\x01\xcb\x00\x71\x09\0\0", none),
        (b"\x05\x00\x00\x01\xe0\x00\x00\xfb\x10\x00", none),
        (b"\x05\x00\x00\x03\x05relay\x10\x00", none),
        (b"\x05\x07\x00\x01\0\0\0\0\0\0", Err(Refusal::Proxy(Fault::Incapable))),
    ];
    for (answer, expected) in cases {
        let mut talk = Talk::associate(&proxy(Speaks::Socks5, None)).unwrap();
        assert!(talk.receive(b"\x05\x00").is_ok());
        assert_eq!(drained(&mut talk)[3..], *b"\x05\x03\x00\x01\0\0\0\0\0\0");
        for cut in 0..answer.len() {
            if !matches!(talk.receive(&answer[..cut]), Ok(AWAITED)) {
                break;
            }
            assert_eq!(talk.relay(), None);
        }
        let whole = talk.receive(answer).map(|_| talk.relay().unwrap());
        assert_eq!(whole, expected, "{answer:?}");
        if whole.is_ok() {
            assert!(talk.receive(b"more").is_err());
        }
    }
    assert!(Talk::associate(&proxy(Speaks::Http, None)).is_none());
}

#[test]
fn connect_asks_by_name_or_address() {
    #[rustfmt::skip]
    let cases = [
        (V4, None, None, "CONNECT 203.0.113.9:443 HTTP/1.1\r\nHost: 203.0.113.9:443\r\n\r\n"),
        (V6, None, None, "CONNECT [2001:db8::9]:80 HTTP/1.1\r\nHost: [2001:db8::9]:80\r\n\r\n"),
        (V6, Some("a.example"), None, "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"),
        (V4, Some("a\r\nX: y"), None, "CONNECT 203.0.113.9:443 HTTP/1.1\r\nHost: 203.0.113.9:443\r\n\r\n"),
        // RFC 7617 2: the example.
        (V4, Some("a"), Some(("Aladdin", "open sesame")),
         "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"),
    ];
    for (address, name, login, expected) in cases {
        let mut talk = Talk::new(&proxy(Speaks::Http, login), target(address, name));
        assert!(!talk.has_asked());
        assert_eq!(String::from_utf8(drained(&mut talk)).unwrap(), expected);
        assert!(talk.has_asked());
    }
}

#[test]
fn connect_responses() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(ANSWER));
    let far = |failure| Err(Refusal::Far(failure));
    let own = |fault| Err(Refusal::Proxy(fault));
    let taken = |bytes, connected| Ok(Taken { bytes, connected });
    #[rustfmt::skip]
    let cases = [
        ("", Ok(AWAITED)),
        ("HTT", Ok(AWAITED)),
        ("HTTP/1.1 200 OK\r\n", Ok(AWAITED)),
        ("HTTP/1.1 200 OK\r\n\r\nhello", taken(19, true)),
        ("HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n", taken(55, true)),
        ("HTTP/1.1 204\r\nContent-Length: 9\r\n\r\n", taken(35, true)),
        ("HTTP/1.1 200 OK\nX: y\n\nhello", taken(22, true)),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", taken(25, false)),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", own(Fault::Failed)),
        ("HTTP/1.1 403 Filtered\r\n\r\n", own(Fault::Forbidden)),
        ("HTTP/1.1 407 Login\r\n\r\n", own(Fault::Login)),
        ("HTTP/1.1 405 No\r\n\r\n", own(Fault::Incapable)),
        ("HTTP/1.1 500 Unable to connect\r\n\r\n", own(Fault::Failed)),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", far(Failure::Refused)),
        ("HTTP/1.1 503 Unavailable\r\n\r\n", far(Failure::HostUnreachable)),
        ("HTTP/1.1 504 Timeout\r\n\r\n", far(Failure::HostUnreachable)),
        ("HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", own(Fault::Failed)),
        ("HTTP/2 200\r\n\r\n", own(Fault::Garbled)),
        ("HTTP/1.1 2000 OK\r\n\r\n", own(Fault::Garbled)),
        ("HTTP/1.1 +20 OK\r\n\r\n", own(Fault::Garbled)),
        ("SSH-2.0-OpenSSH", own(Fault::Garbled)),
        (&long[..ANSWER], own(Fault::Garbled)),
        (&long[..ANSWER - 1], Ok(AWAITED)),
    ];
    for (answer, expected) in cases {
        let mut talk = Talk::new(&proxy(Speaks::Http, None), target(V4, None));
        let shown = &answer[..answer.len().min(60)];
        assert_eq!(talk.receive(answer.as_bytes()), expected, "{shown}");
    }
}

#[test]
fn what_the_app_sees_of_a_fault() {
    for (fault, failure) in [
        (Fault::Unreachable(Failure::Refused), Failure::NetUnreachable),
        (Fault::Silent, Failure::NetUnreachable),
        (Fault::Mute, Failure::NetUnreachable),
        (Fault::Left, Failure::NetUnreachable),
        (Fault::Ended, Failure::NetUnreachable),
        (Fault::Garbled, Failure::NetUnreachable),
        (Fault::Certificate, Failure::NetUnreachable),
        (Fault::Incapable, Failure::NetUnreachable),
        (Fault::Failed, Failure::NetUnreachable),
        (Fault::Login, Failure::Prohibited),
        (Fault::Forbidden, Failure::Prohibited),
    ] {
        assert_eq!(fault.failure(), failure, "{fault}");
    }
}

/// A proxy whose faults are told, with those that were.
fn watched(speaks: Speaks) -> (Arc<Proxy>, std::sync::mpsc::Receiver<Fault>) {
    let (sender, told) = std::sync::mpsc::channel();
    let standing = Standing::new(move |fault| sender.send(fault).unwrap());
    (Arc::new(Proxy { standing, ..(*proxy(speaks, None)).clone() }), told)
}

#[test]
fn the_first_fault_that_speaks_against_a_proxy_is_told() {
    let (proxy, told) = watched(Speaks::Socks5);
    let talk = || Talk::new(&proxy, target(V4, None));
    let fails = |talk: &Talk, fault| talk.note(Err(Refusal::Proxy(fault)));
    for fault in [Fault::Ended, Fault::Forbidden, Fault::Incapable, Fault::Failed] {
        fails(&talk(), fault);
    }
    talk().note(Err(Refusal::Far(Failure::Refused)));
    talk().note(Err(Refusal::Far(Failure::Exhausted)));
    assert!(told.try_recv().is_err() && !proxy.standing.is_down(), "what is about the far side");
    // Another talk that worked since it began says more.
    let slow = talk();
    talk().note(Ok(()));
    fails(&slow, Fault::Silent);
    assert!(told.try_recv().is_err() && !proxy.standing.is_down());
    fails(&talk(), Fault::Silent);
    fails(&talk(), Fault::Login);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Fault::Silent], "once");
    let before = talk();
    proxy.standing.recovered();
    assert!(!proxy.standing.is_down());
    fails(&before, Fault::Silent);
    assert!(told.try_recv().is_err(), "it began before the proxy was usable again");
    fails(&talk(), Fault::Certificate);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Fault::Certificate]);
}

#[test]
fn who_answers_nothing_is_doubted_until_it_is_found_out() {
    let (proxy, told) = watched(Speaks::Http);
    let talk = || Talk::new(&proxy, target(V4, None));
    let told = || told.try_iter().collect::<Vec<_>>();
    let slow = talk();
    talk().note(Ok(()));
    slow.doubt();
    assert_eq!(told(), [], "it has worked for another meanwhile");
    let (one, other) = (talk(), talk());
    one.doubt();
    other.doubt();
    assert_eq!(told(), [Fault::Mute], "once");
    assert!(!proxy.standing.is_down(), "it may be the far side");
    proxy.standing.trusted();
    other.doubt();
    assert_eq!(told(), [], "it has answered since");
    talk().doubt();
    assert_eq!(told(), [Fault::Mute]);
    // What is known counts more.
    talk().note(Err(Refusal::Proxy(Fault::Left)));
    assert_eq!(told(), [Fault::Left]);
    assert!(proxy.standing.is_down());
    proxy.standing.recovered();
    talk().doubt();
    assert_eq!(told(), [Fault::Mute], "the doubt of before is settled");
}

#[test]
fn an_end_is_a_proxys_fault_until_it_knows_the_destination() {
    let mut talk = Talk::new(&proxy(Speaks::Socks5, None), target(V4, None));
    drained(&mut talk);
    assert_eq!(talk.ended(), Fault::Left);
    talk.receive(b"\x05\x00").unwrap();
    assert_eq!(talk.ended(), Fault::Left, "not sent yet");
    drained(&mut talk);
    assert_eq!(talk.ended(), Fault::Ended);
    let mut talk = Talk::new(&proxy(Speaks::Http, None), target(V4, None));
    assert_eq!(talk.ended(), Fault::Left);
    drained(&mut talk);
    assert_eq!(talk.ended(), Fault::Ended);
}

#[test]
fn a_probe_asks_for_no_destination() {
    let login = Some(("user", "secret"));
    // SOCKS: to be let in is all.
    let mut talk = Talk::probe(&proxy(Speaks::Socks5, login), Fault::Login);
    assert_eq!(drained(&mut talk), b"\x05\x02\x00\x02");
    assert!(!talk.is_content());
    assert_eq!(talk.receive(b"\x05\x02"), Ok(Taken { bytes: 2, connected: false }));
    assert_eq!(drained(&mut talk), b"\x01\x04user\x06secret");
    assert_eq!(talk.receive(b"\x01\x01"), Err(Refusal::Proxy(Fault::Login)));
    assert_eq!(talk.receive(b"\x01\x00"), Ok(Taken { bytes: 2, connected: true }));
    assert!(talk.to_send().is_empty());
    // HTTP: a connection is enough where there was none.
    let mut talk = Talk::probe(&proxy(Speaks::Http, login), Fault::Unreachable(Failure::Refused));
    assert!(talk.to_send().is_empty() && talk.is_content());
    // What it says is not known without a question, which is about no place.
    talk = Talk::probe(&proxy(Speaks::Http, login), Fault::Login);
    let asked = drained(&mut talk);
    assert!(asked.starts_with(b"CONNECT probe.invalid:443 HTTP/1.1\r\n"), "{asked:?}");
    assert!(!talk.is_content());
    for (answer, seen) in [
        ("HTTP/1.1 407 No\r\n\r\n", Err(Refusal::Proxy(Fault::Login))),
        ("HTTP/1.1 502 No\r\n\r\n", Err(Refusal::Far(Failure::Refused))),
        ("HTTP/1.1 403 No\r\n\r\n", Err(Refusal::Proxy(Fault::Forbidden))),
    ] {
        assert_eq!(talk.receive(answer.as_bytes()), seen, "{answer}");
    }
    // One that answers nothing has to answer, whatever it speaks.
    assert!(talk.wants_answer());
    let mut talk = Talk::probe(&proxy(Speaks::Socks5, None), Fault::Mute);
    assert_eq!(drained(&mut talk), b"\x05\x01\x00");
    assert_eq!(talk.receive(b"\x05\x00"), Ok(Taken { bytes: 2, connected: false }));
    assert_eq!(drained(&mut talk), b"\x05\x01\x00\x03\x0dprobe.invalid\x01\xbb");
    assert!(talk.has_asked() && !talk.is_content() && talk.wants_answer());
    let refused = b"\x05\x04\x00\x01\0\0\0\0\0\0";
    assert_eq!(talk.receive(refused), Err(Refusal::Far(Failure::HostUnreachable)));
    let talk = Talk::probe(&proxy(Speaks::Http, None), Fault::Mute);
    assert!(talk.to_send().starts_with(b"CONNECT probe.invalid:443") && !talk.is_content());
    assert!(!Talk::probe(&proxy(Speaks::Http, None), Fault::Silent).wants_answer());
}

#[test]
fn a_login_is_checked_and_not_printed() {
    for (user, password, expected) in [
        ("", "p", Some(LoginError::Length)),
        ("u", "", Some(LoginError::Length)),
        (&*"u".repeat(256), "p", Some(LoginError::Length)),
        ("u:v", "p", Some(LoginError::Characters)),
        ("u", "p\n", Some(LoginError::Characters)),
        ("u", "p:q ü", None),
    ] {
        assert_eq!(Login::new(user.into(), password.into()).err(), expected, "{user} {password}");
    }
    let shown = format!("{:?}", proxy(Speaks::Http, Some(("alice", "hunter2"))));
    assert!(!shown.contains("alice") && !shown.contains("hunter2"), "{shown}");
    let talk = Talk::new(&proxy(Speaks::Socks5, Some(("alice", "hunter2"))), target(V4, None));
    assert!(!format!("{talk:?}").contains("hunter2"));
}

/// Gives an answer in pieces, as a socket would: what is not taken is looked at again.
fn fed(talk: &mut Talk, answer: &[u8], cuts: &[usize]) -> (usize, Result<bool, Refusal>) {
    let (mut taken, mut there) = (0, 0);
    for cut in cuts.iter().copied().chain([answer.len()]) {
        there = (there + cut).min(answer.len());
        loop {
            let window = &answer[taken..there.min(taken + ANSWER)];
            match talk.receive(window) {
                Err(refusal) => return (taken, Err(refusal)),
                Ok(Taken { bytes, connected }) => {
                    assert!(bytes <= window.len(), "took what is not there");
                    taken += bytes;
                    if connected {
                        return (taken, Ok(true));
                    }
                    if bytes == 0 {
                        break;
                    }
                }
            }
        }
    }
    (taken, Ok(false))
}

fn answers() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(5u8), Just(0), Just(1), Just(2), Just(3), any::<u8>()];
    let socks = prop::collection::vec(byte, 0..300);
    let http = ("HTTP/1\\.[01] [0-9]{3}[ \r\n]", "[ -~\r\n]{0,200}", "(\r\n\r\n|\n\n|)")
        .prop_map(|(start, header, end)| format!("{start}{header}{end}tail").into_bytes());
    prop_oneof![socks, http]
}

proptest! {
    #[test]
    fn any_answer_ends_the_same_however_it_is_cut(
        answer in answers(),
        cuts in prop::collection::vec(0usize..40, 0..12),
        http: bool,
        login: bool,
    ) {
        let speaks = if http { Speaks::Http } else { Speaks::Socks5 };
        let proxy = proxy(speaks, login.then_some(("user", "secret")));
        let talk = || Talk::new(&proxy, target(V4, Some("a.example")));
        let whole = fed(&mut talk(), &answer, &[]);
        let cut = fed(&mut talk(), &answer, &cuts);
        prop_assert_eq!(whole, cut);
    }
}
