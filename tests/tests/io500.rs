//! IO500: our own phases on a real cluster, and the page of runs in a browser.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use sealfs_tests::cluster::{Cluster, binary, run};

/// Opens a page in headless Chromium; returns the document after its scripts have run. The screenshot stays as
/// `target/io500/<name>.png`.
fn browse(page: &Path, name: &str) -> String {
    let target = binary().ancestors().nth(2).expect("it lies in target/release").to_owned();
    let pictures = target.join("io500");
    fs::create_dir_all(&pictures).expect("a directory for pictures");
    let profile = tempfile::tempdir().expect("a directory for the browser's profile");
    let chromium = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.args([
            "--kill-after=5",
            "120",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
        ]);
        command.args([
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        // Whatever it would fetch does not exist: the page has to do without.
        command.args(["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1280,2400"]);
        command.args(arguments).arg(format!("file://{}", page.display()));
        String::from_utf8_lossy(&run(&mut command).stdout).into_owned()
    };
    let picture = pictures.join(format!("{name}.png"));
    let _ = fs::remove_file(&picture);
    chromium(&[&format!("--screenshot={}", picture.display())]);
    assert!(fs::metadata(&picture).expect("there is a screenshot").len() > 10_000);
    let dark = pictures.join(format!("{name}-dark.png"));
    chromium(&[
        "--force-dark-mode",
        "--blink-settings=preferredColorScheme=0",
        &format!("--screenshot={}", dark.display()),
    ]);
    chromium(&["--dump-dom"])
}

/// An output that nobody reads.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn bench(mounts: &[&PathBuf], extra: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["bench", "io500"]).args(extra).args(mounts);
    command
}

const PHASES: [&str; 13] = [
    "ior-easy-write",
    "mdtest-easy-write",
    "ior-hard-write",
    "mdtest-hard-write",
    "find",
    "ior-easy-read",
    "mdtest-easy-stat",
    "ior-hard-read",
    "mdtest-hard-stat",
    "mdtest-easy-delete",
    "mdtest-hard-read",
    "mdtest-hard-delete",
    "ior-rnd4K-easy-read",
];

#[test]
fn our_own_phases_run_on_two_mounts_and_their_page_shows_them_in_a_browser() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    let results = cluster.dir().join("results");
    let arguments = ["--seconds", "1", "--workers", "2", "--json"];
    for nth in 0..2 {
        let output = run(bench(&[&a, &b], &arguments).arg("--results").arg(&results));
        let text = String::from_utf8(output.stdout).expect("JSON is text");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
        let (whole, phases) = lines.split_last().expect("there are lines");
        let names: Vec<_> = phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
        assert_eq!(names, PHASES, "run {nth}");
        for phase in phases {
            assert!(phase["value"].as_f64().unwrap() > 0.0, "{phase}");
            // A machine that fills the space before the stonewall says so; nothing else is wrong.
            let note = phase["note"].as_str().unwrap();
            assert!(phase["invalid"] == false || note.contains("no space"), "{phase}");
        }
        assert_eq!((&whole["clients"], &whole["workers"]), (&2.into(), &4.into()));
        assert!(whole["reasons"][0].as_str().unwrap().contains("not the official benchmark"));
        let score = &whole["score"];
        let of = |name: &str| score[name].as_f64().unwrap();
        let product = of("bandwidth") * of("metadata");
        assert!((of("total") - product.sqrt()).abs() < 1e-9 * product, "{score}");
    }
    for mount in [&a, &b] {
        assert_eq!(fs::read_dir(mount).unwrap().count(), 0, "the run's directory is left");
    }

    let document = browse(&results.join("index.html"), "own");
    assert!(document.contains("data-ready=\"true\""), "the script has not run");
    assert!(document.matches("<svg").count() >= 2 + PHASES.len(), "charts are missing");
    // A dot for both runs in the score's chart and in each phase's.
    assert_eq!(document.matches("<circle").count(), 2 * (1 + PHASES.len()));
    for phase in PHASES {
        assert!(document.contains(&format!("<h4>{phase}</h4>")), "{phase}");
    }
    assert!(document.contains("NO OFFICIAL SCORE"));

    // When its output has broken off a run ends, is kept with what it has measured, and leaves nothing else.
    let mut command = bench(&[&a, &b], &arguments);
    command.arg("--results").arg(&results).stdout(broken_pipe()).stderr(Stdio::null());
    assert_eq!(command.status().expect("sealfs starts").code(), Some(1));
    let newest = fs::read_dir(&results).unwrap().map(|entry| entry.unwrap().path());
    let newest = newest.filter(|path| path.is_dir()).max().expect("there are runs");
    let text = fs::read_to_string(newest.join("run.json")).expect("the run is kept");
    let record: serde_json::Value = serde_json::from_str(&text).expect("a record is JSON");
    assert_eq!(record["results"].as_array().unwrap().len(), 1, "{record}");
    assert!(reasons(&record).contains("cannot be written"), "{record}");
    for mount in [&a, &b] {
        assert_eq!(fs::read_dir(mount).unwrap().count(), 0, "the run's directory is left");
    }
}

