//! Who may do what: permission bits and POSIX ACLs.
