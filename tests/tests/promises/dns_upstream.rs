//! How a resolver's servers are asked: every transport, and every way in which a server can be
//! wrong, gone or a forger. Real servers, whose logs say what they were asked.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dns::server::{Server, Transport};
use dns::socket::{Datagrams, Direct, KernelDatagrams, Stream, Target, Way};
use dns::tls::{CertificateFault, Trust};
use dns::upstream::{Failure, Fault, LONGEST, Pool, Reply, Settings};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tests::endpoints::dns_trust::{picks_by_name, wants_certificates};
use tests::endpoints::{Authority, DoqServer, Lie, LyingServer, Unbound, Valid};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Netns, plan};
use tests::require_root;

/// Runs what asks inside a namespace.
fn inside<T: Send>(netns: &Netns, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    netns.run(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
    })
}

fn pool(servers: &[String], trust: Trust) -> Result<Pool> {
    let servers = servers.iter().map(|server| server.parse::<Server>());
    let servers = servers.collect::<Result<_, _>>()?;
    Ok(Pool::new(Settings { servers, trust }, Arc::new(Direct::new(None)))?)
}

fn plain(servers: &[IpAddr]) -> Result<Pool> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    pool(&servers, Trust::default())
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

async fn ask(pool: &Pool, name: &str) -> Result<Reply, Failure> {
    pool.ask(&query(name, RecordType::A), LONGEST).await
}

/// A time that was measured, or why not.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    (work.await, started.elapsed())
}

#[test]
fn every_transport_gives_the_whole_answer() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let signed = ca.sign(&["dns.corp.example", "203.0.113.1"], Valid::Now)?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, Some(&signed))?;
    let behind = SocketAddr::new(plan::GOOD4, 53);
    let idle = Duration::from_secs(1);
    let doq = DoqServer::start(&lab.server, plan::GOOD4, behind, &signed, idle)?;
    let files = Scratch::new()?;
    let ca = files.write("ca.pem", &ca.pem())?;
    let trust = Trust { ca: Some(ca), identity: None };
    for (server, transport) in [
        ("203.0.113.1", Transport::Udp),
        ("tcp://203.0.113.1", Transport::Tcp),
        ("tls://203.0.113.1#dns.corp.example", Transport::Tls),
        ("tls://203.0.113.1", Transport::Tls),
        ("https://203.0.113.1/dns-query#dns.corp.example", Transport::Https),
        ("https://dns.corp.example/dns-query#203.0.113.1", Transport::Https),
        ("https://203.0.113.1/dns-query", Transport::Https),
        ("quic://203.0.113.1:8853#dns.corp.example", Transport::Quic),
    ] {
        inside(&lab.host, async || {
            let pool = pool(&[server.to_owned()], trust.clone())?;
            // Once more on the same connection, and after it was idle for too long.
            for pause in [0, 0, 1500] {
                if transport == Transport::Quic {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                let reply = ask(&pool, "WwW.corp.example.").await.context(server)?;
                ensure!(reply.transport == transport, "{server}: {reply:?}");
                ensure!(reply.server.ip() == plan::GOOD4, "{server}: {reply:?}");
                ensure!(addresses(&reply.message) == ["10.1.2.3".parse::<IpAddr>()?], "{reply:?}");
                let owner = reply.message.answers[0].name.to_string();
                ensure!(owner == "WwW.corp.example.", "{server}: the case of {owner}");
                let asked = reply.message.queries[0].name().to_string();
                ensure!(asked == "WwW.corp.example.", "{server}: the case of {asked}");
            }
            // A type that nobody knows, DO, CD and AD.
            let mut odd = query("odd.corp.example.", RecordType::Unknown(65280));
            odd.metadata.checking_disabled = true;
            odd.metadata.authentic_data = true;
            let mut edns = Edns::new();
            edns.set_dnssec_ok(true).set_max_payload(512);
            odd.edns = Some(edns);
            let reply = pool.ask(&odd, LONGEST).await.context(server)?;
            let data = &reply.message.answers[0].data;
            ensure!(matches!(data, RData::Unknown { .. }), "{server}: {data:?}");
            ensure!(reply.message.checking_disabled, "{server}: CD");
            let edns = reply.message.edns.as_ref().context("no OPT")?;
            ensure!(edns.flags().dnssec_ok, "{server}: DO");
            // More than a datagram holds.
            let big = query("big.corp.example.", RecordType::TXT);
            let reply = pool.ask(&big, LONGEST).await.context(server)?;
            ensure!(reply.message.answers.len() == 20, "{server}: {reply:?}");
            let whole = if transport == Transport::Udp { Transport::Tcp } else { transport };
            ensure!(reply.transport == whole, "{server}: {:?}", reply.transport);
            // What does not exist, and what is refused.
            let reply = ask(&pool, "none.corp.example.").await.context(server)?;
            ensure!(reply.message.response_code == ResponseCode::NXDomain, "{server}: {reply:?}");
            let reply = ask(&pool, "refused.example.").await.context(server)?;
            ensure!(reply.message.response_code == ResponseCode::Refused, "{server}: {reply:?}");
            Ok(())
        })?;
    }
    ensure!(unbound.asked("www.corp.example")? == 8 * 3, "{:#?}", unbound.log()?);
    ensure!(doq.connections() == 2, "one, and one after it was idle: {}", doq.connections());
    Ok(())
}

