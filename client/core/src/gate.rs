//! A fair gate for readers and writers: what a read-write lock is among threads, among futures of one thread.
//!
//! Who comes later waits behind who came earlier, so that neither side can starve the other.
//!
//! 1. `exclusive` implies `shared == 0`.
//! 2. A waiter that was granted its turn either takes it or, dropped, gives it on.
//! 3. The head of the queue is one that cannot be admitted now.
//!
//! It is not reentrant: a future that holds it and waits for it waits for ever.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A fair read-write lock among the futures of one thread; cheap to clone, all clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    shared: usize,
    exclusive: bool,
    queue: VecDeque<Rc<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    exclusive: bool,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Gate {
    /// Passes together with others that share.
    pub(crate) fn shared(&self) -> Pass {
        Pass { gate: self.clone(), exclusive: false, waiter: None }
    }

    /// Passes alone.
    pub(crate) fn exclusive(&self) -> Pass {
        Pass { gate: self.clone(), exclusive: true, waiter: None }
    }

    fn leave(&self, exclusive: bool) {
        {
            let mut state = self.0.borrow_mut();
            if exclusive {
                state.exclusive = false;
            } else {
                state.shared -= 1;
            }
        }
        self.admit();
    }

    /// Lets in who may come in, from the head of the queue.
    fn admit(&self) {
        let mut state = self.0.borrow_mut();
        while let Some(head) = state.queue.front().cloned() {
            if !state.enter(head.exclusive) {
                return;
            }
            state.queue.pop_front();
            head.granted.set(true);
            if let Some(waker) = head.waker.take() {
                waker.wake();
            }
        }
    }
}

impl State {
    fn enter(&mut self, exclusive: bool) -> bool {
        let free = !self.exclusive && (!exclusive || self.shared == 0);
        if free && exclusive {
            self.exclusive = true;
        } else if free {
            self.shared += 1;
        }
        free
    }
}

/// The way through a gate; ready when it has been passed.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    exclusive: bool,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Pass {
    type Output = Guard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Guard> {
        if let Some(waiter) = self.waiter.take() {
            if !waiter.granted.get() {
                waiter.waker.replace(Some(context.waker().clone()));
                self.waiter = Some(waiter);
                return Poll::Pending;
            }
        } else {
            let mut state = self.gate.0.borrow_mut();
            if !state.queue.is_empty() || !state.enter(self.exclusive) {
                let waiter = Rc::new(Waiter {
                    exclusive: self.exclusive,
                    granted: Cell::new(false),
                    waker: RefCell::new(Some(context.waker().clone())),
                });
                state.queue.push_back(Rc::clone(&waiter));
                drop(state);
                self.waiter = Some(waiter);
                return Poll::Pending;
            }
        }
        Poll::Ready(Guard { gate: self.gate.clone(), exclusive: self.exclusive })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.granted.get() {
            self.gate.leave(self.exclusive);
        } else {
            self.gate.0.borrow_mut().queue.retain(|other| !Rc::ptr_eq(other, &waiter));
            self.gate.admit();
        }
    }
}

/// Somebody is inside; dropped, they leave.
#[derive(Debug)]
pub(crate) struct Guard {
    gate: Gate,
    exclusive: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.gate.leave(self.exclusive);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let gate = Gate::default();
        let first = poll(&mut Box::pin(gate.shared())).unwrap();
        let second = poll(&mut Box::pin(gate.shared())).unwrap();
        let mut writer = Box::pin(gate.exclusive());
        assert!(poll(&mut writer).is_none());
        drop(first);
        assert!(poll(&mut writer).is_none());
        drop(second);
        let inside = poll(&mut writer).unwrap();
        assert!(poll(&mut Box::pin(gate.shared())).is_none());
        drop(inside);
        assert!(poll(&mut Box::pin(gate.shared())).is_some());
    }

    #[test]
    fn a_reader_behind_a_waiting_writer_waits_too() {
        let gate = Gate::default();
        let reader = poll(&mut Box::pin(gate.shared())).unwrap();
        let mut writer = Box::pin(gate.exclusive());
        assert!(poll(&mut writer).is_none());
        let mut late = Box::pin(gate.shared());
        assert!(poll(&mut late).is_none());
        drop(reader);
        assert!(poll(&mut late).is_none(), "the writer came first");
        drop(poll(&mut writer).unwrap());
        assert!(poll(&mut late).is_some());
    }

    #[test]
    fn who_gives_up_waiting_blocks_nobody() {
        let gate = Gate::default();
        let reader = poll(&mut Box::pin(gate.shared())).unwrap();
        let mut writer = Box::pin(gate.exclusive());
        assert!(poll(&mut writer).is_none());
        let mut late = Box::pin(gate.shared());
        assert!(poll(&mut late).is_none());
        drop(writer);
        let late = poll(&mut late).unwrap();
        // Granted, but never taken.
        let mut writer = Box::pin(gate.exclusive());
        assert!(poll(&mut writer).is_none());
        drop((reader, late));
        drop(writer);
        assert!(poll(&mut Box::pin(gate.exclusive())).is_some());
    }
}
