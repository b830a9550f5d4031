//! Sudden death of every part of the service: what runs goes on, what ended meanwhile is told right, what was half made is
//! finished or undone.
//!
//! These tests kill what the others would lean on, so they run one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use sampan_e2e::claims;
use sampan_e2e::fixtures::debian;
use sampan_e2e::harness::pod::{first_status, text};
use sampan_e2e::harness::wait::{eventually, until};
use sampan_e2e::service::{Part, Service};
use sampan_e2e::{harness, storm, tests};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    harness::run(
        "crashes",
        [],
        tests![
            instances_outlive_the_daemon,
            instances_outlive_the_whole_service,
            instances_outlive_an_upgrade,
            a_client_in_the_foreground_outlives_the_daemon,
            a_new_zygote_makes_new_instances,
            the_end_of_an_agent_is_the_end_of_its_pod,
            half_made_pods_are_finished_or_undone,
            a_broken_pull_begins_again,
            readers_of_arriving_images_notice_no_kill,
            nothing_is_left_of_pods_that_come_and_go_meanwhile,
            a_pod_deleted_before_the_crash_is_gone_after_it,
        ],
    )
}

/// Instances whose going on, and whose end at the wrong moment, can be seen from outside.
struct Witnesses<'service> {
    service: &'service Service,
    folder: PathBuf,
    port: u16,
    main_start: String,
}

impl<'service> Witnesses<'service> {
    fn start(service: &'service Service, name: &str) -> Result<Self> {
        let busybox = service.busybox()?;
        let folder = service.work().join(name);
        fs::create_dir(&folder)?;
        let volume = format!("{}:/shared", folder.display());
        let port = claims::port()?;
        let publish = format!("{port}:8080");
        let counting = "nc -ll -p 8080 -e cat /proc/1/stat & \
                        n=0; while true; do echo line $n; n=$((n + 1)); echo $n > /shared/n; sleep 0.02; done";
        let options =
            ["run", "-d", "--name", "counting", "-v", &volume, "-p", &publish, &busybox, "sh", "-c", counting];
        service.sampan(options).ok()?;
        let ending =
            "echo waiting; until test -e /shared/go; do sleep 0.02; done; echo late words; touch /shared/gone; exit 23";
        service.sampan(["run", "-d", "--name", "ending", "-v", &volume, &busybox, "sh", "-c", ending]).ok()?;
        let mut witnesses = Self { service, folder, port, main_start: String::new() };
        witnesses.main_start = witnesses.start_time()?;
        Ok(witnesses)
    }

    /// When the main process began, as its TCP server tells it: proc(5), field 22 of stat.
    fn start_time(&self) -> Result<String> {
        let stat = eventually("the server answers", || {
            let mut text = String::new();
            let stream = std::net::TcpStream::connect(("127.0.0.1", self.port));
            let read = stream.and_then(|mut stream| std::io::Read::read_to_string(&mut stream, &mut text));
            Ok(read.ok().filter(|count| *count > 0).map(|_| text))
        })?;
        let (_, rest) = stat.rsplit_once(')').with_context(|| format!("no stat: {stat}"))?;
        rest.split_whitespace().nth(19).map(str::to_owned).context("a short stat")
    }

    fn counted(&self) -> Result<u64> {
        // The file is empty for a moment at every write.
        eventually("the count is written", || Ok(fs::read_to_string(self.folder.join("n"))?.trim().parse().ok()))
    }

    /// Lets one instance end, and waits until the other has gone on for a while; all without the service.
    fn live_on(&self) -> Result<()> {
        let before = self.counted()?;
        fs::write(self.folder.join("go"), "")?;
        until("the instance ends", || Ok(self.folder.join("gone").exists()))?;
        until("the other goes on", || Ok(self.counted()? > before + 10))?;
        assert_eq!(self.start_time()?, self.main_start, "the main process is another one");
        Ok(())
    }

