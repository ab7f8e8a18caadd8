//! The machine beside tables and a plain reference.

use super::*;
use crate::split::Form::{And, Else, One, Or};
use Kind::{Failed, NoData, NoName, Positive};
use proptest::prelude::*;

/// When, after the question is asked, a resolver says what; None: never. In milliseconds.
type Script = Option<(u64, Kind)>;

/// What becomes of it, when, and when each resolver was asked.
type Course = (u64, Outcome, Vec<Option<u64>>);

/// Runs the machine against resolvers that follow a script from when they are asked.
fn run(form: Form, scripts: &[Script]) -> Course {
    let start = Instant::now();
    let mut asking = Asking::new(form, scripts.len(), start);
    let mut asked = vec![None; scripts.len()];
    let mut at = 0;
    let mut spoken = vec![false; scripts.len()];
    for _ in 0..1_000 {
        match asking.next(start + Duration::from_millis(at)) {
            Next::Ask(positions) => positions.into_iter().for_each(|p| asked[p] = Some(at)),
            Next::Done(outcome) => return (at, outcome, asked),
            Next::Wait(until) => {
                let until = u64::try_from((until - start).as_micros().div_ceil(1_000));
                let until = until.expect("a short time");
                let speaks = |position: &usize| {
                    let (after, _) = scripts[*position]?;
                    (!spoken[*position]).then_some(asked[*position]? + after)
                };
                let next = (0..scripts.len()).filter(|p| speaks(p).is_some());
                let next = next.min_by_key(|position| speaks(position));
                match next.and_then(|position| Some((position, speaks(&position)?))) {
                    Some((position, time)) if time <= until => {
                        at = time.max(at);
                        spoken[position] = true;
                        let kind = scripts[position].expect("it speaks").1;
                        asking.heard(position, kind, start + Duration::from_millis(at));
                    }
                    Some(_) | None => at = until,
                }
            }
        }
    }
    panic!("the machine does not end");
}

#[test]
fn every_form_does_what_it_says() {
    let negative = |of, held| Outcome::Negative { of, held };
    let combine = |of: &[usize]| Outcome::Combine(Positions::from_slice(of));
    let silent: Script = None;
    for (case, form, scripts, at, outcome, asked) in [
        ("one", One, &[Some((20, Positive))][..], 20, Outcome::Answer(0), &[Some(0)][..]),
        ("one, no name", One, &[Some((20, NoName))], 20, negative(0, false), &[Some(0)]),
        ("one fails", One, &[Some((20, Failed))], 20, Outcome::Failed, &[Some(0)]),
        ("one is silent", One, &[silent], 4_800, Outcome::Failed, &[Some(0)]),
        (
            "else: the first answers",
            Else,
            &[Some((20, Positive)), Some((1, Positive))],
            20,
            Outcome::Answer(0),
            &[Some(0), None],
        ),
        (
            "else: no name is an answer",
            Else,
            &[Some((20, NoName)), Some((1, Positive))],
            20,
            negative(0, false),
            &[Some(0), None],
        ),
        (
            "else: no data is an answer",
            Else,
            &[Some((20, NoData)), Some((1, Positive))],
            20,
            negative(0, false),
            &[Some(0), None],
        ),
        (
            "else: the first fails",
            Else,
            &[Some((20, Failed)), Some((5, NoName))],
            25,
            negative(1, false),
            &[Some(0), Some(20)],
        ),
        (
            "else: the first is silent",
            Else,
            &[silent, Some((5, Positive))],
            2_405,
            Outcome::Answer(1),
            &[Some(0), Some(2_400)],
        ),
        (
            "else: the first is late",
            Else,
            &[Some((2_500, Positive)), Some((500, NoName))],
            2_500,
            Outcome::Answer(0),
            &[Some(0), Some(2_400)],
        ),
        (
            "else: three, two silent",
            Else,
            &[silent, silent, Some((5, Positive))],
            3_205,
            Outcome::Answer(2),
            &[Some(0), Some(1_600), Some(3_200)],
        ),
        (
            "else: all fail",
            Else,
            &[Some((1, Failed)), Some((1, Failed))],
            2,
            Outcome::Failed,
            &[Some(0), Some(1)],
        ),
        (
            "or: the faster",
            Or,
            &[Some((20, Positive)), Some((5, Positive))],
            5,
            Outcome::Answer(1),
            &[Some(0), Some(0)],
        ),
        (
            "or: a negative waits",
            Or,
            &[Some((5, NoName)), Some((900, Positive))],
            900,
            Outcome::Answer(1),
            &[Some(0), Some(0)],
        ),
        (
            "or: both negative",
            Or,
            &[Some((5, NoName)), Some((9, NoData))],
            9,
            negative(1, false),
            &[Some(0), Some(0)],
        ),
        (
            "or: a negative and a failure",
            Or,
            &[Some((5, Failed)), Some((9, NoName))],
            9,
            negative(1, true),
            &[Some(0), Some(0)],
        ),
        (
            "or: a negative and silence",
            Or,
            &[Some((5, NoName)), silent],
            4_800,
            negative(0, true),
            &[Some(0), Some(0)],
        ),
        (
            "or: all fail",
            Or,
            &[Some((5, Failed)), Some((6, Failed))],
            6,
            Outcome::Failed,
            &[Some(0), Some(0)],
        ),
        (
            "and: both",
            And,
            &[Some((20, Positive)), Some((5, Positive))],
            20,
            combine(&[0, 1]),
            &[Some(0), Some(0)],
        ),
        (
            "and: one second for the slower",
            And,
            &[Some((1_200, Positive)), Some((5, Positive))],
            1_005,
            combine(&[1]),
            &[Some(0), Some(0)],
        ),
        (
            "and: no data beside addresses",
            And,
            &[Some((20, NoData)), Some((5, Positive))],
            20,
            combine(&[1]),
            &[Some(0), Some(0)],
        ),
        (
            "and: a failure beside addresses",
            And,
            &[Some((20, Positive)), Some((50, Failed))],
            50,
            combine(&[0]),
            &[Some(0), Some(0)],
        ),
        (
            "and: a negative waits longer",
            And,
            &[Some((20, NoName)), Some((3_000, Positive))],
            3_000,
            combine(&[1]),
            &[Some(0), Some(0)],
        ),
        (
            "and: a positive near the end",
            And,
            &[Some((4_500, Positive)), silent],
            4_800,
            combine(&[0]),
            &[Some(0), Some(0)],
        ),
        (
            "and: a negative and a failure",
            And,
            &[Some((20, NoData)), Some((30, Failed))],
            30,
            negative(0, true),
            &[Some(0), Some(0)],
        ),
        ("and: all silent", And, &[silent, silent], 4_800, Outcome::Failed, &[Some(0), Some(0)]),
    ] {
        assert_eq!(run(form, scripts), (at, outcome, asked.to_vec()), "{case}");
    }
}

