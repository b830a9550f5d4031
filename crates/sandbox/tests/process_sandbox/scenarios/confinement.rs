//! What a container may see and do.

use anyhow::{Result, ensure};
use sampan_sandbox::{Capabilities, Limit, Mount, MountSource, Seccomp, User, UserNamespace};

use crate::host::{Host, Pod};

super::scenarios![
    identity,
    set_user_id_programs_work,
    pid_namespaces_nest,
    sysctls,
    groups_are_shown,
    privileges_are_few,
    seccomp_refuses,
    paths_are_masked,
    devices,
    volumes,
    read_only_root,
    privileged,
    host_users,
    nothing_of_the_host_is_reachable,
];

async fn identity(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let root = pod.sandbox.root_id();
    let (_, said) = pod.run("hostname; cat /proc/self/uid_map | tr -s ' '; id -u; id -G; echo $HOME").await?;
    ensure!(said == format!("testpod\n 0 {root} 65536\n0\n0\n/root\n"), "{said}");

    let mut spec = pod.shell("main", "id -u; id -g; id -G; echo $HOME; touch /tmp/x 2>&1")?;
    spec.user = User::Named("web".into());
    spec.supplemental_groups = vec![77];
    let (code, said) = pod.run_spec(spec).await?;
    ensure!(code == 1, "{code}");
    ensure!(said.starts_with("33\n34\n34 40 77\n/home\n") && said.contains("Permission denied"), "{said}");

    let mut spec = pod.shell("main", "id -u; id -g; pwd; ulimit -n")?;
    spec.user = User::Ids { uid: 5000, gid: 6000, groups: Vec::new() };
    spec.working_dir = "/made/on/the/way".into();
    spec.rlimits = vec![Limit { name: "RLIMIT_NOFILE".into(), soft: Some(99), hard: Some(100) }];
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "5000\n6000\n/made/on/the/way\n99\n", "{said}");
    pod.destroy().await
}

/// `su` only works when its set-uid bit does. The password's hash is crypt(3)'s of "secret".
async fn set_user_id_programs_work(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let prepare =
        "chmod 4755 /bin/busybox; printf 'root:abNANd1rDfiNc:0:0::/:/bin/sh\\nweb:x:33:34::/:/bin/sh\\n' > /etc/passwd";
    let exec = |words: &[&str], user: &str| sampan_sandbox::ExecSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        user: Some(User::Named(user.into())),
        ..Default::default()
    };
    pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    pod.exec_to_end("main", exec(&["sh", "-c", prepare], "root")).await?;
    let said = pod.exec_to_end("main", exec(&["sh", "-c", "echo secret | su -c 'id -u' 2>&1"], "web")).await?;
    ensure!(said.ends_with("0\n"), "{said}");

    let mut spec = pod.container("strict", &["/bin/sleep", "1000"])?;
    spec.no_new_privileges = true;
    pod.start(spec).await?;
    pod.exec_to_end("strict", exec(&["sh", "-c", prepare], "root")).await?;
    let said = pod.exec_to_end("strict", exec(&["sh", "-c", "echo secret | su -c 'id -u' 2>&1"], "web")).await;
    ensure!(said.is_err(), "no-new-privileges disarms set-uid: {said:?}");
    pod.kill_and_wait(2).await?;
    pod.destroy().await
}

