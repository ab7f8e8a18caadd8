//! The links of a captured host: what is bound to one keeps its path, and one that comes while
//! the daemon runs is as good as the others.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use socket2::{Domain, SockRef, Socket, Type};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::daemon::Daemon;
use tests::lab::{Finished, Lab, Netns, Who, host_state, link, plan};
use tests::{require_root, require_tunneld};

/// Refuses whatever is judged.
const BLOCK: &str = "policy 1\ndefault block\n";
const QUICK: Duration = Duration::from_millis(500);

/// What each uplink leads to, at once: on the link itself and behind it.
const REACHED: [(&str, IpAddr); 6] = [
    ("up0", plan::NEAR4),
    ("up0", plan::NEAR6),
    ("up0", plan::GOOD4),
    ("up0", plan::GOOD6),
    ("up1", plan::GOOD4_SECOND),
    ("up1", plan::GOOD6_SECOND),
];

#[test]
fn what_is_bound_to_a_device_keeps_its_path() -> Result<()> {
    require_root!();
    require_tunneld!();
    let named = format!("capture = [\"{}/32\", \"{}/128\"]\n", plan::GOOD4, plan::GOOD6);
    for config in ["capture = \"all\"\n", "capture = \"all\"\nforward = false\n", &named] {
        let lab = Lab::new()?;
        let server = TcpServer::start(&lab.server, 0, page)?;
        let mut daemon = Daemon::start(&lab.host, BLOCK, &format!("[device]\n{config}"))?;
        for alive in [true, false] {
            if !alive {
                daemon.kill()?;
            }
            let case = format!("{config}, alive {alive}");
            for (device, address) in REACHED {
                let open = SocketAddr::new(address, server.port());
                bound(&lab.host, device, open).with_context(|| format!("{case}: {open}"))?;
                let closed = SocketAddr::new(address, plan::CLOSED_PORT);
                let error = bound(&lab.host, device, closed).err().context("nobody listens")?;
                ensure!(error.raw_os_error() == Some(libc::ECONNREFUSED), "{case}: {error}");
            }
            // No route of this device's, as without us. (IPv4 takes it to be on the link.)
            let elsewhere = SocketAddr::new(plan::GOOD6, server.port());
            let error = bound(&lab.host, "up1", elsewhere).err().context("no route")?;
            ensure!(error.raw_os_error() == Some(libc::ENETUNREACH), "{case}: {error}");

            let captured = SocketAddr::new(plan::GOOD4, server.port());
            let error = connect(&lab.host, None, captured).err().context("captured")?;
            let expected = if alive { libc::ECONNREFUSED } else { libc::EHOSTUNREACH };
            ensure!(error.raw_os_error() == Some(expected), "{case}: {error}");
            let tun = connect(&lab.host, Some("tunneld0"), captured).err().context("captured")?;
            let expected = if alive { libc::ECONNREFUSED } else { libc::ENODEV };
            ensure!(tun.raw_os_error() == Some(expected), "{case}: bound to the TUN: {tun}");
        }
    }
    Ok(())
}

/// The socket is connected or not within [`QUICK`].
fn bound(host: &Netns, device: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let began = Instant::now();
    let connected = connect(host, Some(device), to);
    if began.elapsed() > QUICK {
        return Err(io::Error::other(format!("{connected:?} after {:?}", began.elapsed())));
    }
    connected
}

fn connect(host: &Netns, device: Option<&str>, to: SocketAddr) -> io::Result<TcpStream> {
    host.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind_device(device.map(str::as_bytes))?;
        socket.connect_timeout(&to.into(), Duration::from_secs(4))?;
        Ok(socket.into())
    })
}

#[test]
fn programs_that_choose_a_device_get_it() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    for alive in [true, false] {
        if !alive {
            daemon.kill()?;
        }
        for address in [plan::GOOD4, plan::GOOD6] {
            for who in Who::ALL {
                let url = format!("http://{}/", SocketAddr::new(address, server.port()));
                let args = ["-sS", "--max-time", "2", "--interface", "up0", &url];
                let page = lab.host.command("curl").who(who).args(args).run()?;
                ensure!(page.stdout == PAGE, "{who:?}, alive {alive}: {page:?}");
            }
            let to = address.to_string();
            let args = ["-n", "-c", "1", "-W", "1", "-I", "up0", &to];
            let echo = lab.host.command("ping").args(args).run()?;
            ensure!(echo.code() == 0, "alive {alive}: {echo:?}");
            // As systemd-resolved asks a link's own servers.
            let source = lab.host.run(|| unicast_by("up0", address))?;
            let own = if address.is_ipv4() { plan::HOST4 } else { plan::HOST6 };
            ensure!(source == own, "alive {alive}, {address}: {source}");
        }
        multicast(&lab).with_context(|| format!("alive {alive}"))?;
    }
    Ok(())
}

