//! Attributes: chmod, chown, utimensat, truncate, and open with O_TRUNC.

use sealfs_proto::{Access, Attr, Errno, Ino, Kind, Reply, SetAttr, SetTime, Time, Who, limits};

use super::{Asked, Planned, Refused};
use crate::access::{
    CAPABILITY, WRITE, acl_for_mode, allowed, drop_set_id, owns, require, strip_foreign_sgid,
};
use crate::{AttrChange, Body, Change, Inode, State};

pub(super) fn plan(
    state: &State,
    asked: &Asked,
    who: &Who,
    ino: Ino,
    set: &SetAttr,
    opened: bool,
) -> Result<Planned, Refused> {
    let inode = state.live(ino)?;
    check_owner(inode, who, set)?;
    check_times(inode, who, set)?;
    let cut = match set.size {
        Some(size) => check_size(inode, who, size, opened)?,
        None => false,
    };
    let time = |set: SetTime| -> Time {
        match set {
            SetTime::Now => asked.now,
            SetTime::At(time) => time,
        }
    };
    let mode = new_mode(&inode.attr, who, set);
    let loses_capability = set.uid.is_some() || set.gid.is_some() || kills(who, set);
    let set = AttrChange {
        mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        cut,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time).or(set.size.map(|_| asked.now)),
        next_generation: set.size.is_some() || set.mtime.is_some(),
        acl: set.mode.and(mode).and_then(|mode| acl_for_mode(&inode.xattrs, mode)),
        drop_capability: loses_capability && inode.xattrs.contains_key(CAPABILITY),
    };
    Ok(asked.record(Change::Attr { ino, set }))
}

/// Checks what open(2) asks for; with `truncate` the file is also cut to nothing.
pub(super) fn plan_open(
    state: &State,
    asked: &Asked,
    who: &Who,
    ino: Ino,
    access: Access,
    truncate: bool,
) -> Result<Planned, Refused> {
    let inode = state.live(ino)?;
    match inode.attr.kind {
        Kind::Symlink => return Err(Errno::ELOOP.into()),
        Kind::Directory if access.write || truncate => return Err(Errno::EISDIR.into()),
        _ => {}
    }
    require(inode, who, Access { write: access.write || truncate, ..access })?;
    if truncate && inode.attr.kind == Kind::File {
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        return plan(state, asked, who, ino, &set, true);
    }
    Ok(Planned::Reply(Reply::Attr(inode.attr.clone())))
}

fn check_owner(inode: &Inode, who: &Who, set: &SetAttr) -> Result<(), Errno> {
    let attr = &inode.attr;
    let same_uid = set.uid.is_none_or(|uid| uid == attr.uid);
    let own_gid = set.gid.is_none_or(|gid| gid == attr.gid || who.in_group(gid));
    let changes_owner = set.uid.is_some() || set.gid.is_some();
    if changes_owner && who.uid != 0 && !(who.uid == attr.uid && same_uid && own_gid) {
        return Err(Errno::EPERM);
    }
    match set.mode {
        Some(_) if !owns(who, attr) => Err(Errno::EPERM),
        Some(_) if attr.kind == Kind::Symlink => Err(Errno::EOPNOTSUPP),
        _ => Ok(()),
    }
}

/// Who may write may say "now"; only the owner may say when.
fn check_times(inode: &Inode, who: &Who, set: &SetAttr) -> Result<(), Errno> {
    let asks = |wanted: fn(&SetTime) -> bool| [set.atime, set.mtime].iter().flatten().any(wanted);
    if owns(who, &inode.attr) {
        return Ok(());
    }
    if asks(|time| matches!(time, SetTime::At(_))) {
        return Err(Errno::EPERM);
    }
    let now = asks(|time| matches!(time, SetTime::Now));
    if now && !allowed(inode, who, WRITE) { Err(Errno::EACCES) } else { Ok(()) }
}

/// Whether the new size needs a cut: unless nothing can lie beyond it.
fn check_size(inode: &Inode, who: &Who, size: u64, opened: bool) -> Result<bool, Refused> {
    let attr = &inode.attr;
    let Body::File { cut } = inode.body else {
        let directory = attr.kind == Kind::Directory;
        return Err(if directory { Errno::EISDIR } else { Errno::EINVAL }.into());
    };
    if !opened {
        require(inode, who, WRITE)?;
    }
    if size > limits::FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    if cut.is_some() {
        return Err(Refused::Busy);
    }
    // `blocks` may be wrong (who died has not settled): only the bound says where no data is.
    Ok(size < attr.bound)
}

