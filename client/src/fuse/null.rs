//! A file system of nothing, on a real mount: proves the session against the kernel, and shows what the session alone costs.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sealfs_client_core::{Handle, Piece};
use sealfs_proto::{Attr, Entry, Errno, Ino, Kind, Listed, Time};
use sealfs_ring::{Config, Op as RingOp, Owner, Pool, Ring};
use sealfs_transport::tasks::{Tasks, Waiters};
use sealfs_transport::{Instant, Region};

use super::abi;
use super::decode::Op;
use super::init::Agreed;
use super::kernel::Kernel;
use super::reply::{Given, Listing, Reply};
use super::session::{Answers, Asked, RETRY_MS, Session, Turn, Work};
use crate::MountOptions;
use crate::point::{self, InUse};

/// Offsets and data of writes.
type Written = Vec<(u64, Vec<u8>)>;

/// A root with one file "f" of 1 GiB of zeros, which takes every write, and "stuck", whose open never ends.
struct Null {
    written: Rc<RefCell<Written>>,
    stuck: Waiters,
    began: mpsc::Sender<()>,
}

/// How long the kernel may believe what it is told here.
const VALID_MS: u64 = 500;

fn attr(ino: u64) -> Attr {
    let directory = ino == 1;
    Attr {
        ino: Ino(ino),
        kind: if directory { Kind::Directory } else { Kind::File },
        mode: 0o777,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: if directory { 0 } else { 1 << 30 },
        blocks: 8,
        chunk_size: 1 << 20,
        atime: Time::default(),
        mtime: Time { seconds: 1_700_000_000, nanos: 123_456_789 },
        ctime: Time::default(),
        change: 1,
        generation: 1,
        bound: 0,
    }
}

impl Null {
    fn now(&self, asked: Asked<'_>) -> Reply {
        match asked.op {
            Op::Lookup { name: b"f" } => Reply::entry(&attr(2), VALID_MS),
            Op::Lookup { name: b"stuck" } => Reply::entry(&attr(3), VALID_MS),
            Op::Lookup { .. } => Reply::error(Errno::ENOENT),
            Op::Getattr | Op::Setattr(_) => Reply::attr(&attr(asked.header.nodeid), VALID_MS),
            Op::Open(args) => {
                let direct = args.flags & libc::O_DIRECT as u32 != 0;
                let open_flags = if direct { abi::FOPEN_DIRECT_IO } else { 0 };
                Reply::open(
                    Reply::default(),
                    Handle(9),
                    abi::OpenOut { fh: 9, open_flags, padding: 0 },
                )
            }
            Op::Opendir => Reply::of(&abi::OpenOut::default()),
            Op::Readdir { args, plus } => {
                let mut listing = Listing::new(args.size as usize, plus, VALID_MS);
                for (cookie, name) in [(1, "."), (2, ".."), (3, "f")] {
                    if cookie > args.offset {
                        let ino = if name == "f" { 2 } else { 1 };
                        let entry =
                            Entry { ino: Ino(ino), kind: attr(ino).kind, attr: Some(attr(ino)) };
                        listing.push(&Listed { cookie, name: name.into(), entry });
                    }
                }
                listing.finish()
            }
            Op::Read(args) => Reply::data(vec![Piece {
                region: Region::zeroed(args.size as usize),
                len: args.size as usize,
            }]),
            Op::Write(args) => {
                let data = asked.data.expect("a write has data");
                self.written.borrow_mut().push((args.offset, data.bytes().to_vec()));
                Reply::of(&abi::WriteOut { size: args.size, padding: 0 })
            }
            Op::Release(_) | Op::Releasedir(_) | Op::Flush(_) | Op::Statfs => Reply::done(),
            _ => Reply::error(Errno::ENOSYS),
        }
    }
}

impl Answers for Null {
    fn agreed(&self, _agreed: Agreed) {}

    fn answer(&self, asked: Asked<'_>) -> Work {
        let stuck = matches!(asked.op, Op::Open(_)) && asked.header.nodeid == 3;
        let stuck = stuck.then(|| self.began.clone());
        let (wait, reply) = (self.stuck.wait(), self.now(asked));
        Box::pin(async move {
            if let Some(began) = stuck {
                began.send(()).unwrap();
                wait.await;
            }
            reply
        })
    }

