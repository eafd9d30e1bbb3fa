//! The official program's configuration: sections of `name = value` lines, `#` and `;` begin comments.
//!
//! Names are compared without case, as the program does it.

use std::fmt;

/// A configuration, in the order in which it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    entries: Vec<(String, String, String)>,
}

/// A line that is none of a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}")]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub cause: String,
}

impl Ini {
    /// Reads one.
    ///
    /// # Errors
    /// The first line that is neither section, setting, comment nor empty; a setting outside a section.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut ini = Self::default();
        let mut section = None;
        for (at, line) in text.lines().enumerate() {
            let bad = |cause: &str| Malformed { line: at + 1, cause: cause.into() };
            let line = line.split(['#', ';']).next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                let name = name.strip_suffix(']').ok_or_else(|| bad("a section without ]"))?;
                section = Some(name.trim().to_owned());
                continue;
            }
            let (name, value) =
                line.split_once('=').ok_or_else(|| bad("neither section nor setting"))?;
            let section = section.as_ref().ok_or_else(|| bad("a setting outside a section"))?;
            ini.entries.push((section.clone(), name.trim().into(), value.trim().into()));
        }
        Ok(ini)
    }

    /// Sets a value, in place of an earlier one.
    pub fn set(&mut self, section: &str, name: &str, value: impl fmt::Display) {
        let value = value.to_string();
        match self.entries.iter_mut().find(|entry| is(entry, section, name)) {
            Some(entry) => entry.2 = value,
            None => self.entries.push((section.into(), name.into(), value)),
        }
    }

    /// A value, unless it is missing or empty.
    #[must_use]
    pub fn get(&self, section: &str, name: &str) -> Option<&str> {
        let entry = self.entries.iter().rfind(|entry| is(entry, section, name))?;
        (!entry.2.is_empty()).then_some(entry.2.as_str())
    }

    /// What is set otherwise in `other`: for people.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut told = |section: &str, name: &str| {
            let (ours, theirs) = (self.get(section, name), other.get(section, name));
            if ours != theirs {
                let shown = |value: Option<&str>| value.unwrap_or("not set").to_owned();
                let text = format!("[{section}] {name}: {} became {}", shown(ours), shown(theirs));
                if !differences.contains(&text) {
                    differences.push(text);
                }
            }
        };
        for (section, name, _) in self.entries.iter().chain(&other.entries) {
            told(section, name);
        }
        differences
    }
}

fn is(entry: &(String, String, String), section: &str, name: &str) -> bool {
    entry.0.eq_ignore_ascii_case(section) && entry.1.eq_ignore_ascii_case(name)
}

impl fmt::Display for Ini {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sections: Vec<&str> = Vec::new();
        for (section, _, _) in &self.entries {
            if !sections.iter().any(|known| known.eq_ignore_ascii_case(section)) {
                sections.push(section);
            }
        }
        for (nth, section) in sections.into_iter().enumerate() {
            let gap = if nth == 0 { "" } else { "\n" };
            writeln!(f, "{gap}[{section}]")?;
            for (of, name, value) in &self.entries {
                if of.eq_ignore_ascii_case(section) {
                    writeln!(f, "{name} = {value}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut ini = Ini::default();
        ini.set("global", "datadir", "/mnt/seal");
        ini.set("debug", "stonewall-time", 300);
        ini.set("GLOBAL", "DataDir", "/mnt/other");
        assert_eq!(
            ini.to_string(),
            "[global]\ndatadir = /mnt/other\n\n[debug]\nstonewall-time = 300\n"
        );
        assert_eq!(Ini::parse(&ini.to_string()).unwrap(), ini);
    }

    #[test]
    fn comments_case_and_empty_values_are_as_the_program_reads_them() {
        let ini = Ini::parse("# c\n[Global]\n a = 1 # one\nb =\n\n; d\n[x]\nA=2").unwrap();
        assert_eq!((ini.get("global", "A"), ini.get("global", "b")), (Some("1"), None));
        assert_eq!(ini.get("X", "a"), Some("2"));
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, line) in [("[a", 1), ("[a]\nhello", 2), ("a=1", 1), ("\n\u{0}\u{7f}", 2)] {
            assert_eq!(Ini::parse(text).unwrap_err().line, line, "{text:?}");
        }
    }

    #[test]
    fn a_difference_is_told_once_and_names_both_values() {
        let one = Ini::parse("[a]\nx=1\ny=2").unwrap();
        let other = Ini::parse("[a]\nx=1\ny=3\nz=4").unwrap();
        assert_eq!(one.difference(&other), ["[a] y: 2 became 3", "[a] z: not set became 4"]);
        assert!(one.difference(&one).is_empty());
    }
}
