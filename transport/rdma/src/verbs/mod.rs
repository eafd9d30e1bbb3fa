//! Exactly the verbs that this crate uses, as a safe trait: what a provider does, and what it owns meanwhile.
//!
//! A [`Link`] is one connection of the connection manager with its queue pair, from the first step of setting it up to its
//! destruction. The real provider is `ibv`; [`crate::soft`] is one inside a process.
//!
//! ```text
//! connecting:  resolve -> Resolved -> connect -> Established -> post ... -> Lost -> destroy
//! accepting:   Incoming -> accept -> (Received, Established) -> post ...  -> Lost -> destroy
//! ```
//!
//! 1. Memory that a device may reach was moved into the provider, as [`Work`] or as [`Loan`], and comes out only by `Done`,
//!    [`Verbs::reclaim`] or [`Verbs::destroy`].
//! 2. `destroy` returns when the queue pair is no more: then neither this device nor, through it, the peer touches anything
//!    that was lent over it. Nothing is ever told of that link again.
//! 3. Work of one link is done in the order of posting. After a failure the link can only be destroyed.
//! 4. [`Verbs::poll`] tells of what a connection manager knows (`Lost`) only after everything that has arrived before.
//! 5. For each link that is connected or accepted, [`WINDOW`] messages of [`MESSAGE_LEN`] bytes may arrive at any time: the
//!    provider keeps that many receive buffers posted. Who keeps to the window never meets "receiver not ready".
//!
//! Not here: what messages mean, windows, retries, deadlines.

#[cfg(feature = "rdma")]
pub mod ibv;
pub(crate) mod memlock;

use std::net::SocketAddr;

use sealfs_ring::{File, Pool};
use sealfs_transport::{Region, Slice};

/// Messages that may be on their way to an end of a link and not be taken by it yet.
pub const WINDOW: u16 = 32;
/// Bytes of a message at most: a page, in which all but listings and extended attributes fit.
pub const MESSAGE_LEN: usize = 4_096;

/// A connection of a provider. Numbers are never reused within a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(pub u32);

/// Where a peer's memory lies, for RDMA READ and WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// In the peer's address space.
    pub address: u64,
    /// The key to it.
    pub key: u32,
}

/// Memory that the peer may reach.
#[derive(Debug)]
pub enum Loan {
    /// To write into.
    Room(Region),
    /// To read.
    Offer(Slice),
}

/// What may be done to registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By this end's own work only.
    Local,
    /// By peers, too, over links that this end has begun.
    Remote,
}

/// One work request.
#[derive(Debug)]
pub enum Work {
    /// A message. `told`: its `Done` is wanted soon. `fenced`: it leaves after every earlier read has ended.
    Send {
        /// At most [`MESSAGE_LEN`] bytes.
        bytes: Vec<u8>,
        /// See above.
        told: bool,
        /// See above.
        fenced: bool,
    },
    /// RDMA READ of `len` bytes into the start of `target`, which is registered.
    Read {
        /// Comes back with `Done`.
        target: Region,
        /// Bytes.
        len: usize,
        /// From there.
        source: Remote,
    },
    /// RDMA WRITE of the slices, one behind the other, all registered, at most [`Limits::pieces`].
    Write {
        /// Kept until `Done`.
        source: Vec<Slice>,
        /// To there.
        target: Remote,
    },
    /// An RDMA WRITE of nothing: fails if the peer is dead.
    Probe,
}

impl Work {
    /// As texts name it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Send { bytes, .. } => format!("SEND of {} bytes", bytes.len()),
            Self::Read { len, .. } => format!("RDMA READ of {len} bytes"),
            Self::Write { source, .. } => {
                format!("RDMA WRITE of {} bytes", source.iter().map(Slice::len).sum::<usize>())
            }
            Self::Probe => "keepalive probe".to_owned(),
        }
    }
}

/// What one link allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Work requests between posting and `Done`.
    pub depth: usize,
    /// Slices of one RDMA WRITE.
    pub pieces: usize,
}

/// What a link is made of, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The device's name.
    pub device: String,
    /// Its port.
    pub port: u8,
    /// Index of this end's GID, and what kind it is ("RoCE v2", "InfiniBand").
    pub gid: (u8, String),
    /// Bytes of a packet's payload.
    pub mtu: u32,
    /// Work requests in flight at most.
    pub depth: usize,
}

impl core::fmt::Display for Facts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { device, port, gid: (index, kind), mtu, .. } = self;
        write!(f, "device {device}, port {port}, GID index {index} ({kind}), MTU {mtu}")
    }
}

