//! Which server answers which name, through `exec`: asked by kdig, and proved by the servers'
//! own logs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::{Authority, Lie, LyingServer, TcpServer, Unbound, Valid};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

/// The company's server and the network's own. Both have the company's zone, with other data.
struct Both {
    corp: Unbound,
    upstream: Unbound,
    lab: Lab,
}

const CORP: &str = "\
 local-data: \"page.corp.example. 300 A 203.0.113.1\"
 local-data: \"both.corp.example. 300 A 203.0.113.1\"
 local-data: \"either.corp.example. 300 A 203.0.113.1\"
 local-data: \"1.20.10.in-addr.arpa. 300 PTR host.corp.example.\"
 local-zone: \"10.in-addr.arpa.\" transparent
 local-data: \"1.0.20.10.in-addr.arpa. 300 PTR host.corp.example.\"
 local-data: \"public.example. 300 A 203.0.113.1\"";

const UPSTREAM: &str = "\
 local-data: \"page.corp.example. 300 A 203.0.113.129\"
 local-data: \"both.corp.example. 300 A 203.0.113.129\"
 local-data: \"public.example. 300 A 203.0.113.129\"
 local-data: \"bad.example. 300 A 192.168.7.7\"
 local-data: \"bad.example. 300 A 203.0.113.129\"";

const RULES: &str = "\
resolve blocked.corp.example using none
resolve both.corp.example using corp and upstream
resolve either.corp.example using upstream or corp
resolve past.refused.example using corp else upstream
resolve fails.refused.example refused.example using corp
set office = *.corp.example 10.20.0.0/16
resolve link.corp.example using masq
resolve @office using corp";

const CONFIG: &str = "[dns]\nupstream = [\"203.0.113.129\"]\n\
                      [[resolver]]\nname = \"corp\"\nservers = [\"203.0.113.1\"]\n\
                      [[resolver]]\nname = \"masq\"\nservers = [\"192.0.2.2\"]\n";

impl Both {
    fn start() -> Result<Self> {
        let lab = Lab::new()?;
        let corp = Unbound::with(&lab.server, plan::GOOD4, None, CORP)?;
        let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, UPSTREAM)?;
        Ok(Self { corp, upstream, lab })
    }

    /// What kdig says inside `exec`.
    fn kdig(&self, args: &str) -> Result<String> {
        let kdig = self.lab.exec("kdig").config(CONFIG);
        let kdig = kdig.policy(&format!("{RULES}\ndefault allow")).args(args.split(' '));
        Ok(kdig.run()?.success()?.stdout().to_owned())
    }
}

#[test]
fn each_form_of_a_rule_asks_whom_it_names() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start()?;
    // The question; what is in the answer; whether corp and upstream are asked.
    for (question, want, corp, upstream) in [
        ("page.corp.example", &["203.0.113.1\n"][..], true, false),
        ("www.corp.example", &["10.1.2.3"], true, false),
        ("www.corp.example AAAA", &["fd00::3"], true, false),
        ("none.corp.example", &["status: NXDOMAIN"], true, false),
        ("public.example", &["203.0.113.129"], false, true),
        ("both.corp.example", &["203.0.113.1\n", "203.0.113.129"], true, true),
        ("either.corp.example", &["203.0.113.1\n"], true, true),
        ("past.refused.example", &["status: SERVFAIL"], true, true),
        ("-x 10.21.0.1", &["status: NXDOMAIN"], false, false),
        ("fails.refused.example", &["status: SERVFAIL", "EDE: 22"], true, false),
        ("blocked.corp.example", &["status: NXDOMAIN", "EDE: 15"], false, false),
        ("bad.example", &["203.0.113.129", "EDE: 17"], false, true),
        ("odd.corp.example TYPE65280", &["0A000001"], true, false),
        ("-x 10.20.0.1", &["host.corp.example."], true, false),
        ("-x 192.168.1.1", &["status: NXDOMAIN"], false, false),
        ("printer", &["status: REFUSED"], false, false),
        ("x.localhost", &["127.0.0.1"], false, false),
    ] {
        let name = match question.split(' ').collect::<Vec<_>>()[..] {
            ["-x", "10.20.0.1"] => "1.0.20.10.in-addr.arpa",
            ["-x", "10.21.0.1"] => "1.0.21.10.in-addr.arpa",
            ["-x", _] => "1.1.168.192.in-addr.arpa",
            [name, ..] => name,
            [] => "",
        };
        for over in ["+notcp @198.18.0.2", "+tcp @198.18.0.2", "+notcp @192.0.2.77"] {
            let before = (both.corp.asked(name)?, both.upstream.asked(name)?);
            let seen = both.kdig(&format!("+edns +timeout=8 +retry=0 {over} {question}"))?;
            for want in want {
                ensure!(seen.contains(want), "{over} {question}: no `{want}`:\n{seen}");
            }
            ensure!(!seen.contains("192.168.7.7"), "{question}:\n{seen}");
            let asked = (both.corp.asked(name)? > before.0, both.upstream.asked(name)? > before.1);
            ensure!(asked == (corp, upstream), "{over} {question}: asked {asked:?}:\n{seen}");
        }
    }
    Ok(())
}

