//! hickory's view of a [`Way`]: where its connections come from.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::runtime::{RuntimeProvider, Spawn, TokioTime};

use super::allowance::{Allowance, Metered};
use super::{Stream, Target, Way};
use crate::server::Device;

/// Opens what hickory asks for, this way out. UDP is not asked for: see `upstream::udp`.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) way: Arc<dyn Way>,
    pub(crate) device: Option<Device>,
    /// Of the connection that is opened with it.
    pub(crate) allowance: Allowance,
}

/// Runs hickory's tasks on the runtime that asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tasks;

impl Spawn for Tasks {
    fn spawn_bg(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(future);
    }
}

type Opening<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Provider {
    type Handle = Tasks;
    type Timer = TokioTime;
    type Udp = tokio::net::UdpSocket;
    type Tcp = AsyncIoTokioAsStd<Box<dyn Stream>>;

    fn create_handle(&self) -> Tasks {
        Tasks
    }

    fn connect_tcp(
        &self,
        address: SocketAddr,
        _bind: Option<SocketAddr>,
        _timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        let connecting = self.way.connect_tcp(Target { address, device: self.device.clone() });
        let allowance = self.allowance.clone();
        Box::pin(async move {
            let stream = connecting.await?;
            Ok(AsyncIoTokioAsStd(Box::new(Metered { stream, allowance }) as Box<dyn Stream>))
        })
    }

    fn bind_udp(&self, _local: SocketAddr, _server: SocketAddr) -> Opening<Self::Udp> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}
