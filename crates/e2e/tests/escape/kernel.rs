//! The kernel's own doors: system calls that are nobody's business inside, and files that steer the machine.

use anyhow::{Context, Result, ensure};
use sampan_e2e::service::Service;

use crate::attempt::{attacker, inside, outside};

/// What may be answered to a call that is not allowed.
const REFUSALS: [&str; 3] = ["EPERM", "ENOSYS", "EACCES"];

pub(crate) fn calls_that_reach_the_kernel_are_refused(service: &Service) -> Result<()> {
    attacker(service, "caller", &[])?;
    // The second of each: whether the same call works on the host, where that harms nobody.
    for (what, call, control) in [
        ("a key", "call(248, 217, b'user', b'sampan-test', b'x', 1, -2)", true),
        ("the session's keyring", "call(250, 219, 0, -3, 0)", true),
        (
            "a file by its handle",
            "call(304, 265, -100, b'\\x08\\0\\0\\0\\x01\\0\\0\\0\\x02\\0\\0\\0\\0\\0\\0\\0', 0)",
            false,
        ),
        ("a namespace of users", "call(272, 97, 0x10000000)", false),
        ("a namespace of mounts", "call(272, 97, 0x20000)", true),
        ("mounting", "call(165, 40, b'none', b'/mnt', b'tmpfs', 0, 0)", false),
        ("a file system's context", "call(430, 430, b'tmpfs', 0)", true),
        ("the whole tree by descriptor", "call(428, 428, -100, b'/', 1)", true),
        ("another root", "call(155, 41, b'/', b'/')", false),
        (
            "a BPF map",
            "call(321, 280, 0, b'\\x02\\0\\0\\0\\x04\\0\\0\\0\\x04\\0\\0\\0\\x01\\0\\0\\0' + b'\\0' * 56, 72)",
            false,
        ),
        ("loading a module", "call(175, 105, b'', 0, b'')", false),
        ("another kernel", "call(246, 104, 0, 0, 0, 0)", false),
        ("the machine's end", "call(169, 142, 0xfee1dead, 672274793, 0x89abcdef, 0)", false),
        ("swapping", "call(167, 224, b'/none', 0)", false),
        ("accounting", "call(163, 89, b'/none')", false),
        ("the clock", "call(227, 112, 0, b'\\0' * 16)", false),
    ] {
        let program = format!("print({call})");
        let answer = inside(service, "caller", &program).with_context(|| what.to_owned())?;
        ensure!(REFUSALS.contains(&answer.as_str()), "{what}: {answer}");
        if control {
            let answer = outside(&program)?;
            ensure!(answer == "done", "{what} fails on the host too ({answer}): the test shows nothing");
        }
    }
    service.remove(["caller"])
}

pub(crate) fn the_kernels_files_cannot_be_written(service: &Service) -> Result<()> {
    const FILES: [&str; 9] = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
    ];
    attacker(service, "writer", &[])?;
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let mut shown = 0;
    for file in FILES {
        // Opening is enough to know, and changes nothing where it succeeds.
        let program = format!(
            "try: os.open('{file}', os.O_WRONLY); print('done')\nexcept OSError as e: print(errno.errorcode[e.errno])"
        );
        let answer = inside(service, "writer", &program)?;
        ensure!(answer != "done", "{file} can be written");
        shown += usize::from(outside(&program)? == "done");
    }
    ensure!(shown >= 5, "the host's root may write only {shown} of them: the test shows nothing");
    ensure!(std::fs::read_to_string("/proc/sys/kernel/core_pattern")? == before);
    service.remove(["writer"])
}
