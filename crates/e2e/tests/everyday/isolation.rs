//! What an instance can see and do, and what not.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::debian;
use sampan_e2e::service::Service;

pub(crate) fn every_instance_has_ids_of_its_own(service: &Service) -> Result<()> {
    let mut first_ids = HashSet::new();
    for name in ["mapped-1", "mapped-2"] {
        service.background(name, "sleep 1000")?;
        let map = service.inside(name, "cat /proc/self/uid_map")?;
        let numbers: Vec<u32> = map.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [inside, outside, length] = numbers.as_slice() else { anyhow::bail!("more than one range: {map}") };
        assert_eq!((*inside, *length), (0, 65536));
        ensure!(*outside >= 65536, "root inside is {outside} outside");
        first_ids.insert(*outside);
        assert_eq!(service.inside(name, "cat /proc/self/uid_map /proc/self/gid_map | sort -u | wc -l")?, "1");
    }
    assert_eq!(first_ids.len(), 2, "two instances share their ids");
    service.remove(["mapped-1", "mapped-2"])
}

pub(crate) fn the_main_process_is_number_one(service: &Service) -> Result<()> {
    service.background("first", "exec sleep 1000")?;
    assert_eq!(service.inside("first", "tr '\\0' ' ' < /proc/1/cmdline")?, "sleep 1000");
    let seen = service.inside("first", "ls /proc | grep -c '^[0-9]*$'")?;
    ensure!(seen.parse::<u32>()? < 8, "{seen} processes are seen inside");
    assert_eq!(service.inside("first", "hostname")?, "first");
    service.remove(["first"])
}

pub(crate) fn dangerous_things_are_out_of_reach(service: &Service) -> Result<()> {
    service.background("confined", "sleep 1000")?;
    let inside = |script: &str| service.inside("confined", script);
    assert_eq!(inside("grep Seccomp: /proc/1/status | awk '{print $2}'")?, "2");
    // The fourteen capabilities of Docker's default, as a mask: include/uapi/linux/capability.h.
    assert_eq!(inside("grep CapEff /proc/1/status | awk '{print $2}'")?, "00000000a80425fb");
    assert_eq!(inside("grep CapBnd /proc/1/status | awk '{print $2}'")?, "00000000a80425fb");
    for (what, script) in [
        ("mounting", "mount -t tmpfs none /mnt"),
        ("a namespace of users", "unshare -U true"),
        ("the kernel's log", "dmesg"),
        ("setting the clock", "date -s 2001-01-01; date +%Y | grep 2001"),
        ("a raw device", "mknod /dev/raw b 7 0 && head -c 1 /dev/raw"),
        ("writing sysctls", "echo 1 > /proc/sys/kernel/panic"),
        ("sysrq", "echo b > /proc/sysrq-trigger"),
        ("writing /sys", "mkdir /sys/fs/cgroup/escape"),
        ("renaming the host", "hostname other"),
        ("another root", "pivot_root / /"),
    ] {
        let done = service.sampan(["exec", "confined", "sh", "-c", script]).finish()?;
        ensure!(done.code != 0, "{what} is possible: {}", done.text());
    }
    for masked in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        let bytes = inside(&format!("test -e {masked} && head -c 10 {masked} 2>/dev/null | wc -c || echo 0"))?;
        assert_eq!(bytes, "0", "{masked} can be read");
    }
    assert_eq!(inside("ls -A /sys/firmware | wc -l")?, "0");
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"] {
        inside(&format!("ls -d /dev/{device}")).with_context(|| format!("/dev/{device}"))?;
    }
    service.remove(["confined"])
}

pub(crate) fn privileges_of_files_work_inside(service: &Service) -> Result<()> {
    let image = service.image("privileges:1", debian::privileges)?;
    let run = |command: &[&str]| service.sampan(["run", "--rm", &image].into_iter().chain(command.iter().copied()));
    assert_eq!(run(&["id", "-un"]).ok()?, "nobody");
    // Set-uid root: root inside, and nobody special outside.
    assert_eq!(run(&["/usr/local/bin/id-as-root", "-u"]).ok()?, "0");
    let denied = run(&["cat", "/root/secret"]).finish()?;
    ensure!(denied.code != 0 && denied.complaint().contains("Permission denied"), "{}", denied.complaint());
    assert_eq!(run(&["/usr/local/bin/cat-any", "/root/secret"]).ok()?, "only root reads this");
    Ok(())
}
