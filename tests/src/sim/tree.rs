//! The model: names and contents in memory.
//!
//! Paths are relative to the root, without a leading slash; the root itself is the empty path. What it refuses it refuses
//! with the errno that a shard answers to root.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use sealfs_proto::Errno;
use xxhash_rust::xxh64::xxh64;

/// A file's bytes; shared with who holds the file open.
pub type Content = Rc<RefCell<Vec<u8>>>;

/// Everything that one client is alone to change.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
enum Entry {
    File(Content),
    Directory,
}

/// The directory and the name in it.
#[must_use]
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// How a file shows in [`Tree::lines`] and [`super::walk`].
#[must_use]
pub(super) fn file_line(path: &str, bytes: &[u8]) -> String {
    format!("{path}: {} bytes, hash {:016x}", bytes.len(), xxh64(bytes, 0))
}

/// How a directory shows there.
#[must_use]
pub(super) fn directory_line(path: &str) -> String {
    format!("{path}: directory")
}

impl Tree {
    /// An empty file.
    pub fn create(&mut self, path: &str) -> Result<(), Errno> {
        self.insert(path, Entry::File(Content::default()))
    }

    /// An empty directory.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        self.insert(path, Entry::Directory)
    }

    fn insert(&mut self, path: &str, entry: Entry) -> Result<(), Errno> {
        if self.0.contains_key(path) {
            return Err(Errno::EEXIST);
        }
        self.0.insert(path.to_owned(), entry);
        Ok(())
    }

    /// unlink(2).
    pub fn unlink(&mut self, path: &str) -> Result<(), Errno> {
        match self.0.get(path) {
            None => Err(Errno::ENOENT),
            Some(Entry::Directory) => Err(Errno::EISDIR),
            Some(Entry::File(_)) => {
                self.0.remove(path);
                Ok(())
            }
        }
    }

    /// rmdir(2).
    pub fn rmdir(&mut self, path: &str) -> Result<(), Errno> {
        match self.0.get(path) {
            None => Err(Errno::ENOENT),
            Some(Entry::File(_)) => Err(Errno::ENOTDIR),
            Some(Entry::Directory) if !self.is_empty(path) => Err(Errno::ENOTEMPTY),
            Some(Entry::Directory) => {
                self.0.remove(path);
                Ok(())
            }
        }
    }

    /// rename(2); neither path is above the other.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let source = self.0.get(from).cloned().ok_or(Errno::ENOENT)?;
        if from == to {
            return Ok(());
        }
        match (&source, self.0.get(to)) {
            (Entry::File(_), Some(Entry::Directory)) => return Err(Errno::EISDIR),
            (Entry::Directory, Some(Entry::File(_))) => return Err(Errno::ENOTDIR),
            (Entry::Directory, Some(Entry::Directory)) if !self.is_empty(to) => {
                return Err(Errno::ENOTEMPTY);
            }
            _ => {}
        }
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.0.keys().filter(|path| path.starts_with(&below)).cloned().collect();
        for path in moved {
            let entry = self.0.remove(&path).expect("it was found");
            self.0.insert(format!("{to}/{}", &path[below.len()..]), entry);
        }
        self.0.remove(from);
        self.0.insert(to.to_owned(), source);
        Ok(())
    }

    /// A file's content.
    pub fn content(&self, path: &str) -> Result<Content, Errno> {
        match self.0.get(path) {
            None => Err(Errno::ENOENT),
            Some(Entry::Directory) => Err(Errno::EISDIR),
            Some(Entry::File(content)) => Ok(Rc::clone(content)),
        }
    }

    /// A file's content; `None` if it is a directory.
    pub fn find(&self, path: &str) -> Result<Option<Content>, Errno> {
        match self.content(path) {
            Err(Errno::EISDIR) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The names in a directory, directories with a slash behind.
    #[must_use]
    pub fn list(&self, dir: &str) -> Vec<String> {
        let here = self.0.iter().filter(|(path, _)| split(path).0 == dir);
        here.map(|(path, entry)| match entry {
            Entry::File(_) => split(path).1.to_owned(),
            Entry::Directory => format!("{}/", split(path).1),
        })
        .collect()
    }

    /// All paths of directories, or of files.
    #[must_use]
    pub fn paths(&self, directories: bool) -> Vec<&str> {
        let wanted = |entry: &Entry| matches!(entry, Entry::Directory) == directories;
        self.0.iter().filter(|(_, entry)| wanted(entry)).map(|(path, _)| path.as_str()).collect()
    }

    /// One line for everything in it.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(path, entry): (&String, &Entry)| match entry {
            Entry::File(content) => file_line(path, &content.borrow()),
            Entry::Directory => directory_line(path),
        };
        self.0.iter().map(line).collect()
    }

    fn is_empty(&self, dir: &str) -> bool {
        !self.0.keys().any(|path| split(path).0 == dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_directory_takes_everything_with_it() {
        let mut tree = Tree::default();
        tree.mkdir("a").unwrap();
        tree.mkdir("a/b").unwrap();
        tree.create("a/b/c").unwrap();
        tree.mkdir("d").unwrap();
        assert_eq!(tree.rename("a", "d"), Ok(()));
        assert_eq!(tree.paths(true), ["d", "d/b"]);
        assert_eq!(tree.paths(false), ["d/b/c"]);
        assert_eq!(tree.rmdir("d"), Err(Errno::ENOTEMPTY));
        assert_eq!(tree.list("d"), ["b/"]);
    }
}
