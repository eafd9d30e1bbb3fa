//! One node: its connection, its session, and the calls to it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sealfs_proto::{
    Address, Epoch, Header, HeaderKind, NodeId, Peer, PeerFigures, Reply, Request, Sequence,
    ShardId, Status, Traffic, TransportKind, encode, limits,
};

use super::ask::{Answer, Ask, CallError, PeerStatus};
use crate::tasks::Sender;
use crate::{Bulk, Conn, Frame, Instant, Region, Slice, Transport};

/// A node as this endpoint knows it.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) addresses: Vec<Address>,
    /// The address to try next, modulo their number.
    pub(super) at: usize,
    pub(super) state: State,
    /// What the last connection's end or failed beginning was.
    pub(super) last_error: Option<String>,
    /// Connections that failed or ended since the last reply.
    pub(super) failures: u32,
    pub(super) ever_open: bool,
    /// How often the node's machine has lost power, as its newest reply says.
    pub(super) losses: Option<u64>,
    /// Sessions with this node that have ended.
    pub(super) generation: u64,
    /// The node has admitted the present session.
    pub(super) known: bool,
    /// This end has left the session: no connection is wanted before the next call.
    pub(super) left: bool,
    next_sequence: u64,
    /// The endpoint, in the top 16 bits of every sequence.
    endpoint: u16,
    /// All calls that are not over, by number (their token): the order in which they were made.
    pub(super) calls: BTreeMap<u64, Pending>,
    /// Of these, the ones to send next.
    pub(super) waiting: BTreeSet<u64>,
    /// Sequences of changes in flight, lock waits left out.
    changes: BTreeSet<u64>,
    sent: Credits,
    /// Nothing was heard since then although something was asked for.
    pub(super) quiet_since: Instant,
    /// When the latest of what the node has answered was sent: it has heard of this end since then.
    pub(super) heard: Instant,
    pub(super) last_sent: Instant,
    pub(super) alarm: Option<Instant>,
    stats: Stats,
}

/// The connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// None, and none wanted.
    Idle,
    /// None until then.
    BackOff { until: Instant },
    /// Begun; given up at `until`.
    Connecting { conn: Conn, until: Instant },
    /// Open, only claims are sent.
    Claiming { conn: Conn, kind: TransportKind },
    /// Open.
    Open { conn: Conn, kind: TransportKind },
    /// Given up by this end; the transport has not yet reported its end.
    Closing { conn: Conn },
}

/// What is in flight.
#[derive(Default)]
struct Credits {
    calls: u32,
    lock_waits: u32,
    bytes: u64,
}

#[derive(Default)]
struct Stats {
    opened: u64,
    failures: u64,
    resent: u64,
    /// Of connections that are over.
    traffic: Traffic,
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Caller,
    Claim,
    Ping,
}

/// A call that is not over.
pub(super) struct Pending {
    pub(super) purpose: Purpose,
    shard: ShardId,
    body: Vec<u8>,
    payload: Payload,
    pub(super) change: bool,
    pub(super) lock_wait: bool,
    /// Shared with the caller's [`super::Call`]; 0 for what changes nothing.
    sequence: Rc<Cell<u64>>,
    pub(super) deadline: Option<Instant>,
    /// Who waits for the answer; `None` once it was told.
    answer_to: Option<Sender<Result<Answer, CallError>>>,
    /// In flight on the present connection.
    pub(super) sent: bool,
    /// When it was sent last.
    sent_at: Instant,
    /// It fails with the session even if it was never sent.
    in_session: bool,
    /// The node may have executed it.
    ever_sent: bool,
    /// How often the node has not executed it, and why it did not the last time.
    put_off: (u32, Status),
    /// It ends the session: the end of the connection, too, is its answer.
    leave: bool,
}

enum Payload {
    None,
    Send(Vec<Slice>),
    /// `region` is `None` while it is lent.
    Receive {
        region: Option<Region>,
        len: usize,
    },
}

impl Link {
    pub(super) fn new(node: NodeId, endpoint: u16) -> Self {
        Self {
            node,
            addresses: Vec::new(),
            at: 0,
            state: State::Idle,
            last_error: None,
            failures: 0,
            ever_open: false,
            losses: None,
            generation: 0,
            known: false,
            left: false,
            next_sequence: 1,
            endpoint,
            calls: BTreeMap::new(),
            waiting: BTreeSet::new(),
            changes: BTreeSet::new(),
            sent: Credits::default(),
            quiet_since: Instant(0),
            heard: Instant(0),
            last_sent: Instant(0),
            alarm: None,
            stats: Stats::default(),
        }
    }

