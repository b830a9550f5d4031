//! Installing compiled seccomp filters.
//!
//! A filter is classic BPF (`linux/filter.h`) over `struct seccomp_data`; who compiles it is not this crate's matter.
#![allow(unsafe_code, reason = "seccomp(2) has no safe wrapper in rustix")]

use std::io;

/// One instruction of a classic BPF program (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub operand: u32,
}

impl Instruction {
    /// The eight bytes of an instruction, little-endian, as it travels between our processes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [code_low, code_high] = self.code.to_le_bytes();
        let [a, b, c, d] = self.operand.to_le_bytes();
        [code_low, code_high, self.if_true, self.if_false, a, b, c, d]
    }

    /// The inverse of [`Instruction::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [code_low, code_high, if_true, if_false, a, b, c, d] = bytes;
        Self {
            code: u16::from_le_bytes([code_low, code_high]),
            if_true,
            if_false,
            operand: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// Binds this thread, and every program it becomes, to the filter (`seccomp(2)`, `SECCOMP_SET_MODE_FILTER`).
///
/// Needs no-new-privileges, or `CAP_SYS_ADMIN` in the process' user namespace. The kernel checks the program.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let Ok(length) = u16::try_from(program.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let descriptor = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast::<libc::sock_filter>() };
    // SAFETY: `descriptor` names `length` live instructions of `struct sock_filter`'s layout; the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_u32, &raw const descriptor) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
