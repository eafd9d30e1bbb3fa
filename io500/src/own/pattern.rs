//! What workers write, so that whoever reads it can tell every byte.
//!
//! A file's transfers share random bytes that follow from the run and from who writes; the first word of every page of
//! a transfer is the page's offset in the file. So neither another run's, another file's nor another transfer's bytes
//! pass for the right ones, and making the next transfer costs a word per page instead of all bytes: the clock measures
//! the file system.

/// The bytes of one file, transfer by transfer.
pub(super) struct Pattern {
    bytes: Vec<u8>,
    tag: u64,
}

/// Bytes between two stamps: the block in which file systems mix things up.
pub(super) const PAGE: usize = 4_096;

impl Pattern {
    /// The bytes that `writer` writes into its files of one kind (`salt`) in the run `seed`, `len` at a time.
    pub(super) fn new(seed: u64, salt: u64, writer: u64, len: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ salt.rotate_left(32) ^ (writer << 8));
        let tag = random.u64(..);
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        Self { bytes, tag }
    }

    /// The transfer at `offset` of the file.
    pub(super) fn at(&mut self, offset: u64) -> &[u8] {
        for start in (0..self.bytes.len()).step_by(PAGE) {
            self.stamp(offset, start);
        }
        &self.bytes
    }

    /// The page that begins `start` bytes after the transfer's beginning at `offset`.
    pub(super) fn page(&mut self, offset: u64, start: usize) -> &[u8] {
        self.stamp(offset, start);
        &self.bytes[start..start + PAGE]
    }

    fn stamp(&mut self, offset: u64, start: usize) {
        let word = ((offset + start as u64) ^ self.tag).to_le_bytes();
        let end = self.bytes.len().min(start + word.len());
        self.bytes[start..end].copy_from_slice(&word[..end - start]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_places_have_equal_bytes_and_others_differ() {
        let bytes = |seed, salt, writer, offset| {
            Pattern::new(seed, salt, writer, 47_008).at(offset).to_vec()
        };
        let one = bytes(1, 1, 1, 47_008);
        assert_eq!(one, bytes(1, 1, 1, 47_008));
        for other in [
            bytes(2, 1, 1, 47_008),
            bytes(1, 2, 1, 47_008),
            bytes(1, 1, 2, 47_008),
            bytes(1, 1, 1, 0),
        ] {
            for (at, (left, right)) in one.chunks(PAGE).zip(other.chunks(PAGE)).enumerate() {
                assert_ne!(left, right, "page {at}");
            }
        }
    }

    #[test]
    fn a_page_is_a_part_of_its_transfer() {
        let whole = Pattern::new(7, 0, 3, 8 * PAGE).at(1 << 40).to_vec();
        let mut pattern = Pattern::new(7, 0, 3, 8 * PAGE);
        assert_eq!(pattern.page(1 << 40, 5 * PAGE), &whole[5 * PAGE..6 * PAGE]);
    }
}
