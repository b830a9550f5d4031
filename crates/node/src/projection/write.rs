//! Files into a folder that containers look at, all at once: whoever reads sees the old ones or the new ones, never a mix.
//!
//! ```text
//! FOLDER/..2026_11_21_16_30_00.123456789/   the files
//! FOLDER/..data        -> ..2026_…          swapped by one rename
//! FOLDER/NAME          -> ..data/NAME       one for each name at the top
//! ```
//!
//! As Kubernetes does it (`pkg/volume/util/atomic_writer.go`), so that programs which watch `..data` work. Directories
//! belong to the host's root, who is nobody inside a pod: however privileged a container is there, it cannot put a link in
//! our way. Files belong to the pod's root, or to the group of `fsGroup`.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::Path;

use jiff::Timestamp;

use super::{File, Files};

/// The link that is swapped.
const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Who owns the files, in the host's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owners {
    /// The pod's root.
    pub(crate) user: u32,
    /// The pod's root's group, or that of `fsGroup`, which then may read everything.
    pub(crate) group: u32,
    /// It is `fsGroup`'s.
    pub(crate) shared: bool,
}

/// Makes the folder show these files; false when it did already.
pub(crate) fn write(folder: &Path, files: &Files, owners: Owners) -> io::Result<bool> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    let before = fs::read_link(folder.join(DATA)).ok();
    if let Some(before) = &before
        && is_same(&folder.join(before), files)?
    {
        return Ok(false);
    }
    let now = Timestamp::now();
    let name = format!("..{}", now.strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = folder.join(&name);
    fs::create_dir(&fresh)?;
    for (path, file) in files {
        put(&fresh, path, file, owners)?;
    }
    let next = folder.join(DATA_NEXT);
    remove_if_there(&next)?;
    symlink(&name, &next)?;
    fs::rename(&next, folder.join(DATA))?;
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    sweep(folder, &wanted, &name)?;
    Ok(true)
}

fn put(fresh: &Path, path: &str, file: &File, owners: Owners) -> io::Result<()> {
    let place = fresh.join(path);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?;
    opened.write_all(&file.content)?;
    fchown(&opened, Some(owners.user), Some(owners.group))?;
    let mode = if owners.shared { file.mode | 0o440 } else { file.mode };
    opened.set_permissions(Permissions::from_mode(mode))
}

/// Whether a folder of an earlier time holds exactly these files.
fn is_same(folder: &Path, files: &Files) -> io::Result<bool> {
    let mut found = 0_usize;
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let inner = path.strip_prefix(folder).ok().and_then(Path::to_str).and_then(|inner| files.get(inner));
            let Some(file) = inner else { return Ok(false) };
            if fs::read(&path)? != file.content {
                return Ok(false);
            }
            found += 1;
        }
    }
    Ok(found == files.len())
}

/// Takes away what is no longer shown, and files of earlier times.
fn sweep(folder: &Path, wanted: &BTreeSet<&str>, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == current || wanted.contains(name) {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { remove_if_there(&entry.path())? }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Owners, write};
    use crate::projection::{File, Files};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |text: &str| File { content: text.as_bytes().to_vec(), mode: 0o400 };
        list.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    fn owners() -> Owners {
        let here = std::fs::metadata("/proc/self").unwrap();
        Owners { user: here.uid(), group: here.gid(), shared: false }
    }

    #[test]
    fn files_are_swapped_all_at_once_and_nothing_old_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("volume");
        assert!(write(&at, &files(&[("a", "1"), ("deep/b", "2"), ("deep/c", "3")]), owners()).unwrap());
        assert_eq!(std::fs::read_to_string(at.join("deep/b")).unwrap(), "2");
        assert_eq!(std::fs::read_link(at.join("a")).unwrap().to_str(), Some("..data/a"));
        assert_eq!(std::fs::metadata(at.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
        let first = std::fs::read_link(at.join("..data")).unwrap();
        assert!(!write(&at, &files(&[("a", "1"), ("deep/b", "2"), ("deep/c", "3")]), owners()).unwrap());
        assert_eq!(std::fs::read_link(at.join("..data")).unwrap(), first);
        assert!(write(&at, &files(&[("a", "9"), ("new", "")]), owners()).unwrap());
        assert_eq!(std::fs::read_to_string(at.join("a")).unwrap(), "9");
        let mut names: Vec<_> =
            std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let current = std::fs::read_link(at.join("..data")).unwrap().to_str().unwrap().to_owned();
        assert_eq!(names, [current.as_str(), "..data", "a", "new"]);
    }

    #[test]
    fn a_volume_without_files_is_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(&folder.path().join("volume"), &Files::new(), owners()).unwrap());
        assert!(!write(&folder.path().join("volume"), &Files::new(), owners()).unwrap());
    }
}
