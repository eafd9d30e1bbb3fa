//! The submission rules that can be checked, as a table: a run that breaks one is not submittable, and says why.
//!
//! After "Submission Rules" at io500.org/rules/submission and what the program itself objects to. Rules that only people
//! can keep (the list's description, unchanged sources, one storage system) are not here.
//!
//! 1. What is not known counts as broken: silence is no proof.
//! 2. Rules that need no result are checked before a run, all of them after it.

use std::collections::BTreeMap;

use super::ini::Ini;
use super::result::Report;
use crate::own::OFFICIAL_STONEWALL;
use crate::phase::Phase;
use crate::score::Score;

/// When a change that a node acknowledged outlives a loss of power, as the nodes say: node -> mode. Or why nobody knows.
pub type Persistence = Result<BTreeMap<String, String>, String>;

/// What is known before a run.
#[derive(Clone, Debug)]
pub(super) struct Before {
    /// The configuration.
    pub ini: Ini,
    /// Machines that run ranks.
    pub clients: u64,
    /// What the nodes run with.
    pub persistence: Persistence,
}

/// What is known after it.
#[derive(Clone, Debug, Default)]
pub(super) struct After {
    /// What the program wrote.
    pub report: Report,
    /// How the program ended, unless it was well.
    pub ended: Option<String>,
    /// What was configured otherwise than we wrote it.
    pub changed: Vec<String>,
}

