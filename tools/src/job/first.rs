//! A round of a meeting, seen from the first node: it collects everybody's part and tells everybody the verdict.

use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use super::door::Door;
use super::meeting::{
    Blame, Ending, Event, GRACE, LAST_WORD, LINGER_MAX, Part, Party, Seen, Terms, joined, named,
};
use super::wire::{self, Message, Outcome};

/// The first node's end.
pub(super) struct First {
    seats: Vec<Seat>,
    /// Where it listens; 0 if it is alone.
    port: u16,
    began: Instant,
}

/// What the first node knows of one other node.
#[derive(Default)]
struct Seat {
    stream: Option<TcpStream>,
    /// Counts its connections, so that what an old one still says is not taken for the newest one's. 0: it has never come.
    visit: u64,
    /// When and why its connection ended, if none is there.
    left: Option<(Instant, String)>,
    said: Option<Message>,
}

impl First {
    pub(super) fn open(
        party: &Party,
        until: Instant,
        events: &Sender<Event>,
    ) -> Result<Self, String> {
        let mut port = 0;
        if party.hosts.len() > 1 {
            let door = Door::open(party, until)?;
            port = door.port;
            door.stand_open(party, until + LAST_WORD, events.clone());
        }
        let seats = party.hosts.iter().skip(1).map(|_| Seat::default()).collect();
        Ok(Self { seats, port, began: Instant::now() })
    }

    pub(super) fn round(
        &mut self,
        party: &Party,
        terms: &Terms,
        events: &Receiver<Event>,
        broken: &mut Option<String>,
        decide: impl FnOnce(&[String]) -> Result<String, Blame>,
    ) -> Seen {
        let mine = self.collect(party, terms, events, broken);
        let is_own = mine.is_err();
        let absent = self.absent(party, terms);
        let mut seen = Seen { verdict: Ok(String::new()), is_own, absent };
        seen.verdict = self.parts(party, terms, mine, &seen.absent).and_then(|parts| {
            decide(&parts).map_err(|Blame { at, text }| {
                seen.is_own = at.contains(&0);
                let others = at.iter().filter(|at| **at > 0);
                seen.absent = others.map(|at| party.hosts[*at].clone()).collect();
                text
            })
        });
        let outcome: Outcome = seen.verdict.clone().into();
        let streams = self.seats.iter().filter_map(|seat| seat.stream.as_ref());
        // Who does not hear it sees the connection close.
        let message = Message { round: terms.round, outcome };
        let _ = wire::tell(streams, &message, Instant::now() + LAST_WORD);
        if terms.round == 0 && seen.verdict.is_err() && terms.ending == Ending::AtOnce {
            self.linger(events, &message, terms.until.min(Instant::now() + LINGER_MAX));
        }
        seen
    }

    /// Hears everybody, as far as the round wants it; returns this node's own part, which is empty if it was not waited for.
    fn collect(
        &mut self,
        party: &Party,
        terms: &Terms,
        events: &Receiver<Event>,
        broken: &mut Option<String>,
    ) -> Part {
        let mut mine: Option<Part> = broken.clone().map(Err);
        loop {
            let now = Instant::now();
            let (mut open, mut has_failed) = (None, matches!(mine, Some(Err(_))));
            for standing in self.seats.iter().map(|seat| seat.standing(terms, now)) {
                match standing {
                    Standing::Waits(limit) => open = open.into_iter().chain([limit]).min(),
                    Standing::Gives(_) => {}
                    Standing::Fails(_) | Standing::Missing => has_failed = true,
                }
            }
            let is_over = match terms.ending {
                Ending::AtOnce => has_failed || (open.is_none() && mine.is_some()),
                Ending::WhenAllAreHeard => open.is_none() && mine.is_some(),
                Ending::WhenDone => mine.is_some(),
            };
            if is_over {
                return mine.unwrap_or(Ok(String::new()));
            }
            let event = match open {
                Some(limit) => events.recv_timeout(limit.saturating_duration_since(now)),
                // Its own part has an end of its own.
                None => events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Mine { round, part }) if round == terms.round => {
                    mine = mine.filter(Result::is_err).or(Some(part));
                }
                Ok(Event::Broke(why)) => {
                    *broken = Some(why.clone());
                    mine = Some(Err(why));
                }
                Ok(event) => self.take(party, terms, event),
                // The sender is this node's, too.
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, party: &Party, terms: &Terms, event: Event) {
        match event {
            Event::Came { seat: at, visit, stream } if terms.round > 0 => {
                let (name, seat) = (&party.hosts[at + 1], &mut self.seats[at]);
                let why = match seat.visit {
                    0 => format!("{name} came when the others had begun without it"),
                    _ => format!("{name} started anew when the job's nodes had met"),
                };
                let told = Message { round: 0, outcome: Outcome::Failed(why) };
                let _ = wire::tell([&stream], &told, Instant::now() + LAST_WORD);
                if seat.stream.take().is_some() {
                    *seat = Seat { visit, ..Seat::default() };
                    seat.left = Some((Instant::now(), "it started anew".into()));
                }
            }
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
                if visit == seat.visit && seat.stream.take().is_some() {
                    seat.left = Some((Instant::now(), why));
                }
            }
            Event::Mine { .. } | Event::Broke(_) | Event::Found(_) => {}
        }
    }

