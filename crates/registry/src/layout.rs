//! A directory in OCI image layout: `index.json` names images, `blobs/ALGORITHM/DIGITS` hold everything.
//!
//! Source: OCI image specification, image-layout.md. Every document is checked against its digest, like a registry's.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sampan_oci::digest::Digest;
use sampan_oci::limits::{MANIFEST_BYTES_MAX, TAG_BYTES_MAX};
use sampan_oci::manifest::{Descriptor, Document, Index, ManifestError};

use crate::blob::LayoutFile;
use crate::error::{LayoutError, Mismatch};
use crate::file::read_bounded;

const TAG: &str = "org.opencontainers.image.ref.name";

pub(crate) struct Layout<'a> {
    directory: &'a Path,
}

/// What reading `index.json` can end in.
#[derive(Debug)]
pub(crate) enum IndexError {
    Layout(LayoutError),
    Manifest(ManifestError),
}

impl<'a> Layout<'a> {
    pub(crate) fn open(directory: &'a Path) -> Result<Self, LayoutError> {
        if directory.is_relative() {
            return Err(LayoutError::Relative(directory.to_owned()));
        }
        Ok(Self { directory })
    }

    /// The entries of `index.json` that `tag` names, or all if they are one image: several entries without tags, or with the
    /// same, are one image for several platforms.
    pub(crate) fn find(&self, tag: Option<&str>) -> Result<Index, IndexError> {
        let path = self.directory.join("index.json");
        let bytes = read(&path, MANIFEST_BYTES_MAX as u64).map_err(|error| match error {
            LayoutError::Read { source, .. }
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                IndexError::Layout(LayoutError::NotALayout(self.directory.to_owned()))
            }
            other => IndexError::Layout(other),
        })?;
        let Document::Index(mut index) =
            Document::parse(&bytes, Some(sampan_oci::media_type::OCI_INDEX)).map_err(IndexError::Manifest)?
        else {
            return Err(IndexError::Layout(LayoutError::NotALayout(self.directory.to_owned())));
        };
        let directory = || self.directory.to_owned();
        let mut offered: Vec<String> =
            index.manifests.iter().filter_map(|entry| tag_of(entry).map(str::to_owned)).collect();
        offered.sort_unstable();
        offered.dedup();
        match tag {
            Some(tag) => {
                index.manifests.retain(|entry| tag_of(entry) == Some(tag));
                if index.manifests.is_empty() {
                    let (directory, tag) = (directory(), tag.to_owned());
                    return Err(IndexError::Layout(LayoutError::NoSuchTag { directory, tag, offered }));
                }
            }
            None if index.manifests.is_empty() => return Err(IndexError::Layout(LayoutError::Empty(directory()))),
            None if offered.len() > 1 => {
                return Err(IndexError::Layout(LayoutError::TagNeeded { directory: directory(), offered }));
            }
            None => {}
        }
        Ok(index)
    }

    /// A whole document, checked. `limit` bounds its size.
    pub(crate) fn read(&self, digest: &Digest, limit: usize) -> Result<Bytes, LayoutError> {
        let path = self.path(digest);
        let bytes = read(&path, limit as u64)?;
        if !digest.matches(&bytes) {
            let digests = Box::new(Mismatch { expected: *digest, actual: Digest::of(&bytes) });
            return Err(LayoutError::Digest { path, digests });
        }
        Ok(bytes.into())
    }

    /// A blob to be read from, whose size is right.
    pub(crate) fn blob(&self, descriptor: &Descriptor) -> Result<LayoutFile, LayoutError> {
        let path = self.path(&descriptor.digest);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (actual, file) = opened.map_err(|source| LayoutError::Read { path: path.clone(), source })?;
        if actual != descriptor.size {
            return Err(LayoutError::Size { path, expected: descriptor.size, actual });
        }
        Ok(LayoutFile { path, file, start: 0, size: actual })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

fn tag_of(entry: &Descriptor) -> Option<&str> {
    let name = entry.annotations.get(TAG)?;
    // Some tools write the whole reference; its tag is what a person means.
    let tag = name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag);
    Some(tag).filter(|tag| !tag.is_empty() && tag.len() <= TAG_BYTES_MAX)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, LayoutError> {
    read_bounded(path, limit).map_err(|source| match source.kind() {
        ErrorKind::InvalidData => LayoutError::TooLarge { path: path.to_owned(), limit },
        _ => LayoutError::Read { path: path.to_owned(), source },
    })
}
