//! The blob being written: sequential, 4 KiB-aligned, watching the disk.

use super::{UnpackError, UnpackJob};
use crate::limits::DISK_RESERVE_BYTES;
use crate::tree::BLOCK_BYTES;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes gathered for one `write(2)`.
const GATHER_BYTES: usize = 1 << 20;
/// Bytes written between two looks at the free space.
const DISK_CHECK_BYTES: u64 = 64 << 20;

pub(super) struct BlobWriter<'a> {
    job: &'a UnpackJob,
    file: File,
    gathered: Vec<u8>,
    /// Bytes of the blob so far, gathered ones included.
    position: u64,
    next_check: u64,
}

impl<'a> BlobWriter<'a> {
    pub(super) fn create(job: &'a UnpackJob) -> Result<Self, UnpackError> {
        let file = File::options().write(true).create_new(true).mode(0o400).open(&job.blob);
        let file = file.map_err(|error| failed(job, error))?;
        let gathered = Vec::with_capacity(GATHER_BYTES);
        Ok(Self { job, file, gathered, position: 0, next_check: 0 })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        self.position += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = GATHER_BYTES - self.gathered.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == GATHER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Zeros up to `position`, which lies less than two blocks ahead.
    pub(super) fn pad_to(&mut self, position: u64) -> Result<(), UnpackError> {
        const ZEROS: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];
        let missing = position.saturating_sub(self.position) as usize;
        self.append(ZEROS.get(..missing).unwrap_or(&ZEROS))
    }

    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        self.flush()
    }

    fn flush(&mut self) -> Result<(), UnpackError> {
        if self.position >= self.next_check {
            self.next_check = self.position + DISK_CHECK_BYTES;
            let free = crate::disk::free_bytes(&self.file).map_err(|error| failed(self.job, error))?;
            if free < DISK_RESERVE_BYTES {
                return Err(failed(self.job, ErrorKind::StorageFull.into()));
            }
        }
        self.file.write_all(&self.gathered).map_err(|error| failed(self.job, error))?;
        self.gathered.clear();
        Ok(())
    }
}

/// Says of a full disk that it is full, and of anything else what the kernel says.
fn failed(job: &UnpackJob, source: std::io::Error) -> UnpackError {
    let path = job.blob.clone();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            UnpackError::DiskFull { layer: job.digest, path: path.parent().unwrap_or(&path).to_owned() }
        }
        _ => UnpackError::Write { path, source },
    }
}
