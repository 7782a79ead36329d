//! Every backend that was found, how far it got, and why it went no further.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cappy_plugin_abi::{Backend, Descriptor, Failure, builtin};

use crate::choice::{ChooseError, Want};
use crate::inspect::{Inspected, inspect};
use crate::library::Mapped;
use crate::refusal::{DiscoverError, Refusal};
use crate::trust;

const FILE_PREFIX: &str = "libcappy_plugin_";

/// Where a backend comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Linked into this program.
    Builtin,
    /// A library.
    File(PathBuf),
}

/// How far a backend got.
pub enum State {
    /// Its file is trusted and declares this host's ABI; none of its code has run.
    Declared,
    /// Mapped, for good, and checked once more.
    Loaded(Mapped),
    /// Made and described.
    Ready {
        /// Shared by all who use it.
        backend: Arc<dyn Backend>,
        /// As it described itself when it was made.
        descriptor: Descriptor,
    },
    /// Not used, and why.
    Refused(Refusal),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared => f.write_str("Declared"),
            Self::Loaded(_) => f.write_str("Loaded"),
            Self::Ready { descriptor, .. } => f.debug_tuple("Ready").field(descriptor).finish(),
            Self::Refused(refusal) => f.debug_tuple("Refused").field(refusal).finish(),
        }
    }
}

/// A backend that was found.
#[derive(Debug)]
pub struct Entry {
    origin: Origin,
    /// `None` for a builtin, and for a file that was refused before it could be read.
    inspected: Option<Inspected>,
    state: State,
}

impl Entry {
    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How far it got.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How far it got, for keeps.
    pub fn into_state(self) -> State {
        self.state
    }

    /// Its name, as described or declared, else its file's.
    pub fn name(&self) -> String {
        match (&self.state, &self.inspected, &self.origin) {
            (State::Ready { descriptor, .. }, _, _) => descriptor.name.clone(),
            (_, Some(inspected), _) => inspected.declaration.name(),
            (_, None, Origin::File(path)) => {
                path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            (_, None, Origin::Builtin) => "builtin".into(),
        }
    }

    /// Its version, as described or declared.
    pub fn version(&self) -> Option<String> {
        match (&self.state, &self.inspected) {
            (State::Ready { descriptor, .. }, _) => Some(descriptor.version.clone()),
            (_, inspected) => inspected.as_ref().map(|it| it.declaration.version()),
        }
    }

    /// Why it is not used, with all causes on one line.
    pub fn reason(&self) -> Option<String> {
        let State::Refused(refusal) = &self.state else { return None };
        let mut text = refusal.to_string();
        let mut source = std::error::Error::source(refusal);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Some(text.replace('\n', " "))
    }

    /// Goes on until `Ready` or `Refused`.
    fn advance(&mut self, torch: Option<&Path>) {
        let before = matches!(self.state, State::Declared | State::Loaded(_));
        while let Some(next) = self.next(torch) {
            self.state = next;
        }
        match (&self.state, before) {
            (State::Ready { descriptor, .. }, true) => tracing::info!(
                backend = descriptor.name,
                version = descriptor.version,
                engine = descriptor.engine_version,
                "backend ready"
            ),
            (_, true) => tracing::warn!(plugin = self.name(), reason = self.reason(), "plugin refused"),
            _ => {}
        }
    }

    fn next(&self, torch: Option<&Path>) -> Option<State> {
        match (&self.state, &self.origin, &self.inspected) {
            (State::Declared, Origin::File(path), Some(inspected)) => {
                Some(Mapped::open(path, inspected, torch).map_or_else(State::Refused, State::Loaded))
            }
            (State::Loaded(mapped), ..) => Some(match mapped.backend() {
                Ok(backend) => State::Ready { descriptor: backend.describe(), backend },
                Err(failure) => State::Refused(Refusal::Failed(failure)),
            }),
            _ => None,
        }
    }
}

/// The backends of one process, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Vec<Entry>,
    torch_lib_dir: Option<PathBuf>,
}

impl Registry {
    /// The folder with libtorch's libraries (`torch/lib` of an installed PyTorch), for plugins that need it. `None`, the
    /// default: `libtorch/torch/lib` in the plugin's folder or one above it.
    pub fn set_torch_lib_dir(&mut self, directory: Option<PathBuf>) {
        self.torch_lib_dir = directory;
    }

    /// Adds a backend that is linked in.
    ///
    /// # Errors
    /// `Internal` when it panics while it describes itself.
    pub fn add_builtin(&mut self, backend: impl Backend + 'static) -> Result<(), Failure> {
        let backend = builtin(backend)?;
        self.add_ready(backend);
        Ok(())
    }

    /// Adds a backend that [`builtin`] has already made.
    pub fn add_ready(&mut self, backend: Arc<dyn Backend>) {
        let descriptor = backend.describe();
        let state = State::Ready { backend, descriptor };
        self.entries.push(Entry { origin: Origin::Builtin, inspected: None, state });
    }

    /// Adds every `libcappy_plugin_*` library of a directory, in the order of their names. Runs none of their code.
    ///
    /// # Errors
    /// When the directory cannot be read. A file that is refused is an entry with its reason.
    pub fn discover(&mut self, directory: &Path) -> Result<(), DiscoverError> {
        let failed = |source| DiscoverError { directory: directory.display().to_string(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_plugin = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.starts_with(FILE_PREFIX) && name.ends_with(std::env::consts::DLL_SUFFIX)
            });
            if is_plugin {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let checked = trust::checked(directory, &path).and_then(|real| Ok((inspect(&real)?, real)));
            self.entries.push(match checked {
                Ok((inspected, real)) => {
                    Entry { origin: Origin::File(real), inspected: Some(inspected), state: State::Declared }
                }
                Err(refusal) => {
                    Entry { origin: Origin::File(path), inspected: None, state: State::Refused(refusal) }
                }
            });
        }
        Ok(())
    }

    /// Opens everything that is declared.
    pub fn open_all(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.advance(self.torch_lib_dir.as_deref()));
    }

    /// Everything that was found.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Everything that was found, for keeps.
    pub fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.entries.into_iter()
    }

    /// The backends that are ready.
    pub fn ready(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.entries.iter().filter_map(|entry| match &entry.state {
            State::Ready { backend, .. } => Some(backend),
            _ => None,
        })
    }

    /// The first backend that offers what is wanted; opens declared ones on the way, only those of the wanted name
    /// when there is one.
    ///
    /// # Errors
    /// When there is none, with each one's reason.
    pub fn choose(&mut self, want: &Want<'_>) -> Result<Arc<dyn Backend>, ChooseError> {
        let mut reasons = Vec::new();
        for entry in &mut self.entries {
            if want.name.is_none_or(|name| name == entry.name()) {
                entry.advance(self.torch_lib_dir.as_deref());
            }
            let reason = match &entry.state {
                State::Ready { backend, descriptor } => match want.lacking(descriptor) {
                    None => return Ok(Arc::clone(backend)),
                    Some(lacking) => lacking,
                },
                State::Refused(_) => format!("was refused: {}", entry.reason().unwrap_or_default()),
                State::Declared | State::Loaded(_) => "has another name".into(),
            };
            reasons.push(format!("`{}` {reason}", entry.name()));
        }
        Err(ChooseError { want: want.to_string(), reasons })
    }
}
