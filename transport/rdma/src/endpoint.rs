//! A thread's connections: who is connected, who is being connected, who has had too long, who is silent.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use sealfs_proto::{Path, RdmaPath, Traffic, TransportKind, limits};
use sealfs_ring::{File, Resolver};
use sealfs_transport::handshake::{Exchange, Nonce};
use sealfs_transport::{
    Bulk, CloseReason, Conn, Event, Figures, Frame, Hello, Identity, Instant, Region,
};

use crate::bounce::Bounce;
use crate::connection::{Attempt, Connection, Reach};
use crate::message::Room;
use crate::stats::{ConnectionStats, Stats};
use crate::verbs::{Facts, Failure, Happening, Link, Verbs, WINDOW};

/// Connections that were accepted and have not finished their handshake; more are turned away.
pub const HANDSHAKES_MAX: usize = 256;

/// A connection's number: which one it is, and in the lowest bits its slot.
const SLOT_BITS: u32 = 16;
const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;
const _: () =
    assert!(limits::CONNECTIONS_MAX < SLOTS_MAX && HANDSHAKES_MAX < limits::CONNECTIONS_MAX);

/// Everything of one thread's RDMA above the verbs.
pub(crate) struct Endpoint {
    verbs: Box<dyn Verbs>,
    identity: Arc<Identity>,
    handshake_ms: u64,
    keepalive_ms: u64,
    /// Whether the thread ever sleeps: then the provider wakes it.
    sleeps: bool,
    resolver: Resolver,
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
    /// Connections made so far.
    count: u64,
    links: HashMap<Link, usize>,
    /// Connections in `slots` that were accepted, and those of them that have not proven themselves.
    accepted: usize,
    half_open: usize,
    bounce: Bounce,
    /// Slots to look after at the next flush.
    dirty: Vec<usize>,
    /// Slots that wait for memory to copy through.
    starved: Vec<usize>,
    /// Handshakes by deadline; those that began since the last flush have none yet.
    deadlines: VecDeque<(Instant, Conn)>,
    fresh: Vec<Conn>,
    /// When to look for silent peers; `None` while nobody is connected.
    probe_at: Option<Instant>,
    /// When the provider wants to be polled even if nothing happens.
    retry_at: Option<Instant>,
    events: VecDeque<Event>,
    failed: u64,
    last_error: Option<String>,
}

impl Endpoint {
    pub(crate) fn new(
        verbs: Box<dyn Verbs>,
        identity: Arc<Identity>,
        handshake_ms: u64,
        keepalive_ms: u64,
        sleeps: bool,
    ) -> Self {
        Self {
            verbs,
            identity,
            handshake_ms,
            keepalive_ms,
            sleeps,
            resolver: Resolver::default(),
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
            links: HashMap::new(),
            accepted: 0,
            half_open: 0,
            bounce: Bounce::default(),
            dirty: Vec::new(),
            starved: Vec::new(),
            deadlines: VecDeque::new(),
            fresh: Vec::new(),
            probe_at: None,
            retry_at: None,
            events: VecDeque::new(),
            failed: 0,
            last_error: None,
        }
    }

    pub(crate) fn listen(&mut self, address: &str, share: bool) -> Result<SocketAddr, Failure> {
        let found = self
            .resolver
            .look_up(address)
            .map_err(|why| Failure(format!("cannot listen on {address}: {why}")))?;
        self.verbs.listen(found[0], share)
    }

    pub(crate) fn descriptors(&self) -> &[(u64, File)] {
        self.verbs.descriptors()
    }

    pub(crate) fn woken(&mut self, number: u64) {
        self.verbs.woken(number);
    }

    pub(crate) fn stats(&self) -> Stats {
        let connections = self.slots.iter().flatten().filter_map(|connection| {
            let (credits, calls) = connection.load();
            Some(ConnectionStats {
                peer: connection.address.clone(),
                accepted: connection.is_accepted(),
                facts: self.verbs.facts(connection.link?),
                credits,
                calls,
                counters: connection.counters,
            })
        });
        let connections = connections.collect();
        Stats { connections, failed: self.failed, last_error: self.last_error.clone() }
    }

