//! A client's program: one operation after the other, each compared with the model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use sealfs_client_core::{Fs, Handle, OpenFlags, WriteFlags};
use sealfs_proto::{Attr, Errno, Ino, Kind, RenameFlag, SetAttr, Who};
use sealfs_transport::Region;
use sealfs_transport::tasks::Timers;

use super::operation::{Bytes, Operation, Outcome, homes, is_own, read_outcome, stat_outcome};
use super::trace::Trace;
use super::tree::{Content, Tree, directory_line, file_line, split};

/// How often each contested directory was tried, and how often made.
pub type Races = Rc<RefCell<BTreeMap<u32, (u32, u32)>>>;

/// A client's program.
#[derive(Debug)]
pub struct Program {
    /// Its number.
    pub client: usize,
    /// Its file system.
    pub fs: Fs,
    /// What it has made.
    pub tree: Rc<RefCell<Tree>>,
    /// Shared by all.
    pub races: Races,
    /// Shared by all.
    pub trace: Trace,
    /// Fired by the world.
    pub timers: Timers,
    /// Its choices.
    pub random: fastrand::Rng,
}

/// The file that is held open.
#[derive(Default)]
struct Held {
    content: Option<Content>,
    handle: Option<Handle>,
}

impl Program {
    /// Makes the directories that clients start from; by one client, before the programs begin.
    pub async fn prepare(&self, clients: usize) {
        let mut dirs: Vec<String> = (0..clients).flat_map(homes).collect();
        dirs.sort();
        dirs.dedup();
        for dir in dirs {
            let made = self.fs.mkdir(&Who::root(), Ino::ROOT, dir.as_bytes(), 0o755, 0).await;
            assert!(made.is_ok(), "{dir}: {made:?}");
        }
    }

    /// Does `count` operations; panics at the first that is not answered as the model says.
    pub async fn run(mut self, count: usize) {
        let mut held = Held::default();
        for _ in 0..count {
            let holds = held.handle.is_some();
            let operation =
                Operation::generate(&mut self.random, self.client, &self.tree.borrow(), holds);
            self.step(&operation, &mut held).await;
        }
        if held.handle.is_some() {
            self.step(&Operation::Release, &mut held).await;
        }
    }

    async fn step(&self, operation: &Operation, held: &mut Held) {
        let expected =
            operation.expect(self.client, &mut self.tree.borrow_mut(), &mut held.content);
        self.trace.event(&format!("client {}: {operation:?} ...", self.client));
        let outcome = self.execute(operation, &mut held.handle).await;
        self.trace.event(&format!("client {}: {operation:?} -> {outcome:?}", self.client));
        assert_eq!(outcome, expected, "client {}: {operation:?}", self.client);
    }

    async fn execute(&self, operation: &Operation, held: &mut Option<Handle>) -> Outcome {
        let (fs, root) = (&self.fs, Who::root());
        match operation {
            Operation::Create(path) => {
                let (dir, name) = self.parent(path).await?;
                let made = fs.create(&root, dir, name, 0o644, 0, READ_WRITE, true).await;
                fs.release(made?.1).await?;
            }
            Operation::Mkdir(path) => {
                let (dir, name) = self.parent(path).await?;
                fs.mkdir(&root, dir, name, 0o755, 0).await?;
            }
            Operation::Unlink(path) => {
                let (dir, name) = self.parent(path).await?;
                fs.unlink(&root, dir, name).await?;
            }
            Operation::Rmdir(path) => {
                let (dir, name) = self.parent(path).await?;
                fs.rmdir(&root, dir, name).await?;
            }
            Operation::Rename(from, to) => {
                let ((dir, name), (target_dir, target)) =
                    (self.parent(from).await?, self.parent(to).await?);
                fs.rename(&root, dir, name, target_dir, target, RenameFlag::Replace).await?;
            }
            Operation::Write(path, bytes) => {
                let handle = self.open(path).await?;
                write(fs, handle, *bytes).await?;
                close(fs, handle).await?;
            }
            Operation::Truncate(path, size) => {
                let ino = self.find(path).await?.ino;
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                let attr = fs.setattr(&root, ino, None, set).await?;
                assert_eq!(attr.size, *size, "{path} after its truncation");
            }
            Operation::Read(path) => {
                let handle = self.open(path).await?;
                let bytes = read(fs, handle).await;
                close(fs, handle).await?;
                return Ok(read_outcome(&bytes?));
            }
            Operation::Stat(path) => return self.stat(path).await,
            Operation::List(path) => return self.list(path).await,
            Operation::Hold(path) => *held = Some(self.open(path).await?),
            Operation::WriteHeld(bytes) => write(fs, held.expect("one is held"), *bytes).await?,
            Operation::ReadHeld => {
                return Ok(read_outcome(&read(fs, held.expect("one is held")).await?));
            }
            Operation::FsyncHeld => fs.fsync(held.expect("one is held"), false).await?,
            Operation::Release => close(fs, held.take().expect("one is held")).await?,
            Operation::Sleep(ms) => {
                self.timers.sleep_until(self.trace.now().after_ms(*ms)).await;
            }
            Operation::Race(number) => self.race(*number).await,
        }
        Ok(String::new())
    }

