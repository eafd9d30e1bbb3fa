//! The conformance suite over real verbs: a device of this machine, or soft-RoCE in the virtual machine of `cargo ci vm`.
//!
//! It runs where `SEALFS_RDMA_ADDRESS` names an address that an RDMA device has (`SEALFS_RDMA_DEVICE` names the device, if it
//! is to be tested); otherwise each test says that it was not asked to run.

mod raw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use raw::RawLink;
use sealfs_proto::{Address, TransportKind};
use sealfs_rdma::verbs::ibv::Ibv;
use sealfs_rdma::{Config, Rdma};
use sealfs_ring::{Pool, Ring};
use sealfs_transport::suite::{self, End, Fixture, Raw};
use sealfs_transport::{Identity, Instant, Transport};

/// Endpoints that one thread drives in turn, each with its own ring.
struct Machine {
    host: String,
    ends: Vec<Option<Driven>>,
    addresses: Vec<String>,
}

struct Driven {
    rdma: Rdma,
    ring: Ring,
}

impl Driven {
    fn new(identity: Arc<Identity>) -> Self {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        let device = std::env::var("SEALFS_RDMA_DEVICE").ok();
        let config = Config { device, ..Config::new(identity) };
        let pool = Pool::new(0).unwrap();
        let rdma = Rdma::new(&ring, &pool, config).unwrap_or_else(|error| panic!("{error}"));
        Self { rdma, ring }
    }

    /// Whether something has completed.
    fn step(&self, wait: Duration) -> bool {
        self.ring.enter(Some(wait)).unwrap();
        let completions = std::iter::from_fn(|| self.ring.next());
        completions.map(|completion| self.rdma.complete(completion)).count() > 0
    }
}

fn address(text: String) -> Address {
    Address { transport: TransportKind::Rdma, text }
}

impl Fixture for Machine {
    fn endpoint(&mut self, identity: Arc<Identity>) -> End {
        let serves = identity.serves.is_some();
        let driven = Driven::new(identity);
        let any = format!("{}:0", self.host);
        let listening = serves
            .then(|| driven.rdma.listen(&any, false).unwrap_or_else(|error| panic!("{error}")));
        self.addresses.push(listening.map_or_else(String::new, |address| address.to_string()));
        self.ends.push(Some(driven));
        End(self.ends.len() - 1)
    }

    fn address(&self, end: End) -> Address {
        address(self.addresses[end.0].clone())
    }

    fn nowhere(&self) -> Address {
        address(format!("{}:9", self.host))
    }

    fn transport(&mut self, end: End) -> &mut dyn Transport {
        &mut self.ends[end.0].as_mut().expect("the endpoint is alive").rdma
    }

    fn kill(&mut self, end: End) {
        self.ends[end.0] = None;
    }

    fn raw(&mut self, address: &Address) -> Box<dyn Raw> {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        let mut verbs = Ibv::new(None, ring.wake()).unwrap_or_else(|error| panic!("{error}"));
        let address: SocketAddr = address.text.parse().unwrap();
        sealfs_rdma::verbs::Verbs::arm(&mut verbs);
        Box::new(RawLink::new(Box::new(verbs), address))
    }

    fn now(&self) -> Instant {
        sealfs_ring::now().mono
    }

    fn step(&mut self) {
        let ends: Vec<_> = self.ends.iter().flatten().collect();
        let moved = ends.iter().filter(|end| end.step(Duration::ZERO)).count();
        if moved == 0
            && let Some(end) = ends.first()
        {
            end.step(Duration::from_micros(300));
        }
    }

    /// Each is a fraction of a millisecond, and software devices in a virtual machine are slow.
    fn steps_to_settle(&self) -> usize {
        400
    }
}

fn machine() -> Option<Machine> {
    match std::env::var("SEALFS_RDMA_ADDRESS") {
        Ok(host) => Some(Machine { host, ends: Vec::new(), addresses: Vec::new() }),
        Err(_) => {
            say("not asked to run: SEALFS_RDMA_ADDRESS is not set");
            None
        }
    }
}

#[allow(clippy::print_stdout, reason = "a test that does nothing says so")]
fn say(text: &str) {
    println!("{text}");
}

macro_rules! over_verbs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                if let Some(mut machine) = machine() {
                    suite::$name(&mut machine);
                }
            }
        )*
    };
}

over_verbs! {
    every_token_completes_once
    frames_arrive_in_order
    a_slow_peer_is_bounded_by_credits
    a_paused_connection_takes_no_requests_and_loses_none
    a_lent_region_comes_back_with_the_reply_or_the_end
    a_frame_for_a_dying_connection_gives_its_region_back
    a_reply_to_a_connection_that_is_gone_is_dropped
    many_connections_live_side_by_side
    payload_of_any_size_is_pulled_whole
    payload_of_any_size_is_pushed_whole
    a_request_may_be_answered_without_a_pull
    who_has_the_key_is_admitted_by_the_core
    a_client_without_a_map_is_sent_it
    a_wrong_key_is_refused
    another_cluster_or_node_is_refused_by_name
    an_ended_session_is_told_so
    nobody_at_the_address_is_an_end_that_names_it
    a_replayed_handshake_is_refused
    garbage_ends_its_own_connection_only
}
