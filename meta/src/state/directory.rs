//! A directory's entries in the order of their cookies.
//!
//! An entry's cookie is the 63-bit hash of its name, raised to [`COOKIE_MIN`]. A name whose cookie is taken gets the next
//! free one and is remembered as displaced; the cookie stays with the entry as long as it exists, whatever else changes.
//!
//! 1. Cookies are unique within the directory and at least [`COOKIE_MIN`].
//! 2. An entry whose cookie is not its own hash stands in `displaced`; no other does.

use std::collections::BTreeMap;
use std::ops::Bound;

use sealfs_proto::{Ino, Kind, name_hash};
use wincode::{SchemaRead, SchemaWrite};

/// Cookies below it are free for what no shard stores (".", "..", the start).
pub(crate) const COOKIE_MIN: u64 = 16;
/// Cookies fit a positive off_t.
const COOKIE_MAX: u64 = i64::MAX as u64;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: Box<[u8]>,
    /// The inode it names.
    pub ino: Ino,
    /// That inode's kind.
    pub kind: Kind,
}

/// A directory's own part of its inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The directory that holds it; the root's is itself.
    pub parent: Ino,
    entries: BTreeMap<u64, DirectoryEntry>,
    displaced: BTreeMap<Box<[u8]>, u64>,
}