async fn pid_namespaces_nest(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.container("neighbour", &["/bin/sleep", "1000"])?).await?;
    let (_, said) = pod.run("echo $$; cat /proc/1/comm; ls /proc | grep -c '^[0-9]*$'; kill -9 1; echo alive").await?;
    ensure!(said.starts_with("1\nsh\n") && said.ends_with("alive\n"), "{said}");
    let processes: u32 = said.lines().nth(2).unwrap_or_default().parse()?;
    ensure!(processes <= 4, "neither the agent nor the neighbour is visible: {said}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

/// Programs find their limits where they look for them, and cannot raise them.
async fn sysctls(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    let wanted = [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.msgmax", "9000"), ("fs.mqueue.msg_max", "7")];
    spec.sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut pod = host.pod_of(spec).await?;
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/msgmax fs/mqueue/msg_max";
    let (_, said) = pod.run(script).await?;
    ensure!(said == "80\n9000\n7\n", "{said}");
    pod.destroy().await
}

async fn groups_are_shown(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
                  cat /proc/self/oom_score_adj; \
                  echo 1 > /sys/fs/cgroup/memory/tasks || echo 1 > /sys/fs/cgroup/cgroup.procs || echo refused";
    let mut spec = pod.shell("main", script)?;
    spec.resources.memory_limit_bytes = Some(64 * 1024 * 1024);
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.starts_with("67108864\n100\n") && said.contains("\nrefused\n"), "{said}");
    pod.destroy().await
}

async fn privileges_are_few(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let show = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\\t' ' '";
    let (_, said) = pod.run(show).await?;
    let expected = "CapInh: 0000000000000000\nCapPrm: 00000000a80425fb\nCapEff: 00000000a80425fb\n\
                    CapBnd: 00000000a80425fb\nCapAmb: 0000000000000000\nNoNewPrivs: 0\nSeccomp: 2\n";
    ensure!(said == expected, "{said}");

    let mut spec = pod.shell("main", show)?;
    spec.user = User::Named("web".into());
    spec.no_new_privileges = true;
    spec.capabilities = Capabilities::NONE;
    let (_, said) = pod.run_spec(spec).await?;
    let none = "CapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\n\
                CapBnd: 0000000000000000\nCapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n";
    ensure!(said == none, "{said}");
    pod.destroy().await
}

async fn seccomp_refuses(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let (code, said) = pod.run("unshare -U true 2>&1; mount -t tmpfs none /tmp 2>&1; true").await?;
    ensure!(
        code == 0 && said.matches("Operation not permitted").count() + said.matches("permission denied").count() == 2,
        "{said}"
    );
    let mut spec = pod.shell("main", "grep Seccomp: /proc/self/status; unshare -U id -u")?;
    spec.seccomp = Seccomp::Unconfined;
    let (code, said) = pod.run_spec(spec).await?;
    ensure!(code == 0 && said.starts_with("Seccomp:\t0"), "{code} {said}");
    pod.destroy().await
}

async fn paths_are_masked(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/net/ipv4/ip_forward; echo $?; touch /sys/x; echo $?; echo b > /proc/sysrq-trigger; echo $?";
    let (_, said) = pod.run(&format!("({script}) 2>/dev/null")).await?;
    ensure!(said == "0\n0\n1\n1\n1\n", "{said}");
    // Unmounting a mask is not possible, even for a container with every capability.
    let mut spec = pod.shell("main", "umount /proc/interrupts 2>/dev/null; cat /proc/interrupts | wc -c; mount -t proc p /tmp 2>/dev/null; cat /tmp/version | wc -l")?;
    spec.capabilities = Capabilities::runtime_default();
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.starts_with("0\n"), "{said}");
    pod.destroy().await
}

async fn devices(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "ls /dev | tr '\\n' ' '; echo; head -c 3 /dev/zero | wc -c; head -c 9 /dev/urandom | wc -c; \
                  echo x > /dev/null; echo y > /dev/stdout; head -c 1 /dev/full | wc -c; \
                  mknod /tmp/disk b 8 0 2>/dev/null; echo $?; touch /dev/shm/x /dev/mqueue/q; echo $?";
    let (_, said) = pod.run(script).await?;
    let names = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    ensure!(said == format!("{names}\n3\n9\ny\n1\n1\n0\n"), "{said}");
    pod.destroy().await
}

/// A folder of the pod's own root with a file in it. It is attached somewhere, as kernels before 6.15 want of what they clone.
fn shared_folder(pod: &Pod) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("file"), "shared\n")?;
    let owner = Some(pod.sandbox.root_id());
    std::os::unix::fs::chown(folder.path(), owner, owner)?;
    Ok(folder)
}

