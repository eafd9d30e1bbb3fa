//! A thread's network: every transport that it may use, behind one [`Transport`].
//!
//! | `--transport` | listens with | connects with |
//! |---|---|---|
//! | `tcp` | TCP | TCP |
//! | `rdma` | RDMA | RDMA; where there is none, the start fails and says what is missing |
//! | `auto` | TCP, and RDMA where there is any | RDMA where both ends have it, else TCP |
//!
//! A node can serve clients of both kinds at once. Which transport a connection uses is in its `Opened` event, and so in
//! `sealfs status`.
//!
//! 1. Nobody who asked for RDMA gets TCP.
//! 2. A connection's number carries its transport in the lowest bit, so that nothing needs to be looked up.
#![forbid(unsafe_code)]

mod files;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use files::{FileError, read_key, read_nodes};
use sealfs_proto::{Address, TransportKind};
use sealfs_rdma::Rdma;
pub use sealfs_rdma::{Libraries, libraries, memory_beside_arena, port_mtu};
use sealfs_ring::{Completion, Owner, Pool, Ring};
use sealfs_tcp::Tcp;
use sealfs_transport::{
    CloseReason, Conn, Event, Figures, Frame, Hello, Identity, Instant, Region, Transport,
};

/// Which transports may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that both ends have.
    #[default]
    Auto,
    /// TCP and nothing else.
    Tcp,
    /// RDMA and nothing else.
    Rdma,
}

impl Choice {
    /// Whether RDMA may be used here: it was asked for, or there is a device. Then all of an arena will be pinned.
    #[must_use]
    pub fn may_be_rdma(self) -> bool {
        let is_there =
            || std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut all| all.next().is_some());
        match self {
            Self::Tcp => false,
            Self::Rdma => true,
            Self::Auto => is_there(),
        }
    }
}

impl FromStr for Choice {
    type Err = NetError;

