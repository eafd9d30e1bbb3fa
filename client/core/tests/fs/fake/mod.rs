//! A client over a [`Model`] of a cluster: the real `Fs` and `Calls`, a transport that answers by itself, and a clock
//! that jumps to the next moment that anybody waits for.

pub(crate) mod model;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::{Accepts, Model};
use sealfs_client_core::{Fs, Handle, OpenFlags, Options, Piece, WriteFlags};
use sealfs_proto::{
    Address, Attr, Claim, Errno, Header, HeaderKind, Ino, NodeId, Reply, Request, Sequence, Status,
    Traffic, TransportKind, Who, decode, encode,
};
use sealfs_transport::tasks::Tasks;
use sealfs_transport::{
    Arena, Bulk, Calls, CloseReason, Conn, Event, Figures, Frame, Hello, Instant, MapStamp, Me,
    Memory, Peer, Region, Slice, Transport,
};

/// What tests see of the network.
pub(crate) struct Net {
    pub(crate) model: Model,
    /// Requests that are held back until this changes.
    pub(crate) hold: Option<Accepts>,
    /// Whether the nodes know the client's sessions.
    pub(crate) refuses_sessions: bool,
    /// Claims in the order in which they came.
    pub(crate) claims: Vec<(NodeId, Claim)>,
    /// How often each node has lost power.
    losses: BTreeMap<NodeId, u64>,
    events: VecDeque<Event>,
    held: Vec<(Conn, Frame)>,
    conns: BTreeMap<Conn, NodeId>,
    last: u64,
}

impl Net {
    /// Breaks all connections; what was under way is lost.
    pub(crate) fn cut(&mut self) {
        let mut lent: BTreeMap<Conn, Vec<(u64, Region)>> = BTreeMap::new();
        for (conn, frame) in self.held.drain(..) {
            if let Bulk::Receive(region) = frame.bulk {
                lent.entry(conn).or_default().push((frame.header.token, region));
            }
        }
        for (conn, node) in std::mem::take(&mut self.conns) {
            let lent = lent.remove(&conn).unwrap_or_default();
            let why = CloseReason::Gone(format!("node {node}: cut by the test"));
            self.events.push_back(Event::Closed { conn, why, lent, traffic: Traffic::default() });
        }
    }

    /// The nodes lose power so often; what they know stays.
    pub(crate) fn lose_power(&mut self, nodes: impl IntoIterator<Item = NodeId>, times: u64) {
        for node in nodes {
            *self.losses.entry(node).or_default() += times;
        }
        self.cut();
    }

    /// Lets what was held back go.
    pub(crate) fn release(&mut self) {
        self.hold = None;
        for (conn, frame) in std::mem::take(&mut self.held) {
            self.take(conn, frame);
        }
    }

    fn take(&mut self, conn: Conn, frame: Frame) {
        let Some(node) = self.conns.get(&conn).copied() else { return };
        let request: Request = decode("request", &frame.body).expect("the client encodes it");
        assert_eq!(frame.header.sequence != Sequence(0), is_change(&request), "{request:?}");
        if self.hold.is_some_and(|holds| holds(&request)) {
            self.held.push((conn, frame));
            return;
        }
        if let Request::LockCancel { .. } = &request {
            self.interrupt_locks();
        }
        if let Request::Claim { claims, .. } = &request {
            self.claims.extend(claims.iter().map(|claim| (node, claim.clone())));
        }
        let bytes: Vec<u8> = match &frame.bulk {
            Bulk::Send(slices) => slices.iter().flat_map(|slice| slice.bytes().to_vec()).collect(),
            _ => Vec::new(),
        };
        let answer = self.model.answer(node, frame.header.shard, request, &bytes);
        self.reply(conn, frame, answer);
    }

    fn reply(&mut self, conn: Conn, frame: Frame, answer: Result<(Reply, Vec<u8>), Errno>) {
        let mut region = match frame.bulk {
            Bulk::Receive(region) => Some(region),
            _ => None,
        };
        let sequence = Sequence(self.conns.get(&conn).map_or(0, |node| self.losses[node]));
        let mut header = Header { sequence, ..Header::new(HeaderKind::Reply, frame.header.token) };
        let body = match answer {
            Ok((reply, bytes)) => {
                header.bulk_len = bytes.len() as u32;
                if let Some(region) = &mut region {
                    region.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
                }
                encode(&reply)
            }
            Err(errno) => {
                header.status = Status::Errno(errno);
                Vec::new()
            }
        };
        header.body_len = body.len() as u32;
        self.events.push_back(Event::Reply { conn, header, body, region });
    }

