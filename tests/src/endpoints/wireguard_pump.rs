//! Our own WireGuard interface at an end, with a small pump between a TUN and it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::{DeviceName, Meta};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tunnel::device::{Checksum, Device as _, MAX_PACKET, Tun, TxOffload, open_tun};
use tunnel::link::wireguard::{Coalesce, LinkTotals, PeerHealth, PeerSettings, Settings, Tunnel};

use super::wireguard::{End, MTU, PORT};

/// The longest sleep: how soon it sees that it is told to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// Our interface and a thread that carries its packets.
#[derive(Debug)]
pub struct Pump {
    told: Arc<Told>,
    thread: JoinHandle<Result<LinkTotals>>,
}

/// What it is told, and tells.
#[derive(Debug, Default)]
struct Told {
    stop: AtomicBool,
    probe: AtomicBool,
    health: Mutex<Vec<PeerHealth>>,
}

impl Pump {
    /// Opens a device of the name `wg0` with the end's inner addresses, and an interface with
    /// this peer on [`PORT`].
    pub fn start(end: &End, peer: PeerSettings) -> Result<Self> {
        let settings = Settings {
            name: DeviceName::new("wg0").context("a name")?,
            key: end.key.clone(),
            listen_port: Some(PORT),
            fwmark: None,
            mark: None,
            mtu: MTU,
            peers: vec![peer],
        };
        let epoch = Instant::now();
        let (device, tunnel) = end.netns.run(|| -> Result<_> {
            let device = Tun::adopt(open_tun("wg0", true, false)?)?;
            Ok((device, Tunnel::open(settings, at(epoch))?))
        })?;
        end.addresses("wg0")?;
        let told = Arc::new(Told::default());
        let shared = Arc::clone(&told);
        let thread = thread::spawn(move || pump(device, tunnel, epoch, &shared));
        Ok(Self { told, thread })
    }

    /// How its peer fares, at most 50 ms ago.
    pub fn health(&self) -> Vec<PeerHealth> {
        self.told.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks its peer whether it is there.
    pub fn probe(&self) {
        self.told.probe.store(true, Ordering::Relaxed);
    }

    /// Ends it: what went through.
    pub fn stop(self) -> Result<LinkTotals> {
        self.told.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the pump doesn't panic")
    }
}

fn at(epoch: Instant) -> engine::Instant {
    engine::Instant::from_micros(epoch.elapsed().as_micros() as u64)
}

fn pump(mut device: Tun, mut tunnel: Tunnel, epoch: Instant, told: &Told) -> Result<LinkTotals> {
    tunnel.set_coalesce(Coalesce { tcp: device.offload(), udp: device.udp_offload() });
    let mut packet = vec![0; MAX_PACKET];
    let mut joined = Vec::with_capacity(MAX_PACKET);
    while !told.stop.load(Ordering::Relaxed) {
        let until = tunnel.next_timer().map_or(PATIENCE, |timer| timer.since(at(epoch)));
        wait(&device, tunnel.sockets(), until.min(PATIENCE))?;
        for _ in 0..16 {
            let Ok((length, offload)) = device.read(&mut packet) else { break };
            let headers = offload.gso.map_or(length, |_| header(&packet[..length]));
            let meta = Meta {
                segment: offload.gso.map(|gso| gso.size),
                partial_checksum: offload.checksum == Checksum::Partial,
            };
            let (headers, payload) = packet[..length].split_at(headers);
            // The kernel's own chatter, to multicast groups, is nobody's.
            let _ = tunnel.send(headers, payload, meta, at(epoch));
        }
        tunnel.flush();
        tunnel.receive(at(epoch), 1 << 20, |inner| {
            joined.clear();
            joined.extend_from_slice(inner.headers);
            inner.payload.iter().for_each(|piece| joined.extend_from_slice(piece));
            let offload = TxOffload {
                gso_size: inner.meta.segment,
                checksum_partial: inner.meta.partial_checksum,
            };
            device.write(&joined, offload).expect("the device takes what the peer sent");
        });
        tunnel.timers(at(epoch));
        if told.probe.swap(false, Ordering::Relaxed) {
            tunnel.probe(at(epoch));
        }
        let health = tunnel.health(at(epoch));
        *told.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }
    Ok(tunnel.totals().clone())
}

fn wait<'a>(
    device: &'a Tun,
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    limit: Duration,
) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> = std::iter::once(device.as_fd())
        .chain(sockets)
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    poll(&mut fds, Some(&Timespec::try_from(limit)?))?;
    Ok(())
}

/// Bytes of the IP and transport headers of a super-packet.
fn header(packet: &[u8]) -> usize {
    let (ip, tcp) = match packet[0] >> 4 {
        4 => (usize::from(packet[0] & 15) * 4, packet[9] == 6),
        _ => (40, packet[6] == 6),
    };
    ip + if tcp { usize::from(packet[ip + 12] >> 4) * 4 } else { 8 }
}
