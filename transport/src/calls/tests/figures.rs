//! What a connection has done is told, over reconnects, and tries to reach the dead are few.

use super::*;

/// What the client tells of a node.
fn figures(world: &World, node: u16) -> PeerFigures {
    let (all, left) = world.client.figures(0, None);
    assert_eq!((all.len(), left), (2, 0));
    let wanted = Peer::Node { node: NodeId(node), endpoint: 0 };
    all.into_iter().find(|figures| figures.peer == wanted).unwrap()
}

/// However many calls wait for it, and whether it refuses or is silent: one try at a time, and with pauses.
#[test]
fn tries_to_reach_a_dead_node_are_few_and_disturb_nobody() {
    for silent in [false, true] {
        let mut world = World::new(Options { timeout_ms: 0, ..Options::default() });
        if silent {
            world.network.cut("client", "node2");
        } else {
            world.crash(2);
        }
        (0..100).for_each(|name| world.ask(name, 2, read()));
        world.run(1_000);
        for round in 0..60 {
            world.ask(1_000 + round, 1, read());
            world.run(1);
            assert_eq!(world.answers(), [(1_000 + round, Ok(Reply::Done))], "at once");
            world.run(999);
        }
        let tries = figures(&world, 2).failures;
        // A pause of 0.5 s to 1 s follows a refusal; a silent node is given 5 s at least.
        let (min, max) = if silent { (4, 13) } else { (50, 135) };
        assert!((min..=max).contains(&tries), "silent: {silent}, {tries} tries in a minute");
        assert_eq!(figures(&world, 1).failures, 0);
    }
}

#[test]
fn figures_of_both_ends_go_on_over_reconnects() {
    let mut world = World::new(Options::default());
    world.ask(1, 1, read());
    world.run(10);
    let first = figures(&world, 1);
    assert_eq!((first.connections, first.reconnects(), first.failures, first.resent), (1, 0, 0, 0));
    let in_flight = world.server(1);
    in_flight.answer = Box::new(|_, _| None);
    world.ask(2, 1, read());
    world.run(10);
    assert_eq!(figures(&world, 1).in_flight, 1);
    let conn = world.server(1).open[0];
    world.network.cut("client", "node1");
    world.run(20_000);
    let now = world.now;
    world.network.heal(now, "client", "node1");
    world.server(1).answer = Box::new(|_, _| Some((Status::Ok, Reply::Done)));
    world.run(10_000);
    assert_eq!(world.answers().len(), 2);
    let second = figures(&world, 1);
    assert_eq!((second.connections, second.resent, second.in_flight), (2, 1, 0));
    assert!(second.failures >= 1 && second.last_error.is_empty(), "{second:?}");
    assert!(second.traffic.frames_sent > first.traffic.frames_sent);
    assert_eq!(second.path.unwrap().transport, TransportKind::Tcp);

    let (guests, left) = world.server(1).calls.figures(0, None);
    let [guest] = &guests[..] else { panic!("{guests:?}") };
    assert!(matches!(guest.peer, Peer::Client { .. }) && guest.accepted && left == 0);
    assert_eq!(guest.connections, 2, "{guest:?}");
    assert!(guest.traffic.frames_received >= 3 && !world.server(1).open.contains(&conn));
    assert_eq!(world.server(1).calls.figures(0, Some(guest.peer)), (Vec::new(), 0), "who asks");
    assert_eq!(world.server(1).calls.figures(1, None), (Vec::new(), 0), "a page behind the end");
}
