/* More characters of several texts: all layers of a model, its head, and draws.
 *
 * A step is a handful of products, each of which reads a matrix once; a single call keeps the
 * overhead small. Threads share out the lanes; or they share out the units, and wait for each
 * other. charrnn/compute/steps.py finds by trial which is faster.
 *
 * charrnn/compute/steps.py compiles this file for the machine it runs on and calls it.
 */

#define WITH_BYTES
#include "products.h"

/* In the order of Layer in charrnn/compute/steps.py; pointers only. */
typedef struct {
    const void *inputs;       /* panels of W transposed; null in the lowest layer */
    const void *recurrent;    /* panels of U transposed */
    const float *bias;        /* [gates * H]; null in the lowest layer */
    const float *second_bias; /* [H], a GRU's; else null */
    float *h, *c;             /* [B, H], the states, which are overwritten; c: an LSTM's, or null */
} layer;

/* What a step works on, in the order of _Task in charrnn/compute/steps.py. */
typedef struct {
    long cell, type;          /* the panels' type: FLOATS, NARROWS or BYTES */
    long lanes, hidden, depth, vocabulary;
    const layer *layers;      /* [depth] */
    const float *table;       /* [V, gates * H]: W x + b of the lowest layer, for every symbol */
    const void *head;         /* panels of the head's weights, transposed */
    const float *head_bias;   /* [V] */
    int64_t *symbols;         /* [B]: the characters to read; a draw overwrites them */
    float *logits;            /* [B, V], written */
    float *room;              /* [step_room]: scratch space */
    const double *points;     /* [steps, B], from 0 to 1 exclusively: what to draw */
    int64_t *drawn;           /* [steps, B], written */
    double temperature;       /* at least 0 */
    double top_p;             /* of the likeliest symbols that reach this; at least 1: of all */
    int64_t top_k;            /* of so many of the likeliest symbols */
    int64_t never;            /* the symbol that is not drawn, or -1 */
    int64_t made;             /* how many steps of few lanes have been made */
} task;

/* Floats of scratch space that a step needs: the sums, and the states in fewer bits, of which each
 * thread has its own copy if the threads share the units. */
long step_room(long threads, long apart, const task *at)
{
    const matrix m = as_matrix(0, at->hidden, 1, gates_of(at->cell) * at->hidden, at->type);
    const matrix head = as_matrix(0, at->hidden, 1, at->vocabulary, at->type);
    const long copies = at->type == FLOATS ? 0 : apart ? 1 : threads;
    return at->lanes * ((at->depth + 1) * width_of(m) + width_of(head) + copies * m.inner);
}

/* Multiply a thread's lanes of x[B, given] with its panels of a matrix: sums[B, width_of(m)]. */
static void multiply_part(matrix m, const void *panels, part which, part lanes, const float *x,
                          long given, float *sums, float *narrow)
{
    m.panels = panels;
    multiply(m, which.from, which.to, lanes.to - lanes.from, x + lanes.from * given, given,
             sums + lanes.from * width_of(m), narrow);
}

/* ---- Drawing ---- */

/* Powers that are added up without looking at each. */
#define BLOCK 64

static double sum_of(long count, const float *powers)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < count; j++)
        sum += powers[j];
    return sum;
}

static double total_of(long vocabulary, const float *powers)
{
    double all = 0;
    for (long from = 0; from < vocabulary; from += BLOCK)
        all += sum_of(least(BLOCK, vocabulary - from), powers + from);
    return all;
}

/* A float's bits as an integer that is in the order of the floats; and the other way round. */
INLINE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

/* What symbols with this logit or a larger one have together: their number or their powers. */
INLINE double reached(const int counted, float logit, long vocabulary, const float *logits,
                      const float *powers)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < vocabulary; j++)
        sum += logits[j] < logit ? 0.0f : counted ? 1.0f : powers[j];
    return sum;
}

/* Keep the fewest of the likeliest symbols whose number, or whose powers, reach `enough`; of equal
 * ones the first. The powers of all others become 0. `most` is the largest logit. */
