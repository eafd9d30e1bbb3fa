//! One worker's part of each phase: open, steps, close.
//!
//! Names, sizes and order are those of the official phases: `ior-easy` has a file per worker, `ior-hard` one file that
//! all write in turn by 47,008 bytes, `mdtest-easy` empty files in a directory per worker, `mdtest-hard` files of 3,901
//! bytes in one directory.
//!
//! 1. What a task opens, reads and checks lies below its own worker's root (its mount).
//! 2. What is read is compared byte by byte; sizes are compared by stat. A difference is an error that names file and
//!    offset.
//! 3. A write's close is fsync and close, as with IOR's `-e`.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::pattern::{PAGE, Pattern};
use super::protocol::{Assignment, Setup};
use crate::phase::Phase;

/// A worker's part of one phase, in the order: open, steps from 0, close.
pub(super) trait Task {
    /// Opens what the steps need; on the clock.
    fn open(&mut self) -> Result<()> {
        Ok(())
    }
    /// One operation.
    fn step(&mut self, index: u64) -> Result<()>;
    /// Makes what was written durable and closes; on the clock.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The task of this worker in this phase, prepared: directories made, buffers filled. Not for `find`, which is dealt
/// out by directories.
pub(super) fn prepare(setup: &Setup, assignment: &Assignment) -> Result<Box<dyn Task>> {
    let root = &setup.root;
    let owner = assignment.owner;
    let large = |write| Large {
        path: easy_file(root, owner),
        pattern: Pattern::new(setup.seed, EASY, owner, setup.transfer as usize),
        read: vec![0; setup.transfer as usize],
        transfers: assignment.easy_transfers,
        random: fastrand::Rng::with_seed(setup.seed ^ setup.rank),
        file: None,
        write,
    };
    let shared = |write| Shared {
        path: hard_file(root),
        pattern: Pattern::new(setup.seed, HARD, owner, HARD_TRANSFER),
        read: vec![0; HARD_TRANSFER],
        owner,
        workers: setup.workers,
        file: None,
        write,
    };
    let files = |hard: bool, work| -> Files {
        let salt = if hard { HARD_FILE } else { EASY };
        let len = if hard { SMALL } else { 0 };
        let pattern = Pattern::new(setup.seed, salt, owner, len);
        Files { directory: directory(root, owner, hard), pattern, owner, work }
    };
    Ok(match assignment.phase {
        Phase::IorEasyWrite => {
            fs::create_dir_all(root.join("ior-easy"))?;
            Box::new(large(true))
        }
        Phase::IorEasyRead => Box::new(large(false)),
        Phase::IorRandomRead => Box::new(Random(large(false))),
        Phase::IorHardWrite => {
            fs::create_dir_all(root.join("ior-hard"))?;
            Box::new(shared(true))
        }
        Phase::IorHardRead => Box::new(shared(false)),
        Phase::MdtestEasyWrite | Phase::MdtestHardWrite => {
            let is_hard = assignment.phase == Phase::MdtestHardWrite;
            fs::create_dir_all(directory(root, owner, is_hard))?;
            Box::new(files(is_hard, Work::Create))
        }
        Phase::MdtestEasyStat => Box::new(files(false, Work::Stat)),
        Phase::MdtestHardStat => Box::new(files(true, Work::Stat)),
        Phase::MdtestHardRead => Box::new(files(true, Work::Read)),
        Phase::MdtestEasyDelete => Box::new(files(false, Work::Delete)),
        Phase::MdtestHardDelete => Box::new(files(true, Work::Delete)),
        Phase::Find => return Err(Error::other("find is dealt out by directories")),
    })
}

/// The name of a file of mdtest.
pub(super) fn small_file_name(owner: u64, index: u64) -> String {
    format!("file.mdtest.{owner}.{index}")
}

fn directory(root: &Path, owner: u64, is_hard: bool) -> PathBuf {
    if is_hard {
        root.join("mdtest-hard")
    } else {
        root.join("mdtest-easy").join(format!("mdtest_tree.{owner}.0"))
    }
}

fn easy_file(root: &Path, owner: u64) -> PathBuf {
    root.join("ior-easy").join(format!("ior_file_easy.{owner:08}"))
}

fn hard_file(root: &Path) -> PathBuf {
    root.join("ior-hard/file")
}

/// ior-easy: a file per worker.
struct Large {
    path: PathBuf,
    pattern: Pattern,
    read: Vec<u8>,
    transfers: u64,
    random: fastrand::Rng,
    file: Option<File>,
    write: bool,
}

impl Task for Large {
    fn open(&mut self) -> Result<()> {
        self.file = Some(open(&self.path, self.write)?);
        Ok(())
    }

