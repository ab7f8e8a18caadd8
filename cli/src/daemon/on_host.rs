//! What a reload changes on the host itself: how its resolver is led to us, and to which addresses.
//!
//! It is done in two halves around the moment at which the shards begin to answer elsewhere: what
//! can go wrong before, so that nothing has changed then, and the rest behind it.

use std::time::Duration;

use dns::takeover::TakeoverError;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tunnel::host::HostError;

use crate::config::Dns;

/// An order to whoever may change the host.
#[derive(Debug)]
pub(crate) enum OnHost {
    /// The first half.
    Prepare { dns: Dns, answer: oneshot::Sender<Result<(), Unled>> },
    /// The second half of what was prepared last. What goes wrong with it is a warning in the log,
    /// and tried again.
    Commit { answer: oneshot::Sender<()> },
    /// Nothing comes of what was prepared last: all is as it was.
    GiveUp { answer: oneshot::Sender<()> },
}

/// Why the host's resolver can't be led elsewhere. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unled {
    /// The way is not there.
    #[error("{0}")]
    Takeover(#[from] TakeoverError),
    /// What leads there can't be changed.
    #[error("{0}")]
    Host(#[from] HostError),
    /// Nobody is left who could.
    #[error("cannot change where the host's resolver leads: who does that has ended")]
    Gone,
    /// It waits for another program.
    #[error("cannot change where the host's resolver leads: that waits for something else")]
    Silent,
}

impl Unled {
    /// What helps.
    pub(crate) fn help(&self) -> Option<&'static str> {
        match self {
            Self::Takeover(error) => error.help(),
            Self::Host(error) => error.help(),
            Self::Gone | Self::Silent => Some("the daemon's log says more; nothing has changed"),
        }
    }
}

/// A service on D-Bus has two seconds, resolvconf fifteen, and there may be two of these.
const PATIENCE: Duration = Duration::from_secs(35);

/// The first half.
pub(super) async fn prepare(host: &UnboundedSender<OnHost>, dns: &Dns) -> Result<(), Unled> {
    let (answer, answered) = oneshot::channel();
    let order = OnHost::Prepare { dns: dns.clone(), answer };
    host.send(order).map_err(|_| Unled::Gone)?;
    match timeout(PATIENCE, answered).await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(_)) => Err(Unled::Gone),
        Err(_) => Err(Unled::Silent),
    }
}

/// The second half; returns when it is done, or takes long.
pub(super) async fn commit(host: &UnboundedSender<OnHost>) {
    done(host, |answer| OnHost::Commit { answer }).await;
}

/// Takes the first half back; likewise.
pub(super) async fn give_up(host: &UnboundedSender<OnHost>) {
    done(host, |answer| OnHost::GiveUp { answer }).await;
}

async fn done(host: &UnboundedSender<OnHost>, order: fn(oneshot::Sender<()>) -> OnHost) {
    let (answer, answered) = oneshot::channel();
    if host.send(order(answer)).is_ok() {
        // What it is about is in the log.
        let _ = timeout(PATIENCE, answered).await;
    }
}
