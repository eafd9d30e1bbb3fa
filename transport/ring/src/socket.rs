//! Stream sockets as the loop wants them: blocking mode (the ring waits for us), no delay, dead peers noticed.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::{File, sys};

/// When a silent peer counts as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An idle connection is probed after this long (TCP_KEEPIDLE), and then each third of it.
    pub keepalive: Duration,
    /// Sent bytes or probes that stay unacknowledged for this long end the connection, and so does a peer that keeps its
    /// window closed for this long (TCP_USER_TIMEOUT, tcp(7)).
    pub unacknowledged: Duration,
}

impl Timeouts {
    /// Sets an accepted or new connection up: TCP_NODELAY, keepalive, user timeout.
    pub fn apply(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let seconds = |time: Duration| time.as_secs().clamp(1, 32_767) as i32;
        let user_timeout = self.unacknowledged.as_millis().min(i32::MAX as u128) as i32;
        sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        sys::set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(self.keepalive))?;
        sys::set_option(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_KEEPINTVL,
            seconds(self.keepalive / 3),
        )?;
        sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, user_timeout)
    }
}

/// A new socket to connect to `address` with [`crate::Op::Connect`].
pub fn stream(address: &SocketAddr) -> io::Result<File> {
    Ok(File::new(sys::stream_socket(address)?))
}

/// A listening socket on `address`, and where it really listens (port 0: one that was free). SO_REUSEADDR, so that a node
/// that restarts gets its port back; with `share` also SO_REUSEPORT, so that each thread of a node listens for itself and
/// the kernel spreads the connections.
pub fn bind_listener(
    address: &SocketAddr,
    backlog: u16,
    share: bool,
) -> io::Result<(File, SocketAddr)> {
    let named = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "; another process has this port: choose another one or stop it (`ss -ltnp`)"
            }
            io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    };
    let socket = sys::stream_socket(address).map_err(named)?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(named)?;
    if share {
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(named)?;
    }
    sys::bind_and_listen(socket.as_fd(), address, i32::from(backlog)).map_err(named)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr().map_err(named)?;
    Ok((File::new(listener), bound))
}

/// Who is at the other end of a connected socket. Cost: a duplicated descriptor for a moment.
pub fn peer_address(socket: &File) -> io::Result<SocketAddr> {
    TcpStream::from(socket.as_fd().try_clone_to_owned()?).peer_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_a_port_and_strangers_do_not() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (_first, bound) = bind_listener(&any, 16, true).unwrap();
        assert_ne!(bound.port(), 0);
        let (_second, again) = bind_listener(&bound, 16, true).unwrap();
        assert_eq!(again, bound);
        let error = bind_listener(&bound, 16, false).unwrap_err().to_string();
        assert!(error.contains(&bound.to_string()) && error.contains("another process"), "{error}");
    }

    #[test]
    fn ipv6_addresses_are_laid_out_as_the_kernel_reads_them() {
        let any: SocketAddr = "[::1]:0".parse().unwrap();
        let Ok((_listener, bound)) = bind_listener(&any, 16, false) else {
            return; // a machine without IPv6
        };
        TcpStream::connect(bound).unwrap();
    }
}
