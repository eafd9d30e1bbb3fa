//! Where a job's nodes meet: at the first node of the host list, and nothing else passes between them.
//!
//! ```text
//! first node                                  any other node
//!   listens at the first free candidate         tries the candidates; the handshake tells whose each is
//!   round: collects everybody's part     <---   its own part, or why it failed
//!          decides                        --->  the verdict: what was decided, or who failed and why
//! ```
//! A round is everybody's part for one verdict, and all of `up` is a few rounds: addresses for the nodes' list, "my server
//! is ready" for "ask all servers", and so on. A node does its part in a thread, and hears the others meanwhile.
//!
//! | module | what |
//! |---|---|
//! | `door` | where the first node listens, and whom it lets in |
//! | `finding` | how the others find it |
//! | `first`, `other` | a round, seen from either end |
//!
//! 1. The verdict of a round is given when everybody has taken part, or somebody has failed: nobody goes on before.
//! 2. Whoever is missing is named. A connection that closes is a node that is gone: seen at once, and soon where a machine
//!    has stopped (`wire`). During the first round it may come back within [`GRACE`], later what it has begun is void, and
//!    who comes then is told so.
//! 3. All parts and verdicts pass connections on which both ends have proven the key of this job and purpose, so that
//!    another job on the same port, and another user, are told apart and cannot take part.
//! 4. Who fails in the first round stays to say so for up to [`LINGER_MAX`]: the others need not wait for their deadline.
//! 5. Once a round has failed, what this node still does for it is stopped.

use std::net::TcpStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_transport::Key;

use super::first::First;
use super::other::Other;
use super::stop::Stop;
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
    sender: Sender<Event>,
    events: Receiver<Event>,
    /// Why this node's server has ended, if it has.
    broken: Option<String>,
    /// Of the last round, if it failed: whose fault that was, and which nodes were at fault or have never come.
    whose: Whose,
    absent: Vec<String>,
}

/// Why a job did not come up, and whose fault it is.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) whose: Whose,
    /// Nodes that are at fault and cannot say so, as far as this node knows: they have never come, or nobody reaches them.
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

/// What the first node finds wrong with the parts of a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blame {
    /// The places of the nodes at fault.
    pub(super) at: Vec<usize>,
    pub(super) text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

enum Role {
    First(First),
    Other(Other),
}

/// What a node gives, or why it gives nothing.
pub(super) type Part = Result<String, String>;

/// What is settled of a round.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Counted from 0.
    pub(super) round: u32,
    pub(super) ending: Ending,
    /// How long nodes are waited for that have never come,
    pub(super) absent_until: Instant,
    /// and those that have.
    pub(super) until: Instant,
}

/// How a round ends for the first node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// At the first failure.
    AtOnce,
    /// When everybody has said something or is lost.
    WhenAllAreHeard,
    /// When its own part is done.
    WhenDone,
}

/// What happens at a node during a meeting.
pub(super) enum Event {
    /// This node's own part is done.
    Mine {
        round: u32,
        part: Part,
    },
    /// This node's server has ended.
    Broke(String),
    /// This node has found the first one, or has not in its time.
    Found(Result<TcpStream, String>),
    /// Another node has come to the first one, for the `visit`th connection; this one has come to the first.
    Came {
        seat: usize,
        visit: u64,
        stream: TcpStream,
    },
    Said {
        seat: usize,
        visit: u64,
        message: Message,
    },
    Left {
        seat: usize,
        visit: u64,
        why: String,
    },
}

/// Watches this node's server: when it ends, the round under way has failed.
pub(super) struct Watch(Sender<Event>);

impl Watch {
    /// From here on; `last_words`: what it said when it has ended.
    pub(super) fn over(&self, mut server: Child, last_words: impl Fn() -> String + Send + 'static) {
        let sender = self.0.clone();
        thread::spawn(move || {
            let ended = server.wait().map_or_else(|error| error.to_string(), |end| end.to_string());
            let why = format!("its server has ended ({ended}): {}", last_words());
            // Nobody may hear it any more.
            let _ = sender.send(Event::Broke(why));
        });
    }
}

/// A round as one end has seen it.
pub(super) struct Seen {
    pub(super) verdict: Part,
    /// Whether this node is at fault.
    pub(super) is_own: bool,
    /// Which other nodes are, as far as they cannot say so.
    pub(super) absent: Vec<String>,
}