#[test]
fn sizes_and_flags_are_the_apps_own() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start()?;
    for (args, want, never) in [
        ("+ignore +bufsize=512", &["Flags: qr tc"][..], "TXT"),
        ("+ignore +noedns", &["Flags: qr tc"], "EDNS PSEUDOSECTION"),
        ("+bufsize=512", &["ANSWER: 20", "(TCP)"], "Flags: qr tc"),
        ("+tcp", &["ANSWER: 20", "(TCP)"], "Flags: qr tc"),
        ("+bufsize=4096 +dnssec +cdflag", &["ANSWER: 20", "cd;"], "Flags: qr tc"),
    ] {
        let seen = both.kdig(&format!("@198.18.0.2 {args} big.corp.example TXT"))?;
        for want in want {
            ensure!(seen.contains(want), "{args}: no `{want}`:\n{seen}");
        }
        let answer = seen.rsplit_once(";; ->>HEADER").context("an answer")?.1;
        ensure!(never == "TXT" || !answer.contains(never), "{args}: `{never}`:\n{seen}");
    }
    let seen = both.kdig("@198.18.0.2 +dnssec www.corp.example")?;
    ensure!(seen.contains("flags: do"), "{seen}");
    Ok(())
}

#[test]
fn a_verdict_by_name_and_by_resolver_is_the_one_of_the_name_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start()?;
    let server = TcpServer::start(&both.lab.server, 0, page)?;
    // unbound does not follow a CNAME of its own.
    let dnsmasq = both.lab.server.command("dnsmasq").args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--listen-address=192.0.2.2",
        "--host-record=page.corp.example,203.0.113.1",
        "--cname=link.corp.example,page.corp.example",
    ]);
    let dnsmasq = dnsmasq.spawn()?;
    let limit = Instant::now() + Duration::from_secs(10);
    while !dnsmasq.stderr().contains("started") {
        ensure!(Instant::now() < limit, "dnsmasq: {}", dnsmasq.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
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
        let seen = both.lab.exec("curl").config(CONFIG);
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
    dnsmasq.signal(rustix::process::Signal::TERM)?;
    dnsmasq.wait()?;
    Ok(())
}

#[test]
fn a_policy_that_blocks_port_53_blocks_names() -> Result<()> {
    require_root!();
    require_tunneld!();
    let both = Both::start()?;
    let seen = both.lab.exec("kdig").config(CONFIG).policy("block port 53\ndefault allow");
    let seen = seen.args(["+timeout=1", "+retry=0", "@198.18.0.2", "public.example"]).run()?;
    ensure!(!seen.stdout().contains("203.0.113.129"), "{seen:#?}");
    ensure!(both.upstream.asked("public.example")? == 0);
    Ok(())
}

#[test]
fn liars_and_dead_servers_end_in_time() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let liar = |name: &str, server: &str| {
        format!("[[resolver]]\nname = \"{name}\"\nservers = [\"{server}\"]\n")
    };
    let config = [("liar", "203.0.113.1"), ("dead", "203.0.113.20"), ("gone", "2001:db8:f1::20")]
        .map(|(name, server)| liar(name, server))
        .concat();
    let kdig = |rule: &str| -> Result<(String, Duration)> {
        let kdig = lab.exec("kdig").config(&config).policy(&format!("{rule}\ndefault allow"));
        let began = Instant::now();
        let args = ["+edns", "+timeout=8", "+retry=0", "@198.18.0.2", "www.example"];
        Ok((kdig.args(args).run()?.success()?.stdout().to_owned(), began.elapsed()))
    };
    for (lie, tcp, answered) in [
        (Lie::WrongId, false, true),
        (Lie::WrongIdAlone, false, false),
        (Lie::WrongQuestion, false, false),
        (Lie::Twice, false, true),
        (Lie::Garbage, false, false),
        (Lie::Endless, false, false),
        (Lie::OtherPort, false, false),
        (Lie::NoEdns, false, true),
        (Lie::Truncated, true, true),
        (Lie::Late(Duration::from_secs(6)), false, false),
        (Lie::Fails, false, false),
        (Lie::Refuses, false, false),
    ] {
        let _server = LyingServer::start(&lab.server, plan::GOOD4, lie, tcp)?;
        let (seen, took) = kdig("resolve * using liar")?;
        ensure!(seen.contains(LyingServer::TRUTH) == answered, "{lie:?}:\n{seen}");
        ensure!(answered || seen.contains("status: SERVFAIL"), "{lie:?}:\n{seen}");
        ensure!(took < Duration::from_millis(5_800), "{lie:?}: {took:?}");
    }
    let _server = LyingServer::start(&lab.server, plan::GOOD4, Lie::None, false)?;
    let (seen, took) = kdig("resolve * using dead else liar")?;
    ensure!(seen.contains(LyingServer::TRUTH), "{seen}");
    ensure!(took < Duration::from_secs(4), "past a dead one: {took:?}");
    for rule in ["dead", "dead else gone", "dead or gone", "dead and gone"] {
        let (seen, took) = kdig(&format!("resolve * using {rule}"))?;
        ensure!(seen.contains("status: SERVFAIL") && seen.contains("EDE: 22"), "{rule}: {seen}");
        ensure!(took < Duration::from_millis(5_800), "{rule}: {took:?}");
    }
    drop(_server);
    // Nobody listens: the kernel says so.
    let (seen, took) = kdig("resolve * using liar")?;
    ensure!(seen.contains("status: SERVFAIL"), "{seen}");
    ensure!(took < Duration::from_secs(2), "refused: {took:?}");
    Ok(())
}

