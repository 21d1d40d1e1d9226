// What is drawn on canvases: the map of the pool, lines over the last minute, the squares of attention. Colours come from the style sheet.

import { rate } from "/page/text.js";

export const FREE = 0, CACHED = 1, LIVE = 2, SHARED = 3, FIRST_REQUEST = 4;

const repaints = new Set();
let ink = "", faint = "";              // of lines
let palette, dimmed;                   // by cell: the colour as the bytes of a pixel; the same where another request stands out

// Neighbouring requests get hues that are far apart: steps of the golden angle, all equally light.
export const requestColor = (cell) => `oklch(0.68 0.14 ${((cell * 137.508) % 360).toFixed(1)})`;

// A style sheet's colour may be written in many ways: a canvas tells the bytes.
function pixelsOf(colors) {
  const context = Object.assign(document.createElement("canvas"), { width: colors.length, height: 1 }).getContext("2d");
  colors.forEach((color, x) => {
    context.fillStyle = color;
    context.fillRect(x, 0, 1, 1);
  });
  return new Uint32Array(context.getImageData(0, 0, colors.length, 1).data.buffer);
}

function readColors() {
  const of = (name) => getComputedStyle(document.querySelector(`.swatch.${name}`)).backgroundColor;
  const states = ["free", "cached", "live", "shared"].map(of);
  [, faint, ink] = states;
  const requests = Array.from({ length: 256 - FIRST_REQUEST }, (_, i) => requestColor(i + FIRST_REQUEST));
  palette = pixelsOf([...states, ...requests]);
  dimmed = pixelsOf([states[FREE], ...Array(255).fill(states[CACHED])]);
}

export function themeChanged() {
  readColors();
  for (const repaint of repaints) repaint();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);

// Sizes a canvas to whole device pixels; calls paint() now, and when size or theme change.
function keepSized(canvas, paint, isTall = true) {
  const resize = () => {
    const scale = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (canvas.width !== width) canvas.width = width;
    if (isTall && canvas.height !== height) canvas.height = height;
    paint();
  };
  new ResizeObserver(resize).observe(canvas);
  repaints.add(resize);
}

// A pixel for each cell is drawn out of sight and enlarged: what a change costs does not depend on how much has changed.
export class PoolMap {
  constructor(canvas, describe) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.small = document.createElement("canvas");
    this.cells = new Uint8Array();
    this.shown = null;  // the one request that stands out, if any
    this.at = -1;       // the cell that is described
    keepSized(canvas, () => this.layOut(), false);
    if (!describe) return;
    const look = (index) => { this.at = Math.max(-1, Math.min(index, this.cells.length - 1)); describe(this.at); };
    canvas.addEventListener("pointermove", (event) => look(this.cellAt(event)));
    canvas.addEventListener("pointerleave", () => look(-1));
    canvas.addEventListener("blur", () => look(-1));
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
      if (!(event.key in steps)) return;
      event.preventDefault();
      look(Math.max(0, this.at + steps[event.key]));
    });
  }

  update(cells, changed = true) {
    const sameSize = cells.length === this.cells.length;
    this.cells = cells;
    if (!sameSize) this.layOut();
    else if (changed) this.paint();
  }

  show(request) {
    if (this.shown === request) return;
    this.shown = request;
    this.paint();
  }

  // The largest square, in device pixels, with which all cells fit into the width and max-height of the style sheet.
  layOut() {
    const { canvas, small } = this;
    const count = this.cells.length, width = canvas.width;
    const scale = devicePixelRatio || 1;
    const height = Math.round(parseFloat(getComputedStyle(canvas).maxHeight) * scale);
    if (!count || !width || !height) return;
    let pitch = Math.min(Math.floor(Math.sqrt((width * height) / count)) + 1, Math.round(22 * scale));
    const rows = () => Math.ceil(count / Math.floor(width / pitch));
    while (pitch > 1 && rows() * pitch > height) --pitch;
    this.pitch = pitch;
    this.gap = pitch >= 3 ? Math.max(1, Math.round(pitch / 9)) : 0;
    this.columns = Math.max(1, Math.floor(width / pitch));
    small.width = this.columns;
    small.height = rows();
    canvas.height = small.height * pitch;
    canvas.style.height = `${canvas.height / scale}px`;
    this.image = small.getContext("2d").createImageData(small.width, small.height);
    this.paint();
  }

  paint() {
    const { canvas, context, small, image, pitch, gap, cells, shown } = this;
    if (!image) return;
    if (!palette) readColors();
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < cells.length; ++i) pixels[i] = (shown === null || cells[i] === shown ? palette : dimmed)[cells[i]];
    small.getContext("2d").putImageData(image, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, small.width * pitch, small.height * pitch);
    if (gap) {
      for (let x = 1; x <= small.width; ++x) context.clearRect(x * pitch - gap, 0, gap, canvas.height);
      for (let y = 1; y <= small.height; ++y) context.clearRect(0, y * pitch - gap, canvas.width, gap);
    }
  }

  cellAt(event) {
    const scale = this.canvas.width / this.canvas.clientWidth;
    const column = Math.floor((event.offsetX * scale) / this.pitch), row = Math.floor((event.offsetY * scale) / this.pitch);
    const cell = row * this.columns + column;
    return column < this.columns && cell < this.cells.length ? cell : -1;
  }
}

