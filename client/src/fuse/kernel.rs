//! The descriptor of /dev/fuse: messages in, replies and notices out.
//!
//! Reads and writes are plain system calls on the thread of the loop, behind one poll in the ring. An io_uring read of
//! /dev/fuse would have to sleep in a worker thread of the kernel or (O_NONBLOCK) to fail, and may block the whole loop
//! when another reader was faster; the system call costs the same copy and knows at once.
//!
//! 1. One read is one message; one write is one reply, taken whole or refused.
//! 2. Nothing here waits: the descriptor is O_NONBLOCK, and the kernel takes replies at once.

use std::fs::File;
use std::io::{Read, Write};
use std::rc::Rc;

use sealfs_proto::{Errno, Ino};
use zerocopy::IntoBytes;

use super::abi::{self, OutHeader};
use super::reply::Reply;

/// The kernel's end of a mount; a clone is the same.
#[derive(Clone, Debug)]
pub(crate) struct Kernel(Rc<File>);

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A message of so many bytes.
    Message(usize),
    /// None, for now.
    Nothing,
    /// The mount is no more.
    End,
}

impl Kernel {
    /// `device` is O_NONBLOCK.
    pub(crate) fn new(device: File) -> Self {
        Self(Rc::new(device))
    }

    /// The descriptor, to be polled.
    pub(crate) fn device(&self) -> &File {
        &self.0
    }

    /// The next message, into `bytes`, which has room for the largest.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> Found {
        loop {
            match (&*self.0).read(bytes) {
                Ok(0) => return Found::End,
                Ok(len) => return Found::Message(len),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Found::Nothing,
                    // ENOENT: the program no longer waits for the request that was to be read.
                    Some(libc::EINTR | libc::ENOENT) => {}
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Found::End,
                    _ => {
                        tracing::error!(%error, "cannot read /dev/fuse; the mount ends");
                        return Found::End;
                    }
                },
            }
        }
    }

    /// Answers request `unique`; whether the kernel took it. It does not when the program no longer waits or the mount has
    /// ended. Cost: one system call; data is copied once, by the kernel.
    pub(crate) fn reply(&self, unique: u64, reply: &Reply) -> bool {
        let header = reply.header(unique);
        let Err(error) = (&*self.0).write_vectored(&reply.slices(&header)) else { return true };
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED)) {
            // A reply that the kernel refuses is our bug; the program must not wait for ever all the same.
            tracing::error!(%error, unique, length = header.len, "the kernel refused a reply");
            let failed = Reply::error(Errno::EIO);
            let header = failed.header(unique);
            let _ = (&*self.0).write_vectored(&failed.slices(&header));
        }
        false
    }

    /// Has the kernel ask for the attributes of `ino` before it uses them again. Its pages stay. It takes no lock that a
    /// request can hold, so that a thread that answers requests may call it; notices that drop pages may not be sent so.
    pub(crate) fn attributes_are_old(&self, ino: Ino) {
        let notice = abi::InvalInodeOut { ino: ino.0, off: -1, len: 0 };
        let len = size_of::<OutHeader>() + size_of_val(&notice);
        let header = OutHeader { len: len as u32, error: abi::NOTIFY_INVAL_INODE, unique: 0 };
        // ENOENT: the kernel does not know the inode, and so nothing old of it.
        let _ = (&*self.0).write(&[header.as_bytes(), notice.as_bytes()].concat());
    }
}
