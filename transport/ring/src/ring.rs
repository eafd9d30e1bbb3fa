//! The ring: submissions, completions, wake-ups, and who owns the memory meanwhile.
//!
//! Each operation sits in a slot from its submission to its completion; the slot's number and generation are the user data
//! that the kernel carries. The op's memory, and what the kernel reads beside it (iovecs, msghdr, sockaddr), belongs to the
//! slot and does not move: regions, vectors and scratch are heap memory whose owners may move.
//!
//! 1. A slot's op is neither touched nor dropped between submission and completion.
//! 2. User data of a completion names a slot in flight with the same generation.
//! 3. Drop order: `Inner::drop` cancels and waits until nothing is in flight; then `uring` is closed (it is the first
//!    field), then the slots are freed. If the kernel will not let go of an operation (a device that hangs), its
//!    memory is leaked, never freed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::op::{Completion, File, Key, Op, Owner, Piece};
use crate::poll::{Patience, Poll};
use crate::{Pool, sys};

/// How a ring is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Submissions that one system call takes (more just cost another call), a power of two.
    pub entries: u32,
    /// Whether waiting looks for completions before it sleeps.
    pub poll: Poll,
}

impl Default for Config {
    fn default() -> Self {
        Self { entries: 256, poll: Poll::Adaptive }
    }
}

/// How a ring has waited so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Waits that have looked for something before, or instead of, sleeping.
    pub looked: u64,
    /// Waits that have slept.
    pub slept: u64,
}

/// One thread's io_uring; a clone is the same ring. See the crate's text for the loop around it.
#[derive(Clone)]
pub struct Ring(Rc<RefCell<Inner>>);

/// Wakes a ring from another thread. A clone wakes the same ring.
#[derive(Clone, Debug)]
pub struct Wake(Arc<WakeState>);

#[derive(Debug)]
struct WakeState {
    eventfd: OwnedFd,
    /// The eventfd was written and the ring has not yet seen it: another write would tell nothing new.
    pending: AtomicBool,
}

struct Inner {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// What did not fit into the submission queue; goes in before anything newer.
    backlog: VecDeque<squeue::Entry>,
    pool: Option<Pool>,
    wake: Wake,
    wake_count: Box<[u8; 8]>,
    /// Whether the read of the eventfd is in flight; never started again while `closing`.
    wake_armed: bool,
    closing: bool,
    patience: Patience,
    waits: Waits,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
    scratch: Option<Box<Scratch>>,
}

struct Flight {
    owner: Owner,
    id: u64,
    op: Op,
}

/// What the kernel reads besides the op's own memory; kept with the slot for the next op.
struct Scratch {
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
    address: Option<sys::KernelAddress>,
}

/// User data of a cancellation, whose own completion says nothing.
const CANCELLATION: u64 = u64::MAX;
/// User data of the read of the eventfd.
const WAKE: u64 = u64::MAX - 1;
/// How long a ring that is dropped waits for the kernel before it leaks what is still in flight.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

