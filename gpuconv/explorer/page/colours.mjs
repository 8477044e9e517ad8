// Values as colours: from the paper's colour to ink for what is never negative, blue and orange for what has a sign.
// Both pairs are told apart by those who do not see red or green.

const STOPS = {
  light: {
    positive: [[251, 251, 249], [158, 193, 226], [46, 111, 174], [8, 40, 92]],
    signed: [[140, 58, 4], [236, 160, 92], [250, 249, 246], [120, 172, 224], [14, 62, 128]],
    picture: [[0, 0, 0], [255, 255, 255]],
  },
  dark: {
    positive: [[24, 28, 35], [38, 84, 140], [112, 170, 232], [240, 247, 255]],
    signed: [[255, 208, 150], [196, 104, 30], [30, 34, 41], [52, 116, 190], [178, 214, 255]],
    picture: [[0, 0, 0], [255, 255, 255]],
  },
};

/** 256 colours between stops, as the 32 bits of an ImageData's pixel. */
function table(stops) {
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    const [r, g, b] = stops[low].map((value, c) => Math.round(value + (stops[low + 1][c] - value) * (at - low)));
    colours[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colours;
}

const TABLES = Object.fromEntries(
  Object.entries(STOPS).map(([theme, kinds]) => [
    theme, Object.fromEntries(Object.entries(kinds).map(([kind, stops]) => [kind, table(stops)])),
  ]),
);
const darkness = globalThis.matchMedia?.("(prefers-color-scheme: dark)");

export function onThemeChange(redraw) {
  darkness?.addEventListener("change", redraw);
}

export function isDark() {
  return Boolean(darkness?.matches);
}

export function tableOf(kind) {
  return TABLES[isDark() ? "dark" : "light"][kind];
}

/** The place of a value in a table: `largest` is what the last colour stands for. */
export function shade(value, largest, signed) {
  const share = largest > 0 ? value / largest : 0;
  return Math.max(0, Math.min(255, Math.round(signed ? 127.5 + 127.5 * share : 255 * share)));
}

/** A colour of a table for CSS. */
export function css(kind, place) {
  const pixel = tableOf(kind)[place];
  return `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}

/** Black or white, whichever is easier to read on a colour. */
export function inkOn(kind, place) {
  const pixel = tableOf(kind)[place];
  const brightness = 0.299 * (pixel & 255) + 0.587 * ((pixel >> 8) & 255) + 0.114 * ((pixel >> 16) & 255);
  return brightness > 140 ? "#10151d" : "#ffffff";
}

/** Values as the pixels of a canvas that is used again and again. */
export class PlaneImage {
  constructor(height, width) {
    this.context = new OffscreenCanvas(width, height).getContext("2d");
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  set(at, values, largest, kind) {
    const colours = tableOf(kind);
    const signed = kind === "signed";
    for (let i = 0; i < values.length; i++) this.pixels[at + i] = colours[shade(values[i], largest, signed)];
  }

  canvas() {
    this.context.putImageData(this.image, 0, 0);
    return this.context.canvas;
  }
}

/** The largest absolute value, and whether one is negative. */
export function rangeOf(values, from = 0, end = values.length) {
  let largest = 0;
  let signed = false;
  for (let i = from; i < end; i++) {
    const value = values[i];
    if (value < 0) signed = true;
    if (Math.abs(value) > largest) largest = Math.abs(value);
  }
  return { largest, signed };
}
