//! What the kernel has asked and what it was told, counted by operation.
//!
//! 1. A request is counted when it is read, and once when it is answered; those without an answer (FORGET, INTERRUPT) are not.
//! 2. Time is the loop's: from the turn in which the request was read to the one in which it was answered.

use std::collections::BTreeMap;

use sealfs_metrics::Histogram;
use sealfs_proto::Errno;

use super::abi;
use super::reply::Reply;

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    asked: [u64; SLOTS],
    answered: Box<[Histogram; SLOTS]>,
    /// Operations that have failed.
    errors: BTreeMap<(&'static str, Errno), u64>,
    /// Bytes of files that programs were given.
    pub(crate) read: u64,
    /// Bytes of files that programs were told are written.
    pub(crate) written: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            asked: [0; SLOTS],
            answered: Box::new([Histogram::default(); SLOTS]),
            errors: BTreeMap::new(),
            read: 0,
            written: 0,
        }
    }
}

impl Counts {
    /// The kernel asks.
    pub(crate) fn ask(&mut self, opcode: u32) {
        self.asked[slot(opcode)] += 1;
    }

    /// It was answered after so long.
    pub(crate) fn answer(&mut self, opcode: u32, reply: &Reply, took_ns: u64) {
        self.answered[slot(opcode)].add(took_ns);
        if let Some(errno) = reply.errno() {
            *self.errors.entry((NAMES[slot(opcode)].1, errno)).or_insert(0) += 1;
        }
        match opcode {
            abi::READ => self.read += reply.data_len() as u64,
            abi::WRITE => self.written += u64::from(reply.written()),
            _ => {}
        }
    }

    /// Each operation: its name, how often it was asked, and how long answers took.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, u64, &Histogram)> {
        let counts = self.asked.iter().zip(self.answered.iter());
        NAMES.iter().zip(counts).map(|((_, name), (asked, answered))| (*name, *asked, answered))
    }

    /// Failed operations by name and errno.
    pub(crate) fn errors(&self) -> impl Iterator<Item = (&'static str, Errno, u64)> {
        self.errors.iter().map(|((name, errno), count)| (*name, *errno, *count))
    }
}

/// Where an operation is counted.
fn slot(opcode: u32) -> usize {
    let same = match opcode {
        abi::RENAME2 => abi::RENAME,
        abi::COPY_FILE_RANGE_64 => abi::COPY_FILE_RANGE,
        other => other,
    };
    NAMES.iter().position(|(known, _)| *known == same).unwrap_or(NAMES.len() - 1)
}

const SLOTS: usize = NAMES.len();
/// Operations as metrics name them, those that come most often first, for they are looked for from the front.
const NAMES: [(u32, &str); 35] = [
    (abi::READ, "read"),
    (abi::WRITE, "write"),
    (abi::LOOKUP, "lookup"),
    (abi::GETATTR, "getattr"),
    (abi::OPEN, "open"),
    (abi::FLUSH, "flush"),
    (abi::RELEASE, "release"),
    (abi::CREATE, "create"),
    (abi::UNLINK, "unlink"),
    (abi::GETXATTR, "getxattr"),
    (abi::SETATTR, "setattr"),
    (abi::OPENDIR, "opendir"),
    (abi::READDIRPLUS, "readdirplus"),
    (abi::READDIR, "readdir"),
    (abi::RELEASEDIR, "releasedir"),
    (abi::MKDIR, "mkdir"),
    (abi::RMDIR, "rmdir"),
    (abi::RENAME, "rename"),
    (abi::FSYNC, "fsync"),
    (abi::SETLK, "lock"),
    (abi::SETLKW, "lock_wait"),
    (abi::GETLK, "lock_test"),
    (abi::STATFS, "statfs"),
    (abi::READLINK, "readlink"),
    (abi::SYMLINK, "symlink"),
    (abi::LINK, "link"),
    (abi::MKNOD, "mknod"),
    (abi::SETXATTR, "setxattr"),
    (abi::LISTXATTR, "listxattr"),
    (abi::REMOVEXATTR, "removexattr"),
    (abi::FSYNCDIR, "fsyncdir"),
    (abi::FALLOCATE, "fallocate"),
    (abi::LSEEK, "lseek"),
    (abi::TMPFILE, "tmpfile"),
    // COPY_FILE_RANGE, SYNCFS and whatever kernels may ask some day.
    (0, "other"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_counted_under_its_name() {
        let mut counts = Counts::default();
        for opcode in [abi::RENAME, abi::RENAME2, abi::SYNCFS, 4_000, abi::READ] {
            counts.ask(opcode);
            counts.answer(opcode, &Reply::error(Errno::EIO), 3);
        }
        let asked = |wanted| counts.each().find(|(name, ..)| *name == wanted).map(|one| one.1);
        assert_eq!((asked("rename"), asked("read"), asked("other")), (Some(2), Some(1), Some(2)));
        assert_eq!(counts.errors().next(), Some(("other", Errno::EIO, 2)));
        assert_eq!(counts.each().map(|(_, _, took)| took.count()).sum::<u64>(), 5);
        let mut names: Vec<_> = NAMES.to_vec();
        names.sort_by_key(|(_, name)| *name);
        names.dedup_by_key(|(_, name)| *name);
        assert_eq!(names.len(), SLOTS);
    }
}
