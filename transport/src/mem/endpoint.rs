//! One endpoint of the network in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use sealfs_proto::{Address, Header, HeaderKind, Path, Traffic, TransportKind, limits};

use super::{Packet, Wires};
use crate::handshake::{Exchange, Proven, Step, frame};
use crate::{
    Bulk, CloseReason, Conn, Event, Figures, Frame, Hello, Identity, Instant, Peer, Random, Region,
    Slice, Transport, copy_payload,
};

/// One endpoint of a [`super::MemNetwork`].
pub struct MemTransport {
    wires: Rc<RefCell<Wires>>,
    endpoint: u64,
    address: String,
    identity: Arc<Identity>,
    nonces: Random,
    links: BTreeMap<Conn, Link>,
    /// Connections to begin at the next flush.
    connects: Vec<(Conn, Vec<u8>)>,
    events: VecDeque<Event>,
}

/// A connection as one end sees it.
struct Link {
    /// The peer's address, for messages.
    name: String,
    /// Which side of the line this is: 0 connected, 1 accepted.
    side: usize,
    state: State,
    /// Until when the handshake must be over; set at the first flush.
    open_by: Option<Instant>,
    /// Not flushed yet.
    outbox: VecDeque<Packet>,
    /// Requests sent and not replied to, with the regions lent.
    lent: BTreeMap<u64, Option<Region>>,
    /// Requests received and not replied to, with what they offer to be pulled.
    served: BTreeMap<u64, Vec<Slice>>,
    /// Frames held back by a pause or by the credits.
    held: VecDeque<(Vec<u8>, Vec<Slice>)>,
    /// Pulls that complete in the order in which they were asked for.
    pulls: VecDeque<(u64, Region)>,
    paused: bool,
    traffic: Traffic,
}

enum State {
    Meeting(Exchange),
    Proven(Proven),
    Open,
    /// Between two states.
    Moving,
}

/// A handshake that takes longer has met nobody.
const HANDSHAKE_MS: u64 = 5_000;