impl Meeting {
    /// Begins. The first node listens from here on. `until`: when nobody needs to come any more.
    pub(super) fn open(party: Party, until: Instant) -> Result<Self, String> {
        let party = Arc::new(party);
        let (sender, events) = mpsc::channel();
        let role = if party.me == 0 {
            Role::First(First::open(&party, until, &sender)?)
        } else {
            Role::Other(Other::default())
        };
        let (whose, absent, broken) = (Whose::Others, Vec::new(), None);
        Ok(Self { party, round: 0, role, sender, events, broken, whose, absent })
    }

    /// For whoever starts this node's server.
    pub(super) fn watch(&self) -> Watch {
        Watch(self.sender.clone())
    }

    /// Does this node's part, or says why it cannot, and returns the verdict. The first node makes it with `decide` from all parts
    /// in the order of the hosts. The first failure is the verdict; it names the node that failed or is missing.
    pub(super) fn round(
        &mut self,
        until: Instant,
        mine: impl FnOnce(&Stop) -> Part + Send,
        decide: impl FnOnce(&[String]) -> Result<String, Blame>,
    ) -> Part {
        self.any_round(Ending::AtOnce, [until; 2], mine, decide)
    }

    /// The same, but everybody is heard out, or has not come until `absent_until`, or is not ready `until` then; the verdict
    /// names all that have failed.
    pub(super) fn patient_round(
        &mut self,
        absent_until: Instant,
        until: Instant,
        mine: impl FnOnce(&Stop) -> Part + Send,
    ) -> Part {
        let nothing = |_: &[String]| Ok(String::new());
        self.any_round(Ending::WhenAllAreHeard, [absent_until, until], mine, nothing)
    }

    /// The first node does `work`, and the others wait for the end of it, at most until it is `until`.
    pub(super) fn first_alone(
        &mut self,
        until: Instant,
        work: impl FnOnce(&Stop) -> Part + Send,
    ) -> Part {
        let is_first = self.party.me == 0;
        let mine = |stop: &Stop| if is_first { work(stop) } else { Ok(String::new()) };
        self.any_round(Ending::WhenDone, [until; 2], mine, |_| Ok(String::new()))
    }

    fn any_round(
        &mut self,
        ending: Ending,
        [absent_until, until]: [Instant; 2],
        mine: impl FnOnce(&Stop) -> Part + Send,
        decide: impl FnOnce(&[String]) -> Result<String, Blame>,
    ) -> Part {
        let terms = Terms { round: self.round, ending, absent_until, until };
        self.round += 1;
        let stop = Stop::new()?;
        let (sender, round) = (self.sender.clone(), terms.round);
        let seen = thread::scope(|scope| {
            scope.spawn(|| {
                let part = mine(&stop).map_err(|why| wire::short(&why, CAUSE_LEN_MAX));
                sender.send(Event::Mine { round, part })
            });
            let (events, broken) = (&self.events, &mut self.broken);
            let seen = match &mut self.role {
                Role::First(first) => first.round(&self.party, &terms, events, broken, decide),
                Role::Other(other) => {
                    other.round(&self.party, &terms, (&self.sender, events), broken)
                }
            };
            stop.pull();
            seen
        });
        self.whose = if seen.is_own { Whose::Own } else { Whose::Others };
        self.absent = seen.absent;
        seen.verdict
    }

    /// Whether this node's server has ended.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The last round's error with whose fault it was.
    pub(super) fn fault(&self, text: String) -> Fault {
        Fault { whose: self.whose, absent: self.absent.clone(), text }
    }
}

/// The causes of a failure in one text that every node can be told.
pub(super) fn joined(causes: &[String]) -> String {
    let shown = causes.iter().take(CAUSES_MAX).map(|cause| wire::short(cause, CAUSE_LEN_MAX));
    let mut shown: Vec<String> = shown.collect();
    if causes.len() > CAUSES_MAX {
        shown.push(format!("and {} more nodes have failed", causes.len() - CAUSES_MAX));
    }
    shown.join("; ")
}

