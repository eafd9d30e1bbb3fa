//! `cargo ci <stage>...`: the stages that a laptop and CI run alike, each with its time against its budget.
//!
//! A stage is a row of [`stages::STAGES`]: what it checks, its budget in minutes, the commands. Rules that no tool
//! checks (edges between crates, where `unsafe` may stand, module heads, file lengths) are in [`rules`].
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks on its streams"
)]

mod command;
mod copies;
mod edges;
mod packages;
mod rules;
mod stages;
mod vm;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

/// Runs stages of sealfs' checks; without a name, lists them.
#[derive(Parser)]
struct Cli {
    /// Stages by name, or `quick` (under 5 minutes) or `all`.
    stages: Vec<String>,
}

fn main() -> ExitCode {
    let names = Cli::parse().stages;
    if names.is_empty() {
        for stage in stages::STAGES {
            println!("{:10} {:3} min  {}", stage.name, stage.budget_min, stage.what);
        }
        println!("quick, all: the stages of that set");
        return ExitCode::SUCCESS;
    }
    let mut chosen = Vec::new();
    for name in &names {
        let before = chosen.len();
        chosen.extend(stages::STAGES.iter().filter(|stage| stage.belongs_to(name)));
        if chosen.len() == before {
            eprintln!("no stage is called {name:?}; `cargo ci` lists them");
            return ExitCode::FAILURE;
        }
    }
    run(&chosen)
}

/// Runs the stages one after the other and ends at the first that fails.
fn run(chosen: &[&stages::Stage]) -> ExitCode {
    let mut table = String::new();
    for stage in chosen {
        println!("== {}: {}", stage.name, stage.what);
        let start = Instant::now();
        let outcome = (stage.run)();
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let late = if minutes > f64::from(stage.budget_min) { "  OVER BUDGET" } else { "" };
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        let line = format!(
            "{:10} {verdict:6} {minutes:5.1} of {:2} min{late}\n",
            stage.name, stage.budget_min
        );
        print!("== {line}");
        table.push_str(&line);
        if let Err(cause) = outcome {
            eprintln!("{}: {cause}\n\n{table}", stage.name);
            return ExitCode::FAILURE;
        }
    }
    println!("\n{table}");
    ExitCode::SUCCESS
}
