//! The restart rules, one scene each, and what must hold in every order of events.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Action, Exit, Hooks, Lifecycle, Phase, RestartPolicy, Role, Sandbox, Slot, State, after};
use crate::limits::FORCED_AFTER;
use crate::probe::{Kind, Probing, Timing, Verdict};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn exit(code: i32, seconds: i64) -> Exit {
    let reason = if code == 0 { "Completed" } else { "Error" };
    Exit {
        code,
        signal: None,
        reason: reason.into(),
        message: String::new(),
        started_at: Some(at(seconds - 1)),
        finished_at: at(seconds),
    }
}

fn pod(policy: RestartPolicy, roles: &[Role]) -> Lifecycle {
    let slots = roles.iter().enumerate().map(|(index, role)| Slot::new(format!("c{index}"), *role)).collect();
    Lifecycle::new(policy, slots, Duration::from_secs(30))
}

fn run(pod: &mut Lifecycle, index: usize, seconds: i64) {
    pod.starting(index);
    pod.started(index, at(seconds));
}

#[test]
fn a_batch_pod_runs_once_and_is_taken_away() {
    let mut pod = pod(RestartPolicy::Never, &[Role::Main]);
    assert_eq!(pod.next(Sandbox::Absent, at(0)).actions, [Action::MakeSandbox]);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Start(0)]);
    run(&mut pod, 0, 0);
    assert_eq!(pod.phase(), Phase::Running);
    pod.exited(0, exit(3, 1));
    assert_eq!(pod.phase(), Phase::Failed);
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, [Action::RemoveSandbox]);
}

#[test]
fn an_end_that_is_heard_of_before_its_beginning_is_not_forgotten() {
    let mut pod = pod(RestartPolicy::Never, &[Role::Main]);
    pod.starting(0);
    pod.exited(0, exit(0, 1));
    pod.started(0, at(0));
    assert_eq!(pod.phase(), Phase::Succeeded);
}

#[test]
fn restarts_wait_longer_each_time_and_the_first_does_not() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Main]);
    let mut waits = Vec::new();
    let mut now = 0;
    for _ in 0..4 {
        assert_eq!(pod.next(Sandbox::Ready, at(now)).actions, [Action::Start(0)]);
        run(&mut pod, 0, now);
        now += 1;
        pod.exited(0, exit(1, now));
        let next = pod.next(Sandbox::Ready, at(now));
        let wait = next.wake.map_or(0, |wake| wake.as_second() - at(now).as_second());
        waits.push(wait);
        now += wait;
    }
    assert_eq!(waits, [0, 10, 20, 40]);
    assert_eq!(pod.slots[0].restarts, 3);
    assert_eq!(pod.phase(), Phase::Running);
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_stay() {
    let mut pod = pod(RestartPolicy::OnFailure, &[Role::Init, Role::Sidecar, Role::Main, Role::Main]);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Start(0)]);
    run(&mut pod, 0, 0);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, []);
    pod.exited(0, exit(0, 1));
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, [Action::Start(1)]);
    run(&mut pod, 1, 1);
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, [Action::Start(2), Action::Start(3)]);
    run(&mut pod, 2, 1);
    run(&mut pod, 3, 1);
    pod.exited(2, exit(0, 2));
    pod.exited(3, exit(0, 2));
    assert_eq!(pod.phase(), Phase::Succeeded);
    assert_eq!(pod.next(Sandbox::Ready, at(2)).actions, [Action::Terminate(1)]);
    pod.exited(1, exit(143, 3));
    assert_eq!(pod.phase(), Phase::Succeeded, "a side-car's end does not count");
    assert_eq!(pod.next(Sandbox::Ready, at(3)).actions, [Action::RemoveSandbox]);
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut pod = pod(RestartPolicy::Never, &[Role::Init, Role::Main]);
    run(&mut pod, 0, 0);
    pod.exited(0, exit(7, 1));
    assert_eq!(pod.phase(), Phase::Failed);
}

#[test]
fn a_stop_asks_first_and_kills_at_the_deadline() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Main]);
    run(&mut pod, 0, 0);
    pod.request_stop(at(10));
    let next = pod.next(Sandbox::Ready, at(5));
    assert_eq!((next.actions, next.wake), (vec![Action::Terminate(0)], Some(at(10))));
    assert_eq!(pod.next(Sandbox::Ready, at(6)).actions, []);
    assert_eq!(pod.next(Sandbox::Ready, at(10)).actions, [Action::Kill(0)]);
    pod.exited(0, exit(137, 10));
    assert_eq!(pod.next(Sandbox::Ready, at(10)).actions, [Action::RemoveSandbox]);
    assert_eq!(pod.phase(), Phase::Failed);
}

#[test]
fn a_grace_without_end_never_comes_to_its_deadline() {
    let mut pod = pod(RestartPolicy::Never, &[Role::Main]);
    pod.grace = Duration::MAX;
    run(&mut pod, 0, 0);
    pod.fail("DeadlineExceeded", String::new(), at(1));
    assert_eq!(pod.next(Sandbox::Ready, at(2)).actions, [Action::Terminate(0)]);
    assert_eq!(pod.next(Sandbox::Ready, at(3)).wake, Some(Timestamp::MAX));
}

