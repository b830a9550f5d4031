//! The writable layer of a pod: one ext4 image of its declared size, without journal, over a loop device.
//!
//! The image is a sparse copy of a template made once per size by `mkfs.ext4`; copying its few hundred kilobytes takes
//! about a millisecond. It ends exactly where it says (`ENOSPC` inside), holds the upper directories of all containers,
//! the pod's own files (`hosts`, `resolv.conf`, `hostname`) and its `emptyDir` volumes, and is deleted with the pod.
//! The loop device detaches itself when the last mount goes.
//!
//! Nothing of it is ever read after the machine has stopped, so that nothing of it has to be on the disk at any moment:
//! without barriers neither mounting, nor unmounting, nor a program's `fsync` waits for one.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, SeekFrom, Uid, chownat, mkdirat, openat, seek};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sampan_sys::loop_device::{LoopDevice, LoopOptions};
use sampan_sys::mount::{FsContext, KeptMount, MountRoom};

use crate::limits::{
    DETACH_ATTEMPTS_MAX, DETACH_PAUSE, DISK_BYTES_MAX, DISK_BYTES_MIN, FULL_BELOW_BYTES, TEMPLATE_DEADLINE,
};

/// Why a pod has no writable layer.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The size is outside what is possible.
    #[error("a disk of {bytes} bytes is not possible; choose between {DISK_BYTES_MIN} and {DISK_BYTES_MAX} bytes")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// `mkfs.ext4` is missing or failed.
    #[error(
        "mkfs.ext4 cannot make a file system of {bytes} bytes ({said}); install e2fsprogs, or look at the free disk space"
    )]
    Template {
        /// Size of the file system.
        bytes: u64,
        /// What the program said, or why it could not be run.
        said: String,
    },
    /// A step on the image failed.
    #[error("cannot {step} the writable layer {path}")]
    Image {
        /// What was tried.
        step: &'static str,
        /// The image file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// What lies at the top of every disk. The kernel would put each into a group of blocks of its own (`find_group_orlov` in
/// `fs/ext4/ialloc.c`), which it then has to set up.
const FOLDERS: [&str; 4] = ["containers", "etc", "messages", "volumes"];

/// A pod's mounted writable layer.
#[derive(Debug)]
pub(crate) struct Disk {
    mount: KeptMount,
}

/// Makes the image of a new pod.
pub(crate) fn create_image(templates: &Path, image: &Path, bytes: u64) -> Result<(), DiskError> {
    if !(DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&bytes) {
        return Err(DiskError::Size { bytes });
    }
    let bytes = bytes.next_multiple_of(4096);
    let template = template(templates, bytes)?;
    copy_sparse(&template, image).map_err(|source| DiskError::Image { step: "copy", path: image.to_owned(), source })
}

/// Mounts the image of a pod that lives on; a second mount of one that is still mounted somewhere shares its superblock.
pub(crate) fn mount_image(image: &Path, known: &Carriers, room: Option<&MountRoom>) -> Result<Disk, DiskError> {
    let fail = |step| move |source| DiskError::Image { step, path: image.to_owned(), source };
    match attached_device(image, known).map_err(fail("find the loop device of"))? {
        Some(found) => mount_device(image, &found, room),
        None => mount_new_image(image, room),
    }
}

/// Mounts an image that has just been made. Looking for a device that carries it already would cost more with every pod.
pub(crate) fn mount_new_image(image: &Path, room: Option<&MountRoom>) -> Result<Disk, DiskError> {
    let fail = |step| move |source| DiskError::Image { step, path: image.to_owned(), source };
    let backing = OpenOptions::new().read(true).write(true).open(image).map_err(fail("open"))?;
    let device =
        LoopDevice::attach(backing.as_fd(), LoopOptions::default()).map_err(fail("attach a loop device to"))?;
    mount_device(image, &LoopSource::New(device), room)
}

fn mount_device(image: &Path, device: &LoopSource, room: Option<&MountRoom>) -> Result<Disk, DiskError> {
    let fail = |step| move |source| DiskError::Image { step, path: image.to_owned(), source };
    let context = FsContext::open("ext4").map_err(fail("mount"))?;
    context.set_string("source", device.path()).map_err(fail("mount"))?;
    // The thread that reads all bitmaps ahead would make, and keep in memory, one for each 128 MiB that nobody may ever use.
    for flag in ["noinit_itable", "nobarrier", "no_prefetch_block_bitmaps"] {
        context.set_flag(flag).map_err(fail("mount"))?;
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let mount = context.mount(attributes).map_err(fail("mount"))?;
    Ok(Disk { mount: KeptMount::new(mount, room).map_err(fail("keep"))? })
}

enum LoopSource {
    /// Held open, so that it keeps its file until the mount does.
    Found {
        path: PathBuf,
        _held: File,
    },
    New(LoopDevice),
}

impl LoopSource {
    fn path(&self) -> &Path {
        match self {
            Self::Found { path, .. } => path,
            Self::New(device) => device.path(),
        }
    }
}

impl Disk {
    /// Makes a directory owned by `owner` (user and group) with these permissions, and its missing parents as root.
    pub(crate) fn directory(&self, path: &str, owner: u32, mode: u32) -> io::Result<OwnedFd> {
        if let Some((parents, _)) = path.rsplit_once('/') {
            let mut so_far = String::new();
            for part in parents.split('/') {
                so_far.push_str(part);
                ignore_exists(mkdirat(&self.mount, &so_far, Mode::from_raw_mode(0o755)))?;
                so_far.push('/');
            }
        }
        ignore_exists(mkdirat(&self.mount, path, Mode::from_raw_mode(0o700)))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = openat(&self.mount, path, flags, Mode::empty())?;
        rustix::fs::fchown(&directory, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
        Ok(directory)
    }

    /// Writes a small file owned by `owner`, world-readable.
    pub(crate) fn write_file(&self, path: &str, owner: u32, content: &str) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.mount, path, flags, Mode::from_raw_mode(0o644))?;
        io::Write::write_all(&mut File::from(file), content.as_bytes())?;
        chownat(&self.mount, path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Makes an empty file that everybody may write, with its folder.
    pub(crate) fn open_file(&self, path: &str, owner: u32) -> io::Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            ignore_exists(mkdirat(&self.mount, folder, Mode::from_raw_mode(0o755)))?;
        }
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.mount, path, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
        // Whatever the umask is.
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666))?)
    }

    /// The beginning of a file; nothing when it is not there.
    pub(crate) fn read_file(&self, path: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(&self.mount, path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            opened => File::from(opened?),
        };
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, bytes_max as u64), &mut content)?;
        Ok(content)
    }

    /// The mount itself.
    pub(crate) fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Where it is attached, on kernels that need it.
    pub(crate) fn attached(&self) -> Option<&Path> {
        self.mount.attached()
    }

    /// Used and total bytes.
    pub(crate) fn usage(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstatvfs(&self.mount)?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        Ok((used, stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    /// Bytes and inodes, used and in all.
    pub(crate) fn figures(&self) -> io::Result<DiskFigures> {
        let stat = rustix::fs::fstatvfs(&self.mount)?;
        let (used_bytes, total_bytes) = self.usage()?;
        Ok(DiskFigures { used_bytes, total_bytes, free_inodes: stat.f_ffree, total_inodes: stat.f_files })
    }

    /// Next to no block, or no inode, is left for the pod. ext4 keeps a few blocks to itself that count as available.
    pub(crate) fn is_full(&self) -> io::Result<bool> {
        let stat = rustix::fs::fstatvfs(&self.mount)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize) < FULL_BELOW_BYTES || stat.f_favail == 0)
    }
}

