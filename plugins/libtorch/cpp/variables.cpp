// What trainers need of variables beside tch. Called from src/trainer/variables.rs.

#include "shim.h"

extern "C" {

// A variable without a gradient, as before its first backward pass.
void cappy_variable_forget(at::Tensor* variable) { variable->mutable_grad() = at::Tensor(); }

}  // extern "C"
