//! The world over queue pairs: `sealfs_rdma` above verbs in software, each endpoint on a host of its own.
//!
//! Completions of different queue pairs come in any order, who dies does so with or without its queue pairs being closed, a
//! link that is cut for long is given up by the devices, and memory that is not registered is of no use to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use sealfs_proto::{Address, TransportKind};
use sealfs_rdma::soft::{Host, Network};
use sealfs_rdma::{Config, Rdma};
use sealfs_ring::Pool;
use sealfs_transport::{Arena, Identity, Instant, Random, Transport, payload_of_thread};

use super::support::Wires;
use super::{SEEDS_OVER_RDMA, run_over};

/// Every node listens there.
const PORT: u16 = 7_000;
/// Registered memory of an endpoint.
const POOL_LEN: usize = 16 << 20;
/// Devices try again for so long before they give up.
const PATIENCE_MS: u64 = 400;
/// Between two rounds of work.
const ROUND_NS: u64 = 20_000;

struct SoftWires {
    network: Network,
    hosts: RefCell<BTreeMap<String, Host>>,
    random: RefCell<Random>,
    /// Since when there is work that does not get through.
    stuck: Cell<Option<Instant>>,
}

impl SoftWires {
    fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            hosts: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            stuck: Cell::new(None),
        }
    }

    fn host(&self, name: &str) -> Host {
        *self.hosts.borrow_mut().entry(name.to_owned()).or_insert_with(|| self.network.add())
    }

    fn socket(&self, name: &str) -> SocketAddr {
        let mut address = self.host(name).address();
        address.set_port(PORT);
        address
    }
}

impl Wires for SoftWires {
    fn address(&self, name: &str) -> Address {
        Address { transport: TransportKind::Rdma, text: self.socket(name).to_string() }
    }

    fn endpoint(&self, name: &str, identity: Arc<Identity>) -> (Box<dyn Transport>, Rc<dyn Arena>) {
        let serves = identity.serves.is_some();
        let verbs = self.network.start(self.host(name));
        let pool = Pool::new(POOL_LEN).unwrap();
        let rdma = Rdma::over(Box::new(verbs), None, &pool, Config::new(identity)).unwrap();
        if serves {
            rdma.listen(&self.socket(name).to_string(), false).unwrap();
        }
        (Box::new(rdma), Rc::new(pool))
    }

    /// A machine that loses its power tells nobody; of a process that dies the kernel closes the queue pairs.
    fn crash(&self, _now: Instant, name: &str) {
        if self.random.borrow_mut().below(2) == 0 {
            self.network.silence(self.host(name));
        }
    }

    fn cut(&self, one: &str, other: &str) {
        self.network.cut(self.host(one), self.host(other));
    }

    fn heal(&self, _now: Instant, one: &str, other: &str) {
        self.network.heal(self.host(one), self.host(other));
    }

    fn pass(&self, now: Instant) -> Option<Instant> {
        let moved = self.network.step();
        let give_up = if self.network.is_stuck() {
            let since = self.stuck.get().unwrap_or(now);
            self.stuck.set(Some(since));
            let at = since.after_ms(PATIENCE_MS);
            if at <= now {
                self.network.expire();
                self.stuck.set(None);
            }
            Some(at)
        } else {
            self.stuck.set(None);
            None
        };
        let soon = (moved || self.network.has_news()).then_some(Instant(now.0 + ROUND_NS));
        soon.into_iter().chain(give_up).min()
    }
}

fn soft(seed: u64) -> Rc<dyn Wires> {
    Rc::new(SoftWires::new(seed))
}

#[test]
fn over_queue_pairs_every_change_is_executed_exactly_once() {
    SEEDS_OVER_RDMA.for_each(|seed| _ = run_over(soft, seed));
    let moved = payload_of_thread();
    assert!(moved.rdma_read > 0 && moved.rdma_written > 0, "{moved:?}");
}

#[test]
fn over_queue_pairs_the_same_seed_gives_the_same_events() {
    assert_eq!(run_over(soft, 3), run_over(soft, 3));
    assert_ne!(run_over(soft, 3), run_over(soft, 4));
}
