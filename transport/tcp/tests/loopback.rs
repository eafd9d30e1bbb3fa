//! What TCP adds to the contract, over real sockets: how little is copied, limits, and peers that send rubbish.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use sealfs_proto::{
    Address, ClusterId, ClusterMap, Epoch, Header, HeaderKind, Node, NodeId, SessionId,
    TransportKind, limits,
};
use sealfs_ring::{Config as RingConfig, Ring};
use sealfs_tcp::{Config, HANDSHAKES_MAX, Tcp};
use sealfs_transport::handshake::{self, Greeted};
use sealfs_transport::{
    Bulk, CloseReason, Conn, Event, Frame, Hello, Identity, Key, Peer, Region, Serves, Transport,
    payload_bytes_copied,
};

const PATIENCE: Duration = Duration::from_secs(20);
const HELLO: Hello = Hello {
    cluster: ClusterId([0; 16]),
    node: Some(NodeId(7)),
    peer: Peer::Client { session: SessionId(1), endpoint: 0 },
    resume: false,
    map: None,
};

/// An endpoint with its ring, driven by hand.
struct End {
    ring: Ring,
    tcp: Tcp,
}

impl End {
    fn new(key: u8, serves: bool) -> Self {
        Self::with(key, serves, |_| {})
    }

    fn with(key: u8, serves: bool, adjust: impl FnOnce(&mut Config)) -> Self {
        let ring = Ring::new(RingConfig { entries: 64, ..RingConfig::default() }).unwrap();
        let node = Node { id: NodeId(7), weight: 1, addresses: vec![] };
        let map = ClusterMap {
            cluster: ClusterId([3; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: 1 << 20,
            nodes: vec![node],
        };
        let serves = serves.then(|| Serves { node: NodeId(7), map: Arc::new(map) });
        let identity = Arc::new(Identity { key: Key::new([key; 32]), serves });
        let mut config = Config::new(identity);
        adjust(&mut config);
        let tcp = Tcp::new(&ring, config);
        Self { ring, tcp }
    }

    /// One turn of a loop; what came of it.
    fn turn(&mut self) -> Vec<Event> {
        self.tcp.flush(sealfs_ring::now().mono);
        self.ring.enter(Some(Duration::from_micros(200))).unwrap();
        while let Some(completion) = self.ring.next() {
            self.tcp.complete(completion);
        }
        std::iter::from_fn(|| self.tcp.poll(sealfs_ring::now().mono)).collect()
    }

    fn connect(&mut self, address: SocketAddr) -> Conn {
        let address = Address { transport: TransportKind::Tcp, text: address.to_string() };
        self.tcp.connect(&address, HELLO)
    }

    fn request(&mut self, conn: Conn, token: u64, bulk: Bulk) {
        let kind = match bulk {
            Bulk::Receive(_) => HeaderKind::RequestForBulk,
            _ => HeaderKind::Request,
        };
        let body = token.to_le_bytes().to_vec();
        self.tcp.send(conn, Frame { header: Header::new(kind, token), body, bulk });
    }

    fn reply(&mut self, conn: Conn, token: u64, bulk: Bulk) {
        let header = Header::new(HeaderKind::Reply, token);
        self.tcp.send(conn, Frame { header, body: vec![token as u8], bulk });
    }
}

/// A serving end that lets everybody in, and a client's end connected to it.
struct Pair {
    server: End,
    client: End,
    address: SocketAddr,
    /// The same connection as both see it.
    served: Conn,
    conn: Conn,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let server = End::with(1, true, adjust);
        let address = server.tcp.listen("127.0.0.1:0", false).unwrap();
        let mut client = End::new(1, false);
        let conn = client.connect(address);
        let mut pair = Self { server, client, address, served: Conn(0), conn };
        let opened = pair.until(|event| matches!(event, (false, Event::Opened { .. })));
        let Some((_, Event::Opened { peer, map, .. })) = opened.last() else { panic!() };
        assert_eq!(*peer, Peer::Node { node: NodeId(7), endpoint: 0 });
        assert!(map.is_some(), "a client without a map is sent one");
        let served = opened.iter().find_map(|event| match event {
            (true, Event::Proven { conn, hello }) => {
                assert_eq!(*hello, HELLO);
                Some(*conn)
            }
            _ => None,
        });
        pair.served = served.unwrap();
        pair
    }

    /// Turns both ends; events are marked with whether they are the server's.
    fn turn(&mut self) -> Vec<(bool, Event)> {
        let mut all = Vec::new();
        for event in self.server.turn() {
            if let Event::Proven { conn, .. } = event {
                self.server.tcp.admit(conn, Ok(()));
            }
            all.push((true, event));
        }
        all.extend(self.client.turn().into_iter().map(|event| (false, event)));
        all
    }

    /// Turns until an event is as wanted; all events up to then.
    fn until(&mut self, wanted: impl Fn(&(bool, Event)) -> bool) -> Vec<(bool, Event)> {
        let start = Clock::now();
        let mut all = Vec::new();
        loop {
            for event in self.turn() {
                let found = wanted(&event);
                all.push(event);
                if found {
                    return all;
                }
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain; so far: {all:?}");
        }
    }

    fn quiet(&mut self) -> Vec<(bool, Event)> {
        (0..50).flat_map(|_| self.turn()).collect()
    }
}

fn pattern(len: usize, seed: u64) -> Region {
    let mut region = Region::zeroed(len);
    let mut random = fastrand::Rng::with_seed(seed);
    random.fill(region.bytes_mut());
    region
}

fn is_closed(event: &(bool, Event), of_server: bool) -> bool {
    event.0 == of_server && matches!(event.1, Event::Closed { .. })
}

#[test]
fn a_mebibyte_each_way_is_received_where_it_belongs_with_next_to_no_copy() {
    let mut pair = Pair::new();
    let payload = pattern(1 << 20, 1).freeze();
    for token in 0..8 {
        let before = payload_bytes_copied();
        pair.client.request(pair.conn, token, Bulk::Send(vec![payload.clone()]));
        let events = pair.until(|event| matches!(event.1, Event::Request { .. }));
        let Some((true, Event::Request { header, body, .. })) = events.last() else { panic!() };
        assert_eq!((header.token, header.bulk_len), (token, 1 << 20));
        assert_eq!(*body, token.to_le_bytes());
        pair.server.tcp.pull(pair.served, token, Region::zeroed(1 << 20));
        let mut events = pair.until(|event| matches!(event.1, Event::Pulled { .. }));
        let Some((true, Event::Pulled { region, len, .. })) = events.pop() else { panic!() };
        assert_eq!(len, 1 << 20);
        assert!(region.bytes() == payload.bytes());
        let copied = payload_bytes_copied() - before;
        let most = if token == 0 { 64 * 1024 } else { 4 * 1024 };
        assert!(copied <= most, "{copied} bytes were copied for write {token}");
        pair.server.reply(pair.served, token, Bulk::None);
        pair.until(|event| matches!(event.1, Event::Reply { .. }));
    }
    for token in 10..18 {
        let before = payload_bytes_copied();
        pair.client.request(pair.conn, token, Bulk::Receive(Region::zeroed((1 << 20) + 5)));
        pair.until(|event| matches!(event.1, Event::Request { .. }));
        let halves = vec![payload.cut(0, 1_000), payload.cut(1_000, 1 << 20)];
        pair.server.reply(pair.served, token, Bulk::Send(halves));
        let mut events = pair.until(|event| matches!(event.1, Event::Reply { .. }));
        let Some((false, Event::Reply { header, region, .. })) = events.pop() else { panic!() };
        assert_eq!(header.bulk_len, 1 << 20);
        assert!(region.unwrap().bytes()[..1 << 20] == *payload.bytes());
        let copied = payload_bytes_copied() - before;
        let most = if token == 10 { 64 * 1024 } else { 4 * 1024 };
        assert!(copied <= most, "{copied} bytes were copied for read {token}");
    }
}

#[test]
fn frames_and_payload_of_all_sizes_arrive_whole_and_in_order() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pair = Pair::new();
        let sizes = [0, 1, 63, 4_096, 16_383, 16_384, 65_536, 300_000, 1 << 20];
        let (mut sent, mut seen, mut answered) = (0, 0, 0);
        let mut lengths = BTreeMap::new();
        let start = Clock::now();
        while answered < 300 {
            assert!(start.elapsed() < PATIENCE, "{sent} sent, {seen} seen, {answered} answered");
            while sent < 300 && sent - answered < 100 && random.u8(..) > 40 {
                let (len, write) = (sizes[random.usize(..sizes.len())], random.bool());
                lengths.insert(sent, (len, write));
                let bulk = match (len, write) {
                    (0, _) => Bulk::None,
                    (_, true) => Bulk::Send(vec![pattern(len, sent).freeze()]),
                    (_, false) => Bulk::Receive(Region::zeroed(len)),
                };
                pair.client.request(pair.conn, sent, bulk);
                sent += 1;
            }
            for event in pair.turn() {
                match event.1 {
                    Event::Request { conn, header, .. } => {
                        assert_eq!(header.token, seen, "requests arrive in order");
                        seen += 1;
                        let len = header.bulk_len as usize;
                        match header.kind {
                            HeaderKind::Request if len > 0 && random.u8(..) > 30 => {
                                pair.server.tcp.pull(conn, header.token, Region::zeroed(len));
                            }
                            HeaderKind::RequestForBulk => {
                                let bulk = pattern(len, header.token).freeze();
                                pair.server.reply(conn, header.token, Bulk::Send(vec![bulk]));
                            }
                            _ => pair.server.reply(conn, header.token, Bulk::None),
                        }
                    }
                    Event::Pulled { conn, token, region, len } => {
                        assert_eq!(len as usize, lengths[&token].0);
                        assert!(region.bytes() == pattern(len as usize, token).bytes());
                        pair.server.reply(conn, token, Bulk::None);
                    }
                    Event::Reply { header, region, .. } => {
                        answered += 1;
                        let (len, write) = lengths[&header.token];
                        if len > 0 && !write {
                            assert!(region.unwrap().bytes() == pattern(len, header.token).bytes());
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn the_largest_body_passes() {
    let mut pair = Pair::new();
    let body: Vec<u8> = (0..limits::BODY_LEN_MAX).map(|n| (n % 253) as u8).collect();
    let header = Header::new(HeaderKind::Request, 1);
    let frame = Frame { header, body: body.clone(), bulk: Bulk::None };
    pair.client.tcp.send(pair.conn, frame);
    pair.client.request(pair.conn, 2, Bulk::None);
    let events =
        pair.until(|event| matches!(event.1, Event::Request { header, .. } if header.token == 2));
    let Event::Request { body: received, .. } = &events[0].1 else { panic!() };
    assert!(*received == body);
}

#[test]
fn requests_beyond_the_credits_wait_until_answers_make_room() {
    let mut pair = Pair::new();
    let count = u64::from(limits::CREDITS) + 10;
    (0..count).for_each(|token| pair.client.request(pair.conn, token, Bulk::None));
    let events = pair.quiet();
    assert_eq!(events.len(), limits::CREDITS as usize);
    (0..10).for_each(|token| pair.server.reply(pair.served, token, Bulk::None));
    let events = pair.until(
        |event| matches!(event.1, Event::Request { header, .. } if header.token == count - 1),
    );
    assert!(events.iter().all(|event| !matches!(event.1, Event::Closed { .. })));
}

#[test]
fn a_peer_that_does_not_read_its_replies_holds_a_bounded_part_of_the_server() {
    let mut server = End::new(1, true);
    let address = server.tcp.listen("127.0.0.1:0", false).unwrap();
    let (mut peer, _) = by_hand(&mut server, address);
    peer.set_nonblocking(true).unwrap();
    peer.set_nodelay(true).unwrap();
    let payload = Region::zeroed(1 << 20).freeze();
    let (mut token, mut taken, mut idle) = (0, 0, 0);
    while idle < 100 {
        let mut header = Header::new(HeaderKind::RequestForBulk, token);
        header.bulk_len = 1 << 20;
        if peer.write(&header.to_bytes(b"")).is_ok() {
            token += 1; // whole: the socket takes 64 bytes or none
        }
        idle += 1;
        for event in server.turn() {
            let Event::Request { conn, header, .. } = event else { panic!("{event:?}") };
            server.reply(conn, header.token, Bulk::Send(vec![payload.clone()]));
            (taken, idle) = (taken + 1, 0);
        }
    }
    let in_sockets = 16;
    let most = (limits::BULK_CREDIT >> 20) + in_sockets;
    assert!(taken >= 16 && taken <= most, "{taken} of {token} requests were taken");
}

#[test]
fn a_paused_connection_takes_no_requests_and_loses_none() {
    let mut pair = Pair::new();
    pair.server.tcp.pause(pair.served, true);
    (0..5).for_each(|token| pair.client.request(pair.conn, token, Bulk::None));
    assert!(pair.quiet().is_empty());
    pair.server.tcp.pause(pair.served, false);
    let events =
        pair.until(|event| matches!(event.1, Event::Request { header, .. } if header.token == 4));
    assert_eq!(events.len(), 5);
}

#[test]
fn closing_amid_payload_gives_every_region_back_on_both_ends() {
    let mut pair = Pair::new();
    let payload = pattern(1 << 20, 1).freeze();
    pair.client.request(pair.conn, 1, Bulk::Receive(Region::zeroed(500)));
    pair.client.request(pair.conn, 2, Bulk::Receive(Region::zeroed(1 << 20)));
    pair.client.request(pair.conn, 3, Bulk::None);
    pair.client.request(pair.conn, 4, Bulk::Send(vec![payload.clone()]));
    pair.until(|event| matches!(event.1, Event::Request { header, .. } if header.token == 4));
    pair.server.tcp.pull(pair.served, 4, Region::zeroed(1 << 20));
    pair.server.reply(pair.served, 2, Bulk::Send(vec![payload]));
    pair.server.tcp.flush(sealfs_ring::now().mono);
    pair.server.ring.enter(Some(Duration::ZERO)).unwrap();
    pair.client.tcp.close(pair.conn);
    let mut events = pair.until(|event| is_closed(event, false));
    let Some((_, Event::Closed { why, lent, .. })) = events.pop() else { panic!() };
    assert_eq!(why, CloseReason::Local);
    let lent: Vec<_> = lent.iter().map(|(token, region)| (*token, region.len())).collect();
    assert_eq!(lent, [(1, 500), (2, 1 << 20)]);
    let events = pair.until(|event| is_closed(event, true));
    let Some((_, Event::Closed { why: CloseReason::Gone(text), .. })) = events.last() else {
        panic!("{events:?}")
    };
    assert!(text.starts_with("127.0.0.1:"), "{text}");
    pair.client.request(pair.conn, 5, Bulk::Receive(Region::zeroed(1)));
    pair.client.tcp.close(pair.conn);
    assert!(pair.quiet().is_empty(), "nothing follows the end");
}

#[test]
fn nobody_listening_a_wrong_key_and_a_wrong_name_are_told_apart() {
    let mut pair = Pair::new();
    let free = End::new(1, true);
    let nobody = free.tcp.listen("127.0.0.1:0", false).unwrap();
    drop(free);
    pair.client.connect(nobody);
    let events = pair.until(|event| is_closed(event, false));
    let Some((_, Event::Closed { why, .. })) = events.last() else { panic!() };
    assert_eq!(*why, CloseReason::Gone(format!("{nobody}: connection refused")));

    let text = "nonsense".to_owned();
    pair.client.tcp.connect(&Address { transport: TransportKind::Tcp, text }, HELLO);
    let events = pair.until(|event| is_closed(event, false));
    let Some((_, Event::Closed { why: CloseReason::Gone(text), .. })) = events.last() else {
        panic!()
    };
    assert!(text.starts_with("nonsense: ") && text.contains("HOST:PORT"), "{text}");

    pair.client = End::new(2, false);
    pair.until(|event| is_closed(event, true));
    pair.client.connect(pair.address);
    let events = pair.until(|event| is_closed(event, false));
    let Some((_, Event::Closed { why: CloseReason::Refused(text), .. })) = events.last() else {
        panic!("{events:?}")
    };
    assert!(text.starts_with(&pair.address.to_string()) && text.contains("--key"), "{text}");
}

#[test]
fn a_refused_session_is_told_so() {
    let mut server = End::new(1, true);
    let address = server.tcp.listen("127.0.0.1:0", false).unwrap();
    let mut client = End::new(1, false);
    client.connect(address);
    let mut ends = Vec::new();
    let start = Clock::now();
    while ends.len() < 2 {
        assert!(start.elapsed() < PATIENCE);
        for event in server.turn().into_iter().chain(client.turn()) {
            match event {
                Event::Proven { conn, .. } => {
                    server.tcp.admit(conn, Err(CloseReason::NoSession));
                }
                Event::Closed { why, .. } => ends.push(why),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(ends, [CloseReason::NoSession, CloseReason::NoSession]);
}

#[test]
fn silent_connections_are_bounded_and_end() {
    let mut pair = Pair::with(|config| config.handshake_ms = 300);
    let start = Clock::now();
    let mut silent: Vec<_> = (0..HANDSHAKES_MAX + 20)
        .map(|_| {
            let peer = TcpStream::connect(pair.address).unwrap();
            peer.set_nonblocking(true).unwrap();
            peer
        })
        .collect();
    while !silent.is_empty() {
        assert!(start.elapsed() < PATIENCE, "{} are still there", silent.len());
        assert!(pair.turn().is_empty(), "nobody hears of connections that prove nothing");
        silent.retain_mut(|peer| peer.read(&mut [0; 1]).is_err());
    }
    pair.client.request(pair.conn, 1, Bulk::None);
    pair.until(|event| matches!(event.1, Event::Request { .. }));
}

/// A client by hand: connected, proven and admitted.
fn by_hand(server: &mut End, address: SocketAddr) -> (TcpStream, Conn) {
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let (greeted, greeting) = Greeted::new(&Key::new([1; 32]), HELLO, [9; 32]);
    peer.write_all(&handshake::frame(&greeting)).unwrap();
    let mut conn = None;
    let challenge = read_message(&mut peer, server, &mut conn);
    let (introduced, introduction) = greeted.on_challenge(&challenge).unwrap();
    peer.write_all(&handshake::frame(&introduction)).unwrap();
    let verdict = read_message(&mut peer, server, &mut conn);
    introduced.on_verdict(&verdict).unwrap();
    (peer, conn.unwrap())
}

fn read_message(peer: &mut TcpStream, server: &mut End, conn: &mut Option<Conn>) -> Vec<u8> {
    let (start, mut bytes) = (Clock::now(), Vec::new());
    loop {
        assert!(start.elapsed() < PATIENCE);
        for event in server.turn() {
            if let Event::Proven { conn: proven, .. } = event {
                *conn = Some(proven);
                server.tcp.admit(proven, Ok(()));
            }
        }
        let mut part = [0; 4_096];
        let len = peer.read(&mut part).unwrap_or(0);
        bytes.extend_from_slice(&part[..len]);
        if let Some(head) = bytes.first_chunk() {
            let len = Header::LEN + Header::from_bytes(head).unwrap().body_len as usize;
            if bytes.len() >= len {
                return bytes.drain(Header::LEN..len).collect();
            }
        }
    }
}

#[test]
fn rubbish_after_the_handshake_ends_that_connection_and_names_the_peer() {
    let mut pair = Pair::new();
    let good = {
        let mut header = Header::new(HeaderKind::Request, 1);
        header.body_len = 4;
        header.to_bytes(b"good")
    };
    let mut oversized = good;
    oversized[8..12].copy_from_slice(&(limits::BODY_LEN_MAX + 1).to_le_bytes());
    let reply = Header::new(HeaderKind::Reply, 1).to_bytes(b"").to_vec();
    let twice = [&good[..], b"good", &good, b"good"].concat();
    let late = handshake::frame(b"hello");
    let cases = [
        ("zeros", vec![0; 500]),
        ("oversized", oversized.to_vec()),
        ("checksum", [&good[..], b"evil"].concat()),
        ("reply", reply),
        ("twice", twice),
        ("late", late),
    ];
    for (name, bytes) in cases {
        let (mut peer, conn) = by_hand(&mut pair.server, pair.address);
        peer.write_all(&bytes).unwrap();
        let events = pair.until(|event| is_closed(event, true));
        let Some((_, Event::Closed { conn: closed, why: CloseReason::Corrupt(text), .. })) =
            events.last()
        else {
            panic!("{name}: {events:?}");
        };
        assert_eq!(*closed, conn);
        assert!(text.starts_with(&peer.local_addr().unwrap().to_string()), "{name}: {text}");
    }
    pair.client.request(pair.conn, 1, Bulk::None);
    pair.until(|event| matches!(event.1, Event::Request { .. }));
}

#[test]
fn random_bytes_never_reach_anybody_and_hurt_nobody() {
    let mut pair = Pair::with(|config| config.handshake_ms = 500);
    let mut random = fastrand::Rng::with_seed(4);
    let (_, greeting) = Greeted::new(&Key::new([1; 32]), HELLO, [9; 32]);
    let greeting = handshake::frame(&greeting);
    let mut peers = Vec::new();
    for _ in 0..100 {
        let mut peer = TcpStream::connect(pair.address).unwrap();
        let mut bytes = vec![0; random.usize(0..3_000)];
        random.fill(&mut bytes);
        if random.bool() {
            // A good greeting with a flipped bit, or cut short, or followed by noise.
            let mut start = greeting.clone();
            let bit = random.usize(..start.len() * 8);
            start[bit / 8] ^= random.u8(0..2) << (bit % 8);
            start.truncate(random.usize(1..=start.len()));
            bytes.splice(0..0, start);
        }
        peer.write_all(&bytes).unwrap();
        peer.set_nonblocking(true).unwrap();
        peers.push(peer);
        assert!(pair.turn().is_empty());
    }
    let start = Clock::now();
    let mut sink = [0; 1_024];
    while !peers.is_empty() {
        assert!(start.elapsed() < PATIENCE, "{} are still connected", peers.len());
        assert!(pair.turn().is_empty());
        peers.retain_mut(|peer| match peer.read(&mut sink) {
            Ok(len) => len > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
    }
    pair.client.request(pair.conn, 1, Bulk::None);
    pair.until(|event| matches!(event.1, Event::Request { .. }));
}

#[test]
fn dropping_an_endpoint_and_its_ring_frees_what_is_in_flight() {
    let mut pair = Pair::new();
    pair.client.request(pair.conn, 1, Bulk::Receive(Region::zeroed(1 << 20)));
    pair.turn();
    let Pair { server, client, .. } = pair;
    drop(client);
    drop(server);
}