/// A server may end a connection after as many questions as it likes, with others still open on
/// it: hickory-dns does so after a hundred.
#[test]
fn a_quic_server_that_ends_connections_loses_no_question() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let signed = ca.sign(&["203.0.113.1"], Valid::Now)?;
    let _unbound = Unbound::start(&lab.server, plan::GOOD4, None)?;
    let behind = SocketAddr::new(plan::GOOD4, 53);
    let doq = DoqServer::start_with_most(&lab.server, plan::GOOD4, behind, &signed, 100)?;
    let files = Scratch::new()?;
    let trust = Trust { ca: Some(files.write("ca.pem", &ca.pem())?), identity: None };
    inside(&lab.host, async || {
        let pool = pool(&[format!("quic://203.0.113.1:{}", DoqServer::PORT)], trust)?;
        let pool = Arc::new(pool);
        for _ in 0..50 {
            let open = (0..10).map(|_| {
                let pool = Arc::clone(&pool);
                tokio::spawn(async move { ask(&pool, "www.corp.example.").await.map(|_| ()) })
            });
            for one in open.collect::<Vec<_>>() {
                one.await??;
            }
        }
        Ok(())
    })?;
    ensure!(doq.questions() >= 500, "{} questions", doq.questions());
    ensure!((5..=10).contains(&doq.connections()), "{} connections", doq.connections());
    Ok(())
}

