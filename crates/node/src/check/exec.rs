//! A command inside the container as a probe or a hook.

use std::time::Duration;

use sampan_runtime::RuntimeError;
use sampan_runtime::pod::Pod;
use sampan_sandbox::{ExecSpec, StartError};

use super::{Answer, quoted};

/// Runs it to its end; one that takes too long is killed. What it prints is what is quoted when it fails.
pub(super) async fn run(pod: &Pod, container: &str, command: Vec<String>, at_most: Duration) -> Answer {
    let spec = ExecSpec { command, ..ExecSpec::default() };
    match pod.exec_sync(container, spec, Some(at_most)).await {
        Ok(output) if output.exit_code == 0 => Answer::Good,
        Ok(output) => match quoted(&[output.stdout, output.stderr].concat()) {
            said if said.is_empty() => Answer::Bad(format!("exit code {}", output.exit_code)),
            said => Answer::Bad(said),
        },
        Err(RuntimeError::ExecTimeout { .. }) => {
            Answer::Bad(format!("command timed out after {} s", at_most.as_secs()))
        }
        // A command that is not there is the container's fault; a sandbox that does not answer is not.
        Err(error) => {
            let line = sampan_kit::error_chain::ErrorChain(&error).to_string();
            match error {
                RuntimeError::Start(StartError::Sandbox(_)) => Answer::Unasked(line),
                RuntimeError::Start(_) => Answer::Bad(line),
                _ => Answer::Unasked(line),
            }
        }
    }
}
