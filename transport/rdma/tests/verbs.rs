//! The conformance suite over real verbs: a device of this machine, or soft-RoCE in the virtual machine of `cargo ci vm`.
//!
//! It runs where `SEALFS_RDMA_ADDRESS` names an address that an RDMA device has (`SEALFS_RDMA_DEVICE` names the device, if it
//! is to be tested); otherwise each test says that it was not asked to run.

mod raw;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use raw::RawLink;
use sealfs_proto::{
    Address, ClusterId, ClusterMap, Epoch, Header, HeaderKind, Node, NodeId, SessionId,
    TransportKind,
};
use sealfs_rdma::verbs::ibv::Ibv;
use sealfs_rdma::{Config, Rdma};
use sealfs_ring::{Pool, Ring};
use sealfs_transport::suite::{End, Fixture, Raw};
use sealfs_transport::{
    Arena, Bulk, Conn, Event, Frame, Hello, Identity, Instant, Key, Peer, Serves, Transport,
    payload_bytes_copied,
};

/// Endpoints that one thread drives in turn, each with its own ring.
struct Machine {
    host: String,
    ends: Vec<Option<Driven>>,
    addresses: Vec<String>,
}

struct Driven {
    rdma: Rdma,
    ring: Ring,
    pool: Pool,
    /// Another thread's part of the same arena.
    sibling: Pool,
}

impl Driven {
    fn new(identity: Arc<Identity>) -> Self {
        Self::with(Config::new(identity))
    }

    fn with(config: Config) -> Self {
        let [pool, sibling] = Pool::parts(ARENA_LEN / 2, 2).unwrap().try_into().unwrap();
        Self::over(pool, sibling, config)
    }

    /// With one part of an arena, another one of which is `sibling`.
    fn over(pool: Pool, sibling: Pool, config: Config) -> Self {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        let device = std::env::var("SEALFS_RDMA_DEVICE").ok();
        let config = Config { device, ..config };
        let rdma = Rdma::new(&ring, &pool, config).unwrap_or_else(|error| panic!("{error}"));
        Self { rdma, ring, pool, sibling }
    }

    /// Sleeps until something happens, and tells it.
    fn turn(&mut self) -> Vec<Event> {
        self.step(Duration::from_millis(20));
        let now = sealfs_ring::now().mono;
        let mut events = Vec::new();
        while let Some(event) = self.rdma.poll(now) {
            events.push(event);
        }
        self.rdma.flush(now);
        events
    }

    fn connect(&mut self, to: &str) -> Conn {
        let hello = Hello {
            cluster: ClusterId::default(),
            node: None,
            peer: Peer::Client { session: SessionId(1), endpoint: 0 },
            resume: false,
            map: None,
        };
        self.rdma.connect(&address(to.to_owned()), hello)
    }

