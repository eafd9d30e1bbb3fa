//! The hosts, their links, and what the devices do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sealfs_ring::Pool;
use sealfs_transport::Random;

use super::Kind;
use crate::verbs::memlock::Lockable;
use crate::verbs::{
    Access, Failure, Fault, Happening, Limits, Link, Loan, MESSAGE_LEN, Remote, WINDOW, Work,
};

/// Small, so that tests meet them.
pub(super) const LIMITS: Limits = Limits { depth: 16, pieces: 2 };
/// Memory that a host can register unless it is told otherwise, bytes.
const REGISTERED_MAX: u64 = 256 << 20;
/// Works that are done and need not be told yet: the device tells only of some.
const UNTOLD_MAX: usize = 6;
/// Times that a device tries a receiver that is not ready.
const READY_TRIES: u32 = 7;

pub(super) struct Fabric {
    random: Random,
    steps: u64,
    hosts: Vec<HostState>,
    links: BTreeMap<Link, End>,
    next_link: u32,
    next_port: u16,
    listening: BTreeMap<SocketAddr, Listener>,
    /// Hosts that do not reach each other, the lower one first.
    cuts: BTreeSet<(usize, usize)>,
}

#[derive(Default)]
struct HostState {
    happenings: VecDeque<Happening>,
    registered: Vec<Registration>,
    /// How much of it there may be.
    lockable: Lockable,
    /// Free receive buffers, and how many there are.
    buffers: usize,
    buffers_all: usize,
    /// Links that may receive.
    receiving: usize,
    not_ready: u64,
    faults: Vec<(Kind, Fault)>,
    silent: bool,
}

struct Registration {
    /// Keeps the memory.
    _pool: Pool,
    start: usize,
    len: usize,
    access: Access,
    remote_key: u32,
}

struct Listener {
    hosts: Vec<usize>,
    turn: usize,
}

/// One end of a connection.
struct End {
    host: usize,
    /// Where it is to connect to.
    target: SocketAddr,
    peer: Option<Link>,
    began: bool,
    connected: bool,
    failed: bool,
    private: Vec<u8>,
    queue: VecDeque<Posted>,
    loans: BTreeMap<u64, (Loan, u32)>,
}

struct Posted {
    work: Work,
    /// The step in which a read ends.
    ends_in: Option<u64>,
    tries: u32,
    result: Option<Result<(), Fault>>,
}

pub(super) fn address_of(host: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host as u8 + 1)), 0)
}