INLINE void keep_likeliest(const int counted, double enough, float most, long vocabulary,
                           const float *logits, float *powers)
{
    /* Halve the floats among which is the largest logit from which on enough is reached. */
    union { float value; int32_t bits; } lowest = {-__builtin_inff()}, cut = {most};
    int64_t low = ordered(lowest.bits), high = ordered(cut.bits);
    double above = 0; /* of the symbols with a larger logit than that */
    while (low < high) {
        const double sum = reached(counted, cut.value, vocabulary, logits, powers);
        if (sum < enough) {
            high = ordered(cut.bits) - 1;
            above = sum;
        } else {
            low = ordered(cut.bits);
        }
        cut.bits = ordered(high - (high - low) / 2);
    }
    for (long j = 0; j < vocabulary; j++) {
        if (logits[j] > cut.value)
            continue;
        if (logits[j] == cut.value && above < enough)
            above += counted ? 1.0f : powers[j];
        else
            powers[j] = 0;
    }
}

/* Keep what top-k and top-p let through; return the sum of its powers. Inlined, this would slow
 * down the draws without it. */
static __attribute__((noinline)) double truncated(const task *of, double all, float most,
                                                  const float *logits, float *powers)
{
    if (of->top_k < of->vocabulary) {
        keep_likeliest(1, of->top_k, most, of->vocabulary, logits, powers);
        all = total_of(of->vocabulary, powers);
    }
    if (of->top_p < 1) {
        keep_likeliest(0, of->top_p * all, most, of->vocabulary, logits, powers);
        all = total_of(of->vocabulary, powers);
    }
    return all;
}

/* Draw a symbol: the first at which the probabilities so far add up to more than a point. They are
 * e^(logit / temperature), within four millionths of each, or 0 below e^-87 times the largest.
 * It is symbol 0 if a logit is no number, or none is above -inf. */
static int64_t drawn_symbol(const task *of, const float *logits, double point, float *powers)
{
    const long vocabulary = of->vocabulary;
    float most = logits[0];
#pragma omp simd reduction(max : most)
    for (long j = 1; j < vocabulary; j++)
        most = logits[j] > most ? logits[j] : most;
    /* 0 times infinity would be no number. */
    const double scale = of->temperature < 1e-300 ? 1e300 : 1 / of->temperature;
    for (long j = 0; j < vocabulary; j++) {
        const float power = (float)(((double)logits[j] - most) * scale);
        powers[j] = power < -87.0f ? 0.0f : exponential(power, 0.0f);
    }
    const double all = total_of(vocabulary, powers);
    if (!(all > 0))
        return 0;
    const double until = point * truncated(of, all, most, logits, powers);
    long at = 0;
    double sum = 0;
    for (double next; at + BLOCK < vocabulary; at += BLOCK, sum = next) {
        next = sum + sum_of(BLOCK, powers + at);
        if (!(next <= until))
            break;
    }
    const long last = least(at + BLOCK, vocabulary) - 1;
    for (; at < last; at++) {
        sum += powers[at];
        if (!(sum <= until))
            break;
    }
    /* Added up one by one, a block can be rounded to less: then it is its last one above 0. */
    while (at > 0 && powers[at] == 0)
        at--;
    return at;
}

/* Draw the next symbol of the lanes `from` to `to` by their logits; powers: [B, stride]. */
static void draw_lanes(const task *at, long from, long to, float *powers, long stride)
{
    for (long row = from; row < to; row++) {
        float *logits = at->logits + row * at->vocabulary;
        if (at->never >= 0)
            logits[at->never] = -__builtin_inff();
        at->symbols[row] = drawn_symbol(at, logits, at->points[row], powers + row * stride);
    }
}

/* Draw every lane's next symbol by logits that are there already. */
void draw(const task *at) { draw_lanes(at, 0, at->lanes, at->room, at->vocabulary); }

/* ---- Steps ---- */

