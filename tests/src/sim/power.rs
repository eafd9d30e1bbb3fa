//! A program whose nodes lose power: what it has synced must be there, what it has not may be missing, and nothing else may
//! ever be seen.
//!
//! ```text
//! acknowledged write ──> one of what the piece may be ──fsync: Ok──> what it must be
//!                                     │                 fsync: EIO─> something was lost: read, and go on from there
//!                                     └─ no loss of power since: it must be the newest
//! ```
//! A file is made of pieces of 512 bytes that say whose they are, where, and of which write; so bytes of another file, of
//! another place or torn ones are recognised wherever they turn up. A piece's history begins at the last fsync that
//! succeeded. Names in a directory are followed in the same way.
//!
//! 1. A fsync that succeeds although something was lost makes the next read fail the seed: nobody was told.
//! 2. EIO is the only error that an operation may end with, and only after a loss of power.

use std::cell::Cell;
use std::rc::Rc;

use sealfs_client_core::{Fs, OpenFlags, WriteFlags};
use sealfs_proto::{Errno, Ino, SetAttr, Who};
use sealfs_transport::Region;

use super::moves::Moves;
use super::trace::Trace;

/// A client's program.
#[derive(Debug)]
pub struct PowerProgram {
    /// Its number.
    pub client: usize,
    /// Its file system.
    pub fs: Fs,
    /// How often any node has lost power.
    pub losses: Rc<Cell<u64>>,
    /// Shared by all.
    pub trace: Trace,
    /// Its choices.
    pub random: fastrand::Rng,
    dir: Ino,
    moves: Moves,
    files: Vec<File>,
    names: Vec<History<bool>>,
}

/// What something may be.
#[derive(Clone, Debug)]
struct History<T> {
    /// What it was when it was last made durable, and all that was acknowledged since, the newest last.
    known: Vec<T>,
    /// What may lie behind the end of a file whose size was lost, and show when the file grows.
    behind: Vec<T>,
    /// What lies there was written over since.
    written: bool,
}

impl<T: Copy + PartialEq> History<T> {
    fn new(value: T) -> Self {
        Self { known: vec![value], behind: Vec::new(), written: false }
    }

    fn newest(&self) -> T {
        *self.known.last().expect("a history is never empty")
    }

    /// It was changed.
    fn push(&mut self, value: T) {
        self.known.push(value);
        self.written = true;
    }

    /// It was found to be this.
    fn found(&mut self, value: T) {
        self.known.push(value);
    }

    /// It lies behind the end that was found.
    fn is_behind(&mut self, value: T) {
        self.behind.extend(self.known.iter().copied());
        self.written = false;
        self.known.push(value);
    }

    fn made_durable(&mut self) {
        self.known = vec![self.newest()];
        if self.written {
            self.behind.clear();
        }
    }

    fn may_be(&self, value: T, exact: bool) -> bool {
        let known = if exact { self.newest() == value } else { self.known.contains(&value) };
        known || self.behind.contains(&value)
    }
}

/// A file and what its pieces may be: the number of the write, 0 for zeros or nothing.
#[derive(Debug)]
struct File {
    ino: Ino,
    pieces: Vec<History<u32>>,
    last: u32,
    /// Losses of power that what is known of the file takes into account.
    seen: u64,
}

impl PowerProgram {
    /// A program that has done nothing yet.
    #[must_use]
    pub fn new(
        client: usize,
        fs: Fs,
        losses: Rc<Cell<u64>>,
        trace: Trace,
        random: fastrand::Rng,
    ) -> Self {
        let names = vec![History::new(false); NAMES];
        let moves = Moves::new(client, fs.clone(), Rc::clone(&losses), trace.clone());
        let (dir, files) = (Ino(0), Vec::new());
        Self { client, fs, losses, trace, random, dir, moves, files, names }
    }

    /// Makes its directory and its files, and has them on the devices; before anything fails.
    pub async fn prepare(&mut self) -> Result<(), Errno> {
        let (fs, root) = (&self.fs, Who::root());
        let name = format!("power{}", self.client);
        self.dir = fs.mkdir(&root, Ino::ROOT, name.as_bytes(), 0o755, 0).await?.ino;
        for number in 0..FILES {
            let name = format!("file{number}");
            let made = fs.create(&root, self.dir, name.as_bytes(), 0o644, 0, READ_WRITE, true);
            let (attr, handle) = made.await?;
            fs.release(handle).await?;
            let pieces = vec![History::new(0); PIECES];
            self.files.push(File { ino: attr.ino, pieces, last: 0, seen: 0 });
        }
        self.moves.prepare(self.dir).await?;
        self.fs.sync_all().await
    }

