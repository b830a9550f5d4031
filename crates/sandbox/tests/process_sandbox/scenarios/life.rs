//! Sandboxes from making to removal, across the deaths of everybody involved.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_sandbox::{SandboxError, SandboxEvent, StartError, User};

use crate::host::{Host, PATIENCE, Pod, chain};

super::scenarios![
    exit_codes,
    signals,
    start_errors,
    restart_in_place,
    exits_wait_for_acknowledgement,
    daemon_restart,
    nonsense_takes_no_agent_away,
    agent_killed,
    zygote_restart,
    leftovers_are_reconciled,
    failed_create_leaves_nothing,
    many_at_once,
    memory_of_an_agent,
    latency,
];

async fn exit_codes(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let (code, said) = pod.run("echo $GREETING; exit 7").await?;
    ensure!((code, said.as_str()) == (7, "hello\n"), "{code} {said:?}");
    let (code, _) = pod.run("true").await?;
    ensure!(code == 0, "{code}");
    pod.destroy().await
}

async fn signals(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    pod.start(pod.shell("polite", script)?).await?;
    pod.wait_until_said("polite", "ready").await?;
    pod.sandbox.signal("polite", libc::SIGTERM).await.map_err(chain)?;
    let exit = pod.exit().await?;
    ensure!((exit.code, exit.signal) == (3, None), "{exit:?}");

    pod.start(pod.container("stubborn", &["/bin/sleep", "1000"])?).await?;
    pod.sandbox.signal("stubborn", libc::SIGTERM).await.map_err(chain)?;
    ensure!(pod.running().await? == ["stubborn"], "PID 1 ignores what it does not handle");
    pod.sandbox.signal("stubborn", libc::SIGKILL).await.map_err(chain)?;
    let exit = pod.exit().await?;
    ensure!((exit.code, exit.signal, exit.oom_killed) == (137, Some(9), false), "{exit:?}");

    pod.start(pod.container("one", &["/bin/sleep", "1000"])?).await?;
    pod.start(pod.container("two", &["/bin/sleep", "1000"])?).await?;
    pod.sandbox.kill_all().await.map_err(chain)?;
    ensure!(pod.exit().await?.code == 137 && pod.exit().await?.code == 137);
    let absent = pod.sandbox.signal("one", libc::SIGKILL).await;
    ensure!(matches!(absent, Err(SandboxError::NoSuchContainer { .. })), "{absent:?}");
    pod.destroy().await
}

async fn start_errors(host: &mut Host) -> Result<()> {
    let pod = host.pod().await?;
    let missing = pod.sandbox.start_container(pod.container("a", &["nothing-here", "x"])?).await;
    ensure!(
        matches!(&missing, Err(StartError::CommandNotFound { command }) if command == "nothing-here"),
        "{missing:?}"
    );
    let missing = pod.sandbox.start_container(pod.container("a", &["/bin/nothing"])?).await;
    ensure!(matches!(&missing, Err(error) if error.exit_code() == 127), "{missing:?}");
    let refused = pod.sandbox.start_container(pod.container("a", &["/etc/passwd"])?).await;
    ensure!(matches!(&refused, Err(StartError::PermissionDenied { .. })), "{refused:?}");
    let directory = pod.sandbox.start_container(pod.container("a", &["/etc"])?).await;
    ensure!(matches!(&directory, Err(StartError::PermissionDenied { .. })), "{directory:?}");
    let mut spec = pod.shell("a", "true")?;
    spec.user = User::Named("stranger".into());
    let unknown = pod.sandbox.start_container(spec).await;
    ensure!(matches!(&unknown, Err(StartError::UnknownUser { user }) if user == "stranger"), "{unknown:?}");
    let mut spec = pod.shell("a", "true")?;
    spec.working_dir = "/etc/passwd/below".into();
    let nowhere = pod.sandbox.start_container(spec).await;
    ensure!(matches!(&nowhere, Err(StartError::BadWorkingDir { .. })), "{nowhere:?}");
    let nameless = pod.sandbox.start_container(pod.shell("a", "true").map(|mut spec| {
        spec.name = "../x".into();
        spec
    })?);
    let nameless = nameless.await;
    ensure!(matches!(&nameless, Err(StartError::Sandbox(SandboxError::Invalid { .. }))), "{nameless:?}");
    ensure!(pod.sandbox.running().await.map_err(chain)?.is_empty());
    pod.destroy().await
}

