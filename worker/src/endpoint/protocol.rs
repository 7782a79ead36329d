//! The endpoints' protocol: what is sent for a decoding, what an answer must be.
//!
//! Source: OpenAI's API reference, `POST /chat/completions` and `POST /completions`; the fields are those that other
//! servers (vLLM, llama.cpp, SGLang, Ollama) have too. `top_k` is an extension of theirs, and sent only for a decoding
//! that has it.

use cappy_plugin_abi::{Decoding, Method};
use serde_json::{Map, Value, json};

use crate::{compute::Decodings, execution::ExecutionError};

/// Longest text that is taken for an answer.
const MAX_TEXT_BYTES: usize = 256 * 1024;

/// Which of the two requests an endpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Messages in, a message out.
    Chat,
    /// A prompt in, its continuation out.
    Completions,
}

/// What the length limit is called: newer models of OpenAI's refuse the older name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthField {
    /// What every server knows.
    MaxTokens,
    /// What OpenAI's reasoning models want.
    MaxCompletionTokens,
}

/// Where requests go, from what a user gives as `--endpoint`: a URL that ends with `/completions` is taken as it is, any
/// other is the root that `/chat/completions` follows.
pub fn request_url(url: &str) -> (Api, String) {
    let url = url.trim_end_matches('/');
    if url.ends_with("/chat/completions") {
        (Api::Chat, url.to_owned())
    } else if url.ends_with("/completions") {
        (Api::Completions, url.to_owned())
    } else {
        (Api::Chat, format!("{url}/chat/completions"))
    }
}

/// Where an endpoint lists its models.
pub fn models_url(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let root = url.strip_suffix("/completions").unwrap_or(url);
    format!("{}/models", root.strip_suffix("/chat").unwrap_or(root))
}

/// Refuses what endpoints do not have.
///
/// # Errors
/// Names the decoding.
pub fn check(decodings: &Decodings) -> Result<(), ExecutionError> {
    let beam = |decoding: &Decoding| matches!(decoding.method, Method::Beam { .. });
    match decodings.settings.iter().position(beam) {
        None => Ok(()),
        Some(place) => Err(ExecutionError::permanent(
            "invalid_argument",
            format!(
                "decoding `{}`: beam search is not available at an endpoint; use sampling, tempT or toppP",
                decodings.names[place]
            ),
        )),
    }
}

/// The body of a request for `samples` answers.
pub fn body(
    api: Api,
    length: LengthField,
    model: &str,
    prompt: &str,
    decoding: &Decoding,
    samples: u32,
    seed: u64,
) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    put("model", model.into());
    match api {
        Api::Chat => put("messages", json!([{ "role": "user", "content": prompt }])),
        Api::Completions => put("prompt", prompt.into()),
    }
    // The decoder start token counts in a decoding's lengths, and endpoints do not count it.
    let tokens = decoding.max_length.saturating_sub(1).max(1);
    match length {
        LengthField::MaxTokens => put("max_tokens", tokens.into()),
        LengthField::MaxCompletionTokens => put("max_completion_tokens", tokens.into()),
    }
    if let Method::Sample { temperature, top_k, top_p } = decoding.method {
        put("temperature", temperature.into());
        put("top_p", top_p.into());
        if top_k > 0 {
            put("top_k", top_k.into());
        }
    }
    if samples > 1 {
        put("n", samples.into());
    }
    // Some servers read it as a signed 32-bit number.
    put("seed", (seed & 0x7fff_ffff).into());
    Value::Object(body)
}

/// What an endpoint answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// A text a sample.
    pub texts: Vec<String>,
    /// Of the prompt, as the endpoint counts.
    pub input_tokens: u64,
    /// Of the answers, as the endpoint counts.
    pub output_tokens: u64,
}

/// Reads an answer. Choices that cannot be used are left out as long as one can: they are asked for again, those that
/// were paid for are not.
///
/// # Errors
/// Names what is wrong with it, or with its first choice when none can be used.
pub fn read(api: Api, body: &[u8]) -> Result<Reply, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| "not JSON".to_owned())?;
    let choices = value.get("choices").and_then(Value::as_array).ok_or("no `choices`")?;
    if choices.is_empty() {
        return Err("no choices".to_owned());
    }
    let text = |choice: &Value| {
        let text = match api {
            Api::Chat => choice.pointer("/message/content"),
            Api::Completions => choice.get("text"),
        };
        let text = text.and_then(Value::as_str).ok_or("a choice without text")?.trim();
        match text.len() {
            0 => Err("an empty answer".to_owned()),
            bytes if bytes > MAX_TEXT_BYTES => Err(format!("an answer of {bytes} bytes")),
            _ => Ok(text.to_owned()),
        }
    };
    let (mut texts, mut wrong) = (Vec::with_capacity(choices.len()), None);
    for choice in choices {
        match text(choice) {
            Ok(text) => texts.push(text),
            Err(reason) => drop(wrong.get_or_insert(reason)),
        }
    }
    if let Some(reason) = wrong.filter(|_| texts.is_empty()) {
        return Err(reason);
    }
    let count = |name| value.pointer(name).and_then(Value::as_u64).unwrap_or(0);
    Ok(Reply {
        texts,
        input_tokens: count("/usage/prompt_tokens"),
        output_tokens: count("/usage/completion_tokens"),
    })
}

