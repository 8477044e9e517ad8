// A drawn or opened picture in the form of those that the network has learned from, and as its input.

/** Brightness of RGBA pixels, 0 to 255, by ITU-R BT.601; what is transparent is white paper. */
export function greyOf(rgba) {
  const grey = new Float32Array(rgba.length / 4);
  for (let i = 0; i < grey.length; i++) {
    const value = 0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2];
    const opaque = rgba[4 * i + 3] / 255;
    grey[i] = value * opaque + 255 * (1 - opaque);
  }
  return grey;
}

/** Light digits on a dark ground from a photograph of ink on paper, or the reverse; contrast is stretched. */
export function lightOnDark(grey, width, height) {
  const border = [];
  for (let x = 0; x < width; x++) border.push(grey[x], grey[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) border.push(grey[y * width], grey[y * width + width - 1]);
  border.sort((a, b) => a - b);
  const ground = border[border.length >> 1];
  const far = grey.reduce((most, value) => Math.max(most, Math.abs(value - ground)), 0);
  if (far < 16) return null;
  const sign = ground > 127 ? -1 : 1;
  // What is nearer to the ground than an eighth is paper's grain and shadow.
  return grey.map((value) => Math.max(0, Math.min(255, ((sign * (value - ground)) / far - 0.125) * 291.5)));
}

/** The part { x, y, width, height } of a plane, scaled to another size; each pixel is the mean of what it covers. */
export function resampled(plane, planeWidth, planeHeight, part, width, height) {
  const columns = overlaps(part.x, part.width / width, width, planeWidth);
  const rows = overlaps(part.y, part.height / height, height, planeHeight);
  const result = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (const [row, tall] of rows[y]) {
        for (const [column, wide] of columns[x]) sum += plane[row * planeWidth + column] * tall * wide;
      }
      result[y * width + x] = sum;
    }
  }
  return result;
}

/** For each new pixel, the old ones that it covers with their shares; what lies outside is 0. */
function overlaps(start, step, count, size) {
  return Array.from({ length: count }, (_, i) => {
    const from = start + i * step;
    const pixels = [];
    for (let old = Math.max(0, Math.floor(from)); old < Math.min(size, Math.ceil(from + step)); old++) {
      pixels.push([old, (Math.min(old + 1, from + step) - Math.max(old, from)) / step]);
    }
    return pixels;
  });
}

/** A digit as MNIST has them: cropped, fit into 20 by 20, its mass in the middle of 28 by 28. Null if nothing is there. */
export function digitOf(grey, width, height) {
  const box = inkBox(grey, width, height);
  if (!box) return null;
  const scale = 20 / Math.max(box.width, box.height);
  const fitted = [Math.max(1, Math.round(box.width * scale)), Math.max(1, Math.round(box.height * scale))];
  const small = resampled(grey, width, height, box, ...fitted);
  const [cx, cy] = centreOf(small, ...fitted);
  return placed(small, ...fitted, Math.round(14 - cx), Math.round(14 - cy));
}

function inkBox(grey, width, height) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (grey[y * width + x] <= 32) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  return right < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

function centreOf(plane, width, height) {
  let [mass, sumX, sumY] = [0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = plane[y * width + x];
      mass += value;
      sumX += value * (x + 0.5);
      sumY += value * (y + 0.5);
    }
  }
  return [sumX / mass, sumY / mass];
}

function placed(plane, width, height, left, top) {
  const result = new Uint8Array(28 * 28);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [row, column] = [y + top, x + left];
      if (row >= 0 && row < 28 && column >= 0 && column < 28) result[row * 28 + column] = Math.round(plane[y * width + x]);
    }
  }
  return result;
}

/** RGBA pixels in the form that the network knows: bytes (channels, height, width). Null if there is nothing to see. */
export function rawOf(rgba, width, height, form) {
  if (form.digits) {
    const grey = lightOnDark(greyOf(rgba), width, height);
    const digit = grey && digitOf(grey, width, height);
    return digit && form.inverted ? digit.map((value) => 255 - value) : digit;
  }
  const side = Math.min(width / form.width, height / form.height);
  const part = { width: side * form.width, height: side * form.height };
  Object.assign(part, { x: (width - part.width) / 2, y: (height - part.height) / 2 });
  const planes = form.channels === 1 ? [greyOf(rgba)] : [0, 1, 2].map((c) => channelOf(rgba, c));
  const raw = new Uint8Array(form.channels * form.height * form.width);
  planes.forEach((plane, c) => {
    const scaled = resampled(plane, width, height, part, form.width, form.height);
    scaled.forEach((value, i) => (raw[c * scaled.length + i] = Math.round(value)));
  });
  return raw;
}

/** One colour of RGBA pixels, on white paper where they are transparent. */
function channelOf(rgba, c) {
  return Float32Array.from({ length: rgba.length / 4 }, (_, i) => {
    const opaque = rgba[4 * i + 3] / 255;
    return rgba[4 * i + c] * opaque + 255 * (1 - opaque);
  });
}

/** The network's input: bytes padded with black and standardised, (value / 255 - mean) / std. */
export function prepared(raw, form) {
  const [channels, height, width] = form.input;
  const result = new Float32Array(channels * height * width);
  const top = Math.floor((height - form.height) / 2);
  const left = Math.floor((width - form.width) / 2);
  for (let c = 0; c < channels; c++) {
    const standard = (value) => (value / 255 - form.mean[c]) / form.std[c];
    result.fill(standard(0), c * height * width, (c + 1) * height * width);
    const plane = c % form.channels;
    for (let y = 0; y < form.height; y++) {
      for (let x = 0; x < form.width; x++) {
        const to = (c * height + y + top) * width + x + left;
        result[to] = standard(raw[(plane * form.height + y) * form.width + x]);
      }
    }
  }
  return result;
}
