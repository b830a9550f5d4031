//! erofs-utils as a judge: `fsck.erofs` with all file data, and `dump.erofs`.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

use crate::check::Files;

/// Checks metadata and reads all file data.
pub(crate) fn check(files: &Files) {
    accepts(&["-d3", "--extract"], files);
}

/// Checks metadata only, where files are too large to be read.
pub(crate) fn check_metadata(files: &Files) {
    accepts(&["-d3"], files);
}

fn accepts(arguments: &[&str], files: &Files) {
    if let Some(output) = run("fsck.erofs", arguments, files) {
        assert!(output.contains("No errors found"), "fsck.erofs says: {output}");
    }
}

/// What `dump.erofs` says with these arguments; nothing where it is not installed.
pub(crate) fn dump(arguments: &[&str], files: &Files) -> Option<String> {
    run("dump.erofs", arguments, files)
}

fn run(program: &str, arguments: &[&str], files: &Files) -> Option<String> {
    static MISSING: Once = Once::new();
    let path = ["/usr/bin", "/usr/sbin", "/bin"].map(|directory| Path::new(directory).join(program));
    let Some(path) = path.iter().find(|path| path.exists()) else {
        MISSING.call_once(|| eprintln!("NOT CHECKED: {program} is missing, install erofs-utils"));
        return None;
    };
    let devices = files.devices.iter().map(|device| format!("--device={}", device.display()));
    let output = Command::new(path).args(arguments).args(devices).arg(&files.image).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let notes: Vec<&str> = text.lines().filter(|line| !line.contains("successfully to open blob")).collect();
    assert!(output.status.success(), "{program} fails with {}: {}", output.status, notes.join("\n"));
    Some(text)
}
