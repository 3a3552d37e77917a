//! W1, the benchmark's workload: the yardstick equals a plain recomputation, and so does the engine.

#[path = "../benches/w1/mod.rs"]
mod w1;

use w1::brute;
use w1::clicks::{Arrival, Click, Dice, EVENTS, Event, START, clicks, line};
use w1::engine::{Running, decoded, plan};
use w1::figures::{ABANDONED_AFTER, Figures, GAP, LOOKBACK};
use w1::yardstick::Yardstick;

#[test]
fn the_engine_equals_brute_force_in_every_order() {
    let plan = plan();
    for arrival in [Arrival::InOrder, Arrival::Disordered, Arrival::Shuffled] {
        let clicks = clicks(1_500, 7, arrival);
        let events = decoded(&plan, &clicks);
        for workers in [1, 2, 4] {
            let mut running = Running::start(plan.clone(), workers);
            let mut done = 0;
            for chunk in events.chunks(2_000) {
                done += chunk.len();
                running.step(chunk.to_vec());
                let expected = Figures { come_back_digest: 0, ..brute::figures(&clicks[..done]) };
                assert_eq!(running.figures(), expected, "{arrival:?}, {workers} workers, after {done}");
            }
        }
    }
}

fn agree(arrivals: &[Click], batch: usize, every: usize) -> Figures {
    let mut yardstick = Yardstick::new();
    let mut done = 0;
    for chunk in arrivals.chunks(batch) {
        yardstick.apply(chunk);
        let due = done / every;
        done += chunk.len();
        if done / every > due || done == arrivals.len() {
            assert_eq!(yardstick.figures(), brute::figures(&arrivals[..done]), "after {done}");
        }
    }
    yardstick.figures()
}

#[test]
fn equal_at_prefixes_in_every_order() {
    let sorted = agree(&clicks(4000, 7, Arrival::InOrder), 1, 2500);
    let arrivals = clicks(4000, 7, Arrival::Disordered);
    for batch in [1, 10, 1000] {
        assert_eq!(agree(&arrivals, batch, 2500), sorted);
    }
    let shuffled = clicks(4000, 7, Arrival::Shuffled);
    for batch in [1, 1000] {
        assert_eq!(agree(&shuffled, batch, 2500), sorted);
    }
    assert!(sorted.come_back > 500 && sorted.vip > 20 && sorted.states[2..].iter().all(|n| *n > 0));
}

/// Few users, times on a grid of the definitions' own spans (so that edges are hit exactly), conflicting numbers.
#[test]
fn equal_on_random_histories_after_each_batch() {
    let mut dice = Dice(11);
    for _ in 0..5_000 {
        let arrivals = random_history(&mut dice);
        agree(&arrivals, 1 + dice.range(0, 4) as usize, 1);
    }
}

/// More than a hundred touches, so that paths are cut, in all orders.
#[test]
fn equal_on_long_paths() {
    let mut dice = Dice(13);
    for _ in 0..20 {
        let events = [Event::AdClick, Event::AdClick, Event::AdClick, Event::Purchase];
        let click = |dice: &mut Dice, number| Click {
            timestamp: START + dice.range(0, 9 * 24 * 60) as i64 * 60_000,
            ..random_click(dice, &events, 1, number)
        };
        let arrivals: Vec<Click> = (0..400).map(|number| click(&mut dice, number)).collect();
        agree(&arrivals, 1, 10);
    }
}

fn random_history(dice: &mut Dice) -> Vec<Click> {
    let users = 1 + dice.range(0, 3);
    let late = dice.range(0, 3);
    let events: Vec<Event> = match dice.range(0, 2) {
        0 => EVENTS.iter().map(|e| e.0).collect(),
        _ => vec![Event::AddToCart, Event::CheckoutStarted, Event::Purchase, Event::PageView, Event::AdClick],
    };
    let mut clicks: Vec<Click> = Vec::new();
    let mut now = START;
    for number in 0..10 + dice.range(0, 50) {
        now += [0, 0, 1, GAP, GAP + 1, ABANDONED_AFTER, LOOKBACK / 4][dice.range(0, 7) as usize];
        let back = [0, 1, GAP, ABANDONED_AFTER - 1, ABANDONED_AFTER, LOOKBACK][dice.range(0, 6) as usize];
        let mut click = random_click(dice, &events, users, number as u32);
        click.timestamp = if dice.range(0, 3) < late { now - back } else { now };
        match dice.range(0, 10) {
            0 if number > 0 => clicks.push(clicks[dice.range(0, clicks.len() as u64) as usize]),
            1 if number > 0 => click.number = dice.range(0, number) as u32,
            _ => {}
        }
        clicks.push(click);
    }
    clicks
}

fn random_click(dice: &mut Dice, events: &[Event], users: u64, number: u32) -> Click {
    Click {
        timestamp: START,
        value: dice.range(0, 250_000_000) as i64 - 20_000_000,
        user: dice.range(0, users) as u32,
        number,
        price: 0,
        sku: 0,
        event: events[dice.range(0, events.len() as u64) as usize],
        channel: dice.range(0, 2) as u8,
        campaign: dice.range(0, 2) as u8,
        section: 0,
        amount: 0,
        comment: 0,
    }
}

#[test]
fn a_line_is_a_segment_message() {
    let mut click = random_click(&mut Dice(1), &[Event::Purchase], 1, 2);
    (click.user, click.timestamp, click.value, click.amount) = (653, 1_767_261_868_007, 5_100_000, 2);
    let mut text = String::new();
    line(&click, &mut text);
    let expected = concat!(
        r#"{"type":"track","messageId":"e000000002","userId":"user-0000653","event":"purchase","#,
        r#""timestamp":"2026-01-01T10:04:28.007Z","properties":{"order":"o2","value":5.1,"items":2},"#,
        r#""context":{"ip":"10.153.2.7","userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 "#,
        r#"(KHTML, like Gecko) Chrome/126.0 Safari/537.36","locale":"en-GB","device":{"type":"web"}}}"#,
        "\n"
    );
    assert_eq!(text, expected);
}
