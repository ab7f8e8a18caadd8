//! A name server that is broken, or somebody who plays it: each lie one way in
//! which an answer can be wrong. It keeps what it was asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::PATIENCE;
use super::dns::{HEADER, answer, question, serve};
use super::tcp::TcpServer;
use crate::lab::{Netns, plan};

/// What is wrong with its answers over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// Another id, then the truth.
    WrongId,
    /// Another id, and nothing else.
    WrongIdAlone,
    /// Another name in the question, and nothing else.
    WrongQuestion,
    /// The question's name in lower case.
    LowerCase,
    /// Cut short: the rest is to be had over TCP.
    Truncated,
    /// The truth, this much later.
    Late(Duration),
    /// The truth, twice.
    Twice,
    /// Id and question are right, the rest is not a message.
    Garbage,
    /// Datagrams of noise without an end for half a second.
    Endless,
    /// Aliases that go round.
    Loops,
    /// The truth from another port.
    OtherPort,
    /// FORMERR to a query with an OPT record, its question left out; else the truth.
    NoEdns,
    /// SERVFAIL.
    Fails,
    /// REFUSED.
    Refuses,
    /// Nothing at all.
    Silent,
    /// The truth to the first question, nothing to the others.
    FallsSilent,
    /// The truth, after nothing to the first question.
    LosesFirst,
    /// A forger beside it: [`LyingServer::FALSE`] under ids that were not asked, then the truth.
    ForgedIds,
    /// The same for another name than the one asked, [`LyingServer::VICTIM`].
    ForgedQuestion,
    /// The same, id and question right, from another address and another port.
    ForgedSource,
    /// The truth, and what nobody asked for in each section: [`LyingServer::VICTIM`] is
    /// [`LyingServer::FALSE`], and who serves its zone.
    Stuffed,
}

/// A question as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The name, its letters as they were.
    pub name: String,
    /// The message's id.
    pub id: u16,
    /// From where.
    pub from: SocketAddr,
    /// Whether it had an OPT record.
    pub edns: bool,
}

/// A running liar on port 53 of one address. `www.example` is 203.0.113.80 there, over TCP too
/// if it listens, and so is [`LyingServer::VICTIM`].
#[derive(Debug)]
pub struct LyingServer {
    heard: Arc<Mutex<Vec<Heard>>>,
    lie: Arc<Mutex<Lie>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    tcp: Option<TcpServer>,
}

impl LyingServer {
    /// What it says of `www.example`.
    pub const TRUTH: &str = "203.0.113.80";
    /// What a forger says.
    pub const FALSE: &str = "203.0.113.66";
    /// A name that a forger wants believed.
    pub const VICTIM: &str = "victim.example";

    /// Starts one, with TCP or without.
    pub fn start(netns: &Netns, address: IpAddr, lie: Lie, tcp: bool) -> Result<Self> {
        let truth = Self::TRUTH.parse::<IpAddr>().context("an address")?;
        let names = ["www.example", Self::VICTIM];
        let table: BTreeMap<_, _> =
            names.into_iter().map(|name| (name.to_owned(), vec![truth])).collect();
        let table = Arc::new(table);
        let socket = netns.run(|| UdpSocket::bind((address, 53)))?;
        let mut others = vec![netns.run(|| UdpSocket::bind((address, 0)))?];
        if lie == Lie::ForgedSource {
            others.push(netns.run(|| UdpSocket::bind((plan::GOOD4_SECOND, 53)))?);
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let lie = Arc::new(Mutex::new(lie));
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = tcp
            .then(|| {
                let table = Arc::clone(&table);
                TcpServer::start(netns, 53, move |stream| serve(&table, stream))
            })
            .transpose()?;
        let thread = thread::spawn({
            let (heard, stop, lie) = (Arc::clone(&heard), Arc::clone(&stop), Arc::clone(&lie));
            move || {
                let mut room = vec![0; 65_535];
                // Joined at the end: each holds the port.
                let mut late = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
                    let query = &room[..length];
                    let Some(one) = hear(query, from) else { continue };
                    let edns = one.edns;
                    let before = {
                        let mut heard = heard.lock().expect("no holder panics");
                        heard.push(one);
                        heard.len() - 1
                    };
                    if let Some(truth) = answer(&table, query) {
                        let lie = *lie.lock().expect("no holder panics");
                        late.extend(tell(lie, &socket, &others, from, truth, edns, before));
                    }
                }
                late.into_iter().for_each(|thread: JoinHandle<()>| drop(thread.join()));
            }
        });
        Ok(Self { heard, lie, stop, thread: Some(thread), tcp })
    }

