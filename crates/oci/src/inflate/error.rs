//! What can be wrong with a compressed stream.

/// Why a gzip stream cannot be decoded. Every one of these is permanent: the same bytes fail again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The input ended inside a member.
    #[error("the gzip stream is truncated: it ends after {at} bytes in the middle of its data")]
    Truncated {
        /// Compressed bytes seen.
        at: u64,
    },
    /// The first bytes are not a gzip header.
    #[error("not a gzip stream: it does not start with 1f 8b 08")]
    NotGzip,
    /// The stream contradicts itself or its format.
    #[error("the gzip stream is corrupt near byte {at}: {what}")]
    Corrupt {
        /// Compressed offset near which it was noticed.
        at: u64,
        /// What is wrong.
        what: Corruption,
    },
}

/// What is wrong with a corrupt stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// Reserved flag bits of a gzip header are set.
    #[error("reserved header flags are set")]
    HeaderFlags,
    /// A gzip header's own checksum (FHCRC) does not match.
    #[error("header checksum mismatch")]
    HeaderChecksum,
    /// Block type 3 does not exist.
    #[error("unknown block type")]
    BlockType,
    /// LEN and NLEN of a stored block disagree.
    #[error("stored block length check fails")]
    StoredLength,
    /// More length or distance codes than the format has.
    #[error("too many length or distance codes")]
    TooManyCodes,
    /// The code lengths of a dynamic block do not describe a usable code.
    #[error("invalid code lengths")]
    CodeLengths,
    /// A bit pattern that no symbol owns.
    #[error("invalid code")]
    Code,
    /// A match that reaches before the start of the data.
    #[error("distance too far back")]
    DistanceTooFar,
    /// CRC-32 of a member's data differs from its trailer.
    #[error("checksum mismatch")]
    Checksum,
    /// The length of a member's data differs from its trailer.
    #[error("length mismatch")]
    Length,
}
