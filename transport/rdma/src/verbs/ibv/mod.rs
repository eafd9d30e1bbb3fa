//! Verbs of real devices, by libibverbs and librdmacm, which are loaded when the program starts, if they are installed.
//!
//! The endpoints of a process share each device's protection domain with the registered arena (`domain`), opened when the
//! first route goes through it, and have completion queue, shared receive queue and queue pairs of their own. A listener
//! serves several endpoints, for a port can be bound once: it hands incoming ids to them in turn, and they move them to
//! their own event channels.
//!
//! `unsafe` is in `domain`, `device`, `queue`, `cm` and `sys`; this file decides who owns what and when.
//!
//! 1. A link's queue pair is destroyed before its memory is given back or dropped, and before its number means nothing.
//! 2. Completions are fetched until there are none directly after a queue pair was destroyed and before another one is
//!    made, so that none of its completions is ever taken for another's.
//! 3. All pools are registered with all open devices.
//!
//! iWARP is not served: there, the target of an RDMA READ must be open to the peer, which a node's memory never is.
//!
//! A device may keep a receive buffer that it took for a queue pair which failed in that moment (InfiniBand
//! Specification, "last WQE reached"); each receive queue has some to spare.

mod choice;
mod cm;
mod device;
mod domain;
mod listen;
mod queue;
mod sys;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rdma_sys::{ibv_wc_status, rdma_cm_event_type};
use sealfs_ring::{File, Pool, Wake};
use sealfs_transport::{Arena, Region};

use cm::{Channel, CmEvent, Id};
use device::{Completion, Device};
use domain::Event;
use listen::{Handed, Inbox, Listener};
use queue::{QueuePair, Reads};

use super::{
    Access, Facts, Failure, Fault, Happening, Limits, Link, Loan, MESSAGE_LEN, Remote, Verbs,
    WINDOW, Work,
};
use crate::Libraries;

/// The MTU that a device's port uses, and the largest that it could use, bytes of payload. `None`: it cannot be asked.
#[must_use]
pub fn port_mtu(device: &str, port: u8) -> Option<(u32, u32)> {
    domain::port_mtu(device, port)
}

/// What the libraries of this machine can do. Opens no device.
#[must_use]
pub fn libraries() -> Libraries {
    let devices = domain::names();
    let without =
        |error: Option<Failure>, text: &str| error.is_some_and(|Failure(why)| why == text);
    let verbs = without(devices.clone().err(), domain::NOT_INSTALLED).then_some("libibverbs.so.1");
    let manager = without(Channel::new().err(), cm::NOT_INSTALLED).then_some("librdmacm.so.1");
    let devices = devices.unwrap_or_default().into_iter().map(|(name, _)| name).collect();
    Libraries { missing: verbs.into_iter().chain(manager).collect(), devices }
}

/// Bytes that messages of so many connections occupy on one device at most: windows both ways, in whole blocks.
#[must_use]
pub const fn message_memory(connections: usize) -> usize {
    let messages = connections * 2 * WINDOW as usize + SPARE;
    messages.div_ceil(BLOCK) * BLOCK * MESSAGE_LEN
}

/// The provider. Dropped, it ends its connections; peers are told.
pub struct Ibv {
    // Dropped in this order: queue pairs before devices, ids before the channel.
    links: HashMap<Link, State>,
    listeners: Vec<Listener>,
    devices: Vec<Option<Open>>,
    /// Memory that is, or will be, registered with all devices.
    pools: Vec<(Pool, Access)>,
    ready: VecDeque<Happening>,
    by_id: HashMap<usize, Link>,
    inbox: Arc<Inbox>,
    wake: Wake,
    descriptors: Vec<(u64, File)>,
    next_link: u32,
    next_number: u64,
    /// The device to use, if it was named.
    wanted: Option<String>,
    /// Whether there may be events of the connection manager.
    told: bool,
    scratch: Vec<Completion>,
    channel: Arc<Channel>,
}

