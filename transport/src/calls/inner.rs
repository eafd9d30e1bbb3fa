//! What [`super::Calls`] does in a turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sealfs_proto::{
    Address, Claim, ClusterMap, Epoch, Header, NodeId, PeerFigures, Reply, Request, SessionId,
    Status, TransportKind, decode, encode, limits,
};

use super::ask::{Ask, Call, CallError, Me, Options};
use super::guests::Guests;
use super::link::{Link, Purpose, State};
use crate::random::mix;
use crate::tasks::{Sender, oneshot};
use crate::{CloseReason, Conn, Event, Hello, Instant, MapStamp, Peer, Random, Region, Transport};

type Joined = Result<Arc<ClusterMap>, CloseReason>;

pub(super) struct Inner {
    pub(super) transport: Box<dyn Transport>,
    me: Me,
    options: Options,
    pub(super) map: Option<Arc<ClusterMap>>,
    /// How often this machine has lost power.
    pub(super) losses: u64,
    random: Random,
    pub(super) now: Instant,
    next_number: u64,
    pub(super) links: BTreeMap<NodeId, Link>,
    /// Connections that this end began.
    conns: BTreeMap<Conn, NodeId>,
    joining: BTreeMap<Conn, (Address, Sender<Joined>)>,
    /// Links with something to send.
    dirty: BTreeSet<NodeId>,
    alarms: BTreeSet<(Instant, Alarm)>,
    pub(super) has_claims: bool,
    /// Nodes for which the caller has to say what it claims, and whether the session is a new one.
    pub(super) to_claim: Vec<(NodeId, bool)>,
    pub(super) served: VecDeque<Event>,
    guests: Guests,
    /// The last turn left events in the transport.
    more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// Look at the link: late calls, back-off, connecting, silence, keepalive.
    Link(NodeId),
    /// The node was busy; send again.
    Again(NodeId, u64),
}

impl Inner {
    pub(super) fn new(transport: Box<dyn Transport>, me: Me, options: Options) -> Self {
        Self {
            transport,
            me,
            options,
            map: None,
            losses: 0,
            random: Random::new(options.seed),
            now: options.now,
            next_number: 1,
            links: BTreeMap::new(),
            conns: BTreeMap::new(),
            joining: BTreeMap::new(),
            dirty: BTreeSet::new(),
            alarms: BTreeSet::new(),
            has_claims: false,
            to_claim: Vec::new(),
            served: VecDeque::new(),
            guests: Guests::default(),
            more: false,
        }
    }

    pub(super) fn set_map(&mut self, map: &Arc<ClusterMap>) {
        self.options.cluster = map.cluster;
        self.options.map = Some(MapStamp::of(map));
        for node in &map.nodes {
            self.set_peer(node.id, node.addresses.clone());
        }
        self.map = Some(Arc::clone(map));
    }

    pub(super) fn set_peer(&mut self, node: NodeId, addresses: Vec<Address>) {
        if !addresses.is_empty() {
            self.link(node).addresses = self.reachable(addresses);
        }
    }

    /// Those that the transport can connect to; all if there are none, so that connecting says why not.
    pub(super) fn reachable(&self, mut addresses: Vec<Address>) -> Vec<Address> {
        let reaches = |address: &Address| self.transport.reaches(address);
        if addresses.iter().any(reaches) {
            addresses.retain(reaches);
        }
        addresses
    }