/// Some names, and how many more there are.
pub(super) fn named(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Ports as the runs that they are: `21990 to 21999 and 21000 to 21053`.
pub(super) fn ports_shown(ports: &[u16]) -> String {
    let runs = ports.chunk_by(|one, next| u32::from(*one) + 1 == u32::from(*next));
    let shown = runs.map(|run| match run {
        [one] => one.to_string(),
        _ => format!("{} to {}", run[0], run[run.len() - 1]),
    });
    shown.collect::<Vec<_>>().join(" and ")
}

/// For how long a node whose connection broke may be away.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// For how long the others wait for the first node's last word after their own time is over.
pub(super) const LAST_WORD: Duration = Duration::from_secs(5);
/// For how long who has failed in the first round waits for the others, to tell them: a scheduler starts all within that.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(20);
/// Of one node's cause, bytes; its own log has all.
const CAUSE_LEN_MAX: usize = 4 << 10;
/// Of a verdict, so that it is far shorter than the longest message.
const CAUSES_MAX: usize = 32;
const NAMES_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicU16, Ordering};

    /// Where a test's parties meet: an address that no other process has, and ports of which no connection of this one's
    /// can be given one, for they are below those that the kernel gives away.
    #[derive(Clone)]
    struct Place {
        host: String,
        ports: Vec<u16>,
    }

    impl Place {
        fn new() -> Self {
            static NEXT: AtomicU16 = AtomicU16::new(20_000);
            // A pid has at most 22 bits.
            let [_, b, c, d] = (std::process::id() | 1 << 23).to_be_bytes();
            let port = NEXT.fetch_add(8, Ordering::Relaxed);
            Self { host: format!("127.{b}.{c}.{d}"), ports: (port..port + 8).collect() }
        }

        fn party(&self, names: &[&str], me: usize, key: u8) -> Party {
            Party {
                hosts: names.iter().map(ToString::to_string).collect(),
                me,
                first: self.host.clone(),
                ports: self.ports.clone(),
                key: Key::new([key; 32]),
                verb: "sealfs job up",
            }
        }

        fn open(&self, names: &[&str], me: usize) -> Meeting {
            Meeting::open(self.party(names, me, 1), soon()).unwrap()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn never(_: &[String]) -> Result<String, Blame> {
        unreachable!("the first node decides")
    }

    fn gives(text: &str) -> impl FnOnce(&Stop) -> Part + Send + 'static {
        let part = Ok(text.to_string());
        move |_| part
    }

    fn fails(text: &str) -> impl FnOnce(&Stop) -> Part + Send + 'static {
        let part = Err(text.to_string());
        move |_| part
    }

    fn all(parts: &[String]) -> Result<String, Blame> {
        Ok(parts.join("+"))
    }

    #[test]
    fn everybody_gets_the_verdict_over_all_parts_in_the_order_of_the_hosts() {
        let (names, place) = (["a", "b", "c"], Place::new());
        let others = [2, 1].map(|me| {
            let mut meeting = place.open(&names, me);
            thread::spawn(move || {
                let one = meeting.round(soon(), gives(names[me]), never);
                [one, meeting.round(soon(), gives("x"), never)]
            })
        });
        let mut meeting = place.open(&names, 0);
        let one = meeting.round(soon(), gives("a"), all);
        let two = meeting.round(soon(), gives("y"), all);
        assert_eq!([&one, &two], [&Ok("a+b+c".to_string()), &Ok("y+x+x".to_string())]);
        for other in others {
            assert_eq!(other.join().unwrap(), [one.clone(), two.clone()]);
        }
    }

    #[test]
    fn one_who_fails_is_named_to_all_and_all_others_stop() {
        let (names, place) = (["a", "b", "c"], Place::new());
        let mut failing = place.open(&names, 1);
        let failing = thread::spawn(move || failing.round(soon(), fails("no disk"), never));
        // Has something to do for ever.
        let sleeps = |stop: &Stop| {
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            Err(stop.wait(&mut child, soon()).unwrap_err())
        };
        let mut busy = place.open(&names, 2);
        let busy = thread::spawn(move || {
            let told = busy.round(soon(), sleeps, never);
            (busy.fault(String::new()).whose, told)
        });
        let mut meeting = place.open(&names, 0);
        let told = meeting.round(soon(), sleeps, never);
        assert_eq!(told, Err("b: no disk".into()));
        assert_eq!(meeting.fault(String::new()).whose, Whose::Others);
        assert_eq!(failing.join().unwrap(), told);
        assert_eq!(busy.join().unwrap(), (Whose::Others, told));
    }

    #[test]
    fn a_first_node_that_has_failed_stays_to_say_so() {
        let (names, place) = (["a", "b"], Place::new());
        let mut first = place.open(&names, 0);
        let failing = thread::spawn(move || {
            let told = first.round(soon(), fails("no disk"), never);
            (first.fault(String::new()).whose, told)
        });
        let mut late = place.open(&names, 1);
        let told = late.round(soon(), gives(""), never);
        assert_eq!(told, Err("a: no disk".into()));
        assert_eq!(failing.join().unwrap(), (Whose::Own, told));
    }

    #[test]
    fn one_who_fails_and_finds_no_first_node_says_its_own_cause() {
        let place = Place::new();
        let mut meeting = place.open(&["a", "b"], 1);
        let until = Instant::now() - LAST_WORD;
        assert_eq!(meeting.round(until, fails("no disk"), never), Err("no disk".into()));
    }

    #[test]
    fn who_is_missing_is_named_with_the_port_and_who_has_come_is_told() {
        let (names, place) = (["a", "b", "c"], Place::new());
        // The first candidate is another program's.
        let _taken = TcpListener::bind((place.host.as_str(), place.ports[0])).unwrap();
        let mut other = place.open(&names, 1);
        let other = thread::spawn(move || other.round(soon(), gives(""), never));
        let mut meeting = place.open(&names, 0);
        let until = Instant::now() + Duration::from_secs(1);
        let told = meeting.round(until, gives(""), never).unwrap_err();
        assert!(told.contains("c never joined"), "{told}");
        assert!(told.contains(&format!("on port {}?", place.ports[1])), "{told}");
        let heard = other.join().unwrap().unwrap_err();
        assert!(heard.contains("never joined") || heard.contains("is lost"), "{heard}");
    }

    #[test]
    fn one_who_dies_between_two_rounds_is_noticed_at_once() {
        let (names, place) = (["a", "b", "c"], Place::new());
        let others = [1, 2].map(|me| {
            let mut meeting = place.open(&names, me);
            thread::spawn(move || {
                meeting.round(soon(), gives(""), never).unwrap();
                (me == 2).then(|| meeting.round(soon(), gives("c"), never))
            })
        });
        let mut meeting = place.open(&names, 0);
        meeting.round(soon(), gives(""), all).unwrap();
        let told = meeting.round(soon(), gives(""), never).unwrap_err();
        assert!(told.starts_with("b is lost: the connection broke"), "{told}");
        for heard in others.into_iter().filter_map(|other| other.join().unwrap()) {
            assert_eq!(heard, Err(told.clone()));
        }
    }

    #[test]
    fn all_are_heard_out_where_that_is_wanted_and_the_first_one_finishes_for_those_that_wait() {
        let (names, place) = (["a", "b", "c", "d"], Place::new());
        let others = [1, 2].map(|me| {
            let mut meeting = place.open(&names, me);
            let part = if me == 1 { Err("no room".to_string()) } else { Ok("c".into()) };
            let mine = move |_: &Stop| part;
            thread::spawn(move || {
                let parts = meeting.patient_round(soon(), soon(), mine);
                (parts, meeting.first_alone(soon(), |_| unreachable!("the first node works")))
            })
        });
        let mut meeting = place.open(&names, 0);
        let absent_until = Instant::now() + Duration::from_secs(1);
        let parts = meeting.patient_round(absent_until, soon(), gives("a"));
        let told = parts.clone().unwrap_err();
        assert!(told.starts_with("b: no room; d never joined"), "{told}");
        let mut late = place.open(&names, 3);
        let late = thread::spawn(move || late.patient_round(soon(), soon(), gives("d")));
        let finished = meeting.first_alone(soon(), move |_| {
            let late = late.join().unwrap();
            assert_eq!(late, Err("d came when the others had begun without it".into()));
            Ok("done".into())
        });
        assert_eq!(finished, Ok(String::new()));
        for other in others {
            assert_eq!(other.join().unwrap(), (parts.clone(), finished.clone()));
        }
    }

    #[test]
    fn one_who_starts_anew_after_the_first_round_is_told_at_once_and_named() {
        let (names, place) = (["a", "b"], Place::new());
        let mut before = place.open(&names, 1);
        let before = thread::spawn(move || {
            before.round(soon(), gives(""), never).unwrap();
            before
        });
        let mut meeting = place.open(&names, 0);
        meeting.round(soon(), gives(""), all).unwrap();
        // The connection of the first one stands, as when its machine has lost power.
        let before = before.join().unwrap();
        let mut anew = place.open(&names, 1);
        let anew = thread::spawn(move || anew.round(soon(), gives(""), never));
        let told = meeting.round(soon(), gives(""), never);
        assert_eq!(told, Err("b is lost: it started anew".into()));
        let heard = anew.join().unwrap();
        assert_eq!(heard, Err("b started anew when the job's nodes had met".into()));
        drop(before);
    }

    #[test]
    fn a_server_that_ends_fails_the_round_with_its_last_words() {
        for broken in [0, 1] {
            let (names, place) = (["a", "b"], Place::new());
            let run = move |mut meeting: Meeting, me: usize| {
                meeting.round(soon(), gives(""), |_| Ok(String::new())).unwrap();
                let watch = meeting.watch();
                let mine = move |stop: &Stop| {
                    let mut server = std::process::Command::new("sleep");
                    let server = server.arg(if me == broken { "0" } else { "1000" });
                    let mut server = server.spawn().unwrap();
                    if me == broken {
                        watch.over(server, || "no memory".into());
                        return Ok(String::new());
                    }
                    Err(stop.wait(&mut server, soon()).unwrap_err())
                };
                meeting.round(soon(), mine, never)
            };
            let other = place.open(&names, 1);
            let other = thread::spawn(move || run(other, 1));
            let told = run(place.open(&names, 0), 0);
            let why = "its server has ended (exit status: 0): no memory";
            assert_eq!(told, Err(format!("{}: {why}", names[broken])));
            assert_eq!(other.join().unwrap(), told);
        }
    }

    #[test]
    fn another_jobs_meeting_on_the_first_port_is_passed_by() {
        let (names, place) = (["a", "b"], Place::new());
        let _other_job = Meeting::open(place.party(&names, 0, 2), soon()).unwrap();
        let mut other = place.open(&names, 1);
        let other = thread::spawn(move || other.round(soon(), gives("b"), never));
        let mut meeting = place.open(&names, 0);
        assert_eq!(meeting.round(soon(), gives("a"), all), Ok("a+b".into()));
        assert_eq!(other.join().unwrap(), Ok("a+b".into()));
    }

    #[test]
    fn strangers_keep_nobody_out() {
        let (names, mut place) = (["a", "b"], Place::new());
        // Who listens at the first candidates and says nothing, longer than any handshake lasts,
        let silent: Vec<TcpListener> = place.ports[..6]
            .iter()
            .map(|port| TcpListener::bind((place.host.as_str(), *port)).unwrap())
            .collect();
        let mut meeting = place.open(&names, 0);
        // and who fills the meeting itself with connections that say nothing.
        place.ports.drain(..6);
        let at = (place.host.clone(), place.ports[0]);
        let idle: Vec<TcpStream> =
            (0..600).filter_map(|_| TcpStream::connect(at.clone()).ok()).collect();
        assert!(idle.len() > 256, "{}", idle.len());
        place.ports = (place.ports[0] - 6..place.ports[0] + 2).collect();
        let mut other = place.open(&names, 1);
        let began = Instant::now();
        let other = thread::spawn(move || other.round(soon(), gives("b"), never));
        assert_eq!(meeting.round(soon(), gives("a"), all), Ok("a+b".into()));
        // One handshake with a silent listener would have lasted 10 s.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(other.join().unwrap(), Ok("a+b".into()));
        drop((silent, idle));
    }

    #[test]
    fn a_first_node_that_is_not_there_is_named_with_what_to_do() {
        let mut meeting = Place::new().open(&["a", "b"], 1);
        let until = Instant::now() + Duration::from_secs(3) - LAST_WORD;
        let error = meeting.round(until, gives(""), never).unwrap_err();
        assert!(error.contains("a, the first node of the job, was not found"), "{error}");
        assert!(error.contains("refused") && error.contains("site key"), "{error}");
        assert_eq!(meeting.fault(String::new()).absent, ["a"]);
    }

    #[test]
    fn many_causes_and_names_make_a_text_that_can_be_told() {
        let causes: Vec<String> =
            (0..1_000).map(|at| format!("{at}{}", "é".repeat(9_999))).collect();
        let text = joined(&causes);
        assert!(text.len() < 256 << 10, "{}", text.len());
        assert!(text.contains("31é") && text.ends_with("and 968 more nodes have failed"));
        let names: Vec<String> = (0..1_000).map(|at| format!("n{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(named(&names), "n0, n1, n2, n3, n4, n5, n6, n7 and 992 more");
        assert_eq!(named(&names[..1]), "n0");
        assert_eq!(ports_shown(&[5, 6, 7]), "5 to 7");
        assert_eq!(ports_shown(&[8, 9, 1, 2]), "8 to 9 and 1 to 2");
    }
}
