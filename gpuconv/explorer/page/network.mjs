// A network in the page: its weights, a run forward, gradients, and where a value comes from.

import {
  OPERATIONS, poolWindow, product, takenPlaces, transposedPlaces, windowOf, winnerOf,
} from "./operations.mjs";

/** Bytes of base64. */
export function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** float16 as float32: sign, 5 bits of exponent, 10 of fraction. */
export function widened(bytes) {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  const result = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const sign = halves[i] & 0x8000 ? -1 : 1;
    const exponent = (halves[i] >> 10) & 31;
    const fraction = (halves[i] & 1023) / 1024;
    if (exponent === 31) result[i] = fraction ? NaN : sign * Infinity;
    else result[i] = sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  }
  return result;
}

/** Arrays by name from bytes; `tensors` is [name, shape] in the order in which they lie there. */
export function unpacked(tensors, bytes, half) {
  const numbers = half ? widened(bytes) : new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const arrays = new Map();
  let at = 0;
  for (const [name, shape] of tensors) arrays.set(name, numbers.subarray(at, (at += product(shape))));
  return arrays;
}

/** Probabilities of logits. */
export function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

export class Network {
  /** program: of the page; weights: arrays by name, as `unpacked` gives them. */
  constructor(program, weights) {
    this.program = program;
    this.weights = weights;
    this.shapes = new Map([...Object.entries(program.shapes), ...program.tensors]);
    this.arrays = new Map([[program.input, new Float32Array(product(program.shapes[program.input]))]]);
    this.steps = program.steps.map((step) => ({
      ...step,
      shapes: [...step.inputs, step.output].map((name) => this.shapes.get(name)),
    }));
    for (const step of this.steps) this.arrays.set(step.output, this.room(step));
    this.makers = new Map(this.steps.map((step, number) => [step.output, number]));
  }

  /** Memory for a step's result. */
  room(step) {
    return step.op === "view" ? this.arrays.get(step.inputs[0]) : new Float32Array(product(step.shapes.at(-1)));
  }

  /** A value or a tensor. */
  array(name) {
    return this.arrays.get(name) || this.weights.get(name);
  }

  inputsOf(step) {
    return step.inputs.map((name) => this.array(name));
  }

  /** Computes all values for a picture that is prepared; returns the logits, which the next run overwrites. */
  run(picture) {
    this.arrays.get(this.program.input).set(picture);
    for (const step of this.steps) OPERATIONS[step.op].forward(step, this.inputsOf(step), this.array(step.output));
    return this.array(this.program.logits);
  }

  /** The gradient of one logit with respect to the picture of the last run. */
  gradient(unit) {
    const grads = new Map();
    for (const name of this.arrays.keys()) grads.set(name, new Float32Array(this.array(name).length));
    grads.get(this.program.logits)[unit] = 1;
    for (const step of [...this.steps].reverse()) {
      const into = step.inputs.map((name) => grads.get(name));
      const output = this.array(step.output);
      if (into.some(Boolean)) OPERATIONS[step.op].backward(step, this.inputsOf(step), output, grads.get(step.output), into);
    }
    return grads.get(this.program.input);
  }

  /** What one value is made of: { terms: [{at, x, w}], bias }; null for an operation that has no products. */
  terms(step, index) {
    const { terms } = OPERATIONS[step.op];
    return terms ? terms(step, this.inputsOf(step), index) : null;
  }

  /** A pooling window: { places, values, winner (of a maximum), count }; null for other operations. */
  pooled(step, index) {
    if (step.op !== "maxPool" && step.op !== "averagePool") return null;
    const [x] = this.inputsOf(step);
    const { places, count, columns } = poolWindow(step, index);
    const winner = step.op === "maxPool" ? winnerOf(x, places) : -1;
    return { places, values: places.map((place) => x[place]), winner, count, columns };
  }

