//! Requests that change nothing.

use std::collections::BTreeSet;

use sealfs_proto::{Entry, Errno, Ino, Listed, Reply, Request, TxId, Who, limits};

use crate::access::{READ, require};
use crate::state::{Body, DirectoryEntry, Hold, Key};
use crate::{State, part, plan::xattr};

/// Answers `Lookup`, `List`, `Stat`, `ReadLink`, `XattrGet`, `XattrList` and `Parent`; EOPNOTSUPP for anything else.
pub fn read(state: &State, request: &Request) -> Result<Reply, Errno> {
    match request {
        Request::Lookup { who, dir, name } => {
            let found = part::entry(state, who, *dir, name)?.ok_or(Errno::ENOENT)?;
            Ok(Reply::Entry(shown(state, found, true)))
        }
        Request::List { who, dir, cookie, bytes, attributes } => {
            list(state, who, *dir, *cookie, *bytes, *attributes)
        }
        Request::Stat { ino } => Ok(Reply::Attr(state.live(*ino)?.attr.clone())),
        Request::ReadLink { ino } => match &state.live(*ino)?.body {
            Body::Symlink(target) => Ok(Reply::Bytes(target.clone())),
            _ => Err(Errno::EINVAL),
        },
        Request::XattrGet { who, ino, name } => xattr::value(state.live(*ino)?, who, name),
        Request::XattrList { who, ino } => Ok(xattr::names(state.live(*ino)?, who)),
        Request::Parent { ino } => Ok(Reply::Parent(state.live_directory(*ino)?.1.parent)),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// The prepared transactions whose decisions matter for what the request looks at: for `Lookup`, `List`, `Stat` and
/// `Parent`; and for every request of an inode that is being made. Until decided, the present is the truth: so keys that
/// this shard's own open transactions hold do not matter, and of others the coordinator must be asked.
#[must_use]
pub fn waits(state: &State, request: &Request) -> BTreeSet<TxId> {
    let inode = |ino: Ino| state.holds.of(&Key::inode(ino));
    let (one, dir) = match request {
        Request::Lookup { dir, name, .. } => (state.holds.of(&Key::entry(*dir, name)), None),
        Request::List { dir, .. } => (None, Some(*dir)),
        Request::Stat { ino } => (inode(*ino), Some(*ino)),
        Request::Parent { ino } => (inode(*ino), None),
        _ => (None, None),
    };
    let entries = dir.into_iter().flat_map(|dir| state.holds.entries_of(dir));
    let holds = one.into_iter().chain(entries).filter(|hold: &Hold| !hold.own);
    holds.map(|hold| hold.tx).chain(making(state, request)).collect()
}

/// As [`waits`], for a node that walks up the tree from the directory `ino`, to move another one below it: a move that is not
/// decided matters, whoever's it is.
#[must_use]
pub fn walk_waits(state: &State, ino: Ino) -> BTreeSet<TxId> {
    state.holds.of(&Key::inode(ino)).map(|hold| hold.tx).into_iter().collect()
}

/// The prepared transaction that makes the inode of the request. Its coordinator may have decided and answered already, so
/// that whoever asks knows the number; it cannot be refused here for want of the decision.
pub(crate) fn making(state: &State, request: &Request) -> Option<TxId> {
    let ino = match request {
        Request::Lookup { dir, .. }
        | Request::Create { dir, .. }
        | Request::CreateUnnamed { dir, .. }
        | Request::Mkdir { dir, .. }
        | Request::Unlink { dir, .. }
        | Request::Rmdir { dir, .. }
        | Request::Rename { dir, .. }
        | Request::Link { dir, .. }
        | Request::List { dir, .. } => *dir,
        Request::Stat { ino }
        | Request::Parent { ino }
        | Request::SetAttr { ino, .. }
        | Request::Open { ino, .. }
        | Request::XattrGet { ino, .. }
        | Request::XattrList { ino, .. }
        | Request::XattrSet { ino, .. }
        | Request::XattrRemove { ino, .. } => *ino,
        _ => return None,
    };
    let hold = state.holds.of(&Key::inode(ino)).filter(|hold| !hold.own)?;
    (!state.inodes.contains_key(&ino)).then_some(hold.tx)
}

/// The entry, with attributes unless a prepared transaction may be about to change them: then a `Stat` waits for it.
fn shown(state: &State, entry: &DirectoryEntry, attributes: bool) -> Entry {
    let known = attributes && waits(state, &Request::Stat { ino: entry.ino }).is_empty();
    let inode = if known { state.inodes.get(&entry.ino) } else { None };
    Entry { ino: entry.ino, kind: entry.kind, attr: inode.map(|inode| inode.attr.clone()) }
}

fn list(
    state: &State,
    who: &Who,
    dir: Ino,
    cookie: u64,
    bytes: u32,
    attributes: bool,
) -> Result<Reply, Errno> {
    let (inode, directory) = state.live_directory(dir)?;
    require(inode, who, READ)?;
    let mut room = bytes.min(limits::LIST_LEN_MAX) as usize;
    let mut entries = Vec::new();
    for (cookie, found) in directory.behind(cookie) {
        let entry = shown(state, found, attributes);
        let takes = LISTED_LEN + found.name.len() + entry.attr.as_ref().map_or(0, |_| ATTR_LEN);
        if takes > room && !entries.is_empty() {
            return Ok(Reply::List { entries, end: false });
        }
        room = room.saturating_sub(takes);
        entries.push(Listed { cookie, name: found.name.to_vec(), entry });
    }
    Ok(Reply::List { entries, end: true })
}

/// Encoded bytes of a listed entry without its name and attributes: cookie, length, inode, kind, tag.
const LISTED_LEN: usize = 8 + 8 + 8 + 4 + 1;
/// Encoded bytes of attributes: six u64, seven u32 (kind included), three times of 12 bytes.
const ATTR_LEN: usize = 6 * 8 + 7 * 4 + 3 * 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, user};

    fn page(world: &World, dir: Ino, cookie: u64, bytes: u32) -> (Vec<Listed>, bool) {
        let request = Request::List { who: Who::root(), dir, cookie, bytes, attributes: true };
        match read(&world.states[usize::from(dir.shard().0)], &request) {
            Ok(Reply::List { entries, end }) => (entries, end),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_listing_in_pages_gives_every_entry_once_and_fits_the_bytes() {
        let mut world = World::new();
        for number in 0..50 {
            world.create(Ino::ROOT, &format!("file-{number}"));
            world.mkdir(Ino::ROOT, &format!("dir-{number}"));
        }
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let (entries, end) = page(&world, Ino::ROOT, cookie, 1_000);
            let bytes: usize = entries.iter().map(|entry| sealfs_proto::encode(entry).len()).sum();
            assert!(bytes <= 1_000 && !entries.is_empty());
            cookie = entries.last().map_or(0, |entry| entry.cookie);
            for listed in entries {
                let here = listed.entry.ino.shard() == Ino::ROOT.shard();
                assert_eq!(listed.entry.attr.is_some(), here);
                seen.push(listed.name);
            }
            if end {
                break;
            }
        }
        assert_eq!(seen.len(), 100);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 100);
        assert_eq!(page(&world, Ino::ROOT, 0, 1).0.len(), 1, "one entry at least");
    }

    #[test]
    fn reads_ask_for_the_rights_that_linux_asks_for() {
        let mut world = World::new();
        let dir = world.mkdir(Ino::ROOT, "d");
        let file = world.create(dir, "f");
        world.chmod(dir, 0o711, 0);
        let state = &world.states[usize::from(dir.shard().0)];
        let lookup = |dir, name: &[u8]| Request::Lookup { who: user(1), dir, name: name.to_vec() };
        let list = Request::List { who: user(1), dir, cookie: 0, bytes: 99, attributes: false };
        assert!(read(state, &lookup(dir, b"f")).is_ok());
        assert_eq!(read(state, &list), Err(Errno::EACCES));
        assert_eq!(read(state, &lookup(dir, b"x")), Err(Errno::ENOENT));
        assert_eq!(read(state, &lookup(file, b"x")), Err(Errno::ENOTDIR));
        assert_eq!(read(state, &Request::ReadLink { ino: file }), Err(Errno::EINVAL));
        assert_eq!(read(state, &Request::Stat { ino: Ino(77) }), Err(Errno::ESTALE));
        assert_eq!(read(state, &Request::Parent { ino: dir }), Ok(Reply::Parent(Ino::ROOT)));
        assert_eq!(read(state, &Request::Sync), Err(Errno::EOPNOTSUPP));
    }
}