/// Several servers behind one address are told apart by the name that is asked for.
#[test]
fn a_server_with_a_name_is_asked_for_by_it() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let [ours, theirs] = ["dns.corp.example", "other.example"].map(|name| {
        let signed = ca.sign(&[name, "203.0.113.1"], Valid::Now)?;
        anyhow::Ok((name, signed))
    });
    let (ours, theirs) = (ours?, theirs?);
    let _front = picks_by_name(&lab.server, &[(ours.0, &ours.1), (theirs.0, &theirs.1)])?;
    let files = Scratch::new()?;
    let trust = Trust { ca: Some(files.write("ca.pem", &ca.pem())?), identity: None };
    for (server, answers) in [
        ("tls://203.0.113.1#dns.corp.example", true),
        ("tls://203.0.113.1#other.example", true),
        ("tls://203.0.113.1#third.example", false),
        // An address is no name to ask for (RFC 6066 section 3).
        ("tls://203.0.113.1", false),
    ] {
        inside(&lab.host, async || {
            let pool = pool(&[server.to_owned()], trust.clone())?;
            let answer = ask(&pool, "www.example.").await;
            ensure!(answer.is_ok() == answers, "{server}: {answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_certificate_at_fault_sees_no_query_and_is_named() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let (ca, stranger) = (Authority::new("ours")?, Authority::new("a stranger")?);
    let files = Scratch::new()?;
    let roots = files.write("ca.pem", &ca.pem())?;
    for (name, by, names, valid, want) in [
        ("expired", &ca, "dns.corp.example", Valid::Before, CertificateFault::Expired),
        ("early", &ca, "dns.corp.example", Valid::Later, CertificateFault::NotYetValid),
        ("name", &ca, "other.example", Valid::Now, CertificateFault::WrongName),
        ("issuer", &stranger, "dns.corp.example", Valid::Now, CertificateFault::UnknownIssuer),
    ] {
        let signed = by.sign(&[names], valid)?;
        let unbound = Unbound::start(&lab.server, plan::GOOD4, Some(&signed))?;
        let behind = SocketAddr::new(plan::GOOD4, 53);
        let idle = Duration::from_secs(5);
        let doq = DoqServer::start(&lab.server, plan::GOOD4, behind, &signed, idle)?;
        for server in [
            "tls://203.0.113.1#dns.corp.example",
            "https://203.0.113.1/dns-query#dns.corp.example",
            "quic://203.0.113.1:8853#dns.corp.example",
        ] {
            let trust = Trust { ca: Some(roots.clone()), identity: None };
            inside(&lab.host, async || {
                let pool = pool(&[server.to_owned()], trust)?;
                let (answer, took) = timed(ask(&pool, "www.corp.example.")).await;
                let failure = answer.err().with_context(|| format!("{name}: {server} answered"))?;
                let fault = &failure.tries[0].fault;
                ensure!(*fault == Fault::Certificate(want), "{name}: {server}: {failure}");
                ensure!(took < Duration::from_secs(1), "{name}: {server}: {took:?}");
                Ok(())
            })?;
        }
        ensure!(unbound.log()?.is_empty(), "{name}: {:?}", unbound.log()?);
        ensure!(doq.questions() == 0, "{name}: over QUIC");
    }
    // The host's roots do not know this authority either.
    let signed = ca.sign(&["dns.corp.example"], Valid::Now)?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, Some(&signed))?;
    inside(&lab.host, async || {
        let server = "tls://203.0.113.1#dns.corp.example".to_owned();
        let pool = pool(&[server], Trust::default()).context("the host's roots")?;
        let failure = ask(&pool, "www.corp.example.").await.expect_err("an unknown issuer");
        let fault = Fault::Certificate(CertificateFault::UnknownIssuer);
        ensure!(failure.tries[0].fault == fault, "{failure}");
        Ok(())
    })?;
    ensure!(unbound.log()?.is_empty(), "{:?}", unbound.log()?);
    Ok(())
}

#[test]
fn a_server_that_asks_who_we_are_gets_our_certificate() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let files = Scratch::new()?;
    let roots = files.write("ca.pem", &ca.pem())?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, None)?;
    let identity = ca.sign(&["client"], Valid::Now)?.whole();
    let identity = files.write("client.pem", &identity)?;
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&identity, mode)
    };
    let signed = ca.sign(&["dns.corp.example"], Valid::Now)?;
    let at = |port| SocketAddr::new(plan::GOOD4, port);
    let _tls = wants_certificates(&lab.server, at(853), at(53), &signed, &ca)?;
    let server = "tls://203.0.113.1#dns.corp.example".to_owned();
    inside(&lab.host, async || {
        let with = Trust { ca: Some(roots.clone()), identity: Some(identity.clone()) };
        mode(0o600)?;
        let with = pool(std::slice::from_ref(&server), with)?;
        let reply = ask(&with, "www.corp.example.").await?;
        ensure!(reply.transport == Transport::Tls, "{reply:?}");
        let without = Trust { ca: Some(roots.clone()), identity: None };
        let without = pool(std::slice::from_ref(&server), without)?;
        let failure = ask(&without, "none.corp.example.").await.expect_err("not wanted");
        let fault = &failure.tries[0].fault;
        ensure!(matches!(fault, Fault::Tls(_)), "{failure}");
        Ok(())
    })?;
    ensure!(unbound.asked("none.corp.example")? == 0, "{:?}", unbound.log()?);

    mode(0o644)?;
    let open = Trust { ca: None, identity: Some(identity.clone()) };
    let error = pool(std::slice::from_ref(&server), open).expect_err("a key for all");
    ensure!(format!("{error}").contains("others may read"), "{error}");
    Ok(())
}