/// A place for `sealfs io500` with the stand-in: a directory in place of a mount, since nothing is measured.
struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn make() -> Self {
        Self::named("io500")
    }

    fn named(prefix: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir().expect("a directory");
        fs::create_dir(dir.path().join("mount")).expect("a directory");
        // The stand-in knows by its name that it is to be mpirun.
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_io500_stand_in"), dir.path().join("mpirun"))
            .expect("a link");
        Self { dir }
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    fn results(&self) -> PathBuf {
        self.dir.path().join("results")
    }

    /// `io500/run.sh` on a mount, the stand-in doing `wrong`.
    fn command(&self, mount: &Path, wrong: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../io500/run.sh");
        // However the tests themselves were started (nohup).
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(script);
        command.env("SEALFS_BIN", binary()).env("STAND_IN", wrong).env_remove("SLURM_JOB_ID");
        command.arg("--io500").arg(env!("CARGO_BIN_EXE_io500_stand_in"));
        command.arg("--mpi").arg(self.dir.path().join("mpirun"));
        command.arg("--results").arg(self.results()).arg(mount);
        command
    }

    /// The only run that there is: its record and its directory.
    fn only_run(&self) -> (serde_json::Value, PathBuf) {
        let entries = fs::read_dir(self.results()).expect("there are results");
        let runs: Vec<PathBuf> = entries
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_dir())
            .collect();
        let [run] = runs.as_slice() else { panic!("one run: {runs:?}") };
        let text = fs::read_to_string(run.join("run.json")).expect("the run is kept");
        (serde_json::from_str(&text).expect("a record is JSON"), run.clone())
    }
}

fn reasons(record: &serde_json::Value) -> String {
    let reasons = record["reasons"].as_array().expect("there are reasons");
    reasons.iter().map(|reason| reason.as_str().expect("text").to_owned() + "\n").collect()
}

#[test]
fn the_wrapper_keeps_a_submittable_run_of_a_durable_cluster_and_compares_it_with_the_last() {
    let mut cluster = Cluster::start_with(3, &["--size", "2G", "--durability", "power"]);
    let mount = cluster.mount();
    let bed = Bed::make();
    // Where temporary directories lie in memory, that is the only thing amiss.
    let in_memory = !cluster.status()["nodes"][0]["counters"]["data_in_memory"].is_null();
    for factor in ["1", "1.5"] {
        let mut command = bed.command(&mount, "");
        command.env("STAND_IN_FACTOR", factor).args(["--hosts", "n1,n2,n3", "--ranks", "4"]);
        command.arg("--nodes").arg(cluster.nodes_file()).arg("--key").arg(cluster.key());
        command.args(["--transport", &sealfs_tests::cluster::transport()]);
        let output = run(&mut command);
        let text = String::from_utf8(output.stdout).expect("text");
        if in_memory {
            assert!(text.contains("node 1 keeps its data in memory"), "{text}");
        }
        assert_eq!(text.contains("Submittable by the rules"), !in_memory, "{text}");
        assert_eq!(text.contains("x 1.50"), factor == "1.5", "{text}");
    }
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0, "the run's data is left");
    let mut runs: Vec<PathBuf> =
        fs::read_dir(bed.results()).unwrap().map(|entry| entry.unwrap().path()).collect();
    runs.retain(|path| path.is_dir());
    assert_eq!(runs.len(), 2);
    for run in &runs {
        let submission = run.join("submission");
        for name in [
            "result.txt",
            "result_summary.txt",
            "config.ini",
            "config-orig.ini",
            "io500.ini",
            "io500.sh",
            "output.txt",
            "cluster.json",
            "system-information.txt",
        ] {
            assert!(submission.join(name).exists(), "{name} is missing");
        }
        assert_eq!(submission.join("NOT-SUBMITTABLE.txt").exists(), in_memory);
        let cluster = fs::read_to_string(submission.join("cluster.json")).unwrap();
        let cluster: serde_json::Value = serde_json::from_str(&cluster).unwrap();
        assert_eq!(cluster["nodes"]["nodes"][0]["durability"], "power");
        let script = fs::read_to_string(submission.join("io500.sh")).unwrap();
        assert!(script.contains("-np 12") && script.contains("n1:4,n2:4,n3:4"), "{script}");
    }
    let document = browse(&bed.results().join("index.html"), "official");
    assert!(document.contains("data-ready=\"true\""));
    assert_eq!(document.matches("<circle").count(), 2 * (1 + PHASES.len()));
    assert!(document.contains("×1.50") && document.contains("SUBMITTABLE"));
    assert_eq!(document.contains("NOT SUBMITTABLE"), in_memory);
}

