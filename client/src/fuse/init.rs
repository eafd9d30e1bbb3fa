//! INIT: what this side and the kernel agree on before the first operation. Pure.
//!
//! Asked for where the kernel offers it, and why:
//!
//! | feature | because |
//! |---|---|
//! | ASYNC_READ, ASYNC_DIO, PARALLEL_DIROPS | many requests in flight are what a cluster is good at |
//! | BIG_WRITES, MAX_PAGES (256) | requests of 1 MiB: one default chunk |
//! | DO_READDIRPLUS, READDIRPLUS_AUTO | entries come with their attributes while somebody wants them |
//! | POSIX_LOCKS, FLOCK_LOCKS | locks hold across clients |
//! | POSIX_ACL, DONT_MASK | the shard applies the umask, for a default ACL takes its place |
//! | HANDLE_KILLPRIV_V2, SETXATTR_EXT | set-id bits are cleared by the shard, with no getxattr before every write |
//! | AUTO_INVAL_DATA | pages go when size or mtime have changed at another client |
//! | CACHE_SYMLINKS | a target never changes |
//! | DIRECT_IO_ALLOW_MMAP | files opened for appending or with O_DIRECT can still be mapped |
//! | INIT_EXT | the last one lies in the upper 32 bits |
//!
//! Not asked for: WRITEBACK_CACHE (another client would not see data that write(2) has acknowledged), EXPLICIT_INVAL_DATA
//! (the opposite of AUTO_INVAL_DATA), NO_OPEN_SUPPORT (the shards count opens), NO_OPENDIR_SUPPORT (it also caches
//! directories), ATOMIC_O_TRUNC (the kernel finds out only after the open that a program is being executed, and a file that
//! was opened for reading and truncating is lost under it), EXPORT_SUPPORT (no NFS server is tested above), splice and passthrough (nothing to splice from),
//! CREATE_SUPP_GROUP (groups come from /proc, all of them).

use super::abi::{self, InitIn, InitOut};
use sealfs_proto::limits;

/// Largest data of one READ or WRITE.
pub(crate) const MAX_WRITE: u32 = limits::BULK_LEN_MAX;
/// Requests in the background (readahead, asynchronous direct I/O) that the kernel lets wait; a dead node may hold many.
const MAX_BACKGROUND: u16 = 2_048;
/// From here on the kernel slows those down who cause them: three quarters, as its own default has it.
const CONGESTION: u16 = MAX_BACKGROUND / 4 * 3;

const WANTED: u64 = abi::INIT_ASYNC_READ
    | abi::INIT_POSIX_LOCKS
    | abi::INIT_BIG_WRITES
    | abi::INIT_DONT_MASK
    | abi::INIT_FLOCK_LOCKS
    | abi::INIT_AUTO_INVAL_DATA
    | abi::INIT_DO_READDIRPLUS
    | abi::INIT_READDIRPLUS_AUTO
    | abi::INIT_ASYNC_DIO
    | abi::INIT_PARALLEL_DIROPS
    | abi::INIT_POSIX_ACL
    | abi::INIT_MAX_PAGES
    | abi::INIT_CACHE_SYMLINKS
    | abi::INIT_HANDLE_KILLPRIV_V2
    | abi::INIT_SETXATTR_EXT
    | abi::INIT_INIT_EXT
    | abi::INIT_DIRECT_IO_ALLOW_MMAP;

/// Without these nothing works as promised; Linux 5.12 and newer have them.
const NEEDED: u64 = abi::INIT_POSIX_LOCKS
    | abi::INIT_FLOCK_LOCKS
    | abi::INIT_DONT_MASK
    | abi::INIT_POSIX_ACL
    | abi::INIT_MAX_PAGES
    | abi::INIT_HANDLE_KILLPRIV_V2
    | abi::INIT_SETXATTR_EXT;

/// What the kernel and this side have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Files opened with direct I/O can be mapped.
    pub(crate) direct_mmap: bool,
}

/// What to do with an INIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer this and go on.
    Agree(InitOut, Agreed),
    /// The kernel's major version is newer: answer this, and it will ask again.
    AskAgain(InitOut),
    /// It cannot be: what is missing, for the log.
    Refuse(String),
}

/// Answers an INIT.
pub(crate) fn negotiate(init: &InitIn) -> Verdict {
    if init.major > abi::MAJOR {
        let answer = InitOut { major: abi::MAJOR, minor: abi::MINOR, ..InitOut::default() };
        return Verdict::AskAgain(answer);
    }
    let offered = u64::from(init.flags) | u64::from(init.flags2) << 32;
    if init.major < abi::MAJOR || init.minor < abi::MINOR_MIN || offered & NEEDED != NEEDED {
        return Verdict::Refuse(format!(
            "the kernel speaks FUSE {}.{} and offers {offered:#x}, which lacks {:#x}; Linux 5.12 or newer is needed",
            init.major,
            init.minor,
            NEEDED & !offered
        ));
    }
    let flags = offered & WANTED;
    let answer = InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR.min(init.minor),
        max_readahead: init.max_readahead,
        flags: flags as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTION,
        max_write: MAX_WRITE,
        // Nanoseconds.
        time_gran: 1,
        max_pages: (MAX_WRITE / PAGE_SIZE_MIN) as u16,
        flags2: (flags >> 32) as u32,
        ..InitOut::default()
    };
    let agreed = Agreed { direct_mmap: flags & abi::INIT_DIRECT_IO_ALLOW_MMAP != 0 };
    Verdict::Agree(answer, agreed)
}

/// With larger pages the kernel cuts requests at `MAX_WRITE` all the same.
const PAGE_SIZE_MIN: u32 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(major: u32, minor: u32, flags: u64) -> InitIn {
        let (flags, flags2) = (flags as u32, (flags >> 32) as u32);
        InitIn { major, minor, flags, flags2, max_readahead: 131_072, ..InitIn::default() }
    }

    #[test]
    fn what_is_not_offered_is_not_asked_for() {
        let Verdict::Agree(answer, agreed) = negotiate(&kernel(7, 45, u64::MAX)) else {
            panic!("a new kernel is taken")
        };
        assert_eq!((answer.minor, answer.max_write, answer.max_pages), (45, 1 << 20, 256));
        assert_eq!(u64::from(answer.flags) | u64::from(answer.flags2) << 32, WANTED);
        assert!(agreed.direct_mmap);

        let Verdict::Agree(answer, agreed) = negotiate(&kernel(7, 33, NEEDED)) else {
            panic!("what is needed is enough")
        };
        assert_eq!((answer.minor, u64::from(answer.flags), answer.flags2), (33, NEEDED, 0));
        assert!(!agreed.direct_mmap);
    }

    #[test]
    fn other_versions_are_asked_again_or_refused() {
        assert!(matches!(negotiate(&kernel(8, 0, 0)), Verdict::AskAgain(out) if out.major == 7));
        for old in [kernel(6, 99, u64::MAX), kernel(7, 30, u64::MAX), kernel(7, 45, 1)] {
            let Verdict::Refuse(text) = negotiate(&old) else { panic!("{old:?} is refused") };
            assert!(text.contains("Linux 5.12"), "{text}");
        }
    }
}
