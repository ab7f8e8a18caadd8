//! A change touches only what it changes: reloads under live traffic.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::{TcpServer, UdpServer, tcp};
use tests::lab::daemon::{Daemon, ask};
use tests::lab::exec::promised;
use tests::lab::{Lab, Running, host_state, plan};
use tests::{require_root, require_tunneld};

/// Flows of each kind; the last tenth is what the reloads are about.
const FLOWS: usize = 1_000;
const RELOADS: usize = 50;

/// What no other flow waits.
const STALL: Duration = Duration::from_millis(200);
/// Within which all newly blocked flows are cut.
const CUT: Duration = Duration::from_millis(100);
/// Within which 99 of 100 are told the daemon's status.
const STATUS: Duration = Duration::from_millis(20);

/// 1,000 TCP and 1,000 UDP flows live, half of the reloads change nothing for them, the others
/// block what one more port carries: nobody else is cut, nobody waits 200 ms.
#[test]
fn heavy_fifty_reloads_touch_only_what_they_change() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let kept = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let doomed = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let doomed_udp = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let policy = |number: usize, blocked: bool| {
        let verb = if blocked { "block" } else { "allow" };
        format!(
            "policy 1\n{verb} to {} port {}, {} id doomed\nallow udp id r{number}\n\
             allow id s{number}\ndefault block\n",
            plan::GOOD4,
            doomed.port(),
            doomed_udp.port()
        )
    };
    let daemon = Daemon::start(&lab.host, &policy(0, false), "")?;

    let to = SocketAddr::new(plan::GOOD4, kept.port());
    let mut streams = (0..FLOWS).map(|_| connect(&lab, to)).collect::<Result<Vec<_>>>()?;
    let sockets = (0..FLOWS)
        .map(|_| -> Result<UdpSocket> {
            let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
            socket.connect((plan::GOOD4, udp.port()))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;

    // Every flow speaks all the time, one after the other; the slowest answer is kept.
    let stop = Arc::new(AtomicBool::new(false));
    let slowest = Arc::new(AtomicU64::new(0));
    let speaker = {
        let (stop, slowest) = (Arc::clone(&stop), Arc::clone(&slowest));
        thread::spawn(move || -> Result<usize> {
            let mut rounds = 0;
            while !stop.load(Ordering::Acquire) {
                for (number, (stream, socket)) in streams.iter_mut().zip(&sockets).enumerate() {
                    let began = Instant::now();
                    stream.write_all(b"t")?;
                    stream.read_exact(&mut [0]).with_context(|| format!("TCP flow {number}"))?;
                    socket.send(b"u")?;
                    socket.recv(&mut [0; 8]).with_context(|| format!("UDP flow {number}"))?;
                    slowest.fetch_max(began.elapsed().as_micros() as u64, Ordering::AcqRel);
                }
                rounds += 1;
            }
            Ok(rounds)
        })
    };

    let watch = watch(&lab, &daemon)?;
    // Flows that open all the time, whatever is in force.
    let opener = {
        let (stop, host) = (Arc::clone(&stop), lab.host.clone());
        let to = SocketAddr::new(plan::GOOD4, doomed.port());
        thread::spawn(move || {
            let mut opened = 0;
            while !stop.load(Ordering::Acquire) {
                opened += usize::from(host.run(|| TcpStream::connect(to)).is_ok());
                thread::sleep(Duration::from_millis(3));
            }
            opened
        })
    };

    let mut cuts = Vec::new();
    for number in 1..=RELOADS {
        let blocked = number % 2 == 0;
        let (mut victims, mut deaf) = (Vec::new(), Vec::new());
        if blocked {
            for _ in 0..10 {
                victims.push(connect(&lab, SocketAddr::new(plan::GOOD4, doomed.port()))?);
                let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
                socket.connect((plan::GOOD4, doomed_udp.port()))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send(b"u")?;
                socket.recv(&mut [0; 8])?;
                deaf.push(socket);
            }
        }
        let began = Instant::now();
        daemon.reload_at_once(&policy(number, blocked))?;
        for socket in &deaf {
            let error = socket.recv(&mut [0; 8]).err().context("a cut flow says so")?;
            ensure!(error.raw_os_error() == Some(libc::EHOSTUNREACH), "{error}");
        }
        for victim in &mut victims {
            let error = victim.read(&mut [0]).err().context("a cut flow ends with an error")?;
            ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
        }
        if blocked {
            cuts.push(began.elapsed());
            let error = connect(&lab, SocketAddr::new(plan::GOOD4, doomed.port())).err();
            ensure!(error.is_some(), "reload {number}: a new flow was judged by the old policy");
        } else {
            connect(&lab, SocketAddr::new(plan::GOOD4, doomed.port()))?;
        }
    }
    stop.store(true, Ordering::Release);
    let rounds = speaker.join().map_err(|_| anyhow::anyhow!("the speaker panicked"))??;
    ensure!(rounds > 0, "the flows never spoke");
    let slowest = Duration::from_micros(slowest.load(Ordering::Acquire));
    ensure!(slowest < promised(STALL), "a flow stalled for {slowest:?}");
    let worst = cuts.iter().max().context("reloads that cut")?;
    ensure!(*worst < promised(CUT), "cut after {worst:?}");
    let opened = opener.join().map_err(|_| anyhow::anyhow!("the opener panicked"))?;
    ensure!(opened > 0, "no flow was opened meanwhile");
    judged_by_its_generation(watch, doomed.port())?;
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["generation"].as_u64() == Some(RELOADS as u64 + 1), "{status:?}");
    Ok(())
}

