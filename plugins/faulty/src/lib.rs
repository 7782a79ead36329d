//! A backend that misbehaves on demand, for tests of everything that must survive one.
//!
//! It is the echo backend (same models) under the name `faulty`, with a [`Plan`] of faults: `METHOD:FAULT`, several
//! separated by commas. The plan is the option `"fault"` of a load, or else the environment variable `CAPPY_FAULTY`
//! of the process (the factory and `describe` have only that). For instance
//! ```text
//! CAPPY_FAULTY=score:segfault,generate:oom>4
//! ```
//! With `CAPPY_FAULTY_ONCE=FILE` the environment's faults strike only as long as `FILE` does not exist, and make it
//! first: once among all processes, so that a restarted one works.
//!
//! Methods: `factory`, `describe`, those of the traits by their names, and `drop`. Faults:
//!
//! | fault | does |
//! |---|---|
//! | `panic` | panics with a message that names the method |
//! | `nan` | makes the last number of the result NaN |
//! | `short` | leaves the last number of the result out |
//! | `hang` | waits until the call is cancelled; for ever where a call cannot be |
//! | `abort`, `segfault` | ends the process |
//! | `oom>N` | `OutOfMemory` for a batch of more than N rows |
//! | `unsupported`, `internal` | fails with that code |

mod models;
mod plan;

use cappy_plugin_abi::{Backend, Descriptor, Failure, Generator, LoadRequest, Scorer, Trainer};
use cappy_plugin_echo::Echo;

use models::{FaultyGenerator, FaultyScorer, FaultyTrainer};
pub use plan::Plan;

cappy_plugin_abi::export_backend!(Faulty::new());

/// The backend.
#[derive(Debug)]
pub struct Faulty {
    plan: Plan,
}

impl Default for Faulty {
    fn default() -> Self {
        Self::new()
    }
}

impl Faulty {
    /// With the environment's faults.
    ///
    /// # Panics
    /// As planned for `factory`, and when the plan cannot be read.
    pub fn new() -> Self {
        let plan = Plan::of_environment().expect("CAPPY_FAULTY is a plan");
        plan.strike("factory", 0, None).expect("the factory fails");
        Self { plan }
    }

    /// The plan of a load, and what remains of the request for the echo backend.
    fn split(&self, request: &LoadRequest) -> Result<(Plan, LoadRequest), Failure> {
        let mut request = request.clone();
        let mut plan = self.plan.clone();
        let options = serde_json::from_str::<serde_json::Value>(&request.options_json);
        if let Ok(serde_json::Value::Object(mut options)) = options
            && let Some(fault) = options.remove("fault")
        {
            plan = Plan::parse(fault.as_str().unwrap_or_default())?;
            request.options_json = serde_json::Value::Object(options).to_string();
        }
        Ok((plan, request))
    }
}

impl Backend for Faulty {
    fn describe(&self) -> Descriptor {
        // A description cannot fail: other faults than those that end the call have no effect.
        let _ = self.plan.strike("describe", 0, None);
        Descriptor { name: "faulty".into(), ..Echo.describe() }
    }

    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        let (plan, request) = self.split(request)?;
        plan.strike("load_scorer", 0, None)?;
        Ok(Box::new(FaultyScorer { model: Echo.load_scorer(&request)?, plan }))
    }

    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        let (plan, request) = self.split(request)?;
        plan.strike("load_generator", 0, None)?;
        Ok(Box::new(FaultyGenerator { model: Echo.load_generator(&request)?, plan }))
    }

    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        let (plan, request) = self.split(request)?;
        plan.strike("load_trainer", 0, None)?;
        Ok(Box::new(FaultyTrainer { model: Echo.load_trainer(&request)?, plan }))
    }
}