impl Transport for MemTransport {
    fn reaches(&self, _: &Address) -> bool {
        true
    }

    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        let conn = Conn(self.wires.borrow_mut().next());
        if !self.is_dead() {
            let (exchange, first) =
                Exchange::connect(&self.identity.key, hello, self.nonces.bytes());
            self.links.insert(conn, Link::new(&address.text, 0, State::Meeting(exchange)));
            self.connects.push((conn, frame(&first)));
        }
        conn
    }

    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let State::Proven(proven) = std::mem::replace(&mut link.state, State::Moving) else {
            panic!("only a connection that reported Proven, once, is admitted or refused");
        };
        let (peer, refused) = (proven.hello().peer, verdict.err());
        let message = match &refused {
            None => proven.admit().1,
            Some(why) => proven.refuse(why),
        };
        link.outbox.push_back(Packet::Frame(frame(&message), Vec::new()));
        match refused {
            None => {
                link.state = State::Open;
                self.events.push_back(opened(conn, peer, None));
            }
            Some(why) => self.fail(conn, why, None),
        }
    }

    fn send(&mut self, conn: Conn, frame: Frame) {
        let Frame { mut header, body, bulk } = frame;
        let Some(link) = self.links.get_mut(&conn) else {
            return self.give_back(conn, header.token, bulk);
        };
        let (bulk_len, slices, region) = match bulk {
            Bulk::None => (0, Vec::new(), None),
            Bulk::Send(slices) => (slices.iter().map(Slice::len).sum(), slices, None),
            Bulk::Receive(region) => (region.len(), Vec::new(), Some(region)),
        };
        header.bulk_len = bulk_len as u32;
        if header.kind == HeaderKind::Reply {
            link.served.remove(&header.token);
        } else {
            link.lent.insert(header.token, region);
        }
        if matches!(link.state, State::Open) {
            let mut bytes = header.to_bytes(&body).to_vec();
            bytes.extend_from_slice(&body);
            link.traffic.frames_sent += 1;
            link.traffic.bytes_sent += wire_len(&bytes, &slices);
            link.outbox.push_back(Packet::Frame(bytes, slices));
        }
    }

    fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.pulls.push_back((token, region));
        }
    }

    fn pause(&mut self, conn: Conn, paused: bool) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.paused = paused;
        }
    }

    fn close(&mut self, conn: Conn) {
        self.end(conn, CloseReason::Local);
    }

    fn flush(&mut self, now: Instant) {
        let mut wires = self.wires.borrow_mut();
        for (conn, first) in self.connects.drain(..) {
            let Some(link) = self.links.get_mut(&conn) else { continue };
            link.open_by = Some(now.after_ms(HANDSHAKE_MS));
            wires.connect(now, conn.0, self.endpoint, &link.name, first);
        }
        for (conn, link) in &mut self.links {
            for packet in link.outbox.drain(..) {
                wires.send(now, conn.0, 1 - link.side, packet);
            }
        }
    }

    fn poll(&mut self, now: Instant) -> Option<Event> {
        if self.is_dead() {
            return None;
        }
        while self.events.is_empty() {
            if !(self.complete_pull() || self.take_held() || self.time_out(now)) {
                let (conn, packet) = self.wires.borrow_mut().receive(now, self.endpoint)?;
                self.on_packet(now, Conn(conn), packet);
            }
        }
        self.events.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        let wires = self.wires.borrow();
        let end = wires.ends.get(&self.endpoint)?;
        let at_once = |link: &Link| !link.pulls.is_empty() || link.may_take_held();
        if !self.events.is_empty() || self.links.values().any(at_once) {
            return Some(Instant(0));
        }
        let arrival = end.inbox.keys().next().map(|key| key.0);
        let handshakes = self.links.values().filter(|link| link.is_meeting());
        handshakes.filter_map(|link| link.open_by).chain(arrival).min()
    }

    fn figures(&self, conn: Conn) -> Option<Figures> {
        let link = self.links.get(&conn).filter(|link| matches!(link.state, State::Open))?;
        let in_flight = link.lent.len().max(link.served.len());
        let path = Path {
            transport: TransportKind::Tcp,
            credits: limits::CREDITS.saturating_sub(in_flight as u32),
            credits_max: limits::CREDITS,
            rdma: None,
        };
        let address = link.name.clone();
        Some(Figures { address, path, in_flight: in_flight as u64, traffic: link.traffic })
    }
}

impl MemTransport {
    pub(super) fn new(
        wires: Rc<RefCell<Wires>>,
        endpoint: u64,
        address: String,
        identity: Arc<Identity>,
        nonces: Random,
    ) -> Self {
        let (links, connects, events) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        Self { wires, endpoint, address, identity, nonces, links, connects, events }
    }

    fn is_dead(&self) -> bool {
        !self.wires.borrow().ends.contains_key(&self.endpoint)
    }

    fn on_packet(&mut self, now: Instant, conn: Conn, packet: Packet) {
        match packet {
            Packet::Connect(bytes) => {
                let nonce = self.nonces.bytes();
                let exchange = Exchange::accept(Arc::clone(&self.identity), nonce);
                let name = format!("a peer of {}", self.address);
                let mut link = Link::new(&name, 1, State::Meeting(exchange));
                link.open_by = Some(now.after_ms(HANDSHAKE_MS));
                self.links.insert(conn, link);
                if !bytes.is_empty() {
                    self.on_frame(conn, &bytes, Vec::new());
                }
            }
            Packet::Frame(bytes, bulk) => {
                let Some(link) = self.links.get_mut(&conn) else { return };
                if link.holds() {
                    link.held.push_back((bytes, bulk));
                } else {
                    self.on_frame(conn, &bytes, bulk);
                }
            }
            Packet::Reset(why) => {
                let Some(link) = self.links.get(&conn) else { return };
                let why = CloseReason::Gone(format!("{}: {why}", link.name));
                self.end(conn, why);
            }
        }
    }

