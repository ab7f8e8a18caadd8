//! A whole shard in a namespace: real sockets and routes, the app's side played by hand.

mod links;
mod service;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, sleep, spawn};

use engine::policy::{NoEnvironment, Policy, Source, Verdict};
use engine::{Config, Cut, Own, Reason, Services, Share, Stage};

use super::*;
use crate::device::memory::App;
use crate::device::{Memory, TxOffload};
use crate::driver::request::{Answer, Killed, Limits, Reload};
use crate::namespace;

const SETUP: &str = "
    ip link set lo up
    ip addr add 192.0.2.1/32 dev lo
    ip addr add 192.0.2.2/32 dev lo
    ip addr add 192.0.2.3/32 dev lo
";
/// The one that stays allowed, and the one that gets blocked.
const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const TUN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PATIENCE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits { flows: 1000, memory: 16 << 20 };

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

fn policy(rules: &str) -> Arc<Policy> {
    let text = format!("policy 1\n{rules}\ndefault allow\n");
    let source = Source { name: "test.policy".to_owned(), text };
    Arc::new(Policy::load(&[source], &NoEnvironment).unwrap().0)
}

/// A device whose writes to one client port panic: not the first `skip`, the next `times`.
struct Failing {
    memory: Memory,
    port: u16,
    skip: usize,
    times: usize,
}

impl Device for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<(usize, RxOffload)> {
        self.memory.read(buf)
    }

    fn write(&mut self, packet: &[u8], offload: TxOffload) -> io::Result<()> {
        if client_port(packet) == self.port && self.times > 0 {
            if self.skip == 0 {
                self.times -= 1;
                panic!("injected");
            }
            self.skip -= 1;
        }
        self.memory.write(packet, offload)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn offload(&self) -> bool {
        self.memory.offload()
    }

    fn udp_offload(&self) -> bool {
        self.memory.udp_offload()
    }
}

