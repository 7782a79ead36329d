//! Brings a wheel here: resumed where an earlier attempt broke off, and of the right content or not at all.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use ureq::{
    Agent,
    http::{StatusCode, header},
    tls::{RootCerts, TlsConfig},
};

/// What `place` is relative to.
const FILES: &str = "https://files.pythonhosted.org/packages";
/// Attempts that bring nothing before it is given up.
const ATTEMPTS: u32 = 6;
/// Between attempts, times their number.
const PAUSE: Duration = Duration::from_secs(1);
/// Silence after which an attempt ends.
const SILENCE: Duration = Duration::from_secs(60);
const COPY_BYTES: usize = 1 << 20;
/// Of a wheel, when only the file is wanted with which it begins.
const BEGINNING_BYTES: u64 = 1 << 16;

/// A file of the package index.
pub struct Wheel {
    /// As the index calls it.
    pub project: &'static str,
    /// Its file name.
    pub file: &'static str,
    /// Folder on the index's file server.
    pub place: &'static str,
    /// Its length in bytes.
    pub size: u64,
    /// Of its content, in hexadecimal.
    pub sha256: &'static str,
}

impl Wheel {
    /// The file in a folder that somebody filled.
    pub fn at_hand(&self, folder: &Path) -> Result<PathBuf> {
        let file = folder.join(self.file);
        if !file.is_file() {
            bail!("{} has no {}", folder.display(), self.file);
        }
        self.check(&file)?;
        Ok(file)
    }

    /// The file in `downloads`, brought from the network where it is not there.
    pub fn fetch(&self, downloads: &Path, index: Option<&str>) -> Result<PathBuf> {
        fs::create_dir_all(downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
        let file = downloads.join(self.file);
        if file.is_file() && self.check(&file).is_ok() {
            return Ok(file);
        }
        let agent = agent();
        let url = self.url(&agent, index)?;
        let part = downloads.join(format!("{}.part", self.file));
        let mut barren = 0;
        loop {
            let before = fs::metadata(&part).map_or(0, |metadata| metadata.len());
            let Err(error) = self.append(&agent, &url, &part) else { break };
            let now = fs::metadata(&part).map_or(0, |metadata| metadata.len());
            barren = if now > before { 0 } else { barren + 1 };
            if barren >= ATTEMPTS {
                return Err(error.context(format!("cannot download {url}; what came so far is kept")));
            }
            eprintln!("\n    broke off: {error:#}; trying again");
            std::thread::sleep(PAUSE * (barren + 1));
        }
        if let Err(error) = self.check(&part) {
            let _ = fs::remove_file(&part);
            return Err(error);
        }
        fs::rename(&part, &file)?;
        Ok(file)
    }

    /// The address under which another index has the file.
    fn look_up(&self, agent: &Agent, index: &str) -> Result<String> {
        let page_url = format!("{}/{}/", index.trim_end_matches('/'), self.project);
        let page = agent
            .get(&page_url)
            .header(header::ACCEPT, "text/html")
            .call()
            .and_then(|mut response| response.body_mut().read_to_string())
            .with_context(|| format!("cannot read {page_url}"))?;
        let link = page
            .split("href=\"")
            .skip(1)
            .filter_map(|rest| rest.split(['"', '#']).next())
            .find(|link| link.rsplit('/').next() == Some(self.file))
            .with_context(|| format!("{page_url} has no {}", self.file))?;
        absolute(&page_url, link).with_context(|| format!("{page_url} has a link that is no address: {link}"))
    }

    /// Brings what is missing of the file.
    fn append(&self, agent: &Agent, url: &str, part: &Path) -> Result<()> {
        let mut out = File::options().create(true).append(true).open(part)?;
        let mut have = out.seek(SeekFrom::End(0))?;
        if have > self.size {
            out.set_len(0)?;
            have = 0;
        }
        if have == self.size {
            return Ok(());
        }
        let mut request = agent.get(url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let response = request.call()?;
        if response.status() != StatusCode::PARTIAL_CONTENT && have > 0 {
            // A server that sends everything whatever was asked for.
            out.set_len(0)?;
            have = 0;
        }
        let mut body = response.into_body().into_with_config().limit(self.size - have + 1).reader();
        let mut buffer = vec![0; COPY_BYTES];
        let mut told = Told::new(self.file, self.size, have);
        loop {
            let count = body.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count])?;
            have += count as u64;
            told.tell(have);
        }
        eprintln!();
        if have != self.size {
            bail!("{have} of {} bytes came", self.size);
        }
        Ok(())
    }

    fn check(&self, file: &Path) -> Result<()> {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(file)?, &mut hash)?;
        expect(hash, self.sha256, &file.display())
    }

    fn url(&self, agent: &Agent, index: Option<&str>) -> Result<String> {
        match index {
            None => Ok(format!("{FILES}/{}/{}", self.place, self.file)),
            Some(index) => self.look_up(agent, index),
        }
    }
}