/// How full a pod's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFigures {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Inodes left.
    pub free_inodes: u64,
    /// Inodes in all.
    pub total_inodes: u64,
}

pub(crate) fn ignore_exists(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The template of that size, made on first use under another name and renamed when complete.
fn template(templates: &Path, bytes: u64) -> Result<PathBuf, DiskError> {
    let path = templates.join(format!("ext4-{bytes}.img"));
    if path.exists() {
        return Ok(path);
    }
    let fail = |step| {
        let path = path.clone();
        move |source| DiskError::Image { step, path, source }
    };
    std::fs::create_dir_all(templates).map_err(fail("make a folder for the template of"))?;
    let draft = tempfile_in(templates).map_err(fail("make a template of"))?;
    draft.file.set_len(bytes).map_err(fail("size the template of"))?;
    for folder in FOLDERS {
        std::fs::create_dir_all(draft.folders.join(folder)).map_err(fail("make a template of"))?;
    }
    let refused = |said: String| DiskError::Template { bytes, said };
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode,sparse_super2", "-E"])
        // Nobody repairs such a file system: copies of its superblock would only be copied.
        .arg("lazy_itable_init=1,nodiscard,root_owner=0:0,num_backup_sb=0")
        .arg("-d")
        .arg(&draft.folders)
        .arg(&draft.path);
    let output = output_within(&mut command, TEMPLATE_DEADLINE).map_err(|error| refused(error.to_string()))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")));
    }
    std::fs::rename(&draft.path, &path).map_err(fail("keep the template of"))?;
    Ok(path)
}

