//! POSIX access control lists (acl(5)) as the kernel exchanges them in extended attributes.
//!
//! ```text
//! 0  version u32 (2)   4  entries of 8 bytes: tag u16, permissions u16, id u32    (little-endian)
//! ```
//! Entries are ordered: owner (1), users (2), group (4), groups (8), mask (0x10), others (0x20).
//!
//! 1. A parsed list has exactly one owner, group and others, and a mask if it names any user or group.

use sealfs_proto::{Errno, Who};

const VERSION: u32 = 2;
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const NAMED_GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
/// What the kernel writes as the id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Item>);

impl Acl {
    /// Reads a list: EOPNOTSUPP for another version, EINVAL for one that breaks the rules.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let (chunks, rest) = rest.as_chunks::<8>();
        let acl = Self(chunks.iter().map(Item::read).collect());
        if rest.is_empty() && acl.is_valid() { Ok(acl) } else { Err(Errno::EINVAL) }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for item in &self.0 {
            bytes.extend_from_slice(&item.tag.to_le_bytes());
            bytes.extend_from_slice(&item.permissions.to_le_bytes());
            bytes.extend_from_slice(&item.id.to_le_bytes());
        }
        bytes
    }

    /// Whether it says more than nine permission bits can.
    pub(crate) fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    /// The permission bits that it amounts to (the mask, if there is one, shows as the group's).
    pub(crate) fn mode(&self) -> u32 {
        let group = self.get(MASK).or_else(|| self.get(GROUP)).unwrap_or(0);
        let of = |tag| self.get(tag).unwrap_or(0);
        of(OWNER) << 6 | group << 3 | of(OTHERS)
    }

    /// Whether `who` has all of `want` to an inode of `owner` and `group`.
    pub(crate) fn permits(&self, who: &Who, owner: u32, group: u32, want: u32) -> bool {
        let grants = |permissions: u32| permissions & want == want;
        let mask = self.get(MASK).unwrap_or(0o7);
        if who.uid == owner {
            return self.get(OWNER).is_some_and(grants);
        }
        if let Some(item) = self.0.iter().find(|item| item.tag == USER && item.id == who.uid) {
            return grants(u32::from(item.permissions) & mask);
        }
        let mut groups = self
            .0
            .iter()
            .filter(|item| match item.tag {
                GROUP => who.in_group(group),
                NAMED_GROUP => who.in_group(item.id),
                _ => false,
            })
            .peekable();
        if groups.peek().is_none() {
            return self.get(OTHERS).is_some_and(grants);
        }
        groups.any(|item| grants(u32::from(item.permissions) & mask))
    }

    /// Turns a directory's default list into the access list of what is made in it with `mode`; gives the new mode.
    pub(crate) fn mask_for_create(&mut self, mode: u32) -> u32 {
        let group = if self.get(MASK).is_some() { MASK } else { GROUP };
        for (tag, shift) in [(OWNER, 6), (group, 3), (OTHERS, 0)] {
            let permissions = self.get(tag).unwrap_or(0) & (mode >> shift);
            self.put(tag, permissions);
        }
        (mode & !0o777) | self.mode()
    }

    /// chmod(2): owner, mask (else group) and others become the bits of `mode`.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        let group = if self.get(MASK).is_some() { MASK } else { GROUP };
        for (tag, shift) in [(OWNER, 6), (group, 3), (OTHERS, 0)] {
            self.put(tag, (mode >> shift) & 0o7);
        }
    }

    fn get(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|item| item.tag == tag).map(|item| u32::from(item.permissions))
    }

    fn put(&mut self, tag: u16, permissions: u32) {
        if let Some(item) = self.0.iter_mut().find(|item| item.tag == tag) {
            item.permissions = permissions as u16;
        }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|item| item.tag == tag).count();
        let named = count(USER) + count(NAMED_GROUP);
        let ordered = self.0.is_sorted_by_key(|item| item.tag);
        ordered
            && self.0.iter().all(|item| item.permissions <= 0o7 && item.is_known())
            && [OWNER, GROUP, OTHERS].iter().all(|&tag| count(tag) == 1)
            && (count(MASK) == 1 || (count(MASK) == 0 && named == 0))
    }
}

