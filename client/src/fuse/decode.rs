//! Bytes from the kernel -> a typed request. Pure: no state, no I/O.
//!
//! The kernel is trusted not to lie, but not to be of the version that we expect: whatever the bytes are, the result is
//! a [`Request`] or an [`Invalid`], never a panic and never an allocation that a number in the message has chosen.
//!
//! ```text
//! | InHeader 40 | structure of the operation | name\0 ... | data | extensions (total_extlen x 8) |
//! ```
//! Extensions are not asked for in INIT, and cut off if they come all the same.
//!
//! 1. An operation that is not known is [`Op::Unknown`], no error: the session answers ENOSYS, which every kernel takes as
//!    "use something else" and most never ask again.
//! 2. A name has no zero byte and is not empty. Its length is for the file system to judge (ENAMETOOLONG).

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, InHeader};

/// A message, with what it borrows from the buffer it was read into.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: InHeader,
    pub(crate) op: Op<'a>,
}

/// What is asked, in the kernel's words.
#[derive(Debug)]
pub(crate) enum Op<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget,
    BatchForget {
        all: ForgetList<'a>,
    },
    Getattr,
    Setattr(abi::SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        args: abi::MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        args: abi::MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        target_dir: u64,
        flags: u32,
        name: &'a [u8],
        target: &'a [u8],
    },
    Link {
        ino: u64,
        name: &'a [u8],
    },
    Open(abi::OpenIn),
    Read(abi::ReadIn),
    /// The data lies where it was read to, `size` bytes.
    Write(abi::WriteIn),
    Statfs,
    Release(abi::ReleaseIn),
    Fsync(abi::FsyncIn),
    Setxattr {
        args: abi::SetxattrIn,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: &'a [u8],
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush(abi::FlushIn),
    Init(abi::InitIn),
    Opendir,
    Readdir {
        args: abi::ReadIn,
        plus: bool,
    },
    Releasedir(abi::ReleaseIn),
    Fsyncdir,
    Getlk(abi::LkIn),
    Setlk {
        args: abi::LkIn,
        wait: bool,
    },
    Create {
        args: abi::CreateIn,
        name: &'a [u8],
    },
    Tmpfile(abi::CreateIn),
    Interrupt {
        unique: u64,
    },
    Destroy,
    Fallocate(abi::FallocateIn),
    Lseek(abi::LseekIn),
    /// `wide`: answered with a 64-bit count.
    CopyFileRange {
        args: abi::CopyFileRangeIn,
        wide: bool,
    },
    Syncfs,
    NotifyReply,
    Unknown,
}

/// Bytes that are no message. The session answers EIO where it can read the header, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    /// There is no header, so that no answer is possible.
    #[error("{0} bytes from /dev/fuse are less than a header")]
    Short(usize),
    /// The header's length is not the number of bytes read.
    #[error("a message of {read} bytes from /dev/fuse says that it has {said}")]
    Length { read: usize, said: u32 },
    /// The body ends early or holds what it must not.
    #[error("operation {opcode} from /dev/fuse has a malformed body of {body} bytes")]
    Body { opcode: u32, body: usize },
}

/// Decodes one message, of which the last `behind` bytes lie elsewhere: the data of a write, whose `bytes` are header and
/// structure; 0 for all others. Cost: no allocation, no copy of names or data.
pub(crate) fn decode(bytes: &[u8], behind: usize) -> Result<Request<'_>, Invalid> {
    let (header, body) = header(bytes)?;
    if header.len as usize != bytes.len() + behind {
        return Err(Invalid::Length { read: bytes.len() + behind, said: header.len });
    }
    let malformed = Invalid::Body { opcode: header.opcode, body: body.len() };
    let extensions = usize::from(header.total_extlen) * 8;
    let end = body.len().checked_sub(extensions).ok_or(malformed)?;
    let op = op(header.opcode, &mut Body(&body[..end])).ok_or(malformed)?;
    let expected = if let Op::Write(args) = &op { args.size as usize } else { 0 };
    if behind != expected {
        return Err(malformed);
    }
    Ok(Request { header, op })
}

/// Whether the bytes are a message, looked at to its end; `behind` as in [`decode`].
pub(crate) fn is_message(bytes: &[u8], behind: usize) -> bool {
    match decode(bytes, behind).map(|request| request.op) {
        Ok(Op::BatchForget { all }) => all.iter().count() <= bytes.len(),
        decoded => decoded.is_ok(),
    }
}

/// The header and what follows it.
pub(crate) fn header(bytes: &[u8]) -> Result<(InHeader, &[u8]), Invalid> {
    InHeader::read_from_prefix(bytes).map_err(|_| Invalid::Short(bytes.len()))
}

