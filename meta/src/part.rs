//! Elementary changes: one check and one application per part, for plans and transactions alike.
//!
//! 1. [`check`] refuses whatever [`apply()`] could not carry out completely; `apply` is total all the same.
//! 2. Parts of one list do not depend on each other: each is checked against the state before the list. Only an entry with
//!    inode 0 refers to another part, the one `NewInode` of the whole change.

use sealfs_proto::{Attr, Errno, Ino, Kind, Part, Reply, Time, Who, limits};

use crate::access::{CHANGE, PASS, WRITE, require, require_sticky};
use crate::snapshot::walk;
use crate::state::{Body, Directory, DirectoryEntry, Inode, State, Unlinked};
use crate::{Effect, Refused};

/// Whether the parts can be carried out now, all of them. Busy if a key is held.
pub(crate) fn check(state: &State, parts: &[Part]) -> Result<(), Refused> {
    if state.holds.hinder(parts) {
        return Err(Refused::Busy);
    }
    let new = parts.iter().filter(|part| matches!(part, Part::NewInode { .. })).count() as u64;
    if new > 0 && state.numbers.inode(new - 1).is_none() {
        return Err(Refused::Numbers);
    }
    Ok(parts.iter().try_for_each(|part| check_one(state, part))?)
}

fn check_one(state: &State, part: &Part) -> Result<(), Errno> {
    match part {
        Part::NewInode { .. } => Ok(()),
        Part::AddEntry { who, dir, name, kind, .. } => {
            if entry(state, who, *dir, name)?.is_some() {
                return Err(Errno::EEXIST);
            }
            let dir = state.live(*dir)?;
            if dir.attr.nlink == 0 {
                return Err(Errno::ENOENT);
            }
            require(dir, who, CHANGE)?;
            room_for_link(&dir.attr, *kind == Kind::Directory)
        }
        Part::RemoveEntry { who, dir, name, ino, kind } => {
            expect(entry(state, who, *dir, name)?, *ino, *kind)?;
            require(state.live(*dir)?, who, CHANGE)
        }
        Part::SwapEntry { who, dir, name, ino, kind, to_kind, .. } => {
            expect(entry(state, who, *dir, name)?, *ino, *kind)?;
            let dir = state.live(*dir)?;
            require(dir, who, CHANGE)?;
            let more = *kind != Kind::Directory && *to_kind == Kind::Directory;
            room_for_link(&dir.attr, more)
        }
        Part::AddLink { ino } => check_link(state, *ino),
        Part::DropLink { ino, sticky } => {
            let inode = state.live(*ino)?;
            require_sticky(&inode.attr, *sticky)?;
            if inode.attr.kind == Kind::Directory { Err(Errno::EISDIR) } else { Ok(()) }
        }
        Part::EndDirectory { ino, sticky } => {
            let (inode, directory) = state.live_directory(*ino)?;
            require_sticky(&inode.attr, *sticky)?;
            match () {
                () if *ino == Ino::ROOT => Err(Errno::EBUSY),
                () if !directory.is_empty() => Err(Errno::ENOTEMPTY),
                () => Ok(()),
            }
        }
        Part::Moved { who, ino, parent, sticky } => {
            let inode = state.live(*ino)?;
            require_sticky(&inode.attr, *sticky)?;
            if parent.is_some() { require(inode, who, WRITE) } else { Ok(()) }
        }
    }
}

fn check_link(state: &State, ino: Ino) -> Result<(), Errno> {
    let inode = state.live(ino).map_err(|_| Errno::ENOENT)?;
    let unnamed = state.unlinked.get(&ino) == Some(&Unlinked::Unnamed);
    match &inode.attr {
        attr if attr.kind == Kind::Directory => Err(Errno::EPERM),
        attr if attr.nlink == 0 && !unnamed => Err(Errno::ENOENT),
        attr => room_for_link(attr, true),
    }
}

const fn room_for_link(attr: &Attr, more: bool) -> Result<(), Errno> {
    if more && attr.nlink >= limits::LINKS_MAX { Err(Errno::EMLINK) } else { Ok(()) }
}

/// The entry as `who` finds it: the directory must be one that may be passed, and the name one that can be.
pub(crate) fn entry<'a>(
    state: &'a State,
    who: &Who,
    dir: Ino,
    name: &[u8],
) -> Result<Option<&'a DirectoryEntry>, Errno> {
    let (inode, directory) = state.live_directory(dir)?;
    require(inode, who, PASS)?;
    check_name(name)?;
    Ok(directory.find(name))
}

