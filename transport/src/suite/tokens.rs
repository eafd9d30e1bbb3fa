//! Requests, replies, and who gets what back.

use std::collections::BTreeMap;

use sealfs_proto::limits;

use super::{End, Fixture, World, pattern, replies, requests, room};
use crate::{Bulk, Conn, Event, Region};

/// With its reply, or with its connection's end: whoever ends it, and however much is under way.
pub fn every_token_completes_once(fixture: &mut dyn Fixture) {
    for ending in ["the client closes", "the server closes", "the server dies", "nobody ends"] {
        let mut world = World::new(fixture);
        let (client, conn, served) = world.open();
        let mut done: BTreeMap<u64, u32> = BTreeMap::new();
        let (mut ended, mut ending_begun) = (false, false);
        for token in 1..=90 {
            let bulk = match token % 3 {
                0 => room(5_000),
                1 => Bulk::Send(vec![Region::new(pattern(token, 5_000)).freeze()]),
                _ => Bulk::None,
            };
            world.request(client, conn, token, bulk);
        }
        let mut answered = 0;
        for _ in 0..super::STEPS_MAX {
            for (end, event) in world.turn() {
                match event {
                    Event::Request { conn, header, .. }
                        if answered < 45 || ending == "nobody ends" =>
                    {
                        answered += 1;
                        world.reply(conn, header.token, Bulk::None);
                    }
                    Event::Reply { header, region, .. } => {
                        assert_eq!(region.is_some(), header.token % 3 == 0, "its own region");
                        *done.entry(header.token).or_default() += 1;
                    }
                    Event::Closed { lent, .. } if end == client => {
                        assert!(!ended, "one end");
                        ended = true;
                        for (token, _) in lent {
                            assert_eq!(token % 3, 0, "only what was lent comes back");
                            *done.entry(token).or_default() += 1;
                        }
                    }
                    _ => {}
                }
            }
            if ended || done.len() == 90 {
                break;
            }
            if done.len() >= 40 && !std::mem::replace(&mut ending_begun, true) {
                match ending {
                    "the client closes" => world.transport(client).close(conn),
                    "the server closes" => world.transport(world.server).close(served),
                    "the server dies" => {
                        let server = world.ends.remove(0);
                        world.fixture.kill(server);
                    }
                    _ => {}
                }
            }
        }
        assert!(ended || done.len() == 90, "{ending}: every token completes; done: {done:?}");
        let lent = (1..=90).filter(|token| token % 3 == 0);
        assert!(lent.clone().all(|token| done.contains_key(&token)), "{ending}: all regions");
        assert!(done.values().all(|&times| times == 1), "{ending}: once: {done:?}");
        let after = world.settle();
        let late = after
            .iter()
            .any(|(end, event)| *end == client && !matches!(event, Event::Opened { .. }));
        assert!(!late, "{ending}: nothing follows the end: {after:?}");
    }
}

/// For a fixture whose connections break of themselves: regions that were lent come back exactly once. Not part of
/// [`transport_suite!`](crate::transport_suite).
pub fn tokens_are_accounted_for(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client(super::KEY);
    let (mut next, mut lent_out, mut back) = (1, Vec::new(), BTreeMap::new());
    let mut conn = world.connect(client, super::hello());
    for _ in 0..2_000 {
        let events = world.turn();
        let over: Vec<Conn> = events
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Closed { conn, .. } => Some(*conn),
                _ => None,
            })
            .collect();
        for (end, event) in events {
            let mut wanted = 0;
            match event {
                Event::Opened { .. } => wanted = if end == client { 30 } else { 0 },
                Event::Request { conn, header, .. } => {
                    world.reply(conn, header.token, Bulk::None);
                }
                Event::Reply { header, region, .. } => {
                    assert!(region.is_some());
                    *back.entry(header.token).or_insert(0) += 1;
                    wanted = 1;
                }
                Event::Closed { conn: closed, lent, .. } if end == client => {
                    assert_eq!(closed, conn);
                    lent.iter().for_each(|(token, _)| *back.entry(*token).or_insert(0) += 1);
                    conn = world.connect(client, super::hello());
                }
                _ => {}
            }
            for _ in 0..if over.contains(&conn) { 0 } else { wanted } {
                world.request(client, conn, next, room(100));
                lent_out.push(next);
                next += 1;
            }
        }
    }
    world.transport(client).close(conn);
    for (end, event) in world.settle() {
        match event {
            Event::Reply { header, .. } => *back.entry(header.token).or_insert(0) += 1,
            Event::Closed { lent, .. } if end == client => {
                lent.iter().for_each(|(token, _)| *back.entry(*token).or_insert(0) += 1);
            }
            _ => {}
        }
    }
    assert!(lent_out.len() > 30, "connections did open");
    let wrong: Vec<_> = lent_out.iter().filter(|token| back.get(token) != Some(&1)).collect();
    assert!(wrong.is_empty(), "not back exactly once: {wrong:?}");
}

