//! W1's workload: a deterministic clickstream of the shape of `bench/gen.py`, as decoded events or as JSON lines.
//!
//! The distributions are those of `gen.py`; the random numbers are not, so the two streams differ event by event.
//! The same seed gives the same stream wherever `ln` and `powf` round alike.

use serde::{Deserialize, Serialize};
use std::fmt::Write;

pub const CHANNELS: [&str; 8] = ["email", "paid_search", "organic", "social", "display", "push", "direct", "affiliate"];
pub const CAMPAIGNS: usize = 12;
pub const SECTIONS: [&str; 8] = ["shoes", "jackets", "dresses", "bags", "home", "kids", "sale", "beauty"];
pub const START: i64 = 1_767_225_600_000; // 2026-01-01
pub const SPAN: i64 = 7 * 86_400_000;

const DIRECT: u8 = 6;
const COMMENTS: [&str; 5] = ["great service", "slow delivery", "love the shoes", "refund was a pain", "ok"];
const DEVICES: [&str; 3] = ["ios", "android", "web"];
pub const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Event {
    AdImpression,
    AdClick,
    PageView,
    Login,
    SectionView,
    ProductView,
    AddToCart,
    RemoveFromCart,
    CheckoutStarted,
    Purchase,
    SurveyResponse,
}

/// In the order of `Event`'s variants.
pub const EVENTS: [(Event, &str); 11] = [
    (Event::AdImpression, "ad_impression"),
    (Event::AdClick, "ad_click"),
    (Event::PageView, "page_view"),
    (Event::Login, "login"),
    (Event::SectionView, "section_view"),
    (Event::ProductView, "product_view"),
    (Event::AddToCart, "add_to_cart"),
    (Event::RemoveFromCart, "remove_from_cart"),
    (Event::CheckoutStarted, "checkout_started"),
    (Event::Purchase, "purchase"),
    (Event::SurveyResponse, "survey_response"),
];

impl Event {
    pub fn name(self) -> &'static str {
        EVENTS[self as usize].1
    }
}

/// One event. Fields that its event does not use hold the session's value or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Click {
    pub timestamp: i64,
    /// A purchase's value in millionths.
    pub value: i64,
    pub user: u32,
    /// The messageId is `e` and this number with nine digits.
    pub number: u32,
    /// In cents.
    pub price: u32,
    pub sku: u16,
    pub event: Event,
    pub channel: u8,
    pub campaign: u8,
    pub section: u8,
    /// The quantity, the items of a cart, or the score of a survey.
    pub amount: u8,
    pub comment: u8,
}

