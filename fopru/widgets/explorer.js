// The page's half of fopru.widgets.Explorer. What was computed ahead lies in the widget's state, and
// tokens are chosen here, so it needs no kernel. Asked to, the page runs the model itself; where it
// cannot, and a kernel answers, Python does.

import { Asked, Words, about, divprune, first, load, rank, row } from "./model.js";
import { Pad, decoded, painted } from "./input.js";
import { RAMP, dimmed, known, laid, make, percent, shape, verdict, viridis } from "./parts.js";

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 4", "1 2"];
const WHETHER = {
  yes: "It knows the answer: of the legal ones the right one is the likeliest.",
  no: "It does not know the answer: of the legal ones a wrong one is the likeliest.",
  "no choices": "The question names no legal answers to choose from.",
};
const READS = { received: "received", given: "given", cls: "from the CLS token" };
const OWN = { name: "own", kind: "own", label: "your own choice", color: "#7a7a7a" };
const SIDE = 448; // pixels of the two pictures, and of the drawing
const PAD = 224;
const SEEN = ({ told }) => [told.image.height, told.image.width];

/** The (blocks, heads + 1, axes, N) maps of a scene. */
export function unpacked(scene) {
  if (typeof scene.maps !== "string") return scene.maps;
  const bytes = Uint8Array.from(atob(scene.maps), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

/** Everything on the page that belongs to one view of the widget. */
class Page {
  constructor(model, el) {
    this.model = model;
    this.kernel = false; // whether one answers
    this.runs = null; // the model, where the page runs it
    this.mine = []; // scenes that were asked about here
    this.found = new WeakMap(); // scene -> tokens and weights -> an answer that was asked for
    this.seen = new Map(); // scene -> what the eye made of its picture
    this.colors = model.get("colors");
    const retentions = model.get("retentions");
    this.state = {
      scene: 0, method: 0, stop: retentions.indexOf(0.25), head: 0, own: null, weighed: false,
    };
    this.build(el);
    this.choose(0);
    this.recall();
    this.listen(el);
  }

  get scenes() { return [...this.model.get("scenes"), ...this.mine]; }
  get scene() { return this.scenes[this.state.scene]; }
  get methods() { return [...this.model.get("methods"), OWN]; }
  get own() { return this.methods.length - 1; }
  get block() { return this.model.get("layout_of_maps")[0] - 1; }

  /** Where the page finds the model; null where it cannot run one. */
  get base() {
    const root = document.documentElement.dataset.content_root;
    const folder = this.model.get("live");
    return folder && root !== undefined ? new URL(`${root}${folder}/`, document.baseURI).href : null;
  }

  // What is on the page

  build(el) {
    const on = (name, values) => make("select", {
      onchange: (event) => this.set({ [name]: Number(event.target.value) }),
    }, ...values.map((text, value) => make("option", { value, textContent: text })));
    const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });
    const [blocks, heads] = this.model.get("layout_of_maps");
    this.pictures = make("select", { onchange: (e) => this.choose(Number(e.target.value)) });
    this.blocks = on("block", Array.from({ length: blocks }, (_, i) => (
      i === this.block ? `${i}: whose output the model reads` : `${i}`)));
    this.heads = on("head", ["mean of all", ...Array.from({ length: heads - 1 }, (_, i) => `${i}`)]);
    this.axes = on("axis", this.model.get("axes").map((axis) => READS[axis]));
    this.heat = make("canvas", { width: SIDE, height: SIDE, attrs: { role: "img" } });
    this.kept = make("canvas", {
      width: SIDE, height: SIDE, tabIndex: 0, className: "patches",
      attrs: { role: "application" },
      onclick: (event) => this.point(event), onkeydown: (event) => this.key(event),
      onblur: () => { this.cursor = null; this.draw(); },
    });
    this.cursor = null;
    this.here = make("p", { className: "hidden", attrs: { "aria-live": "polite" } });
    this.captions = [make("figcaption"), make("figcaption")];
    this.legend = make("div", { className: "legend", attrs: { "aria-hidden": "true" } });
    this.slider = make("input", {
      type: "range", min: 0, max: this.model.get("retentions").length - 1, step: 1,
      attrs: { "aria-label": "retention" },
      oninput: (event) => { this.stopPlaying(); this.set({ stop: Number(event.target.value) }); },
    });
    this.amount = make("output");
    this.player = button("▶ Play", () => (this.playing ? this.stopPlaying() : this.play()));
    this.sentence = make("p", { className: "answer", attrs: { "aria-live": "polite" } });
    this.question = make("p", { className: "question" });
    this.says = make("div", { className: "says" });
    this.knows = make("div", { className: "knows" });
    this.table = make("tbody");
    this.chart = shape("svg", { viewBox: "0 0 380 330", role: "img" });
    this.note = make("p", { className: "note" });
    this.alert = make("p", { className: "alert", attrs: { role: "alert" } });
    this.status = make("p", { className: "status", attrs: { role: "status" } });
    this.start = button("Run the model in this page", () => this.run());
    this.none = button("", () => this.set({ own: new Set(), method: this.own }));
    this.weighed = make("input", {
      type: "checkbox", onchange: (event) => this.set({ weighed: event.target.checked }),
    });
    const name = `method-${Math.random()}`;
    this.radios = this.methods.map((method, i) => make("input", {
      type: "radio", name, onchange: () => this.take(i),
    }));
    const labels = this.methods.map((method, i) => make("label", {},
      this.radios[i], this.swatch(i), method.label));
    this.form = this.asking();
    this.element = make("div", { className: "fopru-explorer" },
      make("label", {}, "Picture ", this.pictures), this.question,
      make("label", { className: "slider" }, "Retention ", this.slider, this.amount),
      make("div", { className: "halves" },
        make("figure", {}, this.kept, this.captions[0]),
        make("div", { className: "readings" }, this.says, this.knows)),
      this.here,
      make("fieldset", {}, make("legend", { textContent: "Method" }), ...labels),
      make("p", { className: "tools" }, this.player, " ", this.none, " ", this.start),
      this.yours = make("details", { className: "yours" },
        make("summary", { textContent: "Ask about a picture of your own" }), this.form),
      this.status, this.alert, this.sentence,
      make("table", {}, make("thead", {}, make("tr", {}, ...[
        "method", "tokens", "evidence", "says", "knows it", "probability",
      ].map((text) => make("th", { textContent: text, scope: "col" })))), this.table),
      make("div", { className: "halves" },
        make("figure", {}, this.heat, this.legend, this.captions[1]),
        make("figure", {}, this.chart, make("figcaption", { textContent: "Lines: the probability of "
          + "the right answer with its end. Dots: where the right answer is known, the likeliest "
          + "legal one." }))),
      make("details", {}, make("summary", { textContent: "Which attention?" }),
        make("label", {}, "Block ", this.blocks), make("label", {}, "Head ", this.heads),
        make("label", {}, "Attention ", this.axes), this.note,
        make("label", {}, this.weighed, " Weigh kept tokens by those they stand for, and leave them "
          + "their places")));
    el.append(this.element);
  }

  swatch(i) {
    const line = shape("svg", { viewBox: "0 0 30 10", class: "swatch", "aria-hidden": "true" });
    line.append(shape("line", {
      x1: 0, x2: 30, y1: 5, y2: 5, stroke: this.methods[i].color, "stroke-width": 3,
      "stroke-dasharray": DASHES[i % DASHES.length],
    }));
    return line;
  }

  /** The form for the reader's own picture and question. */
  asking() {
    const file = (attrs) => make("input", {
      type: "file", accept: "image/*", attrs,
      onchange: (event) => this.bring(event.target.files[0]),
    });
    this.text = make("input", {
      type: "text", maxLength: 400, attrs: { list: `questions-${Math.random()}` },
      onfocus: () => this.learn().catch(() => {}), // asking says what is wrong
      oninput: () => this.marked(),
    });
    this.suggested = make("datalist", { id: this.text.getAttribute("list") });
    this.words = make("p", { className: "words", attrs: { "aria-live": "polite" } });
    this.brought = make("p", { className: "brought", attrs: { "aria-live": "polite" } });
    this.drawing = make("details", {
      ontoggle: () => {
        if (!this.drawing.open || this.pad) return;
        this.pad = new Pad(make, PAD, this.colors);
        const use = make("button", {
          type: "button", textContent: "Use this drawing",
          onclick: async () => this.bring(await this.pad.blob(), "your drawing"),
        });
        this.drawing.append(this.pad.element, use);
      },
    }, make("summary", { textContent: "Draw one" }));
    return make("form", {
      onsubmit: (event) => { event.preventDefault(); this.submit(); },
    }, make("p", {}, "Drop a picture anywhere here, paste one, or choose:"),
    make("label", {}, "Your picture ", file({})),
    make("label", { className: "camera" }, "Take a picture ", file({ capture: "environment" })),
    this.drawing, this.brought,
    make("label", {}, "Your question ", this.text), this.suggested, this.words,
    make("button", { textContent: "Ask" }));
  }

  listen(el) {
    this.model.on("change:scenes", () => this.choose(this.model.get("scenes").length - 1));
    this.model.on("msg:custom", (message) => {
      if (message.kind === "live") {
        this.kernel = true;
        this.offer();
      } else if (message.kind === "said" && this.wanted?.token === message.token) {
        this.learned(this.wanted.scene).set(this.wanted.key, message);
      } else if (message.kind === "error" || message.kind === "added") {
        this.say("", message.text ?? "");
      }
      this.draw();
    });
    this.element.ondragover = (event) => event.preventDefault();
    this.element.ondrop = (event) => {
      event.preventDefault();
      this.bring(event.dataTransfer.files[0]);
    };
    this.element.addEventListener("paste", (event) => this.pasted(event));
    document.addEventListener("paste", this.onpaste = (event) => {
      if (!this.element.contains(event.target)) this.pasted(event);
    });
    this.offer();
    this.model.send({ kind: "hello" }); // in a static page nobody answers
  }

  /** Show what can be done: run the model here, or ask the kernel. */
  offer() {
    const can = this.base !== null;
    this.start.hidden = !can || this.runs !== null || this.kernel;
    this.yours.hidden = !can && !this.kernel;
    this.none.hidden = this.yours.hidden;
    this.weighed.parentElement.hidden = !can || this.kernel;
    this.suggested.replaceChildren(...[...new Set(this.scenes.map((scene) => scene.question))]
      .map((value) => make("option", { value })));
  }

  say(status, problem = "") {
    this.status.textContent = status;
    this.alert.textContent = problem;
  }

  // The model in the page

  /** Read what model.json tells, which is little: the words among it. */
  async learn() {
    if (!this.base || this.kernel) return null;
    this.told ??= about(this.base);
    try {
      const told = await this.told;
      this.reader ??= new Words(told.words);
      this.marked();
      return told;
    } catch (error) {
      this.told = null;
      throw error;
    }
  }

  /** Load the model and run it here; whatever goes wrong is said, and all else stays. */
  async run() {
    if (this.runs) return this.runs;
    this.start.disabled = true;
    this.loading ??= this.loaded().catch((error) => {
      this.say("", `The model cannot run in this page: ${error.message} What was computed ahead works `
        + "as before.");
      return null;
    });
    this.runs = await this.loading;
    this.loading = null;
    this.start.disabled = false;
    this.offer();
    this.work();
    return this.runs;
  }

  async loaded() {
    this.say("Loading the model …");
    const heard = (bytes) => this.say(`Loading the model: ${(bytes / 1e6).toFixed(1)} MB have come …`);
    const runs = await load(this.base, await this.learn(), heard);
    const { maps } = await this.look(runs, 0);
    const away = unpacked(this.scenes[0]).reduce(
      (far, value, i) => Math.max(far, Math.abs(value - maps[i])), 0);
    if (!(away < 1e-4)) throw new Error("The files hold another model than this page is about.");
    this.say("The model runs in this page.");
    return runs;
  }

  /** What the eye makes of a scene's picture, made once. */
  async look(runs, number) {
    const scene = this.scenes[number];
    if (!this.seen.has(scene)) {
      const image = new Image();
      image.src = scene.image;
      await image.decode();
      const canvas = Object.assign(document.createElement("canvas"), {
        width: image.naturalWidth, height: image.naturalHeight,
      });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const rgba = context.getImageData(0, 0, canvas.width, canvas.height);
      this.seen.set(scene, await runs.see(rgba));
    }
    return this.seen.get(scene);
  }

  /** What was learned of a scene: tokens, and whether they weigh -> an answer. */
  learned(scene) {
    if (!this.found.has(scene)) this.found.set(scene, new Map());
    return this.found.get(scene);
  }

  keyOf(kept) { return kept && `${this.state.weighed} ${kept.join()}`; }

  /** Answer what is on the page and not answered yet, one after the other. */
  async work() {
    if (!this.runs || this.working) return;
    this.working = true;
    for (let kept = this.unanswered(); kept; kept = this.unanswered()) {
      const { scene, state: { weighed } } = this;
      const key = this.keyOf(kept);
      try {
        const picture = await this.look(this.runs, this.state.scene);
        const asked = new Asked(this.runs, picture, scene.question, kept, { weighed, placed: weighed });
        const legal = this.runs.legal(scene.question);
        this.learned(scene).set(key, await this.runs.answer(asked, scene.answer, legal));
      } catch (error) {
        this.learned(scene).set(key, null);
        this.say("", `The model failed: ${error.message}`);
      }
      this.draw();
      await new Promise((resolve) => setTimeout(resolve)); // let the reader move something
    }
    this.working = false;
  }

  /** The next tokens to ask about: what is looked at, then the table, then the lines of the chart. */
  unanswered() {
    const { method, stop } = this.state;
    const order = [method, ...this.methods.keys()];
    const stops = [stop, ...this.model.get("retentions").keys()];
    const lines = this.state.weighed || this.scene.mine; // others have theirs
    for (const at of lines && this.usual() ? stops : [stop]) {
      for (const i of order) {
        const kept = this.keptBy(i, at);
        if (kept?.length && !this.learned(this.scene).has(this.keyOf(kept))) return kept;
      }
    }
    return null;
  }

  // The reader's picture and question

  pasted(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((f) => f.type.startsWith("image/"));
    if (!file || this.yours.hidden) return;
    event.preventDefault();
    this.bring(file, "the pasted picture");
  }

  /** Take a picture for the next question; a bad one is refused in words and the last one stays. */
  async bring(blob, name = blob?.name) {
    if (!blob) return;
    try {
      const { rgba, note } = await decoded(blob, name);
      this.picture = { blob, rgba };
      this.brought.textContent = `Next: ${name}, ${rgba.width} x ${rgba.height} pixels. ${note}`;
      this.yours.open = true;
      this.say("");
      if (this.text.value.trim()) await this.submit();
    } catch (error) {
      this.say("", error.message);
    }
  }

  /** Mark the words of the question that the model does not know. */
  marked() {
    const text = this.text.value;
    const unknown = new Set(this.reader?.unknowns(text) ?? []);
    this.words.replaceChildren(...(unknown.size ? [
      "Not known, and read as one and the same: ",
      ...[...unknown].flatMap((word) => [make("mark", { textContent: word }), " "]),
    ] : []));
  }

  async submit() {
    const question = this.text.value;
    if (this.kernel) return this.askKernel(question);
    if (!question.trim()) return this.say("", "The question is empty: ask something.");
    const runs = await this.run();
    if (!runs) return;
    const refusal = runs.refusal(question);
    if (refusal) return this.say("", refusal);
    this.say("Looking …");
    try {
      const picture = this.picture ? await runs.see(this.picture.rgba) : await this.look(runs, this.state.scene);
      await this.add(picture, question.trim());
      this.say("");
    } catch (error) {
      this.say("", `The model failed: ${error.message}`);
    }
  }

  askKernel(question) {
    this.say("Asking …");
    const send = (address) => this.model.send({
      kind: "own", image: address.split(",")[1], question,
    });
    if (!this.picture) return send(this.scene.image);
    const reader = new FileReader();
    reader.onload = () => send(reader.result);
    reader.readAsDataURL(this.picture.blob);
  }

  /** Add a scene as Python makes them: with all tokens the model's answer stands for the right one. */
  async add(picture, question) {
    const { runs } = this;
    const { height, width, counts, rows, order } = this.model.get("scenes")[0];
    const block = this.block;
    const kept = {};
    for (const { name, kind } of this.model.get("methods")) {
      if (name === "cls") {
        kept[name] = counts.map((k) => rank(runs.map(picture, block, 0, "cls"), k));
      } else if (name === "divprune") {
        const all = divprune(runs.likeness(picture), height * width);
        kept[name] = counts.map((k) => first(all, k));
      }
    }
    const all = Array.from({ length: height * width }, (_, i) => i);
    const legal = runs.legal(question);
    const asked = new Asked(runs, picture, question, all);
    const answer = await asked.said(8);
    const full = await runs.answer(asked, answer, legal);
    const scene = {
      task: "yours", question, answer, assumed: true, mine: true,
      image: painted(picture.seen, ...SEEN(runs)).toDataURL(), height, width,
      maps: picture.maps, criterion: runs.criterion(picture), evidence: [], order, counts, rows, kept,
      answers: { full: [full] },
    };
    this.seen.set(scene, picture);
    this.mine.push(scene);
    this.choose(this.scenes.length - 1);
    this.learned(scene).set(this.keyOf(all), full);
    this.draw();
  }

  // Choosing

  choose(number) {
    const { scenes } = this;
    this.pictures.replaceChildren(...scenes.map((scene, value) => make("option", {
      value, textContent: `${scene.task}: ${scene.question}`,
    })));
    this.maps = unpacked(scenes[number]);
    this.image = new Image();
    this.image.onload = () => this.draw();
    this.image.src = scenes[number].image;
    const axis = this.model.get("axes").indexOf(scenes[number].criterion);
    const method = this.state.own ? 0 : this.state.method;
    this.set({ scene: number, block: this.block, head: 0, axis, own: null, method });
  }

  take(method) {
    const kept = this.keptBy(this.state.method) ?? [];
    const own = method === this.own ? this.state.own ?? new Set(kept) : this.state.own;
    this.set({ method, own });
  }

  set(change) {
    Object.assign(this.state, change);
    const { scene, method, stop, block, head, axis, weighed } = this.state;
    for (const [element, value] of [
      [this.pictures, scene], [this.slider, stop], [this.blocks, block], [this.heads, head],
      [this.axes, axis],
    ]) element.value = value;
    this.weighed.checked = weighed;
    this.radios[method].checked = true;
    this.draw();
    this.remember();
    if (this.runs) this.work();
    else if (this.kernel) this.ask();
  }

  play() {
    if (!this.state.stop) this.set({ stop: this.model.get("retentions").length - 1 });
    this.player.textContent = "❚❚ Stop";
    this.playing = setInterval(() => {
      if (!this.element.isConnected || !this.state.stop) return this.stopPlaying();
      this.set({ stop: this.state.stop - 1 });
    }, 900);
  }

  stopPlaying() {
    clearInterval(this.playing);
    this.playing = null;
    this.player.textContent = "▶ Play";
  }

  /** Drop or restore a patch. */
  toggle(patch) {
    const own = new Set(this.state.method === this.own ? this.state.own : this.keptBy(this.state.method));
    if (!own.delete(patch)) own.add(patch);
    this.set({ own, method: this.own });
    const { width } = this.scene;
    this.here.textContent = `row ${Math.floor(patch / width) + 1}, column ${(patch % width) + 1}: `
      + `${own.has(patch) ? "kept" : "dropped"}`;
  }

  point(event) {
    const box = this.kept.getBoundingClientRect();
    const { width, height } = this.scene;
    const column = Math.floor(((event.clientX - box.left) / box.width) * width);
    const line = Math.floor(((event.clientY - box.top) / box.height) * height);
    if (column >= 0 && column < width && line >= 0 && line < height) this.toggle(line * width + column);
  }

  key(event) {
    const { width, height } = this.scene;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = step[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    this.cursor ??= [Math.floor(height / 2), Math.floor(width / 2)];
    if (!move) return this.toggle(this.cursor[0] * width + this.cursor[1]);
    this.cursor = [
      Math.min(Math.max(this.cursor[0] + move[0], 0), height - 1),
      Math.min(Math.max(this.cursor[1] + move[1], 0), width - 1),
    ];
    const patch = this.cursor[0] * width + this.cursor[1];
    const stays = this.keptBy(this.state.method)?.includes(patch);
    this.here.textContent = `row ${this.cursor[0] + 1}, column ${this.cursor[1] + 1}: `
      + `${stays ? "kept" : "dropped"}; space changes it`;
    this.draw();
  }

  /** Whether the map is the one by which the model was asked before. */
  usual() {
    const { block, head, axis } = this.state;
    return block === this.block && head === 0
      && this.model.get("axes")[axis] === this.scene.criterion;
  }

  /** Ask the kernel about tokens that nobody asked about before. */
  ask() {
    clearTimeout(this.timer);
    const kept = this.keptBy(this.state.method);
    if (!kept?.length || this.answerOf(this.state.method)) return;
    const token = (this.wanted?.token ?? 0) + 1;
    this.wanted = { token, scene: this.scene, key: this.keyOf(kept) };
    const message = { kind: "ask", token, scene: this.state.scene, kept };
    this.timer = setTimeout(() => this.model.send(message), 150);
  }

  scores() {
    const { block, head, axis } = this.state;
    const [, heads, axes] = this.model.get("layout_of_maps");
    const n = this.scene.height * this.scene.width;
    const start = ((block * heads + head) * axes + axis) * n;
    return this.maps.subarray(start, start + n);
  }

  /** The tokens that a method keeps, in their order; null where the page does not know. */
  keptBy(method, stop = this.state.stop) {
    const { scene } = this;
    const { name, kind } = this.methods[method];
    const count = scene.counts[stop];
    if (kind === "own") {
      return this.state.own && [...this.state.own].sort((a, b) => a - b);
    }
    if (kind === "rank") return rank(this.scores(), count);
    if (kind === "row") return row(this.scores(), scene.width, scene.rows[stop]);
    if (kind === "random") return first(scene.order, count);
    return scene.kept[name]?.[stop] ?? null;
  }

  answerOf(method, stop = this.state.stop) {
    const { name, kind } = this.methods[method];
    const found = this.learned(this.scene).get(this.keyOf(this.keptBy(method, stop)));
    if (found || this.state.weighed || kind === "own") return found ?? null;
    if ((kind === "rank" || kind === "row") && !this.usual()) return null;
    return this.scene.answers[name]?.[stop] ?? null;
  }

  evidence(kept) {
    const under = new Set(this.scene.evidence);
    return `${kept.filter((i) => under.has(i)).length} of ${under.size}`;
  }

  // The address

  /** Put the state into the address, in a page that has one of its own. */
  remember() {
    if (document.documentElement.dataset.content_root === undefined || !this.settled) return;
    const { scene, method, stop, own } = this.state;
    const told = new URLSearchParams({
      picture: this.scene.mine ? 0 : scene,
      method: this.methods[method].name,
      retention: this.model.get("retentions")[stop],
    });
    if (method === this.own) told.set("kept", [...own].join("."));
    if (this.scene.mine) told.set("question", this.scene.question);
    history.replaceState(history.state, "", `#${told}`);
  }

  /** Take the state that the address names; what it names wrongly is left out. */
  recall() {
    this.settled = true;
    if (document.documentElement.dataset.content_root === undefined) return;
    const told = new URLSearchParams(location.hash.slice(1));
    if (!told.has("retention")) return;
    const n = this.scene.height * this.scene.width;
    const number = Number(told.get("picture"));
    if (this.scenes[number]) this.choose(number);
    const method = this.methods.findIndex(({ name }) => name === told.get("method"));
    const stop = this.model.get("retentions").indexOf(Number(told.get("retention")));
    const kept = (told.get("kept") ?? "").split(".").filter((i) => /^\d+$/.test(i) && i < n);
    const own = kept.length ? new Set(kept.map(Number)) : null;
    this.set({
      ...(method >= 0 && (method !== this.own || own) && { method, own }),
      ...(stop >= 0 && { stop }),
    });
    this.text.value = told.get("question") ?? "";
  }

  close() {
    this.stopPlaying();
    document.removeEventListener("paste", this.onpaste);
  }

  // Drawing

  draw() {
    const { scene } = this;
    const n = scene.height * scene.width;
    const kept = this.keptBy(this.state.method) ?? [];
    const { label } = this.methods[this.state.method];
    const full = scene.answers.full[0];
    const said = `${full.text || "(nothing)"} (${percent(full.p)} on the right one).`;
    const count = scene.counts[this.state.stop];
    this.question.replaceChildren(make("b", { textContent: scene.question }), scene.assumed
      ? ` With all ${n} tokens: ${full.text || "(nothing)"}, which stands for the right answer here.`
      : ` Right answer: ${scene.answer}. With all ${n} tokens: ${said}`);
    this.amount.textContent =
      `${parseFloat((100 * this.model.get("retentions")[this.state.stop]).toFixed(1))} %, `
      + `${this.state.method === this.own ? count : kept.length} of ${n} tokens`;
    this.slider.setAttribute("aria-valuetext", this.amount.textContent);
    this.none.textContent = `Choose your own ${count} tokens`;
    this.paintKept(kept);
    this.paintHeat();
    this.captions[0].textContent = `${label}: ${kept.length} of ${n} patches stay`
      + (scene.evidence.length ? `, ${this.evidence(kept)} of the evidence (orange)` : "")
      + (this.state.method === this.own && kept.length !== count ? `; the methods keep ${count}` : "");
    this.captions[1].textContent = `attention ${READS[this.model.get("axes")[this.state.axis]]}, `
      + `block ${this.state.block}, as a multiple of an even share`;
    this.kept.setAttribute("aria-label", `${this.captions[0].textContent}. Arrow keys move, space drops `
      + "or restores a patch");
    this.heat.setAttribute("aria-label", this.captions[1].textContent);
    const answer = this.answerOf(this.state.method);
    this.sentence.textContent = answer
      ? `${label} answers “${answer.text}”: ${verdict(answer)}. ${WHETHER[known(answer)]} The `
        + `probability of the right answer with its end is ${percent(answer.p)}.`
      : this.unansweredWhy(label, kept);
    this.note.textContent = this.usual()
      ? "This is what FoPru ranks by on this picture."
      : "Another map than FoPru's: rank and row above select by it.";
    this.paintReadings(answer);
    this.paintTable();
    this.paintChart(kept.length);
  }

  unansweredWhy(label, kept) {
    if (!kept.length) return "No patch is chosen yet: click some, or move with the arrow keys.";
    if (this.runs || this.kernel) return `What ${label} answers by this is being asked.`;
    return `What ${label} answers by this needs ${this.base ? "the model: run it in this page" : "a kernel"}.`;
  }

  /** What is said and what is known, side by side. */
  paintReadings(answer) {
    const head = (text) => make("b", { textContent: text });
    if (!answer) {
      this.says.replaceChildren(head("It says"), make("p", { textContent: "…" }));
      this.knows.replaceChildren(head("It knows"), make("p", { textContent: "…" }));
      return;
    }
    this.says.replaceChildren(head("It says"),
      make("p", { className: "said", textContent: answer.text || "(nothing)" }),
      make("p", { textContent: verdict(answer) }));
    const choices = answer.choices ?? [];
    this.knows.replaceChildren(head("It knows"), ...choices.map(([text, p]) => make("p", {
      className: text === this.scene.answer ? "bar right" : "bar",
    }, make("span", { textContent: text }), make("i", {
      style: `width: ${(60 * p).toFixed(1)}%`, attrs: { "aria-hidden": "true" },
    }), percent(p))));
    if (choices.length) {
      this.knows.append(make("small", { textContent: "The likeliest legal answers, ends not counted." }));
    } else {
      this.knows.append(make("p", { textContent: answer.knows === null
        ? "This question names no legal answers."
        : `${answer.knows ? "The right answer is" : "A wrong answer is"} the likeliest legal one.`
          + (this.runs || !this.base ? "" : " Run the model to see how likely each is.") }));
    }
  }

  paintTable() {
    const shown = [...this.methods.keys()].filter((i) => i !== this.own || this.state.own);
    this.table.replaceChildren(...shown.map((i) => {
      const method = this.methods[i];
      const kept = this.keptBy(i);
      const answer = this.answerOf(i);
      const evidence = kept && this.scene.evidence.length ? this.evidence(kept) : "–";
      const said = answer
        ? make("td", { title: answer.text }, answer.text, " ", make("small", { textContent: verdict(answer) }))
        : make("td", { textContent: "–" });
      const cell = (text) => make("td", { textContent: text });
      return make("tr", { className: i === this.state.method ? "chosen" : "" },
        make("th", { scope: "row" }, this.swatch(i), method.label),
        cell(kept ? kept.length : "–"), cell(evidence), said, cell(answer ? known(answer) : "–"),
        cell(answer ? percent(answer.p) : "–"));
    }));
  }

  paintKept(kept) {
    const [context, cell] = dimmed(this.kept, this.image, this.scene, kept, this.scene.evidence);
    if (this.cursor) {
      const [line, column] = this.cursor;
      Object.assign(context, { strokeStyle: "#0072b2", lineWidth: 4 });
      context.strokeRect(...cell(line * this.scene.width + column));
    }
  }

  paintHeat() {
    const [context, cell] = laid(this.heat, this.image, this.scene, "grayscale(1)");
    const scores = this.scores();
    const low = Math.min(...scores);
    const range = Math.max(...scores) - low || 1;
    scores.forEach((score, i) => {
      context.fillStyle = viridis((score - low) / range);
      context.fillRect(...cell(i));
    });
    const times = (score) => `${Number((scores.length * score).toPrecision(2))} ×`;
    this.legend.replaceChildren(times(low), make("i", { style: `background: ${RAMP}` }),
      times(low + range));
  }

  paintChart(k) {
    const { scene, chart } = this;
    const n = scene.height * scene.width;
    const x = (tokens) => 54 + (310 * Math.log2(tokens)) / Math.log2(n);
    const y = (p) => 280 - 262 * p;
    chart.replaceChildren();
    chart.setAttribute("aria-label",
      "probability of the right answer with its end, over the tokens kept; dots where it is known");
    for (const p of [0, 0.5, 1]) {
      chart.append(
        shape("line", { x1: 54, x2: 364, y1: y(p), y2: y(p), class: "grid" }),
        shape("text", { x: 48, y: y(p) + 5, "text-anchor": "end" }, `${100 * p}`));
    }
    for (let tokens = 1; tokens <= n; tokens *= 4) {
      chart.append(shape("text", { x: x(tokens), y: 300, "text-anchor": "middle" }, `${tokens}`));
    }
    chart.append(
      shape("text", { x: 209, y: 323, "text-anchor": "middle" }, "visual tokens kept"),
      shape("text", { x: 0, y: 0, "text-anchor": "middle", transform: "translate(13 149) rotate(-90)" },
        "probability (%)"));
    this.model.get("methods").forEach(({ name, kind, color }, i) => {
      const tokens = kind === "row" ? scene.rows.map((r) => r * scene.width) : scene.counts;
      const ahead = this.state.weighed ? null : scene.answers[name];
      const points = tokens.map((t, stop) => [t, ahead ? ahead[stop] : this.answerOf(i, stop)])
        .filter(([, answer]) => answer).map(([t, answer]) => [x(t), y(answer.p), answer.knows]);
      chart.append(shape("polyline", {
        points: points.map(([cx, cy]) => `${cx},${cy}`).join(" "), fill: "none", stroke: color,
        "stroke-width": i === this.state.method ? 4 : 2,
        "stroke-dasharray": DASHES[i % DASHES.length],
      }), ...points.filter(([, , knows]) => knows).map(([cx, cy]) => shape("circle", {
        cx, cy, r: i === this.state.method ? 4.5 : 3, fill: color,
      })));
    });
    chart.append(
      shape("line", { x1: x(k || 1), x2: x(k || 1), y1: 12, y2: 280, class: "cursor" }),
      shape("circle", {
        cx: x(k || 1), cy: y(this.answerOf(this.state.method)?.p ?? 0), r: 6, class: "cursor",
        visibility: this.answerOf(this.state.method) ? "visible" : "hidden",
      }));
  }
}

function render({ model, el }) {
  const page = new Page(model, el);
  return () => page.close();
}

export default { render };
