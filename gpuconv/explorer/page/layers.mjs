// The layers: one canvas each, with its maps side by side, or its units as a row of cells.

import { PlaneImage, css, isDark, rangeOf, shade } from "./colours.mjs";
import { boxAt, planeOf } from "./network.mjs";
import { product } from "./operations.mjs";

const GAP = 6;
const UNIT = 15; // pixels of a unit's cell
const MOST_UNITS = 1024;
const MOST_PLANES = 8; // of a filter that is drawn
const STRONGEST = 8; // inputs of a unit that have lines

export class LayerView {
  /** most: maps that are shown of a layer, chosen at equal distances; 0 stands for the picture itself. */
  constructor(network, name, { label, kind, steps }, most) {
    this.network = network;
    this.name = name;
    this.label = label;
    this.kind = kind;
    this.steps = steps.map((number) => network.steps[number]);
    this.shape = network.shapes.get(name);
    [this.height, this.width] = planeOf(this.shape);
    // 1 by 1 maps are units, too.
    this.units = this.shape.length === 2 || (this.height === 1 && this.width === 1);
    this.total = this.units ? product(this.shape) : this.shape[1];
    this.shown = spread(this.total, this.units ? MOST_UNITS : most);
    this.conv = this.steps.find((step) => step.op === "conv" && product(step.options.kernel) > 1) || null;
    this.build();
  }

