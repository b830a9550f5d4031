//! Why a layer is refused.

use super::limits;

/// What is wrong with the archive. `entry` is fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    #[error("tar header at byte {offset} has a wrong checksum: this is no tar archive, or it is damaged")]
    Checksum { offset: u64 },
    #[error("tar archive ends in the middle of {what}")]
    Truncated { what: String },
    #[error("tar header at byte {offset} has no valid number in its {field}")]
    Number { offset: u64, field: &'static str },
    #[error("tar entry {entry} has an unknown type {kind:?}")]
    UnknownType { entry: String, kind: char },
    #[error("tar entry {entry} is refused: an absolute name")]
    AbsoluteName { entry: String },
    #[error("tar entry {entry} is refused: its name climbs out of the image's root")]
    Escapes { entry: String },
    #[error("tar entry {entry} is refused: its link target {target} climbs out of the image's root")]
    LinkEscapes { entry: String, target: String },
    #[error("tar entry {entry} is refused: {reason}")]
    BadName { entry: String, reason: &'static str },
    #[error("tar entry {entry} is refused: {what} is {value}, more than the limit of {limit}")]
    TooLarge { entry: String, what: &'static str, value: u64, limit: u64 },
    #[error("PAX header of {size} bytes is refused: the limit is {} bytes", limits::EXTENDED_HEADER_BYTES_MAX)]
    ExtendedHeaderTooLarge { size: u64 },
    #[error("PAX header at byte {offset} is malformed: {reason}")]
    Pax { offset: u64, reason: &'static str },
    #[error("tar entry {entry} has a malformed sparse map: {reason}")]
    Sparse { entry: String, reason: &'static str },
    #[error("tar archive has more than {} entries, the limit", limits::ENTRIES_MAX)]
    TooManyEntries,
}

/// Reading ends because of the archive or because of whoever takes its entries.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Sink(E),
}
