//! `Calls` at both ends of a network in memory.

mod figures;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use sealfs_proto::{
    Address, Claim, ClusterId, ClusterMap, Epoch, Errno, Header, Ino, Node, NodeId, Reply, Request,
    ShardId, Status, TransportKind, decode, encode, limits,
};

use super::*;
use crate::faulty::{Faults, Faulty};
use crate::mem::MemNetwork;
use crate::tasks::Tasks;
use crate::{Hello, Identity, Key, Serves};

fn address(text: &str) -> Address {
    Address { transport: TransportKind::Tcp, text: text.into() }
}

fn map() -> Arc<ClusterMap> {
    let node =
        |id| Node { id: NodeId(id), weight: 1, addresses: vec![address(&format!("node{id}"))] };
    Arc::new(ClusterMap {
        cluster: ClusterId([3; 16]),
        epoch: Epoch(1),
        shards_log2: 12,
        chunk_size: 1 << 20,
        nodes: vec![node(1), node(2)],
    })
}

fn identity(serves: Option<Serves>) -> Arc<Identity> {
    Arc::new(Identity { key: Key::new([9; 32]), serves })
}

/// A node that answers as the test wants and notes what it sees.
struct Server {
    calls: Calls,
    /// Requests seen: (header, request).
    seen: Vec<(Header, Request)>,
    hellos: Vec<Hello>,
    /// Sessions it does not know (any more).
    ended: Vec<u64>,
    answer: Box<Respond>,
    open: Vec<Conn>,
}

/// What a server makes of a request; `None`: it does not answer.
type Respond = dyn FnMut(&Header, &Request) -> Option<(Status, Reply)>;
/// A call's name, and how it ended.
type Logged = (u32, Result<Reply, CallError>);

struct World {
    network: MemNetwork,
    /// What nodes that start now have.
    map: Arc<ClusterMap>,
    now: Instant,
    client: Calls,
    tasks: Tasks,
    servers: Vec<Option<Server>>,
    log: Rc<RefCell<Vec<Logged>>>,
}

fn server(network: &MemNetwork, map: &Arc<ClusterMap>, node: u16) -> Server {
    let node = NodeId(node);
    let address = map.node(node).unwrap().addresses[0].text.clone();
    let serves = Serves { node, map: Arc::clone(map) };
    let transport = network.endpoint(&address, identity(Some(serves)));
    let me = Me::Node { node, endpoint: 0 };
    Server {
        calls: Calls::new(Box::new(transport), me, Options::default()),
        seen: Vec::new(),
        hellos: Vec::new(),
        ended: Vec::new(),
        answer: Box::new(|_, _| Some((Status::Ok, Reply::Done))),
        open: Vec::new(),
    }
}

impl Server {
    fn turn(&mut self, now: Instant) {
        self.calls.turn(now);
        while let Some(event) = self.calls.next_served() {
            match event {
                Event::Proven { conn, hello } => {
                    self.hellos.push(hello);
                    let known = !matches!(hello.peer, Peer::Client { session, .. }
                        if self.ended.contains(&session.0));
                    self.calls
                        .admit(conn, if known { Ok(()) } else { Err(CloseReason::NoSession) });
                }
                Event::Opened { conn, .. } => self.open.push(conn),
                Event::Request { conn, header, body } => {
                    let request: Request = decode("request", &body).unwrap();
                    let answer = (self.answer)(&header, &request);
                    self.seen.push((header, request));
                    if let Some((status, reply)) = answer {
                        let body = if status == Status::Ok { encode(&reply) } else { Vec::new() };
                        self.calls.reply(conn, header.token, status, body, Vec::new());
                    }
                }
                Event::Closed { conn, .. } => self.open.retain(|other| *other != conn),
                Event::Pulled { .. } | Event::Reply { .. } => {}
            }
        }
        self.calls.flush(now);
    }
}

impl World {
    fn new(options: Options) -> Self {
        let network = MemNetwork::new(7);
        let transport = network.endpoint("client", identity(None));
        let me = Me::Client { endpoint: 0, session_seed: 42 };
        let client = Calls::new(Box::new(transport), me, options);
        client.set_map(&map());
        let map = map();
        let servers = [1, 2].map(|node| Some(server(&network, &map, node))).into();
        Self {
            network,
            map,
            now: Instant(1_000),
            client,
            tasks: Tasks::new(),
            servers,
            log: Rc::default(),
        }
    }

