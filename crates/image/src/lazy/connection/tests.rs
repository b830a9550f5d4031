//! Real FUSE, real loop devices, real EROFS mounts, and servers that are really killed. Needs root and Linux 6.9.

mod server;
pub(in crate::lazy) mod stage;

use super::*;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sampan_sys::keeper::KeptDescriptors;
use sampan_sys::socket;

pub(in crate::lazy) use stage::{Pattern, Stage, expected};

/// A kept connection and what is served over it.
pub(in crate::lazy) fn open(kept: &KeptDescriptors, root: &Path) -> (OwnedFd, LazyFiles) {
    let (ours, theirs) = socket::pair().expect("a pair");
    kept.hand_down(ours.as_fd()).expect("hand down");
    let keeper = DescriptorKeeper::open(theirs).expect("a keeper");
    (ours, LazyFiles::open(&keeper, root, 3).expect("needs root and Linux 6.9"))
}

#[test]
fn what_is_here_and_what_comes_later_is_read_alike() {
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    assert!(!files.is_inherited());
    let pattern = Pattern::new(7, 3 << 20, Duration::from_millis(1));
    let file = files.add(7, &pattern.file()).expect("add");
    files.resume().expect("resume");
    assert_eq!(file.metadata().expect("attributes").len(), 3 << 20);
    let mut bytes = vec![0; 3 << 20];
    for round in 0..2 {
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes == expected(7, 0, 3 << 20), "wrong bytes in round {round}");
    }
    assert_eq!(file.read_at(&mut bytes, 3 << 20).expect("read at the end"), 0);
    assert_eq!(file.read_at(&mut bytes, (3 << 20) - 100).expect("read over the end"), 100);
    files.add(1, &pattern.file()).expect_err("the root's number");
    fuse::open_file(files.mount.as_fd(), &files.directory.name(8)).expect_err("nobody serves it");
    files.remove(7);
    let error = files.add(7, &pattern.file()).expect("again").read_exact_at(&mut bytes, 0);
    error.expect("it is served again");
}

#[test]
fn an_error_of_the_fetching_side_is_the_readers_and_a_forgotten_answer_is_one() {
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    struct Refuses(Result<(), Option<Errno>>);
    impl PartialFile for Refuses {
        fn bytes(&self) -> u64 {
            1 << 20
        }
        fn read_present(&self, _offset: u64, _into: &mut [u8]) -> io::Result<Option<usize>> {
            Ok(None)
        }
        fn want(&self, _offset: u64, _bytes: u32, answer: crate::lazy::partial_file::Answer) {
            match self.0 {
                Ok(()) => answer(Ok(())),
                Err(Some(errno)) => answer(Err(errno)),
                Err(None) => drop(answer),
            }
        }
    }
    for (number, outcome, seen) in
        [(2, Err(Some(Errno::NOSPC)), Errno::NOSPC), (3, Err(None), Errno::IO), (4, Ok(()), Errno::IO)]
    {
        let file: Arc<dyn PartialFile> = Arc::new(Refuses(outcome));
        let error = files.add(number, &file).expect("add").read_at(&mut [0; 10], 0).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(seen.raw_os_error()));
    }
}

#[test]
fn a_reader_waits_for_the_next_service() {
    let (root, mut kept) = (tempfile::tempdir().expect("a folder"), KeptDescriptors::default());
    let (parent, files) = open(&kept, root.path());
    kept.drain(parent.as_fd()).expect("drain");
    // Its fetches never end.
    let stuck = Pattern::new(9, 1 << 20, Duration::MAX);
    let file = files.add(9, &stuck.file()).expect("add");
    files.resume().expect("resume");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = vec![0; 8192];
            file.read_exact_at(&mut bytes, 4096).map(|()| bytes)
        });
        stuck.wait_until_asked();
        drop(files);
        assert!(!reader.is_finished());
        let (_parent, next) = open(&kept, root.path());
        assert!(next.is_inherited());
        // Asked before the file is known, a read waits for it.
        let again = scope.spawn(|| file.read_at(&mut [0; 1], 500_000));
        let works = Pattern::new(9, 1 << 20, Duration::ZERO);
        next.add(9, &works.file()).expect("add");
        next.resume().expect("resume");
        assert!(reader.join().expect("no panic").expect("read") == expected(9, 4096, 8192));
        assert_eq!(again.join().expect("no panic").expect("read"), 1);
        assert!(next.resent() > 0);
    });
}

