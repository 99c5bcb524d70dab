/* One more character of several texts: all layers of a model, its head, and a draw.
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

/* Floats of scratch space that a step needs: the sums, and the states in fewer bits, of which each
 * thread has its own copy if the threads share the units. */
long step_room(long threads, long apart, long cell, long type, long lanes, long hidden,
               long vocabulary)
{
    const matrix m = as_matrix(0, hidden, 1, gates_of(cell) * hidden, type);
    const matrix head = as_matrix(0, hidden, 1, vocabulary, type);
    const long copies = type == FLOATS ? 0 : apart ? 1 : threads;
    return lanes * (2 * width_of(m) + width_of(head) + copies * m.inner);
}

/* Read one more character of every lane.
 *
 *   threads  how many threads share out the lanes, or the units if `apart` is not set: then they
 *            wait for each other, twice per layer
 *   type     of the panels: FLOATS, NARROWS or BYTES
 *   depth    how many layers there are
 *   table    [V, gates * H]: W x + b of the lowest layer, for every symbol
 *   symbols  [B], the characters to read
 *   head     panels of the head's weights, transposed
 *   logits   [B, V], written
 *   room     [step_room]: scratch space
 */
void step(long threads, long apart, long cell, long type, long lanes, long hidden, long depth,
          const layer *layers, const float *table, const int64_t *symbols, long vocabulary,
          const void *head, const float *head_bias, float *logits, float *room)
{
    const long gates = gates_of(cell) * hidden;
    const matrix top = as_matrix(head, hidden, 1, vocabulary, type);
    const matrix like = as_matrix(0, hidden, 1, gates, type);
    const long columns = width_of(like), top_columns = width_of(top);
    float *sums = room, *inputs = sums + lanes * columns, *above = inputs + lanes * columns;
    float *rest = above + lanes * top_columns;

    /* Not IN_PARALLEL: between two steps torch has no products, so the team may be smaller. */
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const part own = part_or_all(apart, lanes, threads);
        const part units = part_or_all(!apart, hidden, threads);
        const part panels = part_or_all(!apart, like.each, threads);
        const part top_panels = part_or_all(!apart, top.each, threads);
        const long first = own.from, rows = own.to - own.from;
        float *narrow = rest + (apart ? first : own.number * lanes) * like.inner;
        for (long l = 0; l < depth; l++) {
            const layer at = layers[l];
            matrix m = like;
            m.panels = at.recurrent;
            multiply(m, panels.from, panels.to, rows, at.h + first * hidden, hidden,
                     sums + first * columns, narrow);
            if (l) {
                m.panels = at.inputs;
                multiply(m, panels.from, panels.to, rows, layers[l - 1].h + first * hidden, hidden,
                         inputs + first * columns, narrow);
                for (long row = own.from; row < own.to; row++)
                    for (long j = panels.from * WIDTH; j < least(panels.to * WIDTH, gates); j++)
                        inputs[row * columns + j] += at.bias[j];
            }
            wait_unless(apart);
            for (long row = own.from; row < own.to; row++) {
                const float *sum = sums + row * columns;
                const float *x = l ? inputs + row * columns : table + symbols[row] * gates;
                float *h = at.h + row * hidden, *c = at.c ? at.c + row * hidden : 0;
                if (cell == RNN)
                    rnn_units(units.from, units.to, sum, x, h);
                else if (cell == LSTM)
                    lstm_units(units.from, units.to, hidden, sum, hidden, x, c, c, h, 0);
                else
                    gru_units(units.from, units.to, hidden, sum, hidden, x, at.second_bias, h, h,
                              0);
            }
            wait_unless(apart);
        }
        multiply(top, top_panels.from, top_panels.to, rows, layers[depth - 1].h + first * hidden,
                 hidden, above + first * top_columns, narrow);
        const long top_end = least(top_panels.to * WIDTH, vocabulary);
        for (long row = own.from; row < own.to; row++)
            for (long j = top_panels.from * WIDTH; j < top_end; j++)
                logits[row * vocabulary + j] = above[row * top_columns + j] + head_bias[j];
    }
}

/* Draw each lane's next symbol: the first at which the probabilities so far add up to more than
 * the lane's point. The probabilities are e^(logit / temperature), within four millionths of each,
 * or 0 below e^-87 times the largest.
 *
 *   logits   [B, V]; that of a symbol that must not be drawn is -inf
 *   points   [B], from 0 to 1 exclusively: shares of the sum of all probabilities
 *   sums     [V]: scratch space
 *   symbols  [B], written; 0 if a logit is no number, or none is above -inf
 */
void draw(long lanes, long vocabulary, const float *logits, double temperature,
          const double *points, double *sums, int64_t *symbols)
{
    for (long lane = 0; lane < lanes; lane++) {
        const float *x = logits + lane * vocabulary;
        float most = x[0];
        for (long j = 1; j < vocabulary; j++)
            most = x[j] > most ? x[j] : most;
        for (long j = 0; j < vocabulary; j++) {
            const float power = (float)(((double)x[j] - most) / temperature);
            sums[j] = power < -87.0f ? 0.0f : exponential(power, 0.0f);
        }
        for (long j = 1; j < vocabulary; j++)
            sums[j] += sums[j - 1];
        const double point = points[lane] * sums[vocabulary - 1];
        long before = 0;
        for (long j = 0; j < vocabulary; j++)
            before += sums[j] <= point;
        symbols[lane] = before;
    }
}
