//! One connection: its handshake, its calls, and what the next bytes from the peer mean.
//!
//! ```text
//! connecting end:  Connecting -> Greeted -> Introduced -> Open
//! accepting end:   Accepting -> Challenged -> Judged -> Open | Leaving
//! any            -> Closing -> gone, when no operation is in flight
//! ```
//! Bytes go through [`Intake`]: a frame's head; then, if it has a payload, the payload's way into its region.
//!
//! 1. A receive is in flight only while more bytes are wanted (`Progress::Needs` or `Progress::Direct`); an open connection
//!    that is not receiving is watched for the peer's end.
//! 2. A region lent for a reply is in `lent`, in `intake`, or with the kernel, until `Reply` or `Closed` gives it back.
//! 3. Nothing is reported to those above of a connection that was accepted and has not proven the key.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use sealfs_proto::{ClusterMap, Header, HeaderKind, Path, Traffic, TransportKind, limits};
use sealfs_ring::{File, Key, Op, Owner, Piece, Ring, Timeouts};
use sealfs_transport::handshake::{self, Accepting, Challenged, Greeted, Introduced, Proven};
use sealfs_transport::{
    Bulk, CloseReason, Conn, Event, Figures, Frame, Moved, Peer, Region, Slice, copy_payload,
    count_payload,
};

use crate::inbox::Inbox;
use crate::outbox::{Outbox, is_transient};

/// A connection, from the first attempt to connect (or its acceptance) to the end of its last operation.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) conn: Conn,
    /// The peer, as texts name it.
    pub(crate) address: String,
    phase: Phase,
    /// Whether the endpoint has it in its list of connections to look after at the next flush.
    pub(crate) dirty: bool,
    accepted: bool,
    /// Whether it counts among those accepted that have not proven themselves.
    at_the_door: bool,
    /// Whether those above know of it.
    announced: bool,
    /// The socket; `None` before the first connect(2).
    file: Option<File>,
    connecting: Option<Key>,
    reading: Option<Key>,
    /// A poll that reports the peer's end while nothing is being received.
    watching: Option<Key>,
    inbox: Inbox,
    intake: Intake,
    outbox: Outbox,
    paused: bool,
    /// Connecting end: calls in flight, with the regions that they have lent.
    lent: BTreeMap<u64, Option<Region>>,
    /// Accepting end: calls not answered, with the payload that their replies may have.
    owed: BTreeMap<u64, u32>,
    /// Sum of `owed`.
    promised: u64,
    traffic: Traffic,
}

/// What the connection does at present.
#[derive(Debug)]
enum Phase {
    /// connect(2) is in flight.
    Connecting(Attempt),
    Greeted(Greeted),
    Introduced(Introduced),
    Accepting(Accepting),
    Challenged(Challenged),
    /// The core decides whether the peer may enter.
    Judged(Proven),
    /// Frames flow, in this version.
    Open(u8),
    /// A refusal is on its way out; nothing is read any more.
    Leaving(CloseReason),
    /// Waits for the end of what is in flight.
    Closing(CloseReason),
}

/// Where to connect to, and what to say there.
#[derive(Debug)]
pub(crate) struct Attempt {
    greeted: Greeted,
    greeting: Vec<u8>,
    /// Addresses of the peer that were not tried yet.
    others: VecDeque<SocketAddr>,
}

impl Attempt {
    pub(crate) fn new((greeted, greeting): (Greeted, Vec<u8>), addresses: Vec<SocketAddr>) -> Self {
        Self { greeted, greeting, others: addresses.into() }
    }
}

/// What the next bytes are.
#[derive(Debug)]
enum Intake {
    /// A frame's header and body.
    Head,
    /// The payload of a request that was not pulled yet.
    Offered { token: u64, len: usize },
    /// A payload and the region it goes to.
    Bulk(Box<Incoming>),
    /// A payload that nobody wants.
    Skip { left: usize },
}

/// A payload on its way into its region.
#[derive(Debug)]
struct Incoming {
    target: Target,
    /// `None` while a receive into it is in flight.
    region: Option<Region>,
    filled: usize,
    len: usize,
}

#[derive(Debug)]
enum Target {
    Pull { token: u64 },
    Reply { header: Header, body: Vec<u8> },
}

