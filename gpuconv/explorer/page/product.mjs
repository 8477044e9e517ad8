// Matrix products with 128-bit vectors: a WebAssembly module of one function, assembled here. Convolutions of large
// networks are computed by it, about ten times as fast as by loops of JavaScript.
//
// product(a, b, c, rows, depth, panels, stride): for `panels` panels of 8 columns,
//   c[i][8 p + j] = sum over k of a[i][k] * b[p][k][j]
// with a (rows, depth), rows a multiple of 4, b (panels, depth, 8), and `stride` bytes from a row of c to the next.
// Four rows times eight columns stay in registers while k runs.

const I32 = 0x7f;
const V128 = 0x7b;

/** An integer in LEB128, as WebAssembly writes them. */
function leb(value) {
  const bytes = [];
  for (let rest = value; ; ) {
    const low = rest & 127;
    rest >>= 7;
    const done = (rest === 0 && !(low & 64)) || (rest === -1 && low & 64);
    bytes.push(done ? low : low | 128);
    if (done) return bytes;
  }
}

const section = (id, bytes) => [id, ...unsigned(bytes.length), ...bytes];

/** Lengths and indices have no sign. */
function unsigned(value) {
  const bytes = [];
  for (let rest = value; ; ) {
    const low = rest & 127;
    rest >>>= 7;
    bytes.push(rest ? low | 128 : low);
    if (!rest) return bytes;
  }
}

const vector = (op) => [0xfd, ...unsigned(op)];
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const number = (value) => [0x41, ...leb(value)];
const ADD = [0x6a];
const MULTIPLY = [0x6c];
const BELOW = [0x49]; // unsigned
const load = (local, offset) => [...get(local), ...vector(0), 2, ...unsigned(offset)];
const loadSplat = (local) => [...get(local), ...vector(9), 2, 0];
const advance = (local, amount) => [...get(local), ...amount, ...ADD, ...set(local)];
/** A loop that runs again as long as local `at` is below local `end`. */
const loop = (body, at, end) => [0x03, 0x40, ...body, ...get(at), ...get(end), ...BELOW, 0x0d, 0, 0x0b];

/** The function's code, by names for its locals. */
function code() {
  const [a, b, c, rows, depth, panels, stride] = [0, 1, 2, 3, 4, 5, 6];
  const [rowBytes, panelBytes, lastPanel, endA, atB, endB, to, toRow] = [7, 8, 9, 10, 11, 12, 13, 14];
  const from = [15, 16, 17, 18];
  const sums = [19, 20, 21, 22, 23, 24, 25, 26];
  const [left, right, one] = [27, 28, 29];

  const multiply = [...load(atB, 0), ...set(left), ...load(atB, 16), ...set(right)];
  for (let row = 0; row < 4; row++) {
    multiply.push(...loadSplat(from[row]), ...set(one));
    [left, right].forEach((columns, half) => {
      const sum = sums[2 * row + half];
      multiply.push(...get(sum), ...get(one), ...get(columns), ...vector(0xe6), ...vector(0xe4), ...set(sum));
    });
    multiply.push(...advance(from[row], number(4)));
  }
  multiply.push(...advance(atB, number(32)));

  const zero = sums.flatMap((sum) => [...vector(12), ...new Array(16).fill(0), ...set(sum)]);
  const store = sums.flatMap((sum, i) => [
    ...(i % 2 ? [] : i ? advance(toRow, get(stride)) : [...get(to), ...set(toRow)]),
    ...get(toRow), ...get(sum), ...vector(11), 2, ...unsigned(16 * (i % 2)),
  ]);
  const block = [
    ...zero, ...get(b), ...set(atB), ...get(b), ...get(panelBytes), ...ADD, ...set(endB),
    ...from.slice(1).flatMap((pointer, i) => [...get(from[i]), ...get(rowBytes), ...ADD, ...set(pointer)]),
    ...loop(multiply, atB, endB), ...store,
    // The fourth pointer has come to the beginning of the next four rows.
    ...get(from[3]), ...set(from[0]), ...get(toRow), ...get(stride), ...ADD, ...set(to),
  ];
  const panel = [
    ...get(a), ...set(from[0]), ...get(c), ...set(to), ...loop(block, from[0], endA),
    ...advance(b, get(panelBytes)), ...advance(c, number(32)),
  ];
  return [
    ...get(depth), ...number(4), ...MULTIPLY, ...set(rowBytes),
    ...get(depth), ...number(32), ...MULTIPLY, ...set(panelBytes),
    ...get(b), ...get(panels), ...get(panelBytes), ...MULTIPLY, ...ADD, ...set(lastPanel),
    ...get(a), ...get(rows), ...get(rowBytes), ...MULTIPLY, ...ADD, ...set(endA),
    ...loop(panel, b, lastPanel), 0x0b,
  ];
}

/** The module's bytes: it takes its memory from outside, and gives one function. */
function moduleBytes() {
  const parameters = new Array(7).fill(I32);
  const locals = [2, 12, I32, 11, V128];
  const body = [...locals, ...code()];
  const name = (text) => [text.length, ...[...text].map((letter) => letter.charCodeAt(0))];
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
    ...section(1, [1, 0x60, parameters.length, ...parameters, 0]),
    ...section(2, [1, ...name("page"), ...name("memory"), 0x02, 0x00, 0x01]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...name("product"), 0x00, 0]),
    ...section(10, [1, ...unsigned(body.length), ...body]),
  ]);
}

const PAGE = 65536;

/** Memory and the function; null in a browser without such vectors. */
function assembled() {
  try {
    const memory = new WebAssembly.Memory({ initial: 1 });
    const made = new WebAssembly.Instance(new WebAssembly.Module(moduleBytes()), { page: { memory } });
    return { memory, run: made.exports.product };
  } catch {
    return null;
  }
}

const machine = assembled();

/** Room for three matrices as Float32Arrays on the machine's memory: a, b, c of so many numbers. Null without it. */
export function roomFor(sizes) {
  if (!machine) return null;
  // 16-byte steps, so that vectors are aligned.
  const starts = [0];
  for (const size of sizes) starts.push(starts.at(-1) + Math.ceil(size / 4) * 16);
  const missing = Math.ceil((starts.at(-1) - machine.memory.buffer.byteLength) / PAGE);
  if (missing > 0) machine.memory.grow(missing);
  return sizes.map((size, i) => new Float32Array(machine.memory.buffer, starts[i], size));
}

/** c = a b, of arrays that `roomFor` gave. */
export function multiplyMatrices([a, b, c], rows, depth, panels) {
  machine.run(a.byteOffset, b.byteOffset, c.byteOffset, rows, depth, panels, panels * 32);
}