/// The client's port in a packet for it, or in an ICMP error's quote.
fn client_port(packet: &[u8]) -> u16 {
    let at = if packet[9] == 1 { 48 } else { 22 };
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn config() -> Config {
    Config {
        mtu: 1500,
        offload: true,
        udp_offload: true,
        flows: 1000,
        half_open: 1000,
        own: Own::Every,
        reports: true,
        services: Services::default(),
        share: Share::WHOLE,
        seed: 1,
    }
}

/// What shard 3 is built from, and its reports.
fn parts<D>(
    device: D,
    config: Config,
    policy: Arc<Policy>,
    service: Option<Box<dyn Service>>,
) -> (Parts<D>, Receiver<(usize, Report)>) {
    let (sender, reports) = sync_channel(100_000);
    let parts = Parts {
        device,
        engine: Engine::new(config, policy, Instant::ZERO),
        routes: Routes::open().unwrap(),
        owners: None,
        rings: Pool::new(16 << 20),
        mark: None,
        service,
        shard: 3,
        reports: Some(sender),
    };
    (parts, reports)
}

struct Shard {
    handle: Handle,
    app: App,
    /// Packets for the app that nobody asked for yet.
    kept: Vec<Vec<u8>>,
    thread: JoinHandle<Totals>,
    reports: Receiver<(usize, Report)>,
}

impl Shard {
    fn start(rules: &str, own: Own) -> Self {
        Self::failing(rules, own, (0, 0, 0))
    }

    fn failing(rules: &str, own: Own, (port, skip, times): (u16, usize, usize)) -> Self {
        let (memory, app) = Memory::pair(true).unwrap();
        let config = Config { own, ..config() };
        let (parts, reports) =
            parts(Failing { memory, port, skip, times }, config, policy(rules), None);
        let driver = Driver::new(parts).unwrap();
        let handle = driver.handle();
        let thread = spawn(move || driver.run().unwrap());
        Self { handle, app, kept: Vec::new(), thread, reports }
    }

    fn ask<T: Send + 'static>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Receiver<T> {
        let (sender, answer): (Sender<T>, _) = channel();
        self.handle.ask(request(Box::new(move |it| sender.send(it).unwrap()))).unwrap();
        answer
    }

    fn get<T: Send + 'static>(&self, request: impl FnOnce(Answer<T>) -> Request) -> T {
        self.ask(request).recv_timeout(PATIENCE).expect("an answer")
    }

    fn flows(&self) -> Vec<Report> {
        self.get(|answer| Request::Flows { answer })
    }

    fn status(&self) -> request::Status {
        self.get(|answer| Request::Status { answer })
    }

    fn reload(&self, rules: &str, generation: u64) -> Receiver<Vec<Cut>> {
        self.reload_with(rules, generation, LIMITS)
    }

    fn reload_with(&self, rules: &str, generation: u64, limits: Limits) -> Receiver<Vec<Cut>> {
        let policy = policy(rules);
        self.ask(|answer| {
            Request::Reload(Reload {
                policy,
                generation,
                limits,
                resolver: None,
                ways: None,
                answer,
            })
        })
    }

    fn kill(&self, number: u64, of: Option<u32>) -> Killed {
        self.get(|answer| Request::Kill { number, of, answer })
    }

    /// Waits for the next packet for that client port.
    fn receive(&mut self, port: u16) -> Vec<u8> {
        let began = std::time::Instant::now();
        while began.elapsed() < PATIENCE {
            while let Some((packet, _)) = self.app.receive() {
                self.kept.push(packet);
            }
            if let Some(at) = self.kept.iter().position(|packet| client_port(packet) == port) {
                return self.kept.remove(at);
            }
            sleep(Duration::from_millis(1));
        }
        panic!("no packet for {port}");
    }

    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, protocol: u8, upper: &[u8]) {
        let length = 20 + upper.len() as u16;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.extend(from.ip().octets());
        packet.extend(to.ip().octets());
        let sum = namespace::checksum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(upper);
        let valid = RxOffload { checksum: virtio::Checksum::Valid, gso: None };
        self.app.send(&packet, valid);
    }

    fn datagram(&self, port: u16, to: SocketAddrV4, payload: &[u8]) {
        let mut udp = port.to_be_bytes().to_vec();
        udp.extend(to.port().to_be_bytes());
        udp.extend((8 + payload.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        self.send(SocketAddrV4::new(TUN, port), to, 17, &udp);
    }

    /// Sends a datagram and waits for its echo.
    fn echo(&mut self, port: u16, to: SocketAddrV4) {
        self.datagram(port, to, b"there and back");
        loop {
            let packet = self.receive(port);
            if packet[9] == 17 {
                return assert_eq!(packet[28..], *b"there and back");
            }
        }
    }

    fn stop(self) -> (Totals, Vec<Report>) {
        self.handle.stop();
        let totals = self.thread.join().expect("the shard ended in order");
        let (_, gone) = (self.app, self.handle.ask(Request::Own(Vec::new())));
        assert_eq!(gone, Err(Unasked::Gone));
        let reports = self.reports.iter();
        let reports = reports.inspect(|(shard, _)| assert_eq!(*shard, 3)).map(|(_, r)| r).collect();
        let counters = &totals.engine;
        let outcomes = counters.to_app + counters.to_egress + counters.to_link + counters.held;
        assert_eq!(outcomes + counters.dropped.iter().sum::<u64>(), counters.packets_in);
        (totals, reports)
    }
}

/// The app's end of a connection.
struct Connection {
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
    acknowledgement: u32,
}

impl Connection {
    fn syn(shard: &Shard, from: SocketAddrV4, to: SocketAddrV4) -> Self {
        let mut it = Self { from, to, sequence: 1000, acknowledgement: 0 };
        it.segment(shard, SYN, b"");
        it.sequence += 1;
        it
    }

    fn open(shard: &mut Shard, port: u16, to: SocketAddrV4) -> Self {
        let mut it = Self::syn(shard, SocketAddrV4::new(TUN, port), to);
        it.established(shard);
        it
    }

    fn established(&mut self, shard: &mut Shard) {
        let (flags, sequence, _) = self.receive(shard);
        assert_eq!(flags, SYN | ACK);
        self.acknowledgement = sequence + 1;
        self.segment(shard, ACK, b"");
    }

    fn segment(&self, shard: &Shard, flags: u8, payload: &[u8]) {
        let mut tcp = self.from.port().to_be_bytes().to_vec();
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        shard.send(self.from, self.to, 6, &tcp);
    }

    /// Flags, sequence number and payload of the next segment.
    fn receive(&self, shard: &mut Shard) -> (u8, u32, Vec<u8>) {
        let packet = shard.receive(self.from.port());
        assert_eq!(packet[9], 6, "a segment");
        let tcp = &packet[20..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        (tcp[13], sequence, tcp[usize::from(tcp[12] >> 4) * 4..].to_vec())
    }

    /// Sends bytes and waits for them to come back.
    fn echo(&mut self, shard: &mut Shard) {
        let payload = b"there and back";
        self.segment(shard, ACK | PSH, payload);
        self.sequence += payload.len() as u32;
        let mut all = Vec::new();
        while all.len() < payload.len() {
            let (flags, _, bytes) = self.receive(shard);
            assert_eq!(flags & (FIN | RST), 0);
            self.acknowledgement += bytes.len() as u32;
            all.extend(bytes);
        }
        assert_eq!(all, payload);
        self.segment(shard, ACK, b"");
    }

    /// Waits for a reset.
    fn is_reset(&self, shard: &mut Shard) {
        while self.receive(shard).0 & RST == 0 {}
    }
}

/// A TCP server that sends back what it gets. It tells whom it accepted, and how that ended.
fn tcp_server(ip: Ipv4Addr) -> (SocketAddrV4, Receiver<SocketAddr>, Receiver<io::Result<()>>) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let (accepted, accepts) = channel();
    let (ended, ends) = channel();
    spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = accepted.send(peer);
            let ended = ended.clone();
            spawn(move || {
                let _ = ended.send(send_back(&mut stream));
            });
        }
    });
    (address, accepts, ends)
}

