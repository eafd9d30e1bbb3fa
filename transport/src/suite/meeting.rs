//! Who is let in, and what becomes of bytes that are none.

use sealfs_proto::{Address, ClusterId, Header, HeaderKind, NodeId};

use super::{End, Fixture, KEY, NODE, World, hello, map};
use crate::handshake::{Greeted, Introduced, frame};
use crate::{Bulk, CloseReason, Conn, Event, Hello, Key, MapStamp, Peer, Random};

/// Why a connection attempt ended.
fn end_of(world: &mut World<'_>, client: End, conn: Conn) -> CloseReason {
    let events = world.until("the attempt's end", |end, event| {
        end == client && matches!(event, Event::Closed { .. } | Event::Opened { .. })
    });
    let ends = events.into_iter().find_map(|(end, event)| match event {
        Event::Closed { conn: closed, why, .. } if end == client && closed == conn => Some(why),
        _ => None,
    });
    ends.expect("the attempt fails")
}

/// The peer waits for the core's word, and is told who answers.
pub fn who_has_the_key_is_admitted_by_the_core(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client(KEY);
    let wanted = Hello { map: Some(MapStamp::of(&map())), cluster: map().cluster, ..hello() };
    let conn = world.connect(client, wanted);
    let steps = world.fixture.steps_to_settle();
    let events: Vec<_> = (0..steps).flat_map(|_| world.turn_without_admitting()).collect();
    let [(end, Event::Proven { conn: served, hello })] = &events[..] else {
        panic!("the server alone knows: {events:?}");
    };
    assert_eq!((*end, *hello), (world.server, wanted));
    let server = world.server;
    world.transport(server).admit(*served, Ok(()));
    let events = world
        .until("the welcome", |end, event| end == client && matches!(event, Event::Opened { .. }));
    for (end, event) in events {
        match event {
            Event::Opened { conn: opened, peer, map, .. } if end == client => {
                assert_eq!((opened, peer), (conn, Peer::Node { node: NODE, endpoint: 0 }));
                assert_eq!(map, None, "it has the map");
            }
            Event::Opened { conn: opened, peer, .. } => {
                assert_eq!((opened, peer), (*served, wanted.peer));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// For a mount that knows addresses and the key.
pub fn a_client_without_a_map_is_sent_it(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client(KEY);
    world.connect(client, Hello { node: None, ..hello() });
    let events = world
        .until("the welcome", |end, event| end == client && matches!(event, Event::Opened { .. }));
    let sent = events.into_iter().find_map(|(end, event)| match event {
        Event::Opened { map, .. } if end == client => map,
        _ => None,
    });
    assert_eq!(sent.as_deref(), Some(&map()));
}

/// Without saying anything about the cluster.
pub fn a_wrong_key_is_refused(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client([8; 32]);
    let conn = world.connect(client, hello());
    let CloseReason::Refused(text) = end_of(&mut world, client, conn) else {
        panic!("trying again will not help");
    };
    let address = world.fixture.address(world.server).text;
    assert!(text.starts_with(&address) && text.contains("key"), "{text}");
    assert!(!text.contains(&map().cluster.to_string()), "{text}");
}

/// To those who have the key.
pub fn another_cluster_or_node_is_refused_by_name(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client(KEY);
    let conn = world.connect(client, Hello { cluster: ClusterId([4; 16]), ..hello() });
    let text = end_of(&mut world, client, conn).to_string();
    assert!(text.contains("0404") && text.contains("0303"), "{text}");
    let conn = world.connect(client, Hello { node: Some(NodeId(8)), ..hello() });
    let text = end_of(&mut world, client, conn).to_string();
    assert!(text.contains("node 7") && text.contains("node 8"), "{text}");
}

/// So that the client begins a new one.
pub fn an_ended_session_is_told_so(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, server) = (world.client(KEY), world.server);
    let conn = world.connect(client, hello());
    for _ in 0..super::STEPS_MAX {
        for (end, event) in world.turn_without_admitting() {
            match event {
                Event::Proven { conn, .. } => {
                    world.transport(server).admit(conn, Err(CloseReason::NoSession));
                }
                Event::Closed { conn: closed, why, .. } if end == client => {
                    return assert_eq!((closed, why), (conn, CloseReason::NoSession));
                }
                Event::Closed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("the client is never told");
}

/// The text is what the user sees.
pub fn nobody_at_the_address_is_an_end_that_names_it(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, address) = (world.client(KEY), world.fixture.nowhere());
    let conn = world.transport(client).connect(&address, hello());
    let why = end_of(&mut world, client, conn);
    assert_eq!(why, CloseReason::Gone(format!("{}: connection refused", address.text)));
}

/// Messages 1 and 3 of a handshake over a raw connection, and what the node said to the first.
struct Played {
    messages: [Vec<u8>; 2],
    state: Introduced,
    raw: Box<dyn super::Raw>,
}

/// Reads frames from a raw connection until one is whole; its body. `None`: closed before.
fn read_message(world: &mut World<'_>, raw: &mut dyn super::Raw) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..super::STEPS_MAX {
        world.turn();
        let now = world.fixture.now();
        bytes.extend(raw.read(now));
        if let Some(head) = bytes.first_chunk() {
            let header = Header::from_bytes(head).expect("the node sends frames");
            if bytes.len() >= Header::LEN + header.body_len as usize {
                return Some(bytes.split_off(Header::LEN));
            }
        }
        if raw.is_closed() {
            return None;
        }
    }
    panic!("the node neither answers nor closes");
}

fn play(world: &mut World<'_>, address: &Address) -> Played {
    let mut raw = world.fixture.raw(address);
    let (greeted, one) = Greeted::new(&Key::new(KEY), hello(), [1; 32]);
    raw.write(world.fixture.now(), &frame(&one));
    let two = read_message(world, raw.as_mut()).expect("the node answers a greeting");
    let (state, three) = greeted.on_challenge(&two).expect("the node's challenge is one");
    raw.write(world.fixture.now(), &frame(&three));
    Played { messages: [frame(&one), frame(&three)], state, raw }
}

/// What a handshake on the wire was worth is over with it.
pub fn a_replayed_handshake_is_refused(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let address = world.fixture.address(world.server);
    let mut genuine = play(&mut world, &address);
    let four = read_message(&mut world, genuine.raw.as_mut()).expect("the genuine one is let in");
    assert_eq!(genuine.state.on_verdict(&four).map(|welcome| welcome.node), Ok(NODE));
    let mut raw = world.fixture.raw(&address);
    raw.write(world.fixture.now(), &genuine.messages[0]);
    read_message(&mut world, raw.as_mut()).expect("a greeting is answered");
    raw.write(world.fixture.now(), &genuine.messages[1]);
    let mut proven = false;
    for _ in 0..super::STEPS_MAX {
        let events = world.turn();
        proven |= events.iter().any(|(_, event)| matches!(event, Event::Proven { .. }));
        raw.read(world.fixture.now());
        if raw.is_closed() {
            break;
        }
    }
    assert!(raw.is_closed() && !proven, "a replay is refused");
}

/// Random, oversized and misplaced frames, before and after the proof.
pub fn garbage_ends_its_own_connection_only(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    let address = world.fixture.address(world.server);
    let mut random = Random::new(5);
    let mut rubbish: Vec<Vec<u8>> =
        (0..20_u64).map(|count| (0..100 + count).flat_map(|_| random.bytes()).collect()).collect();
    let lying = Header { bulk_len: 1 << 20, ..Header::new(HeaderKind::Handshake, 0) };
    rubbish.push(lying.to_bytes(b"").to_vec());
    rubbish.push(Header::new(HeaderKind::Request, 1).to_bytes(b"").to_vec());
    let mut long = Header::new(HeaderKind::Handshake, 0).to_bytes(&[0; 5_000]).to_vec();
    long.extend([0; 5_000]);
    rubbish.push(long);
    rubbish.push(frame(b"no greeting"));
    for bytes in &rubbish {
        let mut raw = world.fixture.raw(&address);
        raw.write(world.fixture.now(), bytes);
        wait_for_end(&mut world, raw.as_mut());
    }
    let inside: [Vec<u8>; 3] =
        [vec![7; 200], Header::new(HeaderKind::Reply, 1).to_bytes(b"").to_vec(), frame(b"again")];
    for bytes in inside {
        let mut played = play(&mut world, &address);
        read_message(&mut world, played.raw.as_mut()).expect("it is let in");
        played.raw.write(world.fixture.now(), &bytes);
        wait_for_end(&mut world, played.raw.as_mut());
    }
    world.request(client, conn, 1, Bulk::None);
    world.until("a request of the old connection", |_, event| {
        matches!(event, Event::Request { .. })
    });
    world.reply(served, 1, Bulk::None);
    world.until("its reply", |_, event| matches!(event, Event::Reply { .. }));
}

fn wait_for_end(world: &mut World<'_>, raw: &mut dyn super::Raw) {
    for _ in 0..super::STEPS_MAX {
        let events = world.turn();
        let harmless = |event: &Event| {
            matches!(event, Event::Closed { .. } | Event::Proven { .. } | Event::Opened { .. })
        };
        assert!(events.iter().all(|(_, event)| harmless(event)), "{events:?}");
        raw.read(world.fixture.now());
        if raw.is_closed() {
            return;
        }
    }
    panic!("the node keeps a connection that speaks rubbish");
}
