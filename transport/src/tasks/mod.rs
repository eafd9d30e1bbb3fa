//! A single-threaded executor and what its tasks wait for.
//!
//! A change of several steps is written as an async function; its owner (a server's core, a client's thread) polls it in
//! its own turn. Nothing here blocks, reads a clock or starts a thread.
//!
//! 1. Tasks run in the order in which they were woken; nothing else decides. The same wakes give the same run.
//! 2. A task that is done is dropped at once; dropping [`Tasks`] drops the others in the order of their slots.
//! 3. While a task is polled or dropped, no borrow of the executor is held: tasks may spawn tasks.
//!
//! It has no timers of its own thread's clock: [`Timers`] is told the time.

mod join;
mod oneshot;
mod timers;
mod waiters;

pub use join::{Either, JoinAll, Race, join_all, race};
pub use oneshot::{Abandoned, Receiver, Sender, oneshot};
pub use timers::{Sleep, Timers};
pub use waiters::{Wait, Waiters};

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

type Body = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks and their order of waking. A wake costs one uncontended lock, a task one allocation for its future and one
/// for its waker.
#[derive(Default)]
pub struct Tasks {
    shared: Rc<Shared>,
}

/// Spawns tasks from anywhere on the thread, also from within a task.
#[derive(Clone, Default)]
pub struct Spawner {
    shared: Weak<Shared>,
}

#[derive(Default)]
struct Shared {
    slots: RefCell<Slots>,
    ready: Arc<Ready>,
}

#[derive(Default)]
struct Slots {
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    live: usize,
}

struct Task {
    /// `None` while it is being polled.
    body: Option<Body>,
    wake: Arc<WakeTask>,
}

/// Tasks that were woken, first one first.
#[derive(Default)]
struct Ready(Mutex<VecDeque<Arc<WakeTask>>>);

struct WakeTask {
    slot: usize,
    /// Whether it is in the queue already.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Tasks {
    /// No tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task; it is polled first by the next [`Tasks::run_ready`].
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.shared.spawn(Box::pin(future));
    }

    /// A handle that spawns, and does not keep the tasks alive.
    #[must_use]
    pub fn spawner(&self) -> Spawner {
        Spawner { shared: Rc::downgrade(&self.shared) }
    }

    /// Polls what was woken, in that order, until nothing is ready; returns how many polls that took. A task that wakes
    /// itself while it is polled runs again, behind the others: it must not do so without end.
    pub fn run_ready(&self) -> usize {
        let mut polls = 0;
        while let Some(wake) = self.shared.ready.pop() {
            wake.queued.store(false, Ordering::Relaxed);
            polls += usize::from(self.shared.poll(&wake));
        }
        polls
    }

    /// Whether nothing would run now: all tasks wait for something.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.ready.is_empty()
    }

    /// Number of tasks that are not done.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.slots.borrow().live
    }

    /// Whether there is no task.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // Futures may hold handles whose drop looks at the tasks: take one out at a time, with no borrow held.
        let count = self.shared.slots.borrow().tasks.len();
        for slot in 0..count {
            let task = self.shared.slots.borrow_mut().tasks[slot].take();
            drop(task);
        }
    }
}

impl Spawner {
    /// As [`Tasks::spawn`]; drops the future if the tasks are gone.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        if let Some(shared) = self.shared.upgrade() {
            shared.spawn(Box::pin(future));
        }
    }
}

impl Shared {
    fn spawn(&self, body: Body) {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or(slots.tasks.len());
        let queued = AtomicBool::new(true);
        let wake = Arc::new(WakeTask { slot, queued, ready: Arc::clone(&self.ready) });
        self.ready.push(Arc::clone(&wake));
        let task = Some(Task { body: Some(body), wake });
        if slot == slots.tasks.len() {
            slots.tasks.push(task);
        } else {
            slots.tasks[slot] = task;
        }
        slots.live += 1;
    }

    /// Polls the task of `wake`; false if it is done already (its slot may have a new owner).
    fn poll(&self, wake: &Arc<WakeTask>) -> bool {
        let mut slots = self.slots.borrow_mut();
        let task = slots.tasks[wake.slot].as_mut().filter(|task| Arc::ptr_eq(&task.wake, wake));
        let Some(mut body) = task.and_then(|task| task.body.take()) else { return false };
        drop(slots);
        let waker = Waker::from(Arc::clone(wake));
        match body.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                if let Some(task) = self.slots.borrow_mut().tasks[wake.slot].as_mut() {
                    task.body = Some(body);
                }
            }
            Poll::Ready(()) => {
                drop(body);
                let mut slots = self.slots.borrow_mut();
                slots.tasks[wake.slot] = None;
                slots.free.push(wake.slot);
                slots.live -= 1;
            }
        }
        true
    }
}

impl Ready {
    fn push(&self, wake: Arc<WakeTask>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(wake);
    }

    fn pop(&self) -> Option<Arc<WakeTask>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let ready = Arc::clone(&self.ready);
            ready.push(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    type Log = Rc<RefCell<Vec<u32>>>;

    #[test]
    fn tasks_run_in_the_order_of_waking() {
        let (tasks, log) = (Tasks::new(), Log::default());
        let gates: Vec<Waiters> = (0..3).map(|_| Waiters::new()).collect();
        for (number, gate) in (0..).zip(&gates) {
            let (gate, log) = (gate.clone(), Rc::clone(&log));
            tasks.spawn(async move {
                gate.wait().await;
                log.borrow_mut().push(number);
            });
        }
        assert_eq!(tasks.run_ready(), 3);
        assert!(tasks.is_idle() && tasks.len() == 3);
        for number in [2, 0, 1] {
            gates[number].wake_all();
        }
        assert_eq!((tasks.run_ready(), log.borrow().as_slice()), (3, &[2, 0, 1][..]));
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_task_may_spawn_and_a_slot_is_used_again() {
        let (tasks, log) = (Tasks::new(), Log::default());
        let (spawner, outer) = (tasks.spawner(), Rc::clone(&log));
        tasks.spawn(async move {
            let inner = Rc::clone(&outer);
            spawner.spawn(async move { inner.borrow_mut().push(2) });
            outer.borrow_mut().push(1);
        });
        assert_eq!((tasks.run_ready(), log.borrow().as_slice()), (2, &[1, 2][..]));
        tasks.spawn(async {});
        assert_eq!(tasks.shared.slots.borrow().tasks.len(), 2);
    }

    #[test]
    fn a_wake_of_a_task_that_is_done_does_nothing() {
        let tasks = Tasks::new();
        let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
        let kept = Rc::clone(&waker);
        tasks.spawn(std::future::poll_fn(move |cx| {
            *kept.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        }));
        tasks.run_ready();
        tasks.spawn(std::future::pending());
        tasks.run_ready();
        waker.borrow().as_ref().unwrap().wake_by_ref();
        assert_eq!((tasks.run_ready(), tasks.len()), (0, 1));
    }

    #[test]
    fn dropping_the_tasks_drops_what_they_hold_even_if_that_spawns() {
        struct SpawnsWhenDropped(Spawner, Rc<Cell<u32>>);
        impl Drop for SpawnsWhenDropped {
            fn drop(&mut self) {
                self.1.set(self.1.get() + 1);
                self.0.spawn(async {});
            }
        }
        let (tasks, drops) = (Tasks::new(), Rc::new(Cell::new(0)));
        for _ in 0..3 {
            let held = SpawnsWhenDropped(tasks.spawner(), Rc::clone(&drops));
            tasks.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
        }
        tasks.run_ready();
        drop(tasks);
        assert_eq!(drops.get(), 3);
    }
}
