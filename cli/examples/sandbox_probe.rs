//! Makes a sandbox and says what it got: the sandbox's tests run this, since a test harness
//! has threads and a sandbox forks.
//!
//! ```text
//! sandbox_probe [OPTION…] -- CMD…    CMD in a sandbox, with a stub behind the TUN
//! sandbox_probe ask ADDR:PORT [SIZE] sends a datagram, prints who answered
//! sandbox_probe tell ADDR:PORT       sends a datagram
//! ```
//!
//! The stub logs every packet, answers a UDP datagram to port 53 with itself (in fragments, if
//! it came so), and a SYN with a reset. Options: `--log FILE` (the packets, then how CMD ended; `-` is standard error), `--queues N`, `--plain`,
//! `--no-ipv6`, `--keep-sockets`, `--resolv TEXT`, `--hold` (ends before CMD is started).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cli::sandbox::{self, Plan, Sandbox, SpawnError};
use engine::DeviceName;
use rustix::event::{PollFd, PollFlags};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let words: Vec<String> =
        std::env::args_os().skip(1).take(3).filter_map(|word| word.into_string().ok()).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ask", to] => ask(to, 8),
        ["ask", to, size] => ask(to, size.parse().expect("a number")),
        ["tell", to] => tell(to),
        _ => return run(&mut args),
    }
    ExitCode::SUCCESS
}

fn run(args: &mut dyn Iterator<Item = OsString>) -> ExitCode {
    let mut plan = Plan {
        command: Vec::new(),
        device: DeviceName::new("tunneld0").expect("a short name"),
        addresses: ["198.18.0.1/32", "2001:2:0:756e::1/128"]
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect(),
        mtu: 1500,
        offload: true,
        queues: 1,
        resolv_conf: b"nameserver 198.18.0.2\n".to_vec(),
        keep_sockets: false,
        ipv6: true,
    };
    let mut log: Box<dyn Write + Send> = Box::new(io::sink());
    let mut hold = false;
    while let Some(word) = args.next() {
        let mut value = || args.next().expect("an option's value").into_string().expect("UTF-8");
        match word.to_str() {
            Some("--log") => {
                log = match value().as_str() {
                    "-" => Box::new(io::stderr()),
                    path => Box::new(File::create(path).expect("the log")),
                }
            }
            Some("--queues") => plan.queues = value().parse().expect("a number"),
            Some("--plain") => plan.offload = false,
            Some("--no-ipv6") => plan.ipv6 = false,
            Some("--keep-sockets") => plan.keep_sockets = true,
            Some("--resolv") => plan.resolv_conf = value().into_bytes(),
            Some("--hold") => hold = true,
            Some("--") => break,
            Some(_) | None => panic!("what is {word:?}?"),
        }
    }
    plan.command = args.collect();
    match sandbox::spawn(&plan).and_then(|sandbox| serve(sandbox, &plan, log, hold)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(help) = error.help() {
                eprintln!("help: {help}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn serve(
    mut sandbox: Sandbox,
    plan: &Plan,
    mut log: Box<dyn Write + Send>,
    hold: bool,
) -> Result<u8, SpawnError> {
    let (queues, diag) = (sandbox.tun.len(), sandbox.sock_diag.len());
    writeln!(
        log,
        "ready pid={} queues={queues} diag={diag} user_namespace={} etc={:?}",
        sandbox.pid(),
        sandbox.user_namespace,
        sandbox.etc
    )
    .expect("the log");
    if hold {
        return Ok(0);
    }
    let log = Arc::new(Mutex::new(log));
    for queue in std::mem::take(&mut sandbox.tun) {
        let (log, header) = (Arc::clone(&log), if plan.offload { 10 } else { 0 });
        std::thread::spawn(move || stub(&queue, header, &log));
    }
    let child = sandbox.start()?;
    let status = child.wait()?;
    // What CMD sent last may still lie in the queue.
    std::thread::sleep(Duration::from_millis(100));
    writeln!(log.lock().expect("the log"), "ended {status:?}").expect("the log");
    Ok(status.exit_code())
}

fn stub(queue: &OwnedFd, header: usize, log: &Mutex<Box<dyn Write + Send>>) {
    let mut buffer = vec![0; 70_000];
    loop {
        let mut descriptors =
            [PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(queue), PollFlags::IN)];
        let _ = rustix::event::poll(&mut descriptors, None);
        let Ok(length) = rustix::io::read(queue, &mut buffer[..]) else { continue };
        let packet = &mut buffer[header..length];
        writeln!(log.lock().expect("the log"), "packet {}", describe(packet)).expect("the log");
        if answer(packet) {
            let reply = [&[0; 10][..header], packet].concat();
            rustix::io::write(queue, &reply).expect("to answer");
        }
    }
}

/// Turns an IPv4 packet without IP options into its answer; `false`: it has none.
fn answer(packet: &mut [u8]) -> bool {
    let [0x45, ..] = packet else { return false };
    let protocol = packet[9];
    let later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let to_dns = later_fragment || packet[22..24] == 53_u16.to_be_bytes();
    let syn = protocol == 6 && packet[33] & 0x12 == 0x02;
    let datagram = protocol == 17 && to_dns;
    if !datagram && !syn {
        return false;
    }
    // The sum over the header is the same in any order.
    for i in 0..4 {
        packet.swap(12 + i, 16 + i);
    }
    if later_fragment {
        return true;
    }
    packet.swap(20, 22);
    packet.swap(21, 23);
    if syn {
        let next = u32::from_be_bytes(packet[24..28].try_into().expect("4 bytes")).wrapping_add(1);
        packet[24..28].fill(0);
        packet[28..32].copy_from_slice(&next.to_be_bytes());
        packet[33] = 0x14;
        packet[36..38].fill(0);
        let length = (packet.len() - 20) as u16;
        let pseudo = [&packet[12..20], &[0, 6], &length.to_be_bytes()].concat();
        let sum = checksum(&[&pseudo, &packet[20..]].concat());
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[26..28].fill(0);
    }
    true
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn describe(packet: &[u8]) -> String {
    let port = |at: usize| packet.get(at..at + 2).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
    match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= 20 => {
            let address = |at: usize| {
                std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("4 bytes"))
            };
            format!("{} {} > {}:{}", packet[9], address(12), address(16), port(22))
        }
        Some(6) if packet.len() >= 40 => {
            let address = |at: usize| {
                std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("16"))
            };
            format!("{} {} > [{}]:{}", packet[6], address(8), address(24), port(42))
        }
        _ => format!("{packet:?}"),
    }
}

fn ask(to: &str, size: usize) {
    let socket = socket_for(to);
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket.send_to(&vec![b'?'; size], to).expect("to send");
    let mut buffer = [0; 10_000];
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    println!("{length} bytes from {from}");
}

fn tell(to: &str) {
    socket_for(to).send_to(b"told", to).expect("to send");
}

fn socket_for(to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().expect("ADDR:PORT");
    UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket")
}
