//! The suite over the network in memory, plain and with faults.

use std::sync::Arc;

use sealfs_proto::{Address, TransportKind};
use sealfs_transport::faulty::{Faults, Faulty};
use sealfs_transport::mem::{MemNetwork, RawEnd};
use sealfs_transport::suite::{End, Fixture, Raw};
use sealfs_transport::{Identity, Instant, Transport};

struct Memory {
    network: MemNetwork,
    now: Instant,
    faults: Faults,
    ends: Vec<Option<Box<dyn Transport>>>,
}

impl Memory {
    fn new(faults: Faults) -> Self {
        Self { network: MemNetwork::new(1), now: Instant(0), faults, ends: Vec::new() }
    }
}

fn address(text: String) -> Address {
    Address { transport: TransportKind::Tcp, text }
}

impl Fixture for Memory {
    fn endpoint(&mut self, identity: Arc<Identity>) -> End {
        let end = End(self.ends.len());
        let transport = self.network.endpoint(&self.address(end).text, identity);
        let faulty = Faulty::new(transport, end.0 as u64, self.faults);
        self.ends.push(Some(Box::new(faulty)));
        end
    }

    fn address(&self, end: End) -> Address {
        address(format!("end{}", end.0))
    }

    fn nowhere(&self) -> Address {
        address("nowhere".into())
    }

    fn transport(&mut self, end: End) -> &mut dyn Transport {
        self.ends[end.0].as_deref_mut().expect("the endpoint is alive")
    }

    fn kill(&mut self, end: End) {
        self.network.crash(self.now, &self.address(end).text);
        self.ends[end.0] = None;
    }

    fn raw(&mut self, address: &Address) -> Box<dyn Raw> {
        Box::new(RawMemory(self.network.raw(&address.text)))
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn step(&mut self) {
        let deadlines = self.ends.iter().flatten().filter_map(|end| end.deadline());
        let next = deadlines.chain(self.network.next_arrival()).min();
        let later = Instant(self.now.0 + 1_000);
        self.now = next.unwrap_or(later).clamp(later, Instant(self.now.0 + 200_000));
    }
}

struct RawMemory(RawEnd);

impl Raw for RawMemory {
    fn write(&mut self, now: Instant, bytes: &[u8]) {
        self.0.write(now, bytes);
    }

    fn read(&mut self, now: Instant) -> Vec<u8> {
        self.0.read(now)
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

mod plain {
    use super::*;
    sealfs_transport::transport_suite!(Memory::new(Faults::default()));
}

mod late {
    use super::*;
    sealfs_transport::transport_suite!(Memory::new(Faults {
        delay_ns_max: 300_000,
        ..Faults::default()
    }));
}

/// Tokens are accounted for even when connections break of themselves.
#[test]
fn every_token_completes_once_over_connections_that_break() {
    for break_one_in in 20..60 {
        let faults = Faults { break_one_in, delay_ns_max: 100_000 };
        sealfs_transport::suite::tokens_are_accounted_for(&mut Memory::new(faults));
    }
}
