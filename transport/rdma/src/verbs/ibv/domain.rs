//! A device as this process has opened it: context, protection domain, registered memory, events. All endpoints of the
//! process share it, one per thread, so that an arena is registered (and its pages pinned) once, and an endpoint may post
//! what lies in another thread's part of it.
//!
//! 1. Drop order: registrations, protection domain, context. Whatever is made of a domain holds it.
//! 2. What is registered stays mapped until its registration is undone: the registration holds the pool.
//! 3. An event is told to every endpoint on the device, whoever has read it; each knows its own queue pairs.
//! 4. Locks are taken when endpoints come and go, memory is registered, or events happen; not by work.
//!
//! A domain whose device has gone stays with those who have not let go yet; who comes later opens the device anew.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdma_sys::{
    ibv_access_flags, ibv_ack_async_event, ibv_alloc_pd, ibv_async_event, ibv_close_device,
    ibv_context, ibv_dealloc_pd, ibv_dereg_mr, ibv_device_attr, ibv_free_device_list,
    ibv_get_async_event, ibv_get_device_list, ibv_get_device_name, ibv_mr, ibv_open_device, ibv_pd,
    ibv_port_attr, ibv_qp, ibv_query_device, ibv_query_port, ibv_reg_mr, ibv_transport_type,
};
use sealfs_ring::{File, Pool, Wake};

use super::sys::{cause, nonblocking};
use crate::verbs::memlock::Lockable;
use crate::verbs::{Access, Failure};

/// See the module's text.
pub(super) struct Domain {
    pub(super) name: String,
    pub(super) caps: Caps,
    gone: AtomicBool,
    registrations: Mutex<Vec<Weak<Registration>>>,
    endpoints: Mutex<Vec<Weak<Told>>>,
    // Dropped in this order.
    pd: Pd,
    context: Context,
}

/// Registered memory.
pub(super) struct Registration {
    raw: NonNull<ibv_mr>,
    start: usize,
    len: usize,
    access: Access,
    /// The local and the remote key.
    keys: (u32, u32),
    // Dropped after the memory is registered no more.
    _pool: Pool,
    _domain: Arc<Domain>,
}

/// What an endpoint has been told of a device.
pub(super) struct Told {
    events: Mutex<VecDeque<Event>>,
    filled: AtomicBool,
    wake: Wake,
}

/// What it can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) depth_max: usize,
    pub(super) pieces_max: usize,
    pub(super) completions_max: usize,
    pub(super) buffers_max: usize,
    /// Bytes of one registration.
    pub(super) region_max: u64,
    /// Reads in flight: issued, and served to a peer.
    pub(super) reads_issued_max: u8,
    pub(super) reads_served_max: u8,
}

/// An event of the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The queue pair has failed.
    QueuePair(u32, u32),
    /// Nothing on this device works any more.
    Fatal(u32),
    /// Of no consequence here.
    Other(u32),
}

struct Context(NonNull<ibv_context>);
struct Pd(NonNull<ibv_pd>);

// SAFETY: libibverbs's functions may be called from any thread, also on one object at once; a pointer is not bound to one.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}
// SAFETY: as above.
unsafe impl Send for Pd {}
// SAFETY: as above.
unsafe impl Sync for Pd {}
// SAFETY: as above; `raw` is used by `drop` alone.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

/// What [`names`] fails with if there is no libibverbs.
pub(super) const NOT_INSTALLED: &str = "libibverbs.so.1 is not installed: install rdma-core (Debian: ibverbs-providers, \
                                        libibverbs1, librdmacm1), or use --transport tcp";

/// Every device that this process has open.
static OPEN: Mutex<Vec<Weak<Domain>>> = Mutex::new(Vec::new());

