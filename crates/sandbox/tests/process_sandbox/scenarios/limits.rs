//! Limits that bite, and what is counted.

use anyhow::{Context, Result, ensure};
use sampan_sandbox::Resources;

use crate::host::{Host, chain};

super::scenarios![out_of_memory, out_of_memory_of_the_pod, pids_are_limited, statistics];

/// A shell that doubles a string until it is killed.
const GLUTTON: &str = "x=0123456789abcdef; while :; do x=$x$x; done";

async fn out_of_memory(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", GLUTTON)?;
    spec.resources.memory_limit_bytes = Some(24 * 1024 * 1024);
    pod.start(spec).await?;
    let exit = pod.exit().await?;
    ensure!(exit.oom_killed && exit.code == 137, "{exit:?}");
    pod.sandbox.acknowledge(exit.event_id).await.map_err(chain)?;
    let (code, _) = pod.run("exit 1").await?;
    ensure!(code == 1, "the next run starts with clean counters");
    pod.start(pod.shell("main", "exit 1")?).await?;
    ensure!(!pod.exit().await?.oom_killed);
    pod.destroy().await
}

/// The pod's own limit takes the container, never the agent.
async fn out_of_memory_of_the_pod(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.resources.memory_limit_bytes = Some(32 * 1024 * 1024);
    let mut pod = host.pod_of(spec).await?;
    for _ in 0..2 {
        pod.start(pod.shell("main", GLUTTON)?).await?;
        let exit = pod.exit().await?;
        ensure!(exit.oom_killed && exit.code == 137, "{exit:?}");
    }
    pod.destroy().await
}

async fn pids_are_limited(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done 2>&1; echo unreached")?;
    spec.resources.pids_max = Some(6);
    let (code, said) = pod.run_spec(spec).await?;
    ensure!(code != 0 && said.contains("fork") && !said.contains("unreached"), "{code} {said}");
    pod.destroy().await
}

async fn statistics(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.resources = Resources {
        cpu_request_millis: Some(250),
        cpu_limit_millis: Some(1500),
        memory_limit_bytes: Some(512 * 1024 * 1024),
        pids_max: Some(100),
        ..Resources::default()
    };
    let mut pod = host.pod_of(spec).await?;
    let script = "head -c 20000000 /dev/urandom > /dev/shm/x; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    let mut spec = pod.shell("main", script)?;
    spec.resources = Resources { cpu_limit_millis: Some(1000), ..Resources::default() };
    pod.start(spec).await?;
    pod.wait_until_said("main", "done").await?;
    let stats = pod.sandbox.stats().await.map_err(chain)?;
    let (name, main) = stats.containers.first().context("no container")?;
    ensure!(name == "main" && stats.containers.len() == 1);
    ensure!(main.cpu_nanoseconds > 1_000_000 && stats.pod.cpu_nanoseconds >= main.cpu_nanoseconds, "{stats:?}");
    ensure!(
        main.memory_usage_bytes >= 20_000_000 && main.memory_working_set_bytes <= main.memory_usage_bytes,
        "{stats:?}"
    );
    ensure!(main.pids == 1 && stats.pod.pids >= 1, "{stats:?}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}
