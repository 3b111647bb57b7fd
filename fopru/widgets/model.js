// A small model in JavaScript: how it chooses tokens, sees pictures, reads words and answers, from the
// files that fopru.widgets.export writes. No document is in sight: pages and node run the same code.

const RELATIVE = 2 ** -18; // values that lie as near as this count as equal, as in fopru.picking
const PRECISION = 2 ** 22; // Pillow's fixed point for the weights of a resize

// Choosing tokens

/** The k tokens of largest score, in their order; ties go to the lower index. */
export function rank(scores, k) {
  const values = Float32Array.from(scores);
  const border = values.slice().sort()[values.length - k];
  const slack = Math.abs(border) * RELATIVE;
  const [low, high] = [Math.fround(border - slack), Math.fround(border + slack)];
  const places = Array.from(values.keys()).filter((i) => values[i] >= low);
  let room = k - places.filter((i) => values[i] > high).length;
  return places.filter((i) => values[i] > high || room-- > 0);
}

/** The rows with the largest sums, whole. */
export function row(scores, width, count) {
  const sums = [];
  for (let start = 0; start < scores.length; start += width) {
    let sum = 0;
    for (let i = start; i < start + width; i++) sum += scores[i];
    sums.push(sum);
  }
  return rank(sums, count).flatMap((r) => Array.from({ length: width }, (_, c) => r * width + c));
}

/** The first k of a permutation, in their order. */
export function first(order, k) {
  return order.slice(0, k).sort((a, b) => a - b);
}

/** The one of two maps that varies more, by name: what FoPru ranks by. */
export function criterion(received, given) {
  const variance = (values) => {
    const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
    return values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length;
  };
  return variance(received) >= variance(given) * (1 - RELATIVE) ? "received" : "given";
}

/** The cosines of n tokens with each other, (n, n) in float64. */
export function cosines(features, n) {
  const width = features.length / n;
  const unit = Float64Array.from(features);
  for (let i = 0; i < n; i++) {
    const token = unit.subarray(i * width, (i + 1) * width);
    const size = Math.max(Math.sqrt(token.reduce((sum, v) => sum + v * v, 0)), 1e-12);
    for (let c = 0; c < width; c++) token[c] /= size;
  }
  const table = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let sum = 0;
      for (let c = 0; c < width; c++) sum += unit[i * width + c] * unit[j * width + c];
      table[i * n + j] = table[j * n + i] = sum;
    }
  }
  return table;
}

/** The place of the largest of n values; ties go to the lower place. */
function largest(values) {
  const border = values.reduce((a, b) => Math.max(a, b), -Infinity) - RELATIVE;
  return values.findIndex((v) => v >= border);
}

/** All tokens in the order in which DivPrune keeps them: each the least like those before it. */
export function divprune(table, n) {
  const unlike = Float64Array.from({ length: n }, (_, i) => {
    let near = -Infinity;
    for (let j = 0; j < n; j++) if (j !== i) near = Math.max(near, table[i * n + j]);
    return -near;
  });
  const order = [largest(unlike)];
  for (let j = 0; j < n; j++) unlike[j] = -table[order[0] * n + j];
  while (order.length < n) {
    unlike[order.at(-1)] = -Infinity;
    const next = largest(unlike);
    order.push(next);
    for (let j = 0; j < n; j++) unlike[j] = Math.min(unlike[j], -table[next * n + j]);
  }
  return order;
}

/** How many of the n tokens each kept one stands for: those that are most like it, and itself. */
export function masses(table, n, kept) {
  const places = new Map(kept.map((token, place) => [token, place]));
  const found = kept.map(() => 0);
  for (let i = 0; i < n; i++) {
    const own = places.get(i);
    found[own ?? largest(kept.map((j) => table[i * n + j]))] += 1;
  }
  return found;
}

// Pictures

function bicubic(x) {
  const at = Math.abs(x);
  if (at < 1) return (1.5 * at - 2.5) * at * at + 1;
  return at < 2 ? (((at - 5) * at + 8) * at - 4) * -0.5 : 0;
}

