//! The rules of probes, one scene each, and what must hold whatever the answers are.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Kind, Probing, Timing, Verdict};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn timing(initial_delay: u64, period: u64, success_threshold: u32, failure_threshold: u32) -> Timing {
    let (initial_delay, period) = (Duration::from_secs(initial_delay), Duration::from_secs(period));
    Timing { initial_delay, period, success_threshold, failure_threshold }
}

#[test]
fn without_probes_a_run_is_ready_at_once_and_no_longer_when_it_ends() {
    let mut probing = Probing::default();
    assert!(!probing.is_ready());
    probing.begin(at(0));
    assert!(probing.is_started() && probing.is_ready());
    assert_eq!((probing.due(false, at(100)), probing.wake(false)), (vec![], None));
    probing.end();
    assert!(!probing.is_ready());
}

#[test]
fn readiness_is_believed_after_its_thresholds() {
    let mut probing = Probing::new(None, None, Some(timing(5, 10, 2, 2)));
    probing.begin(at(0));
    assert_eq!((probing.due(false, at(4)), probing.wake(false)), (vec![], Some(at(5))));
    let mut now = 5;
    let mut answer = |good: bool| {
        assert_eq!(probing.due(false, at(now)), [Kind::Readiness]);
        assert_eq!(probing.due(false, at(now)), [], "one question at a time");
        let verdict = probing.answered(Kind::Readiness, good, at(now));
        now += 10;
        (verdict, probing.is_ready())
    };
    assert_eq!(answer(true), (Verdict::Nothing, false));
    assert_eq!(answer(true), (Verdict::Changed, true));
    assert_eq!(answer(false), (Verdict::Nothing, true));
    assert_eq!(answer(true), (Verdict::Nothing, true));
    assert_eq!(answer(false), (Verdict::Nothing, true));
    assert_eq!(answer(false), (Verdict::Changed, false));
}

#[test]
fn a_startup_probe_holds_the_others_back_and_then_lets_them_go_at_once() {
    let mut probing = Probing::new(Some(timing(0, 1, 1, 3)), Some(timing(0, 60, 1, 1)), Some(timing(0, 60, 1, 1)));
    probing.begin(at(0));
    assert_eq!(probing.due(false, at(0)), [Kind::Startup]);
    assert_eq!(probing.answered(Kind::Startup, false, at(0)), Verdict::Nothing);
    assert!(!probing.is_started());
    assert_eq!(probing.due(false, at(1)), [Kind::Startup]);
    assert_eq!(probing.answered(Kind::Startup, true, at(1)), Verdict::Changed);
    assert!(probing.is_started() && !probing.is_ready());
    assert_eq!(probing.due(false, at(1)), [Kind::Liveness, Kind::Readiness]);
    assert_eq!(probing.answered(Kind::Readiness, true, at(1)), Verdict::Changed);
    assert_eq!(probing.answered(Kind::Liveness, false, at(1)), Verdict::Kill);
    assert_eq!(probing.due(false, at(1000)), [], "what is to be killed is not asked any more");
    probing.begin(at(2000));
    assert!(!probing.is_started() && !probing.is_ready());
    assert_eq!(probing.due(false, at(2000)), [Kind::Startup]);
}

#[test]
fn a_startup_that_fails_too_often_is_killed() {
    let mut probing = Probing::new(Some(timing(0, 1, 1, 3)), None, None);
    probing.begin(at(0));
    let verdicts: Vec<_> = (0..3)
        .map(|second| {
            assert_eq!(probing.due(false, at(second)), [Kind::Startup]);
            probing.answered(Kind::Startup, false, at(second))
        })
        .collect();
    assert_eq!(verdicts, [Verdict::Nothing, Verdict::Nothing, Verdict::Kill]);
}

#[test]
fn a_stopping_pod_is_only_asked_whether_it_is_ready() {
    let mut probing = Probing::new(None, Some(timing(0, 1, 1, 1)), Some(timing(0, 1, 1, 1)));
    probing.begin(at(0));
    assert_eq!(probing.due(true, at(0)), [Kind::Readiness]);
}

#[test]
fn what_was_believed_before_a_restart_of_the_service_still_is() {
    let mut probing = Probing::new(Some(timing(0, 1, 1, 1)), None, Some(timing(0, 10, 1, 3)));
    probing.resume(at(0), true, true);
    assert!(probing.is_ready());
    assert_eq!(probing.due(false, at(100)), [Kind::Readiness]);
    assert_eq!(probing.answered(Kind::Readiness, false, at(100)), Verdict::Nothing);
    assert!(probing.is_ready());
}

#[test]
fn an_answer_that_never_came_is_asked_for_again() {
    let mut probing = Probing::new(None, Some(timing(0, 1, 1, 1)), None);
    probing.begin(at(0));
    assert_eq!(probing.due(false, at(0)), [Kind::Liveness]);
    probing.lost(Kind::Liveness);
    assert_eq!(probing.due(false, at(1)), [Kind::Liveness]);
}

fn any_timing() -> impl Strategy<Value = Option<Timing>> {
    prop::option::of(
        (0_u64..20, 1_u64..20, 1_u32..4, 1_u32..4)
            .prop_map(|(delay, period, good, bad)| timing(delay, period, good, bad)),
    )
}

proptest! {
    #[test]
    fn whatever_is_answered_the_rules_hold(
        startup in any_timing(),
        liveness in any_timing(),
        readiness in any_timing(),
        steps in prop::collection::vec((1_i64..10, any::<bool>(), any::<bool>()), 0..200),
    ) {
        let mut probing = Probing::new(startup, liveness, readiness);
        let (mut now, mut run_since) = (0, 0);
        let mut asked_at = [None::<i64>; 3];
        let mut bad_in_a_row = [0_u32; 3];
        probing.begin(at(0));
        for (wait, good, restart) in steps {
            now += wait;
            for kind in probing.due(false, at(now)) {
                let place = kind as usize;
                let timing = [startup, liveness, readiness][place].unwrap();
                // Never before its delay, never sooner than its period.
                prop_assert!(now - run_since >= timing.initial_delay.as_secs() as i64);
                if let Some(before) = asked_at[place] {
                    prop_assert!(now - before >= timing.period.as_secs() as i64 || before <= run_since);
                }
                prop_assert_eq!(kind == Kind::Startup, !probing.is_started());
                asked_at[place] = Some(now);
                bad_in_a_row[place] = if good { 0 } else { bad_in_a_row[place] + 1 };
                match probing.answered(kind, good, at(now)) {
                    Verdict::Kill => {
                        prop_assert!(kind != Kind::Readiness && bad_in_a_row[place] >= timing.failure_threshold);
                        prop_assert_eq!(probing.due(false, at(now + 1000)), []);
                    }
                    Verdict::Changed => {}
                    Verdict::Nothing if kind != Kind::Readiness => {
                        prop_assert!(bad_in_a_row[place] < timing.failure_threshold);
                    }
                    Verdict::Nothing => {}
                }
                prop_assert!(!probing.is_ready() || probing.is_started());
            }
            if restart {
                probing.end();
                prop_assert!(!probing.is_ready() && !probing.is_started());
                (run_since, bad_in_a_row) = (now, [0; 3]);
                probing.begin(at(now));
            }
        }
    }
}
