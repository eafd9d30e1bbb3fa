//! What is true of any process, by the names that Prometheus's own clients use.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use sealfs_metrics::{Page, Value};

/// Of /proc/self/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// Adds the process's families; without /proc they have no samples.
pub(super) fn write(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
    let ticks = clock_ticks_per_second() as f64;
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text));
    let start = stat
        .zip(boot)
        .map(|(stat, boot)| Value::Number(boot as f64 + stat.start_ticks as f64 / ticks));
    let fds = fs::read_dir("/proc/self/fd").ok().map(|entries| Value::from(entries.count()));
    let max =
        |resource| getrlimit(resource).current.map_or(Value::Number(f64::INFINITY), Value::Count);
    let of = |of: fn(&Stat) -> u64| stat.as_ref().map(of).map(Value::Count);
    let mut cpu = page.counter("process_cpu_seconds_total", "Processor time, user and system.");
    if let Some(stat) = stat {
        cpu.sample(&[], Value::Number(stat.cpu_ticks as f64 / ticks));
    }
    let mut gauge = |name, help, value: Option<Value>| {
        let mut samples = page.gauge(name, help);
        if let Some(value) = value {
            samples.sample(&[], value);
        }
    };
    gauge("process_start_time_seconds", "When the process began, since the epoch.", start);
    gauge("process_resident_memory_bytes", "Memory that is present.", {
        stat.map(|stat| Value::from(stat.resident_pages as usize * page_size()))
    });
    gauge("process_virtual_memory_bytes", "Address space.", of(|stat| stat.virtual_bytes));
    gauge(
        "process_virtual_memory_max_bytes",
        "The limit of the address space.",
        Some(max(Resource::As)),
    );
    gauge("process_open_fds", "Open descriptors.", fds);
    gauge("process_max_fds", "The limit of open descriptors.", Some(max(Resource::Nofile)));
    gauge("process_threads", "Threads.", of(|stat| stat.threads));
}

impl Stat {
    /// proc_pid_stat(5). The second field may hold anything, so that fields are counted behind its end.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // `rest` begins with field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Seconds since the epoch, of /proc/stat.
fn boot_time(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_shifts_no_field() {
        let text = "7 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 3 0 12345 4096000 250 18446744073709551615 1";
        let expected = Stat {
            cpu_ticks: 42,
            threads: 3,
            start_ticks: 12_345,
            virtual_bytes: 4_096_000,
            resident_pages: 250,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(boot_time("cpu 1\nbtime 99\n"), Some(99));
    }

    #[test]
    fn this_process_tells_all_of_it() {
        let mut page = Page::default();
        write(&mut page);
        let text = page.finish();
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 8, "{text}");
    }
}
