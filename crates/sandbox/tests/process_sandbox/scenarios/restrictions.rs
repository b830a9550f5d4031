//! What a container is given or denied beyond the usual: devices, profiles, capabilities, paths, limits in place.

use anyhow::{Result, ensure};
use sampan_sandbox::{
    Capabilities, Device, HugePages, Resources, SandboxError, Seccomp, StartError, User, UserNamespace,
};

use crate::host::{Host, chain};

super::scenarios![
    a_profile_of_ones_own,
    ambient_capabilities,
    devices_of_the_host,
    all_devices_for_the_privileged,
    custom_paths,
    oom_score,
    a_spared_service_spares_no_container,
    apparmor_is_refused_without_apparmor,
    limits_change_in_place,
    sets_and_pages,
];

async fn a_profile_of_ones_own(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let mut spec = pod.shell("main", "touch /tmp/x; chmod 600 /tmp/x 2>&1; mkdir /tmp/y && echo made")?;
    spec.seccomp = Seccomp::Localhost(profile.into());
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.contains("Operation not permitted") && said.ends_with("made\n"), "{said}");

    let mut spec = pod.shell("main", "true")?;
    spec.seccomp = Seccomp::Localhost(b"no profile".to_vec());
    let refused = pod.sandbox.start_container(spec).await;
    let named = |error: &StartError| matches!(error, StartError::Sandbox(SandboxError::Invalid { why }) if why.contains("seccomp"));
    ensure!(refused.as_ref().is_err_and(named), "{refused:?}");
    pod.destroy().await
}

async fn ambient_capabilities(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let show = "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -s '\\t' ' '";
    let one = Capabilities::NONE.adjusted(&["NET_BIND_SERVICE".into()], &[]).map_err(chain)?;
    let mut spec = pod.shell("main", show)?;
    spec.user = User::Named("web".into());
    spec.ambient_capabilities = one;
    let (_, said) = pod.run_spec(spec).await?;
    let bit = "0000000000000400";
    ensure!(said == format!("CapInh: {bit}\nCapPrm: {bit}\nCapEff: {bit}\nCapAmb: {bit}\n"), "{said}");

    let mut spec = pod.shell("main", "true")?;
    (spec.capabilities, spec.ambient_capabilities) = (Capabilities::NONE, one);
    ensure!(pod.sandbox.start_container(spec).await.is_err(), "ambient ones are some of those it has");
    pod.destroy().await
}

fn device(host_path: &str, container_path: &str, permissions: &str) -> Device {
    Device { host_path: host_path.into(), container_path: container_path.into(), permissions: permissions.into() }
}

async fn devices_of_the_host(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec =
        pod.shell("main", "head -c 3 /dev/sub/none | wc -c; stat -c '%t:%T %u' /dev/sub/none; ls /dev/kmsg 2>&1")?;
    spec.devices = vec![device("/dev/zero", "/dev/sub/none", "rwm")];
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.starts_with("3\n1:5 0\n") && said.contains("No such file"), "{said}");
    for bad in [
        device("/dev/zero", "/etc/zero", "r"),
        device("/dev/zero", "/dev/x", "rx"),
        device("/etc/passwd", "/dev/x", "r"),
        device("/dev/nothing-here", "/dev/x", "r"),
    ] {
        let mut spec = pod.shell("main", "true")?;
        spec.devices = vec![bad.clone()];
        ensure!(pod.sandbox.start_container(spec).await.is_err(), "{bad:?}");
    }
    pod.destroy().await
}

async fn all_devices_for_the_privileged(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.user_namespace = UserNamespace::Host;
    let mut pod = host.pod_of(spec).await?;
    let mut spec = pod.shell(
        "main",
        "test -e /dev/loop-control && echo there; test -e /proc/kcore && echo bare; find /dev -type c | wc -l",
    )?;
    (spec.privileged, spec.seccomp, spec.capabilities) = (true, Seccomp::Unconfined, Capabilities::all());
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.starts_with("there\n"), "{said}");
    pod.destroy().await
}

async fn custom_paths(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "cat /etc/passwd | wc -c; ls /home | wc -l; echo x > /tmp/x 2>&1 || echo fixed; \
                  grep -q ' /proc/sys ' /proc/self/mounts || echo open; /bin/busybox true && echo runs";
    let mut spec = pod.shell("main", script)?;
    spec.masked_paths = Some(vec!["/etc/passwd".into(), "/home".into(), "/nowhere".into()]);
    spec.read_only_paths = Some(vec!["/tmp".into(), "/bin".into()]);
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said.starts_with("0\n0\n") && said.contains("fixed\n") && said.ends_with("open\nruns\n"), "{said}");
    pod.destroy().await
}

