//! Where a job's nodes meet: at the first node of the host list, and nothing else passes between them.
//!
//! ```text
//! first node                                  any other node
//!   listens at the first free candidate         tries all candidates; the handshake tells whose it is
//!   round: collects everybody's part     <---   its own part, or why it failed
//!          decides                        --->  the verdict: what was decided, or who failed and why
//! ```
//! A round is everybody's part for one verdict, and all of `up` is a few rounds: addresses for the nodes' list, "my server
//! is ready" for "it is mounted", and so on.
//!
//! 1. The verdict of a round is given when everybody has taken part, or somebody has failed: nobody goes on before.
//! 2. Whoever is missing is named. A connection that closes is a node that is gone: seen at once; during the first round
//!    it may come back within [`GRACE`], later what it has begun is void.
//! 3. All parts and verdicts pass connections on which both ends have proven the key of this job and purpose, so that
//!    another job on the same port, and another user, are told apart and cannot take part.
//! 4. Strangers at the first node's port hold at most [`STRANGERS_MAX`] threads, for the length of a handshake.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_proto::{ClusterMap, Epoch, Node, NodeId, limits};
use sealfs_transport::{Identity, Key, Serves};

use super::wire::{self, Message};

/// Who meets, and where.
pub(super) struct Party {
    /// All nodes' names in the order of the host list; the first one is where they meet.
    pub(super) hosts: Vec<String>,
    /// Which of them this is.
    pub(super) me: usize,
    /// The first node's address, without port.
    pub(super) first: String,
    /// Ports at which the first node may listen.
    pub(super) ports: Vec<u16>,
    /// The key of this job's meetings for this purpose.
    pub(super) key: Key,
    /// What is to run on a node that does not come, for the error: `sealfs job up`.
    pub(super) verb: &'static str,
}

/// A meeting under way.
pub(super) struct Meeting {
    party: Arc<Party>,
    round: u32,
    role: Role,
    /// Of the last round, if it failed: whose fault that was, and who has never come.
    whose: Whose,
    absent: Vec<String>,
}

/// Why a job did not come up, and whose fault it is.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) whose: Whose,
    /// Nodes that have never come, as far as this node knows.
    pub(super) absent: Vec<String>,
    /// Names the node and the cause.
    pub(super) text: String,
}

/// Whose fault something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// This node's.
    Own,
    /// Another node's.
    Others,
    /// The job's, which asks for what cannot be.
    Jobs,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

enum Role {
    First(First),
    Other(Option<TcpStream>),
}

/// How a round ends for the first node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// At the first failure.
    AtOnce,
    /// When everybody has said something or is lost.
    WhenAllAreHeard,
}

/// What a node gives, or why it gives nothing.
pub(super) type Part = Result<String, String>;

impl Meeting {
    /// Begins. The first node listens from here on.
    pub(super) fn open(party: Party) -> Result<Self, String> {
        let party = Arc::new(party);
        let role =
            if party.me == 0 { Role::First(First::open(&party)?) } else { Role::Other(None) };
        Ok(Self { party, round: 0, role, whose: Whose::Others, absent: Vec::new() })
    }

    /// Gives this node's part, or says why there is none, and returns the verdict. The first node makes it with `decide` from
    /// all parts in the order of the hosts. The first failure is the verdict; it names the node that failed or is missing.
    pub(super) fn round(
        &mut self,
        mine: Part,
        until: Instant,
        decide: impl FnOnce(&[String]) -> Part,
    ) -> Part {
        self.any_round(mine, until, Ending::AtOnce, |parts| {
            let parts: Result<Vec<String>, String> = parts.into_iter().collect();
            decide(&parts?)
        })
    }

    /// The same, but everybody is heard out, and the first node decides whatever has failed.
    pub(super) fn patient_round(
        &mut self,
        mine: Part,
        until: Instant,
        decide: impl FnOnce(Vec<Part>) -> Part,
    ) -> Part {
        self.any_round(mine, until, Ending::WhenAllAreHeard, decide)
    }

    fn any_round(
        &mut self,
        mine: Part,
        until: Instant,
        ending: Ending,
        decide: impl FnOnce(Vec<Part>) -> Part,
    ) -> Part {
        let round = self.round;
        self.round += 1;
        self.absent.clear();
        let whose = &mut self.whose;
        *whose = if mine.is_err() { Whose::Own } else { Whose::Others };
        // The first node decides what is itself to do next.
        let decide = |parts| decide(parts).inspect_err(|_| *whose = Whose::Own);
        match &mut self.role {
            Role::First(first) => {
                let verdict = first.round(&self.party, round, mine, until, ending, decide);
                self.absent.clone_from(&first.absent);
                verdict
            }
            Role::Other(stream) => {
                other_round(&self.party, stream, round, mine, until, &mut self.absent)
            }
        }
    }

