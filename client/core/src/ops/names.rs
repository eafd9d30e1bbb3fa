//! Names: what a directory says, and how it changes.
//!
//! 1. One request for what lies in the directory's shard; one more where an entry's inode lies in another.
//! 2. Attributes that are answered contain what this client has written and not settled.

use sealfs_proto::{
    Attr, Entry, Errno, Ino, Kind, Listed, New, RenameFlag, Reply, Request, Who, directory_shard,
    limits,
};
use sealfs_transport::tasks::join_all;

use crate::net::unexpected;
use crate::{Fs, Handle, OpenFlags};

impl Fs {
    /// What `name` in `dir` is. ENOENT if there is nothing. One request, two if the inode lives in another shard.
    pub async fn lookup(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        check_name(name)?;
        for _ in 0..TRIES {
            let request = Request::Lookup { who: who.clone(), dir, name: name.to_vec() };
            let entry = self.ask_entry(dir, request).await?;
            match self.attr_of(entry).await {
                // The entry changed between the two requests: look again.
                Err(Errno::ENOENT | Errno::ESTALE) => {}
                answer => return answer,
            }
        }
        Err(Errno::ENOENT)
    }

    /// Makes an empty file and opens it: one request. If there is one already: EEXIST with `exclusive`, else it is opened.
    #[allow(clippy::too_many_arguments, reason = "open(2) with O_CREAT has them")]
    pub async fn create(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: OpenFlags,
        exclusive: bool,
    ) -> Result<(Attr, Handle), Errno> {
        check_name(name)?;
        for _ in 0..TRIES {
            let request = Request::Create {
                who: who.clone(),
                dir,
                name: name.to_vec(),
                new: New::File,
                mode,
                umask,
                open: true,
            };
            match self.ask_entry(dir, request).await {
                Ok(entry) => {
                    self.names_changed(dir, &[dir]);
                    self.mark(entry.ino, self.node_of(entry.ino));
                    return self.created(entry, flags);
                }
                Err(Errno::EEXIST) if !exclusive => {}
                Err(errno) => return Err(errno),
            }
            match self.lookup(who, dir, name).await {
                Ok(attr) if attr.kind == Kind::File => {
                    return self.open(who, attr.ino, flags).await;
                }
                Ok(attr) if attr.kind == Kind::Directory => return Err(Errno::EISDIR),
                // The caller saw no such name when it began: it has to walk the path again.
                Ok(_) => return Err(Errno::ESTALE),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ESTALE)
    }

    /// Makes a file without a name and opens it (O_TMPFILE).
    pub async fn tmpfile(
        &self,
        who: &Who,
        dir: Ino,
        mode: u32,
        umask: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Handle), Errno> {
        let request = Request::CreateUnnamed { who: who.clone(), dir, mode, umask };
        let entry = self.ask_entry(dir, request).await?;
        self.mark(entry.ino, self.node_of(entry.ino));
        self.created(entry, flags)
    }

    /// Makes a file, pipe, socket or device (mknod(2)); `rdev` in the kernel's 32-bit encoding.
    #[allow(clippy::too_many_arguments, reason = "mknod(2) has them")]
    pub async fn mknod(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        kind: Kind,
        rdev: u32,
        mode: u32,
        umask: u32,
    ) -> Result<Attr, Errno> {
        let new = match kind {
            Kind::File => New::File,
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                New::Special(kind, rdev)
            }
            Kind::Directory | Kind::Symlink => return Err(Errno::EINVAL),
        };
        self.make(who, dir, name, new, mode, umask).await
    }

