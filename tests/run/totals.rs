//! What is counted over people, added up from the rows of the views: what the engine's totals have to be.

use std::collections::{BTreeMap, BTreeSet};

use dataflows::profile::sums::{Credited, Visits};
use dataflows::total::Total;
use serde_json::Value;

/// Everything that is counted and not zero.
pub type Totals = BTreeMap<Total, i128>;

/// The sums of rows of profiles, sessions, segment changes, intents and credit. How often journeys moved is in no row.
pub fn totals([profiles, sessions, _, intents, credit]: [&Vec<String>; 5]) -> Totals {
    let mut sums = Totals::new();
    let mut add = |total, number: i128| *sums.entry(total).or_default() += number;
    for profile in parsed(profiles) {
        add(Total::Profiles, 1);
        for segment in profile["segments"].as_array().into_iter().flatten() {
            add(Total::Members(text(&segment["name"])), 1);
        }
        for (journey, standing) in profile["journeys"].as_object().into_iter().flatten() {
            add(Total::Inside(journey.as_str().into(), text(&standing["state"])), 1);
        }
    }
    for session in parsed(sessions) {
        let [start, end, events] = ["start", "end", "events"].map(|key| session[key].as_i64().expect("a number"));
        add(Total::Sessions, 1);
        add(Total::SessionEvents, events.into());
        add(Total::SessionMillis, (end - start).into());
        add(Total::Bounces, (events == 1).into());
    }
    for intent in parsed(intents) {
        add(Total::Intents(text(&intent["campaign"]), text(&intent["status"])), 1);
    }
    for credit in parsed(credit) {
        let key = ["model", "channel", "campaign"].map(|key| text(&credit[key]));
        let [model, channel, campaign] = key.clone();
        add(Total::CreditConversions(model, channel, campaign), billionths(&credit["conversions"]));
        let [model, channel, campaign] = key;
        add(Total::CreditValue(model, channel, campaign), billionths(&credit["value"]));
    }
    sums.retain(|_, sum| *sum != 0);
    sums
}

/// Sums that were asked for, as totals.
pub fn asked<'m>(visits: Visits, credit: impl Iterator<Item = (&'m str, Credited)>) -> Totals {
    let mut sums = Totals::from([
        (Total::Sessions, visits.sessions.into()),
        (Total::SessionEvents, visits.events.into()),
        (Total::SessionMillis, visits.length_ms),
        (Total::Bounces, visits.bounces.into()),
    ]);
    for (model, of) in credit {
        let whole = of.keys.values().map(|(conversions, _)| conversions).sum::<i128>();
        assert_eq!(whole, i128::from(of.conversions) * 1_000_000_000, "{model} shares out every conversion");
        for ((channel, campaign), (conversions, value)) in of.keys {
            sums.insert(Total::CreditConversions(model.into(), channel.clone(), campaign.clone()), conversions);
            sums.insert(Total::CreditValue(model.into(), channel, campaign), value);
        }
    }
    sums.retain(|_, sum| *sum != 0);
    sums
}

/// Conversions that followed a campaign's intents, from rows of intents and of credit, in which each stands as a whole.
pub fn followed(intents: &[String], credit: &[String], lookback: i64) -> BTreeMap<String, u64> {
    let credit: Vec<Value> = parsed(credit).collect();
    let mut conversions: BTreeMap<(&str, i64, String), i128> = BTreeMap::new();
    for row in credit.iter().filter(|row| row["model"] == credit[0]["model"]) {
        let (profile, conversion) = (row["profile"].as_str().expect("a text"), &row["conversion"]);
        let at = conversion["at"].as_i64().expect("a time");
        *conversions.entry((profile, at, conversion.to_string())).or_default() += billionths(&row["conversions"]);
    }
    let intents: Vec<Value> = parsed(intents).filter(|row| row["status"] == "due").collect();
    let mut followed = BTreeMap::new();
    for ((profile, at, _), count) in conversions {
        let before = |row: &&Value| (at - lookback..at).contains(&row["at"].as_i64().expect("a time"));
        let due = intents.iter().filter(|row| row["profile"] == profile).filter(before);
        for campaign in due.map(|row| text::<String>(&row["campaign"])).collect::<BTreeSet<_>>() {
            *followed.entry(campaign).or_default() += u64::try_from(count / 1_000_000_000).expect("a count");
        }
    }
    followed
}

/// Those of the totals that can be asked for by part.
pub fn of_asked(totals: &Totals) -> Totals {
    let is_asked = |total: &Total| {
        use Total::*;
        matches!(total, Sessions | SessionEvents | SessionMillis | Bounces | CreditConversions(..) | CreditValue(..))
    };
    totals.iter().filter(|(total, _)| is_asked(total)).map(|(total, sum)| (total.clone(), *sum)).collect()
}

fn parsed(rows: &[String]) -> impl Iterator<Item = Value> {
    rows.iter().map(|row| serde_json::from_str(row).expect("rows are JSON"))
}

fn text<T: for<'a> From<&'a str>>(value: &Value) -> T {
    value.as_str().expect("a text").into()
}

/// A decimal that is not negative, in 10^-9.
pub fn billionths(value: &Value) -> i128 {
    let decimal = value.as_str().expect("money is a text");
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    format!("{whole}{fraction:0<9}").parse().expect("a decimal of at most nine places")
}
