//! The memory that bytes of TCP flows wait in.
//!
//! # Theory of operation
//!
//! A flow has two rings: bytes on their way to the far side and bytes on their way to the app.
//! They are pieces of private anonymous mappings, never of malloc: once a large chunk has
//! been freed, glibc serves the next ones from its heap and clears them by hand (135 µs and
//! 2 MiB resident a flow), where a mapping costs nothing until it is touched. Giving rings
//! back, or a flow that idles with empty rings, returns the pages to the kernel.
//!
//! **Budget.** `memory` bounds the worst case: every ring of every flow full. Each pair is
//! charged in full when it is taken. The first 5/8 of the budget are only for pairs of the
//! least size, so that many flows fit (10,240 in 512 MiB); what a pair holds beyond the
//! least is charged to the other 3/8, of which 1 MiB rings may use the first half, 256 KiB
//! rings half of what is left, and 64 KiB rings the rest. So the first few dozen flows run at
//! full speed, and a crowd gets rings that a crowd can have. A ring cannot change its size
//! later: its window scale is fixed by the SYN-ACK.
//!
//! **Slabs.** Address space is reserved by the slab, a few MiB at a time and for one size
//! class, and never unmapped: that is what lets a ring be `&'static mut`. Free pairs are a
//! stack per class, so the pages that were used last are used next. Huge pages are refused:
//! one touched byte would make 2 MiB resident.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The rings of one flow, given away until [`Pool::give_back`].
#[derive(Debug)]
pub struct Rings {
    /// The receipt: needed to trim or give back.
    pub id: RingId,
    /// For bytes from the app.
    pub to_far: &'static mut [u8],
    /// For bytes from the far side.
    pub to_app: &'static mut [u8],
}

/// Names rings that were taken. It cannot be copied: they are given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "rings are only given back by their id"]
pub struct RingId {
    pool: u32,
    pair: u32,
    class: u8,
}

/// Why there are no rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// The budget is promised away.
    #[error("limits.memory is promised to other flows")]
    Budget,
    /// The kernel has no address space for us.
    #[error("cannot map memory for a flow: {0}")]
    Map(Errno),
}

/// What a pool has given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Pairs of rings that flows have.
    pub pairs: usize,
    /// Bytes that these may come to hold.
    pub promised: usize,
    /// Bytes of address space reserved so far.
    pub reserved: usize,
}

/// The rings of one shard.
#[derive(Debug)]
pub struct Pool {
    number: u32,
    budget: usize,
    /// Of `usage.promised`, what lies beyond a least pair for each.
    surplus: usize,
    usage: Usage,
    classes: [Class; CLASSES.len()],
}

#[derive(Debug, Default)]
struct Class {
    slabs: Vec<NonNull<u8>>,
    /// Numbers of the pairs that nobody has.
    free: Vec<u32>,
}

// SAFETY: the pointers are the starts of mappings that live as long as the process and that
// only this pool hands out pieces of; no thread has a claim to them.
unsafe impl Send for Pool {}

