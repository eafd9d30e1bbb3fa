//! Listening, for one endpoint or several: who listens first binds the port and hands the others their part.
//!
//! Rejected: a port per thread (a node then has as many addresses as threads, and firewalls know them), and one thread that
//! keeps all connections (the others are idle).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sealfs_ring::Wake;

use super::cm::{Channel, Id};
use super::queue::Reads;
use super::sys::cause;
use crate::verbs::Failure;

/// A request to connect that is handed to another endpoint.
pub(super) struct Handed {
    pub(super) id: Id,
    pub(super) private: Vec<u8>,
    pub(super) reads: Reads,
}

/// Where an endpoint is handed requests by others.
pub(super) struct Inbox {
    queue: Mutex<VecDeque<Handed>>,
    filled: AtomicBool,
    wake: Wake,
}

/// A port that this endpoint has bound.
pub(super) struct Listener {
    /// `None` while its device is gone.
    id: Option<Id>,
    retry_at: Instant,
    sharing: Arc<Sharing>,
}

/// Who gets what comes to an address.
struct Sharing {
    address: SocketAddr,
    inboxes: Mutex<Vec<Weak<Inbox>>>,
    turn: AtomicUsize,
}

/// Between two tries to listen again after a device has gone, milliseconds.
pub(super) const RETRY_MS: u64 = 1_000;

/// Every address that an endpoint of this process listens at.
static SHARED: Mutex<Vec<Weak<Sharing>>> = Mutex::new(Vec::new());

/// Adds an endpoint to those that listen at `address` already.
pub(super) fn join(address: SocketAddr, inbox: &Arc<Inbox>) -> Option<SocketAddr> {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = shared.iter().filter_map(Weak::upgrade).find(|known| known.address == address)?;
    found.inboxes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(inbox));
    Some(address)
}

impl Inbox {
    pub(super) const fn new(wake: Wake) -> Self {
        Self { queue: Mutex::new(VecDeque::new()), filled: AtomicBool::new(false), wake }
    }

    fn put(&self, handed: Handed) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(handed);
        self.filled.store(true, Ordering::Release);
        self.wake.wake();
    }

    /// The next request that was handed on. Cost: one load if there is none.
    pub(super) fn take(&self) -> Option<Handed> {
        if !self.filled.swap(false, Ordering::Acquire) {
            return None;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = queue.pop_front();
        self.filled.store(!queue.is_empty(), Ordering::Release);
        next
    }
}

impl Listener {
    pub(super) fn new(
        channel: &Arc<Channel>,
        address: SocketAddr,
        inbox: &Arc<Inbox>,
    ) -> Result<Self, Failure> {
        let id = Id::new(channel)?;
        let bound = id.bind_and_listen(address).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::EADDRINUSE) => {
                    "; another process has this port: choose another one or stop it"
                }
                Some(libc::EADDRNOTAVAIL | libc::ENODEV) => {
                    "; no RDMA device has this address (`rdma link`, `ip address`)"
                }
                _ => "",
            };
            Failure(format!("cannot listen on {address} with RDMA: {}{hint}", cause(&error)))
        })?;
        let sharing = Arc::new(Sharing {
            address: bound,
            inboxes: Mutex::new(vec![Arc::downgrade(inbox)]),
            turn: AtomicUsize::new(0),
        });
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|known| known.strong_count() > 0);
        shared.push(Arc::downgrade(&sharing));
        Ok(Self { id: Some(id), retry_at: Instant::now(), sharing })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.sharing.address
    }

    /// Whether events name this listener by `key`.
    pub(super) fn is(&self, key: usize) -> bool {
        self.id.as_ref().is_some_and(|id| id.key() == key)
    }

    /// Gives a request to the endpoint whose turn it is; back, if that is the listening one.
    pub(super) fn hand_on(&self, handed: Handed, own: &Arc<Inbox>) -> Option<Handed> {
        let mut inboxes = self.sharing.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        let turn = self.sharing.turn.fetch_add(1, Ordering::Relaxed);
        let next = inboxes.get(turn % inboxes.len().max(1)).and_then(Weak::upgrade);
        match next {
            Some(other) if !Arc::ptr_eq(&other, own) => {
                other.put(handed);
                None
            }
            _ => Some(handed),
        }
    }

    /// Its device has gone.
    pub(super) fn lose(&mut self) {
        tracing::warn!("the device at {} was removed; waiting for it", self.sharing.address);
        self.id = None;
        self.retry_at = Instant::now() + Duration::from_millis(RETRY_MS);
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.id.is_none()
    }

    /// Listens again when the device is back.
    pub(super) fn try_again(&mut self, channel: &Arc<Channel>) {
        if self.id.is_some() || Instant::now() < self.retry_at {
            return;
        }
        self.retry_at = Instant::now() + Duration::from_millis(RETRY_MS);
        let listening = Id::new(channel).and_then(|id| {
            let bound = id.bind_and_listen(self.sharing.address);
            bound.map_err(|error: io::Error| Failure(cause(&error))).map(|_| id)
        });
        if let Ok(id) = listening {
            tracing::info!("listening at {} again", self.sharing.address);
            self.id = Some(id);
        }
    }
}