    pub(super) fn status(&self) -> PeerStatus {
        let connected = match self.state {
            State::Open { kind, .. } | State::Claiming { kind, .. } => Some(kind),
            _ => None,
        };
        PeerStatus {
            node: self.node,
            connected,
            last_error: self.last_error.clone(),
            reconnects: self.stats.opened.saturating_sub(1),
            failures: self.stats.failures,
            resent: self.stats.resent,
            in_flight: self.calls.len() as u64,
        }
    }

    /// What there is to tell of it. Before a connection has told which endpoint answers there, it is 0.
    pub(super) fn figures(&self, transport: &dyn Transport) -> PeerFigures {
        let present = self.conn().and_then(|conn| transport.figures(conn));
        let mut traffic = self.stats.traffic;
        traffic.add(&present.as_ref().map_or_else(Traffic::default, |present| present.traffic));
        let known = self.addresses.get(self.at % self.addresses.len().max(1));
        let address = known.map(|address| address.text.clone()).unwrap_or_default();
        PeerFigures {
            peer: Peer::Node { node: self.node, endpoint: 0 },
            accepted: false,
            address,
            path: present.map(|present| present.path),
            connections: self.stats.opened,
            failures: self.stats.failures,
            resent: self.stats.resent,
            in_flight: self.calls.len() as u64,
            traffic,
            last_error: self.last_error.clone().unwrap_or_default(),
        }
    }

    /// This end closes the connection because it leads nowhere.
    pub(super) fn given_up(&mut self, why: String) {
        self.stats.failures += 1;
        self.last_error = Some(why);
    }

    /// A connection, or the try to make one, is over.
    pub(super) fn closed(&mut self, by_error: bool, traffic: &Traffic) {
        self.stats.failures += u64::from(by_error);
        self.stats.traffic.add(traffic);
    }

    /// The open connection.
    pub(super) const fn conn(&self) -> Option<Conn> {
        match self.state {
            State::Open { conn, .. } | State::Claiming { conn, .. } => Some(conn),
            _ => None,
        }
    }

    /// The connection is usable.
    pub(super) fn opened(&mut self, now: Instant) {
        (self.ever_open, self.last_error) = (true, None);
        (self.quiet_since, self.last_sent) = (now, now);
        self.stats.opened += 1;
    }

    /// The address that is being used or tried.
    pub(super) fn address(&self) -> &Address {
        &self.addresses[self.at % self.addresses.len()]
    }

    /// Where it is and what is wrong with it, for messages.
    pub(super) fn cause(&self) -> String {
        let no_answer = || format!("{}: no answer", self.address().text);
        self.last_error.clone().unwrap_or_else(no_answer)
    }

