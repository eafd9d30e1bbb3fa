//! Ranges of inode and transaction numbers.
//!
//! ```text
//! drawn | next .. synced (may be drawn) .. end (reserved by an applied record, perhaps not yet on the device)
//! ```
//! A number that was ever drawn is never drawn again: `synced` was on the device before, and after a stop numbers go on
//! above `end`.

use wincode::{SchemaRead, SchemaWrite};

/// Ends of reserved ranges, exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Range {
    /// Of inode numbers.
    pub inodes: u64,
    /// Of transaction numbers.
    pub transactions: u64,
}

/// The shard's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The next inode number. Moves with the records that use them. In memory only, as the next transaction number:
    /// whoever starts from a snapshot goes on above `end`.
    pub(crate) inode: u64,
    /// The next transaction number.
    pub(crate) transaction: u64,
    pub(crate) end: Range,
    pub(crate) synced: Range,
}

impl Default for Numbers {
    fn default() -> Self {
        let end = Range { inodes: FIRST, transactions: FIRST };
        Self { inode: FIRST, transaction: FIRST, end, synced: end }
    }
}

impl Numbers {
    /// As a snapshot has them: nothing may be drawn before [`Numbers::skip`].
    pub(crate) const fn unsynced(end: Range) -> Self {
        let synced = Range { inodes: 0, transactions: 0 };
        Self { inode: end.inodes, transaction: end.transactions, end, synced }
    }

    /// The number of the next new inode, `ahead` further on.
    pub(crate) fn inode(&self, ahead: u64) -> Option<u64> {
        Some(self.inode + ahead).filter(|number| *number < self.synced.inodes)
    }

    pub(crate) fn draw_tx(&mut self) -> Option<u64> {
        let number = self.transaction;
        (number < self.synced.transactions).then(|| {
            self.transaction += 1;
            number
        })
    }

    pub(crate) fn wanted(&self) -> Option<Range> {
        let low = |next: u64, end: u64| end.saturating_sub(next) < RANGE / 2;
        let spent =
            low(self.inode, self.end.inodes) || low(self.transaction, self.end.transactions);
        spent.then(|| Range {
            inodes: self.inode.max(self.end.inodes) + RANGE,
            transactions: self.transaction.max(self.end.transactions) + RANGE,
        })
    }

    pub(crate) fn extend(&mut self, range: Range) {
        self.end.inodes = self.end.inodes.max(range.inodes);
        self.end.transactions = self.end.transactions.max(range.transactions);
    }

    pub(crate) const fn synced(&mut self) {
        self.synced = self.end;
    }

    pub(crate) fn skip(&mut self) {
        self.inode = self.inode.max(self.end.inodes);
        self.transaction = self.transaction.max(self.end.transactions);
        self.synced = self.end;
    }

    /// A record used inode number `number`.
    pub(crate) fn used(&mut self, number: u64) {
        self.inode = self.inode.max(number + 1);
    }
}

/// Number 1 of shard 0 is the root's, so that no shard draws it.
const FIRST: u64 = 2;
/// One sync per so many new inodes; 2^48 numbers last for 2^32 restarts.
const RANGE: u64 = 1 << 16;
