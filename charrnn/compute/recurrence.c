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
 * charrnn/compute/recurrence.py compiles this file for the machine it runs on and calls it;
 * charrnn/compute/autograd.py does what comes before and after the loops.
 */

#include "products.h"

/* Parameters of all loops:
 *
 *   threads  how many threads share out the work; the team may have more, which get none
 *   apart    whether each of them has its own lanes; else they share out the units
 *   narrow   whether the panels and the typed arrays are bf16; else they are float32
 *   panels   forward: of U transposed, [H, gates * H], a block for each gate; backward: of U,
 *            [gates * H, H], one block
 *   projected   [T, B, gates * H]: W x + b; or, of D distinct x, [D, gates * H], and
 *   which    [T, B]: which of them each step of a lane reads; else null
 *   states   [T + 1, B, H]: h; the first is given, forward writes the others
 *   typed    [T + 1, B, inner], written: the states in bf16, padded for the product; in float32
 *            it is `states`
 *   cells    [T + 1, B, H]: an LSTM's c, likewise; else null
 *   kept     [T, B, ...]: what backward needs of each step; forward writes it, unless null
 *   d_out    [T, B, H], typed: gradient of the outputs
 *   dh, dc   [B, H]: gradient of the last state and cell on entry, of the first on return
 *   d        [T, B, inner], typed, written: gradient before the gates' functions, gates * H, which
 *            in bf16 is padded for the product
 *   room     scratch space: sums [B, columns of the panels]; and for each thread [4 * H]
 */

/* What one thread does: `rows` lanes from `first` on, and of each of the matrix's blocks the panels
 * `panel` to `panel_end`. In the columns of these panels are its units, `from` to `to`. */
typedef struct {
    long first, rows, panel, panel_end, from, to;
    float *sums; /* of its lanes: [rows, columns] */
    float *wide; /* [4 * hidden]: a lane's gradients that are yet to be rounded */
} share;

static share share_of(matrix m, long threads, long apart, long lanes, long hidden, float *room)
{
    const part own = part_or_all(apart, lanes, threads);
    const part panels = part_or_all(!apart, m.each, threads);
    const long number = (apart ? own : panels).number;
    return (share){
        .first = own.from,
        .rows = own.to - own.from,
        .panel = panels.from,
        .panel_end = panels.to,
        .from = least(panels.from * WIDTH, hidden),
        .to = least(panels.to * WIDTH, hidden),
        .sums = room + own.from * width_of(m),
        .wide = room + lanes * width_of(m) + number * 4 * hidden,
    };
}

/* Multiply a thread's lanes of x, from row `at` on, with its panels. */
static void multiply_lanes(matrix m, share s, const void *x, long at, long given)
{
#if defined(NARROW)
    if (m.type == NARROWS) {
        multiply_narrowed(m, s.panel, s.panel_end, s.rows, (const uint16_t *)x + at * m.inner,
                          s.sums);
        return;
    }
#endif
    multiply(m, s.panel, s.panel_end, s.rows, (const float *)x + at * given, given, s.sums, 0);
}

/* Round a thread's units of each gate to bf16, into a row that is padded to `inner`. */
static void narrow_units(share s, long gates, long hidden, const float *x, long inner,
                         uint16_t *narrow)
{
    const long units = s.to - s.from, pad = units && s.to == hidden ? inner - gates * hidden : 0;
    for (long gate = 0; gate < gates; gate++) {
        const long at = gate * hidden + s.from;
        narrow_row(units, gate + 1 < gates ? units : units + pad, x + at, narrow + at);
    }
}

/*   cell     RNN, LSTM or GRU
 *   bias     [H], a GRU's second bias; else null
 */
void forward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
             const void *panels, long cell, const float *projected, const int64_t *which,
             const float *bias, float *states, void *typed, float *cells, float *kept,
             float *room)
{
    const long gates = gates_of(cell) * hidden;
    const matrix m = as_matrix(panels, hidden, gates_of(cell), hidden, narrow ? NARROWS : FLOATS);
    const long stride = m.each * WIDTH;
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = 0; t <= steps; t++) { /* states[t], of which the first is given */
            for (long row = 0; row < s.rows && t; row++) {
                const long next = t * lanes + s.first + row, at = next - lanes;
                const float *sum = s.sums + row * width_of(m);
                const float *x = projected + (which ? which[at] : at) * gates;
                float *h_next = states + next * hidden;
                if (cell == RNN)
                    rnn_units(s.from, s.to, sum, x, h_next);
                else if (cell == LSTM)
                    lstm_units(s.from, s.to, hidden, sum, stride, x, cells + at * hidden,
                               cells + next * hidden, h_next, kept ? kept + at * 5 * hidden : 0);
                else
                    gru_units(s.from, s.to, hidden, sum, stride, x, bias, states + at * hidden,
                              h_next, kept ? kept + at * 4 * hidden : 0);
            }
            for (long row = 0; row < s.rows && narrow; row++) {
                const long at = t * lanes + s.first + row;
                narrow_units(s, 1, hidden, states + at * hidden, m.inner,
                             (uint16_t *)typed + at * m.inner);
            }
            wait_unless(apart);
            if (t < steps)
                multiply_lanes(in_turn(m, t), s, typed, t * lanes + s.first, hidden);
        }
    }
}

