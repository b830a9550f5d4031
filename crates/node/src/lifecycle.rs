//! What a pod needs next: the policy of restarts, init containers and stops, without clock, tasks or host.
//!
//! The worker feeds in what happened ([`Lifecycle::started`], [`Lifecycle::exited`], …) and asks [`Lifecycle::next`]
//! what to do now and when to ask again. Source of the rules: Kubernetes' "Pod Lifecycle" page and
//! `pkg/kubelet/kuberuntime/kuberuntime_manager.go` (`computePodActions`).
//!
//! ```text
//!            Start                started               exited
//!  Fresh ───────────► Starting ───────────► Running ───────────► Exited ──┐
//!    ▲                   │ refused                                  │     │ final: stays
//!    │                   ▼                                          │
//!    └──── time ──── Waiting ◄──────── restart policy, back-off ────┘
//!
//!  a stop of a running one:   (pre-stop hook ──►) stop signal ──► deadline ──► kill
//! ```
//!
//! What makes a running container *started* and *ready* (post-start hook, probes) is [`crate::probe`]'s.

use std::time::Duration;

use jiff::Timestamp;
use sampan_kit::backoff::Backoff;

use crate::limits::{FORCED_AFTER, LAST_GRACE, RESTART_DELAY_FIRST, RESTART_DELAY_LONGEST, RESTART_FORGIVEN_AFTER};
use crate::probe::Probing;

/// Kubernetes' `restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    Always,
    /// Restart unless it ended with 0.
    OnFailure,
    /// Never restart.
    Never,
}

/// The part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running beside the others and is stopped after them.
    Sidecar,
    /// The pod's purpose.
    Main,
    /// Put in later to look at the others; never started again, and no concern of the pod's.
    Ephemeral,
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// One line for the user, or empty.
    pub message: String,
    /// When it began; none when it never ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started yet, or due to be started again.
    Fresh,
    /// On its way: image, root, process.
    Starting,
    /// Running.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// Ended.
    Exited(Exit),
    /// Not to be started before a time.
    Waiting {
        /// `CrashLoopBackOff`, `ImagePullBackOff`, `ErrImagePull`, `CreateContainerConfigError`, …
        reason: String,
        /// One line for the user.
        message: String,
        /// When to try again.
        until: Timestamp,
    },
}

/// One container of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// Where it stands.
    pub state: State,
    /// Runs begun before the present one.
    pub restarts: u32,
    /// A run was begun.
    pub ever_started: bool,
    /// How the run before the present one ended.
    pub last_exit: Option<Exit>,
    /// What is known of its health.
    pub probing: Probing,
    /// What it runs after its start and before its end.
    hooks: Hooks,
    /// Its post-start hook has not come to its end.
    hook_pending: bool,
    /// It alone is to end by then, because it is not well.
    ending: Option<Stop>,
    /// It was ended because it was not well: a failure whatever its exit code.
    unwell: bool,
    /// It was told to end.
    stop_sent: StopSent,
    /// Not killed before: what a slow pre-stop hook leaves to the program.
    last_grace: Option<Timestamp>,
    /// People were told that it is being stopped.
    stop_announced: bool,
    restart_delay: Backoff,
    refusal_delay: Backoff,
    /// The first restart is not delayed.
    restarted_once: bool,
}

/// A container's hooks, as far as it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Runs beside the program from its beginning; until it is done nothing after the container starts.
    pub post_start: bool,
    /// Runs before the stop signal.
    pub pre_stop: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopSent {
    No,
    /// The pre-stop hook runs.
    Hook,
    /// It is done.
    Hooked,
    Term,
    Kill,
}

/// What the worker is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox.
    MakeSandbox,
    /// Start the container of that index; it counts as `Starting` from now on.
    Start(usize),
    /// Run the container's pre-stop hook, for no longer than the deadline; then say [`Lifecycle::pre_stopped`].
    PreStop(usize, Timestamp),
    /// Send the container its stop signal.
    Terminate(usize),
    /// Kill the container.
    Kill(usize),
    /// Take the sandbox away.
    RemoveSandbox,
}