fn op<'a>(opcode: u32, body: &mut Body<'a>) -> Option<Op<'a>> {
    Some(match opcode {
        abi::LOOKUP => Op::Lookup { name: body.name()? },
        abi::FORGET => body.skip::<u64>(Op::Forget)?,
        abi::BATCH_FORGET => Op::BatchForget { all: ForgetList::decode(body)? },
        abi::GETATTR => body.skip::<abi::GetattrIn>(Op::Getattr)?,
        abi::SETATTR => Op::Setattr(body.take()?),
        abi::READLINK => Op::Readlink,
        abi::SYMLINK => Op::Symlink { name: body.name()?, target: body.name()? },
        abi::MKNOD => Op::Mknod { args: body.take()?, name: body.name()? },
        abi::MKDIR => Op::Mkdir { args: body.take()?, name: body.name()? },
        abi::UNLINK => Op::Unlink { name: body.name()? },
        abi::RMDIR => Op::Rmdir { name: body.name()? },
        abi::RENAME => {
            let abi::RenameIn { newdir } = body.take()?;
            Op::Rename { target_dir: newdir, flags: 0, name: body.name()?, target: body.name()? }
        }
        abi::RENAME2 => {
            let abi::Rename2In { newdir, flags, .. } = body.take()?;
            Op::Rename { target_dir: newdir, flags, name: body.name()?, target: body.name()? }
        }
        abi::LINK => {
            let abi::LinkIn { oldnodeid } = body.take()?;
            Op::Link { ino: oldnodeid, name: body.name()? }
        }
        abi::OPEN => Op::Open(body.take()?),
        abi::READ => Op::Read(body.take()?),
        abi::WRITE => Op::Write(body.take()?),
        abi::STATFS => Op::Statfs,
        abi::RELEASE => Op::Release(body.take()?),
        abi::FSYNC => Op::Fsync(body.take()?),
        abi::FLUSH => Op::Flush(body.take()?),
        abi::INIT => Op::Init(init(body)?),
        abi::OPENDIR => body.skip::<abi::OpenIn>(Op::Opendir)?,
        abi::READDIR => Op::Readdir { args: body.take()?, plus: false },
        abi::READDIRPLUS => Op::Readdir { args: body.take()?, plus: true },
        abi::RELEASEDIR => Op::Releasedir(body.take()?),
        abi::FSYNCDIR => body.skip::<abi::FsyncIn>(Op::Fsyncdir)?,
        abi::CREATE => Op::Create { args: body.take()?, name: body.name()? },
        abi::TMPFILE => Op::Tmpfile(body.take()?),
        _ => return rare(opcode, body),
    })
}

/// The rest, so that neither function is long.
fn rare<'a>(opcode: u32, body: &mut Body<'a>) -> Option<Op<'a>> {
    Some(match opcode {
        abi::SETXATTR => {
            let args: abi::SetxattrIn = body.take()?;
            Op::Setxattr { args, name: body.name()?, value: body.bytes(args.size)? }
        }
        abi::GETXATTR => {
            let abi::GetxattrIn { size, .. } = body.take()?;
            Op::Getxattr { size, name: body.name()? }
        }
        abi::LISTXATTR => {
            let abi::GetxattrIn { size, .. } = body.take()?;
            Op::Listxattr { size }
        }
        abi::REMOVEXATTR => Op::Removexattr { name: body.name()? },
        abi::GETLK => Op::Getlk(body.take()?),
        abi::SETLK => Op::Setlk { args: body.take()?, wait: false },
        abi::SETLKW => Op::Setlk { args: body.take()?, wait: true },
        abi::INTERRUPT => {
            let abi::InterruptIn { unique } = body.take()?;
            Op::Interrupt { unique }
        }
        abi::DESTROY => Op::Destroy,
        abi::FALLOCATE => Op::Fallocate(body.take()?),
        abi::LSEEK => Op::Lseek(body.take()?),
        abi::COPY_FILE_RANGE => Op::CopyFileRange { args: body.take()?, wide: false },
        abi::COPY_FILE_RANGE_64 => Op::CopyFileRange { args: body.take()?, wide: true },
        abi::SYNCFS => Op::Syncfs,
        abi::NOTIFY_REPLY => Op::NotifyReply,
        _ => Op::Unknown,
    })
}

/// Kernels before 7.36 send only the first 16 bytes.
fn init(body: &mut Body<'_>) -> Option<abi::InitIn> {
    let mut bytes = [0; size_of::<abi::InitIn>()];
    let sent = body.0.len().min(bytes.len());
    if sent < 16 {
        return None;
    }
    bytes[..sent].copy_from_slice(&body.0[..sent]);
    abi::InitIn::read_from_bytes(&bytes).ok()
}

