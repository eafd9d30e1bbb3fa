//! Answers requests from an `Fs`: the only place where the kernel's words and `Fs`'s meet. It translates and decides nothing.
//!
//! What the kernel may cache follows from three rules:
//! 1. Pages stay over an open only if the inode has not changed since its last open here (`Attr::change`), so that an open
//!    sees what others have closed. If it has changed since the kernel was last told its attributes, the kernel is told that
//!    they are old before the open is answered: it asks for none at open.
//! 2. Files opened for appending bypass the page cache, for only the shard knows where the end is; so do those opened with
//!    O_DIRECT, where they can still be mapped.
//! 3. Entries and attributes are believed for `limits::CACHE_MS`, names that are not there not at all.
//!
//! With [`Consistency::Strict`] every file bypasses the page cache, and entries and attributes are believed not at all.
//!
//! Inode numbers are the kernel's node ids, handles its file handles: nothing is looked up here, and FORGET has nothing to
//! forget but rule 1's notes. A directory's handle remembers who opened it: that person's right to list is checked at
//! the first entry, and no more behind it, as by a local file system.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use sealfs_client_core::{Fallocate, Fs, Handle, OpenFlags, Whence};
use sealfs_proto::{
    Attr, Errno, Ino, Kind, Lock, LockKind, LockOwner, SetAttr, Who, Xattr, limits,
};
use sealfs_transport::{Instant, Slice};

use super::abi::{self, InHeader};
use super::decode::Op;
use super::groups::GroupCache;
use super::init::Agreed;
use super::kernel::Kernel;
use super::reply::{Given, Listing, Reply};
use super::session::{Answers, Asked, Work};
use super::words::{
    PERMISSIONS, file_lock, lock, open_flags, rename_flag, set_attr, statfs, synchronous,
    write_flags, xattr_flag,
};
use crate::log::LOG_XATTR;
use crate::status::status_page;
use crate::{Consistency, LogControl};

/// An `Fs` as a session asks it.
pub(crate) struct Files(Rc<Shared>);

struct Shared {
    fs: Fs,
    kernel: Kernel,
    consistency: Consistency,
    agreed: Cell<Option<Agreed>>,
    groups: RefCell<GroupCache>,
    known: RefCell<HashMap<Ino, Known>>,
    tells: Tells,
    /// What is open and bypasses the page cache.
    direct: RefCell<HashSet<Handle>>,
    directories: RefCell<Directories>,
}

/// What a mount tells of itself through attributes of its root that no node knows.
pub(crate) struct Tells {
    pub(crate) status: Box<StatusOf>,
    pub(crate) log: Option<Arc<dyn LogControl>>,
}

/// What the kernel knows of a file, as values of `Attr::change`.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Its attributes: those that it was last told.
    told: Option<u64>,
    /// Its pages: when the file was last opened.
    opened: Option<u64>,
}

/// Who opened which directory, by the handle that the kernel was given.
#[derive(Default)]
struct Directories {
    last: u64,
    openers: HashMap<u64, Who>,
}

type Answered = Result<Reply, Errno>;
/// The status of the mount behind the first so many peers, see `crate::status`.
type StatusOf = dyn Fn(usize) -> Vec<u8>;

impl Files {
    pub(crate) fn new(fs: Fs, kernel: Kernel, consistency: Consistency, tells: Tells) -> Self {
        Self(Rc::new(Shared {
            tells,
            fs,
            kernel,
            consistency,
            agreed: Cell::new(None),
            groups: RefCell::default(),
            known: RefCell::default(),
            direct: RefCell::default(),
            directories: RefCell::default(),
        }))
    }

    fn who(&self, asked: &Asked<'_>) -> Who {
        let InHeader { uid, gid, pid, .. } = asked.header;
        self.0.groups.borrow_mut().who(uid, gid, pid, asked.now)
    }
}

/// Boxes an answer.
fn work(answer: impl Future<Output = Answered> + 'static) -> Work {
    Box::pin(async move { answer.await.unwrap_or_else(Reply::error) })
}

/// An answer that is known at once.
fn at_once(answer: Answered) -> Work {
    work(std::future::ready(answer))
}

