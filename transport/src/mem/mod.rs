//! A network inside one process, for tests and the simulation: virtual time, seeded latency, cut links, crashes.
//!
//! Frames travel as bytes through the real header and handshake; payload travels as slices and is copied once, where a
//! NIC would place it.
//!
//! 1. The same seed and the same calls give the same events in the same order.
//! 2. What was sent over a connection arrives in order, or the connection breaks.
//! 3. After a crash nothing more comes from the endpoint but what was on the wire already.
//!
//! It does not lose or reorder single packets: the transports that it stands for are reliable.

mod endpoint;

pub use endpoint::MemTransport;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::{Identity, Instant, Random, Slice};

/// The network. Cheap to clone; clones are the same network.
#[derive(Clone)]
pub struct MemNetwork(Rc<RefCell<Wires>>);

/// A connection that speaks bytes of the test's choice, to see what an endpoint makes of them.
pub struct RawEnd {
    wires: Rc<RefCell<Wires>>,
    endpoint: u64,
    line: u64,
    closed: bool,
}

/// All endpoints, and what is on its way between them.
struct Wires {
    random: Random,
    /// The latest moment that anyone has mentioned.
    now: Instant,
    latency_ns: (u64, u64),
    next: u64,
    listening: BTreeMap<String, u64>,
    ends: BTreeMap<u64, End>,
    lines: BTreeMap<u64, Line>,
    cut: BTreeSet<(String, String)>,
    /// Packets that wait for a cut to heal, in the order in which they were sent.
    stalled: VecDeque<(u64, usize, Packet)>,
}

/// An endpoint's side of the network.
struct End {
    address: String,
    /// By arrival, then by the order of sending: (line, packet).
    inbox: BTreeMap<(Instant, u64), (u64, Packet)>,
}

/// A connection: its two endpoints, the one that connected first, and the latest arrival at each.
struct Line {
    ends: [u64; 2],
    last: [Instant; 2],
}

#[derive(Debug)]
enum Packet {
    /// The connecting end's first one.
    Connect(Vec<u8>),
    /// A frame, and its payload.
    Frame(Vec<u8>, Vec<Slice>),
    /// The connection is broken, and why.
    Reset(String),
}

impl MemNetwork {
    /// A network whose latencies (20 to 100 µs, see [`MemNetwork::set_latency`]) follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Wires {
            random: Random::new(seed),
            now: Instant(0),
            latency_ns: (20_000, 100_000),
            next: 1,
            listening: BTreeMap::new(),
            ends: BTreeMap::new(),
            lines: BTreeMap::new(),
            cut: BTreeSet::new(),
            stalled: VecDeque::new(),
        })))
    }

    /// An endpoint named `address`. It listens there if its identity serves a node. Panics if another endpoint that is
    /// alive has the name.
    #[must_use]
    pub fn endpoint(&self, address: &str, identity: Arc<Identity>) -> MemTransport {
        let mut wires = self.0.borrow_mut();
        let taken = wires.ends.values().any(|end| end.address == address);
        assert!(!taken, "the endpoint {address} exists already");
        let id = wires.add_end(address);
        if identity.serves.is_some() {
            wires.listening.insert(address.to_owned(), id);
        }
        let nonces = Random::new(wires.random.next());
        MemTransport::new(Rc::clone(&self.0), id, address.to_owned(), identity, nonces)
    }

    /// A connection to `address` whose bytes the test chooses.
    #[must_use]
    pub fn raw(&self, address: &str) -> RawEnd {
        let mut wires = self.0.borrow_mut();
        let endpoint = wires.add_end("raw");
        let line = wires.next();
        wires.connect(Instant(0), line, endpoint, address, Vec::new());
        RawEnd { wires: Rc::clone(&self.0), endpoint, line, closed: false }
    }

    /// One-way latency of packets from now on: at least, at most.
    pub fn set_latency(&self, min_ns: u64, max_ns: u64) {
        self.0.borrow_mut().latency_ns = (min_ns, max_ns.max(min_ns));
    }

    /// Nothing passes between the two until [`MemNetwork::heal`]; what is sent meanwhile arrives then.
    pub fn cut(&self, one: &str, other: &str) {
        let mut wires = self.0.borrow_mut();
        wires.cut.insert((one.to_owned(), other.to_owned()));
        wires.cut.insert((other.to_owned(), one.to_owned()));
    }

    /// Undoes [`MemNetwork::cut`].
    pub fn heal(&self, now: Instant, one: &str, other: &str) {
        let mut wires = self.0.borrow_mut();
        wires.cut.remove(&(one.to_owned(), other.to_owned()));
        wires.cut.remove(&(other.to_owned(), one.to_owned()));
        for (line, to, packet) in std::mem::take(&mut wires.stalled) {
            wires.send(now, line, to, packet);
        }
    }

    /// The endpoint dies: its connections break at the other end, what it has not flushed and what is on its way to it
    /// vanishes, and its address refuses connections until there is a new endpoint of that name. The old
    /// [`MemTransport`] does nothing any more.
    pub fn crash(&self, now: Instant, address: &str) {
        let mut wires = self.0.borrow_mut();
        wires.listening.remove(address);
        let dead: Vec<u64> = wires
            .ends
            .iter()
            .filter(|(_, end)| end.address == address)
            .map(|(&id, _)| id)
            .collect();
        for id in dead {
            wires.remove_end(now, id);
        }
    }

    /// When the next packet arrives anywhere.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        let wires = self.0.borrow();
        wires.ends.values().filter_map(|end| end.inbox.keys().next()).map(|key| key.0).min()
    }
}