#[test]
fn what_was_not_asked_is_not_heard() {
    let start = Instant::now();
    let mut asking = Asking::new(Else, 2, start);
    asking.heard(0, Positive, start);
    assert_eq!(asking.next(start), Next::Ask(Positions::from_slice(&[0])));
    asking.heard(1, Positive, start);
    asking.heard(9, Positive, start);
    asking.heard(0, Failed, start);
    asking.heard(0, Positive, start);
    assert_eq!(asking.next(start), Next::Ask(Positions::from_slice(&[1])));
}

/// What each form means, written from the whole course at once.
fn reference(form: Form, scripts: &[Script]) -> (u64, Outcome) {
    const END: u64 = 4_800;
    let count = scripts.len() as u64;
    let mut said: Vec<(u64, usize, Kind)> = vec![];
    match form {
        One | Else => {
            let mut asked = 0;
            for (position, script) in scripts.iter().enumerate() {
                // An answer of one that was asked before ends it all.
                if said.iter().any(|(time, _, kind)| *kind != Failed && *time <= asked) {
                    break;
                }
                said.extend(script.map(|(after, kind)| (asked + after, position, kind)));
                let turn = asked + (END - asked) / (count - position as u64);
                // Who is asked next is asked when all before have failed, or at its turn.
                let all_failed =
                    said.len() == position + 1 && said.iter().all(|(_, _, kind)| *kind == Failed);
                let failed_at = said.iter().map(|(time, ..)| *time).max();
                asked = match failed_at {
                    Some(time) if all_failed && time < turn => time,
                    Some(_) | None => turn,
                };
            }
        }
        Or | And => {
            let spoken = scripts.iter().enumerate();
            said = spoken.filter_map(|(p, s)| s.map(|(after, kind)| (after, p, kind))).collect();
        }
        Form::None => unreachable!("asks nobody"),
    }
    said.retain(|(time, ..)| *time <= END);
    said.sort_unstable_by_key(|(time, position, _)| (*time, *position));
    let all = if said.len() == scripts.len() { said.iter().map(|s| s.0).max() } else { None };
    let all = all.unwrap_or(END);
    let positive = said.iter().find(|(_, _, kind)| *kind == Positive);
    match (form, positive) {
        (One | Else, _) => match said.iter().find(|(_, _, kind)| *kind != Failed) {
            Some((time, of, Positive)) => (*time, Outcome::Answer(*of)),
            Some((time, of, _)) => (*time, Outcome::Negative { of: *of, held: false }),
            None => (all, Outcome::Failed),
        },
        (Or, Some((time, of, _))) => (*time, Outcome::Answer(*of)),
        (And, Some((time, ..))) => {
            let end = all.min(time + 1_000).min(END);
            let by = said.iter().filter(|(time, _, kind)| *time <= end && *kind == Positive);
            let mut of: Positions = by.map(|(_, of, _)| *of).collect();
            of.sort_unstable();
            (end, Outcome::Combine(of))
        }
        (_, _) => {
            let first = |wanted| {
                said.iter().filter(|(_, _, kind)| *kind == wanted).map(|(_, of, _)| *of).min()
            };
            let held = said.iter().filter(|(_, _, k)| *k != Failed).count() < scripts.len();
            let of = first(NoData).or_else(|| first(NoName));
            (all, of.map_or(Outcome::Failed, |of| Outcome::Negative { of, held }))
        }
    }
}

fn script() -> impl Strategy<Value = Script> {
    let kind = prop_oneof![Just(Failed), Just(NoData), Just(NoName), Just(Positive)];
    proptest::option::weighted(0.85, (prop_oneof![1_u64..60, 900_u64..5_200], kind))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_machine_is_the_reference(
        form in prop_oneof![Just(One), Just(Else), Just(Or), Just(And)],
        scripts in proptest::collection::vec(script(), 1..5),
    ) {
        // Two that speak in one millisecond have no order.
        let mut times: Vec<u64> = scripts.iter().flatten().map(|(after, _)| *after).collect();
        times.sort_unstable();
        prop_assume!(form == Else || form == One || times.windows(2).all(|t| t[0] != t[1]));
        let scripts = if form == One { &scripts[..1] } else { &scripts[..] };
        let (at, outcome, _) = run(form, scripts);
        let (expected_at, expected) = reference(form, scripts);
        // Shares of the time are not whole milliseconds.
        prop_assert!(at.abs_diff(expected_at) <= 4, "{at} {expected_at}");
        if !(form == Else && at.abs_diff(expected_at) > 0) {
            prop_assert_eq!(outcome, expected);
        }
        prop_assert!(at <= 4_801);
    }
}