impl Answers for Files {
    fn agreed(&self, agreed: Agreed) {
        self.0.agreed.set(Some(agreed));
    }

    fn answer(&self, asked: Asked<'_>) -> Work {
        let shared = Rc::clone(&self.0);
        match asked.op {
            Op::Lookup { .. }
            | Op::Symlink { .. }
            | Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Link { .. } => names(shared, self.who(&asked), &asked),
            Op::Open(_)
            | Op::Create { .. }
            | Op::Tmpfile(_)
            | Op::Opendir
            | Op::Setattr(_)
            | Op::Setxattr { .. }
            | Op::Getxattr { .. }
            | Op::Listxattr { .. }
            | Op::Removexattr { .. } => checked(shared, self.who(&asked), &asked),
            Op::Readdir { .. } | Op::Releasedir(_) | Op::Fsyncdir => directory(shared, &asked),
            Op::Getlk(_) | Op::Setlk { .. } => locks(shared, &asked),
            _ => opened(shared, asked),
        }
    }

    fn give_back(&self, given: Given) -> Work {
        let shared = Rc::clone(&self.0);
        work(async move {
            let fs = &shared.fs;
            match given {
                Given::Open(handle) => {
                    shared.direct.borrow_mut().remove(&handle);
                    fs.release(handle).await?;
                }
                Given::Lock(handle, lock) => {
                    fs.lock(handle, Lock { kind: LockKind::Unlock, ..lock }, None).await?;
                }
            }
            Ok(Reply::done())
        })
    }

    fn forget(&self, ino: Ino) {
        self.0.known.borrow_mut().remove(&ino);
    }

    fn tidy(&self, now: Instant) {
        self.0.groups.borrow_mut().forget_old(now);
    }
}

/// Requests about names in the directory `asked.header.nodeid`.
fn names(shared: Rc<Shared>, who: Who, asked: &Asked<'_>) -> Work {
    let dir = Ino(asked.header.nodeid);
    let owned = <[u8]>::to_vec;
    match asked.op {
        Op::Lookup { name } => {
            let name = owned(name);
            work(
                async move { shared.fs.lookup(&who, dir, &name).await.map(|attr| shared.entry(&attr)) },
            )
        }
        Op::Symlink { name, target } => {
            let (name, target) = (owned(name), owned(target));
            work(async move {
                shared.fs.symlink(&who, dir, &name, &target).await.map(|attr| shared.entry(&attr))
            })
        }
        Op::Mknod { args, name } => {
            let name = owned(name);
            work(async move {
                let kind = Kind::from_mode(args.mode)?;
                let mode = args.mode & PERMISSIONS;
                let made = shared.fs.mknod(&who, dir, &name, kind, args.rdev, mode, args.umask);
                made.await.map(|attr| shared.entry(&attr))
            })
        }
        Op::Mkdir { args, name } => {
            let name = owned(name);
            work(async move {
                let mode = args.mode & PERMISSIONS;
                let made = shared.fs.mkdir(&who, dir, &name, mode, args.umask).await;
                made.map(|attr| shared.entry(&attr))
            })
        }
        Op::Unlink { name } => {
            let name = owned(name);
            work(async move { shared.fs.unlink(&who, dir, &name).await.map(|()| Reply::done()) })
        }
        Op::Rmdir { name } => {
            let name = owned(name);
            work(async move { shared.fs.rmdir(&who, dir, &name).await.map(|()| Reply::done()) })
        }
        Op::Rename { target_dir, flags, name, target } => {
            let (name, target) = (owned(name), owned(target));
            work(async move {
                let flag = rename_flag(flags)?;
                let fs = &shared.fs;
                fs.rename(&who, dir, &name, Ino(target_dir), &target, flag).await?;
                Ok(Reply::done())
            })
        }
        Op::Link { ino, name } => {
            let name = owned(name);
            work(async move {
                shared.fs.link(&who, Ino(ino), dir, &name).await.map(|attr| shared.entry(&attr))
            })
        }
        _ => at_once(Err(Errno::ENOSYS)),
    }
}

