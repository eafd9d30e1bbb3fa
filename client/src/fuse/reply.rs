//! What goes back to the kernel: a header, a structure, and data where it lies.
//!
//! 1. A reply is one writev(2): the kernel takes a reply whole or not at all.
//! 2. Data of a READ is never copied: the pieces' regions are written from where the network put them.

use std::io::IoSlice;

use sealfs_client_core::{Handle, Piece};
use sealfs_proto::{Attr, Errno, Listed, Lock, limits};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::abi::{self, OutHeader};

/// An answer to one request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    error: Option<Errno>,
    body: Vec<u8>,
    data: Vec<Piece>,
    /// What has to be given back if the kernel no longer wants the answer.
    pub(crate) gives: Option<Given>,
}

/// Something that an answer gives to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// An open file.
    Open(Handle),
    /// A lock on an open file.
    Lock(Handle, Lock),
}

impl Reply {
    /// It is done.
    pub(crate) fn done() -> Self {
        Self::default()
    }

    pub(crate) fn error(errno: Errno) -> Self {
        Self { error: Some(errno), ..Self::default() }
    }

    /// A structure.
    pub(crate) fn of(value: &(impl IntoBytes + Immutable)) -> Self {
        Self::bytes(value.as_bytes().to_vec())
    }

    pub(crate) fn bytes(body: Vec<u8>) -> Self {
        Self { body, ..Self::default() }
    }

    /// Data of a file.
    pub(crate) fn data(data: Vec<Piece>) -> Self {
        Self { data, ..Self::default() }
    }

    /// An inode that was found or made; the kernel believes it for `valid_ms`.
    pub(crate) fn entry(attr: &Attr, valid_ms: u64) -> Self {
        Self::of(&entry(attr, valid_ms))
    }

    pub(crate) fn attr(attr: &Attr, valid_ms: u64) -> Self {
        let (attr_valid, attr_valid_nsec) = valid(valid_ms);
        Self::of(&abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attributes(attr) })
    }

    /// An open, behind the `entry` if it is a new file's.
    pub(crate) fn open(entry: Self, handle: Handle, out: abi::OpenOut) -> Self {
        let mut reply = entry;
        reply.body.extend_from_slice(out.as_bytes());
        reply.gives = Some(Given::Open(handle));
        reply
    }

    /// Why it is none.
    pub(crate) const fn errno(&self) -> Option<Errno> {
        self.error
    }

    /// Bytes of a file in it.
    pub(crate) fn data_len(&self) -> usize {
        self.data.iter().map(|piece| piece.len).sum()
    }

    /// If it answers a WRITE: the bytes that were taken.
    pub(crate) fn written(&self) -> u32 {
        abi::WriteOut::read_from_bytes(&self.body).map_or(0, |out| out.size)
    }

    /// The header of this reply to request `unique`.
    pub(crate) fn header(&self, unique: u64) -> OutHeader {
        let len = size_of::<OutHeader>() + self.body.len() + self.data_len();
        let len = u32::try_from(len).expect("a reply is at most a read's size and a header");
        OutHeader { len, error: self.error.map_or(0, |errno| -errno.raw()), unique }
    }

    /// All of it, in order. Cost: one small allocation.
    pub(crate) fn slices<'a>(&'a self, header: &'a OutHeader) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 + self.data.len());
        slices.push(IoSlice::new(header.as_bytes()));
        slices.push(IoSlice::new(&self.body));
        slices.extend(self.data.iter().map(|piece| IoSlice::new(piece.bytes())));
        slices
    }
}

/// Entries of a directory as the kernel wants them, as many as fit; those that do not are asked for again behind the last one
/// that did.
pub(crate) struct Listing {
    bytes: Vec<u8>,
    room: usize,
    plus: bool,
    valid_ms: u64,
}

impl Listing {
    /// At most `room` bytes; `plus`: with attributes, which the kernel believes for `valid_ms`.
    pub(crate) fn new(room: usize, plus: bool, valid_ms: u64) -> Self {
        Self { bytes: Vec::with_capacity(room), room, plus, valid_ms }
    }

