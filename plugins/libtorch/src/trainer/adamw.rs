//! AdamW. Source: Loshchilov & Hutter, arXiv 1711.05101; the arithmetic is PyTorch's.

use cappy_plugin_abi::TrainerOptions;
use tch::Tensor;

use crate::engine::Result;

/// One update of all variables.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Makes the accumulated gradient a mean.
    gradient_scale: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    /// 1 - learning rate * weight decay.
    keep: f64,
    /// learning rate / (1 - beta1^t).
    step_size: f64,
    /// 1 / sqrt(1 - beta2^t).
    second_scale: f64,
}

impl Step {
    /// Update number `t` (from 1) with the mean of `count` accumulated gradients.
    pub fn new(options: &TrainerOptions, learning_rate: f64, t: u64, count: u64) -> Self {
        let t = t as f64;
        Self {
            gradient_scale: 1.0 / count as f64,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            keep: 1.0 - learning_rate * options.weight_decay,
            step_size: learning_rate / (1.0 - options.beta1.powf(t)),
            second_scale: 1.0 / (1.0 - options.beta2.powf(t)).sqrt(),
        }
    }

    /// Changes one variable in place, and the gradient, which is of no use afterwards. All of one shape.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn apply(
        self,
        weight: &mut Tensor,
        gradient: &mut Tensor,
        moment1: &mut Tensor,
        moment2: &mut Tensor,
    ) -> Result<()> {
        if self.gradient_scale != 1.0 {
            let _ = gradient.f_mul_scalar_(self.gradient_scale)?;
        }
        let _ = moment1.f_lerp_(gradient, 1.0 - self.beta1)?;
        let _ = moment2.f_mul_scalar_(self.beta2)?;
        let _ = moment2.f_addcmul_(gradient, &gradient.f_mul_scalar(1.0 - self.beta2)?)?;
        let mut denominator = moment2.f_sqrt()?;
        let _ = denominator.f_mul_scalar_(self.second_scale)?.f_add_scalar_(self.epsilon)?;
        if self.keep != 1.0 {
            let _ = weight.f_mul_scalar_(self.keep)?;
        }
        let _ = weight.f_addcdiv_(&moment1.f_mul_scalar(-self.step_size)?, &denominator)?;
        Ok(())
    }
}
