//! Blobs whose bytes anybody can tell from their number and place, and EROFS mounts with one file over each.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sampan_erofs::{Device, DirEntry, Extent, Inode, Kind, Tree};
use sampan_sys::loop_device::{LoopDevice, LoopOptions};
use sampan_sys::mount::FsContext;

use super::super::LazyFiles;
use crate::lazy::device::{LazyDevice, mend_devices, survivors};
use crate::lazy::partial_file::{Answer, PartialFile};
use crate::store::Reading;

/// What is fetched at a time.
const SPAN_BYTES: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a blob: every eight of them are a number made of the blob's and their place (splitmix64).
pub(in crate::lazy) fn fill(number: u64, offset: u64, into: &mut [u8]) {
    let word = |place: u64| {
        let mut mixed = (place ^ number << 40).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).to_le_bytes()
    };
    let (mut at, mut rest) = (offset, into);
    while !rest.is_empty() {
        let word = word(at / 8);
        let from = word.get((at % 8) as usize..).expect("inside a word");
        let (piece, left) = rest.split_at_mut(from.len().min(rest.len()));
        piece.copy_from_slice(from.get(..piece.len()).expect("as long"));
        (at, rest) = (at + piece.len() as u64, left);
    }
}

pub(in crate::lazy) fn expected(number: u64, offset: u64, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    fill(number, offset, &mut all);
    all
}

/// A blob of which nothing is here at first, and whose spans come after a delay; after `Duration::MAX` never.
#[derive(Clone)]
pub(in crate::lazy) struct Pattern {
    number: u64,
    inner: Arc<Inner>,
}

struct Inner {
    number: u64,
    bytes: u64,
    delay: Duration,
    state: Mutex<State>,
    asked: Condvar,
    /// One thread for each slow fetch would be many: they come out of this queue when they are due.
    fetches: Mutex<Option<Sender<(Instant, u64, Answer)>>>,
}

#[derive(Default)]
struct State {
    present: HashSet<u64>,
    wishes: u64,
    stuck: Vec<Answer>,
}

impl Pattern {
    pub(in crate::lazy) fn new(number: u64, bytes: u64, delay: Duration) -> Self {
        let (sender, receiver) = channel();
        let inner = Arc::new(Inner {
            number,
            bytes,
            delay,
            state: Mutex::default(),
            asked: Condvar::new(),
            fetches: Mutex::new(Some(sender)),
        });
        let fetching = Arc::downgrade(&inner);
        std::thread::spawn(move || fetch(&fetching, &receiver));
        Self { number, inner }
    }

    pub(in crate::lazy) fn file(&self) -> Arc<dyn PartialFile> {
        Arc::clone(&self.inner) as Arc<dyn PartialFile>
    }

    pub(in crate::lazy) fn wait_until_asked(&self) {
        let state = self.inner.state.lock().expect("state");
        let waited = self.inner.asked.wait_timeout_while(state, PATIENCE, |state| state.wishes == 0).expect("state");
        assert!(!waited.1.timed_out(), "nobody asks");
    }

    /// Whether so many wishes wait at the same time, of one who gives nothing before; then all is here.
    pub(in crate::lazy) fn gives_all_when_so_many_wait(&self, wishes: u64) -> bool {
        let state = self.inner.state.lock().expect("state");
        let waited = self.inner.asked.wait_timeout_while(state, PATIENCE, |state| state.wishes < wishes);
        let (mut state, waited) = waited.expect("state");
        state.present.extend(0..self.inner.bytes.div_ceil(SPAN_BYTES));
        let stuck = std::mem::take(&mut state.stuck);
        drop(state);
        stuck.into_iter().for_each(|answer| answer(Ok(())));
        !waited.timed_out()
    }

    pub(in crate::lazy) fn fail_all(&self) {
        let stuck = std::mem::take(&mut self.inner.state.lock().expect("state").stuck);
        stuck.into_iter().for_each(|answer| answer(Err(Errno::IO)));
    }
}