/// Requests for which the shard checks who asks.
fn checked(shared: Rc<Shared>, who: Who, asked: &Asked<'_>) -> Work {
    let ino = Ino(asked.header.nodeid);
    match asked.op {
        Op::Open(args) => work(async move {
            let flags = open_flags(args.flags);
            let (attr, handle) = shared.fs.open(&who, ino, flags).await?;
            let attr = kill_after_truncate(&shared, &who, attr, handle, flags, args.open_flags);
            let out = shared.open_out(&attr.await, handle, args.flags);
            Ok(Reply::open(Reply::default(), handle, out))
        }),
        Op::Create { args, name } => {
            let name = name.to_vec();
            work(async move {
                let (flags, mode) = (open_flags(args.flags), args.mode & PERMISSIONS);
                let exclusive = args.flags & libc::O_EXCL as u32 != 0;
                let fs = &shared.fs;
                let made = fs.create(&who, ino, &name, mode, args.umask, flags, exclusive).await;
                let (attr, handle) = made?;
                let entry = shared.entry(&attr);
                let out = shared.open_out(&attr, handle, args.flags);
                Ok(Reply::open(entry, handle, out))
            })
        }
        Op::Tmpfile(args) => work(async move {
            let (flags, mode) = (open_flags(args.flags), args.mode & PERMISSIONS);
            let (attr, handle) = shared.fs.tmpfile(&who, ino, mode, args.umask, flags).await?;
            let entry = shared.entry(&attr);
            let out = shared.open_out(&attr, handle, args.flags);
            Ok(Reply::open(entry, handle, out))
        }),
        Op::Opendir => {
            let fh = shared.directories.borrow_mut().add(who);
            at_once(Ok(Reply::of(&abi::OpenOut { fh, ..abi::OpenOut::default() })))
        }
        Op::Setattr(args) => work(async move {
            let handle = (args.valid & abi::FATTR_FH != 0).then_some(Handle(args.fh));
            let attr = shared.fs.setattr(&who, ino, handle, set_attr(&args)).await?;
            Ok(shared.attr(&attr))
        }),
        Op::Getxattr { size, name } if ino == Ino::ROOT && status_page(name).is_some() => {
            at_once(shared.status(&who, name).and_then(|value| sized(size, value)))
        }
        Op::Getxattr { size, name } if ino == Ino::ROOT && name == LOG_XATTR.as_bytes() => {
            let filter = shared.log(&who).map(|log| log.filter().into_bytes());
            at_once(filter.and_then(|filter| sized(size, filter)))
        }
        Op::Setxattr { name, value, .. } if ino == Ino::ROOT && name == LOG_XATTR.as_bytes() => {
            at_once(shared.set_log(&who, value))
        }
        _ => xattrs(shared, who, ino, &asked.op),
    }
}

fn xattrs(shared: Rc<Shared>, who: Who, ino: Ino, op: &Op<'_>) -> Work {
    match *op {
        Op::Setxattr { args, name, value } => {
            let xattr = Xattr { name: name.to_vec(), value: value.to_vec() };
            work(async move {
                let flag = xattr_flag(args.flags)?;
                let clear_sgid = args.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
                shared.fs.setxattr(&who, ino, xattr, flag, clear_sgid).await?;
                Ok(Reply::done())
            })
        }
        Op::Getxattr { size, name } => {
            let name = name.to_vec();
            work(async move { sized(size, shared.fs.getxattr(&who, ino, &name).await?) })
        }
        Op::Listxattr { size } => work(async move {
            let names = shared.fs.listxattr(&who, ino).await?;
            // Each name ends with a zero byte.
            let list = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
            sized(size, list)
        }),
        Op::Removexattr { name } => {
            let name = name.to_vec();
            work(
                async move { shared.fs.removexattr(&who, ino, &name).await.map(|()| Reply::done()) },
            )
        }
        _ => at_once(Err(Errno::ENOSYS)),
    }
}

