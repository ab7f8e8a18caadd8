//! `tunneld exec`: a command whose only way out is the engine.
//!
//! The sandbox is made first, while there is one thread; then the shard's thread starts and
//! the command with it. When the command ends, what it had written is still delivered, and
//! tunneld leaves with the command's exit code.

use std::fs::File;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::SystemTime;

use anyhow::Context;
use dns::discover::ResolvConf;
use dns::takeover::{self, RESOLV_CONF};
use engine::policy::Policy;
use engine::{DeviceName, Dropped, Own, Report, ResolverService, Services};
use tunnel::driver::{Handle, Totals};
use tunnel::owner::Owners;

use crate::args::ExecArgs;
use crate::config::{self, Config, Named};
use crate::daemon::Shard;
use crate::error::{Refusal, code};
use crate::names::{self, Names, Network};
use crate::policy_files;
use crate::report::{Clock, GATHER, Writer};
use crate::sandbox::{self, Plan, SpawnError, Status};
use crate::secrets;
use crate::shards::{Blueprint, raise_descriptors};
use crate::ways::{self, Wanted, WaysOut};

/// The servers that programs inside may be told of. Any would do, as every query is answered
/// by us, but it must be another host to them, and one that they have an address to reach with.
const INSIDE_DNS: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 3)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0x756e, 0, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0x756e, 0, 0, 0, 3)),
];
/// Reports that may wait for the disk.
const REPORTS: usize = 65_536;
/// Names a file that gets the counters at the end, as one JSON object.
const COUNTERS: &str = "TUNNELD_COUNTERS";

pub(crate) fn run(args: &ExecArgs) -> anyhow::Result<u8> {
    match execute(args) {
        Ok(code) => Ok(code),
        Err(error) => {
            crate::error::report(&error, false);
            let code = error.downcast_ref::<Refusal>().map(Refusal::code);
            Ok(code.filter(|&code| code >= code::EXEC_FAILED).unwrap_or(code::EXEC_FAILED))
        }
    }
}

fn execute(args: &ExecArgs) -> anyhow::Result<u8> {
    let config = args.config.as_deref().map_or_else(|| Ok(Config::default()), config::read)?;
    let policy = Arc::new(read_policy(args, &config)?);
    let report = args.report.as_deref().map(open_report).transpose()?;
    let resolv_conf = ResolvConf::parse(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    // Those of the network are in the file already.
    let searched = names::of_tunnels(&config, &policy).into_iter().map(|(domain, _)| domain);
    let search = takeover::Search { first: searched.collect(), last: Vec::new() };
    let nameserver = inside_dns(&config);
    let services = services(args, nameserver)?;

    let plan = Plan {
        command: args.command.clone(),
        device: DeviceName::new(&config.device.name).context("the device's name was checked")?,
        addresses: config.device.addresses.clone(),
        mtu: u32::from(config.device.mtu),
        offload: true,
        queues: 1,
        resolv_conf: search.added_to(resolv_conf).with_nameserver(nameserver).into_bytes(),
        keep_sockets: args.keep_sockets,
        ipv6: host_has_ipv6() || services.loopback.iter().any(|(inside, _)| inside.is_ipv6()),
    };
    let mut sandbox = sandbox::spawn(&plan).map_err(refuse)?;

    if config.has_secrets() {
        secrets::keep();
    }
    // CMD keeps the limit that tunneld was started with: it was forked before.
    raise_descriptors();
    let (reports, received) = match &report {
        Some(_) => {
            let (sender, receiver) = sync_channel(REPORTS);
            (Some(sender), Some(receiver))
        }
        None => (None, None),
    };
    let names = names::Waiting::new(&config, &policy, None)?;
    let blueprint = Blueprint {
        config: &config,
        policy,
        own: Own::Every,
        services,
        names: names.names(),
        mark: None,
        shards: 1,
        reports,
    };
    let wanted = Wanted::of(&config, &blueprint.policy)
        .map_err(|error| ways::refuse(&error, code::EXEC_FAILED))?;
    let queue = sandbox.tun.pop().context("the sandbox has a queue")?;
    let owners = sandbox.sock_diag.pop().and_then(|socket| Owners::new(socket).ok());
    let driver = blueprint.build(0, queue, owners)?;
    // The writer of reports ends when nobody can send one any more.
    drop(blueprint);
    let handle = driver.handle();
    let resolver = names.names().clone();
    names
        .start(vec![handle.clone()], Network::File(RESOLV_CONF.into()), None, ())
        .context("cannot start a thread")?;
    let clock = Clock { epoch: SystemTime::now() - driver.epoch().elapsed() };
    let writer = report
        .zip(received)
        .map(|(file, received)| std::thread::spawn(move || write_reports(file, &received, clock)));
    let shard = std::thread::Builder::new()
        .name("shard-0".to_owned())
        .spawn(move || driver.run())
        .context("cannot start a thread")?;

    let opened = open_ways(wanted, &handle, resolver);
    let child = opened.and_then(|()| sandbox.start().map_err(refuse));
    let status = child.and_then(|child| child.wait().map_err(refuse));
    match &status {
        Ok(_) => handle.drain(),
        Err(_) => handle.stop(),
    }
    let totals = shard.join().map_err(|_| anyhow::anyhow!("the shard's thread panicked"))?;
    if let Some(writer) = writer {
        let written = writer.join().map_err(|_| anyhow::anyhow!("the report's thread panicked"))?;
        written.context("cannot write the report")?;
    }
    write_counters(&totals.context("the shard failed")?)?;
    Ok(match status? {
        Status::Exited(code) => code,
        Status::Signaled(signal) => 128u8.wrapping_add(signal),
    })
}

/// Opens the ways out and waits for the names of tunnels' endpoints: the program's first packet
/// finds the way out that it will have.
fn open_ways(wanted: Wanted, shard: &Handle, names: Names) -> anyhow::Result<()> {
    if wanted.is_nothing() {
        return Ok(());
    }
    let shards: Vec<Box<dyn Shard>> = vec![Box::new(shard.clone())];
    let ways =
        WaysOut::start(ways::Parts { shards, names, mark: None, events: None, shown: None }, ());
    ways.open(wanted).map_err(|error| ways::refuse(&error, code::EXEC_FAILED))?;
    ways.settle();
    Ok(())
}

fn read_policy(args: &ExecArgs, config: &Config) -> anyhow::Result<Policy> {
    let mut paths: Vec<PathBuf> = args.policy.clone();
    if paths.is_empty() {
        paths.extend(config.policy.clone());
    }
    if paths.is_empty() {
        let Named { resolvers, ways } = config.named()?;
        return Ok(Policy::allow_all().with_resolvers(resolvers).with_ways(ways));
    }
    policy_files::load(&paths, config.named()?, code::EXEC_FAILED)
}

fn open_report(file: &Path) -> anyhow::Result<File> {
    File::create(file).map_err(|error| {
        Refusal::new(code::EXEC_FAILED, format!("{}: {error}", file.display())).into()
    })
}

/// What stands for something else inside: port 53, and the `--host-loopback` addresses.
fn services(args: &ExecArgs, nameserver: IpAddr) -> anyhow::Result<Services> {
    let mut loopback = Vec::new();
    for &inside in &args.host_loopback {
        let outside = match inside {
            IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        if inside.is_loopback() || inside.is_unspecified() || inside.is_multicast() {
            return Err(Refusal::new(
                code::EXEC_FAILED,
                format!("--host-loopback {inside}: not an address that can leave the sandbox"),
            )
            .help("choose an unused one, for example 198.18.0.3")
            .into());
        }
        loopback.push((inside, outside));
    }
    let resolver = ResolverService { addresses: vec![nameserver], intercept: true };
    Ok(Services { resolver: Some(resolver), loopback })
}

/// The server to tell programs of: one that the device's addresses can reach, and that is
/// another host to them.
fn inside_dns(config: &Config) -> IpAddr {
    let addresses = &config.device.addresses;
    let reachable = |dns: &IpAddr| {
        addresses.iter().any(|net| net.addr().is_ipv4() == dns.is_ipv4())
            && addresses.iter().all(|net| net.addr() != *dns)
    };
    let wanted = config.dns.addresses.iter().copied();
    wanted.chain(INSIDE_DNS).find(reachable).unwrap_or(INSIDE_DNS[0])
}

/// Whether any device but loopback has an IPv6 address of more than its link.
fn host_has_ipv6() -> bool {
    const GLOBAL: &str = "00";
    let table = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(fields[..], [_, _, _, scope, _, device] if scope == GLOBAL && device != "lo")
    })
}

