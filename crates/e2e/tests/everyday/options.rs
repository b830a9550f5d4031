//! `sampan run` and its options.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::text;
use sampan_e2e::service::Service;

pub(crate) fn output_and_exit_codes_are_the_commands_own(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let done = service.sampan(["run", "--rm", &busybox, "sh", "-c", "echo out; echo err >&2; exit 7"]).finish()?;
    let done = done.expect(7)?;
    assert_eq!((done.text().as_str(), done.complaint().as_str()), ("out", "err"));
    for code in ["0", "1", "42", "255"] {
        let done = service.sampan(["run", "--rm", &busybox, "sh", "-c", &format!("exit {code}")]).finish()?;
        done.expect(code.parse()?)?;
    }
    // The main process is PID 1 of its own namespace, which no signal from inside kills; a child's end is a shell's word.
    let done = service.sampan(["run", "--rm", &busybox, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).finish()?;
    done.expect(137)?;
    // `$(...)` is nothing for Kubernetes to replace, and words are no shell's.
    let words = ["run", "--rm", &busybox, "echo", "$(HOSTNAME)", "a  b", "*", "$$", "--rm"];
    assert_eq!(service.sampan(words).ok()?, "$(HOSTNAME) a  b * $$ --rm");
    Ok(())
}

pub(crate) fn environment_comes_from_options_and_files(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    fs::write(service.work().join("variables"), "# a comment\nA=file\nB=from file\n\nC\n")?;
    let printed = service
        .sampan(["run", "--rm", "-e", "A=option", "--env", "D=$(A)", "-e", "GIVEN", "--env-file", "variables"])
        .args([&busybox, "env"])
        .env("GIVEN", "by this shell")
        .env("C", "also")
        .ok()?;
    for line in ["A=option", "B=from file", "C=also", "D=$(A)", "GIVEN=by this shell", "HOME=/root"] {
        ensure!(printed.lines().any(|printed| printed == line), "no {line} in {printed}");
    }
    ensure!(printed.contains("PATH=/usr/local/sbin:"), "{printed}");
    ensure!(!printed.contains("SAMPAN"), "the client's own variables reach the instance: {printed}");
    Ok(())
}

pub(crate) fn volumes_are_shared_with_the_host(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let shared = service.work().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("given"), "from the host\n")?;
    fs::write(service.work().join("single"), "one file\n")?;
    let script = "cat /data/given /single; echo from inside > /data/written; mkdir /data/folder; \
                  touch /ro/x 2>&1 | grep -o 'Read-only file system'; cat /ro/given";
    let printed = service
        .sampan(["run", "--rm", "-v", "./shared:/data", "-v"])
        .args([format!("{}:/ro:ro", shared.display())])
        .args(["-v", "./single:/single", &busybox, "sh", "-c", script])
        .ok()?;
    assert_eq!(printed, "from the host\none file\nRead-only file system\nfrom the host");
    assert_eq!(fs::read_to_string(shared.join("written"))?, "from inside\n");
    // Root inside is root's own on a volume: files belong to the user who shared them.
    assert_eq!(fs::metadata(shared.join("written"))?.uid(), 0);
    assert_eq!(fs::metadata(shared.join("folder"))?.uid(), 0);
    Ok(())
}

pub(crate) fn directory_user_and_entrypoint_can_be_chosen(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let run = |options: &[&str], command: &[&str]| {
        let words = ["run", "--rm"].into_iter().chain(options.iter().copied()).chain([busybox.as_str()]);
        service.sampan(words.chain(command.iter().copied())).ok()
    };
    assert_eq!(run(&["-w", "/usr"], &["pwd"])?, "/usr");
    assert_eq!(run(&["-w", "/made/for/it"], &["pwd"])?, "/made/for/it");
    assert_eq!(run(&["--user", "1234:5678"], &["id"])?, "uid=1234 gid=5678 groups=5678");
    assert_eq!(run(&["--user", "1000"], &["id", "-u"])?, "1000");
    let id = "uid=1000(sampan) gid=1000(sampan) groups=1000(sampan),2000(ferry)";
    assert_eq!(run(&["--user", "sampan"], &["id"])?, id);
    assert_eq!(run(&["--user", "sampan:nogroup"], &["id", "-gn"])?, "nogroup");
    assert_eq!(run(&["--user", "sampan"], &["sh", "-c", "echo ~"])?, "/home/sampan");
    assert_eq!(run(&["--entrypoint", "echo"], &["given", "words"])?, "given words");
    assert_eq!(run(&["--entrypoint", "pwd"], &[])?, "/");
    assert_eq!(run(&["--hostname", "chosen"], &["hostname"])?, "chosen");
    let refused = run(&["--read-only"], &["sh", "-c", "touch /x 2>&1 || true"])?;
    ensure!(refused.contains("Read-only file system"), "{refused}");
    Ok(())
}

pub(crate) fn limits_are_seen_inside(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let words = ["run", "-d", "--name", "limited", "--cpu", "0.5", "--memory", "96Mi", "--disk", "64Mi", &busybox];
    service.sampan(words.into_iter().chain(["sleep", "1000"])).ok()?;
    let limits = service.pod("limited")?["spec"]["containers"][0]["resources"]["limits"].clone();
    assert_eq!((text(&limits, "/memory"), text(&limits, "/ephemeral-storage")), ("96Mi", "64Mi"));
    ensure!(matches!(text(&limits, "/cpu"), "0.5" | "500m"), "{limits}");
    let blocks: u64 = service.inside("limited", "df -k / | tail -1 | awk '{print $2}'")?.parse()?;
    ensure!((40 << 10..=64 << 10).contains(&blocks), "its disk has {blocks} KiB");
    service.remove(["limited"])
}

pub(crate) fn pull_policies_are_obeyed(service: &Service) -> Result<()> {
    let reference = service.image("policies:1", sampan_e2e::fixtures::busybox::image)?;
    let missing = service.sampan(["run", "--rm", "--pull", "never", &reference, "true"]).finish()?;
    missing.fails_with(125, &[&reference, "not", "pull"])?;
    for policy in ["missing", "never", "always"] {
        service.sampan(["run", "--rm", "--pull", policy, &reference, "true"]).ok()?;
    }
    Ok(())
}

pub(crate) fn a_detached_instance_prints_its_name_and_runs_on(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let name = service.sampan(["run", "-d", &busybox, "sleep", "1000"]).ok()?;
    ensure!(service.sampan(["ps", "-q"]).ok()?.lines().any(|line| line == name), "{name} is not in the list");
    service.sampan(["rm", &name]).finish()?.fails_with(1, &[&name, "not ended", "rm -f"])?;
    service
        .sampan(["run", "--name", &name, &busybox, "true"])
        .finish()?
        .fails_with(125, &[&name, "already", "rm -f"])?;
    service.remove([name.as_str()])?;
    service.wait_until_gone(&name)
}