// A number over the last minute. null: nothing to measure; the line goes on behind it, unless that lasts.
const kGapMs = 5000;
export class LineChart {
  constructor(canvas, seconds = 60) {
    Object.assign(this, { canvas, seconds, points: [] });
    this.context = canvas.getContext("2d");
    keepSized(canvas, () => this.draw());
  }

  add(now, value) {
    const { points } = this;
    if (points.length > 1 && now - points[points.length - 2][0] < 200) points.pop();  // five a second are as many as one can see
    points.push([now, value]);
    while (this.points[0][0] < now - this.seconds * 1000) this.points.shift();
    this.draw();
  }

  // The next of 1, 2, 5, 10, 20 … above the greatest point.
  top() {
    const most = Math.max(1e-9, ...this.points.map(([, value]) => value ?? 0));
    const power = 10 ** Math.floor(Math.log10(most));
    return [1, 2, 5, 10].find((step) => step * power >= most) * power;
  }

  draw() {
    const { canvas, context, points } = this;
    const { width, height } = canvas;
    const scale = devicePixelRatio || 1;
    context.clearRect(0, 0, width, height);
    if (!width) return;
    const end = points.length ? points[points.length - 1][0] : 0;
    const top = this.top();
    const x = (time) => width - ((end - time) / (this.seconds * 1000)) * width;
    const y = (value) => height - scale - (value / top) * (height - 14 * scale);
    context.fillStyle = faint;
    context.globalAlpha = 0.5;
    for (const level of [0, top]) context.fillRect(0, Math.round(y(level)), width, Math.max(1, Math.round(scale / 2)));
    context.globalAlpha = 1;
    if (points.some(([, value]) => value)) {
      context.font = `${11 * scale}px system-ui, sans-serif`;
      context.fillText(rate(top), 0, 9 * scale);
    }
    context.strokeStyle = ink;
    context.lineWidth = 1.5 * scale;
    context.lineJoin = "round";
    context.beginPath();
    let last = -Infinity;
    for (const [time, value] of points) {
      if (value === null) continue;
      if (time - last < kGapMs) context.lineTo(x(time), y(value));
      else context.moveTo(x(time), y(value));
      last = time;
    }
    context.stroke();
  }
}

// Row i is what token i looks at, most looked at is strongest. rows[i][j], j <= i, in 0 … 1. describe(i, j) of what is pointed at; -1: nothing.
export class AttentionSquare {
  constructor(canvas, rows, describe) {
    const count = rows.length;
    keepSized(canvas, () => {
      const context = canvas.getContext("2d");
      const cell = canvas.width / count;
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.fillStyle = getComputedStyle(canvas).color;
      rows.forEach((row, i) => row.forEach((weight, j) => {
        context.globalAlpha = 0.04 + 0.96 * Math.sqrt(weight);
        const left = Math.floor(j * cell), above = Math.floor(i * cell);
        context.fillRect(left, above, Math.max(1, Math.floor((j + 1) * cell) - left), Math.max(1, Math.floor((i + 1) * cell) - above));
      }));
    });
    let at = [count - 1, 0];
    const look = (i, j) => describe(...(i >= 0 && i < count && j >= 0 && j <= i ? (at = [i, j]) : [-1, -1]));
    canvas.addEventListener("pointermove", (event) => {
      look(Math.floor((event.offsetY / canvas.clientHeight) * count), Math.floor((event.offsetX / canvas.clientWidth) * count));
    });
    for (const left of ["pointerleave", "blur"]) canvas.addEventListener(left, () => describe(-1, -1));
    canvas.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
      if (down === undefined) return;
      event.preventDefault();
      const i = Math.max(0, Math.min(count - 1, at[0] + down));
      look(i, Math.max(0, Math.min(i, at[1] + right)));
    });
  }
}
