//! The hub's HTTP protocol: listing a repository, describing a file, reading it from an offset.
//!
//! Redirects are followed by hand, because the token must reach the hub and nobody else, and because a redirect to
//! storage carries the file's hash and size in its own headers.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::DownloadError;
use crate::cache::is_commit;
use crate::config::CONFIG_FILE;
use crate::progress::Progress;
use crate::settings::{HubSettings, Token};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// A transfer that stands still this long is broken off and resumed.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 8;
/// A listing names every file once.
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// Attempts without any progress before giving up.
pub(super) const ATTEMPTS: u32 = 5;
/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A conversation about one repository.
pub(super) struct Protocol<'a> {
    agent: Agent,
    pub endpoint: &'a str,
    token: Option<&'a Token>,
    pub repo: &'a str,
    first_pause: Duration,
    progress: &'a dyn Progress,
}

/// What a repository has at a commit.
pub(super) enum Listing {
    Files {
        commit: String,
        files: HashSet<String>,
    },
    /// A mirror without the listing: ask for each file.
    Unlisted {
        commit: String,
    },
}

impl Listing {
    pub fn commit(&self) -> &str {
        match self {
            Self::Files { commit, .. } | Self::Unlisted { commit } => commit,
        }
    }
}

/// What the hub says about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileInfo {
    pub commit: String,
    /// SHA-256 of the content for large files, git's hash for small ones.
    pub etag: String,
    pub size: u64,
}

/// A failed attempt.
pub(super) enum Attempt {
    /// Another one may succeed.
    Again {
        reason: String,
        pause: Option<Duration>,
    },
    Final(DownloadError),
}