fn send_back(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn udp_server(ip: Ipv4Addr) -> SocketAddrV4 {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let SocketAddr::V4(address) = socket.local_addr().unwrap() else { unreachable!() };
    spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((read, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..read], from);
        }
    });
    address
}

#[test]
fn a_reload_cuts_the_blocked_and_the_others_bytes_go_on() {
    namespace::within(SETUP, || {
        /// Datagram flows, so that the walk has more than one piece.
        const CROWD: u16 = 400;
        let mut shard = Shard::start("allow tcp id first", Own::Every);
        let ((a, ..), (b, _, ends)) = (tcp_server(A), tcp_server(B));
        let sink = udp_server(B);
        let mut stays = Connection::open(&mut shard, 40_001, a);
        let mut goes = Connection::open(&mut shard, 40_002, b);
        stays.echo(&mut shard);
        goes.echo(&mut shard);
        for port in 0..CROWD {
            shard.echo(10_000 + port, sink);
        }
        let status = shard.status();
        assert_eq!((status.generation, status.flows), (1, 402));
        assert!(status.memory > 0 && status.flows_opened == 402 && status.older == 0);

        let rules = "block to 192.0.2.2 id b\nallow tcp id second";
        let changed = shard.get(|answer| Request::Compare {
            policy: policy(rules),
            resolver: None,
            ways: None,
            answer,
        });
        assert_eq!(changed.len(), 401);
        assert!(changed.iter().all(|c| (c.verdict, &*c.rule) == (Verdict::Block, "b")));
        goes.echo(&mut shard);

        let answer = shard.reload(rules, 2);
        stays.echo(&mut shard);
        let cut = answer.recv_timeout(PATIENCE).unwrap();
        stays.echo(&mut shard);
        assert_eq!(cut.len(), 401);
        for Cut { flow: report, .. } in &cut {
            assert_eq!((report.reason, report.generation), (Some(Reason::PolicyChanged), 2));
            assert_eq!(report.rule.as_deref(), Some("b"));
        }
        goes.is_reset(&mut shard);
        let ended = ends.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let icmp = shard.receive(10_000);
        assert_eq!((icmp[9], icmp[20], icmp[21]), (1, 3, 13));
        let [flow] = shard.flows().try_into().expect("one flow");
        assert_eq!((flow.client.port(), flow.generation), (40_001, 2));
        assert_eq!((flow.rule.as_deref(), flow.stage), (Some("second"), Stage::Open));

        // New flows by the new policy, and counted by its rules.
        let refused = Connection::syn(&shard, SocketAddrV4::new(TUN, 40_003), b);
        refused.is_reset(&mut shard);
        shard.datagram(40_004, SocketAddrV4::new(A, 9), b"to nobody");
        let refused = shard.receive(40_004);
        assert_eq!((refused[9], refused[20], refused[21]), (1, 3, 3));
        let hits = shard.get(|answer| Request::Hits { answer });
        let want = [("b", 1), ("second", 0), ("default", 1)].map(|(n, c)| (n.to_owned(), c));
        assert_eq!((hits.generation, &hits.rules[..]), (2, &want[..]));

        let (totals, reports) = shard.stop();
        assert_eq!(totals.panics, 0);
        let cut = reports.iter().filter(|r| r.reason == Some(Reason::PolicyChanged)).count();
        assert_eq!(cut, 401, "reported as well");
    });
}

