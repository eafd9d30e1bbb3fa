//! Slurm's host lists: `n[1-3,07-11,5],m2-ib` is eleven names.
//!
//! ```text
//! list  = item { separator item }         separators: commas, blanks, line ends outside brackets
//! item  = piece { piece }
//! piece = letters, digits, '.', '-', '_'  |  '[' run { ',' run } ']'
//! run   = number [ '-' number ]           as many digits as in its first number: 07-11 is 07 08 ..
//! ```
//! Several brackets in one item are all their combinations, the rightmost changing fastest.
//!
//! 1. The order is the text's, and a name that comes twice stays twice, as Slurm does it.
//! 2. What is malformed is refused with its position, never guessed: a missing node would be a hole
//!    in a file system. Slurm takes `n[1` for a host of that name and `n[1-]` for n1; this does
//!    not.
//! 3. At most [`HOSTS_MAX`] names of at most [`NAME_LEN_MAX`] bytes come out, known before the
//!    first is made.

use std::fmt::Write;

/// Slurm's own limit of one range.
pub(crate) const HOSTS_MAX: usize = 65_536;
/// The longest name that DNS knows.
pub(crate) const NAME_LEN_MAX: usize = 253;

/// What is wrong where; characters are counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadHosts {
    at: usize,
    cause: String,
}

impl std::fmt::Display for BadHosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "host list, character {}: {}; write it as Slurm does: n[1-3,07-11],m2",
            self.at + 1,
            self.cause
        )
    }
}

impl std::error::Error for BadHosts {}

/// The names that `text` stands for. An empty list is an error.
pub(crate) fn expand(text: &str) -> Result<Vec<String>, BadHosts> {
    let mut reader = Reader { text: text.as_bytes(), at: 0 };
    let mut names = Vec::new();
    loop {
        while reader.peek().is_some_and(is_separator) {
            reader.at += 1;
        }
        if reader.peek().is_none() {
            break;
        }
        let start = reader.at;
        let pieces = reader.item()?;
        check_size(&pieces, names.len()).map_err(|cause| BadHosts { at: start, cause })?;
        combine(&pieces, &mut String::new(), &mut names);
    }
    if names.is_empty() {
        return Err(BadHosts { at: 0, cause: "it names no host".into() });
    }
    Ok(names)
}

enum Piece {
    Word(String),
    Numbers(Vec<Run>),
}

/// The numbers from `first` to `last`, with zeros in front up to `width` digits.
struct Run {
    first: u64,
    last: u64,
    width: usize,
}

impl Piece {
    fn count(&self) -> u64 {
        match self {
            Self::Word(_) => 1,
            // Each run has at most HOSTS_MAX numbers, and a text is no exabyte.
            Self::Numbers(runs) => runs.iter().map(|run| run.last - run.first + 1).sum(),
        }
    }

    fn len_max(&self) -> usize {
        match self {
            Self::Word(word) => word.len(),
            Self::Numbers(runs) => {
                runs.iter().map(|run| run.width.max(digits(run.last))).max().unwrap_or(0)
            }
        }
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Whether all combinations of `pieces`, after `so_far` names, keep the limits; else what is wrong.
fn check_size(pieces: &[Piece], so_far: usize) -> Result<(), String> {
    let left = HOSTS_MAX.saturating_sub(so_far) as u64;
    let count = pieces.iter().try_fold(1_u64, |count, piece| count.checked_mul(piece.count()));
    if count.is_none_or(|count| count > left) {
        return Err(format!("with this there are more than {HOSTS_MAX} hosts"));
    }
    if pieces.iter().map(Piece::len_max).sum::<usize>() > NAME_LEN_MAX {
        return Err(format!("a name would have more than {NAME_LEN_MAX} characters"));
    }
    Ok(())
}

/// Adds every combination of `pieces` behind `prefix`.
fn combine(pieces: &[Piece], prefix: &mut String, names: &mut Vec<String>) {
    let Some((piece, rest)) = pieces.split_first() else {
        names.push(prefix.clone());
        return;
    };
    let len = prefix.len();
    match piece {
        Piece::Word(word) => {
            prefix.push_str(word);
            combine(rest, prefix, names);
        }
        Piece::Numbers(runs) => {
            for run in runs {
                for number in run.first..=run.last {
                    prefix.truncate(len);
                    let _ = write!(prefix, "{number:0width$}", width = run.width);
                    combine(rest, prefix, names);
                }
            }
        }
    }
    prefix.truncate(len);
}

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t' | b'\n' | b'\r')
}

const fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn bad<T>(&self, cause: impl Into<String>) -> Result<T, BadHosts> {
        Err(BadHosts { at: self.at, cause: cause.into() })
    }