/** For each of `out` places: where its part of the `from` values begins, and their weights. */
function weights(from, out) {
  const scale = from / out;
  const wide = Math.max(scale, 1);
  return Array.from({ length: out }, (_, place) => {
    const center = (place + 0.5) * scale;
    const start = Math.max(Math.trunc(center - 2 * wide + 0.5), 0);
    const end = Math.min(Math.trunc(center + 2 * wide + 0.5), from);
    const found = Array.from({ length: end - start }, (_, i) => (
      bicubic((i + start - center + 0.5) / wide)));
    const sum = found.reduce((a, b) => a + b, 0);
    return { start, parts: found.map((w) => {
      const fixed = (w / sum) * PRECISION;
      return Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    }) };
  });
}

/** Lines of `from` values, `step` apart and the lines `jump`, resized into `target`. */
function stretched(data, from, target, out, lines, step, jump, outJump) {
  const places = weights(from, out);
  const one = (line, place) => {
    const { start, parts } = places[place];
    let sum = PRECISION / 2;
    let at = line * jump + start * step;
    for (let i = 0; i < parts.length; i++, at += step) sum += data[at] * parts[i];
    target[line * outJump + place * step] = Math.floor(sum / PRECISION); // kept to 0 ... 255
  };
  if (step === 1) { // as memory lies
    for (let line = 0; line < lines; line++) for (let place = 0; place < out; place++) one(line, place);
  } else {
    for (let place = 0; place < out; place++) for (let line = 0; line < lines; line++) one(line, place);
  }
}

function widened(planes, height, width, out) {
  if (out === width) return planes;
  const target = new Uint8ClampedArray(3 * height * out);
  stretched(planes, width, target, out, 3 * height, 1, width, out);
  return target;
}

function heightened(planes, height, width, out) {
  if (out === height) return planes;
  const target = new Uint8ClampedArray(3 * out * width);
  for (let plane = 0; plane < 3; plane++) {
    stretched(planes.subarray(plane * height * width), height,
      target.subarray(plane * out * width), out, width, width, 1, 1);
  }
  return target;
}

/** Resize planes of (3, height, width) bytes as Pillow's BICUBIC does, to the last bit: of a picture
 * that is more than twice as tall as wide, and shrinks, the height goes first. */
export function resize(planes, height, width, newHeight, newWidth) {
  if (height > 2 * width && newWidth < width) {
    return widened(heightened(planes, height, width, newHeight), newHeight, width, newWidth);
  }
  return heightened(widened(planes, height, width, newWidth), height, newWidth, newHeight);
}

/** What the tower sees of RGBA bytes: planes of bytes, (3, image.height, image.width). */
export function prepared({ data, width, height }, image) {
  let planes = new Uint8ClampedArray(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) planes[c * width * height + i] = data[4 * i + c];
  }
  const long = Math.trunc((image.short * Math.max(width, height)) / Math.min(width, height));
  const [high, wide] = width <= height ? [long, image.short] : [image.short, long];
  planes = resize(planes, height, width, high, wide);
  const top = Math.floor((high - image.height) / 2);
  const left = Math.floor((wide - image.width) / 2);
  const seen = new Uint8ClampedArray(3 * image.height * image.width);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < image.height; y++) {
      const start = (c * high + y + top) * wide + left;
      seen.set(planes.subarray(start, start + image.width), (c * image.height + y) * image.width);
    }
  }
  return seen;
}

function normalized(seen, image) {
  const size = image.height * image.width;
  return Float32Array.from(seen, (value, i) => {
    const c = Math.floor(i / size);
    return Math.fround(Math.fround(Math.fround(value * image.scale) - Math.fround(image.mean[c]))
      / Math.fround(image.std[c]));
  });
}

// Words

