// The operations that a network is made of: forward, the gradient of its input, and for some what a value is made of.
//
// A picture is a batch of one. Values are Float32Arrays in the order (1, C, H, W) or (1, N). A `step` has its options
// and, as `shapes`, those of its inputs and (last) of its output.

import { multiplyMatrices, roomFor } from "./product.mjs";

/** Everything about a two-dimensional window: sizes as names instead of positions in shapes. */
function windowOf(step) {
  const [, channels, height, width] = step.shapes[0];
  const [, maps, rows, columns] = step.shapes[step.shapes.length - 1];
  const { kernel, stride, dilation, pads } = step.options;
  return {
    channels, height, width, maps, rows, columns, pads,
    groups: step.options.groups || 1,
    r: kernel[0], s: kernel[1],
    down: stride[0], across: stride[1],
    spreadDown: dilation[0], spreadAcross: dilation[1],
    top: pads[0], left: pads[2],
  };
}

/** The outputs [first, end) along an axis whose tap lies inside of the input: the loops then need no test. */
function inside(tap, spread, stride, before, size, outputs) {
  const offset = tap * spread - before;
  const first = Math.max(0, Math.ceil(-offset / stride));
  const end = Math.min(outputs, Math.floor((size - 1 - offset) / stride) + 1);
  return [first, Math.max(first, end), offset];
}

// -- convolution ------------------------------------------------------------------------------------------------------

/** Calls visit(map, channel, weightAt, tap) for each filter plane; a tap knows which outputs it reaches. */
function forEachTap(g, visit) {
  const perGroup = g.channels / g.groups;
  const mapsPerGroup = g.maps / g.groups;
  for (let r = 0; r < g.r; r++) {
    const [p0, p1, rowOffset] = inside(r, g.spreadDown, g.down, g.top, g.height, g.rows);
    for (let s = 0; s < g.s; s++) {
      const [q0, q1, columnOffset] = inside(s, g.spreadAcross, g.across, g.left, g.width, g.columns);
      const tap = { p0, p1, q0, q1, rowOffset, columnOffset };
      for (let k = 0; k < g.maps; k++) {
        const firstChannel = Math.floor(k / mapsPerGroup) * perGroup;
        for (let c = 0; c < perGroup; c++) visit(k, firstChannel + c, ((k * perGroup + c) * g.r + r) * g.s + s, tap);
      }
    }
  }
}

/** One row of outputs: y[q] += weight * x[q * across]. */
function addRow(y, at, x, from, count, across, weight) {
  if (across === 1) for (let q = 0; q < count; q++) y[at + q] += weight * x[from + q];
  else for (let q = 0; q < count; q++) y[at + q] += weight * x[from + q * across];
}

/** Above so many products a convolution is worth being brought into the form of a matrix product. */
const MANY = 100000;

function convolve(step, inputs, y) {
  const g = windowOf(step);
  const depth = (g.channels / g.groups) * g.r * g.s;
  const large = g.groups === 1 && y.length * depth > MANY;
  if (!large || !convolveAsProduct(g, depth, inputs, y)) convolveByRows(g, inputs, y);
}

/** Filters (maps, depth) times patches (depth, outputs). False where the browser has no fast product. */
function convolveAsProduct(g, depth, [x, w, bias], y) {
  const outputs = g.rows * g.columns;
  const rows = Math.ceil(g.maps / 4) * 4;
  const panels = Math.ceil(outputs / 8);
  const room = roomFor([rows * depth, panels * depth * 8, rows * panels * 8]);
  if (!room) return false;
  const [filters, patches, result] = room;
  filters.set(w);
  filters.fill(0, w.length);
  gatherPatches(g, x, patches, depth);
  multiplyMatrices(room, rows, depth, panels);
  for (let k = 0; k < g.maps; k++) {
    const offset = bias ? bias[k] : 0;
    for (let i = 0, from = k * panels * 8, to = k * outputs; i < outputs; i++) y[to + i] = result[from + i] + offset;
  }
  return true;
}

