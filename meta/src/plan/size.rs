//! A file's size, blocks and bound; and the end of inodes without links.
//!
//! 1. No byte at or beyond `bound` was ever written, by anybody: it never falls, for a client may still write below the
//!    bound it knew before a truncation.
//! 2. While a cut is pending the file does not grow: what would grow it is Busy.
//! 3. A settlement made under an older generation never makes the file larger than its data.

use sealfs_proto::{Errno, Ino, Reply, Request, Time, limits};

use super::{Asked, Planned, Question, Refused};
use crate::state::{Key, Unlinked};
use crate::{Answer, Body, Change, Inode, Record, State};

pub(super) fn plan(state: &State, request: &Request, asked: &Asked) -> Result<Planned, Refused> {
    match *request {
        Request::Raise { ino, bound } => raise(state, asked, ino, bound),
        Request::Settle { ino, generation, size, blocks, wrote } => {
            let inode = file(state, ino)?;
            let times = wrote && generation >= inode.attr.generation;
            let size = match settled_size(inode, generation, size, asked) {
                Ok(size) => size,
                Err(question) => return Ok(Planned::Ask(question)),
            };
            settle(inode, asked, size, blocks, times)
        }
        Request::Reserve { ino, length } => reserve(state, asked, ino, length),
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// The settlement of a write of chunk 0 up to byte `to` of the file, to stand in the entry of that write; `blocks` more
/// 512-byte units are allocated. Busy while a cut is pending that the write would reach. Applying it gives
/// `Reply::Written` with attributes.
pub fn plan_settle_write(
    state: &State,
    ino: Ino,
    to: u64,
    blocks: i64,
    asked: &Asked,
) -> Result<Record, Refused> {
    let inode = file(state, ino)?;
    no_growth_into_cut(inode, to)?;
    let answer = Answer::Written(ino);
    let change = Change::Settle { ino, size: to, blocks, times: true, answer };
    Ok(Record { origin: Some(asked.origin), now: asked.now, change })
}

/// The end of an inode without links that nobody has open; Busy while a transaction holds it or a cut of it is pending,
/// ENOENT if there is no such inode, or it has links, or is being reclaimed already.
pub fn plan_reclaim(state: &State, ino: Ino, now: Time) -> Result<Record, Refused> {
    let stage = state.unlinked.get(&ino).copied();
    if !matches!(stage, Some(Unlinked::Unnamed | Unlinked::Waiting)) {
        return Err(Errno::ENOENT.into());
    }
    if state.holds.of(&Key::inode(ino)).is_some() || state.cut(ino).is_some() {
        return Err(Refused::Busy);
    }
    Ok(Record { origin: None, now, change: Change::Reclaim { ino } })
}

fn raise(state: &State, asked: &Asked, ino: Ino, bound: u64) -> Result<Planned, Refused> {
    let inode = file(state, ino)?;
    if bound <= inode.attr.bound {
        return Ok(Planned::Reply(Reply::Attr(inode.attr.clone())));
    }
    if bound > limits::FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    no_growth_into_cut(inode, bound)?;
    Ok(asked.record(Change::Raise { ino, bound }))
}

/// How far the data reaches as this settlement may say it.
fn settled_size(inode: &Inode, generation: u64, size: u64, asked: &Asked) -> Result<u64, Question> {
    let attr = &inode.attr;
    if generation >= attr.generation || size <= attr.size {
        return Ok(size);
    }
    match asked.facts.end {
        Some((known, end)) if known == attr.generation => Ok(size.min(end)),
        _ => {
            let (generation, chunk_size) = (attr.generation, attr.chunk_size);
            Err(Question::End { ino: attr.ino, generation, chunk_size })
        }
    }
}

fn settle(
    inode: &Inode,
    asked: &Asked,
    size: u64,
    blocks: i64,
    times: bool,
) -> Result<Planned, Refused> {
    let attr = &inode.attr;
    if size > limits::FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    if size <= attr.size && blocks == 0 && !times {
        return Ok(Planned::Reply(Reply::Attr(attr.clone())));
    }
    no_growth_into_cut(inode, size)?;
    let (ino, answer) = (attr.ino, Answer::Attr(attr.ino));
    Ok(asked.record(Change::Settle { ino, size, blocks, times, answer }))
}

fn reserve(state: &State, asked: &Asked, ino: Ino, length: u32) -> Result<Planned, Refused> {
    let inode = file(state, ino)?;
    let to = inode
        .attr
        .size
        .checked_add(u64::from(length))
        .filter(|to| *to <= limits::FILE_SIZE_MAX)
        .ok_or(Errno::EFBIG)?;
    no_growth_into_cut(inode, to)?;
    // Doubled, so that only a few appends wait for the device.
    let doubled = to.saturating_mul(2).min(limits::FILE_SIZE_MAX);
    let bound = if to > inode.attr.bound { doubled } else { inode.attr.bound };
    Ok(asked.record(Change::Reserve { ino, length, bound }))
}

fn file(state: &State, ino: Ino) -> Result<&Inode, Errno> {
    let inode = state.live(ino)?;
    match inode.body {
        Body::File { .. } => Ok(inode),
        Body::Directory(_) => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

fn no_growth_into_cut(inode: &Inode, to: u64) -> Result<(), Refused> {
    match inode.body {
        Body::File { cut: Some(from) } if to > from => Err(Refused::Busy),
        _ => Ok(()),
    }
}
