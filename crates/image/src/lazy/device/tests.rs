//! What lies between EROFS and FUSE: the small experiment that decided it, and that nothing of it stays. Needs root and
//! Linux 6.9.
//!
//! [`readers_do_not_wait_for_each_other_by_the_clock`] is that experiment in small. Its figures for
//! [decision 11](../../../../../docs/decisions/0011-lazy-files.md) are made with
//!
//! ```text
//! SAMPAN_EXPERIMENT_DEVICES=200 cargo test --release -p sampan-image -- --exact --nocapture \
//!     lazy::device::tests::readers_do_not_wait_for_each_other_by_the_clock
//! ```

use super::super::connection::tests::stage;
use super::super::connection::tests::{Pattern, expected, open};
use super::*;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use sampan_sys::keeper::KeptDescriptors;

const BYTES: u64 = 32 << 20;
const READERS: u64 = 8;
/// Missing pages that each reader reads, one after the other; each is in a span of its own.
const READS: u64 = 16;
/// A slow link.
const DELAY: Duration = Duration::from_millis(20);

#[test]
fn a_device_goes_with_its_last_user() {
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    let pattern = Pattern::new(21, BYTES, Duration::ZERO);
    let stage = stage::Stage::new(&files, &pattern, root.path());
    assert_eq!(files.survivors().expect("look"), [21]);
    let file = files.add(21, &pattern.file()).expect("add");
    let mut left = survivors(&files, 21).expect("look");
    let again = LazyDevice::attach(&mut left, &file, Reading::Alone).expect("attach");
    assert_eq!(again.path(), stage.device, "one device for all mounts");
    let other = LazyDevice::attach(&mut left, &file, Reading::Together).expect("attach");
    assert_ne!(other.path(), stage.device, "small files have one of their own");
    drop(other);
    drop((stage, file));
    assert_eq!(files.survivors().expect("look"), [21], "it is held still");
    drop(again);
    stage::until(|| files.survivors().expect("look").is_empty());
}

/// How a mount reaches the FUSE files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    LoopBuffered,
    LoopDirect,
    FileBacked,
}

struct Set {
    mount: OwnedFd,
    numbers: Vec<u64>,
    _files: Vec<File>,
    _devices: Vec<LoopDevice>,
}

impl Set {
    fn new(way: Way, files: &LazyFiles, numbers: Vec<u64>, folder: &Path) -> Self {
        let opened: Vec<File> = numbers
            .iter()
            .map(|number| files.add(*number, &Pattern::new(*number, BYTES, DELAY).file()).expect("add"))
            .collect();
        let options = LoopOptions { read_only: true, block_bytes: 4096, direct_io: way == Way::LoopDirect };
        let devices: Vec<LoopDevice> = match way {
            Way::FileBacked => Vec::new(),
            _ => opened.iter().map(|file| LoopDevice::attach(file.as_fd(), options).expect("attach")).collect(),
        };
        let metadata = stage::metadata(&numbers, BYTES, folder);
        let mount = if way == Way::FileBacked {
            let paths: Vec<PathBuf> =
                opened.iter().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))).collect();
            stage::mount(&metadata, paths.iter().map(PathBuf::as_path))
        } else {
            stage::mount_over_loop(&metadata, devices.iter().map(LoopDevice::path))
        };
        Self { mount, numbers, _files: opened, _devices: devices }
    }

    fn open(&self, number: u64) -> File {
        sampan_sys::fuse::open_file(self.mount.as_fd(), &stage::name(number)).expect("open").into()
    }

    /// Eight readers, each of one missing page after the other, over so many of the blobs; gives how long it takes.
    fn read_missing(&self, blobs: usize) -> Duration {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                scope.spawn(move || {
                    for turn in 0..READS {
                        let nth = reader * READS + turn;
                        let number = self.numbers[nth as usize % blobs];
                        let offset = (nth / blobs as u64) * (256 << 10) % BYTES + 4096 * reader;
                        let mut page = [0; 4096];
                        self.open(number).read_exact_at(&mut page, offset).expect("read");
                        assert!(page[..] == expected(number, offset, 4096), "wrong bytes");
                    }
                });
            }
        });
        begin.elapsed()
    }

    /// The same readers over what is here, each page from FUSE; gives MiB a second.
    fn read_present(&self) -> f64 {
        let (file, number) = (self.open(self.numbers[0]), self.numbers[0]);
        let mut whole = vec![0; BYTES as usize];
        file.read_exact_at(&mut whole, 0).expect("read");
        assert!(whole == expected(number, 0, BYTES as usize), "wrong bytes");
        fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise");
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let share = BYTES / READERS;
            for reader in 0..READERS {
                let file = &file;
                scope.spawn(move || {
                    file.read_exact_at(&mut vec![0; share as usize], reader * share).expect("read");
                });
            }
        });
        (BYTES >> 20) as f64 / begin.elapsed().as_secs_f64()
    }
}

/// A read that waits for a slow link holds up no other of the same blob: all of them wait at the same time.
#[test]
fn readers_do_not_wait_for_each_other() {
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    let pattern = Pattern::new(22, BYTES, Duration::MAX);
    let stage = stage::Stage::new(&files, &pattern, root.path());
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let file = &stage.file;
            scope.spawn(move || {
                let (mut page, offset) = ([0; 4096], reader * (BYTES / READERS));
                file.read_exact_at(&mut page, offset).expect("read");
                assert!(page[..] == expected(22, offset, 4096), "wrong bytes");
            });
        }
        assert!(pattern.gives_all_when_so_many_wait(READERS), "they wait for each other");
    });
}

/// The same by the clock, over several blobs too, and by other ways; what it takes is for whoever looks.
#[test]
fn readers_do_not_wait_for_each_other_by_the_clock() {
    let devices = std::env::var("SAMPAN_EXPERIMENT_DEVICES").ok().and_then(|number| number.parse().ok()).unwrap_or(8);
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    files.resume().expect("resume");
    let mut next = 100_u64;
    for way in [Way::LoopBuffered, Way::LoopDirect, Way::FileBacked] {
        let mut set = |blobs: u64| {
            next += blobs;
            let begin = Instant::now();
            let set = Set::new(way, &files, (next - blobs..next).collect(), root.path());
            (set, begin.elapsed())
        };
        let (one, _) = set(1);
        let same = one.read_missing(1);
        let (many, made) = set(devices);
        let apart = many.read_missing(devices as usize);
        let present = many.read_present();
        eprintln!(
            "{way:?}: {devices} devices made in {made:.1?}; {READERS} readers of {READS} missing pages each, {DELAY:?} away: \
             in one blob {same:.2?}, over {devices} {apart:.2?}; what is here without read-ahead: {present:.0} MiB/s"
        );
    }
}
