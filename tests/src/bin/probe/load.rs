//! Questions about many TCP connections.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::endpoints::tcp::receive_pattern;

use crate::errno;

/// `count` downloads of `length` bytes, `parallel` at once; the far side ends
/// first. One that is not complete within a time that no load explains is told
/// with its port, and counted.
pub(crate) fn downloads(from: SocketAddr, count: u64, parallel: u64, length: u64) -> Result<Value> {
    const LIMIT: Duration = Duration::from_secs(20);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let slowest = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let started = Instant::now();
                    let mut local = None;
                    let done = (|| {
                        let mut stream = TcpStream::connect(from)?;
                        local = stream.local_addr().ok();
                        stream.set_read_timeout(Some(LIMIT))?;
                        receive_pattern(&mut stream)
                    })();
                    slowest.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
                    if done.as_ref().ok() != Some(&length) {
                        let what = done.map_or_else(
                            |error| errno::name(&error),
                            |received| format!("{received} bytes"),
                        );
                        failed.lock().expect("no holder panics").push(json!({
                            "local": local.map(|local| local.to_string()),
                            "what": what,
                        }));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no holder panics");
    Ok(json!({
        "complete": count - failed.len() as u64,
        "failed": failed.iter().take(20).collect::<Vec<_>>(),
        "slowest_micros": slowest.into_inner(),
    }))
}

/// Connects `count` times, one after the other: how often with which outcome.
pub(crate) fn outcomes(to: SocketAddr, count: u64) -> Result<Value> {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..count {
        let connected = TcpStream::connect_timeout(&to, Duration::from_secs(5));
        let outcome = connected.map_or_else(|error| errno::name(&error), |_| "connected".into());
        *outcomes.entry(outcome).or_default() += 1;
    }
    Ok(json!(outcomes))
}

/// Opens `count` connections, says so, and keeps them for some seconds.
pub(crate) fn idle(to: SocketAddr, count: usize, seconds: u64) -> Result<Value> {
    let mut held = Vec::with_capacity(count);
    for index in 0..count {
        held.push(TcpStream::connect(to).with_context(|| format!("connection {index}"))?);
    }
    println!("{}", json!({"open": held.len()}));
    thread::sleep(Duration::from_secs(seconds));
    Ok(json!({"held": held.len()}))
}

/// Sends the SYN of `count` connections and forgets each: many ports of the far
/// address, from `first_port` on, each asked by at most 20,000 local ones.
pub(crate) fn syns(to: IpAddr, first_port: u16, count: u64) -> Result<Value> {
    const LOCAL_PORTS: u64 = 20_000;
    let mut sent = 0;
    let mut failed = Vec::new();
    for index in 0..count {
        let to = SocketAddr::new(to, first_port + (index / LOCAL_PORTS) as u16);
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => sent += 1,
            Ok(()) => sent += 1,
            Err(error) => failed.push(errno::name(&error)),
        }
    }
    failed.truncate(20);
    Ok(json!({"sent": sent, "failed": failed}))
}

/// Reads the far side's end, so that TIME-WAIT is on its side: here the local
/// ports would run out.
fn to_the_end(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

/// Connects and waits for one byte, `count` times in a row.
pub(crate) fn latency(to: SocketAddr, count: usize) -> Result<Value> {
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        stream.read_exact(&mut [0])?;
        micros.push(started.elapsed().as_nanos() as f64 / 1e3);
        to_the_end(&mut stream)?;
    }
    micros.sort_by(f64::total_cmp);
    Ok(json!({"p50": micros[count / 2], "p99": micros[count * 99 / 100]}))
}

/// Connects, waits for one byte and closes, `count` times, `parallel` at once.
pub(crate) fn rate(to: SocketAddr, count: u64, parallel: u64) -> Result<Value> {
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let done = TcpStream::connect(to).and_then(|mut stream| {
                        stream.read_exact(&mut [0])?;
                        to_the_end(&mut stream)
                    });
                    failed.fetch_add(u64::from(done.is_err()), Ordering::Relaxed);
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"per_second": count as f64 / seconds, "failed": failed.into_inner()}))
}
