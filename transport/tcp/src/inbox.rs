//! The bytes of a connection that have arrived and are not used yet.

use sealfs_ring::{File, Key, Op, Owner, Ring};
use sealfs_transport::Region;

/// A buffer in front of the socket. While the kernel fills it, it is away.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// `None` while a receive into it is in flight.
    buffer: Option<Region>,
    start: usize,
    end: usize,
    /// Room of the buffer when nothing larger is needed, bytes.
    usual_len: usize,
    /// The last frame had a large payload: the next one probably has, too.
    cautious: bool,
}

/// Room during the handshake, bytes: its messages are smaller than 2 KiB, the map aside.
const HANDSHAKE_LEN: usize = 4_096;
/// Room of an open connection, bytes: some hundred small frames in one receive.
const OPEN_LEN: usize = 64 * 1024;
/// How much is read when a large payload is to be expected behind the next header, bytes: what comes along of the payload
/// has to be copied.
const CAUTIOUS_LEN: usize = 4_096;

impl Inbox {
    pub(crate) fn new() -> Self {
        let buffer = Some(Region::zeroed(HANDSHAKE_LEN));
        Self { buffer, start: 0, end: 0, usual_len: HANDSHAKE_LEN, cautious: false }
    }

    /// The connection is open: more will come.
    pub(crate) fn open(&mut self) {
        self.usual_len = OPEN_LEN;
    }

    /// Whether to expect a large payload behind the next header.
    pub(crate) fn set_cautious(&mut self, cautious: bool) {
        self.cautious = cautious;
    }

    /// What has arrived; nothing while a receive is in flight.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.bytes()[self.start..self.end])
    }

    /// The first `len` bytes have been used.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "only bytes that have arrived are used");
    }

    /// Receives more, so that `needed` bytes can lie here at once (at least one more than there are).
    pub(crate) fn receive(&mut self, needed: usize, ring: &Ring, file: &File, id: u64) -> Key {
        self.make_room(needed);
        let region = self.buffer.take().expect("one receive is in flight at most");
        let (from, mut to) = (self.end, region.len());
        if self.cautious {
            to = to.min(self.start + needed.max(CAUTIOUS_LEN));
        }
        let receive = Op::Receive { file: file.clone(), region, from, to, all: false };
        ring.submit(Owner::Tcp, id, receive)
    }

    /// Takes the buffer back, with `len` bytes more in it.
    pub(crate) fn on_received(&mut self, buffer: Region, len: usize) {
        self.buffer = Some(buffer);
        self.end += len;
    }

    fn make_room(&mut self, needed: usize) {
        let len = self.end - self.start;
        assert!(needed > len, "something is missing");
        let buffer = self.buffer.as_mut().expect("one receive is in flight at most");
        let fitting = needed.max(self.usual_len);
        if buffer.len() < needed || (len == 0 && buffer.len() != fitting) {
            let mut other = Region::zeroed(fitting);
            other.bytes_mut()[..len].copy_from_slice(&buffer.bytes()[self.start..self.end]);
            *buffer = other;
        } else if len == 0 || self.start + needed > buffer.len() {
            buffer.bytes_mut().copy_within(self.start..self.end, 0);
        } else {
            return;
        }
        (self.start, self.end) = (0, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_grows_for_a_large_frame_keeps_its_bytes_and_shrinks_again() {
        let mut inbox = Inbox::new();
        inbox.end = 100;
        inbox.buffer.as_mut().unwrap().bytes_mut()[40..100].fill(7);
        inbox.consume(40);
        inbox.make_room(500_000);
        assert_eq!(inbox.bytes(), [7; 60]);
        assert_eq!(inbox.buffer.as_ref().unwrap().len(), 500_000);
        inbox.consume(60);
        inbox.open();
        inbox.make_room(64);
        assert_eq!(inbox.buffer.as_ref().unwrap().len(), OPEN_LEN);
    }

    #[test]
    fn bytes_at_the_end_move_to_the_front_when_the_frame_would_not_fit() {
        let mut inbox = Inbox::new();
        inbox.end = HANDSHAKE_LEN;
        inbox.consume(HANDSHAKE_LEN - 10);
        inbox.make_room(64);
        assert_eq!((inbox.start, inbox.end), (0, 10));
    }
}
