//! What the official program says: `result_summary.txt`, for people, and `result.txt`, in detail.
//!
//!     IO500 version io500-isc26_v2 (standard)
//!     [RESULT]       ior-easy-write        0.490155 GiB/s : time 300.8 seconds [INVALID]
//!     [      ]            timestamp        0.000000 kIOPS : time 0.000 seconds
//!     [SCORE ] Bandwidth 0.569880 GiB/s : IOPS 25.468056 kiops : TOTAL 3.809691 [INVALID]
//!
//!     [run]
//!     procs           = 2
//!     version         = io500-isc26_v2
//!     ; ERROR INVALID stonewall-time 1s != 300s
//!
//!     [ior-easy-write]
//!     exe             = ./ior ... -e ...
//!     score           = 0.490155
//!     t_delta         = 300.8000
//!
//! 1. Bad bytes are a [`Malformed`] with a line, never a panic; a file that ends early is no error, but shows what is
//!    missing: a run that was interrupted leaves such a one.
//! 2. A figure counts only if both files have it and agree. The program keeps the summary in memory until it ends: if it
//!    did not, the details alone tell what was measured.

use super::ini::Malformed;
use crate::phase::Phase;
use crate::record::Outcome;
use crate::score::Score;

/// What both files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    /// The program's version.
    pub version: String,
    /// Ranks.
    pub procs: u64,
    /// Measured phases, in the order of the file.
    pub outcomes: Vec<Outcome>,
    /// The score as it is printed, and whether it is marked invalid; none if the run did not end.
    pub printed: Option<(Score, bool)>,
    /// Lines `ERROR INVALID`, without that mark, with their phase in front.
    pub objections: Vec<String>,
    /// Phases whose program was called, with its command line (`exe`).
    pub called: Vec<Phase>,
    /// Writing phases whose program was not told to sync: IOR's at close, mdtest's at the end.
    pub unsynced: Vec<String>,
    /// Reading phases whose program was not told to compare what it read.
    pub unverified: Vec<String>,
}

/// The summary's lines that matter here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Summary {
    version: String,
    outcomes: Vec<Outcome>,
    printed: Option<(Score, bool)>,
}

impl Summary {
    /// Reads `result_summary.txt`.
    ///
    /// # Errors
    /// The first line that is none of a summary.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut summary = Self::default();
        for (at, line) in text.lines().enumerate() {
            let bad = |cause: &str| Malformed {
                line: at + 1,
                cause: format!("{cause}: {}", shown(line)),
            };
            let (mark, rest) = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((mark, rest)) => (mark.trim(), rest),
                None => match line.strip_prefix("IO500 version ") {
                    Some(version) => {
                        version
                            .split(' ')
                            .next()
                            .unwrap_or_default()
                            .clone_into(&mut summary.version);
                        continue;
                    }
                    None if line.trim().is_empty() => continue,
                    None => return Err(bad("no line of a summary")),
                },
            };
            match mark {
                "RESULT" | "" => {
                    if let Some(outcome) = phase_line(rest).ok_or_else(|| bad("no result"))? {
                        summary.outcomes.push(outcome);
                    }
                }
                "SCORE" => summary.printed = Some(score_line(rest).ok_or_else(|| bad("no score"))?),
                // The score of the extended mode, which counts other phases.
                "SCOREX" => {}
                _ => return Err(bad("an unknown mark")),
            }
        }
        Ok(summary)
    }

    /// Adds what `result.txt` says.
    ///
    /// # Errors
    /// A line that is none of such a file, or a figure that the summary has otherwise.
    pub(super) fn with_details(self, text: &str) -> Result<Report, Malformed> {
        let Self { version, outcomes, printed } = self;
        let mut report = Report { version, outcomes, printed, ..Report::default() };
        let mut section = String::new();
        let mut scored = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let bad = |cause: String| Malformed { line: at + 1, cause };
            let line = line.trim_end();
            if let Some(note) = line.strip_prefix(';') {
                if let Some(objection) = note.trim().strip_prefix("ERROR INVALID") {
                    report.objections.push(format!("{section}: {}", objection.trim()));
                }
            } else if let Some(name) = line.strip_prefix('[') {
                let name =
                    name.strip_suffix(']').ok_or_else(|| bad("a section without ]".into()))?;
                name.clone_into(&mut section);
            } else if let Some((name, value)) = line.split_once('=') {
                let (name, value) = (name.trim(), value.trim());
                detail(&mut report, &section, name, value, &mut scored)
                    .map_err(|cause| bad(format!("{cause}: {}", shown(line))))?;
            } else if !line.is_empty() && !is_continued(line) {
                return Err(bad(format!("neither section, setting nor note: {}", shown(line))));
            }
        }
        // What only the summary has was not measured to its end, or was added by hand.
        if let Some(only) = report.outcomes.iter().find(|outcome| !scored.contains(&outcome.phase))
        {
            let cause = format!("result.txt has no score of {}, the summary has", only.phase);
            return Err(Malformed { line: text.lines().count(), cause });
        }
        Ok(report)
    }
}

