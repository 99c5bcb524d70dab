/* What an update does with its tensors besides products and loops over time.
 *
 * torch goes over a tensor once for each operation, and memory is slow: here each is read once and
 * written once. Tensors are float32, or bf16 where `narrow` is set; what is computed is float32.
 *
 * Threads share out what does not depend on each other, so their number changes no result.
 *
 * charrnn/compute/passes.py compiles this file for the machine it runs on and calls it.
 */

#include "common.h"

/* ---- Dropout ---- */

/* Entries that are worked on together; a multiple of 4. */
#define BLOCK 1024

/* Levels of a block's entries, four from each 64 bits of SplitMix64 (Steele, Lea, Flood 2014). */
static void fill_levels(uint64_t seed, long block, int16_t *levels)
{
    uint64_t words[BLOCK / 4];
    EACH_UNIT
    for (long j = 0; j < BLOCK / 4; j++) {
        uint64_t x = seed + (uint64_t)(block * BLOCK / 4 + j + 1) * 0x9e3779b97f4a7c15;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        words[j] = x ^ x >> 31;
    }
    memcpy(levels, words, sizeof words);
}

/* Whether a mask keeps an entry, as 1 or 0. */
INLINE float kept(int16_t level, long mask, long masks, long least_kept)
{
    return (int16_t)(level + 65536 * mask / masks) >= (int16_t)least_kept ? 1.0f : 0.0f;
}

INLINE void drop(const int narrow, part p, long count, long masks, const void *x, uint64_t seed,
                 long least_kept, float scale, void *out)
{
    int16_t levels[BLOCK];
    float grown[BLOCK];
    for (long block = p.from; block < p.to; block++) {
        const long first = block * BLOCK, entries = least(BLOCK, count - first);
        fill_levels(seed, block, levels);
        EACH_UNIT
        for (long j = 0; j < entries; j++)
            grown[j] = load(narrow, x, first + j) * scale;
        for (long mask = 0; mask < masks; mask++)
            EACH_UNIT
            for (long j = 0; j < entries; j++)
                store(narrow, out, mask * count + first + j,
                      grown[j] * kept(levels[j], mask, masks, least_kept));
    }
}

/* Drop entries under several masks, and scale the others.
 *
 *   x        [count]
 *   seed     gives each entry a level, an int16
 *   out      [masks, count], written: mask m adds m / masks of 2^16 to an entry's level, wrapping
 *            around, and drops the entry if that is below least_kept
 */
void dropout(long threads, long narrow, long count, long masks, const void *x, int64_t seed,
             long least_kept, float scale, void *out)
{
    IN_PARALLEL {
        const part p = part_of((count + BLOCK - 1) / BLOCK, threads);
        FOR_TYPE(drop, p, count, masks, x, (uint64_t)seed, least_kept, scale, out)
    }
}

INLINE void drop_backward(const int narrow, part p, long count, long masks, const void *d_out,
                          uint64_t seed, long least_kept, float scale, void *d)
{
    int16_t levels[BLOCK];
    float sums[BLOCK];
    for (long block = p.from; block < p.to; block++) {
        const long first = block * BLOCK, entries = least(BLOCK, count - first);
        fill_levels(seed, block, levels);
        memset(sums, 0, sizeof sums);
        for (long mask = 0; mask < masks; mask++)
            EACH_UNIT
            for (long j = 0; j < entries; j++)
                sums[j] += load(narrow, d_out, mask * count + first + j) *
                           kept(levels[j], mask, masks, least_kept);
        EACH_UNIT
        for (long j = 0; j < entries; j++)
            store(narrow, d, first + j, sums[j] * scale);
    }
}

/*   d_out    [masks, count]: gradient of dropout's out
 *   d        [count], written: gradient of x
 */
