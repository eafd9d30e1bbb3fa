//! The numbers that name things; one type each, so that two kinds of number never meet by accident.

use wincode::{SchemaRead, SchemaWrite};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
        pub struct $name(pub $inner);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// One server process of a cluster.
    NodeId(u16)
);
id!(
    /// The unit of placement and ownership; `0..ClusterMap::shards()`.
    ShardId(u16)
);
id!(
    /// One client process as the nodes know it. Drawn at random (64 bits from the kernel) by the client, never 0.
    SessionId(u64)
);
id!(
    /// Numbers a session's changes, from 1. The same change sent again carries the same number. The top 16 bits are the
    /// endpoint (the client's thread) that drew it, so that threads number, and acknowledge, independently.
    Sequence(u64)
);
id!(
    /// Version of the cluster map.
    Epoch(u32)
);

impl Sequence {
    /// The endpoint that drew it.
    #[must_use]
    pub const fn endpoint(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Where the numbers of an endpoint begin.
    #[must_use]
    pub const fn first_of(endpoint: u16) -> Self {
        Self((endpoint as u64) << 48)
    }
}

/// An inode number: top 16 bits the shard it was born in (it stays there), low 48 bits a number never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite,
)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory: number 1 of shard 0.
    pub const ROOT: Self = Self(1);

    /// The inode with `number` in `shard`. `number` is cut to 48 bits; the ranges that numbers come from end below that.
    #[must_use]
    pub const fn new(shard: ShardId, number: u64) -> Self {
        Self(((shard.0 as u64) << 48) | (number & ((1 << 48) - 1)))
    }

    /// The shard that holds this inode.
    #[must_use]
    pub const fn shard(self) -> ShardId {
        ShardId((self.0 >> 48) as u16)
    }

    /// The number within the shard.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

impl core::fmt::Display for Ino {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}:{}", self.shard(), self.number())
    }
}

/// A change over several shards: the coordinator's shard, and a number that this shard never used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct TxId {
    /// The shard that decides.
    pub coordinator: ShardId,
    /// From the shard's own durable range.
    pub number: u64,
}

/// Names a cluster for its whole life; every data directory and every handshake carries it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite,
)]
pub struct ClusterId(pub [u8; 16]);

impl core::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_keeps_its_shard_and_number() {
        let ino = Ino::new(ShardId(65_535), 7);
        assert_eq!((ino.shard(), ino.number()), (ShardId(65_535), 7));
        assert_eq!((Ino::ROOT.shard(), Ino::ROOT.number()), (ShardId(0), 1));
    }
}
