//! link(2).

use sealfs_proto::{Entry, Errno, Ino, Kind, Part, Who};

use super::{Asked, Planned, Refused, Shares};
use crate::{Answer, State, part};

pub(super) fn plan(
    state: &State,
    asked: &Asked,
    who: &Who,
    ino: Ino,
    dir: Ino,
    name: &[u8],
) -> Result<Planned, Refused> {
    if part::entry(state, who, dir, name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    // An inode elsewhere tells its kind when it is prepared, and refuses if it is a directory.
    let kind = match state.inode(ino) {
        Some(inode) => inode.attr.kind,
        None => Kind::File,
    };
    let mut shares = Shares::default();
    let name = name.to_vec();
    shares.add(ino.shard(), Part::AddLink { ino });
    shares.add(state.shard, Part::AddEntry { who: who.clone(), dir, name, ino, kind });
    asked.parts(state, shares, Answer::Entry(Entry { ino, kind, attr: None }))
}
