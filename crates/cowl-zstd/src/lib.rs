//! The first bytes of a zstd frame, without the rest of the block that they are in.
//!
//! A block of zstd (RFC 8878) is what other decoders do in one go, and most writers make one of a
//! whole cluster. But what is in it is a list of copies, done from its start: whoever wants the
//! first half of a cluster can stop in the middle. This decoder does. It replaces no library: it
//! reads frames of one segment and known length, without checksum or dictionary, and the caller
//! gives what it refuses to a library, which has the last word.
//!
//! | module      | what                                         | RFC 8878           |
//! |-------------|----------------------------------------------|--------------------|
//! | `frame`     | header of a frame, headers of its blocks     | 3.1.1.1, 3.1.1.2   |
//! | `literals`  | the bytes that a block does not copy         | 3.1.1.3.1          |
//! | `huffman`   | their codes                                  | 4.2                |
//! | `sequences` | the copies                                   | 3.1.1.3.2, 3.1.1.4 |
//! | `states`    | the codes of lengths and offsets             | 3.1.1.3.2.1        |
//! | `fse`       | how probable codes are, and their states     | 4.1                |
//! | `bits`      | streams, from their ends                     | 4.1                |
//! | `copy`      | copies of a few bytes                        |                    |
//!
//! **Architecture Invariant:** only safe code, and no more memory than a [`Decoder`] and the
//! literals of one block (128 KiB), whatever a frame says. A read costs the tables and literals of
//! the blocks up to its end, and the copies up to there.

mod bits;
mod copy;
mod frame;
mod fse;
mod huffman;
mod literals;
mod sequences;
mod states;

pub use frame::Decoder;

/// Why a frame is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No frame of one segment and the expected length, or one with a checksum or a dictionary.
    Kind,
    /// Something is longer than what it is in.
    Short,
    /// A block that cannot be.
    Block,
    /// A description of a table that cannot be, or of the last one where there was none.
    Table,
    /// A stream that says more or less than its section does.
    Stream,
    /// A sequence that takes what is not there.
    Sequence,
    /// More bytes than the frame says.
    Room,
}
