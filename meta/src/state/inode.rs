//! One inode: its attributes, what its kind adds, and its extended attributes.

use std::collections::BTreeMap;

use sealfs_proto::{Attr, Ino, Kind, Time, Xattr};
use wincode::{SchemaRead, SchemaWrite};

use super::Directory;

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Attributes, as `Stat` shows them.
    pub attr: Attr,
    /// What its kind adds.
    pub body: Body,
    /// Extended attributes by full name, POSIX ACLs among them.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an inode's kind adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A file; `cut`: what lies at and beyond it is being discarded.
    File {
        /// Where the pending cut begins.
        cut: Option<u64>,
    },
    /// A directory.
    Directory(Directory),
    /// A symbolic link's target.
    Symlink(Vec<u8>),
    /// A pipe, socket or device.
    Special,
}

/// How far the end of an inode without links has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Unlinked {
    /// Never had a name (O_TMPFILE): linkat(2) may still give it one.
    Unnamed,
    /// Lost its last name; waits for its last close.
    Waiting,
    /// Nodes are being told to drop its chunks. Nothing can be asked of it any more.
    Reclaiming,
}

impl Inode {
    /// An inode with these attributes; `parent` matters for a directory, `target` for a symlink.
    pub(crate) fn new(attr: Attr, parent: Ino, target: Vec<u8>, xattrs: Vec<Xattr>) -> Self {
        let body = match attr.kind {
            Kind::File => Body::File { cut: None },
            Kind::Directory => Body::Directory(Directory::new(parent)),
            Kind::Symlink => Body::Symlink(target),
            _ => Body::Special,
        };
        let xattrs = xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
        Self { attr, body, xattrs }
    }

    /// The directory, if it is one.
    #[must_use]
    pub const fn directory(&self) -> Option<&Directory> {
        match &self.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The inode changes at `now`.
    pub(crate) const fn touch(&mut self, now: Time) {
        self.attr.ctime = now;
        self.attr.change += 1;
    }

    /// No byte of the file lies in another shard: only chunk 0 can exist.
    pub(crate) const fn is_local(&self) -> bool {
        !matches!(self.attr.kind, Kind::File) || self.attr.bound <= self.attr.chunk_size as u64
    }
}