impl Wires {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn add_end(&mut self, address: &str) -> u64 {
        let id = self.next();
        self.ends.insert(id, End { address: address.to_owned(), inbox: BTreeMap::new() });
        id
    }

    fn remove_end(&mut self, now: Instant, id: u64) {
        let lines: Vec<u64> = self
            .lines
            .iter()
            .filter(|(_, line)| line.ends.contains(&id))
            .map(|(&line, _)| line)
            .collect();
        for line in lines {
            self.reset(now, line, id, "connection reset by peer");
        }
        self.ends.remove(&id);
        self.listening.retain(|_, end| *end != id);
    }

    /// Makes `line` from `endpoint` to `address` and sends its first packet.
    fn connect(&mut self, now: Instant, line: u64, endpoint: u64, address: &str, first: Vec<u8>) {
        let Some(&listener) = self.listening.get(address) else {
            self.lines.insert(line, Line { ends: [endpoint, endpoint], last: [now; 2] });
            self.send(now, line, 0, Packet::Reset("connection refused".into()));
            return;
        };
        self.lines.insert(line, Line { ends: [endpoint, listener], last: [now; 2] });
        self.send(now, line, 1, Packet::Connect(first));
    }

    /// Sends to side `to` of `line`; what nobody can receive any more is dropped.
    fn send(&mut self, now: Instant, line: u64, to: usize, packet: Packet) {
        self.now = self.now.max(now);
        let Some(Line { ends, .. }) = self.lines.get(&line) else { return };
        let (source, target) = (ends[1 - to], ends[to]);
        let name = |end| self.ends.get(&end).map(|end: &End| end.address.clone());
        let Some(target_name) = name(target) else { return };
        if name(source).is_some_and(|source| self.cut.contains(&(source, target_name))) {
            self.stalled.push_back((line, to, packet));
            return;
        }
        let (min, max) = self.latency_ns;
        let arrival = Instant(now.0 + min + self.random.below(max - min + 1));
        let number = self.next();
        let closes = matches!(packet, Packet::Reset(_));
        let last = self.lines.get_mut(&line).map(|line| &mut line.last[to]);
        let arrival = last.map_or(arrival, |last| {
            *last = arrival.max(*last);
            *last
        });
        if let Some(end) = self.ends.get_mut(&target) {
            end.inbox.insert((arrival, number), (line, packet));
        }
        if closes {
            self.lines.remove(&line);
        }
    }

    /// `endpoint` leaves `line`, and the other end is told.
    fn reset(&mut self, now: Instant, line: u64, endpoint: u64, why: &str) {
        let Some(Line { ends, .. }) = self.lines.get(&line) else { return };
        let other = usize::from(ends[0] == endpoint);
        self.send(now, line, other, Packet::Reset(why.to_owned()));
    }

    fn receive(&mut self, now: Instant, endpoint: u64) -> Option<(u64, Packet)> {
        self.now = self.now.max(now);
        let inbox = &mut self.ends.get_mut(&endpoint)?.inbox;
        let first = inbox.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}

impl RawEnd {
    /// Sends one frame's worth of bytes.
    pub fn write(&mut self, now: Instant, bytes: &[u8]) {
        let packet = Packet::Frame(bytes.to_vec(), Vec::new());
        self.wires.borrow_mut().send(now, self.line, 1, packet);
    }

    /// What has arrived since the last call.
    pub fn read(&mut self, now: Instant) -> Vec<u8> {
        let mut read = Vec::new();
        while let Some((_, packet)) = self.wires.borrow_mut().receive(now, self.endpoint) {
            match packet {
                Packet::Connect(bytes) | Packet::Frame(bytes, _) => read.extend(bytes),
                Packet::Reset(_) => self.closed = true,
            }
        }
        read
    }

    /// Whether the other end has closed the connection (as far as [`RawEnd::read`] has come).
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }
}