/// The source of a datagram that is to leave by `device` without being bound to it
/// (`IP_UNICAST_IF`, `IPV6_UNICAST_IF`).
fn unicast_by(device: &str, to: IpAddr) -> Result<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    let index = rustix::net::netdevice::name_to_index(&socket, device)?.to_be();
    let (level, option) = if to.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_UNICAST_IF)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF)
    };
    let length = size_of_val(&index) as libc::socklen_t;
    // SAFETY: the option's value is four bytes that live through the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const index).cast(), length)
    };
    ensure!(set == 0, "{}", io::Error::last_os_error());
    socket.connect((to, plan::CLOSED_PORT))?;
    Ok(socket.local_addr()?.ip())
}

/// To a group by a socket that is bound to an uplink.
fn multicast(lab: &Lab) -> Result<()> {
    let group = Ipv4Addr::new(239, 255, 29, 106);
    let IpAddr::V4(near) = plan::NEAR4 else { anyhow::bail!("of IPv4") };
    let listener = lab.server.run(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.join_multicast_v4(&group, &near)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    })?;
    let port = listener.local_addr()?.port();
    lab.host.run(|| -> io::Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        SockRef::from(&socket).bind_device(Some(b"up0"))?;
        socket.send_to(b"all", (group, port))
    })?;
    let (_, from) = listener.recv_from(&mut [0; 8]).context("nothing came")?;
    ensure!(from.ip() == plan::HOST4, "{from}");
    Ok(())
}

/// The addresses of links that come later: this host's ends, and the others'.
const LATE: [[&str; 2]; 2] = [["172.30.1.1", "2001:db8:31::1"], ["172.30.2.1", "2001:db8:32::1"]];

/// Makes two links at once, `late0` and `late1`.
fn two_links(lab: &Lab) -> Result<()> {
    for (number, [v4, v6]) in LATE.into_iter().enumerate() {
        let (near, far) = (format!("late{number}"), format!("later{number}"));
        link(&lab.host, &near, &lab.server, &far, plan::MTU)?;
        let far_end = |address: &str| address.replace(".1.1", ".1.2").replace(".2.1", ".2.2");
        lab.host.ip(&format!(
            "address add {v4}/24 dev {near}\naddress add {v6}/64 dev {near} nodad\n"
        ))?;
        lab.server.ip(&format!(
            "address add {}/24 dev {far}\naddress add {}/64 dev {far} nodad\n",
            far_end(v4),
            v6.replace("::1", "::2")
        ))?;
    }
    Ok(())
}

fn reverse_path(host: &Netns, device: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
    let value = host.run(|| std::fs::read_to_string(&path)).with_context(|| path.clone())?;
    Ok(value.trim().to_owned())
}

fn set_reverse_path(host: &Netns, device: &str, value: &str) -> Result<()> {
    host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), value)
}

