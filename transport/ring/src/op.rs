//! What can be asked of a ring and what comes back: plain values, no system calls.

#![allow(missing_docs, reason = "the fields of a variant are described by the variant's text")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use sealfs_transport::{Region, Slice};

/// An open file, socket or device. A clone is the same descriptor; it is closed with the last one, so that an operation
/// in flight never meets a descriptor number that was closed and given to someone else.
///
/// Sockets must be in blocking mode: with O_NONBLOCK the kernel answers EAGAIN instead of waiting. Devices that must be
/// O_NONBLOCK are waited for with [`Op::Poll`].
#[derive(Clone, Debug)]
pub struct File(Rc<OwnedFd>);

impl File {
    /// Takes a descriptor over.
    pub fn new(descriptor: impl Into<OwnedFd>) -> Self {
        Self(Rc::new(descriptor.into()))
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl std::os::fd::AsFd for File {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A part of what is written.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A frame's head, a FUSE header.
    Bytes(Vec<u8>),
    /// Payload where it lies.
    Slice(Slice),
}

impl Piece {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Slice(slice) => slice.bytes(),
        }
    }
}

impl From<Vec<u8>> for Piece {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Slice> for Piece {
    fn from(slice: Slice) -> Self {
        Self::Slice(slice)
    }
}

/// An operation. Where it says "result", the completion's `Ok` number is meant.
///
/// At most [`Op::PIECES_MAX`] pieces go in one operation; what lies behind them is not written, as after any short write.
#[derive(Debug)]
pub enum Op {
    /// read(2), or pread(2) if `at` is a place in the file, into `region[from..to]`. Result: bytes, 0 at the end. A positioned
    /// read into registered memory uses the fixed buffer.
    Read { file: File, at: Option<u64>, region: Region, from: usize, to: usize },
    /// writev(2), or pwritev(2) if `at` is a place in the file, without the first `skip` bytes of the pieces. `at` is where
    /// the first byte that is not skipped goes. Result: bytes written. A positioned write of one piece in registered
    /// memory uses the fixed buffer.
    Write { file: File, at: Option<u64>, pieces: Vec<Piece>, skip: usize },
    /// recv(2) into `region[from..to]`; `all`: completes when it is full, or at the end of the stream. Result: bytes, 0 at
    /// the end of the stream.
    Receive { file: File, region: Region, from: usize, to: usize, all: bool },
    /// sendmsg(2) on a stream without the first `skip` bytes of the pieces; the kernel goes on until all of it is in the
    /// socket. Result: bytes, fewer than asked only after an error, a cancellation or too many pieces.
    Send { file: File, pieces: Vec<Piece>, skip: usize },
    /// fsync(2), or fdatasync(2) if `data_only`.
    Sync { file: File, data_only: bool },
    /// accept4(2); the connection is in `accepted` (which is `None` when submitted).
    Accept { listener: File, accepted: Option<File> },
    /// connect(2).
    Connect { file: File, address: SocketAddr },
    /// poll(2) once. Result: the events that are there.
    Poll { file: File, events: u32 },
}

impl Op {
    /// Pieces of one operation (UIO_MAXIOV of the kernel).
    pub const PIECES_MAX: usize = 1_024;
    /// For [`Op::Poll`] of a socket: the peer has closed its end, or the connection has failed. Bytes that came before may
    /// still be there.
    pub const PEER_CLOSED: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;
}

/// Which part of the thread an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The TCP endpoint.
    Tcp,
    /// The RDMA endpoint.
    Rdma,
    /// The disk.
    Disk,
    /// The FUSE session.
    Fuse,
}

/// Names an operation in flight, to cancel it. One that has completed names nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub(crate) u64);

/// An operation that is over.
#[derive(Debug)]
pub struct Completion {
    /// Who submitted it.
    pub owner: Owner,
    /// The submitter's own number for it.
    pub id: u64,
    /// What the system call would have returned. ECANCELED after [`crate::Ring::cancel`], unless it was over before.
    pub result: io::Result<u32>,
    /// The operation as it was submitted, with everything that was moved into it.
    pub op: Op,
}
