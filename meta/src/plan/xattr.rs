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
    let len = |name: &[u8], value: &[u8]| name.len() + value.len() + limits::XATTR_OVERHEAD;
    let total: usize = others.map(|(name, value)| len(name, value)).sum();
    let total = total + len(&xattr.name, &xattr.value);
    if total > limits::XATTR_TOTAL_LEN_MAX { Err(Errno::ENOSPC) } else { Ok(()) }
}

const fn has_user_attributes(inode: &Inode) -> bool {
    matches!(inode.attr.kind, Kind::File | Kind::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;
    use crate::testing::{World, user};
    use sealfs_proto::Request;

    fn set(who: Who, ino: Ino, name: &str, value: &[u8], flag: XattrFlag) -> Request {
        let xattr = Xattr { name: name.into(), value: value.to_vec() };
        Request::XattrSet { who, ino, xattr, flag, clear_sgid: false }
    }

    fn any(who: Who, ino: Ino, name: &str) -> Request {
        set(who, ino, name, b"v", XattrFlag::Any)
    }

    #[test]
    fn values_come_back_and_flags_are_obeyed() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let root = Who::root;
        let create = set(root(), file, "user.a", b"1", XattrFlag::Create);
        let replace = set(root(), file, "user.a", b"2", XattrFlag::Replace);
        assert_eq!(world.run(&replace), Err(Errno::ENODATA));
        assert_eq!(world.run(&create), Ok(Reply::Done));
        assert_eq!(world.run(&create), Err(Errno::EEXIST));
        assert_eq!(world.run(&replace), Ok(Reply::Done));
        let get = Request::XattrGet { who: root(), ino: file, name: b"user.a".to_vec() };
        assert_eq!(read(&world.states[0], &get), Ok(Reply::Bytes(b"2".to_vec())));
        let remove = Request::XattrRemove { who: root(), ino: file, name: b"user.a".to_vec() };
        assert_eq!(world.run(&remove), Ok(Reply::Done));
        assert_eq!(world.run(&remove), Err(Errno::ENODATA));
        assert_eq!(read(&world.states[0], &get), Err(Errno::ENODATA));
    }

    #[test]
    fn each_namespace_has_its_rule() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.chmod(file, 0o644, 1);
        let mut fails = |request, errno| assert_eq!(world.run(&request), Err(errno), "{request:?}");
        fails(any(user(2), file, "user.a"), Errno::EACCES);
        fails(any(user(1), file, "trusted.a"), Errno::EPERM);
        fails(any(user(1), file, "security.a"), Errno::EPERM);
        fails(any(Who::root(), file, "user."), Errno::EINVAL);
        fails(any(Who::root(), file, "other.a"), Errno::EOPNOTSUPP);
        fails(any(Who::root(), file, &format!("user.{}", "n".repeat(251))), Errno::ERANGE);
        let large = vec![0; limits::XATTR_VALUE_LEN_MAX + 1];
        fails(set(user(1), file, "user.a", &large, XattrFlag::Any), Errno::E2BIG);
        for number in 0..3 {
            let name = format!("user.{number}");
            world.run(&set(user(1), file, &name, &large[1..], XattrFlag::Any)).unwrap();
        }
        let last = set(user(1), file, "user.x", &large[1..], XattrFlag::Any);
        assert_eq!(world.run(&last), Err(Errno::ENOSPC));
        world.run(&any(Who::root(), file, "trusted.a")).unwrap();
        let names = |who| Request::XattrList { who, ino: file };
        let count = |who| match read(&world.states[0], &names(who)) {
            Ok(Reply::Names(names)) => names.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((count(user(1)), count(Who::root())), (3, 4));
    }

    #[test]
    fn any_number_of_tiny_attributes_is_listed_in_one_reply() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let mut count = 0;
        for _ in 0..9_000 {
            let xattr = Xattr { name: format!("user.{count:x}").into(), value: Vec::new() };
            let change = Change::XattrSet { ino: file, xattr, mode: None };
            world.append(
                file.shard(),
                crate::Record { origin: None, now: crate::testing::at(0), change },
            );
            count += 1;
        }
        let refused = loop {
            let request = set(Who::root(), file, &format!("user.{count:x}"), b"", XattrFlag::Any);
            let asked = world.asked();
            match crate::plan(&world.states[0], &request, &asked) {
                Ok(Planned::Record(record)) => drop(world.append(file.shard(), record)),
                other => break other,
            }
            count += 1;
        };
        assert_eq!(refused, Err(Errno::ENOSPC.into()));
        assert!(count > 9_000, "{count}");
        let names = read(&world.states[0], &Request::XattrList { who: Who::root(), ino: file });
        assert!(sealfs_proto::encode(&names.unwrap()).len() <= limits::BODY_LEN_MAX as usize);
    }

    #[test]
    fn an_access_acl_is_the_mode_and_chmod_is_the_mask() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let name = "system.posix_acl_access";
        let list = |items: &[(u16, u16, u32)]| {
            let mut value = 2_u32.to_le_bytes().to_vec();
            for (tag, permissions, id) in items {
                value.extend_from_slice(&tag.to_le_bytes());
                value.extend_from_slice(&permissions.to_le_bytes());
                value.extend_from_slice(&id.to_le_bytes());
            }
            value
        };
        let none = u32::MAX;
        let plain = list(&[(1, 6, none), (4, 4, none), (32, 0, none)]);
        world.run(&set(Who::root(), file, name, &plain, XattrFlag::Any)).unwrap();
        assert_eq!(world.attr(file).mode, 0o640);
        assert!(world.inode(file).unwrap().xattrs.is_empty(), "the mode says it all");
        let more = list(&[(1, 6, none), (2, 6, 9), (4, 4, none), (16, 6, none), (32, 0, none)]);
        world.run(&set(Who::root(), file, name, &more, XattrFlag::Any)).unwrap();
        assert_eq!(world.attr(file).mode, 0o660);
        assert!(crate::access::allowed(world.inode(file).unwrap(), &user(9), WRITE));
        world.chmod(file, 0o640, 0);
        assert!(!crate::access::allowed(world.inode(file).unwrap(), &user(9), WRITE));
        let bad = set(Who::root(), file, name, b"nonsense", XattrFlag::Any);
        assert_eq!(world.run(&bad), Err(Errno::EOPNOTSUPP));
        assert_eq!(world.run(&any(user(5), file, name)), Err(Errno::EPERM));
        let default = set(Who::root(), file, "system.posix_acl_default", &more, XattrFlag::Any);
        assert_eq!(world.run(&default), Err(Errno::EACCES), "only directories hand lists down");
        world.assert_sound();
    }
}
