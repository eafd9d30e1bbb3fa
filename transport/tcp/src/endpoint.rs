//! A thread's connections and listening sockets: who is connected, who is being connected, who has had too long.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use sealfs_proto::{Traffic, limits};
use sealfs_ring::{Completion, File, Op, Owner, Resolver, Ring};
use sealfs_transport::handshake::{Accepting, Greeted, Nonce};
use sealfs_transport::{Bulk, CloseReason, Conn, Event, Figures, Frame, Hello, Instant, Region};

use crate::Config;
use crate::connection::{Attempt, Connection, cause};

/// Connections that were accepted and have not finished their handshake. At this many, further ones wait in the kernel's
/// backlog: who connects and stays silent costs little and holds others up for [`Config::handshake_ms`] at most.
pub const HANDSHAKES_MAX: usize = 256;

/// Connections that the kernel keeps before they are accepted (net.core.somaxconn cuts it).
const BACKLOG: u16 = 1_024;
/// Accepting failed for want of descriptors or memory: the next try, milliseconds.
const ACCEPT_RETRY_MS: u64 = 1_000;

/// A connection's number: which one it is, and in the lowest bits its slot.
const SLOT_BITS: u32 = 16;
/// The highest number stands for "no slot".
const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;
/// Set in the ids of accepts, which belong to no connection.
const ACCEPT: u64 = 1 << 63;

const _: () =
    assert!(limits::CONNECTIONS_MAX < SLOTS_MAX && HANDSHAKES_MAX < limits::CONNECTIONS_MAX);

/// Everything of one thread's TCP.
pub(crate) struct Endpoint {
    ring: Ring,
    config: Config,
    resolver: Resolver,
    listeners: Vec<Listener>,
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
    /// Connections made so far.
    count: u64,
    /// Connections in `slots` that were accepted, and those of them that have not proven themselves.
    accepted: usize,
    half_open: usize,
    /// Slots to look after at the next flush.
    dirty: Vec<usize>,
    /// Handshakes by deadline; those that began since the last flush have none yet.
    deadlines: VecDeque<(Instant, Conn)>,
    fresh: Vec<Conn>,
    events: VecDeque<Event>,
}

struct Listener {
    file: File,
    address: SocketAddr,
    accepting: bool,
    /// The last accept failed; the next one comes after a rest.
    failed: bool,
    rest_until: Option<Instant>,
}

impl Endpoint {
    pub(crate) fn new(ring: Ring, config: Config) -> Self {
        Self {
            ring,
            config,
            resolver: Resolver::default(),
            listeners: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
            accepted: 0,
            half_open: 0,
            dirty: Vec::new(),
            deadlines: VecDeque::new(),
            fresh: Vec::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn listen(&mut self, address: &str, share: bool) -> io::Result<SocketAddr> {
        let found = self.resolver.look_up(address).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })?;
        let (file, address) = sealfs_ring::bind_listener(&found[0], BACKLOG, share)?;
        let listener =
            Listener { file, address, accepting: false, failed: false, rest_until: None };
        self.listeners.push(listener);
        self.accept();
        Ok(address)
    }

    // ---- what those above ask ----

