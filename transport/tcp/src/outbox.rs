//! What a connection has to send: frames wait, are batched into one send, and leave in order.

use std::io;

use sealfs_proto::Header;
use sealfs_ring::{File, Key, Op, Owner, Piece, Ring};
use sealfs_transport::{Moved, Slice, count_payload};

/// Frames on their way out; one send is in flight at most.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Batch,
    sending: Option<(Key, Counts)>,
}

#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Piece>,
    counts: Counts,
}

/// How much of something.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    frames: usize,
    len: usize,
}

/// Heads of frames that follow one another share a piece up to this size, bytes.
const HEADS_LEN_MAX: usize = 64 * 1024;

impl Outbox {
    /// Queues a frame. Cost: header and body are copied, payload is not.
    pub(crate) fn push(&mut self, header: &Header, body: &[u8], bulk: Vec<Slice>) {
        let head = header.to_bytes(body);
        self.push_bytes(&[&head, body]);
        let batch = &mut self.waiting;
        let bulk_len = bulk.iter().map(Slice::len).sum::<usize>();
        count_payload(Moved::Framed, bulk_len as u64);
        batch.counts.len += bulk_len;
        batch.pieces.extend(bulk.into_iter().filter(|slice| !slice.is_empty()).map(Piece::Slice));
    }

    /// Queues the bytes of a frame that has no payload.
    pub(crate) fn push_bytes(&mut self, parts: &[&[u8]]) {
        let batch = &mut self.waiting;
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        batch.counts.frames += 1;
        batch.counts.len += len;
        if !matches!(batch.pieces.last(), Some(Piece::Bytes(last)) if last.len() < HEADS_LEN_MAX) {
            batch.pieces.push(Piece::Bytes(Vec::with_capacity(len)));
        }
        if let Some(Piece::Bytes(last)) = batch.pieces.last_mut() {
            parts.iter().for_each(|part| last.extend_from_slice(part));
        }
    }

    /// Sends what waits, unless a send is in flight.
    pub(crate) fn start(&mut self, ring: &Ring, file: &File, id: u64) {
        if self.sending.is_none() && !self.waiting.pieces.is_empty() {
            let Batch { pieces, counts } = std::mem::take(&mut self.waiting);
            let send = Op::Send { file: file.clone(), pieces, skip: 0 };
            self.sending = Some((ring.submit(Owner::Tcp, id, send), counts));
        }
    }

    /// Takes the end of a send; what it has left over goes on if `go_on`.
    pub(crate) fn on_sent(
        &mut self,
        result: io::Result<u32>,
        (file, mut pieces, skip): (File, Vec<Piece>, usize),
        (ring, id, go_on): (&Ring, u64, bool),
    ) -> io::Result<()> {
        let (_, counts) = self.sending.take().expect("a send that ends was in flight");
        let sent = match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => sent as usize,
            Err(error) if is_transient(&error) => 0,
            Err(error) => return Err(error),
        };
        let skip = drop_sent(&mut pieces, skip + sent);
        if go_on && !pieces.is_empty() {
            let send = Op::Send { file, pieces, skip };
            self.sending = Some((ring.submit(Owner::Tcp, id, send), counts));
        }
        Ok(())
    }

    /// Forgets what waits; the send in flight, if there is one.
    pub(crate) fn clear(&mut self) -> Option<Key> {
        self.waiting = Batch::default();
        self.sending.map(|(key, _)| key)
    }

    /// Whether the kernel holds memory.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether everything has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.sending.is_none() && self.waiting.pieces.is_empty()
    }

    /// Frames that have not wholly left.
    pub(crate) fn frames(&self) -> usize {
        self.waiting.counts.frames + self.sending.map_or(0, |(_, counts)| counts.frames)
    }

    /// Bytes queued, including those of a send in flight.
    pub(crate) fn len(&self) -> usize {
        self.waiting.counts.len + self.sending.map_or(0, |(_, counts)| counts.len)
    }
}

/// Whether the same operation may simply be tried again.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Drops the pieces that lie wholly within the first `sent` bytes; what is to be skipped of the rest.
fn drop_sent(pieces: &mut Vec<Piece>, mut sent: usize) -> usize {
    let whole = pieces
        .iter()
        .take_while(|piece| {
            let len = piece.bytes().len();
            let all = sent >= len;
            sent -= if all { len } else { 0 };
            all
        })
        .count();
    pieces.drain(..whole);
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_have_left_are_dropped_and_the_rest_is_skipped() {
        let pieces = || vec![Piece::from(vec![1; 10]), vec![2; 5].into(), vec![3; 7].into()];
        for (sent, left, skip) in [(0, 3, 0), (9, 3, 9), (10, 2, 0), (16, 1, 1), (22, 0, 0)] {
            let mut pieces = pieces();
            assert_eq!((drop_sent(&mut pieces, sent), pieces.len()), (skip, left), "{sent} sent");
        }
    }

    #[test]
    fn small_frames_share_a_piece_and_payload_is_not_copied() {
        let mut outbox = Outbox::default();
        let slice = sealfs_transport::Region::zeroed(4_096).freeze();
        let place = slice.bytes().as_ptr();
        let header = Header::new(sealfs_proto::HeaderKind::Reply, 1);
        outbox.push(&header, b"one", vec![]);
        outbox.push(&header, b"two", vec![slice]);
        outbox.push(&header, b"three", vec![]);
        assert_eq!((outbox.frames(), outbox.len()), (3, 3 * 64 + 11 + 4_096));
        let pieces = &outbox.waiting.pieces;
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].bytes().as_ptr(), place);
        assert_eq!(pieces[0].bytes().len(), 2 * 64 + 6);
    }
}
