//! Memory that the network and the disk may reach: one owner at a time, or many readers.
//!
//! A [`Region`] is moved into an operation and comes back with its completion, so that nobody touches bytes that a NIC or
//! the kernel is writing. Frozen into a [`Slice`] it can be read by several operations at once. The memory itself is
//! the shell's (an arena of registered slots); here it is only a trait.

use std::sync::Arc;

/// A piece of memory that outlives its use by the kernel or a NIC; gives itself back to its pool when dropped.
pub trait Memory: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes, to write.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Where the memory lies in what was registered with io_uring and the NIC: (buffer index, offset); `None` for
    /// memory that is not registered.
    fn registered(&self) -> Option<(u16, u64)>;
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn registered(&self) -> Option<(u16, u64)> {
        None
    }
}

/// Where regions come from: a bounded pool that belongs to one thread.
pub trait Arena {
    /// A region of exactly `len` bytes (at most [`sealfs_proto::limits::BULK_LEN_MAX`]), its content undefined; `None` when
    /// the pool is exhausted: the caller waits until one comes back.
    fn take(&self, len: usize) -> Option<Region>;
}

/// Memory with one owner.
pub struct Region(Box<dyn Memory>);

impl Region {
    /// A region over `memory`.
    #[must_use]
    pub fn new(memory: impl Memory + 'static) -> Self {
        Self(Box::new(memory))
    }

    /// A region of ordinary, unregistered memory, for tests and rare paths.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// Bytes of room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.bytes().len()
    }

    /// Whether there is no room at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to write.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// Where it lies in the registered memory, see [`Memory::registered`].
    #[must_use]
    pub fn registered(&self) -> Option<(u16, u64)> {
        self.0.registered()
    }

    /// Ends writing: from now on it is read only, by any number of slices.
    #[must_use]
    pub fn freeze(self) -> Slice {
        let len = self.len();
        Slice { memory: Arc::new(self), start: 0, len }
    }
}

impl core::fmt::Debug for Region {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

/// Bytes of a frozen region; cheap to clone and to cut.
#[derive(Clone, Debug)]
pub struct Slice {
    memory: Arc<Region>,
    start: usize,
    len: usize,
}

impl Slice {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.start..self.start + self.len]
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes `from..to` of this slice. Panics if they are not inside it.
    #[must_use]
    pub fn cut(&self, from: usize, to: usize) -> Self {
        assert!(
            from <= to && to <= self.len,
            "{from}..{to} is inside a slice of {} bytes",
            self.len
        );
        Self { memory: Arc::clone(&self.memory), start: self.start + from, len: to - from }
    }

    /// Where the bytes lie in the registered memory, see [`Memory::registered`].
    #[must_use]
    pub fn registered(&self) -> Option<(u16, u64)> {
        self.memory.registered().map(|(buffer, offset)| (buffer, offset + self.start as u64))
    }

    /// The region back, if this is its only slice.
    pub fn thaw(self) -> Result<Region, Self> {
        let Self { memory, start, len } = self;
        Arc::try_unwrap(memory).map_err(|memory| Self { memory, start, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_a_region_and_the_last_one_gets_it_back() {
        let mut region = Region::zeroed(8);
        region.bytes_mut().copy_from_slice(b"abcdefgh");
        let whole = region.freeze();
        let part = whole.cut(2, 5);
        assert_eq!((part.bytes(), part.cut(1, 2).bytes()), (&b"cde"[..], &b"d"[..]));
        let part = part.thaw().unwrap_err();
        drop(whole);
        assert_eq!(part.thaw().unwrap().bytes(), b"abcdefgh");
    }
}
