//! The resolver over real UDP sockets, to servers in this process.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::NULL;
use tokio::net::UdpSocket;

use super::*;

/// Resolver 0, one server, one socket a question.
#[derive(Debug)]
struct Socket(SocketAddr);

impl Upstreams for Socket {
    async fn ask(
        &self,
        _: ResolverId,
        question: &Question,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let exchange = async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
            socket.connect(self.0).await.ok()?;
            socket.send(&question.query().to_vec().ok()?).await.ok()?;
            let mut buffer = vec![0; 65_535];
            let length = socket.recv(&mut buffer).await.ok()?;
            Some(Message::from_vec(&buffer[..length]).map_err(|_| Failure::Malformed))
        };
        let message = timeout(within, exchange).await.map_err(|_| Failure::TimedOut)?;
        let message = message.unwrap_or(Err(Failure::ConnectionRefused))?;
        let (server, took) = (self.0, Duration::ZERO);
        Ok(Reply { message, server, transport: Transport::Udp, took })
    }

    fn is_tunnel(&self, _: ResolverId) -> bool {
        false
    }
}

/// A server that answers each query with what `answer` makes of it.
async fn server(
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> (Arc<Resolver<Socket>>, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, Relaxed);
            let _ = socket.send_to(&answer(&buffer[..length]), from).await;
        }
    });
    let plan = Arc::new(OneRule("", Rule::default()));
    (Resolver::new(Settings::default(), plan, Socket(address)), asked)
}

fn answering(query: &[u8], answers: Vec<Record>) -> Vec<u8> {
    let query = Message::from_vec(query).expect("a query");
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.queries.clone_from(&query.queries);
    message.answers = answers;
    message.to_vec().expect("an answer")
}

#[tokio::test]
async fn a_long_answer_is_cut_for_udp_alone() {
    let (resolver, asked) = server(|query| {
        let records = (0..200).map(|n| record("w.example", 60, &format!("198.51.100.{n}")));
        answering(query, records.collect())
    })
    .await;
    for (case, query, over, cut) in [
        ("plain UDP", query(7, "W.example", 1), Over::Udp, true),
        ("EDNS", query_edns(7, "W.example", 1, 65_535, false), Over::Udp, true),
        ("TCP", query(7, "W.example", 1), Over::Tcp, false),
        ("EDNS over TCP", query_edns(7, "W.example", 1, 512, false), Over::Tcp, false),
    ] {
        let answer = resolver.resolve(query.clone(), over).await;
        let mut room = Vec::new();
        let warm = resolver.cached(&query, over, Instant::now(), &mut room).expect("kept");
        assert_eq!(warm.known.expect("addresses").addresses.len(), 200, "{case}");
        assert_eq!(room, answer.bytes, "{case}");
        let message = Message::from_vec(&room).expect("an answer");
        assert_eq!(message.metadata.truncation, cut, "{case}");
        assert_eq!(message.answers.len(), if cut { 0 } else { 200 }, "{case}");
        assert_eq!(message.edns.is_some(), query[11] == 1, "{case}");
        assert_eq!(answer.learned.expect("addresses").addresses.len(), 200, "{case}");
    }
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn a_type_that_nobody_knows_passes_untouched() {
    let bytes: Vec<u8> = (0..=255).collect();
    let data = RData::Unknown { code: RecordType::from(65_280), rdata: NULL::with(bytes.clone()) };
    let data = Record::from_rdata(crate::answer::tests::name("w.example"), 60, data);
    let sent = data.clone();
    let (resolver, _) = server(move |query| answering(query, vec![sent.clone()])).await;
    let answer = resolver.resolve(query(7, "w.example", 65_280), Over::Udp).await;
    let message = Message::from_vec(&answer.bytes).expect("an answer");
    assert_eq!(message.answers, [data]);
    assert!(answer.bytes.windows(256).any(|window| window == bytes));
}

#[tokio::test]
async fn no_server_makes_it_panic() {
    use rustix::rand::{GetRandomFlags, getrandom};
    let (resolver, asked) = server(|query| {
        // What is left of the query's bytes in front decides how far a reader gets.
        let mut noise = [0; 90];
        getrandom(&mut noise, GetRandomFlags::empty()).expect("Linux");
        let kept = usize::from(noise[0]) % query.len();
        let mut bytes = query[..kept].to_vec();
        bytes.extend_from_slice(&noise[1..1 + usize::from(noise[1] % 80)]);
        if let Some(flags) = bytes.get_mut(2) {
            *flags |= 0x80;
        }
        if let Some(counts) = bytes.get_mut(6..12) {
            counts.copy_from_slice(&[0, noise[2] % 3, 0, noise[3] % 3, 0, noise[4] % 3]);
        }
        bytes
    })
    .await;
    for n in 0..400 {
        let answer = resolver.resolve(query(n, &format!("n{n}.example"), 1), Over::Udp).await;
        let message = Message::from_vec(&answer.bytes).expect("an answer");
        assert_eq!(message.metadata.id, n);
    }
    assert_eq!(asked.load(Relaxed), 400);
}

#[tokio::test]
async fn a_poisoner_says_nothing_about_others() {
    let (resolver, _) = server(|query| {
        let mut message = Message::from_vec(&answering(
            query,
            records(&[("w.example", 60, "198.51.100.1"), ("bank.example", 60, "198.51.100.66")]),
        ))
        .expect("an answer");
        message.authorities = records(&[("example", 60, "NS evil.example")]);
        message.additionals = records(&[("evil.example", 60, "198.51.100.66")]);
        message.to_vec().expect("an answer")
    })
    .await;
    let answer = resolver.resolve(query(7, "w.example", 1), Over::Udp).await;
    let message = Message::from_vec(&answer.bytes).expect("an answer");
    assert_eq!(message.answers.len(), 1);
    assert_eq!((message.authorities.len(), message.additionals.len()), (0, 0));
    assert_eq!(answer.learned.expect("addresses").addresses.len(), 1);
    let mut room = Vec::new();
    let bank = query(8, "bank.example", 1);
    assert_eq!(resolver.cached(&bank, Over::Udp, Instant::now(), &mut room), None);
}
