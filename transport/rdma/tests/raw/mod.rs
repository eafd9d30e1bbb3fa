//! A connection that speaks bytes of a test's choice, over any provider of verbs.

use std::collections::VecDeque;
use std::net::SocketAddr;

use sealfs_rdma::verbs::{Happening, Link, MESSAGE_LEN, Verbs, WINDOW, Work};
use sealfs_transport::Instant;
use sealfs_transport::suite::Raw;

/// Sends what a test wants in messages of the right layout; gives no credits back.
pub(crate) struct RawLink {
    verbs: Box<dyn Verbs>,
    link: Option<Link>,
    connected: bool,
    waiting: VecDeque<Vec<u8>>,
    read: Vec<u8>,
}

impl RawLink {
    /// Begins to connect.
    pub(crate) fn new(mut verbs: Box<dyn Verbs>, address: SocketAddr) -> Self {
        let link = verbs.resolve(address, 5_000).unwrap();
        let (waiting, read) = (VecDeque::new(), Vec::new());
        Self { verbs, link: Some(link), connected: false, waiting, read }
    }

    fn advance(&mut self) {
        let numbers: Vec<u64> =
            self.verbs.descriptors().iter().map(|(number, _)| *number).collect();
        numbers.into_iter().for_each(|number| self.verbs.woken(number));
        while let Some(happening) = self.verbs.poll() {
            match happening {
                Happening::Resolved { link } => {
                    let mut private = b"SEAR\x01\0".to_vec();
                    private.extend(WINDOW.to_le_bytes());
                    private.extend((MESSAGE_LEN as u32).to_le_bytes());
                    self.verbs.connect(link, &private).unwrap();
                }
                Happening::Established { .. } => self.connected = true,
                Happening::Received { bytes, .. } => self.read.extend(&bytes[4..]),
                Happening::Lost { .. } | Happening::Done { result: Err(_), .. } => {
                    if let Some(link) = self.link.take() {
                        self.verbs.destroy(link);
                    }
                }
                Happening::Done { .. } | Happening::Incoming { .. } => {}
            }
        }
        let Some(link) = self.link.filter(|_| self.connected) else { return };
        while self.verbs.room(link) > 0
            && let Some(bytes) = self.waiting.pop_front()
        {
            let send = Work::Send { bytes, told: true, fenced: false };
            if self.verbs.post(link, vec![send]).is_err() {
                return;
            }
        }
        self.verbs.arm();
    }
}

impl Raw for RawLink {
    /// Cut into messages: the first begins a frame, the others go on with it.
    fn write(&mut self, _now: Instant, bytes: &[u8]) {
        for (index, part) in bytes.chunks(MESSAGE_LEN - 4).enumerate() {
            let mut message = vec![if index == 0 { 1 } else { 2 }, 0, 0, 0];
            message.extend(part);
            self.waiting.push_back(message);
        }
        self.advance();
    }

    fn read(&mut self, _now: Instant) -> Vec<u8> {
        self.advance();
        std::mem::take(&mut self.read)
    }

    fn is_closed(&self) -> bool {
        self.link.is_none()
    }
}
