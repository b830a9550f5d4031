//! Ends of every kind: asked for, forced, out of memory, out of disk, and starting again.

use std::time::Instant;

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::{first_status, text};
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;

pub(crate) fn stopping_asks_first_and_kills_then(service: &Service) -> Result<()> {
    service.background("polite", "trap 'echo bye; exit 12' TERM; echo up; while true; do sleep 0.05; done")?;
    service.background("stubborn", "trap '' TERM; echo up; while true; do sleep 0.05; done")?;
    for name in ["polite", "stubborn"] {
        service.sampan(["logs", "-f", name]).start()?.output.wait_for("up\n")?;
    }
    service.sampan(["stop", "polite"]).ok()?;
    let pod = service.wait_for_phase("polite", "Failed")?;
    assert_eq!(first_status(&pod)["state"]["terminated"]["exitCode"], 12);
    ensure!(service.sampan(["logs", "polite"]).ok()?.ends_with("bye"));
    let begin = Instant::now();
    service.sampan(["stop", "-t", "1", "stubborn"]).ok()?;
    ensure!(begin.elapsed().as_secs() < 8, "a stop with one second of grace took {:?}", begin.elapsed());
    let pod = service.wait_for_phase("stubborn", "Failed")?;
    assert_eq!(first_status(&pod)["state"]["terminated"]["exitCode"], 137);
    let listed = service.sampan(["ps", "-a"]).ok()?;
    ensure!(listed.contains("polite") && listed.contains("stubborn"), "{listed}");
    ensure!(!service.sampan(["ps", "-q"]).ok()?.contains("polite"), "ps without -a lists what has ended");
    service.sampan(["rm", "polite", "stubborn"]).ok()?;
    service.sampan(["rm", "polite"]).finish()?.fails_with(1, &["polite"])
}

pub(crate) fn a_grace_period_is_kept(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: grace}}\nspec:\n  terminationGracePeriodSeconds: 2\n  \
         restartPolicy: Never\n  containers:\n  - {{name: main, image: \"{busybox}\", command: [sh, -c, \
         \"trap '' TERM; echo up; while true; do sleep 0.05; done\"]}}\n"
    ))?;
    service.wait_for_phase("grace", "Running")?;
    service.sampan(["logs", "-f", "grace"]).start()?.output.wait_for("up\n")?;
    let begin = Instant::now();
    service.kubectl(["delete", "pod", "grace"]).ok()?;
    let took = begin.elapsed().as_millis();
    ensure!((1900..8000).contains(&took), "two seconds of grace took {took} ms");
    Ok(())
}

pub(crate) fn too_much_memory_ends_an_instance(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let eat = "head -c 300m /dev/zero | tail";
    let words = ["run", "--name", "hungry", "--memory", "48Mi", &busybox, "sh", "-c"];
    let done = service.sampan(words.into_iter().chain([&format!("{eat}; exit $?")[..]])).finish()?.expect(137)?;
    ensure!(done.complaint().contains("memory"), "nobody says why: {}", done.complaint());
    let pod = service.wait_for_phase("hungry", "Failed")?;
    let ended = &first_status(&pod)["state"]["terminated"];
    assert_eq!((&ended["exitCode"], text(ended, "/reason")), (&137.into(), "OOMKilled"));
    let event = service.wait_for_event("hungry", "OOMKilled")?;
    assert_eq!(event["type"], "Warning");
    service.remove(["hungry"])
}

pub(crate) fn a_full_disk_is_an_error_inside_and_an_event_outside(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let words = ["run", "-d", "--name", "full", "--disk", "32Mi", &busybox, "sleep", "1000"];
    service.sampan(words).ok()?;
    let filled = service.sampan(["exec", "full", "dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=64"]).finish()?;
    ensure!(filled.code != 0 && filled.complaint().contains("No space left on device"), "{}", filled.complaint());
    let event = service.wait_for_event("full", "EphemeralStorageFull")?;
    assert_eq!(event["type"], "Warning");
    // It goes on, and has room again when something goes.
    service.inside("full", "rm /fill && echo x > /y && cat /y")?;
    let others: u64 = service.inside("full", "df -k / | tail -1 | awk '{print $3}'")?.parse()?;
    ensure!(others < 4096, "{others} KiB are still used");
    service.remove(["full"])
}

pub(crate) fn a_failed_container_is_started_again(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let script = "echo run $(cat /shared/n 2>/dev/null | wc -l); echo x >> /shared/n; \
                  test $(wc -l < /shared/n) -ge 2 && exec sleep 1000; exit 3";
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: again}}\nspec:\n  restartPolicy: OnFailure\n  \
         volumes: [{{name: shared, emptyDir: {{}}}}]\n  containers:\n  - name: main\n    image: \"{busybox}\"\n    \
         command: [sh, -c, \"{script}\"]\n    volumeMounts: [{{name: shared, mountPath: /shared}}]\n"
    ))?;
    let pod = service.wait_for_pod("again", "started again", |pod| {
        let status = first_status(pod);
        status["restartCount"] == 1 && status["state"]["running"].is_object()
    })?;
    let last = &first_status(&pod)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], text(last, "/reason")), (&3.into(), "Error"));
    assert_eq!(service.sampan(["logs", "--previous", "again"]).ok()?, "run 0");
    until("it says which run it is", || Ok(service.sampan(["logs", "again"]).ok()? == "run 1"))?;
    let listed = service.sampan(["ps"]).ok()?;
    ensure!(listed.contains("1 restart"), "{listed}");
    service.remove(["again"])
}