/// A link.
struct State {
    queue_pair: Option<QueuePair>,
    id: Id,
    loans: BTreeMap<u64, Loan>,
    /// Index of its device, once that is known.
    device: Option<usize>,
    began: bool,
    connected: bool,
    timeout_ms: i32,
    reads: Reads,
}

/// An open device.
struct Open {
    device: Rc<RefCell<Device>>,
    queue_pairs: HashMap<u32, Link>,
    /// Memory for messages, both ways.
    messages: Vec<Pool>,
    /// Numbers of its descriptors: completions, events.
    numbers: [u64; 2],
    /// Bound to the device, so that its removal is told even while there are no links.
    watch: Option<Id>,
    /// Whether there may be events of the device.
    told: bool,
    /// It has gone; closed with its last link.
    gone: bool,
}

/// The connection manager's descriptor.
const CHANNEL: u64 = 0;
/// Connections of one thread over one device, if its shared receive queue has room for their windows, 32 buffers each.
const LINKS_MAX: usize = 1_024;
/// Messages whose memory is made at once.
const BLOCK: usize = 512;
/// Receive buffers beyond the windows, see above.
const SPARE: usize = 64;
/// IB_CM_REJ_INVALID_SERVICE_ID: nobody listens there.
const REJECTED_NO_LISTENER: i32 = 8;

impl Ibv {
    /// A provider that uses `device` (`None`: whichever a route goes through), and is woken by `wake` when another thread
    /// has something for it. Fails, with what to do, if there is no RDMA here.
    pub fn new(device: Option<&str>, wake: Wake) -> Result<Self, Failure> {
        let only = choice::choose(&domain::names()?, device)?;
        let channel = Arc::new(Channel::new()?);
        let file = channel.file().map_err(|error| Failure(sys::cause(&error)))?;
        let mut new = Self {
            links: HashMap::new(),
            listeners: Vec::new(),
            devices: Vec::new(),
            pools: Vec::new(),
            ready: VecDeque::new(),
            by_id: HashMap::new(),
            inbox: Arc::new(Inbox::new(wake.clone())),
            wake,
            descriptors: vec![(CHANNEL, file)],
            next_link: 1,
            next_number: CHANNEL + 1,
            wanted: device.map(str::to_owned),
            told: true,
            scratch: Vec::new(),
            channel,
        };
        if let Some(only) = only {
            // At once, so that what is wrong with it is told at the start.
            new.device(&only)?;
        }
        Ok(new)
    }

    // ---- devices ----

    /// The index of an open device; opens it.
    fn device(&mut self, name: &str) -> Result<usize, Failure> {
        if let Some(wanted) = &self.wanted
            && wanted != name
        {
            return Err(Failure(format!(
                "the route goes through device {name}, but {wanted} is to be used (--rdma-device)"
            )));
        }
        let known = self.devices.iter().position(|open| {
            open.as_ref().is_some_and(|open| !open.gone && open.device.borrow().name == name)
        });
        if let Some(index) = known {
            return Ok(index);
        }
        let mut device =
            Device::open(name, LINKS_MAX * usize::from(WINDOW) + SPARE, self.wake.clone())?;
        for (pool, access) in &self.pools {
            device.register(pool, *access)?;
        }
        let numbers = [self.next_number, self.next_number + 1];
        self.next_number += 2;
        let files = device.descriptors().map_err(|error| Failure(sys::cause(&error)))?;
        self.descriptors.extend(numbers.into_iter().zip(files));
        self.devices.push(Some(Open {
            device: Rc::new(RefCell::new(device)),
            queue_pairs: HashMap::new(),
            messages: Vec::new(),
            numbers,
            watch: None,
            told: true,
            gone: false,
        }));
        Ok(self.devices.len() - 1)
    }

