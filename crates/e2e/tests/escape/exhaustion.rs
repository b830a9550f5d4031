//! Using up what all instances share.

use anyhow::{Result, ensure};
use sampan_e2e::service::Service;

use crate::attempt::{Neighbour, attacker, inside};

pub(crate) fn processes_are_bounded(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "bomb")?;
    attacker(service, "bomb", &[])?;
    let program = "\
import signal
n = 0
try:
    while True:
        if os.fork() == 0:
            for stream in range(3): os.close(stream)
            signal.pause()
        n += 1
except OSError as e: print(errno.errorcode[e.errno], n)";
    let said = inside(service, "bomb", program)?;
    let (refused, started) = said.split_once(' ').unwrap_or_default();
    ensure!(refused == "EAGAIN", "{said}");
    let started: u32 = started.parse()?;
    // It does multiply (the control), and is stopped at its own limit.
    ensure!((1000..=4096).contains(&started), "{started} processes");
    neighbour.works()?;
    service.remove(["bomb", neighbour.name()])
}

pub(crate) fn memory_is_bounded(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "glutton")?;
    attacker(service, "glutton", &["--memory", "96Mi"])?;
    // Memory of its own, and memory in files of the shared memory, which belong to nobody's address space.
    for program in [
        "b'x' * (1 << 30)",
        "open('/dev/shm/x', 'wb').write(b'x' * 1000); \
                     f = open('/dev/shm/y', 'wb')\nfor i in range(2000): f.write(b'x' * (1 << 20))",
    ] {
        let done = service.sampan(["exec", "glutton", "python3", "-c", program]).finish()?;
        ensure!(done.code != 0, "it got a gigabyte: {program}");
        neighbour.works()?;
    }
    // Less than the limit it gets: the control.
    let small = "len(b'x' * (32 << 20))";
    ensure!(service.sampan(["exec", "glutton", "rm", "-f", "/dev/shm/y"]).finish().is_ok());
    let done = service.sampan(["exec", "glutton", "python3", "-c", small]).finish()?;
    ensure!(done.code == 0, "not even 32 MiB: {}", done.complaint());
    service.remove(["glutton", neighbour.name()])
}

pub(crate) fn inodes_and_blocks_are_bounded(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "hoarder")?;
    let busybox = service.busybox()?;
    let words = ["run", "-d", "--name", "hoarder", "--disk", "64Mi", &busybox, "sleep", "1000"];
    service.sampan(words).ok()?;
    let files = "mkdir /f && cd /f && seq 1 100000 | xargs -n 500 touch 2>&1 | grep -m 1 -o 'No space left on device'; \
                 ls | wc -l; rm -rf /f";
    let said = service.inside("hoarder", files)?;
    let (refused, made) = said.split_once('\n').unwrap_or_default();
    ensure!(refused == "No space left on device" && (100..100_000).contains(&made.parse::<u32>()?), "{said}");
    neighbour.works()?;
    let blocks = "dd if=/dev/zero of=/big bs=1M count=1000 2>&1 | grep -o 'No space left on device'; stat -c %s /big";
    let said = service.inside("hoarder", blocks)?;
    let (refused, written) = said.split_once('\n').unwrap_or_default();
    ensure!(refused == "No space left on device" && written.parse::<u64>()? <= 64 << 20, "{said}");
    neighbour.works()?;
    service.remove(["hoarder", neighbour.name()])
}

pub(crate) fn descriptors_are_bounded(service: &Service) -> Result<()> {
    let neighbour = Neighbour::start(service, "opener")?;
    attacker(service, "opener", &["--memory", "512Mi"])?;
    let program = "\
import resource
try: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 30, 1 << 30)); print('raised')
except (ValueError, OSError): print('kept')
opened = []
try:
    while len(opened) < 2000000: opened.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error: print(errno.errorcode[error.errno])
print(len(opened))";
    let said = inside(service, "opener", program)?;
    let lines: Vec<&str> = said.lines().collect();
    let [kept, refused, count] = lines.as_slice() else { anyhow::bail!("{said}") };
    ensure!(*kept == "kept" && matches!(*refused, "EMFILE" | "ENFILE" | "ENOMEM"), "{said}");
    ensure!(count.parse::<u32>()? > 100, "{said}");
    neighbour.works()?;
    service.remove(["opener", neighbour.name()])
}
