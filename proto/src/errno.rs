//! POSIX error numbers as Linux on x86-64 and arm64 counts them.

use wincode::{SchemaRead, SchemaWrite};

/// An error that reaches the program: the number that errno(3) shows. Never 0, at most 4,095 (the kernel's MAX_ERRNO).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self($number);)*

            /// The symbolic name, where it is one that sealfs uses.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such address: no data behind the offset";
    E2BIG = 7, "List too long";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Would block";
    ENOMEM = 12, "Out of memory";
    EACCES = 13, "Permission denied";
    EBUSY = 16, "Busy";
    EEXIST = 17, "File exists";
    EXDEV = 18, "Cross-device link";
    ENODEV = 19, "No such device";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    ETXTBSY = 26, "Text file busy";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    EROFS = 30, "Read-only file system";
    EMLINK = 31, "Too many links";
    ERANGE = 34, "Result too large for the buffer";
    EDEADLK = 35, "Resource deadlock avoided";
    ENAMETOOLONG = 36, "File name too long";
    ENOLCK = 37, "No locks available";
    ENOSYS = 38, "Function not implemented";
    ENOTEMPTY = 39, "Directory not empty";
    ELOOP = 40, "Too many levels of symbolic links";
    ENODATA = 61, "No such attribute";
    EPROTO = 71, "Protocol error";
    EOVERFLOW = 75, "Value too large";
    EOPNOTSUPP = 95, "Operation not supported";
    ETIMEDOUT = 110, "Connection timed out";
    ESTALE = 116, "Stale file handle";
}

impl Errno {
    /// The errno with this number; `EIO` for numbers that no kernel gives (0 and above 4,095).
    #[must_use]
    pub const fn from_raw(number: i32) -> Self {
        if number > 0 && number <= 4_095 { Self(number as u16) } else { Self::EIO }
    }

    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_maps_to_an_errno_and_back() {
        for number in 1..=4_095 {
            assert_eq!(Errno::from_raw(number).raw(), number);
        }
        assert_eq!(Errno::from_raw(0), Errno::EIO);
        assert_eq!(Errno::from_raw(4_096), Errno::EIO);
        assert_eq!(Errno::from_raw(-2), Errno::EIO);
        assert_eq!(format!("{}", Errno::ENOENT), "ENOENT");
    }
}