impl Ring {
    /// A ring for the calling thread. Needs Linux 6.1.
    pub fn new(config: Config) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(config.entries * COMPLETIONS_PER_ENTRY)
            .build(config.entries)
            .map_err(|error| explain(&error))?;
        let state = WakeState { eventfd: sys::eventfd()?, pending: AtomicBool::new(false) };
        let mut inner = Inner {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            pool: None,
            wake: Wake(Arc::new(state)),
            wake_count: Box::new([0; 8]),
            wake_armed: false,
            closing: false,
            patience: Patience::new(config.poll),
            waits: Waits::default(),
        };
        inner.read_wake();
        Ok(Self(Rc::new(RefCell::new(inner))))
    }

    /// Registers the pool, this thread's part of the arena, as a fixed buffer, once per ring, so that positioned reads and
    /// writes need not pin its pages each time; those of memory in other parts do. It pins the whole part, so it pays for
    /// disks with O_DIRECT, or where a NIC has pinned it already. Where the kernel refuses, everything works without; a
    /// warning says why.
    pub fn register(&self, pool: &Pool) {
        let mut inner = self.0.borrow_mut();
        assert!(inner.pool.is_none(), "a ring registers one pool");
        let (start, len) = pool.span();
        let buffer = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: start and len are the pool's mapping. `inner.pool` keeps it mapped until the ring is closed, which the
        // order of Inner's fields puts first.
        match unsafe { inner.uring.submitter().register_buffers(&[buffer]) } {
            Ok(()) => {
                pool.set_registered(0);
                inner.pool = Some(pool.clone());
            }
            Err(error) => tracing::warn!(
                "cannot register {} MiB of memory with io_uring: {error}; RLIMIT_MEMLOCK is {} KiB: run `ulimit -l \
                 unlimited` or set LimitMEMLOCK=infinity; going on without, at some cost per read and write",
                len >> 20,
                sys::memlock_limit() >> 10
            ),
        }
    }

    /// Queues an operation; it starts at the next [`Ring::enter`]. Panics if its ranges lie outside its memory.
    pub fn submit(&self, owner: Owner, id: u64, op: Op) -> Key {
        self.0.borrow_mut().submit(Flight { owner, id, op })
    }

    /// Asks the kernel to end an operation; its completion still comes. Nothing happens if it has come already. Disk reads and
    /// writes that have started end on their own.
    pub fn cancel(&self, key: Key) {
        self.0.borrow_mut().cancel(key);
    }

    /// Starts what was submitted and waits until something has completed, another thread wakes this one, or `deadline` has
    /// passed (`None`: none). Returns at once if completions are waiting. Cost: one system call, none if there is nothing to
    /// start and something has completed.
    pub fn enter(&self, deadline: Option<Duration>) -> io::Result<()> {
        self.enter_looking(deadline, || false)
    }

    /// The same; while it looks for completions before it sleeps, it also has `look` see whether something came that the
    /// kernel does not tell of while nobody sleeps, and returns if so. `look` may use the ring but not enter it.
    pub fn enter_looking(
        &self,
        deadline: Option<Duration>,
        mut look: impl FnMut() -> bool,
    ) -> io::Result<()> {
        let Some(wait) = self.0.borrow_mut().begin(deadline)? else { return Ok(()) };
        while wait.looks_on() {
            if look() || self.0.borrow_mut().look()? {
                self.0.borrow_mut().patience.found();
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if wait.looks() {
            self.0.borrow_mut().patience.missed();
        }
        if wait.left() == Some(Duration::ZERO) {
            return Ok(());
        }
        self.0.borrow_mut().sleep(&wait)
    }

    /// Whether it looks for completions before it sleeps.
    #[must_use]
    pub fn poll(&self) -> Poll {
        self.0.borrow().patience.poll()
    }

    /// How it has waited so far.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.0.borrow().waits
    }

    /// The next completed operation. Look at what other threads may have sent after this has returned `None`: whatever
    /// came before their [`Wake::wake`] is visible then.
    #[allow(
        clippy::should_implement_trait,
        reason = "None is not the end, as an iterator's would be"
    )]
    pub fn next(&self) -> Option<Completion> {
        self.0.borrow_mut().next()
    }

    /// The handle by which other threads wake this one.
    #[must_use]
    pub fn wake(&self) -> Wake {
        self.0.borrow().wake.clone()
    }

    /// Operations that have not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.borrow().in_flight()
    }
}

impl Wake {
    /// Makes the ring's present or next [`Ring::enter`] return. Cost: a system call, none if the ring was woken already and
    /// has not looked yet.
    pub fn wake(&self) {
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            sys::eventfd_add(&self.0.eventfd).expect("an eventfd of this process can be written");
        }
    }
}

