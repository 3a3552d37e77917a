//! What taking events back would change: the main figures as they are, and as they would be without them.

use std::collections::{BTreeMap, BTreeSet};

use dataflows::number::print_billionths;
use dataflows::plan::Plan;
use dataflows::profile::trial::{Lacks, Trial, Without};
use dataflows::protocol::{Answer, Question};
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::App;
use super::corrections::standing;
use super::query::Query;
use super::what_if::try_out;
use crate::desk::Selected;
use crate::hub::AsOf;
use crate::problem::Problem;

/// A figure now, and without the events.
#[derive(Serialize, ToSchema)]
struct Figure<T> {
    before: T,
    after: T,
}

/// The main figures. Of segments, intents and credit those that change.
#[derive(Serialize, ToSchema)]
pub(super) struct Figures {
    /// Who exists.
    profiles: Figure<i64>,
    sessions: Figure<i64>,
    /// Conversions that stand, and their value; null where the definitions keep no model of attribution.
    conversions: Option<Figure<i64>>,
    value: Option<Figure<String>>,
    segments: Vec<SizeFigure>,
    /// By the law's word.
    intents: Vec<IntentsFigure>,
    credit: Vec<CreditFigure>,
}

#[derive(Serialize, ToSchema)]
struct SizeFigure {
    segment: EcoString,
    #[serde(flatten)]
    size: Figure<i64>,
}

#[derive(Serialize, ToSchema)]
struct IntentsFigure {
    campaign: EcoString,
    status: EcoString,
    #[serde(flatten)]
    intents: Figure<i64>,
}

#[derive(Serialize, ToSchema)]
struct CreditFigure {
    model: EcoString,
    channel: EcoString,
    campaign: EcoString,
    conversions: Figure<String>,
    value: Figure<String>,
}

impl Figures {
    fn new(totals: &BTreeMap<Total, (i128, i128)>, plan: &Plan) -> Figures {
        let of = |total: &Total| totals.get(total).copied().unwrap_or_default();
        let whole = |(before, after): (i128, i128)| Figure { before: before as i64, after: after as i64 };
        let exact = |(before, after)| Figure { before: print_billionths(before), after: print_billionths(after) };
        let (mut segments, mut intents) = (Vec::new(), Vec::new());
        let mut credit: BTreeMap<_, [(i128, i128); 2]> = BTreeMap::new();
        for (total, sums) in totals {
            let size = || Some(whole(*sums)).filter(|size| size.before != size.after);
            match total {
                Total::Members(segment) => {
                    segments.extend(size().map(|size| SizeFigure { segment: segment.clone(), size }));
                }
                Total::Intents(campaign, status) => {
                    let (campaign, status) = (campaign.clone(), status.clone());
                    intents.extend(size().map(|intents| IntentsFigure { campaign, status, intents }));
                }
                Total::CreditConversions(model, channel, campaign) => {
                    credit.entry((model, channel, campaign)).or_default()[0] = *sums;
                }
                Total::CreditValue(model, channel, campaign) => {
                    credit.entry((model, channel, campaign)).or_default()[1] = *sums;
                }
                _ => {}
            }
        }
        // All of a conversion is given to somebody, by every model.
        let worth = plan.models().first().map(|first| {
            let all = credit.iter().filter(|((model, ..), _)| *model == first.name()).map(|(_, sums)| sums);
            let sum =
                |which: usize| all.clone().fold((0, 0), |sum, part| (sum.0 + part[which].0, sum.1 + part[which].1));
            (sum(0), sum(1))
        });
        let (conversions, value) = worth.unzip();
        credit.retain(|_, sums| sums.iter().any(|(before, after)| before != after));
        let rows = credit.into_iter().map(|((model, channel, campaign), [conversions, value])| {
            let (model, channel, campaign) = (model.clone(), channel.clone(), campaign.clone());
            CreditFigure { model, channel, campaign, conversions: exact(conversions), value: exact(value) }
        });
        Figures {
            profiles: whole(of(&Total::Profiles)),
            sessions: whole(of(&Total::Sessions)),
            conversions: conversions.map(|(before, after)| whole((before / BILLION, after / BILLION))),
            value: value.map(exact),
            segments,
            intents,
            credit: rows.collect(),
        }
    }
}

/// Credit is counted in billionths.
const BILLION: i128 = 1_000_000_000;

/// What these events would leave behind: the places of those that are there, how many people have them, the figures.
/// People are folded again without their events, who would be other people as these.
pub(super) async fn foresee(
    app: &App,
    query: &Query,
    selected: &[Selected],
) -> Result<(AsOf, BTreeSet<u64>, u64, Figures), Problem> {
    let (book, deadline) = (app.hub.book(), query.deadline());
    let mut events: BTreeMap<EcoString, BTreeSet<u64>> = BTreeMap::new();
    for of in selected {
        events.entry(of.own.clone()).or_default().insert(of.position);
    }
    loop {
        let people = apart(app, selected).await?;
        let without = Without { events: events.clone(), people };
        let trial = Trial { without: Some(without.clone()), ..Trial::default() };
        let (as_of, outcomes, _) = try_out(app, query, &book, &[], trial).await?;
        // Calls that link people may have come meanwhile.
        if apart(app, selected).await? == without.people {
            let mut lacks = outcomes.into_iter().map(|outcome| outcome.lacks).next().unwrap_or_default();
            lacks.regroup(&book.plan, as_of.clock, &without);
            let Lacks { events, profiles, totals, .. } = lacks;
            return Ok((as_of, events.into_iter().collect(), profiles, Figures::new(&totals, &book.plan)));
        }
        if Instant::now() >= deadline {
            return Err(Problem::busy("who is whom changes too fast for a preview; try again"));
        }
    }
}

/// The ids of each person who would be another one without these events.
async fn apart(app: &App, selected: &[Selected]) -> Result<Vec<BTreeSet<EcoString>>, Problem> {
    // What links people is known by message id, and another call of that id may be the one that stands.
    let (_, stands) = standing(app, selected).await?;
    let stand = selected.iter().filter(|of| stands.contains(&of.position));
    let events = stand.map(|of| (of.own.clone(), of.message_id.clone())).collect();
    let parts = app.hub.ask(Question::Apart(events)).await?.parts.into_iter();
    let people = parts.filter_map(|part| if let Answer::Apart(people) = part { Some(people) } else { None });
    Ok(people.flatten().collect())
}
