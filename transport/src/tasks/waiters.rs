//! Tasks that wait for something to happen: a wait queue.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A queue of tasks that wait for an event. A waiter takes its place when [`Waiters::wait`] is called, not when it is
/// first polled: no event between the two is missed. Cheap to clone; clones are the same queue.
#[derive(Clone, Debug, Default)]
pub struct Waiters(Rc<RefCell<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Place>,
}

#[derive(Debug)]
enum Place {
    Waits(Option<Waker>),
    /// The event came; `passes_on`: it was for one waiter, and is the next one's if this one never takes it.
    Woken {
        passes_on: bool,
    },
}

/// Ready when woken.
#[derive(Debug)]
pub struct Wait {
    queue: Waiters,
    number: u64,
}

impl Waiters {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a place at the end of the queue.
    #[must_use]
    pub fn wait(&self) -> Wait {
        let mut queue = self.0.borrow_mut();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, Place::Waits(None));
        Wait { queue: self.clone(), number }
    }

    /// Wakes the one that has waited longest; false if nobody waits.
    pub fn wake_one(&self) -> bool {
        let mut queue = self.0.borrow_mut();
        let first = queue.waiting.values_mut().find(|place| matches!(place, Place::Waits(_)));
        let Some(place) = first else { return false };
        let woken = std::mem::replace(place, Place::Woken { passes_on: true });
        drop(queue);
        woken.wake();
        true
    }

    /// Wakes all that wait now, first come first.
    pub fn wake_all(&self) {
        let mut queue = self.0.borrow_mut();
        let mut woken = Vec::new();
        for place in queue.waiting.values_mut() {
            if matches!(place, Place::Waits(_)) {
                woken.push(std::mem::replace(place, Place::Woken { passes_on: false }));
            }
        }
        drop(queue);
        woken.into_iter().for_each(Place::wake);
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.borrow().waiting.values().filter(|place| matches!(place, Place::Waits(_))).count()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    fn wake(self) {
        if let Self::Waits(Some(waker)) = self {
            waker.wake();
        }
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue.0.borrow_mut();
        match queue.waiting.get_mut(&self.number) {
            Some(Place::Waits(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Place::Woken { .. }) => {
                queue.waiting.remove(&self.number);
                Poll::Ready(())
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let place = self.queue.0.borrow_mut().waiting.remove(&self.number);
        if matches!(place, Some(Place::Woken { passes_on: true })) {
            self.queue.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ready(wait: &mut Wait) -> bool {
        Pin::new(wait).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn an_event_before_the_first_poll_counts() {
        let waiters = Waiters::new();
        let mut wait = waiters.wait();
        waiters.wake_all();
        assert!(is_ready(&mut wait));
        assert!(!is_ready(&mut waiters.wait()));
    }

    #[test]
    fn one_is_woken_in_order_and_a_waiter_that_left_passes_it_on() {
        let waiters = Waiters::new();
        let (first, mut second, mut third) = (waiters.wait(), waiters.wait(), waiters.wait());
        assert!(waiters.wake_one());
        assert!(!is_ready(&mut second));
        drop(first);
        assert!(is_ready(&mut second) && !is_ready(&mut third));
        assert_eq!(waiters.len(), 1);
        drop(third);
        assert!(!waiters.wake_one());
    }
}
