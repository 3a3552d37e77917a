//! A plan by which one history is looked into: all that makes a clause true is kept.

use std::ops::Range;

use ecow::EcoString;

use super::{Feed, Plan};
use crate::value::Value;
use crate::vocabulary::NameId;

impl Plan {
    /// The same definitions without schedules: what they begin changes nothing that is judged, and one may be due for
    /// ever.
    pub fn unscheduled(&self) -> Plan {
        let mut plan = self.clone();
        plan.campaigns.iter_mut().for_each(|campaign| campaign.schedule = None);
        plan
    }

    /// The same definitions, by which every feed keeps what it sees, and each step of a sequence has a feed of its own.
    /// There are no schedules.
    pub fn explaining(&self) -> Plan {
        let mut plan = self.unscheduled();
        for feed in &mut plan.feeds {
            let tape = *feed.kept.get_or_insert(plan.keeps);
            plan.keeps = plan.keeps.max(tape + 1);
            feed.aggregates.iter().for_each(|aggregate| plan.aggregates[*aggregate].tape = tape);
        }
        for (step, after) in self.sequences.iter().flat_map(|of| of.steps.iter().map(|step| (step, of.after))) {
            let feed = plan.feeds.len();
            let (rule, kept) = (step.rule.clone(), Some(plan.keeps));
            plan.feeds.push(Feed { rule, field: None, emitted: true, after, kept, aggregates: Vec::new() });
            plan.rules[step.name.0 as usize].feeds.push(feed);
            plan.keeps += 1;
        }
        plan
    }

    /// Of such a plan: the tapes that keep what the steps of a sequence see.
    pub fn step_tapes(&self, sequence: usize) -> Range<usize> {
        let of = &self.sequences[sequence];
        let first = self.keeps - self.steps + of.first_step;
        first..first + of.steps.len()
    }

    /// The name of the events that an aggregate counts, where it counts those of one name.
    pub fn name_fed_to(&self, aggregate: usize) -> Option<&EcoString> {
        let feeds = |feeds: &[usize]| feeds.iter().any(|feed| self.feeds[*feed].aggregates.contains(&aggregate));
        let name = self.rules.iter().position(|rules| feeds(&rules.feeds))?;
        self.name_of(NameId(name as u32))
    }

    /// The name of an event, if a definition names it.
    pub fn name_of(&self, name: NameId) -> Option<&EcoString> {
        match self.vocabulary.text(name) {
            Value::Text(name) => Some(name),
            _ => None,
        }
    }
}
