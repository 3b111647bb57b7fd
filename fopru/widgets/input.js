// The reader's own picture: a file, what was pasted or dropped or photographed, or a drawing.

const MOST_BYTES = 50e6;
const MOST_PIXELS = 50e6;
const SMALLEST = 8; // as fopru.pictures
const LONGEST = 100;

/** A blob as RGBA bytes, upright, its transparent parts on white, and a sentence about what was
 * done to it. Throws an Error that says in words why a file is refused. */
export async function decoded(blob, name) {
  if (!blob.size) throw new Error(`${name}: the file is empty.`);
  if (blob.size > MOST_BYTES) {
    throw new Error(`${name}: ${Math.round(blob.size / 1e6)} MB are too many; at most `
      + `${MOST_BYTES / 1e6} MB.`);
  }
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error(`${name}: cannot be read as a picture.`);
  });
  const { width, height } = bitmap;
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (width * height > MOST_PIXELS) {
    throw new Error(`${name}: ${width} x ${height} pixels are too many; at most `
      + `${MOST_PIXELS / 1e6} million.`);
  }
  if (short < SMALLEST || long > LONGEST * short) {
    throw new Error(`${name}: ${width} x ${height} pixels; at least ${SMALLEST} a side and at most `
      + `${LONGEST} times as long as wide.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let rgba = context.getImageData(0, 0, width, height);
  const clear = blob.type !== "image/jpeg" // which has no transparency to look for
    && new Uint32Array(rgba.data.buffer).some((pixel) => pixel >>> 24 < 255);
  if (clear) {
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    rgba = context.getImageData(0, 0, width, height);
  }
  bitmap.close();
  return { rgba, note: clear ? "Its transparent parts are on white." : "" };
}

/** Planes of bytes as a picture on a canvas. */
export function painted(seen, height, width) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { height, width });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = seen[c * size + i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const STAR = Array.from({ length: 10 }, (_, i) => {
  const [turn, far] = [(Math.PI * i) / 5, i % 2 ? 0.42 : 1];
  return [far * Math.sin(turn), -far * Math.cos(turn)];
});
const SHAPES = {
  circle: null,
  square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
  triangle: [[0, -1], [1, 0.9], [-1, 0.9]],
  star: STAR,
};

/** A canvas to draw on: a brush and shapes, by pointer or by arrow keys and the space bar. */
export class Pad {
  constructor(make, side, colors) {
    this.colors = colors;
    this.canvas = make("canvas", {
      width: side, height: side, tabIndex: 0, className: "pad",
      attrs: {
        role: "application",
        "aria-label": "Drawing: arrow keys move the pen, space draws",
      },
    });
    this.context = this.canvas.getContext("2d");
    this.at = [side / 2, side / 2];
    const pick = (name, names) => make("select", { attrs: { "aria-label": name } },
      ...names.map((value) => make("option", { value, textContent: value })));
    this.tool = pick("Tool", [...Object.keys(SHAPES), "brush"]);
    this.color = pick("Color", Object.keys(colors));
    this.size = make("input", {
      type: "range", min: 4, max: 60, value: 28, attrs: { "aria-label": "Size" },
    });
    const clear = make("button", {
      type: "button", textContent: "Clear", onclick: () => this.clear(),
    });
    this.element = make("div", { className: "drawing" }, this.canvas,
      make("p", {}, this.tool, " ", this.color, " ", this.size, " ", clear));
    this.clear();
    this.listen(side);
  }

  clear() {
    this.context.fillStyle = "rgb(238,238,232)";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  listen(side) {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * side,
        ((event.clientY - box.top) / box.height) * side];
    };
    this.canvas.onpointerdown = (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.at = place(event);
      this.mark(this.at);
    };
    this.canvas.onpointermove = (event) => {
      if (!event.buttons || this.tool.value !== "brush") return;
      const [from, to] = [this.at, place(event)];
      this.at = to;
      this.mark(from, to);
    };
    this.canvas.onkeydown = (event) => {
      const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
      const move = step[event.key];
      if (!move && event.key !== " ") return;
      event.preventDefault();
      if (!move) return this.mark(this.at);
      this.at = this.at.map((v, i) => Math.min(Math.max(v + move[i], 0), side));
    };
  }

  mark(from, to = from) {
    const { context } = this;
    const size = Number(this.size.value);
    const color = `rgb(${this.colors[this.color.value]})`;
    Object.assign(context, { fillStyle: color, strokeStyle: color, lineCap: "round" });
    context.beginPath();
    if (this.tool.value === "brush") {
      context.lineWidth = size / 2;
      context.moveTo(...from);
      context.lineTo(to[0] + 0.01, to[1]);
      context.stroke();
      return;
    }
    const corners = SHAPES[this.tool.value];
    if (corners) {
      for (const [x, y] of corners) context.lineTo(from[0] + size * x, from[1] + size * y);
    } else {
      context.arc(...from, size, 0, 2 * Math.PI);
    }
    context.fill();
  }

  /** What was drawn, as a picture file. */
  blob() { return new Promise((resolve) => this.canvas.toBlob(resolve)); }
}
