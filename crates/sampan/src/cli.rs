//! The command line: every command, its options and its help, as data for clap.
//!
//! What a command does stands in `commands`; what a value may look like in [`values`]. A line that cannot be parsed
//! becomes one line on stderr like every other failure, not clap's paragraph.

pub(crate) mod image;
pub(crate) mod serve;
pub(crate) mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::commands;
use crate::failure::{EXIT_TOOL, Failure};

const EXAMPLES: &str = "\
Examples:
  sampan serve &                                  start the service on this machine (as root)
  sampan run --rm -it debian:13 bash              a shell in a fresh instance, gone when it ends
  sampan run -d --name web -p 8080:80 nginx       a server in the background
  sampan logs -f web                              follow what it writes
  sampan rm -f web                                end and remove it

kubectl works as well: the service writes a kubeconfig to /var/lib/sampan/kubeconfig.";

/// Any OCI image, isolated, running in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "sampan", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The service's Unix socket.
    #[arg(long, global = true, env = "SAMPAN_SOCKET", default_value = "/run/sampan/sampan.sock", value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// The namespace the instances are in.
    #[arg(short, long, global = true, env = "SAMPAN_NAMESPACE", default_value = "default", value_name = "NAMESPACE",
          value_parser = values::namespace)]
    pub(crate) namespace: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
///
/// Options are made only of the command that a line names. A doc comment on a struct of options, or on commands below one, would
/// then be shown in place of the variant's here, so that they have none.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Run a command in a new instance of an image.
    Run(Box<commands::run::RunArgs>),
    /// Create or change objects from a file of YAML or JSON.
    Apply(commands::apply::ApplyArgs),
    /// List instances.
    Ps(commands::ps::PsArgs),
    /// Show what an instance has written.
    Logs(commands::logs::LogsArgs),
    /// Run a further command in a running instance.
    Exec(commands::exec::ExecArgs),
    /// Connect this terminal to a running instance's main process.
    Attach(commands::attach::AttachArgs),
    /// Copy files into or out of a running instance.
    Cp(commands::cp::CpArgs),
    /// Let ports of this machine lead to ports inside an instance, while the command runs.
    PortForward(commands::port_forward::PortForwardArgs),
    /// Stop instances; they can still be looked at.
    Stop(commands::stop::StopArgs),
    /// Remove instances.
    Rm(commands::rm::RmArgs),
    /// Show everything that is known about instances.
    Inspect(commands::inspect::InspectArgs),
    /// Show what instances use.
    Stats(commands::stats::StatsArgs),
    /// Show where the time of an instance's start went.
    Timeline(commands::timeline::TimelineArgs),
    /// Fetch an image ahead of its first run.
    Pull(commands::pull::PullArgs),
    /// Load the images of an archive that docker save wrote.
    Load(commands::load::LoadArgs),
    /// List the images on this machine.
    Images(commands::images::ImagesArgs),
    /// Remove images from this machine.
    Rmi(commands::rmi::RmiArgs),
    /// Look into images, and make and publish what lets them start before they have arrived.
    Image {
        #[command(subcommand)]
        command: image::ImageCommand,
    },
    /// Look at the machine itself.
    Host {
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Show the versions of this command and of the service.
    Version(commands::version::VersionArgs),
    /// Print the script that makes a shell complete this command's words.
    Completion(commands::completion::CompletionArgs),
    /// Run the service in the foreground (as root).
    Serve(serve::ServeArgs),
    #[command(hide = true)]
    Internal(serve::InternalArgs),
}

// What to do with the machine.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Say what this machine offers, what is missing, and what to do about it.
    Check(commands::host_check::HostCheckArgs),
}

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// A command.
    Cli(Box<Cli>),
    /// A text to print, as `--help` does.
    Text(String),
}

/// Reads a command line.
pub(crate) fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let line: Vec<OsString> = line.into_iter().collect();
    match Cli::try_parse_from(&line) {
        Ok(cli) => Ok(Parsed::Cli(Box::new(cli))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Text(error.render().to_string())),
            _ => Err(usage(&error, &line)),
        },
    }
}