    fn turn(&mut self) -> Option<Instant> {
        self.client.turn(self.now);
        self.tasks.run_ready();
        let mut next = self.client.flush(self.now);
        for server in self.servers.iter_mut().flatten() {
            server.turn(self.now);
            next = next.into_iter().chain(server.calls.flush(self.now)).min();
        }
        next.into_iter().chain(self.network.next_arrival()).min()
    }

    /// Lets `ms` milliseconds pass, from one event to the next.
    fn run(&mut self, ms: u64) {
        let end = self.now.after_ms(ms);
        for _ in 0..200_000 {
            let next = self.turn();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = next.max(Instant(self.now.0 + 1)),
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the world does not come to rest");
    }

    /// Makes a call whose answer goes to the log as `name`.
    fn ask(&self, name: u32, node: u16, ask: Ask) {
        let (call, log) = (self.client.call(NodeId(node), ask), Rc::clone(&self.log));
        self.tasks.spawn(async move {
            let answer = call.await.map(|answer| answer.reply);
            log.borrow_mut().push((name, answer));
        });
    }

    fn answers(&self) -> Vec<Logged> {
        std::mem::take(&mut self.log.borrow_mut())
    }

    fn server(&mut self, node: usize) -> &mut Server {
        self.servers[node - 1].as_mut().expect("the node is up")
    }

    fn crash(&mut self, node: usize) {
        self.network.crash(self.now, &format!("node{node}"));
        self.servers[node - 1] = None;
    }

    fn start(&mut self, node: u16) {
        self.servers[usize::from(node) - 1] = Some(server(&self.network, &self.map, node));
    }

    /// Starts a node at another address, under a map that says so.
    fn move_node(&mut self, node: u16, text: &str) {
        let map = Arc::make_mut(&mut self.map);
        map.epoch.0 += 1;
        map.nodes[usize::from(node) - 1].addresses = vec![address(text)];
        self.start(node);
    }
}

fn change(number: u64) -> Ask {
    Ask::change(ShardId(5), Request::Close { ino: Ino(number), opens: 1 })
}

fn read() -> Ask {
    Ask::read(ShardId(5), Request::Stat { ino: Ino(9) })
}

/// The numbers of the changes that a node has seen, and their sequences.
fn changes(server: &Server) -> Vec<(u64, u64)> {
    let numbers = server.seen.iter().filter_map(|(header, request)| match request {
        Request::Close { ino, .. } => Some((ino.0, header.sequence.0)),
        _ => None,
    });
    numbers.collect()
}

#[test]
fn a_call_is_answered() {
    let mut world = World::new(Options::default());
    world.ask(1, 1, read());
    world.ask(2, 2, change(1));
    world.run(10);
    let mut answers = world.answers();
    answers.sort_by_key(|(name, _)| *name);
    assert_eq!(answers, [(1, Ok(Reply::Done)), (2, Ok(Reply::Done))]);
    let header = world.server(2).seen[0].0;
    assert_eq!(
        (header.sequence.0, header.watermark.0, header.shard, header.epoch),
        (1, 1, ShardId(5), Epoch(1))
    );
    assert_eq!(world.client.peers()[0].connected, Some(TransportKind::Tcp));
}

#[test]
fn errors_and_verdicts_reach_the_caller() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|header, _| {
        let status = match header.sequence.0 {
            1 => Status::Errno(Errno::ENOENT),
            _ => Status::Answered,
        };
        Some((status, Reply::Done))
    });
    (1..=2).for_each(|number| world.ask(number, 1, change(u64::from(number))));
    world.ask(4, 9, read());
    world.run(10);
    let node = NodeId(1);
    assert_eq!(
        world.answers(),
        [
            (4, Err(CallError::Unknown { node: NodeId(9) })),
            (1, Err(CallError::Errno(Errno::ENOENT))),
            (2, Err(CallError::Answered { node })),
        ]
    );
}