    pub(crate) fn connect(&mut self, address: &str, hello: Hello) -> Conn {
        let greeted = Greeted::new(&self.config.identity.key, hello, nonce());
        let found = self.resolver.look_up(address).map_err(|error| error.to_string());
        let conn = self.new_conn();
        match found {
            Ok(found) if slot_of(conn) < SLOTS_MAX => {
                let attempt = Attempt::new(greeted, found);
                let mut connection = Connection::connecting(conn, address.to_owned(), attempt);
                connection.connect_next("", &self.ring, &self.config.timeouts);
                self.insert(connection);
                self.settle(slot_of(conn));
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
        let (connection, events) = self.find_with_events(conn);
        if let Some(connection) = connection {
            connection.admit(verdict, events);
            self.mark(conn);
        }
    }

    pub(crate) fn send(&mut self, conn: Conn, frame: Frame) {
        if let Some(connection) = self.find(conn) {
            connection.send(frame);
            self.mark(conn);
        } else if let Bulk::Receive(region) = frame.bulk {
            self.give_back(conn, frame.header.token, region);
        }
    }

    pub(crate) fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        if let Some(connection) = self.find(conn) {
            connection.pull(token, region);
            // At once: a small payload is here already, and so is the next request.
            self.advance_in(slot_of(conn));
        }
    }

    pub(crate) fn pause(&mut self, conn: Conn, paused: bool) {
        if let Some(connection) = self.find(conn) {
            connection.pause(paused);
            self.mark(conn);
        }
    }

    pub(crate) fn close(&mut self, conn: Conn) {
        self.end(conn, CloseReason::Local);
    }

    pub(crate) fn flush(&mut self, now: Instant) {
        let deadline = now.after_ms(self.config.handshake_ms);
        self.deadlines.extend(self.fresh.drain(..).map(|conn| (deadline, conn)));
        self.expire(now);
        for slot in std::mem::take(&mut self.dirty) {
            if let Some(connection) = &mut self.slots[slot] {
                connection.dirty = false;
            }
            self.advance_in(slot);
            if let Some(connection) = &mut self.slots[slot] {
                connection.advance_out(&self.ring);
            }
            self.settle(slot);
        }
        for listener in &mut self.listeners {
            if std::mem::take(&mut listener.failed) {
                listener.rest_until = Some(now.after_ms(ACCEPT_RETRY_MS));
            }
            listener.rest_until = listener.rest_until.filter(|&until| until > now);
        }
        self.accept();
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Option<Event> {
        self.expire(now);
        self.events.pop_front()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.events.is_empty() || !self.fresh.is_empty() || !self.dirty.is_empty() {
            return Some(Instant(0));
        }
        let handshake = self.deadlines.front().map(|&(deadline, _)| deadline);
        self.listeners.iter().filter_map(|listener| listener.rest_until).chain(handshake).min()
    }

    pub(crate) fn figures(&self, conn: Conn) -> Option<Figures> {
        let connection = self.slots.get(slot_of(conn))?.as_deref()?;
        if connection.conn == conn { connection.figures() } else { None }
    }

    // ---- what the ring reports ----

    pub(crate) fn complete(&mut self, completion: Completion) {
        let Completion { id, result, op, .. } = completion;
        if id & ACCEPT != 0 {
            return self.on_accept((id & !ACCEPT) as usize, result.map(|_| op));
        }
        let conn = Conn(id);
        let timeouts = self.config.timeouts;
        let ring = self.ring.clone();
        let connection = self.find(conn).expect("a connection waits for its operations");
        match op {
            Op::Connect { .. } => {
                if connection.on_connected(result, &ring, &timeouts).is_err() {
                    let address = connection.address.clone();
                    self.resolver.refresh(&address);
                }
            }
            Op::Receive { region, .. } => connection.on_received(result, region, &ring),
            Op::Send { file, pieces, skip } => {
                connection.on_sent(result, (file, pieces, skip), &ring);
            }
            Op::Poll { .. } => connection.on_watched(&ring),
            other => panic!("{other:?} is no operation of this endpoint"),
        }
        self.mark(conn);
        self.advance_in(slot_of(conn));
    }

    fn on_accept(&mut self, index: usize, result: io::Result<Op>) {
        let listener = &mut self.listeners[index];
        listener.accepting = false;
        match result {
            Ok(Op::Accept { accepted: Some(file), .. }) => self.welcome(file),
            Ok(other) => panic!("{other:?} accepts nothing"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                listener.failed = true;
                tracing::warn!(
                    "cannot accept connections at {}: {}; trying again (open files: `ulimit -n`)",
                    listener.address,
                    cause(&error)
                );
            }
        }
        self.accept();
    }

    fn welcome(&mut self, file: File) {
        let set_up = self.config.timeouts.apply(file.as_fd());
        let address = match set_up.and_then(|()| sealfs_ring::peer_address(&file)) {
            Ok(address) => address.to_string(),
            // It was reset before it was looked at.
            Err(error) => return tracing::debug!(%error, "a connection ended at once"),
        };
        let state = Accepting::new(self.config.identity.clone(), nonce());
        let conn = self.new_conn();
        self.accepted += 1;
        self.half_open += 1;
        self.insert(Connection::accepted(conn, address, file, state));
        self.advance_in(slot_of(conn));
    }

    /// Has each listener accept one more, as far as the limits go.
    fn accept(&mut self) {
        if self.accepted >= limits::CONNECTIONS_MAX || self.half_open >= HANDSHAKES_MAX {
            return;
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if !listener.accepting && !listener.failed && listener.rest_until.is_none() {
                let accept = Op::Accept { listener: listener.file.clone(), accepted: None };
                self.ring.submit(Owner::Tcp, ACCEPT | index as u64, accept);
                listener.accepting = true;
            }
        }
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

    fn find(&mut self, conn: Conn) -> Option<&mut Connection> {
        self.find_with_events(conn).0
    }

    fn find_with_events(&mut self, conn: Conn) -> (Option<&mut Connection>, &mut VecDeque<Event>) {
        let connection = self.slots.get_mut(slot_of(conn)).and_then(Option::as_deref_mut);
        (connection.filter(|found| found.conn == conn), &mut self.events)
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

    fn mark(&mut self, conn: Conn) {
        let slot = slot_of(conn);
        if let Some(connection) = &mut self.slots[slot]
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    fn end(&mut self, conn: Conn, why: CloseReason) {
        let ring = self.ring.clone();
        if let Some(connection) = self.find(conn) {
            connection.close(why, &ring);
            self.settle(slot_of(conn));
        }
    }

    /// Has a connection use what has arrived.
    fn advance_in(&mut self, slot: usize) {
        if let Some(connection) = &mut self.slots[slot] {
            connection.advance_in(&self.ring, &mut self.events);
        }
        self.settle(slot);
    }

    /// Counts a connection that has proven itself, and forgets one that is gone.
    fn settle(&mut self, slot: usize) {
        let Some(connection) = &mut self.slots[slot] else { return };
        if connection.has_left_the_door() {
            self.half_open -= 1;
        }
        if connection.is_gone()
            && let Some(connection) = self.slots[slot].take()
        {
            self.free.push(slot);
            self.accepted -= usize::from(connection.is_accepted());
            self.events.extend(connection.into_closed());
        }
    }

    /// Ends the handshakes that have taken too long.
    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, conn)) = self.deadlines.front() {
            let half_open = self.find(conn).filter(|connection| connection.is_half_open());
            let waits = half_open.map(|connection| connection.address.clone());
            if waits.is_some() && deadline > now {
                return;
            }
            self.deadlines.pop_front();
            if let Some(address) = waits {
                let ms = self.config.handshake_ms;
                let why = format!("{address}: no connection and handshake within {ms} ms");
                self.end(conn, CloseReason::Gone(why));
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