/**
 * patches[panel][tap][8]: for eight outputs at a time, what each tap of a filter meets; 0 outside of the input.
 *
 * A row of outputs after the other, so that the panels that are written stay in the cache.
 */
function gatherPatches(g, x, patches, depth) {
  patches.fill(0);
  const across = Array.from({ length: g.s }, (_, s) => inside(s, g.spreadAcross, g.across, g.left, g.width, g.columns));
  for (let p = 0; p < g.rows; p++) {
    for (let c = 0; c < g.channels; c++) {
      for (let r = 0; r < g.r; r++) {
        const row = p * g.down + r * g.spreadDown - g.top;
        if (row < 0 || row >= g.height) continue;
        for (let s = 0, tap = (c * g.r + r) * g.s; s < g.s; s++, tap++) {
          gatherRow(x, (c * g.height + row) * g.width, g.across, across[s], patches, p * g.columns, tap, depth);
        }
      }
    }
  }
}

function gatherRow(x, from, stride, [first, end, offset], patches, output, tap, depth) {
  for (let q = first, i = output + first; q < end; q++, i++) {
    patches[((i >> 3) * depth + tap) * 8 + (i & 7)] = x[from + offset + q * stride];
  }
}

function convolveByRows(g, [x, w, bias], y) {
  const plane = g.rows * g.columns;
  for (let k = 0; k < g.maps; k++) y.fill(bias ? bias[k] : 0, k * plane, (k + 1) * plane);
  forEachTap(g, (k, c, at, tap) => {
    const weight = w[at];
    for (let p = tap.p0; p < tap.p1; p++) {
      const from = (c * g.height + p * g.down + tap.rowOffset) * g.width + tap.q0 * g.across + tap.columnOffset;
      addRow(y, k * plane + p * g.columns + tap.q0, x, from, tap.q1 - tap.q0, g.across, weight);
    }
  });
}

function convolveBack(step, [, w], y, dy, [dx]) {
  const g = windowOf(step);
  const plane = g.rows * g.columns;
  forEachTap(g, (k, c, at, tap) => {
    const weight = w[at];
    for (let p = tap.p0; p < tap.p1; p++) {
      const to = (c * g.height + p * g.down + tap.rowOffset) * g.width + tap.columnOffset;
      const from = k * plane + p * g.columns;
      for (let q = tap.q0; q < tap.q1; q++) dx[to + q * g.across] += weight * dy[from + q];
    }
  });
}

/** The products that add up to one value of a convolution; those with the border are 0 and say so. */
function convolutionTerms(step, [x, w, bias], index) {
  const g = windowOf(step);
  const plane = g.rows * g.columns;
  const k = Math.floor(index / plane);
  const p = Math.floor((index % plane) / g.columns);
  const q = index % g.columns;
  const perGroup = g.channels / g.groups;
  const firstChannel = Math.floor(k / (g.maps / g.groups)) * perGroup;
  const terms = [];
  for (let c = 0; c < perGroup; c++) {
    for (let r = 0; r < g.r; r++) {
      for (let s = 0; s < g.s; s++) {
        const row = p * g.down + r * g.spreadDown - g.top;
        const column = q * g.across + s * g.spreadAcross - g.left;
        const outside = row < 0 || column < 0 || row >= g.height || column >= g.width;
        const at = ((firstChannel + c) * g.height + row) * g.width + column;
        terms.push({ at: outside ? -1 : at, x: outside ? 0 : x[at], w: w[((k * perGroup + c) * g.r + r) * g.s + s] });
      }
    }
  }
  return { terms, bias: bias ? bias[k] : 0, columns: g.s, planes: perGroup };
}

// -- fully connected --------------------------------------------------------------------------------------------------

function linear(step, [x, w, bias], y) {
  const width = step.shapes[1][1];
  const units = step.shapes[1][0];
  for (let row = 0; row * width < x.length; row++) {
    for (let k = 0; k < units; k++) {
      let sum = bias ? bias[k] : 0;
      for (let i = 0, a = row * width, b = k * width; i < width; i++) sum += x[a + i] * w[b + i];
      y[row * units + k] = sum;
    }
  }
}

