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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, unlink};
    use sealfs_proto::{Reply, Request};

    fn link(ino: Ino, dir: Ino, name: &str) -> Request {
        Request::Link { who: Who::root(), ino, dir, name: name.into() }
    }

    #[test]
    fn a_link_from_any_shard_counts() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "file");
        for (at, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let dir = world.mkdir(Ino::ROOT, name);
            let reply = world.run(&link(file, dir, "link")).unwrap();
            let Reply::Entry(entry) = reply else { panic!("{reply:?}") };
            assert_eq!((entry.ino, entry.kind), (file, Kind::File));
            assert_eq!(entry.attr.is_some(), dir.shard() == file.shard());
            assert_eq!(world.attr(file).nlink, 2 + at as u32);
            world.assert_sound();
        }
        let dir = world.lookup(Ino::ROOT, "b").unwrap();
        world.run(&unlink(Who::root(), dir, "link")).unwrap();
        assert_eq!(world.attr(file).nlink, 4);
        world.assert_sound();
    }

    #[test]
    fn the_kind_of_an_inode_elsewhere_is_told_when_prepared() {
        let mut world = World::new();
        let dirs: Vec<Ino> = ["a", "b", "c", "d"].map(|name| world.mkdir(Ino::ROOT, name)).into();
        let new = sealfs_proto::New::Symlink(b"to".to_vec());
        let (who, name) = (Who::root(), b"s".to_vec());
        let make = Request::Create { who, dir: dirs[0], name, new, mode: 0, umask: 0, open: false };
        let symlink = crate::testing::ino(world.run(&make));
        for dir in dirs {
            world.run(&link(symlink, dir, "link")).unwrap();
        }
        world.assert_sound();
    }

    #[test]
    fn directories_and_the_gone_have_no_further_names() {
        let mut world = World::new();
        for name in ["a", "b", "c", "d"] {
            let dir = world.mkdir(Ino::ROOT, name);
            assert_eq!(world.run(&link(dir, Ino::ROOT, "x")), Err(Errno::EPERM));
            let gone = Ino::new(dir.shard(), 4_000);
            assert_eq!(world.run(&link(gone, Ino::ROOT, "x")), Err(Errno::ENOENT));
            assert_eq!(world.run(&link(dir, Ino::ROOT, name)), Err(Errno::EEXIST));
        }
        world.assert_sound();
    }
}