/// A small file with which a large wheel begins; the rest of the wheel is left where it is.
pub struct Beginning {
    /// Of the wheel nothing but its names is needed: no size, no hash.
    pub wheel: Wheel,
    /// The file's name in the wheel.
    pub member: &'static str,
    /// Of its content, in hexadecimal.
    pub sha256: &'static str,
}

impl Beginning {
    /// The content, from a wheel in a folder that somebody filled.
    pub fn at_hand(&self, folder: &Path) -> Result<Vec<u8>> {
        let file = folder.join(self.wheel.file);
        let wheel = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        self.read(wheel).with_context(|| file.display().to_string())
    }

    /// The content, from the network.
    pub fn fetch(&self, index: Option<&str>) -> Result<Vec<u8>> {
        let agent = agent();
        let url = self.wheel.url(&agent, index)?;
        let mut attempt = 1;
        loop {
            // A server that sends more than was asked for is not listened to for longer.
            let answer = agent
                .get(&url)
                .header(header::RANGE, format!("bytes=0-{}", BEGINNING_BYTES - 1))
                .call()
                .map_err(Into::into)
                .and_then(|answer| self.read(answer.into_body().into_reader().take(BEGINNING_BYTES)));
            match answer {
                Err(_) if attempt < ATTEMPTS => {}
                answer => return answer.with_context(|| url.clone()),
            }
            std::thread::sleep(PAUSE * attempt);
            attempt += 1;
        }
    }

    fn read(&self, mut wheel: impl io::Read) -> Result<Vec<u8>> {
        let first = zip::read::read_zipfile_from_stream(&mut wheel)?;
        let mut first = first.filter(|first| first.name().is_ok_and(|name| name == self.member));
        let first = first.as_mut().with_context(|| format!("does not begin with {}", self.member))?;
        let mut content = Vec::new();
        first.read_to_end(&mut content)?;
        expect(Sha256::new_with_prefix(&content), self.sha256, &self.member)?;
        Ok(content)
    }
}

fn expect(hash: Sha256, sha256: &str, what: &dyn std::fmt::Display) -> Result<()> {
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != sha256 {
        bail!("{what} has SHA-256 {found}, not {sha256}");
    }
    Ok(())
}

/// Trusts whom the machine trusts where it says so, so that a network with an authority of its own works too.
fn agent() -> Agent {
    const BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let told =
        std::env::var_os("SSL_CERT_FILE").is_some() || BUNDLES.iter().any(|file| Path::new(file).exists());
    let roots = if told { RootCerts::PlatformVerifier } else { RootCerts::WebPki };
    Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .build()
        .into()
}

/// A link of a page, from the root.
fn absolute(page: &str, link: &str) -> Option<String> {
    if link.starts_with("https://") || link.starts_with("http://") {
        return Some(link.to_owned());
    }
    let (scheme, rest) = page.split_once("://")?;
    let (host, path) = rest.split_once('/')?;
    if let Some(link) = link.strip_prefix('/') {
        return Some(format!("{scheme}://{host}/{link}"));
    }
    let mut folders: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    for name in link.split('/') {
        match name {
            ".." => drop(folders.pop()),
            "." | "" => {}
            name => folders.push(name),
        }
    }
    Some(format!("{scheme}://{host}/{}", folders.join("/")))
}

/// Progress on the terminal, or a line now and then where there is none.
struct Told {
    file: &'static str,
    size: u64,
    start: (Instant, u64),
    last: Instant,
    terminal: bool,
}

impl Told {
    fn new(file: &'static str, size: u64, have: u64) -> Self {
        use std::io::IsTerminal as _;
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        if !terminal {
            eprint!("downloading {file}, {} MiB", size >> 20);
        }
        Self { file, size, start: (now, have), last: now, terminal }
    }

    fn tell(&mut self, have: u64) {
        if !self.terminal || (self.last.elapsed() < Duration::from_millis(200) && have < self.size) {
            return;
        }
        self.last = Instant::now();
        let speed = (have - self.start.1) as f64 / self.start.0.elapsed().as_secs_f64().max(1e-3);
        let left = (self.size - have) as f64 / speed.max(1.0);
        eprint!("\r{}: {} of {} MiB, {left:.0} s left \x1b[K", self.file, have >> 20, self.size >> 20);
    }
}

#[cfg(test)]
mod tests {
    use super::absolute;

    #[test]
    fn links_are_followed_from_their_page() {
        let page = "https://mirror.example/pypi/simple/torch/";
        for (link, url) in [
            ("https://files.example/a.whl", "https://files.example/a.whl"),
            ("/packages/a.whl", "https://mirror.example/packages/a.whl"),
            ("../../packages/a.whl", "https://mirror.example/pypi/packages/a.whl"),
            ("a.whl", "https://mirror.example/pypi/simple/torch/a.whl"),
        ] {
            assert_eq!(absolute(page, link).as_deref(), Some(url));
        }
    }
}
