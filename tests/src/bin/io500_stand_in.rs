//! Stands in for the official IO500: reads its configuration, leaves its result files, measures nothing.
//!
//! ```text
//! io500_stand_in CONFIG.ini
//! io500_stand_in --version | -np N ... PROGRAM CONFIG.ini     (called as `mpirun`: starts PROGRAM once)
//! ```
//!
//! Each writing phase claims to have taken a second more than the stonewall. `$STAND_IN` says what goes wrong:
//! `fails` (a phase ends the program), `lacks` (a phase is left out), `hangs` (before a phase, for ever), `talks` (there, too,
//! and says so for ever), `changes` (another configuration than it was given), `babbles` (no result file is readable), `fast`
//! (more than any disk has space for), `twins` (two names are one machine), `misreads` (a file has not what was written).
//! `$STAND_IN_FACTOR` multiplies all figures.
#![allow(clippy::print_stdout, reason = "so does the program")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Name, figure, seconds; the random read does not count, the timestamp is nothing to measure.
const PHASES: [(&str, f64, f64); 14] = [
    ("ior-easy-write", 0.004, 0.0),
    ("mdtest-easy-write", 0.031, 0.0),
    ("timestamp", 0.0, 0.0),
    ("ior-hard-write", 0.001, 0.0),
    ("mdtest-hard-write", 0.009, 0.0),
    ("find", 2.4, 12.5),
    ("ior-easy-read", 0.006, 187.75),
    ("mdtest-easy-stat", 0.64, 150.0),
    ("ior-hard-read", 0.002, 170.95),
    ("mdtest-hard-stat", 0.48, 64.0),
    ("mdtest-easy-delete", 0.2, 468.0),
    ("mdtest-hard-read", 0.15, 204.0),
    ("mdtest-hard-delete", 0.08, 348.0),
    ("ior-rnd4K-easy-read", 0.0007, 300.4),
];
/// Before this one things go wrong.
const WRONG_AT: &str = "ior-hard-read";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words[0].ends_with("mpirun") {
        launch(&words[1..]);
    }
    let text = fs::read_to_string(&words[1]).expect("the configuration can be read");
    let setting = |section: &str, name: &str| {
        let at = text.find(&format!("[{section}]"))?;
        let mut lines = text[at..].lines().skip(1).take_while(|line| !line.starts_with('['));
        lines.find_map(|line| line.strip_prefix(&format!("{name} = ")))
    };
    let wrong = std::env::var("STAND_IN").unwrap_or_default();
    let results = setting("global", "resultdir").expect("there is a result directory");
    let put = |name: &str, text: &str| {
        fs::write(format!("{results}/{name}"), text).expect("it can be written");
    };
    let data = setting("global", "datadir").expect("there is a data directory");
    fs::create_dir(format!("{data}/ior-easy")).expect("the data directory is there");
    fs::write(format!("{data}/ior-easy/left"), "data").expect("it can be written");
    put("config.ini", &text);
    let ran = if wrong == "changes" {
        text.replace("verbosity = 1", "verbosity = 2")
    } else {
        text.clone()
    };
    put("config-orig.ini", &ran);

    let stonewall: f64 =
        setting("debug", "stonewall-time").map_or(300.0, |value| value.parse().expect("a number"));
    let number = |name: &str| std::env::var(name).map_or(1, |text| text.parse().expect("a number"));
    let (procs, machines) = (number(PROCS), number(MACHINES));
    let run = Run { stonewall, wrong, factor: factor(), procs, machines };
    let (summary, details) = run.phases(&|phase| setting(phase, "run") != Some("FALSE"), &put);
    if run.wrong == "babbles" {
        put("result.txt", "\u{0}\u{1}what\n");
        fs::write(format!("{results}/result_summary.txt"), [0xff, 0xfe, b'\n'])
            .expect("it can be written");
    } else {
        put("result.txt", &details);
        put("result_summary.txt", &summary);
    }
    // So does the program, when it has deleted all files.
    if run.wrong.is_empty() {
        fs::remove_dir_all(data).expect("the data directory is there");
    }
    println!("The result files are stored in the directory: {results}");
}

fn factor() -> f64 {
    std::env::var("STAND_IN_FACTOR").map_or(1.0, |factor| factor.parse().expect("a number"))
}

/// As mpirun of Open MPI: says so, or becomes the program, once for all ranks.
fn launch(words: &[String]) -> ! {
    if words == ["--version"] {
        println!("mpirun (Open MPI) stand-in");
        std::process::exit(0);
    }
    let program = words.iter().position(|word| word.starts_with('/')).expect("a program");
    let after = |name: &str| words.iter().skip_while(|word| *word != name).nth(1);
    let hosts = after("--host").map_or(1, |hosts| hosts.split(',').count());
    let mut command = Command::new(&words[program]);
    command.args(&words[program + 1..]).env(MACHINES, hosts.to_string());
    command.env(PROCS, after("-np").expect("a number of processes"));
    panic!("{}", command.exec());
}

