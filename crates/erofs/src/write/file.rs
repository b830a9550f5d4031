//! How a file's extents become an index of equal chunks, as few as possible: one, where the file lies in one piece.
//!
//! A file in one piece could also be a flat inode that points into the unified address space, without any index. The
//! kernel reads that, but erofs-utils 1.5 looks for the data inside the metadata image.

use super::Fault;
use crate::layout::{BLOCK_BITS, BLOCK_BYTES, CHUNK_BITS_MAX, NULL_BLOCK};
use crate::limits::FILE_BYTES_MAX;
use crate::tree::{Device, Extent};

/// A run of blocks of a file that is one hole (device 0) or lies in one piece on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) blocks: u64,
    pub(super) device: u16,
    pub(super) device_block: u32,
}

/// How a file is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapping {
    Empty,
    /// Chunks of `1 << bits` blocks, each of them inside one run.
    Chunks {
        bits: u32,
        count: u64,
    },
}

pub(super) fn mapping(size: u64, extents: &[Extent], devices: &[Device]) -> Result<Mapping, Fault> {
    let runs = runs(size, extents, devices)?;
    let blocks = size.div_ceil(BLOCK_BYTES);
    match runs.as_slice() {
        [] => Ok(Mapping::Empty),
        [_] => Ok(chunks(blocks.next_power_of_two().trailing_zeros(), blocks)),
        [_, rest @ ..] => {
            // Every place where the mapping changes must be a boundary between chunks.
            let changes = rest.iter().fold(0, |bits, run| bits | run.first);
            Ok(chunks(changes.trailing_zeros(), blocks))
        }
    }
}

fn chunks(bits: u32, blocks: u64) -> Mapping {
    let bits = bits.min(CHUNK_BITS_MAX);
    Mapping::Chunks { bits, count: blocks.div_ceil(1 << bits) }
}

/// The chunk index of a file that [`mapping`] has accepted: device and block of each chunk.
pub(super) fn chunk_index(runs: &[Run], bits: u32) -> impl Iterator<Item = (u16, u32)> + '_ {
    runs.iter().flat_map(move |run| {
        (0..run.blocks.div_ceil(1 << bits)).map(move |chunk| match run.device {
            0 => (0, NULL_BLOCK),
            // The whole run was checked to lie on the device, whose blocks are counted in 32 bits.
            device => (device, run.device_block + ((chunk << bits) as u32)),
        })
    })
}

/// The file as runs without gaps, as few as possible.
pub(super) fn runs(size: u64, extents: &[Extent], devices: &[Device]) -> Result<Vec<Run>, Fault> {
    if size > FILE_BYTES_MAX {
        return Err(Fault::FileSize);
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut next = 0;
    for extent in extents {
        let run = run(size, extent, devices)?;
        if run.first < next {
            return Err(Fault::ExtentOrder);
        }
        if run.first > next {
            runs.push(Run { first: next, blocks: run.first - next, device: 0, device_block: 0 });
        }
        next = run.first + run.blocks;
        match runs.last_mut() {
            Some(last)
                if last.device == run.device
                    && u64::from(last.device_block) + last.blocks == u64::from(run.device_block) =>
            {
                last.blocks += run.blocks;
            }
            _ => runs.push(run),
        }
    }
    let blocks = size.div_ceil(BLOCK_BYTES);
    if next < blocks {
        runs.push(Run { first: next, blocks: blocks - next, device: 0, device_block: 0 });
    }
    Ok(runs)
}

fn run(size: u64, extent: &Extent, devices: &[Device]) -> Result<Run, Fault> {
    let end = extent.file_offset.checked_add(extent.length).ok_or(Fault::ExtentOrder)?;
    if extent.length == 0 || end > size.next_multiple_of(BLOCK_BYTES) {
        return Err(Fault::ExtentOrder);
    }
    let aligned = |offset: u64| offset.is_multiple_of(BLOCK_BYTES);
    if !aligned(extent.file_offset) || !aligned(extent.device_offset) || !(aligned(end) || end == size) {
        return Err(Fault::ExtentAlignment);
    }
    let blocks = extent.length.div_ceil(BLOCK_BYTES);
    let device_block = extent.device_offset >> BLOCK_BITS;
    let device = usize::from(extent.device).checked_sub(1).and_then(|index| devices.get(index));
    let device = device.ok_or(Fault::ExtentDevice)?;
    match u32::try_from(device_block) {
        Ok(block) if device_block + blocks <= u64::from(device.blocks) => {
            Ok(Run { first: extent.file_offset >> BLOCK_BITS, blocks, device: extent.device, device_block: block })
        }
        _ => Err(Fault::ExtentDevice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: [Device; 2] = [Device { blocks: 64, tag: Vec::new() }, Device { blocks: 64, tag: Vec::new() }];

    fn extent(file_block: u64, device: u16, device_block: u64, length: u64) -> Extent {
        Extent { file_offset: file_block * 4096, device, device_offset: device_block * 4096, length }
    }

    fn check(size: u64, extents: &[Extent], expected: Result<Mapping, Fault>) {
        assert_eq!(mapping(size, extents, &DEVICES), expected);
    }

    #[test]
    fn a_file_in_one_piece_is_one_chunk() {
        check(0, &[], Ok(Mapping::Empty));
        check(1, &[extent(0, 1, 7, 1)], Ok(Mapping::Chunks { bits: 0, count: 1 }));
        check(5000, &[extent(0, 1, 7, 5000)], Ok(Mapping::Chunks { bits: 1, count: 1 }));
        let split = [extent(0, 2, 7, 4096), extent(1, 2, 8, 904)];
        check(5000, &split, Ok(Mapping::Chunks { bits: 1, count: 1 }));
    }

    #[test]
    fn chunks_are_as_large_as_the_runs_allow() {
        check(9 << 12, &[], Ok(Mapping::Chunks { bits: 4, count: 1 }));
        check(9 << 12, &[extent(8, 1, 0, 4096)], Ok(Mapping::Chunks { bits: 3, count: 2 }));
        check(8 << 12, &[extent(0, 1, 0, 8192), extent(2, 2, 5, 8192)], Ok(Mapping::Chunks { bits: 1, count: 4 }));
        check(FILE_BYTES_MAX, &[], Ok(Mapping::Chunks { bits: 31, count: 1 << 20 }));
    }

    #[test]
    fn impossible_extents_are_refused() {
        check(FILE_BYTES_MAX + 1, &[], Err(Fault::FileSize));
        check(100, &[extent(0, 3, 0, 100)], Err(Fault::ExtentDevice));
        check(100, &[extent(0, 0, 0, 100)], Err(Fault::ExtentDevice));
        check(8192, &[extent(0, 1, 63, 8192)], Err(Fault::ExtentDevice));
        check(8192, &[extent(0, 1, 0, 100)], Err(Fault::ExtentAlignment));
        check(100, &[Extent { device_offset: 1, ..extent(0, 1, 0, 100) }], Err(Fault::ExtentAlignment));
        check(100, &[extent(1, 1, 0, 100)], Err(Fault::ExtentOrder));
        check(8192, &[extent(1, 1, 0, 4096), extent(0, 1, 1, 4096)], Err(Fault::ExtentOrder));
        check(100, &[Extent { file_offset: 4096, ..extent(0, 1, 0, u64::MAX) }], Err(Fault::ExtentOrder));
    }
}
