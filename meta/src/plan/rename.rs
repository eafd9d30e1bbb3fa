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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, create, ino, user};
    use sealfs_proto::Request;

    fn rename(from: (Ino, &str), to: (Ino, &str), flag: RenameFlag) -> Request {
        Request::Rename {
            who: Who::root(),
            dir: from.0,
            name: from.1.into(),
            target_dir: to.0,
            target_name: to.1.into(),
            flag,
        }
    }

    /// Directories "a" to "d" in the root; they lie in different shards.
    fn dirs(world: &mut World) -> Vec<Ino> {
        ["a", "b", "c", "d"].map(|name| world.mkdir(Ino::ROOT, name)).into()
    }

    #[test]
    fn a_file_moves_between_any_two_directories_and_replaces() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        for source in &dirs {
            for target in &dirs {
                let file = world.create(*source, "file");
                let victim = world.create(*target, "victim");
                let request = rename((*source, "file"), (*target, "victim"), RenameFlag::Replace);
                assert_eq!(world.run(&request), Ok(Reply::Done));
                assert_eq!(world.lookup(*target, "victim"), Some(file));
                assert_eq!((world.lookup(*source, "file"), world.inode(victim)), (None, None));
                world.assert_sound();
                let back = rename((*target, "victim"), (*source, "new"), RenameFlag::NoReplace);
                assert_eq!(world.run(&back), Ok(Reply::Done));
                world.assert_sound();
                world.run(&crate::testing::unlink(Who::root(), *source, "new")).unwrap();
            }
        }
    }

    #[test]
    fn a_directory_moves_with_its_parent_and_the_counts_of_both() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        for target in &dirs[1..] {
            let sub = world.mkdir(dirs[0], "sub");
            world.create(sub, "file");
            let request = rename((dirs[0], "sub"), (*target, "sub"), RenameFlag::Replace);
            assert_eq!(world.run(&request), Ok(Reply::Done));
            assert_eq!(world.inode(sub).unwrap().directory().unwrap().parent, *target);
            assert_eq!((world.attr(dirs[0]).nlink, world.attr(*target).nlink), (2, 3));
            world.assert_sound();
        }
    }

    #[test]
    fn a_directory_replaces_only_an_empty_directory() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        let sub = world.mkdir(dirs[0], "sub");
        world.create(dirs[1], "file");
        let onto = |name, flag| rename((dirs[0], "sub"), (Ino::ROOT, name), flag);
        assert_eq!(world.run(&onto("b", RenameFlag::Replace)), Err(Errno::ENOTEMPTY));
        assert_eq!(world.run(&onto("b", RenameFlag::NoReplace)), Err(Errno::EEXIST));
        world.create(Ino::ROOT, "file");
        assert_eq!(world.run(&onto("file", RenameFlag::Replace)), Err(Errno::ENOTDIR));
        let file = rename((Ino::ROOT, "file"), (dirs[0], "sub"), RenameFlag::Replace);
        assert_eq!(world.run(&file), Err(Errno::EISDIR));
        assert_eq!(world.run(&onto("c", RenameFlag::Replace)), Ok(Reply::Done));
        assert_eq!((world.lookup(Ino::ROOT, "c"), world.inode(dirs[2])), (Some(sub), None));
        world.assert_sound();
    }

    #[test]
    fn no_directory_becomes_its_own_ancestor() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        let sub = world.mkdir(dirs[0], "sub");
        let deep = world.mkdir(sub, "deep");
        for target in [dirs[0], sub, deep] {
            let request = rename((Ino::ROOT, "a"), (target, "x"), RenameFlag::Replace);
            assert_eq!(world.run(&request), Err(Errno::EINVAL));
        }
        let swap = rename((sub, "deep"), (Ino::ROOT, "a"), RenameFlag::Exchange);
        assert_eq!(world.run(&swap), Err(Errno::EINVAL));
        let up = rename((sub, "deep"), (Ino::ROOT, "a"), RenameFlag::Replace);
        assert_eq!(world.run(&up), Err(Errno::ENOTEMPTY));
        world.assert_sound();
    }

    #[test]
    fn exchange_swaps_whatever_they_are() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        let (file, sub) = (world.create(dirs[0], "x"), world.mkdir(dirs[1], "y"));
        let request = rename((dirs[0], "x"), (dirs[1], "y"), RenameFlag::Exchange);
        assert_eq!(world.run(&request), Ok(Reply::Done));
        assert_eq!(world.lookup(dirs[0], "x"), Some(sub));
        assert_eq!(world.lookup(dirs[1], "y"), Some(file));
        assert_eq!((world.attr(dirs[0]).nlink, world.attr(dirs[1]).nlink), (3, 2));
        world.assert_sound();
        let none = rename((dirs[0], "x"), (dirs[1], "z"), RenameFlag::Exchange);
        assert_eq!(world.run(&none), Err(Errno::ENOENT));
    }

    #[test]
    fn two_names_of_one_inode_stay() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        let file = world.create(dirs[0], "x");
        let link = Request::Link { who: Who::root(), ino: file, dir: dirs[1], name: b"y".to_vec() };
        world.run(&link).unwrap();
        let request = rename((dirs[0], "x"), (dirs[1], "y"), RenameFlag::Replace);
        assert_eq!(world.run(&request), Ok(Reply::Done));
        assert_eq!(world.lookup(dirs[0], "x"), Some(file));
        let same = rename((dirs[0], "x"), (dirs[0], "x"), RenameFlag::NoReplace);
        assert_eq!(world.run(&same), Err(Errno::EEXIST));
        world.assert_sound();
    }

    #[test]
    fn sticky_directories_are_asked_at_both_ends() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        for dir in &dirs {
            world.chmod(*dir, 0o1777, 0);
        }
        let by = |who: Who, request: Request| match request {
            Request::Rename { dir, name, target_dir, target_name, flag, .. } => {
                Request::Rename { who, dir, name, target_dir, target_name, flag }
            }
            other => other,
        };
        ino(world.run(&create(user(1), dirs[0], "x")));
        ino(world.run(&create(user(2), dirs[1], "y")));
        let away = rename((dirs[0], "x"), (dirs[2], "z"), RenameFlag::Replace);
        assert_eq!(world.run(&by(user(2), away)), Err(Errno::EPERM));
        let onto = rename((dirs[0], "x"), (dirs[1], "y"), RenameFlag::Replace);
        assert_eq!(world.run(&by(user(1), onto.clone())), Err(Errno::EPERM));
        assert_eq!(world.run(&by(Who::root(), onto)), Ok(Reply::Done));
        world.assert_sound();
    }

    #[test]
    fn moving_a_directory_that_one_may_not_write_is_refused() {
        let mut world = World::new();
        let dirs = dirs(&mut world);
        dirs.iter().for_each(|dir| world.chmod(*dir, 0o777, 0));
        let sub = world.mkdir(dirs[0], "sub");
        world.chmod(sub, 0o755, 3);
        let request = |who, target_dir| Request::Rename {
            who,
            dir: dirs[0],
            name: b"sub".to_vec(),
            target_dir,
            target_name: b"new".to_vec(),
            flag: RenameFlag::Replace,
        };
        assert_eq!(world.run(&request(user(1), dirs[1])), Err(Errno::EACCES));
        assert_eq!(world.run(&request(user(1), dirs[0])), Ok(Reply::Done), "its .. stays");
    }
}