type Rule<Facts> = (&'static str, fn(&Facts) -> Option<String>);

/// Name and check, which says how the rule is broken.
const RULES_BEFORE: &[Rule<Before>] = &[
    ("stonewall", |facts| {
        let stonewall = facts.ini.get("debug", "stonewall-time").unwrap_or("300");
        let official = OFFICIAL_STONEWALL.to_string();
        (stonewall != official).then(|| {
            format!(
                "the writing phases' stonewall is {stonewall} s instead of {OFFICIAL_STONEWALL} s"
            )
        })
    }),
    ("competition", |facts| {
        let scc = facts.ini.get("global", "scc").is_some_and(is_true);
        scc.then(|| "scc is set: these are the rules of the student cluster competition".into())
    }),
    ("all phases", |facts| {
        let off = Phase::ALL.into_iter().filter(|phase| phase.is_scored());
        let names =
            off.map(Phase::name).chain(["ior-easy", "ior-hard", "mdtest-easy", "mdtest-hard"]);
        let off: Vec<&str> = names
            .filter(|name| facts.ini.get(name, "run").is_some_and(|value| !is_true(value)))
            .collect();
        (!off.is_empty()).then(|| format!("phases are switched off: {}", off.join(", ")))
    }),
    ("pause", |facts| {
        let directory = facts.ini.get("debug", "pause-dir")?;
        Some(format!("pause-dir is set ({directory}): phases must run without interruption"))
    }),
    ("files per directory", |facts| {
        let files = facts.ini.get("mdtest-hard", "files-per-dir").filter(|files| *files != "0")?;
        Some(format!(
            "mdtest-hard's files-per-dir is set ({files}): all files must be in one directory"
        ))
    }),
    ("another client reads", |facts| {
        (facts.clients < 2).then(|| {
            "one client: nobody else read what it wrote after the close; give at least two with --hosts".into()
        })
    }),
    ("persistence", |facts| match &facts.persistence {
        Err(reason) => Some(format!(
            "whether acknowledged data outlives a loss of power is not known: {reason}"
        )),
        Ok(nodes) if nodes.is_empty() => Some("no node said when it acknowledges data".into()),
        Ok(nodes) => {
            let weak: Vec<String> = nodes
                .iter()
                .filter(|(_, mode)| *mode != "power")
                .map(|(node, mode)| format!("node {node} runs with --durability {mode}"))
                .collect();
            (!weak.is_empty()).then(|| {
                format!("a close is acknowledged before data is on the device: {}; start them with --durability power", weak.join(", "))
            })
        }
    }),
];

const RULES_AFTER: &[Rule<After>] = &[
    ("without interruption", |facts| facts.ended.clone()),
    ("all results", |facts| {
        let missing: Vec<&str> = facts.report.missing().into_iter().map(Phase::name).collect();
        (!missing.is_empty()).then(|| format!("phases without a result: {}", missing.join(", ")))
    }),
    ("sync at close", |facts| {
        let phases = &facts.report.unsynced;
        (!phases.is_empty())
            .then(|| format!("IOR did not sync at close (-e) in {}", phases.join(", ")))
    }),
    ("configuration", |facts| {
        (!facts.changed.is_empty()).then(|| {
            format!(
                "the configuration that ran is not the one that was written: {}",
                facts.changed.join("; ")
            )
        })
    }),
    ("valid", |facts| {
        let objections = &facts.report.objections;
        let invalid = facts.report.outcomes.iter().filter(|outcome| outcome.invalid);
        let invalid: Vec<&str> = invalid.map(|outcome| outcome.phase.name()).collect();
        if !objections.is_empty() {
            return Some(format!("the program objects: {}", objections.join("; ")));
        }
        let is_marked = facts.report.printed.is_some_and(|(_, invalid)| invalid);
        (is_marked || !invalid.is_empty())
            .then(|| format!("the program marks results as invalid: {}", invalid.join(", ")))
    }),
    ("writing time", |facts| {
        let short: Vec<String> = facts
            .report
            .outcomes
            .iter()
            .filter(|outcome| {
                outcome.phase.is_write() && outcome.seconds < OFFICIAL_STONEWALL as f64
            })
            .map(|outcome| format!("{} took {:.1} s", outcome.phase, outcome.seconds))
            .collect();
        (!short.is_empty()).then(|| {
            format!("writing phases must last {OFFICIAL_STONEWALL} s: {}", short.join(", "))
        })
    }),
    ("score", |facts| {
        let values: Vec<_> =
            facts.report.outcomes.iter().map(|outcome| (outcome.phase, outcome.value)).collect();
        let ours = Score::of(&values)?;
        let Some((printed, _)) = facts.report.printed else {
            return Some("the program printed no score: its summary is not whole".into());
        };
        // Six digits are printed of each figure.
        let is_near = |a: f64, b: f64| (a - b).abs() <= 2e-6 * a.max(1.0) + 1e-4 * a;
        (!is_near(ours.total, printed.total)).then(|| {
            format!(
                "the printed score {:.6} does not follow from the phases: {:.6}",
                printed.total, ours.total
            )
        })
    }),
];

/// Why a run with these settings cannot be submitted, whatever its result.
#[must_use]
pub(super) fn reasons_before(facts: &Before) -> Vec<String> {
    RULES_BEFORE.iter().filter_map(|(_, rule)| rule(facts)).collect()
}

/// Why this result cannot be submitted.
#[must_use]
pub(super) fn reasons_after(facts: &After) -> Vec<String> {
    RULES_AFTER.iter().filter_map(|(_, rule)| rule(facts)).collect()
}

fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value == "1"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::official::result::Summary;

    fn before() -> Before {
        let mut ini = Ini::default();
        ini.set("debug", "stonewall-time", 300);
        ini.set("find", "run", "TRUE");
        let nodes = ["1", "2"].map(|node| (node.to_owned(), "power".to_owned()));
        Before { ini, clients: 2, persistence: Ok(nodes.into()) }
    }

    fn after() -> After {
        let summary =
            Summary::parse(include_str!("../../golden/valid/result_summary.txt")).unwrap();
        let details = include_str!("../../golden/valid/result.txt");
        After { report: summary.with_details(details).unwrap(), ended: None, changed: Vec::new() }
    }

    /// Breaks each rule alone; the reason must be the only one and contain the words.
    #[test]
    fn every_rule_before_a_run_can_be_broken_and_names_its_reason() {
        assert_eq!(reasons_before(&before()), Vec::<String>::new());
        type Break = fn(&mut Before);
        let breaks: &[(&str, Break, &str)] = &[
            ("stonewall", |f| f.ini.set("debug", "stonewall-time", 30), "30 s instead of 300"),
            ("competition", |f| f.ini.set("global", "scc", "True"), "student"),
            (
                "all phases",
                |f| f.ini.set("mdtest-hard-stat", "run", "FALSE"),
                "off: mdtest-hard-stat",
            ),
            ("all phases", |f| f.ini.set("ior-hard", "run", "0"), "off: ior-hard"),
            ("pause", |f| f.ini.set("debug", "pause-dir", "/p"), "/p"),
            ("files per directory", |f| f.ini.set("mdtest-hard", "files-per-dir", 9), "(9)"),
            ("another client reads", |f| f.clients = 1, "one client"),
            ("persistence", |f| f.persistence = Err("no key".into()), "no key"),
            ("persistence", |f| f.persistence = Ok(BTreeMap::new()), "no node"),
            (
                "persistence",
                |f| drop(f.persistence.as_mut().unwrap().insert("2".into(), "process".into())),
                "node 2 runs with --durability process",
            ),
        ];
        for (name, rule) in RULES_BEFORE.iter().map(|(name, _)| (name, name)) {
            assert!(breaks.iter().any(|(of, _, _)| of == rule), "nobody breaks {name}");
        }
        for (name, break_it, words) in breaks {
            let mut facts = before();
            break_it(&mut facts);
            let reasons = reasons_before(&facts);
            assert!(reasons.len() == 1 && reasons[0].contains(words), "{name}: {reasons:?}");
        }
    }

    #[test]
    fn every_rule_after_a_run_can_be_broken_and_names_its_reason() {
        assert_eq!(reasons_after(&after()), Vec::<String>::new());
        type Break = fn(&mut After);
        let breaks: &[(&str, Break, &str)] = &[
            ("without interruption", |f| f.ended = Some("it was killed".into()), "killed"),
            ("all results", |f| drop(f.report.outcomes.remove(4)), "without a result: find"),
            (
                "sync at close",
                |f| f.report.unsynced.push("ior-hard-write".into()),
                "ior-hard-write",
            ),
            ("configuration", |f| f.changed.push("[a] b: 1 became 2".into()), "1 became 2"),
            ("valid", |f| f.report.objections.push("find: nothing".into()), "find: nothing"),
            ("valid", |f| f.report.outcomes[3].invalid = true, "invalid: mdtest-hard-write"),
            ("valid", |f| f.report.printed.as_mut().unwrap().1 = true, "invalid"),
            (
                "writing time",
                |f| f.report.outcomes[1].seconds = 299.9,
                "mdtest-easy-write took 299.9",
            ),
            ("score", |f| f.report.printed = None, "printed no score"),
            ("score", |f| f.report.printed.as_mut().unwrap().0.total += 1.0, "does not follow"),
        ];
        for (rule, _) in RULES_AFTER {
            assert!(breaks.iter().any(|(of, _, _)| of == rule), "nobody breaks {rule}");
        }
        for (name, break_it, words) in breaks {
            let mut facts = after();
            break_it(&mut facts);
            let reasons = reasons_after(&facts);
            assert!(reasons.len() == 1 && reasons[0].contains(words), "{name}: {reasons:?}");
        }
    }
}