/// The names of all devices, and whether each is an iWARP one.
pub(super) fn names() -> Result<Vec<(String, bool)>, Failure> {
    let mut count = 0;
    // SAFETY: `count` is writable; the list is freed below and not used after.
    let list = unsafe { ibv_get_device_list(&mut count) };
    if list.is_null() {
        let error = io::Error::last_os_error();
        return Err(Failure(match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => NOT_INSTALLED.into(),
            Some(libc::ENOSYS) => {
                "this kernel has no RDMA: load the module of the device and ib_uverbs (`modprobe ib_uverbs`), or use \
                 --transport tcp"
                    .into()
            }
            _ => format!("cannot list RDMA devices: {}", cause(&error)),
        }));
    }
    let names = (0..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: the list has `count` devices, each valid until it is freed; names are zero-terminated.
            unsafe {
                let device = *list.add(index);
                let name = CStr::from_ptr(ibv_get_device_name(device)).to_string_lossy();
                let is_iwarp = (*device).transport_type == ibv_transport_type::IBV_TRANSPORT_IWARP;
                (name.into_owned(), is_iwarp)
            }
        })
        .collect();
    // SAFETY: it came from ibv_get_device_list, and nothing of it is used any more.
    unsafe { ibv_free_device_list(list) };
    Ok(names)
}

/// The MTU that a port uses, and the largest that it could use, bytes of payload. `None`: the device cannot be asked.
pub(super) fn port_mtu(device: &str, port: u8) -> Option<(u32, u32)> {
    let context = Context::open(device).ok()?;
    let mut attr = MaybeUninit::<ibv_port_attr>::zeroed();
    // SAFETY: the context is open and `attr` writable; it is read only if the call has filled it in.
    let attr = unsafe {
        if ibv_query_port(context.0.as_ptr(), port, attr.as_mut_ptr()) != 0 {
            return None;
        }
        attr.assume_init()
    };
    Some((mtu_bytes(attr.active_mtu)?, mtu_bytes(attr.max_mtu)?))
}

/// The bytes of an ibv_mtu (verbs.h): 1 is 256, each next one twice as many.
pub(super) fn mtu_bytes(mtu: u32) -> Option<u32> {
    (1..=16).contains(&mtu).then(|| 128 << mtu)
}

impl Domain {
    /// The device of this name, as this process has it open already, or opened now.
    pub(super) fn of(name: &str) -> Result<Arc<Self>, Failure> {
        let mut open = lock(&OPEN);
        open.retain(|domain| domain.strong_count() > 0);
        let known = open.iter().filter_map(Weak::upgrade);
        let is_it =
            |domain: &Arc<Self>| domain.name == name && !domain.gone.load(Ordering::Acquire);
        if let Some(domain) = { known }.find(is_it) {
            return Ok(domain);
        }
        let domain = Arc::new(Self::open(name)?);
        open.push(Arc::downgrade(&domain));
        Ok(domain)
    }

    fn open(name: &str) -> Result<Self, Failure> {
        let context = Context::open(name)?;
        let caps = context.caps().ok_or_else(|| failed(name, "ask what it can do"))?;
        nonblocking(context.descriptor()).map_err(|_| failed(name, "set its events up"))?;
        // SAFETY: the context is open. The result is checked.
        let pd = NonNull::new(unsafe { ibv_alloc_pd(context.0.as_ptr()) }).map(Pd);
        let pd = pd.ok_or_else(|| failed(name, "make a protection domain"))?;
        Ok(Self {
            name: name.to_owned(),
            caps,
            gone: AtomicBool::new(false),
            registrations: Mutex::default(),
            endpoints: Mutex::default(),
            pd,
            context,
        })
    }

