//! What pods by the runtime have to do.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_runtime::RuntimeError;
use sampan_runtime::pod::PodConfig;
use sampan_runtime::timeline::Timeline;
use sampan_runtime::volume::{HostPathKind, MountOrigin, Propagation, VolumeConfig, VolumeMount, VolumeSource};
use sampan_sandbox::IdMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::{Host, PATIENCE, chain, command, said};

const SIGTERM: i32 = 15;

pub(crate) type Scenario = for<'a> fn(&'a mut Host) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
            vec![$((stringify!($name), |host| Box::pin($name(host)))),*]
        }
    };
}

scenarios![
    a_container_runs,
    creating_is_not_starting,
    logs_go_where_they_are_told,
    commands_end_in_time,
    ports_are_reached,
    the_hosts_network,
    given_ids,
    volumes_of_all_kinds,
    paths_in_volumes_lead_nowhere_else,
    mounts_propagate_as_told,
    below_a_read_only_mount,
    a_pod_that_cannot_be_leaves_nothing,
    what_cannot_be_removed_is_tried_again,
    the_pool_serves,
    the_pool_of_a_killed_daemon_is_removed,
    latency,
];

/// Runs the scenarios one after the other; the last one is that nothing is left.
pub(crate) async fn run(filter: Option<&str>) -> ExitCode {
    let mut host = match Host::start(0).await {
        Ok(host) => host,
        Err(error) => {
            eprintln!("no node to test on: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut failures = 0;
    let selected = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    for (name, scenario) in all().into_iter().filter(|(name, _)| selected(name)) {
        let began = Instant::now();
        match scenario(&mut host).await {
            Ok(()) => eprintln!("test {name} ... ok ({} ms)", began.elapsed().as_millis()),
            Err(error) => {
                failures += 1;
                eprintln!("test {name} ... FAILED: {error:#}");
            }
        }
    }
    if failures > 0 {
        // Whatever they left is not what is looked for below.
        if let Err(error) = host.restart(0).await {
            eprintln!("the leftovers cannot be removed: {error:#}");
        }
    }
    if let Err(error) = host.finish().await {
        eprintln!("test nothing_is_left ... FAILED: {error:#}");
        failures += 1;
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn a_container_runs(host: &mut Host) -> Result<()> {
    let mut guest = host.pod(host.config("plain")).await?;
    let config = guest.shell("main", "hostname; cat /data/word; grep -q plain /etc/hosts && echo known; exit 7");
    ensure!(config.effective_stop_signal() == 3, "the image says SIGQUIT");
    let (code, said) = guest.run(&config).await?;
    ensure!((code, said.as_str()) == (7, "plain\nfrom the image\nknown\n"), "{code} {said}");
    guest.remove().await
}

async fn creating_is_not_starting(host: &mut Host) -> Result<()> {
    let guest = host.pod(host.config("twostep")).await?;
    let config = guest.shell("main", "sleep 1000");
    let created = guest.pod.create_container(&config, &host.images, &Timeline::default()).await.map_err(chain)?;
    ensure!(guest.pod.running_containers().await.map_err(chain)?.is_empty());
    drop(created);
    let created = guest.pod.create_container(&config, &host.images, &Timeline::default()).await.map_err(chain)?;
    guest.pod.start_container(created, &Timeline::default()).await.map_err(chain)?;
    ensure!(guest.pod.running_containers().await.map_err(chain)?.len() == 1);
    guest.pod.stop_container("main", SIGTERM, Duration::from_millis(20)).await.map_err(chain)?;
    ensure!(guest.pod.running_containers().await.map_err(chain)?.is_empty());
    guest.remove().await
}

async fn logs_go_where_they_are_told(host: &mut Host) -> Result<()> {
    let directory = host.folder.path().join("kubelet/logs");
    let config = PodConfig { log_directory: Some(directory.clone()), ..host.config("logging") };
    let guest = host.pod(config).await?;
    let mut config =
        guest.shell("main", "echo one; while ! test -e /tmp/go; do sleep 0.02; done; echo two; sleep 1000");
    config.log_path = Some("main/0.log".into());
    guest.start(&config).await?;
    guest.wait_until_said(&config, "one").await?;
    let log = directory.join("main/0.log");
    ensure!(log.metadata()?.permissions().mode() & 0o7777 == 0o640, "root's alone");
    let rotated = directory.join("main/0.log.1");
    std::fs::rename(&log, &rotated)?;
    guest.pod.reopen_log("main", &log).await.map_err(chain)?;
    guest.exec("main", "touch /tmp/go").await?;
    guest.wait_until_said(&config, "two").await?;
    ensure!(said(&rotated)? == "one\n");
    guest.remove().await
}

async fn commands_end_in_time(host: &mut Host) -> Result<()> {
    let guest = host.pod(host.config("exec")).await?;
    guest.start(&guest.shell("main", "sleep 1000")).await?;
    let output = guest.pod.exec_sync("main", command("echo out; echo err >&2; exit 5"), None).await.map_err(chain)?;
    let expected = ("out\n".as_bytes(), "err\n".as_bytes(), 5);
    ensure!((&*output.stdout, &*output.stderr, output.exit_code) == expected, "{output:?}");
    let soon = Some(Duration::from_millis(100));
    let late = guest.pod.exec_sync("main", command("sleep 4321 & sleep 4321"), soon).await;
    ensure!(matches!(&late, Err(RuntimeError::ExecTimeout { .. })), "{late:?}");
    let began = Instant::now();
    while guest.exec("main", "ps").await?.contains("sleep 4321") {
        ensure!(began.elapsed() < PATIENCE, "it was not killed");
    }
    // Whoever stays behind holds the output open, and nobody waits for that.
    let left = guest.pod.exec_sync("main", command("sleep 1000 & echo done"), None).await.map_err(chain)?;
    ensure!(left.stdout == b"done\n", "{left:?}");
    guest.remove().await
}

async fn ports_are_reached(host: &mut Host) -> Result<()> {
    let guest = host.pod(host.config("ports")).await?;
    let config = guest.shell("main", "echo ready; exec nc -l -p 7777 -e /bin/cat");
    guest.start(&config).await?;
    guest.wait_until_said(&config, "ready").await?;
    let began = Instant::now();
    let mut stream = loop {
        match guest.pod.port_forward(7777).await {
            Ok(stream) => break stream,
            Err(error) => ensure!(began.elapsed() < PATIENCE, "{:#}", chain(error)),
        }
    };
    stream.write_all(b"there and back\n").await?;
    let mut heard = [0; 15];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard)).await??;
    ensure!(&heard == b"there and back\n");
    let nobody = guest.pod.port_forward(7778).await;
    ensure!(matches!(&nobody, Err(RuntimeError::Port { port: 7778, .. })), "{nobody:?}");
    guest.remove().await
}

async fn the_hosts_network(host: &mut Host) -> Result<()> {
    let config = PodConfig { hostname: String::new(), host_network: true, ..host.config("hostnet") };
    let mut guest = host.pod(config).await?;
    ensure!(guest.pod.addresses().is_empty());
    let (_, said) = guest.run(&guest.shell("main", "readlink /proc/self/ns/net; hostname; cat /etc/hostname")).await?;
    let network = std::fs::read_link("/proc/self/ns/net")?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    ensure!(said == format!("{}\n{hostname}\n{hostname}\n", network.display()), "{said}");
    guest.remove().await
}

async fn given_ids(host: &mut Host) -> Result<()> {
    let map = vec![IdMap { inside: 0, outside: 2_050_000_000, length: 65_536 }];
    let config = PodConfig { uid_mappings: Some(map), ..host.config("mapped") };
    let mut guest = host.pod(config).await?;
    ensure!(guest.pod.sandbox().root_id() == 2_050_000_000);
    let (_, said) = guest.run(&guest.shell("main", "touch /tmp/x; stat -c %u /tmp/x /data/word /etc/hosts")).await?;
    ensure!(said == "0\n0\n0\n", "{said}");
    guest.remove().await
}

fn volume(name: &str, path: &str) -> VolumeMount {
    VolumeMount::new(MountOrigin::Volume(name.into()), path)
}

async fn volumes_of_all_kinds(host: &mut Host) -> Result<()> {
    let made = host.folder.path().join("made/on/demand");
    let config = PodConfig {
        volumes: vec![
            VolumeConfig { name: "scratch".into(), source: VolumeSource::EmptyDir { memory: false, size_bytes: None } },
            VolumeConfig {
                name: "shared".into(),
                source: VolumeSource::HostPath {
                    path: host.folder.path().join("shared"),
                    kind: HostPathKind::DirectoryOrCreate,
                },
            },
        ],
        ..host.config("volumes")
    };
    let image = Arc::clone(&host.image);
    let mut guest = host.pod(config).await?;
    let mut config = guest.shell(
        "main",
        "touch /scratch/x && touch /shared/x && touch /made/x && stat -c %u /shared/x; cat /image/word; \
         touch /image/x 2>&1 | grep -c Read-only; /programs/busybox true 2>&1 | grep -c denied",
    );
    config.mounts = vec![
        volume("scratch", "/scratch"),
        volume("shared", "/shared"),
        VolumeMount::new(MountOrigin::Host { path: made.clone(), create: true }, "/made"),
        VolumeMount {
            sub_path: Some("data".into()),
            ..VolumeMount::new(MountOrigin::Image(Arc::clone(&image)), "/image")
        },
        VolumeMount { sub_path: Some("bin".into()), ..VolumeMount::new(MountOrigin::Image(image), "/programs") },
    ];
    let (_, said) = guest.run(&config).await?;
    ensure!(said == "0\nfrom the image\n1\n1\n", "{said}");
    ensure!(made.join("x").exists());
    let owner = std::os::unix::fs::MetadataExt::uid(&host.folder.path().join("shared/x").metadata()?);
    ensure!(owner == 0, "what root inside writes belongs to root outside: {owner}");

    let mut config = guest.shell("other", "true");
    config.mounts = vec![VolumeMount::new(MountOrigin::Host { path: "/nothing/here".into(), create: false }, "/x")];
    ensure!(guest.start(&config).await.is_err());
    config.mounts = vec![VolumeMount { recursive_read_only: true, ..volume("shared", "/x") }];
    ensure!(guest.start(&config).await.is_err_and(|error| error.to_string().contains("recursively read-only")));
    config.mounts = vec![VolumeMount { propagation: Propagation::Bidirectional, ..volume("shared", "/x") }];
    ensure!(guest.start(&config).await.is_err_and(|error| error.to_string().contains("Bidirectional")));
    guest.remove().await
}

async fn paths_in_volumes_lead_nowhere_else(host: &mut Host) -> Result<()> {
    let source = VolumeSource::EmptyDir { memory: false, size_bytes: None };
    let config = PodConfig { volumes: vec![VolumeConfig { name: "trap".into(), source }], ..host.config("subpath") };
    let mut guest = host.pod(config).await?;
    let mut config =
        guest.shell("setter", "ln -s / /trap/link; ln -s ../../../../etc /trap/up; mkdir /trap/plain; busybox true");
    config.command = ["/bin/busybox", "sh", "-c", "busybox ln -s / /trap/link; busybox ln -s ../../../../etc /trap/up"]
        .map(str::to_owned)
        .to_vec();
    config.mounts = vec![volume("trap", "/trap")];
    guest.run(&config).await?;
    for (sub_path, expected) in [("link", "link\nup\n"), ("up", ""), ("a/b", "")] {
        let mut config = guest.shell("reader", "ls /seen");
        config.mounts = vec![VolumeMount { sub_path: Some(sub_path.into()), ..volume("trap", "/seen") }];
        match guest.run(&config).await {
            Ok((_, said)) => {
                let log = guest.pod.container_log(&config);
                std::fs::remove_file(log)?;
                ensure!(said == expected || sub_path == "link" && said.starts_with("a\nlink"), "{sub_path}: {said}");
            }
            Err(error) => ensure!(sub_path == "up", "{sub_path}: {error:#}"),
        }
    }
    let mut config = guest.shell("reader", "true");
    config.mounts = vec![VolumeMount { sub_path: Some("../..".into()), ..volume("trap", "/seen") }];
    // Within the volume's root, `..` of it is itself.
    guest.run(&config).await?;
    guest.remove().await
}

/// A directory of the host that is a shared mount, taken away with the guard.
struct SharedMount(PathBuf);

impl SharedMount {
    fn new(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path)?;
        run_mount(&["--bind", &path.to_string_lossy(), &path.to_string_lossy()])?;
        run_mount(&["--make-rshared", &path.to_string_lossy()])?;
        Ok(Self(path))
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        Command::new("umount").arg("-R").arg(&self.0).status().ok();
    }
}

fn run_mount(arguments: &[&str]) -> Result<()> {
    let status = Command::new("mount").args(arguments).status().context("run mount")?;
    ensure!(status.success(), "mount {arguments:?} fails");
    Ok(())
}

fn mount_tmpfs(at: &Path) -> Result<()> {
    std::fs::create_dir_all(at)?;
    run_mount(&["-t", "tmpfs", "tmpfs", &at.to_string_lossy()])?;
    Ok(std::fs::write(at.join("mark"), "")?)
}

async fn mounts_propagate_as_told(host: &mut Host) -> Result<()> {
    let shared = SharedMount::new(host.folder.path().join("shared-mount"))?;
    let origin = || MountOrigin::Host { path: shared.0.clone(), create: false };
    let config = PodConfig { host_users: true, ..host.config("propagation") };
    let guest = host.pod(config).await?;
    for (name, propagation) in [
        ("private", Propagation::Private),
        ("slave", Propagation::HostToContainer),
        ("both", Propagation::Bidirectional),
    ] {
        let mut config = guest.shell(name, "echo ready; sleep 1000");
        config.privileged = true;
        config.mounts = vec![VolumeMount { propagation, ..VolumeMount::new(origin(), "/mnt") }];
        guest.start(&config).await.with_context(|| format!("start {name}"))?;
        guest.wait_until_said(&config, "ready").await?;
    }
    mount_tmpfs(&shared.0.join("later"))?;
    for (name, sees) in [("private", false), ("slave", true), ("both", true)] {
        let seen = guest.exec(name, "test -e /mnt/later/mark && echo yes").await?;
        ensure!((seen == "yes\n") == sees, "{name}: {seen:?}");
    }
    for (name, reaches) in [("slave", false), ("both", true)] {
        let inside = format!("mkdir /mnt/{name}; mount -t tmpfs tmpfs /mnt/{name} && touch /mnt/{name}/mark");
        let complaint = guest.exec(name, &inside).await?;
        ensure!(complaint.is_empty(), "{complaint}");
        ensure!(shared.0.join(name).join("mark").exists() == reaches, "{name}");
    }
    guest.remove().await
}

async fn below_a_read_only_mount(host: &mut Host) -> Result<()> {
    let shared = SharedMount::new(host.folder.path().join("read-only"))?;
    mount_tmpfs(&shared.0.join("inner"))?;
    let mut guest = host.pod(host.config("readonly")).await?;
    let origin = || MountOrigin::Host { path: shared.0.clone(), create: false };
    for (name, recursive_read_only, expected) in [("top", false, "1\n0\n"), ("all", true, "1\n1\n")] {
        let mut config =
            guest.shell(name, "touch /mnt/x 2>/dev/null; echo $?; touch /mnt/inner/x 2>/dev/null; echo $?");
        config.mounts =
            vec![VolumeMount { read_only: true, recursive_read_only, ..VolumeMount::new(origin(), "/mnt") }];
        let (_, said) = guest.run(&config).await?;
        ensure!(said == expected, "{name}: {said}");
    }
    guest.remove().await
}

/// How many sandboxes there are in all.
fn sandboxes(host: &Host) -> Result<usize> {
    Ok(ids(host)?.len())
}

async fn until_ready(host: &Host, wanted: usize) -> Result<()> {
    let began = Instant::now();
    while host.runtime.ready_sandboxes() != wanted {
        ensure!(began.elapsed() < PATIENCE, "{} sandboxes ready instead of {wanted}", host.runtime.ready_sandboxes());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// One part fails at once, while the other is still being made.
async fn a_pod_that_cannot_be_leaves_nothing(host: &mut Host) -> Result<()> {
    let missing = VolumeSource::HostPath { path: "/nowhere".into(), kind: HostPathKind::Directory };
    let volumes = vec![VolumeConfig { name: "missing".into(), source: missing }];
    for round in 0..8 {
        let no_disk = PodConfig { disk_bytes: 1, ..host.config("nodisk") };
        let no_volume = PodConfig { volumes: volumes.clone(), ..host.config("novolume") };
        for config in [no_disk, no_volume] {
            ensure!(host.runtime.create(config, &Timeline::default()).await.is_err(), "round {round}: it can be");
            let left = [ids(host)?, host.agents()?].concat();
            ensure!(left.is_empty(), "round {round}: left behind: {left:?}");
        }
    }
    Ok(())
}

/// Somebody holds the folder of the pod for a while.
async fn what_cannot_be_removed_is_tried_again(host: &mut Host) -> Result<()> {
    let guest = host.pod(host.config("held")).await?;
    let sandboxes = host.folder.path().join("data/sandboxes");
    let folders = || -> Result<Vec<_>> { Ok(std::fs::read_dir(&sandboxes)?.collect::<Result<_, _>>()?) };
    let [folder] = folders()?.try_into().map_err(|found| anyhow::anyhow!("not one folder: {found:?}"))?;
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "held"]).arg(folder.path()).status()?;
    ensure!(mounted.success(), "mount: {mounted}");
    host.runtime.remove(&guest.pod).await?;
    let began = Instant::now();
    while !ids(host)?.is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(30), "its agent's folder stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.runtime.mend().await?;
    ensure!(folders()?.len() == 1, "a mount point can be removed");
    rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::empty())?;
    while !folders()?.is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(30), "it is not tried again");
        host.runtime.mend().await?;
    }
    Ok(())
}

