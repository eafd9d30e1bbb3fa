//! One connection: its handshake, its calls, its windows, and what the next message from the peer means.
//!
//! ```text
//! connecting end:  Dialing -> Meeting -> Open
//! accepting end:   Meeting -> Judged -> Open | Leaving
//! any            -> gone: the endpoint destroys the link and takes everything back
//! ```
//! There is no state of dying: when destroying the link returns, no device holds anything of it.
//!
//! 1. A region lent for a reply is in `lent` (before it leaves, or its stand-in does) or with the provider, until `Reply` or
//!    `Closed` gives it back. The provider gives it back when the peer has answered, or with the link's destruction.
//! 2. No remote key leaves before the handshake is over: memory is lent when its frame leaves, and frames leave in `Open`.
//! 3. Nothing is reported to those above of a connection that was accepted and has not proven the key.
//! 4. A message is taken, and its credit given back, when what it means has been handed on; so a connection that is paused
//!    or at its limits holds at most a window of messages.
//! 5. A reply leaves behind every write of its payload (RC keeps the order) and behind every read of its request's payload
//!    (fence), so that the peer may use its memory again when the reply is there.

mod receive;
mod send;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use sealfs_proto::{Header, HeaderKind, Traffic, limits};
use sealfs_transport::handshake::{Exchange, Proven};
use sealfs_transport::{Bulk, CloseReason, Conn, Event, Frame, Instant, Region, Slice};

use crate::bounce::Bounce;
use crate::flow::Flow;
use crate::message::{Kind, Room};
use crate::stats::Counters;
use crate::verbs::{Failure, Link, Loan, Remote, Verbs};

/// A connection, from the first attempt to connect (or its acceptance) to its end.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) conn: Conn,
    /// `None` before the first address was tried.
    pub(crate) link: Option<Link>,
    /// The peer, as texts name it.
    pub(crate) address: String,
    phase: Phase,
    /// Whether the endpoint has it in its list of connections to look after at the next flush.
    pub(crate) dirty: bool,
    /// Whether it waits for memory to copy through.
    pub(crate) starved: bool,
    accepted: bool,
    /// Whether it counts among those accepted that have not proven themselves.
    at_the_door: bool,
    /// Whether those above know of it.
    announced: bool,
    flow: Flow,
    /// Bytes of a message that the peer takes.
    message_len: usize,
    outbox: VecDeque<Outgoing>,
    /// Messages that have come and were not taken.
    inbox: VecDeque<(Kind, Vec<u8>)>,
    /// A frame of which something is still to come.
    assembly: Option<Assembly>,
    paused: bool,
    /// Connecting end: calls in flight, with what they have lent.
    lent: BTreeMap<u64, Lent>,
    /// Accepting end: calls not answered.
    owed: BTreeMap<u64, Promise>,
    /// Payload to read, in the order of asking.
    pulls: VecDeque<Pull>,
    /// Reads in flight, in the order of posting.
    reading: VecDeque<Reading>,
    /// When something was posted last.
    pub(crate) last_sent: Instant,
    pub(crate) counters: Counters,
    pub(crate) traffic: Traffic,
}

/// What the connection does at present.
#[derive(Debug)]
enum Phase {
    /// The link is being set up.
    Dialing(Attempt),
    /// The handshake.
    Meeting(Exchange),
    /// The core decides whether the peer may enter.
    Judged(Proven),
    /// Frames flow, in this version.
    Open(u8),
    /// A refusal is on its way out; nothing is taken any more.
    Leaving(CloseReason),
    /// Between two others.
    Moving,
}

/// Where to connect to, and what to say there.
#[derive(Debug)]
pub(crate) struct Attempt {
    exchange: Exchange,
    greeting: Vec<u8>,
    /// Addresses of the peer that were not tried yet.
    others: VecDeque<SocketAddr>,
}

impl Attempt {
    pub(crate) fn new(
        (exchange, greeting): (Exchange, Vec<u8>),
        addresses: Vec<SocketAddr>,
    ) -> Self {
        Self { exchange, greeting, others: addresses.into() }
    }
}

/// A frame on its way out.
#[derive(Debug)]
struct Outgoing {
    header: Header,
    body: Vec<u8>,
    /// Payload of a reply that was not posted yet, and where it goes.
    push: VecDeque<Slice>,
    target: Remote,
    /// Header and body as they go, once the frame's payload is seen to; and how much of it has left.
    encoded: Option<Vec<u8>>,
    at: usize,
}

/// What a call of this end has lent.
#[derive(Debug)]
enum Lent {
    Nothing,
    /// The frame has not left.
    Room(Region),
    Offer(Vec<Slice>),
    /// With the provider.
    Direct,
    /// Memory to copy through is with the provider instead of this.
    Bounced(Region),
}