function linearBack(step, [x, w], y, dy, [dx]) {
  const [units, width] = step.shapes[1];
  for (let row = 0; row * width < x.length; row++) {
    for (let k = 0; k < units; k++) {
      const d = dy[row * units + k];
      if (d) for (let i = 0; i < width; i++) dx[row * width + i] += d * w[k * width + i];
    }
  }
}

function linearTerms(step, [x, w, bias], index) {
  const [units, width] = step.shapes[1];
  const k = index % units;
  const start = Math.floor(index / units) * width;
  const terms = Array.from({ length: width }, (_, i) => ({ at: start + i, x: x[start + i], w: w[k * width + i] }));
  return { terms, bias: bias ? bias[k] : 0, columns: 0, planes: 1 };
}

// -- pooling ----------------------------------------------------------------------------------------------------------

/** The elements of a pooling window that lie inside of the input, and how many an average divides by. */
function poolWindow(step, index) {
  const g = windowOf(step);
  const plane = g.rows * g.columns;
  const c = Math.floor(index / plane);
  const p = Math.floor((index % plane) / g.columns);
  const q = index % g.columns;
  const places = [];
  let padded = 0;
  for (let r = 0; r < g.r; r++) {
    const row = p * g.down + r * g.spreadDown - g.top;
    for (let s = 0; s < g.s; s++) {
      const column = q * g.across + s * g.spreadAcross - g.left;
      // With ceil_mode a window may hang over the padding, too: what is there is never counted.
      if (row < g.height + g.pads[1] && column < g.width + g.pads[3]) padded++;
      if (row >= 0 && column >= 0 && row < g.height && column < g.width) {
        places.push((c * g.height + row) * g.width + column);
      }
    }
  }
  return { places, count: step.options.countPadding ? padded : places.length, columns: g.s };
}

function maxPool(step, [x], y) {
  const g = windowOf(step);
  let to = 0;
  for (let c = 0; c < g.channels; c++) {
    for (let p = 0; p < g.rows; p++) {
      for (let q = 0; q < g.columns; q++, to++) y[to] = largest(g, x, c, p, q);
    }
  }
}

function largest(g, x, c, p, q) {
  let best = -Infinity;
  for (let r = 0; r < g.r; r++) {
    const row = p * g.down + r * g.spreadDown - g.top;
    if (row < 0 || row >= g.height) continue;
    for (let s = 0; s < g.s; s++) {
      const column = q * g.across + s * g.spreadAcross - g.left;
      if (column < 0 || column >= g.width) continue;
      const value = x[(c * g.height + row) * g.width + column];
      if (value > best || value !== value) best = value;
    }
  }
  return best;
}

/** Of equal maxima the first one wins, as in gpuconv and PyTorch. */
function winnerOf(x, places) {
  return places.reduce((best, place) => (x[place] > x[best] ? place : best), places[0]);
}

function maxPoolBack(step, [x], y, dy, [dx]) {
  for (let i = 0; i < dy.length; i++) if (dy[i]) dx[winnerOf(x, poolWindow(step, i).places)] += dy[i];
}

function averagePool(step, [x], y) {
  for (let i = 0; i < y.length; i++) {
    const { places, count } = poolWindow(step, i);
    let sum = 0;
    for (const place of places) sum += x[place];
    y[i] = sum / count;
  }
}

function averagePoolBack(step, inputs, y, dy, [dx]) {
  for (let i = 0; i < dy.length; i++) {
    const { places, count } = poolWindow(step, i);
    for (const place of places) dx[place] += dy[i] / count;
  }
}

// -- element by element -----------------------------------------------------------------------------------------------

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

