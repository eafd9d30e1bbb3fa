//! A device as one endpoint uses it: completion queue and shared receive queue of its own, on the process's [`Domain`].
//!
//! 1. Drop order: receive queue, completion queue and channel, registrations, domain. Queue pairs hold the device (`Rc`), so
//!    that they are destroyed before any of it.
//! 2. A receive buffer belongs to the receive queue from posting to its completion.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_create_srq, ibv_destroy_comp_channel, ibv_destroy_cq, ibv_destroy_srq, ibv_get_cq_event,
    ibv_pd, ibv_poll_cq, ibv_post_srq_recv, ibv_recv_wr, ibv_req_notify_cq, ibv_resize_cq, ibv_sge,
    ibv_srq, ibv_srq_attr, ibv_srq_init_attr, ibv_wc, ibv_wc_status,
};
use sealfs_ring::{File, Pool, Wake};
use sealfs_transport::Region;

use super::domain::{Caps, Domain, Event, Registration, Told, failed};
use super::sys::{cause, nonblocking};
use crate::verbs::{Access, Failure, MESSAGE_LEN};

/// See the module's text.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) caps: Caps,
    told: Arc<Told>,
    // Dropped in this order.
    srq: Srq,
    cq: Cq,
    registrations: Vec<Arc<Registration>>,
    domain: Arc<Domain>,
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
/// Completions that are fetched at once.
const BATCH: usize = 32;

impl Device {
    /// Opens the device for an endpoint that `wake` wakes, with room for `buffers` receive buffers.
    pub(super) fn open(name: &str, buffers: usize, wake: Wake) -> Result<Self, Failure> {
        let domain = Domain::of(name)?;
        let (raw, caps) = (domain.raw_context(), domain.caps);
        let failed = |what: &str| failed(name, what);
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
        let srq = NonNull::new(unsafe { ibv_create_srq(domain.raw_pd(), &mut init) });
        let srq = srq.ok_or_else(|| failed("make a shared receive queue"))?;
        let srq = Srq { raw: srq, buffers: Vec::new() };
        let caps = Caps { buffers_max: max_wr as usize, ..caps };
        let told = Arc::new(Told::new(wake));
        domain.tell(&told);
        let registrations = Vec::new();
        Ok(Self { name: name.to_owned(), caps, told, srq, cq, registrations, domain })
    }

    /// What a thread that sleeps watches: completions, and the device's own events.
    pub(super) fn descriptors(&self) -> io::Result<[File; 2]> {
        let completions: OwnedFd = self.cq.channel.descriptor().try_clone_to_owned()?;
        Ok([File::new(completions), self.domain.events_file()?])
    }

    pub(super) fn raw_pd(&self) -> *mut ibv_pd {
        self.domain.raw_pd()
    }

    pub(super) fn raw_cq(&self) -> *mut ibv_cq {
        self.cq.raw.as_ptr()
    }

    pub(super) fn raw_srq(&self) -> *mut ibv_srq {
        self.srq.raw.as_ptr()
    }

    // ---- memory ----

    /// Registers a pool's arena.
    pub(super) fn register(&mut self, pool: &Pool, access: Access) -> Result<(), Failure> {
        self.registrations.push(self.domain.register(pool, access)?);
        Ok(())
    }

    /// The local and the remote key to registered memory.
    pub(super) fn keys(&self, bytes: &[u8], access: Access) -> Option<(u32, u32)> {
        self.registrations.iter().find_map(|known| known.keys(bytes, access))
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

    // ---- events ----

    /// Takes what the device has to tell, for every endpoint on it.
    pub(super) fn take_events(&self) {
        self.domain.take_events();
    }

    /// The next event that this endpoint was told of. Cost: one load if there is none.
    pub(super) fn event(&self) -> Option<Event> {
        self.told.next()
    }

    /// Nothing works on it any more: who opens the device from now on opens it anew.
    pub(super) fn set_gone(&self) {
        self.domain.set_gone();
    }
}

impl Channel {
    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().fd) }
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