/// Requests and replies of one connection arrive in the order of sending.
pub fn frames_arrive_in_order(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, _) = world.open();
    let tokens: Vec<u64> = (1..=100).collect();
    for &token in &tokens {
        world.request(client, conn, token, room(token as usize * 40));
    }
    let (mut seen, mut back) = (Vec::new(), Vec::new());
    for _ in 0..super::STEPS_MAX {
        let events = world.turn();
        seen.extend(requests(&events));
        back.extend(replies(&events));
        for token in requests(&events) {
            let bytes = Region::new(pattern(token, token as usize * 40)).freeze();
            let served = events.iter().find_map(|(_, event)| match event {
                Event::Request { conn, .. } => Some(*conn),
                _ => None,
            });
            world.reply(
                served.expect("a request has a connection"),
                token,
                Bulk::Send(vec![bytes]),
            );
        }
        if back.len() == tokens.len() {
            break;
        }
    }
    assert_eq!((&seen, &back), (&tokens, &tokens));
}

/// However much a client sends, a server that does not answer sees `CREDITS` requests and no more.
pub fn a_slow_peer_is_bounded_by_credits(fixture: &mut dyn Fixture) {
    let credits = limits::CREDITS as usize;
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    let count = 3 * credits as u64;
    (1..=count).for_each(|token| world.request(client, conn, token, Bulk::None));
    let seen = requests(&world.settle());
    assert_eq!(seen.len(), credits, "unanswered requests of one connection");
    seen.iter().for_each(|&token| world.reply(served, token, Bulk::None));
    let (mut all, mut back) = (seen, Vec::new());
    for _ in 0..super::STEPS_MAX {
        let events = world.turn();
        world.reply_to_all(&events);
        all.extend(requests(&events));
        back.extend(replies(&events));
        if back.len() == count as usize {
            break;
        }
    }
    assert_eq!(all, (1..=count).collect::<Vec<_>>());
    assert_eq!(back, all);
}

