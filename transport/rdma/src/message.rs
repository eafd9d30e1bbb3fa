//! What a SEND carries, and what the connection manager's private data say.
//!
//! ```text
//! message       | kind u8 | 0 u8 | credits u16 | bytes of a frame ...       at most MESSAGE_LEN bytes
//! private data  | magic u32 "SEAR" | layout u8 | 0 u8 | window u16 | message length u32
//! ```
//! All little-endian. A frame (header and body) that is longer than one message goes on in the next ones: kind 1 begins a
//! frame, 2 goes on, 3 only gives credits back. A frame's payload is never in a message.
//!
//! The private data are the same in every version of the protocol; what they say is no secret and proves nothing.

use sealfs_proto::Header;

use crate::verbs::{MESSAGE_LEN, WINDOW};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It begins a frame.
    First,
    /// It goes on with the frame that the last one began.
    More,
    /// It has no content.
    Credits,
}

/// Bytes before a message's content.
pub(crate) const PREFIX_LEN: usize = 4;
/// A peer's messages are at least so long.
const MESSAGE_LEN_MIN: usize = 1_024;
const MAGIC: [u8; 4] = *b"SEAR";
const LAYOUT: u8 = 1;

const _: () = assert!(MESSAGE_LEN >= MESSAGE_LEN_MIN && PREFIX_LEN + Header::LEN < MESSAGE_LEN_MIN);

/// The bytes of a message.
pub(crate) fn encode(kind: Kind, credits: u16, content: &[u8]) -> Vec<u8> {
    let kind = match kind {
        Kind::First => 1,
        Kind::More => 2,
        Kind::Credits => 3,
    };
    let mut bytes = Vec::with_capacity(PREFIX_LEN + content.len());
    bytes.extend([kind, 0]);
    bytes.extend(credits.to_le_bytes());
    bytes.extend(content);
    bytes
}

/// Kind, credits and content of a message; `None` if it is none.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Kind, u16, &[u8])> {
    let (&[kind, zero, low, high], content) = bytes.split_first_chunk()?;
    let kind = match (kind, zero) {
        (1, 0) if content.len() >= Header::LEN => Kind::First,
        (2, 0) if !content.is_empty() => Kind::More,
        (3, 0) if content.is_empty() => Kind::Credits,
        _ => return None,
    };
    Some((kind, u16::from_le_bytes([low, high]), content))
}

/// What an end can receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Messages.
    pub(crate) window: u16,
    /// Bytes of each.
    pub(crate) message_len: usize,
}

impl Room {
    /// This end's.
    pub(crate) const OURS: Self = Self { window: WINDOW, message_len: MESSAGE_LEN };

    /// The private data.
    pub(crate) fn to_private(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([LAYOUT, 0]);
        bytes.extend(self.window.to_le_bytes());
        bytes.extend((self.message_len as u32).to_le_bytes());
        bytes
    }

    /// What the peer's private data say (padding behind them is not looked at); what is wrong with them.
    pub(crate) fn from_private(bytes: &[u8]) -> Result<Self, String> {
        let Some((&[m0, m1, m2, m3, layout, _, w0, w1, l0, l1, l2, l3], _)) =
            bytes.split_first_chunk()
        else {
            return Err("what listens there is no sealfs node".into());
        };
        if [m0, m1, m2, m3] != MAGIC {
            return Err("what listens there is no sealfs node".into());
        }
        let room = Self {
            window: u16::from_le_bytes([w0, w1]),
            message_len: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
        };
        if layout != LAYOUT || room.window < 4 || room.message_len < MESSAGE_LEN_MIN {
            return Err(format!(
                "the peer speaks layout {layout} of RDMA messages, this program {LAYOUT}; upgrade the older of the two"
            ));
        }
        Ok(Self { message_len: room.message_len.min(MESSAGE_LEN), ..room })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_private_data_come_back_as_they_went() {
        let frame = [7; Header::LEN];
        for (kind, content) in
            [(Kind::First, &frame[..]), (Kind::More, &[1][..]), (Kind::Credits, &[][..])]
        {
            let bytes = encode(kind, 0x0102, content);
            assert_eq!(decode(&bytes), Some((kind, 0x0102, content)));
        }
        let mut private = Room::OURS.to_private();
        private.extend([0; 40]);
        assert_eq!(Room::from_private(&private), Ok(Room::OURS));
    }

    #[test]
    fn any_bytes_are_a_message_that_comes_back_or_none() {
        let samples = [encode(Kind::First, 7, &[7; Header::LEN]), Room::OURS.to_private()];
        for sample in samples {
            for at in 0..sample.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = sample.clone();
                    bytes[at] = value;
                    for bytes in [&bytes[..], &bytes[..at]] {
                        if let Some((kind, credits, content)) = decode(bytes) {
                            assert_eq!(encode(kind, credits, content), bytes);
                        }
                        if let Ok(room) = Room::from_private(bytes) {
                            assert!(room.window >= 4 && room.message_len <= MESSAGE_LEN);
                            assert!(room.message_len >= MESSAGE_LEN_MIN);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in
            [&[][..], &[1, 0, 0], &[1, 0, 0, 0, 5], &[2, 0, 0, 0], &[3, 0, 0, 0, 1], &[4, 0, 0, 0]]
        {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
        assert!(Room::from_private(b"something else").is_err());
        let mut other = Room::OURS.to_private();
        other[4] = 9;
        assert!(Room::from_private(&other).unwrap_err().contains("upgrade"));
    }
}