#[test]
fn lies_are_not_believed() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let soon = Duration::from_millis(100)..Duration::from_millis(1000);
    let at_once = Duration::ZERO..Duration::from_millis(150);
    let never = Duration::from_millis(4300)..Duration::from_millis(4800);
    let third = Duration::from_millis(300);
    // With TCP or without, what comes of it, and when.
    for (lie, tcp, want, time) in [
        (Lie::None, false, Ok(Transport::Udp), &at_once),
        (Lie::WrongId, false, Ok(Transport::Udp), &at_once),
        (Lie::WrongIdAlone, true, Err("timed-out"), &never),
        (Lie::WrongQuestion, false, Err("timed-out"), &never),
        (Lie::LowerCase, true, Ok(Transport::Tcp), &at_once),
        (Lie::LowerCase, false, Ok(Transport::Udp), &at_once),
        (Lie::Truncated, true, Ok(Transport::Tcp), &at_once),
        (Lie::Truncated, false, Err("refused"), &at_once),
        (Lie::Late(third), false, Ok(Transport::Udp), &soon),
        (Lie::Late(third * 2), false, Ok(Transport::Udp), &soon),
        (Lie::Twice, false, Ok(Transport::Udp), &at_once),
        (Lie::Garbage, false, Err("garbage"), &at_once),
        (Lie::Endless, true, Ok(Transport::Tcp), &(Duration::ZERO..soon.end)),
        (Lie::OtherPort, false, Err("timed-out"), &never),
        (Lie::NoEdns, false, Ok(Transport::Udp), &at_once),
        (Lie::Silent, true, Err("timed-out"), &never),
        (Lie::LosesFirst, false, Ok(Transport::Udp), &(third..Duration::from_millis(700))),
    ] {
        let liar = LyingServer::start(&lab.server, plan::GOOD4, lie, tcp)?;
        inside(&lab.host, async || {
            let pool = plain(&[plan::GOOD4])?;
            let (answer, took) = timed(ask(&pool, "www.example.")).await;
            match (&answer, want) {
                (Ok(reply), Ok(transport)) => {
                    ensure!(reply.transport == transport, "{lie:?}: {reply:?}");
                    let truth = LyingServer::TRUTH.parse::<IpAddr>()?;
                    ensure!(addresses(&reply.message) == [truth], "{lie:?}: {reply:?}");
                }
                (Err(failure), Err(word)) => {
                    ensure!(failure.tries[0].fault.word() == word, "{lie:?}: {failure}");
                }
                (answer, want) => anyhow::bail!("{lie:?}: {answer:?}, not {want:?}"),
            }
            // The noise of `Endless` keeps this machine busy.
            ensure!(time.contains(&took), "{lie:?}: took {took:?}, not {time:?}");
            Ok(())
        })?;
        let heard = liar.heard();
        let ports: std::collections::BTreeSet<_> = heard.iter().map(|one| one.from).collect();
        ensure!(!heard.is_empty(), "{lie:?}: never asked");
        ensure!(lie != Lie::Silent || ports.len() > 1, "{lie:?}: {heard:#?}");
    }
    Ok(())
}