    /// Whoever comes now is not to use it any more.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn raw_context(&self) -> *mut ibv_context {
        self.context.0.as_ptr()
    }

    pub(super) fn raw_pd(&self) -> *mut ibv_pd {
        self.pd.0.as_ptr()
    }

    // ---- memory ----

    /// Registers the arena that the pool is a part of, unless it is registered for this access already.
    pub(super) fn register(
        self: &Arc<Self>,
        pool: &Pool,
        access: Access,
    ) -> Result<Arc<Registration>, Failure> {
        let (start, len) = pool.arena();
        let flags = match access {
            Access::Local => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Access::Remote => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | ibv_access_flags::IBV_ACCESS_REMOTE_READ
                    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        };
        // Held meanwhile, so that threads which start together register it once.
        let mut registrations = lock(&self.registrations);
        registrations.retain(|known| known.strong_count() > 0);
        let alive: Vec<_> = registrations.iter().filter_map(Weak::upgrade).collect();
        let is_it = |known: &&Arc<Registration>| {
            (known.start, known.len, known.access) == (start as usize, len, access)
        };
        if let Some(known) = alive.iter().find(is_it) {
            return Ok(Arc::clone(known));
        }
        let locked = alive.iter().map(|known| known.len).sum();
        let lockable = Lockable::by_this_process();
        lockable.check(len, locked)?;
        // Some drivers do not say.
        if self.caps.region_max > 0 && len as u64 > self.caps.region_max {
            return Err(Failure(format!(
                "device {}: it registers at most {} MiB at once, and {} are needed: give less --memory",
                self.name,
                self.caps.region_max >> 20,
                len >> 20
            )));
        }
        // SAFETY: start..start + len is the pool's mapping, which the registration keeps alive until it is undone.
        let raw = unsafe { ibv_reg_mr(self.raw_pd(), start.cast(), len, flags.0 as libc::c_int) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOMEM) => lockable.refused(len, locked),
                _ => Failure(format!(
                    "device {}: cannot register {} MiB of memory: {}",
                    self.name,
                    len >> 20,
                    cause(&error)
                )),
            }
        })?;
        // SAFETY: the registration has just been made.
        let keys = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        let (start, pool, domain) = (start as usize, pool.clone(), Arc::clone(self));
        let new =
            Arc::new(Registration { raw, start, len, access, keys, _pool: pool, _domain: domain });
        registrations.push(Arc::downgrade(&new));
        Ok(new)
    }

    // ---- events ----

    /// What a thread that sleeps watches.
    pub(super) fn events_file(&self) -> io::Result<File> {
        let own: OwnedFd = self.context.descriptor().try_clone_to_owned()?;
        Ok(File::new(own))
    }

    /// Tells `told` of events from now on.
    pub(super) fn tell(&self, told: &Arc<Told>) {
        lock(&self.endpoints).push(Arc::downgrade(told));
    }

    /// Takes what the device has to tell, and tells every endpoint.
    pub(super) fn take_events(&self) {
        while let Some(event) = self.next_event() {
            let mut endpoints = lock(&self.endpoints);
            endpoints.retain(|told| told.strong_count() > 0);
            endpoints.iter().filter_map(Weak::upgrade).for_each(|told| told.put(event));
        }
    }

    fn next_event(&self) -> Option<Event> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open and its events do not block; `event` is writable.
        if unsafe { ibv_get_async_event(self.raw_context(), event.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call has filled the event in. The type is read as a number, for a newer library may know more types
        // than the binding. The queue pair of a queue pair's event is alive: destroying one waits for its events.
        unsafe {
            let kind = (&raw const (*event.as_ptr()).event_type).cast::<u32>().read();
            let told = match kind {
                QP_FATAL..=QP_ACCESS_ERR => {
                    let queue_pair: *mut ibv_qp = (*event.as_ptr()).element.qp;
                    Event::QueuePair((*queue_pair).qp_num, kind)
                }
                CQ_ERR | DEVICE_FATAL | SRQ_ERR => Event::Fatal(kind),
                other => Event::Other(other),
            };
            ibv_ack_async_event(event.as_mut_ptr());
            Some(told)
        }
    }
}

impl Registration {
    /// The local and the remote key to `bytes`, if they lie in this memory and it may be used so.
    pub(super) fn keys(&self, bytes: &[u8], access: Access) -> Option<(u32, u32)> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.start)?;
        let may = access == Access::Local || self.access == Access::Remote;
        (may && offset + bytes.len() <= self.len).then_some(self.keys)
    }
}

impl Told {
    pub(super) const fn new(wake: Wake) -> Self {
        Self { events: Mutex::new(VecDeque::new()), filled: AtomicBool::new(false), wake }
    }

    fn put(&self, event: Event) {
        lock(&self.events).push_back(event);
        self.filled.store(true, Ordering::Release);
        self.wake.wake();
    }

