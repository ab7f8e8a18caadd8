//! A resolver behind a real TUN device, asked by real sockets: a small one, whose answers the
//! name that is asked for decides.

mod figures;
mod stress;

use std::net::{Ipv6Addr, Shutdown};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use engine::{Dropped, Learned, ResolverService, ResolverSet, Via};

use super::*;
use crate::device::{Gso, GsoKind, Tun, open_tun};
use crate::driver::request::Reload;
use crate::driver::service::{Asked, Asker, HEADER, Names, OPEN, OUTBOXES, Over, Reply, Service};
use crate::owner::open_diagnostics;

const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const TUN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const UPSTREAM: ResolverSet = ResolverSet::from_bits(1);
/// The answer to everything.
const TOLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A question for the A record of `name`, whose first label says what is made of it.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(address.octets());
    answer
}

/// Id and address of an answer.
fn told(answer: &[u8]) -> (u16, Ipv4Addr) {
    assert_eq!(answer[2] & 0x80, 0x80, "an answer");
    let last: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
    (u16::from_be_bytes([answer[0], answer[1]]), last.into())
}

fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
    let framed = messages.iter().flat_map(|message| {
        (message.len() as u16).to_be_bytes().into_iter().chain(message.iter().copied())
    });
    framed.collect()
}

/// The answers in a stream that has ended.
fn unframed(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        messages.push(rest[..length].to_vec());
        stream = &rest[length..];
    }
    assert!(stream.is_empty());
    messages
}

/// Where questions wait that are answered later, and how many were asked in all.
#[derive(Debug, Default)]
struct Desk {
    later: Mutex<Vec<(Asker, Vec<u8>)>>,
    asked: AtomicUsize,
}

#[derive(Debug)]
struct Small(Arc<Desk>);

impl Service for Small {
    fn ask(&mut self, asker: Asker, query: &[u8], names: &dyn Names, room: &mut Vec<u8>) -> Asked {
        assert!(asker.shard == 3 && query.len() >= HEADER && room.is_empty());
        let client = asker.client.ip();
        assert!(client == IpAddr::from(TUN) || client == IpAddr::from(TUN_V6));
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let length = query.get(HEADER).map_or(0, |length| usize::from(*length));
        match query.get(HEADER + 1..HEADER + 1 + length) {
            Some(b"now") => room.extend(answer(query, TOLD)),
            Some(b"big") => {
                room.extend(answer(query, TOLD));
                room.resize(65_535, 7);
            }
            Some(b"newest") => {
                let is = names.is_newest("learned.test", &[(TOLD.into(), UPSTREAM)]);
                let address = if is { TOLD } else { Ipv4Addr::UNSPECIFIED };
                room.extend(answer(query, address));
            }
            Some(b"later") => {
                self.0.later.lock().unwrap().push((asker, query.to_vec()));
                return Asked::Later;
            }
            Some(b"panic") => panic!("injected"),
            Some(_) | None => return Asked::Refused,
        }
        Asked::Answered
    }
}

impl Desk {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits until so many questions are open, and takes them.
    fn take(&self, count: usize) -> Vec<(Asker, Vec<u8>)> {
        wait_for("open questions", || self.later.lock().unwrap().len() >= count);
        std::mem::take(&mut *self.later.lock().unwrap())
    }
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(1));
    }
}

fn reply_to((asker, query): &(Asker, Vec<u8>)) -> Reply {
    let (flow, ticket) = (asker.flow, asker.ticket);
    Reply { flow, ticket, bytes: answer(query, TOLD), learned: None }
}

/// A shard behind the device of this namespace.
struct Host {
    handle: Handle,
    desk: Arc<Desk>,
    thread: JoinHandle<Totals>,
    reports: Receiver<(usize, Report)>,
}

impl Host {
    fn start() -> Option<Self> {
        Self::with(Config { services: services(), ..config() }, true)
    }

