//! Where the data of writes lies until it is answered: a dead node may keep a thousand writes waiting, and whatever else
//! the kernel asks must be read and answered meanwhile.
//!
//! | a write | lies in | while writes hold less than |
//! |---|---|---|
//! | of at most a block | a region of its size, copied | their part of the arena ([`pooled_max`]) |
//! | a larger one | the region that it was read to | the same |
//! | any | ordinary memory, copied | [`SPILLED_MAX`] |
//! | any | the region that it was read to, and nothing more is read | |
//!
//! How long a write is shows only when it has been read, so that it is read to where the largest one has room. A block
//! is in the processor's cache then, and copied in less time than another region takes; handed on, it would keep a
//! mebibyte from others. What is copied is counted ([`copy_payload`]).
//!
//! 1. What writes do not get of the arena is for reads.
//! 2. Memory counts until it is free, which may be later than the answer: a call that was given up keeps it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealfs_proto::limits;
use sealfs_transport::{Arena, Memory, Region, Slice, copy_payload};

/// What the data of a session's writes holds.
#[derive(Debug)]
pub(crate) struct WriteMemory {
    pooled_max: usize,
    pooled: Budget,
    spilled: Budget,
}

/// Bytes that are held; clones are one.
#[derive(Clone, Debug, Default)]
struct Budget(Arc<AtomicUsize>);

struct Counted {
    region: Region,
    budget: Budget,
}

impl WriteMemory {
    /// For a session whose arena has about `arena_len` bytes.
    pub(crate) fn new(arena_len: usize) -> Self {
        let (pooled, spilled) = (Budget::default(), Budget::default());
        Self { pooled_max: pooled_max(arena_len), pooled, spilled }
    }

    /// The bytes of `room` in `range` are a write's data. Gives it, and what the next message is read to, as long as `room`
    /// if there is such.
    pub(crate) fn take(
        &self,
        room: Region,
        range: Range<usize>,
        arena: &impl Arena,
    ) -> (Slice, Option<Region>) {
        let (len, room_len) = (range.len(), room.len());
        let copy = |mut target: Region| {
            copy_payload(target.bytes_mut(), &room.bytes()[range.clone()]);
            target
        };
        let taken = if len <= COPIED_LEN_MAX { len } else { room_len };
        if self.pooled.held() + taken <= self.pooled_max
            && let Some(other) = arena.take(taken)
        {
            if len <= COPIED_LEN_MAX {
                return (self.pooled.count(copy(other)).freeze(), Some(room));
            }
            return (self.pooled.count(room).freeze().cut(range.start, range.end), Some(other));
        }
        if self.spilled.held() + len <= SPILLED_MAX {
            return (self.spilled.count(copy(Region::zeroed(len))).freeze(), Some(room));
        }
        (self.pooled.count(room).freeze().cut(range.start, range.end), None)
    }
}

impl Budget {
    fn held(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// `region`, which counts as long as it lives.
    fn count(&self, region: Region) -> Region {
        self.0.fetch_add(region.len(), Ordering::Relaxed);
        Region::new(Counted { region, budget: self.clone() })
    }
}

impl Memory for Counted {
    fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.region.bytes_mut()
    }

    fn registered(&self) -> Option<(u16, u64)> {
        self.region.registered()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.region.len(), Ordering::Relaxed);
    }
}

/// Writes of at most so many bytes are copied out of the region they were read to.
const COPIED_LEN_MAX: usize = limits::BLOCK_SIZE as usize;
/// What writes may hold of an arena, three quarters of which are slots for the largest writes and reads.
const fn pooled_max(arena_len: usize) -> usize {
    arena_len / 16 * 7
}

/// A thousand programs' writes of 1 MiB each.
const SPILLED_MAX: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use sealfs_transport::payload_bytes_copied;

    use super::*;

    const ROOM_LEN: usize = (1 << 20) + 4_096;

    /// Memory without end.
    struct Heap;

    impl Arena for Heap {
        fn take(&self, len: usize) -> Option<Region> {
            Some(Region::zeroed(len))
        }
    }

    /// None at all.
    struct Empty;

    impl Arena for Empty {
        fn take(&self, _: usize) -> Option<Region> {
            None
        }
    }

    fn room(fill: u8) -> Region {
        let mut room = Region::zeroed(ROOM_LEN);
        room.bytes_mut()[4_096..].fill(fill);
        room
    }

    #[test]
    fn writes_hold_their_part_of_the_arena_and_then_other_memory() {
        for (arena_len, part) in [(256 << 20, 112 << 20), (64 << 20, 28 << 20)] {
            let memory = WriteMemory::new(arena_len);
            let mut waiting = Vec::new();
            for number in 0..200_usize {
                let (data, next) = memory.take(room(number as u8), 4_096..ROOM_LEN, &Heap);
                assert!(next.is_some_and(|next| next.len() == ROOM_LEN), "the next can be read");
                assert!(data.bytes().len() == 1 << 20 && data.bytes()[7] == number as u8);
                waiting.push(data);
                assert!(memory.pooled.held() <= part);
            }
            assert!(memory.pooled.held() > part - (2 << 20));
            assert!(memory.spilled.held() > 80 << 20);
            drop(waiting);
            assert_eq!((memory.pooled.held(), memory.spilled.held()), (0, 0));
        }
    }

    #[test]
    fn without_an_arena_programs_wait_only_when_no_memory_is_left() {
        let memory = WriteMemory::new(256 << 20);
        let (small, next) = memory.take(room(3), 4_096..4_106, &Empty);
        assert!(small.bytes() == [3; 10] && next.is_some());
        memory.spilled.0.store(SPILLED_MAX, Ordering::Relaxed);
        let (data, next) = memory.take(room(9), 4_096..ROOM_LEN, &Empty);
        assert!(data.bytes().iter().all(|byte| *byte == 9) && next.is_none());
    }

    #[test]
    fn a_block_is_copied_and_holds_little() {
        let memory = WriteMemory::new(256 << 20);
        let before = payload_bytes_copied();
        let (data, _next) = memory.take(room(1), 4_096..4_096 + COPIED_LEN_MAX, &Heap);
        assert_eq!((memory.pooled.held(), data.bytes().len()), (COPIED_LEN_MAX, COPIED_LEN_MAX));
        assert_eq!(payload_bytes_copied() - before, COPIED_LEN_MAX as u64);
    }

    #[test]
    fn what_is_larger_than_a_block_goes_on_where_it_was_read_to() {
        let memory = WriteMemory::new(256 << 20);
        let before = payload_bytes_copied();
        for len in [COPIED_LEN_MAX + 1, 65_536, 1 << 20] {
            let room = room(1);
            let read_to = room.bytes()[4_096..].as_ptr();
            let (data, _next) = memory.take(room, 4_096..4_096 + len, &Heap);
            assert_eq!((data.bytes().as_ptr(), data.len()), (read_to, len));
        }
        assert_eq!(payload_bytes_copied() - before, 0);
    }
}
