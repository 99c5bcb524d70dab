/* The time-step loops of the three recurrences, over a chunk of text.
 *
 * A step of 16 lanes takes tens of microseconds, so what counts is that nothing is called and
 * nothing allocated between two steps, and that the product keeps its sums in registers. Lanes
 * do not depend on each other: each thread runs its own lanes through all time steps, and none
 * waits for another. A lane's result does not depend on which lanes run beside it.
 *
 * States, gates and sums are float32. The recurrent product's factors are float32, or bf16
 * where `narrow` is set and the processor multiplies them.
 *
 * charrnn/native.py compiles this file for the machine it runs on and calls it;
 * charrnn/loops.py does what comes before and after the loops.
 *
 * Axis letters, as in Python: T time, B lanes, H hidden. Arrays are contiguous, row by row.
 */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR 16
#elif defined(__AVX__)
#define VECTOR 8
#else
#define VECTOR 4
#endif

/* The sums of a product that are in registers: of MOST_ROWS rows, VECTORS vectors each. With them
 * there are a vector of a panel and a factor: 32 registers are enough for 16 sums, 16 for 12. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define MOST_ROWS 8
#define VECTORS 2
#else
#define MOST_ROWS 4
#define VECTORS 3
#endif

#if defined(__AVX512BF16__)
#define NARROW
#include <immintrin.h>
#endif

#if defined(NARROW) && defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Columns of a panel. */
#define WIDTH (VECTORS * VECTOR)

/* Rows of a bf16 panel are a multiple of this: the depth of an AMX tile. */
#define NARROW_DEPTH 32

#define INLINE static inline __attribute__((always_inline))

/* What a loop over units writes it does not read: it may be computed a vector at a time. */
#if defined(__clang__)
#define EACH_UNIT _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_UNIT _Pragma("GCC ivdep")
#endif

typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

/* ---- The recurrent product ---- */

/* A matrix [inner, columns] in panels of WIDTH columns, each [inner, WIDTH]; in bf16 each
 * [inner / 2, WIDTH, 2], two rows side by side. Filled up with zeros. */
typedef struct {
    const void *panels;
    long count; /* of panels */
    long inner;
    long narrow;
} matrix;

#if defined(TILES)
static int has_tiles = 0;
#endif

/* To be called before everything else: whether bf16 products may be in AMX's tiles. */
void prepare(long wants_tiles)
{
#if defined(TILES)
    /* The kernel gives AMX to a process that asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA. */
    has_tiles = wants_tiles && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    (void)wants_tiles;
#endif
}

long panel_width(void) { return WIDTH; }

/* Rows of a bf16 panel are a multiple of this; 0: there is no product in bf16. */
long narrow_depth(void)
{
#if defined(NARROW)
    return NARROW_DEPTH;
#else
    return 0;
#endif
}

static matrix as_matrix(const void *panels, long inner, long columns, long narrow)
{
    if (narrow)
        inner = (inner + NARROW_DEPTH - 1) / NARROW_DEPTH * NARROW_DEPTH;
    return (matrix){panels, (columns + WIDTH - 1) / WIDTH, inner, narrow};
}

/* Floats of room that a lane needs: its sums, and its factors in bf16. */
static long room_of(matrix m) { return m.count * WIDTH + m.inner; }

/* out[rows, WIDTH] = x[rows, inner] @ panel[inner, WIDTH] */
INLINE void multiply_wide(const int rows, long inner, const float *x, long x_stride,
                          const float *panel, float *out, long out_stride)
{
    vector sums[MOST_ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++)
            sums[row][v] = (vector){0};
    for (long k = 0; k < inner; k++) {
        vector weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            weights[v] = *(const vector *)(panel + k * WIDTH + v * VECTOR);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            const float factor = x[row * x_stride + k];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++)
                sums[row][v] += factor * weights[v];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            *(vector *)(out + row * out_stride + v * VECTOR) = sums[row][v];
}

