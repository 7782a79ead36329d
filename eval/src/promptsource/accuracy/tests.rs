use proptest::prelude::*;

use super::*;
use crate::report::Cell;

fn row(dataset: &str, template: &str, example_idx: u64, response: &str, label: u8) -> PromptRow {
    PromptRow {
        dataset_name: dataset.into(),
        template_name: template.into(),
        example_idx,
        instruction: String::new(),
        response: response.into(),
        label,
    }
}

#[test]
fn the_first_highest_wins_and_texts_are_compared() {
    let mut accuracy = Accuracy::new();
    for (template, example, response, label, score) in [
        // A tie goes to the first, which is wrong.
        ("tie", 0, "No", 0, 0.5),
        ("tie", 0, "Yes", 1, 0.5),
        // Rows of a group need not stand together.
        ("apart", 0, "No", 0, -1.0),
        ("apart", 1, "No", 0, 2.0),
        ("apart", 0, "Yes", 1, -0.5),
        ("apart", 1, "Yes", 1, 1.0),
        // The chosen row says 0, but its text is the right one.
        ("same text", 0, "The end", 0, 3.0),
        ("same text", 0, "The end", 1, 1.0),
        // Nothing is right here: not counted.
        ("no answer", 0, "Yes", 0, 1.0),
    ] {
        accuracy.add(&row("mine", template, example, response, label), score).unwrap();
    }
    let report = accuracy.finish();
    let [mine] = report.datasets.as_slice() else { panic!("{report:?}") };
    assert_eq!((mine.correct, mine.groups, mine.examples, mine.without_answer), (2, 4, 2, 1));
    assert_eq!(mine.accuracy, Some(0.5));
    let of: Vec<_> =
        mine.templates.iter().map(|t| (t.template_name.as_str(), t.correct, t.examples)).collect();
    assert_eq!(of, [("tie", 0, 1), ("apart", 1, 2), ("same text", 1, 1), ("no answer", 0, 0)]);
    assert_eq!(report.published_average, None);
}

#[test]
fn what_cannot_be_counted_is_named() {
    let mut accuracy = Accuracy::new();
    let error = accuracy.add(&row("CB", "t", 7, "Yes", 1), f32::NAN).unwrap_err();
    assert!(
        error.to_string().starts_with("the score of example 7 of `CB` under `t` is not a number"),
        "{error}"
    );
    let error = accuracy.add(&row("CB", "t", 7, "Yes", 2), 0.0).unwrap_err();
    assert_eq!(error.to_string(), "label 2 of example 7 of `CB` under `t` is neither 0 nor 1");
    let report = accuracy.finish();
    assert_eq!((report.datasets.len(), report.average), (0, None));
    assert!(report.to_text().contains("Average"));
}

#[test]
fn datasets_weigh_the_same_and_stand_in_the_published_order() {
    let mut accuracy = Accuracy::new();
    for example in 0..100 {
        let right = u8::from(example % 4 == 0);
        accuracy.add(&row("RTE", "t", example, "Yes", right), 1.0).unwrap();
        accuracy.add(&row("RTE", "t", example, "No", 1 - right), 0.0).unwrap();
    }
    for example in 0..10 {
        accuracy.add(&row("CB", "t", example, "Yes", 1), 1.0).unwrap();
    }
    let report = accuracy.finish();
    assert_eq!(report.datasets.iter().map(|d| d.dataset_name.as_str()).collect::<Vec<_>>(), ["CB", "RTE"]);
    assert_eq!(report.average, Some((1.0 + 0.25) / 2.0));
    assert_eq!(report.published_average.unwrap()[5], (59.4 + 71.9) / 2.0);
    let [low, high] = report.datasets[1].confidence_95.unwrap();
    // Twice 1.96 standard errors: sqrt(0.25 * 0.75 / 100).
    assert!((high - low - 0.17).abs() < 0.03, "{low} {high}");
    assert_eq!(report.datasets[0].confidence_95, Some([1.0, 1.0]));
    // All of the mean's uncertainty is RTE's, at half the weight.
    let [mean_low, mean_high] = report.average_confidence_95.unwrap();
    assert!((mean_high - mean_low - (high - low) / 2.0).abs() < 0.01);

    let table = report.table();
    assert_eq!(table.columns[6], "Cappy 0.36B published");
    assert_eq!(table.rows[0].cells[..2], [Cell::Text("CB".into()), Cell::Number(100.0)]);
    assert_eq!(table.rows[0].cells[6], Cell::Number(59.4));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["datasets"][1]["templates"][0]["correct"], 25);
}

proptest! {
    /// Only the order within a group decides, and only between equal scores.
    #[test]
    fn groups_may_come_in_any_order(
        rows in prop::collection::vec((0u64..5, 0usize..3, 0u8..2, 0u8..40), 0..60),
        seed in any::<u64>(),
    ) {
        let mut seen = std::collections::HashSet::new();
        let rows: Vec<_> = rows
            .into_iter()
            .filter(|(example, _, _, score)| seen.insert((*example, *score)))
            .map(|(example, choice, label, score)| {
                (row("d", "t", example, ["a", "b", "c"][choice], label), f32::from(score))
            })
            .collect();
        let measure = |rows: &[(PromptRow, f32)]| {
            let mut accuracy = Accuracy::new();
            rows.iter().for_each(|(row, score)| accuracy.add(row, *score).unwrap());
            accuracy.finish()
        };
        let mut shuffled = rows.clone();
        crate::keyed::Keyed::new(seed, "test").shuffle(&mut shuffled);
        prop_assert_eq!(measure(&rows), measure(&shuffled));
    }
}
