//! The demo's visitors: people made up at random who browse, fill carts, buy and leave, on a clock that runs fast.
//!
//! They only send events, as a shop's pages would; what to make of them stands in the definitions file.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dataflows::event::Decoder;
use dataflows::time::Millis;
use tokio::sync::oneshot;

use crate::door::{Arrived, Door, Stamp};
use crate::hub::{Hub, Work};

/// The example shop.
pub const SHOP: &str = include_str!("../../examples/shop.yaml");

/// Demo time runs so many times as fast as the wall.
const SPEED: Millis = 300;
/// People who are around.
const PEOPLE: usize = 2_000;
/// Between two rounds of events.
const ROUND: Duration = Duration::from_millis(50);

static STARTED: OnceLock<(Instant, Millis)> = OnceLock::new();

/// Sets the demo's clock going, from the wall's time or from `last`, whichever is later: it never goes back.
pub fn start_clock(last: Millis) {
    let _ = STARTED.set((Instant::now(), crate::clock::now().max(last)));
}

/// The demo's clock, ms.
pub fn now() -> Millis {
    let (started, base) = STARTED.get_or_init(|| (Instant::now(), crate::clock::now()));
    base + started.elapsed().as_millis() as Millis * SPEED
}

/// Random numbers; which ones does not matter.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Where a visitor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Away,
    Browsing,
    Checkout,
}

struct Visitor {
    number: usize,
    generation: u64,
    logged_in: bool,
    mood: Mood,
    items: u64,
    /// When they do something next, demo ms.
    next: Millis,
}

const SECTIONS: [&str; 6] = ["shoes", "jackets", "bags", "home", "kids", "beauty"];
const CHANNELS: [&str; 5] = ["email", "paid_search", "social", "display", "affiliate"];

/// Lets the visitors come and go for as long as the process runs.
pub async fn visitors(hub: Hub, secret: [u8; 16]) {
    let mut dice = Dice(crate::clock::nanos() as u64 | 1);
    let begin = now();
    let mut people: Vec<Visitor> = (0..PEOPLE)
        .map(|number| Visitor {
            number,
            generation: 0,
            logged_in: false,
            mood: Mood::Away,
            items: 0,
            next: begin + dice.below(4 * 3_600_000) as Millis,
        })
        .collect();
    let mut decoder = Decoder::new(Arc::clone(&hub.latest().plan.vocabulary));
    let run = crate::clock::nanos();
    let mut sent = 0u64;
    loop {
        tokio::time::sleep(ROUND).await;
        let now = now();
        let mut body = String::from(r#"{"batch":["#);
        for person in people.iter_mut().filter(|person| person.next <= now) {
            sent += 1;
            let (event, properties) = act(person, &mut dice);
            if !body.ends_with('[') {
                body.push(',');
            }
            let _ = write!(
                body,
                r#"{{"type":"track","messageId":"demo-{run:x}-{sent}",{},"event":"{event}","timestamp":{},"#,
                ids(person),
                person.next
            );
            let _ = write!(body, r#""properties":{{{properties}}},"context":{}}}"#, context(person));
            person.next = now.max(person.next + pause(person, &mut dice));
        }
        if body.ends_with('[') {
            continue;
        }
        body.push_str("]}");
        let mut door = Door {
            decoder: &mut decoder,
            secret: &secret,
            stamp: Stamp::Wall(now),
            fresh_id: &|_| unreachable!("each event has an id"),
        };
        let Ok(body) = door.batch(body.as_bytes()) else { continue };
        let good = body.calls.into_iter().filter_map(|call| match call {
            Arrived::Good(incoming) => Some(*incoming),
            Arrived::Bad { .. } => None,
        });
        let (reply, _) = oneshot::channel();
        // A full queue only means fewer visitors this round.
        let _ = hub.give(Work::Events(good.collect(), Instant::now(), reply));
    }
}

fn ids(person: &Visitor) -> String {
    let anonymous = format!(r#""anonymousId":"browser-{}-{}""#, person.number, person.generation);
    if person.logged_in { format!(r#""userId":"user-{}",{anonymous}"#, person.number) } else { anonymous }
}

fn context(person: &Visitor) -> String {
    let device = ["ios", "android", "web"][person.number % 3];
    let consent = !person.number.is_multiple_of(4);
    format!(r#"{{"device":{{"type":"{device}"}},"consent":{{"categoryPreferences":{{"marketing":{consent}}}}}}}"#)
}

/// What a visitor does now.
fn act(person: &mut Visitor, dice: &mut Dice) -> (&'static str, String) {
    let section = dice.one(&SECTIONS);
    let sku = format!("{section}-{}", dice.below(20));
    match person.mood {
        Mood::Away => {
            if dice.below(6) == 0 {
                // A new browser: nobody knows them yet.
                (person.generation, person.logged_in) = (person.generation + 1, false);
            }
            person.mood = Mood::Browsing;
            if dice.below(2) == 0 {
                let channel = dice.one(&CHANNELS);
                return ("ad_click", format!(r#""channel":"{channel}","campaign":"{channel}-{}""#, dice.below(4)));
            }
            ("page_view", r#""page":"/""#.to_owned())
        }
        Mood::Browsing => match dice.below(12) {
            0 if !person.logged_in => {
                person.logged_in = true;
                ("login", String::new())
            }
            0..=3 => ("section_view", format!(r#""section":"{section}""#)),
            4..=7 => {
                ("product_view", format!(r#""section":"{section}","sku":"{sku}","price":{}"#, 5 + dice.below(200)))
            }
            8 | 9 => {
                person.items += 1;
                ("add_to_cart", format!(r#""section":"{section}","sku":"{sku}","items":{}"#, person.items))
            }
            10 if person.items > 0 => {
                person.mood = Mood::Checkout;
                ("checkout_started", format!(r#""items":{}"#, person.items))
            }
            _ => {
                person.mood = Mood::Away;
                ("page_view", r#""page":"/goodbye""#.to_owned())
            }
        },
        Mood::Checkout => {
            person.mood = Mood::Away;
            if dice.below(3) == 0 {
                return ("page_view", r#""page":"/help""#.to_owned());
            }
            let items = std::mem::take(&mut person.items);
            let order = format!("o-{}-{:x}", person.number, dice.below(1 << 40));
            let value = items * (10 + dice.below(140));
            ("purchase", format!(r#""order":"{order}","value":{value},"items":0,"section":"{section}","sku":"{sku}""#))
        }
    }
}

/// Until a visitor does the next thing, demo ms.
fn pause(person: &Visitor, dice: &mut Dice) -> Millis {
    let (least, most) = if person.mood == Mood::Away { (3_600_000, 30 * 3_600_000) } else { (5_000, 240_000) };
    (least + dice.below(most - least)) as Millis
}