fn directory(shared: Rc<Shared>, asked: &Asked<'_>) -> Work {
    let ino = Ino(asked.header.nodeid);
    match asked.op {
        Op::Readdir { args, plus } => work(async move {
            let who = shared.directories.borrow().opener(args.fh, args.offset)?;
            let bytes = args.size.min(limits::LIST_LEN_MAX);
            let (entries, _) = shared.fs.list(&who, ino, args.offset, bytes, plus).await?;
            let mut listing = Listing::new(args.size as usize, plus, shared.valid_ms());
            let fitted = entries.iter().take_while(|entry| listing.push(entry)).count();
            if plus {
                let told = entries[..fitted].iter().filter_map(|listed| listed.entry.attr.as_ref());
                told.for_each(|attr| shared.note(attr));
            }
            if fitted == 0 && !entries.is_empty() {
                return Err(Errno::EINVAL);
            }
            Ok(listing.finish())
        }),
        Op::Releasedir(args) => {
            shared.directories.borrow_mut().openers.remove(&args.fh);
            at_once(Ok(Reply::done()))
        }
        Op::Fsyncdir => work(async move { shared.fs.fsync_dir(ino).await.map(|()| Reply::done()) }),
        _ => at_once(Err(Errno::ENOSYS)),
    }
}

fn locks(shared: Rc<Shared>, asked: &Asked<'_>) -> Work {
    match asked.op {
        Op::Getlk(args) => work(async move {
            let conflict = shared.fs.lock_test(Handle(args.fh), lock(&args)?).await?;
            let free = abi::FileLock { kind: libc::F_UNLCK as u32, ..abi::FileLock::default() };
            Ok(Reply::of(&conflict.map_or(free, |lock| file_lock(&lock))))
        }),
        Op::Setlk { args, wait } => {
            let interrupt = asked.interrupt.clone();
            let ino = Ino(asked.header.nodeid);
            work(async move {
                let (handle, lock) = (Handle(args.fh), lock(&args)?);
                shared.fs.lock(handle, lock, wait.then_some(&interrupt)).await?;
                let mut reply = Reply::done();
                if lock.kind != LockKind::Unlock {
                    reply.gives = Some(Given::Lock(handle, lock));
                    // Whoever had the lock has settled before giving it up: what it wrote is to be seen from now on.
                    let change = shared.fs.stat(ino).await.ok().map(|attr| attr.change);
                    shared.compare(ino, change);
                }
                Ok(reply)
            })
        }
        _ => at_once(Err(Errno::ENOSYS)),
    }
}

/// Requests about inodes and open files, and all others.
fn opened(shared: Rc<Shared>, asked: Asked<'_>) -> Work {
    let (ino, uid) = (Ino(asked.header.nodeid), asked.header.uid);
    match asked.op {
        Op::Getattr => {
            work(async move { shared.fs.stat(ino).await.map(|attr| shared.attr(&attr)) })
        }
        Op::Readlink => work(async move { shared.fs.readlink(ino).await.map(Reply::bytes) }),
        Op::Read(args) => work(async move {
            let pieces = shared.fs.read(Handle(args.fh), args.offset, args.size as usize).await?;
            Ok(Reply::data(pieces))
        }),
        Op::Write(args) => match asked.data {
            Some(data) => work(write(shared, args, data)),
            None => at_once(Err(Errno::EIO)),
        },
        Op::Statfs => work(async move { Ok(Reply::of(&statfs(shared.fs.statfs().await?))) }),
        Op::Release(args) => work(async move {
            shared.direct.borrow_mut().remove(&Handle(args.fh));
            shared.fs.release(Handle(args.fh)).await.map(|()| Reply::done())
        }),
        Op::Flush(args) => work(async move {
            let owner = Some(LockOwner(args.lock_owner));
            shared.fs.flush(Handle(args.fh), owner).await.map(|()| Reply::done())
        }),
        Op::Fsync(args) => work(async move {
            let data_only = args.fsync_flags & abi::FSYNC_FDATASYNC != 0;
            shared.fs.fsync(Handle(args.fh), data_only).await.map(|()| Reply::done())
        }),
        Op::Fallocate(args) => work(async move {
            let mode = Fallocate::from_mode(args.mode)?;
            kill_set_id(&shared, uid, Handle(args.fh)).await?;
            let done = shared.fs.fallocate(Handle(args.fh), mode, args.offset, args.length).await;
            done.map(|()| Reply::done())
        }),
        Op::Lseek(args) => work(async move {
            let whence = match args.whence as i32 {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(Errno::EINVAL),
            };
            let offset = shared.fs.seek(Handle(args.fh), args.offset, whence).await?;
            Ok(Reply::of(&abi::LseekOut { offset }))
        }),
        Op::CopyFileRange { args, wide } => work(async move {
            kill_set_id(&shared, uid, Handle(args.fh_out)).await?;
            copy_range(shared, args, wide).await
        }),
        Op::Syncfs => work(async move { shared.fs.sync_all().await.map(|()| Reply::done()) }),
        _ => at_once(Err(Errno::ENOSYS)),
    }
}

