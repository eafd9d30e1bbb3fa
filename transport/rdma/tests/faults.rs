//! What goes wrong, on demand, over the software provider: failed work, silent peers, memory that is reached too late.

use std::sync::Arc;

use sealfs_proto::{
    Address, ClusterId, ClusterMap, Epoch, Header, HeaderKind, Node, NodeId, SessionId,
    TransportKind, limits,
};
use sealfs_rdma::soft::{Host, Kind, Network};
use sealfs_rdma::verbs::Fault;
use sealfs_rdma::{Config, Rdma};
use sealfs_ring::Pool;
use sealfs_transport::{
    Arena, Bulk, CloseReason, Conn, Event, Frame, Hello, Identity, Instant, Key, Peer, Region,
    Serves, Slice, Transport, payload_bytes_copied,
};

/// A node, and clients of it.
struct World {
    network: Network,
    now: Instant,
    ends: Vec<Option<End>>,
    address: Address,
}

struct End {
    rdma: Rdma,
    pool: Pool,
    /// Another thread's part of the same arena.
    sibling: Pool,
    host: Host,
}

const SERVER: usize = 0;
const STEPS_MAX: usize = 20_000;

impl World {
    fn new(seed: u64) -> Self {
        let network = Network::new(seed);
        let address = Address { transport: TransportKind::Rdma, text: String::new() };
        let mut world = Self { network, now: Instant(1), ends: Vec::new(), address };
        let map = ClusterMap {
            cluster: ClusterId([3; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: 1 << 20,
            nodes: vec![Node { id: NodeId(7), weight: 1, addresses: vec![] }],
        };
        world.add(Some(Serves { node: NodeId(7), map: Arc::new(map) }));
        world
    }

    fn add(&mut self, serves: Option<Serves>) -> usize {
        let verbs = self.network.host();
        let (host, any) = (verbs.name(), verbs.address().to_string());
        let listens = serves.is_some();
        let identity = Arc::new(Identity { key: Key::new([9; 32]), serves });
        let [pool, sibling] = Pool::parts(32 << 20, 2).unwrap().try_into().unwrap();
        let rdma = Rdma::over(Box::new(verbs), None, &pool, Config::new(identity)).unwrap();
        if listens {
            self.address.text = rdma.listen(&any, false).unwrap().to_string();
        }
        self.ends.push(Some(End { rdma, pool, sibling, host }));
        self.ends.len() - 1
    }

    fn end(&mut self, end: usize) -> &mut End {
        self.ends[end].as_mut().unwrap()
    }

    /// A client with an open connection: its number at the client and at the server.
    fn client(&mut self) -> (usize, Conn, Conn) {
        let client = self.add(None);
        let address = self.address.clone();
        let hello = Hello {
            cluster: ClusterId::default(),
            node: None,
            peer: Peer::Client { session: SessionId(1), endpoint: 0 },
            resume: false,
            map: None,
        };
        let conn = self.end(client).rdma.connect(&address, hello);
        let (mut opened, mut served) = (false, None);
        for _ in 0..STEPS_MAX {
            for (end, event) in self.turn() {
                match event {
                    Event::Proven { conn, .. } => self.end(SERVER).rdma.admit(conn, Ok(())),
                    Event::Opened { conn, .. } if end == SERVER => served = Some(conn),
                    Event::Opened { .. } => opened = true,
                    other => panic!("{other:?}"),
                }
            }
            if let (true, Some(served)) = (opened, served) {
                return (client, conn, served);
            }
        }
        panic!("no connection");
    }

    /// One turn of every endpoint, then of the network.
    fn turn(&mut self) -> Vec<(usize, Event)> {
        let events = self.turn_of_ends();
        self.network.step();
        events
    }

    fn turn_of_ends(&mut self) -> Vec<(usize, Event)> {
        self.now.0 += 20_000;
        let mut events = Vec::new();
        for (number, end) in self.ends.iter_mut().enumerate() {
            let Some(end) = end else { continue };
            end.rdma.flush(self.now);
            while let Some(event) = end.rdma.poll(self.now) {
                events.push((number, event));
            }
            end.rdma.flush(self.now);
        }
        events
    }

    /// The first event that `wanted` takes.
    fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(usize, Event) -> Option<T>) -> T {
        for _ in 0..STEPS_MAX {
            let mut found = None;
            for (end, event) in self.turn() {
                found = found.or(wanted(end, event));
            }
            if let Some(found) = found {
                return found;
            }
        }
        panic!("waited in vain for {what}");
    }

    fn ask(&mut self, client: usize, conn: Conn, token: u64, body: Vec<u8>, bulk: Bulk) {
        let kind = match bulk {
            Bulk::Receive(_) => HeaderKind::RequestForBulk,
            Bulk::None | Bulk::Send(_) => HeaderKind::Request,
        };
        let frame = Frame { header: Header::new(kind, token), body, bulk };
        self.end(client).rdma.send(conn, frame);
    }

    fn answer(&mut self, conn: Conn, token: u64, body: Vec<u8>, bulk: Bulk) {
        let frame = Frame { header: Header::new(HeaderKind::Reply, token), body, bulk };
        self.end(SERVER).rdma.send(conn, frame);
    }

    /// A region of the endpoint's pool.
    fn region(&mut self, end: usize, len: usize, fill: u8) -> Region {
        let mut region = self.end(end).pool.take(len).unwrap();
        region.bytes_mut().fill(fill);
        region
    }

    fn slice(&mut self, end: usize, len: usize, fill: u8) -> Slice {
        self.region(end, len, fill).freeze()
    }

    fn wait_for_request(&mut self, token: u64) {
        self.until("the request", |_, event| match event {
            Event::Request { header, .. } => (header.token == token).then_some(()),
            _ => None,
        });
    }

    /// Why a connection has ended at an endpoint, and the tokens whose regions came back.
    fn closed(&mut self, of: usize) -> (CloseReason, Vec<u64>) {
        self.until("the end", |end, event| match event {
            Event::Closed { why, lent, .. } if end == of => {
                Some((why, lent.into_iter().map(|(token, _)| token).collect()))
            }
            _ => None,
        })
    }
}

#[test]
fn failed_work_ends_its_own_connection_and_names_itself() {
    for (kind, what) in [
        (Kind::Send, "SEND of"),
        (Kind::Write, "RDMA WRITE of 5000"),
        (Kind::Read, "RDMA READ of 5000"),
    ] {
        let mut world = World::new(1);
        let (client, conn, served) = world.client();
        let (other, other_conn, other_served) = world.client();
        let room = world.region(client, 5_000, 0);
        world.ask(client, conn, 1, vec![], Bulk::Receive(room));
        world.wait_for_request(1);
        let slice = world.slice(client, 5_000, 1);
        world.ask(client, conn, 2, vec![], Bulk::Send(vec![slice]));
        world.wait_for_request(2);
        let host = world.end(SERVER).host;
        world.network.fail_next(host, kind, Fault::NoAcknowledgement);
        let region = world.region(SERVER, 5_000, 0);
        match kind {
            Kind::Read => world.end(SERVER).rdma.pull(served, 2, region),
            _ => world.answer(served, 1, vec![], Bulk::Send(vec![region.freeze()])),
        }
        let (mut at_server, mut lent) = (None, None);
        world.until("both ends", |end, event| {
            match event {
                Event::Closed { conn, why, .. } if end == SERVER => {
                    assert_eq!(conn, served);
                    at_server = Some(why);
                }
                Event::Closed { lent: back, .. } => {
                    lent = Some(back.into_iter().map(|(token, _)| token).collect::<Vec<_>>());
                }
                // It may have left before what failed.
                Event::Reply { .. } => panic!("a reply behind failed work"),
                _ => {}
            }
            (at_server.is_some() && lent.is_some()).then_some(())
        });
        assert_eq!(lent, Some(vec![1]), "{what}");
        let Some(CloseReason::Gone(text)) = at_server else { panic!("{at_server:?}") };
        assert!(text.starts_with("192.0.2.2:"), "the peer: {text}");
        assert!(text.contains(what) && text.contains("no acknowledgement"), "{text}");
        world.ask(other, other_conn, 3, vec![], Bulk::None);
        world.wait_for_request(3);
        world.answer(other_served, 3, vec![], Bulk::None);
        world.until("a healthy peer's reply", |_, event| {
            matches!(event, Event::Reply { .. }).then_some(())
        });
    }
}

#[test]
fn a_peer_that_fell_silent_is_found_by_a_probe() {
    let mut world = World::new(1);
    let (client, _, _) = world.client();
    let (other, other_conn, _) = world.client();
    let host = world.end(client).host;
    world.network.silence(host);
    world.ends[client] = None;
    for _ in 0..4 {
        world.now = world.now.after_ms(6_000);
        let events = world.turn();
        assert!(events.is_empty(), "it is not given up by time alone: {events:?}");
    }
    world.network.expire();
    let (why, _) = world.closed(SERVER);
    assert!(why.to_string().contains("keepalive probe failed: no acknowledgement"), "{why}");
    world.ask(other, other_conn, 3, vec![], Bulk::None);
    world.wait_for_request(3);
}

/// Both ways, straight between the arenas, also of what lies in another thread's part.
#[test]
fn payload_in_registered_memory_is_not_copied() {
    const LEN: usize = 300_000;
    let mut world = World::new(1);
    let (client, conn, served) = world.client();
    let before = payload_bytes_copied();
    let room = world.region(client, LEN, 0);
    world.ask(client, conn, 1, vec![], Bulk::Receive(room));
    world.wait_for_request(1);
    let slices = [(100_000, 1), (100_000, 2), (100_000, 3)];
    let mut slices = slices.map(|(len, fill)| world.slice(SERVER, len, fill));
    let mut elsewhere = world.end(SERVER).sibling.take(100_000).unwrap();
    elsewhere.bytes_mut().fill(2);
    slices[1] = elsewhere.freeze();
    world.answer(served, 1, vec![], Bulk::Send(slices.to_vec()));
    let region = world.until("the reply", |_, event| match event {
        Event::Reply { region, header, .. } => region.filter(|_| header.bulk_len == LEN as u32),
        _ => None,
    });
    for (index, part) in region.bytes().chunks(100_000).enumerate() {
        assert!(part.iter().all(|&byte| usize::from(byte) == index + 1), "part {index}");
    }
    world.ask(client, conn, 2, vec![], Bulk::Send(vec![region.freeze()]));
    world.wait_for_request(2);
    let target = world.end(SERVER).sibling.take(LEN).unwrap();
    world.end(SERVER).rdma.pull(served, 2, target);
    let pulled = world.until("the payload", |_, event| match event {
        Event::Pulled { region, .. } => Some(region),
        _ => None,
    });
    assert_eq!((pulled.bytes()[0], pulled.bytes()[LEN - 1]), (1, 3));
    assert_eq!(payload_bytes_copied() - before, 0);
    let stats = world.end(SERVER).rdma.stats();
    let counters = stats.connections[0].counters;
    assert_eq!((counters.bytes_read, counters.bytes_written), (LEN as u64, LEN as u64));

    world.answer(served, 2, vec![], Bulk::None);
    world.ask(client, conn, 3, vec![], Bulk::Send(vec![Region::zeroed(LEN).freeze()]));
    world.wait_for_request(3);
    world.end(SERVER).rdma.pull(served, 3, Region::zeroed(LEN));
    world.until("the payload", |_, event| matches!(event, Event::Pulled { .. }).then_some(()));
    assert_eq!(payload_bytes_copied() - before, 2 * LEN as u64, "at both ends");
}

/// The largest of both directions, many at once: they are cut, and windows hold them up.
#[test]
fn bodies_larger_than_a_message_arrive_whole() {
    let mut world = World::new(1);
    let (client, conn, served) = world.client();
    let body = |token: u64| -> Vec<u8> {
        let len = (limits::BODY_LEN_MAX as usize) - 1_000 * token as usize;
        (0..len).map(|at| (at as u64 * 31 + token) as u8).collect()
    };
    for token in 0..6 {
        world.ask(client, conn, token, body(token), Bulk::None);
    }
    let mut done = 0;
    for _ in 0..STEPS_MAX {
        for (_, event) in world.turn() {
            match event {
                Event::Request { header, body: got, .. } => {
                    assert!(got == body(header.token), "request {}", header.token);
                    world.answer(served, header.token, got, Bulk::None);
                }
                Event::Reply { header, body: got, .. } => {
                    assert!(got == body(header.token), "reply {}", header.token);
                    done += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        if done == 6 {
            break;
        }
    }
    assert_eq!(done, 6);
    let host = world.end(SERVER).host;
    assert_eq!(world.network.buffers(host).1, 0, "nobody met a receiver that was not ready");
}

/// The peer may use its memory again when the reply is there, so the reply must not overtake the read.
#[test]
fn a_reply_does_not_overtake_the_pull_of_its_request() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        let (client, conn, served) = world.client();
        let slice = world.slice(client, 200_000, 5);
        world.ask(client, conn, 1, vec![], Bulk::Send(vec![slice]));
        world.wait_for_request(1);
        let target = world.region(SERVER, 200_000, 0);
        world.end(SERVER).rdma.pull(served, 1, target);
        world.answer(served, 1, vec![], Bulk::None);
        let (mut pulled, mut replied) = (false, false);
        world.until("both", |_, event| {
            match event {
                Event::Pulled { region, .. } => {
                    assert!(region.bytes().iter().all(|&byte| byte == 5), "seed {seed}");
                    pulled = true;
                }
                Event::Reply { .. } => replied = true,
                other => panic!("seed {seed}: {other:?}"),
            }
            (pulled && replied).then_some(())
        });
    }
}

/// The server's write is under way when the client gives up: the region is the client's again, and stays as it is.
#[test]
fn a_region_that_came_back_is_out_of_the_peers_reach() {
    for steps in 0..6 {
        let mut world = World::new(steps);
        let (client, conn, served) = world.client();
        let room = world.region(client, 1 << 20, 7);
        world.ask(client, conn, 1, vec![], Bulk::Receive(room));
        world.wait_for_request(1);
        let slices = (0..200).map(|_| world.slice(SERVER, 4_096, 9)).collect();
        world.answer(served, 1, vec![], Bulk::Send(slices));
        for _ in 0..steps {
            world.turn();
        }
        world.end(client).rdma.close(conn);
        let region = world.until("the end", |end, event| match event {
            Event::Closed { mut lent, .. } if end == client => Some(lent.remove(0).1),
            _ => None,
        });
        let then = region.bytes().to_vec();
        assert!(then.contains(&7), "the write was not over");
        for _ in 0..200 {
            world.turn();
        }
        assert!(region.bytes() == then, "nobody else writes to it");
    }
}

/// Memory to copy through is scarce: frames wait for it, in order, and none is lost when a connection dies meanwhile.
#[test]
fn payload_waits_for_memory_to_copy_through() {
    let mut world = World::new(3);
    let (client, conn, served) = world.client();
    let (other, other_conn, other_served) = world.client();
    for token in 0..30 {
        world.ask(client, conn, token, vec![], Bulk::Receive(Region::zeroed(1 << 20)));
        world.ask(other, other_conn, token, vec![], Bulk::Receive(Region::zeroed(1 << 20)));
    }
    let (mut seen, mut back) = (Vec::new(), 0);
    for turn in 0..STEPS_MAX {
        for (end, event) in world.turn() {
            match event {
                Event::Request { conn, header, .. } if conn == served => {
                    seen.push(header.token);
                    let bulk = Bulk::Send(vec![Region::zeroed(1 << 20).freeze()]);
                    world.answer(served, header.token, vec![], bulk);
                }
                Event::Reply { header, .. } => {
                    assert_eq!((end, header.bulk_len), (client, 1 << 20));
                    back += 1;
                }
                Event::Closed { lent, .. } if end == other => assert_eq!(lent.len(), 30),
                _ => {}
            }
        }
        if turn == 40 {
            world.end(SERVER).rdma.close(other_served);
        }
        if back == 30 {
            break;
        }
    }
    assert_eq!((seen, back), ((0..30).collect(), 30));
}

#[test]
fn memory_beyond_the_limit_is_refused_at_the_start_with_the_limit_and_the_next_step() {
    let network = Network::new(1);
    let verbs = network.host();
    network.limit_memory(verbs.name(), 8 << 20);
    let identity = Arc::new(Identity { key: Key::new([9; 32]), serves: None });
    let pool = Pool::new(32 << 20).unwrap();
    let refused = Rdma::over(Box::new(verbs), None, &pool, Config::new(identity));
    let text = refused.err().expect("there is no endpoint").to_string();
    for part in ["32 MiB", "RLIMIT_MEMLOCK is 8192 KiB", "ulimit -l unlimited", "LimitMEMLOCK"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn memory_that_cannot_be_registered_later_ends_only_the_connection_that_needs_it() {
    let mut world = World::new(1);
    let (poor, poor_conn, _) = world.client();
    let (rich, rich_conn, _) = world.client();
    let host = world.end(poor).host;
    world.network.limit_memory(host, 1);
    // It does not lie in registered memory, so that there must be more to copy through.
    world.ask(poor, poor_conn, 1, vec![], Bulk::Receive(Region::zeroed(10_000)));
    world.ask(rich, rich_conn, 2, vec![], Bulk::Receive(Region::zeroed(10_000)));
    let (mut ended, mut answered, mut asked) = (None, false, None);
    for _ in 0..STEPS_MAX {
        for (end, event) in world.turn() {
            match event {
                Event::Closed { why, lent, .. } if end == poor => {
                    assert_eq!((lent.len(), lent[0].0), (1, 1), "what was to be lent comes back");
                    ended = Some(why.to_string());
                }
                Event::Request { conn, .. } => asked = Some(conn),
                Event::Reply { .. } => answered |= end == rich,
                _ => {}
            }
        }
        if let Some(conn) = asked.take() {
            world.answer(conn, 2, vec![], Bulk::None);
        }
        if ended.is_some() && answered {
            break;
        }
    }
    let text = ended.expect("the connection cannot go on");
    assert!(text.contains("RLIMIT_MEMLOCK") && answered, "{text}");
}
