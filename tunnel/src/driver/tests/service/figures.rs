//! What a query costs on its way through a real device.

use super::*;

/// `cargo nextest run --release -p tunnel --run-ignored only --no-capture what_a_query_costs`
#[test]
#[ignore = "a measurement"]
fn what_a_query_costs() {
    namespace::within("", || {
        const COUNT: u32 = 100_000;
        const AT_ONCE: usize = 32;
        for reports in [false, true] {
            let config = Config {
                services: services(),
                flows: 65_536,
                half_open: 16_384,
                reports,
                ..config()
            };
            let Some(host) = Host::with(config, true) else { return };
            let shard = shard_task();
            let measure = |name: &str, mut ask: Box<dyn FnMut()>| {
                let (cpu, began) = (cpu_nanos(&shard), std::time::Instant::now());
                for _ in 0..COUNT as usize / AT_ONCE {
                    ask();
                }
                let cpu = (cpu_nanos(&shard) - cpu) as f64 / 1000.0 / f64::from(COUNT);
                let rate = f64::from(COUNT) / began.elapsed().as_secs_f64();
                println!("{name}, reports {reports}: {cpu:.2} us of CPU, {rate:.0} a second");
            };
            let socket = udp();
            let batch = move |socket: &UdpSocket| {
                for id in 0..AT_ONCE as u16 {
                    socket.send(&query(id, "now.example.com")).unwrap();
                }
                for _ in 0..AT_ONCE {
                    receive(socket).unwrap();
                }
            };
            measure("UDP, one flow", Box::new(move || batch(&socket)));
            measure(
                "UDP, a new flow each",
                Box::new(|| {
                    let sockets: Vec<UdpSocket> = (0..AT_ONCE).map(|_| udp()).collect();
                    for socket in &sockets {
                        socket.send(&query(1, "now.example.com")).unwrap();
                    }
                    for socket in &sockets {
                        receive(socket).unwrap();
                    }
                }),
            );
            let mut stream = tcp();
            let asked: Vec<_> =
                (0..AT_ONCE as u16).map(|id| query(id, "now.example.com")).collect();
            measure(
                "TCP, one connection",
                Box::new(move || {
                    stream.write_all(&framed(&asked)).unwrap();
                    for _ in 0..AT_ONCE {
                        next_answer(&mut stream).unwrap();
                    }
                }),
            );
            host.stop();
        }
    });
}

/// The directory in `/proc` of the thread that runs a shard.
fn shard_task() -> std::path::PathBuf {
    let named = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "shard")
    };
    let mut found = None;
    wait_for("a shard", || {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap();
        found = tasks.find_map(|task| Some(task.unwrap().path()).filter(named));
        found.is_some()
    });
    found.unwrap()
}

fn cpu_nanos(task: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