    /// Lock requests that are held back end as a cancelled wait does.
    fn interrupt_locks(&mut self) {
        for (conn, frame) in std::mem::take(&mut self.held) {
            match decode::<Request>("request", &frame.body) {
                Ok(Request::Lock { .. }) => self.reply(conn, frame, Err(Errno::EINTR)),
                _ => self.held.push((conn, frame)),
            }
        }
    }
}

/// What a node executes once, and refuses without a sequence number.
fn is_change(request: &Request) -> bool {
    !matches!(
        request,
        Request::Lookup { .. }
            | Request::List { .. }
            | Request::Stat { .. }
            | Request::ReadLink { .. }
            | Request::XattrGet { .. }
            | Request::XattrList { .. }
            | Request::Parent { .. }
            | Request::Read { .. }
            | Request::LockTest { .. }
            | Request::Extents { .. }
            | Request::Sync
            | Request::Space
            | Request::Ping
            | Request::Claim { .. }
            | Request::Leave
    )
}

struct FakeTransport(Rc<RefCell<Net>>);

impl Transport for FakeTransport {
    fn reaches(&self, _: &Address) -> bool {
        true
    }

    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        let mut net = self.0.borrow_mut();
        net.last += 1;
        let conn = Conn(net.last);
        let node = NodeId(address.text.parse().expect("addresses are node numbers here"));
        if hello.resume && net.refuses_sessions {
            let why = CloseReason::NoSession;
            net.events.push_back(Event::Closed {
                conn,
                why,
                lent: Vec::new(),
                traffic: Traffic::default(),
            });
            return conn;
        }
        net.conns.insert(conn, node);
        let peer = Peer::Node { node, endpoint: 0 };
        let kind = TransportKind::Tcp;
        net.events.push_back(Event::Opened { conn, peer, kind, map: None });
        conn
    }

    fn admit(&mut self, _: Conn, _: Result<(), CloseReason>) {}

    fn send(&mut self, conn: Conn, frame: Frame) {
        self.0.borrow_mut().take(conn, frame);
    }

    fn pull(&mut self, _: Conn, _: u64, _: Region) {}

    fn pause(&mut self, _: Conn, _: bool) {}

    fn close(&mut self, conn: Conn) {
        let mut net = self.0.borrow_mut();
        net.conns.remove(&conn);
        let why = CloseReason::Local;
        net.events.push_back(Event::Closed {
            conn,
            why,
            lent: Vec::new(),
            traffic: Traffic::default(),
        });
    }

    fn flush(&mut self, _: Instant) {}

    fn poll(&mut self, _: Instant) -> Option<Event> {
        self.0.borrow_mut().events.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn figures(&self, _: Conn) -> Option<Figures> {
        None
    }
}

/// Regions of so many bytes together, and no more.
#[derive(Clone)]
pub(crate) struct Budget(Arc<AtomicUsize>);

struct Counted(Vec<u8>, Budget);

impl Arena for Budget {
    fn take(&self, len: usize) -> Option<Region> {
        let free = self.0.load(Ordering::Relaxed).checked_sub(len)?;
        self.0.store(free, Ordering::Relaxed);
        // What was there before is not zero.
        Some(Region::new(Counted(vec![0xEE; len], self.clone())))
    }
}

impl Memory for Counted {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn registered(&self) -> Option<(u16, u64)> {
        None
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.0.fetch_add(self.0.len(), Ordering::Relaxed);
    }
}

/// A client and its cluster.
pub(crate) struct World {
    pub(crate) fs: Fs,
    pub(crate) net: Rc<RefCell<Net>>,
    calls: Calls,
    tasks: Tasks,
    now: Instant,
}

/// What an operation will have answered.
pub(crate) struct Running<T>(Rc<RefCell<Option<T>>>);

impl<T> Running<T> {
    /// The answer, if it is there.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

impl World {
    pub(crate) fn new(nodes: u16) -> Self {
        Self::with(nodes, Options::default(), 64 << 20)
    }