#[test]
fn killed_readers_go_at_once() {
    let root = tempfile::tempdir().expect("a folder");
    let (_parent, files) = open(&KeptDescriptors::default(), root.path());
    let stuck = Pattern::new(5, 1 << 20, Duration::MAX);
    let stage = Stage::new(&files, &stuck, root.path());
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&stage.file));
    let mut reader =
        Command::new("cat").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start cat");
    stuck.wait_until_asked();
    reader.kill().expect("kill");
    let begin = Instant::now();
    reader.wait().expect("wait");
    assert!(begin.elapsed() < Duration::from_secs(1), "it stayed for {:?}", begin.elapsed());
    // Its page is still to come; the mount cannot go before.
    stuck.fail_all();
}

/// Moving a device waits for reads that the killed server had to answer; its successor answers them, and both go on.
#[test]
fn a_server_killed_while_it_moves_a_device_holds_nobody_up() {
    const BYTES: u64 = 1 << 20;
    let (root, mut kept) = (tempfile::tempdir().expect("a folder"), KeptDescriptors::default());
    drop(stage::local_copy(11, BYTES, root.path()));
    let mut stuck = server::Server::start_stuck(&kept, root.path(), BYTES, &root.path().join("local"));
    let stage = Stage::over(&stuck.device(root.path()), 11, BYTES, root.path());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = vec![0; 8192];
            stage.file.read_exact_at(&mut bytes, 4096).map(|()| bytes)
        });
        stuck.wait_until_stuck();
        stuck.kill_stuck(&mut kept);
        assert!(!reader.is_finished());
        let mut next = server::Server::start(&kept, root.path(), BYTES);
        assert!(next.was_asked_again());
        assert!(reader.join().expect("no panic").expect("read") == expected(11, 4096, 8192));
        stuck.wait_until_gone();
        stage.check_whole(11, BYTES);
        next.kill(&mut kept);
    });
}

/// Eight readers compare everything while the server is killed again and again; then everybody who holds the connection is,
/// and a new one takes over; then the file is complete.
#[test]
fn readers_outlive_their_servers() {
    const BYTES: u64 = 64 << 20;
    let (root, mut kept) = (tempfile::tempdir().expect("a folder"), KeptDescriptors::default());
    let mut server = server::Server::start(&kept, root.path(), BYTES);
    let stage = Stage::over(&server.device(root.path()), 11, BYTES, root.path());
    let (stop, reads, stalls) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut taken_over = 0;
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (file, stop, reads, stalls) = (&stage.file, &stop, &reads, &stalls);
            scope.spawn(move || stage::read_at_random(file, (11, BYTES), seed, stop, reads, stalls));
        }
        let stopping = stage::SetOnDrop(&stop);
        for _round in 0..12 {
            let before = reads.load(Ordering::Relaxed);
            stage::until(|| reads.load(Ordering::Relaxed) > before + 200);
            server.kill(&mut kept);
            server = server::Server::start(&kept, root.path(), BYTES);
            taken_over += u32::from(server.was_asked_again());
        }
        drop(stopping);
    });
    assert!(taken_over >= 6, "only {taken_over} of 12 kills found a request under way");
    let longest = Duration::from_micros(stalls.load(Ordering::Relaxed));
    eprintln!("{} reads, the longest {longest:?}; {taken_over} of 12 kills under way", reads.load(Ordering::Relaxed));

    // Nobody holds the connection any more.
    server.kill(&mut kept);
    drop(std::mem::take(&mut kept));
    stage.forget_pages();
    let error = stage.file.read_at(&mut [0; 4096], 0).expect_err("the connection is gone");
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    let (_parent, files) = open(&kept, root.path());
    assert_eq!(files.survivors().expect("look"), [11]);
    let pattern = Pattern::new(11, BYTES, Duration::ZERO);
    let device = stage::attach(&files, &pattern);
    assert_eq!(device.path(), stage.device, "the device that is mounted goes on");
    stage.check_whole(11, BYTES);

    let local = stage::local_copy(11, BYTES, root.path());
    let switched = crate::lazy::device::switch_devices(&files, 11, &local).expect("switch");
    assert_eq!(switched.len(), 1);
    assert!(files.survivors().expect("look").is_empty());
    files.remove(11);
    drop((files, pattern, device, switched));
    stage.forget_pages();
    stage.check_whole(11, BYTES);
}