    /// Up to the next separator outside brackets, or the end.
    fn item(&mut self) -> Result<Vec<Piece>, BadHosts> {
        let mut pieces = Vec::new();
        // A name has no more pieces than characters.
        while pieces.len() <= NAME_LEN_MAX {
            match self.peek() {
                None => return Ok(pieces),
                Some(byte) if is_separator(byte) => return Ok(pieces),
                Some(b'[') => pieces.push(self.brackets()?),
                Some(byte) if is_name(byte) => pieces.push(self.word()),
                Some(b']') => return self.bad("`]` without `[`"),
                Some(_) => return self.bad("this can be in no host's name"),
            }
        }
        self.bad(format!("a name would have more than {NAME_LEN_MAX} characters"))
    }

    fn word(&mut self) -> Piece {
        let start = self.at;
        while self.peek().is_some_and(is_name) {
            self.at += 1;
        }
        Piece::Word(String::from_utf8_lossy(&self.text[start..self.at]).into_owned())
    }

    fn brackets(&mut self) -> Result<Piece, BadHosts> {
        self.at += 1;
        let mut runs = Vec::new();
        loop {
            runs.push(self.run()?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Piece::Numbers(runs));
                }
                None => return self.bad("the `]` is missing"),
                Some(_) => return self.bad("a `,` or `]` is missing"),
            }
        }
    }

    fn run(&mut self) -> Result<Run, BadHosts> {
        let start = self.at;
        let first = self.number()?;
        let width = self.at - start;
        let last = if self.peek() == Some(b'-') {
            self.at += 1;
            self.number()?
        } else {
            first
        };
        let wrong = |cause: String| Err(BadHosts { at: start, cause });
        if last < first {
            return wrong("a range goes upwards".into());
        }
        if last - first >= HOSTS_MAX as u64 {
            return wrong(format!("a range of more than {HOSTS_MAX} hosts"));
        }
        Ok(Run { first, last, width })
    }

    fn number(&mut self) -> Result<u64, BadHosts> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let text = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        if text.is_empty() {
            return self.bad("a number is missing");
        }
        let number = text.parse().ok().filter(|_| text.len() <= NUMBER_LEN_MAX);
        number.ok_or_else(|| BadHosts {
            at: start,
            cause: format!("a number of more than {NUMBER_LEN_MAX} digits"),
        })
    }
}

