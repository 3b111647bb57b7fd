// The page's half of fopru.widgets.Explorer. Selection happens here, from the maps and counts in the
// widget's state, so it needs no kernel; where one answers, any map can be asked about.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 4", "1 2"];
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];
const WHETHER = {
  yes: "It knows the answer: of the legal ones the right one is the likeliest.",
  no: "It does not know the answer: of the legal ones a wrong one is the likeliest.",
  "no choices": "The question names no legal answers to choose from.",
};
const WORDS = { received: "received", given: "given", cls: "from the CLS token" };

/** The k tokens of largest score, in their order; ties go to the lower index. */
export function rank(scores, k) {
  const order = Array.from(scores, (_, i) => i);
  order.sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, k).sort((a, b) => a - b);
}

/** The rows with the largest sums (in float64), whole. */
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
export function random(order, k) {
  return order.slice(0, k).sort((a, b) => a - b);
}

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

/** The (blocks, heads + 1, axes, N) maps of a scene. */
export function unpacked(scene) {
  const bytes = Uint8Array.from(atob(scene.maps), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

/** An element with properties, attributes (in `attrs`) and children; text is never read as HTML. */
function make(tag, { attrs = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attrs)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function shape(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const percent = (share) => `${Math.round(100 * share)} %`;

function viridis(share) {
  const place = share * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const mix = VIRIDIS[low].map((v, i) => v + (place - low) * (VIRIDIS[low + 1][i] - v));
  return `rgba(${mix.map(Math.round).join(",")},0.72)`;
}

/** Everything on the page that belongs to one view of the widget. */
class Page {
  constructor(model, el) {
    this.model = model;
    this.live = false;
    this.asked = 0; // the newest question to the kernel
    this.said = null; // its answer, of a map that was not asked about before
    const retentions = model.get("retentions");
    this.state = { scene: 0, method: 0, stop: retentions.indexOf(0.25), head: 0 };
    this.build(el);
    this.choose(0);
    this.listen();
  }

  get scene() { return this.model.get("scenes")[this.state.scene]; }
  get methods() { return this.model.get("methods"); }
  get block() { return this.model.get("layout_of_maps")[0] - 1; }

  build(el) {
    const on = (name, values) => make("select", {
      onchange: (event) => this.set({ [name]: Number(event.target.value) }),
    }, ...values.map((text, value) => make("option", { value, textContent: text })));
    const [blocks, heads] = this.model.get("layout_of_maps");
    this.pictures = make("select", { onchange: (e) => this.choose(Number(e.target.value)) });
    this.blocks = on("block", Array.from({ length: blocks }, (_, i) => (
      i === this.block ? `${i}: whose output the model reads` : `${i}`)));
    this.heads = on("head", ["mean of all", ...Array.from({ length: heads - 1 }, (_, i) => `${i}`)]);
    this.axes = on("axis", this.model.get("axes").map((axis) => WORDS[axis]));
    this.heat = make("canvas", { width: 336, height: 336, attrs: { role: "img" } });
    this.kept = make("canvas", { width: 336, height: 336, attrs: { role: "img" } });
    this.captions = [make("figcaption"), make("figcaption")];
    this.slider = make("input", {
      type: "range", min: 0, max: this.model.get("retentions").length - 1, step: 1,
      attrs: { "aria-label": "retention" },
      oninput: (event) => this.set({ stop: Number(event.target.value) }),
    });
    this.amount = make("output");
    this.sentence = make("p", { className: "answer", attrs: { "aria-live": "polite" } });
    this.question = make("p", { className: "question" });
    this.table = make("tbody");
    this.chart = shape("svg", { viewBox: "0 0 560 250", role: "img" });
    this.note = make("p", { className: "note" });
    this.alert = make("p", { className: "alert", attrs: { role: "alert" } });
    this.own = this.form();
    const name = `method-${Math.random()}`;
    this.radios = this.methods.map((method, i) => make("input", {
      type: "radio", name, onchange: () => this.set({ method: i }),
    }));
    const labels = this.methods.map((method, i) => make("label", {},
      this.radios[i], this.swatch(i), method.label));
    el.append(make("div", { className: "fopru-explorer" },
      make("label", {}, "Picture ", this.pictures), this.question,
      make("div", { className: "pictures" },
        make("figure", {}, this.kept, this.captions[0]),
        make("figure", {}, this.heat, this.captions[1])),
      make("label", { className: "slider" }, "Retention ", this.slider, this.amount),
      make("fieldset", {}, make("legend", { textContent: "Method" }), ...labels),
      this.sentence,
      make("table", {}, make("thead", {}, make("tr", {}, ...[
        "method", "tokens", "evidence", "says", "knows it", "probability",
      ].map((text) => make("th", { textContent: text, scope: "col" })))), this.table),
      this.chart, make("p", { className: "note", textContent: "Lines: the probability of the right "
        + "answer with its end. Dots: where the right answer is known, the likeliest legal one." }),
      make("details", {}, make("summary", { textContent: "Which attention?" }),
        make("label", {}, "Block ", this.blocks), make("label", {}, "Head ", this.heads),
        make("label", {}, "Attention ", this.axes), this.note),
      this.own, this.alert));
  }

  swatch(i) {
    const line = shape("svg", { viewBox: "0 0 30 10", class: "swatch", "aria-hidden": "true" });
    line.append(shape("line", {
      x1: 0, x2: 30, y1: 5, y2: 5, stroke: this.methods[i].color, "stroke-width": 3,
      "stroke-dasharray": DASHES[i % DASHES.length],
    }));
    return line;
  }

  form() {
    const file = make("input", { type: "file", accept: "image/*", required: true });
    const question = make("input", { type: "text", required: true, maxLength: 400 });
    const send = (event) => {
      event.preventDefault();
      this.alert.textContent = "Asking …";
      const reader = new FileReader();
      reader.onload = () => this.model.send({
        kind: "own", image: reader.result.split(",")[1], question: question.value,
      });
      reader.readAsDataURL(file.files[0]);
    };
    return make("form", { hidden: true, onsubmit: send },
      make("label", {}, "Your picture ", file), make("label", {}, "Your question ", question),
      make("button", { textContent: "Ask" }));
  }

  listen() {
    this.model.on("change:scenes", () => this.choose(this.model.get("scenes").length - 1));
    this.model.on("msg:custom", (message) => {
      if (message.kind === "live") {
        this.live = true;
        this.own.hidden = false;
      } else if (message.kind === "said" && message.token === this.asked) {
        this.said = message;
      } else if (message.kind === "error" || message.kind === "added") {
        this.alert.textContent = message.text ?? "";
      }
      this.draw();
    });
    this.model.send({ kind: "hello" }); // in a static page nobody answers
  }

  choose(number) {
    const scenes = this.model.get("scenes");
    this.pictures.replaceChildren(...scenes.map((scene, value) => make("option", {
      value, textContent: `${scene.task}: ${scene.question}`,
    })));
    this.maps = unpacked(scenes[number]);
    this.image = new Image();
    this.image.onload = () => this.draw();
    this.image.src = scenes[number].image;
    const axis = this.model.get("axes").indexOf(scenes[number].criterion);
    this.set({ scene: number, block: this.block, head: 0, axis });
  }

  set(change) {
    Object.assign(this.state, change);
    this.said = null;
    const { scene, method, stop, block, head, axis } = this.state;
    for (const [element, value] of [
      [this.pictures, scene], [this.slider, stop], [this.blocks, block], [this.heads, head],
      [this.axes, axis],
    ]) element.value = value;
    this.radios[method].checked = true;
    this.draw();
    const kind = this.methods[method].kind;
    if (this.live && !this.usual() && (kind === "rank" || kind === "row")) this.ask();
  }

  /** Whether the map is the one by which the model was asked before. */
  usual() {
    const { block, head, axis } = this.state;
    return block === this.block && head === 0
      && this.model.get("axes")[axis] === this.scene.criterion;
  }

  ask() {
    clearTimeout(this.timer);
    const token = ++this.asked;
    const message = {
      kind: "ask", token, scene: this.state.scene, kept: this.keptBy(this.state.method),
    };
    this.timer = setTimeout(() => this.model.send(message), 150);
  }

  scores() {
    const { block, head, axis } = this.state;
    const [, heads, axes] = this.model.get("layout_of_maps");
    const n = this.scene.height * this.scene.width;
    const start = ((block * heads + head) * axes + axis) * n;
    return this.maps.subarray(start, start + n);
  }

  keptBy(method) {
    const { scene } = this;
    const { name, kind } = this.methods[method];
    const count = scene.counts[this.state.stop];
    if (kind === "rank") return rank(this.scores(), count);
    if (kind === "row") return row(this.scores(), scene.width, scene.rows[this.state.stop]);
    if (kind === "random") return random(scene.order, count);
    return scene.kept[name][this.state.stop];
  }

  answerOf(method) {
    const { name, kind } = this.methods[method];
    if ((kind === "rank" || kind === "row") && !this.usual()) {
      return method === this.state.method ? this.said : null;
    }
    return this.scene.answers[name][this.state.stop];
  }

  evidence(kept) {
    const under = new Set(this.scene.evidence);
    return `${kept.filter((i) => under.has(i)).length} of ${under.size}`;
  }

  draw() {
    const { scene } = this;
    const n = scene.height * scene.width;
    const kept = this.keptBy(this.state.method);
    const { label } = this.methods[this.state.method];
    const full = scene.answers.full[0];
    const said = `${full.text || "(nothing)"} (${percent(full.p)} on the right one).`;
    this.question.replaceChildren(make("b", { textContent: scene.question }), scene.assumed
      ? ` With all ${n} tokens: ${full.text || "(nothing)"}, which stands for the right answer here.`
      : ` Right answer: ${scene.answer}. With all ${n} tokens: ${said}`);
    this.amount.textContent =
      `${parseFloat((100 * this.model.get("retentions")[this.state.stop]).toFixed(1))} %, `
      + `${kept.length} of ${n} tokens`;
    this.slider.setAttribute("aria-valuetext", this.amount.textContent);
    this.paintKept(kept);
    this.paintHeat();
    this.captions[0].textContent = `${label}: ${kept.length} of ${n} patches stay`
      + (scene.evidence.length ? `, ${this.evidence(kept)} of the evidence (outlined)` : "");
    this.captions[1].textContent = `attention ${WORDS[this.model.get("axes")[this.state.axis]]}, `
      + `block ${this.state.block}, bright is more`;
    this.kept.setAttribute("aria-label", this.captions[0].textContent);
    this.heat.setAttribute("aria-label", this.captions[1].textContent);
    const answer = this.answerOf(this.state.method);
    this.sentence.textContent = answer
      ? `${label} answers “${answer.text}”: ${verdict(answer)}. ${WHETHER[known(answer)]} The `
        + `probability of the right answer with its end is ${percent(answer.p)}.`
      : `What ${label} answers by this map ${this.live ? "is being asked." : "needs a kernel."}`;
    this.note.textContent = this.usual()
      ? "This is what FoPru ranks by on this picture."
      : "Another map than FoPru's: rank and row above select by it.";
    this.paintTable();
    this.paintChart(kept.length);
  }

  paintTable() {
    this.table.replaceChildren(...this.methods.map((method, i) => {
      const kept = this.keptBy(i);
      const answer = this.answerOf(i);
      const evidence = this.scene.evidence.length ? this.evidence(kept) : "none";
      const said = answer
        ? make("td", {}, answer.text, " ", make("small", { textContent: verdict(answer) }))
        : make("td", { textContent: "–" });
      const cell = (text) => make("td", { textContent: text });
      return make("tr", { className: i === this.state.method ? "chosen" : "" },
        make("th", { scope: "row" }, this.swatch(i), method.label),
        cell(kept.length), cell(evidence), said, cell(answer ? known(answer) : "–"),
        cell(answer ? percent(answer.p) : "–"));
    }));
  }

  canvas(canvas, filter) {
    const context = canvas.getContext("2d");
    context.filter = filter;
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    const wide = canvas.width / this.scene.width;
    const high = canvas.height / this.scene.height;
    const cell = (i) => [
      (i % this.scene.width) * wide, Math.floor(i / this.scene.width) * high, wide, high,
    ];
    return [context, cell];
  }

  paintKept(kept) {
    const [context, cell] = this.canvas(this.kept, "none");
    const stays = new Set(kept);
    context.fillStyle = "rgba(0,0,0,0.74)";
    for (let i = 0; i < this.scene.height * this.scene.width; i++) {
      if (!stays.has(i)) context.fillRect(...cell(i));
    }
    this.outline(context, cell);
  }

  outline(context, cell) {
    const { width, evidence } = this.scene;
    const under = new Set(evidence);
    context.beginPath();
    for (const i of evidence) {
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
    for (const [color, thick] of [["#fff", 4], ["#D55E00", 2]]) {
      Object.assign(context, { strokeStyle: color, lineWidth: thick });
      context.stroke();
    }
  }

  paintHeat() {
    const [context, cell] = this.canvas(this.heat, "grayscale(1)");
    const scores = this.scores();
    const low = Math.min(...scores);
    const range = Math.max(...scores) - low || 1;
    scores.forEach((score, i) => {
      context.fillStyle = viridis((score - low) / range);
      context.fillRect(...cell(i));
    });
  }

  paintChart(k) {
    const { scene, chart } = this;
    const n = scene.height * scene.width;
    const x = (tokens) => 50 + (490 * Math.log2(tokens)) / Math.log2(n);
    const y = (p) => 205 - 190 * p;
    chart.replaceChildren();
    chart.setAttribute("aria-label",
      "probability of the right answer with its end, over the tokens kept; dots where it is known");
    for (const p of [0, 0.5, 1]) {
      chart.append(
        shape("line", { x1: 50, x2: 540, y1: y(p), y2: y(p), class: "grid" }),
        shape("text", { x: 44, y: y(p) + 5, "text-anchor": "end" }, `${100 * p}`));
    }
    for (let tokens = 1; tokens <= n; tokens *= 4) {
      chart.append(shape("text", { x: x(tokens), y: 224, "text-anchor": "middle" }, `${tokens}`));
    }
    chart.append(
      shape("text", { x: 295, y: 246, "text-anchor": "middle" }, "visual tokens kept"),
      shape("text", { x: 0, y: 0, "text-anchor": "middle", transform: "translate(13 110) rotate(-90)" },
        "probability (%)"));
    this.methods.forEach(({ name, kind, color }, i) => {
      const tokens = kind === "row" ? scene.rows.map((r) => r * scene.width) : scene.counts;
      const answers = scene.answers[name];
      const points = tokens.map((t, stop) => [x(t), y(answers[stop].p)]);
      chart.append(shape("polyline", {
        points: points.map((p) => p.join(",")).join(" "), fill: "none", stroke: color,
        "stroke-width": i === this.state.method ? 4 : 2,
        "stroke-dasharray": DASHES[i % DASHES.length],
      }), ...points.filter((_, stop) => answers[stop].knows).map(([cx, cy]) => shape("circle", {
        cx, cy, r: i === this.state.method ? 4.5 : 3, fill: color,
      })));
    });
    chart.append(
      shape("line", { x1: x(k), x2: x(k), y1: 10, y2: 205, class: "cursor" }),
      shape("circle", {
        cx: x(k), cy: y(this.answerOf(this.state.method)?.p ?? 0), r: 6, class: "cursor",
        visibility: this.answerOf(this.state.method) ? "visible" : "hidden",
      }));
  }
}

function render({ model, el }) {
  new Page(model, el);
}

export default { render };
