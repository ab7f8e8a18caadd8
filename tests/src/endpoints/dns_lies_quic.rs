//! A name server that is broken over QUIC (RFC 9250).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;

use super::dns_lies_stream::truth;
use super::dns_quic::{DoqServer, configuration};
use super::dns_trust::Signed;
use crate::lab::Netns;

/// What is wrong with it, once a connection has begun as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuicLie {
    /// Questions are taken, and nothing is said.
    Silent,
    /// Half an answer, and the end of it.
    Half,
    /// An answer that says more than its length, without an end.
    Endless,
    /// The answer to another question.
    Other,
    /// The end of the connection, instead of an answer.
    Ends,
    /// Datagrams of noise without an end, beside the connection.
    Noise,
    /// The truth about `www.example`, and then datagrams of noise without an end.
    ThenNoise,
}

/// A running one on [`DoqServer::PORT`].
#[derive(Debug)]
pub struct QuicLiar {
    accepted: Arc<AtomicU64>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl QuicLiar {
    /// Starts one.
    ///
    /// # Errors
    /// It can't listen.
    pub fn start(netns: &Netns, address: IpAddr, signed: &Signed, lie: QuicLie) -> Result<Self> {
        let config = configuration(signed, Duration::from_secs(30), None)?;
        let socket = netns.run(|| UdpSocket::bind((address, DoqServer::PORT)))?;
        let accepted = Arc::<AtomicU64>::default();
        let (end, ended) = oneshot::channel();
        let thread = netns.spawn({
            let accepted = Arc::clone(&accepted);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let Ok(runtime) = runtime else { return };
                runtime.block_on(async {
                    tokio::select! {
                        // A server that can't start shows in the test that asks it.
                        _ = serve(socket, config, lie, accepted) => {}
                        _ = ended => {}
                    }
                });
            }
        });
        Ok(Self { accepted, end: Some(end), thread: Some(thread) })
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }
}

impl Drop for QuicLiar {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    socket: UdpSocket,
    config: quinn::ServerConfig,
    lie: QuicLie,
    accepted: Arc<AtomicU64>,
) -> Result<()> {
    let noise = socket.try_clone()?;
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    while let Some(incoming) = endpoint.accept().await {
        let (accepted, noise) = (Arc::clone(&accepted), noise.try_clone()?);
        tokio::spawn(async move {
            let connection = incoming.await?;
            accepted.fetch_add(1, Ordering::AcqRel);
            while let Ok((send, receive)) = connection.accept_bi().await {
                let (connection, noise) = (connection.clone(), noise.try_clone()?);
                tokio::spawn(tell(lie, connection, noise, send, receive));
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

async fn tell(
    lie: QuicLie,
    connection: quinn::Connection,
    noise: UdpSocket,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<()> {
    let mut query = receive.read_to_end(65_537).await?.split_off(2);
    let answer = truth(&query)?;
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
    match lie {
        QuicLie::Silent => {
            connection.closed().await;
        }
        QuicLie::Half => {
            send.write_all(&framed(&answer)[..answer.len() / 2]).await?;
            send.finish()?;
            send.stopped().await?;
        }
        QuicLie::Endless => {
            send.write_all(&[0xff, 0xff]).await?;
            loop {
                send.write_all(&[0xff; 4096]).await?;
                tokio::time::sleep(PAUSE).await;
            }
        }
        QuicLie::Other => {
            query[13] = b'_';
            query[2] |= 0x80;
            send.write_all(&framed(&query)).await?;
            send.finish()?;
            send.stopped().await?;
        }
        QuicLie::Ends => connection.close(0u32.into(), b""),
        QuicLie::Noise => rattle(&noise, connection.remote_address()).await?,
        QuicLie::ThenNoise => {
            send.write_all(&framed(&answer)).await?;
            send.finish()?;
            rattle(&noise, connection.remote_address()).await?;
        }
    }
    Ok(())
}

const PAUSE: Duration = Duration::from_millis(1);

async fn rattle(noise: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    loop {
        // One that finds no room is as good as one that is lost.
        let _ = noise.send_to(&[0x7f; 1_200], to);
        tokio::time::sleep(PAUSE).await;
    }
}