    /// The last round's error with whose fault it was.
    pub(super) fn fault(&self, text: String) -> Fault {
        Fault { whose: self.whose, absent: self.absent.clone(), text }
    }
}

/// A part of another node than the first.
fn other_round(
    party: &Party,
    stream: &mut Option<TcpStream>,
    round: u32,
    mine: Result<String, String>,
    until: Instant,
    absent: &mut Vec<String>,
) -> Result<String, String> {
    let message = Message { round, outcome: mine.into() };
    // The first node says why when its time is over, shortly after this node's.
    let until = until + LAST_WORD;
    let first = &party.hosts[0];
    let mut limit = until;
    loop {
        let mut open = match stream.take() {
            Some(open) => open,
            None => find_first(party, limit).inspect_err(|_| absent.push(first.clone()))?,
        };
        let heard = wire::tell(&mut open, &message, until)
            .and_then(|()| wire::hear(&mut open, Some(until)));
        match heard {
            Ok(verdict) if verdict.round == round => {
                *stream = Some(open);
                return verdict.outcome.into();
            }
            Ok(_) => {
                return Err(format!("{first} speaks of another round; it runs another release"));
            }
            Err(_) if round == 0 && limit == until && Instant::now() < until => {
                // It may be a first node that starts anew.
                limit = until.min(Instant::now() + GRACE);
            }
            Err(cause) => {
                return Err(format!("{first}, the first node of the job, is lost: {cause}"));
            }
        }
    }
}

