//! What an administrator's machine gets: completions, manual pages, units, and the script that installs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealfs_tests::cluster::{Cluster, binary, run};

/// The verbs, as the program lists them.
fn verbs() -> Vec<String> {
    let help = run(Command::new(binary()).arg("--help"));
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("\nCommands:\n").expect("it lists its verbs");
    let (commands, _) = commands.split_once("\n\n").expect("options follow");
    let is_verb = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let verbs = commands.lines().filter(is_verb).filter_map(|line| line.split_whitespace().next());
    verbs.filter(|verb| *verb != "help").map(str::to_owned).collect()
}

fn root() -> PathBuf {
    fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap()
}

/// Whether man(1) has nothing to say against a page.
fn man_accepts(page: &Path) {
    let output = run(Command::new("man")
        .args(["--warnings", "--local-file", "--encoding=UTF-8", "-Tutf8", "-Z"])
        .arg(page)
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "100"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty() && !output.stdout.is_empty(), "{}: {said}", page.display());
}

#[test]
fn bash_completes_verbs_and_options() {
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        let script = format!(
            "source <({} completions bash); COMP_WORDS=({}); COMP_CWORD={last}; _sealfs sealfs '{}' '{}'; \
             echo \"${{COMPREPLY[@]}}\"",
            binary().display(),
            words.join(" "),
            words[last],
            words[last - 1]
        );
        let output = run(Command::new("bash").args(["-c", &script]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete(&["sealfs", "mou"]), "mount");
    assert_eq!(complete(&["sealfs", "serve", "--metr"]), "--metrics");
    for verb in verbs() {
        let offered = complete(&["sealfs", &verb]);
        assert!(offered.split(' ').any(|word| word == verb), "{verb}: {offered:?}");
    }
}

#[test]
fn everything_is_installed_into_a_tree_and_the_units_are_sound() {
    let stage = tempfile::tempdir().unwrap();
    let install = || {
        run(Command::new(root().join("tools/packaging/install.sh"))
            .env("DESTDIR", stage.path())
            .env("PREFIX", "/usr")
            .env("SBINDIR", "/usr/sbin")
            .env("BINARY", binary()))
    };
    install();
    // Once more over what is there: an upgrade.
    install();
    let at = |path: &str| stage.path().join(path.trim_start_matches('/'));
    run(Command::new(at("/usr/bin/sealfs")).arg("--version"));
    for name in ["mount.sealfs", "mount.fuse.sealfs"] {
        let target = fs::read_link(at("/usr/sbin").join(name)).unwrap();
        assert_eq!(target, Path::new("/usr/bin/sealfs"));
    }
    let pages = fs::read_dir(at("/usr/share/man/man1")).unwrap();
    let pages: Vec<PathBuf> = pages.map(|page| page.unwrap().path()).collect();
    pages.iter().for_each(|page| man_accepts(page));
    for name in verbs().iter().map(|verb| format!("sealfs-{verb}.1")).chain(["sealfs.1".into()]) {
        assert!(pages.iter().any(|page| page.ends_with(&name)), "{name}");
    }
    for script in [
        "bash-completion/completions/sealfs",
        "zsh/site-functions/_sealfs",
        "fish/vendor_completions.d/sealfs.fish",
    ] {
        let text = fs::read_to_string(at("/usr/share").join(script)).unwrap();
        assert!(verbs().iter().all(|verb| text.contains(verb.as_str())), "{script}");
    }
    let units = at("/usr/lib/systemd/system");
    let mut count = 0;
    for unit in fs::read_dir(&units).unwrap() {
        let path = unit.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains('@') || !text.contains("@BINDIR@"), "{}", path.display());
        sound(&path, &stage.path().join("usr/bin/sealfs"));
        count += 1;
    }
    assert_eq!(count, 3);
}

/// Has systemd-analyze look at a unit, as an instance and with the binary where it is.
fn sound(unit: &Path, binary: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let name = unit.file_name().unwrap().to_str().unwrap().replace("@.", "@n1.");
    let text = fs::read_to_string(unit).unwrap();
    // The manual pages are not where man looks.
    let is_kept = |line: &&str| !line.starts_with("Documentation=");
    let text: Vec<&str> = text.lines().filter(is_kept).collect();
    let text = text.join("\n").replace("/usr/bin/sealfs", &binary.display().to_string());
    fs::write(dir.path().join(&name), text).unwrap();
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg(dir.path().join(&name))
        .output()
        .expect("systemd-analyze is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("sealfs")).collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn a_unit_with_a_mistake_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("sealfs-wrong.service");
    fs::write(&unit, "[Service]\nExecStart=/usr/bin/sealfs x\nTimeoutStopSec=soon\nNoSuchKey=1\n")
        .unwrap();
    let found = std::panic::catch_unwind(|| sound(&unit, &binary()));
    assert!(found.is_err(), "`sound` sees nothing");
}

#[test]
fn a_mounts_log_changes_while_it_runs() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    let mount = cluster.mount();
    let log = |words: &[&str]| {
        let output = Command::new(binary()).arg("log").arg(&mount).args(words).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    };
    assert_eq!(log(&[]), (true, "info\n".to_owned()));
    let (done, said) = log(&["no=such=level"]);
    assert!(!done && said.contains("no=such=level"), "{said}");
    assert_eq!(log(&[]).1, "info\n");
    assert_eq!(log(&["sealfs=debug,warn"]), (true, String::new()));
    assert_eq!(log(&[]).1, "sealfs=debug,warn\n");
    assert!(cluster.mount_log(0).contains("the log's filter was changed"));
    // The attribute is not listed, and nobody else may touch it.
    let names = run(Command::new("getfattr").args(["-d", "-m-"]).arg(&mount));
    assert!(!String::from_utf8_lossy(&names.stdout).contains("sealfs"));
    let other = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "getfattr", "-n", "user.sealfs.log"])
        .arg(&mount)
        .output()
        .unwrap();
    assert!(!other.status.success());
    let outside = Command::new(binary()).args(["log", "/tmp"]).output().unwrap();
    assert!(String::from_utf8_lossy(&outside.stderr).contains("no sealfs is mounted at /tmp"));
}