    fn give_back(&self, _given: Given) -> Work {
        Box::pin(std::future::ready(Reply::done()))
    }

    fn forget(&self, _ino: Ino) {}

    fn tidy(&self, _now: Instant) {}
}

/// Serves a mount until the kernel ends it; what was written.
fn serve(device: File, began: mpsc::Sender<()>) -> Written {
    let ring = Ring::new(Config::default()).unwrap();
    let pool_len = 64 << 20;
    let pool = Pool::new(pool_len).unwrap();
    let file = sealfs_ring::File::new(device.try_clone().unwrap());
    let (tasks, written) = (Tasks::new(), Rc::default());
    let null = Null { written: Rc::clone(&written), stuck: Waiters::new(), began };
    let mut session = Session::new(Kernel::new(device), null, tasks.spawner(), pool_len);
    let mut polled = false;
    loop {
        let now = sealfs_ring::now().mono;
        let turn = session.turn(&pool, now);
        session.watch(now);
        tasks.run_ready();
        match turn {
            Turn::Ended => return written.take(),
            Turn::Drained if !polled => {
                let events = libc::POLLIN as u32;
                ring.submit(Owner::Fuse, 0, RingOp::Poll { file: file.clone(), events });
                polled = true;
            }
            Turn::More => continue,
            _ => {}
        }
        let wait = session.is_watching().then_some(Duration::from_millis(RETRY_MS));
        ring.enter(wait).unwrap();
        while ring.next().is_some() {
            polled = false;
        }
    }
}

/// Unmounts, also after a test has failed.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let in_use = if thread::panicking() { InUse::IsLeft } else { InUse::Stays };
        point::detach(self.0, in_use).unwrap();
    }
}

/// A mount of nothing in a temporary directory for `test`, which also hears when an open of "stuck" has begun; what was
/// written.
fn mounted(test: impl FnOnce(&Path, &mpsc::Receiver<()>)) -> Written {
    let dir = tempfile::tempdir().unwrap();
    let device = point::attach(dir.path(), "null", &MountOptions::default()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (began, stuck) = mpsc::channel();
    let server = thread::spawn(move || sender.send(serve(device, began)).unwrap());
    let mounted = Mounted(dir.path());
    test(mounted.0, &stuck);
    drop(mounted);
    let written = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    server.join().unwrap();
    written
}

#[test]
fn the_kernel_takes_every_answer() {
    let written = mounted(|root, _| {
        let found = fs::metadata(root.join("f")).unwrap();
        assert_eq!(
            (found.len(), found.blksize(), found.mtime_nsec()),
            (1 << 30, 262_144, 123_456_789)
        );
        assert!(fs::metadata(root.join("g")).is_err());
        let names: Vec<_> =
            fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);

        let mut file = OpenOptions::new().read(true).write(true).open(root.join("f")).unwrap();
        let mut bytes = vec![1; 3 << 20];
        file.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        file.seek(SeekFrom::Start(100)).unwrap();
        file.write_all(b"small").unwrap();
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(root.join("f"))
            .unwrap();
        direct.write_all_at(&vec![7; 2 << 20], 1 << 20).unwrap();
    });
    let (small, direct) = written.split_first().unwrap();
    assert_eq!((small.0, small.1.as_slice()), (100, &b"small"[..]));
    // The kernel cuts where the program's memory crosses its pages.
    let mut end = 1 << 20;
    for (offset, data) in direct {
        assert!(*offset == end && data.iter().all(|byte| *byte == 7));
        end += data.len() as u64;
    }
    assert_eq!(end, 3 << 20);
}

#[test]
fn a_program_that_waits_for_nobody_can_be_killed() {
    mounted(|root, stuck| {
        let mut child = std::process::Command::new("cat").arg(root.join("stuck")).spawn().unwrap();
        stuck.recv().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_mount_whose_client_is_dead_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(point::attach(dir.path(), "null", &MountOptions::default()).unwrap());
    assert!(point::is_dead(dir.path()));
    let device = point::attach(dir.path(), "null", &MountOptions::default()).unwrap();
    assert!(point::is_mounted(&dir.path().canonicalize().unwrap()));
    drop(device);
    point::detach(dir.path(), InUse::IsLeft).unwrap();
}