impl Inner {
    fn submit(&mut self, flight: Flight) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let flight = slot.flight.insert(flight);
        let key = u64::from(slot.generation) << 32 | u64::from(index);
        let scratch = slot.scratch.get_or_insert_default();
        let entry = entry(&mut flight.op, scratch, self.pool.as_ref()).user_data(key);
        self.push(entry);
        Key(key)
    }

    fn cancel(&mut self, Key(key): Key) {
        let slot = &self.slots[key as u32 as usize];
        if slot.flight.is_some() && slot.generation == (key >> 32) as u32 {
            self.push(cancellation(opcode::AsyncCancel::new(key).build()));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.drain_backlog();
    }

    /// Fills the submission queue from the backlog, submitting what is in it to make room.
    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if self.uring.submission().is_full() {
                // Errors (completions overflow) show again when `enter` submits.
                let _ = self.uring.submit();
            }
            // SAFETY: the entry points to memory of a slot in flight (invariant 1) or to `wake_count`, which lives as long as
            // the ring; `entry` built it from ranges that it checked.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                return self.backlog.push_front(entry);
            }
        }
    }

    /// Starts what was submitted; a wait, if there is something to wait for.
    fn begin(&mut self, deadline: Option<Duration>) -> io::Result<Option<Wait>> {
        self.drain_backlog();
        let completed = !self.uring.completion().is_empty();
        if completed && self.uring.submission().is_empty() && self.backlog.is_empty() {
            return Ok(None);
        }
        if completed || deadline == Some(Duration::ZERO) {
            return self.enter_without_waiting().map(|()| None);
        }
        let look = self.patience.look(deadline);
        if look.is_zero() {
            let start = self.patience.is_adaptive().then(Instant::now);
            return Ok(Some(Wait { start, look, deadline }));
        }
        let start = Some(Instant::now());
        self.enter_without_waiting()?;
        self.waits.looked += 1;
        Ok(Some(Wait { start, look, deadline }))
    }

    /// Whether something has completed; has the kernel run what is due for that.
    fn look(&mut self) -> io::Result<bool> {
        if self.uring.submission().taskrun() {
            self.enter_without_waiting()?;
        }
        Ok(!self.uring.completion().is_empty())
    }

    fn sleep(&mut self, wait: &Wait) -> io::Result<()> {
        self.waits.slept += 1;
        self.drain_backlog();
        let entered = match wait.left() {
            Some(left) => {
                let time = Timespec::from(left);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            None => self.uring.submit_and_wait(1),
        };
        if self.patience.is_adaptive() && !wait.looks() {
            let waited = wait.start.map_or(Duration::MAX, |start| start.elapsed());
            self.patience.slept(waited, !self.uring.completion().is_empty());
        }
        settled(entered.map(drop))
    }

    /// Submits, and has the kernel run what is due, without sleeping.
    fn enter_without_waiting(&mut self) -> io::Result<()> {
        let queued = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed; the entries counted are those that `drain_backlog` put in.
        let entered = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(queued, 0, IORING_ENTER_GETEVENTS, None)
        };
        settled(entered.map(drop))
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            match entry.user_data() {
                CANCELLATION => {}
                WAKE => {
                    // Acquire: what was sent before the wake is visible to who looks after this.
                    self.wake.0.pending.swap(false, Ordering::AcqRel);
                    self.wake_armed = false;
                    if !self.closing {
                        self.read_wake();
                    }
                }
                data => return Some(self.complete(data, entry.result())),
            }
        }
    }

    fn complete(&mut self, data: u64, result: i32) -> Completion {
        let index = data as u32;
        let slot = &mut self.slots[index as usize];
        assert!(slot.generation == (data >> 32) as u32, "a completion names a slot in flight");
        let flight = slot.flight.take().expect("a completion names a slot in flight");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        let Flight { owner, id, mut op } = flight;
        if let (Op::Accept { accepted, .. }, 0..) = (&mut op, result) {
            *accepted = Some(File::new(sys::adopt(result)));
        }
        let result =
            if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) };
        Completion { owner, id, result, op }
    }

    fn read_wake(&mut self) {
        self.wake_armed = true;
        let eventfd = Fd(self.wake.0.eventfd.as_raw_fd());
        let read = opcode::Read::new(eventfd, self.wake_count.as_mut_ptr(), 8).build();
        self.push(read.user_data(WAKE));
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts what was submitted and sleeps until something completes.
    fn wait_for(&mut self, time: Duration) -> io::Result<()> {
        self.drain_backlog();
        if self.uring.completion().is_empty() {
            let wait = Wait { start: None, look: Duration::ZERO, deadline: Some(time) };
            return self.sleep(&wait);
        }
        self.enter_without_waiting()
    }

    /// Has everything cancelled and waits for it; false if the kernel did not let go in time.
    fn settle(&mut self) -> bool {
        let until = Instant::now() + DROP_TIMEOUT;
        self.closing = true;
        while self.in_flight() > 0 || self.wake_armed {
            let any = CancelBuilder::any().all();
            self.push(cancellation(opcode::AsyncCancel2::new(any).build()));
            if Instant::now() >= until || self.wait_for(Duration::from_millis(100)).is_err() {
                return false;
            }
            while self.next().is_some() {}
        }
        true
    }
}