    fn step(&mut self, index: u64) -> Result<()> {
        let offset = index * self.read.len() as u64;
        let wanted = self.pattern.at(offset);
        transfer(&self.file, &self.path, self.write, wanted, &mut self.read, offset)
    }

    fn close(&mut self) -> Result<()> {
        close(self.file.take(), self.write)
    }
}

/// ior-rnd4K-easy-read: pages of an easy file.
struct Random(Large);

impl Task for Random {
    fn open(&mut self) -> Result<()> {
        self.0.open()
    }

    fn step(&mut self, _index: u64) -> Result<()> {
        let Large { path, pattern, read, transfers, random, file, .. } = &mut self.0;
        let offset = random.u64(0..*transfers) * read.len() as u64;
        let start = random.usize(0..read.len() / PAGE) * PAGE;
        let wanted = pattern.page(offset, start);
        transfer(file, path, false, wanted, &mut read[..PAGE], offset + start as u64)
    }

    fn close(&mut self) -> Result<()> {
        self.0.close()
    }
}

/// ior-hard: all workers in one file, a transfer each in turn.
struct Shared {
    path: PathBuf,
    pattern: Pattern,
    read: Vec<u8>,
    owner: u64,
    workers: u64,
    file: Option<File>,
    write: bool,
}

impl Task for Shared {
    fn open(&mut self) -> Result<()> {
        self.file = Some(open(&self.path, self.write)?);
        Ok(())
    }

    fn step(&mut self, index: u64) -> Result<()> {
        let offset = (index * self.workers + self.owner) * HARD_TRANSFER as u64;
        let wanted = self.pattern.at(offset);
        transfer(&self.file, &self.path, self.write, wanted, &mut self.read, offset)
    }

    fn close(&mut self) -> Result<()> {
        close(self.file.take(), self.write)
    }
}

/// mdtest: many files.
struct Files {
    directory: PathBuf,
    /// What a file contains; as long as a file.
    pattern: Pattern,
    owner: u64,
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    Create,
    Stat,
    Read,
    Delete,
}

impl Task for Files {
    fn step(&mut self, index: u64) -> Result<()> {
        let path = self.directory.join(small_file_name(self.owner, index));
        let wanted = self.pattern.at(index);
        match self.work {
            Work::Create => {
                let file = OpenOptions::new().write(true).create_new(true).open(&path);
                let file = file.map_err(|error| at(&path, error))?;
                if wanted.is_empty() {
                    return Ok(());
                }
                file.write_all_at(wanted, 0).map_err(|error| at(&path, error))
            }
            Work::Stat => {
                let found = fs::symlink_metadata(&path).map_err(|error| at(&path, error))?.len();
                let expected = wanted.len();
                if found == expected as u64 {
                    Ok(())
                } else {
                    Err(wrong(&path, &format!("has {found} bytes instead of {expected}")))
                }
            }
            Work::Read => {
                let found = fs::read(&path).map_err(|error| at(&path, error))?;
                if found == wanted { Ok(()) } else { Err(wrong(&path, "has not what was written")) }
            }
            Work::Delete => fs::remove_file(&path).map_err(|error| at(&path, error)),
        }
    }

