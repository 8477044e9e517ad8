// Why an answer: what each part of the picture contributes to a class, found in two ways.

import { PlaneImage, css, isDark, rangeOf } from "./colours.mjs";
import { softmax } from "./network.mjs";
import { rawImage } from "./pad.mjs";
import { prepared } from "./picture.mjs";

/** Work for at most so many milliseconds at a time, so that the page keeps answering. */
const SLICE = 10;
/** A network that takes longer than this for a picture is asked part by part only when somebody wants it. */
const QUICK = 6;
/** A change of a probability that nobody would see in the percentages. */
const NOTHING = 0.0005;

export class Why {
  constructor(network, form, classes, elements) {
    Object.assign(this, { network, form, classes, elements });
    this.run = 0; // the newest computation; older ones stop
    this.quick = true;
  }

  /** Forget what is shown; `raw` is what comes now, or null. */
  update(raw, unit, milliseconds) {
    this.run++;
    this.quick = milliseconds < QUICK;
    this.elements.cover.hidden = this.quick;
    this.raw = raw;
    this.unit = unit;
    clearTimeout(this.timer);
    this.elements.text.textContent = "";
    this.draw(this.elements.occlusion, null);
    this.draw(this.elements.gradient, null);
    if (raw) this.timer = setTimeout(() => this.explain(this.run), this.quick ? 120 : 600);
  }

  explain(run) {
    this.showGradient();
    if (this.quick) this.cover(run);
  }

  /** For each input pixel its value times the gradient of the logit: to first order, what it adds. */
  showGradient() {
    const gradient = this.network.gradient(this.unit);
    const picture = this.network.array(this.network.program.input);
    const [channels, height, width] = this.form.input;
    // Relative to black, which is the ground's value: a pixel of the ground then contributes nothing.
    const sums = new Float32Array(height * width);
    for (let c = 0; c < channels; c++) {
      const ground = ((this.form.darkOnLight ? 1 : 0) - this.form.mean[c]) / this.form.std[c];
      for (let i = 0; i < sums.length; i++) {
        sums[i] += gradient[c * sums.length + i] * (picture[c * sums.length + i] - ground);
      }
    }
    this.contributions = sums;
    this.draw(this.elements.gradient, { values: this.inner(sums), width: this.form.width, height: this.form.height });
  }

  /** Of a plane of the network's input the part that is the picture, without its padding. */
  inner(plane) {
    const [, height, width] = this.form.input;
    const top = Math.floor((height - this.form.height) / 2);
    const left = Math.floor((width - this.form.width) / 2);
    const result = new Float32Array(this.form.height * this.form.width);
    for (let y = 0; y < this.form.height; y++) {
      const from = (y + top) * width + left;
      result.set(plane.subarray(from, from + this.form.width), y * this.form.width);
    }
    return result;
  }

  /** Cover part after part with the ground's colour, and see what becomes of the class. */
  async cover(run = ++this.run) {
    const { raw, unit, form } = this;
    const side = Math.max(2, Math.round(form.width / 7));
    const step = this.quick ? Math.max(1, side >> 1) : side;
    const whole = Float32Array.from(this.network.run(prepared(raw, form)));
    const drops = new Float32Array(form.width * form.height);
    const counts = new Float32Array(drops.length);
    const most = { drop: 0 };
    let started = performance.now();
    for (let top = 0; top < form.height; top += step) {
      for (let left = 0; left < form.width; left += step) {
        const part = { top, left, bottom: Math.min(form.height, top + side), right: Math.min(form.width, left + side) };
        const covered = this.coveredBy(raw, part);
        const logits = covered ? this.network.run(prepared(covered, form)) : whole;
        const drop = whole[unit] - logits[unit];
        addTo(drops, counts, part, drop, form.width);
        if (drop > most.drop) Object.assign(most, { drop, part, logits: Float32Array.from(logits) });
        if (performance.now() - started < SLICE) continue;
        this.network.run(prepared(raw, form)); // what is shown meanwhile is the whole picture's
        await new Promise((resume) => setTimeout(resume));
        if (run !== this.run) return;
        started = performance.now();
      }
    }
    this.network.run(prepared(raw, form));
    const values = drops.map((drop, i) => drop / counts[i]);
    this.draw(this.elements.occlusion, { values, width: form.width, height: form.height, part: most.part });
    this.tell(whole, most, side);
  }

  /** The picture with a part covered; null if that changes nothing. */
  coveredBy(raw, { top, left, bottom, right }) {
    const { width, height, channels } = this.form;
    const ground = this.form.darkOnLight ? 255 : 0;
    const covered = raw.slice();
    let changed = false;
    for (let c = 0; c < channels; c++) {
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          const at = (c * height + y) * width + x;
          changed ||= covered[at] !== ground;
          covered[at] = ground;
        }
      }
    }
    return changed ? covered : null;
  }

  /** What would change the answer most. */
  tell(whole, { part, logits }, side) {
    const name = this.classes[this.unit];
    const before = softmax(whole);
    const after = part ? softmax(logits) : before;
    if (before[this.unit] - after[this.unit] < NOTHING) {
      this.elements.text.textContent = `No part of ${side} × ${side} pixels, when covered, makes “${name}” less likely.`;
      return;
    }
    const best = after.indexOf(Math.max(...after));
    const then = best === this.unit ? "" : ` The answer would be “${this.classes[best]}” (${percent(after[best])}).`;
    this.elements.text.textContent =
      `What matters most is at row ${part.top + 1}, column ${part.left + 1}: with these ${side} × ${side} pixels covered, ` +
      `“${name}” goes from ${percent(before[this.unit])} to ${percent(after[this.unit])}.${then}`;
  }

  /** Values over a faint picture, blue for the class and orange against it; null draws the picture alone. */
  draw(canvas, found) {
    const ratio = globalThis.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(134 * ratio);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillStyle = css("signed", 127);
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!this.raw) return;
    if (found) context.drawImage(overlayImage(found), 0, 0, canvas.width, canvas.height);
    context.globalAlpha = found ? 0.22 : 0.5;
    // The picture's ground takes the page's colour as far as it can.
    if (isDark() === this.form.darkOnLight) context.filter = "invert(1)";
    context.drawImage(rawImage(this.raw, this.form), 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.globalAlpha = 1;
    if (found?.part) this.frame(context, canvas.width, found);
  }

  frame(context, size, { part, width, height }) {
    const [across, down] = [size / width, size / height];
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--mark");
    context.lineWidth = 2 * (globalThis.devicePixelRatio || 1);
    context.strokeRect(part.left * across, part.top * down, (part.right - part.left) * across, (part.bottom - part.top) * down);
  }
}

function addTo(drops, counts, { top, left, bottom, right }, drop, width) {
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      drops[y * width + x] += drop;
      counts[y * width + x]++;
    }
  }
}

function overlayImage({ values, width, height }) {
  const image = new PlaneImage(height, width);
  image.set(0, values, rangeOf(values).largest, "signed");
  return image.canvas();
}

/** A probability. */
export function percent(share) {
  return `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;
}
