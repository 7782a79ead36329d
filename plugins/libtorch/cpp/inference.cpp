// Settings of the engine which tch lacks: inference mode, that is tensors without version counters and without a graph,
// and numbers of full precision. Called from src/inference.rs and src/device.rs.

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>

extern "C" {

c10::InferenceMode* cappy_inference_enter() { return new c10::InferenceMode(true); }

// On the thread that entered, last entered first.
void cappy_inference_leave(c10::InferenceMode* guard) { delete guard; }

// Convolutions in f32 are computed in f32, not in TF32 as is the default on a GPU. Products of matrices are by default.
void cappy_full_precision() { at::globalContext().setAllowTF32CuDNN(false); }

}  // extern "C"