/// What a u64 holds for certain.
const NUMBER_LEN_MAX: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_slurm_reads_them() {
        for (text, names) in [
            ("n1", "n1"),
            ("n[1-3,07-11,5]", "n1 n2 n3 n07 n08 n09 n10 n11 n5"),
            ("n1,m[2-4]-ib", "n1 m2-ib m3-ib m4-ib"),
            ("n[1-2]-[1-2]", "n1-1 n1-2 n2-1 n2-2"),
            (
                "r[1-2]c[08-09].x[0,2]",
                "r1c08.x0 r1c08.x2 r1c09.x0 r1c09.x2 r2c08.x0 r2c08.x2 r2c09.x0 r2c09.x2",
            ),
            ("n1,n1", "n1 n1"),
            ("n[1-3,2]", "n1 n2 n3 n2"),
            ("n[007-10]", "n007 n008 n009 n010"),
            ("n[07-011]", "n07 n08 n09 n10 n11"),
            ("n[98-101]", "n98 n99 n100 n101"),
            ("n[098-101]", "n098 n099 n100 n101"),
            ("n[00-1]", "n00 n01"),
            ("[1-3]", "1 2 3"),
            (",n1,, n2\n", "n1 n2"),
            ("n1-3", "n1-3"),
        ] {
            assert_eq!(expand(text).unwrap().join(" "), names, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_position() {
        for (text, at, part) in [
            ("", 1, "no host"),
            (",", 1, "no host"),
            ("n[1", 4, "`]` is missing"),
            ("n1]", 3, "without `[`"),
            ("n[]", 3, "number is missing"),
            ("n[1-]", 5, "number is missing"),
            ("n[-1]", 3, "number is missing"),
            ("n[1,,2]", 5, "number is missing"),
            ("n[1--2]", 5, "number is missing"),
            ("n[a]", 3, "number is missing"),
            ("n[1 -2]", 4, "`,` or `]`"),
            ("m,n[3-1]", 5, "upwards"),
            ("n[[1]]", 3, "number is missing"),
            ("n[1-65537]", 3, "more than 65536"),
            ("a,n[1-65536]", 3, "more than 65536"),
            ("n[1-9999][1-9999]", 1, "more than 65536"),
            ("n[1-65536][1-65536][1-65536][1-65536]", 1, "more than 65536"),
            ("n[99999999999999999999]", 3, "more than 19 digits"),
            ("n;1", 2, "no host's name"),
            ("n/../1", 2, "no host's name"),
            ("nä", 2, "no host's name"),
        ] {
            let error = expand(text).unwrap_err();
            assert_eq!(error.at + 1, at, "{text}: {error}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let long = "n".repeat(NAME_LEN_MAX);
        assert!(expand(&long).is_ok());
        assert!(expand(&format!("{long}[1]")).unwrap_err().to_string().contains("253"));
        assert!(expand(&"[1]".repeat(999)).is_err());
    }

    /// A list made from names by another way than the one that reads it.
    #[test]
    fn generated_lists_give_the_names_that_they_were_made_from() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..3_000 {
            let (mut text, mut names) = (Vec::new(), Vec::new());
            for _ in 0..random.usize(1..4) {
                let mut item = String::new();
                let mut made = vec![String::new()];
                for _ in 0..random.usize(1..4) {
                    let word = ["n", "gpu-", "x.y", "0", ""][random.usize(..5)];
                    item.push_str(word);
                    made.iter_mut().for_each(|name| name.push_str(word));
                    let runs: Vec<(u32, u32, usize)> = (0..random.usize(1..4))
                        .map(|_| {
                            let first = random.u32(..120);
                            (first, first + random.u32(..4), random.usize(..5))
                        })
                        .collect();
                    let written: Vec<String> = runs
                        .iter()
                        .map(|&(first, last, width)| match (first == last, random.bool()) {
                            (true, true) => format!("{first:0width$}"),
                            _ => format!("{first:0width$}-{last}"),
                        })
                        .collect();
                    item.push_str(&format!("[{}]", written.join(",")));
                    let mut next = Vec::new();
                    for name in &made {
                        for &(first, last, width) in &runs {
                            let width = width.max(first.to_string().len());
                            next.extend((first..=last).map(|n| format!("{name}{n:0width$}")));
                        }
                    }
                    made = next;
                }
                text.push(item);
                names.extend(made);
            }
            let text = text.join(",");
            assert_eq!(expand(&text).unwrap(), names, "{text}");
        }
    }

    #[test]
    fn any_bytes_are_names_within_the_limits_or_an_error_within_the_text() {
        let alphabet: Vec<char> = "n1[]-,0 9.ä\n".chars().collect();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let len = random.usize(..24);
            let text: String = (0..len).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            match expand(&text) {
                Ok(names) => {
                    assert!(!names.is_empty() && names.len() <= HOSTS_MAX);
                    for name in &names {
                        assert!(!name.is_empty() && name.len() <= NAME_LEN_MAX, "{text:?}");
                        assert!(name.bytes().all(is_name), "{text:?}");
                    }
                    assert_eq!(expand(&names.join(",")).as_ref(), Ok(&names), "{text:?}");
                }
                Err(error) => assert!(error.at <= text.len(), "{text:?}: {error}"),
            }
        }
    }
}