/// A wait that has begun.
struct Wait {
    /// When, if that matters.
    start: Option<Instant>,
    /// How long to look.
    look: Duration,
    /// How long to wait at most.
    deadline: Option<Duration>,
}

impl Wait {
    /// Whether it looks at all before it sleeps.
    const fn looks(&self) -> bool {
        !self.look.is_zero()
    }

    /// Whether there is still to be looked.
    fn looks_on(&self) -> bool {
        self.looks() && self.start.is_some_and(|start| start.elapsed() < self.look)
    }

    /// What is left until the deadline.
    fn left(&self) -> Option<Duration> {
        let gone = self.start.filter(|_| self.looks()).map(|start| start.elapsed());
        self.deadline.map(|deadline| deadline.saturating_sub(gone.unwrap_or_default()))
    }
}

/// The kernel may want its completions taken, or memory, first (EBUSY, EAGAIN): what was queued stays queued.
fn settled(entered: io::Result<()>) -> io::Result<()> {
    match entered.map_err(|error| error.raw_os_error().unwrap_or(0)) {
        Ok(()) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        Err(number) => Err(io::Error::from_raw_os_error(number)),
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.settle() {
            tracing::error!(
                operations = self.in_flight(),
                "the kernel did not let go of operations in flight; their memory is given up"
            );
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.pool.take());
            std::mem::forget(std::mem::take(&mut self.wake_count));
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self { iovecs: Vec::new(), message: EMPTY_MESSAGE, address: None }
    }
}

impl Scratch {
    /// Points the iovecs to the bytes of `pieces` behind the first `skip`.
    fn gather(&mut self, pieces: &[Piece], mut skip: usize) {
        self.iovecs.clear();
        for piece in pieces {
            let bytes = piece.bytes();
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            let bytes = &bytes[skipped..];
            if !bytes.is_empty() && self.iovecs.len() < Op::PIECES_MAX {
                let iov_base = bytes.as_ptr().cast_mut().cast();
                self.iovecs.push(libc::iovec { iov_base, iov_len: bytes.len() });
            }
        }
        assert!(skip == 0, "what is skipped lies inside the pieces");
    }
}

