//! What a readiness event is about, packed into epoll's 64 bits.
//!
//! A socket that is closed leaves epoll at once, but an event taken in the same batch may
//! still name it; the serial of its flow tells such a stale event from a new flow's.

use engine::FlowId;
use rustix::event::epoll::EventData;

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Device,
    Wake,
    Stream(FlowId),
    Echo(FlowId),
    /// A mapping's place in the engine's table.
    Mapping(u32),
    /// A tunnel's socket, by the tunnel's number.
    Link(u8),
    /// A probe of a proxy, by its number.
    Probe(u32),
    /// The connection to a proxy that a mapping's datagrams need: the mapping's place, and which
    /// of those that were there.
    Control(u32, u32),
}

const CONTROL: u64 = 0;
const STREAM: u64 = 1 << 62;
const ECHO: u64 = 2 << 62;
const OTHER: u64 = 3 << 62;
const KIND: u64 = 3 << 62;
const DEVICE: u64 = OTHER | 1 << 32;
const WAKE: u64 = OTHER | 2 << 32;
const LINK: u64 = OTHER | 3 << 32;
const PROBE: u64 = OTHER | 4 << 32;

impl Tag {
    /// The highest serial of [`Tag::Control`].
    pub(crate) const LAST_SERIAL: u32 = u32::MAX >> 2;

    pub(crate) fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Device => DEVICE,
            Self::Wake => WAKE,
            Self::Stream(id) => STREAM | id.to_bits() & !KIND,
            Self::Echo(id) => ECHO | id.to_bits() & !KIND,
            Self::Mapping(slot) => OTHER | u64::from(slot),
            Self::Link(number) => LINK | u64::from(number),
            Self::Probe(number) => PROBE | u64::from(number),
            Self::Control(slot, serial) => {
                CONTROL | (u64::from(serial) << 32 | u64::from(slot)) & !KIND
            }
        })
    }

    pub(crate) fn from_data(data: EventData) -> Self {
        let bits = data.u64();
        let id = FlowId::from_bits(bits & !KIND);
        match bits & KIND {
            STREAM => Self::Stream(id),
            ECHO => Self::Echo(id),
            CONTROL => Self::Control(bits as u32, (bits >> 32) as u32),
            _ if bits == DEVICE => Self::Device,
            _ if bits == WAKE => Self::Wake,
            _ if bits & !0xff == LINK => Self::Link(bits as u8),
            _ if bits & !0xffff_ffff == PROBE => Self::Probe(bits as u32),
            _ => Self::Mapping(bits as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_the_round_trip() {
        let id = FlowId::from_bits(0x3fff_ffff_0001_e240);
        for tag in [
            Tag::Device,
            Tag::Wake,
            Tag::Stream(id),
            Tag::Echo(id),
            Tag::Mapping(0),
            Tag::Mapping(u32::MAX),
            Tag::Link(0),
            Tag::Link(u8::MAX),
            Tag::Probe(0),
            Tag::Probe(u32::MAX),
            Tag::Control(0, 0),
            Tag::Control(u32::MAX, Tag::LAST_SERIAL),
        ] {
            assert_eq!(Tag::from_data(tag.data()), tag);
        }
    }
}
