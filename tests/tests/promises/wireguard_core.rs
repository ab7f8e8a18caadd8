//! Our WireGuard, driven by a small pump between a TUN and the interface, speaks with
//! Debian's wireguard-go: both IP versions inside and outside, either side first, real TCP.

use anyhow::{Context, Result, ensure};
use tests::endpoints::wireguard::{End, ends};
use tests::endpoints::{Pump, WireguardGo};
use tests::lab::Finished;
use tests::{require_root, require_tunneld};
use tunnel::link::wireguard::{LinkDropped, PresharedKey};

/// Bits a second of TCP from `client` to `server`, or the other way.
fn iperf(client: &End, server: &End, v6: bool, down: bool, seconds: &str) -> Result<f64> {
    let listener = server.netns.command("iperf3").args(["-s", "-1", "--forceflush"]).spawn()?;
    listener.wait_for("listening")?;
    let to = server.inner(v6).to_string();
    let args = ["-c", &to, "-J", "-t", seconds];
    let done: Finished =
        client.netns.command("iperf3").args(args).args(down.then_some("-R")).run()?;
    ensure!(done.code() == 0, "{done:?}");
    let report: serde_json::Value = serde_json::from_str(&done.stdout)?;
    report["end"]["sum_received"]["bits_per_second"].as_f64().context("no figure")
}

#[test]
fn heavy_wireguard_go_and_we_understand_each_other() -> Result<()> {
    require_root!();
    require_tunneld!();
    for (outer_v6, we_begin) in [(false, true), (true, false)] {
        let (a, b) = ends()?;
        let shared = PresharedKey::from_bytes(&[9; 32]).filter(|_| we_begin);
        let (to_a, to_b) = (
            a.peer((!we_begin).then(|| a.outer(outer_v6)), shared.clone()),
            b.peer(we_begin.then(|| b.outer(outer_v6)), shared),
        );
        let _theirs = WireguardGo::start(&b, std::slice::from_ref(&to_a))?;
        let ours = Pump::start(&a, to_b.clone())?;
        let (first, other) = if we_begin { (&a, &b) } else { (&b, &a) };
        for v6 in [false, true] {
            first.ping(other.inner(v6), &["-c", "1"])?;
            other.ping(first.inner(v6), &["-c", "200", "-i", "0.002", "-s", "1300"])?;
            for down in [false, true] {
                let rate = iperf(&a, &b, v6, down, "1")?;
                println!(
                    "outer v6 {outer_v6}, inner v6 {v6}, down {down}: {:.2} Gbit/s",
                    rate / 1e9
                );
                ensure!(rate > 20e6, "{rate} bit/s");
            }
        }
        let totals = ours.stop()?;
        let came = [
            LinkDropped::Malformed,
            LinkDropped::Stranger,
            LinkDropped::Replayed,
            LinkDropped::Forged,
            LinkDropped::InnerMalformed,
            LinkDropped::NotAllowed,
            LinkDropped::Refused,
            LinkDropped::SocketFull,
        ];
        for cause in came {
            ensure!(totals.dropped(cause) == 0, "{}: {totals:?}", cause.name());
        }
        ensure!(totals.handshakes >= 1, "{totals:?}");
        // Batches, in figures: a system call carries many datagrams.
        ensure!(totals.sends * 4 < totals.datagrams_out, "{totals:?}");
        println!("{totals:?}");
        if we_begin {
            // A new process of ours: its handshake is newer than the last one they took.
            let again = Pump::start(&a, to_b)?;
            a.ping(b.inner(false), &["-c", "1"])?;
            ensure!(again.stop()?.handshakes == 1, "not by its own handshake");
        }
    }
    Ok(())
}