void dropout_backward(long threads, long narrow, long count, long masks, const void *d_out,
                      int64_t seed, long least_kept, float scale, void *d)
{
    IN_PARALLEL {
        const part p = part_of((count + BLOCK - 1) / BLOCK, threads);
        FOR_TYPE(drop_backward, p, count, masks, d_out, (uint64_t)seed, least_kept, scale, d)
    }
}

/* ---- The loss ---- */

/* Floats of scratch space for a row of the loss: whole vectors, as a row's rest would take as long
 * as all else of 66 symbols. */
static long row_room(long symbols) { return (symbols + VECTOR - 1) / VECTOR * VECTOR; }

long loss_room(long threads, long symbols) { return threads * row_room(symbols); }

INLINE void price(const int narrow, part p, long predictions, long symbols, void *logits,
                  const int64_t *targets, float *sums, float *margins, float *row)
{
    const long whole = row_room(symbols);
    const float share = 1.0f / predictions;
    for (long n = p.from; n < p.to; n++) {
        const long start = n * symbols, target = targets[n];
        EACH_UNIT
        for (long j = 0; j < symbols; j++)
            row[j] = load(narrow, logits, start + j);
        for (long j = symbols; j < whole; j++)
            row[j] = row[0];
        float most = row[0], sum = 0;
#pragma omp simd reduction(max : most)
        for (long j = 0; j < whole; j++)
            most = row[j] > most ? row[j] : most;
        margins[n] = most - row[target];
        for (long j = symbols; j < whole; j++)
            row[j] = -__builtin_inff(); /* as good as nothing */
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < whole; j++) {
            row[j] = exponential(row[j] - most, 0.0f);
            sum += row[j];
        }
        sums[n] = sum;
        const float each = share / sum;
        EACH_UNIT
        for (long j = 0; j < symbols; j++)
            store(narrow, logits, start + j, row[j] * each);
        store(narrow, logits, start + target, row[target] * each - share);
    }
}

/* Turn logits into the gradient of the mean of -ln softmax(logits)[target].
 *
 *   logits   [predictions, symbols], overwritten
 *   targets  [predictions]
 *   sums     [predictions], written: sums of e^(logit - the row's largest)
 *   margins  [predictions], written: the row's largest logit less the target's
 *   room     [loss_room]: scratch space
 */
void cross_entropy(long threads, long narrow, long predictions, long symbols, void *logits,
                   const int64_t *targets, float *sums, float *margins, float *room)
{
    IN_PARALLEL {
        const part p = part_of(predictions, threads);
        float *row = room + p.number * row_room(symbols);
        FOR_TYPE(price, p, predictions, symbols, logits, targets, sums, margins, row)
    }
}

/* ---- AdamW ---- */

/* Update the running means of a gradient and of its square, and move the weights against the first
 * over the root of the second.
 *
 *   correction  by which the root's bias is divided
 *   rate        the learning rate over the first mean's own correction
 */
void adam(long threads, long count, const float *grad, float *mean, float *square, float *weight,
          float beta1, float beta2, float correction, float rate)
{
    IN_PARALLEL {
        const part p = part_of(count, threads);
        EACH_UNIT
        for (long j = p.from; j < p.to; j++) {
            mean[j] += (1.0f - beta1) * (grad[j] - mean[j]);
            square[j] = beta2 * square[j] + (1.0f - beta2) * grad[j] * grad[j];
            weight[j] -= rate * mean[j] / (__builtin_sqrtf(square[j]) / correction + 1e-8f);
        }
    }
}

/* ---- Muon ---- */

/* W [gates * rows, inputs] and U [gates * rows, rows] side by side, each gate cut into bands of
 * `height` rows, of which the last is padded with zeros. */
typedef struct {
    long gates, rows, inputs, height;
} bands;

static long bands_of_gate(bands b) { return (b.rows + b.height - 1) / b.height; }

static long columns_of(bands b) { return b.inputs + b.rows; }