/// How a work request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// IBV_WC_RETRY_EXC_ERR.
    #[error(
        "no acknowledgement from the peer: it is gone, or the network drops packets (is the MTU the same on the whole \
         path? does the route go through the right interface?)"
    )]
    NoAcknowledgement,
    /// IBV_WC_RNR_RETRY_EXC_ERR.
    #[error(
        "the peer had no receive buffer, which windows rule out: are both ends of the same version?"
    )]
    ReceiverNotReady,
    /// IBV_WC_REM_ACCESS_ERR.
    #[error(
        "the peer's device refused access to its memory: a wrong key or range, or the region is registered no more"
    )]
    RemoteAccess,
    /// IBV_WC_REM_INV_REQ_ERR.
    #[error(
        "the peer's device does not accept the request: a message longer than its buffer, or an operation it has not allowed"
    )]
    RemoteInvalid,
    /// IBV_WC_REM_OP_ERR.
    #[error("the peer's device could not complete the request; look at the peer's log")]
    RemoteOperation,
    /// IBV_WC_LOC_PROT_ERR, IBV_WC_LOC_LEN_ERR, IBV_WC_LOC_QP_OP_ERR and others of this end.
    #[error(
        "this end's device refused it (work completion status {0}): memory that is not registered, or too long"
    )]
    Local(u32),
    /// IBV_WC_WR_FLUSH_ERR.
    #[error("the queue pair had failed before")]
    Flushed,
    /// Any other.
    #[error("work completion status {0}")]
    Other(u32),
}

/// Something could not be done; the text names device, cause and next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// What a provider tells.
#[allow(missing_docs, reason = "the variant's text describes its fields")]
#[derive(Debug)]
pub enum Happening {
    /// Address and route of a link that is to be connected are known.
    Resolved { link: Link },
    /// Somebody wants to connect; `private` may be padded with zeros.
    Incoming { link: Link, peer: SocketAddr, private: Vec<u8> },
    /// The link is connected; on the connecting end with what the peer said in [`Verbs::accept`].
    Established { link: Link, private: Vec<u8> },
    /// Setting the link up has failed, or it was disconnected.
    Lost { link: Link, why: String },
    /// A work request is over.
    Done { link: Link, work: Work, result: Result<(), Fault> },
    /// A message has arrived.
    Received { link: Link, bytes: Vec<u8> },
}

impl Happening {
    /// What it is about.
    #[must_use]
    pub const fn link(&self) -> Link {
        match self {
            Self::Resolved { link }
            | Self::Incoming { link, .. }
            | Self::Established { link, .. }
            | Self::Lost { link, .. }
            | Self::Done { link, .. }
            | Self::Received { link, .. } => *link,
        }
    }
}

/// A provider of verbs, for one endpoint of one thread.
pub trait Verbs {
    /// Accepts connections at `address` (port 0: one that is free) and says where. `share`: other endpoints of this process
    /// that listen there, too, each get their part of them.
    fn listen(&mut self, address: SocketAddr, share: bool) -> Result<SocketAddr, Failure>;
    /// Begins to look for a device and a route to `address`; ends in `Resolved` or `Lost`.
    fn resolve(&mut self, address: SocketAddr, timeout_ms: u64) -> Result<Link, Failure>;
    /// Asks the peer of a resolved link to connect; ends in `Established` or `Lost`.
    fn connect(&mut self, link: Link, private: &[u8]) -> Result<(), Failure>;
    /// Takes an incoming link. Messages may arrive at once.
    fn accept(&mut self, link: Link, private: &[u8]) -> Result<(), Failure>;
    /// Destroys a link in whatever state, or turns an incoming one away. Gives what was lent over it, by token.
    fn destroy(&mut self, link: Link) -> Vec<(u64, Loan)>;
    /// Posts a chain of work, at most as much as there is [`Verbs::room`] for, with one doorbell.
    fn post(&mut self, link: Link, chain: Vec<Work>) -> Result<(), Failure>;
    /// Work requests that may be posted.
    fn room(&self, link: Link) -> usize;
    /// What the link allows.
    fn limits(&self, link: Link) -> Limits;
    /// Lends memory to the peer of a link that this end has begun, under a number that names no other loan of the link. `Err`
    /// gives it back: it is not registered with [`Access::Remote`].
    fn lend(&mut self, link: Link, token: u64, loan: Loan) -> Result<Remote, Loan>;
    /// Takes a loan back, because the peer is done with it. The caller knows that from the peer's word, which follows its
    /// access in the order of the link.
    fn reclaim(&mut self, link: Link, token: u64) -> Option<Loan>;
    /// Registers the arena that a pool is a part of with every device that links use, now and later; once for a process, as
    /// far as it is the same arena and access. Checked before: RLIMIT_MEMLOCK.
    fn register(&mut self, pool: &Pool, access: Access) -> Result<(), Failure>;
    /// Whether `bytes` lie in registered memory.
    fn is_registered(&self, bytes: &[u8]) -> bool;
    /// What has happened next.
    fn poll(&mut self) -> Option<Happening>;
    /// Has the descriptors become readable when something happens from now on. What happened before must be polled for once
    /// more after this.
    fn arm(&mut self);
    /// What a thread that sleeps must watch for reading, by number; [`Verbs::woken`] is told. A number stands for the same
    /// descriptor for ever.
    fn descriptors(&self) -> &[(u64, File)];
    /// The descriptor of this number has become readable.
    fn woken(&mut self, number: u64);
    /// When to be polled again even if nothing happens, in milliseconds from now.
    fn retry_ms(&self) -> Option<u64>;
    /// What a link is made of.
    fn facts(&self, link: Link) -> Facts;
}