    fn from_str(word: &str) -> Result<Self, NetError> {
        match word {
            "auto" => Ok(Self::Auto),
            "tcp" => Ok(Self::Tcp),
            "rdma" => Ok(Self::Rdma),
            other => Err(NetError(format!("transport {other}: unknown; use rdma, tcp or auto"))),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// Why there is no network: names the thing, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetError(pub String);

/// What a thread's network is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The key, and which node this is.
    pub identity: Arc<Identity>,
    /// Which transports.
    pub choice: Choice,
    /// The RDMA device; `None`: whichever the route to the peer goes through.
    pub rdma_device: Option<String>,
}

/// One thread's network; a clone is the same one. One goes to `Calls` as its transport, one stays with the thread's loop, which
/// hands it the ring's completions.
#[derive(Clone)]
pub struct Net {
    tcp: Option<Tcp>,
    rdma: Option<Rdma>,
    /// Which one is asked first for its next event, so that none waits for ever behind the other.
    rdma_first: bool,
}

impl Net {
    /// The network of the thread whose ring and memory these are. Fails if RDMA was asked for, be it by naming a device, and
    /// cannot be had.
    pub fn new(ring: &Ring, pool: &Pool, config: Config) -> Result<Self, NetError> {
        let Config { identity, choice, rdma_device } = config;
        let device_is_named = rdma_device.is_some();
        let rdma = match choice {
            Choice::Tcp => None,
            Choice::Rdma | Choice::Auto => {
                let config = sealfs_rdma::Config {
                    device: rdma_device,
                    ..sealfs_rdma::Config::new(Arc::clone(&identity))
                };
                match Rdma::new(ring, pool, config) {
                    Ok(rdma) => Some(rdma),
                    Err(cause) if choice == Choice::Rdma || device_is_named => {
                        return Err(NetError(format!(
                            "transport rdma: {cause}; `sealfs doctor --transport rdma` says more, --transport tcp works without"
                        )));
                    }
                    Err(cause) => {
                        tracing::debug!(%cause, "no RDMA here: TCP is used");
                        None
                    }
                }
            }
        };
        let tcp =
            (choice != Choice::Rdma).then(|| Tcp::new(ring, sealfs_tcp::Config::new(identity)));
        Ok(Self { tcp, rdma, rdma_first: false })
    }

    /// Accepts connections: with TCP at `tcp`, with RDMA at `rdma` (`host:port`), whichever there are; says where with TCP, or
    /// with RDMA if there is no TCP. `share`: several threads of a node listen there, each for itself. With [`Choice::Auto`] an
    /// address that no RDMA device has is served with TCP alone, and the log says so.
    pub fn listen(&self, tcp: &str, rdma: &str, share: bool) -> Result<SocketAddr, NetError> {
        let mut bound = None;
        if let Some(end) = &self.rdma {
            match end.listen(rdma, share) {
                Ok(at) => bound = Some(at),
                Err(cause) if self.tcp.is_some() => {
                    tracing::warn!(%cause, "served with TCP only; --transport rdma makes this an error");
                }
                Err(cause) => return Err(NetError(cause.to_string())),
            }
        }
        if let Some(end) = &self.tcp {
            let at = end.listen(tcp, share).map_err(|error| NetError(error.to_string()))?;
            bound = Some(at);
        }
        bound.ok_or_else(|| NetError("there is no transport to listen with".into()))
    }

    /// What it can connect and listen with, best first.
    #[must_use]
    pub fn kinds(&self) -> Vec<TransportKind> {
        let rdma = self.rdma.as_ref().map(|_| TransportKind::Rdma);
        let tcp = self.tcp.as_ref().map(|_| TransportKind::Tcp);
        rdma.into_iter().chain(tcp).collect()
    }

    /// Whether a completion of this owner is for [`Net::complete`].
    #[must_use]
    pub fn owns(&self, owner: Owner) -> bool {
        matches!(owner, Owner::Tcp | Owner::Rdma)
    }

    /// Takes a completion of the ring; what comes of it is for [`Transport::poll`] to tell.
    pub fn complete(&self, completion: Completion) {
        match (completion.owner, &self.tcp, &self.rdma) {
            (Owner::Tcp, Some(tcp), _) => tcp.complete(completion),
            (Owner::Rdma, _, Some(rdma)) => rdma.complete(completion),
            (owner, ..) => unreachable!("nothing was submitted for {owner:?}"),
        }
    }

    /// Waits as [`Ring::enter`] does; while it looks for completions, for those that only devices know of, too.
    pub fn enter(&self, ring: &Ring, deadline: Option<Duration>) -> io::Result<()> {
        match &self.rdma {
            Some(rdma) => ring.enter_looking(deadline, || rdma.look()),
            None => ring.enter(deadline),
        }
    }

    /// The transport of a connection, and the number that it has there.
    fn end(&mut self, conn: Conn) -> (&mut dyn Transport, Conn) {
        let own = Conn(conn.0 >> 1);
        let end: Option<&mut dyn Transport> = if conn.0 & RDMA == 0 {
            self.tcp.as_mut().map(|tcp| tcp as _)
        } else {
            self.rdma.as_mut().map(|rdma| rdma as _)
        };
        (end.expect("a connection's transport is there"), own)
    }

    fn ends(&mut self) -> impl Iterator<Item = (u64, &mut dyn Transport)> {
        let tcp = self.tcp.as_mut().map(|tcp| (TCP, tcp as &mut dyn Transport));
        let rdma = self.rdma.as_mut().map(|rdma| (RDMA, rdma as &mut dyn Transport));
        tcp.into_iter().chain(rdma)
    }
}

impl Transport for Net {
    fn reaches(&self, address: &Address) -> bool {
        match address.transport {
            TransportKind::Tcp => self.tcp.is_some(),
            TransportKind::Rdma => self.rdma.is_some(),
        }
    }

    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        let wants_rdma = address.transport == TransportKind::Rdma;
        // An address that this end does not reach is tried with what there is, and fails with its own words.
        match (&mut self.tcp, &mut self.rdma) {
            (Some(tcp), None) => tagged(tcp.connect(address, hello), TCP),
            (Some(tcp), Some(_)) if !wants_rdma => tagged(tcp.connect(address, hello), TCP),
            (_, Some(rdma)) => tagged(rdma.connect(address, hello), RDMA),
            (None, None) => unreachable!("there is always a transport"),
        }
    }

    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        let (end, conn) = self.end(conn);
        end.admit(conn, verdict);
    }

    fn send(&mut self, conn: Conn, frame: Frame) {
        let (end, conn) = self.end(conn);
        end.send(conn, frame);
    }

    fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        let (end, conn) = self.end(conn);
        end.pull(conn, token, region);
    }

    fn pause(&mut self, conn: Conn, paused: bool) {
        let (end, conn) = self.end(conn);
        end.pause(conn, paused);
    }

    fn close(&mut self, conn: Conn) {
        let (end, conn) = self.end(conn);
        end.close(conn);
    }

    fn flush(&mut self, now: Instant) {
        self.ends().for_each(|(_, end)| end.flush(now));
    }

    fn poll(&mut self, now: Instant) -> Option<Event> {
        self.rdma_first = !self.rdma_first;
        let order = if self.rdma_first { [RDMA, TCP] } else { [TCP, RDMA] };
        order.into_iter().find_map(|tag| {
            let (_, end) = self.ends().find(|(kind, _)| *kind == tag)?;
            end.poll(now).map(|event| with_tag(event, tag))
        })
    }

    fn deadline(&self) -> Option<Instant> {
        let tcp = self.tcp.as_ref().and_then(Transport::deadline);
        let rdma = self.rdma.as_ref().and_then(Transport::deadline);
        tcp.into_iter().chain(rdma).min()
    }

    fn figures(&self, conn: Conn) -> Option<Figures> {
        let own = Conn(conn.0 >> 1);
        if conn.0 & RDMA == 0 {
            self.tcp.as_ref()?.figures(own)
        } else {
            self.rdma.as_ref()?.figures(own)
        }
    }
}

const fn tagged(conn: Conn, tag: u64) -> Conn {
    Conn(conn.0 << 1 | tag)
}

/// The event with its connection's number as this endpoint gives it out.
fn with_tag(mut event: Event, tag: u64) -> Event {
    let (Event::Proven { conn, .. }
    | Event::Opened { conn, .. }
    | Event::Request { conn, .. }
    | Event::Pulled { conn, .. }
    | Event::Reply { conn, .. }
    | Event::Closed { conn, .. }) = &mut event;
    *conn = tagged(*conn, tag);
    event
}

/// The lowest bit of connections' numbers.
const TCP: u64 = 0;
const RDMA: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::Traffic;
    use sealfs_transport::Key;

    fn net(choice: Choice, device: Option<&str>) -> Result<Net, NetError> {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let identity = Arc::new(Identity { key: Key::new([1; 32]), serves: None });
        Net::new(&ring, &pool, Config { identity, choice, rdma_device: device.map(Into::into) })
    }

    fn address(transport: TransportKind) -> Address {
        Address { transport, text: "127.0.0.1:1".into() }
    }

    #[test]
    fn who_asks_for_rdma_never_gets_tcp() {
        // By its name, or by a device's.
        for choice in [Choice::Rdma, Choice::Auto] {
            let error = net(choice, Some("none9")).err().unwrap().to_string();
            assert!(error.starts_with("transport rdma: ") && error.contains("doctor"), "{error}");
        }
    }

    #[test]
    fn auto_is_tcp_where_there_is_nothing_else() {
        let tcp = net(Choice::Tcp, None).unwrap();
        assert_eq!(tcp.kinds(), [TransportKind::Tcp]);
        assert!(!tcp.reaches(&address(TransportKind::Rdma)));
        // The machine may have RDMA; no device has this address, and TCP is served all the same.
        let auto = net(Choice::Auto, None).unwrap();
        assert!(auto.reaches(&address(TransportKind::Tcp)));
        assert!(auto.listen("127.0.0.1:0", "127.0.0.1:0", false).is_ok());
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Tcp, Choice::Rdma] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "ib".parse::<Choice>().unwrap_err().to_string();
        assert!(error.contains("ib") && error.contains("rdma, tcp or auto"), "{error}");
    }

    #[test]
    fn numbers_of_both_transports_never_meet() {
        let closed = |conn| {
            let (why, lent) = (CloseReason::Local, Vec::new());
            Event::Closed { conn, why, lent, traffic: Traffic::default() }
        };
        let numbers: Vec<u64> = [TCP, RDMA]
            .map(|tag| match with_tag(closed(Conn(7)), tag) {
                Event::Closed { conn, .. } => conn.0,
                _ => 0,
            })
            .into();
        assert_eq!(numbers, [14, 15]);
    }
}