    /// Lies otherwise from now on.
    pub fn tells(&self, lie: Lie) {
        *self.lie.lock().expect("no holder panics") = lie;
    }

    /// How often it was asked for a name over UDP.
    pub fn asked(&self, name: &str) -> usize {
        self.heard().iter().filter(|one| one.name.eq_ignore_ascii_case(name)).count()
    }

    /// What it was asked over UDP so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no holder panics").clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.tcp.as_ref().map_or(0, TcpServer::accepted)
    }
}

impl Drop for LyingServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hear(query: &[u8], from: SocketAddr) -> Option<Heard> {
    let (_, end) = question(query)?;
    let labels = query.get(HEADER + 1..end - 1)?;
    // The length bytes become dots: none of the lab's labels is longer.
    let name = labels.iter().map(|&b| if b < 32 { '.' } else { char::from(b) });
    Some(Heard {
        name: name.collect(),
        id: u16::from_be_bytes([query[0], query[1]]),
        from,
        edns: query[11] != 0,
    })
}

fn tell(
    lie: Lie,
    socket: &UdpSocket,
    others: &[UdpSocket],
    to: SocketAddr,
    truth: Vec<u8>,
    edns: bool,
    before: usize,
) -> Option<JoinHandle<()>> {
    // A peer that has gone is the peer's affair.
    let send = |bytes: &[u8]| {
        let _ = socket.send_to(bytes, to);
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut answer = truth.clone();
        change(&mut answer);
        answer
    };
    let code = |code: u8| {
        changed(&|answer| {
            answer[3] = answer[3] & 0xf0 | code;
            answer[7] = 0;
            let end = question(answer).map_or(HEADER, |(_, end)| end + 4);
            answer.truncate(end);
        })
    };
    match lie {
        Lie::None => send(&truth),
        Lie::WrongId => {
            send(&changed(&|answer| answer[0] ^= 0x55));
            send(&truth);
        }
        Lie::WrongIdAlone => send(&changed(&|answer| answer[0] ^= 0x55)),
        Lie::WrongQuestion => send(&changed(&|answer| answer[HEADER + 1] = b'x')),
        Lie::LowerCase => send(&changed(&|answer| {
            let end = question(answer).map_or(HEADER, |(_, end)| end);
            answer[HEADER..end].make_ascii_lowercase();
        })),
        Lie::Truncated => send(&changed(&|answer| {
            answer[2] |= 2;
            answer[7] = 0;
            let end = question(answer).map_or(HEADER, |(_, end)| end + 4);
            answer.truncate(end);
        })),
        Lie::Late(late) => {
            let socket = socket.try_clone().expect("a descriptor");
            return Some(thread::spawn(move || {
                thread::sleep(late);
                let _ = socket.send_to(&truth, to);
            }));
        }
        Lie::Twice => {
            send(&truth);
            send(&truth);
        }
        Lie::Garbage => send(&changed(&|answer| {
            let end = question(answer).map_or(HEADER, |(_, end)| end + 4);
            answer.truncate(end);
            answer.extend([0xff; 40]);
        })),
        Lie::Endless => {
            let until = std::time::Instant::now() + Duration::from_millis(500);
            let id = truth[0];
            let mut noise = truth;
            while std::time::Instant::now() < until {
                noise[0] = noise[0].wrapping_add(1);
                noise[0] = noise[0].wrapping_add(u8::from(noise[0] == id));
                let _ = socket.send_to(&noise, to);
            }
        }
        Lie::Loops => send(&loops(&truth)),
        Lie::OtherPort => {
            let _ = others[0].send_to(&truth, to);
        }
        Lie::NoEdns if edns => send(&[truth[0], truth[1], 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]),
        Lie::NoEdns => send(&truth),
        Lie::Fails => send(&code(2)),
        Lie::Refuses => send(&code(5)),
        Lie::Silent => {}
        Lie::FallsSilent if before == 0 => send(&truth),
        Lie::FallsSilent => {}
        Lie::LosesFirst if before == 0 => {}
        Lie::LosesFirst => send(&truth),
        Lie::ForgedIds => {
            let mut forged = falsely(&truth);
            for step in 1..=100 {
                let [high, low] =
                    u16::from_be_bytes([truth[0], truth[1]]).wrapping_add(step).to_be_bytes();
                (forged[0], forged[1]) = (high, low);
                send(&forged);
            }
            send(&truth);
        }
        // Where it is asked for itself nothing would be forged.
        Lie::ForgedQuestion if question(&truth).is_some_and(|(n, _)| n == LyingServer::VICTIM) => {
            send(&truth);
        }
        Lie::ForgedQuestion => {
            let mut victim = truth[..2].to_vec();
            victim.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            victim.extend(wire(LyingServer::VICTIM));
            victim.extend([0, 1, 0, 1]);
            send(&falsely(&victim));
            send(&truth);
        }
        Lie::ForgedSource => {
            for other in others {
                let _ = other.send_to(&falsely(&truth), to);
            }
            send(&truth);
        }
        Lie::Stuffed => send(&stuffed(truth)),
    }
    None
}