async fn oom_score(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", "cat /proc/self/oom_score_adj")?;
    spec.oom_score_adjustment = Some(555);
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "555\n", "{said}");
    // Best effort: without CAP_SYS_RESOURCE it stays what it was, and the container starts.
    let mut spec = pod.shell("main", "cat /proc/self/oom_score_adj")?;
    spec.oom_score_adjustment = Some(-998);
    let (code, said) = pod.run_spec(spec).await?;
    ensure!(code == 0 && (said == "-998\n" || said == "0\n"), "{said}");
    pod.destroy().await
}

async fn a_spared_service_spares_no_container(host: &mut Host) -> Result<()> {
    if !host.spare_zygote("-100")? {
        eprintln!(
            "\n    NOT TESTED: that containers cannot take on the service's OOM score. Missing: CAP_SYS_RESOURCE\n"
        );
        return Ok(());
    }
    let mut pod = host.pod().await?;
    let script = "echo 0 > /proc/self/oom_score_adj && echo may; echo -50 > /proc/self/oom_score_adj && echo spared";
    let (_, said) = pod.run(script).await?;
    ensure!(said.contains("may") && !said.contains("spared"), "{said}");
    ensure!(host.spare_zygote("0")?);
    pod.destroy().await
}

async fn apparmor_is_refused_without_apparmor(host: &mut Host) -> Result<()> {
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y") {
        eprintln!("\n    NOT TESTED: that AppArmor profiles are refused. This kernel has AppArmor\n");
        return Ok(());
    }
    let pod = host.pod().await?;
    let mut spec = pod.shell("main", "true")?;
    spec.apparmor_profile = Some("some-profile".into());
    let refused = pod.sandbox.start_container(spec).await;
    ensure!(refused.as_ref().is_err_and(|error| chain_text(error).contains("AppArmor")), "{refused:?}");
    pod.destroy().await
}

fn chain_text(error: &StartError) -> String {
    sampan_kit::error_chain::ErrorChain(error).to_string()
}

async fn limits_change_in_place(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.container("main", &["/bin/sleep", "1000"])?;
    spec.resources.memory_limit_bytes = Some(64 << 20);
    pod.start(spec).await?;
    for bytes in [256_u64 << 20, 32 << 20] {
        let resources = Resources {
            memory_limit_bytes: Some(bytes),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(50_000),
            cpu_shares: Some(512),
            ..Resources::default()
        };
        pod.sandbox.update_resources(Some("main"), &resources).await.map_err(chain)?;
        let show = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
        let spec = sampan_sandbox::ExecSpec {
            command: ["/bin/sh", "-c", show].map(str::to_owned).to_vec(),
            ..sampan_sandbox::ExecSpec::default()
        };
        let said = pod.exec_to_end("main", spec).await?;
        ensure!(said == format!("{bytes}\n"), "{said}");
    }
    pod.sandbox
        .update_resources(None, &Resources { pids_max: Some(99), ..Resources::default() })
        .await
        .map_err(chain)?;
    let absent = pod.sandbox.update_resources(Some("nobody"), &Resources::default()).await;
    ensure!(matches!(&absent, Err(SandboxError::NoSuchContainer { .. })), "{absent:?}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

async fn sets_and_pages(host: &mut Host) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let has = |name: &str| mounts.lines().any(|line| line.contains(" - cgroup ") && line.contains(name));
    if !has("cpuset") {
        eprintln!("\n    NOT TESTED: sets of cores. Missing: a cpuset controller of cgroup v1\n");
        return Ok(());
    }
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", "grep Cpus_allowed_list /proc/self/status | tr -s '\\t' ' '")?;
    spec.resources.cpuset_cpus = Some("0".into());
    spec.resources.huge_pages = vec![HugePages { page_size: "2MB".into(), bytes: 0 }];
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "Cpus_allowed_list: 0\n", "{said}");
    let mut spec = pod.shell("main", "true")?;
    spec.resources.huge_pages = vec![HugePages { page_size: "../x".into(), bytes: 1 }];
    ensure!(pod.sandbox.start_container(spec).await.is_err());
    let mut spec = pod.shell("main", "true")?;
    spec.resources.unified = vec![("cgroup.procs".into(), "1".into())];
    ensure!(pod.sandbox.start_container(spec).await.is_err());
    pod.destroy().await
}
