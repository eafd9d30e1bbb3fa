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
    /// What it ran on.
    #[serde(default)]
    pub system: System,
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

impl Kind {
    /// Whether workers of our own ran.
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own)
    }
}

/// What a run ran on, as far as it is known: empty, or 0, if it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Nodes of the file system.
    pub nodes: u64,
    /// By which the client that led the run reached them.
    pub transport: String,
    /// When they acknowledge.
    pub durability: String,
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
            system: System::default(),
            about: String::new(),
        }
    }

    /// In what it was run otherwise than `earlier`, for people; runs are compared only if there is nothing.
    #[must_use]
    pub fn differences(&self, earlier: &Self) -> Vec<String> {
        let shape = |run: &Self| {
            let System { nodes, transport, durability } = &run.system;
            let program = if run.kind.is_own() { "own workers" } else { "official program" };
            [
                ("program", program.to_owned()),
                ("clients", run.clients.to_string()),
                ("processes", run.workers.to_string()),
                ("stonewall", format!("{} s", run.stonewall_seconds)),
                ("nodes", if *nodes == 0 { String::new() } else { nodes.to_string() }),
                ("transport", transport.clone()),
                ("durability", durability.clone()),
            ]
        };
        let shown = |value: String| if value.is_empty() { "unknown".into() } else { value };
        shape(earlier)
            .into_iter()
            .zip(shape(self))
            .filter(|((_, then), (_, now))| then != now)
            .map(|((name, then), (_, now))| {
                format!("{name} {} then, {} now", shown(then), shown(now))
            })
            .collect()
    }

    /// The value of a phase.
    #[must_use]
    pub fn value(&self, phase: Phase) -> Option<f64> {
        self.results.iter().find(|outcome| outcome.phase == phase).map(|outcome| outcome.value)
    }

    /// Whether it can be submitted; runs with our own workers never can.
    #[must_use]
    pub fn is_submittable(&self) -> bool {
        !self.kind.is_own() && self.reasons.is_empty()
    }

    /// The results against an earlier run's if it is of the same shape, for a terminal.
    #[must_use]
    pub fn table(&self, last: Option<&Self>) -> String {
        let differences = last.map_or_else(Vec::new, |last| self.differences(last));
        let (last, other) = if differences.is_empty() { (last, None) } else { (None, last) };
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
        if let Some(other) = other {
            let differences = differences.join("; ");
            text += &format!("(not compared with the last run, {}: {differences})\n", other.id);
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

    #[test]
    fn runs_of_another_shape_are_not_compared_and_say_what_differs() {
        let run = || Record::new(Kind::Own, 0, vec![Outcome::new(Phase::Find, 3.0, 2.0)]);
        assert_eq!(run().differences(&run()), Vec::<String>::new());
        type Change = fn(&mut Record);
        let changes: [(Change, &str); 7] = [
            (|run| run.kind = Kind::Official("1".into()), "program own workers then, official"),
            (|run| run.clients = 3, "clients 1 then, 3 now"),
            (|run| run.workers = 8, "processes 1 then, 8 now"),
            (|run| run.stonewall_seconds = 300.0, "stonewall 0 s then, 300 s now"),
            (|run| run.system.nodes = 3, "nodes unknown then, 3 now"),
            (|run| run.system.transport = "rdma".into(), "transport unknown then, rdma now"),
            (|run| run.system.durability = "power".into(), "durability unknown then, power now"),
        ];
        for (change, words) in changes {
            let mut other = run();
            change(&mut other);
            let text = other.table(Some(&run()));
            assert!(!text.contains("x 1.00") && text.contains(words), "{text}");
            assert_eq!(other.differences(&run()).len(), 1, "{text}");
            let newer = Record { about: "another version".into(), ..other.clone() };
            assert!(newer.table(Some(&other)).contains("x 1.00"));
        }
    }

    #[test]
    fn a_run_that_was_kept_before_it_said_its_system_is_read() {
        let run = Record::new(Kind::Own, 0, Vec::new());
        let mut value = serde_json::to_value(&run).unwrap();
        value.as_object_mut().unwrap().remove("system").unwrap();
        assert_eq!(serde_json::from_value::<Record>(value).unwrap(), run);
    }
}