    fn on_frame(&mut self, conn: Conn, bytes: &[u8], bulk: Vec<Slice>) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let (header, body) = match parse(bytes) {
            Ok(parsed) => parsed,
            Err(why) => return self.fail(conn, why, None),
        };
        match std::mem::replace(&mut link.state, State::Moving) {
            State::Open => {
                link.state = State::Open;
                link.traffic.frames_received += 1;
                link.traffic.bytes_received += wire_len(bytes, &bulk);
                match link.on_frame(conn, header, body, bulk) {
                    Ok(event) => self.events.push_back(event),
                    Err(cause) => self.fail(conn, CloseReason::Corrupt(cause), None),
                }
            }
            State::Meeting(exchange) => {
                let step = exchange.check(&header).and_then(|()| exchange.on_message(&body));
                match step {
                    Ok(step) => self.on_step(conn, step),
                    Err(failed) => self.fail(conn, failed.why, failed.answer),
                }
            }
            State::Proven(_) | State::Moving => {
                let why = CloseReason::Corrupt("a frame before the welcome".into());
                self.fail(conn, why, None);
            }
        }
    }

    fn on_step(&mut self, conn: Conn, step: Step) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        match step {
            Step::Answer(exchange, answer) => {
                link.state = State::Meeting(exchange);
                link.outbox.push_back(Packet::Frame(frame(&answer), Vec::new()));
            }
            Step::Proven(proven) => {
                self.events.push_back(Event::Proven { conn, hello: *proven.hello() });
                link.state = State::Proven(proven);
            }
            Step::Done(welcome) => {
                link.state = State::Open;
                let peer = Peer::Node { node: welcome.node, endpoint: 0 };
                self.events.push_back(opened(conn, peer, welcome.map));
            }
        }
    }

    /// A frame for a connection that is over: if its end was not reported yet, a region comes back with the report.
    fn give_back(&mut self, conn: Conn, token: u64, bulk: Bulk) {
        let closing = self.events.iter_mut().find_map(|event| match event {
            Event::Closed { conn: closed, lent, .. } if *closed == conn => Some(lent),
            _ => None,
        });
        if let (Some(lent), Bulk::Receive(region)) = (closing, bulk) {
            lent.push((token, region));
        }
    }

    /// The first pull that was asked for is done: a NIC would have placed the bytes by now.
    fn complete_pull(&mut self) -> bool {
        let Some((&conn, link)) = self.links.iter_mut().find(|(_, link)| !link.pulls.is_empty())
        else {
            return false;
        };
        let Some((token, mut region)) = link.pulls.pop_front() else { return false };
        match link.served.get(&token).map(|offered| place(&mut region, offered)) {
            Some(Ok(len)) => self.events.push_back(Event::Pulled { conn, token, region, len }),
            other => panic!("a pull is of an unanswered request and has room for it: {other:?}"),
        }
        true
    }

    fn take_held(&mut self) -> bool {
        let Some((&conn, link)) = self.links.iter_mut().find(|(_, link)| link.may_take_held())
        else {
            return false;
        };
        let Some((bytes, bulk)) = link.held.pop_front() else { return false };
        self.on_frame(conn, &bytes, bulk);
        true
    }

    fn time_out(&mut self, now: Instant) -> bool {
        let late = |link: &Link| link.is_meeting() && link.open_by.is_some_and(|by| by <= now);
        let Some((&conn, link)) = self.links.iter().find(|(_, link)| late(link)) else {
            return false;
        };
        let why = format!("{}: no answer within {HANDSHAKE_MS} ms", link.name);
        self.end(conn, CloseReason::Gone(why));
        true
    }

    /// Ends a connection because of what the peer sent; `answer` is told to the peer first.
    fn fail(&mut self, conn: Conn, why: CloseReason, answer: Option<Vec<u8>>) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let named = |text: String| format!("{}: {text}", link.name);
        let why = match why {
            CloseReason::Gone(text) => CloseReason::Gone(named(text)),
            CloseReason::Refused(text) => CloseReason::Refused(named(text)),
            CloseReason::Corrupt(text) => CloseReason::Corrupt(named(text)),
            other => other,
        };
        link.outbox.extend(answer.map(|answer| Packet::Frame(frame(&answer), Vec::new())));
        self.end(conn, why);
    }

    /// Forgets a connection: what was to be sent before leaves, the peer is told, regions come back.
    fn end(&mut self, conn: Conn, why: CloseReason) {
        let Some(mut link) = self.links.remove(&conn) else { return };
        self.connects.retain(|(other, _)| *other != conn);
        let mut wires = self.wires.borrow_mut();
        let sent = wires.now;
        for packet in link.outbox.drain(..) {
            wires.send(sent, conn.0, 1 - link.side, packet);
        }
        wires.reset(sent, conn.0, self.endpoint, "connection closed by peer");
        let lent = std::mem::take(&mut link.lent);
        let lent = lent.into_iter().filter_map(|(token, region)| Some((token, region?))).collect();
        self.events.push_back(Event::Closed { conn, why, lent, traffic: link.traffic });
    }
}