/// The same message with a forger's data, whether it was asked or answers.
fn falsely(message: &[u8]) -> Vec<u8> {
    let address: IpAddr = LyingServer::FALSE.parse().expect("an address");
    let (name, _) = question(message).expect("a question");
    answer(&BTreeMap::from([(name, vec![address])]), message).expect("of our own making")
}

/// The name that was asked is another one, which is the name that was asked.
fn loops(truth: &[u8]) -> Vec<u8> {
    let end = question(truth).map_or(HEADER, |(_, end)| end + 4);
    let (mut answer, other, asked) = (truth[..end].to_vec(), wire("other.example"), [0xc0, 0x0c]);
    answer[7] = 2;
    for (owner, target) in [(&asked[..], &other[..]), (&other, &asked)] {
        answer.extend(owner);
        answer.extend([0, 5, 0, 1, 0, 0, 14, 16, 0, target.len() as u8]);
        answer.extend(target);
    }
    answer
}

/// Puts into each section what nobody asked for.
fn stuffed(mut answer: Vec<u8>) -> Vec<u8> {
    let victim = wire(LyingServer::VICTIM);
    if question(&answer).is_some_and(|(name, _)| name == LyingServer::VICTIM) {
        return answer;
    }
    let false_address = |answer: &mut Vec<u8>| {
        answer.extend(&victim);
        answer.extend([0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 203, 0, 113, 66]);
    };
    false_address(&mut answer);
    // The zone `example` is served by the victim's name.
    answer.extend(wire("example"));
    answer.extend([0, 2, 0, 1, 0, 0, 14, 16, 0, victim.len() as u8]);
    answer.extend(&victim);
    false_address(&mut answer);
    for count in [7, 9, 11] {
        answer[count] += 1;
    }
    answer
}

/// A name as messages have it.
fn wire(name: &str) -> Vec<u8> {
    let labels =
        name.split('.').flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()));
    labels.chain([0]).collect()
}
