//! How a thread waits: whether it looks for completions before it sleeps, and for how long.
//!
//! Sleeping and being woken cost some microseconds and leave the processor to others; looking costs the processor. With
//! [`Poll::Adaptive`] a thread looks if its last wait makes it likely that something comes meanwhile:
//!
//! | a wait | then the next one |
//! |---|---|
//! | looked, and something came | looks as long |
//! | slept at once, less than [`LOOK_MAX`] | looks twice as long as that took |
//! | slept longer, or nothing came | sleeps at once |
//! | looked in vain | sleeps at once, as do more after it: twice as many as the last time, [`RESTS_MAX`] at most (one less |
//! | | for each look since then that was not in vain) |
//!
//! Looks are in vain above all if whoever is to answer waits for this very processor: without the rests both threads would
//! look at nothing in turn, and take twice as long as if they slept. A vain look costs several times what another one saves,
//! so the rests grow faster than they shrink.
//!
//! 1. A thread without work does not look: each wait that ends with nothing, or late, makes the next one sleep at once.
//! 2. Nothing is looked for longer than [`LOOK_MAX`], unless it is never to sleep.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a thread does that has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// It looks until something comes: the lowest latency, for a processor of its own.
    Spin,
    /// It looks for a bounded time while something is likely to come soon, then sleeps.
    #[default]
    Adaptive,
    /// It sleeps.
    Sleep,
}

impl FromStr for Poll {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "spin" => Ok(Self::Spin),
            "adaptive" => Ok(Self::Adaptive),
            "sleep" => Ok(Self::Sleep),
            other => Err(format!("poll {other}: unknown; use spin, adaptive or sleep")),
        }
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Sleep => "sleep",
        })
    }
}

/// A thread's patience, from wait to wait.
#[derive(Debug)]
pub(crate) struct Patience {
    poll: Poll,
    /// How long the next wait looks, if that is adaptive and it does not rest.
    look: Duration,
    /// Waits that sleep at once, whatever comes.
    rests: u32,
    /// How many there were after the last vain look, less one for each look since then that was not in vain.
    rested: u32,
}

impl Patience {
    pub(crate) const fn new(poll: Poll) -> Self {
        Self { poll, look: Duration::ZERO, rests: 0, rested: 0 }
    }

    /// How long to look for completions in a wait of at most `limit` (`None`: for ever).
    pub(crate) fn look(&self, limit: Option<Duration>) -> Duration {
        let limit = limit.unwrap_or(Duration::MAX);
        match self.poll {
            Poll::Spin => limit,
            Poll::Adaptive if self.rests == 0 => self.look.min(limit),
            Poll::Adaptive | Poll::Sleep => Duration::ZERO,
        }
    }

    pub(crate) const fn poll(&self) -> Poll {
        self.poll
    }

    /// Whether it wants to know how waits end.
    pub(crate) const fn is_adaptive(&self) -> bool {
        matches!(self.poll, Poll::Adaptive)
    }

    /// A wait has looked, and something came.
    pub(crate) const fn found(&mut self) {
        self.rested = self.rested.saturating_sub(1);
    }

    /// A wait has looked in vain.
    pub(crate) fn missed(&mut self) {
        self.rested = (2 * self.rested).clamp(1, RESTS_MAX);
        (self.rests, self.look) = (self.rested, Duration::ZERO);
    }

    /// A wait has slept at once, and took so long; `came`: because something came.
    pub(crate) fn slept(&mut self, waited: Duration, came: bool) {
        self.rests = self.rests.saturating_sub(1);
        let soon = came && waited < LOOK_MAX;
        self.look = if soon { (2 * waited).min(LOOK_MAX) } else { Duration::ZERO };
    }
}

/// A few times what it costs to sleep and be woken (5 us and more), so that looking in vain never costs much more than was to
/// be saved; and longer than a round trip by RDMA. ARCHITECTURE.md has the measurements.
pub(crate) const LOOK_MAX: Duration = Duration::from_micros(20);
/// Waits that sleep at once after looks in vain: then looking costs a hundredth of the time, and a better time is found soon.
const RESTS_MAX: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for poll in [Poll::Spin, Poll::Adaptive, Poll::Sleep] {
            assert_eq!(poll.to_string().parse(), Ok(poll));
        }
        let error = "busy".parse::<Poll>().unwrap_err();
        assert!(error.contains("busy") && error.contains("spin, adaptive or sleep"), "{error}");
    }

    #[test]
    fn who_sleeps_never_looks_and_who_spins_looks_to_the_end() {
        let minute = Duration::from_secs(60);
        assert_eq!(Patience::new(Poll::Sleep).look(Some(minute)), Duration::ZERO);
        assert_eq!(Patience::new(Poll::Spin).look(Some(minute)), minute);
        assert_eq!(Patience::new(Poll::Spin).look(None), Duration::MAX);
    }

    fn looking(waited: Duration) -> Patience {
        let mut patience = Patience::new(Poll::Adaptive);
        assert_eq!(patience.look(None), Duration::ZERO, "nothing is known yet");
        patience.slept(waited, true);
        patience
    }

    #[test]
    fn looking_begins_with_a_short_wait_and_ends_with_a_vain_look() {
        let short = LOOK_MAX / 5;
        let mut patience = looking(short);
        assert_eq!(patience.look(None), 2 * short);
        assert_eq!(patience.look(Some(short)), short, "a deadline is nearer");
        (0..20).for_each(|_| patience.found());
        assert_eq!(patience.look(None), 2 * short, "as long as it helps");
        patience.missed();
        assert_eq!(patience.look(None), Duration::ZERO);
        let longest = looking(LOOK_MAX - Duration::from_nanos(1));
        assert_eq!(longest.look(None), LOOK_MAX);
    }

    #[test]
    fn after_a_long_or_a_vain_wait_nothing_is_looked_for() {
        for (waited, came) in [(LOOK_MAX, true), (LOOK_MAX / 5, false)] {
            let mut patience = looking(LOOK_MAX / 5);
            patience.slept(waited, came);
            assert_eq!(patience.look(None), Duration::ZERO);
        }
    }

    /// The other end of each call waits for the processor on which this one looks.
    #[test]
    fn looks_that_are_always_in_vain_become_rare() {
        let mut patience = Patience::new(Poll::Adaptive);
        let mut looks = 0;
        for _ in 0..10_000 {
            if patience.look(None).is_zero() {
                patience.slept(LOOK_MAX / 5, true);
            } else {
                looks += 1;
                patience.missed();
            }
        }
        assert!((70..100).contains(&looks), "{looks}");
        // Things get better.
        (0..RESTS_MAX).for_each(|_| patience.slept(LOOK_MAX / 5, true));
        assert!(patience.look(None) > Duration::ZERO);
        (0..RESTS_MAX).for_each(|_| patience.found());
        patience.missed();
        patience.slept(LOOK_MAX / 5, true);
        assert!(patience.look(None) > Duration::ZERO, "one vain look is forgiven");
    }
}