    /// Makes a queue pair for a link, with buffers for its messages.
    fn add_queue_pair(&mut self, link: Link) -> Result<(), Failure> {
        let state = self.links.get_mut(&link).expect("a link is set up before it is destroyed");
        let name = state.id.device().ok_or_else(|| Failure("its device has gone".into()))?;
        let index = self.device(&name)?;
        let open = self.devices[index].as_mut().expect("it is open");
        open.add_window()?;
        if open.watch.is_none() {
            open.watch = self.links[&link].id.beside(&self.channel);
        }
        let state = self.links.get_mut(&link).expect("it is there");
        let queue_pair = QueuePair::new(&open.device, link, &state.id, state.began)?;
        open.queue_pairs.insert(queue_pair.number(), link);
        state.queue_pair = Some(queue_pair);
        state.device = Some(index);
        Ok(())
    }

    /// Fetches completions; whether there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.devices.len() {
            let Some(open) = &self.devices[index] else { continue };
            let mut fetched = std::mem::take(&mut self.scratch);
            any |= open.device.borrow_mut().completions(&mut fetched);
            for completion in fetched.drain(..) {
                self.on_completion(index, completion);
            }
            self.scratch = fetched;
        }
        any
    }

    fn on_completion(&mut self, index: usize, completion: Completion) {
        let Completion { id, status, queue_pair, len } = completion;
        let (link, number) = (Link((id >> 32) as u32), id as u32);
        if link == Link(0) {
            let open = self.devices[index].as_ref().expect("it is open");
            let taken = open.device.borrow_mut().take_message(number as usize, len);
            let link = open.queue_pairs.get(&queue_pair).copied();
            match (taken, link) {
                (Ok(bytes), Some(link)) if status == ibv_wc_status::IBV_WC_SUCCESS => {
                    self.ready.push_back(Happening::Received { link, bytes });
                }
                (Ok(_), _) => {}
                (Err(Failure(why)), _) => self.lose_device(index, &why),
            }
            return;
        }
        let Some(queue_pair) =
            self.links.get_mut(&link).and_then(|state| state.queue_pair.as_mut())
        else {
            return; // of a link that is being destroyed
        };
        let mut over = queue_pair.complete(number).into_iter().peekable();
        while let Some(work) = over.next() {
            let failed = over.peek().is_none() && status != ibv_wc_status::IBV_WC_SUCCESS;
            let result = if failed { Err(fault(status)) } else { Ok(()) };
            self.ready.push_back(Happening::Done { link, work, result });
        }
    }

    /// Takes the events of devices.
    fn take_device_events(&mut self) {
        for index in 0..self.devices.len() {
            if let Some(open) = &mut self.devices[index]
                && std::mem::take(&mut open.told)
            {
                open.device.borrow().take_events();
            }
            while let Some(open) = &self.devices[index] {
                let event = open.device.borrow().event();
                match event {
                    None => break,
                    Some(Event::QueuePair(number, kind)) => {
                        if let Some(&link) = open.queue_pairs.get(&number) {
                            let name = &open.device.borrow().name;
                            let why = format!(
                                "device {name}: the queue pair has failed (event {kind}): the peer has asked for what it may \
                                 not, or the device is at fault"
                            );
                            self.ready.push_back(Happening::Lost { link, why });
                        }
                    }
                    Some(Event::Fatal(kind)) => {
                        self.lose_device(index, &format!("the device has failed (event {kind})"));
                    }
                    Some(Event::Other(kind)) => {
                        let name = &open.device.borrow().name;
                        tracing::debug!(device = name, kind, "an event of the device");
                    }
                }
            }
        }
    }

    /// Nothing works any more on a device: its links are lost; it is closed when they are destroyed.
    fn lose_device(&mut self, index: usize, why: &str) {
        let Some(open) = self.devices[index].as_mut().filter(|open| !open.gone) else { return };
        open.gone = true;
        open.watch = None;
        open.device.borrow().set_gone();
        let name = open.device.borrow().name.clone();
        tracing::error!(device = name, "{why}; its connections are lost");
        for link in open.queue_pairs.values() {
            let why = format!("device {name}: {why}");
            self.ready.push_back(Happening::Lost { link: *link, why });
        }
        self.close_if_unused(index);
    }

    fn close_if_unused(&mut self, index: usize) {
        let Some(open) = &self.devices[index] else { return };
        if open.gone && open.queue_pairs.is_empty() {
            self.descriptors.retain(|(number, _)| !open.numbers.contains(number));
            self.devices[index] = None;
        }
    }

    // ---- the connection manager ----

    fn on_event(&mut self, event: CmEvent) {
        use rdma_cm_event_type as kinds;
        if event.kind == kinds::RDMA_CM_EVENT_CONNECT_REQUEST {
            return self.on_request(event);
        }
        if event.kind == kinds::RDMA_CM_EVENT_DEVICE_REMOVAL {
            return self.on_removal(event.key);
        }
        let Some(&link) = self.by_id.get(&event.key) else { return };
        let why = match event.kind {
            kinds::RDMA_CM_EVENT_ADDR_RESOLVED => {
                let state = &self.links[&link];
                match state.id.resolve_route(state.timeout_ms) {
                    Ok(()) => return,
                    Err(error) => format!("no route: {}", sys::cause(&error)),
                }
            }
            kinds::RDMA_CM_EVENT_ROUTE_RESOLVED => {
                return self.ready.push_back(Happening::Resolved { link });
            }
            kinds::RDMA_CM_EVENT_CONNECT_RESPONSE => match self.establish(link) {
                Ok(()) => {
                    let private = event.private;
                    return self.ready.push_back(Happening::Established { link, private });
                }
                Err(Failure(why)) => why,
            },
            kinds::RDMA_CM_EVENT_ESTABLISHED => {
                let private = event.private;
                return self.ready.push_back(Happening::Established { link, private });
            }
            kinds::RDMA_CM_EVENT_DISCONNECTED => "the peer has closed the connection".into(),
            kinds::RDMA_CM_EVENT_REJECTED if event.status == REJECTED_NO_LISTENER => {
                "connection refused".into()
            }
            kinds::RDMA_CM_EVENT_REJECTED => {
                format!("turned away by the peer (reason {})", event.status)
            }
            kinds::RDMA_CM_EVENT_UNREACHABLE => {
                format!("no answer (status {})", event.status)
            }
            kinds::RDMA_CM_EVENT_ADDR_ERROR => format!(
                "no RDMA device leads there: {}; is the address that of an interface with an RDMA device (`rdma link`, `ip \
                 route get`)?",
                of_status(event.status)
            ),
            kinds::RDMA_CM_EVENT_ROUTE_ERROR => format!("no route: {}", of_status(event.status)),
            kinds::RDMA_CM_EVENT_CONNECT_ERROR => {
                format!("the connection failed: {}", of_status(event.status))
            }
            _ => return,
        };
        self.ready.push_back(Happening::Lost { link, why });
    }

    /// The device of an id is being removed, which waits until everything on it is closed.
    fn on_removal(&mut self, key: usize) {
        let lost = self.listeners.iter_mut().find(|listener| listener.is(key));
        lost.into_iter().for_each(Listener::lose);
        let link = self.by_id.get(&key).copied();
        if let Some(link) = link {
            let why = "its device was removed".into();
            self.ready.push_back(Happening::Lost { link, why });
        }
        let of_link = link.and_then(|link| self.links[&link].device);
        let watched = |open: &Option<Open>| {
            let watch = open.as_ref().and_then(|open| open.watch.as_ref());
            watch.is_some_and(|watch| watch.key() == key)
        };
        if let Some(index) = of_link.or_else(|| self.devices.iter().position(watched)) {
            self.lose_device(index, "the device was removed");
        }
    }

    /// The connecting end: the peer has accepted.
    fn establish(&mut self, link: Link) -> Result<(), Failure> {
        let state = self.links.get_mut(&link).expect("it is there");
        let queue_pair = state.queue_pair.as_ref().expect("a link that connects has a queue pair");
        queue_pair.start(&state.id, state.reads)?;
        state.id.establish()?;
        state.connected = true;
        Ok(())
    }

    fn on_request(&mut self, event: CmEvent) {
        let listener = self.listeners.iter().find(|listener| listener.is(event.key));
        let (Some(listener), Some(id)) = (listener, event.incoming) else { return };
        let handed = Handed { id, private: event.private, reads: event.reads };
        if let Some(own) = listener.hand_on(handed, &self.inbox) {
            self.adopt(own);
        }
    }

    /// Takes an incoming id over.
    fn adopt(&mut self, handed: Handed) {
        let Handed { id, private, reads } = handed;
        let Some(peer) = id.peer() else { return };
        let link = self.add(State {
            queue_pair: None,
            id,
            loans: BTreeMap::new(),
            device: None,
            began: false,
            connected: false,
            timeout_ms: 0,
            reads,
        });
        self.ready.push_back(Happening::Incoming { link, peer, private });
    }

    fn add(&mut self, state: State) -> Link {
        let link = Link(self.next_link);
        self.next_link = self.next_link.checked_add(1).expect("fewer than 2^32 connections");
        self.by_id.insert(state.id.key(), link);
        self.links.insert(link, state);
        link
    }

    fn take_inbox(&mut self) {
        while let Some(mut handed) = self.inbox.take() {
            match handed.id.migrate(&self.channel) {
                Ok(()) => self.adopt(handed),
                Err(Failure(why)) => tracing::warn!("a connection came to nothing: {why}"),
            }
        }
    }

    fn state(&self, link: Link) -> &State {
        self.links.get(&link).expect("a link is used until it is destroyed")
    }

    fn queue_pair(&self, link: Link) -> &QueuePair {
        self.state(link).queue_pair.as_ref().expect("work needs a queue pair")
    }
}