#[test]
fn what_never_answers_goes_with_its_sandbox() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Main]);
    pod.starting(0);
    pod.request_stop(at(5));
    assert_eq!(pod.next(Sandbox::Ready, at(5)).wake, Some(at(15)));
    assert_eq!(pod.next(Sandbox::Ready, at(15)).actions, [Action::RemoveSandbox]);
}

#[test]
fn a_refused_start_does_not_count_as_a_restart() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Main]);
    pod.starting(0);
    pod.refused(0, "ErrImagePull", "no such image".into(), at(0));
    assert_eq!(pod.phase(), Phase::Pending);
    let next = pod.next(Sandbox::Ready, at(1));
    assert_eq!((next.actions, next.wake), (vec![], Some(at(10))));
    assert_eq!(pod.next(Sandbox::Ready, at(10)).actions, [Action::Start(0)]);
    assert_eq!(pod.slots[0].restarts, 0);
}

fn hooked(policy: RestartPolicy, roles: &[Role], hooks: Hooks) -> Lifecycle {
    let mut pod = pod(policy, roles);
    for slot in &mut pod.slots {
        *slot = Slot::new(slot.name.clone(), slot.role).watched(Probing::default(), hooks);
    }
    pod
}

#[test]
fn a_post_start_hook_holds_the_next_container_and_readiness_back() {
    let hooks = Hooks { post_start: true, pre_stop: false };
    let mut pod = hooked(RestartPolicy::Always, &[Role::Main, Role::Main], hooks);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Start(0)]);
    run(&mut pod, 0, 0);
    assert!(pod.slots[0].is_running() && pod.slots[0].is_hook_pending() && !pod.slots[0].is_ready());
    assert_eq!((pod.next(Sandbox::Ready, at(1)).actions, pod.phase()), (vec![], Phase::Pending));
    pod.hooked(0, 7, at(2));
    assert!(pod.slots[0].is_hook_pending(), "the hook of another run is none of this one's");
    pod.hooked(0, 0, at(2));
    assert!(pod.slots[0].is_ready());
    assert_eq!((pod.next(Sandbox::Ready, at(2)).actions, pod.phase()), (vec![Action::Start(1)], Phase::Running));
}

#[test]
fn a_pre_stop_hook_comes_before_the_signal_and_within_the_grace() {
    let hooks = Hooks { post_start: false, pre_stop: true };
    let mut pod = hooked(RestartPolicy::Always, &[Role::Main], hooks);
    run(&mut pod, 0, 0);
    pod.request_stop(at(10));
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::PreStop(0, at(10))]);
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, []);
    pod.pre_stopped(0, 0);
    assert_eq!(pod.next(Sandbox::Ready, at(3)).actions, [Action::Terminate(0)]);
    assert_eq!(pod.next(Sandbox::Ready, at(9)).actions, []);
    assert_eq!(pod.next(Sandbox::Ready, at(10)).actions, [Action::Kill(0)]);
}

#[test]
fn a_pre_stop_hook_that_takes_the_whole_grace_leaves_a_moment_to_the_program() {
    let hooks = Hooks { post_start: false, pre_stop: true };
    let mut pod = hooked(RestartPolicy::Always, &[Role::Main], hooks);
    run(&mut pod, 0, 0);
    pod.request_stop(at(10));
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::PreStop(0, at(10))]);
    assert_eq!(pod.next(Sandbox::Ready, at(10)).actions, [Action::Terminate(0)]);
    assert_eq!(pod.next(Sandbox::Ready, at(11)).actions, []);
    assert_eq!(pod.next(Sandbox::Ready, at(12)).actions, [Action::Kill(0)]);
}

#[test]
fn no_hook_runs_without_grace() {
    let mut pod = hooked(RestartPolicy::Always, &[Role::Main], Hooks { post_start: false, pre_stop: true });
    run(&mut pod, 0, 0);
    pod.request_stop(at(0));
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Kill(0)]);
}

#[test]
fn who_is_not_well_is_ended_alone_and_restarted_whatever_its_exit_code() {
    let mut pod = pod(RestartPolicy::OnFailure, &[Role::Main, Role::Main]);
    run(&mut pod, 0, 0);
    run(&mut pod, 1, 0);
    pod.end_unwell(0, 0, at(5));
    let next = pod.next(Sandbox::Ready, at(0));
    assert_eq!((next.actions, next.wake), (vec![Action::Terminate(0)], Some(at(5))));
    assert_eq!(pod.next(Sandbox::Ready, at(5)).actions, [Action::Kill(0)]);
    pod.exited(0, exit(0, 6));
    assert_eq!(pod.next(Sandbox::Ready, at(6)).actions, [Action::Start(0)]);
    run(&mut pod, 0, 6);
    assert_eq!((pod.next(Sandbox::Ready, at(100)).actions, pod.slots[0].restarts), (vec![], 1));
    pod.end_unwell(0, 0, at(100));
    assert_eq!(pod.next(Sandbox::Ready, at(101)).actions, [], "what ended long ago is not this run");
}