    pub(crate) fn figures(&self, conn: Conn) -> Option<Figures> {
        let connection = self.slots[self.find(conn)?].as_ref()?;
        let link = connection.link.filter(|_| connection.is_open())?;
        let (credits, in_flight) = connection.load();
        let Facts { device, port, gid: (gid_index, gid_kind), mtu, depth } = self.verbs.facts(link);
        let path = Path {
            transport: TransportKind::Rdma,
            credits: credits.into(),
            credits_max: connection.window().into(),
            rdma: Some(RdmaPath {
                device,
                port,
                gid_index,
                gid_kind,
                mtu,
                send_depth: depth as u32,
                receive_depth: WINDOW.into(),
            }),
        };
        let (address, traffic) = (connection.address.clone(), connection.traffic);
        Some(Figures { address, path, in_flight: in_flight as u64, traffic })
    }

    // ---- what those above ask ----

    pub(crate) fn connect(&mut self, address: &str, hello: Hello) -> Conn {
        let greeted = Exchange::connect(&self.identity.key, hello, nonce());
        let found = self.resolver.look_up(address).map_err(|error| error.to_string());
        let conn = self.new_conn();
        match found {
            Ok(found) if slot_of(conn) < SLOTS_MAX => {
                let attempt = Attempt::new(greeted, found);
                self.insert(Connection::dialing(conn, address.to_owned(), attempt));
                self.dial(slot_of(conn), String::new());
            }
            found => {
                let cause = found.err().unwrap_or_else(|| "too many connections".to_owned());
                let why = CloseReason::Gone(format!("{address}: {cause}"));
                let (lent, traffic) = (Vec::new(), Traffic::default());
                self.events.push_back(Event::Closed { conn, why, lent, traffic });
            }
        }
        conn
    }