impl Click {
    /// A click with nothing but its user, its place in time and its number.
    pub fn of(timestamp: i64, user: u32, number: u32, event: Event) -> Click {
        let (value, price, sku, channel, campaign, section, amount, comment) = Default::default();
        Click { timestamp, value, user, number, price, sku, event, channel, campaign, section, amount, comment }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// By timestamp, each event once.
    InOrder,
    /// 5 % come up to ten minutes late, 1 % are sent twice.
    Disordered,
    /// The disordered arrivals in wholly random order.
    Shuffled,
}

/// The clicks of `sessions` sessions as they arrive; 200,000 sessions make about 2.2 million.
pub fn clicks(sessions: u32, seed: u64, arrival: Arrival) -> Vec<Click> {
    let mut dice = Dice(seed);
    let mut clicks = Vec::with_capacity(sessions as usize * 12);
    let users = (sessions / 3).max(1000);
    for _ in 0..sessions {
        session(&mut dice, users, &mut clicks);
    }
    clicks.sort_unstable_by_key(|c| (c.timestamp, c.user, c.number));
    match arrival {
        Arrival::InOrder => clicks,
        Arrival::Disordered => disorder(&mut dice, &clicks),
        Arrival::Shuffled => {
            let mut arrivals = disorder(&mut dice, &clicks);
            for k in (1..arrivals.len()).rev() {
                arrivals.swap(k, dice.range(0, k as u64 + 1) as usize);
            }
            arrivals
        }
    }
}

fn disorder(dice: &mut Dice, clicks: &[Click]) -> Vec<Click> {
    let mut arrivals = Vec::with_capacity(clicks.len() + clicks.len() / 50);
    for (k, click) in clicks.iter().enumerate() {
        let late = if dice.chance(0.05) { dice.wait(1, 600_000) } else { 0 };
        arrivals.push((click.timestamp + late, k));
        if dice.chance(0.01) {
            arrivals.push((click.timestamp + dice.wait(1, 600_000), k));
        }
    }
    arrivals.sort_unstable();
    arrivals.into_iter().map(|(_, k)| clicks[k]).collect()
}

fn session(dice: &mut Dice, users: u32, clicks: &mut Vec<Click>) {
    // a few users are very active
    let user = (f64::from(users) * dice.unit().powf(2.2)) as u32;
    let timestamp = START + (dice.unit() * SPAN as f64) as i64;
    let (channel, campaign) = (dice.byte(0, 8), dice.byte(0, CAMPAIGNS as u8));
    let mut s = Session {
        click: Click {
            timestamp,
            value: 0,
            user,
            number: 0,
            price: 0,
            sku: 0,
            event: Event::PageView,
            channel,
            campaign,
            section: 0,
            amount: 0,
            comment: 0,
        },
        clicks,
    };
    arrive(dice, &mut s);
    let mut cart = 0;
    for _ in 0..dice.range(1, 9) {
        cart += browse(dice, &mut s);
    }
    if cart > 0 && dice.chance(0.5) {
        check_out(dice, &mut s, cart);
    }
    if dice.chance(0.02) {
        s.click.timestamp += dice.wait(5000, 120_000);
        s.click.amount = dice.byte(0, 11);
        s.click.comment = dice.byte(0, COMMENTS.len() as u8);
        s.emit(Event::SurveyResponse);
    }
}

fn arrive(dice: &mut Dice, s: &mut Session) {
    if s.click.channel != DIRECT {
        if dice.chance(0.5) {
            s.emit(Event::AdImpression);
            s.click.timestamp += dice.wait(1000, 60_000);
        }
        s.emit(Event::AdClick);
        s.click.timestamp += dice.wait(200, 3000);
    }
    s.emit(Event::PageView);
    if dice.chance(0.35) {
        s.click.timestamp += dice.wait(1000, 20_000);
        s.emit(Event::Login);
    }
}

/// A look at a section, perhaps at a product: what the cart gained.
fn browse(dice: &mut Dice, s: &mut Session) -> u8 {
    s.click.timestamp += dice.exponential(25_000.0) + 500;
    s.click.section = dice.byte(0, SECTIONS.len() as u8);
    s.emit(Event::SectionView);
    if !dice.chance(0.6) {
        return 0;
    }
    s.click.timestamp += dice.exponential(20_000.0) + 500;
    s.click.sku = dice.range(0, 500) as u16;
    s.click.price = (dice.uniform(5.0, 200.0) * 100.0).round() as u32;
    s.emit(Event::ProductView);
    if !dice.chance(0.25) {
        return 0;
    }
    s.click.timestamp += dice.wait(1000, 30_000);
    s.click.amount = dice.byte(1, 3);
    s.emit(Event::AddToCart);
    if !dice.chance(0.1) {
        return 1;
    }
    s.click.timestamp += dice.wait(1000, 30_000);
    s.emit(Event::RemoveFromCart);
    0
}

fn check_out(dice: &mut Dice, s: &mut Session, cart: u8) {
    s.click.timestamp += dice.wait(1000, 60_000);
    s.click.amount = cart;
    s.emit(Event::CheckoutStarted);
    if dice.chance(0.6) {
        s.click.timestamp += dice.wait(5000, 120_000);
        let cents = (f64::from(cart) * dice.uniform(10.0, 150.0) * 100.0).round() as i64;
        s.click.value = cents * 10_000;
        s.emit(Event::Purchase);
        s.click.value = 0;
    }
}

struct Session<'a> {
    /// The next click, but for its event and number.
    click: Click,
    clicks: &'a mut Vec<Click>,
}

