//! One operation: how it is chosen, and what the model answers.

use sealfs_proto::Errno;
use xxhash_rust::xxh64::xxh64;

use super::tree::{Content, Tree};

/// What a client does next. Files are opened for each operation, except the one that is held.
#[derive(Clone, Debug)]
pub enum Operation {
    /// An empty file that must be new.
    Create(String),
    /// A directory.
    Mkdir(String),
    /// A file's name goes.
    Unlink(String),
    /// A directory goes.
    Rmdir(String),
    /// From, to.
    Rename(String, String),
    /// Open, write, close.
    Write(String, Bytes),
    /// To this size.
    Truncate(String, u64),
    /// All of a file.
    Read(String),
    /// Kind and size.
    Stat(String),
    /// The names that are this client's.
    List(String),
    /// Opens a file and keeps it open.
    Hold(String),
    /// Writes to what is held.
    WriteHeld(Bytes),
    /// Reads all of what is held.
    ReadHeld,
    /// fsync of what is held.
    FsyncHeld,
    /// Closes what is held.
    Release,
    /// Does nothing for so many milliseconds.
    Sleep(u64),
    /// A directory that the other client wants to make, too.
    Race(u32),
}

/// Bytes to be written, by what makes them.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// Where in the file.
    pub offset: u64,
    /// How many.
    pub len: usize,
    /// What they are.
    pub seed: u64,
}

impl Bytes {
    /// They themselves.
    #[must_use]
    pub fn make(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        fastrand::Rng::with_seed(self.seed).fill(&mut bytes);
        bytes
    }
}

/// What the program is answered, as text.
pub type Outcome = Result<String, Errno>;

/// How what was read shows in an [`Outcome`].
#[must_use]
pub(super) fn read_outcome(bytes: &[u8]) -> String {
    format!("{} bytes, hash {:016x}", bytes.len(), xxh64(bytes, 0))
}

/// How a file's size shows in an [`Outcome`].
#[must_use]
pub(super) fn stat_outcome(size: Option<u64>) -> String {
    size.map_or_else(|| "directory".to_owned(), |size| format!("file of {size}"))
}

impl Operation {
    /// The next one of client `client`, whose tree is `tree`; `held`: whether a file is held open.
    pub fn generate(random: &mut fastrand::Rng, client: usize, tree: &Tree, held: bool) -> Self {
        let anything = |random: &mut fastrand::Rng| name(random, client, tree);
        match random.u32(..36) {
            0..5 => Self::Create(anything(random)),
            5..8 => Self::Mkdir(anything(random)),
            8..10 => Self::Unlink(file(random, tree).unwrap_or_else(|| anything(random))),
            10..12 => Self::Rmdir(anything(random)),
            12..16 => {
                let (from, to) = (anything(random), anything(random));
                if above(&from, &to) || above(&to, &from) {
                    // The kernel refuses these before anyone is asked.
                    Self::Stat(from)
                } else {
                    Self::Rename(from, to)
                }
            }
            16..20 => match file(random, tree) {
                Some(path) => Self::Write(path, bytes(random)),
                None => Self::Create(anything(random)),
            },
            20..22 => match file(random, tree) {
                Some(path) => Self::Truncate(path, bytes(random).offset),
                None => Self::Create(anything(random)),
            },
            22..25 => Self::Read(file(random, tree).unwrap_or_else(|| anything(random))),
            25 => Self::Stat(anything(random)),
            26 => Self::List(directory(random, client, tree)),
            27..33 if held => match random.u32(..6) {
                0..3 => Self::WriteHeld(bytes(random)),
                3 => Self::ReadHeld,
                4 => Self::FsyncHeld,
                _ => Self::Release,
            },
            27..33 => file(random, tree).map_or(Self::Sleep(1), Self::Hold),
            33 | 34 => Self::Sleep(random.u64(..700)),
            _ => Self::Race(random.u32(..RACES)),
        }
    }

