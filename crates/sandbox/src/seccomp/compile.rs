//! Verdicts compiled to classic BPF.
//!
//! ```text
//! load the convention ── mine? ── load the call's number ── bisect the ranges ── the range's verdict
//!                     └─ next convention …              └─ none of mine: ENOSYS
//! ```

use sampan_sys::seccomp::Instruction;

use super::profile::{Architecture, Verdict};

// Codes of `linux/bpf_common.h`, return values of `linux/seccomp.h`.
pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_BITS: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
pub(super) const ENOSYS: u32 = ERRNO | 38;

// Offsets in `struct seccomp_data`. Of the first argument the lower half: all that the kernel looks at in the calls whose
// argument is checked.
pub(super) const CALL_NUMBER: u32 = 0;
pub(super) const CONVENTION: u32 = 4;
pub(super) const FIRST_ARGUMENT: u32 = 16;

/// A program for these conventions; a call by any other does not exist.
pub(super) fn program(architectures: &[Architecture]) -> Vec<Instruction> {
    let mut code = vec![plain(LOAD, CONVENTION)];
    for architecture in architectures {
        let mut body = vec![plain(LOAD, CALL_NUMBER)];
        body.extend(search(&architecture.ranges, &|verdict| decide(*verdict)));
        code.push(branch(JUMP_EQUAL, architecture.audit, 1, 0));
        code.push(plain(JUMP, offset(body.len())));
        code.extend(body);
    }
    code.push(plain(RETURN, ENOSYS));
    code
}

/// Bisects ranges, of which the first covers everything below the second.
pub(super) fn search<V>(ranges: &[(u32, V)], decide: &impl Fn(&V) -> Vec<Instruction>) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (Some((from, _)), false) = (upper.first(), lower.is_empty()) else {
        return ranges.first().map_or_else(|| vec![plain(RETURN, ENOSYS)], |(_, verdict)| decide(verdict));
    };
    let (below, above) = (search(lower, decide), search(upper, decide));
    let mut code = match u8::try_from(below.len()) {
        Ok(far) => vec![branch(JUMP_AT_LEAST, *from, far, 0)],
        // Conditional jumps reach 255 instructions; the unconditional one reaches all.
        Err(_) => vec![branch(JUMP_AT_LEAST, *from, 0, 1), plain(JUMP, offset(below.len()))],
    };
    code.extend(below);
    code.extend(above);
    code
}

fn decide(verdict: Verdict) -> Vec<Instruction> {
    let refuse_and_allow = [plain(RETURN, EPERM), plain(RETURN, ALLOW)];
    let mut code = vec![plain(LOAD, FIRST_ARGUMENT)];
    match verdict {
        Verdict::Allow => return vec![plain(RETURN, ALLOW)],
        Verdict::Refuse => return vec![plain(RETURN, EPERM)],
        Verdict::Absent => return vec![plain(RETURN, ENOSYS)],
        Verdict::WithoutBits(bits) => code.push(branch(JUMP_BITS, bits, 0, 1)),
        Verdict::Not(value) => code.push(branch(JUMP_EQUAL, value, 0, 1)),
        Verdict::OneOf(values) => {
            // Each jumps over the rest and over the refusal.
            for (left, value) in (1..=values.len()).rev().zip(values) {
                code.push(branch(JUMP_EQUAL, *value, u8::try_from(left).unwrap_or(u8::MAX), 0));
            }
        }
    }
    code.extend(refuse_and_allow);
    code
}

pub(super) fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, operand }
}

