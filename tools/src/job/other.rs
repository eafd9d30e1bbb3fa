//! A round of a meeting, seen from any node but the first: it gives its part and hears the verdict.

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::door::follow;
use super::finding::find_first;
use super::meeting::{Ending, Event, GRACE, LAST_WORD, LINGER_MAX, Part, Party, Seen, Terms};
use super::wire::{self, Message};

/// Another node's end.
#[derive(Default)]
pub(super) struct Other {
    stream: Option<TcpStream>,
    /// Counts the connections.
    visit: u64,
    is_looking: bool,
    /// A connection has broken once.
    has_lost: bool,
    was_not_found: bool,
    /// Why the first node is not there any more.
    gone: Option<String>,
}

/// What this node has done of a round.
struct Own {
    part: Option<Part>,
    is_told: bool,
    /// When it is no use any more to look for the first node,
    look_until: Instant,
    /// and to wait for its verdict.
    limit: Instant,
}

impl Other {
    pub(super) fn round(
        &mut self,
        party: &Arc<Party>,
        terms: &Terms,
        (sender, events): (&Sender<Event>, &Receiver<Event>),
        broken: &mut Option<String>,
    ) -> Seen {
        // The first node says why when its time is over, shortly after this node's.
        let (look_until, limit) = (terms.absent_until + LAST_WORD, terms.until + LAST_WORD);
        let part = broken.clone().map(Err);
        let mut own = Own { part, is_told: false, look_until, limit };
        let verdict = loop {
            if let Some(gone) = &self.gone {
                break Err(Lost::Gone(gone.clone()));
            }
            if self.stream.is_none() && !self.is_looking {
                self.look(party, own.look_until, sender);
            }
            self.tell(terms, &mut own);
            let limit = if self.is_looking { own.look_until + SEARCH_ENDS } else { own.limit };
            let left = limit.saturating_duration_since(Instant::now());
            let event = events.recv_timeout(left).ok();
            let over = self.take(party, terms, event, &mut own, sender, broken);
            if let Some(verdict) = over {
                break verdict;
            }
        };
        let is_own = matches!(own.part, Some(Err(_)));
        let absent = if self.was_not_found { vec![party.hosts[0].clone()] } else { Vec::new() };
        Seen { verdict: verdict.map_err(|lost| own.or_lost(lost)), is_own, absent }
    }

    /// Looks for the first node beside all else.
    fn look(&mut self, party: &Arc<Party>, until: Instant, sender: &Sender<Event>) {
        self.is_looking = true;
        let (party, sender) = (Arc::clone(party), sender.clone());
        thread::spawn(move || sender.send(Event::Found(find_first(&party, until))));
    }

    /// Tells the first node this node's part, if both are there.
    fn tell(&mut self, terms: &Terms, own: &mut Own) {
        let (Some(stream), Some(part), false) = (&self.stream, &own.part, own.is_told) else {
            return;
        };
        let message = Message { round: terms.round, outcome: part.clone().into() };
        // If the connection is broken, that is what will be heard next.
        own.is_told = true;
        let _ = wire::tell([stream], &message, own.limit);
    }

    /// What an event means; the verdict, if it is that. `None`: nothing has come in time.
    fn take(
        &mut self,
        party: &Arc<Party>,
        terms: &Terms,
        event: Option<Event>,
        own: &mut Own,
        sender: &Sender<Event>,
        broken: &mut Option<String>,
    ) -> Option<Result<String, Lost>> {
        let first = &party.hosts[0];
        let lost = |why: &str| Some(format!("{first}, the first node of the job, is lost: {why}"));
        match event {
            Some(Event::Mine { round, part }) if round == terms.round => {
                if part.is_err() && terms.round == 0 && terms.ending == Ending::AtOnce {
                    own.look_until = own.look_until.min(Instant::now() + LINGER_MAX);
                }
                own.part.get_or_insert(part);
            }
            Some(Event::Broke(why)) => {
                *broken = Some(why.clone());
                (own.part, own.is_told) = (Some(Err(why)), false);
            }
            Some(Event::Found(Ok(stream))) => {
                self.is_looking = false;
                self.visit += 1;
                let (visit, sender) = (self.visit, sender.clone());
                match stream.try_clone() {
                    Ok(heard) => drop(thread::spawn(move || follow(0, visit, heard, &sender))),
                    Err(error) => self.gone = lost(&error.to_string()),
                }
                self.stream = Some(stream);
            }
            Some(Event::Found(Err(why))) => {
                (self.is_looking, self.was_not_found) = (false, true);
                self.gone = Some(why);
            }
            Some(Event::Said { visit, message, .. }) if visit == self.visit => {
                if message.round == terms.round {
                    return Some(Result::from(message.outcome).map_err(Lost::Told));
                }
                let why = format!("{first} speaks of another round; it runs another release");
                self.gone = Some(why);
            }
            Some(Event::Left { visit, why, .. }) if visit == self.visit => {
                let is_first_time = !std::mem::replace(&mut self.has_lost, true);
                if terms.round > 0 || !is_first_time || Instant::now() >= own.look_until {
                    self.gone = lost(&why);
                }
                // Else it may be a first node that starts anew.
                self.stream = None;
                own.is_told = false;
                own.look_until = own.look_until.min(Instant::now() + GRACE);
            }
            None => return lost("it did not answer in time").map(|why| Err(Lost::Gone(why))),
            Some(_) => {}
        }
        None
    }
}

impl Drop for Other {
    /// A thread reads from the connection, which would stand for as long as that.
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Why there is no verdict that this node could go on with.
enum Lost {
    /// It has failed.
    Told(String),
    /// The first node is not there.
    Gone(String),
}

impl Own {
    /// Why this node has failed: what it knows itself, if nobody has heard it.
    fn or_lost(&self, lost: Lost) -> String {
        match (lost, &self.part) {
            (Lost::Gone(_), Some(Err(why))) => why.clone(),
            (Lost::Told(why) | Lost::Gone(why), _) => why,
        }
    }
}

/// By then a search has noticed that its time is over, and says why it was in vain.
const SEARCH_ENDS: Duration = Duration::from_secs(1);