#[test]
fn fifty_reloads_cut_nobody_whose_verdict_stays() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("allow tcp id first", Own::Every);
        let ((a, ..), c, d) = (tcp_server(A), udp_server(A), udp_server(B));
        let mut stays = Connection::open(&mut shard, 40_001, a);
        for port in 0..300 {
            shard.echo(10_000 + port, c);
        }
        for round in 0..50 {
            // One comes with each even round, and goes with the odd one.
            let rules = if round % 2 == 0 { "allow udp" } else { "block to 192.0.2.2" };
            let answer = shard.reload(&format!("{rules}\nallow id r{round}"), 2 + round);
            stays.echo(&mut shard);
            let cut = answer.recv_timeout(PATIENCE).unwrap();
            assert_eq!(cut.len(), usize::from(round % 2 == 1), "round {round}");
            if round % 2 == 0 {
                shard.echo(20_000, d);
            }
        }
        for port in 0..300 {
            shard.echo(10_000 + port, c);
        }
        let flows = shard.flows();
        assert_eq!(flows.len(), 301);
        assert!(flows.iter().all(|r| r.generation == 51 && r.rule.as_deref() == Some("r49")));
        shard.stop();
    });
}

#[test]
fn the_newest_of_two_reloads_counts() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("allow tcp id first", Own::Every);
        let (a, b) = (udp_server(A), udp_server(B));
        shard.echo(1000, a);
        shard.echo(1001, b);
        let earlier = shard.reload("block to 192.0.2.1", 2);
        let later = shard.reload("block to 192.0.2.2", 3);
        let (earlier, later) =
            (earlier.recv_timeout(PATIENCE).unwrap(), later.recv_timeout(PATIENCE).unwrap());
        let both: Vec<u16> =
            earlier.iter().chain(&later).map(|cut| cut.flow.client.port()).collect();
        // The first may have run to its end before the second came; `a` is judged anew then.
        assert!(both == [1001] || both == [1000, 1001], "{both:?}");
        shard.echo(1000, a);
        assert!(shard.flows().iter().all(|r| r.generation == 3));
        shard.stop();
    });
}

/// Holds a shard up until what is returned is dropped.
fn hold_up(shard: &Shard) -> Sender<()> {
    let (held, (go, wait)) = (channel(), channel::<()>());
    let answer = move |_| {
        held.0.send(()).unwrap();
        let _ = wait.recv();
    };
    shard.handle.ask(Request::Status { answer: Box::new(answer) }).unwrap();
    held.1.recv_timeout(PATIENCE).unwrap();
    go
}