pub(super) fn branch(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

pub(super) fn offset(instructions: usize) -> u32 {
    u32::try_from(instructions).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::profile::{AUDIT_I386, AUDIT_X86_64, architectures};
    use super::*;
    use crate::capabilities::Capabilities;
    use proptest::prelude::*;

    /// Runs a program as the kernel would; also counts instructions.
    fn run(program: &[Instruction], convention: u32, number: u32, argument: u32) -> (u32, usize) {
        let (mut place, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let Instruction { code, if_true, if_false, operand } = program[place];
            place += 1;
            steps += 1;
            let taken = match code {
                LOAD => {
                    accumulator = match operand {
                        CALL_NUMBER => number,
                        CONVENTION => convention,
                        FIRST_ARGUMENT => argument,
                        other => panic!("loads from {other}"),
                    };
                    continue;
                }
                JUMP => {
                    place += operand as usize;
                    continue;
                }
                RETURN => return (operand, steps),
                JUMP_EQUAL => accumulator == operand,
                JUMP_AT_LEAST => accumulator >= operand,
                JUMP_BITS => accumulator & operand != 0,
                other => panic!("code {other:#x}"),
            };
            place += usize::from(if taken { if_true } else { if_false });
        }
    }

    fn expected(verdict: Verdict, argument: u32) -> u32 {
        let allowed = match verdict {
            Verdict::Absent => return ENOSYS,
            Verdict::Allow => true,
            Verdict::Refuse => false,
            Verdict::WithoutBits(bits) => argument & bits == 0,
            Verdict::OneOf(values) => values.contains(&argument),
            Verdict::Not(value) => argument != value,
        };
        if allowed { ALLOW } else { EPERM }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn default_profile_is_what_the_table_says() {
        for capabilities in [Capabilities::NONE, Capabilities::runtime_default(), Capabilities::all()] {
            let architectures = architectures(capabilities);
            let code = program(&architectures);
            assert!(code.len() < 2048, "{} instructions", code.len());
            for architecture in &architectures {
                for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                    let (_, verdict) = architecture.ranges.iter().rev().find(|(from, _)| *from <= number).unwrap();
                    for argument in [0, 8, 9, 40, 0x1000_0000, 0x2_0000, u32::MAX] {
                        let (result, steps) = run(&code, architecture.audit, number, argument);
                        assert_eq!(result, expected(*verdict, argument), "call {number} with {argument:#x}");
                        assert!(steps < 24, "{steps} instructions for call {number}");
                    }
                }
            }
            assert_eq!(run(&code, 0xc000_00b7, 0, 0).0, ENOSYS, "a foreign convention");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn allows_and_refuses_what_moby_does() {
        let code = program(&architectures(Capabilities::runtime_default()));
        let x86_64 = |number: i64, argument| run(&code, AUDIT_X86_64, u32::try_from(number).unwrap(), argument).0;
        assert_eq!(x86_64(libc::SYS_read, 0), ALLOW);
        assert_eq!(x86_64(libc::SYS_chroot, 0), ALLOW, "CAP_SYS_CHROOT is in the default set");
        assert_eq!(x86_64(libc::SYS_unshare, 0x1000_0000), EPERM);
        assert_eq!(x86_64(libc::SYS_keyctl, 0), EPERM);
        assert_eq!(x86_64(libc::SYS_io_uring_setup, 0), EPERM);
        assert_eq!(x86_64(libc::SYS_clone, 0x0100_0011), ALLOW, "fork");
        assert_eq!(x86_64(libc::SYS_clone, 0x1000_0011), EPERM, "CLONE_NEWUSER");
        assert_eq!(x86_64(libc::SYS_clone3, 0), ENOSYS);
        assert_eq!(x86_64(libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(x86_64(libc::SYS_personality, 0x004_0000), EPERM, "ADDR_NO_RANDOMIZE");
        assert_eq!(x86_64(libc::SYS_socket, 2), ALLOW);
        assert_eq!(x86_64(libc::SYS_socket, 40), EPERM);
        assert_eq!(x86_64(0x4000_0000, 0), ENOSYS, "x32");
        assert_eq!(x86_64(999, 0), ENOSYS, "a call of the future");
        assert_eq!(run(&code, AUDIT_I386, 120, 0x1000_0011).0, EPERM, "clone on i386");
        assert_eq!(run(&code, AUDIT_I386, 102, 1).0, ALLOW, "socketcall on i386");
    }

    proptest! {
        #[test]
        fn any_ranges_are_found(
            starts in prop::collection::btree_set(1..100_000_u32, 0..600),
            numbers in prop::collection::vec(0..110_000_u32, 1..50),
        ) {
            let kinds = [Verdict::Allow, Verdict::Refuse, Verdict::Absent, Verdict::Not(3), Verdict::OneOf(&[1, 3])];
            let ranges: Vec<(u32, Verdict)> =
                std::iter::once(0).chain(starts).zip(kinds.into_iter().cycle()).collect();
            let code = program(&[Architecture { audit: 7, ranges: ranges.clone() }]);
            for number in numbers {
                let (_, verdict) = ranges.iter().rev().find(|(from, _)| *from <= number).unwrap();
                prop_assert_eq!(run(&code, 7, number, 3).0, expected(*verdict, 3));
            }
        }
    }
}