impl Item {
    fn read(bytes: &[u8; 8]) -> Self {
        let [t0, t1, p0, p1, id @ ..] = *bytes;
        let tag = u16::from_le_bytes([t0, t1]);
        let id = if matches!(tag, USER | NAMED_GROUP) { u32::from_le_bytes(id) } else { NO_ID };
        Self { tag, permissions: u16::from_le_bytes([p0, p1]), id }
    }

    const fn is_known(&self) -> bool {
        match self.tag {
            USER | NAMED_GROUP => self.id != NO_ID,
            OWNER | GROUP | MASK | OTHERS => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(items: &[(u16, u16, u32)]) -> Acl {
        let items = items.iter().map(|&(tag, permissions, id)| Item { tag, permissions, id });
        Acl(items.collect())
    }

    fn sample() -> Acl {
        acl(&[
            (OWNER, 6, NO_ID),
            (USER, 7, 100),
            (GROUP, 4, NO_ID),
            (NAMED_GROUP, 6, 50),
            (MASK, 6, NO_ID),
            (OTHERS, 0, NO_ID),
        ])
    }

    fn who(uid: u32, gid: u32) -> Who {
        Who { uid, gid, groups: Vec::new() }
    }

    #[test]
    fn a_list_comes_back_as_it_went() {
        assert_eq!(Acl::parse(&sample().to_bytes()), Ok(sample()));
        assert_eq!(sample().mode(), 0o660);
    }

    #[test]
    fn any_bytes_are_a_list_that_comes_back_or_an_error() {
        let bytes = sample().to_bytes();
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                for bytes in [&bytes[..], &bytes[..at]] {
                    if let Ok(acl) = Acl::parse(bytes) {
                        assert_eq!(Acl::parse(&acl.to_bytes()), Ok(acl.clone()));
                        let _ = (acl.mode(), acl.permits(&who(100, 50), 1, 1, 7));
                    }
                }
            }
        }
    }

    #[test]
    fn broken_lists_are_refused() {
        let cases = [
            acl(&[(OWNER, 6, NO_ID), (GROUP, 4, NO_ID)]),
            acl(&[(OWNER, 6, NO_ID), (USER, 7, 1), (GROUP, 4, NO_ID), (OTHERS, 0, NO_ID)]),
            acl(&[(GROUP, 6, NO_ID), (OWNER, 4, NO_ID), (OTHERS, 0, NO_ID)]),
            acl(&[(OWNER, 8, NO_ID), (GROUP, 4, NO_ID), (OTHERS, 0, NO_ID)]),
            acl(&[(OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (3, 4, NO_ID), (OTHERS, 0, NO_ID)]),
        ];
        for case in cases {
            assert_eq!(Acl::parse(&case.to_bytes()), Err(Errno::EINVAL), "{case:?}");
        }
        assert_eq!(Acl::parse(&[2, 0]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&[3, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), Err(Errno::EINVAL));
    }

    #[test]
    fn the_mask_limits_named_users_and_groups_only() {
        let acl = sample();
        assert!(acl.permits(&who(100, 1), 7, 8, 0o6) && !acl.permits(&who(100, 1), 7, 8, 0o1));
        assert!(acl.permits(&who(7, 1), 7, 8, 0o6));
        assert!(acl.permits(&who(1, 50), 7, 8, 0o2), "any of the groups may grant it");
        assert!(acl.permits(&who(1, 8), 7, 8, 0o4) && !acl.permits(&who(1, 8), 7, 8, 0o2));
        assert!(!acl.permits(&who(1, 1), 7, 8, 0o4));
    }

    #[test]
    fn a_new_inode_gets_no_more_than_mode_and_default_list_both_grant() {
        let mut acl = sample();
        assert_eq!(acl.mask_for_create(0o2644), 0o2640);
        assert_eq!((acl.get(MASK), acl.get(GROUP), acl.get(OTHERS)), (Some(4), Some(4), Some(0)));
    }

    #[test]
    fn chmod_sets_the_mask() {
        let mut acl = sample();
        acl.set_mode(0o751);
        assert_eq!((acl.mode(), acl.get(GROUP), acl.get(MASK)), (0o751, Some(4), Some(5)));
    }
}
