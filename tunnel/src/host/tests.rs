//! The host in network namespaces of its own, with another machine on a veth.

use super::*;
use crate::device::open_tun;
use crate::namespace::{await_local, checksum, run, within};
use engine::DeviceName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod links;
mod standing;
mod undo;

const TUN: &str = "t0";
const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// The host's other addresses.
const OTHER: &str = "192.0.2.77";
const OTHER6: &str = "2001:db8::77";
/// Behind the machine outside.
const FAR: [&str; 2] = ["203.0.113.9", "2001:db8:f::9"];

/// Another machine: a network namespace that lives as long as this.
struct Machine(Child);

impl Machine {
    fn new() -> Self {
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let child = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self(child);
        while std::fs::read_link(machine.namespace()).unwrap() == own {
            std::thread::sleep(Duration::from_millis(2));
        }
        machine.run("ip link set lo up");
        machine
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn run(&self, line: &str) {
        run(&format!("nsenter --net={} {line}", self.namespace()));
    }

    fn succeeds(&self, line: &str) -> bool {
        let words = line.split_whitespace();
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace()))
            .args(words)
            .output()
            .unwrap();
        output.status.success()
    }

    /// Runs `body` in a thread there.
    fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                body()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This namespace as a host with an uplink `u0`, and the machine at its other end.
fn host_and_outside(reverse_path: &str) -> Machine {
    let outside = Machine::new();
    run("ip link set lo up");
    run(&format!("ip link add u0 type veth peer name p0 netns {}", outside.0.id()));
    for (name, value) in [("all", reverse_path), ("default", reverse_path), ("u0", "0")] {
        sysctl::write(&format!("ipv4/conf/{name}/rp_filter"), value).unwrap();
    }
    for (at, prefix) in [(0, 24), (1, 64)] {
        run(&format!("ip addr add {}/{prefix} dev u0 {}", HOST[at], ["", "nodad"][at]));
        outside.run(&format!("ip addr add {}/{prefix} dev p0 {}", OUTSIDE[at], ["", "nodad"][at]));
        outside.run(&format!("ip addr add {} dev lo", FAR[at]));
    }
    run("ip link set u0 addrgenmode none");
    outside.run("ip link set p0 addrgenmode none");
    run("ip link set u0 up");
    outside.run("ip link set p0 up");
    for address in OUTSIDE {
        run(&format!("ip route add default via {address}"));
    }
    outside.run(&format!("ip route add default via {}", HOST[0]));
    outside.run(&format!("ip -6 route add default via {}", HOST[1]));
    await_local(HOST[1]);
    outside.inside(|| await_local(OUTSIDE[1]));
    await_carrier("u0");
    // Until then its routes are down.
    assert!(outside.succeeds(&format!("ping -c 1 -W 5 {}", HOST[0])), "the link carries");
    outside
}

/// Waits until the kernel says that a link is up, which a busy machine does late: two readings of
/// [`state`] would differ in that.
fn await_carrier(device: &str) {
    for _ in 0..1000 {
        let output = Command::new("ip").args(["link", "show", device]).output().unwrap();
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{device} has no carrier");
}

fn plan(capture: Capture) -> Plan {
    Plan {
        addresses: vec!["198.18.0.1/32".parse().unwrap(), "2001:2:0:756e::1/128".parse().unwrap()],
        capture,
        local: vec!["br-*".to_owned(), "docker0".to_owned()],
        ..Plan::new(DeviceName::new(TUN).unwrap())
    }
}

/// The two forms of the table, and the one becoming the other on a live host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Untracked,
    Tracked,
    Switched,
}

impl Form {
    const ALL: [Self; 3] = [Self::Untracked, Self::Tracked, Self::Switched];

