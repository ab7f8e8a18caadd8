//! What a packet costs. Figures, not promises: run by hand on a quiet machine.

use std::time::Instant as Wall;

use engine::Meta;

use super::packet::{Spec, echo};
use super::*;
use crate::link::wireguard::coalesce::{Coalesce, coalesce};
use crate::link::wireguard::header::{Layout, sum};
use crate::link::wireguard::split::{SCRATCH, split};

#[test]
#[ignore = "figures: for a quiet machine and a release build"]
fn cost_of_a_packet() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    for (name, segment, payload) in
        [("1,420 B in super-packets", 1368, 1368 * 44), ("64 B", 24, 24)]
    {
        let spec = Spec { options: vec![1; 12], ..Spec::new("10.0.0.1", "10.0.0.2", true) };
        let spec = if segment == 24 { Spec { options: vec![], ..spec } } else { spec };
        let whole = spec.with(&vec![7; payload]);
        let (headers, payload) = whole.split_at(spec.header());
        let meta = Meta {
            segment: (payload.len() > segment).then_some(segment as u16),
            partial_checksum: true,
        };
        let packets = payload.len().div_ceil(segment);
        let rounds = 200_000 / packets;
        let per = |began: Wall| began.elapsed().as_nanos() as usize / (rounds * packets);

        let mut scratch = vec![0; SCRATCH];
        let began = Wall::now();
        for _ in 0..rounds {
            split(headers, payload, meta, 1420, &mut scratch, |packet| {
                std::hint::black_box(packet);
            })
            .unwrap();
        }
        let cut = per(began);

        let (mut sealing, mut opening, mut joining) = (0, 0, 0);
        for _ in 0..rounds {
            let at = now();
            let began = Wall::now();
            a.core.send(headers, payload, meta, at).unwrap();
            sealing += began.elapsed().as_nanos() as usize;
            let bytes = a.core.outbox.bytes().to_vec();
            let size = a.core.outbox.runs()[0].size;
            a.core.outbox.clear();
            let arrival = Arrival { bytes: 0..0, segment: size, from: a.at, to: None, tos: 0 };
            let began = Wall::now();
            for message in bytes.chunks(size) {
                b.core.open(message, &arrival, at);
            }
            opening += began.elapsed().as_nanos() as usize;
            let opened = &mut b.core.opened;
            assert_eq!(opened.packets.len(), packets);
            let began = Wall::now();
            let what = Coalesce { tcp: true, udp: true };
            coalesce(&mut opened.buffer, &opened.packets, what, &mut |inner| {
                std::hint::black_box(inner);
            });
            joining += began.elapsed().as_nanos() as usize;
            opened.clear();
        }
        let each = |total: usize| total / (rounds * packets);
        eprintln!(
            "{name}: cut and sum {cut} ns, cut and seal {} ns, open {} ns, verify and join {} ns",
            each(sealing),
            each(opening),
            each(joining)
        );
    }
    let packet = Spec::new("10.0.0.1", "10.0.0.2", true).with(&[9; 1380]);
    let began = Wall::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(sum(std::hint::black_box(&packet)));
    }
    eprintln!("sum of 1,420 B: {} ns", began.elapsed().as_nanos() / 1_000_000);
    assert!(Layout::of(&packet).unwrap().verify(&packet));
}
