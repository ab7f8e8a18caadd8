//! Which addresses are this host's own, now and later.
//!
//! A flow whose client address is this host's is the host's own, not forwarded; addresses come
//! and go while the daemon runs.

use std::net::IpAddr;
use std::thread;

use anyhow::Context;
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
        match watch.wait().and_then(|()| list()) {
            Ok(addresses) => {
                for shard in shards {
                    // One that is busy is told with the next change; one that is gone needs none.
                    let _ = shard.ask(Request::Own(addresses.clone()));
                }
            }
            Err(errno) => {
                warn!(code = "addresses-unwatched", "new addresses count as others': {errno}");
                return;
            }
        }
    }
}
