//! A thread's link to a cluster: ring, memory, endpoint, calls and tasks, and the loop that turns them.
//!
//! ```text
//!   +-> ring.enter: submit, wait ----> completions: sockets' to the endpoint, others' to the caller
//!   |                                                |
//!   +------ calls.turn <-> tasks.run_ready <---------+      until nothing is ready
//! ```
//! A mount's thread and `sealfs status` both run it; what they do beside it they do between two turns.
//!
//! 1. One system call per turn, none if nothing is to be submitted and something has completed.
//! 2. Nothing here waits but the ring.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sealfs_client_core::Fs;
use sealfs_net::{Choice, Net};
use sealfs_proto::{Address, ClusterMap, Request, ShardId, limits};
use sealfs_ring::{Completion, Config, Owner, Poll, Pool, Ring};
use sealfs_transport::tasks::{Tasks, join_all};
use sealfs_transport::{Ask, Calls, Identity, Instant, Key, Me, Options};

use crate::MountError;

/// See the module's text. Belongs to the thread that made it.
pub(crate) struct Link {
    pub(crate) ring: Ring,
    pub(crate) pool: Pool,
    pub(crate) calls: Calls,
    pub(crate) tasks: Tasks,
    net: Net,
}

/// How to reach nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// With which transports.
    pub choice: Choice,
    /// The RDMA device; `None`: whichever the route to a node goes through.
    pub rdma_device: Option<String>,
    /// What the thread does that waits for them.
    pub poll: Poll,
}

impl Link {
    /// A link that has not connected yet. `timeout_ms`: how long its calls wait for a node, 0: for ever.
    pub(crate) fn new(
        key: Key,
        network: &Network,
        timeout_ms: u64,
        pool_len: usize,
    ) -> Result<Self, MountError> {
        let failed = |error: io::Error| MountError(error.to_string());
        let Network { choice, rdma_device, poll } = network.clone();
        let ring = Ring::new(Config { poll, ..Config::default() }).map_err(failed)?;
        let pool = Pool::new(pool_len).map_err(failed)?;
        let identity = Arc::new(Identity { key, serves: None });
        let config = sealfs_net::Config { identity, choice, rdma_device };
        let net = Net::new(&ring, &pool, config).map_err(|error| MountError(error.to_string()))?;
        let me = Me::Client { endpoint: 0, session_seed: random()? };
        let lease_ms = limits::LEASE_MS_MIN;
        let (seed, now) = (random()?, sealfs_ring::now().mono);
        let options = Options { timeout_ms, lease_ms, seed, now, ..Options::default() };
        let calls = Calls::new(Box::new(net.clone()), me, options);
        Ok(Self { ring, pool, calls, tasks: Tasks::new(), net })
    }

    /// Gives `fs` its turn, and runs tasks and calls until nothing is ready; when they want to run again even if nothing
    /// arrives.
    pub(crate) fn run(&self, now: Instant, fs: Option<&Fs>) -> Option<Instant> {
        fs.map(|fs| fs.turn(now));
        loop {
            self.tasks.run_ready();
            let deadline = self.calls.turn(now);
            if self.tasks.is_idle() {
                return deadline.into_iter().chain(fs.and_then(Fs::deadline)).min();
            }
        }
    }

    /// Starts what was submitted and waits until something completes or `deadline` comes; completions that are not the
    /// endpoint's go to `other`.
    pub(crate) fn enter(
        &self,
        deadline: Option<Instant>,
        mut other: impl FnMut(Completion),
    ) -> Result<(), MountError> {
        let now = sealfs_ring::now().mono;
        let wait = deadline.map(|deadline| Duration::from_nanos(deadline.0.saturating_sub(now.0)));
        self.net
            .enter(&self.ring, wait)
            .map_err(|error| MountError(format!("io_uring: {error}")))?;
        while let Some(done) = self.ring.next() {
            let is_nets = matches!(done.owner, Owner::Tcp | Owner::Rdma);
            if is_nets { self.net.complete(done) } else { other(done) }
        }
        Ok(())
    }

    /// The result of `future`, if it comes until `until`.
    pub(crate) fn block_on<T: 'static>(
        &self,
        until: Instant,
        fs: Option<&Fs>,
        future: impl Future<Output = T> + 'static,
    ) -> Result<Option<T>, MountError> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.tasks.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            let now = sealfs_ring::now().mono;
            let deadline = self.run(now, fs).map_or(until, |wanted| wanted.min(until));
            let value = result.borrow_mut().take();
            if value.is_some() || now >= until {
                return Ok(value);
            }
            self.enter(Some(deadline), drop)?;
        }
    }

    /// Tells every node that the session is over, so that it need not wait for the lease's end. A node that does not
    /// answer finds out by itself.
    pub(crate) fn leave(&self) {
        let connected = self.calls.peers().into_iter().filter(|peer| peer.connected.is_some());
        let leave = |node| self.calls.call(node, Ask::read(ShardId(0), Request::Leave));
        let all = join_all(connected.map(|peer| leave(peer.node)).collect::<Vec<_>>());
        let until = sealfs_ring::now().mono.after_ms(LEAVE_MS);
        let _ = self.block_on(until, None, all);
    }
}

/// Learns the map from whichever of the nodes at `addresses` answers.
pub(crate) fn learn_map(
    key: &Key,
    network: &Network,
    addresses: &[Address],
    timeout_ms: u64,
) -> Result<ClusterMap, MountError> {
    let link = Link::new(key.clone(), network, timeout_ms, SMALL_POOL_LEN)?;
    let (calls, addresses) = (link.calls.clone(), addresses.to_vec());
    let until = sealfs_ring::now().mono.after_ms(timeout_ms + GRACE_MS);
    let joined = link.block_on(until, None, async move { calls.join(addresses).await })?;
    let map = match joined {
        Some(joined) => joined.map_err(|error| {
            MountError(format!(
                "no map of the cluster: {error}; check the addresses, the key, and that `sealfs serve` runs there"
            ))
        })?,
        None => return Err(MountError(format!("no node has answered in {timeout_ms} ms"))),
    };
    link.leave();
    Ok(map)
}

/// 64 bits from the kernel.
fn random() -> Result<u64, MountError> {
    getrandom::u64().map_err(|error| MountError(format!("no random numbers: {error}")))
}

/// Memory of a link that moves no data.
pub(crate) const SMALL_POOL_LEN: usize = 8 << 20;
/// How long the farewell may take, milliseconds.
const LEAVE_MS: u64 = 2_000;
/// Calls end by their own timeout; what they say is better than what we could, milliseconds.
const GRACE_MS: u64 = 2_000;
