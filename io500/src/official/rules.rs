//! The submission rules that can be checked, as a table: a run that breaks one is not submittable, and says why.
//!
//! After "Submission Rules" at io500.org/rules/submission and what the program itself objects to. Rules that only people
//! can keep (the list's description, unchanged sources, one storage system) are not here.
//!
//! 1. What is not known counts as broken: silence is no proof.
//! 2. Rules that need no result are checked before a run, all of them after it.

use std::collections::BTreeMap;

use super::ini::Ini;
use super::result::{Reading, Report};
use crate::own::OFFICIAL_STONEWALL;
use crate::phase::Phase;
use crate::score::Score;

/// Whether what a node acknowledged outlives a loss of power, by node. Or why nobody knows.
pub type Persistence = Result<BTreeMap<String, Keeping>, String>;

/// What a node says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// When it acknowledges: `process`, `power`, `scratch`.
    pub durability: String,
    /// Whether its data lies in memory; `None`: it does not say.
    pub in_memory: Option<bool>,
}

impl Keeping {
    /// Why what it acknowledged may be lost.
    fn weakness(&self) -> Option<String> {
        match (self.durability.as_str(), self.in_memory) {
            ("power", Some(false)) => None,
            ("power", Some(true)) => Some("keeps its data in memory; give it a device".into()),
            ("power", None) => Some("does not say where its data lies; it is too old".into()),
            (mode, _) => Some(format!("runs with --durability {mode}; start it with power")),
        }
    }
}

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
    /// Processes and clients that were asked for.
    pub asked: (u64, u64),
    /// What the program wrote.
    pub report: Report,
    /// What its mdtest said of the reading phase, if it came to that.
    pub reading: Option<Reading>,
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
        match facts.clients {
        0 | 1 => Some(
            "one client: nobody else read what it wrote after the close; give at least three with --hosts".into(),
        ),
        // mdtest's -N 1 shifts ranks by a client: once for stat, twice for read.
        2 => Some(
            "two clients: mdtest-hard-read reads where it has written, for it shifts ranks by two clients; give at \
             least three with --hosts"
                .into(),
        ),
        _ => None,
    }
    }),
    ("persistence", |facts| match &facts.persistence {
        Err(reason) => Some(format!(
            "whether acknowledged data outlives a loss of power is not known: {reason}"
        )),
        Ok(nodes) if nodes.is_empty() => Some("no node said when it acknowledges data".into()),
        Ok(nodes) => {
            let weak = nodes
                .iter()
                .filter_map(|(node, keeping)| Some(format!("node {node} {}", keeping.weakness()?)));
            let weak: Vec<String> = weak.collect();
            (!weak.is_empty()).then(|| {
                format!("a close is acknowledged before data is on a device: {}", weak.join(", "))
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
    ("processes", |facts| {
        let (asked, ran) = (facts.asked.0, facts.report.procs);
        (asked != ran).then(|| format!("{asked} processes were asked for, {ran} have run"))
    }),
    ("machines", |facts| other_machines(facts.asked.1, facts.reading?)),
    ("command lines", |facts| {
        let has = |phase| facts.report.called.contains(&phase);
        let silent = facts.report.outcomes.iter().map(|outcome| outcome.phase);
        let silent: Vec<&str> = silent.filter(|phase| !has(*phase)).map(Phase::name).collect();
        (!silent.is_empty()).then(|| {
            format!(
                "result.txt does not say how programs were called (exe) in {}",
                silent.join(", ")
            )
        })
    }),
    ("sync", |facts| {
        let phases = &facts.report.unsynced;
        (!phases.is_empty())
            .then(|| format!("not synced, by IOR's -e or mdtest's -Y, was {}", phases.join(", ")))
    }),
    ("verification", |facts| {
        let phases = &facts.report.unverified;
        if !phases.is_empty() {
            return Some(format!(
                "not compared with what was written (-X) was {}",
                phases.join(", ")
            ));
        }
        let has_read =
            facts.report.outcomes.iter().any(|outcome| outcome.phase == Phase::MdtestHardRead);
        match facts.reading {
            Some(Reading { errors: 0, .. }) => None,
            Some(Reading { errors, .. }) => Some(format!(
                "mdtest-hard-read: {errors} files had not what was written (mdtest-hard-read.txt)"
            )),
            None => has_read.then(|| {
                "whether mdtest-hard-read read what was written is not known: mdtest-hard-read.txt does not say".into()
            }),
        }
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

/// Why ranks were not on as many machines as clients were asked for.
#[must_use]
pub(super) fn other_machines(clients: u64, mdtest: Reading) -> Option<String> {
    let machines = mdtest.machines;
    (clients != machines).then(|| {
        format!(
            "{clients} clients were asked for, and mdtest found {machines} machines: name each machine once, and let the \
             launcher use all of them"
        )
    })
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
        let nodes = ["1", "2"].map(|node| (node.to_owned(), keeping("power", Some(false))));
        Before { ini, clients: 3, persistence: Ok(nodes.into()) }
    }

    fn keeping(durability: &str, in_memory: Option<bool>) -> Keeping {
        Keeping { durability: durability.into(), in_memory }
    }

    fn second_keeps(facts: &mut Before, durability: &str, in_memory: Option<bool>) {
        facts.persistence.as_mut().unwrap().insert("2".into(), keeping(durability, in_memory));
    }

    fn after() -> After {
        let summary =
            Summary::parse(include_str!("../../golden/valid/result_summary.txt")).unwrap();
        let details = include_str!("../../golden/valid/result.txt");
        let report = summary.with_details(details).unwrap();
        let reading = Reading::parse(include_str!("../../golden/valid/mdtest-hard-read.txt"));
        After { asked: (80, 10), report, reading, ended: None, changed: Vec::new() }
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
            ("another client reads", |f| f.clients = 2, "reads where it has written"),
            ("persistence", |f| f.persistence = Err("no key".into()), "no key"),
            ("persistence", |f| f.persistence = Ok(BTreeMap::new()), "no node"),
            (
                "persistence",
                |f| second_keeps(f, "process", Some(false)),
                "node 2 runs with --durability process",
            ),
            (
                "persistence",
                |f| second_keeps(f, "power", Some(true)),
                "node 2 keeps its data in memory",
            ),
            ("persistence", |f| second_keeps(f, "power", None), "node 2 does not say where"),
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
            ("processes", |f| f.asked.0 = 81, "81 processes were asked for, 80 have run"),
            ("machines", |f| f.asked.1 = 11, "11 clients were asked for, and mdtest found 10"),
            (
                "command lines",
                |f| f.report.called.retain(|phase| *phase != Phase::Find),
                "(exe) in find",
            ),
            ("sync", |f| f.report.unsynced.push("ior-hard-write".into()), "ior-hard-write"),
            ("verification", |f| f.report.unverified.push("x".into()), "(-X) was x"),
            ("verification", |f| f.reading.as_mut().unwrap().errors = 2, "2 files had not"),
            ("verification", |f| f.reading = None, "is not known"),
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
