//! Reads a whole tree in one of several ways and says how long it took: nanoseconds, files, bytes.
//!
//! - `read`: every regular file from first to last byte, directories in the order of their names.
//! - `find`: the type and size of every entry, nothing else.
//! - `mmap`: single bytes of pages that a fixed seed picks, in many files mapped at once.
//!
//! The tree's /proc, /sys and /dev are left out, as is what an instance has mounted elsewhere. Directories tell, because
//! overlayfs gives files the device numbers of their layers.

use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const BUFFER_BYTES: usize = 128 << 10;
const PAGE_BYTES: u64 = 4096;
/// Smaller files are not mapped.
const MAPPED_BYTES_MIN: u64 = 64 << 10;
/// So many at once, well below the usual limit of open files.
const MAPPED_FILES_MAX: usize = 512;
const TOUCHES: u64 = 10_000;
/// What an instance has of its own there.
const LEFT_OUT: [&str; 3] = ["./proc", "./sys", "./dev"];
const SEED: u64 = 0x5eed_0fa5_a3ba_9001;

#[derive(Default)]
struct Count {
    files: u64,
    bytes: u64,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(mode), Some(root)) = (arguments.next(), arguments.next()) else { bail!("usage: tree-reader MODE ROOT") };
    // Paths are short then, and the way to the tree costs nothing.
    std::env::set_current_dir(&root).with_context(|| format!("enter {}", Path::new(&root).display()))?;
    let (begin, count) = match mode.to_str() {
        Some("read") => (Instant::now(), read_all()?),
        Some("find") => (Instant::now(), find_all()?),
        Some("mmap") => {
            let files = files_to_map()?;
            (Instant::now(), touch(&files)?)
        }
        _ => bail!("MODE is read, find or mmap"),
    };
    let taken = begin.elapsed().as_nanos();
    writeln!(std::io::stdout().lock(), "{taken} {} {}", count.files, count.bytes)?;
    Ok(())
}

fn read_all() -> Result<Count> {
    let mut count = Count::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    walk(|path, metadata| {
        if metadata.is_file() {
            count.files += 1;
            let mut file = File::open(path)?;
            loop {
                let length = file.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                count.bytes += length as u64;
            }
        }
        Ok(())
    })?;
    Ok(count)
}

fn find_all() -> Result<Count> {
    let mut count = Count::default();
    walk(|_path, metadata| {
        count.files += 1;
        count.bytes += if metadata.is_file() { metadata.len() } else { 0 };
        Ok(())
    })?;
    Ok(count)
}

fn files_to_map() -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    walk(|path, metadata| {
        if metadata.is_file() && metadata.len() >= MAPPED_BYTES_MIN {
            files.push((path.to_owned(), metadata.len()));
        }
        Ok(())
    })?;
    let step = files.len().div_ceil(MAPPED_FILES_MAX).max(1);
    Ok(files.into_iter().step_by(step).collect())
}

/// Maps all the files, then reads one byte of random pages, chosen evenly among the pages of all.
fn touch(files: &[(PathBuf, u64)]) -> Result<Count> {
    let mut regions = Vec::new();
    let mut first_pages = Vec::new();
    let mut pages = 0;
    for (path, length) in files {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let (protection, flags) = (ProtFlags::READ.bits().cast_signed(), MapFlags::PRIVATE.bits().cast_signed());
        let offset = Some(FileOffset::new(file, 0));
        let region: MmapRegion = MmapRegion::build(offset, usize::try_from(*length)?, protection, flags)
            .with_context(|| format!("map {}", path.display()))?;
        regions.push(region);
        first_pages.push(pages);
        pages += length.div_ceil(PAGE_BYTES);
    }
    let mut random = SEED;
    let mut count = Count::default();
    for _ in 0..TOUCHES {
        // xorshift64 (Marsaglia 2003): the order need only be the same for everybody.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let page = random % pages.max(1);
        let nth = first_pages.partition_point(|&first| first <= page).saturating_sub(1);
        let (Some(region), Some(first)) = (regions.get(nth), first_pages.get(nth)) else {
            bail!("there is no file to map")
        };
        let mut byte = [0];
        region.as_volatile_slice().read_slice(&mut byte, usize::try_from((page - first) * PAGE_BYTES)?)?;
        count.files += 1;
        count.bytes += u64::from(byte[0]);
    }
    Ok(count)
}

/// Visits everything below the current directory, a directory before what is in it.
fn walk(mut visit: impl FnMut(&Path, &Metadata) -> Result<()>) -> Result<()> {
    let device = fs::metadata(".")?.dev();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(directory) = pending.pop() {
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            names.push(entry?.file_name());
        }
        names.sort_unstable();
        let mut below = Vec::new();
        for name in names {
            let path = directory.join(name);
            let metadata = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
            if metadata.is_dir()
                && (metadata.dev() != device || LEFT_OUT.iter().any(|left_out| path == Path::new(left_out)))
            {
                continue;
            }
            visit(&path, &metadata).with_context(|| format!("read {}", path.display()))?;
            if metadata.is_dir() {
                below.push(path);
            }
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(())
}
