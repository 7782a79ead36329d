//! `--endpoint`: a generator that is a language model behind an OpenAI-compatible HTTP endpoint.

use std::{fs, path::Path};

use cappy_process::directories;
use cappy_proto::v1::Endpoint;
use clap::Args;

use crate::{
    arguments::Global,
    failure::{Context as _, Failure, Outcome},
};

/// How a model behind an endpoint is named: `openai:NAME`.
pub const PREFIX: &str = "openai:";

/// Hosts that the user of this data directory has named with `--endpoint`, a line each. The embedded cluster's worker
/// sends the key to no others.
pub const HOSTS_FILE: &str = "endpoint-hosts";

/// Where a generator is that no worker loads; flags of every verb that generates.
#[derive(Clone, Debug, Default, Args)]
pub struct EndpointFlags {
    /// OpenAI-compatible endpoint of `--model openai:NAME`, such as https://api.openai.com/v1 (the workers need
    /// OPENAI_API_KEY)
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Requests a minute that the endpoint is asked at most [default: as many as it allows]
    #[arg(long, value_name = "N", requires = "endpoint", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
}

impl EndpointFlags {
    /// The endpoint of `model`; `None` for a model that workers load.
    ///
    /// Where the embedded cluster is used, its worker is allowed to send the key to the endpoint's host from here on.
    ///
    /// # Errors
    /// A name and a URL that do not belong together, or a URL that is none.
    pub fn resolve(&self, model: Option<&str>, global: &Global) -> Outcome<Option<Endpoint>> {
        let endpoint = self.of(model).map_err(Failure::usage)?;
        if let Some(endpoint) = &endpoint
            && (global.local || global.coordinator.is_none())
        {
            allow(global, &endpoint.url)?;
        }
        Ok(endpoint)
    }

    fn of(&self, model: Option<&str>) -> Result<Option<Endpoint>, String> {
        let name = model.and_then(|model| model.strip_prefix(PREFIX));
        let (name, url) = match (name, &self.endpoint) {
            (None, None) => return Ok(None),
            (Some(name), Some(url)) => (name, url),
            (Some(_), None) => {
                return Err(format!(
                    "--model {PREFIX}NAME needs --endpoint URL, such as https://api.openai.com/v1"
                ));
            }
            (None, Some(_)) => {
                return Err(format!(
                    "--endpoint needs --model {PREFIX}NAME, with the name that the endpoint knows"
                ));
            }
        };
        if name.is_empty() {
            return Err(format!("--model {PREFIX}NAME: the name is missing"));
        }
        host_of(url).map_err(|reason| format!("--endpoint: {reason}"))?;
        let requests_per_minute = self.requests_per_minute.unwrap_or(0);
        Ok(Some(Endpoint { url: url.clone(), model: name.to_owned(), requests_per_minute }))
    }
}

/// Host and port of a URL as `--endpoint-hosts` names them: `api.openai.com`, `127.0.0.1:8000`.
fn host_of(url: &str) -> Result<String, String> {
    let wrong = || format!("`{url}` is not a URL such as https://api.openai.com/v1");
    let uri: tonic::transport::Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(wrong());
    }
    if authority.as_str().contains('@') {
        return Err(
            "the URL must not hold a user or a password; the key comes from OPENAI_API_KEY".to_owned()
        );
    }
    Ok(authority.as_str().to_ascii_lowercase())
}

fn allow(global: &Global, url: &str) -> Outcome<()> {
    let host = host_of(url).map_err(Failure::usage)?;
    // Without a home the embedded cluster itself says what to do.
    let Some(dir) = global.data_dir.clone().or_else(directories::default_data_dir) else { return Ok(()) };
    fs::create_dir_all(&dir).context(format!("cannot create the data directory `{}`", dir.display()))?;
    let path = dir.join(HOSTS_FILE);
    let known = fs::read_to_string(&path).unwrap_or_default();
    if known.lines().any(|line| line == host) {
        return Ok(());
    }
    append(&path, &host).context(format!("cannot write `{}`", path.display()))
}

fn append(path: &Path, host: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(fs::File::options().create(true).append(true).open(path)?, "{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_url_belong_together() {
        let of = |endpoint: Option<&str>, model: Option<&str>| {
            let flags =
                EndpointFlags { endpoint: endpoint.map(str::to_owned), requests_per_minute: Some(60) };
            flags.of(model)
        };
        let url = "https://api.openai.com/v1";
        let found = of(Some(url), Some("openai:gpt-x")).unwrap().unwrap();
        assert_eq!((found.url.as_str(), found.model.as_str(), found.requests_per_minute), (url, "gpt-x", 60));
        assert_eq!(of(None, Some("flan-t5-xl")), Ok(None));
        assert_eq!(of(None, None), Ok(None));
        for (endpoint, model, words) in [
            (None, Some("openai:x"), "needs --endpoint"),
            (Some(url), Some("demo"), "needs --model openai:NAME"),
            (Some(url), None, "needs --model openai:NAME"),
            (Some(url), Some("openai:"), "the name is missing"),
            (Some("api.openai.com"), Some("openai:x"), "not a URL"),
            (Some("ftp://x/y"), Some("openai:x"), "not a URL"),
            (Some("https://me:secret@x/v1"), Some("openai:x"), "must not hold a user"),
        ] {
            let reason = of(endpoint, model).unwrap_err();
            assert!(reason.contains(words), "{reason}");
            assert!(!reason.contains("secret"));
        }
    }

    #[test]
    fn hosts_are_remembered_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HOSTS_FILE);
        append(&path, &host_of("http://127.0.0.1:8000/v1").unwrap()).unwrap();
        append(&path, &host_of("https://API.openai.com/v1").unwrap()).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "127.0.0.1:8000\napi.openai.com\n");
    }
}