#if defined(NARROW)
/* The same in bf16: two rows of the panel, and two numbers of x, at a time. */
INLINE void multiply_narrow(const int rows, long inner, const uint16_t *x, long x_stride,
                            const uint16_t *panel, float *out, long out_stride)
{
    __m512 sums[MOST_ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < VECTORS; v++)
            sums[row][v] = _mm512_setzero_ps();
    for (long k = 0; k < inner; k += 2) {
        __m512bh weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            weights[v] = (__m512bh)_mm512_loadu_si512(panel + k * WIDTH + v * 2 * VECTOR);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            int pair;
            memcpy(&pair, x + row * x_stride + k, sizeof pair);
            const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++)
                sums[row][v] = _mm512_dpbf16_ps(sums[row][v], factors, weights[v]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(out + row * out_stride + v * VECTOR, sums[row][v]);
}

/* Round to bf16, to the nearest, ties to even. */
static void narrow_rows(long rows, long given, long inner, const float *x, uint16_t *narrow)
{
    for (long row = 0; row < rows; row++, x += given, narrow += inner) {
        long k = 0;
        for (; k + VECTOR <= given; k += VECTOR)
            _mm256_storeu_si256((__m256i *)(narrow + k),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k)));
        const __mmask16 rest = (__mmask16)((1u << (given - k)) - 1);
        if (rest)
            _mm256_mask_storeu_epi16(
                narrow + k, rest, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, x + k)));
        memset(narrow + given, 0, (inner - given) * sizeof *narrow);
    }
}
#endif

#if defined(TILES)
/* Tiles 0 to 3 are sums [rows, 16], 4 is of x [rows, 32], 5 and 6 of the panel [16, 16, 2]. */
static void configure_tiles(long rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 7; tile++) {
        config.bytes[tile] = 64;
        config.rows[tile] = tile < 5 ? rows : 16;
    }
    _tile_loadconfig(&config);
}

/* x[rows, inner] times one or two panels, at most 16 rows, in AMX's tiles: two panels at a time
 * keep four sums under way, as one must wait 50 cycles for its last product. */
