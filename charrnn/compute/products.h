/* What recurrence.c and step.c have in common: products, the gates' functions, the recurrences.
 *
 * States, gates and sums are float32. A product's matrix is float32, or bf16 or bytes (int8) where
 * the processor multiplies those.
 */

#include "common.h"

/* A product keeps its sums in registers: at most MOST_ROWS rows of VECTORS vectors each. It also
 * needs registers for a panel's vector and a factor: 32 are enough for 16 sums, 16 for 12. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define MOST_ROWS 8
#define VECTORS 2
#else
#define MOST_ROWS 4
#define VECTORS 3
#endif

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define NARROW
#endif

/* On other processors a product of bytes takes several times as long as one in float32. */
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define MULTIPLIES_BYTES
#endif

#if defined(NARROW) && defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Columns of a panel. */
#define WIDTH (VECTORS * VECTOR)

/* A bf16 panel's rows are padded to a multiple of this: the depth of an AMX tile. */
#define NARROW_DEPTH 32

/* The same for a panel of bytes: two sums, each of which takes two rows at a time. */
#define BYTE_DEPTH 4

/* ---- Threads ---- */

/* A thread's part of so many things; or all of them, if they are not shared out. */
INLINE part part_or_all(long shared, long count, long threads)
{
    return shared ? part_of(count, threads) : (part){0, count, omp_get_thread_num()};
}

/* Threads that share out the units, as they do if `apart` is not set, wait for each other here. */
INLINE void wait_unless(long apart)
{
    if (!apart) {
#pragma omp barrier
    }
}

/* ---- Products ---- */

/* In the order of _TYPES in charrnn/compute/steps.py. */
enum { FLOATS, NARROWS, BYTES };

/* A matrix [inner, blocks * columns], padded with zeros, in panels of WIDTH columns. A panel is
 * [inner, WIDTH] in float32; in bf16 and bytes [inner / 2, WIDTH, 2], with two rows interleaved.
 * Panels of bytes are followed by one float per column: its scale. */
typedef struct {
    const void *panels;
    long blocks, each; /* so many panels in each of so many blocks */
    long inner;
    long type;         /* FLOATS, NARROWS, BYTES */
    long back;         /* whether the panels are read from the last to the first */
} matrix;

/* Columns of all panels. */
static long width_of(matrix m) { return m.blocks * m.each * WIDTH; }

#if defined(TILES)
static int has_tiles = 0;
#endif

/* Call this first: it asks the kernel whether bf16 products may use AMX's tiles. */
void prepare(void)
{
#if defined(TILES)
    /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    has_tiles = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#endif
}

long panel_width(void) { return WIDTH; }

/* A bf16 panel's rows are padded to a multiple of this; 0: there are no products in bf16. */
long narrow_depth(void)
{
#if defined(NARROW)
    return NARROW_DEPTH;
#else
    return 0;
#endif
}

/* The same for a panel of bytes. */
long byte_depth(void)
{
#if defined(MULTIPLIES_BYTES)
    return BYTE_DEPTH;
#else
    return 0;
#endif
}

/* columns: of each block. */
static matrix as_matrix(const void *panels, long inner, long blocks, long columns, long type)
{
    if (type == NARROWS)
        inner = (inner + NARROW_DEPTH - 1) / NARROW_DEPTH * NARROW_DEPTH;
    if (type == BYTES)
        inner = (inner + BYTE_DEPTH - 1) / BYTE_DEPTH * BYTE_DEPTH;
    return (matrix){panels, blocks, (columns + WIDTH - 1) / WIDTH, inner, type, 0};
}

/* A float32 matrix of so many numbers, 2 MB, fills a core's cache, or is too large for it. */
#define LARGE (1 << 19)

/* The matrix for the n-th of many products with it. If it is large, every second one reads its
 * panels from the last to the first: what the one before has read last is still in the cache. */
INLINE matrix in_turn(matrix m, long n)
{
    m.back = n & 1 && m.inner * width_of(m) >= LARGE;
    return m;
}

/* The place of the n-th thing of so many to be read. */
INLINE long place_of(matrix m, long n, long count) { return m.back ? count - 1 - n : n; }

/* A panel's rows are asked for this many rows before they are multiplied: Intel's hardware fetches
 * them too late by itself. */
#define AHEAD 16