    fn send(&mut self, conn: Conn, kind: HeaderKind, token: u64, bulk: Bulk) {
        let frame = Frame { header: Header::new(kind, token), body: Vec::new(), bulk };
        self.rdma.send(conn, frame);
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

sealfs_transport::transport_suite!(some machine());

const TURNS_MAX: usize = 3_000;
/// About so many bytes have the arenas of these tests.
const ARENA_LEN: usize = 16 << 20;

fn identity(serves: bool) -> Arc<Identity> {
    let map = ClusterMap {
        cluster: ClusterId([3; 16]),
        epoch: Epoch(1),
        shards_log2: 12,
        chunk_size: 1 << 20,
        nodes: vec![Node { id: NodeId(7), weight: 1, addresses: vec![] }],
    };
    let serves = serves.then(|| Serves { node: NodeId(7), map: Arc::new(map) });
    Arc::new(Identity { key: Key::new([9; 32]), serves })
}

/// A node that admits everybody, pulls what is offered, and answers with a mebibyte, or what it is asked for.
fn serve(node: &mut Driven, events: Vec<Event>) -> usize {
    let mut opened = 0;
    for event in events {
        match event {
            Event::Proven { conn, .. } => node.rdma.admit(conn, Ok(())),
            Event::Opened { .. } => opened += 1,
            Event::Request { conn, header, .. } if header.kind == HeaderKind::RequestForBulk => {
                // As if another core had made the reply.
                let mut region = node.sibling.take(header.bulk_len as usize).unwrap();
                region.bytes_mut().fill(header.token as u8);
                let bulk = Bulk::Send(vec![region.freeze()]);
                node.send(conn, HeaderKind::Reply, header.token, bulk);
            }
            Event::Request { conn, header, .. } if header.bulk_len > 0 => {
                let region = node.pool.take(header.bulk_len as usize).unwrap();
                node.rdma.pull(conn, header.token, region);
            }
            Event::Request { conn, header, .. } => {
                node.send(conn, HeaderKind::Reply, header.token, Bulk::None);
            }
            Event::Pulled { conn, token, region, len } => {
                assert!(region.bytes()[..len as usize].iter().all(|&byte| byte == token as u8));
                node.send(conn, HeaderKind::Reply, token, Bulk::None);
            }
            Event::Closed { .. } => {}
            other @ Event::Reply { .. } => panic!("{other:?}"),
        }
    }
    opened
}

/// Turns both until the client has an event that `wanted` takes.
fn until<T>(
    node: &mut Driven,
    client: &mut Driven,
    mut wanted: impl FnMut(&Event) -> Option<T>,
) -> T {
    for _ in 0..TURNS_MAX {
        let events = node.turn();
        serve(node, events);
        node.rdma.flush(sealfs_ring::now().mono);
        if let Some(found) = client.turn().iter().find_map(&mut wanted) {
            return found;
        }
    }
    panic!("waited in vain");
}

/// By RDMA WRITE and RDMA READ, from arena to arena; the counters say so.
#[test]
fn payload_between_arenas_is_not_copied() {
    let Some(machine) = machine() else { return };
    let (mut node, mut client) = (Driven::new(identity(true)), Driven::new(identity(false)));
    let to = node.rdma.listen(&format!("{}:0", machine.host), false).unwrap().to_string();
    let conn = client.connect(&to);
    until(&mut node, &mut client, |event| matches!(event, Event::Opened { .. }).then_some(()));
    let before = payload_bytes_copied();
    let room = client.pool.take(1 << 20).unwrap();
    client.send(conn, HeaderKind::RequestForBulk, 5, Bulk::Receive(room));
    until(&mut node, &mut client, |event| match event {
        Event::Reply { header, region: Some(region), .. } => {
            assert_eq!(header.bulk_len, 1 << 20);
            assert!(region.bytes().iter().all(|&byte| byte == 5));
            Some(())
        }
        _ => None,
    });
    let mut region = client.pool.take(700_000).unwrap();
    region.bytes_mut().fill(6);
    client.send(conn, HeaderKind::Request, 6, Bulk::Send(vec![region.freeze()]));
    until(&mut node, &mut client, |event| matches!(event, Event::Reply { .. }).then_some(()));
    assert_eq!(payload_bytes_copied() - before, 0);
    let stats = node.rdma.stats();
    let counters = stats.connections[0].counters;
    say(&format!("{}: {counters:?}", stats.connections[0].facts));
    assert_eq!((counters.bytes_written, counters.bytes_read), (1 << 20, 700_000));
    assert_eq!(stats.connections[0].facts.gid.1, "RoCE v2");
}

/// The kernel counts what devices pin.
#[test]
fn an_arena_is_pinned_once_whichever_threads_use_it() {
    let Some(_) = machine() else { return };
    let pinned = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let first = Driven::new(identity(true));
    let with_one = pinned();
    assert!(with_one >= ARENA_LEN as u64 / 2, "{with_one} bytes are pinned");
    let (pool, sibling) = (first.sibling.clone(), first.pool.clone());
    let second = Driven::over(pool, sibling, Config::new(identity(true)));
    assert_eq!(pinned(), with_one);
    drop((first, second));
    assert_eq!(pinned(), 0);
}

/// A probe writes nothing, which the peer's device acknowledges by itself.
#[test]
fn a_peer_that_is_silent_and_alive_answers_probes() {
    let Some(machine) = machine() else { return };
    let config = Config { keepalive_ms: 100, ..Config::new(identity(true)) };
    let (mut node, mut client) = (Driven::with(config), Driven::new(identity(false)));
    let to = node.rdma.listen(&format!("{}:0", machine.host), false).unwrap().to_string();
    let conn = client.connect(&to);
    until(&mut node, &mut client, |event| matches!(event, Event::Opened { .. }).then_some(()));
    let probes = |node: &Driven| node.rdma.stats().connections[0].counters.probes;
    for _ in 0..TURNS_MAX {
        let events = node.turn();
        assert!(!events.iter().any(|event| matches!(event, Event::Closed { .. })), "{events:?}");
        serve(&mut node, events);
        if probes(&node) >= 5 {
            break;
        }
    }
    assert!(probes(&node) >= 5);
    client.send(conn, HeaderKind::Request, 1, Bulk::None);
    until(&mut node, &mut client, |event| matches!(event, Event::Reply { .. }).then_some(()));
}

/// Each listens for itself, at one port; each gets some of the connections, and serves them.
#[test]
fn threads_of_a_node_share_a_port() {
    let Some(machine) = machine() else { return };
    let (stop, opened) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mut first = Driven::new(identity(true));
    let to = first.rdma.listen(&format!("{}:0", machine.host), true).unwrap().to_string();
    // It stays on this thread; the other one is made where it runs.
    std::thread::scope(|scope| {
        let (to_there, stop, there) = (to.clone(), &stop, &opened[1]);
        scope.spawn(move || {
            let mut second = Driven::new(identity(true));
            second.rdma.listen(&to_there, true).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let events = second.turn();
                there.fetch_add(serve(&mut second, events), Ordering::Relaxed);
                second.rdma.flush(sealfs_ring::now().mono);
            }
        });
        let mut client = Driven::new(identity(false));
        let (mut asked, mut answered) = (0, 0);
        for _ in 0..TURNS_MAX {
            if asked < 8 {
                client.connect(&to);
                asked += 1;
            }
            let events = first.turn();
            opened[0].fetch_add(serve(&mut first, events), Ordering::Relaxed);
            first.rdma.flush(sealfs_ring::now().mono);
            for event in client.turn() {
                match event {
                    Event::Opened { conn, .. } => {
                        client.send(conn, HeaderKind::Request, 1, Bulk::None);
                    }
                    Event::Reply { .. } => answered += 1,
                    other => panic!("{other:?}"),
                }
            }
            if answered == 8 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(answered, 8);
    });
    let opened = opened.map(AtomicUsize::into_inner);
    assert!(opened[0] >= 2 && opened[1] >= 2, "connections of each thread: {opened:?}");
}

/// The client of the next test: tells that it is connected, with a request in flight, and waits for its end.
#[test]
#[ignore = "started by a_client_that_is_killed_is_noticed"]
fn a_client_to_be_killed() {
    let Ok(to) = std::env::var("SEALFS_RDMA_PEER") else { return };
    let mut client = Driven::new(identity(false));
    let conn = client.connect(&to);
    loop {
        for event in client.turn() {
            if let Event::Opened { .. } = event {
                let room = client.pool.take(1 << 20).unwrap();
                client.send(conn, HeaderKind::RequestForBulk, 5, Bulk::Receive(room));
                say("connected");
            }
        }
    }
}

/// Its connection ends while the node writes to it, and the node goes on.
#[test]
fn a_client_that_is_killed_is_noticed() {
    let Some(machine) = machine() else { return };
    let mut node = Driven::new(identity(true));
    let to = node.rdma.listen(&format!("{}:0", machine.host), false).unwrap().to_string();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "a_client_to_be_killed"])
        .env("SEALFS_RDMA_PEER", &to)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = None;
    for _ in 0..TURNS_MAX {
        for event in node.turn() {
            match event {
                Event::Request { conn, .. } => asked = Some(conn),
                other => drop(serve(&mut node, vec![other])),
            }
        }
        node.rdma.flush(sealfs_ring::now().mono);
        if asked.is_some() {
            break;
        }
    }
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("connected")));
    child.kill().unwrap();
    child.wait().unwrap();
    let region = node.pool.take(1 << 20).unwrap();
    let bulk = Bulk::Send(vec![region.freeze()]);
    node.send(asked.expect("it has asked"), HeaderKind::Reply, 5, bulk);
    for _ in 0..TURNS_MAX {
        if let Some(Event::Closed { why, .. }) =
            node.turn().into_iter().find(|event| matches!(event, Event::Closed { .. }))
        {
            say(&format!("the node says: {why}"));
            let mut client = Driven::new(identity(false));
            let conn = client.connect(&to);
            client.send(conn, HeaderKind::Request, 1, Bulk::None);
            return until(&mut node, &mut client, |event| {
                matches!(event, Event::Opened { .. }).then_some(())
            });
        }
    }
    panic!("the node does not notice");
}

