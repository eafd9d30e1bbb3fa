//! Payload of every size, both ways.

use sealfs_proto::{HeaderKind, limits};

use super::{Fixture, World, pattern, room};
use crate::{Bulk, Event, Region, Slice};

const SIZES: [usize; 9] = [1, 63, 64, 65, 4_096, 65_535, 100_001, 1 << 19, 1 << 20];

/// The bytes in pieces of unequal length, as a core has them in several blocks.
fn pieces(bytes: Vec<u8>) -> Vec<Slice> {
    let (len, whole) = (bytes.len(), Region::new(bytes).freeze());
    let cuts = [0, len / 3, len / 3, len - len / 5, len];
    cuts.windows(2).map(|pair| whole.cut(pair[0], pair[1])).collect()
}

/// A write: several in flight, pulled in the order of their arrival.
pub fn payload_of_any_size_is_pulled_whole(fixture: &mut dyn Fixture) {
    assert_eq!(SIZES[SIZES.len() - 1], limits::BULK_LEN_MAX as usize);
    let mut world = World::new(fixture);
    let (client, conn, _) = world.open();
    for (token, size) in (1..).zip(SIZES) {
        world.request(client, conn, token, Bulk::Send(pieces(pattern(token, size))));
    }
    world.request(client, conn, 100, Bulk::Send(Vec::new()));
    let (server, mut done) = (world.server, 0);
    for _ in 0..super::STEPS_MAX {
        for (_, event) in world.turn() {
            match event {
                Event::Request { conn, header, body } => {
                    assert_eq!(
                        (header.kind, &body[..]),
                        (HeaderKind::Request, &header.token.to_le_bytes()[..])
                    );
                    if header.token == 100 {
                        assert_eq!(header.bulk_len, 0, "nothing to pull");
                        world.reply(conn, header.token, Bulk::None);
                        continue;
                    }
                    assert_eq!(header.bulk_len as usize, SIZES[header.token as usize - 1]);
                    let region = Region::zeroed(header.bulk_len as usize + 7);
                    world.transport(server).pull(conn, header.token, region);
                }
                Event::Pulled { conn, token, region, len } => {
                    let expected = pattern(token, SIZES[token as usize - 1]);
                    assert_eq!(len as usize, expected.len());
                    assert!(region.bytes()[..expected.len()] == expected, "token {token}");
                    assert_eq!(&region.bytes()[expected.len()..], [0; 7], "nothing behind it");
                    world.reply(conn, token, Bulk::None);
                }
                Event::Reply { region, .. } => {
                    assert!(region.is_none());
                    done += 1;
                }
                _ => {}
            }
        }
        if done == SIZES.len() + 1 {
            return;
        }
    }
    panic!("{done} writes were answered");
}

/// A read: the reply's bytes are at the start of the region, and nothing else is touched.
pub fn payload_of_any_size_is_pushed_whole(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, _) = world.open();
    for (token, size) in (1..).zip(SIZES) {
        // A region that is full, and one with room to spare; the largest frame allows for the former only.
        world.request(client, conn, token, room((size + token as usize % 2).min(1 << 20)));
    }
    world.request(client, conn, 100, room(50));
    let mut done = 0;
    for _ in 0..super::STEPS_MAX {
        for (_, event) in world.turn() {
            match event {
                Event::Request { conn, header, .. } => {
                    assert_eq!(header.kind, HeaderKind::RequestForBulk);
                    let bulk = match header.token {
                        100 => Bulk::None,
                        token => {
                            let size = SIZES[token as usize - 1];
                            assert_eq!(
                                header.bulk_len as usize,
                                (size + token as usize % 2).min(1 << 20)
                            );
                            Bulk::Send(pieces(pattern(token, size)))
                        }
                    };
                    world.reply(conn, header.token, bulk);
                }
                Event::Reply { header, region, body, .. } => {
                    let region = region.expect("a region was lent");
                    assert_eq!(body, header.token.to_le_bytes());
                    let size = SIZES.get(header.token as usize - 1).copied().unwrap_or(0);
                    assert_eq!(header.bulk_len as usize, size);
                    let (filled, rest) = region.bytes().split_at(size);
                    assert!(filled == pattern(header.token, size), "token {}", header.token);
                    assert!(rest.iter().all(|&byte| byte == 0), "nothing behind it");
                    done += 1;
                }
                _ => {}
            }
        }
        if done == SIZES.len() + 1 {
            return;
        }
    }
    panic!("{done} reads were answered");
}

/// A refused write: its payload is not wanted, and what follows is not disturbed.
pub fn a_request_may_be_answered_without_a_pull(fixture: &mut dyn Fixture) {
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    world.request(client, conn, 1, Bulk::Send(pieces(pattern(1, 300_000))));
    world.request(client, conn, 2, Bulk::Send(pieces(pattern(2, 300_000))));
    let is_request = |event: &Event| matches!(event, Event::Request { .. });
    let mut events = world.until("the first request", |_, event| is_request(event));
    let first = events.iter().position(|(_, event)| is_request(event)).expect("it was found");
    events.remove(first);
    world.reply(served, 1, Bulk::None);
    let (server, mut second) = (world.server, false);
    for _ in 0..super::STEPS_MAX {
        events.extend(world.turn());
        for (_, event) in std::mem::take(&mut events) {
            match event {
                Event::Request { conn, header, .. } => {
                    let region = Region::zeroed(header.bulk_len as usize);
                    world.transport(server).pull(conn, header.token, region);
                }
                Event::Pulled { conn, token, region, .. } => {
                    assert!(region.bytes() == pattern(2, 300_000));
                    world.reply(conn, token, Bulk::None);
                }
                Event::Reply { header, .. } => second |= header.token == 2,
                _ => {}
            }
        }
        if second {
            return;
        }
    }
    panic!("the second request was never answered");
}