    /// Does `count` operations, then looks at everything; panics at the first thing that must not be.
    pub async fn run(&mut self, count: usize) {
        for _ in 0..count {
            let file = self.random.usize(..FILES);
            match self.random.u32(..30) {
                0..8 => self.write(file).await,
                8 => self.truncate(file).await,
                9..12 => self.fsync(file).await,
                12..15 => self.read(file).await,
                15..18 => self.change_name().await,
                18..20 => self.fsync_names().await,
                _ => self.moves.change(&mut self.random).await,
            }
        }
        self.look().await;
    }

    /// Looks at everything.
    pub async fn look(&mut self) {
        for file in 0..FILES {
            self.read(file).await;
        }
        for name in 0..NAMES {
            self.find(name).await;
        }
        self.moves.look().await;
    }

    fn told(&self, what: &str, outcome: Result<(), Errno>) {
        self.trace.event(&format!("client {}: {what} -> {outcome:?}", self.client));
        let allowed = outcome.is_ok() || (outcome == Err(Errno::EIO) && self.losses.get() > 0);
        assert!(allowed, "client {}: {what}: {outcome:?}", self.client);
    }

    async fn write(&mut self, number: usize) {
        let first = self.random.usize(..PIECES);
        let longest = [3, 30, 300][self.random.usize(..3)];
        let len = self.random.usize(1..=longest);
        let end = (first + len).min(PIECES);
        let file = &mut self.files[number];
        file.last += 1;
        let (ino, version) = (file.ino, file.last);
        let bytes: Vec<u8> = (first..end).flat_map(|at| piece(ino, at, version)).collect();
        let outcome = async {
            let (_, handle) = self.fs.open(&Who::root(), ino, READ_WRITE).await?;
            let bytes = Region::new(bytes).freeze();
            let written =
                self.fs.write(handle, (first * PIECE) as u64, bytes, WriteFlags::default()).await;
            let flushed = self.fs.flush(handle, None).await;
            self.fs.release(handle).await?;
            written.map(|_| ()).and(flushed)
        };
        let outcome = outcome.await;
        self.told(&format!("write {version} of {ino} pieces {first}..{end}"), outcome);
        self.files[number].pieces[first..end].iter_mut().for_each(|piece| piece.push(version));
        self.go_on(number, outcome).await;
    }

    async fn truncate(&mut self, number: usize) {
        let size = self.random.usize(..PIECES);
        let ino = self.files[number].ino;
        let set = SetAttr { size: Some((size * PIECE) as u64), ..SetAttr::default() };
        let outcome = self.fs.setattr(&Who::root(), ino, None, set).await.map(|_| ());
        self.told(&format!("truncate {ino} to {size} pieces"), outcome);
        self.files[number].pieces[size..].iter_mut().for_each(|piece| piece.push(0));
        self.go_on(number, outcome).await;
    }

    async fn fsync(&mut self, number: usize) {
        let (ino, losses) = (self.files[number].ino, self.losses.get());
        let outcome = async {
            let (_, handle) = self.fs.open(&Who::root(), ino, READ_WRITE).await?;
            let synced = self.fs.fsync(handle, false).await;
            self.fs.release(handle).await?;
            synced
        };
        let outcome = outcome.await;
        self.told(&format!("fsync {ino}"), outcome);
        if outcome.is_ok() {
            let file = &mut self.files[number];
            file.pieces.iter_mut().for_each(History::made_durable);
            file.seen = losses;
        }
        self.go_on(number, outcome).await;
    }

    /// After an error nobody knows what there is: what is read counts from now on.
    async fn go_on(&mut self, number: usize, outcome: Result<(), Errno>) {
        if outcome.is_ok() {
            return;
        }
        let losses = self.losses.get();
        let found = self.read_pieces(number, true).await;
        let file = &mut self.files[number];
        let end = found.len();
        for (piece, version) in file.pieces.iter_mut().zip(found) {
            piece.found(version);
        }
        file.pieces[end..].iter_mut().for_each(|piece| piece.is_behind(0));
        file.seen = losses;
    }

    async fn read(&mut self, number: usize) {
        self.read_pieces(number, false).await;
    }

