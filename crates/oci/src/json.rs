//! How foreign JSON is read: with a size limit, and with the habits of Go's encoder (an empty list is `null`).

use serde::{Deserialize, Deserializer};

/// Reads `null` as the type's default, as Go writes empty slices and maps.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
