//! From the table's rules and a container's capabilities to a verdict for every call number.

use super::table::SYSCALLS;
use crate::capabilities::Capabilities;

/// When a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Always,
    /// With any of these capabilities.
    With(&'static [&'static str]),
    /// With `CAP_SYS_ADMIN`, or when it asks for no new namespace.
    Clone,
    /// With `CAP_SYS_ADMIN`. Its flags lie in memory, which a filter cannot read: without the capability it does not exist, so
    /// that C libraries fall back on `clone`.
    Clone3,
    /// For execution domains that change nothing dangerous.
    Personality,
    /// For any family but `AF_VSOCK`, which would reach the host of a virtual machine.
    Socket,
}

/// One call of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syscall {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    pub(super) x86_64: u16,
    pub(super) i386: u16,
    pub(super) aarch64: u16,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// EPERM.
    Refuse,
    /// ENOSYS.
    Absent,
    /// Allowed when the first argument has none of these bits.
    WithoutBits(u32),
    /// Allowed when the first argument is one of these.
    OneOf(&'static [u32]),
    /// Allowed when the first argument is not this.
    Not(u32),
}

/// The verdicts of one system call convention: from each call number on, until the next entry. Starts at 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Architecture {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    pub(super) audit: u32,
    pub(super) ranges: Vec<(u32, Verdict)>,
}

pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
pub(super) const AUDIT_I386: u32 = 0x4000_0003;
pub(super) const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (`linux/sched.h`).
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

/// PER_LINUX, PER_LINUX32, both with UNAME26, and the question what it is (`linux/personality.h`).
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `AF_VSOCK` (`linux/socket.h`).
const FAMILY_VSOCK: u32 = 40;

/// The conventions that programs of this machine may use, this program's own first. Of x86-64's x32 calls, which have
/// numbers from 0x4000_0000, none is in the table.
pub(super) fn architectures(capabilities: Capabilities) -> Vec<Architecture> {
    let of = |audit, number: fn(&Syscall) -> u16| Architecture { audit, ranges: ranges(capabilities, number) };
    if cfg!(target_arch = "aarch64") {
        return vec![of(AUDIT_AARCH64, |call| call.aarch64)];
    }
    vec![of(AUDIT_X86_64, |call| call.x86_64), of(AUDIT_I386, |call| call.i386)]
}

fn ranges(capabilities: Capabilities, number: fn(&Syscall) -> u16) -> Vec<(u32, Verdict)> {
    let known = SYSCALLS.iter().filter(|call| number(call) != u16::MAX);
    let mut verdicts: Vec<(u32, Verdict)> =
        known.map(|call| (u32::from(number(call)), verdict(call.rule, capabilities))).collect();
    verdicts.sort_unstable_by_key(|(number, _)| *number);
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |from: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((from, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in verdicts {
        if number > next {
            push(next, Verdict::Refuse);
        }
        push(number, verdict);
        next = number.saturating_add(1);
    }
    push(next, Verdict::Absent);
    ranges
}

fn verdict(rule: Rule, capabilities: Capabilities) -> Verdict {
    let administers = capabilities.has("SYS_ADMIN");
    let allowed = |yes: bool| if yes { Verdict::Allow } else { Verdict::Refuse };
    match rule {
        Rule::Always => Verdict::Allow,
        Rule::With(any) => allowed(any.iter().any(|name| capabilities.has(name))),
        Rule::Clone if !administers => Verdict::WithoutBits(NAMESPACE_FLAGS),
        Rule::Clone3 if !administers => Verdict::Absent,
        Rule::Clone | Rule::Clone3 => Verdict::Allow,
        Rule::Personality => Verdict::OneOf(&PERSONALITIES),
        Rule::Socket => Verdict::Not(FAMILY_VSOCK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_unambiguous() {
        assert!(SYSCALLS.is_sorted_by_key(|call| call.name));
        for number in [|call: &Syscall| call.x86_64, |call: &Syscall| call.i386, |call: &Syscall| call.aarch64] {
            let mut numbers: Vec<u16> = SYSCALLS.iter().map(number).filter(|number| *number != u16::MAX).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all);
        }
    }

    /// The table's numbers are those that the C library knows, where it knows them.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_are_the_kernels() {
        let number = |name: &str| SYSCALLS.iter().find(|call| call.name == name).map(|call| i64::from(call.x86_64));
        assert_eq!(number("clone3"), Some(libc::SYS_clone3));
        assert_eq!(number("execve"), Some(libc::SYS_execve));
        assert_eq!(number("futex_waitv"), Some(libc::SYS_futex_waitv));
        assert_eq!(number("mount_setattr"), Some(libc::SYS_mount_setattr));
        assert_eq!(number("keyctl"), None);
    }
}
