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
}

const STREAM: u64 = 1 << 62;
const ECHO: u64 = 2 << 62;
const OTHER: u64 = 3 << 62;
const KIND: u64 = 3 << 62;
const DEVICE: u64 = OTHER | 1 << 32;
const WAKE: u64 = OTHER | 2 << 32;

impl Tag {
    pub(crate) fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Device => DEVICE,
            Self::Wake => WAKE,
            Self::Stream(id) => STREAM | id.to_bits() & !KIND,
            Self::Echo(id) => ECHO | id.to_bits() & !KIND,
            Self::Mapping(slot) => OTHER | u64::from(slot),
        })
    }

    pub(crate) fn from_data(data: EventData) -> Self {
        let bits = data.u64();
        let id = FlowId::from_bits(bits & !KIND);
        match bits & KIND {
            STREAM => Self::Stream(id),
            ECHO => Self::Echo(id),
            _ if bits == DEVICE => Self::Device,
            _ if bits == WAKE => Self::Wake,
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
        ] {
            assert_eq!(Tag::from_data(tag.data()), tag);
        }
    }
}
