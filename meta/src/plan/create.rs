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
        Request::CreateUnnamed { who, dir, mode, umask } => {
            unnamed(state, asked, who, *dir, (*mode, *umask))
        }
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
    (mode, umask): (u32, u32),
) -> Result<Planned, Refused> {
    let (parent, _) = state.live_directory(dir)?;
    require(parent, who, CHANGE)?;
    if parent.attr.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    let number = state.numbers.inode(0).ok_or(Refused::Numbers)?;
    let Inherited { gid, mode, xattrs } = inherit(parent, who, Kind::File, mode, umask);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, at, create, file, ino, user};
    use crate::{Effect, Kept};
    use sealfs_proto::{Reply, Xattr};

    fn mkdir(who: Who, dir: Ino, name: &[u8], mode: u32) -> Request {
        Request::Mkdir { who, dir, name: name.to_vec(), mode, umask: 0o22 }
    }

    #[test]
    fn create_makes_entry_and_inode_in_the_directorys_shard_with_one_record() {
        let mut world = World::new();
        let before = world.states[0].number();
        let file = world.create(Ino::ROOT, "a");
        assert_eq!((world.states[0].number(), file.shard()), (before + 1, Ino::ROOT.shard()));
        let attr = world.attr(file);
        assert_eq!((attr.nlink, attr.mode, attr.size, attr.bound), (1, 0o666, 0, 1 << 20));
        assert_eq!(world.run(&create(Who::root(), Ino::ROOT, "a")), Err(Errno::EEXIST));
        let root = world.attr(Ino::ROOT);
        assert_eq!((root.nlink, root.mtime), (2, at(1)));
    }

    #[test]
    fn mkdir_makes_the_inode_where_the_path_hashes_to() {
        let mut world = World::new();
        let mut shards = std::collections::BTreeSet::new();
        for name in ["a", "b", "c", "d", "e", "f"] {
            let dir = world.mkdir(Ino::ROOT, name);
            assert_eq!(dir.shard(), directory_shard(Ino::ROOT, name.as_bytes(), 4));
            assert_eq!(world.inode(dir).unwrap().directory().unwrap().parent, Ino::ROOT);
            shards.insert(dir.shard());
        }
        assert!(shards.len() > 1, "the names spread");
        assert_eq!(world.attr(Ino::ROOT).nlink, 2 + 6);
        world.assert_sound();
    }

    #[test]
    fn mkdir_answers_with_the_attributes_of_the_new_directory() {
        let mut world = World::new();
        let reply = world.run(&mkdir(user(5), Ino::ROOT, b"a", 0o777)).unwrap();
        let Reply::Entry(entry) = &reply else { panic!("{reply:?}") };
        let attr = entry.attr.as_ref().unwrap();
        assert_eq!((attr.ino, attr.mode, attr.uid, attr.nlink), (entry.ino, 0o755, 5, 2));
        assert_eq!(world.kept(Ino::ROOT.shard(), world.sequence), Kept::Reply(&reply));
    }

    #[test]
    fn a_set_gid_directory_hands_its_group_down() {
        let mut world = World::new();
        let dir = world.mkdir(Ino::ROOT, "a");
        world.chmod(dir, 0o2777, 9);
        let sub = ino(world.run(&mkdir(user(5), dir, b"sub", 0o755)));
        let file = ino(world.run(&create(user(5), dir, "file")));
        assert_eq!((world.attr(sub).gid, world.attr(sub).mode), (9, 0o2755));
        assert_eq!((world.attr(file).gid, world.attr(file).mode), (9, 0o666));
    }

    #[test]
    fn a_default_acl_is_inherited_instead_of_the_umask() {
        let mut world = World::new();
        let dir = world.mkdir(Ino::ROOT, "a");
        // Owner rwx, user 7 rwx, group r-x, mask rwx, others ---.
        let items =
            [(1, 7, u32::MAX), (2, 7, 7), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in items {
            value.extend_from_slice(&u16::to_le_bytes(tag));
            value.extend_from_slice(&u16::to_le_bytes(permissions));
            value.extend_from_slice(&u32::to_le_bytes(id));
        }
        let xattr = Xattr { name: b"system.posix_acl_default".to_vec(), value };
        let (who, flag) = (Who::root(), sealfs_proto::XattrFlag::Any);
        let set = Request::XattrSet { who, ino: dir, xattr, flag, clear_sgid: false };
        assert_eq!(world.run(&set), Ok(Reply::Done));
        let file = ino(world.run(&create(Who::root(), dir, "file")));
        assert_eq!(world.attr(file).mode, 0o660);
        assert!(world.inode(file).unwrap().xattrs.contains_key(&b"system.posix_acl_access"[..]));
        let sub = ino(world.run(&mkdir(Who::root(), dir, b"sub", 0o777)));
        assert_eq!((world.attr(sub).mode, world.inode(sub).unwrap().xattrs.len()), (0o770, 2));
        let open = Request::Open {
            who: user(7),
            ino: file,
            access: crate::access::WRITE,
            truncate: false,
        };
        assert!(world.run(&open).is_ok(), "the list grants it");
        world.assert_sound();
    }

    #[test]
    fn errors_are_those_of_linux() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "file");
        let dir = world.mkdir(Ino::ROOT, "closed");
        world.chmod(dir, 0o700, 1);
        let long = "n".repeat(256);
        let mut fails = |request, errno| assert_eq!(world.run(&request), Err(errno), "{request:?}");
        fails(create(Who::root(), file, "x"), Errno::ENOTDIR);
        fails(create(user(2), dir, "x"), Errno::EACCES);
        fails(create(Who::root(), Ino::ROOT, &long), Errno::ENAMETOOLONG);
        fails(create(Who::root(), Ino::ROOT, "a/b"), Errno::EINVAL);
        fails(create(Who::root(), Ino::new(dir.shard(), 77), "x"), Errno::ESTALE);
        let special = |kind, rdev, who| {
            let (new, name) = (New::Special(kind, rdev), b"s".to_vec());
            Request::Create { who, dir: Ino::ROOT, name, new, mode: 0o600, umask: 0, open: false }
        };
        fails(special(Kind::BlockDevice, 5, user(2)), Errno::EPERM);
        fails(special(Kind::Directory, 0, Who::root()), Errno::EINVAL);
        assert!(world.run(&special(Kind::Fifo, 0, user(2))).is_ok());
    }

    #[test]
    fn an_unnamed_file_is_reclaimed_unless_linked() {
        let mut world = World::new();
        let unnamed =
            Request::CreateUnnamed { who: user(1), dir: Ino::ROOT, mode: 0o600, umask: 0 };
        let (kept, lost) = (ino(world.run(&unnamed)), ino(world.run(&unnamed)));
        let link = Request::Link { who: user(1), ino: kept, dir: Ino::ROOT, name: b"k".to_vec() };
        assert_eq!(ino(world.run(&link)), kept);
        assert_eq!(world.attr(kept).nlink, 1);
        assert!(crate::plan_reclaim(&world.states[0], kept, at(9)).is_err());
        let record = crate::plan_reclaim(&world.states[0], lost, at(9)).unwrap();
        let applied = world.append(lost.shard(), record);
        assert_eq!((applied.effects, world.inode(lost)), (vec![Effect::Dropped(lost)], None));
        world.assert_sound();
    }

    #[test]
    fn an_unnamed_file_has_the_mode_that_a_named_one_would_have() {
        let mut world = World::new();
        let with_acl = world.mkdir(Ino::ROOT, "d");
        // rwx for all, which takes the umask's place.
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for tag in [1_u16, 4, 32] {
            acl.extend([tag.to_le_bytes(), 7_u16.to_le_bytes()].concat());
            acl.extend(u32::MAX.to_le_bytes());
        }
        let xattr = Xattr { name: b"system.posix_acl_default".to_vec(), value: acl };
        let (who, flag) = (Who::root(), sealfs_proto::XattrFlag::Any);
        let set = Request::XattrSet { who, ino: with_acl, xattr, flag, clear_sgid: false };
        world.run(&set).unwrap();
        for (dir, mode) in [(Ino::ROOT, 0o640), (with_acl, 0o666)] {
            let (who, umask) = (Who::root(), 0o027);
            let unnamed = Request::CreateUnnamed { who: who.clone(), dir, mode: 0o666, umask };
            let (new, name) = (New::File, b"named".to_vec());
            let named = Request::Create { who, dir, name, new, mode: 0o666, umask, open: false };
            let [unnamed, named] = [unnamed, named].map(|request| ino(world.run(&request)));
            assert_eq!((world.attr(unnamed).mode, world.attr(named).mode), (mode, mode));
        }
    }

    #[test]
    fn numbers_are_drawn_only_below_a_synced_range() {
        let mut state = State::with_root(crate::RootOptions::default(), at(0));
        let asked = crate::testing::asked(1);
        let request = create(Who::root(), Ino::ROOT, "a");
        assert_eq!(crate::plan(&state, &request, &asked), Err(Refused::Numbers));
        let change = Change::Range(state.range().unwrap());
        crate::apply(&mut state, &crate::Record { origin: None, now: at(0), change });
        assert_eq!(crate::plan(&state, &request, &asked), Err(Refused::Numbers));
        state.range_synced();
        assert!(crate::plan(&state, &request, &asked).is_ok());
        let first = state.numbers.inode;
        state.recovered();
        assert!(
            state.numbers.inode >= first + 65_536,
            "what a lost tail may have drawn is skipped"
        );
        assert_eq!(crate::plan(&state, &request, &asked), Err(Refused::Numbers));
    }

    #[test]
    fn a_directory_lists_its_attributes_within_the_bytes_asked_for() {
        let attr = file(|_| ()).attr;
        assert_eq!(sealfs_proto::encode(&attr).len(), 112, "what read::ATTR_LEN says");
    }
}
