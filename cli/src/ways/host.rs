//! When packets of ours may leave another way: the kernel says so, and when this host has slept.
//!
//! Nobody is woken as long as nothing changes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;
use tunnel::host::Paths;

use super::Order;

/// A path that changes does so with a dozen changes, which are one to us.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked where routes come and go all the time.
const BETWEEN: Duration = Duration::from_secs(1);

/// Follows this host until what is returned is dropped.
pub(super) fn follow(orders: UnboundedSender<Order>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (paths, sleeps) = (orders.clone(), orders);
    tasks.spawn(async move {
        if let Err(error) = follow_paths(&paths).await {
            unwatched("its routes", &error);
        }
    });
    tasks.spawn(async move {
        if let Err(error) = follow_sleep(&sleeps).await {
            unwatched("its sleep", &error);
        }
    });
    tasks
}

fn unwatched(what: &str, error: &io::Error) {
    warn!(
        code = "host-unwatched",
        "tunnels don't follow this host: {what} can't be watched: {error}"
    );
}

async fn follow_paths(orders: &UnboundedSender<Order>) -> io::Result<()> {
    let watch = watched(Paths::open()?)?;
    loop {
        let mut ready = watch.readable().await?;
        sleep(GATHER).await;
        watch.get_ref().drain()?;
        ready.clear_ready();
        if orders.send(Order::Path { slept: false }).is_err() {
            return Ok(());
        }
        sleep(BETWEEN).await;
    }
}

/// A timer of the wall clock that is cancelled when that is set, as it is after a suspend.
async fn follow_sleep(orders: &UnboundedSender<Order>) -> io::Result<()> {
    let timer = Timer::new()?;
    let timer = watched(timer)?;
    loop {
        let mut ready = timer.readable().await?;
        match rustix::io::read(&timer.get_ref().0, &mut [0u8; 8]) {
            Err(Errno::CANCELED) => {
                timer.get_ref().arm()?;
                if orders.send(Order::Path { slept: true }).is_err() {
                    return Ok(());
                }
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(errno) => return Err(errno.into()),
            Ok(_) => timer.get_ref().arm()?,
        }
    }
}

#[expect(deprecated, reason = "unsound for types that change their descriptor: these don't")]
fn watched<T: AsRawFd>(what: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(what, Interest::READABLE)
}

struct Timer(OwnedFd);

impl Timer {
    fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = Self(timerfd_create(TimerfdClockId::Realtime, flags)?);
        timer.arm()?;
        Ok(timer)
    }

    /// For as far away as there is.
    fn arm(&self) -> Result<(), Errno> {
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let never = Timespec { tv_sec: i64::MAX / 2_000_000_000, tv_nsec: 0 };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Itimerspec { it_interval: zero, it_value: never };
        timerfd_settime(&self.0, flags, &at).map(drop)
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
