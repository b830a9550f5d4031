//! A test program with a `main` of its own, for two reasons: the zygote must be a single-threaded process, so that the program
//! starts itself again as one; and its scenarios share one node and end with a search for anything left behind.
//!
//! The rooms above the sandbox test with this too. Needs root and `busybox-static`, and says so loudly. An argument that is not
//! an option selects scenarios by name.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// How long any scenario waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The argument that turns this program into a zygote.
const ZYGOTE: &str = "--zygote";

/// The program's `main`; `tested` is what it tests, `run` plays those scenarios whose name contains a text.
pub(crate) fn main<R: Future<Output = ExitCode>>(
    tested: &str,
    scenarios: &[&str],
    run: impl FnOnce(Option<String>) -> R,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, path] = arguments.as_slice()
        && mode == ZYGOTE
    {
        return be_zygote(path.as_ref());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios.iter().for_each(|name| eprintln!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = missing() {
        eprintln!("\n    NOT TESTED: {tested}. Missing: {missing}\n");
        return if std::env::var_os("SAMPAN_TESTS_MAY_SKIP").is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let filter = arguments.into_iter().find(|argument| !argument.starts_with('-'));
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(filter)),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Another process of this program, which listens where sandboxes of this run directory look for their zygote.
pub(crate) fn spawn_zygote(run_dir: &Path) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).arg(ZYGOTE).arg(run_dir.join("zygote.sock")).stdin(Stdio::null()).spawn()
}

fn be_zygote(path: &Path) -> ExitCode {
    let listener = sampan_sys::socket::listen(path, sampan_sys::socket::Kind::Packet);
    let Err(error) = listener.and_then(sampan_sandbox::serve_zygote);
    eprintln!("the zygote fails: {error}");
    ExitCode::FAILURE
}

fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    (!Path::new(BUSYBOX).exists()).then_some("/bin/busybox (apt-get install busybox-static)")
}
