//! Whatever is sent to the control socket, the host's flows go on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::{TcpServer, UdpServer, tcp};
use tests::lab::daemon::Daemon;
use tests::lab::exec::promised;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const REQUESTS: u32 = 10_000;
const MEGABYTES: usize = 100;
/// More connections than a user may have.
const SILENT: usize = 300;
/// As long as a reload may hold a flow up.
const STALLED: Duration = Duration::from_millis(200);

/// 10,000 junk requests, a line of 100 MB, and half requests with nothing behind.
#[test]
fn heavy_junk_at_the_socket_stalls_no_flow() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, tcp::echo)?;
    let udp = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
    let mut stream =
        lab.host.run(|| TcpStream::connect(SocketAddr::new(plan::GOOD4, server.port())))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let socket = lab.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect((plan::GOOD4, udp.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;

    let at = daemon.socket();
    let silent = (0..SILENT)
        .map(|_| -> Result<UnixStream> {
            let mut stream = UnixStream::connect(&at)?;
            // One too many is ended at once.
            let _ = stream.write_all(b"GET /v1/sta");
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let done = AtomicBool::new(false);
    let (rounds, slowest) = thread::scope(|scope| -> Result<_> {
        let speaker = scope.spawn(|| -> Result<(u32, Duration)> {
            let (mut rounds, mut slowest) = (0, Duration::ZERO);
            while !done.load(Ordering::Acquire) {
                let began = Instant::now();
                stream.write_all(b"t")?;
                stream.read_exact(&mut [0]).context("TCP")?;
                socket.send(b"u")?;
                socket.recv(&mut [0; 8]).context("UDP")?;
                slowest = slowest.max(began.elapsed());
                rounds += 1;
            }
            Ok((rounds, slowest))
        });
        let line = scope.spawn(|| -> usize {
            let Ok(mut stream) = UnixStream::connect(&at) else { return 0 };
            let part = vec![b'x'; 1 << 20];
            (0..MEGABYTES).take_while(|_| stream.write_all(&part).is_ok()).count()
        });
        let junk = (0..REQUESTS).try_for_each(|number| -> Result<()> {
            let mut stream = UnixStream::connect(&at)?;
            // It may be refused before all is said.
            let _ = stream.write_all(&number.to_ne_bytes());
            let _ = stream.write_all(b" junk\r\n\r\n");
            Ok(())
        });
        let read = line.join();
        done.store(true, Ordering::Release);
        junk?;
        let read = read.map_err(|_| anyhow::anyhow!("the line's thread panicked"))?;
        ensure!(read < MEGABYTES, "a line of 100 MB was read");
        speaker.join().map_err(|_| anyhow::anyhow!("the speaker panicked"))?
    })?;
    ensure!(
        rounds > 100 && slowest < promised(STALLED),
        "{rounds} rounds, the slowest took {slowest:?}"
    );
    drop(silent);
    let flows = daemon.json(&["flows"])?;
    ensure!(flows.len() == 2, "{flows:?}");
    daemon.stop()?;
    Ok(())
}
