//! Holds a tree that came from outside to the invariants that a builder guarantees.

use super::{Child, Kind, LayerTree};
use crate::limits::{BLOB_BYTES_MAX, DEPTH_MAX};

/// What is wrong with a tree that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TreeFault(pub(crate) &'static str);

impl LayerTree {
    /// Checks everything that merging and laying out rely on.
    pub(crate) fn check(&self, stream_bytes: u64) -> Result<(), TreeFault> {
        self.check_contents(stream_bytes)?;
        self.check_directories()
    }

    fn check_contents(&self, stream_bytes: u64) -> Result<(), TreeFault> {
        let mut stream_end = 0u64;
        let mut blob_end = 0u64;
        for content in &self.contents {
            let mut end = 0u64;
            for (offset, length) in content.segments.iter().flatten() {
                if *offset < end || *length == 0 {
                    return Err(TreeFault("segments of a sparse file are out of order"));
                }
                end = offset.checked_add(*length).ok_or(TreeFault("a segment is too long"))?;
            }
            if end > content.size || content.size > sampan_oci::layer::limits::FILE_BYTES_MAX {
                return Err(TreeFault("a file is too long, or a segment lies outside it"));
            }
            if content.stream_offset < stream_end || content.stream_bytes() == 0 {
                return Err(TreeFault("contents are out of order or empty"));
            }
            stream_end = content.stream_offset.checked_add(content.stream_bytes()).ok_or(TreeFault("too long"))?;
            if stream_end > stream_bytes {
                return Err(TreeFault("a content lies outside the stream"));
            }
            blob_end = blob_end.saturating_add(content.blob_bytes());
            if blob_end > BLOB_BYTES_MAX {
                return Err(TreeFault("the blob is too long"));
            }
        }
        Ok(())
    }

    fn check_directories(&self) -> Result<(), TreeFault> {
        let Some(Kind::Directory(_)) = self.inodes.first().map(|inode| &inode.kind) else {
            return Err(TreeFault("the root is no directory"));
        };
        let mut depth: Vec<Option<usize>> = vec![None; self.inodes.len()];
        depth[0] = Some(0);
        let mut pending = vec![0usize];
        while let Some(number) = pending.pop() {
            let below = depth[number].unwrap_or(0) + 1;
            let Kind::Directory(directory) = &self.inodes[number].kind else { continue };
            if below > DEPTH_MAX + 1 {
                return Err(TreeFault("a directory lies too deep"));
            }
            for (name, child) in &directory.entries {
                if !is_component(name) {
                    return Err(TreeFault("a name is empty, too long, or holds a slash or a NUL byte"));
                }
                let Child::Inode(inode) = child else { continue };
                let inode = *inode as usize;
                let target = self.inodes.get(inode).ok_or(TreeFault("an entry names an inode that is not there"))?;
                let seen = depth[inode].replace(below).is_some();
                match &target.kind {
                    Kind::Directory(_) if seen => return Err(TreeFault("a directory has two names")),
                    Kind::Directory(_) => pending.push(inode),
                    Kind::File { content, size } if !seen => self.check_file(*content, *size)?,
                    _ => {}
                }
            }
        }
        if depth.contains(&None) {
            return Err(TreeFault("an inode has no name"));
        }
        self.check_attributes()
    }

    fn check_file(&self, content: Option<u32>, size: u64) -> Result<(), TreeFault> {
        let Some(content) = content else { return Ok(()) };
        let content = self.contents.get(content as usize).ok_or(TreeFault("a file's content is not there"))?;
        if content.size == size { Ok(()) } else { Err(TreeFault("a file and its content differ in size")) }
    }

    fn check_attributes(&self) -> Result<(), TreeFault> {
        use sampan_oci::layer::limits::{PATH_BYTES_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTRS_MAX};
        for inode in &self.inodes {
            if inode.mode > 0o7777 || inode.nanoseconds >= 1_000_000_000 {
                return Err(TreeFault("a mode or a time is out of range"));
            }
            let bytes: usize = inode.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
            let names = inode.xattrs.iter().map(|(name, _)| name);
            if bytes > XATTR_BYTES_MAX
                || inode.xattrs.len() > XATTRS_MAX
                || !names.clone().all(|name| (1..=XATTR_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0))
                || !names.is_sorted_by(|one, two| one < two)
            {
                return Err(TreeFault("extended attributes are too large, out of order or badly named"));
            }
            if let Kind::Symlink { target } = &inode.kind
                && (target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0))
            {
                return Err(TreeFault("a symbolic link's target is empty, too long or holds a NUL byte"));
            }
        }
        Ok(())
    }
}

fn is_component(name: &[u8]) -> bool {
    (1..=sampan_oci::layer::limits::NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