    /// Opens the TUN and applies the plan in this form.
    fn start(self, directory: &Directory, plan: Plan) -> (Host, OwnedFd) {
        let (mut host, tun) = start(directory, &Plan { tracks: self == Self::Tracked, ..plan });
        if self == Self::Switched {
            host.track().unwrap();
        }
        (host, tun)
    }
}

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens the TUN and applies the plan.
fn start(directory: &Directory, plan: &Plan) -> (Host, OwnedFd) {
    let (mut host, _) = Host::open(&directory.0).unwrap();
    host.refuse_foreign(plan).unwrap();
    let tun = open_tun(TUN, false, false).unwrap();
    let changes = changes(plan, &Seen::look().unwrap());
    host.apply(changes).unwrap();
    if !plan.addresses.is_empty() {
        await_local("2001:2:0:756e::1");
    }
    (host, tun)
}

/// All of this host that the plan may touch.
fn state() -> String {
    let mut state = String::new();
    for line in [
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "ip -details addr",
        "nft list ruleset",
    ] {
        let mut words = line.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        state += &format!("== {line}\n{}", String::from_utf8_lossy(&output.stdout));
    }
    for (key, value) in Seen::look().unwrap().settings {
        state += &format!("{key} = {value}\n");
    }
    state
}

/// The next packet of the TUN that `wanted` wants; the others are passed over.
fn packet(tun: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let end = Instant::now() + Duration::from_secs(3);
    let mut buffer = [0; 2048];
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(tun, PollFlags::IN)];
        if poll(&mut fds, Some(&left)).unwrap() == 0 {
            return None;
        }
        let length = rustix::io::read(tun, &mut buffer[..]).unwrap();
        if wanted(&buffer[..length]) {
            return Some(buffer[..length].to_vec());
        }
    }
}

/// A TCP segment or datagram of `protocol` from an address to an address.
fn is(packet: &[u8], protocol: u8, from: &str, to: &str) -> bool {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (at, number) = if from.is_ipv4() { (12, 9) } else { (8, 6) };
    let length = octets(from).len();
    packet[0] >> 4 == if length == 4 { 4 } else { 6 }
        && packet[number] == protocol
        && packet[at..at + length] == octets(from)
        && packet[at + length..at + 2 * length] == octets(to)
}

const TCP: u8 = 6;
const UDP: u8 = 17;