/// Whether set-id bits go because the data changes.
const fn kills(who: &Who, set: &SetAttr) -> bool {
    set.kill_suid_sgid || (set.size.is_some() && who.uid != 0)
}

/// The mode after the change, if it changes: what was asked for, less the bits that a change of owner or data takes away.
fn new_mode(attr: &Attr, who: &Who, set: &SetAttr) -> Option<u32> {
    if let Some(mode) = set.mode {
        return Some(strip_foreign_sgid(mode & 0o7777, set.gid.unwrap_or(attr.gid), who));
    }
    if attr.kind == Kind::Directory {
        return None;
    }
    let mut mode = attr.mode;
    if set.uid.is_some() || set.gid.is_some() {
        mode = strip_foreign_sgid(drop_set_id(mode), attr.gid, who);
    }
    if kills(who, set) {
        mode = drop_set_id(mode);
    }
    (mode != attr.mode).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, asked, at, user};
    use crate::{Effect, Planned};
    use sealfs_proto::Request;

    fn mode(mode: u32) -> SetAttr {
        SetAttr { mode: Some(mode), ..SetAttr::default() }
    }

    fn owner(uid: Option<u32>, gid: Option<u32>) -> SetAttr {
        SetAttr { uid, gid, ..SetAttr::default() }
    }

    fn size(size: u64) -> SetAttr {
        SetAttr { size: Some(size), ..SetAttr::default() }
    }

    #[test]
    fn only_the_owner_changes_modes_and_only_root_gives_files_away() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.chmod(file, 0o644, 1);
        let member = Who { groups: vec![5], ..user(1) };
        assert_eq!(world.set(user(2), file, mode(0o777)), Err(Errno::EPERM));
        assert_eq!(world.set(user(1), file, owner(Some(2), None)), Err(Errno::EPERM));
        assert_eq!(world.set(user(1), file, owner(None, Some(5))), Err(Errno::EPERM));
        assert!(world.set(member, file, owner(Some(1), Some(5))).is_ok());
        assert!(world.set(Who::root(), file, owner(Some(9), None)).is_ok());
        assert_eq!((world.attr(file).uid, world.attr(file).gid), (9, 5));
    }

    #[test]
    fn a_new_owner_loses_the_set_id_bits_but_not_of_directories() {
        let mut world = World::new();
        let (file, dir) = (world.create(Ino::ROOT, "a"), world.mkdir(Ino::ROOT, "d"));
        world.chmod(file, 0o6755, 1);
        world.chmod(dir, 0o6755, 1);
        world.set(Who::root(), file, owner(Some(2), None)).unwrap();
        world.set(Who::root(), dir, owner(Some(2), None)).unwrap();
        assert_eq!((world.attr(file).mode, world.attr(dir).mode), (0o755, 0o6755));
        assert!(world.set(user(2), dir, mode(0o2755)).is_ok());
        assert_eq!(world.attr(dir).mode, 0o755, "group 1 is not one of user 2's");
    }

    #[test]
    fn who_may_write_says_now_and_the_owner_says_when() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.chmod(file, 0o662, 1);
        let set = |mtime| SetAttr { mtime: Some(mtime), ..SetAttr::default() };
        assert_eq!(world.set(user(2), file, set(SetTime::At(at(3)))), Err(Errno::EPERM));
        assert!(world.set(user(2), file, set(SetTime::Now)).is_ok());
        assert!(world.set(user(1), file, set(SetTime::At(at(3)))).is_ok());
        assert_eq!(world.attr(file).mtime, at(3));
        world.set(Who::root(), file, mode(0o660)).unwrap();
        assert_eq!(world.set(user(2), file, set(SetTime::Now)), Err(Errno::EACCES));
        world.assert_sound();
    }

    #[test]
    fn a_truncation_asks_for_what_truncate_asks_for() {
        let mut world = World::new();
        let (file, dir) = (world.create(Ino::ROOT, "a"), world.mkdir(Ino::ROOT, "d"));
        world.chmod(file, 0o6755, 1);
        assert_eq!(world.set(Who::root(), dir, size(0)), Err(Errno::EISDIR));
        assert_eq!(world.set(user(2), file, size(5)), Err(Errno::EACCES));
        assert_eq!(world.set(user(1), file, size(u64::MAX)), Err(Errno::EFBIG));
        let opened = Request::SetAttr { who: user(2), ino: file, set: size(5), opened: true };
        assert!(world.run(&opened).is_ok());
        assert_eq!((world.attr(file).size, world.attr(file).mode), (5, 0o755));
    }

    #[test]
    fn a_cut_is_begun_unless_nothing_can_lie_beyond() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let cuts = |world: &mut World, to: u64| {
            let asked = world.asked();
            let set = size(to);
            let request = Request::SetAttr { who: Who::root(), ino: file, set, opened: true };
            match crate::plan(&world.states[0], &request, &asked) {
                Ok(Planned::Record(record)) => world.append(file.shard(), record).effects,
                other => panic!("{other:?}"),
            }
        };
        let cut = Effect::Cut { ino: file, from: 10, bound: 1 << 20, chunk_size: 1 << 20 };
        assert_eq!(cuts(&mut world, 10), [cut], "whatever `blocks` says");
        let change = Change::CutDone { ino: file, blocks: 0 };
        world.append(file.shard(), crate::Record { origin: None, now: at(0), change });
        assert_eq!(cuts(&mut world, 1 << 20), []);
        world.run(&Request::Raise { ino: file, bound: 1 << 22 }).unwrap();
        let cut = Effect::Cut { ino: file, from: 1 << 21, bound: 1 << 22, chunk_size: 1 << 20 };
        assert_eq!(cuts(&mut world, 1 << 21), [cut], "writes may be on their way");
        assert_eq!(cuts(&mut world, 1 << 22), []);
        assert_eq!(world.attr(file).bound, 1 << 22, "it never falls");
        world.assert_sound();
    }

    #[test]
    fn while_a_cut_is_pending_the_file_does_not_grow() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.run(&Request::Raise { ino: file, bound: 1 << 22 }).unwrap();
        let plan = |request: &Request, state: &mut State, apply: bool| {
            let planned = crate::plan(state, request, &asked(9))?;
            if let (Planned::Record(record), true) = (&planned, apply) {
                crate::apply(state, record);
            }
            Ok::<_, Refused>(planned)
        };
        let mut state = world.states[0].clone();
        let set =
            |to| Request::SetAttr { who: Who::root(), ino: file, set: size(to), opened: true };
        plan(&set(100), &mut state, true).unwrap();
        assert_eq!((state.cut(file), state.cuts().count()), (Some(100), 1));
        let settle =
            |size| Request::Settle { ino: file, generation: 2, size, blocks: 0, wrote: true };
        for request in [
            set(0),
            set(1 << 30),
            settle(101),
            Request::Raise { ino: file, bound: 1 << 23 },
            Request::Reserve { ino: file, length: 1 },
        ] {
            assert_eq!(plan(&request, &mut state, false), Err(Refused::Busy), "{request:?}");
        }
        assert!(plan(&settle(100), &mut state, false).is_ok());

        let change = Change::CutDone { ino: file, blocks: -8 };
        crate::apply(&mut state, &crate::Record { origin: None, now: at(0), change });
        assert_eq!(state.cut(file), None);
        assert!(plan(&settle(101), &mut state, false).is_ok());
    }

    #[test]
    fn open_checks_and_truncates() {
        let mut world = World::new();
        let (file, dir) = (world.create(Ino::ROOT, "a"), world.mkdir(Ino::ROOT, "d"));
        world.set(Who::root(), file, size(7)).unwrap();
        world.chmod(file, 0o644, 1);
        let open = |ino, uid, truncate| Request::Open {
            who: user(uid),
            ino,
            access: crate::access::READ,
            truncate,
        };
        assert!(world.run(&open(file, 2, false)).is_ok());
        assert_eq!(world.run(&open(file, 2, true)), Err(Errno::EACCES));
        assert_eq!(world.run(&open(dir, 0, true)), Err(Errno::EISDIR));
        assert!(world.run(&open(file, 1, true)).is_ok());
        assert_eq!(world.attr(file).size, 0);
        world.assert_sound();
    }
}