/* Read one more character of every lane and, if `draws` is set, draw the next one. */
static void make_step(long threads, long apart, long draws, task *all)
{
    const task at = *all;
    const long lanes = at.lanes, hidden = at.hidden, gates = gates_of(at.cell) * hidden;
    /* The products of many lanes do not wait for the matrices. */
    const long number = lanes > MOST_ROWS ? 0 : all->made++;
    const matrix top = as_matrix(0, hidden, 1, at.vocabulary, at.type);
    const matrix m = in_turn(as_matrix(0, hidden, 1, gates, at.type), number);
    const long columns = width_of(m), top_columns = width_of(top);
    float *sums = at.room, *inputs = sums + at.depth * lanes * columns;
    float *above = inputs + lanes * columns, *rest = above + lanes * top_columns;

    /* Not IN_PARALLEL: between two steps torch has no products, so the team may be smaller. */
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const part own = part_or_all(apart, lanes, threads);
        const part units = part_or_all(!apart, hidden, threads);
        const part panels = part_or_all(!apart, m.each, threads);
        const part top_panels = part_or_all(!apart, top.each, threads);
        float *narrow = rest + (apart ? own.from : own.number * lanes) * m.inner;
        /* U's products need only the states before this step. If it reads backwards, they come
         * first, beginning with the top layer's, which the step before read last. */
        for (long l = at.depth - 1; l >= 0 && m.back; l--)
            multiply_part(m, at.layers[l].recurrent, panels, own, at.layers[l].h, hidden,
                          sums + l * lanes * columns, narrow);
        for (long l = 0; l < at.depth; l++) {
            const layer here = at.layers[l];
            if (l) {
                multiply_part(m, here.inputs, panels, own, at.layers[l - 1].h, hidden, inputs,
                              narrow);
                for (long row = own.from; row < own.to; row++)
                    for (long j = panels.from * WIDTH; j < least(panels.to * WIDTH, gates); j++)
                        inputs[row * columns + j] += here.bias[j];
            }
            if (!m.back)
                multiply_part(m, here.recurrent, panels, own, here.h, hidden,
                              sums + l * lanes * columns, narrow);
            wait_unless(apart);
            for (long row = own.from; row < own.to; row++) {
                const float *sum = sums + (l * lanes + row) * columns;
                const float *x = l ? inputs + row * columns : at.table + at.symbols[row] * gates;
                float *h = here.h + row * hidden, *c = here.c ? here.c + row * hidden : 0;
                if (at.cell == RNN)
                    rnn_units(units.from, units.to, sum, x, h);
                else if (at.cell == LSTM)
                    lstm_units(units.from, units.to, hidden, sum, hidden, x, c, c, h, 0);
                else
                    gru_units(units.from, units.to, hidden, sum, hidden, x, here.second_bias, h, h,
                              0);
            }
            wait_unless(apart);
        }
        multiply_part(top, at.head, top_panels, own, at.layers[at.depth - 1].h, hidden, above,
                      narrow);
        const long top_end = least(top_panels.to * WIDTH, at.vocabulary);
        for (long row = own.from; row < own.to; row++)
            for (long j = top_panels.from * WIDTH; j < top_end; j++)
                at.logits[row * at.vocabulary + j] =
                    above[row * top_columns + j] + at.head_bias[j];
        if (draws) {
            wait_unless(apart);
            const part drawing = part_of(lanes, threads);
            draw_lanes(&at, drawing.from, drawing.to, above, top_columns);
        }
    }
}

/* Read one more character of every lane; or, if `most` is not 0, do so and draw the next one, up to
 * `most` times: until a symbol 0 is drawn, as its logits may be no numbers. Return how many times.
 *
 * The threads share out the lanes or, if `apart` is not set, the units: then they wait for each
 * other, twice per layer. */
long step(long threads, long apart, long most, task *all)
{
    if (most == 0)
        make_step(threads, apart, 0, all);
    const double *points = all->points;
    long steps = 0, zeros = 0;
    for (; steps < most && zeros == 0; steps++, all->points += all->lanes) {
        make_step(threads, apart, 1, all);
        memcpy(all->drawn + steps * all->lanes, all->symbols, all->lanes * sizeof *all->symbols);
        for (long row = 0; row < all->lanes; row++)
            zeros += all->symbols[row] == 0;
    }
    all->points = points;
    return steps;
}
