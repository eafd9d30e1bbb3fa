//! What becomes of payload, counted: the one copy in user space that the data path knows, and the ways by which payload
//! comes and goes. A test that sends a mebibyte can tell whether anybody copied it more often than he says.
//!
//! 1. Payload is copied by [`copy_payload`] and nothing else; a rule of ci looks for other copies in the data path's files.
//! 2. Each thread adds to counters of its own, which others only read: counting takes no lock and shares no cache line with
//!    another thread's. They stay when the thread ends, so that sums of the process only grow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What was done to payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Copied from memory to memory by this process.
    Copied,
    /// Sent or received in frames, by a transport that needs the peer's help.
    Framed,
    /// Fetched by RDMA READ; the peer counts nothing.
    RdmaRead,
    /// Placed by RDMA WRITE; the peer counts nothing.
    RdmaWritten,
}

/// Bytes of payload by what was done to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadBytes {
    /// [`Moved::Copied`].
    pub copied: u64,
    /// [`Moved::Framed`].
    pub framed: u64,
    /// [`Moved::RdmaRead`].
    pub rdma_read: u64,
    /// [`Moved::RdmaWritten`].
    pub rdma_written: u64,
}

/// One thread's, on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Counters([AtomicU64; 4]);

/// Of every thread that has ever moved payload: few, and never freed.
static ALL: Mutex<Vec<&'static Counters>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: &'static Counters = {
        let own: &'static Counters = Box::leak(Box::default());
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        own
    };
}

/// Copies payload, and counts it. Panics if the lengths differ.
pub fn copy_payload(target: &mut [u8], source: &[u8]) {
    target.copy_from_slice(source);
    count_payload(Moved::Copied, source.len() as u64);
}

/// Counts payload that this thread has moved. Cost: an addition.
pub fn count_payload(moved: Moved, bytes: u64) {
    // Only this thread writes, so nothing is lost between load and store.
    let counter = OWN.with(|own| &own.0[moved as usize]);
    counter.store(counter.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

/// What this thread has moved since it began.
#[must_use]
pub fn payload_of_thread() -> PayloadBytes {
    OWN.with(|own| own.bytes())
}

/// What all threads of this process have moved, those that have ended included. Cost: a look at each.
#[must_use]
pub fn payload_of_process() -> PayloadBytes {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().fold(PayloadBytes::default(), |sum, one| sum + one.bytes())
}

/// Bytes that this thread has copied with [`copy_payload`] since it began.
#[must_use]
pub fn payload_bytes_copied() -> u64 {
    payload_of_thread().copied
}

impl PayloadBytes {
    /// Name and value of each, by name, as `sealfs status` shows them.
    #[must_use]
    pub const fn named(self) -> [(&'static str, u64); 4] {
        [
            ("payload_copied", self.copied),
            ("payload_framed", self.framed),
            ("payload_rdma_read", self.rdma_read),
            ("payload_rdma_written", self.rdma_written),
        ]
    }
}

impl core::ops::Add for PayloadBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            copied: self.copied + other.copied,
            framed: self.framed + other.framed,
            rdma_read: self.rdma_read + other.rdma_read,
            rdma_written: self.rdma_written + other.rdma_written,
        }
    }
}

impl Counters {
    fn bytes(&self) -> PayloadBytes {
        let of = |moved: Moved| self.0[moved as usize].load(Ordering::Relaxed);
        PayloadBytes {
            copied: of(Moved::Copied),
            framed: of(Moved::Framed),
            rdma_read: of(Moved::RdmaRead),
            rdma_written: of(Moved::RdmaWritten),
        }
    }
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

    #[test]
    fn each_way_counts_for_itself_and_threads_that_have_ended_stay_in_the_sum() {
        let (of_thread, of_process) = (payload_of_thread(), payload_of_process());
        let other = std::thread::spawn(|| {
            let ways = [Moved::Copied, Moved::Framed, Moved::RdmaRead, Moved::RdmaWritten];
            for (bytes, way) in (1 << 40..).step_by(1 << 40).zip(ways) {
                count_payload(way, bytes);
            }
            payload_of_thread()
        });
        let ended = other.join().unwrap();
        let wanted: Vec<u64> = (1..=4).map(|way| way << 40).collect();
        assert_eq!(ended.named().map(|(_, bytes)| bytes)[..], wanted);
        assert_eq!(payload_of_thread(), of_thread, "nothing of it is this thread's");
        // Other tests of this process may have moved a few bytes meanwhile.
        let rounded = |bytes: PayloadBytes| bytes.named().map(|(_, bytes)| bytes >> 40);
        let [a, b, c, d] = rounded(of_process);
        assert_eq!(rounded(payload_of_process()), [a + 1, b + 2, c + 3, d + 4]);
    }
}
