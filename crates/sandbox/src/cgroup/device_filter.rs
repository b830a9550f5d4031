//! The device allow-list on cgroup v2, where it is a BPF program instead of a file.
//!
//! The program is given `struct bpf_cgroup_dev_ctx` (`linux/bpf.h`): what is wanted and of which kind of device, its major and
//! its minor number. It answers 1 for yes and 0 for no, by the same list as on v1.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use sampan_sys::device_filter::{Instruction, attach as attach_program};

use crate::devices::{self, DeviceNode};

// Registers: the answer, the context, and what is read from it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Codes of `linux/bpf.h`.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP_IF_BITS: u8 = 0x45;
const EXIT: u8 = 0x95;

const ACCESS_MAKE_NODE: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;

/// `/dev/ptmx`, and the major number of pseudo terminals.
const PTMX: (u32, Option<u32>) = (5, Some(2));
const PSEUDO_TERMINALS: (u32, Option<u32>) = (136, None);

/// Attaches the allow-list to the group's directory.
pub(super) fn attach(directory: &Path, further: &[DeviceNode]) -> io::Result<()> {
    let group = sampan_sys::mount::open_directory(rustix::fs::CWD, &directory.to_string_lossy())?;
    // The kernel wants the directory itself, not a mere place in the tree.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let group = rustix::fs::openat(&group, ".", flags, rustix::fs::Mode::empty())?;
    attach_program(group.as_fd(), &program(further))
}

fn program(further: &[DeviceNode]) -> Vec<Instruction> {
    let mut code = vec![
        load(KIND, 0),
        registers(COPY, ACCESS, KIND),
        immediate(AND, KIND, 0xffff, 0),
        immediate(SHIFT_RIGHT, ACCESS, 16, 0),
        load(MAJOR, 4),
        load(MINOR, 8),
        // Making any node is allowed: it cannot be opened.
        immediate(JUMP_IF_NOT, ACCESS, ACCESS_MAKE_NODE, 2),
        immediate(SET, ANSWER, 1, 0),
        immediate(EXIT, 0, 0, 0),
    ];
    for node in further {
        code.extend(given(node));
    }
    code.extend([
        immediate(JUMP_IF_EQUAL, KIND, KIND_CHARACTER, 2),
        immediate(SET, ANSWER, 0, 0),
        immediate(EXIT, 0, 0, 0),
    ]);
    let nodes = devices::NODES.iter().map(|(_, major, minor)| (*major, Some(*minor)));
    for (major, minor) in nodes.chain([PTMX, PSEUDO_TERMINALS]) {
        // Each rule: skip it unless it matches, else answer yes.
        match minor {
            Some(minor) => {
                code.push(immediate(JUMP_IF_NOT, MAJOR, major.cast_signed(), 3));
                code.push(immediate(JUMP_IF_NOT, MINOR, minor.cast_signed(), 2));
            }
            None => code.push(immediate(JUMP_IF_NOT, MAJOR, major.cast_signed(), 2)),
        }
        code.extend([immediate(SET, ANSWER, 1, 0), immediate(EXIT, 0, 0, 0)]);
    }
    code.extend([immediate(SET, ANSWER, 0, 0), immediate(EXIT, 0, 0, 0)]);
    code
}

/// One device more, with the accesses that its permissions name: yes when it is that one and nothing else is wanted.
fn given(node: &DeviceNode) -> [Instruction; 6] {
    let kind = if node.block { KIND_BLOCK } else { KIND_CHARACTER };
    let access = |letter: char, bit: i32| if node.permissions.contains(letter) { bit } else { 0 };
    let forbidden = !(access('r', ACCESS_READ) | access('w', ACCESS_WRITE) | ACCESS_MAKE_NODE);
    [
        immediate(JUMP_IF_NOT, KIND, kind, 5),
        immediate(JUMP_IF_NOT, MAJOR, node.major.cast_signed(), 4),
        immediate(JUMP_IF_NOT, MINOR, node.minor.cast_signed(), 3),
        immediate(JUMP_IF_BITS, ACCESS, forbidden, 2),
        immediate(SET, ANSWER, 1, 0),
        immediate(EXIT, 0, 0, 0),
    ]
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: CONTEXT << 4 | to, offset, immediate: 0 }
}

fn registers(code: u8, to: u8, from: u8) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset: 0, immediate: 0 }
}

fn immediate(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}