/* out[rows, WIDTH] = x[rows, inner] @ panel[inner, WIDTH]; or += instead, if `add`
 *
 *   x_row, x_next    how far apart the rows of x are, and the numbers of a row
 *   following        the panel that will be multiplied next
 */
INLINE void multiply_wide(const int rows, long inner, const float *x, long x_row, const long x_next,
                          const float *panel, const float *following, float *out, long out_stride,
                          const long add)
{
    const float *ahead = panel + AHEAD * WIDTH;
    vector sums[MOST_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            sums[row][v] = (vector){0};
            if (add)
                sums[row][v] = *(const vector *)(out + row * out_stride + v * VECTOR);
        }
    for (long k = 0; k < inner; k++, ahead += WIDTH) {
        if (k == inner - AHEAD)
            ahead = following;
        for (int line = 0; line < WIDTH; line += 16)
            __builtin_prefetch(ahead + line);
        vector weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            weights[v] = *(const vector *)(panel + k * WIDTH + v * VECTOR);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            const float factor = x[row * x_row + k * x_next];
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
/* The same in bf16, with two rows of the panel and two numbers of x at a time. */
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
#endif

#if defined(TILES)
/* Tiles 0 to 3 hold sums [rows, 16], 4 a part of x [rows, 32], 5 and 6 parts of a panel
 * [16, 16, 2]. */
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
    /* gcc before 11.5, 12.4, 13.3 and 14 assumes that _tile_loadconfig reads only 8 bytes (GCC
     * PR 114098), and drops the stores to the others. No gcc knows that loading a tile reads x. So
     * this line makes gcc assume that both are read here. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* Multiply at most 16 rows, x[rows, inner], with one panel or a pair, in AMX's tiles. A pair keeps
 * four sums in flight, because a sum must wait 50 cycles for its previous product. */
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

static void multiply_in_tiles(matrix m, long from, long to, long rows, const uint16_t *x,
                              float *out)
{
    const long columns = width_of(m);
    const uint16_t *panels = m.panels;
    const long whole = rows / 16 * 16, pairs = (to - from + 1) / 2;
    for (long first = 0, end; first < rows; first = end) {
        end = first < whole ? whole : rows;
        configure_tiles(least(end - first, 16));
        for (long block = 0; block < m.blocks; block++)
            for (long pair = 0; pair < pairs; pair++) {
                const long q = from + 2 * place_of(m, pair, pairs);
                const long p = place_of(m, block, m.blocks) * m.each + q;
                const uint16_t *panel = panels + p * m.inner * WIDTH;
                for (long row = first; row < end; row += 16) {
                    float *sums = out + row * columns + p * WIDTH;
                    if (q + 1 < to)
                        multiply_tiles(1, m.inner, x + row * m.inner, panel, sums, columns);
                    else
                        multiply_tiles(0, m.inner, x + row * m.inner, panel, sums, columns);
                }
            }
    }
    _tile_release();
}
#endif

#if defined(WITH_BYTES) && defined(MULTIPLIES_BYTES)
/* Sums of VECTOR columns. */
typedef int32_t int_vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

/* Add two rows of a panel, multiplied by two numbers of x. */
INLINE int_vector add_bytes(int_vector sum, const int16_t *x, const int8_t *panel)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
#if defined(__AVX512BW__)
    const __m512i factors = _mm512_set1_epi32(pair);
    const __m512i weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)panel));
#if defined(__AVX512VNNI__)
    return (int_vector)_mm512_dpwssd_epi32((__m512i)sum, factors, weights);
#else
    return (int_vector)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(factors, weights));
#endif
#else
    const __m256i factors = _mm256_set1_epi32(pair);
    const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)panel));
    return (int_vector)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(factors, weights));
#endif
}

INLINE vector as_floats(int_vector sum)
{
#if defined(__AVX512BW__)
    return (vector)_mm512_cvtepi32_ps((__m512i)sum);
#else
    return (vector)_mm256_cvtepi32_ps((__m256i)sum);
#endif
}

/* `multiply_wide`, with bytes: each sum is multiplied by the scales of its row and its column. A
 * single row has two sums per column, so that additions need not wait for each other; with integers
 * that does not change the result. */
