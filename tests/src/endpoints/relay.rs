//! A SOCKS5 proxy's other half (RFC 1928 7): it carries datagrams while its connection lives, as
//! it should or as no honest one would.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use crate::lab::Netns;

/// What a proxy does with datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relay {
    /// Carries them; a name is at the address that the proxy has for names.
    Honest,
    /// The same, and says that it takes them at `0.0.0.0` or `::`.
    Anywhere,
    /// Says that it takes them there.
    At(SocketAddr),
    /// Says of what it was asked by name that it is from that name.
    Names,
    /// Before each answer: garbage, short headers, a fragment, strangers' datagrams, and one that
    /// the relay itself has not sent.
    Lies,
    /// Answers twice, then ends its connection.
    Ends,
    /// Answers twice, then takes no datagrams any more, and keeps its connection.
    Closes,
}

/// How long a datagram is waited for before the other sockets are looked at.
const TURN: Duration = Duration::from_millis(2);

/// Carries datagrams until the client's connection ends.
pub(super) fn associate(
    netns: &Netns,
    stream: &mut TcpStream,
    relay: Relay,
    named: IpAddr,
    asked: &Mutex<Vec<String>>,
) -> io::Result<u64> {
    let here = stream.local_addr()?.ip().to_canonical();
    let inside = netns.run(|| UdpSocket::bind((here, 0)))?;
    let outside = netns.run(|| {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok::<_, io::Error>([v4, UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?])
    })?;
    inside.set_read_timeout(Some(TURN))?;
    for socket in &outside {
        socket.set_nonblocking(true)?;
    }
    let port = inside.local_addr()?.port();
    let mut answer = vec![5, 0, 0];
    address(
        match relay {
            Relay::Anywhere if here.is_ipv4() => (Ipv4Addr::UNSPECIFIED, port).into(),
            Relay::Anywhere => (Ipv6Addr::UNSPECIFIED, port).into(),
            Relay::At(elsewhere) => elsewhere,
            Relay::Honest | Relay::Names | Relay::Lies | Relay::Ends | Relay::Closes => {
                (here, port).into()
            }
        },
        &mut answer,
    );
    stream.write_all(&answer)?;
    stream.set_nonblocking(true)?;

    let mut inside = Some(inside);
    let (mut client, mut last, mut answers) = (None, (String::new(), 0), 0);
    let mut buffer = vec![0; 65_536];
    // Its end, or whatever is wrong with it.
    while matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        let Some(socket) = &inside else {
            std::thread::sleep(TURN);
            continue;
        };
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            client = Some(from);
            let Some((host, port, payload)) = parse(&buffer[..length]) else { continue };
            let target = format!("udp {host}:{port}");
            let mut asked = asked.lock().expect("no holder panics");
            if !asked.contains(&target) {
                asked.push(target);
            }
            drop(asked);
            let ip = host.trim_matches(['[', ']']).parse().unwrap_or(named);
            last = (host, port);
            let socket = &outside[usize::from(ip.is_ipv6())];
            // What can't be sent is lost, as datagrams may be.
            let _ = socket.send_to(payload, (ip, port));
        }
        for outside in &outside {
            while let Ok((length, from)) = outside.recv_from(&mut buffer) {
                let Some(client) = client else { continue };
                if relay == Relay::Lies {
                    lie(netns, socket, client, from)?;
                }
                let mut datagram = vec![0, 0, 0];
                if relay == Relay::Names && last.0.parse::<IpAddr>().is_err() {
                    datagram.extend([3, last.0.len() as u8]);
                    datagram.extend(last.0.to_uppercase().as_bytes());
                    datagram.extend(last.1.to_be_bytes());
                } else {
                    address(SocketAddr::new(from.ip().to_canonical(), from.port()), &mut datagram);
                }
                datagram.extend_from_slice(&buffer[..length]);
                socket.send_to(&datagram, client)?;
                answers += 1;
            }
        }
        match relay {
            Relay::Ends if answers >= 2 => return Ok(answers),
            Relay::Closes if answers >= 2 => inside = None,
            Relay::Honest
            | Relay::Anywhere
            | Relay::At(_)
            | Relay::Names
            | Relay::Lies
            | Relay::Ends
            | Relay::Closes => {}
        }
    }
    Ok(answers)
}

/// What nobody must take for an answer of `far`.
fn lie(netns: &Netns, relay: &UdpSocket, client: SocketAddr, far: SocketAddr) -> io::Result<()> {
    let true_one = |reserved: [u8; 3], far: SocketAddr| {
        let mut datagram = reserved.to_vec();
        address(SocketAddr::new(far.ip().to_canonical(), far.port()), &mut datagram);
        datagram.extend_from_slice(b"a lie");
        datagram
    };
    let another_port = SocketAddr::new(far.ip(), far.port() ^ 1);
    for datagram in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        Vec::new(),
        vec![0, 0, 0],
        vec![0, 0, 0, 1, 203, 0, 113],
        vec![0, 0, 0, 3, 200, b'x'],
        vec![0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8],
        true_one([0, 0, 1], far),
        true_one([0, 0, 0x81], far),
        true_one([1, 0, 0], far),
        true_one([0, 0, 0], another_port),
        true_one([0, 0, 0], SocketAddr::new(IpAddr::from([198, 51, 100, 9]), far.port())),
        [&b"\0\0\0\x03\x04evil"[..], &far.port().to_be_bytes(), b"a lie"].concat(),
    ] {
        relay.send_to(&datagram, client)?;
    }
    let stranger = netns.run(|| UdpSocket::bind((client_side(client), 0)))?;
    stranger.send_to(&true_one([0, 0, 0], far), client)?;
    Ok(())
}

fn client_side(client: SocketAddr) -> IpAddr {
    if client.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// RFC 1928 5
fn address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(v4) => {
            out.push(1);
            out.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(4);
            out.extend(v6.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

/// Host, port and payload of a client's datagram.
fn parse(datagram: &[u8]) -> Option<(String, u16, &[u8])> {
    let [0, 0, 0, kind, rest @ ..] = datagram else { return None };
    let (host, rest) = match kind {
        1 => {
            let (v4, rest) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*v4).to_string(), rest)
        }
        4 => {
            let (v6, rest) = rest.split_first_chunk::<16>()?;
            (format!("[{}]", Ipv6Addr::from(*v6)), rest)
        }
        _ => {
            let (length, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            (String::from_utf8_lossy(name).into_owned(), rest)
        }
    };
    let (port, payload) = rest.split_first_chunk::<2>()?;
    Some((host, u16::from_be_bytes(*port), payload))
}