  /** For a box of a step's output, the boxes of its inputs that it is computed from: [{ name, box }]. */
  sources(step, box) {
    const values = step.inputs.filter((name) => this.arrays.has(name));
    return values.map((name) => ({ name, box: this.sourceBox(step, name, box) }));
  }

  sourceBox(step, name, box) {
    const shape = this.shapes.get(name);
    if (step.op === "conv" || step.op.endsWith("Pool")) return windowBox(step, box);
    if (["unary", "scale"].includes(step.op)) return box;
    if (step.op === "binary") return shape.length === box.shape.length ? clipped({ ...box, shape }) : whole(shape);
    if (step.op === "view") return viewedBox(step, box);
    if (["take", "transpose"].includes(step.op)) return pointBox(step, box);
    if (step.op === "concat" && shape.length === 4) return { ...whole(shape), ...only(box, ["y0", "y1", "x0", "x1"]) };
    return whole(shape);
  }
}

const only = (object, keys) => Object.fromEntries(keys.map((key) => [key, object[key]]));

/** A box { c0, c1, y0, y1, x0, x1 } (ends are outside) of a value's shape that holds one element. */
export function boxAt(shape, index) {
  const [height, width] = planeOf(shape);
  const c = Math.floor(index / (height * width));
  const y = Math.floor((index % (height * width)) / width);
  const x = index % width;
  return { shape, c0: c, c1: c + 1, y0: y, y1: y + 1, x0: x, x1: x + 1 };
}

/** Height and width of a value's planes; units are one row. */
export function planeOf(shape) {
  return shape.length === 4 ? [shape[2], shape[3]] : [1, shape.at(-1)];
}

function whole(shape) {
  const [height, width] = planeOf(shape);
  return { shape, c0: 0, c1: product(shape) / (height * width), y0: 0, y1: height, x0: 0, x1: width };
}

function clipped(box) {
  const all = whole(box.shape);
  return { ...box, c0: Math.min(box.c0, all.c1 - 1), c1: Math.min(box.c1, all.c1), y0: Math.min(box.y0, all.y1 - 1),
    y1: Math.min(box.y1, all.y1), x0: Math.min(box.x0, all.x1 - 1), x1: Math.min(box.x1, all.x1) };
}

function windowBox(step, box) {
  const g = windowOf(step);
  const perGroup = g.channels / g.groups;
  const group = (map) => Math.floor(map / (g.maps / g.groups));
  const channels = step.op === "conv" ? [group(box.c0) * perGroup, (group(box.c1 - 1) + 1) * perGroup] : [box.c0, box.c1];
  const y0 = box.y0 * g.down - g.top;
  const x0 = box.x0 * g.across - g.left;
  const y1 = (box.y1 - 1) * g.down - g.top + (g.r - 1) * g.spreadDown + 1;
  const x1 = (box.x1 - 1) * g.across - g.left + (g.s - 1) * g.spreadAcross + 1;
  return {
    shape: step.shapes[0], c0: channels[0], c1: channels[1],
    y0: Math.max(0, y0), y1: Math.min(g.height, y1), x0: Math.max(0, x0), x1: Math.min(g.width, x1),
  };
}

/** A flattened value's elements keep their number. */
function viewedBox(step, box) {
  const [height, width] = planeOf(box.shape);
  if (box.c1 - box.c0 > 1 || box.y1 - box.y0 > 1 || box.x1 - box.x0 > 1) return whole(step.shapes[0]);
  return boxAt(step.shapes[0], (box.c0 * height + box.y0) * width + box.x0);
}

function pointBox(step, box) {
  const [height, width] = planeOf(box.shape);
  if (box.c1 - box.c0 > 1 || box.y1 - box.y0 > 1 || box.x1 - box.x0 > 1) return whole(step.shapes[0]);
  const from = (step.op === "take" ? takenPlaces : transposedPlaces)(step)[(box.c0 * height + box.y0) * width + box.x0];
  return from < 0 ? whole(step.shapes[0]) : boxAt(step.shapes[0], from);
}