INLINE void multiply_tiles(const int pair, long inner, const uint16_t *x, const uint16_t *panel,
                           float *out, long out_stride)
{
    const uint16_t *second = panel + inner * WIDTH;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < inner; k += NARROW_DEPTH) {
        _tile_loadd(4, x + k, inner * sizeof *x);
        _tile_loadd(5, panel + k * WIDTH, 128);
        _tile_loadd(6, panel + k * WIDTH + 32, 128);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
        if (pair) {
            _tile_loadd(5, second + k * WIDTH, 128);
            _tile_loadd(6, second + k * WIDTH + 32, 128);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    _tile_stored(0, out, out_stride * sizeof *out);
    _tile_stored(1, out + 16, out_stride * sizeof *out);
    if (pair) {
        _tile_stored(2, out + WIDTH, out_stride * sizeof *out);
        _tile_stored(3, out + WIDTH + 16, out_stride * sizeof *out);
    }
}

static void multiply_in_tiles(matrix m, long rows, const uint16_t *x, float *out)
{
    const long columns = m.count * WIDTH;
    const uint16_t *panels = m.panels;
    for (long row = 0; row < rows; row += 16) {
        configure_tiles(rows - row < 16 ? rows - row : 16);
        float *sums = out + row * columns;
        long p = 0;
        for (; p + 2 <= m.count; p += 2)
            multiply_tiles(1, m.inner, x + row * m.inner, panels + p * m.inner * WIDTH,
                           sums + p * WIDTH, columns);
        if (p < m.count)
            multiply_tiles(0, m.inner, x + row * m.inner, panels + p * m.inner * WIDTH,
                           sums + p * WIDTH, columns);
    }
    _tile_release();
}
#endif

#define FOR_ROWS(size, call)                                                                     \
    for (; row + (size) <= rows; row += (size)) {                                                \
        const int some = size;                                                                   \
        call;                                                                                    \
    }
#if MOST_ROWS == 8
#define IN_BLOCKS(call) FOR_ROWS(8, call) FOR_ROWS(4, call) FOR_ROWS(2, call) FOR_ROWS(1, call)
#else
#define IN_BLOCKS(call) FOR_ROWS(4, call) FOR_ROWS(2, call) FOR_ROWS(1, call)
#endif

/* Multiply x[rows, given] with a matrix of `given` rows; the sums are the first
 * [rows, m.count * WIDTH] of the room. */
static void multiply(matrix m, long rows, const float *x, long given, float *room)
{
    const long columns = m.count * WIDTH;
#if defined(NARROW)
    if (m.narrow) {
        uint16_t *narrow = (uint16_t *)(room + rows * columns);
        narrow_rows(rows, given, m.inner, x, narrow);
#if defined(TILES)
        if (has_tiles) {
            multiply_in_tiles(m, rows, narrow, room);
            return;
        }
#endif
        for (long p = 0; p < m.count; p++) {
            const uint16_t *panel = (const uint16_t *)m.panels + p * m.inner * WIDTH;
            float *out = room + p * WIDTH;
            long row = 0;
            IN_BLOCKS(multiply_narrow(some, m.inner, narrow + row * m.inner, m.inner, panel,
                                      out + row * columns, columns))
        }
        return;
    }
#endif
    for (long p = 0; p < m.count; p++) {
        const float *panel = (const float *)m.panels + p * m.inner * WIDTH;
        float *out = room + p * WIDTH;
        long row = 0;
        IN_BLOCKS(multiply_wide(some, m.inner, x + row * given, given, panel, out + row * columns,
                                columns))
    }
}

/* ---- The gates' functions ---- */

/* e^x - 1 within 2 units of the last place (Cephes' expf, its 1 left out), between its ends;
 * no number stays none. Written without branches, so that the compiler computes a vector of them
 * at a time. */
INLINE float exponential_less_1(float x)
{
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    /* Adding 1.5 * 2^23 rounds to a whole number, which is then in the lowest bits. */
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
    return sum * power.value + (power.value - 1.0f);
}

/* Both within 3 units of the last place; sigmoid down to -87, from where on it stays 1.6e-38. */
INLINE float sigmoid(float x) { return 1.0f / (2.0f + exponential_less_1(-x)); }

INLINE float tangent(float x)
{
    const float e = exponential_less_1(2.0f * x);
    return e / (e + 2.0f);
}

/* ---- The loops ----
 *
 * What all have in common:
 *
 *   threads  that share out the lanes; the team may have more, which get none
 *   narrow   whether the panels are bf16
 *   forward  panels of U' over its rows, the gates' units; backward: of U over its columns
 *   projected   [T, B, gates * H]: W x + b; or, of every x that there is, [D, gates * H], and
 *   which    [T, B]: the one of them that a step of a lane reads; else none
 *   states   [T + 1, B, H]: h; the first is given, forward writes the others
 *   kept     [T, B, ...]: what backward needs of each step; unless `keep` is set, one
 *            step's room, [B, ...], serves all
 *   d_out    [T, B, H]: gradient of the outputs
 *   dh, dc   [B, H]: gradient of the last state on entry, of the first on return
 *   d        [T, B, gates * H], written: gradient of what the gates' functions are taken of
 *   room     [B, room of a lane]
 */

/* The team is torch's, though some may get no share: gcc's library ends the threads that a smaller
 * one leaves out, and starts others for torch's next product. */
#define EACH_SHARE                                                                               \
    _Pragma("omp parallel for if(threads > 1)")                                                  \
    for (long share = 0; share < threads; share++)
#define PROJECTED(at, width) (projected + (which ? which[at] : (at)) * (width))
#define FIRST (lanes * share / threads)
#define LAST (lanes * (share + 1) / threads)

/* h' = tanh(projected + U h) */
void rnn_forward(long threads, long narrow, long steps, long lanes, long hidden,
                 const void *panels, const float *projected, const int64_t *which, float *states,
                 float *room)
{
    const matrix m = as_matrix(panels, hidden, hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = 0; t < steps; t++) {
            multiply(m, rows, states + (t * lanes + first) * hidden, hidden, sums);
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row;
                const float *sum = sums + row * m.count * WIDTH, *x = PROJECTED(at, hidden);
                float *next = states + (at + lanes) * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++)
                    next[j] = tangent(sum[j] + x[j]);
            }
        }
    }
}

