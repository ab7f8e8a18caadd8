//! The daemon on stand-ins for its shards.

use std::sync::Arc;
use std::sync::mpsc::channel;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tunnel::driver::request::Request;

use super::standin::{CONFIG, Disk, Manner, NO_80, OPEN, daemon, events, flow};
use super::{Access, Asked, AskedProtocol, KillError, NotLoaded, Unanswered, Unexplained, publish};
use crate::report::Clock;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
}

#[test]
fn a_reload_cuts_what_the_new_policy_forbids() {
    let disk = Disk::new("reload");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    runtime().block_on(async {
        disk.write("policy.d/a.policy", NO_80);
        let told = daemon.rehearse().await.expect("a good policy").object("reload");
        assert_eq!((&told["generation"], &told["dry_run"]), (&json!(1), &json!(true)));
        let cut = |told: &Value| -> Vec<(Value, Value, Value)> {
            let cut = told["cut"].as_array().expect("a list").iter();
            cut.map(|c| (c["flow"]["id"].clone(), c["verdict"].clone(), c["rule"].clone()))
                .collect()
        };
        let want = ["0-1", "1-1"].map(|id| (json!(id), json!("block"), json!("no-80")));
        assert_eq!(cut(&told), want);
        assert_eq!(lines(&daemon.flows(None).await.expect("flows")).len(), 4);

        let told = daemon.reload().await.expect("a good policy").object("reload");
        assert_eq!((&told["generation"], &told["dry_run"]), (&json!(2), &json!(false)));
        assert_eq!(cut(&told), want);
        let left = lines(&daemon.flows(None).await.expect("flows"));
        let ids: Vec<_> = left.iter().map(|flow| flow["id"].clone()).collect();
        assert_eq!(ids, ["0-2", "1-2"]);
        assert_eq!(daemon.in_force().generation, 2);
    });
}

#[test]
fn what_is_wrong_changes_nothing() {
    let disk = Disk::new("refused");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    runtime().block_on(async {
        for (name, config, policy, want) in [
            ("no TOML", "=", NO_80, "the configuration has errors"),
            ("unknown key", "[policy]\nfile = 1\n", NO_80, "the configuration has errors"),
            (
                "needs a restart",
                "[device]\nmtu = 1400\nname = \"tun7\"\n[guard]\nmode = \"open\"\n",
                NO_80,
                "`device.name`, `device.mtu` changed, which needs a restart",
            ),
            ("no guard", "[policy]\ndirectory = \"policy.d\"\n", NO_80, "configuration has errors"),
            (
                "no policy",
                "[policy]\ndirectory = \"none.d\"\n[guard]\nmode = \"open\"\n",
                NO_80,
                "No such file",
            ),
            ("a bad policy", CONFIG, "policy 1\nalow tcp\n", "the policy has errors"),
            (
                "a test fails",
                CONFIG,
                "policy 1\ndefault block\nexpect allow tcp any to 192.0.2.1\n",
                "the policy has errors",
            ),
        ] {
            disk.write("tunneld.toml", config);
            disk.write("policy.d/a.policy", policy);
            for attempt in [daemon.rehearse().await, daemon.reload().await] {
                let error = attempt.map(|_| ()).expect_err(name);
                assert!(error.to_string().contains(want), "{name}: {error}");
                let of_text = matches!(error, NotLoaded::Policy(_) | NotLoaded::Configuration(_));
                assert_eq!(of_text, !error.diagnostics().is_empty(), "{name}");
            }
            assert_eq!(daemon.in_force().generation, 1, "{name}");
            assert_eq!(lines(&daemon.flows(None).await.expect("flows")).len(), 4, "{name}");
            let status = daemon.status().await.expect("a status");
            assert_eq!(status["shards"][1]["generation"], 1, "{name}");
        }
        disk.write("tunneld.toml", CONFIG);
        disk.write("policy.d/a.policy", NO_80);
        assert_eq!(daemon.reload().await.expect("all is well").generation, 2);
    });
}

#[test]
fn reloads_come_one_after_the_other() {
    let disk = Disk::new("serial");
    let daemon = Arc::new(daemon(&disk, Access::default(), Manner::Answers));
    runtime().block_on(async {
        let reloads = (0..8).map(|_| {
            let daemon = Arc::clone(&daemon);
            tokio::spawn(async move { daemon.reload().await.expect("good").generation })
        });
        let mut generations = Vec::new();
        for reload in reloads.collect::<Vec<_>>() {
            generations.push(reload.await.expect("it ends"));
        }
        generations.sort_unstable();
        assert_eq!(generations, [2, 3, 4, 5, 6, 7, 8, 9]);
    });
}