#[test]
fn a_reload_finds_no_queue_full_and_counts_for_the_next_packet() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("", Own::Every);
        let (a, b) = (udp_server(A), udp_server(B));
        shard.echo(1000, a);
        let go = hold_up(&shard);
        let fill = || shard.handle.ask(Request::Own(Vec::new()));
        assert_eq!(std::iter::repeat_with(fill).find_map(Result::err), Some(Unasked::Busy));
        let first = shard.reload("block to 192.0.2.1", 2);
        let second = shard.reload("block to 192.0.2.2 id second", 3);
        assert!(first.try_recv().unwrap().is_empty(), "it never began");
        // It is in the device before the shard knows of the policy.
        shard.datagram(1001, b, b"x");
        drop(go);
        assert!(second.recv_timeout(PATIENCE).unwrap().is_empty());
        shard.receive(1001);
        shard.echo(1000, a);
        assert_eq!(shard.status().generation, 3);
        let (_, reports) = shard.stop();
        let refused: Vec<_> = reports.iter().filter(|r| r.client.port() == 1001).collect();
        assert_eq!((refused[0].rule.as_deref(), refused[0].generation), (Some("second"), 3));
    });
}

#[test]
fn what_is_asked_after_a_reload_was_ordered_is_answered_after_it_began() {
    namespace::within(SETUP, || {
        let shard = Shard::start("", Own::Every);
        for generation in 2..10 {
            let go = hold_up(&shard);
            let reload = shard.reload("", generation);
            let status = shard.ask(|answer| Request::Status { answer });
            drop(go);
            assert_eq!(status.recv_timeout(PATIENCE).unwrap().generation, generation);
            reload.recv_timeout(PATIENCE).unwrap();
        }
        shard.stop();
    });
}

#[test]
fn what_goes_over_all_flows_is_bounded() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("", Own::Every);
        let a = udp_server(A);
        for port in 0..600 {
            shard.echo(1000 + port, a);
        }
        for round in 0..3 {
            let go = hold_up(&shard);
            let answers = std::cell::RefCell::new(Vec::new());
            // Each way of asking until it is refused: how often it was not.
            let most = |request: &dyn Fn(Answer<()>) -> Request| {
                let taken = std::iter::repeat_with(|| {
                    let (sender, answer) = channel();
                    let asked =
                        shard.handle.ask(request(Box::new(move |it| sender.send(it).unwrap())));
                    asked.map(|()| answers.borrow_mut().push(answer))
                });
                let mut count = 0;
                let refused = taken.inspect(|asked| count += usize::from(asked.is_ok()));
                let refused = refused.take(100).find_map(Result::err);
                assert_eq!(refused, Some(Unasked::Busy));
                count
            };
            let list = |done: Answer<()>| Request::Flows {
                answer: Box::new(|flows| {
                    assert_eq!(flows.len(), 600);
                    done(());
                }),
            };
            let hits = |done: Answer<()>| Request::Hits { answer: Box::new(|_| done(())) };
            let kill = |done: Answer<()>| Request::Kill {
                number: 9999,
                of: None,
                answer: Box::new(|killed| {
                    assert_eq!(killed, Killed::NoSuchFlow);
                    done(());
                }),
            };
            assert_eq!(most(&list), queue::WALKS, "round {round}");
            assert_eq!(most(&hits), 0, "lists and counts share their turns");
            assert_eq!(most(&kill), queue::KILLS, "round {round}");
            drop(go);
            let answers = answers.into_inner();
            assert!(answers.iter().all(|answer| answer.recv_timeout(PATIENCE).is_ok()));
        }
        shard.stop();
    });
}

#[test]
fn an_order_ends_a_flow_for_who_may_give_it() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("", Own::Every);
        let (a, _, ends) = tcp_server(A);
        let mut flow = Connection::open(&mut shard, 40_001, a);
        flow.echo(&mut shard);
        assert_eq!(shard.kill(99, None), Killed::NoSuchFlow);
        assert_eq!(shard.kill(1, Some(1000)), Killed::NotYours, "nobody knows whose it is");
        flow.echo(&mut shard);
        assert_eq!(shard.kill(1, None), Killed::Done);
        flow.is_reset(&mut shard);
        assert!(ends.recv_timeout(PATIENCE).unwrap().is_err(), "the far side's end is a reset");
        assert_eq!(shard.kill(1, None), Killed::NoSuchFlow);
        // What it still sends belongs to no flow.
        flow.segment(&shard, ACK, b"x");
        flow.is_reset(&mut shard);
        assert_eq!(shard.status().older, 1);
        let (_, reports) = shard.stop();
        assert_eq!(reports.last().and_then(|r| r.reason), Some(Reason::Killed));
    });
}

