//! A session: reads requests, has each answered by a task of its own, writes the replies.
//!
//! ```text
//!              +--------------------- turn ----------------------+
//!  /dev/fuse ->| read into a region -> decode -> Answers::answer |-> task per request -> reply -> /dev/fuse
//!              |        INTERRUPT, FORGET, INIT: here            |
//!              +-------------------------------------------------+
//!
//!  region:  | ... | header and structure | data of a WRITE ... |
//!           0  HEAD_LEN - 80          HEAD_LEN          HEAD_LEN + MAX_WRITE
//! ```
//! A message is read so that the data of a WRITE begins at a multiple of 4 KiB: the region is frozen and travels on as it
//! is, to the network and to disks that want aligned memory. The next message gets another region. A write of at most a
//! block is copied to a region of its size instead, for it would hold a megabyte until it is answered ([`WriteMemory`]).
//!
//! 1. Each request is answered exactly once, except those that have no answer (FORGET, INTERRUPT).
//! 2. An open or a lock whose answer the kernel no longer wants is given back.
//! 3. What has begun is run to its end. A program that is killed while its request waits is answered EINTR, others by the
//!    rules of [`Fate`], and the rest goes on in the background; a lock's wait is ended by any signal.
//! 4. Without a free region nothing is read: programs wait (backpressure), and what is in flight goes on. Neither writes
//!    that wait for a dead node ([`WriteMemory`]) nor reads (`sealfs_client_core`) bring that about soon.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;

use sealfs_client_core::Interrupt;
use sealfs_proto::{Errno, Ino};
use sealfs_transport::tasks::Spawner;
use sealfs_transport::{Arena, Instant, Region, Slice};

use super::abi::{self, InHeader};
use super::counts::Counts;
use super::decode::{self, Op, Request};
use super::fate::Fate;
use super::init::{self, Agreed, MAX_WRITE, Verdict};
use super::kernel::{Found, Kernel};
use super::memory::WriteMemory;
use super::reply::{Given, Reply};

/// A request's answer in the making.
pub(crate) type Work = Pin<Box<dyn Future<Output = Reply>>>;

/// Who answers: a file system, or nothing at all to measure what the session itself costs.
pub(crate) trait Answers: 'static {
    /// What INIT has settled; called before any request is asked.
    fn agreed(&self, agreed: Agreed);
    /// Begins to answer. What the answer needs of the request it must keep.
    fn answer(&self, asked: Asked<'_>) -> Work;
    /// Takes back what an answer gave that nobody wants any more.
    fn give_back(&self, given: Given) -> Work;
    /// The kernel has dropped this inode.
    fn forget(&self, ino: Ino);
    /// Called about once per second.
    fn tidy(&self, now: Instant);
}

/// A request as it is asked.
pub(crate) struct Asked<'a> {
    pub(crate) header: InHeader,
    pub(crate) op: Op<'a>,
    /// Of a WRITE, else `None`.
    pub(crate) data: Option<Slice>,
    /// Raised when the program gets a signal while a lock is waited for.
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) now: Instant,
}

/// What a turn leaves for the loop to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Everything was read: poll the device before the next turn.
    Drained,
    /// There is more to read, but others must have their turn first.
    More,
    /// No region is free: try again when something has completed, or after [`RETRY_MS`].
    Starved,
    /// The mount has ended. What is in flight goes on, its replies go nowhere.
    Ended,
}

/// One mount's session.
pub(crate) struct Session<A> {
    shared: Rc<Shared<A>>,
    /// What the next message is read into.
    room: Option<Region>,
    writes: WriteMemory,
    ended: bool,
    checked: Instant,
    tidied: Instant,
}

struct Shared<A> {
    kernel: Kernel,
    answers: A,
    tasks: Spawner,
    flights: RefCell<HashMap<u64, Flight>>,
    counts: RefCell<Counts>,
    /// When the present turn began.
    now: Cell<Instant>,
}

/// A request that is being answered.
struct Flight {
    opcode: u32,
    pid: u32,
    /// It may change something.
    changes: bool,
    began: Instant,
    interrupt: Interrupt,
    interrupted: bool,
}

impl Flight {
    /// Whether its program is looked at: it got a signal, or it may be ending, of which the kernel does not tell.
    const fn is_watched(&self) -> bool {
        self.interrupted || self.opcode == abi::FLUSH
    }
}

