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
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

/// Flows of each kind; the last tenth is what the reloads are about.
const FLOWS: usize = 1_000;
const RELOADS: usize = 50;

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
    let policy = |number: usize, blocked: bool| {
        let verb = if blocked { "block" } else { "allow" };
        format!(
            "policy 1\n{verb} tcp to {} port {} id doomed\nallow udp id r{number}\n\
             allow id s{number}\ndefault block\n",
            plan::GOOD4,
            doomed.port()
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

    let mut cuts = Vec::new();
    for number in 1..=RELOADS {
        let blocked = number % 2 == 0;
        let mut victims = Vec::new();
        if blocked {
            for _ in 0..10 {
                victims.push(connect(&lab, SocketAddr::new(plan::GOOD4, doomed.port()))?);
            }
        }
        let began = Instant::now();
        let done = daemon.reload(&policy(number, blocked))?;
        ensure!(done.code() == 0, "reload {number}: {done:?}");
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
    ensure!(slowest < Duration::from_millis(200), "a flow stalled for {slowest:?}");
    // The verb's own start is in it: a process on a busy machine.
    let worst = cuts.iter().max().context("reloads that cut")?;
    ensure!(*worst < Duration::from_millis(500), "cut after {worst:?}");
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["generation"].as_u64() == Some(RELOADS as u64 + 1), "{status:?}");
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
        let began = Instant::now();
        let status = daemon.verb(&["status"])?;
        ensure!(status.code() == 0, "{status:?}");
        times.push(began.elapsed());
        let flows = daemon.json(&["flows"])?;
        let ids: BTreeSet<_> = flows.iter().map(|flow| flow["id"].to_string()).collect();
        ensure!(ids.len() == flows.len(), "a flow stands twice in the list");
    }
    let done = load.wait()?;
    ensure!(done.stdout.contains("\"failed\":0"), "{done:?}");
    thread::sleep(Duration::from_secs(1));
    watch.signal(rustix::process::Signal::TERM)?;
    let seen = watch.wait()?.stdout;
    ensure!(!seen.contains("\"event\":\"lost\""), "events were lost");
    let closed = seen.lines().filter(|line| line.contains("\"state\":\"closed\"")).count() as u64;
    ensure!(closed == EACH, "{closed} of {EACH} ends were told");
    ensure!(times.len() >= 3, "status was asked {} times", times.len());
    Ok(())
}
