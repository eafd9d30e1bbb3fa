//! Inodes: attributes, links' targets, extended attributes.
//!
//! 1. Attributes that are answered contain everything that this client has written: a file that is dirty here is settled
//!    instead of asked, which costs the same round trip and brings exact times and blocks.
//! 2. A size or a time is set only when no write of this client is in flight and everything written is settled, so that
//!    no later settlement can undo it.

use sealfs_proto::{Attr, Errno, Ino, Reply, Request, SetAttr, Who, Xattr, XattrFlag, limits};

use crate::net::unexpected;
use crate::{Fs, Handle};

impl Fs {
    /// Attributes, with everything that this client has written. One request.
    pub async fn stat(&self, ino: Ino) -> Result<Attr, Errno> {
        if let Some(file) = self.file(ino)
            && file.is_dirty()
            && self.settle(&file).await.is_ok()
        {
            return Ok(file.shown());
        }
        let sent = self.now();
        let attr = self.ask_attr(ino, Request::Stat { ino }).await?;
        Ok(match self.file(ino) {
            Some(file) => {
                file.absorb(&attr, sent);
                file.shown()
            }
            None => attr,
        })
    }

    /// Changes attributes. `handle`: the file is changed through this open (ftruncate), so that a size needs no further
    /// permission. A shrinking size is answered when every node has discarded what lies beyond it.
    pub async fn setattr(
        &self,
        who: &Who,
        ino: Ino,
        handle: Option<Handle>,
        set: SetAttr,
    ) -> Result<Attr, Errno> {
        if set.size.is_some_and(|size| size > limits::FILE_SIZE_MAX) {
            return Err(Errno::EFBIG);
        }
        let opened = match handle {
            Some(handle) => self.ready(handle).await?.flags.write,
            None => false,
        };
        let file = self.file(ino);
        let moves_data = set.size.is_some() || set.mtime.is_some() || set.atime.is_some();
        let _alone = match &file {
            Some(file) if moves_data => Some(file.data.exclusive().await),
            _ => None,
        };
        if let Some(file) = &file {
            self.settle(file).await?;
        }
        let sent = self.now();
        let request = Request::SetAttr { who: who.clone(), ino, set, opened };
        let attr = self.ask_attr(ino, request).await?;
        self.mark(ino, self.node_of(ino));
        Ok(match self.file(ino) {
            Some(file) => {
                file.absorb(&attr, sent);
                file.shown()
            }
            None => attr,
        })
    }

    /// A symbolic link's target.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.ask_bytes(ino, Request::ReadLink { ino }).await
    }

    /// An extended attribute's value; ENODATA if there is none.
    pub async fn getxattr(&self, who: &Who, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        check_xattr_name(name)?;
        let request = Request::XattrGet { who: who.clone(), ino, name: name.to_vec() };
        self.ask_bytes(ino, request).await
    }

    /// The names of the extended attributes.
    pub async fn listxattr(&self, who: &Who, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        match self.ask(ino.shard(), Request::XattrList { who: who.clone(), ino }).await? {
            Reply::Names(names) => Ok(names),
            other => Err(unexpected("XattrList", &other)),
        }
    }

    /// Sets an extended attribute. `clear_sgid`: setting an access ACL also clears S_ISGID.
    pub async fn setxattr(
        &self,
        who: &Who,
        ino: Ino,
        xattr: Xattr,
        flag: XattrFlag,
        clear_sgid: bool,
    ) -> Result<(), Errno> {
        check_xattr_name(&xattr.name)?;
        if xattr.value.len() > limits::XATTR_VALUE_LEN_MAX {
            return Err(Errno::E2BIG);
        }
        let request = Request::XattrSet { who: who.clone(), ino, xattr, flag, clear_sgid };
        self.ask_done(ino.shard(), request).await?;
        self.mark(ino, self.node_of(ino));
        Ok(())
    }

    /// Removes an extended attribute; ENODATA if there is none.
    pub async fn removexattr(&self, who: &Who, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        check_xattr_name(name)?;
        let request = Request::XattrRemove { who: who.clone(), ino, name: name.to_vec() };
        self.ask_done(ino.shard(), request).await?;
        self.mark(ino, self.node_of(ino));
        Ok(())
    }

    /// What to show of an inode for which a shard has just answered `attr`.
    pub(crate) async fn shown(&self, attr: Attr) -> Attr {
        let Some(file) = self.file(attr.ino) else { return attr };
        if file.is_dirty() {
            // A failure is reported by fsync and close; what is known here is shown all the same.
            let _ = self.settle(&file).await;
        } else {
            file.absorb(&attr, self.now());
        }
        file.shown()
    }

    pub(crate) async fn ask_attr(&self, ino: Ino, request: Request) -> Result<Attr, Errno> {
        match self.ask(ino.shard(), request).await? {
            Reply::Attr(attr) => Ok(attr),
            other => Err(unexpected("attributes", &other)),
        }
    }

    async fn ask_bytes(&self, ino: Ino, request: Request) -> Result<Vec<u8>, Errno> {
        match self.ask(ino.shard(), request).await? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected("bytes", &other)),
        }
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > limits::XATTR_NAME_LEN_MAX {
        Err(Errno::ERANGE)
    } else {
        Ok(())
    }
}
