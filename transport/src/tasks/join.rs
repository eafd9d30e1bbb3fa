//! Several futures in flight within one task.

use std::pin::Pin;
use std::task::{Context, Poll};

/// All of several futures, see [`join_all`].
pub struct JoinAll<F: Future>(Vec<Member<F>>);

enum Member<F: Future> {
    Running(Pin<Box<F>>),
    Done(Option<F::Output>),
}

/// Runs `futures` side by side; ready with all results, in the order of the futures, when the last one is. Each wake polls
/// all that are not done: meant for some dozens (the chunks of one read), not for thousands.
pub fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> JoinAll<F> {
    JoinAll(futures.into_iter().map(|future| Member::Running(Box::pin(future))).collect())
}

// The futures are boxed and results are never pinned.
impl<F: Future> Unpin for JoinAll<F> {}

impl<F: Future> Future for JoinAll<F> {
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut all_done = true;
        for member in &mut self.0 {
            if let Member::Running(future) = member {
                match future.as_mut().poll(cx) {
                    Poll::Ready(result) => *member = Member::Done(Some(result)),
                    Poll::Pending => all_done = false,
                }
            }
        }
        if !all_done {
            return Poll::Pending;
        }
        let result = |member| match member {
            Member::Done(result) => result,
            Member::Running(_) => None,
        };
        Poll::Ready(std::mem::take(&mut self.0).into_iter().filter_map(result).collect())
    }
}

/// Which of two futures was first, and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first future's.
    First(A),
    /// The second future's.
    Second(B),
}

/// The faster of two futures, see [`race`].
pub struct Race<A, B>(Pin<Box<A>>, Pin<Box<B>>);

/// Ready when one of them is (the first one, if both are); the other one is dropped.
pub fn race<A: Future, B: Future>(first: A, second: B) -> Race<A, B> {
    Race(Box::pin(first), Box::pin(second))
}

impl<A: Future, B: Future> Future for Race<A, B> {
    type Output = Either<A::Output, B::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(result) = self.0.as_mut().poll(cx) {
            return Poll::Ready(Either::First(result));
        }
        self.1.as_mut().poll(cx).map(Either::Second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Tasks, oneshot};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn results_keep_the_order_of_the_futures() {
        let (tasks, got) = (Tasks::new(), Rc::new(RefCell::new(Vec::new())));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::<u32>()).unzip();
        let sink = Rc::clone(&got);
        tasks.spawn(async move { *sink.borrow_mut() = join_all(receivers).await });
        tasks.run_ready();
        for (number, sender) in (0..).zip(senders).collect::<Vec<_>>().into_iter().rev() {
            assert!(got.borrow().is_empty());
            sender.send(number).unwrap();
            tasks.run_ready();
        }
        assert_eq!(*got.borrow(), [Ok(0), Ok(1), Ok(2)]);
        assert!(tasks.is_empty());
    }

    #[test]
    fn the_loser_of_a_race_is_dropped() {
        let (tasks, got) = (Tasks::new(), Rc::new(RefCell::new(None)));
        let (slow, slow_receiver) = oneshot::<()>();
        let (fast, fast_receiver) = oneshot::<u32>();
        let sink = Rc::clone(&got);
        tasks.spawn(async move {
            *sink.borrow_mut() = Some(race(slow_receiver, fast_receiver).await);
        });
        tasks.run_ready();
        fast.send(3).unwrap();
        tasks.run_ready();
        assert_eq!(*got.borrow(), Some(Either::Second(Ok(3))));
        assert!(slow.is_abandoned());
    }
}
