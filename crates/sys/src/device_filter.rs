//! Loading a device filter of cgroup v2: an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper in rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Of `linux/bpf.h`.
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// One eBPF instruction (`struct bpf_insn`): the registers are destination in the low, source in the high four bits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// The beginning of `union bpf_attr` as `BPF_PROG_LOAD` reads it.
#[repr(C)]
struct Load {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` as `BPF_PROG_ATTACH` reads it.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<A>(command: i32, attributes: &A) -> io::Result<i32> {
    // SAFETY: `attributes` is a live, fully initialised beginning of `union bpf_attr` of the size passed; the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

/// Loads a program and attaches it to a cgroup (its directory), beside those of the groups above. It stays until the group is
/// removed. The kernel verifies it.
pub fn attach(cgroup: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    let program = bpf(PROG_LOAD, &load)?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that is ours.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let number = |descriptor: i32| u32::try_from(descriptor).map_err(io::Error::other);
    let attach = Attach {
        target: number(cgroup.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(|_| ())
}
