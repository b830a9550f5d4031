//! Clients that make pods and take them away, one pod after the other, until they are told to stop.
//!
//! Each uses one name again and again, so that a name that is not given back is noticed by the next round. What a container
//! wrote and how it ended is compared each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::api::Api;
use super::cri::Cri;
use super::script::{Script, numbered, text_of};
use crate::harness::pod::text;
use crate::service::Service;
use crate::storm::chance::Chance;

/// What all clients know of each other and of the storm.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// Nobody begins another pod.
    pub(super) over: AtomicBool,
    /// A client has found something and is gone.
    pub(super) failed: AtomicBool,
    /// Pods that came and went.
    pub(super) pods: AtomicUsize,
    /// Counts when a daemon is about to be killed and when the next one answers: odd means that there may be none.
    pub(super) deaths: AtomicUsize,
}

/// A time from which on a service may have been away.
struct Since(usize);

impl Common {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    fn since_now(&self) -> Since {
        Since(self.deaths.load(Ordering::SeqCst))
    }

    /// Whether the service was there all the time.
    fn is_undisturbed(&self, since: &Since) -> bool {
        since.0.is_multiple_of(2) && self.deaths.load(Ordering::SeqCst) == since.0
    }

    fn note_pod(&self) {
        self.pods.fetch_add(1, Ordering::Relaxed);
    }
}

/// Notes a failure where it happens, so that the storm does not go on for long.
pub(super) fn watched(common: &Arc<Common>, client: impl FnOnce() -> Result<()>) -> Result<()> {
    let outcome = client();
    if outcome.is_err() {
        common.failed.store(true, Ordering::Relaxed);
    }
    outcome
}

/// Runs a client on a thread that is the caller's.
pub(super) fn block_on<T>(client: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(client)
}

/// By the container runtime interface.
pub(super) async fn by_cri(mut cri: Cri, name: &str, chance: &mut Chance, common: &Common) -> Result<()> {
    while !common.is_over() {
        one_by_cri(&mut cri, name, chance).await.with_context(|| format!("client {name}"))?;
        common.note_pod();
    }
    Ok(())
}

async fn one_by_cri(cri: &mut Cri, name: &str, chance: &mut Chance) -> Result<()> {
    let config = cri.config(name);
    let pod = cri.run_pod(&config).await?;
    match chance.below(5) {
        // Without a container; with one that is never started; with one that is running when its pod goes.
        0 => {}
        1 => drop(cri.create(&pod, &config, &Script::short(chance), None).await?),
        2 => {
            let container = cri.create(&pod, &config, &Script::endless(), None).await?;
            cri.start(&container).await?;
        }
        3 => {
            let script = Script::endless();
            let container = cri.create(&pod, &config, &script, None).await?;
            cri.start(&container).await?;
            tokio::time::sleep(chance.pause(200)).await;
            cri.stop(&container, 0).await?;
            check_end(cri, &container, &script).await?;
        }
        _ => {
            let script = Script::short(chance);
            let container = cri.create(&pod, &config, &script, None).await?;
            cri.start(&container).await?;
            check_end(cri, &container, &script).await?;
        }
    }
    if chance.below(2) == 0 {
        cri.stop_pod(&pod).await?;
    }
    cri.remove_pod(&pod).await?;
    // Logs belong to the one who asked for them.
    match std::fs::remove_dir_all(&config.log_directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

async fn check_end(cri: &mut Cri, container: &str, script: &Script) -> Result<()> {
    let status = cri.ended(container).await?;
    ensure!(status.exit_code == script.code, "it ends with {}, but is said to: {status:?}", script.code);
    script.wrote(&text_of(status.log_path.as_ref())?)
}

/// By the Kubernetes API.
pub(super) async fn by_api(mut api: Api, name: &str, chance: &mut Chance, common: &Common) -> Result<()> {
    while !common.is_over() {
        one_by_api(&mut api, name, chance).await.with_context(|| format!("client {name}"))?;
        common.note_pod();
    }
    Ok(())
}

async fn one_by_api(api: &mut Api, name: &str, chance: &mut Chance) -> Result<()> {
    match chance.below(4) {
        // At once, or at any moment of its beginning.
        0 => {
            api.create(name, &Script::endless(), None).await?;
            tokio::time::sleep(chance.pause(150)).await;
        }
        1 => {
            api.create(name, &Script::endless(), None).await?;
            let pod = api.reaches(name, &["Running", "Failed"]).await?;
            ensure!(text(&pod, "/status/phase") == "Running", "{name} should run: {}", pod["status"]);
        }
        _ => {
            let script = Script::short(chance);
            api.create(name, &script, None).await?;
            api.ended(name, script.code).await?;
            script.wrote(&api.logs(name).await?).with_context(|| format!("the log of {name}"))?;
        }
    }
    api.delete(name, chance.below(2)).await
}

/// By the command line, in the foreground, whose user sees every line whatever is killed meanwhile.
pub(super) fn by_command_line(service: &Service, name: &str, chance: &mut Chance, common: &Common) -> Result<()> {
    let busybox = service.busybox()?;
    while !common.is_over() {
        let script = Script::short(chance);
        let since = common.since_now();
        let words = ["run", "--name", name, busybox.as_str()].into_iter().chain(script.command());
        let ended = service.sampan(words).finish()?;
        let (said, complaint) = (String::from_utf8_lossy(&ended.output).into_owned(), ended.complaint());
        // Only one who asked a daemon that died over it may be left without an answer.
        let refused = said.is_empty() && !complaint.is_empty() && !common.is_undisturbed(&since);
        if !refused {
            ensure!(ended.code == script.code, "{name} ends with {}: {}: {complaint}", script.code, ended.code);
            script.wrote(&said).with_context(|| format!("what {name} showed"))?;
        }
        remove(service, name, common)?;
        common.note_pod();
        std::thread::sleep(chance.pause(50));
    }
    Ok(())
}

/// Removes an instance, as often as its removal is broken by a kill.
fn remove(service: &Service, name: &str, common: &Common) -> Result<()> {
    loop {
        let since = common.since_now();
        let removed = service.sampan(["rm", "-f", name]).finish()?;
        if removed.code == 0 {
            return Ok(());
        }
        ensure!(!common.is_undisturbed(&since), "{name} cannot be removed: {}", removed.complaint());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How many lines a log has; it must have no gap.
pub(super) fn lines_of(log: &str, whose: &str) -> Result<u64> {
    numbered(log).with_context(|| format!("the log of {whose}"))
}
