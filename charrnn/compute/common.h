/* What all C files have in common: vectors, threads, numbers in float32 or bf16.
 *
 * Axis letters, as in Python: T time, B lanes, H hidden. Arrays are contiguous, row by row.
 */

/* clang's OpenMP threads would be a second pool. Where torch's OpenMP is LLVM's too, as on macOS,
 * loading a second copy of it aborts the process. */
#if defined(__clang__)
#error "clang's OpenMP would be a second one beside torch's: take gcc"
#endif

/* With -ffast-math in CC the loss of what is no number would look like one. */
#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__
#error "NaN must stay NaN: leave -ffast-math out of CC"
#endif

/* Sums in another order lose the rounding in `exponential`: tanh would be wrong by up to 0.17. */
#if defined(__ASSOCIATIVE_MATH__)
#error "sums must stay in order: leave -fassociative-math, -funsafe-math-optimizations out of CC"
#endif

#include <stdint.h>
#include <string.h>

int omp_get_thread_num(void);
int omp_get_num_threads(void);

#if defined(__AVX512F__)
#define VECTOR 16
#elif defined(__AVX__)
#define VECTOR 8
#else
#define VECTOR 4
#endif

#define INLINE static inline __attribute__((always_inline))

/* No unit reads what another one writes, so a loop over units may be vectorised. */
#define EACH_UNIT _Pragma("GCC ivdep")

typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

INLINE long least(long a, long b) { return a < b ? a : b; }

/* ---- Threads ---- */

/* The team is as large as torch's on Linux, though some threads may get no work: with a smaller one
 * gcc's OpenMP would end the surplus threads and start new ones for torch's next product. */
#define IN_PARALLEL _Pragma("omp parallel if(threads > 1)")

/* What a thread of such a team works on, of so many things; and which thread it is. */
typedef struct {
    long from, to, number;
} part;

INLINE part part_of(long count, long threads)
{
    const long shares = least(threads, omp_get_num_threads());
    const long number = least(omp_get_thread_num(), shares), next = least(number + 1, shares);
    return (part){count * number / shares, count * next / shares, number};
}

/* ---- Numbers in float32 or bf16 ---- */

INLINE float load(const int narrow, const void *x, long at)
{
    if (!narrow)
        return ((const float *)x)[at];
    const union { uint32_t bits; float value; } wide = {(uint32_t)((const uint16_t *)x)[at] << 16};
    return wide.value;
}

/* Round to bf16, to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t narrowed(float x)
{
    const union { float value; uint32_t bits; } wide = {x};
    const uint32_t nearest = (wide.bits + 0x7fff + (wide.bits >> 16 & 1)) >> 16;
    return x == x ? (uint16_t)nearest : 0x7fc0;
}

INLINE void store(const int narrow, void *x, long at, float value)
{
    if (narrow)
        ((uint16_t *)x)[at] = narrowed(value);
    else
        ((float *)x)[at] = value;
}

/* Call a function that is inlined for each type of tensor. */
#define FOR_TYPE(function, ...)                                                                  \
    if (narrow)                                                                                  \
        function(1, __VA_ARGS__);                                                                \
    else                                                                                         \
        function(0, __VA_ARGS__);

/* e^x - less, which is 0 or 1, within 2 units in the last place (Cephes' expf), with x clamped to
 * [-87, 87]; NaN stays NaN. Written without branches, so that the compiler vectorises it. */
INLINE float exponential(float x, const float less)
{
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    /* Adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits. */
    const float shift = 12582912.0f;
    union { float value; uint32_t bits; } power = {x * 1.44269504f + shift};
    const float whole = power.value - shift;
    power.bits = (power.bits + 127) << 23; /* 2^whole */
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest;
    return sum * power.value + (power.value - less);
}
