//! A router's clients: a forwarded flow belongs to the client that sent it, whatever
//! address it leaves with.
//!
//! ```text
//!   client  10.9.0.2 ──veth── 10.9.0.1  host (the router)  up0 ── server
//!                             what comes from the client is routed into the TUN
//! ```
//!
//! The daemon that will do this for a whole host is a later verb; engine and driver carry
//! forwarded flows already, and this runs them as a router does.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};

use anyhow::{Context, Result, ensure};
use engine::policy::{NoEnvironment, Policy, Source, Verdict};
use engine::{Engine, Instant, Own, Report, Services, Share, Stage};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::tcp::source;
use tests::lab::{Lab, Netns, link, plan};
use tests::require_root;
use tunnel::device::{Device, Tun, open_tun};
use tunnel::driver::{Driver, Handle, Parts};
use tunnel::rings::Pool;
use tunnel::source::Routes;

const CLIENT: &str = "10.9.0.2";
const STRANGER: &str = "10.9.0.3";
/// Bytes of a download: some rings full.
const BULK: u64 = 5_000_000;

type Reports = Receiver<(usize, Report)>;

fn route(text: String, host: Vec<IpAddr>, offload: bool) -> Result<(Driver<Tun>, Reports)> {
    let sources = [Source { name: "router.policy".to_owned(), text }];
    let (policy, _) =
        Policy::load(&sources, &NoEnvironment).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let device = Tun::adopt(open_tun("tunneld0", offload, false)?)?;
    let config = engine::Config {
        mtu: 1500,
        offload: device.offload(),
        udp_offload: device.udp_offload(),
        flows: 1000,
        half_open: 100,
        own: Own::Addresses { device: Vec::new(), host },
        reports: true,
        services: Services::default(),
        share: Share::WHOLE,
        seed: 1,
    };
    let (sender, reports) = sync_channel(1000);
    let driver = Driver::new(Parts {
        engine: Engine::new(config, Arc::new(policy), Instant::ZERO),
        device,
        routes: Routes::open()?,
        owners: None,
        rings: Pool::new(16 << 20),
        mark: None,
        service: None,
        shard: 0,
        reports: Some(sender),
    })?;
    Ok((driver, reports))
}

#[test]
fn from_is_the_client_and_egress_the_uplink() -> Result<()> {
    require_root!();
    with_a_router(true)
}

/// Without super-packets and partial sums every packet is whole, summed and of the MTU.
#[test]
fn a_device_without_offloads_carries_the_same() -> Result<()> {
    require_root!();
    with_a_router(false)
}

fn with_a_router(offload: bool) -> Result<()> {
    let lab = Lab::new()?;
    let client = Netns::new("client")?;
    link(&lab.host, "down0", &client, "eth0", plan::MTU)?;
    lab.host.ip("addr add 10.9.0.1/24 dev down0\n")?;
    client.ip(&format!(
        "addr add {CLIENT}/24 dev eth0\naddr add {STRANGER}/24 dev eth0\n\
         route add default via 10.9.0.1 src {CLIENT}\n"
    ))?;
    lab.host.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    lab.host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    let server = TcpServer::start(&lab.server, 0, page)?;

    let policy = format!(
        "policy 1\n\
         block from {STRANGER} id stranger\n\
         allow from {CLIENT} egress up0 to {} id customer\n\
         default drop\n",
        plan::GOOD4
    );
    let (started, handle) = channel::<Result<Handle>>();
    let (reported, reports) = channel();
    let shard = lab.host.spawn(move || match route(policy, vec![plan::HOST4], offload) {
        Ok((driver, reports)) => {
            let _ = reported.send(reports);
            let _ = started.send(Ok(driver.handle()));
            driver.run().map(|_| ())
        }
        Err(error) => {
            let _ = started.send(Err(error));
            Ok(())
        }
    });
    let handle = handle.recv().context("the router's thread")??;
    let reports = reports.recv().context("the reports")?;
    lab.host.sysctl("net/ipv4/conf/tunneld0/rp_filter", "0")?;
    lab.host.ip("link set tunneld0 up\n\
         rule add iif down0 lookup 100\n\
         route add default dev tunneld0 table 100\n")?;

    let url = format!("http://{}:{}/", plan::GOOD4, server.port());
    let fetch = |address: &str| {
        client.command("curl").args(["-sS", "--max-time", "5", "--interface", address, &url]).run()
    };
    let allowed = fetch(CLIENT)?;
    let bulk = TcpServer::start(&lab.server, 0, source(BULK))?;
    let size = client
        .command("curl")
        .args(["-sS", "--max-time", "10", "--http0.9", "-o", "/dev/null"])
        .args(["-w", "%{size_download}", "--interface", CLIENT])
        .args([format!("http://{}:{}/", plan::GOOD4, bulk.port())])
        .run()?;
    let blocked = fetch(STRANGER)?;
    handle.stop();
    shard.join().map_err(|_| anyhow::anyhow!("the shard panicked"))??;
    ensure!(size.stdout == BULK.to_string(), "{BULK} bytes expected, seen {size:?}");
    ensure!(allowed.stdout == PAGE, "the page expected, seen {allowed:?}");
    ensure!(blocked.code() == 7, "refused expected, seen {blocked:?}");

    let ended: Vec<Report> =
        reports.iter().map(|(_, report)| report).filter(|r| r.stage == Stage::Closed).collect();
    let of = |address: &str| {
        let found = ended.iter().find(|r| r.client.ip().to_string() == address);
        found.with_context(|| format!("a report of {address} in {ended:#?}"))
    };
    let (client, stranger) = (of(CLIENT)?, of(STRANGER)?);
    ensure!(client.verdict == Some(Verdict::Allow) && client.rule.as_deref() == Some("customer"));
    ensure!(stranger.verdict == Some(Verdict::Block));
    for report in [client, stranger] {
        ensure!(!report.local, "forwarded expected: {report:?}");
        let egress = report.egress.context("an egress")?;
        ensure!(egress.device.as_str() == "up0" && egress.address == plan::HOST4, "{egress:?}");
    }
    Ok(())
}
