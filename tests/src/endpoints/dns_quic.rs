//! DNS over QUIC (RFC 9250) in front of a name server that speaks TCP: Debian 12
//! has no server of its own for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::dns_trust::{Authority, Signed};
use crate::lab::Netns;

/// A running server on [`DoqServer::PORT`].
#[derive(Debug)]
pub struct DoqServer {
    connections: Arc<AtomicU64>,
    questions: Arc<AtomicU64>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DoqServer {
    /// Where it listens: unbound takes 853, over UDP too.
    pub const PORT: u16 = 8853;

    /// Serves what `behind` answers. A connection that is idle for `idle` is closed.
    pub fn start(
        netns: &Netns,
        address: IpAddr,
        behind: SocketAddr,
        signed: &Signed,
        idle: Duration,
    ) -> Result<Self> {
        Self::start_for(netns, address, behind, signed, idle, None)
    }

    /// The same, but that a connection ends with its answer number `most`.
    pub fn start_with_most(
        netns: &Netns,
        address: IpAddr,
        behind: SocketAddr,
        signed: &Signed,
        most: u64,
    ) -> Result<Self> {
        let config = configuration(signed, Duration::from_secs(30), None)?;
        Self::start_as(netns, address, behind, config, most)
    }

    /// The same for those alone who show a certificate of `clients`, where that is given.
    pub fn start_for(
        netns: &Netns,
        address: IpAddr,
        behind: SocketAddr,
        signed: &Signed,
        idle: Duration,
        clients: Option<&Authority>,
    ) -> Result<Self> {
        let config = configuration(signed, idle, clients)?;
        Self::start_as(netns, address, behind, config, u64::MAX)
    }

    fn start_as(
        netns: &Netns,
        address: IpAddr,
        behind: SocketAddr,
        config: quinn::ServerConfig,
        most: u64,
    ) -> Result<Self> {
        let socket = netns.run(|| std::net::UdpSocket::bind((address, Self::PORT)))?;
        let (connections, questions) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (end, ended) = oneshot::channel();
        let thread = netns.spawn({
            let (connections, questions) = (Arc::clone(&connections), Arc::clone(&questions));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let Ok(runtime) = runtime else { return };
                runtime.block_on(async {
                    tokio::select! {
                        // A server that can't start shows in the test that asks it.
                        _ = serve(socket, config, (behind, most), connections, questions) => {}
                        _ = ended => {}
                    }
                });
            }
        });
        Ok(Self { connections, questions, end: Some(end), thread: Some(thread) })
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    /// Questions so far.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Acquire)
    }
}

impl Drop for DoqServer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server shows, and how long it lets a connection be idle.
pub(super) fn configuration(
    signed: &Signed,
    idle: Duration,
    clients: Option<&Authority>,
) -> Result<quinn::ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem().as_bytes())?)?;
            let roots = Arc::new(roots);
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?
        }
    };
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = vec![b"doq".to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(idle.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

async fn serve(
    socket: std::net::UdpSocket,
    config: quinn::ServerConfig,
    (behind, most): (SocketAddr, u64),
    connections: Arc<AtomicU64>,
    questions: Arc<AtomicU64>,
) -> Result<()> {
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    while let Some(incoming) = endpoint.accept().await {
        let (connections, questions) = (Arc::clone(&connections), Arc::clone(&questions));
        tokio::spawn(async move {
            let connection = incoming.await?;
            connections.fetch_add(1, Ordering::AcqRel);
            let answered = Arc::<AtomicU64>::default();
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                questions.fetch_add(1, Ordering::AcqRel);
                let (connection, answered) = (connection.clone(), Arc::clone(&answered));
                tokio::spawn(async move {
                    let query = receive.read_to_end(65_537).await?;
                    // Its length in front, as over TCP: both are taken as they are.
                    let mut behind = TcpStream::connect(behind).await?;
                    behind.write_all(&query).await?;
                    let length = behind.read_u16().await?;
                    let mut answer = vec![0; length.into()];
                    behind.read_exact(&mut answer).await?;
                    send.write_all(&length.to_be_bytes()).await?;
                    send.write_all(&answer).await?;
                    send.finish()?;
                    if answered.fetch_add(1, Ordering::AcqRel) + 1 == most {
                        // When it was taken: what is open besides has no answer.
                        let _ = send.stopped().await;
                        connection.close(0u32.into(), b"");
                    }
                    anyhow::Ok(())
                });
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}
