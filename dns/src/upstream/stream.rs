//! Questions and answers with one server over a connection: TCP, TLS, HTTPS, QUIC.
//!
//! One connection carries all questions, and stays for the next ones (RFC 7766 6.2.1). Servers
//! close idle ones: a question that finds its connection closed opens another, once. The
//! messages are hickory's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use hickory_net::NetError;
use hickory_net::h2::HttpsClientStream;
use hickory_net::quic::QuicClientStream;
use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::tcp::TcpClientStream;
use hickory_net::tls::tls_client_connect;
use hickory_net::xfer::{DnsExchange, DnsHandle as _, DnsMultiplexer};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;

use super::fault::Fault;
use crate::server::{Server, Transport};
use crate::socket::allowance::Allowance;
use crate::socket::provider::Provider;
use crate::socket::quic::QuicSocket;
use crate::socket::{Stream, Target, Way};
use crate::tls::Verdict;

/// Questions that are open on one connection at once; more wait, or take another connection.
/// hickory's queue in front of a TCP stream has this many places, and says of a full one the same
/// as of one whose stream is gone.
const MOST_OPEN: usize = 32;
/// hickory's limits are not ours: the caller gives up before. A connection that was given up with
/// questions still open ends by then, whatever still comes.
const NEVER: Duration = Duration::from_secs(6);

/// One server's connection.
pub(crate) struct Connection {
    provider: Provider,
    transport: Transport,
    tls: Option<Tls>,
    path: Option<Arc<str>>,
    live: AsyncMutex<Option<Live>>,
    last: Mutex<Last>,
    room: Semaphore,
}

/// What TLS needs to know of one server.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) config: ClientConfig,
    pub(crate) verdict: Arc<Verdict>,
    pub(crate) name: Arc<str>,
}

#[derive(Clone)]
struct Live {
    exchange: DnsExchange<Provider>,
    number: u64,
    allowance: Allowance,
}

#[derive(Default)]
struct Last {
    answer: Option<Instant>,
    /// Of the connection that is not to be used any more.
    given_up: u64,
    opened: u64,
}

impl Connection {
    pub(crate) fn new(
        way: Arc<dyn Way>,
        server: &Server,
        transport: Transport,
        tls: Option<Tls>,
    ) -> Self {
        Self {
            provider: Provider {
                way,
                device: server.device.clone(),
                allowance: Allowance::default(),
            },
            transport,
            tls,
            path: server.path.clone(),
            live: AsyncMutex::default(),
            last: Mutex::default(),
            room: Semaphore::new(MOST_OPEN),
        }
    }

    /// Whether a question would not wait for another's answer.
    pub(crate) fn has_room(&self) -> bool {
        self.room.available_permits() > 0
    }

    /// Asks, and waits for the answer as long as it is polled.
    ///
    /// # Errors
    /// There is no connection, or it ended before the answer.
    pub(crate) async fn ask(&self, address: SocketAddr, query: &Message) -> Result<Message, Fault> {
        // Never closed.
        let _room = self.room.acquire().await.map_err(|_| Fault::Busy)?;
        loop {
            let (live, fresh) = self.live(address).await?;
            let mut request = DnsRequest::new(query.clone(), DnsRequestOptions::default());
            request.metadata.id = 0;
            live.allowance.grant();
            let fault = match live.exchange.send(request).next().await {
                Some(Ok(answer)) => {
                    self.last(|last| last.answer = Some(Instant::now()));
                    return Ok(answer.into_message());
                }
                Some(Err(error)) => self.fault(&error),
                None => Fault::TimedOut,
            };
            // Of these the connection knows nothing.
            if matches!(fault, Fault::Garbage | Fault::Http) {
                return Err(fault);
            }
            self.last(|last| last.given_up = last.given_up.max(live.number));
            if fresh {
                return Err(fault);
            }
        }
    }

    /// Nothing came to a question asked `since`: where nothing came to any other, the connection
    /// is taken for dead.
    pub(crate) fn silent(&self, since: Instant) {
        let is_dead = self.last(|last| last.answer.is_none_or(|answer| answer < since));
        if is_dead {
            self.reset();
        }
    }

    /// Gives up the connection: the way has changed.
    pub(crate) fn reset(&self) {
        self.last(|last| last.given_up = last.opened);
        // It ends with its last question, whatever still comes. One that is being opened is seen
        // to be given up by whoever wants it next.
        if let Ok(mut live) = self.live.try_lock() {
            *live = None;
        }
    }

