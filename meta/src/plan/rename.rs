//! renameat2(2).
//!
//! The source directory's shard coordinates. Up to four shards take part: the two directories', the moved inode's and the
//! replaced (or exchanged) one's. What the target's shard knows is asked for first ([`Question::Target`]); its parts repeat
//! what was answered, so that a stale answer is refused when prepared and planned again.
//!
//! A directory that gets another parent must not become its own ancestor: under the cluster-wide rename lock the server
//! walks from the new parent to the root ([`Question::Ancestry`]). All moves between parents take that lock, so no other
//! move changes the path meanwhile.

use sealfs_proto::{Attr, Errno, Ino, Kind, Part, RenameFlag, Reply, Who};

use super::remove::last_of;
use super::{Asked, Planned, Question, Refused, Shares, Target};
use crate::access::sticky;
use crate::{Answer, State, part};

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) dir: Ino,
    pub(super) name: &'a [u8],
}

/// An entry's inode on its way, and who must own it to leave a sticky directory.
#[derive(Clone, Copy)]
struct Passenger {
    ino: Ino,
    kind: Kind,
    sticky: Option<u32>,
}

pub(super) fn plan(
    state: &State,
    asked: &Asked,
    who: &Who,
    source: Place<'_>,
    target: Place<'_>,
    flag: RenameFlag,
) -> Result<Planned, Refused> {
    part::check_name(target.name)?;
    let found = part::entry(state, who, source.dir, source.name)?.ok_or(Errno::ENOENT)?;
    let source_dir = &state.live(source.dir)?.attr;
    let moved = Passenger { ino: found.ino, kind: found.kind, sticky: sticky(source_dir, who) };
    let Some(Target { dir: target_dir, entry }) = look_at_target(state, asked, who, target)? else {
        let Place { dir, name } = target;
        return Ok(Planned::Ask(Question::Target { dir, name: name.to_vec() }));
    };
    let met = entry.map(|(ino, kind)| Passenger { ino, kind, sticky: sticky(&target_dir, who) });
    check_pair(moved, met, &target_dir, flag)?;
    if met.is_some_and(|met| met.ino == moved.ino) {
        return Ok(Planned::Reply(Reply::Done));
    }
    let walks = walks(source, target, moved, met, flag)?;
    if !walks.is_empty() && !asked.facts.ancestry {
        // What can be refused here is refused before anybody takes the lock.
        shares(state, asked, who, (source, target), moved, met, flag)?;
        return Ok(Planned::Ask(Question::Ancestry { walks }));
    }
    shares(state, asked, who, (source, target), moved, met, flag)
}

/// The target's directory and entry: from the state, or as it was answered; `None` if it must be asked for.
fn look_at_target(
    state: &State,
    asked: &Asked,
    who: &Who,
    target: Place<'_>,
) -> Result<Option<Target>, Errno> {
    if target.dir.shard() != state.shard {
        return Ok(asked.facts.target.clone());
    }
    let entry = part::entry(state, who, target.dir, target.name)?;
    let entry = entry.map(|entry| (entry.ino, entry.kind));
    Ok(Some(Target { dir: state.live(target.dir)?.attr.clone(), entry }))
}

fn check_pair(
    moved: Passenger,
    met: Option<Passenger>,
    target_dir: &Attr,
    flag: RenameFlag,
) -> Result<(), Errno> {
    if target_dir.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let is_directory = |passenger: Passenger| passenger.kind == Kind::Directory;
    match (flag, met) {
        (RenameFlag::NoReplace, Some(_)) => Err(Errno::EEXIST),
        (RenameFlag::Exchange, None) => Err(Errno::ENOENT),
        (RenameFlag::Replace, Some(met)) if met.ino != moved.ino => {
            match (is_directory(moved), is_directory(met)) {
                (true, false) => Err(Errno::ENOTDIR),
                (false, true) => Err(Errno::EISDIR),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// The walks that must not meet: from a moved directory's new parent to the directory itself.
fn walks(
    source: Place<'_>,
    target: Place<'_>,
    moved: Passenger,
    met: Option<Passenger>,
    flag: RenameFlag,
) -> Result<Vec<(Ino, Ino)>, Errno> {
    let mut walks = Vec::new();
    if source.dir == target.dir {
        return Ok(walks);
    }
    if moved.kind == Kind::Directory {
        walks.push((target.dir, moved.ino));
    }
    if let (RenameFlag::Exchange, Some(Passenger { ino, kind: Kind::Directory, .. })) = (flag, met)
    {
        walks.push((source.dir, ino));
    }
    if walks.iter().any(|(from, forbidden)| from == forbidden) {
        return Err(Errno::EINVAL);
    }
    Ok(walks)
}

fn shares(
    state: &State,
    asked: &Asked,
    who: &Who,
    (source, target): (Place<'_>, Place<'_>),
    moved: Passenger,
    met: Option<Passenger>,
    flag: RenameFlag,
) -> Result<Planned, Refused> {
    let other_parent = source.dir != target.dir;
    let goes = |passenger: Passenger, to: Ino| {
        let parent = (other_parent && passenger.kind == Kind::Directory).then_some(to);
        let Passenger { ino, sticky, .. } = passenger;
        Part::Moved { who: who.clone(), ino, parent, sticky }
    };
    let mut shares = Shares::default();
    match (flag, met) {
        (RenameFlag::Exchange, Some(met)) => {
            shares.add(source.dir.shard(), swap(who, source, moved, met));
            shares.add(target.dir.shard(), swap(who, target, met, moved));
            shares.add(met.ino.shard(), goes(met, source.dir));
        }
        (_, met) => {
            let Passenger { ino, kind, .. } = moved;
            let (dir, name) = (source.dir, source.name.to_vec());
            let removed = Part::RemoveEntry { who: who.clone(), dir, name, ino, kind };
            shares.add(source.dir.shard(), removed);
            let (dir, name) = (target.dir, target.name.to_vec());
            shares.add(
                target.dir.shard(),
                match met {
                    Some(met) => swap(who, target, met, moved),
                    None => Part::AddEntry { who: who.clone(), dir, name, ino, kind },
                },
            );
            if let Some(met) = met {
                shares.add(met.ino.shard(), last_of(met.ino, met.kind, met.sticky));
            }
        }
    }
    shares.add(moved.ino.shard(), goes(moved, target.dir));
    asked.parts(state, shares, Answer::Done)
}

fn swap(who: &Who, place: Place<'_>, from: Passenger, to: Passenger) -> Part {
    Part::SwapEntry {
        who: who.clone(),
        dir: place.dir,
        name: place.name.to_vec(),
        ino: from.ino,
        kind: from.kind,
        to: to.ino,
        to_kind: to.kind,
    }
}