impl<'a> Protocol<'a> {
    pub fn new(settings: &'a HubSettings, repo: &'a str, progress: &'a dyn Progress) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .user_agent(concat!("cappy/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: Agent::new_with_config(config),
            endpoint: &settings.endpoint,
            token: settings.token.as_ref(),
            repo,
            first_pause: settings.retry_pause,
            progress,
        }
    }

    /// The commit of a revision and its files.
    pub fn list(&self, revision: &str) -> Result<Listing, DownloadError> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, self.repo, escape(revision));
        let listed = self.persistently(|| {
            let mut response = self.send(Method::Get(0), &url)?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND if code(&response) == "RevisionNotFound" => {
                    return Err(Attempt::Final(self.no_revision(revision)));
                }
                // A mirror may serve files only; a hub names the reason.
                StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED if code(&response).is_empty() => {
                    return Ok(None);
                }
                _ => return Err(self.refusal(&response)),
            }
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
            let body = body.map_err(|error| Attempt::Again { reason: error.to_string(), pause: None })?;
            let value: Value =
                serde_json::from_slice(&body).map_err(|_| self.strange("the listing is not JSON"))?;
            let commit = value["sha"].as_str().filter(|sha| is_commit(sha));
            let commit = commit.ok_or_else(|| self.strange("the listing has no commit"))?.to_owned();
            let files = value["siblings"].as_array().map(Vec::as_slice).unwrap_or(&[]);
            let files =
                files.iter().filter_map(|file| file["rfilename"].as_str().map(str::to_owned)).collect();
            Ok(Some(Listing::Files { commit, files }))
        })?;
        if let Some(listing) = listed {
            return Ok(listing);
        }
        match self.describe(revision, CONFIG_FILE)? {
            Some(info) => Ok(Listing::Unlisted { commit: info.commit }),
            None => Err(DownloadError::no_repository(self.repo, self.endpoint)),
        }
    }

    /// Hash and size of a file; `None` if there is none of this name.
    pub fn describe(&self, revision: &str, file: &str) -> Result<Option<FileInfo>, DownloadError> {
        let url = self.file_url(revision, file);
        self.persistently(|| {
            let response = self.send(Method::Head, &url)?;
            let status = response.status();
            if status == StatusCode::NOT_FOUND && matches!(code(&response), "" | "EntryNotFound") {
                return Ok(None);
            }
            if status == StatusCode::NOT_FOUND && code(&response) == "RevisionNotFound" {
                return Err(Attempt::Final(self.no_revision(revision)));
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(&response));
            }
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let commit = header("x-repo-commit").filter(|commit| is_commit(commit));
            let etag = header("x-linked-etag").or_else(|| header("etag")).and_then(plain_etag);
            let length = if status.is_success() { header("content-length") } else { None };
            let size = header("x-linked-size").or(length).and_then(|size| size.parse().ok());
            match (commit, etag, size) {
                (Some(commit), Some(etag), Some(size)) => {
                    Ok(Some(FileInfo { commit: commit.to_owned(), etag: etag.to_owned(), size }))
                }
                _ => Err(self.strange(&format!("`{file}` came without commit, hash or size")).into()),
            }
        })
    }

    /// Starts reading a file at `offset`; the offset at which the answer really starts: 0 or the one asked for.
    pub fn open(&self, commit: &str, file: &str, offset: u64) -> Result<(u64, Body), Attempt> {
        let mut url = self.file_url(commit, file);
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::Get(offset), &url)?;
            match response.status() {
                StatusCode::OK => return Ok((0, response.into_body())),
                StatusCode::PARTIAL_CONTENT => {
                    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
                    let start: Option<u64> =
                        range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                    return match start {
                        Some(start) if start == offset => Ok((offset, response.into_body())),
                        _ => Err(self.strange("a partial answer starts elsewhere").into()),
                    };
                }
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Err(self.strange("the part that is missing cannot be had").into());
                }
                status if status.is_redirection() => url = self.target(&url, &response)?,
                _ => return Err(self.refusal(&response)),
            }
        }
        Err(self.strange("too many redirects").into())
    }

    /// One request. Redirects inside the hub (renamed repositories) are followed; those that leave it are returned.
    fn send(&self, method: Method, url: &str) -> Result<Response<Body>, Attempt> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get(0) => self.agent.get(&url),
                Method::Get(offset) => self.agent.get(&url).header("range", format!("bytes={offset}-")),
            };
            // Compressed, neither lengths nor offsets would mean anything.
            request = request.header("accept-encoding", "identity");
            if let Some(token) = self.token
                && same_origin(&url, self.endpoint)
            {
                request = request.header("authorization", token.authorization());
            }
            let response = request.call().map_err(|error| match error {
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    Attempt::Final(self.strange("a bad address"))
                }
                other => Attempt::Again { reason: other.to_string(), pause: None },
            })?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = self.target(&url, &response)?;
            let stays = same_origin(&target, self.endpoint);
            if !stays || response.headers().contains_key("x-linked-etag") {
                return Ok(response);
            }
            url = target;
        }
        Err(self.strange("too many redirects").into())
    }

    /// Where a redirect leads, as an absolute address.
    fn target(&self, from: &str, response: &Response<Body>) -> Result<String, Attempt> {
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.strange("a redirect leads nowhere"))?;
        if location.starts_with("http://") || location.starts_with("https://") {
            // What was asked for in confidence is not sent in the clear.
            if from.starts_with("https://") && location.starts_with("http://") {
                return Err(self.strange("a redirect leaves https").into());
            }
            return Ok(location.to_owned());
        }
        let uri: Uri = from.parse().map_err(|_| self.strange("a bad address"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) if location.starts_with('/') && !location.starts_with("//") => {
                Ok(format!("{scheme}://{authority}{location}"))
            }
            _ => Err(self.strange("a redirect leads nowhere").into()),
        }
    }

    fn file_url(&self, revision: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(escape).collect();
        format!("{}/{}/resolve/{}/{}", self.endpoint, self.repo, escape(revision), file.join("/"))
    }

    /// What an answer that is no success means.
    fn refusal(&self, response: &Response<Body>) -> Attempt {
        let (repo, endpoint) = (self.repo.to_owned(), self.endpoint.to_owned());
        let status = response.status();
        Attempt::Final(match (status.as_u16(), code(response)) {
            (_, "GatedRepo") => DownloadError::Gated { repo, endpoint },
            (_, "RepoNotFound") => DownloadError::no_repository(&repo, &endpoint),
            // Without a token the hub does not tell a private repository from none.
            (401, _) if self.token.is_none() => DownloadError::no_repository(&repo, &endpoint),
            (401 | 403, _) => DownloadError::Token { repo, endpoint },
            (404, _) => DownloadError::no_repository(&repo, &endpoint),
            (408 | 429 | 500..=599, _) => {
                let seconds =
                    response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
                let pause = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_PAUSE));
                return Attempt::Again { reason: format!("it answers {status}"), pause };
            }
            _ => self.strange(&format!("status {status}")),
        })
    }

    fn no_revision(&self, revision: &str) -> DownloadError {
        DownloadError::NoRevision { repo: self.repo.to_owned(), revision: revision.to_owned() }
    }

    pub fn strange(&self, reason: &str) -> DownloadError {
        DownloadError::Protocol { endpoint: self.endpoint.to_owned(), reason: reason.to_owned() }
    }

    /// Tries until it works, fails for good, or has failed [`ATTEMPTS`] times.
    fn persistently<T>(&self, mut attempt: impl FnMut() -> Result<T, Attempt>) -> Result<T, DownloadError> {
        for failed in 1.. {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again { reason, .. }) if failed == ATTEMPTS => {
                    return Err(DownloadError::Unreachable { endpoint: self.endpoint.to_owned(), reason });
                }
                Err(Attempt::Again { reason, pause }) => self.pause(failed, &reason, pause),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Waits before attempt number `failed + 1`, twice as long each time.
    pub fn pause(&self, failed: u32, reason: &str, asked: Option<Duration>) {
        let pause = asked.unwrap_or(self.first_pause * (1 << (failed - 1).min(6)));
        self.progress.note(&format!("{}: {reason}, trying again", self.endpoint));
        sleep(pause);
    }
}

