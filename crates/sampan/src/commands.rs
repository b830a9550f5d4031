//! What each command does, in one module each, and the parts that several share.

pub(crate) mod apply;
pub(crate) mod attach;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod exec;
mod foreground;
pub(crate) mod host_check;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod logs;
mod node;
pub(crate) mod port_forward;
pub(crate) mod ps;
pub(crate) mod pull;
mod removal;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
mod session;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod timeline;
pub(crate) mod version;

use serde_json::Value;

use crate::cli::{Command, HostCommand};
use crate::client::{Client, path};
use crate::failure::Failure;

/// What every command works with.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Context {
    /// One instance of this namespace.
    pub(crate) async fn pod(&self, name: &str) -> Result<Value, Failure> {
        let pod = self.client.get(&path::pod(&self.namespace, name)).await;
        pod.map_err(|error| error.about_pod(&self.namespace, name))
    }
}

/// Runs a command; its exit code.
pub(crate) async fn execute(command: Command, context: &Context) -> Result<i32, Failure> {
    match command {
        Command::Run(args) => run::execute(&args, context).await,
        Command::Apply(args) => apply::execute(&args, context).await,
        Command::Ps(args) => ps::execute(&args, context).await,
        Command::Logs(args) => logs::execute(&args, context).await,
        Command::Exec(args) => exec::execute(&args, context).await,
        Command::Attach(args) => attach::execute(&args, context).await,
        Command::Cp(args) => cp::execute(&args, context).await,
        Command::PortForward(args) => port_forward::execute(&args, context).await,
        Command::Stop(args) => stop::execute(&args, context).await,
        Command::Rm(args) => rm::execute(&args, context).await,
        Command::Inspect(args) => inspect::execute(&args, context).await,
        Command::Stats(args) => stats::execute(&args, context).await,
        Command::Timeline(args) => timeline::execute(&args, context).await,
        Command::Pull(args) => pull::execute(&args, context).await,
        Command::Images(args) => images::execute(&args, context).await,
        Command::Load(args) => load::execute(&args, context).await,
        Command::Rmi(args) => rmi::execute(&args, context).await,
        Command::Image { command } => image::execute(command, context).await,
        Command::Host { command: HostCommand::Check(args) } => host_check::execute(&args, context).await,
        Command::Version(args) => version::execute(&args, context).await,
        Command::Completion(_) | Command::Serve(_) | Command::Internal(_) => Ok(0),
    }
}

/// Does something to each name; a failure with one does not spare the others, and the last one is the outcome.
pub(crate) async fn for_each_name<Work, Done>(names: &[String], mut work: Work) -> Result<i32, Failure>
where
    Work: FnMut(String) -> Done,
    Done: Future<Output = Result<(), Failure>>,
{
    let mut outcome = Ok(0);
    for name in names {
        let Err(failure) = work(name.clone()).await else { continue };
        if failure.is_broken_pipe() {
            return Err(failure);
        }
        if let Err(Failure { line: Some(line), .. }) = std::mem::replace(&mut outcome, Err(failure)) {
            crate::output::note(&line);
        }
    }
    outcome
}
