//! Packets of tunnels on their way between shards.
//!
//! A tunnel belongs to the first shard, and a flow to the shard whose queue of the device it came
//! by. So a packet into a tunnel goes from its flow's shard to the first, which seals it, and an
//! answer back: whose port it is for, that shard ([`engine::Share`]). On the way they lie in
//! baskets, which change hands once a turn: a packet costs a copy, a turn a lock, and no memory
//! is taken once the baskets have grown.
//!
//! A basket that nobody has emptied stays with its writer, whose packets find no room once it
//! holds [`LIMIT`]; who empties one rings for a writer that waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Instant, LINK_ERROR, LinkId, Meta, Unsent, link_error};

use super::Driver;
use crate::device::Device;
use crate::driver::bell::Bell;

/// Bytes that wait on each side of a lane: what a shard reads of its device in a turn.
const LIMIT: usize = 1 << 20;

/// Packets behind each other.
#[derive(Debug, Default)]
struct Basket {
    bytes: Vec<u8>,
    packets: Vec<Packet>,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    link: LinkId,
    /// Bytes of its headers, and of all of it.
    headers: usize,
    length: usize,
    meta: Meta,
}

/// One direction of a lane.
#[derive(Debug)]
struct Shared {
    basket: Mutex<Basket>,
    /// The writer has a basket that did not fit.
    waits: AtomicBool,
    reader: Arc<Bell>,
    writer: Arc<Bell>,
}

/// The end of a lane that packets are put in.
#[derive(Debug)]
pub(crate) struct Sender {
    basket: Basket,
    shared: Arc<Shared>,
}

/// The end that they are taken from.
#[derive(Debug)]
struct Receiver {
    basket: Basket,
    shared: Arc<Shared>,
}

/// The lanes that lead away from a shard.
#[derive(Debug, Default)]
pub(crate) enum Away {
    /// There is no other shard.
    #[default]
    Alone,
    /// This one has the tunnels: a lane to each of the others, from the second.
    ToFlows(Vec<Sender>),
    /// To the first.
    ToTunnels(Sender),
}

/// The lanes that lead to a shard.
#[derive(Debug, Default)]
pub(super) struct Here(Vec<Receiver>);

/// Joins shards, the first of which is to have the tunnels. Their engines' shares are to be
/// numbered in this order.
pub fn join<D: Device>(drivers: &mut [Driver<D>]) {
    let [first, others @ ..] = drivers else { return };
    if others.is_empty() {
        return;
    }
    let mut to_flows = Vec::with_capacity(others.len());
    for other in others {
        let (to_tunnels, from_flows) = lane(&other.handle.bell, &first.handle.bell);
        let (to_flow, from_tunnels) = lane(&first.handle.bell, &other.handle.bell);
        other.sockets.away = Away::ToTunnels(to_tunnels);
        other.sockets.lives_beside(first.handle.board.clone(), Arc::clone(&other.handle.bell));
        other.here.0.push(from_tunnels);
        first.here.0.push(from_flows);
        to_flows.push(to_flow);
    }
    first.sockets.away = Away::ToFlows(to_flows);
}

fn lane(writer: &Arc<Bell>, reader: &Arc<Bell>) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        basket: Mutex::default(),
        waits: AtomicBool::new(false),
        reader: Arc::clone(reader),
        writer: Arc::clone(writer),
    });
    let receiver = Receiver { basket: Basket::default(), shared: Arc::clone(&shared) };
    (Sender { basket: Basket::default(), shared }, receiver)
}

impl Basket {
    fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }

    fn append(&mut self, other: &mut Self) {
        self.bytes.append(&mut other.bytes);
        self.packets.append(&mut other.packets);
    }
}

impl Shared {
    fn basket(&self) -> MutexGuard<'_, Basket> {
        self.basket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Puts a packet, as [`engine::Sink::to_link`] has it or [`engine::Sink::to_shard`].
    pub(crate) fn put<'a>(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
        meta: Meta,
    ) -> Result<(), Unsent> {
        let payload = payload.into_iter();
        let length = headers.len() + payload.clone().map(<[u8]>::len).sum::<usize>();
        let Basket { bytes, packets } = &mut self.basket;
        if bytes.len() + length > LIMIT {
            return Err(Unsent::Full);
        }
        bytes.extend_from_slice(headers);
        payload.for_each(|piece| bytes.extend_from_slice(piece));
        packets.push(Packet { link, headers: headers.len(), length, meta });
        Ok(())
    }

    /// Hands over what was put: once a turn.
    fn flush(&mut self) {
        if self.basket.packets.is_empty() {
            return;
        }
        let mut there = self.shared.basket();
        if there.packets.is_empty() {
            std::mem::swap(&mut *there, &mut self.basket);
        } else if there.bytes.len() + self.basket.bytes.len() <= LIMIT {
            there.append(&mut self.basket);
        } else {
            self.shared.waits.store(true, Ordering::Release);
        }
        drop(there);
        self.shared.reader.ring();
    }
}

impl Away {
    /// Hands over what was put.
    pub(super) fn flush(&mut self) {
        match self {
            Self::Alone => {}
            Self::ToFlows(lanes) => lanes.iter_mut().for_each(Sender::flush),
            Self::ToTunnels(lane) => lane.flush(),
        }
    }
}

impl Receiver {
    /// Takes what was handed over, to be looked at and given back by [`Receiver::done`].
    fn take(&mut self) -> Basket {
        std::mem::swap(&mut *self.shared.basket(), &mut self.basket);
        if self.shared.waits.swap(false, Ordering::AcqRel) {
            self.shared.writer.ring();
        }
        std::mem::take(&mut self.basket)
    }