#[test]
fn a_node_that_does_not_hold_the_shard_is_asked_again_until_the_deadline() {
    let mut world = World::new(Options { timeout_ms: 2_000, ..Options::default() });
    world.server(1).answer = Box::new(|header, _| {
        let status = if header.shard == ShardId(5) { Status::StaleMap } else { Status::Ok };
        Some((status, Reply::Done))
    });
    world.ask(1, 1, change(1));
    world.run(1_000);
    assert_eq!(world.answers(), []);
    world.server(1).answer = Box::new(|_, _| Some((Status::Ok, Reply::Done)));
    world.run(1_000);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
    world.server(1).answer = Box::new(|_, _| Some((Status::StaleMap, Reply::Done)));
    world.ask(2, 1, change(2));
    world.run(2_500);
    let [(2, Err(error))] = &world.answers()[..] else { panic!("one answer") };
    assert!(error.to_string().contains("does not hold the shard"), "{error}");
}

#[test]
fn a_client_learns_where_a_node_has_moved_to_from_any_other_that_knows() {
    let mut world = World::new(Options::default());
    world.ask(1, 1, read());
    world.ask(2, 2, read());
    world.run(10);
    world.answers();
    world.crash(2);
    world.ask(3, 2, change(3));
    world.run(1_000);
    assert_eq!(world.answers(), []);
    world.move_node(2, "elsewhere");
    world.run(1_000);
    assert_eq!(world.answers(), [], "nobody has told the client");
    world.crash(1);
    world.start(1);
    world.run(3_000);
    assert_eq!(world.answers(), [(3, Ok(Reply::Done))]);
}

#[test]
fn a_killed_node_gets_the_calls_again_in_order_with_the_same_sequences() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|_, _| None);
    (1..=5).for_each(|number| world.ask(number, 1, change(u64::from(number))));
    world.run(100);
    let before = changes(world.server(1));
    world.crash(1);
    world.ask(6, 1, change(6));
    world.run(5_000);
    assert_eq!(world.answers(), []);
    assert!(
        world.client.peers()[0].last_error.as_ref().unwrap().contains("node1: connection refused")
    );
    world.start(1);
    world.run(3_000);
    let after = changes(world.server(1));
    assert_eq!(before, (1..=5).map(|number| (number, number)).collect::<Vec<_>>());
    assert_eq!(after, (1..=6).map(|number| (number, number)).collect::<Vec<_>>());
    assert!(world.server(1).hellos[0].resume);
    assert_eq!(world.answers().len(), 6);
    assert_eq!(world.client.peers()[0].reconnects, 1);
}

#[test]
fn another_node_is_not_disturbed() {
    let mut world = World::new(Options::default());
    world.ask(1, 1, read());
    world.run(10);
    world.crash(1);
    world.ask(2, 1, read());
    world.run(1_000);
    world.answers();
    world.ask(3, 2, read());
    world.run(1);
    assert_eq!(world.answers(), [(3, Ok(Reply::Done))]);
}

#[test]
fn a_dead_node_is_a_timeout_that_names_it_and_the_change_is_never_made() {
    let mut world = World::new(Options { timeout_ms: 2_000, ..Options::default() });
    world.crash(2);
    world.ask(1, 2, change(1));
    world.run(2_500);
    let [(1, Err(error))] = &world.answers()[..] else { panic!("one answer") };
    assert_eq!(error.to_string(), "node 2 at node2: connection refused");
    assert_eq!(error.errno(), Errno::EIO);
    world.start(2);
    world.ask(2, 2, change(2));
    world.run(2_500);
    assert_eq!(changes(world.server(2)), [(2, 2)]);
}

#[test]
fn a_change_that_was_given_up_in_flight_is_not_sent_again() {
    let mut world = World::new(Options { timeout_ms: 2_000, ..Options::default() });
    world.server(1).answer = Box::new(|_, _| None);
    world.ask(1, 1, change(1));
    world.run(2_500);
    assert!(matches!(world.answers()[..], [(1, Err(CallError::Timeout { .. }))]));
    world.ask(2, 1, change(2));
    world.run(10);
    assert_eq!(world.server(1).seen[1].0.watermark.0, 1, "the first one may still be executed");
    world.crash(1);
    world.start(1);
    world.run(1_000);
    assert_eq!(changes(world.server(1)), [(2, 2)]);
    assert_eq!(world.server(1).seen[0].0.watermark.0, 2);
}

#[test]
fn timeout_zero_waits_for_ever() {
    let mut world = World::new(Options { timeout_ms: 0, ..Options::default() });
    world.crash(1);
    world.ask(1, 1, read());
    world.run(600_000);
    assert_eq!(world.answers(), []);
    world.start(1);
    world.run(3_000);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
}

