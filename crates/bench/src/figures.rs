//! What is measured, in groups that share their preparation.

mod pull;
mod pull_and_run;
pub(crate) mod read;
pub(crate) mod turns;
mod warm_run;

use anyhow::Result;

use crate::bench::Bench;
use crate::engines::Engine;
use crate::report::Figure;

/// Figures that are measured together; `--only` names one group.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) measure: fn(&Bench) -> Result<Vec<Figure>>,
}

/// All of them, in the order in which they run.
pub(crate) const GROUPS: [Group; 4] = [
    Group { name: "pull", measure: pull::measure },
    Group { name: "pull-and-run", measure: pull_and_run::measure },
    Group { name: "warm-run", measure: warm_run::measure },
    Group { name: "read", measure: read::measure },
];

/// A peer of one group: who, if he is installed, and what is promised against him.
struct Opponent<'a> {
    name: &'static str,
    engine: Option<Box<dyn Engine + 'a>>,
    bound: Option<f64>,
}

impl<'a> Opponent<'a> {
    fn new(name: &'static str, engine: Option<impl Engine + 'a>, bound: Option<f64>) -> Self {
        Self { name, engine: engine.map(|engine| Box::new(engine) as Box<dyn Engine>), bound }
    }
}