    /// When the first call that has a deadline is late.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.calls.values().find_map(|call| call.deadline)
    }

    pub(super) fn is_asked_something(&self) -> bool {
        self.sent.calls > 0
    }

    pub(super) fn has(&self, purpose: Purpose) -> bool {
        self.calls.values().any(|call| call.purpose == purpose)
    }

    /// Queues a call; gives the cell with its sequence.
    pub(super) fn add(
        &mut self,
        number: u64,
        ask: Ask,
        deadline: Option<Instant>,
        answer_to: Sender<Result<Answer, CallError>>,
    ) -> Rc<Cell<u64>> {
        let payload = match ask.bulk {
            Bulk::None => Payload::None,
            Bulk::Send(slices) => Payload::Send(slices),
            Bulk::Receive(region) => {
                let len = region.len();
                Payload::Receive { region: Some(region), len }
            }
        };
        let pending = Pending {
            shard: ask.shard,
            payload,
            change: ask.change,
            lock_wait: ask.lock_wait,
            in_session: ask.in_session,
            deadline,
            answer_to: Some(answer_to),
            ..Pending::new(Purpose::Caller, &ask.request)
        };
        let sequence = Rc::clone(&pending.sequence);
        self.left = false;
        self.calls.insert(number, pending);
        self.waiting.insert(number);
        if !ask.lock_wait {
            self.number_change(number);
        }
        sequence
    }

    /// Queues a request of the endpoint itself.
    pub(super) fn add_own(&mut self, number: u64, purpose: Purpose, request: &Request) {
        self.calls.insert(number, Pending::new(purpose, request));
        self.waiting.insert(number);
    }

    /// Gives a change the next sequence number of the session.
    pub(super) fn number_change(&mut self, number: u64) {
        let Some(call) = self.calls.get_mut(&number).filter(|call| call.change) else { return };
        let sequence = (u64::from(self.endpoint) << 48) | self.next_sequence;
        self.next_sequence += 1;
        self.changes.remove(&call.sequence.get());
        call.sequence.set(sequence);
        if !call.lock_wait {
            self.changes.insert(sequence);
        }
    }

    /// Sends what waits, as far as the credits go. True if the connection was quiet before.
    pub(super) fn send_waiting(
        &mut self,
        transport: &mut dyn Transport,
        epoch: Epoch,
        now: Instant,
    ) -> bool {
        let (conn, only_claims) = match self.state {
            State::Claiming { conn, .. } => (conn, true),
            State::Open { conn, .. } => (conn, false),
            _ => return false,
        };
        let was_asked_nothing = !self.is_asked_something();
        let mut from = 0;
        while let Some(&number) = self.waiting.range(from..).next() {
            from = number + 1;
            let Some(call) = self.calls.get(&number) else { continue };
            if call.is_forgotten() {
                self.remove(number);
                continue;
            }
            if only_claims && call.purpose != Purpose::Claim {
                continue;
            }
            if call.lock_wait && self.sent.lock_waits >= LOCK_WAITS_MAX {
                continue;
            }
            let own = call.purpose != Purpose::Caller;
            let bytes = call.payload.len();
            let room = self.sent.calls < CALLS_MAX
                && (self.sent.bytes == 0
                    || self.sent.bytes + bytes <= u64::from(limits::BULK_CREDIT));
            if !own && !room {
                break;
            }
            let frame = self.frame(number, epoch, now);
            transport.send(conn, frame);
            self.last_sent = now;
        }
        let asked = was_asked_nothing && self.is_asked_something();
        if asked {
            self.quiet_since = now;
        }
        asked
    }

    /// Marks the call as sent, and gives its frame.
    fn frame(&mut self, number: u64, epoch: Epoch, now: Instant) -> Frame {
        self.waiting.remove(&number);
        if self.calls.get(&number).is_some_and(|call| call.lock_wait) {
            // Numbered late: changes that are sent before it do not wait for it with their watermark.
            self.number_change(number);
        }
        let next = (u64::from(self.endpoint) << 48) | self.next_sequence;
        let call = self.calls.get_mut(&number).expect("only calls that are there wait");
        // `sent_at` outlives `ever_sent`, which a node takes back that has not executed the call.
        self.stats.resent += u64::from(call.sent_at > Instant(0));
        (call.sent, call.ever_sent, call.sent_at) = (true, true, now);
        self.sent.calls += 1;
        self.sent.lock_waits += u32::from(call.lock_wait);
        self.sent.bytes += call.payload.len();
        let (kind, bulk) = match &mut call.payload {
            Payload::None => (HeaderKind::Request, Bulk::None),
            Payload::Send(slices) => (HeaderKind::Request, Bulk::Send(slices.clone())),
            Payload::Receive { region, .. } => {
                let region = region.take().expect("a call that waits has its region");
                (HeaderKind::RequestForBulk, Bulk::Receive(region))
            }
        };
        let sequence = call.sequence.get();
        let own = if call.change { sequence } else { next };
        let header = Header {
            sequence: Sequence(sequence),
            watermark: Sequence(self.changes.first().copied().unwrap_or(next).min(own)),
            epoch,
            shard: call.shard,
            ..Header::new(kind, number)
        };
        Frame { header, body: call.body.clone(), bulk }
    }

    /// A reply has come: the call is in flight no more, and has its region back. None if the call is unknown.
    pub(super) fn take_reply(
        &mut self,
        now: Instant,
        number: u64,
        region: Option<Region>,
    ) -> Option<&mut Pending> {
        (self.quiet_since, self.failures) = (now, 0);
        let call = self.calls.get_mut(&number).filter(|call| call.sent)?;
        call.sent = false;
        self.heard = self.heard.max(call.sent_at);
        self.sent.calls -= 1;
        self.sent.lock_waits -= u32::from(call.lock_wait);
        self.sent.bytes -= call.payload.len();
        if let Payload::Receive { region: lent, .. } = &mut call.payload {
            assert!(region.is_some(), "a reply brings the region back that was lent");
            *lent = region;
        }
        Some(call)
    }

    /// The connection is over: what was in flight waits again, unless nobody wants it any more.
    pub(super) fn take_back(&mut self, lent: Vec<(u64, Region)>) {
        self.sent = Credits::default();
        for (number, returned) in lent {
            if let Some(call) = self.calls.get_mut(&number)
                && let Payload::Receive { region, .. } = &mut call.payload
            {
                *region = Some(returned);
            }
        }
        let over: Vec<u64> = self
            .calls
            .iter_mut()
            .filter_map(|(&number, call)| {
                let ended = call.purpose != Purpose::Caller || call.sent && call.is_forgotten();
                if call.sent && !ended {
                    let back = !matches!(call.payload, Payload::Receive { region: None, .. });
                    assert!(back, "a closed connection gives every lent region back");
                    call.sent = false;
                    self.waiting.insert(number);
                }
                ended.then_some(number)
            })
            .collect();
        over.into_iter().for_each(|number| self.remove(number));
    }

    /// The node has ended the session. Changes that it may have seen fail, and so do those that rely on it; the others are
    /// numbered anew.
    pub(super) fn end_session(&mut self) {
        self.generation += 1;
        self.known = false;
        self.next_sequence = 1;
        self.changes.clear();
        let node = self.node;
        let numbers: Vec<u64> = self.calls.keys().copied().collect();
        for number in numbers {
            let Some(call) = self.calls.get(&number).filter(|call| call.change) else { continue };
            // The old number means nothing any more, and is another change's in the new session.
            call.sequence.set(0);
            if call.lock_wait {
                continue;
            }
            if call.ever_sent || call.in_session {
                self.fail(number, CallError::SessionEnded { node });
            } else {
                self.number_change(number);
            }
        }
    }

    /// Whether the call asks the node to end the session.
    pub(super) fn is_leave(&self, number: u64) -> bool {
        self.calls.get(&number).is_some_and(|call| call.leave)
    }

    /// Answers the calls that ended the session: a node that does so closes its connections, and whether its reply or that
    /// comes first does not matter.
    pub(super) fn finish_leaving(&mut self) {
        let leaving = self.calls.iter().filter(|(_, call)| call.leave && call.ever_sent);
        let leaving: Vec<u64> = leaving.map(|(number, _)| *number).collect();
        if leaving.is_empty() {
            return;
        }
        for number in leaving {
            self.finish(number, Ok((Reply::Done, 0)));
        }
        self.end_session();
        self.left = true;
    }

    /// The caller gets the error. What is in flight is kept until its reply or the connection's end.
    pub(super) fn fail(&mut self, number: u64, error: CallError) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.deadline = None;
        call.tell(Err(error));
        if !call.sent {
            self.remove(number);
        }
    }

    /// The caller gets the answer, and the call is over.
    pub(super) fn finish(&mut self, number: u64, result: Result<(Reply, u32), CallError>) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        let region = match &mut call.payload {
            Payload::Receive { region, .. } => region.take(),
            _ => None,
        };
        call.tell(result.map(|(reply, bulk_len)| Answer { reply, region, bulk_len }));
        self.remove(number);
    }

    /// Forgets a call that is not in flight.
    pub(super) fn remove(&mut self, number: u64) {
        self.waiting.remove(&number);
        if let Some(call) = self.calls.remove(&number) {
            self.changes.remove(&call.sequence.get());
        }
    }
}

