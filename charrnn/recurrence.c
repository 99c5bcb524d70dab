/* The time-step loops of the three recurrences, over a window of text.
 *
 * A step of 16 lanes takes tens of microseconds, so between two steps there are no calls into
 * libraries and no allocations, and the product keeps its sums in registers. Lanes do not depend
 * on each other: each thread runs its own lanes through all time steps, and none waits for
 * another. A lane's result does not depend on which lanes run beside it.
 *
 * The recurrent product's factors are float32, or bf16 if `narrow` is set, which requires that the
 * processor multiplies it.
 *
 * charrnn/native.py compiles this file for the machine it runs on and calls it;
 * charrnn/loops.py does what comes before and after the loops.
 */

#include "products.h"

/* Floats of scratch space that a lane needs: its sums, and its factors in bf16. */
static long room_of(matrix m) { return m.count * WIDTH + m.inner; }

/* Parameters of all loops:
 *
 *   threads  how many threads share out the lanes; the team may have more, which get none
 *   narrow   whether the panels are bf16
 *   panels   forward: of U transposed, [H, gates * H]; backward: of U, [gates * H, H]
 *   projected   [T, B, gates * H]: W x + b; or, of D distinct x, [D, gates * H], and
 *   which    [T, B]: which of them each step of a lane reads; else null
 *   states   [T + 1, B, H]: h; the first is given, forward writes the others
 *   cells    [T + 1, B, H]: an LSTM's c, likewise; else null
 *   kept     [T, B, ...]: what backward needs of each step; forward writes it, unless null
 *   d_out    [T, B, H]: gradient of the outputs
 *   dh, dc   [B, H]: gradient of the last state and cell on entry, of the first on return
 *   d        [T, B, gates * H], written: gradient before the gates' functions
 *   room     [B, room_of]: scratch space
 */

/* The team is as large as torch's on Linux, though some threads may get no share: with a smaller
 * one gcc's OpenMP would end the surplus threads and start new ones for torch's next product. */
#define EACH_SHARE                                                                               \
    _Pragma("omp parallel for if(threads > 1)")                                                  \
    for (long share = 0; share < threads; share++)
#define FIRST (lanes * share / threads)
#define LAST (lanes * (share + 1) / threads)

/*   cell     RNN, LSTM or GRU
 *   bias     [H], a GRU's second bias; else null
 */
void forward(long threads, long narrow, long steps, long lanes, long hidden, const void *panels,
             long cell, const float *projected, const int64_t *which, const float *bias,
             float *states, float *cells, float *kept, float *room)
{
    const long gates = gates_of(cell) * hidden;
    const matrix m = as_matrix(panels, hidden, gates, narrow ? NARROWS : FLOATS);
    EACH_SHARE {
        const long first = FIRST, rows = LAST - first;
        float *sums = room + first * room_of(m);
        for (long t = 0; t < steps; t++) {
            multiply(m, 0, m.count, rows, states + (t * lanes + first) * hidden, hidden, sums,
                     sums + rows * m.count * WIDTH);
            for (long row = 0; row < rows; row++) {
                const long at = t * lanes + first + row, next = (at + lanes) * hidden;
                const float *sum = sums + row * m.count * WIDTH;
                const float *x = projected + (which ? which[at] : at) * gates;
                if (cell == RNN)
                    rnn_units(0, hidden, sum, x, states + next);
                else if (cell == LSTM)
                    lstm_units(0, hidden, hidden, sum, x, cells + at * hidden, cells + next,
                               states + next, kept ? kept + at * 5 * hidden : 0);
                else
                    gru_units(0, hidden, hidden, sum, x, bias, states + at * hidden,
                              states + next, kept ? kept + at * 4 * hidden : 0);
            }
        }
    }
}

void rnn_backward(long threads, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *d_out, float *dh,
                  float *d, float *room)
{
    const matrix m = as_matrix(panels, hidden, hidden, narrow ? NARROWS : FLOATS);
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
            multiply(m, 0, m.count, rows, d + (t * lanes + first) * hidden, hidden, sums,
                     sums + rows * m.count * WIDTH);
            for (long row = 0; row < rows; row++)
                memcpy(dh + (first + row) * hidden, sums + row * m.count * WIDTH,
                       hidden * sizeof *dh);
        }
    }
}

void lstm_backward(long threads, long narrow, long steps, long lanes, long hidden,
                   const void *panels, const float *cells, const float *kept, const float *d_out,
                   float *dh, float *dc, float *d, float *room)
{
    const matrix m = as_matrix(panels, 4 * hidden, hidden, narrow ? NARROWS : FLOATS);
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
            multiply(m, 0, m.count, rows, d + (t * lanes + first) * 4 * hidden, 4 * hidden, sums,
                     sums + rows * m.count * WIDTH);
            for (long row = 0; row < rows; row++)
                memcpy(dh + (first + row) * hidden, sums + row * m.count * WIDTH,
                       hidden * sizeof *dh);
        }
    }
}

/*   d        [T, B, 3H], written: gradients before the sigmas of r and z, and of m
 *   d_n      [T, B, H], written: gradient before n's tanh
 */
void gru_backward(long threads, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *kept, const float *d_out,
                  float *dh, float *d, float *d_n, float *room)
{
    const matrix m = as_matrix(panels, 3 * hidden, hidden, narrow ? NARROWS : FLOATS);
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
            multiply(m, 0, m.count, rows, d + (t * lanes + first) * 3 * hidden, 3 * hidden, sums,
                     sums + rows * m.count * WIDTH);
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
