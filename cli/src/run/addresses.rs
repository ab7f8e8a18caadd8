//! Which addresses are this host's own, now and later.
//!
//! A flow whose client address is this host's is the host's own, not forwarded; addresses come
//! and go while the daemon runs.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use tracing::warn;
use tunnel::driver::request::Request;
use tunnel::driver::{Handle, Unasked};
use tunnel::host::addresses::{Watch, list};

/// All addresses of this host.
pub(super) fn now() -> anyhow::Result<Vec<IpAddr>> {
    list().context("cannot look at the host's addresses")
}

/// Tells the shards of every change from now on.
pub(super) fn follow(shards: &[Handle]) -> anyhow::Result<()> {
    let watch = Watch::open().context("cannot watch the host's addresses")?;
    let shards = shards.to_vec();
    thread::Builder::new()
        .name("addresses".to_owned())
        .spawn(move || tell(&watch, &shards))
        .context("cannot start a thread")?;
    Ok(())
}

fn tell(watch: &Watch, shards: &[Handle]) {
    loop {
        // First of all: what has come since the shards were told, before there was a watch.
        match list() {
            Ok(addresses) => {
                for shard in shards {
                    while shard.ask(Request::Own(addresses.clone())) == Err(Unasked::Busy) {
                        thread::sleep(AGAIN);
                    }
                }
                if let Err(errno) = watch.wait() {
                    warn_of(errno);
                    thread::sleep(AGAIN);
                }
            }
            Err(errno) => {
                warn_of(errno);
                thread::sleep(AGAIN);
            }
        }
    }
}

/// After what may pass: a full queue, no descriptor left.
const AGAIN: Duration = Duration::from_secs(1);

fn warn_of(errno: Errno) {
    warn!(code = "addresses-unwatched", "new addresses count as others' for now: {errno}");
}
