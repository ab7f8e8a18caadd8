//! Which server answers which name, through `exec`: asked by kdig, and proved by the servers'
//! own logs.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use tests::both::{Both, kdig_in};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::{Dnsmasq, TcpServer, Unbound};
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const CORP: &str = "\
 local-data: \"page.corp.example. 300 A 203.0.113.1\"
 local-data: \"both.corp.example. 300 A 203.0.113.1\"
 local-data: \"either.corp.example. 300 A 203.0.113.1\"
 local-data: \"1.20.10.in-addr.arpa. 300 PTR host.corp.example.\"
 local-zone: \"10.in-addr.arpa.\" transparent
 local-data: \"1.0.20.10.in-addr.arpa. 300 PTR host.corp.example.\"
 local-zone: \"d.f.ip6.arpa.\" transparent
 local-data-ptr: \"fd20::1 300 host6.corp.example.\"
 local-data: \"public.example. 300 A 203.0.113.1\"
 local-data: \"half.corp.example. 300 A 203.0.113.1\"
 local-data: 'text.corp.example. 300 TXT \"of-corp\"'
 local-zone: \"denied.example.\" static
 local-data: \"empty.denied.example. 300 A 203.0.113.1\"
 local-zone: \"turned.example.\" always_refuse";

const UPSTREAM: &str = "\
 local-data: \"page.corp.example. 300 A 203.0.113.129\"
 local-data: \"both.corp.example. 300 A 203.0.113.129\"
 local-data: \"public.example. 300 A 203.0.113.129\"
 local-data: \"bad.example. 300 A 192.168.7.7\"
 local-data: \"bad.example. 300 A 203.0.113.129\"
 local-data: 'half.corp.example. 300 TXT \"none\"'
 local-data: 'text.corp.example. 300 TXT \"of-upstream\"'
 local-data: \"no.denied.example. 300 A 203.0.113.129\"
 local-data: \"empty.denied.example. 300 AAAA 2001:db8::129\"
 local-data: \"turned.example. 300 A 203.0.113.129\"";

const RULES: &str = "\
resolve blocked.corp.example using none
resolve both.corp.example using corp and upstream
resolve either.corp.example using upstream or corp
resolve past.refused.example using corp else upstream
resolve *.denied.example turned.example using corp else upstream
resolve half.corp.example using corp and upstream
resolve text.corp.example using upstream and corp
resolve fails.refused.example refused.example using corp
set office = *.corp.example 10.20.0.0/16 fd20::/32
resolve link.corp.example using masq
resolve @office using corp";

/// Both, and a server that follows aliases.
fn config() -> String {
    format!("{}[[resolver]]\nname = \"masq\"\nservers = [\"192.0.2.2\"]\n", Both::CONFIG)
}

/// What kdig says inside `exec`.
fn kdig(both: &Both, args: &str) -> Result<String> {
    let exec = both.lab.exec("kdig").config(&config());
    Ok(kdig_in(exec.policy(&format!("{RULES}\ndefault allow")), args)?.0)
}

/// The name that stands for an address.
fn reverse(address: IpAddr) -> String {
    let (digits, zone): (Vec<String>, _) = match address {
        IpAddr::V4(v4) => (v4.octets().iter().map(ToString::to_string).collect(), "in-addr.arpa"),
        IpAddr::V6(v6) => {
            (format!("{:032x}", v6.to_bits()).chars().map(String::from).collect(), "ip6.arpa")
        }
    };
    let labels = digits.iter().rev().map(|digit| format!("{digit}."));
    labels.collect::<String>() + zone
}