impl Report {
    /// Phases that count and have no figure.
    #[must_use]
    pub(super) fn missing(&self) -> Vec<Phase> {
        let has = |phase| {
            self.outcomes.iter().any(|outcome| outcome.phase == phase && outcome.value > 0.0)
        };
        Phase::ALL.into_iter().filter(|phase| phase.is_scored() && !has(*phase)).collect()
    }
}

fn detail(
    report: &mut Report,
    section: &str,
    name: &str,
    value: &str,
    scored: &mut Vec<Phase>,
) -> Result<(), String> {
    match (section, name, Phase::named(section)) {
        ("run", "procs", _) => report.procs = value.parse().map_err(|_| "no number")?,
        ("run", "version", _) => value.clone_into(&mut report.version),
        (_, "exe", Some(phase)) if !value.is_empty() => {
            report.called.push(phase);
            if writes_unsynced(value) {
                report.unsynced.push(section.into());
            }
            if reads_unverified(value) {
                report.unverified.push(section.into());
            }
        }
        (_, "score", Some(phase)) => {
            let score = figure(value).ok_or("no number")?;
            scored.push(phase);
            match report.outcomes.iter().find(|outcome| outcome.phase == phase) {
                Some(outcome) if outcome.value == score => {}
                Some(outcome) => {
                    return Err(format!("{phase} is {} in the summary", outcome.value));
                }
                None if report.printed.is_some() => {
                    return Err(format!("{phase} is not in the summary"));
                }
                None => report.outcomes.push(Outcome::new(phase, score, 0.0)),
            }
        }
        (_, "t_delta", Some(phase)) => {
            let seconds = figure(value).ok_or("no number")?;
            let ended = report.outcomes.iter_mut().find(|outcome| outcome.phase == phase);
            if let Some(outcome) = ended.filter(|outcome| outcome.seconds == 0.0) {
                outcome.seconds = seconds;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether this call writes and does not sync: IOR at close by `-e`, mdtest at the end, on the clock, by `-Y`.
fn writes_unsynced(call: &str) -> bool {
    let has = |wanted| call.split(' ').any(|word| word == wanted);
    (call.starts_with("./ior ") && has("-w") && !has("-e"))
        || (call.starts_with("./mdtest ") && has("-C") && !has("-Y"))
}

/// Whether this call of mdtest reads (`-E`) and does not compare (`-X`).
fn reads_unverified(call: &str) -> bool {
    let has = |wanted| call.split(' ').any(|word| word == wanted);
    call.starts_with("./mdtest ") && has("-E") && !has("-X")
}

/// What mdtest says of its own, of a reading phase in `mdtest-hard-read.txt`, of its machines in the writing ones', too:
///
/// ```text
/// mdtest-4.1.0 was launched with 80 total task(s) on 10 node(s)
/// ERROR: verifying the data on read (3 errors)! Take the performance values with care!
/// ```
///
/// The program that runs it looks at neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Machines, told apart by what MPI calls them: two names of one are one.
    pub(super) machines: u64,
    /// Files that had not what was written.
    pub(super) errors: u64,
}

impl Reading {
    /// Nothing if it does not say on how many machines it ran. An error whose number cannot be read is one.
    #[must_use]
    pub(super) fn parse(text: &str) -> Option<Self> {
        let machines = text.lines().find_map(|line| {
            let (_, launched) = line.split_once(" was launched with ")?;
            launched.split_once(" total task(s) on ")?.1.split(' ').next()?.parse().ok()
        })?;
        let errors = text.lines().filter_map(|line| line.split_once(ERRORS_BEGIN));
        let count = |(_, rest): (&str, &str)| rest.split(' ').next()?.parse().ok();
        Some(Self { machines, errors: errors.map(|line| count(line).unwrap_or(1)).sum() })
    }
}

const ERRORS_BEGIN: &str = "ERROR: verifying the data on read (";

/// ` ior-easy-write  0.49 GiB/s : time 300.8 seconds [INVALID]`; nothing for a phase without a measurement.
fn phase_line(rest: &str) -> Option<Option<Outcome>> {
    let mut words = rest.split_whitespace();
    let name = words.next()?;
    let value = figure(words.next()?)?;
    let unit = words.next()?;
    if (words.next()?, words.next()?) != (":", "time") {
        return None;
    }
    let seconds = figure(words.next()?)?;
    if words.next()? != "seconds" {
        return None;
    }
    let invalid = invalid(words.next())?;
    // Phases that are only in newer versions or in the extended mode are none of ours.
    let Some(phase) = Phase::named(name) else { return Some(None) };
    if unit != phase.unit() {
        return None;
    }
    Some(Some(Outcome { invalid, ..Outcome::new(phase, value, seconds) }))
}

/// ` Bandwidth 0.5 GiB/s : IOPS 25.4 kiops : TOTAL 3.8 [INVALID]`
fn score_line(rest: &str) -> Option<(Score, bool)> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [
        "Bandwidth",
        bandwidth,
        "GiB/s",
        ":",
        "IOPS",
        metadata,
        "kiops",
        ":",
        "TOTAL",
        total,
        mark @ ..,
    ] = words.as_slice()
    else {
        return None;
    };
    let score =
        Score { bandwidth: figure(bandwidth)?, metadata: figure(metadata)?, total: figure(total)? };
    match mark {
        [] => Some((score, false)),
        [one] => Some((score, invalid(Some(one))?)),
        _ => None,
    }
}

fn invalid(mark: Option<&str>) -> Option<bool> {
    match mark {
        None => Some(false),
        Some("[INVALID]") => Some(true),
        Some(_) => None,
    }
}

/// A number that a program prints with %f; neither negative nor infinite nor none.
fn figure(word: &str) -> Option<f64> {
    word.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

/// Some of the program's messages go on in a second line.
fn is_continued(line: &str) -> bool {
    line.starts_with("Possible error:")
}

/// The beginning of a line, without what would disturb a terminal.
fn shown(line: &str) -> String {
    format!("{:?}", line.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = include_str!("../../golden/valid/result_summary.txt");
    const DETAILS: &str = include_str!("../../golden/valid/result.txt");

    fn report() -> Report {
        Summary::parse(SUMMARY).unwrap().with_details(DETAILS).unwrap()
    }

    #[test]
    fn a_whole_run_is_read() {
        let report = report();
        assert_eq!((report.version.as_str(), report.procs), ("io500-isc26_v2", 80));
        assert_eq!(report.outcomes.len(), Phase::ALL.len());
        assert!(report.missing().is_empty() && report.objections.is_empty());
        assert!(report.unsynced.is_empty() && report.unverified.is_empty());
        assert_eq!(report.called, Phase::ALL);
        let values: Vec<_> = report.outcomes.iter().map(|one| (one.phase, one.value)).collect();
        let (ours, (printed, invalid)) = (Score::of(&values).unwrap(), report.printed.unwrap());
        assert!(!invalid);
        for (ours, printed) in [
            (ours.bandwidth, printed.bandwidth),
            (ours.metadata, printed.metadata),
            (ours.total, printed.total),
        ] {
            assert_eq!(format!("{ours:.6}"), format!("{printed:.6}"));
        }
    }

    #[test]
    fn invalid_phases_and_objections_are_read() {
        let summary = SUMMARY.replacen(" seconds\n", " seconds [INVALID]\n", 1);
        let summary = summary.replace("TOTAL 30.197606", "TOTAL 30.197606 [INVALID]");
        let details = DETAILS.replacen("score ", "; ERROR INVALID Runtime is smaller\nscore ", 1);
        let report = Summary::parse(&summary).unwrap().with_details(&details).unwrap();
        assert!(report.outcomes[0].invalid && !report.outcomes[1].invalid);
        assert!(report.printed.unwrap().1);
        assert_eq!(report.objections, ["ior-easy-write: Runtime is smaller"]);
    }

    #[test]
    fn the_older_mark_of_the_score_and_the_extended_score_are_understood() {
        let summary = SUMMARY.replace("[SCORE ]", "[SCORE]") + "[SCOREX] Bandwidth 1 whatever\n";
        assert_eq!(Summary::parse(&summary).unwrap(), Summary::parse(SUMMARY).unwrap());
    }

    #[test]
    fn a_run_that_was_interrupted_shows_what_is_missing() {
        let lines = |text: &str, until: &str| text.split(until).next().unwrap().to_owned();
        let summary = lines(SUMMARY, "[RESULT]        ior-hard-read");
        let details = lines(DETAILS, "\n[ior-hard-read]");
        let report = Summary::parse(&summary).unwrap().with_details(&details).unwrap();
        assert_eq!(report.printed, None);
        assert_eq!(report.missing()[0], Phase::IorHardRead);
        assert_eq!(report.missing().len(), 5);
        // The summary is written at the end only.
        let bare = Summary::parse("").unwrap().with_details(&details).unwrap();
        assert_eq!(bare.missing(), report.missing());
        assert_eq!(bare.outcomes, report.outcomes);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_a_report_and_no_panic() {
        let mut random = fastrand::Rng::with_seed(500);
        for _ in 0..4_000 {
            let mangle = |text: &str, random: &mut fastrand::Rng| {
                let mut bytes = text.as_bytes().to_vec();
                match random.u8(0..3) {
                    0 => bytes.truncate(random.usize(0..bytes.len())),
                    1 => {
                        let at = random.usize(0..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                    _ => drop(bytes.drain(random.usize(0..100)..random.usize(100..600))),
                }
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let summary = mangle(SUMMARY, &mut random);
            let details = mangle(DETAILS, &mut random);
            if let Ok(summary) = Summary::parse(&summary) {
                let _ = summary.with_details(DETAILS);
            }
            let _ = Summary::parse(SUMMARY).unwrap().with_details(&details);
        }
    }

    #[test]
    fn bad_lines_are_named() {
        for line in [
            "hello",
            "[RESULT] find",
            "[RESULT] find 1.0 GiB/s : time 1 seconds",
            "[RESULT] find NaN kIOPS : time 1 seconds",
            "[RESULT] find -1 kIOPS : time 1 seconds",
            "[RESULT] find 1 kIOPS : time inf seconds",
            "[RESULT] find 1 kIOPS : time 1 seconds [VALID]",
            "[WHAT] find 1 kIOPS : time 1 seconds",
            "[SCORE ] Bandwidth 1 GiB/s : IOPS 1 kiops",
        ] {
            let error = Summary::parse(&format!("\n{line}\n")).unwrap_err();
            assert_eq!(error.line, 2, "{line}");
        }
    }

    #[test]
    fn a_summary_that_was_improved_by_hand_is_found() {
        let better = SUMMARY.replace("4.190000 GiB/s", "5.190000 GiB/s");
        assert_ne!(better, SUMMARY);
        let error = Summary::parse(&better).unwrap().with_details(DETAILS).unwrap_err();
        assert!(error.cause.contains("in the summary"), "{error}");
        let details = DETAILS.replacen("score ", "scare ", 1);
        let error = Summary::parse(SUMMARY).unwrap().with_details(&details).unwrap_err();
        assert!(error.cause.contains("no score of ior-easy-write"), "{error}");
        let fewer: String = SUMMARY
            .lines()
            .filter(|line| !line.contains("find"))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let error = Summary::parse(&fewer).unwrap().with_details(DETAILS).unwrap_err();
        assert!(error.cause.contains("find is not in the summary"), "{error}");
    }

    #[test]
    fn programs_that_do_not_sync_or_compare_or_say_how_they_were_called_are_found() {
        let changed = |from: &str, to: &str| {
            let details = DETAILS.replace(from, to);
            assert_ne!(details, DETAILS);
            Summary::parse(SUMMARY).unwrap().with_details(&details).unwrap()
        };
        assert_eq!(changed(" -k -e -o ", " -k -o ").unsynced, ["ior-easy-write", "ior-hard-write"]);
        let report = changed(" -C -Y -W ", " -C -W ");
        assert_eq!(report.unsynced, ["mdtest-easy-write", "mdtest-hard-write"]);
        assert_eq!(changed(" -E -X ", " -E ").unverified, ["mdtest-hard-read"]);
        let report = changed("exe             = ./pfind", "exe = \ncalled = ./pfind");
        assert!(!report.called.contains(&Phase::Find) && report.called.len() == 12, "{report:?}");
    }

    #[test]
    fn mdtest_says_its_machines_and_what_it_read_wrongly() {
        const SAID: &str = include_str!("../../golden/valid/mdtest-hard-read.txt");
        assert_eq!(Reading::parse(SAID), Some(Reading { machines: 10, errors: 0 }));
        let wrong = |count: &str| format!("{SAID}\n{ERRORS_BEGIN}{count} errors)! Take the\n");
        assert_eq!(Reading::parse(&wrong("7")).unwrap().errors, 7);
        assert_eq!(Reading::parse(&wrong("-1")).unwrap().errors, 1);
        for text in ["", "hello", "x was launched with 80 total task(s) on many node(s)"] {
            assert_eq!(Reading::parse(text), None, "{text}");
        }
    }
}