    /// Who has never come.
    fn absent(&self, party: &Party, terms: &Terms) -> Vec<String> {
        let now = Instant::now();
        let seats = self.seats.iter().zip(&party.hosts[1..]);
        let missing =
            seats.filter(|(seat, _)| matches!(seat.standing(terms, now), Standing::Missing));
        missing.map(|(_, name)| name.clone()).collect()
    }

    /// Everybody's part in the order of the hosts, or all causes. Who was not heard in a round that needs nobody gives nothing.
    fn parts(
        &self,
        party: &Party,
        terms: &Terms,
        mine: Part,
        absent: &[String],
    ) -> Result<Vec<String>, String> {
        let now = Instant::now();
        let (mut parts, mut causes) = (Vec::new(), Vec::new());
        match mine {
            Ok(part) => parts.push(part),
            Err(why) => causes.push(format!("{}: {why}", party.hosts[0])),
        }
        if terms.ending == Ending::WhenDone {
            return if causes.is_empty() { Ok(parts) } else { Err(joined(&causes)) };
        }
        for (seat, name) in self.seats.iter().zip(&party.hosts[1..]) {
            match seat.standing(terms, now) {
                Standing::Gives(text) => parts.push(text.to_string()),
                Standing::Fails(why) => causes.push(why.of(name)),
                Standing::Missing | Standing::Waits(_) => {}
            }
        }
        if !absent.is_empty() {
            let names: Vec<&str> = absent.iter().map(String::as_str).collect();
            causes.push(format!(
                "{} never joined within {} s; is `{}` running there, with the same host list and the same site key, and does \
                 it reach {} on port {}?",
                named(&names),
                (now - self.began).as_secs_f64().round(),
                party.verb,
                party.first,
                self.port,
            ));
        }
        if causes.is_empty() { Ok(parts) } else { Err(joined(&causes)) }
    }

    /// Tells the verdict to those who come only now.
    fn linger(&mut self, events: &Receiver<Event>, verdict: &Message, until: Instant) {
        while self.seats.iter().any(|seat| seat.visit == 0) {
            let left = until.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Came { seat, visit, stream }) => {
                    self.seats[seat].visit = visit;
                    let _ = wire::tell([&stream], verdict, Instant::now() + LAST_WORD);
                    // It is kept, so that the other end reads this before the end of the connection.
                    self.seats[seat].stream = Some(stream);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// How a node stands in a round.
#[derive(Clone, Copy)]
enum Standing<'a> {
    Gives(&'a str),
    Fails(Why<'a>),
    /// It may be waited for until then.
    Waits(Instant),
    /// It has never come, and its time is over.
    Missing,
}

/// Why a node that has come has failed.
#[derive(Clone, Copy)]
enum Why<'a> {
    Says(&'a str),
    Lost(&'a str),
    Late,
    OtherRound,
}

impl Seat {
    fn standing(&self, terms: &Terms, now: Instant) -> Standing<'_> {
        let round = terms.round;
        let waits = |until: Instant, why: Why<'static>| {
            if until <= now { Standing::Fails(why) } else { Standing::Waits(until) }
        };
        match (&self.said, &self.left) {
            (Some(Message { round: spoken, .. }), _) if *spoken > round => {
                Standing::Fails(Why::OtherRound)
            }
            // What has failed in an earlier round is no better now.
            (Some(Message { outcome: Outcome::Failed(why), .. }), _) => {
                Standing::Fails(Why::Says(why))
            }
            (Some(Message { round: spoken, outcome: Outcome::Gives(text) }), left)
                // Who has done its part may go where nothing more is wanted of it.
                if *spoken == round && (left.is_none() || terms.ending != Ending::AtOnce) =>
            {
                Standing::Gives(text)
            }
            (_, Some((_, why))) if round > 0 => Standing::Fails(Why::Lost(why)),
            (_, Some((when, why))) => match terms.until.min(*when + GRACE) {
                limit if limit <= now => Standing::Fails(Why::Lost(why)),
                limit => Standing::Waits(limit),
            },
            (_, None) if self.stream.is_some() => waits(terms.until, Why::Late),
            (_, None) if terms.absent_until <= now || round > 0 => Standing::Missing,
            (_, None) => Standing::Waits(terms.absent_until),
        }
    }
}

impl Why<'_> {
    /// The cause, if it is node `name`'s.
    fn of(self, name: &str) -> String {
        match self {
            Self::Says(why) => format!("{name}: {why}"),
            Self::Lost(why) => format!("{name} is lost: {why}"),
            Self::Late => format!("{name} has come, but was not ready in time"),
            Self::OtherRound => format!("{name} speaks of another round; it runs another release"),
        }
    }
}