#[test]
fn each_form_of_a_rule_asks_whom_it_names() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start(CORP, UPSTREAM)?;
    // The question; what is in the answer; whether corp and upstream are asked.
    let questions = [
        ("page.corp.example", &["203.0.113.1\n"][..], true, false),
        ("www.corp.example", &["10.1.2.3"], true, false),
        ("www.corp.example AAAA", &["fd00::3"], true, false),
        ("none.corp.example", &["status: NXDOMAIN"], true, false),
        ("public.example", &["203.0.113.129"], false, true),
        ("both.corp.example", &["203.0.113.1\n", "203.0.113.129"], true, true),
        ("either.corp.example", &["203.0.113.1\n"], true, true),
        ("half.corp.example", &["203.0.113.1\n", "ANSWER: 1;"], true, true),
        ("text.corp.example TXT", &["\"of-upstream\"", "ANSWER: 1;"], true, true),
        ("past.refused.example", &["status: SERVFAIL"], true, true),
        ("turned.example", &["203.0.113.129"], true, true),
        // That there is nothing is an answer.
        ("no.denied.example", &["status: NXDOMAIN"], true, false),
        ("empty.denied.example AAAA", &["status: NOERROR", "ANSWER: 0;"], true, false),
        ("-x 10.21.0.1", &["status: NXDOMAIN"], false, false),
        ("fails.refused.example", &["status: SERVFAIL", "EDE: 22"], true, false),
        ("blocked.corp.example", &["status: NXDOMAIN", "EDE: 15"], false, false),
        ("bad.example", &["203.0.113.129", "EDE: 17"], false, true),
        ("odd.corp.example TYPE65280", &["0A000001"], true, false),
        ("-x 10.20.0.1", &["host.corp.example."], true, false),
        ("-x fd20::1", &["host6.corp.example."], true, false),
        ("-x fd21::1", &["status: NXDOMAIN"], false, false),
        ("-x 192.168.1.1", &["status: NXDOMAIN"], false, false),
        ("printer", &["status: REFUSED"], false, false),
        ("x.localhost", &["127.0.0.1"], false, false),
    ];
    for (place, (question, want, corp, upstream)) in questions.into_iter().enumerate() {
        let name = match question.split(' ').collect::<Vec<_>>()[..] {
            ["-x", address] => reverse(address.parse()?),
            [name, ..] => name.to_owned(),
            [] => String::new(),
        };
        // Every way now and then: each takes an `exec` of its own.
        let ways = ["+notcp @198.18.0.2", "+tcp @198.18.0.2", "+notcp @192.0.2.77"];
        let some = if place % 4 == 0 { 0..3 } else { place % 3..place % 3 + 1 };
        for over in &ways[some] {
            let before = both.asked(&name)?;
            let seen = kdig(&both, &format!("{over} {question}"))?;
            for want in want {
                ensure!(seen.contains(want), "{over} {question}: no `{want}`:\n{seen}");
            }
            ensure!(!seen.contains("192.168.7.7"), "{question}:\n{seen}");
            let now = both.asked(&name)?;
            let asked = [now[0] > before[0], now[1] > before[1]];
            ensure!(asked == [corp, upstream], "{over} {question}: asked {asked:?}:\n{seen}");
        }
    }
    Ok(())
}

#[test]
fn sizes_and_flags_are_the_apps_own() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start(CORP, UPSTREAM)?;
    for (args, want, never) in [
        ("+ignore +bufsize=512", &["Flags: qr tc"][..], "TXT"),
        ("+ignore +noedns", &["Flags: qr tc"], "EDNS PSEUDOSECTION"),
        ("+bufsize=512", &["ANSWER: 20", "(TCP)"], "Flags: qr tc"),
        ("+tcp", &["ANSWER: 20", "(TCP)"], "Flags: qr tc"),
        ("+bufsize=4096 +dnssec +cdflag", &["ANSWER: 20", "cd;"], "Flags: qr tc"),
    ] {
        let seen = kdig(&both, &format!("{args} big.corp.example TXT"))?;
        for want in want {
            ensure!(seen.contains(want), "{args}: no `{want}`:\n{seen}");
        }
        let answer = seen.rsplit_once(";; ->>HEADER").context("an answer")?.1;
        ensure!(never == "TXT" || !answer.contains(never), "{args}: `{never}`:\n{seen}");
    }
    let seen = kdig(&both, "+dnssec www.corp.example")?;
    ensure!(seen.contains("flags: do"), "{seen}");
    Ok(())
}

#[test]
fn a_verdict_by_name_and_by_resolver_is_the_one_of_the_name_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start(CORP, UPSTREAM)?;
    let server = TcpServer::start(&both.lab.server, 0, page)?;
    // unbound does not follow a CNAME of its own.
    let records = [
        "--host-record=page.corp.example,203.0.113.1",
        "--cname=link.corp.example,page.corp.example",
    ];
    let _dnsmasq = Dnsmasq::start(&both.lab.server, plan::NEAR4, &records)?;
    let port = server.port();
    for (rules, name, passes) in [
        ("allow to page.corp.example\ndefault block", "page.corp.example", true),
        ("allow to *.corp.example\ndefault block", "page.corp.example", true),
        ("allow to public.example\ndefault block", "page.corp.example", false),
        // A CNAME's target is no name of the flow.
        ("block to page.corp.example\ndefault allow", "link.corp.example", true),
        ("allow to link.corp.example\ndefault block", "link.corp.example", true),
        ("allow to any resolver corp\ndefault block", "page.corp.example", true),
        ("allow to any resolver corp\ndefault block", "public.example", false),
        ("block to any resolver upstream\ndefault allow", "public.example", false),
        ("block to unknown-name\ndefault allow", "page.corp.example", true),
        ("block to unknown-name\ndefault allow", "203.0.113.1", false),
    ] {
        let seen = both.lab.exec("curl").config(&config());
        // The questions themselves pass.
        let policy = format!("{RULES}\nallow port 53\n{rules}");
        let url = format!("http://{name}:{port}/");
        let seen = seen.policy(&policy).args(["-sS", "-4", "--max-time", "10", &url]).run()?;
        ensure!((seen.stdout() == PAGE) == passes, "{rules}: {name}: {seen:#?}");
        let flows = seen.flows()?;
        let to = format!(":{port}");
        let mut pages = flows.iter().filter(|flow| {
            flow["destination"].as_str().is_some_and(|destination| destination.ends_with(&to))
        });
        let flow = pages.next().context("a flow")?;
        if name.ends_with("example") {
            ensure!(flow["name"] == name && flow["name_from"] == "dns", "{flow}");
            let by = match name {
                "public.example" => "upstream",
                "link.corp.example" => "masq",
                _ => "corp",
            };
            ensure!(flow["resolvers"] == serde_json::json!([by]), "{flow}");
            let asked = flows.iter().find(|flow| flow["via"] == "dns").context("a dns flow")?;
            ensure!(asked["source"].is_null() && asked["egress"].is_null(), "{asked}");
        } else {
            ensure!(flow["name"].is_null(), "{flow}");
        }
    }
    Ok(())
}