#[test]
fn a_busy_node_is_asked_again_under_the_same_sequence() {
    let mut world = World::new(Options::default());
    let mut busy = 3;
    world.server(1).answer = Box::new(move |_, _| {
        busy -= 1;
        Some((if busy >= 0 { Status::Busy } else { Status::Ok }, Reply::Done))
    });
    world.ask(1, 1, change(1));
    world.run(100);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
    assert_eq!(changes(world.server(1)), [(1, 1); 4]);
}

#[test]
fn a_node_that_is_busy_for_ever_is_a_timeout() {
    let mut world = World::new(Options { timeout_ms: 1_000, ..Options::default() });
    world.server(1).answer = Box::new(|_, _| Some((Status::Busy, Reply::Done)));
    world.ask(1, 1, read());
    world.run(1_200);
    let [(1, Err(error))] = &world.answers()[..] else { panic!("one answer") };
    assert_eq!(error.to_string(), "node 1 at node1: busy all the time");
}

#[test]
fn an_ended_session_fails_changes_in_flight_and_sends_reads_again() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|_, _| None);
    world.ask(1, 1, change(1));
    world.ask(2, 1, read());
    world.run(10);
    let Peer::Client { session, .. } = world.server(1).hellos[0].peer else { panic!("a client") };
    world.crash(1);
    world.run(5);
    world.ask(3, 1, change(3));
    world.ask(4, 1, Ask { in_session: true, ..change(4) });
    world.start(1);
    world.server(1).ended.push(session.0);
    world.run(2_000);
    let mut answers = world.answers();
    answers.sort_by_key(|(name, _)| *name);
    let ended = || Err(CallError::SessionEnded { node: NodeId(1) });
    let done = || Ok(Reply::Done);
    assert_eq!(answers, [(1, ended()), (2, done()), (3, done()), (4, ended())]);
    assert_eq!(changes(world.server(1)), [(3, 1)], "a new session counts from 1");
    let hellos = &world.server(1).hellos;
    assert!(hellos[0].resume && !hellos[1].resume && hellos[0].peer != hellos[1].peer);
}

#[test]
fn a_session_is_sure_while_its_lease_outlasts_the_timeout() {
    let mut world =
        World::new(Options { timeout_ms: 1_000, lease_ms: 10_000, ..Options::default() });
    let sure = |world: &World| world.client.is_session_sure(NodeId(1));
    assert!(!sure(&world), "nothing was heard yet");
    world.ask(1, 1, change(1));
    world.run(10);
    assert!(sure(&world));
    world.run(60_000);
    assert!(sure(&world), "pings keep it");
    world.server(1).answer = Box::new(|_, _| None);
    world.ask(2, 1, change(2));
    world.run(8_980);
    assert!(!sure(&world), "what was sent last may have been lost");
}

#[test]
fn who_is_patient_is_answered_when_the_node_is_back() {
    let mut world = World::new(Options { timeout_ms: 1_000, ..Options::default() });
    world.crash(1);
    world.ask(1, 1, change(1).patiently());
    world.run(5_000);
    assert!(world.answers().is_empty());
    world.start(1);
    world.run(2_000);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
}

#[test]
fn a_session_that_ends_on_an_open_connection_begins_anew() {
    let mut world = World::new(Options::default());
    let mut first = true;
    world.server(1).answer = Box::new(move |_, _| {
        let status = if std::mem::take(&mut first) { Status::NoSession } else { Status::Ok };
        Some((status, Reply::Done))
    });
    world.ask(1, 1, read());
    world.run(1_000);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
    let hellos = &world.server(1).hellos;
    assert_ne!(hellos[0].peer, hellos[1].peer);
}

#[test]
fn claims_go_first_after_a_reconnect() {
    let mut world = World::new(Options::default());
    let asked = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&asked);
    world.client.set_claims(move |node, fresh| {
        sink.borrow_mut().push((node, fresh));
        vec![Claim { ino: Ino(4), opens: 1, locks: vec![] }]
    });
    world.ask(1, 1, read());
    world.run(10);
    assert!(asked.borrow().is_empty(), "a first connection has nothing to claim");
    world.crash(1);
    world.ask(2, 1, change(2));
    world.start(1);
    world.run(1_000);
    assert_eq!(*asked.borrow(), [(NodeId(1), false)]);
    let seen = &world.server(1).seen;
    assert!(matches!(&seen[0].1, Request::Claim { claims, last: true } if claims.len() == 1));
    assert!(matches!(seen[1].1, Request::Close { .. }));
}