async fn the_pool_serves(host: &mut Host) -> Result<()> {
    host.restart(2).await?;
    until_ready(host, 2).await?;
    let before = ids(host)?;
    let mut guest = host.pod(host.config("claimed")).await?;
    ensure!(before.contains(&guest.pod.id().to_owned()), "it was ready");
    let script = "hostname; cat /etc/hostname; touch /tmp/x; stat -c %u /tmp/x";
    let (_, said) = guest.run(&guest.shell("main", script)).await?;
    ensure!(said == "claimed\nclaimed\n0\n", "{said}");
    ensure!(!guest.pod.addresses().is_empty());
    until_ready(host, 2).await?;
    let row = host.runtime.live_row("uid-claimed").map_err(chain)?;
    ensure!(row.is_some_and(|row| row.id == guest.pod.id() && row.pod_name == "test/claimed"));
    // Users of the host are another kind, kept from the first of them on.
    let other = host.pod(PodConfig { host_users: true, ..host.config("hostusers") }).await?;
    ensure!(!before.contains(&other.pod.id().to_owned()));
    until_ready(host, 4).await?;
    ensure!(sandboxes(host)? == 6, "{:?}", ids(host)?);
    other.remove().await?;
    guest.remove().await?;
    let many: Vec<String> = (0..6).map(|number| format!("burst{number}")).collect();
    let mut seen = std::collections::HashSet::new();
    for name in &many {
        let guest = host.pod(host.config(name)).await?;
        ensure!(seen.insert(guest.pod.id().to_owned()), "a sandbox is used once");
        guest.remove().await?;
    }
    host.runtime.close().await.map_err(chain)?;
    ensure!(!host.folder.path().join("run/sandboxes").exists(), "closing leaves none");
    host.restart(0).await
}