fn write_reports(
    file: File,
    reports: &Receiver<(usize, Report)>,
    clock: Clock,
) -> std::io::Result<()> {
    let mut writer = Writer::new(BufWriter::new(file), clock);
    // There is one shard.
    while let Ok((_, report)) = reports.recv() {
        writer.write(&report)?;
        while let Ok((_, report)) = reports.try_recv() {
            writer.write(&report)?;
        }
        // A reader that follows the file sees whole lines as they come.
        writer.flush()?;
        std::thread::sleep(GATHER);
    }
    writer.flush()
}

fn write_counters(totals: &Totals) -> anyhow::Result<()> {
    let Some(file) = std::env::var_os(COUNTERS) else { return Ok(()) };
    let counters = &totals.engine;
    let dropped = |counts: &[u64]| -> serde_json::Map<String, serde_json::Value> {
        Dropped::ALL
            .iter()
            .zip(counts)
            .map(|(cause, count)| (cause.name().to_owned(), (*count).into()))
            .collect()
    };
    let object = serde_json::json!({
        "packets_in": counters.packets_in,
        "to_app": counters.to_app,
        "older": counters.older,
        "to_egress": counters.to_egress,
        "to_link": counters.to_link,
        "held": counters.held,
        "dropped": dropped(&counters.dropped),
        "replies_dropped": dropped(&counters.replies_dropped),
        "device_errors": totals.device_errors,
        "panics": totals.panics,
        "reports_lost": totals.reports_lost,
    });
    std::fs::write(&file, format!("{object}\n"))
        .with_context(|| format!("{}", file.to_string_lossy()))
}

fn refuse(error: SpawnError) -> anyhow::Error {
    let refusal = Refusal::new(error.exit_code(), &error);
    match error.help() {
        Some(help) => refusal.help(help).into(),
        None => refusal.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_inside_is_reachable_and_another_host() {
        for (addresses, want) in [
            (&["198.18.0.1/32", "2001:2:0:756e::1/128"][..], "198.18.0.2"),
            (&["198.18.0.2/32"], "198.18.0.3"),
            (&["fd00::1/128"], "2001:2:0:756e::2"),
            (&["2001:2:0:756e::2/128"], "2001:2:0:756e::3"),
        ] {
            let mut config = Config::default();
            config.device.addresses = addresses.iter().map(|a| a.parse().expect("a net")).collect();
            assert_eq!(inside_dns(&config).to_string(), want, "{addresses:?}");
        }
    }
}
