//! Compiled profiles run as the kernel would run them, against the rules read plainly.

use proptest::prelude::*;

use super::*;

/// Runs a program as the kernel would.
fn run(program: &[Instruction], convention: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let (mut place, mut accumulator) = (0, 0_u32);
    loop {
        let Instruction { code, if_true, if_false, operand } = program[place];
        place += 1;
        let taken = match code {
            LOAD => {
                accumulator = match operand {
                    CALL_NUMBER => number,
                    CONVENTION => convention,
                    at => {
                        let argument = arguments[((at - FIRST_ARGUMENT) / 8) as usize];
                        if (at - FIRST_ARGUMENT) % 8 == 4 { (argument >> 32) as u32 } else { argument as u32 }
                    }
                };
                continue;
            }
            AND => {
                accumulator &= operand;
                continue;
            }
            JUMP => {
                place += operand as usize;
                continue;
            }
            RETURN => return operand,
            JUMP_EQUAL => accumulator == operand,
            JUMP_AT_LEAST => accumulator >= operand,
            JUMP_ABOVE => accumulator > operand,
            other => panic!("code {other:#x}"),
        };
        place += usize::from(if taken { if_true } else { if_false });
    }
}

fn compiled(json: &str) -> Vec<Instruction> {
    let conventions = read(json.as_bytes(), Capabilities::runtime_default(), (6, 18)).unwrap();
    compile(&conventions).unwrap()
}

fn holds(check: Check, arguments: [u64; 6]) -> bool {
    let argument = arguments[check.index as usize];
    match check.comparison {
        Comparison::Equal => argument == check.value,
        Comparison::NotEqual => argument != check.value,
        Comparison::Less => argument < check.value,
        Comparison::LessOrEqual => argument <= check.value,
        Comparison::Greater => argument > check.value,
        Comparison::GreaterOrEqual => argument >= check.value,
        Comparison::Masked(mask) => argument & mask == check.value,
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_deny_list_denies_and_lets_through() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
              {"names": ["chmod", "fchmodat", "no_such_call"], "action": "SCMP_ACT_ERRNO"},
              {"name": "keyctl", "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": null},
              {"names": ["socket"], "action": "SCMP_ACT_KILL_PROCESS",
               "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
              {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "4.8"}},
              {"names": ["acct"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_PACCT"]}}]}"#,
    );
    let x86_64 =
        |number: i64, first: u64| run(&program, AUDIT_X86_64, u32::try_from(number).unwrap(), [first, 0, 0, 0, 0, 0]);
    assert_eq!(x86_64(libc::SYS_chmod, 0), ERRNO | 1);
    assert_eq!(x86_64(libc::SYS_fchmodat, 0), ERRNO | 1);
    assert_eq!(x86_64(libc::SYS_keyctl, 0), ERRNO | 38);
    assert_eq!(x86_64(libc::SYS_socket, 40), KILL_PROCESS);
    assert_eq!(x86_64(libc::SYS_socket, 2), ALLOW);
    assert_eq!(x86_64(libc::SYS_socket, 1 << 32 | 40), ALLOW, "all 64 bits count");
    assert_eq!(x86_64(libc::SYS_ptrace, 0), ALLOW);
    assert_eq!(x86_64(libc::SYS_acct, 0), ALLOW, "the container lacks the capability that the rule is for");
    assert_eq!(x86_64(999, 0), ALLOW);
    assert_eq!(x86_64(0x4000_0000 + 90, 0), ENOSYS, "x32 is no way round");
    assert_eq!(run(&program, AUDIT_I386, 15, [0; 6]), ERRNO | 1, "chmod on i386");
    assert_eq!(run(&program, AUDIT_AARCH64, 0, [0; 6]), ENOSYS, "a foreign convention");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let refused = |json: &str| match read(json.as_bytes(), Capabilities::NONE, (6, 1)) {
        Ok(_) => String::from("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(refused("{}").contains("defaultAction"));
    assert_eq!(refused(r#"{"defaultAction": "SCMP_ACT_FLY"}"#), "action \"SCMP_ACT_FLY\" is not known");
    assert_eq!(refused(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY is not supported");
    let rule = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(refused(rule), "argument \"6\" is not known");
    let large = " ".repeat(PROFILE_BYTES_MAX + 1);
    assert!(refused(&large).starts_with("it has 1048577 bytes"));
}

#[test]
fn the_tables_share_no_name() {
    assert!(OTHERS.is_sorted_by_key(|(name, ..)| *name));
    assert!(OTHERS.iter().all(|(name, ..)| SYSCALLS.binary_search_by(|call| call.name.cmp(name)).is_err()));
}

fn any_check() -> impl Strategy<Value = Check> {
    let value = prop_oneof![0..4_u64, Just(u64::MAX), Just(1 << 32), (1_u64 << 32)..(1 << 32) + 3, any::<u64>()];
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        any::<u64>().prop_map(Comparison::Masked),
    ];
    (0..6_u32, comparison, value).prop_map(|(index, comparison, value)| Check { index, comparison, value })
}

proptest! {
    #[test]
    fn any_decision_is_compiled_as_it_reads(
        alternatives in prop::collection::vec((prop::collection::vec(any_check(), 1..6), 1..50_u32), 0..4),
        arguments in prop::array::uniform6(prop_oneof![0..4_u64, Just(u64::MAX), (1_u64 << 32)..(1 << 32) + 3, any::<u64>()]),
    ) {
        let mut decision = alternatives;
        decision.push((Vec::new(), 99));
        let fits = |(checks, _): &&(Vec<Check>, u32)| checks.iter().all(|check| holds(*check, arguments));
        let expected = decision.iter().find(fits).map(|(_, action)| *action);
        let ranges = vec![(0, vec![(Vec::new(), 7)]), (5, decision), (6, vec![(Vec::new(), 8)])];
        let program = compile(&[Convention { audit: 1, ranges }]).unwrap();
        prop_assert_eq!(run(&program, 1, 4, arguments), 7);
        prop_assert_eq!(Some(run(&program, 1, 5, arguments)), expected);
        prop_assert_eq!(run(&program, 1, 6, arguments), 8);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        exercise(&bytes);
    }

    #[test]
    fn any_rules_are_survived(
        names in prop::collection::vec(prop::sample::select(&["read", "clone", "keyctl", "x"][..]), 0..9),
        index in 0..9_u32, value in any::<u64>(), op in "SCMP_CMP_(EQ|NE|LT|GE|MASKED_EQ|XX)",
    ) {
        let names = serde_json::to_string(&names).unwrap();
        let args = format!(r#"[{{"index": {index}, "value": {value}, "op": "{op}"}}]"#);
        exercise(format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": {names}, "action": "SCMP_ACT_ALLOW", "args": {args}}}]}}"#
        ).as_bytes());
    }
}
