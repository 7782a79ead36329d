//! How a worker reaches its coordinator: where it is, the token it wants to see, whom its certificate must be from.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{self, Certificate, ClientTlsConfig, Endpoint},
};

/// A connection that sends the worker's token with every call.
pub type Channel = InterceptedService<transport::Channel, Credentials>;

/// Where the coordinator is, and how it is spoken to.
#[derive(Clone)]
pub struct Access {
    /// `http://host:port`, or `https://host:port` for TLS.
    pub url: String,
    /// Visible ASCII characters.
    pub token: Option<String>,
    /// Certificates (PEM) that are trusted beside the system's.
    pub tls_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Access {
    /// Of a coordinator that asks for nothing.
    pub fn open(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None, tls_ca: None }
    }

    /// What connects to it.
    ///
    /// # Errors
    /// When the URL is none, or the certificates are none.
    pub fn endpoint(&self) -> Result<Endpoint, transport::Error> {
        let endpoint = Endpoint::from_shared(self.url.clone())?;
        if !self.url.starts_with("https:") {
            return Ok(endpoint);
        }
        let mut tls = ClientTlsConfig::new().with_enabled_roots();
        if let Some(ca) = &self.tls_ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        endpoint.tls_config(tls)
    }

    /// The connection with the worker's token.
    pub fn with_token(&self, channel: transport::Channel) -> Channel {
        let token = self.token.as_ref().and_then(|token| format!("Bearer {token}").parse().ok());
        InterceptedService::new(channel, Credentials(token))
    }
}

/// Puts the worker's token on every call.
#[derive(Clone)]
pub struct Credentials(Option<MetadataValue<Ascii>>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A file's token: one line of visible ASCII characters.
///
/// # Errors
/// When it holds something else.
pub fn parse_token(text: &str) -> Result<String, String> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token file holds one token of visible ASCII characters".to_owned());
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_one_word() {
        assert_eq!(parse_token(" abc\n").unwrap(), "abc");
        for bad in ["", "\n", "a b", "ä"] {
            assert!(parse_token(bad).is_err(), "{bad}");
        }
        assert!(
            !format!("{:?}", Access { token: Some("secret".into()), ..Access::open("http://x") })
                .contains("secret")
        );
    }
}
