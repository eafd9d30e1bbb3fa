//! The works: metadata in own and shared directories, and data.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Plan, Step, Work};

/// Prepares a worker.
pub(super) type Start = fn(&Plan, u32) -> Result<Step>;

/// IO500's ior-hard transfer, bytes.
const INTERLEAVED: u64 = 47_008;
/// IO500's mdtest-hard file, bytes.
const SMALL: usize = 3_901;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4_096;

/// All works, in their order.
pub(crate) const WORKS: &[Work] = &[
    Work {
        name: "create own",
        bytes: 0,
        count: files,
        start: |plan, worker| create(plan, worker, false, 0),
    },
    Work {
        name: "stat own",
        bytes: 0,
        count: files,
        start: |plan, worker| stat(plan, worker, false),
    },
    Work {
        name: "open own",
        bytes: 0,
        count: files,
        start: |plan, worker| open(plan, worker, false),
    },
    Work {
        name: "readdir own",
        bytes: 0,
        count: |_| 20,
        start: |plan, worker| list(plan, worker, false),
    },
    Work {
        name: "unlink own",
        bytes: 0,
        count: files,
        start: |plan, worker| unlink(plan, worker, false),
    },
    Work {
        name: "create 3901 shared",
        bytes: 0,
        count: files,
        start: |plan, worker| create(plan, worker, true, SMALL),
    },
    Work {
        name: "stat shared",
        bytes: 0,
        count: files,
        start: |plan, worker| stat(plan, worker, true),
    },
    Work { name: "read 3901 shared", bytes: 0, count: files, start: read_small },
    Work {
        name: "readdir shared",
        bytes: 0,
        count: |_| 20,
        start: |plan, worker| list(plan, worker, true),
    },
    Work {
        name: "unlink shared",
        bytes: 0,
        count: files,
        start: |plan, worker| unlink(plan, worker, true),
    },
    Work { name: "write sequential", bytes: MIB, count: mebibytes, start: write_sequential },
    Work { name: "read sequential", bytes: MIB, count: mebibytes, start: read_sequential },
    Work {
        name: "write random 4k",
        bytes: PAGE,
        count: pages,
        start: |plan, worker| random(plan, worker, true),
    },
    Work {
        name: "read random 4k",
        bytes: PAGE,
        count: pages,
        start: |plan, worker| random(plan, worker, false),
    },
    Work {
        name: "write interleaved",
        bytes: INTERLEAVED,
        count: transfers,
        start: |plan, worker| interleaved(plan, worker, true),
    },
    Work {
        name: "read interleaved",
        bytes: INTERLEAVED,
        count: transfers,
        start: |plan, worker| interleaved(plan, worker, false),
    },
];

fn files(plan: &Plan) -> u64 {
    u64::from(plan.files)
}

fn mebibytes(plan: &Plan) -> u64 {
    u64::from(plan.mib)
}

fn pages(plan: &Plan) -> u64 {
    (mebibytes(plan) * MIB / PAGE).min(4_096)
}

fn transfers(plan: &Plan) -> u64 {
    (mebibytes(plan) * MIB / INTERLEAVED).max(1)
}

/// A worker's own directory, or the one that all share.
fn directory(plan: &Plan, worker: u32, shared: bool) -> PathBuf {
    if shared { plan.root.join("shared") } else { plan.root.join(format!("own{worker}")) }
}

fn file(plan: &Plan, worker: u32, shared: bool) -> impl Fn(u64) -> PathBuf + 'static {
    let directory = directory(plan, worker, shared);
    move |index| directory.join(format!("f{worker}.{index}"))
}

fn create(plan: &Plan, worker: u32, shared: bool, len: usize) -> Result<Step> {
    fs::create_dir_all(directory(plan, worker, shared))?;
    let path = file(plan, worker, shared);
    let content = vec![b'x'; len];
    Ok(Box::new(move |index| {
        let file = OpenOptions::new().write(true).create_new(true).open(path(index))?;
        if content.is_empty() { Ok(()) } else { file.write_all_at(&content, 0) }
    }))
}

