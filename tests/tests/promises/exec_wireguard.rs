//! `tunneld exec` through WireGuard: no root, no interface of the kernel. The far end is Debian's
//! wireguard-go; behind it is a host that the near one has no other way to.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::wireguard::{End, WireguardGo, ends, everything, interface};
use tests::endpoints::{TcpServer, UdpServer};
use tests::lab::capture::Capture;
use tests::lab::frame::Frame;
use tests::lab::{Exec, Outcome, Who};
use tests::{require_root, require_tunneld};

/// A host behind the far end.
const FAR4: &str = "203.0.113.9";
const FAR6: &str = "2001:db8:f::9";
const ROUTED: &str = "route via wg0\ndefault allow";

/// The near end without WireGuard, and the far one with it.
struct Pair {
    near: End,
    far: End,
    theirs: WireguardGo,
    config: String,
}

impl Pair {
    fn new(outer_v6: bool) -> Result<Self> {
        let (near, far) = ends()?;
        let theirs = WireguardGo::start(&far, &[near.peer(None, None)])?;
        far.netns.ip(&format!("addr add {FAR4}/32 dev lo\naddr add {FAR6}/128 dev lo nodad\n"))?;
        let peer = everything(far.peer(Some(far.outer(outer_v6)), None));
        let config = interface("wg0", &near, "", &[peer]);
        Ok(Self { near, far, theirs, config })
    }

    fn exec(&self, who: Who, program: &str) -> Exec<'_> {
        Exec::new(&self.near.netns, program).who(who).policy(ROUTED).config_of_owner(&self.config)
    }

    /// The address that the far side sees.
    fn inside(&self, v6: bool) -> IpAddr {
        self.near.inner(v6)
    }
}

fn far(v6: bool) -> IpAddr {
    if v6 { FAR6 } else { FAR4 }.parse().expect("an address")
}

/// What is on the cable that is neither ours to the other end nor of the link itself.
fn beside_the_tunnel(frame: &Frame) -> bool {
    let outer = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [192, 0, 2],
        IpAddr::V6(v6) => v6.segments()[..4] == [0x2001, 0xdb8, 0, 0] || v6.is_unicast_link_local(),
    };
    match frame {
        Frame::Arp { target, .. } => !outer(&IpAddr::V4(*target)),
        Frame::Solicitation { target, .. } => !outer(&IpAddr::V6(*target)),
        Frame::Ip { destination, .. } if destination.is_multicast() => false,
        Frame::Ip { source, destination, .. } => !outer(source) || !outer(destination),
        Frame::Other => false,
    }
}

fn is_outer(frame: &Frame) -> bool {
    matches!(frame, Frame::Ip { ports: Some((a, b)), .. } if *a == 51_820 || *b == 51_820)
}

/// A report of a flow through the tunnel.
fn through(flow: &Value, pair: &Pair, v6: bool) -> Result<()> {
    let inside = pair.inside(v6).to_string();
    let port = &flow["egress"]["port"];
    let source = match port.as_u64() {
        Some(port) => SocketAddr::new(pair.inside(v6), u16::try_from(port)?).to_string(),
        None => inside.clone(),
    };
    ensure!(
        flow["via"] == "wg0"
            && flow["egress"]["address"] == *inside
            && flow["egress"]["device"] == "wg0"
            && flow["egress"]["underlay"] == "u0"
            && flow["source"] == *source,
        "through wg0 from {source} expected: {flow:#}"
    );
    Ok(())
}

fn the_flow(seen: &Outcome, to: IpAddr) -> Result<Value> {
    let flows = seen.flows()?;
    let is_to = |flow: &&Value| {
        let text = flow["destination"].as_str().unwrap_or_default();
        text.parse::<SocketAddr>().map(|a| a.ip()).or_else(|_| text.parse()).ok() == Some(to)
    };
    flows.iter().find(is_to).cloned().with_context(|| format!("no flow to {to}: {flows:#?}"))
}