/** Abramowitz and Stegun, 7.1.26: to 1.5e-7. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - poly * Math.exp(-x * x));
}

/** ONNX's name -> [f(x, a, b), its derivative (x, y, a, b)]. At a corner it is PyTorch's. */
export const UNARY = {
  Relu: [(x) => (x > 0 ? x : x !== x ? x : 0), (x) => (x > 0 ? 1 : 0)],
  LeakyRelu: [(x, a) => (x > 0 ? x : a * x), (x, y, a) => (x > 0 ? 1 : a)],
  Elu: [(x, a) => (x > 0 ? x : a * Math.expm1(x)), (x, y, a) => (x > 0 ? 1 : y + a)],
  Selu: [(x, a, b) => b * (x > 0 ? x : a * Math.expm1(x)), (x, y, a, b) => (x > 0 ? b : y + a * b)],
  Celu: [(x, a) => (x > 0 ? x : a * Math.expm1(x / a)), (x, y, a) => (x > 0 ? 1 : y / a + 1)],
  HardSigmoid: [(x, a, b) => Math.min(1, Math.max(0, a * x + b)), (x, y, a) => (y > 0 && y < 1 ? a : 0)],
  HardSwish: [
    (x) => x * Math.min(1, Math.max(0, x / 6 + 0.5)),
    (x) => (x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5),
  ],
  Shrink: [
    (x, a, b) => (x < -a ? x + b : x > a ? x - b : 0),
    (x, y, a) => (Math.abs(x) > a ? 1 : 0),
  ],
  Clip: [(x, a, b) => Math.min(b, Math.max(a, x)), (x, y, a, b) => (x > a && x < b ? 1 : 0)],
  Sigmoid: [sigmoid, (x, y) => y * (1 - y)],
  Tanh: [Math.tanh, (x, y) => 1 - y * y],
  Softplus: [softplus, sigmoid],
  Softsign: [(x) => x / (1 + Math.abs(x)), (x) => 1 / (1 + Math.abs(x)) ** 2],
  Mish: [
    (x) => x * Math.tanh(softplus(x)),
    (x) => {
      const t = Math.tanh(softplus(x));
      return t + x * sigmoid(x) * (1 - t * t);
    },
  ],
  Erf: [erf, (x) => (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x)],
  Exp: [Math.exp, (x, y) => y],
  Log: [Math.log, (x) => 1 / x],
  Abs: [Math.abs, Math.sign],
  Neg: [(x) => -x, () => -1],
  Sqrt: [Math.sqrt, (x, y) => 0.5 / y],
  Reciprocal: [(x) => 1 / x, (x, y) => -y * y],
  Sin: [Math.sin, Math.cos],
  Cos: [Math.cos, (x) => -Math.sin(x)],
  Atan: [Math.atan, (x) => 1 / (1 + x * x)],
};

function unary(step, [x], y) {
  const [f] = UNARY[step.options.name];
  const [a, b] = step.options.numbers;
  for (let i = 0; i < y.length; i++) y[i] = f(x[i], a, b);
}

function unaryBack(step, [x], y, dy, [dx]) {
  const derivative = UNARY[step.options.name][1];
  const [a, b] = step.options.numbers;
  for (let i = 0; i < y.length; i++) if (dy[i]) dx[i] += dy[i] * derivative(x[i], y[i], a, b);
}

