//! Who answers names: the resolvers of a configuration, by number.

use std::fmt;
use std::sync::Arc;

/// The number of a resolver. The same name has the same one for as long as the process
/// lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResolverId(u8);

impl ResolverId {
    /// The servers of the network that the host is on, which need no configuration.
    pub const UPSTREAM: Self = Self(0);
    /// How many resolvers there can be.
    pub const MOST: usize = 64;

    /// `None` beyond [`ResolverId::MOST`].
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < Self::MOST).then_some(Self(number))
    }

    /// Its number, below [`ResolverId::MOST`].
    pub fn number(self) -> u8 {
        self.0
    }
}

/// Some of the resolvers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResolverSet(u64);

impl ResolverSet {
    /// None of them.
    pub const EMPTY: Self = Self(0);

    /// The bit of each resolver's number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bit of each resolver's number.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// With this one as well.
    #[must_use]
    pub const fn with(self, resolver: ResolverId) -> Self {
        Self(self.0 | 1 << resolver.0)
    }

    /// What is in one of the two.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether this one is in it.
    pub const fn contains(self, resolver: ResolverId) -> bool {
        self.0 >> resolver.0 & 1 == 1
    }

    /// Whether none is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = ResolverId> {
        (0..Self::BITS).map(ResolverId).filter(move |id| self.contains(*id))
    }

    const BITS: u8 = 64;
}

impl From<ResolverId> for ResolverSet {
    fn from(resolver: ResolverId) -> Self {
        Self::EMPTY.with(resolver)
    }
}

impl FromIterator<ResolverId> for ResolverSet {
    fn from_iter<I: IntoIterator<Item = ResolverId>>(resolvers: I) -> Self {
        resolvers.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for ResolverSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(ResolverId::number)).finish()
    }
}

/// There would be more than [`ResolverId::MOST`], counted with those that were removed
/// since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} resolvers, with those that were removed since the start", most = ResolverId::MOST)]
pub struct TooManyResolvers;

/// The names of resolvers and their numbers.
///
/// A number is never given to another name: what was learned from a resolver that a reload
/// has removed is still its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolvers {
    list: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    name: Arc<str>,
    configured: bool,
}

impl Default for Resolvers {
    /// `upstream` alone.
    fn default() -> Self {
        Self { list: vec![Slot { name: Self::UPSTREAM.into(), configured: true }] }
    }
}

impl Resolvers {
    /// The name of [`ResolverId::UPSTREAM`].
    pub const UPSTREAM: &str = "upstream";

    /// After a reload: `upstream` and exactly these are configured, under the numbers that
    /// they had, or under new ones.
    ///
    /// # Errors
    /// The numbers are used up.
    pub fn configured<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, TooManyResolvers> {
        let mut list = self.list.clone();
        list.iter_mut().skip(1).for_each(|slot| slot.configured = false);
        for name in names {
            match list.iter().position(|slot| &*slot.name == name) {
                Some(at) => list[at].configured = true,
                None if list.len() == ResolverId::MOST => return Err(TooManyResolvers),
                None => list.push(Slot { name: name.into(), configured: true }),
            }
        }
        Ok(Self { list })
    }

    /// The resolver of this name, if it is configured.
    pub fn id(&self, name: &str) -> Option<ResolverId> {
        let at = self.list.iter().position(|slot| slot.configured && &*slot.name == name)?;
        u8::try_from(at).ok().and_then(ResolverId::new)
    }

    /// The name of a resolver, also of one that was removed.
    pub fn name(&self, resolver: ResolverId) -> Option<&Arc<str>> {
        self.list.get(usize::from(resolver.0)).map(|slot| &slot.name)
    }

    /// The names of those that are configured.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter(|slot| slot.configured).map(|slot| &*slot.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_belongs_to_one_name() {
        let id = |number| ResolverId::new(number);
        let first = Resolvers::default().configured(["corp", "lab"]).expect("few");
        assert_eq!((first.id("corp"), first.id("lab"), first.id("home")), (id(1), id(2), None));
        let second = first.configured(["home", "lab"]).expect("few");
        for (name, number) in [("upstream", id(0)), ("corp", None), ("lab", id(2)), ("home", id(3))]
        {
            assert_eq!(second.id(name), number, "{name}");
        }
        assert_eq!(second.name(ResolverId(1)).map(|name| &**name), Some("corp"));
        assert_eq!(second.names().collect::<Vec<_>>(), ["upstream", "lab", "home"]);
        let third = second.configured(["corp"]).expect("few");
        assert_eq!((third.id("corp"), third.id("lab")), (id(1), None));
    }

    #[test]
    fn numbers_end() {
        let names: Vec<String> = (1..ResolverId::MOST).map(|n| format!("r{n}")).collect();
        let all = Resolvers::default().configured(names.iter().map(String::as_str));
        let all = all.expect("as many as there can be");
        assert_eq!(all.id("r63").map(ResolverId::number), Some(63));
        assert_eq!(all.configured(["another"]), Err(TooManyResolvers));
        assert_eq!(ResolverId::new(64), None);
    }

    #[test]
    fn sets() {
        let ids: Vec<ResolverId> = [0, 5, 63].into_iter().filter_map(ResolverId::new).collect();
        let set: ResolverSet = ids.iter().copied().collect();
        assert_eq!(set.bits(), 1 | 1 << 5 | 1 << 63);
        assert_eq!(set.iter().collect::<Vec<_>>(), ids);
        assert!(set.contains(ids[1]) && !set.contains(ResolverId(6)));
        assert_eq!(ResolverSet::from(ids[0]).union(ids[2].into()).bits(), 1 | 1 << 63);
        assert!(ResolverSet::EMPTY.is_empty());
    }
}