impl Directory {
    /// An empty directory in `parent`.
    #[must_use]
    pub const fn new(parent: Ino) -> Self {
        Self { parent, entries: BTreeMap::new(), displaced: BTreeMap::new() }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it may be removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of this name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&DirectoryEntry> {
        self.cookie(name).map(|cookie| &self.entries[&cookie])
    }

    /// Entries behind `cookie`, ascending by cookie.
    pub fn behind(&self, cookie: u64) -> impl Iterator<Item = (u64, &DirectoryEntry)> {
        self.entries
            .range((Bound::Excluded(cookie), Bound::Unbounded))
            .map(|(cookie, entry)| (*cookie, entry))
    }

    /// The cookie of this name's entry, or, if there is none, the one that [`Directory::insert`] would give it.
    pub(crate) fn cookie_for(&self, name: &[u8]) -> u64 {
        self.cookie(name).unwrap_or_else(|| self.free_from(own_cookie(name)))
    }

    /// Adds an entry whose name is not there.
    pub(crate) fn insert(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        let own = own_cookie(name);
        let cookie = self.free_from(own);
        let name: Box<[u8]> = name.into();
        if cookie != own {
            self.displaced.insert(name.clone(), cookie);
        }
        let before = self.entries.insert(cookie, DirectoryEntry { name, ino, kind });
        assert!(before.is_none(), "a free cookie has no entry");
    }

    /// Puts an entry back where a snapshot says it was. False if that contradicts invariant 1 or 2.
    pub(crate) fn restore(&mut self, cookie: u64, entry: DirectoryEntry) -> bool {
        let fits = (COOKIE_MIN..=COOKIE_MAX).contains(&cookie) && self.find(&entry.name).is_none();
        if fits && own_cookie(&entry.name) != cookie {
            self.displaced.insert(entry.name.clone(), cookie);
        }
        fits && self.entries.insert(cookie, entry).is_none()
    }

    /// Makes the entry name another inode; false if there is none.
    pub(crate) fn replace(&mut self, name: &[u8], ino: Ino, kind: Kind) -> bool {
        let entry = self.cookie(name).and_then(|cookie| self.entries.get_mut(&cookie));
        entry.map(|entry| (entry.ino, entry.kind) = (ino, kind)).is_some()
    }

    /// Removes the entry; false if there is none.
    pub(crate) fn remove(&mut self, name: &[u8]) -> bool {
        let Some(cookie) = self.cookie(name) else { return false };
        self.displaced.remove(name);
        self.entries.remove(&cookie).is_some()
    }

    fn cookie(&self, name: &[u8]) -> Option<u64> {
        let own = own_cookie(name);
        match self.entries.get(&own) {
            Some(entry) if *entry.name == *name => Some(own),
            _ if self.displaced.is_empty() => None,
            _ => self.displaced.get(name).copied(),
        }
    }

    /// The first free cookie from `own` on, going round at the end.
    fn free_from(&self, own: u64) -> u64 {
        let mut cookie = own;
        while self.entries.contains_key(&cookie) {
            cookie = if cookie == COOKIE_MAX { COOKIE_MIN } else { cookie + 1 };
        }
        cookie
    }
}

fn own_cookie(name: &[u8]) -> u64 {
    name_hash(name).max(COOKIE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in which the cookies of `names` are taken by others, as if their hashes collided.
    fn crowded(names: &[&[u8]]) -> Directory {
        let mut directory = Directory::new(Ino::ROOT);
        for (number, name) in names.iter().enumerate() {
            let other = format!("other-{number}").into_bytes();
            let entry = DirectoryEntry { name: other.into(), ino: Ino(5), kind: Kind::File };
            assert!(directory.restore(own_cookie(name), entry));
        }
        directory
    }

    #[test]
    fn an_entry_whose_cookie_is_taken_gets_the_next_one_and_keeps_it() {
        let mut directory = crowded(&[b"a"]);
        directory.insert(b"a", Ino(9), Kind::File);
        let cookie = own_cookie(b"a") + 1;
        assert_eq!(directory.find(b"a").map(|entry| entry.ino), Some(Ino(9)));
        assert!(directory.remove(b"other-0"));
        let listed: Vec<u64> = directory.behind(0).map(|(cookie, _)| cookie).collect();
        assert_eq!(listed, [cookie], "freed cookies move nobody");
        assert!(directory.replace(b"a", Ino(10), Kind::Fifo) && directory.remove(b"a"));
        assert!(directory.is_empty() && directory.find(b"a").is_none());
        directory.insert(b"a", Ino(9), Kind::File);
        assert_eq!(directory.behind(0).next().map(|(cookie, _)| cookie), Some(cookie - 1));
    }

    #[test]
    fn cookies_go_round_at_the_end() {
        let mut directory = Directory::new(Ino::ROOT);
        let entry =
            |name: &[u8]| DirectoryEntry { name: name.into(), ino: Ino(5), kind: Kind::File };
        assert!(directory.restore(COOKIE_MAX, entry(b"last")));
        assert_eq!(directory.free_from(COOKIE_MAX), COOKIE_MIN);
        assert!(!directory.restore(COOKIE_MAX, entry(b"x")), "a cookie is taken once");
        assert!(!directory.restore(77, entry(b"last")), "a name is there once");
        assert!(!directory.restore(COOKIE_MIN - 1, entry(b"low")));
    }

    #[test]
    fn a_listing_that_goes_on_behind_a_cookie_misses_nothing_and_repeats_nothing() {
        let mut directory = Directory::new(Ino::ROOT);
        let names: Vec<String> = (0..200).map(|number| format!("name-{number}")).collect();
        names.iter().for_each(|name| directory.insert(name.as_bytes(), Ino(5), Kind::File));
        let mut seen = Vec::new();
        let mut cookie = 0;
        let next = |directory: &Directory, cookie| {
            directory.behind(cookie).next().map(|(cookie, entry)| (cookie, entry.name.to_vec()))
        };
        while let Some((behind, name)) = next(&directory, cookie) {
            seen.push(name);
            cookie = behind;
            // What comes and goes meanwhile moves nobody else.
            let gone = seen[seen.len() / 2].clone();
            directory.remove(&gone);
            directory.insert(format!("new-{}", seen.len()).as_bytes(), Ino(6), Kind::File);
        }
        let found = |name: &String| seen.iter().filter(|seen| **seen == name.as_bytes()).count();
        assert!(names.iter().all(|name| found(name) == 1));
    }
}