    fn done(&mut self, mut basket: Basket) {
        basket.clear();
        self.basket = basket;
    }
}

impl<D: Device> Driver<D> {
    /// Takes what other shards have for this one.
    pub(super) fn take_lanes(&mut self, now: Instant) {
        let mut lanes = std::mem::take(&mut self.here.0);
        for (number, lane) in lanes.iter_mut().enumerate() {
            let mut basket = lane.take();
            let mut rest = &mut basket.bytes[..];
            for Packet { link, headers, length, meta } in basket.packets.drain(..) {
                let Some((packet, behind)) = rest.split_at_mut_checked(length) else { break };
                rest = behind;
                let Some((headers, payload)) = packet.split_at_mut_checked(headers) else { break };
                match self.sockets.away {
                    Away::Alone => {}
                    Away::ToFlows(_) => self.send_for(number, link, (headers, payload), meta),
                    Away::ToTunnels(_) => self.take_answer(link, headers, payload, meta, now),
                }
            }
            lane.done(basket);
        }
        self.here.0 = lanes;
        self.answer(now);
    }

    /// Sends a packet of another shard's into a tunnel.
    fn send_for(
        &mut self,
        number: usize,
        link: LinkId,
        (headers, payload): (&[u8], &[u8]),
        meta: Meta,
    ) {
        let sent = self.sockets.links.send(link, headers, payload, meta);
        // One that finds no room is lost, as on any network.
        let Err(Unsent::Failed(failure)) = sent else { return };
        let mut error = [0; LINK_ERROR];
        let length = link_error(&mut error, [headers, payload], failure);
        if length > 0
            && let Away::ToFlows(lanes) = &mut self.sockets.away
            && let Some(lane) = lanes.get_mut(number)
        {
            let _ = lane.put(link, &error[..length], [], Meta::default());
        }
    }

    /// Takes what came out of a tunnel for this shard.
    fn take_answer(
        &mut self,
        link: LinkId,
        headers: &mut [u8],
        payload: &[u8],
        meta: Meta,
        now: Instant,
    ) {
        self.guard(now, |driver| {
            let (engine, sockets) = (&mut driver.engine, &mut driver.sockets);
            let payload = &[payload][..];
            let taken = engine.handle_link_packet(link, headers, payload, meta, now, sockets);
            if let Some(meta) = taken {
                driver.sockets.port.deliver(headers, payload, meta);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::WayId;

    fn ends() -> (Sender, Receiver, [Arc<Bell>; 2]) {
        let bells = [(); 2].map(|()| Arc::new(Bell::new().expect("an eventfd")));
        let (sender, receiver) = lane(&bells[0], &bells[1]);
        (sender, receiver, bells)
    }

    fn link() -> LinkId {
        LinkId::of(WayId::new(1).expect("few"))
    }

    /// What is taken, each packet as its headers and its payload; it is given back.
    fn taken(receiver: &mut Receiver) -> Vec<(Vec<u8>, Vec<u8>)> {
        let basket = receiver.take();
        let mut rest = &basket.bytes[..];
        let mut all = Vec::new();
        for packet in &basket.packets {
            let (bytes, behind) = rest.split_at(packet.length);
            let (headers, payload) = bytes.split_at(packet.headers);
            all.push((headers.to_vec(), payload.to_vec()));
            rest = behind;
        }
        assert!(rest.is_empty());
        receiver.done(basket);
        all
    }

    fn is_rung(bell: &Bell) -> bool {
        let rung = rustix::io::read(bell.fd(), &mut [0; 8]).is_ok();
        bell.heard();
        rung
    }

    #[test]
    fn packets_arrive_as_they_were_and_in_order() {
        let (mut sender, mut receiver, [_, reader]) = ends();
        for turn in 0..3u8 {
            for number in 0..5 {
                let payload: [&[u8]; 2] = [&[turn], &[number; 100]];
                sender.put(link(), &[number; 28], payload, Meta::default()).expect("there is room");
            }
            assert!(!is_rung(&reader) && taken(&mut receiver).is_empty(), "not before the flush");
            sender.flush();
            assert!(is_rung(&reader));
            let all = taken(&mut receiver);
            assert_eq!(all.len(), 5);
            for (number, (headers, payload)) in (0..).zip(all) {
                assert_eq!((headers, &payload[1..]), (vec![number; 28], &[number; 100][..]));
                assert_eq!(payload[0], turn);
            }
        }
        sender.flush();
        assert!(!is_rung(&reader), "there is nothing to take");
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_goes_on_when_it_is_taken() {
        let (mut sender, mut receiver, [writer, _]) = ends();
        let packet = [7; 1000];
        let mut put = 0;
        // Some are handed over, then a basket that does not fit stays.
        for turn in 0..5000 {
            match sender.put(link(), &packet, [], Meta::default()) {
                Ok(()) => put += 1,
                Err(why) => assert_eq!(why, Unsent::Full, "turn {turn}"),
            }
            if turn % 100 == 0 {
                sender.flush();
            }
        }
        sender.flush();
        assert!(put >= LIMIT / packet.len() && put <= 2 * LIMIT / packet.len(), "{put}");
        assert!(!is_rung(&writer));
        let first = taken(&mut receiver).len();
        assert!(is_rung(&writer), "there is room again");
        sender.flush();
        assert_eq!(first + taken(&mut receiver).len(), put);
        assert!(!is_rung(&writer), "nobody waits");
        sender.put(link(), &packet, [], Meta::default()).expect("there is room");
    }
}