/// Waits for what the daemon does by itself.
fn soon(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is()? {
        ensure!(began.elapsed() < Duration::from_secs(3), "not within 3 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What the daemon has warned of that concerns links.
fn complaints(left: &Finished) -> usize {
    let codes = ["host-unwatched", "device-unprepared", "setting-contested"];
    codes.iter().map(|code| left.stderr.matches(code).count()).sum()
}

fn ends_quietly(daemon: &mut Daemon) -> Result<()> {
    let left = daemon.stop()?;
    ensure!(left.code() == 0 && complaints(&left) == 0, "{left:?}");
    Ok(())
}

/// Whether the host is as it was.
fn is_put_back(host: &Netns, before: &str) -> Result<()> {
    let after = host_state::read(host)?;
    ensure!(before == after, "{before}\n{after}");
    Ok(())
}

fn rules(host: &Netns) -> Result<String> {
    Ok(host.output("ip", &["-4", "rule"])? + &host.output("ip", &["-6", "rule"])?)
}

/// By echo and by a connection.
fn reached_from_outside(lab: &Lab, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let echo = ping(&lab.server, address)?;
        ensure!(echo, "no echo of {address}");
        let listener = lab.host.run(|| TcpListener::bind((*address, 0)))?;
        let to = listener.local_addr()?;
        let outside = lab.server.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
        let mut outside = outside.with_context(|| format!("{to}"))?;
        drop(listener.accept()?);
        ensure!(outside.read(&mut [0; 8])? == 0);
    }
    Ok(())
}

fn ping(from: &Netns, to: &str) -> Result<bool> {
    let args = ["-n", "-c", "2", "-i", "0.05", "-W", "1", to];
    Ok(from.command("ping").args(args).run()?.code() == 0)
}

#[test]
fn a_link_that_comes_later_is_reached_from_outside_and_put_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    for rp_filter in ["1", "2"] {
        let lab = Lab::new()?;
        set_reverse_path(&lab.host, "default", rp_filter)?;
        let before = host_state::read(&lab.host)?;
        let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
        two_links(&lab)?;
        reached_from_outside(&lab, LATE.as_flattened()).with_context(|| rp_filter.to_owned())?;
        // As udev does, while the daemon can't see it: the link is deaf.
        daemon.running()?.signal(Signal::STOP)?;
        set_reverse_path(&lab.host, "late0", "1")?;
        lab.host.ip("neigh flush dev late0\n")?;
        lab.server.ip("neigh flush dev later0\n")?;
        ensure!(!ping(&lab.server, LATE[0][0])?, "this test shows nothing");
        daemon.running()?.signal(Signal::CONT)?;
        soon("rp_filter of late0", || Ok(reverse_path(&lab.host, "late0")? == "0"))?;
        reached_from_outside(&lab, LATE.as_flattened()).context("after udev")?;
        lab.host.ip("link set late0 down\nlink set late0 name lan0\nlink set lan0 up\n")?;
        soon("the rules of lan0", || {
            let rules = rules(&lab.host)?;
            Ok(rules.matches("oif lan0").count() == 2 && !rules.contains("oif late0"))
        })?;
        let again = format!("address add {}/64 dev lan0 nodad\n", LATE[0][1]);
        lab.host.ip(&again)?;
        reached_from_outside(&lab, LATE.as_flattened()).context("under another name")?;
        let far: SocketAddr = "172.30.1.2:9".parse()?;
        let error = bound(&lab.host, "lan0", far).err().context("nobody listens")?;
        ensure!(error.raw_os_error() == Some(libc::ECONNREFUSED), "{error}");

        ends_quietly(&mut daemon)?;
        ensure!(reverse_path(&lab.host, "lan0")? == "1");
        ensure!(reverse_path(&lab.host, "late1")? == rp_filter);
        lab.host.ip("link del lan0\nlink del late1\n")?;
        is_put_back(&lab.host, &before).with_context(|| format!("rp_filter {rp_filter}"))?;
    }
    Ok(())
}

/// Links that come before and after a kill -9, one of them set by udev.
#[test]
fn killed_it_leaves_late_links_to_the_next_start() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    set_reverse_path(&lab.host, "default", "2")?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    for round in 0..6 {
        two_links(&lab)?;
        set_reverse_path(&lab.host, "late0", "1")?;
        // From before anything is done for them to after.
        thread::sleep(Duration::from_millis(10 * round));
        daemon.kill()?;
        lab.host.ip("link add late2 type bridge\n")?;
        if round % 2 == 0 {
            daemon.run()?;
            reached_from_outside(&lab, LATE.as_flattened())?;
            daemon.stop()?;
        } else {
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0, "{cleaned:?}");
        }
        for (device, value) in [("late0", "1"), ("late1", "2"), ("late2", "2")] {
            let is = reverse_path(&lab.host, device)?;
            ensure!(is == value, "round {round}: {device} has {is}");
        }
        lab.host.ip("link del late0\nlink del late1\nlink del late2\n")?;
        is_put_back(&lab.host, &before).with_context(|| format!("round {round}"))?;
        daemon.run()?;
    }
    daemon.stop()?;
    Ok(())
}