    /// When a call that is made now is late.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.options.timeout_ms {
            0 => None,
            timeout_ms => Some(self.now.after_ms(timeout_ms)),
        }
    }

    pub(super) fn call(&mut self, node: NodeId, ask: Ask) -> Call {
        let (answer_to, receiver) = oneshot();
        let number = self.next_number();
        let deadline = if ask.lock_wait || ask.patient { None } else { self.deadline() };
        let Some(link) = self.links.get_mut(&node) else {
            drop(answer_to.send(Err(CallError::Unknown { node })));
            return Call::new(receiver, None);
        };
        let change = ask.change;
        let sequence = link.add(number, ask, deadline, answer_to);
        if let Some(deadline) = deadline {
            self.arm(node, deadline);
        }
        self.dirty.insert(node);
        Call::new(receiver, change.then_some(sequence))
    }

    /// See [`super::Calls::is_session_sure`].
    pub(super) fn is_session_sure(&self, node: NodeId) -> bool {
        let Options { timeout_ms, lease_ms, .. } = self.options;
        // Without a timeout a call may be sent at any time; a lease that is half over keeps pings going all the same.
        let patience_ms = if timeout_ms == 0 { lease_ms / 2 } else { timeout_ms };
        self.links.get(&node).is_some_and(|link| {
            link.heard > Instant(0) && self.now.ms_since(link.heard) + patience_ms < lease_ms
        })
    }

    /// Begins to ask `address` for the map.
    pub(super) fn join(&mut self, address: &Address, outcome: Sender<Joined>) {
        let hello = self.hello(None, 0, false, None);
        let conn = self.transport.connect(address, hello);
        self.joining.insert(conn, (address.clone(), outcome));
    }

    /// What to claim from `node`, after [`Inner::to_claim`] has asked for it.
    pub(super) fn claim(&mut self, node: NodeId, claims: Vec<Claim>) {
        let first = self.next_number;
        let Some(link) = self.links.get_mut(&node) else { return };
        if !matches!(link.state, State::Claiming { .. }) {
            return;
        }
        let parts = split(claims);
        let last = parts.len() - 1;
        for (at, claims) in parts.into_iter().enumerate() {
            let request = Request::Claim { claims, last: at == last };
            link.add_own(first + at as u64, Purpose::Claim, &request);
        }
        self.next_number += last as u64 + 1;
        self.dirty.insert(node);
    }

    /// Takes what the transport reports, and what the time has brought.
    pub(super) fn receive(&mut self, now: Instant) {
        self.now = now;
        self.more = true;
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.transport.poll(now) else {
                self.more = false;
                break;
            };
            self.on_event(event);
        }
        while let Some(&(at, alarm)) = self.alarms.first()
            && at <= now
        {
            self.alarms.pop_first();
            self.on_alarm(alarm);
        }
    }

    /// Sends what waits; returns when there is something to do next.
    pub(super) fn flush(&mut self, now: Instant) -> Option<Instant> {
        self.now = now;
        let epoch = self.options.map.map_or(Epoch(0), |stamp| stamp.epoch);
        for node in std::mem::take(&mut self.dirty) {
            let Some(link) = self.links.get_mut(&node) else { continue };
            if link.state == State::Idle && !link.calls.is_empty() {
                self.connect(node);
            } else if link.send_waiting(self.transport.as_mut(), epoch, now) {
                self.arm(node, now.after_ms(PROBE_MS));
            }
        }
        self.transport.flush(now);
        if self.more {
            return Some(now);
        }
        let alarm = self.alarms.first().map(|alarm| alarm.0);
        alarm.into_iter().chain(self.transport.deadline()).min()
    }

    /// See [`super::Calls::figures`].
    pub(super) fn figures(&self, skip: usize, without: Option<Peer>) -> (Vec<PeerFigures>, usize) {
        let transport = self.transport.as_ref();
        let guests = self.guests.shown().filter(|peer| Some(*peer) != without);
        let own = if let Me::Node { node, .. } = self.me { Some(node) } else { None };
        let links = self.links.values().filter(|link| Some(link.node) != own);
        let all: Vec<Result<&Link, Peer>> = links.map(Ok).chain(guests.map(Err)).collect();
        let page = all.iter().skip(skip).take(limits::PEERS_PAGE);
        let page = page.filter_map(|one| match one {
            Ok(link) => Some(link.figures(transport)),
            Err(peer) => self.guests.figures(*peer, transport),
        });
        let mut page: Vec<PeerFigures> = page.collect();
        page.iter_mut().for_each(PeerFigures::cut_texts);
        let left = all.len().saturating_sub(skip + page.len());
        (page, left)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened { conn, peer, kind, map } if self.joining.contains_key(&conn) => {
                self.on_joined(conn, peer, kind, map);
            }
            Event::Opened { conn, kind, map, .. } if self.conns.contains_key(&conn) => {
                self.on_opened(conn, self.conns[&conn], kind, map);
            }
            Event::Reply { conn, header, body, region } => {
                if let Some(&node) = self.conns.get(&conn) {
                    self.on_reply(node, &header, &body, region);
                }
            }
            Event::Closed { conn, why, lent, traffic } => {
                if let Some((_, outcome)) = self.joining.remove(&conn) {
                    drop(outcome.send(Err(why)));
                } else if let Some(node) = self.conns.remove(&conn) {
                    self.link(node).closed(why != CloseReason::Local, &traffic);
                    self.on_closed(node, why, lent);
                } else {
                    self.guests.closed(conn, &why, &traffic);
                    self.served.push_back(Event::Closed { conn, why, lent, traffic });
                }
            }
            event => {
                if let Event::Opened { conn, peer, .. } = event {
                    let figures = self.transport.figures(conn);
                    let address = figures.map(|figures| figures.address).unwrap_or_default();
                    self.guests.opened(conn, peer, address);
                }
                self.served.push_back(event);
            }
        }
    }

    /// A node has answered [`Inner::join`]: its map is used, and so is its connection.
    fn on_joined(
        &mut self,
        conn: Conn,
        peer: Peer,
        kind: TransportKind,
        map: Option<Arc<ClusterMap>>,
    ) {
        let Some((address, outcome)) = self.joining.remove(&conn) else { return };
        let (Peer::Node { node, .. }, Some(map)) = (peer, map) else {
            self.transport.close(conn);
            drop(outcome.send(Err(CloseReason::Corrupt("the node sent no map".into()))));
            return;
        };
        self.set_map(&map);
        let until = self.now;
        let link = self.link(node);
        if link.addresses.is_empty() {
            link.addresses.push(address);
        }
        if link.state == State::Idle {
            link.state = State::Connecting { conn, until };
            self.conns.insert(conn, node);
            self.on_opened(conn, node, kind, None);
        } else {
            self.transport.close(conn);
        }
        drop(outcome.send(Ok(map)));
    }

    fn on_opened(
        &mut self,
        conn: Conn,
        node: NodeId,
        kind: TransportKind,
        map: Option<Arc<ClusterMap>>,
    ) {
        if let Some(map) = map
            && self.map.as_ref().is_none_or(|ours| ours.epoch < map.epoch)
        {
            self.set_map(&map);
        }
        let is_client = self.is_client();
        let (now, has_claims) = (self.now, self.has_claims);
        let link = self.link(node);
        if !matches!(link.state, State::Connecting { conn: begun, .. } if begun == conn) {
            // Given up at the same moment: its end follows.
            return;
        }
        let fresh = !link.known;
        let had_a_session = link.known || link.generation > 0;
        link.opened(now);
        link.known = is_client;
        if is_client && had_a_session && has_claims {
            link.state = State::Claiming { conn, kind };
            self.to_claim.push((node, fresh));
        } else {
            link.state = State::Open { conn, kind };
        }
        self.dirty.insert(node);
        self.arm(node, now.after_ms(PROBE_MS));
    }

    fn on_closed(&mut self, node: NodeId, why: CloseReason, lent: Vec<(u64, Region)>) {
        let is_client = self.is_client();
        let Some(link) = self.links.get_mut(&node) else { return };
        link.take_back(lent);
        link.finish_leaving();
        if link.conn().is_none() {
            // It never opened, or was given up: perhaps another address is better.
            link.at += 1;
        }
        match &why {
            CloseReason::Local => {}
            CloseReason::NoSession => {
                link.last_error = Some(format!("{}: {why}", link.address().text));
                link.end_session();
            }
            other => link.last_error = Some(other.to_string()),
        }
        if let CloseReason::Refused(cause) = why
            && !link.ever_open
        {
            let numbers: Vec<u64> = link.calls.keys().copied().collect();
            for number in numbers {
                link.fail(number, CallError::Refused { node, cause: cause.clone() });
            }
        }
        let has_a_session = is_client && !link.left && (link.known || link.generation > 0);
        if link.calls.is_empty() && !has_a_session {
            link.state = State::Idle;
            return;
        }
        let shift = link.failures.min(16);
        link.failures += 1;
        let longest = (BACK_OFF_MS << shift).min(BACK_OFF_MS_MAX);
        // Jitter: half of it is random, so that clients of a restarted node do not come all at once.
        let until = self.now.after_ms(longest / 2 + self.random.below(longest / 2 + 1));
        link.state = State::BackOff { until };
        self.arm(node, until);
    }

    fn on_reply(&mut self, node: NodeId, header: &Header, body: &[u8], region: Option<Region>) {
        let number = header.token;
        self.dirty.insert(node);
        let Some(link) = self.links.get_mut(&node) else { return };
        link.losses = Some(header.sequence.0);
        let Some(call) = link.take_reply(self.now, number, region) else { return };
        let (purpose, lock_wait) = (call.purpose, call.lock_wait);
        match header.status {
            Status::Busy | Status::StaleMap if purpose != Purpose::Ping => {
                self.again(node, number, header.status);
            }
            Status::Answered if lock_wait => self.again(node, number, Status::Busy),
            Status::Ok | Status::NoSession if link.is_leave(number) => link.finish_leaving(),
            Status::NoSession => self.on_no_session(node, number),
            status if purpose == Purpose::Caller => {
                let result = match status {
                    Status::Ok => decode::<Reply>("reply", body)
                        .map(|reply| (reply, header.bulk_len))
                        .map_err(|error| CallError::Corrupt { node, cause: error.to_string() }),
                    Status::Errno(errno) => Err(CallError::Errno(errno)),
                    Status::Busy | Status::StaleMap | Status::NoSession | Status::Answered => {
                        Err(CallError::Answered { node })
                    }
                };
                link.finish(number, result);
            }
            status => {
                if !matches!(status, Status::Ok | Status::Busy) {
                    tracing::warn!(node = node.0, ?purpose, ?status, "a node refused");
                }
                link.remove(number);
                if let State::Claiming { conn, kind } = link.state
                    && !link.has(Purpose::Claim)
                {
                    link.state = State::Open { conn, kind };
                }
            }
        }
    }

    /// The node has no such session (any more): a new one begins with a new connection.
    fn on_no_session(&mut self, node: NodeId, number: u64) {
        let Some(link) = self.links.get_mut(&node) else { return };
        link.waiting.insert(number);
        if let Some(conn) = link.conn() {
            link.state = State::Closing { conn };
            link.end_session();
            self.transport.close(conn);
        }
    }

    /// Sends the call again after a moment, for the node has not executed it: `why`.
    fn again(&mut self, node: NodeId, number: u64, why: Status) {
        let Some(link) = self.links.get_mut(&node) else { return };
        let Some(call) = link.calls.get_mut(&number) else { return };
        let longest = (BUSY_US << call.put_off().min(16)).min(BUSY_US_MAX);
        call.was_put_off(why);
        let wait_ns = 1_000 * (longest / 2 + self.random.below(longest / 2 + 1));
        let at = Instant(self.now.0 + wait_ns);
        self.alarms.insert((at, Alarm::Again(node, number)));
    }

    fn on_alarm(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Link(node) => self.look_at(node),
            Alarm::Again(node, number) => {
                let Some(link) = self.links.get_mut(&node) else { return };
                if link.calls.get(&number).is_some_and(|call| !call.sent) {
                    link.waiting.insert(number);
                    self.dirty.insert(node);
                }
            }
        }
    }

    /// Fails the calls that are late. All calls to a node wait equally long, so that the first ones are late first.
    fn fail_late(&mut self, node: NodeId) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&node) else { return };
        let late: Vec<u64> = link
            .calls
            .iter()
            .filter_map(|(&number, call)| Some((number, call.deadline?)))
            .take_while(|(_, deadline)| *deadline <= now)
            .map(|(number, _)| number)
            .collect();
        for number in late {
            let put_off = link.calls[&number].put_off_by().filter(|_| link.conn().is_some());
            let cause = match put_off {
                None => link.cause(),
                Some(why) => format!("{}: {}", link.address().text, why_put_off(why)),
            };
            link.fail(number, CallError::Timeout { node, cause });
        }
    }

    /// The link's time has come: goes on after a back-off, ends a connection that leads nowhere, keeps the session alive.
    fn look_at(&mut self, node: NodeId) {
        self.link(node).alarm = None;
        self.fail_late(node);
        let now = self.now;
        match self.link(node).state {
            State::Idle | State::Closing { .. } => {}
            State::BackOff { until } if until <= now => self.connect(node),
            State::Connecting { conn, until } if until <= now => {
                self.give_up(node, conn, "no answer to the handshake");
            }
            State::BackOff { until } | State::Connecting { until, .. } => self.arm(node, until),
            State::Open { conn, .. } | State::Claiming { conn, .. } => self.check_life(node, conn),
        }
        if let Some(deadline) = self.link(node).deadline() {
            self.arm(node, deadline);
        }
    }

    /// Asks a silent node whether it lives, gives up one that does not, and keeps an idle session's lease.
    fn check_life(&mut self, node: NodeId, conn: Conn) {
        let (now, keep_ms) = (self.now, (self.options.lease_ms / 4).max(1));
        let is_client = self.is_client();
        let link = self.link(node);
        let pings = link.has(Purpose::Ping);
        let (wants_ping, next) = if link.is_asked_something() {
            let quiet_ms = now.ms_since(link.quiet_since);
            if quiet_ms >= SILENCE_MS {
                return self.give_up(node, conn, "silent for too long");
            }
            let probe = quiet_ms >= PROBE_MS;
            let next_ms = if probe { SILENCE_MS } else { PROBE_MS };
            (probe, link.quiet_since.after_ms(next_ms))
        } else if is_client {
            let idle_ms = now.ms_since(link.last_sent);
            (idle_ms >= keep_ms, link.last_sent.after_ms(keep_ms).max(now.after_ms(PROBE_MS)))
        } else {
            return;
        };
        if wants_ping && !pings {
            let number = self.next_number();
            self.link(node).add_own(number, Purpose::Ping, &Request::Ping);
            self.dirty.insert(node);
        }
        self.arm(node, next);
    }

    fn give_up(&mut self, node: NodeId, conn: Conn, cause: &str) {
        let link = self.link(node);
        link.given_up(format!("{}: {cause}", link.address().text));
        link.state = State::Closing { conn };
        self.transport.close(conn);
    }

    fn connect(&mut self, node: NodeId) {
        let link = self.link(node);
        let (generation, known) = (link.generation, link.known);
        let address = link.address().clone();
        let hello = self.hello(Some(node), generation, known, self.options.map);
        let conn = self.transport.connect(&address, hello);
        self.conns.insert(conn, node);
        let until = self.now.after_ms(CONNECT_MS);
        self.link(node).state = State::Connecting { conn, until };
        self.arm(node, until);
    }

    fn hello(
        &self,
        node: Option<NodeId>,
        generation: u64,
        resume: bool,
        map: Option<MapStamp>,
    ) -> Hello {
        let peer = match self.me {
            Me::Client { endpoint, session_seed } => {
                Peer::Client { session: session(session_seed, generation), endpoint }
            }
            Me::Node { node, endpoint } => Peer::Node { node, endpoint },
        };
        Hello { cluster: self.options.cluster, node, peer, resume, map }
    }

    /// The link is looked at no later than `at`.
    fn arm(&mut self, node: NodeId, at: Instant) {
        let link = self.link(node);
        let armed = link.alarm;
        if armed.is_some_and(|armed| armed <= at) {
            return;
        }
        link.alarm = Some(at);
        if let Some(armed) = armed {
            self.alarms.remove(&(armed, Alarm::Link(node)));
        }
        self.alarms.insert((at, Alarm::Link(node)));
    }

    fn link(&mut self, node: NodeId) -> &mut Link {
        let endpoint = match self.me {
            Me::Client { endpoint, .. } | Me::Node { endpoint, .. } => endpoint,
        };
        self.links.entry(node).or_insert_with(|| Link::new(node, endpoint))
    }

    const fn is_client(&self) -> bool {
        matches!(self.me, Me::Client { .. })
    }

    const fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }
}