#[test]
fn an_idle_session_reconnects_and_claims_by_itself() {
    let mut world = World::new(Options::default());
    world.client.set_claims(|_, _| Vec::new());
    world.ask(1, 1, read());
    world.run(10);
    world.crash(1);
    world.start(1);
    world.run(2_000);
    assert!(matches!(world.server(1).seen[..], [(_, Request::Claim { last: true, .. })]));
}

#[test]
fn an_idle_session_keeps_its_lease() {
    let mut world = World::new(Options { lease_ms: 40_000, ..Options::default() });
    world.ask(1, 1, read());
    world.run(100_000);
    let pings = world.server(1).seen.iter().filter(|seen| seen.1 == Request::Ping).count();
    assert!((7..=10).contains(&pings), "{pings} pings in 100 s with a lease of 40 s");
}

#[test]
fn a_silent_node_is_reconnected_and_one_that_wakes_up_goes_on() {
    let mut world = World::new(Options::default());
    world.ask(1, 1, read());
    world.run(10);
    world.answers();
    world.network.cut("client", "node1");
    world.ask(2, 1, change(2));
    world.run(4_000);
    world.network.heal(world.now, "client", "node1");
    world.run(10);
    assert_eq!(world.answers(), [(2, Ok(Reply::Done))]);
    assert_eq!(world.client.peers()[0].reconnects, 0);
    world.network.cut("client", "node1");
    world.ask(3, 1, change(3));
    world.run(16_000);
    world.network.heal(world.now, "client", "node1");
    world.run(12_000);
    assert_eq!(world.answers(), [(3, Ok(Reply::Done))]);
    assert_eq!(world.client.peers()[0].reconnects, 1);
}

#[test]
fn credits_bound_what_is_in_flight_and_keep_the_order() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|_, _| None);
    (0..1_000).for_each(|number| world.ask(number, 1, change(u64::from(number))));
    world.run(100);
    assert_eq!(world.server(1).seen.len(), limits::CREDITS as usize - 2);
    let open: Vec<(Conn, u64)> = {
        let server = world.server(1);
        let conn = server.open[0];
        server.seen.iter().map(|(header, _)| (conn, header.token)).collect()
    };
    world.server(1).answer = Box::new(|_, _| Some((Status::Ok, Reply::Done)));
    for (conn, token) in open {
        world.server(1).calls.reply(conn, token, Status::Ok, encode(&Reply::Done), vec![]);
    }
    world.run(100);
    let names: Vec<u32> = world.answers().iter().map(|answer| answer.0).collect();
    assert_eq!(names, (0..1_000).collect::<Vec<_>>());
}

#[test]
fn bulk_credit_bounds_the_bytes_in_flight() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|_, _| None);
    for number in 0..40 {
        world.ask(number, 1, read().with_bulk(Bulk::Receive(Region::zeroed(1 << 20))));
    }
    world.run(100);
    assert_eq!(world.server(1).seen.len(), (limits::BULK_CREDIT >> 20) as usize);
}

#[test]
fn lock_waits_hold_neither_the_watermark_nor_all_credits_back() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|header, request| {
        let is_lock = matches!(request, Request::LockCancel { .. }) && header.sequence.0 <= 128;
        (!is_lock).then_some((Status::Ok, Reply::Done))
    });
    let lock = || {
        let request = Request::LockCancel { ino: Ino(1), waiting: Sequence(0) };
        Ask::change(ShardId(0), request).waiting_for_lock()
    };
    (0..200).for_each(|number| world.ask(number, 1, lock()));
    world.run(100_000);
    let locks = world.server(1).seen.iter().filter(|seen| seen.1 != Request::Ping).count();
    assert_eq!(locks, 128);
    world.ask(500, 1, change(1));
    world.run(100);
    assert_eq!(world.answers(), [(500, Ok(Reply::Done))]);
    let last = world.server(1).seen.last().unwrap().0;
    assert_eq!((last.sequence.0, last.watermark.0), (129, 129));
    assert!(
        world
            .server(1)
            .seen
            .iter()
            .all(|(header, _)| { header.sequence.0 == 0 || header.watermark <= header.sequence })
    );
    world.crash(1);
    world.start(1);
    world.run(2_000);
    assert!(world.server(1).seen[0].0.sequence.0 > 129, "asked for under a new number");
}

