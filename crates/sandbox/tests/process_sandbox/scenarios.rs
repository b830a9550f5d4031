//! What a process sandbox has to do.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::host::Host;

mod confinement;
mod life;
mod limits;
mod processes;
mod restrictions;
mod sharing;
mod transfer;

pub(crate) type Scenario = for<'a> fn(&'a mut Host) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn scenarios() -> Vec<(&'static str, crate::scenarios::Scenario)> {
            vec![$((stringify!($name), |host| Box::pin($name(host)))),*]
        }
    };
}
pub(crate) use scenarios;

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    let mut all = life::scenarios();
    all.extend(processes::scenarios());
    all.extend(confinement::scenarios());
    all.extend(limits::scenarios());
    all.extend(sharing::scenarios());
    all.extend(restrictions::scenarios());
    all.extend(transfer::scenarios());
    all
}

/// Runs the scenarios one after the other; the last one is that nothing is left.
pub(crate) async fn run(filter: Option<&str>) -> ExitCode {
    let mut host = match Host::start().await {
        Ok(host) => host,
        Err(error) => {
            eprintln!("no node to test on: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut failures = 0;
    let selected = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    for (name, scenario) in all().into_iter().filter(|(name, _)| selected(name)) {
        let began = Instant::now();
        match scenario(&mut host).await {
            Ok(()) => eprintln!("test {name} ... ok ({} ms)", began.elapsed().as_millis()),
            Err(error) => {
                failures += 1;
                eprintln!("test {name} ... FAILED: {error:#}");
            }
        }
    }
    if let Err(error) = host.sandboxes.reconcile(&Default::default()).await {
        eprintln!("the leftovers cannot be removed: {error}");
        failures += 1;
    }
    if let Err(error) = host.finish().await {
        eprintln!("test nothing_is_left ... FAILED: {error:#}");
        failures += 1;
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
