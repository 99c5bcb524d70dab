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
               long depth, long vocabulary)
{
    const matrix m = as_matrix(0, hidden, 1, gates_of(cell) * hidden, type);
    const matrix head = as_matrix(0, hidden, 1, vocabulary, type);
    const long copies = type == FLOATS ? 0 : apart ? 1 : threads;
    return lanes * ((depth + 1) * width_of(m) + width_of(head) + copies * m.inner);
}

/* Multiply a thread's lanes of x[B, given] with its panels of a matrix: sums[B, width_of(m)]. */
static void multiply_part(matrix m, const void *panels, part which, part lanes, const float *x,
                          long given, float *sums, float *narrow)
{
    m.panels = panels;
    multiply(m, which.from, which.to, lanes.to - lanes.from, x + lanes.from * given, given,
             sums + lanes.from * width_of(m), narrow);
}

/* Read one more character of every lane.
 *
 *   threads  how many threads share out the lanes, or the units if `apart` is not set: then they
 *            wait for each other, twice per layer
 *   type     of the panels: FLOATS, NARROWS or BYTES
 *   depth    how many layers there are
 *   made     how many steps of few lanes have been made; this one is added
 *   table    [V, gates * H]: W x + b of the lowest layer, for every symbol
 *   symbols  [B], the characters to read
 *   head     panels of the head's weights, transposed
 *   logits   [B, V], written
 *   room     [step_room]: scratch space
 */
void step(long threads, long apart, long cell, long type, long lanes, long hidden, long depth,
          int64_t *made, const layer *layers, const float *table, const int64_t *symbols,
          long vocabulary, const void *head, const float *head_bias, float *logits, float *room)
{
    const long gates = gates_of(cell) * hidden;
    /* The products of many lanes do not wait for the matrices. */
    const long number = lanes > MOST_ROWS ? 0 : (*made)++;
    const matrix top = as_matrix(0, hidden, 1, vocabulary, type);
    const matrix m = in_turn(as_matrix(0, hidden, 1, gates, type), number);
    const long columns = width_of(m), top_columns = width_of(top);
    float *sums = room, *inputs = sums + depth * lanes * columns;
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
        for (long l = depth - 1; l >= 0 && m.back; l--)
            multiply_part(m, layers[l].recurrent, panels, own, layers[l].h, hidden,
                          sums + l * lanes * columns, narrow);
        for (long l = 0; l < depth; l++) {
            const layer at = layers[l];
            if (l) {
                multiply_part(m, at.inputs, panels, own, layers[l - 1].h, hidden, inputs, narrow);
                for (long row = own.from; row < own.to; row++)
                    for (long j = panels.from * WIDTH; j < least(panels.to * WIDTH, gates); j++)
                        inputs[row * columns + j] += at.bias[j];
            }
            if (!m.back)
                multiply_part(m, at.recurrent, panels, own, at.h, hidden,
                              sums + l * lanes * columns, narrow);
            wait_unless(apart);
            for (long row = own.from; row < own.to; row++) {
                const float *sum = sums + (l * lanes + row) * columns;
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
        multiply_part(top, head, top_panels, own, layers[depth - 1].h, hidden, above, narrow);
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
