//! A coordinator and two workers.

use cappy_tests::{Cluster, ClusterPlan, tree};

use crate::job;

#[test]
fn a_cluster_of_processes_gives_the_embedded_runs_files() {
    let cluster = Cluster::start(&ClusterPlan { workers: 2, ..ClusterPlan::default() });
    let client = cluster.client();
    let submitted = client.start(job::submit(["--output", "json", "--results", "results"]));
    cluster.observer().wait_workers("both workers compute", |workers| {
        workers.iter().filter(|worker| worker.busy_slots > 0).count() == 2
    });
    let done = submitted.wait().expect(0);
    job::assert_same_as_embedded(&cluster.sandbox().path("results"));
    assert_eq!(done.json()["methods"], job::embedded().first.json()["methods"]);

    // The files are the coordinator's: any client can have them, at any time.
    let id = job::job_id(&done.json());
    client.run(["results", id.as_str(), "--results", "again"]).expect(0);
    job::assert_same(&tree(&cluster.sandbox().path("results")), &tree(&cluster.sandbox().path("again")));
    let listed = client.run(["ls"]).expect(0).json_lines();
    assert_eq!((listed.len(), &listed[0]["id"], &listed[0]["state"]), (1, &id.into(), &"succeeded".into()));
}