    /// The next event that this endpoint was told of. Cost: one load if there is none.
    pub(super) fn next(&self) -> Option<Event> {
        if !self.filled.load(Ordering::Acquire) {
            return None;
        }
        let mut events = lock(&self.events);
        let next = events.pop_front();
        self.filled.store(!events.is_empty(), Ordering::Release);
        next
    }
}

/// No holder of these locks can panic between two states.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What cannot be done with a device, why, and what to do.
pub(super) fn failed(name: &str, what: &str) -> Failure {
    let error = io::Error::last_os_error();
    let hint = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "; this process may not open /dev/infiniband/uverbs*: check its owner and mode (group rdma)"
        }
        Some(libc::ENOMEM) => "; RLIMIT_MEMLOCK may be too small: `ulimit -l unlimited`",
        _ => "",
    };
    Failure(format!("device {name}: cannot {what}: {}{hint}", cause(&error)))
}

/// Numbers of ibv_event_type (verbs.h).
const CQ_ERR: u32 = 0;
const QP_FATAL: u32 = 1;
const QP_ACCESS_ERR: u32 = 3;
const DEVICE_FATAL: u32 = 8;
const SRQ_ERR: u32 = 14;

impl Context {
    fn open(name: &str) -> Result<Self, Failure> {
        let mut count = 0;
        // SAFETY: `count` is writable; the list is freed below. A device may be opened while the list lives.
        let opened = unsafe {
            let list = ibv_get_device_list(&mut count);
            if list.is_null() {
                return Err(Failure(format!("device {name} is gone")));
            }
            let (mut opened, mut is_iwarp) = (None, false);
            for index in 0..usize::try_from(count).unwrap_or(0) {
                let device = *list.add(index);
                if CStr::from_ptr(ibv_get_device_name(device)).to_bytes() == name.as_bytes() {
                    // A route may go through any device.
                    is_iwarp = (*device).transport_type == ibv_transport_type::IBV_TRANSPORT_IWARP;
                    opened = (!is_iwarp).then(|| ibv_open_device(device));
                }
            }
            ibv_free_device_list(list);
            if is_iwarp {
                return Err(super::choice::iwarp(name));
            }
            opened
        };
        match opened {
            None => Err(Failure(format!("there is no device {name}"))),
            Some(raw) => NonNull::new(raw).map(Self).ok_or_else(|| {
                let error = io::Error::last_os_error();
                Failure(format!(
                    "cannot open device {name}: {}; check owner and mode of /dev/infiniband/uverbs*",
                    cause(&error)
                ))
            }),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().async_fd) }
    }

    fn caps(&self) -> Option<Caps> {
        let mut attr = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open and `attr` writable; it is read only if the call has filled it in.
        let attr = unsafe {
            if ibv_query_device(self.0.as_ptr(), attr.as_mut_ptr()) != 0 {
                return None;
            }
            attr.assume_init()
        };
        let number = |value: i32| usize::try_from(value).unwrap_or(0);
        let small = |value: i32| value.clamp(1, READS_MAX) as u8;
        Some(Caps {
            depth_max: number(attr.max_qp_wr),
            pieces_max: number(attr.max_sge).max(1),
            completions_max: number(attr.max_cqe),
            buffers_max: number(attr.max_srq_wr),
            region_max: attr.max_mr_size,
            reads_issued_max: small(attr.max_qp_init_rd_atom),
            reads_served_max: small(attr.max_qp_rd_atom),
        })
    }
}

/// Reads in flight on a link: enough to fill a pipe with chunks, few enough for every device.
const READS_MAX: i32 = 16;

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made of it was dropped before (Device's fields).
        unsafe { ibv_close_device(self.0.as_ptr()) };
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: everything in it was dropped before (Device's fields, queue pairs hold the device).
        unsafe { ibv_dealloc_pd(self.0.as_ptr()) };
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: no work that names it is in flight: queue pairs and receive queue were dropped before. The pool is dropped
        // after this.
        unsafe { ibv_dereg_mr(self.raw.as_ptr()) };
    }
}
