//! The names of a program whose nodes lose power: changes that several journals make together.
//!
//! Directories in many shards; files that were made durable and are only moved between them; and names that come and go:
//! links to those files, directories that are moved, too.
//!
//! 1. A file that is only moved has one place at any time, the old or the new one, whatever was lost.
//! 2. What is unlinked, made or removed may be undone by a loss, but only as a whole: the caller checks all shards at the
//!    end.

use std::cell::Cell;
use std::rc::Rc;

use sealfs_client_core::Fs;
use sealfs_proto::{Errno, Ino, RenameFlag, Who};

use super::trace::Trace;

/// The moving part of a client's program.
#[derive(Debug)]
pub(super) struct Moves {
    client: usize,
    fs: Fs,
    losses: Rc<Cell<u64>>,
    trace: Trace,
    dirs: Vec<Ino>,
    files: Vec<Ino>,
}

impl Moves {
    pub(super) fn new(client: usize, fs: Fs, losses: Rc<Cell<u64>>, trace: Trace) -> Self {
        Self { client, fs, losses, trace, dirs: Vec::new(), files: Vec::new() }
    }

    /// Makes the directories in `dir`, and the files; the caller makes them durable.
    pub(super) async fn prepare(&mut self, dir: Ino) -> Result<(), Errno> {
        let (fs, root) = (&self.fs, Who::root());
        for number in 0..DIRS {
            let name = format!("dir{number}");
            self.dirs.push(fs.mkdir(&root, dir, name.as_bytes(), 0o755, 0).await?.ino);
        }
        for number in 0..FILES {
            let name = file_name(number);
            let made =
                fs.create(&root, self.dirs[0], &name, 0o644, 0, super::power::READ_WRITE, true);
            let (attr, handle) = made.await?;
            fs.release(handle).await?;
            self.files.push(attr.ino);
        }
        Ok(())
    }

    /// Changes something.
    pub(super) async fn change(&self, random: &mut fastrand::Rng) {
        let (from, to) = (random.usize(..DIRS), random.usize(..DIRS));
        let (file, root) = (random.usize(..FILES), Who::root());
        let passing = format!("passing{}", random.u8(..3));
        let (source, target) = (self.dirs[from], self.dirs[to]);
        let name = passing.as_bytes();
        match random.u32(..10) {
            0..4 => {
                let at = self.dirs[self.find(file).await];
                let name = file_name(file);
                let moved =
                    self.fs.rename(&root, at, &name, target, &name, RenameFlag::Replace).await;
                self.told(&format!("move of file {file} to {to}"), moved, &[Errno::ENOENT]);
            }
            4 => {
                let made = self.fs.link(&root, self.files[file], target, name).await.map(drop);
                self.told(&format!("link {to}/{passing}"), made, &[Errno::EEXIST]);
            }
            5 => {
                let gone = self.fs.unlink(&root, target, name).await;
                self.told(&format!("unlink {to}/{passing}"), gone, &[Errno::ENOENT, Errno::EISDIR]);
            }
            6 => {
                let made = self.fs.mkdir(&root, target, name, 0o755, 0).await.map(drop);
                self.told(&format!("mkdir {to}/{passing}"), made, &[Errno::EEXIST]);
            }
            7 => {
                let gone = self.fs.rmdir(&root, target, name).await;
                self.told(&format!("rmdir {to}/{passing}"), gone, &[Errno::ENOENT, Errno::ENOTDIR]);
            }
            _ => {
                let flag = RenameFlag::Replace;
                let moved = self.fs.rename(&root, source, name, target, name, flag).await;
                let may = [Errno::ENOENT, Errno::EISDIR, Errno::ENOTDIR];
                self.told(&format!("move of {passing} from {from} to {to}"), moved, &may);
            }
        }
    }

    /// Looks for all files.
    pub(super) async fn look(&self) {
        for file in 0..FILES {
            self.find(file).await;
        }
    }

    /// The directory that the file is in.
    async fn find(&self, file: usize) -> usize {
        let mut places = Vec::new();
        let losses = self.losses.get();
        for (number, &dir) in self.dirs.iter().enumerate() {
            match self.fs.lookup(&Who::root(), dir, &file_name(file)).await {
                Ok(entry) => {
                    assert_eq!(entry.ino, self.files[file], "client {}: file {file}", self.client);
                    places.push(number);
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => panic!("client {}: lookup of file {file}: {errno:?}", self.client),
            }
        }
        // A loss between two looks may take a move back.
        if losses == self.losses.get() {
            assert_eq!(places.len(), 1, "client {}: file {file} is in {places:?}", self.client);
        }
        places.first().copied().unwrap_or_default()
    }

    fn told(&self, what: &str, outcome: Result<(), Errno>, allowed: &[Errno]) {
        self.trace.event(&format!("client {}: {what} -> {outcome:?}", self.client));
        let fine = match outcome {
            Ok(()) => true,
            Err(Errno::EIO) => self.losses.get() > 0,
            Err(errno) => allowed.contains(&errno),
        };
        assert!(fine, "client {}: {what}: {outcome:?}", self.client);
    }
}

fn file_name(number: usize) -> Vec<u8> {
    format!("moved{number}").into_bytes()
}

/// Directories of each client: some in every shard, more or less.
const DIRS: usize = 6;
/// Files that are moved.
const FILES: usize = 3;
