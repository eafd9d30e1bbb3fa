//! Tasks that wait for a moment. The owner says what time it is.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::Instant;

/// The moments that tasks wait for. Cheap to clone; clones are the same timers.
#[derive(Clone, Debug, Default)]
pub struct Timers(Rc<RefCell<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<(Instant, u64), Option<Waker>>,
}

/// Ready when its moment has come, see [`Timers::sleep_until`].
#[derive(Debug)]
pub struct Sleep {
    timers: Timers,
    key: (Instant, u64),
}

impl Timers {
    /// No timers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ready once [`Timers::fire`] was told `moment` or a later time.
    #[must_use]
    pub fn sleep_until(&self, moment: Instant) -> Sleep {
        let mut queue = self.0.borrow_mut();
        let key = (moment, queue.next);
        queue.next += 1;
        queue.waiting.insert(key, None);
        Sleep { timers: self.clone(), key }
    }

    /// Wakes all whose moment has come, earliest first.
    pub fn fire(&self, now: Instant) {
        loop {
            let mut queue = self.0.borrow_mut();
            let Some(first) = queue.waiting.first_entry().filter(|first| first.key().0 <= now)
            else {
                return;
            };
            let waker = first.remove();
            drop(queue);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The earliest moment that anyone waits for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.borrow().waiting.keys().next().map(|key| key.0)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.timers.0.borrow_mut().waiting.get_mut(&self.key) {
            None => Poll::Ready(()),
            Some(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timers.0.borrow_mut().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Tasks;

    #[test]
    fn sleepers_wake_in_the_order_of_their_moments() {
        let (tasks, timers) = (Tasks::new(), Timers::new());
        let log: Rc<RefCell<Vec<u64>>> = Rc::default();
        for moment in [30, 10, 20] {
            let (sleep, log) = (timers.sleep_until(Instant(moment)), Rc::clone(&log));
            tasks.spawn(async move {
                sleep.await;
                log.borrow_mut().push(moment);
            });
        }
        tasks.run_ready();
        assert_eq!(timers.deadline(), Some(Instant(10)));
        timers.fire(Instant(9));
        assert!(tasks.is_idle());
        timers.fire(Instant(30));
        tasks.run_ready();
        assert_eq!((log.borrow().as_slice(), timers.deadline()), (&[10, 20, 30][..], None));
    }

    #[test]
    fn a_sleeper_that_is_dropped_leaves_no_deadline() {
        let timers = Timers::new();
        drop(timers.sleep_until(Instant(5)));
        assert_eq!(timers.deadline(), None);
    }
}