    /// Of all who make a directory one succeeds; the others are told that it is there.
    async fn race(&self, number: u32) {
        let name = format!("race{number}");
        let made = self.fs.mkdir(&Who::root(), Ino::ROOT, name.as_bytes(), 0o755, 0).await;
        let mut races = self.races.borrow_mut();
        let (tried, won) = races.entry(number).or_default();
        *tried += 1;
        match made {
            Ok(_) => *won += 1,
            Err(errno) => assert_eq!(errno, Errno::EEXIST, "{name}"),
        }
        self.trace.event(&format!("client {}: {name} tried {tried}, won {won}", self.client));
    }

    async fn stat(&self, path: &str) -> Outcome {
        let found = self.find(path).await?;
        let attr = self.fs.stat(found.ino).await?;
        assert_eq!(attr.kind, found.kind, "{path}: lookup and stat");
        if attr.kind == Kind::Directory {
            return Ok(stat_outcome(None));
        }
        assert_eq!(attr.size, found.size, "{path}: lookup and stat");
        Ok(stat_outcome(Some(attr.size)))
    }

    async fn list(&self, path: &str) -> Outcome {
        let mut names: Vec<String> = list(&self.fs, self.find(path).await?.ino)
            .await?
            .into_iter()
            .map(|(name, _, kind)| if kind == Kind::Directory { name + "/" } else { name })
            .filter(|name| is_own(name, self.client))
            .collect();
        names.sort_by_key(|name| name.trim_end_matches('/').to_owned());
        Ok(names.join(" "))
    }

    /// Walks to the directory of `path`.
    async fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Errno> {
        let (dir, name) = split(path);
        let mut ino = Ino::ROOT;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            ino = self.fs.lookup(&Who::root(), ino, part.as_bytes()).await?.ino;
        }
        Ok((ino, name.as_bytes()))
    }

    async fn find(&self, path: &str) -> Result<Attr, Errno> {
        let (dir, name) = self.parent(path).await?;
        self.fs.lookup(&Who::root(), dir, name).await
    }

    async fn open(&self, path: &str) -> Result<Handle, Errno> {
        let ino = self.find(path).await?.ino;
        Ok(self.fs.open(&Who::root(), ino, READ_WRITE).await?.1)
    }
}

/// Everything that a client sees below the root, one line each, as [`Tree::lines`] shows it.
pub async fn walk(fs: &Fs) -> Result<Vec<String>, Errno> {
    let mut lines = Vec::new();
    let mut dirs = vec![(String::new(), Ino::ROOT)];
    while let Some((dir, ino)) = dirs.pop() {
        for (name, ino, kind) in list(fs, ino).await? {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if kind == Kind::Directory {
                lines.push(directory_line(&path));
                dirs.push((path, ino));
            } else {
                let (_, handle) = fs.open(&Who::root(), ino, READ_WRITE).await?;
                let bytes = read(fs, handle).await?;
                close(fs, handle).await?;
                lines.push(file_line(&path, &bytes));
            }
        }
    }
    lines.sort();
    Ok(lines)
}

/// A directory's entries without "." and "..", some at a time.
async fn list(fs: &Fs, dir: Ino) -> Result<Vec<(String, Ino, Kind)>, Errno> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let (entries, end) = fs.list(&Who::root(), dir, cookie, LIST_LEN, false).await?;
        assert!(end || !entries.is_empty(), "a listing goes on with nothing");
        for listed in entries {
            cookie = listed.cookie;
            let name = String::from_utf8(listed.name).expect("all names are text here");
            if name != "." && name != ".." {
                found.push((name, listed.entry.ino, listed.entry.kind));
            }
        }
        if end {
            return Ok(found);
        }
    }
}

async fn write(fs: &Fs, handle: Handle, bytes: Bytes) -> Result<(), Errno> {
    let mut region = Region::zeroed(bytes.len);
    region.bytes_mut().copy_from_slice(&bytes.make());
    let written = fs.write(handle, bytes.offset, region.freeze(), WriteFlags::default()).await?;
    assert_eq!(written, bytes.len, "all of a write is written");
    Ok(())
}

async fn read(fs: &Fs, handle: Handle) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    loop {
        let pieces = fs.read(handle, bytes.len() as u64, READ_LEN).await?;
        let before = bytes.len();
        pieces.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        if bytes.len() < before + READ_LEN {
            return Ok(bytes);
        }
    }
}

async fn close(fs: &Fs, handle: Handle) -> Result<(), Errno> {
    let flushed = fs.flush(handle, None).await;
    fs.release(handle).await?;
    flushed
}

const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, execute: false, truncate: false };
/// Less than two chunks, and not a multiple of a block.
const READ_LEN: usize = 100_001;
/// A few entries.
const LIST_LEN: u32 = 200;
