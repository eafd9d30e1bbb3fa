//! New files, links, specials and directories.

use sealfs_proto::{
    Attr, Entry, Errno, Ino, Kind, New, Part, Request, Time, Who, directory_shard, limits,
};

use super::{Asked, Planned, Refused, Shares};
use crate::access::{CHANGE, Inherited, inherit, require};
use crate::{Answer, Change, Inode, State, part};

pub(super) fn plan(state: &State, request: &Request, asked: &Asked) -> Result<Planned, Refused> {
    match request {
        Request::Create { who, dir, name, new, mode, umask, .. } => {
            create(state, asked, who, *dir, name, new, (*mode, *umask))
        }
        Request::Mkdir { who, dir, name, mode, umask } => {
            let parent = free_name(state, who, *dir, name)?;
            let Inherited { gid, mode, xattrs } =
                inherit(parent, who, Kind::Directory, *mode, *umask);
            let made = Attr {
                nlink: 2,
                chunk_size: parent.attr.chunk_size,
                ..blank(Kind::Directory, who.uid, gid, mode, asked.now)
            };
            let shard = directory_shard(*dir, name, asked.shards);
            let mut shares = Shares::default();
            shares.add(state.shard, add(who, *dir, name, Kind::Directory));
            let inode = Part::NewInode { attr: made, parent: *dir, target: Vec::new(), xattrs };
            shares.add(shard, inode);
            asked.parts(state, shares, entry(Kind::Directory))
        }
        Request::CreateUnnamed { who, dir, mode } => unnamed(state, asked, who, *dir, *mode),
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

fn create(
    state: &State,
    asked: &Asked,
    who: &Who,
    dir: Ino,
    name: &[u8],
    new: &New,
    (mode, umask): (u32, u32),
) -> Result<Planned, Refused> {
    let parent = free_name(state, who, dir, name)?;
    let (kind, rdev, target) = kind_of(new, who)?;
    let Inherited { gid, mode, xattrs } = inherit(parent, who, kind, mode, umask);
    let made = Attr {
        rdev,
        size: target.len() as u64,
        ..file(parent, blank(kind, who.uid, gid, mode, asked.now))
    };
    let mut shares = Shares::default();
    shares.add(state.shard, Part::NewInode { attr: made, parent: dir, target, xattrs });
    shares.add(state.shard, add(who, dir, name, kind));
    asked.parts(state, shares, entry(kind))
}

fn kind_of(new: &New, who: &Who) -> Result<(Kind, u32, Vec<u8>), Errno> {
    match new {
        New::File => Ok((Kind::File, 0, Vec::new())),
        New::Symlink(target) if target.is_empty() => Err(Errno::ENOENT),
        New::Symlink(target) if target.len() > limits::TARGET_LEN_MAX => Err(Errno::ENAMETOOLONG),
        New::Symlink(target) => Ok((Kind::Symlink, 0, target.clone())),
        New::Special(kind @ (Kind::Fifo | Kind::Socket), _) => Ok((*kind, 0, Vec::new())),
        // Whiteouts (character device 0:0) may be made by anybody, as mknod(2) has it since Linux 5.8.
        New::Special(kind @ (Kind::CharDevice | Kind::BlockDevice), rdev) => {
            let whiteout = (*kind, *rdev) == (Kind::CharDevice, 0);
            let allowed = who.uid == 0 || whiteout;
            if allowed { Ok((*kind, *rdev, Vec::new())) } else { Err(Errno::EPERM) }
        }
        New::Special(..) => Err(Errno::EINVAL),
    }
}

fn unnamed(
    state: &State,
    asked: &Asked,
    who: &Who,
    dir: Ino,
    mode: u32,
) -> Result<Planned, Refused> {
    let (parent, _) = state.live_directory(dir)?;
    require(parent, who, CHANGE)?;
    if parent.attr.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    let number = state.numbers.inode(0).ok_or(Refused::Numbers)?;
    let Inherited { gid, mode, xattrs } = inherit(parent, who, Kind::File, mode, 0);
    let attr = Attr {
        ino: Ino::new(state.shard, number),
        nlink: 0,
        ..file(parent, blank(Kind::File, who.uid, gid, mode, asked.now))
    };
    Ok(asked.record(Change::Unnamed { attr, xattrs }))
}

/// The directory, if the name is free: the first thing that mkdir(2) and open(2) look at.
fn free_name<'a>(state: &'a State, who: &Who, dir: Ino, name: &[u8]) -> Result<&'a Inode, Errno> {
    match part::entry(state, who, dir, name)? {
        Some(_) => Err(Errno::EEXIST),
        None => state.live(dir),
    }
}

fn add(who: &Who, dir: Ino, name: &[u8], kind: Kind) -> Part {
    Part::AddEntry { who: who.clone(), dir, name: name.to_vec(), ino: Ino(0), kind }
}

const fn entry(kind: Kind) -> Answer {
    Answer::Entry(Entry { ino: Ino(0), kind, attr: None })
}

/// What a file takes from its directory. Chunk 0 lies in the inode's own shard: it needs no raised bound.
const fn file(parent: &Inode, attr: Attr) -> Attr {
    let chunk_size = parent.attr.chunk_size;
    let bound = if matches!(attr.kind, Kind::File) { chunk_size as u64 } else { 0 };
    Attr { chunk_size, bound, ..attr }
}

const fn blank(kind: Kind, uid: u32, gid: u32, mode: u32, now: Time) -> Attr {
    Attr {
        ino: Ino(0),
        kind,
        mode,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        size: 0,
        blocks: 0,
        chunk_size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        change: 1,
        generation: 1,
        bound: 0,
    }
}
