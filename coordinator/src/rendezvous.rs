//! Where the ranks of a gang meet before any work: each says what it would compute and where it listens; all are answered
//! at once. Nothing here must survive: after a restart the ranks come again, or their gang is leased anew.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cappy_proto::LeaseId;
use tokio::{sync::watch, time::Instant};

use crate::store::GangMember;

/// What a rank says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// For people.
    pub(crate) worker: String,
    /// Where it listens, should it be rank 0.
    pub(crate) address: String,
    pub(crate) model_fingerprint: String,
    pub(crate) backend: String,
    /// Of its newest checkpoint of this run.
    pub(crate) checkpoint_updates: u64,
    pub(crate) checkpoint_state: String,
    /// The group whose slice of the model it still holds, and its rank there; empty: none.
    pub(crate) resident_group: String,
    pub(crate) resident_rank: u32,
}

/// What a rank is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) rendezvous: String,
    pub(crate) checkpoint_updates: u64,
    pub(crate) checkpoint_state: String,
    pub(crate) group_id: String,
    /// All still hold their slices.
    pub(crate) resident: bool,
}

/// Why a gang does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the workers would not compute the same: `{first}` has {what} {a}, `{second}` has {b}; give every worker the same"
    )]
    Differ { what: &'static str, first: String, a: String, second: String, b: String },
    #[error("{} of {world} workers did not come within {} s: {}; they may still fetch the model, or be out of reach", .missing.len(), .timeout.as_secs(), .missing.join(", "))]
    Missing { missing: Vec<String>, world: usize, timeout: Duration },
}

/// Ranks for those who have come, in the order in which they were leased; the best placed worker is first.
///
/// Rank 0 is who has the newest checkpoint, the first of equals. Where all still hold the slices of one group, they keep
/// the ranks that they have there.
pub(crate) fn agree(members: &[(LeaseId, Introduction)]) -> Result<HashMap<LeaseId, Answer>, Refusal> {
    let Some((first_lease, first)) = members.first() else { return Ok(HashMap::new()) };
    for (_, other) in members {
        let pairs = [
            ("the model content", &first.model_fingerprint, &other.model_fingerprint),
            ("the backend", &first.backend, &other.backend),
        ];
        for (what, a, b) in pairs {
            if a != b {
                return Err(Refusal::Differ {
                    what,
                    first: first.worker.clone(),
                    a: a.clone(),
                    second: other.worker.clone(),
                    b: b.clone(),
                });
            }
        }
    }
    let mut held: Vec<u32> = members.iter().map(|(_, member)| member.resident_rank).collect();
    held.sort_unstable();
    let resident = !first.resident_group.is_empty()
        && members.iter().all(|(_, member)| member.resident_group == first.resident_group)
        && held.iter().zip(0..).all(|(rank, place)| *rank == place);
    let mut order: Vec<&(LeaseId, Introduction)> = members.iter().collect();
    if resident {
        order.sort_by_key(|(_, member)| member.resident_rank);
    } else {
        // Stable: of equals the first leased stays first.
        order.sort_by_key(|(_, member)| std::cmp::Reverse(member.checkpoint_updates));
    }
    let leader = &order[0].1;
    let group_id = if resident { first.resident_group.clone() } else { first_lease.to_string() };
    let world = u32::try_from(members.len()).unwrap_or(u32::MAX);
    Ok((0..)
        .zip(&order)
        .map(|(rank, (lease, _))| {
            let answer = Answer {
                rank,
                world,
                rendezvous: leader.address.clone(),
                checkpoint_updates: leader.checkpoint_updates,
                checkpoint_state: leader.checkpoint_state.clone(),
                group_id: group_id.clone(),
                resident,
            };
            (lease.clone(), answer)
        })
        .collect())
}

type Outcome = Result<HashMap<LeaseId, Answer>, Refusal>;

/// All gangs that meet now.
#[derive(Debug, Default)]
pub(crate) struct Rendezvous {
    /// By the lease that was granted first.
    meetings: Mutex<HashMap<LeaseId, Meeting>>,
}

