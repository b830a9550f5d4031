//! Namespaces shared with the host and between containers, given identity maps, and where groups hang.

use anyhow::{Context, Result, ensure};
use sampan_sandbox::{
    ExecSpec, Groups, GroupsPolicy, IdMap, ProcessNamespace, SandboxError, StartError, User, UserNamespace,
};

use crate::host::{Host, PATIENCE, chain};

super::scenarios![
    host_namespaces,
    host_processes_end_with_their_pod,
    own_users_share_nothing_with_the_host,
    shared_memory_is_the_pods,
    a_target_is_seen,
    given_identity_maps,
    groups_of_the_image,
    a_cgroup_parent,
    a_ready_sandbox_is_claimed,
    stopping,
    an_exec_is_killed,
];

fn shell(script: &str) -> ExecSpec {
    ExecSpec { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() }
}

fn namespace(kind: &str) -> Result<String> {
    Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?.to_string_lossy().into_owned())
}

async fn host_namespaces(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.user_namespace = UserNamespace::Host;
    (spec.host_network, spec.host_pid, spec.host_ipc) = (true, true, true);
    spec.hostname = String::new();
    let mut pod = host.pod_of(spec).await?;
    let mut spec =
        pod.shell("main", "for kind in net pid ipc uts mnt; do readlink /proc/self/ns/$kind; done; hostname")?;
    spec.process_namespace = ProcessNamespace::Node;
    let (_, said) = pod.run_spec(spec).await?;
    let lines: Vec<&str> = said.lines().collect();
    for (place, kind) in ["net", "pid", "ipc"].iter().enumerate() {
        ensure!(lines.get(place) == Some(&namespace(kind)?.as_str()), "{kind}: {said}");
    }
    for (place, kind) in [(3, "uts"), (4, "mnt")] {
        ensure!(lines.get(place) != Some(&namespace(kind)?.as_str()), "{kind}: {said}");
    }
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    ensure!(lines.get(5) == Some(&hostname.as_str()), "{said}");
    // Beside them, a container that sees only itself.
    let (_, said) = pod.run("echo $$").await?;
    ensure!(said == "1\n", "{said}");
    pod.destroy().await
}

/// In the host's pid namespace the kernel ends nothing when the agent dies; the pod's groups do.
async fn host_processes_end_with_their_pod(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.user_namespace = UserNamespace::Host;
    spec.host_pid = true;
    let mut pod = host.pod_of(spec).await?;
    let mut first = pod.shell("first", "sleep 4321 & echo ready; exec sleep 1234")?;
    first.process_namespace = ProcessNamespace::Node;
    let started = pod.start(first).await?;
    pod.wait_until_said("first", "ready").await?;
    let mut other = pod.shell("other", "sleep 4321 & echo ready; exec sleep 1234")?;
    other.process_namespace = ProcessNamespace::Node;
    pod.start(other).await?;
    pod.wait_until_said("other", "ready").await?;
    let process = std::path::PathBuf::from(format!("/proc/{}", started.pid));
    ensure!(process.exists());

    pod.sandbox.stop("first", libc::SIGTERM, PATIENCE).await.map_err(chain)?;
    ensure!(pod.exit().await?.signal == Some(libc::SIGTERM));
    ensure!(!process.exists(), "it is gone");
    ensure!(pod.running().await? == ["other"], "and its neighbour is not");
    pod.sandbox.kill_all().await.map_err(chain)?;
    ensure!(pod.exit().await?.container == "other", "only the pod's own are killed");
    pod.destroy().await
}

async fn own_users_share_nothing_with_the_host(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.host_network = true;
    let refused = host.sandboxes.create(spec).await;
    ensure!(matches!(&refused, Err(SandboxError::Invalid { .. })), "{refused:?}");
    Ok(())
}

