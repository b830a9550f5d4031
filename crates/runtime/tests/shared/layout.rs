//! A directory in OCI image layout with one image of busybox in it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::program::BUSYBOX;

/// Writes the layout below `folder` and says by what reference it is pulled.
pub(crate) fn write(folder: &Path) -> Result<String> {
    let (tree, layout) = (folder.join("tree"), folder.join("layout"));
    for directory in ["bin", "etc", "tmp", "data"] {
        std::fs::create_dir_all(tree.join(directory))?;
    }
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    std::fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
    for applet in [
        "sh", "cat", "echo", "sleep", "ls", "mount", "umount", "touch", "mkdir", "hostname", "nc", "true", "id",
        "head", "readlink", "stat", "wc", "grep", "test", "ps",
    ] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/data:/bin/sh\n")?;
    std::fs::write(tree.join("data/word"), "from the image\n")?;
    let archive = Command::new("tar").arg("-C").arg(&tree).args(["--owner=0", "--group=0", "-c", "."]).output()?;
    ensure!(archive.status.success(), "tar fails: {}", String::from_utf8_lossy(&archive.stderr));

    let blob = |bytes: &[u8]| -> Result<String> {
        let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(layout.join("blobs/sha256").join(&digits), bytes)?;
        Ok(format!(r#""digest": "sha256:{digits}", "size": {}"#, bytes.len()))
    };
    let layer = blob(&archive.stdout)?;
    let diff_id = layer.split('"').nth(3).unwrap_or_default();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"architecture": "{architecture}", "os": "linux", "config": {{"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "StopSignal": "SIGQUIT"}},
            "rootfs": {{"type": "layers", "diff_ids": ["{diff_id}"]}}}}"#
    );
    let config = blob(config.as_bytes())?;
    let kind = "application/vnd.oci.image";
    let manifest = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{kind}.manifest.v1+json", "config": {{"mediaType": "{kind}.config.v1+json", {config}}},
            "layers": [{{"mediaType": "{kind}.layer.v1.tar", {layer}}}]}}"#
    );
    let manifest = blob(manifest.as_bytes())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    std::fs::write(
        layout.join("index.json"),
        format!(r#"{{"schemaVersion": 2, "manifests": [{{"mediaType": "{kind}.manifest.v1+json", {manifest}}}]}}"#),
    )?;
    Ok(format!("oci:{}", layout.display()))
}
