//! Reaching for others: their processes, our own program and agent, the host's files and sockets.

use std::fs;
use std::io::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_e2e::service::{Part, Service};

use crate::attempt::{Neighbour, attacker, inside, outside};

pub(crate) fn processes_of_others_are_out_of_reach(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "spy")?;
    attacker(service, "spy", &[])?;
    let daemon = service.pid(Part::Daemon)?.as_raw_nonzero().get();
    // PTRACE_SEIZE stops nobody; the signal 0 is none. Both work for the host's root.
    for (what, call) in [
        ("a signal", format!("call(62, 129, {daemon}, 0)")),
        ("a handle", format!("call(434, 434, {daemon}, 0)")),
        ("its limits", format!("call(302, 261, {daemon}, 7, 0, b'\\0' * 16)")),
        ("tracing", format!("call(101, 117, 0x4206, {daemon}, 0, 0)")),
    ] {
        let program = format!("print({call})");
        let answer = inside(service, "spy", &program)?;
        ensure!(matches!(answer.as_str(), "ESRCH" | "EPERM"), "{what}: {answer}");
        let answer = outside(&program)?;
        ensure!(answer == "done", "{what} of the host's root: {answer}");
    }
    let seen = inside(service, "spy", "print(len([name for name in os.listdir('/proc') if name.isdigit()]))")?;
    ensure!(seen.parse::<u32>()? < 6, "{seen} processes are seen");
    neighbour.works()?;
    service.remove(["spy", neighbour.name()])
}

pub(crate) fn the_agent_cannot_be_touched_by_those_who_see_it(service: &Service) -> Result<()> {
    let image = service.image("python:numpy", sampan_e2e::fixtures::debian::python)?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: sharing}}\nspec:\n  shareProcessNamespace: true\n  containers:\n  \
         - {{name: main, image: \"{image}\", command: [sleep, \"1000\"]}}\n"
    ))?;
    service.wait_for_phase("sharing", "Running")?;
    for (what, program) in [
        ("its descriptors", "os.listdir('/proc/1/fd')"),
        ("its memory", "open('/proc/1/mem', 'rb')"),
        ("its root", "os.listdir('/proc/1/root')"),
        ("its folder", "os.listdir('/proc/1/cwd')"),
        ("its program", "open('/proc/1/exe', 'rb')"),
        ("its variables", "open('/proc/1/environ', 'rb').read(1)"),
        ("its file of maps", "open('/proc/1/map_files', 'rb')"),
    ] {
        let program = format!("try: {program}; print('done')\nexcept OSError as e: print(errno.errorcode[e.errno])");
        let answer = inside(service, "sharing", &program)?;
        ensure!(answer != "done", "{what} can be had");
    }
    let traced = inside(service, "sharing", "print(call(101, 117, 0x4206, 1, 0, 0))")?;
    ensure!(traced == "EPERM", "tracing the agent: {traced}");
    // Signals that are no use against the first process of a namespace.
    service.sampan(["exec", "sharing", "sh", "-c", "kill -9 1; kill -STOP 1; kill -SEGV 1"]).finish()?;
    ensure!(service.inside("sharing", "echo alive")? == "alive", "the agent is gone");
    service.remove(["sharing"])
}

pub(crate) fn no_descriptor_is_left_open(service: &Service) -> Result<()> {
    attacker(service, "heir", &[])?;
    // The main process, and a command of one's own: `listdir` has one for the folder itself.
    let main = inside(service, "heir", "print(*sorted(os.listdir('/proc/1/fd')))")?;
    ensure!(main == "0 1 2", "the main process has {main}");
    let own = inside(service, "heir", "print(*sorted(os.listdir('/proc/self/fd')))")?;
    ensure!(own == "0 1 2 3", "a command has {own}");
    let places = "print(*[os.readlink('/proc/1/fd/%d' % n).split(':')[0] for n in range(3)], os.getcwd())";
    let places = inside(service, "heir", places)?;
    ensure!(!places.contains("sampan"), "{places}");
    service.remove(["heir"])
}

/// The way of CVE-2019-5736: to catch what starts commands inside, while its program can be opened.
pub(crate) fn our_program_cannot_be_overwritten(service: &Service) -> Result<()> {
    let image = service.image("python:numpy", sampan_e2e::fixtures::debian::python)?;
    let program = fs::read_link(format!("/proc/{}/exe", service.pid(Part::Daemon)?.as_raw_nonzero()))?;
    let stamp = |path: &Path| -> Result<_> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.len(), metadata.modified()?))
    };
    let before = stamp(&program)?;
    let hunter = "\
import os
own = os.stat('/proc/self/exe')
print('hunting', flush=True)
while True:
    for name in os.listdir('/proc'):
        if not name.isdigit(): continue
        try:
            held = os.open('/proc/%s/exe' % name, os.O_RDONLY)
            seen = os.fstat(held)
            if (seen.st_dev, seen.st_ino) != (own.st_dev, own.st_ino) and 'sampan' in os.readlink('/proc/self/fd/%d' % held):
                print('CAUGHT', flush=True)
                os.open('/proc/self/fd/%d' % held, os.O_WRONLY); print('OVERWRITTEN', flush=True)
            os.close(held)
        except OSError: pass";
    service.sampan(["run", "-d", "--name", "hunter", &image, "python3", "-c", hunter]).ok()?;
    for _ in 0..15 {
        drop(service.sampan(["exec", "hunter", "/proc/self/exe"]).finish()?);
        service.inside("hunter", "true")?;
    }
    let said = service.sampan(["logs", "hunter"]).ok()?;
    ensure!(said.contains("hunting"), "the attacker did not start: {said}");
    ensure!(!said.contains("OVERWRITTEN"), "the program was opened for writing");
    // That far it comes (the control): what is told to run `/proc/self/exe` is our program for a moment.
    ensure!(said.contains("CAUGHT"), "nothing was caught: the test shows nothing");
    ensure!(stamp(&program)? == before, "the program has changed");
    service.remove(["hunter"])
}

