//! What every end-to-end test program does around its tests: start one service of its own, run the tests beside each
//! other, remove everything, stop the service, and look for what was left behind.
//!
//! The leak check is a test like the others in what it says, and the last one in when it runs: a program whose tests
//! pass and whose service leaves something behind fails.

pub mod call;
pub mod pod;
pub mod process;
pub mod terminal;
pub mod wait;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::leaks::{self, Traces};
use crate::service::Service;

/// How many tests run beside each other: most of their time is waiting.
const THREADS: usize = 4;

/// One test: its name and what it does with the program's service.
pub type Test = (&'static str, fn(&Service) -> Result<()>);

/// Names tests by their functions.
#[macro_export]
macro_rules! tests {
    ($($test:path),* $(,)?) => { [$((stringify!($test), $test as fn(&$crate::service::Service) -> anyhow::Result<()>)),*] };
}

/// Runs a test program: `alone` one after the other first, then `tests` beside each other.
///
/// A name that is neither on the command line's filter nor skipped runs, as under the usual test harness.
pub fn run(
    suite: &'static str,
    tests: impl IntoIterator<Item = Test>,
    alone: impl IntoIterator<Item = Test>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let (tests, alone): (Vec<Test>, Vec<Test>) = (tests.into_iter().collect(), alone.into_iter().collect());
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(&[alone, tests].concat(), None)).exit_code();
    }
    let before = Traces::global();
    let service = match Service::start(suite) {
        Ok(service) => Arc::new(service),
        Err(error) => {
            eprintln!("{suite}: the service cannot be started: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = false;
    for (tests, threads) in [(alone, 1), (tests, THREADS)] {
        if !tests.is_empty() {
            arguments.test_threads = Some(arguments.test_threads.unwrap_or(THREADS).min(threads));
            failed |= libtest_mimic::run(&arguments, trials(&tests, Some(&service))).has_failed();
            arguments.test_threads = None;
        }
    }
    let outcome = before.and_then(|before| leaks::check(&service, &before));
    if let Err(error) = &outcome {
        eprintln!("{suite}: something is left behind:\n{error:#}");
    }
    if failed || outcome.is_err() {
        eprintln!("---- what the service of {suite} said\n{}", service.log());
        return ExitCode::FAILURE;
    }
    eprintln!("{suite}: nothing is left behind");
    ExitCode::SUCCESS
}

fn trials(tests: &[Test], service: Option<&Arc<Service>>) -> Vec<Trial> {
    let trial = |&(name, test): &Test| {
        let service = service.map(Arc::clone);
        Trial::test(name, move || match service {
            Some(service) => test(&service).map_err(|error| Failed::from(format!("{error:?}"))),
            None => Ok(()),
        })
    };
    tests.iter().map(trial).collect()
}
