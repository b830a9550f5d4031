//! What a layer's own table of contents said of it, against the layer as it came out.
//!
//! A table and an index have the same tree but for two things: a table knows no places of headers, so its contents stand
//! elsewhere in the stream, and writers of eStargz round times to seconds. Both are no lies. Every piece is compared, also
//! those that nobody has read: where digests are wrong, readers have had errors.

use super::blob_map::BlobMap;
use super::complete::CompletionError;
use super::layer::LazyLayer;
use crate::index::LayerIndex;
use crate::limits::BUFFER_BYTES;
use crate::tree::{Content, Inode, LayerTree};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Spans whose records are read at a time.
const SPANS_AT_ONCE: usize = 1024;

/// Compares the table that was used (`told`, an index that was made from it) with the index and the blob that came out.
pub(super) fn compare(
    layer: &LazyLayer,
    told: &LayerIndex,
    made: &LayerIndex,
    blob: &File,
) -> Result<(), CompletionError> {
    let untrue = |what: &str| {
        let layer = layer.index().layer_digest;
        CompletionError::Untrue(format!("the table of contents of layer {layer} {what}"))
    };
    let is_meant = told.layer_digest == made.layer_digest
        && told.layer_bytes == made.layer_bytes
        && told.compression == made.compression
        && told.diff_id == made.diff_id;
    if !is_meant || !is_same_tree(&told.tree, &made.tree) {
        return Err(untrue("describes other files than the layer has"));
    }
    let map = BlobMap::of_pieces(&told.tree.contents);
    let (mut stream, mut buffer) = (0, vec![0; BUFFER_BYTES]);
    for first in (0..told.spans.len()).step_by(SPANS_AT_ONCE) {
        let spans = first..told.spans.len().min(first + SPANS_AT_ONCE);
        for piece in layer.surroundings().runtime.block_on(layer.pieces(&spans))? {
            let place = map.place(map.content_after(stream)).filter(|place| place.stream <= stream);
            let place = place.ok_or_else(|| untrue("has pieces that are no file's"))?;
            let at = place.blob + (stream - place.stream);
            let mut hasher = piece.digest.hasher();
            read_through(blob, at, piece.bytes, &mut buffer, |bytes| hasher.update(bytes))
                .map_err(CompletionError::Compare)?;
            if hasher.finish() != piece.digest {
                return Err(untrue("has a digest that is not the layer's"));
            }
            stream += piece.bytes;
        }
    }
    Ok(())
}

fn read_through(
    file: &File,
    mut at: u64,
    mut length: u64,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    while length > 0 {
        let now = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let part = &mut buffer[..now];
        file.read_exact_at(part, at)?;
        take(part);
        at += now as u64;
        length -= now as u64;
    }
    Ok(())
}

fn is_same_tree(told: &LayerTree, made: &LayerTree) -> bool {
    let is_same_content = |(one, two): (&Content, &Content)| one.size == two.size && one.segments == two.segments;
    told.inodes.len() == made.inodes.len()
        && told.contents.len() == made.contents.len()
        && told.contents.iter().zip(&made.contents).all(is_same_content)
        && told.inodes.iter().zip(&made.inodes).all(|(told, made)| is_same_inode(told, made))
}

fn is_same_inode(told: &Inode, made: &Inode) -> bool {
    let is_same_time = (told.seconds, told.nanoseconds) == (made.seconds, made.nanoseconds)
        || (told.nanoseconds == 0
            && made.nanoseconds > 0
            && (0..=1).contains(&told.seconds.wrapping_sub(made.seconds)));
    is_same_time
        && told.kind == made.kind
        && told.mode == made.mode
        && told.uid == made.uid
        && told.gid == made.gid
        && told.xattrs == made.xattrs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    #[test]
    fn times_may_be_rounded_and_nothing_else() {
        let inode = |seconds, nanoseconds, mode| Inode {
            kind: Kind::Fifo,
            mode,
            uid: 0,
            gid: 0,
            seconds,
            nanoseconds,
            xattrs: Vec::new(),
        };
        let check = |told: (i64, u32), made: (i64, u32)| {
            is_same_inode(&inode(told.0, told.1, 0o644), &inode(made.0, made.1, 0o644))
        };
        for told in [(7, 5), (7, 0), (8, 0)] {
            assert!(check(told, (7, 5)), "{told:?}");
        }
        for told in [(6, 0), (9, 0), (7, 4), (8, 5), (i64::MIN, 0)] {
            assert!(!check(told, (7, 5)), "{told:?}");
        }
        assert!(!check((8, 0), (7, 0)), "there was nothing to round");
        assert!(!is_same_inode(&inode(7, 0, 0o755), &inode(7, 0, 0o644)));
    }
}