/// A restart policy starts the same container again and again.
async fn restart_in_place(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    for code in 1..4 {
        let (exited, _) = pod.run(&format!("exit {code}")).await?;
        ensure!(exited == code);
    }
    pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let twice = pod.sandbox.start_container(pod.container("main", &["/bin/true"])?).await;
    ensure!(twice.is_err(), "a name is taken while its container runs");
    pod.destroy().await
}

async fn exits_wait_for_acknowledgement(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.shell("main", "exit 9")?).await?;
    let told = pod.exit().await?;
    pod.events = pod.sandbox.events();
    let again = pod.exit().await?;
    ensure!(told == again && told.code == 9, "{told:?} {again:?}");
    pod.sandbox.acknowledge(told.event_id).await.map_err(chain)?;
    pod.events = pod.sandbox.events();
    ensure!(pod.events.try_recv().is_err(), "an acknowledged exit is forgotten");
    pod.destroy().await
}

/// Nothing that runs notices, nothing that ended meanwhile is lost, and the next daemon goes on.
async fn daemon_restart(host: &mut Host) -> Result<()> {
    let pod = host.pod().await?;
    pod.start(pod.container("stays", &["/bin/sleep", "1000"])?).await?;
    pod.start(pod.shell("ends", "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5")?).await?;
    let (id, root, logs) = (pod.sandbox.id().clone(), pod.sandbox.root_id(), pod.logs);
    drop((pod.events, pod.sandbox));

    let sandboxes = host.next_daemon().await?;
    ensure!(sandboxes.list().await.map_err(chain)?.contains(&id));
    ensure!(sandboxes.reconcile(&HashSet::from([id.clone()])).await.map_err(chain)?.is_empty());
    let adopted = sandboxes.adopt(&id).await.map_err(chain)?;
    ensure!(adopted.root_id() == root && adopted.user_namespace().is_some());
    let exec = sampan_sandbox::ExecSpec { command: vec!["/bin/touch".into(), "/tmp/go".into()], ..Default::default() };
    adopted.exec("ends", exec).await.map_err(chain)?;
    // A second death: the exit may happen before, between or after; it is told in any case.
    drop(adopted);
    let adopted = host.next_daemon().await?.adopt(&id).await.map_err(chain)?;
    let mut pod = Pod { events: adopted.events(), sandbox: adopted, logs };
    let exit = pod.exit().await?;
    ensure!((exit.container.as_str(), exit.code) == ("ends", 5), "{exit:?}");
    ensure!(pod.running().await? == ["stays"]);
    pod.destroy().await?;
    let gone = sandboxes.adopt(&id).await;
    ensure!(matches!(gone, Err(SandboxError::NotFound { .. })));
    Ok(())
}

/// Whoever reaches an agent's socket has to greet as a daemon does before he takes the place of one.
async fn nonsense_takes_no_agent_away(host: &mut Host) -> Result<()> {
    use std::io::Write as _;
    let mut pod = host.pod().await?;
    pod.start(pod.container("stays", &["/bin/sleep", "1000"])?).await?;
    let path = host.agent_socket(pod.sandbox.id());
    let mut silent = Vec::new();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100_000], &[0; 64], b""] {
        for _ in 0..10 {
            let mut stranger = std::os::unix::net::UnixStream::connect(&path)?;
            // The agent may have closed before everything was written.
            drop(stranger.write_all(nonsense));
            silent.push(stranger);
        }
        ensure!(pod.running().await? == ["stays"]);
    }
    let told = tokio::time::timeout(Duration::from_millis(200), pod.events.recv()).await;
    ensure!(told.is_err(), "the daemon believes something happened: {told:?}");
    ensure!(pod.run("exit 6").await?.0 == 6, "it goes on");
    drop(silent);
    ensure!(pod.running().await? == ["stays"]);
    pod.destroy().await
}

