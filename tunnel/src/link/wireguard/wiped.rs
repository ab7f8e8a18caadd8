//! A box whose bytes are overwritten when its value is gone.
//!
//! `Tunn` keeps the preshared key and the keys of its sessions in plain arrays, which nobody
//! wipes. They lie inside of the value itself, so its memory is wiped instead.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// A boxed value, wiped after its own drop.
pub(super) struct Wiped<T>(Box<MaybeUninit<T>>);

impl<T> Wiped<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Box::new(MaybeUninit::new(value)))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has initialised it, and only `drop` takes that away.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.0.assume_init_mut() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, dropped once, and not looked at any more.
        unsafe { self.0.assume_init_drop() };
        let start = self.0.as_mut_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: the box is alive and this is its whole memory, which nobody else sees.
        unsafe { std::slice::from_raw_parts_mut(start, size_of::<T>()) }.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn the_value_is_dropped_once() {
        let inside = Rc::new(7);
        let wiped = Wiped::new((inside.clone(), [9_u8; 64]));
        assert_eq!((*wiped.deref().0, Rc::strong_count(&inside)), (7, 2));
        drop(wiped);
        assert_eq!(Rc::strong_count(&inside), 1);
    }
}
