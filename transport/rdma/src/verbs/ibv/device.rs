//! An opened device with what every link on it shares: protection domain, registered memory, completion queue, shared
//! receive queue.
//!
//! 1. Drop order: receive queue, completion queue and channel, registrations, protection domain, context. Queue pairs hold
//!    the device (`Rc`), so that they are destroyed before any of it.
//! 2. A registered pool stays mapped until its registration is undone: the registration holds the pool.
//! 3. A receive buffer belongs to the receive queue from posting to its completion.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_access_flags, ibv_ack_async_event, ibv_ack_cq_events, ibv_alloc_pd, ibv_async_event,
    ibv_close_device, ibv_comp_channel, ibv_context, ibv_cq, ibv_create_comp_channel,
    ibv_create_cq, ibv_create_srq, ibv_dealloc_pd, ibv_dereg_mr, ibv_destroy_comp_channel,
    ibv_destroy_cq, ibv_destroy_srq, ibv_device_attr, ibv_free_device_list, ibv_get_async_event,
    ibv_get_cq_event, ibv_get_device_list, ibv_get_device_name, ibv_mr, ibv_open_device, ibv_pd,
    ibv_poll_cq, ibv_post_srq_recv, ibv_qp, ibv_query_device, ibv_recv_wr, ibv_reg_mr,
    ibv_req_notify_cq, ibv_resize_cq, ibv_sge, ibv_srq, ibv_srq_attr, ibv_srq_init_attr,
    ibv_transport_type, ibv_wc, ibv_wc_status,
};
use sealfs_ring::{File, Pool};
use sealfs_transport::Region;

use super::sys::{cause, nonblocking};
use crate::verbs::{Access, Failure, MESSAGE_LEN};

/// A device, opened by this endpoint for itself.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) caps: Caps,
    // Dropped in this order.
    srq: Srq,
    cq: Cq,
    registrations: Vec<Registration>,
    pd: Pd,
    context: Context,
}

/// What it can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) depth_max: usize,
    pub(super) pieces_max: usize,
    pub(super) completions_max: usize,
    pub(super) buffers_max: usize,
    /// Reads in flight: issued, and served to a peer.
    pub(super) reads_issued_max: u8,
    pub(super) reads_served_max: u8,
}

/// A completion as the device tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) id: u64,
    pub(super) status: u32,
    pub(super) queue_pair: u32,
    /// Of a message that has come.
    pub(super) len: usize,
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
struct Cq {
    raw: NonNull<ibv_cq>,
    capacity: usize,
    armed: bool,
    channel: Channel,
}
struct Channel(NonNull<ibv_comp_channel>);
struct Srq {
    raw: NonNull<ibv_srq>,
    /// Buffers by number; all of them are posted, but for moments.
    buffers: Vec<Option<Region>>,
}
struct Registration {
    raw: NonNull<ibv_mr>,
    start: usize,
    len: usize,
    access: Access,
    _pool: Pool,
}

/// Completions that are fetched at once.
const BATCH: usize = 32;

/// The names of all devices, and whether each can be used: iWARP cannot, for there an RDMA READ needs its target open to
/// the peer.
pub(super) fn names() -> Result<Vec<(String, bool)>, Failure> {
    let mut count = 0;
    // SAFETY: `count` is writable; the list is freed below and not used after.
    let list = unsafe { ibv_get_device_list(&mut count) };
    if list.is_null() {
        let error = io::Error::last_os_error();
        return Err(Failure(match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                "libibverbs.so.1 is not installed: install rdma-core (Debian: ibverbs-providers, libibverbs1, librdmacm1), \
                 or use --transport tcp"
                    .into()
            }
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
                (name.into_owned(), !is_iwarp)
            }
        })
        .collect();
    // SAFETY: it came from ibv_get_device_list, and nothing of it is used any more.
    unsafe { ibv_free_device_list(list) };
    Ok(names)
}

