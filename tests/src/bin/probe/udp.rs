//! Questions about UDP.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use socket2::SockRef;
use tests::endpoints::pattern::Pattern;

use crate::errno;

fn socket_for(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
    Ok(socket)
}

/// Sends one datagram on a connected socket: the answer, or which error and
/// how soon; neither in time leaves both null.
pub(crate) fn once(to: SocketAddr, limit: Duration) -> Result<Value> {
    ask(to, &socket_for(to)?, limit)
}

/// The same on a socket that asks for every error (IP_RECVERR): a plain one is
/// told of few (udp(7)).
pub(crate) fn errors(to: SocketAddr, limit: Duration) -> Result<Value> {
    let socket = socket_for(to)?;
    let (level, name) = match to {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_RECVERR),
    };
    set_option(&socket, level, name, 1)?;
    ask(to, &socket, limit)
}

/// The same for `count` sockets at once: how often with which outcome.
pub(crate) fn outcomes(to: SocketAddr, count: u64) -> Result<Value> {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    // Kept open, so that no two have the same port: they are as many flows.
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = socket_for(to)?;
        let seen = ask(to, &socket, Duration::from_secs(1))?;
        sockets.push(socket);
        let outcome = if let Some(errno) = seen["errno"].as_str() {
            errno
        } else if seen["answer"].is_string() {
            "answered"
        } else {
            "silence"
        };
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
    Ok(json!(outcomes))
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: a c_int and its own length.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ask(to: SocketAddr, socket: &UdpSocket, limit: Duration) -> Result<Value> {
    let started = Instant::now();
    let mut buffer = [0; 2048];
    let result = socket.connect(to).and_then(|()| {
        socket.set_read_timeout(Some(limit))?;
        socket.send(b"ping")?;
        socket.recv(&mut buffer)
    });
    let micros = started.elapsed().as_micros() as u64;
    let local = socket.local_addr().ok().map(|local| local.to_string());
    Ok(match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            json!({"answer": null, "errno": null, "micros": micros, "local": local})
        }
        result => json!({
            "answer": result.as_ref().ok().map(|&length| String::from_utf8_lossy(&buffer[..length])),
            "errno": errno::named(&result),
            "micros": micros,
            "local": local,
        }),
    })
}

/// Sends `count` datagrams of `size` bytes one after the other, each answered
/// before the next.
pub(crate) fn echo(to: SocketAddr, count: u64, size: usize) -> Result<Value> {
    let socket = socket_for(to)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut sent = vec![0; size];
    let mut got = vec![0; 65_536];
    let mut answered = 0;
    let mut wrong = 0;
    for index in 0..count {
        Pattern::new(index).fill(0, &mut sent);
        socket.send(&sent)?;
        match socket.recv(&mut got) {
            Ok(length) if got[..length] == sent => answered += 1,
            Ok(_) => wrong += 1,
            Err(error) => {
                return Ok(json!({
                    "answered": answered, "wrong": wrong, "errno": errno::name(&error),
                }));
            }
        }
    }
    Ok(json!({"answered": answered, "wrong": wrong, "errno": null}))
}

/// Sends a datagram again and again, each when the one before was answered or 50 ms later, until
/// there is an error: how often it was answered, and the error.
pub(crate) fn until(to: SocketAddr, limit: Duration) -> Result<Value> {
    let socket = socket_for(to)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (started, mut answered) = (Instant::now(), 0);
    while started.elapsed() < limit {
        let result = socket.send(b"ping").and_then(|_| socket.recv(&mut [0; 64]));
        match result {
            Ok(_) => answered += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                return Ok(json!({"answered": answered, "errno": errno::name(&error)}));
            }
        }
    }
    Ok(json!({"answered": answered, "errno": null}))
}

/// How long `count` datagrams took to come back, one after the other.
pub(crate) fn latency(to: SocketAddr, count: usize) -> Result<Value> {
    let socket = socket_for(to)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        socket.send(&[0; 64])?;
        socket.recv(&mut [0; 64])?;
        micros.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
    micros.sort_by(f64::total_cmp);
    Ok(json!({"p50": micros[count / 2], "p99": micros[count * 99 / 100]}))
}

/// One send of `count` datagrams of `size` bytes by UDP_SEGMENT; each must come
/// back as a datagram of its own.
pub(crate) fn segments(to: SocketAddr, count: usize, size: usize) -> Result<Value> {
    let socket = socket_for(to)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, i32::try_from(size)?)?;
    let pattern = Pattern::new(1);
    let mut bytes = vec![0; count * size];
    pattern.fill(0, &mut bytes);
    socket.send(&bytes)?;
    let mut buffer = vec![0; 65_536];
    let mut answered = 0;
    let mut wrong = 0;
    for index in 0..count {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let whole = length == size;
                let right = pattern.check((index * size) as u64, &buffer[..length]).is_ok();
                if whole && right { answered += 1 } else { wrong += 1 }
            }
            Err(_) => break,
        }
    }
    Ok(json!({"answered": answered, "wrong": wrong}))
}

/// One unconnected socket asks two far sides; what matters is which address
/// each of them sees.
pub(crate) fn mapping(first: SocketAddr, second: SocketAddr) -> Result<Value> {
    let socket = socket_for(first)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answered = Vec::new();
    for to in [first, second] {
        socket.send_to(b"who", to)?;
        let (_, from) = socket.recv_from(&mut [0; 64])?;
        answered.push(from.to_string());
    }
    Ok(json!({"answered": answered, "local": socket.local_addr()?.to_string()}))
}

/// Sends datagrams of `size` bytes for some seconds, as fast as they are taken.
pub(crate) fn flood(to: SocketAddr, size: usize, seconds: u64) -> Result<Value> {
    const BATCH: usize = 64;
    let socket = socket_for(to)?;
    socket.connect(to)?;
    let bytes = vec![0; size];
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    let mut sent = 0_u64;
    let mut refused = 0_u64;
    while Instant::now() < end {
        for _ in 0..BATCH {
            match socket.send(&bytes) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    Ok(json!({"sent": sent, "refused": refused, "seconds": started.elapsed().as_secs_f64()}))
}

/// Asks a name server for the IPv4 address of a name; the last four bytes of
/// an answer that has one are it.
pub(crate) fn dns(server: SocketAddr, name: &str) -> Result<Value> {
    let socket = socket_for(server)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut query = vec![0x2a, 0x2b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut answer = [0; 1024];
    let length = socket.recv(&mut answer)?;
    let address = (answer[7] > 0).then(|| {
        let last: [u8; 4] = answer[length - 4..length].try_into().unwrap_or_default();
        std::net::Ipv4Addr::from(last).to_string()
    });
    Ok(json!({"code": answer[3] & 0xf, "address": address}))
}