INLINE void rnn_gradients(const int narrow, share s, const float *h, const void *d_out, long at,
                          const float *dh, float *d)
{
    EACH_UNIT
    for (long j = s.from; j < s.to; j++)
        d[j] = (dh[j] + load(narrow, d_out, at + j)) * (1.0f - h[j] * h[j]);
}

INLINE void lstm_gradients(const int narrow, share s, long hidden, const float *c,
                           const float *kept, const void *d_out, long at, const float *dh,
                           float *dc, float *d)
{
    EACH_UNIT
    for (long j = s.from; j < s.to; j++) {
        const float i = kept[j], f = kept[hidden + j], g = kept[2 * hidden + j];
        const float o = kept[3 * hidden + j], tanh_c = kept[4 * hidden + j];
        const float dh_j = dh[j] + load(narrow, d_out, at + j);
        const float dc_j = dc[j] + dh_j * o * (1.0f - tanh_c * tanh_c);
        d[j] = dc_j * g * i * (1.0f - i);
        d[hidden + j] = dc_j * c[j] * f * (1.0f - f);
        d[2 * hidden + j] = dc_j * i * (1.0f - g * g);
        d[3 * hidden + j] = dh_j * tanh_c * o * (1.0f - o);
        dc[j] = dc_j * f;
    }
}

/*   d        gradients before the sigmas of r and z, and of m
 *   d_n      [H]: gradient before n's tanh
 *   dh       on return only what z hands on; the product adds the rest
 */
INLINE void gru_gradients(const int narrow, share s, long hidden, const float *h,
                          const float *kept, const void *d_out, long at, float *dh, float *d,
                          float *d_n)
{
    EACH_UNIT
    for (long j = s.from; j < s.to; j++) {
        const float r = kept[j], z = kept[hidden + j];
        const float m = kept[2 * hidden + j], n = kept[3 * hidden + j];
        const float dh_j = dh[j] + load(narrow, d_out, at + j);
        const float dn = dh_j * (1.0f - z) * (1.0f - n * n);
        d[j] = dn * m * r * (1.0f - r);
        d[hidden + j] = dh_j * (h[j] - n) * z * (1.0f - z);
        d[2 * hidden + j] = dn * r;
        d_n[j] = dn;
        dh[j] = dh_j * z;
    }
}

/*   cell     RNN, LSTM or GRU
 *   d_n      [T, B, H], typed, written: a GRU's gradient before n's tanh; else null
 */
void backward(long threads, long apart, long narrow, long steps, long lanes, long hidden,
              const void *panels, long cell, const float *states, const float *cells,
              const float *kept, const void *d_out, float *dh, float *dc, void *d, void *d_n,
              float *room)
{
    const long gates = gates_of(cell);
    const matrix m = as_matrix(panels, gates * hidden, 1, hidden, narrow ? NARROWS : FLOATS);
    IN_PARALLEL {
        const share s = share_of(m, threads, apart, lanes, hidden, room);
        for (long t = steps - 1; t >= 0; t--) {
            for (long row = 0; row < s.rows; row++) {
                const long at = t * lanes + s.first + row, own = (s.first + row) * hidden;
                float *d_row = narrow ? s.wide : (float *)d + at * gates * hidden;
                float *d_n_row = narrow || !d_n ? s.wide + 3 * hidden : (float *)d_n + at * hidden;
                if (cell == RNN) {
                    FOR_TYPE(rnn_gradients, s, states + (at + lanes) * hidden, d_out, at * hidden,
                             dh + own, d_row)
                } else if (cell == LSTM) {
                    FOR_TYPE(lstm_gradients, s, hidden, cells + at * hidden,
                             kept + at * 5 * hidden, d_out, at * hidden, dh + own, dc + own, d_row)
                } else {
                    FOR_TYPE(gru_gradients, s, hidden, states + at * hidden, kept + at * 4 * hidden,
                             d_out, at * hidden, dh + own, d_row, d_n_row)
                }
                if (narrow)
                    narrow_units(s, gates, hidden, s.wide, m.inner, (uint16_t *)d + at * m.inner);
                if (narrow && d_n)
                    narrow_units(s, 1, hidden, d_n_row, hidden, (uint16_t *)d_n + at * hidden);
            }
            wait_unless(apart);
            multiply_lanes(in_turn(m, t), s, d, t * lanes + s.first, gates * hidden);
            for (long row = 0; row < s.rows; row++) {
                const float *sum = s.sums + row * width_of(m);
                float *dh_row = dh + (s.first + row) * hidden;
                EACH_UNIT
                for (long j = s.from; j < s.to; j++)
                    dh_row[j] = cell == GRU ? dh_row[j] + sum[j] : sum[j];
            }
        }
    }
}

