//! When a container is asked how it is, and what its answers mean. No clock, no tasks, no network: the worker asks
//! [`Probing::due`] what to do now, does it, and feeds the answers back.
//!
//! Source of the rules: Kubernetes' "Configure Liveness, Readiness and Startup Probes" and `pkg/kubelet/prober/worker.go`.
//!
//! ```text
//! run begins ── startup probe ── succeeds ──▶ started ──┬── readiness: ready or not, back and forth
//!                    │ fails too often                  └── liveness ── fails too often ──▶ to be killed
//!                    ▼
//!               to be killed                  without a startup probe a run counts as started at once
//! ```

use std::time::Duration;

use jiff::Timestamp;

use crate::lifecycle::after;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Whether the program has finished starting; until then the others are not asked.
    Startup,
    /// Whether it must be killed.
    Liveness,
    /// Whether it can serve.
    Readiness,
}

impl Kind {
    /// As events write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// When to ask, and how many answers of a kind count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Before the first question of a run.
    pub initial_delay: Duration,
    /// Between questions.
    pub period: Duration,
    /// Good answers in a row that are believed.
    pub success_threshold: u32,
    /// Bad answers in a row that are believed.
    pub failure_threshold: u32,
}

/// What an answer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Nothing,
    /// The container's `started` or `ready`.
    Changed,
    /// It is not well, and is to be killed.
    Kill,
}

/// One probe of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prober {
    timing: Timing,
    due: Option<Timestamp>,
    asking: bool,
    /// The last answer, and how often it has come in a row.
    last: Option<(bool, u32)>,
    /// What is believed.
    believed: Option<bool>,
}

impl Prober {
    const fn new(timing: Timing) -> Self {
        Self { timing, due: None, asking: false, last: None, believed: None }
    }

    fn begin(&mut self, since: Timestamp) {
        *self = Self::new(self.timing);
        self.due = Some(after(since, self.timing.initial_delay));
    }

    fn ask(&mut self, now: Timestamp) -> bool {
        let is_due = !self.asking && self.due.is_some_and(|due| due <= now);
        if is_due {
            self.asking = true;
            self.due = Some(after(now, self.timing.period));
        }
        is_due
    }

    fn wake(&self) -> Option<Timestamp> {
        if self.asking { None } else { self.due }
    }

    /// Takes an answer; gives what is believed from now on, if that is settled by it.
    fn answered(&mut self, is_good: bool) -> Option<bool> {
        self.asking = false;
        let in_a_row = match self.last {
            Some((last, count)) if last == is_good => count.saturating_add(1),
            _ => 1,
        };
        self.last = Some((is_good, in_a_row));
        let needed = if is_good { self.timing.success_threshold } else { self.timing.failure_threshold };
        if in_a_row < needed {
            return None;
        }
        self.believed = Some(is_good);
        Some(is_good)
    }
}

/// The probes of one container, and what its present run is held to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probing {
    startup: Option<Prober>,
    liveness: Option<Prober>,
    readiness: Option<Prober>,
    run: Run,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Run {
    #[default]
    None,
    Running {
        since: Timestamp,
        started: bool,
        /// It is to be killed: nobody asks it any more.
        condemned: bool,
    },
}

impl Probing {
    /// A container's probes, as far as it has them.
    #[must_use]
    pub fn new(startup: Option<Timing>, liveness: Option<Timing>, readiness: Option<Timing>) -> Self {
        Self {
            startup: startup.map(Prober::new),
            liveness: liveness.map(Prober::new),
            readiness: readiness.map(Prober::new),
            run: Run::None,
        }
    }

    /// A run begins.
    pub fn begin(&mut self, since: Timestamp) {
        for prober in [&mut self.startup, &mut self.liveness, &mut self.readiness].into_iter().flatten() {
            prober.begin(since);
        }
        self.run = Run::Running { since, started: self.startup.is_none(), condemned: false };
    }

    /// A run that began before this service did: what was believed of it still is.
    pub fn resume(&mut self, since: Timestamp, was_started: bool, was_ready: bool) {
        self.begin(since);
        if let Run::Running { started, .. } = &mut self.run {
            *started |= was_started;
        }
        if let Some(readiness) = &mut self.readiness {
            readiness.believed = Some(was_ready);
        }
    }

    /// The run is over.
    pub fn end(&mut self) {
        self.run = Run::None;
    }

    /// The run has finished starting.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        matches!(self.run, Run::Running { started: true, .. })
    }

    /// The run can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_started() && self.readiness.as_ref().is_none_or(|readiness| readiness.believed == Some(true))
    }

    /// The probes that are asked at present: one stage after the other.
    fn current(&mut self, is_stopping: bool) -> impl Iterator<Item = (Kind, &mut Prober)> {
        let (started, running) = match self.run {
            Run::Running { started, condemned: false, .. } => (started, true),
            _ => (false, false),
        };
        let startup = self.startup.as_mut().filter(|_| running && !started && !is_stopping);
        let liveness = self.liveness.as_mut().filter(|_| started && !is_stopping);
        let readiness = self.readiness.as_mut().filter(|_| started);
        let tagged = |kind: Kind| move |prober| (kind, prober);
        startup
            .map(tagged(Kind::Startup))
            .into_iter()
            .chain(liveness.map(tagged(Kind::Liveness)))
            .chain(readiness.map(tagged(Kind::Readiness)))
    }

    /// The probes to be sent now; each is then under way until [`Self::answered`]. Of a pod that is stopping only
    /// readiness is still asked for.
    pub fn due(&mut self, is_stopping: bool, now: Timestamp) -> Vec<Kind> {
        let asked = self.current(is_stopping).filter_map(|(kind, prober)| prober.ask(now).then_some(kind));
        asked.collect()
    }

    /// When to ask [`Self::due`] again.
    pub fn wake(&mut self, is_stopping: bool) -> Option<Timestamp> {
        self.current(is_stopping).filter_map(|(_, prober)| prober.wake()).min()
    }

    /// A probe could not be sent at all; that says nothing about the container.
    pub fn lost(&mut self, kind: Kind) {
        if let Some(prober) = self.prober(kind) {
            prober.asking = false;
        }
    }

    /// An answer of the present run.
    pub fn answered(&mut self, kind: Kind, is_good: bool, now: Timestamp) -> Verdict {
        let Some(prober) = self.prober(kind) else { return Verdict::Nothing };
        let before = prober.believed;
        let settled = prober.answered(is_good);
        let Run::Running { since, started, condemned } = &mut self.run else { return Verdict::Nothing };
        match (kind, settled) {
            (Kind::Startup, Some(true)) if !*started => {
                *started = true;
                let since = *since;
                for prober in [&mut self.liveness, &mut self.readiness].into_iter().flatten() {
                    // Those whose delay is over are asked at once: nobody waits a period longer than he must.
                    prober.due = Some(after(since, prober.timing.initial_delay).max(now));
                }
                Verdict::Changed
            }
            (Kind::Startup | Kind::Liveness, Some(false)) if !*condemned => {
                *condemned = true;
                Verdict::Kill
            }
            (Kind::Readiness, Some(now)) if before != Some(now) => Verdict::Changed,
            _ => Verdict::Nothing,
        }
    }

    fn prober(&mut self, kind: Kind) -> Option<&mut Prober> {
        match kind {
            Kind::Startup => self.startup.as_mut(),
            Kind::Liveness => self.liveness.as_mut(),
            Kind::Readiness => self.readiness.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests;
