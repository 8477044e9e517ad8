// In numbers: what a value is the sum, the maximum or the mean of.

import { css, inkOn, shade } from "./colours.mjs";
import { UNARY } from "./operations.mjs";

const MOST_ROWS = 8;

/** A number in as many characters as help to read it. */
export function short(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size && size < 0.001) return value.toExponential(1).replaceAll("-", "−");
  const text = size >= 1000 ? value.toFixed(0) : size >= 10 ? value.toFixed(2) : value.toFixed(3);
  return text.replace("-", "−");
}

/** An element with text or children: names of a model are only ever text. */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** What is called so: a place in a layer. */
export function placeName(view, index) {
  if (view.units) return `unit ${index + 1}`;
  const box = view.boxOf(index);
  return `map ${box.c0 + 1}, row ${box.y0 + 1}, column ${box.x0 + 1}`;
}

export class Inspector {
  constructor(target, network) {
    this.target = target;
    this.network = network;
    this.empty = [...target.childNodes];
  }

  clear() {
    this.target.replaceChildren(...this.empty);
  }

  show(view, index) {
    const value = view.values()[index];
    const title = element("h3", { "data-value": value }, `${view.label}, ${placeName(view, index)}: ${short(value)}`);
    const [first, ...following] = view.steps;
    const parts = first ? this.explain(first, index, following) : [element("p", {}, "A value of the picture that goes in.")];
    this.target.replaceChildren(title, ...parts);
  }

  explain(step, index, following) {
    const made = this.network.terms(step, index);
    if (made) return this.sum(step, index, made, following);
    const pooled = this.network.pooled(step, index);
    if (pooled) return this.window(step, index, pooled, following);
    return this.others(step, index, following);
  }

  /** A sum of products, its bias, and the functions that follow. */
  sum(step, index, { terms, bias, columns, planes }, following) {
    const total = terms.reduce((sum, { x, w }) => sum + x * w, 0);
    const line = element("p", { class: "equation", "data-sum": total, "data-bias": bias });
    line.append(`${terms.length} products: `, element("b", {}, short(total)), ` + bias ${short(bias)} = `,
      element("b", {}, short(total + bias)), ...this.after(step, index, following));
    const detail = columns ? this.patches(terms, columns, planes) : [this.strongest(step, terms)];
    return [line, ...detail];
  }

  /** "→ ReLU = 0.5", for each function that follows. */
  after(step, index, following) {
    return following.flatMap((next) => {
      const name = next.options.name === "Relu" ? "ReLU" : next.options.name;
      return [` → ${name} `, element("b", {}, short(this.network.array(next.output)[index]))];
    });
  }

  /** The terms of the channel that matters most as a grid, and the sums of the others. */
  patches(terms, columns, planes) {
    const size = terms.length / planes;
    const parts = Array.from({ length: planes }, (_, c) => {
      const own = terms.slice(c * size, (c + 1) * size);
      return { c, own, sum: own.reduce((sum, { x, w }) => sum + x * w, 0) };
    });
    const sorted = [...parts].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const where = planes > 1 ? ` of map ${sorted[0].c + 1}, which adds ${short(sorted[0].sum)}` : "";
    const grid = this.grid(sorted[0].own, columns, `patch × filter${where}`);
    return planes > 1 ? [grid, this.planeSums(sorted)] : [grid];
  }

  grid(terms, columns, caption) {
    const largest = Math.max(...terms.map(({ x, w }) => Math.abs(x * w)));
    const table = element("table", { class: "grid" }, element("caption", {}, caption));
    const detailed = columns <= 5;
    for (let i = 0; i < terms.length; i += columns) {
      const row = table.insertRow();
      for (const { at, x, w } of terms.slice(i, i + columns)) {
        const place = shade(x * w, largest, true);
        const cell = element("td", { "data-term": x * w, title: `${short(x)} × ${short(w)} = ${short(x * w)}`,
          style: { background: css("signed", place), color: inkOn("signed", place) } });
        if (detailed) cell.append(`${tight(x)}\u200a×\u200a${tight(w)}`);
        cell.append(element("b", {}, at < 0 ? "border" : tight(x * w)));
        row.append(cell);
      }
    }
    return table;
  }

