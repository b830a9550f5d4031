//! The image of containerd's first process in a pod: a program of two instructions that waits, and takes no more memory than it must.

use anyhow::Result;
use sampan_e2e::fixtures::{Compression, Image, ImageBuilder, Layer, TarWriter};

/// Where the kernel is to put it.
const ADDRESS: u64 = 0x40_0000;
/// Length of an ELF header and of one program header (elf(5)).
const HEADERS: u16 = 64 + 56;
/// `again: mov eax, SYS_pause; syscall; jmp again`
const CODE: [u8; 9] = [0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

pub(super) fn image() -> Result<Image> {
    let tar = TarWriter::in_memory().file("pause", 0o755, program()).into_bytes();
    Ok(ImageBuilder::new().layer(Layer::new(&tar, Compression::Gzip)?).entrypoint(&["/pause"]).build())
}

/// An executable for x86-64 with one segment.
fn program() -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let entry = ADDRESS + u64::from(HEADERS);
    let length = u64::from(HEADERS) + CODE.len() as u64;
    let half = |elf: &mut Vec<u8>, values: &[u16]| elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, values: &[u64]| elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    // ET_EXEC, EM_X86_64, EV_CURRENT; entry, program headers, section headers; flags; sizes and numbers.
    half(&mut elf, &[2, 62]);
    word(&mut elf, &[1]);
    long(&mut elf, &[entry, 64, 0]);
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 1, 0, 0, 0]);
    // PT_LOAD, readable and executable: offset, addresses, sizes, alignment.
    word(&mut elf, &[1, 5]);
    long(&mut elf, &[0, ADDRESS, ADDRESS, length, length, 0x1000]);
    elf.extend(CODE);
    elf
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_kernel_runs_it_and_it_waits() {
        let program = program();
        assert_eq!(program.len(), usize::from(HEADERS) + CODE.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pause");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        // In the system call that it was made for (proc(5), `syscall`).
        let waits =
            || fs::read_to_string(format!("/proc/{}/syscall", child.id())).is_ok_and(|line| line.starts_with("34 "));
        while !waits() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
