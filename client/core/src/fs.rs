//! The file system of one client.
#![allow(
    clippy::unimplemented,
    clippy::unused_async,
    unused_variables,
    reason = "published before its bodies"
)]

use sealfs_proto::{
    Attr, Claim, Errno, Ino, Kind, Listed, Lock, LockOwner, NodeId, RenameFlag, SetAttr, Space,
    Who, Xattr, XattrFlag,
};
use sealfs_transport::{Instant, Slice};

use crate::{Fallocate, Handle, Interrupt, OpenFlags, Piece, Whence};

/// The file system of one client; cheap to clone, all clones are one.
///
/// Every operation is a future that may be polled by any executor on the one thread. A future that has begun should be run
/// to its end, also when the program that asked no longer waits: dropping it half way is safe for the cluster, but what it
/// has written may be settled late.
#[derive(Clone)]
pub struct Fs {}

/// Names.
impl Fs {
    /// What `name` in `dir` is. ENOENT if there is nothing. One request, two if the inode lives in another shard.
    pub async fn lookup(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        unimplemented!()
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
        unimplemented!()
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
        unimplemented!()
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
        unimplemented!()
    }

    /// Makes a symbolic link to `target`.
    pub async fn symlink(
        &self,
        who: &Who,
        dir: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Errno> {
        unimplemented!()
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
        unimplemented!()
    }

    /// Gives `ino` one more name. Answers its attributes.
    pub async fn link(&self, who: &Who, ino: Ino, dir: Ino, name: &[u8]) -> Result<Attr, Errno> {
        unimplemented!()
    }

    /// Removes a name that is no directory's.
    pub async fn unlink(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        unimplemented!()
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, who: &Who, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        unimplemented!()
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
        unimplemented!()
    }

    /// The entries of `dir` behind `cookie` (0: from the start, "." and ".." first), about `bytes` of them, and whether
    /// there are none behind them. With `attributes` also their attributes, except of those that vanished meanwhile.
    pub async fn list(
        &self,
        who: &Who,
        dir: Ino,
        cookie: u64,
        bytes: u32,
        attributes: bool,
    ) -> Result<(Vec<Listed>, bool), Errno> {
        unimplemented!()
    }

    /// The directory that holds the directory `ino`.
    pub async fn parent(&self, ino: Ino) -> Result<Ino, Errno> {
        unimplemented!()
    }

    /// Makes the names in `dir`, and all changes of names by this client, durable on the devices.
    pub async fn fsync_dir(&self, dir: Ino) -> Result<(), Errno> {
        unimplemented!()
    }
}

/// Inodes.
impl Fs {
    /// Attributes, with everything that this client has written.
    pub async fn stat(&self, ino: Ino) -> Result<Attr, Errno> {
        unimplemented!()
    }

    /// Changes attributes. `handle`: the file is changed through this open (ftruncate), so that a size needs no further
    /// permission.
    pub async fn setattr(
        &self,
        who: &Who,
        ino: Ino,
        handle: Option<Handle>,
        set: SetAttr,
    ) -> Result<Attr, Errno> {
        unimplemented!()
    }

    /// A symbolic link's target.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        unimplemented!()
    }

    /// An extended attribute's value; ENODATA if there is none.
    pub async fn getxattr(&self, who: &Who, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        unimplemented!()
    }

    /// The names of the extended attributes.
    pub async fn listxattr(&self, who: &Who, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        unimplemented!()
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
        unimplemented!()
    }

    /// Removes an extended attribute; ENODATA if there is none.
    pub async fn removexattr(&self, who: &Who, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        unimplemented!()
    }
}

/// Open files.
impl Fs {
    /// Opens a file. Every open is one request: it checks the rights and brings the present attributes.
    pub async fn open(
        &self,
        who: &Who,
        ino: Ino,
        flags: OpenFlags,
    ) -> Result<(Attr, Handle), Errno> {
        unimplemented!()
    }

    /// Up to `len` bytes at `offset`; fewer only at the end of the file. One piece per chunk that is touched, in order.
    pub async fn read(&self, handle: Handle, offset: u64, len: usize) -> Result<Vec<Piece>, Errno> {
        unimplemented!()
    }

    /// Writes at `offset`, or at the end of the file if it was opened for appending (then at most
    /// `limits::BULK_LEN_MAX` bytes, as one). `kill_suid_sgid`: the writer may not keep these bits. Answers the bytes
    /// written: fewer than given if some of it failed.
    pub async fn write(
        &self,
        handle: Handle,
        offset: u64,
        bytes: Slice,
        kill_suid_sgid: bool,
    ) -> Result<usize, Errno> {
        unimplemented!()
    }

    /// A descriptor of the file was closed: settles, reports what failed, and gives up the fcntl locks of `owner`.
    pub async fn flush(&self, handle: Handle, owner: Option<LockOwner>) -> Result<(), Errno> {
        unimplemented!()
    }

    /// Everything written to the file by this client is on the devices when answered; with `data_only` its times may not
    /// be.
    pub async fn fsync(&self, handle: Handle, data_only: bool) -> Result<(), Errno> {
        unimplemented!()
    }

    /// The last descriptor of this open is closed; gives up the flock of `owner`. The handle is gone, whatever is answered.
    pub async fn release(&self, handle: Handle, owner: Option<LockOwner>) -> Result<(), Errno> {
        unimplemented!()
    }

    /// fallocate(2).
    pub async fn fallocate(
        &self,
        handle: Handle,
        mode: Fallocate,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        unimplemented!()
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; ENXIO at or beyond the end of the file.
    pub async fn seek(&self, handle: Handle, offset: u64, whence: Whence) -> Result<u64, Errno> {
        unimplemented!()
    }

    /// copy_file_range(2): answers the bytes copied, fewer at the source's end. EINVAL if both are one file and overlap.
    pub async fn copy_range(
        &self,
        source: Handle,
        source_offset: u64,
        target: Handle,
        target_offset: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        unimplemented!()
    }

    /// Takes, converts or gives up a lock. Without `wait`: EAGAIN if another stands in the way; with it: EINTR once it is
    /// raised, unless the lock was granted first.
    pub async fn lock(
        &self,
        handle: Handle,
        lock: Lock,
        wait: Option<&Interrupt>,
    ) -> Result<(), Errno> {
        unimplemented!()
    }

    /// The lock that stands in the way of `lock`.
    pub async fn lock_test(&self, handle: Handle, lock: Lock) -> Result<Option<Lock>, Errno> {
        unimplemented!()
    }
}

/// The whole.
impl Fs {
    /// Space of all nodes together.
    pub async fn statfs(&self) -> Result<Space, Errno> {
        unimplemented!()
    }

    /// Settles everything and makes it durable on all devices (syncfs(2)).
    pub async fn sync_all(&self) -> Result<(), Errno> {
        unimplemented!()
    }

    /// Does what time asks for (settling) and polls what runs in the background. Returns when it wants to be called again
    /// even if nothing happens. To be called once per turn of the loop, before the calls are flushed.
    pub fn turn(&self, now: Instant) -> Option<Instant> {
        unimplemented!()
    }

    /// What this client holds open and locked at `node`: what it claims after a reconnect.
    #[must_use]
    pub fn claims(&self, node: NodeId) -> Vec<Claim> {
        unimplemented!()
    }

    /// `node` has ended the session: opens are renewed, locks are lost.
    pub fn session_ended(&self, node: NodeId) {
        unimplemented!()
    }
}
