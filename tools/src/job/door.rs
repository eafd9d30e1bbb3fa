//! The door of the first node of a job: where it listens, who knocks, and who is let in.
//!
//! Its port follows from the job's id and anybody may connect to it, so who knocks has to prove the job's key before
//! anything is kept for it, and strangers do not keep others out:
//!
//! 1. At most [`STRANGERS_MAX`] connections that have proven nothing are open, and [`ALIKE_MAX`] from one address. One more
//!    takes the place of the oldest, those first that do not come from a port that only root can have. Whoever is honest
//!    needs milliseconds, and comes again.
//! 2. Nobody is refused for its port: addresses and ports may be translated on the way.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_proto::{ClusterMap, Epoch, Node, NodeId, limits};
use sealfs_transport::{Identity, Serves};

use super::meeting::{Event, Party, ports_shown};
use super::wire;

/// Where the first node listens.
pub(super) struct Door {
    listener: TcpListener,
    /// The candidate that was free.
    pub(super) port: u16,
}

impl Door {
    /// Listens at the first free candidate.
    pub(super) fn open(party: &Party, until: Instant) -> Result<Self, String> {
        let mut last = String::new();
        let hosts = wire::lookup(&party.first, until)?;
        for &port in &party.ports {
            for host in &hosts {
                match TcpListener::bind((*host, port)) {
                    Ok(listener) => return Ok(Self { listener, port }),
                    Err(error) => last = error.to_string(),
                }
            }
        }
        Err(format!(
            "cannot listen at {}, ports {}: {last}; `port-base` in the settings names others",
            party.first,
            ports_shown(&party.ports)
        ))
    }

    /// Lets nodes in for as long as the process lives: a thread for each. `until`: the end of the last handshake.
    pub(super) fn stand_open(self, party: &Party, until: Instant, events: Sender<Event>) {
        let identity = Arc::new(identity(party));
        let count = party.hosts.len();
        thread::spawn(move || {
            let strangers = Arc::new(Strangers::default());
            for visit in 1.. {
                let Ok((stream, from)) = self.listener.accept() else {
                    // Out of descriptors, perhaps: the peer tries again, and so does this end.
                    thread::sleep(PAUSE);
                    continue;
                };
                let (identity, events) = (Arc::clone(&identity), events.clone());
                strangers.admit(visit, from, &stream);
                let door = Arc::clone(&strangers);
                let started = thread::Builder::new().stack_size(STACK).spawn(move || {
                    let come = receive_one(stream, identity, count, until);
                    door.leave(visit);
                    if let Some((seat, stream)) = come {
                        follow(seat, visit, stream, &events);
                    }
                });
                if started.is_err() {
                    strangers.leave(visit);
                }
            }
        });
    }
}

/// Who has connected and proven nothing, the oldest first.
#[derive(Default)]
struct Strangers(Mutex<Vec<Stranger>>);

struct Stranger {
    visit: u64,
    from: IpAddr,
    is_roots: bool,
    stream: TcpStream,
}

impl Strangers {
    /// Notes a new one, and disconnects another if they are too many.
    fn admit(&self, visit: u64, from: SocketAddr, stream: &TcpStream) {
        let Ok(stream) = stream.try_clone() else { return };
        let new = Stranger { visit, from: from.ip(), is_roots: wire::is_roots(from), stream };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = last_straw(&all, &new) {
            let _ = all.remove(at).stream.shutdown(Shutdown::Both);
        }
        all.push(new);
    }

    fn leave(&self, visit: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.visit != visit);
    }
}

/// Whose place the new one takes, if there is none left.
fn last_straw(all: &[Stranger], new: &Stranger) -> Option<usize> {
    let is_alike = |one: &Stranger| (one.from, one.is_roots) == (new.from, new.is_roots);
    if all.iter().filter(|one| is_alike(one)).count() >= ALIKE_MAX {
        return all.iter().position(is_alike);
    }
    let oldest = || all.iter().position(|one| !one.is_roots).or(Some(0));
    if all.len() >= STRANGERS_MAX { oldest() } else { None }
}

/// The handshake with whoever has connected: whose seat it is.
fn receive_one(
    mut stream: TcpStream,
    identity: Arc<Identity>,
    count: usize,
    until: Instant,
) -> Option<(usize, TcpStream)> {
    wire::set_up(&stream);
    match wire::accept(&mut stream, identity, until) {
        // The handshake has refused who is not in the map, and node 1.
        Ok(NodeId(id)) => {
            let seat = usize::from(id).checked_sub(2).filter(|seat| *seat < count - 1)?;
            Some((seat, stream))
        }
        Err(cause) => {
            tracing::info!(%cause, "somebody who does not belong to the job has knocked");
            None
        }
    }
}

/// Hears a node until it leaves.
pub(super) fn follow(seat: usize, visit: u64, mut stream: TcpStream, events: &Sender<Event>) {
    let Ok(answers) = stream.try_clone() else { return };
    if events.send(Event::Came { seat, visit, stream: answers }).is_err() {
        return;
    }
    loop {
        let event = match wire::hear(&mut stream, None) {
            Ok(message) => Event::Said { seat, visit, message },
            Err(why) => Event::Left { seat, visit, why },
        };
        let is_over = matches!(event, Event::Left { .. });
        if events.send(event).is_err() || is_over {
            return;
        }
    }
}

fn identity(party: &Party) -> Identity {
    let nodes = (1..=party.hosts.len() as u16)
        .map(|id| Node { id: NodeId(id), weight: 1, addresses: Vec::new() })
        .collect();
    let map = ClusterMap {
        cluster: sealfs_proto::ClusterId([1; 16]),
        epoch: Epoch(1),
        shards_log2: limits::SHARDS_MIN.ilog2() as u8,
        chunk_size: limits::CHUNK_SIZE,
        nodes,
    };
    let serves = Serves { node: wire::FIRST, map: Arc::new(map) };
    Identity { key: party.key.clone(), serves: Some(serves) }
}

/// Handshakes at a time. A thousand nodes that come at the same moment wait in the kernel's queue.
const STRANGERS_MAX: usize = 256;
/// Of one address: a node of the job has one connection.
const ALIKE_MAX: usize = 32;
const PAUSE: Duration = Duration::from_millis(250);
/// Enough for a handshake and a message; there are up to 1,024 of them.
const STACK: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_goes_first_unless_it_may_be_root() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let one = |visit: u64, from: [u8; 4], is_roots| {
            let stream = stream.try_clone().unwrap();
            Stranger { visit, from: from.into(), is_roots, stream }
        };
        let same: Vec<_> = (0..ALIKE_MAX as u64).map(|at| one(at, [9, 0, 0, 1], false)).collect();
        assert_eq!(last_straw(&same, &one(99, [9, 0, 0, 1], false)), Some(0));
        assert_eq!(last_straw(&same, &one(99, [9, 0, 0, 1], true)), None, "a node beside them");
        assert_eq!(last_straw(&same, &one(99, [9, 0, 0, 2], false)), None);
        let mut many: Vec<_> =
            (0..STRANGERS_MAX as u64).map(|at| one(at, [9, 0, 1, at as u8], false)).collect();
        many[0].is_roots = true;
        assert_eq!(last_straw(&many, &one(999, [9, 0, 2, 0], false)), Some(1));
        many.iter_mut().for_each(|one| one.is_roots = true);
        assert_eq!(last_straw(&many, &one(999, [9, 0, 2, 0], true)), Some(0));
    }
}