impl Pool {
    /// A pool that promises at most `budget` bytes. Nothing is reserved yet.
    pub fn new(budget: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            budget,
            surplus: 0,
            usage: Usage::default(),
            classes: Default::default(),
        }
    }

    /// Rings for a new flow, of the largest size that the budget allows. Their contents are
    /// unspecified. Constant time, but for one mapping a slab.
    pub fn take(&mut self) -> Result<Rings, TakeError> {
        let class = self.class().ok_or(TakeError::Budget)?;
        self.take_of(class)
    }

    /// Rings of the least size, for a flow that carries little.
    pub fn take_least(&mut self) -> Result<Rings, TakeError> {
        const SMALLEST: usize = CLASSES.len() - 1;
        if self.usage.promised + CLASSES[SMALLEST].pair() > self.budget {
            return Err(TakeError::Budget);
        }
        self.take_of(SMALLEST)
    }

    fn take_of(&mut self, class: usize) -> Result<Rings, TakeError> {
        let size = CLASSES[class];
        let pair = self.free_pair(class).map_err(TakeError::Map)?;
        self.usage.pairs += 1;
        self.usage.promised += size.pair();
        self.surplus += size.surplus();
        let start = self.start(class, pair);
        let id = RingId {
            pool: self.number,
            pair,
            class: class as u8, // fewer than 256 classes
        };
        // SAFETY: `start` begins a pair inside a mapping that is readable, writable,
        // initialised (zeroed by the kernel) and never unmapped. The pair came off the free
        // stack, so no other slice into it lives: it was never handed out, or `give_back`'s
        // caller vouched that its slices are gone. The halves don't overlap.
        let (to_far, to_app) = unsafe {
            (
                std::slice::from_raw_parts_mut(start.as_ptr(), size.ring),
                std::slice::from_raw_parts_mut(start.add(size.ring).as_ptr(), size.ring),
            )
        };
        Ok(Rings { id, to_far, to_app })
    }

    /// Takes rings back and returns their pages to the kernel. No more than the first
    /// `touched` bytes of either were written to: where that is little, nothing is returned.
    ///
    /// # Safety
    ///
    /// Both slices that came with `id` are gone: whatever they were moved into has been
    /// dropped, and no pointer derived from them is used again.
    ///
    /// # Panics
    ///
    /// When `id` came from another pool.
    pub unsafe fn give_back(&mut self, id: RingId, touched: u64) {
        let (class, pair) = self.find(&id);
        let kept = if self.classes[class].free.len() < WARM { KEPT } else { 0 };
        if touched > kept as u64 {
            // SAFETY: nobody looks at the rings any more.
            unsafe { self.release(class, pair, kept) };
        }
        let size = CLASSES[class];
        self.usage.pairs -= 1;
        self.usage.promised -= size.pair();
        self.surplus -= size.surplus();
        self.classes[class].free.push(pair);
    }

    /// Returns the pages of a flow's rings to the kernel, while the flow keeps the rings.
    /// They may then hold anything.
    ///
    /// # Safety
    ///
    /// The rings hold no byte that is still wanted, and no borrow of them is in use during
    /// the call (a slice that lies in the flow's socket is not in use): to the owner of the
    /// slices this is as if it had written to them itself.
    ///
    /// # Panics
    ///
    /// When `id` came from another pool.
    pub unsafe fn trim(&mut self, id: &RingId) {
        let (class, pair) = self.find(id);
        // SAFETY: the caller's promise is the same.
        unsafe { self.release(class, pair, 0) };
    }

    /// Returns all pages of both rings but the first `kept` bytes of each.
    ///
    /// # Safety
    ///
    /// As [`trim`](Self::trim).
    unsafe fn release(&mut self, class: usize, pair: u32, kept: usize) {
        let ring = CLASSES[class].ring;
        let (calls, length) = match kept {
            0 => (1, 2 * ring),
            _ => (2, ring - kept),
        };
        let start = self.start(class, pair);
        for call in 0..calls {
            // SAFETY: the range lies in one pair of a mapping of ours, page-aligned since
            // slabs, rings and `kept` are. The pages stay mapped and read as zeroes, which
            // every u8 may be; that nobody relies on what they held is the caller's promise.
            let result = unsafe {
                let from = start.add(call * ring + kept);
                madvise(from.as_ptr().cast(), length, Advice::LinuxDontNeed)
            };
            // Refused for locked memory alone, which is to stay.
            debug_assert!(matches!(result, Ok(()) | Err(Errno::INVAL)), "{result:?}");
        }
    }

    /// What is given away now.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Bytes this pool may promise.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Changes the budget (a reload). Rings that flows have stay theirs, even beyond it.
    pub fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
    }

    /// The class of the next pair.
    fn class(&self) -> Option<usize> {
        let promised = self.usage.promised;
        let spare = self.budget / 8 * 3;
        CLASSES.iter().position(|size| {
            promised + size.pair() <= self.budget
                && (size.surplus() == 0
                    || self.surplus + size.surplus() <= spare / 4 * size.quarters)
        })
    }

    fn free_pair(&mut self, class: usize) -> Result<u32, Errno> {
        let size = CLASSES[class];
        let Class { slabs, free } = &mut self.classes[class];
        if let Some(pair) = free.pop() {
            return Ok(pair);
        }
        let first = slabs.len() * size.pairs;
        let end = u32::try_from(first + size.pairs).map_err(|_| Errno::NOMEM)?;
        slabs.push(reserve(size.slab())?);
        self.usage.reserved += size.slab();
        let first = first as u32; // less than `end`
        // The lowest on top.
        free.extend((first + 1..end).rev());
        Ok(first)
    }

    /// The class and number of a pair.
    fn find(&self, id: &RingId) -> (usize, u32) {
        assert_eq!(id.pool, self.number, "rings of another pool");
        (usize::from(id.class), id.pair)
    }

    fn start(&self, class: usize, pair: u32) -> NonNull<u8> {
        let size = CLASSES[class];
        let pair = pair as usize;
        let slab = self.classes[class].slabs[pair / size.pairs];
        // SAFETY: the slab has `pairs` pairs, and this is the start of one of them.
        unsafe { slab.add(pair % size.pairs * size.pair()) }
    }
}