fn ids(host: &Host) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(host.folder.path().join("run/sandboxes"))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

async fn the_pool_of_a_killed_daemon_is_removed(host: &mut Host) -> Result<()> {
    host.restart(2).await?;
    until_ready(host, 2).await?;
    host.restart(0).await?;
    // A moment later: nobody waits for it.
    let began = Instant::now();
    while sandboxes(host)? > 0 {
        ensure!(began.elapsed() < PATIENCE, "{:?}", ids(host)?);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Who closes does wait, and however soon after the start.
    host.restart(2).await?;
    until_ready(host, 2).await?;
    host.restart(0).await?;
    host.runtime.close().await.map_err(chain)?;
    ensure!(!host.folder.path().join("run/sandboxes").exists(), "closing leaves none");
    host.restart(0).await
}

/// Not a promise: what the numbers are on this machine now, with the pool and without.
async fn latency(host: &mut Host) -> Result<()> {
    for pool_size in [0, 4] {
        host.restart(pool_size).await?;
        until_ready(host, pool_size).await?;
        let mut phases: Vec<[Duration; 4]> = Vec::new();
        let mut last = Timeline::default();
        for round in 0..20 {
            let began = Instant::now();
            let timeline = Timeline::default();
            let mut guest = host.timed_pod(host.config(&format!("round{round}")), &timeline).await?;
            let made = began.elapsed();
            let config = guest.shell("main", "true");
            guest.pod.run_container(&config, &host.images, &timeline).await.map_err(chain)?;
            let started = began.elapsed();
            guest.exit().await?;
            let ended = began.elapsed();
            guest.remove().await?;
            last = timeline;
            phases.push([made, started, ended, began.elapsed()]);
            // As whoever types commands one after the other.
            until_ready(host, pool_size).await?;
        }
        for phase in last.phases() {
            eprintln!("    {}: {} ms", phase.phase, phase.ms);
        }
        let median = |place: usize| {
            let mut times: Vec<Duration> = phases.iter().map(|phase| phase[place]).collect();
            times.sort_unstable();
            times[times.len() / 2]
        };
        eprintln!(
            "  pool {pool_size}: made {:.2?}, started {:.2?}, ended {:.2?}, removed {:.2?}",
            median(0),
            median(1),
            median(2),
            median(3)
        );
    }
    host.runtime.close().await.map_err(chain)?;
    host.restart(0).await
}
