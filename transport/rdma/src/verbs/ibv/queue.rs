//! A queue pair and the work that is posted to it.
//!
//! 1. Work stays in `in_flight`, with all its memory, from before it is posted until a completion says that it, or something
//!    posted behind it, is over; or until the queue pair has been destroyed.
//! 2. The device tells only of some work (selective signalling): of reads, of what was asked for, of the last work of a chain
//!    that holds memory, and often enough that the queue never fills up with work that nobody hears of.
//! 3. A queue pair that this end has accepted lets the peer reach no memory at all.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use std::cell::RefCell;

use rdma_sys::{
    ibv_access_flags, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_send, ibv_qp,
    ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
    ibv_query_qp, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, rdma_t,
};
use sealfs_transport::Region;

use super::cm::Id;
use super::device::Device;
use super::domain::mtu_bytes;
use super::sys::cause;
use crate::verbs::{Access, Facts, Failure, Limits, Link, Work};

/// A queue pair; dropped, it is destroyed before its work's memory is.
pub(super) struct QueuePair {
    raw: NonNull<ibv_qp>,
    link: Link,
    limits: Limits,
    inline_max: usize,
    in_flight: VecDeque<Posted>,
    next: u32,
    /// Posted since the device was last asked to tell, and whether any of it keeps memory.
    untold: usize,
    keeps: bool,
    device: Rc<RefCell<Device>>,
}

struct Posted {
    number: u32,
    work: Work,
    /// Registered memory with a message's bytes that are too many to go inline.
    _copy: Option<Region>,
}

/// How many reads may be in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reads {
    pub(super) issued: u8,
    pub(super) served: u8,
}

/// Work requests of a queue pair, if the device allows.
pub(super) const DEPTH: usize = 64;
/// Slices of a write.
const PIECES: usize = 4;
/// Bytes of a message that go with the work request instead of by reference.
const INLINE: usize = 220;
/// Work that nobody hears of, at most.
const UNTOLD_MAX: usize = 16;
/// 4.096 us * 2^18 = 1.07 s until a packet is sent again; seven times.
const ACK_TIMEOUT: u8 = 18;
const RETRIES: u8 = 7;
/// Windows rule "receiver not ready" out among those who keep them. Somebody without the key may use up the shared receive
/// queue before it is found out: then the others wait, 0.64 ms each time, for as long as it takes. A peer that is never
/// ready is silent, and what is silent is given up.
const READY_TIMER: u8 = 12;
const READY_TRIES_WITHOUT_END: u8 = 7;

impl QueuePair {
    /// A queue pair on `device` for `id`, ready to be told of the peer. `began`: this end connects.
    pub(super) fn new(
        device: &Rc<RefCell<Device>>,
        link: Link,
        id: &Id,
        began: bool,
    ) -> Result<Self, Failure> {
        let (name, caps, mut init) = {
            let device = device.borrow();
            let cap = ibv_qp_cap {
                max_send_wr: DEPTH.min(device.caps.depth_max) as u32,
                max_recv_wr: 0,
                max_send_sge: PIECES.min(device.caps.pieces_max) as u32,
                max_recv_sge: 0,
                max_inline_data: INLINE as u32,
            };
            let init = ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: device.raw_cq(),
                recv_cq: device.raw_cq(),
                srq: device.raw_srq(),
                cap,
                qp_type: ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            (device.name.clone(), cap, init)
        };
        let pd = device.borrow().raw_pd();
        // SAFETY: domain and queues belong to the device, which this queue pair holds; `init` is filled in and writable.
        let mut raw = unsafe { ibv_create_qp(pd, &mut init) };
        if raw.is_null() {
            // Some devices have no inline data.
            init.cap = ibv_qp_cap { max_inline_data: 0, ..caps };
            // SAFETY: as above.
            raw = unsafe { ibv_create_qp(pd, &mut init) };
        }
        let raw = NonNull::new(raw).ok_or_else(|| {
            let error = io::Error::last_os_error();
            Failure(format!("device {name}: cannot make a queue pair: {}", cause(&error)))
        })?;
        let limits =
            Limits { depth: caps.max_send_wr as usize, pieces: caps.max_send_sge as usize };
        let new = Self {
            raw,
            link,
            limits,
            inline_max: init.cap.max_inline_data as usize,
            in_flight: VecDeque::new(),
            next: 0,
            untold: 0,
            keeps: false,
            device: Rc::clone(device),
        };
        new.modify(id, ibv_qp_state::IBV_QPS_INIT, |attr, mask| {
            attr.qp_access_flags = if began {
                ibv_access_flags::IBV_ACCESS_REMOTE_READ.0
                    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
            } else {
                0
            };
            *mask |= ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0;
        })?;
        Ok(new)
    }