/// What a program says that says little, and how it ends; one that takes longer is killed.
fn output_within(command: &mut Command, deadline: Duration) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).and_then(|pidfd| {
        let limit = Timespec::try_from(deadline).map_err(|_overflow| Errno::INVAL)?;
        retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)))
    });
    if !matches!(ended, Ok(1..)) {
        child.kill()?;
        child.wait()?;
        ended?;
        return Err(io::Error::other(format!("it had not ended after {deadline:?} and was killed")));
    }
    child.wait_with_output()
}

/// A file under a random name that is removed unless it was renamed, and the folders that are to be in it.
struct Draft {
    path: PathBuf,
    folders: PathBuf,
    file: File,
}

impl Drop for Draft {
    fn drop(&mut self) {
        for removed in [std::fs::remove_file(&self.path), std::fs::remove_dir_all(&self.folders)] {
            match removed {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %self.path.display(), %error, "a draft of a template stays behind"),
            }
        }
    }
}

fn tempfile_in(folder: &Path) -> io::Result<Draft> {
    let path = folder.join(format!("draft-{}", sampan_kit::id::short()?));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
    let folders = path.with_extension("folders");
    Ok(Draft { path, folders, file })
}

/// Copies only the data of a sparse file.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().create_new(true).write(true).open(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0_u64;
    while position < length {
        let start = match seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let wanted = usize::try_from(end - read_at).unwrap_or(usize::MAX);
            let copied =
                rustix::fs::copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), wanted)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = end;
    }
    Ok(())
}

/// The loop device that already carries this image, after a restart of the daemon.
///
/// A pod that ended while nobody watched may be letting go of its device at this moment: then the device can no longer
/// be opened, or belongs to another file by the time it is, and the search begins again.
fn attached_device(image: &Path, known: &Carriers) -> io::Result<Option<LoopSource>> {
    let image = image.canonicalize()?;
    let mut found = match known.0.get(&image) {
        Some(path) => Some(path.clone()),
        None => Carriers::look()?.0.remove(&image),
    };
    for _ in 0..DETACH_ATTEMPTS_MAX {
        let Some(path) = found else { return Ok(None) };
        if let Ok(held) = File::open(&path)
            && carries(&path, &image)
        {
            return Ok(Some(LoopSource::Found { path, _held: held }));
        }
        std::thread::sleep(DETACH_PAUSE);
        found = Carriers::look()?.0.remove(&image);
    }
    Err(io::Error::other("its loop device is neither there nor gone"))
}

/// Which loop device carried which file at a moment. Looking once for all pods keeps taking them up from costing more with each.
#[derive(Debug, Default)]
pub(crate) struct Carriers(HashMap<PathBuf, PathBuf>);

impl Carriers {
    pub(crate) fn look() -> io::Result<Self> {
        let mut carriers = HashMap::new();
        for entry in std::fs::read_dir("/sys/block")? {
            let device = Path::new("/dev").join(entry?.file_name());
            carriers.extend(backing(&device).map(|file| (file, device)));
        }
        Ok(Self(carriers))
    }
}

fn carries(device: &Path, image: &Path) -> bool {
    backing(device).as_deref() == Some(image)
}

/// The file behind a device, if it is a loop device that has one.
fn backing(device: &Path) -> Option<PathBuf> {
    let file = Path::new("/sys/block").join(device.file_name()?).join("loop/backing_file");
    let told = std::fs::read_to_string(file).ok()?;
    Some(PathBuf::from(told.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::{Carriers, create_image, mount_image, output_within};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let error = output_within(Command::new("sleep").arg("1000"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "it had not ended after 50ms and was killed");
        let complain = ["-c", "echo why >&2; exit 3"];
        let output = output_within(Command::new("sh").args(complain), Duration::from_secs(600)).unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(3), b"why\n".as_slice()));
    }

    #[test]
    fn a_disk_ends_where_it_says() {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a loop device and needs root");
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        create_image(&folder.path().join("templates"), &image, 16 << 20).unwrap();
        let disk = mount_image(&image, &Carriers::default(), None).unwrap();
        disk.directory("volumes/data", 1000, 0o777).unwrap();
        let file = rustix::fs::openat(
            disk.mount().as_fd(),
            "volumes/data/big",
            rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .unwrap();
        let mut file = std::fs::File::from(file);
        let error = (0..64).find_map(|_| file.write_all(&[7; 1 << 20]).err()).expect("16 MiB hold no 64 MiB");
        assert_eq!(error.raw_os_error(), Some(28), "{error}");
        assert!(disk.is_full().unwrap());
        let again = mount_image(&image, &Carriers::default(), None).unwrap();
        assert!(again.is_full().unwrap(), "the second mount is the same file system");
    }
}