  planeSums(sorted) {
    const rows = sorted.slice(0, MOST_ROWS).map(({ c, sum }) => [`map ${c + 1}`, sum]);
    const rest = sorted.slice(MOST_ROWS);
    if (rest.length) rows.push([`${rest.length} other maps`, rest.reduce((total, { sum }) => total + sum, 0)]);
    return this.list(rows, "sum over the patch of each map");
  }

  /** The inputs of a unit that add or take most. */
  strongest(step, terms) {
    const source = this.sourceName(step);
    const sorted = [...terms].sort((a, b) => Math.abs(b.x * b.w) - Math.abs(a.x * a.w));
    const rows = sorted.slice(0, MOST_ROWS).map(({ at, x, w }) => [`${source(at)}: ${short(x)} × ${short(w)}`, x * w]);
    const rest = sorted.slice(MOST_ROWS);
    if (rest.length) rows.push([`${rest.length} others`, rest.reduce((total, { x, w }) => total + x * w, 0)]);
    return this.list(rows, "strongest inputs: value × weight");
  }

  /** How the inputs of a step are called: of flattened maps, by map, row and column. */
  sourceName(step) {
    let name = step.inputs[0];
    let maker = this.network.steps[this.network.makers.get(name)];
    while (maker?.op === "view") {
      name = maker.inputs[0];
      maker = this.network.steps[this.network.makers.get(name)];
    }
    const shape = this.network.shapes.get(name);
    if (shape.length !== 4 || shape[2] * shape[3] === 1) return (at) => `unit ${at + 1}`;
    const [, , height, width] = shape;
    return (at) => `map ${Math.floor(at / (height * width)) + 1} (${(Math.floor(at / width) % height) + 1}, ${(at % width) + 1})`;
  }

  list(rows, caption) {
    const table = element("table", { class: "list" }, element("caption", {}, caption));
    for (const [name, value] of rows) {
      const sign = value < 0 ? "minus" : "plus";
      table.insertRow().append(element("td", {}, name),
        element("td", { class: sign, "data-part": value }, `${value < 0 ? "" : "+"}${short(value)}`));
    }
    return table;
  }

  /** A pooling window, with its winner or its mean. */
  window(step, index, { places, values, winner, count, columns }, following) {
    const result = this.network.array(step.output)[index];
    const line = element("p", { class: "equation" });
    line.append(winner < 0 ? `The mean of ${count} values: ` : `The largest of ${places.length} values: `,
      element("b", {}, short(result)), ...this.after(step, index, following));
    if (places.length > 64) return [line];
    const largest = Math.max(...values.map(Math.abs));
    const table = element("table", { class: "grid window" }, element("caption", {}, "its window"));
    for (let i = 0; i < places.length; i += columns) {
      const row = table.insertRow();
      for (let j = i; j < Math.min(i + columns, places.length); j++) {
        const place = shade(values[j], largest, true);
        row.append(element("td", { class: places[j] === winner ? "winner" : "", "data-window": values[j],
          style: { background: css("signed", place), color: inkOn("signed", place) } }, short(values[j])));
      }
    }
    return [line, table];
  }

  /** Other operations: their inputs where these are as many as the result's. */
  others(step, index, following) {
    const signs = { Add: "+", Sub: "−", Mul: "×", Div: "÷" };
    const line = element("p", { class: "equation" });
    const inputs = this.network.inputsOf(step);
    const result = this.network.array(step.output);
    if (step.op === "binary" && inputs.every((input) => input.length === result.length)) {
      const sign = signs[step.options.name] || step.options.name;
      line.append(`${short(inputs[0][index])} ${sign} ${short(inputs[1][index])} = `);
    } else if (step.op === "unary" && UNARY[step.options.name]) {
      line.append(`${step.options.name} of ${short(inputs[0][index])} = `);
    } else if (step.op === "concat") line.append("Taken over from a layer before: ");
    else line.append("Computed from the layer before: ");
    line.append(element("b", {}, short(result[index])), ...this.after(step, index, following));
    return [line];
  }
}

/** Two digits behind the point, for small cells. */
function tight(value) {
  return value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2).replace("-", "−");
}