/// Whether a name can be one of a directory; "." and ".." are the kernel's own.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        [] => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EINVAL),
        _ if name.len() > limits::NAME_LEN_MAX => Err(Errno::ENAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

fn expect(found: Option<&DirectoryEntry>, ino: Ino, kind: Kind) -> Result<(), Errno> {
    match found {
        Some(entry) if entry.ino == ino && entry.kind == kind => Ok(()),
        _ => Err(Errno::ENOENT),
    }
}

/// Fills the numbers of new inodes in: the next ones of the shard.
pub(crate) fn draw_numbers(state: &State, parts: &mut [Part]) {
    let mut next = state.numbers.inode;
    for part in parts {
        if let Part::NewInode { attr, .. } = part {
            attr.ino = Ino::new(state.shard, next);
            next += 1;
        }
    }
}

/// Makes entries of inode 0 name `ino`, which the same change makes; and gives entries of an inode that `attrs` tells of
/// its kind.
pub(crate) fn fill_in(parts: &mut [Part], attrs: &[Attr]) {
    for part in parts {
        if let Part::AddEntry { ino, kind, .. } | Part::SwapEntry { to: ino, to_kind: kind, .. } =
            part
            && let Some(attr) = attrs.iter().find(|attr| *ino == Ino(0) || attr.ino == *ino)
        {
            (*ino, *kind) = (attr.ino, attr.kind);
        }
    }
}

/// The attributes of the inodes that the parts make.
pub(crate) fn new_attrs(parts: &[Part]) -> Vec<Attr> {
    let attr = |part: &Part| match part {
        Part::NewInode { attr, .. } => Some(attr.clone()),
        _ => None,
    };
    parts.iter().filter_map(attr).collect()
}

/// The reply to a prepared share: the attributes of inodes that the parts make or link.
pub(crate) fn prepared_reply(state: &State, parts: &[Part]) -> Reply {
    let attr = |part: &Part| match part {
        Part::NewInode { attr, .. } => Some(attr.clone()),
        Part::AddLink { ino } => state.inodes.get(ino).map(|inode| inode.attr.clone()),
        _ => None,
    };
    Reply::Prepared { attrs: parts.iter().filter_map(attr).collect() }
}

/// Carries the parts out. What does not fit the state is passed over.
pub(crate) fn apply(state: &mut State, parts: &[Part], now: Time, effects: &mut Vec<Effect>) {
    parts.iter().for_each(|part| apply_one(state, part, now, effects));
}

fn apply_one(state: &mut State, part: &Part, now: Time, effects: &mut Vec<Effect>) {
    walk::part(state, part);
    match part {
        Part::NewInode { attr, parent, target, xattrs } => {
            state.numbers.used(attr.ino.number());
            let inode = Inode::new(attr.clone(), *parent, target.clone(), xattrs.clone());
            state.inodes.insert(attr.ino, inode);
        }
        Part::AddEntry { dir, name, ino, kind, .. } => change_entries(state, *dir, now, |dir| {
            if dir.find(name).is_some() {
                return 0;
            }
            dir.insert(name, *ino, *kind);
            subdirectories(*kind)
        }),
        Part::RemoveEntry { dir, name, kind, .. } => change_entries(state, *dir, now, |dir| {
            if dir.remove(name) { -subdirectories(*kind) } else { 0 }
        }),
        Part::SwapEntry { dir, name, kind, to, to_kind, .. } => {
            change_entries(state, *dir, now, |dir| match dir.replace(name, *to, *to_kind) {
                true => subdirectories(*to_kind) - subdirectories(*kind),
                false => 0,
            });
        }
        Part::AddLink { ino } => {
            if let Some(inode) = state.inodes.get_mut(ino) {
                inode.touch(now);
                inode.attr.nlink = inode.attr.nlink.saturating_add(1);
                state.unlinked.remove(ino);
            }
        }
        Part::DropLink { ino, .. } => {
            if let Some(inode) = state.inodes.get_mut(ino) {
                inode.touch(now);
                inode.attr.nlink = inode.attr.nlink.saturating_sub(1);
                if inode.attr.nlink == 0 {
                    unlink(state, *ino, effects);
                }
            }
        }
        Part::EndDirectory { ino, .. } => {
            if let Some(inode) = state.inodes.get_mut(ino) {
                inode.touch(now);
                inode.attr.nlink = 0;
                unlink(state, *ino, effects);
            }
        }
        Part::Moved { ino, parent, .. } => {
            if let Some(inode) = state.inodes.get_mut(ino) {
                inode.touch(now);
                if let (Body::Directory(directory), Some(parent)) = (&mut inode.body, parent) {
                    directory.parent = *parent;
                }
            }
        }
    }
}

/// Changes a directory's entries; `change` gives by how many its subdirectories grow.
fn change_entries(
    state: &mut State,
    dir: Ino,
    now: Time,
    change: impl FnOnce(&mut Directory) -> i32,
) {
    let Some(inode) = state.inodes.get_mut(&dir) else { return };
    inode.touch(now);
    inode.attr.mtime = now;
    if let Body::Directory(directory) = &mut inode.body {
        inode.attr.nlink = inode.attr.nlink.saturating_add_signed(change(directory));
        inode.attr.size = directory.len() as u64 * ENTRY_SIZE;
    }
}

fn unlink(state: &mut State, ino: Ino, effects: &mut Vec<Effect>) {
    state.unlinked.insert(ino, Unlinked::Waiting);
    effects.push(Effect::Unlinked(ino));
}

const fn subdirectories(kind: Kind) -> i32 {
    matches!(kind, Kind::Directory) as i32
}

/// What an entry counts in its directory's st_size: about what it takes in memory.
pub(crate) const ENTRY_SIZE: u64 = 64;
