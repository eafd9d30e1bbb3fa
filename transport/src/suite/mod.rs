//! What every transport must pass: one test per guarantee, over whatever a [`Fixture`] makes.
//!
//! [`transport_suite!`](crate::transport_suite) turns the tests below into `#[test]`s of a transport's crate.
//!
//! 1. A test knows nothing of the transport but the contract, and waits for events, never for a time. Only "nothing
//!    happens" is judged after a number of steps.
//! 2. Where a fixture loses connections, a test counts what the connections' ends give back.

mod figures;
mod meeting;
mod payload;
mod tokens;

pub use figures::*;
pub use meeting::*;
pub use payload::*;
pub use tokens::*;

use std::sync::Arc;

use sealfs_proto::{
    Address, ClusterId, ClusterMap, Epoch, Header, HeaderKind, Node, NodeId, SessionId, ShardId,
};

use crate::{
    Bulk, Conn, Event, Frame, Hello, Identity, Instant, Key, Peer, Region, Serves, Transport,
};

/// One endpoint of a fixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End(pub usize);

/// Makes endpoints of one transport, and lets time pass for them.
pub trait Fixture {
    /// A new endpoint; if its identity serves a node, it listens at an address of the fixture's choice.
    fn endpoint(&mut self, identity: Arc<Identity>) -> End;
    /// Where an endpoint listens.
    fn address(&self, end: End) -> Address;
    /// An address at which nobody listens.
    fn nowhere(&self) -> Address;
    /// The endpoint itself.
    fn transport(&mut self, end: End) -> &mut dyn Transport;
    /// Drops the endpoint, as the death of its process would.
    fn kill(&mut self, end: End);
    /// A connection to `address` that speaks bytes of the test's choice.
    fn raw(&mut self, address: &Address) -> Box<dyn Raw>;
    /// The present.
    fn now(&self) -> Instant;
    /// Waits until something may have happened, or for a fraction of a millisecond.
    fn step(&mut self);
    /// Steps after which what was flushed has arrived, for claims that nothing happens.
    fn steps_to_settle(&self) -> usize {
        200
    }
}

/// A connection without a protocol.
pub trait Raw {
    /// Sends bytes: a whole frame, or what is to be taken for one.
    fn write(&mut self, now: Instant, bytes: &[u8]);
    /// What has arrived since the last call.
    fn read(&mut self, now: Instant) -> Vec<u8>;
    /// Whether the other end has closed the connection, as far as `read` knows.
    fn is_closed(&self) -> bool;
}

/// Makes a `#[test]` of each guarantee; `$new` is an expression that makes a fixture. `some $new` makes one or none: there is
/// nothing to test then.
#[macro_export]
macro_rules! transport_suite {
    ($new:expr) => {
        $crate::transport_suite!(some Some($new));
    };
    (some $new:expr) => {
        $crate::transport_suite! { @each $new;
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
            figures_count_what_was_moved
            who_has_the_key_is_admitted_by_the_core
            a_client_without_a_map_is_sent_it
            a_wrong_key_is_refused
            another_cluster_or_node_is_refused_by_name
            an_ended_session_is_told_so
            nobody_at_the_address_is_an_end_that_names_it
            a_replayed_handshake_is_refused
            garbage_ends_its_own_connection_only
        }
    };
    (@each $new:expr; $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                if let Some(mut fixture) = $new {
                    $crate::suite::$name(&mut fixture);
                }
            }
        )*
    };
}

const KEY: [u8; 32] = [9; 32];
const NODE: NodeId = NodeId(7);
/// Far more than any test needs; a test that runs into it has failed.
const STEPS_MAX: usize = 100_000;

fn map() -> ClusterMap {
    ClusterMap {
        cluster: ClusterId([3; 16]),
        epoch: Epoch(1),
        shards_log2: 12,
        chunk_size: 1 << 20,
        nodes: vec![Node { id: NODE, weight: 1, addresses: vec![] }],
    }
}

fn identity(key: [u8; 32], serves: bool) -> Arc<Identity> {
    let serves = serves.then(|| Serves { node: NODE, map: Arc::new(map()) });
    Arc::new(Identity { key: Key::new(key), serves })
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId::default(),
        node: Some(NODE),
        peer: Peer::Client { session: SessionId(1), endpoint: 0 },
        resume: false,
        map: None,
    }
}

/// `len` bytes that tell where they are and of which payload.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(97)) as u8)
        .collect()
}

/// A serving endpoint that admits everybody, and clients.
struct World<'a> {
    fixture: &'a mut dyn Fixture,
    server: End,
    ends: Vec<End>,
}

