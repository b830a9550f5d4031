//! How large foreign JSON and its lists may be. One place, so that the bounds can be read together.

/// A manifest or an index. Docker's own registry refuses larger ones, so nothing real is lost.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// An image configuration; histories with long inline scripts stay far below.
pub const CONFIG_BYTES_MAX: usize = 8 << 20;

/// Layers of one image. Overlay based engines end at 127; merged metadata would go further, a person does not.
pub const LAYERS_MAX: usize = 512;

/// Entries of an index; attestations count too.
pub const INDEX_ENTRIES_MAX: usize = 4096;

/// The name of an image with its registry, as the distribution project bounds it.
pub const NAME_BYTES_MAX: usize = 255;

/// A tag, as the distribution specification bounds it.
pub const TAG_BYTES_MAX: usize = 128;

/// Foreign text quoted in an error: enough to recognise it, too little to flood a log.
pub const QUOTE_CHARS_MAX: usize = 120;

const _: () =
    assert!(CONFIG_BYTES_MAX >= MANIFEST_BYTES_MAX, "a configuration names every layer that its manifest names");