INLINE void gather(const int narrow, part p, bands b, const float *grad_w, const float *grad_u,
                   float *mean_w, float *mean_u, float momentum, float cushion, float *ahead,
                   void *out)
{
    const long columns = columns_of(b), each = bands_of_gate(b);
    for (long band = p.from; band < p.to; band++) {
        const long first = band % each * b.height, rows = least(b.height, b.rows - first);
        float squares = 0;
        for (long row = 0; row < 2 * rows; row++) { /* of W, of U, of W, ... */
            const long width = row % 2 ? b.rows : b.inputs;
            const long at = (band / each * b.rows + first + row / 2) * width;
            const float *grad = (row % 2 ? grad_u : grad_w) + at;
            float *mean = (row % 2 ? mean_u : mean_w) + at;
            float *to = ahead + row / 2 * columns + row % 2 * b.inputs;
#pragma omp simd reduction(+ : squares)
            for (long j = 0; j < width; j++) {
                mean[j] += (1.0f - momentum) * (grad[j] - mean[j]);
                to[j] = mean[j] + (1.0f - momentum) * (grad[j] - mean[j]);
                squares += to[j] * to[j];
            }
        }
        const float scale = 1.0f / (__builtin_sqrtf(squares) * cushion + 1e-12f);
        const long start = band * b.height * columns;
        EACH_UNIT
        for (long j = 0; j < rows * columns; j++)
            store(narrow, out, start + j, ahead[j] * scale);
        for (long j = rows * columns; j < b.height * columns; j++)
            store(narrow, out, start + j, 0);
    }
}

/* Update the running means of the gradients; put the means ahead (Nesterov's) into bands, each
 * scaled to a norm of 1 / cushion.
 *
 *   room     [threads, height, inputs + rows]: scratch space
 *   out      [gates, bands, height, inputs + rows], written
 */
void muon_gather(long threads, long narrow, long gates, long rows, long inputs, long height,
                 const float *grad_w, const float *grad_u, float *mean_w, float *mean_u,
                 float momentum, float cushion, float *room, void *out)
{
    const bands b = {gates, rows, inputs, height};
    IN_PARALLEL {
        const part p = part_of(gates * bands_of_gate(b), threads);
        float *ahead = room + p.number * height * columns_of(b);
        FOR_TYPE(gather, p, b, grad_w, grad_u, mean_w, mean_u, momentum, cushion, ahead, out)
    }
}

INLINE void subtract(const int narrow, const void *moves, long start, const float *grad, float rate,
                     long width, float *weight)
{
    EACH_UNIT
    for (long j = 0; j < width; j++) {
        const float move = load(narrow, moves, start + j);
        weight[j] -= !grad || move * grad[j] > 0.0f ? rate * move : 0.0f;
    }
}

INLINE void move(const int narrow, part p, bands b, const void *moves, const float *grad_w,
                 const float *grad_u, float rate, float *w, float *u)
{
    for (long row = p.from; row < p.to; row++) {
        const long gate = row / b.rows, above = gate * bands_of_gate(b) * b.height;
        const long start = (above + row % b.rows) * columns_of(b);
        const long at_w = row * b.inputs, at_u = row * b.rows;
        subtract(narrow, moves, start, grad_w ? grad_w + at_w : 0, rate, b.inputs, w + at_w);
        subtract(narrow, moves, start + b.inputs, grad_u ? grad_u + at_u : 0, rate, b.rows,
                 u + at_u);
    }
}

/* Move W and U against `moves`, in bands as muon_gather's out, times a rate; but leave out moves
 * that do not have the gradient's sign, unless the gradients are null. */
void muon_move(long threads, long narrow, long gates, long rows, long inputs, long height,
               const void *moves, const float *grad_w, const float *grad_u, float rate, float *w,
               float *u)
{
    const bands b = {gates, rows, inputs, height};
    IN_PARALLEL {
        const part p = part_of(gates * rows, threads);
        FOR_TYPE(move, p, b, moves, grad_w, grad_u, rate, w, u)
    }
}