/** ONNX's name -> [f(a, b), derivative by a, derivative by b], the latter of (a, b, y). */
export const BINARY = {
  Add: [(a, b) => a + b, () => 1, () => 1],
  Sub: [(a, b) => a - b, () => 1, () => -1],
  Mul: [(a, b) => a * b, (a, b) => b, (a) => a],
  Div: [(a, b) => a / b, (a, b) => 1 / b, (a, b, y) => -y / b],
  Max: [Math.max, (a, b) => (a > b ? 1 : a === b ? 0.5 : 0), (a, b) => (b > a ? 1 : a === b ? 0.5 : 0)],
  Min: [Math.min, (a, b) => (a < b ? 1 : a === b ? 0.5 : 0), (a, b) => (b < a ? 1 : a === b ? 0.5 : 0)],
  Pow: [Math.pow, (a, b) => b * a ** (b - 1), (a, b, y) => (a > 0 ? y * Math.log(a) : 0)],
  PRelu: [(a, b) => (a > 0 ? a : a * b), (a, b) => (a > 0 ? 1 : b), (a) => (a > 0 ? 0 : a)],
};

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** For each element of the output, which one of an input it is computed from; null where these are the same. */
function broadcast(shape, result) {
  if (product(shape) === product(result)) return null;
  const strides = stridesOf(shape);
  const missing = result.length - shape.length;
  const places = new Int32Array(product(result));
  for (let i = 0; i < places.length; i++) {
    let rest = i;
    for (let axis = result.length - 1; axis >= 0; axis--) {
      const at = rest % result[axis];
      rest = Math.floor(rest / result[axis]);
      if (axis >= missing && shape[axis - missing] > 1) places[i] += at * strides[axis - missing];
    }
  }
  return places;
}

function stridesOf(shape) {
  const strides = new Array(shape.length).fill(1);
  for (let axis = shape.length - 2; axis >= 0; axis--) strides[axis] = strides[axis + 1] * shape[axis + 1];
  return strides;
}

/** Where both inputs of a binary step are read, computed once. */
function bothPlaces(step) {
  step.places ??= [broadcast(step.shapes[0], step.shapes[2]), broadcast(step.shapes[1], step.shapes[2])];
  return step.places;
}

function binary(step, [a, b], y) {
  const [f] = BINARY[step.options.name];
  const [pa, pb] = bothPlaces(step);
  for (let i = 0; i < y.length; i++) y[i] = f(a[pa ? pa[i] : i], b[pb ? pb[i] : i]);
}

function binaryBack(step, [a, b], y, dy, [da, db]) {
  const [, byA, byB] = BINARY[step.options.name];
  const [pa, pb] = bothPlaces(step);
  for (let i = 0; i < y.length; i++) {
    if (!dy[i]) continue;
    const ia = pa ? pa[i] : i;
    const ib = pb ? pb[i] : i;
    if (da) da[ia] += dy[i] * byA(a[ia], b[ib], y[i]);
    if (db) db[ib] += dy[i] * byB(a[ia], b[ib], y[i]);
  }
}

/** Batch normalisation that no convolution took in: a factor and an offset for each channel. */
function scale(step, [x, factor, offset], y) {
  const plane = y.length / factor.length;
  for (let i = 0; i < y.length; i++) y[i] = x[i] * factor[Math.floor(i / plane)] + offset[Math.floor(i / plane)];
}

function scaleBack(step, [, factor], y, dy, [dx]) {
  const plane = dy.length / factor.length;
  for (let i = 0; i < dy.length; i++) dx[i] += dy[i] * factor[Math.floor(i / plane)];
}

// -- over axes --------------------------------------------------------------------------------------------------------

/** Calls visit(start, stride, count) for each line of elements along an axis. */
function forEachLine(shape, axis, visit) {
  const stride = stridesOf(shape)[axis];
  const count = shape[axis];
  for (let outer = 0; outer < product(shape) / (count * stride); outer++) {
    for (let inner = 0; inner < stride; inner++) visit(outer * count * stride + inner, stride, count);
  }
}

function softmaxAlong(step, [x], y) {
  forEachLine(step.shapes[0], step.options.axis, (start, stride, count) => {
    const [top, sum] = expSum(x, start, stride, count);
    for (let i = 0; i < count; i++) y[start + i * stride] = Math.exp(x[start + i * stride] - top) / sum;
  });
}

function logSoftmax(step, [x], y) {
  forEachLine(step.shapes[0], step.options.axis, (start, stride, count) => {
    const [top, sum] = expSum(x, start, stride, count);
    for (let i = 0; i < count; i++) y[start + i * stride] = x[start + i * stride] - top - Math.log(sum);
  });
}

