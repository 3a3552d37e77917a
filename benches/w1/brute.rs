//! The batch oracle of W1: drop duplicates, sort, and compute every view from nothing, as plainly as can be.

use super::clicks::{Click, Event};
use super::figures::*;
use std::collections::{BTreeMap, HashSet};

/// The figures after these arrivals.
pub fn figures(arrivals: &[Click]) -> Figures {
    let mut seen = HashSet::new();
    let mut users: BTreeMap<u32, Vec<Click>> = BTreeMap::new();
    let mut f = Figures::default();
    for click in arrivals {
        if seen.insert((click.user, click.number)) {
            f.clock = f.clock.max(click.timestamp);
            users.entry(click.user).or_default().push(*click);
        }
    }
    for history in users.values_mut() {
        history.sort_by_key(|c| (c.timestamp, c.number));
        sessions(history, &mut f);
        segments(history, &mut f);
        journey(history, &mut f);
        attribution(history, &mut f);
    }
    f
}

fn sessions(history: &[Click], f: &mut Figures) {
    for session in history.chunk_by(|a, b| b.timestamp - a.timestamp <= GAP) {
        f.sessions += 1;
        f.session_events += session.len() as u64;
        f.session_ms += session[session.len() - 1].timestamp - session[0].timestamp;
    }
}

fn segments(history: &[Click], f: &mut Figures) {
    let purchases = history.iter().filter(|c| c.event == Event::Purchase);
    let count = purchases.clone().count();
    let spend: i64 = purchases.map(|c| c.value).sum();
    f.paying += u64::from(count >= 1);
    f.vip += u64::from(spend >= VIP_SPEND || count >= VIP_PURCHASES as usize);
    f.logged_in += u64::from(history.iter().any(|c| c.event == Event::Login));
}

/// The journey of one profile, with the timer of the state it is in.
struct Cart {
    state: State,
    last_add: Option<(i64, u32)>,
    /// The armed deadline and the number of its anchor.
    armed: Option<(i64, u32)>,
}

impl Cart {
    /// At `now`, on entry to the state or at a new anchor.
    fn compute_timer(&mut self, now: i64) {
        let timed = matches!(self.state, State::Carted | State::Checkout);
        let anchor = self.last_add.filter(|_| timed);
        self.armed = anchor.map(|(at, number)| (at + ABANDONED_AFTER, number)).filter(|(due, _)| *due > now);
    }

    fn enter(&mut self, state: State, now: i64) {
        self.state = state;
        self.compute_timer(now);
    }

    /// Fires the timer if it is due at `now`.
    fn tick(&mut self, now: i64, user: u32, f: &mut Figures) {
        if let Some((due, root)) = self.armed.filter(|(due, _)| *due <= now) {
            self.enter(State::Abandoned, due);
            f.come_back += 1;
            f.come_back_digest = f.come_back_digest.wrapping_add(intent_digest(user, due, root));
        }
    }

    fn apply(&mut self, click: &Click) {
        if click.event == Event::AddToCart {
            self.last_add = Some((click.timestamp, click.number));
            self.compute_timer(click.timestamp);
        }
        if let Some(to) = transition(self.state, click.event) {
            self.enter(to, click.timestamp);
        }
    }
}

fn transition(state: State, event: Event) -> Option<State> {
    use State::*;
    match (state, event) {
        (_, Event::AddToCart) => Some(Carted),
        (None | Browsing | Purchased | Abandoned, Event::PageView) => Some(Landed),
        (Landed | Purchased | Abandoned, Event::SectionView) => Some(Browsing),
        (Carted, Event::CheckoutStarted) => Some(Checkout),
        (Carted | Checkout, Event::Purchase) => Some(Purchased),
        _ => Option::None,
    }
}

fn journey(history: &[Click], f: &mut Figures) {
    let mut cart = Cart { state: State::None, last_add: None, armed: None };
    for click in history {
        cart.tick(click.timestamp, click.user, f);
        cart.apply(click);
    }
    cart.tick(f.clock, history[0].user, f);
    f.states[cart.state as usize] += 1;
}

fn attribution(history: &[Click], f: &mut Figures) {
    for purchase in history.iter().filter(|c| c.event == Event::Purchase) {
        let within = purchase.timestamp - LOOKBACK..=purchase.timestamp;
        let touch = |c: &&Click| c.event == Event::AdClick && within.contains(&c.timestamp);
        let mut path: Vec<u16> = history.iter().filter(touch).map(key).collect();
        path.drain(..path.len().saturating_sub(PATH_MAX));
        if path.is_empty() {
            path.push(DIRECT);
        }
        let value = i128::from(purchase.value.max(0)) * 1000;
        let last = &mut f.last_touch.0[path[path.len() - 1] as usize];
        last.conversions += 1_000_000_000;
        last.value += value;
        for (k, key) in path.iter().enumerate() {
            let linear = &mut f.linear.0[*key as usize];
            linear.conversions += share(1_000_000_000, k, path.len()) as i64;
            linear.value += share(value, k, path.len());
        }
    }
}

/// The part of the k-th of n in `whole`: the cumulative floors' difference.
fn share(whole: i128, k: usize, n: usize) -> i128 {
    let (k, n) = (k as i128, n as i128);
    whole * (k + 1) / n - whole * k / n
}
