//! The restart rules, one scene each, and what must hold in every order of events.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Action, Exit, Lifecycle, Phase, RestartPolicy, Role, Sandbox, Slot, State};

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

#[derive(Debug, Clone)]
enum Happening {
    Exit(usize, i32),
    Stop,
    Time(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        6 => (0_usize..4, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(index, code)| Happening::Exit(index, code)),
        1 => Just(Happening::Stop),
        4 => (0_i64..400).prop_map(Happening::Time),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn whatever_happens_a_stopped_pod_ends_and_nothing_starts_twice(
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        happenings in happenings(),
    ) {
        let mut pod = pod(policy, &[Role::Init, Role::Sidecar, Role::Main, Role::Main]);
        let (mut now, mut sandbox) = (0, Sandbox::Ready);
        let end = [Happening::Stop, Happening::Time(31), Happening::Time(1)];
        for happening in happenings.into_iter().chain(end) {
            match happening {
                Happening::Exit(index, code) if pod.slots[index].is_running() => pod.exited(index, exit(code, now)),
                Happening::Exit(..) => {}
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
                        prop_assert!(pod.slots.iter().all(|slot| !slot.is_running()));
                        sandbox = Sandbox::Removed;
                    }
                    Action::Terminate(_) | Action::MakeSandbox => {}
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