void rnn_backward(long threads, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *d_out, float *dh,
                  float *d, float *room)
{
    const matrix m = as_matrix(panels, hidden, hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < rows; row++) {
                const long at = (t * lanes + first + row) * hidden;
                const float *h = states + at + lanes * hidden, *above = d_out + at;
                const float *later = dh + (first + row) * hidden;
                float *here = d + at;
                EACH_UNIT
                for (long j = 0; j < hidden; j++)
                    here[j] = (later[j] + above[j]) * (1.0f - h[j] * h[j]);
            }
            multiply(m, rows, d + (t * lanes + first) * hidden, hidden, sums);
            for (long row = 0; row < rows; row++)
                memcpy(dh + (first + row) * hidden, sums + row * m.count * WIDTH,
                       hidden * sizeof *dh);
        }
    }
}

/* i, f, o = sigma(projected + U h);  g = tanh(projected + U h);  c' = f c + i g;  h' = o tanh(c')
 *
 *   cells    [T + 1, B, H]: c; the first is given, forward writes the others
 *   kept     [T, B, 5H]: i, f, g, o and tanh(c')
 */
void lstm_forward(long threads, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *projected, const int64_t *which, float *states,
                  float *cells, long keep, float *kept, float *room)
{
    const matrix m = as_matrix(panels, hidden, 4 * hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = 0; t < steps; t++) {
            multiply(m, rows, states + (t * lanes + first) * hidden, hidden, sums);
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row;
                const float *sum = sums + row * m.count * WIDTH, *x = PROJECTED(at, 4 * hidden);
                const float *c = cells + at * hidden;
                float *c_next = cells + (at + lanes) * hidden;
                float *h_next = states + (at + lanes) * hidden;
                float *gates = kept + (keep ? at : first + row) * 5 * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++) {
                    const float i = sigmoid(sum[j] + x[j]);
                    const float f = sigmoid(sum[hidden + j] + x[hidden + j]);
                    const float g = tangent(sum[2 * hidden + j] + x[2 * hidden + j]);
                    const float o = sigmoid(sum[3 * hidden + j] + x[3 * hidden + j]);
                    const float c_j = f * c[j] + i * g, tanh_c = tangent(c_j);
                    c_next[j] = c_j;
                    h_next[j] = o * tanh_c;
                    gates[j] = i;
                    gates[hidden + j] = f;
                    gates[2 * hidden + j] = g;
                    gates[3 * hidden + j] = o;
                    gates[4 * hidden + j] = tanh_c;
                }
            }
        }
    }
}

