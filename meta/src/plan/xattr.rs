//! Extended attributes, POSIX ACLs among them (xattr(7), acl(5)).
//!
//! | namespace | read | write |
//! |---|---|---|
//! | user. | files and directories, who may read | who may write; of a sticky directory only its owner |
//! | trusted. | root; others do not see it | root |
//! | security. | anybody | root |
//! | system.posix_acl_* | anybody | owner |

use sealfs_proto::{Errno, Ino, Kind, Reply, Who, Xattr, XattrFlag, limits};

use super::{Asked, Planned, Refused};
use crate::access::{
    ACL_ACCESS, ACL_DEFAULT, Acl, READ, SET_GID, STICKY, WRITE, owns, require, strip_foreign_sgid,
};
use crate::{Change, Inode, State};

/// The namespace of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
    AclAccess,
    AclDefault,
}

/// `Reply::Bytes` with the value, or ENODATA.
pub(crate) fn value(inode: &Inode, who: &Who, name: &[u8]) -> Result<Reply, Errno> {
    match space(name)? {
        Space::User if !has_user_attributes(inode) => return Err(Errno::ENODATA),
        Space::User => require(inode, who, READ)?,
        Space::Trusted if who.uid != 0 => return Err(Errno::ENODATA),
        _ => {}
    }
    inode.xattrs.get(name).cloned().map(Reply::Bytes).ok_or(Errno::ENODATA)
}

/// `Reply::Names` of what `who` may see.
pub(crate) fn names(inode: &Inode, who: &Who) -> Reply {
    let seen = |name: &&Vec<u8>| who.uid == 0 || !name.starts_with(b"trusted.");
    Reply::Names(inode.xattrs.keys().filter(seen).cloned().collect())
}

pub(super) fn plan_set(
    state: &State,
    asked: &Asked,
    who: &Who,
    ino: Ino,
    xattr: &Xattr,
    flag: XattrFlag,
    clear_sgid: bool,
) -> Result<Planned, Refused> {
    let inode = state.live(ino)?;
    let space = space(&xattr.name)?;
    check_write(inode, who, space)?;
    check_len(inode, xattr)?;
    match space {
        Space::AclAccess => return set_access_acl(asked, who, inode, xattr, clear_sgid),
        Space::AclDefault if xattr.value.is_empty() => {
            return plan_remove(state, asked, who, ino, &xattr.name);
        }
        Space::AclDefault => {
            Acl::parse(&xattr.value)?;
        }
        _ => match (flag, inode.xattrs.contains_key(&xattr.name)) {
            (XattrFlag::Create, true) => return Err(Errno::EEXIST.into()),
            (XattrFlag::Replace, false) => return Err(Errno::ENODATA.into()),
            _ => {}
        },
    }
    Ok(asked.record(Change::XattrSet { ino, xattr: xattr.clone(), mode: None }))
}

pub(super) fn plan_remove(
    state: &State,
    asked: &Asked,
    who: &Who,
    ino: Ino,
    name: &[u8],
) -> Result<Planned, Refused> {
    let inode = state.live(ino)?;
    let space = space(name)?;
    check_write(inode, who, space)?;
    if !inode.xattrs.contains_key(name) {
        // Removing an ACL that is not there succeeds, as setfacl -b expects.
        let acl = matches!(space, Space::AclAccess | Space::AclDefault);
        return if acl { Ok(Planned::Reply(Reply::Done)) } else { Err(Errno::ENODATA.into()) };
    }
    Ok(asked.record(Change::XattrRemove { ino, name: name.to_vec(), mode: None }))
}

/// An access ACL sets the permission bits; one that says no more than they can is not stored.
fn set_access_acl(
    asked: &Asked,
    who: &Who,
    inode: &Inode,
    xattr: &Xattr,
    clear_sgid: bool,
) -> Result<Planned, Refused> {
    let ino = inode.attr.ino;
    let name = xattr.name.clone();
    if xattr.value.is_empty() {
        return Ok(asked.record(Change::XattrRemove { ino, name, mode: None }));
    }
    let acl = Acl::parse(&xattr.value)?;
    let mode = (inode.attr.mode & !0o777) | acl.mode();
    let mode = if clear_sgid { mode & !SET_GID } else { mode };
    let mode = Some(strip_foreign_sgid(mode, inode.attr.gid, who));
    Ok(asked.record(if acl.is_extended() {
        Change::XattrSet { ino, xattr: xattr.clone(), mode }
    } else {
        Change::XattrRemove { ino, name, mode }
    }))
}

fn space(name: &[u8]) -> Result<Space, Errno> {
    let within = |space, prefix: &[u8]| match name.len() > prefix.len() {
        true => Ok(space),
        false => Err(Errno::EINVAL),
    };
    match name {
        _ if name.len() > limits::XATTR_NAME_LEN_MAX => Err(Errno::ERANGE),
        _ if name.contains(&0) => Err(Errno::EINVAL),
        _ if name == ACL_ACCESS => Ok(Space::AclAccess),
        _ if name == ACL_DEFAULT => Ok(Space::AclDefault),
        _ if name.starts_with(b"user.") => within(Space::User, b"user."),
        _ if name.starts_with(b"trusted.") => within(Space::Trusted, b"trusted."),
        _ if name.starts_with(b"security.") => within(Space::Security, b"security."),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn check_write(inode: &Inode, who: &Who, space: Space) -> Result<(), Errno> {
    let attr = &inode.attr;
    let own = owns(who, attr);
    match space {
        Space::User if !has_user_attributes(inode) => Err(Errno::EPERM),
        Space::User if attr.kind == Kind::Directory && attr.mode & STICKY != 0 && !own => {
            Err(Errno::EPERM)
        }
        Space::User => require(inode, who, WRITE),
        Space::Trusted | Space::Security if who.uid != 0 => Err(Errno::EPERM),
        Space::Trusted | Space::Security => Ok(()),
        Space::AclAccess | Space::AclDefault if attr.kind == Kind::Symlink => {
            Err(Errno::EOPNOTSUPP)
        }
        Space::AclAccess | Space::AclDefault if !own => Err(Errno::EPERM),
        Space::AclDefault if attr.kind != Kind::Directory => Err(Errno::EACCES),
        Space::AclAccess | Space::AclDefault => Ok(()),
    }
}

fn check_len(inode: &Inode, xattr: &Xattr) -> Result<(), Errno> {
    if xattr.value.len() > limits::XATTR_VALUE_LEN_MAX {
        return Err(Errno::E2BIG);
    }
    let others = inode.xattrs.iter().filter(|(name, _)| **name != xattr.name);
    let total: usize = others.map(|(name, value)| name.len() + value.len()).sum();
    let total = total + xattr.name.len() + xattr.value.len();
    if total > limits::XATTR_TOTAL_LEN_MAX { Err(Errno::ENOSPC) } else { Ok(()) }
}

const fn has_user_attributes(inode: &Inode) -> bool {
    matches!(inode.attr.kind, Kind::File | Kind::Directory)
}
