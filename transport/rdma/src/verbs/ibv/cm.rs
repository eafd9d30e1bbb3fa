//! The connection manager (librdmacm): event channels and ids.
//!
//! Queue pairs are not made by librdmacm: this crate makes them on a device that it has opened itself, so that it sees the
//! device's own events and decides what a peer may do, and asks librdmacm for the attributes of each state only.
//!
//! 1. An id holds its channel; the channel is destroyed after its last id.
//! 2. An event is acknowledged before anything is done about it, so that destroying an id never waits.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{
    ibv_get_device_name, ibv_qp_attr, ibv_qp_state, rdma_accept, rdma_ack_cm_event, rdma_bind_addr,
    rdma_cm_event, rdma_cm_event_type, rdma_cm_id, rdma_conn_param, rdma_connect,
    rdma_create_event_channel, rdma_create_id, rdma_destroy_event_channel, rdma_destroy_id,
    rdma_disconnect, rdma_establish, rdma_event_channel, rdma_get_cm_event, rdma_init_qp_attr,
    rdma_listen, rdma_migrate_id, rdma_port_space, rdma_reject, rdma_resolve_addr,
    rdma_resolve_route,
};
use sealfs_ring::File;

use super::queue::Reads;
use super::sys::{KernelAddress, cause, nonblocking, read_address};
use crate::verbs::Failure;

/// An event channel.
pub(super) struct Channel(NonNull<rdma_event_channel>);

// SAFETY: librdmacm's functions may be called from any thread; the pointer is not bound to one.
unsafe impl Send for Channel {}
// SAFETY: as above; reading events from one channel is done by one thread only (its owner), the others just hold it.
unsafe impl Sync for Channel {}

/// A connection, or a listener, of the connection manager.
pub(super) struct Id {
    raw: NonNull<rdma_cm_id>,
    channel: Arc<Channel>,
}

// SAFETY: librdmacm's functions may be called from any thread; an `Id` is used by one at a time.
unsafe impl Send for Id {}

/// An event, with everything that is used of it.
pub(super) struct CmEvent {
    pub(super) kind: rdma_cm_event_type::Type,
    /// Which id it is about, as [`Id::key`] names it; of a request to connect, the listener's.
    pub(super) key: usize,
    /// The new id of a request to connect.
    pub(super) incoming: Option<Id>,
    pub(super) status: i32,
    pub(super) private: Vec<u8>,
    /// What the peer of a request to connect offers.
    pub(super) reads: Reads,
}

/// What [`Channel::new`] fails with if there is no librdmacm.
pub(super) const NOT_INSTALLED: &str = "librdmacm.so.1 is not installed: install rdma-core (Debian: librdmacm1), or use --transport tcp";