    /// `None`, and said, where this user may open no device.
    fn with(config: Config, serves: bool) -> Option<Self> {
        let device = match open_tun("t0", true, false) {
            Ok(queue) => Tun::adopt(queue).unwrap(),
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        for line in [
            "ip link set lo up",
            "ip addr add 198.18.0.1/32 dev t0",
            "ip link set t0 up",
            "ip route add default dev t0",
        ] {
            namespace::run(line);
        }
        let desk = Arc::new(Desk::default());
        let service = serves.then(|| Box::new(Small(Arc::clone(&desk))) as Box<dyn Service>);
        let config =
            Config { offload: device.offload(), udp_offload: device.udp_offload(), ..config };
        let (mut parts, reports) = parts(device, config, policy(""), service);
        parts.owners = Some(open_diagnostics().and_then(Owners::new).unwrap());
        let driver = Driver::new(parts).unwrap();
        let handle = driver.handle();
        let named = std::thread::Builder::new().name("shard".to_owned());
        let thread = named.spawn(move || driver.run().unwrap()).unwrap();
        Some(Self { handle, desk, thread, reports })
    }

    fn ask<T: Send + 'static>(&self, request: impl FnOnce(Answer<T>) -> Request) -> T {
        ask(&self.handle, request)
    }

    fn status(&self) -> request::Status {
        self.ask(|answer| Request::Status { answer })
    }

    fn reload(&self, rules: &str, generation: u64) -> Vec<Report> {
        let policy = policy(rules);
        let cut: Vec<Cut> = self.ask(|answer| {
            Request::Reload(Reload {
                policy,
                generation,
                limits: LIMITS,
                resolver: None,
                ways: None,
                answer,
            })
        });
        cut.into_iter().map(|cut| cut.flow).collect()
    }

    fn flows(&self) -> Vec<Report> {
        self.ask(|answer| Request::Flows { answer })
    }

    fn kill(&self, number: u64) {
        self.ask(|answer| Request::Kill { number, of: None, answer });
    }

    fn reply(&self, question: &(Asker, Vec<u8>)) {
        self.handle.reply(reply_to(question)).unwrap();
    }

    /// What was counted, and every flow's end.
    fn stop(self) -> (Totals, Vec<Report>) {
        self.handle.stop();
        let totals = self.thread.join().expect("the shard ended in order");
        let reports = self.reports.iter().map(|(_, report)| report);
        let counters = &totals.engine;
        let outcomes = counters.to_app + counters.to_egress + counters.to_link + counters.held;
        assert_eq!(outcomes + counters.dropped.iter().sum::<u64>(), counters.packets_in);
        (totals.clone(), reports.filter(|report| report.stage == Stage::Closed).collect())
    }
}

fn ask<T: Send + 'static>(handle: &Handle, request: impl FnOnce(Answer<T>) -> Request) -> T {
    let (sender, answer): (Sender<T>, _) = channel();
    handle.ask(request(Box::new(move |it| sender.send(it).unwrap()))).unwrap();
    answer.recv_timeout(PATIENCE).expect("an answer")
}

fn services() -> Services {
    let addresses = vec![RESOLVER.into(), RESOLVER_V6.into()];
    let resolver = ResolverService { addresses, intercept: true };
    Services { resolver: Some(resolver), ..Services::default() }
}