/// Maps `length` bytes that cost nothing until touched.
fn reserve(length: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    // A kernel built without huge pages refuses the advice and needs none.
    // SAFETY: the range is the mapping just made; the advice changes no contents.
    let _ = unsafe { madvise(start, length, Advice::LinuxNoHugepage) };
    NonNull::new(start.cast()).ok_or(Errno::NOMEM)
}

/// One size of rings.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Bytes a ring.
    ring: usize,
    /// Pairs a slab.
    pairs: usize,
    /// Quarters of the spare budget that may be used up when this size is taken.
    quarters: usize,
}

impl Size {
    const fn pair(self) -> usize {
        2 * self.ring
    }

    const fn slab(self) -> usize {
        self.pair() * self.pairs
    }

    const fn surplus(self) -> usize {
        2 * (self.ring - LEAST)
    }
}

const LEAST: usize = 16 << 10;

/// A short flow's rings keep the pages it touched, for the next one: 0.5 µs instead of 7 µs.
const KEPT: usize = 4096;
/// Free pairs of a class that keep them: at most 2 MiB in all.
const WARM: usize = 64;

/// 1 MiB rings are what one flow needs for full speed; 256 KiB give three quarters of it.
const CLASSES: [Size; 4] = [
    Size { ring: 1 << 20, pairs: 16, quarters: 2 },
    Size { ring: 256 << 10, pairs: 32, quarters: 3 },
    Size { ring: 64 << 10, pairs: 64, quarters: 4 },
    Size { ring: LEAST, pairs: 256, quarters: 0 },
];