#[test]
fn a_sidecar_that_has_not_started_holds_the_main_containers_back() {
    let second = Duration::from_secs(1);
    let startup = Timing { initial_delay: Duration::ZERO, period: second, success_threshold: 1, failure_threshold: 9 };
    let mut pod = pod(RestartPolicy::Always, &[Role::Sidecar, Role::Main]);
    pod.slots[0] = Slot::new("c0", Role::Sidecar).watched(Probing::new(Some(startup), None, None), Hooks::default());
    run(&mut pod, 0, 0);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, []);
    assert_eq!(pod.slots[0].probing.due(false, at(0)), [Kind::Startup]);
    assert_eq!(pod.slots[0].probing.answered(Kind::Startup, true, at(0)), Verdict::Changed);
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Start(1)]);
}

#[test]
fn an_ephemeral_container_runs_once_and_is_no_concern_of_the_pods() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Init, Role::Main]);
    run(&mut pod, 0, 0);
    pod.slots.push(Slot::new("debugger", Role::Ephemeral));
    assert_eq!(pod.next(Sandbox::Ready, at(0)).actions, [Action::Start(2)], "it need not wait for anybody");
    run(&mut pod, 2, 0);
    pod.exited(2, exit(1, 1));
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, []);
    assert_eq!(pod.phase(), Phase::Pending);
}

#[test]
fn what_waits_for_a_volume_tries_again_when_it_may_be_there() {
    let mut pod = pod(RestartPolicy::Always, &[Role::Main]);
    pod.starting(0);
    pod.refused(0, "ContainerCreating", "no such configmap".into(), at(0));
    pod.retry("ErrImagePull", at(1));
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, []);
    pod.retry("ContainerCreating", at(1));
    assert_eq!(pod.next(Sandbox::Ready, at(1)).actions, [Action::Start(0)]);
}

#[derive(Debug, Clone)]
enum Happening {
    Exit(usize, i32),
    Unwell(usize),
    Hooked(usize),
    Stop,
    Time(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        6 => (0_usize..4, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(index, code)| Happening::Exit(index, code)),
        1 => Just(Happening::Stop),
        1 => (0_usize..4).prop_map(Happening::Unwell),
        3 => (0_usize..4).prop_map(Happening::Hooked),
        4 => (0_i64..400).prop_map(Happening::Time),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn whatever_happens_a_stopped_pod_ends_and_nothing_starts_twice(
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        happenings in happenings(),
        post_start in any::<bool>(),
        pre_stop in any::<bool>(),
    ) {
        let roles = [Role::Init, Role::Sidecar, Role::Main, Role::Main];
        let mut pod = hooked(policy, &roles, Hooks { post_start, pre_stop });
        let (mut now, mut sandbox) = (0, Sandbox::Ready);
        let end = [Happening::Stop, Happening::Time(31), Happening::Time(3), Happening::Time(1)];
        for happening in happenings.into_iter().chain(end) {
            match happening {
                Happening::Exit(index, code) if pod.slots[index].is_running() => pod.exited(index, exit(code, now)),
                Happening::Exit(..) => {}
                Happening::Unwell(index) => {
                    let attempt = pod.slots[index].restarts;
                    pod.end_unwell(index, attempt, at(now + 5));
                }
                Happening::Hooked(index) => {
                    let attempt = pod.slots[index].restarts;
                    pod.hooked(index, attempt, at(now));
                    pod.pre_stopped(index, attempt);
                }
                Happening::Stop => pod.request_stop(at(now + 30)),
                Happening::Time(seconds) => now += seconds,
            }
            for action in pod.next(sandbox, at(now)).actions {
                match action {
                    Action::Start(index) => {
                        prop_assert_eq!(&pod.slots[index].state, &State::Fresh);
                        run(&mut pod, index, now);
                    }
                    Action::Kill(index) => pod.exited(index, exit(137, now)),
                    Action::RemoveSandbox => {
                        // Nothing runs any more, unless it had its time and more.
                        let forced = pod.stop.or(pod.sidecar_stop).is_some_and(|stop| at(now) >= after(stop.deadline, FORCED_AFTER));
                        prop_assert!(forced || pod.slots.iter().all(|slot| !slot.is_running()));
                        pod.sandbox_lost("SandboxLost", "", at(now));
                        sandbox = Sandbox::Removed;
                    }
                    Action::PreStop(index, _) | Action::Terminate(index) => {
                        prop_assert!(pod.slots[index].is_running());
                    }
                    Action::MakeSandbox => {}
                }
            }
        }
        for action in pod.next(sandbox, at(now)).actions {
            prop_assert_eq!(action, Action::RemoveSandbox);
            sandbox = Sandbox::Removed;
        }
        prop_assert_eq!(sandbox, Sandbox::Removed);
        prop_assert!(pod.phase().is_final());
    }
}
