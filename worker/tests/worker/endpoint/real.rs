//! A server of one's own, where there is one.

use cappy_plugin_abi::Unattended;
use cappy_proto::v1;
use cappy_worker::{
    compute::Decodings,
    endpoint::{AllowedHosts, EndpointSettings, Endpoints, Key},
    settings::{decodings, endpoint_settings},
};

use super::{generate, texts};

/// See `tools/endpoint`.
#[test]
fn a_real_server() {
    let Ok(url) = std::env::var("CAPPY_TEST_ENDPOINT") else {
        println!("skipped: CAPPY_TEST_ENDPOINT names no server (tools/endpoint says how to start one)");
        return;
    };
    let model = std::env::var("CAPPY_TEST_ENDPOINT_MODEL").unwrap_or_else(|_| "tiny".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let hosts = AllowedHosts { named: vec!["*".into()], file: None };
    let key = std::env::var("OPENAI_API_KEY").ok().as_deref().and_then(Key::new);
    let settings = EndpointSettings { hosts, key, ..EndpointSettings::default() };
    let endpoints = Endpoints::new(settings, dir.path().join("answers"));
    let endpoint = v1::Endpoint { url, model, requests_per_minute: 0 };
    endpoints.probe(&endpoint).unwrap();
    let decodings = settings_of_a_few_samples();
    let prompts = ["Say something.", "What is two and two?", "Sort the words: pear fig apple"];
    let rows = generate(&endpoints, &endpoint, &prompts, &decodings, &Unattended).unwrap();
    for (row, answered) in &rows {
        println!("{row}: {:?} {:?}", texts(answered), answered.failures);
    }
    assert!(rows.values().all(|row| texts(row).iter().all(|list| list.len() == 2)));
    assert_eq!(generate(&endpoints, &endpoint, &prompts, &decodings, &Unattended).unwrap(), rows, "kept");
}

fn settings_of_a_few_samples() -> Decodings {
    let mut settings = endpoint_settings();
    settings.decodings.iter_mut().for_each(|decoding| decoding.num_samples = 2);
    decodings(&settings).unwrap()
}