#[cfg(test)]
mod tests {
    use cappy_plugin_abi::MinLengthRule;

    use super::*;

    fn decoding(temperature: f64, top_k: u32, top_p: f64) -> Decoding {
        Decoding {
            key: 1,
            method: Method::Sample { temperature, top_k, top_p },
            num_samples: 4,
            min_length: 3,
            max_length: 64,
            min_length_rule: MinLengthRule::Pytorch,
        }
    }

    #[test]
    fn urls_say_which_request_is_meant() {
        for (url, api, request, models) in [
            ("https://x/v1", Api::Chat, "https://x/v1/chat/completions", "https://x/v1/models"),
            ("https://x/v1/", Api::Chat, "https://x/v1/chat/completions", "https://x/v1/models"),
            ("http://x/chat/completions", Api::Chat, "http://x/chat/completions", "http://x/models"),
            ("http://x/v1/completions", Api::Completions, "http://x/v1/completions", "http://x/v1/models"),
        ] {
            assert_eq!(request_url(url), (api, request.to_owned()));
            assert_eq!(models_url(url), models);
        }
    }

    #[test]
    fn decodings_become_the_protocols_fields() {
        let chat = body(Api::Chat, LengthField::MaxTokens, "m", "hi", &decoding(0.9, 0, 1.0), 4, u64::MAX);
        assert_eq!(
            chat,
            json!({
                "model": "m", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 63, "temperature": 0.9,
                "top_p": 1.0, "n": 4, "seed": 0x7fff_ffff_u64,
            })
        );
        let plain = body(
            Api::Completions,
            LengthField::MaxCompletionTokens,
            "m",
            "hi",
            &decoding(1.0, 40, 0.95),
            1,
            7,
        );
        assert_eq!(
            plain,
            json!({
                "model": "m", "prompt": "hi", "max_completion_tokens": 63, "temperature": 1.0, "top_p": 0.95,
                "top_k": 40, "seed": 7,
            })
        );
        let beam = Decoding {
            method: Method::Beam { num_beams: 4, length_penalty: 1.0, early_stopping: false },
            ..decoding(1.0, 0, 1.0)
        };
        let decodings =
            Decodings { names: vec!["beam4".into()], settings: vec![beam], max_source_tokens: 0, seed: 1 };
        assert!(check(&decodings).unwrap_err().message.contains("`beam4`: beam search is not available"));
    }

    #[test]
    fn answers_are_read_and_nonsense_is_named() {
        let chat = br#"{"choices": [{"message": {"content": " a\n"}}, {"message": {"content": "b"}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3}}"#;
        let reply = read(Api::Chat, chat).unwrap();
        assert_eq!(reply, Reply { texts: vec!["a".into(), "b".into()], input_tokens: 7, output_tokens: 3 });
        assert_eq!(read(Api::Completions, br#"{"choices": [{"text": "a"}]}"#).unwrap().texts, ["a"]);
        let mixed = br#"{"choices": [{"text": " "}, {"text": "a"}, {}, {"text": "b"}]}"#;
        assert_eq!(read(Api::Completions, mixed).unwrap().texts, ["a", "b"]);
        let long =
            format!(r#"{{"choices": [{{"message": {{"content": "{}"}}}}]}}"#, "x".repeat(MAX_TEXT_BYTES + 1));
        for (body, named) in [
            ("<html>busy</html>", "not JSON"),
            ("", "not JSON"),
            ("[]", "no `choices`"),
            (r#"{"choices": []}"#, "no choices"),
            (r#"{"choices": "x"}"#, "no `choices`"),
            (r#"{"choices": [{}]}"#, "a choice without text"),
            (r#"{"choices": [{"message": {"content": null}}]}"#, "a choice without text"),
            (r#"{"choices": [{"message": {"content": " \n"}}]}"#, "an empty answer"),
            (long.as_str(), "an answer of 262145 bytes"),
        ] {
            assert_eq!(read(Api::Chat, body.as_bytes()).unwrap_err(), named, "{:.60}", body);
        }
    }
}