#[test]
fn an_app_that_chose_an_address_leaves_with_it() {
    namespace::within(SETUP, || {
        let own = Own::Addresses { device: vec![TUN.into()], host: vec![B.into()] };
        let mut shard = Shard::start("", own);
        let (a, accepts, _) = tcp_server(A);
        let other = Ipv4Addr::new(192, 0, 2, 3);
        for (name, client, source, local) in [
            ("the kernel chooses", TUN, A, true),
            ("the app has chosen", B, B, true),
            ("not known as this host's yet", other, A, false),
        ] {
            let mut flow = Connection::syn(&shard, SocketAddrV4::new(client, 40_001), a);
            flow.established(&mut shard);
            let peer = accepts.recv_timeout(PATIENCE).unwrap();
            assert_eq!(peer.ip(), source, "{name}");
            let report = shard.flows().pop().unwrap();
            assert_eq!((report.local, report.egress.unwrap().address), (local, source.into()));
        }
        shard.handle.ask(Request::Own(vec![B.into(), other.into()])).unwrap();
        let mut flow = Connection::syn(&shard, SocketAddrV4::new(other, 40_002), a);
        flow.established(&mut shard);
        assert_eq!(accepts.recv_timeout(PATIENCE).unwrap().ip(), other);
        shard.stop();
    });
}

/// Datagrams of one batch leave as one message where they can be.
#[test]
fn datagrams_of_a_batch_arrive_as_they_were() {
    namespace::within(SETUP, || {
        let shard = Shard::start("", Own::Every);
        let far = [A, B].map(|ip| UdpSocket::bind((ip, 0)).unwrap());
        let to = [0, 1].map(|n| match far[n].local_addr().unwrap() {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => unreachable!(),
        });
        let take = |n: usize| {
            far[n].set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 2048];
            let length = far[n].recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        for n in [0, 1] {
            shard.datagram(1000, to[n], b"first");
            assert_eq!(take(n), b"first");
        }
        let mut expected = [Vec::new(), Vec::new()];
        let go = hold_up(&shard);
        let lengths = [1400, 1400, 1400, 20, 1400, 0, 7, 7, 7, 8, 8, 1, 1];
        for (number, length) in lengths.into_iter().cycle().take(60).enumerate() {
            // Runs of each, and each in turn.
            let n = if number < 40 { number / 20 } else { number % 2 };
            let payload = vec![number as u8; length];
            shard.datagram(1000, to[n], &payload);
            expected[n].push(payload);
        }
        drop(go);
        for (n, expected) in expected.into_iter().enumerate() {
            for (number, payload) in expected.into_iter().enumerate() {
                assert_eq!(take(n), payload, "{number} to {n}");
            }
        }
        let status = shard.status();
        assert_eq!((status.flows, status.panics), (2, 0));
        shard.stop();
    });
}

/// They were counted as sent when they were read.
#[test]
fn datagrams_of_a_batch_that_do_not_leave_are_told_and_not_counted() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("", Own::Every);
        let (good, bad) = (udp_server(A), udp_server(Ipv4Addr::new(192, 0, 2, 3)));
        shard.echo(1000, good);
        shard.echo(1000, bad);
        namespace::run("ip addr del 192.0.2.3/32 dev lo");
        namespace::run("ip route add prohibit 192.0.2.3/32");
        let go = hold_up(&shard);
        for _ in 0..5 {
            shard.datagram(1000, bad, b"stays here");
        }
        shard.datagram(1000, good, b"goes");
        drop(go);
        let (mut answers, mut errors) = (0, 0);
        while (answers, errors) != (1, 1) {
            let packet = shard.receive(1000);
            match packet[9] {
                17 => answers += usize::from(packet[28..] == *b"goes"),
                _ => errors += usize::from(packet[20] == 3),
            }
        }
        let (totals, reports) = shard.stop();
        assert_eq!((totals.engine.to_egress, totals.engine.to_app), (1, 5));
        let sent = |far: SocketAddrV4| {
            let of = |report: &&Report| report.destination == SocketAddr::V4(far);
            reports.iter().rfind(of).map(|report| report.sent)
        };
        assert_eq!((sent(bad), sent(good)), (Some(14), Some(18)));
    });
}