/** The largest element, and the sum of the exponentials of all, relative to it. */
function expSum(x, start, stride, count) {
  let top = -Infinity;
  let sum = 0;
  for (let i = 0; i < count; i++) top = Math.max(top, x[start + i * stride]);
  for (let i = 0; i < count; i++) sum += Math.exp(x[start + i * stride] - top);
  return [top, sum];
}

function softmaxBack(step, inputs, y, dy, [dx]) {
  forEachLine(step.shapes[0], step.options.axis, (start, stride, count) => {
    let dot = 0;
    for (let i = 0; i < count; i++) dot += dy[start + i * stride] * y[start + i * stride];
    for (let i = 0; i < count; i++) dx[start + i * stride] += y[start + i * stride] * (dy[start + i * stride] - dot);
  });
}

function logSoftmaxBack(step, inputs, y, dy, [dx]) {
  forEachLine(step.shapes[0], step.options.axis, (start, stride, count) => {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += dy[start + i * stride];
    for (let i = 0; i < count; i++) dx[start + i * stride] += dy[start + i * stride] - Math.exp(y[start + i * stride]) * sum;
  });
}

/** Where in the output each element of the input is added. */
function reducedPlaces(step) {
  if (!step.to) {
    const kept = step.shapes[0].map((size, axis) => (step.options.axes.includes(axis) ? 1 : size));
    step.to = broadcast(kept, step.shapes[0]) || Int32Array.from({ length: product(kept) }, (_, i) => i);
  }
  return step.to;
}

function reduce(step, [x], y) {
  const to = reducedPlaces(step);
  const share = step.options.mean ? y.length / x.length : 1;
  y.fill(0);
  for (let i = 0; i < x.length; i++) y[to[i]] += x[i] * share;
}

function reduceBack(step, [x], y, dy, [dx]) {
  const to = reducedPlaces(step);
  const share = step.options.mean ? y.length / x.length : 1;
  for (let i = 0; i < x.length; i++) dx[i] += dy[to[i]] * share;
}

/** Response normalisation across neighbouring channels: x / (bias + alpha / size * sum of squares) ** beta. */
function lrn(step, [x], y) {
  const sums = neighbourSquares(step, x);
  const { alpha, beta, bias, size } = step.options;
  for (let i = 0; i < y.length; i++) y[i] = x[i] / (bias + (alpha / size) * sums[i]) ** beta;
}

/** The channels [first, end) that an LRN takes together for channel c. */
function neighbours(size, channels, c) {
  return [Math.max(0, c - Math.floor((size - 1) / 2)), Math.min(channels, c + Math.ceil((size - 1) / 2) + 1)];
}

function neighbourSquares(step, x) {
  const channels = step.shapes[0][1];
  const plane = x.length / channels;
  const sums = new Float32Array(x.length);
  for (let c = 0; c < channels; c++) {
    const [first, end] = neighbours(step.options.size, channels, c);
    for (let other = first; other < end; other++) {
      for (let i = 0; i < plane; i++) sums[c * plane + i] += x[other * plane + i] ** 2;
    }
  }
  return sums;
}

function lrnBack(step, [x], y, dy, [dx]) {
  const { alpha, beta, bias, size } = step.options;
  const channels = step.shapes[0][1];
  const plane = x.length / channels;
  const sums = neighbourSquares(step, x);
  for (let c = 0; c < channels; c++) {
    const [first, end] = neighbours(size, channels, c);
    for (let i = 0; i < plane; i++) {
      const at = c * plane + i;
      const base = bias + (alpha / size) * sums[at];
      dx[at] += dy[at] / base ** beta;
      const spread = (-2 * beta * (alpha / size) * dy[at] * y[at]) / base;
      for (let other = first; other < end; other++) dx[other * plane + i] += spread * x[other * plane + i];
    }
  }
}

// -- shapes -----------------------------------------------------------------------------------------------------------

function concat(step, inputs, y) {
  forEachPart(step, (input, from, to, count) => y.set(inputs[input].subarray(from, from + count), to));
}

