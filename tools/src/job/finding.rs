//! How a node of a job finds the first one: it tries all candidates, and the handshake tells whose each is.
//!
//! 1. A candidate that says nothing keeps nobody from the next one: that is tried after [`HEDGE`], while the other goes on.
//! 2. At most one connection to a candidate is being made at a time.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_proto::NodeId;

use super::meeting::{Party, ports_shown};
use super::wire;

/// Looks for the first node until it is found.
pub(super) fn find_first(party: &Arc<Party>, until: Instant) -> Result<TcpStream, String> {
    let (sender, tries) = mpsc::channel();
    let mut found = Found { busy: HashSet::new(), silent: String::new(), telling: None };
    let mut hosts: Vec<IpAddr> = Vec::new();
    let mut pause = PAUSE_MIN;
    'search: loop {
        match wire::lookup(&party.first, until) {
            Ok(all) => hosts = all,
            Err(cause) if hosts.is_empty() => found.telling = Some(cause),
            // Where it was before, it may still be.
            Err(_) => {}
        }
        for &port in &party.ports {
            for address in hosts.iter().map(|host| SocketAddr::new(*host, port)) {
                if Instant::now() >= until {
                    break 'search;
                }
                if !found.busy.insert(address) {
                    continue;
                }
                let (party, sender) = (Arc::clone(party), sender.clone());
                thread::spawn(move || sender.send((address, try_first(address, &party, until))));
                let next = until.min(Instant::now() + HEDGE);
                if let Some(stream) = found.hear(&tries, next, |tried| tried == address) {
                    return Ok(stream);
                }
            }
        }
        if Instant::now() >= until {
            break;
        }
        if let Some(stream) = found.hear(&tries, until.min(Instant::now() + pause), |_| false) {
            return Ok(stream);
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Err(format!(
        "{}, the first node of the job, was not found at {} on ports {} ({}); is `{}` running there, with the same host list \
         and the same site key?",
        party.hosts[0],
        party.first,
        ports_shown(&party.ports),
        found.telling.unwrap_or(found.silent),
        party.verb
    ))
}

/// What the candidates have said.
struct Found {
    /// Where the answer is still to come.
    busy: HashSet<SocketAddr>,
    /// A port that nobody listens on says less than one where somebody has answered.
    silent: String,
    telling: Option<String>,
}

type Tried = (SocketAddr, Result<TcpStream, NoFirst>);

impl Found {
    /// Hears the tries until one has found the first node, one `is_last`, or the time is over.
    fn hear(
        &mut self,
        tries: &Receiver<Tried>,
        until: Instant,
        is_last: impl Fn(SocketAddr) -> bool,
    ) -> Option<TcpStream> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (address, outcome) = tries.recv_timeout(left).ok()?;
            self.busy.remove(&address);
            match outcome {
                Ok(stream) => return Some(stream),
                Err(NoFirst::Silent(cause)) => self.silent = format!("{address}: {cause}"),
                Err(NoFirst::Told(cause)) => self.telling = Some(format!("{address}: {cause}")),
            }
            if is_last(address) {
                return None;
            }
        }
    }
}

fn try_first(address: SocketAddr, party: &Party, until: Instant) -> Result<TcpStream, NoFirst> {
    let id = NodeId(party.me as u16 + 1);
    let mut stream = wire::dial(address, until).map_err(NoFirst::Silent)?;
    wire::connect(&mut stream, &party.key, id, until).map_err(NoFirst::Told)?;
    Ok(stream)
}

/// Why the first node was not found at an address.
enum NoFirst {
    /// Nobody has answered.
    Silent(String),
    /// Somebody has.
    Told(String),
}

/// A node that is there answers sooner; it costs nothing if it does not.
const HEDGE: Duration = Duration::from_millis(250);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
