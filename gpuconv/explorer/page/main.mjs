// The page: what is drawn goes through the network, and everything that shows it is brought up to date.

import { onThemeChange } from "./colours.mjs";
import { Inspector, element, placeName } from "./inspector.mjs";
import { LayerView, Lines, inputView } from "./layers.mjs";
import { Network, bytesOf, softmax, unpacked } from "./network.mjs";
import { Pad, openPicture, rawImage } from "./pad.mjs";
import { prepared } from "./picture.mjs";
import { Why, percent } from "./why.mjs";

const INKS = ["#000000", "#ffffff", "#d32f2f", "#f9a825", "#2e7d32", "#1565c0", "#795548"];
const MOST_BARS = 10;
const byId = (id) => document.getElementById(id);

class Page {
  constructor(data) {
    this.data = data;
    this.form = data.form;
    this.weights = []; // of the epochs that were looked at
    this.final = unpacked(data.program.tensors, bytesOf(data.weights), data.half);
    this.network = new Network(data.program, this.final);
    this.pad = new Pad(byId("pad"), data.form, () => this.ask());
    this.raw = null;
    this.held = null; // what was clicked
    this.chosen = -1; // the class that is explained; -1: the answer
    this.times = [];
    this.fastest = Infinity;
    this.buildText();
    this.buildTools();
    this.buildSamples();
    this.buildEpochs();
    this.buildProbabilities();
    this.buildLayers();
    byId("main").hidden = false;
    this.layout();
    this.warm();
    if (this.samples.length) this.pad.show(this.samples[0]);
    else this.compute();
  }

  /** The browser compiles what has run a few times; what takes no time may do so before somebody waits for it. */
  warm() {
    const picture = new Float32Array(this.network.array(this.network.program.input).length);
    const end = performance.now() + 40;
    while (performance.now() < end) this.network.run(picture);
  }

  // -- building -------------------------------------------------------------------------------------------------------

  buildText() {
    byId("name").textContent = this.data.name;
    byId("facts").textContent = this.data.facts;
    byId("notes").textContent = this.data.notes.join(" ");
    byId("notes").hidden = !this.data.notes.length;
    const what = this.form.digits ? "Draw a digit" : "Draw";
    byId("pad-help").textContent = `${what}, or drop a picture here. Keys: arrows move, space draws.`;
    byId("pad").setAttribute("aria-label", `${what}: arrow keys move the pen, the space bar puts it down and lifts it.`);
  }

