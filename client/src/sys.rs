//! System calls that std does not offer, as safe functions: the only `unsafe` of this crate.
//!
//! 1. Each function is safe for any arguments; what the kernel says no to is an [`io::Error`].
//! 2. Descriptors come out owned and, unless it says otherwise, close-on-exec.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Who goes on after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    /// The process that called.
    Parent,
    /// Its copy.
    Child,
}

/// fork(2). Panics if the process has a second thread, which would be missing in the child with the locks that it holds.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    assert!(threads.is_ok_and(|threads| threads == 1), "only the calling thread survives a fork");
    // SAFETY: the process has one thread, so that the child has all of it and no lock is held by nobody.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        _ => Ok(Forked::Parent),
    }
}

/// setsid(2): a session of its own, without a terminal.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

/// A pipe: what is written to the second comes out of the first.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the call succeeded, so that both are open and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Standard input, output and error.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standard {
    Input = 0,
    Output = 1,
    Error = 2,
}

/// dup2(2): makes a standard descriptor refer to `file`.
pub(crate) fn replace(file: &impl AsFd, standard: Standard) -> io::Result<()> {
    // SAFETY: `file` is open; the standard descriptors are nobody's to close.
    check(unsafe { libc::dup2(file.as_fd().as_raw_fd(), standard as RawFd) }).map(drop)
}

/// Whether this process may do what root may, as mount(2) sees it first.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// mount(2) with options as text.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    let (source, target, kind) = (source.as_ptr(), target.as_ptr(), kind.as_ptr());
    // SAFETY: four strings with a terminating zero that live during the call.
    check(unsafe { libc::mount(source, target, kind, flags, data.as_ptr().cast()) }).map(drop)
}

/// umount2(2).
pub(crate) fn unmount(target: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: a string with a terminating zero that lives during the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// Reads and writes that would wait fail with EAGAIN from now on.
pub(crate) fn set_nonblocking(file: &impl AsFd) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: numbers only.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Programs that are started from now on inherit the descriptor.
pub(crate) fn set_inherited(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// The descriptor that the other end sends, as unix(7) describes SCM_RIGHTS; `None` at the stream's end or if the message
/// brings none.
pub(crate) fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut iovec = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Room for one header and one descriptor, aligned as a header must be.
    let mut control = [MaybeUninit::<libc::cmsghdr>::zeroed(); 4];
    // SAFETY: a message header of zeros is a valid one that names no memory.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let received = loop {
        // SAFETY: the message points to `byte` and `control`, which live here and have the lengths given.
        let received = check(unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC)
        } as i32);
        match received {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    // SAFETY: `message` was filled by recvmsg; the result is null or points into `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if received == 0 || header.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, so that it points to a header inside `control`, which is aligned for it.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if (level, kind) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Ok(None);
    }
    // SAFETY: a message of SCM_RIGHTS carries at least one descriptor behind its header, perhaps not aligned.
    let fd = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned() };
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A pidfd of thread `pid`. Kernels before 6.9 know processes only: then it fails for threads that do not lead one.
pub(crate) fn open_thread(pid: u32) -> io::Result<OwnedFd> {
    let open = |flags: u32| {
        // SAFETY: two numbers.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as i32)?;
        // SAFETY: a new descriptor, which is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    open(PIDFD_THREAD).or_else(|_: io::Error| open(0))
}

/// Whether `file` could be read without waiting; a pidfd: whether its thread has ended.
pub(crate) fn is_readable(file: &impl AsFd) -> bool {
    let fd = file.as_fd().as_raw_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one structure that lives during the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    pub(crate) fn all() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset fills the set that it is given.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: filled.
        Self(unsafe { set.assume_init() })
    }

    /// Those with these numbers; numbers that no signal has are left out.
    pub(crate) fn of(numbers: &[i32]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset fills the set that it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for number in numbers {
            // SAFETY: the set was filled; other numbers are refused.
            unsafe { libc::sigaddset(set.as_mut_ptr(), *number) };
        }
        // SAFETY: filled.
        Self(unsafe { set.assume_init() })
    }

    /// Keeps them away from the calling thread and the threads that it starts.
    pub(crate) fn block(&self) {
        // SAFETY: the set lives during the call; where the old one would go may be null.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, std::ptr::null_mut()) };
    }

    /// Waits until one of them comes, which must be blocked; its number.
    pub(crate) fn wait(&self) -> i32 {
        let mut number = 0;
        // SAFETY: both live during the call.
        unsafe { libc::sigwait(&raw const self.0, &raw mut number) };
        number
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Of linux/pidfd.h.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_stream_that_ends_brings_no_descriptor() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        assert!(receive_descriptor(&ours).unwrap().is_none(), "a byte alone is none");
        drop(theirs);
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }

    #[test]
    fn a_thread_that_lives_is_not_readable() {
        assert!(!is_readable(&open_thread(std::process::id()).unwrap()));
        assert!(open_thread(u32::MAX >> 1).is_err());
    }

    #[test]
    fn what_is_not_mounted_cannot_be_unmounted() {
        let error = unmount(c"/proc/self/fd", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
