//! What comes of a server's word: what it validated and signed, and how long it holds that there
//! is nothing. knot is the zones' own server, unbound validates.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::both::{Both, kdig, kdig_in};
use tests::endpoints::{Knot, Unbound, Zone};
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const AUTHORITY: &str = "[[resolver]]\nname = \"knot\"\nservers = [\"192.0.2.2\"]\n";

#[test]
fn what_was_validated_is_told_and_what_is_merged_is_not() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let zone = |name| Zone {
        name,
        soa_ttl: [300, 300],
        records: "www A 203.0.113.7\nboth A 203.0.113.7",
        signed: true,
    };
    let knot =
        Knot::start(&lab.server, plan::NEAR4, &[zone("signed.example"), zone("bogus.example")])?;
    // The key of one zone is not that of the other.
    let validating = format!(
        " module-config: \"validator iterator\"\n ede: yes\n trust-anchor: \"{}\"\n trust-anchor: \"{}\"\n\
         stub-zone:\n name: \"signed.example.\"\n stub-addr: {at}\n\
         stub-zone:\n name: \"bogus.example.\"\n stub-addr: {at}\nserver:\n",
        knot.trust_anchor("signed.example", "signed.example")?,
        knot.trust_anchor("signed.example", "bogus.example")?,
        at = plan::NEAR4,
    );
    let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, &validating)?;
    let rules = "resolve both.signed.example using knot and upstream\n\
                 resolve one.signed.example using knot";
    let config = format!("[dns]\nupstream = [\"203.0.113.129\"]\n{AUTHORITY}");
    let _daemon =
        Daemon::start(&lab.host, &format!("policy 1\n{rules}\ndefault allow\n"), &config)?;
    // The question; what is in the answer; and what is not.
    for (question, want, never) in [
        ("+dnssec www.signed.example", &["203.0.113.7", " ad;", "RRSIG", "flags: do"][..], " cd;"),
        ("+adflag www.signed.example", &["203.0.113.7", " ad;"], "RRSIG"),
        // RFC 6840 5.8: who does not ask for it is not told.
        ("+noadflag www.signed.example", &["203.0.113.7"], " ad;"),
        ("+dnssec no.signed.example", &["status: NXDOMAIN", " ad;", "NSEC", "RRSIG"], " cd;"),
        ("+dnssec www.signed.example TXT", &["status: NOERROR", " ad;", "NSEC", "SOA"], "203.0"),
        ("+dnssec signed.example DNSKEY", &["DNSKEY", "RRSIG", " ad;"], " cd;"),
        // Nobody is told what has a wrong signature, but who wants to check it.
        ("+dnssec www.bogus.example", &["status: SERVFAIL", "EDE: "], "203.0.113.7"),
        ("+dnssec +cdflag www.bogus.example", &["203.0.113.7", "RRSIG", " cd;"], " ad;"),
        ("+cdflag www.bogus.example", &["203.0.113.7", " cd;"], "RRSIG"),
        // knot signs, and says nothing of what it validated.
        ("+dnssec one.signed.example", &["status: NXDOMAIN", "RRSIG"], " ad;"),
        ("+dnssec both.signed.example", &["203.0.113.7", "flags: do"], "RRSIG"),
        ("+dnssec +adflag both.signed.example", &["203.0.113.7"], " ad;"),
    ] {
        // Out of the cache as of the server, over TCP as over UDP.
        let exec = lab.exec("kdig").config(&config);
        let (inside, _) = kdig_in(exec.policy(&format!("{rules}\ndefault allow")), question)?;
        for (way, seen) in [
            ("exec", inside),
            ("run", kdig(&lab, question)?),
            ("run again", kdig(&lab, question)?),
            ("run over TCP", kdig(&lab, &format!("+tcp {question}"))?),
        ] {
            for want in want {
                ensure!(seen.contains(want), "{way}: {question}: no `{want}`:\n{seen}");
            }
            ensure!(!seen.contains(never), "{way}: {question}: `{never}`:\n{seen}");
        }
    }
    ensure!(upstream.asked("one.signed.example")? == 0, "{:?}", upstream.log()?);
    Ok(())
}

/// The network's own server is an authoritative one, as in many a small network: what it has no
/// zone of goes to the next.
#[test]
fn knot_answers_for_its_zones_and_the_next_for_the_rest() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let records = "www A 203.0.113.7\nwww AAAA 2001:db8:f1::7\nalias CNAME www\nsub NS ns.sub\n\
                   ns.sub A 192.0.2.77\n_sip._udp SRV 1 2 5060 www\n";
    let big: String = (0..20).map(|n| format!("big TXT \"{n}-{}\"\n", "x".repeat(180))).collect();
    let records = format!("{records}{big}");
    let zone = Zone { name: "lan.example", soa_ttl: [300, 60], records: &records, signed: false };
    let knot = Knot::start(&lab.server, plan::NEAR4, &[zone])?;
    let more = " local-data: \"www.elsewhere.example. 300 A 203.0.113.8\"";
    let next = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
    let config = "[dns]\nupstream = [\"192.0.2.2\", \"203.0.113.129\"]\n";
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", config)?;
    for (question, want, knots) in [
        ("www.lan.example", &["203.0.113.7"][..], true),
        ("www.lan.example AAAA", &["2001:db8:f1::7"], true),
        ("alias.lan.example", &["CNAME", "203.0.113.7"], true),
        ("_sip._udp.lan.example SRV", &["1 2 5060 www.lan.example."], true),
        ("big.lan.example TXT", &["ANSWER: 20", "(TCP)"], true),
        ("none.lan.example", &["status: NXDOMAIN", "SOA"], true),
        ("www.lan.example TXT", &["status: NOERROR", "SOA"], true),
        // REFUSED there.
        ("www.elsewhere.example", &["203.0.113.8"], false),
    ] {
        let name = question.split(' ').next().context("a name")?;
        let before = (knot.asked("lan.example")?, next.asked(name)?);
        let exec = lab.exec("kdig").config(config).policy("default allow");
        for (way, seen) in [("exec", kdig_in(exec, question)?.0), ("run", kdig(&lab, question)?)] {
            for want in want {
                ensure!(seen.contains(want), "{way}: {question}: no `{want}`:\n{seen}");
            }
        }
        let asked = (knot.asked("lan.example")? > before.0, next.asked(name)? > before.1);
        ensure!(asked == (knots, !knots), "{question}: {asked:?}");
    }
    // Who answered stands in the plan's own answer.
    let told = daemon.json(&["dns", "query", "ns.lan.example"])?;
    ensure!(told[1]["server"] == "192.0.2.2:53" && told[1]["transport"] == "udp", "{told:?}");
    ensure!(told[1]["records"][0]["data"] == "192.0.2.2", "{told:?}");
    Ok(())
}