/// How far the bytes that are here have led.
enum Progress {
    /// On to the next thing.
    Made,
    /// So many bytes must lie in the inbox together.
    Needs(usize),
    /// The rest of a payload is to be received straight into its region.
    Direct,
    /// Nothing more is wanted for now.
    Stalled,
}

/// A rest of a payload from this size on is received straight into its region, bytes; copying less costs less than another
/// receive, which moreover brings no frames behind it.
const DIRECT_LEN_MIN: usize = 16 * 1024;

impl Connection {
    /// A connection that [`Connection::connect_next`] begins.
    pub(crate) fn connecting(conn: Conn, address: String, attempt: Attempt) -> Self {
        Self::new(conn, address, None, Phase::Connecting(attempt), false)
    }

    /// A connection that was accepted.
    pub(crate) fn accepted(conn: Conn, address: String, file: File, state: Accepting) -> Self {
        Self::new(conn, address, Some(file), Phase::Accepting(state), true)
    }

    fn new(conn: Conn, address: String, file: Option<File>, phase: Phase, accepted: bool) -> Self {
        Self {
            conn,
            address,
            phase,
            dirty: false,
            accepted,
            at_the_door: accepted,
            announced: !accepted,
            file,
            connecting: None,
            reading: None,
            watching: None,
            inbox: Inbox::new(),
            intake: Intake::Head,
            outbox: Outbox::default(),
            paused: false,
            lent: BTreeMap::new(),
            owed: BTreeMap::new(),
            promised: 0,
            traffic: Traffic::default(),
        }
    }

    // ---- what those above ask ----

    /// Starts connect(2) to the next address of the peer; ends, with the last `cause`, if there is none.
    pub(crate) fn connect_next(&mut self, last: &str, ring: &Ring, timeouts: &Timeouts) {
        let mut last = last.to_owned();
        while let Phase::Connecting(attempt) = &mut self.phase
            && let Some(address) = attempt.others.pop_front()
        {
            let socket = sealfs_ring::stream(&address)
                .and_then(|file| timeouts.apply(file.as_fd()).map(|()| file));
            match socket {
                Ok(file) => {
                    self.file = Some(file.clone());
                    let connect = Op::Connect { file, address };
                    self.connecting = Some(ring.submit(Owner::Tcp, self.conn.0, connect));
                    return;
                }
                Err(error) => last = cause(&error),
            }
        }
        self.close(self.gone(&last), ring);
    }

    /// Answers `Proven`.
    pub(crate) fn admit(&mut self, verdict: Result<(), CloseReason>, events: &mut VecDeque<Event>) {
        let proven = match self.take_phase() {
            Phase::Judged(proven) => proven,
            // It ended meanwhile; `Closed` is on its way.
            other => return self.phase = other,
        };
        match verdict {
            Ok(()) => {
                let peer = proven.hello().peer;
                let (version, message) = proven.admit();
                self.outbox.push_bytes(&[&handshake::frame(&message)]);
                self.open(version, peer, None, events);
            }
            Err(why) => {
                self.outbox.push_bytes(&[&handshake::frame(&proven.refuse(&why))]);
                self.phase = Phase::Leaving(why);
            }
        }
    }

    /// Queues a frame; on a connection that is not open it is dropped and a region that it lends is kept for `Closed`.
    pub(crate) fn send(&mut self, frame: Frame) {
        let Frame { mut header, body, bulk } = frame;
        let (slices, room) = match bulk {
            Bulk::None => (Vec::new(), None),
            Bulk::Send(slices) => (slices, None),
            Bulk::Receive(region) => (Vec::new(), Some(region)),
        };
        let Phase::Open(version) = self.phase else {
            if room.is_some() {
                self.lent.insert(header.token, room);
            }
            return;
        };
        let sent = slices.iter().map(Slice::len).sum::<usize>();
        assert!(
            sent <= limits::BULK_LEN_MAX as usize && body.len() <= limits::BODY_LEN_MAX as usize,
            "a frame of {} + {sent} bytes keeps the limits",
            body.len()
        );
        let room_len = room.as_ref().map(|room| room.len().min(limits::BULK_LEN_MAX as usize));
        let bulk_len = room_len.unwrap_or(sent);
        header.version = version;
        header.body_len = body.len() as u32;
        header.bulk_len = bulk_len as u32;
        if header.kind == HeaderKind::Reply {
            self.answer(&header);
        } else {
            assert!(!self.accepted, "the end that connects sends the requests");
            let known = self.lent.insert(header.token, room);
            assert!(known.is_none(), "a token names one call at a time");
        }
        self.traffic.frames_sent += 1;
        self.outbox.push(&header, &body, slices);
    }