fn stat(plan: &Plan, worker: u32, shared: bool) -> Result<Step> {
    let path = file(plan, worker, shared);
    Ok(Box::new(move |index| fs::symlink_metadata(path(index)).map(drop)))
}

fn open(plan: &Plan, worker: u32, shared: bool) -> Result<Step> {
    let path = file(plan, worker, shared);
    Ok(Box::new(move |index| File::open(path(index)).map(drop)))
}

fn list(plan: &Plan, worker: u32, shared: bool) -> Result<Step> {
    let directory = directory(plan, worker, shared);
    let expected = plan.files as usize * if shared { plan.workers as usize } else { 1 };
    Ok(Box::new(move |_| {
        let found = fs::read_dir(&directory)?.count();
        if found == expected {
            Ok(())
        } else {
            Err(Error::other(format!("{found} of {expected} entries listed")))
        }
    }))
}

fn read_small(plan: &Plan, worker: u32) -> Result<Step> {
    let path = file(plan, worker, true);
    Ok(Box::new(move |index| {
        let content = fs::read(path(index))?;
        let right = content.len() == SMALL && content.iter().all(|byte| *byte == b'x');
        if right { Ok(()) } else { Err(Error::other("a file has not what was written")) }
    }))
}

fn unlink(plan: &Plan, worker: u32, shared: bool) -> Result<Step> {
    let path = file(plan, worker, shared);
    Ok(Box::new(move |index| fs::remove_file(path(index))))
}

fn data_file(plan: &Plan, worker: u32) -> PathBuf {
    plan.root.join(format!("data{worker}"))
}

fn write_sequential(plan: &Plan, worker: u32) -> Result<Step> {
    let file = File::create(data_file(plan, worker))?;
    let mut content = vec![0; MIB as usize];
    Ok(Box::new(move |index| {
        stamp(&mut content, index);
        file.write_all_at(&content, index * MIB)
    }))
}

fn read_sequential(plan: &Plan, worker: u32) -> Result<Step> {
    let file = File::open(data_file(plan, worker))?;
    let mut content = vec![0; MIB as usize];
    Ok(Box::new(move |index| {
        file.read_exact_at(&mut content, index * MIB)?;
        check_stamp(&content, index)
    }))
}

fn random(plan: &Plan, worker: u32, write: bool) -> Result<Step> {
    let file = OpenOptions::new().read(true).write(true).open(data_file(plan, worker))?;
    let blocks = mebibytes(plan) * MIB / PAGE;
    let mut random = fastrand::Rng::with_seed(u64::from(worker));
    let mut content = vec![7; PAGE as usize];
    Ok(Box::new(move |_| {
        let offset = random.u64(0..blocks) * PAGE;
        if write {
            file.write_all_at(&content, offset)
        } else {
            file.read_exact_at(&mut content, offset)
        }
    }))
}

/// All workers in one file, transfer by transfer in turn (IO500's ior-hard).
fn interleaved(plan: &Plan, worker: u32, write: bool) -> Result<Step> {
    let path = plan.root.join("interleaved");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let workers = u64::from(plan.workers);
    let worker = u64::from(worker);
    let mut content = vec![0; INTERLEAVED as usize];
    Ok(Box::new(move |index| {
        let transfer = index * workers + worker;
        if write {
            stamp(&mut content, transfer);
            file.write_all_at(&content, transfer * INTERLEAVED)
        } else {
            file.read_exact_at(&mut content, transfer * INTERLEAVED)?;
            check_stamp(&content, transfer)
        }
    }))
}

/// Marks both ends of a transfer with its number, so that a read can tell that it got the right one.
fn stamp(content: &mut [u8], number: u64) {
    let end = content.len() - 8;
    content[..8].copy_from_slice(&number.to_le_bytes());
    content[end..].copy_from_slice(&number.to_le_bytes());
}

fn check_stamp(content: &[u8], number: u64) -> Result<()> {
    let end = content.len() - 8;
    if content[..8] == number.to_le_bytes() && content[end..] == number.to_le_bytes() {
        Ok(())
    } else {
        Err(Error::other(format!("transfer {number} has not what was written")))
    }
}