/// A hundred devices come at once and go, as on a host that starts its containers.
#[test]
fn many_links_come_and_go() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    set_reverse_path(&lab.host, "default", "1")?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    let journal = daemon.files().join("run/journal");
    let length = std::fs::metadata(&journal)?.len();
    for _ in 0..2 {
        let each = |line: &str| -> String {
            (0..50).map(|number| line.replace('N', &number.to_string()) + "\n").collect()
        };
        lab.host.ip(&each("link add cN type veth peer name pN"))?;
        soon("a rule for each", || Ok(rules(&lab.host)?.matches(" oif c").count() == 100))?;
        daemon.status()?;
        lab.host.ip(&each("link del cN"))?;
        soon("none is left", || Ok(!rules(&lab.host)?.contains(" oif c")))?;
        soon("the journal forgets them", || Ok(std::fs::metadata(&journal)?.len() == length))?;
    }
    ends_quietly(&mut daemon)?;
    is_put_back(&lab.host, &before)
}

/// A device that is lent to another network namespace and comes back has what `default` says, and
/// its old index. It is no device that was there all the time.
#[test]
fn a_link_that_was_lent_is_put_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    set_reverse_path(&lab.host, "default", "2")?;
    let before = host_state::read(&lab.host)?;
    link(&lab.host, "lent0", &lab.server, "lender0", plan::MTU)?;
    let index = || -> Result<String> {
        let shown = lab.host.output("ip", &["-o", "link", "show", "lent0"])?;
        Ok(shown.split(':').next().unwrap_or_default().to_owned())
    };
    let was = index()?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    let elsewhere = Netns::new("elsewhere")?;
    for _ in 0..2 {
        ensure!(reverse_path(&lab.host, "lent0")? == "0");
        lab.host.ip(&format!("link set lent0 netns {}\n", elsewhere.path()))?;
        soon("no rule of lent0", || Ok(!rules(&lab.host)?.contains("oif lent0")))?;
        elsewhere.ip(&format!("link set lent0 netns {}\n", lab.host.path()))?;
        soon("rules of lent0", || Ok(rules(&lab.host)?.matches("oif lent0").count() == 2))?;
    }
    ensure!(index()? == was, "this test shows nothing");
    // Within one look. What was there at the start, and is seen to be there still, is another.
    daemon.stop()?;
    set_reverse_path(&lab.host, "lent0", "0")?;
    daemon.run()?;
    daemon.running()?.signal(Signal::STOP)?;
    lab.host.ip(&format!("link set lent0 netns {}\n", elsewhere.path()))?;
    elsewhere.ip(&format!("link set lent0 netns {}\n", lab.host.path()))?;
    ensure!(index()? == was && reverse_path(&lab.host, "lent0")? == "0");
    daemon.running()?.signal(Signal::CONT)?;
    daemon.status()?;
    thread::sleep(Duration::from_millis(500));
    ends_quietly(&mut daemon)?;
    let is = reverse_path(&lab.host, "lent0")?;
    ensure!(is == "2", "lent0 has {is}");
    lab.host.ip("link del lent0\n")?;
    is_put_back(&lab.host, &before)
}

/// The kernel tells nobody that they were set: they are looked at with whatever it tells, and every
/// minute.
#[test]
fn settings_that_nobody_tells_of_are_put_right() -> Result<()> {
    require_root!();
    require_tunneld!();
    const SETTINGS: [&str; 4] = [
        "net/ipv4/conf/all/src_valid_mark",
        "net/ipv4/tcp_fwmark_accept",
        "net/ipv4/fwmark_reflect",
        "net/ipv6/fwmark_reflect",
    ];
    let lab = Lab::new()?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    let value = |key: &str| -> Result<String> {
        let path = format!("/proc/sys/{key}");
        let value =
            lab.host.run(|| std::fs::read_to_string(&path)).with_context(|| path.clone())?;
        Ok(value.trim().to_owned())
    };
    for round in 0..3 {
        for key in SETTINGS {
            ensure!(value(key)? == "1", "{key}");
            lab.host.sysctl(key, "0")?;
        }
        lab.host.ip("link add late0 type bridge\n")?;
        for key in SETTINGS {
            soon(key, || Ok(value(key)? == "1")).with_context(|| format!("round {round}"))?;
        }
        lab.host.ip("link del late0\n")?;
    }
    reached_from_outside(&lab, &["192.0.2.1", "2001:db8:1::1"]).context("and has them")?;
    ends_quietly(&mut daemon)?;
    is_put_back(&lab.host, &before)
}