    /// A reply is being queued: settles what was owed.
    fn answer(&mut self, reply: &Header) {
        let room = self.owed.remove(&reply.token).expect("a reply answers a request, once");
        assert!(reply.bulk_len <= room, "a reply's payload has room in its request's region");
        self.promised -= u64::from(room);
        match self.intake {
            Intake::Offered { token, len } if token == reply.token => {
                self.intake = Intake::Skip { left: len };
            }
            _ => {}
        }
    }

    /// Takes the payload of the request `token` into `region`.
    pub(crate) fn pull(&mut self, token: u64, region: Region) {
        if !matches!(self.phase, Phase::Open(_)) {
            return; // `Closed` is on its way
        }
        match self.intake {
            Intake::Offered { token: offered, len } if offered == token => {
                assert!(region.len() >= len, "a pulled payload has room in its region");
                let (target, region) = (Target::Pull { token }, Some(region));
                self.intake = Intake::Bulk(Box::new(Incoming { target, region, filled: 0, len }));
            }
            _ => panic!("the payload of call {token} can be pulled once, before its reply"),
        }
    }

    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Begins to end; cancels what is in flight. Does nothing if it is ending already.
    pub(crate) fn close(&mut self, why: CloseReason, ring: &Ring) {
        if matches!(self.phase, Phase::Closing(_)) {
            return;
        }
        self.phase = Phase::Closing(why);
        let in_flight = [self.connecting, self.reading, self.watching, self.outbox.clear()];
        in_flight.into_iter().flatten().for_each(|key| ring.cancel(key));
    }

    /// Whether it has ended and the kernel holds nothing of it.
    pub(crate) fn is_gone(&self) -> bool {
        let in_flight = [self.connecting, self.reading, self.watching];
        let idle = in_flight.iter().all(Option::is_none) && !self.outbox.is_sending();
        idle && matches!(self.phase, Phase::Closing(_))
    }

    /// Whether it must still prove itself, and so has a deadline.
    pub(crate) fn is_half_open(&self) -> bool {
        !matches!(self.phase, Phase::Judged(_) | Phase::Open(_) | Phase::Closing(_))
    }

    /// Whether the peer has just proven itself, or ended; true once, and only of a connection that was accepted.
    pub(crate) fn has_left_the_door(&mut self) -> bool {
        let left = self.at_the_door && !self.is_half_open();
        self.at_the_door &= !left;
        left
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Its end, for those above, if they know of it.
    pub(crate) fn into_closed(self) -> Option<Event> {
        let Phase::Closing(why) = self.phase else {
            panic!("a connection ends through Closing");
        };
        if !self.announced {
            tracing::warn!("a connection from {} came to nothing: {why}", self.address);
            return None;
        }
        let mut lent: Vec<(u64, Region)> =
            self.lent.into_iter().filter_map(|(token, region)| Some((token, region?))).collect();
        if let Intake::Bulk(incoming) = self.intake
            && let Incoming { target: Target::Reply { header, .. }, region: Some(region), .. } =
                *incoming
        {
            lent.push((header.token, region));
        }
        Some(Event::Closed { conn: self.conn, why, lent, traffic: self.traffic })
    }

    /// What it is and does, once it is open.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let Phase::Open(_) = self.phase else { return None };
        let in_flight = self.lent.len() + self.owed.len();
        let path = Path {
            transport: TransportKind::Tcp,
            credits: limits::CREDITS.saturating_sub(in_flight as u32),
            credits_max: limits::CREDITS,
            rdma: None,
        };
        let address = self.address.clone();
        Some(Figures { address, path, in_flight: in_flight as u64, traffic: self.traffic })
    }

    // ---- what the ring reports ----

