//! A process's arena: one anonymous mapping, of which each thread has a part that is cut into slots of three sizes.
//!
//! ```text
//! | part of thread 0            | part of thread 1            | ...     one mapping: registered with a NIC as a whole
//! | 4K 4K ..| 68K ..| 1M+64K .. | 4K 4K ..| 68K ..| 1M+64K .. |         a part: taken from by one thread
//! ```
//! One mapping, so that it is registered with the NIC once, and whatever a thread answers with may lie in any thread's
//! part. Pages come into being when first touched, and the lowest free slot is taken first, so that a quiet thread uses few
//! of them. Which slots are free is a bitmap of atomic words: a region may be dropped on another thread, and no lock is
//! needed.
//!
//! 1. A slot whose bit is 0 belongs to exactly one region; a slot whose bit is 1 to nobody.
//! 2. Slots do not overlap, and begin at multiples of 4 KiB (O_DIRECT); parts begin at multiples of 2 MiB of the arena, so
//!    that hardly a huge page belongs to two threads.
//!
//! Slots are not split or joined: when the small ones are all taken, the next size serves. A pool has a fixed size and does
//! not grow; `None` is its backpressure.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use sealfs_proto::limits;
use sealfs_transport::{Arena, Memory, Region};

/// The largest region that a pool gives: one bulk and 64 KiB for what goes before it (a FUSE request's header page).
pub const REGION_LEN_MAX: usize = limits::BULK_LEN_MAX as usize + 64 * 1024;

/// A bounded set of regions, one thread's part of an arena; a clone is the same pool. Dropping it leaves regions that are in
/// use alone.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Part>);

#[derive(Debug)]
struct Part {
    /// The whole arena.
    map: Arc<MmapRaw>,
    /// Where this part begins in it, and its bytes.
    start: usize,
    len: usize,
    classes: Vec<Class>,
    /// Number of the fixed buffer with the ring that has registered it, or `UNREGISTERED`.
    buffer: AtomicU32,
}

/// Slots of one size.
#[derive(Debug)]
struct Class {
    slot_len: usize,
    slots: usize,
    /// Where the first slot begins in the part.
    start: usize,
    /// One bit per slot, 1: free.
    free: Box<[AtomicU64]>,
}

/// Bytes of a slot, and how many sixteenths of a part are cut into slots of this size. A block; the smallest chunk with
/// a header page; a whole bulk. Most memory moves in whole bulks.
const CLASSES: [(usize, usize); 3] = [(4_096, 1), (64 * 1024 + 4_096, 3), (REGION_LEN_MAX, 12)];
const UNREGISTERED: u32 = u32::MAX;
/// A huge page of the machines that there are; only how well memory is laid out depends on it.
const HUGE_PAGE: usize = 2 << 20;

impl Pool {
    /// An arena for one thread, of about `len` bytes (each size gets at least one slot). Cost: address space only, until it
    /// is used.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self::parts(len, 1)?.remove(0))
    }

    /// An arena of `count` parts, for as many threads, of about `len` bytes each. Cost: as [`Pool::new`].
    pub fn parts(len: usize, count: usize) -> io::Result<Vec<Self>> {
        let classes = CLASSES.map(|(slot_len, share)| {
            let slots = (len / 16 * share / slot_len).max(1);
            (slot_len, slots)
        });
        Self::with_classes(&classes, count)
    }

    /// A pool of `slots` slots of `slot_len` bytes, a multiple of 4 KiB: for a transport's own messages.
    pub fn uniform(slot_len: usize, slots: usize) -> io::Result<Self> {
        Ok(Self::with_classes(&[(slot_len, slots)], 1)?.remove(0))
    }

    fn with_classes(sizes: &[(usize, usize)], count: usize) -> io::Result<Vec<Self>> {
        let len: usize = sizes.iter().map(|(slot_len, slots)| slots * slot_len).sum();
        let stride = if count > 1 { len.next_multiple_of(HUGE_PAGE) } else { len };
        let whole = stride * count;
        let map = map(whole).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot map {whole} bytes of memory: {error}"))
        })?;
        let map = Arc::new(MmapRaw::from(map));
        let part = |number: usize| {
            let (map, start) = (Arc::clone(&map), number * stride);
            let buffer = AtomicU32::new(UNREGISTERED);
            Self(Arc::new(Part { map, start, len, classes: classes(sizes), buffer }))
        };
        Ok((0..count).map(part).collect())
    }

    /// The whole arena, to register it with a device. It stays mapped as long as a pool or a region of it lives.
    #[must_use]
    pub fn arena(&self) -> (*mut u8, usize) {
        (self.0.map.as_mut_ptr(), self.0.map.len())
    }

    /// This thread's part of the arena, to register it with its ring.
    #[must_use]
    pub fn span(&self) -> (*mut u8, usize) {
        (self.0.map.as_mut_ptr().wrapping_add(self.0.start), self.0.len)
    }

    /// Has this thread touch its part, so that its pages lie near its processor before a device pins them: pages that are
    /// pinned do not move. Cost: all of the memory.
    pub fn populate(&self) {
        let (start, len) = (self.0.start, self.0.len);
        if let Err(error) = self.0.map.advise_range(Advice::PopulateWrite, start, len) {
            tracing::debug!(%error, "the arena's pages are not touched ahead");
        }
    }

    /// Bytes of this part's regions, and how many of them belong to nobody at this moment. Cost: a look at every 64 slots.
    #[must_use]
    pub fn room(&self) -> (usize, usize) {
        self.0.classes.iter().fold((0, 0), |(all, free), class| {
            let count = |word: &AtomicU64| word.load(Ordering::Relaxed).count_ones() as usize;
            let own: usize = class.free.iter().map(count).sum();
            (all + class.slots * class.slot_len, free + own * class.slot_len)
        })
    }

    /// Notes that the part is fixed buffer number `buffer`.
    pub(crate) fn set_registered(&self, buffer: u16) {
        self.0.buffer.store(u32::from(buffer), Ordering::Relaxed);
    }
}