/// Looks for the first node until it is found.
fn find_first(party: &Party, until: Instant) -> Result<TcpStream, String> {
    let id = NodeId(party.me as u16 + 1);
    let (mut silent, mut telling) = (String::new(), None);
    let mut pause = Duration::from_millis(20);
    loop {
        match (party.first.as_str(), party.ports[0]).to_socket_addrs() {
            Err(error) => telling = Some(error.to_string()),
            Ok(found) => {
                let hosts: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                let at = |port: u16| hosts.iter().map(move |host| SocketAddr::new(*host, port));
                for address in party.ports.iter().flat_map(|port| at(*port)) {
                    match try_first(address, &party.key, id, until) {
                        Ok(stream) => return Ok(stream),
                        // A port that nobody listens on says less than one where somebody has answered.
                        Err(NoFirst::Silent(cause)) => silent = format!("{address}: {cause}"),
                        Err(NoFirst::Told(cause)) => telling = Some(format!("{address}: {cause}")),
                    }
                }
            }
        }
        if Instant::now() + pause >= until {
            break;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    let cause = telling.unwrap_or(silent);
    Err(format!(
        "{}, the first node of the job, was not found at {} on ports {} to {} ({cause}); is `{}` running there, with the same \
         host list and the same site key?",
        party.hosts[0],
        party.first,
        party.ports[0],
        party.ports[party.ports.len() - 1],
        party.verb
    ))
}

fn try_first(
    address: SocketAddr,
    key: &Key,
    me: NodeId,
    until: Instant,
) -> Result<TcpStream, NoFirst> {
    let wait = CONNECT_MAX.min(until.saturating_duration_since(Instant::now()));
    if wait.is_zero() {
        return Err(NoFirst::Silent("no time is left".into()));
    }
    let mut stream = TcpStream::connect_timeout(&address, wait)
        .map_err(|error| NoFirst::Silent(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    wire::connect(&mut stream, key, me).map_err(NoFirst::Told)?;
    Ok(stream)
}

/// Why the first node was not found at an address.
enum NoFirst {
    /// Nobody has answered.
    Silent(String),
    /// Somebody has.
    Told(String),
}

/// The first node's end.
struct First {
    events: Receiver<Event>,
    seats: Vec<Seat>,
    /// Who was waited for in vain.
    absent: Vec<String>,
}

/// What the first node knows of one other node.
#[derive(Default)]
struct Seat {
    stream: Option<TcpStream>,
    /// Counts its connections, so that what an old one still says is not taken for the newest one's.
    visit: u64,
    /// When and why its connection ended, if none is there.
    left: Option<(Instant, String)>,
    said: Option<Message>,
}

enum Event {
    Came { seat: usize, visit: u64, stream: TcpStream },
    Said { seat: usize, visit: u64, message: Message },
    Left { seat: usize, visit: u64, why: String },
}

impl First {
    fn open(party: &Arc<Party>) -> Result<Self, String> {
        let (sender, events) = mpsc::channel();
        if party.hosts.len() > 1 {
            let listener = listen(party)?;
            let identity = Arc::new(identity(party));
            let count = party.hosts.len();
            thread::spawn(move || receive_all(&listener, &identity, count, &sender));
        }
        let seats = party.hosts.iter().skip(1).map(|_| Seat::default()).collect();
        Ok(Self { events, seats, absent: Vec::new() })
    }

    fn round(
        &mut self,
        party: &Party,
        round: u32,
        mine: Part,
        until: Instant,
        ending: Ending,
        decide: impl FnOnce(Vec<Part>) -> Part,
    ) -> Part {
        let first = &party.hosts[0];
        let mut parts = vec![mine.map_err(|why| format!("{first}: {why}"))];
        if parts[0].is_ok() || ending == Ending::WhenAllAreHeard {
            parts.extend(self.collect(party, round, until, ending));
        }
        let failed: Vec<&str> =
            parts.iter().filter_map(|part| Some(part.as_ref().err()?.as_str())).collect();
        let verdict = if failed.is_empty() || ending == Ending::WhenAllAreHeard {
            decide(parts)
        } else {
            Err(failed.join("; "))
        };
        let message = Message { round, outcome: verdict.clone().into() };
        for stream in self.seats.iter_mut().filter_map(|seat| seat.stream.as_mut()) {
            // Who does not hear it sees the connection close.
            let _ = wire::tell(stream, &message, Instant::now() + LAST_WORD);
        }
        verdict
    }

    /// The others' parts of a round, in the order of the hosts; with [`Ending::AtOnce`] what is there at the first failure.
    fn collect(&mut self, party: &Party, round: u32, until: Instant, ending: Ending) -> Vec<Part> {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            let standings = self.seats.iter().map(|seat| seat.standing(round, until, ending));
            let standings: Vec<Standing> = standings.map(|one| one.at(now)).collect();
            let open = standings.iter().filter_map(Standing::limit).min();
            let has_failed = standings.iter().any(|one| matches!(one, Standing::Failed(_)));
            let Some(open) = open.filter(|_| ending == Ending::WhenAllAreHeard || !has_failed)
            else {
                let hint = format!(
                    "never joined within {} s; is `{}` running there, with the same host list and the same site key, and does \
                     it reach {} on port {}?",
                    (now - began).as_secs_f64().round(),
                    party.verb,
                    party.first,
                    party.ports[0],
                );
                let named = || standings.iter().zip(&party.hosts[1..]);
                let absent = named().filter(|(standing, _)| matches!(standing, Standing::Missing));
                self.absent = absent.map(|(_, name)| name.clone()).collect();
                let named = standings.clone().into_iter().zip(&party.hosts[1..]);
                return named.map(|(standing, name)| standing.part(name, &hint)).collect();
            };
            match self.events.recv_timeout(open.saturating_duration_since(now)) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(PAUSE_MAX),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Came { seat, visit, stream } => {
                let seat = &mut self.seats[seat];
                if visit > seat.visit {
                    *seat = Seat { stream: Some(stream), visit, left: None, said: None };
                }
            }
            Event::Said { seat, visit, message } => {
                let seat = &mut self.seats[seat];
                if visit == seat.visit {
                    seat.said = Some(message);
                }
            }
            Event::Left { seat, visit, why } => {
                let seat = &mut self.seats[seat];
                if visit == seat.visit {
                    seat.stream = None;
                    seat.left = Some((Instant::now(), why));
                }
            }
        }
    }
}

/// How a node stands in a round.
#[derive(Clone)]
enum Standing {
    Gives(String),
    Failed(String),
    /// It has come, or has left, and may be waited for until then; and what it has failed by then.
    Waits(Instant, String),
    /// It has never come.
    Absent(Instant),
    /// It has never come, and its time is over.
    Missing,
}

impl Seat {
    fn standing(&self, round: u32, until: Instant, ending: Ending) -> Standing {
        let lost = |why: &str| format!("is lost: {why}");
        let said = self.said.as_ref().filter(|said| said.round >= round);
        match (said, &self.left) {
            (Some(said), _) if said.round > round => {
                Standing::Failed("speaks of another round; it runs another release".into())
            }
            (Some(Message { outcome: wire::Outcome::Failed(why), .. }), _) => {
                Standing::Failed(format!(": {why}"))
            }
            (Some(Message { outcome: wire::Outcome::Gives(text), .. }), left)
                // Who has done its part may go where nothing more is wanted of it.
                if left.is_none() || ending == Ending::WhenAllAreHeard =>
            {
                Standing::Gives(text.clone())
            }
            (_, Some((_, why))) if round > 0 => Standing::Failed(lost(why)),
            (_, Some((when, why))) => Standing::Waits(until.min(*when + GRACE), lost(why)),
            (_, None) if self.stream.is_some() => {
                Standing::Waits(until, "has come, but was not ready in time".into())
            }
            (_, None) => Standing::Absent(until),
        }
    }
}

impl Standing {
    /// The same when it is `now`.
    fn at(self, now: Instant) -> Self {
        match self {
            Self::Waits(limit, why) if limit <= now => Self::Failed(why),
            Self::Absent(limit) if limit <= now => Self::Missing,
            other => other,
        }
    }

    fn limit(&self) -> Option<Instant> {
        match self {
            Self::Waits(limit, _) | Self::Absent(limit) => Some(*limit),
            _ => None,
        }
    }

    /// What node `name` gives, at the end of a round; nothing yet, if the round ends early.
    fn part(self, name: &str, hint: &str) -> Part {
        match self {
            Self::Gives(text) => Ok(text),
            Self::Waits(..) | Self::Absent(_) => Ok(String::new()),
            Self::Failed(why) if why.starts_with(':') => Err(format!("{name}{why}")),
            Self::Failed(why) => Err(format!("{name} {why}")),
            Self::Missing => Err(format!("{name} {hint}")),
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

/// The first free candidate.
fn listen(party: &Party) -> Result<TcpListener, String> {
    let mut last = String::new();
    for &port in &party.ports {
        match TcpListener::bind((party.first.as_str(), port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!(
        "cannot listen at {}, ports {} to {}: {last}; `port-base` in the settings names others",
        party.first,
        party.ports[0],
        party.ports[party.ports.len() - 1]
    ))
}

/// Takes connections for as long as the process lives: a thread each.
fn receive_all(
    listener: &TcpListener,
    identity: &Arc<Identity>,
    count: usize,
    events: &Sender<Event>,
) {
    let places = Arc::new((Mutex::new(STRANGERS_MAX), Condvar::new()));
    for visit in 1.. {
        let (free, changed) = &*places;
        let lock = free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lock =
            changed.wait_while(lock, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *lock -= 1;
        drop(lock);
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, perhaps: the peer tries again, and so does this end.
            thread::sleep(PAUSE_MAX);
            leave(&places);
            continue;
        };
        let (identity, events) = (Arc::clone(identity), events.clone());
        let at_door = Arc::clone(&places);
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            let come = receive_one(stream, identity, count);
            leave(&at_door);
            if let Some((seat, stream)) = come {
                follow(seat, visit, stream, &events);
            }
        });
        if started.is_err() {
            leave(&places);
        }
    }
}

fn leave(places: &(Mutex<usize>, Condvar)) {
    *places.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    places.1.notify_one();
}

/// The handshake with whoever has connected: whose seat it is.
fn receive_one(
    mut stream: TcpStream,
    identity: Arc<Identity>,
    count: usize,
) -> Option<(usize, TcpStream)> {
    let _ = stream.set_nodelay(true);
    match wire::accept(&mut stream, identity) {
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
fn follow(seat: usize, visit: u64, mut stream: TcpStream, events: &Sender<Event>) {
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

/// For how long a node whose connection broke may be away.
const GRACE: Duration = Duration::from_secs(5);
/// For how long the others wait for the first node's last word after their own time is over.
const LAST_WORD: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(3);
const PAUSE_MAX: Duration = Duration::from_millis(250);
const STRANGERS_MAX: usize = 256;
/// Enough for a handshake and a message; there are up to 1,024 of them.
const STACK: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn party(names: &[&str], me: usize, port: u16, key: u8) -> Party {
        Party {
            hosts: names.iter().map(ToString::to_string).collect(),
            me,
            first: "127.0.0.1".into(),
            ports: vec![port, port + 1],
            key: Key::new([key; 32]),
            verb: "sealfs job up",
        }
    }

    /// Two ports of which nobody listens on the first one for now.
    fn port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().min(65_000)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn never(_: &[String]) -> Part {
        unreachable!("the first node decides")
    }

    #[test]
    fn everybody_gets_the_verdict_over_all_parts_in_the_order_of_the_hosts() {
        let (names, port) = (["a", "b", "c"], port());
        let others: Vec<_> = [2, 1]
            .map(|me| {
                thread::spawn(move || {
                    let mut meeting = Meeting::open(party(&names, me, port, 1)).unwrap();
                    let one = meeting.round(Ok(names[me].into()), soon(), never);
                    let two = meeting.round(Ok("x".into()), soon(), never);
                    [one, two]
                })
            })
            .into();
        let mut meeting = Meeting::open(party(&names, 0, port, 1)).unwrap();
        let join = |all: &[String]| Ok(all.join("+"));
        let one = meeting.round(Ok("a".into()), soon(), join);
        let two = meeting.round(Ok("y".into()), soon(), join);
        assert_eq!([&one, &two], [&Ok("a+b+c".to_string()), &Ok("y+x+x".to_string())]);
        for other in others {
            assert_eq!(other.join().unwrap(), [one.clone(), two.clone()]);
        }
    }

    #[test]
    fn one_who_fails_is_named_to_all() {
        let (names, port) = (["a", "b"], port());
        let other = thread::spawn(move || {
            let mut meeting = Meeting::open(party(&names, 1, port, 1)).unwrap();
            meeting.round(Err("no disk".into()), soon(), never)
        });
        let mut meeting = Meeting::open(party(&names, 0, port, 1)).unwrap();
        let told = meeting.round(Ok(String::new()), soon(), never);
        assert_eq!(told, Err("b: no disk".into()));
        assert_eq!(other.join().unwrap(), told);
    }

    #[test]
    fn who_is_missing_is_named_and_who_has_come_is_told() {
        let (names, port) = (["a", "b", "c"], port());
        let other = thread::spawn(move || {
            let mut meeting = Meeting::open(party(&names, 1, port, 1)).unwrap();
            meeting.round(Ok(String::new()), soon(), never)
        });
        let mut meeting = Meeting::open(party(&names, 0, port, 1)).unwrap();
        let until = Instant::now() + Duration::from_secs(1);
        let told = meeting.round(Ok(String::new()), until, never).unwrap_err();
        assert!(told.contains("c never joined"), "{told}");
        let heard = other.join().unwrap().unwrap_err();
        assert!(heard.contains("never joined") || heard.contains("is lost"), "{heard}");
    }

    #[test]
    fn one_who_dies_between_two_rounds_is_noticed_at_once_and_others_are_heard_out_if_wanted() {
        for is_patient in [false, true] {
            let (names, port) = (["a", "b", "c"], port());
            let others: Vec<_> = [1, 2]
                .map(|me| {
                    thread::spawn(move || {
                        let mut meeting = Meeting::open(party(&names, me, port, 1)).unwrap();
                        meeting.round(Ok(String::new()), soon(), never).unwrap();
                        (me == 2).then(|| meeting.round(Ok("c".into()), soon(), never))
                    })
                })
                .into();
            let mut meeting = Meeting::open(party(&names, 0, port, 1)).unwrap();
            meeting.round(Ok(String::new()), soon(), |_| Ok(String::new())).unwrap();
            let told = if is_patient {
                meeting.patient_round(Ok("a".into()), soon(), |parts| {
                    assert_eq!((&parts[0], &parts[2]), (&Ok("a".into()), &Ok("c".into())));
                    parts[1].clone()
                })
            } else {
                meeting.round(Ok(String::new()), soon(), never)
            };
            let told = told.unwrap_err();
            assert!(told.starts_with("b is lost: the connection broke"), "{told}");
            for heard in others.into_iter().filter_map(|other| other.join().unwrap()) {
                assert_eq!(heard, Err(told.clone()));
            }
        }
    }

    #[test]
    fn another_jobs_meeting_on_the_first_port_is_passed_by() {
        let (names, port) = (["a", "b"], port());
        let _other_job = Meeting::open(party(&names, 0, port, 2)).unwrap();
        let other = thread::spawn(move || {
            let mut meeting = Meeting::open(party(&names, 1, port, 1)).unwrap();
            meeting.round(Ok("b".into()), soon(), never)
        });
        let mut meeting = Meeting::open(party(&names, 0, port, 1)).unwrap();
        let join = |all: &[String]| Ok(all.join("+"));
        assert_eq!(meeting.round(Ok("a".into()), soon(), join), Ok("a+b".into()));
        assert_eq!(other.join().unwrap(), Ok("a+b".into()));
    }

    #[test]
    fn a_first_node_that_is_not_there_is_named_with_what_to_do() {
        let mut meeting = Meeting::open(party(&["a", "b"], 1, port(), 1)).unwrap();
        let past = Instant::now() - LAST_WORD;
        let error = meeting.round(Ok(String::new()), past, never).unwrap_err();
        assert!(error.contains("a, the first node of the job, was not found"), "{error}");
        assert!(error.contains("site key"), "{error}");
    }
}