/// `watch`, which hears of all from now on.
fn watch(lab: &Lab, daemon: &Daemon) -> Result<Running> {
    let watch = lab
        .host
        .command(tests::lab::exec::built_tunneld()?)
        .args(["--json", "watch", "--socket"])
        .args([daemon.socket()])
        .limit(Duration::from_secs(200))
        .spawn()?;
    thread::sleep(Duration::from_millis(300));
    Ok(watch)
}

/// What `watch` has told of flows to a port that every other generation blocks: each was judged as
/// its generation says.
fn judged_by_its_generation(watch: Running, port: u16) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    watch.signal(rustix::process::Signal::TERM)?;
    let (mut allowed, mut blocked) = (0, 0);
    for line in watch.wait()?.stdout.lines() {
        let flow: serde_json::Value = serde_json::from_str(line)?;
        ensure!(flow["event"] != "lost", "events were lost");
        let to = flow["destination"].as_str().unwrap_or_default();
        if flow["protocol"] != "tcp" || !to.ends_with(&format!(":{port}")) {
            continue;
        }
        // Generation 1 is policy 0; cut by a later one, it is told by that.
        let generation = flow["generation"].as_u64().context("a generation")?;
        let blocks = generation > 1 && generation % 2 == 1;
        let verdict = if blocks { "block" } else { "allow" };
        ensure!(flow["verdict"] == verdict && flow["rule"] == "doomed", "{line}");
        *(if blocks { &mut blocked } else { &mut allowed }) += 1;
    }
    ensure!(allowed > 0 && blocked > 0, "{allowed} allowed, {blocked} blocked");
    Ok(())
}