impl Open {
    /// Has buffers and completions for one more link.
    fn add_window(&mut self) -> Result<(), Failure> {
        let links = self.queue_pairs.len() + 1;
        let wanted = links * usize::from(WINDOW) + SPARE;
        {
            let mut device = self.device.borrow_mut();
            if wanted > device.caps.buffers_max {
                return Err(Failure(format!(
                    "device {}: no room for another connection: its receive queue holds {} messages",
                    device.name, device.caps.buffers_max
                )));
            }
            device.grow_completions(wanted + links * queue::DEPTH)?;
        }
        while self.device.borrow().buffers() < wanted {
            let buffer = message(&mut self.messages, &self.device)?;
            self.device.borrow_mut().add_buffer(buffer)?;
        }
        Ok(())
    }
}

/// Registered memory for one message.
fn message(messages: &mut Vec<Pool>, device: &Rc<RefCell<Device>>) -> Result<Region, Failure> {
    // The newest block first: the others are mostly receive buffers, which stay.
    if let Some(region) = messages.iter().rev().find_map(|pool| pool.take(MESSAGE_LEN)) {
        return Ok(region);
    }
    let pool = Pool::uniform(MESSAGE_LEN, BLOCK).map_err(|error| Failure(error.to_string()))?;
    device.borrow_mut().register(&pool, Access::Local)?;
    let region = pool.take(MESSAGE_LEN).expect("a new pool has memory");
    messages.push(pool);
    Ok(region)
}