impl<'a> World<'a> {
    fn new(fixture: &'a mut dyn Fixture) -> Self {
        let server = fixture.endpoint(identity(KEY, true));
        Self { fixture, server, ends: vec![server] }
    }

    fn client(&mut self, key: [u8; 32]) -> End {
        let end = self.fixture.endpoint(identity(key, false));
        self.ends.push(end);
        end
    }

    fn transport(&mut self, end: End) -> &mut dyn Transport {
        self.fixture.transport(end)
    }

    fn connect(&mut self, client: End, hello: Hello) -> Conn {
        let address = self.fixture.address(self.server);
        self.transport(client).connect(&address, hello)
    }

    /// One turn of every endpoint: what they report. Whoever has proven the key is admitted.
    fn turn(&mut self) -> Vec<(End, Event)> {
        let mut events = self.turn_without_admitting();
        for (end, event) in &mut events {
            if let Event::Proven { conn, .. } = event {
                self.fixture.transport(*end).admit(*conn, Ok(()));
            }
        }
        events
    }

    fn turn_without_admitting(&mut self) -> Vec<(End, Event)> {
        let now = self.fixture.now();
        let mut events = Vec::new();
        for &end in &self.ends {
            let transport = self.fixture.transport(end);
            transport.flush(now);
            while let Some(event) = transport.poll(now) {
                events.push((end, event));
            }
            transport.flush(now);
        }
        self.fixture.step();
        events
    }

    /// Turns until `is_enough` holds of an event; all events up to then. Panics, naming `what`, if that never happens.
    fn until(
        &mut self,
        what: &str,
        mut is_enough: impl FnMut(End, &Event) -> bool,
    ) -> Vec<(End, Event)> {
        let mut all = Vec::new();
        for _ in 0..STEPS_MAX {
            let events = self.turn();
            let enough = events.iter().any(|(end, event)| is_enough(*end, event));
            all.extend(events);
            if enough {
                return all;
            }
        }
        panic!("waited in vain for {what}; there was {all:?}");
    }

    /// Turns until nothing more is to be expected.
    fn settle(&mut self) -> Vec<(End, Event)> {
        let steps = self.fixture.steps_to_settle();
        (0..steps).flat_map(|_| self.turn()).collect()
    }

    /// A client with an open connection: its number at the client and at the server.
    fn open(&mut self) -> (End, Conn, Conn) {
        let client = self.client(KEY);
        let conn = self.connect(client, hello());
        let server = self.server;
        let (mut let_in, mut served) = (false, None);
        self.until("an open connection", |end, event| {
            if let Event::Opened { conn, .. } = event {
                let_in |= end == client;
                served = served.or((end == server).then_some(*conn));
            }
            let_in && served.is_some()
        });
        (client, conn, served.expect("both ends have reported it"))
    }

    fn request(&mut self, client: End, conn: Conn, token: u64, bulk: Bulk) {
        let kind = match bulk {
            Bulk::Receive(_) => HeaderKind::RequestForBulk,
            Bulk::None | Bulk::Send(_) => HeaderKind::Request,
        };
        let header = Header { shard: ShardId(token as u16), ..Header::new(kind, token) };
        let body = token.to_le_bytes().to_vec();
        self.transport(client).send(conn, Frame { header, body, bulk });
    }

    fn reply(&mut self, conn: Conn, token: u64, bulk: Bulk) {
        let header = Header::new(HeaderKind::Reply, token);
        let (server, body) = (self.server, token.to_le_bytes().to_vec());
        self.transport(server).send(conn, Frame { header, body, bulk });
    }

    /// Replies to every request in `events`.
    fn reply_to_all(&mut self, events: &[(End, Event)]) {
        for (_, event) in events {
            if let Event::Request { conn, header, .. } = event {
                self.reply(*conn, header.token, Bulk::None);
            }
        }
    }
}

/// Room for `len` bytes.
fn room(len: usize) -> Bulk {
    Bulk::Receive(Region::zeroed(len))
}

/// The tokens of the requests among `events`.
fn requests(events: &[(End, Event)]) -> Vec<u64> {
    let tokens = events.iter().filter_map(|(_, event)| match event {
        Event::Request { header, .. } => Some(header.token),
        _ => None,
    });
    tokens.collect()
}

/// The tokens of the replies among `events`.
fn replies(events: &[(End, Event)]) -> Vec<u64> {
    let tokens = events.iter().filter_map(|(_, event)| match event {
        Event::Reply { header, .. } => Some(header.token),
        _ => None,
    });
    tokens.collect()
}