INLINE void multiply_bytes(const int rows, long inner, const int16_t *x, long x_stride,
                           const int8_t *panel, const float *row_scales, const float *scales,
                           float *out, long out_stride)
{
    const int parts = rows == 1 ? 2 : 1;
    int_vector sums[MOST_ROWS][VECTORS];
    for (int sum = 0; sum < rows * parts; sum++)
        for (int v = 0; v < VECTORS; v++)
            sums[sum][v] = (int_vector){0};
    for (long k = 0; k < inner; k += 2 * parts)
#pragma GCC unroll 8
        for (int half = 0; half < parts; half++)
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; v++) {
                    const long at = k + 2 * half;
                    sums[row + half][v] = add_bytes(sums[row + half][v], x + row * x_stride + at,
                                                    panel + at * WIDTH + v * 2 * VECTOR);
                }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const int_vector sum = parts == 2 ? sums[0][v] + sums[1][v] : sums[row][v];
            *(vector *)(out + row * out_stride + v * VECTOR) =
                as_floats(sum) * row_scales[row] * *(const vector *)(scales + v * VECTOR);
        }
}

/* Quantise x[rows, given], from -1 to 1, to integers, padded to narrow[rows, inner], with a scale
 * for each row in scales[rows]. The integers are small enough that no sum of products with bytes,
 * from -127 to 127, overflows. A row that contains a NaN gets NaN as its scale. */