#[test]
fn what_a_server_can_not_do_is_remembered() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let liar = LyingServer::start(&lab.server, plan::GOOD4, Lie::NoEdns, false)?;
    inside(&lab.host, async || {
        let pool = plain(&[plan::GOOD4])?;
        for _ in 0..3 {
            ask(&pool, "www.example.").await?;
        }
        let edns: Vec<bool> = liar.heard().iter().map(|one| one.edns).collect();
        ensure!(edns == [true, false, false, false], "{edns:?}");
        // Another way may lead to another server.
        pool.reset();
        ask(&pool, "www.example.").await?;
        ensure!(liar.heard()[4].edns, "{:#?}", liar.heard());
        Ok(())
    })?;
    drop(liar);
    let liar = LyingServer::start(&lab.server, plan::GOOD4, Lie::LowerCase, true)?;
    inside(&lab.host, async || {
        let pool = plain(&[plan::GOOD4])?;
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(ask(&pool, "www.example.").await?.transport);
        }
        use Transport::{Tcp, Udp};
        ensure!(seen == [Tcp, Tcp, Tcp, Udp, Udp], "three times it may be a forger: {seen:?}");
        Ok(())
    })?;
    ensure!(liar.connections() == 1, "{} connections", liar.connections());
    Ok(())
}

#[test]
fn nothing_of_a_query_can_be_guessed() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let liar = LyingServer::start(&lab.server, plan::GOOD4, Lie::None, false)?;
    inside(&lab.host, async || {
        let pool = Arc::new(plain(&[plan::GOOD4])?);
        for _ in 0..20 {
            let many = (0..100).map(|_| {
                let pool = Arc::clone(&pool);
                tokio::spawn(async move { ask(&pool, "www.example.").await.map(|_| ()) })
            });
            for one in many.collect::<Vec<_>>() {
                one.await??;
            }
        }
        Ok(())
    })?;
    let heard = liar.heard();
    ensure!(heard.len() == 2000, "{}", heard.len());
    let distinct = |what: &dyn Fn(usize) -> String| {
        (0..heard.len()).map(what).collect::<std::collections::BTreeSet<_>>().len()
    };
    let ids = distinct(&|i| heard[i].id.to_string());
    let cases = distinct(&|i| heard[i].name.clone());
    let ports = distinct(&|i| heard[i].from.port().to_string());
    // 2,000 of 65,536 at random: 1,970 differ, give or take 6; all 1,024 cases but a seventh.
    ensure!((1930..2000).contains(&ids), "{ids} ids");
    ensure!((800..970).contains(&cases), "{cases} cases");
    ensure!((16..=2000).contains(&ports), "{ports} ports");
    let mut followers = 0;
    for pair in heard.windows(2) {
        followers += usize::from(pair[1].id == pair[0].id.wrapping_add(1));
    }
    ensure!(followers < 5, "{followers} ids follow the one before");
    Ok(())
}