async fn shared_memory_is_the_pods(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.shell("keeper", "echo kept > /dev/shm/word; echo ready; exec sleep 1000")?).await?;
    pod.wait_until_said("keeper", "ready").await?;
    let (_, said) = pod.run("cat /dev/shm/word; stat -c %a /dev/shm").await?;
    ensure!(said == "kept\n1777\n", "{said}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

/// As an ephemeral container for debugging does it.
async fn a_target_is_seen(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.shell("main", "echo secret > /tmp/note; echo ready; sleep 1234")?).await?;
    pod.wait_until_said("main", "ready").await?;
    let mut spec = pod.shell("debugger", "cat /proc/1/root/tmp/note; sleep 4321 & ps | grep -c '[s]leep 1234'")?;
    spec.process_namespace = ProcessNamespace::Target("main".into());
    let (_, said) = pod.run_spec(spec).await?;
    ensure!(said == "secret\n1\n", "{said}");
    let count = "ps | grep -c '[s]leep 4321'; true";
    let left = |said: String| said.trim() == "0";
    let began = std::time::Instant::now();
    while !left(pod.exec_to_end("main", shell(count)).await?) {
        ensure!(began.elapsed() < PATIENCE, "what the debugger left behind outlives it");
    }
    let mut nobodys = pod.shell("lost", "true")?;
    nobodys.process_namespace = ProcessNamespace::Target("nobody".into());
    let absent = pod.sandbox.start_container(nobodys).await;
    ensure!(matches!(&absent, Err(StartError::Sandbox(SandboxError::NoSuchContainer { .. }))), "{absent:?}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

async fn given_identity_maps(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    let UserNamespace::Own { first_id, .. } = spec.user_namespace else { anyhow::bail!("not an own range") };
    let maps = vec![
        IdMap { inside: 0, outside: first_id, length: 1000 },
        IdMap { inside: 1000, outside: first_id + 30_000, length: 10 },
    ];
    spec.user_namespace = UserNamespace::Mapped { uids: maps.clone(), gids: maps };
    let mut pod = host.pod_of(spec).await?;
    ensure!(pod.sandbox.root_id() == first_id);
    let (_, said) = pod.run("tr -s ' ' < /proc/self/gid_map").await?;
    ensure!(said == format!(" 0 {first_id} 1000\n 1000 {} 10\n", first_id + 30_000), "{said}");
    pod.destroy().await?;

    let mut rootless = host.spec()?;
    let maps = vec![IdMap { inside: 1, outside: first_id, length: 10 }];
    rootless.user_namespace = UserNamespace::Mapped { uids: maps.clone(), gids: maps };
    let refused = host.sandboxes.create(rootless).await;
    ensure!(matches!(&refused, Err(SandboxError::Invalid { why }) if why.contains("map 0")), "{refused:?}");
    Ok(())
}

async fn groups_of_the_image(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    for (policy, expected) in [(GroupsPolicy::Merge, "7 40 99\n"), (GroupsPolicy::Strict, "7 99\n")] {
        let mut spec = pod.shell("main", "id -G")?;
        spec.user = User::Ids { uid: 33, gid: 7, groups: Vec::new() };
        spec.supplemental_groups = vec![99];
        spec.groups_policy = policy;
        let (_, said) = pod.run_spec(spec).await?;
        ensure!(said == expected, "{policy:?}: {said}");
    }
    pod.destroy().await
}

fn memory_hierarchy() -> Result<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let carries = |line: &&str| line.contains(" - cgroup ") && line.ends_with("memory") || line.contains(" - cgroup2 ");
    let line = mounts.lines().find(carries).context("no memory controller")?;
    Ok(line.split(' ').nth(4).context("no mount point")?.into())
}

async fn a_cgroup_parent(host: &mut Host) -> Result<()> {
    let root = memory_hierarchy()?;
    let outer = format!("{}-kubepods", host.instance);
    for (parent, place) in [
        (format!("/{outer}/burstable/pod7"), format!("{outer}/burstable/pod7")),
        (format!("{0}-pod7.slice", outer.replace('-', "_")), {
            let first = outer.replace('-', "_");
            format!("{first}.slice/{first}-pod7.slice")
        }),
    ] {
        let mut spec = host.spec()?;
        let id = spec.id.clone();
        spec.cgroup_parent = Some(parent);
        spec.resources.memory_limit_bytes = Some(256 << 20);
        let pod = host.pod_of(spec).await?;
        let group = root.join(&place).join(format!("{}-{id}", host.instance));
        ensure!(group.is_dir(), "{} is missing", group.display());
        ensure!(!root.join(&host.instance).join(id.as_str()).exists(), "it has moved");
        let started = pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid))?;
        ensure!(groups.contains(&format!("/{place}/{}-{id}/c-main", host.instance)), "{groups}");
        let stats = pod.sandbox.stats().await.map_err(chain)?;
        ensure!(stats.containers.iter().any(|(name, usage)| name == "main" && usage.pids == 1), "{stats:?}");
        pod.destroy().await?;
        let top = place.split('/').next().unwrap_or_default();
        ensure!(!root.join(top).exists(), "parents that were made for it go with it");
    }
    let mut spec = host.spec()?;
    spec.cgroup_parent = Some("../outside".into());
    ensure!(host.sandboxes.create(spec).await.is_err());
    Ok(())
}