fn fetch(inner: &std::sync::Weak<Inner>, fetches: &Receiver<(Instant, u64, Answer)>) {
    while let Ok((due, span, answer)) = fetches.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let Some(inner) = inner.upgrade() else { return };
        inner.state.lock().expect("state").present.insert(span);
        answer(Ok(()));
    }
}

impl PartialFile for Inner {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_present(&self, offset: u64, into: &mut [u8]) -> std::io::Result<Option<usize>> {
        let last = offset + (into.len() as u64).max(1) - 1;
        let state = self.state.lock().expect("state");
        if !(offset / SPAN_BYTES..=last / SPAN_BYTES).all(|span| state.present.contains(&span)) {
            return Ok(None);
        }
        drop(state);
        fill(self.number, offset, into);
        Ok(Some(into.len()))
    }

    /// Asks for the first span that is missing: the reader comes back for the next.
    fn want(&self, offset: u64, bytes: u32, answer: Answer) {
        let mut state = self.state.lock().expect("state");
        state.wishes += 1;
        self.asked.notify_all();
        if self.delay == Duration::MAX {
            return state.stuck.push(answer);
        }
        let spans = offset / SPAN_BYTES..=(offset + u64::from(bytes) - 1) / SPAN_BYTES;
        let missing: Vec<u64> = spans.filter(|span| !state.present.contains(span)).collect();
        drop(state);
        let fetches = self.fetches.lock().expect("fetches");
        let fetches = fetches.as_ref().expect("open");
        let due = Instant::now() + self.delay;
        let left = Arc::new(Mutex::new((missing.len().max(1), Some(answer))));
        for span in if missing.is_empty() { vec![offset / SPAN_BYTES] } else { missing } {
            let left = Arc::clone(&left);
            let one = move |_| {
                let mut left = left.lock().expect("left");
                left.0 -= 1;
                let answer = if left.0 == 0 { left.1.take() } else { None };
                drop(left);
                if let Some(answer) = answer {
                    answer(Ok(()));
                }
            };
            fetches.send((due, span, Box::new(one))).expect("the fetching thread");
        }
    }
}

/// Serves a pattern and attaches its device.
pub(in crate::lazy) fn attach(files: &LazyFiles, pattern: &Pattern) -> LazyDevice {
    let file = files.add(pattern.number, &pattern.file()).expect("add");
    files.resume().expect("resume");
    mend_devices(files, pattern.number, &file).expect("mend");
    let mut left = survivors(files, pattern.number).expect("look");
    LazyDevice::attach(&mut left, &file, Reading::Alone).expect("attach")
}

/// An EROFS mount with one file, whose contents are one blob.
pub(in crate::lazy) struct Stage {
    pub(in crate::lazy) file: File,
    pub(in crate::lazy) device: PathBuf,
    _mount: OwnedFd,
}

impl Stage {
    pub(in crate::lazy) fn new(files: &LazyFiles, pattern: &Pattern, folder: &Path) -> Self {
        let device = attach(files, pattern);
        Self::over(device.path(), pattern.number, pattern.inner.bytes, folder)
    }

    pub(in crate::lazy) fn over(device: &Path, number: u64, bytes: u64, folder: &Path) -> Self {
        let mount = mount_over_loop(&metadata(&[number], bytes, folder), [device]);
        let file = sampan_sys::fuse::open_file(mount.as_fd(), &name(number)).expect("open the blob").into();
        Self { file, device: device.to_owned(), _mount: mount }
    }

    pub(in crate::lazy) fn forget_pages(&self) {
        fadvise(&self.file, 0, None, Advice::DontNeed).expect("fadvise");
    }

    pub(in crate::lazy) fn check_whole(&self, number: u64, bytes: u64) {
        let mut got = vec![0; 1 << 20];
        for offset in (0..bytes).step_by(1 << 20) {
            self.file.read_exact_at(&mut got, offset).expect("read");
            assert!(got == expected(number, offset, 1 << 20), "wrong bytes in the MiB at {offset}");
        }
    }
}

