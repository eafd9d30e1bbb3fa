//! One run, official or our own, as it is kept (`run.json`) and shown.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::phase::Phase;
use crate::score::Score;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it began, as `2026-11-21_18.40.03` (UTC); names its directory.
    pub id: String,
    /// When it began, seconds since 1970.
    pub started_unix: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whose benchmark.
    pub kind: Kind,
    /// Machines that ran workers, or mounts on this machine.
    pub clients: u64,
    /// Worker processes in all.
    pub workers: u64,
    /// How long the writing phases were to last.
    pub stonewall_seconds: f64,
    /// What was measured, in the order of the phases.
    pub results: Vec<Outcome>,
    /// From the results; none if one is missing.
    pub score: Option<Score>,
    /// Why it cannot be submitted; empty if it can.
    pub reasons: Vec<String>,
    /// Whatever tells runs apart for the reader, e.g. the nodes' version.
    #[serde(default)]
    pub about: String,
}

/// Whose benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The official program, and its version.
    Official(String),
    /// Our own workers.
    Own,
}

/// One measured phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which one.
    pub phase: Phase,
    /// In the phase's unit.
    pub value: f64,
    /// How long it took.
    pub seconds: f64,
    /// Operations of all workers; 0 if not known.
    #[serde(default)]
    pub operations: u64,
    /// Whether it must not be counted.
    #[serde(default)]
    pub invalid: bool,
    /// Why.
    #[serde(default)]
    pub note: String,
}

impl Outcome {
    /// A valid one.
    #[must_use]
    pub fn new(phase: Phase, value: f64, seconds: f64) -> Self {
        Self { phase, value, seconds, operations: 0, invalid: false, note: String::new() }
    }
}

impl Record {
    /// A run that began then and gave these results; its score follows from them.
    #[must_use]
    pub fn new(kind: Kind, started_unix: u64, results: Vec<Outcome>) -> Self {
        let values: Vec<_> = results.iter().map(|outcome| (outcome.phase, outcome.value)).collect();
        Self {
            id: time_name(started_unix),
            started_unix,
            seconds: 0.0,
            kind,
            clients: 1,
            workers: 1,
            stonewall_seconds: 0.0,
            score: Score::of(&values),
            results,
            reasons: Vec::new(),
            about: String::new(),
        }
    }

    /// The value of a phase.
    #[must_use]
    pub fn value(&self, phase: Phase) -> Option<f64> {
        self.results.iter().find(|outcome| outcome.phase == phase).map(|outcome| outcome.value)
    }

    /// Whether it can be submitted; runs with our own workers never can.
    #[must_use]
    pub fn is_submittable(&self) -> bool {
        matches!(self.kind, Kind::Official(_)) && self.reasons.is_empty()
    }

    /// The results against an earlier run's, for a terminal.
    #[must_use]
    pub fn table(&self, last: Option<&Self>) -> String {
        let mut text = String::new();
        for outcome in &self.results {
            let phase = outcome.phase;
            let against = last.and_then(|last| last.value(phase));
            let mark = if outcome.invalid { "  INVALID" } else { "" };
            text += &format!(
                "{phase:20} {:>14} {}  {:>9.1} s{}{mark}\n",
                format!("{:.6}", outcome.value),
                phase.unit(),
                outcome.seconds,
                change(outcome.value, against)
            );
        }
        match &self.score {
            Some(score) => {
                let earlier = last.and_then(|last| last.score);
                for (name, value, unit, against) in [
                    ("bandwidth", score.bandwidth, "GiB/s", earlier.map(|of| of.bandwidth)),
                    ("metadata", score.metadata, "kIOPS", earlier.map(|of| of.metadata)),
                    ("score", score.total, "", earlier.map(|of| of.total)),
                ] {
                    let value_text = format!("{value:.6}");
                    let against = change(value, against);
                    text += &format!("{name:20} {value_text:>14} {unit:5}  {:11}{against}\n", "");
                }
            }
            None => text += "no score: phases are missing\n",
        }
        if let Some(last) = last {
            text += &format!("(x: against the last run, {})\n", last.id);
        }
        text
    }
}

fn change(value: f64, against: Option<f64>) -> String {
    match against {
        Some(earlier) if earlier > 0.0 => format!("  x {:.2}", value / earlier),
        _ => String::new(),
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment as `2026-11-21_18.40.03` (UTC): sorts by time, and can name a directory.
#[must_use]
pub fn time_name(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}_{hour:02}.{minute:02}.{second:02}")
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_named_by_the_calendar() {
        assert_eq!(time_name(0), "1970-01-01_00.00.00");
        assert_eq!(time_name(951_782_399), "2000-02-28_23.59.59");
        assert_eq!(time_name(951_782_400), "2000-02-29_00.00.00");
        assert_eq!(time_name(951_868_800), "2000-03-01_00.00.00");
        assert_eq!(time_name(1_767_225_599), "2025-12-31_23.59.59");
    }

    #[test]
    fn a_table_shows_the_ratio_to_the_last_run() {
        let run = |value| Record::new(Kind::Own, 0, vec![Outcome::new(Phase::Find, value, 2.0)]);
        let text = run(3.0).table(Some(&run(2.0)));
        assert!(text.contains("find") && text.contains("x 1.50"), "{text}");
        assert!(text.contains("no score"), "{text}");
        assert!(!run(3.0).table(None).contains("x "));
    }
}
