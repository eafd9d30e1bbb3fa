//! The system calls that std does not offer, each behind a safe function: eventfd, socket set-up, the memlock limit, socket
//! addresses as the kernel reads them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// eventfd(2), close-on-exec, starting at 0.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })
}

/// Adds 1 to an eventfd. It cannot overflow, for each reader takes everything and there are fewer than 2^64 writers.
pub(crate) fn eventfd_add(eventfd: &OwnedFd) -> io::Result<()> {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: `one` is 8 readable bytes that outlive the call.
    check(unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) } as i32)
        .map(drop)
}

/// A stream socket of `address`'s family, blocking, close-on-exec.
pub(crate) fn stream_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

/// setsockopt(2) with an integer.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: i32,
) -> io::Result<()> {
    let bytes = value.to_ne_bytes();
    // SAFETY: `bytes` is as many readable bytes as the call is told, and outlives it.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// bind(2) and listen(2).
pub(crate) fn bind_and_listen(
    socket: BorrowedFd<'_>,
    address: &SocketAddr,
    backlog: i32,
) -> io::Result<()> {
    let address = KernelAddress::new(address);
    // SAFETY: `address` is `len` readable bytes that outlive the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr(), address.len()) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// RLIMIT_MEMLOCK, bytes.
pub(crate) fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit that outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    limit.rlim_cur
}

/// A descriptor that the kernel has just handed out (a completed accept), which nobody else knows.
pub(crate) fn adopt(descriptor: i32) -> OwnedFd {
    assert!(descriptor >= 0, "the kernel handed out descriptor {descriptor}");
    // SAFETY: the caller got it from a successful system call and passes it on only here.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// A socket address laid out for the kernel. Must stay where it is while the kernel reads it.
pub(crate) struct KernelAddress {
    bytes: [u8; 28],
    len: libc::socklen_t,
}

impl KernelAddress {
    /// sockaddr_in: family, port, address, 8 zeros. sockaddr_in6: family, port, flow, address, scope. Port and addresses in
    /// network order, family, flow and scope in the machine's.
    pub(crate) fn new(address: &SocketAddr) -> Self {
        let mut bytes = [0; 28];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, len) = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (libc::AF_INET, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, size_of::<libc::sockaddr_in6>())
            }
        };
        bytes[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
        Self { bytes, len: len as libc::socklen_t }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }
}

fn owned(result: i32) -> io::Result<OwnedFd> {
    check(result).map(adopt)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

const _: () =
    assert!(size_of::<libc::sockaddr_in6>() == 28 && size_of::<libc::sockaddr_in>() == 16);
