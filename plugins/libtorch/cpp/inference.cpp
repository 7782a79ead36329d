// Inference mode, which tch lacks: tensors without version counters and without a graph. Called from src/inference.rs.

#include <c10/core/InferenceMode.h>

extern "C" {

c10::InferenceMode* cappy_inference_enter() { return new c10::InferenceMode(true); }

// On the thread that entered, last entered first.
void cappy_inference_leave(c10::InferenceMode* guard) { delete guard; }

}  // extern "C"