/// Each address of an `and` is of those who gave it, and one side's verdict is not the other's.
#[test]
fn each_side_of_an_and_has_its_own_verdict() -> Result<()> {
    require_root!();
    require_tunneld!();
    let shared = " local-data: \"both.corp.example. 300 A 192.0.2.2\"";
    let both = Both::start(&format!("{CORP}\n{shared}"), &format!("{UPSTREAM}\n{shared}"))?;
    let server = TcpServer::start(&both.lab.server, 0, page)?;
    let port = server.port();
    // Of corp alone, of upstream alone, of both.
    let sides = ["203.0.113.1", "203.0.113.129", "192.0.2.2"];
    let of = [&["corp"][..], &["upstream"], &["upstream", "corp"]];
    let script = format!(
        "kdig @198.18.0.2 both.corp.example >&2; for address in {}; do \
         curl -s -o /dev/null --max-time 8 -w '%{{http_code}}\\n' http://$address:{port}/; done; true",
        sides.join(" ")
    );
    for (rules, passes) in [
        ("block to any resolver corp\ndefault allow", [false, true, false]),
        ("block to any resolver upstream\ndefault allow", [true, false, false]),
        ("allow to any resolver corp\ndefault block", [true, false, true]),
        ("allow to any resolver upstream\ndefault block", [false, true, true]),
        ("block to any resolver not corp\ndefault allow", [true, false, true]),
        ("block to both.corp.example\ndefault allow", [false; 3]),
    ] {
        let policy = format!("{RULES}\nallow port 53\n{rules}");
        let exec = both.lab.exec("sh").config(&config()).policy(&policy);
        let seen = exec.args(["-c", &script]).run()?.success()?;
        let codes: Vec<bool> = seen.stdout().lines().map(|code| code == "200").collect();
        ensure!(codes == passes, "{rules}: {codes:?}: {seen:#?}");
        for ((side, of), passes) in sides.iter().zip(of).zip(passes) {
            let flow = seen.flow_to(side.parse()?, port)?;
            let mut resolvers: Vec<&str> = flow["resolvers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|r| r.as_str())
                .collect();
            resolvers.sort_unstable_by_key(|name| *name == "corp");
            ensure!(resolvers == of && flow["name"] == "both.corp.example", "{rules}: {flow}");
            let verdict = if passes { "allow" } else { "block" };
            ensure!(flow["verdict"] == verdict, "{rules}: {flow}");
        }
    }
    Ok(())
}

#[test]
fn a_policy_that_blocks_port_53_blocks_names() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start(CORP, UPSTREAM)?;
    let seen = both.lab.exec("kdig").config(Both::CONFIG).policy("block port 53\ndefault allow");
    let seen = seen.args(["+timeout=1", "+retry=0", "@198.18.0.2", "public.example"]).run()?;
    ensure!(!seen.stdout().contains("203.0.113.129"), "{seen:#?}");
    ensure!(both.upstream.asked("public.example")? == 0);
    Ok(())
}

/// Names within the network's search domains are its servers', whatever they look like.
#[test]
fn a_search_domain_opens_names_that_nobody_else_is_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let more = " local-zone: \"lan.local.\" static\n \
                local-data: \"nas.lan.local. 300 A 203.0.113.1\"";
    let unbound = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
    for (search, name, found) in [
        ("search lan.local", "nas.lan.local", true),
        ("search lan.local", "nas.home.local", false),
        ("search other.example", "nas.lan.local", false),
    ] {
        let etc = format!(
            "mount -t tmpfs lab /srv; cp -a /etc/. /srv/; mount --move /srv /etc; \
             rm -f /etc/resolv.conf; \
             printf 'nameserver 203.0.113.129\\n{search}\\n' > /etc/resolv.conf"
        );
        let before = unbound.asked(name)?;
        let (seen, _) = kdig_in(lab.exec("kdig").prepare(&etc), name)?;
        ensure!(seen.contains("203.0.113.1\n") == found, "{search}: {seen}");
        ensure!(found || seen.contains("status: REFUSED"), "{search}: {seen}");
        ensure!((unbound.asked(name)? > before) == found, "{search}: {name}");
    }
    Ok(())
}