/// clap's paragraph as one line, and the exit code that scripts around docker expect.
fn usage(error: &clap::Error, line: &[OsString]) -> Failure {
    let named = line.iter().skip(1).filter_map(|word| word.to_str()).find(|word| {
        use clap::CommandFactory as _;
        Cli::command().find_subcommand(word).is_some()
    });
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand || (named.is_none() && line.len() < 2) {
        return Failure::explain("no command", "there is nothing to do", "see: sampan --help").with_code(2);
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let code = if matches!(named, Some("run" | "exec")) { EXIT_TOOL } else { 2 };
    let line = match named {
        Some(named) => format!("{named}: {paragraph}; see: sampan {named} --help"),
        None => format!("{paragraph}; see: sampan --help"),
    };
    Failure::new(line).with_code(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(line: &str, expected: Expect) {
        let words = std::iter::once("sampan").chain(line.split_whitespace()).map(OsString::from);
        let failure = parse(words).unwrap_err();
        expected.assert_eq(&format!("{} [{}]", failure.line.unwrap(), failure.code));
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_says_of_itself_what_the_list_of_commands_says() {
        let descriptions = |command: &clap::Command| -> Vec<(String, Option<String>)> {
            let of = |one: &clap::Command| (one.get_name().to_owned(), one.get_about().map(ToString::to_string));
            command.get_subcommands().map(of).collect()
        };
        let images = image::ImageCommand::augment_subcommands(clap::Command::new("image"));
        for mut command in [<Cli as clap::CommandFactory>::command(), images.disable_help_subcommand(true)] {
            let listed = descriptions(&command);
            command.build();
            assert_eq!(descriptions(&command), listed);
        }
    }

    #[test]
    fn bad_lines_get_one_line() {
        check("", expect![[r#"no command: there is nothing to do; see: sampan --help [2]"#]]);
        check("fly", expect![[r#"unrecognized subcommand 'fly'; see: sampan --help [2]"#]]);
        check(
            "run",
            expect![
                "run: the following required arguments were not provided: <IMAGE> [COMMAND]...; see: sampan run --help [125]"
            ],
        );
        check(
            "run --memory lots x",
            expect![
                "run: invalid value 'lots' for '--memory <QUANTITY>': there is no number; write it like 512Mi or 2Gi; see: sampan run --help [125]"
            ],
        );
        check(
            "run --memory 512m x",
            expect![
                "run: invalid value '512m' for '--memory <QUANTITY>': less than one mebibyte (m means a thousandth of a byte); write it like 512Mi or 2Gi; see: sampan run --help [125]"
            ],
        );
        check(
            "run --cpu 0 x",
            expect![
                "run: invalid value '0' for '--cpu <QUANTITY>': less than a thousandth of a CPU; write it like 0.5, 2 or 500m; see: sampan run --help [125]"
            ],
        );
        check(
            "run -p 80 x",
            expect![
                "run: invalid value '80' for '--publish <[IP:]HOST:PORT[/udp]>': the port on this machine is missing; write it like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp; see: sampan run --help [125]"
            ],
        );
        check(
            "run -p 70000:80 x",
            expect![[
                r#"run: invalid value '70000:80' for '--publish <[IP:]HOST:PORT[/udp]>': "70000" is no port from 1 to 65535; write it like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp; see: sampan run --help [125]"#
            ]],
        );
        check(
            "run -v data:/data x",
            expect![
                "run: invalid value 'data:/data' for '--volume <SRC:DST[:ro]>': there are no named volumes; write ./data for the directory of that name; see: sampan run --help [125]"
            ],
        );
        check(
            "run -v /a:data x",
            expect![[
                r#"run: invalid value '/a:data' for '--volume <SRC:DST[:ro]>': "data" is no absolute path inside the instance; write it like ./data:/data or /srv:/srv:ro; see: sampan run --help [125]"#
            ]],
        );
        check(
            "run --name My_App x",
            expect![
                "run: invalid value 'My_App' for '--name <NAME>': at most 63 of a-z, 0-9 and -, with a letter or digit at both ends; see: sampan run --help [125]"
            ],
        );
        check(
            "run --pull sometimes x",
            expect![
                "run: invalid value 'sometimes' for '--pull <POLICY>' [possible values: always, missing, never]; see: sampan run --help [125]"
            ],
        );
        check(
            "run -e =x x",
            expect![
                "run: invalid value '=x' for '--env <NAME[=VALUE]>': the variable has no proper name; write it like NAME=VALUE; see: sampan run --help [125]"
            ],
        );
        check(
            "ps -o csv",
            expect![
                "ps: invalid value 'csv' for '--output <FORM>' [possible values: json, yaml, wide, name]; see: sampan ps --help [2]"
            ],
        );
        check(
            "rm",
            expect!["rm: the following required arguments were not provided: <NAMES>...; see: sampan rm --help [2]"],
        );
        check(
            "-n Bad! ps",
            expect![
                "ps: invalid value 'Bad!' for '--namespace <NAMESPACE>': at most 63 of a-z, 0-9 and -, with a letter or digit at both ends; see: sampan ps --help [2]"
            ],
        );
        check(
            "logs --since yesterday x",
            expect![
                "logs: invalid value 'yesterday' for '--since <SINCE>': write a span like 90s, 10m, 1h30m or 2d, or a moment like 2026-01-31T12:00:00Z; see: sampan logs --help [2]"
            ],
        );
    }
}