impl Pending {
    fn new(purpose: Purpose, request: &Request) -> Self {
        Self {
            purpose,
            shard: ShardId(0),
            body: encode(request),
            payload: Payload::None,
            change: false,
            lock_wait: false,
            sequence: Rc::new(Cell::new(0)),
            deadline: None,
            answer_to: None,
            sent: false,
            sent_at: Instant(0),
            in_session: false,
            ever_sent: false,
            put_off: (0, Status::Busy),
            leave: matches!(request, Request::Leave),
        }
    }

    /// How often the node has not executed it.
    pub(super) const fn put_off(&self) -> u32 {
        self.put_off.0
    }

    /// Why it waits to be sent again, if the node has not executed it.
    pub(super) fn put_off_by(&self) -> Option<Status> {
        (self.put_off.0 > 0 && !self.sent).then_some(self.put_off.1)
    }

    /// The node has not executed it.
    pub(super) const fn was_put_off(&mut self, why: Status) {
        self.put_off = (self.put_off.0 + 1, why);
        self.ever_sent = false;
    }

    fn tell(&mut self, result: Result<Answer, CallError>) {
        if let Some(answer_to) = self.answer_to.take() {
            // Whoever has dropped the future does not want the answer; a region in it goes back to its pool.
            drop(answer_to.send(result));
        }
    }

    /// Whether it need not be sent (again): the caller was told the outcome, or is gone and it would change nothing.
    fn is_forgotten(&self) -> bool {
        match &self.answer_to {
            None => self.purpose == Purpose::Caller,
            Some(answer_to) => answer_to.is_abandoned() && (!self.change || self.lock_wait),
        }
    }
}

impl Payload {
    fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Send(slices) => slices.iter().map(|slice| slice.len() as u64).sum(),
            Self::Receive { len, .. } => *len as u64,
        }
    }
}

/// Calls in flight on behalf of callers; two credits are kept for the endpoint's own pings and claims.
const CALLS_MAX: u32 = limits::CREDITS - 2;
/// Lock waits last long; half of the credits stays for what is quick.
const LOCK_WAITS_MAX: u32 = limits::CREDITS / 2;