impl From<DownloadError> for Attempt {
    fn from(error: DownloadError) -> Self {
        Self::Final(error)
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    /// From this byte on.
    Get(u64),
}

/// The hub's name for what went wrong.
fn code(response: &Response<Body>) -> &str {
    response.headers().get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// An etag becomes a file name, so it must be a plain word.
fn plain_etag(etag: &str) -> Option<&str> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (!etag.is_empty() && etag.len() <= 128 && etag.bytes().all(plain)).then_some(etag)
}

/// Same scheme, host and port.
fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_owned();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    matches!((origin(a), origin(b)), (Some(a), Some(b)) if a == b)
}

/// Percent-encodes a path segment.
fn escape(segment: &str) -> String {
    let mut text = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_one_origin_only() {
        let hub = "https://huggingface.co";
        for same in ["https://huggingface.co/x", "https://HuggingFace.co:443/y?z"] {
            assert!(same_origin(same, hub), "{same}");
        }
        for other in [
            "http://huggingface.co/x",
            "https://huggingface.co.evil.org/x",
            "https://cdn.huggingface.co/x",
            "https://huggingface.co:8443/x",
            "https://huggingface.co@evil.org/x",
            "nonsense",
        ] {
            assert!(!same_origin(other, hub), "{other}");
        }
    }

    #[test]
    fn etags_become_safe_file_names() {
        assert_eq!(plain_etag("\"abc-123\""), Some("abc-123"));
        assert_eq!(plain_etag("W/\"abc\""), Some("abc"));
        for bad in ["", "\"\"", "../x", "a/b", "a b", &"a".repeat(200)] {
            assert_eq!(plain_etag(bad), None, "{bad}");
        }
        assert_eq!(escape("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
    }
}
