//! Every packet ends in exactly one counted outcome: the sum of the outcomes is
//! the number of packets read.

use anyhow::{Context, Result, ensure};
use tests::endpoints::tcp::{echo, source};
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::counters::sum;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

#[test]
fn the_outcomes_add_up_to_the_packets() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let source = TcpServer::start(&lab.server, 0, source(2_000_000))?;
    let echo = TcpServer::start(&lab.server, 0, echo)?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD6, 0)?;
    let script = format!(
        "set -e
         \"$PROBE\" download 203.0.113.1 {source}
         \"$PROBE\" reset 2001:db8:f1::1 {echo}
         \"$PROBE\" connect 203.0.113.1 9
         \"$PROBE\" connect 203.0.113.11 80
         \"$PROBE\" connect 203.0.113.20 80 300
         \"$PROBE\" connect 203.0.113.129 80
         \"$PROBE\" udp-echo 2001:db8:f1::1 {udp} 50 1000
         \"$PROBE\" udp-echo 2001:db8:f1::1 {udp} 5 4000
         \"$PROBE\" udp-segments 2001:db8:f1::1 {udp} 10 1200
         \"$PROBE\" udp 203.0.113.1 9
         \"$PROBE\" bad-packets 1 2000
         ping -n -c 2 -i 0.2 203.0.113.1
         ping -n -c 1 -W 1 203.0.113.13 || :",
        source = source.port(),
        echo = echo.port(),
        udp = udp.port(),
    );
    let seen = lab
        .exec("sh")
        .policy("block to 203.0.113.128/25\ndefault allow")
        .args(["-c", &script])
        .run()?
        .success()?;
    let counters = seen.counters.as_ref().context("TUNNELD_COUNTERS was not written")?;
    // The device's queue holds 1,000: on a busy machine the kernel drops the rest of a burst.
    ensure!(counters["packets_in"].as_u64() > Some(1_000), "{counters:#}");
    for outcome in ["to_app", "to_egress"] {
        ensure!(counters[outcome].as_u64() > Some(0), "{outcome} expected: {counters:#}");
    }
    ensure!(sum(&counters["dropped"])? > 0, "bad packets are dropped: {counters:#}");
    Ok(())
}
