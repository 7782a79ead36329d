//! Which hosts a worker asks, and gives its key to.

use std::{fs, path::PathBuf};

use tonic::transport::Uri;

/// Hosts that the worker's operator has allowed.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts {
    /// `api.openai.com` (any port), `127.0.0.1:8000`, or `*` (every host).
    pub named: Vec<String>,
    /// More of them, a line each, in a file that may grow: the embedded cluster's user names hosts as it goes.
    pub file: Option<PathBuf>,
}

impl AllowedHosts {
    /// Whether a URL's `host` or `host:port` is one of them.
    pub fn allows(&self, authority: &str) -> bool {
        let host = without_port(authority);
        let fits = |allowed: &str| {
            let allowed = allowed.trim().to_ascii_lowercase();
            allowed == "*" || allowed == authority || allowed == host
        };
        let listed = || self.file.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        self.named.iter().any(|allowed| fits(allowed))
            || listed().lines().any(|line| !line.is_empty() && fits(line))
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// `host` or `host:port` of a URL, in lower case.
///
/// # Errors
/// Says what is wrong with the URL, without repeating what may be a secret in it.
pub fn authority(url: &str) -> Result<String, &'static str> {
    let wrong = "has no URL such as https://api.openai.com/v1";
    let uri: Uri = url.parse().map_err(|_| wrong)?;
    let authority = uri.authority().ok_or(wrong)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(wrong);
    }
    if authority.as_str().contains('@') {
        return Err("has a URL with a user or a password: the key comes from the worker's environment");
    }
    Ok(authority.as_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_hosts_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        let hosts = AllowedHosts {
            named: vec!["API.openai.com".into(), "127.0.0.1:8000".into(), "[::1]".into()],
            file: Some(file.clone()),
        };
        for (url, allowed) in [
            ("https://api.openai.com/v1", true),
            ("https://api.OpenAI.com:8443/v1", true),
            ("https://api.openai.com.evil.example/v1", false),
            ("https://evil.example/api.openai.com", false),
            ("http://127.0.0.1:8000/v1", true),
            ("http://127.0.0.1:8001/v1", false),
            ("http://127.0.0.1/v1", false),
            ("http://[::1]:9/v1", true),
            ("http://mine.example/v1", false),
        ] {
            assert_eq!(hosts.allows(&authority(url).unwrap()), allowed, "{url}");
        }
        fs::write(&file, "\nmine.example\n").unwrap();
        assert!(hosts.allows("mine.example") && !hosts.allows(""), "the file may grow");
        assert!(AllowedHosts { named: vec!["*".into()], file: None }.allows("anything:1"));
        for url in ["", "api.openai.com", "ftp://x/", "https://", "https://user:secret@api.openai.com/v1"] {
            let reason = authority(url).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