#[test]
fn a_dropped_future_leaves_the_change_to_complete_and_the_read_to_be_forgotten() {
    let mut world = World::new(Options::default());
    world.crash(1);
    drop(world.client.call(NodeId(1), change(1)));
    drop(world.client.call(NodeId(1), read()));
    world.run(100);
    world.start(1);
    world.run(3_000);
    assert_eq!(world.server(1).seen.len(), 1);
    assert_eq!(changes(world.server(1)), [(1, 1)]);
    assert_eq!(world.client.peers()[0].in_flight, 0);
}

#[test]
fn a_read_gets_its_bytes_after_any_number_of_connections() {
    let mut world = World::new(Options::default());
    world.server(1).answer = Box::new(|_, _| None);
    let call = world.client.call(NodeId(1), read().with_bulk(Bulk::Receive(Region::zeroed(8))));
    let got = Rc::new(RefCell::new(None));
    let sink = Rc::clone(&got);
    world.tasks.spawn(async move { *sink.borrow_mut() = Some(call.await) });
    for _ in 0..3 {
        world.run(100);
        world.crash(1);
        world.start(1);
        world.server(1).answer = Box::new(|_, _| None);
    }
    world.run(3_000);
    let (conn, token) = (world.server(1).open[0], world.server(1).seen[0].0.token);
    let bytes = Region::new(b"abc".to_vec()).freeze();
    let body = encode(&Reply::Data { length: 3 });
    world.server(1).calls.reply(conn, token, Status::Ok, body, vec![bytes]);
    world.run(100);
    let answer = got.borrow_mut().take().unwrap().unwrap();
    assert_eq!((answer.reply, answer.bulk_len), (Reply::Data { length: 3 }, 3));
    assert_eq!(&answer.region.unwrap().bytes()[..4], b"abc\0");
}

#[test]
fn a_client_that_knows_addresses_only_joins() {
    let mut world = World::new(Options::default());
    let transport = world.network.endpoint("newcomer", identity(None));
    let me = Me::Client { endpoint: 0, session_seed: 43 };
    world.client = Calls::new(Box::new(transport), me, Options::default());
    world.crash(1);
    let (calls, joined) = (world.client.clone(), Rc::new(RefCell::new(None)));
    let sink = Rc::clone(&joined);
    world.tasks.spawn(async move {
        *sink.borrow_mut() = Some(calls.join(vec![address("node1"), address("node2")]).await);
    });
    world.run(100);
    assert_eq!(joined.borrow_mut().take(), Some(Ok(ClusterMap::clone(&map()))));
    world.ask(1, 2, read());
    world.run(10);
    assert_eq!(world.answers(), [(1, Ok(Reply::Done))]);
    assert_eq!(world.server(2).hellos.len(), 1, "the connection that joined is used");
}

#[test]
fn a_wrong_key_is_refused_at_once() {
    let mut world = World::new(Options::default());
    let stranger = Arc::new(Identity { key: Key::new([8; 32]), serves: None });
    let transport = world.network.endpoint("stranger", stranger);
    let me = Me::Client { endpoint: 0, session_seed: 43 };
    world.client = Calls::new(Box::new(transport), me, Options::default());
    world.client.set_map(&map());
    world.ask(1, 1, read());
    let (calls, log) = (world.client.clone(), Rc::clone(&world.log));
    world.tasks.spawn(async move {
        let error = calls.join(vec![address("node2")]).await.unwrap_err();
        log.borrow_mut().push((2, Err(error)));
    });
    world.run(100);
    let answers = world.answers();
    assert_eq!(answers.len(), 2);
    for (_, answer) in answers {
        let text = answer.unwrap_err().to_string();
        assert!(text.contains("key") && text.contains("node"), "{text}");
    }
}

#[test]
fn endpoints_of_a_process_share_sessions_and_differ_in_sequences() {
    let mut world = World::new(Options::default());
    let transport = world.network.endpoint("second thread", identity(None));
    let me = Me::Client { endpoint: 1, session_seed: 42 };
    world.ask(1, 1, change(1));
    world.run(10);
    world.client = Calls::new(Box::new(transport), me, Options::default());
    world.client.set_map(&map());
    world.ask(2, 1, change(2));
    world.run(10);
    let sessions: Vec<u64> = world
        .server(1)
        .hellos
        .iter()
        .map(|hello| match hello.peer {
            Peer::Client { session, .. } => session.0,
            Peer::Node { .. } => 0,
        })
        .collect();
    assert_eq!(sessions[0], sessions[1]);
    assert_eq!(changes(world.server(1)), [(1, 1), (2, (1 << 48) | 1)]);
}