impl Arena for Pool {
    fn take(&self, len: usize) -> Option<Region> {
        let fitting = self.0.classes.iter().enumerate().filter(|(_, class)| class.slot_len >= len);
        for (class, slots) in fitting {
            if let Some(slot) = slots.take() {
                let offset = slots.start + slot * slots.slot_len;
                let part = Arc::clone(&self.0);
                return Some(Region::new(Slot { part, class, slot, offset, len }));
            }
        }
        None
    }
}

impl Class {
    fn take(&self) -> Option<usize> {
        for (index, word) in self.free.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let lowest = bits & bits.wrapping_neg();
                // Acquire: what the slot's last owner did to it happened before.
                bits = word.fetch_and(!lowest, Ordering::Acquire);
                if bits & lowest != 0 {
                    return Some(index * 64 + lowest.trailing_zeros() as usize);
                }
            }
        }
        None
    }

    fn give(&self, slot: usize) {
        let bit = 1 << (slot % 64);
        let before = self.free[slot / 64].fetch_or(bit, Ordering::Release);
        assert!(before & bit == 0, "a slot that is given back was taken");
    }
}

/// Maps `len` bytes: in huge pages, if the administrator has set enough of them aside (they are the NIC's and the processor's
/// cheapest to translate), else in ordinary ones that the kernel may join.
fn map(len: usize) -> io::Result<MmapMut> {
    if len >= HUGE_PAGE {
        let whole = len.next_multiple_of(HUGE_PAGE);
        let bits = HUGE_PAGE.trailing_zeros() as u8;
        let map = MmapOptions::new().len(whole).huge(Some(bits)).map_anon();
        // Touched now: where a process is confined to memory that has none left this fails, and a later touch would be SIGBUS.
        match map.and_then(|map| map.advise(Advice::PopulateWrite).map(|()| map)) {
            Ok(map) => return Ok(map),
            Err(error) => tracing::debug!(%error, whole, "no huge pages are set aside"),
        }
    }
    let map = MmapOptions::new().len(len).map_anon()?;
    if let Err(error) = map.advise(Advice::HugePage) {
        tracing::debug!(%error, "the kernel joins no pages of the arena");
    }
    Ok(map)
}

/// A part's classes, one behind the other.
fn classes(sizes: &[(usize, usize)]) -> Vec<Class> {
    let mut start = 0;
    let class = |&(slot_len, slots): &(usize, usize)| {
        let class = Class { slot_len, slots, start, free: all_free(slots) };
        start += slots * slot_len;
        class
    };
    sizes.iter().map(class).collect()
}

/// A bitmap of `slots` ones.
fn all_free(slots: usize) -> Box<[AtomicU64]> {
    let word = |index: usize| match slots - index * 64 {
        left @ 0..64 => (1 << left) - 1,
        _ => u64::MAX,
    };
    (0..slots.div_ceil(64)).map(|index| AtomicU64::new(word(index))).collect()
}

/// One taken slot; its first `len` bytes are the region.
struct Slot {
    part: Arc<Part>,
    class: usize,
    slot: usize,
    /// Where it begins in the part.
    offset: usize,
    len: usize,
}

