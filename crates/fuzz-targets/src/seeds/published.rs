//! Seeds for what is published with images.

use anyhow::Context;
use sampan_image::lazy::source::{PageNumber, Touch};
use sampan_image::pack;
use sampan_image::trace::Trace;
use sampan_oci::digest::Digest;
use serde_json::json;

pub(super) fn pack_and_trace() -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let touch = |layer, page, pages| Touch { first: PageNumber { layer, page }, pages };
    let touches = [touch(1, 7, 2), touch(0, 0, 1)];
    let layers = vec![Digest::of(b"one"), Digest::of(b"two")];
    let fill = |page: PageNumber, into: &mut [u8]| {
        into.fill(page.page as u8);
        Ok(())
    };
    let packed = pack::build(Digest::of(b"manifest"), layers, "sh -c 0".to_owned(), &touches, fill)?;
    let mut trace = Trace::default();
    trace.merge(&touches);
    trace.merge(&[touch(1, 7, 1), touch(0, 9, 3)]);
    Ok((packed, trace.encode().ok().context("the trace cannot be written")?))
}

/// Descriptions of each kind, with a signature that nobody made.
pub(super) fn artifact() -> Vec<u8> {
    let digest = Digest::of(b"");
    let head = format!("10:{}", blake3::hash(b"").to_hex());
    let signature = format!("{}:{}", "00".repeat(8), "11".repeat(64));
    let file = |kind: &str| {
        json!({
            "mediaType": format!("application/vnd.sampan.{kind}.v1"), "digest": digest, "size": 100,
            "annotations": {
                "vnd.sampan.about": digest, "vnd.sampan.about-bytes": "5", "vnd.sampan.diff-id": digest,
                "vnd.sampan.head": head, "vnd.sampan.command": "sh", "vnd.sampan.signatures": signature,
            },
        })
    };
    let files = ["layer.index", "start.pack", "start.trace"].map(file);
    json!({"schemaVersion": 2, "layers": files}).to_string().into_bytes()
}

/// An entry of each type, and a file in two pieces.
pub(super) fn table() -> Vec<u8> {
    let digest = Digest::of(b"");
    json!({"version": 1, "entries": [
        {"name": "d/", "type": "dir", "mode": 0o40755, "modtime": "2023-11-14T22:13:20Z", "xattrs": {"user.a": "AAA="}},
        {"name": "d/f", "type": "reg", "size": 70, "offset": 10, "chunkSize": 50, "chunkDigest": digest},
        {"name": "d/f", "type": "chunk", "offset": 40, "chunkOffset": 50, "chunkSize": 0, "chunkDigest": digest},
        {"name": "g", "type": "reg", "size": 5, "digest": digest, "offset": 60, "endOffset": 90},
        {"name": "l", "type": "symlink", "linkName": "d/f"},
        {"name": "h", "type": "hardlink", "linkName": "d/f"},
        {"name": "c", "type": "char", "devMajor": 1, "devMinor": 3},
        {"name": "p", "type": "fifo"},
        {"name": ".wh.gone", "type": "reg"},
    ]})
    .to_string()
    .into_bytes()
}
