//! Where models are cached and how the hub is reached; read from the environment once, at the edge.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Pause before the second attempt at something that failed; each further one is twice as long.
pub const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A hub token. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token as the hub issued it; surrounding white space is cut. `None` if nothing is left, or if it
    /// could not be sent in a header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let sendable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        sendable.then(|| Self(text.to_owned()))
    }

    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Everything that resolving a model depends on besides its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The hub's cache, shared with its Python library: `HF_HUB_CACHE`, else `$HF_HOME/hub`.
    pub cache_dir: PathBuf,
    /// Where converted and demo models and remembered fingerprints are kept: a folder `models` is made inside.
    pub data_dir: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, else the file at `HF_TOKEN_PATH`, else `$HF_HOME/token`.
    pub token: Option<Token>,
    /// `HF_HUB_OFFLINE`: use what is cached, never the network.
    pub offline: bool,
    /// [`RETRY_PAUSE`].
    pub retry_pause: Duration,
}

/// The environment does not say where models are kept.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Neither the variable nor a home directory to derive it from.
    #[error("no home directory is known: set {0}")]
    NoHome(&'static str),
    /// `HF_ENDPOINT` is not an http(s) address.
    #[error("HF_ENDPOINT `{0}` is not a URL that starts with http:// or https://")]
    Endpoint(String),
}

impl HubSettings {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`SettingsError`] when a variable is unusable or no home directory is known.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// Reads the variables that `lookup` knows; an empty variable counts as absent.
    ///
    /// # Errors
    /// As [`HubSettings::from_env`].
    pub fn from_variables(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let truthy = |name: &str| {
            text(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let user_home = set("HOME").map(PathBuf::from);
        let path = |name: &str| set(name).map(|value| expand_home(Path::new(&value), user_home.as_deref()));
        let below_home = |rest: &str, variable| {
            user_home.as_ref().map(|home| home.join(rest)).ok_or(SettingsError::NoHome(variable))
        };

        let hub_home = match (path("HF_HOME"), path("XDG_CACHE_HOME")) {
            (Some(dir), _) => Ok(dir),
            (None, Some(caches)) => Ok(caches.join("huggingface")),
            (None, None) => below_home(".cache/huggingface", "HF_HOME"),
        };
        let cache_dir = match path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")) {
            Some(dir) => dir,
            None => hub_home.as_ref().map_err(SettingsError::clone)?.join("hub"),
        };
        let data_dir = match (path("CAPPY_DATA_DIR"), path("XDG_DATA_HOME")) {
            (Some(dir), _) => dir,
            (None, Some(data)) => data.join("cappy"),
            (None, None) => below_home(".local/share/cappy", "CAPPY_DATA_DIR")?,
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        if !(endpoint.starts_with("http://") || endpoint.starts_with("https://")) {
            return Err(SettingsError::Endpoint(endpoint));
        }
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let file = path("HF_TOKEN_PATH").or_else(|| hub_home.ok().map(|dir| dir.join("token")))?;
            std::fs::read_to_string(file).ok()
        });
        Ok(Self {
            cache_dir,
            data_dir,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.as_deref().and_then(Token::new),
            offline: truthy("HF_HUB_OFFLINE") || truthy("TRANSFORMERS_OFFLINE"),
            retry_pause: RETRY_PAUSE,
        })
    }

    pub(crate) fn models_dir(&self) -> PathBuf {
        self.data_dir.join("models")
    }
}

fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn settings(pairs: &[(&str, &str)]) -> Result<HubSettings, SettingsError> {
        let map: HashMap<String, OsString> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        HubSettings::from_variables(|name| map.get(name).cloned())
    }

    #[test]
    fn directories_follow_the_python_library() {
        let table: &[(&[(&str, &str)], &str)] = &[
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/h"), ("HF_HUB_CACHE", "")], "/h/.cache/huggingface/hub"),
        ];
        for (variables, expected) in table {
            assert_eq!(settings(variables).unwrap().cache_dir, Path::new(expected), "{variables:?}");
        }
        assert_eq!(settings(&[]), Err(SettingsError::NoHome("HF_HOME")));
        assert_eq!(
            settings(&[("HOME", "/h"), ("HF_ENDPOINT", "ftp://x")]),
            Err(SettingsError::Endpoint("ftp://x".into()))
        );
    }

    #[test]
    fn the_token_is_found_in_order_and_never_printed() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        std::fs::write(home.path().join("token"), "from-home\n").unwrap();
        std::fs::write(home.path().join("other"), " from-path ").unwrap();
        let other = home.path().join("other");
        let other = other.to_str().unwrap();
        let base = [("HOME", "/h"), ("HF_HOME", dir)];
        let token = |more: &[(&str, &str)]| settings(&[&base, more].concat()).unwrap().token;
        assert_eq!(token(&[]), Token::new("from-home"));
        assert_eq!(token(&[("HF_TOKEN_PATH", other)]), Token::new("from-path"));
        assert_eq!(token(&[("HF_TOKEN_PATH", other), ("HF_TOKEN", "t0p")]), Token::new("t0p"));
        assert!(!format!("{:?}", settings(&[("HOME", "/h"), ("HF_TOKEN", "t0p")])).contains("t0p"));
        assert_eq!(Token::new("a\nb"), None, "would split a header");
    }
}
