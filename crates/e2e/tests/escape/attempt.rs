//! How attacks are told: programs in Python, whose `ctypes` reaches every system call.

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::debian;
use sampan_e2e::harness::call::Call;
use sampan_e2e::service::Service;

/// What every program begins with. `call` makes a system call by its number on x86_64 and aarch64, and says how it went.
const PRELUDE: &str = "\
import ctypes, errno, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(x86, arm, *words):
    number = x86 if platform.machine() == 'x86_64' else arm
    words = [ctypes.c_long(w) if isinstance(w, int) else w for w in words]
    if libc.syscall(ctypes.c_long(number), *words) >= 0:
        return 'done'
    return errno.errorcode.get(ctypes.get_errno(), 'unknown')
";

/// Starts an instance that can be told to run programs.
pub(crate) fn attacker(service: &Service, name: &str, options: &[&str]) -> Result<()> {
    let image = service.image("python:numpy", debian::python)?;
    let words = ["run", "-d", "--name", name].into_iter().chain(options.iter().copied());
    service.sampan(words.chain([image.as_str(), "sleep", "1000"])).ok().map(drop)
}

/// Runs a program inside; gives what it printed.
pub(crate) fn inside(service: &Service, name: &str, program: &str) -> Result<String> {
    service.sampan(["exec", name, "python3", "-c", &format!("{PRELUDE}{program}")]).ok()
}

/// Runs the same program on the host, as root: the control.
pub(crate) fn outside(program: &str) -> Result<String> {
    Call::new("python3").args(["-c", &format!("{PRELUDE}{program}")]).ok().context("the control, on the host")
}

/// The neighbour whom nothing of all this may concern.
pub(crate) struct Neighbour<'service> {
    service: &'service Service,
    name: String,
}

impl<'service> Neighbour<'service> {
    pub(crate) fn start(service: &'service Service, of: &str) -> Result<Self> {
        let name = format!("{of}-neighbour");
        service.background(&name, "sleep 1000")?;
        Ok(Self { service, name })
    }

    /// It starts processes, takes memory, opens files and writes to its disk.
    pub(crate) fn works(&self) -> Result<()> {
        let script = "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null && sync; done; \
                      wc -c < /file";
        let written = self.service.inside(&self.name, script).context("the neighbour")?;
        ensure!(written == "4194304", "the neighbour wrote {written} bytes");
        Ok(())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