    /// Compares with what the service says once it is back.
    fn are_known(&self) -> Result<()> {
        self.service.wait_until_it_answers()?;
        let pod = self.service.wait_for_phase("ending", "Failed")?;
        let ended = &first_status(&pod)["state"]["terminated"];
        assert_eq!((&ended["exitCode"], text(ended, "/reason")), (&23.into(), "Error"));
        assert_eq!(self.service.sampan(["logs", "ending"]).ok()?, "waiting\nlate words");
        let pod = self.service.wait_for_phase("counting", "Running")?;
        assert_eq!(first_status(&pod)["restartCount"], 0);
        assert_eq!(self.start_time()?, self.main_start, "the main process is another one");
        assert_eq!(self.service.inside("counting", "cut -d ' ' -f 22 /proc/1/stat")?, self.main_start);
        let enough = self.counted()?;
        let follower = self.service.sampan(["logs", "-f", "counting"]).start()?;
        follower.output.wait_for(&format!("line {enough}\n"))?;
        let lines = String::from_utf8(follower.output.so_far())?;
        for (nth, line) in lines.lines().take(usize::try_from(enough)?).enumerate() {
            assert_eq!(line, format!("line {nth}"), "the log has a gap");
        }
        self.service.remove(["counting", "ending"])
    }
}

fn instances_outlive_the_daemon(service: &Service) -> Result<()> {
    let witnesses = Witnesses::start(service, "daemon")?;
    service.kill(Part::Daemon)?;
    witnesses.live_on()?;
    witnesses.are_known()
}

fn instances_outlive_the_whole_service(service: &Service) -> Result<()> {
    let witnesses = Witnesses::start(service, "supervisor")?;
    service.kill(Part::Supervisor)?;
    witnesses.live_on()?;
    service.serve()?;
    witnesses.are_known()?;
    // And an orderly stop.
    let witnesses = Witnesses::start(service, "stopped")?;
    service.stop()?;
    witnesses.live_on()?;
    service.serve()?;
    witnesses.are_known()
}

fn instances_outlive_an_upgrade(service: &Service) -> Result<()> {
    let witnesses = Witnesses::start(service, "upgraded")?;
    let before = [Part::Supervisor, Part::Zygote, Part::Daemon].map(|part| service.pid(part).ok());
    service.upgrade()?;
    let after = [Part::Supervisor, Part::Zygote, Part::Daemon].map(|part| service.pid(part).ok());
    ensure!(before[0] == after[0] && before[1] != after[1] && before[2] != after[2], "{before:?} and {after:?}");
    witnesses.live_on()?;
    witnesses.are_known()
}

fn a_client_in_the_foreground_outlives_the_daemon(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let folder = service.work().join("foreground");
    fs::create_dir(&folder)?;
    let volume = format!("{}:/shared", folder.display());
    let script = "echo before; until test -e /shared/go; do sleep 0.02; done; echo after; exit 9";
    let running = service.sampan(["run", "--rm", "-v", &volume, &busybox, "sh", "-c", script]).start()?;
    running.output.wait_for("before\n")?;
    service.kill(Part::Daemon)?;
    fs::write(folder.join("go"), "")?;
    assert_eq!(running.finish(PATIENCE)?.expect(9)?.text(), "before\nafter");
    Ok(())
}

fn a_new_zygote_makes_new_instances(service: &Service) -> Result<()> {
    let witnesses = Witnesses::start(service, "zygote")?;
    service.kill(Part::Zygote)?;
    let busybox = service.busybox()?;
    for _ in 0..3 {
        assert_eq!(service.sampan(["run", "--rm", &busybox, "echo", "made"]).ok()?, "made");
    }
    witnesses.live_on()?;
    witnesses.are_known()
}