async fn agent_killed(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let started = pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let agent = parent(started.pid)?;
    sampan_sys::process::signal_by_pid(agent, libc::SIGKILL)?;
    let event = tokio::time::timeout(PATIENCE, pod.events.recv()).await?;
    ensure!(matches!(event, Some(SandboxEvent::AgentLost { .. })), "{event:?}");
    ensure!(std::fs::metadata(format!("/proc/{}", started.pid)).is_err(), "the container outlives its agent");
    let refused = pod.sandbox.start_container(pod.shell("next", "true")?).await;
    ensure!(refused.is_err());
    pod.destroy().await
}

async fn zygote_restart(host: &mut Host) -> Result<()> {
    let mut before = host.pod().await?;
    host.restart_zygote()?;
    let mut after = host.pod().await?;
    ensure!(before.run("exit 1").await?.0 == 1 && after.run("exit 2").await?.0 == 2);
    before.destroy().await?;
    after.destroy().await
}

async fn leftovers_are_reconciled(host: &mut Host) -> Result<()> {
    let pod = host.pod().await?;
    let started = pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let kept = host.pod().await?;
    let removed =
        host.next_daemon().await?.reconcile(&HashSet::from([kept.sandbox.id().clone()])).await.map_err(chain)?;
    ensure!(removed.len() == 3, "{removed:?}");
    ensure!(std::fs::metadata(format!("/proc/{}", started.pid)).is_err());
    ensure!(pod.destroy().await.is_ok(), "what is gone already is no failure");
    kept.destroy().await
}

async fn failed_create_leaves_nothing(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.sysctls = vec![("kernel.panic".into(), "1".into())];
    let id = spec.id.clone();
    let refused = host.sandboxes.create(spec).await;
    ensure!(
        matches!(&refused, Err(SandboxError::Agent { stage, .. }) if stage.contains("kernel.panic")),
        "{refused:?}"
    );
    ensure!(!host.sandboxes.list().await.map_err(chain)?.contains(&id));
    Ok(())
}

async fn many_at_once(host: &mut Host) -> Result<()> {
    const PODS: usize = 25;
    let host = &*host;
    let began = Instant::now();
    let cycles = (0..PODS).map(|number| async move {
        let mut pod = host.pod().await?;
        let (code, said) = pod.run(&format!("echo {number}; exit {number}")).await?;
        ensure!(code == i32::try_from(number)? && said == format!("{number}\n"), "{code} {said}");
        pod.destroy().await
    });
    futures_util::future::try_join_all(cycles).await?;
    eprintln!("  {PODS} pods at once: {:.1} cycles a second", PODS as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

fn parent(pid: u32) -> Result<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok()).context("no parent")
}

/// Measured, not asserted, as below.
async fn memory_of_an_agent(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let started = pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", parent(started.pid)?))?;
    for line in rollup.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Private_Dirty:")) {
        eprintln!("  agent: {line}");
    }
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

/// Measured, not asserted: the machine is anybody's.
async fn latency(host: &mut Host) -> Result<()> {
    const RUNS: usize = 20;
    let mut phases: [Vec<Duration>; 5] = Default::default();
    for _ in 0..RUNS {
        let began = Instant::now();
        let mut pod = host.pod().await?;
        let created = Instant::now();
        let spec = pod.container("main", &["/bin/true"])?;
        let prepared = Instant::now();
        pod.start(spec).await?;
        let started = Instant::now();
        pod.exit().await?;
        let exited = Instant::now();
        pod.destroy().await?;
        let destroyed = Instant::now();
        let marks = [began, created, prepared, started, exited, destroyed];
        let spans = [(0, 1), (2, 3), (3, 4), (4, 5)].map(|(from, to): (usize, usize)| marks[to] - marks[from]);
        for (phase, span) in phases.iter_mut().zip(spans) {
            phase.push(span);
        }
        phases[4].push((created - began) + (exited - prepared));
    }
    let names = ["create", "start", "exit", "destroy", "create to exit"];
    for (name, mut spans) in names.into_iter().zip(phases) {
        spans.sort_unstable();
        eprintln!("  {name}: median {:.2?}, worst of {RUNS} {:.2?}", spans[RUNS / 2], spans[RUNS - 1]);
    }
    Ok(())
}
