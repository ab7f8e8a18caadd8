//! Whatever a far side sends, and whatever a client does meanwhile.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// A segment of any numbers near the true ones, flags, window and options.
    Segment {
        flags: u8,
        sequence: i32,
        acknowledgement: i32,
        window: u16,
        data: usize,
        options: Vec<u8>,
    },
    Datagram(usize),
    Error(u8, u8, u32, i32),
    Write(usize),
    Read,
    End,
    Leave,
    Wait(u16),
    Ways(bool),
    Honest,
}

fn step() -> impl Strategy<Value = Step> {
    let near = || prop_oneof![3 => -3..3_i32, 1 => any::<i32>()];
    let segment = (any::<u8>(), near(), near(), any::<u16>(), 0..3000_usize);
    let options = prop_oneof![
        Just(vec![]),
        Just(vec![2, 4, 0, 0]),
        Just(vec![2, 4, 0, 1, 3, 3, 14, 1]),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop_oneof![
        6 => (segment, options).prop_map(|((flags, sequence, acknowledgement, window, data), options)| {
            Step::Segment { flags, sequence, acknowledgement, window, data, options }
        }),
        1 => (0..3000_usize).prop_map(Step::Datagram),
        1 => (any::<u8>(), 0..20_u8, any::<u32>(), near()).prop_map(|(k, c, r, s)| Step::Error(k % 13, c, r, s)),
        2 => (0..100_000_usize).prop_map(Step::Write),
        2 => Just(Step::Read),
        1 => Just(Step::End),
        1 => Just(Step::Leave),
        2 => any::<u16>().prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Ways),
        3 => Just(Step::Honest),
    ]
}

/// A packet of the far side to the connection at `port`.
fn segment(
    port: u16,
    v6: bool,
    header: (u32, u32, u8, u16),
    data: usize,
    options: &[u8],
) -> Vec<u8> {
    let (sequence, acknowledgement, flags, window) = header;
    let options = &options[..options.len() / 4 * 4];
    let (from, to) = (FAR[usize::from(v6)].ip(), ADDRESS[usize::from(v6)]);
    let mut packet = Vec::new();
    let blank = vec![0; 12 + options.len() + data];
    assert!(write_udp(&mut packet, SocketAddr::new(from, PORT), SocketAddr::new(to, port), &blank));
    let start = if v6 { 40 } else { 20 };
    packet[if v6 { 6 } else { 9 }] = 6;
    let tcp = &mut packet[start..];
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12] = ((20 + options.len()) as u8 / 4) << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&window.to_be_bytes());
    tcp[20..20 + options.len()].copy_from_slice(options);
    packet
}

fn check(v6: bool, honest: bool, steps: &[Step]) {
    let mut pair = Pair::new();
    if honest {
        pair.listen(v6);
    }
    let (mut stream, mut socket) = (Some(pair.connect(v6)), Some(pair.bind(v6)));
    let (mut next, mut expects) = (0_u32, 0_u32);
    for step in steps {
        pair.netstack.turn(&mut pair.below, pair.now);
        for packet in &pair.below.out {
            let (start, protocol) =
                if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
            if protocol == 6 {
                let word = |at: usize| {
                    u32::from_be_bytes(packet[start + at..start + at + 4].try_into().expect("four"))
                };
                (next, expects) = (word(4), word(8));
            }
            assert!(packet.len() <= usize::from(MTU));
        }
        pair.below.out.clear();
        let of = |protocol| pair.below.taken.iter().find(|it| it.protocol == protocol).copied();
        match step {
            Step::Segment { flags, sequence, acknowledgement, window, data, options } => {
                let Some(port) = of(Protocol::Tcp) else { continue };
                let sequence = expects.wrapping_add_signed(*sequence);
                let acknowledgement = next.wrapping_add(1).wrapping_add_signed(*acknowledgement);
                let header = (sequence, acknowledgement, *flags, *window);
                let packet = segment(port.port, v6, header, *data, options);
                pair.netstack.arrive(port, Arrived::Segment(packet));
            }
            Step::Datagram(length) => {
                let Some(port) = of(Protocol::Udp) else { continue };
                pair.netstack.arrive(port, Arrived::Datagram(vec![1; *length]));
            }
            Step::Error(kind, code, rest, sequence) => {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let Some(port) = of(protocol) else { continue };
                    let (kind, code, rest) = (*kind, *code, *rest);
                    let sequence = next.wrapping_add_signed(*sequence);
                    pair.netstack.arrive(port, Arrived::Error { kind, code, rest, sequence });
                }
            }
            Step::Write(length) => {
                let data = vec![2; *length];
                stream.as_ref().map(|stream| stream.write_now(&data));
                socket.as_ref().map(|socket| socket.send(&data));
            }
            Step::Read => {
                stream.as_ref().map(Stream::read_now);
                let mut room = [0; 100];
                socket.as_ref().map(|socket| socket.receive(&mut room));
            }
            Step::End => {
                stream.as_ref().map(Stream::end);
            }
            Step::Leave => {
                stream = None;
                socket = Some(pair.bind(v6));
            }
            Step::Wait(millis) => pair.now = pair.now + Duration::from_millis((*millis).into()),
            Step::Ways(usable) => {
                pair.below.ways = ways(*usable);
                pair.netstack.turn(&mut pair.below, pair.now);
            }
            Step::Honest => pair.step(),
        }
        assert_eq!(pair.netstack.len(), pair.below.taken.len(), "a port a socket");
        assert!(pair.netstack.len() <= 3);
    }
    // Whatever was done to them, they end.
    drop((stream, socket));
    pair.dead = true;
    pair.until("all is released", |pair| (pair.netstack.len() == 0).then_some(()));
    assert!(pair.below.taken.is_empty());
    assert_eq!(pair.netstack.next_timer(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_comes_breaks_it(
        v6 in any::<bool>(),
        honest in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        check(v6, honest, &steps);
    }
}