/// Backpressure: nothing is taken while paused, and everything comes afterwards.
pub fn a_paused_connection_takes_no_requests_and_loses_none(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    let server = world.server;
    world.transport(server).pause(served, true);
    world.settle();
    (1..=20).for_each(|token| world.request(client, conn, token, Bulk::None));
    assert_eq!(requests(&world.settle()), [0; 0]);
    let (other, other_conn, _) = world.open();
    world.request(other, other_conn, 99, Bulk::None);
    let events = world
        .until("another connection's request", |_, event| matches!(event, Event::Request { .. }));
    assert_eq!(requests(&events), [99]);
    world.transport(server).pause(served, false);
    let mut seen = Vec::new();
    for _ in 0..super::STEPS_MAX {
        seen.extend(requests(&world.turn()));
        if seen.len() == 20 {
            break;
        }
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
}

/// Never by time alone.
pub fn a_lent_region_comes_back_with_the_reply_or_the_end(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    world.request(client, conn, 1, room(10));
    world.request(client, conn, 2, room(20));
    world.settle();
    world.reply(served, 1, Bulk::None);
    let events = world.until("the reply", |_, event| matches!(event, Event::Reply { .. }));
    let Some((_, Event::Reply { region: Some(region), header, .. })) = events.last() else {
        panic!("the reply brings the region back: {events:?}");
    };
    assert_eq!((region.len(), header.token, header.bulk_len), (10, 1, 0));
    let server = world.server;
    world.transport(server).close(served);
    let events =
        world.until("the end", |end, event| end == client && matches!(event, Event::Closed { .. }));
    let lent = events.iter().find_map(|(end, event)| match event {
        Event::Closed { lent, .. } if *end == client => Some(lent),
        _ => None,
    });
    let lent: Vec<(u64, usize)> =
        lent.into_iter().flatten().map(|(token, region)| (*token, region.len())).collect();
    assert_eq!(lent, [(2, 20)]);
}

/// A request that is sent after the connection has died, and before its end was polled, is no exception.
pub fn a_frame_for_a_dying_connection_gives_its_region_back(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    let (server, now) = (world.server, world.fixture.now());
    world.transport(server).close(served);
    world.transport(server).flush(now);
    let steps = world.fixture.steps_to_settle();
    for token in 1..=steps as u64 {
        // Only the client's flush: its end of the connection dies unseen.
        world.request(client, conn, token, room(10));
        let now = world.fixture.now();
        world.transport(client).flush(now);
        world.fixture.step();
    }
    assert_eq!(lent_back(&mut world, client), (1..=steps as u64).collect::<Vec<_>>());
    world.request(client, conn, 1, room(10));
    world.settle();
    let (client, conn, _) = world.open();
    world.transport(client).close(conn);
    world.request(client, conn, 1, room(10));
    assert_eq!(lent_back(&mut world, client), [1], "closed by this end");
}

/// The tokens whose regions come back with the end of the client's only connection.
fn lent_back(world: &mut World<'_>, client: End) -> Vec<u64> {
    let events =
        world.until("the end", |end, event| end == client && matches!(event, Event::Closed { .. }));
    let lent = events.into_iter().filter_map(|(end, event)| match event {
        Event::Closed { lent, .. } if end == client => Some(lent),
        _ => None,
    });
    let mut tokens: Vec<u64> = lent.flatten().map(|(token, _)| token).collect();
    tokens.sort_unstable();
    tokens
}

/// A server may answer late; nobody is hurt.
pub fn a_reply_to_a_connection_that_is_gone_is_dropped(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    let bytes = Region::new(pattern(1, 1_000)).freeze();
    world.request(client, conn, 1, Bulk::Send(vec![bytes.clone()]));
    world.until("the request", |_, event| matches!(event, Event::Request { .. }));
    world.transport(client).close(conn);
    let server = world.server;
    world.until("the end", |end, event| end == server && matches!(event, Event::Closed { .. }));
    world.reply(served, 1, Bulk::Send(vec![bytes]));
    world.transport(server).pull(served, 1, Region::zeroed(1_000));
    world.transport(server).close(served);
    assert!(world.settle().is_empty());
}

/// Each with its own requests in flight.
pub fn many_connections_live_side_by_side(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let client = world.client(super::KEY);
    let conns: Vec<Conn> = (0..100).map(|_| world.connect(client, super::hello())).collect();
    let mut open = 0;
    world.until("all connections", |end, event| {
        open += usize::from(end == client && matches!(event, Event::Opened { .. }));
        open == conns.len()
    });
    for (number, &conn) in (0..).zip(&conns) {
        world.request(client, conn, 1_000 + number, room(100));
    }
    let mut back = BTreeMap::new();
    for _ in 0..super::STEPS_MAX {
        for (_, event) in world.turn() {
            match event {
                Event::Request { conn, header, .. } => {
                    let bytes = Region::new(pattern(header.token, 100)).freeze();
                    world.reply(conn, header.token, Bulk::Send(vec![bytes]));
                }
                Event::Reply { conn, header, region, .. } => {
                    let region = region.expect("a region was lent");
                    assert_eq!(region.bytes(), pattern(header.token, 100));
                    back.insert(conn, header.token);
                }
                _ => {}
            }
        }
        if back.len() == conns.len() {
            break;
        }
    }
    assert!((0..).zip(&conns).all(|(number, conn)| back[conn] == 1_000 + number));
}
