//! Names by hand, of real servers on loopback.

use std::net::{SocketAddr, UdpSocket};

use dns::ask::{Failure, ResolverId};
use dns::event::{Event, Said};

use super::*;
use crate::names::standin::Server;
use crate::names::told;

const POLICY: &str = "policy 1\n\
    resolve both.example using corp and lab\n\
    resolve *.corp.example using corp\n\
    resolve blocked.example using none\n\
    allow tcp\ndefault block\n";

/// Two resolvers with a server each, one whose server is gone, and one for the network's.
struct Names {
    corp: Server,
    lab: Server,
    network: Server,
    served: Served,
}

impl Names {
    fn start(name: &str) -> Self {
        let corp =
            Server::start(&[("both.example", [10, 1, 2, 3]), ("www.corp.example", [10, 1, 2, 4])]);
        let lab = Server::start(&[("both.example", [10, 9, 9, 9])]);
        let network =
            Server::start(&[("www.example", [203, 0, 113, 5]), ("near.example", [192, 168, 1, 1])]);
        // Nobody listens there: the port is free again.
        let gone = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a port");
        let resolver = |name: &str, address: SocketAddr| {
            format!("[[resolver]]\nname = \"{name}\"\nservers = [\"{address}\"]\n")
        };
        let config = format!(
            "{}[dns]\nupstream = [\"{}\"]\n{}{}{}",
            crate::daemon::standin::CONFIG,
            network.address,
            resolver("corp", corp.address),
            resolver("lab", lab.address),
            resolver("gone", gone),
        );
        let disk = Disk::new(name);
        disk.write("tunneld.toml", &config);
        disk.write("policy.d/a.policy", POLICY);
        let served = Served::on(disk, Access::default(), 2, Manner::Answers);
        // `dns.upstream` counts once the resolver's thread has read it.
        let names = Self { corp, lab, network, served };
        let deadline = Instant::now() + Duration::from_secs(10);
        while names.lines("/v1/dns/servers")[0]["server"].is_null() {
            assert!(Instant::now() < deadline, "the resolver's thread does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        names
    }

    fn query(&self, name: &str, using: &[&str]) -> Vec<Value> {
        let mut objects = Vec::new();
        let inquiry = json!({ "name": name, "type": "A", "using": using });
        let done = self.served.client().post_lines("/v1/dns/query", &inquiry, |object| {
            objects.push(object.clone());
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_documented(&objects);
        objects
    }

    fn lines(&self, path: &str) -> Vec<Value> {
        let mut objects = Vec::new();
        let done = self.served.client().lines(path, |object| {
            objects.push(object.clone());
            Ok(())
        });
        done.expect("a list");
        objects
    }

    /// What each was asked since the last time.
    fn asked(&self) -> [Vec<String>; 3] {
        [self.corp.asked(), self.lab.asked(), self.network.asked()]
    }
}

fn data(answer: &Value) -> Vec<&str> {
    let records = answer["records"].as_array().expect("a list").iter();
    records.map(|record| record["data"].as_str().expect("text")).collect()
}

#[test]
fn what_an_app_would_get() {
    let names = Names::start("app-gets");
    for (name, rule, form, resolvers, from, code, records, corp, lab, network) in [
        (
            "www.Corp.example.",
            "a.policy:3",
            "one",
            &["corp"][..],
            "servers",
            "NOERROR",
            &["10.1.2.4"][..],
            1,
            0,
            0,
        ),
        (
            "www.corp.example",
            "a.policy:3",
            "one",
            &["corp"],
            "cache",
            "NOERROR",
            &["10.1.2.4"],
            0,
            0,
            0,
        ),
        (
            "both.example",
            "a.policy:2",
            "and",
            &["corp", "lab"],
            "servers",
            "NOERROR",
            &["10.1.2.3", "10.9.9.9"],
            1,
            1,
            0,
        ),
        ("www.example", "", "one", &["upstream"], "servers", "NOERROR", &["203.0.113.5"], 0, 0, 1),
        ("no.example", "", "one", &["upstream"], "servers", "NXDOMAIN", &[], 0, 0, 1),
        ("near.example", "", "one", &["upstream"], "servers", "NOERROR", &[], 0, 0, 1),
        ("blocked.example", "a.policy:4", "none", &[], "here", "NXDOMAIN", &[], 0, 0, 0),
        ("localhost", "", "", &[], "here", "NOERROR", &["127.0.0.1"], 0, 0, 0),
        ("x.invalid", "", "", &[], "here", "NXDOMAIN", &[], 0, 0, 0),
    ] {
        let objects = names.query(name, &[]);
        let [plan, answer] = &objects[..] else { panic!("{name}: {objects:?}") };
        assert_eq!(plan["event"], "dns-plan");
        assert_eq!(plan["rule"].as_str().unwrap_or_default(), rule, "{name}");
        assert_eq!(plan["form"].as_str().unwrap_or_default(), form, "{name}");
        assert_eq!(plan["resolvers"], json!(resolvers), "{name}");
        assert_eq!(plan["here"].is_null(), !form.is_empty(), "{name}: {plan}");
        assert_eq!((&answer["from"], &answer["code"]), (&json!(from), &json!(code)), "{name}");
        assert_eq!(data(answer), records, "{name}");
        assert_eq!(names.asked().map(|asked| asked.len()), [corp, lab, network], "{name}");
    }
    // The filter says what it did.
    let filtered = &names.query("near.example", &[])[1];
    assert_eq!(filtered["extended"][0]["code"], 17, "{filtered}");
}

#[test]
fn only_those_that_are_named_are_asked() {
    let names = Names::start("using");
    let objects = names.query("both.example", &["lab", "corp"]);
    let [plan, lab, corp] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&plan["form"], &plan["resolvers"]), (&json!("and"), &json!(["corp", "lab"])));
    assert_eq!((&lab["resolver"], &corp["resolver"]), (&json!("lab"), &json!("corp")));
    assert_eq!((data(lab), data(corp)), (vec!["10.9.9.9"], vec!["10.1.2.3"]));
    assert_eq!(lab["server"], names.lab.address.to_string());
    assert_eq!((&lab["transport"], &lab["failure"]), (&json!("udp"), &Value::Null));
    assert!(lab["took_us"].as_u64().is_some_and(|took| took > 0), "{lab}");
    let once = || vec!["both.example".to_owned()];
    assert_eq!(names.asked(), [once(), once(), vec![]]);
    // Whatever the plan says, and nothing is kept of it.
    let objects = names.query("www.corp.example", &["upstream"]);
    assert_eq!(
        (&objects[1]["code"], &objects[0]["resolvers"]),
        (&json!("NXDOMAIN"), &json!(["corp"]))
    );
    assert_eq!(names.asked(), [vec![], vec![], vec!["www.corp.example".to_owned()]]);
    assert_eq!(names.query("www.corp.example", &[])[1]["from"], "servers");
    // A dead one does not hold the others up.
    let objects = names.query("www.example", &["gone", "upstream"]);
    let [_, gone, upstream] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!((&gone["failure"], &gone["code"]), (&json!("connection refused"), &Value::Null));
    assert_eq!(gone["tries"][0]["fault"], "refused", "{gone}");
    assert_eq!(data(upstream), ["203.0.113.5"]);
}

#[test]
fn what_cannot_be_asked_is_said() {
    let names = Names::start("unaskable");
    for (body, status, error, help) in [
        (json!({}), 400, "missing field `name`", "openapi"),
        (json!({ "name": "x", "usnig": [] }), 400, "unknown field `usnig`", "openapi"),
        (json!({ "name": "bücher.example" }), 400, "is not in ASCII", "xn--bcher-kva.example"),
        (json!({ "name": "192.0.2.1" }), 400, "an address is no name", "1.2.0.192.in-addr.arpa"),
        (json!({ "name": "x.example", "type": "B" }), 400, "`x.example B`: no such type", "AAAA"),
        (json!({ "name": "x.example", "type": "ANY" }), 400, "is not resolved", "AAAA"),
        (
            json!({ "name": "x.example", "using": ["crop"] }),
            400,
            "there is no resolver `crop`",
            "there are: upstream, corp, lab, gone",
        ),
        (json!({ "name": "x.example", "using": ["lab", "lab"] }), 400, "twice", "once"),
    ] {
        let body = body.to_string();
        let request = request("POST", "/v1/dns/query", &body);
        let (got, text) = names.served.send(request.as_bytes());
        let told: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((got, &told["exit"]), (status, &json!(code::USAGE)), "{body}: {told}");
        for (key, want) in [("error", error), ("help", help)] {
            assert!(told[key].as_str().is_some_and(|text| text.contains(want)), "{body}: {told}");
        }
    }
    let (status, told) = {
        let (status, text) =
            names.served.send(request("POST", "/v1/dns/flush?using=crop", "").as_bytes());
        (status, serde_json::from_str::<Value>(&text).expect("JSON"))
    };
    assert_eq!((status, &told["error"]), (400, &json!("there is no resolver `crop`")));
    assert_eq!(names.asked(), [const { Vec::<String>::new() }; 3], "nobody was asked");
}

#[test]
fn servers_and_the_cache() {
    let names = Names::start("servers");
    names.query("www.corp.example", &[]);
    names.query("www.example", &[]);
    names.query("no.corp.example", &["gone"]);
    let servers = names.lines("/v1/dns/servers");
    assert_documented(&servers);
    let told: Vec<_> = servers
        .iter()
        .map(|s| {
            let text = |key: &str| s[key].as_str().expect("text").to_owned();
            (text("resolver"), text("server"), text("state"), s["resolver_asked"].clone())
        })
        .collect();
    let want = [
        ("upstream", names.network.address.to_string(), "answers", 1),
        ("corp", names.corp.address.to_string(), "answers", 1),
        ("lab", names.lab.address.to_string(), "untried", 0),
    ];
    let want =
        want.map(|(of, at, state, asked)| (of.to_owned(), at, state.to_owned(), json!(asked)));
    assert_eq!(told[..3], want);
    assert_eq!((&*told[3].0, &*told[3].2), ("gone", "fails"));
    assert!(servers.iter().all(|server| server["from"] == "configuration"), "{servers:?}");

    let metric = |line: &str| {
        let (_, text) = names.served.send(request("GET", "/metrics", "").as_bytes());
        assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
    };
    metric("tunneld_dns_cache_misses_total 2");
    metric("tunneld_dns_cache_entries 2");
    metric("tunneld_dns_asked_total{resolver=\"corp\"} 1");
    metric("tunneld_dns_failed_total{resolver=\"lab\"} 0");

    let flush = |path: &str| names.served.client().post(path, &Value::Null).expect("flushed");
    names.asked();
    let flushed = flush("/v1/dns/flush?using=corp");
    assert_documented(std::slice::from_ref(&flushed));
    assert_eq!(flushed, json!({ "event": "flushed", "resolver": "corp", "count": 1 }));
    assert_eq!(names.query("www.example", &[])[1]["from"], "cache");
    assert_eq!(names.query("www.corp.example", &[])[1]["from"], "servers");
    assert_eq!(flush("/v1/dns/flush")["count"], 2);
    assert_eq!(names.query("www.example", &[])[1]["from"], "servers");
    metric("tunneld_dns_cache_hits_total 1");
}

#[test]
fn watchers_hear_of_names() {
    let names = Names::start("told");
    let mut client = names.served.client();
    let (sender, receiver) = channel();
    let watcher = std::thread::spawn(move || {
        let ended = client.lines("/v1/watch", |event| {
            sender.send(event.clone())?;
            Ok(())
        });
        drop(ended);
    });
    while names.served.events.watchers() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    names.query("both.example", &[]);
    names.query("near.example", &[]);
    // What is asked past the plan is nobody's disagreement.
    names.query("both.example", &["corp", "upstream"]);
    let next = || receiver.recv_timeout(Duration::from_secs(10)).expect("an event");
    let (first, second) = (next(), next());
    assert_eq!((&first["event"], &first["name"]), (&json!("disagreement"), &json!("both.example")));
    let said = |at: usize| (&first["answers"][at]["resolver"], &first["answers"][at]["data"]);
    assert_eq!(said(0), (&json!("corp"), &json!(["10.1.2.3"])));
    assert_eq!(said(1), (&json!("lab"), &json!(["10.9.9.9"])));
    assert_eq!(
        (&second["what"], &second["addresses"]),
        (&json!("rebinding"), &json!(["192.168.1.1"]))
    );
    assert_documented(&[first, second]);
    drop(names);
    watcher.join().expect("it ends");
    assert!(receiver.try_recv().is_err(), "nothing else happened");
}

#[test]
fn events_of_names_are_documented() {
    let (name, kind): (Arc<str>, _) = ("www.corp.example".into(), dns::inquiry::question("x", "A"));
    let kind = kind.expect("a question").kind;
    let corp = ResolverId(1);
    let failure = Failure::TimedOut;
    let said = Said::Failed(failure.clone());
    let events = [
        Event::Disagreement { name: Arc::clone(&name), kind, answers: vec![(corp, said)] },
        Event::Failed { name: Arc::clone(&name), kind, failures: vec![(corp, failure)] },
        Event::Loop { name: Arc::clone(&name), kind },
        Event::Rebinding {
            name,
            kind,
            resolver: corp,
            addresses: vec!["10.0.0.1".parse().expect("an address")],
        },
    ];
    let now = std::time::SystemTime::now();
    let told = events.iter().map(|event| told::object(event, now, &|_| "corp".into()));
    assert_documented(&told.collect::<Vec<_>>());
}

/// A flow that our resolver answers leaves by no way, and no route is asked for it.
#[test]
fn flows_to_the_resolver_are_explained() {
    let names = Names::start("explained");
    let explain = |destination: &str, port: u16, client: Option<&str>, protocol: &str| {
        let asked = json!({
            "protocol": protocol, "destination": destination, "port": port, "client": client,
        });
        names.served.client().post("/v1/explain", &asked).expect("an explanation")
    };
    // A clause about the source would need one.
    names.served.disk.write(
        "policy.d/a.policy",
        "policy 1\nallow from 192.0.2.0/24 tcp\nblock udp port 53\nallow tcp port 53\n\
         default block\n",
    );
    names.served.client().post("/v1/reload", &Value::Null).expect("reloaded");
    for (destination, port, client, protocol, via, verdict, source) in [
        ("198.18.0.2", 53, None, "tcp", "dns", "allow", Value::Null),
        ("198.18.0.2", 53, None, "udp", "dns", "block", Value::Null),
        ("198.18.0.2", 53, Some("192.0.2.7"), "tcp", "dns", "allow", json!("192.0.2.7")),
        ("198.18.0.2", 53, Some("198.51.100.7"), "udp", "dns", "block", json!("198.51.100.7")),
        ("127.0.0.1", 53, None, "tcp", "direct", "allow", json!("127.0.0.1")),
    ] {
        let told = explain(destination, port, client, protocol);
        let at = format!("{protocol} {destination} {client:?}: {told}");
        assert_eq!((&told["via"], &told["verdict"]), (&json!(via), &json!(verdict)), "{at}");
        assert_eq!(told["source"], source, "{at}");
        assert_eq!(told["egress"].is_null(), via == "dns", "{at}");
        assert_eq!(told["unresolved"], Value::Null, "{at}");
        assert_documented(&[told]);
    }
    // With `intercept` every port 53 is answered here.
    let config = std::fs::read_to_string(names.served.disk.path("tunneld.toml")).expect("a file");
    let intercepting = config.replace("[dns]\n", "[dns]\nintercept = \"all\"\n");
    let disk = Disk::new("intercepting");
    disk.write("tunneld.toml", &intercepting);
    let served = Served::on(disk, Access::default(), 2, Manner::Answers);
    let asked = json!({ "protocol": "tcp", "destination": "203.0.113.77", "port": 53 });
    let told = served.client().post("/v1/explain", &asked).expect("an explanation");
    assert_eq!((&told["via"], &told["egress"]), (&json!("dns"), &Value::Null), "{told}");
}

#[test]
fn verbs_about_names() {
    let names = Names::start("name-verbs");
    for (words, exit) in [
        (&["dns", "query", "www.corp.example"][..], 0),
        (&["dns", "query", "www.corp.example", "--type", "aaaa"], 0),
        (&["dns", "query", "no.corp.example"], code::FINDING),
        (&["dns", "query", "both.example", "--using", "corp", "--using", "lab"], 0),
        (&["dns", "query", "both.example", "--using", "corp", "--using", "gone"], code::FINDING),
        (&["dns", "query", "a..b"], code::USAGE),
        (&["dns", "query", "both.example", "--using", "crop"], code::USAGE),
        (&["dns", "servers"], 0),
        (&["dns", "flush"], 0),
        (&["dns", "flush", "--using", "corp"], 0),
        (&["dns", "flush", "--using", "crop"], code::USAGE),
    ] {
        let got = names.served.tunneld(words).unwrap_or_else(|refusal| refusal.code());
        assert_eq!(got, exit, "{words:?}");
    }
}