/** The model's tokenizer: a WordPiece that reads everything in lower case. */
export class Words {
  constructor(told) {
    Object.assign(this, told);
    this.ids = new Map(told.tokens.map((token, id) => [token, id]));
    this.reserved = told.special.map((id) => told.tokens[id]);
  }

  /** The words of a text with their ids; a word that is not known has the unknown id alone. */
  split(text) {
    const words = text.toLowerCase().match(/[\p{P}!-/:-@[-`{-~]|[^\s\p{P}!-/:-@[-`{-~]+/gu) ?? [];
    return words.map((word) => ({ word, ids: this.pieces(word) }));
  }

  pieces(word) {
    const letters = Array.from(word);
    const found = [];
    for (let start = 0; start < letters.length;) {
      let end = letters.length;
      let id;
      while (end > start) {
        id = this.ids.get((start ? this.prefix : "") + letters.slice(start, end).join(""));
        if (id !== undefined) break;
        end -= 1;
      }
      if (id === undefined || letters.length > this.longest) return [this.unknown];
      found.push(id);
      start = end;
    }
    return found;
  }

  encode(text) { return this.split(text).flatMap(({ ids }) => ids); }

  /** The words of a text that the model does not know. */
  unknowns(text) {
    return this.split(text).filter(({ ids }) => ids[0] === this.unknown).map(({ word }) => word);
  }

  decode(ids) {
    const tokens = ids.filter((id) => !this.special.includes(id)).map((id) => this.tokens[id]);
    return tokens.map((token, i) => {
      if (!i) return token;
      return token.startsWith(this.prefix) ? token.slice(this.prefix.length) : ` ${token}`;
    }).join("").trim().toLowerCase();
  }
}

// Answering

/** Whether what was said begins with the right answer, which ends where a word ends. */
export function begins(said, right) {
  return said.startsWith(right) && !/^[\p{L}\p{N}]/u.test(said.slice(right.length));
}

/** Legal answers as a tree of tokens. An answer that others begin with, and those, go to the end. */
function tree(answers, end) {
  const whole = new Set(answers.map(({ ids }) => ids.join()));
  const beginnings = ({ ids }) => ids.slice(1).map((_, i) => ids.slice(0, i + 1).join());
  const parts = new Set(answers.flatMap(beginnings));
  const root = new Map();
  for (const one of answers) {
    const clash = parts.has(one.ids.join()) || beginnings(one).some((part) => whole.has(part));
    const ids = clash ? [...one.ids, end] : one.ids;
    let node = root;
    for (const id of ids.slice(0, -1)) {
      if (!node.has(id)) node.set(id, new Map());
      node = node.get(id);
    }
    node.set(ids.at(-1), one.text);
  }
  return root;
}

/** One question about one picture, of which some tokens are kept. */
export class Asked {
  constructor(model, picture, question, kept, { weighed = false, placed = false } = {}) {
    const { told, words } = model;
    const { before, ahead, behind } = told.prompt;
    Object.assign(this, { model, before, kept });
    this.after = [...ahead, ...words.encode(question), ...behind];
    this.features = new Float32Array(kept.length * model.width);
    kept.forEach((token, place) => this.features.set(
      picture.features.subarray(token * model.width, (token + 1) * model.width),
      place * model.width));
    const all = placed ? model.n : kept.length;
    this.places = [
      ...before.keys(), ...kept.map((token, place) => before.length + (placed ? token : place)),
    ];
    this.next = before.length + all; // the position of what follows the picture
    this.weights = weighed
      ? Float32Array.from(masses(model.likeness(picture), model.n, kept), Math.log)
      : new Float32Array(kept.length);
    this.known = new Map();
  }

  /** The log-probabilities of what follows the prompt and these ids. */
  async follow(ids) {
    if (!this.known.has(ids.join())) await this.read(ids);
    return this.known.get(ids.join());
  }

  async read(ids) {
    const { model, before, kept } = this;
    const after = [...this.after, ...ids];
    const positions = [...this.places, ...after.map((_, i) => this.next + i)];
    const { logits } = await model.run("mouth", {
      before: model.integers(before),
      features: model.floats(this.features, [1, kept.length, model.width]),
      after: model.integers(after),
      positions: model.integers(positions),
      weights: model.floats(this.weights, [kept.length]),
    });
    const size = logits.dims[1];
    for (let length = 0; length <= ids.length; length++) {
      const end = logits.data.length - (ids.length - length) * size;
      const values = Float64Array.from(logits.data.subarray(end - size, end));
      const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
      const log = Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0)) + top;
      this.known.set(ids.slice(0, length).join(), values.map((v) => v - log));
    }
  }

