//! The 64 bytes that begin every frame.
//!
//! ```text
//!  0  magic u32 "SEAL"   4  version u8   5  kind u8   6  status u16
//!  8  body_len u32      12  bulk_len u32
//! 16  token u64         24  sequence u64
//! 32  watermark u64     40  remote_address u64
//! 48  remote_key u32    52  epoch u32
//! 56  shard u16         58  reserved u16 (0)
//! 60  crc u32: CRC32C of these 60 bytes and the body
//! ```
//! All little-endian. `bulk_len` is the payload's length: of what the sender offers (a write's request, a read's reply)
//! or of the space it has for the answer (a read's request). A session is not in the header: it belongs to the
//! connection.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Corrupt, Epoch, Errno, Sequence, ShardId, limits};

/// A frame's header on the wire.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: u8,
    kind: u8,
    status: U16,
    body_len: U32,
    bulk_len: U32,
    token: U64,
    sequence: U64,
    watermark: U64,
    remote_address: U64,
    remote_key: U32,
    epoch: U32,
    shard: U16,
    reserved: U16,
    crc: U32,
}

const MAGIC: u32 = u32::from_le_bytes(*b"SEAL");
const CRC_AT: usize = 60;
const _: () = assert!(size_of::<Raw>() == Header::LEN);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind {
    /// Part of the handshake.
    Handshake,
    /// A request whose bulk, if it has any, is for the peer to pull.
    Request,
    /// A request that offers space for the reply's bulk.
    RequestForBulk,
    /// A reply, with the bulk pushed.
    Reply,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The body is a [`crate::Reply`].
    Ok,
    /// The program gets this error.
    Errno(Errno),
    /// Not now: ask again after a moment (a key is held, a queue is full).
    Busy,
    /// The node does not hold the shard: ask again with a newer map.
    StaleMap,
    /// The node has no such session any more (its lease ended).
    NoSession,
    /// The sequence lies below the watermark: it was answered before and is not executed again.
    Answered,
}

const STATUS_CODES: [(u16, Status); 4] = [
    (0xF001, Status::Busy),
    (0xF002, Status::StaleMap),
    (0xF003, Status::NoSession),
    (0xF004, Status::Answered),
];

impl Status {
    fn to_wire(self) -> u16 {
        match self {
            Self::Ok => 0,
            Self::Errno(errno) => errno.raw() as u16,
            other => STATUS_CODES
                .iter()
                .find(|(_, status)| *status == other)
                .map_or(0xF001, |(code, _)| *code),
        }
    }

