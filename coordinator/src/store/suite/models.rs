//! Registered models.

use std::time::Duration;

use super::*;

pub(in crate::store) async fn a_trained_model_is_registered_once_and_goes_with_its_last_maker(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let (first, granted) = running_job(store, 1).await;
    let mut made = output(store, "weights").await;
    let new = NewModel {
        title: "a adapted on b".into(),
        fingerprint: "content".into(),
        files: made.artifacts.clone(),
    };
    made.model = Some(new.clone());
    store.complete(&key(&granted), made).await.unwrap();
    let model = store.find_model("mdl_").await.unwrap();
    assert_eq!((&model.job, &model.title, &model.files), (&first, &new.title, &new.files));
    assert_eq!(store.job(&first).await.unwrap().row.model.as_ref(), Some(&model.id));

    // A second job reuses the stage: the same content is the same model, and belongs to both.
    advance(Duration::from_secs(1));
    let second = new_job(None, 1);
    let second_id = second.id.clone();
    store.submit(second).await.unwrap();
    let outputs = store.reusable("fp").await.unwrap().unwrap();
    let reuse = Step::Reuse { stage: 0, fingerprint: "fp".into(), outputs };
    let finish = || Step::Finish { state: JobState::Succeeded, message: String::new() };
    store.apply(&second_id, vec![reuse, finish()]).await.unwrap();
    assert_eq!(store.list_models().await.unwrap(), std::slice::from_ref(&model));
    assert_eq!(store.list_jobs(1, None).await.unwrap()[0].model.as_ref(), Some(&model.id));

    let mut user = new_job(None, 1);
    user.models = vec![model.id.clone()];
    let user_id = user.id.clone();
    store.submit(user).await.unwrap();
    assert_eq!(store.job(&user_id).await.unwrap().models, std::slice::from_ref(&model));

    store.apply(&first, vec![finish()]).await.unwrap();
    assert!(store.delete(&first).await.unwrap().is_empty(), "the other job made it too");
    let refused = store.delete(&second_id).await.unwrap_err().to_string();
    assert!(refused.contains(model.id.as_str()) && refused.contains(user_id.as_str()), "{refused}");
    assert_eq!(store.find_model(model.id.as_str()).await.unwrap().job, second_id);
    store.cancel(&user_id).await.unwrap();
    assert_eq!(store.delete(&second_id).await.unwrap(), std::slice::from_ref(&model.id));
    assert!(matches!(store.find_model(model.id.as_str()).await, Err(StoreError::NotFound { .. })));
    assert!(store.job(&user_id).await.unwrap().models.is_empty());
    let mut late = new_job(None, 1);
    late.models = vec![model.id];
    assert!(matches!(store.submit(late).await, Err(StoreError::NotFound { what: "model", .. })));
}