impl Fabric {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            steps: 0,
            hosts: Vec::new(),
            links: BTreeMap::new(),
            next_link: 1,
            next_port: 7_000,
            listening: BTreeMap::new(),
            cuts: BTreeSet::new(),
        }
    }

    pub(super) fn add_host(&mut self) -> usize {
        let lockable = Lockable(Some(REGISTERED_MAX));
        self.hosts.push(HostState { silent: true, lockable, ..HostState::default() });
        self.hosts.len() - 1
    }

    pub(super) fn start(&mut self, host: usize) {
        assert!(self.hosts[host].silent, "the process before it is gone");
        let lockable = self.hosts[host].lockable;
        self.hosts[host] = HostState { lockable, ..HostState::default() };
    }

    pub(super) fn cut(&mut self, one: usize, other: usize) {
        self.cuts.insert((one.min(other), one.max(other)));
    }

    pub(super) fn heal(&mut self, one: usize, other: usize) {
        self.cuts.remove(&(one.min(other), one.max(other)));
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    pub(super) fn has_news(&self) -> bool {
        self.hosts.iter().any(|host| !host.silent && !host.happenings.is_empty())
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.links.values().any(|end| {
            !end.queue.is_empty() && !self.hosts[end.host].silent && self.is_out_of_reach(end)
        })
    }

    pub(super) fn remove_host(&mut self, host: usize) {
        self.listening.retain(|_, listener| {
            listener.hosts.retain(|&listening| listening != host);
            !listener.hosts.is_empty()
        });
        let links: Vec<Link> =
            self.links.iter().filter(|(_, end)| end.host == host).map(|(&link, _)| link).collect();
        for link in links {
            drop(self.destroy(link));
        }
        self.hosts[host].happenings.clear();
        self.hosts[host].silent = true;
    }

    pub(super) fn fail_next(&mut self, host: usize, kind: Kind, fault: Fault) {
        self.hosts[host].faults.push((kind, fault));
    }

    pub(super) fn limit_memory(&mut self, host: usize, bytes: u64) {
        self.hosts[host].lockable = Lockable(Some(bytes));
    }

    pub(super) fn silence(&mut self, host: usize) {
        self.hosts[host].silent = true;
    }

    pub(super) fn buffers(&self, host: usize) -> (usize, u64) {
        (self.hosts[host].buffers, self.hosts[host].not_ready)
    }

    // ---- connections ----

    pub(super) fn listen(
        &mut self,
        host: usize,
        mut address: SocketAddr,
        share: bool,
    ) -> Result<SocketAddr, Failure> {
        if address.port() == 0 {
            address.set_port(self.next_port);
            self.next_port += 1;
        }
        let listener =
            self.listening.entry(address).or_insert(Listener { hosts: Vec::new(), turn: 0 });
        if !share && !listener.hosts.is_empty() {
            return Err(Failure(format!("cannot listen on {address}: it is in use")));
        }
        listener.hosts.push(host);
        Ok(address)
    }

    fn add_link(&mut self, host: usize, target: SocketAddr, began: bool) -> Link {
        let link = Link(self.next_link);
        self.next_link += 1;
        let end = End {
            host,
            target,
            peer: None,
            began,
            connected: false,
            failed: false,
            private: Vec::new(),
            queue: VecDeque::new(),
            loans: BTreeMap::new(),
        };
        self.links.insert(link, end);
        link
    }

    fn tell(&mut self, host: usize, happening: Happening) {
        if !self.hosts[host].silent {
            self.hosts[host].happenings.push_back(happening);
        }
    }

    pub(super) fn resolve(&mut self, host: usize, target: SocketAddr) -> Link {
        let link = self.add_link(host, target, true);
        self.tell(host, Happening::Resolved { link });
        link
    }

    pub(super) fn connect(&mut self, host: usize, link: Link, private: &[u8]) {
        let target = self.links[&link].target;
        let listener = self.listening.get_mut(&target).map(|listener| {
            listener.turn += 1;
            listener.hosts[listener.turn % listener.hosts.len()]
        });
        let Some(listener) = listener else {
            return self.tell(host, Happening::Lost { link, why: "connection refused".into() });
        };
        if self.hosts[listener].silent || !self.reaches(host, listener) {
            return self.tell(host, Happening::Lost { link, why: "no answer".into() });
        }
        self.add_window(host);
        let mut peer = address_of(host);
        peer.set_port(40_000);
        let accepted = self.add_link(listener, peer, false);
        self.links.get_mut(&accepted).expect("just added").peer = Some(link);
        let end = self.links.get_mut(&link).expect("it is there");
        (end.peer, end.connected) = (Some(accepted), true);
        let mut private = private.to_vec();
        private.resize(private.len() + 40, 0);
        self.tell(listener, Happening::Incoming { link: accepted, peer, private });
    }

    pub(super) fn accept(&mut self, link: Link, private: &[u8]) {
        let end = self.links.get_mut(&link).expect("an incoming link");
        end.connected = true;
        end.private = private.to_vec();
        let (host, peer) = (end.host, end.peer.expect("an incoming link has a peer"));
        self.add_window(host);
        self.tell(host, Happening::Established { link, private: Vec::new() });
        if let Some(other) = self.links.get(&peer).map(|end| end.host) {
            if self.reaches(host, other) {
                self.tell(other, Happening::Established { link: peer, private: private.to_vec() });
            }
        } else {
            self.tell(host, Happening::Lost { link, why: "the peer is gone".into() });
        }
    }

    fn add_window(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.receiving += 1;
        let wanted = host.receiving * usize::from(WINDOW);
        if host.buffers_all < wanted {
            host.buffers += wanted - host.buffers_all;
            host.buffers_all = wanted;
        }
    }

    pub(super) fn destroy(&mut self, link: Link) -> Vec<(u64, Loan)> {
        let end = self.links.remove(&link).expect("a link is destroyed once");
        let host = &mut self.hosts[end.host];
        host.receiving -= usize::from(end.connected);
        let freed = &mut host.buffers;
        host.happenings.retain(|happening| {
            if matches!(happening, Happening::Received { link: of, .. } if *of == link) {
                *freed += 1;
            }
            happening.link() != link
        });
        let silent = host.silent;
        if let Some(peer) = end.peer
            && !silent
            && let Some(other) = self.links.get(&peer).map(|other| other.host)
            && self.reaches(end.host, other)
        {
            let why = if end.connected {
                "the peer has closed the connection"
            } else {
                "turned away by the peer"
            };
            self.tell(other, Happening::Lost { link: peer, why: why.into() });
        }
        end.loans.into_iter().map(|(token, (loan, _))| (token, loan)).collect()
    }

    pub(super) fn poll(&mut self, host: usize) -> Option<Happening> {
        let host = &mut self.hosts[host];
        let happening = host.happenings.pop_front()?;
        host.buffers += usize::from(matches!(happening, Happening::Received { .. }));
        Some(happening)
    }

    // ---- memory ----

    pub(super) fn register(
        &mut self,
        host: usize,
        pool: &Pool,
        access: Access,
    ) -> Result<(), Failure> {
        let (start, len) = pool.arena();
        let remote_key = self.random.next() as u32;
        let HostState { registered, lockable, .. } = &mut self.hosts[host];
        lockable.check(len, registered.iter().map(|known| known.len).sum())?;
        let start = start as usize;
        registered.push(Registration { _pool: pool.clone(), start, len, access, remote_key });
        Ok(())
    }

    /// The key to registered memory.
    pub(super) fn key(&self, host: usize, bytes: &[u8], access: Access) -> Option<u32> {
        let (start, len) = (bytes.as_ptr() as usize, bytes.len());
        let covers = |known: &&Registration| {
            known.start <= start
                && start + len <= known.start + known.len
                && (access == Access::Local || known.access == Access::Remote)
        };
        self.hosts[host].registered.iter().find(covers).map(|known| known.remote_key)
    }

    pub(super) fn lend(&mut self, link: Link, token: u64, loan: Loan) -> Result<Remote, Loan> {
        let end = &self.links[&link];
        assert!(end.began, "memory is lent over links that this end has begun");
        let Some(key) = self.key(end.host, bytes_of(&loan), Access::Remote) else {
            return Err(loan);
        };
        let address = bytes_of(&loan).as_ptr() as u64;
        let end = self.links.get_mut(&link).expect("it is there");
        let known = end.loans.insert(token, (loan, key));
        assert!(known.is_none(), "a token names one loan at a time");
        Ok(Remote { address, key })
    }

    pub(super) fn reclaim(&mut self, link: Link, token: u64) -> Option<Loan> {
        let end = self.links.get_mut(&link)?;
        end.loans.remove(&token).map(|(loan, _)| loan)
    }

    // ---- work ----

    pub(super) fn room(&self, link: Link) -> usize {
        LIMITS.depth - self.links[&link].queue.len()
    }

    pub(super) fn post(&mut self, link: Link, chain: Vec<Work>) {
        assert!(chain.len() <= self.room(link), "posted within the limits");
        let host = self.links[&link].host;
        for work in &chain {
            let local = |bytes: &[u8]| self.key(host, bytes, Access::Local).is_some();
            let fine = match work {
                Work::Send { bytes, .. } => bytes.len() <= MESSAGE_LEN,
                Work::Read { target, len, .. } => target.len() >= *len && local(target.bytes()),
                Work::Write { source, .. } => {
                    source.len() <= LIMITS.pieces && source.iter().all(|slice| local(slice.bytes()))
                }
                Work::Probe => true,
            };
            assert!(fine, "{} is within the limits and in registered memory", work.name());
        }
        let end = self.links.get_mut(&link).expect("it is there");
        assert!(end.connected, "work is posted to a connected link");
        let posted =
            chain.into_iter().map(|work| Posted { work, ends_in: None, tries: 0, result: None });
        end.queue.extend(posted);
    }

    pub(super) fn expire(&mut self) {
        let links: Vec<Link> = self.links.keys().copied().collect();
        for link in links {
            let end = &self.links[&link];
            let dead = self.is_out_of_reach(end);
            let waiting = end.queue.iter().position(|posted| posted.result.is_none());
            if let (true, false, Some(at)) = (dead, self.hosts[end.host].silent, waiting) {
                self.conclude(link, at, Err(Fault::NoAcknowledgement));
                self.report(link);
            }
        }
    }

    /// Whether no work gets through to the peer of this end.
    fn is_out_of_reach(&self, end: &End) -> bool {
        let peer = end.peer.and_then(|peer| self.links.get(&peer));
        peer.is_none_or(|peer| self.hosts[peer.host].silent || !self.reaches(end.host, peer.host))
    }

    /// Some rounds, each on a link of chance.
    pub(super) fn step(&mut self) -> bool {
        let mut moved = false;
        self.steps += 1;
        for _ in 0..64 {
            let busy: Vec<Link> = self
                .links
                .iter()
                .filter(|(_, end)| !end.queue.is_empty() && !self.hosts[end.host].silent)
                .map(|(&link, _)| link)
                .collect();
            if busy.is_empty() {
                break;
            }
            let link = busy[self.random.below(busy.len() as u64) as usize];
            moved |= self.work(link);
            self.report(link);
        }
        moved
    }

    /// Does work of one link in order; a read may take longer than what is posted behind it.
    fn work(&mut self, link: Link) -> bool {
        let (mut moved, mut reading) = (false, false);
        let count = 1 + self.random.below(8) as usize;
        for at in 0..self.links[&link].queue.len() {
            let end = &self.links[&link];
            let posted = &end.queue[at];
            if posted.result.is_some() {
                continue;
            }
            if at > count {
                break;
            }
            if end.failed {
                self.conclude(link, at, Err(Fault::Flushed));
                moved = true;
                continue;
            }
            let is_fenced = matches!(posted.work, Work::Send { fenced: true, .. });
            if matches!(posted.work, Work::Read { .. }) && (reading || !self.is_read(link, at)) {
                reading = true;
                continue;
            }
            if is_fenced && reading {
                break;
            }
            let Some(result) = self.execute(link, at) else { break };
            self.conclude(link, at, result);
            moved = true;
        }
        moved
    }

    /// Whether the bytes of a read are there; it takes up to three steps.
    fn is_read(&mut self, link: Link, at: usize) -> bool {
        let (now, takes) = (self.steps, self.random.below(4));
        let end = self.links.get_mut(&link).expect("it is there");
        *end.queue[at].ends_in.get_or_insert(now + takes) <= now
    }

    /// What comes of one piece of work; `None`: not yet.
    fn execute(&mut self, link: Link, at: usize) -> Option<Result<(), Fault>> {
        let end = self.links.get_mut(&link)?;
        let kind = kind_of(&end.queue[at].work);
        let faults = &mut self.hosts[end.host].faults;
        if let Some(index) = faults.iter().position(|(failing, _)| *failing == kind) {
            return Some(Err(faults.remove(index).1));
        }
        let peer = end.peer.filter(|_| !self.is_out_of_reach(&self.links[&link]))?;
        // Taken out, so that both ends can be held at once.
        let end = self.links.get_mut(&link)?;
        let mut work = std::mem::replace(&mut end.queue[at].work, Work::Probe);
        end.queue[at].tries += 1;
        let tries = end.queue[at].tries;
        let result = self.transfer(peer, &mut work, tries);
        self.links.get_mut(&link)?.queue[at].work = work;
        result
    }

    fn transfer(&mut self, peer: Link, work: &mut Work, tries: u32) -> Option<Result<(), Fault>> {
        let other = self.links.get_mut(&peer)?;
        if !other.connected {
            return None;
        }
        let host = &mut self.hosts[other.host];
        Some(match work {
            Work::Send { .. } if host.buffers == 0 => {
                host.not_ready += 1;
                if tries < READY_TRIES {
                    return None;
                }
                Err(Fault::ReceiverNotReady)
            }
            Work::Send { bytes, .. } => {
                host.buffers -= 1;
                host.happenings.push_back(Happening::Received { link: peer, bytes: bytes.clone() });
                Ok(())
            }
            Work::Read { target, len, source } => match other.reach(*source, *len) {
                Some((Loan::Offer(slice), from)) => {
                    target.bytes_mut()[..*len].copy_from_slice(&slice.bytes()[from..from + *len]);
                    Ok(())
                }
                _ => Err(Fault::RemoteAccess),
            },
            Work::Write { source, target } => {
                let len = source.iter().map(sealfs_transport::Slice::len).sum();
                match other.reach(*target, len) {
                    Some((Loan::Room(region), mut at)) => {
                        for slice in source {
                            region.bytes_mut()[at..at + slice.len()].copy_from_slice(slice.bytes());
                            at += slice.len();
                        }
                        Ok(())
                    }
                    _ => Err(Fault::RemoteAccess),
                }
            }
            Work::Probe if !other.began => Err(Fault::RemoteAccess),
            Work::Probe => Ok(()),
        })
    }

    fn conclude(&mut self, link: Link, at: usize, result: Result<(), Fault>) {
        let Some(end) = self.links.get_mut(&link) else { return };
        end.failed |= result.is_err();
        end.queue[at].result = Some(result);
    }

    /// Tells of what is over, in order; of messages that need not be told only together with something else.
    fn report(&mut self, link: Link) {
        let end = &self.links[&link];
        let over = end.queue.iter().take_while(|posted| posted.result.is_some()).count();
        let told = end.queue.iter().take(over).rposition(|posted| {
            let quiet = matches!(posted.work, Work::Send { told: false, .. });
            !quiet || posted.result != Some(Ok(()))
        });
        let count = if over > UNTOLD_MAX { over } else { told.map_or(0, |last| last + 1) };
        let host = end.host;
        for _ in 0..count {
            let end = self.links.get_mut(&link).expect("it is there");
            let Posted { work, result, .. } = end.queue.pop_front().expect("it was counted");
            let result = result.expect("it is over");
            self.tell(host, Happening::Done { link, work, result });
        }
    }
}

impl End {
    /// The loan that a peer's address, key and length lie in, and where in it.
    fn reach(&mut self, remote: Remote, len: usize) -> Option<(&mut Loan, usize)> {
        if !self.began {
            return None;
        }
        self.loans.values_mut().find_map(|(loan, key)| {
            let start = bytes_of(loan).as_ptr() as u64;
            let from = usize::try_from(remote.address.checked_sub(start)?).ok()?;
            let inside = from + len <= bytes_of(loan).len() && *key == remote.key;
            inside.then_some((loan, from))
        })
    }
}

fn bytes_of(loan: &Loan) -> &[u8] {
    match loan {
        Loan::Room(region) => region.bytes(),
        Loan::Offer(slice) => slice.bytes(),
    }
}

const fn kind_of(work: &Work) -> Kind {
    match work {
        Work::Send { .. } => Kind::Send,
        Work::Read { .. } => Kind::Read,
        Work::Write { .. } => Kind::Write,
        Work::Probe => Kind::Probe,
    }
}
