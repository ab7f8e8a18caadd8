//! Which of several engines a port at a tunnel's address belongs to.
//!
//! Shards share the tunnels, each with its own address translation. They divide the ports by
//! their remainder: whoever has a packet out of a tunnel sees from it alone whose it is, and no
//! two shards give away the same port.

/// One shard of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    number: u16,
    of: u16,
}

impl Default for Share {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Share {
    /// There is no other.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// Shard `number`, counted from 0, of so many; `None`: there is no such shard.
    pub fn new(number: usize, of: usize) -> Option<Self> {
        let (number, of) = (u16::try_from(number).ok()?, u16::try_from(of).ok()?);
        (number < of).then_some(Self { number, of })
    }

    /// The shard that a port is, where it is another one's.
    pub(crate) fn other(self, port: u16) -> Option<usize> {
        let owner = port % self.of;
        (owner != self.number).then_some(usize::from(owner))
    }

    /// A port of this shard, next to one that is not below `least`.
    pub fn nearest(self, port: u16, least: u16) -> u16 {
        let own = u32::from(port - port % self.of) + u32::from(self.number);
        let own = if own > u32::from(u16::MAX) { own - u32::from(self.of) } else { own };
        let own = if own < u32::from(least) { own + u32::from(self.of) } else { own };
        // Shards are fewer than ports.
        u16::try_from(own).unwrap_or(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_one_shards() {
        for of in [1, 2, 3, 7, 64] {
            let shards: Vec<Share> = (0..of).filter_map(|n| Share::new(n, of)).collect();
            assert_eq!(shards.len(), of);
            for port in 0..=u16::MAX {
                let owners = shards.iter().filter(|shard| shard.other(port).is_none()).count();
                assert_eq!(owners, 1, "port {port} of {of}");
            }
        }
    }

    #[test]
    fn the_nearest_port_is_its_own() {
        for of in [1, 2, 3, 7, 64] {
            for number in 0..of {
                let share = Share::new(number, of).expect("one of them");
                for port in (1024..=1200).chain(65_400..=u16::MAX) {
                    let own = share.nearest(port, 1024);
                    assert_eq!(share.other(own), None, "port {port}, shard {number} of {of}");
                    assert!(own >= 1024 && own.abs_diff(port) <= of as u16, "{port} to {own}");
                }
            }
        }
    }

    #[test]
    fn there_is_no_shard_beyond_the_last() {
        assert_eq!(Share::new(1, 1), None);
        assert_eq!(Share::new(0, 0), None);
        assert_eq!(Share::new(0, 1), Some(Share::WHOLE));
    }
}