void lstm_backward(long threads, long narrow, long steps, long lanes, long hidden,
                   const void *panels, const float *cells, const float *kept, const float *d_out,
                   float *dh, float *dc, float *d, float *room)
{
    const matrix m = as_matrix(panels, 4 * hidden, hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row;
                const float *gates = kept + at * 5 * hidden, *c = cells + at * hidden;
                const float *above = d_out + at * hidden, *later = dh + (first + row) * hidden;
                float *dc_row = dc + (first + row) * hidden, *here = d + at * 4 * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++) {
                    const float i = gates[j], f = gates[hidden + j], g = gates[2 * hidden + j];
                    const float o = gates[3 * hidden + j], tanh_c = gates[4 * hidden + j];
                    const float dh_j = later[j] + above[j];
                    const float dc_j = dc_row[j] + dh_j * o * (1.0f - tanh_c * tanh_c);
                    here[j] = dc_j * g * i * (1.0f - i);
                    here[hidden + j] = dc_j * c[j] * f * (1.0f - f);
                    here[2 * hidden + j] = dc_j * i * (1.0f - g * g);
                    here[3 * hidden + j] = dh_j * tanh_c * o * (1.0f - o);
                    dc_row[j] = dc_j * f;
                }
            }
            multiply(m, rows, d + (t * lanes + first) * 4 * hidden, 4 * hidden, sums);
            for (long row = 0; row < rows; row++)
                memcpy(dh + (first + row) * hidden, sums + row * m.count * WIDTH,
                       hidden * sizeof *dh);
        }
    }
}

/* r, z = sigma(projected + U h);  m = U h + bias;  n = tanh(projected + r m);  h' = n + z (h - n)
 *
 *   bias     [H]: m's
 *   kept     [T, B, 4H]: r, z, m and n
 */
void gru_forward(long threads, long narrow, long steps, long lanes, long hidden,
                 const void *panels, const float *projected, const int64_t *which, const float *bias,
                 float *states, long keep, float *kept, float *room)
{
    const matrix m = as_matrix(panels, hidden, 3 * hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = 0; t < steps; t++) {
            multiply(m, rows, states + (t * lanes + first) * hidden, hidden, sums);
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row;
                const float *sum = sums + row * m.count * WIDTH, *x = PROJECTED(at, 3 * hidden);
                const float *h = states + at * hidden;
                float *next = states + (at + lanes) * hidden;
                float *gates = kept + (keep ? at : first + row) * 4 * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++) {
                    const float r = sigmoid(sum[j] + x[j]);
                    const float z = sigmoid(sum[hidden + j] + x[hidden + j]);
                    const float m_j = sum[2 * hidden + j] + bias[j];
                    const float n = tangent(x[2 * hidden + j] + r * m_j);
                    next[j] = n + z * (h[j] - n);
                    gates[j] = r;
                    gates[hidden + j] = z;
                    gates[2 * hidden + j] = m_j;
                    gates[3 * hidden + j] = n;
                }
            }
        }
    }
}

/*   d        [T, B, 3H], written: gradient before the sigmas of r and z, and of m
 *   d_n      [T, B, H], written: gradient before n's tanh
 */
void gru_backward(long threads, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *kept, const float *d_out,
                  float *dh, float *d, float *d_n, float *room)
{
    const matrix m = as_matrix(panels, 3 * hidden, hidden, narrow);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row;
                const float *gates = kept + at * 4 * hidden, *h = states + at * hidden;
                const float *above = d_out + at * hidden;
                float *later = dh + (first + row) * hidden;
                float *here = d + at * 3 * hidden, *here_n = d_n + at * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++) {
                    const float r = gates[j], z = gates[hidden + j];
                    const float m_j = gates[2 * hidden + j], n = gates[3 * hidden + j];
                    const float dh_j = later[j] + above[j];
                    const float dn = dh_j * (1.0f - z) * (1.0f - n * n);
                    here[j] = dn * m_j * r * (1.0f - r);
                    here[hidden + j] = dh_j * (h[j] - n) * z * (1.0f - z);
                    here[2 * hidden + j] = dn * r;
                    here_n[j] = dn;
                    later[j] = dh_j * z;
                }
            }
            multiply(m, rows, d + (t * lanes + first) * 3 * hidden, 3 * hidden, sums);
            for (long row = 0; row < rows; row++) {
                const float *sum = sums + row * m.count * WIDTH;
                float *later = dh + (first + row) * hidden;
                EACH_UNIT
                for (long j = 0; j < hidden; j++)
                    later[j] += sum[j];
            }
        }
    }
}