    /// Makes a symbolic link to `target`.
    pub async fn symlink(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Errno> {
        if target.len() > limits::TARGET_LEN_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.make(who, dir, name, New::Symlink(target.to_vec()), 0o777, 0).await
    }

    /// Makes a directory.
    pub async fn mkdir(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<Attr, Errno> {
        check_name(name)?;
        self.names_will_change(&[dir, self.home(dir, name)]).await?;
        let request = Request::Mkdir { who: who.clone(), dir, name: name.to_vec(), mode, umask };
        let entry = self.ask_entry(dir, request).await?;
        self.names_changed(dir, &[dir, entry.ino]);
        self.mark(entry.ino, self.node_of(entry.ino));
        self.attr_of(entry).await
    }

    /// Gives `ino` one more name. Answers its attributes.
    pub async fn link(&self, who: &Who, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        check_name(name)?;
        self.names_will_change(&[dir, ino]).await?;
        let request = Request::Link { who: who.clone(), ino, dir, name: name.to_vec() };
        let entry = self.ask_entry(dir, request).await?;
        self.names_changed(dir, &[dir, ino]);
        self.mark(ino, self.node_of(ino));
        self.attr_of(entry).await
    }

    /// Removes a name that is no directory's.
    pub async fn unlink(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let request = Request::Unlink { who: who.clone(), dir, name: name.to_vec() };
        self.ask_done(dir.shard(), request).await?;
        self.names_changed(dir, &[dir]);
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let removed = self.home(dir, name);
        self.names_will_change(&[dir, removed]).await?;
        let request = Request::Rmdir { who: who.clone(), dir, name: name.to_vec() };
        self.ask_done(dir.shard(), request).await?;
        self.names_changed(dir, &[dir, removed]);
        Ok(())
    }

    /// renameat2(2).
    pub async fn rename(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        target_dir: Ino,
        target_name: &[u8],
        flag: RenameFlag,
    ) -> Result<(), Errno> {
        check_name(name)?;
        check_name(target_name)?;
        self.names_will_change(&[dir, target_dir]).await?;
        let request = Request::Rename {
            who: who.clone(),
            dir,
            name: name.to_vec(),
            target_dir,
            target_name: target_name.to_vec(),
            flag,
        };
        self.ask_done(dir.shard(), request).await?;
        self.names_changed(dir, &[dir, target_dir]);
        self.names_changed(target_dir, &[dir, target_dir]);
        Ok(())
    }

    /// The entries of `dir` behind `cookie` (0: from the start, "." and ".." first), about `bytes` of them, and whether
    /// there are none behind them. With `attributes` also their attributes, except of "." and ".." and of those that
    /// vanished meanwhile.
    ///
    /// Cookies 1 and 2 stand for "." and ".."; that a name's hash is one of them has a chance of 2^-62, and then shows
    /// an entry twice.
    pub async fn list(
        &self,
        who: &Who,
        dir: Ino,
        cookie: u64,
        bytes: u32,
        attributes: bool,
    ) -> Result<(Vec<Listed>, bool), Errno> {
        let request = Request::List {
            who: who.clone(),
            dir,
            cookie: if cookie <= COOKIE_DOT_DOT { 0 } else { cookie },
            bytes: bytes.min(limits::LIST_LEN_MAX),
            attributes,
        };
        let (mut entries, end) = match self.ask(dir.shard(), request).await? {
            Reply::List { entries, end } => (entries, end),
            other => return Err(unexpected("List", &other)),
        };
        if attributes {
            self.complete(&mut entries).await;
        }
        if cookie < COOKIE_DOT_DOT {
            // A directory that is being removed has no parent to speak of.
            let parent = self.parent(dir).await.unwrap_or(dir);
            let dots = [(COOKIE_DOT, &b"."[..], dir), (COOKIE_DOT_DOT, &b".."[..], parent)];
            let dots = dots.into_iter().filter(|(at, _, _)| *at > cookie);
            let dots = dots.map(|(cookie, name, ino)| Listed {
                cookie,
                name: name.to_vec(),
                entry: Entry { ino, kind: Kind::Directory, attr: None },
            });
            entries.splice(..0, dots);
        }
        Ok((entries, end))
    }

    /// The directory that holds the directory `ino`.
    pub async fn parent(&self, ino: Ino) -> Result<Ino, Errno> {
        match self.ask(ino.shard(), Request::Parent { ino }).await? {
            Reply::Parent(parent) => Ok(parent),
            other => Err(unexpected("Parent", &other)),
        }
    }

    /// Makes the names in `dir` durable on the device of its node, and on those of the other nodes that took part in what
    /// this client has changed in it.
    pub async fn fsync_dir(&self, dir: Ino) -> Result<(), Errno> {
        let synced = self.sync_nodes(self.unsynced_nodes(dir, true)).await;
        if self.unsynced().take_lost(dir) { Err(Errno::EIO) } else { synced }
    }

    async fn make(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        new: New,
        mode: u32,
        umask: u32,
    ) -> Result<Attr, Errno> {
        check_name(name)?;
        let request = Request::Create {
            who: who.clone(),
            dir,
            name: name.to_vec(),
            new,
            mode,
            umask,
            open: false,
        };
        let entry = self.ask_entry(dir, request).await?;
        self.names_changed(dir, &[dir]);
        self.mark(entry.ino, self.node_of(entry.ino));
        self.attr_of(entry).await
    }

    /// The shard, as an inode of it, in which the directory `name` of `dir` is born.
    fn home(&self, dir: Ino, name: &[u8]) -> Ino {
        Ino::new(directory_shard(dir, name, self.routes().shards()), 0)
    }

    fn created(&self, entry: Entry, flags: OpenFlags) -> Result<(Attr, Handle), Errno> {
        let Some(attr) = entry.attr else {
            return Err(unexpected("Create", &Reply::Entry(entry)));
        };
        let handle = self.opened(&attr, flags);
        Ok((attr, handle))
    }

    /// An entry's attributes, asked for if they did not come along.
    async fn attr_of(&self, entry: Entry) -> Result<Attr, Errno> {
        match entry.attr {
            Some(attr) => Ok(self.shown(attr).await),
            None => self.stat(entry.ino).await,
        }
    }

    /// Asks for the attributes that a listing did not bring along, some at a time.
    async fn complete(&self, entries: &mut [Listed]) {
        for some in entries.chunks_mut(STATS_AT_ONCE) {
            join_all(some.iter_mut().map(|listed| async move {
                listed.entry.attr = match listed.entry.attr.take() {
                    Some(attr) => Some(self.shown(attr).await),
                    None => self.stat(listed.entry.ino).await.ok(),
                };
            }))
            .await;
        }
    }

    async fn ask_entry(&self, dir: Ino, request: Request) -> Result<Entry, Errno> {
        match self.ask(dir.shard(), request).await? {
            Reply::Entry(entry) => Ok(entry),
            other => Err(unexpected("names", &other)),
        }
    }
}

/// A name is 1 to 255 bytes of any value but '/' and 0.
fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > limits::NAME_LEN_MAX {
        Err(Errno::ENAMETOOLONG)
    } else if name.is_empty() || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// How often an operation of two steps begins again because the name changed between them: each time somebody else
/// succeeded, so that more than a few in a row are a sign of something broken.
const TRIES: usize = 8;
/// Half of a connection's credits, so that a listing leaves room for other calls.
const STATS_AT_ONCE: usize = limits::CREDITS as usize / 2;
/// Where "." ends.
const COOKIE_DOT: u64 = 1;
/// Where ".." ends and the directory's entries begin.
const COOKIE_DOT_DOT: u64 = 2;
