//! Network namespaces for unit tests.
//!
//! [`within`] runs the calling test again, alone, in a child inside new user, network and mount
//! namespaces, so that no root is needed and nothing of the host is touched. A machine that
//! allows neither skips the test and says so.

use std::process::Command;
use std::time::Duration;

/// Runs `body` in a namespace that the lines of `setup` have prepared.
pub(crate) fn within<F: FnOnce()>(setup: &str, body: F) {
    if inside() {
        setup.lines().for_each(run);
        return body();
    }
    let unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"];
    let possible = Command::new(unshare[0])
        .args(&unshare[1..])
        .args(["ip", "link"])
        .output()
        .is_ok_and(|output| output.status.success());
    if possible {
        again::<F>(&unshare);
    } else {
        eprintln!("skipped: no user namespaces, or no `unshare` or `ip` here");
    }
}

/// Runs `body` in a process of its own, where a closed socket is closed: beside other tests,
/// a child that one of them is about to start may still have it.
pub(crate) fn alone<F: FnOnce()>(body: F) {
    if inside() {
        body();
    } else {
        again::<F>(&["env"]);
    }
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test that `F` is a closure of, and no other, behind the command `prefix`.
fn again<F>(prefix: &[&str]) {
    // The thread has the test's name only where several tests run at once; the closure always has.
    let test = std::any::type_name::<F>();
    let test = test.split_once("::").expect("a crate").1;
    let test = test.split("::{{").next().expect("a first piece");
    let output = Command::new(prefix[0])
        .args(&prefix[1..])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", "--include-ignored", "--nocapture", test])
        .env(INSIDE, "1")
        .output()
        .expect("the command to run");
    let told = String::from_utf8_lossy(&output.stdout);
    eprint!("{told}{}", String::from_utf8_lossy(&output.stderr));
    let passed = output.status.success() && told.contains("1 passed");
    assert!(passed, "{test} failed in its own process");
}

/// Runs one command line, which must succeed.
pub(crate) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let Some(program) = words.next() else { return };
    let output = Command::new(program).args(words).output().expect("program to run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", line.trim());
}

const INSIDE: &str = "TUNNELD_TEST_NAMESPACE";

/// Waits until the kernel delivers packets to its own IPv6 address. Even with `nodad` a worker
/// thread adds the local route some time after the address, and till then replies are dropped.
pub(crate) fn await_local(address: &str) {
    for _ in 0..500 {
        let output = Command::new("ip").args(["-6", "route", "get", address]).output();
        if output.is_ok_and(|output| output.stdout.starts_with(b"local")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{address} is not local after 5 s");
}

/// The ICMP or ICMPv6 error `kind`/`code` that a router at the packet's destination would send
/// back for `packet`, whole and summed.
pub(crate) fn icmp_error(packet: &[u8], kind: u8, code: u8, mtu: u16) -> Vec<u8> {
    let v4 = packet[0] >> 4 == 4;
    let (source, destination) = if v4 { (12..16, 16..20) } else { (8..24, 24..40) };
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    icmp.extend_from_slice(&packet[..packet.len().min(500)]);
    let length = icmp.len() as u16;
    let mut error = if v4 {
        let mut header = vec![0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        header[8] = 64;
        header[9] = 1;
        header
    } else {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header[6] = 58;
        header[7] = 64;
        header
    };
    error[source.clone()].copy_from_slice(&packet[destination.clone()]);
    error[destination.clone()].copy_from_slice(&packet[source.clone()]);
    let pseudo = if v4 {
        let sum = checksum(&error, 0);
        error[10..12].copy_from_slice(&sum.to_be_bytes());
        0
    } else {
        u32::from(!checksum(&error[8..40], u32::from(length) + 58))
    };
    let sum = checksum(&icmp, pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    error.extend_from_slice(&icmp);
    error
}

/// The Internet checksum of `bytes`, added to `start`.
pub(crate) fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