/// What the launcher tells the program.
const PROCS: &str = "STAND_IN_PROCS";
const MACHINES: &str = "STAND_IN_MACHINES";

struct Run {
    stonewall: f64,
    wrong: String,
    factor: f64,
    procs: u64,
    machines: u64,
}

impl Run {
    fn phases(&self, is_on: &dyn Fn(&str) -> bool, put: &dyn Fn(&str, &str)) -> (String, String) {
        let version = "io500-stand-in";
        let mut summary = format!("IO500 version {version} (standard)\n");
        let procs = self.procs;
        let mut details =
            format!("[run]\nprocs           = {procs}\nversion         = {version}\n");
        let is_short = self.stonewall != 300.0;
        let mark = if is_short { " [INVALID]" } else { "" };
        if is_short {
            let _ = writeln!(details, "; ERROR INVALID stonewall-time {}s != 300s", self.stonewall);
        }
        let (mut bandwidth, mut metadata) = (Vec::new(), Vec::new());
        for (name, figure, seconds) in PHASES {
            if name == WRONG_AT && is_on(name) {
                self.go_wrong(&details, put);
                if self.wrong == "lacks" {
                    continue;
                }
            }
            let figure = if is_on(name) { figure * self.figures() } else { 0.0 };
            let is_write = name.ends_with("-write");
            let seconds = if is_write { self.stonewall + 1.0 } else { seconds };
            let invalid = if is_write { mark } else { "" };
            let (unit, call) = if name.starts_with('i') {
                ("GiB/s", "./ior -k -e -w")
            } else {
                ("kIOPS", if is_write { "./mdtest -C -Y" } else { "./mdtest -E -X" })
            };
            if name.starts_with("mdtest") && is_on(name) {
                put(&format!("{name}.txt"), &self.said());
            }
            let counts = name != "timestamp" && !name.contains("rnd");
            let head = if counts { "[RESULT]" } else { "[      ]" };
            let line = format!(
                "{head} {name:>20} {figure:>15.6} {unit} : time {seconds:.3} seconds{invalid}"
            );
            println!("{line}");
            let _ = writeln!(summary, "{line}");
            let _ = write!(details, "\n[{name}]\nexe             = {call}\n");
            if name != "timestamp" {
                let _ = writeln!(details, "score           = {figure:.6}");
            }
            let _ = writeln!(details, "t_delta         = {seconds:.4}");
            if counts && figure > 0.0 {
                if unit == "GiB/s" { bandwidth.push(figure) } else { metadata.push(figure) }
            }
        }
        let mean =
            |of: &[f64]| (of.iter().map(|value| value.ln()).sum::<f64>() / of.len() as f64).exp();
        let (bandwidth, metadata) = (mean(&bandwidth), mean(&metadata));
        let total = (bandwidth * metadata).sqrt();
        let _ = writeln!(
            summary,
            "[SCORE ] Bandwidth {bandwidth:.6} GiB/s : IOPS {metadata:.6} kiops : TOTAL {total:.6}{mark}"
        );
        let _ = write!(
            details,
            "\n[SCORE]\nMD              = {metadata:.6}\nSCORE           = {total:.6}{mark}\n"
        );
        (summary, details)
    }

    /// By mdtest.
    fn said(&self) -> String {
        let machines = self.machines - u64::from(self.wrong == "twins");
        let procs = self.procs;
        let mut text =
            format!("mdtest-4 was launched with {procs} total task(s) on {machines} node(s)\n");
        if self.wrong == "misreads" {
            text += "\nERROR: verifying the data on read (3 errors)! Take the performance values with care!\n";
        }
        text
    }

    fn figures(&self) -> f64 {
        if self.wrong == "fast" { 1e9 } else { self.factor }
    }

    /// As the program: what is done so far is in the details, the summary comes at the end.
    fn go_wrong(&self, details: &str, put: &dyn Fn(&str, &str)) {
        match self.wrong.as_str() {
            "fails" => {
                put("result.txt", details);
                put("result_summary.txt", "");
                println!("FATAL cannot go on");
                std::process::exit(1);
            }
            "hangs" | "talks" => {
                put("result.txt", details);
                put("result_summary.txt", "");
                println!("hangs");
                loop {
                    if self.wrong == "talks" {
                        println!("talks");
                    }
                    std::thread::park_timeout(std::time::Duration::from_millis(100));
                }
            }
            _ => {}
        }
    }
}
