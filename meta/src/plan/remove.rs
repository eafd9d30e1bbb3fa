//! unlink(2) and rmdir(2).

use sealfs_proto::{Errno, Ino, Kind, Part, Who};

use super::{Asked, Planned, Refused, Shares};
use crate::access::sticky;
use crate::{Answer, State, part};

/// What may be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    File,
    Directory,
}

pub(super) fn plan(
    state: &State,
    asked: &Asked,
    who: &Who,
    dir: Ino,
    name: &[u8],
    removal: Removal,
) -> Result<Planned, Refused> {
    let entry = part::entry(state, who, dir, name)?.ok_or(Errno::ENOENT)?;
    let (ino, kind) = (entry.ino, entry.kind);
    match (removal, kind) {
        (Removal::File, Kind::Directory) => return Err(Errno::EISDIR.into()),
        (Removal::Directory, kind) if kind != Kind::Directory => return Err(Errno::ENOTDIR.into()),
        _ => {}
    }
    let sticky = sticky(&state.live(dir)?.attr, who);
    let mut shares = Shares::default();
    let name = name.to_vec();
    shares.add(state.shard, Part::RemoveEntry { who: who.clone(), dir, name, ino, kind });
    shares.add(ino.shard(), last_of(ino, kind, sticky));
    asked.parts(state, shares, Answer::Done)
}

/// What an inode loses with an entry.
pub(super) const fn last_of(ino: Ino, kind: Kind, sticky: Option<u32>) -> Part {
    match kind {
        Kind::Directory => Part::EndDirectory { ino, sticky },
        _ => Part::DropLink { ino, sticky },
    }
}