#[test]
fn limits_change_while_flows_live() {
    namespace::within(SETUP, || {
        let mut shard = Shard::start("", Own::Every);
        let (a, ..) = tcp_server(A);
        let mut older = Connection::open(&mut shard, 40_001, a);
        older.echo(&mut shard);
        let few = Limits { flows: 8, memory: 1024 };
        shard.reload_with("", 2, few).recv_timeout(PATIENCE).unwrap();
        let refused = Connection::syn(&shard, SocketAddrV4::new(TUN, 40_002), a);
        refused.is_reset(&mut shard);
        older.is_reset(&mut shard);
        let more = Limits { flows: 8, ..LIMITS };
        shard.reload_with("", 3, more).recv_timeout(PATIENCE).unwrap();
        Connection::open(&mut shard, 40_003, a).echo(&mut shard);
        let sink = udp_server(A);
        for port in 0..12 {
            shard.echo(1000 + port, sink);
        }
        assert_eq!(shard.status().flows, 8);
        shard.stop();
    });
}

#[test]
fn a_panic_ends_one_flow_wherever_it_happens() {
    namespace::within(SETUP, || {
        const BAD: u16 = 50_000;
        for (name, tcp, rules, skip, times) in [
            ("TCP: the far side has accepted", true, "", 0, 1),
            ("TCP: the far side has accepted, and the reset panics", true, "", 0, 2),
            ("TCP: bytes move", true, "", 1, 1),
            ("TCP: bytes move, and the reset panics", true, "", 1, 2),
            ("TCP: refused", true, "block tcp to 192.0.2.2", 0, 1),
            ("UDP: a reply", false, "", 0, 1),
            ("UDP: the second reply", false, "", 1, 1),
            ("UDP: refused", false, "block udp to 192.0.2.2", 0, 1),
        ] {
            let mut shard = Shard::failing(rules, Own::Every, (BAD, skip, times));
            let ((a, ..), (b, _, ends)) = (tcp_server(A), tcp_server(B));
            let (c, d) = (udp_server(A), udp_server(B));
            let mut good = Connection::open(&mut shard, 40_001, a);
            good.echo(&mut shard);
            shard.echo(40_002, c);
            if tcp {
                let from = SocketAddrV4::new(TUN, BAD);
                let mut bad = Connection::syn(&shard, from, b);
                if skip > 0 {
                    bad.established(&mut shard);
                    bad.segment(&shard, ACK | PSH, b"x");
                }
                if rules.is_empty() {
                    assert!(ends.recv_timeout(PATIENCE).unwrap().is_err(), "{name}: a reset");
                    if times == 1 {
                        bad.is_reset(&mut shard);
                    }
                }
            } else {
                for _ in 0..=skip {
                    shard.datagram(BAD, d, b"x");
                }
                for _ in 0..skip {
                    assert_eq!(shard.receive(BAD)[28..], *b"x", "{name}");
                }
            }
            let began = std::time::Instant::now();
            while shard.status().panics < times as u64 && began.elapsed() < PATIENCE {
                sleep(Duration::from_millis(1));
            }
            good.echo(&mut shard);
            shard.echo(40_002, c);
            let ports: Vec<u16> = shard.flows().iter().map(|r| r.client.port()).collect();
            assert_eq!(ports, [40_001, 40_002], "{name}");
            assert_eq!(shard.status().flows, 2, "{name}");
            // The same port is a new flow, which nothing is wrong with.
            if tcp && rules.is_empty() {
                Connection::open(&mut shard, BAD, b).echo(&mut shard);
            } else if !tcp && rules.is_empty() {
                shard.echo(BAD, c);
            }
            let (totals, _) = shard.stop();
            assert_eq!(totals.panics, times as u64, "{name}");
        }
    });
}