/// RFC 2308: that there is nothing holds as long as the zone says, an hour at most, and five
/// seconds where nobody says or somebody could not be asked.
#[test]
fn a_negative_answer_holds_as_long_as_it_should() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let zone = |name, soa_ttl| Zone { name, soa_ttl, records: "www A 203.0.113.7", signed: false };
    let zones = [
        zone("fast.example", [7200, 2]),
        zone("brief.example", [3, 7200]),
        zone("slow.example", [86_400, 86_400]),
        zone("or.example", [86_400, 86_400]),
        zone("and.example", [86_400, 86_400]),
    ];
    let knot = Knot::start(&lab.server, plan::NEAR4, &zones)?;
    // Denies without a SOA, and refuses what knot denies.
    let more = " local-zone: \"nosoa.example.\" static\n local-zone: \"or.example.\" always_refuse\n \
                local-zone: \"and.example.\" always_refuse";
    let unbound = Unbound::with(&lab.server, plan::GOOD4, None, more)?;
    let rules = "policy 1\nresolve nosoa.example *.nosoa.example using corp\n\
                 resolve *.or.example using knot or corp\n\
                 resolve *.and.example using corp and knot\n\
                 resolve * using knot\ndefault allow\n";
    let config = format!("{}{AUTHORITY}", Both::CONFIG);
    let _daemon = Daemon::start(&lab.host, rules, &config)?;

    let asked = |zone: &str| -> Result<u64> {
        match zone {
            "nosoa.example" => Ok(unbound.asked("no.nosoa.example")? as u64),
            zone => knot.asked(zone),
        }
    };
    // A question of each, what it says, and the TTL of its SOA.
    let questions = [
        ("fast.example", "no.fast.example", "NXDOMAIN", Some(1..=2)),
        ("fast.example", "www.fast.example TXT", "NOERROR", Some(1..=2)),
        ("brief.example", "no.brief.example", "NXDOMAIN", Some(2..=3)),
        ("slow.example", "no.slow.example", "NXDOMAIN", Some(3_599..=3_600)),
        ("slow.example", "www.slow.example TXT", "NOERROR", Some(3_599..=3_600)),
        ("or.example", "no.or.example", "NXDOMAIN", Some(4..=5)),
        ("or.example", "www.or.example TXT", "NOERROR", Some(4..=5)),
        ("and.example", "no.and.example", "NXDOMAIN", Some(4..=5)),
        ("and.example", "www.and.example AAAA", "NOERROR", Some(4..=5)),
        ("nosoa.example", "no.nosoa.example", "NXDOMAIN", None),
    ];
    let ask = |question: &str, status: &str| -> Result<Option<u32>> {
        let seen = kdig(&lab, question)?;
        ensure!(seen.contains(&format!("status: {status}")), "{question}: {seen}");
        let soa = seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let soa = soa.into_iter().find(|words| words.get(3) == Some(&"SOA"));
        soa.map(|words| words[1].parse().with_context(|| seen.clone())).transpose()
    };
    let began = Instant::now();
    for (zone, question, status, want) in &questions {
        let before = asked(zone)?;
        let ttl = ask(question, status)?;
        let fits = match (want, ttl) {
            (Some(want), Some(ttl)) => want.contains(&ttl),
            (want, ttl) => want.is_none() && ttl.is_none(),
        };
        ensure!(fits, "{question}: {ttl:?}, not {want:?}");
        ensure!(asked(zone)? > before, "{question}: nobody was asked");
    }
    ensure!(began.elapsed() < Duration::from_secs(2), "too slow a machine: {:?}", began.elapsed());
    // When it is asked again, which of them have to be asked of a server again.
    let lasts = |zone: &str| match zone {
        "fast.example" => 2,
        "brief.example" => 3,
        "slow.example" => 3_600,
        _ => 5,
    };
    let mut last: Vec<Instant> = vec![began; questions.len()];
    for after in [1_000, 4_200, 7_500] {
        let until = began + Duration::from_millis(after);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        for (index, (zone, question, status, _)) in questions.iter().enumerate() {
            let (before, age) = (asked(zone)?, last[index].elapsed());
            ask(question, status)?;
            let is_asked = asked(zone)? > before;
            if is_asked {
                last[index] = Instant::now();
            }
            // It may be younger than that, by the time that the first round took.
            let (age, lasts) = (age.as_millis(), lasts(zone) * 1000);
            ensure!(!is_asked || age > lasts - 50, "{question}: asked after {age} ms");
            ensure!(is_asked || age < lasts + 2_050, "{question}: not asked after {age} ms");
        }
    }
    Ok(())
}