    /// What it must be answered, after what it does to the model. A race is the other client's business, too.
    pub fn expect(&self, client: usize, tree: &mut Tree, held: &mut Option<Content>) -> Outcome {
        let done = |()| String::new();
        match self {
            Self::Create(path) => tree.create(path).map(done),
            Self::Mkdir(path) => tree.mkdir(path).map(done),
            Self::Unlink(path) => tree.unlink(path).map(done),
            Self::Rmdir(path) => tree.rmdir(path).map(done),
            Self::Rename(from, to) => tree.rename(from, to).map(done),
            Self::Write(path, bytes) => {
                tree.content(path).map(|content| write(&content, *bytes)).map(done)
            }
            Self::Truncate(path, size) => {
                tree.content(path).map(|content| content.borrow_mut().resize(*size as usize, 0))?;
                Ok(String::new())
            }
            Self::Read(path) => tree.content(path).map(|content| read_outcome(&content.borrow())),
            Self::Stat(path) => tree
                .find(path)
                .map(|content| stat_outcome(content.map(|content| content.borrow().len() as u64))),
            Self::List(dir) => {
                let own = |name: &String| is_own(name, client);
                Ok(tree.list(dir).into_iter().filter(own).collect::<Vec<_>>().join(" "))
            }
            Self::Hold(path) => {
                *held = Some(tree.content(path)?);
                Ok(String::new())
            }
            Self::WriteHeld(bytes) => {
                write(held.as_ref().expect("one is held"), *bytes);
                Ok(String::new())
            }
            Self::ReadHeld => Ok(read_outcome(&held.as_ref().expect("one is held").borrow())),
            Self::Release => {
                *held = None;
                Ok(String::new())
            }
            Self::FsyncHeld | Self::Sleep(_) | Self::Race(_) => Ok(String::new()),
        }
    }
}

/// Whether a name in a shared directory is this client's.
#[must_use]
pub(super) fn is_own(name: &str, client: usize) -> bool {
    name.trim_end_matches('/').ends_with(&client.to_string())
}

/// The directories that a client works in from the beginning: one of its own, and one that all share.
#[must_use]
pub(super) fn homes(client: usize) -> [String; 2] {
    [format!("own{client}"), SHARED.to_owned()]
}

fn write(content: &Content, bytes: Bytes) {
    let mut content = content.borrow_mut();
    let from = bytes.offset as usize;
    let end = from + bytes.len;
    if content.len() < end {
        content.resize(end, 0);
    }
    content[from..end].copy_from_slice(&bytes.make());
}

fn above(dir: &str, path: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// A directory that there is, not too deep.
fn directory(random: &mut fastrand::Rng, client: usize, tree: &Tree) -> String {
    let mut dirs = homes(client).to_vec();
    let shallow = |path: &&str| path.matches('/').count() < 3;
    dirs.extend(tree.paths(true).into_iter().filter(shallow).map(str::to_owned));
    dirs.swap_remove(random.usize(..dirs.len()))
}

/// A name of this client in a directory that there is; it may be taken.
fn name(random: &mut fastrand::Rng, client: usize, tree: &Tree) -> String {
    let dir = directory(random, client, tree);
    format!("{dir}/{}{client}", ["a", "b", "c", "d", "e"][random.usize(..5)])
}

/// A file that there is.
fn file(random: &mut fastrand::Rng, tree: &Tree) -> Option<String> {
    let files = tree.paths(false);
    (!files.is_empty()).then(|| files[random.usize(..files.len())].to_owned())
}

/// Around the borders of blocks and chunks.
fn bytes(random: &mut fastrand::Rng) -> Bytes {
    let borders = [0, 1, 4_090, CHUNK_SIZE - 9, CHUNK_SIZE, 2 * CHUNK_SIZE + 4_097];
    let lens = [1, 100, 4_096, 9_000, 70_000, 140_000];
    Bytes {
        offset: borders[random.usize(..borders.len())] + random.u64(..9),
        len: lens[random.usize(..lens.len())],
        seed: random.u64(..),
    }
}

/// Bytes per chunk: the least there may be, so that files have many.
const CHUNK_SIZE: u64 = 64 << 10;
/// The directory of both clients.
const SHARED: &str = "shared";
/// Directories that both clients try to make.
const RACES: u32 = 40;