INLINE void add_rows(const int narrow, part p, long count, long columns, const void *x, long stride,
                     const int64_t *which, float *sums)
{
    const long end = least(p.to * WIDTH, columns);
    for (long row = 0; row < count; row++) {
        float *sum = sums + (which ? which[row] * columns : 0);
        EACH_UNIT
        for (long j = p.from * WIDTH; j < end; j++)
            sum[j] += load(narrow, x, row * stride + j);
    }
}

/* Add rows of typed numbers up. Threads share out the columns.
 *
 *   x        [count, columns], typed; a row begins `stride` numbers after the one before it
 *   which    [count]: which of the sums a row belongs to; null: all to the first
 *   sums     [D, columns], zeros on entry
 */
void sum_rows(long threads, long narrow, long count, long columns, const void *x, long stride,
              const int64_t *which, float *sums)
{
    IN_PARALLEL {
        const part p = part_of((columns + WIDTH - 1) / WIDTH, threads);
        FOR_TYPE(add_rows, p, count, columns, x, stride, which, sums)
    }
}

/* So many rows of d and x are multiplied at a time: what a panel holds of them stays in a core's
 * first cache. */
#define DEPTH 256

/* Copy `columns`, at most `width`, of x[depth, stride] to strip[depth, width]; pad with zeros. A
 * whole row has its own branch, because a copy of constant size is a few vectors. */
INLINE void copy_strip(const long width, long depth, long columns, const float *x, long stride,
                       float *strip)
{
    for (long row = 0; row < depth; row++, x += stride, strip += width)
        if (columns == width)
            memcpy(strip, x, width * sizeof *x);
        else {
            memcpy(strip, x, columns * sizeof *x);
            memset(strip + columns, 0, (width - columns) * sizeof *x);
        }
}

static long strips_of(long outputs) { return (outputs + MOST_ROWS - 1) / MOST_ROWS; }

/* What weight_gradient needs as `room`: the strips of d; a panel and a tile for each thread. */
long gradient_room(long threads, long outputs)
{
    const long strips = strips_of(outputs) * MOST_ROWS * DEPTH;
    return strips + threads * (DEPTH + MOST_ROWS) * WIDTH;
}

/* Write strip[depth, rows]' @ panel[depth, WIDTH] to out[rows, columns], or add it if `add`.
 *
 *   tile     [rows, WIDTH], for what is wider than `out`
 */
static void multiply_strip(long depth, long rows, const float *strip, const float *panel,
                           long columns, float *out, long stride, long add, float *tile)
{
    const int fits = columns == WIDTH;
    float *sums = fits ? out : tile;
    const long sums_stride = fits ? stride : WIDTH;
    long row = 0;
    IN_BLOCKS(multiply_wide(some, depth, strip + row, 1, MOST_ROWS, panel, panel,
                            sums + row * sums_stride, sums_stride, fits && add))
    for (row = 0; row < rows && !fits; row++)
        for (long j = 0; j < columns; j++)
            out[row * stride + j] = tile[row * WIDTH + j] + (add ? out[row * stride + j] : 0);
}

/* gradient[outputs, inputs] = d[count, outputs]' @ x[count, inputs]; threads share the outputs. */
void weight_gradient(long threads, long count, long outputs, long inputs, const float *d,
                     const float *x, float *gradient, float *room)
{
    IN_PARALLEL {
        const part p = part_of(strips_of(outputs), threads);
        const long from = p.from * MOST_ROWS, to = least(p.to * MOST_ROWS, outputs);
        float *panel = room + strips_of(outputs) * MOST_ROWS * DEPTH;
        panel += p.number * (DEPTH + MOST_ROWS) * WIDTH;
        float *tile = panel + DEPTH * WIDTH;
        for (long at = 0, depth; at < count && from < to; at += depth) {
            depth = least(DEPTH, count - at);
            for (long n = from; n < to; n += MOST_ROWS)
                copy_strip(MOST_ROWS, depth, least(MOST_ROWS, to - n), d + at * outputs + n,
                           outputs, room + n * DEPTH);
            for (long k = 0; k < inputs; k += WIDTH) {
                const long columns = least(WIDTH, inputs - k);
                copy_strip(WIDTH, depth, columns, x + at * inputs + k, inputs, panel);
                for (long n = from; n < to; n += MOST_ROWS)
                    multiply_strip(depth, least(MOST_ROWS, to - n), room + n * DEPTH, panel,
                                   columns, gradient + n * inputs + k, inputs, at, tile);
            }
        }
    }
}
