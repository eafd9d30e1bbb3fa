//! The conformance suite over the software provider.

mod raw;

use std::sync::Arc;

use raw::RawLink;
use sealfs_proto::{Address, TransportKind};
use sealfs_rdma::soft::Network;
use sealfs_rdma::{Config, Rdma};
use sealfs_ring::Pool;
use sealfs_transport::suite::{End, Fixture, Raw};
use sealfs_transport::{Identity, Instant, Transport};

/// Endpoints on hosts of one network, which a test drives in turn.
struct Soft {
    network: Network,
    ends: Vec<Option<Rdma>>,
    addresses: Vec<String>,
    now: Instant,
}

impl Soft {
    fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            ends: Vec::new(),
            addresses: Vec::new(),
            now: Instant(1),
        }
    }
}

fn address(text: String) -> Address {
    Address { transport: TransportKind::Rdma, text }
}

impl Fixture for Soft {
    fn endpoint(&mut self, identity: Arc<Identity>) -> End {
        let serves = identity.serves.is_some();
        let verbs = self.network.host();
        let any = verbs.address().to_string();
        let pool = Pool::new(0).unwrap();
        let rdma = Rdma::over(Box::new(verbs), None, &pool, Config::new(identity)).unwrap();
        let listening = serves.then(|| rdma.listen(&any, false).unwrap());
        self.addresses.push(listening.map_or_else(String::new, |address| address.to_string()));
        self.ends.push(Some(rdma));
        End(self.ends.len() - 1)
    }

    fn address(&self, end: End) -> Address {
        address(self.addresses[end.0].clone())
    }

    fn nowhere(&self) -> Address {
        address("192.0.2.1:1".into())
    }

    fn transport(&mut self, end: End) -> &mut dyn Transport {
        self.ends[end.0].as_mut().expect("the endpoint is alive")
    }

    fn kill(&mut self, end: End) {
        self.ends[end.0] = None;
    }

    fn raw(&mut self, address: &Address) -> Box<dyn Raw> {
        let address = address.text.parse().unwrap();
        Box::new(RawLink::new(Box::new(self.network.host()), address))
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn step(&mut self) {
        self.now.0 += 20_000;
        self.network.step();
    }
}

sealfs_transport::transport_suite!(Soft::new(1));

/// Other choices of the network: the same guarantees.
#[test]
fn whatever_the_order_of_completions_the_guarantees_hold() {
    for seed in 2..8 {
        sealfs_transport::suite::every_token_completes_once(&mut Soft::new(seed));
        sealfs_transport::suite::frames_arrive_in_order(&mut Soft::new(seed));
        sealfs_transport::suite::a_slow_peer_is_bounded_by_credits(&mut Soft::new(seed));
        sealfs_transport::suite::payload_of_any_size_is_pulled_whole(&mut Soft::new(seed));
        sealfs_transport::suite::payload_of_any_size_is_pushed_whole(&mut Soft::new(seed));
        sealfs_transport::suite::a_lent_region_comes_back_with_the_reply_or_the_end(
            &mut Soft::new(seed),
        );
    }
}