  /** What is generated, greedily. */
  async said(most) {
    const ids = [];
    while (ids.length < most) {
      const log = await this.follow(ids);
      const next = log.indexOf(log.reduce((a, b) => Math.max(a, b), -Infinity));
      if (this.model.told.stops.includes(next)) break;
      ids.push(next);
    }
    return this.model.words.decode(ids);
  }

  /** The log-probability of these ids. */
  async likelihood(ids) {
    if (ids.length > 1) await this.follow(ids.slice(0, -1)); // which reads all beginnings
    let total = 0;
    for (let i = 0; i < ids.length; i++) total += (await this.follow(ids.slice(0, i)))[ids[i]];
    return total;
  }

  /** The `count` likeliest of the legal answers, as [text, log-probability]: only what may lead to
   * them is read, since an answer is at most as likely as its beginning. */
  async likeliest(legal, count) {
    const { words } = this.model;
    const answers = legal.map((text) => ({ text, ids: words.encode(text) }));
    const open = [{ node: tree(answers, words.end), ids: [], total: 0 }];
    const found = [];
    while (open.length && found.length < count) {
      const best = open.reduce((a, b) => (b.total > a.total ? b : a));
      open.splice(open.indexOf(best), 1);
      if (typeof best.node === "string") {
        found.push([best.node, best.total]);
      } else {
        const log = await this.follow(best.ids);
        for (const [id, node] of best.node) {
          open.push({ node, ids: [...best.ids, id], total: best.total + log[id] });
        }
      }
    }
    return found;
  }
}

/** Let the page hear its reader before the next run, which nothing can interrupt. */
function breath() {
  return globalThis.scheduler?.yield?.() ?? new Promise((go) => { setTimeout(go); });
}

/** The model: what it needs is onnxruntime-web, two graphs, and what model.json tells. */
export class Model {
  static async start(ort, told, eye, mouth) {
    const options = { executionProviders: ["wasm"] };
    const model = new Model();
    Object.assign(model, { ort, told, words: new Words(told.words), n: told.height * told.width });
    model.graphs = {
      eye: await ort.InferenceSession.create(eye, options),
      mouth: await ort.InferenceSession.create(mouth, options),
    };
    model.turn = Promise.resolve();
    return model;
  }

  /** One run of a graph at a time: the runtime takes no second one. */
  run(graph, inputs) {
    const done = this.turn.then(breath).then(() => this.graphs[graph].run(inputs));
    this.turn = done.catch(() => {});
    return done;
  }

  integers(ids) {
    return new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
  }

  floats(values, dims) { return new this.ort.Tensor("float32", values, dims); }

  /** A picture of RGBA bytes as the tower sees it: bytes, features and maps. */
  async see(rgba) {
    const { image } = this.told;
    const seen = prepared(rgba, image);
    const pixels = this.floats(normalized(seen, image), [1, 3, image.height, image.width]);
    const { features, maps } = await this.run("eye", { pixels });
    this.width = features.dims[1];
    return { seen, features: features.data, maps: maps.data };
  }

  /** The cosines of a picture's tokens, made once. */
  likeness(picture) {
    picture.likeness ??= cosines(picture.features, this.n);
    return picture.likeness;
  }

