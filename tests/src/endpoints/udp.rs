//! UDP servers. Bound to one address: a socket bound to all would answer from
//! the address of the route, which is not always the one that was asked.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use super::PATIENCE;
use crate::lab::Netns;

/// A server that answers datagrams.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Sends every datagram back.
    pub fn echo(netns: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        Self::start(netns, address, port, |datagram| Some(datagram.to_vec()))
    }

    /// Takes datagrams and says nothing.
    pub fn sink(netns: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        Self::start(netns, address, port, |_| None)
    }

    /// Answers each datagram with what `answer` gives.
    pub fn start(
        netns: &Netns,
        address: IpAddr,
        port: u16,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket = netns
            .run(|| UdpSocket::bind((address, port)))
            .with_context(|| format!("bind UDP {address} port {port}"))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let peers = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            let peers = Arc::clone(&peers);
            move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Acquire) {
                    let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    received.fetch_add(1, Ordering::AcqRel);
                    let mut peers = peers.lock().expect("no holder panics");
                    if peers.last() != Some(&peer) {
                        peers.push(peer);
                    }
                    drop(peers);
                    if let Some(answer) = answer(&buffer[..length]) {
                        // A peer that has gone is the peer's affair.
                        let _ = socket.send_to(&answer, peer);
                    }
                }
            }
        });
        Ok(Self { address, stop, received, peers, thread: Some(thread) })
    }

    /// The port it is bound to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Who sent, in order, repetitions left out.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().expect("no holder panics").clone()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