  buildTools() {
    byId("clear").addEventListener("click", () => this.pad.clear());
    byId("undo").addEventListener("click", () => this.pad.undo());
    byId("open").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => this.open(event.target.files[0]));
    this.listenForDrops(byId("pad"));
    if (this.form.channels === 3) this.buildInks();
  }

  buildInks() {
    const buttons = INKS.map((ink) => {
      const button = element("button", { type: "button", "aria-label": `pen ${ink}`, style: { background: ink } });
      button.addEventListener("click", () => choose(button, ink));
      return button;
    });
    const choose = (button, ink) => {
      this.pad.ink = ink;
      for (const one of buttons) one.setAttribute("aria-pressed", one === button);
    };
    choose(buttons[this.form.darkOnLight ? 0 : 1], this.pad.ink);
    byId("inks").append(...buttons);
  }

  listenForDrops(pad) {
    // Anywhere: a picture that misses the pad would replace the page.
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      pad.classList.remove("over");
      const file = event.dataTransfer.files[0];
      if (file) this.open(file);
      else this.say("That is no file. Drop a picture.");
    });
    pad.addEventListener("dragenter", () => pad.classList.add("over"));
    pad.addEventListener("dragleave", () => pad.classList.remove("over"));
  }

  async open(file) {
    if (!file) return;
    byId("file").value = "";
    try {
      this.pad.show(await openPicture(file, this.form));
    } catch (error) {
      this.say(error.message);
    }
  }

  say(text) {
    byId("message").textContent = text;
  }

  buildSamples() {
    const { bytes, labels } = this.data.samples;
    const all = bytesOf(bytes);
    const size = this.form.channels * this.form.width * this.form.height;
    this.samples = labels.map((_, i) => all.subarray(i * size, (i + 1) * size));
    this.samples.forEach((raw, i) => {
      const canvas = element("canvas", { width: this.form.width, height: this.form.height });
      canvas.getContext("2d").drawImage(rawImage(raw, this.form), 0, 0);
      const button = element("button", { type: "button", title: labels[i], "aria-label": `sample: ${labels[i]}` }, canvas);
      button.addEventListener("click", () => this.pad.show(raw));
      byId("samples").append(button);
    });
    byId("samples").hidden = !labels.length;
  }

  buildEpochs() {
    const { epochs } = this.data;
    if (epochs.length < 2) return;
    byId("training").hidden = false;
    const slider = byId("epoch");
    slider.max = epochs.length - 1;
    slider.value = epochs.length - 1;
    slider.addEventListener("input", () => this.useEpoch(Number(slider.value)));
    this.nameEpoch(epochs.length - 1);
  }

  nameEpoch(number) {
    const { label, detail } = this.data.epochs[number];
    byId("epoch-name").textContent = detail ? `${label}, ${detail}` : label;
    byId("epoch").setAttribute("aria-valuetext", detail ? `${label}, ${detail}` : label);
  }

  useEpoch(number) {
    const { epochs, program } = this.data;
    this.weights[number] ??= epochs[number].weights === null ? this.final : unpacked(program.tensors, bytesOf(epochs[number].weights), true);
    this.network.weights = this.weights[number];
    this.nameEpoch(number);
    this.compute();
  }

  buildProbabilities() {
    const { classes } = this.data;
    this.bars = classes.slice(0, MOST_BARS).map(() => {
      const parts = { name: element("span"), share: element("span"), bar: element("i", { "aria-hidden": "true" }) };
      parts.row = element("li", {}, parts.bar, parts.name, parts.share);
      return parts;
    });
    byId("probabilities").append(...this.bars.map(({ row }) => row));
    const select = byId("why-class");
    select.append(element("option", { value: -1 }, "the answer"));
    classes.forEach((name, i) => select.append(element("option", { value: i }, name)));
    select.addEventListener("change", () => {
      this.chosen = Number(select.value);
      this.showWhy();
    });
    const elements = { gradient: byId("why-gradient"), occlusion: byId("why-occlusion"), text: byId("why-text"), cover: byId("why-cover") };
    this.why = new Why(this.network, this.form, classes, elements);
    elements.cover.addEventListener("click", () => this.raw && this.why.cover());
  }

  buildLayers() {
    const { program, mostMaps } = this.data;
    const views = program.layers.map((layer) => new LayerView(this.network, program.steps[layer.steps.at(-1)].output, layer, mostMaps));
    this.views = [inputView(this.network, this.form.input[0]), ...views];
    byId("layers").append(...this.views.map((view) => view.element));
    this.inspector = new Inspector(byId("explained"), this.network);
    this.lines = new Lines(byId("lines"), this.views, this.network);
    for (const view of this.views) this.listenTo(view);
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.release());
    this.width = 0;
    new ResizeObserver(() => this.layout()).observe(byId("layers"));
    onThemeChange(() => this.compute());
  }

  // -- pointing at values ---------------------------------------------------------------------------------------------

  listenTo(view) {
    const at = (event) => {
      const box = view.canvas.getBoundingClientRect();
      return view.hit(event.clientX - box.left, event.clientY - box.top);
    };
    view.canvas.addEventListener("pointermove", (event) => this.held || this.look(view, at(event)));
    view.canvas.addEventListener("pointerleave", () => this.held || this.release());
    view.canvas.addEventListener("click", (event) => {
      const index = at(event);
      const same = this.held && this.held.view === view && this.held.index === index;
      this.held = null;
      if (same || index < 0) this.release();
      else this.hold(view, index);
    });
    view.canvas.addEventListener("keydown", (event) => this.step(view, event));
    view.canvas.addEventListener("focus", () => {
      if (!this.held && view.canvas.matches(":focus-visible")) this.look(view, this.startOf(view));
    });
  }

  hold(view, index) {
    this.look(view, index);
    this.held = { view, index };
  }

  release() {
    this.held = null;
    this.looked = null;
    this.lines.clear();
    this.inspector.clear();
  }

  look(view, index) {
    if (index < 0) return;
    this.looked = { view, index };
    this.inspector.show(view, index);
    this.lines.show(view, index);
  }

  /** The middle of the first map. */
  startOf(view) {
    return view.units ? view.shown[0] : (view.shown[0] * view.height + (view.height >> 1)) * view.width + (view.width >> 1);
  }

  /** Keys: arrows within a map, Page Up and Page Down to the one before or behind. */
  step(view, event) {
    const move = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const index = this.looked?.view === view ? this.moved(view, this.looked.index, move) : this.startOf(view);
    this.hold(view, index);
    view.canvas.setAttribute("aria-label", `${view.label}, ${placeName(view, index)}: ${view.values()[index].toFixed(3)}`);
  }

  moved(view, index, [map, down, across]) {
    const clamp = (value, end) => Math.max(0, Math.min(end - 1, value));
    if (view.units) {
      const at = view.shown.indexOf(index) + across + map + down * view.columns;
      return view.shown[clamp(at, view.shown.length)];
    }
    const box = view.boxOf(index);
    const n = clamp(view.shown.indexOf(box.c0) + map, view.shown.length);
    return (view.shown[n] * view.height + clamp(box.y0 + down, view.height)) * view.width + clamp(box.x0 + across, view.width);
  }

  // -- keeping up to date ---------------------------------------------------------------------------------------------

  layout() {
    const width = byId("layers").clientWidth;
    if (width === this.width) return;
    this.width = width;
    for (const view of this.views) view.layout(width);
    this.drawLayers();
  }

  drawLayers() {
    for (const view of this.views) view.draw();
    if (this.looked) this.look(this.looked.view, this.looked.index);
  }

  /** Compute before the next frame, once, however many points a pen sends until then. */
  ask() {
    this.say("");
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.compute();
    });
  }

  compute() {
    const started = performance.now();
    this.raw = this.pad.raw();
    this.logits = Float32Array.from(this.network.run(prepared(this.raw ?? this.ground(), this.form)));
    this.took = performance.now() - started;
    // The first runs are slower, until the browser has compiled them.
    this.fastest = Math.min(this.fastest, this.took);
    this.showProbabilities();
    this.answered = performance.now() - started;
    this.drawLayers();
    this.times.push([this.answered, performance.now() - started]);
    byId("time").textContent = `Computed in ${this.took.toFixed(this.took < 10 ? 1 : 0)} ms.`;
    this.showWhy();
  }

  /** A picture of nothing. */
  ground() {
    const size = this.form.channels * this.form.width * this.form.height;
    return new Uint8Array(size).fill(this.form.darkOnLight ? 255 : 0);
  }

  /** The most likely class and its probability, in words. */
  answer(shares, best) {
    if (!this.raw) return "Nothing is drawn.";
    return best < 0 ? "No answer: the numbers overflow." : `${this.data.classes[best]}: ${percent(shares[best])}`;
  }

  showProbabilities() {
    const { classes } = this.data;
    const shares = softmax(this.logits);
    const best = shares.indexOf(Math.max(...shares));
    byId("answer").textContent = this.answer(shares, best);
    const order = classes.map((_, i) => i);
    if (classes.length > MOST_BARS) order.sort((a, b) => shares[b] - shares[a]);
    this.best = best;
    this.bars.forEach(({ row, name, share, bar }, place) => {
      const i = order[place];
      const value = this.raw ? shares[i] : 0;
      name.textContent = classes[i];
      share.textContent = this.raw ? percent(value) : "";
      bar.style.transform = `scaleX(${value})`;
      row.className = this.raw && i === best ? "first" : "";
    });
  }

  showWhy() {
    const unit = this.chosen < 0 ? this.best : this.chosen;
    this.why.update(unit < 0 ? null : this.raw, unit, this.fastest);
  }

  // -- for tests and the console --------------------------------------------------------------------------------------

  /** Logits of bytes in the network's form; what is shown stays what is drawn. */
  logitsOf(raw) {
    const logits = Array.from(this.network.run(prepared(raw, this.form)));
    this.network.run(prepared(this.raw ?? this.ground(), this.form));
    return logits;
  }
}

globalThis.gpuconvExplorer = new Page(JSON.parse(byId("data").textContent));
