// The drawing pad: strokes of a mouse, pen, finger or the keyboard over an optional picture.

import { rawOf } from "./picture.mjs";

/** Pixels along a side in which strokes are looked at: as many as shown. */
const SIDE = 280;

export class Pad {
  /** form: of the network's pictures; changed(): called after each change. */
  constructor(canvas, form, changed) {
    this.canvas = canvas;
    this.form = form;
    this.changed = changed;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.strokes = [];
    this.base = null; // bytes of a sample or an opened picture, in the network's form
    this.ink = form.darkOnLight ? "#000000" : "#ffffff";
    this.ground = form.darkOnLight ? "#ffffff" : "#000000";
    this.width = form.digits ? 22 : 16;
    this.cursor = { x: SIDE / 2, y: SIDE / 2, down: false };
    this.listen();
    this.draw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.begin(...this.placeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      // A fast pen sends several places at once.
      for (const one of event.getCoalescedEvents?.() ?? []) this.extend(...this.placeOf(one));
      this.extend(...this.placeOf(event));
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  }

  /** Arrow keys move a cursor, the space bar puts the pen down and lifts it. */
  key(event) {
    const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key];
    const { cursor } = this;
    if (event.key === " ") {
      cursor.down = !cursor.down;
      if (cursor.down) this.begin(cursor.x, cursor.y);
    } else if (step) {
      cursor.x = Math.max(0, Math.min(SIDE, cursor.x + step[0]));
      cursor.y = Math.max(0, Math.min(SIDE, cursor.y + step[1]));
      if (cursor.down) this.extend(cursor.x, cursor.y);
      else this.draw(true);
    } else return;
    event.preventDefault();
  }

  begin(x, y) {
    this.strokes.push({ ink: this.ink, points: [[x, y]] });
    this.update();
  }

  extend(x, y) {
    this.strokes.at(-1)?.points.push([x, y]);
    this.update();
  }

  undo() {
    if (!this.strokes.pop()) this.base = null;
    this.update();
  }

  clear() {
    this.strokes = [];
    this.base = null;
    this.cursor.down = false;
    this.update();
  }

  /** Show bytes in the network's form instead of what is there. */
  show(raw) {
    this.strokes = [];
    this.base = raw;
    this.update();
  }

  update() {
    this.draw();
    this.changed();
  }

  draw(withCursor = false) {
    const { context } = this;
    context.fillStyle = this.ground;
    context.fillRect(0, 0, SIDE, SIDE);
    if (this.base) this.drawBase();
    Object.assign(context, { lineWidth: this.width, lineCap: "round", lineJoin: "round" });
    for (const { ink, points } of this.strokes) {
      context.strokeStyle = ink;
      context.beginPath();
      context.moveTo(...points[0]);
      // A line of no length is a dot with round ends.
      for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
      context.stroke();
    }
    if (withCursor) {
      context.strokeStyle = "#d81b60";
      context.lineWidth = 2;
      context.strokeRect(this.cursor.x - 6, this.cursor.y - 6, 12, 12);
    }
  }

  drawBase() {
    const image = rawImage(this.base, this.form);
    this.context.imageSmoothingEnabled = this.form.width > 64;
    // In the middle, where strokes are looked at, too, if the network's pictures are not square.
    const scale = Math.min(SIDE / image.width, SIDE / image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    this.context.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
  }

  get empty() {
    return !this.strokes.length && !this.base;
  }

  /** What is on the pad in the network's form, or null if that is nothing. */
  raw() {
    if (this.base && !this.strokes.length) return this.base;
    if (this.empty) return null;
    return rawOf(this.context.getImageData(0, 0, SIDE, SIDE).data, SIDE, SIDE, this.form);
  }
}

/** Bytes in a network's form as a canvas. */
export function rawImage(raw, form) {
  const canvas = new OffscreenCanvas(form.width, form.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(form.width, form.height);
  const plane = form.width * form.height;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = raw[(c % form.channels) * plane + i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A picture of any kind in the network's form. Rejects with a line that says what is wrong with it. */
export async function openPicture(file, form) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "This"} is no picture that the browser can read.`);
  });
  // Larger ones are shrunk by the browser; what is looked for needs no more.
  const factor = Math.min(1, 640 / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * factor));
  const height = Math.max(1, Math.round(bitmap.height * factor));
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const raw = rawOf(data, width, height, form);
  if (!raw) throw new Error("No digit can be seen in this picture: it is almost of one brightness.");
  return raw;
}

