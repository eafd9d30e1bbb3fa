//! Who may do what: permission bits, POSIX ACLs, and what a new inode inherits.
//!
//! The rules are those of Linux (path_resolution(7), acl(5), inode(7)): the kernel of the client has checked already
//! with the attributes that it had cached; the shard decides.

mod acl;

use std::collections::BTreeMap;

use sealfs_proto::{Access, Attr, Errno, Kind, Who, Xattr};

pub(crate) use acl::Acl;

use crate::Inode;

/// The extended attribute that holds the access ACL.
pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute that holds what new inodes inherit.
pub(crate) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// File capabilities, which a change of owner or data takes away.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

pub(crate) const SET_UID: u32 = 0o4000;
pub(crate) const SET_GID: u32 = 0o2000;
pub(crate) const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// To change a directory's entries.
pub(crate) const CHANGE: Access = Access { read: false, write: true, execute: true };
/// To pass through a directory.
pub(crate) const PASS: Access = Access { read: false, write: false, execute: true };
pub(crate) const READ: Access = Access { read: true, write: false, execute: false };
pub(crate) const WRITE: Access = Access { read: false, write: true, execute: false };

/// EACCES unless `who` has all of `access` to the inode.
pub(crate) fn require(inode: &Inode, who: &Who, access: Access) -> Result<(), Errno> {
    if allowed(inode, who, access) { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether `who` has all of `access` to the inode.
pub(crate) fn allowed(inode: &Inode, who: &Who, access: Access) -> bool {
    let attr = &inode.attr;
    if who.uid == 0 {
        return !access.execute || attr.kind == Kind::Directory || attr.mode & 0o111 != 0;
    }
    let want = bits(access);
    if who.uid == attr.uid {
        return (attr.mode >> 6) & want == want;
    }
    // The group bits of a file with an ACL are its mask: with none set the ACL can grant nothing to anybody it names.
    if attr.mode & 0o070 != 0
        && let Some(acl) = inode.xattrs.get(ACL_ACCESS).and_then(|bytes| Acl::parse(bytes).ok())
    {
        return acl.permits(who, attr.uid, attr.gid, want);
    }
    let class = if who.in_group(attr.gid) { attr.mode >> 3 } else { attr.mode };
    class & want == want
}

/// Whether `who` may do what only the owner may.
pub(crate) const fn owns(who: &Who, attr: &Attr) -> bool {
    who.uid == 0 || who.uid == attr.uid
}

/// Who must own an inode to take its entry out of `dir`: `None` if the sticky bit asks for nothing.
pub(crate) const fn sticky(dir: &Attr, who: &Who) -> Option<u32> {
    if dir.mode & STICKY != 0 && !owns(who, dir) { Some(who.uid) } else { None }
}

/// EPERM unless the inode may leave a sticky directory (see [`sticky`]).
pub(crate) fn require_sticky(attr: &Attr, sticky: Option<u32>) -> Result<(), Errno> {
    if sticky.is_none_or(|uid| uid == attr.uid) { Ok(()) } else { Err(Errno::EPERM) }
}

/// `mode` without S_ISGID if `who` may not give files to group `gid`.
pub(crate) fn strip_foreign_sgid(mode: u32, gid: u32, who: &Who) -> u32 {
    if who.uid == 0 || who.in_group(gid) { mode } else { mode & !SET_GID }
}

/// `mode` without the set-id bits that a write takes away: S_ISGID without group execution is not one of them.
pub(crate) const fn drop_set_id(mode: u32) -> u32 {
    let sgid = if mode & GROUP_EXECUTE != 0 { SET_GID } else { 0 };
    mode & !(SET_UID | sgid)
}

/// Owner, mode and xattrs of what `who` makes in a directory.
pub(crate) struct Inherited {
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) xattrs: Vec<Xattr>,
}

/// What a new inode of `kind` in `dir` gets when `mode` is asked for. Symbolic links have neither mode nor ACL.
pub(crate) fn inherit(dir: &Inode, who: &Who, kind: Kind, mode: u32, umask: u32) -> Inherited {
    let set_gid = dir.attr.mode & SET_GID != 0;
    let gid = if set_gid { dir.attr.gid } else { who.gid };
    if kind == Kind::Symlink {
        return Inherited { gid, mode: 0o777, xattrs: Vec::new() };
    }
    let mut mode = mode & 0o7777;
    let mut xattrs = Vec::new();
    match dir.xattrs.get(ACL_DEFAULT).and_then(|bytes| Some((Acl::parse(bytes).ok()?, bytes))) {
        None => mode &= !(umask & 0o777),
        Some((mut acl, default)) => {
            mode = acl.mask_for_create(mode);
            if acl.is_extended() {
                xattrs.push(Xattr { name: ACL_ACCESS.to_vec(), value: acl.to_bytes() });
            }
            if kind == Kind::Directory {
                xattrs.push(Xattr { name: ACL_DEFAULT.to_vec(), value: default.clone() });
            }
        }
    }
    if kind == Kind::Directory {
        mode = if set_gid { mode | SET_GID } else { mode };
    } else if mode & GROUP_EXECUTE != 0 {
        mode = strip_foreign_sgid(mode, gid, who);
    }
    Inherited { gid, mode, xattrs }
}

/// The access ACL that goes with new permission bits, if the inode has one.
pub(crate) fn acl_for_mode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>, mode: u32) -> Option<Vec<u8>> {
    let mut acl = Acl::parse(xattrs.get(ACL_ACCESS)?).ok()?;
    acl.set_mode(mode);
    Some(acl.to_bytes())
}

const fn bits(access: Access) -> u32 {
    (access.read as u32) << 2 | (access.write as u32) << 1 | access.execute as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::file;

    fn who(uid: u32, gid: u32) -> Who {
        Who { uid, gid, groups: Vec::new() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let inode = file(|attr| (attr.uid, attr.gid, attr.mode) = (7, 8, 0o047));
        assert!(!allowed(&inode, &who(7, 1), READ), "the owner is not the group");
        assert!(allowed(&inode, &who(1, 8), READ) && !allowed(&inode, &who(1, 8), WRITE));
        assert!(allowed(&inode, &who(1, 1), WRITE));
        let member = Who { groups: vec![3, 8], ..who(1, 1) };
        assert!(!allowed(&inode, &member, WRITE));
    }

    #[test]
    fn root_executes_only_what_somebody_may_execute() {
        let plain = file(|attr| attr.mode = 0o600);
        assert!(allowed(&plain, &Who::root(), WRITE) && !allowed(&plain, &Who::root(), PASS));
        assert!(allowed(&file(|attr| attr.mode = 0o010), &Who::root(), PASS));
    }

    #[test]
    fn a_write_takes_sgid_only_with_group_execution() {
        assert_eq!(drop_set_id(0o6755), 0o755);
        assert_eq!(drop_set_id(0o6745), 0o2745);
    }

    #[test]
    fn a_sticky_directory_asks_for_the_owner() {
        let dir = file(|attr| (attr.uid, attr.mode) = (5, 0o1777)).attr;
        assert_eq!(sticky(&dir, &who(6, 6)), Some(6));
        assert_eq!((sticky(&dir, &who(5, 5)), sticky(&dir, &Who::root())), (None, None));
    }
}
