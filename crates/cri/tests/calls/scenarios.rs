//! What the interface has to do.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use sampan_cri::proto::v1::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::node::{Node, PATIENCE};
use crate::spdy;

pub(crate) type Scenario = for<'a> fn(&'a mut Node) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
            vec![$((stringify!($name), |node| Box::pin($name(node)))),*]
        }
    };
}

scenarios![
    the_whole_way,
    what_is_said_twice_is_done_once,
    a_name_is_free_after_a_failure,
    a_program_that_does_not_start,
    nothing_waits_for_a_stop,
    a_container_begins_while_its_pod_is_stopped,
    a_program_is_asked_to_end_by_its_own_signal,
    a_command_that_takes_too_long,
    logs_are_reopened,
    limits_change_in_place,
    events_are_told,
    images_by_every_name,
    addresses_of_streams_work_once,
    streams_are_what_their_client_opened,
    figures_of_what_runs,
    a_stopped_pod_holds_nothing,
    another_daemon_knows_everything,
];

/// Runs the scenarios one after the other; the last one is that nothing is left.
pub(crate) async fn run(filter: Option<&str>) -> ExitCode {
    let mut node = match Node::start().await {
        Ok(node) => node,
        Err(error) => {
            eprintln!("no node to test on: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut failures = 0;
    for (name, scenario) in all() {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let outcome = match tokio::time::timeout(3 * PATIENCE, scenario(&mut node)).await {
            Ok(outcome) => outcome,
            Err(elapsed) => Err(elapsed.into()),
        };
        failures += usize::from(outcome.is_err());
        match outcome {
            Ok(()) => eprintln!("{name} ... ok"),
            Err(error) => eprintln!("{name} ... FAILED: {error:#}"),
        }
    }
    let left = node.finish().await;
    match &left {
        Ok(()) => eprintln!("nothing_is_left ... ok"),
        Err(error) => eprintln!("nothing_is_left ... FAILED: {error:#}"),
    }
    if failures == 0 && left.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn the_whole_way(node: &mut Node) -> Result<()> {
    let version = node.client.runtime.version(VersionRequest::default()).await?.into_inner();
    ensure!(version.runtime_name == "sampan" && version.runtime_api_version == "v1", "{version:?}");
    let config = node.pod_config("whole");
    let pod = node.run_pod(&config).await?;
    let container = node.create(&pod, node.container_config("main", "echo out; echo err >&2; exit 3"), &config).await?;
    ensure!(node.status(&container).await?.state() == ContainerState::ContainerCreated, "it is created");
    node.start_container(&container).await?;
    let ended = node.wait(&container, |status| status.state() == ContainerState::ContainerExited).await?;
    ensure!((ended.exit_code, ended.reason.as_str()) == (3, "Error"), "{ended:?}");
    ensure!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at, "{ended:?}");
    let log = std::fs::read_to_string(&ended.log_path)?;
    ensure!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    let filter = PodSandboxFilter { label_selector: [("app".into(), "whole".into())].into(), ..Default::default() };
    let listed = node.client.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
    ensure!(listed.into_inner().items.len() == 1, "it is listed by its label");
    let status = PodSandboxStatusRequest { pod_sandbox_id: pod.get(..12).context("an id")?.to_owned(), verbose: true };
    let status = node.client.runtime.pod_sandbox_status(status).await?.into_inner();
    let described = status.status.context("a status")?;
    ensure!(described.state() == PodSandboxState::SandboxReady, "{described:?}");
    ensure!(described.network.is_some_and(|network| !network.ip.is_empty()), "it has an address");
    ensure!(status.containers_statuses.len() == 1 && !status.info.is_empty(), "with its container");
    node.client.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    ensure!(node.status(&container).await?.exit_code == 3, "a stop does not change an end");
    node.remove(&pod).await?;
    let gone = node.status(&container).await.err().context("it is gone")?;
    ensure!(gone.downcast_ref::<tonic::Status>().is_some_and(|status| status.code() == Code::NotFound), "{gone:#}");
    // What is gone may be ended again.
    node.client.runtime.stop_container(StopContainerRequest { container_id: container.clone(), timeout: 1 }).await?;
    node.client.runtime.remove_container(RemoveContainerRequest { container_id: container }).await?;
    node.client.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    node.remove(&pod).await
}

async fn what_is_said_twice_is_done_once(node: &mut Node) -> Result<()> {
    let config = node.pod_config("twice");
    let request = || RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let (mut one, mut other) = (node.client.runtime.clone(), node.client.runtime.clone());
    let (first, second) = tokio::join!(one.run_pod_sandbox(request()), other.run_pod_sandbox(request()));
    let pod = first?.into_inner().pod_sandbox_id;
    ensure!(pod == second?.into_inner().pod_sandbox_id, "both hear of the same pod");
    ensure!(pod == node.run_pod(&config).await?, "and so does who comes later");
    let another = PodSandboxConfig { hostname: "other".into(), ..config.clone() };
    let taken = node.run_pod(&another).await.err().context("the name is taken")?;
    ensure!(taken.code() == Code::AlreadyExists, "{taken}");
    let container = node.create(&pod, node.container_config("main", "sleep 100"), &config).await?;
    let again = node.create(&pod, node.container_config("main", "sleep 100"), &config).await?;
    ensure!(container == again, "the same container");
    node.start_container(&container).await?;
    node.start_container(&container).await?;
    node.remove(&pod).await
}

async fn a_name_is_free_after_a_failure(node: &mut Node) -> Result<()> {
    let good = node.pod_config("free");
    let mut bad = good.clone();
    let sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into();
    bad.linux = Some(LinuxPodSandboxConfig { sysctls, ..Default::default() });
    for _ in 0..2 {
        ensure!(node.run_pod(&bad).await.is_err(), "a setting of the whole machine is refused");
    }
    let pod = node.run_pod(&good).await?;
    let missing = ImageSpec { image: "localhost:1/none:1".into(), ..Default::default() };
    let absent = ContainerConfig { image: Some(missing), ..node.container_config("main", "true") };
    let refused = node.create(&pod, absent, &good).await.err().context("there is no such image")?;
    ensure!(refused.code() == Code::NotFound, "{refused}");
    node.create(&pod, node.container_config("main", "true"), &good).await?;
    node.remove(&pod).await
}

async fn a_program_that_does_not_start(node: &mut Node) -> Result<()> {
    let config = node.pod_config("start");
    let pod = node.run_pod(&config).await?;
    let broken = ContainerConfig { command: vec!["/no/such".into()], ..node.container_config("main", "") };
    let container = node.create(&pod, broken, &config).await?;
    let error = node.start_container(&container).await.err().context("it cannot start")?;
    ensure!(error.message().contains("/no/such"), "{error}");
    let status = node.status(&container).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (128, "StartError"), "{status:?}");
    let next = ContainerMetadata { name: "main".into(), attempt: 1 };
    let next = ContainerConfig { metadata: Some(next), ..node.container_config("main", "sleep 100") };
    let next = node.create(&pod, next, &config).await?;
    node.start_container(&next).await?;
    node.remove(&pod).await
}

async fn nothing_waits_for_a_stop(node: &mut Node) -> Result<()> {
    let (pod, container) = node.running("stubborn", "trap '' QUIT; while :; do sleep 1; done").await?;
    let stop = |timeout| StopContainerRequest { container_id: container.clone(), timeout };
    let mut patient = node.client.runtime.clone();
    let patient = tokio::spawn({
        let request = stop(3600);
        async move { patient.stop_container(request).await }
    });
    ensure!(node.status(&container).await?.state() == ContainerState::ContainerRunning, "it still runs");
    ensure!(node.exec(&container, "echo here").await?.stdout == b"here\n", "commands run meanwhile");
    node.client.runtime.stop_container(stop(0)).await?;
    ensure!(node.status(&container).await?.exit_code == 137, "the second one overtook, and it was killed");
    ensure!(patient.await?.is_ok(), "the first one is over with it");
    node.remove(&pod).await
}

async fn a_container_begins_while_its_pod_is_stopped(node: &mut Node) -> Result<()> {
    for round in 0..8 {
        let config = node.pod_config(&format!("atonce{round}"));
        let pod = node.run_pod(&config).await?;
        let container = node.create(&pod, node.container_config("main", "sleep 100"), &config).await?;
        let (mut starter, mut stopper) = (node.client.runtime.clone(), node.client.runtime.clone());
        let start = starter.start_container(StartContainerRequest { container_id: container.clone() });
        let stop = async {
            // Somewhere within the start, another place each time.
            tokio::time::sleep(Duration::from_millis(round)).await;
            stopper.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await
        };
        let (started, stopped) = tokio::join!(start, stop);
        stopped?;
        let status = node.status(&container).await?;
        ensure!(status.state() != ContainerState::ContainerRunning, "round {round}: {started:?}, {status:?}");
        node.remove(&pod).await?;
    }
    Ok(())
}

async fn a_program_is_asked_to_end_by_its_own_signal(node: &mut Node) -> Result<()> {
    let config = node.pod_config("polite");
    let pod = node.run_pod(&config).await?;
    let script = "trap 'exit 8' QUIT; trap 'exit 9' TERM; while :; do sleep 0.05; done";
    let by_image = node.container_config("image", script);
    let by_request =
        ContainerConfig { stop_signal: Signal::Sigterm.into(), ..node.container_config("request", script) };
    for (container, code) in [(by_image, 8), (by_request, 9)] {
        let container = node.create(&pod, container, &config).await?;
        node.start_container(&container).await?;
        // At once: the program has hardly begun.
        node.client
            .runtime
            .stop_container(StopContainerRequest { container_id: container.clone(), timeout: 3600 })
            .await?;
        ensure!(node.status(&container).await?.exit_code == code, "it heard: {:?}", node.status(&container).await?);
    }
    node.remove(&pod).await
}

async fn a_command_that_takes_too_long(node: &mut Node) -> Result<()> {
    let (pod, container) = node.running("slow", "sleep 100").await?;
    let cmd = ["sleep", "4321"].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: container.clone(), cmd, timeout: 1 };
    let late = node.client.runtime.exec_sync(request).await.err().context("it takes too long")?;
    ensure!(late.code() == Code::DeadlineExceeded, "{late}");
    let running = node.exec(&container, "cat /proc/[0-9]*/cmdline").await?;
    let running = String::from_utf8_lossy(&running.stdout).into_owned();
    ensure!(running.contains("sleep") && !running.contains("4321"), "it is gone: {running:?}");
    let failed = node.exec(&container, "echo no >&2; exit 4").await?;
    ensure!((failed.exit_code, failed.stderr.as_slice()) == (4, b"no\n".as_slice()), "{failed:?}");
    node.remove(&pod).await
}

async fn logs_are_reopened(node: &mut Node) -> Result<()> {
    let (pod, container) =
        node.running("logs", "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two; sleep 100").await?;
    let path = std::path::PathBuf::from(node.status(&container).await?.log_path);
    let moved = path.with_extension("1");
    std::fs::rename(&path, &moved)?;
    let request = ReopenContainerLogRequest { container_id: container.clone() };
    node.client.runtime.reopen_container_log(request).await?;
    node.exec(&container, "touch /tmp/go").await?;
    let began = Instant::now();
    while !std::fs::read_to_string(&path)?.contains(" two\n") {
        ensure!(began.elapsed() < PATIENCE, "the new file is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ensure!(!std::fs::read_to_string(&moved)?.contains("two"), "the old one is not");
    node.remove(&pod).await
}

async fn limits_change_in_place(node: &mut Node) -> Result<()> {
    let (pod, container) = node.running("limits", "sleep 100").await?;
    let linux = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, cpu_shares: 512, ..Default::default() };
    let request =
        UpdateContainerResourcesRequest { container_id: container.clone(), linux: Some(linux), ..Default::default() };
    node.client.runtime.update_container_resources(request).await?;
    let resources = node.status(&container).await?.resources.and_then(|resources| resources.linux);
    ensure!(
        resources.is_some_and(|now| now.memory_limit_in_bytes == 64 << 20 && now.cpu_shares == 512),
        "they are told"
    );
    let read = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
    let seen = node.exec(&container, read).await?;
    ensure!(String::from_utf8_lossy(&seen.stdout).contains("67108864"), "and obeyed: {seen:?}");
    node.remove(&pod).await
}

async fn events_are_told(node: &mut Node) -> Result<()> {
    let mut events = node.client.runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    let (pod, container) = node.running("events", "exit 0").await?;
    node.wait(&container, |status| status.state() == ContainerState::ContainerExited).await?;
    node.remove(&pod).await?;
    let mut told = Vec::new();
    let all = async {
        while let Some(event) = events.next().await {
            let event = event?;
            let kind = event.container_event_type();
            if event.container_id == container {
                told.push(kind);
            }
            if event.container_id == pod && kind == ContainerEventType::ContainerDeletedEvent {
                break;
            }
        }
        Ok::<_, tonic::Status>(())
    };
    tokio::time::timeout(PATIENCE, all).await??;
    use ContainerEventType as Kind;
    told.sort_unstable();
    let expected = [
        Kind::ContainerCreatedEvent,
        Kind::ContainerStartedEvent,
        Kind::ContainerStoppedEvent,
        Kind::ContainerDeletedEvent,
    ];
    ensure!(told == expected, "{told:?}");
    Ok(())
}

async fn images_by_every_name(node: &mut Node) -> Result<()> {
    let images = node.client.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
    let [image] = images.as_slice() else { anyhow::bail!("one image: {images:?}") };
    ensure!(image.size > 0 && !image.pinned, "{image:?}");
    let short = image.id.trim_start_matches("sha256:").get(..12).context("an id")?.to_owned();
    for name in [node.image.clone(), image.id.clone(), short] {
        let spec = Some(ImageSpec { image: name.clone(), ..Default::default() });
        let status = node.client.images.image_status(ImageStatusRequest { image: spec, verbose: false }).await?;
        ensure!(status.into_inner().image.is_some_and(|found| found.id == image.id), "{name} finds it");
    }
    let spec = Some(ImageSpec { image: "nobody/nothing:1".into(), ..Default::default() });
    let absent = node.client.images.image_status(ImageStatusRequest { image: spec.clone(), verbose: false }).await?;
    ensure!(absent.into_inner().image.is_none(), "what is not here is no failure");
    node.client.images.remove_image(RemoveImageRequest { image: spec }).await?;
    let usage = node.client.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    let used = usage.image_filesystems.first().and_then(|usage| usage.used_bytes).context("a file system")?;
    ensure!(used.value > 0, "it holds something");
    let (pod, _container) = node.running("holds", "sleep 100").await?;
    let spec = Some(ImageSpec { image: node.image.clone(), ..Default::default() });
    let kept = node.client.images.remove_image(RemoveImageRequest { image: spec.clone() }).await.err();
    ensure!(kept.is_some_and(|error| error.code() == Code::FailedPrecondition), "an image in use stays");
    node.remove(&pod).await?;
    node.client.images.remove_image(RemoveImageRequest { image: spec.clone() }).await?;
    let pulled = node.client.images.pull_image(PullImageRequest { image: spec, ..Default::default() }).await?;
    ensure!(pulled.into_inner().image_ref == image.id, "the same image again");
    Ok(())
}

/// The answer's first line to a request for an upgrade.
async fn knock(url: &str) -> Result<String> {
    let (address, path) = url.trim_start_matches("http://").split_once('/').context("a path")?;
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer).await?;
    let answer = String::from_utf8_lossy(answer.get(..read).unwrap_or_default()).into_owned();
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

async fn addresses_of_streams_work_once(node: &mut Node) -> Result<()> {
    let (pod, container) = node.running("streams", "sleep 100").await?;
    let cmd = vec!["echo".to_owned(), "hi".to_owned()];
    let request = ExecRequest { container_id: container.clone(), cmd, stdout: true, ..Default::default() };
    let url = node.client.runtime.exec(request.clone()).await?.into_inner().url;
    ensure!(url.starts_with("http://127.0.0.1:"), "{url}");
    ensure!(knock(&url).await?.contains("101"), "the first client is let in");
    ensure!(knock(&url).await?.contains("404"), "the second is not");
    ensure!(knock(&url.replace("/exec/", "/attach/")).await?.contains("404"), "nor by another door");
    let both = ExecRequest { tty: true, stderr: true, ..request };
    let refused = node.client.runtime.exec(both).await.err().context("a terminal has one output")?;
    ensure!(refused.code() == Code::InvalidArgument, "{refused}");
    node.remove(&pod).await
}

/// Over SPDY a session begins when the client has opened every stream that it is offered: one too many, and both wait.
async fn streams_are_what_their_client_opened(node: &mut Node) -> Result<()> {
    let config = node.pod_config("opened");
    let pod = node.run_pod(&config).await?;
    let script = "echo said; read word; echo heard $word; read word";
    let terminal = ContainerConfig { tty: true, stdin: true, ..node.container_config("terminal", script) };
    let container = node.create(&pod, terminal, &config).await?;
    node.start_container(&container).await?;

    let exec = ExecRequest { container_id: container.clone(), cmd: vec!["/no/such".into()], ..Default::default() };
    let (with_terminal, without) = (
        ExecRequest { tty: true, stdin: true, stdout: true, ..exec.clone() },
        ExecRequest { stdout: true, stderr: true, ..exec },
    );
    for (request, streams, at) in [
        (with_terminal, &["error", "stdin", "stdout", "resize"][..], "stdout"),
        (without, &["error", "stdout", "stderr"], "stderr"),
    ] {
        let url = node.client.runtime.exec(request).await?.into_inner().url;
        let mut session = spdy::Session::open(&url, streams).await?;
        let status = session.read_until_status().await?;
        ensure!(session.text(at).contains("/no/such"), "it says what is missing: {status} {}", session.text(at));
        ensure!(status.contains("\"127\""), "and ends as a shell would: {status}");
    }

    let unheard = vec!["/bin/sh".into(), "-c".into(), "for i in 1 2 3; do /bin/echo $i || exit 1; done; exit 6".into()];
    let unheard = ExecRequest { container_id: container.clone(), cmd: unheard, stderr: true, ..Default::default() };
    let url = node.client.runtime.exec(unheard).await?.into_inner().url;
    let status = spdy::Session::open(&url, &["error", "stderr"]).await?.read_until_status().await?;
    ensure!(status.contains("\"6\""), "an output that nobody wants does not end who writes it: {status}");

    // The container has a terminal, its client has none and opens no stream of sizes.
    let attach = AttachRequest { container_id: container, stdin: true, stdout: true, ..Default::default() };
    let url = node.client.runtime.attach(attach).await?.into_inner().url;
    let mut session = spdy::Session::open(&url, &["error", "stdin", "stdout"]).await?;
    session.say("you\n").await?;
    session.read_until("stdout", "heard you").await?;
    node.remove(&pod).await
}

async fn figures_of_what_runs(node: &mut Node) -> Result<()> {
    let (pod, container) = node.running("figures", "while :; do :; done").await?;
    let mut stats = ContainerStats::default();
    let began = Instant::now();
    while stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).is_none_or(|used| used.value == 0) {
        ensure!(began.elapsed() < PATIENCE, "it uses the processor: {stats:?}");
        let request = ContainerStatsRequest { container_id: container.clone() };
        stats = node.client.runtime.container_stats(request).await?.into_inner().stats.unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(stats.memory.and_then(|memory| memory.usage_bytes).is_some_and(|used| used.value > 0), "and memory");
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let linux = node.client.runtime.pod_sandbox_stats(request).await?.into_inner().stats.and_then(|stats| stats.linux);
    let linux = linux.context("figures of the pod")?;
    ensure!(linux.containers.len() == 1 && linux.network.is_some(), "{linux:?}");
    let metrics = node.client.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?.into_inner();
    let named = metrics.pod_metrics.iter().flat_map(|pod| &pod.container_metrics).flat_map(|one| &one.metrics);
    ensure!(named.into_iter().any(|metric| metric.name == "container_memory_rss"), "under cAdvisor's names");
    let checkpoint = node.client.runtime.checkpoint_container(CheckpointContainerRequest::default()).await.err();
    ensure!(checkpoint.is_some_and(|error| error.code() == Code::Unimplemented), "there are no checkpoints");
    node.remove(&pod).await
}

/// Loop devices on disks of this node.
fn disks_in_use(node: &Node) -> Result<usize> {
    let folder = node.folder.path().to_string_lossy().into_owned();
    let mut count = 0;
    for device in std::fs::read_dir("/sys/block")? {
        let backing = std::fs::read_to_string(device?.path().join("loop/backing_file")).unwrap_or_default();
        count += usize::from(backing.contains(&folder) && backing.contains("disk.img"));
    }
    Ok(count)
}

/// Waits until no disk of this node is in use: disks go behind the scenes.
async fn until_no_disk_is_in_use(node: &Node, why: &'static str) -> Result<()> {
    let began = Instant::now();
    while disks_in_use(node)? > 0 {
        ensure!(began.elapsed() < PATIENCE, why);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn a_stopped_pod_holds_nothing(node: &mut Node) -> Result<()> {
    until_no_disk_is_in_use(node, "the disks of removed pods go").await?;
    let (pod, _container) = node.running("holds-nothing", "sleep 100").await?;
    ensure!(disks_in_use(node)? == 1, "it has a disk");
    node.client.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    until_no_disk_is_in_use(node, "its disk goes with its stop, not with the daemon").await?;
    node.remove(&pod).await
}

async fn another_daemon_knows_everything(node: &mut Node) -> Result<()> {
    let config = node.pod_config("survivor");
    let pod = node.run_pod(&config).await?;
    let script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo gone; exit 7";
    let ends = node.create(&pod, node.container_config("ends", script), &config).await?;
    let stays = node.create(&pod, node.container_config("stays", "sleep 100"), &config).await?;
    let waits = node.create(&pod, node.container_config("waits", "echo late; sleep 100"), &config).await?;
    let over = node.create(&pod, node.container_config("over", "exit 5"), &config).await?;
    for id in [&ends, &stays, &over] {
        node.start_container(id).await?;
    }
    node.wait(&over, |status| status.state() == ContainerState::ContainerExited).await?;
    let before = node.status(&stays).await?;
    // Its end falls into the gap: the file appears when nobody listens.
    let trigger = node.exec(&ends, "(sleep 0.3; touch /tmp/go) >/dev/null 2>&1 &").await?;
    ensure!(trigger.exit_code == 0, "{trigger:?}");
    let log = node.status(&ends).await?.log_path;
    let nobody_listens = async || {
        // Its log goes on without a daemon.
        let said = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(" gone\n"));
        while !said() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    node.restart(nobody_listens).await?;
    let ended = node.wait(&ends, |status| status.state() == ContainerState::ContainerExited).await?;
    ensure!(ended.exit_code == 7, "its code is known: {ended:?}");
    ensure!(node.status(&over).await?.exit_code == 5, "so is an older one");
    let after = node.status(&stays).await?;
    ensure!(
        (after.state(), after.started_at, after.user.clone()) == (before.state(), before.started_at, before.user),
        "{after:?}"
    );
    ensure!(node.exec(&stays, "echo still").await?.stdout == b"still\n", "it goes on");
    node.start_container(&waits).await?;
    ensure!(node.run_pod(&config).await? == pod, "the name is still its own");
    node.remove(&pod).await
}