/// What of a message has not been looked at yet.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// A structure that tells us nothing: it must be there.
    fn skip<T: FromBytes + KnownLayout + Immutable>(&mut self, op: Op<'a>) -> Option<Op<'a>> {
        self.take::<T>().map(|_| op)
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0).filter(|&end| end > 0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }

    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// The inodes of a BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForgetList<'a>(&'a [u8]);

impl<'a> ForgetList<'a> {
    fn decode(body: &mut Body<'a>) -> Option<Self> {
        let abi::BatchForgetIn { count, .. } = body.take()?;
        let len = count.checked_mul(size_of::<abi::ForgetOne>() as u32)?;
        body.bytes(len).map(Self)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = abi::ForgetOne> + 'a {
        self.0
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|bytes| abi::ForgetOne::read_from_bytes(bytes).ok())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique: 7, nodeid: 1, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    fn join(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn names_and_data_are_found_where_they_lie() {
        let lookup = message(abi::LOOKUP, b"name\0");
        assert!(matches!(decode(&lookup, 0).unwrap().op, Op::Lookup { name: b"name" }));

        let args = abi::Rename2In { newdir: 9, flags: 1, padding: 0 };
        let rename = message(abi::RENAME2, &join(&[args.as_bytes(), b"a\0bb\0"]));
        let Op::Rename { target_dir, flags, name, target } = decode(&rename, 0).unwrap().op else {
            panic!("a rename is decoded as one")
        };
        assert_eq!((target_dir, flags, name, target), (9, 1, &b"a"[..], &b"bb"[..]));

        let args = abi::WriteIn { size: 3, offset: 5, ..abi::WriteIn::default() };
        let mut write = message(abi::WRITE, args.as_bytes());
        write[0] += 3;
        assert!(matches!(decode(&write, 3).unwrap().op, Op::Write(found) if found == args));
        write[0] += 1;
        assert!(decode(&write, 4).is_err(), "a write's size is the data that was read");
    }

    #[test]
    fn forgets_are_listed_and_extensions_cut_off() {
        let head = abi::BatchForgetIn { count: 2, dummy: 0 };
        let one = |nodeid| abi::ForgetOne { nodeid, nlookup: 4 };
        let batch = join(&[head.as_bytes(), one(2).as_bytes(), one(3).as_bytes()]);
        let batch = message(abi::BATCH_FORGET, &batch);
        let Op::BatchForget { all } = decode(&batch, 0).unwrap().op else {
            panic!("a batch is decoded as one")
        };
        assert_eq!(all.iter().map(|one| one.nodeid).collect::<Vec<_>>(), [2, 3]);

        let args = abi::MkdirIn::default();
        let mut mkdir = message(abi::MKDIR, &join(&[args.as_bytes(), b"name\0xx", &[255; 16]]));
        mkdir[36] = 2;
        let request = decode(&mkdir, 0).unwrap();
        assert!(matches!(request.op, Op::Mkdir { name: b"name", .. }));
    }

    #[test]
    fn an_old_kernels_init_is_short() {
        let args = abi::InitIn { major: 7, minor: 31, flags: 1, ..abi::InitIn::default() };
        let init = message(abi::INIT, &args.as_bytes()[..16]);
        assert!(matches!(decode(&init, 0).unwrap().op, Op::Init(init) if init == args));
        assert!(decode(&message(abi::INIT, &args.as_bytes()[..15]), 0).is_err());
    }

    #[test]
    fn malformed_bodies_are_refused() {
        assert_eq!(decode(&[0; 39], 0).unwrap_err(), Invalid::Short(39));
        let mut long = message(abi::STATFS, b"");
        long.push(0);
        assert_eq!(decode(&long, 0).unwrap_err(), Invalid::Length { read: 41, said: 40 });
        for (opcode, body) in [
            (abi::LOOKUP, &b"unterminated"[..]),
            (abi::LOOKUP, b"\0"),
            (abi::SYMLINK, b"one\0"),
            (abi::GETATTR, b"short"),
            (abi::BATCH_FORGET, &[255; 8]),
            (abi::WRITE, &[255; 40]),
        ] {
            let refused = Invalid::Body { opcode, body: body.len() };
            assert_eq!(decode(&message(opcode, body), 0).unwrap_err(), refused);
        }
        let mut extended = message(abi::STATFS, &[0; 8]);
        extended[36] = 1;
        assert!(decode(&extended, 0).is_ok());
        extended[36] = 2;
        assert!(decode(&extended, 0).is_err(), "extensions lie inside the message");
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..200_000_u32 {
            let mut body = vec![0; random.usize(0..200)];
            random.fill(&mut body);
            if round % 2 == 0 {
                body.iter_mut().for_each(|byte| *byte %= 4);
            }
            let mut bytes = message(round % 60, &body);
            bytes[36] = if round % 3 == 0 { random.u8(0..4) } else { 0 };
            let _ = decode(&bytes, round as usize % 5 / 4);
            let cut = random.usize(0..=bytes.len());
            let _ = decode(&bytes[..cut], 0);
        }
    }
}