    fn close(&mut self) -> Result<()> {
        // As mdtest's -Y, inside the measured time.
        if matches!(self.work, Work::Create) {
            let directory =
                File::open(&self.directory).map_err(|error| at(&self.directory, error))?;
            rustix::fs::syncfs(&directory).map_err(|error| at(&self.directory, error.into()))?;
        }
        Ok(())
    }
}

fn open(path: &Path, write: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    if write {
        options.write(true).create(true);
    } else {
        options.read(true);
    }
    options.open(path).map_err(|error| at(path, error))
}

fn close(file: Option<File>, write: bool) -> Result<()> {
    match file {
        Some(file) if write => file.sync_all(),
        _ => Ok(()),
    }
}

fn transfer(
    file: &Option<File>,
    path: &Path,
    write: bool,
    wanted: &[u8],
    read: &mut [u8],
    offset: u64,
) -> Result<()> {
    let file = file.as_ref().expect("a task is opened before its steps");
    if write {
        return file.write_all_at(wanted, offset).map_err(|error| at(path, error));
    }
    file.read_exact_at(read, offset)
        .map_err(|error| wrong(path, &format!("cannot be read at {offset}: {error}")))?;
    if *read == *wanted {
        Ok(())
    } else {
        Err(wrong(path, &format!("has not what was written at {offset}")))
    }
}

fn at(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::other(format!("{} {what}", path.display()))
}

/// ior-hard's transfer, bytes.
pub(super) const HARD_TRANSFER: usize = 47_008;
/// mdtest-hard's file, bytes.
pub(super) const SMALL: usize = 3_901;
/// Kinds of files, for [`Pattern`].
const EASY: u64 = 1;
const HARD: u64 = 2;
const HARD_FILE: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(root: &Path) -> Setup {
        Setup { root: root.into(), rank: 0, workers: 2, seed: 42, transfer: 65_536 }
    }

    fn assignment(phase: Phase, owner: u64) -> Assignment {
        Assignment { phase, owner, count: None, stonewall_ms: 0, limit: 4, easy_transfers: 4 }
    }

    fn run(root: &Path, phase: Phase, owner: u64, count: u64) -> Result<()> {
        let mut task = prepare(&setup(root), &assignment(phase, owner))?;
        task.open()?;
        (0..count).try_for_each(|index| task.step(index))?;
        task.close()
    }

    #[test]
    fn what_is_written_is_read_back_in_every_kind() {
        let dir = tempfile::tempdir().unwrap();
        for owner in 0..2 {
            for phase in [
                Phase::IorEasyWrite,
                Phase::MdtestEasyWrite,
                Phase::IorHardWrite,
                Phase::MdtestHardWrite,
                Phase::IorEasyRead,
                Phase::MdtestEasyStat,
                Phase::MdtestHardStat,
                Phase::MdtestHardRead,
                Phase::IorRandomRead,
            ] {
                run(dir.path(), phase, owner, 4).unwrap_or_else(|error| panic!("{phase}: {error}"));
            }
        }
        for owner in 0..2 {
            run(dir.path(), Phase::IorHardRead, owner, 4).unwrap();
            run(dir.path(), Phase::MdtestEasyDelete, owner, 4).unwrap();
            run(dir.path(), Phase::MdtestHardDelete, owner, 4).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("mdtest-hard")).unwrap().count(), 0);
        let hard = fs::metadata(dir.path().join("ior-hard/file")).unwrap().len();
        assert_eq!(hard, 8 * HARD_TRANSFER as u64);
    }

    #[test]
    fn one_wrong_byte_or_size_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for phase in [Phase::IorEasyWrite, Phase::IorHardWrite, Phase::MdtestHardWrite] {
            run(root, phase, 0, 4).unwrap();
        }
        run(root, Phase::IorHardWrite, 1, 4).unwrap();
        let flip = |path: PathBuf, offset: u64| {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[!byte[0]], offset).unwrap();
        };
        flip(easy_file(root, 0), 3 * 65_536 + 77);
        flip(hard_file(root), 2 * HARD_TRANSFER as u64 + 47_007);
        flip(directory(root, 0, true).join(small_file_name(0, 2)), 3_900);
        for (phase, at) in [
            (Phase::IorEasyRead, "at 196608"),
            (Phase::IorHardRead, "at 94016"),
            (Phase::MdtestHardRead, "file.mdtest.0.2 has not"),
        ] {
            let error = run(root, phase, 0, 4).unwrap_err().to_string();
            assert!(error.contains(at), "{phase}: {error}");
        }
        let short = directory(root, 0, true).join(small_file_name(0, 3));
        OpenOptions::new().write(true).open(short).unwrap().set_len(3_900).unwrap();
        let error = run(root, Phase::MdtestHardStat, 0, 4).unwrap_err().to_string();
        assert!(error.contains("3900 bytes instead of 3901"), "{error}");
    }
}
