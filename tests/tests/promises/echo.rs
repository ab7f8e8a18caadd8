//! ping(8) through `exec`, IPv4 and IPv6, with and without rights.

use anyhow::{Result, ensure};
use tests::lab::{Lab, Way, Who, plan};
use tests::{require_root, require_tunneld};

const PING: [&str; 7] = ["-n", "-c", "3", "-i", "0.2", "-W", "2"];

#[test]
fn echoes_are_answered() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    // What a host says that lets everybody ping.
    lab.host.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    for who in Who::ALL {
        for address in [plan::GOOD4, plan::GOOD6, plan::NEAR4, plan::NEAR6] {
            let seen = lab.exec("ping").who(who).args(PING).arg(address).run()?.success()?;
            ensure!(
                seen.stdout().contains("3 packets transmitted, 3 received"),
                "{who:?} {address}: {seen:#?}"
            );
        }
    }
    Ok(())
}

#[test]
fn large_echoes_are_answered() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for address in [plan::GOOD4, plan::GOOD6] {
        for size in ["0", "1400", "4000"] {
            let seen =
                lab.exec("ping").args(PING).args(["-s", size]).arg(address).run()?.success()?;
            ensure!(seen.stdout().contains("3 received"), "{address}, {size} bytes: {seen:#?}");
        }
    }
    Ok(())
}

#[test]
fn silence_and_a_block_are_no_answer() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let one = ["-n", "-c", "1", "-W", "1"];
    for address in [plan::SILENT4, plan::SILENT6] {
        let seen = lab.exec("ping").args(one).arg(address).run()?.code(1)?;
        ensure!(seen.stdout().contains("1 packets transmitted, 0 received"), "{seen:#?}");
    }
    if Way::of_this_run() == Way::Kernel {
        return Ok(());
    }
    for address in [plan::GOOD4, plan::GOOD6] {
        let seen = lab
            .exec("ping")
            .policy("block icmp\ndefault allow")
            .args(one)
            .arg(address)
            .run()?
            .code(1)?;
        // ping(8)'s words for admin-prohibited, both families.
        let told = seen.stdout().contains("filtered") || seen.stdout().contains("prohibited");
        ensure!(told, "{address}: {seen:#?}");
    }
    Ok(())
}

#[test]
fn a_host_that_lets_nobody_ping_is_told_once() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    lab.host.sysctl("net/ipv4/ping_group_range", "1 0")?;
    let seen = lab.exec("ping").who(Who::Nobody).args(PING).arg(plan::GOOD4).run()?.code(1)?;
    let unsupported = seen.flows()?.iter().any(|flow| flow["reason"] == "unsupported");
    ensure!(unsupported, "reason `unsupported` expected: {seen:#?}");
    let told = seen.finished.stderr.matches("ping_group_range").count();
    ensure!(told == 1, "said once expected: {seen:#?}");
    Ok(())
}
