//! Servers that lie, fail or are dead, and forgers beside them, through the program: an answer or
//! SERVFAIL in time, and nothing false in the cache.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::both::{kdig, kdig_in};
use tests::endpoints::{
    Authority, DoqServer, HttpLie, Lie, LyingServer, QuicLiar, QuicLie, StreamLie, TcpServer,
    Valid, lies_over, lies_over_https, lies_over_tls,
};
use tests::lab::daemon::Daemon;
use tests::lab::scratch::Scratch;
use tests::lab::side_by_side::side_by_side;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

/// A liar, and two servers that are dead.
const CONFIG: &str = "\
[[resolver]]
name = \"liar\"
servers = [\"203.0.113.1\"]
[[resolver]]
name = \"dead\"
servers = [\"203.0.113.20\"]
[[resolver]]
name = \"gone\"
servers = [\"2001:db8:f1::20\"]
";

/// POLICY's five seconds, and `exec` itself on a machine that is busy.
const IN_TIME: Duration = Duration::from_millis(5_800);

/// What `exec` says of `www.example`, and how long that took.
fn ask(lab: &Lab, rule: &str) -> Result<(String, Duration)> {
    let exec = lab.exec("kdig").config(CONFIG).policy(&format!("{rule}\ndefault allow"));
    kdig_in(exec, "www.example")
}

#[test]
fn liars_end_in_time() -> Result<()> {
    require_root!();
    require_tunneld!();
    let cases = [
        (Lie::WrongId, false, true),
        (Lie::WrongIdAlone, false, false),
        (Lie::WrongQuestion, false, false),
        (Lie::Twice, false, true),
        (Lie::Garbage, false, false),
        (Lie::Endless, false, false),
        (Lie::Loops, false, false),
        (Lie::OtherPort, false, false),
        (Lie::NoEdns, false, true),
        (Lie::Truncated, true, true),
        (Lie::Late(Duration::from_secs(6)), false, false),
        (Lie::Fails, false, false),
        (Lie::Refuses, false, false),
    ];
    side_by_side(&cases, |&(lie, tcp, answered)| {
        let lab = Lab::new()?;
        let _server = LyingServer::start(&lab.server, plan::GOOD4, lie, tcp)?;
        let (seen, took) = ask(&lab, "resolve * using liar")?;
        ensure!(seen.contains(LyingServer::TRUTH) == answered, "{lie:?}:\n{seen}");
        ensure!(answered || seen.contains("status: SERVFAIL"), "{lie:?}:\n{seen}");
        ensure!(took < IN_TIME, "{lie:?}: {took:?}");
        Ok(())
    })
}

/// Over connections, too: an answer or SERVFAIL in time, and nothing is read for ever.
#[test]
fn liars_over_connections_end_in_time() -> Result<()> {
    require_root!();
    require_tunneld!();
    let ca = Authority::new("ours")?;
    let files = Scratch::new()?;
    let ca = files.write("ca.pem", &ca.pem())?;
    let cases = [
        ("tcp", StreamLie::Silent),
        ("tcp", StreamLie::Half),
        ("tcp", StreamLie::Noise),
        ("tcp", StreamLie::Endless),
        ("tcp", StreamLie::Other),
        ("tcp", StreamLie::Ends),
        ("tls", StreamLie::Silent),
        ("tls", StreamLie::Stalled),
        ("tls", StreamLie::Noise),
        ("tls", StreamLie::Ends),
        // Cut short over UDP, and then.
        ("udp", StreamLie::Silent),
        ("udp", StreamLie::Half),
        ("udp", StreamLie::Endless),
    ];
    side_by_side(&cases, |&(scheme, lie)| {
        let case = format!("{scheme} {lie:?}");
        let lab = Lab::new()?;
        let port = if scheme == "tls" { 853 } else { 53 };
        let stream = lies_over(&lab.server, port, lie)?;
        let _udp = (scheme == "udp")
            .then(|| LyingServer::start(&lab.server, plan::GOOD4, Lie::Truncated, false))
            .transpose()?;
        let ca =
            if scheme == "tls" { format!("ca = \"{}\"\n", ca.display()) } else { String::new() };
        let config =
            format!("[[resolver]]\nname = \"liar\"\nservers = [\"{scheme}://203.0.113.1\"]\n{ca}");
        let rules = "policy 1\nresolve * using liar\ndefault allow\n";
        let daemon = Daemon::start(&lab.host, rules, &config)?;
        for name in ["www.example", "two.example"] {
            let began = Instant::now();
            let seen = kdig(&lab, name)?;
            ensure!(seen.contains("status: SERVFAIL"), "{case}: {seen}");
            ensure!(began.elapsed() < IN_TIME, "{case}: {:?}", began.elapsed());
        }
        ensure!(stream.accepted() > 0, "{case}: nobody was asked");
        // Who has given up reads no more: the liar sees the end, or its bytes go nowhere.
        let limit = Instant::now() + Duration::from_secs(15);
        while stream.ended() < usize::try_from(stream.accepted())? {
            let all = stream.accepted();
            ensure!(Instant::now() < limit, "{case}: {} of {all} have ended", stream.ended());
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon.status()
    })
}

/// One of every transport that is encrypted, with a certificate that is as it should be.
#[derive(Debug, Clone, Copy)]
enum Inside {
    Tls(StreamLie),
    Https(HttpLie),
    Quic(QuicLie),
}

/// A liar, and lines that name it.
struct Liar {
    server: Server,
    config: String,
    _files: Scratch,
}

enum Server {
    Streams(TcpServer),
    Quic(QuicLiar),
}

impl Inside {
    fn start(self, lab: &Lab) -> Result<Liar> {
        let (ca, files) = (Authority::new("ours")?, Scratch::new()?);
        let signed = ca.sign(&["203.0.113.1"], Valid::Now)?;
        let (server, at) = match self {
            Self::Tls(lie) => (
                Server::Streams(lies_over_tls(&lab.server, &signed, lie)?),
                "tls://203.0.113.1".to_owned(),
            ),
            Self::Https(lie) => {
                let at = "https://203.0.113.1/dns-query".to_owned();
                (Server::Streams(lies_over_https(&lab.server, &signed, lie)?), at)
            }
            Self::Quic(lie) => {
                let liar = QuicLiar::start(&lab.server, plan::GOOD4, &signed, lie)?;
                (Server::Quic(liar), format!("quic://203.0.113.1:{}", DoqServer::PORT))
            }
        };
        let ca = files.write("ca.pem", &ca.pem())?;
        let config = format!(
            "[[resolver]]\nname = \"liar\"\nservers = [\"{at}\"]\nca = \"{}\"\n\
             [dns]\ncache = 0\n",
            ca.display()
        );
        Ok(Liar { server, config, _files: files })
    }
}

impl Liar {
    fn accepted(&self) -> u64 {
        match &self.server {
            Server::Streams(server) => server.accepted(),
            Server::Quic(liar) => liar.accepted(),
        }
    }

    /// Waits until nothing of its connections is read any more.
    fn wait_for_end(&self, lab: &Lab, within: Duration) -> Result<()> {
        let limit = Instant::now() + within;
        // What comes to a socket of which nobody reads stays there, time and again.
        let mut unread = 0;
        let is_over = |unread: &mut u32| -> Result<bool> {
            match &self.server {
                Server::Streams(server) => {
                    Ok(server.ended() >= usize::try_from(server.accepted())?)
                }
                Server::Quic(_) => {
                    let sockets = lab.host.output("ss", &["-unH", "dst", "203.0.113.1"])?;
                    let waits = |line: &str| line.split_whitespace().next() != Some("0");
                    *unread = if sockets.lines().all(waits) { *unread + 1 } else { 0 };
                    Ok(*unread > 5)
                }
            }
        };
        while !is_over(&mut unread)? {
            ensure!(Instant::now() < limit, "of {} connections one is read on", self.accepted());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

const RULES: &str = "policy 1\nresolve * using liar\ndefault allow\n";

/// The same behind a handshake as it should be.
#[test]
fn liars_inside_encryption_end_in_time() -> Result<()> {
    require_root!();
    require_tunneld!();
    let cases = [
        Inside::Tls(StreamLie::Silent),
        Inside::Tls(StreamLie::Half),
        Inside::Tls(StreamLie::Noise),
        Inside::Tls(StreamLie::Endless),
        Inside::Tls(StreamLie::Other),
        Inside::Tls(StreamLie::Ends),
        Inside::Https(HttpLie::Silent),
        Inside::Https(HttpLie::Noise),
        Inside::Https(HttpLie::Frames),
        Inside::Https(HttpLie::Body),
        Inside::Https(HttpLie::Half),
        Inside::Https(HttpLie::Other),
        Inside::Https(HttpLie::Fails),
        Inside::Https(HttpLie::Ends),
        Inside::Quic(QuicLie::Silent),
        Inside::Quic(QuicLie::Half),
        Inside::Quic(QuicLie::Endless),
        Inside::Quic(QuicLie::Other),
        Inside::Quic(QuicLie::Ends),
        Inside::Quic(QuicLie::Noise),
    ];
    side_by_side(&cases, |&lie| {
        let lab = Lab::new()?;
        let liar = lie.start(&lab)?;
        let daemon = Daemon::start(&lab.host, RULES, &liar.config)?;
        let began = Instant::now();
        let seen = kdig(&lab, "www.example")?;
        ensure!(seen.contains("status: SERVFAIL"), "{lie:?}: {seen}");
        ensure!(began.elapsed() < IN_TIME, "{lie:?}: {:?}", began.elapsed());
        ensure!(liar.accepted() > 0, "{lie:?}: nobody was asked");
        daemon.status()
    })
}

/// A connection on which nobody waits for anything is not read for ever either, and the next
/// question has another one.
#[test]
fn noise_that_nobody_asked_for_ends() -> Result<()> {
    require_root!();
    require_tunneld!();
    let encrypted = [
        None,
        Some(Inside::Tls(StreamLie::Afterwards)),
        Some(Inside::Https(HttpLie::Afterwards)),
        Some(Inside::Quic(QuicLie::ThenNoise)),
    ];
    side_by_side(&encrypted, |lie| {
        let lab = Lab::new()?;
        let liar = match lie {
            Some(lie) => lie.start(&lab)?,
            None => Liar {
                server: Server::Streams(lies_over(&lab.server, 53, StreamLie::Afterwards)?),
                config: "[[resolver]]\nname = \"liar\"\nservers = [\"tcp://203.0.113.1\"]\n\
                         [dns]\ncache = 0\n"
                    .to_owned(),
                _files: Scratch::new()?,
            },
        };
        let _daemon = Daemon::start(&lab.host, RULES, &liar.config)?;
        for connections in 1..=3 {
            let seen = kdig(&lab, "www.example")?;
            ensure!(seen.contains(LyingServer::TRUTH), "{lie:?}: {seen}");
            ensure!(liar.accepted() == connections, "{lie:?}: {} connections", liar.accepted());
            liar.wait_for_end(&lab, Duration::from_secs(5)).with_context(|| format!("{lie:?}"))?;
        }
        Ok(())
    })
}

#[test]
fn dead_servers_end_in_time() -> Result<()> {
    require_root!();
    require_tunneld!();
    // The rule, whether the liar is there and honest, and how soon it ends.
    let soon = Duration::from_secs(2);
    let cases = [
        ("dead else liar", true, Duration::from_secs(4)),
        ("dead or liar", true, soon),
        ("dead and liar", true, Duration::from_secs(3)),
        ("dead", false, IN_TIME),
        ("dead else gone", false, IN_TIME),
        ("dead or gone", false, IN_TIME),
        ("dead and gone", false, IN_TIME),
        // Nobody listens: the kernel says so.
        ("liar", false, soon),
    ];
    side_by_side(&cases, |&(rule, honest, limit)| {
        let lab = Lab::new()?;
        let server = || LyingServer::start(&lab.server, plan::GOOD4, Lie::None, false);
        let _server = honest.then(server).transpose()?;
        let (seen, took) = ask(&lab, &format!("resolve * using {rule}"))?;
        ensure!(seen.contains(LyingServer::TRUTH) == honest, "{rule}: {seen}");
        let failed = seen.contains("status: SERVFAIL") && seen.contains("EDE: 22");
        ensure!(failed != honest, "{rule}: {seen}");
        ensure!(took < limit, "{rule}: {took:?}");
        Ok(())
    })
}

/// `else`: what is no answer leads to the next resolver, and nothing else does.
#[test]
fn what_fails_is_asked_elsewhere_where_a_rule_says_so() -> Result<()> {
    require_root!();
    require_tunneld!();
    let cases = [Lie::Fails, Lie::Refuses, Lie::Garbage, Lie::Silent, Lie::Loops, Lie::None];
    side_by_side(&cases, |&lie| {
        let lab = Lab::new()?;
        let _liar = LyingServer::start(&lab.server, plan::GOOD4, lie, false)?;
        let other = LyingServer::start(&lab.server, plan::GOOD4_SECOND, Lie::None, false)?;
        let config = format!(
            "{CONFIG}[[resolver]]\nname = \"other\"\nservers = [\"{}\"]\n",
            plan::GOOD4_SECOND
        );
        let rules = "policy 1\nresolve www.example using liar\nresolve * using liar else other\n\
                     default allow\n";
        let _daemon = Daemon::start(&lab.host, rules, &config)?;
        let honest = lie == Lie::None;
        let seen = kdig(&lab, "www.example")?;
        ensure!(seen.contains(LyingServer::TRUTH) == honest, "{lie:?}: {seen}");
        ensure!(other.heard().is_empty(), "{lie:?}: {:?}", other.heard());
        let seen = kdig(&lab, LyingServer::VICTIM)?;
        ensure!(seen.contains(LyingServer::TRUTH), "{lie:?}: {seen}");
        ensure!(other.heard().is_empty() == honest, "{lie:?}: {:?}", other.heard());
        Ok(())
    })
}

/// Names of a dead resolver, more of them than can be open at once: each is answered in time, and
/// those of others at once.
#[test]
fn a_dead_resolver_leaves_room_for_the_others() -> Result<()> {
    require_root!();
    require_tunneld!();
    const MANY: u16 = 6_000;
    let lab = Lab::new()?;
    let _server = LyingServer::start(&lab.server, plan::GOOD4, Lie::None, false)?;
    let rules =
        "policy 1\nresolve *.dead.example using dead\nresolve * using liar\ndefault allow\n";
    let _daemon = Daemon::start(&lab.host, rules, CONFIG)?;
    let socket = lab.host.run(|| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect("198.18.0.2:53")?;
    for number in 0..MANY {
        let [high, low] = number.to_be_bytes();
        let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4];
        query.extend(format!("{number:04x}").as_bytes());
        query.extend(b"\x04dead\x07example\x00\x00\x01\x00\x01");
        socket.send(&query)?;
        if number % 64 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let sent = Instant::now();
    let seen = kdig(&lab, "www.example")?;
    ensure!(seen.contains(LyingServer::TRUTH), "{seen}");
    // Those of the dead one take longer, and this machine is busy with them.
    ensure!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
    let mut answered = 0;
    let mut room = [0; 512];
    while answered < MANY && sent.elapsed() < IN_TIME {
        let Ok(length) = socket.recv(&mut room) else { continue };
        ensure!(length > 12 && room[3] & 15 == 2, "{:?}", &room[..length]);
        answered += 1;
    }
    // What the queue in between could not hold is asked again by its app.
    ensure!(answered > MANY / 2, "{answered} of {MANY} have an answer");
    Ok(())
}

/// One process, several questions: what a lie said is not there when the next one is asked.
#[test]
fn a_lie_leaves_nothing_in_the_cache() -> Result<()> {
    require_root!();
    require_tunneld!();
    // The lie, and whether the truth comes along with it.
    let cases = [
        (Lie::ForgedIds, true),
        (Lie::ForgedQuestion, true),
        (Lie::ForgedSource, true),
        (Lie::Stuffed, true),
        (Lie::WrongId, true),
        (Lie::WrongIdAlone, false),
        (Lie::WrongQuestion, false),
        (Lie::OtherPort, false),
        (Lie::Garbage, false),
        (Lie::Loops, false),
    ];
    side_by_side(&cases, |&(lie, answered)| {
        let lab = Lab::new()?;
        let server = LyingServer::start(&lab.server, plan::GOOD4, lie, false)?;
        let rules = "policy 1\nresolve * using liar\ndefault allow\n";
        let _daemon = Daemon::start(&lab.host, rules, CONFIG)?;
        let found = |name: &str, answered: bool| -> Result<()> {
            let seen = kdig(&lab, name)?;
            ensure!(seen.contains(LyingServer::TRUTH) == answered, "{lie:?}: {name}: {seen}");
            ensure!(answered || seen.contains("status: SERVFAIL"), "{lie:?}: {name}: {seen}");
            ensure!(!seen.contains(LyingServer::FALSE), "{lie:?}: {name}: {seen}");
            Ok(())
        };
        found("www.example", answered)?;
        if !answered {
            server.tells(Lie::None);
            // A failure is kept for a second.
            std::thread::sleep(Duration::from_millis(1_100));
            found("www.example", true)?;
        }
        // The forger's other name is the server's, not the forger's.
        ensure!(server.asked(LyingServer::VICTIM) == 0, "{lie:?}: {:?}", server.heard());
        found(LyingServer::VICTIM, true)?;
        ensure!(server.asked(LyingServer::VICTIM) > 0, "{lie:?}: {:?}", server.heard());
        // And what is kept is the truth.
        let before = server.heard().len();
        found("www.example", true)?;
        found(LyingServer::VICTIM, true)?;
        ensure!(server.heard().len() == before, "{lie:?}: not kept: {:?}", server.heard());
        Ok(())
    })
}