async fn write(shared: Rc<Shared>, args: abi::WriteIn, data: Slice) -> Answered {
    let (handle, len) = (Handle(args.fh), data.len());
    let written = if args.write_flags & abi::WRITE_CACHE != 0 {
        // The kernel looks at the error alone: after a short answer it would take the pages for written.
        shared.fs.write_back(handle, args.offset, data).await?;
        len
    } else {
        let written = shared.fs.write(handle, args.offset, data, write_flags(&args)).await?;
        // What goes through the page cache is followed by an FSYNC of the kernel's own.
        let is_direct = shared.direct.borrow().contains(&handle);
        if let Some(data_only) = synchronous(args.flags).filter(|_| is_direct) {
            shared.fs.fsync(handle, data_only).await?;
        }
        written
    };
    // At most what was asked for, which is 32 bits.
    Ok(Reply::of(&abi::WriteOut { size: written as u32, padding: 0 }))
}

/// Of a write the kernel says whether the writer may keep set-id bits; of other changes it says who makes them, and those who
/// may are root, as a rule (CAP_FSETID).
async fn kill_set_id(shared: &Shared, uid: u32, handle: Handle) -> Result<(), Errno> {
    if uid == 0 { Ok(()) } else { shared.fs.kill_set_id(handle).await }
}

async fn copy_range(shared: Rc<Shared>, args: abi::CopyFileRangeIn, wide: bool) -> Answered {
    let len = if wide { args.len } else { args.len.min(COPY_MAX) };
    let (source, target) = (Handle(args.fh_in), Handle(args.fh_out));
    let copied = shared.fs.copy_range(source, args.off_in, target, args.off_out, len).await?;
    Ok(if wide {
        Reply::of(&abi::CopyFileRangeOut { bytes_copied: copied })
    } else {
        Reply::of(&abi::WriteOut { size: copied as u32, padding: 0 })
    })
}

/// An open that truncates takes set-id bits away, if the kernel says that the opener may not keep them. The open has
/// succeeded; bits that could not be cleared are left, as they are by a crash between the two.
async fn kill_after_truncate(
    shared: &Shared,
    who: &Who,
    attr: Attr,
    handle: Handle,
    flags: OpenFlags,
    open_flags: u32,
) -> Attr {
    let kill = flags.truncate && open_flags & abi::OPEN_KILL_SUIDGID != 0;
    if !kill || attr.mode & SET_ID == 0 {
        return attr;
    }
    let set = SetAttr { kill_suid_sgid: true, ..SetAttr::default() };
    shared.fs.setattr(who, attr.ino, Some(handle), set).await.unwrap_or(attr)
}

/// EACCES for everybody but root and whoever has mounted.
fn has_mounted(who: &Who) -> Result<(), Errno> {
    let is_own = who.uid == rustix::process::geteuid().as_raw();
    if who.uid == 0 || is_own { Ok(()) } else { Err(Errno::EACCES) }
}

impl Shared {
    /// A page of the mount's status, for root and whoever has mounted.
    fn status(&self, who: &Who, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let skip = status_page(name).ok_or(Errno::ENODATA)?;
        has_mounted(who)?;
        Ok((self.tells.status)(skip))
    }

    /// The log, for the same.
    fn log(&self, who: &Who) -> Result<&dyn LogControl, Errno> {
        has_mounted(who)?;
        self.tells.log.as_deref().ok_or(Errno::EOPNOTSUPP)
    }

