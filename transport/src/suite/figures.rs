//! What a connection says of itself.

use sealfs_proto::Traffic;

use super::{Fixture, World, pattern, room};
use crate::{Bulk, Event, Region};

/// Both ends count what was moved, and the end of a connection tells all of it.
pub fn figures_count_what_was_moved(fixture: &mut dyn Fixture) {
    const WRITTEN: usize = 100_001;
    const READ: usize = 65_535;
    let mut world = World::new(fixture);
    let (client, conn, served) = world.open();
    world.request(client, conn, 1, Bulk::Send(vec![Region::new(pattern(1, WRITTEN)).freeze()]));
    world.request(client, conn, 2, room(READ));
    let (server, mut done) = (world.server, 0);
    for _ in 0..super::STEPS_MAX {
        for (_, event) in world.turn() {
            match event {
                Event::Request { conn, header, .. } if header.token == 1 => {
                    world.transport(server).pull(conn, 1, Region::zeroed(WRITTEN));
                }
                Event::Pulled { conn, .. } => world.reply(conn, 1, Bulk::None),
                Event::Request { conn, .. } => {
                    let payload = Region::new(pattern(2, READ)).freeze();
                    world.reply(conn, 2, Bulk::Send(vec![payload]));
                }
                Event::Reply { .. } => done += 1,
                _ => {}
            }
        }
        if done == 2 {
            break;
        }
    }
    // Sends are counted when they are known to have left.
    world.settle();
    let asked = world.transport(client).figures(conn).expect("the connection is open");
    let asking = world.transport(server).figures(served).expect("the connection is open");
    assert_eq!(asked.path.transport, asking.path.transport);
    assert!(!asked.address.is_empty() && !asking.address.is_empty());
    for figures in [&asked, &asking] {
        let Traffic { frames_sent, frames_received, .. } = figures.traffic;
        assert_eq!((frames_sent, frames_received, figures.in_flight), (2, 2, 0), "{figures:?}");
        assert!(figures.path.credits > 0 && figures.path.credits <= figures.path.credits_max);
    }
    let [out, back] = [(asked.traffic, asking.traffic), (asking.traffic, asked.traffic)]
        .map(|(from, to)| [from.bytes_sent + from.rdma_sent, to.bytes_received + to.rdma_received]);
    assert!(out.into_iter().all(|moved| moved >= WRITTEN as u64), "{asked:?} {asking:?}");
    assert!(back.into_iter().all(|moved| moved >= READ as u64), "{asked:?} {asking:?}");
    assert!(out[0] < 2 * WRITTEN as u64 && back[0] < 2 * READ as u64, "nothing is counted twice");

    world.transport(client).close(conn);
    let events =
        world.until("the end", |end, event| end == client && matches!(event, Event::Closed { .. }));
    let told = events.into_iter().find_map(|(end, event)| match event {
        Event::Closed { traffic, .. } if end == client => Some(traffic),
        _ => None,
    });
    assert_eq!(told, Some(asked.traffic));
    assert!(world.transport(client).figures(conn).is_none(), "nothing is told of what is over");
}