/// A shard that will not do its part is found before any other is told.
#[test]
fn a_reload_is_for_all_shards_or_for_none() {
    for (manner, want) in [
        (Manner::Ends, "shard 1 has ended"),
        (Manner::Silent, "shard 1 did not answer within 5 s"),
        (Manner::Full, "shard 1 is busy with other requests"),
    ] {
        let disk = Disk::new("none");
        let daemon = daemon(&disk, Access::default(), manner);
        runtime().block_on(async {
            disk.write("policy.d/a.policy", NO_80);
            let error = daemon.reload().await.map(|_| ()).expect_err(want);
            assert_eq!((error.to_string().as_str(), error.help()), (want, NOTHING));
            let in_force = daemon.in_force();
            let rule = in_force.policy.rule_texts().next().map(|rule| rule.text);
            assert_eq!((in_force.generation, rule.as_deref()), (1, Some("block tcp port 25")));
            let other = daemon.ask_one(0, |answer| Request::Status { answer }).await;
            let other = other.expect("a status");
            assert_eq!((other.generation, other.flows), (1, 2), "{want}");
        });
    }
}

const NOTHING: Option<&str> = Some("nothing has changed");

/// Once told, a shard has no other way than to follow: the policy is in force in all of them.
#[test]
fn a_shard_that_hangs_when_told_is_named_and_the_policy_is_in_force() {
    let disk = Disk::new("hangs");
    let daemon = daemon(&disk, Access::default(), Manner::Hangs);
    runtime().block_on(async {
        disk.write("policy.d/a.policy", NO_80);
        let error = daemon.reload().await.map(|_| ()).expect_err("one shard hangs");
        let want = "the policy is in force, but shard 1 did not answer within 5 s";
        assert_eq!(error.to_string(), want);
        assert_ne!(error.help(), NOTHING);
        let in_force = daemon.in_force();
        let rule = in_force.policy.rule_texts().next().map(|rule| rule.text);
        assert_eq!((in_force.generation, rule), (2, Some("block tcp port 80 id no-80".into())));
        let other = daemon.ask_one(0, |answer| Request::Status { answer }).await;
        let other = other.expect("a status");
        assert_eq!((other.generation, other.flows), (2, 1));
    });
}

#[test]
fn a_busy_shard_is_named() {
    let disk = Disk::new("busy");
    let daemon = daemon(&disk, Access::default(), Manner::Full);
    runtime().block_on(async {
        let flow = "1-1".parse().expect("id");
        assert_eq!(daemon.flows(None).await, Err(Unanswered::Busy(1)));
        assert_eq!(daemon.kill(flow, None).await, Err(KillError::Unanswered(Unanswered::Busy(1))));
    });
}

#[test]
fn a_shard_that_is_silent_is_named() {
    let disk = Disk::new("silent");
    let daemon = daemon(&disk, Access::default(), Manner::Silent);
    runtime().block_on(async {
        let error = daemon.status().await.expect_err("one shard is silent");
        assert_eq!(error.to_string(), "shard 1 did not answer within 5 s");
    });
}

#[test]
fn kills() {
    let disk = Disk::new("kill");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    runtime().block_on(async {
        for (id, of, want) in [
            ("0-1", Some(1001), "flow 0-1 is another user's"),
            ("0-1", Some(1000), ""),
            ("0-1", None, "there is no flow 0-1"),
            ("1-1", None, ""),
            ("2-1", None, "there is no flow 2-1"),
        ] {
            let killed = daemon.kill(id.parse().expect("an id"), of).await;
            let said = killed.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(said, want, "{id}");
        }
        assert_eq!(lines(&daemon.flows(None).await.expect("flows")).len(), 2);
    });
}

#[test]
fn rules_with_their_counts() {
    let disk = Disk::new("rules");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    let rules = lines(&runtime().block_on(daemon.rules()).expect("rules"));
    let said: Vec<_> = rules.iter().map(|r| (&r["rule"], &r["text"], &r["hits"])).collect();
    let want = [
        (json!("a.policy:2"), json!("block tcp port 25"), json!(0)),
        (json!("a.policy:3"), json!("allow tcp"), json!(4)),
        (json!("default"), json!("default block"), json!(6)),
    ];
    assert_eq!(said, want.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>());
}