/// What a call of the peer offers.
#[derive(Clone, Copy, Debug)]
struct Promise {
    remote: Remote,
    /// Room for the reply's payload, or payload to be pulled.
    len: u32,
    is_room: bool,
    pulled: bool,
}

/// A read that was asked for.
#[derive(Debug)]
struct Pull {
    token: u64,
    region: Region,
    promise: Promise,
}

/// A read in flight.
#[derive(Debug)]
struct Reading {
    token: u64,
    /// Where the payload is wanted, if it is read into memory to copy through.
    region: Option<Region>,
}

/// A frame that is being put together.
#[derive(Debug)]
struct Assembly {
    header: Header,
    head: [u8; Header::LEN],
    body: Vec<u8>,
}

/// What a connection reaches beside itself.
pub(crate) struct Reach<'a> {
    pub(crate) verbs: &'a mut dyn Verbs,
    pub(crate) bounce: &'a mut Bounce,
    pub(crate) events: &'a mut VecDeque<Event>,
}

/// Why a connection ends; `CloseReason` texts do not name the peer yet.
type Outcome = Result<(), CloseReason>;

impl Connection {
    /// A connection that [`Connection::dial_next`] begins.
    pub(crate) fn dialing(conn: Conn, address: String, attempt: Attempt) -> Self {
        Self::new(conn, None, address, Phase::Dialing(attempt), Room::OURS)
    }

    /// A connection that was accepted, from a peer with this room.
    pub(crate) fn accepted(
        conn: Conn,
        link: Link,
        address: String,
        exchange: Exchange,
        room: Room,
    ) -> Self {
        let phase = Phase::Meeting(exchange);
        let new = Self::new(conn, Some(link), address, phase, room);
        Self { accepted: true, at_the_door: true, announced: false, ..new }
    }

    fn new(conn: Conn, link: Option<Link>, address: String, phase: Phase, room: Room) -> Self {
        Self {
            conn,
            link,
            address,
            phase,
            dirty: false,
            starved: false,
            accepted: false,
            at_the_door: false,
            announced: true,
            flow: Flow::new(room.window),
            message_len: room.message_len,
            outbox: VecDeque::new(),
            inbox: VecDeque::new(),
            assembly: None,
            paused: false,
            lent: BTreeMap::new(),
            owed: BTreeMap::new(),
            pulls: VecDeque::new(),
            reading: VecDeque::new(),
            last_sent: Instant::default(),
            counters: Counters::default(),
            traffic: Traffic::default(),
        }
    }

    // ---- setting up ----

    /// Tries the next address of the peer; the last cause, if there is none or the link was up already.
    pub(crate) fn dial_next(
        &mut self,
        mut cause: String,
        verbs: &mut dyn Verbs,
        timeout_ms: u64,
    ) -> Outcome {
        while let Phase::Dialing(attempt) = &mut self.phase
            && let Some(address) = attempt.others.pop_front()
        {
            match verbs.resolve(address, timeout_ms) {
                Ok(link) => {
                    self.link = Some(link);
                    return Ok(());
                }
                Err(Failure(why)) => cause = why,
            }
        }
        Err(CloseReason::Gone(cause))
    }

    /// The link is connected; the connecting end greets.
    pub(crate) fn on_established(&mut self, private: &[u8]) -> Outcome {
        match std::mem::replace(&mut self.phase, Phase::Moving) {
            Phase::Dialing(attempt) => {
                let room = Room::from_private(private).map_err(CloseReason::Refused)?;
                (self.flow, self.message_len) = (Flow::new(room.window), room.message_len);
                self.say(&attempt.greeting);
                self.phase = Phase::Meeting(attempt.exchange);
            }
            other => self.phase = other,
        }
        Ok(())
    }

    /// Answers `Proven`.
    pub(crate) fn admit(&mut self, verdict: Result<(), CloseReason>, events: &mut VecDeque<Event>) {
        let proven = match std::mem::replace(&mut self.phase, Phase::Moving) {
            Phase::Judged(proven) => proven,
            other => return self.phase = other,
        };
        match verdict {
            Ok(()) => {
                let peer = proven.hello().peer;
                let (version, message) = proven.admit();
                self.say(&message);
                self.open(version, peer, None, events);
            }
            Err(why) => {
                self.say(&proven.refuse(&why));
                self.phase = Phase::Leaving(why);
            }
        }
    }

    // ---- what those above ask ----

