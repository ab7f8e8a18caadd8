//! Values that many flows have in common, kept once.
//!
//! Thousands of flows leave with a handful of addresses and belong to a handful of users. Each
//! flow refers to the one value; only one that no recent flow had is put down anew.

use std::sync::Arc;

/// How many are remembered. A flow whose value is not among them has one of its own: a
/// matter of memory, never of what is true.
const MOST: usize = 16;

/// The values that flows had lately, the last one first.
#[derive(Debug)]
pub(crate) struct Recent<T>(Vec<Arc<T>>);

impl<T: PartialEq> Recent<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(MOST))
    }

    pub(crate) fn share(&mut self, value: T) -> Arc<T> {
        if let Some(at) = self.0.iter().position(|known| **known == value) {
            let shared = Arc::clone(&self.0[at]);
            self.0[..=at].rotate_right(1);
            return shared;
        }
        let shared = Arc::new(value);
        self.0.truncate(MOST - 1);
        self.0.insert(0, Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_lately_is_shared() {
        let mut recent = Recent::new();
        let most = MOST as u32;
        let first: Vec<_> = (0..most).map(|n| recent.share(n)).collect();
        for n in (0..most).rev() {
            assert!(Arc::ptr_eq(&recent.share(n), &first[n as usize]), "{n}");
        }
        // The one that was not asked for longest gives way.
        recent.share(most);
        assert!(Arc::ptr_eq(&recent.share(0), &first[0]));
        assert!(!Arc::ptr_eq(&recent.share(most - 1), &first[MOST - 1]));
        assert_eq!(*first[MOST - 1], most - 1, "its flows keep it");
        assert_eq!((recent.0.len(), recent.0.capacity()), (MOST, MOST));
    }
}
