//! Which backend runs a model: a pure function over their descriptions.

use std::fmt;

use cappy_plugin_abi::{Descriptor, GPU_SCORING_ONLY};

/// Which of a backend's interfaces is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// [`cappy_plugin_abi::Scorer`].
    Scorer,
    /// [`cappy_plugin_abi::Generator`].
    Generator,
    /// [`cappy_plugin_abi::Trainer`].
    Trainer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scorer => "scorer",
            Self::Generator => "generator",
            Self::Trainer => "trainer",
        })
    }
}

/// What a backend must offer.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// The interface.
    pub role: Role,
    /// The backend's name; `None`: any.
    pub name: Option<&'a str>,
    /// `model_type` of the model's configuration.
    pub architecture: Option<&'a str>,
    /// `None` or `auto`: any.
    pub dtype: Option<&'a str>,
    /// `cpu`, `cuda:0`; `None`: any.
    pub device: Option<&'a str>,
}

impl Want<'_> {
    /// Any backend with an interface.
    pub const fn new(role: Role) -> Self {
        Self { role, name: None, architecture: None, dtype: None, device: None }
    }

    /// What `descriptor` lacks, in words; `None`: nothing.
    pub(crate) fn lacking(&self, descriptor: &Descriptor) -> Option<String> {
        let has = |all: &[String], wanted: &str| all.iter().any(|it| it == wanted);
        if let Some(name) = self.name
            && name != descriptor.name
        {
            return Some("has another name".into());
        }
        let architectures = match self.role {
            Role::Scorer | Role::Trainer => &descriptor.scorer_architectures,
            Role::Generator => &descriptor.generator_architectures,
        };
        if architectures.is_empty() || (self.role == Role::Trainer && !has(&descriptor.features, "training"))
        {
            return Some(format!("has no {}s", self.role));
        }
        let on_gpu = self.device.is_some_and(|device| device != "cpu");
        if on_gpu && self.role != Role::Scorer && has(&descriptor.features, GPU_SCORING_ONLY) {
            return Some(format!("has {}s on the cpu only", self.role));
        }
        let lists = [
            ("architecture", self.architecture, architectures),
            ("dtype", self.dtype.filter(|&it| it != "auto"), &descriptor.dtypes),
            ("device", self.device, &descriptor.devices),
        ];
        lists.into_iter().find_map(|(what, wanted, offered)| {
            let wanted = wanted.filter(|wanted| !has(offered, wanted))?;
            Some(format!("has {what} {}, not `{wanted}`", offered.join(", ")))
        })
    }
}

impl fmt::Display for Want<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.role)?;
        let parts = [
            ("architecture", self.architecture),
            ("dtype", self.dtype),
            ("device", self.device),
            ("backend", self.name),
        ];
        for (what, wanted) in parts {
            if let Some(wanted) = wanted {
                write!(f, ", {what} `{wanted}`")?;
            }
        }
        Ok(())
    }
}

/// No backend offers what is wanted.
#[derive(Debug, thiserror::Error)]
#[error("no backend for {want}: {}", if .reasons.is_empty() { "none was found".into() } else { .reasons.join("; ") })]
pub struct ChooseError {
    /// What was wanted.
    pub want: String,
    /// Each backend's name and what it lacks, or why it was refused.
    pub reasons: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_measured_by_what_is_wanted() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let candle = Descriptor {
            name: "candle".into(),
            devices: words(&["cpu"]),
            dtypes: words(&["f32", "bf16"]),
            scorer_architectures: words(&["roberta", "bert"]),
            generator_architectures: words(&["t5"]),
            features: words(&["training"]),
            ..Descriptor::default()
        };
        let silent = Descriptor { features: vec![], generator_architectures: vec![], ..candle.clone() };
        let scoring = Descriptor {
            devices: words(&["cpu", "cuda:0"]),
            features: words(&["training", GPU_SCORING_ONLY]),
            ..candle.clone()
        };
        let scorer = Want::new(Role::Scorer);
        let on = |device, role| Want { device: Some(device), ..Want::new(role) };
        let cases: [(Want<'_>, &Descriptor, Option<&str>); 14] = [
            (on("cuda:0", Role::Scorer), &scoring, None),
            (on("cpu", Role::Generator), &scoring, None),
            (on("cuda:0", Role::Generator), &scoring, Some("has generators on the cpu only")),
            (on("cuda:0", Role::Trainer), &scoring, Some("has trainers on the cpu only")),
            (scorer, &candle, None),
            (Want { architecture: Some("roberta"), dtype: Some("auto"), ..scorer }, &candle, None),
            (
                Want { name: Some("candle"), dtype: Some("bf16"), device: Some("cpu"), ..scorer },
                &candle,
                None,
            ),
            (Want { name: Some("libtorch"), ..scorer }, &candle, Some("has another name")),
            (
                Want { architecture: Some("t5"), ..scorer },
                &candle,
                Some("has architecture roberta, bert, not `t5`"),
            ),
            (Want { dtype: Some("int8"), ..scorer }, &candle, Some("has dtype f32, bf16, not `int8`")),
            (Want { device: Some("cuda:0"), ..scorer }, &candle, Some("has device cpu, not `cuda:0`")),
            (Want { architecture: Some("t5"), ..Want::new(Role::Generator) }, &candle, None),
            (Want::new(Role::Generator), &silent, Some("has no generators")),
            (Want::new(Role::Trainer), &silent, Some("has no trainers")),
        ];
        for (want, descriptor, lacking) in cases {
            assert_eq!(want.lacking(descriptor).as_deref(), lacking, "{want}");
        }
    }
}