/// Claims in parts that fit into a request each; one part at least. Who claims an inode's opens more than once says the same.
fn split(claims: Vec<Claim>) -> Vec<Vec<Claim>> {
    let (mut parts, mut len) = (vec![Vec::new()], 0);
    for Claim { ino, opens, locks } in claims {
        let mut pieces: Vec<_> = locks.chunks(CLAIM_LOCKS_MAX).map(<[_]>::to_vec).collect();
        if pieces.is_empty() {
            pieces.push(Vec::new());
        }
        for locks in pieces {
            let claim = Claim { ino, opens, locks };
            let more = encode(&claim).len();
            let part = parts.last_mut().expect("there is one at least");
            let full = part.len() == limits::CLAIMS_MAX || len + more > CLAIMS_LEN_MAX;
            if full && !part.is_empty() {
                parts.push(vec![claim]);
                len = more;
            } else {
                part.push(claim);
                len += more;
            }
        }
    }
    parts
}

const fn why_put_off(why: Status) -> &'static str {
    match why {
        Status::StaleMap => {
            "it does not hold the shard; `sealfs status` shows which map the nodes have"
        }
        _ => "busy all the time",
    }
}

/// The session of the given generation, the same on every thread of the process; never 0.
const fn session(seed: u64, generation: u64) -> SessionId {
    let id = mix(seed ^ mix(generation));
    SessionId(if id == 0 { 1 } else { id })
}