pub(crate) fn a_swapped_link_leads_no_copy_outside(service: &Service) -> Result<()> {
    let target = service.work().join("target");
    fs::create_dir(&target)?;
    fs::write(target.join("secret"), "the host's")?;
    fs::write(service.work().join("planted"), "planted")?;
    // A folder of the host's name inside and a link to the host's: which is there changes all the time.
    let path = target.display();
    service.background(
        "swapper",
        &format!(
            "mkdir -p /swap/real /real; while :; do ln -sfn {path} /swap/way; ln -sfn ../../../../..{path} /swap/way; \
             ln -sfn /real /swap/way; done"
        ),
    )?;
    let mut arrived = 0;
    for _ in 0..12 {
        drop(service.sampan(["cp", "planted", "swapper:/swap/way/planted"]).finish()?);
        let fetched = service.work().join("fetched");
        drop(service.sampan(["cp", "swapper:/swap/way/secret", "fetched"]).finish()?);
        ensure!(!fetched.exists() || fs::read_to_string(&fetched)? != "the host's", "a file of the host came out");
        arrived += usize::from(service.inside("swapper", "cat /real/planted 2>/dev/null || true")? == "planted");
    }
    ensure!(!target.join("planted").exists(), "a file was written outside");
    ensure!(arrived > 0, "no copy arrived inside either: the test shows nothing");
    service.remove(["swapper"])
}

pub(crate) fn a_link_in_a_volume_mounts_nothing_of_the_host(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let secret = service.work().join("secret-folder");
    fs::create_dir(&secret)?;
    fs::write(secret.join("secret"), "of the host")?;
    let path = secret.display();
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: linked}}\nspec:\n  restartPolicy: Never\n  volumes: [{{name: v, \
         emptyDir: {{}}}}]\n  initContainers:\n  - {{name: plant, image: \"{busybox}\", command: [sh, -c, \"ln -s {path} \
         /v/way; ln -s ../../../../../../..{path} /v/up\"], volumeMounts: [{{name: v, mountPath: /v}}]}}\n  containers:\n  \
         - {{name: main, image: \"{busybox}\", command: [sh, -c, \"cat /m/secret; true\"], volumeMounts: [{{name: v, \
         mountPath: /m, subPath: way}}]}}\n  - {{name: other, image: \"{busybox}\", command: [sh, -c, \"cat /m/secret; \
         true\"], volumeMounts: [{{name: v, mountPath: /m, subPath: up}}]}}\n"
    ))?;
    service.wait_for_pod("linked", "past its first containers", |pod| {
        pod["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object()
            && pod["status"]["containerStatuses"].as_array().is_some_and(|all| {
                all.iter()
                    .all(|one| one["state"]["terminated"].is_object() || one["state"]["waiting"]["reason"].is_string())
            })
    })?;
    for container in ["main", "other"] {
        let said = service.kubectl(["logs", "linked", "-c", container]).finish()?;
        ensure!(!said.text().contains("of the host"), "{container} reads the host's file");
    }
    service.remove(["linked"])
}

pub(crate) fn sockets_of_the_host_are_out_of_reach(service: &Service) -> Result<()> {
    attacker(service, "caller-out", &[])?;
    let name = format!("sampan-escape-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let program = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ntry: s.connect('\\0{name}'); print('done')\n\
         except OSError as e: print(errno.errorcode[e.errno])"
    );
    ensure!(outside(&program)? == "done", "nobody listens: the test shows nothing");
    let answer = inside(service, "caller-out", &program)?;
    ensure!(answer == "ECONNREFUSED", "the host's abstract socket: {answer}");
    drop(listener);
    let found = inside(service, "caller-out", "print(*[r for r, d, f in os.walk('/run') if 'sampan.sock' in f])")?;
    ensure!(found.is_empty(), "our socket lies in {found}");
    service.remove(["caller-out"])
}

/// Clients' sockets, which only the host's root can reach at all.
pub(crate) fn the_service_survives_hostile_bytes(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "babble")?;
    let junk: Vec<u8> = (0u32..16384).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut spoken_to = 0;
    for entry in fs::read_dir(service.run_dir())? {
        let entry = entry?;
        if !entry.file_type()?.is_socket() {
            continue;
        }
        for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"", b"\0\0\0\0", b"{}\n", &junk] {
            let Ok(mut stream) = UnixStream::connect(entry.path()) else { continue };
            spoken_to += 1;
            stream.set_write_timeout(Some(Duration::from_secs(1)))?;
            // That it hangs up in the middle is its good right.
            drop(stream.write_all(bytes));
        }
    }
    ensure!(spoken_to > 0, "there is no socket in {}", service.run_dir().display());
    neighbour.works().context("after nonsense on every socket")?;
    service.wait_until_it_answers()?;
    service.remove([neighbour.name()])
}