async fn volumes(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let folder = shared_folder(&pod)?;
    let shared = std::fs::File::open(folder.path())?;
    let again = || sampan_sys::mount::clone_tree(std::os::fd::AsFd::as_fd(&shared), "", false);
    let file = sampan_sys::mount::clone_tree(std::os::fd::AsFd::as_fd(&shared), "file", false)?;
    let mount = |source, destination: &str, read_only| Mount { source, destination: destination.into(), read_only };
    let script = "cat /a/b/file /etc/hosts.d/one /escape/inner/file; touch /a/b/x; echo $?; touch /ro/x 2>/dev/null; echo $?; \
                  ls -d /etc/inner; stat -c %a /scratch; dd if=/dev/zero of=/scratch/big bs=1k count=128 2>/dev/null; echo $?";
    let mut spec = pod.shell("main", script)?;
    // An image whose symbolic link points out of it: the mount lands inside all the same.
    let link = format!("/proc/self/fd/{}/escape", std::os::fd::AsRawFd::as_raw_fd(&spec.root));
    std::os::unix::fs::symlink("/../../../etc", link)?;
    spec.mounts = vec![
        mount(MountSource::Detached(again()?), "/a/b", false),
        mount(MountSource::Detached(file), "/etc/hosts.d/one", false),
        mount(MountSource::Detached(again()?), "/ro", true),
        mount(MountSource::Detached(again()?), "/escape/inner", false),
        mount(MountSource::Tmpfs { size_bytes: Some(64 * 1024), mode: 0o1777 }, "/scratch", false),
    ];
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "shared\nshared\nshared\n0\n1\n/etc/inner\n1777\n1\n", "{said}");
    ensure!(!std::path::Path::new("/etc/inner").exists());
    pod.destroy().await
}

async fn read_only_root(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", "touch /x 2>&1; echo y > /dev/null && touch /dev/shm/x && echo fine")?;
    spec.read_only_root = true;
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.contains("Read-only file system") && said.ends_with("fine\n"), "{said}");
    pod.destroy().await
}

async fn privileged(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell(
        "main",
        "mount -t tmpfs none /tmp && echo mounted; hostname changed; hostname; head -c 1 /proc/interrupts | wc -c",
    )?;
    (spec.privileged, spec.seccomp, spec.capabilities) = (true, Seccomp::Unconfined, Capabilities::all());
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "mounted\nchanged\n1\n", "{said}");
    pod.destroy().await
}

async fn host_users(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.user_namespace = UserNamespace::Host;
    let mut pod = host.pod_of(spec).await?;
    ensure!(pod.sandbox.user_namespace().is_none() && pod.sandbox.root_id() == 0);
    let script = "tr -s ' ' < /proc/self/uid_map; grep CapEff /proc/self/status | tr '\\t' ' '; echo $$; hostname; \
                  mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk 2>&1 | grep -c 'not permitted'; \
                  echo b > /proc/sysrq-trigger; echo $?";
    let (_, said) = pod.run(&format!("({script}) 2>/dev/null")).await?;
    let rest = "CapEff: 00000000a80425fb\n1\ntestpod\n1\n1\n";
    ensure!(said.ends_with(rest) && said.starts_with(" 0 0 "), "{said}");
    pod.destroy().await
}

/// The container's mount table names its own mounts only, and its descriptors are its own.
async fn nothing_of_the_host_is_reachable(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let (_, said) = pod
        .run("cut -d' ' -f2 /proc/mounts 2>/dev/null || awk '{print $2}' /proc/mounts; echo --; ls /proc/self/fd")
        .await?;
    let (mounts, descriptors) = said.split_once("--\n").unwrap_or_default();
    let known = |place: &str| place == "/" || ["/proc", "/sys", "/dev"].iter().any(|root| place.starts_with(root));
    ensure!(mounts.lines().all(known) && mounts.lines().count() < 30, "{mounts}");
    ensure!(
        descriptors.split_whitespace().all(|number| number.parse::<u32>().is_ok_and(|number| number < 4)),
        "{descriptors}"
    );
    pod.destroy().await
}
