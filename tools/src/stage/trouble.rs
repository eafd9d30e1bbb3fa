//! Why an entry was not copied.

use rustix::io::Errno;

/// What went wrong with one entry; the others go on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A system call failed: what it was for, and its error.
    Call(&'static str, Errno),
    /// The source changed between two looks at it.
    Changed,
    /// What was read back is not what was written.
    Differs,
    /// The run is to end.
    Stopped,
    /// Anything else, in words.
    Other(String),
}

impl Trouble {
    pub(crate) fn reading(errno: Errno) -> Self {
        Self::Call("cannot be read", errno)
    }

    pub(crate) fn writing(errno: Errno) -> Self {
        Self::Call("cannot be written", errno)
    }

    pub(crate) fn verifying(errno: Errno) -> Self {
        Self::Call("cannot be read back from the destination", errno)
    }

    /// Whether another attempt may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Changed | Self::Differs)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call("cannot be read", Errno::NOENT) => {
                write!(f, "vanished from the source while it was staged")
            }
            Self::Call(what, errno) => write!(f, "{what}: {}", std::io::Error::from(*errno)),
            Self::Changed => write!(
                f,
                "the source changed while it was copied, in each of {ATTEMPTS} attempts; run again when nobody writes it"
            ),
            Self::Differs => write!(
                f,
                "what was read back from the destination is not what was written, in each of {ATTEMPTS} attempts; \
                 the destination's storage or this machine's memory is damaged"
            ),
            Self::Stopped => write!(f, "the deadline came first"),
            Self::Other(text) => write!(f, "{text}"),
        }
    }
}

/// How often an entry is tried that may succeed the next time.
pub(crate) const ATTEMPTS: u32 = 3;
