//! A wire that does to datagrams what wires and attackers do: between two ends of WireGuard, in a
//! namespace of its own, each of which takes it for the other.
//!
//! ```text
//!  near  192.0.2.1  ──veth──  192.0.2.254  wire  198.51.100.254  ──veth──  198.51.100.2  far
//! ```

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::PATIENCE;
use super::wireguard::{End, PORT};
use crate::lab::{Netns, link};

/// Type of a message that carries a packet.
const DATA: u8 = 4;

/// What it does to datagrams.
#[derive(Clone, Copy, Debug)]
pub enum Wire {
    /// Each comes twice.
    Twice,
    /// Before each comes a copy of it with one bit turned over.
    Flipped,
    /// One of so many is lost, all others come later.
    Lossy {
        /// One in this many, both ways.
        one_in: u64,
        /// How much later.
        delay: Duration,
    },
}

/// A wire, cut when it is dropped.
#[derive(Debug)]
pub struct Relay {
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Told {
    stop: AtomicBool,
    data: AtomicU64,
    tampered: AtomicU64,
}

/// A datagram under way.
struct Travelling {
    due: Instant,
    bytes: Vec<u8>,
    to_far: bool,
}

impl Relay {
    /// Lays it between two ends that have no cable: the near one has to look for the far one at
    /// [`Relay::near_side`].
    pub fn start(near: &End, far: &End, wire: Wire) -> Result<Self> {
        let netns = Netns::new("wire")?;
        link(&near.netns, "u0", &netns, "near", 1500)?;
        link(&netns, "far", &far.netns, "u0", 1500)?;
        near.netns.ip("addr add 192.0.2.1/24 dev u0\n")?;
        netns.ip("addr add 192.0.2.254/24 dev near\naddr add 198.51.100.254/24 dev far\n")?;
        far.netns.ip("addr add 198.51.100.2/24 dev u0\n")?;
        let sockets = netns.run(|| -> Result<_> {
            Ok([socket(Self::near_side())?, socket(SocketAddr::from(([198, 51, 100, 254], PORT)))?])
        })?;
        let told = Arc::new(Told::default());
        let shared = Arc::clone(&told);
        let thread = thread::spawn(move || carry(&sockets, wire, &shared));
        Ok(Self { told, thread: Some(thread) })
    }

    /// Where the near end finds the other.
    pub fn near_side() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 254], PORT))
    }

    /// Messages with packets that have entered it, both ways.
    pub fn data(&self) -> u64 {
        self.told.data.load(Ordering::Acquire)
    }

    /// Datagrams that it has added or lost.
    pub fn tampered(&self) -> u64 {
        self.told.tampered.load(Ordering::Acquire)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn socket(at: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(at).with_context(|| format!("bind {at}"))?;
    socket.set_nonblocking(true)?;
    // Nothing may be lost but what this wire loses.
    socket2::SockRef::from(&socket).set_recv_buffer_size(16 << 20)?;
    Ok(socket)
}

fn carry([near, far]: &[UdpSocket; 2], wire: Wire, told: &Told) {
    let far_at = SocketAddr::from(([198, 51, 100, 2], PORT));
    let mut near_at = None;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut under_way: VecDeque<Travelling> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    while !told.stop.load(Ordering::Acquire) {
        let until = under_way.front().map(|first| first.due.saturating_duration_since(now()));
        wait([near, far], until.unwrap_or(PATIENCE).min(PATIENCE));
        for (socket, to_far) in [(near, true), (far, false)] {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if to_far {
                    near_at = Some(from);
                }
                let bytes = buffer[..length].to_vec();
                told.data.fetch_add(u64::from(bytes.first() == Some(&DATA)), Ordering::AcqRel);
                let (copies, delay) = wire.copies(bytes, &mut random);
                told.tampered.fetch_add(copies.len().abs_diff(1) as u64, Ordering::AcqRel);
                let due = now() + delay;
                under_way.extend(copies.into_iter().map(|bytes| Travelling { due, bytes, to_far }));
            }
        }
        while under_way.front().is_some_and(|first| first.due <= now()) {
            let Some(Travelling { bytes, to_far, .. }) = under_way.pop_front() else { break };
            // An end that is gone is as lost as any.
            let _ = match (to_far, near_at) {
                (true, _) => far.send_to(&bytes, far_at),
                (false, Some(near_at)) => near.send_to(&bytes, near_at),
                (false, None) => Ok(0),
            };
        }
    }
}

impl Wire {
    /// What becomes of a datagram, and how much later.
    fn copies(self, bytes: Vec<u8>, random: &mut u64) -> (Vec<Vec<u8>>, Duration) {
        match self {
            Self::Twice => (vec![bytes.clone(), bytes], Duration::ZERO),
            Self::Flipped => {
                let mut flipped = bytes.clone();
                let bit = next(random) as usize % (flipped.len() * 8).max(1);
                if let Some(byte) = flipped.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
                (vec![flipped, bytes], Duration::ZERO)
            }
            Self::Lossy { one_in, delay } => {
                let lost = next(random).is_multiple_of(one_in);
                (if lost { Vec::new() } else { vec![bytes] }, delay)
            }
        }
    }
}

/// xorshift: the same every time.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

fn now() -> Instant {
    Instant::now()
}

fn wait(sockets: [&UdpSocket; 2], limit: Duration) {
    let mut fds = sockets.map(|socket| PollFd::new(socket, PollFlags::IN));
    if let Ok(limit) = Timespec::try_from(limit) {
        // A signal: as if something had come.
        let _ = poll(&mut fds, Some(&limit));
    }
}
