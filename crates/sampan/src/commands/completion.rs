//! `sampan completion`: the script that makes a shell complete this command's words.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  sampan completion bash > /etc/bash_completion.d/sampan
  sampan completion zsh > \"${fpath[1]}/_sampan\"
  sampan completion fish > ~/.config/fish/completions/sampan.fish
  source <(sampan completion bash)                this shell only";

// For which shell.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

/// Runs `sampan completion`. It needs no service.
pub(crate) fn execute(args: &CompletionArgs) -> Result<i32, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sampan", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