/// Processes of a pod's agent: what lies in the pod's own group, or in the one beside those of its containers.
fn agents(service: &Service) -> Result<Vec<Pid>> {
    let mut agents = Vec::new();
    let own = format!("/{}/", service.instance);
    let folders = folders_below(Path::new("/sys/fs/cgroup"))?;
    let is_agents = |folder: &&String| {
        let below = folder.split_once(&own).map(|(_, below)| below.strip_suffix("/agent").unwrap_or(below));
        below.is_some_and(|id| !id.contains('/'))
    };
    for folder in folders.iter().filter(is_agents) {
        let procs = match fs::read_to_string(Path::new(folder).join("cgroup.procs")) {
            // Groups of a pod that has ended go a moment after it.
            Err(error)
                if [Errno::NOENT, Errno::NODEV].map(Errno::raw_os_error).map(Some).contains(&error.raw_os_error()) =>
            {
                continue;
            }
            procs => procs?,
        };
        agents.extend(procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    }
    agents.sort_by_key(|pid| pid.as_raw_nonzero());
    agents.dedup();
    Ok(agents)
}

fn folders_below(root: &Path) -> Result<Vec<String>> {
    let (mut open, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path().display().to_string());
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn the_end_of_an_agent_is_the_end_of_its_pod(service: &Service) -> Result<()> {
    let before = agents(service)?;
    service.background("orphan", "sleep 1000")?;
    let after = agents(service)?;
    let [agent] = after.iter().filter(|pid| !before.contains(pid)).collect::<Vec<_>>()[..] else {
        bail!("agents before: {before:?}, after: {after:?}")
    };
    kill_process(*agent, Signal::KILL)?;
    let pod = service.wait_for_phase("orphan", "Failed")?;
    let ended = &first_status(&pod)["state"]["terminated"];
    ensure!(ended["exitCode"] != 0 && !text(ended, "/reason").is_empty(), "nobody says why: {}", pod["status"]);
    service.remove(["orphan"])?;
    let busybox = service.busybox()?;
    service.sampan(["run", "--rm", &busybox, "true"]).ok().map(drop)
}

fn half_made_pods_are_finished_or_undone(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    for round in 0..3 {
        let starting: Vec<_> = (0..6)
            .map(|nth| {
                let name = format!("half-{round}-{nth}");
                service.sampan(["run", "-d", "--name", &name, &busybox, "sleep", "1000"]).start()
            })
            .collect::<Result<_>>()?;
        until("some of them are under way", || {
            Ok(sampan_e2e::leaks::entries(&service.run_dir().join("sandboxes"))?.len() > round)
        })?;
        if round == 1 {
            service.kill(Part::Supervisor)?;
            service.serve()?;
        } else {
            service.kill(Part::Daemon)?;
        }
        service.wait_until_it_answers()?;
        for client in starting {
            // A client may have lost its answer; what counts is what became of the pods.
            client.finish(PATIENCE)?;
        }
        let mut phases = BTreeMap::new();
        until("no pod is half made", || {
            let pods = service.sampan(["ps", "-a", "-o", "json"]).finish()?.json()?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            phases = pods
                .iter()
                .map(|pod| (text(pod, "/metadata/name").to_owned(), text(pod, "/status/phase").to_owned()))
                .collect();
            Ok(phases.values().all(|phase| phase != "Pending"))
        })
        .with_context(|| format!("{phases:?}"))?;
        for name in phases.keys() {
            if phases[name] == "Running" {
                assert_eq!(service.inside(name, "echo alive")?, "alive");
            }
        }
        service.remove(phases.keys().map(String::as_str))?;
    }
    Ok(())
}

fn a_broken_pull_begins_again(service: &Service) -> Result<()> {
    let image = service.image("python:crash", debian::python)?;
    let pulling = service.sampan(["pull", &image]).start()?;
    let incoming = service.data_dir().join("images/incoming");
    until("the pull is under way", || Ok(!sampan_e2e::leaks::entries(&incoming)?.is_empty()))?;
    service.kill(Part::Daemon)?;
    let lost = pulling.finish(PATIENCE)?;
    ensure!(lost.code != 0, "a pull whose service died says it went well");
    assert_eq!(lost.complaint().lines().count(), 1, "{}", lost.complaint());
    service.wait_until_it_answers()?;
    ensure!(sampan_e2e::leaks::entries(&incoming)?.is_empty(), "what a dead daemon downloaded stays");
    assert_eq!(service.sampan(["run", "--rm", &image, "python3", "-c", "print(6 * 7)"]).ok()?, "42");
    Ok(())
}

/// A storm in small, over a service of its own; `cargo xtask storm` is the whole one.
fn readers_of_arriving_images_notice_no_kill(_service: &Service) -> Result<()> {
    let outcome = storm::run(storm::Options { seed: 7, kills: 4, doubles: 1, supervisor_kills: 1 })?;
    eprintln!("{outcome}");
    Ok(())
}

/// The same of pods; `cargo xtask storm runtime` is the whole one.
fn nothing_is_left_of_pods_that_come_and_go_meanwhile(_service: &Service) -> Result<()> {
    let outcome = storm::runtime::run(storm::runtime::Options { seed: 7, kills: 5, witnesses: 6, clients: 2 })?;
    eprintln!("{outcome}");
    Ok(())
}

fn a_pod_deleted_before_the_crash_is_gone_after_it(service: &Service) -> Result<()> {
    service.background("doomed", "trap '' TERM; while true; do sleep 0.05; done")?;
    service.kubectl(["delete", "pod", "doomed", "--grace-period=2", "--wait=false"]).ok()?;
    service.kill(Part::Daemon)?;
    service.wait_until_it_answers()?;
    service.wait_until_gone("doomed")
}