    /// The connection, and whether it was opened for this question.
    async fn live(&self, address: SocketAddr) -> Result<(Live, bool), Fault> {
        // Held while it is opened: all who wait want the same one.
        let mut live = self.live.lock().await;
        let given_up = self.last(|last| last.given_up);
        if let Some(live) = live.as_ref().filter(|live| live.number > given_up) {
            return Ok((live.clone(), false));
        }
        *live = None;
        if let Some(tls) = &self.tls {
            tls.verdict.take();
        }
        let allowance = Allowance::default();
        let exchange = self.connect(address, allowance.clone()).await?;
        let number = self.last(|last| {
            last.opened += 1;
            last.opened
        });
        let opened = Live { exchange, number, allowance };
        *live = Some(opened.clone());
        Ok((opened, true))
    }

    async fn connect(
        &self,
        address: SocketAddr,
        allowance: Allowance,
    ) -> Result<DnsExchange<Provider>, Fault> {
        let provider = Provider { allowance, ..self.provider.clone() };
        let connected = match (self.transport, &self.tls) {
            (Transport::Udp | Transport::Tcp, _) | (_, None) => {
                TcpClientStream::<AsyncIoTokioAsStd<Box<dyn Stream>>>::exchange(
                    address,
                    None,
                    NEVER,
                    Some(MOST_OPEN),
                    provider,
                )
                .await
            }
            (Transport::Tls, Some(tls)) => {
                let name = ServerName::try_from(tls.name.to_string());
                let name = name.map_err(|_| Fault::NoAddress)?;
                // Not by hickory's `tls_exchange`, which names no server: one of several behind one
                // address has no other way to know whose certificate is wanted.
                let config = Arc::new(tls.config.clone());
                let (stream, sender) = tls_client_connect(address, name, config, provider);
                stream.await.map(|stream| {
                    let streams = DnsMultiplexer::new(stream, sender).with_timeout(NEVER);
                    let streams = streams.with_max_active_requests(MOST_OPEN);
                    let (exchange, background) = DnsExchange::from_stream(streams);
                    tokio::spawn(background);
                    exchange
                })
            }
            (Transport::Https, Some(tls)) => {
                let config = Arc::new(tls.config.clone());
                let mut builder = HttpsClientStream::builder(config, provider);
                builder.request_timeout(NEVER);
                let path = self.path.clone().unwrap_or_default();
                builder.exchange(address, Arc::clone(&tls.name), path).await
            }
            (Transport::Quic, Some(tls)) => {
                return self.connect_quic(address, tls, provider.allowance).await;
            }
        };
        connected.map_err(|error| self.fault(&error))
    }

    async fn connect_quic(
        &self,
        address: SocketAddr,
        tls: &Tls,
        allowance: Allowance,
    ) -> Result<DnsExchange<Provider>, Fault> {
        let target = Target { address, device: self.provider.device.clone() };
        let datagrams = self.provider.way.bind_udp(&target).map_err(|e| Fault::from(&e))?;
        let socket = Arc::new(QuicSocket::new(datagrams, address, allowance));
        QuicClientStream::builder()
            .crypto_config(tls.config.clone())
            .request_timeout(NEVER)
            .exchange(
                Arc::clone(&socket) as _,
                address,
                Arc::clone(&tls.name),
                self.provider.clone(),
            )
            .await
            .map_err(|error| match (self.fault(&error), socket.take_fault()) {
                (Fault::Certificate(fault), _) => Fault::Certificate(fault),
                (_, Some(error)) => Fault::from(&error),
                (fault, None) => fault,
            })
    }

    /// hickory's error, and what the verifier says of it.
    #[expect(clippy::wildcard_enum_match_arm, reason = "another crate's, and it grows")]
    fn fault(&self, error: &NetError) -> Fault {
        if let Some(fault) = self.tls.as_ref().and_then(|tls| tls.verdict.take()) {
            return Fault::Certificate(fault);
        }
        match error {
            // Its queues are never full: the task behind them has ended.
            NetError::Busy => Fault::Closed,
            NetError::Msg(_) if self.transport != Transport::Https => Fault::Closed,
            error => Fault::from(error),
        }
    }

    fn last<T>(&self, change: impl FnOnce(&mut Last) -> T) -> T {
        change(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
