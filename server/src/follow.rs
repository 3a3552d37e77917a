//! Views that somebody follows: what changed of them with each step, for as long as anyone does and a little longer, so
//! that who comes again goes on where they were.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dataflows::protocol::{Closed, Question, Watched};
use dataflows::total::Total;
use tokio::sync::{broadcast, oneshot};

use crate::hub::{Answered, AsOf, Hub, NotTaken, Work};

/// Steps with changes that are kept for who comes again, and for a slow reader before it is dropped.
const STEPS_MAX: usize = 1_024;
/// So long a view is followed after its last reader has gone.
const GRACE: Duration = Duration::from_secs(30);

/// What changed of a view with a step.
#[derive(Debug)]
pub struct Step {
    /// When it closed.
    pub as_of: AsOf,
    /// Its number.
    pub number: u64,
    /// Rows that went (-1) and came (1), as JSON: those that went first.
    pub rows: Vec<(i8, String)>,
    /// Changes of credit.
    pub credit: Vec<(Total, i128)>,
}

/// All views that are followed.
#[derive(Debug, Default)]
pub struct Follows(Mutex<BTreeMap<Watched, Follow>>);

#[derive(Debug)]
struct Follow {
    readers: usize,
    /// Counts the times that it had none, to know the last of them.
    left: u64,
    /// The number of the step after which all changes are kept.
    after: u64,
    steps: VecDeque<Arc<Step>>,
    changes: broadcast::Sender<Arc<Step>>,
}

/// A reader of a view. Dropping it ends that.
#[derive(Debug)]
pub struct Reader {
    hub: Hub,
    view: Watched,
    changes: broadcast::Receiver<Arc<Step>>,
    /// Changes up to this step are known.
    known: u64,
    /// Kept ones that come first.
    kept: VecDeque<Arc<Step>>,
}

impl Follows {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Watched, Follow>> {
        self.0.lock().expect("nobody panics while holding it")
    }

    /// A step is closed.
    pub fn close(&self, closed: &mut Closed) {
        let mut follows = self.lock();
        for (view, follow) in follows.iter_mut() {
            let mut sums: BTreeMap<String, i64> = BTreeMap::new();
            for (_, row, change) in closed.rows.iter().filter(|(of, ..)| of == view) {
                *sums.entry(row.clone()).or_default() += i64::from(*change);
            }
            let mut rows: Vec<(i8, String)> =
                sums.into_iter().filter(|(_, sum)| *sum != 0).map(|(row, sum)| (sum.signum() as i8, row)).collect();
            rows.sort();
            let credit = if *view == Watched::Attribution { std::mem::take(&mut closed.credit) } else { Vec::new() };
            let is_kept = closed.erased.is_empty();
            if !is_kept && follow.after != u64::MAX {
                // Nothing of them is kept: who comes again gets a snapshot, in which they are not.
                follow.steps.clear();
                follow.after = closed.number;
            }
            if rows.is_empty() && credit.is_empty() {
                continue;
            }
            let as_of = AsOf { position: closed.position, clock: closed.clock };
            let step = Arc::new(Step { as_of, number: closed.number, rows, credit });
            if follow.steps.len() == STEPS_MAX
                && let Some(oldest) = follow.steps.pop_front()
            {
                follow.after = oldest.number;
            }
            follow.steps.extend(Some(&step).filter(|_| is_kept).cloned());
            // Nobody may be listening just now.
            let _ = follow.changes.send(step);
        }
    }
}

impl Reader {
    /// Follows a view; gives its rows as they are, unless all that changed since this step is known.
    pub async fn start(hub: Hub, view: Watched, since: Option<u64>) -> Result<(Reader, Option<Answered>), NotTaken> {
        let (mut reader, answered) = {
            let mut follows = hub.follows().lock();
            let follow = follows.entry(view).or_insert_with(|| Follow {
                readers: 0,
                left: 0,
                after: u64::MAX,
                steps: VecDeque::new(),
                changes: broadcast::channel(STEPS_MAX).0,
            });
            follow.readers += 1;
            let changes = follow.changes.subscribe();
            let mut reader = Reader { hub: hub.clone(), view, changes, known: 0, kept: VecDeque::new() };
            if let Some(since) = since.filter(|since| follow.after <= *since) {
                reader.kept = follow.steps.iter().filter(|step| step.number > since).cloned().collect();
                reader.known = reader.kept.back().map_or(since, |step| step.number);
                return Ok((reader, None));
            }
            // Asked under the lock, so that nobody ends the following meanwhile.
            let (reply, answered) = oneshot::channel();
            if let Err(why) = hub.give(Work::Ask(Question::Watch(view, true), reply)) {
                drop(follows);
                drop(reader);
                return Err(why);
            }
            (reader, answered)
        };
        let answered = answered.await.map_err(|_| NotTaken::Stopping)?;
        reader.known = answered.number;
        if let Some(follow) = hub.follows().lock().get_mut(&view)
            && follow.after == u64::MAX
        {
            follow.after = answered.number;
        }
        Ok((reader, Some(answered)))
    }

    /// What changes next; none if it came faster than it was read.
    pub async fn next(&mut self) -> Option<Arc<Step>> {
        if let Some(step) = self.kept.pop_front() {
            return Some(step);
        }
        loop {
            let step = self.changes.recv().await.ok()?;
            if step.number > self.known {
                return Some(step);
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let (hub, view) = (self.hub.clone(), self.view);
        let left = {
            let mut follows = hub.follows().lock();
            let Some(follow) = follows.get_mut(&view) else { return };
            follow.readers -= 1;
            follow.left += 1;
            if follow.readers > 0 {
                return;
            }
            follow.left
        };
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let mut follows = hub.follows().lock();
            if follows.get(&view).is_some_and(|follow| follow.readers == 0 && follow.left == left) {
                follows.remove(&view);
                // Whoever answers is the end of it.
                let _ = hub.give(Work::Ask(Question::Watch(view, false), oneshot::channel().0));
            }
        });
    }
}