impl Channel {
    pub(super) fn new() -> Result<Self, Failure> {
        // SAFETY: no arguments; the result is checked.
        let raw = NonNull::new(unsafe { rdma_create_event_channel() }).ok_or_else(|| {
            let error = io::Error::last_os_error();
            Failure(match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => NOT_INSTALLED.into(),
                Some(libc::EACCES | libc::EPERM) => "this process may not open /dev/infiniband/rdma_cm: check its owner and \
                                                     mode"
                    .into(),
                Some(libc::ENODEV | libc::ENOENT | libc::ENXIO) => {
                    "the kernel's RDMA connection manager is missing: `modprobe rdma_ucm`".into()
                }
                _ => format!(
                    "cannot reach the kernel's RDMA connection manager: {}; is the module rdma_ucm loaded?",
                    cause(&error)
                ),
            })
        })?;
        let channel = Self(raw);
        nonblocking(channel.descriptor()).map_err(|error| {
            Failure(format!("cannot set an event channel up: {}", cause(&error)))
        })?;
        Ok(channel)
    }

    pub(super) fn file(&self) -> io::Result<File> {
        let own: OwnedFd = self.descriptor().try_clone_to_owned()?;
        Ok(File::new(own))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().fd) }
    }

    /// The next event.
    pub(super) fn next(self: &Arc<Self>) -> Option<CmEvent> {
        let mut event: *mut rdma_cm_event = ptr::null_mut();
        // SAFETY: the channel is alive and does not block; the result is writable.
        if unsafe { rdma_get_cm_event(self.0.as_ptr(), &mut event) } != 0 {
            return None;
        }
        // SAFETY: the call gave an event, valid until it is acknowledged, which happens once and last. Parameters are those
        // of a connection (all ids are of RDMA_PS_TCP); private data are as long as they say.
        unsafe {
            let kind = (*event).event;
            let is_request = kind == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
            let has_param = is_request
                || kind == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE
                || kind == rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED;
            let (mut private, mut reads) = (Vec::new(), Reads { issued: 0, served: 0 });
            if has_param {
                let param = &(*event).param.conn;
                if !param.private_data.is_null() {
                    let len = usize::from(param.private_data_len);
                    private = std::slice::from_raw_parts(param.private_data.cast(), len).to_vec();
                }
                reads = Reads { issued: param.initiator_depth, served: param.responder_resources };
            }
            let about = if is_request { (*event).listen_id } else { (*event).id };
            let incoming = is_request.then(|| {
                let raw = NonNull::new((*event).id).expect("a request has an id");
                Id { raw, channel: Arc::clone(self) }
            });
            let status = (*event).status;
            rdma_ack_cm_event(event);
            Some(CmEvent { kind, key: about as usize, incoming, status, private, reads })
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: each id holds the channel, so there are none any more.
        unsafe { rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

impl Id {
    /// A new id whose events come over `channel`.
    pub(super) fn new(channel: &Arc<Channel>) -> Result<Self, Failure> {
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is alive, the result writable and checked.
        let result = unsafe {
            rdma_create_id(
                channel.0.as_ptr(),
                &mut raw,
                ptr::null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        match NonNull::new(raw).filter(|_| result == 0) {
            Some(raw) => Ok(Self { raw, channel: Arc::clone(channel) }),
            None => Err(last("make a connection")),
        }
    }

    /// What names it in events.
    pub(super) fn key(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    pub(super) fn bind_and_listen(&self, address: SocketAddr) -> Result<SocketAddr, io::Error> {
        let mut kernel = KernelAddress::new(address);
        // SAFETY: the id is alive, the address is a whole sockaddr_storage.
        check(unsafe { rdma_bind_addr(self.raw.as_ptr(), kernel.as_ptr()) })?;
        // SAFETY: the id is alive.
        check(unsafe { rdma_listen(self.raw.as_ptr(), BACKLOG) })?;
        // SAFETY: the id is alive; its source address is in a union with a sockaddr_storage.
        let bound = unsafe {
            read_address((&raw const (*self.raw.as_ptr()).route.addr.src_addr_union).cast())
        };
        Ok(bound.unwrap_or(address))
    }

    /// Another id, bound to this one's own address and so to its device.
    pub(super) fn beside(&self, channel: &Arc<Channel>) -> Option<Self> {
        // SAFETY: the id is alive; its source address is in a union with a sockaddr_storage.
        let own = unsafe {
            read_address((&raw const (*self.raw.as_ptr()).route.addr.src_addr_union).cast())
        };
        let id = Self::new(channel).ok()?;
        let mut kernel = KernelAddress::new(SocketAddr::new(own?.ip(), 0));
        // SAFETY: the id is alive, the address is a whole sockaddr_storage.
        check(unsafe { rdma_bind_addr(id.raw.as_ptr(), kernel.as_ptr()) }).ok()?;
        Some(id)
    }

    pub(super) fn resolve(&self, address: SocketAddr, timeout_ms: i32) -> Result<(), io::Error> {
        let mut kernel = KernelAddress::new(address);
        // SAFETY: the id is alive, the address is a whole sockaddr_storage.
        check(unsafe {
            rdma_resolve_addr(self.raw.as_ptr(), ptr::null_mut(), kernel.as_ptr(), timeout_ms)
        })
    }

    pub(super) fn resolve_route(&self, timeout_ms: i32) -> Result<(), io::Error> {
        // SAFETY: the id is alive.
        check(unsafe { rdma_resolve_route(self.raw.as_ptr(), timeout_ms) })
    }

    /// The device's name and port, once the address is resolved or the request has come.
    pub(super) fn device(&self) -> Option<String> {
        // SAFETY: the id is alive; its context, if it has one, too, as long as the id.
        unsafe {
            let context = self.raw.as_ref().verbs;
            if context.is_null() {
                return None;
            }
            let name = ibv_get_device_name((*context).device);
            Some(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the id is alive; its destination address is in a union with a sockaddr_storage.
        unsafe { read_address((&raw const (*self.raw.as_ptr()).route.addr.dst_addr_union).cast()) }
    }

    /// What a queue pair of this connection needs in `state`, and which of it.
    pub(super) fn queue_pair_attributes(
        &self,
        state: ibv_qp_state::Type,
    ) -> Result<(ibv_qp_attr, u32), Failure> {
        // SAFETY: ibv_qp_attr is plain numbers (and unions of such), for which all zeros are a value.
        let mut attr: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.qp_state = state;
        let mut mask = 0;
        // SAFETY: the id is alive, both results are writable.
        let result = unsafe { rdma_init_qp_attr(self.raw.as_ptr(), &mut attr, &mut mask) };
        check(result).map_err(|_| last("set a queue pair up"))?;
        Ok((attr, mask as u32))
    }

    pub(super) fn connect(
        &self,
        queue_pair: u32,
        reads: Reads,
        private: &[u8],
    ) -> Result<(), Failure> {
        let mut param = parameters(queue_pair, reads, private);
        // SAFETY: the id is alive; `param` and the private data it names are read before the call returns.
        check(unsafe { rdma_connect(self.raw.as_ptr(), &mut param) }).map_err(|_| last("connect"))
    }

    /// The connecting end takes the answer.
    pub(super) fn establish(&self) -> Result<(), Failure> {
        // SAFETY: the id is alive.
        check(unsafe { rdma_establish(self.raw.as_ptr()) }).map_err(|_| last("connect"))
    }

    pub(super) fn accept(
        &self,
        queue_pair: u32,
        reads: Reads,
        private: &[u8],
    ) -> Result<(), Failure> {
        let mut param = parameters(queue_pair, reads, private);
        // SAFETY: as in `connect`.
        check(unsafe { rdma_accept(self.raw.as_ptr(), &mut param) })
            .map_err(|_| last("accept a connection"))
    }

    /// Tells the peer that the connection, or its request for one, has ended. Failing means that it knows.
    pub(super) fn hang_up(&self, connected: bool) {
        // SAFETY: the id is alive.
        unsafe {
            if connected {
                rdma_disconnect(self.raw.as_ptr());
            } else {
                rdma_reject(self.raw.as_ptr(), ptr::null(), 0);
            }
        }
    }

    /// Has its events come over another channel.
    pub(super) fn migrate(&mut self, channel: &Arc<Channel>) -> Result<(), Failure> {
        // SAFETY: id and channel are alive. The id's one event so far was acknowledged, so that this does not wait.
        check(unsafe { rdma_migrate_id(self.raw.as_ptr(), channel.0.as_ptr()) })
            .map_err(|_| last("hand a connection to another thread"))?;
        self.channel = Arc::clone(channel);
        Ok(())
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: the id is alive, has no queue pair of librdmacm's, and its events are acknowledged. Its channel goes after.
        unsafe { rdma_destroy_id(self.raw.as_ptr()) };
    }
}

/// Requests that the kernel keeps before they are taken.
const BACKLOG: i32 = 1_024;

fn parameters(queue_pair: u32, reads: Reads, private: &[u8]) -> rdma_conn_param {
    rdma_conn_param {
        private_data: private.as_ptr().cast(),
        private_data_len: private.len() as u8,
        responder_resources: reads.served,
        initiator_depth: reads.issued,
        flow_control: 0,
        retry_count: 7,
        rnr_retry_count: 6,
        srq: 1,
        qp_num: queue_pair,
    }
}

fn check(result: i32) -> Result<(), io::Error> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn last(what: &str) -> Failure {
    Failure(format!("cannot {what}: {}", cause(&io::Error::last_os_error())))
}
