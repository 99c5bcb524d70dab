/* The time-step loops of the three recurrences, over a window of text.
 *
 * A step of 16 lanes takes tens of microseconds, so between two steps there are no calls into
 * libraries and no allocations, and the product keeps its sums in registers. Threads share out
 * either the lanes or the units.
 *
 * Lanes do not depend on each other: a thread runs its own lanes through all time steps, and none
 * waits for another. If threads share the units, they wait for each other at every time step. But
 * each reads only its part of the matrix, which may then fit its core's cache, and multiplies it
 * by all lanes at once. The result is the same: a sum is always made by one thread, in one order.
 *
 * The recurrent product's factors are float32, or bf16 if `narrow` is set, which requires that the
 * processor multiplies it.
 *
 * charrnn/native.py compiles this file for the machine it runs on and calls it;
 * charrnn/loops.py does what comes before and after the loops.
 */

#include "products.h"

/* Parameters of all loops:
 *
 *   threads  how many threads share out the work; the team may have more, which get none
 *   apart    whether each of them has its own lanes; else they share out the units
 *   narrow   whether the panels are bf16
 *   panels   forward: of U transposed, [H, gates * H], a block for each gate; backward: of U,
 *            [gates * H, H], one block
 *   projected   [T, B, gates * H]: W x + b; or, of D distinct x, [D, gates * H], and
 *   which    [T, B]: which of them each step of a lane reads; else null
 *   states   [T + 1, B, H]: h; the first is given, forward writes the others
 *   cells    [T + 1, B, H]: an LSTM's c, likewise; else null
 *   kept     [T, B, ...]: what backward needs of each step; forward writes it, unless null
 *   d_out    [T, B, H]: gradient of the outputs
 *   dh, dc   [B, H]: gradient of the last state and cell on entry, of the first on return
 *   d        [T, B, gates * H], written: gradient before the gates' functions
 *   room     scratch space: sums [B, columns of the panels]; and the factors in bf16, [B, inner],
 *            of which each thread has its own copy if the threads share the units
 */

/* What one thread does: `rows` lanes from `first` on, and of each of the matrix's blocks the panels
 * `panel` to `panel_end`. In the columns of these panels are its units, `from` to `to`. */
typedef struct {
    long first, rows, panel, panel_end, from, to;
    float *sums;   /* of its lanes: [rows, columns] */
    float *narrow; /* room for its lanes in bf16 */
} share;

static share share_of(matrix m, long threads, long apart, long lanes, long hidden, float *room)
{
    const long team = omp_get_num_threads(), shares = least(threads, team);
    const long number = least(omp_get_thread_num(), shares), next = least(number + 1, shares);
    share s = {.rows = lanes, .panel_end = m.each};
    if (apart) {
        s.first = lanes * number / shares;
        s.rows = lanes * next / shares - s.first;
    } else {
        s.panel = m.each * number / shares;
        s.panel_end = m.each * next / shares;
    }
    s.from = least(s.panel * WIDTH, hidden);
    s.to = least(s.panel_end * WIDTH, hidden);
    s.sums = room + s.first * width_of(m);
    s.narrow = room + lanes * width_of(m) + (apart ? s.first : number * lanes) * m.inner;
    return s;
}

/* The team is as large as torch's on Linux, though some threads may get no share: with a smaller
 * one gcc's OpenMP would end the surplus threads and start new ones for torch's next product. */
#define IN_PARALLEL _Pragma("omp parallel if(threads > 1)")

/* Where threads share the units, wait until all of them are here. */
#define WAIT                                                                                     \
    if (!apart) {                                                                                \
        _Pragma("omp barrier")                                                                   \
    }

/*   cell     RNN, LSTM or GRU
 *   bias     [H], a GRU's second bias; else null
 */
