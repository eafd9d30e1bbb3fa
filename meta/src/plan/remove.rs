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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Unlinked;
    use crate::testing::{World, create, ino, rmdir, unlink, user};
    use sealfs_proto::{Reply, Request};

    #[test]
    fn the_last_unlink_of_a_closed_file_leaves_nothing() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        assert_eq!(world.run(&unlink(Who::root(), Ino::ROOT, "a")), Ok(Reply::Done));
        assert_eq!((world.inode(file), world.lookup(Ino::ROOT, "a")), (None, None));
        assert_eq!(world.run(&unlink(Who::root(), Ino::ROOT, "a")), Err(Errno::ENOENT));
        world.assert_sound();
    }

    #[test]
    fn an_unlinked_file_stays_until_it_is_reclaimed() {
        let mut world = World::new();
        world.reclaims = false;
        let file = world.create(Ino::ROOT, "a");
        world.run(&unlink(Who::root(), Ino::ROOT, "a")).unwrap();
        assert_eq!(world.attr(file).nlink, 0);
        assert_eq!(world.states[0].unlinked().collect::<Vec<_>>(), [(file, Unlinked::Waiting)]);
        let link =
            Request::Link { who: Who::root(), ino: file, dir: Ino::ROOT, name: b"b".to_vec() };
        assert_eq!(world.run(&link), Err(Errno::ENOENT), "it had its last name");
        world.assert_sound();
    }

    #[test]
    fn a_large_file_is_forgotten_when_all_nodes_have_dropped_it() {
        let mut world = World::new();
        world.reclaims = false;
        let file = world.create(Ino::ROOT, "a");
        world.run(&Request::Raise { ino: file, bound: 1 << 22 }).unwrap();
        world.run(&unlink(Who::root(), Ino::ROOT, "a")).unwrap();
        let record = crate::plan_reclaim(&world.states[0], file, crate::testing::at(9)).unwrap();
        let applied = crate::apply(world.state(file.shard()), &record);
        let reclaim = crate::Effect::Reclaim { ino: file, chunk_size: 1 << 20 };
        assert_eq!(applied.effects, [reclaim]);
        assert_eq!(world.states[0].unlinked().collect::<Vec<_>>(), [(file, Unlinked::Reclaiming)]);
        assert_eq!(world.states[0].live(file), Err(Errno::ESTALE));
        assert!(crate::plan_reclaim(&world.states[0], file, crate::testing::at(9)).is_err());
    }

    #[test]
    fn rmdir_takes_empty_directories_only() {
        let mut world = World::new();
        for name in ["a", "b", "c", "d"] {
            let dir = world.mkdir(Ino::ROOT, name);
            let file = world.create(dir, "file");
            let full = world.run(&rmdir(Who::root(), Ino::ROOT, name));
            assert_eq!(full, Err(Errno::ENOTEMPTY));
            assert_eq!(world.run(&unlink(Who::root(), Ino::ROOT, name)), Err(Errno::EISDIR));
            assert_eq!(world.run(&rmdir(Who::root(), dir, "file")), Err(Errno::ENOTDIR));
            world.run(&unlink(Who::root(), dir, "file")).unwrap();
            assert_eq!(world.run(&rmdir(Who::root(), Ino::ROOT, name)), Ok(Reply::Done));
            assert_eq!((world.inode(dir), world.inode(file)), (None, None));
        }
        assert_eq!(world.attr(Ino::ROOT).nlink, 2);
        world.assert_sound();
    }

    #[test]
    fn nothing_is_made_in_a_directory_that_is_gone() {
        let mut world = World::new();
        world.reclaims = false;
        let dir = world.mkdir(Ino::ROOT, "a");
        world.run(&rmdir(Who::root(), Ino::ROOT, "a")).unwrap();
        assert_eq!(world.run(&create(Who::root(), dir, "x")), Err(Errno::ENOENT));
        let unnamed = Request::CreateUnnamed { who: Who::root(), dir, mode: 0, umask: 0 };
        assert_eq!(world.run(&unnamed), Err(Errno::ENOENT));
        world.assert_sound();
    }

    #[test]
    fn a_sticky_directory_lets_only_owners_remove() {
        let mut world = World::new();
        let dir = world.mkdir(Ino::ROOT, "tmp");
        world.chmod(dir, 0o1777, 0);
        ino(world.run(&create(user(1), dir, "mine")));
        let mkdir =
            Request::Mkdir { who: user(1), dir, name: b"sub".to_vec(), mode: 0o777, umask: 0 };
        ino(world.run(&mkdir));
        assert_eq!(world.run(&unlink(user(2), dir, "mine")), Err(Errno::EPERM));
        assert_eq!(world.run(&rmdir(user(2), dir, "sub")), Err(Errno::EPERM));
        assert_eq!(world.run(&unlink(user(1), dir, "mine")), Ok(Reply::Done));
        assert_eq!(world.run(&rmdir(user(1), dir, "sub")), Ok(Reply::Done));
        world.assert_sound();
    }
}