impl Verbs for Ibv {
    fn listen(&mut self, address: SocketAddr, share: bool) -> Result<SocketAddr, Failure> {
        if share && let Some(bound) = listen::join(address, &self.inbox) {
            return Ok(bound);
        }
        let listener = Listener::new(&self.channel, address, &self.inbox)?;
        let bound = listener.address();
        self.listeners.push(listener);
        Ok(bound)
    }

    fn resolve(&mut self, address: SocketAddr, timeout_ms: u64) -> Result<Link, Failure> {
        let id = Id::new(&self.channel)?;
        let timeout_ms = i32::try_from(timeout_ms).unwrap_or(i32::MAX);
        id.resolve(address, timeout_ms).map_err(|error| {
            Failure(match error.raw_os_error() {
                Some(libc::ENODEV) => {
                    "no RDMA device leads there; is the address that of an interface with an RDMA device (`rdma link`, `ip \
                     route get`)?"
                        .into()
                }
                _ => sys::cause(&error),
            })
        })?;
        Ok(self.add(State {
            queue_pair: None,
            id,
            loans: BTreeMap::new(),
            device: None,
            began: true,
            connected: false,
            timeout_ms,
            reads: Reads { issued: 1, served: 1 },
        }))
    }

    fn connect(&mut self, link: Link, private: &[u8]) -> Result<(), Failure> {
        self.add_queue_pair(link)?;
        let state = self.links.get_mut(&link).expect("it is there");
        let queue_pair = state.queue_pair.as_ref().expect("just made");
        state.reads = Reads { issued: 1, served: queue_pair.reads_max().served };
        state.id.connect(queue_pair.number(), state.reads, private)
    }