/// The device is removed while a call is under way, and its address comes back with another one: connections end, the port
/// is served again. As root, with rxe0 on rx0, and for nobody behind it: soft-RoCE's own removal ends only when librdmacm
/// has met the new device, or with this process.
#[test]
#[ignore = "removes the machine's device"]
fn a_device_that_vanishes_is_replaced() {
    let Some(machine) = machine() else { return };
    let run = |command: &str| Command::new("sh").args(["-c", command]).spawn().unwrap();
    let (mut node, mut client) = (Driven::new(identity(true)), Driven::new(identity(false)));
    let to = node.rdma.listen(&format!("{}:0", machine.host), false).unwrap().to_string();
    let conn = client.connect(&to);
    until(&mut node, &mut client, |event| matches!(event, Event::Opened { .. }).then_some(()));
    let room = client.pool.take(1 << 20).unwrap();
    client.send(conn, HeaderKind::RequestForBulk, 5, Bulk::Receive(room));
    let mut removal = run("exec rdma link delete rxe0");
    let why = until(&mut node, &mut client, |event| match event {
        Event::Closed { why, .. } => Some(why.clone()),
        _ => None,
    });
    say(&format!("the client says: {why}"));
    let address = machine.host;
    let replaced = run(&format!(
        "set -e; /usr/bin/ip address del {address}/24 dev rx0; /usr/bin/ip link add rx1 type dummy; \
         /usr/bin/ip link set rx1 mtu 4500 up; /usr/bin/ip address add {address}/24 dev rx1; \
         rdma link add rxe1 type rxe netdev rx1"
    ))
    .wait();
    assert!(replaced.unwrap().success());
    for _ in 0..TURNS_MAX {
        client.connect(&to);
        let is_open = until(&mut node, &mut client, |event| match event {
            Event::Opened { .. } => Some(true),
            Event::Closed { why, .. } => {
                say(&format!("not yet: {why}"));
                Some(false)
            }
            _ => None,
        });
        if is_open {
            break;
        }
    }
    assert!(removal.wait().unwrap().success(), "the old device is let go");
}
