//! The commands below `sampan image`, as data for clap.

use clap::Subcommand;

use crate::commands::image::{gc, index, inspect, keys, pack, prefetch, push_index, trace, verify};
use crate::commands::{images, rmi};

// What to do with images.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ImageCommand {
    /// List the images on this machine.
    Ls(images::ImagesArgs),
    /// Show everything that is known of images: layers, indexes, packs, traces.
    Inspect(inspect::InspectArgs),
    /// Bring images here whole, ahead of their first run.
    Prefetch(prefetch::PrefetchArgs),
    /// Remove images from this machine.
    Rm(rmi::RmiArgs),
    /// Remove images that nothing uses, the one that was used longest ago first.
    Gc(gc::GcArgs),
    /// Read images against their digests, and fetch again what is damaged.
    Verify(verify::VerifyArgs),
    /// Show what starts of an image read, and in which order.
    Trace(trace::TraceArgs),
    /// Make the index of an image, fetching the image if necessary.
    Index(index::IndexArgs),
    /// Sign an image's index, pack and trace, and publish them beside it in its registry.
    PushIndex(push_index::PushIndexArgs),
    /// Make the start pack of an image: the pages that a start reads, as one file.
    Pack(pack::PackArgs),
    /// Show and change whose indexes this machine believes.
    Keys(keys::KeysArgs),
}