/// Bytes of claims in one request.
const CLAIMS_LEN_MAX: usize = limits::BODY_LEN_MAX as usize / 2;
/// Locks of one inode in one claim: about 40 bytes each, so that one claim is shorter than a request's.
const CLAIM_LOCKS_MAX: usize = 4_096;
/// Events taken in one turn: a flood from peers cannot keep the owner from its other work.
const EVENTS_MAX: usize = 1_024;
/// First pause before a reconnect; doubles up to the next. A restarted node is found again within a second.
const BACK_OFF_MS: u64 = 20;
const BACK_OFF_MS_MAX: u64 = 1_000;
/// First pause after `Busy`, doubling up to the next: a held key is free after a transaction's few round trips.
const BUSY_US: u64 = 200;
const BUSY_US_MAX: u64 = 50_000;
/// A node that owes answers and says nothing for so long is asked whether it lives.
const PROBE_MS: u64 = 5_000;
/// A node that owes answers and says nothing for so long is connected to anew.
const SILENCE_MS: u64 = 15_000;
/// A handshake takes two round trips; so long only if the node is stopped or the network is gone.
const CONNECT_MS: u64 = 10_000;

const _: () = assert!(PROBE_MS < SILENCE_MS && CONNECT_MS < limits::TIMEOUT_MS);

