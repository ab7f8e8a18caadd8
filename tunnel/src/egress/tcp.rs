//! A TCP connection towards the far side.
//!
//! # Theory of operation
//!
//! [`connect`] starts it and returns at once. When the socket becomes writable or shows an
//! error, [`Stream::take_error`] tells how it went: nothing is told to the app before. Bytes
//! pass between the engine's rings and the socket in place. Socket buffers are left to the
//! kernel's autotuning, which any `SO_SNDBUF` would end. A connection ends as the app's
//! did: half-closed by [`Stream::shutdown_write`], cut by [`Stream::reset`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Protocol, Socket, TcpKeepalive, Type};

use super::error::{Call, EgressError};
use super::pin::{Pin, at, ip_of};

/// Starts a connection to `destination`, pinned to `pin`. An error is what the local network
/// says at once (no route, no port, no descriptor); what the far side says comes later.
pub fn connect(destination: SocketAddr, pin: &Pin) -> Result<Stream, EgressError> {
    let socket = pin.socket(destination.ip(), Type::STREAM, Protocol::TCP)?;
    pin.bind_late(&socket, destination.ip())?;
    socket.set_tcp_nodelay(true).map_err(at(Call::Option))?;
    pin.connect(&socket, destination)?;
    Ok(Stream { socket })
}

/// A connection, from `connect()` on. Dropped, it is closed: with a FIN where all was read.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
}

impl Stream {
    /// The pending error, taken. `None` on a writable socket: connected.
    pub fn take_error(&self) -> Option<Errno> {
        match rustix::net::sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno),
        }
    }

    /// The address and port the far side sees, before any translation on the way.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ip_of(&self.socket.local_addr()?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Reads into `buf`. 0: the far side has ended its half.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        rustix::net::recv(&self.socket, buf, RecvFlags::empty()).map(|(read, _)| read)
    }

    /// Reads into `buf` what stays to be read.
    pub fn peek(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        rustix::net::recv(&self.socket, buf, RecvFlags::PEEK).map(|(read, _)| read)
    }

    /// Writes from `buf`, as much as fits.
    pub fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        rustix::net::send(&self.socket, buf, SendFlags::NOSIGNAL)
    }

    /// Ends our half with a FIN.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// Has the kernel find out within about a minute that the other side is gone without a word.
    pub(crate) fn keep_alive(&self) -> io::Result<()> {
        let often = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        self.socket.set_tcp_keepalive(&often)
    }

    /// Cuts the connection: an RST where it stood, nothing where the SYN was not answered.
    pub fn reset(self) {
        // Closing with a linger of zero is the reset. Where the option fails, so be it: a FIN.
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::error::failure;
    use crate::namespace;
    use engine::Failure;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpListener};

    fn wait(stream: &Stream, events: PollFlags) {
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        let mut fds = [PollFd::new(stream, events)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing within 5 s");
    }

    fn loopback(address: &str) -> Pin {
        Pin {
            source: Some(address.parse().unwrap()),
            device: Some(1), // lo, in every namespace
            mark: None,
        }
    }

    #[test]
    fn connects_pinned_and_carries_bytes_both_ways() {
        namespace::alone(|| {
            for address in ["127.0.0.1", "::1"] {
                let listener = TcpListener::bind((address, 0)).unwrap();
                let stream = connect(listener.local_addr().unwrap(), &loopback(address)).unwrap();
                let (mut far, peer) = listener.accept().unwrap();
                wait(&stream, PollFlags::OUT);
                assert_eq!(stream.take_error(), None);
                assert_eq!(stream.local_addr().unwrap(), peer);
                assert_eq!(stream.write(b"question").unwrap(), 8);
                stream.shutdown_write().unwrap();
                let mut question = String::new();
                far.read_to_string(&mut question).unwrap();
                assert_eq!(question, "question");
                far.write_all(b"answer").unwrap();
                drop(far);
                wait(&stream, PollFlags::IN);
                let mut buf = [0; 16];
                assert_eq!(stream.read(&mut buf).unwrap(), 6);
                assert_eq!(stream.read(&mut buf).unwrap(), 0);
            }
        });
    }

    #[test]
    fn refused() {
        namespace::alone(|| {
            for address in ["127.0.0.1", "::1"] {
                let closed = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
                let errno = match connect(closed, &loopback(address)) {
                    Err(EgressError::Call { call: Call::Connect, errno }) => errno,
                    Err(other) => panic!("{address}: {other}"),
                    Ok(stream) => {
                        wait(&stream, PollFlags::OUT);
                        stream.take_error().expect("an error")
                    }
                };
                assert_eq!(failure(errno, 0), Failure::Refused, "{address}");
            }
        });
    }

    #[test]
    fn reset_reaches_the_far_side() {
        namespace::alone(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = connect(listener.local_addr().unwrap(), &Pin::default()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            wait(&stream, PollFlags::OUT);
            stream.reset();
            let error = far.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn refuses_before_any_packet() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().unwrap();
        assert_eq!(connect(mapped, &Pin::default()).unwrap_err(), EgressError::Mapped);

        let cases: [(&str, Pin, Call, Failure); 2] = [
            (
                "a source that is not ours",
                Pin { source: Some(IpAddr::from([203, 0, 113, 1])), ..Pin::default() },
                Call::Bind,
                Failure::Exhausted,
            ),
            (
                "a device that is not there",
                Pin { device: Some(0x7fff_fff0), ..Pin::default() },
                Call::Connect,
                Failure::NetUnreachable,
            ),
        ];
        for (name, pin, step, expected) in cases {
            let error = connect("127.0.0.1:9".parse().unwrap(), &pin).unwrap_err();
            assert!(
                matches!(error, EgressError::Call { call, .. } if call == step),
                "{name}: {error}"
            );
            assert_eq!(error.failure(0), expected, "{name}");
        }
        let versions = loopback("::1");
        assert_eq!(
            connect("127.0.0.1:9".parse().unwrap(), &versions).unwrap_err(),
            EgressError::Versions
        );
    }
}