async fn a_ready_sandbox_is_claimed(host: &mut Host) -> Result<()> {
    let root = memory_hierarchy()?;
    let outer = format!("{}-kubepods", host.instance);
    // Whatever is prepared suits every pod, the unlikely one too.
    for groups in [Groups::AtOnce, Groups::WhenClaimed] {
        for parent in [None, Some(format!("/{outer}"))] {
            let mut spec = host.spec()?;
            let own = root.join(&host.instance).join(spec.id.as_str());
            let ready = host.sandboxes.prepare(&spec.id, spec.namespaces(), groups).await.map_err(chain)?;
            ensure!(ready.is_alive() && ready.id() == &spec.id);
            ensure!(own.exists() == (groups == Groups::AtOnce), "{groups:?}: {}", own.display());
            let place = match &parent {
                Some(_) => root.join(&outer).join(format!("{}-{}", host.instance, spec.id)),
                None => own.clone(),
            };
            let has_parent = parent.is_some();
            spec.cgroup_parent = parent;
            let mut pod = crate::host::Pod::new(host.sandboxes.claim(ready, spec).await.map_err(chain)?);
            ensure!(place.is_dir() && own.exists() != has_parent, "{groups:?}: {}", place.display());
            let (code, said) = pod.run("hostname").await?;
            ensure!((code, said.as_str()) == (0, "testpod\n"), "{code} {said}");
            pod.destroy().await?;
            ensure!(!place.exists() && !own.exists() && !root.join(&outer).exists());
        }
    }

    for (groups, least) in [(Groups::AtOnce, 3), (Groups::WhenClaimed, 2)] {
        let unclaimed = host.spec()?;
        let ready = host.sandboxes.prepare(&unclaimed.id, unclaimed.namespaces(), groups).await.map_err(chain)?;
        drop(ready);
        let removed = host.sandboxes.remove(&unclaimed.id).await.map_err(chain)?;
        ensure!(removed.len() >= least, "agent, run directory, and groups that there are: {removed:?}");
    }

    let another = host.spec()?;
    let ready = host.sandboxes.prepare(&another.id, another.namespaces(), Groups::AtOnce).await.map_err(chain)?;
    let mut other_kind = another;
    other_kind.user_namespace = UserNamespace::Host;
    ensure!(host.sandboxes.claim(ready, other_kind).await.is_err());
    Ok(())
}

async fn stopping(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.shell("polite", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")?).await?;
    pod.start(pod.shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done")?).await?;
    pod.wait_until_said("polite", "ready").await?;
    pod.wait_until_said("stubborn", "ready").await?;
    pod.sandbox.stop("polite", libc::SIGTERM, PATIENCE).await.map_err(chain)?;
    ensure!(pod.exit().await?.code == 3);

    let sandbox = std::sync::Arc::clone(&pod.sandbox);
    let long = tokio::spawn(async move { sandbox.stop("stubborn", libc::SIGTERM, 100 * PATIENCE).await });
    pod.sandbox.stats().await.map_err(chain)?;
    ensure!(pod.running().await? == ["stubborn"], "questions are answered meanwhile");
    let soon = std::time::Duration::from_millis(50);
    pod.sandbox.stop("stubborn", libc::SIGTERM, soon).await.map_err(chain)?;
    ensure!(pod.exit().await?.signal == Some(libc::SIGKILL));
    tokio::time::timeout(PATIENCE, long).await??.map_err(chain)?;
    pod.sandbox.stop("stubborn", libc::SIGTERM, PATIENCE).await.map_err(chain)?;
    pod.destroy().await
}

async fn an_exec_is_killed(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let process = pod.sandbox.exec("main", shell("sleep 4321 & sleep 4321")).await.map_err(chain)?;
    pod.sandbox.signal_exec(process.id, libc::SIGKILL).await.map_err(chain)?;
    let status = tokio::time::timeout(PATIENCE, process.exit).await?;
    ensure!(status == sampan_sandbox::ExecStatus::Ended { code: 137, signal: Some(9) }, "{status:?}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}