    /// The file's pieces up to its end, each of which is one that it may be.
    async fn read_pieces(&self, number: usize, doubtful: bool) -> Vec<u32> {
        let File { ino, pieces, seen, .. } = &self.files[number];
        let bytes = async {
            let (_, handle) = self.fs.open(&Who::root(), *ino, READ_WRITE).await?;
            let mut bytes = Vec::new();
            loop {
                let read = self.fs.read(handle, bytes.len() as u64, READ_LEN).await;
                let before = bytes.len();
                match read {
                    Ok(read) => read.iter().for_each(|part| bytes.extend_from_slice(part.bytes())),
                    Err(errno) => return Err(errno),
                }
                if bytes.len() < before + READ_LEN {
                    break;
                }
            }
            // What it says reaches no program.
            let _ = self.fs.release(handle).await;
            Ok(bytes)
        };
        let mut bytes: Vec<u8> = match bytes.await {
            Ok(bytes) => bytes,
            Err(errno) => panic!("client {}: read of {ino}: {errno:?}", self.client),
        };
        assert!(bytes.len().is_multiple_of(PIECE), "{ino} has {} bytes", bytes.len());
        let end = bytes.len() / PIECE;
        bytes.resize(PIECES * PIECE, 0);
        let exact = !doubtful && self.losses.get() == *seen;
        let pieces_found = bytes.chunks(PIECE).enumerate();
        let mut found: Vec<u32> =
            pieces_found.map(|(at, bytes)| version(*ino, at, bytes)).collect();
        for (at, (history, &found)) in pieces.iter().zip(&found).enumerate() {
            assert!(
                history.may_be(found, exact),
                "client {}: {ino} piece {at} is of write {found}; exactly: {exact}; {history:?}",
                self.client,
            );
        }
        found.truncate(end);
        found
    }

    /// Makes or removes a name, after a look at it.
    async fn change_name(&mut self) {
        let name = self.random.usize(..NAMES);
        let there = self.find(name).await;
        let (fs, root, text) = (&self.fs, Who::root(), format!("name{name}"));
        let outcome = if there {
            fs.unlink(&root, self.dir, text.as_bytes()).await
        } else {
            async {
                let made = fs.create(&root, self.dir, text.as_bytes(), 0o644, 0, READ_WRITE, true);
                let (_, handle) = made.await?;
                fs.release(handle).await
            }
            .await
        };
        // A loss between the look and the change may have brought back what was there before.
        let changed = match outcome {
            Err(Errno::EEXIST | Errno::ENOENT) if self.losses.get() > 0 => Ok(()),
            other => other,
        };
        self.told(&format!("{} {text}", if there { "unlink" } else { "create" }), changed);
        self.names[name].push(!there);
    }

    /// Whether the name is there, which it may be.
    async fn find(&mut self, name: usize) -> bool {
        let text = format!("name{name}");
        let found = match self.fs.lookup(&Who::root(), self.dir, text.as_bytes()).await {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(errno) => panic!("client {}: lookup of {text}: {errno:?}", self.client),
        };
        let history = &mut self.names[name];
        let exact = self.losses.get() == 0;
        let may_be = history.may_be(found, exact);
        assert!(may_be, "client {}: {text} is there: {found}; {history:?}", self.client);
        history.found(found);
        found
    }

    async fn fsync_names(&mut self) {
        let outcome = self.fs.fsync_dir(self.dir).await;
        self.told("fsync of the directory", outcome);
        if outcome.is_ok() {
            self.names.iter_mut().for_each(History::made_durable);
        } else {
            for name in 0..NAMES {
                self.find(name).await;
            }
        }
    }
}

/// The bytes of a piece.
fn piece(ino: Ino, at: usize, version: u32) -> Vec<u8> {
    let tag = [ino.0, (at as u64) << 32 | u64::from(version)];
    tag.iter().flat_map(|word| word.to_le_bytes()).cycle().take(PIECE).collect()
}

/// The write that has made the piece; panics unless it is one of this piece.
fn version(ino: Ino, at: usize, bytes: &[u8]) -> u32 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let word = |from: usize| bytes[from..from + 8].try_into().map(u64::from_le_bytes);
    let (whose, tag) = (word(0).unwrap_or_default(), word(8).unwrap_or_default());
    let (place, version) = (tag >> 32, tag as u32);
    assert_eq!((Ino(whose), place), (ino, at as u64), "whose bytes are in {ino} at piece {at}");
    assert!(bytes == piece(ino, at, version), "{ino} piece {at} is torn");
    version
}

pub(super) const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, execute: false, truncate: false };
/// Files of each client.
const FILES: usize = 3;
/// Names of each client that come and go.
const NAMES: usize = 4;
/// Bytes of a piece: what a disk writes at once.
const PIECE: usize = 512;
/// Pieces of a file: five chunks of 64 KiB and a half.
const PIECES: usize = 700;
/// A few chunks at once, and whole pieces: between two reads power may be lost.
const READ_LEN: usize = 391 * PIECE;
