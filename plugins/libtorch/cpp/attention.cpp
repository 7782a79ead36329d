// Attention of rows that lie packed one after the other, which tch lacks. Called from src/encoder/packed.rs.

#include "shim.h"

#include <ATen/ops/_flash_attention_forward.h>

extern "C" {

// softmax(scale * query . key) . value within each row. `query`: (queries, heads, size), `key` and `value`:
// (keys, heads, size); `query_starts` and `key_starts`: int32, where each row begins, and the end. Queries see keys up to
// `window` places away, all if it is negative. Gives (queries, heads, size), to be freed as tch frees tensors.
char* cappy_attend_packed(
    const at::Tensor* query,
    const at::Tensor* key,
    const at::Tensor* value,
    const at::Tensor* query_starts,
    const at::Tensor* key_starts,
    int64_t most_queries,
    int64_t most_keys,
    double scale,
    int64_t window,
    at::Tensor** out) {
  return cappy::caught([&] {
    auto result = at::_flash_attention_forward(
        *query,
        *key,
        *value,
        *query_starts,
        *key_starts,
        most_queries,
        most_keys,
        /*dropout_p=*/0.0,
        /*is_causal=*/false,
        /*return_debug_mask=*/false,
        scale,
        window,
        window);
    *out = new at::Tensor(std::move(std::get<0>(result)));
  });
}

}  // extern "C"