#[test]
fn an_encrypted_resolver_is_asked_only_with_a_right_certificate() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let (ours, stranger) = (Authority::new("ours")?, Authority::new("a stranger")?);
    let signed = ours.sign(&["dns.corp.example"], Valid::Now)?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, Some(&signed))?;
    let files = Scratch::new()?;
    let right = files.write("right.pem", &ours.pem())?;
    let wrong = files.write("wrong.pem", &stranger.pem())?;
    for server in
        ["tls://203.0.113.1#dns.corp.example", "https://203.0.113.1/dns-query#dns.corp.example"]
    {
        for (ca, trusted) in [(&right, true), (&wrong, false)] {
            let before = unbound.asked("www.corp.example")?;
            let config = format!(
                "[[resolver]]\nname = \"corp\"\nservers = [\"{server}\"]\nca = \"{}\"\n",
                ca.display()
            );
            let kdig = lab.exec("kdig").config(&config);
            let kdig = kdig.policy("resolve *.corp.example using corp\ndefault allow");
            let args = ["+timeout=8", "+retry=0", "@198.18.0.2", "www.corp.example"];
            let seen = kdig.args(args).run()?.success()?.stdout().to_owned();
            ensure!(seen.contains("10.1.2.3") == trusted, "{server}:\n{seen}");
            ensure!(trusted || seen.contains("status: SERVFAIL"), "{server}:\n{seen}");
            let asked = unbound.asked("www.corp.example")? - before;
            ensure!(asked == usize::from(trusted), "{server}: asked {asked} times");
        }
    }
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
        let kdig = lab.exec("kdig").prepare(&etc).args(["@198.18.0.2", name]);
        let seen = kdig.run()?.success()?;
        ensure!(seen.stdout().contains("203.0.113.1\n") == found, "{search}: {seen:#?}");
        ensure!(found || seen.stdout().contains("status: REFUSED"), "{search}: {seen:#?}");
        ensure!((unbound.asked(name)? > before) == found, "{search}: {name}");
    }
    Ok(())
}
