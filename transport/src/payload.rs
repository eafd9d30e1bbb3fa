//! The one copy of payload that the data path knows, counted: a test that sends a mebibyte can tell whether a transport
//! or a core copied it more often than it says. RDMA never calls it.

use std::cell::Cell;

thread_local! {
    static COPIED: Cell<u64> = const { Cell::new(0) };
}

/// Copies payload, and counts it. Panics if the lengths differ.
pub fn copy_payload(target: &mut [u8], source: &[u8]) {
    target.copy_from_slice(source);
    COPIED.set(COPIED.get() + source.len() as u64);
}

/// Bytes that this thread has copied with [`copy_payload`] since it began.
#[must_use]
pub fn payload_bytes_copied() -> u64 {
    COPIED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted() {
        let before = payload_bytes_copied();
        let mut target = [0; 3];
        copy_payload(&mut target, b"abc");
        assert_eq!((&target, payload_bytes_copied() - before), (b"abc", 3));
    }
}