impl<A: Answers> Session<A> {
    /// `arena_len`: of the arena that turns are given.
    pub(crate) fn new(kernel: Kernel, answers: A, tasks: Spawner, arena_len: usize) -> Self {
        let (flights, counts, now) = (RefCell::default(), RefCell::default(), Cell::default());
        let shared = Rc::new(Shared { kernel, answers, tasks, flights, counts, now });
        let (checked, tidied) = (Instant::default(), Instant::default());
        let writes = WriteMemory::new(arena_len);
        Self { shared, room: None, writes, ended: false, checked, tidied }
    }

    /// Reads what the kernel asks, at most [`MESSAGES_PER_TURN`], and begins to answer; to be called when the device may
    /// be readable.
    pub(crate) fn turn(&mut self, arena: &impl Arena, now: Instant) -> Turn {
        self.shared.now.set(now);
        for _ in 0..MESSAGES_PER_TURN {
            if self.ended {
                return Turn::Ended;
            }
            let Some(mut room) = self.room.take().or_else(|| arena.take(ROOM_LEN)) else {
                return Turn::Starved;
            };
            match self.shared.kernel.read(&mut room.bytes_mut()[HEAD_LEN - WRITE_HEAD_LEN..]) {
                Found::Message(len) => self.room = self.take_message(room, len, arena, now),
                Found::Nothing => {
                    self.room = Some(room);
                    return Turn::Drained;
                }
                Found::End => self.ended = true,
            }
        }
        Turn::More
    }

    /// Ends the waits that [`Fate`] ends. To be called every turn, and at least every [`RETRY_MS`] while
    /// [`Session::is_watching`].
    pub(crate) fn watch(&mut self, now: Instant) {
        self.shared.now.set(now);
        self.end_waits(now);
        if now.ms_since(self.tidied) >= TIDY_MS {
            self.tidied = now;
            self.shared.answers.tidy(now);
        }
    }

    /// What was asked and answered so far.
    pub(crate) fn counts(&self) -> Counts {
        self.shared.counts.borrow().clone()
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.flights.borrow().len()
    }

    /// Whether a program waits that got a signal, or may be ending.
    pub(crate) fn is_watching(&self) -> bool {
        self.shared.flights.borrow().values().any(Flight::is_watched)
    }

    /// Begins to answer the message in `room`; the region comes back unless it travels on.
    fn take_message(
        &mut self,
        room: Region,
        len: usize,
        arena: &impl Arena,
        now: Instant,
    ) -> Option<Region> {
        let bytes = &room.bytes()[HEAD_LEN - WRITE_HEAD_LEN..][..len];
        let is_write = decode::header(bytes).is_ok_and(|(header, _)| header.opcode == abi::WRITE);
        let behind = if is_write { len.saturating_sub(WRITE_HEAD_LEN) } else { 0 };
        match decode::decode(&bytes[..len - behind], behind) {
            Ok(Request { header, op: Op::Write(args), .. }) => {
                let (data, room) = self.writes.take(room, HEAD_LEN..HEAD_LEN + behind, arena);
                self.begin(header, Op::Write(args), Some(data), now);
                room
            }
            Ok(Request { header, op, .. }) => {
                self.begin(header, op, None, now);
                Some(room)
            }
            Err(invalid) => {
                tracing::error!("{invalid}");
                if let Ok((header, _)) = decode::header(bytes) {
                    self.shared.kernel.reply(header.unique, &Reply::error(Errno::EIO));
                }
                Some(room)
            }
        }
    }

    fn begin(&mut self, header: InHeader, op: Op<'_>, data: Option<Slice>, now: Instant) {
        let shared = &self.shared;
        match op {
            Op::Init(init) => self.init(header.unique, &init),
            Op::Forget => shared.answers.forget(Ino(header.nodeid)),
            Op::BatchForget { all } => {
                all.iter().for_each(|one| shared.answers.forget(Ino(one.nodeid)));
            }
            Op::Interrupt { unique } => shared.interrupt(unique, now),
            Op::Destroy => drop(shared.kernel.reply(header.unique, &Reply::done())),
            Op::NotifyReply => {}
            op => {
                let interrupt = Interrupt::new();
                let flight = Flight {
                    opcode: header.opcode,
                    pid: header.pid,
                    changes: changes(&op),
                    began: now,
                    interrupt: interrupt.clone(),
                    interrupted: false,
                };
                let asked = Asked { header, op, data, interrupt: &interrupt, now };
                let work = shared.answers.answer(asked);
                shared.counts.borrow_mut().ask(header.opcode);
                shared.flights.borrow_mut().insert(header.unique, flight);
                shared.tasks.spawn(Rc::clone(shared).run(header.unique, work));
            }
        }
    }