#[cfg(test)]
mod tests {
    use sealfs_proto::{Ino, Lock, LockKind, LockOwner, LockSpace};

    use super::*;

    #[test]
    fn claims_of_any_number_of_locks_fit_into_requests() {
        let (space, kind) = (LockSpace::Posix, LockKind::Write);
        let lock = |at| Lock { space, kind, start: at, end: at, owner: LockOwner(1), pid: 1 };
        let many: Vec<Lock> = (0..20_000).map(|at| lock(2 * at)).collect();
        let few = |ino| Claim { ino: Ino(ino), opens: 1, locks: vec![lock(0)] };
        let mut claims: Vec<Claim> = (0..5_000).map(few).collect();
        claims.push(Claim { ino: Ino(9_000), opens: 2, locks: many });
        let parts = split(claims);
        for claims in &parts {
            let request = Request::Claim { claims: claims.clone(), last: true };
            assert!(encode(&request).len() <= limits::BODY_LEN_MAX as usize);
            assert!(claims.len() <= limits::CLAIMS_MAX && !claims.is_empty());
        }
        let locks: usize = parts.iter().flatten().map(|claim| claim.locks.len()).sum();
        assert_eq!(locks, 25_000);
        assert!(
            parts
                .iter()
                .flatten()
                .all(|claim| claim.opens == if claim.ino.0 < 5_000 { 1 } else { 2 })
        );
        assert_eq!(split(Vec::new()), [Vec::new()], "the last one is sent, if only to say so");
    }
}