/// Loopback is routed everywhere, and a link-local address nowhere without a device.
#[test]
fn explanations_ask_the_kernel() {
    let disk = Disk::new("explain");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    let asked = |destination: &str, port| Asked {
        protocol: AskedProtocol::Tcp,
        source: None,
        destination: destination.parse().ok(),
        name: destination.parse::<std::net::IpAddr>().is_err().then(|| destination.to_owned()),
        port: Some(port),
        client: None,
        uid: None,
    };
    runtime().block_on(async {
        let told = daemon.explain(asked("127.0.0.1", 80)).await.expect("an explanation");
        assert_eq!(
            (&told["source"], &told["egress"]["device"]),
            (&json!("127.0.0.1"), &json!("lo"))
        );
        assert_eq!((&told["verdict"], &told["generation"]), (&json!("allow"), &json!(1)));
        let told = daemon.explain(asked("fe80::1", 25)).await.expect("an explanation");
        assert_eq!((&told["egress"], &told["verdict"]), (&Value::Null, &json!("block")));
        assert!(told["unresolved"].is_string(), "{told}");
        // What an answer told of the address; the flows of the stand-in have a name.
        let told = daemon.explain(asked("203.0.113.9", 80)).await.expect("an explanation");
        assert_eq!(told["name"], "www.example.com");
        assert_eq!(told["resolvers"], json!(["upstream"]));
        let told = daemon.explain(asked("WWW.example.com.", 80)).await.expect("an explanation");
        assert_eq!((&told["name"], &told["egress"]), (&json!("www.example.com"), &Value::Null));
        assert_eq!(told["destination"], "www.example.com:80");
        let error = daemon.explain(asked("*.example.com", 80)).await.expect_err("no name");
        assert!(matches!(error, Unexplained::NotAName(_)), "{error}");
        let mixed = Asked { source: "::1".parse().ok(), ..asked("127.0.0.1", 80) };
        let error = daemon.explain(mixed).await.expect_err("no such flow");
        assert!(matches!(error, Unexplained::NoSuchFlow(_)), "{error}");

        disk.write("policy.d/a.policy", "policy 1\nallow from fd00::/8\ndefault block\n");
        daemon.reload().await.expect("a good policy");
        let error = daemon.explain(asked("fe80::1", 80)).await.expect_err("no source");
        assert!(matches!(error, Unexplained::Source(_)), "{error}");
        let error = daemon.explain(asked("www.example.com", 80)).await.expect_err("no source");
        assert!(matches!(error, Unexplained::NoAddress), "{error}");
    });
}

#[test]
fn watchers_are_told_and_told_what_they_lost() {
    let disk = Disk::new("watch");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    let events = events(&daemon);
    let clocks = [Clock { epoch: std::time::SystemTime::now() }; 2];
    let mut watch = events.watch();
    let (sender, receiver) = channel();
    let publisher = {
        let events = Arc::clone(&events);
        std::thread::spawn(move || publish(&receiver, &clocks, &events))
    };
    runtime().block_on(async {
        sender.send((1, flow(7, 80))).expect("somebody listens");
        let line = watch.next().await.expect("an event");
        let event = &lines(line.as_bytes())[0];
        assert_eq!((&event["event"], &event["id"]), (&json!("flow"), &json!("1-7")));
        const MANY: u64 = 100_000;
        for number in 0..MANY {
            sender.send((0, flow(number, 80))).expect("somebody listens");
        }
        drop(sender);
        publisher.join().expect("nobody was waited for");
        drop((events, daemon));
        let (mut told, mut lost) = (0, 0);
        while let Some(text) = watch.next().await {
            for event in lines(text.as_bytes()) {
                match event["event"].as_str() {
                    Some("lost") => lost += event["count"].as_u64().expect("a count"),
                    _ => told += 1,
                }
            }
        }
        assert_eq!(told + lost, MANY);
        assert!(lost > 0 && told > 0, "{told} {lost}");
    });
}

#[test]
fn what_another_policy_would_do() {
    let disk = Disk::new("compare");
    let daemon = daemon(&disk, Access::default(), Manner::Answers);
    let policy = |text: &str| {
        let sent = json!({ "sources": [{ "name": "b.policy", "text": text }] });
        let sent: crate::policy_sent::PolicySent = serde_json::from_value(sent).expect("sent");
        sent.load(&crate::config::Named::default()).expect("a good policy")
    };
    runtime().block_on(async {
        for (text, cuts) in [(OPEN, 0), (NO_80, 2), ("policy 1\ndefault drop\n", 4)] {
            let (policy, warnings) = policy(text);
            let told = daemon.compare(policy, warnings).await.expect("an answer").object("diff");
            assert_eq!(told["cut"].as_array().map(Vec::len), Some(cuts), "{text}");
            assert_eq!(told["generation"], 1);
        }
        assert_eq!(lines(&daemon.flows(None).await.expect("flows")).len(), 4);
    });
}