    /// connect(2) is over; the error says that the peer was not there.
    pub(crate) fn on_connected(
        &mut self,
        result: io::Result<u32>,
        ring: &Ring,
        timeouts: &Timeouts,
    ) -> io::Result<()> {
        self.connecting = None;
        match (self.take_phase(), result) {
            (Phase::Connecting(attempt), Ok(_)) => {
                self.outbox.push_bytes(&[&handshake::frame(&attempt.greeting)]);
                self.phase = Phase::Greeted(attempt.greeted);
                Ok(())
            }
            (Phase::Connecting(attempt), Err(error)) => {
                self.phase = Phase::Connecting(attempt);
                self.connect_next(&cause(&error), ring, timeouts);
                Err(error)
            }
            (closing, _) => {
                self.phase = closing;
                Ok(())
            }
        }
    }

    /// A receive is over: gives its memory back to whom it belongs.
    pub(crate) fn on_received(&mut self, result: io::Result<u32>, region: Region, ring: &Ring) {
        self.reading = None;
        let len = *result.as_ref().unwrap_or(&0) as usize;
        self.traffic.bytes_received += len as u64;
        match &mut self.intake {
            Intake::Bulk(incoming) if incoming.region.is_none() => {
                incoming.region = Some(region);
                incoming.filled += len;
            }
            _ => self.inbox.on_received(region, len),
        }
        match result {
            Ok(0) => self.close(self.gone("the peer has closed the connection"), ring),
            Err(error) if !is_transient(&error) => self.close(self.gone(&cause(&error)), ring),
            _ => {}
        }
    }

    /// The watch has seen the peer's end (or was cancelled). If a receive is in flight, it will see it, too, after what has
    /// arrived before.
    pub(crate) fn on_watched(&mut self, ring: &Ring) {
        self.watching = None;
        if self.reading.is_none() {
            self.close(self.gone("the peer has closed the connection"), ring);
        }
    }

    /// A send is over.
    pub(crate) fn on_sent(
        &mut self,
        result: io::Result<u32>,
        sent: (File, Vec<Piece>, usize),
        ring: &Ring,
    ) {
        let go_on = !matches!(self.phase, Phase::Closing(_));
        self.traffic.bytes_sent += u64::from(*result.as_ref().unwrap_or(&0));
        if let Err(error) = self.outbox.on_sent(result, sent, (ring, self.conn.0, go_on)) {
            self.close(self.gone(&cause(&error)), ring);
        }
    }

    /// Uses what has arrived, and receives more if more is wanted.
    pub(crate) fn advance_in(&mut self, ring: &Ring, events: &mut VecDeque<Event>) {
        while self.reading.is_none() {
            match self.step(events) {
                Ok(Progress::Made) => {}
                Ok(progress) => return self.read_on(progress, ring),
                Err(why) => return self.fail(why, ring),
            }
        }
    }

    /// Sends what waits; ends when a refusal has left.
    pub(crate) fn advance_out(&mut self, ring: &Ring) {
        if let Phase::Connecting(_) | Phase::Closing(_) = self.phase {
            return;
        }
        if let Some(file) = &self.file {
            self.outbox.start(ring, file, self.conn.0);
        }
        if let Phase::Leaving(why) = &self.phase
            && self.outbox.is_empty()
        {
            self.close(why.clone(), ring);
        }
    }

    fn read_on(&mut self, progress: Progress, ring: &Ring) {
        let Some(file) = &self.file else { return };
        match progress {
            Progress::Needs(len) => {
                self.reading = Some(self.inbox.receive(len, ring, file, self.conn.0));
            }
            Progress::Direct => {
                let Intake::Bulk(incoming) = &mut self.intake else {
                    panic!("only payload is received into a region");
                };
                let region = incoming.region.take().expect("one receive is in flight at most");
                let (from, to) = (incoming.filled, incoming.len);
                let file = file.clone();
                let receive = Op::Receive { file, region, from, to, all: true };
                self.reading = Some(ring.submit(Owner::Tcp, self.conn.0, receive));
            }
            Progress::Stalled if matches!(self.phase, Phase::Judged(_) | Phase::Open(_)) => {
                self.watching.get_or_insert_with(|| {
                    let watch = Op::Poll { file: file.clone(), events: Op::PEER_CLOSED };
                    ring.submit(Owner::Tcp, self.conn.0, watch)
                });
            }
            Progress::Made | Progress::Stalled => {}
        }
    }

    // ---- what the bytes mean ----