    /// Queues a frame; on a connection that is not open it is dropped and a region that it lends is kept for `Closed`.
    pub(crate) fn send(&mut self, frame: Frame) {
        let Frame { mut header, body, bulk } = frame;
        let is_open = if let Phase::Open(version) = self.phase {
            header.version = version;
            true
        } else {
            false
        };
        let (lent, slices, bulk_len) = match bulk {
            Bulk::None => (Lent::Nothing, Vec::new(), 0),
            Bulk::Send(slices) if header.kind == HeaderKind::Reply => {
                let len = slices.iter().map(Slice::len).sum::<usize>();
                (Lent::Nothing, slices, len)
            }
            Bulk::Send(slices) => {
                let len = slices.iter().map(Slice::len).sum::<usize>();
                let lent = if len == 0 { Lent::Nothing } else { Lent::Offer(slices) };
                (lent, Vec::new(), len)
            }
            Bulk::Receive(region) => {
                let len = region.len().min(limits::BULK_LEN_MAX as usize);
                (Lent::Room(region), Vec::new(), len)
            }
        };
        if !is_open {
            if matches!(lent, Lent::Room(_)) {
                self.lent.insert(header.token, lent);
            }
            return;
        }
        assert!(
            bulk_len <= limits::BULK_LEN_MAX as usize
                && body.len() <= limits::BODY_LEN_MAX as usize,
            "a frame of {} + {bulk_len} bytes keeps the limits",
            body.len()
        );
        header.body_len = body.len() as u32;
        header.bulk_len = bulk_len as u32;
        let mut target = Remote { address: 0, key: 0 };
        if header.kind == HeaderKind::Reply {
            let owed = self.owed.remove(&header.token);
            let promise = owed.expect("a reply answers a request, once");
            let room = if promise.is_room { promise.len } else { 0 };
            assert!(header.bulk_len <= room, "a reply's payload has room in its request's region");
            target = promise.remote;
        } else {
            assert!(!self.accepted, "the end that connects sends the requests");
            let known = self.lent.insert(header.token, lent);
            assert!(known.is_none(), "a token names one call at a time");
        }
        let push = slices.into_iter().filter(|slice| !slice.is_empty()).collect();
        self.outbox.push_back(Outgoing { header, body, push, target, encoded: None, at: 0 });
    }

    /// Takes the payload of the request `token` into `region`.
    pub(crate) fn pull(&mut self, token: u64, region: Region) {
        let Phase::Open(_) = self.phase else { return };
        let promise = self.owed.get_mut(&token);
        let offer = promise.filter(|promise| !promise.is_room && !promise.pulled);
        let offer = offer.expect("a call's payload can be pulled once, before its reply");
        assert!(region.len() >= offer.len as usize, "a pulled payload has room in its region");
        offer.pulled = true;
        let promise = *offer;
        self.pulls.push_back(Pull { token, region, promise });
    }

    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    // ---- the end ----

    /// Whether it must still prove itself, and so has a deadline.
    pub(crate) const fn is_half_open(&self) -> bool {
        !matches!(self.phase, Phase::Judged(_) | Phase::Open(_))
    }

    /// Whether the link is still being set up by this end.
    pub(crate) const fn is_dialing(&self) -> bool {
        matches!(self.phase, Phase::Dialing(_))
    }

    /// Whether the peer has just proven itself; true once, and only of a connection that was accepted.
    pub(crate) const fn has_left_the_door(&mut self) -> bool {
        let left = self.at_the_door && !self.is_half_open();
        self.at_the_door &= !left;
        left
    }

    pub(crate) const fn is_at_the_door(&self) -> bool {
        self.at_the_door
    }

    pub(crate) const fn is_accepted(&self) -> bool {
        self.accepted
    }

    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// The peer's receive buffers for this end's messages.
    pub(crate) const fn window(&self) -> u16 {
        self.flow.credits_max()
    }

    /// Messages that may be sent, and calls in flight either way.
    pub(crate) fn load(&self) -> (u16, usize) {
        (self.flow.credits(), self.lent.len() + self.owed.len())
    }

    /// Its end, for those above, if they know of it. `loans` is what destroying the link has given.
    pub(crate) fn into_closed(self, why: CloseReason, loans: Vec<(u64, Loan)>) -> Option<Event> {
        if !self.announced {
            tracing::warn!("a connection from {} came to nothing: {why}", self.address);
            return None;
        }
        let stand_ins: BTreeMap<u64, Loan> = loans.into_iter().collect();
        let mut lent = Vec::new();
        for (token, kept) in self.lent {
            match kept {
                Lent::Room(region) | Lent::Bounced(region) => lent.push((token, region)),
                Lent::Direct | Lent::Nothing | Lent::Offer(_) => {}
            }
        }
        for (token, loan) in stand_ins {
            if let Loan::Room(region) = loan
                && !lent.iter().any(|(known, _)| *known == token)
            {
                lent.push((token, region));
            }
        }
        Some(Event::Closed { conn: self.conn, why, lent, traffic: self.traffic })
    }

    /// The reason with the peer's address before its text.
    pub(crate) fn named(&self, why: CloseReason) -> CloseReason {
        let name = |text: String| format!("{}: {text}", self.address);
        match why {
            CloseReason::Gone(text) => CloseReason::Gone(name(text)),
            CloseReason::Refused(text) => CloseReason::Refused(name(text)),
            CloseReason::Corrupt(text) => CloseReason::Corrupt(name(text)),
            other => other,
        }
    }
}