fn unsolicited(totals: &Totals) -> u64 {
    totals.engine.replies_dropped[Dropped::Unsolicited as usize]
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind((TUN, 0)).unwrap();
    socket.connect((RESOLVER, 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> io::Result<(u16, Ipv4Addr)> {
    let mut buffer = [0; 2048];
    socket.recv(&mut buffer).map(|length| told(&buffer[..length]))
}

fn tcp() -> TcpStream {
    let stream = TcpStream::connect((RESOLVER, 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn next_answer(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Asks in a connection and gives the id of the next answer.
fn exchange(stream: &mut TcpStream, questions: &[Vec<u8>]) -> u16 {
    stream.write_all(&framed(questions)).unwrap();
    told(&next_answer(stream).unwrap()).0
}

#[test]
fn datagrams_are_answered_at_once_later_or_never() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        let names = ["now.test", "never.test", "later.test", "now"];
        let (one, other) = (udp(), udp());
        for socket in [&one, &other] {
            for (id, name) in (1..).zip(names) {
                socket.send(&query(id, name)).unwrap();
            }
            // Too short to be asked.
            socket.send(b"x").unwrap();
            socket.send(b"").unwrap();
            assert_eq!(receive(socket).unwrap(), (1, TOLD));
            assert_eq!(receive(socket).unwrap(), (4, TOLD));
        }
        let later = host.desk.take(2);
        let asker = later[0].0;
        assert_eq!((asker.over, asker.client), (Over::Udp, one.local_addr().unwrap()));
        assert_eq!(asker.destination, SocketAddr::from((RESOLVER, 53)));
        // The second one first.
        later.iter().rev().for_each(|question| host.reply(question));
        assert_eq!(receive(&other).unwrap(), (3, TOLD));
        assert_eq!(receive(&one).unwrap(), (3, TOLD));
        // Any other address answers as well, and as itself.
        let elsewhere = UdpSocket::bind((TUN, 0)).unwrap();
        elsewhere.set_read_timeout(Some(PATIENCE)).unwrap();
        elsewhere.send_to(&query(9, "now"), (A, 53)).unwrap();
        let mut buffer = [0; 512];
        let (length, from) = elsewhere.recv_from(&mut buffer).unwrap();
        assert_eq!((told(&buffer[..length]).0, from), (9, SocketAddr::from((A, 53))));

        assert_eq!(host.desk.asked(), 9);
        let (totals, ends) = host.stop();
        assert_eq!((totals.panics, ends.len()), (0, 3));
        for report in &ends {
            assert_eq!(
                (report.via.clone(), report.egress, report.egress_port),
                (Via::Dns, None, None)
            );
            assert_eq!(report.owner.as_ref().map(|owner| owner.uid), Some(0));
        }
        let first = ends.iter().find(|report| report.client == asker.client).unwrap();
        assert_eq!((first.packets_sent, first.packets_received), (6, 3));
        let sent: usize = names.iter().map(|name| query(0, name).len()).sum();
        let received: usize = [0, 2, 3].map(|at| query(0, names[at]).len() + 16).iter().sum();
        assert_eq!((first.sent, first.received), (sent as u64 + 1, received as u64));
    });
}

#[test]
fn over_ipv6_as_well() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        namespace::run("ip -6 addr add fd00::1/128 dev t0 nodad");
        namespace::run("ip -6 route add default dev t0");
        namespace::await_local("fd00::1");
        let socket = UdpSocket::bind((TUN_V6, 0)).unwrap();
        socket.connect((RESOLVER_V6, 53)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(&query(1, "now")).unwrap();
        assert_eq!(receive(&socket).unwrap(), (1, TOLD));
        let mut stream = TcpStream::connect((RESOLVER_V6, 53)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let asked = [query(2, "big"), query(3, "now")];
        stream.write_all(&framed(&asked)).unwrap();
        assert_eq!(next_answer(&mut stream).unwrap().len(), 65_535);
        assert_eq!(exchange(&mut stream, &[]), 3);
        let refused = TcpStream::connect((RESOLVER_V6, 853)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        host.stop();
    });
}

#[test]
fn each_part_of_a_super_datagram_is_a_question() {
    namespace::within("", || {
        let (memory, app) = Memory::pair(true).unwrap();
        let config = Config { services: services(), ..config() };
        let service = Box::new(Small(Arc::default()));
        let (parts, reports) = parts(memory, config, policy(""), Some(service));
        let driver = Driver::new(parts).unwrap();
        let handle = driver.handle();
        let thread = spawn(move || driver.run().unwrap());
        let step = query(1, "now.test").len() as u16;
        let queries: Vec<u8> = (1..=3).flat_map(|id| query(id, "now.test")).collect();
        let total = 28 + queries.len() as u16;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet.extend([TUN.octets(), RESOLVER.octets()].concat());
        let sum = namespace::checksum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend([0x9c, 0x40, 0, 53]);
        packet.extend((total - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(queries);
        let gso = Some(Gso { kind: GsoKind::UdpL4, size: step });
        app.send(&packet, RxOffload { checksum: virtio::Checksum::Partial, gso });
        let mut ids = Vec::new();
        wait_for("three answers", || {
            ids.extend(app.receive().map(|(packet, _)| told(&packet[28..]).0));
            ids.len() == 3
        });
        assert_eq!(ids, [1, 2, 3]);
        handle.stop();
        thread.join().unwrap();
        let (_, last) = reports.iter().last().unwrap();
        assert_eq!((last.packets_sent, last.packets_received), (1, 3));
    });
}

#[test]
fn a_connection_asks_many_and_answers_come_in_any_order() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        let mut stream = tcp();
        let names = ["later.one", "now", "later.two", "now"];
        let asked: Vec<_> = (1..).zip(names).map(|(id, name)| query(id, name)).collect();
        assert_eq!(exchange(&mut stream, &asked), 2);
        assert_eq!(exchange(&mut stream, &[]), 4);
        let later = host.desk.take(2);
        assert_eq!(later[0].0.over, Over::Tcp);
        for question in later.iter().rev() {
            host.reply(question);
            // Not open any more: dropped.
            host.reply(question);
        }
        assert_eq!(exchange(&mut stream, &[]), 3);
        assert_eq!(exchange(&mut stream, &[]), 1);

        // In pieces of a byte.
        for byte in framed(&[query(5, "now"), query(6, "now")]) {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(exchange(&mut stream, &[]), 5);
        assert_eq!(exchange(&mut stream, &[]), 6);

        // Who has ended its half still gets what it asked for, and then the end; a piece of a
        // question was none.
        let asked = [query(7, "later.end"), query(8, "never"), query(9, "now")];
        stream.write_all(&[framed(&asked), vec![0, 40, 1]].concat()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told(&next_answer(&mut stream).unwrap()).0, 9);
        let later = host.desk.take(1);
        sleep(Duration::from_millis(50));
        host.reply(&later[0]);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(told(&unframed(&rest)[0]).0, 7);
        wait_for("the end", || host.status().flows == 0);
        let (totals, ends) = host.stop();
        assert_eq!((totals.panics, ends.len()), (0, 1));
        let end = &ends[0];
        assert_eq!((end.reason, end.via.clone()), (Some(Reason::AppClosed), Via::Dns));
        assert_eq!((end.egress, end.egress_port), (None, None));
        assert!(end.sent > 0 && end.received > 0);
    });
}

#[test]
fn open_questions_are_bounded_and_none_is_lost() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        const COUNT: u16 = 5 * OPEN as u16;
        let mut stream = tcp();
        let asked: Vec<Vec<u8>> = (0..COUNT).map(|id| query(id, "later.on")).collect();
        stream.write_all(&framed(&asked)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        for round in 1..=5 {
            let open = host.desk.take(OPEN);
            sleep(Duration::from_millis(20));
            assert_eq!((open.len(), host.desk.asked()), (OPEN, round * OPEN));
            open.iter().for_each(|question| host.reply(question));
        }
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let mut ids: Vec<u16> = unframed(&all).iter().map(|answer| told(answer).0).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..COUNT).collect::<Vec<_>>());
        host.stop();
    });
}