    fn step(&mut self, events: &mut VecDeque<Event>) -> Result<Progress, CloseReason> {
        if matches!(
            self.phase,
            Phase::Connecting(_) | Phase::Judged(_) | Phase::Leaving(_) | Phase::Closing(_)
        ) {
            return Ok(Progress::Stalled);
        }
        match &mut self.intake {
            Intake::Head => self.take_frame(events),
            Intake::Offered { .. } => Ok(Progress::Stalled),
            Intake::Bulk(_) => Ok(self.take_bulk(events)),
            Intake::Skip { left } => {
                let here = self.inbox.bytes().len().min(*left);
                self.inbox.consume(here);
                *left -= here;
                if *left > 0 {
                    return Ok(Progress::Needs(1));
                }
                self.intake = Intake::Head;
                Ok(Progress::Made)
            }
        }
    }

    fn take_frame(&mut self, events: &mut VecDeque<Event>) -> Result<Progress, CloseReason> {
        let bytes = self.inbox.bytes();
        let Some((head, rest)) = bytes.split_first_chunk::<{ Header::LEN }>() else {
            return Ok(Progress::Needs(Header::LEN));
        };
        let header = Header::from_bytes(head).map_err(|error| corrupt(&error))?;
        if let Phase::Open(version) = self.phase {
            handshake::check_frame(&header, self.accepted, version)?;
            if self.accepted && !self.may_take(&header) {
                return Ok(Progress::Stalled);
            }
        } else {
            handshake::check_header(&header, matches!(self.phase, Phase::Introduced(_)))?;
        }
        let len = Header::LEN + header.body_len as usize;
        let Some(body) = rest.get(..header.body_len as usize) else {
            return Ok(Progress::Needs(len));
        };
        Header::check(head, body).map_err(|error| corrupt(&error))?;
        let body = body.to_vec();
        self.inbox.consume(len);
        if matches!(self.phase, Phase::Open(_)) {
            self.traffic.frames_received += 1;
            self.on_frame(header, body, events)?;
        } else {
            self.on_handshake(&body, events)?;
        }
        Ok(Progress::Made)
    }

    /// Whether a request may be taken now; one alone is always within the limits. Replies that wait to be sent count, so
    /// that a peer which does not read them holds a bounded part of this end's memory.
    fn may_take(&self, header: &Header) -> bool {
        let room = if header.kind == HeaderKind::RequestForBulk { header.bulk_len } else { 0 };
        let calls = self.owed.len() + self.outbox.frames();
        let bytes = self.promised + self.outbox.len() as u64 + u64::from(room);
        !self.paused && calls < limits::CREDITS as usize && bytes <= u64::from(limits::BULK_CREDIT)
    }

    fn on_frame(
        &mut self,
        header: Header,
        body: Vec<u8>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), CloseReason> {
        let (conn, len) = (self.conn, header.bulk_len as usize);
        let on_wire = if header.kind == HeaderKind::RequestForBulk { 0 } else { len };
        self.inbox.set_cautious(on_wire >= DIRECT_LEN_MIN);
        if header.kind == HeaderKind::Reply {
            let Some(region) = self.lent.remove(&header.token) else {
                return wrong("a reply to no request");
            };
            if region.as_ref().map_or(0, Region::len) < len {
                self.lent.insert(header.token, region);
                return wrong("a reply with more payload than there is room for");
            }
            if len == 0 {
                events.push_back(Event::Reply { conn, header, body, region });
            } else {
                let target = Target::Reply { header, body };
                self.intake = Intake::Bulk(Box::new(Incoming { target, region, filled: 0, len }));
            }
            return Ok(());
        }
        let room = if header.kind == HeaderKind::RequestForBulk { header.bulk_len } else { 0 };
        if self.owed.insert(header.token, room).is_some() {
            return wrong("two requests with one token");
        }
        self.promised += u64::from(room);
        if on_wire > 0 {
            self.intake = Intake::Offered { token: header.token, len };
        }
        events.push_back(Event::Request { conn, header, body });
        Ok(())
    }