    /// The peer is known: ready to receive and to send.
    pub(super) fn start(&self, id: &Id, reads: Reads) -> Result<(), Failure> {
        self.modify(id, ibv_qp_state::IBV_QPS_RTR, |attr, mask| {
            attr.max_dest_rd_atomic = reads.served;
            attr.min_rnr_timer = READY_TIMER;
            *mask |= ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC.0
                | ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER.0;
        })?;
        self.modify(id, ibv_qp_state::IBV_QPS_RTS, |attr, mask| {
            attr.max_rd_atomic = reads.issued;
            attr.timeout = ACK_TIMEOUT;
            (attr.retry_cnt, attr.rnr_retry) = (RETRIES, READY_TRIES_WITHOUT_END);
            *mask |= ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC.0
                | ibv_qp_attr_mask::IBV_QP_TIMEOUT.0
                | ibv_qp_attr_mask::IBV_QP_RETRY_CNT.0
                | ibv_qp_attr_mask::IBV_QP_RNR_RETRY.0;
        })
    }

    fn modify(
        &self,
        id: &Id,
        state: ibv_qp_state::Type,
        set: impl FnOnce(&mut ibv_qp_attr, &mut u32),
    ) -> Result<(), Failure> {
        let (mut attr, mut mask) = id.queue_pair_attributes(state)?;
        set(&mut attr, &mut mask);
        // SAFETY: the queue pair is alive and `attr` filled in where `mask` says.
        let result = unsafe { ibv_modify_qp(self.raw.as_ptr(), &mut attr, mask as i32) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(result.abs());
        Err(Failure(format!(
            "device {}: cannot bring a queue pair to state {state}: {}",
            self.device.borrow().name,
            cause(&error)
        )))
    }

    /// Nothing is received or sent any more.
    pub(super) fn stop(&self) {
        // SAFETY: ibv_qp_attr is plain numbers (and unions of such), for which all zeros are a value.
        let mut attr: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        // SAFETY: the queue pair is alive. Should it fail, destroying it does the same.
        unsafe {
            ibv_modify_qp(self.raw.as_ptr(), &mut attr, ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)
        };
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair is alive.
        unsafe { self.raw.as_ref().qp_num }
    }

    pub(super) fn room(&self) -> usize {
        self.limits.depth - self.in_flight.len()
    }

    /// How many reads the device allows.
    pub(super) fn reads_max(&self) -> Reads {
        let caps = self.device.borrow().caps;
        Reads { issued: caps.reads_issued_max, served: caps.reads_served_max }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// MTU, port and GID index.
    pub(super) fn facts(&self) -> Facts {
        let mut attr = MaybeUninit::<ibv_qp_attr>::zeroed();
        let mut init = MaybeUninit::<ibv_qp_init_attr>::zeroed();
        let mask = ibv_qp_attr_mask::IBV_QP_PATH_MTU.0
            | ibv_qp_attr_mask::IBV_QP_AV.0
            | ibv_qp_attr_mask::IBV_QP_PORT.0;
        // SAFETY: the queue pair is alive and both results are writable. All zeros are a value of either, so that they may
        // be read even if the call has not filled them in.
        let attr = unsafe {
            ibv_query_qp(self.raw.as_ptr(), attr.as_mut_ptr(), mask as i32, init.as_mut_ptr());
            attr.assume_init()
        };
        Facts {
            device: self.device.borrow().name.clone(),
            port: attr.port_num,
            gid: (attr.ah_attr.grh.sgid_index, String::new()),
            mtu: mtu_bytes(attr.path_mtu).unwrap_or(0),
            depth: self.limits.depth,
        }
    }

    /// Posts a chain; `copy` gives registered memory for messages.
    pub(super) fn post(
        &mut self,
        chain: Vec<Work>,
        mut copy: impl FnMut() -> Result<Region, Failure>,
    ) -> Result<(), Failure> {
        assert!(chain.len() <= self.room(), "posted within the limits");
        let count = chain.len();
        let mut sges: Vec<ibv_sge> = Vec::with_capacity(count * self.limits.pieces);
        let mut requests: Vec<ibv_send_wr> = Vec::with_capacity(count);
        for (index, work) in chain.into_iter().enumerate() {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            let mut held = None;
            if let Work::Send { bytes, .. } = &work
                && bytes.len() > self.inline_max
            {
                let mut region = copy()?;
                region.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
                held = Some(region);
            }
            let from = sges.len();
            self.gather(&work, held.as_ref(), &mut sges)?;
            let wants =
                matches!(work, Work::Read { .. } | Work::Probe | Work::Send { told: true, .. });
            self.keeps |= held.is_some() || matches!(work, Work::Write { .. });
            self.untold += 1;
            let many = self.untold >= UNTOLD_MAX.min(self.limits.depth / 4);
            let told = wants || many || (index + 1 == count && self.keeps);
            if told {
                (self.untold, self.keeps) = (0, false);
            }
            let inline = held.is_none() && matches!(work, Work::Send { .. });
            let sges = &mut sges[from..];
            requests.push(request(self.id_of(number), &work, sges, told, inline));
            self.in_flight.push_back(Posted { number, work, _copy: held });
        }
        for index in 1..requests.len() {
            let next = &raw mut requests[index];
            requests[index - 1].next = next;
        }
        let Some(first) = requests.first_mut() else { return Ok(()) };
        let mut bad = ptr::null_mut();
        // SAFETY: requests and sges do not move until the call returns (their vectors were made large enough at once). What
        // they name is registered memory or inline bytes that `in_flight` keeps (invariant 1).
        match unsafe { ibv_post_send(self.raw.as_ptr(), first, &mut bad) } {
            0 => Ok(()),
            number => {
                let error = io::Error::from_raw_os_error(number.abs());
                Err(Failure(format!(
                    "device {}: cannot post work: {}",
                    self.device.borrow().name,
                    cause(&error)
                )))
            }
        }
    }

    /// Where the work's bytes lie.
    fn gather(
        &self,
        work: &Work,
        copy: Option<&Region>,
        sges: &mut Vec<ibv_sge>,
    ) -> Result<(), Failure> {
        let device = self.device.borrow();
        let registered = |bytes: &[u8]| -> Result<ibv_sge, Failure> {
            let (lkey, _) = device.keys(bytes, Access::Local).ok_or_else(|| {
                Failure(format!("device {}: work with memory that is not registered", device.name))
            })?;
            Ok(ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey })
        };
        match (work, copy) {
            (Work::Send { bytes, .. }, Some(copy)) => {
                sges.push(registered(&copy.bytes()[..bytes.len()])?);
            }
            (Work::Send { bytes, .. }, None) => sges.push(ibv_sge {
                addr: bytes.as_ptr() as u64,
                length: bytes.len() as u32,
                lkey: 0,
            }),
            (Work::Read { target, len, .. }, _) => sges.push(registered(&target.bytes()[..*len])?),
            (Work::Write { source, .. }, _) => {
                assert!(source.len() <= self.limits.pieces, "a write keeps the limits");
                for slice in source {
                    sges.push(registered(slice.bytes())?);
                }
            }
            (Work::Probe, _) => {}
        }
        Ok(())
    }

    fn id_of(&self, number: u32) -> u64 {
        u64::from(self.link.0) << 32 | u64::from(number)
    }

    /// The work up to the one with this number: it is over.
    pub(super) fn complete(&mut self, number: u32) -> Vec<Work> {
        let at = self.in_flight.iter().position(|posted| posted.number == number);
        let count = at.map_or(0, |at| at + 1);
        self.in_flight.drain(..count).map(|posted| posted.work).collect()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the queue pair is alive and nothing else refers to it.
        let result = unsafe { ibv_destroy_qp(self.raw.as_ptr()) };
        let gone = [0, libc::EIO, libc::ENODEV, libc::ENXIO];
        // INVARIANT: when this returns, no device reaches the memory of this link. A device that is gone reaches none.
        assert!(
            gone.contains(&result.abs()),
            "a queue pair that nothing refers to can be destroyed: {}",
            io::Error::from_raw_os_error(result.abs())
        );
    }
}

/// The work request for `work`, whose bytes lie at `sges`.
fn request(id: u64, work: &Work, sges: &mut [ibv_sge], told: bool, inline: bool) -> ibv_send_wr {
    // SAFETY: ibv_send_wr is plain numbers, pointers and unions of such, for which all zeros are a value.
    let mut request: ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
    request.wr_id = id;
    request.sg_list = if sges.is_empty() { ptr::null_mut() } else { sges.as_mut_ptr() };
    request.num_sge = sges.len() as i32;
    let mut flags = 0;
    if told {
        flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    if inline {
        flags |= ibv_send_flags::IBV_SEND_INLINE.0;
    }
    let remote = match work {
        Work::Send { fenced, .. } => {
            request.opcode = ibv_wr_opcode::IBV_WR_SEND;
            if *fenced {
                flags |= ibv_send_flags::IBV_SEND_FENCE.0;
            }
            None
        }
        Work::Read { source, .. } => {
            request.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
            Some(*source)
        }
        Work::Write { target, .. } => {
            request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
            Some(*target)
        }
        Work::Probe => {
            request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
            None
        }
    };
    if let Some(remote) = remote {
        request.wr.rdma = rdma_t { remote_addr: remote.address, rkey: remote.key };
    }
    request.send_flags = flags;
    request
}