    fn init(&mut self, unique: u64, init: &abi::InitIn) {
        let shared = &self.shared;
        match init::negotiate(init) {
            Verdict::Agree(answer, agreed) => {
                shared.answers.agreed(agreed);
                tracing::debug!(minor = answer.minor, flags = answer.flags, "FUSE session begins");
                shared.kernel.reply(unique, &Reply::of(&answer));
            }
            Verdict::AskAgain(answer) => drop(shared.kernel.reply(unique, &Reply::of(&answer))),
            Verdict::Refuse(text) => {
                tracing::error!("{text}");
                shared.kernel.reply(unique, &Reply::error(Errno::EPROTO));
                self.ended = true;
            }
        }
    }

    fn end_waits(&mut self, now: Instant) {
        if now.ms_since(self.checked) < RETRY_MS {
            return;
        }
        self.checked = now;
        let watched: Vec<u64> = (self.shared.flights.borrow().iter())
            .filter(|(_, flight)| flight.is_watched() && now.ms_since(flight.began) >= RETRY_MS)
            .map(|(unique, _)| *unique)
            .collect();
        watched.into_iter().for_each(|unique| self.shared.look_at(unique, now));
    }
}

impl<A: Answers> Shared<A> {
    /// A request's task.
    async fn run(self: Rc<Self>, unique: u64, work: Work) {
        let reply = work.await;
        // A flight that is gone has been answered EINTR.
        let flight = self.flights.borrow_mut().remove(&unique);
        let taken = flight.is_some_and(|flight| self.reply(unique, &flight, &reply));
        if let (false, Some(given)) = (taken, reply.gives) {
            self.answers.give_back(given).await;
        }
    }

    /// A program that waits for `unique` got a signal.
    fn interrupt(&self, unique: u64, now: Instant) {
        let mut flights = self.flights.borrow_mut();
        // One that is not there was answered while the kernel told of the signal.
        let Some(flight) = flights.get_mut(&unique) else { return };
        if flight.opcode == abi::SETLKW {
            flight.interrupt.raise();
        }
        flight.interrupted = true;
        drop(flights);
        self.look_at(unique, now);
    }

    /// Answers EINTR if the program need not wait; the work goes on, and its own reply goes nowhere.
    fn look_at(&self, unique: u64, now: Instant) {
        let mut flights = self.flights.borrow_mut();
        let Some(flight) = flights.get(&unique) else { return };
        let waited_ms = now.ms_since(flight.began);
        if Fate::of(flight.pid, flight.interrupted).ends_wait(waited_ms, flight.changes) {
            let flight = flights.remove(&unique);
            drop(flights);
            if let Some(flight) = flight {
                self.reply(unique, &flight, &Reply::error(Errno::EINTR));
            }
        }
    }

    /// Answers a request that is no longer among the flights.
    fn reply(&self, unique: u64, flight: &Flight, reply: &Reply) -> bool {
        let took_ns = self.now.get().0.saturating_sub(flight.began.0);
        self.counts.borrow_mut().answer(flight.opcode, reply, took_ns);
        self.kernel.reply(unique, reply)
    }
}

/// Whether a request may change something, or report what cannot be reported again.
const fn changes(op: &Op<'_>) -> bool {
    match op {
        Op::Lookup { .. }
        | Op::Getattr
        | Op::Readlink
        | Op::Read(_)
        | Op::Statfs
        | Op::Getxattr { .. }
        | Op::Listxattr { .. }
        | Op::Opendir
        | Op::Readdir { .. }
        | Op::Lseek(_)
        | Op::Getlk(_) => false,
        // What was opened is given back.
        Op::Open(args) => args.flags & libc::O_TRUNC as u32 != 0,
        _ => true,
    }
}