/// A client and one node, with everything that can break breaking. The node keeps the replies of changes until the
/// watermark passes them, as a real one does. Gives the changes in the order in which they were made, and the reconnects.
fn storm(seed: u64) -> (Vec<u64>, u64) {
    let faults = Faults { break_one_in: 150, delay_ns_max: 400_000 };
    let network = MemNetwork::new(seed);
    let transport = Faulty::new(network.endpoint("client", identity(None)), seed, faults);
    let me = Me::Client { endpoint: 0, session_seed: seed };
    let client =
        Calls::new(Box::new(transport), me, Options { seed, timeout_ms: 0, ..Options::default() });
    client.set_map(&map());
    let serves = Serves { node: NodeId(1), map: map() };
    let transport = Faulty::new(network.endpoint("node1", identity(Some(serves))), !seed, faults);
    let me = Me::Node { node: NodeId(1), endpoint: 0 };
    let server = Calls::new(Box::new(transport), me, Options::default());
    let (mut made, mut kept, mut present) = (Vec::new(), BTreeMap::new(), None);
    let (tasks, answered) = (Tasks::new(), Rc::new(RefCell::new(Vec::new())));
    for number in 0..400_u64 {
        let room = Bulk::Receive(Region::zeroed(8));
        let ask = if number % 4 == 0 { read().with_bulk(room) } else { change(number) };
        let (call, answered) = (client.call(NodeId(1), ask), Rc::clone(&answered));
        tasks.spawn(async move {
            assert_eq!(call.await.map(|answer| answer.reply), Ok(Reply::Done));
            answered.borrow_mut().push(number);
        });
    }
    let mut now = Instant(0);
    for _ in 0..1_000_000 {
        client.turn(now);
        tasks.run_ready();
        if answered.borrow().len() == 400 {
            break;
        }
        server.turn(now);
        while let Some(event) = server.next_served() {
            match event {
                Event::Proven { conn, .. } => {
                    // The earlier connection is over before this one begins, whatever of it is still to be told.
                    if let Some(earlier) = present.replace(conn) {
                        server.close(earlier);
                    }
                    server.admit(conn, Ok(()));
                }
                Event::Request { conn, header, body } if present == Some(conn) => {
                    kept.retain(|&sequence, ()| sequence >= header.watermark.0);
                    if header.sequence.0 != 0 && kept.insert(header.sequence.0, ()).is_none() {
                        let Ok(Request::Close { ino, .. }) = decode("request", &body) else {
                            panic!("only closes are changes here");
                        };
                        made.push(ino.0);
                    }
                    server.reply(conn, header.token, Status::Ok, encode(&Reply::Done), vec![]);
                }
                _ => {}
            }
        }
        let next = [client.flush(now), server.flush(now), network.next_arrival()];
        now = next.into_iter().flatten().min().unwrap_or(now).max(Instant(now.0 + 1));
    }
    assert_eq!(answered.borrow().len(), 400, "all calls are answered");
    (made, client.peers()[0].reconnects)
}

#[test]
fn changes_are_made_exactly_once_and_in_order_over_a_network_that_breaks() {
    let changes: Vec<u64> = (0..400).filter(|number| number % 4 != 0).collect();
    let mut reconnects = 0;
    for seed in 0..20 {
        let (made, breaks) = storm(seed);
        assert_eq!(made, changes, "seed {seed}");
        reconnects += breaks;
    }
    assert!(reconnects > 40, "the networks did break: {reconnects} times");
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let run = || {
        let mut world = World::new(Options::default());
        (0..50).for_each(|number| world.ask(number, 1 + number as u16 % 2, change(1)));
        world.run(1);
        world.crash(1);
        world.run(30);
        world.start(1);
        world.run(3_000);
        let seen: Vec<_> =
            world.servers.iter().flatten().flat_map(|server| &server.seen).cloned().collect();
        (world.answers(), seen, world.now)
    };
    assert_eq!(run(), run());
}
