// What attention and gated networks do between two products, each in one pass over its numbers.
//
// candle's operations would copy tensors to bring heads together (with some divisions for every number), add a mask to all
// scores, and copy both halves of a gated network's numbers. Every kernel is told how many numbers it makes, in groups of
// four where it says so; grids may be of any size.

#include <cuda_bf16.h>
#include <math_constants.h>
#include <stdint.h>

static __device__ float number(float x) { return x; }
static __device__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> static __device__ T rounded(float x);
template <> __device__ float rounded<float>(float x) { return x; }
template <> __device__ __nv_bfloat16 rounded<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

template <typename T> struct alignas(4 * sizeof(T)) Four { T numbers[4]; };

template <typename T> static __device__ Four<T> scaled(Four<T> four, float scale) {
    for (int i = 0; i < 4; i++) four.numbers[i] = rounded<T>(scale * number(four.numbers[i]));
    return four;
}

// x: (rows, length, stride), of which the columns from `first` on are heads; out: (rows, heads, length, d), scaled.
// All but `rows`, `length` and `heads` count groups of four.
template <typename T>
static __device__ void split(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t length, uint32_t heads, uint32_t d,
                             uint32_t stride, uint32_t first, float scale) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        uint32_t column = i % d, line = i / d;
        uint32_t token = line % length, head = line / length % heads, row = line / length / heads;
        out[i] = scaled(x[(size_t)(row * length + token) * stride + first + head * d + column], scale);
    }
}

// x: (rows, heads, length, d); out: (rows, length, heads * d). `count` and `d` count groups of four.
template <typename T>
static __device__ void join(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t length, uint32_t heads, uint32_t d) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        uint32_t column = i % d, line = i / d;
        uint32_t head = line % heads, token = line / heads % length, row = line / heads / length;
        out[i] = x[((size_t)(row * heads + head) * length + token) * d + column];
    }
}

static __device__ float largest(float x) {
    for (int away = 16; away > 0; away /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, away));
    return x;
}

static __device__ float sum(float x) {
    for (int away = 16; away > 0; away /= 2) x += __shfl_xor_sync(0xffffffff, x, away);
    return x;
}

// x, out: (lines, keys), `of_row` lines a row, the queries of one head after those of another. A line becomes the softmax
// of the keys that its query sees: those of its row's tokens, at most `window` away unless that is negative. The others
// become 0, as does a line that sees none. A warp (threadIdx.x) makes a line.
template <typename T>
static __device__ void softmax(const T *x, const uint32_t *lengths, T *out, uint32_t lines, uint32_t of_row,
                               uint32_t queries, uint32_t keys, int32_t window) {
    uint32_t line = blockIdx.x * blockDim.y + threadIdx.y;
    if (line >= lines) return;
    int32_t query = line % queries, from = 0, to = lengths[line / of_row];
    if (window >= 0) {
        from = max(query - window, 0);
        to = min(query + window + 1, to);
    }
    x += (size_t)line * keys;
    out += (size_t)line * keys;
    float most = -CUDART_INF_F;
    for (int32_t key = from + threadIdx.x; key < to; key += 32) most = fmaxf(most, number(x[key]));
    most = largest(most);
    float total = 0;
    for (int32_t key = from + threadIdx.x; key < to; key += 32) total += __expf(number(x[key]) - most);
    total = sum(total);
    for (int32_t key = threadIdx.x; key < keys; key += 32) {
        bool seen = from <= key && key < to;
        out[key] = rounded<T>(seen ? __expf(number(x[key]) - most) / total : 0);
    }
}

// x: (tokens, 2 * width); out: (tokens, width): the first half's gelu, the exact form, times the second half. `count` and
// `width` count groups of four.
template <typename T>
static __device__ void gated(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t width) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const Four<T> *inner = x + (size_t)(i / width) * 2 * width + i % width;
        Four<T> numbers = inner[0], gates = inner[width];
        for (int j = 0; j < 4; j++) {
            float it = number(numbers.numbers[j]);
            numbers.numbers[j] = rounded<T>(it * normcdff(it) * number(gates.numbers[j]));
        }
        out[i] = numbers;
    }
}

#define KERNELS(T, NAME)                                                                                               \
    extern "C" __global__ void split_##NAME(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t length,           \
                                            uint32_t heads, uint32_t d, uint32_t stride, uint32_t first, float scale) { \
        split(x, out, count, length, heads, d, stride, first, scale);                                                  \
    }                                                                                                                  \
    extern "C" __global__ void join_##NAME(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t length,            \
                                           uint32_t heads, uint32_t d) {                                               \
        join(x, out, count, length, heads, d);                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void softmax_##NAME(const T *x, const uint32_t *lengths, T *out, uint32_t lines,             \
                                              uint32_t of_row, uint32_t queries, uint32_t keys, int32_t window) {      \
        softmax(x, lengths, out, lines, of_row, queries, keys, window);                                                \
    }                                                                                                                  \
    extern "C" __global__ void gated_##NAME(const Four<T> *x, Four<T> *out, uint32_t count, uint32_t width) {          \
        gated(x, out, count, width);                                                                                   \
    }

KERNELS(float, f32)
KERNELS(__nv_bfloat16, bf16)
