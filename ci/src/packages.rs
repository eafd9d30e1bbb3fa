//! Debian's packages that a stage needs.

use std::process::{Command, Stdio};

use crate::command::{output, run};

/// Installs what is missing of `packages`, which are `what`. A machine where that cannot be done fails: skipping would look
/// like success.
pub(crate) fn install(what: &str, packages: &[&str]) -> Result<(), String> {
    // It fails if one is not known at all.
    let listed = output(dpkg().args(packages)).unwrap_or_default();
    let installed = listed.lines().filter(|line| line.starts_with("installed ")).count();
    if installed == packages.len() {
        return Ok(());
    }
    println!("installing {what}: {}", packages.join(" "));
    let mut command = apt();
    command.args(["-qq", "-y", "--no-install-recommends", "install"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    update().and_then(|()| run(&mut command)).map_err(|error| {
        format!(
            "{error}\n{what} is in these packages; as root on Debian 12 or later they can be had"
        )
    })
}

pub(crate) fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"]);
    command
}

/// Asks which packages there are.
pub(crate) fn update() -> Result<(), String> {
    run(apt().args(["-qq", "update"]))
}

/// State, name and version of packages, a line each.
pub(crate) fn dpkg() -> Command {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]);
    command
}
