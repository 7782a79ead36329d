//! The stages of every kind of job, as a table.

use cappy_proto::v1;

use crate::planner::testing::{decodings, file, graph_of, layout, tuning};

fn generated() -> v1::AdaptSpec {
    v1::AdaptSpec {
        scorer: "cappy".into(),
        train: file("mine", 100),
        validation: file("held", 10),
        form: v1::ExampleForm::References.into(),
        model: "google/gen".into(),
        generation: decodings(),
        fine_tuning: tuning(),
        ..Default::default()
    }
}

#[test]
fn every_kind_lays_out_its_stages() {
    use v1::job_spec::Kind;
    let bigbench = v1::BigbenchSpec {
        subsets: vec![
            v1::BigbenchSubset { name: "a".into(), train_rows: 10, validation_rows: 5, ..Default::default() },
            v1::BigbenchSubset {
                name: "b".into(),
                train_rows: 10,
                validation_rows: 5,
                generated: true,
                ..Default::default()
            },
        ],
        fine_tuning: Some(v1::FineTuning { train_size: 1000, ..tuning().unwrap() }),
        ..Default::default()
    };
    let generate = v1::GenerateSpec {
        model: "m".into(),
        files: ["x", "y"]
            .map(|name| v1::GenerateFile { rows: file(name, 40), log_likelihood: true })
            .to_vec(),
        ..Default::default()
    };
    let boost = v1::BoostSpec { scorer: "s".into(), input: file("in", 40), ..Default::default() };
    let made = v1::BoostSpec { model: "m".into(), generation: decodings(), ..boost.clone() };
    let adapt = v1::AdaptSpec {
        scorer: "s".into(),
        train: file("mine", 1000),
        form: v1::ExampleForm::Labelled.into(),
        fine_tuning: tuning(),
        ..Default::default()
    };
    let pretrain = v1::PretrainSpec {
        scorer: "s".into(),
        examples: file("mix", 1000),
        prompts: file("asked", 100),
        models: vec!["bart0".into(), "t0".into()],
        generation: decodings(),
        validation: file("held", 10),
        fine_tuning: tuning(),
        ..Default::default()
    };
    for (kind, expected) in [
        (
            Kind::Bigbench(bigbench),
            &[
                "resolve <-  (1)",
                "generate/a/train <- resolve (10)",
                "generate/a/validation <- resolve (5)",
                "label/a <- generate/a/train (10)",
                "train/a <- resolve label/a (8)",
                "score/a <- generate/a/validation train/a (5)",
                "select/a <- generate/a/validation score/a (5)",
                "label/b <-  (10)",
                "train/b <- resolve label/b (8)",
                "score/b <- train/b (5)",
                "select/b <- score/b (5)",
                "report <- select/a select/b (2)",
            ][..],
        ),
        (
            Kind::Generate(generate),
            &["resolve <-  (1)", "generate/x <- resolve (40)", "generate/y <- resolve (40)"],
        ),
        (
            Kind::Score(v1::ScoreSpec { scorer: "s".into(), input: file("in", 40), ..Default::default() }),
            &["resolve <-  (1)", "score <- resolve (40)"],
        ),
        (Kind::Boost(boost), &["resolve <-  (1)", "score <- resolve (40)", "choose <- score (40)"]),
        (
            Kind::Boost(made),
            &[
                "resolve <-  (1)",
                "generate <- resolve (40)",
                "score <- generate resolve (40)",
                "choose <- score (40)",
            ],
        ),
        (
            Kind::Promptsource(v1::PromptsourceSpec {
                scorer: "s".into(),
                input: file("in", 40),
                ..Default::default()
            }),
            &["resolve <-  (1)", "score <- resolve (40)", "accuracy <- score (40)"],
        ),
        (
            Kind::Adapt(adapt),
            &[
                "resolve <-  (1)",
                "label/train <-  (1000)",
                "train <- resolve label/train (8)",
                "register <- label/train train (1)",
            ],
        ),
        (
            Kind::Adapt(generated()),
            &[
                "resolve <-  (1)",
                "generate/train <- resolve (100)",
                "generate/validation <- resolve (10)",
                "label/train <- generate/train (100)",
                "label/validation <- generate/validation (10)",
                "train <- resolve label/train label/validation (4)",
                "register <- label/train label/validation train (1)",
            ],
        ),
        (
            Kind::Pretrain(pretrain),
            &[
                "resolve <-  (1)",
                "generate/bart0 <- resolve (100)",
                "generate/t0 <- resolve (100)",
                "label/train <- generate/bart0 generate/t0 (1400)",
                "label/validation <-  (10)",
                "train <- resolve label/train label/validation (11)",
                "register <- label/train label/validation train (1)",
            ],
        ),
    ] {
        assert_eq!(layout(&graph_of(&kind, &[])), expected);
    }
}