#[test]
fn answers_that_nobody_reads_stop_the_questions() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        /// Of the largest size: more than all the buffers on their way hold.
        const COUNT: u16 = 200;
        let mut stream = tcp();
        let mut writer = stream.try_clone().unwrap();
        let asked: Vec<Vec<u8>> = (0..COUNT).map(|id| query(id, "big.one")).collect();
        let writing = spawn(move || writer.write_all(&framed(&asked)));
        let mut before = 0;
        wait_for("a standstill", || {
            sleep(Duration::from_millis(100));
            std::mem::replace(&mut before, host.desk.asked()) == before && before > 0
        });
        assert!(before < usize::from(COUNT), "{before} were asked");
        assert_eq!(exchange(&mut tcp(), &[query(1, "now")]), 1, "nobody else waits");
        for id in 0..COUNT {
            let answer = next_answer(&mut stream).unwrap();
            assert_eq!((answer.len(), &answer[..2]), (65_535, &id.to_be_bytes()[..]));
        }
        writing.join().unwrap().unwrap();
        host.stop();
    });
}

#[test]
fn who_leaves_too_much_unread_is_reset() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        /// Each answered with 64 KiB at once, more than all buffers for them may hold.
        const CONNECTIONS: usize = 2 * OUTBOXES / (OPEN * 65_537);
        let mut unread = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = tcp();
            let asked: Vec<Vec<u8>> = (0..OPEN as u16).map(|id| query(id, "later")).collect();
            stream.write_all(&framed(&asked)).unwrap();
            for question in host.desk.take(OPEN) {
                let bytes = vec![0; 65_535];
                host.handle.reply(Reply { bytes, ..reply_to(&question) }).unwrap();
            }
            unread.push(stream);
        }
        let mut good = tcp();
        for id in 0..100 {
            assert_eq!(exchange(&mut good, &[query(id, "now")]), id);
        }
        drop(good);
        let whole = |stream: &mut TcpStream| (0..OPEN).all(|_| next_answer(stream).is_ok());
        let whole = unread.iter_mut().map(whole).filter(|whole| *whole).count();
        assert!(whole > 0 && whole < CONNECTIONS, "{whole} of {CONNECTIONS}");
        host.stop();
    });
}