#[test]
fn what_the_kernel_knows_of_a_server_is_told_at_once() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for (name, server, word) in [
        ("closed", plan::GOOD4.to_string(), "refused"),
        ("closed", format!("[{}]:53", plan::GOOD6), "refused"),
        ("closed", format!("tcp://{}", plan::GOOD4), "refused"),
        ("closed", format!("quic://{}", plan::GOOD4), "refused"),
        ("no net", plan::NET_UNREACHABLE4.to_string(), "net-unreachable"),
        ("no host", plan::HOST_UNREACHABLE4.to_string(), "host-unreachable"),
        ("no host", plan::HOST_UNREACHABLE6.to_string(), "host-unreachable"),
        ("no route", plan::UNROUTED4.to_string(), "net-unreachable"),
        ("no route", plan::UNROUTED6.to_string(), "net-unreachable"),
    ] {
        inside(&lab.host, async || {
            let pool = pool(std::slice::from_ref(&server), Trust::default())?;
            let (answer, took) = timed(ask(&pool, "www.example.")).await;
            let failure = answer.expect_err("no server is there");
            ensure!(failure.tries[0].fault.word() == word, "{name}: {server}: {failure}");
            ensure!(took < Duration::from_millis(200), "{name}: {server}: {took:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_dead_server_is_left_alone_and_found_again() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let good = LyingServer::start(&lab.server, plan::GOOD4, Lie::None, false)?;
    for dead in [plan::SILENT4, plan::GOOD4_SECOND, plan::HOST_UNREACHABLE4] {
        inside(&lab.host, async || {
            let pool = plain(&[dead, plan::GOOD4])?;
            let (first, took) = timed(ask(&pool, "www.example.")).await;
            ensure!(first?.server.ip() == plan::GOOD4, "{dead}");
            ensure!(took < Duration::from_millis(500), "{dead}: the first took {took:?}");
            // One of a hundred may take as much longer as probes and a busy machine make it.
            let healthy = plain(&[plan::GOOD4])?;
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..300 {
                for (pool, times) in [&pool, &healthy].into_iter().zip(&mut times) {
                    let (answer, took) = timed(ask(pool, "www.example.")).await;
                    answer?;
                    times.push(took);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let [with_dead, healthy] = times.map(|mut times| {
                times.sort_unstable();
                times[297]
            });
            let most = healthy * 3 / 2 + Duration::from_millis(50);
            ensure!(with_dead < most, "{dead}: p99 {with_dead:?}, without it {healthy:?}");
            Ok(())
        })?;
    }
    // It is back: asked again with a question that somebody else answers.
    inside(&lab.host, async || {
        let pool = plain(&[plan::GOOD4_SECOND, plan::GOOD4])?;
        ensure!(ask(&pool, "www.example.").await?.server.ip() == plan::GOOD4);
        let back = LyingServer::start(&lab.server, plan::GOOD4_SECOND, Lie::None, false)?;
        let since = Instant::now();
        while ask(&pool, "www.example.").await?.server.ip() == plan::GOOD4 {
            ensure!(since.elapsed() < Duration::from_secs(3), "not found again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(since.elapsed() > Duration::from_millis(700), "a pause of a second");
        ensure!(!back.heard().is_empty());
        Ok(())
    })?;
    drop(good);
    // One that stops answering, alone: asked again and again, never for longer than the limit.
    let _silent = LyingServer::start(&lab.server, plan::GOOD4, Lie::FallsSilent, false)?;
    inside(&lab.host, async || {
        let pool = plain(&[plan::GOOD4])?;
        ask(&pool, "www.example.").await?;
        let limit = Duration::from_millis(1500);
        let (answer, took) = timed(pool.ask(&query("www.example.", RecordType::A), limit)).await;
        let failure = answer.expect_err("silence");
        ensure!(failure.tries[0].fault == Fault::TimedOut, "{failure}");
        ensure!((1450..1700).contains(&took.as_millis()), "{took:?}");
        Ok(())
    })
}

#[test]
fn a_server_that_fails_gives_way_to_the_next() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let second = LyingServer::start(&lab.server, plan::GOOD4_SECOND, Lie::None, false)?;
    for lie in [Lie::Fails, Lie::Refuses, Lie::Garbage] {
        let first = LyingServer::start(&lab.server, plan::GOOD4, lie, false)?;
        inside(&lab.host, async || {
            let both = plain(&[plan::GOOD4, plan::GOOD4_SECOND])?;
            let (reply, took) = timed(ask(&both, "www.example.")).await;
            ensure!(reply?.server.ip() == plan::GOOD4_SECOND, "{lie:?}");
            ensure!(took < Duration::from_millis(200), "{lie:?}: {took:?}");
            let before = second.heard().len();
            let alone = ask(&plain(&[plan::GOOD4])?, "www.example.").await;
            if lie == Lie::Garbage {
                ensure!(alone.expect_err("garbage").tries[0].fault == Fault::Garbage);
            } else {
                let code = if lie == Lie::Fails { "ServFail" } else { "Refused" };
                ensure!(format!("{:?}", alone?.message.response_code) == code, "{lie:?}");
            }
            ensure!(second.heard().len() == before, "{lie:?}: not a server of this resolver");
            Ok(())
        })?;
        ensure!(!first.heard().is_empty(), "{lie:?}: the first comes first");
    }
    Ok(())
}

/// One server of a resolver hears each question: who else would hear it is for the rules to say.
#[test]
fn a_question_is_asked_of_one_server() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let start = |address| LyingServer::start(&lab.server, address, Lie::None, false);
    let (first, second) = (start(plan::GOOD4)?, start(plan::GOOD4_SECOND)?);
    inside(&lab.host, async || {
        let both = Arc::new(plain(&[plan::GOOD4, plan::GOOD4_SECOND])?);
        for _ in 0..10 {
            let open = (0..10).map(|_| {
                let both = Arc::clone(&both);
                tokio::spawn(async move { ask(&both, "www.example.").await.map(|_| ()) })
            });
            for one in open.collect::<Vec<_>>() {
                one.await??;
            }
        }
        Ok(())
    })?;
    ensure!(first.heard().len() == 100, "{}", first.heard().len());
    ensure!(second.heard().is_empty(), "{:?}", second.heard());
    Ok(())
}

/// A server's own name is asked of the resolver's other servers, and of nobody else.
#[test]
fn a_servers_name_is_known_to_its_own_kind() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let files = Scratch::new()?;
    let roots = files.write("ca.pem", &ca.pem())?;
    let trust = Trust { ca: Some(roots), identity: None };
    let signed = ca.sign(&["dns.corp.example"], Valid::Now)?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, Some(&signed))?;
    inside(&lab.host, async || {
        let named = "https://dns.corp.example/dns-query".to_owned();
        let both = pool(&[named.clone(), "203.0.113.1".to_owned()], trust.clone())?;
        for _ in 0..3 {
            let reply = ask(&both, "www.corp.example.").await?;
            ensure!(reply.transport == Transport::Https, "{reply:?}");
        }
        let error = pool(&[named], trust).expect_err("nobody to ask");
        ensure!(format!("{error}").contains("no other server has an address"), "{error}");
        Ok(())
    })?;
    ensure!(unbound.asked("dns.corp.example")? == 1, "{:?}", unbound.log()?);
    Ok(())
}

/// What a question costs that no cache knows: `--run-ignored all` with `--no-capture` shows it.
#[test]
#[ignore = "a measurement"]
fn heavy_figures() -> Result<()> {
    const QUESTIONS: usize = 60_000;
    require_root!();
    let lab = Lab::new()?;
    let zone = " log-queries: no\n local-zone: \"many.example.\" redirect\n \
                local-data: \"many.example. 60 A 192.0.2.80\"\n";
    let _unbound = Unbound::with(&lab.server, plan::GOOD4, None, zone)?;
    let names: Arc<Vec<Message>> = Arc::new(
        (0..QUESTIONS).map(|i| query(&format!("n{i}.many.example."), RecordType::A)).collect(),
    );
    for (what, server) in [("udp", "203.0.113.1"), ("tcp", "tcp://203.0.113.1")] {
        for open in [1, 16, 64, 256] {
            let questions = if open == 1 { QUESTIONS / 10 } else { QUESTIONS };
            let pool = Arc::new(pool(&[server.to_owned()], Trust::default())?);
            let us = [std::process::id()];
            let (cpu, started) = (tests::lab::process::cost(&us).cpu_seconds, Instant::now());
            let mut times: Vec<Duration> = lab.host.run(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let tasks = (0..open).map(|first| {
                        let (pool, names) = (Arc::clone(&pool), Arc::clone(&names));
                        tokio::spawn(async move {
                            let mut times = Vec::new();
                            for query in names[..questions].iter().skip(first).step_by(open) {
                                let (answer, took) = timed(pool.ask(query, LONGEST)).await;
                                answer?;
                                times.push(took);
                            }
                            anyhow::Ok(times)
                        })
                    });
                    let mut times = Vec::new();
                    for task in tasks.collect::<Vec<_>>() {
                        times.extend(task.await??);
                    }
                    anyhow::Ok(times)
                })
            })?;
            let took = started.elapsed().as_secs_f64();
            let cpu = tests::lab::process::cost(&us).cpu_seconds - cpu;
            times.sort_unstable();
            let at = |part: f64| times[(times.len() as f64 * part) as usize].as_micros();
            println!(
                "{what}, {open} open: {:.0} a second, {:.1} us of CPU each, p50 {} us, p99 {} us",
                questions as f64 / took,
                cpu * 1e6 / questions as f64,
                at(0.5),
                at(0.99),
            );
        }
    }
    Ok(())
}