/// Rings are whole pages of every page size that Linux has on our targets but 64 KiB ones,
/// where `madvise` refuses to trim the smallest.
const _: () = {
    let mut class = 0;
    while class < CLASSES.len() {
        assert!(CLASSES[class].ring.is_multiple_of(4096), "a ring is whole pages");
        class += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn sizes(pool: &mut Pool, count: usize) -> Vec<(usize, RingId)> {
        (0..count)
            .map_while(|_| pool.take().ok())
            .map(|rings| {
                assert_eq!(rings.to_far.len(), rings.to_app.len());
                (rings.to_far.len(), rings.id)
            })
            .collect()
    }

    #[test]
    fn sizes_follow_the_budget() {
        let mut pool = Pool::new(512 * MIB);
        let taken = sizes(&mut pool, 100_000);
        let count = |size| taken.iter().filter(|(ring, _)| *ring == size).count();
        assert_eq!(count(MIB), 48);
        assert_eq!(count(256 << 10), 105);
        assert_eq!(count(64 << 10), 515);
        assert!(taken.len() >= 10_240, "{} flows", taken.len());
        assert!(pool.usage().promised <= 512 * MIB);
        assert_eq!(pool.take().unwrap_err(), TakeError::Budget);
        assert!(taken.is_sorted_by(|a, b| a.0 >= b.0));

        for (_, id) in taken {
            // SAFETY: the slices were dropped in `sizes`.
            unsafe { pool.give_back(id, u64::MAX) };
        }
        let usage = pool.usage();
        assert_eq!((usage.pairs, usage.promised, pool.surplus), (0, 0, 0));
        assert_eq!(sizes(&mut pool, 1)[0].0, MIB, "the first is large again");
        assert_eq!(pool.usage().reserved, usage.reserved, "slabs are used again");
    }

    #[test]
    fn the_least_rings_leave_the_large_ones_to_others() {
        let mut pool = Pool::new(MIB);
        let least: Vec<Rings> = (0..20).map(|_| pool.take_least().unwrap()).collect();
        assert!(least.iter().all(|r| (r.to_far.len(), r.to_app.len()) == (LEAST, LEAST)));
        assert_eq!(pool.usage().promised, 20 * 2 * LEAST);
        assert_eq!(pool.take().unwrap().to_far.len(), 64 << 10);
        while pool.take_least().is_ok() {}
        assert!(pool.usage().promised <= MIB);
        assert_eq!(pool.take_least().unwrap_err(), TakeError::Budget);
    }

    #[test]
    fn small_budgets() {
        let cases = [
            ("nothing", 0, 0, 0),
            ("less than a pair", 31 << 10, 0, 0),
            ("one pair", 32 << 10, 1, 16 << 10),
            ("1 MiB", MIB, 31, 64 << 10),
            ("16 MiB", 16 * MIB, 500, 1 << 20),
        ];
        for (name, budget, least, first) in cases {
            let mut pool = Pool::new(budget);
            let taken = sizes(&mut pool, 100_000);
            if least == 0 {
                assert!(taken.is_empty(), "{name}");
                continue;
            }
            assert!(taken.len() >= least * 5 / 8, "{name}: {}", taken.len());
            assert_eq!(taken[0].0, first, "{name}");
            assert!(pool.usage().promised <= budget, "{name}");
        }
    }

    #[test]
    fn rings_do_not_overlap() {
        let mut pool = Pool::new(8 * MIB);
        let mut taken: Vec<Rings> = (0..200).map_while(|_| pool.take().ok()).collect();
        assert!(taken.len() > 100);
        for (number, rings) in taken.iter_mut().enumerate() {
            rings.to_far.fill(number as u8);
            rings.to_app.fill(!(number as u8));
        }
        for (number, rings) in taken.iter().enumerate() {
            assert!(rings.to_far.iter().all(|&b| b == number as u8), "{number}");
            assert!(rings.to_app.iter().all(|&b| b == !(number as u8)), "{number}");
        }
    }

    fn resident(rings: &Rings) -> usize {
        let mut pages = [0_u8; 512];
        let start = rings.to_far.as_ptr().cast_mut().cast();
        // SAFETY: the range is the pair's own mapping, and `pages` has a byte for each of its pages.
        let result = unsafe { libc::mincore(start, 2 * rings.to_far.len(), pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 != 0).count()
    }

    #[test]
    fn pages_come_with_use_and_go_with_trim() {
        let mut pool = Pool::new(512 * MIB);
        let rings = pool.take().unwrap();
        assert_eq!(rings.to_far.len(), MIB);
        assert_eq!(resident(&rings), 0);
        rings.to_far[0] = 1;
        rings.to_app[..5000].fill(1);
        assert_eq!(resident(&rings), 3);
        // SAFETY: no borrow of the rings is in use, and their bytes are not wanted.
        unsafe { pool.trim(&rings.id) };
        assert_eq!(resident(&rings), 0);
        assert_eq!(rings.to_app[4999], 0);
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn rings_of_another_pool() {
        let mut mine = Pool::new(MIB);
        let mut other = Pool::new(MIB);
        let id = mine.take().unwrap().id;
        // SAFETY: the slices are gone.
        unsafe { other.give_back(id, u64::MAX) };
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_flow() {
        let mut pool = Pool::new(512 * MIB);
        for touched in [0, 1, 64 << 10, MIB] {
            let start = std::time::Instant::now();
            for _ in 0..10_000 {
                let rings = pool.take().unwrap();
                if touched > 0 {
                    rings.to_far[0] = 1;
                    for page in rings.to_app[..touched].chunks_mut(4096) {
                        page[0] = 1;
                    }
                }
                // SAFETY: the slices are not used after this.
                unsafe { pool.give_back(rings.id, u64::MAX) };
            }
            println!("{touched} bytes touched: {:?} a flow", start.elapsed() / 10_000);
        }
    }
}