/// Metadata of an image with one file over each blob, named by its number.
pub(in crate::lazy) fn metadata(numbers: &[u64], bytes: u64, folder: &Path) -> PathBuf {
    let mut tree = Tree::new(Inode::new(0o755, Kind::Directory(Vec::new())));
    let (mut entries, mut devices) = (Vec::new(), Vec::new());
    for (device, number) in (1..).zip(numbers) {
        let extents = vec![Extent { file_offset: 0, device, device_offset: 0, length: bytes }];
        let inode = tree.push(Inode::new(0o644, Kind::File { size: bytes, extents }));
        entries.push(DirEntry { name: name(*number).into_bytes(), inode });
        devices.push(Device { blocks: (bytes / 4096).try_into().expect("small"), tag: b"blob".to_vec() });
    }
    if let Some(root) = tree.inode_mut(tree.root) {
        root.kind = Kind::Directory(entries);
    }
    let path = folder.join(format!("metadata-{}-{}", numbers.first().expect("one"), numbers.len()));
    std::fs::write(&path, sampan_erofs::write(&tree, &devices).expect("write")).expect("write");
    path
}

/// The name of a blob's file in an image.
pub(in crate::lazy) fn name(number: u64) -> String {
    format!("{number:08}")
}

/// Mounts metadata over a loop device without read-ahead, with these blobs.
pub(in crate::lazy) fn mount_over_loop<'a>(metadata: &Path, blobs: impl IntoIterator<Item = &'a Path>) -> OwnedFd {
    let options = LoopOptions { read_only: true, block_bytes: 4096, direct_io: false };
    let backing = File::open(metadata).expect("open");
    let first = LoopDevice::attach(backing.as_fd(), options).expect("attach");
    first.set_read_ahead(0).expect("no read-ahead");
    mount(first.path(), blobs)
}

pub(in crate::lazy) fn mount<'a>(metadata: &Path, blobs: impl IntoIterator<Item = &'a Path>) -> OwnedFd {
    let context = FsContext::open("erofs").expect("erofs");
    context.set_string("source", metadata).expect("source");
    for blob in blobs {
        context.set_string("device", blob).expect("device");
    }
    context.set_flag("ro").expect("ro");
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY).expect("mount")
}

pub(in crate::lazy) fn local_copy(number: u64, bytes: u64, folder: &Path) -> File {
    let path = folder.join("local");
    let file = File::create(&path).expect("create");
    for offset in (0..bytes).step_by(1 << 20) {
        file.write_all_at(&expected(number, offset, 1 << 20), offset).expect("write");
    }
    File::open(path).expect("open")
}

/// Sets a flag also when a test fails, so that its threads end.
pub(in crate::lazy) struct SetOnDrop<'a>(pub(in crate::lazy) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads pieces, compares them, and drops them from the page cache so that the next reader asks for them again.
pub(in crate::lazy) fn read_at_random(
    file: &File,
    (number, bytes): (u64, u64),
    seed: u64,
    stop: &AtomicBool,
    reads: &AtomicU64,
    longest_micros: &AtomicU64,
) {
    let mut got = vec![0; 64 << 10];
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let random = u64::from_le_bytes(*expected(seed, turn * 8, 8).first_chunk().expect("eight"));
        let length = 4096 << (random % 5);
        let offset = (random >> 8) % (bytes - length) / 4096 * 4096;
        let piece = got.get_mut(..usize::try_from(length).expect("short")).expect("short");
        let begin = Instant::now();
        file.read_exact_at(piece, offset).unwrap_or_else(|error| panic!("read at {offset}: {error}"));
        longest_micros.fetch_max(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        assert!(*piece == expected(number, offset, piece.len()), "wrong bytes at {offset}");
        fadvise(file, offset, std::num::NonZeroU64::new(length), Advice::DontNeed).expect("fadvise");
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until something holds.
pub(in crate::lazy) fn until(holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "it never holds");
        std::thread::sleep(Duration::from_millis(1));
    }
}