/// A way out that leads through another namespace: what a tunnel will be.
#[derive(Debug)]
struct Elsewhere(Netns);

impl Way for Elsewhere {
    fn connect_tcp(
        &self,
        target: Target,
    ) -> futures_util::future::BoxFuture<'static, std::io::Result<Box<dyn Stream>>> {
        let stream = self.0.run(|| std::net::TcpStream::connect(target.address));
        Box::pin(async move {
            let stream = stream?;
            stream.set_nonblocking(true)?;
            Ok(Box::new(tokio::net::TcpStream::from_std(stream)?) as Box<dyn Stream>)
        })
    }

    fn bind_udp(&self, target: &Target) -> std::io::Result<Arc<dyn Datagrams>> {
        let socket = self.0.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target.address)?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        })?;
        Ok(Arc::new(KernelDatagrams::new(socket)?))
    }

    fn is_tunnel(&self) -> bool {
        true
    }
}

#[test]
fn a_resolver_asks_through_its_way_out() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let nowhere = Netns::new("nowhere")?;
    let unbound = Unbound::start(&lab.server, plan::GOOD4, None)?;
    inside(&nowhere, async || {
        for server in ["203.0.113.1", "tcp://203.0.113.1"] {
            let settings = Settings { servers: vec![server.parse()?], trust: Trust::default() };
            let direct = Pool::new(settings.clone(), Arc::new(Direct::new(None)))?;
            let failure = ask(&direct, "www.corp.example.").await.expect_err("no route here");
            ensure!(failure.tries[0].fault.word() == "net-unreachable", "{failure}");
            let through = Pool::new(settings, Arc::new(Elsewhere(lab.host.clone())))?;
            ensure!(through.is_tunnel());
            let reply = ask(&through, "www.corp.example.").await?;
            ensure!(addresses(&reply.message) == ["10.1.2.3".parse::<IpAddr>()?], "{reply:?}");
        }
        Ok(())
    })?;
    ensure!(unbound.asked("www.corp.example")? == 2, "{:?}", unbound.log()?);
    // Bound to a device, whatever routing says: behind the second link nobody has this address.
    inside(&lab.host, async || {
        let index = |name: &str| -> Result<u32> {
            let told = lab.host.output("ip", &["-o", "link", "show", "dev", name])?;
            Ok(told.split(':').next().unwrap_or_default().parse()?)
        };
        let (up0, uplink) = (index("up0")?, Arc::new(AtomicU32::new(index("up1")?)));
        let now = Arc::clone(&uplink);
        let of = Box::new(move |_: &Target| Some(now.load(Ordering::Relaxed)));
        let direct = Arc::new(Direct::new(Some(0x7400_0000)).bound(of));
        let settings = Settings { servers: vec!["192.0.2.2".parse()?], trust: Trust::default() };
        let pool = Pool::new(settings, direct)?;
        let limit = Duration::from_millis(300);
        let failure = pool.ask(&query("www.corp.example.", RecordType::A), limit).await;
        ensure!(failure.is_err(), "{failure:?}");
        let _near = Unbound::start(&lab.server, plan::NEAR4, None)?;
        uplink.store(up0, Ordering::Relaxed);
        pool.reset();
        ask(&pool, "www.corp.example.").await?;
        Ok(())
    })
}