void forward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
             const void *panels, long cell, const float *projected, const int64_t *which,
             const float *bias, float *states, float *cells, float *kept, float *room)
{
    const long gates = gates_of(cell) * hidden;
    const matrix m = as_matrix(panels, hidden, gates_of(cell), hidden, narrow ? NARROWS : FLOATS);
    const long stride = m.each * WIDTH;
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = 0; t < steps; t++) {
            multiply(m, s.panel, s.panel_end, s.rows, states + (t * lanes + s.first) * hidden,
                     hidden, s.sums, s.narrow);
            for (long row = 0; row < s.rows; row++) {
                const long at = t * lanes + s.first + row, next = (at + lanes) * hidden;
                const float *sum = s.sums + row * width_of(m);
                const float *x = projected + (which ? which[at] : at) * gates;
                if (cell == RNN)
                    rnn_units(s.from, s.to, sum, x, states + next);
                else if (cell == LSTM)
                    lstm_units(s.from, s.to, hidden, sum, stride, x, cells + at * hidden,
                               cells + next, states + next, kept ? kept + at * 5 * hidden : 0);
                else
                    gru_units(s.from, s.to, hidden, sum, stride, x, bias, states + at * hidden,
                              states + next, kept ? kept + at * 4 * hidden : 0);
            }
            WAIT
        }
    }
}

void rnn_backward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *d_out, float *dh,
                  float *d, float *room)
{
    const matrix m = as_matrix(panels, hidden, 1, hidden, narrow ? NARROWS : FLOATS);
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < s.rows; row++) {
                const long at = (t * lanes + s.first + row) * hidden;
                const float *h = states + at + lanes * hidden, *above = d_out + at;
                const float *later = dh + (s.first + row) * hidden;
                float *here = d + at;
                EACH_UNIT
                for (long j = s.from; j < s.to; j++)
                    here[j] = (later[j] + above[j]) * (1.0f - h[j] * h[j]);
            }
            WAIT
            multiply(m, s.panel, s.panel_end, s.rows, d + (t * lanes + s.first) * hidden,
                     hidden, s.sums, s.narrow);
            for (long row = 0; row < s.rows; row++)
                memcpy(dh + (s.first + row) * hidden + s.from,
                       s.sums + row * width_of(m) + s.from, (s.to - s.from) * sizeof *dh);
        }
    }
}

void lstm_backward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
                   const void *panels, const float *cells, const float *kept, const float *d_out,
                   float *dh, float *dc, float *d, float *room)
{
    const matrix m = as_matrix(panels, 4 * hidden, 1, hidden, narrow ? NARROWS : FLOATS);
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < s.rows; row++) {
                const long at = t * lanes + s.first + row;
                const float *gates = kept + at * 5 * hidden, *c = cells + at * hidden;
                const float *above = d_out + at * hidden, *later = dh + (s.first + row) * hidden;
                float *dc_row = dc + (s.first + row) * hidden, *here = d + at * 4 * hidden;
                EACH_UNIT
                for (long j = s.from; j < s.to; j++) {
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
            WAIT
            multiply(m, s.panel, s.panel_end, s.rows, d + (t * lanes + s.first) * 4 * hidden,
                     4 * hidden, s.sums, s.narrow);
            for (long row = 0; row < s.rows; row++)
                memcpy(dh + (s.first + row) * hidden + s.from,
                       s.sums + row * width_of(m) + s.from, (s.to - s.from) * sizeof *dh);
        }
    }
}

/*   d        [T, B, 3H], written: gradients before the sigmas of r and z, and of m
 *   d_n      [T, B, H], written: gradient before n's tanh
 */
void gru_backward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
                  const void *panels, const float *states, const float *kept, const float *d_out,
                  float *dh, float *d, float *d_n, float *room)
{
    const matrix m = as_matrix(panels, 3 * hidden, 1, hidden, narrow ? NARROWS : FLOATS);
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < s.rows; row++) {
                const long at = t * lanes + s.first + row;
                const float *gates = kept + at * 4 * hidden, *h = states + at * hidden;
                const float *above = d_out + at * hidden;
                float *later = dh + (s.first + row) * hidden;
                float *here = d + at * 3 * hidden, *here_n = d_n + at * hidden;
                EACH_UNIT
                for (long j = s.from; j < s.to; j++) {
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
            WAIT
            multiply(m, s.panel, s.panel_end, s.rows, d + (t * lanes + s.first) * 3 * hidden,
                     3 * hidden, s.sums, s.narrow);
            for (long row = 0; row < s.rows; row++) {
                const float *sum = s.sums + row * width_of(m);
                float *later = dh + (s.first + row) * hidden;
                EACH_UNIT
                for (long j = s.from; j < s.to; j++)
                    later[j] += sum[j];
            }
        }
    }
}
