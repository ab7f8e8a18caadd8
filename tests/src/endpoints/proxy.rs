//! A proxy that keeps what it was asked: an honest one, which passes each half's end on for
//! itself, or one that answers what it is told to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::relay::{self, Relay};
use super::tcp::TcpServer;
use crate::lab::Netns;

/// What it does when it is asked.
#[derive(Debug, Clone)]
pub enum Manner {
    /// Connects, over SOCKS5 or HTTP as it is asked, and carries datagrams; a name is at this
    /// address.
    Honest(IpAddr),
    /// The same, but with datagrams it does this.
    Relays(IpAddr, Relay),
    /// Takes any request, sends these bytes, then is silent.
    Answers(Vec<u8>),
    /// The same, byte by byte.
    Dribbles(Vec<u8>),
    /// The same, and ends.
    AnswersAndEnds(Vec<u8>),
    /// Takes the connection and says nothing at all.
    Silent,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    server: TcpServer,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Listens on every address of the namespace; port 0 takes a free one.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(netns: &Netns, port: u16, manner: Manner) -> Result<Self> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (inside, told) = (netns.clone(), Arc::clone(&asked));
        let server =
            TcpServer::start(netns, port, move |stream| serve(&inside, stream, &manner, &told))?;
        Ok(Self { server, asked })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.server.accepted()
    }

    /// What it was asked to connect to, `HOST:PORT` each, or `udp HOST:PORT` whom a datagram was
    /// for, each once; before it `login USER`, where there was one.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no holder panics").clone()
    }
}

fn serve(
    netns: &Netns,
    stream: &mut TcpStream,
    manner: &Manner,
    asked: &Mutex<Vec<String>>,
) -> io::Result<u64> {
    if matches!(manner, Manner::Silent) {
        return io::copy(stream, &mut io::sink());
    }
    let mut first = [0];
    stream.read_exact(&mut first)?;
    let socks = first[0] == 5;
    let (command, target) =
        if socks { socks5(stream, asked)? } else { (CONNECT, connect(stream)?) };
    if command == ASSOCIATE {
        match manner {
            Manner::Honest(named) => {
                return relay::associate(netns, stream, Relay::Honest, *named, asked);
            }
            Manner::Relays(named, how) => {
                return relay::associate(netns, stream, *how, *named, asked);
            }
            Manner::Answers(_) | Manner::Dribbles(_) | Manner::AnswersAndEnds(_) => {}
            Manner::Silent => return Ok(0),
        }
    }
    asked.lock().expect("no holder panics").push(target.clone());
    match manner {
        Manner::Silent => Ok(0),
        Manner::Honest(named) | Manner::Relays(named, _) => {
            pass(netns, stream, &target, *named, socks)
        }
        Manner::Answers(bytes) => {
            stream.write_all(bytes)?;
            io::copy(stream, &mut io::sink())
        }
        Manner::Dribbles(bytes) => {
            for byte in bytes {
                stream.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(2));
            }
            io::copy(stream, &mut io::sink())
        }
        Manner::AnswersAndEnds(bytes) => {
            stream.write_all(bytes)?;
            Ok(0)
        }
    }
}

/// RFC 1928 4
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;

/// RFC 1928 and RFC 1929: what is to be done, and with whom. A login is taken where there is one,
/// whatever it is.
fn socks5(stream: &mut TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<(u8, String)> {
    let methods = counted(stream)?;
    if methods.contains(&2) {
        stream.write_all(&[5, 2])?;
        stream.read_exact(&mut [0])?;
        let (user, _password) = (counted(stream)?, counted(stream)?);
        let user = format!("login {}", String::from_utf8_lossy(&user));
        asked.lock().expect("no holder panics").push(user);
        stream.write_all(&[1, 0])?;
    } else {
        stream.write_all(&[5, 0])?;
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let host = match head[3] {
        1 => {
            let mut v4 = [0; 4];
            stream.read_exact(&mut v4)?;
            Ipv4Addr::from(v4).to_string()
        }
        4 => {
            let mut v6 = [0; 16];
            stream.read_exact(&mut v6)?;
            format!("[{}]", Ipv6Addr::from(v6))
        }
        _ => {
            let name = counted(stream)?;
            String::from_utf8_lossy(&name).into_owned()
        }
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok((head[1], format!("{host}:{}", u16::from_be_bytes(port))))
}

/// Bytes behind their number.
fn counted(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut count = [0];
    stream.read_exact(&mut count)?;
    let mut bytes = vec![0; count[0].into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// RFC 9110 9.3.6: who is to be connected to.
fn connect(stream: &mut TcpStream) -> io::Result<String> {
    let (mut header, mut byte) = (Vec::new(), [0]);
    while !header.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        header.push(byte[0]);
    }
    let header = String::from_utf8_lossy(&header).into_owned();
    Ok(header.split(' ').nth(1).unwrap_or_default().to_owned())
}

fn pass(
    netns: &Netns,
    stream: &mut TcpStream,
    target: &str,
    named: IpAddr,
    socks: bool,
) -> io::Result<u64> {
    let address = target.parse().unwrap_or_else(|_| {
        let port = target.rsplit(':').next().and_then(|port| port.parse().ok());
        SocketAddr::new(named, port.unwrap_or(0))
    });
    let far = netns.run(|| TcpStream::connect(address));
    let answer: &[u8] = match (&far, socks) {
        (Ok(_), true) => b"\x05\x00\x00\x01\0\0\0\0\0\0",
        (Ok(_), false) => b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
        (Err(_), true) => b"\x05\x05\x00\x01\0\0\0\0\0\0",
        (Err(_), false) => b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    };
    stream.write_all(answer)?;
    let mut far = far?;
    let (mut back, mut to) = (far.try_clone()?, stream.try_clone()?);
    let down = thread::spawn(move || {
        let copied = io::copy(&mut back, &mut to);
        let _ = to.shutdown(Shutdown::Write);
        copied
    });
    let up = io::copy(stream, &mut far);
    let _ = far.shutdown(Shutdown::Write);
    down.join().map_err(|_| io::Error::other("the copying thread panicked"))??;
    up
}
