//! Rules about source files that no other tool checks.
//!
//! 1. `unsafe` stands only in the files of [`UNSAFE_FILES`]; the pure crates forbid it by attribute.
//! 2. A module of more than 60 lines opens with `//!`.
//! 3. A file has at most 800 lines without its tests.
//! 4. No marks of unfinished work are left.
//! 5. On the data path payload is copied by one function, in known places ([`crate::copies`]).

use std::fs;
use std::path::{Path, PathBuf};

use crate::stages::Outcome;

/// Files that may hold `unsafe`, relative to the root: few, named, reviewed.
const UNSAFE_FILES: &[&str] = &[
    "client/src/sys.rs",
    "server/src/sys.rs",
    "transport/rdma/src/verbs/ibv/cm.rs",
    "transport/rdma/src/verbs/ibv/device.rs",
    "transport/rdma/src/verbs/ibv/domain.rs",
    "transport/rdma/src/verbs/ibv/queue.rs",
    "transport/rdma/src/verbs/ibv/sys.rs",
    "transport/ring/src/pool.rs",
    "transport/ring/src/ring.rs",
    "transport/ring/src/sys.rs",
];
/// Written in two halves, as the marks below, so that this file does not break its own rules.
const UNSAFE_WORDS: &[&str] =
    &[concat!("unsafe", " {"), concat!("unsafe", " impl"), concat!("unsafe", " fn")];
const LINES_MAX: usize = 800;
const HEADLESS_LINES_MAX: usize = 60;
const MARKS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
];

/// Fails with every file that breaks a rule.
pub(crate) fn check() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut wrong = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        wrong.extend(broken_rules(&name, &text).into_iter().map(|rule| format!("{name}: {rule}")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("rules broken:\n{}", wrong.join("\n"))) }
}

fn broken_rules(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().count();
    if lines > LINES_MAX {
        wrong.push(format!("{lines} lines without tests; {LINES_MAX} are allowed"));
    }
    if text.lines().count() > HEADLESS_LINES_MAX && !text.starts_with("//!") {
        wrong.push("opens without a module head (//!)".into());
    }
    let uses_unsafe = code.lines().any(|line| {
        let line = line.split("//").next().unwrap_or_default();
        UNSAFE_WORDS.iter().any(|word| line.contains(word))
    });
    if uses_unsafe && !UNSAFE_FILES.contains(&name) {
        wrong.push("holds unsafe, but is not on the list in ci/src/rules.rs".into());
    }
    wrong.extend(crate::copies::broken_rule(name, code));
    for mark in MARKS {
        if text.contains(mark) {
            wrong.push(format!("holds {mark:?}"));
        }
    }
    wrong
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_can_be_broken() {
        let long = format!("//! Head.\n{}", "// line\n".repeat(801));
        assert!(broken_rules("a.rs", &long)[0].contains("802 lines"));
        assert!(broken_rules("a.rs", &"fn f() {}\n".repeat(61))[0].contains("module head"));
        assert!(
            broken_rules("a.rs", concat!("fn f() { uns", "afe { g() } }"))[0].contains("unsafe")
        );
        assert!(broken_rules("a.rs", concat!("// TO", "DO later"))[0].contains("holds"));
        assert_eq!(
            broken_rules("a.rs", "// the word unsafe in a comment is fine\n"),
            Vec::<String>::new()
        );
    }
}
