//! A worker: a process that does what it is told over its stdin and answers on its stdout.

use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use super::find;
use super::protocol::{Answer, Assignment, Order, Setup};
use super::tasks::{self, Task};
use crate::phase::Phase;

/// Works until `orders` ends. Says on `answers` what failed, if something does.
///
/// # Errors
/// When `answers` cannot be written or an order cannot be understood.
pub fn work(orders: impl BufRead, answers: impl Write) -> io::Result<()> {
    Worker { orders, answers, setup: None }.run()
}

struct Worker<R, W> {
    orders: R,
    answers: W,
    setup: Option<Setup>,
}

impl<R: BufRead, W: Write> Worker<R, W> {
    fn run(&mut self) -> io::Result<()> {
        while let Some(order) = self.next_order()? {
            match order {
                Order::Setup(setup) => self.setup = Some(setup),
                Order::Prepare(assignment) => {
                    if let Err(error) = self.phase(&assignment) {
                        return self.answer(&Answer::Failed(error.to_string()));
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    fn phase(&mut self, assignment: &Assignment) -> io::Result<()> {
        let setup = self.setup.clone().ok_or_else(|| io::Error::other("no setup was sent"))?;
        if assignment.phase == Phase::Find {
            return self.find(&setup);
        }
        let mut task = tasks::prepare(&setup, assignment)?;
        self.answer(&Answer::Ready)?;
        self.expect_go()?;
        let start = Instant::now();
        task.open()?;
        match assignment.count {
            Some(count) => (0..count).try_for_each(|index| task.step(index))?,
            None => self.against_stonewall(task.as_mut(), assignment, start)?,
        }
        task.close()?;
        self.answer(&Answer::Done)
    }

    /// As IOR and mdtest: until the time is over, then on to the largest count of all workers.
    fn against_stonewall(
        &mut self,
        task: &mut dyn Task,
        assignment: &Assignment,
        start: Instant,
    ) -> io::Result<()> {
        let stonewall = Duration::from_millis(assignment.stonewall_ms);
        let mut done = 0;
        while done < assignment.limit && start.elapsed() < stonewall {
            task.step(done)?;
            done += 1;
        }
        self.answer(&Answer::Reached(done))?;
        match self.next_order()? {
            Some(Order::UpTo(count)) => (done..count).try_for_each(|index| task.step(index)),
            Some(other) => Err(unexpected(&other)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Directory by directory as they are dealt out, until `go` comes again: then there are no more.
    fn find(&mut self, setup: &Setup) -> io::Result<()> {
        self.answer(&Answer::Ready)?;
        self.expect_go()?;
        loop {
            match self.next_order()? {
                Some(Order::List(search)) => {
                    let listing = find::list(&setup.root, &search).map_err(|error| {
                        io::Error::other(format!("{}: {error}", search.directory.display()))
                    })?;
                    self.answer(&Answer::Listed(listing))?;
                }
                Some(Order::Go) => return self.answer(&Answer::Done),
                Some(other) => return Err(unexpected(&other)),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    fn expect_go(&mut self) -> io::Result<()> {
        match self.next_order()? {
            Some(Order::Go) => Ok(()),
            Some(other) => Err(unexpected(&other)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn next_order(&mut self) -> io::Result<Option<Order>> {
        let mut line = String::new();
        if self.orders.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).map_err(io::Error::other)
    }

    fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_string(answer)?;
        line.push('\n');
        self.answers.write_all(line.as_bytes())?;
        self.answers.flush()
    }
}

fn unexpected(order: &Order) -> io::Error {
    io::Error::other(format!("out of turn: {order:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_out_of_turn_and_bad_bytes_are_errors() {
        for orders in ["\"go\"\n", "{\"up_to\":3}\n", "{\n", "\u{0}\n", "{\"prepare\":{}}\n"] {
            assert!(work(orders.as_bytes(), io::sink()).is_err(), "{orders:?}");
        }
        assert!(work(&b""[..], io::sink()).is_ok());
    }

    #[test]
    fn a_failed_phase_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let setup =
            Setup { root: dir.path().into(), rank: 0, workers: 1, seed: 1, transfer: 8_192 };
        let assignment = Assignment {
            phase: Phase::IorEasyRead,
            owner: 0,
            count: Some(1),
            stonewall_ms: 0,
            limit: 1,
            easy_transfers: 1,
        };
        let mut orders = String::new();
        for order in [Order::Setup(setup), Order::Prepare(assignment), Order::Go] {
            orders += &(serde_json::to_string(&order).unwrap() + "\n");
        }
        let mut answers = Vec::new();
        work(orders.as_bytes(), &mut answers).unwrap();
        let text = String::from_utf8(answers).unwrap();
        assert!(text.starts_with("\"ready\"\n{\"failed\":\""), "{text}");
        assert!(text.contains("ior_file_easy.00000000"), "{text}");
    }
}