    /// Adds an entry if it fits. With attributes the kernel also gets the inode to know, except of "." and "..", which
    /// it must not, and of entries whose attributes are not there: it will look those up.
    pub(crate) fn push(&mut self, listed: &Listed) -> bool {
        let head = if self.plus { size_of::<abi::EntryOut>() } else { 0 };
        let named = size_of::<abi::Dirent>() + listed.name.len();
        let len = head + named.next_multiple_of(abi::DIRENT_ALIGN);
        if self.bytes.len() + len > self.room {
            return false;
        }
        let end = self.bytes.len() + len;
        if self.plus {
            let known = listed.entry.attr.as_ref().filter(|_| !is_dot(&listed.name));
            let entry = known.map(|attr| entry(attr, self.valid_ms)).unwrap_or_default();
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        let dirent = abi::Dirent {
            ino: listed.entry.ino.0,
            off: listed.cookie,
            namelen: listed.name.len() as u32,
            kind: listed.entry.kind.mode_bits() >> 12,
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(&listed.name);
        self.bytes.resize(end, 0);
        true
    }

    pub(crate) fn finish(self) -> Reply {
        Reply::bytes(self.bytes)
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// Seconds and nanoseconds.
const fn valid(ms: u64) -> (u64, u32) {
    (ms / 1_000, (ms % 1_000) as u32 * 1_000_000)
}

/// Inode numbers are never used twice, so that the generation beside them is always 0.
fn entry(attr: &Attr, valid_ms: u64) -> abi::EntryOut {
    let (valid, nsec) = valid(valid_ms);
    abi::EntryOut {
        nodeid: attr.ino.0,
        generation: 0,
        entry_valid: valid,
        attr_valid: valid,
        entry_valid_nsec: nsec,
        attr_valid_nsec: nsec,
        attr: attributes(attr),
    }
}

fn attributes(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: u64::try_from(attr.blocks).unwrap_or(0),
        atime: attr.atime.seconds as u64,
        mtime: attr.mtime.seconds as u64,
        ctime: attr.ctime.seconds as u64,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.st_mode(),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.chunk_size.clamp(limits::BLOCK_SIZE, BLKSIZE_MAX),
        flags: 0,
    }
}

/// st_blksize at most: programs take it as the size of their buffers. There is no write-back cache, so that every write(2) is
/// a round trip, and 256 KiB make that cheap; a whole chunk would make every stdio stream allocate 1 MiB.
const BLKSIZE_MAX: u32 = 256 * 1024;

#[cfg(test)]
mod tests {
    use sealfs_proto::{Entry, Ino, Kind, Time};
    use sealfs_transport::Region;
    use zerocopy::FromBytes;

    use super::*;

    fn sample(ino: u64) -> Attr {
        Attr {
            ino: Ino(ino),
            kind: Kind::Directory,
            mode: 0o1755,
            nlink: 2,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 9,
            blocks: 8,
            chunk_size: 1 << 20,
            atime: Time { seconds: -1, nanos: 5 },
            mtime: Time::default(),
            ctime: Time::default(),
            change: 1,
            generation: 1,
            bound: 0,
        }
    }

    fn listed(name: &[u8], cookie: u64) -> Listed {
        let entry = Entry { ino: Ino(7), kind: Kind::Directory, attr: Some(sample(7)) };
        Listed { cookie, name: name.to_vec(), entry }
    }

    fn wire(reply: &Reply) -> Vec<u8> {
        let header = reply.header(3);
        reply.slices(&header).iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn a_reply_says_its_length_and_error() {
        let failed = wire(&Reply::error(Errno::ENOENT));
        let header = OutHeader::read_from_bytes(&failed).unwrap();
        assert_eq!(header, OutHeader { len: 16, error: -2, unique: 3 });

        let piece = |fill: u8, len| {
            let mut region = Region::zeroed(8);
            region.bytes_mut().fill(fill);
            Piece { region, len }
        };
        let read = wire(&Reply::data(vec![piece(b'a', 3), piece(b'b', 8)]));
        let (header, data) = OutHeader::read_from_prefix(&read).unwrap();
        assert_eq!((header.len, header.error, data), (27, 0, &b"aaabbbbbbbb"[..]));
    }

    #[test]
    fn attributes_keep_their_bits() {
        let reply = wire(&Reply::attr(&sample(7), 1_500));
        let out = abi::AttrOut::read_from_bytes(&reply[16..]).unwrap();
        assert_eq!((out.attr_valid, out.attr_valid_nsec), (1, 500_000_000));
        assert_eq!((out.attr.mode, out.attr.blksize), (0o041_755, 256 * 1024));
        assert_eq!((out.attr.atime as i64, out.attr.atimensec), (-1, 5));
    }

    #[test]
    fn a_listing_holds_what_fits_and_pads_names() {
        let mut listing = Listing::new(72, false, 0);
        assert!(listing.push(&listed(b".", 1)));
        assert!(listing.push(&listed(b"eight888", 2)));
        assert!(!listing.push(&listed(b"x", 3)), "32 + 32 + 32 bytes are more than 72");
        let bytes = wire(&listing.finish());
        assert_eq!(bytes.len(), 16 + 64);
        let (dirent, rest) = abi::Dirent::read_from_prefix(&bytes[16..]).unwrap();
        assert_eq!((dirent.off, dirent.namelen, dirent.kind), (1, 1, 4));
        assert_eq!(&rest[..8], b".\0\0\0\0\0\0\0");
    }

    #[test]
    fn the_kernel_is_not_given_dots_to_know() {
        for (name, nodeid) in [(&b"."[..], 0), (b"..", 0), (b"...", 7)] {
            let mut listing = Listing::new(4_096, true, 0);
            assert!(listing.push(&listed(name, 1)));
            let bytes = wire(&listing.finish());
            let (entry, _) = abi::EntryOut::read_from_prefix(&bytes[16..]).unwrap();
            assert_eq!(entry.nodeid, nodeid);
        }
    }
}