/// The entry that has the kernel do `op`. Whatever it points to stays where it is until the completion: it belongs to the op
/// or to the scratch, both of which the slot keeps.
fn entry(op: &mut Op, scratch: &mut Scratch, pool: Option<&Pool>) -> squeue::Entry {
    match op {
        Op::Read { file, at, region, from, to } => {
            let (file, (start, len)) = (Fd(file.as_raw_fd()), window(region, *from, *to));
            match at {
                Some(at) if is_fixed(pool, start, len) => {
                    opcode::ReadFixed::new(file, start, len, 0).offset(*at).build()
                }
                at => opcode::Read::new(file, start, len).offset(at.unwrap_or(NO_OFFSET)).build(),
            }
        }
        Op::Write { file, at, pieces, skip } => {
            scratch.gather(pieces, *skip);
            let file = Fd(file.as_raw_fd());
            match (at, scratch.iovecs.as_slice()) {
                (Some(at), [one]) if is_fixed(pool, one.iov_base.cast(), one.iov_len as u32) => {
                    let start: *mut u8 = one.iov_base.cast();
                    opcode::WriteFixed::new(file, start, one.iov_len as u32, 0).offset(*at).build()
                }
                (at, iovecs) => opcode::Writev::new(file, iovecs.as_ptr(), iovecs.len() as u32)
                    .offset(at.unwrap_or(NO_OFFSET))
                    .build(),
            }
        }
        Op::Receive { file, region, from, to, all } => {
            let (start, len) = window(region, *from, *to);
            let flags = if *all { libc::MSG_WAITALL } else { 0 };
            opcode::Recv::new(Fd(file.as_raw_fd()), start, len).flags(flags).build()
        }
        Op::Send { file, pieces, skip } => {
            scratch.gather(pieces, *skip);
            scratch.message.msg_iov = scratch.iovecs.as_mut_ptr();
            scratch.message.msg_iovlen = scratch.iovecs.len();
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(Fd(file.as_raw_fd()), &raw const scratch.message)
                .flags(flags)
                .build()
        }
        Op::Sync { file, data_only } => {
            let flags = if *data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
            opcode::Fsync::new(Fd(file.as_raw_fd())).flags(flags).build()
        }
        Op::Accept { listener, .. } => {
            let (no_address, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
            opcode::Accept::new(Fd(listener.as_raw_fd()), no_address, no_len)
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Connect { file, address } => {
            let address = scratch.address.insert(sys::KernelAddress::new(address));
            opcode::Connect::new(Fd(file.as_raw_fd()), address.as_ptr(), address.len()).build()
        }
        Op::Poll { file, events } => opcode::PollAdd::new(Fd(file.as_raw_fd()), *events).build(),
    }
}

/// A cancellation, whose own completion nobody wants.
fn cancellation(entry: squeue::Entry) -> squeue::Entry {
    entry.user_data(CANCELLATION).flags(squeue::Flags::SKIP_SUCCESS)
}

/// Where `region[from..to]` lies.
fn window(region: &mut sealfs_transport::Region, from: usize, to: usize) -> (*mut u8, u32) {
    let bytes = &mut region.bytes_mut()[from..to];
    (bytes.as_mut_ptr(), u32::try_from(bytes.len()).expect("a region is smaller than 4 GiB"))
}

/// Whether this memory lies in the fixed buffer. A region of another thread's part does not.
fn is_fixed(pool: Option<&Pool>, start: *const u8, len: u32) -> bool {
    pool.is_some_and(|pool| {
        let (first, pool_len) = pool.span();
        let offset = (start as usize).wrapping_sub(first as usize);
        offset.checked_add(len as usize).is_some_and(|end| end <= pool_len)
    })
}

fn explain(error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "it is switched off: set sysctl kernel.io_uring_disabled=0",
        Some(libc::ENOSYS) => "this kernel has none, or a container's seccomp profile forbids it",
        Some(libc::EINVAL) => "Linux 6.1 or newer is needed",
        Some(libc::ENOMEM) => "RLIMIT_MEMLOCK is too small: run `ulimit -l unlimited`",
        _ => "see dmesg",
    };
    io::Error::new(error.kind(), format!("cannot set io_uring up: {error}; {hint}"))
}

/// Completions that the queue holds per submission entry: operations stay in flight over many turns. More than that are kept
/// by the kernel in slower memory, not lost.
const COMPLETIONS_PER_ENTRY: u32 = 16;
/// The file's own position, or none (sockets, pipes, devices).
const NO_OFFSET: u64 = u64::MAX;
/// Of linux/io_uring.h.
const IORING_ENTER_GETEVENTS: u32 = 1;
const EMPTY_MESSAGE: libc::msghdr = libc::msghdr {
    msg_name: std::ptr::null_mut(),
    msg_namelen: 0,
    msg_iov: std::ptr::null_mut(),
    msg_iovlen: 0,
    msg_control: std::ptr::null_mut(),
    msg_controllen: 0,
    msg_flags: 0,
};

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use sealfs_transport::{Arena, Region};

    use super::*;

    fn ring() -> Ring {
        Ring::new(Config { entries: 8, ..Config::default() }).unwrap()
    }

    fn wait(ring: &Ring) -> Completion {
        loop {
            if let Some(completion) = ring.next() {
                return completion;
            }
            ring.enter(Some(Duration::from_secs(10))).unwrap();
        }
    }

    fn receive(file: &File, len: usize, all: bool) -> Op {
        Op::Receive { file: file.clone(), region: Region::zeroed(len), from: 0, to: len, all }
    }

    fn filled(op: &Op) -> &[u8] {
        match op {
            Op::Read { region, .. } | Op::Receive { region, .. } => region.bytes(),
            other => panic!("{other:?} fills nothing"),
        }
    }

    fn round_trip_of_a_file(ring: &Ring, pool: &Pool) {
        let file = File::new(tempfile::tempfile().unwrap());
        let mut region = pool.take(8_192).unwrap();
        region.bytes_mut()[..4_096].fill(1);
        region.bytes_mut()[4_096..].fill(2);
        let payload = region.freeze();
        let pieces = vec![Piece::from(vec![9; 10]), payload.cut(4_090, 4_100).into()];
        let at = Some(100);
        ring.submit(Owner::Disk, 1, Op::Write { file: file.clone(), at, pieces, skip: 2 });
        assert_eq!(wait(ring).result.unwrap(), 18);
        let (at, pieces) = (Some(4_096), vec![payload.into()]);
        ring.submit(Owner::Disk, 2, Op::Write { file: file.clone(), at, pieces, skip: 0 });
        let written = wait(ring);
        assert_eq!((written.owner, written.id, written.result.unwrap()), (Owner::Disk, 2, 8_192));
        ring.submit(Owner::Disk, 3, Op::Sync { file: file.clone(), data_only: true });
        assert_eq!(wait(ring).result.unwrap(), 0);
        let region = pool.take(16_384).unwrap();
        let read = Op::Read { file, at: Some(0), region, from: 0, to: 16_384 };
        ring.submit(Owner::Disk, 4, read);
        let read = wait(ring);
        assert_eq!(read.result.unwrap(), 12_288);
        let bytes = filled(&read.op);
        assert_eq!(bytes[100..118], [9, 9, 9, 9, 9, 9, 9, 9, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
        assert!(bytes[4_096..8_192].iter().all(|&byte| byte == 1));
        assert!(bytes[8_192..12_288].iter().all(|&byte| byte == 2));
    }

    #[test]
    fn what_is_written_to_a_file_is_read_back_registered_or_not() {
        let (ring, pool) = (ring(), Pool::new(1 << 20).unwrap());
        round_trip_of_a_file(&ring, &pool);
        ring.register(&pool);
        assert!(pool.take(1).unwrap().registered().is_some());
        round_trip_of_a_file(&ring, &pool);
        round_trip_of_a_file(&ring, &Pool::new(1 << 20).unwrap());
    }

    #[test]
    fn a_send_larger_than_the_socket_goes_out_whole_and_in_order() {
        let ring = ring();
        let (near, far) = UnixStream::pair().unwrap();
        let (near, far) = (File::new(near), File::new(far));
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let pieces = bytes.chunks(10_000).map(|piece| piece.to_vec().into()).collect();
        ring.submit(Owner::Tcp, 1, Op::Send { file: near, pieces, skip: 0 });
        ring.submit(Owner::Tcp, 2, receive(&far, bytes.len(), true));
        let done = [wait(&ring), wait(&ring)];
        let received = done.iter().find(|done| done.id == 2).unwrap();
        assert_eq!(*received.result.as_ref().unwrap() as usize, bytes.len());
        assert!(filled(&received.op) == bytes);
    }

    #[test]
    fn a_connection_is_accepted_and_its_end_is_seen() {
        let ring = ring();
        let any = "127.0.0.1:0".parse().unwrap();
        let (listener, address) = crate::bind_listener(&any, 16, false).unwrap();
        ring.submit(Owner::Tcp, 1, Op::Accept { listener, accepted: None });
        let client = crate::stream(&address).unwrap();
        ring.submit(Owner::Tcp, 2, Op::Connect { file: client.clone(), address });
        let mut server = None;
        for _ in 0..2 {
            let done = wait(&ring);
            done.result.unwrap();
            if let Op::Accept { accepted, .. } = done.op {
                server = accepted;
            }
        }
        drop(server.unwrap());
        ring.submit(Owner::Tcp, 3, receive(&client, 10, false));
        assert_eq!(wait(&ring).result.unwrap(), 0);
    }

    #[test]
    fn a_refused_connection_says_so() {
        let ring = ring();
        let any = "127.0.0.1:0".parse().unwrap();
        let (listener, address) = crate::bind_listener(&any, 16, false).unwrap();
        drop(listener);
        let file = crate::stream(&address).unwrap();
        ring.submit(Owner::Tcp, 1, Op::Connect { file, address });
        assert_eq!(wait(&ring).result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_cancelled_operation_completes_with_its_memory() {
        let ring = ring();
        let (near, _far) = UnixStream::pair().unwrap();
        let near = File::new(near);
        let waiting = ring.submit(Owner::Tcp, 7, receive(&near, 100, false));
        ring.enter(Some(Duration::ZERO)).unwrap();
        assert!(ring.next().is_none());
        ring.cancel(waiting);
        let done = wait(&ring);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        assert_eq!((done.id, filled(&done.op).len()), (7, 100));
        ring.cancel(waiting);
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn a_poll_tells_what_is_there_and_when_the_peer_has_gone() {
        let ring = ring();
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = File::new(near);
        let events = libc::POLLIN as u32;
        ring.submit(Owner::Fuse, 1, Op::Poll { file: near.clone(), events });
        ring.submit(Owner::Tcp, 2, Op::Poll { file: near, events: Op::PEER_CLOSED });
        ring.enter(Some(Duration::from_millis(5))).unwrap();
        assert!(ring.next().is_none());
        far.write_all(b"late").unwrap();
        let done = wait(&ring);
        assert_eq!((done.id, done.result.unwrap()), (1, events));
        drop(far);
        let done = wait(&ring);
        assert!(done.id == 2 && done.result.unwrap() & Op::PEER_CLOSED != 0);
    }

    #[test]
    fn dropping_a_ring_gives_memory_in_flight_back() {
        let pool = Pool::new(0).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let ring = ring();
        let region = pool.take(crate::REGION_LEN_MAX).unwrap();
        let file = File::new(near);
        ring.submit(Owner::Tcp, 1, Op::Receive { file, region, from: 0, to: 100, all: true });
        ring.enter(Some(Duration::ZERO)).unwrap();
        far.write_all(b"part").unwrap();
        assert!(pool.take(crate::REGION_LEN_MAX).is_none());
        drop(ring);
        assert!(pool.take(crate::REGION_LEN_MAX).is_some());
        assert_eq!(far.read(&mut [0; 1]).unwrap_or(0), 0, "the socket was closed too");
    }

    #[test]
    fn another_thread_wakes_the_loop_each_time() {
        let ring = ring();
        let wake = ring.wake();
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            for number in 0..1_000 {
                sender.send(number).unwrap();
                wake.wake();
            }
        });
        let mut expected = 0;
        while expected < 1_000 {
            ring.enter(None).unwrap();
            assert!(ring.next().is_none());
            receiver.try_iter().for_each(|number| {
                assert_eq!(number, expected);
                expected += 1;
            });
        }
        other.join().unwrap();
    }

    #[test]
    fn a_deadline_ends_the_wait_spinning_or_not() {
        for poll in [Poll::Sleep, Poll::Adaptive, Poll::Spin] {
            let ring = Ring::new(Config { entries: 8, poll }).unwrap();
            let start = Instant::now();
            ring.enter(Some(Duration::from_millis(3))).unwrap();
            assert!(start.elapsed() >= Duration::from_millis(3));
            assert!(ring.next().is_none());
        }
    }

    /// Counted in waits, not in time: who does not look burns nothing.
    #[test]
    fn an_idle_thread_looks_only_if_it_is_to_spin() {
        for (poll, looked, slept) in
            [(Poll::Sleep, 0, 30), (Poll::Adaptive, 0, 30), (Poll::Spin, 30, 0)]
        {
            let ring = Ring::new(Config { entries: 8, poll }).unwrap();
            for _ in 0..30 {
                ring.enter(Some(Duration::from_millis(1))).unwrap();
                assert!(ring.next().is_none());
            }
            assert_eq!(ring.waits(), Waits { looked, slept }, "{poll}");
        }
    }

    #[test]
    fn who_spins_sees_what_completes_and_what_else_there_is_without_sleeping() {
        let ring = Ring::new(Config { entries: 8, poll: Poll::Spin }).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        ring.submit(Owner::Tcp, 1, receive(&File::new(near), 4, true));
        let mut looks = 0;
        ring.enter_looking(None, || {
            looks += 1;
            looks == 7
        })
        .unwrap();
        assert!(looks == 7 && ring.next().is_none());
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            far.write_all(b"late").unwrap();
            far
        });
        ring.enter(None).unwrap();
        assert_eq!(ring.next().unwrap().result.unwrap(), 4);
        drop(other.join().unwrap());
        assert_eq!(ring.waits(), Waits { looked: 2, slept: 0 });
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_complete() {
        let ring = ring();
        let pairs: Vec<_> = (0..500).map(|_| UnixStream::pair().unwrap()).collect();
        let mut writers = Vec::new();
        for (id, (near, far)) in pairs.into_iter().enumerate() {
            ring.submit(Owner::Tcp, id as u64, receive(&File::new(near), 1, true));
            writers.push(far);
        }
        for writer in &mut writers {
            writer.write_all(b"x").unwrap();
        }
        let mut ids: Vec<u64> = (0..500).map(|_| wait(&ring)).map(|done| done.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..500).collect::<Vec<_>>());
    }
}