fn connect(lab: &Lab, to: SocketAddr) -> Result<TcpStream> {
    let stream = lab.host.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Shards that are asked for lists all the time take a reload all the same, and all of them:
/// after its answer no two say another generation.
#[test]
fn a_reload_is_for_all_shards_however_busy_they_are() -> Result<()> {
    require_root!();
    require_tunneld!();
    const CROWD: usize = 12;
    let lab = Lab::new()?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let policy = |number: usize| format!("policy 1\nallow id r{number}\ndefault block\n");
    let daemon = Daemon::start(&lab.host, &policy(0), "[device]\nqueues = 4\n")?;
    let sockets = (0..400)
        .map(|_| -> Result<UdpSocket> {
            let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
            socket.connect((plan::GOOD4, udp.port()))?;
            socket.send(b"x")?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let crowd: Vec<_> = (0..CROWD)
            .map(|number| {
                let (socket, stop) = (daemon.socket(), &stop);
                scope.spawn(move || -> Result<usize> {
                    let paths = ["/v1/flows", "/v1/rules", "/v1/status"];
                    let mut asked = 0;
                    while !stop.load(Ordering::Acquire) {
                        ask(&socket, paths[number % paths.len()])?;
                        asked += 1;
                    }
                    Ok(asked)
                })
            })
            .collect();
        let reloads = (1..=30).try_for_each(|number| -> Result<()> {
            daemon.files().write("policy.d/test.policy", &policy(number))?;
            let told = daemon.json(&["reload"])?;
            let generation = told[0]["generation"].as_u64().context("a generation")?;
            ensure!(generation == number as u64 + 1, "{told:?}");
            let status = daemon.json(&["status"])?;
            let shards = status[0]["shards"].as_array().context("shards")?;
            ensure!(shards.len() == 4 && shards.iter().all(|s| s["generation"] == generation));
            let flows = daemon.json(&["flows"])?;
            let rule = format!("r{number}");
            ensure!(flows.len() == sockets.len(), "{} flows", flows.len());
            ensure!(flows.iter().all(|f| f["generation"] == generation && f["rule"] == *rule));
            Ok(())
        });
        stop.store(true, Ordering::Release);
        for asker in crowd {
            let asked = asker.join().map_err(|_| anyhow::anyhow!("an asker panicked"))??;
            ensure!(asked > 0, "nobody was asked");
        }
        reloads
    })
}

/// A policy with an error changes nothing, by whatever road it comes.
#[test]
fn a_bad_policy_leaves_everything_as_it_was() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let daemon = Daemon::start(&lab.host, "policy 1\nallow id good\ndefault block\n", "")?;
    let mut live = connect(&lab, SocketAddr::new(plan::GOOD4, server.port()))?;
    for bad in ["policy 1\nallow frm 10.0.0.0/8\ndefault block\n", "policy 2\ndefault allow\n", ""]
    {
        let done = daemon.reload(bad)?;
        ensure!(done.code() == 1 && !done.stderr.is_empty(), "`{bad}`: {done:?}");
        daemon.running()?.signal(rustix::process::Signal::HUP)?;
        let diff = daemon.diff()?;
        ensure!(diff.code() != 0, "`{bad}`: {diff:?}");
    }
    let failing =
        "policy 1\nblock id all\ndefault block\nexpect allow tcp any to 192.0.2.9 port 1\n";
    let done = daemon.reload(failing)?;
    ensure!(done.code() == 1, "{done:?}");
    live.write_all(b"x")?;
    live.read_exact(&mut [0])?;
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["generation"].as_u64() == Some(1), "{status:?}");
    connect(&lab, SocketAddr::new(plan::GOOD4, server.port()))?;
    Ok(())
}

/// What a reload has changed on the host before it is refused is taken back: there is no route to
/// where names would have been answered.
#[test]
fn a_refused_reload_leaves_no_route() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let before = host_state::read(&lab.host)?;
    let policy = "policy 1\ndefault allow\n";
    let config = |address: &str, rest: &str| {
        format!(
            "[device]\ncapture = [\"{}/32\"]\n[dns]\naddress = [\"{address}\"]\n{rest}",
            plan::GOOD4
        )
    };
    let mut daemon = Daemon::start(&lab.host, policy, &config("198.18.0.2", ""))?;
    let routes = || lab.host.output("ip", &["route", "show", "table", "29806"]);
    let ours = routes()?;
    ensure!(ours.contains("198.18.0.2"), "{ours}");
    // Last of what can fail: a tunnel whose port is another's.
    let taken = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEE=";
    let tunnel = format!(
        "[[wireguard]]\nname = \"wg0\"\nprivate_key = \"{key}\"\naddresses = [\"10.9.9.1/32\"]\n\
         listen_port = {}\n",
        taken.local_addr()?.port()
    );
    daemon.configure(&config("198.18.0.9", &tunnel))?;
    let refused = daemon.verb(&["reload"])?;
    ensure!(refused.code() != 0 && refused.stderr.contains("wg0"), "{refused:?}");
    ensure!(routes()? == ours, "{ours}{}", routes()?);
    // What it was refused for gone, it leads there.
    drop(taken);
    let done = daemon.verb(&["reload"])?;
    ensure!(done.code() == 0, "{done:?}");
    let led = routes()?;
    ensure!(led.contains("198.18.0.9") && !led.contains("198.18.0.2"), "{led}");
    daemon.stop()?;
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind: {before}\n{after}");
    Ok(())
}

