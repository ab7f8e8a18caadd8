//! What `exec` and `run` build their shards from.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use anyhow::Context;
use engine::policy::Policy;
use engine::{DeviceName, Engine, Instant, Own, Report, Services, Share};
use rustix::process::{Resource, getrlimit, setrlimit};
use tunnel::device::{Device, Tun};
use tunnel::driver::{Driver, Parts, request};
use tunnel::owner::Owners;
use tunnel::rings::Pool;
use tunnel::source::Routes;

use crate::config::{Config, Limits};
use crate::names::Names;

/// Descriptors kept for everything that is not a flow.
const RESERVED_DESCRIPTORS: u64 = 64;

/// What every shard of a daemon has in common.
#[derive(Debug)]
pub(crate) struct Blueprint<'a> {
    pub(crate) config: &'a Config,
    pub(crate) policy: Arc<Policy>,
    /// Whose flows are this host's own.
    pub(crate) own: Own,
    pub(crate) services: Services,
    /// Who answers the queries to `services.resolver`.
    pub(crate) names: &'a Names,
    /// The mark of our sockets.
    pub(crate) mark: Option<u32>,
    /// How many shards the limits are divided among.
    pub(crate) shards: usize,
    pub(crate) reports: Option<SyncSender<(usize, Report)>>,
}

impl Blueprint<'_> {
    /// Shard `number`, at `queue` of the device. Nothing runs yet, and `direct` is its only way
    /// out until it is told of others.
    pub(crate) fn build(
        &self,
        number: usize,
        queue: OwnedFd,
        owners: Option<Owners>,
    ) -> anyhow::Result<Driver<Tun>> {
        let device = Tun::adopt(queue).context("cannot use the TUN device")?;
        let request::Limits { flows, memory } = share(self.config.limits, self.shards);
        let config = engine::Config {
            mtu: self.config.device.mtu,
            offload: device.offload(),
            udp_offload: device.udp_offload(),
            flows,
            half_open: engine::Config::half_open(flows),
            own: self.own.clone(),
            reports: self.reports.is_some(),
            services: self.services.clone(),
            share: Share::new(number, self.shards).context("there is no such shard")?,
            seed: random_seed()?,
        };
        let mut routes = Routes::open().context("cannot look up routes")?;
        // In a sandbox the device is another namespace's.
        if let (Own::Addresses { .. }, Some(own)) =
            (&self.own, DeviceName::new(&self.config.device.name))
        {
            routes = routes.beside(own);
        }
        let driver = Driver::new(Parts {
            engine: Engine::new(config, Arc::clone(&self.policy), Instant::ZERO),
            device,
            routes,
            owners,
            rings: Pool::new(memory),
            mark: self.mark,
            service: Some(self.names.desk()),
            shard: number,
            reports: self.reports.clone(),
        })?;
        Ok(driver)
    }
}

/// The limits of one of so many shards. A flow may need a descriptor, so there are no more than
/// this process may have: see [`raise_descriptors`].
pub(crate) fn share(limits: Limits, shards: usize) -> request::Limits {
    divide(limits, getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), shards)
}

fn divide(limits: Limits, descriptors: u64, shards: usize) -> request::Limits {
    let descriptors = usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS));
    let flows = limits.flows.min(descriptors.unwrap_or(usize::MAX));
    request::Limits { flows: (flows / shards).max(16), memory: limits.memory / shards }
}

/// Raises the soft limit of descriptors to the hard one.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is refused the old limit stands.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0u8; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .context("no random numbers")?;
    Ok(u64::from_ne_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divided_among_shards_table() {
        let limits = |flows, memory| Limits { flows, memory };
        #[rustfmt::skip]
        let cases = [
            ("one takes all", limits(65_536, 512 << 20), u64::MAX, 1, (65_536, 512 << 20)),
            ("four", limits(65_536, 512 << 20), 1 << 20, 4, (16_384, 128 << 20)),
            ("rounded down", limits(100, 1000), 1 << 20, 3, (33, 333)),
            ("few descriptors", limits(65_536, 512 << 20), 1024, 2, (480, 256 << 20)),
            ("hardly any", limits(65_536, 512 << 20), 10, 2, (16, 256 << 20)),
            ("few flows", limits(20, 512 << 20), 1024, 8, (16, 64 << 20)),
        ];
        for (name, limits, descriptors, shards, expected) in cases {
            let request::Limits { flows, memory } = divide(limits, descriptors, shards);
            assert_eq!((flows, memory), expected, "{name}");
        }
    }
}
