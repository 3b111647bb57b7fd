// What all widgets of a page share: elements, colours, verdicts, and pictures with patches on them.

const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

/** What an answer is worth as it was said. */
export function verdict({ right, begins, formed }) {
  if (right) return "right";
  if (begins && formed !== true) return "begins right, runs on";
  return formed === false ? "no legal answer" : "wrong";
}

/** Whether the right answer is the likeliest of the legal ones; a question may name none. */
export function known({ knows }) {
  return knows === null ? "no choices" : knows ? "yes" : "no";
}

/** An element with properties, attributes (in `attrs`) and children; text is never read as HTML. */
export function make(tag, { attrs = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attrs)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function shape(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

export function viridis(share) {
  const place = share * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const mix = VIRIDIS[low].map((v, i) => v + (place - low) * (VIRIDIS[low + 1][i] - v));
  return `rgba(${mix.map(Math.round).join(",")},0.72)`;
}

/** The colours of `viridis` from left to right, as CSS has them. */
export const RAMP = `linear-gradient(90deg, ${VIRIDIS.map((color) => `rgb(${color})`).join(", ")})`;

/** A picture on a canvas, and a function from a patch to its (x, y, width, height) there. */
export function laid(canvas, image, { height, width }, filter = "none") {
  const context = canvas.getContext("2d");
  context.filter = filter;
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  const [wide, high] = [canvas.width / width, canvas.height / height];
  return [context, (i) => [(i % width) * wide, Math.floor(i / width) * high, wide, high]];
}

/** Lines around patches of a grid, each in some colours and widths. */
export function outline(context, cell, width, patches, lines) {
  const under = new Set(patches);
  context.beginPath();
  for (const i of patches) {
    const [x, y, w, h] = cell(i);
    const sides = [
      [i - width, x, y, x + w, y], [i + width, x, y + h, x + w, y + h],
      [i % width ? i - 1 : -1, x, y, x, y + h],
      [(i + 1) % width ? i + 1 : -1, x + w, y, x + w, y + h],
    ];
    for (const [next, x0, y0, x1, y1] of sides) {
      if (!under.has(next)) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
    }
  }
  for (const [color, thick] of lines) {
    Object.assign(context, { strokeStyle: color, lineWidth: thick });
    context.stroke();
  }
}

/** A picture whose dropped patches are dark and whose kept ones are outlined, as the evidence is in
 * orange. */
export function dimmed(canvas, image, grid, kept, evidence = []) {
  const [context, cell] = laid(canvas, image, grid);
  const stays = new Set(kept);
  context.fillStyle = "rgba(0,0,0,0.74)";
  for (let i = 0; i < grid.height * grid.width; i++) if (!stays.has(i)) context.fillRect(...cell(i));
  outline(context, cell, grid.width, kept, [["#000", 4], ["#fff", 2]]);
  outline(context, cell, grid.width, evidence, [["#fff", 4], ["#D55E00", 2]]);
  return [context, cell];
}