impl Drop for MemTransport {
    fn drop(&mut self) {
        let mut wires = self.wires.borrow_mut();
        let now = wires.now;
        wires.remove_end(now, self.endpoint);
    }
}

impl Link {
    fn new(name: &str, side: usize, state: State) -> Self {
        Self {
            name: name.to_owned(),
            side,
            state,
            open_by: None,
            outbox: VecDeque::new(),
            lent: BTreeMap::new(),
            served: BTreeMap::new(),
            held: VecDeque::new(),
            pulls: VecDeque::new(),
            paused: false,
            traffic: Traffic::default(),
        }
    }

    const fn is_meeting(&self) -> bool {
        matches!(self.state, State::Meeting(_))
    }

    /// Whether the peer's requests wait: for the end of a pause, or for replies.
    fn is_blocked(&self) -> bool {
        self.side == 1 && (self.paused || self.served.len() >= limits::CREDITS as usize)
    }

    fn holds(&self) -> bool {
        self.is_blocked() || !self.held.is_empty()
    }

    fn may_take_held(&self) -> bool {
        !self.held.is_empty() && !self.is_blocked()
    }

    fn on_frame(
        &mut self,
        conn: Conn,
        header: Header,
        body: Vec<u8>,
        bulk: Vec<Slice>,
    ) -> Result<Event, String> {
        match header.kind {
            HeaderKind::Request | HeaderKind::RequestForBulk if self.side == 1 => {
                if self.served.insert(header.token, bulk).is_some() {
                    return Err(format!("token {} is in use", header.token));
                }
                Ok(Event::Request { conn, header, body })
            }
            HeaderKind::Reply if self.side == 0 => {
                let lent = self.lent.remove(&header.token);
                let mut region = lent.ok_or(format!("no request {} is open", header.token))?;
                match &mut region {
                    Some(region) => drop(place(region, &bulk)?),
                    None if header.bulk_len == 0 => {}
                    None => return Err("bulk for a request that lent no region".into()),
                }
                Ok(Event::Reply { conn, header, body, region })
            }
            kind => Err(format!("a frame of kind {kind:?} from this end")),
        }
    }
}

fn opened(conn: Conn, peer: Peer, map: Option<Arc<sealfs_proto::ClusterMap>>) -> Event {
    Event::Opened { conn, peer, kind: TransportKind::Tcp, map }
}

/// What a frame and its payload would be on a wire.
fn wire_len(frame: &[u8], payload: &[Slice]) -> u64 {
    (frame.len() + payload.iter().map(Slice::len).sum::<usize>()) as u64
}

/// Copies `slices` to the start of `region`.
fn place(region: &mut Region, slices: &[Slice]) -> Result<u32, String> {
    let len: usize = slices.iter().map(Slice::len).sum();
    if len > region.len() {
        return Err(format!("{len} bytes for a region of {}", region.len()));
    }
    let mut at = 0;
    for slice in slices {
        copy_payload(&mut region.bytes_mut()[at..at + slice.len()], slice.bytes());
        at += slice.len();
    }
    Ok(len as u32)
}

fn parse(bytes: &[u8]) -> Result<(Header, Vec<u8>), CloseReason> {
    let corrupt = |cause: String| CloseReason::Corrupt(cause);
    let (head, body) = bytes
        .split_first_chunk()
        .ok_or_else(|| corrupt(format!("a frame of {} bytes", bytes.len())))?;
    let header = Header::from_bytes(head).map_err(|error| corrupt(error.to_string()))?;
    if header.body_len as usize != body.len() {
        return Err(corrupt(format!("a body of {} bytes", body.len())));
    }
    Header::check(head, body).map_err(|error| corrupt(error.to_string()))?;
    Ok((header, body.to_vec()))
}