    fn accept(&mut self, link: Link, private: &[u8]) -> Result<(), Failure> {
        self.add_queue_pair(link)?;
        let state = self.links.get_mut(&link).expect("it is there");
        let queue_pair = state.queue_pair.as_ref().expect("just made");
        let max = queue_pair.reads_max();
        let reads = Reads {
            issued: state.reads.issued.clamp(1, max.issued),
            served: state.reads.served.min(max.served),
        };
        queue_pair.start(&state.id, reads)?;
        state.id.accept(queue_pair.number(), reads, private)?;
        state.connected = true;
        Ok(())
    }

    fn destroy(&mut self, link: Link) -> Vec<(u64, Loan)> {
        let State { queue_pair, id, loans, device, began, connected, .. } =
            self.links.remove(&link).expect("a link is destroyed once");
        self.by_id.remove(&id.key());
        if connected || !began {
            id.hang_up(connected);
        }
        if let (Some(queue_pair), Some(index)) = (queue_pair, device) {
            let number = queue_pair.number();
            queue_pair.stop();
            while self.reap() {}
            // From here on neither end's device reaches the memory of this link.
            drop(queue_pair);
            while self.reap() {}
            if let Some(open) = &mut self.devices[index] {
                open.queue_pairs.remove(&number);
            }
            self.close_if_unused(index);
        }
        drop(id);
        self.ready.retain(|happening| happening.link() != link);
        loans.into_iter().collect()
    }

    fn post(&mut self, link: Link, chain: Vec<Work>) -> Result<(), Failure> {
        let state = self.links.get_mut(&link).expect("a link is used until it is destroyed");
        let index = state.device.expect("a link with a queue pair has a device");
        let Some(open) = &mut self.devices[index] else {
            return Err(Failure("its device has gone".into()));
        };
        let Open { messages, device, .. } = open;
        let queue_pair = state.queue_pair.as_mut().expect("work needs a queue pair");
        queue_pair.post(chain, || message(messages, device))
    }

    fn room(&self, link: Link) -> usize {
        self.queue_pair(link).room()
    }

    fn limits(&self, link: Link) -> Limits {
        self.queue_pair(link).limits()
    }

    fn lend(&mut self, link: Link, token: u64, loan: Loan) -> Result<Remote, Loan> {
        let state = self.links.get_mut(&link).expect("a link is used until it is destroyed");
        assert!(state.began, "memory is lent over links that this end has begun");
        let bytes = match &loan {
            Loan::Room(region) => region.bytes(),
            Loan::Offer(slice) => slice.bytes(),
        };
        let open = state.device.and_then(|index| self.devices[index].as_ref());
        let Some((_, key)) = open.and_then(|open| open.device.borrow().keys(bytes, Access::Remote))
        else {
            return Err(loan);
        };
        let address = bytes.as_ptr() as u64;
        let known = state.loans.insert(token, loan);
        assert!(known.is_none(), "a token names one loan at a time");
        Ok(Remote { address, key })
    }