static void quantise_rows(long rows, long given, long inner, const float *x, int16_t *narrow,
                          float *scales)
{
    float most = 16384;
    while (most * 128 * inner > 0x1p31f)
        most /= 2;
    for (long row = 0; row < rows; row++, x += given, narrow += inner) {
        int has_nan = 0;
        for (long k = 0; k < given; k++) {
            has_nan |= x[k] != x[k];
            narrow[k] = x[k] == x[k] ? (int16_t)__builtin_rintf(x[k] * most) : 0;
        }
        memset(narrow + given, 0, (inner - given) * sizeof *narrow);
        scales[row] = has_nan ? __builtin_nanf("") : 1 / most;
    }
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

/* The panels `from` to `to` of each block. */
#define EACH_PANEL                                                                               \
    for (long block = 0; block < m.blocks; block++)                                              \
        for (long n = 0; n < to - from; n++)
#define PANEL (place_of(m, block, m.blocks) * m.each + from + place_of(m, n, to - from))

/* Round x[given] to bf16, and pad it with zeros to narrow[inner]. */
INLINE void narrow_row(long given, long inner, const float *x, uint16_t *narrow)
{
    EACH_UNIT
    for (long k = 0; k < given; k++)
        narrow[k] = narrowed(x[k]);
    memset(narrow + given, 0, (inner - given) * sizeof *narrow);
}

#if defined(NARROW)
/* `multiply`, below, of x[rows, m.inner] that is in bf16 already. */
static void multiply_narrowed(matrix m, long from, long to, long rows, const uint16_t *x,
                              float *sums)
{
    const long columns = width_of(m);
    if (from == to || !rows)
        return;
#if defined(TILES)
    if (has_tiles) {
        multiply_in_tiles(m, from, to, rows, x, sums);
        return;
    }
#endif
    EACH_PANEL {
        const long p = PANEL;
        const uint16_t *panel = (const uint16_t *)m.panels + p * m.inner * WIDTH;
        float *out = sums + p * WIDTH;
        long row = 0;
        IN_BLOCKS(multiply_narrow(some, m.inner, x + row * m.inner, m.inner, panel,
                                  out + row * columns, columns))
    }
}
#endif

/* Multiply x[rows, given] with the panels `from` to `to` of each block of a matrix of `given` rows.
 *
 *   sums     [rows, width_of(m)], written
 *   room     [rows, m.inner], for x in fewer bits and, with bytes, the scale of each row
 */
static void multiply(matrix m, long from, long to, long rows, const float *x, long given,
                     float *sums, float *room)
{
    const long columns = width_of(m);
    if (from == to || !rows)
        return; /* also: then there may be no room */
#if defined(NARROW)
    if (m.type == NARROWS) {
        uint16_t *narrow = (uint16_t *)room;
        for (long row = 0; row < rows; row++)
            narrow_row(given, m.inner, x + row * given, narrow + row * m.inner);
        multiply_narrowed(m, from, to, rows, narrow, sums);
        return;
    }
#endif
#if defined(WITH_BYTES) && defined(MULTIPLIES_BYTES)
    if (m.type == BYTES) {
        int16_t *narrow = (int16_t *)room;
        float *row_scales = room + (rows * m.inner + 1) / 2;
        quantise_rows(rows, given, m.inner, x, narrow, row_scales);
        const int8_t *panels = m.panels;
        const float *scales = (const float *)(panels + m.inner * columns);
        EACH_PANEL {
            const long p = PANEL;
            float *out = sums + p * WIDTH;
            long row = 0;
            IN_BLOCKS(multiply_bytes(some, m.inner, narrow + row * m.inner, m.inner,
                                     panels + p * m.inner * WIDTH, row_scales + row,
                                     scales + p * WIDTH, out + row * columns, columns))
        }
        return;
    }
#endif
    (void)room;
    EACH_PANEL {
        const long p = PANEL;
        const float *panel = (const float *)m.panels + p * m.inner * WIDTH;
        const float *following = panel + (m.back ? -m.inner : m.inner) * WIDTH;
        float *out = sums + p * WIDTH;
        long row = 0;
        IN_BLOCKS(multiply_wide(some, m.inner, x + row * given, given, 1, panel, following,
                                out + row * columns, columns, 0))
    }
}

/* ---- The gates' functions ---- */

/* Both within 3 units in the last place; but below -87 sigmoid stays at 1.6e-38. */
INLINE float sigmoid(float x) { return 1.0f / (2.0f + exponential(-x, 1.0f)); }

INLINE float tangent(float x)
{
    const float e = exponential(2.0f * x, 1.0f);
    return e / (e + 2.0f);
}

/* ---- The recurrences ---- */

/* In the order of IN_C in charrnn/compute/products.py. */
enum { RNN, LSTM, GRU };

static long gates_of(long cell) { return cell == LSTM ? 4 : cell == GRU ? 3 : 1; }

/* The functions below compute units `from` to `to` of a lane's step.
 *
 *   sum      U h: so many gates, each H of `stride` floats
 *   x        [gates * H]: W x + b
 */

/* h' = tanh(x + U h) */
INLINE void rnn_units(long from, long to, const float *sum, const float *x, float *h_next)
{
    EACH_UNIT
    for (long j = from; j < to; j++)
        h_next[j] = tangent(sum[j] + x[j]);
}

/* i, f, o = sigma(x + U h);  g = tanh(x + U h);  c' = f c + i g;  h' = o tanh(c')
 *
 *   kept     [5H], or null: i, f, g, o and tanh(c')
 */
INLINE void lstm_units(long from, long to, long hidden, const float *sum, long stride,
                       const float *x, const float *c, float *c_next, float *h_next, float *kept)
{
    EACH_UNIT
    for (long j = from; j < to; j++) {
        const float i = sigmoid(sum[j] + x[j]);
        const float f = sigmoid(sum[stride + j] + x[hidden + j]);
        const float g = tangent(sum[2 * stride + j] + x[2 * hidden + j]);
        const float o = sigmoid(sum[3 * stride + j] + x[3 * hidden + j]);
        const float c_j = f * c[j] + i * g, tanh_c = tangent(c_j);
        c_next[j] = c_j;
        h_next[j] = o * tanh_c;
        if (kept) {
            kept[j] = i;
            kept[hidden + j] = f;
            kept[2 * hidden + j] = g;
            kept[3 * hidden + j] = o;
            kept[4 * hidden + j] = tanh_c;
        }
    }
}

/* r, z = sigma(x + U h);  m = U h + bias;  n = tanh(x + r m);  h' = n + z (h - n)
 *
 *   bias     [H]: m's
 *   kept     [4H], or null: r, z, m and n
 */
INLINE void gru_units(long from, long to, long hidden, const float *sum, long stride,
                      const float *x, const float *bias, const float *h, float *h_next, float *kept)
{
    EACH_UNIT
    for (long j = from; j < to; j++) {
        const float r = sigmoid(sum[j] + x[j]);
        const float z = sigmoid(sum[stride + j] + x[hidden + j]);
        const float m = sum[2 * stride + j] + bias[j];
        const float n = tangent(x[2 * hidden + j] + r * m);
        h_next[j] = n + z * (h[j] - n);
        if (kept) {
            kept[j] = r;
            kept[hidden + j] = z;
            kept[2 * hidden + j] = m;
            kept[3 * hidden + j] = n;
        }
    }
}
