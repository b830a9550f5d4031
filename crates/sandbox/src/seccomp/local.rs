//! Profiles in docker's JSON (moby/profiles `seccomp/seccomp.go`; the OCI's `linux.seccomp` is a part of it), compiled.
//!
//! The first rule that fits a call decides, the profile's default otherwise; rules about calls that this machine does not
//! have say nothing. Of several conditions on one argument any has to hold, as runc has it; on different ones all. A system
//! call convention that the profile does not name does not exist (ENOSYS), nor do x32's calls.
//!
//! The JSON may be anybody's: its size, the rules and the program are bounded, and nothing panics on any of it.

use std::collections::BTreeMap;

use sampan_sys::seccomp::Instruction;
use serde::Deserialize;

use super::compile::{
    ALLOW, CALL_NUMBER, CONVENTION, ENOSYS, ERRNO, FIRST_ARGUMENT, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RETURN,
    branch, offset, plain, search,
};
use super::others::OTHERS;
use super::profile::{AUDIT_AARCH64, AUDIT_I386, AUDIT_X86_64};
use super::table::SYSCALLS;
use crate::capabilities::Capabilities;
use crate::error::SandboxError;
use crate::limits::PROFILE_BYTES_MAX;

// Codes of `linux/bpf_common.h`, return values of `linux/seccomp.h`.
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_ABOVE: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;
/// The largest errno (`MAX_ERRNO`).
const ERRNO_MAX: u32 = 4095;
/// Where the numbers of x32's calls begin.
const X32_CALLS: u32 = 0x4000_0000;
/// Arguments of a call.
const ARGUMENTS: u32 = 6;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
enum ProfileError {
    #[error("it has {bytes} bytes, more than {PROFILE_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("it is not a profile in JSON ({0})")]
    Json(#[from] serde_json::Error),
    #[error("{what} {value:?} is not known")]
    Unknown { what: &'static str, value: String },
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    #[error("it needs {instructions} instructions, more than the kernel's {INSTRUCTIONS_MAX}")]
    TooLong { instructions: usize },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchitectureMap>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// With these bits only.
    Masked(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Check {
    index: u32,
    comparison: Comparison,
    value: u64,
}

/// What becomes of a call: the first that fits, with all its checks.
type Decision = Vec<(Vec<Check>, u32)>;

/// One system call convention: from each call number on, until the next entry. Starts at 0.
#[derive(Debug)]
struct Convention {
    audit: u32,
    ranges: Vec<(u32, Decision)>,
}

/// Compiles a profile for a container with these capabilities: eight bytes an instruction.
pub(crate) fn from_json(json: &[u8], capabilities: Capabilities) -> Result<Vec<u8>, SandboxError> {
    let invalid = |error: ProfileError| SandboxError::Invalid { why: format!("the seccomp profile: {error}") };
    let program = read(json, capabilities, kernel_version()).and_then(|conventions| compile(&conventions));
    Ok(program.map_err(invalid)?.into_iter().flat_map(Instruction::to_bytes).collect())
}

/// Entry point for fuzzing.
pub fn exercise(bytes: &[u8]) {
    if let Ok(conventions) = read(bytes, Capabilities::runtime_default(), (6, 1)) {
        std::hint::black_box(compile(&conventions).is_ok());
    }
}

fn kernel_version() -> (u32, u32) {
    parse_version(&rustix::system::uname().release().to_string_lossy()).unwrap_or((0, 0))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read(json: &[u8], capabilities: Capabilities, kernel: (u32, u32)) -> Result<Vec<Convention>, ProfileError> {
    if json.len() > PROFILE_BYTES_MAX {
        return Err(ProfileError::TooLarge { bytes: json.len() });
    }
    let profile: Profile = serde_json::from_slice(json)?;
    if profile.listener_path.as_ref().is_some_and(|path| !path.is_empty()) {
        return Err(ProfileError::Unsupported { what: "listenerPath" });
    }
    for flag in profile.flags.iter().flatten() {
        // All three only tell more, or protect less against what the kernel protects against elsewhere by now.
        let known = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
        if !known.contains(&flag.as_str()) {
            return Err(ProfileError::Unknown { what: "flag", value: flag.clone() });
        }
    }
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut rules = Vec::new();
    for rule in profile.syscalls.iter().flatten() {
        if applies(rule, capabilities, kernel)? {
            rules.push((rule, action(&rule.action, rule.errno_ret)?, checks(rule)?));
        }
    }
    let convention = |(audit, numbers): (u32, fn(&str) -> Option<u32>)| {
        let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
        for (rule, action, alternatives) in &rules {
            for name in rule.name.iter().chain(rule.names.iter().flatten()) {
                let Some(number) = numbers(name) else { continue };
                let decision = calls.entry(number).or_default();
                for checks in alternatives {
                    if decision.last().is_none_or(|(checks, _)| !checks.is_empty()) {
                        decision.push((checks.clone(), *action));
                    }
                }
            }
        }
        Convention { audit, ranges: ranges(calls, default, audit) }
    };
    Ok(conventions(&profile)?.into_iter().map(convention).collect())
}

/// Calls with the same fate beside each other become one range; whatever the profile does not name has its default.
fn ranges(calls: BTreeMap<u32, Decision>, default: u32, audit: u32) -> Vec<(u32, Decision)> {
    let default_decision: Decision = vec![(Vec::new(), default)];
    let mut ranges: Vec<(u32, Decision)> = Vec::new();
    let mut push = |from: u32, decision: Decision| {
        if ranges.last().is_none_or(|(_, last)| *last != decision) {
            ranges.push((from, decision));
        }
    };
    let mut next = 0_u32;
    for (number, mut decision) in calls {
        if number > next {
            push(next, default_decision.clone());
        }
        if decision.last().is_none_or(|(checks, _)| !checks.is_empty()) {
            decision.push((Vec::new(), default));
        }
        push(number, decision);
        next = number.saturating_add(1);
    }
    push(next, default_decision);
    if audit == AUDIT_X86_64 {
        push(X32_CALLS, vec![(Vec::new(), ENOSYS)]);
    }
    ranges
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, ProfileError> {
    let data = errno.unwrap_or(1).min(ERRNO_MAX);
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_TRACE" => TRACE | data,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_NOTIFY" => return Err(ProfileError::Unsupported { what: "SCMP_ACT_NOTIFY" }),
        other => return Err(ProfileError::Unknown { what: "action", value: other.to_owned() }),
    })
}

/// A rule's conditions, as alternatives of checks that have to hold together.
fn checks(rule: &Rule) -> Result<Vec<Vec<Check>>, ProfileError> {
    let mut checks = Vec::new();
    for argument in rule.args.iter().flatten() {
        if argument.index >= ARGUMENTS {
            return Err(ProfileError::Unknown { what: "argument", value: argument.index.to_string() });
        }
        let (comparison, value) = match argument.op.as_str() {
            "SCMP_CMP_EQ" => (Comparison::Equal, argument.value),
            "SCMP_CMP_NE" => (Comparison::NotEqual, argument.value),
            "SCMP_CMP_LT" => (Comparison::Less, argument.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, argument.value),
            "SCMP_CMP_GT" => (Comparison::Greater, argument.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, argument.value),
            "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(argument.value), argument.value_two),
            other => return Err(ProfileError::Unknown { what: "comparison", value: other.to_owned() }),
        };
        checks.push(Check { index: argument.index, comparison, value });
    }
    let mut indexes: Vec<u32> = checks.iter().map(|check| check.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    if indexes.len() == checks.len() {
        Ok(vec![checks])
    } else {
        Ok(checks.into_iter().map(|check| vec![check]).collect())
    }
}

/// Whether a rule is meant for this machine and these capabilities.
fn applies(rule: &Rule, capabilities: Capabilities, kernel: (u32, u32)) -> Result<bool, ProfileError> {
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let is_here = |arches: &Vec<String>| arches.iter().any(|arch| arch == here);
    let reached = |version: &String| {
        let unknown = || ProfileError::Unknown { what: "kernel version", value: version.clone() };
        parse_version(version).map(|version| kernel >= version).ok_or_else(unknown)
    };
    if let Some(wanted) = &rule.includes {
        let caps = wanted.caps.as_ref().is_none_or(|caps| caps.iter().all(|name| capabilities.has(name)));
        let arches = wanted.arches.as_ref().filter(|arches| !arches.is_empty()).is_none_or(is_here);
        let version = wanted.min_kernel.as_ref().filter(|version| !version.is_empty()).map(reached).transpose()?;
        if !caps || !arches || version == Some(false) {
            return Ok(false);
        }
    }
    if let Some(unwanted) = &rule.excludes {
        let caps = unwanted.caps.as_ref().is_some_and(|caps| caps.iter().any(|name| capabilities.has(name)));
        let arches = unwanted.arches.as_ref().is_some_and(is_here);
        let version = unwanted.min_kernel.as_ref().filter(|version| !version.is_empty()).map(reached).transpose()?;
        if caps || arches || version == Some(true) {
            return Ok(false);
        }
    }
    Ok(true)
}

type Numbers = fn(&str) -> Option<u32>;

/// The conventions that the profile names and this machine has, its own first.
fn conventions(profile: &Profile) -> Result<Vec<(u32, Numbers)>, ProfileError> {
    let native = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    let mut named: Vec<&str> = profile.architectures.iter().flatten().map(String::as_str).collect();
    for map in profile.arch_map.iter().flatten().filter(|map| map.architecture == native) {
        named.extend(map.sub_architectures.iter().flatten().map(String::as_str));
    }
    if let Some(unknown) = named.iter().find(|name| !name.starts_with("SCMP_ARCH_")) {
        return Err(ProfileError::Unknown { what: "architecture", value: (*unknown).to_owned() });
    }
    if cfg!(target_arch = "aarch64") {
        return Ok(vec![(AUDIT_AARCH64, |name| number(name, 2))]);
    }
    let mut conventions: Vec<(u32, Numbers)> = vec![(AUDIT_X86_64, |name| number(name, 0))];
    if named.contains(&"SCMP_ARCH_X86") {
        conventions.push((AUDIT_I386, |name| number(name, 1)));
    }
    Ok(conventions)
}

/// The number of a call on x86-64, i386 and arm64.
fn number(name: &str, convention: usize) -> Option<u32> {
    let numbers = match SYSCALLS.binary_search_by(|call| call.name.cmp(name)) {
        Ok(place) => SYSCALLS.get(place).map(|call| [call.x86_64, call.i386, call.aarch64]),
        Err(_) => OTHERS.iter().find(|(other, ..)| *other == name).map(|(_, a, b, c)| [*a, *b, *c]),
    };
    let number = numbers.and_then(|numbers| numbers.get(convention).copied())?;
    (number != u16::MAX).then_some(u32::from(number))
}

fn compile(conventions: &[Convention]) -> Result<Vec<Instruction>, ProfileError> {
    let mut code = vec![plain(LOAD, CONVENTION)];
    for convention in conventions {
        let mut body = vec![plain(LOAD, CALL_NUMBER)];
        body.extend(search(&convention.ranges, &decide));
        code.push(branch(JUMP_EQUAL, convention.audit, 1, 0));
        code.push(plain(JUMP, offset(body.len())));
        code.extend(body);
        if code.len() > INSTRUCTIONS_MAX {
            return Err(ProfileError::TooLong { instructions: code.len() });
        }
    }
    code.push(plain(RETURN, ENOSYS));
    if code.len() > INSTRUCTIONS_MAX { Err(ProfileError::TooLong { instructions: code.len() }) } else { Ok(code) }
}

/// One alternative after the other; the last has no checks. What exceeds the kernel's limit anyway is not made.
fn decide(decision: &Decision) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (checks, action) in decision {
        let mut body: Vec<Step> = checks.iter().flat_map(|check| steps(*check)).collect();
        body.push(Step::plain(RETURN, *action));
        let length = body.len();
        code.extend(body.into_iter().enumerate().map(|(place, step)| step.resolve(length.saturating_sub(place + 1))));
        if code.len() > INSTRUCTIONS_MAX {
            break;
        }
    }
    code
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum Way {
    Over(u8),
    /// To the next alternative.
    Fail,
}

#[derive(Clone, Copy)]
struct Step {
    code: u16,
    operand: u32,
    if_true: Way,
    if_false: Way,
}

impl Step {
    fn plain(code: u16, operand: u32) -> Self {
        Self { code, operand, if_true: Way::Over(0), if_false: Way::Over(0) }
    }

    fn jump(code: u16, operand: u32, if_true: Way, if_false: Way) -> Self {
        Self { code, operand, if_true, if_false }
    }

    /// `left` instructions lie between this one and the next alternative: never more than six checks have.
    fn resolve(self, left: usize) -> Instruction {
        let way = |way: Way| match way {
            Way::Over(instructions) => instructions,
            Way::Fail => u8::try_from(left).unwrap_or(u8::MAX),
        };
        branch(self.code, self.operand, way(self.if_true), way(self.if_false))
    }
}

/// A check of 64 bits by an accumulator of 32: the upper half first.
fn steps(check: Check) -> Vec<Step> {
    use Way::{Fail, Over};
    let low_at = FIRST_ARGUMENT + 8 * check.index.min(ARGUMENTS - 1);
    let (load_high, load_low) = (Step::plain(LOAD, low_at + 4), Step::plain(LOAD, low_at));
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let (high, low) = halves(check.value);
    let equal = |half: u32, if_true, if_false| Step::jump(JUMP_EQUAL, half, if_true, if_false);
    let above = |half: u32, if_true, if_false| Step::jump(JUMP_ABOVE, half, if_true, if_false);
    let at_least = |half: u32, if_true, if_false| Step::jump(JUMP_AT_LEAST, half, if_true, if_false);
    match check.comparison {
        Comparison::Equal => vec![load_high, equal(high, Over(0), Fail), load_low, equal(low, Over(0), Fail)],
        Comparison::NotEqual => vec![load_high, equal(high, Over(0), Over(2)), load_low, equal(low, Fail, Over(0))],
        Comparison::Greater | Comparison::GreaterOrEqual => {
            let last = if check.comparison == Comparison::Greater { above } else { at_least };
            let higher = above(high, Over(3), Over(0));
            vec![load_high, higher, equal(high, Over(0), Fail), load_low, last(low, Over(0), Fail)]
        }
        Comparison::Less | Comparison::LessOrEqual => {
            let last = if check.comparison == Comparison::Less { at_least } else { above };
            let higher = above(high, Fail, Over(0));
            vec![load_high, higher, equal(high, Over(0), Over(2)), load_low, last(low, Fail, Over(0))]
        }
        Comparison::Masked(mask) => {
            let (mask_high, mask_low) = halves(mask);
            let (high, low) = (equal(high, Over(0), Fail), equal(low, Over(0), Fail));
            vec![load_high, Step::plain(AND, mask_high), high, load_low, Step::plain(AND, mask_low), low]
        }
    }
}

#[cfg(test)]
mod tests;