/// Of a region, what goes before a write's data; a block, so that the data is aligned.
const HEAD_LEN: usize = 4_096;
/// Header and structure of a WRITE.
const WRITE_HEAD_LEN: usize = size_of::<InHeader>() + size_of::<abi::WriteIn>();
const ROOM_LEN: usize = HEAD_LEN + MAX_WRITE as usize;
/// Messages that are read before tasks and network have their turn.
const MESSAGES_PER_TURN: usize = 64;
const TIDY_MS: u64 = 1_000;
/// How often a program that got a signal is looked at, and how soon a session without a region tries again, milliseconds.
pub(crate) const RETRY_MS: u64 = 100;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use sealfs_client_core::Handle;
    use sealfs_proto::limits;
    use sealfs_transport::tasks::{Sender, Tasks, oneshot};
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::fuse::abi::{OpenOut, OutHeader};

    /// Memory without end, or none at all.
    struct Heap(bool);

    impl Arena for Heap {
        fn take(&self, len: usize) -> Option<Region> {
            self.0.then(|| Region::zeroed(len))
        }
    }

    /// Writes down what it is asked, and answers when the test does.
    #[derive(Clone, Default)]
    struct Script(Rc<Log>);

    #[derive(Default)]
    struct Log {
        asked: RefCell<Vec<(u32, Option<Slice>)>>,
        answers: RefCell<HashMap<u64, Sender<Reply>>>,
        interrupts: RefCell<Vec<Interrupt>>,
        given_back: RefCell<Vec<Given>>,
        forgotten: RefCell<Vec<Ino>>,
        agreed: Cell<Option<Agreed>>,
    }

    impl Answers for Script {
        fn agreed(&self, agreed: Agreed) {
            self.0.agreed.set(Some(agreed));
        }

        fn answer(&self, asked: Asked<'_>) -> Work {
            let (sender, receiver) = oneshot();
            self.0.answers.borrow_mut().insert(asked.header.unique, sender);
            self.0.asked.borrow_mut().push((asked.header.opcode, asked.data));
            self.0.interrupts.borrow_mut().push(asked.interrupt.clone());
            Box::pin(async move { receiver.await.unwrap_or_default() })
        }

        fn give_back(&self, given: Given) -> Work {
            self.0.given_back.borrow_mut().push(given);
            Box::pin(std::future::ready(Reply::done()))
        }

        fn forget(&self, ino: Ino) {
            self.0.forgotten.borrow_mut().push(ino);
        }

        fn tidy(&self, _now: Instant) {}
    }

    /// A session whose kernel is the other end of a socket: a datagram is a message, in both directions.
    struct World {
        kernel: UnixDatagram,
        session: Session<Script>,
        script: Script,
        tasks: Tasks,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let (kernel, device) = UnixDatagram::pair().unwrap();
            kernel.set_nonblocking(true).unwrap();
            device.set_nonblocking(true).unwrap();
            let (script, tasks) = (Script::default(), Tasks::new());
            let device = Kernel::new(File::from(OwnedFd::from(device)));
            let session = Session::new(device, script.clone(), tasks.spawner(), 64 << 20);
            Self { kernel, session, script, tasks, now: Instant(0) }
        }

        fn ask(&self, unique: u64, opcode: u32, pid: u32, body: &[u8]) {
            let len = (size_of::<InHeader>() + body.len()) as u32;
            let header = InHeader { len, opcode, unique, nodeid: 1, pid, ..InHeader::default() };
            self.kernel.send(&[header.as_bytes(), body].concat()).unwrap();
        }

        fn turn(&mut self) -> Turn {
            self.now = self.now.after_ms(RETRY_MS);
            let turn = self.session.turn(&Heap(true), self.now);
            self.session.watch(self.now);
            self.tasks.run_ready();
            turn
        }

        fn answer(&self, unique: u64, reply: Reply) {
            let sender = self.script.0.answers.borrow_mut().remove(&unique).unwrap();
            assert!(sender.send(reply).is_ok());
            self.tasks.run_ready();
        }

        /// The replies so far: whose, and their errno.
        fn replies(&self) -> Vec<(u64, i32)> {
            let mut bytes = vec![0; 4_096];
            let next = || {
                let len = self.kernel.recv(&mut bytes).ok()?;
                let (header, _) = OutHeader::read_from_prefix(&bytes[..len]).ok()?;
                assert_eq!(header.len as usize, len);
                Some((header.unique, -header.error))
            };
            std::iter::from_fn(next).collect()
        }
    }

    #[test]
    fn a_session_begins_with_init_and_answers_each_request_once() {
        let mut world = World::new();
        let offer = abi::InitIn { major: 7, minor: 40, flags: u32::MAX, ..abi::InitIn::default() };
        world.ask(2, abi::INIT, 0, offer.as_bytes());
        assert_eq!(world.turn(), Turn::Drained);
        assert_eq!(world.replies(), [(2, 0)]);
        assert!(world.script.0.agreed.get().is_some());

        world.ask(4, abi::LOOKUP, 0, b"a\0");
        world.ask(6, abi::FORGET, 0, &3_u64.to_ne_bytes());
        world.ask(8, abi::STATFS, 0, b"");
        world.turn();
        assert_eq!(world.session.in_flight(), 2);
        world.answer(8, Reply::done());
        world.answer(4, Reply::error(Errno::ENOENT));
        assert_eq!(world.replies(), [(8, 0), (4, 2)]);
        assert_eq!(*world.script.0.forgotten.borrow(), [Ino(1)]);
        assert_eq!(world.session.in_flight(), 0);
    }

    #[test]
    fn malformed_messages_are_answered_and_the_session_goes_on() {
        let mut world = World::new();
        world.kernel.send(b"short").unwrap();
        world.ask(2, abi::LOOKUP, 0, b"unterminated");
        world.ask(4, abi::WRITE, 0, b"short");
        world.ask(6, abi::STATFS, 0, b"");
        world.turn();
        assert_eq!(world.replies(), [(2, 5), (4, 5)]);
        assert_eq!(world.session.in_flight(), 1);
    }

    #[test]
    fn a_large_writes_data_stays_where_it_was_read_to() {
        const SMALL: usize = 4_096;
        let mut world = World::new();
        for (unique, size) in [(2, SMALL), (4, SMALL + 1), (6, 100_000)] {
            let args = abi::WriteIn { size: size as u32, ..abi::WriteIn::default() };
            let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            world.ask(unique, abi::WRITE, 0, &[args.as_bytes(), &data].concat());
            world.turn();
            let (_, written) = world.script.0.asked.borrow_mut().pop().unwrap();
            let written = written.unwrap();
            assert_eq!(written.bytes(), data);
            assert!(world.session.room.is_some(), "there is room for the next message");
            let copied = written.thaw().is_ok_and(|region| region.len() == size);
            assert_eq!(copied, size <= SMALL);
        }
    }

    #[test]
    fn without_memory_nothing_is_read() {
        let mut world = World::new();
        world.ask(2, abi::STATFS, 0, b"");
        assert_eq!(world.session.turn(&Heap(false), world.now), Turn::Starved);
        assert_eq!(world.turn(), Turn::Drained);
        assert_eq!(world.session.in_flight(), 1);
    }

    #[test]
    fn a_signal_ends_the_wait_for_a_lock() {
        let mut world = World::new();
        world.ask(2, abi::SETLKW, 1, abi::LkIn::default().as_bytes());
        world.turn();
        world.ask(3, abi::INTERRUPT, 1, &2_u64.to_ne_bytes());
        world.turn();
        let interrupt = world.script.0.interrupts.borrow()[0].clone();
        assert_eq!(format!("{interrupt:?}"), {
            let raised = Interrupt::new();
            raised.raise();
            format!("{raised:?}")
        });
        assert!(world.replies().is_empty(), "the lock's own answer is the answer");
    }

    #[test]
    fn who_is_killed_is_answered_early_and_what_was_opened_is_given_back() {
        let mut world = World::new();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        world.ask(2, abi::OPEN, child.id(), abi::OpenIn::default().as_bytes());
        world.turn();
        world.ask(3, abi::INTERRUPT, 0, &2_u64.to_ne_bytes());
        world.turn();
        world.turn();
        assert!(world.replies().is_empty(), "no signal that ends it is pending");
        assert!(world.session.is_watching());

        child.kill().unwrap();
        child.wait().unwrap();
        world.turn();
        assert_eq!(world.replies(), [(2, 4)]);
        assert!(!world.session.is_watching());
        world.answer(2, Reply::open(Reply::default(), Handle(9), OpenOut::default()));
        assert!(world.replies().is_empty());
        assert_eq!(*world.script.0.given_back.borrow(), [Given::Open(Handle(9))]);
    }

    #[test]
    fn rooms_fit_the_largest_write() {
        assert!(ROOM_LEN - HEAD_LEN == limits::BULK_LEN_MAX as usize && HEAD_LEN >= WRITE_HEAD_LEN);
    }
}
