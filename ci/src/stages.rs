//! The stages, in the order in which they run.

use std::process::Command;

use crate::command::run;
use crate::{edges, packages, rules, vm};

/// Why a stage failed, for a person.
pub(crate) type Outcome = Result<(), String>;

/// One stage.
pub(crate) struct Stage {
    /// As given to `cargo ci`.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) what: &'static str,
    /// Minutes it may take on two cores; more is reported.
    pub(crate) budget_min: u32,
    /// Whether it is in `quick`.
    quick: bool,
    /// Does it.
    pub(crate) run: fn() -> Outcome,
}

impl Stage {
    /// Whether `name` asks for this stage.
    pub(crate) fn belongs_to(&self, name: &str) -> bool {
        name == self.name || name == "all" || (name == "quick" && self.quick)
    }
}

/// All stages.
pub(crate) const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        what: "rustfmt has nothing to change",
        budget_min: 1,
        quick: true,
        run: fmt,
    },
    Stage {
        name: "rules",
        what: "edges between crates, unsafe allow-list, module heads, lengths",
        budget_min: 1,
        quick: true,
        run: rules_stage,
    },
    Stage {
        name: "clippy",
        what: "clippy and the workspace's lints, warnings are errors",
        budget_min: 4,
        quick: true,
        run: clippy,
    },
    Stage {
        name: "doc",
        what: "rustdoc, warnings are errors",
        budget_min: 2,
        quick: false,
        run: doc,
    },
    Stage {
        name: "deny",
        what: "licences, bans and sources of the dependencies",
        budget_min: 8,
        quick: false,
        run: deny,
    },
    Stage {
        name: "unit",
        what: "unit tests, the transport suite over mem and tcp, golden bytes",
        budget_min: 8,
        quick: true,
        run: unit,
    },
    Stage {
        name: "sim",
        what: "three nodes and two clients in virtual time, 50 seeds",
        budget_min: 8,
        quick: false,
        run: || tests("sim"),
    },
    Stage {
        name: "fuzz",
        what: "every decoder against random and mutated bytes",
        budget_min: 3,
        quick: false,
        run: || tests("fuzz"),
    },
    Stage {
        name: "mount",
        what: "a real mount of three nodes: semantics, two mounts, kill -9, signals",
        budget_min: 8,
        quick: false,
        run: || mount("mount").and_then(|()| mount("signals")),
    },
    Stage {
        name: "large",
        what: "200,000 entries, 100,000 directories and a file of 3 GiB on a real mount",
        budget_min: 4,
        quick: false,
        run: || mount("large"),
    },
    Stage {
        name: "model",
        what: "generated operations on a mount and a local directory side by side",
        budget_min: 4,
        quick: false,
        run: || mount("model"),
    },
    Stage {
        name: "posix",
        what: "pjdfstest and fsx on a real mount",
        budget_min: 8,
        quick: false,
        run: || mount("posix"),
    },
    Stage {
        name: "programs",
        what: "git, cargo, sqlite3, tar, rsync and fio on a real mount",
        budget_min: 6,
        quick: false,
        run: || mount("programs"),
    },
    Stage {
        name: "io500",
        what: "IO500: our own phases on two mounts, the wrapper with a stand-in, the page in Chromium",
        budget_min: 6,
        quick: false,
        run: || mount("io500"),
    },
    Stage {
        name: "job",
        what: "file systems of jobs on virtual nodes: up, down, killed at any moment, reaped",
        budget_min: 5,
        quick: false,
        run: || mount("job"),
    },
    Stage {
        name: "stage",
        what: "trees staged into a real mount and out of it: killed, cut off, in parts",
        budget_min: 4,
        quick: false,
        run: || mount("stage"),
    },
    Stage {
        name: "seen",
        what: "metrics with Debian's prometheus, reload, drain, completions, manual pages, packaging",
        budget_min: 6,
        quick: false,
        run: || mount("seen"),
    },
    Stage {
        name: "slurm",
        what: "a real Slurm of four nodes: prologue, epilogue, staging, and what can go wrong",
        budget_min: 8,
        quick: false,
        run: slurm,
    },
    Stage {
        name: "vm",
        what: "what needs RDMA, over soft-RoCE in a VM",
        budget_min: 10,
        quick: false,
        run: vm::stage,
    },
];

fn fmt() -> Outcome {
    cargo(&["fmt", "--all", "--check"])
}

fn rules_stage() -> Outcome {
    edges::check()?;
    rules::check()
}

fn clippy() -> Outcome {
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
}

fn doc() -> Outcome {
    let args = ["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"];
    run(Command::new("cargo").args(args).env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Outcome {
    // Advisories need a database from the network; the other checks do not.
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

fn unit() -> Outcome {
    let which = "not package(sealfs-tests) or binary(format)";
    nextest(&["--filterset", which])
}

/// An integration test of `tests/` that needs no mount.
fn tests(name: &str) -> Outcome {
    nextest(&["--test", name])
}

/// An integration test of `tests/` that mounts: with the release binary, one test after the other.
fn mount(name: &str) -> Outcome {
    cargo(&["build", "--release", "--quiet", "-p", "sealfs"])?;
    nextest(&["--test", name, "-j", "1"])
}

fn slurm() -> Outcome {
    let packages = ["slurm-wlm", "slurm-wlm-basic-plugins", "munge", "procps", "iproute2"];
    packages::install("Slurm", &packages)?;
    mount("slurm")
}

/// Tests of the whole workspace: a selection of packages would have other features, and all be built once more.
fn nextest(which: &[&str]) -> Outcome {
    cargo(&[&["nextest", "run", "--workspace", "--no-fail-fast"], which].concat())
}

fn cargo(args: &[&str]) -> Outcome {
    run(Command::new("cargo").args(args))
}