/// A service manager reloads by SIGHUP.
#[test]
fn a_hangup_reloads() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    let mut cut = connect(&lab, SocketAddr::new(plan::GOOD4, server.port()))?;
    let mut kept = connect(&lab, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
    let next = format!("policy 1\nblock to {}\ndefault allow\n", plan::GOOD4);
    daemon.files().write("policy.d/test.policy", &next)?;
    daemon.running()?.signal(rustix::process::Signal::HUP)?;
    let error = cut.read(&mut [0]).err().context("it is cut")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    kept.write_all(b"x")?;
    kept.read_exact(&mut [0])?;
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["generation"].as_u64() == Some(2), "{status:?}");
    Ok(())
}

/// What a reload would cut is what it cuts.
#[test]
fn diff_and_dry_run_tell_before() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    let mut first = connect(&lab, SocketAddr::new(plan::GOOD4, server.port()))?;
    let mut second = connect(&lab, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
    let next = format!("policy 1\nblock to {}\ndefault allow\n", plan::GOOD4);
    daemon.files().write("policy.d/test.policy", &next)?;
    for told in [daemon.verb(&["reload", "--dry-run"])?, daemon.diff()?] {
        let text = &told.stdout;
        ensure!(text.contains("203.0.113.1:") && !text.contains("203.0.113.129:"), "{told:?}");
    }
    first.write_all(b"x")?;
    first.read_exact(&mut [0])?;
    let done = daemon.verb(&["reload"])?;
    ensure!(done.code() == 0 && done.stdout.contains("203.0.113.1:"), "{done:?}");
    ensure!(first.read(&mut [0]).is_err());
    second.write_all(b"x")?;
    second.read_exact(&mut [0])?;
    Ok(())
}

/// Flows come and go while others look on: no event is lost, no flow is shown twice.
#[test]
fn heavy_watchers_lose_nothing() -> Result<()> {
    require_root!();
    require_tunneld!();
    const EACH: u64 = 24_000;
    let lab = Lab::new()?;
    let server = TcpServer::start_inline(&lab.server, 0, tcp::one_byte_and_close)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    let watch = lab
        .host
        .command(tests::lab::exec::built_tunneld()?)
        .args(["--json", "watch", "--socket"])
        .args([daemon.socket()])
        .limit(Duration::from_secs(100))
        .spawn()?;
    thread::sleep(Duration::from_millis(300));
    let load = lab
        .host
        .command(tests::lab::exec::probe())
        .args(["rate", &plan::GOOD4.to_string(), &server.port().to_string()])
        .args([EACH.to_string(), "32".to_owned()])
        .limit(Duration::from_secs(60))
        .spawn()?;
    let mut load = load;
    let mut times = Vec::new();
    while !load.ended()? {
        for _ in 0..20 {
            let began = Instant::now();
            daemon.status()?;
            times.push(began.elapsed());
        }
        let flows = daemon.json(&["flows"])?;
        let ids: BTreeSet<_> = flows.iter().map(|flow| flow["id"].to_string()).collect();
        ensure!(ids.len() == flows.len(), "a flow stands twice in the list");
    }
    let done = load.wait()?;
    ensure!(done.stdout.contains("\"failed\":0"), "{done:?}");
    let ends = |seen: &str| seen.matches("\"state\":\"closed\"").count() as u64;
    let began = Instant::now();
    // Who reads on a busy machine is behind.
    while ends(&watch.stdout()) < EACH && began.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(500));
    }
    watch.signal(rustix::process::Signal::TERM)?;
    let seen = watch.wait()?.stdout;
    ensure!(!seen.contains("\"event\":\"lost\""), "events were lost");
    let closed = ends(&seen);
    ensure!(closed == EACH, "{closed} of {EACH} ends were told");
    ensure!(times.len() >= 100, "status was asked {} times", times.len());
    times.sort_unstable();
    let slow = times[times.len() * 99 / 100];
    ensure!(slow < promised(STATUS), "one status of a hundred takes {slow:?}");
    Ok(())
}