#[test]
fn everything_goes_through_the_tunnel_as_anybody() -> Result<()> {
    require_root!();
    require_tunneld!();
    for (who, outer_v6) in [(Who::Nobody, false), (Who::Root, true)] {
        let pair = Pair::new(outer_v6)?;
        let server = TcpServer::start(&pair.far.netns, 0, page)?;
        let beside = Capture::start(&pair.far.netns, "u0", beside_the_tunnel)?;
        let outer = Capture::start(&pair.far.netns, "u0", is_outer)?;
        for v6 in [false, true] {
            let case = format!("{who:?}, outer v6 {outer_v6}, inner v6 {v6}");
            let url = format!("http://{}/", SocketAddr::new(far(v6), server.port()));
            let curl = ["-sS", "--max-time", "10", "-g"];
            let seen = pair.exec(who, "curl").args(curl).arg(url).run()?.success()?;
            ensure!(seen.stdout() == PAGE, "{case}: {seen:#?}");
            through(&the_flow(&seen, far(v6))?, &pair, v6)?;

            let udp = UdpServer::echo(&pair.far.netns, far(v6), 0)?;
            let (to, port) = (far(v6).to_string(), udp.port().to_string());
            let seen = pair.exec(who, "probe").args(["udp", &to, &port]).run()?.success()?;
            through(&the_flow(&seen, far(v6))?, &pair, v6)?;
            ensure!(udp.peers().iter().all(|peer| peer.ip() == pair.inside(v6)), "{case}");
            ensure!(udp.received() == 1, "{case}: {seen:#?}");

            let ping = ["-n", "-c", "3", "-i", "0.2", "-W", "3", &to];
            let seen = pair.exec(who, "ping").args(ping).run()?.success()?;
            ensure!(seen.stdout().contains(" 0% packet loss"), "{case}: {seen:#?}");
            through(&the_flow(&seen, far(v6))?, &pair, v6)?;
        }
        for session in server.sessions(2)? {
            let peer = session.peer.ip();
            ensure!(peer == pair.inside(peer.is_ipv6()), "{peer} came");
        }
        ensure!(outer.finish()?.matched > 0, "the tunnel's own packets are seen");
        let beside = beside.finish()?;
        ensure!(beside.matched == 0, "beside the tunnel: {beside:#?}");
        // The control: without the tunnel such a packet is seen.
        let control = Capture::start(&pair.far.netns, "u0", beside_the_tunnel)?;
        pair.near.netns.ip(&format!("route add {FAR4}/32 via {}\n", pair.far.outer(false).ip()))?;
        let direct = Exec::new(&pair.near.netns, "ping").args(["-c", "1", "-W", "3", FAR4]);
        direct.run()?.success()?;
        control.wait_for_one()?;
        drop(pair.theirs);
    }
    Ok(())
}

#[test]
fn a_rule_about_the_egress_blocks_before_any_outer_byte() -> Result<()> {
    require_root!();
    require_tunneld!();
    let pair = Pair::new(false)?;
    let server = TcpServer::start(&pair.far.netns, 0, page)?;
    let (to, port) = (FAR4, server.port().to_string());
    let inside = pair.inside(false).to_string();
    for rule in [
        format!("block from {inside}"),
        "block egress wg0".to_owned(),
        format!("block egress {inside}"),
        "block via wg0".to_owned(),
    ] {
        let outer = Capture::start(&pair.far.netns, "u0", is_outer)?;
        let policy = format!("route via wg0\n{rule}\ndefault allow");
        let exec = || pair.exec(Who::Nobody, "probe").policy(&policy);
        let seen = exec().args(["connect", to, &port]).run()?.success()?;
        ensure!(seen.json()?["errno"] == "ECONNREFUSED", "{rule}: {seen:#?}");
        let flow = seen.flow_to(far(false), server.port())?;
        ensure!(
            flow["verdict"] == "block"
                && flow["via"] == "wg0"
                && flow["source"] == *inside
                && flow["egress"]["device"] == "wg0",
            "{rule}: {flow:#}"
        );
        let outer = outer.finish()?;
        ensure!(outer.matched == 0, "{rule}: {outer:#?}");
    }
    // The control: what is allowed is seen.
    let outer = Capture::start(&pair.far.netns, "u0", is_outer)?;
    pair.exec(Who::Nobody, "probe").args(["connect", to, &port]).run()?.success()?;
    outer.wait_for_one()?;
    Ok(())
}