#[derive(Debug)]
struct Meeting {
    come: HashMap<LeaseId, Introduction>,
    waiting: usize,
    deadline: Instant,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Rendezvous {
    /// Waits until all of `gang` have come, for `timeout` from when the first did. `name` says what a member is called
    /// that has not.
    ///
    /// A rank that comes again (its connection broke) takes its own place. One that leaves stays announced: if it does
    /// not come back, its lease ends, and the gang's with it.
    pub(crate) async fn join(
        &self,
        gang: &[GangMember],
        lease: &LeaseId,
        introduction: Introduction,
        timeout: Duration,
        name: impl Fn(&GangMember) -> String,
    ) -> Result<Answer, Refusal> {
        let Some(first) = gang.first() else {
            return Err(Refusal::Missing { missing: Vec::new(), world: 0, timeout });
        };
        let (mut outcome, deadline) = {
            let mut meetings = self.lock();
            let meeting = meetings.entry(first.lease.clone()).or_insert_with(|| Meeting {
                come: HashMap::new(),
                waiting: 0,
                deadline: Instant::now() + timeout,
                outcome: watch::channel(None).0,
            });
            meeting.waiting += 1;
            meeting.come.insert(lease.clone(), introduction);
            let all: Option<Vec<(LeaseId, Introduction)>> = gang
                .iter()
                .map(|member| Some((member.lease.clone(), meeting.come.get(&member.lease)?.clone())))
                .collect();
            if let Some(all) = all {
                meeting.outcome.send_if_modified(|outcome| {
                    let open = outcome.is_none();
                    outcome.get_or_insert_with(|| agree(&all));
                    open
                });
            }
            (meeting.outcome.subscribe(), meeting.deadline)
        };
        let _here = Here { rendezvous: self, meeting: &first.lease };
        if tokio::time::timeout_at(deadline, outcome.wait_for(Option::is_some)).await.is_err() {
            self.give_up(first, gang, timeout, name);
        }
        let told = outcome.borrow().clone();
        let told = told
            .unwrap_or_else(|| Err(Refusal::Missing { missing: Vec::new(), world: gang.len(), timeout }))?;
        // Who is not in the answer came when the others had met.
        told.get(lease).cloned().ok_or_else(|| Refusal::Missing {
            missing: Vec::new(),
            world: gang.len(),
            timeout,
        })
    }

    /// Tells all who wait that some have not come.
    fn give_up(
        &self,
        first: &GangMember,
        gang: &[GangMember],
        timeout: Duration,
        name: impl Fn(&GangMember) -> String,
    ) {
        let meetings = self.lock();
        let Some(meeting) = meetings.get(&first.lease) else { return };
        let absent = gang.iter().filter(|member| !meeting.come.contains_key(&member.lease));
        let refusal = Refusal::Missing { missing: absent.map(name).collect(), world: gang.len(), timeout };
        meeting.outcome.send_if_modified(|outcome| {
            let open = outcome.is_none();
            outcome.get_or_insert(Err(refusal));
            open
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseId, Meeting>> {
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits; with the last of them the meeting is over.
struct Here<'a> {
    rendezvous: &'a Rendezvous,
    meeting: &'a LeaseId,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        let mut meetings = self.rendezvous.lock();
        if let Some(meeting) = meetings.get_mut(self.meeting) {
            meeting.waiting -= 1;
            if meeting.waiting == 0 {
                meetings.remove(self.meeting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cappy_proto::WorkerId;

    use super::*;

    fn who(worker: &str) -> (LeaseId, Introduction) {
        let introduction = Introduction {
            worker: worker.into(),
            address: format!("{worker}:1"),
            model_fingerprint: "aa".into(),
            backend: "libtorch 1 f32".into(),
            ..Default::default()
        };
        (LeaseId::generate(), introduction)
    }

    #[test]
    fn the_newest_checkpoint_leads_and_differences_are_named() {
        let mut members = [who("a"), who("b"), who("c")];
        let ranks = |members: &[(LeaseId, Introduction)]| -> Vec<u32> {
            let answers = agree(members).unwrap();
            members.iter().map(|(lease, _)| answers[lease].rank).collect()
        };
        assert_eq!(ranks(&members), [0, 1, 2]);
        (members[1].1.checkpoint_updates, members[1].1.checkpoint_state) = (7, "state".into());
        members[2].1.checkpoint_updates = 3;
        assert_eq!(ranks(&members), [2, 0, 1]);
        let answers = agree(&members).unwrap();
        for (lease, _) in &members {
            let told = &answers[lease];
            assert_eq!((told.rendezvous.as_str(), told.world, told.resident), ("b:1", 3, false));
            assert_eq!((told.checkpoint_updates, told.checkpoint_state.as_str()), (7, "state"));
        }
        members[2].1.model_fingerprint = "bb".into();
        let told = agree(&members).unwrap_err().to_string();
        assert!(["`a`", "aa", "`c`", "bb"].iter().all(|word| told.contains(word)), "{told}");
        members[2].1 = Introduction { backend: "libtorch 2 f32".into(), ..who("c").1 };
        assert!(agree(&members).unwrap_err().to_string().contains("libtorch 2 f32"));
    }

    #[test]
    fn a_group_in_memory_is_kept_only_if_every_rank_still_has_its_own() {
        let mut members = [who("a"), who("b")];
        for (rank, (_, member)) in [1, 0].into_iter().zip(&mut members) {
            (member.resident_group, member.resident_rank) = ("g".into(), rank);
        }
        let told = agree(&members).unwrap();
        assert_eq!((told[&members[0].0].rank, told[&members[1].0].rank), (1, 0));
        assert!(told.values().all(|answer| answer.resident && answer.group_id == "g"));
        let changes: [fn(&mut Introduction); 3] = [
            |member| member.resident_rank = 1,
            |member| member.resident_group = "h".into(),
            |member| member.resident_group.clear(),
        ];
        for change in changes {
            let mut members = members.clone();
            change(&mut members[1].1);
            let told = agree(&members).unwrap();
            let fresh = |answer: &Answer| !answer.resident && answer.group_id == members[0].0.as_str();
            assert!(told.values().all(fresh), "{told:?}");
        }
    }

    #[tokio::test]
    async fn all_are_answered_when_the_last_comes_or_the_time_is_up() {
        let rendezvous = Rendezvous::default();
        let (a, b) = (who("a"), who("b"));
        let member = |lease: &LeaseId| GangMember { lease: lease.clone(), worker: WorkerId::generate() };
        let gang = [member(&a.0), member(&b.0)];
        let (patient, short) = (Duration::from_secs(60), Duration::from_millis(5));
        let name = |member: &GangMember| if member.lease == b.0 { "b".to_owned() } else { "a".to_owned() };
        let join = |who: &(LeaseId, Introduction), timeout| {
            let (lease, introduction) = who.clone();
            let (rendezvous, gang) = (&rendezvous, &gang);
            async move { rendezvous.join(gang, &lease, introduction, timeout, name).await }
        };
        let (first, second) = tokio::join!(join(&a, patient), join(&b, patient));
        assert_eq!((first.unwrap().rank, second.unwrap().rank), (0, 1));
        assert!(rendezvous.lock().is_empty());

        let late = join(&a, short).await.unwrap_err();
        assert_eq!(late, Refusal::Missing { missing: vec!["b".into()], world: 2, timeout: short });
        assert!(late.to_string().starts_with("1 of 2 workers did not come within 0 s: b"), "{late}");
        assert!(rendezvous.lock().is_empty());

        // One that broke off and comes again takes its own place.
        let broken = tokio::time::timeout(short, join(&a, patient)).await;
        assert!(broken.is_err());
        let (first, second) = tokio::join!(join(&b, patient), join(&a, patient));
        assert_eq!((first.unwrap().rank, second.unwrap().rank), (1, 0));
    }
}