#[test]
fn without_ipv6_links_are_followed_too() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for name in ["all", "default"] {
        lab.host.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    let server = TcpServer::start(&lab.server, 0, page)?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    bound(&lab.host, "up0", SocketAddr::new(plan::GOOD4, server.port()))?;
    link(&lab.host, "late0", &lab.server, "later0", plan::MTU)?;
    lab.host.ip("address add 172.30.1.1/24 dev late0\n")?;
    lab.server.ip("address add 172.30.1.2/24 dev later0\n")?;
    soon("a rule", || Ok(rules(&lab.host)?.contains("oif late0")))?;
    reached_from_outside(&lab, &["172.30.1.1"])?;
    ends_quietly(&mut daemon)?;
    lab.host.ip("link del late0\n")?;
    is_put_back(&lab.host, &before)
}

/// Something that sets `rp_filter` all the time wins, and is named once.
#[test]
fn a_contested_setting_is_told_once() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let mut daemon = Daemon::start(&lab.host, BLOCK, "")?;
    for round in 0..12 {
        set_reverse_path(&lab.host, "up0", "1")?;
        if round < 5 {
            soon("put right", || Ok(reverse_path(&lab.host, "up0")? == "0"))?;
        }
    }
    thread::sleep(Duration::from_millis(200));
    ensure!(reverse_path(&lab.host, "up0")? == "1");
    let left = daemon.stop()?;
    ensure!(complaints(&left) == 1 && left.stderr.contains("net.ipv4.conf.up0"), "{left:?}");
    ensure!(reverse_path(&lab.host, "up0")? == "1");
    Ok(())
}

/// Behind the first uplink, once there is a route.
const ADDED: [(IpAddr, &str, IpAddr); 2] = [
    (plan::UNROUTED4, "198.51.100.0/24", plan::NEAR4),
    (plan::UNROUTED6, "2001:db8:dead::/64", plan::NEAR6),
];

/// Whoever adds a route by its router alone gets the uplink that the router is behind.
#[test]
fn a_route_without_a_device_finds_its_uplink() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    for (address, prefix, router) in ADDED {
        lab.server.ip(&format!("address add {address} dev lo\n"))?;
        let to = SocketAddr::new(address, server.port());
        let refused = connect(&lab.host, None, to).err().context("no route yet")?;
        ensure!(refused.raw_os_error() == Some(libc::ENETUNREACH), "{to}: {refused}");
        lab.host.ip(&format!("route add {prefix} via {router}\n"))?;
        let _open = connect(&lab.host, None, to).with_context(|| format!("{to}"))?;
        let flows = daemon.json(&["flows"])?;
        let leaves = flows.iter().any(|flow| flow["egress"]["device"] == "up0");
        ensure!(leaves, "{flows:?}");
    }
    ends_quietly(&mut daemon)
}

/// A route that leads our own packets into the TUN is told of, and nothing goes round in it.
#[test]
fn a_route_into_the_tun_is_a_dead_end() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    for (address, prefix, _) in ADDED {
        lab.host.ip(&format!("route add {prefix} dev tunneld0\n"))?;
        soon("a warning", || {
            let said = daemon.running()?.stderr();
            Ok(said.lines().any(|line| line.contains("route-astray") && line.contains(prefix)))
        })?;
        let to = SocketAddr::new(address, plan::CLOSED_PORT);
        let began = Instant::now();
        let error = connect(&lab.host, None, to).err().context("nowhere")?;
        ensure!(error.raw_os_error() == Some(libc::ENETUNREACH), "{to}: {error}");
        ensure!(began.elapsed() < QUICK, "{to}: {:?}", began.elapsed());
        let explained = daemon.json(&["explain", "tcp", "any", &to.to_string()])?;
        let why = explained[0]["unresolved"].as_str().unwrap_or_default();
        ensure!(why.contains("the TUN itself"), "{explained:?}");
    }
    let status = daemon.json(&["status"])?;
    let opened = status[0]["flows_opened"].as_u64();
    ensure!(opened.is_some_and(|opened| opened < 10), "{status:?}");
    let said = daemon.running()?.stderr();
    ensure!(said.matches("route-astray").count() == 2, "{said}");
    ends_quietly(&mut daemon)?;
    is_put_back(&lab.host, &before)
}
