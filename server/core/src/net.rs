//! From the endpoint's events to requests: decoding, the session's check, and the pull of bulk.
//!
//! 1. Bytes that are no request end their connection and nothing else.
//! 2. A request with bulk is served when the bulk is here. While memory is short, pulls wait in the order of their
//!    arrival and no further client requests are taken.

use std::rc::Rc;

use sealfs_meta::Origin;
use sealfs_proto::{Errno, Header, HeaderKind, Request, Sequence, Status, decode};
use sealfs_transport::{Conn, Event, Peer, Region, Slice};

use crate::connections::Pulling;
use crate::figures::RequestKind;
use crate::flow;
use crate::mail::Order;
use crate::serve;
use crate::world::{Caller, Guest, Job, World, errno};

/// Takes an event of an accepted connection.
pub(crate) fn take(world: &Rc<World>, event: Event) {
    match event {
        Event::Proven { conn, hello } => flow::session::greet(world, conn, hello),
        Event::Opened { conn, peer, .. } => {
            world.connections.borrow_mut().open(conn, peer);
            let paused = world.connections.borrow().paused;
            if paused && matches!(peer, Peer::Client { .. }) {
                world.calls.pause(conn, true);
            }
        }
        Event::Request { conn, header, body } => request(world, conn, header, &body),
        Event::Pulled { conn, token, region, len } => pulled(world, conn, token, region, len),
        Event::Closed { conn, .. } => {
            let dropped = world.connections.borrow_mut().close(conn);
            world.in_service.set(world.in_service.get().saturating_sub(dropped));
        }
        Event::Reply { .. } => {}
    }
}

fn request(world: &Rc<World>, conn: Conn, header: Header, body: &[u8]) {
    let Some(peer) = world.connections.borrow().peer(conn) else { return };
    let request: Request = match decode("request", body) {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(?peer, %error, "a connection is closed because of bad bytes");
            return world.calls.close(conn);
        }
    };
    let (kind, arrived) = (RequestKind::of(&request), world.now.get().mono);
    world.counters.borrow_mut().arrive(kind);
    let guest = Guest { conn, token: header.token, kind, arrived };
    if !guest.waits() {
        world.in_service.set(world.in_service.get() + 1);
    }
    let caller = Caller::Peer(guest);
    if !has_session(world, peer) {
        return world.respond_after(caller, world.written(), Err(Status::NoSession).into());
    }
    if let Request::Read { length, .. } | Request::Probe { length } = request
        && length > 0
        && (header.kind != HeaderKind::RequestForBulk || header.bulk_len < length)
    {
        return world.respond_after(caller, world.written(), errno(Errno::EPROTO));
    }
    if header.kind == HeaderKind::Request && header.bulk_len > 0 {
        if !matches!(request, Request::Write { .. } | Request::Probe { .. }) {
            return world.respond_after(caller, world.written(), errno(Errno::EPROTO));
        }
        let key = (conn, header.token);
        let mut connections = world.connections.borrow_mut();
        connections.pulling.insert(key, Pulling { header, request, arrived });
        connections.starved.push_back(key);
        drop(connections);
        return feed(world);
    }
    let order = order(peer, &header, request, None);
    serve::route(world, Job::new(caller, order));
}

/// Whether the peer may ask: a node, or a client whose session lives, which is noted as heard of.
fn has_session(world: &World, peer: Peer) -> bool {
    let Peer::Client { session, .. } = peer else { return true };
    match world.known.borrow_mut().alive.get_mut(&session) {
        Some(heard) => {
            *heard = true;
            true
        }
        None => false,
    }
}

fn order(peer: Peer, header: &Header, request: Request, bulk: Option<Slice>) -> Order {
    let origin = match peer {
        Peer::Client { session, .. } if header.sequence != Sequence(0) => {
            Some(Origin { session, sequence: header.sequence, watermark: header.watermark })
        }
        _ => None,
    };
    Order { peer, origin, shard: header.shard, request, bulk }
}

/// Begins the pulls for which there is memory.
pub(crate) fn feed(world: &World) {
    loop {
        let next = {
            let connections = world.connections.borrow();
            connections.starved.front().and_then(|key| {
                connections.pulling.get(key).map(|pulling| (*key, pulling.header.bulk_len))
            })
        };
        let Some(((conn, token), len)) = next else { return };
        let Some(region) = world.arena.take(len as usize) else { return };
        world.connections.borrow_mut().starved.pop_front();
        world.calls.pull(conn, token, region);
    }
}

fn pulled(world: &Rc<World>, conn: Conn, token: u64, region: Region, len: u32) {
    let mut connections = world.connections.borrow_mut();
    let pulling = connections.pulling.remove(&(conn, token));
    let peer = connections.peer(conn);
    drop(connections);
    let (Some(Pulling { header, request, arrived }), Some(peer)) = (pulling, peer) else { return };
    let bulk = region.freeze().cut(0, len as usize);
    let kind = RequestKind::of(&request);
    let order = order(peer, &header, request, Some(bulk));
    let caller = Caller::Peer(Guest { conn, token, kind, arrived });
    serve::route(world, Job::new(caller, order));
}

/// Holds clients' requests back while there is too much to do, and lets them come again.
pub(crate) fn balance(world: &World, mail_is_stuck: bool) {
    let mut connections = world.connections.borrow_mut();
    let full = mail_is_stuck
        || world.in_service.get() >= world.config.requests_max
        || !connections.starved.is_empty();
    if full == connections.paused {
        return;
    }
    connections.paused = full;
    let clients = connections.clients();
    drop(connections);
    for conn in clients {
        world.calls.pause(conn, full);
    }
}