  build() {
    this.element = document.createElement("article");
    this.element.className = "layer";
    const title = document.createElement("h3");
    title.textContent = this.label;
    const facts = document.createElement("small");
    facts.textContent = this.facts();
    title.append(facts);
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${this.label}: ${this.facts()}. Arrow keys look at single values.`);
    this.element.append(title, this.canvas);
  }

  facts() {
    const names = this.steps.map((step, i) => (i ? step.options.name : null)).filter(Boolean);
    const then = names.length ? `, then ${names.map((name) => (name === "Relu" ? "ReLU" : name)).join(", ")}` : "";
    const of = this.shown.length < this.total ? `${this.shown.length} of ` : "";
    const noun = `${this.units ? "unit" : "map"}${this.total === 1 ? "" : "s"}`;
    const size = `${of}${this.total} ${noun}${this.units ? "" : ` of ${this.height} × ${this.width}`}`;
    const first = this.steps[0];
    const kernel = first && first.options.kernel ? `, windows of ${first.options.kernel.join(" × ")}` : "";
    const kind = this.kind === this.label.replace(/ \d+$/, "") ? "" : `${this.kind}, `;
    return `${kind}${size}${kernel}${then}`;
  }

  values() {
    return this.network.array(this.name);
  }

  // -- places ---------------------------------------------------------------------------------------------------------

  /** Sizes for a width in pixels. Everything stays where it is until the width changes. */
  layout(width) {
    this.ratio = globalThis.devicePixelRatio || 1;
    this.tile = this.units ? UNIT : this.tileFor(width);
    this.strip = this.conv && !this.units ? this.stripHeight() : 0;
    const room = this.units ? 1 : GAP;
    this.columns = Math.max(1, Math.min(this.shown.length, Math.floor((width + room) / (this.tile + room))));
    this.step = this.tile + room;
    this.drop = this.units ? UNIT + 1 : this.tileHeight() + this.strip + GAP;
    const rows = Math.ceil(this.shown.length / this.columns);
    this.size = [this.columns * this.step - room, rows * this.drop - (this.units ? 1 : GAP)];
    this.canvas.style.width = `${this.size[0]}px`;
    this.canvas.style.height = `${this.size[1]}px`;
    this.canvas.width = Math.round(this.size[0] * this.ratio);
    this.canvas.height = Math.round(this.size[1] * this.ratio);
    this.drawn = null;
  }

  /** Maps of few pixels are drawn smaller, and a few maps larger. */
  tileFor(width) {
    const wanted = Math.min(112, Math.max(60, this.width * 4), (width - GAP * 2) / 3);
    const even = (width + GAP) / this.shown.length - GAP;
    const side = Math.max(wanted, Math.min(even, this.width * 8, 128));
    return side >= this.width ? Math.floor(side / this.width) * this.width : Math.floor(side);
  }

  tileHeight() {
    return Math.round((this.tile * this.height) / this.width);
  }

  stripHeight() {
    const [rows, columns] = this.conv.options.kernel;
    this.planes = Math.min(MOST_PLANES, this.network.shapes.get(this.conv.inputs[1])[1]);
    // Large enough to see single weights; in as many rows as that takes.
    this.tap = this.planes === 1 ? 5 : this.tile < 50 ? 2 : 3;
    this.beside = Math.max(1, Math.min(this.planes, Math.floor((this.tile + 2) / (columns * this.tap + 2))));
    return Math.ceil(this.planes / this.beside) * (rows * this.tap + 2) + 2;
  }

  /** The upper left corner of the n-th shown map. */
  cornerOf(n) {
    return [(n % this.columns) * this.step, Math.floor(n / this.columns) * this.drop];
  }

  /** The number of the value at a place of the canvas, or -1. */
  hit(x, y) {
    const n = Math.floor(y / this.drop) * this.columns + Math.min(this.columns - 1, Math.floor(x / this.step));
    if (x < 0 || y < 0 || n >= this.shown.length) return -1;
    if (this.units) return this.shown[n];
    const [left, top] = this.cornerOf(n);
    const column = Math.floor(((x - left) / this.tile) * this.width);
    const row = Math.floor(((y - top) / this.tileHeight()) * this.height);
    if (column >= this.width || row >= this.height) return -1;
    return (this.shown[n] * this.height + row) * this.width + column;
  }

  /** The rectangles of a box on the shown maps, in pixels of the canvas, at most so many. */
  rectsOf(box, most) {
    const rects = [];
    const [from, to] = this.shape.length === 2 ? [box.x0, box.x1] : [box.c0, box.c1];
    for (let n = 0; n < this.shown.length && rects.length < most; n++) {
      if (this.shown[n] < from || this.shown[n] >= to) continue;
      const [left, top] = this.cornerOf(n);
      const across = this.units ? UNIT : this.tile / this.width;
      const down = this.units ? UNIT : this.tileHeight() / this.height;
      const flat = this.units ? { x0: 0, x1: 1, y0: 0, y1: 1 } : box;
      rects.push({ x: left + flat.x0 * across, y: top + flat.y0 * down,
        width: Math.max(2, (flat.x1 - flat.x0) * across), height: Math.max(2, (flat.y1 - flat.y0) * down) });
    }
    return rects;
  }

  boxOf(index) {
    return boxAt(this.shape, index);
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  draw() {
    const context = this.canvas.getContext("2d");
    const values = this.values();
    const { largest, signed } = rangeOf(values);
    const kind = signed ? "signed" : "positive";
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    if (this.units) this.drawUnits(context, values, largest, kind);
    else this.drawMaps(context, values, largest, kind);
    // Filters change with the weights and the theme alone, not with each stroke.
    const filters = [this.strip && this.network.array(this.conv.inputs[1]), isDark()];
    if (this.strip && filters.some((part, i) => part !== this.drawn?.[i])) this.drawFilters(context);
    this.drawn = filters;
  }

  drawUnits(context, values, largest, kind) {
    this.shown.forEach((unit, n) => {
      const [x, y] = this.cornerOf(n);
      context.fillStyle = css(kind, shade(values[unit], largest, kind === "signed"));
      context.fillRect(x, y, UNIT, UNIT);
    });
    context.strokeStyle = "rgb(128 128 128 / 35%)";
    context.lineWidth = 1;
    this.shown.forEach((unit, n) => {
      const [x, y] = this.cornerOf(n);
      context.strokeRect(x + 0.5, y + 0.5, UNIT - 1, UNIT - 1);
    });
  }

  drawMaps(context, values, largest, kind) {
    const plane = this.height * this.width;
    // All maps below each other in one image: a canvas a map takes longer than the network.
    this.image ??= new PlaneImage(this.height * this.shown.length, this.width);
    this.shown.forEach((map, n) => this.image.set(n * plane, values.subarray(map * plane, (map + 1) * plane), largest, kind));
    const source = this.image.canvas();
    context.imageSmoothingEnabled = this.tile < this.width;
    context.strokeStyle = "rgb(128 128 128 / 35%)";
    context.lineWidth = 1;
    this.shown.forEach((_, n) => {
      const [x, y] = this.cornerOf(n);
      context.drawImage(source, 0, n * this.height, this.width, this.height, x, y, this.tile, this.tileHeight());
      context.strokeRect(x + 0.5, y + 0.5, this.tile - 1, this.tileHeight() - 1);
    });
  }

  drawFilters(context) {
    context.imageSmoothingEnabled = false;
    this.shown.forEach((map, n) => {
      const [x, y] = this.cornerOf(n);
      this.drawFilter(context, map, x, y + this.tileHeight() + 3);
    });
  }

  /** The filter of a map, as many of its planes as fit below it. */
  drawFilter(context, map, x, y) {
    const weights = this.network.array(this.conv.inputs[1]);
    const [, planes, rows, columns] = this.network.shapes.get(this.conv.inputs[1]);
    const { largest } = rangeOf(weights, map * planes * rows * columns, (map + 1) * planes * rows * columns);
    const image = new PlaneImage(rows, columns);
    for (let plane = 0; plane < this.planes; plane++) {
      const from = (map * planes + plane) * rows * columns;
      image.set(0, weights.subarray(from, from + rows * columns), largest, "signed");
      const across = (plane % this.beside) * (columns * this.tap + 2);
      const down = Math.floor(plane / this.beside) * (rows * this.tap + 2);
      context.drawImage(image.canvas(), x + across, y + down, columns * this.tap, rows * this.tap);
    }
  }
}

/** So many of the numbers below `total`, at equal distances. */
function spread(total, most) {
  if (total <= most) return Array.from({ length: total }, (_, i) => i);
  return Array.from({ length: most }, (_, i) => Math.floor((i * total) / most));
}

/** Marks on the layers and lines between them: what a value is computed from, back to the picture. */
export class Lines {
  constructor(svg, views, network) {
    this.svg = svg;
    this.network = network;
    this.views = new Map(views.map((view) => [view.name, view]));
  }

  clear() {
    this.svg.replaceChildren();
  }

  show(view, index) {
    this.clear();
    const origin = this.svg.getBoundingClientRect();
    const [start] = this.place(view, view.rectsOf(view.boxOf(index), 1), origin);
    if (!start) return;
    const strongest = this.strongest(view, index);
    // Of many inputs only the strongest is followed on to the picture.
    strongest.forEach((source, n) => this.follow(this.shownFrom([source]), start, origin, n === 0));
    if (!strongest.length) this.follow(this.before(view, view.boxOf(index)), start, origin, true);
    this.mark(start);
  }

  /** Of a unit, the inputs that add or take most; none of other layers, of which all inputs are shown. */
  strongest(view, index) {
    const [step] = view.steps;
    if (step?.op !== "linear") return [];
    const { terms } = this.network.terms(step, index);
    const sorted = terms.sort((a, b) => Math.abs(b.x * b.w) - Math.abs(a.x * a.w)).slice(0, STRONGEST);
    return sorted.map(({ at }) => ({ name: step.inputs[0], box: boxAt(step.shapes[0], at) }));
  }

  /** Mark boxes of shown layers, draw lines to them, and go on to what they are computed from. */
  follow(found, from, origin, onwards, seen = new Set()) {
    for (const [name, box] of found) {
      const view = this.views.get(name);
      const rects = this.place(view, view.rectsOf(box, 12), origin);
      for (const rect of rects) {
        this.mark(rect);
        this.line(from, rect);
      }
      if (!rects.length || !onwards || seen.has(name)) continue;
      seen.add(name);
      this.follow(this.before(view, box), rects[0], origin, true, seen);
    }
  }

  /** The nearest shown values that a box of a layer is computed from, by name. */
  before(view, box) {
    const number = this.network.makers.get(view.name);
    return number === undefined ? new Map() : this.shownFrom(this.network.sources(this.network.steps[number], box));
  }

  /** Boxes, each replaced by those that it comes from until these are shown ones. */
  shownFrom(boxes) {
    const found = new Map();
    const queue = [...boxes];
    while (queue.length) {
      const { name, box } = queue.shift();
      const number = this.network.makers.get(name);
      if (this.views.has(name)) found.set(name, box);
      else if (number !== undefined) queue.push(...this.network.sources(this.network.steps[number], box));
    }
    return found;
  }

  place(view, rects, origin) {
    const box = view.canvas.getBoundingClientRect();
    return rects.map((rect) => ({ ...rect, x: rect.x + box.left - origin.left, y: rect.y + box.top - origin.top }));
  }

  mark({ x, y, width, height }) {
    this.add("rect", { x: x - 0.5, y: y - 0.5, width: width + 1, height: height + 1 });
  }

  line(a, b) {
    this.add("line", { x1: a.x + a.width / 2, y1: a.y, x2: b.x + b.width / 2, y2: b.y + b.height });
  }

  add(kind, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    this.svg.append(element);
  }
}

/** The picture that goes in, as the first layer. */
export function inputView(network, channels) {
  const kind = channels === 3 ? "the colours, standardised" : "the picture, standardised";
  const layer = { label: "Input", kind, steps: [] };
  return new LayerView(network, network.program.input, layer, 3);
}