impl Device {
    /// Opens the device, with room for `buffers` receive buffers.
    pub(super) fn open(name: &str, buffers: usize) -> Result<Self, Failure> {
        let failed = |what: &str| {
            let error = io::Error::last_os_error();
            let hint = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => {
                    "; this process may not open /dev/infiniband/uverbs*: check its owner and mode (group rdma)"
                }
                Some(libc::ENOMEM) => "; RLIMIT_MEMLOCK may be too small: `ulimit -l unlimited`",
                _ => "",
            };
            Failure(format!("device {name}: cannot {what}: {}{hint}", cause(&error)))
        };
        let context = Context::open(name)?;
        let raw = context.0.as_ptr();
        let caps = context.caps().ok_or_else(|| failed("ask what it can do"))?;
        nonblocking(context.async_descriptor()).map_err(|_| failed("set its events up"))?;
        // SAFETY: the context is open. The result is checked.
        let pd = NonNull::new(unsafe { ibv_alloc_pd(raw) }).map(Pd);
        let pd = pd.ok_or_else(|| failed("make a protection domain"))?;
        // SAFETY: the context is open. The result is checked.
        let channel = NonNull::new(unsafe { ibv_create_comp_channel(raw) }).map(Channel);
        let channel = channel.ok_or_else(|| failed("make a completion channel"))?;
        nonblocking(channel.descriptor()).map_err(|_| failed("set its completion channel up"))?;
        let capacity = 1_024.min(caps.completions_max);
        // SAFETY: context and channel are alive; the channel outlives the queue (`Cq`'s field).
        let cq =
            unsafe { ibv_create_cq(raw, capacity as i32, ptr::null_mut(), channel.0.as_ptr(), 0) };
        let cq = NonNull::new(cq).ok_or_else(|| failed("make a completion queue"))?;
        let cq = Cq { raw: cq, capacity, armed: false, channel };
        let max_wr = buffers.min(caps.buffers_max) as u32;
        let attr = ibv_srq_attr { max_wr, max_sge: 1, srq_limit: 0 };
        let mut init = ibv_srq_init_attr { srq_context: ptr::null_mut(), attr };
        // SAFETY: the protection domain is alive, `init` is filled in and writable.
        let srq = NonNull::new(unsafe { ibv_create_srq(pd.0.as_ptr(), &mut init) });
        let srq = srq.ok_or_else(|| failed("make a shared receive queue"))?;
        let srq = Srq { raw: srq, buffers: Vec::new() };
        let caps = Caps { buffers_max: max_wr as usize, ..caps };
        let registrations = Vec::new();
        Ok(Self { name: name.to_owned(), caps, srq, cq, registrations, pd, context })
    }

    /// What a thread that sleeps watches: completions, and the device's own events.
    pub(super) fn descriptors(&self) -> io::Result<[File; 2]> {
        let own =
            |descriptor: BorrowedFd<'_>| -> io::Result<OwnedFd> { descriptor.try_clone_to_owned() };
        Ok([
            File::new(own(self.cq.channel.descriptor())?),
            File::new(own(self.context.async_descriptor())?),
        ])
    }

    pub(super) fn raw_pd(&self) -> *mut ibv_pd {
        self.pd.0.as_ptr()
    }

    pub(super) fn raw_cq(&self) -> *mut ibv_cq {
        self.cq.raw.as_ptr()
    }

    pub(super) fn raw_srq(&self) -> *mut ibv_srq {
        self.srq.raw.as_ptr()
    }

    // ---- memory ----

    /// Registers a pool's mapping.
    pub(super) fn register(&mut self, pool: &Pool, access: Access) -> Result<(), Failure> {
        let (start, len) = pool.span();
        let flags = match access {
            Access::Local => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Access::Remote => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | ibv_access_flags::IBV_ACCESS_REMOTE_READ
                    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        };
        let locked = self.registrations.iter().map(|known| known.len).sum();
        super::memlock::check(len, locked)?;
        // SAFETY: start..start + len is the pool's mapping, which the registration keeps alive until it is undone.
        let raw =
            unsafe { ibv_reg_mr(self.pd.0.as_ptr(), start.cast(), len, flags.0 as libc::c_int) };
        let Some(raw) = NonNull::new(raw) else {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENOMEM) => super::memlock::refused(len, locked),
                _ => Failure(format!(
                    "device {}: cannot register {} MiB of memory: {}",
                    self.name,
                    len >> 20,
                    cause(&error)
                )),
            });
        };
        let registration =
            Registration { raw, start: start as usize, len, access, _pool: pool.clone() };
        self.registrations.push(registration);
        Ok(())
    }

    /// The local and the remote key to registered memory.
    pub(super) fn keys(&self, bytes: &[u8], access: Access) -> Option<(u32, u32)> {
        let (start, len) = (bytes.as_ptr() as usize, bytes.len());
        let found = self.registrations.iter().find(|known| {
            known.start <= start
                && start + len <= known.start + known.len
                && (access == Access::Local || known.access == Access::Remote)
        })?;
        // SAFETY: the registration is alive.
        Some(unsafe { (found.raw.as_ref().lkey, found.raw.as_ref().rkey) })
    }

    // ---- receive buffers ----

    /// Buffers that there are.
    pub(super) fn buffers(&self) -> usize {
        self.srq.buffers.len()
    }

    /// Posts one more receive buffer, of registered memory.
    pub(super) fn add_buffer(&mut self, buffer: Region) -> Result<(), Failure> {
        self.srq.buffers.push(Some(buffer));
        self.post_buffer(self.srq.buffers.len() - 1)
    }

    /// The first `len` bytes of a buffer whose completion has come; then it is posted again.
    pub(super) fn take_message(&mut self, number: usize, len: usize) -> Result<Vec<u8>, Failure> {
        let buffer = self.srq.buffers[number].as_ref().expect("a buffer is there");
        let bytes = buffer.bytes()[..len.min(MESSAGE_LEN)].to_vec();
        self.post_buffer(number)?;
        Ok(bytes)
    }

    fn post_buffer(&mut self, number: usize) -> Result<(), Failure> {
        let buffer = self.srq.buffers[number].as_ref().expect("a buffer is there");
        let (lkey, _) =
            self.keys(buffer.bytes(), Access::Local).expect("receive buffers are registered");
        let addr = buffer.bytes().as_ptr() as u64;
        let mut sge = ibv_sge { addr, length: MESSAGE_LEN as u32, lkey };
        let mut request = ibv_recv_wr {
            wr_id: number as u64,
            next: ptr::null_mut(),
            sg_list: &mut sge,
            num_sge: 1,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue is alive; request and sge are read before the call returns; the buffer stays in `buffers`, and
        // nobody reads it before its completion (invariant 3).
        let result = unsafe { ibv_post_srq_recv(self.srq.raw.as_ptr(), &mut request, &mut bad) };
        match result {
            0 => Ok(()),
            number => {
                let error = io::Error::from_raw_os_error(number);
                Err(Failure(format!(
                    "device {}: cannot post a receive buffer: {}",
                    self.name,
                    cause(&error)
                )))
            }
        }
    }

    // ---- completions ----

    /// Has room for so many completions.
    pub(super) fn grow_completions(&mut self, wanted: usize) -> Result<(), Failure> {
        if wanted <= self.cq.capacity {
            return Ok(());
        }
        let capacity = wanted.next_power_of_two().min(self.caps.completions_max);
        let full = |why: String| {
            Failure(format!("device {}: no room for another connection: {why}", self.name))
        };
        if capacity < wanted {
            return Err(full(format!(
                "its completion queues hold {} entries",
                self.caps.completions_max
            )));
        }
        // SAFETY: the queue is alive.
        match unsafe { ibv_resize_cq(self.cq.raw.as_ptr(), capacity as i32) } {
            0 => {
                self.cq.capacity = capacity;
                Ok(())
            }
            number => Err(full(cause(&io::Error::from_raw_os_error(number.abs())))),
        }
    }

    /// Adds what has completed to `out`; whether that was anything.
    pub(super) fn completions(&mut self, out: &mut Vec<Completion>) -> bool {
        // SAFETY: ibv_wc is plain numbers (and a union of such), for which all zeros are a value.
        let mut batch: [ibv_wc; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: the queue is alive and `batch` has room for BATCH completions.
        let count = unsafe { ibv_poll_cq(self.cq.raw.as_ptr(), BATCH as i32, batch.as_mut_ptr()) };
        let count = usize::try_from(count).unwrap_or(0);
        out.extend(batch[..count].iter().map(|wc| Completion {
            id: wc.wr_id,
            status: wc.status,
            queue_pair: wc.qp_num,
            len: if wc.status == ibv_wc_status::IBV_WC_SUCCESS { wc.byte_len as usize } else { 0 },
        }));
        count > 0
    }

    /// Has the next completion make the channel readable.
    pub(super) fn arm(&mut self) {
        if !self.cq.armed {
            // SAFETY: the queue is alive. It fails only with the device, which has an event of its own.
            unsafe { ibv_req_notify_cq(self.cq.raw.as_ptr(), 0) };
            self.cq.armed = true;
        }
    }

    /// Takes what has made the channel readable.
    pub(super) fn acknowledge(&mut self) {
        let (mut cq, mut user) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is alive and not blocking; the results are writable.
        while unsafe { ibv_get_cq_event(self.cq.channel.0.as_ptr(), &mut cq, &mut user) } == 0 {
            // SAFETY: the event is of this channel's only queue.
            unsafe { ibv_ack_cq_events(cq, 1) };
            self.cq.armed = false;
        }
    }

    /// The next event of the device.
    pub(super) fn event(&self) -> Option<Event> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open and its events do not block; `event` is writable.
        if unsafe { ibv_get_async_event(self.context.0.as_ptr(), event.as_mut_ptr()) } != 0 {
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
            let mut opened = None;
            for index in 0..usize::try_from(count).unwrap_or(0) {
                let device = *list.add(index);
                if CStr::from_ptr(ibv_get_device_name(device)).to_bytes() == name.as_bytes() {
                    opened = Some(ibv_open_device(device));
                }
            }
            ibv_free_device_list(list);
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

    fn async_descriptor(&self) -> BorrowedFd<'_> {
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
            reads_issued_max: small(attr.max_qp_init_rd_atom),
            reads_served_max: small(attr.max_qp_rd_atom),
        })
    }
}

/// Reads in flight on a link: enough to fill a pipe with chunks, few enough for every device.
const READS_MAX: i32 = 16;

impl Channel {
    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().fd) }
    }
}

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

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: all events are acknowledged, and the queue pairs are gone: they hold the device.
        unsafe { ibv_destroy_cq(self.raw.as_ptr()) };
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: its queue was dropped before (`Cq::drop` runs before the fields are dropped).
        unsafe { ibv_destroy_comp_channel(self.0.as_ptr()) };
    }
}

impl Drop for Srq {
    fn drop(&mut self) {
        // SAFETY: the queue pairs are gone. After it, the device touches none of the buffers, which are dropped next.
        unsafe { ibv_destroy_srq(self.raw.as_ptr()) };
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: no work that names it is in flight: queue pairs and receive queue were dropped before. The pool is dropped
        // after this.
        unsafe { ibv_dereg_mr(self.raw.as_ptr()) };
    }
}