#[test]
fn what_is_no_message_resets_the_connection() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        for (name, bytes) in [
            ("no length", vec![0, 0]),
            ("less than a header", vec![0, 11]),
            ("after a question", [framed(&[query(1, "never")]), vec![0, 3, 1, 2, 3]].concat()),
        ] {
            let mut stream = tcp();
            assert_eq!(exchange(&mut stream, &[query(7, "now")]), 7, "{name}");
            stream.write_all(&bytes).unwrap();
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
            wait_for("the end", || host.status().flows == 0);
        }
        let (_, ends) = host.stop();
        let reasons: Vec<_> = ends.iter().map(|report| report.reason).collect();
        assert_eq!(reasons, [Some(Reason::FarReset); 3]);
    });
}

#[test]
fn a_service_that_panics_ends_the_asking_flow() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        let (good, mut also_good, mut bad) = (udp(), tcp(), tcp());
        assert_eq!(exchange(&mut also_good, &[query(1, "now")]), 1);
        let asked = [query(1, "now"), query(2, "later"), query(3, "panic")];
        bad.write_all(&framed(&asked)).unwrap();
        let error = bad.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let bad = udp();
        bad.send(&query(1, "panic")).unwrap();
        bad.send(&query(2, "now")).unwrap();
        assert_eq!(receive(&bad).unwrap(), (2, TOLD), "a new flow of the same port");
        good.send(&query(3, "now")).unwrap();
        assert_eq!(receive(&good).unwrap(), (3, TOLD));
        assert_eq!(exchange(&mut also_good, &[query(4, "now")]), 4);
        host.reply(&host.desk.take(1)[0]);
        assert_eq!(host.status().panics, 2);
        let (totals, ends) = host.stop();
        let broken = ends.iter().filter(|r| r.reason == Some(Reason::Internal)).count();
        assert_eq!((broken, unsolicited(&totals)), (2, 1), "its reply finds nobody");
    });
}