fn connect(to: SocketAddr, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

fn echo(one: &mut TcpStream, other: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    one.write_all(b"?")?;
    other.read_exact(&mut byte)?;
    other.write_all(b"!")?;
    one.read_exact(&mut byte)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream
}

#[test]
fn the_host_is_reached_from_outside_with_the_device_alive_and_dead() {
    within("", || {
        for form in Form::ALL {
            for reverse_path in ["0", "1", "2"] {
                the_host_is_reached(form, reverse_path);
            }
        }
    });
}

fn the_host_is_reached(form: Form, reverse_path: &str) {
    let outside = host_and_outside(reverse_path);
    run(&format!("ip addr add {OTHER} dev u0"));
    run(&format!("ip addr add {OTHER6} dev u0 nodad"));
    let listener = TcpListener::bind("[::]:80").unwrap();
    let directory = Directory::new(&format!("inbound-{reverse_path}-{form:?}"));
    // Connections from before: they go on.
    let mut old: Vec<(TcpStream, TcpStream)> = HOST
        .iter()
        .map(|host| {
            let to = SocketAddr::new(host.parse().unwrap(), 80);
            let there = outside.inside(|| connect(to, None)).unwrap();
            (there, accept(&listener))
        })
        .collect();
    let (host, tun) = form.start(&directory, plan(Capture::All));
    let mut tun = Some(tun);
    for alive in [true, false] {
        let case = format!("{form:?}, rp_filter {reverse_path}, alive {alive}");
        outside.run("ip neigh flush all");
        run("ip neigh flush all");
        for (there, here) in &mut old {
            echo(there, here).unwrap_or_else(|error| panic!("{case}: {error}"));
            echo(here, there).unwrap_or_else(|error| panic!("{case}: {error}"));
        }
        for address in HOST {
            assert!(
                outside.succeeds(&format!("ping -c 1 -W 2 {address}")),
                "{case}: ping {address}"
            );
            let to = SocketAddr::new(address.parse().unwrap(), 80);
            let mut there = outside.inside(|| connect(to, None)).expect(&case);
            let mut here = accept(&listener);
            echo(&mut there, &mut here).expect(&case);
            let closed = SocketAddr::new(address.parse().unwrap(), 81);
            let refused = outside.inside(|| connect(closed, None)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{case}");
        }
        // Without a mark of its own a socket has no route without the device.
        if alive {
            others_are_answered(&outside, &case);
        }
        tun = None;
    }
    drop(tun);
    host.restore().unwrap();
    run("ip link del u0");
}

/// Servers whose sockets get no mark of ours.
fn others_are_answered(outside: &Machine, case: &str) {
    let hosts = [[HOST[0], OTHER], [HOST[1], OTHER6]];
    let hosts = hosts.map(|hosts| hosts.map(|host| host.parse::<IpAddr>().unwrap()));
    for (any, hosts) in ["0.0.0.0", "::"].into_iter().zip(hosts) {
        let any = SocketAddr::new(any.parse().unwrap(), 0);
        let client = outside.inside(|| UdpSocket::bind(any).unwrap());
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // On one address, and on a wildcard socket, asked at both addresses from the same port.
        let bound = UdpSocket::bind((hosts[0], 54)).unwrap();
        let wildcard = UdpSocket::bind(SocketAddr::new(any.ip(), 53)).unwrap();
        let asked = [(&bound, hosts[0]), (&wildcard, hosts[0]), (&wildcard, hosts[1])];
        for (server, to) in asked.into_iter().cycle().take(6) {
            let to = SocketAddr::new(to, server.local_addr().unwrap().port());
            client.send_to(b"question", to).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            // An answer may be more than one.
            for _ in 0..2 {
                server.send_to(b"answer", from).unwrap();
                let (length, from) = client.recv_from(&mut buffer).expect(case);
                assert_eq!((&buffer[..length], from), (&b"answer"[..], to), "{case}");
            }
        }

        // A server's own mark goes over to its connections.
        let marked = Socket::new(Domain::for_address(any), Type::STREAM, None).unwrap();
        marked.set_mark(5).unwrap();
        marked.set_reuse_address(true).unwrap();
        marked.bind(&SocketAddr::new(any.ip(), 82).into()).unwrap();
        marked.listen(1).unwrap();
        let marked = TcpListener::from(marked);
        let to = SocketAddr::new(hosts[0], 82);
        let mut there = outside.inside(|| connect(to, None)).expect(case);
        echo(&mut there, &mut accept(&marked)).expect(case);

        // A protocol without ports.
        let raw = |at: IpAddr, to: IpAddr| {
            let kind = Some(socket2::Protocol::from(253));
            let socket = Socket::new(Domain::for_address(any), Type::RAW, kind).unwrap();
            socket.bind(&SocketAddr::new(at, 0).into()).unwrap();
            socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        let peer = OUTSIDE[usize::from(any.is_ipv6())].parse().unwrap();
        let here = raw(hosts[0], peer);
        let there = outside.inside(|| raw(peer, hosts[0]));
        for (one, other) in [(&there, &here), (&here, &there)] {
            one.send(b"a word").unwrap();
            assert!((&*other).read(&mut [0; 64]).expect(case) > 0, "{case}");
        }
    }
}

#[test]
fn own_connections_are_captured_and_marked_ones_are_not() {
    within("", || Form::ALL.into_iter().for_each(own_connections_are_captured));
}

fn own_connections_are_captured(form: Form) {
    let outside = host_and_outside("2");
    let servers: Vec<TcpListener> =
        outside.inside(|| FAR.iter().map(|far| TcpListener::bind((*far, 443)).unwrap()).collect());
    let to = FAR.map(|far| SocketAddr::new(far.parse().unwrap(), 443));
    // Own connections from before.
    let mut old: Vec<(TcpStream, TcpStream)> =
        (0..2).map(|at| (connect(to[at], None).unwrap(), accept(&servers[at]))).collect();
    let directory = Directory::new(&format!("own-{form:?}"));
    let (host, tun) = form.start(&directory, plan(Capture::All));
    for (at, own) in ["198.18.0.1", "2001:2:0:756e::1"].into_iter().enumerate() {
        let far = FAR[at];
        let socket = Socket::new(Domain::for_address(to[at]), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _in_progress = socket.connect(&to[at].into());
        let syn = packet(&tun, |packet| is(packet, TCP, own, far));
        assert!(syn.is_some(), "{far}: the SYN comes out of the TUN");

        let mut marked = connect(to[at], Some(Mark::DEFAULT.value | 5)).unwrap();
        let mut there = accept(&servers[at]);
        echo(&mut marked, &mut there).unwrap();
        echo(&mut there, &mut marked).unwrap();

        // What an old own connection sends is captured, and the far side's next segment
        // doesn't make it one from outside.
        let (here, there) = &mut old[at];
        for _ in 0..2 {
            there.write_all(b"late").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            here.write_all(b"old").unwrap();
            let segment = packet(&tun, |packet| is(packet, TCP, HOST[at], far));
            assert!(segment.is_some(), "{far}: an old connection's segment");
        }
        there.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(there.read(&mut [0; 8]).is_err(), "{far}: nothing of it left by the uplink");
    }
    drop(tun);
    for to in to {
        let begin = Instant::now();
        let error = connect(to, None).unwrap_err();
        assert!(begin.elapsed() < Duration::from_millis(100), "{to}: at once");
        let errno = Errno::from_io_error(&error);
        assert_eq!(errno, Some(Errno::HOSTUNREACH), "{to}: {error}");
        connect(to, Some(Mark::DEFAULT.value)).unwrap();
    }
    host.restore().unwrap();
    for to in to {
        connect(to, None).unwrap();
    }
    run("ip link del u0");
}

#[test]
fn sources_are_checked_as_the_kernel_did() {
    within("", || {
        let expected = [("0", [true, true]), ("1", [false, false]), ("2", [true, false])];
        for (form, (reverse_path, passes)) in
            Form::ALL.into_iter().flat_map(|form| expected.map(|case| (form, case)))
        {
            let outside = host_and_outside(reverse_path);
            run("ip link add d0 type veth peer name d1");
            run("ip link set d0 up");
            run("ip link set d1 up");
            // One source that is another device's, one that is nobody's.
            run("ip route add 10.99.0.0/24 dev d0");
            run("ip route del default");
            for address in ["10.99.0.1", "10.98.0.1"] {
                outside.run(&format!("ip addr add {address}/32 dev lo"));
            }
            let server = UdpSocket::bind("192.0.2.1:53").unwrap();
            let hears = |limit| {
                server.set_read_timeout(Some(Duration::from_millis(limit))).unwrap();
                server.recv(&mut [0; 16]).is_ok()
            };
            let directory = Directory::new(&format!("spoof-{reverse_path}-{form:?}"));
            let heard = |case: &str| {
                // First, so that ARP doesn't ask in a false one's name.
                outside.inside(|| {
                    let client = UdpSocket::bind(("192.0.2.2", 0)).unwrap();
                    client.send_to(b"true", "192.0.2.1:53").unwrap();
                });
                assert!(hears(2000), "{form:?}, rp_filter {reverse_path}, {case}");
                for (address, passes) in ["10.99.0.1", "10.98.0.1"].into_iter().zip(passes) {
                    outside.inside(|| {
                        let client = UdpSocket::bind((address, 0)).unwrap();
                        client.send_to(b"spoofed", "192.0.2.1:53").unwrap();
                    });
                    let heard = hears(300);
                    assert_eq!(
                        heard, passes,
                        "{form:?}, rp_filter {reverse_path}, {case}: {address}"
                    );
                }
            };
            heard("the kernel");
            let (host, tun) = form.start(&directory, plan(Capture::All));
            heard("the device alive");
            // The device's own address is nobody's outside.
            outside.run("ip route add 198.18.0.1 via 192.0.2.1");
            assert!(!outside.succeeds("ping -c 1 -W 1 198.18.0.1"));
            drop(tun);
            heard("the device dead");
            host.restore().unwrap();
            heard("the kernel again");
            run("ip link del u0");
            run("ip link del d0");
        }
    });
}

/// A bridge with a machine behind it, as a container engine makes it.
fn container() -> Machine {
    let machine = Machine::new();
    for line in [
        "ip link add br-x type bridge",
        "ip addr add 172.20.0.1/24 dev br-x",
        "ip link set br-x up",
        &format!("ip link add v0 type veth peer name e0 netns {}", machine.0.id()),
        "ip link set v0 master br-x",
        "ip link set v0 up",
        "nft add table ip nat",
        "nft add chain ip nat post { type nat hook postrouting priority srcnat ; }",
        "nft add rule ip nat post ip saddr 172.20.0.0/24 oifname != br-x masquerade",
        "nft add chain ip nat pre { type nat hook prerouting priority dstnat ; }",
        "nft add rule ip nat pre fib daddr type local tcp dport 8080 dnat to 172.20.0.2:80",
    ] {
        run(line);
    }
    machine.run("ip addr add 172.20.0.2/24 dev e0");
    machine.run("ip link set e0 up");
    machine.run("ip route add default via 172.20.0.1");
    sysctl::write("ipv4/ip_forward", "1").unwrap();
    machine
}

/// What is said of a packet whose hops end at this host.
fn told_of_the_last_hop(machine: &Machine) -> String {
    let arguments = ["ping", "-c", "1", "-W", "2", "-t", "1", "203.0.113.9"];
    let output = Command::new("nsenter")
        .arg(format!("--net={}", machine.namespace()))
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn containers_are_captured_with_their_own_addresses_and_reached_from_outside() {
    within("", || {
        for reverse_path in ["0", "1", "2"] {
            let outside = host_and_outside(reverse_path);
            let inner = container();
            let published = inner.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
            let at_host: SocketAddr = "192.0.2.1:8080".parse().unwrap();
            let mut old = (outside.inside(|| connect(at_host, None)).unwrap(), accept(&published));
            let directory = Directory::new(&format!("bridge-{reverse_path}"));
            let (host, tun) = start(&directory, &plan(Capture::All));
            // Out: to the TUN, unchanged; and back.
            let client = inner.inside(|| {
                let client = UdpSocket::bind("172.20.0.2:5000").unwrap();
                client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                client.send_to(b"question", "203.0.113.9:53").unwrap();
                client
            });
            let asked = packet(&tun, |packet| is(packet, UDP, "172.20.0.2", "203.0.113.9"));
            let asked = asked.expect("the container's datagram with its own address");
            rustix::io::write(&tun, &answer(&asked, b"answer")).unwrap();
            let mut buffer = [0; 16];
            let (length, from) = client.recv_from(&mut buffer).expect("an answer");
            assert_eq!(
                (&buffer[..length], from.to_string()),
                (&b"answer"[..], "203.0.113.9:53".to_owned())
            );
            inner.inside(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let far: SocketAddr = "203.0.113.9:443".parse().unwrap();
                let _in_progress = socket.connect(&far.into());
                let syn = packet(&tun, |packet| is(packet, TCP, "172.20.0.2", "203.0.113.9"));
                assert!(syn.is_some(), "the container's SYN");
            });
            // In.
            let mut tun = Some(tun);
            for alive in [true, false] {
                let case = format!("rp_filter {reverse_path}, alive {alive}");
                echo(&mut old.0, &mut old.1).expect(&case);
                let mut there = outside.inside(|| connect(at_host, None)).expect(&case);
                let mut here = accept(&published);
                echo(&mut there, &mut here).expect(&case);
                // What this host itself says of a captured packet goes back to where that came
                // from. Once: the kernel gives one address one error a second and a few ahead.
                if reverse_path == "0" && alive {
                    let told = told_of_the_last_hop(&inner);
                    assert!(told.contains("From 172.20.0.1"), "{case}: {told}");
                }
                // By its own address, where the network outside routes that here.
                let direct: SocketAddr = "172.20.0.2:80".parse().unwrap();
                let mut there = outside.inside(|| connect(direct, None)).expect(&case);
                let mut here = accept(&published);
                echo(&mut there, &mut here).expect(&case);
                tun = None;
            }
            drop(tun);
            // Captured, and nobody there: it is told at once.
            if reverse_path == "0" {
                let far: SocketAddr = "203.0.113.9:443".parse().unwrap();
                let error = inner.inside(|| connect(far, None)).unwrap_err();
                assert_eq!(Errno::from_io_error(&error), Some(Errno::HOSTUNREACH), "{error}");
            }
            host.restore().unwrap();
            run("ip link del u0");
            run("ip link del v0");
            run("ip link del br-x");
            run("nft delete table ip nat");
        }
    });
}

/// Whoever begins to forward masquerades as well, and a rule that is judged by a container's
/// address must not be judged by ours.
#[test]
fn nothing_is_forwarded_into_the_device_before_addresses_are_kept() {
    within("", || {
        let _outside = host_and_outside("0");
        let directory = Directory::new("begins");
        let (mut host, tun) = Form::Untracked.start(&directory, plan(Capture::All));
        let inner = container();
        let say = |word: &[u8]| {
            let client = inner.inside(|| UdpSocket::bind("172.20.0.2:0").unwrap());
            client.send_to(word, "203.0.113.9:53").unwrap();
        };
        assert!(inner.succeeds("ping -c 1 -W 5 172.20.0.1"), "the bridge carries");
        say(b"first");
        std::thread::sleep(Duration::from_millis(100));
        host.track().unwrap();
        say(b"second");
        let heard = packet(&tun, |packet| packet[0] >> 4 == 4 && packet[9] == UDP);
        let heard = heard.expect("a datagram");
        assert!(is(&heard, UDP, "172.20.0.2", "203.0.113.9"));
        assert_eq!(&heard[28..], b"second");
        host.restore().unwrap();
    });
}

#[test]
fn forwarded_traffic_is_left_alone_without_forward() {
    within("", || {
        let outside = host_and_outside("2");
        let inner = container();
        let server = outside.inside(|| TcpListener::bind("203.0.113.9:443").unwrap());
        let directory = Directory::new("forward");
        let plan = Plan { forward: false, ..plan(Capture::All) };
        let (host, tun) = start(&directory, &plan);
        let far: SocketAddr = "203.0.113.9:443".parse().unwrap();
        let mut there = inner.inside(|| connect(far, None)).unwrap();
        let mut here = accept(&server);
        echo(&mut there, &mut here).unwrap();
        assert_eq!(here.peer_addr().unwrap().ip().to_string(), HOST[0], "masqueraded");
        let mut marked = connect(far, Some(Mark::DEFAULT.value)).unwrap();
        echo(&mut marked, &mut accept(&server)).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _in_progress = socket.connect(&far.into());
        assert!(packet(&tun, |packet| is(packet, TCP, "198.18.0.1", "203.0.113.9")).is_some());
        host.restore().unwrap();
    });
}

/// The datagram over IPv4 that answers `packet`.
fn answer(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut reply = packet[..28].to_vec();
    reply.extend_from_slice(payload);
    let length = reply.len() as u16;
    reply[2..4].copy_from_slice(&length.to_be_bytes());
    reply[8] = 64;
    reply[10..12].fill(0);
    reply[12..16].copy_from_slice(&packet[16..20]);
    reply[16..20].copy_from_slice(&packet[12..16]);
    let header = checksum(&reply[..20], 0);
    reply[10..12].copy_from_slice(&header.to_be_bytes());
    reply[20..22].copy_from_slice(&packet[22..24]);
    reply[22..24].copy_from_slice(&packet[20..22]);
    reply[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    // No checksum, as IPv4 allows.
    reply[26..28].fill(0);
    reply
}
