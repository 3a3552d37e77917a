//! What is watched: rows of some views that somebody follows, and how they change from step to step.
//!
//! Nothing is kept of a view that nobody follows. Of one that somebody does, each person's rows are kept as they were
//! told, and held against those of now whenever the person was touched.

use std::collections::{BTreeMap, BTreeSet};

use ecow::EcoString;
use hashbrown::HashMap;

use crate::profile::answers::Asked;
use crate::protocol::Watched;
use crate::time::Millis;
use crate::total::{Counted, Total};

/// A change of a row: who follows it, of which view, the row as JSON, 1 or -1.
pub(super) type Change = (usize, Watched, String, i8);

/// All that is watched on one worker.
#[derive(Debug, Default)]
pub(super) struct Watch {
    views: BTreeMap<Watched, View>,
}

#[derive(Debug, Default)]
struct View {
    /// Workers that tell those who follow it.
    followers: BTreeSet<usize>,
    /// By person's key, the rows as they were told, in order.
    told: HashMap<EcoString, Vec<String>>,
    /// When the clock alone changes a person's rows.
    due: BTreeSet<(Millis, EcoString)>,
}

impl Watch {
    /// Whether nothing is watched.
    pub(super) fn is_idle(&self) -> bool {
        self.views.is_empty()
    }

    /// A worker follows a view from now on, or does not any more; gives all rows as they are.
    pub(super) fn follow<'a>(
        &mut self,
        view: Watched,
        follower: usize,
        follows: bool,
        everyone: impl Iterator<Item = (&'a EcoString, Asked<'a>)>,
    ) -> Vec<String> {
        if !follows {
            if let Some(watched) = self.views.get_mut(&view) {
                watched.followers.remove(&follower);
            }
            self.views.retain(|_, watched| !watched.followers.is_empty());
            return Vec::new();
        }
        let watched = self.views.entry(view).or_default();
        let is_new = watched.followers.is_empty();
        watched.followers.insert(follower);
        if is_new {
            for (key, asked) in everyone {
                watched.tell(view, key, Some(asked));
            }
        }
        watched.told.values().flatten().cloned().collect()
    }

    /// Keys whose rows the clock alone changes by now.
    pub(super) fn due(&mut self, clock: Millis) -> Vec<EcoString> {
        let mut due = Vec::new();
        for view in self.views.values_mut() {
            while let Some((_, key)) = view.due.first().filter(|(at, _)| *at <= clock).cloned() {
                view.due.pop_first();
                due.push(key);
            }
        }
        due
    }

    /// A person may have changed: what of the rows did. None: nobody is there any more.
    pub(super) fn touched(&mut self, key: &EcoString, asked: Option<Asked<'_>>, changes: &mut Vec<Change>) {
        for (name, view) in self.views.iter_mut().filter(|(name, _)| **name != Watched::Attribution) {
            let old = view.told.remove(key).unwrap_or_default();
            view.tell(*name, key, asked);
            let new = view.told.get(key).map_or(&[][..], Vec::as_slice);
            let went = old.iter().filter(|row| new.binary_search(row).is_err()).map(|row| (row, -1));
            let came = new.iter().filter(|row| old.binary_search(row).is_err()).map(|row| (row, 1));
            for (row, change) in went.chain(came) {
                changes.extend(view.followers.iter().map(|to| (*to, *name, row.clone(), change)));
            }
        }
    }

    /// Totals have changed: gives those who follow the credit among them.
    pub(super) fn credit<'t>(
        &self,
        totals: &'t [(Counted, i128)],
    ) -> impl Iterator<Item = (usize, &'t Total, i128)> + use<'t, '_> {
        let followers = self.views.get(&Watched::Attribution).into_iter().flat_map(|view| &view.followers);
        followers.flat_map(move |to| {
            let credit = totals.iter().map(|(counted, change)| (*to, &*counted.total, *change));
            credit.filter(|(_, total, _)| matches!(total, Total::CreditConversions(..) | Total::CreditValue(..)))
        })
    }
}

impl View {
    fn tell(&mut self, name: Watched, key: &EcoString, asked: Option<Asked<'_>>) {
        let Some(asked) = asked.filter(|_| name != Watched::Attribution) else { return };
        let mut rows = asked.watched(name);
        rows.sort_unstable();
        if !rows.is_empty() {
            self.told.insert(key.clone(), rows);
        }
        // A session is closed by the clock alone.
        if let Some(at) = asked.closes_at().filter(|_| name == Watched::Sessions) {
            self.due.insert((at, key.clone()));
        }
    }
}