impl Session<'_> {
    fn emit(&mut self, event: Event) {
        let number = self.clicks.len() as u32;
        self.clicks.push(Click { number, event, ..self.click });
    }
}

/// Splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `low..high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + ((u128::from(self.bits()) * u128::from(high - low)) >> 64) as u64
    }

    fn byte(&mut self, low: u8, high: u8) -> u8 {
        self.range(u64::from(low), u64::from(high)) as u8
    }

    fn wait(&mut self, low: u64, high: u64) -> i64 {
        self.range(low, high) as i64
    }

    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    fn exponential(&mut self, mean: f64) -> i64 {
        (-(1.0 - self.unit()).ln() * mean) as i64
    }
}

/// Appends the click as one JSON line in the Segment message shape.
pub fn line(click: &Click, out: &mut String) {
    put(out, format_args!(r#"{{"type":"track","messageId":"e{:09}","userId":"#, click.number));
    put(out, format_args!(r#""user-{:07}","event":"{}","timestamp":""#, click.user, click.event.name()));
    stamp(click.timestamp, out);
    out.push_str(r#"","properties":{"#);
    properties(click, out);
    put(out, format_args!(r#"}},"context":{{"ip":"10.{}.{}.7","#, click.user % 250, click.number % 250));
    put(out, format_args!(r#""userAgent":"{AGENT}","locale":"en-GB","device":{{"type":"#));
    put(out, format_args!("\"{}\"}}}}}}\n", DEVICES[click.user as usize % 3]));
}

fn properties(c: &Click, out: &mut String) {
    let channel = CHANNELS[c.channel as usize];
    let section = SECTIONS[c.section as usize];
    let sku = format_args!(r#""sku":"{}{:04}""#, &section[..2], c.sku);
    match c.event {
        Event::AdImpression | Event::AdClick => {
            put(out, format_args!(r#""channel":"{channel}","campaign":"{channel}-{}""#, c.campaign));
        }
        Event::PageView => put(out, format_args!(r#""page":"/","referrer":"{channel}""#)),
        Event::Login => out.push_str(r#""method":"password""#),
        Event::SectionView => put(out, format_args!(r#""section":"{section}""#)),
        Event::ProductView => {
            put(out, format_args!(r#""section":"{section}",{sku},"price":"#));
            cents(i64::from(c.price), out);
        }
        Event::AddToCart => {
            put(out, format_args!(r#"{sku},"price":"#));
            cents(i64::from(c.price), out);
            put(out, format_args!(r#","quantity":{}"#, c.amount));
        }
        Event::RemoveFromCart => put(out, sku),
        Event::CheckoutStarted => put(out, format_args!(r#""items":{}"#, c.amount)),
        Event::Purchase => {
            put(out, format_args!(r#""order":"o{}","value":"#, c.number));
            cents(c.value / 10_000, out);
            put(out, format_args!(r#","items":{}"#, c.amount));
        }
        Event::SurveyResponse => {
            put(out, format_args!(r#""nps":{},"comment":"{}""#, c.amount, COMMENTS[c.comment as usize]));
        }
    }
}

/// As Python prints a float of two places: 5.0, 12.3, 12.34.
fn cents(cents: i64, out: &mut String) {
    let (whole, rest) = (cents / 100, cents % 100);
    if rest % 10 == 0 {
        put(out, format_args!("{whole}.{}", rest / 10));
    } else {
        put(out, format_args!("{whole}.{rest:02}"));
    }
}

/// RFC 3339 in UTC with milliseconds.
fn stamp(ms: i64, out: &mut String) {
    let (year, month, day) = civil(ms.div_euclid(86_400_000));
    let ms = ms.rem_euclid(86_400_000);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    put(out, format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000));
}

/// Year, month and day of a day since 1970 (years begin in March inside: leap days come last).
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn put(out: &mut String, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a String takes all text");
}