  /** The map of one block, head (0: the mean) and axis. */
  map(picture, block, head, axis) {
    const [, heads, axes] = this.told.layout;
    const start = ((block * heads + head) * axes + this.told.axes.indexOf(axis)) * this.n;
    return picture.maps.subarray(start, start + this.n);
  }

  /** By which attention FoPru ranks the tokens of a picture. */
  criterion(picture) {
    const block = this.told.layout[0] - 1;
    const [received, given] = ["received", "given"].map((a) => this.map(picture, block, 0, a));
    return criterion(received, given);
  }

  /** The legal answers of a question; null where it is of no known kind. */
  legal(question) {
    const text = question.trim().toLowerCase();
    const named = text.match(new RegExp(this.told.named));
    if (named) return named.slice(1);
    return this.told.questions.find(([pattern]) => new RegExp(pattern).test(text))?.[1] ?? null;
  }

  /** What is wrong with a question, in a sentence; null where it can be asked. */
  refusal(question) {
    if (!question.trim()) return "The question is empty: ask something.";
    const special = this.words.reserved.find((token) => question.includes(token));
    if (special) return `The question holds ${special}, which stands for something else here.`;
    const ids = this.words.encode(question);
    if (ids.every((id) => id === this.words.unknown)) {
      return "The model knows no word of this question.";
    }
    return null;
  }

  /** Both readings of a question's answer, as `fopru.widgets.explorer.page_answer` has them, and
   * the likeliest legal answers with their probabilities. */
  async answer(asked, right, legal, { most = 8, shown = 4 } = {}) {
    const text = await asked.said(most);
    const answer = right ?? text;
    const ids = this.words.encode(answer);
    const p = Math.exp(await asked.likelihood([...ids, this.words.end]));
    const found = { text, p, right: text === answer, begins: begins(text, answer) };
    if (!legal) return { ...found, formed: null, knows: null, choices: [] };
    const choices = await asked.likeliest(legal, shown);
    return {
      ...found,
      formed: legal.includes(text),
      knows: legal.includes(answer) ? choices[0][0] === answer : null,
      choices: choices.map(([choice, log]) => [choice, Math.exp(log)]),
    };
  }
}

/** The bytes of some addresses. `heard` is told how many have come in all; throws when none come for
 * half a minute, and leaves the others when one fails. */
async function fetched(addresses, heard = () => {}, patience = 30e3) {
  const stop = new AbortController();
  let bytes = 0;
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(new Error(
      `The network is too slow: nothing came for ${patience / 1000} seconds.`)), patience);
  };
  const one = async (address) => {
    if (address.startsWith("file:")) {
      throw new Error("A page that is opened from a file may not load it; serve the site.");
    }
    const answer = await fetch(address, { signal: stop.signal }).catch((error) => {
      throw stop.signal.reason ?? new Error(`${address} cannot be reached (${error.message}).`);
    });
    if (!answer.ok) throw new Error(`${address} is not there (${answer.status}).`);
    const parts = [];
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      heard((bytes += part.value.length));
      wait();
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  };
  wait();
  try {
    return await Promise.all(addresses.map(one));
  } catch (error) {
    stop.abort(error);
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** What model.json under this address tells. */
export async function about(base) {
  const [bytes] = await fetched([`${base}pocket/model.json`]);
  return JSON.parse(new TextDecoder().decode(bytes));
}

/** The model under this address: pocket/ is what fopru.widgets.export wrote, ort/ the runtime.
 * `heard` is told how many bytes have come. */
export async function load(base, told, heard) {
  if (typeof WebAssembly === "undefined") throw new Error("This browser runs no WebAssembly.");
  const names = ["ort/ort-wasm-simd-threaded.wasm", "pocket/eye.onnx", "pocket/mouth.onnx"];
  const [wasm, eye, mouth] = await fetched(names.map((name) => `${base}${name}`), heard);
  const ort = await import(`${base}ort/ort.wasm.min.mjs`);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: `${base}ort/`, wasmBinary: wasm.buffer });
  return Model.start(ort, told, eye, mouth);
}
