//! Which addresses are this host's own, now and later.
//!
//! A flow whose client address is this host's is the host's own, not forwarded; addresses come
//! and go while the daemon runs.

use std::net::IpAddr;
use std::thread;

use anyhow::Context;
use rustix::io::Errno;
use tracing::warn;
use tunnel::driver::Handle;
use tunnel::driver::request::Request;
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
                    // One that is busy is told with the next change; one that is gone needs none.
                    let _ = shard.ask(Request::Own(addresses.clone()));
                }
            }
            // Changed too fast to be read: it is read again after the next change.
            Err(Errno::AGAIN) => {}
            Err(errno) => return warn_of(errno),
        }
        if let Err(errno) = watch.wait() {
            return warn_of(errno);
        }
    }
}

fn warn_of(errno: Errno) {
    warn!(code = "addresses-unwatched", "new addresses count as others': {errno}");
}