    fn take_bulk(&mut self, events: &mut VecDeque<Event>) -> Progress {
        let Intake::Bulk(incoming) = &mut self.intake else {
            panic!("a payload is being taken");
        };
        let region = incoming.region.as_mut().expect("no receive is in flight");
        let here = self.inbox.bytes();
        let part = here.len().min(incoming.len - incoming.filled);
        if part > 0 {
            let target = &mut region.bytes_mut()[incoming.filled..incoming.filled + part];
            copy_payload(target, &here[..part]);
            self.inbox.consume(part);
            incoming.filled += part;
        }
        match incoming.len - incoming.filled {
            0 => {}
            DIRECT_LEN_MIN.. => return Progress::Direct,
            _ => return Progress::Needs(1),
        }
        let Intake::Bulk(incoming) = std::mem::replace(&mut self.intake, Intake::Head) else {
            panic!("a payload is being taken");
        };
        let Incoming { target, region, len, .. } = *incoming;
        count_payload(Moved::Framed, len as u64);
        let conn = self.conn;
        events.push_back(match (target, region) {
            (Target::Reply { header, body }, region) => Event::Reply { conn, header, body, region },
            (Target::Pull { token }, Some(region)) => {
                Event::Pulled { conn, token, region, len: len as u32 }
            }
            (Target::Pull { .. }, None) => panic!("a payload that is complete is in its region"),
        });
        Progress::Made
    }

    fn on_handshake(
        &mut self,
        message: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), CloseReason> {
        match self.take_phase() {
            Phase::Greeted(state) => {
                let (state, answer) = state.on_challenge(message)?;
                self.outbox.push_bytes(&[&handshake::frame(&answer)]);
                self.phase = Phase::Introduced(state);
            }
            Phase::Introduced(state) => {
                let welcome = state.on_verdict(message)?;
                let peer = Peer::Node { node: welcome.node, endpoint: 0 };
                self.open(welcome.version, peer, welcome.map, events);
            }
            Phase::Accepting(state) => match state.on_greeting(message) {
                Ok((state, answer)) => {
                    self.outbox.push_bytes(&[&handshake::frame(&answer)]);
                    self.phase = Phase::Challenged(state);
                }
                Err(failed) => self.turn_away(failed)?,
            },
            Phase::Challenged(state) => match state.on_introduction(message) {
                Ok(proven) => {
                    let hello = *proven.hello();
                    self.announced = true;
                    self.phase = Phase::Judged(proven);
                    events.push_back(Event::Proven { conn: self.conn, hello });
                }
                Err(failed) => self.turn_away(failed)?,
            },
            other => panic!("a handshake message in {other:?}"),
        }
        Ok(())
    }

    /// A handshake failed here: the peer is told, if it is to know, before the connection ends.
    fn turn_away(&mut self, failed: handshake::Failed) -> Result<(), CloseReason> {
        let handshake::Failed { why, answer } = failed;
        let Some(answer) = answer else {
            return Err(why);
        };
        self.outbox.push_bytes(&[&handshake::frame(&answer)]);
        self.phase = Phase::Leaving(self.named(why));
        Ok(())
    }

    fn open(
        &mut self,
        version: u8,
        peer: Peer,
        map: Option<Arc<ClusterMap>>,
        events: &mut VecDeque<Event>,
    ) {
        self.phase = Phase::Open(version);
        self.inbox.open();
        let (conn, kind) = (self.conn, TransportKind::Tcp);
        events.push_back(Event::Opened { conn, peer, kind, map });
    }

    /// The phase, to make the next one of it.
    fn take_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Leaving(CloseReason::Local))
    }

    /// Ends for a reason that does not name the peer yet.
    fn fail(&mut self, why: CloseReason, ring: &Ring) {
        self.close(self.named(why), ring);
    }

    /// The reason with the peer's address before its text.
    fn named(&self, why: CloseReason) -> CloseReason {
        let name = |text: String| format!("{}: {text}", self.address);
        match why {
            CloseReason::Gone(text) => CloseReason::Gone(name(text)),
            CloseReason::Refused(text) => CloseReason::Refused(name(text)),
            CloseReason::Corrupt(text) => CloseReason::Corrupt(name(text)),
            other => other,
        }
    }

    fn gone(&self, cause: &str) -> CloseReason {
        self.named(CloseReason::Gone(cause.to_owned()))
    }
}

/// What the system said, without its number.
pub(crate) fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn corrupt(error: &sealfs_proto::Corrupt) -> CloseReason {
    CloseReason::Corrupt(error.to_string())
}

fn wrong<T>(what: &str) -> Result<T, CloseReason> {
    Err(CloseReason::Corrupt(format!("{what} is not allowed")))
}
