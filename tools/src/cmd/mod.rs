//! The verbs.

pub(crate) mod bench;
pub(crate) mod doctor;
pub(crate) mod key;
pub(crate) mod local;
pub(crate) mod mount;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod umount;