    pub(crate) fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        if let Some(slot) = self.find(conn)
            && let Some(connection) = &mut self.slots[slot]
        {
            connection.admit(verdict, &mut self.events);
            self.mark(slot);
        }
    }

    pub(crate) fn send(&mut self, conn: Conn, frame: Frame) {
        if let Some(slot) = self.find(conn)
            && let Some(connection) = &mut self.slots[slot]
        {
            connection.send(frame);
            self.mark(slot);
        } else if let Bulk::Receive(region) = frame.bulk {
            self.give_back(conn, frame.header.token, region);
        }
    }

    pub(crate) fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        if let Some(slot) = self.find(conn)
            && let Some(connection) = &mut self.slots[slot]
        {
            connection.pull(token, region);
            self.mark(slot);
        }
    }

    pub(crate) fn pause(&mut self, conn: Conn, paused: bool) {
        if let Some(slot) = self.find(conn)
            && let Some(connection) = &mut self.slots[slot]
        {
            connection.pause(paused);
            self.mark(slot);
        }
    }

    pub(crate) fn close(&mut self, conn: Conn) {
        if let Some(slot) = self.find(conn) {
            self.end(slot, CloseReason::Local);
        }
    }

    /// Posts what is queued; then has the provider wake the thread for what comes, and takes what came before.
    pub(crate) fn flush(&mut self, now: Instant) {
        let deadline = now.after_ms(self.handshake_ms);
        self.deadlines.extend(self.fresh.drain(..).map(|conn| (deadline, conn)));
        self.take_happenings();
        self.expire(now);
        self.probe(now);
        self.work_off(now);
        if self.sleeps {
            self.verbs.arm();
            self.take_happenings();
        }
        self.retry_at = self.verbs.retry_ms().map(|ms| now.after_ms(ms));
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Option<Event> {
        if self.events.is_empty() {
            self.take_happenings();
            self.expire(now);
        }
        self.events.pop_front()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.events.is_empty() || !self.fresh.is_empty() || !self.dirty.is_empty() {
            return Some(Instant(0));
        }
        let handshake = self.deadlines.front().map(|&(deadline, _)| deadline);
        self.probe_at.into_iter().chain(self.retry_at).chain(handshake).min()
    }

    // ---- what the provider tells ----

    /// Whether anything has happened; takes it.
    pub(crate) fn look(&mut self) -> bool {
        self.take_happenings()
    }

    fn take_happenings(&mut self) -> bool {
        let mut any = false;
        while let Some(happening) = self.verbs.poll() {
            self.on_happening(happening);
            any = true;
        }
        any
    }

    fn on_happening(&mut self, happening: Happening) {
        let link = match &happening {
            Happening::Incoming { link, peer, private } => {
                return self.welcome(*link, *peer, private);
            }
            other => other.link(),
        };
        let slot = *self.links.get(&link).expect("nothing is told of a link that was destroyed");
        let connection = self.slots[slot].as_mut().expect("a link has a connection");
        let outcome = match happening {
            Happening::Incoming { .. } => unreachable!("handled above"),
            Happening::Resolved { link } => {
                let connected = self.verbs.connect(link, &Room::OURS.to_private());
                match connected {
                    Ok(()) => Ok(()),
                    Err(Failure(why)) => return self.redial(slot, why),
                }
            }
            Happening::Established { private, .. } => connection.on_established(&private),
            Happening::Lost { why, .. } if connection.is_dialing() => {
                return self.redial(slot, why);
            }
            Happening::Lost { why, .. } => Err(CloseReason::Gone(why)),
            Happening::Done { work, result, .. } => {
                connection.on_done(work, result, &mut self.events)
            }
            Happening::Received { bytes, .. } => connection.on_received(&bytes),
        };
        match outcome {
            Ok(()) => {
                self.mark(slot);
                self.advance_in(slot);
            }
            Err(why) => self.fail(slot, why),
        }
        self.wake_starved();
    }

    /// Memory to copy through may have come back.
    fn wake_starved(&mut self) {
        for slot in std::mem::take(&mut self.starved) {
            self.mark(slot);
        }
    }

    fn welcome(&mut self, link: Link, peer: SocketAddr, private: &[u8]) {
        let room = match Room::from_private(private) {
            Ok(room) if self.identity.serves.is_some() => room,
            other => {
                let why = other.err().unwrap_or_else(|| "nothing is served here".to_owned());
                tracing::warn!("a connection from {peer} is turned away: {why}");
                self.verbs.destroy(link);
                return;
            }
        };
        if self.accepted >= limits::CONNECTIONS_MAX || self.half_open >= HANDSHAKES_MAX {
            tracing::warn!("a connection from {peer} is turned away: there are too many");
            self.verbs.destroy(link);
            return;
        }
        if let Err(Failure(why)) = self.verbs.accept(link, &Room::OURS.to_private()) {
            tracing::warn!("a connection from {peer} came to nothing: {why}");
            self.failed += 1;
            self.last_error = Some(why);
            self.verbs.destroy(link);
            return;
        }
        let exchange = Exchange::accept(Arc::clone(&self.identity), nonce());
        let conn = self.new_conn();
        self.accepted += 1;
        self.half_open += 1;
        self.links.insert(link, slot_of(conn));
        self.insert(Connection::accepted(conn, link, peer.to_string(), exchange, room));
    }

    // ---- the connections ----

    /// A number for a new connection, in a free slot.
    fn new_conn(&mut self) -> Conn {
        self.count += 1;
        let slot = self.free.last().copied().unwrap_or(self.slots.len());
        Conn(self.count << SLOT_BITS | slot.min(SLOTS_MAX) as u64)
    }

    fn insert(&mut self, connection: Connection) {
        let (conn, slot) = (connection.conn, slot_of(connection.conn));
        if self.free.pop().is_none() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(Box::new(connection));
        self.fresh.push(conn);
    }

    fn find(&self, conn: Conn) -> Option<usize> {
        let slot = slot_of(conn);
        let connection = self.slots.get(slot)?.as_deref()?;
        (connection.conn == conn).then_some(slot)
    }

    /// Tries the next address of the peer.
    fn dial(&mut self, slot: usize, cause: String) {
        let Some(connection) = &mut self.slots[slot] else { return };
        match connection.dial_next(cause, self.verbs.as_mut(), self.handshake_ms) {
            Ok(()) => {
                let link = connection.link.expect("dialing gives a link");
                self.links.insert(link, slot);
            }
            Err(why) => {
                // What the name meant leads nowhere.
                self.resolver.refresh(&connection.address);
                self.fail(slot, why);
            }
        }
    }

    fn redial(&mut self, slot: usize, cause: String) {
        let Some(connection) = &mut self.slots[slot] else { return };
        if let Some(link) = connection.link.take() {
            self.links.remove(&link);
            let loans = self.verbs.destroy(link);
            assert!(loans.is_empty(), "nothing is lent before the connection is open");
        }
        self.dial(slot, cause);
    }

    fn mark(&mut self, slot: usize) {
        if let Some(connection) = &mut self.slots[slot]
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    /// Has a connection use what has come.
    fn advance_in(&mut self, slot: usize) {
        let Some(connection) = &mut self.slots[slot] else { return };
        let mut reach = Reach {
            verbs: self.verbs.as_mut(),
            bounce: &mut self.bounce,
            events: &mut self.events,
        };
        match connection.advance_in(&mut reach) {
            Ok(taken) => {
                self.half_open -= usize::from(connection.has_left_the_door());
                if taken {
                    self.mark(slot);
                }
            }
            Err(why) => self.fail(slot, why),
        }
    }

    /// Looks after the connections that have something to do. Taking goes before posting, for it gives credits back, and
    /// follows it, for replies that have left make room for requests; what it takes then is seen to in the next turn.
    fn work_off(&mut self, now: Instant) {
        for slot in std::mem::take(&mut self.dirty) {
            self.advance_in(slot);
            let Some(connection) = &mut self.slots[slot] else { continue };
            connection.dirty = false;
            let mut reach = Reach {
                verbs: self.verbs.as_mut(),
                bounce: &mut self.bounce,
                events: &mut self.events,
            };
            match connection.advance_out(&mut reach, now) {
                Ok(()) if connection.starved => self.starved.push(slot),
                Ok(()) => {}
                Err(why) => self.fail(slot, why),
            }
            self.advance_in(slot);
        }
    }

    /// Ends a connection for a reason that does not name the peer yet.
    fn fail(&mut self, slot: usize, why: CloseReason) {
        let Some(connection) = &self.slots[slot] else { return };
        let why = connection.named(why);
        self.failed += 1;
        self.last_error = Some(why.to_string());
        self.end(slot, why);
    }

    /// Destroys a connection and its link; what was lent comes back.
    fn end(&mut self, slot: usize, why: CloseReason) {
        let Some(connection) = self.slots[slot].take() else { return };
        let mut loans = Vec::new();
        if let Some(link) = connection.link {
            self.links.remove(&link);
            loans = self.verbs.destroy(link);
        }
        self.free.push(slot);
        self.accepted -= usize::from(connection.is_accepted());
        self.half_open -= usize::from(connection.is_at_the_door());
        self.events.extend(connection.into_closed(why, loans));
        self.wake_starved();
    }

    /// A region for a connection that is gone goes back with its end, if that was not told yet.
    fn give_back(&mut self, gone: Conn, token: u64, region: Region) {
        let lent = self.events.iter_mut().find_map(|event| match event {
            Event::Closed { conn, lent, .. } if *conn == gone => Some(lent),
            _ => None,
        });
        if let Some(lent) = lent {
            lent.push((token, region));
        }
    }

    /// Ends the handshakes that have taken too long.
    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, conn)) = self.deadlines.front() {
            let slot = self.find(conn);
            let half_open = slot.filter(|&slot| {
                self.slots[slot].as_ref().is_some_and(|connection| connection.is_half_open())
            });
            if half_open.is_some() && deadline > now {
                return;
            }
            self.deadlines.pop_front();
            if let Some(slot) = half_open {
                let ms = self.handshake_ms;
                let why = format!("no connection and handshake within {ms} ms");
                self.fail(slot, CloseReason::Gone(why));
            }
        }
    }

    /// Asks peers that have been silent whether they are alive: a dead one makes no sound of its own.
    fn probe(&mut self, now: Instant) {
        if self.accepted == 0 {
            self.probe_at = None;
            return;
        }
        let due = *self.probe_at.get_or_insert(now.after_ms(self.keepalive_ms));
        if due > now {
            return;
        }
        let since = Instant(now.0.saturating_sub(self.keepalive_ms * 1_000_000));
        self.probe_at = Some(now.after_ms(self.keepalive_ms / 2));
        for slot in 0..self.slots.len() {
            if let Some(connection) = &mut self.slots[slot]
                && let Err(why) = connection.probe(since, now, self.verbs.as_mut())
            {
                self.fail(slot, why);
            }
        }
    }
}

fn slot_of(conn: Conn) -> usize {
    (conn.0 & ((1 << SLOT_BITS) - 1)) as usize
}

fn nonce() -> Nonce {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
    nonce
}