/// What the worker knows of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// Not made yet.
    Absent,
    /// Being made.
    Making,
    /// Refused; to be tried again at a time.
    Refused {
        /// When to try again.
        until: Timestamp,
    },
    /// There.
    Ready,
    /// Being taken away.
    Removing,
    /// Taken away for good.
    Removed,
}

/// Why everything is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// When running containers are killed.
    pub deadline: Timestamp,
}

/// A pod's containers and what is to become of them.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// The pod's policy.
    pub policy: RestartPolicy,
    /// Init containers and side-cars in their order, then the main ones.
    pub slots: Vec<Slot>,
    /// Set when the pod is deleted or stopped.
    pub stop: Option<Stop>,
    /// How a side-car's stop is bounded once the main containers are done.
    pub grace: Duration,
    /// The pod cannot go on, and why: it is stopped and ends as `Failed`.
    pub failure: Option<(String, String)>,
    sidecar_stop: Option<Stop>,
}

/// What to do now, and when to ask again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Next {
    /// In this order.
    pub actions: Vec<Action>,
    /// Ask again at this time even if nothing happens.
    pub wake: Option<Timestamp>,
}

impl Next {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// The pod's phase (`status.phase`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not everything has run yet.
    Pending,
    /// At least one main container runs or will run again.
    Running,
    /// All main containers ended with 0 and stay so.
    Succeeded,
    /// All main containers ended, one of them not with 0.
    Failed,
}

impl Phase {
    /// As Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Nothing more will happen.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl Slot {
    /// A container that has not run.
    #[must_use]
    pub fn new(name: impl Into<String>, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
            state: State::Fresh,
            restarts: 0,
            ever_started: false,
            last_exit: None,
            probing: Probing::default(),
            hooks: Hooks::default(),
            hook_pending: false,
            ending: None,
            unwell: false,
            stop_sent: StopSent::No,
            last_grace: None,
            stop_announced: false,
            restart_delay: Backoff::new(RESTART_DELAY_FIRST, RESTART_DELAY_LONGEST),
            refusal_delay: Backoff::new(RESTART_DELAY_FIRST, RESTART_DELAY_LONGEST),
            restarted_once: false,
        }
    }

    /// The same with probes and hooks.
    #[must_use]
    pub fn watched(self, probing: Probing, hooks: Hooks) -> Self {
        Self { probing, hooks, ..self }
    }

    /// Its post-start hook runs, or is due.
    #[must_use]
    pub const fn is_hook_pending(&self) -> bool {
        self.hook_pending
    }

    /// It runs, its post-start hook is done, and so is what its startup probe waits for.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.is_running() && !self.hook_pending && self.probing.is_started()
    }

    /// It runs and can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_started() && self.probing.is_ready()
    }

    /// True the first time that this run is said to be stopping, unless it is not well, which was said already.
    pub const fn announce_stop(&mut self) -> bool {
        let is_news = !self.stop_announced && !self.unwell;
        self.stop_announced = true;
        is_news
    }

    /// One that starts after this one has to wait for its hook.
    const fn holds_others_back(&self) -> bool {
        self.hooks.post_start && (self.hook_pending || matches!(self.state, State::Starting))
    }

    /// Whether this end calls for another run.
    fn is_restarted(&self, policy: RestartPolicy, exit: &Exit) -> bool {
        match (self.role, policy) {
            (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
            (Role::Init, RestartPolicy::Always | RestartPolicy::OnFailure) | (Role::Main, RestartPolicy::OnFailure) => {
                exit.code != 0 || self.unwell
            }
            (_, RestartPolicy::Never) | (Role::Ephemeral, _) => false,
        }
    }

    /// The next step of its end: hook, signal, and at the deadline force.
    fn end(&mut self, index: usize, deadline: Timestamp, now: Timestamp, next: &mut Next) {
        let overdue = now >= deadline;
        match self.stop_sent {
            StopSent::No if overdue => self.kill(index, next),
            StopSent::No if self.hooks.pre_stop => {
                self.stop_sent = StopSent::Hook;
                next.actions.push(Action::PreStop(index, deadline));
                next.wake_at(deadline);
            }
            StopSent::No => self.terminate(index, deadline, next),
            StopSent::Hook if !overdue => next.wake_at(deadline),
            StopSent::Hook | StopSent::Hooked => {
                // A hook may use the whole grace up; the program gets a moment all the same.
                let last = after(now, LAST_GRACE);
                self.last_grace = Some(last);
                self.terminate(index, deadline.max(last), next);
            }
            StopSent::Term => {
                let deadline = self.last_grace.map_or(deadline, |last| deadline.max(last));
                if now >= deadline { self.kill(index, next) } else { next.wake_at(deadline) }
            }
            StopSent::Kill => {}
        }
    }

    fn terminate(&mut self, index: usize, deadline: Timestamp, next: &mut Next) {
        self.stop_sent = StopSent::Term;
        next.actions.push(Action::Terminate(index));
        next.wake_at(deadline);
    }

    fn kill(&mut self, index: usize, next: &mut Next) {
        self.stop_sent = StopSent::Kill;
        next.actions.push(Action::Kill(index));
    }

    /// It is running.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// The run that is on its way never was.
    const fn uncount(&mut self) {
        if self.restarts > 0 {
            self.restarts -= 1;
        } else {
            self.ever_started = false;
        }
    }

    const fn is_busy(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Starting)
    }

    /// How the last finished run ended, while none runs.
    #[must_use]
    pub const fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