#[test]
fn a_run_that_breaks_rules_is_kept_and_labelled_with_each_reason() {
    let bed = Bed::make();
    let output = run(bed.command(&bed.mount(), "").args(["--seconds", "2"]));
    let text = String::from_utf8(output.stdout).expect("text");
    let (record, directory) = bed.only_run();
    let reasons = reasons(&record);
    for words in [
        "2 s instead of 300",
        "one client",
        "nobody asked the nodes",
        "stonewall-time 2s",
        "writing phases must last",
    ] {
        assert!(reasons.contains(words), "{words} is not in {reasons}");
        assert!(text.contains(words), "{words} is not in {text}");
    }
    assert!(text.contains("NOT SUBMITTABLE"));
    let mark =
        fs::read_to_string(directory.join("submission/NOT-SUBMITTABLE.txt")).expect("it is marked");
    assert!(mark.contains("one client"), "{mark}");
    assert!(record["score"]["total"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_failing_or_missing_phase_and_unreadable_results_give_no_score_and_are_kept() {
    for (wrong, words) in [
        ("fails", &["exit status: 1", "FATAL cannot go on", "without a result: ior-hard-read"][..]),
        ("lacks", &["without a result: ior-hard-read"]),
        ("babbles", &["result_summary.txt: line 1", "without a result: ior-easy-write"]),
    ] {
        let bed = Bed::make();
        let output = bed
            .command(&bed.mount(), wrong)
            .args(["--calibrate", "0"])
            .output()
            .expect("run.sh starts");
        assert_eq!(output.status.code(), Some(1), "{wrong}: {output:?}");
        let (record, directory) = bed.only_run();
        let reasons = reasons(&record);
        for word in words {
            assert!(reasons.contains(word), "{wrong}: {word} is not in {reasons}");
        }
        assert!(record["score"].is_null(), "{wrong}");
        assert!(directory.join("submission/NOT-SUBMITTABLE.txt").exists());
        assert_eq!(fs::read_dir(bed.mount()).unwrap().count(), 0, "{wrong}: data is left");
        let page = fs::read_to_string(bed.results().join("index.html")).expect("there is a page");
        assert!(page.contains("phases are missing"), "{wrong}");
    }
}

#[test]
fn a_changed_configuration_is_found() {
    let bed = Bed::make();
    run(bed.command(&bed.mount(), "changes").args(["--calibrate", "0"]));
    let reasons = reasons(&bed.only_run().0);
    assert!(reasons.contains("[global] verbosity: 1 became 2"), "{reasons}");
}

#[test]
fn two_names_of_one_machine_and_files_read_wrongly_are_found() {
    for (wrong, words) in [
        ("twins", "3 clients were asked for, and mdtest found 2 machines"),
        ("misreads", "mdtest-hard-read: 3 files had not what was written"),
    ] {
        let bed = Bed::make();
        let output = run(bed.command(&bed.mount(), wrong).args(["--hosts", "n1,n2,n3"]));
        // Machines are known from the calibration, before the long run.
        let text = String::from_utf8(output.stderr).expect("text");
        let early = text.split("running: ").next().expect("a beginning");
        assert_eq!(early.contains(words), wrong == "twins", "{text}");
        let reasons = reasons(&bed.only_run().0);
        assert!(reasons.contains(words), "{wrong}: {reasons}");
    }
}

#[test]
fn another_shape_is_not_compared_and_a_damaged_run_stops_nothing() {
    let bed = Bed::make();
    let damaged = bed.results().join("damaged/run.json");
    fs::create_dir_all(damaged.parent().expect("it has one")).expect("a directory");
    fs::write(&damaged, "{").expect("it can be written");
    let ranks = |count: &str| {
        let mut command = bed.command(&bed.mount(), "");
        let output = run(command.args(["--calibrate", "0", "--ranks", count]));
        let [said, errors] = [output.stdout, output.stderr].map(String::from_utf8);
        assert!(errors.expect("text").contains(damaged.to_str().expect("text")));
        said.expect("text")
    };
    ranks("1");
    let text = ranks("2");
    assert!(!text.contains("x 1.00") && text.contains("processes 1 then, 2 now"), "{text}");
    assert!(ranks("2").contains("x 1.00"));
    assert_eq!(fs::read_to_string(&damaged).expect("it is kept"), "{");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_started() {
    let bed = Bed::make();
    let refused = |command: &mut Command, words: &[&str]| {
        let output = command.output().expect("run.sh starts");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        for words in words {
            assert!(text.contains(words), "{text}");
        }
    };
    let odd = bed.dir.path().join("od#d");
    fs::create_dir(&odd).expect("a directory");
    refused(&mut bed.command(&odd, ""), &["od#d", "'#'", "use another one"]);
    refused(&mut Bed::named("a;b").command(&bed.mount(), ""), &["a;b", "';'"]);
    // What a step starts ends with it.
    let mut command = bed.command(Path::new("n[1-3]"), "");
    refused(command.env("SLURM_JOB_ID", "7"), &["Slurm job", "n[1-3]", "--constraint=sealfs"]);
    assert_eq!(fs::read_dir(bed.mount()).unwrap().count(), 0);
}

#[test]
fn too_little_space_is_said_before_the_run() {
    let bed = Bed::make();
    let output = bed.command(&bed.mount(), "fast").output().expect("run.sh starts");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    for words in ["writing phases of 300 s need about", "are free in", "--seconds"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(fs::read_dir(bed.mount()).unwrap().count(), 0, "data is left");
}

/// Whatever ends a run in its middle: what it has measured is kept, and nothing else is left.
fn assert_ended_in_order(bed: &Bed, child: &mut Child, reason: &str) {
    assert_eq!(child.wait().expect("it is ours").code(), Some(1));
    let (record, directory) = bed.only_run();
    let reasons = reasons(&record);
    assert!(reasons.contains(reason) && reasons.contains("ior-hard-read"), "{reasons}");
    assert_eq!(record["results"].as_array().unwrap().len(), 7);
    assert!(record["score"].is_null());
    assert!(directory.join("submission/NOT-SUBMITTABLE.txt").exists());
    assert_eq!(fs::read_dir(bed.mount()).unwrap().count(), 0, "data is left");
}

#[test]
fn a_run_that_a_signal_interrupts_ends_its_program_and_keeps_what_it_measured() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let bed = Bed::make();
        let mut command = bed.command(&bed.mount(), "hangs");
        command.args(["--calibrate", "0"]).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("run.sh starts");
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        for line in lines.map(|line| line.expect("text")) {
            if line == "hangs" {
                // run.sh has become sealfs.
                let pid = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(pid, signal).expect("it is ours");
            }
        }
        assert_ended_in_order(&bed, &mut child, "interrupted: by a signal");
    }
}

#[test]
fn a_run_that_is_to_outlive_its_terminal_does() {
    let bed = Bed::make();
    let run_line = bed.command(&bed.mount(), "talks");
    let mut command = Command::new("env");
    command.arg("--ignore-signal=HUP").args(run_line.get_args().skip(1));
    command.args(["--calibrate", "0"]).env_remove("SLURM_JOB_ID");
    command.envs(run_line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child =
        command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run.sh starts");
    let pid = rustix::process::Pid::from_child(&child);
    let kill = |signal| rustix::process::kill_process(pid, signal).expect("it is ours");
    let mut lines =
        BufReader::new(child.stderr.take().expect("a pipe")).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "hangs"));
    kill(Signal::HUP);
    // More than may have been said before it.
    assert_eq!(lines.by_ref().filter(|line| line == "talks").take(10).count(), 10);
    kill(Signal::INT);
    lines.for_each(drop);
    assert_ended_in_order(&bed, &mut child, "interrupted: by a signal");
}

#[test]
fn an_output_that_breaks_off_ends_a_run_in_order() {
    let bed = Bed::make();
    let mut command = bed.command(&bed.mount(), "talks");
    command.args(["--calibrate", "0"]).stderr(Stdio::piped()).stdout(broken_pipe());
    let mut child = command.spawn().expect("run.sh starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    assert!(lines.any(|line| line.expect("text") == "hangs"));
    drop(lines);
    assert_ended_in_order(&bed, &mut child, "nobody listens");
    // What comes after it is told to nobody, and kept all the same.
    let bed = Bed::make();
    let mut command = bed.command(&bed.mount(), "");
    command.args(["--calibrate", "0"]).stderr(Stdio::null()).stdout(broken_pipe());
    assert_eq!(command.status().expect("run.sh starts").code(), Some(1));
    assert!(bed.only_run().0["score"]["total"].as_f64().unwrap() > 0.0);
}

/// Runs the wrapper on host `n1`, the stand-in doing `wrong`, in a mount namespace with memory over what a job's file system
/// writes to; `behind` comes behind the command. Nothing of the file system may be left. Returns the run.
fn on_a_host_list(wrong: &str, behind: &str) -> (serde_json::Value, PathBuf, Bed) {
    let bed = Bed::make();
    let hosts = bed.dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n127.78.9.1 n1\n").expect("it can be written");
    let run_line = bed.command(Path::new("n1"), wrong);
    let words: Vec<String> =
        run_line.get_args().map(|word| word.to_str().expect("text").to_owned()).collect();
    let script = format!(
        "set -eu; mkdir -p /mnt; for at in /run /var/lib /mnt; do mount -t tmpfs -o mode=755 none $at; done\n\
         mount --bind {} /etc/hosts; \"$SEALFS_BIN\" key /run/site.key; status=0\n\
         {} {} --calibrate 0 --seconds 2 --job-arg --size=512M --job-arg --cores=0 --job-arg --key=/run/site.key {behind} || status=$?\n\
         echo \"left: $(ls /run/sealfs/jobs /mnt/sealfs /var/lib/sealfs-jobs 2>&1 | grep -v : | tr -d '[:space:]')\"\n\
         grep -c ' /mnt/sealfs' /proc/self/mounts || true; exit $status",
        hosts.display(),
        run_line.get_program().to_str().expect("text"),
        words.join(" "),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.envs(run_line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("SLURMD_NODENAME", "n1").env_remove("SLURM_JOB_ID");
    let text = String::from_utf8(run(&mut command).stdout).expect("text");
    assert!(text.ends_with("left: \n0\n"), "{text}");
    let (record, directory) = bed.only_run();
    (record, directory, bed)
}

#[test]
fn on_a_host_list_a_file_system_is_brought_up_for_the_run_and_taken_down_after_it() {
    let (record, directory, _bed) = on_a_host_list("", "");
    let reasons = reasons(&record);
    // Its nodes were asked, and said that they are durable, but for the memory over /var/lib.
    assert!(reasons.contains("node 1 keeps its data in memory"), "{reasons}");
    assert!(!reasons.contains("--durability") && reasons.contains("one client"), "{reasons}");
    let script = fs::read_to_string(directory.join("submission/system-information.txt")).unwrap();
    assert!(script.contains("1 nodes, sealfs") && script.contains("(n1)"), "{script}");
    let system = &record["system"];
    assert_eq!((&system["nodes"], &system["durability"]), (&1.into(), &"power".into()));
}

#[test]
fn on_a_host_list_the_file_system_is_taken_down_when_the_output_breaks_off() {
    let (record, _, _bed) = on_a_host_list("talks", "2>&1 | grep -m1 hangs");
    assert!(reasons(&record).contains("nobody listens"), "{record}");
    assert_eq!(record["results"].as_array().unwrap().len(), 7);
}
