//! The conformance suite over TCP on the loopback interface.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use sealfs_proto::{Address, TransportKind};
use sealfs_ring::Ring;
use sealfs_tcp::{Config, Tcp};
use sealfs_transport::suite::{End, Fixture, Raw};
use sealfs_transport::{Identity, Instant, Transport};

/// Endpoints that one thread drives in turn, each with its own ring.
#[derive(Default)]
struct Loopback {
    ends: Vec<Option<Driven>>,
    addresses: Vec<String>,
}

struct Driven {
    tcp: Tcp,
    ring: Ring,
}

impl Driven {
    fn new(identity: Arc<Identity>) -> Self {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        Self { tcp: Tcp::new(&ring, Config::new(identity)), ring }
    }

    /// Whether something has completed.
    fn step(&self, wait: Duration) -> bool {
        self.ring.enter(Some(wait)).unwrap();
        let completions = std::iter::from_fn(|| self.ring.next());
        completions.map(|completion| self.tcp.complete(completion)).count() > 0
    }
}

fn address(text: String) -> Address {
    Address { transport: TransportKind::Tcp, text }
}

impl Fixture for Loopback {
    fn endpoint(&mut self, identity: Arc<Identity>) -> End {
        let serves = identity.serves.is_some();
        let driven = Driven::new(identity);
        let listening = serves.then(|| driven.tcp.listen("127.0.0.1:0", false).unwrap());
        self.addresses.push(listening.map_or_else(String::new, |address| address.to_string()));
        self.ends.push(Some(driven));
        End(self.ends.len() - 1)
    }

    fn address(&self, end: End) -> Address {
        address(self.addresses[end.0].clone())
    }

    fn nowhere(&self) -> Address {
        let any = "127.0.0.1:0".parse().unwrap();
        let (_closed_at_once, free) = sealfs_ring::bind_listener(&any, 1, false).unwrap();
        address(free.to_string())
    }

    fn transport(&mut self, end: End) -> &mut dyn Transport {
        &mut self.ends[end.0].as_mut().expect("the endpoint is alive").tcp
    }

    fn kill(&mut self, end: End) {
        self.ends[end.0] = None;
    }

    fn raw(&mut self, address: &Address) -> Box<dyn Raw> {
        let stream = TcpStream::connect(&address.text).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Box::new(RawStream { stream, closed: false })
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
            end.step(Duration::from_micros(100));
        }
    }
}

struct RawStream {
    stream: TcpStream,
    closed: bool,
}

impl Raw for RawStream {
    /// What the other end does not take any more is lost, as it would be behind a real peer's death.
    fn write(&mut self, _now: Instant, bytes: &[u8]) {
        self.closed |= self.stream.write_all(bytes).is_err();
    }

    fn read(&mut self, _now: Instant) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.closed = true,
        }
        bytes
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}

sealfs_transport::transport_suite!(Loopback::default());
