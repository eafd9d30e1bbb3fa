//! The page that is scraped, in Prometheus's text format 0.0.4.
//!
//! ```text
//! # HELP sealfs_node_requests_total Requests that have arrived, by kind.
//! # TYPE sealfs_node_requests_total counter
//! sealfs_node_requests_total{kind="create"} 7
//! ```
//! 1. A family is declared once, with its help, and is there even while it has no samples: whoever reads the page learns all
//!    names from it.
//! 2. Names follow the conventions: counters end with `_total`, others do not, histograms are of seconds. What breaks them is
//!    our bug and panics.
//! 3. Whatever stands in a label's value comes back from a parser as it was.

use std::fmt::{self, Write as _};

use crate::Histogram;

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until its process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations.
    Histogram,
}

/// A page in the making.
#[derive(Clone, Debug, Default)]
pub struct Page {
    text: String,
    families: Vec<&'static str>,
}

/// Adds samples to the family that was declared last.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number, exact.
    Count(u64),
    /// Nanoseconds, shown as seconds.
    Nanoseconds(u64),
    /// Any other number.
    Number(f64),
}

impl Page {
    /// Declares a family of counters.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Samples<'_> {
        self.family(Kind::Counter, name, help)
    }

    /// Declares a family of gauges.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Samples<'_> {
        self.family(Kind::Gauge, name, help)
    }

    /// Declares a family of histograms of durations.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Samples<'_> {
        self.family(Kind::Histogram, name, help)
    }

    /// Declares a family. Panics if the name is against the conventions or was used before.
    fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> Samples<'_> {
        assert!(is_name(name), "{name} is no name of a metric");
        assert!(
            name.ends_with("_total") == (kind == Kind::Counter),
            "{name}: counters end with _total"
        );
        assert!(kind != Kind::Histogram || name.ends_with("_seconds"), "{name} is not of seconds");
        assert!(!self.families.contains(&name), "{name} is declared twice");
        self.families.push(name);
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Samples { text: &mut self.text, name }
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

impl Samples<'_> {
    /// One sample with these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) -> &mut Self {
        self.line("", labels, None, value.into());
        self
    }

    /// A histogram with these labels.
    pub fn durations(&mut self, labels: &[(&str, &str)], histogram: &Histogram) -> &mut Self {
        for (bound, count) in histogram.cumulative() {
            self.line("_bucket", labels, Some(Value::Nanoseconds(bound)), Value::Count(count));
        }
        let count = Value::Count(histogram.count());
        self.line("_bucket", labels, Some(Value::Number(f64::INFINITY)), count);
        self.line("_sum", labels, None, Value::Nanoseconds(histogram.sum_ns()));
        self.line("_count", labels, None, count);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], le: Option<Value>, value: Value) {
        let (text, name) = (&mut *self.text, self.name);
        let _ = write!(text, "{name}{suffix}");
        let mut open = '{';
        for (label, value) in labels {
            assert!(is_name(label) && *label != "le", "{label} is no name of a label");
            let _ = write!(text, "{open}{label}=\"");
            escape(text, value);
            text.push('"');
            open = ',';
        }
        if let Some(le) = le {
            let _ = write!(text, "{open}le=\"{le}\"");
            open = ',';
        }
        if open == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Count(u64::from(is))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Nanoseconds(ns) => write!(f, "{}", ns as f64 / 1e9),
            Self::Number(f64::INFINITY) => f.write_str("+Inf"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let mut bytes = name.bytes();
    bytes.next().is_some_and(is_word) && bytes.all(|byte| is_word(byte) || byte.is_ascii_digit())
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str(r"\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str(r"\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_the_format_wants_it() {
        let mut page = Page::default();
        page.counter("a_total", "First.\nOf \\ two.").sample(&[("kind", "x\"y\\z\n")], 7_u64);
        page.gauge("b_bytes", "None yet.");
        let mut durations = Histogram::default();
        durations.add(30_000);
        page.histogram("c_seconds", "Third.").durations(&[("kind", "k")], &durations);
        let text = page.finish();
        let start = "# HELP a_total First.\\nOf \\\\ two.\n# TYPE a_total counter\n\
                     a_total{kind=\"x\\\"y\\\\z\\n\"} 7\n# HELP b_bytes None yet.\n# TYPE b_bytes gauge\n";
        assert!(text.starts_with(start), "{text}");
        for line in [
            "c_seconds_bucket{kind=\"k\",le=\"0.000025\"} 0",
            "c_seconds_bucket{kind=\"k\",le=\"0.00005\"} 1",
            "c_seconds_bucket{kind=\"k\",le=\"30\"} 1",
            "c_seconds_bucket{kind=\"k\",le=\"+Inf\"} 1",
            "c_seconds_sum{kind=\"k\"} 0.00003",
            "c_seconds_count{kind=\"k\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
        }
    }

    #[test]
    fn names_that_break_the_conventions_are_our_bug() {
        for (kind, name) in [
            (Kind::Counter, "requests"),
            (Kind::Gauge, "space_total"),
            (Kind::Histogram, "latency_ms"),
            (Kind::Gauge, "9_lives"),
            (Kind::Gauge, "Free"),
        ] {
            let broken = std::panic::catch_unwind(|| Page::default().family(kind, name, "x").name);
            assert!(broken.is_err(), "{name}");
        }
    }
}
