//! IO500: our own phases on a real cluster, and the page of runs in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
            assert_eq!(phase["invalid"], false, "{phase}");
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
}
