//! What templates written for Python expect of their values, where MiniJinja differs from Jinja2.
//!
//! Lists and dicts are objects that can be changed in place ([`List`], [`Dict`]); literals become such objects because
//! `literals.rs` rewrites the source, and `loops.rs` makes loop filters lazy. Everything is printed as Python prints it ([`text`]). `filters.rs` and
//! `methods.rs` hold what MiniJinja lacks or does otherwise. One rendering's objects and random draws belong to a
//! [`Scratch`].

mod dict;
mod filters;
mod list;
mod literals;
mod loops;
mod methods;
mod scratch;
pub(super) mod text;
mod values;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

pub(super) use scratch::Scratch;
pub(super) use values::{SEPARATOR, context_of, unprotect};

use dict::Dict;
use list::List;

/// Work that one rendering may do: about one unit an instruction, and one for 64 bytes of text made.
///
/// The heaviest real templates walk a few thousand tokens; this allows a hundred times that.
const FUEL: u64 = 2_000_000;

/// A template's source, as MiniJinja has to read it to do what Jinja2 does.
pub(super) fn translated(source: &str) -> String {
    loops::with_lazy_filters(&literals::with_live_literals(source)).into_owned()
}

/// An environment without templates that renders as Jinja2 does.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&text_of(value)?).map_err(Error::from),
    });
    environment.set_unknown_method_callback(methods::call);
    filters::register(&mut environment);
    environment
}

/// [`text::to_str`] within the engine.
fn text_of(value: &Value) -> Result<String, Error> {
    text::to_str(value).map_err(|_| Error::from(ErrorKind::OutOfFuel))
}

#[cfg(test)]
mod tests;
