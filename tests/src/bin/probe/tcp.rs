//! Questions about one TCP connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tests::endpoints::pattern::Pattern;
use tests::endpoints::tcp::{SEED, receive_pattern, send_pattern};

use crate::errno;

/// How long a connection of the longer questions may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Does it connect, and if not, with which error and how soon? Without an
/// answer in time, neither `connected` nor `errno` is set.
pub(crate) fn connect(to: SocketAddr, limit: Duration) -> Result<Value> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let started = Instant::now();
    let first = socket.connect(&to.into());
    let result = match first {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            if writable(&socket, limit)? {
                socket.take_error()?.map_or(Ok(()), Err)
            } else {
                let micros = started.elapsed().as_micros() as u64;
                return Ok(json!({"connected": false, "errno": null, "micros": micros}));
            }
        }
        decided => decided,
    };
    let micros = started.elapsed().as_micros() as u64;
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    Ok(json!({
        "connected": result.is_ok(),
        "errno": errno::named(&result),
        "micros": micros,
        "local": local.map(|local| local.to_string()),
    }))
}

fn writable(socket: &Socket, limit: Duration) -> io::Result<bool> {
    use std::os::fd::AsFd as _;
    let mut wait =
        [rustix::event::PollFd::from_borrowed_fd(socket.as_fd(), rustix::event::PollFlags::OUT)];
    let limit = rustix::event::Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    Ok(rustix::event::poll(&mut wait, Some(&limit))? > 0)
}

pub(crate) fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Takes the pattern until the far side ends.
pub(crate) fn download(from: SocketAddr) -> Result<Value> {
    let mut stream = open(from)?;
    let started = Instant::now();
    let received = receive_pattern(&mut stream);
    Ok(json!({
        "received": received.as_ref().ok(),
        "errno": errno::named(&received),
        "micros": started.elapsed().as_micros() as u64,
    }))
}

/// Gives the pattern, ends, and waits for the far side's count.
pub(crate) fn upload(to: SocketAddr, length: u64) -> Result<Value> {
    let mut stream = open(to)?;
    let started = Instant::now();
    let sent = send_pattern(&mut stream, length);
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    Ok(json!({
        "errno": errno::named(&sent.and(read)),
        "counted": answer.trim().parse::<u64>().ok(),
        "micros": started.elapsed().as_micros() as u64,
    }))
}

/// Sends, ends its own half, and only then receives everything back.
pub(crate) fn half_close(to: SocketAddr, length: u64) -> Result<Value> {
    let mut stream = open(to)?;
    send_pattern(&mut stream, length)?;
    stream.shutdown(Shutdown::Write)?;
    let received = receive_pattern(&mut stream);
    Ok(json!({"received": received.as_ref().ok(), "errno": errno::named(&received)}))
}

/// Reads to the far side's end, and then still sends.
pub(crate) fn send_after_end(to: SocketAddr, length: u64) -> Result<Value> {
    let mut stream = open(to)?;
    let received = receive_pattern(&mut stream)?;
    // Long enough for a wrong reset to arrive.
    thread::sleep(Duration::from_millis(200));
    let sent = send_pattern(&mut stream, length).and_then(|()| stream.shutdown(Shutdown::Write));
    Ok(json!({"received": received, "errno": errno::named(&sent)}))
}

/// Exchanges one byte and resets.
pub(crate) fn reset(to: SocketAddr) -> Result<Value> {
    let mut stream = open(to)?;
    let mut byte = [b'?'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(json!({"reset": true}))
}

/// Exchanges one byte and waits for what ends the connection.
pub(crate) fn await_reset(to: SocketAddr) -> Result<Value> {
    let mut stream = open(to)?;
    let mut byte = [b'?'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    let started = Instant::now();
    let end = stream.read(&mut byte);
    Ok(json!({
        "read": end.as_ref().ok(),
        "errno": errno::named(&end),
        "micros": started.elapsed().as_micros() as u64,
    }))
}

/// Reads `rate` bytes a tenth of a second for some seconds, then says how much
/// came and leaves.
pub(crate) fn slow_read(from: SocketAddr, rate: usize, seconds: u64) -> Result<Value> {
    let mut stream = open(from)?;
    let pattern = Pattern::new(SEED);
    let mut buffer = vec![0; rate];
    let mut received = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        stream.read_exact(&mut buffer)?;
        let checked = pattern.check(received, &buffer);
        ensure!(checked.is_ok(), "{checked:?}");
        received += buffer.len() as u64;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(json!({"received": received}))
}

/// Writes as much as is taken within some seconds by a far side that reads
/// nothing.
pub(crate) fn push(to: SocketAddr, seconds: u64) -> Result<Value> {
    let mut stream = open(to)?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let buffer = vec![0; 64 * 1024];
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut sent = 0;
    while Instant::now() < end {
        match stream.write(&buffer) {
            Ok(length) => sent += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Ok(json!({"sent": sent, "errno": errno::name(&error)})),
        }
    }
    Ok(json!({"sent": sent, "errno": null}))
}