#[test]
fn without_a_service_its_port_is_closed() {
    namespace::within("", || {
        let config = Config { services: services(), ..config() };
        let Some(host) = Host::with(config, false) else { return };
        let refused = TcpStream::connect((RESOLVER, 53)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let socket = udp();
        socket.send(&query(1, "now")).unwrap();
        assert_eq!(receive(&socket).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        host.stop();
    });
}

#[test]
fn a_shard_knows_names_before_the_app_has_their_answer() {
    namespace::within("", || {
        let learned = |name: &str| -> Arc<[Learned]> {
            let (name, addresses) = (name.into(), vec![(TOLD.into(), UPSTREAM)]);
            Arc::new([Learned { name, addresses, ttl: Duration::from_secs(60) }])
        };
        let Some(host) = Host::start() else { return };
        let socket = udp();
        let newest = || {
            socket.send(&query(1, "newest")).unwrap();
            receive(&socket).unwrap().1 == TOLD
        };
        assert!(!newest());
        let learn = |name| host.ask(|answer| Request::Learn { learned: learned(name), answer });
        learn("learned.test");
        assert!(newest());
        learn("another.test");
        assert!(!newest());
        // What comes with a reply is known before anybody can have read that.
        socket.send(&query(2, "later")).unwrap();
        let open = host.desk.take(1);
        let learned = Some(learned("learned.test"));
        host.handle.reply(Reply { learned, ..reply_to(&open[0]) }).unwrap();
        assert_eq!(receive(&socket).unwrap().0, 2);
        assert!(newest());
        host.stop();
    });
}

#[test]
fn a_reload_and_an_order_cut_who_asks() {
    namespace::within("", || {
        let Some(host) = Host::start() else { return };
        let (socket, mut stream) = (udp(), tcp());
        socket.send(&query(1, "later")).unwrap();
        stream.write_all(&framed(&[query(2, "later")])).unwrap();
        let open = host.desk.take(2);
        let cut = host.reload("block to 198.18.0.2", 2);
        assert_eq!(cut.len(), 2);
        assert!(cut.iter().all(|r| r.reason == Some(Reason::PolicyChanged) && r.via == Via::Dns));
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(receive(&socket).is_err(), "told by ICMP");
        open.iter().for_each(|question| host.reply(question));
        let refused = TcpStream::connect((RESOLVER, 53)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        let elsewhere = TcpStream::connect((A, 53)).unwrap();
        let [flow] = host.flows().try_into().expect("one flow");
        assert_eq!(flow.destination, SocketAddr::from((A, 53)));
        host.kill(flow.number);
        let error = (&elsewhere).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let (totals, _) = host.stop();
        assert_eq!(unsolicited(&totals), 2, "replies to who is gone");
    });
}

#[test]
fn replies_are_bounded_and_many_wake_once() {
    namespace::within("", || {
        let (memory, _app) = Memory::pair(true).unwrap();
        let service = Box::new(Small(Arc::default()));
        let (parts, _reports) = parts(memory, config(), policy(""), Some(service));
        let driver = Driver::new(parts).unwrap();
        let handle = driver.handle();
        let (flow, bytes) = (FlowId::from_bits(1), vec![0; HEADER]);
        let reply = Reply { flow, ticket: 1, bytes, learned: None };
        for _ in 0..REPLIES {
            handle.reply(reply.clone()).unwrap();
        }
        assert_eq!(handle.reply(reply.clone()), Err(Unasked::Busy));
        let mut count = [0; 8];
        rustix::io::read(handle.bell.fd(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "written once");
        rustix::io::write(handle.bell.fd(), &count).unwrap();
        let thread = spawn(move || driver.run().unwrap());
        wait_for("all are taken", || {
            let status = ask(&handle, |answer| Request::Status { answer });
            status.counters.replies_dropped.iter().sum::<u64>() == REPLIES as u64
        });
        handle.reply(reply.clone()).unwrap();
        handle.stop();
        thread.join().unwrap();
        assert_eq!(handle.reply(reply), Err(Unasked::Gone));
    });
}
