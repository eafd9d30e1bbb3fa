//! `sealfs bench DIR` and `sealfs bench io500 MOUNT...`.

use std::path::PathBuf;

use crate::Failure;
use crate::bench::{Plan, Row, WORKS, io500};

/// Measures a directory: a mount of sealfs, or any other to compare with. Works in a directory of its own inside it and
/// removes that at the end.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Where to work.
    #[arg(required = true)]
    dir: Option<PathBuf>,
    /// Threads that work at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: u32,
    /// Files per worker in the metadata works.
    #[arg(long, default_value_t = 1_000)]
    files: u32,
    /// MiB per worker in the data works.
    #[arg(long, default_value_t = 64)]
    mib: u32,
    /// Only these works (default: all).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Other {
    Io500(io500::Args),
    #[command(hide = true)]
    Io500Worker,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.other {
        Some(Other::Io500(args)) => return io500::run(args),
        Some(Other::Io500Worker) => return io500::work(),
        None => {}
    }
    let dir = args.dir.as_ref().ok_or("give the directory to measure")?;
    if let Some(name) = args.only.iter().find(|name| WORKS.iter().all(|work| work.name != **name)) {
        let names: Vec<_> = WORKS.iter().map(|work| work.name).collect();
        return Err(format!("no work is called {name:?}; there are {}", names.join(", ")).into());
    }
    let root = dir.join(format!("sealfs-bench-{}", std::process::id()));
    std::fs::create_dir(&root)
        .map_err(|error| format!("cannot work in {}: {error}", dir.display()))?;
    let plan = Plan { root: root.clone(), workers: args.workers, files: args.files, mib: args.mib };
    let result = measure(args, &plan);
    let cleaned = std::fs::remove_dir_all(&root);
    result?;
    cleaned.map_err(|error| format!("cannot remove {}: {error}", root.display()).into())
}

fn measure(args: &Args, plan: &Plan) -> Result<(), Failure> {
    let chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    if !args.json {
        println!("{:22} {:>11} {:>10} {:>10} {:>10}", "work", "ops/s", "MiB/s", "p50 us", "p99 us");
    }
    for work in WORKS {
        // Every work prepares what it needs, so that each can run alone.
        let row = plan.run(work, !args.json)?;
        if chosen(work.name) {
            print_row(&row, args.json);
        }
    }
    Ok(())
}

fn print_row(row: &Row, json: bool) {
    if json {
        println!(
            "{}",
            serde_json::json!({
                "work": row.name, "operations": row.operations, "seconds": row.seconds,
                "ops_per_s": row.rate(), "mib_per_s": row.mib_rate(),
                "p50_us": row.p50_us, "p99_us": row.p99_us, "max_us": row.max_us,
            })
        );
    } else {
        let mib = row.mib_rate().map_or_else(String::new, |rate| format!("{rate:.1}"));
        println!(
            "{:22} {:>11.0} {mib:>10} {:>10.1} {:>10.1}",
            row.name,
            row.rate(),
            row.p50_us,
            row.p99_us
        );
    }
}