    fn reclaim(&mut self, link: Link, token: u64) -> Option<Loan> {
        self.links.get_mut(&link)?.loans.remove(&token)
    }

    fn register(&mut self, pool: &Pool, access: Access) -> Result<(), Failure> {
        for open in self.devices.iter().flatten().filter(|open| !open.gone) {
            open.device.borrow_mut().register(pool, access)?;
        }
        self.pools.push((pool.clone(), access));
        Ok(())
    }

    fn is_registered(&self, bytes: &[u8]) -> bool {
        let start = bytes.as_ptr() as usize;
        self.pools.iter().any(|(pool, _)| {
            let (arena, len) = pool.arena();
            let arena = arena as usize;
            arena <= start && start + bytes.len() <= arena + len
        })
    }

    fn poll(&mut self) -> Option<Happening> {
        loop {
            if let Some(happening) = self.ready.pop_front() {
                return Some(happening);
            }
            if self.reap() {
                continue;
            }
            self.take_inbox();
            self.take_device_events();
            if self.told {
                match self.channel.next() {
                    Some(event) => {
                        // What came before it goes first.
                        while self.reap() {}
                        self.on_event(event);
                        continue;
                    }
                    None => self.told = false,
                }
            }
            for listener in &mut self.listeners {
                listener.try_again(&self.channel);
            }
            if self.ready.is_empty() {
                return None;
            }
        }
    }

    fn arm(&mut self) {
        for open in self.devices.iter().flatten() {
            open.device.borrow_mut().arm();
        }
    }

    fn woken(&mut self, number: u64) {
        self.told |= number == CHANNEL;
        for open in self.devices.iter_mut().flatten() {
            if number == open.numbers[0] {
                open.device.borrow_mut().acknowledge();
            }
            open.told |= number == open.numbers[1];
        }
    }

    fn descriptors(&self) -> &[(u64, File)] {
        &self.descriptors
    }

    fn retry_ms(&self) -> Option<u64> {
        self.listeners.iter().any(Listener::is_lost).then_some(listen::RETRY_MS)
    }

    fn facts(&self, link: Link) -> Facts {
        let Some(queue_pair) = &self.state(link).queue_pair else { return Facts::default() };
        let facts = queue_pair.facts();
        let Facts { device, port, gid: (index, _), .. } = &facts;
        let types = format!("/sys/class/infiniband/{device}/ports/{port}/gid_attrs/types/{index}");
        let kind = std::fs::read_to_string(types).unwrap_or_default();
        Facts { gid: (*index, kind.trim().to_owned()), ..facts }
    }
}

fn of_status(status: i32) -> String {
    sys::cause(&io::Error::from_raw_os_error(status.abs()))
}

const fn fault(status: u32) -> Fault {
    use ibv_wc_status as kinds;
    match status {
        kinds::IBV_WC_RETRY_EXC_ERR => Fault::NoAcknowledgement,
        kinds::IBV_WC_RNR_RETRY_EXC_ERR => Fault::ReceiverNotReady,
        kinds::IBV_WC_REM_ACCESS_ERR => Fault::RemoteAccess,
        kinds::IBV_WC_REM_INV_REQ_ERR => Fault::RemoteInvalid,
        kinds::IBV_WC_REM_OP_ERR => Fault::RemoteOperation,
        kinds::IBV_WC_WR_FLUSH_ERR => Fault::Flushed,
        kinds::IBV_WC_LOC_LEN_ERR..=kinds::IBV_WC_LOC_PROT_ERR | kinds::IBV_WC_LOC_ACCESS_ERR => {
            Fault::Local(status)
        }
        other => Fault::Other(other),
    }
}