function concatBack(step, inputs, y, dy, grads) {
  forEachPart(step, (input, from, to, count) => {
    const dx = grads[input];
    if (dx) for (let i = 0; i < count; i++) dx[from + i] += dy[to + i];
  });
}

/** Calls visit(input, from, to, count) for each run of elements that lie together in an input and in the output. */
function forEachPart(step, visit) {
  const shape = step.shapes[step.shapes.length - 1];
  const tail = product(shape.slice(step.options.axis + 1));
  const outer = product(shape.slice(0, step.options.axis));
  let before = 0;
  for (let input = 0; input < step.shapes.length - 1; input++) {
    const count = step.shapes[input][step.options.axis] * tail;
    for (let i = 0; i < outer; i++) visit(input, i * count, i * shape[step.options.axis] * tail + before, count);
    before += count;
  }
}

/** For each element of the output its place in the input: of a permutation of axes. */
function transposedPlaces(step) {
  if (step.from) return step.from;
  const [shape, result] = step.shapes;
  const strides = stridesOf(shape);
  return (step.from = placesOf(result, (at) => at.reduce((sum, n, axis) => sum + n * strides[step.options.order[axis]], 0)));
}

/** The same of elements taken along axes; -1 for one that is filled in. */
function takenPlaces(step) {
  if (step.from) return step.from;
  const [shape, result] = step.shapes;
  const strides = stridesOf(shape);
  const along = new Map(step.options.along);
  return (step.from = placesOf(result, (at) => {
    const where = at.map((n, axis) => (along.has(axis) ? along.get(axis)[n] : n));
    return where.includes(-1) ? -1 : where.reduce((sum, n, axis) => sum + n * strides[axis], 0);
  }));
}

function placesOf(shape, place) {
  const places = new Int32Array(product(shape));
  const at = new Array(shape.length).fill(0);
  for (let i = 0; i < places.length; i++) {
    places[i] = place(at);
    for (let axis = shape.length - 1; axis >= 0 && ++at[axis] === shape[axis]; axis--) at[axis] = 0;
  }
  return places;
}

function take(step, [x], y) {
  const from = step.op === "take" ? takenPlaces(step) : transposedPlaces(step);
  for (let i = 0; i < y.length; i++) y[i] = from[i] < 0 ? step.options.fill : x[from[i]];
}

function takeBack(step, inputs, y, dy, [dx]) {
  const from = step.op === "take" ? takenPlaces(step) : transposedPlaces(step);
  for (let i = 0; i < dy.length; i++) if (from[i] >= 0) dx[from[i]] += dy[i];
}

// A view has its input's memory, so there is nothing to compute; the gradient is another array.
function viewBack(step, inputs, y, dy, [dx]) {
  for (let i = 0; i < dy.length; i++) dx[i] += dy[i];
}

/** By name: forward(step, inputs, output), backward(step, inputs, output, its gradient, gradients to add to). */
export const OPERATIONS = {
  conv: { forward: convolve, backward: convolveBack, terms: convolutionTerms },
  linear: { forward: linear, backward: linearBack, terms: linearTerms },
  maxPool: { forward: maxPool, backward: maxPoolBack },
  averagePool: { forward: averagePool, backward: averagePoolBack },
  unary: { forward: unary, backward: unaryBack },
  binary: { forward: binary, backward: binaryBack },
  scale: { forward: scale, backward: scaleBack },
  softmax: { forward: softmaxAlong, backward: softmaxBack },
  logSoftmax: { forward: logSoftmax, backward: logSoftmaxBack },
  reduce: { forward: reduce, backward: reduceBack },
  lrn: { forward: lrn, backward: lrnBack },
  concat: { forward: concat, backward: concatBack },
  transpose: { forward: take, backward: takeBack },
  take: { forward: take, backward: takeBack },
  view: { forward: () => {}, backward: viewBack },
};

export { poolWindow, product, takenPlaces, transposedPlaces, winnerOf, windowOf };
