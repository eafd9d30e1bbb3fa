//! The worker processes, seen from the conductor: orders go out, answers come in, whoever is lost is named.
//!
//! 1. Each worker is a process, so that it has its own open files: threads would share one table and its lock, which no
//!    rank of an MPI program does.
//! 2. A worker that fails or dies ends the run with its rank and its reason; the others are ended when the crew is
//!    dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::protocol::{Answer, Order};
use crate::Error;

/// All workers of a run.
pub(super) struct Crew {
    members: Vec<Member>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

enum Event {
    Said(usize, Answer),
    /// Its stdout has ended.
    Ended(usize),
    Interrupted,
}

/// Passes the wish to end the run on to whoever waits for answers.
pub(super) struct Interrupter(Sender<Event>);

impl Interrupter {
    /// Ends the run; returns whether it was still going.
    pub(super) fn interrupt(&self) -> bool {
        self.0.send(Event::Interrupted).is_ok()
    }
}

struct Member {
    process: Child,
    orders: ChildStdin,
}

impl Crew {
    /// Starts `count` processes of `program`, words after its name included.
    pub(super) fn start(program: &[std::ffi::OsString], count: usize) -> Result<Self, Error> {
        let (name, words) = program.split_first().expect("a program has a name");
        let (sender, events) = channel();
        let mut crew = Self { members: Vec::with_capacity(count), events, sender };
        for rank in 0..count {
            let mut process = Command::new(name)
                .args(words)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| Error::at("cannot start a worker", name, error))?;
            let orders = process.stdin.take().expect("it is a pipe");
            let stdout = process.stdout.take().expect("it is a pipe");
            let sender = crew.sender.clone();
            thread::spawn(move || forward(rank, BufReader::new(stdout), &sender));
            crew.members.push(Member { process, orders });
        }
        Ok(crew)
    }

    /// Ends this run from elsewhere.
    pub(super) fn interrupter(&self) -> Interrupter {
        Interrupter(self.sender.clone())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Tells one worker.
    pub(super) fn tell(&mut self, rank: usize, order: &Order) -> Result<(), Error> {
        let mut line = serde_json::to_string(order).expect("an order can be written");
        line.push('\n');
        // A worker that has died says so by its answers' end, with whatever it said before.
        let written = self.members[rank].orders.write_all(line.as_bytes());
        written.map_err(|_| self.lost(rank))
    }

    /// Tells all workers, each its own.
    pub(super) fn tell_all(&mut self, order: impl Fn(usize) -> Order) -> Result<(), Error> {
        (0..self.len()).try_for_each(|rank| self.tell(rank, &order(rank)))
    }

    /// The next answer of any worker.
    pub(super) fn hear(&mut self) -> Result<(usize, Answer), Error> {
        match self.events.recv().expect("the crew has a sender itself") {
            Event::Said(rank, Answer::Failed(reason)) => Err(Error::Worker { rank, reason }),
            Event::Said(rank, answer) => Ok((rank, answer)),
            Event::Ended(rank) => Err(self.lost(rank)),
            Event::Interrupted => Err(Error::Interrupted),
        }
    }

    /// One answer of each worker, in the order of ranks.
    pub(super) fn hear_all(&mut self) -> Result<Vec<Answer>, Error> {
        let mut heard: Vec<Option<Answer>> = (0..self.len()).map(|_| None).collect();
        for _ in 0..self.len() {
            let (rank, answer) = self.hear()?;
            if heard[rank].replace(answer).is_some() {
                return Err(Error::Worker { rank, reason: "answered twice".into() });
            }
        }
        Ok(heard.into_iter().flatten().collect())
    }

    fn lost(&mut self, rank: usize) -> Error {
        // What it said last is more than how it ended.
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Said(rank, Answer::Failed(reason)) => return Error::Worker { rank, reason },
                Event::Interrupted => return Error::Interrupted,
                Event::Said(..) | Event::Ended(_) => {}
            }
        }
        let process = &mut self.members[rank].process;
        let ended = process.kill().and_then(|()| process.wait());
        let reason =
            ended.map_or_else(|error| error.to_string(), |status| format!("ended with {status}"));
        Error::Worker { rank, reason }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for Member { process, orders } in self.members.drain(..) {
            drop(orders);
            let mut process = process;
            // One that still works is told by its stdin only after its phase.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn forward(rank: usize, answers: impl BufRead, to: &Sender<Event>) {
    for line in answers.lines() {
        let Ok(line) = line else { break };
        let answer = serde_json::from_str(&line)
            .unwrap_or_else(|error| Answer::Failed(format!("said {line:?}: {error}")));
        if to.send(Event::Said(rank, answer)).is_err() {
            return;
        }
    }
    let _ = to.send(Event::Ended(rank));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<std::ffi::OsString> {
        ["sh", "-c", script].map(Into::into).to_vec()
    }

    #[test]
    fn a_worker_that_dies_is_named_with_its_end() {
        let mut crew = Crew::start(&shell("read line; exit 3"), 2).unwrap();
        crew.tell(1, &Order::Go).unwrap();
        let error = crew.hear().unwrap_err().to_string();
        assert!(error.contains("worker 1") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_worker_that_fails_is_named_with_its_reason() {
        let mut crew =
            Crew::start(&shell("echo '{\"failed\":\"no space\"}'; read line"), 1).unwrap();
        let error = crew.hear_all().unwrap_err().to_string();
        assert!(error.contains("worker 0") && error.contains("no space"), "{error}");
    }

    #[test]
    fn an_interruption_ends_the_waiting() {
        let mut crew = Crew::start(&shell("read line"), 1).unwrap();
        assert!(crew.interrupter().interrupt());
        assert!(matches!(crew.hear_all(), Err(Error::Interrupted)));
        let interrupter = crew.interrupter();
        drop(crew);
        assert!(!interrupter.interrupt());
    }

    #[test]
    fn babble_is_an_error_and_no_panic() {
        let mut crew = Crew::start(&shell("echo hello; read line"), 1).unwrap();
        let error = crew.hear().unwrap_err().to_string();
        assert!(error.contains("hello"), "{error}");
    }
}
