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
    // Without chunks elsewhere `blocks` is exact. Else writes may be on the way to be settled.
    let empty = inode.is_local() && attr.blocks == 0;
    Ok(size < attr.bound && !empty)
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