    pub(crate) fn with(nodes: u16, options: Options, region_bytes: usize) -> Self {
        let model = Model::new(nodes);
        let map = model.map.clone();
        let net = Net {
            model,
            hold: None,
            refuses_sessions: false,
            claims: Vec::new(),
            losses: map.nodes.iter().map(|node| (node.id, 2)).collect(),
            events: VecDeque::new(),
            held: Vec::new(),
            conns: BTreeMap::new(),
            last: 0,
        };
        let net = Rc::new(RefCell::new(net));
        let transport = Box::new(FakeTransport(Rc::clone(&net)));
        let me = Me::Client { endpoint: 0, session_seed: 7 };
        let call_options = sealfs_transport::Options {
            cluster: map.cluster,
            map: Some(MapStamp::of(&map)),
            ..sealfs_transport::Options::default()
        };
        let calls = Calls::new(transport, me, call_options);
        for node in &map.nodes {
            let address = Address { transport: TransportKind::Tcp, text: node.id.to_string() };
            calls.set_peer(node.id, vec![address]);
        }
        let tasks = Tasks::new();
        let arena = Rc::new(Budget(Arc::new(AtomicUsize::new(region_bytes))));
        let fs = Fs::new(calls.clone(), tasks.spawner(), arena, &map, options);
        Self { fs, net, calls, tasks, now: Instant(1_000_000_000) }
    }

    /// Begins an operation.
    pub(crate) fn start<T: 'static>(
        &mut self,
        operation: impl Future<Output = T> + 'static,
    ) -> Running<T> {
        let slot = Rc::new(RefCell::new(None));
        let running = Running(Rc::clone(&slot));
        self.tasks.spawn(async move {
            let answer = operation.await;
            slot.replace(Some(answer));
        });
        self.settle_down();
        running
    }

    /// Carries out one operation; time passes only if it waits for it.
    pub(crate) fn run<T: 'static>(&mut self, operation: impl Future<Output = T> + 'static) -> T {
        let running = self.start(operation);
        for _ in 0..10_000 {
            if let Some(answer) = running.take() {
                return answer;
            }
            self.step();
        }
        panic!("the operation never ends");
    }

    /// Lets everything happen that needs no time.
    pub(crate) fn settle_down(&mut self) -> Option<Instant> {
        loop {
            let calls = self.calls.turn(self.now);
            let fs = self.fs.turn(self.now);
            let polls = self.tasks.run_ready();
            if polls == 0 && self.net.borrow().events.is_empty() {
                return [calls, fs].into_iter().flatten().min();
            }
        }
    }

    /// Lets `ms` milliseconds pass.
    pub(crate) fn pass_ms(&mut self, ms: u64) {
        let end = self.now.after_ms(ms);
        while let Some(next) = self.settle_down().filter(|next| *next <= end) {
            self.now = next.max(Instant(self.now.0 + 1));
        }
        self.now = end;
        self.settle_down();
    }

    fn step(&mut self) {
        if let Some(next) = self.settle_down() {
            self.now = next.max(Instant(self.now.0 + 1));
        }
    }

    /// Names of the requests since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.net.borrow_mut().model.take_log()
    }

    // What tests do most, by name in the root directory, as root.

    pub(crate) fn create(&mut self, name: &'static str) -> (Attr, Handle) {
        let fs = self.fs.clone();
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        self.run(async move {
            fs.create(&Who::root(), Ino::ROOT, name.as_bytes(), 0o644, 0, flags, true).await
        })
        .unwrap()
    }

    pub(crate) fn write(
        &mut self,
        handle: Handle,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let (fs, bytes) = (self.fs.clone(), slice(bytes));
        self.run(async move { fs.write(handle, offset, bytes, WriteFlags::default()).await })
    }

    pub(crate) fn append(&mut self, handle: Handle, bytes: &[u8]) -> Result<usize, Errno> {
        let (fs, bytes) = (self.fs.clone(), slice(bytes));
        let flags = WriteFlags { append: true, ..WriteFlags::default() };
        self.run(async move { fs.write(handle, 0, bytes, flags).await })
    }

    pub(crate) fn read(
        &mut self,
        handle: Handle,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        let fs = self.fs.clone();
        let pieces = self.run(async move { fs.read(handle, offset, len).await })?;
        Ok(pieces.iter().flat_map(|piece: &Piece| piece.bytes().to_vec()).collect())
    }

    pub(crate) fn stat(&mut self, ino: Ino) -> Result<Attr, Errno> {
        let fs = self.fs.clone();
        self.run(async move { fs.stat(ino).await })
    }

    pub(crate) fn fsync(&mut self, handle: Handle) -> Result<(), Errno> {
        let fs = self.fs.clone();
        self.run(async move { fs.fsync(handle, false).await })
    }

    pub(crate) fn close(&mut self, handle: Handle) -> Result<(), Errno> {
        let fs = self.fs.clone();
        self.run(async move {
            let flushed = fs.flush(handle, None).await;
            flushed.and(fs.release(handle).await)
        })
    }
}

/// Bytes to write.
pub(crate) fn slice(bytes: &[u8]) -> Slice {
    Region::new(bytes.to_vec()).freeze()
}

/// `len` bytes that tell where they belong.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at % 251 + 1) as u8 | 1).collect()
}