impl Lifecycle {
    /// A pod's containers before anything happened.
    #[must_use]
    pub const fn new(policy: RestartPolicy, slots: Vec<Slot>, grace: Duration) -> Self {
        Self { policy, slots, stop: None, grace, failure: None, sidecar_stop: None }
    }

    /// The index of a container.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name)
    }

    /// A container is on its way.
    pub fn starting(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            if slot.ever_started {
                slot.restarts = slot.restarts.saturating_add(1);
            }
            slot.ever_started = true;
            slot.stop_sent = StopSent::No;
            (slot.ending, slot.last_grace) = (None, None);
            (slot.unwell, slot.hook_pending, slot.stop_announced) = (false, false, false);
            slot.probing.end();
            slot.state = State::Starting;
        }
    }

    /// A container runs; unless its end was heard of first, since both come by ways of their own.
    pub fn started(&mut self, index: usize, since: Timestamp) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.state == State::Starting) {
            slot.refusal_delay.reset();
            slot.state = State::Running { since };
            slot.hook_pending = slot.hooks.post_start;
            if !slot.hook_pending {
                slot.probing.begin(since);
            }
        }
    }

    /// A container that ran before this service did: its hook is done, and what was believed of its health still is.
    pub fn resumed(&mut self, index: usize, since: Timestamp, was_started: bool, was_ready: bool) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.ever_started = true;
            slot.state = State::Running { since };
            slot.probing.resume(since, was_started, was_ready);
        }
    }

    /// A service before this one died over a start of which nothing came; the run does not count.
    pub fn unstarted(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.state == State::Starting) {
            slot.uncount();
            slot.state = State::Fresh;
        }
    }

    /// The post-start hook of a container's run is done; now it is asked how it is.
    pub fn hooked(&mut self, index: usize, attempt: u32, now: Timestamp) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.restarts == attempt && slot.hook_pending) {
            slot.hook_pending = false;
            slot.probing.begin(now);
        }
    }

    /// The pre-stop hook of a container's run is done, or was given up.
    pub fn pre_stopped(&mut self, index: usize, attempt: u32) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.restarts == attempt
            && slot.stop_sent == StopSent::Hook
        {
            slot.stop_sent = StopSent::Hooked;
        }
    }

    /// Ends one container's run, because it is not well; the restart policy decides what comes then.
    pub fn end_unwell(&mut self, index: usize, attempt: u32, deadline: Timestamp) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.restarts == attempt
            && slot.is_running()
        {
            slot.unwell = true;
            slot.ending.get_or_insert(Stop { deadline });
        }
    }

    /// What kept these containers from starting may have gone: they try again now.
    pub fn retry(&mut self, reason: &str, now: Timestamp) {
        for slot in &mut self.slots {
            if let State::Waiting { reason: waits_for, until, .. } = &mut slot.state
                && waits_for == reason
            {
                *until = now;
            }
        }
    }

    /// A container could not be started for a reason that may pass; the run does not count.
    pub fn refused(&mut self, index: usize, reason: &str, message: String, now: Timestamp) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.uncount();
            let until = after(now, slot.refusal_delay.fail());
            slot.state = State::Waiting { reason: reason.to_owned(), message, until };
        }
    }

    /// A container ended.
    pub fn exited(&mut self, index: usize, exit: Exit) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let ran = exit.started_at.map(|started| exit.finished_at.duration_since(started).unsigned_abs());
        if ran.is_some_and(|ran| ran >= RESTART_FORGIVEN_AFTER) {
            slot.restart_delay.reset();
            slot.restarted_once = false;
        }
        (slot.hook_pending, slot.ending) = (false, None);
        slot.probing.end();
        slot.last_exit = Some(exit.clone());
        slot.state = State::Exited(exit);
    }

    /// The sandbox is gone with everything in it: what ran has ended, and what prepared the pod is to run again.
    pub fn sandbox_lost(&mut self, reason: &str, message: &str, now: Timestamp) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { break };
            if let State::Running { .. } | State::Starting = slot.state {
                let started_at = if let State::Running { since } = slot.state { Some(since) } else { None };
                let (reason, message) = (reason.to_owned(), message.to_owned());
                self.exited(index, Exit { code: 137, signal: Some(9), reason, message, started_at, finished_at: now });
            }
        }
        if !self.phase().is_final() && self.stop.is_none() {
            for slot in self.slots.iter_mut().filter(|slot| slot.role == Role::Init) {
                slot.state = State::Fresh;
            }
        }
    }

    /// Asks for the end of everything; a later call can only make it sooner.
    pub fn request_stop(&mut self, deadline: Timestamp) {
        let deadline = self.stop.map_or(deadline, |stop| stop.deadline.min(deadline));
        self.stop = Some(Stop { deadline });
    }

    /// Gives the pod up: its containers are stopped and it ends as `Failed`.
    pub fn fail(&mut self, reason: &str, message: String, now: Timestamp) {
        self.failure.get_or_insert((reason.to_owned(), message));
        self.request_stop(after(now, self.grace));
    }

    /// What to do now.
    pub fn next(&mut self, sandbox: Sandbox, now: Timestamp) -> Next {
        let mut next = Next::default();
        if let Some(stop) = self.stop {
            self.stop_all(sandbox, stop, now, &mut next);
            return next;
        }
        if self.phase().is_final() {
            self.wind_down(sandbox, now, &mut next);
            return next;
        }
        match sandbox {
            Sandbox::Absent => next.actions.push(Action::MakeSandbox),
            Sandbox::Refused { until } if until <= now => next.actions.push(Action::MakeSandbox),
            Sandbox::Refused { until } => next.wake_at(until),
            Sandbox::Making | Sandbox::Removing | Sandbox::Removed => {}
            Sandbox::Ready => self.run(now, &mut next),
        }
        next
    }

    /// Starts what is due: init containers one after the other, side-cars on the way, then all main ones.
    fn run(&mut self, now: Timestamp, next: &mut Next) {
        let mut held_back = false;
        for index in 0..self.slots.len() {
            self.settle(index, now, next);
            let Some(slot) = self.slots.get_mut(index) else { break };
            if let Some(stop) = slot.ending.filter(|_| slot.is_running()) {
                slot.end(index, stop.deadline, now, next);
            }
            if slot.state == State::Fresh && (!held_back || slot.role == Role::Ephemeral) {
                next.actions.push(Action::Start(index));
                // It is `Starting` from now on, but only once the worker says so.
                held_back |= slot.hooks.post_start;
            }
            held_back |= match slot.role {
                Role::Main => slot.holds_others_back(),
                Role::Sidecar => !slot.is_started(),
                Role::Init => slot.exit().is_none_or(|exit| exit.code != 0),
                Role::Ephemeral => false,
            };
        }
    }

    /// Turns an ended container that is to run again into a waiting one, and a waiting one whose time has come into a
    /// fresh one.
    fn settle(&mut self, index: usize, now: Timestamp, next: &mut Next) {
        let policy = self.policy;
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let State::Exited(exit) = &slot.state
            && slot.is_restarted(policy, exit)
        {
            let delay = if slot.restarted_once { slot.restart_delay.fail() } else { Duration::ZERO };
            slot.restarted_once = true;
            let message = format!("back-off {} s restarting failed container {}", delay.as_secs(), slot.name);
            let until = after(exit.finished_at, delay);
            slot.state = State::Waiting { reason: "CrashLoopBackOff".to_owned(), message, until };
        }
        if let State::Waiting { until, .. } = &slot.state {
            if *until <= now {
                slot.state = State::Fresh;
            } else {
                next.wake_at(*until);
            }
        }
    }

    /// The main containers are done for good: ends the side-cars, then the sandbox.
    fn wind_down(&mut self, sandbox: Sandbox, now: Timestamp, next: &mut Next) {
        let stop = *self.sidecar_stop.get_or_insert(Stop { deadline: after(now, self.grace) });
        self.stop_all(sandbox, stop, now, next);
    }

    /// Ends main containers, then side-cars, then the sandbox; at the deadline by force. What still has not ended a
    /// while later goes with its sandbox.
    fn stop_all(&mut self, sandbox: Sandbox, stop: Stop, now: Timestamp, next: &mut Next) {
        let overdue = now >= stop.deadline;
        let mains_busy = self.slots.iter().any(|slot| slot.role != Role::Sidecar && slot.is_busy());
        let any_busy = self.slots.iter().any(Slot::is_busy);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.is_running() && (overdue || slot.role != Role::Sidecar || !mains_busy) {
                slot.end(index, stop.deadline, now, next);
            }
        }
        let force_at = after(stop.deadline, FORCED_AFTER);
        if any_busy {
            next.wake_at(if overdue { force_at } else { stop.deadline });
        }
        if sandbox == Sandbox::Ready && (!any_busy || now >= force_at) {
            next.actions.push(Action::RemoveSandbox);
        }
    }

    /// The pod's phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let is_final = |slot: &Slot| slot.exit().is_some_and(|exit| self.stays_ended(slot, exit));
        let failed_init = self
            .slots
            .iter()
            .any(|slot| slot.role == Role::Init && is_final(slot) && slot.exit().is_some_and(|exit| exit.code != 0));
        let mains = || self.slots.iter().filter(|slot| slot.role == Role::Main);
        let stopped = self.stop.is_some() && !self.slots.iter().any(Slot::is_busy);
        if self.failure.is_some() && stopped || failed_init {
            return Phase::Failed;
        }
        if mains().all(is_final) && mains().next().is_some() {
            let good = mains().all(|slot| slot.exit().is_some_and(|exit| exit.code == 0));
            return if good { Phase::Succeeded } else { Phase::Failed };
        }
        if stopped {
            return Phase::Failed;
        }
        let began = |slot: &Slot| slot.ever_started && slot.state != State::Starting && !slot.hook_pending;
        if mains().any(|slot| began(slot) || slot.restarts > 0) { Phase::Running } else { Phase::Pending }
    }

    fn stays_ended(&self, slot: &Slot, exit: &Exit) -> bool {
        self.stop.is_some() || !slot.is_restarted(self.policy, exit)
    }
}

/// A moment later, or the end of time: users choose graces and deadlines, and may choose any.
pub(crate) fn after(moment: Timestamp, delay: Duration) -> Timestamp {
    moment.checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
