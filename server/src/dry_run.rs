//! A dry run: files of events under some definitions and others beside them, and the intents of each; nothing is sent.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::sync::Arc;

use dataflows::definitions::Definitions;
use dataflows::plan::Plan;
use dataflows::profile::answers::IntentRow;
use dataflows::profile::sums::Span;
use dataflows::profile::trial::Trial;
use dataflows::time::Millis;
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::replay::{Replay, replay};
use crate::rows::Intent;

/// What to run, and how.
#[derive(Debug)]
pub struct DryRun {
    /// Files; `-` is the standard input.
    pub files: Vec<PathBuf>,
    /// Worker threads.
    pub workers: usize,
    /// How late an event may be; none: any time.
    pub lateness: Option<Millis>,
    /// Which intents are told.
    pub span: Span,
    /// The definitions.
    pub standing: Arc<Definitions>,
    /// Others to try, by name.
    pub variants: Vec<(String, Arc<Definitions>)>,
}

/// What would have been triggered.
#[derive(Debug, Serialize)]
pub struct Report {
    as_of: AsOf,
    from: Option<Millis>,
    to: Option<Millis>,
    /// The definitions, without a name, and the others.
    variants: Vec<Variant>,
}

#[derive(Debug, Serialize)]
struct AsOf {
    position: String,
    clock: Millis,
}

#[derive(Debug, Serialize)]
struct Variant {
    name: Option<String>,
    campaigns: BTreeMap<EcoString, BTreeMap<EcoString, u64>>,
    /// All of them, the newest first.
    intents: Vec<Box<RawValue>>,
}

/// Runs; gives the report, or a sentence on what is wrong.
pub fn dry_run(run: DryRun) -> Result<Report, String> {
    let DryRun { files, workers, lateness, span, standing, variants } = run;
    let (names, others): (Vec<_>, Vec<_>) = variants.into_iter().unzip();
    // What any of them names is read of each event.
    let first = Plan::new(Arc::clone(&standing));
    let plan = others.iter().fold(first, |plan, definitions| plan.after(Arc::clone(definitions), Default::default()));
    let plan = Arc::new(plan.after(Arc::clone(&standing), Default::default()));
    let replayed = replay(&Replay { files, plan, workers, lateness, dump: None }, None)?;
    let (_, mut replayed) = replayed.expect("alone a process leads");
    let definitions: Vec<_> = [standing].into_iter().chain(others).collect();
    let tried = definitions.iter().map(|definitions| (Arc::clone(definitions), Default::default())).collect();
    let trial = Trial { definitions: tried, span, limit: usize::MAX, ..Trial::default() };
    let outcomes = replayed.what_if(trial);
    let names = std::iter::once(None).chain(names.into_iter().map(Some));
    let variants = names.zip(definitions).zip(outcomes).map(|((name, definitions), outcome)| {
        let intent = |row: &IntentRow| to_raw_value(&Intent::new(row, &definitions)).expect("rows have string keys");
        let intents = outcome.intents.iter().map(intent).collect();
        let mut campaigns = outcome.campaigns;
        campaigns.retain(|name, _| definitions.campaigns.contains_key(name.as_str()));
        Variant { name, campaigns: campaigns.into_iter().map(|(name, of)| (name, of.by_status)).collect(), intents }
    });
    let variants = variants.collect();
    let as_of = replayed.as_of();
    let as_of = AsOf { position: as_of.position.to_string(), clock: as_of.clock };
    Ok(Report { as_of, from: span.from, to: span.to, variants })
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for (place, Variant { name, campaigns, .. }) in self.variants.iter().enumerate() {
            let line = if place > 0 { "\n" } else { "" };
            write!(f, "{line}{}", name.as_deref().unwrap_or("as defined"))?;
            for (campaign, by_status) in campaigns {
                let counts: Vec<String> = by_status.iter().map(|(status, count)| format!("{status} {count}")).collect();
                let counts = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
                write!(f, "\n  campaign {campaign}: {counts}")?;
            }
        }
        Ok(())
    }
}