    fn set_log(&self, who: &Who, filter: &[u8]) -> Answered {
        let log = self.log(who)?;
        let filter = std::str::from_utf8(filter).map_err(|_| Errno::EINVAL)?;
        log.set_filter(filter).map_err(|_| Errno::EINVAL)?;
        tracing::warn!(filter, uid = who.uid, "the log's filter was changed");
        Ok(Reply::done())
    }

    /// Tells the kernel of an inode that was found or made.
    fn entry(&self, attr: &Attr) -> Reply {
        self.note(attr);
        Reply::entry(attr, self.valid_ms())
    }

    fn attr(&self, attr: &Attr) -> Reply {
        self.note(attr);
        Reply::attr(attr, self.valid_ms())
    }

    /// How long the kernel may believe entries and attributes.
    fn valid_ms(&self) -> u64 {
        match self.consistency {
            Consistency::CloseToOpen => limits::CACHE_MS,
            Consistency::Strict => 0,
        }
    }

    /// Replies leave in the order in which they are noted, and the kernel drops attributes that were asked for earlier than
    /// those that it has.
    fn note(&self, attr: &Attr) {
        if attr.kind == Kind::File {
            self.known.borrow_mut().entry(attr.ino).or_default().told = Some(attr.change);
        }
    }

    /// Tells the kernel that its attributes are old unless they are those of `change`; `None`: nobody knows. It asks again
    /// before it next uses them, and drops the data that it holds if they are others.
    fn compare(&self, ino: Ino, change: Option<u64>) {
        let mut known = self.known.borrow_mut();
        let told = &mut known.entry(ino).or_default().told;
        if *told != change || change.is_none() {
            *told = None;
            self.kernel.attributes_are_old(ino);
        }
    }

    /// What the kernel may do with an open file: the rules above.
    fn open_out(&self, attr: &Attr, handle: Handle, flags: u32) -> abi::OpenOut {
        let (append, direct) =
            (flags & libc::O_APPEND as u32 != 0, flags & libc::O_DIRECT as u32 != 0);
        let writes = open_flags(flags).write;
        let mappable = self.agreed.get().is_some_and(|agreed| agreed.direct_mmap);
        let now = Some(attr.change);
        self.compare(attr.ino, now);
        let mut known = self.known.borrow_mut();
        let known = known.entry(attr.ino).or_default();
        let unchanged = known.opened == now;
        known.opened = now;
        let open_flags = if append && writes {
            abi::FOPEN_DIRECT_IO
        } else if direct && mappable {
            abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES
        } else if self.consistency == Consistency::Strict {
            abi::FOPEN_DIRECT_IO
        } else if unchanged {
            abi::FOPEN_KEEP_CACHE
        } else {
            0
        };
        if open_flags & abi::FOPEN_DIRECT_IO != 0 {
            self.direct.borrow_mut().insert(handle);
        }
        abi::OpenOut { fh: handle.0, open_flags, padding: 0 }
    }
}

impl Directories {
    fn add(&mut self, who: Who) -> u64 {
        self.last += 1;
        self.openers.insert(self.last, who);
        self.last
    }

    /// As whom to list: the opener at the first entry; behind it nobody asks again.
    fn opener(&self, fh: u64, offset: u64) -> Result<Who, Errno> {
        let opener = self.openers.get(&fh).ok_or(Errno::EBADF)?;
        Ok(if offset == 0 { opener.clone() } else { Who::root() })
    }
}

/// A value for a buffer of `size` bytes; 0 asks how large it must be.
fn sized(size: u32, value: Vec<u8>) -> Answered {
    match size as usize {
        0 => Ok(Reply::of(&abi::GetxattrIn { size: value.len() as u32, padding: 0 })),
        size if size < value.len() => Err(Errno::ERANGE),
        _ => Ok(Reply::bytes(value)),
    }
}

/// Copied by one request whose answer has 32 bits: what read(2) and write(2) move at most.
const COPY_MAX: u64 = 0x7fff_f000;
const SET_ID: u32 = 0o6000;