    fn from_wire(code: u16) -> Result<Self, Corrupt> {
        match code {
            0 => Ok(Self::Ok),
            1..=4_095 => Ok(Self::Errno(Errno::from_raw(i32::from(code)))),
            _ => STATUS_CODES
                .iter()
                .find(|(known, _)| *known == code)
                .map(|(_, status)| *status)
                .ok_or_else(|| Corrupt::new("frame header", format!("unknown status {code:#06x}"))),
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the protocol, agreed on by the handshake.
    pub version: u8,
    /// What the frame is.
    pub kind: HeaderKind,
    /// How the request ended; `Ok` in requests.
    pub status: Status,
    /// Bytes of the body.
    pub body_len: u32,
    /// Bytes of the payload: offered, or room for it.
    pub bulk_len: u32,
    /// Names the call on its connection; the reply carries it back.
    pub token: u64,
    /// The change's number in its session; 0 for what changes nothing. In a reply: how often the node's machine has lost
    /// power, so that a client notices that what the node had acknowledged and not synced may be gone.
    pub sequence: Sequence,
    /// The sender's lowest sequence still in flight to this node, lock waits not counted: replies of its endpoint below it
    /// may be forgotten.
    pub watermark: Sequence,
    /// Where the bulk lies in the sender's registered memory (RDMA only).
    pub remote_address: u64,
    /// The key to it (RDMA only).
    pub remote_key: u32,
    /// The sender's map.
    pub epoch: Epoch,
    /// The shard the request is for.
    pub shard: ShardId,
}

impl Header {
    /// Bytes on the wire.
    pub const LEN: usize = 64;
    /// The newest protocol version this software speaks.
    pub const VERSION: u8 = 1;
    /// The oldest protocol version this software speaks.
    pub const VERSION_MIN: u8 = 1;

    /// A header of `kind` for call `token`, everything else zero.
    #[must_use]
    pub const fn new(kind: HeaderKind, token: u64) -> Self {
        Self {
            version: Self::VERSION,
            kind,
            status: Status::Ok,
            body_len: 0,
            bulk_len: 0,
            token,
            sequence: Sequence(0),
            watermark: Sequence(0),
            remote_address: 0,
            remote_key: 0,
            epoch: Epoch(0),
            shard: ShardId(0),
        }
    }

    /// The bytes of this header before `body`, with the checksum over both. `body_len` is taken from `body`.
    #[must_use]
    pub fn to_bytes(&self, body: &[u8]) -> [u8; Self::LEN] {
        let raw = Raw {
            magic: MAGIC.into(),
            version: self.version,
            kind: match self.kind {
                HeaderKind::Handshake => 0,
                HeaderKind::Request => 1,
                HeaderKind::RequestForBulk => 2,
                HeaderKind::Reply => 3,
            },
            status: self.status.to_wire().into(),
            body_len: (body.len() as u32).into(),
            bulk_len: self.bulk_len.into(),
            token: self.token.into(),
            sequence: self.sequence.0.into(),
            watermark: self.watermark.0.into(),
            remote_address: self.remote_address.into(),
            remote_key: self.remote_key.into(),
            epoch: self.epoch.0.into(),
            shard: self.shard.0.into(),
            reserved: 0.into(),
            crc: 0.into(),
        };
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(raw.as_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), body);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; its lengths are within the limits. The checksum is checked by [`Header::check`] once the body is
    /// there.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, Corrupt> {
        let bad = |cause: String| Corrupt::new("frame header", cause);
        let raw = Raw::ref_from_bytes(bytes).map_err(|_| bad("wrong length".into()))?;
        if raw.magic.get() != MAGIC {
            return Err(bad(format!("magic {:#010x}", raw.magic.get())));
        }
        let kind = match raw.kind {
            0 => HeaderKind::Handshake,
            1 => HeaderKind::Request,
            2 => HeaderKind::RequestForBulk,
            3 => HeaderKind::Reply,
            other => return Err(bad(format!("unknown kind {other}"))),
        };
        if raw.reserved.get() != 0 {
            return Err(bad("reserved bits set".into()));
        }
        if raw.body_len.get() > limits::BODY_LEN_MAX || raw.bulk_len.get() > limits::BULK_LEN_MAX {
            return Err(bad(format!("body of {} bytes, bulk of {}", raw.body_len, raw.bulk_len)));
        }
        Ok(Self {
            version: raw.version,
            kind,
            status: Status::from_wire(raw.status.get())?,
            body_len: raw.body_len.get(),
            bulk_len: raw.bulk_len.get(),
            token: raw.token.get(),
            sequence: Sequence(raw.sequence.get()),
            watermark: Sequence(raw.watermark.get()),
            remote_address: raw.remote_address.get(),
            remote_key: raw.remote_key.get(),
            epoch: Epoch(raw.epoch.get()),
            shard: ShardId(raw.shard.get()),
        })
    }

    /// Whether header and body are what the sender sent.
    pub fn check(bytes: &[u8; Self::LEN], body: &[u8]) -> Result<(), Corrupt> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), body);
        if bytes[CRC_AT..] == crc.to_le_bytes() {
            Ok(())
        } else {
            Err(Corrupt::new("frame", "checksum does not match"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header {
            status: Status::Errno(Errno::ENOSPC),
            bulk_len: 4_096,
            sequence: Sequence(9),
            watermark: Sequence(3),
            remote_address: u64::MAX,
            remote_key: 5,
            epoch: Epoch(2),
            shard: ShardId(4_095),
            ..Header::new(HeaderKind::Reply, 77)
        }
    }

    #[test]
    fn a_header_comes_back_as_it_went() {
        let bytes = sample().to_bytes(b"body");
        assert_eq!(Header::from_bytes(&bytes), Ok(Header { body_len: 4, ..sample() }));
        assert_eq!(Header::check(&bytes, b"body"), Ok(()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample().to_bytes(b"body");
        for bit in 0..Header::LEN * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Header::from_bytes(&bytes).is_err() || Header::check(&bytes, b"body").is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn every_status_survives_the_wire() {
        let all = [
            Status::Ok,
            Status::Errno(Errno::EIO),
            Status::Busy,
            Status::StaleMap,
            Status::NoSession,
            Status::Answered,
        ];
        for status in all {
            assert_eq!(Status::from_wire(status.to_wire()), Ok(status));
        }
        assert!(Status::from_wire(0xFFFF).is_err());
    }
}
