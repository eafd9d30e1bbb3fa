//! Values to bytes and back: bincode's layout (fixed-width little-endian integers, u32 variant numbers, u64 lengths).

use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite};

/// Bytes that are no value of the type that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Corrupt {
    /// What was being read.
    pub what: &'static str,
    /// What is wrong with it.
    pub cause: String,
}

impl Corrupt {
    /// Bytes of `what` that are wrong because of `cause`.
    #[must_use]
    pub fn new(what: &'static str, cause: impl Into<String>) -> Self {
        Self { what, cause: cause.into() }
    }
}

/// The bytes of `value`. Panics only if a value is too large to encode, which the limits of its parts exclude.
pub fn encode<T: SchemaWrite<DefaultConfig, Src = T>>(value: &T) -> Vec<u8> {
    wincode::serialize(value)
        .expect("every value that is sent or stored is within the codec's limits")
}

/// The value in `bytes`, all of them. A length field never makes it allocate more than 4 MiB ahead of its bytes.
pub fn decode<'de, T: SchemaRead<'de, DefaultConfig, Dst = T>>(
    what: &'static str,
    bytes: &'de [u8],
) -> Result<T, Corrupt> {
    wincode::deserialize_exact(bytes).map_err(|error| Corrupt::new(what, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7_u64);
        assert_eq!(decode::<u64>("number", &bytes), Ok(7));
        bytes.push(0);
        assert!(decode::<u64>("number", &bytes).is_err());
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        assert!(decode::<Vec<u64>>("list", &[255; 8]).is_err());
    }
}