impl Slot {
    fn start(&self) -> *mut u8 {
        self.part.map.as_mut_ptr().wrapping_add(self.part.start + self.offset)
    }
}

impl Memory for Slot {
    fn bytes(&self) -> &[u8] {
        // SAFETY: offset..offset + len lies inside the slot, the slot inside the part, the part inside the mapping
        // (Pool::with_classes laid them out), and the mapping lives as long as `self.part`. The memory is initialised: an
        // anonymous mapping reads as zeros. Invariants 1 and 2: no other region has this slot, so nobody writes while `self`
        // is borrowed.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }

    fn registered(&self) -> Option<(u16, u64)> {
        let buffer = u16::try_from(self.part.buffer.load(Ordering::Relaxed)).ok()?;
        Some((buffer, self.offset as u64))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.part.classes[self.class].give(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_exactly_the_length_asked_for_and_begins_at_a_page() {
        let pool = Pool::new(8 << 20).unwrap();
        for len in [0, 1, 4_096, 4_097, 65_536, 69_632, 1 << 20, REGION_LEN_MAX] {
            let region = pool.take(len).unwrap();
            assert_eq!(region.len(), len);
            assert_eq!(region.bytes().as_ptr() as usize % 4_096, 0);
        }
        assert!(pool.take(REGION_LEN_MAX + 1).is_none());
    }

    #[test]
    fn regions_do_not_overlap_and_an_exhausted_pool_says_so() {
        let pool = Pool::new(8 << 20).unwrap();
        let mut taken = Vec::new();
        for len in [4_096, 65_536, 1 << 20] {
            while let Some(mut region) = pool.take(len) {
                region.bytes_mut().fill(taken.len() as u8);
                taken.push(region);
            }
        }
        assert!(taken.len() > 128, "{} slots", taken.len());
        for (index, region) in taken.iter().enumerate() {
            assert!(region.bytes().iter().all(|&byte| byte == index as u8));
        }
        taken.pop();
        assert!(pool.take(1).is_some());
    }

    #[test]
    fn room_is_what_can_still_be_taken() {
        let pool = Pool::new(1 << 20).unwrap();
        let (all, free) = pool.room();
        assert_eq!(all, free);
        let region = pool.take(1).unwrap();
        assert_eq!(pool.room(), (all, all - 4_096));
        drop(region);
        assert_eq!(pool.room(), (all, all));
    }

    #[test]
    fn a_region_dropped_on_another_thread_is_used_again() {
        let pool = Pool::new(0).unwrap();
        let region = pool.take(REGION_LEN_MAX).unwrap();
        let place = region.bytes().as_ptr() as usize;
        assert!(pool.take(REGION_LEN_MAX).is_none());
        std::thread::spawn(move || drop(region)).join().unwrap();
        assert_eq!(pool.take(REGION_LEN_MAX).unwrap().bytes().as_ptr() as usize, place);
    }

    #[test]
    fn threads_that_take_and_give_at_once_never_share_a_slot() {
        let pool = Pool::new(1 << 20).unwrap();
        let threads: Vec<_> = (1..=4)
            .map(|mark| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    for _ in 0..2_000 {
                        let Some(mut region) = pool.take(64) else { continue };
                        region.bytes_mut().fill(mark);
                        std::thread::yield_now();
                        assert!(region.bytes().iter().all(|&byte| byte == mark));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn parts_share_a_mapping_and_no_memory() {
        let pools = Pool::parts(1 << 20, 3).unwrap();
        let (start, len) = pools[0].arena();
        let mut taken = Vec::new();
        for (number, pool) in pools.iter().enumerate() {
            pool.populate();
            assert_eq!((pool.arena(), pool.span().0 as usize % 4_096), ((start, len), 0));
            while let Some(mut region) = pool.take(4_096) {
                let at = region.bytes().as_ptr() as usize;
                let (part, part_len) = pool.span();
                assert!((part as usize..part as usize + part_len).contains(&at));
                assert!(at + 4_096 <= start as usize + len);
                region.bytes_mut().fill(number as u8);
                taken.push((number, region));
            }
        }
        assert!(taken.len() > 3 * 16, "{} slots", taken.len());
        for (number, region) in &taken {
            assert!(region.bytes().iter().all(|&byte| usize::from(byte) == *number));
        }
        taken.retain(|(number, _)| *number != 1);
        assert!(pools[1].take(1).is_some() && pools[0].take(1).is_none());
    }

    #[test]
    fn a_region_outlives_its_pool() {
        let mut region = Pool::new(0).unwrap().take(100).unwrap();
        region.bytes_mut().fill(7);
        assert_eq!(region.bytes(), [7; 100]);
    }
}
